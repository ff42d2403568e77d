// SPDX-License-Identifier: GPL-2.0

//! Test bodies for the models, which run under cargo and under KUnit; see `policy/checks.rs`.

use super::{
    rmp,
    sept,
    Fault, //
};
use crate::checks::Check;

macro_rules! check {
    ($condition:expr) => {
        if !$condition {
            return Err(concat!("line ", line!(), ": ", stringify!($condition)));
        }
    };
}

/// Makes each check a test of its own under cargo.
macro_rules! list {
    ($($name:ident,)*) => {
        #[cfg(test)]
        mod tests {
            $(#[test]
            fn $name() {
                assert_eq!(super::$name(), Ok(()));
            })*

            /// A check that nobody calls would look like one that passes.
            #[test]
            fn all_are_listed() {
                let written = include_str!("checks.rs").matches("\npub fn ").count();
                assert_eq!(written, [$(stringify!($name)),*].len());
            }
        }
    };
}

/// Calls a macro with the names of all checks.
#[macro_export]
macro_rules! for_each_emulation_check {
    ($then:ident) => {
        $then! {
            fault_strikes_as_often_as_ordered,
            rmp_assign_and_take_back,
            rmp_reassigns_in_silence,
            rmp_refuses_senseless_input,
            rmp_keeps_immutable_entries,
            rmp_sizes_overlap,
            rmp_smash_keeps_what_was,
            rmp_launch_makes_a_valid_page,
            rmp_reclaim_ends_immutability,
            rmp_handover_keeps_what_was_accepted,
            rmp_relocates_what_was_handed_over,
            rmp_belongs_to_one,
            sept_removes_in_order,
            sept_track_is_for_earlier_blocks,
            sept_phases,
            sept_launch_needs_no_track,
        }
    };
}

for_each_emulation_check!(list);

/// A table with the pages of a check; it is small enough for a kernel stack.
struct Watched<E, const N: usize>([(u64, E); N]);

impl<E: Copy, const N: usize> Watched<E, N> {
    fn find(&self, at: u64) -> Option<E> {
        self.0.iter().find(|(key, _)| *key == at).map(|(_, e)| *e)
    }

    fn store(&mut self, at: u64, entry: E) {
        if let Some((_, slot)) = self.0.iter_mut().find(|(key, _)| *key == at) {
            *slot = entry;
        }
    }
}

impl<const N: usize> rmp::Table for Watched<rmp::Entry, N> {
    fn get(&self, pfn: u64) -> rmp::Entry {
        self.find(pfn).unwrap_or_default()
    }

    fn set(&mut self, pfn: u64, entry: rmp::Entry) {
        self.store(pfn, entry);
    }
}

impl<const N: usize> sept::Table for Watched<sept::Entry, N> {
    fn get(&self, gfn: u64) -> sept::Entry {
        self.find(gfn).unwrap_or_default()
    }

    fn set(&mut self, gfn: u64, entry: sept::Entry) {
        self.store(gfn, entry);
    }
}

fn rmp_table() -> Watched<rmp::Entry, 6> {
    let free = rmp::Entry::HYPERVISOR;
    Watched([
        (0, free),
        (7, free),
        (512, free),
        (513, free),
        (1023, free),
        (1024, free),
    ])
}

fn sept_table() -> Watched<sept::Entry, 2> {
    Watched([(3, sept::Entry::Absent), (4, sept::Entry::Absent)])
}

/// An injected failure does not affect other operations, and ends after its number of times.
pub fn fault_strikes_as_often_as_ordered() -> Check {
    use rmp::Operation::{Assign, Unassign};

    let mut fault = Fault::new(Unassign, rmp::Code::InUse, 2);
    check!(fault.strike(Assign) == Ok(()));
    check!(fault.strike(Unassign) == Err(rmp::Code::InUse));
    check!(fault.strike(Assign) == Ok(()));
    check!(fault.strike(Unassign) == Err(rmp::Code::InUse));
    check!(fault.strike(Unassign) == Ok(()));
    check!(Fault::<rmp::Operation, rmp::Code>::none().strike(Assign) == Ok(()));
    Ok(())
}

/// An assigned page that is taken back belongs to the host, without a trace of the guest.
pub fn rmp_assign_and_take_back() -> Check {
    let mut table = rmp_table();

    check!(rmp::update(&mut table, 7, rmp::Entry::assigned(1, 0x5000)) == Ok(()));
    let entry = rmp::lookup(&table, 7);
    check!(entry.assigned && !entry.validated && entry.asid == 1 && entry.gpa == 0x5000);
    check!(rmp::validate(&mut table, 7, 1, 0x5000) == Ok(()));
    check!(rmp::lookup(&table, 7).validated);
    check!(rmp::update(&mut table, 7, rmp::Entry::HYPERVISOR) == Ok(()));
    check!(rmp::lookup(&table, 7) == rmp::Entry::HYPERVISOR);
    // Taking back a page that was not assigned is not an error.
    check!(rmp::update(&mut table, 7, rmp::Entry::HYPERVISOR) == Ok(()));
    Ok(())
}

/// Hazard 31: hardware reports no error, and the first guest's page is not valid any more.
pub fn rmp_reassigns_in_silence() -> Check {
    let mut table = rmp_table();

    check!(rmp::update(&mut table, 7, rmp::Entry::assigned(1, 0x5000)) == Ok(()));
    check!(rmp::validate(&mut table, 7, 1, 0x5000) == Ok(()));
    check!(rmp::update(&mut table, 7, rmp::Entry::assigned(2, 0x9000)) == Ok(()));
    let entry = rmp::lookup(&table, 7);
    check!(entry.asid == 2 && entry.gpa == 0x9000 && !entry.validated);
    check!(!rmp::belongs(&table, 7, 1, 0x5000));
    Ok(())
}

/// Refused: half a page, 2M that are not aligned, and a guest without an ASID.
pub fn rmp_refuses_senseless_input() -> Check {
    let mut table = rmp_table();
    let input = Err(rmp::Code::Input);

    check!(rmp::update(&mut table, 7, rmp::Entry::assigned(1, 0x5001)) == input);
    check!(rmp::update(&mut table, 7, rmp::Entry::assigned(0, 0x5000)) == input);
    check!(rmp::update(&mut table, 513, rmp::Entry::assigned(1, 0).large()) == input);
    check!(rmp::update(&mut table, 512, rmp::Entry::assigned(1, 0x1000).large()) == input);
    check!(rmp::smash(&mut table, 512) == input);
    check!(rmp::lookup(&table, 7) == rmp::Entry::HYPERVISOR);
    check!(rmp::lookup(&table, 512) == rmp::Entry::HYPERVISOR);
    Ok(())
}

/// The host can neither take back, reassign, nor split an entry that firmware works on.
pub fn rmp_keeps_immutable_entries() -> Check {
    let mut table = rmp_table();
    let refused = Err(rmp::Code::Permission);
    let entry = rmp::Entry::assigned(1, 0x5000).immutable();

    check!(rmp::update(&mut table, 7, entry) == Ok(()));
    check!(rmp::update(&mut table, 7, rmp::Entry::HYPERVISOR) == refused);
    check!(rmp::update(&mut table, 7, rmp::Entry::assigned(2, 0)) == refused);
    check!(rmp::lookup(&table, 7) == entry);

    let large = rmp::Entry::assigned(1, 0).large().immutable();
    check!(rmp::update(&mut table, 512, large) == Ok(()));
    check!(rmp::smash(&mut table, 512) == refused);
    check!(rmp::lookup(&table, 513) == large);
    Ok(())
}

/// Memory has entries of one size at a time.
pub fn rmp_sizes_overlap() -> Check {
    let mut table = rmp_table();
    let overlap = Err(rmp::Code::Overlap);
    let large = rmp::Entry::assigned(1, 0x20_0000).large();

    check!(rmp::update(&mut table, 1023, rmp::Entry::assigned(1, 0)) == Ok(()));
    check!(rmp::update(&mut table, 512, large) == overlap);
    check!(rmp::update(&mut table, 1023, rmp::Entry::HYPERVISOR) == Ok(()));
    check!(rmp::update(&mut table, 512, large) == Ok(()));
    check!(rmp::update(&mut table, 1023, rmp::Entry::HYPERVISOR) == overlap);
    check!(rmp::update(&mut table, 513, rmp::Entry::assigned(1, 0x20_1000)) == overlap);
    check!(rmp::lookup(&table, 1023) == large);
    // The neighbours are not in this entry.
    check!(rmp::update(&mut table, 1024, rmp::Entry::assigned(1, 0)) == Ok(()));
    Ok(())
}

/// Each page of a split entry is still the guest's, and accepted if it was before.
pub fn rmp_smash_keeps_what_was() -> Check {
    let mut table = rmp_table();

    check!(rmp::update(&mut table, 512, rmp::Entry::assigned(1, 0x20_0000).large()) == Ok(()));
    check!(rmp::validate(&mut table, 513, 1, 0x20_1000) == Ok(()));
    check!(rmp::smash(&mut table, 513) == Err(rmp::Code::Input));
    check!(rmp::smash(&mut table, 512) == Ok(()));
    for (pfn, gpa) in [(512, 0x20_0000), (513, 0x20_1000), (1023, 0x3f_f000)] {
        let entry = rmp::lookup(&table, pfn);
        check!(entry.size == rmp::Size::Small && entry.validated);
        check!(rmp::belongs(&table, pfn, 1, gpa));
    }
    check!(rmp::lookup(&table, 1024) == rmp::Entry::HYPERVISOR);
    check!(rmp::update(&mut table, 513, rmp::Entry::HYPERVISOR) == Ok(()));
    check!(rmp::belongs(&table, 512, 1, 0x20_0000));
    Ok(())
}

/// Only pages that were handed to firmware are launched.
pub fn rmp_launch_makes_a_valid_page() -> Check {
    let mut table = rmp_table();

    check!(rmp::launch(&mut table, 7) == Err(rmp::Code::Permission));
    let entry = rmp::Entry::assigned(1, 0x5000);
    check!(rmp::update(&mut table, 7, entry) == Ok(()));
    check!(rmp::launch(&mut table, 7) == Err(rmp::Code::Permission));
    check!(rmp::update(&mut table, 7, entry.immutable()) == Ok(()));
    check!(!rmp::belongs(&table, 7, 1, 0x5000));
    check!(rmp::launch(&mut table, 7) == Ok(()));
    check!(rmp::lookup(&table, 7).validated && rmp::belongs(&table, 7, 1, 0x5000));
    Ok(())
}

/// A page that was handed to firmware returns to the host only after firmware has given it up.
pub fn rmp_reclaim_ends_immutability() -> Check {
    let mut table = rmp_table();

    check!(rmp::reclaim(&mut table, 7) == Err(rmp::Code::Permission));
    let entry = rmp::Entry::assigned(1, 0x5000);
    check!(rmp::update(&mut table, 7, entry) == Ok(()));
    check!(rmp::reclaim(&mut table, 7) == Err(rmp::Code::Permission));
    check!(rmp::update(&mut table, 7, entry.immutable()) == Ok(()));
    let refused = Err(rmp::Code::Permission);
    check!(rmp::update(&mut table, 7, rmp::Entry::HYPERVISOR) == refused);
    check!(rmp::reclaim(&mut table, 7) == Ok(()));
    check!(rmp::belongs(&table, 7, 1, 0x5000) && !rmp::lookup(&table, 7).validated);
    check!(rmp::update(&mut table, 7, rmp::Entry::HYPERVISOR) == Ok(()));
    check!(!rmp::lookup(&table, 7).assigned);

    let firmware = rmp::Entry::assigned(0, 0).immutable();
    check!(rmp::update(&mut table, 7, firmware) == Ok(()));
    check!(rmp::reclaim(&mut table, 7) == Ok(()));
    check!(rmp::lookup(&table, 7) == rmp::Entry::assigned(0, 0));
    Ok(())
}

/// A page that its guest has accepted stays so while firmware has it, and for nobody else.
pub fn rmp_handover_keeps_what_was_accepted() -> Check {
    let mut table = rmp_table();
    let entry = rmp::Entry::assigned(1, 0x5000);

    check!(rmp::update(&mut table, 7, entry) == Ok(()));
    check!(rmp::validate(&mut table, 7, 1, 0x5000) == Ok(()));
    check!(rmp::update(&mut table, 7, entry.immutable()) == Ok(()));
    check!(rmp::lookup(&table, 7).validated);
    check!(rmp::reclaim(&mut table, 7) == Ok(()));
    check!(rmp::lookup(&table, 7).validated && rmp::belongs(&table, 7, 1, 0x5000));
    check!(rmp::update(&mut table, 7, rmp::Entry::assigned(1, 0x6000)) == Ok(()));
    check!(!rmp::lookup(&table, 7).validated);
    Ok(())
}

/// A page is moved with what its guest has accepted, to a page for the same place.
pub fn rmp_relocates_what_was_handed_over() -> Check {
    let mut table = rmp_table();
    let refused = Err(rmp::Code::Permission);
    let entry = rmp::Entry::assigned(1, 0x5000);

    check!(rmp::update(&mut table, 7, entry) == Ok(()));
    check!(rmp::validate(&mut table, 7, 1, 0x5000) == Ok(()));
    check!(rmp::relocate(&mut table, 7, 513) == refused);
    check!(rmp::update(&mut table, 7, entry.immutable()) == Ok(()));
    check!(rmp::relocate(&mut table, 7, 513) == refused);
    check!(rmp::relocate(&mut table, 7, 7) == refused);
    for elsewhere in [
        rmp::Entry::assigned(2, 0x5000),
        rmp::Entry::assigned(1, 0x6000),
    ] {
        check!(rmp::update(&mut table, 513, elsewhere.immutable()) == Ok(()));
        check!(rmp::relocate(&mut table, 7, 513) == refused);
        check!(rmp::reclaim(&mut table, 513) == Ok(()));
    }
    check!(rmp::update(&mut table, 513, entry.immutable()) == Ok(()));
    check!(rmp::relocate(&mut table, 7, 513) == Ok(()));
    check!(rmp::lookup(&table, 513).validated && rmp::belongs(&table, 513, 1, 0x5000));
    check!(rmp::lookup(&table, 7) == rmp::Entry::assigned(0, 0).immutable());
    check!(rmp::relocate(&mut table, 7, 513) == refused);
    Ok(())
}

/// A page belongs to one guest at one address.
pub fn rmp_belongs_to_one() -> Check {
    let mut table = rmp_table();

    check!(rmp::update(&mut table, 7, rmp::Entry::assigned(1, 0x5000)) == Ok(()));
    check!(rmp::belongs(&table, 7, 1, 0x5000));
    check!(!rmp::belongs(&table, 7, 2, 0x5000));
    check!(!rmp::belongs(&table, 7, 1, 0x6000));
    check!(!rmp::belongs(&table, 0, 1, 0x5000));
    check!(rmp::validate(&mut table, 7, 2, 0x5000) == Err(rmp::Code::Input));
    Ok(())
}

/// BLOCK, TRACK, REMOVE; nothing else, and no step left out or done twice.
pub fn sept_removes_in_order() -> Check {
    let mut td = sept::Td::new();
    let mut table = sept_table();
    let refused = Err(sept::Failure::State);

    check!(td.block(&mut table, 3) == refused);
    check!(td.remove(&mut table, 3).is_err());
    check!(td.add(&mut table, 3, 77) == Ok(()));
    check!(td.add(&mut table, 3, 78) == refused);
    check!(td.finalize() == Ok(()));
    check!(td.remove(&mut table, 3).is_err());
    td.track();
    check!(td.remove(&mut table, 3).is_err());
    check!(td.block(&mut table, 3) == Ok(()));
    check!(td.block(&mut table, 3) == refused);
    check!(td.remove(&mut table, 3).is_err());
    check!(sept::Table::get(&table, 3).pfn() == Some(77));
    td.track();
    check!(td.remove(&mut table, 3) == Ok(77));
    check!(td.remove(&mut table, 3).is_err());
    check!(sept::Table::get(&table, 3) == sept::Entry::Absent);
    Ok(())
}

/// A TRACK does not cover pages that are blocked later.
pub fn sept_track_is_for_earlier_blocks() -> Check {
    let mut td = sept::Td::new();
    let mut table = sept_table();

    check!(td.add(&mut table, 3, 77) == Ok(()));
    check!(td.add(&mut table, 4, 78) == Ok(()));
    check!(td.finalize() == Ok(()));
    check!(td.block(&mut table, 3) == Ok(()));
    td.track();
    check!(td.block(&mut table, 4) == Ok(()));
    check!(td.remove(&mut table, 4).is_err());
    check!(td.remove(&mut table, 3) == Ok(77));
    td.track();
    check!(td.remove(&mut table, 4) == Ok(78));
    Ok(())
}

/// Pages are added before the end of the launch, and augmented after.
pub fn sept_phases() -> Check {
    let mut td = sept::Td::new();
    let mut table = sept_table();
    let refused = Err(sept::Failure::State);

    check!(td.augment(&mut table, 3, 77) == refused);
    check!(td.add(&mut table, 3, 77) == Ok(()));
    check!(td.finalize() == Ok(()));
    check!(td.finalize() == refused);
    check!(td.add(&mut table, 4, 78) == refused);
    check!(td.augment(&mut table, 3, 79) == refused);
    check!(td.augment(&mut table, 4, 78) == Ok(()));
    check!(sept::Table::get(&table, 3).pfn() == Some(77));
    Ok(())
}

/// Before the end of the launch nobody has translations: there is nothing to track.
pub fn sept_launch_needs_no_track() -> Check {
    let td = sept::Td::new();
    let mut table = sept_table();

    check!(td.add(&mut table, 3, 77) == Ok(()));
    check!(td.remove(&mut table, 3).is_err());
    check!(td.block(&mut table, 3) == Ok(()));
    check!(td.remove(&mut table, 3) == Ok(77));
    Ok(())
}
