// SPDX-License-Identifier: GPL-2.0

//! How a request ended: what it has done, or why it failed and where.

use gmem_policy::contract::Refusal;
use gmem_sys::fs::address_space::Refused;
use gmem_types::range::PageIndex;
use kernel::prelude::*;

/// Why a request failed, and at which page if it is about one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) at: Option<PageIndex>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, at: None }
    }
}

impl From<Refused> for Failure {
    fn from(Refused { error, at }: Refused) -> Self {
        Self {
            error,
            // An interrupted request is about no page.
            at: (error != EINTR).then_some(at),
        }
    }
}

/// The errno of a refusal.
pub(crate) fn errno(refusal: Refusal) -> Error {
    match refusal {
        Refusal::NotSupported => EOPNOTSUPP,
        Refusal::NotShared => EPERM,
    }
}

/// What a request has done, in pages.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    /// Pages that have changed between private and shared.
    pub(crate) converted: u64,
    /// The number of runs that they form.
    pub(crate) runs: u64,
    /// Pages that were made zero.
    pub(crate) zeroed: u64,
    /// Pages that were scrambled.
    pub(crate) scrambled: u64,
}

impl Outcome {
    /// The outcome of a request that converts `converted` pages in `runs` runs.
    pub(crate) fn of((converted, runs): (u64, u64)) -> Self {
        Self {
            converted,
            runs,
            ..Self::default()
        }
    }
}
