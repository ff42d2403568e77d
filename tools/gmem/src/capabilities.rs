// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the kernel, or a VM, supports.

use crate::{
    abi,
    attributes::{
        Content,
        Visibility, //
    },
    file::CreateFlags,
    kvm, //
};
use std::{
    error,
    fmt,
    os::fd::AsRawFd, //
};

/// A set of content policies. [`Content::None`] is in every set: it promises nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policies(u8);

impl Policies {
    /// Whether `content` is supported.
    pub fn contains(self, content: Content) -> bool {
        let wanted = content.flags();
        u64::from(self.0) & wanted == wanted
    }
}

impl fmt::Display for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = String::from("NONE");
        for content in [Content::Zero, Content::Preserve] {
            if self.contains(content) {
                names += &format!(" {content}");
            }
        }
        f.pad(&names)
    }
}

/// The policies that a VM supports in one of its two phases, by direction.
///
/// ```
/// use gmem::{Content, PolicySupport, Visibility};
///
/// // The value for TDX: PRESERVE is announced to private only.
/// let tdx = PolicySupport::from_capability(0x030101);
/// assert!(tdx.allows(Visibility::Private, Content::Preserve));
/// assert!(!tdx.allows(Visibility::Shared, Content::Preserve));
/// assert!(!tdx.both.contains(Content::Preserve));
/// assert!(tdx.both.contains(Content::Zero));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicySupport {
    /// Supported in both directions.
    pub both: Policies,
    /// Supported when a range becomes shared.
    pub to_shared: Policies,
    /// Supported when a range becomes private.
    pub to_private: Policies,
}

impl PolicySupport {
    /// Decodes the value of one of the two `FLAGS` capabilities.
    pub const fn from_capability(value: u32) -> Self {
        let [both, to_shared, to_private, _] = value.to_le_bytes();
        Self {
            both: Policies(both),
            to_shared: Policies(to_shared),
            to_private: Policies(to_private),
        }
    }

    /// Whether a conversion to `to` can ask for `content`.
    pub fn allows(self, to: Visibility, content: Content) -> bool {
        match to {
            Visibility::Shared => self.to_shared,
            Visibility::Private => self.to_private,
        }
        .contains(content)
    }
}

/// Something that a VMM can need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Feature {
    /// A guest_memfd keeps track of private pages itself and converts them in place.
    InPlace,
    /// The host can map a guest_memfd.
    Mmap,
    /// A guest_memfd can start as shared.
    InitShared,
    /// The pages of a guest_memfd can be moved to other memory.
    Migratable,
    /// [`GuestMemfd::attributes_at`](crate::GuestMemfd::attributes_at) works, and functions that use it.
    ReadAttributes,
    /// A [`Populator`](crate::Populator) works.
    MapMemory,
    /// A guest's requests for conversions can be handed to the VMM.
    ExitMapGpaRange,
}

impl Feature {
    /// The feature's name, the capability that announces it, and that capability's number.
    fn names(self) -> (&'static str, &'static str, u64) {
        let (name, capability, number) = match self {
            Self::InPlace => (
                "conversion in place",
                "KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES",
                abi::KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES,
            ),
            Self::Mmap => (
                "GUEST_MEMFD_FLAG_MMAP",
                "KVM_CAP_GUEST_MEMFD_FLAGS",
                abi::KVM_CAP_GUEST_MEMFD_FLAGS,
            ),
            Self::InitShared => (
                "GUEST_MEMFD_FLAG_INIT_SHARED",
                "KVM_CAP_GUEST_MEMFD_FLAGS",
                abi::KVM_CAP_GUEST_MEMFD_FLAGS,
            ),
            Self::Migratable => (
                "GUEST_MEMFD_FLAG_MIGRATABLE",
                "KVM_CAP_GUEST_MEMFD_FLAGS",
                abi::KVM_CAP_GUEST_MEMFD_FLAGS,
            ),
            Self::ReadAttributes => (
                "KVM_GET_MEMORY_ATTRIBUTES2",
                "KVM_CAP_GET_MEMORY_ATTRIBUTES2",
                abi::KVM_CAP_GET_MEMORY_ATTRIBUTES2,
            ),
            Self::MapMemory => (
                "KVM_MAP_MEMORY",
                "KVM_CAP_MAP_MEMORY",
                abi::KVM_CAP_MAP_MEMORY,
            ),
            Self::ExitMapGpaRange => (
                "exit for KVM_HC_MAP_GPA_RANGE",
                "KVM_CAP_EXIT_HYPERCALL",
                abi::KVM_CAP_EXIT_HYPERCALL,
            ),
        };
        (name, capability, number)
    }
}

/// A required feature that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing(pub Feature);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, capability, number) = self.0.names();
        // Capabilities of this project are identified by their number in the header.
        match number {
            0x10000.. => write!(f, "no {name} here ({capability}, {number:#x})"),
            _ => write!(f, "no {name} here ({capability}, {number})"),
        }
    }
}

impl error::Error for Missing {}

/// Everything that a VMM needs to know before it creates the first guest_memfd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Flags that [`GuestMemfd::create`](crate::GuestMemfd::create) may be given.
    pub create_flags: CreateFlags,
    /// [`Feature::InPlace`].
    pub converts_in_place: bool,
    /// Content policies before launch.
    pub before_launch: PolicySupport,
    /// Content policies after launch.
    pub after_launch: PolicySupport,
    /// [`Feature::ReadAttributes`].
    pub reads_attributes: bool,
    /// [`Feature::MapMemory`].
    pub maps_memory: bool,
    /// [`Feature::ExitMapGpaRange`].
    pub exits_map_gpa_range: bool,
    /// The types of VM that the host supports (`KVM_CAP_VM_TYPES`), as a mask of `1 << type`; 0
    /// where KVM does not report types in this way.
    pub vm_types: u32,
}

impl Capabilities {
    /// Queries a VM, by its descriptor. The descriptor of `/dev/kvm` returns what at least one type
    /// of VM supports here.
    ///
    /// A descriptor that cannot be queried supports nothing.
    pub fn of(asked: &impl AsRawFd) -> Self {
        let value = |capability| kvm::check_extension(asked, capability);
        let attributes = value(abi::KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES);
        let hypercalls = value(abi::KVM_CAP_EXIT_HYPERCALL);
        Self {
            create_flags: CreateFlags::from_bits(value(abi::KVM_CAP_GUEST_MEMFD_FLAGS).into()),
            converts_in_place: u64::from(attributes) & abi::KVM_MEMORY_ATTRIBUTE_PRIVATE != 0,
            before_launch: PolicySupport::from_capability(value(
                abi::KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS,
            )),
            after_launch: PolicySupport::from_capability(value(
                abi::KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS,
            )),
            reads_attributes: value(abi::KVM_CAP_GET_MEMORY_ATTRIBUTES2) != 0,
            maps_memory: value(abi::KVM_CAP_MAP_MEMORY) != 0,
            exits_map_gpa_range: hypercalls & 1 << abi::KVM_HC_MAP_GPA_RANGE != 0,
            vm_types: value(abi::KVM_CAP_VM_TYPES),
        }
    }

    /// Whether a feature is supported.
    pub fn has(&self, feature: Feature) -> bool {
        match feature {
            Feature::InPlace => self.converts_in_place,
            Feature::Mmap => self.create_flags.contains(CreateFlags::MMAP),
            Feature::InitShared => self.create_flags.contains(CreateFlags::INIT_SHARED),
            Feature::Migratable => self.create_flags.contains(CreateFlags::MIGRATABLE),
            Feature::ReadAttributes => self.reads_attributes,
            Feature::MapMemory => self.maps_memory,
            Feature::ExitMapGpaRange => self.exits_map_gpa_range,
        }
    }

    /// Returns the first missing one of `features` as the error.
    ///
    /// ```
    /// use gmem::{Capabilities, Feature, Missing};
    ///
    /// let nothing = Capabilities::default();
    /// let missing = nothing.require(&[Feature::InPlace, Feature::Mmap]).unwrap_err();
    /// assert_eq!(missing, Missing(Feature::InPlace));
    /// assert_eq!(
    ///     missing.to_string(),
    ///     "no conversion in place here (KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES, 252)"
    /// );
    /// ```
    ///
    /// # Errors
    ///
    /// [`Missing`].
    pub fn require(&self, features: &[Feature]) -> Result<(), Missing> {
        let missing = features.iter().find(|&&feature| !self.has(feature));
        missing.map_or(Ok(()), |&feature| Err(Missing(feature)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn support_is_decoded_byte_by_byte() {
        let support = PolicySupport::from_capability(0x010203);
        assert_eq!(support.both, Policies(3));
        assert_eq!(support.to_shared, Policies(2));
        assert_eq!(support.to_private, Policies(1));
        assert!(support.allows(Visibility::Shared, Content::Preserve));
        assert!(!support.allows(Visibility::Shared, Content::Zero));
        assert!(support.allows(Visibility::Private, Content::Zero));
        assert!(!support.allows(Visibility::Private, Content::Preserve));
    }

    #[test]
    fn none_needs_no_bit() {
        let nothing = PolicySupport::from_capability(0);
        for to in [Visibility::Shared, Visibility::Private] {
            assert!(nothing.allows(to, Content::None));
            assert!(!nothing.allows(to, Content::Zero));
            assert!(!nothing.allows(to, Content::Preserve));
        }
    }

    #[test]
    fn policies_are_named() {
        assert_eq!(Policies(0).to_string(), "NONE");
        assert_eq!(Policies(3).to_string(), "NONE ZERO PRESERVE");
        // Policies of a later kernel have no name here.
        assert_eq!(Policies(6).to_string(), "NONE PRESERVE");
    }

    #[test]
    fn what_cannot_be_asked_can_do_nothing() {
        let file = crate::file::tests::memfd(0x1000);
        assert_eq!(Capabilities::of(&file), Capabilities::default());
    }

    #[test]
    fn features_are_required_in_order() {
        let some = Capabilities {
            converts_in_place: true,
            create_flags: CreateFlags::MMAP,
            maps_memory: true,
            ..Default::default()
        };
        use Feature::*;
        assert_eq!(some.require(&[InPlace, Mmap, MapMemory]), Ok(()));
        for feature in [InitShared, Migratable, ReadAttributes, ExitMapGpaRange] {
            assert_eq!(
                some.require(&[Mmap, feature, InPlace]),
                Err(Missing(feature))
            );
        }
        assert_eq!(
            Missing(Migratable).to_string(),
            "no GUEST_MEMFD_FLAG_MIGRATABLE here (KVM_CAP_GUEST_MEMFD_FLAGS, 244)"
        );
        assert_eq!(
            Missing(ReadAttributes).to_string(),
            "no KVM_GET_MEMORY_ATTRIBUTES2 here (KVM_CAP_GET_MEMORY_ATTRIBUTES2, 0x10002)"
        );
        assert_eq!(
            Missing(ExitMapGpaRange).to_string(),
            "no exit for KVM_HC_MAP_GPA_RANGE here (KVM_CAP_EXIT_HYPERCALL, 201)"
        );
    }
}
