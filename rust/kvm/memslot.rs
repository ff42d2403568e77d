// SPDX-License-Identifier: GPL-2.0

//! Memslots, and which of them are bound to a file.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h)

use crate::{
    bindings,
    fs::{
        address_space::Bindings,
        debugfs::RunsFile,
        file_ops::ActiveFile,
        inode::GmemInode, //
    },
    kvm::vm::{
        Gfn,
        Vm, //
    }, //
};
use core::ptr;
use gmem_types::{
    platform::Platform,
    range::{
        PageIndex,
        PageRange, //
    }, //
};
use kernel::{
    error::to_result,
    prelude::*,
    sync::{
        aref::ARef,
        rcu,
        SetOnce, //
    },
    types::Opaque, //
};

/// A memslot, `struct kvm_memory_slot`.
///
/// # Invariants
///
/// A reference to it is one to a slot that is not freed meanwhile: its user is inside SRCU, holds
/// `slots_lock`, or is installing it.
#[repr(transparent)]
pub struct Memslot(Opaque<bindings::kvm_memory_slot>);

/// Pages of a file, and where a guest sees them.
pub struct Binding {
    /// The pages of the file.
    pub pages: PageRange,
    /// The guest frame of the first.
    pub gfn: Gfn,
}

impl Memslot {
    /// Takes a pointer from C.
    ///
    /// # Safety
    ///
    /// `slot` must be valid for as long as `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(slot: *mut bindings::kvm_memory_slot) -> &'a Self {
        // SAFETY: By the contract of this function; the type is transparent.
        unsafe { &*slot.cast() }
    }

    #[inline]
    pub(crate) fn as_raw(&self) -> *mut bindings::kvm_memory_slot {
        self.0.get()
    }

    #[inline]
    fn base_gfn(&self) -> u64 {
        // SAFETY: By the type's invariants; never written after the slot was made.
        unsafe { (*self.as_raw()).base_gfn }
    }

    #[inline]
    fn pgoff(&self) -> u64 {
        // SAFETY: By the type's invariants; written before anybody else sees the slot.
        // CAST: unsigned long has 64 bits here.
        unsafe { (*self.as_raw()).gmem.pgoff as u64 }
    }

    #[inline]
    fn npages(&self) -> u64 {
        // SAFETY: By the type's invariants; never written after the slot was made.
        // CAST: unsigned long has 64 bits here.
        unsafe { (*self.as_raw()).npages as u64 }
    }

    /// Where in the file `gfn` lies. [`None`] if the slot does not have it.
    #[inline]
    pub fn index_of(&self, gfn: Gfn) -> Option<PageIndex> {
        let at = gfn.get().checked_sub(self.base_gfn())?;
        if at >= self.npages() {
            return None;
        }
        Some(PageIndex::new(self.pgoff().checked_add(at)?))
    }

    /// How many pages the slot has from `gfn` on.
    #[inline]
    pub(crate) fn pages_from(&self, gfn: Gfn) -> usize {
        let before = gfn.get().saturating_sub(self.base_gfn());
        // CAST: A size_t has 64 bits here.
        self.npages().saturating_sub(before) as usize
    }

    /// The pages of the file that the slot shows.
    #[inline]
    pub fn file_range(&self) -> Option<PageRange> {
        let start = self.pgoff();
        PageRange::new(
            PageIndex::new(start),
            PageIndex::new(start.checked_add(self.npages())?),
        )
    }

    /// Which pages the slot shows, and where.
    #[inline]
    pub(crate) fn binding(&self) -> Option<Binding> {
        Some(Binding {
            pages: self.file_range()?,
            gfn: Gfn::new(self.base_gfn()),
        })
    }

    /// The guest frames of `range`, as far as the slot shows it: first, and the one after the last.
    #[inline]
    pub(crate) fn gfns_of(&self, range: &PageRange) -> Option<(u64, u64)> {
        let seen = self.file_range()?.intersect(range)?;
        let gfn = |at: PageIndex| {
            at.get()
                .checked_sub(self.pgoff())?
                .checked_add(self.base_gfn())
        };
        Some((gfn(seen.start())?, gfn(seen.end())?))
    }

    /// The file that the slot is bound to, with a reference; [`None`] once it is being closed.
    #[inline]
    pub fn active_file(&self) -> Option<ActiveFile> {
        // SAFETY: By the type's invariants; get_file_active() copes with a file that goes away.
        let file = unsafe { bindings::gmem_slot_get_file(self.as_raw()) };
        // SAFETY: A slot's file is a guest_memfd of ours, and the reference is handed over.
        unsafe { ActiveFile::from_raw(file) }
    }

    /// The file that the slot is bound to, with a reference, and where in it `gfn` lies.
    ///
    /// # Errors
    ///
    /// `EFAULT` if the slot does not have it, or no file any more. `EIO` if the file does not know
    /// the slot: that would not be invalidated when the page is converted or freed.
    #[inline]
    pub(crate) fn find(&self, gfn: Gfn) -> Result<(ActiveFile, PageIndex)> {
        let at = self.index_of(gfn).ok_or(EFAULT)?;
        let file = self.active_file().ok_or(EFAULT)?;
        if !file.data().is_bound(at, self) {
            return Err(EIO);
        }
        Ok((file, at))
    }

    /// Calls `f` with the inode of the file that the slot is bound to; [`None`] once that is
    /// closed. Any context; `f` is called inside RCU and must not sleep.
    #[inline]
    pub(crate) fn with_inode<R>(&self, f: impl FnOnce(&GmemInode, &rcu::Guard) -> R) -> Option<R> {
        let rcu = rcu::read_lock();
        // SAFETY: By the type's invariants, and inside RCU.
        let inode = unsafe { bindings::gmem_slot_inode_rcu(self.as_raw()) };
        if inode.is_null() {
            return None;
        }
        // SAFETY: The inode of a slot's file is one of ours, and inodes are freed behind RCU.
        Some(f(unsafe { &*GmemInode::from_vfs(inode) }, &rcu))
    }
}

/// What a guest_memfd file (one VM's view of the inode) knows: its VM, the platform that this is on,
/// and the slots bound to it.
#[pin_data(PinnedDrop)]
pub(crate) struct FileData {
    /// Goes before the VM, whose directory it is in.
    runs: SetOnce<RunsFile>,
    vm: ARef<Vm>,
    platform: Option<Platform>,
    /// `struct kvm_memory_slot` by page index, a multi-index entry for each slot.
    #[pin]
    slots: Opaque<bindings::xarray>,
}

impl FileData {
    /// A file of `vm`, which is on `platform`, with nothing bound to it.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    #[inline]
    pub(crate) fn new(vm: &Vm, platform: Option<Platform>) -> Result<Pin<KBox<Self>>> {
        // Without memory there is no value yet that would be dropped.
        KBox::pin_init(
            pin_init!(Self {
                runs: SetOnce::new(),
                vm: vm.into(),
                platform,
                // SAFETY: The array is at its final place and not in use.
                slots <- Opaque::ffi_init(|slots| unsafe { bindings::gmem_xa_init(slots) }),
            }),
            GFP_KERNEL,
        )
    }

    #[inline]
    pub(crate) fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The platform that the VM is on, if it is one that this crate knows.
    #[inline]
    pub(crate) fn platform(&self) -> Option<Platform> {
        self.platform
    }

    /// Keeps what shows the file in debugfs for as long as this lives.
    #[inline]
    pub(crate) fn keep(&self, runs: RunsFile) {
        self.runs.populate(runs);
    }

    /// Whether `slot` is what is bound at `at`. Any context.
    ///
    /// A slot that another one has taken the place of is a bug, of which it warns.
    #[inline]
    pub(crate) fn is_bound(&self, at: PageIndex, slot: &Memslot) -> bool {
        // SAFETY: The array is initialised; the entry is compared, not followed.
        let bound = unsafe { bindings::xa_load(self.slots.get(), at.get() as usize) };
        let is = ptr::eq(bound, slot.as_raw().cast());
        if !is && !bound.is_null() {
            // SAFETY: Only warns.
            unsafe { bindings::gmem_warn_stale_slot() };
        }
        is
    }

    /// The next bound slot that shows a page of `range`, from `at` on.
    #[inline]
    pub(crate) fn next(&self, at: &mut PageIndex, range: &PageRange) -> Option<&Memslot> {
        if at.get() >= range.end().get() {
            return None;
        }
        let mut index = at.get() as usize;
        // SAFETY: The array is initialised.
        let slot = unsafe {
            bindings::xa_find(
                self.slots.get(),
                &mut index,
                range.last().get() as usize,
                bindings::GMEM_XA_PRESENT,
            )
        };
        if slot.is_null() {
            return None;
        }
        // SAFETY: A slot is unbound before it is freed, with the bindings locked, and whoever gets
        // here holds them (see `slots()`).
        let slot = unsafe { Memslot::from_raw(slot.cast()) };
        // A slot's pages can be several entries of the array: go on behind all of them.
        let end = slot.file_range().map_or(range.end(), |seen| seen.end());
        *at = PageIndex::new(end.get().max((index as u64).saturating_add(1)));
        Some(slot)
    }

    /// Calls `f` for each bound slot that shows a page of `range`, lowest first.
    pub(crate) fn for_each_slot<'a>(
        &'a self,
        _stable: &'a dyn Bindings,
        range: &PageRange,
        mut f: impl FnMut(&'a Memslot),
    ) {
        let mut at = range.start();
        while let Some(slot) = self.next(&mut at, range) {
            f(slot);
        }
    }

    /// Whether a slot is bound that shows a page of `range`.
    #[inline]
    pub(crate) fn has_slot(&self, _stable: &dyn Bindings, range: &PageRange) -> bool {
        let mut at = range.start();
        self.next(&mut at, range).is_some()
    }

    /// Binds `slot` to its pages.
    ///
    /// # Errors
    ///
    /// `EEXIST` if one of them is bound already, `ENOMEM`.
    pub(crate) fn bind(&self, stable: &dyn Bindings, slot: &Memslot) -> Result {
        let range = slot.file_range().ok_or(EINVAL)?;

        if self.has_slot(stable, &range) {
            return Err(EEXIST);
        }
        let bound = self.store(&range, slot.as_raw());
        if bound.is_err() {
            self.unbind(stable, slot);
        }
        bound
    }

    /// Unbinds `slot`.
    pub(crate) fn unbind(&self, _stable: &dyn Bindings, slot: &Memslot) {
        if let Some(range) = slot.file_range() {
            // Storing nothing over an existing range needs no memory and cannot fail.
            let _ = self.store(&range, ptr::null_mut());
        }
    }

    fn store(&self, range: &PageRange, slot: *mut bindings::kvm_memory_slot) -> Result {
        // SAFETY: The array is initialised, and the range is not empty.
        let old = unsafe {
            bindings::xa_store_range(
                self.slots.get(),
                range.start().get() as usize,
                range.last().get() as usize,
                slot.cast(),
                bindings::GFP_KERNEL,
            )
        };
        // SAFETY: `old` is what the call returned.
        to_result(unsafe { bindings::gmem_xa_err(old) })
    }
}

#[pinned_drop]
impl PinnedDrop for FileData {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The array is initialised, and nobody else can reach it any more.
        unsafe { bindings::xa_destroy(self.slots.get()) }
    }
}
