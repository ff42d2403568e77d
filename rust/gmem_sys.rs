// SPDX-License-Identifier: GPL-2.0

//! Safe types over the C code that guest_memfd is built on: page cache, VFS, RCU, KVM.
//!
//! Every `unsafe` and every binding of the project is in this crate; the crates above it
//! (`gmem_core`, `gmem_policy`) forbid both. It assumes that they are wrong but safe. They may lose
//! a guest's data, return an error, kill the VM, hang, or leak pages. Whatever they return, and in
//! whichever order they call, they cannot cause undefined behaviour, let the host reach a byte of a
//! page whose attribute is private, show what the memory of a page held before, free a page that a
//! platform has, or let a conversion that promises zeroes succeed over other bytes.
//!
//! `gmem_types` has no `unsafe` either, but is trusted: it computes pages and ranges.
//!
//! The files are shaped like those of the kernel crate, one C header each.

use kernel::{
    str::CStr,
    ThisModule, //
};

pub mod attribute_map;
#[cfg(CONFIG_KVM_GMEM_EMULATION)]
pub mod emulation;
pub mod export;
pub mod guest_memfd;
pub mod ioctl;
pub mod task;
#[cfg(CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST)]
pub mod testing;
#[cfg(CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST)]
mod tests;
pub(crate) mod time;
pub mod trace;
pub mod uapi;

/// The page cache and memory management.
pub mod mm {
    pub(crate) mod drain;
    pub mod folio;
    pub(crate) mod mempolicy;
}

/// The virtual file system.
pub mod fs {
    pub mod address_space;
    pub(crate) mod binding;
    pub mod block;
    pub(crate) mod debugfs;
    pub mod fault;
    pub mod file;
    pub(crate) mod file_data;
    pub mod inode;
    pub mod page_cache;
    pub(crate) mod superblock;
    pub mod tables;
}

/// KVM's own objects.
pub mod kvm {
    pub mod conversion;
    #[cfg(CONFIG_X86_64)]
    pub(crate) mod emulate;
    pub mod fault;
    pub mod hardware;
    pub mod memslot;
    pub mod migrate;
    pub mod mmu;
    pub mod platform;
    pub mod populate;
    pub(crate) mod stand_in;
    pub mod vcpu;
    pub mod vm;
}

/// The private bindings (KVM and what `helpers.h` declares) on top of the kernel's.
mod bindings {
    #![allow(
        clippy::all,
        clippy::undocumented_unsafe_blocks,
        dead_code,
        improper_ctypes,
        missing_docs,
        non_camel_case_types,
        non_snake_case,
        non_upper_case_globals,
        unreachable_pub,
        unsafe_op_in_unsafe_fn
    )]

    use kernel::ffi;

    pub use kernel::bindings::*;

    include!(concat!(
        env!("OBJTREE"),
        "/virt/kvm/gmem/rust/bindings_generated.rs"
    ));
}

/// Metadata that `#[vtable]` looks for; `module!` would make it, but kvm.ko is a C module.
pub struct LocalModule;

impl kernel::ModuleMetadata for LocalModule {
    const NAME: &'static CStr = c"kvm";
    const THIS_MODULE: ThisModule = {
        #[cfg(MODULE)]
        // SAFETY: `__this_module` is what the C side of this module calls THIS_MODULE.
        unsafe {
            // The bindings' `struct module` has empty structs in some configurations.
            #[allow(improper_ctypes)]
            extern "C" {
                static __this_module: kernel::types::Opaque<kernel::bindings::module>;
            }
            ThisModule::from_ptr(__this_module.get())
        }
        #[cfg(not(MODULE))]
        // SAFETY: THIS_MODULE is NULL for built-in code.
        unsafe {
            ThisModule::from_ptr(core::ptr::null_mut())
        }
    };
}

/// The prefix of each line that the kernel's print macros print.
const __LOG_PREFIX: &[u8] = b"kvm_gmem\0";
