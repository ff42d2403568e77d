// SPDX-License-Identifier: GPL-2.0

//! New files.

use crate::platform::supported_flags;
use gmem_sys::{
    export::{
        file_ops,
        host_wide, //
    },
    fs::inode::{
        Size,
        Traits, //
    },
    kvm::{
        platform::of,
        vm::Vm, //
    },
    uapi::{
        FLAG_INIT_SHARED,
        FLAG_LARGE_FOLIOS,
        FLAG_MIGRATABLE,
        FLAG_MMAP, //
    }, //
};
use gmem_types::visibility::Visibility;
use kernel::prelude::*;

/// KVM_CREATE_GUEST_MEMFD.
///
/// The flags decide whether the file converts in place. A file that the host can neither map nor
/// find shared is always private, and works as before.
///
/// # Errors
///
/// `EINVAL` for flags that the VM does not support, or not together, and for a size that is 0, negative or not page
/// aligned; and what creating a file returns.
pub(crate) fn create(vm: &Vm, size: u64, flags: u64) -> Result<i32> {
    if flags & !supported_flags(Some(vm)) != 0 {
        return Err(EINVAL);
    }
    let size = Size::new(size).ok_or(EINVAL)?;
    let mappable = flags & FLAG_MMAP != 0;
    let init_shared = flags & FLAG_INIT_SHARED != 0;

    file_ops::create(
        vm,
        Traits {
            size,
            initial: if init_shared {
                Visibility::Shared
            } else {
                Visibility::Private
            },
            mappable,
            in_place: of(vm).is_some() && (mappable || init_shared || host_wide()),
            migratable: flags & FLAG_MIGRATABLE != 0,
            large_folios: flags & FLAG_LARGE_FOLIOS != 0,
        },
    )
}
