// SPDX-License-Identifier: GPL-2.0

//! Gates at which a test holds tasks, so that others run in between.
//!
//! Some orders of events need two tasks to meet within a few instructions. A gate enforces such an
//! order.

use crate::kvm::vm::Gfn;
use core::ops::Range;
use kernel::{
    new_condvar,
    new_mutex,
    prelude::*,
    sync::{
        CondVar,
        Mutex, //
    }, //
};

/// The gfn for which a gate is closed, and the tasks that wait at it.
#[derive(Default)]
struct State {
    closed: Option<u64>,
    held: u64,
}

impl State {
    fn stops(&self, gfns: &Range<u64>) -> bool {
        self.closed.is_some_and(|gfn| gfns.contains(&gfn))
    }
}

/// One place in the code. Open at first.
#[pin_data]
pub(super) struct Gate {
    #[pin]
    state: Mutex<State>,
    #[pin]
    opened: CondVar,
}

impl Gate {
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            state <- new_mutex!(State::default()),
            opened <- new_condvar!(),
        })
    }

    /// Waits while the gate is closed for one of `gfns`, or until a signal comes. Sleeps.
    pub(super) fn pass(&self, gfns: Range<u64>) {
        let mut state = self.state.lock();

        state.held += 1;
        while state.stops(&gfns) && !self.opened.wait_interruptible(&mut state) {}
        state.held -= 1;
    }

    /// Closes the gate for one gfn, or opens it. Returns how many tasks waited at it.
    pub(super) fn set(&self, closed: Option<Gfn>) -> u64 {
        let mut state = self.state.lock();

        state.closed = closed.map(Gfn::get);
        if closed.is_none() {
            self.opened.notify_all();
        }
        state.held
    }
}
