// SPDX-License-Identifier: GPL-2.0

//! Moving a page of a file to other memory, as memory management asks for: compaction, another NUMA
//! node, memory that is taken offline or is about to fail.
//!
//! Memory management replaces the host's mappings. Guests lose theirs inside an
//! invalidation, which ends when the file has the new page: both fault it in again. A page in an S-EPT
//! stays there: taking it out would destroy it.
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
        hardware::{
            Relocation,
            Rmp,
            Unmoved, //
        },
        mmu::InvalidateSpan,
        platform, //
    },
    mm::folio::{
        Assignment,
        Frame, //
    },
    trace, //
};
use core::{
    cell::Cell,
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

/// A page that is being moved. No guest has it in page tables of the host's, nor the host in theirs, and
/// none gets it while this exists. A guest may have it in its S-EPT, or where only a hypervisor sees it.
pub struct Source<'m> {
    folio: NonNull<bindings::folio>,
    /// To whom the page was given, which its platform agrees with.
    given: Option<Assignment>,
    span: &'m InvalidateSpan<'m>,
    /// Whether the old memory does not have the bytes any more, whatever becomes of the evidence.
    gone: &'m Cell<bool>,
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

    /// The frame that the page is in, with its record.
    pub fn frame(&self) -> Frame<'_> {
        // SAFETY: The folio is valid and locked as long as `'m`.
        unsafe { Frame::from_raw(self.folio) }
    }

    /// Whether the page was given to a platform, which has to move it.
    pub fn is_given(&self) -> bool {
        self.given.is_some()
    }

    /// Whether the page was given to a platform, or a guest can have it in page tables of a platform
    /// for which `keeps` is so.
    fn may_be_kept(&self, keeps: impl Fn(Platform) -> bool) -> bool {
        self.is_given() || self.span.any_platform(keeps)
    }

    /// Copies all bytes of a page in which nobody but the host has a part.
    ///
    /// # Errors
    ///
    /// `EHWPOISON` if there is a byte that cannot be read; `EBUSY` if the page was given to a platform,
    /// or if a guest can have it in page tables that the host does not see, or in an S-EPT.
    #[inline]
    pub fn copy_to(self, to: Destination<'m>) -> Result<Moved<'m>> {
        if self.may_be_kept(|platform| platform.guest_decides() || platform.sept().is_some()) {
            return Err(EBUSY);
        }
        self.copy(to)
    }

    fn copy(self, to: Destination<'m>) -> Result<Moved<'m>> {
        // SAFETY: Both folios are valid and locked as long as `'m`, the second is nobody else's, and
        // they are of one size.
        to_result(unsafe { bindings::gmem_folio_copy(to.folio.as_ptr(), self.folio.as_ptr()) })?;
        Ok(Moved(PhantomData))
    }

    /// Has the hypervisor move a page that a guest has in page tables that the host does not see, owned
    /// or shared. The guest has the page at its address before and after, and waits meanwhile. A page
    /// that no guest has is copied.
    ///
    /// # Errors
    ///
    /// What the hypervisor returns; `EHWPOISON` if there is a byte that cannot be read; `EBUSY` if a
    /// guest can have the page elsewhere.
    pub fn move_by_hypervisor(self, to: Destination<'m>) -> Result<Moved<'m>> {
        if self.may_be_kept(|platform| platform.sept().is_some()) {
            return Err(EBUSY);
        }
        // SAFETY: Both folios are valid and locked as long as `'m`.
        let (old, new) = unsafe { (Frame::from_raw(self.folio), Frame::from_raw(to.folio)) };
        if !self.span.move_page(old.pfn(), new.pfn())? {
            return self.copy(to);
        }
        self.gone.set(true);
        Ok(Moved(PhantomData))
    }

    /// Has the platform move a page that a guest has in its S-EPT. The guest has the page at its address
    /// before and after, and does not accept it again. A page that no guest has there is copied: none
    /// gets it there meanwhile.
    ///
    /// # Errors
    ///
    /// `EBUSY` if the platform does not move the page, or if a guest can have it elsewhere; `EIO` if the
    /// VM has died of it; `EHWPOISON` if there is a byte that cannot be read; `ENOMEM`.
    pub fn move_in_sept(self, to: Destination<'m>) -> Result<Moved<'m>> {
        if self.may_be_kept(Platform::guest_decides) {
            return Err(EBUSY);
        }
        // SAFETY: Both folios are valid and locked as long as `'m`.
        let (old, new) = unsafe { (Frame::from_raw(self.folio), Frame::from_raw(to.folio)) };
        self.span.prepare_to_move(&new)?;
        match self.span.relocate(&old, &new) {
            Ok(true) => {}
            Ok(false) => return self.copy(to),
            Err(Unmoved::Stays) => return Err(EBUSY),
            // Where the page is has not changed, and nobody can use it there.
            Err(Unmoved::Lost) => {
                self.span.kill();
                return Err(EIO);
            }
        }
        self.gone.set(true);
        Ok(Moved(PhantomData))
    }

    /// Has the platform move a page that it was given. If the guest loses the page, so does everybody:
    /// the VMs that have the file are dead.
    ///
    /// # Errors
    ///
    /// `EBUSY` if the page was not given to a platform, or if that does not move it; `EIO` if the guest
    /// has lost it.
    pub fn relocate_to<R: Rmp>(self, to: Destination<'m>) -> Result<Moved<'m>> {
        let given = self.given.ok_or(EBUSY)?;
        let file = self
            .span
            .files()
            .find(|file| R::asid(file.vm()) == Ok(given.asid))
            .ok_or(EBUSY)?;
        // SAFETY: Both folios are valid and locked as long as `'m`, and nobody has the second.
        let (old, new) = unsafe { (Frame::from_raw(self.folio), Frame::from_raw(to.folio)) };
        let page = Relocation::new(file.vm(), given.gfn, &old, &new);
        match R::relocate(&page) {
            Err(Unmoved::Stays) => return Err(EBUSY),
            // Nobody but the platform knows where the guest has the page.
            Ok(()) if R::lookup(&new).is_ok_and(|entry| entry.assigned) => {}
            Ok(()) | Err(Unmoved::Lost) => {
                self.span.kill();
                old.leak();
                return Err(EIO);
            }
        }
        self.gone.set(true);
        Ok(Moved(PhantomData))
    }
}

/// Moves a page of a file that can have its pages moved to the memory of `to`. `vendor` moves the
/// bytes. If the caller must not wait, a page that a platform has to move stays.
///
/// The folio is locked, so the invalidate lock must not be waited for: its holder may be waiting for
/// the folio. With the lock held shared, who holds it exclusively finds each folio where it was.
///
/// # Errors
///
/// `EAGAIN` if somebody has a reference to the page, or holds the invalidate lock exclusively, or if it
/// takes a wait; `EBUSY` if the page cannot be moved; what `vendor` returns. The file has the page as
/// before then.
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
    may_wait: bool,
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
            let result = unsafe { migrate_locked(&guard, at, from, to, may_wait, vendor) };
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
    may_wait: bool,
    vendor: impl for<'m> FnOnce(Option<Platform>, Source<'m>, Destination<'m>) -> Result<Moved<'m>>,
) -> Result {
    let inode = guard.inode();
    let range = clip(inode, at.get(), at.get().saturating_add(1)).ok_or(EINVAL)?;

    // SAFETY: Both folios are valid and locked, which keeps others from what is remembered of them, as
    // the invalidate lock keeps out those who hold that exclusively.
    let (old, new) = unsafe { (Frame::from_raw(from), Frame::from_raw(to)) };

    // What is known beforehand costs no guest its mapping.
    // SAFETY: The folio is valid.
    let failed = unsafe { bindings::gmem_folio_hwpoison(from.as_ptr(), 0, 1) } == 0;
    let given = old.assignment();
    if failed || old.is_tied() || platform::is_assigned(&old) != given.is_some() {
        return Err(EBUSY);
    }
    let in_sept = inode.platform().and_then(Platform::sept).is_some();
    if (given.is_some() || in_sept) && !may_wait {
        return Err(EAGAIN);
    }
    if let Some(given) = given {
        for file in inode.files(guard) {
            if !platform::may_move(file.vm(), given.gfn) {
                return Err(EBUSY);
            }
        }
    }
    // The caller's reference is the one.
    // SAFETY: The folio is valid.
    if unsafe { bindings::gmem_folio_excess_refs(from.as_ptr(), 1) } != 0 {
        return Err(EAGAIN);
    }

    let span = InvalidateSpan::begin(guard, range);
    // What became of the mappings of a VM that has died of it is not known.
    if span.zap_to_move().is_dead() {
        return Err(EBUSY);
    }
    let gone = Cell::new(false);
    let (source, destination) = (
        Source {
            folio: from,
            given,
            span: &span,
            gone: &gone,
        },
        Destination {
            folio: to,
            _page: PhantomData,
        },
    );
    let moved = match vendor(inode.platform(), source, destination) {
        // Not if the vendor has only dropped the evidence: the platform has the new memory then.
        Err(error) if !gone.get() => Err(error),
        // Whoever has got a reference since, by looking into the page cache, has it to the old page,
        // and finds that out when it gets the lock. It matters where the page could yet stay.
        // SAFETY: By the contract of this function. All bytes are there.
        _ => to_result(unsafe {
            bindings::gmem_folio_replace(to.as_ptr(), from.as_ptr(), gone.get())
        }),
    };
    // The memory that is free now, which may not be the host's if a platform failed.
    let free = if moved.is_ok() { &old } else { &new };
    if platform::is_assigned(free) {
        free.leak();
    }
    moved
}
