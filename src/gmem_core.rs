// SPDX-License-Identifier: GPL-2.0

//! guest_memfd: the memory of KVM guests as a file, convertible between private and shared in
//! place.
//!
//! # Five rules
//!
//! 1. **One place is unsafe.** `unsafe`, bindings and `extern` are in `gmem_sys` (`rust/`) only.
//! 2. **Parse once, at the edge.** A raw struct becomes a typed request in one function; after that
//!    nobody sees a bare number.
//! 3. **Locks are arguments.** What needs a lock takes its guard. No user memory is touched while
//!    the invalidate lock is held, as `mmap_lock` is outer to it.
//! 4. **Fallible first, then one commit that cannot fail.** The point of no return is the first
//!    byte or translation destroyed. A platform that fails after it kills the VM.
//! 5. **Soundness does not depend on policy or vendor code.** A wrong answer of theirs may lose a
//!    guest's data or return an error, no more.
//!
//! Start reading at [`convert`].

#![forbid(unsafe_code)]

use gmem_sys::{
    export::{
        GuestMemfd,
        GuestPage,
        SlotFlags,
        Tables, //
    },
    fs::{
        address_space::BindingsGuard,
        file_ops::{
            Closing,
            GmemFile, //
        }, //
    },
    ioctl::UserPointer,
    kvm::{
        populate::Populate,
        vcpu::Vcpu,
        vm::{
            Gfn,
            Vm, //
        }, //
    },
    mm::{
        fault::{
            HostFault,
            Served, //
        },
        folio::Frame, //
    },
    LocalModule, //
};
use kernel::{
    prelude::*,
    seq_file::SeqFile, //
};

mod bind;
mod content;
mod convert;
mod fallocate;
mod fault;
mod fdinfo;
mod file;
mod get_pfn;
mod ioctl;
mod map_memory;
mod populate;
mod stats;
#[cfg(CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST)]
mod tests;
mod vendor;

use gmem_policy::{
    plan::Run,
    range::{
        PageIndex,
        PageRange, //
    }, //
};

/// What the kernel's print macros put before each line.
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
        vendor::capability(vm, cap)
    }

    fn supports_in_place(vm: &Vm) -> bool {
        vendor::platform(vm).is_some()
    }

    fn slot_flags(file: &GmemFile) -> SlotFlags {
        bind::slot_flags(file)
    }

    fn get_pfn(vm: &Vm, file: &GmemFile, gfn: Gfn, at: PageIndex) -> Result<GuestPage> {
        get_pfn::get_pfn(vm, file, gfn, at)
    }

    fn populate(populate: &Populate<'_>, gfn: Gfn, npages: u64) -> Result<u64> {
        populate::populate(populate, gfn, npages)
    }

    fn fallocate(file: &GmemFile, mode: i32, offset: u64, len: u64) -> Result {
        fallocate::fallocate(file, mode, offset, len)
    }

    fn ioctl(file: &GmemFile, cmd: u32, arg: UserPointer) -> Result {
        ioctl::ioctl(file, cmd, arg)
    }

    fn vcpu_ioctl(vcpu: &Vcpu, cmd: u32, arg: UserPointer) -> Result {
        map_memory::ioctl(vcpu, cmd, arg)
    }

    fn show_fdinfo(file: &GmemFile, out: &SeqFile) {
        fdinfo::show(file, out)
    }

    fn show_run(run: &Run, out: &SeqFile) {
        fdinfo::show_run(run, out)
    }

    fn fault(fault: HostFault<'_>) -> Result<Served> {
        fault::fault(fault)
    }

    fn release(closing: &Closing<'_>) {
        file::release(closing)
    }

    fn reclaim(frame: &Frame<'_>) {
        vendor::reclaim(frame)
    }

    fn memory_failure(bindings: &BindingsGuard<'_>, range: &PageRange) {
        fault::memory_failure(bindings, range)
    }
}
