// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Converting a range, and asking which ranges are in which state.

use crate::{
    abi::{
        MemoryAttributes2,
        CONTENT_POLICY_PRESERVE,
        CONTENT_POLICY_ZERO,
        KVM_MEMORY_ATTRIBUTE_PRIVATE, //
    },
    file::GuestMemfd, //
};
use std::{
    error,
    fmt,
    io,
    ops::Range, //
};

/// Who can access a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Host and guest.
    Shared,
    /// The guest alone.
    Private,
}

impl Visibility {
    fn attributes(self) -> u64 {
        match self {
            Self::Shared => 0,
            Self::Private => KVM_MEMORY_ATTRIBUTE_PRIVATE,
        }
    }

    fn from_attributes(attributes: u64) -> Option<Self> {
        match attributes {
            0 => Some(Self::Shared),
            KVM_MEMORY_ATTRIBUTE_PRIVATE => Some(Self::Private),
            _ => None,
        }
    }
}

impl fmt::Display for Visibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Shared => "shared",
            Self::Private => "private",
        })
    }
}

/// What happens to the bytes of the range, including pages that are in the requested state already.
///
/// A page that was never used reads as zeroes under every policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// No guarantee. Software-protected VMs scramble the range, so that users do not come to rely
    /// on its contents.
    None,
    /// The range reads as zeroes.
    Zero,
    /// The bytes do not change.
    Preserve,
}

impl Content {
    /// The policy's bits in the ioctl and in the capabilities.
    pub const fn flags(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Zero => CONTENT_POLICY_ZERO,
            Self::Preserve => CONTENT_POLICY_PRESERVE,
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "NONE",
            Self::Zero => "ZERO",
            Self::Preserve => "PRESERVE",
        })
    }
}

/// Why a conversion was refused.
///
/// Except for `EIO` with an offset, which means that the VM is dead, nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvertError {
    /// The error number, positive.
    pub errno: i32,
    /// Byte offset in the file of the first page that stopped the request, for errors that are
    /// about a page.
    pub offset: Option<u64>,
}

impl ConvertError {
    /// Whether the same request may succeed later: somebody holds a reference to a page.
    pub fn is_transient(&self) -> bool {
        self.errno == libc::EAGAIN
    }
}

impl fmt::Display for ConvertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = io::Error::from_raw_os_error(self.errno);
        match self.offset {
            Some(offset) => write!(f, "{error}, at file offset {offset:#x}"),
            None => write!(f, "{error}"),
        }
    }
}

impl error::Error for ConvertError {}

impl From<ConvertError> for io::Error {
    fn from(error: ConvertError) -> Self {
        io::Error::from_raw_os_error(error.errno)
    }
}

/// Not the offset of a page, and the kernel does not read it. If it is still there after an error,
/// the kernel has not written an offset. `EIO` can come with an offset and without.
const UNWRITTEN: u64 = u64::MAX;

/// The struct that asks for a conversion. An inverted range cannot be expressed and is `EINVAL`, as
/// the kernel returns for a length that overflows.
fn set_request(
    range: &Range<u64>,
    to: Visibility,
    content: Content,
) -> Result<MemoryAttributes2, ConvertError> {
    let size = range.end.checked_sub(range.start).ok_or(ConvertError {
        errno: libc::EINVAL,
        offset: None,
    })?;
    Ok(MemoryAttributes2 {
        offset: range.start,
        size,
        attributes: to.attributes(),
        flags: content.flags(),
        error_offset: UNWRITTEN,
        ..Default::default()
    })
}

/// Reads the error of a refused conversion from `errno` and the struct that came back.
fn set_error(errno: i32, answer: &MemoryAttributes2) -> ConvertError {
    let about_a_page = matches!(
        errno,
        libc::EOPNOTSUPP | libc::EPERM | libc::ENOMEM | libc::EAGAIN | libc::EHWPOISON | libc::EIO
    );
    ConvertError {
        errno,
        offset: (about_a_page && answer.error_offset != UNWRITTEN).then_some(answer.error_offset),
    }
}

/// Repeats `convert` while it fails with `EAGAIN`, at most `attempts` times and at least once.
/// Returns how many it took.
fn retry(
    attempts: u32,
    mut convert: impl FnMut() -> Result<(), ConvertError>,
) -> Result<u32, ConvertError> {
    let mut taken = 1;
    loop {
        match convert() {
            Ok(()) => return Ok(taken),
            Err(error) if error.is_transient() && taken < attempts => {
                taken += 1;
                // The holder of the reference may need this CPU to drop it.
                std::thread::yield_now();
            }
            Err(error) => return Err(error),
        }
    }
}

/// Consecutive pages of a file in the same state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Byte offsets in the file.
    pub range: Range<u64>,
    /// The state.
    pub visibility: Visibility,
}

/// Makes a [`Run`] of the kernel's answer, if the answer is valid for a file of `file_size`
/// bytes.
fn run_from(answer: &MemoryAttributes2, file_size: u64) -> io::Result<Run> {
    let end = answer
        .offset
        .checked_add(answer.size)
        .filter(|&end| answer.size != 0 && end <= file_size);
    match (end, Visibility::from_attributes(answer.attributes)) {
        (Some(end), Some(visibility)) => Ok(Run {
            range: answer.offset..end,
            visibility,
        }),
        // With an empty run the iterator would not end.
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "KVM_GET_MEMORY_ATTRIBUTES2 answered attributes {:#x} for {:#x} bytes at {:#x}",
                answer.attributes, answer.size, answer.offset
            ),
        )),
    }
}

/// Iterator over the [`Run`]s of a file, in order and without gaps; see [`GuestMemfd::runs`].
///
/// It ends after the first error. The kernel is asked for each run when the iterator gets there, so
/// concurrent conversions may or may not show.
#[derive(Debug)]
pub struct Runs<'a> {
    file: &'a GuestMemfd,
    walk: Walk,
}

impl Iterator for Runs<'_> {
    type Item = io::Result<Run>;

    fn next(&mut self) -> Option<Self::Item> {
        let file = self.file;
        self.walk.step(|offset| file.attributes_at(offset))
    }
}

impl std::iter::FusedIterator for Runs<'_> {}

/// The position of a walk over a file, apart from the file, so that it can be tested without one.
#[derive(Debug)]
struct Walk {
    next: u64,
    end: u64,
}

impl Walk {
    fn step(&mut self, ask: impl FnOnce(u64) -> io::Result<Run>) -> Option<io::Result<Run>> {
        if self.next >= self.end {
            return None;
        }
        let run = ask(self.next);
        self.next = match &run {
            Ok(run) => run.range.end,
            Err(_) => self.end,
        };
        Some(run)
    }
}

impl GuestMemfd {
    /// Makes the pages of `range` (byte offsets in the file) shared or private, in place.
    ///
    /// All or nothing; `content` holds for the whole range. A conversion to private fails with
    /// `EAGAIN` while somebody else holds a reference to one of the pages; see
    /// [`convert_retrying`](Self::convert_retrying).
    ///
    /// # Errors
    ///
    /// Those of `KVM_SET_MEMORY_ATTRIBUTES2` (`guest_memfd/api.rst`, section 2.1). `EAGAIN` also
    /// for a page that somebody [holds](Self::hold), before the kernel is asked.
    ///
    /// `EFAULT` does not mean that the caller's memory is bad: the kernel could not read or write
    /// the struct for another reason, and nothing was converted.
    pub fn convert(
        &self,
        range: Range<u64>,
        to: Visibility,
        content: Content,
    ) -> Result<(), ConvertError> {
        let mut request = set_request(&range, to, content)?;
        let mut ask = || {
            self.set_memory_attributes(&mut request)
                .map_err(|errno| set_error(errno, &request))
        };
        // The kernel refuses an invalid range before it checks any page.
        if to == Visibility::Shared || !self.holds().covers(&range) {
            return ask();
        }
        let converting = self.holds().converting(&range);
        let converting = converting.map_err(|offset| ConvertError {
            errno: libc::EAGAIN,
            offset: Some(offset),
        })?;
        let result = ask();
        converting.forget(&range);
        result
    }

    /// Like [`convert`](Self::convert), and repeats it while it fails with `EAGAIN`, at most
    /// `attempts` times.
    ///
    /// A reference may be a short access or a pin that stays: hence the bound. Returns the number
    /// of attempts.
    ///
    /// # Errors
    ///
    /// Those of [`convert`](Self::convert); `EAGAIN` if the last attempt ended so.
    pub fn convert_retrying(
        &self,
        range: Range<u64>,
        to: Visibility,
        content: Content,
        attempts: u32,
    ) -> Result<u32, ConvertError> {
        retry(attempts, || self.convert(range.clone(), to, content))
    }

    /// Returns the state of the page at `offset`, and how far the same state extends from there.
    ///
    /// # Errors
    ///
    /// Those of `KVM_GET_MEMORY_ATTRIBUTES2` (`guest_memfd/api.rst`, section 2.2): `EINVAL` for an
    /// offset that is not page aligned or is outside of the file, and for a VM without private
    /// memory, `ENOTTY` for a file that does not convert, `EIO` for a dead VM.
    pub fn attributes_at(&self, offset: u64) -> io::Result<Run> {
        let mut request = MemoryAttributes2 {
            offset,
            ..Default::default()
        };
        self.get_memory_attributes(&mut request)
            .map_err(io::Error::from_raw_os_error)?;
        run_from(&request, self.size())
    }

    /// Walks the whole file, run by run.
    pub fn runs(&self) -> Runs<'_> {
        Runs {
            file: self,
            walk: Walk {
                next: 0,
                end: self.size(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(error_offset: u64) -> MemoryAttributes2 {
        MemoryAttributes2 {
            error_offset,
            ..Default::default()
        }
    }

    #[test]
    fn request_is_encoded_as_the_header_says() {
        let request = set_request(&(0x3000..0x8000), Visibility::Private, Content::Preserve);
        assert_eq!(
            request,
            Ok(MemoryAttributes2 {
                offset: 0x3000,
                size: 0x5000,
                attributes: 1 << 3,
                flags: 1 << 1,
                error_offset: u64::MAX,
                reserved: [0; 11],
            })
        );
        let request = set_request(&(0..0x1000), Visibility::Shared, Content::Zero).unwrap();
        assert_eq!((request.attributes, request.flags), (0, 1));
        let request = set_request(&(0..0x1000), Visibility::Shared, Content::None).unwrap();
        assert_eq!((request.attributes, request.flags), (0, 0));
    }

    #[test]
    fn empty_range_is_left_to_the_kernel_and_inverted_one_is_not() {
        let request = set_request(&(0x1000..0x1000), Visibility::Shared, Content::None).unwrap();
        assert_eq!(request.size, 0);
        #[expect(clippy::reversed_empty_ranges)]
        let inverted = set_request(&(0x2000..0x1000), Visibility::Shared, Content::None);
        assert_eq!(
            inverted,
            Err(ConvertError {
                errno: libc::EINVAL,
                offset: None
            })
        );
    }

    #[test]
    fn offset_is_there_for_the_errors_that_have_one() {
        for errno in [
            libc::EOPNOTSUPP,
            libc::EPERM,
            libc::ENOMEM,
            libc::EAGAIN,
            libc::EHWPOISON,
            libc::EIO,
        ] {
            assert_eq!(
                set_error(errno, &answer(0x4000)).offset,
                Some(0x4000),
                "{errno}"
            );
            assert_eq!(set_error(errno, &answer(0)).offset, Some(0), "{errno}");
        }
    }

    #[test]
    fn offset_is_absent_for_the_other_errors() {
        for errno in [libc::ENOTTY, libc::EFAULT, libc::EINVAL, libc::EBADF] {
            assert_eq!(set_error(errno, &answer(0x4000)).offset, None, "{errno}");
        }
    }

    #[test]
    fn eio_of_a_dead_vm_has_no_offset() {
        let dead_before = set_error(libc::EIO, &answer(UNWRITTEN));
        assert_eq!(dead_before.offset, None);
        let died_now = set_error(libc::EIO, &answer(0x1000));
        assert_eq!(died_now.offset, Some(0x1000));
    }

    #[test]
    fn error_says_where() {
        let text = ConvertError {
            errno: libc::EAGAIN,
            offset: Some(0x5000),
        }
        .to_string();
        assert!(text.ends_with("at file offset 0x5000"), "{text}");
        let text = ConvertError {
            errno: libc::EINVAL,
            offset: None,
        }
        .to_string();
        assert!(!text.contains("offset"), "{text}");
    }

    fn fails_times(times: u32, errno: i32) -> impl FnMut() -> Result<(), ConvertError> {
        let mut left = times;
        move || match left {
            0 => Ok(()),
            _ => {
                left -= 1;
                Err(ConvertError {
                    errno,
                    offset: Some(u64::from(left)),
                })
            }
        }
    }

    #[test]
    fn retry_counts_and_is_bounded() {
        assert_eq!(retry(5, fails_times(0, libc::EAGAIN)), Ok(1));
        assert_eq!(retry(5, fails_times(4, libc::EAGAIN)), Ok(5));
        // The error of the last attempt, not of the first.
        assert_eq!(
            retry(5, fails_times(7, libc::EAGAIN)),
            Err(ConvertError {
                errno: libc::EAGAIN,
                offset: Some(2)
            })
        );
        assert_eq!(retry(0, fails_times(0, libc::EAGAIN)), Ok(1));
        assert!(retry(0, fails_times(1, libc::EAGAIN)).is_err());
    }

    #[test]
    fn retry_is_for_eagain_only() {
        let mut calls = 0;
        let error = retry(5, || {
            calls += 1;
            Err(ConvertError {
                errno: libc::EOPNOTSUPP,
                offset: Some(0),
            })
        });
        assert_eq!(error.unwrap_err().errno, libc::EOPNOTSUPP);
        assert_eq!(calls, 1);
    }

    fn got(offset: u64, size: u64, attributes: u64) -> MemoryAttributes2 {
        MemoryAttributes2 {
            offset,
            size,
            attributes,
            ..Default::default()
        }
    }

    #[test]
    fn answers_that_make_no_sense_are_errors() {
        assert_eq!(
            run_from(&got(0x1000, 0x3000, 8), 0x4000).unwrap(),
            Run {
                range: 0x1000..0x4000,
                visibility: Visibility::Private
            }
        );
        for bad in [
            got(0, 0, 0),
            got(0, 0x5000, 0),
            got(0x1000, u64::MAX, 0),
            got(0, 0x1000, 1),
            got(0, 0x1000, 9),
        ] {
            let error = run_from(&bad, 0x4000).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bad:?}");
        }
    }

    #[test]
    fn walk_visits_every_run_once() {
        let file = [(0..0x2000, 0), (0x2000..0x3000, 8), (0x3000..0x9000, 0)];
        let mut walk = Walk {
            next: 0,
            end: 0x9000,
        };
        let mut seen = Vec::new();
        while let Some(run) = walk.step(|offset| {
            let (range, attributes) = file
                .iter()
                .find(|(range, _)| range.contains(&offset))
                .unwrap();
            run_from(&got(offset, range.end - offset, *attributes), 0x9000)
        }) {
            seen.push(run.unwrap());
        }
        let ranges: Vec<_> = seen.iter().map(|run| run.range.clone()).collect();
        assert_eq!(ranges, file.map(|(range, _)| range));
        assert_eq!(seen[1].visibility, Visibility::Private);
    }

    #[test]
    fn walk_ends_after_an_error() {
        let mut walk = Walk {
            next: 0,
            end: 0x9000,
        };
        let failed = walk.step(|_| Err(io::Error::from_raw_os_error(libc::ENOTTY)));
        assert!(matches!(failed, Some(Err(_))));
        assert!(walk.step(|_| panic!("asked after the end")).is_none());
    }
}
