// SPDX-License-Identifier: GPL-2.0

//! What is shown: payload injection, a bounce buffer, and every row of the contract.
//!
//! A scene that begins before launch ends after it, because before launch there is no guest that
//! could read. Each therefore has a `before` and an `after`.

use crate::{
    contract::{
        History,
        Line,
        Promise,
        Scramble,
        SW_PROTECTED, //
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

/// A request that was made, and what the host has seen since. The guest has yet to look.
struct Pending {
    phase: Phase,
    direction: &'static str,
    content: Content,
    to: Visibility,
    promise: Promise,
    range: Range<u64>,
    /// What the range held before the request.
    written: Vec<u8>,
    host: Seen,
    faults: Vec<String>,
}

impl Pending {
    /// Looks at `range`, which has just been asked to become `to`, with the host's eyes.
    fn new(
        machine: &Machine,
        phase: Phase,
        direction: &'static str,
        (to, content, promise): (Visibility, Content, Promise),
        range: Range<u64>,
        written: Vec<u8>,
    ) -> Result<Self> {
        let mut faults = Vec::new();
        let (run, visibility) = machine.state_at(range.start)?;
        if visibility != to || run.start != range.start || run.end < range.end {
            faults.push(format!("file says {visibility} for {run:x?}"));
        }
        Ok(Self {
            phase,
            direction,
            content,
            to,
            promise,
            host: machine.host_read(&range)?,
            range,
            written,
            faults,
        })
    }

    /// Lets the guest look too, and judges.
    fn finish(mut self, machine: &mut Machine, scramble: Scramble) -> Result<Row> {
        let kept = |seen: &[u8]| self.promise.is_kept(scramble, &self.written, seen);
        match (self.to, &self.host) {
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
        if !self.promise.is_kept(scramble, &self.written, &bytes) {
            self.faults.push("guest reads something else".into());
        }
        Ok(Row {
            phase: self.phase,
            direction: self.direction,
            content: self.content,
            promised: self.promise.name(scramble).into(),
            host_read: self.host.describe(&self.written),
            guest_read: Seen::Bytes(bytes).describe(&self.written),
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

/// Arguments for the payload; any will do.
const ARGUMENTS: [u32; 3] = [0, 0x1234_5678, 0xffff_ffff];

impl Payload {
    /// Injects the payload.
    pub fn before(machine: &mut Machine, phase: Phase) -> Result<Self> {
        let page = machine.fresh(1)?;
        let mut written = guest::payload().to_vec();
        written.resize(PAGE as usize, 0);
        machine.host_write(page.start, &written)?;
        machine.convert(&page, Visibility::Private, Content::Preserve)?;
        let mut pending = Pending::new(
            machine,
            phase,
            "to private",
            (Visibility::Private, Content::Preserve, Promise::Kept),
            page.clone(),
            written,
        )?;
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

    /// Has the guest read and run it, then takes the page back to see that it was this one.
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
        machine.guest_converts(&self.page, Visibility::Shared, Content::Preserve)?;
        let back = Pending::new(
            machine,
            Phase::AfterLaunch,
            "to shared",
            (Visibility::Shared, Content::Preserve, Promise::Kept),
            self.page,
            written,
        )?;
        let mut back = back.finish(machine, scramble)?;
        back.promised = "with its run count".into();
        Ok([injected, back])
    }
}

/// The guest prepares a buffer in private, hands it to the host, and takes it back with the answer:
/// nothing is copied.
pub fn bounce_buffer(machine: &mut Machine, scramble: Scramble) -> Result<Vec<Row>> {
    let buffer = machine.fresh(2)?;
    machine.guest_converts(&buffer, Visibility::Private, Content::Preserve)?;
    let mut rows = Vec::new();
    for round in 0..2 {
        let request = machine.guest_fill(&buffer, 0xb0_0000 + round)?;
        if machine.host_read(&buffer)? != Seen::Refused {
            return Err("the host reads the guest's private buffer".into());
        }
        machine.guest_converts(&buffer, Visibility::Shared, Content::Preserve)?;
        let outward = Pending::new(
            machine,
            Phase::AfterLaunch,
            "to shared",
            (Visibility::Shared, Content::Preserve, Promise::Kept),
            buffer.clone(),
            request,
        )?;
        let mut outward = outward.finish(machine, scramble)?;
        outward.promised = "guest's request".into();
        rows.push(outward);

        let answer = guest::pattern(0xa0_0000 + round, (buffer.end - buffer.start) as usize);
        machine.host_write(buffer.start, &answer)?;
        machine.guest_converts(&buffer, Visibility::Private, Content::Preserve)?;
        let inward = Pending::new(
            machine,
            Phase::AfterLaunch,
            "to private",
            (Visibility::Private, Content::Preserve, Promise::Kept),
            buffer.clone(),
            answer,
        )?;
        let mut inward = inward.finish(machine, scramble)?;
        inward.promised = "host's answer".into();
        rows.push(inward);
    }
    Ok(rows)
}

/// Every row of the contract, each on pages of its own.
pub struct Policies {
    requests: Vec<(Pending, Guard)>,
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
        let seen = seen.describe(&self.written);
        Ok(Some(format!(
            "the page behind is {visibility} and reads {seen}"
        )))
    }
}

impl Policies {
    /// Makes all the requests. Before launch the VMM does so by itself, afterwards the guest asks.
    pub fn before(machine: &mut Machine, phase: Phase) -> Result<Self> {
        let requests = SW_PROTECTED
            .iter()
            .zip(1..)
            .map(|(line, number)| request(machine, phase, line, number))
            .collect::<Result<_>>()?;
        Ok(Self { requests })
    }

    /// Lets the guest read what has become of the pages.
    pub fn after(self, machine: &mut Machine, scramble: Scramble) -> Result<Vec<Row>> {
        let finish = |(pending, guard): (Pending, Guard)| {
            let mut row = pending.finish(machine, scramble)?;
            row.faults.extend(guard.faults(machine)?);
            Ok(row)
        };
        self.requests.into_iter().map(finish).collect()
    }
}

/// Brings fresh pages to where `line` starts from, and makes its request.
fn request(
    machine: &mut Machine,
    phase: Phase,
    line: &Line,
    number: u32,
) -> Result<(Pending, Guard)> {
    let pages = machine.fresh(3)?;
    let range = pages.start..pages.start + 2 * PAGE;
    let guard = Guard::new(machine, range.end..pages.end, number << 16)?;
    let from = line.motion.from;
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
        // The guest is the only one who can write to a private page, once it runs.
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
    if launched && line.history == History::Written && machine.guest_read(&range)? != written {
        return Err(format!(
            "the guest does not read what was written to {range:x?}"
        ));
    }

    let to = line.motion.to;
    if launched {
        machine.guest_converts(&range, to, line.content)?;
    } else {
        machine.convert(&range, to, line.content)?;
    }
    let pending = Pending::new(
        machine,
        phase,
        line.motion.name(),
        (to, line.content, line.promise),
        range,
        written,
    )?;
    Ok((pending, guard))
}
