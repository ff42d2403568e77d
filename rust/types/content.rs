// SPDX-License-Identifier: GPL-2.0

//! Content policies, and what is done to the bytes of a range.

/// The byte that every byte of a scrambled page has.
///
/// If nothing is promised about contents, and the hardware does not destroy them, they are destroyed
/// on purpose, so that users do not rely on them.
pub const SCRAMBLE_BYTE: u8 = 0xab;

/// The promise about the bytes of the requested range: the content policy.
///
/// The promise covers all pages of the range, also those that already have the requested
/// attributes. It is about what setting the attributes does to the bytes. What a guest reads later
/// through its own key depends on the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing is promised.
    None,
    /// Every byte is zero.
    Zero,
    /// No byte is changed.
    Preserve,
}

impl Content {
    /// `KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_ZERO`.
    const ZERO: u64 = 1 << 0;

    /// `KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_PRESERVE`.
    const PRESERVE: u64 = 1 << 1;

    /// Returns the bits for this policy in the `flags` of a request.
    pub const fn flags(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Zero => Self::ZERO,
            Self::Preserve => Self::PRESERVE,
        }
    }

    /// Reads the `flags` of a request.
    ///
    /// Returns [`None`] for an unknown bit, and for both of the known ones: bytes cannot be zeroed and
    /// unchanged.
    pub const fn from_flags(flags: u64) -> Option<Self> {
        match flags {
            0 => Some(Self::None),
            Self::ZERO => Some(Self::Zero),
            Self::PRESERVE => Some(Self::Preserve),
            _ => None,
        }
    }
}

/// What is done to the bytes of an allocated page.
///
/// Allocated means zeroed at its first use. All other pages read as zeroes when they are first
/// used, so that nothing is ever done to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The bytes stay as they are.
    Leave,
    /// The bytes are overwritten by zeroes.
    Zero,
    /// The bytes are overwritten by [`SCRAMBLE_BYTE`].
    Scramble,
}

impl Action {
    /// Returns the action where pages are scrambled only if `enabled`.
    ///
    /// Pages are scrambled only where nothing is promised, so no promise depends on this.
    pub const fn with_scrambling(self, enabled: bool) -> Self {
        match self {
            Self::Scramble if !enabled => Self::Leave,
            action => action,
        }
    }
}
