// SPDX-License-Identifier: GPL-2.0

//! What happens to a page when its owner changes: its bytes, and its place in the direct map.
//!
//! Memory holds what the *present* owner reads: the guest's view while the platform owns the page,
//! the host's view otherwise. A page that the platform owns is not in the direct map, so that the
//! host oopses where hardware would not let it write either.

use crate::{
    bindings,
    kvm::{
        hardware::{
            outcome,
            Failed, //
        },
        vm::Pfn, //
    },
    mm::folio::Frame, //
};
use core::marker::PhantomData;
use kernel::prelude::*;

/// `KVM_GMEM_EMULATION_KEY`.
const KEY: u64 = bindings::KVM_GMEM_EMULATION_KEY;

/// A page of a guest_memfd, on its way from one owner to another.
///
/// # Invariants
///
/// The page is in the page cache of a guest_memfd, or on its way into it or out of it, for as long as
/// `'a`.
#[derive(Clone, Copy)]
pub(super) struct Page<'a>(u64, PhantomData<&'a ()>);

impl<'a> Page<'a> {
    /// The page of a frame.
    pub(super) fn new(frame: &'a Frame<'_>) -> Self {
        // INVARIANT: By the invariants of the frame.
        Self(frame.pfn().get(), PhantomData)
    }

    /// # Safety
    ///
    /// The page must satisfy the type's invariants for as long as `'a`.
    pub(super) unsafe fn from_pfn(pfn: Pfn) -> Self {
        // INVARIANT: By the contract of this function.
        Self(pfn.get(), PhantomData)
    }

    /// The host's frame.
    pub(super) fn pfn(self) -> u64 {
        self.0
    }

    /// Whether the platform owns the page, as the direct map has it.
    pub(super) fn is_hidden(self) -> bool {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_direct_map_lacks(self.0) }
    }

    /// Makes [`hide`](Self::hide) possible in atomic context. Sleeps.
    pub(super) fn prepare(self) -> Result<(), Failed> {
        // SAFETY: By the type's invariants.
        outcome(unsafe { bindings::gmem_direct_map_split(self.0) })
    }

    /// Whether [`prepare`](Self::prepare) has been called.
    pub(super) fn is_prepared(self) -> bool {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_direct_map_is_split(self.0) }
    }

    /// Takes the page out of the direct map.
    ///
    /// # Errors
    ///
    /// [`Failed`] if it is not prepared.
    pub(super) fn hide(self) -> Result<(), Failed> {
        // SAFETY: By the type's invariants: it is no memory that the kernel uses for itself.
        outcome(unsafe { bindings::gmem_direct_map_remove(self.0) })
    }

    /// Puts the page back into the direct map.
    pub(super) fn show(self) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_direct_map_restore(self.0) }
    }

    /// Converts the bytes of one side to what the other side reads, and back. Not while hidden.
    pub(super) fn combine(self) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_pfn_combine(self.0, KEY) }
    }

    /// Zeroes the page. Not while hidden.
    pub(super) fn zero(self) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_pfn_zero(self.0) }
    }

    /// Copies `source`, which is pinned, over the page. Not while hidden.
    ///
    /// # Safety
    ///
    /// `source` must be valid.
    pub(super) unsafe fn copy_from(self, source: *mut bindings::page) {
        // SAFETY: By the type's invariants and the contract of this function.
        unsafe { bindings::gmem_pfn_copy_from(self.0, source) }
    }

    /// Copies `source` over the page. Neither while hidden.
    pub(super) fn copy(self, source: Page<'_>) {
        // SAFETY: By the invariants of both.
        unsafe { bindings::gmem_pfn_copy(self.0, source.0) }
    }

    /// Copies the page over `target`, which is pinned for writing. Not while hidden.
    ///
    /// # Safety
    ///
    /// `target` must be valid.
    pub(super) unsafe fn copy_to(self, target: *mut bindings::page) {
        // SAFETY: By the type's invariants and the contract of this function.
        unsafe { bindings::gmem_pfn_copy_to(self.0, target) }
    }

    /// The page's first word. Not while hidden.
    pub(super) fn read(self) -> u32 {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_pfn_read(self.0) }
    }

    /// Writes the page's first word. Not while hidden.
    pub(super) fn write(self, value: u32) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_pfn_write(self.0, value) }
    }

    /// Keeps the page from ever being freed: the platform did not give it back.
    pub(super) fn keep(self) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_pfn_keep(self.0) }
    }

    /// Whether [`keep`](Self::keep) was called.
    pub(super) fn is_kept(self) -> bool {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_pfn_is_kept(self.0) }
    }
}
