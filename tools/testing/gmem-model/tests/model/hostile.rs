// SPDX-License-Identifier: GPL-2.0

//! Invalid maps: overlapping, contradicting themselves, pointing elsewhere.
//!
//! Such maps have no right result, but the rest of the kernel relies on this: the walks end soon,
//! and name no page outside of the request or the file.

use std::cell::Cell;

use gmem_policy::{
    plan::query,
    Attributes,
    Plan,
    RawRequest,
    Request, //
};
use gmem_types::{
    content::Action,
    range::{
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

use crate::map::range;

const PAGE: u64 = 4096;

/// Returns the answers of a script in a loop, whatever the question.
struct Script<'a> {
    answers: &'a [Run],
    pages: u64,
    looks: Cell<usize>,
    limit: usize,
}

impl<'a> Script<'a> {
    /// `limit` is the number of lookups after which the test fails.
    fn new(answers: &'a [Run], pages: u64, limit: usize) -> Self {
        Self {
            answers,
            pages,
            looks: Cell::new(0),
            limit,
        }
    }
}

impl Attributes for Script<'_> {
    fn run_at(&self, at: PageIndex) -> Run {
        let looks = self.looks.get();
        self.looks.set(looks + 1);
        assert!(looks < self.limit, "{looks} looks: {:?}", self.answers);
        assert!(at.get() < self.pages, "page {at:?} is not in the file");
        self.answers[looks % self.answers.len()]
    }
}

/// Plans and asks, and checks what has to hold for each map.
fn survive(answers: &[Run], pages: u64, start: u64, end: u64, to: Visibility, limit: usize) {
    let geometry = Geometry::new(PageSize::new(12).unwrap(), pages * PAGE).unwrap();
    let raw = RawRequest {
        offset: start * PAGE,
        size: (end - start) * PAGE,
        attributes: to.attributes(),
        ..RawRequest::default()
    };
    let request = Request::parse(&raw, &geometry, true).unwrap();
    let script = || Script::new(answers, pages, limit);

    if let Plan::Change(change) = Plan::new(&request, Action::Leave, &script()) {
        let store = change.store().expect("nothing else is to be done");
        assert_eq!(store, request.range());

        // A second reading may well contradict the first.
        let script = script();
        let mut last: Option<PageRange> = None;
        for part in change.differing(&script) {
            assert!(part.start() < part.end());
            assert!(start <= part.start().get() && part.end().get() <= end);
            if let Some(last) = last {
                assert!(last.end() < part.start(), "{last:?} {part:?}");
            }
            last = Some(part);
        }
    }

    let run = query(PageIndex::new(start), &geometry, &script());
    assert_eq!(run.range.start().get(), start);
    assert!(run.range.end().get() <= pages);
}

/// All scripts of up to three answers about a file of three pages, answers behind it included.
#[test]
fn all_short_scripts() {
    const PAGES: u64 = 3;
    // Each look settles at least one page.
    const LIMIT: usize = PAGES as usize;

    let mut answers = Vec::new();
    for start in 0..PAGES + 1 {
        for end in start + 1..=PAGES + 2 {
            for visibility in [Visibility::Shared, Visibility::Private] {
                let range = range(start, end);
                answers.push(Run { range, visibility });
            }
        }
    }
    for &a in &answers {
        for &b in &answers {
            for &c in &answers {
                for (start, end) in [(0, 3), (1, 2), (0, 1), (2, 3)] {
                    survive(&[a, b, c], PAGES, start, end, Visibility::Shared, LIMIT);
                    survive(&[a, b, c], PAGES, start, end, Visibility::Private, LIMIT);
                }
            }
        }
    }
}

fn any_run() -> impl Strategy<Value = Run> {
    let index = prop_oneof![
        3 => 0u64..40,
        1 => any::<u64>(),
        1 => u64::MAX - 3..=u64::MAX,
        1 => (1u64 << 51) - 3..=(1u64 << 51) + 3,
    ];
    (index.clone(), index, any::<bool>()).prop_map(|(a, b, shared)| Run {
        range: range(
            a.min(b).min(u64::MAX - 1),
            a.max(b).max(a.min(b).min(u64::MAX - 1) + 1),
        ),
        visibility: if shared {
            Visibility::Shared
        } else {
            Visibility::Private
        },
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 5_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Longer scripts about small files, answers up to the last index there is.
    #[test]
    fn long_scripts(
        answers in prop::collection::vec(any_run(), 1..12),
        (pages, start, end) in (1u64..32).prop_flat_map(|pages| {
            (Just(pages), 0..pages).prop_flat_map(|(pages, start)| {
                (Just(pages), Just(start), start + 1..=pages)
            })
        }),
        private in any::<bool>(),
    ) {
        let to = if private { Visibility::Private } else { Visibility::Shared };
        survive(&answers, pages, start, end, to, pages as usize);
    }

    /// In the largest possible file, a map that points elsewhere ends a walk at once.
    #[test]
    fn elsewhere_in_a_large_file(
        answer in any_run(),
        start in 0u64..(1 << 51) - 1,
        private in any::<bool>(),
    ) {
        let to = if private { Visibility::Private } else { Visibility::Shared };
        let pages = (1 << 51) - 1;
        // One look at a script of one answer may help, the next one ends the walk.
        survive(&[answer], pages, start, pages, to, 2);
        survive(&[answer], pages, start, start + 1, to, 2);
        survive(&[answer], pages, 0, start + 1, to, 2);
    }
}
