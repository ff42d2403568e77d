// SPDX-License-Identifier: GPL-2.0

//! Moving a page of a file to other memory, as memory management asks for: compaction, another NUMA
//! node, memory that is taken offline or is about to fail.
//!
//! Memory management replaces the host's mappings. Guests lose theirs inside an
//! invalidation, which ends when the file has the new page: both fault it in again.
//!
//! C header: [`include/linux/migrate.h`](srctree/include/linux/migrate.h)

use crate::{
    bindings,
    fs::{
        address_space::{
            InvalidateGuard,
            Shared, //
        },
        inode::{
            clip,
            GmemInode, //
        }, //
    },
    kvm::{
        mmu::InvalidateSpan,
        platform, //
    },
    mm::folio::Frame,
    trace, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use gmem_types::{
    platform::Platform,
    range::PageIndex, //
};
use kernel::{
    error::to_result,
    prelude::*, //
};

/// A page that is being moved. No guest has it, nor the host in its page tables, and none gets it
/// while this exists.
pub struct Source<'m> {
    folio: NonNull<bindings::folio>,
    _page: PhantomData<&'m ()>,
}

/// The memory that it is moved to, which holds its last owner's bytes.
pub struct Destination<'m> {
    folio: NonNull<bindings::folio>,
    _page: PhantomData<&'m ()>,
}

/// All bytes of the page are in its new memory. Only what puts them there makes one.
pub struct Moved<'m>(PhantomData<&'m ()>);

impl<'m> Source<'m> {
    #[cfg(CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST)]
    pub(crate) fn as_ptr(&self) -> *mut bindings::folio {
        self.folio.as_ptr()
    }

    /// Copies all bytes. Nobody but the host has a part in the pages of a file that says that they
    /// can be moved, so the host may.
    ///
    /// # Errors
    ///
    /// `EHWPOISON` if there is a byte that cannot be read.
    #[inline]
    pub fn copy_to(self, to: Destination<'m>) -> Result<Moved<'m>> {
        // SAFETY: Both folios are valid and locked as long as `'m`, the second is nobody else's, and
        // they are of one size.
        to_result(unsafe { bindings::gmem_folio_copy(to.folio.as_ptr(), self.folio.as_ptr()) })?;
        Ok(Moved(PhantomData))
    }
}

/// Moves a page of a file that can have its pages moved to the memory of `to`. `vendor` moves the
/// bytes.
///
/// The folio is locked, so the invalidate lock must not be waited for: its holder may be waiting for
/// the folio. With the lock held shared, who holds it exclusively finds each folio where it was.
///
/// # Errors
///
/// `EAGAIN` if somebody has a reference to the page, or holds the invalidate lock exclusively;
/// `EBUSY` if the page cannot be moved; what `vendor` returns. The file has the page as before then.
///
/// # Safety
///
/// Both folios must be valid, locked by the caller, and of one size. `from` must be in the mapping of
/// `inode` and not be mapped by the host, and the caller have one reference to it. `to` must be
/// nobody else's.
pub(crate) unsafe fn migrate(
    inode: &GmemInode,
    from: NonNull<bindings::folio>,
    to: NonNull<bindings::folio>,
    vendor: impl for<'m> FnOnce(Option<Platform>, Source<'m>, Destination<'m>) -> Result<Moved<'m>>,
) -> Result {
    // SAFETY: By the contract of this function.
    let (at, old, new) = unsafe {
        (
            // CAST: An index is an unsigned long, which has 64 bits here.
            PageIndex::new(bindings::gmem_folio_index(from.as_ptr()) as u64),
            bindings::gmem_folio_pfn(from.as_ptr()),
            bindings::gmem_folio_pfn(to.as_ptr()),
        )
    };
    let result = match InvalidateGuard::try_new(inode) {
        Some(guard) => {
            // SAFETY: By the contract of this function.
            let result = unsafe { migrate_locked(&guard, at, from, to, vendor) };
            for file in inode.files(&guard) {
                file.vm().count_migration(result.is_ok());
            }
            result
        }
        None => Err(EAGAIN),
    };
    trace::migrate(|| {
        let errno = result.as_ref().err().map_or(0, |error| error.to_errno());
        (inode.number(), inode.offset_of(at), old, new, errno)
    });
    result
}

/// [`migrate`] with the lock held.
///
/// # Safety
///
/// That of [`migrate`]; `at` is the index of `from`.
unsafe fn migrate_locked(
    guard: &InvalidateGuard<'_, Shared>,
    at: PageIndex,
    from: NonNull<bindings::folio>,
    to: NonNull<bindings::folio>,
    vendor: impl for<'m> FnOnce(Option<Platform>, Source<'m>, Destination<'m>) -> Result<Moved<'m>>,
) -> Result {
    let inode = guard.inode();
    let range = clip(inode, at.get(), at.get().saturating_add(1)).ok_or(EINVAL)?;

    // What is known beforehand costs no guest its mapping.
    // SAFETY: The folio is valid and locked, which keeps others from what is remembered of it, as the
    // invalidate lock keeps out those who hold that exclusively.
    unsafe {
        let frame = Frame::from_raw(from);
        let failed = bindings::gmem_folio_hwpoison(from.as_ptr());
        if failed || frame.is_tied() || platform::is_assigned(&frame) {
            return Err(EBUSY);
        }
        // The caller's reference is the one.
        if bindings::gmem_folio_excess_refs(from.as_ptr(), 1) != 0 {
            return Err(EAGAIN);
        }
    }

    let span = InvalidateSpan::begin(guard, range);
    // What became of the mappings of a VM that has died of it is not known.
    if span.zap().is_dead() {
        return Err(EBUSY);
    }
    let (source, destination) = (
        Source {
            folio: from,
            _page: PhantomData,
        },
        Destination {
            folio: to,
            _page: PhantomData,
        },
    );
    let Moved(_) = vendor(inode.platform(), source, destination)?;
    // Whoever has got a reference since, by looking into the page cache, has it to the old page.
    // SAFETY: By the contract of this function. All bytes are there.
    to_result(unsafe { bindings::gmem_folio_replace(to.as_ptr(), from.as_ptr()) })
}
