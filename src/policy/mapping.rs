// SPDX-License-Identifier: GPL-2.0

//! The rest of the range of a `KVM_MAP_MEMORY`.

use crate::request::{
    ioc,
    Invalid, //
};
use gmem_types::range::PageSize;

/// `KVM_MAP_MEMORY`, the ioctl on a vCPU that takes a `struct kvm_memory_mapping`.
///
/// It has the number of `KVM_PRE_FAULT_MEMORY`, and another size.
pub const MAP_MEMORY: u32 = ioc(1 | 2, 0xd5, size_of::<[u64; Mapping::WORDS]>());

// The struct that user space gets back.
const _: () = assert!(MAP_MEMORY == 0xC018_AED5);

/// Guest physical memory that is to be mapped: whole pages, whose end is below 2^64.
///
/// It becomes shorter at the front, page by page, and has its end where the request had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    page: PageSize,
    base: u64,
    size: u64,
}

impl Mapping {
    /// Words of the struct: base address, size, flags.
    pub const WORDS: usize = 3;

    /// Reads the struct.
    ///
    /// # Errors
    ///
    /// [`Invalid::Flags`], then [`Invalid::Range`] for a range that is not whole pages, is empty,
    /// or wraps, even to 0.
    pub const fn parse(words: [u64; Self::WORDS], page: PageSize) -> Result<Self, Invalid> {
        let [base, size, flags] = words;

        if flags != 0 {
            return Err(Invalid::Flags);
        }
        if !page.is_aligned(base) || !page.is_aligned(size) || size == 0 {
            return Err(Invalid::Range);
        }
        match base.checked_add(size) {
            Some(_) => Ok(Self { page, base, size }),
            None => Err(Invalid::Range),
        }
    }

    /// Returns the struct as user space gets it back.
    pub const fn to_words(&self) -> [u64; Self::WORDS] {
        [self.base, self.size, 0]
    }

    /// Returns the first guest physical address, in bytes.
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Returns how many bytes are left; 0 at the end.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Removes the mapped bytes from the front: as many whole pages as they have, and no more than
    /// are left. Returns whether this was at least one page.
    #[must_use]
    pub fn advance(&mut self, mapped: u64) -> bool {
        let whole = mapped - mapped % self.page.bytes();
        let done = whole.min(self.size);

        // The sum of base and size does not change.
        self.base = self.base.wrapping_add(done);
        self.size -= done;
        done != 0
    }
}
