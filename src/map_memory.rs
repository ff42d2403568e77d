// SPDX-License-Identifier: GPL-2.0

//! KVM_MAP_MEMORY: populating a VM's second-level page tables ahead of its faults.
//!
//! Any memory can be mapped: private or shared, of a guest_memfd or not. It is mapped as for a read
//! by the guest, and is not changed otherwise.

use gmem_policy::mapping::{
    Mapping,
    MAP_MEMORY, //
};
use gmem_sys::{
    fs::inode::PAGE,
    ioctl::UserPointer,
    kvm::vcpu::{
        Loaded,
        Vcpu, //
    },
    task::{
        reschedule,
        signal_pending, //
    },
    trace, //
};
use kernel::prelude::*;

/// The number of attempts to map a page that others are changing. Each attempt takes longer than
/// the change of one page. If others change more pages, the caller has to wait for them.
const TRIES: u32 = 16;

/// Handles an ioctl on a vCPU. On return, also with an error, its struct has the remaining range.
///
/// # Errors
///
/// `ENOTTY` for other ioctls than KVM_MAP_MEMORY. `EINVAL` for an invalid struct. `EFAULT`
/// if the struct cannot be read or written: what was mapped stays. Otherwise those of [`populate`],
/// if not a single page was mapped.
pub(crate) fn ioctl(vcpu: &mut Vcpu<'_>, cmd: u32, arg: UserPointer) -> Result {
    if cmd != MAP_MEMORY {
        return Err(ENOTTY);
    }
    let asked = Mapping::parse(arg.read()?, PAGE).map_err(|_| EINVAL)?;
    let mut left = asked;

    let result = vcpu.loaded(|vcpu| populate(vcpu, &mut left));
    trace::map_memory(move || {
        let result = result.err().map_or(0, Error::to_errno);
        (asked.base(), asked.size(), left.size(), result)
    });
    arg.write(&left.to_words())?;
    if left == asked {
        result
    } else {
        Ok(())
    }
}

/// Maps page after page, or a larger mapping at once, until all is mapped or one fails.
///
/// # Errors
///
/// `EINTR` for a signal, `EAGAIN` for a page that others keep changing, and what the
/// architecture returns for a page: `EOPNOTSUPP`, `ENOENT`, `EHWPOISON`, `ENOMEM`, `EFAULT`.
fn populate(vcpu: &mut Loaded<'_>, left: &mut Mapping) -> Result {
    while left.size() != 0 {
        let mapped = map_one(vcpu, left)?;
        if !left.advance(mapped) {
            return Err(EIO);
        }
    }
    Ok(())
}

/// Maps the beginning of the range, and returns how much is mapped now, in bytes.
fn map_one(vcpu: &mut Loaded<'_>, left: &Mapping) -> Result<u64> {
    for _ in 0..TRIES {
        if signal_pending() {
            return Err(EINTR);
        }
        reschedule();
        match vcpu.map(left.base(), left.size()) {
            Err(error) if error == EAGAIN => {}
            other => return other,
        }
    }
    Err(EAGAIN)
}
