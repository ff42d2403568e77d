// SPDX-License-Identifier: GPL-2.0

//! KUnit: the vendors on platforms that fail, and a vendor that reports wrong results.
//!
//! Files and folios are real, the platforms are those of [`gmem_sys::testing::platform`].

use super::{
    mover,
    snp::Snp,
    tdx::Tdx,
    vendor::Vendor,
    Operations, //
};
use crate::{
    convert,
    outcome::{
        Failure,
        Outcome, //
    },
    Gmem, //
};
use core::sync::atomic::{
    AtomicU32,
    Ordering, //
};
use gmem_policy::{
    contract::Refusal,
    request::{
        RawRequest,
        Request, //
    }, //
};
use gmem_sys::{
    fs::{
        block,
        file::GmemFile,
        page_cache::PrivatePage, //
    },
    kvm::{
        hardware::Rmp,
        mmu::Mapped,
        platform::{
            self,
            Fatal,
            GivenUp,
            Written, //
        },
        vm::{
            Gfn,
            Vm, //
        }, //
    },
    mm::folio::{
        Assignment,
        FolioRef,
        Frame, //
    },
    testing::{
        killed_after,
        platform::{
            RmpEntry,
            RmpOperation,
            TestRmp,
            TestSept, //
        },
        NoMemory,
        TestFile,
        TestVm, //
    }, //
};
use gmem_types::{
    content::{
        Action,
        Content, //
    },
    platform::{
        Base,
        Platform, //
    },
    range::PageIndex,
    visibility::Visibility, //
};
use kernel::prelude::*;

const SHARED: Visibility = Visibility::Shared;
const PRIVATE: Visibility = Visibility::Private;
const POLICIES: [Content; 3] = [Content::None, Content::Zero, Content::Preserve];

const ON_SNP: Platform = Platform::Snp(Base::Test);
const ON_TDX: Platform = Platform::Tdx(Base::Test);

/// Pages of a file; requests are about the pages from [`FIRST`] to [`END`].
const PAGES: u64 = 24;
const FIRST: u64 = 4;
const END: u64 = 20;
/// Where the guest sees the file.
const BASE: u64 = 0x1000;
/// The byte that fills the guest's pages.
const BYTE: u8 = 0x5a;

const ASID: u32 = 7;
const OTHER_ASID: u32 = 8;

pub(super) const SNP: &Operations = &Operations::of::<Snp<TestRmp>>();
pub(super) const TDX: &Operations = &Operations::of::<Tdx<TestSept>>();

/// Reclaims a page, if the RMP of a test has it.
pub(super) fn reclaim(frame: &Frame<'_>) -> bool {
    let has = TestRmp::has(frame);
    if has && Snp::<TestRmp>::reclaim(frame).is_err() {
        frame.leak();
    }
    has
}

type File<'v> = TestFile<'v, Gmem>;

/// Converts with a vendor, and returns the outcome.
fn convert<V: Vendor>(file: &GmemFile, request: &Request) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::default();
    let _done = convert::convert::<V>(file, request, &mut outcome)?;
    Ok(outcome)
}

fn test_vm(kind: Platform) -> Result<TestVm> {
    TestRmp::reset();
    let vm = TestVm::new()?;
    vm.put_on(kind, ASID)?;
    Ok(vm)
}

fn request(file: &File<'_>, to: Visibility, content: Content) -> Result<Request> {
    let geometry = file.file().inode().geometry();
    let page = geometry.page_size().bytes();
    let raw = RawRequest {
        offset: FIRST * page,
        size: (END - FIRST) * page,
        attributes: to.attributes(),
        flags: content.flags(),
        ..RawRequest::default()
    };
    Request::parse(&raw, &geometry, true).map_err(|_| EINVAL)
}

/// Each of `operations` with the codes with which it can fail: an errno, and an instruction's.
fn failures<const N: usize>(
    operations: [RmpOperation; N],
) -> impl Iterator<Item = (RmpOperation, i32)> {
    operations
        .into_iter()
        .flat_map(|operation| [EFAULT.to_errno(), 1].map(|code| (operation, code)))
}

/// The error and the page of a request that was refused.
fn refusal<T>(result: &Result<T, Failure>) -> Option<(Error, Option<u64>)> {
    result
        .as_ref()
        .err()
        .map(|failure| (failure.error, failure.at.map(PageIndex::get)))
}

/// Makes a file filled with [`BYTE`], or returns where KUnit cannot zap.
macro_rules! file_or_return {
    ($vm:expr, $initial:expr) => {{
        let Some(file) = File::new($vm, PAGES, $initial, BASE)? else {
            return Ok(());
        };
        for at in 0..PAGES {
            file.fill(at, BYTE)?;
        }
        file
    }};
}

// Uses the macro.
mod caller;

/// The RMP's entry once the guest has used and accepted a page.
fn accepted(at: u64) -> RmpEntry {
    RmpEntry {
        asid: ASID,
        gfn: BASE + at,
        validated: true,
    }
}

/// Lets the guest use and accept all pages of a file.
fn guest_uses(file: &File<'_>) -> Result {
    for at in 0..PAGES {
        drop(file.guest_fault(BASE + at)?);
        TestRmp::set(file, at, Some(accepted(at)))?;
    }
    Ok(())
}

/// How large a mapping the fault on a page of a block may get on `kind`; [`None`] where there are no
/// blocks.
fn order_in_block(kind: Platform, initial: Visibility) -> Result<Option<i32>> {
    let vm = test_vm(kind)?;
    let Some(file) = File::new(&vm, block::PAGES, initial, BASE)? else {
        return Ok(None);
    };
    if !file.allocate_block()? {
        pr_info!("skipped: there are no blocks\n");
        return Ok(None);
    }
    let order = file.guest_fault_order(BASE + 5)?.1;
    assert_eq!(file.guest_fault_order(BASE + 6)?.1, order);
    // What is mapped at once is assigned at once.
    let given = if kind == ON_SNP && initial == PRIVATE {
        block::PAGES
    } else {
        0
    };
    assert_eq!(TestRmp::assigned(), given as usize);
    Ok(Some(order))
}

/// Moving pages, with and without a platform that owns some.
#[kunit_tests(kvm_gmem_migrate)]
mod migrate {
    use super::*;

    #[test]
    fn platforms_whose_pages_move() -> Result {
        assert!(mover(None).is_some());
        for &platform in Iterator::chain(Platform::ALL.iter(), &[ON_SNP, ON_TDX]) {
            assert!(mover(Some(platform)).is_some());
        }
        Ok(())
    }

    /// A file of a guest that uses page 5, and has accepted it; [`None`] where there can be none.
    fn used(vm: &TestVm) -> Result<Option<File<'_>>> {
        let Some(file) = File::migratable(vm, PAGES, PRIVATE, BASE)? else {
            return Ok(None);
        };
        file.fill(5, BYTE)?;
        drop(file.guest_fault(BASE + 5)?);
        TestRmp::set(&file, 5, Some(accepted(5)))?;
        Ok(Some(file))
    }

    /// A platform that does not move the page leaves it where it is.
    #[test]
    fn page_that_is_not_moved_stays() -> Result {
        let vm = test_vm(ON_SNP)?;
        let Some(file) = used(&vm)? else {
            return Ok(());
        };
        TestRmp::fail(RmpOperation::Relocate, 0, 1);
        let (old, moved) = file.migrate(5)?;
        assert_eq!(moved, Err(EBUSY));
        assert!(file.page(5)?.is(&old));
        assert_eq!(TestRmp::entry(&file, 5)?, Some(accepted(5)));
        assert_eq!((vm.vm().is_dead(), file.lost_pages()), (false, 0));
        Ok(())
    }

    /// If the guest loses the page, or does not get it whatever the platform says, the VM is dead and
    /// nobody gets the page.
    #[test]
    fn page_that_is_lost() -> Result {
        for (operation, code) in [
            (RmpOperation::Relocate, TestRmp::LOST),
            (RmpOperation::Assign, 1),
        ] {
            let vm = test_vm(ON_SNP)?;
            let Some(file) = used(&vm)? else {
                return Ok(());
            };
            TestRmp::fail_with(code, operation, 0, 1);
            let (old, moved) = file.migrate(5)?;
            assert_eq!(moved, Err(EIO));
            assert!(file.page(5)?.is(&old));
            assert_eq!((vm.vm().is_dead(), file.lost_pages()), (true, 1));
            drop(old);
            assert_eq!(file.migrate(5)?.1, Err(EBUSY));
        }
        Ok(())
    }

    #[test]
    fn held_page_stays() -> Result {
        TestRmp::reset();
        let vm = TestVm::new()?;
        let Some(file) = File::migratable(&vm, PAGES, SHARED, BASE)? else {
            return Ok(());
        };
        file.fill(5, BYTE)?;
        let held = file.page(5)?;
        let (old, moved) = file.migrate(5)?;
        assert_eq!(moved, Err(EAGAIN));
        assert!(held.is(&old));
        assert_eq!(file.byte(5)?, Some(BYTE));
        Ok(())
    }
}

#[kunit_tests(kvm_gmem_snp)]
mod snp {
    use super::*;

    /// Mappings of shared pages are small, also where the memory is contiguous.
    #[test]
    fn shared_mappings_are_small() -> Result {
        for (initial, want) in [(PRIVATE, i32::from(block::ORDER)), (SHARED, 0)] {
            let order = order_in_block(ON_SNP, initial)?;
            assert_eq!(order.unwrap_or(want), want);
        }
        Ok(())
    }

    #[test]
    fn guest_fault_assigns_once() -> Result {
        let vm = test_vm(ON_SNP)?;
        let file = file_or_return!(&vm, PRIVATE);

        drop(file.guest_fault(BASE + 5)?);
        let entry = TestRmp::entry(&file, 5)?.ok_or(ENOENT)?;
        assert_eq!((entry.asid, entry.gfn), (ASID, BASE + 5));
        assert_eq!(TestRmp::entry(&file, 4)?, None);
        assert_eq!(TestRmp::entry(&file, 6)?, None);

        // As after any zap: an accepted page stays accepted.
        TestRmp::set(&file, 5, Some(accepted(5)))?;
        drop(file.guest_fault(BASE + 5)?);
        assert_eq!(TestRmp::entry(&file, 5)?, Some(accepted(5)));
        Ok(())
    }

    #[test]
    fn shared_page_is_not_assigned() -> Result {
        let vm = test_vm(ON_SNP)?;
        let file = file_or_return!(&vm, SHARED);

        drop(file.guest_fault(BASE + 5)?);
        assert_eq!(TestRmp::entry(&file, 5)?, None);
        Ok(())
    }

    /// Hazard 31: two VMs, one page, one RMP.
    #[test]
    fn page_of_another_vm_is_refused() -> Result {
        let vm = test_vm(ON_SNP)?;
        let file = file_or_return!(&vm, PRIVATE);
        let theirs = RmpEntry {
            asid: OTHER_ASID,
            gfn: BASE + 5,
            validated: true,
        };

        TestRmp::set(&file, 5, Some(theirs))?;
        assert_eq!(file.guest_fault(BASE + 5).err(), Some(EEXIST));
        assert_eq!(TestRmp::entry(&file, 5)?, Some(theirs));
        drop(file.guest_fault(BASE + 6)?);
        // The file does not take the page back either when it is freed; tested below.
        drop(file);
        TestRmp::reset();
        Ok(())
    }

    /// The same guest, but another gfn than the one for which the file has assigned the page.
    #[test]
    fn page_elsewhere_is_refused() -> Result {
        let vm = test_vm(ON_SNP)?;
        let file = file_or_return!(&vm, PRIVATE);
        let elsewhere = accepted(6);

        TestRmp::set(&file, 5, Some(elsewhere))?;
        assert_eq!(file.guest_fault(BASE + 5).err(), Some(EEXIST));
        assert_eq!(TestRmp::entry(&file, 5)?, Some(elsewhere));
        TestRmp::set(&file, 5, None)?;
        Ok(())
    }

    /// Hazards 48 and 49: `EIO`, whatever the code. `EFAULT` would ask the VMM for a conversion, and
    /// a positive code would count as success.
    #[test]
    fn failed_assignment_changes_nothing() -> Result {
        for (operation, code) in failures([RmpOperation::Lookup, RmpOperation::Assign]) {
            let vm = test_vm(ON_SNP)?;
            let file = file_or_return!(&vm, PRIVATE);

            drop(file.guest_fault(BASE + 4)?);
            TestRmp::fail_with(code, operation, 0, 1);
            assert_eq!(file.guest_fault(BASE + 5).err(), Some(EIO));
            assert!(TestRmp::entry(&file, 4)?.is_some());
            assert_eq!(TestRmp::entry(&file, 5)?, None);
            assert_eq!(file.byte(5)?, Some(BYTE));
            drop(file.guest_fault(BASE + 5)?);
            assert!(TestRmp::entry(&file, 5)?.is_some());
        }
        Ok(())
    }

    /// Hazard 30: an assignment that cannot be recorded is undone, and no other.
    #[test]
    fn undo_takes_back_one_page() -> Result {
        // More than the record has room for.
        const FAR: u64 = 1 << 41;

        let vm = test_vm(ON_SNP)?;
        let Some(file) = File::new(&vm, PAGES, PRIVATE, FAR)? else {
            return Ok(());
        };
        let theirs = RmpEntry {
            asid: OTHER_ASID,
            gfn: 1,
            validated: true,
        };
        TestRmp::set(&file, 4, Some(theirs))?;
        TestRmp::set(&file, 6, Some(theirs))?;

        assert_eq!(file.guest_fault(FAR + 5).err(), Some(EINVAL));
        assert_eq!(TestRmp::entry(&file, 5)?, None);
        assert_eq!(TestRmp::entry(&file, 4)?, Some(theirs));
        assert_eq!(TestRmp::entry(&file, 6)?, Some(theirs));
        TestRmp::set(&file, 4, None)?;
        TestRmp::set(&file, 6, None)?;
        Ok(())
    }

    /// If the undo fails as well, the page is never used again.
    #[test]
    fn failed_undo_loses_the_page() -> Result {
        const FAR: u64 = 1 << 41;

        let vm = test_vm(ON_SNP)?;
        let Some(file) = File::new(&vm, PAGES, PRIVATE, FAR)? else {
            return Ok(());
        };
        TestRmp::fail(RmpOperation::Unassign, 0, 1);
        assert!(file.guest_fault(FAR + 5).is_err());
        assert!(TestRmp::entry(&file, 5)?.is_some());
        assert!(file.guest_fault(FAR + 5).is_err());
        assert_eq!(file.lost_pages(), 1);
        Ok(())
    }

    #[test]
    fn to_shared_takes_back_the_range() -> Result {
        for (content, byte) in [
            (Content::Preserve, BYTE),
            (Content::Zero, 0),
            (Content::None, BYTE),
        ] {
            let vm = test_vm(ON_SNP)?;
            let file = file_or_return!(&vm, PRIVATE);

            guest_uses(&file)?;
            let request = request(&file, SHARED, content)?;
            assert_eq!(
                refusal(&convert::<Snp<TestRmp>>(file.file(), &request)),
                None
            );
            for at in 0..PAGES {
                let inside = (FIRST..END).contains(&at);
                let entry = (!inside).then_some(accepted(at));
                assert_eq!(TestRmp::entry(&file, at)?, entry);
                assert!(file.visibility(at) == if inside { SHARED } else { PRIVATE });
                let wanted = if inside { byte } else { BYTE };
                assert_eq!(file.byte(at)?, Some(wanted));
            }
        }
        Ok(())
    }

    /// Fails at each page of a request of 16, in the call and in the lookups before and after it.
    #[test]
    fn to_shared_fails_at_each_page() -> Result {
        const COUNT: u32 = (END - FIRST) as u32;

        for (operation, code) in failures([RmpOperation::Unassign, RmpOperation::Lookup]) {
            let calls = if operation == RmpOperation::Lookup {
                2
            } else {
                1
            };
            for before in 0..COUNT * calls {
                let vm = test_vm(ON_SNP)?;
                let file = file_or_return!(&vm, PRIVATE);
                let fails = FIRST + u64::from(before / calls);

                guest_uses(&file)?;
                let asked = request(&file, SHARED, Content::Zero)?;
                TestRmp::fail_with(code, operation, before, 1);
                let result = convert::<Snp<TestRmp>>(file.file(), &asked);

                assert_eq!(refusal(&result), Some((EIO, Some(fails))));
                assert!(vm.vm().is_dead());
                assert_eq!(vm.invalidations(), 0);
                for at in 0..PAGES {
                    let entry = TestRmp::entry(&file, at)?;
                    if (FIRST..fails).contains(&at) {
                        assert_eq!(entry, None);
                    } else if at != fails || operation == RmpOperation::Unassign {
                        assert_eq!(entry, Some(accepted(at)));
                        assert_eq!(file.byte(at)?, Some(BYTE));
                    }
                    assert!(file.visibility(at) == PRIVATE);
                    assert_eq!(file.host_fault(at).err(), Some(EFAULT));
                }
                assert_eq!(file.lost_pages(), 1);
                // Hazard 44: the VM is dead.
                let again = convert::<Snp<TestRmp>>(file.file(), &asked);
                assert_eq!(refusal(&again), Some((EIO, None)));
            }
        }
        Ok(())
    }

    /// One page is in an entry of 2M, whose split fails with `code`, `times` times. Returns the
    /// error of the request.
    fn to_shared_with_large(
        file: &File<'_>,
        (code, times): (i32, u32),
        others_split: bool,
    ) -> Result<Option<(Error, Option<u64>)>> {
        guest_uses(file)?;
        TestRmp::set_large(file, 9, others_split)?;
        TestRmp::fail_with(code, RmpOperation::Smash, 0, times);
        let asked = request(file, SHARED, Content::Zero)?;
        Ok(refusal(&convert::<Snp<TestRmp>>(file.file(), &asked)))
    }

    /// Hazard 29: an entry that is in use, or that another CPU splits, is not a failure.
    #[test]
    fn large_entry_is_split() -> Result {
        for (fails, others_split) in [
            ((0, 0), false),
            ((TestRmp::IN_USE, 100), false),
            ((1, 1), true),
            ((TestRmp::IN_USE, u32::MAX), true),
        ] {
            let vm = test_vm(ON_SNP)?;
            let file = file_or_return!(&vm, PRIVATE);

            let refused = to_shared_with_large(&file, fails, others_split)?;
            assert_eq!(refused, None);
            assert_eq!(TestRmp::overlaps(), 0);
            for at in FIRST..END {
                assert_eq!(TestRmp::entry(&file, at)?, None);
                assert_eq!(file.byte(at)?, Some(0));
            }
        }
        Ok(())
    }

    /// An entry that cannot be split is left alone, and its page lost. The number of retries is
    /// bounded.
    #[test]
    fn failed_split_loses_the_page() -> Result {
        for fails in [(1, 1), (TestRmp::IN_USE, u32::MAX)] {
            let vm = test_vm(ON_SNP)?;
            let file = file_or_return!(&vm, PRIVATE);

            let refused = to_shared_with_large(&file, fails, false)?;
            assert_eq!(refused, Some((EIO, Some(9))));
            assert!(vm.vm().is_dead());
            // The kernel would retry this for ever.
            assert_eq!(TestRmp::overlaps(), 0);
            assert_eq!(TestRmp::entry(&file, 9)?, Some(accepted(9)));
            assert_eq!(file.byte(9)?, Some(BYTE));
            assert_eq!(file.lost_pages(), 1);
        }
        Ok(())
    }

    /// The same when the page is freed.
    #[test]
    fn failed_split_frees_nothing() -> Result {
        let vm = test_vm(ON_SNP)?;
        let file = file_or_return!(&vm, PRIVATE);

        guest_uses(&file)?;
        TestRmp::set_large(&file, 9, false)?;
        TestRmp::fail_with(1, RmpOperation::Smash, 0, 1);
        let (large, other) = (file.page(9)?, file.page(10)?);
        drop(file);
        assert_eq!(TestRmp::overlaps(), 0);
        assert_eq!(TestRmp::assigned(), 1);
        assert_eq!(large.references(), 2);
        assert_eq!(other.references(), 1);
        Ok(())
    }

    /// The host cannot write a page that stays the guest's.
    #[test]
    fn zero_to_private_is_refused_where_owned() -> Result {
        let vm = test_vm(ON_SNP)?;
        let file = file_or_return!(&vm, PRIVATE);

        drop(file.guest_fault(BASE + 9)?);
        let zero = request(&file, PRIVATE, Content::Zero)?;
        let result = convert::<Snp<TestRmp>>(file.file(), &zero);
        assert_eq!(refusal(&result), Some((EOPNOTSUPP, Some(9))));
        for at in 0..PAGES {
            assert_eq!(file.byte(at)?, Some(BYTE));
        }
        for content in [Content::None, Content::Preserve] {
            let request = request(&file, PRIVATE, content)?;
            assert!(convert::<Snp<TestRmp>>(file.file(), &request).is_ok());
            assert_eq!(file.byte(9)?, Some(BYTE));
        }
        assert!(TestRmp::entry(&file, 9)?.is_some());
        Ok(())
    }

    /// Hazard 49: a page that cannot be looked up counts as owned, so ZERO to private is refused.
    #[test]
    fn zero_to_private_is_refused_where_unknown() -> Result {
        for (operation, code) in failures([RmpOperation::Lookup]) {
            let vm = test_vm(ON_SNP)?;
            let file = file_or_return!(&vm, PRIVATE);
            let zero = request(&file, PRIVATE, Content::Zero)?;

            TestRmp::fail_with(code, operation, 3, 1);
            let result = convert::<Snp<TestRmp>>(file.file(), &zero);
            assert_eq!(refusal(&result), Some((EOPNOTSUPP, Some(FIRST + 3))));
            for at in 0..PAGES {
                assert_eq!(file.byte(at)?, Some(BYTE));
            }
        }
        Ok(())
    }

    /// The same when a page without a record is freed: it is leaked.
    #[test]
    fn unknown_page_is_not_freed() -> Result {
        for (operation, code) in failures([RmpOperation::Lookup]) {
            let vm = test_vm(ON_SNP)?;
            let file = file_or_return!(&vm, SHARED);
            let (first, second, third) = (file.page(0)?, file.page(1)?, file.page(2)?);

            TestRmp::fail_with(code, operation, 1, 1);
            drop(file);
            assert_eq!(first.references(), 1);
            assert_eq!(second.references(), 2);
            assert_eq!(third.references(), 1);
        }
        Ok(())
    }

    /// A freed page goes back to the host, or is leaked.
    #[test]
    fn freed_pages_are_taken_back() -> Result {
        let vm = test_vm(ON_SNP)?;
        let file = file_or_return!(&vm, PRIVATE);

        guest_uses(&file)?;
        assert_eq!(TestRmp::assigned(), PAGES as usize);
        TestRmp::fail(RmpOperation::Unassign, 3, 1);
        drop(file);
        assert_eq!(TestRmp::assigned(), 1);
        Ok(())
    }
}

mod on_tdx;
mod snp_block;

/// A vendor that does nothing, as if the platform owned no page.
struct Ignorant;

#[vtable]
impl Vendor for Ignorant {
    const PLATFORM: Platform = Platform::SwProtected;
}

/// Wrong behaviour of a vendor.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    /// Nothing.
    None,
    /// It does something else to the bytes.
    Does(Action),
    /// It says that it owns all pages, or none.
    Owns(bool),
    /// It cannot tell whether it owns a page.
    CannotTell,
    /// It does not take pages back, and says that it has.
    KeepsPages,
    /// It takes pages back, and says that it has failed.
    SaysFatal,
    /// It overwrites the records of pages.
    Forgets,
    /// It gives the page to another guest instead.
    Assigns,
    /// It gives pages back before it is asked to.
    TooEarly,
    /// It clears the records of pages before it is asked to give them back.
    ForgetsEarly,
}

/// The current behaviour of the vendor, as an index. KUnit runs one test after another.
static LIE: AtomicU32 = AtomicU32::new(0);

impl Lie {
    const ALL: [Self; 13] = [
        Self::None,
        Self::Does(Action::Leave),
        Self::Does(Action::Zero),
        Self::Does(Action::Scramble),
        Self::Owns(false),
        Self::Owns(true),
        Self::CannotTell,
        Self::KeepsPages,
        Self::SaysFatal,
        Self::Forgets,
        Self::Assigns,
        Self::TooEarly,
        Self::ForgetsEarly,
    ];

    fn told() -> Self {
        let index = LIE.load(Ordering::Relaxed) as usize;
        Self::ALL.get(index).copied().unwrap_or(Self::None)
    }

    fn tell(self) {
        let index = Self::ALL.iter().position(|lie| *lie == self);
        LIE.store(index.unwrap_or(0) as u32, Ordering::Relaxed);
    }
}

/// The vendor that reports wrong results.
struct Liar;

#[vtable]
impl Vendor for Liar {
    const PLATFORM: Platform = Platform::Snp(Base::Test);

    fn action(request: &Request) -> Result<Action, Refusal> {
        match (Lie::told(), request.content()) {
            (Lie::Does(action), _) => Ok(action),
            (_, Content::Zero) => Ok(Action::Zero),
            (_, Content::Preserve | Content::None) => Ok(Action::Leave),
        }
    }

    fn owns(_vm: &Vm, folio: &FolioRef<'_>) -> Result<bool> {
        match Lie::told() {
            Lie::Owns(owns) => Ok(owns),
            Lie::CannotTell => Err(ERANGE),
            Lie::TooEarly => {
                let _ = TestRmp::unassign(&folio.frame());
                Ok(false)
            }
            Lie::ForgetsEarly => {
                folio.frame().forget();
                Ok(TestRmp::lookup(&folio.frame())?.assigned)
            }
            _ => Ok(TestRmp::lookup(&folio.frame())?.assigned),
        }
    }

    fn owns_mapped(mapped: &Mapped<'_>) -> bool {
        match Lie::told() {
            Lie::Owns(owns) => owns,
            // It returns the opposite of what it has found.
            Lie::CannotTell => !mapped.is_in_sept(),
            _ => mapped.is_in_sept(),
        }
    }

    fn make_private(_vm: &Vm, _gfn: Gfn, _page: &PrivatePage<'_>) -> Result {
        Ok(())
    }

    fn populate(_vm: &Vm, gfn: Gfn) -> Result<Assignment> {
        Ok(Assignment { gfn, asid: ASID })
    }

    fn make_shared(folio: &FolioRef<'_>) -> Result<(), Fatal> {
        let frame = folio.frame();
        match Lie::told() {
            Lie::KeepsPages => return Ok(()),
            Lie::Forgets => {
                let _ = frame.record(Assignment {
                    gfn: Gfn::new(0),
                    asid: 0,
                });
                return Ok(());
            }
            Lie::Assigns => {
                let _ = TestRmp::give(&frame, Gfn::new(0), OTHER_ASID);
                return Ok(());
            }
            _ => {}
        }
        TestRmp::unassign(&frame).map_err(|_| Fatal)?;
        match Lie::told() {
            Lie::SaysFatal => Err(Fatal),
            _ => Ok(()),
        }
    }

    fn reclaim(_frame: &Frame<'_>) -> Result<(), Fatal> {
        Ok(())
    }
}

/// Fails a test from a function that is not a test, where an assertion would be an oops.
macro_rules! ensure {
    ($condition:expr, $($what:tt)*) => {
        if !$condition {
            pr_err!("line {}: {}: {:?}\n", line!(), stringify!($condition), ($($what)*));
            return Err(EINVAL);
        }
    };
}

/// Checks what must hold after every request, whatever the vendor.
fn check(
    file: &File<'_>,
    vm: &TestVm,
    request: &Request,
    before: Visibility,
    result: &Result<Outcome, Failure>,
) -> Result {
    // If the platform has failed, nothing is promised about contents.
    let is_over = vm.vm().is_dead();

    ensure!(vm.invalidations() == 0, request);
    ensure!(!is_over || result.is_err(), request);
    for at in 0..PAGES {
        let inside = request.range().contains(PageIndex::new(at));
        let done = result.is_ok() && inside;
        let is = if done { request.to() } else { before };

        ensure!(file.visibility(at) == is, request, at);
        ensure!(is == SHARED || file.host_fault(at).is_err(), request, at);

        // Pages that the host can reach are not owned, and owned pages were not written.
        let is_tdx = matches!(platform::of(vm.vm()), Some(Platform::Tdx(_)));
        let in_sept = is_tdx && TestSept::has(BASE + at);
        let owned = in_sept || TestRmp::entry(file, at)?.is_some();
        let byte = file.byte(at)?;
        ensure!(is == PRIVATE || !owned, request, at);
        ensure!(!owned || byte == Some(BYTE), request, at, byte);

        match (done, request.content()) {
            (true, Content::Zero) => ensure!(byte == Some(0), request, at, byte),
            (true, Content::Preserve) => ensure!(byte == Some(BYTE), request, at, byte),
            (true, Content::None) => {}
            (false, _) => ensure!(is_over || byte == Some(BYTE), request, at, byte),
        }
    }
    Ok(())
}

#[kunit_tests(kvm_gmem_hostile_vendor)]
mod hostile_vendor {
    use super::*;

    /// Every behaviour, request and platform; the guest has used every third page.
    fn every_lie<V: Vendor>(kind: Platform) -> Result {
        let ways = [
            (SHARED, SHARED),
            (SHARED, PRIVATE),
            (PRIVATE, SHARED),
            (PRIVATE, PRIVATE),
        ];
        for lie in Lie::ALL {
            for (before, to) in ways {
                for content in POLICIES {
                    let vm = test_vm(kind)?;
                    let file = file_or_return!(&vm, before);
                    for at in (0..PAGES).step_by(3).filter(|_| before == PRIVATE) {
                        drop(file.guest_fault(BASE + at)?);
                        TestSept::set(BASE + at, true, at % 2 == 0)?;
                    }
                    let request = request(&file, to, content)?;
                    lie.tell();
                    let result = convert::<V>(file.file(), &request);
                    Lie::None.tell();
                    let held = check(&file, &vm, &request, before, &result);
                    if held.is_err() {
                        pr_err!("{:?}: {:?}\n", lie, refusal(&result));
                        return held;
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn liar_on_snp() -> Result {
        every_lie::<Liar>(ON_SNP)
    }

    #[test]
    fn liar_on_tdx() -> Result {
        every_lie::<Liar>(ON_TDX)
    }

    #[test]
    fn liar_on_software() -> Result {
        every_lie::<Liar>(Platform::SwProtected)
    }

    #[test]
    fn ignorant_on_snp() -> Result {
        every_lie::<Ignorant>(ON_SNP)
    }

    #[test]
    fn ignorant_on_tdx() -> Result {
        every_lie::<Ignorant>(ON_TDX)
    }

    /// The guarantees for every vendor hold for the existing ones.
    #[test]
    fn own_vendors() -> Result {
        every_lie::<Snp<TestRmp>>(ON_SNP)?;
        every_lie::<Tdx<TestSept>>(ON_TDX)
    }

    /// The mapping is one page, whatever the vendor allows.
    #[test]
    fn guest_maps_one_page() -> Result {
        for kind in [Platform::SwProtected, ON_SNP, ON_TDX] {
            for initial in [PRIVATE, SHARED] {
                let vm = test_vm(kind)?;
                let file = file_or_return!(&vm, initial);
                assert_eq!(file.guest_fault_order(BASE + 5)?.1, 0);
            }
        }
        Ok(())
    }

    /// The page is unlocked and released, whatever the result of the fault.
    #[test]
    fn host_fault_leaves_nothing_locked() -> Result {
        for initial in [PRIVATE, SHARED] {
            let vm = test_vm(Platform::SwProtected)?;
            let file = file_or_return!(&vm, initial);
            let page = file.page(5)?;
            let references = page.references();

            drop(file.host_fault(5));
            assert!(!page.unlock());
            assert_eq!(page.references(), references);
        }
        Ok(())
    }

    /// Hazard 30: a page that is still assigned is leaked, also if the vendor should have undone that.
    #[test]
    fn assignment_that_is_not_remembered() -> Result {
        // More than the record has room for.
        const FAR: u64 = 1 << 41;

        let vm = test_vm(ON_SNP)?;
        let Some(file) = File::new(&vm, PAGES, PRIVATE, FAR)? else {
            return Ok(());
        };
        drop(file.guest_fault(FAR + 5));
        let page = file.page(5)?;
        drop(file);
        let lost = TestRmp::assigned() == 1;
        assert_eq!(page.references(), if lost { 2 } else { 1 });
        Ok(())
    }

    /// Each vendor runs on the other's platform.
    #[test]
    fn wrong_vendors() -> Result {
        every_lie::<Tdx<TestSept>>(ON_SNP)?;
        every_lie::<Snp<TestRmp>>(ON_TDX)
    }

    /// A vendor can call an RMP in a VM of any kind. The host does not get the page.
    #[test]
    fn page_that_another_vendor_assigned() -> Result {
        for kind in [Platform::SwProtected, ON_SNP, ON_TDX] {
            for content in [Content::Preserve, Content::Zero] {
                let vm = test_vm(kind)?;
                let file = file_or_return!(&vm, PRIVATE);
                let request = request(&file, SHARED, content)?;

                TestRmp::set(&file, 6, Some(accepted(6)))?;
                let result = convert::<Ignorant>(file.file(), &request);
                assert_eq!(refusal(&result).map(|(error, _)| error), Some(EIO));
                assert!(vm.vm().is_dead());
                check(&file, &vm, &request, PRIVATE, &result)?;
            }
        }
        Ok(())
    }

    /// A page that is assigned in the RMP is not freed, whatever its record says.
    #[test]
    fn forgotten_page_is_not_freed() -> Result {
        let vm = test_vm(ON_SNP)?;
        let file = file_or_return!(&vm, PRIVATE);
        drop(file.guest_fault(BASE + 6)?);
        let zero = request(&file, PRIVATE, Content::Zero)?;

        Lie::ForgetsEarly.tell();
        let result = convert::<Liar>(file.file(), &zero);
        Lie::None.tell();
        assert_eq!(refusal(&result), Some((EOPNOTSUPP, Some(6))));

        let (forgotten, other) = (file.page(6)?, file.page(7)?);
        drop(file);
        assert_eq!(TestRmp::assigned(), 1);
        assert_eq!(forgotten.references(), 2);
        assert_eq!(other.references(), 1);
        Ok(())
    }

    /// Requests succeed with a correct vendor. Otherwise the tests above would show nothing.
    #[test]
    fn honest_vendor_converts() -> Result {
        for content in POLICIES {
            let vm = test_vm(ON_SNP)?;
            let file = file_or_return!(&vm, PRIVATE);
            guest_uses(&file)?;
            let request = request(&file, SHARED, content)?;
            let result = convert::<Liar>(file.file(), &request);
            assert_eq!(refusal(&result), None);
            check(&file, &vm, &request, PRIVATE, &result)?;
            for at in 0..PAGES {
                assert_eq!(file.host_fault(at).is_ok(), (FIRST..END).contains(&at));
            }
        }
        Ok(())
    }

    /// A reference that is held elsewhere prevents conversion to private and nothing else.
    #[test]
    fn held_page_is_busy() -> Result {
        let vm = test_vm(Platform::SwProtected)?;
        let file = file_or_return!(&vm, SHARED);
        let request = request(&file, PRIVATE, Content::Zero)?;
        let page = file.host_fault(6)?;

        let result = convert::<Ignorant>(file.file(), &request);
        assert_eq!(refusal(&result), Some((EAGAIN, Some(6))));
        drop(page);
        check(&file, &vm, &request, SHARED, &result)?;
        let result = convert::<Ignorant>(file.file(), &request);
        assert_eq!(refusal(&result), None);
        check(&file, &vm, &request, SHARED, &result)
    }

    /// Without memory for the attributes nothing happens, not even an invalidation.
    #[test]
    fn nothing_changes_without_memory() -> Result {
        for (initial, to) in [(PRIVATE, SHARED), (SHARED, PRIVATE)] {
            for content in POLICIES {
                let vm = test_vm(ON_SNP)?;
                let file = file_or_return!(&vm, initial);
                let request = request(&file, to, content)?;
                let before = vm.sequence();

                let no_memory = NoMemory::begin();
                let result = convert::<Liar>(file.file(), &request);
                drop(no_memory);
                assert_eq!(refusal(&result), Some((ENOMEM, Some(FIRST))));
                assert_eq!(vm.sequence(), before);
                check(&file, &vm, &request, initial, &result)?;
                let result = convert::<Liar>(file.file(), &request);
                check(&file, &vm, &request, initial, &result)?;
            }
        }
        Ok(())
    }

    /// A task that is being killed stops at each step that can fail, and has changed nothing then.
    /// After the point of no return it finishes the request.
    #[test]
    fn killed_task_changes_nothing() -> Result {
        for (initial, to) in [(PRIVATE, SHARED), (SHARED, PRIVATE)] {
            for content in POLICIES {
                let mut looks = 0;

                loop {
                    let vm = test_vm(ON_SNP)?;
                    let file = file_or_return!(&vm, initial);
                    let request = request(&file, to, content)?;

                    let (result, killed) =
                        killed_after(looks, || convert::<Liar>(file.file(), &request));
                    let refused = killed.then_some((EINTR, None));
                    assert_eq!(refusal(&result), refused);
                    check(&file, &vm, &request, initial, &result)?;
                    if !killed {
                        break;
                    }
                    looks += 1;
                }
                // For a run, and for each batch or folio, of each step that has work.
                let (pages, walk) = ((END - FIRST) as u32, 2);
                let (quiesce, last) = (2, 1);
                let expected = match (to, content) {
                    (SHARED, Content::Zero) => walk + pages + last,
                    (SHARED, _) => pages + last,
                    (PRIVATE, Content::Zero) => walk + quiesce + walk + pages + last,
                    (PRIVATE, _) => quiesce + last,
                };
                assert_eq!(looks, expected);
            }
        }
        Ok(())
    }

    /// A page that nobody has used holds its last owner's bytes until its first use, under every
    /// policy.
    #[test]
    fn unused_pages_are_zeroed_at_first_use() -> Result {
        for content in POLICIES {
            let vm = test_vm(Platform::SwProtected)?;
            let Some(file) = File::new(&vm, PAGES, PRIVATE, BASE)? else {
                return Ok(());
            };
            for at in 0..PAGES {
                file.allocate(at)?;
            }
            let request = request(&file, SHARED, content)?;
            assert!(convert::<Ignorant>(file.file(), &request).is_ok());
            for at in FIRST..END {
                assert_eq!(file.host_fault(at)?.byte(), Some(0));
            }
        }
        Ok(())
    }

    /// A slot names the file, which does not know the slot: no conversion would reach the guest.
    #[test]
    fn stale_slot_gets_no_page() -> Result {
        for kind in [Platform::SwProtected, ON_SNP, ON_TDX] {
            let vm = test_vm(kind)?;
            let file = file_or_return!(&vm, PRIVATE);

            file.with_stale_slot(|| {
                assert_eq!(file.guest_fault(BASE + 5).err(), Some(EIO));
                assert_eq!(TestRmp::assigned(), 0);
                Ok(())
            })?;
            assert!(file.guest_fault(BASE + 5).is_ok());
        }
        Ok(())
    }

    #[test]
    fn dead_vm_is_refused() -> Result {
        let vm = test_vm(ON_SNP)?;
        let file = file_or_return!(&vm, PRIVATE);
        let request = request(&file, SHARED, Content::Zero)?;

        vm.kill();
        let result = convert::<Snp<TestRmp>>(file.file(), &request);
        assert_eq!(refusal(&result), Some((EIO, None)));
        check(&file, &vm, &request, PRIVATE, &result)
    }
}
