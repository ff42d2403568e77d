// SPDX-License-Identifier: GPL-2.0

//! The printed table.

use crate::contract::{
    History,
    Promise,
    SCRAMBLED, //
};
use gmem::{
    emulation::Key,
    Content, //
};
use std::fmt;

/// When a request was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before a vCPU has run.
    BeforeLaunch,
    /// After it has.
    AfterLaunch,
}

impl Phase {
    /// How the table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::BeforeLaunch => "before launch",
            Self::AfterLaunch => "after launch",
        }
    }
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing: the access was refused.
    Refused,
    /// Bytes.
    Bytes(Vec<u8>),
}

impl Seen {
    /// A short description; `written` are the old bytes, on a platform that encrypts with `key`.
    pub fn describe(&self, written: &[u8], key: Key) -> String {
        let all = |bytes: &[u8], byte| bytes.iter().all(|&b| b == byte);
        match self {
            Self::Refused => "refused".into(),
            Self::Bytes(bytes) if bytes.is_empty() => "no bytes".into(),
            Self::Bytes(bytes) if all(bytes, 0) => "zeroes".into(),
            Self::Bytes(bytes) if bytes == written => "same bytes".into(),
            Self::Bytes(bytes) if all(bytes, SCRAMBLED) => "all 0xab".into(),
            Self::Bytes(bytes) if *bytes == key.apply(&vec![0; bytes.len()]) => {
                "key on zeroes".into()
            }
            Self::Bytes(bytes) if *bytes == key.apply(written) => "through key".into(),
            Self::Bytes(bytes) => {
                let differs = bytes.iter().zip(written).position(|(a, b)| a != b);
                let at = differs.unwrap_or(0);
                format!("{:#04x} at +{at:#x}", bytes[at])
            }
        }
    }
}

/// The text of [`Seen::describe`] in one word.
pub fn short(described: &str) -> &'static str {
    match described {
        "refused" => "-",
        "zeroes" => "0",
        "same bytes" => "same",
        "all 0xab" => "0xab",
        "through key" => "key",
        "key on zeroes" => "key0",
        _ => "other",
    }
}

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    pub platform: &'static str,
    pub phase: Phase,
    pub direction: &'static str,
    pub content: Content,
    /// The history of the pages, for rows that show every policy.
    pub history: Option<History>,
    pub promise: Promise,
    /// The guarantee in words.
    pub promised: String,
    pub host_read: String,
    pub guest_read: String,
    /// What went wrong, if anything.
    pub faults: Vec<String>,
}

/// Prints an aligned line of the eight columns.
fn columns(f: &mut fmt::Formatter<'_>, cells: [&str; 8]) -> fmt::Result {
    let [platform, phase, direction, policy, promised, host, guest, verdict] = cells;
    write!(
        f,
        "{platform:<12}  {phase:<13}  {direction:<13}  {policy:<8}  {promised:<19}  {host:<15}  \
         {guest:<15}  {verdict}"
    )
}

/// The line above the table.
pub struct Heading;

impl fmt::Display for Heading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        columns(
            f,
            [
                "platform",
                "phase",
                "direction",
                "policy",
                "promised",
                "host read",
                "guest read",
                "verdict",
            ],
        )
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.faults.as_slice() {
            [] => "ok".into(),
            faults => format!("MISMATCH: {}", faults.join("; ")),
        };
        columns(
            f,
            [
                self.platform,
                self.phase.name(),
                self.direction,
                &self.content.to_string(),
                &self.promised,
                &self.host_read,
                &self.guest_read,
                &verdict,
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sights_are_told_apart() {
        let written = [1, 2, 3];
        let key = Key::MODEL;
        let describe = |bytes: &[u8]| Seen::Bytes(bytes.to_vec()).describe(&written, key);
        let words = |bytes: &[u8]| short(&describe(bytes));
        assert_eq!(describe(&[1, 2, 3]), "same bytes");
        assert_eq!(describe(&[0, 0, 0]), "zeroes");
        assert_eq!(describe(&[0xab; 3]), "all 0xab");
        assert_eq!(describe(&[1, 9, 3]), "0x09 at +0x1");
        assert_eq!(describe(&key.apply(&written)), "through key");
        assert_eq!(describe(&key.apply(&[0; 3])), "key on zeroes");
        assert_eq!(describe(&[]), "no bytes");
        assert_eq!(Seen::Refused.describe(&written, key), "refused");

        assert_eq!([words(&[1, 2, 3]), words(&[0; 3])], ["same", "0"]);
        assert_eq!([words(&[0xab; 3]), words(&[1, 9, 3])], ["0xab", "other"]);
        assert_eq!(
            [words(&key.apply(&written)), words(&key.apply(&[0; 3]))],
            ["key", "key0"]
        );
        assert_eq!(short(&Seen::Refused.describe(&written, key)), "-");
    }

    #[test]
    fn columns_line_up() {
        let row = Row {
            platform: "SW_PROTECTED",
            phase: Phase::BeforeLaunch,
            direction: "stays private",
            content: Content::Preserve,
            history: None,
            promise: Promise::Kept,
            promised: "nothing: scramble=N".into(),
            host_read: "refused, SIGBUS".into(),
            guest_read: "0xab at +0x1fff".into(),
            faults: vec!["guest".into(), "host".into()],
        };
        let row = row.to_string();
        let heading = Heading.to_string();
        let at = heading.find("verdict").unwrap();
        assert_eq!(&row[at..], "MISMATCH: guest; host");
        assert_eq!(row.find("PRESERVE"), heading.find("policy"));
    }
}
