// SPDX-License-Identifier: GPL-2.0

//! Tests of guest_memfd's policy crate against simple, slow models.
//!
//! The models keep one element for each page and check each of them. They share no code with the
//! crate. Their expectations follow the user-space interface and the content contract.

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
