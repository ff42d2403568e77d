// SPDX-License-Identifier: GPL-2.0

//! One page that host and guests fault in while it is converted, in every order that there is.
//!
//! The locks, the sequence and the order of the steps are those of `src/convert.rs`,
//! `src/fault.rs`, `src/get_pfn.rs` and KVM's MMU, as `locking.rst` describes them; everything else
//! about them is left out. All states that can be reached are visited. This checks the protocol,
//! not the code that follows it, and leaves the order of memory accesses to the locks.
//!
//! A protocol with a step in the wrong place, or without it, has to fail: that is half of the
//! tests.
//!
//! Done by hand: loom 0.7.3 let a sequence that is read too late pass.

use std::collections::HashSet;

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Visibility {
    Private,
    Shared,
}

use Visibility::{
    Private,
    Shared, //
};

/// What a thread does without being interrupted. What is done under `mmu_lock` is one step.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// Takes the invalidate lock, exclusive.
    Lock,
    Unlock,
    LockShared,
    UnlockShared,
    /// Takes the lock of the folio, which the end of its user's last step releases.
    LockFolio,

    // Guest fault.
    ReadSequence,
    /// Under RCU: is the gfn private?
    ReadAttribute,
    /// Under `mmu_lock`.
    MapUnlessStale,
    MapAnyway,

    // Host fault.
    StopIfPrivate,
    /// With the folio locked.
    MapToHost,

    // Conversion.
    StopIfConverted,
    /// Unmaps the page from the host, with the folio locked.
    Quiesce,
    Begin,
    /// Under `mmu_lock`: is the page in the S-EPT?
    AskWhetherOwned,
    /// PRESERVE on TDX: taking an owned page out of the S-EPT would destroy the bytes.
    StopIfOwned,
    Zap,
    Store,
    End,
}

use Step::*;

const GUEST: &[Step] = &[
    ReadSequence,
    ReadAttribute,
    LockShared,
    UnlockShared,
    MapUnlessStale,
];
const HOST: &[Step] = &[
    LockShared,
    StopIfPrivate,
    LockFolio,
    UnlockShared,
    MapToHost,
];
const CONVERT: &[Step] = &[
    Lock,
    StopIfConverted,
    Quiesce,
    Begin,
    AskWhetherOwned,
    StopIfOwned,
    Zap,
    Store,
    End,
    Unlock,
];

/// `steps` in another order: `moved` comes right after `after`.
fn misplace(steps: &[Step], moved: Step, after: Step) -> Vec<Step> {
    let mut steps = without(steps, &[moved]);
    let at = steps.iter().position(|&step| step == after).unwrap();
    steps.insert(at + 1, moved);
    steps
}

fn without(steps: &[Step], left_out: &[Step]) -> Vec<Step> {
    steps
        .iter()
        .copied()
        .filter(|step| !left_out.contains(step))
        .collect()
}

#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
struct Thread {
    next: usize,
    sequence: u8,
    kind: Option<Visibility>,
    owned: bool,
    shared_lock: bool,
    folio_lock: bool,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct State {
    attribute: Visibility,
    /// Holders of the invalidate lock.
    exclusive: bool,
    readers: u8,
    folio_locked: bool,
    host_mapped: bool,
    /// `mmu_invalidate_in_progress` and `mmu_invalidate_seq`.
    in_progress: u8,
    sequence: u8,
    /// The kind of the guest's mapping.
    mapped: Option<Visibility>,
    destroyed: bool,
    threads: Vec<Thread>,
}

/// What a thread runs. `to` is what a conversion converts to.
struct Program {
    steps: Vec<Step>,
    to: Visibility,
}

fn program(steps: &[Step]) -> Program {
    Program {
        steps: steps.to_vec(),
        to: Shared,
    }
}

fn convert(steps: &[Step], to: Visibility) -> Program {
    Program {
        steps: steps.to_vec(),
        to,
    }
}

/// The state after the next step of thread `id`; [`None`] if it has none, or waits for a lock.
fn step(before: &State, id: usize, program: &Program) -> Option<State> {
    let mut state = before.clone();
    let mut thread = state.threads[id];
    let step = *program.steps.get(thread.next)?;
    let mut stop = false;

    match step {
        Lock if state.exclusive || state.readers > 0 => return None,
        Lock => state.exclusive = true,
        Unlock => state.exclusive = false,
        LockShared if state.exclusive => return None,
        LockShared => {
            state.readers += 1;
            thread.shared_lock = true;
        }
        UnlockShared => {
            state.readers -= 1;
            thread.shared_lock = false;
        }
        LockFolio | Quiesce if state.folio_locked => return None,
        LockFolio => {
            state.folio_locked = true;
            thread.folio_lock = true;
        }

        ReadSequence => thread.sequence = state.sequence,
        ReadAttribute => thread.kind = Some(state.attribute),
        MapUnlessStale if state.in_progress > 0 || state.sequence != thread.sequence => {}
        MapUnlessStale | MapAnyway => state.mapped = thread.kind,

        StopIfPrivate => stop = state.attribute == Private,
        MapToHost => {
            state.host_mapped = true;
            state.folio_locked = false;
            thread.folio_lock = false;
        }

        StopIfConverted => stop = state.attribute == program.to,
        Quiesce if program.to == Private => state.host_mapped = false,
        Quiesce => {}
        Begin => state.in_progress += 1,
        AskWhetherOwned => thread.owned = state.mapped == Some(Private),
        StopIfOwned => {
            stop = program.to == Shared && thread.owned;
            // Leaving is dropping what is held; the invalidation, too.
            if stop && program.steps[..thread.next].contains(&Begin) {
                state.in_progress -= 1;
                state.sequence += 1;
            }
        }
        Zap if state.mapped.is_some_and(|kind| kind != program.to) => {
            state.destroyed |= state.mapped == Some(Private);
            state.mapped = None;
        }
        Zap => {}
        Store => state.attribute = program.to,
        End => {
            state.in_progress -= 1;
            state.sequence += 1;
        }
    }

    thread.next += 1;
    if stop {
        thread.next = program.steps.len();
        state.folio_locked &= !thread.folio_lock;
        match thread.shared_lock {
            true => state.readers -= 1,
            false => state.exclusive = false,
        }
    }
    state.threads[id] = thread;
    Some(state)
}

/// What must be true when nobody is in the middle of something.
fn complaint(state: &State) -> Option<&'static str> {
    let stale = state.mapped.is_some_and(|kind| kind != state.attribute);

    match state {
        _ if state.destroyed => Some("PRESERVE lost the guest's bytes"),
        _ if stale => Some("the guest has a mapping of the wrong kind"),
        _ if state.host_mapped && state.attribute == Private => Some("the host has a private page"),
        _ => None,
    }
}

/// Runs `programs` at once on a page that starts as `initial`. Returns what can go wrong.
fn race(initial: Visibility, programs: &[Program]) -> Option<&'static str> {
    let start = State {
        attribute: initial,
        exclusive: false,
        readers: 0,
        folio_locked: false,
        host_mapped: false,
        in_progress: 0,
        sequence: 0,
        mapped: None,
        destroyed: false,
        threads: vec![Thread::default(); programs.len()],
    };
    let mut seen = HashSet::from([start.clone()]);
    let mut open = vec![start];

    while let Some(state) = open.pop() {
        let next: Vec<_> = programs
            .iter()
            .enumerate()
            .filter_map(|(id, program)| step(&state, id, program))
            .collect();
        let ended = |(thread, program): (&Thread, &Program)| thread.next == program.steps.len();

        if next.is_empty() {
            if !state.threads.iter().zip(programs).all(ended) {
                return Some("nobody gets on");
            }
            if let Some(complaint) = complaint(&state) {
                return Some(complaint);
            }
        }
        open.extend(next.into_iter().filter(|state| seen.insert(state.clone())));
    }
    None
}

/// Faults of all kinds against one conversion, and against two.
#[test]
fn everybody_gets_on_and_sees_what_he_may() {
    let faults: [&[&[Step]]; 6] = [
        &[GUEST],
        &[HOST],
        &[GUEST, GUEST],
        &[HOST, GUEST],
        &[HOST, HOST],
        &[HOST, GUEST, GUEST],
    ];
    let conversions: [&[Visibility]; 5] = [
        &[Private],
        &[Shared],
        &[Private, Shared],
        &[Private, Private],
        &[Shared, Shared],
    ];

    for initial in [Private, Shared] {
        for (faults, conversions) in faults
            .iter()
            .flat_map(|faults| conversions.iter().map(move |to| (faults, to)))
        {
            let programs: Vec<_> = faults
                .iter()
                .map(|steps| program(steps))
                .chain(conversions.iter().map(|&to| convert(CONVERT, to)))
                .collect();
            assert_eq!(
                race(initial, &programs),
                None,
                "{initial:?} {faults:?} {conversions:?}"
            );
        }
    }
}

/// One fault against one conversion, as `convert` and `fault` do it.
fn duel(fault: &[Step], steps: &[Step], to: Visibility) -> Option<&'static str> {
    let initial = match to {
        Private => Shared,
        Shared => Private,
    };
    race(initial, &[program(fault), convert(steps, to)])
}

const LOST: Option<&str> = Some("PRESERVE lost the guest's bytes");
const STALE: Option<&str> = Some("the guest has a mapping of the wrong kind");
const DEADLOCK: Option<&str> = Some("nobody gets on");
const LEAKED: Option<&str> = Some("the host has a private page");

/// Hazard 40.
#[test]
fn asking_before_the_invalidation_loses_bytes() {
    let early = misplace(CONVERT, AskWhetherOwned, Quiesce);
    assert_eq!(duel(GUEST, &early, Shared), LOST);
}

#[test]
fn zapping_before_the_invalidation_leaves_a_mapping() {
    let early = misplace(CONVERT, Zap, Quiesce);
    assert_eq!(duel(GUEST, &early, Private), STALE);
}

#[test]
fn no_invalidation_leaves_a_mapping() {
    let none = without(CONVERT, &[Begin, End]);
    assert_eq!(duel(GUEST, &none, Private), STALE);
}

#[test]
fn storing_after_the_invalidation_leaves_a_mapping() {
    let late = misplace(CONVERT, Store, End);
    assert_eq!(duel(GUEST, &late, Private), STALE);
    assert_eq!(duel(GUEST, &late, Shared), STALE);
}

#[test]
fn reading_the_sequence_late_leaves_a_mapping() {
    let late = misplace(GUEST, ReadSequence, ReadAttribute);
    assert_eq!(duel(&late, CONVERT, Private), STALE);
    assert_eq!(duel(&late, CONVERT, Shared), STALE);
}

#[test]
fn not_checking_the_sequence_leaves_a_mapping() {
    let mut unchecked = without(GUEST, &[MapUnlessStale]);
    unchecked.push(MapAnyway);
    assert_eq!(duel(&unchecked, CONVERT, Private), STALE);
}

#[test]
fn unlocking_before_the_folio_is_locked_leaks_a_page() {
    let early = misplace(HOST, LockFolio, UnlockShared);
    assert_eq!(duel(&early, CONVERT, Private), LEAKED);
}

#[test]
fn not_taking_the_page_from_the_host_leaks_it() {
    let none = without(CONVERT, &[Quiesce]);
    assert_eq!(duel(HOST, &none, Private), LEAKED);
}

/// The order of locks: who has the folio may not wait for the invalidate lock.
#[test]
fn waiting_for_the_lock_with_a_locked_folio_is_a_deadlock() {
    let inverted = [
        LockFolio,
        LockShared,
        StopIfPrivate,
        UnlockShared,
        MapToHost,
    ];
    assert_eq!(duel(&inverted, CONVERT, Private), DEADLOCK);
}
