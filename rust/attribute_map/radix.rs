// SPDX-License-Identifier: GPL-2.0

//! The tree of an attribute map, which is shaped like a page table.
//!
//! Its height is fixed by the size of the file. The lowest nodes are bitmaps of [`BITMAP_PAGES`]
//! pages, the nodes above are tables of `FANOUT` entries. An entry says that all its pages are
//! private, or that all are shared, or points to a node with the details. A file whose pages are
//! all the same has no node. The number of nodes is bounded by the size of the file.
//!
//! # Readers and the writer
//!
//! There is one writer at a time, and readers do not wait for it. Each word of a node is read and
//! written as a whole, so that a reader finds either the old or the new attribute of each page. A
//! node is filled before an entry points to it. A node that no entry points to any more keeps its
//! contents, and its memory is used again only when the readers that can have found it are done
//! (see [`Memory::retire`]).
//!
//! # When nodes are freed
//!
//! - An entry that a change covers as a whole no longer needs its node.
//! - A bitmap is freed by the change that leaves its pages all the same.
//! - A table is freed by the change that leaves its entries all the same, if that change wrote at
//!   least an eighth of them. So the cost of looking through a table is proportional to the change,
//!   and converting single pages back and forth does not make and free a table each time.
//!
//! Nothing here depends on the kernel: `tools/testing/gmem-model` compiles the same source.

use core::{
    array,
    marker::PhantomData,
    ptr::{
        self,
        NonNull, //
    },
    sync::atomic::{
        AtomicPtr,
        AtomicU64,
        Ordering, //
    }, //
};
use gmem_types::{
    range::{
        PageIndex,
        PageRange, //
    },
    visibility::{
        Run,
        Visibility, //
    }, //
};

/// Base-two logarithm of the number of pages of a bitmap.
const BITMAP_SHIFT: u32 = 9;
/// Pages of a bitmap.
pub(crate) const BITMAP_PAGES: u64 = 1 << BITMAP_SHIFT;
/// Words of a bitmap.
pub(crate) const BITMAP_WORDS: usize = (BITMAP_PAGES / u64::BITS as u64) as usize;

/// The part of a table that a change has to write at least to free the table.
const COLLAPSE_PART: u64 = 8;

/// A kind of node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// [`BITMAP_WORDS`] words of 64 bits.
    Bitmap,
    /// `FANOUT` pointers.
    Table,
}

/// Allocates and frees nodes.
///
/// # Safety
///
/// What [`allocate`](Memory::allocate) returns is valid for reads and writes of a node of that
/// kind, aligned for it, and has no other user until it is given back.
pub(crate) unsafe trait Memory {
    /// Allocates the memory of a node; may sleep.
    fn allocate(kind: Kind) -> Option<NonNull<()>>;

    /// Frees a node.
    ///
    /// # Safety
    ///
    /// It was allocated as this kind, and no reader can have found it.
    unsafe fn free(kind: Kind, node: NonNull<()>);

    /// Frees a node when all current readers are done.
    ///
    /// # Safety
    ///
    /// It was allocated as this kind, and no reader that begins now can find it.
    unsafe fn retire(kind: Kind, node: NonNull<()>);

    /// Lets others run; may sleep.
    fn reschedule();
}

/// The word of an entry.
///
/// These are core's atomics, not the kernel crate's, which are function calls: each fault does a
/// lookup. All loads of pointers acquire and all stores of them release, which is right in either
/// memory model.
struct Slot(AtomicPtr<()>);

/// A bit for each page; set for shared.
#[repr(transparent)]
struct Bitmap([AtomicU64; BITMAP_WORDS]);

#[repr(transparent)]
struct Table<const FANOUT: usize>([Slot; FANOUT]);

/// The state of an entry. Private is 0, so that unfilled memory gives no access.
#[derive(Clone, Copy)]
enum Entry {
    All(Visibility),
    Node(NonNull<()>),
}

impl Entry {
    #[inline]
    fn from_raw(raw: *mut ()) -> Self {
        match NonNull::new(raw) {
            None => Self::All(Visibility::Private),
            Some(node) if node.addr().get() == 1 => Self::All(Visibility::Shared),
            Some(node) => Self::Node(node),
        }
    }

    #[inline]
    fn into_raw(self) -> *mut () {
        match self {
            Self::All(Visibility::Private) => ptr::null_mut(),
            Self::All(Visibility::Shared) => ptr::without_provenance_mut(1),
            Self::Node(node) => node.as_ptr(),
        }
    }

    #[inline]
    fn is_all(self, visibility: Visibility) -> bool {
        matches!(self, Self::All(all) if all == visibility)
    }
}

impl Slot {
    #[inline]
    fn new(entry: Entry) -> Self {
        Self(AtomicPtr::new(entry.into_raw()))
    }

    #[inline]
    fn load(&self) -> Entry {
        Entry::from_raw(self.0.load(Ordering::Acquire))
    }

    #[inline]
    fn store(&self, entry: Entry) {
        self.0.store(entry.into_raw(), Ordering::Release);
    }
}

/// A word of a bitmap of which all pages are the same.
#[inline]
const fn filled(visibility: Visibility) -> u64 {
    match visibility {
        Visibility::Private => 0,
        Visibility::Shared => u64::MAX,
    }
}

impl Bitmap {
    #[inline]
    fn word(&self, word: usize) -> u64 {
        // PANIC: Not reached with a `word` of another bitmap.
        self.0
            .get(word)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    #[inline]
    fn visibility(&self, at: u64) -> Visibility {
        let at = at % BITMAP_PAGES;
        // CAST: Smaller than the number of words.
        let word = self.word((at / 64) as usize);
        if (word >> (at % 64)) & 1 == 0 {
            Visibility::Private
        } else {
            Visibility::Shared
        }
    }

    /// The end of the pages from `at` on that are all the same, and their state.
    ///
    /// The writer may be at work: each page has the state that its word has when it is read.
    fn run_at(&self, at: u64) -> (u64, Visibility) {
        let at = at % BITMAP_PAGES;
        // CAST: Smaller than the number of words.
        let first = (at / 64) as usize;
        let word = self.word(first);
        let visibility = if (word >> (at % 64)) & 1 == 0 {
            Visibility::Private
        } else {
            Visibility::Shared
        };
        let mut others = (word ^ filled(visibility)) & (u64::MAX << (at % 64));
        let mut index = first;

        while others == 0 {
            index += 1;
            if index == BITMAP_WORDS {
                return (BITMAP_PAGES, visibility);
            }
            others = self.word(index) ^ filled(visibility);
        }
        // CAST: Smaller than the number of words.
        let end = index as u64 * 64 + u64::from(others.trailing_zeros());
        (end, visibility)
    }

    /// Sets the pages `start..end`.
    #[inline]
    fn set(&self, start: u64, end: u64, to: Visibility) {
        let mut at = start;
        while at < end {
            // The pages from `at` on in the same word.
            let next = (at | 63).wrapping_add(1).min(end);
            let above = u64::MAX >> (63 - next.wrapping_sub(1) % 64);
            let mask = above & u64::MAX << (at % 64);
            // CAST: Smaller than the number of words.
            if let Some(word) = self.0.get((at / 64) as usize) {
                let old = word.load(Ordering::Relaxed);
                word.store(old & !mask | filled(to) & mask, Ordering::Relaxed);
            }
            at = next;
        }
    }

    #[inline]
    fn is_all(&self, visibility: Visibility) -> bool {
        (0..BITMAP_WORDS).all(|word| self.word(word) == filled(visibility))
    }
}

/// The tree.
///
/// # Invariants
///
/// - An entry that points to a node points to one of its level: a bitmap where `1 << BITMAP_SHIFT`
///   pages are an entry's, else a table. Such a node was allocated from `M`, is filled, and no
///   other entry points to it.
/// - An entry whose pages are all behind the end of the file points to no node.
/// - `1 << shift` pages are the root's, which are `pages` at least. The shift is [`BITMAP_SHIFT`] and a
///   multiple of `TABLE_SHIFT`, and smaller than 64.
pub(crate) struct Radix<M, const FANOUT: usize> {
    root: Slot,
    shift: u32,
    pages: u64,
    _memory: PhantomData<M>,
}

impl<M: Memory, const FANOUT: usize> Radix<M, FANOUT> {
    /// Base-two logarithm of the number of entries of a table.
    const TABLE_SHIFT: u32 = {
        assert!(FANOUT.is_power_of_two() && FANOUT > 1);
        FANOUT.trailing_zeros()
    };

    /// Makes the tree of a file of as many pages, which are all the same. Allocates nothing.
    pub(crate) const fn new(pages: u64, initial: Visibility) -> Self {
        // A file cannot have as many pages: its size in bytes is a 63-bit number.
        assert!(pages < 1 << 52);
        let mut shift = BITMAP_SHIFT;
        while 1 << shift < pages {
            shift += Self::TABLE_SHIFT;
        }
        let root = match initial {
            Visibility::Private => ptr::null_mut(),
            Visibility::Shared => ptr::without_provenance_mut(1),
        };
        // INVARIANT: There is no node, and the root has all pages.
        Self {
            root: Slot(AtomicPtr::new(root)),
            shift,
            pages,
            _memory: PhantomData,
        }
    }

    /// The table at `node`.
    ///
    /// # Safety
    ///
    /// An entry of a table's level points to the node, or pointed to it when the caller already
    /// could read it.
    #[inline]
    unsafe fn table<'a>(node: NonNull<()>) -> &'a Table<FANOUT> {
        // SAFETY: By the type's invariants and the contract of this function.
        unsafe { node.cast().as_ref() }
    }

    /// The bitmap at `node`.
    ///
    /// # Safety
    ///
    /// As for [`table`](Self::table).
    #[inline]
    unsafe fn bitmap<'a>(node: NonNull<()>) -> &'a Bitmap {
        // SAFETY: By the type's invariants and the contract of this function.
        unsafe { node.cast().as_ref() }
    }

    /// The entry of `table` that has the page `at`, each having `1 << shift` pages.
    #[inline]
    fn slot(table: &Table<FANOUT>, at: u64, shift: u32) -> &Slot {
        // CAST: Fewer than FANOUT.
        // PANIC: The remainder is an index of the array.
        // By the type's invariants the shift is smaller than the word.
        &table.0[at.wrapping_shr(shift) as usize % FANOUT]
    }

    /// Returns whether the page `at` is private or shared; private behind the end of the file.
    ///
    /// # Safety
    ///
    /// No node that a reader can have found since the beginning of the call, or earlier, is freed
    /// during the call.
    #[inline]
    pub(crate) unsafe fn load(&self, at: PageIndex) -> Visibility {
        let at = at.get();
        if at >= self.pages {
            return Visibility::Private;
        }
        let mut entry = self.root.load();
        let mut shift = self.shift;
        loop {
            let node = match entry {
                Entry::All(visibility) => return visibility,
                Entry::Node(node) => node,
            };
            if shift == BITMAP_SHIFT {
                // SAFETY: The entry was found in this call, at a bitmap's level.
                return unsafe { Self::bitmap(node) }.visibility(at);
            }
            // Not below a bitmap's, which is a number of levels away.
            shift = shift.wrapping_sub(Self::TABLE_SHIFT);
            // SAFETY: The entry was found in this call, at a table's level.
            entry = Self::slot(unsafe { Self::table(node) }, at, shift).load();
        }
    }

    /// Returns pages that include `at` and are all the same; [`None`] behind the end of the file.
    ///
    /// They end where the state changes or where the entry ends, and the pages behind them may be
    /// the same. It takes one walk down the tree, and reads eight words at most.
    ///
    /// # Safety
    ///
    /// As for [`load`](Self::load).
    pub(crate) unsafe fn run_at(&self, at: PageIndex) -> Option<Run> {
        let at = at.get();
        if at >= self.pages {
            return None;
        }
        let mut entry = self.root.load();
        let mut shift = self.shift;
        let (start, end, visibility) = loop {
            let base = at >> shift << shift;
            let node = match entry {
                Entry::All(visibility) => break (base, base + (1 << shift), visibility),
                Entry::Node(node) => node,
            };
            if shift == BITMAP_SHIFT {
                // SAFETY: The entry was found in this call, at a bitmap's level.
                let (end, visibility) = unsafe { Self::bitmap(node) }.run_at(at);
                break (at, base + end, visibility);
            }
            // Not below a bitmap's, which is a number of levels away.
            shift = shift.wrapping_sub(Self::TABLE_SHIFT);
            // SAFETY: The entry was found in this call, at a table's level.
            entry = Self::slot(unsafe { Self::table(node) }, at, shift).load();
        };
        let range = PageRange::new(PageIndex::new(start), PageIndex::new(end.min(self.pages)))?;
        Some(Run { range, visibility })
    }

    /// The part of the root's pages that a change of `range` covers.
    ///
    /// There are no pages behind the end of the file, so that a change up to there covers them.
    fn covered(&self, range: &PageRange) -> (u64, u64) {
        let end = range.end().get();
        if end >= self.pages {
            (range.start().get(), 1 << self.shift)
        } else {
            (range.start().get(), end)
        }
    }

    /// Allocates the nodes that setting the pages of `range` needs.
    ///
    /// [`None`] if there is no memory. The tree does not change.
    ///
    /// # Safety
    ///
    /// The caller is the only writer.
    pub(crate) unsafe fn reserve(&self, range: &PageRange, to: Visibility) -> Option<Spare<M>> {
        let mut spare = Spare::new();
        let (start, end) = self.covered(range);
        // SAFETY: By the contract of this function.
        if unsafe { self.bitmap_with(start, end) }.is_some() {
            return Some(spare);
        }
        // SAFETY: By the contract of this function.
        let done =
            unsafe { Self::prepare(self.root.load(), self.shift, start, end, to, &mut spare) };
        done.then_some(spare)
    }

    /// [`reserve`](Self::reserve) for the pages `start..end` of an entry that has `1 << shift`.
    ///
    /// Calls itself once for each level, and twice at one level at most.
    ///
    /// # Safety
    ///
    /// The caller is the only writer. The entry is one of the tree.
    unsafe fn prepare(
        entry: Entry,
        shift: u32,
        start: u64,
        end: u64,
        to: Visibility,
        spare: &mut Spare<M>,
    ) -> bool {
        if start >= end || (start, end) == (0, 1 << shift) || entry.is_all(to) {
            return true;
        }
        if shift == BITMAP_SHIFT {
            return matches!(entry, Entry::Node(_)) || spare.add(Kind::Bitmap);
        }
        if matches!(entry, Entry::All(_)) && !spare.add(Kind::Table) {
            return false;
        }
        let below = shift - Self::TABLE_SHIFT;
        borders(start, end, below)
            .into_iter()
            .flatten()
            .all(|(at, start, end)| {
                let entry = match entry {
                    Entry::All(_) => entry,
                    // SAFETY: The writer's nodes stay, and this is an entry of a table's level.
                    Entry::Node(node) => Self::slot(unsafe { Self::table(node) }, at, below).load(),
                };
                // SAFETY: By the contract of this function.
                unsafe { Self::prepare(entry, below, start, end, to, spare) }
            })
    }

    /// Sets the pages of `range`. Returns whether the spare nodes were enough.
    ///
    /// They are if they were reserved for the same change, and the tree has not changed since.
    ///
    /// # Safety
    ///
    /// The caller is the only writer.
    pub(crate) unsafe fn store(
        &self,
        range: &PageRange,
        to: Visibility,
        spare: &mut Spare<M>,
    ) -> bool {
        let (start, end) = self.covered(range);
        // SAFETY: By the contract of this function.
        let Some((slot, bitmap)) = (unsafe { self.bitmap_with(start, end) }) else {
            if (start, end) == (0, 1 << self.shift) {
                // SAFETY: By the contract of this function.
                unsafe { Self::replace(&self.root, self.shift, self.pages, to) };
                return true;
            }
            // SAFETY: By the contract of this function.
            return unsafe { Self::write(&self.root, self.shift, start, end, to, spare) };
        };
        let base = start >> BITMAP_SHIFT << BITMAP_SHIFT;
        bitmap.set(start - base, end - base, to);
        if bitmap.is_all(to) {
            // SAFETY: By the contract of this function.
            unsafe { Self::replace(slot, BITMAP_SHIFT, BITMAP_PAGES, to) };
        }
        true
    }

    /// Returns the bitmap that has all of the pages `start..end` and more, if there is one, and the
    /// entry that points to it. Most of the time guests convert only a few pages.
    ///
    /// # Safety
    ///
    /// The caller is the only writer.
    #[inline]
    unsafe fn bitmap_with(&self, start: u64, end: u64) -> Option<(&Slot, &Bitmap)> {
        let same = start >> BITMAP_SHIFT == end.wrapping_sub(1) >> BITMAP_SHIFT;
        if start >= end || !same || end - start == BITMAP_PAGES {
            return None;
        }
        let (mut slot, mut shift) = (&self.root, self.shift);
        while shift != BITMAP_SHIFT {
            let Entry::Node(node) = slot.load() else {
                return None;
            };
            // Not below a bitmap's, which is a number of levels away.
            shift = shift.wrapping_sub(Self::TABLE_SHIFT);
            // SAFETY: The writer's nodes stay, and this is an entry of a table's level.
            slot = Self::slot(unsafe { Self::table(node) }, start, shift);
        }
        match slot.load() {
            // SAFETY: The writer's nodes stay, and this is an entry of a bitmap's level.
            Entry::Node(node) => Some((slot, unsafe { Self::bitmap(node) })),
            Entry::All(_) => None,
        }
    }

    /// [`store`](Self::store) for the pages `start..end` of an entry that has `1 << shift`.
    ///
    /// Calls itself once for each level, and twice at one level at most.
    ///
    /// # Safety
    ///
    /// The caller is the only writer. The entry is one of the tree.
    unsafe fn write(
        slot: &Slot,
        shift: u32,
        start: u64,
        end: u64,
        to: Visibility,
        spare: &mut Spare<M>,
    ) -> bool {
        let mut entry = slot.load();
        if start >= end || entry.is_all(to) {
            return true;
        }
        if (start, end) == (0, 1 << shift) {
            // SAFETY: By the contract of this function.
            unsafe { Self::replace(slot, shift, 1 << shift, to) };
            return true;
        }

        if let Entry::All(old) = entry {
            let node = if shift == BITMAP_SHIFT {
                spare.bitmap(old)
            } else {
                spare.table::<FANOUT>(old)
            };
            let Some(node) = node else {
                return false;
            };
            // INVARIANT: The node is new, of the entry's level, and has the same state as the entry.
            entry = Entry::Node(node);
            slot.store(entry);
        }
        let Entry::Node(node) = entry else {
            return false;
        };

        let all_the_same = if shift == BITMAP_SHIFT {
            // SAFETY: The writer's nodes stay, and this is an entry of a bitmap's level.
            let bitmap = unsafe { Self::bitmap(node) };
            bitmap.set(start, end, to);
            bitmap.is_all(to)
        } else {
            let below = shift - Self::TABLE_SHIFT;
            // SAFETY: The writer's nodes stay, and this is an entry of a table's level.
            let table = unsafe { Self::table(node) };
            for (at, start, end) in borders(start, end, below).into_iter().flatten() {
                // SAFETY: By the contract of this function.
                if !unsafe {
                    Self::write(Self::slot(table, at, below), below, start, end, to, spare)
                } {
                    return false;
                }
            }
            // The entries that are covered as a whole.
            let (first, last) = ((start + (1 << below) - 1) >> below, end >> below);
            for at in first..last {
                // SAFETY: By the contract of this function.
                unsafe {
                    Self::replace(Self::slot(table, at << below, below), below, 1 << below, to)
                };
            }
            // CAST: A table has at most as many entries as a page has bytes.
            last.saturating_sub(first) * COLLAPSE_PART >= FANOUT as u64
                && table.0.iter().all(|slot| slot.load().is_all(to))
        };
        if all_the_same {
            // SAFETY: By the contract of this function.
            unsafe { Self::replace(slot, shift, 1 << shift, to) };
        }
        true
    }

    /// Sets all pages of an entry, and frees the nodes below it.
    ///
    /// # Safety
    ///
    /// The caller is the only writer. The entry is one of the tree and has `1 << shift` pages, of
    /// which no more than the first `pages`, of which there are some, are in the file.
    unsafe fn replace(slot: &Slot, shift: u32, pages: u64, to: Visibility) {
        let old = slot.load();
        slot.store(Entry::All(to));
        // SAFETY: No entry points there any more.
        unsafe { Self::retire(old, shift, pages) };
    }

    /// Frees the nodes below an entry.
    ///
    /// Calls itself once for each level. Lets others run after each node. Most entries have no node:
    /// it looks at those that can have one, and calls itself for those that have.
    ///
    /// # Safety
    ///
    /// The entry had `1 << shift` pages, of which no more than the first `pages`, of which there are
    /// some, are in the file. It is no longer in the tree. The caller is the only writer.
    unsafe fn retire(entry: Entry, shift: u32, pages: u64) {
        let Entry::Node(node) = entry else {
            return;
        };
        let kind = if shift == BITMAP_SHIFT {
            Kind::Bitmap
        } else {
            let below = shift - Self::TABLE_SHIFT;
            // CAST: At most FANOUT.
            let entries = ((pages - 1) >> below) as usize + 1;
            // SAFETY: Only the calls below free nodes, and this node is freed last.
            for slot in unsafe { Self::table(node) }.0.iter().take(entries) {
                let entry = slot.load();
                if let Entry::Node(_) = entry {
                    // SAFETY: No entry points to the table, so none of its entries is in the tree.
                    unsafe { Self::retire(entry, below, 1 << below) };
                }
            }
            Kind::Table
        };
        // SAFETY: No entry of the tree leads to the node. It was allocated as the kind of its level.
        unsafe { M::retire(kind, node) };
        M::reschedule();
    }

    /// Makes all pages private, and frees all nodes.
    ///
    /// # Safety
    ///
    /// The caller is the only writer.
    pub(crate) unsafe fn clear(&self) {
        // SAFETY: By the contract of this function.
        unsafe { Self::replace(&self.root, self.shift, self.pages, Visibility::Private) }
    }
}

/// The entries that a change of the pages `start..end` of a table covers in part: for each its first
/// page, and the pages within it. An entry has `1 << shift` pages.
fn borders(start: u64, end: u64, shift: u32) -> [Option<(u64, u64, u64)>; 2] {
    let size = 1 << shift;
    let part = |at: u64, start: u64, end: u64| {
        let (start, end) = (start.max(at) - at, end.min(at + size) - at);
        ((start, end) != (0, size)).then_some((at, start, end))
    };
    let (first, last) = (start >> shift << shift, (end - 1) >> shift << shift);

    [
        part(first, start, end),
        (first != last).then(|| part(last, start, end)).flatten(),
    ]
}

/// Nodes that were reserved for a change; dropping it frees them.
///
/// # Invariants
///
/// Both are lists of nodes of `M` that are not in a tree. The first word of each is the next one.
pub(crate) struct Spare<M: Memory> {
    bitmaps: *mut (),
    tables: *mut (),
    _memory: PhantomData<M>,
}

impl<M: Memory> Spare<M> {
    fn new() -> Self {
        // INVARIANT: Both lists are empty.
        Self {
            bitmaps: ptr::null_mut(),
            tables: ptr::null_mut(),
            _memory: PhantomData,
        }
    }

    fn list(&mut self, kind: Kind) -> &mut *mut () {
        match kind {
            Kind::Bitmap => &mut self.bitmaps,
            Kind::Table => &mut self.tables,
        }
    }

    /// Reserves a node; returns whether there was memory.
    fn add(&mut self, kind: Kind) -> bool {
        let Some(node) = M::allocate(kind) else {
            return false;
        };
        let list = self.list(kind);
        // SAFETY: A node of either kind has room for a pointer, and this one has no other user.
        unsafe { node.cast::<*mut ()>().write(*list) };
        // INVARIANT: The node is in no tree, and its first word points to the former first node.
        *list = node.as_ptr();
        true
    }

    fn take(&mut self, kind: Kind) -> Option<NonNull<()>> {
        let list = self.list(kind);
        let node = NonNull::new(*list)?;
        // SAFETY: By the type's invariants.
        // INVARIANT: The rest of the list is one.
        *list = unsafe { node.cast::<*mut ()>().read() };
        Some(node)
    }

    /// Takes a bitmap, whose pages are all the same.
    fn bitmap(&mut self, all: Visibility) -> Option<NonNull<()>> {
        let node = self.take(Kind::Bitmap)?;
        let bitmap = Bitmap(array::from_fn(|_| AtomicU64::new(filled(all))));
        // SAFETY: The node is a bitmap that nobody else knows.
        unsafe { node.cast().write(bitmap) };
        Some(node)
    }

    /// Takes a table, whose pages are all the same.
    fn table<const FANOUT: usize>(&mut self, all: Visibility) -> Option<NonNull<()>> {
        let node = self.take(Kind::Table)?;
        for index in 0..FANOUT {
            // SAFETY: The node is a table of as many entries that nobody else knows.
            unsafe {
                node.cast::<Slot>()
                    .add(index)
                    .write(Slot::new(Entry::All(all)))
            };
        }
        Some(node)
    }
}

impl<M: Memory> Drop for Spare<M> {
    fn drop(&mut self) {
        for kind in [Kind::Bitmap, Kind::Table] {
            while let Some(node) = self.take(kind) {
                // SAFETY: By the type's invariants the node is in no tree, nor was it in one.
                unsafe { M::free(kind, node) };
            }
        }
    }
}
