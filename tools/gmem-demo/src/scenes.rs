// SPDX-License-Identifier: GPL-2.0

//! The scenes: payload injection, a bounce buffer, and every row of the contract.
//!
//! A scene that begins before launch ends after it, because before launch there is no guest that
//! could read. Each therefore has a `before` and an `after`.

use crate::{
    contract::{
        Eyes,
        History,
        Line,
        Motion,
        Promise,
        Scramble, //
    },
    guest,
    machine::{
        Machine,
        Result,
        PAGE, //
    },
    table::{
        Phase,
        Row,
        Seen, //
    },
};
use gmem::{
    Content,
    Visibility, //
};
use std::ops::Range;

/// A request that was made, and its expected result.
#[derive(Clone, Copy)]
struct Request {
    phase: Phase,
    direction: &'static str,
    content: Content,
    /// The state of the range now.
    is: Visibility,
    promise: Promise,
    eyes: Eyes,
}

impl Request {
    /// A request that changes the bytes as `promise` says, for all readers.
    fn new(phase: Phase, to: Visibility, content: Content, promise: Promise) -> Self {
        Self {
            phase,
            direction: match to {
                Visibility::Private => "to private",
                Visibility::Shared => "to shared",
            },
            content,
            is: to,
            promise,
            eyes: Eyes::Plain,
        }
    }
}

/// A request that was made, and what the host has read since. The guest has not read yet.
struct Pending {
    request: Request,
    range: Range<u64>,
    /// The contents of the range before the request.
    written: Vec<u8>,
    host: Seen,
    faults: Vec<String>,
}

impl Pending {
    /// Reads `range`, for which `request` has just been made, as the host.
    fn new(
        machine: &Machine,
        request: Request,
        range: Range<u64>,
        written: Vec<u8>,
    ) -> Result<Self> {
        let mut faults = Vec::new();
        let (run, visibility) = machine.state_at(range.start)?;
        if visibility != request.is || run.start != range.start || run.end < range.end {
            faults.push(format!("file says {visibility} for {run:x?}"));
        }
        Ok(Self {
            request,
            host: machine.host_read(&range)?,
            range,
            written,
            faults,
        })
    }

    /// Lets the guest read as well, and checks the results.
    fn finish(mut self, machine: &mut Machine, scramble: Scramble) -> Result<Row> {
        let Request { promise, eyes, .. } = self.request;
        let key = machine.key();
        let kept = |seen: &[u8]| promise.is_kept(scramble, key, eyes, &self.written, seen);
        match (self.request.is, &self.host) {
            (Visibility::Private, Seen::Refused) => {}
            (Visibility::Private, Seen::Bytes(_)) => {
                self.faults.push("host reads a private page".into());
            }
            (Visibility::Shared, Seen::Refused) => {
                self.faults.push("host is refused a shared page".into());
            }
            (Visibility::Shared, Seen::Bytes(bytes)) => {
                if !kept(bytes) {
                    self.faults.push("host reads something else".into());
                }
            }
        }
        let bytes = machine.guest_read(&self.range)?;
        if !promise.is_kept(scramble, key, eyes, &self.written, &bytes) {
            self.faults.push("guest reads something else".into());
        }
        Ok(Row {
            platform: machine.platform().name,
            phase: self.request.phase,
            direction: self.request.direction,
            content: self.request.content,
            history: None,
            promise,
            promised: promise.name(scramble).into(),
            host_read: self.host.describe(&self.written, key),
            guest_read: Seen::Bytes(bytes).describe(&self.written, key),
            faults: self.faults,
        })
    }
}

/// The host writes a payload into the guest's memory, makes it private, and the guest runs it from
/// the very same page.
pub struct Payload {
    page: Range<u64>,
    pending: Pending,
    /// Whether an ordinary load by the host got the signal.
    sigbus: bool,
}

/// Arguments for the payload; the values do not matter.
const ARGUMENTS: [u32; 3] = [0, 0x1234_5678, 0xffff_ffff];

impl Payload {
    /// Injects the payload.
    pub fn before(machine: &mut Machine, phase: Phase) -> Result<Self> {
        let page = machine.fresh(1)?;
        let mut written = guest::payload().to_vec();
        written.resize(PAGE as usize, 0);
        machine.host_write(page.start, &written)?;
        let (to, content) = (Visibility::Private, Content::Preserve);
        machine.convert(&page, to, content)?;
        machine.load(&page)?;
        let request = Request::new(phase, to, content, Promise::Kept);
        let mut pending = Pending::new(machine, request, page.clone(), written)?;
        let sigbus = machine.load_is_sigbus(page.start)?;
        if !sigbus {
            pending.faults.push("host load gets no SIGBUS".into());
        }
        Ok(Self {
            page,
            pending,
            sigbus,
        })
    }

    /// Lets the guest read and run it, then takes the page back to check that it was this one.
    pub fn after(self, machine: &mut Machine, scramble: Scramble) -> Result<[Row; 2]> {
        let mut injected = self.pending.finish(machine, scramble)?;
        injected.promised = "payload, runs".into();
        if self.sigbus {
            injected.host_read += ", SIGBUS";
        }
        for argument in ARGUMENTS {
            let answer = machine.guest_call(self.page.start, argument)?;
            if answer != guest::payload_answer(argument) {
                let fault = format!("payload returns {answer:#x} for {argument:#x}");
                injected.faults.push(fault);
            }
        }
        injected.guest_read = match injected.faults.as_slice() {
            [] => "payload, ran".into(),
            _ => injected.guest_read,
        };

        let mut written = guest::payload_after(ARGUMENTS.len() as u32);
        written.resize(PAGE as usize, 0);
        let (to, content) = (Visibility::Shared, Content::Preserve);
        let (promise, eyes) = machine.platform().payload_back;
        let mut request = Request::new(Phase::AfterLaunch, to, content, promise);
        request.eyes = eyes;
        if let Some(errno) = promise.errno() {
            request.is = Visibility::Private;
            machine.is_refused(&self.page, to, content, errno, true)?;
        } else {
            machine.guest_converts(&self.page, to, content)?;
        }
        let back = Pending::new(machine, request, self.page, written)?;
        let mut back = back.finish(machine, scramble)?;
        if promise == Promise::Kept {
            back.promised = "with its run count".into();
        }
        Ok([injected, back])
    }
}

/// The guest prepares a buffer in private, hands it to the host, and takes it back with the answer:
/// nothing is copied.
pub fn bounce_buffer(machine: &mut Machine, scramble: Scramble) -> Result<Vec<Row>> {
    let (launched, content) = (Phase::AfterLaunch, Content::Preserve);
    let buffer = machine.fresh(2)?;
    if machine.platform().guest_shares {
        // It does not have the buffer's pages yet, so it cannot take them back.
        machine.convert(&buffer, Visibility::Private, content)?;
    } else {
        machine.guest_converts(&buffer, Visibility::Private, content)?;
    }
    let mut rows = Vec::new();
    for round in 0..2 {
        let request = machine.guest_fill(&buffer, 0xb0_0000 + round)?;
        if machine.host_read(&buffer)? != Seen::Refused {
            return Err("the host reads the guest's private buffer".into());
        }
        machine.guest_converts(&buffer, Visibility::Shared, content)?;
        let asked = Request::new(launched, Visibility::Shared, content, Promise::Kept);
        let outward = Pending::new(machine, asked, buffer.clone(), request)?;
        let mut outward = outward.finish(machine, scramble)?;
        outward.promised = "guest's request".into();
        rows.push(outward);

        let answer = guest::pattern(0xa0_0000 + round, (buffer.end - buffer.start) as usize);
        machine.host_write(buffer.start, &answer)?;
        machine.guest_converts(&buffer, Visibility::Private, content)?;
        let asked = Request::new(launched, Visibility::Private, content, Promise::Kept);
        let inward = Pending::new(machine, asked, buffer.clone(), answer)?;
        let mut inward = inward.finish(machine, scramble)?;
        inward.promised = "host's answer".into();
        rows.push(inward);
    }
    Ok(rows)
}

/// The VMM requests pages that the guest has not shared: the guest has to share them first.
pub fn consent(machine: &mut Machine, scramble: Scramble) -> Result<Vec<Row>> {
    let (launched, to) = (Phase::AfterLaunch, Visibility::Shared);
    [Content::Preserve, Content::Zero, Content::None]
        .into_iter()
        .zip(0xc0_0000..)
        .map(|(content, seed)| {
            let range = machine.fresh(2)?;
            machine.convert(&range, Visibility::Private, Content::Preserve)?;
            let written = machine.guest_fill(&range, seed)?;
            machine.is_refused(&range, to, content, libc::EPERM, false)?;
            let mut request = Request::new(launched, to, content, Promise::Forbidden);
            request.is = Visibility::Private;
            Pending::new(machine, request, range, written)?.finish(machine, scramble)
        })
        .collect()
}

/// Every row of the contract, each on pages of its own.
pub struct Policies {
    requests: Vec<(History, Pending, Guard)>,
}

/// The page behind a row's range, which the row must leave alone.
struct Guard {
    page: Range<u64>,
    written: Vec<u8>,
}

impl Guard {
    fn new(machine: &Machine, page: Range<u64>, seed: u32) -> Result<Self> {
        let written = guest::pattern(seed, PAGE as usize);
        machine.host_write(page.start, &written)?;
        Ok(Self { page, written })
    }

    fn faults(&self, machine: &Machine) -> Result<Option<String>> {
        let (_, visibility) = machine.state_at(self.page.start)?;
        let seen = machine.host_read(&self.page)?;
        if visibility == Visibility::Shared && seen == Seen::Bytes(self.written.clone()) {
            return Ok(None);
        }
        let seen = seen.describe(&self.written, machine.key());
        Ok(Some(format!(
            "the page behind is {visibility} and reads {seen}"
        )))
    }
}

impl Policies {
    /// Makes all the requests. Before launch the VMM does so by itself, afterwards the guest asks.
    pub fn before(machine: &mut Machine, phase: Phase) -> Result<Self> {
        let platform = machine.platform();
        let lines = match phase {
            Phase::BeforeLaunch => platform.before,
            Phase::AfterLaunch => platform.after,
        };
        let requests = lines
            .iter()
            .zip(1..)
            .map(|(line, number)| {
                let (pending, guard) = request(machine, phase, line, number)?;
                Ok((line.history, pending, guard))
            })
            .collect::<Result<_>>()?;
        Ok(Self { requests })
    }

    /// Lets the guest read the pages.
    pub fn after(self, machine: &mut Machine, scramble: Scramble) -> Result<Vec<Row>> {
        let finish = |(history, pending, guard): (History, Pending, Guard)| {
            let mut row = pending.finish(machine, scramble)?;
            row.history = Some(history);
            row.faults.extend(guard.faults(machine)?);
            Ok(row)
        };
        self.requests.into_iter().map(finish).collect()
    }
}

/// Brings fresh pages into the initial state of `line`, and makes its request.
fn request(
    machine: &mut Machine,
    phase: Phase,
    line: &Line,
    number: u32,
) -> Result<(Pending, Guard)> {
    let pages = machine.fresh(3)?;
    let range = pages.start..pages.start + 2 * PAGE;
    let guard = Guard::new(machine, range.end..pages.end, number << 16)?;
    let Motion { from, to } = line.motion;
    let launched = phase == Phase::AfterLaunch;
    let length = (range.end - range.start) as usize;

    let written = match (line.history, from) {
        (History::Untouched, _) => {
            machine.allocate(range.start + PAGE..range.end)?;
            if from == Visibility::Private {
                machine.convert(&range, from, Content::Preserve)?;
            }
            vec![0; length]
        }
        // Once the guest runs, only the guest can write to a private page.
        (History::Written, Visibility::Private) if launched => {
            machine.convert(&range, from, Content::Preserve)?;
            machine.guest_fill(&range, number)?
        }
        (History::Written, _) => {
            let bytes = guest::pattern(number, length);
            machine.host_write(range.start, &bytes)?;
            if from == Visibility::Private {
                machine.convert(&range, from, Content::Preserve)?;
            }
            bytes
        }
    };
    // The request has to take away a mapping that the guest has been using.
    if launched && line.history == History::Written {
        let seen = match from {
            Visibility::Private => machine.guest_read(&range)?,
            Visibility::Shared => machine.guest_joins(&range)?,
        };
        if seen != written {
            return Err(format!(
                "the guest does not read what was written to {range:x?}"
            ));
        }
    }

    let by_guest = launched && machine.platform().guest_asks(line);
    let refusal = line.promise.errno();
    if let Some(errno) = refusal {
        machine.is_refused(&range, to, line.content, errno, by_guest)?;
    } else if by_guest {
        machine.guest_converts(&range, to, line.content)?;
    } else {
        machine.convert(&range, to, line.content)?;
    }
    let request = Request {
        phase,
        direction: line.motion.name(),
        content: line.content,
        is: if refusal.is_some() { from } else { to },
        promise: line.promise,
        eyes: line.eyes,
    };
    let pending = Pending::new(machine, request, range, written)?;
    Ok((pending, guard))
}
