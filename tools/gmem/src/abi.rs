// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The binary interface, as `include/uapi/linux/kvm_gmem.h` has it.
//!
//! Only what `kvm-bindings` does not know yet is defined here. The layout is asserted when the
//! crate is compiled.

use core::mem::{
    offset_of,
    size_of, //
};
use libc::c_ulong;
use vmm_sys_util::ioctl::{
    ioctl_expr,
    _IOC_READ,
    _IOC_WRITE, //
};

/// A range of a guest_memfd and its attributes: `struct kvm_memory_attributes2`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryAttributes2 {
    /// Byte offset in the file.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// 0 for shared, or [`KVM_MEMORY_ATTRIBUTE_PRIVATE`].
    pub attributes: u64,
    /// A content policy: 0, [`CONTENT_POLICY_ZERO`] or [`CONTENT_POLICY_PRESERVE`].
    pub flags: u64,
    /// Written by the kernel: byte offset of the first page that stopped the request.
    pub error_offset: u64,
    /// Has to be 0.
    pub reserved: [u64; 11],
}

/// Convert a range of the file in place.
pub const KVM_SET_MEMORY_ATTRIBUTES2: c_ulong = iowr::<MemoryAttributes2>(0xd2);
/// Ask how much of the file, from an offset on, has the same attributes.
pub const KVM_GET_MEMORY_ATTRIBUTES2: c_ulong = iowr::<MemoryAttributes2>(0xd3);

/// Guest physical memory to be mapped: `struct kvm_memory_mapping`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryMapping {
    /// First guest physical address, in bytes. Out: the address of the rest.
    pub base_address: u64,
    /// Size in bytes. Out: the size of the rest.
    pub size: u64,
    /// Has to be 0.
    pub flags: u64,
}

/// Populate the page tables, on a vCPU.
pub const KVM_MAP_MEMORY: c_ulong = iowr::<MemoryMapping>(0xd5);

/// The page belongs to the guest alone.
pub const KVM_MEMORY_ATTRIBUTE_PRIVATE: u64 = kvm_bindings::KVM_MEMORY_ATTRIBUTE_PRIVATE as u64;

/// The range reads as zeroes when the call returns.
pub const CONTENT_POLICY_ZERO: u64 = 1 << 0;
/// The call does not change the bytes of the range.
pub const CONTENT_POLICY_PRESERVE: u64 = 1 << 1;

/// The host may map the file.
pub const GUEST_MEMFD_FLAG_MMAP: u64 = 1 << 0;
/// All pages of the file start as shared.
pub const GUEST_MEMFD_FLAG_INIT_SHARED: u64 = 1 << 1;
/// The host may move the pages of the file to other memory.
pub const GUEST_MEMFD_FLAG_MIGRATABLE: u64 = 1 << 16;
/// Memory of the file that is allocated 2 MiB at a time is one folio.
pub const GUEST_MEMFD_FLAG_LARGE_FOLIOS: u64 = 1 << 17;

/// The hypercall by which a guest asks for a conversion: args are an address in bytes, a number of
/// pages of 4 KiB, and attributes.
pub const KVM_HC_MAP_GPA_RANGE: u64 = 12;
/// Attribute of [`KVM_HC_MAP_GPA_RANGE`]: to private. Without it: to shared.
pub const KVM_MAP_GPA_RANGE_ENCRYPTED: u64 = 1 << 4;
/// Attribute of [`KVM_HC_MAP_GPA_RANGE`] on arm64, next to [`KVM_MAP_GPA_RANGE_ENCRYPTED`]: the guest
/// has given the memory back.
pub const KVM_MAP_GPA_RANGE_RELINQUISHED: u64 = 1 << 5;
/// Attributes of [`KVM_HC_MAP_GPA_RANGE`] that are a hint about the size of pages.
pub const KVM_MAP_GPA_RANGE_PAGE_SIZE: u64 = 0xf;
/// Which hypercalls can be handed to the VMM, as a mask of `1 << KVM_HC_*`.
pub const KVM_CAP_EXIT_HYPERCALL: c_ulong = kvm_bindings::KVM_CAP_EXIT_HYPERCALL as c_ulong;

/// The VM type of x86 that has private memory without any hardware for it.
pub const KVM_X86_SW_PROTECTED_VM: u64 = 1;
/// Bit mask of the VM types that the host has.
pub const KVM_CAP_VM_TYPES: c_ulong = 235;
/// Which creation flags a guest_memfd may have.
pub const KVM_CAP_GUEST_MEMFD_FLAGS: c_ulong = 244;
/// Which attributes a guest_memfd records by itself.
pub const KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES: c_ulong = 252;
/// Content policies that work after launch.
pub const KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS: c_ulong = 0x10000;
/// Content policies that work before launch.
pub const KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS: c_ulong = 0x10001;
/// [`KVM_GET_MEMORY_ATTRIBUTES2`] exists.
pub const KVM_CAP_GET_MEMORY_ATTRIBUTES2: c_ulong = 0x10002;
/// [`KVM_MAP_MEMORY`] works.
pub const KVM_CAP_MAP_MEMORY: c_ulong = 0x10003;

/// Which platforms the kernel emulates, as a mask of `1 << KVM_GMEM_EMULATE_*`.
pub const KVM_CAP_GMEM_EMULATION: c_ulong = 0x10004;
/// AMD SEV-SNP.
pub const KVM_GMEM_EMULATE_SNP: u64 = 1;
/// Intel TDX.
pub const KVM_GMEM_EMULATE_TDX: u64 = 2;
/// Intel TDX; guests select the kind of memory by the address.
pub const KVM_GMEM_EMULATE_TDX_MIRROR: u64 = 3;
/// A page that is removed from an emulated TDX guest is zeroed.
pub const KVM_GMEM_EMULATE_REMOVE_ZEROES: u64 = 1 << 0;
/// The other side of an emulated platform sees each word XORed with this.
pub const KVM_GMEM_EMULATION_KEY: u64 = 0x6b76_6d5f_676d_656d;

/// One operation on an emulated platform: `struct kvm_gmem_emulate`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Emulate {
    /// Which: `KVM_GMEM_EMULATE_OP_*`.
    pub op: u32,
    /// What kind of page is added: `KVM_GMEM_EMULATE_PAGE_*` on SNP, otherwise 0.
    pub page_type: u32,
    /// Guest physical address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// Address of the source, or 0 for the pages' own contents.
    pub uaddr: u64,
    /// Arguments or results.
    pub value: [u64; 4],
}

/// Operate on an emulated platform, on the VM.
pub const KVM_GMEM_EMULATE: c_ulong = iowr::<Emulate>(0xd6);
/// Give pages to the guest before launch.
pub const KVM_GMEM_EMULATE_OP_LAUNCH_UPDATE: u32 = 1;
/// End the launch.
pub const KVM_GMEM_EMULATE_OP_LAUNCH_FINISH: u32 = 2;
/// Ask about a page.
pub const KVM_GMEM_EMULATE_OP_QUERY: u32 = 4;
/// A page with contents.
pub const KVM_GMEM_EMULATE_PAGE_NORMAL: u32 = 1;
/// A page of zeroes.
pub const KVM_GMEM_EMULATE_PAGE_ZERO: u32 = 3;
/// The page with the CPUID table.
pub const KVM_GMEM_EMULATE_PAGE_CPUID: u32 = 6;
/// The state of a page that is not the platform's.
pub const KVM_GMEM_EMULATE_STATE_NONE: u64 = 0;

pub(crate) const fn iow<T>(nr: u32) -> c_ulong {
    ioctl_expr(_IOC_WRITE, kvm_bindings::KVMIO, nr, size_of::<T>() as u32)
}

pub(crate) const fn iowr<T>(nr: u32) -> c_ulong {
    ioctl_expr(
        _IOC_READ | _IOC_WRITE,
        kvm_bindings::KVMIO,
        nr,
        size_of::<T>() as u32,
    )
}

const _: () = {
    assert!(size_of::<MemoryAttributes2>() == 128);
    assert!(offset_of!(MemoryAttributes2, offset) == 0);
    assert!(offset_of!(MemoryAttributes2, size) == 8);
    assert!(offset_of!(MemoryAttributes2, attributes) == 16);
    assert!(offset_of!(MemoryAttributes2, flags) == 24);
    assert!(offset_of!(MemoryAttributes2, error_offset) == 32);
    assert!(offset_of!(MemoryAttributes2, reserved) == 40);

    // The VM's own ioctl has the same number and the same first four fields; only direction and
    // size tell the two apart.
    use kvm_bindings::kvm_memory_attributes as Old;
    assert!(size_of::<Old>() == 32);
    assert!(offset_of!(MemoryAttributes2, offset) == offset_of!(Old, address));
    assert!(offset_of!(MemoryAttributes2, size) == offset_of!(Old, size));
    assert!(offset_of!(MemoryAttributes2, attributes) == offset_of!(Old, attributes));
    assert!(offset_of!(MemoryAttributes2, flags) == offset_of!(Old, flags));

    assert!(KVM_MEMORY_ATTRIBUTE_PRIVATE == 8);
    assert!(KVM_SET_MEMORY_ATTRIBUTES2 == 0xC080_AED2);
    assert!(KVM_GET_MEMORY_ATTRIBUTES2 == 0xC080_AED3);

    assert!(size_of::<MemoryMapping>() == 24);
    assert!(offset_of!(MemoryMapping, base_address) == 0);
    assert!(offset_of!(MemoryMapping, size) == 8);
    assert!(offset_of!(MemoryMapping, flags) == 16);
    assert!(KVM_MAP_MEMORY == 0xC018_AED5);

    assert!(size_of::<Emulate>() == 64);
    assert!(offset_of!(Emulate, op) == 0);
    assert!(offset_of!(Emulate, page_type) == 4);
    assert!(offset_of!(Emulate, gpa) == 8);
    assert!(offset_of!(Emulate, size) == 16);
    assert!(offset_of!(Emulate, uaddr) == 24);
    assert!(offset_of!(Emulate, value) == 32);
    assert!(KVM_GMEM_EMULATE == 0xC040_AED6);
};
