// SPDX-License-Identifier: GPL-2.0

//! Plain types that all crates use: pages and ranges of them, whether they are shared or private,
//! what is done to their bytes, and the platforms.
//!
//! `gmem_sys` uses them to compute which pages it maps, zaps and frees. So this crate is trusted
//! like `gmem_sys`: a mistake here can do as much harm, though there is no `unsafe`.
//!
//! It uses nothing but `core`, so that the same source is compiled into the kernel and into
//! ordinary test programs (`tools/testing/gmem-model`).
//!
//! # Invariants
//!
//! - Nothing here panics, whatever its input.
//! - A page index, a byte offset and a number of pages are never mixed up: the first two are types
//!   of their own, and a [`PageRange`](range::PageRange) is not empty.

// Kbuild passes the attribute itself, and a second one is a warning.
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod content;
pub mod platform;
pub mod range;
pub mod visibility;
