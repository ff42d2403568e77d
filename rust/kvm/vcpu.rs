// SPDX-License-Identifier: GPL-2.0

//! A vCPU, as its ioctls have it.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h)

use crate::bindings;
use kernel::{
    prelude::*,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};

/// A vCPU, `struct kvm_vcpu`.
///
/// # Invariants
///
/// A reference to it is one to a vCPU whose mutex the calling task holds, in the process that the
/// VM belongs to.
#[repr(transparent)]
pub struct Vcpu(Opaque<bindings::kvm_vcpu>);

impl Vcpu {
    /// Takes a pointer from C.
    ///
    /// # Safety
    ///
    /// `vcpu` must be valid, its mutex held by the calling task and nobody else have a reference,
    /// for as long as `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(vcpu: *mut bindings::kvm_vcpu) -> &'a Self {
        // SAFETY: By the contract of this function; the type is transparent.
        unsafe { &*vcpu.cast() }
    }

    /// Puts the vCPU's state on this CPU, and its memslots under SRCU.
    pub fn load(&self) -> Loaded<'_> {
        // SAFETY: By the type's invariants. Loading a loaded one is no more than a second
        // bookkeeping of the same, as KVM's own nested loads are.
        let slots = unsafe { bindings::gmem_vcpu_load(self.0.get()) };
        Loaded {
            vcpu: self,
            slots,
            _task: NotThreadSafe,
        }
    }
}

/// A vCPU that is loaded; dropping it puts.
pub struct Loaded<'a> {
    vcpu: &'a Vcpu,
    /// What SRCU wants back.
    slots: c_int,
    _task: NotThreadSafe,
}

impl Loaded<'_> {
    /// Maps what the guest has at `gpa`, of which at most `size` bytes are wanted, as for a read.
    /// Sleeps. Returns how many bytes from `gpa` on are mapped now, of those wanted.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if somebody was in the way; what the architecture returns otherwise.
    pub fn map(&mut self, gpa: u64, size: u64) -> Result<u64> {
        // SAFETY: The vCPU is loaded, within SRCU. Any address can be asked for.
        let mapped = unsafe { bindings::kvm_arch_vcpu_map_memory(self.vcpu.0.get(), gpa, size) };
        // CAST: An error is small.
        u64::try_from(mapped).map_err(|_| Error::from_errno(mapped as c_int))
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        // SAFETY: It was loaded by load(), in this task.
        unsafe { bindings::gmem_vcpu_put(self.vcpu.0.get(), self.slots) }
    }
}

/// Whether VMs can have their page tables populated here.
#[inline]
pub fn can_map_memory() -> bool {
    // SAFETY: Only looks at how KVM was set up.
    unsafe { bindings::kvm_arch_can_map_memory() }
}
