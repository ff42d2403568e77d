// SPDX-License-Identifier: GPL-2.0

//! The guest's code: a loop that carries out the VMM's commands, and a payload that it can call.
//!
//! Both are in a file for each architecture, use absolute addresses from the VMM, and run at any
//! address. The loop reads four words, a command and its operands, and writes one word as the
//! answer:
//!
//! | command | operands | answer |
//! |---|---|---|
//! | [`READ`] | from, bytes, to | checksum of what was read; the bytes are copied to `to` |
//! | [`FILL`] | to, bytes, seed | last state of the pattern |
//! | [`CALL`] | address, argument | what the code there returned |
//! | [`MAP`] | address, pages, attributes | what the hypercall returned that the VMM gets as `KVM_HC_MAP_GPA_RANGE` |

use std::slice;

#[cfg(target_arch = "aarch64")]
#[path = "guest/arm64.rs"]
mod code;
#[cfg(target_arch = "x86_64")]
#[path = "guest/x86.rs"]
mod code;

pub use code::*;

/// Read a range: checksum it and copy it to where the host can compare it byte by byte.
pub const READ: u32 = 1;
/// Write a pattern.
pub const FILL: u32 = 2;
/// Call code.
pub const CALL: u32 = 3;
/// Ask the VMM to make a range private or shared.
pub const MAP: u32 = 4;

/// The attribute of that for private; 0 is shared.
pub const MAP_ENCRYPTED: u32 = 1 << 4;

/// FNV-1a, 32 bits.
const HASH_START: u32 = 0x811c_9dc5;
const HASH_FACTOR: u32 = 0x0100_0193;

/// A linear congruential generator whose upper byte is the pattern.
const PATTERN_FACTOR: u32 = 1_664_525;
const PATTERN_STEP: u32 = 1_013_904_223;

unsafe extern "C" {
    static gmem_payload_start: u8;
    static gmem_payload_runs: u8;
    static gmem_payload_text: u8;
    static gmem_payload_end: u8;
}

/// The bytes between two labels.
fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: Callers pass two labels of the read-only section above, in order.
    unsafe { slice::from_raw_parts(start, end.offset_from(start) as usize) }
}

/// The payload, never run.
pub fn payload() -> &'static [u8] {
    between(&raw const gmem_payload_start, &raw const gmem_payload_end)
}

/// The payload after some runs: it counts them.
pub fn payload_after(runs: u32) -> Vec<u8> {
    let at = between(&raw const gmem_payload_start, &raw const gmem_payload_runs).len();
    let mut payload = payload().to_vec();
    payload[at..at + 4].copy_from_slice(&runs.to_le_bytes());
    payload
}

/// What the payload returns for an argument.
pub fn payload_answer(argument: u32) -> u32 {
    let text = between(&raw const gmem_payload_text, &raw const gmem_payload_end);
    argument ^ checksum(text)
}

/// The checksum that the guest computes.
pub fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(HASH_START, |hash, &byte| {
        (hash ^ u32::from(byte)).wrapping_mul(HASH_FACTOR)
    })
}

/// The pattern that the guest writes for a seed.
pub fn pattern(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(PATTERN_FACTOR)
                .wrapping_add(PATTERN_STEP);
            (state >> 24) as u8
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{
        REAL,
        SIMULATED, //
    };

    #[test]
    fn checksum_is_fnv_1a() {
        assert_eq!(checksum(b""), 0x811c9dc5);
        assert_eq!(checksum(b"a"), 0xe40c292c);
        assert_eq!(checksum(b"foobar"), 0xbf9cf968);
    }

    #[test]
    fn patterns_differ_by_seed_and_page() {
        let one = pattern(1, 0x2000);
        assert_ne!(one, pattern(2, 0x2000));
        assert_ne!(one[..0x1000], one[0x1000..]);
        assert!(one[..0x1000].iter().any(|&byte| byte != 0xab && byte != 0));
        assert_eq!(one[..7], pattern(1, 7));
    }

    #[test]
    fn programs_fit_in_a_page() {
        for platform in [REAL].iter().chain(&SIMULATED) {
            assert!((1..=0x1000).contains(&program(platform).len()));
        }
        assert!((1..0x1000).contains(&payload().len()));
    }

    #[test]
    fn payload_counts_its_runs_in_itself() {
        assert_eq!(payload_after(0), payload());
        let after = payload_after(0x01020304);
        let changed = after.iter().zip(payload()).filter(|(a, b)| a != b).count();
        assert_eq!(changed, 4);
        assert_eq!(payload_answer(0) ^ payload_answer(0x55), 0x55);
    }
}
