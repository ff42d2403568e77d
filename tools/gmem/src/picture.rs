// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file drawn as a grid of cells, each for as many pages: which are private, which are shared,
//! which were used.

use crate::{
    attributes::{
        Run,
        Visibility, //
    },
    file::GuestMemfd, //
};
use std::{
    fmt::Write,
    io,
    os::fd::AsRawFd, //
};

const PAGE: u64 = 0x1000;
/// For files of up to this many pages, each page is checked for use.
const USED_LIMIT: u64 = 1 << 18;
/// More runs than this would not be readable, and reading them takes long.
const RUN_LIMIT: usize = 1 << 20;

/// What a file looks like at a moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// The caption.
    pub title: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// The runs of private and of shared pages, in order.
    pub runs: Vec<Run>,
    /// Which pages were used; [`None`] for a file that the host cannot map, or that is too large to
    /// check.
    pub used: Option<Vec<bool>>,
}

impl Picture {
    /// Looks at `file`, without touching a page of it.
    ///
    /// # Errors
    ///
    /// Those of reading the attributes: the file has to convert in place.
    pub fn of(file: &GuestMemfd, title: String) -> io::Result<Self> {
        Ok(Self {
            title,
            size: file.size(),
            runs: file.runs().take(RUN_LIMIT).collect::<io::Result<_>>()?,
            used: used(file),
        })
    }

    /// Draws it for a terminal, in at most 16 rows of 64 cells, with colours or with letters.
    pub fn terminal(&self, colour: bool) -> String {
        terminal(self, &Cells::of(self, 64 * 16), colour)
    }

    /// Draws it as an SVG.
    pub fn svg(&self) -> String {
        svg(self)
    }
}

/// Which pages are in the page cache and up to date: mincore() tells, and touches nothing.
fn used(file: &GuestMemfd) -> Option<Vec<bool>> {
    let pages = file.size() / PAGE;
    if pages > USED_LIMIT {
        return None;
    }
    let length = file.size() as usize;
    // SAFETY: A new mapping, which nobody touches.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return None;
    }
    let mut bytes = vec![0u8; pages as usize];
    // SAFETY: There is a byte for each page of the mapping.
    let told = unsafe { libc::mincore(address, length, bytes.as_mut_ptr()) } == 0;
    // SAFETY: The mapping is ours, and forgotten.
    unsafe { libc::munmap(address, length) };
    told.then(|| bytes.iter().map(|byte| byte & 1 != 0).collect())
}

/// What the pages of a cell are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cell {
    /// Pages that are private, shared.
    private: u64,
    shared: u64,
    /// Pages that somebody has used, if that is known.
    used: Option<u64>,
}

/// A file in cells.
struct Cells {
    cells: Vec<Cell>,
    /// How many pages a cell is for; the last one can have fewer.
    pages_each: u64,
}

impl Cells {
    /// Divides a file into `most` cells at most, of a power of two of pages each.
    fn of(picture: &Picture, most: u64) -> Self {
        let pages = picture.size / PAGE;
        let pages_each = pages.div_ceil(most).next_power_of_two();
        let mut cells = vec![Cell::default(); pages.div_ceil(pages_each) as usize];

        for run in &picture.runs {
            let (mut at, end) = (run.range.start / PAGE, (run.range.end / PAGE).min(pages));
            while at < end {
                let cell = at / pages_each;
                let next = ((cell + 1) * pages_each).min(end);
                let count = match run.visibility {
                    Visibility::Private => &mut cells[cell as usize].private,
                    Visibility::Shared => &mut cells[cell as usize].shared,
                };
                *count += next - at;
                at = next;
            }
        }
        if let Some(used) = &picture.used {
            for (cell, pages) in cells.iter_mut().zip(used.chunks(pages_each as usize)) {
                cell.used = Some(pages.iter().filter(|&&is| is).count() as u64);
            }
        }
        Self { cells, pages_each }
    }
}

/// What a cell is drawn as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Private,
    Shared,
    Mixed,
}

impl Cell {
    fn look(&self) -> Look {
        match (self.private, self.shared) {
            (_, 0) => Look::Private,
            (0, _) => Look::Shared,
            _ => Look::Mixed,
        }
    }

    /// Nobody has used a page of it, as far as that is known.
    fn is_unused(&self) -> bool {
        self.used == Some(0)
    }
}

/// Bytes, in the largest unit that leaves a whole number.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value != 0 && value % 1024 == 0 && unit + 1 < units.len() {
        value /= 1024;
        unit += 1;
    }
    format!("{value} {}", units[unit])
}

fn note(picture: &Picture) -> &'static str {
    if picture.used.is_some() {
        ""
    } else {
        " (what was used is not shown)"
    }
}

/// For a terminal, with colours or letters.
fn terminal(picture: &Picture, cells: &Cells, colour: bool) -> String {
    const ACROSS: usize = 64;

    let mut text = format!("{}\n", picture.title);
    let each = size(cells.pages_each * PAGE);
    let _ = writeln!(
        text,
        "each {each}; P p private, S s shared, M m both, small where nobody has used a page{}",
        note(picture)
    );
    for (row, line) in cells.cells.chunks(ACROSS).enumerate() {
        let offset = row as u64 * ACROSS as u64 * cells.pages_each * PAGE;
        let _ = write!(text, "{offset:#14x}  ");
        for cell in line {
            let (letter, code) = match cell.look() {
                Look::Private => ('P', 41),
                Look::Shared => ('S', 42),
                Look::Mixed => ('M', 43),
            };
            let letter = if cell.is_unused() {
                letter.to_ascii_lowercase()
            } else {
                letter
            };
            if colour {
                let dim = if cell.is_unused() { "2;" } else { "" };
                let _ = write!(text, "\x1b[{dim}30;{code}m{letter}\x1b[0m");
            } else {
                text.push(letter);
            }
        }
        text.push('\n');
    }
    text
}

/// A picture of its own. Cells become smaller and more as the file grows, up to a limit.
fn svg(picture: &Picture) -> String {
    const WIDTH: u64 = 960;
    const LEFT: u64 = 120;
    const TOP: u64 = 72;
    // The side of a cell, and how many there may be: few are drawn large. A row has a power of two.
    const SIDES: [(u64, u64); 3] = [(60, 64), (30, 512), (15, 4096)];

    let pages = picture.size / PAGE;
    let &(side, most) = SIDES
        .iter()
        .find(|&&(_, most)| pages <= most)
        .unwrap_or(&SIDES[SIDES.len() - 1]);
    let cells = Cells::of(picture, most);
    let across = WIDTH / side;
    let rows = (cells.cells.len() as u64).div_ceil(across);
    let height = TOP + rows * side + 16;
    let gap = (side / 10).max(1);

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{height}\" \
         viewBox=\"0 0 {0} {height}\" font-family=\"monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"24\" fill=\"#222222\">{1}</text>\n",
        LEFT + WIDTH + 16,
        picture.title
    );
    let legend = [
        ("private", fill(Look::Private, false)),
        ("shared", fill(Look::Shared, false)),
        ("both", fill(Look::Mixed, false)),
        ("private, unused", fill(Look::Private, true)),
        ("shared, unused", fill(Look::Shared, true)),
    ];
    let mut x = 16;
    for (name, colour) in legend {
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"38\" width=\"14\" height=\"14\" fill=\"{colour}\" \
             stroke=\"#888888\"/><text x=\"{}\" y=\"50\" fill=\"#222222\">{name}</text>",
            x + 20
        );
        x += 44 + 8 * name.len() as u64;
    }
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"50\" fill=\"#666666\">each {}{}</text>",
        size(cells.pages_each * PAGE),
        note(picture)
    );
    // Not at every row if they are low.
    let step = 20u64.div_ceil(side);
    for row in 0..rows {
        let y = TOP + row * side;
        if row % step == 0 {
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#666666\">{:#x}</text>",
                LEFT - 8,
                y + side.min(20) / 2 + 6,
                row * across * cells.pages_each * PAGE
            );
        }
        let start = (row * across) as usize;
        let end = cells.cells.len().min(start + across as usize);
        for (column, cell) in cells.cells[start..end].iter().enumerate() {
            let _ = writeln!(
                out,
                "<rect x=\"{}\" y=\"{y}\" width=\"{2}\" height=\"{2}\" fill=\"{1}\"/>",
                LEFT + column as u64 * side,
                fill(cell.look(), cell.is_unused()),
                side - gap
            );
        }
    }
    out += "</svg>\n";
    out
}

/// Told apart without red and green as well: they differ in lightness.
fn fill(look: Look, unused: bool) -> &'static str {
    match (look, unused) {
        (Look::Private, false) => "#8b1a4a",
        (Look::Private, true) => "#e6c3d3",
        (Look::Shared, false) => "#3b8fd1",
        (Look::Shared, true) => "#d3e6f5",
        (Look::Mixed, false) => "#e0a020",
        (Look::Mixed, true) => "#f5e3bd",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(pages: u64, runs: &[(u64, Visibility)]) -> Picture {
        let mut start = 0;
        let runs = runs
            .iter()
            .map(|&(end, visibility)| {
                let range = start * PAGE..end * PAGE;
                start = end;
                Run { range, visibility }
            })
            .collect();
        Picture {
            title: "a file".into(),
            size: pages * PAGE,
            runs,
            used: None,
        }
    }

    #[test]
    fn every_page_is_in_one_cell() {
        use Visibility::{Private, Shared};
        for (pages, most) in [(4, 64), (65, 64), (1 << 28, 1024), (1000, 7)] {
            let third = pages / 3;
            let cells = Cells::of(&picture(pages, &[(third, Shared), (pages, Private)]), most);
            assert!(cells.cells.len() as u64 <= most);
            assert_eq!(
                cells.cells.iter().map(|cell| cell.shared).sum::<u64>(),
                third
            );
            let private: u64 = cells.cells.iter().map(|cell| cell.private).sum();
            assert_eq!(private, pages - third);
            let full = &cells.cells[..cells.cells.len() - 1];
            assert!(full
                .iter()
                .all(|cell| cell.private + cell.shared == cells.pages_each));
        }
    }

    #[test]
    fn letters_say_what_pages_are() {
        use Visibility::{Private, Shared};
        let mut four = picture(4, &[(1, Private), (4, Shared)]);
        four.used = Some(vec![true, true, false, false]);
        let text = terminal(&four, &Cells::of(&four, 64), false);
        assert!(text.ends_with("0x0  PSss\n"), "{text}");
        let half = terminal(&four, &Cells::of(&four, 2), false);
        assert!(half.ends_with("0x0  Ms\n"), "{half}");
    }

    #[test]
    fn sizes_are_whole() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(4096), "4 KiB");
        assert_eq!(size(5 << 20), "5 MiB");
        assert_eq!(size(1 << 40), "1 TiB");
        assert_eq!(size((1 << 30) + 4096), "1048580 KiB");
    }

    #[test]
    fn pictures_have_a_bound() {
        use Visibility::Shared;
        for pages in [1, 4, 64, 65, 4096, 1 << 28] {
            let svg = svg(&picture(pages, &[(pages, Shared)]));
            assert!(svg.matches("<rect").count() <= 4096 + 6);
            assert!(svg.ends_with("</svg>\n"));
        }
    }
}
