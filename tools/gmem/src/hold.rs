// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Keeping pages shared while this process uses them.
//!
//! A load or store at a private page is `SIGBUS`. Checking first does not help: the page can become
//! private between the check and the access. So each page has a count of its users.
//! [`GuestMemfd::convert`] refuses with `EAGAIN` to make a page private whose count is not 0, as
//! the kernel does for its own references.

use crate::{
    abi::MemoryAttributes2,
    attributes::{
        Run,
        Visibility, //
    },
    file::GuestMemfd,
    mapping::AccessError, //
};
use std::{
    io,
    ops::Range,
    sync::{
        atomic::{
            AtomicU32,
            Ordering, //
        },
        Arc,
        OnceLock,
        PoisonError,
        RwLock,
        RwLockReadGuard,
        RwLockWriteGuard, //
    },
};

/// Bytes of the file that share one count. A larger page of the host has several counts, and a
/// conversion checks all of them.
const GRAIN: u64 = 0x1000;
/// How many counts are allocated at once: those of 16 MiB of file, in 16 KiB.
const COUNTS: u64 = 0x1000;

/// The kernel has reported the page as shared, and this process has requested no change since.
const SHARED: u32 = 1 << 31;
/// The number of users of the page.
const USERS: u32 = SHARED - 1;

type Counts = [AtomicU32; COUNTS as usize];

/// Who uses which pages of a file.
///
/// Locking: counts go up under the lock for reading, and a conversion to private holds the lock for
/// writing from before it looks at the counts until the kernel has converted. Counts go down
/// without the lock. No task waits for a count while it holds the lock.
pub(crate) struct Holds {
    /// Grains of the file.
    grains: u64,
    /// Parts that were never used have no counts.
    counts: OnceLock<Box<[OnceLock<Box<Counts>>]>>,
    lock: RwLock<()>,
}

/// Keeps pages in use from becoming private, see [`Holds::converting`].
pub(crate) struct Converting<'a> {
    holds: &'a Holds,
    _guard: RwLockWriteGuard<'a, ()>,
}

impl Holds {
    pub(crate) fn new(size: u64) -> Self {
        Self {
            grains: size.div_ceil(GRAIN),
            counts: OnceLock::new(),
            lock: RwLock::new(()),
        }
    }

    /// The count of a grain inside the file. It is allocated if need be.
    fn count(&self, grain: u64) -> &AtomicU32 {
        let counts = self.counts.get_or_init(|| {
            let parts = self.grains.div_ceil(COUNTS);
            (0..parts).map(|_| OnceLock::new()).collect()
        });
        let part = counts[(grain / COUNTS) as usize]
            .get_or_init(|| Box::new([const { AtomicU32::new(0) }; COUNTS as usize]));
        &part[(grain % COUNTS) as usize]
    }

    /// Calls `visit` for the grains of `range` that have a count, in order, until it returns
    /// [`Some`].
    fn find<T>(
        &self,
        range: &Range<u64>,
        mut visit: impl FnMut(u64, &AtomicU32) -> Option<T>,
    ) -> Option<T> {
        let counts = self.counts.get()?;
        let grains = grains(range);
        let parts = grains.start / COUNTS..grains.end.div_ceil(COUNTS);
        for part in parts {
            let Some(counts) = counts.get(part as usize).and_then(OnceLock::get) else {
                continue;
            };
            let first = part * COUNTS;
            let within = grains.start.max(first)..grains.end.min(first + COUNTS);
            for grain in within {
                if let Some(found) = visit(grain, &counts[(grain - first) as usize]) {
                    return Some(found);
                }
            }
        }
        None
    }

    fn reading(&self) -> RwLockReadGuard<'_, ()> {
        // A panic cannot leave the data behind the lock half done.
        self.lock.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more user of the pages of `range`, if all of them are shared: `ask` returns what the
    /// kernel has at an offset. Else returns the error, and nobody is counted.
    fn hold(
        &self,
        range: &Range<u64>,
        mut ask: impl FnMut(u64) -> io::Result<Run>,
    ) -> Result<(), AccessError> {
        if range.start > range.end || range.end > self.grains.saturating_mul(GRAIN) {
            return Err(AccessError::OutOfRange);
        }
        let grains = grains(range);
        let _reading = self.reading();
        // The kernel's answer covers the file up to here.
        let mut shared_up_to = 0;
        for grain in grains.clone() {
            let count = self.count(grain);
            let before = count.fetch_add(1, Ordering::Relaxed);
            let fail = |error| {
                self.release(&(grains.start..grain + 1));
                Err(error)
            };
            if before & USERS >= USERS / 2 {
                return fail(AccessError::Os(io::Error::from_raw_os_error(
                    libc::EOVERFLOW,
                )));
            }
            if before & SHARED != 0 {
                continue;
            }
            let offset = grain * GRAIN;
            if offset >= shared_up_to {
                match ask(offset) {
                    Ok(run) if run.visibility == Visibility::Shared => shared_up_to = run.range.end,
                    Ok(_) => {
                        let offset = offset.max(range.start);
                        return fail(AccessError::Refused { offset });
                    }
                    Err(error) => return fail(AccessError::Os(error)),
                }
            }
            // The page cannot become private while it is counted.
            count.fetch_or(SHARED, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Removes one user from the count. All accesses of that user are ordered before a conversion
    /// that finds the count to be 0.
    fn release(&self, grains: &Range<u64>) {
        for grain in grains.clone() {
            self.count(grain).fetch_sub(1, Ordering::Release);
        }
    }

    /// Whether `range` is valid for the kernel: whole pages inside
    /// the file.
    pub(crate) fn covers(&self, range: &Range<u64>) -> bool {
        range.start % GRAIN == 0
            && range.end % GRAIN == 0
            && range.end / GRAIN <= self.grains
            && !range.is_empty()
    }

    /// Blocks new users of pages until the return value is dropped, and returns the first offset in
    /// `range` that is in use.
    pub(crate) fn converting(&self, range: &Range<u64>) -> Result<Converting<'_>, u64> {
        let guard = self.lock.write().unwrap_or_else(PoisonError::into_inner);
        let used = self.find(range, |grain, count| {
            (count.load(Ordering::Acquire) & USERS != 0).then_some(grain * GRAIN)
        });
        match used {
            Some(offset) => Err(offset.max(range.start)),
            None => Ok(Converting {
                holds: self,
                _guard: guard,
            }),
        }
    }
}

impl Converting<'_> {
    /// Forgets the kernel's answers about `range`.
    pub(crate) fn forget(&self, range: &Range<u64>) {
        self.holds.find(range, |_, count| {
            count.fetch_and(!SHARED, Ordering::Relaxed);
            None::<()>
        });
    }
}

/// Bytes in a page of the host.
fn page_size() -> u64 {
    // SAFETY: The call takes a number. It knows this one, so the result is positive.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

/// The grains that have a byte of `range`.
fn grains(range: &Range<u64>) -> Range<u64> {
    match range.is_empty() {
        true => 0..0,
        false => range.start / GRAIN..range.end.div_ceil(GRAIN),
    }
}

/// Pages that stay shared as long as this lives; see [`GuestMemfd::hold`].
///
/// Clones are one hold: the pages are free when the last of them is dropped.
#[derive(Clone, Debug)]
pub struct Hold(
    #[expect(dead_code, reason = "it is there to be dropped")] Arc<Held>, //
);

#[derive(Debug)]
struct Held {
    file: Arc<GuestMemfd>,
    grains: Range<u64>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.file.holds().release(&self.grains);
    }
}

impl GuestMemfd {
    /// Keeps the pages of `range` (byte offsets in the file) shared until the return value is
    /// dropped, for accesses that would get `SIGBUS` otherwise.
    ///
    /// A hold acts in this library like a pin in the kernel: [`convert`](Self::convert) to private
    /// fails with `EAGAIN` and the page's offset if a page is held. So do not wait for a conversion
    /// while you hold one of its pages. While a conversion is in progress, this function waits for
    /// its end.
    ///
    /// The cost is one step for each page of 4 KiB. At the first use of a part of the file, 4 bytes
    /// are allocated for each page, 16 KiB at a time.
    ///
    /// A hold has no effect on conversions that do not go through this object: those of other
    /// processes, and those through another `GuestMemfd` for the same file. It has no effect on
    /// holes and failing memory either.
    ///
    /// # Errors
    ///
    /// [`AccessError::Refused`] for the first page that is private. [`AccessError::OutOfRange`] for
    /// a range that leaves the file. [`AccessError::Os`] if the kernel cannot tell: `ENOTTY` from a
    /// kernel without `KVM_GET_MEMORY_ATTRIBUTES2`.
    pub fn hold(self: &Arc<Self>, range: Range<u64>) -> Result<Hold, AccessError> {
        self.holds().hold(&range, |offset| self.state_at(offset))?;
        Ok(Hold(Arc::new(Held {
            file: self.clone(),
            grains: grains(&range),
        })))
    }

    /// Like [`attributes_at`](Self::attributes_at) for the page that contains `offset`. A file that
    /// does not convert counts as shared to its end: either all of it is shared, or nobody can map
    /// it.
    fn state_at(&self, offset: u64) -> io::Result<Run> {
        let page = offset - offset % page_size();
        let error = match self.attributes_at(page) {
            Err(error) => error,
            run => return run,
        };
        let converts = match error.raw_os_error() {
            // The request has no other error.
            Some(libc::EINVAL) => false,
            // Or the kernel has the ioctl that converts, but not this one.
            Some(libc::ENOTTY) => self.has_conversion(),
            _ => true,
        };
        match converts {
            true => Err(error),
            false => Ok(Run {
                range: page..self.size(),
                visibility: Visibility::Shared,
            }),
        }
    }

    /// Whether the file has the ioctl that converts, whatever it returns for an empty request.
    fn has_conversion(&self) -> bool {
        self.set_memory_attributes(&mut MemoryAttributes2::default()) != Err(libc::ENOTTY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        file::tests::memfd,
        Content,
        ConvertError, //
    };

    const SIZE: u64 = 0x8000;

    /// A file whose pages 2 and 3 are private.
    fn ask(offset: u64) -> io::Result<Run> {
        let (range, visibility) = match offset {
            0..0x2000 => (offset..0x2000, Visibility::Shared),
            0x2000..0x4000 => (offset..0x4000, Visibility::Private),
            _ => (offset..SIZE, Visibility::Shared),
        };
        Ok(Run { range, visibility })
    }

    fn used(holds: &Holds, range: Range<u64>) -> Option<u64> {
        holds.converting(&range).err()
    }

    #[test]
    fn held_pages_are_in_use_until_all_have_let_go() {
        let holds = Holds::new(SIZE);
        assert_eq!(used(&holds, 0..SIZE), None);
        holds.hold(&(0x1800..0x1801), ask).unwrap();
        holds.hold(&(0x1000..0x2000), ask).unwrap();
        assert_eq!(used(&holds, 0..SIZE), Some(0x1000));
        assert_eq!(used(&holds, 0..0x1000), None);
        assert_eq!(used(&holds, 0x2000..SIZE), None);
        holds.release(&(1..2));
        assert_eq!(used(&holds, 0x1000..0x2000), Some(0x1000));
        holds.release(&(1..2));
        assert_eq!(used(&holds, 0x1000..0x2000), None);
    }

    #[test]
    fn a_refused_hold_holds_nothing() {
        let holds = Holds::new(SIZE);
        for (range, first) in [
            (0x1000..0x3000, 0x2000),
            (0x2abc..0x2abd, 0x2abc),
            (0..SIZE, 0x2000),
        ] {
            let error = holds.hold(&range, ask).unwrap_err();
            assert!(matches!(error, AccessError::Refused { offset } if offset == first));
            assert_eq!(used(&holds, 0..SIZE), None);
        }
        let error = holds.hold(&(0..0x1000), |_| Err(io::ErrorKind::Other.into()));
        assert!(error.is_ok(), "the kernel was asked about it before");
        holds.release(&(0..1));
        let error = holds.hold(&(0x5000..0x6000), |_| Err(io::ErrorKind::Other.into()));
        assert!(matches!(error, Err(AccessError::Os(_))));
        assert_eq!(used(&holds, 0..SIZE), None);
    }

    #[test]
    fn what_may_have_become_private_is_asked_again() {
        let holds = Holds::new(SIZE);
        let mut asked = Vec::new();
        let mut hold = |range: Range<u64>| {
            let before = asked.len();
            holds
                .hold(&range, |offset| {
                    asked.push(offset);
                    ask(offset)
                })
                .unwrap();
            holds.release(&grains(&range));
            asked[before..].to_vec()
        };
        assert_eq!(hold(0x4000..0x7000), [0x4000]);
        assert!(hold(0x4000..0x7000).is_empty());
        holds
            .converting(&(0x5000..0x6000))
            .unwrap_or_else(|_| panic!("nobody uses it"))
            .forget(&(0x5000..0x6000));
        assert_eq!(hold(0x4000..0x7000), [0x5000]);
    }

    #[test]
    fn ranges_have_to_be_inside() {
        let holds = Holds::new(SIZE);
        #[expect(clippy::reversed_empty_ranges)]
        let inverted = 0x2000..0x1000;
        for range in [0..SIZE + 1, u64::MAX - 1..u64::MAX, inverted] {
            let error = holds.hold(&range, ask).unwrap_err();
            assert!(matches!(error, AccessError::OutOfRange), "{range:x?}");
        }
        // Nothing is held, so nothing is asked.
        holds.hold(&(0x2800..0x2800), ask).unwrap();
        assert_eq!(used(&holds, 0..SIZE), None);
    }

    #[test]
    fn counts_lie_where_they_belong_in_large_files() {
        let size = 1 << 40;
        let shared = |offset| {
            Ok(Run {
                range: offset..size,
                visibility: Visibility::Shared,
            })
        };
        let holds = Holds::new(size);
        let edge = COUNTS * GRAIN * 7;
        holds.hold(&(edge - 1..edge + 1), shared).unwrap();
        holds.hold(&(size - 1..size), shared).unwrap();
        assert_eq!(used(&holds, 0..size), Some(edge - GRAIN));
        assert_eq!(used(&holds, 0..edge - GRAIN), None);
        assert_eq!(used(&holds, edge..size), Some(edge));
        assert_eq!(used(&holds, edge + GRAIN..size), Some(size - GRAIN));
    }

    #[test]
    fn held_file_is_busy_and_a_free_one_is_up_to_the_kernel() {
        let file = Arc::new(memfd(SIZE));
        let convert = |to| file.convert(0..SIZE, to, Content::Zero);
        let error = |errno, offset| Err(ConvertError { errno, offset });
        let hold = file.hold(0x3100..0x3200).unwrap();
        let again = hold.clone();
        let busy = error(libc::EAGAIN, Some(0x3000));
        assert_eq!(convert(Visibility::Private), busy);
        // What the kernel refuses before it looks at pages it refuses now, too.
        for senseless in [0x3000..0x3001, 0x3800..0x5000, 0..2 * SIZE, 0x3000..0x3000] {
            let result = file.convert(senseless, Visibility::Private, Content::Zero);
            assert_eq!(result, error(libc::ENOTTY, None));
        }
        // Nobody minds a page that is shared for everybody.
        assert_eq!(convert(Visibility::Shared), error(libc::ENOTTY, None));
        drop(hold);
        assert_eq!(convert(Visibility::Private), busy);
        drop(again);
        assert_eq!(convert(Visibility::Private), error(libc::ENOTTY, None));
    }

    #[test]
    fn nobody_begins_to_use_a_page_that_is_being_converted() {
        let holds = Holds::new(SIZE);
        let converting = holds
            .converting(&(0..0x1000))
            .unwrap_or_else(|_| panic!("nobody uses it"));
        assert!(holds.lock.try_read().is_err());
        drop(converting);
        assert!(holds.lock.try_read().is_ok());
    }
}
