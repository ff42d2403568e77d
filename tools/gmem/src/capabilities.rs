// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the kernel, or a VM, can do.

use crate::{
    abi,
    attributes::{
        Content,
        Visibility, //
    },
    file::CreateFlags, //
};
use kvm_ioctls::{
    Kvm,
    VmFd, //
};
use libc::c_ulong;
use std::fmt;

mod sealed {
    pub trait Sealed {}
    impl Sealed for kvm_ioctls::Kvm {}
    impl Sealed for kvm_ioctls::VmFd {}
}

/// What can be asked for capabilities: `/dev/kvm`, which answers what some VM may have, or a VM,
/// which answers for itself.
pub trait CheckExtension: sealed::Sealed {
    /// The value of the capability, 0 if the kernel does not know it.
    fn capability(&self, capability: c_ulong) -> u32;
}

impl CheckExtension for Kvm {
    fn capability(&self, capability: c_ulong) -> u32 {
        positive(self.check_extension_raw(capability))
    }
}

impl CheckExtension for VmFd {
    fn capability(&self, capability: c_ulong) -> u32 {
        positive(self.check_extension_raw(capability))
    }
}

/// An error means that the capability is not there.
fn positive(value: i32) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

/// A set of content policies. [`Content::None`] is in every set: it promises nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policies(u8);

impl Policies {
    /// Whether `content` can be asked for.
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
/// // What TDX says: PRESERVE works to private only.
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
    /// Takes the value of one of the two `FLAGS` capabilities apart.
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

/// Everything that is to be known before the first guest_memfd is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Flags that [`GuestMemfd::create`](crate::GuestMemfd::create) may be given.
    pub create_flags: CreateFlags,
    /// A guest_memfd keeps track of private pages itself and converts them in place.
    pub converts_in_place: bool,
    /// Content policies before launch.
    pub before_launch: PolicySupport,
    /// Content policies after launch.
    pub after_launch: PolicySupport,
    /// [`GuestMemfd::attributes_at`](crate::GuestMemfd::attributes_at) works.
    pub reads_attributes: bool,
}

impl Capabilities {
    /// Asks `kvm`, or better the VM in question.
    pub fn of(asked: &impl CheckExtension) -> Self {
        let attributes = asked.capability(abi::KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES);
        Self {
            create_flags: CreateFlags::from_bits(
                asked.capability(abi::KVM_CAP_GUEST_MEMFD_FLAGS).into(),
            ),
            converts_in_place: u64::from(attributes) & abi::KVM_MEMORY_ATTRIBUTE_PRIVATE != 0,
            before_launch: PolicySupport::from_capability(
                asked.capability(abi::KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS),
            ),
            after_launch: PolicySupport::from_capability(
                asked.capability(abi::KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS),
            ),
            reads_attributes: asked.capability(abi::KVM_CAP_GET_MEMORY_ATTRIBUTES2) != 0,
        }
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
        // Policies of a later kernel are not ours to name.
        assert_eq!(Policies(6).to_string(), "NONE PRESERVE");
    }

    #[test]
    fn failed_check_is_no_capability() {
        assert_eq!(positive(-1), 0);
        assert_eq!(positive(0x030303), 0x030303);
    }
}
