// SPDX-License-Identifier: GPL-2.0

//! The lines of a file in `/proc/PID/fdinfo/FD` and debugfs.

use gmem_policy::plan::query;
use gmem_sys::{
    fs::{
        block,
        file::GmemFile,
        inode::{
            GmemInode,
            PAGE, //
        }, //
    },
    kvm::memslot::Binding,
    task::signal_pending, //
};
use gmem_types::{
    platform::{
        Base,
        Platform, //
    },
    range::PageIndex,
    visibility::{
        Run,
        Visibility, //
    }, //
};
use kernel::{
    seq_file::SeqFile,
    seq_print, //
};

/// The number of private pages, of shared pages, and of runs.
struct Totals {
    private: u64,
    shared: u64,
    runs: u64,
}

impl Totals {
    /// Counts the pages of a file, run by run.
    ///
    /// No lock is taken, so that a reader does not delay the guest. A concurrent conversion may be
    /// counted in part, but each page is counted once. Returns [`None`] if there is a signal, as a
    /// file can have very many runs.
    fn count(inode: &GmemInode) -> Option<Self> {
        let mut totals = Self {
            private: 0,
            shared: 0,
            runs: 0,
        };
        let mut at = PageIndex::new(0);

        while at.get() < inode.geometry().pages() {
            if signal_pending() {
                return None;
            }
            let Run { range, visibility } = query(at, &inode.geometry(), inode);
            match visibility {
                Visibility::Private => totals.private += range.len(),
                Visibility::Shared => totals.shared += range.len(),
            }
            totals.runs += 1;
            at = range.end();
        }
        Some(totals)
    }
}

/// Prints the file's lines, sizes in bytes.
pub(crate) fn show(file: &GmemFile, out: &SeqFile) {
    let inode = file.inode();
    let page = inode.geometry().page_size();
    let bytes = |pages| page.offset_of(PageIndex::new(pages)).get();
    let mode = if inode.converts_in_place() {
        "in-place"
    } else {
        "fixed"
    };

    let vendor = file.platform().map_or("none", Platform::name);
    let model = match file.platform().map(Platform::base) {
        Some(Base::Model) => " (model)",
        _ => "",
    };

    seq_print!(out, "gmem-mode:\t{}\n", mode);
    seq_print!(out, "gmem-vendor:\t{}{}\n", vendor, model);
    if inode.has_large_folios() {
        seq_print!(out, "gmem-large-folios:\tyes\n");
    }
    if inode.is_migratable() {
        seq_print!(out, "gmem-migratable:\tyes\n");
    }
    seq_print!(out, "gmem-size:\t{}\n", bytes(inode.geometry().pages()));
    seq_print!(out, "gmem-allocated:\t{}\n", bytes(inode.allocated()));
    if let Some(totals) = Totals::count(inode) {
        seq_print!(out, "gmem-private:\t{}\n", bytes(totals.private));
        seq_print!(out, "gmem-shared:\t{}\n", bytes(totals.shared));
        seq_print!(out, "gmem-runs:\t{}\n", totals.runs);
    }
    if let Some(count) = block::Count::of(inode) {
        seq_print!(out, "gmem-contiguous:\t{}\n", bytes(count.contiguous));
        seq_print!(out, "gmem-large:\t{}\n", bytes(count.large));
        if inode.has_large_folios() {
            seq_print!(out, "gmem-folios:\t{}\n", bytes(count.folios));
        }
    }
    file.for_each_binding(|Binding { pages, gfn }| {
        seq_print!(
            out,
            "gmem-slot:\t{:#x}-{:#x} offset {:#x}\n",
            gfn.get(),
            gfn.get().saturating_add(pages.len()),
            page.offset_of(pages.start()).get()
        );
    });
}

/// Prints a line of the file's runs in debugfs: bytes, the end not included.
pub(crate) fn show_run(Run { range, visibility }: &Run, out: &SeqFile) {
    seq_print!(
        out,
        "{:#x}-{:#x} {}\n",
        PAGE.offset_of(range.start()).get(),
        PAGE.offset_of(range.end()).get(),
        match visibility {
            Visibility::Private => "private",
            Visibility::Shared => "shared",
        }
    );
}
