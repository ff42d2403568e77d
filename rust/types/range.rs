// SPDX-License-Identifier: GPL-2.0

//! Pages, bytes, and ranges of them in one file.
//!
//! Every shift and every sum of an index happens in this file. All quantities are 64 bits wide,
//! also on a machine whose `pgoff_t` is not.

/// The number of a page in a file, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(u64);

impl PageIndex {
    /// Makes the index of the page that has `index` pages before it.
    #[inline]
    pub const fn new(index: u64) -> Self {
        Self(index)
    }

    /// Returns the index as a number of pages.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A position in a file, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteOffset(u64);

impl ByteOffset {
    /// Makes the position that has `offset` bytes before it.
    #[inline]
    pub const fn new(offset: u64) -> Self {
        Self(offset)
    }

    /// Returns the position in bytes.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// The size of a page.
///
/// # Invariants
///
/// The shift is from [`PageSize::MIN_SHIFT`] to [`PageSize::MAX_SHIFT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSize {
    shift: u32,
}

impl PageSize {
    /// The base-two logarithm of the smallest page, 4 KiB.
    pub const MIN_SHIFT: u32 = 12;

    /// The base-two logarithm of the largest page, 1 GiB.
    pub const MAX_SHIFT: u32 = 30;

    /// Makes the size of pages of `1 << shift` bytes, or [`None`] if no machine has such pages.
    #[inline]
    pub const fn new(shift: u32) -> Option<Self> {
        if shift < Self::MIN_SHIFT || shift > Self::MAX_SHIFT {
            return None;
        }
        // INVARIANT: Both bounds have just been checked.
        Some(Self { shift })
    }

    /// Returns the size in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        // By the type's invariant the shift is smaller than the word, so "wrapping" only
        // says that no check is needed.
        1u64.wrapping_shl(self.shift)
    }

    /// Returns where the page at `index` starts.
    ///
    /// Exact for each index up to and including the number of pages of any [`Geometry`], because
    /// a geometry ends before byte `1 << 63`. The result for a larger index is meaningless.
    #[inline]
    pub const fn offset_of(self, index: PageIndex) -> ByteOffset {
        ByteOffset(index.0.wrapping_shl(self.shift))
    }

    /// Returns the page that holds the byte at `offset`.
    #[inline]
    pub const fn index_of(self, offset: ByteOffset) -> PageIndex {
        PageIndex(offset.0.wrapping_shr(self.shift))
    }

    /// Tells whether a number of bytes, or a position, is a multiple of the page size.
    #[inline]
    pub const fn is_aligned(self, bytes: u64) -> bool {
        // A page is a power of two and at least 2, so that nothing is lost by the subtraction.
        bytes & self.bytes().wrapping_sub(1) == 0
    }
}

/// Pages from `start` up to, and not including, `end`.
///
/// # Invariants
///
/// `start < end`: a range has at least one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageRange {
    start: PageIndex,
    end: PageIndex,
}

impl PageRange {
    /// Makes the range from `start` up to and not including `end`, or [`None`] if it is empty.
    #[inline]
    pub const fn new(start: PageIndex, end: PageIndex) -> Option<Self> {
        if start.0 >= end.0 {
            return None;
        }
        // INVARIANT: `start < end` has just been checked.
        Some(Self { start, end })
    }

    /// Returns the first page.
    #[inline]
    pub const fn start(&self) -> PageIndex {
        self.start
    }

    /// Returns the page after the last one.
    #[inline]
    pub const fn end(&self) -> PageIndex {
        self.end
    }

    /// Returns the last page, which is what C's inclusive interfaces want.
    #[inline]
    pub const fn last(&self) -> PageIndex {
        // By the type's invariant `end` is larger than some other index, so that it is not 0.
        PageIndex(self.end.0.wrapping_sub(1))
    }

    /// Returns the number of pages, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    #[inline]
    pub const fn len(&self) -> u64 {
        // By the type's invariant `start < end`.
        self.end.0.wrapping_sub(self.start.0)
    }

    /// Tells whether the page at `index` belongs to the range.
    #[inline]
    pub const fn contains(&self, index: PageIndex) -> bool {
        self.start.0 <= index.0 && index.0 < self.end.0
    }

    /// Returns the pages that both ranges have, or [`None`] if there are none.
    #[inline]
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Returns the first page of the range that lies at or after `index`.
    ///
    /// The cause of an error may be found in a folio that starts before the range; the page that is
    /// reported must not. An index after the range is returned as it is.
    #[inline]
    pub fn clamp(&self, index: PageIndex) -> PageIndex {
        self.start.max(index)
    }

    /// Returns the pages of the range from `at` on.
    ///
    /// That is the whole range if `at` lies before it, and its last page if `at` lies behind it.
    #[inline]
    pub fn tail(&self, at: PageIndex) -> Self {
        // INVARIANT: The start is at most the last page, which is smaller than the end.
        Self {
            start: self.clamp(at).min(self.last()),
            end: self.end,
        }
    }

    /// Returns the smallest range that has all the pages of both.
    #[inline]
    pub fn hull(&self, other: &Self) -> Self {
        // INVARIANT: The start does not grow and the end does not shrink, and `self` had a page.
        Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }
}

/// The number and the size of a file's pages.
///
/// # Invariants
///
/// - `pages` is not 0.
/// - `pages` times the page size is at most [`i64::MAX`], as `loff_t` demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    page_size: PageSize,
    pages: u64,
}

impl Geometry {
    /// Describes a file of `size_bytes` bytes.
    ///
    /// Returns [`None`] if the size is 0, not a multiple of the page size, or larger than a file
    /// can be (`loff_t` is signed).
    #[inline]
    pub const fn new(page_size: PageSize, size_bytes: u64) -> Option<Self> {
        // CAST: `i64::MAX` is positive.
        const MAX_BYTES: u64 = i64::MAX as u64;

        if size_bytes == 0 || size_bytes > MAX_BYTES || !page_size.is_aligned(size_bytes) {
            return None;
        }
        // INVARIANT: The size is a multiple of the page size, is not 0, and fits `loff_t`.
        Some(Self {
            page_size,
            pages: page_size.index_of(ByteOffset(size_bytes)).0,
        })
    }

    /// Returns the size of the file's pages.
    #[inline]
    pub const fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Returns the number of pages, at least 1.
    #[inline]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Returns the range of all pages.
    #[inline]
    pub const fn whole(&self) -> PageRange {
        // INVARIANT: By the type's invariant there is at least one page.
        PageRange {
            start: PageIndex(0),
            end: PageIndex(self.pages),
        }
    }

    /// Returns the pages of the `size` bytes at `offset`.
    ///
    /// Returns [`None`] if the size is 0, if `offset + size` overflows, if either is not a multiple
    /// of the page size, or if the bytes are not all inside the file.
    #[inline]
    pub const fn range(&self, offset: u64, size: u64) -> Option<PageRange> {
        let Some(end) = offset.checked_add(size) else {
            return None;
        };
        if !self.page_size.is_aligned(offset) || !self.page_size.is_aligned(size) {
            return None;
        }
        let start = self.page_size.index_of(ByteOffset(offset));
        let end = self.page_size.index_of(ByteOffset(end));
        if end.0 > self.pages {
            return None;
        }
        // The range is empty only if the size is 0.
        PageRange::new(start, end)
    }

    /// Returns the page that starts at `offset`, or [`None`] if no page of the file does.
    #[inline]
    pub const fn page_at(&self, offset: u64) -> Option<PageIndex> {
        let index = self.page_size.index_of(ByteOffset(offset));
        if !self.page_size.is_aligned(offset) || index.0 >= self.pages {
            return None;
        }
        Some(index)
    }
}
