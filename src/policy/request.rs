// SPDX-License-Identifier: GPL-2.0

//! Checks the struct of an ioctl and makes a request of it.
//!
//! A raw struct is checked once, here. The result has been checked in full, cannot be changed any
//! more, and counts in pages.
//!
//! C header: `include/uapi/linux/kvm_gmem.h`

use core::mem::{
    offset_of,
    size_of, //
};

use gmem_types::{
    content::Content,
    range::{
        Geometry,
        PageIndex,
        PageRange, //
    },
    visibility::Visibility, //
};

/// `struct kvm_memory_attributes2`, as the caller wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RawRequest {
    /// Where the range starts in the file, in bytes.
    pub offset: u64,
    /// The size of the range, in bytes.
    pub size: u64,
    /// Memory attributes: 0 for shared, or `KVM_MEMORY_ATTRIBUTE_PRIVATE`.
    pub attributes: u64,
    /// The content policy.
    pub flags: u64,
    /// Out: the byte offset of the first page that stopped the request.
    pub error_offset: u64,
    /// Zeroes.
    pub reserved: [u64; 11],
}

impl RawRequest {
    /// The number of 64-bit words in the struct.
    pub const WORDS: usize = 16;

    /// Makes the struct from its words in memory order.
    ///
    /// This is for callers that can copy integers from user space, but not this type.
    pub const fn from_words(words: [u64; Self::WORDS]) -> Self {
        let [offset, size, attributes, flags, error_offset, reserved @ ..] = words;
        Self {
            offset,
            size,
            attributes,
            flags,
            error_offset,
            reserved,
        }
    }

    /// Returns the words of the struct in memory order.
    pub const fn to_words(&self) -> [u64; Self::WORDS] {
        let [r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10] = self.reserved;
        [
            self.offset,
            self.size,
            self.attributes,
            self.flags,
            self.error_offset,
            r0,
            r1,
            r2,
            r3,
            r4,
            r5,
            r6,
            r7,
            r8,
            r9,
            r10,
        ]
    }

    /// Tells whether all words that must be 0 are.
    fn reserved_is_zero(&self) -> bool {
        self.reserved.iter().all(|&word| word == 0)
    }
}

// The layout is the user-space interface. The first four fields also are those of `struct
// kvm_memory_attributes`, the argument of the VM ioctl.
const _: () = assert!(size_of::<RawRequest>() == 128);
const _: () = assert!(size_of::<RawRequest>() == RawRequest::WORDS * size_of::<u64>());
const _: () = assert!(offset_of!(RawRequest, offset) == 0);
const _: () = assert!(offset_of!(RawRequest, size) == 8);
const _: () = assert!(offset_of!(RawRequest, attributes) == 16);
const _: () = assert!(offset_of!(RawRequest, flags) == 24);
const _: () = assert!(offset_of!(RawRequest, error_offset) == 32);
const _: () = assert!(offset_of!(RawRequest, reserved) == 40);

/// Computes an ioctl's command the way `asm-generic/ioctl.h` does, which x86 and arm64 use.
///
/// `direction` is 1 if user space writes, 2 if it reads, and their sum for both.
pub(crate) const fn ioc(direction: u32, number: u32, size: usize) -> u32 {
    /// `KVMIO`.
    const TYPE: u32 = 0xAE;

    // PANIC: Only in a constant, where it is a build failure.
    assert!(size < 1 << 14);
    // CAST: A command has 14 bits for the size.
    direction << 30 | (size as u32) << 16 | TYPE << 8 | number
}

/// `KVM_SET_MEMORY_ATTRIBUTES2`, the ioctl on a guest_memfd that takes a [`RawRequest`].
pub const SET_MEMORY_ATTRIBUTES2: u32 = ioc(1 | 2, 0xd2, size_of::<RawRequest>());

/// `KVM_GET_MEMORY_ATTRIBUTES2`, the ioctl on a guest_memfd that fills a [`RawRequest`].
pub const GET_MEMORY_ATTRIBUTES2: u32 = ioc(1 | 2, 0xd3, size_of::<RawRequest>());

/// `KVM_SET_MEMORY_ATTRIBUTES`, the ioctl on a VM.
///
/// It has the number of [`SET_MEMORY_ATTRIBUTES2`], and differs from it in direction and size: its
/// struct ends with the flags.
pub const VM_SET_MEMORY_ATTRIBUTES: u32 = ioc(1, 0xd2, offset_of!(RawRequest, error_offset));

const _: () = assert!(SET_MEMORY_ATTRIBUTES2 == 0xC080_AED2);
const _: () = assert!(GET_MEMORY_ATTRIBUTES2 == 0xC080_AED3);
const _: () = assert!(VM_SET_MEMORY_ATTRIBUTES == 0x4020_AED2);

/// The reason why a request is invalid.
///
/// User space gets `EINVAL` for all of these. They are distinct so that a test can see the order in
/// which they are looked for, which is that of the variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// A flag that is not known, or two policies at once.
    Flags,
    /// A reserved word that is not 0.
    Reserved,
    /// The VM has no private memory.
    NoPrivateMemory,
    /// Attributes other than private.
    Attributes,
    /// A range that is empty, overflows, is not page aligned, or is not inside the file.
    Range,
}

/// A checked request to make a range of a file shared or private.
///
/// # Invariants
///
/// The range lies inside the file for whose [`Geometry`] the request was parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    range: PageRange,
    to: Visibility,
    content: Content,
}

impl Request {
    /// Checks the argument of [`SET_MEMORY_ATTRIBUTES2`].
    ///
    /// `has_private_memory` tells whether the VM of the file has private memory at all.
    ///
    /// # Errors
    ///
    /// The first reason, in the order of [`Invalid`], for which the request is not legal.
    pub fn parse(
        raw: &RawRequest,
        geometry: &Geometry,
        has_private_memory: bool,
    ) -> Result<Self, Invalid> {
        let content = Content::from_flags(raw.flags).ok_or(Invalid::Flags)?;
        if !raw.reserved_is_zero() {
            return Err(Invalid::Reserved);
        }
        if !has_private_memory {
            return Err(Invalid::NoPrivateMemory);
        }
        let to = Visibility::from_attributes(raw.attributes).ok_or(Invalid::Attributes)?;
        let range = geometry.range(raw.offset, raw.size).ok_or(Invalid::Range)?;
        // INVARIANT: The geometry gives out no range that is not inside the file.
        Ok(Self { range, to, content })
    }

    /// Returns the pages that the request is about.
    pub const fn range(&self) -> PageRange {
        self.range
    }

    /// Returns what the pages are to be.
    pub const fn to(&self) -> Visibility {
        self.to
    }

    /// Returns the content policy that the caller requests.
    pub const fn content(&self) -> Content {
        self.content
    }
}

/// A checked question about one page of a file.
///
/// # Invariants
///
/// The page lies inside the file for whose [`Geometry`] the question was parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    at: PageIndex,
}

impl Query {
    /// Checks the argument of [`GET_MEMORY_ATTRIBUTES2`].
    ///
    /// All words but the offset must be 0, so that each of them can be given a meaning later.
    /// `has_private_memory` tells whether the VM of the file has private memory at all.
    ///
    /// # Errors
    ///
    /// The first reason, in the order of [`Invalid`], for which the question is not legal. An
    /// `error_offset` that is not 0 counts as reserved, a size that is not 0 as a bad range.
    pub fn parse(
        raw: &RawRequest,
        geometry: &Geometry,
        has_private_memory: bool,
    ) -> Result<Self, Invalid> {
        if raw.flags != 0 {
            return Err(Invalid::Flags);
        }
        if raw.error_offset != 0 || !raw.reserved_is_zero() {
            return Err(Invalid::Reserved);
        }
        if !has_private_memory {
            return Err(Invalid::NoPrivateMemory);
        }
        if raw.attributes != 0 {
            return Err(Invalid::Attributes);
        }
        if raw.size != 0 {
            return Err(Invalid::Range);
        }
        // INVARIANT: The geometry gives out no page that is not inside the file.
        match geometry.page_at(raw.offset) {
            Some(at) => Ok(Self { at }),
            None => Err(Invalid::Range),
        }
    }

    /// Returns the page that the question is about.
    pub const fn at(&self) -> PageIndex {
        self.at
    }
}
