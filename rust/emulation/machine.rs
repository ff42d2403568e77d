// SPDX-License-Identifier: GPL-2.0

//! Simulated SEV-SNP hardware (`CONFIG_KVM_SNP_SIMULATION`): its RMP is the model's table, and
//! tests query it and inject failures by the ioctl of the models. KVM's own code for SNP runs the
//! VMs, as on hardware.
//!
//! C header: [`arch/x86/include/asm/snp_sim.h`](srctree/arch/x86/include/asm/snp_sim.h)

use super::{
    find_page,
    make_page,
    snp::{
        self,
        table, //
    },
    uapi,
    Operation, //
};
use crate::{
    bindings,
    ioctl::UserPointer,
    kvm::vm::{
        Pfn,
        Vm, //
    }, //
};
use gmem_policy::emulation::rmp::{
    Code,
    Entry,
    Size, //
};
use kernel::{
    error::to_result,
    prelude::*, //
};

/// The ASID of an SNP guest of the simulated hardware; [`None`] for other VMs.
pub(super) fn asid(vm: &Vm) -> Option<u32> {
    // SAFETY: The VM is valid, and no lock of it is held.
    let asid = unsafe { bindings::gmem_vm_simulated_asid(vm.as_raw()) };
    (asid != 0).then_some(asid)
}

/// The ioctl of the VM with `asid`.
pub(super) fn ioctl(vm: &Vm, asid: u32, arg: UserPointer) -> Result {
    let mut operation = Operation::from_words(arg.read()?);
    let _slots = vm.lock_slots();

    operation.no_range()?;
    match operation.op {
        bindings::KVM_GMEM_EMULATE_OP_QUERY => {
            let (state, gfn, owner) = snp::query(find_page(vm, operation.gfn()?)?);
            let owner = owner.unwrap_or(asid);
            operation.value = [state.into(), gfn, owner.into(), table::assigned()];
        }
        bindings::KVM_GMEM_EMULATE_OP_INJECT => {
            let fault = uapi::rmp_fault(operation.value)?;
            snp::inject(make_page(vm, operation.gfn()?)?, fault)?;
        }
        bindings::KVM_GMEM_EMULATE_OP_COMMAND => {
            let [command, status, times, 0] = operation.value else {
                return Err(EINVAL);
            };
            let (command, status) = (command.try_into()?, u16::try_from(status)?);
            if operation.gpa != 0 || status == 0 {
                return Err(EINVAL);
            }
            // SAFETY: Whatever the numbers are.
            to_result(unsafe { bindings::snp_sim_fail_command(command, status.into(), times) })?;
        }
        _ => return Err(EINVAL),
    }
    arg.write(&operation.to_words())
}

/// An entry from the numbers of the C side.
fn entry(gpa: u64, asid: u32, flags: u32) -> Entry {
    let entry = Entry {
        assigned: flags & bindings::GMEM_SIM_ASSIGNED != 0,
        immutable: flags & bindings::GMEM_SIM_IMMUTABLE != 0,
        gpa,
        asid,
        ..Entry::HYPERVISOR
    };
    match flags & bindings::GMEM_SIM_LARGE {
        0 => entry,
        _ => entry.large(),
    }
}

/// The numbers of an entry's states.
fn flags(entry: Entry) -> u32 {
    let flag = |set, flag| if set { flag } else { 0 };
    flag(entry.assigned, bindings::GMEM_SIM_ASSIGNED)
        | flag(entry.validated, bindings::GMEM_SIM_VALIDATED)
        | flag(entry.immutable, bindings::GMEM_SIM_IMMUTABLE)
        | flag(entry.size == Size::Large, bindings::GMEM_SIM_LARGE)
}

/// The return code of an instruction.
fn code(done: Result<(), Code>) -> c_int {
    // CAST: The numbers of hardware.
    done.err().map_or(0, |code| code as c_int)
}

/// The C functions that the simulated hardware calls.
#[allow(missing_docs, clippy::missing_safety_doc)]
mod entry_points {
    use super::*;

    #[no_mangle]
    unsafe extern "C" fn kvm_gmem_rmp_init() {
        // SAFETY: Called once, when the machine starts, before anything asks for the table.
        unsafe { snp::init() }
    }

    #[no_mangle]
    unsafe extern "C" fn kvm_gmem_rmp_read(
        pfn: u64,
        gpa: *mut u64,
        asid: *mut u32,
        states: *mut u32,
    ) {
        let entry = snp::lookup(Pfn::new(pfn));
        // SAFETY: The caller has room for the answers.
        unsafe {
            *gpa = entry.gpa;
            *asid = entry.asid;
            *states = flags(entry);
        }
    }

    /// Waits for the memory, as no instruction fails for lack of it.
    #[no_mangle]
    extern "C" fn kvm_gmem_rmp_reserve(pfn: u64, pages: u64) {
        while snp::reserve(pfn, pages).is_err() {}
    }

    #[no_mangle]
    extern "C" fn kvm_gmem_rmp_update(pfn: u64, gpa: u64, asid: u32, states: u32) -> c_int {
        code(table::update(pfn, entry(gpa, asid, states)))
    }

    #[no_mangle]
    extern "C" fn kvm_gmem_rmp_smash(pfn: u64) -> c_int {
        code(table::smash(pfn))
    }

    #[no_mangle]
    extern "C" fn kvm_gmem_rmp_launch(pfn: u64) -> c_int {
        code(table::launch(pfn))
    }

    #[no_mangle]
    extern "C" fn kvm_gmem_rmp_move(from: u64, to: u64) -> c_int {
        code(table::relocate(from, to))
    }

    #[no_mangle]
    extern "C" fn kvm_gmem_rmp_reclaim(pfn: u64) -> c_int {
        code(table::reclaim(pfn))
    }
}
