// SPDX-License-Identifier: GPL-2.0

//! `gmem`: looks at the guest_memfds of a machine.

use clap::{
    Parser,
    Subcommand, //
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
    io::{
        self,
        Write, //
    },
    path::Path,
    process::ExitCode, //
};

/// Looks at the guest_memfds of a machine.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Print JSON, sizes in bytes.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List every open guest_memfd, with its process and how much is private and shared.
    Ls,
    /// Show one guest_memfd, and the guest frames it is bound to.
    Show {
        /// The process.
        pid: u32,
        /// The descriptor.
        fd: u32,
    },
}

/// An open guest_memfd.
struct Found {
    pid: u32,
    fd: u32,
    info: FdInfo,
}

/// Why nothing useful was printed.
#[derive(Debug)]
enum Failure {
    /// About one descriptor.
    Descriptor(u32, u32, FdInfoError),
    /// `/proc` or the output.
    Io(io::Error),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Descriptor(pid, fd, error) => {
                write!(f, "process {pid}, descriptor {fd}: {error}")
            }
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
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
            "size": self.info.size,
            "allocated": self.info.allocated,
            "private": self.info.totals.map(|totals| totals.private),
            "shared": self.info.totals.map(|totals| totals.shared),
            "runs": self.info.totals.map(|totals| totals.runs),
            "slots": slots,
        })
    }

    /// A line of the table, sizes in KiB; `?` for what the kernel did not count.
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
            "{:>8} {:>5} {:<15} {:<8} {:>12} {:>12} {:>12} {:>12} {:>8}",
            self.pid,
            self.fd,
            self.process().escape_debug().to_string(),
            self.mode(),
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
        "{:>8} {:>5} {:<15} {:<8} {:>12} {:>12} {:>12} {:>12} {:>8}",
        "PID",
        "FD",
        "PROCESS",
        "MODE",
        "SIZE/KiB",
        "ALLOC/KiB",
        "PRIVATE/KiB",
        "SHARED/KiB",
        "RUNS",
    )
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut out = io::stdout().lock();

    match arguments.command {
        Command::Ls => {
            let (found, closed) = search()?;
            if arguments.json {
                let all: Vec<Value> = found.iter().map(Found::json).collect();
                writeln!(out, "{}", Value::from(all))?;
            } else {
                writeln!(out, "{}", header())?;
                for file in &found {
                    writeln!(out, "{}", file.line())?;
                }
            }
            if closed > 0 {
                eprintln!("gmem: no permission to look into {closed} processes; root has it");
            }
        }
        Command::Show { pid, fd } => {
            let info =
                FdInfo::read(pid, fd).map_err(|error| Failure::Descriptor(pid, fd, error))?;
            let file = Found { pid, fd, info };
            if arguments.json {
                writeln!(out, "{}", file.json())?;
            } else {
                writeln!(out, "{}\n{}", header(), file.line())?;
                for slot in &file.info.slots {
                    writeln!(
                        out,
                        "gfns {:#x}-{:#x} at offset {:#x}",
                        slot.gfns.start, slot.gfns.end, slot.offset
                    )?;
                }
            }
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has seen enough.
        Err(Failure::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("gmem: {failure}");
            ExitCode::FAILURE
        }
    }
}
