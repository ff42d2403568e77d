// SPDX-License-Identifier: GPL-2.0

//! KUnit: the policy's checks, the same as under cargo.
