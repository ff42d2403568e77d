// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's view of a file.

use crate::file::Identity;
use std::{
    error, fmt,
    fs::File,
    io,
    ops::Range,
    os::fd::{
        AsRawFd,
        FromRawFd,
        OwnedFd, //
    },
    ptr::NonNull,
    sync::atomic::{
        AtomicU8,
        Ordering, //
    },
};

/// Why the host could not read or write.
#[derive(Debug)]
#[non_exhaustive]
pub enum AccessError {
    /// The bytes are not all in the mapping, or in the file.
    OutOfRange,
    /// The host may not touch the page at this file offset: it is private. An ordinary load or
    /// store to it gets `SIGBUS`. The bytes before it have been read or written, if they were
    /// requested.
    Refused {
        /// The first byte that was refused.
        offset: u64,
    },
    /// The probe itself failed; this says nothing about the page.
    Os(io::Error),
}

impl AccessError {
    /// Whether the host may not touch the page, as opposed to any other error.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange => f.write_str("outside of the memory"),
            Self::Refused { offset } => write!(f, "refused at file offset {offset:#x}"),
            Self::Os(error) => write!(f, "cannot probe: {error}"),
        }
    }
}

impl error::Error for AccessError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Os(error) => Some(error),
            _ => None,
        }
    }
}

/// Part of a file, mapped into this process; see [`GuestMemfd::map`](crate::GuestMemfd::map).
///
/// All offsets are offsets in the file. There are two ways to the bytes:
///
/// - [`try_read`](Self::try_read) and [`try_write`](Self::try_write) let the kernel do the access
///   through this mapping, so that a page that the host may not touch is an error.
/// - [`load`](Self::load) and [`store`](Self::store) do the access themselves. On a private page
///   the process gets `SIGBUS`, unless a [`Hold`](crate::Hold) keeps the page shared.
///
/// No Rust reference to the memory is ever given out: guest and host can change it at any time.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<u8>,
    range: Range<u64>,
    identity: Identity,
}

// SAFETY: The memory belongs to the process, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: This process accesses the memory by atomic operations, volatile ones and system calls only,
// as the guest may change it at any time, so another thread is nothing new.
unsafe impl Sync for Mapping {}

/// The number of bytes copied at once. It fits into any empty pipe, however small the pipe is.
const CHUNK: u64 = libc::PIPE_BUF as u64;

impl Mapping {
    pub(crate) fn new(file: &File, identity: Identity, range: Range<u64>) -> io::Result<Self> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let length = range.end.checked_sub(range.start).ok_or_else(invalid)?;
        let length = usize::try_from(length).map_err(|_| invalid())?;
        let offset = libc::off_t::try_from(range.start).map_err(|_| invalid())?;
        // SAFETY: A new mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            address: NonNull::new(address.cast()).ok_or_else(invalid)?,
            range,
            identity,
        })
    }

    /// Which part of the file is mapped.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Where the byte at `offset` is mapped, for system calls that take addresses.
    ///
    /// The address is valid as long as the mapping lives. It must not become a reference: the
    /// guest changes the memory at any time.
    pub fn address(&self, offset: u64) -> Option<*mut u8> {
        self.address_of(&(offset..offset.checked_add(1)?))
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// Where the bytes of `range` are mapped, if all of them are.
    pub(crate) fn address_of(&self, range: &Range<u64>) -> Option<*mut u8> {
        if range.start < self.range.start || range.end > self.range.end || range.start > range.end {
            return None;
        }
        let distance = usize::try_from(range.start - self.range.start).ok()?;
        // SAFETY: The distance is at most the length of the mapping, checked above.
        Some(unsafe { self.address.as_ptr().add(distance) })
    }

    fn atomic(&self, offset: u64) -> &AtomicU8 {
        let Some(address) = self.address(offset) else {
            panic!("offset {offset:#x} outside of mapping {:x?}", self.range);
        };
        // SAFETY: The byte is mapped as long as `self` lives, and nobody has a reference to it that
        // is not atomic.
        unsafe { AtomicU8::from_ptr(address) }
    }

    /// Reads a byte. `SIGBUS` if the page is private.
    ///
    /// # Panics
    ///
    /// If `offset` is outside of the mapping.
    pub fn load(&self, offset: u64) -> u8 {
        self.atomic(offset).load(Ordering::Relaxed)
    }

    /// Writes a byte. `SIGBUS` if the page is private.
    ///
    /// # Panics
    ///
    /// If `offset` is outside of the mapping.
    pub fn store(&self, offset: u64, value: u8) {
        self.atomic(offset).store(value, Ordering::Relaxed)
    }

    /// Reads `bytes` from `offset` on, or returns why the host cannot.
    ///
    /// # Errors
    ///
    /// [`AccessError::Refused`] for the first byte that the host may not read,
    /// [`AccessError::OutOfRange`] for bytes outside of the mapping, and [`AccessError::Os`] if there
    /// are no descriptors left for a pipe.
    pub fn try_read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), AccessError> {
        let pipe = Pipe::new()?;
        self.by_chunk(offset, bytes.len(), |at, address, part| {
            // The kernel's copy from the mapping faults like a load would, but ends in an error.
            let copied = pipe.fill_from(address.cast_const(), part.len());
            copied.map_err(|error| refusal(error, at))?;
            let bytes = &mut bytes[part];
            pipe.drain_to(bytes.as_mut_ptr(), bytes.len())
                .map_err(AccessError::Os)
        })
    }

    /// Writes `bytes` from `offset` on, or returns why the host cannot.
    ///
    /// # Errors
    ///
    /// Those of [`try_read`](Self::try_read).
    pub fn try_write(&self, offset: u64, bytes: &[u8]) -> Result<(), AccessError> {
        let pipe = Pipe::new()?;
        self.by_chunk(offset, bytes.len(), |at, address, part| {
            let bytes = &bytes[part];
            pipe.fill_from(bytes.as_ptr(), bytes.len())
                .map_err(AccessError::Os)?;
            pipe.drain_to(address, bytes.len())
                .map_err(|error| refusal(error, at))
        })
    }

    /// Calls `copy` for parts of `offset..offset + length` that do not cross a page, with the file
    /// offset, the address and which of the caller's bytes belong there.
    fn by_chunk(
        &self,
        offset: u64,
        length: usize,
        mut copy: impl FnMut(u64, *mut u8, Range<usize>) -> Result<(), AccessError>,
    ) -> Result<(), AccessError> {
        let end = offset
            .checked_add(length as u64)
            .ok_or(AccessError::OutOfRange)?;
        self.address_of(&(offset..end))
            .ok_or(AccessError::OutOfRange)?;
        let mut at = offset;
        while at < end {
            let next = end.min((at / CHUNK + 1) * CHUNK);
            let address = self
                .address_of(&(at..next))
                .ok_or(AccessError::OutOfRange)?;
            copy(
                at,
                address,
                (at - offset) as usize..(next - offset) as usize,
            )?;
            at = next;
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // The length fitted when the mapping was made.
        let length = (self.range.end - self.range.start) as usize;
        // SAFETY: The mapping is ours, and nothing that points into it outlives `self`.
        unsafe { libc::munmap(self.address.as_ptr().cast(), length) };
    }
}

/// Reserved addresses at which this process never has memory.
#[derive(Debug)]
pub(crate) struct NoMemory {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: Nobody accesses it.
unsafe impl Send for NoMemory {}
// SAFETY: As above.
unsafe impl Sync for NoMemory {}

impl NoMemory {
    /// Reserves `length` bytes of addresses.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there are not enough, `EINVAL` for a length of 0.
    pub(crate) fn new(length: u64) -> io::Result<Self> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let length = usize::try_from(length).map_err(|_| invalid())?;
        // SAFETY: A new mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            address: NonNull::new(address.cast()).ok_or_else(invalid)?,
            length,
        })
    }

    pub(crate) fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }
}

impl Drop for NoMemory {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours, and contains no memory.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.length) };
    }
}

fn refusal(error: io::Error, offset: u64) -> AccessError {
    match error.raw_os_error() {
        Some(libc::EFAULT) => AccessError::Refused { offset },
        _ => AccessError::Os(error),
    }
}

/// Copies bytes through the kernel, which returns an error where this process would get a signal.
///
/// It is for one call only: a refused copy may leave bytes in the pipe.
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    fn new() -> Result<Self, AccessError> {
        let mut fds = [-1; 2];
        // SAFETY: The kernel writes two descriptors to the array.
        if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return Err(AccessError::Os(io::Error::last_os_error()));
        }
        // SAFETY: Both descriptors are new and ours.
        let [reader, writer] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(Self { reader, writer })
    }

    /// Copies from memory into the empty pipe.
    fn fill_from(&self, address: *const u8, length: usize) -> io::Result<()> {
        whole(length, || {
            // SAFETY: The kernel checks the address range and only reads it.
            unsafe { libc::write(self.writer.as_raw_fd(), address.cast(), length) }
        })
    }

    /// Copies from the pipe to memory, which the callers own: bytes of their caller or the mapping.
    fn drain_to(&self, address: *mut u8, length: usize) -> io::Result<()> {
        whole(length, || {
            // SAFETY: Both callers give `length` bytes that they may write; nobody holds a
            // reference to them but the caller of this.
            unsafe { libc::read(self.reader.as_raw_fd(), address.cast(), length) }
        })
    }
}

/// Repeats an interrupted call. Part of a page does not happen, so it counts as refused.
fn whole(length: usize, mut call: impl FnMut() -> isize) -> io::Result<()> {
    loop {
        let done = call();
        if usize::try_from(done) == Ok(length) {
            return Ok(());
        }
        if done >= 0 {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::memfd;

    /// A mapping whose second half is refused: the file ends there.
    fn half_refused() -> Mapping {
        let file = memfd(0x2000);
        file.map(0..0x4000).unwrap()
    }

    #[test]
    fn bytes_go_there_and_back() {
        let mapping = half_refused();
        let written: Vec<u8> = (0..0x1800u32).map(|i| (i * 7 + (i >> 8)) as u8).collect();
        mapping.try_write(0x123, &written).unwrap();
        let mut read = vec![0; written.len()];
        mapping.try_read(0x123, &mut read).unwrap();
        assert_eq!(read, written);
        assert_eq!(mapping.load(0x123 + 0x1000), written[0x1000]);
        mapping.store(0x1fff, 0x5a);
        let mut last = [0];
        mapping.try_read(0x1fff, &mut last).unwrap();
        assert_eq!(last, [0x5a]);
    }

    #[test]
    fn refused_page_is_an_error_and_not_a_signal() {
        let mapping = half_refused();
        for offset in [0x2000, 0x2fff, 0x3000, 0x3fff] {
            let read = mapping.try_read(offset, &mut [0]).unwrap_err();
            assert!(matches!(read, AccessError::Refused { offset: o } if o == offset));
            let write = mapping.try_write(offset, &[1]).unwrap_err();
            assert!(matches!(write, AccessError::Refused { offset: o } if o == offset));
        }
    }

    #[test]
    fn refusal_names_the_first_refused_byte() {
        let mapping = half_refused();
        let mut bytes = vec![0xee; 0x1800];
        mapping.store(0x1fff, 0x77);
        let error = mapping.try_read(0x1000, &mut bytes).unwrap_err();
        assert!(matches!(error, AccessError::Refused { offset: 0x2000 }));
        assert_eq!(bytes[0xfff..0x1001], [0x77, 0xee]);
        let error = mapping.try_write(0x1000, &[3; 0x1800]).unwrap_err();
        assert!(matches!(error, AccessError::Refused { offset: 0x2000 }));
        assert_eq!(mapping.load(0x1fff), 3);
    }

    #[test]
    fn mapping_of_a_part_keeps_file_offsets() {
        let file = memfd(0x4000);
        let all = file.map(0..0x4000).unwrap();
        let part = file.map(0x2000..0x3000).unwrap();
        part.store(0x2001, 9);
        assert_eq!(all.load(0x2001), 9);
        assert_eq!(part.range(), 0x2000..0x3000);
        for (offset, length) in [(0x1fff, 1), (0x2fff, 2), (0x3000, 1), (u64::MAX, 2)] {
            let error = part.try_read(offset, &mut vec![0; length]).unwrap_err();
            assert!(matches!(error, AccessError::OutOfRange), "{offset:#x}");
        }
    }

    #[test]
    #[should_panic(expected = "outside of mapping")]
    fn load_outside_panics() {
        half_refused().load(0x4000);
    }

    #[test]
    fn empty_access_is_no_access() {
        let mapping = half_refused();
        mapping.try_read(0x2000, &mut []).unwrap();
        mapping.try_write(0x4000, &[]).unwrap();
    }
}
