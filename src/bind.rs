// SPDX-License-Identifier: GPL-2.0

//! Memslots on a file.

use gmem_sys::{
    export::SlotFlags,
    fs::{
        file_ops::GmemFile,
        inode::GmemInode, //
    },
    kvm::mmu::Kinds, //
};

/// How a slot on `file` is used.
///
/// A file that the host may map serves the guest's shared accesses, too, and so does each that
/// converts in place: what it says is private or shared must not be second-guessed by another
/// mapping.
pub(crate) fn slot_flags(file: &GmemFile) -> SlotFlags {
    let inode = file.inode();
    SlotFlags {
        gmem_only: inode.is_mappable() || inode.converts_in_place(),
        in_place: inode.converts_in_place(),
    }
}

/// Which kinds of guest mapping pages of the file can have.
///
/// Pages of a file that does not convert keep the kind that they were created with, and the other
/// kind of mapping of the same gfn belongs to other memory.
pub(crate) fn kinds(inode: &GmemInode) -> Kinds {
    if inode.converts_in_place() {
        Kinds::Both
    } else {
        Kinds::Only(inode.initial())
    }
}
