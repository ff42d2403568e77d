// SPDX-License-Identifier: GPL-2.0

//! The steps of a conversion. Each is a value that only the step before makes, and that the next
//! one consumes, so no step can be left out, come twice, or come early.
//!
//! src/ decides what to change and what to do to the bytes, and answers the questions for its vendor.
//! This file looks up which pages a step is about, and checks what must hold for all of them. A wrong
//! answer costs the guest's data, or ends in an error.
//!
//! | step | makes | is evidence that |
//! |---|---|---|
//! | [`plan`](Turn::plan) | [`Planned`] | the action keeps the policy |
//! | [`accept`](Conversion::accept) | [`Accepted`] | the vendor was asked about each page |
//! | [`reserve`](Conversion::reserve) | [`Reserved`] | storing the attributes cannot fail |
//! | [`split`](Conversion::split) | [`Split`] | no folio has pages that change, and others |
//! | [`quiesce`](Conversion::quiesce) | [`Quiesced`] | the host has none of the pages that become private |
//! | [`check`](Conversion::check) | [`Checked`] | no memory that will be written had failed |
//! | [`invalidate`](Conversion::invalidate) | [`Invalidating`] | no guest gets a page of the range |
//! | [`ask`](Conversion::ask) | [`Asked`] | no guest keeps a page that becomes shared |
//! | [`zap`](Conversion::zap) | [`Zapped`] | the old mappings are gone, and no VM died of it |
//! | [`apply`](Conversion::apply) | [`Converted`] | each page was given up, and its bytes are as promised |
//! | [`commit`](Conversion::commit) | [`Done`] | the attributes are stored |
//!
//! The lock is taken for one conversion: it comes with one [`Turn`], which planning consumes. The
//! ioctl returns 0 only for a [`Done`].

use crate::{
    attribute_map::Reservation,
    fs::{
        address_space::{
            check_killed,
            Exclusive,
            InvalidateGuard,
            Refused, //
        },
        inode::GmemInode, //
    },
    kvm::{
        mmu::{
            InvalidateSpan,
            Kinds,
            Mapped,
            Zapped, //
        },
        platform::{
            self,
            Fatal,
            GivenUp,
            Written, //
        },
        vm::Vm, //
    },
    mm::folio::FolioRef,
    task::is_killed, //
};
use core::{
    cell::OnceCell,
    marker::PhantomData, //
};
use gmem_policy::{
    plan::{
        Change,
        Plan, //
    },
    request::Request, //
};
use gmem_types::{
    content::{
        Action,
        Content, //
    },
    platform::Platform,
    range::{
        PageIndex,
        PageRange, //
    },
    visibility::Visibility, //
};
use kernel::prelude::*;

/// The right to convert once, while the file `'f` is locked for it.
pub struct Turn<'c, 'f> {
    guard: &'c InvalidateGuard<'f, Exclusive>,
    /// Where planning stores the work, so that no step has to move it.
    work: &'c OnceCell<Work<'c, 'f>>,
}

/// Evidence that a request on the file `'f` was carried out: the attributes are stored, or there
/// was nothing to do. Only this file makes one, and it cannot be kept for another request.
#[must_use = "an ioctl that converts returns it"]
pub struct Done<'f>(PhantomData<&'f GmemInode>);

/// The result of planning.
pub enum Planning<'c, 'f> {
    /// There is nothing to do.
    Nothing(Done<'f>),
    /// There is something to do.
    Change(Conversion<'c, 'f, Planned>),
}

/// A conversion that has come to a step.
#[must_use = "a conversion that is dropped changes nothing more"]
pub struct Conversion<'c, 'f, Step> {
    work: &'c Work<'c, 'f>,
    /// [`None`] if no attribute changes and only contents do.
    reservation: Option<Reservation<'c>>,
    step: Step,
}

/// Step 5 is done. Only this file makes the values of these types.
pub struct Planned(());
/// Step 6 is done.
pub struct Accepted(());
/// Step 7 is done, but for folios.
pub struct Reserved(());
/// Step 7 is done.
pub struct Split(());
/// Step 8 is done, but for contents.
pub struct Quiesced(());
/// Step 8 is done.
pub struct Checked(());
/// Step 9a is done.
pub struct Invalidating<'s>(&'s InvalidateSpan<'s>);
/// Step 9b is done.
pub struct Asked<'s>(&'s InvalidateSpan<'s>);
/// Step 10 is done.
pub struct Converted(());

/// What is converted, and the lock that is held for it.
struct Work<'c, 'f> {
    guard: &'c InvalidateGuard<'f, Exclusive>,
    change: Change,
    /// The range from its first folio on. No folio is added as long as the file is locked.
    populated: Option<PageRange>,
}

impl<'c> Work<'c, '_> {
    fn range(&self) -> PageRange {
        self.change.range()
    }

    fn to(&self) -> Visibility {
        self.change.to()
    }

    /// Returns the allocated part of the pages that change. There may be holes.
    ///
    /// The plan says whether all of the range changes. If it is wrong, more pages are unmapped than
    /// necessary.
    #[inline]
    fn changing(&self) -> impl Iterator<Item = PageRange> + Clone + 'c {
        let (from, all) = (self.to().opposite(), self.change.changes_all());
        self.guard.parts(self.populated, from, all)
    }

    fn refused(&self, error: Error) -> Refused {
        let at = self.range().start();
        Refused { error, at }
    }

    /// Whether the file converts in place, the range lies in it, and the plan has missed no page
    /// that changes.
    ///
    /// Faults on files that do not convert take no lock, so a page of such a file could be given to
    /// a platform while a conversion writes it.
    #[inline]
    fn is_sound(&self) -> bool {
        let inode = self.guard.inode();
        let (range, whole) = (self.range(), inode.geometry().whole());
        let in_file = range.intersect(&whole) == Some(range);

        inode.converts_in_place()
            && in_file
            && match self.change.store() {
                Some(store) => store == range,
                None => self.guard.is_all(&range, self.to()),
            }
    }

    /// Calls `f` for each allocated folio for which `work` returns true; its argument is whether
    /// the folio's attribute changes. Folios that were never used hold stale bytes of the host, and
    /// read as zeroes at their first use: they are not touched.
    ///
    /// `goes_on` is called at least before each batch of folios.
    #[inline]
    fn for_each_folio(
        &self,
        goes_on: impl Fn(PageIndex) -> Result<(), Refused>,
        work: impl Fn(bool) -> bool,
        mut f: impl FnMut(&FolioRef<'_>, bool) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let Some(populated) = self.populated.filter(|_| work(true) || work(false)) else {
            return Ok(());
        };
        for run in self.guard.runs(&populated) {
            let changes = run.visibility != self.to();
            goes_on(run.range.start())?;
            if !work(changes) {
                continue;
            }
            let mut folios = self.guard.folios(&run.range);
            while let Some(batch) = folios.next_batch() {
                goes_on(run.range.start())?;
                for folio in batch.filter(|folio| folio.is_allocated()) {
                    f(&folio, changes)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether the action keeps the policy: ZERO zeroes, and PRESERVE leaves pages alone.
fn keeps_promise(action: Action, content: Content) -> bool {
    match content {
        Content::Zero => action == Action::Zero,
        Content::Preserve => action == Action::Leave,
        Content::None => true,
    }
}

impl GmemInode {
    /// Step 4: calls `f` with the invalidate lock held for writing, for one conversion; sleeps.
    ///
    /// # Errors
    ///
    /// `EINTR` if a signal that kills the task comes first; those of `f`.
    #[inline]
    pub fn locked_to_convert<'f, R, E: From<Error>>(
        &'f self,
        f: impl FnOnce(Turn<'_, 'f>) -> Result<R, E>,
    ) -> Result<R, E> {
        let guard = &InvalidateGuard::new_killable(self)?;
        let work = &OnceCell::new();
        f(Turn { guard, work })
    }
}

impl<'c, 'f> Turn<'c, 'f> {
    /// Step 5: determines what there is to do.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` if `action` does not keep the policy. `EINVAL` for a request that does not fit
    /// this file, and for a file that does not convert in place.
    #[inline]
    pub fn plan(self, request: &Request, action: Action) -> Result<Planning<'c, 'f>, Refused> {
        let at = request.range().start();

        if !keeps_promise(action, request.content()) {
            let error = EOPNOTSUPP;
            return Err(Refused { error, at });
        }
        let plan = Plan::new(request, action, self.guard);
        self.begin(&plan, request, action)
    }

    /// The plan is accepted only if it fits the request and the current state of the file.
    #[inline]
    pub(crate) fn begin(
        self,
        plan: &Plan,
        request: &Request,
        action: Action,
    ) -> Result<Planning<'c, 'f>, Refused> {
        let Self { guard, work } = self;

        match *plan {
            Plan::Nothing
                if action == Action::Leave && guard.is_all(&request.range(), request.to()) =>
            {
                Ok(Planning::Nothing(Done(PhantomData)))
            }
            Plan::Change(change) if change.request() == *request && change.action() == action => {
                let work = work.get_or_init(|| Work {
                    guard,
                    change,
                    populated: guard.populated(&change.range()),
                });
                if !work.is_sound() {
                    return Err(work.refused(EINVAL));
                }
                Ok(Planning::Change(Conversion {
                    work,
                    reservation: None,
                    step: Planned(()),
                }))
            }
            _ => Err(Refused {
                error: EINVAL,
                at: request.range().start(),
            }),
        }
    }
}

impl<'c, 'f, Step> Conversion<'c, 'f, Step> {
    #[inline]
    fn then<Next>(self, step: Next) -> Conversion<'c, 'f, Next> {
        Conversion {
            work: self.work,
            reservation: self.reservation,
            step,
        }
    }
}

impl<'c, 'f> Conversion<'c, 'f, Planned> {
    /// Returns how many pages will change between private and shared, and in how many runs they
    /// lie.
    ///
    /// # Errors
    ///
    /// `EINTR` if the task is being killed.
    #[inline]
    pub fn count(&self) -> Result<(u64, u64), Refused> {
        self.work
            .change
            .count(self.work.guard, || !is_killed())
            .ok_or_else(|| self.work.refused(EINTR))
    }

    /// Step 6: calls `question`, if there is one, for each allocated page of the range: can the
    /// platform keep the policy for it?
    ///
    /// # Errors
    ///
    /// The first that `question` returns; `EINTR` if the task is being killed.
    #[inline]
    pub fn accept(
        self,
        question: Option<impl FnMut(&FolioRef<'_>) -> Result>,
    ) -> Result<Conversion<'c, 'f, Accepted>, Refused> {
        if let Some(mut question) = question {
            self.work.for_each_folio(
                check_killed,
                |_| true,
                |folio, _| {
                    let at = folio.pages().start();
                    question(folio).map_err(|error| Refused { error, at })
                },
            )?;
        }
        Ok(self.then(Accepted(())))
    }
}

impl<'c, 'f> Conversion<'c, 'f, Accepted> {
    /// Step 7: allocates memory for the attributes.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    #[inline]
    pub fn reserve(mut self) -> Result<Conversion<'c, 'f, Reserved>, Refused> {
        let work = self.work;
        if let Some(store) = work.change.store() {
            let reservation = work.guard.reserve(&store, work.to());
            self.reservation = Some(reservation.map_err(|error| work.refused(error))?);
        }
        Ok(self.then(Reserved(())))
    }
}

impl<'c, 'f> Conversion<'c, 'f, Reserved> {
    /// Step 7, folios: splits those that the pages that change are only a part of. At most there is
    /// one at each end of the range, as a folio is private or shared as a whole; and stays so. They are
    /// split at the ends, and otherwise left as large as possible.
    ///
    /// # Errors
    ///
    /// `EAGAIN` with the first page of a folio that is held elsewhere, `ENOMEM`.
    #[inline]
    pub fn split(self) -> Result<Conversion<'c, 'f, Split>, Refused> {
        let (guard, range) = (self.work.guard, self.work.range());
        let inode = guard.inode();

        if inode.has_large_folios() {
            let changes = |at| inode.visibility(at) != self.work.to();
            guard.split_around(&range, changes(range.start()), changes(range.last()))?;
        }
        Ok(self.then(Split(())))
    }
}

impl<'c, 'f> Conversion<'c, 'f, Split> {
    /// Step 8: takes pages that become private from the host. After this nobody else holds them.
    ///
    /// # Errors
    ///
    /// `EAGAIN` with the first page that is held elsewhere, `EINTR` if the task is being killed. Host
    /// mappings are gone then, too; they fault back.
    #[inline]
    pub fn quiesce(self) -> Result<Conversion<'c, 'f, Quiesced>, Refused> {
        // Only pages that become private have host mappings to lose.
        if self.work.to() == Visibility::Private && self.work.change.changes_attributes() {
            self.work.guard.quiesce(self.work.changing())?;
        }
        Ok(self.then(Quiesced(())))
    }
}

impl<'c, 'f> Conversion<'c, 'f, Quiesced> {
    /// Step 8, contents: looks for failed memory among the pages that will be written.
    ///
    /// # Errors
    ///
    /// `EHWPOISON` with the first such page, `EINTR` if the task is being killed.
    #[inline]
    pub fn check(self) -> Result<Conversion<'c, 'f, Checked>, Refused> {
        let change = self.work.change;
        self.work.for_each_folio(
            check_killed,
            |_| change.action() != Action::Leave,
            |folio, _| {
                let error = EHWPOISON;
                match folio.poisoned() {
                    Some(at) => Err(Refused { error, at }),
                    None => Ok(()),
                }
            },
        )?;
        Ok(self.then(Checked(())))
    }
}

impl<'f> Conversion<'_, 'f, Checked> {
    /// Step 9a: calls `f` while no guest gets a page of the range.
    #[inline]
    pub fn invalidate<R>(
        self,
        f: impl for<'s> FnOnce(Conversion<'s, 'f, Invalidating<'s>>) -> R,
    ) -> R {
        let span = InvalidateSpan::begin(self.work.guard, self.work.range());
        f(Conversion {
            work: self.work,
            reservation: self.reservation,
            step: Invalidating(&span),
        })
    }
}

impl<'s, 'f> Conversion<'s, 'f, Invalidating<'s>> {
    /// Step 9b: calls `question`, if there is one, for each allocated page at each guest frame,
    /// with the VM's `mmu_lock` held: the answers stay true until the invalidation ends.
    ///
    /// # Errors
    ///
    /// The first that `question` returns; `EPERM` for a page that becomes shared and that a guest
    /// keeps; `EINTR` if the task is being killed, for the last time.
    #[inline]
    pub fn ask(
        self,
        question: Option<impl FnMut(&Mapped<'_>) -> Result>,
    ) -> Result<Conversion<'s, 'f, Asked<'s>>, Refused> {
        let Invalidating(span) = self.step;
        span.ask(self.work.guard, self.work.to(), question)?;
        check_killed(self.work.range().start())?;
        Ok(self.then(Asked(span)))
    }
}

impl<'s, 'f> Conversion<'s, 'f, Asked<'s>> {
    /// Step 9c: removes the old mappings of the pages that change.
    ///
    /// A private page that already is private keeps its mapping: on some platforms zapping it would
    /// destroy it, on the others the guest would fault without need.
    ///
    /// # Errors
    ///
    /// `EIO` if a VM is dead, with the first page that its platform still has. The VM may have died
    /// of this, or earlier, and may no longer have a slot that shows the pages.
    #[inline]
    pub fn zap(self) -> Result<Conversion<'s, 'f, Zapped<'s>>, Refused> {
        let Asked(span) = self.step;
        let guard = self.work.guard;
        let old = self.work.to().opposite();

        span.split(guard, self.work.changing());
        let zapped = span.zap_pages(Kinds::Only(old), self.work.changing());
        if zapped.is_dead() || span.any_vm(Vm::is_dead) {
            let first = span.first_kept(guard, self.work.to());
            let at = first.unwrap_or(self.work.range().start());
            return Err(Refused { error: EIO, at });
        }
        Ok(self.then(zapped))
    }
}

impl<'s, 'f> Conversion<'s, 'f, Zapped<'s>> {
    /// Step 10: makes the platform give up the pages that become shared, and carries out the policy
    /// on contents. This cannot be undone, and no page is left half done.
    ///
    /// `make_shared` makes the platform give a page up; the result is checked afterwards. `write`
    /// does what the plan says; its return value is evidence of what it has done.
    ///
    /// # Errors
    ///
    /// `EIO` with a page that the platform did not give up, or whose contents are not as promised.
    /// That page is lost, and the VMs are dead.
    #[inline]
    pub fn apply(
        self,
        mut make_shared: impl FnMut(&FolioRef<'_>) -> Result<(), Fatal>,
        mut write: impl for<'p> FnMut(GivenUp<'p>, Action) -> Result<Written<'p>, Fatal>,
    ) -> Result<Conversion<'s, 'f, Converted>, Refused> {
        let change = self.work.change;
        let span = self.step.span();
        // A vendor can give a page to an RMP whatever its VM is.
        let owns_pages = platform::has_rmp() || span.any_platform(Platform::owns_pages);
        let leaves = |changes| changes && owns_pages && change.to() == Visibility::Shared;

        let mut convert = |folio: &FolioRef<'_>, changes| {
            if leaves(changes) {
                make_shared(folio)?;
            }
            // Whatever the vendor says, the host does not write a page that a platform has.
            let page = span.given_up(folio, change.to())?;
            match change.action() {
                Action::Leave => Ok(()),
                action if write(page, action)?.is(action) => Ok(()),
                _ => Err(Fatal),
            }
        };
        self.work.for_each_folio(
            // After the point of no return.
            |_| Ok(()),
            |changes| leaves(changes) || change.action() != Action::Leave,
            |folio, changes| {
                convert(folio, changes).map_err(|Fatal| {
                    span.lose(folio);
                    let at = folio.pages().start();
                    Refused { error: EIO, at }
                })
            },
        )?;
        Ok(self.then(Converted(())))
    }
}

impl<'f> Conversion<'_, 'f, Converted> {
    /// Step 11: stores the attributes. Cannot fail.
    #[inline]
    pub fn commit(self) -> Done<'f> {
        if let Some(reservation) = self.reservation {
            reservation.store();
        }
        Done(PhantomData)
    }
}
