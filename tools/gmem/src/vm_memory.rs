// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory for rust-vmm's devices: the traits of `vm-memory` 0.18.
//!
//! [`Regions::guest_memory`] returns a `GuestMemory` of the guest's regions. `virtio-queue` and all
//! other code for that trait work on it unchanged, and the guest's conversions cannot harm the VMM:
//!
//! - A slice is refused if a page of it is private, by
//!   [`IOError`](GuestMemoryError::IOError) with [`PermissionDenied`](io::ErrorKind::PermissionDenied)
//!   and an [`AccessError`] inside. So a guest that puts a ring or a buffer into private memory gets a
//!   device that does not work.
//! - A slice has a [`Hold`] of its pages instead of a dirty bitmap, and so has everything that is
//!   made from the slice. While one of them lives, [`GuestMemfd::convert`] to private fails with
//!   `EAGAIN`, and the access cannot become `SIGBUS`.
//!   (A raw pointer from `ptr_guard()` is valid as long as the slice lives.)
//! - The address of a page is available only while the page is held: there is no host address and
//!   no file for `vhost` or a device in another process. They share memory by means of their own
//!   ([`Mapping::address`](crate::Mapping::address)), and a conversion does not wait for them.
//!
//! A thread that keeps a slice keeps its pages from becoming private. Devices keep them for a request.
//! A guest that converts a page of that request meanwhile gets `EAGAIN`. A slice of a whole region
//! (`as_volatile_slice()`) keeps all of it. Making a slice takes a step for each of its pages.
//!
//! [`GuestMemfd::hold`] lists what a hold does not prevent.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let regions = gmem::Regions::default();
//! use vm_memory::{Bytes, GuestAddress};
//!
//! let memory = regions.guest_memory()?;
//! let index: u16 = memory.read_obj(GuestAddress(0x10_0002))?;
//! # Ok(())
//! # }
//! ```

#[cfg(doc)]
use crate::GuestMemfd;
use crate::{
    hold::Hold,
    mapping::{
        AccessError,
        Mapping, //
    },
    region::{
        Region,
        Regions, //
    },
};
use std::{
    io,
    sync::{
        atomic::Ordering,
        Arc, //
    },
};
use vm_memory::{
    bitmap::{
        Bitmap,
        BitmapSlice,
        WithBitmapSlice,
        BS, //
    },
    AtomicAccess,
    Bytes,
    GuestAddress,
    GuestMemoryError,
    GuestMemoryRegion,
    GuestMemoryResult,
    GuestRegionCollection,
    GuestRegionCollectionError,
    GuestUsize,
    MemoryRegionAddress,
    ReadVolatile,
    VolatileSlice,
    WriteVolatile, //
};

/// A [`Region`] that this process has mapped.
#[derive(Clone, Debug)]
pub struct GuestRegionGmem {
    region: Region,
    mapping: Arc<Mapping>,
}

/// The memory of a guest.
pub type GuestMemoryGmem = GuestRegionCollection<GuestRegionGmem>;

impl GuestRegionGmem {
    /// Wraps a region with a mapping. [`None`] for a region without one.
    pub fn new(region: Region) -> Option<Self> {
        let mapping = region.mapping()?.clone();
        Some(Self { region, mapping })
    }

    /// The region.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The slice of up to `count` bytes from `address` on. As `Bytes` requires, an address outside
    /// is an error, and fewer bytes are not.
    fn up_to(
        &self,
        address: MemoryRegionAddress,
        count: usize,
    ) -> GuestMemoryResult<VolatileSlice<'_, Option<Hold>>> {
        let left = self
            .len()
            .checked_sub(address.0)
            .filter(|&left| left != 0)
            .ok_or(GuestMemoryError::InvalidBackendAddress)?;
        let count = usize::try_from(left).map_or(count, |left| count.min(left));
        self.get_slice(address, count)
    }
}

impl Regions {
    /// The regions for `vm-memory`, for devices. Regions without a mapping are left out.
    ///
    /// # Errors
    ///
    /// `NoMemoryRegion` if there is none.
    pub fn guest_memory(&self) -> Result<GuestMemoryGmem, GuestRegionCollectionError> {
        let mapped = self.iter().cloned().filter_map(GuestRegionGmem::new);
        GuestRegionCollection::from_regions(mapped.collect())
    }
}

impl From<AccessError> for GuestMemoryError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::OutOfRange => Self::InvalidBackendAddress,
            AccessError::Os(error) => Self::IOError(error),
            refused => Self::IOError(io::Error::new(io::ErrorKind::PermissionDenied, refused)),
        }
    }
}

impl WithBitmapSlice<'_> for Hold {
    type S = Self;
}

impl BitmapSlice for Hold {}

/// The hold of a slice, which lives as long as any part of the slice. It records nothing: no page is
/// ever dirty.
impl Bitmap for Hold {
    fn mark_dirty(&self, _offset: usize, _len: usize) {}

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, _offset: usize) -> Self {
        self.clone()
    }
}

/// The bitmap of a region, which does not exist: only slices have [`Hold`]s.
///
/// It cannot be made, which excludes `IommuMemory`: that would put a part of it into the slice in
/// the place of the hold.
#[derive(Debug)]
pub enum NoBitmap {}

impl WithBitmapSlice<'_> for NoBitmap {
    type S = Option<Hold>;
}

impl Bitmap for NoBitmap {
    fn mark_dirty(&self, _offset: usize, _len: usize) {
        match *self {}
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        match *self {}
    }

    fn slice_at(&self, _offset: usize) -> Option<Hold> {
        match *self {}
    }
}

impl GuestMemoryRegion for GuestRegionGmem {
    type B = NoBitmap;

    fn len(&self) -> GuestUsize {
        let guest = self.region.guest_range();
        guest.end - guest.start
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.region.guest_range().start)
    }

    fn bitmap(&self) -> BS<'_, Self::B> {
        None
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> GuestMemoryResult<VolatileSlice<'_, BS<'_, Self::B>>> {
        let outside = || GuestMemoryError::InvalidBackendAddress;
        let end = offset.0.checked_add(count as u64);
        let end = end.filter(|&end| end <= self.len()).ok_or_else(outside)?;
        let first = self.region.file_range().start;
        // It lies in the region, which lies in the file.
        let range = first + offset.0..first + end;
        let address = self.mapping.address_of(&range).ok_or_else(outside)?;
        let hold = self.region.memory().hold(range)?;
        // SAFETY: The bytes are in the mapping, which lives as long as `self`, which the slice
        // borrows. What else is done to them in this process is atomic, volatile, or a system
        // call's. Memory safety does not depend on whether they stay shared, which the slice's
        // own hold ensures.
        Ok(unsafe { VolatileSlice::with_bitmap(address, count, Some(hold), None) })
    }
}

/// Each access is a slice of what it touches, and no more: a slice of the whole region would be
/// refused for one private page.
impl Bytes<MemoryRegionAddress> for GuestRegionGmem {
    type E = GuestMemoryError;

    fn write(&self, buf: &[u8], addr: MemoryRegionAddress) -> GuestMemoryResult<usize> {
        match buf {
            [] => Ok(0),
            _ => Ok(self.up_to(addr, buf.len())?.write(buf, 0)?),
        }
    }

    fn read(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> GuestMemoryResult<usize> {
        match buf {
            [] => Ok(0),
            _ => Ok(self.up_to(addr, buf.len())?.read(buf, 0)?),
        }
    }

    fn write_slice(&self, buf: &[u8], addr: MemoryRegionAddress) -> GuestMemoryResult<()> {
        match buf {
            [] => Ok(()),
            _ => Ok(self.up_to(addr, buf.len())?.write_slice(buf, 0)?),
        }
    }

    fn read_slice(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> GuestMemoryResult<()> {
        match buf {
            [] => Ok(()),
            _ => Ok(self.up_to(addr, buf.len())?.read_slice(buf, 0)?),
        }
    }

    fn read_volatile_from<F: ReadVolatile>(
        &self,
        addr: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> GuestMemoryResult<usize> {
        let slice = self.up_to(addr, count)?;
        Ok(slice.read_volatile_from(0, src, count)?)
    }

    fn read_exact_volatile_from<F: ReadVolatile>(
        &self,
        addr: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> GuestMemoryResult<()> {
        let slice = self.get_slice(addr, count)?;
        Ok(slice.read_exact_volatile_from(0, src, count)?)
    }

    fn write_volatile_to<F: WriteVolatile>(
        &self,
        addr: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> GuestMemoryResult<usize> {
        let slice = self.up_to(addr, count)?;
        Ok(slice.write_volatile_to(0, dst, count)?)
    }

    fn write_all_volatile_to<F: WriteVolatile>(
        &self,
        addr: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> GuestMemoryResult<()> {
        let slice = self.get_slice(addr, count)?;
        Ok(slice.write_all_volatile_to(0, dst, count)?)
    }

    fn store<T: AtomicAccess>(
        &self,
        val: T,
        addr: MemoryRegionAddress,
        order: Ordering,
    ) -> GuestMemoryResult<()> {
        let slice = self.get_slice(addr, size_of::<T>())?;
        Ok(slice.store(val, 0, order)?)
    }

    fn load<T: AtomicAccess>(
        &self,
        addr: MemoryRegionAddress,
        order: Ordering,
    ) -> GuestMemoryResult<T> {
        let slice = self.get_slice(addr, size_of::<T>())?;
        Ok(slice.load(0, order)?)
    }
}
