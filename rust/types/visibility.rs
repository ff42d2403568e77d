// SPDX-License-Identifier: GPL-2.0

//! Whether pages are shared or private.

use crate::range::PageRange;

/// Who can access a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// The host and the guest.
    Shared,
    /// The guest alone.
    Private,
}

impl Visibility {
    /// `KVM_MEMORY_ATTRIBUTE_PRIVATE`.
    const PRIVATE: u64 = 1 << 3;

    /// Returns the memory attributes for this visibility.
    pub const fn attributes(self) -> u64 {
        match self {
            Self::Shared => 0,
            Self::Private => Self::PRIVATE,
        }
    }

    /// Reads memory attributes, or returns [`None`] if there is one that is not known.
    pub const fn from_attributes(attributes: u64) -> Option<Self> {
        match attributes {
            0 => Some(Self::Shared),
            Self::PRIVATE => Some(Self::Private),
            _ => None,
        }
    }

    /// Returns the other visibility.
    pub const fn opposite(self) -> Self {
        match self {
            Self::Shared => Self::Private,
            Self::Private => Self::Shared,
        }
    }
}

/// Consecutive pages that are all shared or all private.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The pages.
    pub range: PageRange,
    /// Whether they are shared or private.
    pub visibility: Visibility,
}
