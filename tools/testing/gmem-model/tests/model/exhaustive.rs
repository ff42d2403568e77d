// SPDX-License-Identifier: GPL-2.0

//! All requests to a file of eight pages.

use gmem_policy::{
    contract::action,
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
    platform::Platform,
    range::{
        Geometry,
        PageIndex,
        PageSize, //
    },
    visibility::Visibility, //
};

use crate::{
    map::Map,
    naive::{
        carry_out,
        invalid_get,
        invalid_set,
        File, //
    }, //
};

const PAGES: usize = 8;
const PAGE: u64 = 4096;
const VISIBILITIES: [Visibility; 2] = [Visibility::Shared, Visibility::Private];

fn geometry() -> Geometry {
    Geometry::new(PageSize::new(12).unwrap(), PAGES as u64 * PAGE).unwrap()
}

/// Calls `check` with each way in which eight pages can be shared and private, and each way in
/// which a map can have entries for them.
fn for_each_map(mut check: impl FnMut(&[Visibility], u64)) {
    let mut count = 0;
    for mask in 0..1u64 << PAGES {
        let pages: Vec<_> = (0..PAGES)
            .map(|page| VISIBILITIES[(mask >> page & 1) as usize])
            .collect();
        for cuts in 0..1u64 << (PAGES - 1) {
            // A cut where the visibility changes gives the same map as without it.
            let changes = (mask ^ mask >> 1) & ((1 << (PAGES - 1)) - 1);
            if cuts & changes == 0 {
                check(&pages, cuts);
                count += 1;
            }
        }
    }
    // Each of the seven borders is a change, a cut, or neither; the first page is either.
    assert_eq!(count, 2 * 3u64.pow(7));
}

fn for_each_range(mut check: impl FnMut(usize, usize)) {
    for start in 0..PAGES {
        for end in start + 1..=PAGES {
            check(start, end);
        }
    }
}

fn raw(start: usize, end: usize, to: Visibility, content: Content) -> RawRequest {
    RawRequest {
        offset: start as u64 * PAGE,
        size: (end - start) as u64 * PAGE,
        attributes: match to {
            Visibility::Shared => 0,
            Visibility::Private => 1 << 3,
        },
        flags: match content {
            Content::None => 0,
            Content::Zero => 1 << 0,
            Content::Preserve => 1 << 1,
        },
        ..RawRequest::default()
    }
}

/// From the struct to the bytes: each mask, map, range, direction and policy on each platform, where
/// it owns no page.
#[test]
fn conversions_follow_the_contract() {
    let geometry = geometry();
    for_each_map(|pages, cuts| {
        for_each_range(|start, end| {
            for to in VISIBILITIES {
                for (content, scramble) in [
                    (Content::None, false),
                    (Content::None, true),
                    (Content::Zero, false),
                    (Content::Zero, true),
                    (Content::Preserve, false),
                    (Content::Preserve, true),
                ] {
                    for &platform in Platform::ALL {
                        let request =
                            Request::parse(&raw(start, end, to, content), &geometry, true).unwrap();
                        let action = action(platform, false, to, content)
                            .unwrap()
                            .with_scrambling(scramble);
                        // The others do to bytes what they do, and nothing on purpose.
                        let scramble = scramble && platform == Platform::SwProtected;

                        let mut map = Map::split(pages, cuts);
                        let mut bytes = File::new(pages.to_vec()).bytes;
                        if let Plan::Change(change) = Plan::new(&request, action, &map) {
                            carry_out(&change, &mut map, &mut bytes);
                        }

                        let mut expected = File::new(pages.to_vec());
                        expected.convert(start..end, to, content, scramble);
                        assert_eq!(bytes, expected.bytes, "{pages:?} {cuts:b} {request:?}");
                        assert_eq!(
                            map.pages(),
                            expected.pages,
                            "{pages:?} {cuts:b} {request:?}"
                        );
                    }
                }
            }
        });
    });
}

/// Whether there is work, which, where, and what the map is afterwards, for any action.
#[test]
fn plans_agree_with_the_bitmap() {
    const ACTIONS: [Action; 3] = [Action::Leave, Action::Zero, Action::Scramble];

    let geometry = geometry();
    for_each_map(|pages, cuts| {
        let before = File::new(pages.to_vec());
        for_each_range(|start, end| {
            for to in VISIBILITIES {
                let request =
                    Request::parse(&raw(start, end, to, Content::None), &geometry, true).unwrap();
                let parts = before.differing(start..end, to);
                let mut after = before.clone();
                after.convert(start..end, to, Content::Preserve, false);

                for action in ACTIONS {
                    let mut map = Map::split(pages, cuts);
                    let context = || format!("{pages:?} {cuts:b} {request:?} {action:?}");
                    let plan = Plan::new(&request, action, &map);

                    let Plan::Change(change) = plan else {
                        assert!(parts.is_empty(), "{}", context());
                        assert_eq!(action, Action::Leave, "{}", context());
                        continue;
                    };
                    assert!(
                        !parts.is_empty() || action != Action::Leave,
                        "{}",
                        context()
                    );
                    assert_eq!(change.request(), request);
                    assert_eq!(change.range(), request.range());
                    assert_eq!(change.to(), to);
                    assert_eq!(change.action(), action);
                    assert_eq!(
                        change.changes_attributes(),
                        !parts.is_empty(),
                        "{}",
                        context()
                    );
                    assert_eq!(change.store().is_some(), !parts.is_empty(), "{}", context());

                    let found: Vec<_> = change
                        .differing(&map)
                        .map(|part| part.start().get()..part.end().get())
                        .collect();
                    assert_eq!(found, parts, "{}", context());

                    if let Some(store) = change.store() {
                        assert_eq!(store, request.range(), "{}", context());

                        let was_canonical = map.is_canonical();
                        map.store(store, to);
                        assert_eq!(map.pages(), after.pages, "{}", context());
                        if was_canonical {
                            let canonical = Map::canonical(&after.pages);
                            assert_eq!(map.entries(), canonical.entries(), "{}", context());
                        }
                    }
                }
            }
        });
    });
}

/// From each page of each map a question leads to the next change or to the end of the file.
#[test]
fn queries_agree_with_the_bitmap() {
    let geometry = geometry();
    for_each_map(|pages, cuts| {
        let file = File::new(pages.to_vec());
        let map = Map::split(pages, cuts);
        for (page, &visibility) in pages.iter().enumerate() {
            let run = query(PageIndex::new(page as u64), &geometry, &map);
            assert_eq!(run.visibility, visibility);
            assert_eq!(run.range.start().get(), page as u64);
            assert_eq!(run.range.end().get(), file.run_around(page..page + 1).end);
        }
    });
}

/// For each combination of mistakes in the struct, the error is that of the first matching row of
/// the table.
#[test]
fn structs_are_refused_in_order() {
    let geometry = geometry();
    let size = PAGES as u64 * PAGE;
    // Half pages around the start, the end, and the place where 64 bits end.
    let bytes: Vec<u64> = (0..=20)
        .map(|halves| halves * PAGE / 2)
        .chain((1..=20).map(|halves: u64| (halves * PAGE / 2).wrapping_neg()))
        .chain([1, PAGE - 1, PAGE + 1, size - 1, size + 1, u64::MAX, 1 << 63])
        .collect();
    let (mut set, mut get) = (0u32, 0u32);

    for &offset in &bytes {
        for &size_field in &bytes {
            for attributes in [0, 8, 1, 9, 1 << 63] {
                for flags in [0, 1, 2, 3, 4, 1 << 63] {
                    for (reserved, error_offset) in [
                        (None, 0),
                        (None, 7),
                        (Some(0), 0),
                        (Some(5), 0),
                        (Some(10), 7),
                    ] {
                        for has_private_memory in [false, true] {
                            let mut raw = RawRequest {
                                offset,
                                size: size_field,
                                attributes,
                                flags,
                                error_offset,
                                reserved: [0; 11],
                            };
                            if let Some(word) = reserved {
                                raw.reserved[word] = 1;
                            }

                            let parsed = Request::parse(&raw, &geometry, has_private_memory);
                            let invalid = invalid_set(&raw, PAGE, size, has_private_memory);
                            assert_eq!(parsed.err(), invalid, "{raw:?}");
                            if let Ok(request) = parsed {
                                set += 1;
                                assert_eq!(request.range().start().get() * PAGE, offset);
                                assert_eq!(request.range().len() * PAGE, size_field);
                                assert_eq!(request.to() == Visibility::Private, attributes == 8);
                                assert_eq!(request.content() == Content::None, flags == 0);
                                assert_eq!(request.content() == Content::Zero, flags == 1);
                            }

                            let parsed = Query::parse(&raw, &geometry, has_private_memory);
                            let invalid = invalid_get(&raw, PAGE, size, has_private_memory);
                            assert_eq!(parsed.err(), invalid, "{raw:?}");
                            if let Ok(query) = parsed {
                                get += 1;
                                assert_eq!(query.at().get() * PAGE, offset);
                            }
                        }
                    }
                }
            }
        }
    }
    // 36 ranges, two directions, three policies, two contents of error_offset; eight pages.
    assert_eq!(set, 36 * 2 * 3 * 2);
    assert_eq!(get, 8);
}
