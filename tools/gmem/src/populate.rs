// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Populating a VM's page tables ahead of its faults.

use crate::{
    abi::{
        MemoryMapping,
        KVM_MAP_MEMORY, //
    },
    kvm, //
};
use std::{
    fmt, io,
    ops::Range,
    os::fd::{
        AsRawFd,
        OwnedFd, //
    },
};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

/// Why guest memory could not be mapped, and how far it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PopulateError {
    /// The kernel's error number. `EINVAL` also for a range that ends before it begins.
    pub errno: i32,
    /// What is not mapped yet, in bytes of guest physical memory. What was asked for before it is.
    pub left: Range<u64>,
}

impl fmt::Display for PopulateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = io::Error::from_raw_os_error(self.errno);
        let Range { start, end } = self.left;
        write!(
            f,
            "mapping guest memory from {start:#x} to {end:#x}: {error}"
        )
    }
}

impl std::error::Error for PopulateError {}

/// Maps guest memory ahead of faults, by `KVM_MAP_MEMORY` on a vCPU (`guest_memfd/api.rst`, section 6).
///
/// It has a descriptor of its own, so that it can be used while another thread handles an exit of
/// the vCPU. The mappings are the VM's: any vCPU will do that is not running. A call waits while
/// the vCPU runs. [`Capabilities::maps_memory`](crate::Capabilities::maps_memory) says whether it
/// works.
#[derive(Debug)]
pub struct Populator {
    vcpu: OwnedFd,
}

impl Populator {
    /// Takes the descriptor of a vCPU.
    ///
    /// # Errors
    ///
    /// `EMFILE` if the process has too many descriptors. A descriptor that is not a vCPU is found
    /// out when it is used: `ENOTTY`.
    pub fn new(vcpu: &impl AsRawFd) -> io::Result<Self> {
        let vcpu = kvm::duplicate(vcpu)?;
        Ok(Self { vcpu })
    }

    /// Makes one call: maps as much as possible from the front of `range` (guest physical addresses
    /// in bytes, whole pages), and returns the rest. Call it again for the rest. A call that cannot
    /// map anything returns the error.
    ///
    /// # Errors
    ///
    /// Those of the ioctl, with what is left.
    pub fn populate_once(&self, range: Range<u64>) -> Result<Range<u64>, PopulateError> {
        let failure = |errno, left| Err(PopulateError { errno, left });
        let Some(size) = range.end.checked_sub(range.start) else {
            return failure(libc::EINVAL, range);
        };
        let mut request = MemoryMapping {
            base_address: range.start,
            size,
            flags: 0,
        };
        // SAFETY: The kernel writes the struct only, whose size is in the number.
        let result = unsafe { ioctl_with_mut_ref(&self.vcpu, KVM_MAP_MEMORY, &mut request) };
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        // The end stays where it is.
        let left = range.end.saturating_sub(request.size)..range.end;
        match result {
            0 => Ok(left),
            _ => failure(errno, left),
        }
    }

    /// Maps all of `range`. A call that was interrupted, or that met another change of the page, is
    /// repeated, at most `attempts` times in a row without progress.
    ///
    /// # Errors
    ///
    /// Those of [`populate_once`](Self::populate_once).
    pub fn populate(&self, range: Range<u64>, attempts: u32) -> Result<(), PopulateError> {
        populate_with(range, attempts, |left| self.populate_once(left))
    }
}

fn populate_with(
    range: Range<u64>,
    attempts: u32,
    mut once: impl FnMut(Range<u64>) -> Result<Range<u64>, PopulateError>,
) -> Result<(), PopulateError> {
    let mut left = range;
    let mut failures = 0;
    loop {
        match once(left.clone()) {
            Ok(rest) if rest.is_empty() => return Ok(()),
            Ok(rest) => (left, failures) = (rest, 0),
            Err(error) => {
                failures += 1;
                let passes = matches!(error.errno, libc::EAGAIN | libc::EINTR);
                if !passes || failures >= attempts {
                    return Err(error);
                }
                std::thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(errno: i32, left: Range<u64>) -> PopulateError {
        PopulateError { errno, left }
    }

    #[test]
    fn goes_on_with_what_is_left() {
        let mut asked = Vec::new();
        let result = populate_with(0x1000..0x4000, 1, |left| {
            asked.push(left.clone());
            Ok(left.start + 0x1000..left.end)
        });
        assert_eq!(result, Ok(()));
        assert_eq!(asked, [0x1000..0x4000, 0x2000..0x4000, 0x3000..0x4000]);
    }

    #[test]
    fn attempts_count_without_progress_only() {
        let mut calls = 0;
        let result = populate_with(0..0x4000, 2, |left| {
            calls += 1;
            match calls % 2 {
                1 => Err(error(libc::EAGAIN, left)),
                _ => Ok(left.start + 0x1000..left.end),
            }
        });
        assert_eq!(result, Ok(()));
        assert_eq!(calls, 8);

        let stuck = |left: Range<u64>| Err(error(libc::EINTR, left));
        assert_eq!(
            populate_with(0..0x1000, 3, stuck),
            Err(error(libc::EINTR, 0..0x1000))
        );
    }

    #[test]
    fn other_errors_end_it_and_say_how_far_it_went() {
        let result = populate_with(0..0x4000, 100, |left| match left.start {
            0 => Ok(0x3000..0x4000),
            _ => Err(error(libc::ENOENT, left)),
        });
        assert_eq!(result, Err(error(libc::ENOENT, 0x3000..0x4000)));
        assert_eq!(
            error(libc::ENOENT, 0x3000..0x4000).to_string(),
            "mapping guest memory from 0x3000 to 0x4000: No such file or directory (os error 2)"
        );
    }
}
