// SPDX-License-Identifier: GPL-2.0

//! The rules of the documents, page by page and check by check.

use std::ops::Range;

use gmem_policy::{
    Change,
    Invalid,
    RawRequest, //
};
use gmem_types::{
    content::{
        Action,
        Content, //
    },
    visibility::Visibility, //
};

use crate::map::Map;

/// A file with the visibility and the byte of each page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) pages: Vec<Visibility>,
    pub(crate) bytes: Vec<u8>,
}

impl File {
    /// Gives each page a byte that no policy writes and that no other page has.
    pub(crate) fn new(pages: Vec<Visibility>) -> Self {
        assert!(pages.len() < 0xab, "a byte for each page");
        let bytes = (0..pages.len()).map(|page| 1 + page as u8).collect();
        Self { pages, bytes }
    }

    /// The effect of a conversion on SW_PROTECTED, according to the content contract.
    pub(crate) fn convert(
        &mut self,
        range: Range<usize>,
        to: Visibility,
        content: Content,
        scramble: bool,
    ) {
        for page in range {
            self.pages[page] = to;
            match content {
                Content::Preserve => (),
                Content::Zero => self.bytes[page] = 0,
                Content::None if scramble => self.bytes[page] = 0xab,
                Content::None => (),
            }
        }
    }

    /// The maximal ranges inside `range` that are not `to`.
    pub(crate) fn differing(&self, range: Range<usize>, to: Visibility) -> Vec<Range<u64>> {
        let mut parts: Vec<Range<u64>> = Vec::new();
        for page in range {
            if self.pages[page] == to {
                continue;
            }
            let page = page as u64;
            match parts.last_mut() {
                Some(part) if part.end == page => part.end += 1,
                _ => parts.push(page..page + 1),
            }
        }
        parts
    }

    /// The largest range around `range` whose pages have the same state.
    pub(crate) fn run_around(&self, range: Range<usize>) -> Range<u64> {
        let is = self.pages[range.start];
        let mut start = range.start;
        let mut end = range.end;
        while start > 0 && self.pages[start - 1] == is {
            start -= 1;
        }
        while end < self.pages.len() && self.pages[end] == is {
            end += 1;
        }
        start as u64..end as u64
    }
}

/// Carries a change out on a file the way the kernel does: contents by page, then one store.
pub(crate) fn carry_out(change: &Change, map: &mut Map, bytes: &mut [u8]) {
    for page in change.range().start().get()..change.range().end().get() {
        match change.action() {
            Action::Leave => (),
            Action::Zero => bytes[page as usize] = 0,
            Action::Scramble => bytes[page as usize] = gmem_types::content::SCRAMBLE_BYTE,
        }
    }
    if let Some(store) = change.store() {
        map.store(store, change.to());
    }
}

/// The rows of the user-space interface's table of errors that are about the struct, in their
/// order, as what is wrong if one of them holds.
pub(crate) fn invalid_set(
    raw: &RawRequest,
    page: u64,
    file_size: u64,
    has_private_memory: bool,
) -> Option<Invalid> {
    let [offset, size, attributes, flags, _error_offset, reserved @ ..] = raw.to_words();
    let (begin, end) = (u128::from(offset), u128::from(offset) + u128::from(size));
    let page = u128::from(page);
    [
        (flags & !3 != 0 || flags == 3, Invalid::Flags),
        (reserved != [0; 11], Invalid::Reserved),
        (!has_private_memory, Invalid::NoPrivateMemory),
        (attributes & !8 != 0, Invalid::Attributes),
        (size == 0, Invalid::Range),
        (end >= 1 << 64, Invalid::Range),
        (begin % page != 0 || end % page != 0, Invalid::Range),
        (end > u128::from(file_size), Invalid::Range),
    ]
    .into_iter()
    .find_map(|(wrong, invalid)| wrong.then_some(invalid))
}

/// The same for a question: all words but the offset are 0.
pub(crate) fn invalid_get(
    raw: &RawRequest,
    page: u64,
    file_size: u64,
    has_private_memory: bool,
) -> Option<Invalid> {
    let [offset, size, attributes, flags, error_offset, reserved @ ..] = raw.to_words();
    [
        (flags != 0, Invalid::Flags),
        (reserved != [0; 11] || error_offset != 0, Invalid::Reserved),
        (!has_private_memory, Invalid::NoPrivateMemory),
        (attributes != 0, Invalid::Attributes),
        (size != 0, Invalid::Range),
        (offset % page != 0, Invalid::Range),
        (offset >= file_size, Invalid::Range),
    ]
    .into_iter()
    .find_map(|(wrong, invalid)| wrong.then_some(invalid))
}
