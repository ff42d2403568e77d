// SPDX-License-Identifier: GPL-2.0

//! KUnit: the attribute map, the address space, and invalidation in several VMs.
//!
//! The tests make the objects themselves instead of using the VFS and KVM_CREATE_VM, so no test
//! needs a mounted file system, a vCPU or hardware. In 7.3 user space cannot give an inode a second
//! VM, so these are also the only tests in which an inode has two.

use crate::{
    attribute_map::{
        AttributeMap,
        Reader,
        Writer, //
    },
    fs::{
        file_data::FileData,
        inode::PAGE, //
    },
    kvm::mmu::InvalidateSpan,
    testing::{
        memslot,
        slot,
        NoMemory,
        TestInode,
        TestVm, //
    }, //
};
use core::ptr::NonNull;
use gmem_policy::plan::Attributes;
use gmem_types::{
    range::{
        Geometry,
        PageIndex,
        PageRange, //
    },
    visibility::{
        Run,
        Visibility, //
    }, //
};
use kernel::{
    prelude::*,
    sync::rcu, //
};

const SHARED: Visibility = Visibility::Shared;
const PRIVATE: Visibility = Visibility::Private;

fn range(start: u64, end: u64) -> Result<PageRange> {
    PageRange::new(PageIndex::new(start), PageIndex::new(end)).ok_or(EINVAL)
}

/// An attribute map without an inode; freed at the end of the test.
struct TestMap(KBox<AttributeMap>);

impl TestMap {
    fn new(pages: u64, initial: Visibility) -> Result<Self> {
        let geometry = Geometry::new(PAGE, pages * PAGE.bytes()).ok_or(EINVAL)?;
        Ok(Self(KBox::new(
            AttributeMap::new(geometry, initial),
            GFP_KERNEL,
        )?))
    }

    fn writer(&self) -> Writer<'_> {
        // SAFETY: Only this test uses the map.
        unsafe { Writer::assume() }
    }

    fn reader(&self) -> Reader<'_> {
        // SAFETY: Only this test uses the map, and it does not read while it writes.
        unsafe { Reader::assume() }
    }

    fn store(&self, start: u64, end: u64, to: Visibility) -> Result {
        self.0
            .reserve(self.writer(), &range(start, end)?, to)?
            .store();
        Ok(())
    }

    fn at(&self, at: u64) -> Visibility {
        self.0.load(PageIndex::new(at), self.reader())
    }

    fn run(&self, at: u64) -> Option<(u64, u64, Visibility)> {
        let Run { range, visibility } = self.0.run_at(PageIndex::new(at), self.reader())?;
        Some((range.start().get(), range.end().get(), visibility))
    }
}

impl Drop for TestMap {
    fn drop(&mut self) {
        self.0.clear(self.writer());
    }
}

mod map;

#[kunit_tests(kvm_gmem_address_space)]
mod address_space {
    use super::*;

    #[test]
    fn a_new_file_is_all_of_a_kind() -> Result {
        let inode = TestInode::new(16, SHARED)?;

        let run = inode.get().run_at(PageIndex::new(3));
        assert_eq!(run.range, range(0, 16)?);
        assert!(run.visibility == SHARED);
        assert!(inode.get().converts_in_place());
        Ok(())
    }

    #[test]
    fn guard_reserves_and_commits() -> Result {
        let inode = TestInode::new(16, SHARED)?;
        let guard = inode.get().lock();

        guard.reserve(&range(2, 5)?, PRIVATE)?.store();
        assert!(guard.run_at(PageIndex::new(2)).visibility == PRIVATE);
        assert!(inode.get().visibility(PageIndex::new(4)) == PRIVATE);
        assert!(inode.get().visibility(PageIndex::new(5)) == SHARED);
        Ok(())
    }

    #[test]
    fn guard_refuses_a_range_outside_of_the_file() -> Result {
        let inode = TestInode::new(16, SHARED)?;
        let guard = inode.get().lock();

        assert_eq!(guard.reserve(&range(8, 17)?, PRIVATE).err(), Some(EINVAL));
        assert!(guard.run_at(PageIndex::new(8)).visibility == SHARED);
        Ok(())
    }

    #[test]
    fn empty_mapping_is_quiet() -> Result {
        let inode = TestInode::new(16, SHARED)?;
        let guard = inode.get().lock();

        assert!(guard.quiesce(core::iter::once(range(0, 16)?)).is_ok());
        assert!(guard.folios(&range(0, 16)?).next_batch().is_none());
        Ok(())
    }

    #[test]
    fn stable_knows_its_inode() -> Result {
        let inode = TestInode::new(16, PRIVATE)?;

        inode.get().stable(|one| {
            assert!(one.visibility(PageIndex::new(0)) == PRIVATE);
            assert!(core::ptr::eq(one.inode(), inode.get()));
            Ok(())
        })
    }
}

#[kunit_tests(kvm_gmem_ioctl)]
mod ioctl {
    use super::*;
    use crate::{
        bindings,
        ioctl::UserPointer, //
    };

    const WORD: usize = size_of::<u64>();
    const PAGE_BYTES: usize = kernel::page::PAGE_SIZE;

    /// Two pages of user memory of the test thread, with nothing mapped behind them.
    fn user_pages() -> Result<usize> {
        // SAFETY: KUnit runs each test in a kernel thread that has no user memory yet.
        let addr = unsafe { bindings::gmem_test_user_pages() };
        if addr == 0 {
            return Err(ENOMEM);
        }
        Ok(addr)
    }

    #[test]
    fn words_come_and_go_in_order() -> Result {
        let addr = user_pages()?;
        let words: [u64; 16] = core::array::from_fn(|n| 0x0102_0304_0506_0700 + n as u64);

        UserPointer::new(addr).write(&words)?;
        assert_eq!(UserPointer::new(addr).read::<16>()?, words);
        // Each word is at its offset in the struct.
        for (n, word) in words.iter().enumerate() {
            assert_eq!(UserPointer::new(addr + n * WORD).read::<1>()?, [*word]);
        }
        // Memory behind the struct is not written.
        assert_eq!(UserPointer::new(addr + 16 * WORD).read::<1>()?, [0]);
        Ok(())
    }

    #[test]
    fn what_leaves_user_memory_faults() -> Result {
        let addr = user_pages()?;
        let end = addr + 2 * PAGE_BYTES;

        // The struct can end at the last mapped byte, but not one word later.
        UserPointer::new(end - 16 * WORD).write(&[1u64; 16])?;
        assert_eq!(
            UserPointer::new(end - 15 * WORD).read::<16>().err(),
            Some(EFAULT)
        );
        assert_eq!(
            UserPointer::new(end - 15 * WORD).write(&[2u64; 16]).err(),
            Some(EFAULT)
        );
        assert_eq!(UserPointer::new(0).read::<16>().err(), Some(EFAULT));
        // A caller cannot have the kernel's own memory read or written either.
        let kernel = core::ptr::from_ref(&PAGE_BYTES) as usize;
        assert_eq!(UserPointer::new(kernel).read::<1>().err(), Some(EFAULT));
        Ok(())
    }
}

#[kunit_tests(kvm_gmem_invalidate)]
mod invalidate {
    use super::*;

    #[test]
    fn slot_maps_gfns_to_pages() -> Result {
        let mut raw = slot(0x100, 8, 4)?;
        let slot = memslot(&mut raw);

        assert_eq!(slot.index_of(crate::kvm::vm::Gfn::new(0xff)), None);
        assert_eq!(
            slot.index_of(crate::kvm::vm::Gfn::new(0x100)),
            Some(PageIndex::new(4))
        );
        assert_eq!(
            slot.index_of(crate::kvm::vm::Gfn::new(0x107)),
            Some(PageIndex::new(11))
        );
        assert_eq!(slot.index_of(crate::kvm::vm::Gfn::new(0x108)), None);
        assert_eq!(slot.gfns_of(&range(0, 6)?), Some((0x100, 0x102)));
        assert_eq!(slot.gfns_of(&range(0, 4)?), None);
        Ok(())
    }

    #[test]
    fn overlapping_slots_are_refused() -> Result {
        let vm = TestVm::new()?;
        let inode = TestInode::new(32, SHARED)?;
        let file = FileData::new(vm.vm(), None)?;
        let (mut one, mut two, mut three) = (slot(0, 9, 3)?, slot(64, 4, 11)?, slot(64, 4, 12)?);
        let (_guard, bindings) = inode.get().lock_to_bind();

        assert_eq!(file.bind(&bindings, memslot(&mut one)), Ok(()));
        assert_eq!(file.bind(&bindings, memslot(&mut two)), Err(EEXIST));
        assert_eq!(file.bind(&bindings, memslot(&mut three)), Ok(()));
        assert!(file.is_bound(PageIndex::new(11), memslot(&mut one)));
        assert!(file.is_bound(PageIndex::new(12), memslot(&mut three)));

        file.unbind(&bindings, memslot(&mut one));
        assert!(!file.has_slot(&bindings, &range(0, 12)?));
        assert!(file.has_slot(&bindings, &range(0, 13)?));
        file.unbind(&bindings, memslot(&mut three));
        Ok(())
    }

    /// Hazard 26: two VMs with one inode, and only one of them invalidated.
    #[test]
    fn every_vm_of_the_inode_is_invalidated() -> Result {
        let (one, two) = (TestVm::new()?, TestVm::new()?);
        let inode = TestInode::new(32, SHARED)?;
        let (first, second) = (
            FileData::new(one.vm(), None)?,
            FileData::new(two.vm(), None)?,
        );
        let (mut low, mut high) = (slot(0, 16, 0)?, slot(0x1000, 16, 8)?);

        // SAFETY: The files are removed below, and live longer than the inode in any case.
        unsafe {
            inode.get().add_file(NonNull::from(&*first))?;
            inode.get().add_file(NonNull::from(&*second))?;
        }
        let (guard, bindings) = inode.get().lock_to_bind();
        first.bind(&bindings, memslot(&mut low))?;
        second.bind(&bindings, memslot(&mut high))?;

        {
            let _span = InvalidateSpan::begin(&guard, range(8, 12)?);
            assert_eq!((one.invalidations(), two.invalidations()), (1, 1));
        }
        assert_eq!((one.invalidations(), two.invalidations()), (0, 0));
        assert_eq!((one.sequence(), two.sequence()), (1, 1));

        {
            // Only the second VM shows these pages.
            let _span = InvalidateSpan::begin(&guard, range(20, 24)?);
            assert_eq!((one.invalidations(), two.invalidations()), (0, 1));
        }
        assert_eq!((one.sequence(), two.sequence()), (1, 2));

        first.unbind(&bindings, memslot(&mut low));
        second.unbind(&bindings, memslot(&mut high));
        inode.get().remove_file(&guard, &bindings, &first);
        inode.get().remove_file(&guard, &bindings, &second);
        Ok(())
    }
}

/// Wrong code above rust/, and its effects.
#[kunit_tests(kvm_gmem_caller)]
mod caller {
    use super::*;
    use crate::{
        bindings,
        export::file_ops::create,
        fs::{
            address_space::Stable,
            block,
            fault::{
                HostFault,
                Served, //
            },
            file::GmemFile,
            inode::{
                Size,
                Traits, //
            },
            page_cache::LockedFolio,
            tables::{
                State,
                Tables, //
            }, //
        },
        guest_memfd::GuestMemfd,
        ioctl::UserPointer,
        kvm::{
            conversion::Done,
            fault::{
                GuestFault,
                GuestPage, //
            },
            migrate::{
                Destination,
                Moved,
                Source, //
            },
            platform::of,
            populate::Populate,
            vcpu::Vcpu,
            vm::{
                Gfn,
                Vm, //
            }, //
        },
        mm::folio::{
            Assignment,
            Frame, //
        },
        testing::{
            platform::{
                RmpEntry,
                TestRmp, //
            },
            HostPage,
            TestFile, //
        }, //
    };
    use core::sync::atomic::{
        AtomicBool,
        AtomicU32,
        Ordering, //
    };
    use gmem_policy::{
        plan::Plan,
        request::{
            RawRequest,
            Request, //
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
        range::Geometry,
        visibility::Run, //
    };
    use kernel::seq_file::SeqFile;

    const PAGES: u64 = 16;
    const BASE: u64 = 0x1000;
    /// A page that the implementation below cannot serve at this moment.
    const BUSY: u64 = 3;

    /// Whether the implementation fails once it has the page. KUnit runs one test after another.
    static FAILS: AtomicBool = AtomicBool::new(false);
    /// How many pages the implementation was asked to take back.
    static TAKEN_BACK: AtomicU32 = AtomicU32::new(0);

    fn fails() -> Result {
        if FAILS.load(Ordering::Relaxed) {
            return Err(ERANGE);
        }
        Ok(())
    }

    /// An implementation that requests more than is available.
    struct Greedy;

    static STATE: State = State::new::<Greedy>();
    static TABLES: Tables = Tables::new::<Greedy>(&STATE);

    impl GuestMemfd for Greedy {
        fn tables() -> &'static Tables {
            &TABLES
        }

        fn create(_vm: &Vm, _size: u64, _flags: u64) -> Result<i32> {
            Err(ENOTTY)
        }

        fn capability(_vm: Option<&Vm>, _cap: u64) -> Option<i32> {
            None
        }

        fn supports_in_place(_vm: &Vm) -> bool {
            true
        }

        /// The largest mapping that there is.
        fn get_pfn(fault: GuestFault<'_>) -> Result<GuestPage<'_>> {
            fault
                .inode()
                .stable(|stable| fault.serve(stable, |_| fails().map(|()| u8::MAX)))
        }

        fn in_use<'a>(fault: &GuestFault<'a>) -> Option<GuestPage<'a>> {
            fault.serve_in_use(u8::MAX)
        }

        fn allocate_block(_fault: &GuestFault<'_>) -> bool {
            false
        }

        fn populate(_populate: &Populate<'_>) -> Result<u64> {
            Err(ENOTTY)
        }

        fn fallocate(_file: &GmemFile, _mode: i32, _offset: u64, _len: u64) -> Result {
            Err(ENOTTY)
        }

        fn set_memory_attributes<'f>(_file: &'f GmemFile, _arg: UserPointer) -> Result<Done<'f>> {
            Err(ENOTTY)
        }

        fn get_memory_attributes(_file: &GmemFile, _arg: UserPointer) -> Result {
            Err(ENOTTY)
        }

        fn vcpu_ioctl(_vcpu: &mut Vcpu<'_>, _cmd: u32, _arg: UserPointer) -> Result {
            Err(ENOTTY)
        }

        fn show_fdinfo(_file: &GmemFile, _out: &SeqFile) {}

        fn show_run(_run: &Run, _out: &SeqFile) {}

        fn fault<'a>(fault: &mut HostFault<'a>, stable: &Stable<'_>) -> Result<Served<'a>> {
            if fault.at().get() == BUSY {
                return Err(EAGAIN);
            }
            let served = fault.serve(stable)?;
            fails()?;
            Ok(served)
        }

        /// Gives up the page, and nothing else.
        fn migrate<'m>(
            _platform: Option<Platform>,
            _from: Source<'m>,
            _to: Destination<'m>,
        ) -> Result<Moved<'m>> {
            Err(ERANGE)
        }

        fn reclaim(_frame: &Frame<'_>) {
            TAKEN_BACK.fetch_add(1, Ordering::Relaxed);
        }
    }

    type File<'v> = TestFile<'v, Greedy>;

    fn fault<'a>(file: &'a File<'_>, at: u64) -> GuestFault<'a> {
        GuestFault::new(
            file.vm(),
            file.file(),
            Gfn::new(BASE + at),
            PageIndex::new(at),
        )
    }

    #[test]
    fn mapping_is_small_without_a_block() -> Result {
        let vm = TestVm::new()?;
        let Some(file) = File::new(&vm, PAGES, PRIVATE, BASE)? else {
            return Ok(());
        };
        assert_eq!(file.guest_fault_order(BASE + 5)?.1, 0);
        Ok(())
    }

    /// A platform is given only the page of the fault, and no mapping includes other pages.
    #[test]
    fn private_pages_that_a_platform_is_given_are_mapped_one_by_one() -> Result {
        let kinds = [
            Platform::SwProtected,
            Platform::Snp(Base::Test),
            Platform::Tdx(Base::Test),
        ];
        for kind in kinds {
            for initial in [PRIVATE, SHARED] {
                TestRmp::reset();
                let vm = TestVm::new()?;
                vm.put_on(kind, 7)?;
                let Some(file) = File::new(&vm, block::PAGES, initial, BASE)? else {
                    return Ok(());
                };
                if !file.allocate_block()? {
                    pr_info!("skipped: there are no blocks\n");
                    return Ok(());
                }
                let one_by_one = initial == PRIVATE && kind != Platform::SwProtected;
                let want = if one_by_one { 0 } else { block::ORDER };
                // The first use, and a later one.
                for _ in 0..2 {
                    assert_eq!(file.guest_fault_order(BASE + 5)?.1, c_int::from(want));
                }
            }
        }
        Ok(())
    }

    /// If a fault fails after it got its page, the page is neither locked nor held any more.
    #[test]
    fn fault_that_fails_keeps_nothing() -> Result {
        let vm = TestVm::new()?;
        let Some(file) = File::new(&vm, PAGES, SHARED, BASE)? else {
            return Ok(());
        };
        file.fill(5, 0x5a)?;
        let page = file.page(5)?;
        let references = page.references();

        FAILS.store(true, Ordering::Relaxed);
        let host = file.host_fault(5);
        // Otherwise all later tests would hang.
        let host_locked = page.unlock();
        let guest = file.guest_fault(BASE + 5);
        let guest_locked = page.unlock();
        FAILS.store(false, Ordering::Relaxed);
        assert_eq!((host.err(), guest.err()), (Some(EFAULT), Some(ERANGE)));
        assert!(!host_locked && !guest_locked);
        assert_eq!(page.references(), references);
        assert_eq!(file.host_fault(5)?.byte(), Some(0x5a));
        Ok(())
    }

    /// A fault gets its page once.
    #[test]
    fn host_fault_is_served_once() -> Result {
        let vm = TestVm::new()?;
        let Some(file) = File::new(&vm, PAGES, SHARED, BASE)? else {
            return Ok(());
        };
        file.file().inode().stable(|here| {
            assert_eq!(file.host_fault_with(5, here, 1), Ok(()));
            assert_eq!(file.host_fault_with(5, here, 2), Err(EINVAL));
            Ok(())
        })
    }

    /// Files that rust/ refuses: the host could keep its mappings of a mappable file without
    /// attributes, whatever is private in the VM, and the owner of a page is not known in a VM of
    /// unknown kind.
    #[test]
    fn file_that_a_vm_cannot_have() -> Result {
        let traits = |mappable, initial, in_place| -> Result<Traits> {
            Ok(Traits {
                size: Size::new(PAGE.bytes()).ok_or(EINVAL)?,
                initial,
                mappable,
                in_place,
                migratable: false,
                large_folios: false,
            })
        };
        let vm = TestVm::new()?;

        for (mappable, initial) in [(true, PRIVATE), (false, SHARED), (true, SHARED)] {
            assert!(traits(mappable, initial, false)?.suit(vm.vm(), of(vm.vm())));
            let in_place = traits(mappable, initial, true)?;
            assert_eq!(create(vm.vm(), in_place), Err(EINVAL));
        }
        if !vm.set_private_mem() {
            return Ok(());
        }
        vm.put_on(Platform::SwProtected, 0)?;
        for (mappable, initial) in [(true, PRIVATE), (false, SHARED), (true, SHARED)] {
            assert!(traits(mappable, initial, true)?.suit(vm.vm(), of(vm.vm())));
            let fixed = traits(mappable, initial, false)?;
            assert_eq!(create(vm.vm(), fixed), Err(EINVAL));
        }
        assert!(traits(false, PRIVATE, false)?.suit(vm.vm(), of(vm.vm())));
        Ok(())
    }

    /// Copies the page, like the vendors with migratable files.
    fn copy<'m>(
        _platform: Option<Platform>,
        from: Source<'m>,
        to: Destination<'m>,
    ) -> Result<Moved<'m>> {
        from.copy_to(to)
    }

    /// If a page cannot be moved, the move fails before guests lose a mapping.
    #[test]
    fn page_that_stays() -> Result {
        let vm = TestVm::new()?;
        let Some(file) = File::new(&vm, PAGES, PRIVATE, BASE)? else {
            return Ok(());
        };
        file.fill(5, 0x5a)?;
        let stays = |error| -> Result {
            let (old, moved) = file.migrate_with(5, copy)?;
            assert_eq!(moved, Err(error));
            assert!(file.page(5)?.is(&old));
            assert_eq!(file.byte(5)?, Some(0x5a));
            assert_eq!((vm.invalidations(), vm.sequence()), (0, 0));
            Ok(())
        };

        // Somebody has a reference.
        let held = file.page(5)?;
        stays(EAGAIN)?;
        drop(held);
        // The file is being changed.
        file.file().inode().locked(|_| stays(EAGAIN))?;
        // The memory has failed.
        if cfg!(CONFIG_MEMORY_FAILURE) {
            file.page(5)?.set_failed(true);
            let failed = stays(EBUSY);
            file.page(5)?.set_failed(false);
            failed?;
        }
        // The record says that the page was assigned, but the RMP does not.
        let to = Assignment {
            gfn: Gfn::new(BASE + 5),
            asid: 7,
        };
        file.page(5)?.with_frame(|frame| frame.record(to))?;
        let given = stays(EBUSY);
        file.page(5)?.with_frame(|frame| frame.forget());
        given
    }

    /// The same if the RMP has the page, but not the record.
    #[test]
    fn page_of_a_platform_stays() -> Result {
        TestRmp::reset();
        let vm = TestVm::new()?;
        vm.put_on(Platform::Snp(Base::Test), 7)?;
        let Some(file) = File::new(&vm, PAGES, PRIVATE, BASE)? else {
            return Ok(());
        };
        file.fill(5, 0x5a)?;
        let theirs = RmpEntry {
            asid: 7,
            gfn: BASE + 5,
            validated: false,
        };
        TestRmp::set(&file, 5, Some(theirs))?;
        let (old, moved) = file.migrate_with(5, copy)?;
        let same = file.page(5)?.is(&old);
        TestRmp::set(&file, 5, None)?;
        assert_eq!(moved, Err(EBUSY));
        assert!(same);
        Ok(())
    }

    /// A page that a platform was given is not copied, and not moved for a VM that was not given it.
    #[test]
    fn given_page_is_not_copied() -> Result {
        TestRmp::reset();
        let vm = TestVm::new()?;
        vm.put_on(Platform::Snp(Base::Test), 7)?;
        let Some(file) = File::new(&vm, PAGES, PRIVATE, BASE)? else {
            return Ok(());
        };
        file.fill(5, 0x5a)?;
        for asid in [7, 8] {
            let gfn = BASE + 5;
            let to = Assignment {
                gfn: Gfn::new(gfn),
                asid,
            };
            let theirs = RmpEntry {
                asid,
                gfn,
                validated: false,
            };
            file.page(5)?.with_frame(|frame| frame.record(to))?;
            TestRmp::set(&file, 5, Some(theirs))?;
            let (old, moved) = file.migrate_with(5, |platform, from, to| match asid {
                7 => copy(platform, from, to),
                _ => from.relocate_to::<TestRmp>(to),
            })?;
            let same = file.page(5)?.is(&old);
            TestRmp::set(&file, 5, None)?;
            file.page(5)?.with_frame(|frame| frame.forget());
            assert_eq!(moved, Err(EBUSY));
            assert!(same);
        }
        Ok(())
    }

    /// A page that a guest can have in an S-EPT is not moved by a vendor that overlooks this, and one
    /// that was given to an RMP not by one that looks into an S-EPT.
    #[test]
    fn page_that_a_guest_has_elsewhere() -> Result {
        for kind in [Platform::Tdx(Base::Test), Platform::Snp(Base::Test)] {
            TestRmp::reset();
            let vm = TestVm::new()?;
            vm.put_on(kind, 7)?;
            let Some(file) = File::new(&vm, PAGES, PRIVATE, BASE)? else {
                return Ok(());
            };
            file.fill(5, 0x5a)?;
            let gfn = BASE + 5;
            let given = kind == Platform::Snp(Base::Test);
            if given {
                let to = Assignment {
                    gfn: Gfn::new(gfn),
                    asid: 7,
                };
                let theirs = RmpEntry {
                    asid: 7,
                    gfn,
                    validated: false,
                };
                file.page(5)?.with_frame(|frame| frame.record(to))?;
                TestRmp::set(&file, 5, Some(theirs))?;
            }
            let mut all_stay = true;
            for vendor in 0..3 {
                let (old, moved) = file.migrate_with(5, |platform, from, to| match vendor {
                    0 => copy(platform, from, to),
                    1 => from.move_by_hypervisor(to),
                    _ if given => from.move_in_sept(to),
                    _ => from.relocate_to::<TestRmp>(to),
                })?;
                all_stay &= moved == Err(EBUSY) && file.page(5)?.is(&old);
            }
            TestRmp::set(&file, 5, None)?;
            file.page(5)?.with_frame(|frame| frame.forget());
            assert!(all_stay);
        }
        Ok(())
    }

    /// Guests have lost their mappings, but the page does not move: the vendor fails, somebody gets a
    /// reference while the page is copied, or the VM is dead.
    #[test]
    fn page_that_stays_after_all() -> Result {
        let vm = TestVm::new()?;
        let Some(file) = File::new(&vm, PAGES, PRIVATE, BASE)? else {
            return Ok(());
        };
        file.fill(5, 0x5a)?;
        file.page(5)?.with_frame(|frame| frame.mark_zero(true));
        let stays = |result: Result<(HostPage, Result)>, error, sequence| -> Result {
            let (old, moved) = result?;
            assert!(moved == Err(error) || moved == Err(EOPNOTSUPP));
            assert!(file.page(5)?.is(&old));
            assert!(old.is_remembered());
            assert_eq!(file.byte(5)?, Some(0x5a));
            assert_eq!((vm.invalidations(), vm.sequence()), (0, sequence));
            Ok(())
        };

        stays(file.migrate_with(5, Greedy::migrate), ERANGE, 1)?;
        let mut held = None;
        let mut during = 0;
        let moved = file.migrate_with(5, |platform, from, to| {
            held = Some(from.hold());
            during = vm.invalidations();
            copy(platform, from, to)
        });
        drop(held);
        assert_eq!(during, 1);
        stays(moved, EAGAIN, 2)?;
        vm.kill();
        stays(file.migrate_with(5, copy), EBUSY, 3)
    }

    /// Pages that a platform can own do not move, whatever the caller says, and each has a folio of its
    /// own. Nor does a folio move that has more pages.
    #[test]
    fn file_whose_pages_cannot_move() -> Result {
        let traits = |in_place, (migratable, large_folios)| -> Result<Traits> {
            Ok(Traits {
                size: Size::new(PAGE.bytes()).ok_or(EINVAL)?,
                initial: PRIVATE,
                mappable: false,
                in_place,
                migratable,
                large_folios,
            })
        };
        for kind in [Platform::Snp(Base::Test), Platform::Tdx(Base::Test)] {
            let vm = TestVm::new()?;
            vm.put_on(kind, 7)?;
            for in_place in [false, true] {
                for wanted in [(true, false), (false, true)] {
                    let traits = traits(in_place, wanted)?;
                    assert!(traits.suit(vm.vm(), of(vm.vm())));
                    assert_eq!(create(vm.vm(), traits), Err(EINVAL));
                }
            }
        }
        let vm = TestVm::new()?;
        assert_eq!(create(vm.vm(), traits(false, (true, true))?), Err(EINVAL));
        Ok(())
    }

    /// A vendor that gives the page to the platform, and fails.
    ///
    /// # Safety
    ///
    /// None is needed.
    unsafe extern "C" fn give_and_fail(
        _kvm: *mut bindings::kvm,
        gfn: u64,
        pfn: u64,
        _source: *mut bindings::page,
        _opaque: *mut c_void,
    ) -> c_int {
        match TestRmp::give_pfn(pfn, Gfn::new(gfn), 7) {
            Ok(()) => EIO.to_errno(),
            Err(_) => 0,
        }
    }

    /// A page that the platform keeps after a failed populate is not freed, whether or not there is
    /// a record of the assignment.
    #[test]
    fn page_that_is_filled_and_not_given_back() -> Result {
        let to = Assignment {
            gfn: Gfn::new(BASE + 5),
            asid: 7,
        };
        for to in [None, Some(to)] {
            TestRmp::reset();
            let vm = TestVm::new()?;
            vm.put_on(Platform::Snp(Base::Test), 7)?;
            let Some(file) = File::fixed(&vm, PAGES, PRIVATE, BASE)? else {
                return Ok(());
            };
            let populate = Populate {
                vm: vm.vm(),
                start: Gfn::new(BASE + 5),
                wanted: 1,
                callback: Some(give_and_fail),
                opaque: core::ptr::null_mut(),
                source: 0,
                writable_source: false,
            };
            let fill = || {
                let folio = LockedFolio::get(file.file().inode(), PageIndex::new(5))?;
                populate.give(folio, populate.pin_source(0)?, to)
            };
            assert_eq!(fill(), Err(EIO));
            assert_eq!(file.lost_pages(), 1);
            // The page is assigned.
            assert_eq!(fill(), Err(EEXIST));
            let page = file.page(5)?;
            drop(file);
            assert_eq!(page.references(), 2);
        }
        Ok(())
    }

    #[test]
    fn guest_reads_nothing_of_earlier_owners() -> Result {
        let vm = TestVm::new()?;
        let Some(file) = File::new(&vm, PAGES, PRIVATE, BASE)? else {
            return Ok(());
        };
        file.allocate(5)?;
        file.page(5)?.fill(0x5a);
        assert_eq!(file.guest_fault(BASE + 5)?.byte(), Some(0));
        // The same if the page was not allocated ahead.
        assert_eq!(file.guest_fault(BASE + 6)?.byte(), Some(0));
        assert_eq!(file.allocated(), 2);
        Ok(())
    }

    /// The implementation above never gives a page to a platform: neither the guest nor the host can
    /// use it then.
    #[test]
    fn page_that_no_platform_was_given() -> Result {
        TestRmp::reset();
        let vm = TestVm::new()?;
        vm.put_on(Platform::Snp(Base::Test), 7)?;
        let Some(file) = File::new(&vm, PAGES, PRIVATE, BASE)? else {
            return Ok(());
        };
        assert_eq!(file.guest_fault(BASE + 5)?.byte(), Some(0));
        assert_eq!(TestRmp::entry(&file, 5)?, None);
        assert_eq!(file.host_fault(5).err(), Some(EFAULT));
        assert!(file.visibility(5) == PRIVATE);
        Ok(())
    }

    /// The lock of the mapping stays held, and memory management must not assume that it was dropped.
    #[test]
    fn host_fault_that_cannot_be_served_yet() -> Result {
        let vm = TestVm::new()?;
        let Some(file) = File::new(&vm, PAGES, SHARED, BASE)? else {
            return Ok(());
        };
        assert_eq!(file.host_fault(BUSY).err(), Some(EAGAIN));
        assert!(file.host_fault(BUSY + 1).is_ok());
        assert_eq!(file.allocated(), 1);
        Ok(())
    }

    /// The memory is freed with the inode at the latest.
    #[test]
    fn pages_that_nobody_frees() -> Result {
        let vm = TestVm::new()?;
        let Some(file) = File::new(&vm, PAGES, PRIVATE, BASE)? else {
            return Ok(());
        };
        file.fill(5, 0x5a)?;
        let page = file.page(5)?;
        assert_eq!(file.byte(5)?, Some(0x5a));
        assert_eq!(file.host_fault(5).err(), Some(EFAULT));
        drop(file);
        assert_eq!(page.references(), 1);
        Ok(())
    }

    /// A page that a platform has is taken back when it is freed, and its record is cleared, whether
    /// or not there is an RMP.
    #[test]
    fn remembered_page_is_taken_back() -> Result {
        for has_rmp in [false, true] {
            TestRmp::reset();
            let vm = TestVm::new()?;
            if has_rmp {
                vm.put_on(Platform::SwProtected, 0)?;
            }
            let Some(file) = File::new(&vm, PAGES, PRIVATE, BASE)? else {
                return Ok(());
            };
            LockedFolio::get(file.file().inode(), PageIndex::new(5))?
                .frame()
                .record(Assignment {
                    gfn: Gfn::new(BASE + 5),
                    asid: 7,
                })?;
            let (page, other) = (file.page(5)?, file.page(6)?);
            assert!(page.is_remembered() && !other.is_remembered());

            TAKEN_BACK.store(0, Ordering::Relaxed);
            drop(file);
            assert_eq!(TAKEN_BACK.load(Ordering::Relaxed), 1);
            assert!(!page.is_remembered() && !other.is_remembered());
            assert_eq!((page.references(), other.references()), (1, 1));
        }
        Ok(())
    }

    /// The lock of one file is no evidence for the attributes of another.
    #[test]
    fn locks_of_other_files_do_not_count() -> Result {
        let vm = TestVm::new()?;
        let (Some(file), Some(other)) = (
            File::new(&vm, PAGES, PRIVATE, BASE)?,
            File::new(&vm, PAGES, PRIVATE, BASE)?,
        ) else {
            return Ok(());
        };
        other.file().inode().stable(|elsewhere| {
            assert!(fault(&file, 5)
                .serve(elsewhere, |_| Ok(0))
                .is_err_and(|error| error == EINVAL));
            assert_eq!(file.host_fault_with(5, elsewhere, 1), Err(EINVAL));
            Ok::<_, Error>(())
        })?;
        file.file().inode().stable(|here| {
            let served = fault(&file, 5).serve(here, |folio| {
                assert!(folio.as_private(here).is_some());
                Ok(0)
            });
            served.map(drop)
        })
    }

    #[test]
    fn shared_page_is_no_platforms() -> Result {
        let vm = TestVm::new()?;
        let Some(file) = File::new(&vm, PAGES, SHARED, BASE)? else {
            return Ok(());
        };
        file.file().inode().stable(|stable| {
            let served = fault(&file, 5).serve(stable, |folio| {
                assert!(folio.as_private(stable).is_none());
                Ok(0)
            });
            served.map(drop)
        })
    }

    /// Freeing invalidates by itself, in the file only, and the next use finds zeroes.
    #[test]
    fn pages_are_freed_behind_an_invalidation() -> Result {
        let vm = TestVm::new()?;
        let Some(file) = File::new(&vm, PAGES, PRIVATE, BASE)? else {
            return Ok(());
        };
        for at in 0..PAGES {
            file.fill(at, 0x5a)?;
        }
        let before = vm.sequence();
        let asked = range(4, 2 * PAGES)?;
        let freed = file.file().inode().locked(|guard| guard.free(&asked));
        assert!(freed.is_ok());
        assert_eq!((vm.sequence(), vm.invalidations()), (before + 1, 0));
        assert_eq!(file.allocated(), 4);
        assert_eq!(file.guest_fault(BASE + 5)?.byte(), Some(0));
        assert_eq!(file.byte(3)?, Some(0x5a));
        Ok(())
    }

    /// A map that returns what its caller wants.
    struct Claims(Run);

    impl Attributes for Claims {
        fn run_at(&self, _at: PageIndex) -> Run {
            self.0
        }
    }

    /// A shared file, and requests for it.
    struct Plans {
        inode: TestInode,
        geometry: Geometry,
    }

    impl Plans {
        fn new() -> Result<Self> {
            let inode = TestInode::new(PAGES, SHARED)?;
            let geometry = inode.get().geometry();
            Ok(Self { inode, geometry })
        }

        fn request(start: u64, geometry: &Geometry, content: Content) -> Result<Request> {
            let page = geometry.page_size().bytes();
            let raw = RawRequest {
                offset: start * page,
                size: 4 * page,
                attributes: PRIVATE.attributes(),
                flags: content.flags(),
                ..RawRequest::default()
            };
            Request::parse(&raw, geometry, true).map_err(|_| EINVAL)
        }

        fn begin(&self, plan: &Plan, request: &Request, action: Action) -> Result {
            self.inode.get().locked_to_convert(|turn| {
                turn.begin(plan, request, action)
                    .map(drop)
                    .map_err(|refused| refused.error)
            })
        }
    }

    fn claims(end: u64, visibility: Visibility) -> Result<Claims> {
        let range = range(0, end)?;
        Ok(Claims(Run { range, visibility }))
    }

    /// A plan is not carried out for other pages or with another action.
    #[test]
    fn plan_for_another_request() -> Result {
        let plans = Plans::new()?;
        let four = Plans::request(4, &plans.geometry, Content::Zero)?;
        let eight = Plans::request(8, &plans.geometry, Content::Zero)?;
        let honest = Plan::new(&four, Action::Zero, &claims(PAGES, SHARED)?);

        assert_eq!(plans.begin(&honest, &four, Action::Zero), Ok(()));
        assert_eq!(plans.begin(&honest, &eight, Action::Zero), Err(EINVAL));
        assert_eq!(plans.begin(&honest, &four, Action::Leave), Err(EINVAL));
        Ok(())
    }

    /// A plan is refused if it was made for another map, in which all pages are private already.
    #[test]
    fn plan_that_overlooks_pages() -> Result {
        let plans = Plans::new()?;
        let four = Plans::request(4, &plans.geometry, Content::Zero)?;
        let overlooks = Plan::new(&four, Action::Zero, &claims(PAGES, PRIVATE)?);

        assert_eq!(plans.begin(&overlooks, &four, Action::Zero), Err(EINVAL));
        Ok(())
    }

    /// A plan is refused if it was made for a larger file.
    #[test]
    fn plan_outside_of_the_file() -> Result {
        let plans = Plans::new()?;
        let page = plans.geometry.page_size();
        let larger = Geometry::new(page, 2 * PAGES * page.bytes()).ok_or(EINVAL)?;
        let behind = Plans::request(PAGES, &larger, Content::Zero)?;
        let outside = Plan::new(&behind, Action::Zero, &claims(2 * PAGES, SHARED)?);

        assert_eq!(plans.begin(&outside, &behind, Action::Zero), Err(EINVAL));
        Ok(())
    }

    /// A plan that claims that there is nothing to do is checked, too.
    #[test]
    fn plan_of_nothing() -> Result {
        let plans = Plans::new()?;
        let keep = Plans::request(4, &plans.geometry, Content::Preserve)?;
        let zero = Plans::request(4, &plans.geometry, Content::Zero)?;
        let nothing = Plan::new(&keep, Action::Leave, &claims(PAGES, PRIVATE)?);

        assert_eq!(nothing, Plan::Nothing);
        assert_eq!(plans.begin(&nothing, &keep, Action::Leave), Err(EINVAL));
        assert_eq!(plans.begin(&nothing, &zero, Action::Zero), Err(EINVAL));
        Ok(())
    }
}
