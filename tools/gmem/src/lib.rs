// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Typed wrappers for guest_memfd's in-place conversion, on top of rust-vmm's `kvm-ioctls`.
//!
//! A guest_memfd holds the memory of a virtual machine. One that *converts in place* keeps for
//! each of its pages whether the page is shared with the host or private to the guest, and
//! changes that without moving the page. [`GuestMemfd::convert`] asks for such a change, and
//! [`Content`] says what has to become of the bytes.
//!
//! ```no_run
//! use gmem::{
//!     Content,
//!     CreateFlags,
//!     GuestMemfd,
//!     SlotLayout,
//!     Visibility, //
//! };
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let kvm = kvm_ioctls::Kvm::new()?;
//! let vm = kvm.create_vm_with_type(gmem::abi::KVM_X86_SW_PROTECTED_VM)?;
//!
//! // Shared at first, so that the payload can be written where the guest will find it.
//! let flags = CreateFlags::MMAP | CreateFlags::INIT_SHARED;
//! let memory = GuestMemfd::create(&vm, 0x10000, flags)?;
//! let mapping = Arc::new(memory.map(0..0x10000)?);
//! let layout = SlotLayout {
//!     slot: 0,
//!     guest_phys_addr: 0x100000,
//!     file_range: 0..0x10000,
//! };
//! let slot = memory.bind(&vm, &layout, Some(&mapping))?;
//!
//! mapping.try_write(0, b"payload")?;
//! memory.convert(0..0x1000, Visibility::Private, Content::Preserve)?;
//! assert!(mapping.try_read(0, &mut [0; 7]).is_err());
//!
//! for run in memory.runs() {
//!     println!("{:?}", run?);
//! }
//! # drop(slot);
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here needs a signal handler: [`Mapping::try_read`] and [`Mapping::try_write`] report a
//! page that the host may not touch as an error instead of dying by `SIGBUS`.

pub mod abi;
mod attributes;
mod capabilities;
pub mod emulation;
pub mod fdinfo;
mod file;
mod mapping;
pub mod picture;
mod populate;
mod slot;

pub use attributes::{
    Content,
    ConvertError,
    Run,
    Runs,
    Visibility, //
};
pub use capabilities::{
    Capabilities,
    CheckExtension,
    Policies,
    PolicySupport, //
};
pub use file::{
    CreateFlags,
    GuestMemfd, //
};
pub use mapping::{
    AccessError,
    Mapping, //
};
pub use populate::{
    Populate,
    PopulateError, //
};
pub use slot::{
    Slot,
    SlotLayout, //
};
