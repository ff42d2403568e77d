// SPDX-License-Identifier: GPL-2.0

//! All rows of a platform in a grid: phase and direction down, policy and state across.

use crate::{
    contract::{
        History,
        Promise, //
    },
    table::{
        short,
        Phase,
        Row, //
    },
};
use gmem::Content;
use std::fmt::Write;

/// The legend, printed once above the first grid.
pub const LEGEND: &str = "\
Each cell says what the host and then the guest read after a request: - refused (SIGBUS), same the
bytes that were there, 0 zeroes, 0xab scrambled, key the bytes through another's key, key0 zeroes
likewise. \"written\" and \"untouched\" are the pages before the request.";

const DIRECTIONS: [&str; 4] = ["to private", "to shared", "stays private", "stays shared"];
const POLICIES: [Content; 3] = [Content::Preserve, Content::Zero, Content::None];
const HISTORIES: [(History, &str); 2] = [
    (History::Written, "written"),
    (History::Untouched, "untouched"),
];

/// Explains an unusual row in a line; [`None`] for the usual.
fn oddity(row: &Row) -> Option<String> {
    let keyed = |seen: &str| seen == "through key" || seen == "key on zeroes";
    if !row.faults.is_empty() {
        return Some(format!(
            "MISMATCH: promised {}: {}",
            row.promised,
            row.faults.join("; ")
        ));
    }
    let why = match row.promise {
        Promise::Refused => "EOPNOTSUPP: the platform cannot; nothing has changed",
        Promise::Forbidden => "EPERM: the guest has not shared the pages; nothing has changed",
        Promise::Nothing => match row.host_read == "all 0xab" || row.guest_read == "all 0xab" {
            true => "no promise, so the kernel scrambles",
            false => "no promise",
        },
        Promise::Whatever => "no promise: whatever the platform leaves",
        _ if keyed(&row.host_read) || keyed(&row.guest_read) => {
            "the bytes are as promised, and written with another key than they are read with"
        }
        Promise::Kept if row.guest_read == "zeroes" => {
            "the bytes are kept until the guest accepts the page, which clears it"
        }
        _ => return None,
    };
    Some(why.into())
}

/// Puts `text` into the colour `code`, if there are colours.
fn paint(text: &str, code: &str, colour: bool) -> String {
    match colour {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.into(),
    }
}

/// Draws the rows about one state of pages. Rows without a state are left out.
pub fn draw(title: &str, rows: &[Row], colour: bool) -> String {
    let mut notes: Vec<String> = Vec::new();
    let mut out = String::new();

    let _ = write!(out, "{}", paint(&format!("{title:<17}"), "1", colour));
    for policy in POLICIES {
        let _ = write!(out, "{:<26}", policy.to_string());
    }
    let _ = write!(out, "\n{:<17}", "");
    for _ in POLICIES {
        for (_, name) in HISTORIES {
            let _ = write!(out, "{name:<13}");
        }
    }
    out.push('\n');
    for phase in [Phase::BeforeLaunch, Phase::AfterLaunch] {
        let _ = writeln!(out, "{}", phase.name());
        for direction in DIRECTIONS {
            let _ = write!(out, "  {direction:<15}");
            for policy in POLICIES {
                for (history, _) in HISTORIES {
                    let found = rows.iter().find(|row| {
                        row.history == Some(history)
                            && (row.phase, row.direction, row.content) == (phase, direction, policy)
                    });
                    out += &match found {
                        Some(row) => cell(row, &mut notes, colour),
                        None => format!("{:<13}", "?"),
                    };
                }
            }
            out.truncate(out.trim_end().len());
            out.push('\n');
        }
    }
    for (note, letter) in notes.iter().zip('a'..) {
        let _ = writeln!(out, "  {letter}  {note}");
    }
    out
}

/// What was read, with a letter that refers to a note if it is unusual.
fn cell(row: &Row, notes: &mut Vec<String>, colour: bool) -> String {
    let mut text = format!("{}/{}", short(&row.host_read), short(&row.guest_read));
    let odd = oddity(row);
    if let Some(note) = &odd {
        let at = notes.iter().position(|known| known == note);
        let at = at.unwrap_or_else(|| {
            notes.push(note.clone());
            notes.len() - 1
        });
        let _ = write!(text, " {}", ('a'..).nth(at).unwrap_or('?'));
    }
    let code = match (row.faults.is_empty(), row.promise.errno(), odd) {
        (false, _, _) => "1;31",
        (true, Some(_), _) => "33",
        (true, None, Some(_)) => "36",
        (true, None, None) => "32",
    };
    paint(&format!("{text:<13}"), code, colour)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(direction: &'static str, promise: Promise, guest: &str) -> Row {
        Row {
            platform: "SNP",
            phase: Phase::AfterLaunch,
            direction,
            content: Content::Zero,
            history: Some(History::Untouched),
            promise,
            promised: "zeroes".into(),
            host_read: "refused".into(),
            guest_read: guest.into(),
            faults: Vec::new(),
        }
    }

    #[test]
    fn a_cell_stands_under_its_policy_and_state() {
        let text = draw(
            "SNP",
            &[row("to private", Promise::Zeroes, "zeroes")],
            false,
        );
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0].find("ZERO"), Some(17 + 26));
        assert_eq!(
            lines[1].match_indices("untouched").nth(1).unwrap().0,
            17 + 39
        );
        // Two lines of heading, and four directions before the phase that comes second.
        assert_eq!(lines[7], "after launch");
        assert_eq!(lines[8].find("-/0"), Some(17 + 39));
        // A request that was not made shows nothing.
        assert_eq!(text.matches('?').count(), 47);
    }

    #[test]
    fn odd_cells_are_explained_once() {
        let mut wrong = row("stays shared", Promise::Zeroes, "0x01 at +0x2");
        wrong.faults.push("guest reads something else".into());
        let rows = [
            row("to private", Promise::Zeroes, "key on zeroes"),
            row("to shared", Promise::Refused, "same bytes"),
            row("stays private", Promise::Refused, "same bytes"),
            wrong,
        ];
        let text = draw("SNP", &rows, false);
        assert_eq!(text.matches("-/same b").count(), 2);
        assert_eq!(text.matches("EOPNOTSUPP").count(), 1);
        assert!(
            text.contains("-/key0 a") && text.contains("-/other c"),
            "{text}"
        );
        assert!(text.contains("  c  MISMATCH: promised zeroes: guest reads something else"));
        assert!(!text.contains('\x1b'));
        assert!(draw("SNP", &rows, true).contains("\x1b[1;31m-/other c"));
    }
}
