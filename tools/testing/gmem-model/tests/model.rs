// SPDX-License-Identifier: GPL-2.0

//! Tests of guest_memfd's policy crate against models that are too slow to be wrong.
//!
//! The models keep one element for each page and look at each of them. They share no code with
//! the crate, and what they expect is written down from the user-space interface and the content
//! contract.

#[path = "model/emulation.rs"]
mod emulation;
#[path = "model/exhaustive.rs"]
mod exhaustive;
#[path = "model/hostile.rs"]
mod hostile;
#[path = "model/map.rs"]
mod map;
#[path = "model/naive.rs"]
mod naive;
#[path = "model/properties.rs"]
mod properties;
