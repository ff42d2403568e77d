// SPDX-License-Identifier: GPL-2.0

//! One page that host and guests fault in while it is converted, freed, or moved to another frame,
//! in every possible order.
//!
//! The locks, the sequence and the order of the steps are those of `src/convert.rs`,
//! `src/fault.rs`, `src/get_pfn.rs`, KVM's MMU and the kernel's `mm/migrate.c`, as `locking.rst`
//! describes them; everything else is left out. All reachable states are
//! visited. This checks the protocol, not the code that follows it, and leaves the order of memory
//! accesses to the locks.
//!
//! A protocol with a step in the wrong place, or without it, has to fail. This is half of the
//! tests.
//!
//! It does not use loom, as loom 0.7.3 did not find a sequence that is read too late.

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
    /// Takes the lock of the folio that the file has here, which the end of its user's last step
    /// releases. A waiter then looks again which folio that is.
    LockFolio,
    UnlockFolio,

    // Guest fault.
    ReadSequence,
    /// Under RCU: is the gfn private?
    ReadAttribute,
    /// Under RCU, without lock and reference: which page does the file have here?
    FindInUse,
    /// The same, and keeps a reference to it until it is mapped.
    FindReferenced,
    /// Under `mmu_lock`.
    MapUnlessStale,
    MapAnyway,
    /// Under `mmu_lock`: maps what the file has, if no invalidation is in progress.
    MapInUse,
    MapInUseAnyway,

    // Host fault.
    /// Fault-around does nothing if the lock is not free, and a move is given up.
    TryLockShared,
    StopIfPrivate,
    /// Fault-around skips a folio that is locked.
    TryLockFolio,
    /// With the folio locked.
    MapToHost,

    // Conversion.
    StopIfConverted,
    /// Unmaps the page from the host, and takes the entries away at which it waits.
    Unmap,
    /// Leaves these.
    UnmapPresent,
    /// Does so again, with the folio locked, if there is a reference that the page cache does not
    /// explain. A fault has one as long as it has the folio locked, and then the mapping has it.
    QuiesceIfReferenced,
    /// The same if there is a mapping.
    QuiesceIfMapped,
    Begin,
    /// Under `mmu_lock`: is the page in the S-EPT?
    AskWhetherOwned,
    /// PRESERVE on TDX: taking an owned page out of the S-EPT would destroy the bytes.
    StopIfOwned,
    Zap,
    /// What ZERO does to the bytes, with a reference to the page.
    Write,
    Store,
    End,

    // Hole punching.
    /// Both kinds of mapping.
    ZapAll,
    /// With the folio locked; what the host has of it goes, too.
    Free,

    // Moving, of a folio that the kernel has isolated.
    /// Takes the page from the host, and leaves an entry at which its faults wait for the folio.
    LeaveEntries,
    /// All bytes, to another frame.
    Copy,
    /// Gives the file the other frame if nobody else has a reference to the old one.
    ReplaceUnlessReferenced,
    Replace,
    /// Gives the host the page that the file has now, where entries are left.
    FillEntries,
}

use Step::*;

const GUEST: &[Step] = &[
    ReadSequence,
    ReadAttribute,
    LockShared,
    FindReferenced,
    UnlockShared,
    MapUnlessStale,
];
/// A page that is in use, and that no platform is to be given.
const GUEST_IN_USE: &[Step] = &[ReadSequence, ReadAttribute, FindInUse, MapUnlessStale];
/// KVM_MAP_MEMORY of many pages, and what is mapped ahead of a guest.
const GUEST_AHEAD: &[Step] = &[MapInUse];
const AROUND: &[Step] = &[
    TryLockShared,
    StopIfPrivate,
    TryLockFolio,
    MapToHost,
    UnlockShared,
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
    Unmap,
    QuiesceIfReferenced,
    Begin,
    AskWhetherOwned,
    StopIfOwned,
    Zap,
    Store,
    End,
    Unlock,
];

const PUNCH: &[Step] = &[Lock, Begin, ZapAll, Free, End, Unlock];

const MOVE: &[Step] = &[
    LockFolio,
    LeaveEntries,
    TryLockShared,
    Begin,
    ZapAll,
    Copy,
    ReplaceUnlessReferenced,
    End,
    UnlockShared,
    FillEntries,
    UnlockFolio,
];

/// A conversion with ZERO, which holds a reference while it writes, and not the folio's lock.
fn convert_zeroing(to: Visibility) -> Program {
    let mut steps = CONVERT.to_vec();
    let at = steps.iter().position(|&step| step == Store).unwrap();
    steps.splice(at..at, [FindReferenced, Write]);
    convert(&steps, to)
}

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
    page: u8,
    referenced: bool,
    owned: bool,
    exclusive_lock: bool,
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
    host_page: u8,
    /// The host has nothing mapped, but gets what a move puts back.
    host_waits: bool,
    /// `mmu_invalidate_in_progress` and `mmu_invalidate_seq`.
    in_progress: u8,
    sequence: u8,
    /// The kind of the guest's mapping.
    mapped: Option<Visibility>,
    /// Which page it is a mapping of, and which one the file has: freed ones have other numbers.
    mapped_page: u8,
    page: u8,
    /// The page has been copied, and may have been written to since.
    copied: bool,
    outdated: bool,
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

impl State {
    /// Whether a thread or a mapping has a reference to the page that the file has.
    fn is_referenced(&self) -> bool {
        let has = |thread: &Thread| thread.referenced && thread.page == self.page;
        let mapped = self.host_mapped && self.host_page == self.page;
        mapped || self.threads.iter().any(has)
    }

    /// Anyone who has the page mapped can write to it after it was copied.
    fn check_copy(&mut self) {
        let guest = self.mapped.is_some() && self.mapped_page == self.page;
        let host = self.host_mapped && self.host_page == self.page;
        self.outdated |= self.copied && (guest || host);
    }

    fn drop_copy(&mut self) {
        self.copied = false;
        self.outdated = false;
    }

    /// Restores the host's mappings of a page after a move that succeeded or failed.
    fn fill_entries(&mut self) {
        if self.host_waits {
            self.host_waits = false;
            self.host_mapped = true;
            self.host_page = self.page;
        }
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
        Lock => {
            state.exclusive = true;
            thread.exclusive_lock = true;
        }
        Unlock => {
            state.exclusive = false;
            thread.exclusive_lock = false;
        }
        LockShared if state.exclusive => return None,
        // An attempt to take the lock holds nothing.
        TryLockShared if state.exclusive => stop = true,
        LockShared | TryLockShared => {
            state.readers += 1;
            thread.shared_lock = true;
        }
        UnlockShared => {
            state.readers -= 1;
            thread.shared_lock = false;
        }
        LockFolio | QuiesceIfReferenced if state.folio_locked => return None,
        QuiesceIfMapped if state.host_mapped && state.folio_locked => return None,
        TryLockFolio if state.folio_locked => stop = true,
        LockFolio | TryLockFolio => {
            state.folio_locked = true;
            thread.folio_lock = true;
            thread.page = state.page;
        }
        UnlockFolio => {
            state.folio_locked = false;
            thread.folio_lock = false;
        }

        ReadSequence => thread.sequence = state.sequence,
        ReadAttribute => thread.kind = Some(state.attribute),
        MapUnlessStale if state.in_progress > 0 || state.sequence != thread.sequence => {
            thread.referenced = false;
        }
        MapUnlessStale | MapAnyway => {
            state.mapped = thread.kind;
            state.mapped_page = thread.page;
            thread.referenced = false;
        }
        FindInUse | FindReferenced => {
            thread.page = state.page;
            thread.referenced = step == FindReferenced;
        }
        MapInUse if state.in_progress > 0 => {}
        MapInUse | MapInUseAnyway => {
            state.mapped = Some(state.attribute);
            state.mapped_page = state.page;
        }

        StopIfPrivate => stop = state.attribute == Private,
        MapToHost => {
            state.host_mapped = true;
            state.host_page = thread.page;
            state.host_waits = false;
            state.folio_locked = false;
            thread.folio_lock = false;
            thread.referenced = false;
        }

        StopIfConverted => stop = state.attribute == program.to,
        Unmap | QuiesceIfReferenced | QuiesceIfMapped if program.to == Private => {
            state.host_mapped = false;
            state.host_waits = false;
        }
        UnmapPresent if program.to == Private => state.host_mapped = false,
        UnmapPresent => {}
        Unmap | QuiesceIfReferenced | QuiesceIfMapped => {}
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
        Write => {
            state.destroyed |= thread.page != state.page;
            state.outdated |= state.copied;
            thread.referenced = false;
        }
        Store => state.attribute = program.to,
        End => {
            state.in_progress -= 1;
            state.sequence += 1;
        }
        ZapAll => state.mapped = None,
        Free if state.folio_locked => return None,
        Free => {
            state.host_mapped = false;
            state.host_waits = false;
            state.page += 1;
        }

        LeaveEntries => {
            state.host_waits |= state.host_mapped;
            state.host_mapped = false;
        }
        ReplaceUnlessReferenced if state.is_referenced() => {
            stop = true;
            state.drop_copy();
            if program.steps.contains(&Begin) {
                state.in_progress -= 1;
                state.sequence += 1;
            }
        }
        Copy => state.copied = true,
        Replace | ReplaceUnlessReferenced => {
            state.destroyed |= state.outdated;
            state.drop_copy();
            state.page += 1;
        }
        FillEntries => state.fill_entries(),
    }
    state.check_copy();

    thread.next += 1;
    if stop {
        thread.next = program.steps.len();
        if program.steps.contains(&LeaveEntries) {
            state.fill_entries();
        }
        state.folio_locked &= !thread.folio_lock;
        state.readers -= u8::from(thread.shared_lock);
        state.exclusive &= !thread.exclusive_lock;
        thread.exclusive_lock = false;
        thread.shared_lock = false;
        thread.folio_lock = false;
    }
    state.threads[id] = thread;
    Some(state)
}

/// What must be true when nobody is in the middle of something.
fn complaint(state: &State) -> Option<&'static str> {
    let stale = state.mapped.is_some_and(|kind| kind != state.attribute);

    let freed = state.mapped.is_some() && state.mapped_page != state.page;
    let old = state.host_mapped && state.host_page != state.page;

    match state {
        _ if freed => Some("the guest has a page that was freed"),
        _ if old => Some("the host has a page that was freed"),
        _ if state.destroyed => Some("bytes were lost"),
        _ if stale => Some("the guest has a mapping of the wrong kind"),
        _ if state.host_mapped && state.attribute == Private => Some("the host has a private page"),
        _ => None,
    }
}

/// Runs `programs` at once on a page that starts as `initial`. Returns an error that can occur.
fn race(initial: Visibility, programs: &[Program]) -> Option<&'static str> {
    let start = State {
        attribute: initial,
        exclusive: false,
        readers: 0,
        folio_locked: false,
        host_mapped: false,
        host_page: 0,
        host_waits: false,
        in_progress: 0,
        sequence: 0,
        mapped: None,
        mapped_page: 0,
        page: 0,
        copied: false,
        outdated: false,
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
    let faults: [&[&[Step]]; 14] = [
        &[GUEST],
        &[GUEST_AHEAD],
        &[GUEST_AHEAD, GUEST],
        &[GUEST_AHEAD, AROUND],
        &[GUEST_IN_USE],
        &[HOST],
        &[AROUND],
        &[AROUND, AROUND],
        &[HOST, AROUND],
        &[GUEST_IN_USE, AROUND],
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

const LOST: Option<&str> = Some("bytes were lost");
const STALE: Option<&str> = Some("the guest has a mapping of the wrong kind");
const DEADLOCK: Option<&str> = Some("nobody gets on");
const LEAKED: Option<&str> = Some("the host has a private page");
const FREED: Option<&str> = Some("the guest has a page that was freed");
const OLD: Option<&str> = Some("the host has a page that was freed");

/// Guest faults without lock and reference against hole punching.
#[test]
fn no_guest_gets_a_page_that_is_being_freed() {
    let guests = [
        &[GUEST_IN_USE][..],
        &[GUEST_AHEAD],
        &[GUEST_IN_USE, GUEST_IN_USE],
        &[GUEST_IN_USE, GUEST_AHEAD],
    ];
    for guests in guests {
        for holes in [&[PUNCH][..], &[PUNCH, PUNCH]] {
            let programs: Vec<_> = guests
                .iter()
                .chain(holes)
                .map(|steps| program(steps))
                .collect();
            assert_eq!(race(Private, &programs), None);
        }
    }
}

/// One fault against one hole.
fn punch(fault: &[Step], steps: &[Step]) -> Option<&'static str> {
    race(Private, &[program(fault), program(steps)])
}

#[test]
fn finding_a_page_before_the_sequence_gives_a_freed_one() {
    let late = misplace(GUEST_IN_USE, ReadSequence, FindInUse);
    assert_eq!(punch(&late, PUNCH), FREED);
}

#[test]
fn not_checking_the_sequence_gives_a_freed_page() {
    let mut unchecked = without(GUEST_IN_USE, &[MapUnlessStale]);
    unchecked.push(MapAnyway);
    assert_eq!(punch(&unchecked, PUNCH), FREED);
}

#[test]
fn freeing_outside_of_the_invalidation_gives_a_freed_page() {
    assert_eq!(punch(GUEST_IN_USE, &misplace(PUNCH, Free, End)), FREED);
    assert_eq!(punch(GUEST_IN_USE, &misplace(PUNCH, Begin, Free)), FREED);
    assert_eq!(punch(GUEST_IN_USE, &without(PUNCH, &[Begin, End])), FREED);
}

#[test]
fn mapping_ahead_during_an_invalidation_leaves_a_mapping() {
    let careless = [MapInUseAnyway];
    assert_eq!(punch(&careless, PUNCH), FREED);
    assert_eq!(duel(&careless, CONVERT, Private), STALE);
    assert_eq!(duel(&careless, CONVERT, Shared), STALE);
}

/// Unmapping a page from the host does not take it from the guest.
#[test]
fn nobody_zaps_in_the_place_of_the_conversion() {
    let none = without(CONVERT, &[Zap]);
    assert_eq!(duel(GUEST, &none, Private), STALE);
}

#[test]
fn looking_at_mappings_and_not_at_references_leaks_a_page() {
    let mut mapped = CONVERT.to_vec();
    mapped
        .iter_mut()
        .filter(|step| **step == QuiesceIfReferenced)
        .for_each(|step| *step = QuiesceIfMapped);
    assert_eq!(duel(HOST, &mapped, Private), LEAKED);
}

#[test]
fn fault_around_without_the_lock_leaks_a_page() {
    let unlocked = [StopIfPrivate, TryLockFolio, MapToHost];
    assert_eq!(duel(&unlocked, CONVERT, Private), LEAKED);
}

#[test]
fn fault_around_that_unlocks_early_leaks_a_page() {
    let early = misplace(AROUND, UnlockShared, StopIfPrivate);
    assert_eq!(duel(&early, CONVERT, Private), LEAKED);
}

#[test]
fn fault_around_without_a_look_at_the_attribute_leaks_a_page() {
    let blind = without(AROUND, &[StopIfPrivate]);
    assert_eq!(duel(&blind, CONVERT, Private), LEAKED);
}

/// Hazard 40.
#[test]
fn asking_before_the_invalidation_loses_bytes() {
    let early = misplace(CONVERT, AskWhetherOwned, Unmap);
    assert_eq!(duel(GUEST, &early, Shared), LOST);
}

#[test]
fn zapping_before_the_invalidation_leaves_a_mapping() {
    let early = misplace(CONVERT, Zap, Unmap);
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
    let none = without(CONVERT, &[Unmap, QuiesceIfReferenced]);
    assert_eq!(duel(HOST, &none, Private), LEAKED);
}

/// The order of locks: the holder of the folio lock must not wait for the invalidate lock.
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

/// Faults of all kinds, conversions and holes against one move, and against two in a row.
#[test]
fn a_page_moves_and_nobody_sees_it() {
    let others: [&[&[Step]]; 16] = [
        &[GUEST],
        &[GUEST_IN_USE],
        &[GUEST_AHEAD],
        &[GUEST_AHEAD, GUEST_IN_USE],
        &[GUEST_IN_USE, GUEST_IN_USE],
        &[HOST],
        &[AROUND],
        &[HOST, AROUND],
        &[HOST, GUEST],
        &[HOST, GUEST_IN_USE],
        &[HOST, GUEST_AHEAD],
        &[AROUND, GUEST_IN_USE],
        &[PUNCH],
        &[PUNCH, GUEST_IN_USE],
        &[PUNCH, HOST],
        &[PUNCH, HOST, GUEST_AHEAD],
    ];
    let conversions: [&[Visibility]; 4] = [&[], &[Private], &[Shared], &[Private, Shared]];

    for initial in [Private, Shared] {
        for (others, conversions) in others
            .iter()
            .flat_map(|others| conversions.iter().map(move |to| (others, to)))
        {
            for moves in [&[MOVE][..], &[MOVE, MOVE]] {
                if others.len() + conversions.len() + moves.len() > 4 {
                    continue;
                }
                let programs: Vec<_> = others
                    .iter()
                    .chain(moves)
                    .map(|steps| program(steps))
                    .chain(conversions.iter().map(|&to| convert_zeroing(to)))
                    .collect();
                assert_eq!(
                    race(initial, &programs),
                    None,
                    "{initial:?} {others:?} {conversions:?}"
                );
            }
        }
    }
}

/// `others` against one move of a page that they can all have.
fn moved(others: &[&[Step]], steps: &[Step]) -> Option<&'static str> {
    let programs: Vec<_> = others.iter().copied().chain([steps]).map(program).collect();
    race(Shared, &programs)
}

/// The guest would keep a frame that the file has given back.
#[test]
fn not_zapping_what_moves_leaves_the_old_page() {
    let none = without(MOVE, &[ZapAll]);
    for guest in [GUEST, GUEST_IN_USE, GUEST_AHEAD] {
        assert!([FREED, LOST].contains(&moved(&[guest], &none)));
    }
}

#[test]
fn replacing_outside_of_the_invalidation_leaves_the_old_page() {
    let late = misplace(MOVE, ReplaceUnlessReferenced, End);
    assert_eq!(moved(&[GUEST_IN_USE], &late), FREED);
    assert_eq!(moved(&[GUEST_AHEAD], &late), FREED);
    assert_eq!(moved(&[GUEST_IN_USE], &without(MOVE, &[Begin, End])), FREED);
}

#[test]
fn finding_a_page_before_the_sequence_gives_the_old_one() {
    let late = misplace(GUEST_IN_USE, ReadSequence, FindInUse);
    assert_eq!(moved(&[&late], MOVE), FREED);
}

#[test]
fn copying_what_the_guest_still_has_loses_writes() {
    let early = misplace(MOVE, Copy, LeaveEntries);
    assert_eq!(moved(&[GUEST_IN_USE], &early), LOST);
    let mut first = without(MOVE, &[Copy]);
    first.insert(first.iter().position(|&step| step == ZapAll).unwrap(), Copy);
    assert_eq!(moved(&[GUEST_AHEAD], &first), LOST);
}

/// A move that does not ask who else has the page.
fn careless(steps: &[Step]) -> Vec<Step> {
    let mut steps = steps.to_vec();
    steps
        .iter_mut()
        .filter(|step| **step == ReplaceUnlessReferenced)
        .for_each(|step| *step = Replace);
    steps
}

/// Two things prevent a move of a page that the host has mapped: its mappings are references.
#[test]
fn copying_what_the_host_still_has_loses_writes() {
    let mapped = without(MOVE, &[LeaveEntries]);
    assert_eq!(moved(&[HOST], &mapped), None);
    assert!([LOST, OLD].contains(&moved(&[HOST], &careless(&mapped))));
}

/// A task that waits for the folio has a reference, so the move fails; or it looks again which page
/// the file has. The kernel does both; here a task does not look again.
#[test]
fn moving_what_somebody_has_a_reference_to_gives_the_host_the_old_page() {
    let held = [
        LockShared,
        StopIfPrivate,
        FindReferenced,
        UnlockShared,
        MapToHost,
    ];
    assert_eq!(moved(&[&held], MOVE), None);
    assert!([LOST, OLD].contains(&moved(&[&held], &careless(MOVE))));
}

/// A conversion takes and drops its reference between the copy and the check of the count: the bytes
/// that ZERO has cleared come back. References are not enough; the lock excludes this.
#[test]
fn moving_without_the_invalidate_lock_loses_what_a_conversion_writes() {
    let unlocked = without(MOVE, &[TryLockShared, UnlockShared]);
    for (from, to) in [(Private, Shared), (Shared, Private)] {
        let programs = [program(&unlocked), convert_zeroing(to)];
        assert_eq!(race(from, &programs), LOST);
    }
}

/// A conversion during a move must remove the entries that the move would restore for the host.
#[test]
fn converting_around_what_a_move_puts_back_leaks_a_page() {
    let present: Vec<_> = CONVERT
        .iter()
        .filter(|&&step| step != QuiesceIfReferenced)
        .map(|&step| match step {
            Unmap => UnmapPresent,
            other => other,
        })
        .collect();
    let programs = [program(HOST), program(MOVE), convert(&present, Private)];
    assert_eq!(race(Shared, &programs), LEAKED);
}

/// Hazard 42, for moves: they come with the folio locked.
#[test]
fn a_move_that_waits_for_the_invalidate_lock_is_a_deadlock() {
    let mut waiting = MOVE.to_vec();
    waiting.insert(1, LockShared);
    waiting.push(UnlockShared);
    assert_eq!(moved(&[PUNCH], &waiting), DEADLOCK);
    let programs = [program(&waiting), convert(CONVERT, Private)];
    assert_eq!(race(Shared, &programs), DEADLOCK);
}
