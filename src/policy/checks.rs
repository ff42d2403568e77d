// SPDX-License-Identifier: GPL-2.0

//! Test bodies that run under cargo and under KUnit.
