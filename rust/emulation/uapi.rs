// SPDX-License-Identifier: GPL-2.0

//! Requests of user space to a model, parsed from the numbers of `struct kvm_gmem_emulate`.

use super::snp::PageType;
use crate::{
    bindings::*,
    emulation::Model, //
};
use core::mem::offset_of;
use gmem_policy::emulation::{
    rmp,
    sept,
    Fault, //
};
use kernel::{
    error::code::EINVAL, // Not that of the bindings.
    prelude::*,          //
};

/// `KVM_GMEM_EMULATE_OP_*`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    LaunchUpdate,
    LaunchFinish,
    Inject,
    Query,
    Hold,
    Access,
}

impl Op {
    pub(super) fn new(op: u32) -> Result<Self> {
        match op {
            KVM_GMEM_EMULATE_OP_LAUNCH_UPDATE => Ok(Self::LaunchUpdate),
            KVM_GMEM_EMULATE_OP_LAUNCH_FINISH => Ok(Self::LaunchFinish),
            KVM_GMEM_EMULATE_OP_INJECT => Ok(Self::Inject),
            KVM_GMEM_EMULATE_OP_QUERY => Ok(Self::Query),
            KVM_GMEM_EMULATE_OP_HOLD => Ok(Self::Hold),
            KVM_GMEM_EMULATE_OP_ACCESS => Ok(Self::Access),
            _ => Err(EINVAL),
        }
    }
}

/// `KVM_GMEM_EMULATE_PAGE_*`; pages of TDX have no type.
pub(super) fn page_type(model: Model, number: u32) -> Result<PageType> {
    match (model, number) {
        (Model::Snp, KVM_GMEM_EMULATE_PAGE_NORMAL) | (Model::Tdx, 0) => Ok(PageType::Normal),
        (Model::Snp, KVM_GMEM_EMULATE_PAGE_ZERO) => Ok(PageType::Zero),
        (Model::Snp, KVM_GMEM_EMULATE_PAGE_CPUID) => Ok(PageType::Cpuid),
        _ => Err(EINVAL),
    }
}

/// INJECT's `KVM_GMEM_EMULATE_FAIL_*`, `KVM_GMEM_EMULATE_ERROR_*` and how often.
fn injection(value: [u64; 4]) -> Result<(u32, u32, u64)> {
    let [what, code, times, 0] = value else {
        return Err(EINVAL);
    };
    Ok((what.try_into()?, code.try_into()?, times))
}

/// A failure of the RMP.
pub(super) fn rmp_fault(value: [u64; 4]) -> Result<Fault<rmp::Operation, rmp::Code>> {
    let (what, code, times) = injection(value)?;
    let what = match what {
        KVM_GMEM_EMULATE_FAIL_ASSIGN => rmp::Operation::Assign,
        KVM_GMEM_EMULATE_FAIL_UNASSIGN => rmp::Operation::Unassign,
        KVM_GMEM_EMULATE_FAIL_SMASH => rmp::Operation::Smash,
        _ => return Err(EINVAL),
    };
    let code = match code {
        KVM_GMEM_EMULATE_ERROR_INPUT => rmp::Code::Input,
        KVM_GMEM_EMULATE_ERROR_PERMISSION => rmp::Code::Permission,
        KVM_GMEM_EMULATE_ERROR_IN_USE => rmp::Code::InUse,
        KVM_GMEM_EMULATE_ERROR_OVERLAP => rmp::Code::Overlap,
        _ => return Err(EINVAL),
    };
    Ok(Fault::new(what, code, times))
}

/// A failure of the S-EPT.
pub(super) fn sept_fault(value: [u64; 4]) -> Result<Fault<sept::Operation, sept::Failure>> {
    let (what, code, times) = injection(value)?;
    let what = match what {
        KVM_GMEM_EMULATE_FAIL_ADD => sept::Operation::Add,
        KVM_GMEM_EMULATE_FAIL_BLOCK => sept::Operation::Block,
        KVM_GMEM_EMULATE_FAIL_TRACK => sept::Operation::Track,
        KVM_GMEM_EMULATE_FAIL_REMOVE => sept::Operation::Remove,
        KVM_GMEM_EMULATE_FAIL_FLUSH => sept::Operation::Flush,
        KVM_GMEM_EMULATE_FAIL_RELOCATE => sept::Operation::Relocate,
        KVM_GMEM_EMULATE_FAIL_UNBLOCK => sept::Operation::Unblock,
        _ => return Err(EINVAL),
    };
    let code = match code {
        KVM_GMEM_EMULATE_ERROR_INPUT => sept::Failure::Input,
        KVM_GMEM_EMULATE_ERROR_BUSY => sept::Failure::Busy,
        _ => return Err(EINVAL),
    };
    Ok(Fault::new(what, code, times))
}

/// QUERY's `KVM_GMEM_EMULATE_STATE_*` of an RMP entry.
pub(super) fn rmp_state(entry: &rmp::Entry) -> u32 {
    let large = match entry.size {
        rmp::Size::Large => KVM_GMEM_EMULATE_STATE_LARGE,
        rmp::Size::Small => 0,
    };
    large
        | match entry {
            rmp::Entry {
                assigned: false, ..
            } => KVM_GMEM_EMULATE_STATE_NONE,
            rmp::Entry {
                immutable: true, ..
            } => KVM_GMEM_EMULATE_STATE_IMMUTABLE,
            rmp::Entry {
                validated: true, ..
            } => KVM_GMEM_EMULATE_STATE_VALIDATED,
            _ => KVM_GMEM_EMULATE_STATE_ASSIGNED,
        }
}

/// The same of an entry of the S-EPT, and of whether it was tracked since it is blocked.
pub(super) fn sept_state(entry: &sept::Entry, tracked: bool) -> u32 {
    match entry {
        sept::Entry::Absent => KVM_GMEM_EMULATE_STATE_NONE,
        sept::Entry::Present { .. } => KVM_GMEM_EMULATE_STATE_PRESENT,
        sept::Entry::Blocked { .. } if tracked => KVM_GMEM_EMULATE_STATE_TRACKED,
        sept::Entry::Blocked { .. } => KVM_GMEM_EMULATE_STATE_BLOCKED,
    }
}

/// ACCESS's `KVM_GMEM_EMULATE_ACCESS_*`: whether the guest uses private memory, unless the file
/// decides.
pub(super) fn access(value: [u64; 4]) -> Result<Option<bool>> {
    let [kind, 0, 0, 0] = value else {
        return Err(EINVAL);
    };
    match kind.try_into()? {
        KVM_GMEM_EMULATE_ACCESS_ANY => Ok(None),
        KVM_GMEM_EMULATE_ACCESS_SHARED => Ok(Some(false)),
        KVM_GMEM_EMULATE_ACCESS_PRIVATE => Ok(Some(true)),
        _ => Err(EINVAL),
    }
}

/// `KVM_GMEM_EMULATE_HOLD_*`.
pub(super) enum Place {
    Fault,
    Invalidation,
}

impl Place {
    pub(super) fn new(number: u64) -> Result<Self> {
        match number.try_into()? {
            KVM_GMEM_EMULATE_HOLD_FAULT => Ok(Self::Fault),
            KVM_GMEM_EMULATE_HOLD_INVALIDATION => Ok(Self::Invalidation),
            _ => Err(EINVAL),
        }
    }
}

// What `Operation::from_words()` reads.
const _: () = assert!(size_of::<kvm_gmem_emulate>() == size_of::<[u64; 8]>());
const _: () = assert!(offset_of!(kvm_gmem_emulate, op) == 0);
const _: () = assert!(offset_of!(kvm_gmem_emulate, type_) == 4);
const _: () = assert!(offset_of!(kvm_gmem_emulate, gpa) == 8);
const _: () = assert!(offset_of!(kvm_gmem_emulate, size) == 16);
const _: () = assert!(offset_of!(kvm_gmem_emulate, uaddr) == 24);
const _: () = assert!(offset_of!(kvm_gmem_emulate, value) == 32);
