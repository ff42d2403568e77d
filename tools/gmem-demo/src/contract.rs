// SPDX-License-Identifier: GPL-2.0

//! What each row of the table was promised.
//!
//! This is the project's content contract, written down a second time and by hand, so that the
//! demonstration does not take the kernel's word for it.

use gmem::{
    emulation::{
        self,
        keyed, //
    },
    Content,
    Visibility, //
};

/// What a request does to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Motion {
    /// State before the request.
    pub from: Visibility,
    /// State that it asks for.
    pub to: Visibility,
}

impl Motion {
    /// How the table calls it.
    pub fn name(self) -> &'static str {
        use Visibility::*;
        match (self.from, self.to) {
            (Shared, Private) => "to private",
            (Private, Shared) => "to shared",
            (Private, Private) => "stays private",
            (Shared, Shared) => "stays shared",
        }
    }
}

/// What happened to the pages of a range before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// Somebody wrote to all of them: the guest if they are private and it runs, else the host.
    Written,
    /// Nobody ever touched them; one has no memory, the other was only fallocated.
    Untouched,
}

/// What the bytes are when the request has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Those that were there.
    Kept,
    /// Zeroes, because that was asked for.
    Zeroes,
    /// Zeroes, because this is their first use.
    FirstUse,
    /// None is given; what happens depends on a parameter of the kernel.
    Nothing,
    /// None is given; what happens depends on the platform.
    Whatever,
    /// The request is refused with `EOPNOTSUPP`, and everything stays as it is.
    Refused,
}

/// How those who can look at the bytes get to see them.
///
/// A content policy is about what the request does. What a guest reads through its own key, or
/// after it has accepted a page, is between it and its platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eyes {
    /// As they are.
    Plain,
    /// Through a key that is not the writer's.
    Keyed,
    /// As zeroes: the platform clears a page that the guest accepts.
    Accepted,
}

/// One row: a request, and the promise about its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    pub motion: Motion,
    pub content: Content,
    pub history: History,
    pub promise: Promise,
    pub eyes: Eyes,
}

const fn line(
    from: Visibility,
    to: Visibility,
    content: Content,
    history: History,
    promise: Promise,
) -> Line {
    seen(from, to, content, history, promise, Eyes::Plain)
}

const fn seen(
    from: Visibility,
    to: Visibility,
    content: Content,
    history: History,
    promise: Promise,
    eyes: Eyes,
) -> Line {
    Line {
        motion: Motion { from, to },
        content,
        history,
        promise,
        eyes,
    }
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

/// The contract of SNP before launch, when the platform owns no page that was not launched.
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
        // What the platform owns is left alone, or the request refused.
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

/// The contract of TDX before launch, when no page is in the S-EPT that was not launched.
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

/// The contract of TDX after launch: what the guest has written to is in the S-EPT, and removing it
/// from there destroys it.
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

/// A platform and its part of the contract.
#[derive(Clone, Copy, Debug)]
pub struct Platform {
    /// How the table calls it.
    pub name: &'static str,
    /// The software model that stands in for it; [`None`] for the real thing.
    pub model: Option<emulation::Platform>,
    /// The value of the two capabilities that goes with the contract, before and after launch.
    pub policies: u32,
    /// Every request before launch.
    pub before: &'static [Line; 24],
    /// Every request after launch.
    pub after: &'static [Line; 24],
    /// How the guest sees what the launch gave to it when it is shared again with PRESERVE.
    pub payload_back: (Promise, Eyes),
}

/// The real thing: software-protected VMs. Their contract is the same before and after launch.
pub const REAL: Platform = Platform {
    name: "SW_PROTECTED",
    model: None,
    policies: 0x030303,
    before: &SW_PROTECTED,
    after: &SW_PROTECTED,
    payload_back: (Promise::Kept, Eyes::Plain),
};

/// Platforms that software models stand in for.
pub const EMULATED: [Platform; 2] = [
    Platform {
        name: "SNP emulated",
        model: Some(emulation::Platform::Snp),
        policies: 0x030303,
        before: &SNP_BEFORE,
        after: &SNP_AFTER,
        payload_back: (Promise::Kept, Eyes::Keyed),
    },
    Platform {
        name: "TDX emulated",
        model: Some(emulation::Platform::Tdx {
            removal_zeroes: false,
        }),
        policies: 0x030101,
        before: &TDX_BEFORE,
        after: &TDX_AFTER,
        payload_back: (Promise::Refused, Eyes::Plain),
    },
];

/// Whether the kernel scrambles what nothing is promised about: its parameter `kvm.gmem_scramble`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scramble {
    /// It does.
    On,
    /// It leaves the bytes alone.
    Off,
    /// The parameter cannot be read.
    Unknown,
}

impl Scramble {
    /// What the kernel says.
    pub fn read() -> Self {
        match std::fs::read_to_string("/sys/module/kvm/parameters/gmem_scramble") {
            Ok(value) => Self::parse(&value),
            Err(_) => Self::Unknown,
        }
    }

    fn parse(value: &str) -> Self {
        match value.trim() {
            "Y" => Self::On,
            "N" => Self::Off,
            _ => Self::Unknown,
        }
    }
}

/// The byte that a scrambled page is full of.
pub const SCRAMBLED: u8 = 0xab;

impl Promise {
    /// How the table says it.
    pub fn name(self, scramble: Scramble) -> &'static str {
        match (self, scramble) {
            (Self::Kept, _) => "same bytes",
            (Self::Zeroes, _) => "zeroes",
            (Self::FirstUse, _) => "zeroes (first use)",
            (Self::Nothing, Scramble::On) => "nothing: scrambled",
            (Self::Nothing, Scramble::Off) => "nothing: scramble=N",
            (Self::Nothing, Scramble::Unknown) => "nothing: scramble=?",
            (Self::Whatever, _) => "nothing",
            (Self::Refused, _) => "EOPNOTSUPP, as was",
        }
    }

    /// Whether `seen` is what was promised about a range that held `written`, looked at with
    /// `eyes`.
    pub fn is_kept(self, scramble: Scramble, eyes: Eyes, written: &[u8], seen: &[u8]) -> bool {
        let zeroes = vec![0; written.len()];
        let scrambled = vec![SCRAMBLED; written.len()];
        let is = |bytes: &[u8]| match eyes {
            Eyes::Plain => seen == bytes,
            Eyes::Keyed => seen == keyed(bytes),
            Eyes::Accepted => seen == zeroes,
        };
        match self {
            Self::Kept | Self::Refused => is(written),
            Self::Zeroes | Self::FirstUse => is(&zeroes),
            Self::Nothing => match scramble {
                Scramble::On => is(&scrambled),
                Scramble::Off => is(written),
                Scramble::Unknown => is(&scrambled) || is(written),
            },
            // Not even then it is somebody else's data.
            Self::Whatever => is(written) || is(&zeroes) || seen == zeroes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_has_one_line() {
        for platform in [REAL].iter().chain(&EMULATED) {
            for lines in [platform.before, platform.after] {
                for (i, a) in lines.iter().enumerate() {
                    for b in &lines[i + 1..] {
                        assert!(
                            (a.motion, a.content, a.history) != (b.motion, b.content, b.history),
                            "{a:?}"
                        );
                    }
                }
                // Four motions, three policies, two histories, and no two lines alike.
                assert_eq!(lines.len(), 4 * 3 * 2);
            }
        }
    }

    #[test]
    fn eyes_see_what_they_should() {
        use Eyes::*;
        let written = [1, 2, 3, 4, 5, 6, 7, 8];
        let through_key = keyed(&written);
        let kept = |eyes, seen: &[u8]| Promise::Kept.is_kept(Scramble::On, eyes, &written, seen);
        for (eyes, good) in [
            (Plain, &written[..]),
            (Keyed, &through_key[..]),
            (Accepted, &[0; 8][..]),
        ] {
            for bytes in [&written[..], &through_key[..], &[0; 8][..], &[7; 8][..]] {
                assert_eq!(kept(eyes, bytes), bytes == good, "{eyes:?} {bytes:?}");
            }
        }
        let whatever = |seen: &[u8]| Promise::Whatever.is_kept(Scramble::On, Keyed, &written, seen);
        assert!(whatever(&through_key) && whatever(&[0; 8]));
        assert!(!whatever(&written) && !whatever(&[7; 8]));
    }

    #[test]
    fn promises_can_be_broken() {
        use Promise::*;
        let written = [1, 2, 3];
        let seen: [(&[u8], &[Promise]); 5] = [
            (&[1, 2, 3], &[Kept]),
            (&[0, 0, 0], &[Zeroes, FirstUse]),
            (&[0xab; 3], &[Nothing]),
            (&[0, 0, 1], &[]),
            (&[], &[]),
        ];
        for (bytes, good) in seen {
            for promise in [Kept, Zeroes, FirstUse, Nothing] {
                assert_eq!(
                    promise.is_kept(Scramble::On, Eyes::Plain, &written, bytes),
                    good.contains(&promise),
                    "{promise:?} {bytes:?}"
                );
            }
        }
    }

    #[test]
    fn scrambling_is_as_the_parameter_says() {
        let written = [1, 2, 3];
        let kept =
            |scramble, seen: &[u8]| Promise::Nothing.is_kept(scramble, Eyes::Plain, &written, seen);
        assert!(kept(Scramble::Off, &written));
        assert!(!kept(Scramble::Off, &[0xab; 3]));
        assert!(!kept(Scramble::On, &written));
        assert!(!kept(Scramble::Unknown, &[7; 3]));
        assert_eq!(Scramble::parse("Y\n"), Scramble::On);
        assert_eq!(Scramble::parse("N\n"), Scramble::Off);
        assert_eq!(Scramble::parse(""), Scramble::Unknown);
    }
}
