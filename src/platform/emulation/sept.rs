// SPDX-License-Identifier: GPL-2.0

//! TDX's secure EPT: the page at each guest frame of one TD.
//!
//! A page is removed only in the order that the module enforces. First its entry is blocked, so
//! that no new translation is made. Then TRACK and a kick of the vCPUs by the host make sure that
//! all earlier translations are gone. Then the page can be removed, or moved to another frame, and
//! only then unblocked. There are only 4K pages.

/// The table's entry for a guest frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Entry {
    /// Nothing.
    #[default]
    Absent,
    /// The guest uses the page `pfn`.
    Present {
        /// The page.
        pfn: u64,
    },
    /// The same, but nobody gets a new translation.
    Blocked {
        /// The page.
        pfn: u64,
        /// When it was blocked.
        epoch: u64,
    },
}

impl Entry {
    /// The page that the TD owns because of this entry.
    pub const fn pfn(self) -> Option<u64> {
        match self {
            Self::Absent => None,
            Self::Present { pfn } | Self::Blocked { pfn, .. } => Some(pfn),
        }
    }
}

/// Why an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The arguments make no sense.
    Input,
    /// The entry is not in the state in which this can be done.
    State,
    /// Another CPU is busy with the table; try again.
    Busy,
}

/// Operations that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// PAGE.ADD and PAGE.AUG.
    Add,
    /// RANGE.BLOCK.
    Block,
    /// TRACK.
    Track,
    /// PAGE.REMOVE.
    Remove,
    /// PAGE.RELOCATE.
    Relocate,
    /// RANGE.UNBLOCK.
    Unblock,
    /// PHYMEM.PAGE.WBINVD, after which the host may use the page.
    Flush,
}

/// Where the entries are kept.
pub trait Table {
    /// The entry of a guest frame.
    fn get(&self, gfn: u64) -> Entry;

    /// Writes it.
    fn set(&mut self, gfn: u64, entry: Entry);
}

/// The state of the TD as a whole, besides its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Td {
    epoch: u64,
    runnable: bool,
}

impl Td {
    /// A TD that is being built.
    pub const fn new() -> Self {
        Self {
            epoch: 0,
            runnable: false,
        }
    }

    /// MR.FINALIZE: pages are not measured any more from now on.
    ///
    /// # Errors
    ///
    /// [`Failure::State`] if it was finalized before.
    pub fn finalize(&mut self) -> Result<(), Failure> {
        if self.runnable {
            return Err(Failure::State);
        }
        self.runnable = true;
        Ok(())
    }

    /// PAGE.ADD: gives the TD a page, whose contents it keeps and measures.
    ///
    /// # Errors
    ///
    /// [`Failure::State`] after [`finalize`](Self::finalize), or if the frame has a page.
    pub fn add(&self, table: &mut impl Table, gfn: u64, pfn: u64) -> Result<(), Failure> {
        if self.runnable {
            return Err(Failure::State);
        }
        Self::give(table, gfn, pfn)
    }

    /// PAGE.AUG: gives the TD a page, which it zeroes when it accepts it.
    ///
    /// # Errors
    ///
    /// [`Failure::State`] before [`finalize`](Self::finalize), or if the frame has a page.
    pub fn augment(&self, table: &mut impl Table, gfn: u64, pfn: u64) -> Result<(), Failure> {
        if !self.runnable {
            return Err(Failure::State);
        }
        Self::give(table, gfn, pfn)
    }

    fn give(table: &mut impl Table, gfn: u64, pfn: u64) -> Result<(), Failure> {
        if table.get(gfn) != Entry::Absent {
            return Err(Failure::State);
        }
        table.set(gfn, Entry::Present { pfn });
        Ok(())
    }

    /// RANGE.BLOCK, of one frame.
    ///
    /// # Errors
    ///
    /// [`Failure::State`] unless the frame has a page that is not blocked.
    pub fn block(&self, table: &mut impl Table, gfn: u64) -> Result<(), Failure> {
        let Entry::Present { pfn } = table.get(gfn) else {
            return Err(Failure::State);
        };
        let epoch = self.epoch;
        table.set(gfn, Entry::Blocked { pfn, epoch });
        Ok(())
    }

    /// TRACK, and the kick after it: no translation made before is in use any more.
    pub fn track(&mut self) {
        self.epoch = self.epoch.saturating_add(1);
    }

    /// Whether an entry is blocked and no translation made before that is left. There is none
    /// before [`finalize`](Self::finalize): no vCPU has run.
    pub const fn is_tracked(&self, entry: Entry) -> bool {
        matches!(entry, Entry::Blocked { epoch, .. } if epoch < self.epoch || !self.runnable)
    }

    /// PAGE.REMOVE: takes the page away from the TD; returns it.
    ///
    /// # Errors
    ///
    /// [`Failure::State`] unless the entry was blocked and tracked, in this order.
    pub fn remove(&self, table: &mut impl Table, gfn: u64) -> Result<u64, Failure> {
        match table.get(gfn) {
            entry @ Entry::Blocked { pfn, .. } if self.is_tracked(entry) => {
                table.set(gfn, Entry::Absent);
                Ok(pfn)
            }
            _ => Err(Failure::State),
        }
    }

    /// PAGE.RELOCATE: the TD has `to` there from now on, with the bytes of the page that it had, which
    /// is taken away from it and returned. The entry is not blocked any more.
    ///
    /// # Errors
    ///
    /// [`Failure::State`] unless the entry was blocked and tracked, in this order.
    pub fn relocate(&self, table: &mut impl Table, gfn: u64, to: u64) -> Result<u64, Failure> {
        let from = self.remove(table, gfn)?;
        table.set(gfn, Entry::Present { pfn: to });
        Ok(from)
    }

    /// RANGE.UNBLOCK: the page can be used again.
    ///
    /// # Errors
    ///
    /// [`Failure::State`] unless the entry was blocked and tracked, in this order.
    pub fn unblock(&self, table: &mut impl Table, gfn: u64) -> Result<(), Failure> {
        let pfn = self.remove(table, gfn)?;
        table.set(gfn, Entry::Present { pfn });
        Ok(())
    }
}
