// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `gmem trace`: the trace events of conversions, in readable form.

use crate::{
    Failure,
    Output, //
};
use serde_json::{
    json,
    Map,
    Value, //
};
use std::{
    collections::BTreeMap,
    fs::{
        self,
        File, //
    },
    io::{
        self,
        Read, //
    },
    os::{
        fd::AsRawFd,
        unix::fs::OpenOptionsExt, //
    },
    path::{
        Path,
        PathBuf, //
    },
    time::{
        Duration,
        Instant, //
    }, //
};

const TRACING: &str = "/sys/kernel/tracing";
/// The events that are listened to.
const EVENTS: [&str; 2] = ["kvm_gmem_convert_end", "kvm_gmem_busy"];

/// A separate tracing instance, which does not disturb others.
struct Instance(PathBuf);

impl Instance {
    fn new() -> Result<Self, Failure> {
        let tracing = Path::new(TRACING);
        let failed =
            |what: String| move |error: io::Error| Failure::Other(format!("{what}: {error}"));
        if !tracing.join("instances").exists() {
            return Err(Failure::Other(match fs::read_dir(tracing) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    format!("no permission to read {TRACING}: root has it")
                }
                _ => format!(
                    "{TRACING} is empty: mount -t tracefs tracefs {TRACING}; the kernel needs \
                     CONFIG_FTRACE=y"
                ),
            }));
        }
        let instance = Self(tracing.join(format!("instances/gmem-{}", std::process::id())));
        fs::create_dir(&instance.0).map_err(failed(format!("making {}", instance.0.display())))?;
        for event in EVENTS {
            let enable = instance.0.join(format!("events/kvm_gmem/{event}/enable"));
            if !enable.exists() {
                return Err(Failure::Other(
                    "this kernel has no events kvm_gmem:*: it needs \
                     CONFIG_KVM_GUEST_MEMFD_RUST=y and CONFIG_KVM_GMEM_TRACE=y"
                        .into(),
                ));
            }
            fs::write(&enable, "1").map_err(failed(format!("writing {}", enable.display())))?;
        }
        Ok(instance)
    }

    fn pipe(&self) -> io::Result<File> {
        fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(self.0.join("trace_pipe"))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        for event in EVENTS {
            let _ = fs::write(self.0.join(format!("events/kvm_gmem/{event}/enable")), "0");
        }
        let _ = fs::remove_dir(&self.0);
    }
}

/// One event: its name and its text.
#[derive(Debug, PartialEq, Eq)]
struct Event {
    seconds: String,
    name: String,
    text: String,
}

impl Event {
    /// Parses a line of trace_pipe; [`None`] for other lines than these events.
    fn parse(line: &str) -> Option<Self> {
        let (head, rest) = EVENTS.iter().find_map(|name| {
            let at = line.find(&format!(": {name}: "))?;
            Some((&line[..at], (&line[at + 2..])))
        })?;
        let (name, text) = rest.split_once(": ")?;
        Some(Self {
            seconds: head.split_whitespace().last()?.to_owned(),
            name: name.to_owned(),
            text: text.trim_end().to_owned(),
        })
    }

    /// The value of a word of the text that follows the word `key`.
    fn value(&self, key: &str) -> Option<&str> {
        let mut words = self.text.split([' ', ':']).filter(|word| !word.is_empty());
        words.find(|&word| word == key)?;
        words.next()
    }

    fn number(&self, key: &str) -> u64 {
        let word = self.value(key).unwrap_or("0");
        match word.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).unwrap_or(0),
            None => word.parse().unwrap_or(0),
        }
    }

    /// To private or to shared, and the policy.
    fn request(&self) -> Option<(String, String)> {
        let mut words = self
            .text
            .split([' ', ':'])
            .skip_while(|&word| word != "to")
            .skip(1);
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    }

    fn errno(&self) -> i32 {
        self.value("result")
            .and_then(|word| word.parse().ok())
            .unwrap_or(0)
    }

    fn json(&self) -> Value {
        let mut map = Map::new();
        map.insert("event".into(), self.name.as_str().into());
        map.insert("time".into(), self.seconds.as_str().into());
        for key in [
            "ino",
            "offset",
            "size",
            "converted",
            "runs",
            "zeroed",
            "scrambled",
            "refs",
            "unexplained",
            "mapped",
            "error_offset",
        ] {
            if self.value(key).is_some() {
                map.insert(key.into(), self.number(key).into());
            }
        }
        if let Some((to, policy)) = self.request() {
            map.insert("to".into(), to.into());
            map.insert("policy".into(), policy.into());
            map.insert("result".into(), self.errno().into());
        }
        for key in ["drained", "holder"] {
            if let Some(value) = self.value(key) {
                map.insert(key.into(), value.into());
            }
        }
        Value::Object(map)
    }

    fn line(&self) -> String {
        let place = format!(
            "{:>12} inode {} {:#x}",
            self.seconds,
            self.number("ino"),
            self.number("offset")
        );
        let Some((to, policy)) = self.request() else {
            return format!(
                "{place}: busy, {} of {} references unexplained, holder: {}",
                self.number("unexplained"),
                self.number("refs"),
                self.value("holder").unwrap_or("?")
            );
        };
        let size = gmem::picture::size(self.number("size"));
        match self.errno() {
            0 => format!(
                "{place}: {size} to {to} {policy}: {} pages in {} runs, {} zeroed, {} scrambled",
                self.number("converted"),
                self.number("runs"),
                self.number("zeroed"),
                self.number("scrambled")
            ),
            errno => format!(
                "{place}: {size} to {to} {policy}: {} (at {:#x})",
                io::Error::from_raw_os_error(-errno),
                self.number("error_offset")
            ),
        }
    }
}

/// What has been seen.
#[derive(Default)]
struct Summary {
    /// By direction and policy: requests, pages.
    done: BTreeMap<(String, String), (u64, u64)>,
    /// By errno: requests.
    refused: BTreeMap<i32, u64>,
    /// By holder: busy pages.
    busy: BTreeMap<String, u64>,
}

impl Summary {
    fn add(&mut self, event: &Event) {
        match event.request() {
            None => {
                let holder = event.value("holder").unwrap_or("?").to_owned();
                *self.busy.entry(holder).or_default() += 1;
            }
            Some(request) => match event.errno() {
                0 => {
                    let (requests, pages) = self.done.entry(request).or_default();
                    *requests += 1;
                    *pages += event.number("converted");
                }
                errno => *self.refused.entry(-errno).or_default() += 1,
            },
        }
    }

    fn print(&self, out: &mut Output) -> Result<(), Failure> {
        if out.json {
            let done: Vec<Value> = self
                .done
                .iter()
                .map(|((to, policy), (requests, pages))| {
                    json!({ "to": to, "policy": policy, "requests": requests, "pages": pages })
                })
                .collect();
            return out.line(json!({
                "summary": { "done": done, "refused": self.refused, "busy": self.busy }
            }));
        }
        for ((to, policy), (requests, pages)) in &self.done {
            out.line(format_args!(
                "to {to} {policy}: {requests} requests, {pages} pages"
            ))?;
        }
        for (&errno, requests) in &self.refused {
            let error = io::Error::from_raw_os_error(errno);
            out.line(format_args!("{error}: {requests} requests"))?;
        }
        for (holder, pages) in &self.busy {
            out.line(format_args!("busy pages, holder {holder}: {pages}"))?;
        }
        if self.done.is_empty() && self.refused.is_empty() {
            out.line("no conversions")?;
        }
        Ok(())
    }
}

/// Whether standard input has ended. A terminal's does with ^D.
fn input_has_ended() -> bool {
    let mut poll = libc::pollfd {
        fd: 0,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: One descriptor is asked about.
    if unsafe { libc::poll(&mut poll, 1, 0) } <= 0 {
        return false;
    }
    matches!(io::stdin().lock().read(&mut [0; 256]), Ok(0) | Err(_))
}

/// Prints what happens until the time is over.
pub fn follow(out: &mut Output, limit: Option<Duration>) -> Result<(), Failure> {
    let instance = Instance::new()?;
    let mut pipe = instance.pipe()?;
    let begin = Instant::now();
    let mut summary = Summary::default();
    let mut text = Vec::new();
    let mut last = false;

    loop {
        let mut buffer = [0; 16384];
        match pipe.read(&mut buffer) {
            Ok(n) => text.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if last {
                    break;
                }
                // What came in before the end is read once more.
                last = match limit {
                    Some(limit) => begin.elapsed() >= limit,
                    None => input_has_ended(),
                };
                if !last {
                    wait(&pipe);
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        while let Some(end) = text.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            if let Some(event) = Event::parse(&String::from_utf8_lossy(&line)) {
                summary.add(&event);
                if out.json {
                    out.line(event.json())?;
                } else {
                    out.line(event.line())?;
                }
            }
        }
    }
    summary.print(out)
}

/// Waits for something to read, for a moment.
fn wait(pipe: &File) {
    let mut poll = libc::pollfd {
        fd: pipe.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: One descriptor is asked about.
    unsafe { libc::poll(&mut poll, 1, 100) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: &str = "   vmm-231     [001] .....    12.345678: kvm_gmem_convert_end: ino 9 \
        offset 0x1000 size 0x8000 to private ZERO: converted 7 runs 2 zeroed 4 scrambled 0 \
        result 0 error_offset 0xffffffffffffffff\n";
    const BUSY: &str = "vmm-231 [001] ..... 12.5: kvm_gmem_busy: ino 9 offset 0x3000 refs 3 \
        unexplained 1 mapped 0 drained all holder reference\n";

    #[test]
    fn events_are_understood() {
        let end = Event::parse(END).unwrap();
        assert_eq!(end.seconds, "12.345678");
        assert_eq!(end.request(), Some(("private".into(), "ZERO".into())));
        assert_eq!((end.number("size"), end.number("converted")), (0x8000, 7));
        assert_eq!(end.errno(), 0);
        assert!(end
            .line()
            .ends_with("32 KiB to private ZERO: 7 pages in 2 runs, 4 zeroed, 0 scrambled"));
        let busy = Event::parse(BUSY).unwrap();
        assert_eq!(busy.request(), None);
        assert!(busy
            .line()
            .ends_with("busy, 1 of 3 references unexplained, holder: reference"));
        assert_eq!(
            Event::parse("vmm-231 [001] ..... 1.0: sched_switch: ino 9"),
            None
        );
    }

    #[test]
    fn failures_are_counted_apart() {
        let failed = END.replace(
            "result 0 error_offset 0xffffffffffffffff",
            "result -11 error_offset 0x3000",
        );
        let mut summary = Summary::default();
        for line in [END, END, BUSY, &failed] {
            summary.add(&Event::parse(line).unwrap());
        }
        let key = ("private".to_owned(), "ZERO".to_owned());
        assert_eq!(summary.done[&key], (2, 14));
        assert_eq!(summary.refused[&libc::EAGAIN], 1);
        assert_eq!(summary.busy["reference"], 1);
    }
}
