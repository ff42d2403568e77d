// SPDX-License-Identifier: GPL-2.0

//! A virtual machine.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h)

use crate::bindings;
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    sync::aref::AlwaysRefCounted,
    types::Opaque, //
};

/// A guest frame number: guest physical address in units of the page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gfn(u64);

impl Gfn {
    /// Wraps a number.
    #[inline]
    pub const fn new(gfn: u64) -> Self {
        Self(gfn)
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A page frame number of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pfn(u64);

impl Pfn {
    #[inline]
    pub(crate) const fn new(pfn: u64) -> Self {
        Self(pfn)
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A VM, `struct kvm`.
///
/// # Invariants
///
/// A reference to it is one to a `struct kvm` that has at least one user.
#[repr(transparent)]
pub struct Vm(Opaque<bindings::kvm>);

// SAFETY: `struct kvm` is shared between threads; all of the methods here are safe to call from
// any.
unsafe impl Send for Vm {}
// SAFETY: As above.
unsafe impl Sync for Vm {}

// SAFETY: kvm_get_kvm() and kvm_put_kvm() count users, and the last one frees.
unsafe impl AlwaysRefCounted for Vm {
    #[inline]
    fn inc_ref(&self) {
        // SAFETY: By the type's invariants there is a user already.
        unsafe { bindings::kvm_get_kvm(self.as_raw()) }
    }

    #[inline]
    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: By the contract of this function the caller gives up one user.
        unsafe { bindings::kvm_put_kvm(obj.as_ptr().cast()) }
    }
}

impl Vm {
    /// Takes a pointer from C.
    ///
    /// # Safety
    ///
    /// `kvm` must be valid and have a user for as long as `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(kvm: *mut bindings::kvm) -> &'a Self {
        // SAFETY: By the contract of this function; the type is transparent.
        // INVARIANT: There is a user.
        unsafe { &*kvm.cast() }
    }

    /// The C pointer.
    #[inline]
    pub(crate) fn as_raw(&self) -> *mut bindings::kvm {
        self.0.get()
    }

    /// Whether the VM was marked dead. Its contents cannot be relied upon then.
    #[inline]
    pub fn is_dead(&self) -> bool {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_vm_dead(self.as_raw()) }
    }

    /// Whether VMs of this type have private memory at all.
    #[inline]
    pub fn has_private_mem(&self) -> bool {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_vm_has_private_mem(self.as_raw()) }
    }

    /// Whether the launch is over: the guest may run.
    #[cfg(CONFIG_KVM_GMEM_EMULATION)]
    #[inline]
    pub(crate) fn is_launched(&self) -> bool {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_vm_launched(self.as_raw()) }
    }

    /// Counts a conversion: whether to private, the policy as a request's flags, pages changed,
    /// bytes zeroed.
    #[inline]
    pub fn count_conversion(&self, to_private: bool, policy: u64, pages: u64, zeroed: u64) {
        // SAFETY: By the type's invariants.
        unsafe {
            bindings::gmem_vm_count_conversion(self.as_raw(), to_private, policy, pages, zeroed)
        }
    }

    /// Counts a request that failed because somebody held a reference.
    #[inline]
    pub fn count_busy(&self) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_vm_count_busy(self.as_raw()) }
    }

    /// Adds `nr` to the statistic of blocks that `what` selects.
    #[inline]
    pub(crate) fn count_blocks(&self, what: u32, nr: u64) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_vm_count_blocks(self.as_raw(), what, nr) }
    }

    /// Counts a page that was moved to other memory, or could not be.
    #[inline]
    pub(crate) fn count_migration(&self, moved: bool) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_vm_count_migration(self.as_raw(), moved) }
    }

    /// Counts a conversion that the platform cannot do.
    #[inline]
    pub fn count_unsupported(&self) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_vm_count_unsupported(self.as_raw()) }
    }

    /// Records for how many nanoseconds a file of the VM was locked.
    #[inline]
    pub fn note_locked(&self, ns: u64) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_vm_note_locked(self.as_raw(), ns) }
    }

    /// Marks the VM dead.
    pub(crate) fn kill(&self) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_vm_kill(self.as_raw()) }
    }

    /// The `GUEST_MEMFD_FLAG_*` that KVM has for files of a VM, in either implementation; without a
    /// VM, those that some VM has.
    #[inline]
    pub fn supported_flags(vm: Option<&Self>) -> u64 {
        // SAFETY: By the type's invariants; NULL is no VM.
        unsafe { bindings::gmem_vm_supported_flags(vm.map_or(ptr::null_mut(), Self::as_raw)) }
    }

    /// Whether `gfn` is private for KVM. The caller is inside SRCU or holds slots_lock.
    #[inline]
    pub(crate) fn mem_is_private(&self, gfn: Gfn) -> bool {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_vm_mem_is_private(self.as_raw(), gfn.get()) }
    }

    /// Takes `slots_lock`; sleeps. Outer to the invalidate lock.
    #[inline]
    pub(crate) fn lock_slots(&self) -> SlotsGuard<'_> {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_vm_slots_lock(self.as_raw()) };
        SlotsGuard(self)
    }

    /// Takes `mmu_lock` for writing. A spinlock: nothing below it sleeps.
    #[inline]
    pub(crate) fn lock_mmu(&self) -> MmuGuard<'_> {
        // SAFETY: By the type's invariants.
        unsafe { bindings::gmem_vm_mmu_lock(self.as_raw()) };
        MmuGuard(self)
    }
}

/// Held `slots_lock`.
pub(crate) struct SlotsGuard<'a>(&'a Vm);

impl Drop for SlotsGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The guard exists only while this task holds the mutex.
        unsafe { bindings::gmem_vm_slots_unlock(self.0.as_raw()) }
    }
}

/// `mmu_lock` of a VM, held for writing.
pub struct MmuGuard<'a>(&'a Vm);

impl MmuGuard<'_> {
    /// The VM.
    #[inline]
    pub fn vm(&self) -> &Vm {
        self.0
    }
}

impl Drop for MmuGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The guard exists only while this task holds the lock.
        unsafe { bindings::gmem_vm_mmu_unlock(self.0.as_raw()) }
    }
}
