// SPDX-License-Identifier: GPL-2.0

//! Files of debugfs in a VM's directory: `kvm/PID-FD/NAME`, where PID and FD are the VM's.
//!
//! The kernel crate's debugfs makes files in directories of its own only, and this one belongs to
//! KVM. It also prints a file whole, where a guest_memfd can have more runs than fit in memory.
//!
//! C header: [`include/linux/debugfs.h`](srctree/include/linux/debugfs.h)

use crate::{
    bindings,
    kvm::vm::Vm, //
};
use kernel::prelude::*;

/// A file of debugfs; dropping it removes it, and waits for its readers.
///
/// # Invariants
///
/// It is what `debugfs_create_file()` returned, which can be an error, and is one without
/// `CONFIG_DEBUG_FS`.
pub(crate) struct DebugfsFile(*mut bindings::dentry);

impl DebugfsFile {
    /// Makes the file. As for all of debugfs, nobody may depend on it.
    ///
    /// # Safety
    ///
    /// `vm` and `operations` must outlive it, and so must what these use `data` for.
    pub(crate) unsafe fn new(
        vm: &Vm,
        name: &CStr,
        data: *mut c_void,
        operations: *const bindings::file_operations,
    ) -> Self {
        // SAFETY: The directory is the VM's, or an error, which is returned. The rest is by the
        // contract of this function.
        // INVARIANT: This is the call.
        Self(unsafe {
            bindings::gmem_vm_debugfs_file(vm.as_raw(), name.as_char_ptr(), data, operations)
        })
    }
}

impl Drop for DebugfsFile {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type's invariants; the function accepts errors.
        unsafe { bindings::gmem_debugfs_remove(self.0) }
    }
}
