// SPDX-License-Identifier: GPL-2.0

//! vCPUs of x86.

use super::{
    address,
    Event,
    PAGE,
    TABLES, //
};
use crate::{
    contract::Platform,
    guest, //
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

/// There is none: the guest has no paging, or tables that say which kind of memory it means.
pub fn page_table() -> [u8; 0] {
    []
}

/// The bit of an address by which a guest says that it means shared memory.
const SHARED: u64 = 1 << 39;
/// Present, writable, for everybody.
const ENTRY: u64 = 7;
/// Entries of a page table, and pages that one of the last level maps.
const ENTRIES: usize = 512;

/// Page tables at `tables` that map the pages from `base` on to themselves, each as private or as
/// shared memory. The tables are shared: three above those of the last level, of which there are two.
pub fn page_tables(tables: u64, base: u64, private: &[bool]) -> Vec<u8> {
    let mut entries = vec![0; 5 * ENTRIES];
    let table = |number: u64| (tables + number * PAGE) | SHARED | ENTRY;
    entries[0] = table(1);
    entries[ENTRIES] = table(2);
    entries[2 * ENTRIES] = table(3);
    entries[2 * ENTRIES + 1] = table(4);
    for (page, &private) in (base / PAGE..).zip(private) {
        let kind = if private { 0 } else { SHARED };
        entries[3 * ENTRIES + page as usize] = (page * PAGE) | kind | ENTRY;
    }
    entries.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// A vCPU in 32-bit protected mode with flat segments; if the guest says by each address which kind
/// of memory it means, in the compatibility mode of 64 bits, where page tables can say so.
pub fn make_vcpu(
    kvm: &Kvm,
    vm: &VmFd,
    platform: &Platform,
    entry: u64,
    stack: u64,
) -> Result<VcpuFd, Error> {
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
        sregs.cr3 = address(TABLES) | SHARED;
        sregs.cr4 |= 1 << 5;
        sregs.efer |= 1 << 8 | 1 << 10;
    }
    vcpu.set_sregs(&sregs)?;

    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rsp: stack,
        rflags: 2,
        ..Default::default()
    })?;
    Ok(vcpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_say_which_kind_each_page_is() {
        let tables = page_tables(0x106000, 0x1ff000, &[true, false, true]);
        let entry = |i: usize| u64::from_le_bytes(tables[8 * i..8 * i + 8].try_into().unwrap());
        assert_eq!(tables.len(), 5 * PAGE as usize);
        assert_eq!(entry(0), 0x80_0010_7007);
        assert_eq!(entry(3 * ENTRIES + 0x1fe), 0);
        assert_eq!(entry(3 * ENTRIES + 0x1ff), 0x1ff007);
        // The next table follows.
        assert_eq!(entry(4 * ENTRIES), 0x80_0020_0007);
        assert_eq!(entry(4 * ENTRIES + 1), 0x201007);
    }
}
