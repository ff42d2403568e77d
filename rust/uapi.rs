// SPDX-License-Identifier: GPL-2.0

//! The numbers of the user-space interface, from the headers.
//!
//! The policy crate has its own copies of the numbers that it needs, because cargo compiles it
//! without the headers. Here the two are compared.
//!
//! C headers: [`include/uapi/linux/kvm.h`](srctree/include/uapi/linux/kvm.h),
//! [`include/uapi/linux/kvm_gmem.h`](../include/uapi/linux/kvm_gmem.h),
//! [`include/uapi/linux/falloc.h`](srctree/include/uapi/linux/falloc.h)

use crate::bindings;
use core::mem::offset_of;
use gmem_policy::{
    mapping::{
        Mapping,
        MAP_MEMORY, //
    },
    request::{
        RawRequest,
        GET_MEMORY_ATTRIBUTES2,
        SET_MEMORY_ATTRIBUTES2,
        VM_SET_MEMORY_ATTRIBUTES, //
    }, //
};
use gmem_types::{
    content::Content,
    visibility::Visibility, //
};

// CAST, here and below: bindgen gives a constant the smallest type that it fits into.

/// `KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES`.
pub const CAP_ATTRIBUTES: u64 = bindings::KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES as u64;
/// `KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS`.
pub const CAP_FLAGS: u64 = bindings::KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS as u64;
/// `KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS`.
pub const CAP_PRE_LAUNCH_FLAGS: u64 = bindings::KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS as u64;
/// `KVM_CAP_GET_MEMORY_ATTRIBUTES2`.
pub const CAP_GET: u64 = bindings::KVM_CAP_GET_MEMORY_ATTRIBUTES2 as u64;
/// `KVM_CAP_MAP_MEMORY`.
pub const CAP_MAP_MEMORY: u64 = bindings::KVM_CAP_MAP_MEMORY as u64;

/// `KVM_CAP_GUEST_MEMFD_FLAGS`.
pub const CAP_GUEST_MEMFD_FLAGS: u64 = bindings::KVM_CAP_GUEST_MEMFD_FLAGS as u64;

/// `GUEST_MEMFD_FLAG_MMAP`: the host may map the file.
pub const FLAG_MMAP: u64 = bindings::GUEST_MEMFD_FLAG_MMAP as u64;
/// `GUEST_MEMFD_FLAG_INIT_SHARED`: all pages start shared.
pub const FLAG_INIT_SHARED: u64 = bindings::GUEST_MEMFD_FLAG_INIT_SHARED as u64;
/// `GUEST_MEMFD_FLAG_MIGRATABLE`: the host can move its pages to other memory.
pub const FLAG_MIGRATABLE: u64 = bindings::GUEST_MEMFD_FLAG_MIGRATABLE as u64;
/// `GUEST_MEMFD_FLAG_LARGE_FOLIOS`: it can have folios as large as a large mapping.
pub const FLAG_LARGE_FOLIOS: u64 = bindings::GUEST_MEMFD_FLAG_LARGE_FOLIOS as u64;

/// `FALLOC_FL_KEEP_SIZE`.
// CAST: A bit far below the sign.
pub const FALLOC_KEEP_SIZE: i32 = bindings::FALLOC_FL_KEEP_SIZE as i32;
/// `FALLOC_FL_PUNCH_HOLE`.
// CAST: As above.
pub const FALLOC_PUNCH_HOLE: i32 = bindings::FALLOC_FL_PUNCH_HOLE as i32;

const _: () = {
    use bindings::kvm_memory_attributes2 as Raw;

    assert!(size_of::<RawRequest>() == size_of::<Raw>());
    assert!(offset_of!(RawRequest, offset) == offset_of!(Raw, __bindgen_anon_1));
    assert!(offset_of!(RawRequest, size) == offset_of!(Raw, size));
    assert!(offset_of!(RawRequest, attributes) == offset_of!(Raw, attributes));
    assert!(offset_of!(RawRequest, flags) == offset_of!(Raw, flags));
    assert!(offset_of!(RawRequest, error_offset) == offset_of!(Raw, error_offset));
    assert!(offset_of!(RawRequest, reserved) == offset_of!(Raw, reserved));
    assert!(Mapping::WORDS * size_of::<u64>() == size_of::<bindings::kvm_memory_mapping>());

    assert!(SET_MEMORY_ATTRIBUTES2 == bindings::GMEM_IOCTL_SET_MEMORY_ATTRIBUTES2);
    assert!(GET_MEMORY_ATTRIBUTES2 == bindings::GMEM_IOCTL_GET_MEMORY_ATTRIBUTES2);
    assert!(VM_SET_MEMORY_ATTRIBUTES == bindings::GMEM_IOCTL_SET_MEMORY_ATTRIBUTES);
    assert!(MAP_MEMORY == bindings::GMEM_IOCTL_MAP_MEMORY);

    let private = bindings::KVM_MEMORY_ATTRIBUTE_PRIVATE as u64;
    assert!(Visibility::Private.attributes() == private);
    assert!(Visibility::Shared.attributes() == 0);

    let none = bindings::KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_NONE as u64;
    let zero = bindings::KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_ZERO as u64;
    let preserve = bindings::KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_PRESERVE as u64;
    assert!(Content::None.flags() == none);
    assert!(Content::Zero.flags() == zero);
    assert!(Content::Preserve.flags() == preserve);
};
