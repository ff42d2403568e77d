// SPDX-License-Identifier: GPL-2.0

//! For x86: 32-bit code for flat segments, without paging or with tables that `machine/x86.rs` makes.

use super::{
    between,
    CALL,
    FILL,
    HASH_FACTOR,
    HASH_START,
    MAP,
    MAP_ENCRYPTED,
    PATTERN_FACTOR,
    PATTERN_STEP,
    READ, //
};
use crate::contract::{
    Ground,
    Platform, //
};
use std::arch::global_asm;

/// The hypercall by which a guest asks for a conversion.
const KVM_HC_MAP_GPA_RANGE: u32 = 12;

/// Where commands come from and answers go.
pub const PORT: u16 = 0x510;

/// Where a guest of SNP has its GHCB: a shared page.
pub const GHCB: u32 = 0x0010_9000;

/// The MSR that holds its address, or a request in the lowest bits.
const GHCB_MSR: u32 = 0xc001_0130;
const GHCB_REGISTER: u32 = 0x012;
/// Fields of the GHCB, and the bytes of its bitmap that say that those are valid.
const GHCB_RAX: u32 = GHCB + 0x1f8;
const GHCB_EXIT_CODE: u32 = GHCB + 0x390;
const GHCB_EXIT_INFO_1: u32 = GHCB + 0x398;
const GHCB_EXIT_INFO_2: u32 = GHCB + 0x3a0;
const GHCB_SCRATCH: u32 = GHCB + 0x3a8;
const GHCB_RAX_VALID: u32 = GHCB + 0x3f7;
const GHCB_EXIT_VALID: u32 = GHCB + 0x3fe;
const GHCB_BUFFER: u32 = GHCB + 0x800;
const GHCB_VERSION: u32 = GHCB + 0xffa;
/// Exits: IN and OUT of 4 bytes, and a change of the state of pages.
const EXIT_IO: u32 = 0x7b;
const EXIT_IO_IN: u32 = (PORT as u32) << 16 | 1 << 6 | 1;
const EXIT_IO_OUT: u32 = (PORT as u32) << 16 | 1 << 6;
const EXIT_PAGE_STATE: u32 = 0x8000_0010;
/// The upper half of an entry of the latter's list: to private is `MAP_ENCRYPTED << 16`.
const TO_SHARED: u32 = 2 << 20;
const _: () = assert!(MAP_ENCRYPTED << 16 == 1 << 20);
/// What the guest gets for a list that could not be done.
const PAGE_STATE_ERROR: u32 = 0x100;

// Two programs with one body. They differ in how they reach the VMM: by instructions, or by the GHCB
// as guests of SNP do, whose other exits are the guest's own business.
//
// The hypercall is AMD's VMMCALL; `adapt_to` puts Intel's VMCALL there where that is needed. KVM would
// do so itself, but only where it can write to the code.
global_asm!(
    ".code32",
    ".macro gmem_enter_direct",
    ".endm",
    ".macro gmem_ask_direct",
    "mov ${port}, %dx",
    "in %dx, %eax",
    ".endm",
    ".macro gmem_answer_direct",
    "mov ${port}, %dx",
    "out %eax, %dx",
    ".endm",
    ".macro gmem_map_direct",
    "mov %ebx, %edx",
    "mov %esi, %ebx",
    "mov ${hc_map_gpa_range}, %eax",
    ".globl gmem_direct_hypercall",
    "gmem_direct_hypercall:",
    ".byte 0x0f, 0x01, 0xd9",
    ".endm",
    //
    ".macro gmem_vmgexit",
    ".byte 0xf3, 0x0f, 0x01, 0xd9",
    ".endm",
    ".macro gmem_ghcb_exit code, info",
    "movl $\\code, {ghcb_exit_code}",
    "movl $\\info, {ghcb_exit_info_1}",
    "movl $0, {ghcb_exit_info_2}",
    "movb $0x80, {ghcb_rax_valid}",
    "movb $0x3c, {ghcb_exit_valid}",
    "gmem_vmgexit",
    ".endm",
    // A GHCB has to be made known before it is used.
    ".macro gmem_enter_ghcb",
    "mov ${ghcb_msr}, %ecx",
    "mov ${ghcb} + {ghcb_register}, %eax",
    "xor %edx, %edx",
    "wrmsr",
    "gmem_vmgexit",
    "mov ${ghcb}, %eax",
    "xor %edx, %edx",
    "wrmsr",
    "movw $2, {ghcb_version}",
    ".endm",
    ".macro gmem_ask_ghcb",
    "gmem_ghcb_exit {exit_io}, {exit_io_in}",
    "mov {ghcb_rax}, %eax",
    ".endm",
    ".macro gmem_answer_ghcb",
    "mov %eax, {ghcb_rax}",
    "gmem_ghcb_exit {exit_io}, {exit_io_out}",
    ".endm",
    // A list of pages: which entries there are, and for each an address and what is to become of it.
    ".macro gmem_map_ghcb",
    "lea -1(%ecx), %eax",
    "shl $16, %eax",
    "mov %eax, {ghcb_buffer}",
    "movl $0, {ghcb_buffer} + 4",
    "mov ${ghcb_buffer} + 8, %edi",
    "shl $16, %ebx",
    "jnz .Lgmem_ghcb_page",
    "mov ${to_shared}, %ebx",
    ".Lgmem_ghcb_page:",
    "mov %esi, (%edi)",
    "mov %ebx, 4(%edi)",
    "add $0x1000, %esi",
    "add $8, %edi",
    "dec %ecx",
    "jnz .Lgmem_ghcb_page",
    "movl ${ghcb_buffer}, {ghcb_scratch}",
    "gmem_ghcb_exit {exit_page_state}, 0",
    "mov {ghcb_exit_info_2}, %eax",
    "or {ghcb_exit_info_2} + 4, %eax",
    ".endm",
    //
    ".macro gmem_program way",
    // The compiler may put the references to the labels and the labels into different objects.
    ".globl gmem_\\way\\()_start, gmem_\\way\\()_end",
    "gmem_\\way\\()_start:",
    "gmem_enter_\\way",
    ".Lgmem_\\way\\()_next:",
    "gmem_ask_\\way",
    "mov %eax, %ebp",
    "gmem_ask_\\way",
    "mov %eax, %esi",
    "gmem_ask_\\way",
    "mov %eax, %ecx",
    "gmem_ask_\\way",
    "mov %eax, %ebx",
    "cmp ${read}, %ebp",
    "je .Lgmem_\\way\\()_read",
    "cmp ${fill}, %ebp",
    "je .Lgmem_\\way\\()_fill",
    "cmp ${call}, %ebp",
    "je .Lgmem_\\way\\()_call",
    "cmp ${map}, %ebp",
    "je .Lgmem_\\way\\()_map",
    // An unknown command: without an interrupt table this shuts the guest down.
    "ud2",
    //
    ".Lgmem_\\way\\()_read:",
    "mov %ebx, %edi",
    "mov ${hash_start}, %ebx",
    ".Lgmem_\\way\\()_read_byte:",
    "movzbl (%esi), %eax",
    "mov %al, (%edi)",
    "xor %eax, %ebx",
    "imul ${hash_factor}, %ebx, %ebx",
    "inc %esi",
    "inc %edi",
    "dec %ecx",
    "jnz .Lgmem_\\way\\()_read_byte",
    "mov %ebx, %eax",
    "jmp .Lgmem_\\way\\()_answer",
    //
    ".Lgmem_\\way\\()_fill:",
    "imul ${pattern_factor}, %ebx, %ebx",
    "add ${pattern_step}, %ebx",
    "mov %ebx, %eax",
    "shr $24, %eax",
    "mov %al, (%esi)",
    "inc %esi",
    "dec %ecx",
    "jnz .Lgmem_\\way\\()_fill",
    "mov %ebx, %eax",
    "jmp .Lgmem_\\way\\()_answer",
    //
    ".Lgmem_\\way\\()_call:",
    "mov %ecx, %eax",
    "call *%esi",
    "jmp .Lgmem_\\way\\()_answer",
    //
    ".Lgmem_\\way\\()_map:",
    "gmem_map_\\way",
    //
    ".Lgmem_\\way\\()_answer:",
    "gmem_answer_\\way",
    "jmp .Lgmem_\\way\\()_next",
    "gmem_\\way\\()_end:",
    ".endm",
    //
    ".pushsection .rodata.gmem_guest, \"a\"",
    ".hidden gmem_direct_start, gmem_direct_hypercall, gmem_direct_end",
    ".hidden gmem_ghcb_start, gmem_ghcb_end",
    ".hidden gmem_payload_start, gmem_payload_runs, gmem_payload_text, gmem_payload_end",
    ".globl gmem_payload_start, gmem_payload_runs, gmem_payload_text, gmem_payload_end",
    "gmem_program direct",
    "gmem_program ghcb",
    // Takes an argument in eax and returns it, exclusive-or the checksum of the text: the caller
    // gets the right answer only if this code has run over these bytes.
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
    ".popsection",
    ".code64",
    port = const PORT,
    read = const READ,
    fill = const FILL,
    call = const CALL,
    map = const MAP,
    hc_map_gpa_range = const KVM_HC_MAP_GPA_RANGE,
    ghcb = const GHCB,
    ghcb_msr = const GHCB_MSR,
    ghcb_register = const GHCB_REGISTER,
    ghcb_rax = const GHCB_RAX,
    ghcb_exit_code = const GHCB_EXIT_CODE,
    ghcb_exit_info_1 = const GHCB_EXIT_INFO_1,
    ghcb_exit_info_2 = const GHCB_EXIT_INFO_2,
    ghcb_scratch = const GHCB_SCRATCH,
    ghcb_rax_valid = const GHCB_RAX_VALID,
    ghcb_exit_valid = const GHCB_EXIT_VALID,
    ghcb_buffer = const GHCB_BUFFER,
    ghcb_version = const GHCB_VERSION,
    exit_io = const EXIT_IO,
    exit_io_in = const EXIT_IO_IN,
    exit_io_out = const EXIT_IO_OUT,
    exit_page_state = const EXIT_PAGE_STATE,
    to_shared = const TO_SHARED,
    hash_start = const HASH_START,
    hash_factor = const HASH_FACTOR,
    pattern_factor = const PATTERN_FACTOR,
    pattern_step = const PATTERN_STEP,
    options(att_syntax),
);

unsafe extern "C" {
    static gmem_direct_start: u8;
    static gmem_direct_hypercall: u8;
    static gmem_direct_end: u8;
    static gmem_ghcb_start: u8;
    static gmem_ghcb_end: u8;
}

/// The loop, for the platform and the processor at hand.
pub fn program(platform: &Platform) -> Vec<u8> {
    match platform.ground {
        Ground::SnpSimulated => {
            between(&raw const gmem_ghcb_start, &raw const gmem_ghcb_end).to_vec()
        }
        Ground::Real | Ground::TdxMirrored => {
            let mut program = direct();
            adapt_to(&mut program, is_intel());
            program
        }
    }
}

fn direct() -> Vec<u8> {
    between(&raw const gmem_direct_start, &raw const gmem_direct_end).to_vec()
}

/// Puts the hypercall instruction of the processor at hand into the program.
fn adapt_to(program: &mut [u8], intel: bool) {
    if intel {
        let before = between(
            &raw const gmem_direct_start,
            &raw const gmem_direct_hypercall,
        );
        let at = before.len();
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

/// What the guest gets when the VMM refuses: from its hypercall `EAGAIN` or `EINVAL`.
pub fn refusal(platform: &Platform, errno: i32) -> u32 {
    match (platform.ground, errno) {
        (Ground::SnpSimulated, _) => PAGE_STATE_ERROR,
        (_, libc::EAGAIN) => libc::EAGAIN as u32,
        _ => libc::EINVAL as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hypercall_is_the_only_difference_between_vendors() {
        let [mut amd, mut intel] = [(); 2].map(|()| direct());
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
