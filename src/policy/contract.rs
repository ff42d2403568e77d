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
}

impl Platform {
    /// All platforms.
    pub const ALL: &'static [Self] = &[Self::SwProtected];
}

/// Whether the guest runs.
///
/// Platforms that measure a guest's initial memory allow more before that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The VM is being put together. On SW_PROTECTED: no vCPU has run.
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

/// Returns the policies that a platform accepts for one direction, as the `flags` of a request.
///
/// [`Content::None`] is no bit, because it is no promise.
const fn supported(platform: Platform, phase: Phase, to: Visibility) -> u8 {
    let zero = match terms(platform, phase, to, Content::Zero, true) {
        Ok(_) => Content::Zero.flags(),
        Err(Refusal::NotSupported) => 0,
    };
    let preserve = match terms(platform, phase, to, Content::Preserve, true) {
        Ok(_) => Content::Preserve.flags(),
        Err(Refusal::NotSupported) => 0,
    };
    // CAST: The policies are the two lowest bits.
    (zero | preserve) as u8
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

/// Returns the policies that at least one platform accepts in one phase.
///
/// This is what [`capability`] is for `/dev/kvm`, where no VM has been chosen yet.
pub fn capability_any(phase: Phase) -> u32 {
    Platform::ALL
        .iter()
        .fold(0, |flags, &platform| flags | capability(platform, phase))
}

// What the user-space interface says about each platform.
const _: () = assert!(capability(Platform::SwProtected, Phase::PreLaunch) == 0x03_03_03);
const _: () = assert!(capability(Platform::SwProtected, Phase::PostLaunch) == 0x03_03_03);
