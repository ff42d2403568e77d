// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which part of a file is at which guest physical address, and the memslots for KVM.

use crate::{
    attributes::{
        Content,
        ConvertError,
        Visibility, //
    },
    file::GuestMemfd,
    kvm,
    mapping::{
        Mapping,
        NoMemory, //
    }, //
};
use kvm_bindings::{
    kvm_userspace_memory_region2,
    KVM_MEM_GUEST_MEMFD, //
};
use std::{
    error,
    fmt,
    io,
    mem,
    ops::Range,
    os::fd::{
        AsRawFd,
        OwnedFd, //
    },
    sync::Arc, //
};

/// A part of a file, and its guest physical address.
///
/// This is only data of the VMM. KVM gets it from a [`Slot`], or from a memslot that the VMM makes by
/// other means.
#[derive(Clone, Debug)]
pub struct Region {
    guest_phys_addr: u64,
    file_range: Range<u64>,
    memory: Arc<GuestMemfd>,
    mapping: Option<Arc<Mapping>>,
}

impl Region {
    /// Describes `file_range` (byte offsets in the file) at `guest_phys_addr` (bytes).
    ///
    /// `mapping` is this process's mapping of it, for its own accesses and for those of KVM, such as
    /// emulated instructions. Without it they fail.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the range is empty or leaves the file, if the addresses overflow, and if the
    /// mapping is of another file or does not cover the range.
    pub fn new(
        memory: Arc<GuestMemfd>,
        file_range: Range<u64>,
        guest_phys_addr: u64,
        mapping: Option<Arc<Mapping>>,
    ) -> io::Result<Self> {
        let maps = |mapping: &Arc<Mapping>| {
            mapping.identity() == memory.identity() && mapping.address_of(&file_range).is_some()
        };
        let valid = !file_range.is_empty()
            && file_range.end <= memory.size()
            && guest_phys_addr
                .checked_add(file_range.end - file_range.start)
                .is_some()
            && mapping.iter().all(maps);
        match valid {
            true => Ok(Self {
                guest_phys_addr,
                file_range,
                memory,
                mapping,
            }),
            false => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    /// The file.
    pub fn memory(&self) -> &Arc<GuestMemfd> {
        &self.memory
    }

    /// This process's mapping of it.
    pub fn mapping(&self) -> Option<&Arc<Mapping>> {
        self.mapping.as_ref()
    }

    /// Which part of the file, in bytes.
    pub fn file_range(&self) -> Range<u64> {
        self.file_range.clone()
    }

    /// Guest physical addresses, in bytes.
    pub fn guest_range(&self) -> Range<u64> {
        // `new` has checked that this does not overflow.
        self.guest_phys_addr..self.guest_phys_addr + (self.file_range.end - self.file_range.start)
    }

    /// The guest physical address of the byte at `offset` in the file, if it is in the region.
    pub fn guest_address(&self, offset: u64) -> Option<u64> {
        self.file_range
            .contains(&offset)
            .then(|| self.guest_phys_addr + (offset - self.file_range.start))
    }

    /// The range of the file for a range of guest physical addresses, if all of it is in the
    /// region.
    pub fn file_range_of(&self, guest: &Range<u64>) -> Option<Range<u64>> {
        let whole = self.guest_range();
        (whole.contains(&guest.start) && guest.start <= guest.end && guest.end <= whole.end).then(
            || {
                let start = self.file_range.start + (guest.start - whole.start);
                start..start + (guest.end - guest.start)
            },
        )
    }

    /// Makes it a memslot of `vm`, the descriptor of a VM.
    ///
    /// # Errors
    ///
    /// Those of `KVM_SET_USER_MEMORY_REGION2`: `EEXIST` if the number, a guest address or a part of
    /// the file has a memslot already, `EINVAL` if it is not whole pages, `EBADF` if the file is
    /// not a guest_memfd of this VM. `ENOTTY` if `vm` is not a VM. `EMFILE`: each slot has a descriptor.
    /// `ENOMEM` if there are no addresses left for a slot without a mapping.
    pub fn bind(&self, vm: &impl AsRawFd, number: u32) -> io::Result<Slot> {
        let vm = kvm::duplicate(vm)?;
        let (backing, address) = self.backing()?;
        // SAFETY: The addresses are those of a mapping of the whole slot, or have no memory. The
        // `Slot` keeps them so until the memslot is gone, and a mapping never gives out references.
        unsafe { kvm::set_user_memory_region2(&vm, &self.slot(number, address as u64)) }?;
        Ok(Slot {
            vm,
            number,
            region: self.clone(),
            backing: Some(backing),
        })
    }

    /// KVM accesses whatever this process has at the slot's addresses, so a slot without a
    /// mapping needs addresses, too.
    fn backing(&self) -> io::Result<(Backing, *mut u8)> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        match &self.mapping {
            Some(mapping) => {
                let address = mapping.address_of(&self.file_range).ok_or_else(invalid)?;
                Ok((Backing::Mapping(mapping.clone()), address))
            }
            None => {
                let none = NoMemory::new(self.file_range.end - self.file_range.start)?;
                let address = none.address();
                Ok((Backing::NoMemory(none), address))
            }
        }
    }

    fn slot(&self, number: u32, address: u64) -> kvm_userspace_memory_region2 {
        kvm_userspace_memory_region2 {
            slot: number,
            flags: KVM_MEM_GUEST_MEMFD,
            guest_phys_addr: self.guest_phys_addr,
            memory_size: self.file_range.end - self.file_range.start,
            userspace_addr: address,
            guest_memfd_offset: self.file_range.start,
            guest_memfd: self.memory.as_raw_fd() as u32,
            ..Default::default()
        }
    }
}

/// Keeps the memory at the addresses through which KVM itself accesses a slot.
#[derive(Debug)]
enum Backing {
    Mapping(#[expect(dead_code, reason = "It is kept, and not used")] Arc<Mapping>),
    NoMemory(#[expect(dead_code, reason = "It is kept, and not used")] NoMemory),
}

/// A memslot, deleted when dropped.
///
/// It has a descriptor of its own for the VM, which lives as long, and keeps the file and the
/// mapping, through which KVM itself reads and writes shared pages.
#[derive(Debug)]
pub struct Slot {
    vm: OwnedFd,
    number: u32,
    region: Region,
    /// [`None`] if the slot could not be deleted and has to stay.
    backing: Option<Backing>,
}

impl Slot {
    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The memory of the slot.
    pub fn region(&self) -> &Region {
        &self.region
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let nothing = kvm_userspace_memory_region2 {
            slot: self.number,
            ..Default::default()
        };
        // SAFETY: A slot of size 0 is deleted and has no address.
        if unsafe { kvm::set_user_memory_region2(&self.vm, &nothing) }.is_err() {
            // KVM may still use the addresses, so they have to stay as they are for ever.
            mem::forget(self.backing.take());
        }
    }
}

/// Why a conversion of guest physical addresses was refused, and how far it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeError {
    /// The error number, positive. `EINVAL` also for addresses that are in no region; nothing has
    /// changed then.
    pub errno: i32,
    /// The guest physical address, in bytes, of the first page that stopped the request, for the
    /// errors that are about a page.
    pub address: Option<u64>,
    /// How much was converted before that, in bytes. It is all or nothing for each region.
    pub converted: Range<u64>,
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = io::Error::from_raw_os_error(self.errno);
        match self.address {
            Some(address) => write!(f, "{error}, at guest address {address:#x}"),
            None => write!(f, "{error}"),
        }
    }
}

impl error::Error for RangeError {}

/// The regions of a guest, in the order of their addresses. They do not overlap.
#[derive(Clone, Debug, Default)]
pub struct Regions(Vec<Region>);

impl Regions {
    /// Takes `regions` in any order.
    ///
    /// # Errors
    ///
    /// `EEXIST` if two of them have an address in common.
    pub fn new(mut regions: Vec<Region>) -> io::Result<Self> {
        regions.sort_by_key(|region| region.guest_phys_addr);
        let overlap = |two: &[Region]| two[0].guest_range().end > two[1].guest_phys_addr;
        match regions.windows(2).any(overlap) {
            false => Ok(Self(regions)),
            true => Err(io::Error::from_raw_os_error(libc::EEXIST)),
        }
    }

    /// Iterates over the regions.
    pub fn iter(&self) -> std::slice::Iter<'_, Region> {
        self.0.iter()
    }

    /// The region that has a guest physical address.
    pub fn find(&self, address: u64) -> Option<&Region> {
        let behind = self
            .0
            .partition_point(|region| region.guest_phys_addr <= address);
        let region = &self.0[behind.checked_sub(1)?];
        region.guest_range().contains(&address).then_some(region)
    }

    /// Splits a range of guest physical addresses by regions, in order: the addresses of each
    /// part, and its region if it has one.
    pub(crate) fn parts(&self, range: &Range<u64>) -> Vec<(Range<u64>, Option<&Region>)> {
        let mut parts = Vec::new();
        let mut at = range.start;
        for region in &self.0 {
            let guest = region.guest_range();
            let within = guest.start.max(at)..guest.end.min(range.end);
            if within.is_empty() {
                continue;
            }
            if at < within.start {
                parts.push((at..within.start, None));
            }
            at = within.end;
            parts.push((within, Some(region)));
        }
        if at < range.end {
            parts.push((at..range.end, None));
        }
        parts
    }

    /// Converts a range of guest physical addresses (bytes), as
    /// [`GuestMemfd::convert_retrying`] does with each region that it touches, in order.
    ///
    /// Addresses outside of all regions are left out if `outside` says so.
    ///
    /// # Errors
    ///
    /// Those of [`GuestMemfd::convert`]. `EINVAL` if the range is empty or inverted, and with
    /// [`Outside::Refuse`] if not all of it is in regions; nothing has changed then.
    pub fn convert(
        &self,
        range: Range<u64>,
        to: Visibility,
        content: Content,
        attempts: u32,
        outside: Outside,
    ) -> Result<(), RangeError> {
        self.for_each_part(range, outside, |region, in_file| {
            let converted = region
                .memory
                .convert_retrying(in_file, to, content, attempts);
            match converted {
                Ok(_) => Ok(()),
                Err(ConvertError { errno, offset }) => Err((
                    errno,
                    offset.and_then(|offset| region.guest_address(offset)),
                )),
            }
        })
    }

    /// Frees the memory of a range of guest physical addresses (bytes), as
    /// [`GuestMemfd::punch_hole`] does in each region that it touches, in order.
    ///
    /// Addresses outside of all regions are left out if `outside` says so. The guest finds new memory
    /// there. A pKVM guest that has not agreed finds none.
    ///
    /// # Errors
    ///
    /// Those of [`GuestMemfd::punch_hole`], and `EINVAL` as for [`convert`](Self::convert).
    pub fn free(&self, range: Range<u64>, outside: Outside) -> Result<(), RangeError> {
        self.for_each_part(range, outside, |region, in_file| {
            let freed = region.memory.punch_hole(in_file);
            freed.map_err(|error| (error.raw_os_error().unwrap_or(libc::EIO), None))
        })
    }

    /// Calls `f` with each region that `range` touches, and the part of its file. It returns an error
    /// number, and the address that it is about.
    fn for_each_part(
        &self,
        range: Range<u64>,
        outside: Outside,
        mut f: impl FnMut(&Region, Range<u64>) -> Result<(), (i32, Option<u64>)>,
    ) -> Result<(), RangeError> {
        let parts = self.parts(&range);
        let stray = parts.iter().find(|(_, region)| region.is_none());
        let refused = match outside {
            Outside::Refuse => parts.is_empty() || stray.is_some(),
            Outside::Skip => range.is_empty(),
        };
        if refused {
            return Err(RangeError {
                errno: libc::EINVAL,
                address: stray.map(|(stray, _)| stray.start),
                converted: range.start..range.start,
            });
        }
        for (part, region) in parts {
            let Some(region) = region else { continue };
            let done = match region.file_range_of(&part) {
                Some(in_file) => f(region, in_file),
                None => Err((libc::EINVAL, None)),
            };
            done.map_err(|(errno, address)| RangeError {
                errno,
                address,
                converted: range.start..part.start,
            })?;
        }
        Ok(())
    }
}

impl<'a> IntoIterator for &'a Regions {
    type Item = &'a Region;
    type IntoIter = std::slice::Iter<'a, Region>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// What to do with guest physical addresses that are in no region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outside {
    /// Refuse the request as a whole.
    #[default]
    Refuse,
    /// Leave them out: they are memory of another kind, where there is nothing to convert.
    Skip,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::file::tests::memfd;

    /// A region of pages of a new file.
    pub(crate) fn region(file_range: Range<u64>, guest_phys_addr: u64) -> Region {
        let file = Arc::new(memfd(file_range.end));
        let mapping = Arc::new(file.map(file_range.clone()).unwrap());
        Region::new(file, file_range, guest_phys_addr, Some(mapping)).unwrap()
    }

    #[test]
    fn slot_has_everything_in_its_place() {
        let file = Arc::new(memfd(0x8000));
        let mapping = Arc::new(file.map(0x1000..0x8000).unwrap());
        let region = |mapping| Region::new(file.clone(), 0x4000..0x6000, 0x100000, mapping);
        let described = |region: Region| {
            let (backing, address) = region.backing().unwrap();
            (backing, region.slot(3, address as u64))
        };
        let (_mapping, slot) = described(region(Some(mapping.clone())).unwrap());
        assert_eq!(slot.slot, 3);
        assert_eq!(slot.flags, 1 << 2);
        assert_eq!(slot.guest_phys_addr, 0x100000);
        assert_eq!(slot.memory_size, 0x2000);
        assert_eq!(slot.guest_memfd_offset, 0x4000);
        assert_eq!(slot.guest_memfd, file.as_raw_fd() as u32);
        // The address is that of the slot's first byte, not of the mapping's.
        mapping.store(0x4000, 0xc3);
        let first = slot.userspace_addr as *const u8;
        // SAFETY: It points into the mapping, which is alive.
        assert_eq!(unsafe { first.read_volatile() }, 0xc3);
        // Or an address without memory.
        let (_none, slot) = described(region(None).unwrap());
        assert_ne!(slot.userspace_addr, 0);
    }

    #[test]
    fn a_region_has_to_make_sense() {
        let file = Arc::new(memfd(0x8000));
        let short = Arc::new(file.map(0..0x5000).unwrap());
        let foreign = Arc::new(memfd(0x8000).map(0..0x8000).unwrap());
        let refused = |range: Range<u64>, address, mapping: Option<&Arc<Mapping>>| {
            let error = Region::new(file.clone(), range, address, mapping.cloned()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        };
        refused(0x4000..0x6000, 0, Some(&short));
        refused(0x4000..0x6000, 0, Some(&foreign));
        // Size 0 would delete whatever slot has the number.
        refused(0x4000..0x4000, 0, None);
        refused(0x4000..0x9000, 0, None);
        refused(0x4000..0x6000, u64::MAX - 0x1000, None);
    }

    #[test]
    fn binding_to_what_is_no_vm_is_refused() {
        let region = region(0..0x1000, 0);
        let error = region.bind(&**region.memory(), 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn addresses_are_translated_whole_or_not_at_all() {
        let region = region(0x4000..0x8000, 0x100000);
        assert_eq!(region.guest_range(), 0x100000..0x104000);
        assert_eq!(region.guest_address(0x5000), Some(0x101000));
        assert_eq!(region.guest_address(0x8000), None);
        assert_eq!(region.guest_address(0x3fff), None);
        let of = |start: u64, end| region.file_range_of(&(start..end));
        assert_eq!(of(0x101000, 0x104000), Some(0x5000..0x8000));
        assert_eq!(of(0x101000, 0x104001), None);
        assert_eq!(of(0xff000, 0x101000), None);
        assert_eq!(of(0x104000, 0x104000), None);
        assert_eq!(of(0x102000, 0x101000), None);
        assert_eq!(of(0x101000, u64::MAX), None);
    }

    #[test]
    fn regions_are_found_by_address() {
        let regions = Regions::new(vec![
            region(0..0x2000, 0x100000),
            region(0..0x1000, 0),
            region(0..0x1000, 0x102000),
        ])
        .unwrap();
        let start = |address| regions.find(address).map(|found| found.guest_range().start);
        for (address, found) in [
            (0, Some(0)),
            (0xfff, Some(0)),
            (0x1000, None),
            (0x101fff, Some(0x100000)),
            (0x102000, Some(0x102000)),
            (0x103000, None),
        ] {
            assert_eq!(start(address), found, "{address:#x}");
        }
        assert!(Regions::default().find(0).is_none());
        let overlap = vec![region(0..0x2000, 0x1000), region(0..0x1000, 0x2000)];
        let error = Regions::new(overlap).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
    }

    #[test]
    fn a_range_is_taken_apart_by_regions() {
        let regions = Regions::new(vec![
            region(0..0x2000, 0x1000),
            region(0..0x1000, 0x3000),
            region(0..0x1000, 0x6000),
        ])
        .unwrap();
        let parts = |range: Range<u64>| -> Vec<_> {
            regions
                .parts(&range)
                .into_iter()
                .map(|(part, region)| (part, region.map(|region| region.guest_range().start)))
                .collect()
        };
        assert_eq!(
            parts(0..0x7000),
            [
                (0..0x1000, None),
                (0x1000..0x3000, Some(0x1000)),
                (0x3000..0x4000, Some(0x3000)),
                (0x4000..0x6000, None),
                (0x6000..0x7000, Some(0x6000)),
            ]
        );
        assert_eq!(parts(0x2000..0x2001), [(0x2000..0x2001, Some(0x1000))]);
        assert_eq!(parts(0x7000..0x8000), [(0x7000..0x8000, None)]);
        assert_eq!(parts(0x1000..0x1000), []);
    }

    #[test]
    fn a_stray_address_stops_a_conversion_before_it_begins() {
        let regions = Regions::new(vec![region(0..0x2000, 0x1000)]).unwrap();
        let convert = |range: Range<u64>, outside| {
            let (to, content) = (Visibility::Private, Content::Preserve);
            let result = regions.convert(range, to, content, 1, outside);
            result.map_err(|error| (error.errno, error.address, error.converted))
        };
        // These files do not convert: ENOTTY shows that the kernel was asked.
        assert_eq!(
            convert(0x1000..0x3000, Outside::Refuse),
            Err((libc::ENOTTY, None, 0x1000..0x1000))
        );
        assert_eq!(
            convert(0x1000..0x4000, Outside::Refuse),
            Err((libc::EINVAL, Some(0x3000), 0x1000..0x1000))
        );
        assert_eq!(
            convert(0..0x4000, Outside::Skip),
            Err((libc::ENOTTY, None, 0..0x1000))
        );
        assert_eq!(convert(0x8000..0x9000, Outside::Skip), Ok(()));
        for outside in [Outside::Refuse, Outside::Skip] {
            assert_eq!(
                convert(0x1000..0x1000, outside),
                Err((libc::EINVAL, None, 0x1000..0x1000))
            );
        }
    }

    #[test]
    fn errors_are_about_guest_addresses() {
        let region = region(0x2000..0x6000, 0x10_0000);
        let hold = region.memory().hold(0x3000..0x3001).unwrap();
        let regions = Regions::new(vec![region]).unwrap();
        let (to, content) = (Visibility::Private, Content::Preserve);
        let error = regions
            .convert(0x10_0000..0x10_4000, to, content, 2, Outside::Refuse)
            .unwrap_err();
        assert_eq!(
            (error.errno, error.address),
            (libc::EAGAIN, Some(0x10_1000))
        );
        assert!(error.to_string().ends_with("at guest address 0x101000"));
        drop(hold);
    }
}
