// SPDX-License-Identifier: GPL-2.0

//! KUnit: the vendor of TDX, with injected failures.

use super::*;
use gmem_sys::kvm::hardware::Unmoved;

#[kunit_tests(kvm_gmem_tdx)]
mod tdx {
    use super::*;

    #[test]
    fn private_mappings_are_small() -> Result {
        for (initial, want) in [(PRIVATE, 0), (SHARED, i32::from(block::ORDER))] {
            let order = order_in_block(ON_TDX, initial)?;
            assert_eq!(order.unwrap_or(want), want);
        }
        Ok(())
    }

    /// Step 9b: PRESERVE is refused exactly where a page is in the S-EPT.
    #[test]
    fn preserve_to_shared_is_refused_where_owned() -> Result {
        for owned in 0..PAGES {
            let vm = test_vm(ON_TDX)?;
            let file = file_or_return!(&vm, PRIVATE);
            let inside = (FIRST..END).contains(&owned);

            TestSept::set(BASE + owned, true, true)?;
            let request = request(&file, SHARED, Content::Preserve)?;
            let result = convert::<Tdx<TestSept>>(file.file(), &request);
            if inside {
                assert_eq!(refusal(&result), Some((EOPNOTSUPP, Some(owned))));
            } else {
                assert_eq!(refusal(&result), None);
            }
            assert!(!vm.vm().is_dead());
            for at in 0..PAGES {
                let shared = !inside && (FIRST..END).contains(&at);
                assert!(file.visibility(at) == if shared { SHARED } else { PRIVATE });
                assert_eq!(file.byte(at)?, Some(BYTE));
            }
        }
        Ok(())
    }

    /// ZERO omits the memset exactly where the page was in the S-EPT and its removal zeroes. The test
    /// sees this because the test's removal does not zero.
    #[test]
    fn zero_to_shared_believes_the_platform_only() -> Result {
        for zeroes in [false, true] {
            let vm = test_vm(ON_TDX)?;
            let file = file_or_return!(&vm, PRIVATE);

            TestSept::set_removal_zeroes(zeroes);
            for at in (0..PAGES).step_by(3) {
                TestSept::set(BASE + at, true, false)?;
            }
            let request = request(&file, SHARED, Content::Zero)?;
            let result = convert::<Tdx<TestSept>>(file.file(), &request);
            assert_eq!(refusal(&result), None);
            for at in FIRST..END {
                let skipped = zeroes && at % 3 == 0;
                assert_eq!(file.byte(at)?, Some(if skipped { BYTE } else { 0 }));
            }
        }
        Ok(())
    }

    /// A page that is still there after the zap is lost, and the VM is dead.
    #[test]
    fn page_that_stays_is_lost() -> Result {
        for content in [Content::None, Content::Zero] {
            for stays in FIRST..END {
                let vm = test_vm(ON_TDX)?;
                let file = file_or_return!(&vm, PRIVATE);

                TestSept::set(BASE + stays, true, true)?;
                let request = request(&file, SHARED, content)?;
                let result = convert::<Tdx<TestSept>>(file.file(), &request);
                assert_eq!(refusal(&result), Some((EIO, Some(stays))));
                assert!(vm.vm().is_dead());
                assert_eq!(file.byte(stays)?, Some(BYTE));
                assert_eq!(file.lost_pages(), 1);
                for at in 0..PAGES {
                    assert!(file.visibility(at) == PRIVATE);
                    assert_eq!(file.host_fault(at).err(), Some(EFAULT));
                }
            }
        }
        Ok(())
    }

    #[test]
    fn zero_to_private_is_refused_where_owned() -> Result {
        let vm = test_vm(ON_TDX)?;
        let file = file_or_return!(&vm, PRIVATE);

        TestSept::set(BASE + 9, true, true)?;
        let zero = request(&file, PRIVATE, Content::Zero)?;
        let result = convert::<Tdx<TestSept>>(file.file(), &zero);
        assert_eq!(refusal(&result), Some((EOPNOTSUPP, Some(9))));
        for at in 0..PAGES {
            assert_eq!(file.byte(at)?, Some(BYTE));
        }
        for content in [Content::None, Content::Preserve] {
            let request = request(&file, PRIVATE, content)?;
            assert!(convert::<Tdx<TestSept>>(file.file(), &request).is_ok());
        }
        assert_eq!(file.byte(9)?, Some(BYTE));
        Ok(())
    }

    /// The answer that a page was in the S-EPT is valid only for the request that has asked.
    #[test]
    fn old_answers_are_not_believed() -> Result {
        let vm = test_vm(ON_TDX)?;
        let file = file_or_return!(&vm, PRIVATE);

        TestSept::set_removal_zeroes(true);
        TestSept::set(BASE + 5, true, false)?;
        // Asked, answered, and refused for another page.
        let preserve = request(&file, SHARED, Content::Preserve)?;
        let result = convert::<Tdx<TestSept>>(file.file(), &preserve);
        assert_eq!(refusal(&result), Some((EOPNOTSUPP, Some(5))));

        // Not asked: the pages do not count as zeroed.
        let zero = request(&file, SHARED, Content::Zero)?;
        let result = convert::<Ignorant>(file.file(), &zero);
        assert_eq!(refusal(&result), None);
        for at in FIRST..END {
            assert_eq!(file.byte(at)?, Some(0));
        }
        Ok(())
    }

    /// A file whose pages can move; page 5 has [`BYTE`].
    fn migratable(vm: &TestVm) -> Result<Option<File<'_>>> {
        let Some(file) = File::migratable(vm, PAGES, PRIVATE, BASE)? else {
            return Ok(None);
        };
        file.fill(5, BYTE)?;
        Ok(Some(file))
    }

    /// A page that the platform does not move is where it was. If the guest cannot use it there, the VM
    /// is dead.
    #[test]
    fn page_that_is_not_moved_stays() -> Result {
        for (why, error) in [(Unmoved::Stays, EBUSY), (Unmoved::Lost, EIO)] {
            let vm = test_vm(ON_TDX)?;
            let Some(file) = migratable(&vm)? else {
                return Ok(());
            };
            for at in 4..=6 {
                TestSept::set(BASE + at, true, true)?;
            }
            TestSept::fail_to_move(why);
            let (old, moved) = file.migrate(5)?;
            assert_eq!(moved, Err(error));
            assert_eq!(TestSept::asked_to_move(), Some(BASE + 5));
            assert!(file.page(5)?.is(&old));
            assert_eq!(file.byte(5)?, Some(BYTE));
            assert_eq!(vm.vm().is_dead(), why == Unmoved::Lost);
            assert_eq!((vm.invalidations(), file.lost_pages()), (0, 0));
            drop(old);
            // Nor does it move when it is tried again.
            assert_eq!(file.migrate(5)?.1, Err(EBUSY));
        }
        Ok(())
    }

    /// An answer of an earlier request, which was refused, does not tie a page to its memory: the
    /// platform is asked to move it.
    #[test]
    fn page_that_was_asked_about_may_move() -> Result {
        let vm = test_vm(ON_TDX)?;
        let Some(file) = migratable(&vm)? else {
            return Ok(());
        };
        TestSept::set(BASE + 5, true, true)?;
        let request = request(&file, SHARED, Content::Preserve)?;
        let result = convert::<Tdx<TestSept>>(file.file(), &request);
        assert_eq!(refusal(&result), Some((EOPNOTSUPP, Some(5))));
        TestSept::fail_to_move(Unmoved::Stays);
        assert_eq!(file.migrate(5)?.1, Err(EBUSY));
        assert_eq!(TestSept::asked_to_move(), Some(BASE + 5));
        Ok(())
    }
}
