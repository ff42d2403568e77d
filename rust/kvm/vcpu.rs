// SPDX-License-Identifier: GPL-2.0

//! A vCPU during one of its ioctls.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h)

use crate::bindings;
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    types::NotThreadSafe, //
};

/// A vCPU, `struct kvm_vcpu`, in an ioctl of its own.
///
/// # Invariants
///
/// The vCPU is valid for as long as `'a`, and not loaded. The calling task holds its mutex, in the
/// process that the VM belongs to, and has no other value of this type for it.
pub struct Vcpu<'a> {
    vcpu: NonNull<bindings::kvm_vcpu>,
    _vcpu: PhantomData<&'a ()>,
    _task: NotThreadSafe,
}

impl Vcpu<'_> {
    /// Takes a pointer from C.
    ///
    /// # Safety
    ///
    /// `vcpu` must satisfy the type's invariants for as long as the value exists.
    #[inline]
    pub(crate) unsafe fn from_raw(vcpu: NonNull<bindings::kvm_vcpu>) -> Self {
        // INVARIANT: By the contract of this function.
        Self {
            vcpu,
            _vcpu: PhantomData,
            _task: NotThreadSafe,
        }
    }

    /// Calls `f` with the vCPU's state on this CPU, and its memslots under SRCU. A vCPU that was not
    /// initialised (arm64) is not loaded, and maps nothing.
    pub fn loaded<R>(&mut self, f: impl FnOnce(&mut Loaded<'_>) -> R) -> R {
        // SAFETY: By the type's invariants. As `self` is borrowed, nobody loads it once more before
        // it is put.
        let slots = unsafe { bindings::gmem_vcpu_load(self.vcpu.as_ptr()) };
        let mut loaded = Loaded {
            vcpu: self.vcpu,
            is_loaded: slots >= 0,
            _vcpu: PhantomData,
        };
        let result = f(&mut loaded);

        if slots >= 0 {
            // SAFETY: It was loaded above, in this task. The caller had only a reference to the
            // evidence.
            unsafe { bindings::gmem_vcpu_put(self.vcpu.as_ptr(), slots) };
        }
        result
    }
}

/// A vCPU that is loaded, unless it was not initialised.
pub struct Loaded<'a> {
    vcpu: NonNull<bindings::kvm_vcpu>,
    is_loaded: bool,
    _vcpu: PhantomData<&'a ()>,
}

impl Loaded<'_> {
    /// Maps the memory at `gpa`, as for a read by the guest. Sleeps. Returns how many of the `size`
    /// bytes from `gpa` on are mapped now.
    ///
    /// # Errors
    ///
    /// `ENOEXEC` if the vCPU was not initialised, `EAGAIN` if the page or its slot is being
    /// changed; otherwise those of the architecture.
    pub fn map(&mut self, gpa: u64, size: u64) -> Result<u64> {
        if !self.is_loaded {
            return Err(ENOEXEC);
        }
        // SAFETY: The vCPU is loaded, within SRCU. Any address can be asked for.
        let mapped = unsafe { bindings::kvm_arch_vcpu_map_memory(self.vcpu.as_ptr(), gpa, size) };
        // CAST: An error is small.
        u64::try_from(mapped).map_err(|_| Error::from_errno(mapped as c_int))
    }
}

/// Whether VMs can have their page tables populated here.
#[inline]
pub fn can_map_memory() -> bool {
    // SAFETY: Only reads KVM's configuration.
    unsafe { bindings::kvm_arch_can_map_memory() }
}
