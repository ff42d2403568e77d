// SPDX-License-Identifier: GPL-2.0

//! For arm64: the address space is mapped one to one, see `machine/arm64.rs`.

use super::{
    between,
    CALL,
    FILL,
    HASH_FACTOR,
    HASH_START,
    MAP,
    PATTERN_FACTOR,
    PATTERN_STEP,
    READ, //
};
use crate::contract::Platform;
use std::arch::global_asm;

/// Where commands come from and answers go: an address without memory.
pub const MMIO: u64 = 0x0900_0000;

/// `ARM_SMCCC_VENDOR_HYP_KVM_MEM_SHARE_FUNC_ID`; MEM_UNSHARE is the next number.
const MEM_SHARE: u32 = 0xc600_0003;

global_asm!(
    ".pushsection .rodata.gmem_guest, \"a\"",
    ".hidden gmem_guest_start, gmem_guest_end",
    ".globl gmem_guest_start, gmem_guest_end",
    ".hidden gmem_payload_start, gmem_payload_runs, gmem_payload_text, gmem_payload_end",
    ".globl gmem_payload_start, gmem_payload_runs, gmem_payload_text, gmem_payload_end",
    ".p2align 2",
    "gmem_guest_start:",
    "movz x20, #({mmio} >> 16), lsl #16",
    "movk x20, #({mmio} & 0xffff)",
    "ldr w21, [x20]",
    "ldr w1, [x20]",
    "ldr w2, [x20]",
    "ldr w3, [x20]",
    "cmp w21, #{read}",
    "b.eq .Lgmem_read",
    "cmp w21, #{fill}",
    "b.eq .Lgmem_fill",
    "cmp w21, #{call}",
    "b.eq .Lgmem_call",
    "cmp w21, #{map}",
    "b.eq .Lgmem_map",
    // An unknown command. Nothing that the VMM has asked for returns this.
    "mov w0, #-1",
    "b .Lgmem_answer",
    //
    ".Lgmem_read:",
    "movz w0, #({hash_start} >> 16), lsl #16",
    "movk w0, #({hash_start} & 0xffff)",
    "movz w5, #({hash_factor} >> 16), lsl #16",
    "movk w5, #({hash_factor} & 0xffff)",
    ".Lgmem_read_byte:",
    "ldrb w4, [x1], #1",
    "strb w4, [x3], #1",
    "eor w0, w0, w4",
    "mul w0, w0, w5",
    "subs w2, w2, #1",
    "b.ne .Lgmem_read_byte",
    "b .Lgmem_answer",
    //
    ".Lgmem_fill:",
    "movz w5, #({pattern_factor} >> 16), lsl #16",
    "movk w5, #({pattern_factor} & 0xffff)",
    "movz w6, #({pattern_step} >> 16), lsl #16",
    "movk w6, #({pattern_step} & 0xffff)",
    ".Lgmem_fill_byte:",
    "madd w3, w3, w5, w6",
    "lsr w4, w3, #24",
    "strb w4, [x1], #1",
    "subs w2, w2, #1",
    "b.ne .Lgmem_fill_byte",
    "mov w0, w3",
    "b .Lgmem_answer",
    // The code there may be new.
    ".Lgmem_call:",
    "mov w0, w2",
    "ic iallu",
    "dsb nsh",
    "isb",
    "blr x1",
    "b .Lgmem_answer",
    // One hypercall a page; the first that fails ends it. The call takes x0 to x3.
    ".Lgmem_map:",
    "mov x22, x1",
    "mov w23, w2",
    "mov w24, w3",
    ".Lgmem_map_page:",
    "movz w0, #({mem_share} >> 16), lsl #16",
    "movk w0, #({mem_share} & 0xffff)",
    "cmp w24, #0",
    "cinc w0, w0, ne",
    "mov x1, x22",
    "mov x2, #0",
    "mov x3, #0",
    "hvc #0",
    "cbnz w0, .Lgmem_answer",
    "add x22, x22, #0x1000",
    "subs w23, w23, #1",
    "b.ne .Lgmem_map_page",
    //
    ".Lgmem_answer:",
    "str w0, [x20]",
    "b gmem_guest_start",
    "gmem_guest_end:",
    // Takes an argument in w0 and returns it, exclusive-or the checksum of the text: the caller gets
    // the right answer only if this code has run over these bytes.
    "gmem_payload_start:",
    "adr x9, gmem_payload_runs",
    "ldr w10, [x9]",
    "add w10, w10, #1",
    "str w10, [x9]",
    "adr x11, gmem_payload_text",
    "adr x12, gmem_payload_end",
    "movz w13, #({hash_start} >> 16), lsl #16",
    "movk w13, #({hash_start} & 0xffff)",
    "movz w15, #({hash_factor} >> 16), lsl #16",
    "movk w15, #({hash_factor} & 0xffff)",
    ".Lgmem_payload_byte:",
    "ldrb w14, [x11], #1",
    "eor w13, w13, w14",
    "mul w13, w13, w15",
    "cmp x11, x12",
    "b.ne .Lgmem_payload_byte",
    "eor w0, w0, w13",
    "ret",
    "gmem_payload_runs:",
    ".long 0",
    "gmem_payload_text:",
    ".ascii \"written by the host, read by the guest, moved by nobody\"",
    "gmem_payload_end:",
    ".popsection",
    mmio = const MMIO,
    read = const READ,
    fill = const FILL,
    call = const CALL,
    map = const MAP,
    mem_share = const MEM_SHARE,
    hash_start = const HASH_START,
    hash_factor = const HASH_FACTOR,
    pattern_factor = const PATTERN_FACTOR,
    pattern_step = const PATTERN_STEP,
);

unsafe extern "C" {
    static gmem_guest_start: u8;
    static gmem_guest_end: u8;
}

/// The loop.
pub fn program(_platform: &Platform) -> Vec<u8> {
    between(&raw const gmem_guest_start, &raw const gmem_guest_end).to_vec()
}

/// The result of the guest's hypercall when the VMM refuses: `SMCCC_RET_INVALID_PARAMETER`.
pub fn refusal(_platform: &Platform, _errno: i32) -> u32 {
    -3i32 as u32
}
