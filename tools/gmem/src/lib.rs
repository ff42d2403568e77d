// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! guest_memfd with in-place conversion, for VMMs.
//!
//! A guest_memfd holds the memory of a virtual machine. A file that *converts in place* records for
//! each of its pages whether the page is shared with the host or private to the guest, and changes
//! this without moving the page. [`GuestMemfd::convert`] requests such a change, and [`Content`]
//! says what happens to the bytes.
//!
//! ```no_run
//! use gmem::{
//!     Capabilities,
//!     Content,
//!     CreateFlags,
//!     Feature,
//!     GuestMemfd,
//!     Outside,
//!     Region,
//!     Regions,
//!     Service,
//!     Visibility, //
//! };
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let kvm = kvm_ioctls::Kvm::new()?;
//! let vm = kvm.create_vm_with_type(gmem::abi::KVM_X86_SW_PROTECTED_VM)?;
//! Capabilities::of(&vm).require(&[Feature::InPlace, Feature::ReadAttributes])?;
//!
//! // Shared at first, so that the payload can be written where the guest will find it.
//! let flags = CreateFlags::MMAP | CreateFlags::INIT_SHARED;
//! let memory = Arc::new(GuestMemfd::create(&vm, 0x10000, flags)?);
//! let mapping = Arc::new(memory.map(0..0x10000)?);
//! let region = Region::new(memory.clone(), 0..0x10000, 0x100000, Some(mapping.clone()))?;
//! let slot = region.bind(&vm, 0)?;
//!
//! mapping.try_write(0, b"payload")?;
//! memory.convert(0..0x1000, Visibility::Private, Content::Preserve)?;
//! assert!(mapping.try_read(0, &mut [0; 7]).is_err());
//!
//! // Later, when a vCPU exits with the guest's request:
//! let regions = Regions::new(vec![region])?;
//! let service = Service {
//!     content: Content::Preserve,
//!     attempts: 1000,
//!     outside: Outside::Refuse,
//!     populate: None,
//! };
//! # let (nr, args) = (12, [0; 6]);
//! if let Some(served) = regions.serve(nr, &args, &service) {
//!     println!("{:?}; the guest gets {}", served.converted, served.ret());
//! }
//! # drop(slot);
//! # Ok(())
//! # }
//! ```
//!
//! # Addresses
//!
//! Three kinds, all in bytes: offsets in the file (`range`, `file_range`, `offset`), guest physical
//! addresses (`guest_phys_addr`, `guest_range`), and addresses in this process
//! ([`Mapping::address`]). A [`Region`] says which offset is which guest physical address.
//!
//! # Private pages and signals
//!
//! If the host loads from or stores to a private page, the process gets `SIGBUS`. This library
//! needs no signal handler:
//!
//! - [`Mapping::try_read`] and [`Mapping::try_write`] let the kernel do the access, which is an error
//!   where the page is private.
//! - [`GuestMemfd::hold`] keeps pages shared while this process uses them. Conversions to private
//!   that go through the same [`GuestMemfd`] fail with `EAGAIN` meanwhile.
#![cfg_attr(
    feature = "vm-memory",
    doc = "- [`vm_memory`]'s slices carry such a hold, so that rust-vmm's virtio crates work unchanged."
)]
//!
//! # Descriptors
//!
//! Functions take any object that has the descriptor of a VM or vCPU
//! ([`AsRawFd`](std::os::fd::AsRawFd)), so this library works with any version of `kvm-ioctls`, and
//! without it. The descriptors that it creates are close-on-exec.
//!
//! # Features
//!
//! - `vm-memory`: the module `vm_memory`, for `vm-memory` 0.18.
//! - `cli`: dependencies of the program `gmem`, which the library does not need.

#![warn(
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    missing_debug_implementations
)]

/// The example in the README compiles.
#[cfg(all(doctest, feature = "vm-memory"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod abi;
mod attributes;
mod capabilities;
pub mod emulation;
pub mod fdinfo;
mod file;
mod hold;
mod hypercall;
mod kvm;
mod mapping;
pub mod picture;
mod populate;
mod region;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;

pub use attributes::{
    Content,
    ConvertError,
    Run,
    Runs,
    Visibility, //
};
pub use capabilities::{
    Capabilities,
    Feature,
    Missing,
    Policies,
    PolicySupport, //
};
pub use file::{
    CreateFlags,
    GuestMemfd, //
};
pub use hold::Hold;
pub use hypercall::{
    exit_on_map_gpa_range,
    MapGpaRange,
    Served,
    Service, //
};
pub use mapping::{
    AccessError,
    Mapping, //
};
pub use populate::{
    PopulateError,
    Populator, //
};
pub use region::{
    Outside,
    RangeError,
    Region,
    Regions,
    Slot, //
};
