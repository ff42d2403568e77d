// SPDX-License-Identifier: GPL-2.0

//! Test bodies that run under cargo and, in the kernel, under KUnit.
//!
//! Each returns what did not hold instead of panicking, so that the caller can report it the way
//! its test framework wants. [`ALL`] has all of them by name.

use crate::{
    contract::{
        action,
        capability,
        capability_any,
        Refusal, //
    },
    mapping::Mapping,
    plan::{
        query,
        Attributes,
        Change,
        Plan, //
    },
    request::{
        Invalid,
        Query,
        RawRequest,
        Request, //
    }, //
};
use gmem_types::{
    content::{
        Action,
        Content, //
    },
    platform::{
        Base,
        Platform, //
    },
    range::{
        ByteOffset,
        Geometry,
        PageIndex,
        PageRange,
        PageSize, //
    },
    visibility::{
        Run,
        Visibility, //
    }, //
};

/// The outcome of a check: what did not hold, if something did not.
pub type Check = Result<(), &'static str>;

macro_rules! check {
    ($condition:expr) => {
        if !$condition {
            return Err(concat!("line ", line!(), ": ", stringify!($condition)));
        }
    };
}

/// Lists the checks, and makes each a test of its own under cargo.
macro_rules! list {
    ($($name:ident,)*) => {
        /// All checks, with their names.
        pub const ALL: &[(&str, fn() -> Check)] = &[$((stringify!($name), $name),)*];

        #[cfg(test)]
        mod tests {
            $(#[test]
            fn $name() {
                assert_eq!(super::$name(), Ok(()));
            })*

            /// Without this, a check that nobody calls would look like one that passes.
            #[test]
            fn all_are_listed() {
                let written = include_str!("checks.rs").matches("\npub fn ").count();
                assert_eq!(written, super::ALL.len());
            }
        }
    };
}

/// Calls a macro with the names of all checks, so that each test framework makes its tests of them.
#[macro_export]
macro_rules! for_each_check {
    ($then:ident) => {
        $then! {
            page_size_has_limits,
            offsets_are_64_bits_wide,
            range_is_never_empty,
            range_arithmetic,
            clamp_stays_inside_the_request,
            geometry_checks_the_size,
            geometry_checks_the_range,
            content_flags,
            visibility_attributes,
            raw_request_words,
            request_order_of_checks,
            request_ignores_error_offset,
            query_order_of_checks,
            pages_that_nobody_owns,
            owned_pages,
            capabilities_follow_the_contract,
            plan_nothing_to_do,
            plan_policy_without_a_change,
            plan_skips_what_is_settled,
            plan_stores_what_is_asked_for,
            plan_at_both_ends_of_the_file,
            query_walks_the_runs,
            senseless_map_ends_every_walk,
            mapping_is_whole_pages,
            mapping_becomes_shorter,
        }
    };
}

for_each_check!(list);

const PAGE: u64 = 4096;

const SHARED: Visibility = Visibility::Shared;
const PRIVATE: Visibility = Visibility::Private;

const LEAVE: Action = Action::Leave;

/// The entries of a map: for each the page at which it ends, and the state of its pages.
struct Map {
    whole: PageRange,
    entries: &'static [(u64, Visibility)],
}

impl Attributes for Map {
    fn run_at(&self, at: PageIndex) -> Run {
        let mut start = 0;

        for &(end, visibility) in self.entries {
            if let Ok(range) = pages(start, end) {
                if range.contains(at) {
                    return Run { range, visibility };
                }
            }
            start = end;
        }
        // There is no reason to ask about pages behind the file.
        Run {
            range: self.whole,
            visibility: SHARED,
        }
    }
}

/// A map that always returns the same entry.
struct Stubborn(Run);

impl Attributes for Stubborn {
    fn run_at(&self, _at: PageIndex) -> Run {
        self.0
    }
}

fn page_size() -> Result<PageSize, &'static str> {
    PageSize::new(12).ok_or("no page size")
}

fn file(pages: u64) -> Result<Geometry, &'static str> {
    Geometry::new(page_size()?, pages * PAGE).ok_or("no file of that many pages")
}

fn map(pages: u64, entries: &'static [(u64, Visibility)]) -> Result<Map, &'static str> {
    Ok(Map {
        whole: file(pages)?.whole(),
        entries,
    })
}

fn pages(start: u64, end: u64) -> Result<PageRange, &'static str> {
    PageRange::new(PageIndex::new(start), PageIndex::new(end)).ok_or("no page in the range")
}

fn raw(start: u64, end: u64, to: Visibility) -> RawRequest {
    RawRequest {
        offset: start * PAGE,
        size: (end - start) * PAGE,
        attributes: to.attributes(),
        ..RawRequest::default()
    }
}

/// Plans to make pages of the file of a map shared or private.
fn plan(
    start: u64,
    end: u64,
    to: Visibility,
    action: Action,
    map: &Map,
) -> Result<Plan, &'static str> {
    let geometry = file(map.whole.len())?;
    let request = Request::parse(&raw(start, end, to), &geometry, true)
        .map_err(|_| "the request is not legal")?;
    Ok(Plan::new(&request, action, map))
}

/// As [`plan`], where something is to be done.
fn change(
    start: u64,
    end: u64,
    to: Visibility,
    action: Action,
    map: &Map,
) -> Result<Change, &'static str> {
    match plan(start, end, to, action, map)? {
        Plan::Change(change) => Ok(change),
        Plan::Nothing => Err("nothing is planned"),
    }
}

/// Pages have 4 KiB to 1 GiB.
pub fn page_size_has_limits() -> Check {
    check!(PageSize::new(11).is_none());
    check!(PageSize::new(31).is_none());
    check!(PageSize::new(64).is_none());
    check!(PageSize::new(u32::MAX).is_none());
    check!(PageSize::new(12).map(PageSize::bytes) == Some(4096));
    check!(PageSize::new(16).map(PageSize::bytes) == Some(65536));
    check!(PageSize::new(30).map(PageSize::bytes) == Some(1 << 30));

    let size = page_size()?;
    check!(size.is_aligned(0));
    check!(size.is_aligned(4096));
    check!(size.is_aligned(1 << 63));
    check!(!size.is_aligned(1));
    check!(!size.is_aligned(2048));
    check!(!size.is_aligned(4095));
    check!(!size.is_aligned(u64::MAX));
    Ok(())
}

/// Hazard 19: a page index does not lose bits on its way to an offset, or back.
pub fn offsets_are_64_bits_wide() -> Check {
    let size = page_size()?;

    check!(size.offset_of(PageIndex::new(1 << 20)).get() == 1 << 32);
    check!(size.offset_of(PageIndex::new(0x1_2345_6789)).get() == 0x1234_5678_9000);
    check!(size.index_of(ByteOffset::new(1 << 32)).get() == 1 << 20);
    check!(size.index_of(ByteOffset::new(4095)).get() == 0);
    check!(size.index_of(ByteOffset::new(4096)).get() == 1);
    check!(size.index_of(ByteOffset::new(u64::MAX)).get() == (1 << 52) - 1);

    // The end of the largest file.
    let pages = (1 << 51) - 1;
    check!(size.offset_of(PageIndex::new(pages)).get() == (1 << 63) - 4096);
    Ok(())
}

/// A range has at least one page, so that no caller needs to check.
pub fn range_is_never_empty() -> Check {
    let zero = PageIndex::new(0);
    let max = PageIndex::new(u64::MAX);

    check!(PageRange::new(zero, zero).is_none());
    check!(PageRange::new(max, max).is_none());
    check!(PageRange::new(max, zero).is_none());
    check!(PageRange::new(zero, max).is_some());
    Ok(())
}

/// Properties of single ranges, and of pairs of ranges.
pub fn range_arithmetic() -> Check {
    let range = pages(3, 5)?;

    check!(range.start().get() == 3);
    check!(range.end().get() == 5);
    check!(range.last().get() == 4);
    check!(range.len() == 2);
    check!(!range.contains(PageIndex::new(2)));
    check!(range.contains(PageIndex::new(3)));
    check!(range.contains(PageIndex::new(4)));
    check!(!range.contains(PageIndex::new(5)));

    let single = pages(0, 1)?;
    check!(single.last().get() == 0);
    check!(single.len() == 1);
    check!(pages(0, u64::MAX)?.len() == u64::MAX);

    check!(range.intersect(&pages(4, 9)?) == Some(pages(4, 5)?));
    check!(range.intersect(&pages(0, 4)?) == Some(pages(3, 4)?));
    check!(range.intersect(&pages(0, 9)?) == Some(range));
    check!(range.intersect(&pages(5, 9)?).is_none());
    check!(range.intersect(&pages(0, 3)?).is_none());

    check!(range.hull(&pages(8, 9)?) == pages(3, 9)?);
    check!(range.hull(&pages(0, 1)?) == pages(0, 5)?);
    check!(range.hull(&pages(4, 5)?) == range);

    check!(range.tail(PageIndex::new(0)) == range);
    check!(range.tail(PageIndex::new(4)) == pages(4, 5)?);
    check!(range.tail(PageIndex::new(5)) == pages(4, 5)?);
    check!(range.tail(PageIndex::new(u64::MAX)) == pages(4, 5)?);
    Ok(())
}

/// Hazard 20: the reported page does not lie before the request.
pub fn clamp_stays_inside_the_request() -> Check {
    let request = pages(5, 9)?;

    check!(request.clamp(PageIndex::new(0)).get() == 5);
    check!(request.clamp(PageIndex::new(5)).get() == 5);
    check!(request.clamp(PageIndex::new(7)).get() == 7);
    Ok(())
}

/// A file has at least one page, whole pages, and a size that fits `loff_t`.
pub fn geometry_checks_the_size() -> Check {
    let size = page_size()?;

    check!(Geometry::new(size, 0).is_none());
    check!(Geometry::new(size, 1).is_none());
    check!(Geometry::new(size, PAGE - 1).is_none());
    check!(Geometry::new(size, PAGE + 1).is_none());
    check!(Geometry::new(size, 1 << 63).is_none());
    check!(Geometry::new(size, u64::MAX).is_none());
    check!(Geometry::new(size, PAGE).map(|file| file.pages()) == Some(1));

    let largest = Geometry::new(size, (1 << 63) - PAGE).ok_or("the largest file is refused")?;
    check!(largest.pages() == (1 << 51) - 1);
    check!(largest.whole() == pages(0, (1 << 51) - 1)?);
    check!(largest.page_size() == size);
    Ok(())
}

/// Hazard 19: size 0, overflow, alignment of both, and the end of the file.
pub fn geometry_checks_the_range() -> Check {
    let file = file(8)?;

    check!(file.range(0, 0).is_none());
    check!(file.range(PAGE, 0).is_none());
    check!(file.range(1, PAGE).is_none());
    check!(file.range(0, PAGE + 1).is_none());
    check!(file.range(0, PAGE - 1).is_none());
    // The end is aligned here, but neither argument is.
    check!(file.range(PAGE / 2, PAGE / 2).is_none());
    check!(file.range(0, 8 * PAGE) == Some(file.whole()));
    check!(file.range(7 * PAGE, PAGE) == Some(pages(7, 8)?));
    check!(file.range(0, 9 * PAGE).is_none());
    check!(file.range(7 * PAGE, 2 * PAGE).is_none());
    check!(file.range(8 * PAGE, PAGE).is_none());
    // The sum overflows to an offset inside the file.
    check!(file.range(PAGE, PAGE.wrapping_neg()).is_none());
    check!(file.range(PAGE.wrapping_neg(), 2 * PAGE).is_none());
    check!(file.range(2 * PAGE, PAGE.wrapping_neg()).is_none());

    check!(file.page_at(0).map(PageIndex::get) == Some(0));
    check!(file.page_at(7 * PAGE).map(PageIndex::get) == Some(7));
    check!(file.page_at(8 * PAGE).is_none());
    check!(file.page_at(PAGE + 1).is_none());
    check!(file.page_at(PAGE.wrapping_neg()).is_none());
    Ok(())
}

/// Each policy has its bit, and no other bit is accepted.
pub fn content_flags() -> Check {
    check!(Content::from_flags(0) == Some(Content::None));
    check!(Content::from_flags(1) == Some(Content::Zero));
    check!(Content::from_flags(2) == Some(Content::Preserve));
    check!(Content::from_flags(3).is_none());
    for bit in 2..64 {
        for known in 0..4 {
            check!(Content::from_flags(1 << bit | known).is_none());
        }
    }
    for content in [Content::None, Content::Zero, Content::Preserve] {
        check!(Content::from_flags(content.flags()) == Some(content));
    }
    Ok(())
}

/// Private is bit 3, and no other bit is accepted.
pub fn visibility_attributes() -> Check {
    check!(SHARED.attributes() == 0);
    check!(PRIVATE.attributes() == 8);
    check!(Visibility::from_attributes(0) == Some(SHARED));
    check!(Visibility::from_attributes(8) == Some(PRIVATE));
    for bit in 0..64 {
        if bit != 3 {
            check!(Visibility::from_attributes(1 << bit).is_none());
            check!(Visibility::from_attributes(1 << bit | 8).is_none());
        }
    }
    check!(SHARED.opposite() == PRIVATE);
    check!(PRIVATE.opposite() == SHARED);
    Ok(())
}

/// The words of the struct lie where user space puts them.
pub fn raw_request_words() -> Check {
    let words = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    let raw = RawRequest::from_words(words);

    check!(raw.offset == 1);
    check!(raw.size == 2);
    check!(raw.attributes == 3);
    check!(raw.flags == 4);
    check!(raw.error_offset == 5);
    check!(raw.reserved == [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    check!(raw.to_words() == words);
    Ok(())
}

/// A request is checked in the order in which the user-space interface lists the errors.
pub fn request_order_of_checks() -> Check {
    let file = file(8)?;
    let mut wrong = RawRequest {
        offset: 1,
        size: 0,
        attributes: 1,
        flags: 3,
        error_offset: 0,
        reserved: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    };

    // Everything is wrong; from here on one error after the other is corrected.
    check!(Request::parse(&wrong, &file, false) == Err(Invalid::Flags));
    wrong.flags = 1;
    check!(Request::parse(&wrong, &file, false) == Err(Invalid::Reserved));
    wrong.reserved = [0; 11];
    check!(Request::parse(&wrong, &file, false) == Err(Invalid::NoPrivateMemory));
    check!(Request::parse(&wrong, &file, true) == Err(Invalid::Attributes));
    wrong.attributes = 8;
    check!(Request::parse(&wrong, &file, true) == Err(Invalid::Range));
    wrong.offset = PAGE;
    check!(Request::parse(&wrong, &file, true) == Err(Invalid::Range));
    wrong.size = 2 * PAGE;

    let request = Request::parse(&wrong, &file, true).map_err(|_| "a legal request is refused")?;
    check!(request.range() == pages(1, 3)?);
    check!(request.to() == PRIVATE);
    check!(request.content() == Content::Zero);

    // Each reserved word counts.
    for word in 5..RawRequest::WORDS {
        let mut words = wrong.to_words();
        if let Some(reserved) = words.get_mut(word) {
            *reserved = 1 << 63;
        }
        let raw = RawRequest::from_words(words);
        check!(Request::parse(&raw, &file, true) == Err(Invalid::Reserved));
    }
    Ok(())
}

/// The field that is written back may hold what an earlier call left in it.
pub fn request_ignores_error_offset() -> Check {
    let mut request = raw(0, 1, PRIVATE);

    request.error_offset = u64::MAX;
    check!(Request::parse(&request, &file(8)?, true).is_ok());
    Ok(())
}

/// A question is checked in the same order, and has more words that must be 0.
pub fn query_order_of_checks() -> Check {
    let file = file(8)?;
    let mut wrong = RawRequest {
        offset: 8 * PAGE,
        size: PAGE,
        attributes: 8,
        flags: 1,
        error_offset: 1,
        reserved: [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    };

    check!(Query::parse(&wrong, &file, false) == Err(Invalid::Flags));
    wrong.flags = 0;
    check!(Query::parse(&wrong, &file, false) == Err(Invalid::Reserved));
    wrong.reserved = [0; 11];
    check!(Query::parse(&wrong, &file, false) == Err(Invalid::Reserved));
    wrong.error_offset = 0;
    check!(Query::parse(&wrong, &file, false) == Err(Invalid::NoPrivateMemory));
    check!(Query::parse(&wrong, &file, true) == Err(Invalid::Attributes));
    wrong.attributes = 0;
    check!(Query::parse(&wrong, &file, true) == Err(Invalid::Range));
    wrong.offset = 7 * PAGE;
    check!(Query::parse(&wrong, &file, true) == Err(Invalid::Range));
    wrong.size = 0;
    check!(Query::parse(&wrong, &file, true).map(|query| query.at().get()) == Ok(7));
    wrong.offset += 1;
    check!(Query::parse(&wrong, &file, true) == Err(Invalid::Range));
    wrong.offset = 8 * PAGE;
    check!(Query::parse(&wrong, &file, true) == Err(Invalid::Range));
    Ok(())
}

/// A page that no platform owns is preserved or zeroed as asked for. Where nothing is promised,
/// SW_PROTECTED alone destroys contents on purpose, and only while scrambling is on.
pub fn pages_that_nobody_owns() -> Check {
    for &platform in Platform::ALL {
        let none = match platform {
            Platform::SwProtected => Action::Scramble,
            Platform::Snp(_) | Platform::Tdx(_) | Platform::Pkvm => Action::Leave,
        };
        for to in [SHARED, PRIVATE] {
            for (content, expected) in [
                (Content::Preserve, Action::Leave),
                (Content::Zero, Action::Zero),
                (Content::None, none),
            ] {
                check!(action(platform, false, to, content) == Ok(expected));
            }
        }
    }
    for done in [Action::Leave, Action::Zero, Action::Scramble] {
        check!(done.with_scrambling(true) == done);
    }
    check!(Action::Leave.with_scrambling(false) == Action::Leave);
    check!(Action::Zero.with_scrambling(false) == Action::Zero);
    check!(Action::Scramble.with_scrambling(false) == Action::Leave);
    Ok(())
}

/// An owned page is not zeroed if the host cannot write it, not preserved if its removal destroys
/// it, and not converted if the guest has not shared it. Everything else is done as if the page had
/// never been owned.
pub fn owned_pages() -> Check {
    for &platform in Platform::ALL {
        for to in [SHARED, PRIVATE] {
            for content in [Content::None, Content::Zero, Content::Preserve] {
                let expected = match (platform, to, content) {
                    (Platform::SwProtected, _, _) => None,
                    (_, PRIVATE, Content::Zero) => Some(Refusal::NotSupported),
                    (Platform::Tdx(_), SHARED, Content::Preserve) => Some(Refusal::NotSupported),
                    (Platform::Pkvm, SHARED, _) => Some(Refusal::NotShared),
                    _ => None,
                };
                let owned = action(platform, true, to, content);
                check!(owned.err() == expected);
                check!(owned.is_err() || owned == action(platform, false, to, content));
            }
        }
    }
    Ok(())
}

/// A policy is announced exactly if it is accepted, for each platform and direction.
pub fn capabilities_follow_the_contract() -> Check {
    check!(capability(Platform::SwProtected) == 0x03_03_03);
    check!(capability(Platform::Snp(Base::Hardware)) == 0x03_03_03);
    check!(capability(Platform::Tdx(Base::Hardware)) == 0x03_01_01);
    check!(capability(Platform::Pkvm) == 0x03_03_03);

    let mut any = 0;
    for &platform in Platform::ALL {
        let flags = capability(platform);
        check!(flags >> 24 == 0);
        check!(flags & 0xff == flags >> 8 & flags >> 16 & 0xff);
        for (to, shift) in [(SHARED, 8), (PRIVATE, 16)] {
            for content in [Content::Zero, Content::Preserve] {
                let announced = u64::from(flags >> shift) & content.flags() != 0;
                // Only a page that is to be shared can be owned and still have to change.
                let kept = action(platform, to == SHARED, to, content);
                check!(announced == (kept != Err(Refusal::NotSupported)));
            }
            // NONE promises nothing, is always supported, and has no bit.
            check!(action(platform, false, to, Content::None).is_ok());
            check!(flags >> shift & 0xff & !3 == 0);
        }
        any |= flags;
    }
    check!(capability_any(|_| true) == any);
    check!(capability_any(|_| false) == 0);
    check!(capability_any(|platform| platform == Platform::Tdx(Base::Hardware)) == 0x03_01_01);
    Ok(())
}

/// A request that changes no attribute, and does nothing to bytes, is an empty plan.
pub fn plan_nothing_to_do() -> Check {
    let map = map(8, &[(3, SHARED), (6, PRIVATE), (8, SHARED)])?;

    check!(plan(3, 6, PRIVATE, LEAVE, &map)? == Plan::Nothing);
    check!(plan(4, 5, PRIVATE, LEAVE, &map)? == Plan::Nothing);
    check!(plan(0, 3, SHARED, LEAVE, &map)? == Plan::Nothing);
    check!(plan(6, 8, SHARED, LEAVE, &map)? == Plan::Nothing);
    // One more page, on either side, is a page that changes.
    check!(plan(2, 6, PRIVATE, LEAVE, &map)? != Plan::Nothing);
    check!(plan(3, 7, PRIVATE, LEAVE, &map)? != Plan::Nothing);
    Ok(())
}

/// The policy holds for the whole range, also where no attribute changes.
pub fn plan_policy_without_a_change() -> Check {
    let map = map(8, &[(8, PRIVATE)])?;

    for action in [Action::Zero, Action::Scramble] {
        let change = change(2, 4, PRIVATE, action, &map)?;
        check!(!change.changes_attributes());
        check!(change.store().is_none());
        check!(change.range() == pages(2, 4)?);
        check!(change.to() == PRIVATE);
        check!(change.action() == action);
        check!(change.differing(&map).next().is_none());
        check!(change.count(&map, || true) == Some((0, 0)));
    }
    Ok(())
}

/// Hazard 1: the parts of a mixed range that are private already are left out.
pub fn plan_skips_what_is_settled() -> Check {
    // Two neighbouring entries can be equal; they form one part.
    let map = map(
        16,
        &[
            (2, SHARED),
            (4, PRIVATE),
            (5, SHARED),
            (7, SHARED),
            (9, PRIVATE),
            (16, SHARED),
        ],
    )?;
    let change = change(1, 12, PRIVATE, LEAVE, &map)?;
    let mut parts = change.differing(&map);

    check!(parts.next() == Some(pages(1, 2)?));
    check!(parts.next() == Some(pages(4, 7)?));
    check!(parts.next() == Some(pages(9, 12)?));
    check!(parts.next().is_none());
    check!(parts.next().is_none());
    check!(change.count(&map, || true) == Some((7, 3)));
    check!(change.count(&map, || false).is_none());
    Ok(())
}

/// The stored range is that of the request, whatever the state of its pages and their neighbours.
pub fn plan_stores_what_is_asked_for() -> Check {
    let map = map(
        16,
        &[
            (2, SHARED),
            (3, PRIVATE),
            (5, PRIVATE),
            (8, SHARED),
            (11, PRIVATE),
            (16, SHARED),
        ],
    )?;

    check!(change(5, 8, PRIVATE, LEAVE, &map)?.store() == Some(pages(5, 8)?));
    check!(change(5, 8, PRIVATE, LEAVE, &map)?.count(&map, || true) == Some((3, 1)));
    check!(change(6, 7, PRIVATE, LEAVE, &map)?.store() == Some(pages(6, 7)?));
    // The ends of the range lie inside entries that already have the requested state.
    check!(change(4, 9, PRIVATE, LEAVE, &map)?.store() == Some(pages(4, 9)?));
    check!(change(2, 5, SHARED, LEAVE, &map)?.store() == Some(pages(2, 5)?));
    Ok(())
}

/// There are no neighbours before the first page and behind the last.
pub fn plan_at_both_ends_of_the_file() -> Check {
    let map = map(8, &[(8, SHARED)])?;

    check!(change(0, 8, PRIVATE, LEAVE, &map)?.store() == Some(pages(0, 8)?));
    check!(change(0, 1, PRIVATE, LEAVE, &map)?.store() == Some(pages(0, 1)?));
    check!(change(7, 8, PRIVATE, LEAVE, &map)?.store() == Some(pages(7, 8)?));
    Ok(())
}

/// A walk goes from one change of the attributes to the next, whatever the entries are.
pub fn query_walks_the_runs() -> Check {
    let file = file(8)?;
    let map = map(8, &[(1, SHARED), (3, SHARED), (4, PRIVATE), (8, SHARED)])?;
    let mut at = PageIndex::new(0);

    for (end, visibility) in [(3, SHARED), (4, PRIVATE), (8, SHARED)] {
        let run = query(at, &file, &map);
        check!(run.range == pages(at.get(), end)?);
        check!(run.visibility == visibility);
        at = run.range.end();
    }
    check!(at == file.whole().end());
    // From the middle of a run.
    check!(query(PageIndex::new(2), &file, &map).range == pages(2, 3)?);
    Ok(())
}

/// Hazard 3: an invalid map neither hides a page from a conversion nor shows one as shared.
pub fn senseless_map_ends_every_walk() -> Check {
    let file = file(8)?;

    for answer in [pages(0, 1)?, pages(7, 8)?, pages(9, u64::MAX)?] {
        for visibility in [SHARED, PRIVATE] {
            let map = Stubborn(Run {
                range: answer,
                visibility,
            });
            for to in [SHARED, PRIVATE] {
                let request = Request::parse(&raw(2, 6, to), &file, true)
                    .map_err(|_| "the request is not legal")?;
                let Plan::Change(change) = Plan::new(&request, LEAVE, &map) else {
                    return Err("a map without sense has pages that are settled");
                };
                check!(change.store() == Some(pages(2, 6)?));
                let mut parts = change.differing(&map);
                check!(parts.next() == Some(pages(2, 6)?));
                check!(parts.next().is_none());
            }
            let run = query(PageIndex::new(3), &file, &map);
            check!(run.range == pages(3, 8)?);
            check!(run.visibility == PRIVATE);
        }
    }

    // An entry may claim more than the file has, but nothing of that is used.
    let map = Stubborn(Run {
        range: pages(0, u64::MAX)?,
        visibility: SHARED,
    });
    check!(query(PageIndex::new(3), &file, &map).range == pages(3, 8)?);
    check!(query(PageIndex::new(99), &file, &map).range == pages(7, 8)?);
    Ok(())
}

/// `KVM_MAP_MEMORY` refuses invalid arguments, the flags first.
pub fn mapping_is_whole_pages() -> Check {
    let page = PageSize::new(12).ok_or("page size")?;
    let top = 0u64.wrapping_sub(PAGE);

    check!(Mapping::parse([1, 0, 1], page) == Err(Invalid::Flags));
    for (base, size) in [
        (0, 0),
        (1, PAGE),
        (PAGE, 1),
        (PAGE, PAGE + 1),
        (top, PAGE),
        (PAGE, top),
        (top, top),
    ] {
        check!(Mapping::parse([base, size, 0], page) == Err(Invalid::Range));
    }
    for words in [[0, PAGE, 0], [top - PAGE, PAGE, 0], [0, top, 0]] {
        check!(Mapping::parse(words, page).map(|mapping| mapping.to_words()) == Ok(words));
    }
    Ok(())
}

/// The range becomes shorter by whole pages, and never by more than it has.
pub fn mapping_becomes_shorter() -> Check {
    let page = PageSize::new(12).ok_or("page size")?;
    let mut left = Mapping::parse([8 * PAGE, 4 * PAGE, 0], page).map_err(|_| "parse")?;

    check!(!left.advance(0));
    check!(!left.advance(PAGE - 1));
    check!(left.to_words() == [8 * PAGE, 4 * PAGE, 0]);
    check!(left.advance(2 * PAGE - 1));
    check!(left.to_words() == [9 * PAGE, 3 * PAGE, 0]);
    check!(left.advance(u64::MAX));
    check!(left.to_words() == [12 * PAGE, 0, 0]);
    check!(!left.advance(PAGE));
    Ok(())
}
