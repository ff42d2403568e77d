// SPDX-License-Identifier: GPL-2.0

//! KUnit: blocks that SNP's vendor gives to the guest by one entry of the RMP.

use super::*;

/// Where a guest sees a file whose pages cannot be recorded: more than the record has room for.
const FAR: u64 = 1 << 41;

/// Another guest's page.
const THEIRS: RmpEntry = RmpEntry {
    asid: OTHER_ASID,
    gfn: 1,
    validated: true,
};

/// A file whose pages are one block, all private and filled; [`None`] where there are no blocks.
fn file_at(vm: &TestVm, base: u64) -> Result<Option<File<'_>>> {
    filled(File::new(vm, block::PAGES, PRIVATE, base)?)
}

fn filled(file: Option<File<'_>>) -> Result<Option<File<'_>>> {
    let Some(file) = file else {
        return Ok(None);
    };
    if !file.allocate_block()? {
        pr_info!("skipped: there are no blocks\n");
        return Ok(None);
    }
    for at in 0..block::PAGES {
        file.fill(at, BYTE)?;
    }
    Ok(Some(file))
}

macro_rules! block_or_return {
    ($vm:expr, $base:expr) => {{
        let Some(file) = file_at($vm, $base)? else {
            return Ok(());
        };
        file
    }};
}

/// Whether the guest has the page at its place, by an entry for 2M or not.
fn has(file: &File<'_>, at: u64, large: bool) -> Result<bool> {
    let entry = TestRmp::entry(file, at)?;
    let mine = entry.is_some_and(|entry| (entry.asid, entry.gfn) == (ASID, BASE + at));
    Ok(mine && TestRmp::is_large(file, at)? == large)
}

/// Whether the guest has all pages at their places by one entry, and each page's record agrees.
fn has_block(file: &File<'_>) -> Result<bool> {
    for at in 0..block::PAGES {
        if !has(file, at, true)? || file.guest_fault_order(BASE + at)?.1 != ORDER {
            return Ok(false);
        }
    }
    Ok(TestRmp::assigned() == block::PAGES as usize && TestRmp::overlaps() == 0)
}

/// The order of the mapping of a block.
const ORDER: i32 = block::ORDER as i32;

#[kunit_tests(kvm_gmem_snp_block)]
mod one_entry {
    use super::*;

    /// The first fault gives all pages, by one update, and later ones find them.
    #[test]
    fn block_is_given_at_once() -> Result {
        let vm = test_vm(ON_SNP)?;
        let file = block_or_return!(&vm, BASE);

        // A second update would fail.
        TestRmp::fail(RmpOperation::Assign, 1, u32::MAX);
        assert_eq!(file.guest_fault_order(BASE + 5)?.1, ORDER);
        assert!(has_block(&file)?);
        for at in 0..block::PAGES {
            assert_eq!(file.byte(at)?, Some(BYTE));
        }
        Ok(())
    }

    /// Pages that nobody has used are zeroed before they are the guest's.
    #[test]
    fn unused_block_is_zeroed() -> Result {
        let vm = test_vm(ON_SNP)?;
        let Some(file) = File::new(&vm, block::PAGES, PRIVATE, BASE)? else {
            return Ok(());
        };
        if !file.allocate_block()? {
            pr_info!("skipped: there are no blocks\n");
            return Ok(());
        }
        for at in 0..block::PAGES {
            file.page(at)?.fill(BYTE);
        }
        assert_eq!(file.guest_fault_order(BASE + 5)?.1, ORDER);
        assert!(has_block(&file)?);
        for at in 0..block::PAGES {
            assert_eq!(file.byte(at)?, Some(0));
        }
        Ok(())
    }

    /// Hazard 31: if any page is assigned already, whoever has it, the page of the fault is given alone.
    #[test]
    fn block_with_an_assigned_page() -> Result {
        for other in [0, 4, 6, 511] {
            let vm = test_vm(ON_SNP)?;
            let file = block_or_return!(&vm, BASE);

            TestRmp::set(&file, other, Some(THEIRS))?;
            assert_eq!(file.guest_fault_order(BASE + 5)?.1, 0);
            assert!(has(&file, 5, false)?);
            assert_eq!(file.guest_fault(BASE + other).err(), Some(EEXIST));
            assert_eq!(TestRmp::entry(&file, other)?, Some(THEIRS));
            assert_eq!(TestRmp::assigned(), 2);
            // Its own pages that it has one by one.
            TestRmp::set(&file, other, None)?;
            assert_eq!(file.guest_fault_order(BASE + other)?.1, 0);
            assert!(has(&file, 5, false)? && has(&file, other, false)?);
            assert_eq!(TestRmp::assigned(), 2);
            assert_eq!(TestRmp::overlaps(), 0);
        }
        Ok(())
    }

    /// Where a page is shared, missing or has failed, no mapping could show the block.
    #[test]
    fn block_that_is_none() -> Result {
        for what in 0..3 {
            let vm = test_vm(ON_SNP)?;
            let file = block_or_return!(&vm, BASE);
            let broken = file.page(9)?;

            match what {
                0 => {
                    let asked = request(&file, SHARED, Content::Preserve)?;
                    let _ = convert::<Snp<TestRmp>>(file.file(), &asked);
                }
                1 => file.free(9)?,
                _ => broken.set_failed(true),
            }
            let order = file.guest_fault_order(BASE + 3)?.1;
            if what == 2 {
                broken.set_failed(false);
            }
            assert_eq!(order, 0);
            assert!(has(&file, 3, false)?);
            assert_eq!(TestRmp::assigned(), 1);
        }
        Ok(())
    }

    /// A block that is not given is no error. The page of the fault is given alone, and the error is
    /// that of this.
    #[test]
    fn failed_assignment() -> Result {
        for (code, times) in [(EFAULT.to_errno(), 1), (1, 1), (1, 2)] {
            let vm = test_vm(ON_SNP)?;
            let file = block_or_return!(&vm, BASE);

            TestRmp::fail_with(code, RmpOperation::Assign, 0, times);
            let order = file.guest_fault_order(BASE + 5).map(|(_, order)| order);
            if times == 1 {
                assert_eq!(order, Ok(0));
                assert!(has(&file, 5, false)?);
                assert_eq!(TestRmp::assigned(), 1);
            } else {
                assert_eq!(order, Err(EIO));
                assert_eq!(TestRmp::assigned(), 0);
                // Nothing has changed, so it can be given now.
                assert_eq!(file.guest_fault_order(BASE + 5)?.1, ORDER);
                assert!(has_block(&file)?);
            }
            assert_eq!(file.lost_pages(), 0);
        }
        Ok(())
    }

    /// Hazard 49: a page that cannot be looked up may be somebody's.
    #[test]
    fn failed_lookup() -> Result {
        for at in [0, 1, 5, 256, 511] {
            let vm = test_vm(ON_SNP)?;
            let file = block_or_return!(&vm, BASE);

            TestRmp::fail_with(1, RmpOperation::Lookup, at, 1);
            assert_eq!(file.guest_fault_order(BASE + 5)?.1, 0);
            assert!(has(&file, 5, false)?);
            assert_eq!(TestRmp::assigned(), 1);
        }
        Ok(())
    }

    /// Hazard 30: a block that cannot be recorded is taken back as it was given.
    #[test]
    fn undo_takes_back_the_block() -> Result {
        let vm = test_vm(ON_SNP)?;
        let file = block_or_return!(&vm, FAR);

        // One update for the block, and one for the page, which is tried then.
        TestRmp::fail(RmpOperation::Unassign, 2, u32::MAX);
        assert_eq!(file.guest_fault(FAR + 5).err(), Some(EINVAL));
        assert_eq!(TestRmp::assigned(), 0);
        assert_eq!(TestRmp::overlaps(), 0);
        assert_eq!(file.lost_pages(), 0);
        for at in 0..block::PAGES {
            assert_eq!(file.byte(at)?, Some(BYTE));
        }
        Ok(())
    }

    /// Hazard 30: a page of a block that was given alone is taken back alone.
    #[test]
    fn undo_takes_back_the_page() -> Result {
        let vm = test_vm(ON_SNP)?;
        let file = block_or_return!(&vm, FAR);

        TestRmp::set(&file, 9, Some(THEIRS))?;
        assert_eq!(file.guest_fault(FAR + 5).err(), Some(EINVAL));
        assert_eq!(TestRmp::entry(&file, 9)?, Some(THEIRS));
        assert_eq!(TestRmp::assigned(), 1);
        assert_eq!(TestRmp::overlaps(), 0);
        assert_eq!(file.lost_pages(), 0);
        TestRmp::set(&file, 9, None)?;
        Ok(())
    }

    /// If the undo fails as well, no page of the block is ever used again.
    #[test]
    fn failed_undo_loses_the_block() -> Result {
        let vm = test_vm(ON_SNP)?;
        let file = block_or_return!(&vm, FAR);

        TestRmp::fail(RmpOperation::Unassign, 0, 1);
        assert_eq!(file.guest_fault(FAR + 5).err(), Some(EEXIST));
        assert_eq!(TestRmp::assigned(), block::PAGES as usize);
        assert_eq!(file.lost_pages(), block::PAGES as usize);
        assert_eq!(file.guest_fault(FAR + 6).err(), Some(EEXIST));
        Ok(())
    }

    /// The entry is split before a part is taken back. The guest keeps the rest, accepted as it is.
    #[test]
    fn part_becomes_shared() -> Result {
        for (content, byte) in [(Content::Preserve, BYTE), (Content::Zero, 0)] {
            let vm = test_vm(ON_SNP)?;
            let file = block_or_return!(&vm, BASE);

            drop(file.guest_fault(BASE + 5)?);
            let asked = request(&file, SHARED, content)?;
            assert_eq!(refusal(&convert::<Snp<TestRmp>>(file.file(), &asked)), None);
            assert_eq!(TestRmp::overlaps(), 0);
            for at in 0..block::PAGES {
                let inside = (FIRST..END).contains(&at);
                assert!(if inside {
                    TestRmp::entry(&file, at)?.is_none()
                } else {
                    has(&file, at, false)?
                });
                let wanted = if inside { byte } else { BYTE };
                assert_eq!(file.byte(at)?, Some(wanted));
                assert!(file.visibility(at) == if inside { SHARED } else { PRIVATE });
            }

            // Back again, each of them is given alone, and the rest is known.
            let back = request(&file, PRIVATE, Content::Preserve)?;
            assert!(convert::<Snp<TestRmp>>(file.file(), &back).is_ok());
            for at in 0..block::PAGES {
                assert_eq!(file.guest_fault_order(BASE + at)?.1, 0);
                assert!(has(&file, at, false)?);
            }
            assert_eq!(TestRmp::assigned(), block::PAGES as usize);
        }
        Ok(())
    }

    /// An entry that cannot be split is left alone. One page is lost, and no other is touched.
    #[test]
    fn failed_split_loses_one_page() -> Result {
        for (code, times) in [(1, 1), (TestRmp::IN_USE, u32::MAX)] {
            let vm = test_vm(ON_SNP)?;
            let file = block_or_return!(&vm, BASE);

            drop(file.guest_fault(BASE + 5)?);
            let asked = request(&file, SHARED, Content::Zero)?;
            TestRmp::fail_with(code, RmpOperation::Smash, 0, times);
            let result = convert::<Snp<TestRmp>>(file.file(), &asked);
            assert_eq!(refusal(&result), Some((EIO, Some(FIRST))));
            TestRmp::succeed();
            assert!(vm.vm().is_dead());
            assert_eq!(TestRmp::overlaps(), 0);
            assert_eq!(file.lost_pages(), 1);
            for at in 0..block::PAGES {
                assert!(has(&file, at, true)?);
                assert_eq!(file.byte(at)?, Some(BYTE));
            }
        }
        Ok(())
    }

    /// Freed pages go back to the host, all of them or those before and after one that is lost.
    #[test]
    fn freed_pages_are_taken_back() -> Result {
        for lost in [0, 1] {
            let vm = test_vm(ON_SNP)?;
            let file = block_or_return!(&vm, BASE);

            drop(file.guest_fault(BASE + 5)?);
            file.free(9)?;
            assert_eq!(TestRmp::assigned(), block::PAGES as usize - 1);
            for at in (0..block::PAGES).filter(|at| *at != 9) {
                assert!(has(&file, at, false)?);
                assert_eq!(file.byte(at)?, Some(BYTE));
            }
            if lost != 0 {
                TestRmp::fail(RmpOperation::Unassign, 100, lost);
            }
            drop(file);
            assert_eq!(TestRmp::assigned(), lost as usize);
            assert_eq!(TestRmp::overlaps(), 0);
        }
        Ok(())
    }

    /// The entry is split before the platform moves a page of it. If that fails, nothing has changed.
    #[test]
    fn page_leaves_its_block_to_move() -> Result {
        for operation in [RmpOperation::Smash, RmpOperation::Relocate] {
            let vm = test_vm(ON_SNP)?;
            let Some(file) = filled(File::migratable(&vm, block::PAGES, PRIVATE, BASE)?)? else {
                return Ok(());
            };
            drop(file.guest_fault(BASE + 5)?);
            TestRmp::fail_with(1, operation, 0, 1);
            let (old, moved) = file.migrate(5)?;
            assert_eq!(moved, Err(EBUSY));
            assert!(file.page(5)?.is(&old));
            let large = operation == RmpOperation::Smash;
            for at in 0..block::PAGES {
                assert!(has(&file, at, large)?);
            }
            assert_eq!(TestRmp::assigned(), block::PAGES as usize);
            assert_eq!((vm.vm().is_dead(), file.lost_pages()), (false, 0));
            let order = file.guest_fault_order(BASE + 5)?.1;
            assert_eq!(order, if large { ORDER } else { 0 });
        }
        Ok(())
    }
}
