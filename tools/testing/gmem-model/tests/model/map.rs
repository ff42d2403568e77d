// SPDX-License-Identifier: GPL-2.0

//! An attribute map for the policy crate: entries of consecutive pages, stored over one another.

use std::cell::Cell;

use gmem_policy::Attributes;
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

pub(crate) fn range(start: u64, end: u64) -> PageRange {
    PageRange::new(PageIndex::new(start), PageIndex::new(end)).expect("a range has a page")
}

/// Entries that cover a file without gaps.
#[derive(Debug)]
pub(crate) struct Map {
    entries: Vec<Run>,
    looks: Cell<u64>,
}

impl Map {
    pub(crate) fn new(entries: Vec<Run>) -> Self {
        let mut at = 0;
        for entry in &entries {
            assert_eq!(entry.range.start().get(), at, "no gaps, no overlaps");
            at = entry.range.end().get();
        }
        assert_ne!(at, 0, "a file has a page");
        Self {
            entries,
            looks: Cell::new(0),
        }
    }

    /// One entry for each run of equal pages.
    pub(crate) fn canonical(pages: &[Visibility]) -> Self {
        Self::split(pages, 0)
    }

    /// As [`Map::canonical`], but with an entry that ends before page `i + 1` for each bit `i`.
    pub(crate) fn split(pages: &[Visibility], cuts: u64) -> Self {
        let mut entries: Vec<Run> = Vec::new();
        for (index, &visibility) in pages.iter().enumerate() {
            let page = range(index as u64, index as u64 + 1);
            let cut = index
                .checked_sub(1)
                .and_then(|border| cuts.checked_shr(border as u32));
            let cut = cut.is_some_and(|cuts| cuts & 1 != 0);
            match entries.last_mut() {
                Some(last) if last.visibility == visibility && !cut => {
                    last.range = range(last.range.start().get(), page.end().get());
                }
                _ => entries.push(Run {
                    range: page,
                    visibility,
                }),
            }
        }
        Self::new(entries)
    }

    pub(crate) fn entries(&self) -> &[Run] {
        &self.entries
    }

    pub(crate) fn page_count(&self) -> u64 {
        self.entries.last().expect("not empty").range.end().get()
    }

    /// The visibility of each page.
    pub(crate) fn pages(&self) -> Vec<Visibility> {
        let mut pages = Vec::new();
        for entry in &self.entries {
            pages.resize(entry.range.end().get() as usize, entry.visibility);
        }
        pages
    }

    /// How many entries have a page of `pages`.
    pub(crate) fn touched_by(&self, pages: PageRange) -> u64 {
        let touches =
            |entry: &&Run| entry.range.start() < pages.end() && pages.start() < entry.range.end();
        self.entries.iter().filter(touches).count() as u64
    }

    /// Whether no two neighbours are equal.
    pub(crate) fn is_canonical(&self) -> bool {
        self.entries
            .windows(2)
            .all(|pair| pair[0].visibility != pair[1].visibility)
    }

    /// Stores one entry, removes its pages from other entries, and merges it with its neighbours.
    pub(crate) fn store(&mut self, pages: PageRange, visibility: Visibility) {
        assert!(pages.end().get() <= self.page_count(), "inside the file");
        let mut entries = Vec::new();
        let (start, end) = (pages.start().get(), pages.end().get());
        for entry in &self.entries {
            let before = PageRange::new(entry.range.start(), entry.range.end().min(pages.start()));
            entries.extend(before.map(|range| Run { range, ..*entry }));
        }
        entries.push(Run {
            range: range(start, end),
            visibility,
        });
        for entry in &self.entries {
            let behind = PageRange::new(entry.range.start().max(pages.end()), entry.range.end());
            entries.extend(behind.map(|range| Run { range, ..*entry }));
        }
        entries.dedup_by(|next, last| {
            let stored = [last.range.end(), next.range.start()].contains(&pages.start())
                || last.range.end() == pages.end();
            let same = stored && last.visibility == next.visibility;
            if same {
                last.range = last.range.hull(&next.range);
            }
            same
        });
        *self = Self::new(entries);
    }

    /// How often the map was read since the last call.
    pub(crate) fn take_looks(&self) -> u64 {
        self.looks.take()
    }
}

impl Attributes for Map {
    fn run_at(&self, at: PageIndex) -> Run {
        self.looks.set(self.looks.get() + 1);
        let index = self
            .entries
            .partition_point(|entry| entry.range.end() <= at);
        *self
            .entries
            .get(index)
            .expect("only pages of the file are asked for")
    }
}
