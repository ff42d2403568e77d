// SPDX-License-Identifier: GPL-2.0

//! The attributes of a file: which pages are private and which are shared.
//!
//! Readers look pages up under RCU, from any context, or with the file's invalidate lock held.
//! There is one writer at a time. It needs a [`Writer`], which only the holder of that lock can
//! have. A change is made in two halves, as everything before the point of no return may fail and
//! nothing after it: [`AttributeMap::reserve`] allocates, [`Reservation::store`] stores.
//!
//! The memory is charged to the cgroup of the task that converts, and bounded by the size of the
//! file: a bitmap for 512 pages, and a table of the size of a page for as many bitmaps or tables as
//! it has pointers.

use crate::{
    bindings,
    task::reschedule, //
};
use core::{
    cell::Cell,
    marker::PhantomData,
    ptr::NonNull, //
};
use gmem_types::{
    range::{
        Geometry,
        PageIndex,
        PageRange, //
    },
    visibility::{
        Run,
        Visibility, //
    }, //
};
use kernel::{
    prelude::*,
    sync::rcu,
    warn_on, //
};

mod radix;

use radix::{
    Kind,
    Memory,
    Radix,
    Spare, //
};

/// As many entries as a page has room for.
const FANOUT: usize = kernel::page::PAGE_SIZE / size_of::<*mut ()>();

const _: () = assert!(radix::BITMAP_WORDS == bindings::GMEM_BITMAP_WORDS as usize);

/// The kernel's memory.
struct Slab;

// SAFETY: The helpers allocate as much as a bitmap or a table has, aligned to a word at least.
unsafe impl Memory for Slab {
    fn allocate(kind: Kind) -> Option<NonNull<()>> {
        // SAFETY: A caller that reserves may sleep.
        NonNull::new(unsafe { bindings::gmem_node_alloc(kind == Kind::Table) }.cast())
    }

    unsafe fn free(kind: Kind, node: NonNull<()>) {
        // SAFETY: By the contract of this function.
        unsafe { bindings::gmem_node_free(node.as_ptr().cast(), kind == Kind::Table) }
    }

    unsafe fn retire(kind: Kind, node: NonNull<()>) {
        // SAFETY: By the contract of this function. Readers are inside RCU, or keep the writer out.
        unsafe { bindings::gmem_node_free_rcu(node.as_ptr().cast(), kind == Kind::Table) }
    }

    fn reschedule() {
        reschedule();
    }
}

/// The map, which lives inside an inode.
pub struct AttributeMap {
    tree: Radix<Slab, FANOUT>,
    /// Whether there is a [`Reservation`]. Only the writer uses it.
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

/// Evidence that what is found in the map is not freed for as long as `'g`.
#[derive(Clone, Copy)]
pub struct Reader<'g>(PhantomData<&'g ()>);

impl<'g> Reader<'g> {
    /// States that nobody writes the map.
    ///
    /// # Safety
    ///
    /// During `'g` only the caller may write the map this is used with, and only between two uses.
    #[inline]
    pub(crate) unsafe fn assume() -> Self {
        Self(PhantomData)
    }
}

impl<'g> From<&'g rcu::Guard> for Reader<'g> {
    #[inline]
    fn from(_: &'g rcu::Guard) -> Self {
        Self(PhantomData)
    }
}

impl AttributeMap {
    /// The map of a file whose pages are all the same. Allocates nothing.
    pub(crate) const fn new(geometry: Geometry, initial: Visibility) -> Self {
        Self {
            tree: Radix::new(geometry.pages(), initial),
            reserved: Cell::new(false),
        }
    }

    /// Frees the memory; all pages are private then. Sleeps.
    ///
    /// There may be readers still: nodes are freed behind RCU.
    pub(crate) fn clear(&self, _writer: Writer<'_>) {
        // SAFETY: The writer is the only one.
        unsafe { self.tree.clear() }
    }

    /// Returns whether the page `at` is private or shared; private behind the end of the file.
    ///
    /// Any context. The lookup walks one table per level, and reads a bit.
    #[inline]
    pub(crate) fn load(&self, at: PageIndex, _reader: Reader<'_>) -> Visibility {
        // SAFETY: The reader keeps what it finds.
        unsafe { self.tree.load(at) }
    }

    /// Returns pages around `at` that are all the same; [`None`] behind the end of the file. Any
    /// context.
    ///
    /// The pages on either side may be the same, too: the result is one entry of the map.
    pub(crate) fn run_at(&self, at: PageIndex, _reader: Reader<'_>) -> Option<Run> {
        // SAFETY: The reader keeps what it finds.
        unsafe { self.tree.run_at(at) }
    }

    /// Allocates the nodes that storing `to` over `range` needs. The map does not change.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EBUSY` while there is another reservation: after its commit this one could have
    /// too few nodes.
    #[inline]
    pub fn reserve<'g>(
        &'g self,
        _writer: Writer<'g>,
        range: &PageRange,
        to: Visibility,
    ) -> Result<Reservation<'g>> {
        if self.reserved.get() {
            return Err(EBUSY);
        }
        // SAFETY: The writer is the only one.
        let spare = unsafe { self.tree.reserve(range, to) }.ok_or(ENOMEM)?;

        self.reserved.set(true);
        // INVARIANT: The nodes were reserved for this range. Only a reservation changes the map,
        // and there is no other.
        Ok(Reservation {
            spare,
            range: *range,
            to,
            map: self,
        })
    }
}

/// Memory set aside for one store; dropping it gives the memory back and changes nothing.
///
/// # Invariants
///
/// `spare` has the nodes that storing `to` over `range` needs, and the map has not changed since
/// they were counted. There is no other writer for as long as `'g`.
#[must_use = "dropping a reservation stores nothing"]
pub struct Reservation<'g> {
    spare: Spare<Slab>,
    range: PageRange,
    to: Visibility,
    map: &'g AttributeMap,
}

impl Reservation<'_> {
    /// Stores the attributes. Cannot fail.
    ///
    /// Before this, pages that become private were taken from the host, and pages that become
    /// shared were given up by their platform.
    #[inline]
    pub(crate) fn store(mut self) {
        // SAFETY: By the type's invariants this is the only writer.
        let stored = unsafe { self.map.tree.store(&self.range, self.to, &mut self.spare) };
        // By the type's invariants the nodes were enough.
        warn_on!(!stored);
    }
}

impl Drop for Reservation<'_> {
    #[inline]
    fn drop(&mut self) {
        self.map.reserved.set(false);
    }
}
