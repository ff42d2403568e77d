// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memslots: where the guest sees the file.

use crate::{
    file::GuestMemfd,
    mapping::Mapping, //
};
use kvm_bindings::{
    kvm_userspace_memory_region2,
    KVM_MEM_GUEST_MEMFD, //
};
use kvm_ioctls::VmFd;
use std::{
    io,
    mem,
    ops::Range,
    os::fd::AsRawFd,
    sync::Arc, //
};

/// Where in the guest a part of a file goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotLayout {
    /// Number of the memslot.
    pub slot: u32,
    /// First guest physical address.
    pub guest_phys_addr: u64,
    /// Which part of the file, in bytes.
    pub file_range: Range<u64>,
}

impl SlotLayout {
    /// Where in the guest the byte at `offset` in the file is.
    ///
    /// ```
    /// let layout = gmem::SlotLayout {
    ///     slot: 0,
    ///     guest_phys_addr: 0x100000,
    ///     file_range: 0x4000..0x8000,
    /// };
    /// assert_eq!(layout.guest_address(0x5000), Some(0x101000));
    /// assert_eq!(layout.guest_address(0x8000), None);
    /// assert_eq!(layout.file_offset(0x101000), Some(0x5000));
    /// assert_eq!(layout.file_offset(0x104000), None);
    /// ```
    pub fn guest_address(&self, offset: u64) -> Option<u64> {
        if !self.file_range.contains(&offset) {
            return None;
        }
        self.guest_phys_addr
            .checked_add(offset - self.file_range.start)
    }

    /// Where in the file the byte at a guest physical address is.
    pub fn file_offset(&self, guest_address: u64) -> Option<u64> {
        let distance = guest_address.checked_sub(self.guest_phys_addr)?;
        self.file_range
            .start
            .checked_add(distance)
            .filter(|offset| self.file_range.contains(offset))
    }

    /// Which range of the file a range of guest physical addresses is, if all of it is in the
    /// slot.
    pub fn file_range_of(&self, guest_address: u64, size: u64) -> Option<Range<u64>> {
        let start = self.file_offset(guest_address)?;
        let end = start.checked_add(size)?;
        (end <= self.file_range.end).then_some(start..end)
    }
}

/// A memslot, deleted when dropped.
///
/// It keeps the mapping through which KVM itself reads and writes shared pages.
#[derive(Debug)]
pub struct Slot<'vm> {
    vm: &'vm VmFd,
    number: u32,
    mapping: Option<Arc<Mapping>>,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let nothing = kvm_userspace_memory_region2 {
            slot: self.number,
            ..Default::default()
        };
        // SAFETY: A slot of size 0 is deleted and has no address.
        if unsafe { self.vm.set_user_memory_region2(nothing) }.is_err() {
            // KVM may still use the mapping, so it has to stay for ever.
            mem::forget(self.mapping.take());
        }
    }
}

impl GuestMemfd {
    /// Puts a part of the file into the guest.
    ///
    /// `mapping` is for KVM's own accesses to the guest's memory, such as emulated instructions;
    /// it has to be of this file and cover the part, else `EINVAL`. Without it such accesses fail.
    pub fn bind<'vm>(
        &self,
        vm: &'vm VmFd,
        layout: &SlotLayout,
        mapping: Option<&Arc<Mapping>>,
    ) -> io::Result<Slot<'vm>> {
        let region = self.region(layout, mapping)?;
        // SAFETY: The address is that of a mapping of the whole slot, or 0. The `Slot` keeps the
        // mapping until the memslot is gone, and it never gives out references to its memory.
        unsafe { vm.set_user_memory_region2(region) }
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        Ok(Slot {
            vm,
            number: layout.slot,
            mapping: mapping.cloned(),
        })
    }

    fn region(
        &self,
        layout: &SlotLayout,
        mapping: Option<&Arc<Mapping>>,
    ) -> io::Result<kvm_userspace_memory_region2> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let range = &layout.file_range;
        // Size 0 would delete whatever slot has the number.
        if range.is_empty() {
            return Err(invalid());
        }
        let userspace_addr = match mapping {
            None => 0,
            Some(mapping) if mapping.identity() != self.identity() => return Err(invalid()),
            Some(mapping) => mapping.address_of(range).ok_or_else(invalid)? as u64,
        };
        Ok(kvm_userspace_memory_region2 {
            slot: layout.slot,
            flags: KVM_MEM_GUEST_MEMFD,
            guest_phys_addr: layout.guest_phys_addr,
            memory_size: range.end - range.start,
            userspace_addr,
            guest_memfd_offset: range.start,
            guest_memfd: self.as_raw_fd() as u32,
            ..Default::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::memfd;

    fn layout(file_range: Range<u64>) -> SlotLayout {
        SlotLayout {
            slot: 3,
            guest_phys_addr: 0x100000,
            file_range,
        }
    }

    #[test]
    fn region_has_everything_in_its_place() {
        let file = memfd(0x8000);
        let mapping = Arc::new(file.map(0x1000..0x8000).unwrap());
        let region = file
            .region(&layout(0x4000..0x6000), Some(&mapping))
            .unwrap();
        assert_eq!(region.slot, 3);
        assert_eq!(region.flags, 1 << 2);
        assert_eq!(region.guest_phys_addr, 0x100000);
        assert_eq!(region.memory_size, 0x2000);
        assert_eq!(region.guest_memfd_offset, 0x4000);
        assert_eq!(region.guest_memfd, file.as_raw_fd() as u32);
        // The address is that of the slot's first byte, not of the mapping's.
        mapping.store(0x4000, 0xc3);
        let first = region.userspace_addr as *const u8;
        // SAFETY: It points into the mapping, which is alive.
        assert_eq!(unsafe { first.read_volatile() }, 0xc3);
    }

    #[test]
    fn mapping_has_to_fit() {
        let file = memfd(0x8000);
        let other = memfd(0x8000);
        let short = Arc::new(file.map(0..0x5000).unwrap());
        let foreign = Arc::new(other.map(0..0x8000).unwrap());
        for mapping in [&short, &foreign] {
            let error = file
                .region(&layout(0x4000..0x6000), Some(mapping))
                .unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
        assert_eq!(
            file.region(&layout(0x4000..0x6000), None)
                .unwrap()
                .userspace_addr,
            0
        );
    }

    #[test]
    fn empty_slot_would_be_a_deletion() {
        let file = memfd(0x8000);
        assert!(file.region(&layout(0x4000..0x4000), None).is_err());
    }

    #[test]
    fn guest_ranges_are_translated_whole_or_not_at_all() {
        let layout = layout(0x4000..0x8000);
        assert_eq!(layout.file_range_of(0x101000, 0x3000), Some(0x5000..0x8000));
        assert_eq!(layout.file_range_of(0x101000, 0x3001), None);
        assert_eq!(layout.file_range_of(0xff000, 0x1000), None);
        assert_eq!(layout.file_range_of(0x101000, u64::MAX), None);
    }
}
