// SPDX-License-Identifier: GPL-2.0

//! Tests of the tree of the attribute map, which is the kernel's source.
//!
//! The model has an element for each page. The test provides the memory: allocations can fail, nodes
//! are counted, and memory that is freed behind readers stays readable until the test ends the
//! readers.

use std::{
    cell::RefCell,
    collections::HashMap,
    ptr::NonNull, //
};

use gmem_types::{
    range::{
        PageIndex,
        PageRange, //
    },
    visibility::Visibility, //
};
use proptest::prelude::*;

#[path = "../../../../rust/attribute_map/radix.rs"]
mod radix;

use radix::{
    Kind,
    Memory,
    Radix,
    BITMAP_PAGES,
    BITMAP_WORDS, //
};
use Visibility::{
    Private,
    Shared, //
};

/// Words of a node. Those of tables are enough for any fan-out here.
const WORDS: usize = 512;

#[derive(Default)]
struct Heap {
    /// Nodes that were allocated and not freed.
    live: HashMap<usize, (Kind, Box<[u64]>)>,
    /// Nodes among them that are freed when the readers are done.
    retired: Vec<usize>,
    /// For how many nodes there is memory, if that is limited.
    left: Option<usize>,
    /// How many nodes were retired since others could run, and the maximum of that.
    at_once: usize,
    most_at_once: usize,
}

thread_local! {
    static HEAP: RefCell<Heap> = RefCell::default();
}

/// Memory that is counted; each test has a thread and thus a heap of its own.
struct Counted;

impl Counted {
    /// How many nodes are in use.
    fn live() -> usize {
        HEAP.with_borrow(|heap| heap.live.len() - heap.retired.len())
    }

    fn of(kind: Kind) -> usize {
        HEAP.with_borrow(|heap| {
            let is =
                |(at, (of, _)): &(&usize, &(Kind, _))| *of == kind && !heap.retired.contains(at);
            heap.live.iter().filter(is).count()
        })
    }

    /// The readers are done.
    fn grace() {
        HEAP.with_borrow_mut(|heap| {
            for at in std::mem::take(&mut heap.retired) {
                assert!(heap.live.remove(&at).is_some(), "freed twice");
            }
        });
    }

    fn limit(left: Option<usize>) {
        HEAP.with_borrow_mut(|heap| heap.left = left);
    }
}

// SAFETY: A box of words, which is kept until the node is freed.
unsafe impl Memory for Counted {
    fn allocate(kind: Kind) -> Option<NonNull<()>> {
        HEAP.with_borrow_mut(|heap| {
            if let Some(left) = &mut heap.left {
                *left = left.checked_sub(1)?;
            }
            let words = match kind {
                Kind::Bitmap => BITMAP_WORDS,
                Kind::Table => WORDS,
            };
            // Unfilled memory is neither private nor shared.
            let mut node = vec![0x5a5a_5a5a_5a5a_5a5a; words].into_boxed_slice();
            let at = NonNull::new(node.as_mut_ptr().cast::<()>());
            heap.live.insert(node.as_ptr() as usize, (kind, node));
            at
        })
    }

    unsafe fn free(kind: Kind, node: NonNull<()>) {
        HEAP.with_borrow_mut(|heap| {
            let freed = heap.live.remove(&(node.as_ptr() as usize));
            assert_eq!(freed.expect("a node").0, kind);
        });
    }

    unsafe fn retire(kind: Kind, node: NonNull<()>) {
        HEAP.with_borrow_mut(|heap| {
            let at = node.as_ptr() as usize;
            assert_eq!(heap.live.get(&at).expect("a node").0, kind);
            assert!(!heap.retired.contains(&at), "retired twice");
            heap.retired.push(at);
            heap.at_once += 1;
            heap.most_at_once = heap.most_at_once.max(heap.at_once);
        });
    }

    fn reschedule() {
        HEAP.with_borrow_mut(|heap| heap.at_once = 0);
    }
}

/// A tree, and the expected state of each page.
struct Model<const FANOUT: usize> {
    tree: Radix<Counted, FANOUT>,
    pages: Vec<Visibility>,
}

fn range(start: u64, end: u64) -> PageRange {
    PageRange::new(PageIndex::new(start), PageIndex::new(end)).expect("a range has a page")
}

impl<const FANOUT: usize> Model<FANOUT> {
    fn new(pages: u64, initial: Visibility) -> Self {
        Self {
            tree: Radix::new(pages, initial),
            pages: vec![initial; pages as usize],
        }
    }

    /// Sets the state of pages, and checks the number of nodes; `false` without memory.
    fn store(&mut self, start: u64, end: u64, to: Visibility) -> bool {
        let pages = range(start, end);
        // SAFETY: One thread writes and reads.
        let Some(mut spare) = (unsafe { self.tree.reserve(&pages, to) }) else {
            return false;
        };
        // The reserved nodes must be enough: allocations fail from here on.
        Counted::limit(Some(0));
        // SAFETY: As above.
        assert!(unsafe { self.tree.store(&pages, to, &mut spare) });
        Counted::limit(None);
        let before = Counted::live();
        drop(spare);
        assert_eq!(Counted::live(), before, "no node is left over");
        self.pages[start as usize..end as usize].fill(to);
        true
    }

    fn at(&self, page: u64) -> Visibility {
        // SAFETY: One thread writes and reads.
        unsafe { self.tree.load(PageIndex::new(page)) }
    }

    /// Walks the file run by run; returns the number of lookups.
    fn check(&self) -> usize {
        let mut at = 0;
        let mut looks = 0;
        while at < self.pages.len() as u64 {
            // SAFETY: One thread writes and reads.
            let run = unsafe { self.tree.run_at(PageIndex::new(at)) }.expect("a page of the file");
            assert!(run.range.contains(PageIndex::new(at)));
            for page in run.range.start().get()..run.range.end().get() {
                assert_eq!(self.pages[page as usize], run.visibility, "page {page}");
            }
            at = run.range.end().get();
            looks += 1;
        }
        // SAFETY: As above.
        assert!(unsafe { self.tree.run_at(PageIndex::new(at)) }.is_none());
        assert_eq!(self.at(at), Private);
        looks
    }

    fn check_pages(&self) {
        for (page, &visibility) in self.pages.iter().enumerate() {
            assert_eq!(self.at(page as u64), visibility, "page {page}");
        }
    }
}

impl<const FANOUT: usize> Drop for Model<FANOUT> {
    fn drop(&mut self) {
        // SAFETY: One thread writes and reads.
        unsafe { self.tree.clear() };
        Counted::grace();
        if !std::thread::panicking() {
            assert_eq!(Counted::live(), 0, "all nodes are freed");
        }
    }
}

/// Borders of words, bitmaps and tables, and the pages next to them.
fn borders(pages: u64) -> Vec<u64> {
    let mut borders: Vec<u64> = (0..=pages)
        .step_by(64)
        .filter(|at| at % BITMAP_PAGES <= 64 || at % BITMAP_PAGES == 448)
        .chain([pages])
        .flat_map(|at| [at.saturating_sub(1), at, at + 1])
        .filter(|&at| at <= pages)
        .collect();
    borders.sort_unstable();
    borders.dedup();
    borders
}

/// Every range with an end near a border, twice: the second change over the result of the first.
fn every_range<const FANOUT: usize>(pages: u64, second: &[(u64, u64)]) {
    let ends = borders(pages);
    for initial in [Private, Shared] {
        for (n, &start) in ends.iter().enumerate() {
            for &end in &ends[n + 1..] {
                let mut model = Model::<FANOUT>::new(pages, initial);
                assert!(model.store(start, end, initial.opposite()));
                model.check();
                for &(start, end) in second {
                    assert!(model.store(start, end, initial));
                    model.check();
                }
                assert!(model.store(0, pages, initial));
                assert_eq!(model.check(), 1);
                assert_eq!(Counted::live(), 0, "a file of one kind has no node");
                Counted::grace();
            }
        }
    }
}

#[test]
fn every_range_of_one_bitmap() {
    every_range::<2>(1, &[]);
    every_range::<2>(65, &[(1, 64)]);
    every_range::<2>(512, &[(64, 448), (511, 512)]);
}

#[test]
fn every_range_of_small_trees() {
    // Two levels, three, and four of which the last is not full.
    every_range::<2>(1024, &[(0, 512), (100, 600)]);
    every_range::<2>(2000, &[(511, 1537)]);
    every_range::<4>(5 * 512 + 3, &[(1, 2), (2048, 2563)]);
}

/// Each page of a file is converted by itself, in an order that leaves both kinds side by side.
#[test]
fn page_by_page() {
    let mut model = Model::<4>::new(3000, Private);
    for step in [3, 2, 1] {
        for page in (0..3000).step_by(step) {
            assert!(model.store(page, page + 1, Shared));
        }
        model.check();
        model.check_pages();
    }
    // No bitmap is left that has one kind of page, the last one included, which is not full.
    assert_eq!(Counted::of(Kind::Bitmap), 0);
}

/// The allocation of each node of a change fails once; the tree has not changed then.
#[test]
fn no_memory_for_each_node() {
    let mut model = Model::<2>::new(4096, Private);
    assert!(model.store(1000, 1001, Shared));
    let before = Counted::live();

    for (start, end) in [(1, 2), (3, 4095), (700, 3000), (1000, 1002), (0, 4096)] {
        let mut nodes = 0;
        loop {
            Counted::limit(Some(nodes));
            // SAFETY: One thread writes and reads.
            let spare = unsafe { model.tree.reserve(&range(start, end), Shared) };
            Counted::limit(None);
            let got = Counted::live() - before;
            if spare.is_some() {
                assert_eq!(got, nodes);
                break;
            }
            assert_eq!(got, 0, "what was set aside before is freed");
            nodes += 1;
        }
        assert_eq!(
            nodes == 0,
            (start, end) == (1000, 1002) || end - start == 4096
        );
        // The one that succeeded was dropped.
        assert_eq!(Counted::live(), before);
        model.check();
    }
}

/// A change with too few nodes reports this. The pages do not change.
#[test]
fn too_few_nodes() {
    let mut model = Model::<2>::new(4096, Private);
    // SAFETY: One thread writes and reads.
    unsafe {
        let mut other = model.tree.reserve(&range(0, 4096), Shared).unwrap();
        assert!(!model.tree.store(&range(5, 6), Shared, &mut other));
    }
    model.check();
    assert!(model.store(5, 6, Shared));
    model.check();
}

/// Nobody waits for more than one node to be freed, however many there are: a processor reads at most
/// one table of entries before it lets others run.
#[test]
fn others_run_after_each_node() {
    for clear in [false, true] {
        let mut model = Model::<8>::new(1 << 15, Private);
        for page in (0..1 << 15).step_by(2) {
            assert!(model.store(page, page + 1, Shared));
        }
        let nodes = Counted::live();
        assert!(nodes > 64);
        HEAP.with_borrow_mut(|heap| heap.most_at_once = 0);
        if clear {
            // SAFETY: One thread writes and reads.
            unsafe { model.tree.clear() };
        } else {
            assert!(model.store(0, 1 << 15, Private));
        }
        assert_eq!(Counted::live(), 0);
        assert_eq!(HEAP.with_borrow(|heap| heap.most_at_once), 1);
        Counted::grace();
    }
}

/// A reader that found a node before a change frees it can continue to read.
#[test]
fn retired_nodes_stay() {
    let mut model = Model::<2>::new(4096, Private);
    for page in (0..4096).step_by(2) {
        assert!(model.store(page, page + 1, Shared));
    }
    let nodes = Counted::live();
    assert_eq!(nodes, 8 + 7);
    assert!(model.store(0, 4096, Private));
    assert_eq!(Counted::live(), 0);
    assert_eq!(HEAP.with_borrow(|heap| heap.live.len()), nodes);
    HEAP.with_borrow(|heap| {
        for (kind, words) in heap.live.values() {
            if *kind == Kind::Bitmap {
                assert!(words.iter().all(|&word| word == 0x5555_5555_5555_5555));
            }
        }
    });
}

/// The largest possible file, with the kernel's fan-out: few nodes, and few lookups.
#[test]
fn ends_of_the_index_space() {
    let pages = (1 << 51) - 1;
    let tree = Radix::<Counted, 512>::new(pages, Shared);
    let at = |page| {
        // SAFETY: One thread writes and reads.
        unsafe { tree.load(PageIndex::new(page)) }
    };
    let store = |start, end, to| {
        // SAFETY: As above.
        unsafe {
            let mut spare = tree.reserve(&range(start, end), to).unwrap();
            assert!(tree.store(&range(start, end), to, &mut spare));
        }
    };

    store(pages - 1, pages, Private);
    store(0, 1, Private);
    assert_eq!((at(0), at(1)), (Private, Shared));
    assert_eq!((at(pages - 2), at(pages - 1)), (Shared, Private));
    assert_eq!((at(pages), at(u64::MAX)), (Private, Private));
    // A path on either side, which have the highest table in common.
    assert_eq!(Counted::live(), 11);
    store(0, pages, Shared);
    assert_eq!(Counted::live(), 0);
    assert_eq!((at(0), at(pages - 1)), (Shared, Shared));
    Counted::grace();
}

/// The bound of api.rst and h52: at most a bitmap for 2 MiB of the file, and a table for 1 GiB.
#[test]
fn memory_is_bounded_by_the_file() {
    let mut model = Model::<512>::new(1 << 20, Private);
    for page in (0..1 << 20).step_by(512) {
        assert!(model.store(page, page + 1, Shared));
    }
    assert_eq!(Counted::of(Kind::Bitmap), 4 << 9);
    assert_eq!(Counted::of(Kind::Table), 4 + 1);
    // All further runs are free.
    for page in (0..1 << 13).step_by(2) {
        assert!(model.store(page, page + 1, Shared));
    }
    assert_eq!(Counted::of(Kind::Bitmap), 4 << 9);
}

/// Tables are freed by a request that writes much of them, and stay where pages change back and forth.
#[test]
fn tables_are_not_made_over_and_over() {
    let mut model = Model::<512>::new(1 << 18, Private);
    assert!(model.store(7, 8, Shared));
    assert!(model.store(7, 8, Private));
    assert_eq!(
        (Counted::of(Kind::Bitmap), Counted::of(Kind::Table)),
        (0, 1)
    );
    Counted::limit(Some(1));
    assert!(model.store(9, 10, Shared), "a bitmap, but no table");
    Counted::limit(None);
    // 63 entries are not enough, 64 are.
    assert!(model.store(0, 63 * 512, Private));
    assert_eq!(
        (Counted::of(Kind::Bitmap), Counted::of(Kind::Table)),
        (0, 1)
    );
    assert!(model.store(0, 63 * 512, Shared));
    assert!(model.store(0, 64 * 512, Private));
    assert_eq!(Counted::live(), 0);
    model.check();
}

fn visibility() -> impl Strategy<Value = Visibility> {
    prop_oneof![Just(Private), Just(Shared)]
}

/// Changes of pages near borders or anywhere, whose lengths are of any magnitude.
fn changes(pages: u64) -> impl Strategy<Value = Vec<(u64, u64, Visibility)>> {
    let end = prop_oneof![
        0..pages,
        (0..pages).prop_map(|at| at / 512 * 512),
        (0..pages).prop_map(move |at| (at / 64 * 64 + 1).min(pages - 1)),
    ];
    let length = prop_oneof![1u64..4, 1u64..600, 1u64..20_000];
    prop::collection::vec(
        (end, length, visibility())
            .prop_map(move |(start, length, to)| (start, (start + length).min(pages), to)),
        1..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// One change after the other, some of which find no memory, in trees of four heights.
    #[test]
    fn histories_agree_with_the_pages(
        initial in visibility(),
        changes in changes(30_000),
        left in prop::collection::vec(0usize..8, 60),
        dropped in prop::collection::vec(any::<bool>(), 60),
    ) {
        let mut model = Model::<4>::new(30_000, initial);
        for ((start, end, to), (left, dropped)) in changes.into_iter().zip(left.into_iter().zip(dropped)) {
            Counted::limit(Some(left));
            if dropped {
                // SAFETY: One thread writes and reads.
                drop(unsafe { model.tree.reserve(&range(start, end), to) });
            } else {
                model.store(start, end, to);
            }
            Counted::limit(None);
            Counted::grace();
            model.check();
            // The bound holds after any history.
            prop_assert!(Counted::of(Kind::Bitmap) <= 30_000usize.div_ceil(512));
            prop_assert!(Counted::of(Kind::Table) <= 15 + 4 + 1);
        }
        model.check_pages();
    }
}
