// SPDX-License-Identifier: GPL-2.0

//! Launches, page tables and vCPUs of x86.

mod snp;

use super::{
    address,
    Event,
    CODE,
    FREE,
    GHCB,
    PAGE,
    SLOT,
    STACK_TOP,
    TABLES, //
};
use crate::{
    contract::{
        Ground,
        Platform, //
    },
    guest, //
};
use gmem::emulation::{
    self,
    Emulation,
    Key,
    Page, //
};
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
use std::{
    io,
    ops::Range, //
};

/// Runs the vCPU until it makes a request.
pub fn next_event(vcpu: &mut VcpuFd) -> Result<Event<'_>, Error> {
    Ok(match vcpu.run()? {
        VcpuExit::IoIn(guest::PORT, data) => Event::Ask(data),
        VcpuExit::IoOut(guest::PORT, data) => Event::Answer(data),
        VcpuExit::Hypercall(call) => Event::Hypercall(call.nr, call.args, call.ret),
        VcpuExit::MemoryFault { flags, gpa, size } => Event::Fault(flags, gpa, size),
        other => Event::Lost(format!("{other:?}")),
    })
}

/// How a VM is launched.
pub enum Launch {
    /// By its guest's first step.
    FirstStep,
    /// By a software model.
    Model(Emulation),
    /// By SNP's firmware.
    Snp(snp::Firmware),
}

impl Launch {
    /// Begins the launch of a VM without memory.
    pub fn begin(vm: &VmFd, platform: &Platform) -> Result<Self, String> {
        match platform.ground {
            Ground::Real => Ok(Self::FirstStep),
            Ground::TdxMirrored => Emulation::enable(vm, emulation::Platform::MirroredTdx)
                .map(Self::Model)
                .map_err(|error| error.to_string()),
            Ground::SnpSimulated => snp::Firmware::start(vm).map(Self::Snp),
        }
    }

    /// The VM's key, if it encrypts. It has memory at `address`.
    pub fn key(&self, vm: &VmFd, address: u64) -> io::Result<Key> {
        match self {
            Self::FirstStep | Self::Model(_) => Ok(Key::MODEL),
            Self::Snp(_) => Key::of_simulated_snp(vm, address),
        }
    }

    /// Gives private pages to the guest, with their contents.
    pub fn add(&self, vm: &VmFd, range: Range<u64>) -> Result<(), String> {
        match self {
            Self::FirstStep => Ok(()),
            Self::Model(emulation) => emulation
                .add_in_place(Page::Normal, range)
                .map_err(|(error, rest)| format!("{error}, {rest:x?} left")),
            Self::Snp(firmware) => firmware.update(vm, range),
        }
    }

    /// Ends it. From here on the guest runs.
    pub fn finish(&self, vm: &VmFd) -> Result<(), String> {
        match self {
            Self::FirstStep => Ok(()),
            Self::Model(emulation) => emulation.finish_launch().map_err(|error| error.to_string()),
            Self::Snp(firmware) => firmware.finish(vm),
        }
    }
}

/// Whether the launch gives the guest its own pages. A guest of SNP has its code and page tables
/// in private memory, whatever its addresses select.
pub fn guest_runs_privately(platform: &Platform) -> bool {
    platform.ground == Ground::SnpSimulated
}

/// The bit of an address that selects the kind of memory: SNP's C-bit, which is
/// set for private memory, and TDX's bit that is set for shared memory.
const KIND: u64 = 1 << 39;

/// The bit for one kind.
fn kind(platform: &Platform, private: bool) -> u64 {
    let set = match platform.ground {
        Ground::SnpSimulated => private,
        Ground::TdxMirrored => !private,
        Ground::Real => false,
    };
    if set {
        KIND
    } else {
        0
    }
}

/// The distance from the guest's shared addresses to its private ones.
const PRIVATE: u64 = 256 << 20;

/// Where the guest has `address` as private memory.
pub fn private(address: u64) -> u64 {
    address + PRIVATE
}

/// The address of the guest's own pages.
fn own(platform: &Platform, offset: u64) -> u64 {
    match guest_runs_privately(platform) {
        true => private(address(offset)),
        false => address(offset),
    }
}

/// Present, writable, for user and kernel; a page of 2 MiB.
const ENTRY: u64 = 7;
const LARGE: u64 = 1 << 7;

/// Page tables of three levels, and their place in the file. They map the guest's memory twice,
/// one to one as shared and again as private. A guest without kinds has no paging.
pub fn page_tables(platform: &Platform) -> (u64, Vec<u8>) {
    const LARGE_PAGE: u64 = 2 << 20;
    const MEMORY: Range<u64> = address(SLOT.start)..address(SLOT.end);

    if !platform.guest_means_kinds() {
        return (TABLES.start, Vec::new());
    }
    let mut tables = vec![0; (TABLES.end - TABLES.start) as usize];
    let mut set = |table: u64, index: u64, entry: u64| {
        let at = (table * PAGE + index * 8) as usize;
        tables[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    };
    for table in 0..2 {
        let next = address(TABLES.start) + (table + 1) * PAGE;
        let own = kind(platform, guest_runs_privately(platform));
        set(table, 0, next | own | ENTRY);
    }
    for page in MEMORY.start / LARGE_PAGE..MEMORY.end.div_ceil(LARGE_PAGE) {
        let entry = (page * LARGE_PAGE) | LARGE | ENTRY;
        set(2, page, entry | kind(platform, false));
        set(2, page + PRIVATE / LARGE_PAGE, entry | kind(platform, true));
    }
    (TABLES.start, tables)
}

// The programs know it.
const _: () = assert!(address(GHCB) == guest::GHCB as u64);
const _: () = assert!(GHCB < FREE);

/// A vCPU at the program's first instruction, in 32-bit protected mode with flat segments. If
/// addresses select the kind of memory, in the compatibility mode of 64 bits, whose page tables have
/// that bit.
pub fn make_vcpu(kvm: &Kvm, vm: &VmFd, platform: &Platform) -> Result<VcpuFd, Error> {
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
    if platform.guest_means_kinds() {
        // Paging, of 64 bits.
        sregs.cr0 |= 1 << 31;
        sregs.cr3 = address(TABLES.start) | kind(platform, guest_runs_privately(platform));
        sregs.cr4 |= 1 << 5;
        sregs.efer |= 1 << 8 | 1 << 10;
    }
    vcpu.set_sregs(&sregs)?;

    vcpu.set_regs(&kvm_regs {
        rip: own(platform, CODE),
        rsp: own(platform, STACK_TOP),
        rflags: 2,
        ..Default::default()
    })?;
    Ok(vcpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::SIMULATED;

    #[test]
    fn tables_have_all_memory_twice() {
        let [snp, tdx] = &SIMULATED;
        for (platform, shared, private) in [(snp, 0, KIND), (tdx, KIND, 0)] {
            let (at, tables) = page_tables(platform);
            let entry = |table: usize, i: usize| {
                let at = table * PAGE as usize + 8 * i;
                u64::from_le_bytes(tables[at..at + 8].try_into().unwrap())
            };
            assert_eq!(at, TABLES.start);
            // SNP's tables are private, TDX's are shared here.
            assert_eq!(entry(0, 0), KIND | 0x10_3007);
            assert_eq!(entry(1, 0), KIND | 0x10_4007);
            // From 1 MiB to 3 MiB.
            assert_eq!(entry(2, 0), shared | 0x87);
            assert_eq!(entry(2, 1), shared | 0x20_0087);
            assert_eq!(entry(2, 2), 0);
            assert_eq!(entry(2, 128), private | 0x87);
            assert_eq!(entry(2, 129), private | 0x20_0087);
            assert_eq!(entry(2, 130), 0);
        }
        assert_eq!(private(0x10_0000), 128 << 21 | 0x10_0000);
    }
}
