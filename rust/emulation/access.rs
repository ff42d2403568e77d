// SPDX-License-Identifier: GPL-2.0

//! The kind of memory that an access of a guest is for.
//!
//! On hardware the guest selects it: by a bit in its page tables on SNP, by a bit of the address on
//! TDX. Guests of SW_PROTECTED VMs have neither. Their accesses are of the kind that the file has,
//! unless a test says otherwise.

use kernel::prelude::*;

/// Frames that a guest uses as memory of one kind, whatever the file says.
pub(super) struct Access {
    /// The frame, and whether it is used as private memory.
    frames: [Option<(u64, bool)>; Self::FRAMES],
}

impl Access {
    const FRAMES: usize = 16;

    /// The file decides for all frames.
    pub(super) const fn new() -> Self {
        Self {
            frames: [None; Self::FRAMES],
        }
    }

    /// Has the guest use a frame as memory of one kind, or of the kind that the file has.
    ///
    /// # Errors
    ///
    /// `ENOSPC`.
    pub(super) fn set(&mut self, gfn: u64, private: Option<bool>) -> Result {
        for frame in &mut self.frames {
            if frame.is_some_and(|(of, _)| of == gfn) {
                *frame = None;
            }
        }
        if let Some(private) = private {
            let free = self.frames.iter_mut().find(|frame| frame.is_none());
            *free.ok_or(ENOSPC)? = Some((gfn, private));
        }
        Ok(())
    }

    /// Whether the guest uses a frame as private memory; [`None`] if the file decides.
    pub(super) fn of(&self, gfn: u64) -> Option<bool> {
        self.frames
            .iter()
            .flatten()
            .find_map(|&(of, private)| (of == gfn).then_some(private))
    }
}
