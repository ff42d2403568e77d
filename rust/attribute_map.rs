// SPDX-License-Identifier: GPL-2.0

//! Which pages of a file are private and which shared: an interval map over the maple tree.
//!
//! Readers look entries up under RCU, from any context. The one writer at a time shows a
//! [`Writer`], which only the holder of the file's invalidate lock can have. A change is made in
//! two halves, as everything before the point of no return must be able to fail and nothing after
//! it may: [`AttributeMap::reserve`] allocates, [`Reservation::commit`] stores.
//!
//! C header: [`include/linux/maple_tree.h`](srctree/include/linux/maple_tree.h)

use crate::{
    bindings,
    fs::address_space::Quiesced, //
};
use core::{
    cell::Cell,
    marker::PhantomData,
    mem::MaybeUninit,
    ptr, //
};
use gmem_policy::{
    plan::Run,
    range::{
        PageIndex,
        PageRange, //
    },
    request::Visibility, //
};
use kernel::{
    error::to_result,
    prelude::*,
    sync::rcu,
    types::Opaque,
    warn_on, //
};

/// The map, a `struct maple_tree` that lives inside an inode.
///
/// # Invariants
///
/// The tree was initialised by `gmem_tree_init()`, for readers under RCU and writers with a lock of
/// their own, and each of its entries is one that [`entry`] made.
pub struct AttributeMap {
    tree: Opaque<bindings::maple_tree>,
    /// There is a [`Reservation`]. The writer's alone.
    reserved: Cell<bool>,
}

/// Evidence that nobody else writes the map for as long as `'g`.
#[derive(Clone, Copy)]
pub struct Writer<'g>(PhantomData<&'g ()>);

impl<'g> Writer<'g> {
    /// States that the caller is the map's only writer.
    ///
    /// # Safety
    ///
    /// Nobody else may write the map this is used with during `'g`.
    #[inline]
    pub(crate) unsafe fn assume() -> Self {
        Self(PhantomData)
    }
}

/// An entry of the tree: a value entry (see `xa_mk_value()`), 0 for shared, 1 for private.
#[inline]
fn entry(visibility: Visibility) -> *mut c_void {
    let value: usize = match visibility {
        Visibility::Shared => 0,
        Visibility::Private => 1,
    };
    ptr::without_provenance_mut((value << 1) | 1)
}

/// Reads back what [`entry`] made; [`None`] for a hole.
#[inline]
fn visibility(entry: *mut c_void) -> Option<Visibility> {
    match entry.addr() {
        0 => None,
        1 => Some(Visibility::Shared),
        _ => Some(Visibility::Private),
    }
}

impl AttributeMap {
    /// Initialises an empty map at `this`.
    ///
    /// # Safety
    ///
    /// `this` must be valid for writes and hold no map.
    pub(crate) unsafe fn init(this: *mut Self) {
        // SAFETY: By the contract of this function.
        // INVARIANT: The helper sets the flags; an empty tree has no entries.
        unsafe {
            bindings::gmem_tree_init((&raw mut (*this).tree).cast());
            (&raw mut (*this).reserved).write(Cell::new(false));
        }
    }

    /// Tells lockdep which lock writers hold.
    ///
    /// # Safety
    ///
    /// `mapping` must be valid, and outlive the map.
    #[inline]
    pub(crate) unsafe fn set_lock(&self, mapping: *mut bindings::address_space) {
        // SAFETY: By the contract of this function and the type's invariants.
        unsafe { bindings::gmem_tree_set_lock(self.tree.get(), mapping) }
    }

    /// Frees all entries. Any context.
    pub(crate) fn destroy(&self, _writer: Writer<'_>) {
        // SAFETY: The tree is initialised, and the writer is the only one.
        unsafe { bindings::gmem_tree_destroy(self.tree.get()) }
    }

    /// The attribute of one page, [`None`] for one that has no entry.
    ///
    /// Any context; takes the RCU read lock only.
    #[inline]
    pub fn load(&self, at: PageIndex) -> Option<Visibility> {
        // SAFETY: The tree is initialised; mtree_load() takes the RCU read lock itself.
        visibility(unsafe { bindings::mtree_load(self.tree.get(), at.get() as usize) })
    }

    /// The entry that contains `at`, [`None`] in a hole.
    pub fn run_at(&self, at: PageIndex) -> Option<Run> {
        let mut mas = self.cursor(at.get() as usize, at.get() as usize);

        let _rcu = rcu::read_lock();
        // SAFETY: `mas` was initialised for this tree, under the RCU read lock.
        let found = unsafe { bindings::mas_walk(&mut mas) };
        let visibility = visibility(found)?;
        // CAST: An index is an unsigned long, which has 64 bits here.
        let end = (mas.last as u64).checked_add(1)?;
        let range = PageRange::new(PageIndex::new(mas.index as u64), PageIndex::new(end))?;

        Some(Run { range, visibility })
    }

    /// Allocates what storing `to` over `range` needs.
    ///
    /// The caller says in `range` which equal neighbours the store shall swallow; the map itself
    /// does not merge.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EBUSY` while there is another reservation, which the first one's commit would
    /// leave with nodes that are freed.
    pub fn reserve<'g>(
        &'g self,
        _writer: Writer<'g>,
        range: &PageRange,
        to: Visibility,
    ) -> Result<Reservation<'g>> {
        if self.reserved.get() {
            return Err(EBUSY);
        }
        let mut mas = self.cursor(range.start().get() as usize, range.last().get() as usize);

        // SAFETY: `mas` was initialised for this tree and has a non-empty range; nobody else
        // writes the tree.
        to_result(unsafe { bindings::gmem_tree_preallocate(&mut mas, entry(to)) })?;

        self.reserved.set(true);
        // INVARIANT: The preallocation succeeded for this entry and range. Only a reservation
        // writes the tree, and there is no other.
        Ok(Reservation {
            mas,
            range: *range,
            to,
            map: self,
        })
    }

    #[inline]
    fn cursor(&self, first: usize, last: usize) -> bindings::ma_state {
        let mut mas = MaybeUninit::uninit();

        // SAFETY: `mas` is valid for writes and the tree is initialised.
        unsafe { bindings::gmem_tree_cursor(mas.as_mut_ptr(), self.tree.get(), first, last) };
        // SAFETY: The helper initialised all of it.
        unsafe { mas.assume_init() }
    }
}

/// Memory set aside for one store; dropping it gives the memory back and changes nothing.
///
/// # Invariants
///
/// `mas` holds the nodes that mas_preallocate() allocated to store `to` over `range`, and nobody
/// has written the tree since.
#[must_use = "dropping a reservation stores nothing"]
pub struct Reservation<'g> {
    mas: bindings::ma_state,
    range: PageRange,
    to: Visibility,
    map: &'g AttributeMap,
}

impl Reservation<'_> {
    /// Stores the attributes. Cannot fail.
    ///
    /// What becomes private must have been taken from the host: it needs a [`Quiesced`] of the
    /// whole range. Without one nothing is stored, and the kernel warns. The caller's request is
    /// lost then, and the guest's page may be, but the host has no private page.
    pub fn commit(self, quiesced: Option<Quiesced<'_>>) {
        if !warn_on!(!self.may_commit(quiesced.as_ref())) {
            self.store();
        }
    }

    /// Whether the host cannot have a page that [`commit`](Self::commit) makes private.
    pub(crate) fn may_commit(&self, quiesced: Option<&Quiesced<'_>>) -> bool {
        match self.to {
            Visibility::Private => quiesced.is_some_and(|pages| pages.cover(self.map, &self.range)),
            Visibility::Shared => true,
        }
    }

    /// As [`commit`](Self::commit), for a map of pages that no host can have yet.
    pub(crate) fn store(mut self) {
        // SAFETY: By the type's invariants. The nodes left over are freed by mas_store_prealloc(),
        // after which mas_destroy() has nothing to do.
        unsafe { bindings::mas_store_prealloc(&mut self.mas, entry(self.to)) }
    }
}

impl Drop for Reservation<'_> {
    #[inline]
    fn drop(&mut self) {
        self.map.reserved.set(false);
        // SAFETY: `mas` is initialised; freeing what was preallocated is always possible.
        unsafe { bindings::mas_destroy(&mut self.mas) }
    }
}
