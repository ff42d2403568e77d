// SPDX-License-Identifier: GPL-2.0

//! The guarantee for each row of the table.
//!
//! This is the project's content contract, written down a second time and by hand, so that the
//! demonstration does not rely on the kernel's table.

use gmem::{
    emulation::Key,
    Content,
    Visibility, //
};

#[cfg(target_arch = "aarch64")]
#[path = "contract/arm64.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "contract/x86.rs"]
mod arch;

pub use arch::*;

/// What a request does to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Motion {
    /// State before the request.
    pub from: Visibility,
    /// The requested state.
    pub to: Visibility,
}

impl Motion {
    /// Its name in the table.
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
    /// All were written: by the guest if they are private and it runs, else by the host.
    Written,
    /// Never used; one has no memory, the other was only fallocated.
    Untouched,
}

/// The bytes when the request has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// The old bytes.
    Kept,
    /// Zeroes, as requested.
    Zeroes,
    /// Zeroes, because this is their first use.
    FirstUse,
    /// No guarantee; the result depends on a parameter of the kernel.
    #[cfg_attr(target_arch = "aarch64", expect(dead_code))]
    Nothing,
    /// No guarantee; the result depends on the platform.
    Whatever,
    /// The request is refused with `EOPNOTSUPP`, and everything stays as it is.
    Refused,
    /// The request is refused with `EPERM`: the guest has to allow it.
    Forbidden,
}

impl Promise {
    /// The errno of a refusal.
    pub fn errno(self) -> Option<i32> {
        match self {
            Self::Refused => Some(libc::EOPNOTSUPP),
            Self::Forbidden => Some(libc::EPERM),
            _ => None,
        }
    }
}

/// How a reader sees the bytes.
///
/// A content policy is about what the request does. What a guest reads through its own key, or
/// after it has accepted a page, is between it and its platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eyes {
    /// As they are.
    Plain,
    /// Through another key than the writer's.
    #[cfg_attr(target_arch = "aarch64", expect(dead_code))]
    Keyed,
    /// As zeroes: the platform clears a page that the guest accepts.
    #[cfg_attr(target_arch = "aarch64", expect(dead_code))]
    Accepted,
}

/// One row: a request, and the guarantee for its bytes.
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

/// What implements a platform's VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// The platform itself.
    Real,
    /// KVM's own code for SNP on simulated hardware.
    SnpSimulated,
    /// KVM's mirrored page table above a simulated TDX module.
    TdxMirrored,
}

/// A platform and its part of the contract.
#[derive(Clone, Copy, Debug)]
pub struct Platform {
    /// Its name in the table.
    pub name: &'static str,
    /// What implements it.
    pub ground: Ground,
    /// The value of the two capabilities according to the contract, before and after launch.
    pub policies: u32,
    /// Every request before launch.
    pub before: &'static [Line; 24],
    /// Every request after launch.
    pub after: &'static [Line; 24],
    /// How a page that the launch gave to the guest reads after PRESERVE to shared.
    pub payload_back: (Promise, Eyes),
    /// Whether the guest itself shares pages, and owns the others.
    pub guest_shares: bool,
}

impl Platform {
    /// Whether each address of the guest selects the kind of memory.
    pub fn guest_means_kinds(&self) -> bool {
        self.ground != Ground::Real
    }

    /// Whether a running guest can make the request of `line`. A guest that shares its pages itself
    /// must have the pages, and cannot share shared pages again.
    pub fn guest_asks(&self, line: &Line) -> bool {
        use Visibility::*;
        match (line.motion.from, line.motion.to) {
            _ if !self.guest_shares => true,
            (Private, Shared) => true,
            (Shared, Private) => line.history == History::Written,
            (Private, Private) | (Shared, Shared) => false,
        }
    }
}

/// Whether the kernel scrambles contents without a guarantee: its parameter `kvm.gmem_scramble`.
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
    /// The kernel's parameter.
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

/// The byte that fills a scrambled page.
pub const SCRAMBLED: u8 = 0xab;

impl Promise {
    /// Its text in the table.
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
            (Self::Forbidden, _) => "EPERM, as was",
        }
    }

    /// Whether `seen` keeps the guarantee for a range that held `written`, read as `eyes` says, on a
    /// platform that encrypts with `key`.
    pub fn is_kept(
        self,
        scramble: Scramble,
        key: Key,
        eyes: Eyes,
        written: &[u8],
        seen: &[u8],
    ) -> bool {
        let zeroes = vec![0; written.len()];
        let scrambled = vec![SCRAMBLED; written.len()];
        let is = |bytes: &[u8]| match eyes {
            Eyes::Plain => seen == bytes,
            Eyes::Keyed => seen == key.apply(bytes),
            Eyes::Accepted => seen == zeroes,
        };
        match self {
            Self::Kept | Self::Refused | Self::Forbidden => is(written),
            Self::Zeroes | Self::FirstUse => is(&zeroes),
            Self::Nothing => match scramble {
                Scramble::On => is(&scrambled),
                Scramble::Off => is(written),
                Scramble::Unknown => is(&scrambled) || is(written),
            },
            // Even then it must not be data of others.
            Self::Whatever => is(written) || is(&zeroes) || seen == zeroes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_has_one_line() {
        for platform in [REAL].iter().chain(&SIMULATED) {
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
        let key = Key::MODEL;
        let through_key = key.apply(&written);
        let kept =
            |eyes, seen: &[u8]| Promise::Kept.is_kept(Scramble::On, key, eyes, &written, seen);
        for (eyes, good) in [
            (Plain, &written[..]),
            (Keyed, &through_key[..]),
            (Accepted, &[0; 8][..]),
        ] {
            for bytes in [&written[..], &through_key[..], &[0; 8][..], &[7; 8][..]] {
                assert_eq!(kept(eyes, bytes), bytes == good, "{eyes:?} {bytes:?}");
            }
        }
        let whatever =
            |seen: &[u8]| Promise::Whatever.is_kept(Scramble::On, key, Keyed, &written, seen);
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
                    promise.is_kept(Scramble::On, Key::MODEL, Eyes::Plain, &written, bytes),
                    good.contains(&promise),
                    "{promise:?} {bytes:?}"
                );
            }
        }
    }

    #[test]
    fn scrambling_is_as_the_parameter_says() {
        let written = [1, 2, 3];
        let kept = |scramble, seen: &[u8]| {
            Promise::Nothing.is_kept(scramble, Key::MODEL, Eyes::Plain, &written, seen)
        };
        assert!(kept(Scramble::Off, &written));
        assert!(!kept(Scramble::Off, &[0xab; 3]));
        assert!(!kept(Scramble::On, &written));
        assert!(!kept(Scramble::Unknown, &[7; 3]));
        assert_eq!(Scramble::parse("Y\n"), Scramble::On);
        assert_eq!(Scramble::parse("N\n"), Scramble::Off);
        assert_eq!(Scramble::parse(""), Scramble::Unknown);
    }
}
