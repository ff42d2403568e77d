// SPDX-License-Identifier: GPL-2.0

//! The meaning of a conversion of guest memory, without the code that carries it out.
//!
//! guest_memfd tracks for each page of a file whether it is private to the guest or shared with
//! the host. This crate decides: which raw requests are legal ([`request`]), what each platform
//! promises about the bytes ([`contract`]), and which pages and which part of the attribute map a
//! request touches ([`plan`]). It does not lock, allocate, or know what a folio is.
//!
//! It uses nothing but `core`, so that the same source is compiled into the kernel and into
//! ordinary test programs (`tools/testing/gmem-model`).
//!
//! # Invariants
//!
//! - Nothing here panics, whatever its input: any raw request, and any attribute map, also an
//!   invalid one.

// Kbuild passes the attribute itself, and a second one is a warning.
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(any(test, CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST))]
pub mod checks;
pub mod contract;
// Not policy, but free of kernel types, too: in this crate it is compiled for cargo as well.
#[cfg(any(not(CONFIG_RUST), CONFIG_KVM_GMEM_EMULATION))]
#[path = "../platform/emulation.rs"]
pub mod emulation;
pub mod mapping;
pub mod plan;
pub mod request;

pub use contract::Refusal;
pub use plan::{
    Attributes,
    Change,
    Plan, //
};
pub use request::{
    Invalid,
    Query,
    RawRequest,
    Request, //
};
