// SPDX-License-Identifier: GPL-2.0

//! Properties of files and requests of every size, tried on random ones.

use gmem_policy::{
    mapping::Mapping,
    plan::query,
    Plan,
    Query,
    RawRequest,
    Request, //
};
use gmem_types::{
    content::{
        Action,
        Content, //
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
use proptest::prelude::*;

use crate::{
    map::{
        range,
        Map, //
    },
    naive::{
        carry_out,
        invalid_get,
        invalid_set,
        File, //
    }, //
};

/// A number of any magnitude, or one next to a power of two.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0u32..64, any::<u64>()).prop_map(|(shift, bits)| bits >> shift),
        (0u32..64, 0u64..5).prop_map(|(shift, more)| (1u64 << shift).wrapping_add(more)),
        (0u32..64, 0u64..5).prop_map(|(shift, less)| (1u64 << shift).wrapping_sub(less)),
    ]
}

fn page_size() -> impl Strategy<Value = PageSize> {
    (12u32..=30).prop_map(|shift| PageSize::new(shift).unwrap())
}

fn geometry() -> impl Strategy<Value = Geometry> {
    (page_size(), number()).prop_map(|(page, bytes)| {
        let most = i64::MAX as u64 / page.bytes();
        let pages = (bytes / page.bytes()).clamp(1, most);
        Geometry::new(page, pages * page.bytes()).unwrap()
    })
}

/// A number of bytes that often is a multiple of the page size, and often lies at the file's end.
fn bytes_near(file: Geometry) -> impl Strategy<Value = u64> {
    let page = file.page_size().bytes();
    let end = file.pages() * page;
    prop_oneof![
        4 => (0..=file.pages()).prop_map(move |pages| pages * page),
        1 => (0u64..3).prop_map(move |pages| end + pages * page),
        1 => (0u64..3).prop_map(move |pages| (pages * page).wrapping_neg()),
        1 => (0..=file.pages()).prop_map(move |pages| (pages * page).wrapping_neg()),
        1 => number(),
    ]
}

fn page_range() -> impl Strategy<Value = PageRange> {
    // Small ones as well, so that two of them often touch.
    let index = prop_oneof![0u64..12, number()];
    (index.clone(), index).prop_filter_map("a range has a page", |(a, b)| {
        PageRange::new(PageIndex::new(a.min(b)), PageIndex::new(a.max(b)))
    })
}

fn visibility() -> impl Strategy<Value = Visibility> {
    prop_oneof![Just(Visibility::Shared), Just(Visibility::Private)]
}

/// Mostly what a request may hold, with a mistake here and there.
fn raw_request(file: Geometry) -> impl Strategy<Value = RawRequest> {
    (
        bytes_near(file),
        bytes_near(file),
        prop_oneof![4 => Just(0), 4 => Just(8), 1 => number()],
        prop_oneof![4 => 0u64..3, 1 => number()],
        prop_oneof![Just(0), number()],
        prop_oneof![
            4 => Just([0; 11]),
            1 => (0usize..11, number()).prop_map(|(word, value)| {
                let mut reserved = [0; 11];
                reserved[word] = value;
                reserved
            }),
        ],
    )
        .prop_map(
            |(offset, size, attributes, flags, error_offset, reserved)| RawRequest {
                offset,
                size,
                attributes,
                flags,
                error_offset,
                reserved,
            },
        )
}

/// A canonical map of up to 40 runs, whose pages are few or as many as a file can have.
fn canonical_map() -> impl Strategy<Value = Map> {
    (
        prop_oneof![1u64..4, 1u64..1 << 45],
        prop::collection::vec(any::<u64>(), 1..40),
        any::<bool>(),
    )
        .prop_map(|(longest, lengths, mut private)| {
            let mut start = 0;
            let mut entries = Vec::new();
            for length in lengths {
                let end = start + 1 + length % longest;
                entries.push(Run {
                    range: range(start, end),
                    visibility: if private {
                        Visibility::Private
                    } else {
                        Visibility::Shared
                    },
                });
                private = !private;
                start = end;
            }
            Map::new(entries)
        })
}

fn file_of(map: &Map) -> Geometry {
    Geometry::new(PageSize::new(12).unwrap(), map.page_count() * 4096).unwrap()
}

/// Two pages of a file of `pages`, the first not behind the second, often next to the borders of
/// a map's entries.
fn part_of(map: &Map, a: u64, b: u64) -> PageRange {
    let pick = |seed: u64| {
        let entry = map.entries()[seed as usize % map.entries().len()];
        match seed >> 32 & 3 {
            0 => entry.range.start().get(),
            1 => entry.range.last().get(),
            2 => entry.range.start().get() + (seed >> 34) % entry.range.len(),
            _ => (seed >> 34) % map.page_count(),
        }
    };
    let (a, b) = (pick(a), pick(b));
    range(a.min(b), a.max(b) + 1)
}

fn request(file: &Geometry, pages: PageRange, to: Visibility) -> Request {
    let raw = RawRequest {
        offset: pages.start().get() * 4096,
        size: pages.len() * 4096,
        attributes: to.attributes(),
        ..RawRequest::default()
    };
    Request::parse(&raw, file, true).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// KVM_MAP_MEMORY's struct is accepted exactly if it is valid in wider arithmetic.
    #[test]
    fn mapping_is_checked(page in page_size(), base in number(), size in number(), odd in 0u64..3) {
        let bytes = page.bytes();
        // Mostly whole pages, or nothing would be accepted.
        let (base, size) = (base / bytes * bytes, (size / bytes * bytes).wrapping_add(odd / 2));
        let end = u128::from(base) + u128::from(size);
        let legal = odd / 2 == 0 && size != 0 && end < 1 << 64;

        let mapping = Mapping::parse([base, size, 0], page);
        prop_assert_eq!(mapping.is_ok(), legal);
        prop_assert_eq!(mapping.ok().map(|mapping| mapping.to_words()), legal.then_some([base, size, 0]));
        prop_assert!(Mapping::parse([base, size, 1 + odd], page).is_err());
    }

    /// The rest ends where the request did, whatever is reported as mapped, and progress ends.
    #[test]
    fn mapping_keeps_its_end(
        page in page_size(),
        base in 0u64..1 << 32,
        pages in 1u64..1 << 20,
        steps in prop::collection::vec(number(), 0..40),
    ) {
        let bytes = page.bytes();
        let (base, size) = (u128::from(base) * u128::from(bytes), pages.checked_mul(bytes));
        let (Ok(base), Some(size)) = (u64::try_from(base), size) else { return Ok(()) };
        let Ok(mut left) = Mapping::parse([base, size, 0], page) else { return Ok(()) };

        for mapped in steps {
            let before = left;
            let moved = left.advance(mapped);
            let done = (mapped / bytes * bytes).min(before.size());
            prop_assert_eq!(moved, done != 0);
            prop_assert_eq!(left.base(), before.base() + done);
            prop_assert_eq!(left.base() + left.size(), base + size);
        }
    }

    /// Hazard 19: pages and bytes correspond as in wider arithmetic.
    #[test]
    fn pages_and_bytes(page in page_size(), bytes in number()) {
        let size = u128::from(page.bytes());
        let index = page.index_of(ByteOffset::new(bytes));
        prop_assert_eq!(u128::from(index.get()), u128::from(bytes) / size);
        prop_assert_eq!(page.is_aligned(bytes), u128::from(bytes) % size == 0);

        let made = Geometry::new(page, bytes);
        let fits = bytes > 0 && u128::from(bytes) % size == 0 && i64::try_from(bytes).is_ok();
        prop_assert_eq!(made.is_some(), fits);
        if let Some(file) = made {
            prop_assert_eq!(u128::from(file.pages()) * size, u128::from(bytes));
            prop_assert_eq!(file.whole().len(), file.pages());
            // The end of a file is a page index, too.
            prop_assert_eq!(page.offset_of(file.whole().end()).get(), bytes);
            prop_assert_eq!(page.offset_of(index).get(), bytes);
        }
    }

    /// Ranges are sets of numbers.
    #[test]
    fn ranges_are_sets(a in page_range(), b in page_range(), index in number()) {
        let (a0, a1) = (u128::from(a.start().get()), u128::from(a.end().get()));
        let (b0, b1) = (u128::from(b.start().get()), u128::from(b.end().get()));
        let at = u128::from(index);
        let index = PageIndex::new(index);

        prop_assert!(a0 < a1);
        prop_assert_eq!(u128::from(a.len()), a1 - a0);
        prop_assert_eq!(u128::from(a.last().get()), a1 - 1);
        prop_assert_eq!(a.contains(index), (a0..a1).contains(&at));
        prop_assert_eq!(u128::from(a.clamp(index).get()), a0.max(at));

        let both = a.intersect(&b);
        prop_assert_eq!(both, b.intersect(&a));
        prop_assert_eq!(both.is_some(), a0.max(b0) < a1.min(b1));
        let in_both = both.is_some_and(|both| both.contains(index));
        prop_assert_eq!(in_both, a.contains(index) && b.contains(index));

        let hull = a.hull(&b);
        prop_assert_eq!(u128::from(hull.start().get()), a0.min(b0));
        prop_assert_eq!(u128::from(hull.end().get()), a1.max(b1));

        let tail = a.tail(index);
        prop_assert_eq!(tail.end(), a.end());
        prop_assert_eq!(u128::from(tail.start().get()), at.clamp(a0, a1 - 1));
    }

    /// A file accepts the same ranges and pages as arithmetic without overflow.
    #[test]
    fn ranges_of_a_file(
        (file, offset, size) in geometry().prop_flat_map(|file| {
            (Just(file), bytes_near(file), bytes_near(file))
        }),
    ) {
        let page = u128::from(file.page_size().bytes());
        let end = u128::from(offset) + u128::from(size);
        let legal = size != 0
            && u128::from(offset) % page == 0
            && u128::from(size) % page == 0
            && end <= u128::from(file.pages()) * page;
        let made = file.range(offset, size);
        prop_assert_eq!(made.is_some(), legal);
        if let Some(pages) = made {
            prop_assert_eq!(file.page_size().offset_of(pages.start()).get(), offset);
            prop_assert_eq!(u128::from(pages.len()) * page, u128::from(size));
            prop_assert_eq!(pages.intersect(&file.whole()), Some(pages));
        }

        let start = file.page_at(offset);
        prop_assert_eq!(start.is_some(), file.range(offset, file.page_size().bytes()).is_some());
        if let Some(at) = start {
            prop_assert_eq!(u128::from(at.get()) * page, u128::from(offset));
        }
    }

    /// The struct is refused for the first reason of the table, and for no other.
    #[test]
    fn first_mistake_decides(
        (file, raw) in geometry().prop_flat_map(|file| (Just(file), raw_request(file))),
        has_private_memory in prop::bool::weighted(0.9),
    ) {
        let page = file.page_size().bytes();
        let size = file.pages() * page;

        let parsed = Request::parse(&raw, &file, has_private_memory);
        prop_assert_eq!(parsed.err(), invalid_set(&raw, page, size, has_private_memory));
        if let Ok(request) = parsed {
            prop_assert_eq!(Some(request.range()), file.range(raw.offset, raw.size));
            prop_assert_eq!(request.to().attributes(), raw.attributes);
            prop_assert_eq!(request.content().flags(), raw.flags);
        }

        let parsed = Query::parse(&raw, &file, has_private_memory);
        prop_assert_eq!(parsed.err(), invalid_get(&raw, page, size, has_private_memory));
        let question = RawRequest { offset: raw.offset, ..RawRequest::default() };
        let parsed = Query::parse(&question, &file, has_private_memory);
        prop_assert_eq!(parsed.err(), invalid_get(&question, page, size, has_private_memory));
        if let Ok(query) = parsed {
            prop_assert_eq!(file.page_size().offset_of(query.at()).get(), raw.offset);
        }
    }

    /// The struct and its words are the same thing.
    #[test]
    fn words_round_trip(words in any::<[u64; 16]>()) {
        prop_assert_eq!(RawRequest::from_words(words).to_words(), words);
    }

    /// Flags and attributes are read the way they are written, and nothing else is read.
    #[test]
    fn bits_round_trip(bits in prop_oneof![0u64..32, number()]) {
        prop_assert_eq!(Content::from_flags(bits).is_some(), bits < 3);
        prop_assert!(Content::from_flags(bits).is_none_or(|content| content.flags() == bits));
        prop_assert_eq!(Visibility::from_attributes(bits).is_some(), bits == 0 || bits == 8);
        prop_assert!(Visibility::from_attributes(bits).is_none_or(|is| is.attributes() == bits));
    }

    /// Planning takes a few lookups, however large the range is and however many runs it
    /// has; reading the differing parts takes one lookup for each run.
    #[test]
    fn cost_is_by_runs(
        map in canonical_map(), a in any::<u64>(), b in any::<u64>(), to in visibility(),
    ) {
        let file = file_of(&map);
        let pages = part_of(&map, a, b);
        let request = request(&file, pages, to);

        map.take_looks();
        let plan = Plan::new(&request, Action::Leave, &map);
        let looks = map.take_looks();
        // Up to three until the first run that differs has ended.
        prop_assert!(looks <= 3, "{} looks", looks);
        let Plan::Change(change) = plan else {
            prop_assert_eq!(map.touched_by(pages), 1);
            return Ok(());
        };

        let mut left = 0;
        for part in change.differing(&map) {
            for entry in map.entries() {
                if let Some(both) = entry.range.intersect(&part) {
                    prop_assert_ne!(entry.visibility, to);
                    left += both.len();
                }
            }
        }
        prop_assert_eq!(map.take_looks(), map.touched_by(pages));
        // Nothing that differs is left out.
        let differs: u64 = map
            .entries()
            .iter()
            .filter(|entry| entry.visibility != to)
            .filter_map(|entry| entry.range.intersect(&pages))
            .map(|part| part.len())
            .sum();
        prop_assert_eq!(left, differs);
    }

    /// The request's range is stored if a page of it does not have the requested state yet, in files
    /// of any size.
    #[test]
    fn stores_are_the_request(
        map in canonical_map(), a in any::<u64>(), b in any::<u64>(), to in visibility(),
    ) {
        let file = file_of(&map);
        let pages = part_of(&map, a, b);
        let request = request(&file, pages, to);
        let before: Vec<_> = map.entries().to_vec();

        let Plan::Change(change) = Plan::new(&request, Action::Leave, &map) else {
            let settled = |entry: &Run| {
                entry.visibility == to || entry.range.intersect(&pages).is_none()
            };
            prop_assert!(before.iter().all(settled));
            return Ok(());
        };
        prop_assert_eq!(change.store(), Some(pages));
        let differs = |entry: &Run| {
            entry.visibility != to && entry.range.intersect(&pages).is_some()
        };
        prop_assert!(before.iter().any(differs));
    }

    /// A file of R runs is walked in R questions, each of at most two lookups.
    #[test]
    fn walk_takes_a_question_for_each_run(map in canonical_map()) {
        let file = file_of(&map);
        let mut at = PageIndex::new(0);
        let mut walked = Vec::new();
        while at < file.whole().end() {
            let run = query(at, &file, &map);
            prop_assert!(map.take_looks() <= 2);
            walked.push(run);
            at = run.range.end();
        }
        prop_assert_eq!(&walked[..], map.entries());
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// One request after the other on one file: the map, the bytes and the model stay together,
    /// and the map never has an entry too many.
    #[test]
    fn histories_agree_with_the_bitmap(
        initial in visibility(),
        pages in 1usize..150,
        requests in prop::collection::vec(
            (any::<u64>(), any::<u64>(), visibility(), 0u64..3, any::<bool>()), 1..30),
    ) {
        let mut expected = File::new(vec![initial; pages]);
        let mut map = Map::canonical(&expected.pages);
        let mut bytes = expected.bytes.clone();
        let file = file_of(&map);

        for (a, b, to, flags, scramble) in requests {
            let part = part_of(&map, a, b);
            let raw = RawRequest {
                offset: part.start().get() * 4096,
                size: part.len() * 4096,
                attributes: to.attributes(),
                flags,
                ..RawRequest::default()
            };
            let request = Request::parse(&raw, &file, true).unwrap();
            let action = gmem_policy::contract::action(
                gmem_types::platform::Platform::SwProtected,
                false,
                to,
                request.content(),
            ).unwrap().with_scrambling(scramble);
            if let Plan::Change(change) = Plan::new(&request, action, &map) {
                carry_out(&change, &mut map, &mut bytes);
            }
            expected.convert(
                part.start().get() as usize..part.end().get() as usize,
                to,
                request.content(),
                scramble,
            );
            prop_assert_eq!(&map.pages(), &expected.pages);
            prop_assert_eq!(&bytes, &expected.bytes);
            prop_assert!(map.is_canonical());
        }
    }
}
