// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `gmem ls` and `gmem show`: the contents of fdinfo.

use crate::{
    Failure,
    Output, //
};
use gmem::fdinfo::{
    FdInfo,
    FdInfoError, //
};
use serde_json::{
    json,
    Value, //
};
use std::{
    fs,
    io,
    path::Path, //
};

/// An open guest_memfd.
struct Found {
    pid: u32,
    fd: u32,
    info: FdInfo,
}

/// The entries of a directory of `/proc` that are numbers, in order.
fn numbers(directory: impl AsRef<Path>) -> io::Result<Vec<u32>> {
    let mut numbers: Vec<u32> = fs::read_dir(directory)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// All guest_memfds, and how many processes did not let us look.
///
/// A process or a descriptor that goes away meanwhile is left out.
fn search() -> Result<(Vec<Found>, usize), Failure> {
    let mut found = Vec::new();
    let mut closed = 0;

    for pid in numbers("/proc")? {
        let fds = match numbers(format!("/proc/{pid}/fd")) {
            Ok(fds) => fds,
            Err(error) => {
                closed += usize::from(error.kind() == io::ErrorKind::PermissionDenied);
                continue;
            }
        };
        for fd in fds {
            match FdInfo::read(pid, fd) {
                Ok(info) => found.push(Found { pid, fd, info }),
                Err(FdInfoError::Io(_) | FdInfoError::NotGuestMemfd) => (),
                Err(error) => return Err(Failure::Descriptor(pid, fd, error)),
            }
        }
    }
    Ok((found, closed))
}

impl Found {
    fn mode(&self) -> &'static str {
        if self.info.converts_in_place {
            "in-place"
        } else {
            "fixed"
        }
    }

    /// The name of the process, empty once it is gone.
    fn process(&self) -> String {
        fs::read_to_string(format!("/proc/{}/comm", self.pid))
            .map(|name| name.trim_end().to_owned())
            .unwrap_or_default()
    }

    fn json(&self) -> Value {
        let slots: Vec<Value> = self
            .info
            .slots
            .iter()
            .map(|slot| {
                json!({
                    "first_gfn": slot.gfns.start,
                    "end_gfn": slot.gfns.end,
                    "offset": slot.offset,
                })
            })
            .collect();
        json!({
            "pid": self.pid,
            "fd": self.fd,
            "process": self.process(),
            "mode": self.mode(),
            "vendor": self.info.vendor,
            "migratable": self.info.migratable,
            "size": self.info.size,
            "allocated": self.info.allocated,
            "contiguous": self.info.contiguous,
            "large": self.info.large,
            "folios": self.info.folios,
            "private": self.info.totals.map(|totals| totals.private),
            "shared": self.info.totals.map(|totals| totals.shared),
            "runs": self.info.totals.map(|totals| totals.runs),
            "slots": slots,
        })
    }

    /// A line of the table, sizes in KiB; `?` for values that the kernel did not count.
    fn line(&self) -> String {
        let kib = |bytes: u64| (bytes / 1024).to_string();
        let (private, shared, runs) = match self.info.totals {
            Some(totals) => (
                kib(totals.private),
                kib(totals.shared),
                totals.runs.to_string(),
            ),
            None => ("?".to_owned(), "?".to_owned(), "?".to_owned()),
        };
        format!(
            "{:>8} {:>5} {:<15} {:<8} {:<5} {:>12} {:>12} {:>12} {:>12} {:>8}",
            self.pid,
            self.fd,
            self.process().escape_debug().to_string(),
            self.mode(),
            if self.info.migratable { "yes" } else { "no" },
            kib(self.info.size),
            kib(self.info.allocated),
            private,
            shared,
            runs,
        )
    }
}

fn header() -> String {
    format!(
        "{:>8} {:>5} {:<15} {:<8} {:<5} {:>12} {:>12} {:>12} {:>12} {:>8}",
        "PID",
        "FD",
        "PROCESS",
        "MODE",
        "MOVES",
        "SIZE/KiB",
        "ALLOC/KiB",
        "PRIVATE/KiB",
        "SHARED/KiB",
        "RUNS",
    )
}

/// Lists all.
pub fn list(out: &mut Output) -> Result<(), Failure> {
    let (found, closed) = search()?;
    if out.json {
        let all: Vec<Value> = found.iter().map(Found::json).collect();
        out.line(Value::from(all))?;
    } else {
        out.line(header())?;
        for file in &found {
            out.line(file.line())?;
        }
    }
    if closed > 0 {
        eprintln!("gmem: no permission to look into {closed} processes; root has it");
    }
    Ok(())
}

/// Shows one.
pub fn show(out: &mut Output, pid: u32, fd: u32) -> Result<(), Failure> {
    let info = FdInfo::read(pid, fd).map_err(|error| Failure::Descriptor(pid, fd, error))?;
    let file = Found { pid, fd, info };
    if out.json {
        return out.line(file.json());
    }
    out.line(header())?;
    out.line(file.line())?;
    if !file.info.vendor.is_empty() {
        out.line(format_args!("vendor {}", file.info.vendor))?;
    }
    for slot in &file.info.slots {
        out.line(format_args!(
            "gfns {:#x}-{:#x} at offset {:#x}",
            slot.gfns.start, slot.gfns.end, slot.offset
        ))?;
    }
    Ok(())
}
