// SPDX-License-Identifier: GPL-2.0

//! Platforms of x86.

use super::{
    line,
    seen,
    Eyes,
    Ground,
    History,
    Line,
    Platform,
    Promise, //
};
use gmem::{
    abi,
    emulation,
    Capabilities,
    Content,
    Visibility, //
};
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES,
    KVM_X86_SNP_VM, //
};
use kvm_ioctls::Kvm;

/// The name of a VM with private memory.
pub const VM: &str = "software-protected";

/// The type to create it with.
pub fn vm_type(platform: &Platform) -> u64 {
    match platform.ground {
        Ground::Real | Ground::TdxMirrored => abi::KVM_X86_SW_PROTECTED_VM,
        Ground::SnpSimulated => KVM_X86_SNP_VM.into(),
    }
}

/// Why such a VM is not possible, if that is known without creating one.
pub fn missing(kvm: &Kvm, platform: &Platform) -> Option<String> {
    let types = Capabilities::of(kvm).vm_types;
    let has_type = types & 1 << vm_type(platform) != 0;
    match platform.ground {
        Ground::Real => (!has_type).then(|| {
            format!(
                "this KVM has no software-protected VMs (KVM_CAP_VM_TYPES is {types:#x}): the \
                 kernel needs CONFIG_KVM_SW_PROTECTED_VM=y, and KVM nested paging with its TDP MMU \
                 (/sys/module/kvm/parameters/tdp_mmu has to be Y)"
            )
        }),
        Ground::SnpSimulated if has_type && has_c_bit(kvm) => Some(
            "this machine has SNP itself, whose guests need more than the one here (#VC, PVALIDATE)"
                .into(),
        ),
        Ground::SnpSimulated => (!has_type || !emulation::Platform::Snp.is_emulated(kvm))
            .then(|| "its hardware is not simulated here (CONFIG_KVM_SNP_SIMULATION)".into()),
        Ground::TdxMirrored => (!emulation::Platform::MirroredTdx.is_emulated(kvm))
            .then(|| "its module is not simulated here (CONFIG_KVM_GMEM_EMULATION, AMD)".into()),
    }
}

/// Whether the processor has a C-bit. Where SNP is simulated it has none.
fn has_c_bit(kvm: &Kvm) -> bool {
    /// The leaf about encrypted memory; the bit's number is in the lowest six bits of EBX.
    const ENCRYPTION: u32 = 0x8000_001f;
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .is_ok_and(|cpuid| {
            let mut entries = cpuid.as_slice().iter();
            entries.any(|entry| entry.function == ENCRYPTION && entry.ebx & 0x3f != 0)
        })
}

/// The contract of software-protected VMs. It is the same before and after launch.
#[rustfmt::skip]
pub const SW_PROTECTED: [Line; 24] = {
    use Content::{None, Preserve, Zero};
    use History::{Untouched, Written};
    use Promise::{FirstUse, Kept, Nothing, Zeroes};
    use Visibility::{Private, Shared};
    [
        line(Shared,  Private, Preserve, Written,   Kept),
        line(Shared,  Private, Zero,     Written,   Zeroes),
        line(Shared,  Private, None,     Written,   Nothing),
        line(Private, Shared,  Preserve, Written,   Kept),
        line(Private, Shared,  Zero,     Written,   Zeroes),
        line(Private, Shared,  None,     Written,   Nothing),
        // The policy holds for pages that are in the wanted state already.
        line(Private, Private, Preserve, Written,   Kept),
        line(Private, Private, Zero,     Written,   Zeroes),
        line(Private, Private, None,     Written,   Nothing),
        line(Shared,  Shared,  Preserve, Written,   Kept),
        line(Shared,  Shared,  Zero,     Written,   Zeroes),
        line(Shared,  Shared,  None,     Written,   Nothing),
        // No policy touches a page that was never used: it reads as zeroes at its first use.
        line(Shared,  Private, Preserve, Untouched, FirstUse),
        line(Shared,  Private, Zero,     Untouched, FirstUse),
        line(Shared,  Private, None,     Untouched, FirstUse),
        line(Private, Shared,  Preserve, Untouched, FirstUse),
        line(Private, Shared,  Zero,     Untouched, FirstUse),
        line(Private, Shared,  None,     Untouched, FirstUse),
        line(Private, Private, Preserve, Untouched, FirstUse),
        line(Private, Private, Zero,     Untouched, FirstUse),
        line(Private, Private, None,     Untouched, FirstUse),
        line(Shared,  Shared,  Preserve, Untouched, FirstUse),
        line(Shared,  Shared,  Zero,     Untouched, FirstUse),
        line(Shared,  Shared,  None,     Untouched, FirstUse),
    ]
};

/// The contract of SNP before launch, when the platform owns only pages of the launch.
#[rustfmt::skip]
pub const SNP_BEFORE: [Line; 24] = {
    use Content::{None, Preserve, Zero};
    use Eyes::{Keyed, Plain};
    use History::{Untouched, Written};
    use Promise::{FirstUse, Kept, Whatever, Zeroes};
    use Visibility::{Private, Shared};
    [
        seen(Shared,  Private, Preserve, Written,   Kept,     Keyed),
        seen(Shared,  Private, Zero,     Written,   Zeroes,   Keyed),
        seen(Shared,  Private, None,     Written,   Whatever, Keyed),
        seen(Private, Shared,  Preserve, Written,   Kept,     Plain),
        seen(Private, Shared,  Zero,     Written,   Zeroes,   Plain),
        seen(Private, Shared,  None,     Written,   Whatever, Plain),
        seen(Private, Private, Preserve, Written,   Kept,     Keyed),
        seen(Private, Private, Zero,     Written,   Zeroes,   Keyed),
        seen(Private, Private, None,     Written,   Whatever, Keyed),
        seen(Shared,  Shared,  Preserve, Written,   Kept,     Plain),
        seen(Shared,  Shared,  Zero,     Written,   Zeroes,   Plain),
        seen(Shared,  Shared,  None,     Written,   Whatever, Plain),
        seen(Shared,  Private, Preserve, Untouched, FirstUse, Keyed),
        seen(Shared,  Private, Zero,     Untouched, FirstUse, Keyed),
        seen(Shared,  Private, None,     Untouched, FirstUse, Keyed),
        seen(Private, Shared,  Preserve, Untouched, FirstUse, Plain),
        seen(Private, Shared,  Zero,     Untouched, FirstUse, Plain),
        seen(Private, Shared,  None,     Untouched, FirstUse, Plain),
        seen(Private, Private, Preserve, Untouched, FirstUse, Keyed),
        seen(Private, Private, Zero,     Untouched, FirstUse, Keyed),
        seen(Private, Private, None,     Untouched, FirstUse, Keyed),
        seen(Shared,  Shared,  Preserve, Untouched, FirstUse, Plain),
        seen(Shared,  Shared,  Zero,     Untouched, FirstUse, Plain),
        seen(Shared,  Shared,  None,     Untouched, FirstUse, Plain),
    ]
};

/// The contract of SNP after launch: it owns the private pages that the guest has written to.
#[rustfmt::skip]
pub const SNP_AFTER: [Line; 24] = {
    use Content::{None, Preserve, Zero};
    use Eyes::{Keyed, Plain};
    use History::{Untouched, Written};
    use Promise::{FirstUse, Kept, Refused, Whatever, Zeroes};
    use Visibility::{Private, Shared};
    [
        seen(Shared,  Private, Preserve, Written,   Kept,     Keyed),
        seen(Shared,  Private, Zero,     Written,   Zeroes,   Keyed),
        seen(Shared,  Private, None,     Written,   Whatever, Keyed),
        seen(Private, Shared,  Preserve, Written,   Kept,     Keyed),
        seen(Private, Shared,  Zero,     Written,   Zeroes,   Plain),
        seen(Private, Shared,  None,     Written,   Whatever, Keyed),
        // Owned pages are left alone, or the request is refused.
        seen(Private, Private, Preserve, Written,   Kept,     Plain),
        seen(Private, Private, Zero,     Written,   Refused,  Plain),
        seen(Private, Private, None,     Written,   Kept,     Plain),
        seen(Shared,  Shared,  Preserve, Written,   Kept,     Plain),
        seen(Shared,  Shared,  Zero,     Written,   Zeroes,   Plain),
        seen(Shared,  Shared,  None,     Written,   Whatever, Plain),
        seen(Shared,  Private, Preserve, Untouched, FirstUse, Keyed),
        seen(Shared,  Private, Zero,     Untouched, FirstUse, Keyed),
        seen(Shared,  Private, None,     Untouched, FirstUse, Keyed),
        seen(Private, Shared,  Preserve, Untouched, FirstUse, Plain),
        seen(Private, Shared,  Zero,     Untouched, FirstUse, Plain),
        seen(Private, Shared,  None,     Untouched, FirstUse, Plain),
        seen(Private, Private, Preserve, Untouched, FirstUse, Keyed),
        seen(Private, Private, Zero,     Untouched, FirstUse, Keyed),
        seen(Private, Private, None,     Untouched, FirstUse, Keyed),
        seen(Shared,  Shared,  Preserve, Untouched, FirstUse, Plain),
        seen(Shared,  Shared,  Zero,     Untouched, FirstUse, Plain),
        seen(Shared,  Shared,  None,     Untouched, FirstUse, Plain),
    ]
};

/// The contract of TDX before launch, when only pages of the launch are in the S-EPT.
#[rustfmt::skip]
pub const TDX_BEFORE: [Line; 24] = {
    use Content::{None, Preserve, Zero};
    use Eyes::{Accepted, Plain};
    use History::{Untouched, Written};
    use Promise::{FirstUse, Kept, Whatever, Zeroes};
    use Visibility::{Private, Shared};
    [
        seen(Shared,  Private, Preserve, Written,   Kept,     Accepted),
        seen(Shared,  Private, Zero,     Written,   Zeroes,   Accepted),
        seen(Shared,  Private, None,     Written,   Whatever, Accepted),
        seen(Private, Shared,  Preserve, Written,   Kept,     Plain),
        seen(Private, Shared,  Zero,     Written,   Zeroes,   Plain),
        seen(Private, Shared,  None,     Written,   Whatever, Plain),
        seen(Private, Private, Preserve, Written,   Kept,     Accepted),
        seen(Private, Private, Zero,     Written,   Zeroes,   Accepted),
        seen(Private, Private, None,     Written,   Whatever, Accepted),
        seen(Shared,  Shared,  Preserve, Written,   Kept,     Plain),
        seen(Shared,  Shared,  Zero,     Written,   Zeroes,   Plain),
        seen(Shared,  Shared,  None,     Written,   Whatever, Plain),
        seen(Shared,  Private, Preserve, Untouched, FirstUse, Accepted),
        seen(Shared,  Private, Zero,     Untouched, FirstUse, Accepted),
        seen(Shared,  Private, None,     Untouched, FirstUse, Accepted),
        seen(Private, Shared,  Preserve, Untouched, FirstUse, Plain),
        seen(Private, Shared,  Zero,     Untouched, FirstUse, Plain),
        seen(Private, Shared,  None,     Untouched, FirstUse, Plain),
        seen(Private, Private, Preserve, Untouched, FirstUse, Accepted),
        seen(Private, Private, Zero,     Untouched, FirstUse, Accepted),
        seen(Private, Private, None,     Untouched, FirstUse, Accepted),
        seen(Shared,  Shared,  Preserve, Untouched, FirstUse, Plain),
        seen(Shared,  Shared,  Zero,     Untouched, FirstUse, Plain),
        seen(Shared,  Shared,  None,     Untouched, FirstUse, Plain),
    ]
};

/// The contract of TDX after launch: pages that the guest has written to are in the S-EPT, and
/// removing a page from there destroys its contents.
#[rustfmt::skip]
pub const TDX_AFTER: [Line; 24] = {
    use Content::{None, Preserve, Zero};
    use Eyes::{Accepted, Keyed, Plain};
    use History::{Untouched, Written};
    use Promise::{FirstUse, Kept, Refused, Whatever, Zeroes};
    use Visibility::{Private, Shared};
    [
        seen(Shared,  Private, Preserve, Written,   Kept,     Accepted),
        seen(Shared,  Private, Zero,     Written,   Zeroes,   Accepted),
        seen(Shared,  Private, None,     Written,   Whatever, Accepted),
        seen(Private, Shared,  Preserve, Written,   Refused,  Plain),
        seen(Private, Shared,  Zero,     Written,   Zeroes,   Plain),
        seen(Private, Shared,  None,     Written,   Whatever, Keyed),
        seen(Private, Private, Preserve, Written,   Kept,     Plain),
        seen(Private, Private, Zero,     Written,   Refused,  Plain),
        seen(Private, Private, None,     Written,   Kept,     Plain),
        seen(Shared,  Shared,  Preserve, Written,   Kept,     Plain),
        seen(Shared,  Shared,  Zero,     Written,   Zeroes,   Plain),
        seen(Shared,  Shared,  None,     Written,   Whatever, Plain),
        seen(Shared,  Private, Preserve, Untouched, FirstUse, Accepted),
        seen(Shared,  Private, Zero,     Untouched, FirstUse, Accepted),
        seen(Shared,  Private, None,     Untouched, FirstUse, Accepted),
        seen(Private, Shared,  Preserve, Untouched, FirstUse, Plain),
        seen(Private, Shared,  Zero,     Untouched, FirstUse, Plain),
        seen(Private, Shared,  None,     Untouched, FirstUse, Plain),
        seen(Private, Private, Preserve, Untouched, FirstUse, Accepted),
        seen(Private, Private, Zero,     Untouched, FirstUse, Accepted),
        seen(Private, Private, None,     Untouched, FirstUse, Accepted),
        seen(Shared,  Shared,  Preserve, Untouched, FirstUse, Plain),
        seen(Shared,  Shared,  Zero,     Untouched, FirstUse, Plain),
        seen(Shared,  Shared,  None,     Untouched, FirstUse, Plain),
    ]
};

/// Not simulated: software-protected VMs. Their contract is the same before and after launch.
pub const REAL: Platform = Platform {
    name: "SW_PROTECTED",
    ground: Ground::Real,
    policies: 0x030303,
    before: &SW_PROTECTED,
    after: &SW_PROTECTED,
    payload_back: (Promise::Kept, Eyes::Plain),
    guest_shares: false,
};

/// Platforms whose hardware is simulated, under KVM's own code for them.
pub const SIMULATED: [Platform; 2] = [
    Platform {
        name: "SNP (sev.c)",
        ground: Ground::SnpSimulated,
        policies: 0x030303,
        before: &SNP_BEFORE,
        after: &SNP_AFTER,
        payload_back: (Promise::Kept, Eyes::Keyed),
        guest_shares: false,
    },
    Platform {
        name: "TDX (mirror)",
        ground: Ground::TdxMirrored,
        policies: 0x030101,
        before: &TDX_BEFORE,
        after: &TDX_AFTER,
        payload_back: (Promise::Refused, Eyes::Plain),
        guest_shares: false,
    },
];
