// SPDX-License-Identifier: GPL-2.0

//! SNP's reverse map: for each page of the host, to whom it is assigned.
//!
//! The model allows what hardware allows, including what only a bug would do: RMPUPDATE does not
//! check the previous owner, so a page can be taken from one guest and given to another without an
//! error. The caller has to refuse that.
//!
//! It is stricter in one thing: a 4K update at the first page of a 2M entry is an overlap, too.

/// Pages in an entry of 2M.
pub const LARGE_PAGES: u64 = 512;

/// Bytes in a page.
const PAGE: u64 = 4096;

/// How much memory an entry covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Size {
    /// One page.
    #[default]
    Small,
    /// [`LARGE_PAGES`] pages; only the entry of the first page counts.
    Large,
}

/// The map's entry for a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Given to a guest or to firmware; the host may not write it.
    pub assigned: bool,
    /// The guest has accepted it.
    pub validated: bool,
    /// Only firmware can change the entry.
    pub immutable: bool,
    /// How much memory the entry covers.
    pub size: Size,
    /// The guest physical address.
    pub gpa: u64,
    /// The guest that it is assigned to.
    pub asid: u32,
}

impl Entry {
    /// A page of the host, the initial state of each page.
    pub const HYPERVISOR: Self = Self {
        assigned: false,
        validated: false,
        immutable: false,
        size: Size::Small,
        gpa: 0,
        asid: 0,
    };

    /// The arguments of RMPUPDATE that assign one page.
    pub const fn assigned(asid: u32, gpa: u64) -> Self {
        Self {
            assigned: true,
            validated: false,
            immutable: false,
            size: Size::Small,
            gpa,
            asid,
        }
    }

    /// The same for 2M.
    pub const fn large(self) -> Self {
        Self {
            size: Size::Large,
            ..self
        }
    }

    /// The same for a page that is handed to firmware.
    pub const fn immutable(self) -> Self {
        Self {
            immutable: true,
            ..self
        }
    }
}

/// Why an operation on the map fails, with the numbers that hardware uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The arguments make no sense.
    Input = 1,
    /// The entry is immutable.
    Permission = 2,
    /// Somebody else is changing the entry.
    InUse = 3,
    /// There is an entry of another size for the same memory.
    Overlap = 4,
}

/// Operations that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// RMPUPDATE to assigned.
    Assign,
    /// RMPUPDATE to not assigned.
    Unassign,
    /// PSMASH.
    Smash,
}

/// Where the entries are kept.
pub trait Table {
    /// The entry of a page; [`Entry::HYPERVISOR`] if none was ever written.
    fn get(&self, pfn: u64) -> Entry;

    /// Writes the entry of a page.
    fn set(&mut self, pfn: u64, entry: Entry);
}

/// The first page of the 2M that `pfn` is in.
const fn base(pfn: u64) -> u64 {
    pfn - pfn % LARGE_PAGES
}

/// The entry that counts for a page: its own, or that of the 2M around it.
pub fn lookup(table: &impl Table, pfn: u64) -> Entry {
    let around = table.get(base(pfn));
    if around.assigned && around.size == Size::Large {
        around
    } else {
        table.get(pfn)
    }
}

/// RMPUPDATE: the host assigns a page, or takes it back.
///
/// # Errors
///
/// A [`Code`]; nothing has changed then.
pub fn update(table: &mut impl Table, pfn: u64, new: Entry) -> Result<(), Code> {
    let pages = match new.size {
        Size::Small => 1,
        Size::Large => LARGE_PAGES,
    };
    let for_nobody = new.assigned && new.asid == 0 && !new.immutable;
    if pfn % pages != 0 || new.gpa % (pages * PAGE) != 0 || for_nobody {
        return Err(Code::Input);
    }

    let around = table.get(base(pfn));
    let is_large = around.assigned && around.size == Size::Large;
    let overlaps = match new.size {
        Size::Small => is_large,
        Size::Large => !is_large && (0..LARGE_PAGES).any(|page| table.get(pfn + page).assigned),
    };
    if overlaps {
        return Err(Code::Overlap);
    }
    let old = table.get(pfn);
    if old.immutable {
        return Err(Code::Permission);
    }

    let written = if new.assigned {
        // The new owner has not accepted the page yet, unless it is the old one, at the same place.
        let same = old.assigned && (old.asid, old.gpa, old.size) == (new.asid, new.gpa, new.size);
        Entry {
            validated: same && old.validated,
            ..new
        }
    } else {
        Entry::HYPERVISOR
    };
    table.set(pfn, written);
    Ok(())
}

/// PSMASH: splits an entry of 2M. The state of each page stays.
///
/// # Errors
///
/// A [`Code`]; nothing has changed then.
pub fn smash(table: &mut impl Table, pfn: u64) -> Result<(), Code> {
    let entry = table.get(pfn);

    if pfn % LARGE_PAGES != 0 || !entry.assigned || entry.size != Size::Large {
        return Err(Code::Input);
    }
    if entry.immutable {
        return Err(Code::Permission);
    }
    for page in 0..LARGE_PAGES {
        let part = Entry {
            size: Size::Small,
            gpa: entry.gpa.wrapping_add(page * PAGE),
            ..entry
        };
        table.set(pfn + page, part);
    }
    Ok(())
}

/// The entry of a page that was handed to firmware.
fn at_firmware(table: &impl Table, pfn: u64) -> Result<Entry, Code> {
    let entry = table.get(pfn);

    if entry.assigned && entry.immutable {
        Ok(entry)
    } else {
        Err(Code::Permission)
    }
}

/// What firmware does at the end of LAUNCH_UPDATE: the page is the guest's, and accepted.
///
/// # Errors
///
/// [`Code::Permission`] if the entry was not handed to firmware.
pub fn launch(table: &mut impl Table, pfn: u64) -> Result<(), Code> {
    let entry = at_firmware(table, pfn)?;

    table.set(
        pfn,
        Entry {
            validated: true,
            immutable: false,
            ..entry
        },
    );
    Ok(())
}

/// What firmware does in PAGE_RECLAIM: a page that was handed to it is its guest's as before. If there
/// is none, it has no owner then, and the host can take it back.
///
/// # Errors
///
/// [`Code::Permission`] if the entry was not handed to firmware.
pub fn reclaim(table: &mut impl Table, pfn: u64) -> Result<(), Code> {
    let entry = at_firmware(table, pfn)?;

    table.set(
        pfn,
        Entry {
            immutable: false,
            ..entry
        },
    );
    Ok(())
}

/// What firmware does in PAGE_MOVE: the guest has the page `to` in the place of the page `from`, both
/// of which were handed to firmware as the guest's. The latter is firmware's.
///
/// # Errors
///
/// [`Code::Permission`] if they were not, or are not for the same place; nothing has changed then.
pub fn relocate(table: &mut impl Table, from: u64, to: u64) -> Result<(), Code> {
    let (old, free) = (at_firmware(table, from)?, at_firmware(table, to)?);

    if from == to || old.asid == 0 || free.validated || (free.asid, free.gpa) != (old.asid, old.gpa)
    {
        return Err(Code::Permission);
    }
    table.set(
        to,
        Entry {
            validated: old.validated,
            immutable: false,
            ..free
        },
    );
    table.set(from, Entry::assigned(0, 0).immutable());
    Ok(())
}

/// Whether a guest may use a page as its private page at `gpa`.
pub fn belongs(table: &impl Table, pfn: u64, asid: u32, gpa: u64) -> bool {
    let entry = lookup(table, pfn);
    let offset = match entry.size {
        Size::Small => 0,
        Size::Large => pfn % LARGE_PAGES * PAGE,
    };
    entry.assigned
        && !entry.immutable
        && entry.asid == asid
        && entry.gpa.checked_add(offset) == Some(gpa)
}

/// PVALIDATE: the guest accepts a page.
///
/// # Errors
///
/// [`Code::Input`] if the page is not the guest's at `gpa`.
pub fn validate(table: &mut impl Table, pfn: u64, asid: u32, gpa: u64) -> Result<(), Code> {
    if !belongs(table, pfn, asid, gpa) {
        return Err(Code::Input);
    }
    let at = match lookup(table, pfn).size {
        Size::Small => pfn,
        Size::Large => base(pfn),
    };
    let entry = table.get(at);
    table.set(
        at,
        Entry {
            validated: true,
            ..entry
        },
    );
    Ok(())
}
