// SPDX-License-Identifier: GPL-2.0

//! Platforms of arm64.

use super::{
    line,
    Eyes,
    Ground,
    History,
    Line,
    Platform,
    Promise, //
};
use gmem::{
    Content,
    Visibility, //
};
use kvm_ioctls::Kvm;

/// The name of a VM with private memory.
pub const VM: &str = "protected";

/// The type to create it with: `KVM_VM_TYPE_ARM_PROTECTED`.
pub fn vm_type(_platform: &Platform) -> u64 {
    1 << 31
}

/// Why such a VM is not possible, if that is known without creating one.
pub fn missing(_kvm: &Kvm, _platform: &Platform) -> Option<String> {
    None
}

/// The contract of pKVM before launch, when the guest owns no page yet.
pub const PKVM_BEFORE: [Line; 24] = pkvm(Promise::Zeroes);

/// The contract of pKVM after launch: the guest owns pages that it has written to and not shared. The
/// guest shares pages before they become shared; `scenes::consent` shows the other case.
pub const PKVM_AFTER: [Line; 24] = pkvm(Promise::Refused);

/// The rows of pKVM; the argument is the result of ZERO for a private page that was written to.
#[rustfmt::skip]
const fn pkvm(settled_zero: Promise) -> [Line; 24] {
    use Content::{None, Preserve, Zero};
    use History::{Untouched, Written};
    use Promise::{FirstUse, Kept, Whatever, Zeroes};
    use Visibility::{Private, Shared};
    [
        line(Shared,  Private, Preserve, Written,   Kept),
        line(Shared,  Private, Zero,     Written,   Zeroes),
        line(Shared,  Private, None,     Written,   Whatever),
        line(Private, Shared,  Preserve, Written,   Kept),
        line(Private, Shared,  Zero,     Written,   Zeroes),
        line(Private, Shared,  None,     Written,   Whatever),
        line(Private, Private, Preserve, Written,   Kept),
        line(Private, Private, Zero,     Written,   settled_zero),
        line(Private, Private, None,     Written,   Whatever),
        line(Shared,  Shared,  Preserve, Written,   Kept),
        line(Shared,  Shared,  Zero,     Written,   Zeroes),
        line(Shared,  Shared,  None,     Written,   Whatever),
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
}

/// The platform of arm64: protected VMs under the kernel's hypervisor.
pub const REAL: Platform = Platform {
    name: "pKVM",
    ground: Ground::Real,
    policies: 0x030303,
    before: &PKVM_BEFORE,
    after: &PKVM_AFTER,
    payload_back: (Promise::Kept, Eyes::Plain),
    guest_shares: true,
};

/// Nothing is simulated.
pub const SIMULATED: [Platform; 0] = [];
