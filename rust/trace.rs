// SPDX-License-Identifier: GPL-2.0

//! Trace events.
//!
//! The fields of an event are computed only if it is on, by a function that the caller passes. An
//! event that is off costs a jump that is not taken. `include/trace/events/kvm_gmem.h` says what
//! the values are.
//!
//! C header: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)

use crate::bindings;

/// Whether a tracepoint is on.
macro_rules! is_on {
    ($tracepoint:ident) => {{
        #[cfg(CONFIG_KVM_GMEM_TRACE)]
        // SAFETY: It is the static key of a tracepoint.
        let is_on = unsafe {
            kernel::jump_label::static_branch_unlikely!(
                bindings::$tracepoint,
                bindings::tracepoint,
                key
            )
        };
        #[cfg(not(CONFIG_KVM_GMEM_TRACE))]
        let is_on = false;
        is_on
    }};
}

/// Out of line, so that code that is not traced does not pay for the fields.
#[cold]
#[inline(never)]
fn report<V>(values: impl FnOnce() -> V, event: impl FnOnce(V)) {
    event(values())
}

macro_rules! events {
    ($(
        $(#[$attr:meta])*
        $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $tracepoint:ident, $call:ident;
    )*) => {$(
        $(#[$attr])*
        #[inline(always)]
        $vis fn $name(values: impl FnOnce() -> ($($type,)*)) {
            if is_on!($tracepoint) {
                report(values, |($($arg,)*)| {
                    // SAFETY: Only traces; pointers come from references.
                    unsafe { bindings::$call($($arg),*) }
                });
            }
        }
    )*};
}

events! {
    /// A request begins: inode, offset, size, whether to private, policy.
    pub fn convert_begin(
        ino: u64,
        offset: u64,
        size: u64,
        to_private: bool,
        policy: u64,
    ) = __tracepoint_kvm_gmem_convert_begin, gmem_trace_convert_begin;

    /// A request has ended: the same; pages and runs that changed, pages zeroed and scrambled;
    /// errno, negative; offset of the page that caused the error, or all ones.
    pub fn convert_end(
        ino: u64,
        offset: u64,
        size: u64,
        to_private: bool,
        policy: u64,
        converted: u64,
        runs: u64,
        zeroed: u64,
        scrambled: u64,
        result: i32,
        error_offset: u64,
    ) = __tracepoint_kvm_gmem_convert_end, gmem_trace_convert_end;

    /// A locked folio is held elsewhere: unexplained references, how far the
    /// LRU caches were drained.
    pub(crate) fn busy(
        folio: *mut bindings::folio,
        unexplained: u32,
        drained: i32,
    ) = __tracepoint_kvm_gmem_busy, gmem_trace_busy;

    /// Large guest mappings are split at the ends of guest frames: inode, VM, guest frames.
    pub(crate) fn split(
        ino: u64,
        vm: *mut bindings::kvm,
        start: u64,
        end: u64,
    ) = __tracepoint_kvm_gmem_split, gmem_trace_split;

    /// A large folio is split, or is not: inode, offset, errno, negative.
    pub(crate) fn split_folio(
        ino: u64,
        offset: u64,
        result: i32,
    ) = __tracepoint_kvm_gmem_split_folio, gmem_trace_split_folio;

    /// Guest mappings are taken away: inode, VM, guest frames, kinds.
    pub(crate) fn zap(
        ino: u64,
        vm: *mut bindings::kvm,
        start: u64,
        end: u64,
        kinds: u32,
    ) = __tracepoint_kvm_gmem_zap, gmem_trace_zap;

    /// A guest was given a page: inode, offset, guest frame, whether private, whether first used.
    pub fn guest_fault(
        ino: u64,
        offset: u64,
        gfn: u64,
        is_private: bool,
        first_use: bool,
    ) = __tracepoint_kvm_gmem_guest_fault, gmem_trace_guest_fault;

    /// The host was given a page: inode, offset, whether first used.
    pub fn host_fault(
        ino: u64,
        offset: u64,
        first_use: bool,
    ) = __tracepoint_kvm_gmem_host_fault, gmem_trace_host_fault;

    /// Pages were filled before launch: first guest frame, pages asked for, how many were filled or
    /// a negative errno.
    pub fn populate(
        gfn: u64,
        npages: u64,
        result: isize,
    ) = __tracepoint_kvm_gmem_populate, gmem_trace_populate;

    /// SNP: a guest does not get a page: host frame, guest frame and guest; whether the file has
    /// given the page to anybody, and to whom.
    pub fn rmp_refusal(
        pfn: u64,
        gfn: u64,
        asid: u32,
        known: bool,
        known_gfn: u64,
        known_asid: u32,
    ) = __tracepoint_kvm_gmem_rmp_refusal, gmem_trace_rmp_refusal;

    /// A page was moved to other memory, or was not: inode, offset, host frames from and to, errno,
    /// negative.
    pub(crate) fn migrate(
        ino: u64,
        offset: u64,
        from: u64,
        to: u64,
        result: i32,
    ) = __tracepoint_kvm_gmem_migrate, gmem_trace_migrate;

    /// KVM_MAP_MEMORY has ended: address, bytes, bytes that are left, errno, negative.
    pub fn map_memory(
        base: u64,
        size: u64,
        left: u64,
        result: i32,
    ) = __tracepoint_kvm_gmem_map_memory, gmem_trace_map_memory;
}
