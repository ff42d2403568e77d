// SPDX-License-Identifier: GPL-2.0

//! Blocks: as many pages of a file as one large mapping has, aligned, whose memory is aligned and in
//! one piece.
//!
//! They are folios of one page each: locks, references, records and failed memory are per page. A
//! block is only a place in memory, and is not recorded anywhere. The code looks for one when a guest
//! could have a large mapping. So nothing has to be kept up to date when a page leaves the file,
//! fails, or is converted.
//!
//! Some platforms are given a block at once, if none of its pages is theirs yet. All of its pages are
//! locked then, and each of them has a record afterwards, as if it were given alone.
//!
//! In files that were created so, a block can be one large folio instead, which the host maps at
//! once. **A folio is private or shared as a whole**: it is allocated only for pages of one kind, and
//! it is split before a part of it is converted. It is split before a part of it is freed, too. Then
//! the block has folios of several sizes, each aligned, which are as large as the splits leave them.

use crate::{
    attribute_map::Reader,
    bindings,
    fs::{
        address_space::{
            Exclusive,
            InvalidateGuard,
            Refused,
            Shared,
            Stable, //
        },
        inode::GmemInode,
        page_cache::{
            LockedFolio,
            PreparedFolio, //
        }, //
    },
    kvm::vm::{
        Pfn,
        Vm, //
    },
    mm::folio::Frame,
    task::{
        is_killed,
        reschedule,
        signal_pending, //
    },
    trace, //
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
use kernel::{
    prelude::*,
    sync::rcu, //
};

/// How many pages a block has: 2 to the power of this.
// CAST: A small number.
pub const ORDER: u8 = bindings::GMEM_BLOCK_ORDER as u8;

/// How many pages a block has.
pub const PAGES: u64 = 1 << ORDER;

/// Where in its block a page is, or a guest frame in the mapping of one.
#[inline]
pub(crate) const fn within(number: u64) -> u64 {
    number & (PAGES - 1)
}

/// The pages of a block of `inode` that has the page `at`, if one that is as large fits there.
#[inline]
fn around(inode: &GmemInode, at: PageIndex) -> Option<PageRange> {
    let start = at.get() - within(at.get());
    let end = start.checked_add(PAGES)?;
    let pages = PageRange::new(PageIndex::new(start), PageIndex::new(end))?;

    (end <= inode.geometry().pages()).then_some(pages)
}

/// The same, if all of these pages are private or all are shared. Any context.
///
/// It is one walk of the map, whose lowest nodes are for as many pages: where they differ, the run
/// ends within the node.
#[inline]
fn same_around(inode: &GmemInode, at: PageIndex, reader: Reader<'_>) -> Option<Run> {
    let pages = around(inode, at)?;
    let run = inode.run_for(at, reader);

    (run.range.intersect(&pages) == Some(pages)).then_some(Run {
        range: pages,
        ..run
    })
}

/// Evidence that one mapping can show a block: its memory is in one piece, all pages are in use and
/// have not failed, and all are private or all shared.
///
/// As for a single page that is looked up without a lock, it is valid until an invalidation begins.
pub(crate) struct Block {
    first: Pfn,
    start: PageIndex,
}

impl Block {
    /// Looks for the block with the page `at`. Any context.
    pub(crate) fn find(inode: &GmemInode, at: PageIndex, reader: Reader<'_>) -> Option<Self> {
        let same = same_around(inode, at, reader)?;
        Some(Self {
            first: memory(inode, at, true)?,
            start: same.range.start(),
        })
    }

    /// The frame of the page `at` of the block.
    pub(crate) fn pfn(&self, at: PageIndex) -> Pfn {
        Pfn::new(self.first.get() + (at.get() - self.start.get()))
    }
}

/// The first frame of the block with the page `at`, if its memory is in one piece, and, if asked
/// for, all pages are in use. Any context.
fn memory(inode: &GmemInode, at: PageIndex, in_use: bool) -> Option<Pfn> {
    let mut pfn = 0;
    // SAFETY: The mapping of a live inode is valid, and `pfn` valid for writes.
    let found = unsafe {
        bindings::gmem_mapping_block(inode.mapping(), at.get() as usize, in_use, &mut pfn)
    };
    found.then_some(Pfn::new(pfn))
}

impl InvalidateGuard<'_, Shared> {
    /// Allocates the folio of the first page of `range` that has none; if the range has all of its
    /// block, of which no page has one, and there is memory in one piece, those of the block. They
    /// are zeroed at their first use. Returns the pages behind, or those from one on that is behind
    /// many that have folios. `vm` counts blocks.
    ///
    /// # Errors
    ///
    /// `EINVAL` behind the end of the file, `ENOMEM`, and what else the page cache returns.
    pub fn allocate(&self, vm: &Vm, range: &PageRange) -> Result<Option<PageRange>> {
        let mapping = self.inode().mapping();
        let mut at = range.start().get() as usize;
        let last = range.last().get() as usize;
        // SAFETY: The mapping is valid.
        let found = unsafe { bindings::gmem_mapping_missing(mapping, &mut at, last) };
        // CAST: An index is an unsigned long, which has 64 bits here.
        let mut next = at as u64;
        if found {
            let at = PageIndex::new(next);
            // One that is occupied is counted once: what is left begins behind its first page.
            let whole = around(self.inode(), at)
                .filter(|block| block.intersect(range) == Some(*block))
                .filter(|block| self.allocate_block(vm, block.start()));
            if let Some(block) = whole {
                next = block.end().get();
            } else {
                drop(LockedFolio::get_if_missing(self.inode(), at, true)?);
                next += 1;
            }
        } else if next < range.end().get() && next - within(next) > range.start().get() {
            // The next look begins with all of the block that this one has ended in.
            next -= within(next);
        }
        Ok(PageRange::new(PageIndex::new(next), range.end()))
    }

    /// Allocates the pages from `at` on, of which one is missing, as a block, and returns whether that
    /// has been done: if the file has room for one there, none of them is allocated, and there is
    /// memory in one piece. If not, they can be allocated one by one, those that are missing. `vm`
    /// counts what came of it.
    ///
    /// A file with a NUMA policy gets none: the policy is for each page, and may want them in
    /// different places.
    pub(crate) fn allocate_block(&self, vm: &Vm, at: PageIndex) -> bool {
        let inode = self.inode();
        let fits = within(at.get()) == 0 && around(inode, at).is_some();

        // Where the MMU has no large mappings of guest_memfd there is no use for one.
        if !cfg!(CONFIG_HAVE_KVM_ARCH_GMEM_LARGE) || !fits {
            return false;
        }
        // A folio is private or shared as a whole. This is what makes it so; conversions, which are
        // kept out by the lock, split one before a part of it changes.
        // SAFETY: The map is written with the lock held exclusively only.
        let one_kind = || same_around(inode, at, unsafe { Reader::assume() }).is_some();
        let (mapping, index) = (inode.mapping(), at.get() as usize);

        let made = if !inode.policy().is_unset() {
            bindings::GMEM_BLOCK_POLICY
        } else if inode.has_large_folios() && one_kind() {
            // SAFETY: The mapping of a live inode is valid and takes folios of this size; the pages are
            // in the file, and the first one's index is a multiple of it.
            unsafe { bindings::gmem_mapping_add_large(mapping, index) }
        } else {
            // SAFETY: As above.
            unsafe { bindings::gmem_mapping_add_block(mapping, index) }
        };
        vm.count_blocks(made, 1);
        matches!(made, bindings::GMEM_BLOCK_MADE | bindings::GMEM_FOLIO_MADE)
    }
}

/// How often splitting a folio is tried: a fault that is just being served has a reference.
const TRIES: u32 = 8;

impl InvalidateGuard<'_, Exclusive> {
    /// Splits the folios that have pages of `range`, and others, where the range begins if `at_start`,
    /// and where it ends if `at_end`; sleeps.
    ///
    /// Large folios are added with the lock held shared, and nothing makes a folio larger. So no
    /// folio is across these ends until the lock is released.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if somebody holds a folio, `ENOMEM`; with its first page. No byte and no attribute has
    /// changed then.
    #[inline]
    pub(crate) fn split_around(
        &self,
        range: &PageRange,
        at_start: bool,
        at_end: bool,
    ) -> Result<(), Refused> {
        if !self.inode().has_large_folios() {
            return Ok(());
        }
        let (start, end) = (range.start(), range.end());
        // In the folio that could begin with the range, the range also ends. The split at the end goes
        // through the start then, and is the only one.
        let end_is_enough = start.get() != 0 && range.len() >> start.get().trailing_zeros() == 0;

        let at_end = at_end && within(end.get()) != 0;

        if at_end && end_is_enough {
            self.split_at(end)?;
        }
        // Folios are no larger than blocks, and aligned like these.
        if at_start && within(start.get()) != 0 {
            self.split_at(start)?;
        }
        if at_end && !end_is_enough {
            self.split_at(end)?;
        }
        Ok(())
    }

    /// Splits the folio, if it is a large one, that has both the page `at` and the page before. Between
    /// blocks there is none.
    ///
    /// It is out of line, as most files have no large folios.
    #[inline(never)]
    fn split_at(&self, at: PageIndex) -> Result<(), Refused> {
        let inode = self.inode();
        let mut first = at;
        let mut was_block = false;
        let mut result = Ok(());

        for tries in (0..TRIES).rev() {
            let Some(folio) = LockedFolio::find(inode, at) else {
                return Ok(());
            };
            // CAST: Less than the number of the page.
            let begins = PageIndex::new(at.get() - folio.within() as u64);
            if begins == at {
                return Ok(());
            }
            first = begins;
            was_block |= folio.pages() == PAGES;
            result = folio.split(tries == 0);
            if result != Err(EAGAIN) {
                break;
            }
            reschedule();
        }

        let errno = result.err().map_or(0, Error::to_errno);
        trace::split_folio(|| (inode.number(), inode.offset_of(first), errno));
        // It can be in parts if it is not as it should, too.
        let is_split = was_block
            && LockedFolio::find(inode, first).is_some_and(|folio| folio.pages() != PAGES);
        for file in inode.files(self) {
            if is_split {
                file.vm().count_blocks(bindings::GMEM_FOLIO_SPLIT, 1);
            }
            if errno != 0 {
                file.vm().count_blocks(bindings::GMEM_FOLIO_HELD, 1);
            }
        }
        result.map_err(|error| Refused { error, at: first })
    }
}

/// How many pages of a file are in blocks, at a moment.
pub struct Count {
    /// Their memory is in one piece.
    pub contiguous: u64,
    /// All of the block is in use and of one kind, too, so that one mapping can show it.
    pub large: u64,
    /// They are one folio.
    pub folios: u64,
}

impl Count {
    /// Counts; sleeps. [`None`] if there is a signal, as it takes a look at each page of each block.
    /// Where the MMU has no large mappings of guest_memfd there is nothing to count.
    ///
    /// No lock is taken, so that a block that changes meanwhile may be counted or not.
    pub fn of(inode: &GmemInode) -> Option<Self> {
        let mut count = Self {
            contiguous: 0,
            large: 0,
            folios: 0,
        };
        if !cfg!(CONFIG_HAVE_KVM_ARCH_GMEM_LARGE) {
            return Some(count);
        }
        let last = inode.geometry().pages() - 1;
        let mut next = 0;

        while next <= last {
            let mut found = next as usize;
            // SAFETY: The mapping of a live inode is valid.
            if !unsafe { bindings::gmem_mapping_next(inode.mapping(), &mut found, last as usize) } {
                break;
            }
            // CAST: An index is an unsigned long, which has 64 bits here.
            let at = PageIndex::new(found as u64);
            // SAFETY: As above.
            if unsafe { bindings::gmem_mapping_is_large(inode.mapping(), found) } {
                count.folios += PAGES;
            }
            if around(inode, at).is_some() && memory(inode, at, false).is_some() {
                count.contiguous += PAGES;
                if Block::find(inode, at, Reader::from(&rcu::read_lock())).is_some() {
                    count.large += PAGES;
                }
            }
            if signal_pending() {
                return None;
            }
            reschedule();
            next = at.get() - within(at.get()) + PAGES;
        }
        Some(count)
    }
}

/// Zeroes the other pages of the block with the page `at`, which has just been, as far as they were
/// never used, if one mapping can show it then; sleeps. They are the file's already: nothing is
/// allocated.
pub(crate) fn prepare_around(stable: &Stable<'_>, at: PageIndex) {
    let inode = stable.inode();
    // SAFETY: The map is written with the invalidate lock held exclusively only, and this is the
    // shared lock.
    let Some(Run { range: pages, .. }) = same_around(inode, at, unsafe { Reader::assume() }) else {
        return;
    };
    if memory(inode, at, false).is_none() {
        return;
    }
    let mut next = pages.start().get();
    while next < pages.end().get() && !is_killed() {
        let other = LockedFolio::find(inode, PageIndex::new(next));
        next += other.as_ref().map_or(1, LockedFolio::pages);
        // A page that has failed stays as it is, and so the block small.
        if let Some(folio) = other {
            let _ = folio.prepare();
        }
        reschedule();
    }
}

/// A block that a platform can be given as a whole. All of its pages are prepared, and private for as
/// long as this exists; their memory is in one piece and has not failed; no platform was given one.
///
/// # Invariants
///
/// There are [`PAGES`] folios of one page each, in the order of the file. They are in consecutive
/// frames from `first` on, which is aligned, and locked.
pub struct PrivateBlock<'p> {
    first: Pfn,
    folios: KVVec<PreparedFolio<'p>>,
}

impl<'p> PrivateBlock<'p> {
    /// Locks the pages of the block with the page `at`, which the file has already, and zeroes those
    /// that were never used; sleeps. [`None`] if this is no such block.
    ///
    /// Folios are locked from the first to the last. Others who lock several of a file, as memory
    /// management, wait for none of them with another one locked.
    pub(crate) fn lock(stable: &'p Stable<'_>, at: PageIndex) -> Option<Self> {
        let inode = stable.inode();
        // SAFETY: The map is written with the invalidate lock held exclusively only, and this is the
        // shared lock.
        let run = same_around(inode, at, unsafe { Reader::assume() })?;
        if run.visibility != Visibility::Private {
            return None;
        }
        let first = memory(inode, at, false)?;
        // A later fault on a block whose pages were given one by one locks none of them.
        // SAFETY: There is memory of a block.
        if unsafe { bindings::gmem_block_was_given(first.get()) } {
            return None;
        }

        // CAST: A small number.
        let mut folios = KVVec::with_capacity(PAGES as usize, GFP_KERNEL_ACCOUNT).ok()?;
        for (at, pfn) in (run.range.start().get()..run.range.end().get()).zip(first.get()..) {
            let folio = LockedFolio::find(inode, PageIndex::new(at))?;
            let fits = folio.pfn().get() == pfn && folio.pages() == 1 && !folio.is_poisoned();
            if !fits || folio.frame().assignment().is_some() || is_killed() {
                return None;
            }
            folios.push(folio.prepare().ok()?, GFP_KERNEL).ok()?;
            reschedule();
        }
        // INVARIANT: The range has as many pages, and each of them was checked.
        Some(Self { first, folios })
    }

    /// The frames of its pages, with their records.
    pub fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        self.folios.iter().map(PreparedFolio::frame)
    }

    /// The first frame.
    pub fn first(&self) -> Pfn {
        self.first
    }

    /// Whether the page `at` was zeroed, as nobody had used it before.
    pub fn is_first_use(&self, at: PageIndex) -> bool {
        // CAST: Less than the number of its pages.
        let folio = self.folios.get(within(at.get()) as usize);
        folio.is_some_and(PreparedFolio::is_first_use)
    }
}
