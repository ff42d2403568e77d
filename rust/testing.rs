// SPDX-License-Identifier: GPL-2.0

//! VMs, inodes and files that KUnit makes by itself.
//!
//! They have only the parts that are used here: an inode has a mapping with real folios, and a VM
//! can be invalidated. So no test needs a mounted file system, a vCPU or hardware.

use crate::{
    bindings,
    export::{
        entry,
        fault, //
    },
    fs::{
        address_space::Stable,
        fault::HostFault,
        file::GmemFile,
        file_data::FileData,
        inode::{
            GmemInode,
            Size,
            Traits,
            PAGE, //
        },
        page_cache::LockedFolio, //
    },
    guest_memfd::GuestMemfd,
    kvm::{
        memslot::Memslot,
        migrate::{
            migrate,
            Destination,
            Moved,
            Source, //
        },
        platform::of,
        vm::Vm, //
    },
    mm::folio::Frame, //
};
use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    ptr::{
        self,
        NonNull, //
    }, //
};
use gmem_types::{
    platform::Platform,
    range::{
        PageIndex,
        PageRange, //
    },
    visibility::Visibility, //
};
use kernel::{
    error::to_result,
    page::PAGE_SIZE,
    prelude::*,
    types::ForeignOwnable, //
};

pub mod platform;

/// A VM that can only be invalidated and killed.
pub struct TestVm(*mut bindings::kvm);

impl TestVm {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        // SAFETY: Allocates only.
        let kvm = unsafe { bindings::gmem_test_vm_alloc() };
        if kvm.is_null() {
            return Err(ENOMEM);
        }
        Ok(Self(kvm))
    }

    /// The VM.
    pub fn vm(&self) -> &Vm {
        // SAFETY: It has a user until it is dropped.
        unsafe { Vm::from_raw(self.0) }
    }

    /// Marks it as having private memory. Returns whether VMs can have that here.
    pub fn set_private_mem(&self) -> bool {
        // SAFETY: It is valid until it is dropped.
        unsafe { bindings::gmem_test_vm_set_private_mem(self.0) };
        self.vm().has_private_mem()
    }

    /// Marks it dead, as a zap that fails does.
    pub fn kill(&self) {
        // SAFETY: It is valid until it is dropped.
        unsafe { bindings::gmem_test_vm_kill(self.0) }
    }

    /// How many invalidations are going on.
    pub fn invalidations(&self) -> usize {
        // SAFETY: It is valid until it is dropped.
        unsafe { bindings::gmem_test_vm_invalidations(self.0) }
    }

    /// How many have ended.
    pub fn sequence(&self) -> usize {
        // SAFETY: It is valid until it is dropped.
        unsafe { bindings::gmem_test_vm_sequence(self.0) }
    }
}

impl Drop for TestVm {
    fn drop(&mut self) {
        platform::forget(self.vm());
        // SAFETY: The files that used it are gone, which the function checks.
        unsafe { bindings::gmem_test_vm_free(self.0) }
    }
}

/// While it exists, this test's attribute maps cannot allocate memory.
pub struct NoMemory(());

impl NoMemory {
    /// Allocations fail from now on.
    pub fn begin() -> Self {
        Self::after(0)
    }

    /// Allocations fail once the attribute maps have got so many nodes.
    pub fn after(nodes: u32) -> Self {
        // SAFETY: Called by a test.
        unsafe { bindings::gmem_test_limit_nodes(nodes) };
        Self(())
    }
}

impl Drop for NoMemory {
    fn drop(&mut self) {
        // SAFETY: As in begin().
        unsafe { bindings::gmem_test_unlimit_nodes() };
    }
}

/// Calls `f` in a task that is being killed, which is only seen after this many checks. Returns
/// whether it was seen.
pub fn killed_after<R>(looks: u32, f: impl FnOnce() -> R) -> (R, bool) {
    // SAFETY: Called by a test.
    unsafe { bindings::gmem_test_kill(looks) };
    let result = f();
    // SAFETY: As above.
    (result, unsafe { bindings::gmem_test_unkill() })
}

/// A file of `pages` pages that are all `initial`, which converts in place.
fn traits(pages: u64, initial: Visibility) -> Result<Traits> {
    Ok(Traits {
        size: Size::new(pages * PAGE.bytes()).ok_or(EINVAL)?,
        initial,
        mappable: true,
        in_place: true,
        migratable: false,
        large_folios: false,
    })
}

/// An inode that no file system knows.
pub(crate) struct TestInode(NonNull<GmemInode>);

impl TestInode {
    pub(crate) fn new(pages: u64, initial: Visibility) -> Result<Self> {
        Self::with(traits(pages, initial)?, None)
    }

    fn with(traits: Traits, platform: Option<Platform>) -> Result<Self> {
        let this = KBox::<GmemInode>::new_uninit(GFP_KERNEL | __GFP_ZERO)?;
        let this = NonNull::new(KBox::into_raw(this).cast::<GmemInode>()).ok_or(EINVAL)?;

        // SAFETY: The memory is valid and not in use; the helper does the parts of the VFS's work
        // that are used here.
        unsafe {
            bindings::gmem_test_inode_init(GmemInode::vfs_of(this.as_ptr()), traits.size.bytes());
            GmemInode::init(this.as_ptr());
        }
        // From here on drop() tears it down.
        let inode = Self(this);
        // SAFETY: Initialised just now, and nobody has a reference.
        unsafe { GmemInode::set_up(this.as_ptr(), traits, platform) };
        Ok(inode)
    }

    pub(crate) fn get(&self) -> &GmemInode {
        // SAFETY: Valid until it is dropped.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for TestInode {
    fn drop(&mut self) {
        let inode = self.get();
        // None of its folios has pages beyond the end, so that none has to be split.
        let _ = inode.locked(|guard| guard.free(&inode.geometry().whole()));
        // SAFETY: The test is over; nobody uses the inode, which came from a box.
        unsafe {
            GmemInode::tear_down(self.0.as_ptr());
            drop(KBox::from_raw(
                self.0.as_ptr().cast::<MaybeUninit<GmemInode>>(),
            ));
        }
    }
}

/// A slot that no VM knows.
pub(crate) fn slot(
    base: u64,
    npages: usize,
    pgoff: usize,
) -> Result<KBox<bindings::kvm_memory_slot>> {
    let mut slot = KBox::<bindings::kvm_memory_slot>::new_uninit(GFP_KERNEL)?;
    // SAFETY: The memory is valid for writes, and initialised by the call.
    unsafe {
        bindings::gmem_test_slot_init(slot.as_mut_ptr(), base, npages, pgoff);
        Ok(slot.assume_init())
    }
}

pub(crate) fn memslot(slot: &mut bindings::kvm_memory_slot) -> &Memslot {
    // SAFETY: The slot lives as long as the reference.
    unsafe { Memslot::from_raw(slot) }
}

/// A file, with one slot of its VM that shows all of it.
///
/// `T` is the implementation: it serves the file's faults, and is called for freed folios.
pub struct TestFile<'v, T> {
    file: NonNull<bindings::file>,
    slot: NonNull<bindings::kvm_memory_slot>,
    data: NonNull<FileData>,
    inode: TestInode,
    vm: &'v TestVm,
    _implementation: PhantomData<T>,
}

impl<'v, T: GuestMemfd> TestFile<'v, T> {
    /// Makes a file of `pages` pages that are all `initial`, which converts in place, and shows it at
    /// `base`.
    ///
    /// [`None`] where KVM runs without the TDP MMU, as a zap needs a real VM then.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(vm: &'v TestVm, pages: u64, initial: Visibility, base: u64) -> Result<Option<Self>> {
        Self::with(vm, traits(pages, initial)?, base)
    }

    /// The same for a file that does not convert in place.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn fixed(
        vm: &'v TestVm,
        pages: u64,
        initial: Visibility,
        base: u64,
    ) -> Result<Option<Self>> {
        let traits = Traits {
            in_place: false,
            ..traits(pages, initial)?
        };
        Self::with(vm, traits, base)
    }

    /// The same for a file that converts in place and whose pages move.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn migratable(
        vm: &'v TestVm,
        pages: u64,
        initial: Visibility,
        base: u64,
    ) -> Result<Option<Self>> {
        let traits = Traits {
            migratable: true,
            ..traits(pages, initial)?
        };
        Self::with(vm, traits, base)
    }

    fn with(vm: &'v TestVm, traits: Traits, base: u64) -> Result<Option<Self>> {
        // SAFETY: Looks at a module parameter.
        if !unsafe { bindings::gmem_test_can_zap() } {
            pr_info!("skipped: zapping needs the TDP MMU\n");
            return Ok(None);
        }
        let platform = of(vm.vm());
        let inode = TestInode::with(traits, platform)?;
        let pages = inode.get().geometry().pages();
        let data = FileData::new(vm.vm(), platform)?;
        let slot = slot(base, pages as usize, 0)?;
        let file = KBox::<bindings::file>::new_uninit(GFP_KERNEL)?;

        let this = Self {
            file: NonNull::new(KBox::into_raw(file).cast()).ok_or(EINVAL)?,
            slot: NonNull::from(KBox::leak(slot)),
            data: NonNull::new(data.into_foreign().cast()).ok_or(EINVAL)?,
            inode,
            vm,
            _implementation: PhantomData,
        };
        // SAFETY: All of it is valid, and not shared, until drop() tears it down.
        unsafe {
            let vfs = this.inode.get().vfs();
            (*(*vfs).i_mapping).a_ops = T::tables().address_space_operations();
            bindings::gmem_test_file_init(this.file.as_ptr(), vfs, this.data.as_ptr().cast());
            (*this.slot.as_ptr()).flags |= bindings::GMEM_SLOT_GMEM_ONLY;
            if traits.in_place {
                (*this.slot.as_ptr()).flags |= bindings::GMEM_SLOT_IN_PLACE;
            }
            bindings::gmem_slot_set_file(this.slot.as_ptr(), this.file.as_ptr());
            this.inode.get().add_file(this.data)?;
        }
        let (_guard, bindings) = this.inode.get().lock_to_bind();
        this.file().data().bind(&bindings, this.memslot())?;
        drop((_guard, bindings));
        Ok(Some(this))
    }

    /// The file.
    pub fn file(&self) -> &GmemFile {
        // SAFETY: Valid until it is dropped.
        unsafe { GmemFile::from_raw(self.file.as_ptr()) }
    }

    /// The VM.
    pub fn vm(&self) -> &Vm {
        self.vm.vm()
    }

    fn memslot(&self) -> &Memslot {
        // SAFETY: Valid until it is dropped.
        unsafe { Memslot::from_raw(self.slot.as_ptr()) }
    }

    /// Whether the page `at` is private or shared.
    pub fn visibility(&self, at: u64) -> Visibility {
        self.inode.get().visibility(PageIndex::new(at))
    }

    /// Allocates the page `at` and fills it like its owner, whether it is private or shared.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn fill(&self, at: u64, byte: u8) -> Result {
        let folio = LockedFolio::get(self.inode.get(), PageIndex::new(at))?;
        HostPage(folio.prepare()?.into_page().into_raw())
            .bytes_mut()
            .fill(byte);
        Ok(())
    }

    /// The page `at`, with a reference to it.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn page(&self, at: u64) -> Result<HostPage> {
        let folio = LockedFolio::get(self.inode.get(), PageIndex::new(at))?;
        Ok(HostPage(folio.into_page().into_raw()))
    }

    /// Allocates the page `at` and fills it like a platform that populates it.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn populate(&self, at: u64, byte: u8) -> Result {
        let page = LockedFolio::get(self.inode.get(), PageIndex::new(at))?.into_page();
        page.mark_uptodate();
        HostPage(page.into_raw()).fill(byte);
        Ok(())
    }

    /// Lets memory management drop clean pages that nobody holds or maps, and returns how many it
    /// has dropped.
    pub fn drop_clean(&self) -> usize {
        let inode = self.inode.get();
        // SAFETY: The mapping is valid. An index fits.
        unsafe {
            bindings::gmem_test_drop_clean(inode.mapping(), inode.geometry().pages() as usize)
        }
    }

    /// How many pages have memory.
    pub fn allocated(&self) -> u64 {
        self.inode.get().allocated()
    }

    /// Allocates the page `at` without using it, as fallocate() does.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn allocate(&self, at: u64) -> Result {
        drop(LockedFolio::get(self.inode.get(), PageIndex::new(at))?);
        Ok(())
    }

    /// Allocates the first pages as a block, without using them. Returns whether that was possible.
    ///
    /// # Errors
    ///
    /// None in a test.
    pub fn allocate_block(&self) -> Result<bool> {
        let inode = self.inode.get();
        inode.locked_shared(|guard| Ok(guard.allocate_block(self.vm(), PageIndex::new(0))))
    }

    /// Frees the page `at`, like a hole in the file.
    ///
    /// # Errors
    ///
    /// Those of [`free`](crate::fs::address_space::InvalidateGuard::free).
    pub fn free(&self, at: u64) -> Result {
        let inode = self.inode.get();
        let (start, end) = (PageIndex::new(at), PageIndex::new(at + 1));
        let range = PageRange::new(start, end).ok_or(EINVAL)?;
        inode.locked(|guard| guard.free(&range).map_err(|refused| refused.error))
    }

    /// The value of all bytes of the page `at`, private or shared; [`None`] if they differ.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn byte(&self, at: u64) -> Result<Option<u8>> {
        Ok(self.page(at)?.byte())
    }

    /// Moves the page `at`, which is allocated, to fresh memory, as memory management does. Returns the
    /// old page, and the result.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn migrate(&self, at: u64) -> Result<(HostPage, Result)> {
        self.moved(at, |from, to| {
            let operation = T::tables().mapping.migrate_folio.ok_or(EINVAL)?;
            let mode = bindings::migrate_mode_MIGRATE_SYNC;
            // SAFETY: As memory management calls it.
            to_result(unsafe {
                operation(self.inode.get().mapping(), to.as_ptr(), from.as_ptr(), mode)
            })
        })
    }

    /// The same with `vendor`, whatever the file says.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn migrate_with(
        &self,
        at: u64,
        vendor: impl for<'m> FnOnce(Option<Platform>, Source<'m>, Destination<'m>) -> Result<Moved<'m>>,
    ) -> Result<(HostPage, Result)> {
        self.moved(at, |from, to| {
            // SAFETY: As memory management calls it.
            unsafe { migrate(self.inode.get(), from, to, true, vendor) }
        })
    }

    fn moved(
        &self,
        at: u64,
        f: impl FnOnce(NonNull<bindings::folio>, NonNull<bindings::folio>) -> Result,
    ) -> Result<(HostPage, Result)> {
        // SAFETY: Allocates only.
        let to = NonNull::new(unsafe { bindings::gmem_test_folio_alloc() }).ok_or(ENOMEM)?;
        let old = self.page(at)?;
        // SAFETY: The page is in the file, and in no batch of a CPU afterwards. Its reference is the
        // one that memory management has. Both are locked for the call.
        let moved = unsafe {
            let from = NonNull::new_unchecked(bindings::gmem_page_folio(old.0));
            bindings::gmem_test_folio_isolate(from.as_ptr());
            let moved = f(from, to);
            bindings::gmem_test_folio_done(from.as_ptr(), to.as_ptr());
            moved
        };
        Ok((old, moved))
    }

    /// How many pages were lost to the platform.
    pub fn lost_pages(&self) -> usize {
        let guard = self.inode.get().lock();
        let mut folios = guard.folios(&self.inode.get().geometry().whole());
        let mut lost = 0;
        while let Some(batch) = folios.next_batch() {
            lost += batch.filter(|folio| folio.frame().is_leaked()).count();
        }
        lost
    }

    /// Calls `f` with a host fault on the page `at`.
    fn with_fault<R>(&self, at: u64, f: impl FnOnce(*mut bindings::vm_fault) -> R) -> Result<R> {
        let mut vma = KBox::<bindings::vm_area_struct>::new_uninit(GFP_KERNEL | __GFP_ZERO)?;
        let mut vmf = MaybeUninit::<bindings::vm_fault>::zeroed();
        let (vma, vmf) = (vma.as_mut_ptr(), vmf.as_mut_ptr());

        // SAFETY: Both are zeroed, and live until the fault is served. Of the mapping only the file
        // is used, of the fault what is set here.
        unsafe {
            (*vma).vm_file = self.file.as_ptr();
            (*vmf).__bindgen_anon_1.vma = vma;
            (*vmf).__bindgen_anon_1.pgoff = at as usize;
        }
        Ok(f(vmf))
    }

    /// Does a host fault on the page `at`, and returns its result.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EAGAIN` where the access is made again, and `EFAULT` for anything else.
    pub fn host_fault(&self, at: u64) -> Result<HostPage> {
        // SAFETY: The fault is complete, as far as it is used.
        let (result, page) =
            self.with_fault(at, |vmf| unsafe { (fault::fault::<T>(vmf), (*vmf).page) })?;
        match result {
            bindings::vm_fault_reason_VM_FAULT_LOCKED => {
                // SAFETY: The fault has locked the page and taken a reference.
                unsafe { bindings::gmem_test_page_unlock(page) };
                Ok(HostPage(page))
            }
            bindings::vm_fault_reason_VM_FAULT_OOM => Err(ENOMEM),
            bindings::vm_fault_reason_VM_FAULT_NOPAGE => Err(EAGAIN),
            _ => Err(EFAULT),
        }
    }

    /// Calls `f` while the file no longer knows the slot, although the slot still names the file.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, and what `f` returns.
    pub fn with_stale_slot(&self, f: impl FnOnce() -> Result) -> Result {
        let bound = |bind: bool| -> Result {
            let (_guard, bindings) = self.inode.get().lock_to_bind();
            if bind {
                self.file().data().bind(&bindings, self.memslot())
            } else {
                self.file().data().unbind(&bindings, self.memslot());
                Ok(())
            }
        };
        bound(false)?;
        let result = f();
        bound(true)?;
        result
    }

    /// Has a host fault on the page `at` served `times` times with `stable` held, and drops it.
    ///
    /// # Errors
    ///
    /// That of the fault.
    pub(crate) fn host_fault_with(&self, at: u64, stable: &Stable<'_>, times: u32) -> Result {
        self.with_fault(at, |vmf| {
            // SAFETY: As above.
            let mut fault = unsafe { HostFault::from_raw(vmf) };
            (0..times).try_for_each(|_| fault.serve(stable).map(drop))
        })?
    }

    /// Does a guest fault on `gfn`, and returns its result.
    ///
    /// # Errors
    ///
    /// What the implementation returns.
    pub fn guest_fault(&self, gfn: u64) -> Result<HostPage> {
        Ok(self.guest_fault_order(gfn)?.0)
    }

    /// The same, and how large a mapping may be.
    ///
    /// # Errors
    ///
    /// What the implementation returns.
    pub fn guest_fault_order(&self, gfn: u64) -> Result<(HostPage, c_int)> {
        let (mut pfn, mut page, mut order) = (0, core::ptr::null_mut(), c_int::MAX);

        // SAFETY: VM and slot are valid, and nobody takes the slot away.
        to_result(unsafe {
            entry::get_pfn::<T>(
                self.vm().as_raw(),
                self.slot.as_ptr(),
                gfn,
                &mut pfn,
                &mut page,
                &mut order,
            )
        })?;
        if page.is_null() {
            // SAFETY: The page is the file's, in which nobody frees pages meanwhile.
            page = unsafe { bindings::gmem_test_page_get(pfn) };
        }
        Ok((HostPage(page), order))
    }
}

impl<T> Drop for TestFile<'_, T> {
    fn drop(&mut self) {
        let inode = self.inode.get();
        // SAFETY: The test is over. All three came from boxes, and nobody uses them any more once
        // the inode does not know the file.
        unsafe {
            let data = self.data.as_ref();
            let (guard, bindings) = inode.lock_to_bind();
            data.unbind(&bindings, Memslot::from_raw(self.slot.as_ptr()));
            inode.remove_file(&guard, &bindings, data);
            drop((guard, bindings));

            drop(KBox::from_raw(self.slot.as_ptr()));
            drop(Pin::<KBox<FileData>>::from_foreign(
                self.data.as_ptr().cast(),
            ));
            drop(KBox::from_raw(
                self.file.as_ptr().cast::<MaybeUninit<bindings::file>>(),
            ));
        }
    }
}

/// A page with a reference to it, as a user of the page has it; dropping it puts.
pub struct HostPage(*mut bindings::page);

impl Source<'_> {
    /// Takes a reference to the page, like a lookup in the page cache.
    pub(crate) fn hold(&self) -> HostPage {
        // SAFETY: The folio is valid, and a page.
        HostPage(unsafe { bindings::gmem_test_folio_hold(self.as_ptr()) })
    }
}

impl HostPage {
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: The reference keeps the page, which is in the direct map, and tests use it from
        // one task only.
        unsafe {
            let start = bindings::gmem_test_page_address(self.0).cast::<u8>();
            core::slice::from_raw_parts_mut(start, PAGE_SIZE)
        }
    }

    /// How many references there are, this one included.
    pub fn references(&self) -> i32 {
        // SAFETY: The reference keeps the page.
        unsafe { bindings::gmem_test_page_references(self.0) }
    }

    /// Unlocks the page if it was left locked. Returns whether it was.
    pub fn unlock(&self) -> bool {
        // SAFETY: The reference keeps the page, which nobody is using.
        unsafe {
            let locked = bindings::gmem_test_page_locked(self.0);
            if locked {
                bindings::gmem_test_page_unlock(self.0);
            }
            locked
        }
    }

    /// Whether it is the same page of the host's memory.
    pub fn is(&self, other: &Self) -> bool {
        ptr::eq(self.0, other.0)
    }

    /// Sets or clears the flag that its memory has failed.
    pub fn set_failed(&self, failed: bool) {
        // SAFETY: The reference keeps the page.
        unsafe { bindings::gmem_test_page_set_failed(self.0, failed) }
    }

    /// Calls `f` with the frame of the page.
    pub(crate) fn with_frame<R>(&self, f: impl FnOnce(&Frame<'_>) -> R) -> R {
        // SAFETY: The reference keeps the page, which is a folio of its own; nobody is at work with
        // it.
        f(&unsafe { Frame::from_raw(NonNull::new_unchecked(bindings::gmem_page_folio(self.0))) })
    }

    /// Whether the page has a record.
    pub(crate) fn is_remembered(&self) -> bool {
        self.with_frame(|frame| frame.is_known())
    }

    /// Whether a hypervisor has to zero the page when it gives it to a guest.
    pub fn is_zero_for_guests(&self) -> bool {
        // SAFETY: The reference keeps the page.
        unsafe { bindings::gmem_test_page_is_zero(self.0) }
    }

    /// Fills the page.
    pub fn fill(&mut self, byte: u8) {
        self.bytes_mut().fill(byte);
    }

    /// The value of all of its bytes; [`None`] if they differ.
    pub fn byte(&mut self) -> Option<u8> {
        let bytes = self.bytes_mut();
        let first = *bytes.first()?;
        bytes.iter().all(|&byte| byte == first).then_some(first)
    }
}

impl Drop for HostPage {
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { bindings::gmem_put_page(self.0) }
    }
}
