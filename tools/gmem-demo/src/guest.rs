// SPDX-License-Identifier: GPL-2.0

//! What runs inside: a loop that does what the VMM asks for, and a payload that it can be asked to
//! call.
//!
//! Both are 32-bit code for flat segments without paging, so addresses are guest physical ones,
//! and both run wherever they are put. The loop reads four words from [`PORT`], a command and its
//! operands, and writes one word as the answer:
//!
//! | command | operands | answer |
//! |---|---|---|
//! | [`READ`] | from, bytes, to | checksum of what was read; the bytes are copied to `to` |
//! | [`FILL`] | to, bytes, seed | last state of the pattern |
//! | [`CALL`] | address, argument | what the code there returned |
//! | [`MAP`] | address, pages, attributes | what the hypercall `KVM_HC_MAP_GPA_RANGE` returned |

use std::{
    arch::global_asm,
    slice, //
};

/// Where commands come from and answers go.
pub const PORT: u16 = 0x510;

/// Read a range: checksum it and copy it to where the host can compare it byte by byte.
pub const READ: u32 = 1;
/// Write a pattern.
pub const FILL: u32 = 2;
/// Call code.
pub const CALL: u32 = 3;
/// Ask the VMM to make a range private or shared.
pub const MAP: u32 = 4;

/// The hypercall by which a guest asks for that.
pub const KVM_HC_MAP_GPA_RANGE: u32 = 12;
/// Its attribute for private; 0 is shared.
pub const MAP_ENCRYPTED: u32 = 1 << 4;

/// FNV-1a, 32 bits.
const HASH_START: u32 = 0x811c_9dc5;
const HASH_FACTOR: u32 = 0x0100_0193;

/// A linear congruential generator whose upper byte is the pattern.
const PATTERN_FACTOR: u32 = 1_664_525;
const PATTERN_STEP: u32 = 1_013_904_223;

// The hypercall is AMD's VMMCALL; `program` puts Intel's VMCALL there where that is needed. KVM
// would do so itself, but only where it can write to the code.
global_asm!(
    ".pushsection .rodata.gmem_guest, \"a\"",
    // The compiler may put the references to the labels and the labels into different objects.
    ".hidden gmem_guest_start, gmem_guest_hypercall, gmem_guest_end",
    ".globl gmem_guest_start, gmem_guest_hypercall, gmem_guest_end",
    ".hidden gmem_payload_start, gmem_payload_runs, gmem_payload_text, gmem_payload_end",
    ".globl gmem_payload_start, gmem_payload_runs, gmem_payload_text, gmem_payload_end",
    ".code32",
    "gmem_guest_start:",
    "mov ${port}, %dx",
    "in %dx, %eax",
    "mov %eax, %ebp",
    "in %dx, %eax",
    "mov %eax, %esi",
    "in %dx, %eax",
    "mov %eax, %ecx",
    "in %dx, %eax",
    "mov %eax, %ebx",
    "cmp ${read}, %ebp",
    "je .Lgmem_read",
    "cmp ${fill}, %ebp",
    "je .Lgmem_fill",
    "cmp ${call}, %ebp",
    "je .Lgmem_call",
    "cmp ${map}, %ebp",
    "je .Lgmem_map",
    // An unknown command: without an interrupt table this shuts the guest down.
    "ud2",
    //
    ".Lgmem_read:",
    "mov %ebx, %edi",
    "mov ${hash_start}, %ebx",
    ".Lgmem_read_byte:",
    "movzbl (%esi), %eax",
    "mov %al, (%edi)",
    "xor %eax, %ebx",
    "imul ${hash_factor}, %ebx, %ebx",
    "inc %esi",
    "inc %edi",
    "dec %ecx",
    "jnz .Lgmem_read_byte",
    "mov %ebx, %eax",
    "jmp .Lgmem_answer",
    //
    ".Lgmem_fill:",
    "imul ${pattern_factor}, %ebx, %ebx",
    "add ${pattern_step}, %ebx",
    "mov %ebx, %eax",
    "shr $24, %eax",
    "mov %al, (%esi)",
    "inc %esi",
    "dec %ecx",
    "jnz .Lgmem_fill",
    "mov %ebx, %eax",
    "jmp .Lgmem_answer",
    //
    ".Lgmem_call:",
    "mov %ecx, %eax",
    "call *%esi",
    "jmp .Lgmem_answer",
    //
    ".Lgmem_map:",
    "mov %ebx, %edx",
    "mov %esi, %ebx",
    "mov ${hc_map_gpa_range}, %eax",
    "gmem_guest_hypercall:",
    ".byte 0x0f, 0x01, 0xd9",
    //
    ".Lgmem_answer:",
    "mov ${port}, %dx",
    "out %eax, %dx",
    "jmp gmem_guest_start",
    "gmem_guest_end:",
    // Takes an argument in eax and returns it, exclusive-or the checksum of the text: whoever
    // gets the right answer has run this code over these bytes, now.
    "gmem_payload_start:",
    "call .Lgmem_payload_here",
    ".Lgmem_payload_here:",
    "pop %edi",
    "incl gmem_payload_runs - .Lgmem_payload_here(%edi)",
    "lea gmem_payload_text - .Lgmem_payload_here(%edi), %esi",
    "mov $(gmem_payload_end - gmem_payload_text), %ecx",
    "mov ${hash_start}, %edx",
    ".Lgmem_payload_byte:",
    "movzbl (%esi), %ebx",
    "xor %ebx, %edx",
    "imul ${hash_factor}, %edx, %edx",
    "inc %esi",
    "dec %ecx",
    "jnz .Lgmem_payload_byte",
    "xor %edx, %eax",
    "ret",
    "gmem_payload_runs:",
    ".long 0",
    "gmem_payload_text:",
    ".ascii \"written by the host, read by the guest, moved by nobody\"",
    "gmem_payload_end:",
    ".code64",
    ".popsection",
    port = const PORT,
    read = const READ,
    fill = const FILL,
    call = const CALL,
    map = const MAP,
    hc_map_gpa_range = const KVM_HC_MAP_GPA_RANGE,
    hash_start = const HASH_START,
    hash_factor = const HASH_FACTOR,
    pattern_factor = const PATTERN_FACTOR,
    pattern_step = const PATTERN_STEP,
    options(att_syntax),
);

unsafe extern "C" {
    static gmem_guest_start: u8;
    static gmem_guest_hypercall: u8;
    static gmem_guest_end: u8;
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

/// The loop, with the hypercall instruction of the processor at hand.
pub fn program() -> Vec<u8> {
    program_for(is_intel())
}

fn program_for(intel: bool) -> Vec<u8> {
    let mut program = between(&raw const gmem_guest_start, &raw const gmem_guest_end).to_vec();
    if intel {
        let at = between(&raw const gmem_guest_start, &raw const gmem_guest_hypercall).len();
        program[at..at + 3].copy_from_slice(&[0x0f, 0x01, 0xc1]);
    }
    program
}

fn is_intel() -> bool {
    let id = std::arch::x86_64::__cpuid(0);
    [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

/// The payload, never run.
pub fn payload() -> &'static [u8] {
    between(&raw const gmem_payload_start, &raw const gmem_payload_end)
}

/// The payload as it is after it has run some times: it counts.
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
    fn hypercall_is_the_only_difference_between_vendors() {
        let amd = program_for(false);
        let intel = program_for(true);
        let differ: Vec<_> = (0..amd.len()).filter(|&i| amd[i] != intel[i]).collect();
        let [at] = differ[..] else {
            panic!("{differ:?}");
        };
        assert_eq!(amd[at - 2..=at], [0x0f, 0x01, 0xd9]);
        assert_eq!(intel[at - 2..=at], [0x0f, 0x01, 0xc1]);
    }

    #[test]
    fn programs_fit_in_a_page() {
        assert!(program().len() <= 0x1000);
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
