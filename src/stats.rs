// SPDX-License-Identifier: GPL-2.0

//! What conversions add to the statistics of their VM.

use crate::outcome::{
    Failure,
    Outcome, //
};
use gmem_policy::request::Request;
use gmem_sys::{
    fs::inode::PAGE,
    kvm::vm::Vm, //
};
use gmem_types::visibility::Visibility;
use kernel::{
    prelude::*,
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// When a file was locked.
pub(crate) struct Held(Instant<Monotonic>);

impl Held {
    /// Starts now.
    #[inline]
    pub(crate) fn since_now() -> Self {
        Self(Instant::now())
    }
}

/// Counts a request that was granted or refused. The file is still locked.
pub(crate) fn count<T>(
    vm: &Vm,
    request: &Request,
    result: &Result<T, Failure>,
    outcome: &Outcome,
    Held(begin): &Held,
) {
    match result {
        Ok(_) => vm.count_conversion(
            request.to() == Visibility::Private,
            request.content().flags(),
            outcome.converted,
            outcome.zeroed.saturating_mul(PAGE.bytes()),
        ),
        Err(Failure { error, .. }) if *error == EAGAIN => vm.count_busy(),
        Err(Failure { error, .. }) if *error == EOPNOTSUPP => vm.count_unsupported(),
        Err(_) => {}
    }
    // CAST: A clock that does not go back.
    vm.note_locked(begin.elapsed().as_nanos() as u64);
}
