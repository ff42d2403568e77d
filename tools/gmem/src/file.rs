// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file itself.

use crate::{
    abi::{
        self,
        MemoryAttributes2, //
    },
    hold::Holds,
    kvm,
    mapping::Mapping, //
};
use libc::{
    c_int,
    c_ulong,
    off_t, //
};
use std::{
    fmt,
    fs::File,
    io,
    ops::{
        BitOr,
        Range, //
    },
    os::{
        fd::{
            AsFd,
            AsRawFd,
            BorrowedFd,
            OwnedFd,
            RawFd, //
        },
        unix::fs::MetadataExt, //
    },
};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

/// How a guest_memfd is made.
///
/// On a VM with private memory either of [`MMAP`](Self::MMAP) and
/// [`INIT_SHARED`](Self::INIT_SHARED) makes the file convert in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CreateFlags(u64);

impl CreateFlags {
    /// None: the VM's own attributes decide what is private.
    pub const NONE: Self = Self(0);
    /// The host may map the file.
    pub const MMAP: Self = Self(abi::GUEST_MEMFD_FLAG_MMAP);
    /// All pages start as shared, instead of private.
    pub const INIT_SHARED: Self = Self(abi::GUEST_MEMFD_FLAG_INIT_SHARED);
    /// The host's memory management may move the pages to other memory: for compaction, to another
    /// NUMA node, or off memory that goes offline. The guest does not notice. Only VMs without a
    /// platform that owns pages support it.
    pub const MIGRATABLE: Self = Self(abi::GUEST_MEMFD_FLAG_MIGRATABLE);
    /// Memory that is allocated 2 MiB at a time is one unit for the host: it is mapped at once, and
    /// converted at once. Whoever holds a page of it holds all of it, so that a conversion of a part
    /// is refused for longer. Not with [`MIGRATABLE`](Self::MIGRATABLE), and for the same VMs.
    pub const LARGE_FOLIOS: Self = Self(abi::GUEST_MEMFD_FLAG_LARGE_FOLIOS);

    /// Flags by number; the kernel refuses those that it does not know.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The number.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether all flags of `other` are among these.
    ///
    /// ```
    /// use gmem::CreateFlags;
    ///
    /// let both = CreateFlags::MMAP | CreateFlags::INIT_SHARED;
    /// assert!(both.contains(CreateFlags::MMAP));
    /// assert!(!CreateFlags::MMAP.contains(both));
    /// ```
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for CreateFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Identifies a file, whatever number of descriptors it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

/// A guest_memfd: the memory of a virtual machine.
///
/// Offsets and ranges are bytes in the file, not guest physical addresses.
///
/// A process has one object for a file, and shares it, for example in an [`Arc`](std::sync::Arc):
/// the object knows which pages are in use, see [`hold`](Self::hold).
pub struct GuestMemfd {
    file: File,
    size: u64,
    identity: Identity,
    holds: Holds,
}

impl GuestMemfd {
    /// Makes a guest_memfd of `size` bytes for `vm`, the descriptor of a VM. The new descriptor is
    /// close-on-exec.
    ///
    /// The kernel creates the descriptor without that flag. So a program that another thread
    /// executes at this moment can still inherit it.
    ///
    /// # Errors
    ///
    /// Those of `KVM_CREATE_GUEST_MEMFD`: `EINVAL` for flags that the VM does not have
    /// ([`Capabilities::create_flags`](crate::Capabilities::create_flags)) and for a size that is 0
    /// or not whole pages, `EMFILE`, `ENOMEM`. `ENOTTY` if `vm` is not a VM.
    pub fn create(vm: &impl AsRawFd, size: u64, flags: CreateFlags) -> io::Result<Self> {
        Self::from_fd(kvm::create_guest_memfd(vm, size, flags.bits())?)
    }

    /// Takes over a guest_memfd that was created elsewhere, for example by another process. The
    /// close-on-exec flag of the descriptor does not change.
    ///
    /// Whether the file is a guest_memfd only shows when it is used: other files return `ENOTTY`.
    ///
    /// # Errors
    ///
    /// Those of fstat().
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let metadata = file.metadata()?;
        Ok(Self {
            size: metadata.len(),
            holds: Holds::new(metadata.len()),
            identity: Identity {
                device: metadata.dev(),
                inode: metadata.ino(),
            },
            file,
        })
    }

    /// Bytes; the size of a guest_memfd never changes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Maps `range` into the caller's address space, for reading and writing.
    ///
    /// The file has to be made with [`CreateFlags::MMAP`]. Pages need not be shared to be mapped,
    /// only to be touched.
    ///
    /// # Errors
    ///
    /// Those of mmap(): `ENODEV` for a file without the flag, `EINVAL` for a range that is empty,
    /// inverted, or does not begin with a page. A range may leave the file; accesses there are
    /// refused.
    pub fn map(&self, range: Range<u64>) -> io::Result<Mapping> {
        Mapping::new(&self.file, self.identity, range)
    }

    /// Allocates the memory of the pages of `range` now instead of at their first use.
    ///
    /// # Errors
    ///
    /// Those of fallocate(): `EINVAL` for a range that is inverted, empty or not whole pages, or
    /// leaves the file; `ENOMEM`.
    pub fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.fallocate(libc::FALLOC_FL_KEEP_SIZE, range)
    }

    /// Frees the memory of the pages of `range`. They stay private or shared, and read as zeroes.
    ///
    /// # Errors
    ///
    /// Those of fallocate(), see [`allocate`](Self::allocate).
    pub fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        self.fallocate(
            libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE,
            range,
        )
    }

    fn fallocate(&self, mode: c_int, range: Range<u64>) -> io::Result<()> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let length = range.end.checked_sub(range.start).ok_or_else(invalid)?;
        let offset = off_t::try_from(range.start).map_err(|_| invalid())?;
        let length = off_t::try_from(length).map_err(|_| invalid())?;
        // SAFETY: The call takes numbers only.
        match unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, length) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    pub(crate) fn holds(&self) -> &Holds {
        &self.holds
    }

    pub(crate) fn set_memory_attributes(&self, request: &mut MemoryAttributes2) -> Result<(), i32> {
        self.ioctl(abi::KVM_SET_MEMORY_ATTRIBUTES2, request)
    }

    pub(crate) fn get_memory_attributes(&self, request: &mut MemoryAttributes2) -> Result<(), i32> {
        self.ioctl(abi::KVM_GET_MEMORY_ATTRIBUTES2, request)
    }

    fn ioctl(&self, number: c_ulong, request: &mut MemoryAttributes2) -> Result<(), i32> {
        // SAFETY: Both ioctls read and write at most the struct behind the reference;
        // its size is in the number.
        match unsafe { ioctl_with_mut_ref(&self.file, number, request) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        }
    }
}

impl fmt::Debug for GuestMemfd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestMemfd")
            .field("file", &self.file)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl AsFd for GuestMemfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for GuestMemfd {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl From<GuestMemfd> for OwnedFd {
    fn from(memory: GuestMemfd) -> Self {
        memory.file.into()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        Content,
        ConvertError,
        Visibility, //
    };
    use std::os::fd::FromRawFd;

    /// An ordinary memfd: it maps like a guest_memfd, and accesses beyond its end are refused like
    /// those to a private page.
    pub(crate) fn memfd(size: u64) -> GuestMemfd {
        // SAFETY: The name is a C string.
        let fd = unsafe { libc::memfd_create(c"gmem-test".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: The descriptor is new and ours.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(size).unwrap();
        GuestMemfd::from_fd(file.into()).unwrap()
    }

    #[test]
    fn size_and_identity_come_from_the_file() {
        let one = memfd(0x3000);
        let other = memfd(0x3000);
        assert_eq!(one.size(), 0x3000);
        assert_ne!(one.identity(), other.identity());
        let again = GuestMemfd::from_fd(one.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(one.identity(), again.identity());
    }

    #[test]
    fn other_files_are_enotty() {
        let file = memfd(0x1000);
        assert_eq!(
            file.convert(0..0x1000, Visibility::Private, Content::None),
            Err(ConvertError {
                errno: libc::ENOTTY,
                offset: None
            })
        );
        let error = file.attributes_at(0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(file.runs().count(), 1);
    }

    #[test]
    fn fallocate_checks_its_range() {
        let file = memfd(0x2000);
        file.allocate(0..0x2000).unwrap();
        file.punch_hole(0x1000..0x2000).unwrap();
        #[expect(clippy::reversed_empty_ranges)]
        let inverted = file.allocate(0x2000..0x1000);
        assert_eq!(inverted.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let huge = file.punch_hole(u64::MAX - 1..u64::MAX);
        assert_eq!(huge.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
