// SPDX-License-Identifier: GPL-2.0

//! What each row of the table was promised.
//!
//! This is the project's content contract, written down a second time and by hand, so that the
//! demonstration does not take the kernel's word for it.

use gmem::{
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
    /// Somebody wrote to all of them.
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
}

/// One row: a request, and the promise about its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    pub motion: Motion,
    pub content: Content,
    pub history: History,
    pub promise: Promise,
}

const fn line(
    from: Visibility,
    to: Visibility,
    content: Content,
    history: History,
    promise: Promise,
) -> Line {
    Line {
        motion: Motion { from, to },
        content,
        history,
        promise,
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

/// The value of the two capabilities that goes with the contract, before and after launch.
pub const SW_PROTECTED_POLICIES: u32 = 0x030303;

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
        }
    }

    /// Whether `seen` is what was promised about a range that held `written`.
    pub fn is_kept(self, scramble: Scramble, written: &[u8], seen: &[u8]) -> bool {
        let all = |byte| seen.len() == written.len() && seen.iter().all(|&b| b == byte);
        match self {
            Self::Kept => seen == written,
            Self::Zeroes | Self::FirstUse => all(0),
            Self::Nothing => match scramble {
                Scramble::On => all(SCRAMBLED),
                Scramble::Off => seen == written,
                Scramble::Unknown => all(SCRAMBLED) || seen == written,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_has_one_line() {
        for (i, a) in SW_PROTECTED.iter().enumerate() {
            for b in &SW_PROTECTED[i + 1..] {
                assert!(
                    (a.motion, a.content, a.history) != (b.motion, b.content, b.history),
                    "{a:?}"
                );
            }
        }
        // Four motions, three policies, two histories, and no two lines alike.
        assert_eq!(SW_PROTECTED.len(), 4 * 3 * 2);
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
                    promise.is_kept(Scramble::On, &written, bytes),
                    good.contains(&promise),
                    "{promise:?} {bytes:?}"
                );
            }
        }
    }

    #[test]
    fn scrambling_is_as_the_parameter_says() {
        let written = [1, 2, 3];
        let kept = |scramble, seen: &[u8]| Promise::Nothing.is_kept(scramble, &written, seen);
        assert!(kept(Scramble::Off, &written));
        assert!(!kept(Scramble::Off, &[0xab; 3]));
        assert!(!kept(Scramble::On, &written));
        assert!(!kept(Scramble::Unknown, &[7; 3]));
        assert_eq!(Scramble::parse("Y\n"), Scramble::On);
        assert_eq!(Scramble::parse("N\n"), Scramble::Off);
        assert_eq!(Scramble::parse(""), Scramble::Unknown);
    }
}
