// SPDX-License-Identifier: GPL-2.0

//! vCPUs of x86.

use super::Event;
use crate::guest;
use kvm_bindings::{
    kvm_regs,
    kvm_segment,
    KVM_MAX_CPUID_ENTRIES, //
};
use kvm_ioctls::{
    Error,
    Kvm,
    VcpuExit,
    VcpuFd,
    VmFd, //
};

/// Runs the vCPU until something is wanted.
pub fn next_event(vcpu: &mut VcpuFd) -> Result<Event<'_>, Error> {
    Ok(match vcpu.run()? {
        VcpuExit::IoIn(guest::PORT, data) => Event::Ask(data),
        VcpuExit::IoOut(guest::PORT, data) => Event::Answer(data),
        VcpuExit::Hypercall(call) => Event::Hypercall(call.nr, call.args, call.ret),
        VcpuExit::MemoryFault { flags, gpa, size } => Event::Fault(flags, gpa, size),
        other => Event::Lost(format!("{other:?}")),
    })
}

/// There is none: the guest has no paging.
pub fn page_table() -> [u8; 0] {
    []
}

/// A vCPU in 32-bit protected mode with flat segments.
pub fn make_vcpu(kvm: &Kvm, vm: &VmFd, entry: u64, stack: u64) -> Result<VcpuFd, Error> {
    let vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;

    let segment = |selector, type_| kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let data = segment(0x10, 3);
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = segment(0x8, 11);
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    // Protection enabled, extension type; no paging, and caches on.
    sregs.cr0 = 0x11;
    vcpu.set_sregs(&sregs)?;

    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rsp: stack,
        rflags: 2,
        ..Default::default()
    })?;
    Ok(vcpu)
}
