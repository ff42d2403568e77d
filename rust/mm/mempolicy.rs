// SPDX-License-Identifier: GPL-2.0

//! The NUMA policy of a file, set by mbind() on a mapping of it.
//!
//! C header: [`include/linux/mempolicy.h`](srctree/include/linux/mempolicy.h)

use crate::bindings;
use gmem_types::range::PageIndex;
use kernel::types::Opaque;

/// A `struct shared_policy`.
#[repr(transparent)]
pub(crate) struct SharedPolicy(Opaque<bindings::shared_policy>);

/// The policy of one page, with a reference; dropping it puts.
pub(crate) struct PolicyRef(*mut bindings::mempolicy);

impl PolicyRef {
    /// The C pointer, NULL for none.
    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut bindings::mempolicy {
        self.0
    }

    /// Gives the reference to the caller.
    #[cfg(CONFIG_NUMA)]
    #[inline]
    pub(crate) fn into_raw(self) -> *mut bindings::mempolicy {
        core::mem::ManuallyDrop::new(self).0
    }
}

impl Drop for PolicyRef {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The reference is ours; NULL is fine.
        unsafe { bindings::gmem_policy_put(self.0) }
    }
}

impl SharedPolicy {
    /// Initialises an empty one at `this`.
    ///
    /// # Safety
    ///
    /// `this` must be valid for writes and hold no policy.
    pub(crate) unsafe fn init(this: *mut Self) {
        // SAFETY: By the contract of this function.
        unsafe { bindings::gmem_policy_init(this.cast()) }
    }

    /// Frees what it holds.
    ///
    /// # Safety
    ///
    /// Nobody uses it any more.
    #[inline]
    pub(crate) unsafe fn free(&self) {
        // SAFETY: By the contract of this function.
        unsafe { bindings::gmem_policy_free(self.0.get()) }
    }

    /// Whether no policy was ever set. A policy that is just being set may be missed, as if the
    /// page had been allocated a moment earlier.
    #[inline]
    pub(crate) fn is_unset(&self) -> bool {
        #[cfg(CONFIG_NUMA)]
        // SAFETY: It is initialised, and a pointer is read at once.
        unsafe {
            (&raw const (*self.0.get()).root.rb_node)
                .read_volatile()
                .is_null()
        }
        #[cfg(not(CONFIG_NUMA))]
        true
    }

    /// The policy of the page `at`.
    #[inline]
    pub(crate) fn at(&self, at: PageIndex) -> PolicyRef {
        // SAFETY: It is initialised.
        PolicyRef(unsafe { bindings::gmem_policy_lookup(self.0.get(), at.get() as usize) })
    }

    /// Sets the policy of what `vma` shows.
    ///
    /// # Safety
    ///
    /// The arguments are those of a `set_policy` operation.
    #[cfg(CONFIG_NUMA)]
    #[inline]
    pub(crate) unsafe fn set(
        &self,
        vma: *mut bindings::vm_area_struct,
        policy: *mut bindings::mempolicy,
    ) -> core::ffi::c_int {
        // SAFETY: By the contract of this function.
        unsafe { bindings::mpol_set_shared_policy(self.0.get(), vma, policy) }
    }
}
