// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ioctls of `<linux/kvm.h>` that this library makes itself.
//!
//! They take any object that holds the descriptor, so that a VMM can use any version of any crate
//! for the rest of KVM. A file that is not KVM's refuses them with `ENOTTY`.

use crate::abi::{
    iow,
    iowr, //
};
use kvm_bindings::{
    kvm_create_guest_memfd,
    kvm_enable_cap,
    kvm_userspace_memory_region2,
    KVMIO, //
};
use libc::{
    c_int,
    c_ulong, //
};
use std::{
    io,
    os::fd::{
        AsRawFd,
        FromRawFd,
        OwnedFd, //
    },
};
use vmm_sys_util::ioctl::{
    ioctl_expr,
    ioctl_with_ref,
    ioctl_with_val,
    _IOC_NONE, //
};

const KVM_CHECK_EXTENSION: c_ulong = ioctl_expr(_IOC_NONE, KVMIO, 0x03, 0);
const KVM_SET_USER_MEMORY_REGION2: c_ulong = iow::<kvm_userspace_memory_region2>(0x49);
const KVM_ENABLE_CAP: c_ulong = iow::<kvm_enable_cap>(0xa3);
const KVM_CREATE_GUEST_MEMFD: c_ulong = iowr::<kvm_create_guest_memfd>(0xd4);

const _: () = {
    assert!(KVM_CHECK_EXTENSION == 0xAE03);
    assert!(KVM_SET_USER_MEMORY_REGION2 == 0x40A0_AE49);
    assert!(KVM_ENABLE_CAP == 0x4068_AEA3);
    assert!(KVM_CREATE_GUEST_MEMFD == 0xC040_AED4);
};

fn result(value: c_int) -> io::Result<c_int> {
    match value {
        0.. => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the value of a capability for `/dev/kvm` or a VM: 0 if the kernel does not know the
/// capability, or if the descriptor cannot be queried.
pub(crate) fn check_extension(asked: &impl AsRawFd, capability: c_ulong) -> u32 {
    // SAFETY: The ioctl takes a number.
    let value = unsafe { ioctl_with_val(asked, KVM_CHECK_EXTENSION, capability) };
    u32::try_from(value).unwrap_or(0)
}

/// Enables a capability of a VM.
pub(crate) fn enable_cap(vm: &impl AsRawFd, capability: u32, args: [u64; 4]) -> io::Result<()> {
    let request = kvm_enable_cap {
        cap: capability,
        args,
        ..Default::default()
    };
    // SAFETY: The kernel reads the struct, whose size is in the number. No capability that this
    // library enables has an address among its arguments.
    result(unsafe { ioctl_with_ref(vm, KVM_ENABLE_CAP, &request) }).map(drop)
}

/// Makes a guest_memfd whose descriptor is closed by exec().
pub(crate) fn create_guest_memfd(vm: &impl AsRawFd, size: u64, flags: u64) -> io::Result<OwnedFd> {
    let request = kvm_create_guest_memfd {
        size,
        flags,
        ..Default::default()
    };
    // SAFETY: The kernel reads the struct, whose size is in the number.
    let fd = result(unsafe { ioctl_with_ref(vm, KVM_CREATE_GUEST_MEMFD, &request) })?;
    // SAFETY: The kernel has just made the descriptor for us, so nobody else closes it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // The ioctl has no flag for it.
    // SAFETY: The call takes numbers.
    result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(fd)
}

/// Makes, changes or deletes a memslot.
///
/// # Safety
///
/// `userspace_addr` is 0, or the address of a mapping of the whole slot that stays until the slot is
/// deleted, and into which this process has no references.
pub(crate) unsafe fn set_user_memory_region2(
    vm: &impl AsRawFd,
    region: &kvm_userspace_memory_region2,
) -> io::Result<()> {
    // SAFETY: The kernel reads the struct, whose size is in the number. The caller guarantees the
    // address in it.
    result(unsafe { ioctl_with_ref(vm, KVM_SET_USER_MEMORY_REGION2, region) }).map(drop)
}

/// A descriptor of our own for the same file, closed by exec().
pub(crate) fn duplicate(of: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: The call takes numbers.
    let fd = result(unsafe { libc::fcntl(of.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) })?;
    // SAFETY: The descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
