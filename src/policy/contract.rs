// SPDX-License-Identifier: GPL-2.0

//! What each platform promises about the bytes of converted pages: one table, in [`action`].
//!
//! A row says what a request does to an allocated page, by platform, by whether the platform owns
//! the page, by direction and by policy. Whether the guest has been launched does not matter: the
//! platforms that own pages own some before launch as well.
//!
//! A new platform needs a new variant of [`Platform`], an entry in [`Platform::ALL`], and its rows
//! in the table, which the compiler enforces. The rows do not depend on what implements a platform.
//! The capabilities are computed from the table, so none of them announces a policy that requests
//! cannot use.

use gmem_types::{
    content::{
        Action,
        Content, //
    },
    platform::{
        Base,
        Platform, //
    },
    visibility::Visibility, //
};

/// Why a platform does not accept a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The platform cannot keep the promise: `EOPNOTSUPP`.
    NotSupported,
    /// The guest has to share the page first: `EPERM`.
    NotShared,
}

/// Returns what a request does to the bytes of an allocated page, given whether the platform owns
/// the page now.
///
/// A page is owned while it is assigned to the guest (SNP), in its S-EPT (TDX), or mapped by it and
/// not shared (pKVM): the host can neither read nor write its contents. An owned page that is to
/// become private is private already, with one exception: a pKVM guest can take back a page that
/// the file has as shared.
///
/// An owned page that becomes shared is given back by the platform before anything is done to its
/// bytes. So the action is the same for all pages of a request; ownership only decides whether the
/// request is refused.
///
/// # Errors
///
/// [`Refusal::NotSupported`] if the platform cannot keep the promise for such a page,
/// [`Refusal::NotShared`] if the guest has to share the page first.
pub const fn action(
    platform: Platform,
    owned: bool,
    to: Visibility,
    content: Content,
) -> Result<Action, Refusal> {
    use Action::*;
    use Platform::*;
    use Refusal::*;
    use Visibility::*;

    #[rustfmt::skip]
    let row = match (platform, owned, to, content) {
        // This platform owns no page: the host can write all of them.
        (SwProtected,            _,     _,       Content::Preserve) => Ok(Leave),
        (SwProtected,            _,     _,       Content::Zero)     => Ok(Zero),
        (SwProtected,            _,     _,       Content::None)     => Ok(Scramble),

        // A page becomes owned when the guest first uses it, not when it is converted. Until then
        // the host can write it. On pKVM, EL2 zeroes it for the host.
        (Snp(_) | Tdx(_) | Pkvm, false, _,       Content::Preserve) => Ok(Leave),
        (Snp(_) | Tdx(_) | Pkvm, false, _,       Content::None)     => Ok(Leave),
        (Snp(_) | Tdx(_) | Pkvm, false, _,       Content::Zero)     => Ok(Zero),

        // The page stays owned, and nobody but the guest can write it.
        (Snp(_) | Tdx(_) | Pkvm, true,  Private, Content::Preserve) => Ok(Leave),
        (Snp(_) | Tdx(_) | Pkvm, true,  Private, Content::None)     => Ok(Leave),
        (Snp(_) | Tdx(_) | Pkvm, true,  Private, Content::Zero)     => Err(NotSupported),

        // The RMP does not change the bytes: the host finds the ciphertext.
        (Snp(_),                 true,  Shared,  Content::Preserve) => Ok(Leave),
        (Snp(_),                 true,  Shared,  Content::None)     => Ok(Leave),
        (Snp(_),                 true,  Shared,  Content::Zero)     => Ok(Zero),

        // Taking a page out of the S-EPT destroys its contents.
        (Tdx(_),                 true,  Shared,  Content::Preserve) => Err(NotSupported),
        (Tdx(_),                 true,  Shared,  Content::Zero)     => Ok(Zero),
        (Tdx(_),                 true,  Shared,  Content::None)     => Ok(Leave),

        // Only the guest can share its pages.
        (Pkvm,                   true,  Shared,  _)                 => Err(NotShared),
    };
    row
}

/// Returns the policies that a platform accepts for one direction, as the `flags` of a request.
///
/// [`Content::None`] has no bit, because it promises nothing. A policy is announced if it is kept
/// for every page that the request would change. Such a page can be owned only if it is to become
/// shared. A policy that needs the guest's consent is announced as well.
const fn supported(platform: Platform, to: Visibility) -> u8 {
    bit(platform, to, Content::Zero) | bit(platform, to, Content::Preserve)
}

const fn bit(platform: Platform, to: Visibility, content: Content) -> u8 {
    let can_be_owned = matches!(to, Visibility::Shared);

    match (
        action(platform, false, to, content),
        action(platform, can_be_owned, to, content),
    ) {
        (Err(Refusal::NotSupported), _) | (_, Err(Refusal::NotSupported)) => 0,
        // CAST: The policies are the two lowest bits.
        _ => content.flags() as u8,
    }
}

/// Returns the policies that a platform accepts.
///
/// This is the value of `KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS` and of
/// `KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS`, asked on a VM. Its bytes hold, from the lowest, the policies
/// for both directions, for the one to shared, and for the one to private.
pub const fn capability(platform: Platform) -> u32 {
    let to_shared = supported(platform, Visibility::Shared);
    let to_private = supported(platform, Visibility::Private);
    u32::from_le_bytes([to_shared & to_private, to_shared, to_private, 0])
}

/// Returns the policies that at least one of the platforms accepts.
///
/// This is what [`capability`] is for `/dev/kvm`, where no VM has been chosen yet: `available`
/// tells on which platforms there can be VMs.
pub fn capability_any(available: impl Fn(Platform) -> bool) -> u32 {
    Platform::ALL
        .iter()
        .filter(|&&platform| available(platform))
        .fold(0, |flags, &platform| flags | capability(platform))
}

// What the user-space interface says about each platform, before launch and after it.
const _: () = assert!(capability(Platform::SwProtected) == 0x03_03_03);
const _: () = assert!(capability(Platform::Snp(Base::Hardware)) == 0x03_03_03);
const _: () = assert!(capability(Platform::Tdx(Base::Hardware)) == 0x03_01_01);
const _: () = assert!(capability(Platform::Pkvm) == 0x03_03_03);
