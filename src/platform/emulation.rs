// SPDX-License-Identifier: GPL-2.0

//! Software models of the state that confidential platforms keep for each page of memory.
//!
//! Pure state machines: they know nothing of locks, memory or kernel types, and are compiled into
//! the policy crate, so that the same source runs under cargo and in the kernel.
//! `rust/emulation.rs` attaches them to real VMs and real pages.

#[cfg(any(test, CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST))]
#[path = "emulation/checks.rs"]
pub mod checks;
#[path = "emulation/rmp.rs"]
pub mod rmp;
#[path = "emulation/sept.rs"]
pub mod sept;

/// Failures of one kind of operation on one page, injected by a test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault<O, C> {
    what: Option<(O, C)>,
    left: u64,
}

impl<O: Copy + PartialEq, C: Copy> Fault<O, C> {
    /// No failure.
    pub const fn none() -> Self {
        Self {
            what: None,
            left: 0,
        }
    }

    /// `operation` fails with `code` the next `times` times.
    pub const fn new(operation: O, code: C, times: u64) -> Self {
        Self {
            what: Some((operation, code)),
            left: times,
        }
    }

    /// Whether the next attempt of `operation` fails.
    pub fn is_due(&self, operation: O) -> bool {
        matches!(self.what, Some((what, _)) if what == operation && self.left > 0)
    }

    /// To be called once for each attempt of `operation`.
    ///
    /// # Errors
    ///
    /// The injected code.
    pub fn strike(&mut self, operation: O) -> Result<(), C> {
        match self.what {
            Some((what, code)) if what == operation && self.left > 0 => {
                self.left -= 1;
                Err(code)
            }
            _ => Ok(()),
        }
    }
}
