// SPDX-License-Identifier: GPL-2.0

//! The software models of the RMP and of the S-EPT against the architecture's rules, on random
//! sequences of operations.
//!
//! The expected state is kept page by page: the owner of each page, and the progress of its removal.
//! It does not use the models' own representation.

use std::collections::HashMap;

use gmem_policy::emulation::{
    rmp,
    sept, //
};
use proptest::prelude::*;

#[derive(Default)]
struct Rmp(HashMap<u64, rmp::Entry>);

impl rmp::Table for Rmp {
    fn get(&self, pfn: u64) -> rmp::Entry {
        self.0.get(&pfn).copied().unwrap_or_default()
    }

    fn set(&mut self, pfn: u64, entry: rmp::Entry) {
        self.0.insert(pfn, entry);
    }
}

#[derive(Default)]
struct Sept(HashMap<u64, sept::Entry>);

impl sept::Table for Sept {
    fn get(&self, gfn: u64) -> sept::Entry {
        self.0.get(&gfn).copied().unwrap_or_default()
    }

    fn set(&mut self, gfn: u64, entry: sept::Entry) {
        self.0.insert(gfn, entry);
    }
}

const PAGES: u64 = 2 * rmp::LARGE_PAGES;

#[derive(Clone, Copy, Debug)]
enum RmpStep {
    Assign {
        asid: u32,
        gfn: u64,
        immutable: bool,
    },
    Large {
        asid: u32,
        gfn: u64,
    },
    Unassign,
    UnassignLarge,
    Smash,
    Launch,
    Validate,
}

fn rmp_step() -> impl Strategy<Value = (u64, RmpStep)> {
    // Often the same few pages, both ends of the large ones among them.
    let pfn = prop_oneof![
        3 => prop::sample::select(vec![0u64, 1, 511, 512, 513, 1023]),
        1 => 0..PAGES,
    ];
    let step = prop_oneof![
        4 => (1u32..4, 0u64..2048, prop::bool::weighted(0.2)).prop_map(|(asid, gfn, immutable)| {
            RmpStep::Assign { asid, gfn, immutable }
        }),
        2 => (1u32..4, 0u64..4).prop_map(|(asid, n)| RmpStep::Large { asid, gfn: n * 512 }),
        3 => Just(RmpStep::Unassign),
        1 => Just(RmpStep::UnassignLarge),
        2 => Just(RmpStep::Smash),
        1 => Just(RmpStep::Launch),
        2 => Just(RmpStep::Validate),
    ];
    (pfn, step)
}

/// The state of a single page.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Owned {
    owner: Option<(u32, u64)>,
    large: bool,
    immutable: bool,
    validated: bool,
}

/// The rules of RMPUPDATE, PSMASH and PVALIDATE, one page at a time.
fn expect(
    pages: &[Owned],
    pfn: u64,
    step: RmpStep,
) -> Result<Vec<(u64, Owned)>, Option<rmp::Code>> {
    let first = pfn / 512 * 512;
    let group = || first..first + 512;
    let at = pages[pfn as usize];
    let large = at.large;
    let aligned = pfn == first;
    // What the owner has accepted stays so, if the page is assigned to it at the same place again.
    let new = |page: u64, asid, gfn, immutable| {
        let old = pages[page as usize];
        Owned {
            owner: Some((asid, gfn)),
            immutable,
            validated: old.owner == Some((asid, gfn)) && old.validated,
            ..Owned::default()
        }
    };

    match step {
        RmpStep::Assign { .. } | RmpStep::Unassign if large => Err(Some(rmp::Code::Overlap)),
        RmpStep::Assign { .. } | RmpStep::Unassign if at.immutable => {
            Err(Some(rmp::Code::Permission))
        }
        RmpStep::Assign {
            asid,
            gfn,
            immutable,
        } => Ok(vec![(pfn, new(pfn, asid, gfn, immutable))]),
        RmpStep::Unassign => Ok(vec![(pfn, Owned::default())]),
        RmpStep::Large { .. } | RmpStep::UnassignLarge | RmpStep::Smash if !aligned => {
            Err(Some(rmp::Code::Input))
        }
        RmpStep::Large { .. } | RmpStep::UnassignLarge
            if !large && group().any(|page| pages[page as usize].owner.is_some()) =>
        {
            Err(Some(rmp::Code::Overlap))
        }
        RmpStep::Large { asid, gfn } => Ok(group()
            .map(|page| {
                let page_of_it = Owned {
                    large: true,
                    ..new(page, asid, gfn + page - first, false)
                };
                (page, page_of_it)
            })
            .collect()),
        RmpStep::UnassignLarge => Ok(group().map(|page| (page, Owned::default())).collect()),
        RmpStep::Smash if !large => Err(Some(rmp::Code::Input)),
        RmpStep::Smash => Ok(group()
            .map(|page| {
                let small = Owned {
                    large: false,
                    ..pages[page as usize]
                };
                (page, small)
            })
            .collect()),
        RmpStep::Launch if !at.immutable => Err(Some(rmp::Code::Permission)),
        RmpStep::Launch => Ok(vec![(
            pfn,
            Owned {
                immutable: false,
                validated: true,
                ..at
            },
        )]),
        RmpStep::Validate if at.owner.is_none() || at.immutable => Err(Some(rmp::Code::Input)),
        RmpStep::Validate => {
            let validated = |page: u64| {
                let valid = Owned {
                    validated: true,
                    ..pages[page as usize]
                };
                (page, valid)
            };
            Ok(if large {
                group().map(validated).collect()
            } else {
                vec![validated(pfn)]
            })
        }
    }
}

fn carry_out(table: &mut Rmp, pages: &[Owned], pfn: u64, step: RmpStep) -> Result<(), rmp::Code> {
    match step {
        RmpStep::Assign {
            asid,
            gfn,
            immutable,
        } => {
            let entry = rmp::Entry::assigned(asid, gfn * 4096);
            let entry = if immutable { entry.immutable() } else { entry };
            rmp::update(table, pfn, entry)
        }
        RmpStep::Large { asid, gfn } => {
            rmp::update(table, pfn, rmp::Entry::assigned(asid, gfn * 4096).large())
        }
        RmpStep::Unassign => rmp::update(table, pfn, rmp::Entry::HYPERVISOR),
        RmpStep::UnassignLarge => rmp::update(table, pfn, rmp::Entry::HYPERVISOR.large()),
        RmpStep::Smash => rmp::smash(table, pfn),
        RmpStep::Launch => rmp::launch(table, pfn),
        RmpStep::Validate => {
            let (asid, gfn) = pages[pfn as usize].owner.unwrap_or((1, 0));
            rmp::validate(table, pfn, asid, gfn * 4096)
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum SeptStep {
    Add(u64),
    Augment(u64),
    Finalize,
    Block,
    Track,
    Remove,
    Relocate(u64),
    Unblock,
}

fn sept_step() -> impl Strategy<Value = (u64, SeptStep)> {
    let step = prop_oneof![
        3 => (0u64..1000).prop_map(SeptStep::Add),
        3 => (0u64..1000).prop_map(SeptStep::Augment),
        1 => Just(SeptStep::Finalize),
        4 => Just(SeptStep::Block),
        3 => Just(SeptStep::Track),
        4 => Just(SeptStep::Remove),
        3 => (0u64..1000).prop_map(SeptStep::Relocate),
        2 => Just(SeptStep::Unblock),
    ];
    (0u64..4, step)
}

/// The progress of the removal of a frame's page, or of its move.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Mapped,
    Blocked,
    Tracked,
}

impl Way {
    /// Whether no vCPU can have a translation. Before the end of the launch none has run.
    fn is_over(self, runnable: bool) -> bool {
        self == Way::Tracked || (self == Way::Blocked && !runnable)
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Each page has the owner that the rules give, and an operation that fails changes nothing.
    #[test]
    fn rmp_follows_the_rules(steps in prop::collection::vec(rmp_step(), 1..40)) {
        let mut table = Rmp::default();
        let mut pages = vec![Owned::default(); PAGES as usize];

        for (pfn, step) in steps {
            let expected = expect(&pages, pfn, step);
            let done = carry_out(&mut table, &pages, pfn, step);
            match expected {
                Ok(changes) => {
                    prop_assert_eq!(done, Ok(()), "{:?} at {}", step, pfn);
                    for (page, owned) in changes {
                        pages[page as usize] = owned;
                    }
                }
                Err(code) => prop_assert_eq!(done.err(), code, "{:?} at {}", step, pfn),
            }
            for (page, owned) in pages.iter().enumerate() {
                let entry = rmp::lookup(&table, page as u64);
                prop_assert_eq!(entry.assigned, owned.owner.is_some());
                prop_assert_eq!(entry.validated, owned.validated);
                if let Some((asid, gfn)) = owned.owner {
                    let his = rmp::belongs(&table, page as u64, asid, gfn * 4096);
                    prop_assert_eq!(his, !owned.immutable);
                    prop_assert!(!rmp::belongs(&table, page as u64, asid + 1, gfn * 4096));
                    prop_assert!(!rmp::belongs(&table, page as u64, asid, (gfn + 1) * 4096));
                }
            }
        }
    }

    /// A page comes back, moves or is unblocked only after BLOCK and TRACK, and the page that comes back
    /// is the one that was added, or the one that it was moved to.
    #[test]
    fn sept_gives_pages_back_in_order(steps in prop::collection::vec(sept_step(), 1..60)) {
        let mut td = sept::Td::new();
        let mut table = Sept::default();
        let mut runnable = false;
        let mut frames: [Option<(u64, Way)>; 4] = [None; 4];

        for (gfn, step) in steps {
            let frame = frames[gfn as usize];
            let (ok, expected) = match step {
                SeptStep::Add(pfn) => (
                    td.add(&mut table, gfn, pfn).is_ok(),
                    (!runnable && frame.is_none()).then_some(Some((pfn, Way::Mapped))),
                ),
                SeptStep::Augment(pfn) => (
                    td.augment(&mut table, gfn, pfn).is_ok(),
                    (runnable && frame.is_none()).then_some(Some((pfn, Way::Mapped))),
                ),
                SeptStep::Finalize => {
                    prop_assert_eq!(td.finalize().is_ok(), !runnable);
                    runnable = true;
                    continue;
                }
                SeptStep::Block => (
                    td.block(&mut table, gfn).is_ok(),
                    match frame {
                        Some((pfn, Way::Mapped)) => Some(Some((pfn, Way::Blocked))),
                        _ => None,
                    },
                ),
                SeptStep::Track => {
                    td.track();
                    for (_, way) in frames.iter_mut().flatten() {
                        if *way == Way::Blocked {
                            *way = Way::Tracked;
                        }
                    }
                    continue;
                }
                SeptStep::Remove => {
                    let removed = td.remove(&mut table, gfn);
                    match frame {
                        Some((pfn, way)) if way.is_over(runnable) => {
                            prop_assert_eq!(removed, Ok(pfn));
                            (true, Some(None))
                        }
                        _ => (removed.is_ok(), None),
                    }
                }
                SeptStep::Relocate(to) => {
                    let moved = td.relocate(&mut table, gfn, to);
                    match frame {
                        Some((pfn, way)) if way.is_over(runnable) => {
                            prop_assert_eq!(moved, Ok(pfn));
                            (true, Some(Some((to, Way::Mapped))))
                        }
                        _ => (moved.is_ok(), None),
                    }
                }
                SeptStep::Unblock => (
                    td.unblock(&mut table, gfn).is_ok(),
                    match frame {
                        Some((pfn, way)) if way.is_over(runnable) => Some(Some((pfn, Way::Mapped))),
                        _ => None,
                    },
                ),
            };
            prop_assert_eq!(ok, expected.is_some(), "{:?} at {}", step, gfn);
            if let Some(expected) = expected {
                frames[gfn as usize] = expected;
            }
            for (gfn, frame) in frames.iter().enumerate() {
                let entry = sept::Table::get(&table, gfn as u64);
                prop_assert_eq!(entry.pfn(), frame.map(|(pfn, _)| pfn));
                let tracked = frame.is_some_and(|(_, way)| way.is_over(runnable));
                prop_assert_eq!(td.is_tracked(entry), tracked);
            }
        }
    }
}
