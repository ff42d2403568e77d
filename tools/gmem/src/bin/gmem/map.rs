// SPDX-License-Identifier: GPL-2.0

//! `gmem map` and `gmem watch`: which parts of a file are what.

use crate::{
    picture::{
        self,
        Cells, //
    },
    Failure,
    Output, //
};
use gmem::{
    fdinfo::{
        FdInfo,
        FdInfoError, //
    },
    GuestMemfd,
    Run,
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

const PAGE: u64 = 0x1000;
/// Files up to this many pages are asked page by page what was used.
const USED_LIMIT: u64 = 1 << 18;
/// More runs than this nobody looks at, and asking for them takes long.
const RUN_LIMIT: usize = 1 << 20;

/// What a file looks like at a moment.
#[derive(Clone, PartialEq)]
pub struct Picture {
    pub pid: u32,
    pub fd: u32,
    pub info: FdInfo,
    pub runs: Vec<Run>,
    /// Which pages somebody has used; [`None`] for a file that the host cannot map, or that is too
    /// large to ask.
    pub used: Option<Vec<bool>>,
}

/// Somebody else's guest_memfd, as a descriptor of ours.
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

impl Picture {
    fn take(pid: u32, fd: u32) -> Result<Self, Failure> {
        let (info, file) = borrow(pid, fd)?;
        let runs = file
            .runs()
            .take(RUN_LIMIT)
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            pid,
            fd,
            info,
            runs,
            used: used(&file),
        })
    }

    fn json(&self) -> Value {
        let runs: Vec<Value> = self
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
            "runs": runs,
        })
    }

    fn draw(&self, out: &mut Output) -> Result<(), Failure> {
        if out.json {
            return out.line(self.json());
        }
        let cells = Cells::of(self, 64 * 16);
        let colour = out.colour;
        out.line(picture::terminal(self, &cells, colour).trim_end())
    }
}

/// Draws a file, or writes an SVG of it.
pub fn print(out: &mut Output, pid: u32, fd: u32, svg: Option<&Path>) -> Result<(), Failure> {
    let picture = Picture::take(pid, fd)?;
    let Some(path) = svg else {
        return picture.draw(out);
    };
    fs::write(path, picture::svg(&picture))
        .map_err(|error| Failure::Other(format!("writing {}: {error}", path.display())))
}

/// Draws a file whenever it looks different.
pub fn watch(out: &mut Output, pid: u32, fd: u32, interval: Duration) -> Result<(), Failure> {
    let mut last = None;
    loop {
        match Picture::take(pid, fd) {
            Ok(picture) => {
                if last.as_ref() != Some(&picture) {
                    if out.colour {
                        // Home, and clear.
                        out.line("\x1b[H\x1b[2J")?;
                    }
                    picture.draw(out)?;
                    last = Some(picture);
                }
            }
            // It was there: somebody has closed it, or has ended.
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
