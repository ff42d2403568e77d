// SPDX-License-Identifier: GPL-2.0

//! The trait that the crate above implements.

use crate::{
    fs::{
        address_space::Stable,
        fault::{
            HostFault,
            Served, //
        },
        file::GmemFile,
        tables::Tables, //
    },
    ioctl::UserPointer,
    kvm::{
        conversion::Done,
        fault::{
            GuestFault,
            GuestPage, //
        },
        migrate::{
            Destination,
            Moved,
            Source, //
        },
        populate::Populate,
        vcpu::Vcpu,
        vm::Vm, //
    },
    mm::folio::Frame, //
};
use gmem_types::{
    platform::Platform,
    visibility::Run, //
};
use kernel::{
    prelude::*,
    seq_file::SeqFile, //
};

/// A guest_memfd implementation. Everything that is not policy is checked before it is called.
pub trait GuestMemfd: Sized + 'static {
    /// The operations tables, which [`register_entry_points!`](crate::register_entry_points) makes.
    ///
    /// Called once, when KVM is loaded. The result is used from then on.
    fn tables() -> &'static Tables;

    /// KVM_CREATE_GUEST_MEMFD: returns a descriptor for a new file of `size` bytes.
    fn create(vm: &Vm, size: u64, flags: u64) -> Result<i32>;

    /// KVM_CHECK_EXTENSION, on a VM or on /dev/kvm. [`None`] for capabilities of others.
    fn capability(vm: Option<&Vm>, cap: u64) -> Option<i32>;

    /// Whether files of this VM can convert in place.
    fn supports_in_place(vm: &Vm) -> bool;

    /// A guest fault. Called inside SRCU; sleeps.
    fn get_pfn(fault: GuestFault<'_>) -> Result<GuestPage<'_>>;

    /// Returns the page of such a fault if it is in use and no platform has to be given it. Any
    /// context.
    fn in_use<'a>(fault: &GuestFault<'a>) -> Option<GuestPage<'a>>;

    /// Allocates the wanted pages from a page on, as many as a large mapping has. Returns whether
    /// such a mapping could show what is in use there. Called inside SRCU; sleeps.
    fn allocate_block(fault: &GuestFault<'_>) -> bool;

    /// Fills pages before launch, and returns how many. Called with slots_lock held.
    fn populate(populate: &Populate<'_>) -> Result<u64>;

    /// fallocate(), `offset` and `len` in bytes.
    fn fallocate(file: &GmemFile, mode: i32, offset: u64, len: u64) -> Result;

    /// KVM_SET_MEMORY_ATTRIBUTES2 on the file. The [`Done`] is evidence that it was carried out.
    fn set_memory_attributes<'f>(file: &'f GmemFile, arg: UserPointer) -> Result<Done<'f>>;

    /// KVM_GET_MEMORY_ATTRIBUTES2 on the file.
    fn get_memory_attributes(file: &GmemFile, arg: UserPointer) -> Result;

    /// An ioctl on a vCPU that generic code does not know. Called with the vCPU's mutex held.
    fn vcpu_ioctl(vcpu: &mut Vcpu<'_>, cmd: u32, arg: UserPointer) -> Result;

    /// Prints the file's part of `/proc/PID/fdinfo/FD`. Sleeps.
    fn show_fdinfo(file: &GmemFile, out: &SeqFile);

    /// Prints a run of a file in debugfs. Sleeps.
    fn show_run(run: &Run, out: &SeqFile);

    /// A host fault, during which the attributes of its file do not change. Called with mmap_lock
    /// or the VMA lock held.
    fn fault<'a>(fault: &mut HostFault<'a>, stable: &Stable<'_>) -> Result<Served<'a>>;

    /// Memory management moves a page to other memory. Called with its folio locked. Any allocation
    /// of memory can lead here.
    fn migrate<'m>(
        platform: Option<Platform>,
        from: Source<'m>,
        to: Destination<'m>,
    ) -> Result<Moved<'m>>;

    /// A page that was given to a platform is freed. The VM and its file may be gone.
    fn reclaim(frame: &Frame<'_>);
}
