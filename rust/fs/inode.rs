// SPDX-License-Identifier: GPL-2.0

//! The inode of a guest_memfd: the memory, its attributes, and the files that show it to VMs.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use crate::{
    attribute_map::{
        AttributeMap,
        Reader,
        Writer, //
    },
    bindings,
    fs::file_data::FileData,
    kvm::vm::Vm,
    mm::mempolicy::SharedPolicy,
    task::reschedule, //
};
use core::{
    cell::UnsafeCell,
    ptr::NonNull, //
};
use gmem_policy::plan::Attributes;
use gmem_types::{
    platform::Platform,
    range::{
        Geometry,
        PageIndex,
        PageRange,
        PageSize, //
    },
    visibility::{
        Run,
        Visibility, //
    }, //
};
use kernel::{
    container_of,
    new_mutex,
    prelude::*,
    sync::{
        rcu,
        Mutex, //
    },
    types::Opaque, //
};

/// The kernel's page size.
pub const PAGE: PageSize = match PageSize::new(kernel::page::PAGE_SHIFT as u32) {
    Some(page) => page,
    // PANIC: At compile time, on an architecture with pages that the policy crate does not know.
    None => panic!("unknown page size"),
};

/// The smallest file.
const ONE_PAGE: Size = match Size::new(PAGE.bytes()) {
    Some(size) => size,
    // PANIC: At compile time.
    None => panic!("a page is not a file"),
};

/// The size of a file, in pages of the kernel's size.
#[derive(Clone, Copy)]
pub struct Size(Geometry);

impl Size {
    /// Returns the size of a file of this many bytes; [`None`] if a file cannot have this size.
    #[inline]
    pub const fn new(bytes: u64) -> Option<Self> {
        match Geometry::new(PAGE, bytes) {
            Some(geometry) => Some(Self(geometry)),
            None => None,
        }
    }

    /// In bytes, which a loff_t can hold.
    #[inline]
    pub(crate) const fn bytes(&self) -> u64 {
        self.0.page_size().offset_of(self.0.whole().end()).get()
    }
}

/// How a file was created, which its inode keeps.
#[derive(Clone, Copy)]
pub struct Traits {
    /// Its size.
    pub size: Size,
    /// The initial state of all pages.
    pub initial: Visibility,
    /// The host may map it (`GUEST_MEMFD_FLAG_MMAP`).
    pub mappable: bool,
    /// Private and shared are tracked per page in the file, which is the authority for the guest
    /// frames bound to it.
    pub in_place: bool,
    /// Its pages can be moved to other memory (`GUEST_MEMFD_FLAG_MIGRATABLE`).
    pub migratable: bool,
    /// It can have folios as large as a large mapping (`GUEST_MEMFD_FLAG_LARGE_FOLIOS`).
    pub large_folios: bool,
}

impl Traits {
    /// Whether a file of `vm`, which is on `platform`, can have these traits.
    ///
    /// In a VM with private memory, a file that the host can reach must track which pages are
    /// private. And to convert pages, the platform of the VM must be known.
    pub(crate) fn suit(&self, vm: &Vm, platform: Option<Platform>) -> bool {
        let reachable = self.mappable || self.initial == Visibility::Shared;

        if self.in_place {
            platform.is_some()
        } else {
            !reachable || !vm.has_private_mem()
        }
    }
}

/// The inode, allocated from a slab cache of its own.
///
/// # Invariants
///
/// - `vfs`, `policy`, `map` and `bindings_lock` are initialised from [`alloc`](crate::fs::superblock)
///   on.
/// - `traits` is [`Some`] from [`GmemInode::set_up`] on, before which no reference to the inode
///   exists, and does not change. Nor does `platform`.
/// - `files` is changed with the invalidate lock held exclusively and `bindings_lock` held, and
///   each of its pointers is valid.
#[repr(C)]
pub struct GmemInode {
    policy: SharedPolicy,
    vfs: Opaque<bindings::inode>,
    map: AttributeMap,
    pub(super) bindings_lock: Mutex<()>,
    pub(super) files: UnsafeCell<KVec<NonNull<FileData>>>,
    traits: Option<Traits>,
    platform: Option<Platform>,
}

impl GmemInode {
    /// The inode around the VFS's.
    ///
    /// # Safety
    ///
    /// `vfs` must be the `vfs` field of one of ours.
    #[inline]
    pub(crate) unsafe fn from_vfs(vfs: *mut bindings::inode) -> *mut Self {
        // SAFETY: By the contract of this function.
        unsafe { container_of!(vfs.cast::<Opaque<bindings::inode>>(), Self, vfs) }
    }

    /// The inode of a file.
    ///
    /// # Safety
    ///
    /// `file` must be one of ours, and have a reference for as long as `'a`.
    #[inline]
    pub(crate) unsafe fn of_file<'a>(file: *mut bindings::file) -> &'a Self {
        // SAFETY: By the contract of this function; an open file has its inode.
        unsafe { &*Self::from_vfs((*file).f_inode) }
    }

    /// The inode of a mapping.
    ///
    /// # Safety
    ///
    /// `mapping` must be that of one of ours, and valid for as long as `'a`.
    #[inline]
    pub(crate) unsafe fn of_mapping<'a>(mapping: *mut bindings::address_space) -> &'a Self {
        // SAFETY: By the contract of this function; a mapping's host is its inode.
        unsafe { &*Self::from_vfs((*mapping).host) }
    }

    /// Initialises what a new inode from the slab has besides the VFS's part.
    ///
    /// # Safety
    ///
    /// `this` must be valid for writes, and in use by nobody.
    pub(crate) unsafe fn init(this: *mut Self) {
        // SAFETY: By the contract of this function.
        unsafe {
            SharedPolicy::init(&raw mut (*this).policy);
            (&raw mut (*this).map).write(AttributeMap::new(ONE_PAGE.0, Visibility::Private));
            pin_init::raw_init(&raw mut (*this).bindings_lock, new_mutex!(()));
            (&raw mut (*this).files).write(UnsafeCell::new(KVec::new()));
            (&raw mut (*this).traits).write(None);
            (&raw mut (*this).platform).write(None);
        }
    }

    /// Gives the inode its traits, an attribute map of as many pages, and the platform of the VM that
    /// it is made for.
    ///
    /// # Safety
    ///
    /// `this` must be an inode that [`init`](Self::init) and the VFS have initialised, and of which
    /// nobody has a reference.
    pub(crate) unsafe fn set_up<'a>(
        this: *mut Self,
        traits: Traits,
        platform: Option<Platform>,
    ) -> &'a Self {
        // SAFETY: By the contract of this function. The map has no memory yet.
        // INVARIANT: This is where `traits` and `platform` are set.
        unsafe {
            (&raw mut (*this).map).write(AttributeMap::new(traits.size.0, traits.initial));
            (&raw mut (*this).traits).write(Some(traits));
            (&raw mut (*this).platform).write(platform);
            &*this
        }
    }

    /// Frees what [`init`](Self::init) made and later calls have allocated; sleeps.
    ///
    /// # Safety
    ///
    /// The inode is being destroyed: nobody uses it but readers inside RCU.
    pub(crate) unsafe fn tear_down(this: *mut Self) {
        // SAFETY: By the contract of this function. The map's readers are inside RCU.
        unsafe {
            (*this).map.clear(Writer::assume());
            (*this).policy.free();
            core::ptr::drop_in_place((*this).files.get());
        }
    }

    #[inline]
    pub(crate) fn vfs(&self) -> *mut bindings::inode {
        self.vfs.get()
    }

    /// The VFS's part of an inode that is not set up yet.
    #[inline]
    pub(crate) fn vfs_of(this: *mut Self) -> *mut bindings::inode {
        // SAFETY: Only an address is computed; callers pass an allocated inode.
        Opaque::cast_into(unsafe { &raw const (*this).vfs })
    }

    #[inline]
    pub(crate) fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: The VFS's part is initialised, and `i_mapping` never changes for these inodes.
        unsafe { (*self.vfs()).i_mapping }
    }

    /// How many pages have memory, at this moment. Any context.
    #[inline]
    pub fn allocated(&self) -> u64 {
        // SAFETY: The VFS's part is initialised. Volatile, as it changes meanwhile.
        // CAST: unsigned long has 64 bits here.
        unsafe { (&raw const (*self.mapping()).nrpages).read_volatile() as u64 }
    }

    /// The inode number, by which trace events know the file.
    #[inline]
    pub fn number(&self) -> u64 {
        // SAFETY: The VFS's part is initialised.
        // CAST: It has 64 bits at most.
        unsafe { (*self.vfs()).i_ino as u64 }
    }

    #[inline]
    fn traits(&self) -> &Traits {
        /// The traits of an inode that was never set up: empty, and not shared.
        static NOTHING: Traits = Traits {
            size: ONE_PAGE,
            initial: Visibility::Private,
            mappable: false,
            in_place: false,
            migratable: false,
            large_folios: false,
        };

        self.traits.as_ref().unwrap_or(&NOTHING)
    }

    /// Page size and number of pages.
    #[inline]
    pub fn geometry(&self) -> Geometry {
        self.traits().size.0
    }

    /// Where a page lies in the file, in bytes.
    #[inline]
    pub fn offset_of(&self, at: PageIndex) -> u64 {
        self.geometry().page_size().offset_of(at).get()
    }

    /// Whether the host may map it.
    #[inline]
    pub fn is_mappable(&self) -> bool {
        self.traits().mappable
    }

    /// The initial state of all of its pages.
    #[inline]
    pub fn initial(&self) -> Visibility {
        self.traits().initial
    }

    /// Whether it tracks private and shared page by page.
    #[inline]
    pub fn converts_in_place(&self) -> bool {
        self.traits().in_place
    }

    /// Whether its pages can be moved to other memory.
    #[inline]
    pub fn is_migratable(&self) -> bool {
        self.traits().migratable
    }

    /// Whether it can have folios of more than one page.
    #[inline]
    pub fn has_large_folios(&self) -> bool {
        self.traits().large_folios
    }

    /// The platform of the VM that it was made for, if it is one that this crate knows.
    #[inline]
    pub(crate) fn platform(&self) -> Option<Platform> {
        self.platform
    }

    /// The attribute map of a file that converts in place.
    #[inline]
    pub(crate) fn map(&self) -> Option<&AttributeMap> {
        self.converts_in_place().then_some(&self.map)
    }

    /// Whether the page `at` is private or shared, at this moment. Any context.
    #[inline]
    pub fn visibility(&self, at: PageIndex) -> Visibility {
        self.visibility_for(at, Reader::from(&rcu::read_lock()))
    }

    /// As [`visibility`](Self::visibility), for callers that already keep the map's memory.
    #[inline]
    pub(crate) fn visibility_for(&self, at: PageIndex, reader: Reader<'_>) -> Visibility {
        match self.map() {
            None => self.initial(),
            Some(map) => map.load(at, reader),
        }
    }

    /// Pages around `at` that are all the same, as far as the map finds them in one place.
    pub(crate) fn run_for(&self, at: PageIndex, reader: Reader<'_>) -> Run {
        let whole = self.geometry().whole();
        match self.map() {
            None => Run {
                range: whole,
                visibility: self.initial(),
            },
            // Pages behind the end of the file are private.
            Some(map) => map.run_at(at, reader).unwrap_or(Run {
                range: whole.tail(at),
                visibility: Visibility::Private,
            }),
        }
    }

    #[inline]
    pub(crate) fn policy(&self) -> &SharedPolicy {
        &self.policy
    }
}

/// The attributes of this moment, without a lock.
///
/// A walk looks at each page once, whatever changes meanwhile. It sleeps, and lets other tasks run
/// after each step.
impl Attributes for GmemInode {
    fn run_at(&self, at: PageIndex) -> Run {
        reschedule();
        self.run_for(at, Reader::from(&rcu::read_lock()))
    }
}

/// Pages `start..end` as a range of the file, as far as they are in it.
#[inline]
pub fn clip(inode: &GmemInode, start: u64, end: u64) -> Option<PageRange> {
    PageRange::new(PageIndex::new(start), PageIndex::new(end))?.intersect(&inode.geometry().whole())
}
