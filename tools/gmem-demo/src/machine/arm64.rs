// SPDX-License-Identifier: GPL-2.0

//! vCPUs of arm64: EL1, with the first GiB mapped one to one, so that guest and host use the memory
//! with the same attributes.

use super::{
    address,
    Event,
    CODE,
    PAGE,
    STACK_TOP, //
};
use crate::{
    contract::Platform,
    guest, //
};
use gmem::emulation::Key;
use kvm_bindings::kvm_vcpu_init;
use kvm_ioctls::{
    Error,
    Kvm,
    VcpuExit,
    VcpuFd,
    VmFd, //
};
use std::{
    io,
    ops::Range, //
};

/// `KVM_ARM_TARGET_GENERIC_V8`.
const GENERIC: u32 = 5;
/// `KVM_ARM_VCPU_PSCI_0_2`, the bit.
const PSCI_0_2: u32 = 1 << 2;

/// The program counter, `KVM_REG_ARM_CORE_REG(regs.pc)`.
const PC: u64 = 0x6030_0000_0010_0040;

/// `ARM64_SYS_REG` with op1 0, as all of these have.
const fn system_register(crn: u64, crm: u64, op2: u64) -> u64 {
    0x6030_0000_0013_0000 | 3 << 14 | crn << 7 | crm << 3 | op2
}

const SCTLR_EL1: u64 = system_register(1, 0, 0);
const TTBR0_EL1: u64 = system_register(2, 0, 0);
const TCR_EL1: u64 = system_register(2, 0, 2);
const MAIR_EL1: u64 = system_register(10, 2, 0);

/// Stage 1 on, data and instructions cached.
const SCTLR: u64 = 1 << 0 | 1 << 2 | 1 << 12;
/// 39 bits of address in pages of 4K, the tables in cached and shareable memory, no second half,
/// 40 bits of physical address.
const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32;
/// Attributes 0: normal memory, write-back.
const MAIR: u64 = 0xff;

/// Where the only table is: the guest needs no stack.
const TABLE: u64 = STACK_TOP - PAGE;

/// A launch that is the guest's first step.
pub struct Launch;

impl Launch {
    /// Nothing begins.
    pub fn begin(_vm: &VmFd, _platform: &Platform) -> Result<Self, String> {
        Ok(Self)
    }

    /// Nothing is encrypted.
    pub fn key(&self, _vm: &VmFd, _address: u64) -> io::Result<Key> {
        Ok(Key::MODEL)
    }

    /// The guest takes its pages itself.
    pub fn add(&self, _vm: &VmFd, _range: Range<u64>) -> Result<(), String> {
        Ok(())
    }

    /// Nothing ends.
    pub fn finish(&self, _vm: &VmFd) -> Result<(), String> {
        Ok(())
    }
}

/// The launch gives it no pages.
pub fn guest_runs_privately(_platform: &Platform) -> bool {
    false
}

/// Addresses do not select a kind of memory here.
pub fn private(address: u64) -> u64 {
    address
}

/// The only table that the guest needs, and where it is in the file.
pub fn page_tables(_platform: &Platform) -> (u64, Vec<u8>) {
    // A block of 1 GiB at 0: valid, inner shareable, accessed, attributes 0.
    let block: u64 = 1 | 3 << 8 | 1 << 10;
    (TABLE, block.to_le_bytes().to_vec())
}

/// Runs the vCPU until it makes a request.
pub fn next_event(vcpu: &mut VcpuFd) -> Result<Event<'_>, Error> {
    Ok(match vcpu.run()? {
        VcpuExit::MmioRead(guest::MMIO, data) => Event::Ask(data),
        VcpuExit::MmioWrite(guest::MMIO, data) => Event::Answer(data),
        VcpuExit::Hypercall(call) => Event::Hypercall(call.nr, call.args, call.ret),
        VcpuExit::MemoryFault { flags, gpa, size } => Event::Fault(flags, gpa, size),
        other => Event::Lost(format!("{other:?}")),
    })
}

/// A vCPU at the program's first instruction.
pub fn make_vcpu(_kvm: &Kvm, vm: &VmFd, _platform: &Platform) -> Result<VcpuFd, Error> {
    let vcpu = vm.create_vcpu(0)?;
    // Protected VMs are not asked for their preferred target.
    let mut init = kvm_vcpu_init {
        target: GENERIC,
        ..Default::default()
    };
    init.features[0] = PSCI_0_2;
    vcpu.vcpu_init(&init)?;

    let mut sctlr = [0; 8];
    vcpu.get_one_reg(SCTLR_EL1, &mut sctlr)?;
    let sctlr = u64::from_le_bytes(sctlr) | SCTLR;
    for (register, value) in [
        (MAIR_EL1, MAIR),
        (TCR_EL1, TCR),
        (TTBR0_EL1, address(TABLE)),
        (SCTLR_EL1, sctlr),
        (PC, address(CODE)),
    ] {
        vcpu.set_one_reg(register, &value.to_le_bytes())?;
    }
    Ok(vcpu)
}
