// SPDX-License-Identifier: GPL-2.0

//! For x86: 32-bit code for flat segments without paging, so addresses are guest physical ones.

use super::{
    between,
    gmem_guest_start,
    CALL,
    FILL,
    HASH_FACTOR,
    HASH_START,
    MAP,
    PATTERN_FACTOR,
    PATTERN_STEP,
    READ, //
};
use std::arch::global_asm;

/// The hypercall by which a guest asks for a conversion.
const KVM_HC_MAP_GPA_RANGE: u32 = 12;

/// Where commands come from and answers go.
pub const PORT: u16 = 0x510;

// The hypercall is AMD's VMMCALL; `adapt` puts Intel's VMCALL there where that is needed. KVM
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
    static gmem_guest_hypercall: u8;
}

/// Puts the hypercall instruction of the processor at hand into the program.
pub fn adapt(program: &mut [u8]) {
    adapt_to(program, is_intel());
}

fn adapt_to(program: &mut [u8], intel: bool) {
    if intel {
        let at = between(&raw const gmem_guest_start, &raw const gmem_guest_hypercall).len();
        program[at..at + 3].copy_from_slice(&[0x0f, 0x01, 0xc1]);
    }
}

fn is_intel() -> bool {
    // Older compilers have it unsafe, for processors without the instruction.
    #[allow(unused_unsafe)]
    // SAFETY: All of x86-64 have the instruction, and leaf 0.
    let id = unsafe { std::arch::x86_64::__cpuid(0) };
    [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

/// What the guest gets from its hypercall when the VMM refuses: `EAGAIN` or `EINVAL`.
pub fn refusal(errno: i32) -> u32 {
    match errno {
        libc::EAGAIN => libc::EAGAIN as u32,
        _ => libc::EINVAL as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hypercall_is_the_only_difference_between_vendors() {
        let [mut amd, mut intel] = [(); 2].map(|()| super::super::unadapted());
        adapt_to(&mut amd, false);
        adapt_to(&mut intel, true);
        let differ: Vec<_> = (0..amd.len()).filter(|&i| amd[i] != intel[i]).collect();
        let [at] = differ[..] else {
            panic!("{differ:?}");
        };
        assert_eq!(amd[at - 2..=at], [0x0f, 0x01, 0xd9]);
        assert_eq!(intel[at - 2..=at], [0x0f, 0x01, 0xc1]);
    }
}
