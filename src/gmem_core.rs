// SPDX-License-Identifier: GPL-2.0

//! guest_memfd: the memory of KVM guests as a file, convertible between private and shared in
//! place.
//!
//! # Five rules
//!
//! 1. **One place is unsafe.** `unsafe`, bindings and `extern` are in `gmem_sys` (`rust/`) only.
//! 2. **Parse once, at the edge.** A raw struct becomes a typed request in one function; after that
//!    there are no bare numbers.
//! 3. **Locks are arguments.** A function that needs a lock takes its guard. No user memory is
//!    touched while the invalidate lock is held, as `mmap_lock` is outer to it.
//! 4. **Fallible first, then one commit that cannot fail.** The point of no return is the first
//!    byte or translation destroyed. A platform that fails after it kills the VM.
//! 5. **Soundness does not depend on this crate.** Wrong safe code here may lose a guest's data,
//!    return an error, kill the VM, hang, or leak pages. Whatever it returns, and in whichever
//!    order it calls, it cannot cause undefined behaviour, let the host reach a byte of a page
//!    whose attribute is private, show what the memory of a page held before, free a page that a
//!    platform has, or let a conversion that promises zeroes succeed over other bytes.
//!
//! Start reading at [`convert`].

#![forbid(unsafe_code)]

use gmem_sys::{
    fs::{
        address_space::Stable,
        fault::{
            HostFault,
            Served, //
        },
        file::GmemFile,
        tables::Tables, //
    },
    guest_memfd::GuestMemfd,
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
        platform::of,
        populate::Populate,
        vcpu::Vcpu,
        vm::Vm, //
    },
    mm::folio::Frame,
    LocalModule, //
};
use kernel::{
    prelude::*,
    seq_file::SeqFile, //
};

mod content;
mod convert;
mod fallocate;
mod fault;
mod fdinfo;
mod file;
mod get_pfn;
mod ioctl;
mod map_memory;
mod outcome;
mod platform;
mod populate;
mod stats;
#[cfg(CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST)]
mod tests;

use gmem_types::{
    platform::Platform,
    visibility::Run, //
};

/// The prefix of each line that the kernel's print macros print.
#[cfg(CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST)]
const __LOG_PREFIX: &[u8] = b"kvm_gmem\0";

/// The implementation.
struct Gmem;

gmem_sys::register_entry_points!(Gmem, TABLES);

impl GuestMemfd for Gmem {
    fn tables() -> &'static Tables {
        &TABLES
    }

    fn create(vm: &Vm, size: u64, flags: u64) -> Result<i32> {
        file::create(vm, size, flags)
    }

    fn capability(vm: Option<&Vm>, cap: u64) -> Option<i32> {
        platform::capability(vm, cap)
    }

    fn supports_in_place(vm: &Vm) -> bool {
        of(vm).is_some()
    }

    fn get_pfn(fault: GuestFault<'_>) -> Result<GuestPage<'_>> {
        get_pfn::get_pfn(fault)
    }

    fn in_use<'a>(fault: &GuestFault<'a>) -> Option<GuestPage<'a>> {
        get_pfn::in_use(fault)
    }

    fn allocate_block(fault: &GuestFault<'_>) -> bool {
        get_pfn::allocate_block(fault)
    }

    fn populate(populate: &Populate<'_>) -> Result<u64> {
        populate::populate(populate)
    }

    fn fallocate(file: &GmemFile, mode: i32, offset: u64, len: u64) -> Result {
        fallocate::fallocate(file, mode, offset, len)
    }

    fn set_memory_attributes<'f>(file: &'f GmemFile, arg: UserPointer) -> Result<Done<'f>> {
        ioctl::set_memory_attributes(file, arg)
    }

    fn get_memory_attributes(file: &GmemFile, arg: UserPointer) -> Result {
        ioctl::get_memory_attributes(file, arg)
    }

    fn vcpu_ioctl(vcpu: &mut Vcpu<'_>, cmd: u32, arg: UserPointer) -> Result {
        map_memory::ioctl(vcpu, cmd, arg)
    }

    fn show_fdinfo(file: &GmemFile, out: &SeqFile) {
        fdinfo::show(file, out)
    }

    fn show_run(run: &Run, out: &SeqFile) {
        fdinfo::show_run(run, out)
    }

    fn fault<'a>(fault: &mut HostFault<'a>, stable: &Stable<'_>) -> Result<Served<'a>> {
        fault::fault(fault, stable)
    }

    fn migrate<'m>(
        platform: Option<Platform>,
        from: Source<'m>,
        to: Destination<'m>,
    ) -> Result<Moved<'m>> {
        platform::migrate(platform, from, to)
    }

    fn reclaim(frame: &Frame<'_>) {
        platform::reclaim(frame)
    }
}
