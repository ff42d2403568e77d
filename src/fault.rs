// SPDX-License-Identifier: GPL-2.0

//! Host faults.

use gmem_sys::fs::{
    address_space::Stable,
    fault::{
        HostFault,
        Served, //
    }, //
};
use kernel::prelude::*;

/// Gives the host a shared page.
///
/// The attributes are held from the check until the folio is locked. A conversion that
/// comes then waits for the folio lock, and so for the page table entry that it has to remove.
///
/// # Errors
///
/// Those that become SIGBUS: a private page, the end of the file, failed memory; and `ENOMEM`.
pub(crate) fn fault<'a>(fault: &mut HostFault<'a>, stable: &Stable<'_>) -> Result<Served<'a>> {
    fault.serve(stable)
}
