// SPDX-License-Identifier: GPL-2.0

//! The entry points that KVM's C, the VFS and memory management call.
//!
//! The crate above implements [`GuestMemfd`], and passes the type to
//! [`register_entry_points!`](crate::register_entry_points), which makes the C functions and the
//! operations tables. Everything is resolved at compile time; there is no table of callbacks
//! between the two crates.
//!
//! C headers: `virt/kvm/guest_memfd.h`,
//! [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h)

use crate::{
    bindings,
    fs::{
        self,
        file::{
            ActiveFile,
            GmemFile, //
        },
        superblock,
        tables::{
            tables,
            State,
            Tables, //
        }, //
    },
    guest_memfd::GuestMemfd,
    ioctl::UserPointer,
    kvm::{
        fault::GuestFault,
        memslot::Memslot,
        populate::Populate,
        stand_in,
        vcpu::Vcpu,
        vm::{
            Gfn,
            Vm, //
        }, //
    },
    mm::{
        drain,
        folio::PageRef, //
    }, //
};
use core::{
    cell::UnsafeCell,
    ptr::{
        self,
        NonNull, //
    },
    sync::atomic::AtomicPtr, //
};
use gmem_types::visibility::Visibility;
use kernel::{
    error::from_result,
    prelude::*, //
};

mod debugfs;
pub(crate) mod fault;
pub mod file_ops;
mod inode_ops;

impl State {
    /// The state of `T` before anything is mounted.
    pub const fn new<T: GuestMemfd>() -> Self {
        Self {
            file: UnsafeCell::new(bindings::file_operations {
                mmap: Some(file_ops::mmap),
                get_unmapped_area: Some(file_ops::get_unmapped_area),
                open: Some(bindings::generic_file_open),
                release: Some(file_ops::release),
                fallocate: Some(file_ops::fallocate::<T>),
                unlocked_ioctl: Some(file_ops::ioctl::<T>),
                compat_ioctl: bindings::compat_ptr_ioctl,
                show_fdinfo: Some(file_ops::show_fdinfo::<T>),
                ..pin_init::zeroed()
            }),
            runs: UnsafeCell::new(debugfs::operations()),
            file_system: UnsafeCell::new(bindings::file_system_type {
                name: file_system_name(),
                init_fs_context: Some(superblock::init_fs_context),
                kill_sb: Some(bindings::kill_anon_super),
                ..pin_init::zeroed()
            }),
            cache: AtomicPtr::new(ptr::null_mut()),
            mount: AtomicPtr::new(ptr::null_mut()),
        }
    }
}

impl Tables {
    /// The tables of `T`.
    pub const fn new<T: GuestMemfd>(state: &'static State) -> Self {
        Self {
            runs_sequence: debugfs::sequence::<T>(),
            vm: bindings::vm_operations_struct {
                fault: Some(fault::fault::<T>),
                map_pages: Some(fs::fault::map_pages),
                #[cfg(CONFIG_NUMA)]
                set_policy: Some(fs::fault::set_policy),
                #[cfg(CONFIG_NUMA)]
                get_policy: Some(fs::fault::get_policy),
                ..pin_init::zeroed()
            },
            mapping: bindings::address_space_operations {
                dirty_folio: Some(bindings::noop_dirty_folio),
                migrate_folio: Some(inode_ops::migrate_folio::<T>),
                error_remove_folio: Some(inode_ops::error_folio),
                free_folio: Some(inode_ops::free_folio::<T>),
                ..pin_init::zeroed()
            },
            inode: bindings::inode_operations {
                setattr: Some(inode_ops::setattr),
                getattr: Some(inode_ops::getattr),
                ..pin_init::zeroed()
            },
            superblock: bindings::super_operations {
                statfs: Some(bindings::simple_statfs),
                alloc_inode: Some(superblock::alloc),
                destroy_inode: Some(superblock::destroy),
                free_inode: Some(superblock::free),
                ..pin_init::zeroed()
            },
            state,
        }
    }
}

/// The name of the file system; `as_char_ptr()` cannot be called at compile time.
#[expect(clippy::disallowed_methods)]
const fn file_system_name() -> *const c_char {
    c"guest_memfd".as_ptr().cast()
}

/// Whether `kvm.gmem_in_place_conversion` makes every file of a VM with private memory convert in
/// place.
pub fn host_wide() -> bool {
    // SAFETY: Reads a module parameter that does not change after load.
    unsafe { bindings::gmem_host_wide() }
}

/// Whether `kvm.gmem_scramble` makes the policy NONE scramble on SW_PROTECTED VMs.
pub fn scramble() -> bool {
    // SAFETY: Reads a module parameter that does not change after load.
    unsafe { bindings::gmem_scramble() }
}

/// Bodies of the C functions; see [`register_entry_points!`](crate::register_entry_points).
///
/// Each has the contract of the C function of the same name with the prefix `kvm_gmem_`.
#[doc(hidden)]
pub mod entry {
    use super::*;
    #[cfg(CONFIG_X86_64)]
    use crate::kvm::emulate;

    pub use crate::bindings::{
        file,
        kvm,
        kvm_create_guest_memfd,
        kvm_gmem_populate_cb,
        kvm_memory_slot,
        kvm_vcpu,
        module,
        page, //
    };

    /// # Safety
    ///
    /// Once, before any other entry point.
    pub unsafe fn init<T: GuestMemfd>(module: *mut module) -> c_int {
        from_result(|| {
            #[cfg(CONFIG_KVM_GMEM_EMULATION)]
            // SAFETY: By the contract of this function.
            unsafe {
                crate::emulation::init()
            };
            let tables = T::tables();
            // SAFETY: By the contract of this function.
            unsafe {
                drain::init();
                tables.take_into_use(module);
                superblock::mount(tables)?;
            }
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// After all VMs and files are gone.
    pub unsafe fn exit() {
        if let Ok(tables) = tables() {
            // SAFETY: By the contract of this function.
            unsafe { superblock::unmount(tables) }
        }
    }

    /// # Safety
    ///
    /// The pointers are valid.
    pub unsafe fn create<T: GuestMemfd>(kvm: *mut kvm, args: *mut kvm_create_guest_memfd) -> c_int {
        // SAFETY: By the contract of this function.
        let (vm, args) = unsafe { (Vm::from_raw(kvm), &*args) };
        stand_in::all().for_each(|other| other.closes(vm));
        from_result(|| T::create(vm, args.size, args.flags))
    }

    /// # Safety
    ///
    /// The pointers are valid; slots_lock is held; nobody else can see the slot.
    pub unsafe fn prepare<T: GuestMemfd>(
        kvm: *mut kvm,
        slot: *mut kvm_memory_slot,
        fd: c_uint,
        offset: u64,
    ) -> c_int {
        from_result(|| {
            // SAFETY: By the contract of this function.
            let slot = unsafe { &mut *slot };
            const GMEM_ONLY: u32 = bindings::GMEM_SLOT_GMEM_ONLY;
            const IN_PLACE: u32 = bindings::GMEM_SLOT_IN_PLACE;

            if slot.flags & (GMEM_ONLY | IN_PLACE) != 0 {
                return Err(EINVAL);
            }
            let file = ActiveFile::from_fd(fd)?;
            let geometry = file.inode().geometry();
            let size = (slot.npages as u64)
                .checked_mul(geometry.page_size().bytes())
                .ok_or(EINVAL)?;
            let range = geometry.range(offset, size).ok_or(EINVAL)?;

            if !ptr::eq(file.vm().as_raw(), kvm) {
                return Err(EINVAL);
            }
            let inode = file.inode();
            // A file that the host may map serves the guest's shared accesses, too, and so does
            // each file that converts in place: shared pages must not come from another mapping.
            if inode.is_mappable() || inode.converts_in_place() {
                slot.flags |= GMEM_ONLY;
            }
            if inode.converts_in_place() {
                slot.flags |= IN_PLACE;
            }
            // A slot with a file cannot be changed, only deleted, so this slot is new. It is not
            // visible yet, so get_pfn() will see the file.
            slot.gmem.pgoff = range.start().get() as usize;
            // The caller gets the reference, and drops it when the slot is bound or given up.
            // SAFETY: The slot is valid.
            unsafe { bindings::gmem_slot_set_file(slot, file.into_raw()) };
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// As for [`prepare`], which has prepared the slot.
    pub unsafe fn commit<T: GuestMemfd>(_kvm: *mut kvm, slot: *mut kvm_memory_slot) -> c_int {
        from_result(|| {
            // SAFETY: By the contract of this function; prepare() has set the file, to which the
            // caller has a reference.
            let (slot, file) = unsafe {
                (
                    Memslot::from_raw(slot),
                    GmemFile::from_raw(bindings::gmem_slot_file(slot)),
                )
            };
            let (_invalidate, bindings) = file.inode().lock_to_bind_killable()?;
            file.data().bind(&bindings, slot)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// The slot is valid, slots_lock is held, and SRCU readers that knew the slot are done.
    pub unsafe fn unbind<T: GuestMemfd>(slot: *mut kvm_memory_slot) {
        // SAFETY: By the contract of this function.
        let file = unsafe { bindings::gmem_slot_file(slot) };
        if file.is_null() {
            // Closed already: release() has unbound all slots.
            return;
        }
        // The file may be being closed. It still exists, as release() clears the slot's pointer
        // under slots_lock, which is held. SAFETY: See above.
        let (slot, file) = unsafe { (Memslot::from_raw(slot), GmemFile::from_raw(file)) };
        let (_invalidate, bindings) = file.inode().lock_to_bind();

        file.data().unbind(&bindings, slot);
        // SAFETY: The slot is valid.
        unsafe { bindings::gmem_slot_set_file(slot.as_raw(), ptr::null_mut()) };
    }

    /// # Safety
    ///
    /// The pointers are valid; SRCU is held.
    pub unsafe fn get_pfn<T: GuestMemfd>(
        kvm: *mut kvm,
        slot: *mut kvm_memory_slot,
        gfn: u64,
        pfn: *mut u64,
        page: *mut *mut page,
        max_order: *mut c_int,
    ) -> c_int {
        // By value: each guest fault comes here.
        from_result(move || {
            // SAFETY: By the contract of this function.
            let (vm, slot) = unsafe { (Vm::from_raw(kvm), Memslot::from_raw(slot)) };
            let gfn = Gfn::new(gfn);
            let (file, at) = slot.find(gfn)?;
            let mut fault = GuestFault::new(vm, &file, gfn, at);
            // A caller that does not ask maps one page.
            if !max_order.is_null() {
                fault = fault.through(slot);
            }
            let found = T::get_pfn(fault)?;
            stand_in::all().for_each(|other| other.has_pfn(vm, gfn));
            if found.max_order != 0 {
                vm.count_blocks(bindings::GMEM_BLOCK_MAPPED, 1);
            }
            // SAFETY: By the contract of this function; `max_order` may be NULL.
            unsafe {
                *pfn = found.pfn.get();
                *page = found.page.map_or(ptr::null_mut(), PageRef::into_raw);
                if let Some(order) = max_order.as_mut() {
                    *order = found.max_order.into();
                }
            }
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// The pointers are valid, `pfns` for writes of `nr` frames; SRCU is held. Any context.
    pub unsafe fn pages_in_use(
        kvm: *mut kvm,
        slot: *mut kvm_memory_slot,
        gfn: u64,
        nr: c_int,
        pfns: *mut u64,
    ) -> c_int {
        // SAFETY: By the contract of this function.
        let (vm, slot) = unsafe { (Vm::from_raw(kvm), Memslot::from_raw(slot)) };
        let gfn = Gfn::new(gfn);
        let Ok(room) = usize::try_from(nr) else {
            return 0;
        };
        if room == 0 {
            return 0;
        }
        let Ok((file, at)) = slot.find(gfn) else {
            return 0;
        };
        // The slot may end before the file.
        let room = room.min(slot.pages_from(gfn));
        // SAFETY: By the contract of this function; the array may be uninitialised.
        let pfns = unsafe { core::slice::from_raw_parts_mut(pfns.cast(), room) };
        // CAST: No more than `nr`.
        GuestFault::new(vm, &file, gfn, at).in_use(pfns) as c_int
    }

    /// # Safety
    ///
    /// The pointers are valid, `pfn` for writes; SRCU is held. Any context.
    pub unsafe fn max_order<T: GuestMemfd>(
        kvm: *mut kvm,
        slot: *const kvm_memory_slot,
        gfn: u64,
        pfn: *mut u64,
    ) -> c_int {
        // SAFETY: By the contract of this function.
        let (vm, slot) = unsafe { (Vm::from_raw(kvm), Memslot::from_raw(slot.cast_mut())) };
        let gfn = Gfn::new(gfn);
        let Ok((file, at)) = slot.find(gfn) else {
            return 0;
        };
        let Some(page) = T::in_use(&GuestFault::new(vm, &file, gfn, at).through(slot)) else {
            return 0;
        };
        // SAFETY: By the contract of this function.
        unsafe { *pfn = page.pfn.get() };
        page.max_order.into()
    }

    /// # Safety
    ///
    /// The pointers are valid; SRCU is held.
    pub unsafe fn allocate_block<T: GuestMemfd>(
        kvm: *mut kvm,
        slot: *mut kvm_memory_slot,
        gfn: u64,
    ) -> bool {
        // SAFETY: By the contract of this function.
        let (vm, slot) = unsafe { (Vm::from_raw(kvm), Memslot::from_raw(slot)) };
        let gfn = Gfn::new(gfn);
        slot.find(gfn).is_ok_and(|(file, at)| {
            T::allocate_block(&GuestFault::new(vm, &file, gfn, at).through(slot))
        })
    }

    /// # Safety
    ///
    /// The pointers are valid; slots_lock is held.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn populate<T: GuestMemfd>(
        kvm: *mut kvm,
        gfn: u64,
        source: *mut c_void,
        npages: c_long,
        writable_source: bool,
        callback: kvm_gmem_populate_cb,
        opaque: *mut c_void,
    ) -> c_long {
        from_result(|| {
            let npages = u64::try_from(npages).map_err(|_| EINVAL)?;
            let source = source.addr();
            if npages == 0 || source % kernel::page::PAGE_SIZE != 0 {
                return Err(EINVAL);
            }
            let populate = Populate {
                // SAFETY: By the contract of this function.
                vm: unsafe { Vm::from_raw(kvm) },
                start: Gfn::new(gfn),
                wanted: npages,
                callback,
                opaque,
                source,
                writable_source,
            };
            // CAST: The number of wanted pages was a long.
            Ok(T::populate(&populate)?.min(npages) as c_long)
        })
    }

    /// # Safety
    ///
    /// The slot is valid and has a file that converts in place; SRCU, slots_lock or mmu_lock is
    /// held. Any context.
    pub unsafe fn is_private<T: GuestMemfd>(slot: *const kvm_memory_slot, gfn: u64) -> bool {
        // SAFETY: By the contract of this function.
        let slot = unsafe { Memslot::from_raw(slot.cast_mut()) };
        // A slot whose file is closed has no memory any more, and a slot that is being deleted will
        // have none: their pages must not be used as shared.
        let Some(at) = slot.index_of(Gfn::new(gfn)) else {
            return true;
        };
        slot.with_inode(|inode, rcu| inode.visibility_for(at, rcu.into()) == Visibility::Private)
            .unwrap_or(true)
    }

    /// # Safety
    ///
    /// The pointers are valid, `data` for `len` bytes; SRCU is held.
    #[cfg(CONFIG_X86_64)]
    pub unsafe fn emulate_access(
        kvm: *mut kvm,
        slot: *mut kvm_memory_slot,
        gfn: u64,
        data: *mut c_void,
        offset: c_int,
        len: c_int,
        write: bool,
    ) -> c_int {
        from_result(|| {
            let (offset, len) = (usize::try_from(offset)?, usize::try_from(len)?);
            // SAFETY: By the contract of this function.
            let (vm, slot) = unsafe { (Vm::from_raw(kvm), Memslot::from_raw(slot)) };

            // SAFETY: By the contract of this function.
            emulate::access(vm, slot, Gfn::new(gfn), |page| unsafe {
                match write {
                    true => page.write(offset, data, len),
                    false => page.read(offset, data, len),
                }
            })?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// The pointers are valid; SRCU is held.
    #[cfg(CONFIG_X86_64)]
    pub unsafe fn emulate_cmpxchg(
        kvm: *mut kvm,
        slot: *mut kvm_memory_slot,
        gfn: u64,
        offset: c_int,
        len: c_int,
        old: *mut u64,
        new: u64,
    ) -> c_int {
        from_result(|| {
            let (offset, len) = (usize::try_from(offset)?, usize::try_from(len)?);
            // SAFETY: By the contract of this function.
            let (vm, slot, old) =
                unsafe { (Vm::from_raw(kvm), Memslot::from_raw(slot), &mut *old) };

            let same = emulate::access(vm, slot, Gfn::new(gfn), |page| {
                page.compare_exchange(offset, len, old, new)
            })?;
            Ok((!same).into())
        })
    }

    /// # Safety
    ///
    /// `kvm` is valid or NULL.
    pub unsafe fn check_extension<T: GuestMemfd>(kvm: *mut kvm, cap: c_long) -> c_int {
        let vm = if kvm.is_null() {
            None
        } else {
            // SAFETY: By the contract of this function.
            Some(unsafe { Vm::from_raw(kvm) })
        };
        #[cfg(CONFIG_KVM_GMEM_EMULATION)]
        if u64::try_from(cap) == Ok(crate::emulation::CAP) {
            return crate::emulation::capability(vm);
        }
        u64::try_from(cap)
            .ok()
            .and_then(|cap| T::capability(vm, cap))
            .unwrap_or(ENOENT.to_errno())
    }

    /// # Safety
    ///
    /// `vcpu` is valid, its mutex held.
    pub unsafe fn vcpu_ioctl<T: GuestMemfd>(
        vcpu: *mut kvm_vcpu,
        cmd: c_uint,
        arg: c_ulong,
    ) -> c_int {
        from_result(|| {
            let vcpu = NonNull::new(vcpu).ok_or(EINVAL)?;
            // SAFETY: By the contract of this function. KVM loads no vCPU for these ioctls.
            let mut vcpu = unsafe { Vcpu::from_raw(vcpu) };
            T::vcpu_ioctl(&mut vcpu, cmd, UserPointer::new(arg))?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `kvm` is valid.
    pub unsafe fn supports_in_place<T: GuestMemfd>(kvm: *mut kvm) -> bool {
        // SAFETY: By the contract of this function.
        T::supports_in_place(unsafe { Vm::from_raw(kvm) })
    }
}

/// Makes the C entry points for a type that implements [`GuestMemfd`].
///
/// The type is a plain name, so that no code of the caller gets into an unsafe block.
#[macro_export]
macro_rules! register_entry_points {
    ($implementation:ident, $tables:ident) => {
        static $tables: $crate::fs::tables::Tables = {
            static STATE: $crate::fs::tables::State =
                $crate::fs::tables::State::new::<$implementation>();
            $crate::fs::tables::Tables::new::<$implementation>(&STATE)
        };

        /// The C functions, with the names and the contracts that KVM's headers give them.
        #[allow(missing_docs, clippy::missing_safety_doc, unreachable_pub)]
        mod entry_points {
            use super::$implementation as Implementation;
            use ::kernel::ffi::{c_int, c_long, c_uint, c_ulong, c_void};
            use $crate::export::entry;

            #[no_mangle]
            pub unsafe extern "C" fn kvm_gmem_init(module: *mut entry::module) -> c_int {
                // SAFETY: The contract is the same.
                unsafe { entry::init::<Implementation>(module) }
            }

            #[no_mangle]
            pub unsafe extern "C" fn kvm_gmem_exit() {
                // SAFETY: The contract is the same.
                unsafe { entry::exit() }
            }

            #[no_mangle]
            pub unsafe extern "C" fn kvm_gmem_create(
                kvm: *mut entry::kvm,
                args: *mut entry::kvm_create_guest_memfd,
            ) -> c_int {
                // SAFETY: The contract is the same.
                unsafe { entry::create::<Implementation>(kvm, args) }
            }

            #[no_mangle]
            pub unsafe extern "C" fn kvm_gmem_prepare_memory_region(
                kvm: *mut entry::kvm,
                slot: *mut entry::kvm_memory_slot,
                fd: c_uint,
                offset: u64,
            ) -> c_int {
                // SAFETY: The contract is the same.
                unsafe { entry::prepare::<Implementation>(kvm, slot, fd, offset) }
            }

            #[no_mangle]
            pub unsafe extern "C" fn kvm_gmem_commit_memory_region(
                kvm: *mut entry::kvm,
                slot: *mut entry::kvm_memory_slot,
            ) -> c_int {
                // SAFETY: The contract is the same.
                unsafe { entry::commit::<Implementation>(kvm, slot) }
            }

            #[no_mangle]
            pub unsafe extern "C" fn kvm_gmem_unbind(slot: *mut entry::kvm_memory_slot) {
                // SAFETY: The contract is the same.
                unsafe { entry::unbind::<Implementation>(slot) }
            }

            #[no_mangle]
            pub unsafe extern "C" fn kvm_gmem_get_pfn(
                kvm: *mut entry::kvm,
                slot: *mut entry::kvm_memory_slot,
                gfn: u64,
                pfn: *mut u64,
                page: *mut *mut entry::page,
                max_order: *mut c_int,
            ) -> c_int {
                // SAFETY: The contract is the same.
                unsafe { entry::get_pfn::<Implementation>(kvm, slot, gfn, pfn, page, max_order) }
            }

            #[no_mangle]
            #[cfg(CONFIG_HAVE_KVM_ARCH_GMEM_POPULATE)]
            pub unsafe extern "C" fn kvm_gmem_populate(
                kvm: *mut entry::kvm,
                gfn: u64,
                source: *mut c_void,
                npages: c_long,
                writable_source: bool,
                callback: entry::kvm_gmem_populate_cb,
                opaque: *mut c_void,
            ) -> c_long {
                // SAFETY: The contract is the same.
                unsafe {
                    entry::populate::<Implementation>(
                        kvm,
                        gfn,
                        source,
                        npages,
                        writable_source,
                        callback,
                        opaque,
                    )
                }
            }

            #[no_mangle]
            pub unsafe extern "C" fn kvm_gmem_pages_in_use(
                kvm: *mut entry::kvm,
                slot: *mut entry::kvm_memory_slot,
                gfn: u64,
                nr: c_int,
                pfns: *mut u64,
            ) -> c_int {
                // SAFETY: The contract is the same.
                unsafe { entry::pages_in_use(kvm, slot, gfn, nr, pfns) }
            }

            #[no_mangle]
            pub unsafe extern "C" fn kvm_gmem_max_order(
                kvm: *mut entry::kvm,
                slot: *const entry::kvm_memory_slot,
                gfn: u64,
                pfn: *mut u64,
            ) -> c_int {
                // SAFETY: The contract is the same.
                unsafe { entry::max_order::<Implementation>(kvm, slot, gfn, pfn) }
            }

            #[no_mangle]
            pub unsafe extern "C" fn kvm_gmem_allocate_large(
                kvm: *mut entry::kvm,
                slot: *mut entry::kvm_memory_slot,
                gfn: u64,
            ) -> bool {
                // SAFETY: The contract is the same.
                unsafe { entry::allocate_block::<Implementation>(kvm, slot, gfn) }
            }

            #[no_mangle]
            pub unsafe extern "C" fn kvm_gmem_is_private(
                slot: *const entry::kvm_memory_slot,
                gfn: u64,
            ) -> bool {
                // SAFETY: The contract is the same.
                unsafe { entry::is_private::<Implementation>(slot, gfn) }
            }

            #[no_mangle]
            #[cfg(CONFIG_X86_64)]
            pub unsafe extern "C" fn kvm_gmem_emulate_access(
                kvm: *mut entry::kvm,
                slot: *mut entry::kvm_memory_slot,
                gfn: u64,
                data: *mut c_void,
                offset: c_int,
                len: c_int,
                write: bool,
            ) -> c_int {
                // SAFETY: The contract is the same.
                unsafe { entry::emulate_access(kvm, slot, gfn, data, offset, len, write) }
            }

            #[no_mangle]
            #[cfg(CONFIG_X86_64)]
            pub unsafe extern "C" fn kvm_gmem_emulate_cmpxchg(
                kvm: *mut entry::kvm,
                slot: *mut entry::kvm_memory_slot,
                gfn: u64,
                offset: c_int,
                len: c_int,
                old: *mut u64,
                new: u64,
            ) -> c_int {
                // SAFETY: The contract is the same.
                unsafe { entry::emulate_cmpxchg(kvm, slot, gfn, offset, len, old, new) }
            }

            #[no_mangle]
            pub unsafe extern "C" fn kvm_gmem_check_extension(
                kvm: *mut entry::kvm,
                cap: c_long,
            ) -> c_int {
                // SAFETY: The contract is the same.
                unsafe { entry::check_extension::<Implementation>(kvm, cap) }
            }

            #[no_mangle]
            pub unsafe extern "C" fn kvm_gmem_vcpu_ioctl(
                vcpu: *mut entry::kvm_vcpu,
                ioctl: c_uint,
                arg: c_ulong,
            ) -> c_int {
                // SAFETY: The contract is the same.
                unsafe { entry::vcpu_ioctl::<Implementation>(vcpu, ioctl, arg) }
            }

            #[no_mangle]
            pub unsafe extern "C" fn kvm_gmem_supports_in_place(kvm: *mut entry::kvm) -> bool {
                // SAFETY: The contract is the same.
                unsafe { entry::supports_in_place::<Implementation>(kvm) }
            }
        }
    };
}
