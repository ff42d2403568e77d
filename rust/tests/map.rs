// SPDX-License-Identifier: GPL-2.0

//! The attribute map. `tools/testing/gmem-model` tests the tree itself; this runs it in the kernel.

use super::*;

#[kunit_tests(kvm_gmem_attribute_map)]
mod attribute_map {
    use super::*;

    #[test]
    fn a_new_map_takes_no_memory() -> Result {
        let _no_memory = NoMemory::begin();
        let map = TestMap::new(16, SHARED)?;

        assert!(map.at(0) == SHARED);
        assert_eq!(map.run(7), Some((0, 16, SHARED)));
        assert_eq!(map.run(16), None);
        // No page behind the end is shared.
        assert!(map.at(16) == PRIVATE);
        assert!(map.at(u64::MAX) == PRIVATE);
        map.store(0, 16, PRIVATE)?;
        assert_eq!(map.run(7), Some((0, 16, PRIVATE)));
        Ok(())
    }

    #[test]
    fn commit_stores_the_range_and_nothing_else() -> Result {
        let map = TestMap::new(16, PRIVATE)?;
        map.store(4, 8, SHARED)?;

        for at in 0..16 {
            let wanted = if (4..8).contains(&at) {
                SHARED
            } else {
                PRIVATE
            };
            assert!(map.at(at) == wanted);
        }
        assert_eq!(map.run(0), Some((0, 4, PRIVATE)));
        assert_eq!(map.run(5), Some((5, 8, SHARED)));
        assert_eq!(map.run(8), Some((8, 16, PRIVATE)));
        Ok(())
    }

    #[test]
    fn dropped_reservation_stores_nothing() -> Result {
        let map = TestMap::new(16, PRIVATE)?;

        drop(map.0.reserve(map.writer(), &range(4, 8)?, SHARED)?);
        assert_eq!(map.run(5), Some((0, 16, PRIVATE)));
        Ok(())
    }

    /// A table and a bitmap for each border, and a table that both have in common.
    #[test]
    fn nothing_is_reserved_without_memory() -> Result {
        const MANY: u64 = 1 << 28;
        const FIRST: u64 = 5;
        const END: u64 = MANY - 7;

        let map = TestMap::new(MANY, PRIVATE)?;
        for nodes in 0.. {
            let no_memory = NoMemory::after(nodes);
            let stored = map.store(FIRST, END, SHARED);
            drop(no_memory);
            if stored.is_ok() {
                // Fewer levels where a page has more pointers.
                assert!(nodes >= 4);
                break;
            }
            assert_eq!(stored, Err(ENOMEM));
            assert_eq!(map.run(FIRST), Some((0, MANY, PRIVATE)));
        }
        assert!(map.at(FIRST - 1) == PRIVATE);
        assert!(map.at(FIRST) == SHARED);
        assert!(map.at(END - 1) == SHARED);
        assert!(map.at(END) == PRIVATE);
        Ok(())
    }

    #[test]
    fn one_reservation_at_a_time() -> Result {
        let map = TestMap::new(16, PRIVATE)?;

        let first = map.0.reserve(map.writer(), &range(4, 8)?, SHARED)?;
        let second = map.0.reserve(map.writer(), &range(4, 8)?, SHARED);
        assert_eq!(second.err(), Some(EBUSY));
        first.store();
        map.store(4, 6, PRIVATE)?;
        drop(map.0.reserve(map.writer(), &range(4, 8)?, PRIVATE)?);
        map.store(6, 8, PRIVATE)?;
        assert_eq!(map.run(5), Some((0, 16, PRIVATE)));
        Ok(())
    }

    #[test]
    fn ends_of_the_index_space() -> Result {
        // The largest file: i64::MAX bytes, rounded down to pages.
        let pages = i64::MAX as u64 / PAGE.bytes();
        let map = TestMap::new(pages, SHARED)?;
        map.store(pages - 1, pages, PRIVATE)?;
        map.store(0, 1, PRIVATE)?;

        assert!(map.at(0) == PRIVATE);
        assert!(map.at(1) == SHARED);
        assert!(map.at(pages - 2) == SHARED);
        assert!(map.at(pages - 1) == PRIVATE);
        assert_eq!(map.run(pages), None);
        Ok(())
    }

    /// Converts alternating pages, and then all pages at once. Nodes are freed behind RCU, so a wrong
    /// free shows in the callback.
    #[test]
    fn many_runs_are_freed() -> Result {
        const PAGES: u64 = 1 << 14;

        let map = TestMap::new(PAGES, PRIVATE)?;
        for at in (0..PAGES).step_by(2) {
            map.store(at, at + 1, SHARED)?;
        }
        for at in 0..PAGES {
            let wanted = if at % 2 == 0 { SHARED } else { PRIVATE };
            assert!(map.at(at) == wanted);
        }
        map.store(0, PAGES, SHARED)?;
        assert_eq!(map.run(PAGES / 2), Some((0, PAGES, SHARED)));
        // Left for clear().
        map.store(1, 2, PRIVATE)?;
        drop(map);
        rcu::rcu_barrier();
        Ok(())
    }
}
