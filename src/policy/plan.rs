// SPDX-License-Identifier: GPL-2.0

//! Which pages a request changes, and which part of the attribute map.
//!
//! The map says for every page of a file whether it is shared or private, as entries of
//! consecutive pages. This file reads it through [`Attributes`] and never writes it. The cost of
//! everything here is proportional to the entries that a range touches, never to its pages.
//!
//! # Robustness
//!
//! The map is not trusted to be valid. An entry that does not contain the requested page ends the
//! walk. The rest of the range then counts as not yet having the requested state, so that no step
//! is left out for it. So every walk advances by at least one page with each lookup in the map, and
//! stays inside the range or the file.

use core::iter::FusedIterator;

use crate::request::Request;
use gmem_types::{
    content::Action,
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

/// The attribute map of a file.
pub trait Attributes {
    /// Returns pages that contain the page `at` and are all the same.
    ///
    /// Their neighbours may have the same visibility, too.
    fn run_at(&self, at: PageIndex) -> Run;
}

/// Returns the part of the map's entry at `at` that lies within `within`.
///
/// Returns [`None`] if `at` does not lie there, or if the map is invalid: the result
/// always contains `at`, so each walk ends.
fn look(attributes: &impl Attributes, at: PageIndex, within: &PageRange) -> Option<Run> {
    let run = attributes.run_at(at);
    let range = run.range.intersect(within)?;
    range.contains(at).then_some(Run { range, ..run })
}

/// The result of planning a request, given the current attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// All pages have the requested state, and their bytes need no work.
    Nothing,
    /// There is something to do.
    Change(Change),
}

impl Plan {
    /// Plans a request.
    ///
    /// `action` is what is done to the bytes of all allocated pages of the range, whether their
    /// attribute changes or not. The plan holds for as long as the map does not change.
    pub fn new(request: &Request, action: Action, attributes: &impl Attributes) -> Self {
        let first = Differing::new(request, attributes).next();

        if first.is_none() && action == Action::Leave {
            return Self::Nothing;
        }
        Self::Change(Change {
            request: *request,
            action,
            first,
        })
    }
}

/// Work to be done for a request: on attributes, on bytes, or on both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    request: Request,
    action: Action,
    /// The first pages that do not have the requested state yet.
    first: Option<PageRange>,
}

impl Change {
    /// Returns the request.
    pub const fn request(&self) -> Request {
        self.request
    }

    /// Returns the pages that the request is about.
    pub const fn range(&self) -> PageRange {
        self.request.range()
    }

    /// Returns what the pages are to be.
    pub const fn to(&self) -> Visibility {
        self.request.to()
    }

    /// Returns what is done to the bytes of the allocated pages of the range.
    pub const fn action(&self) -> Action {
        self.action
    }

    /// Tells whether at least one page does not have the requested state yet.
    ///
    /// If not, the content policy alone has work to do.
    pub const fn changes_attributes(&self) -> bool {
        self.first.is_some()
    }

    /// Tells whether no page of the range has the requested state.
    pub fn changes_all(&self) -> bool {
        self.first == Some(self.range())
    }

    /// Returns the pages to store in the map, or [`None`] if no attribute changes.
    pub const fn store(&self) -> Option<PageRange> {
        match self.first {
            Some(_) => Some(self.request.range()),
            None => None,
        }
    }

    /// Returns the parts of the range that do not have the requested state yet.
    ///
    /// They come in ascending order, and no two of them touch. `attributes` is the map for which
    /// the plan was made.
    pub fn differing<'a, A: Attributes>(&self, attributes: &'a A) -> Differing<'a, A> {
        Differing::new(&self.request, attributes)
    }

    /// Returns how many pages do not have the requested state yet, and in how many parts they
    /// lie.
    ///
    /// The map is not read if they are all of the range. `goes_on` is called after each part;
    /// [`None`] if it says no.
    pub fn count<A: Attributes>(
        &self,
        attributes: &A,
        goes_on: impl Fn() -> bool,
    ) -> Option<(u64, u64)> {
        match self.first {
            None => Some((0, 0)),
            Some(first) if first == self.range() => Some((first.len(), 1)),
            Some(_) => self
                .differing(attributes)
                .try_fold((0, 0), |(pages, parts), part| {
                    goes_on().then_some((pages + part.len(), parts + 1))
                }),
        }
    }
}

/// The parts of a range without the requested state, see [`Change::differing`].
#[derive(Debug)]
pub struct Differing<'a, A> {
    attributes: &'a A,
    to: Visibility,
    /// The pages that have not been checked.
    rest: Option<PageRange>,
}

// Deriving it would require a map that can be cloned.
impl<A> Clone for Differing<'_, A> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<'a, A: Attributes> Differing<'a, A> {
    fn new(request: &Request, attributes: &'a A) -> Self {
        Self {
            attributes,
            to: request.to(),
            rest: Some(request.range()),
        }
    }
}

impl<A: Attributes> Iterator for Differing<'_, A> {
    type Item = PageRange;

    fn next(&mut self) -> Option<PageRange> {
        let mut found: Option<PageRange> = None;

        while let Some(rest) = self.rest {
            let run = look(self.attributes, rest.start(), &rest).unwrap_or(Run {
                range: rest,
                visibility: self.to.opposite(),
            });
            self.rest = PageRange::new(run.range.end(), rest.end());
            if run.visibility != self.to {
                found = Some(found.map_or(run.range, |range| range.hull(&run.range)));
            } else if found.is_some() {
                break;
            }
        }
        found
    }
}

impl<A: Attributes> FusedIterator for Differing<'_, A> {}

/// Returns the pages from `at` on with the same attribute as the page `at`, up to where the
/// attributes change or the file ends.
///
/// An `at` behind the end of the file counts as its last page. Where the map is invalid at
/// `at`, the rest of the file counts as private, so that the host gets no access.
pub fn query(at: PageIndex, geometry: &Geometry, attributes: &impl Attributes) -> Run {
    let rest = geometry.whole().tail(at);
    let Some(mut run) = look(attributes, rest.start(), &rest) else {
        return Run {
            range: rest,
            visibility: Visibility::Private,
        };
    };

    while run.range.end() < rest.end() {
        match look(attributes, run.range.end(), &rest) {
            Some(next) if next.visibility == run.visibility => {
                run.range = run.range.hull(&next.range);
            }
            _ => break,
        }
    }
    run
}
