// SPDX-License-Identifier: GPL-2.0

//! What each platform promises about the bytes of converted pages.
//!
//! One function for each platform, which has a row for each phase, direction and content policy.
//! A new platform is a new variant of [`Platform`], its row in [`Platform::ALL`], and its function;
//! the compiler and the tests ask for all three. What the platforms announce to user space is
//! computed from the rows, so that no capability promises what a request would be refused.

use crate::{
    content::{
        Action,
        Content, //
    },
    request::Visibility, //
};

/// What keeps the private memory of a VM private.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// Nothing but KVM's own page tables: `KVM_X86_SW_PROTECTED_VM`, on which the rest is tested.
    SwProtected,
    /// AMD SEV-SNP: pages of the guest are encrypted, and assigned to it in the RMP.
    Snp,
    /// Intel TDX: pages of the guest are encrypted, and in its S-EPT, which the TDX module keeps.
    Tdx,
    /// pKVM on arm64: pages are the guest's in the page tables that EL2 keeps from the host. The
    /// guest itself shares them with the host, and takes them back.
    Pkvm,
}

impl Platform {
    /// All platforms.
    pub const ALL: &'static [Self] = &[Self::SwProtected, Self::Snp, Self::Tdx, Self::Pkvm];

    /// Returns its name, as `fdinfo` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SwProtected => "sw-protected",
            Self::Snp => "snp",
            Self::Tdx => "tdx",
            Self::Pkvm => "pkvm",
        }
    }
}

/// Whether the guest runs.
///
/// Platforms that measure a guest's initial memory allow more before that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The VM is being put together. On SNP: LAUNCH_FINISH is still to come; on TDX:
    /// FINALIZE_VM; on SW_PROTECTED and pKVM: no vCPU has run.
    PreLaunch,
    /// The guest has been started.
    PostLaunch,
}

/// On what terms a platform accepts a request: what happens to the bytes of allocated pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// What is done to the pages that change between shared and private.
    pub changing: Action,
    /// What is done to the pages that already are what the request asks for.
    pub settled: Action,
}

/// Why a platform does not accept a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The platform cannot do this in this phase: `EOPNOTSUPP`.
    NotSupported,
    /// It is the guest's to allow, which it has not: `EPERM`.
    NotShared,
}

/// Returns on what terms a platform makes pages shared or private.
///
/// `scramble` is whether contents about which nothing is promised are destroyed on purpose, where
/// the platform itself would leave them alone. No promise depends on it.
///
/// # Errors
///
/// [`Refusal::NotSupported`] if the platform cannot give the promise that `content` asks for.
pub const fn terms(
    platform: Platform,
    phase: Phase,
    to: Visibility,
    content: Content,
    scramble: bool,
) -> Result<Terms, Refusal> {
    match platform {
        Platform::SwProtected => sw_protected(phase, to, content, scramble),
        Platform::Snp => snp(phase, to, content),
        Platform::Tdx => tdx(phase, to, content),
        Platform::Pkvm => pkvm(phase, to, content),
    }
}

/// Returns whether a platform keeps a promise about a page, given whether it owns it now.
///
/// A page is owned while it is assigned to the guest (SNP), in its S-EPT (TDX), or mapped by it and
/// not shared (pKVM): the host can neither read nor write its contents. It is private then, so that
/// a request that makes pages private finds it to be what it asks for already. Only a pKVM guest
/// can make a page its own on its own account, and so have one that is to become private from
/// shared.
///
/// # Errors
///
/// [`Refusal::NotSupported`] if it cannot be kept for such a page, [`Refusal::NotShared`] if that
/// is the guest's to allow.
pub const fn page(
    platform: Platform,
    to: Visibility,
    content: Content,
    owned: bool,
) -> Result<(), Refusal> {
    if !owned {
        return Ok(());
    }
    match (platform, to, content) {
        // There are none.
        (Platform::SwProtected, _, _) => Ok(()),
        // The host would have to write a page that stays the guest's.
        (Platform::Snp | Platform::Tdx | Platform::Pkvm, Visibility::Private, Content::Zero) => {
            Err(Refusal::NotSupported)
        }
        (
            Platform::Snp | Platform::Tdx | Platform::Pkvm,
            Visibility::Private,
            Content::Preserve | Content::None,
        ) => Ok(()),
        // Taking a page out of the S-EPT destroys its contents.
        (Platform::Tdx, Visibility::Shared, Content::Preserve) => Err(Refusal::NotSupported),
        (Platform::Snp, Visibility::Shared, Content::Preserve) => Ok(()),
        // Given back first, zeroed then.
        (Platform::Snp | Platform::Tdx, Visibility::Shared, Content::Zero | Content::None) => {
            Ok(())
        }
        (Platform::Pkvm, Visibility::Shared, _) => Err(Refusal::NotShared),
    }
}

/// The rows of [`Platform::SwProtected`].
///
/// The platform owns no page: the host can write each of them while nobody else has it mapped. So
/// all promises are kept in all phases and both directions, and nothing depends on what a page was
/// before.
const fn sw_protected(
    phase: Phase,
    to: Visibility,
    content: Content,
    scramble: bool,
) -> Result<Terms, Refusal> {
    let action = match (phase, to, content) {
        (Phase::PreLaunch | Phase::PostLaunch, Visibility::Private, Content::Preserve) => {
            Action::Leave
        }
        (Phase::PreLaunch | Phase::PostLaunch, Visibility::Shared, Content::Preserve) => {
            Action::Leave
        }
        (Phase::PreLaunch | Phase::PostLaunch, Visibility::Private, Content::Zero) => Action::Zero,
        (Phase::PreLaunch | Phase::PostLaunch, Visibility::Shared, Content::Zero) => Action::Zero,
        (_, _, Content::None) if scramble => Action::Scramble,
        (_, _, Content::None) => Action::Leave,
    };
    Ok(Terms {
        changing: action,
        settled: action,
    })
}

/// The rows of [`Platform::Snp`].
///
/// Nothing becomes the guest's at conversion to private, but later, when the guest first uses the
/// page: so there is nothing between a memset, where one is asked for, and the page being private.
/// Conversion to shared takes the page back first. What is in it then is ciphertext after launch,
/// and what the platform has left of it before; the bytes are the same as before in both cases.
const fn snp(phase: Phase, to: Visibility, content: Content) -> Result<Terms, Refusal> {
    let action = match (phase, to, content) {
        (Phase::PreLaunch | Phase::PostLaunch, Visibility::Private, Content::Preserve) => {
            Action::Leave
        }
        (Phase::PreLaunch | Phase::PostLaunch, Visibility::Shared, Content::Preserve) => {
            Action::Leave
        }
        (Phase::PreLaunch | Phase::PostLaunch, Visibility::Private, Content::Zero) => Action::Zero,
        (Phase::PreLaunch | Phase::PostLaunch, Visibility::Shared, Content::Zero) => Action::Zero,
        (Phase::PreLaunch | Phase::PostLaunch, _, Content::None) => Action::Leave,
    };
    Ok(Terms {
        changing: action,
        settled: action,
    })
}

/// The rows of [`Platform::Tdx`].
///
/// Pages are added to the S-EPT when the guest first uses them, or when its initial memory is put
/// together. What was never there keeps its bytes in both directions; what was loses them when it
/// is taken out, which [`page`] knows.
const fn tdx(phase: Phase, to: Visibility, content: Content) -> Result<Terms, Refusal> {
    let action = match (phase, to, content) {
        (Phase::PreLaunch | Phase::PostLaunch, Visibility::Private, Content::Preserve) => {
            Action::Leave
        }
        (Phase::PreLaunch | Phase::PostLaunch, Visibility::Shared, Content::Preserve) => {
            Action::Leave
        }
        (Phase::PreLaunch | Phase::PostLaunch, Visibility::Private, Content::Zero) => Action::Zero,
        (Phase::PreLaunch | Phase::PostLaunch, Visibility::Shared, Content::Zero) => Action::Zero,
        (Phase::PreLaunch | Phase::PostLaunch, _, Content::None) => Action::Leave,
    };
    Ok(Terms {
        changing: action,
        settled: action,
    })
}

/// The rows of [`Platform::Pkvm`].
///
/// Nothing is encrypted, and nothing moves at conversion: the guest owns a page from its first use
/// on, shares it by itself, and takes it back by itself. What may be done to a page that it owns,
/// [`page`] knows; all others the host can read, and EL2 zeroes them for it.
const fn pkvm(phase: Phase, to: Visibility, content: Content) -> Result<Terms, Refusal> {
    let action = match (phase, to, content) {
        (Phase::PreLaunch | Phase::PostLaunch, Visibility::Private, Content::Preserve) => {
            Action::Leave
        }
        (Phase::PreLaunch | Phase::PostLaunch, Visibility::Shared, Content::Preserve) => {
            Action::Leave
        }
        (Phase::PreLaunch | Phase::PostLaunch, Visibility::Private, Content::Zero) => Action::Zero,
        (Phase::PreLaunch | Phase::PostLaunch, Visibility::Shared, Content::Zero) => Action::Zero,
        (Phase::PreLaunch | Phase::PostLaunch, _, Content::None) => Action::Leave,
    };
    Ok(Terms {
        changing: action,
        settled: action,
    })
}

/// Returns the policies that a platform accepts for one direction, as the `flags` of a request.
///
/// [`Content::None`] is no bit, because it is no promise. A promise is announced if it is kept for
/// every page that is not yet what is asked for, also for those that the platform owns: such a page
/// is one to be made shared. What the guest has to allow is announced all the same.
const fn supported(platform: Platform, phase: Phase, to: Visibility) -> u8 {
    let owned = matches!(to, Visibility::Shared);
    let zero = bit(platform, phase, to, Content::Zero, owned);
    let preserve = bit(platform, phase, to, Content::Preserve, owned);
    zero | preserve
}

const fn bit(
    platform: Platform,
    phase: Phase,
    to: Visibility,
    content: Content,
    owned: bool,
) -> u8 {
    match (
        terms(platform, phase, to, content, true),
        page(platform, to, content, owned),
    ) {
        (Err(Refusal::NotSupported), _) | (_, Err(Refusal::NotSupported)) => 0,
        // CAST: The policies are the two lowest bits.
        (Ok(_) | Err(Refusal::NotShared), Ok(()) | Err(Refusal::NotShared)) => {
            content.flags() as u8
        }
    }
}

/// Returns the policies that a platform accepts in one phase.
///
/// This is the value of `KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS` and
/// `KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS`, asked on a VM. Its bytes hold, from the lowest, the policies
/// for both directions, for the one to shared, and for the one to private.
pub const fn capability(platform: Platform, phase: Phase) -> u32 {
    let to_shared = supported(platform, phase, Visibility::Shared);
    let to_private = supported(platform, phase, Visibility::Private);
    u32::from_le_bytes([to_shared & to_private, to_shared, to_private, 0])
}

/// Returns the policies that at least one of the platforms accepts in one phase.
///
/// This is what [`capability`] is for `/dev/kvm`, where no VM has been chosen yet: `available`
/// tells on which platforms there can be VMs.
pub fn capability_any(phase: Phase, available: impl Fn(Platform) -> bool) -> u32 {
    Platform::ALL
        .iter()
        .filter(|&&platform| available(platform))
        .fold(0, |flags, &platform| flags | capability(platform, phase))
}

// What the user-space interface says about each platform.
const _: () = assert!(capability(Platform::SwProtected, Phase::PreLaunch) == 0x03_03_03);
const _: () = assert!(capability(Platform::SwProtected, Phase::PostLaunch) == 0x03_03_03);
const _: () = assert!(capability(Platform::Snp, Phase::PreLaunch) == 0x03_03_03);
const _: () = assert!(capability(Platform::Snp, Phase::PostLaunch) == 0x03_03_03);
const _: () = assert!(capability(Platform::Tdx, Phase::PreLaunch) == 0x03_01_01);
const _: () = assert!(capability(Platform::Tdx, Phase::PostLaunch) == 0x03_01_01);
const _: () = assert!(capability(Platform::Pkvm, Phase::PreLaunch) == 0x03_03_03);
const _: () = assert!(capability(Platform::Pkvm, Phase::PostLaunch) == 0x03_03_03);
