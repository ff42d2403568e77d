// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `gmem map` and `gmem watch`: which parts of a file are private, shared, and without memory.

use crate::{
    Failure,
    Output, //
};
use gmem::{
    fdinfo::{
        FdInfo,
        FdInfoError, //
    },
    picture::{
        size,
        Picture, //
    },
    GuestMemfd,
    Visibility, //
};
use serde_json::{
    json,
    Value, //
};
use std::{
    fs,
    io,
    os::fd::{
        AsRawFd,
        FromRawFd,
        OwnedFd, //
    },
    path::Path,
    thread,
    time::Duration, //
};

/// The guest_memfd of another process, as a descriptor of ours.
fn borrow(pid: u32, fd: u32) -> Result<(FdInfo, GuestMemfd), Failure> {
    let info = FdInfo::read(pid, fd).map_err(|error| Failure::Descriptor(pid, fd, error))?;
    if !info.converts_in_place {
        return Err(Failure::Other(format!(
            "process {pid}, descriptor {fd}: its pages are not converted in place, so there is \
             nothing to draw; `gmem show` has its size"
        )));
    }
    let failed = |what: &str| {
        let error = io::Error::last_os_error();
        let why = match error.raw_os_error() {
            Some(libc::EPERM) => format!("{error}: it takes the right to trace the process"),
            _ => error.to_string(),
        };
        Failure::Other(format!("process {pid}, descriptor {fd}: {what}: {why}"))
    };
    // SAFETY: The call takes numbers.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if process < 0 {
        return Err(failed("pidfd_open"));
    }
    // SAFETY: The kernel has just made it for us.
    let process = unsafe { OwnedFd::from_raw_fd(process as i32) };
    // SAFETY: The call takes numbers, the first of which is open.
    let ours = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) };
    if ours < 0 {
        return Err(failed("pidfd_getfd"));
    }
    // SAFETY: The kernel has just made it for us.
    let ours = unsafe { OwnedFd::from_raw_fd(ours as i32) };
    let file = GuestMemfd::from_fd(ours)
        .map_err(|error| Failure::Other(format!("process {pid}, descriptor {fd}: {error}")))?;
    Ok((info, file))
}

/// A file at a moment.
#[derive(PartialEq)]
struct Look {
    pid: u32,
    fd: u32,
    info: FdInfo,
    picture: Picture,
}

impl Look {
    fn take(pid: u32, fd: u32) -> Result<Self, Failure> {
        let (info, file) = borrow(pid, fd)?;
        let totals = info.totals.map_or_else(String::new, |totals| {
            format!(
                ", {} private, {} shared, {} runs",
                size(totals.private),
                size(totals.shared),
                totals.runs
            )
        });
        let large = info
            .large
            .filter(|large| *large != 0)
            .map_or_else(String::new, |large| format!(", {} large", size(large)));
        let folios = info
            .folios
            .filter(|folios| *folios != 0)
            .map_or_else(String::new, |folios| {
                format!(", {} in folios", size(folios))
            });
        let moves = if info.migratable { ", migratable" } else { "" };
        let title = format!(
            "process {pid}, descriptor {fd}: {}, {} allocated{totals}{large}{folios}{moves}",
            size(info.size),
            size(info.allocated)
        );
        Ok(Self {
            pid,
            fd,
            info,
            picture: Picture::of(&file, title)?,
        })
    }

    fn json(&self) -> Value {
        let runs: Vec<Value> = self
            .picture
            .runs
            .iter()
            .map(|run| {
                json!({
                    "start": run.range.start,
                    "end": run.range.end,
                    "private": run.visibility == Visibility::Private,
                })
            })
            .collect();
        json!({
            "pid": self.pid,
            "fd": self.fd,
            "size": self.info.size,
            "allocated": self.info.allocated,
            "migratable": self.info.migratable,
            "contiguous": self.info.contiguous,
            "large": self.info.large,
            "folios": self.info.folios,
            "runs": runs,
        })
    }

    fn draw(&self, out: &mut Output) -> Result<(), Failure> {
        if out.json {
            return out.line(self.json());
        }
        let text = self.picture.terminal(out.colour);
        out.line(text.trim_end())
    }
}

/// Draws a file, or writes an SVG of it.
pub fn print(out: &mut Output, pid: u32, fd: u32, svg: Option<&Path>) -> Result<(), Failure> {
    let look = Look::take(pid, fd)?;
    let Some(path) = svg else {
        return look.draw(out);
    };
    fs::write(path, look.picture.svg())
        .map_err(|error| Failure::Other(format!("writing {}: {error}", path.display())))
}

/// Draws a file whenever it looks different.
pub fn watch(out: &mut Output, pid: u32, fd: u32, interval: Duration) -> Result<(), Failure> {
    let mut last = None;
    loop {
        match Look::take(pid, fd) {
            Ok(look) => {
                if last.as_ref() != Some(&look) {
                    if out.colour {
                        // Home, and clear.
                        out.line("\x1b[H\x1b[2J")?;
                    }
                    look.draw(out)?;
                    last = Some(look);
                }
            }
            // It was there: the process has closed it, or has ended.
            Err(Failure::Descriptor(_, _, FdInfoError::Io(_) | FdInfoError::NotGuestMemfd))
                if last.is_some() =>
            {
                eprintln!("gmem: process {pid}, descriptor {fd} is closed");
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        thread::sleep(interval);
    }
}
