// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The program `gmem`, beside the library's tests.

use super::*;

/// Runs the program `gmem`, which is beside this one. Returns whether it succeeded, and its output.
fn gmem(arguments: &[&str]) -> (bool, String, String) {
    let program = std::env::current_exe().unwrap().with_file_name("gmem");
    let output = std::process::Command::new(program)
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn program_lists_and_shows_a_file() {
    let vm = protected_vm();
    let memory = GuestMemfd::create(&vm, SIZE, in_place()).unwrap();
    memory
        .convert(pages(0..3), Visibility::Private, Content::Zero)
        .unwrap();
    let pid = std::process::id().to_string();
    let fd = memory.as_raw_fd().to_string();

    let (ok, table, _) = gmem(&["ls"]);
    let ours: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .filter(|words: &Vec<&str>| words[..2] == [pid.as_str(), fd.as_str()])
        .collect();
    assert!(ok);
    assert_eq!(ours.len(), 1, "{table}");
    // Mode, whether it moves, then KiB of the file, allocated, private, shared, and runs.
    let last = ours[0].len() - 7;
    assert_eq!(
        ours[0][last..],
        ["in-place", "no", "64", "0", "12", "52", "2"]
    );

    let (ok, json, _) = gmem(&["--json", "show", &pid, &fd]);
    assert!(ok);
    assert!(json.contains("\"private\":12288"), "{json}");
    assert!(json.contains("\"runs\":2"), "{json}");
    assert!(json.contains("\"vendor\":\"sw-protected\""), "{json}");
    assert!(json.contains("\"migratable\":false"), "{json}");
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn program_shows_files_that_can_be_moved() {
    let vm = protected_vm();
    let flags = in_place() | CreateFlags::MIGRATABLE;
    let memory = GuestMemfd::create(&vm, SIZE, flags).unwrap();
    let pid = std::process::id().to_string();
    let fd = memory.as_raw_fd().to_string();

    let (ok, table, error) = gmem(&["show", &pid, &fd]);
    assert!(ok, "{error}");
    let words: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    let last = words.len() - 7;
    assert_eq!(
        words[last..],
        ["in-place", "yes", "64", "0", "0", "64", "1"]
    );
    let (ok, json, _) = gmem(&["--json", "show", &pid, &fd]);
    assert!(ok && json.contains("\"migratable\":true"), "{json}");
    let (ok, text, _) = gmem(&["map", &pid, &fd]);
    assert!(ok && text.contains("1 runs, migratable"), "{text}");
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn program_says_what_is_wrong() {
    let vm = protected_vm();
    let pid = std::process::id().to_string();
    let fd = vm.as_raw_fd().to_string();

    let (ok, out, error) = gmem(&["show", &pid, &fd]);
    assert!(!ok && out.is_empty());
    assert_eq!(
        error,
        format!("gmem: process {pid}, descriptor {fd}: not a guest_memfd\n")
    );
    let (ok, _, error) = gmem(&["show", &pid, "99999"]);
    assert!(
        !ok && error.contains("No such file or directory"),
        "{error}"
    );
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn program_shows_what_vms_can_do() {
    let (ok, table, error) = gmem(&["caps"]);
    assert!(ok && error.is_empty(), "{error}");
    let words: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(words[1], ["default", "no", "yes", "yes", "yes", "yes"]);
    let protected = words
        .iter()
        .position(|words| words[0] == "SW_PROTECTED")
        .unwrap();
    assert_eq!(
        words[protected].join(" "),
        "SW_PROTECTED yes yes yes yes yes before launch to private NONE ZERO PRESERVE"
    );
    assert_eq!(
        words[protected + 3].join(" "),
        "after launch to shared NONE ZERO PRESERVE"
    );

    let (ok, json, _) = gmem(&["--json", "caps"]);
    assert!(ok);
    assert!(json.starts_with("[{\"conversions\":[]"), "{json}");
    assert!(
        json.contains("{\"phase\":\"after launch\",\"policies\":[\"NONE\",\"ZERO\",\"PRESERVE\"],\"to\":\"shared\"}"),
        "{json}"
    );
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn program_draws_a_file() {
    let vm = protected_vm();
    let memory = GuestMemfd::create(&vm, SIZE, in_place()).unwrap();
    let mapping = memory.map(0..SIZE).unwrap();
    mapping.try_write(0, &[1; 3 * PAGE as usize]).unwrap();
    memory
        .convert(pages(2..5), Visibility::Private, Content::Preserve)
        .unwrap();
    let pid = std::process::id().to_string();
    let fd = memory.as_raw_fd().to_string();

    let (ok, text, error) = gmem(&["map", &pid, &fd]);
    assert!(ok, "{error}");
    assert!(
        text.ends_with("0x0  SSPppsssssssssss\n"),
        "not what the file is:\n{text}"
    );
    assert!(text.contains("64 KiB, 12 KiB allocated, 12 KiB private, 52 KiB shared, 3 runs"));

    let (ok, json, _) = gmem(&["--json", "map", &pid, &fd]);
    assert!(ok);
    assert!(
        json.contains("{\"end\":20480,\"private\":true,\"start\":8192}"),
        "{json}"
    );

    let svg = std::env::temp_dir().join(format!("gmem-{pid}.svg"));
    let (ok, out, error) = gmem(&["map", &pid, &fd, "--svg", svg.to_str().unwrap()]);
    assert!(ok && out.is_empty(), "{error}");
    let drawn = std::fs::read_to_string(&svg).unwrap();
    std::fs::remove_file(&svg).unwrap();
    // The background, five in the legend, and the pages.
    assert_eq!(drawn.matches("<rect").count(), 6 + 16);
    assert!(drawn.ends_with("</svg>\n"));

    let (ok, _, error) = gmem(&["map", &pid, &fd, "--svg", "/no/such/directory.svg"]);
    assert!(
        !ok && error.contains("writing /no/such/directory.svg"),
        "{error}"
    );
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn program_does_not_draw_what_cannot_be_converted() {
    let vm = ordinary_vm();
    let memory = GuestMemfd::create(&vm, SIZE, CreateFlags::MMAP).unwrap();
    let pid = std::process::id().to_string();
    let fd = memory.as_raw_fd().to_string();

    let (ok, out, error) = gmem(&["map", &pid, &fd]);
    assert!(!ok && out.is_empty());
    assert!(error.contains("not converted in place"), "{error}");
    let (ok, _, error) = gmem(&["watch", &pid, "99999"]);
    assert!(
        !ok && error.contains("No such file or directory"),
        "{error}"
    );
}

/// Starts the program `gmem`, with pipes for what goes in and comes out.
fn start(arguments: &[&str]) -> std::process::Child {
    let program = std::env::current_exe().unwrap().with_file_name("gmem");
    std::process::Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn program_watches_until_the_file_is_closed() {
    use std::io::{BufRead, BufReader};

    let vm = protected_vm();
    let memory = GuestMemfd::create(&vm, SIZE, in_place()).unwrap();
    let pid = std::process::id().to_string();
    let fd = memory.as_raw_fd().to_string();
    let mut watch = start(&["--json", "watch", &pid, &fd, "--interval", "20"]);
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();

    let first = lines.next().unwrap().unwrap();
    assert!(
        first.contains("\"runs\":[{\"end\":65536,\"private\":false,\"start\":0}]"),
        "{first}"
    );
    memory
        .convert(pages(0..16), Visibility::Private, Content::Zero)
        .unwrap();
    let second = lines.next().unwrap().unwrap();
    assert!(
        second.contains("\"runs\":[{\"end\":65536,\"private\":true,\"start\":0}]"),
        "{second}"
    );
    drop(memory);
    assert!(lines.next().is_none());
    assert!(watch.wait().unwrap().success());
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn program_traces_conversions() {
    use std::io::Read;

    let vm = protected_vm();
    let memory = GuestMemfd::create(&vm, SIZE, in_place()).unwrap();
    let mapping = memory.map(0..SIZE).unwrap();
    mapping.try_write(0, &[1; 2 * PAGE as usize]).unwrap();
    let mut trace = start(&["--json", "trace"]);
    let enabled = format!(
        "/sys/kernel/tracing/instances/gmem-{}/events/kvm_gmem/kvm_gmem_busy/enable",
        trace.id()
    );
    // Its last action before it listens.
    while !std::fs::read_to_string(&enabled).is_ok_and(|on| on.starts_with('1')) {
        std::thread::yield_now();
    }

    memory
        .convert(pages(0..4), Visibility::Private, Content::Zero)
        .unwrap();
    memory
        .convert(pages(0..4), Visibility::Shared, Content::Preserve)
        .unwrap();
    let held = hold(&mapping, PAGE);
    assert!(memory
        .convert(pages(0..4), Visibility::Private, Content::Preserve)
        .is_err());
    drop(held);
    // The end of its input.
    drop(trace.stdin.take());
    let mut text = String::new();
    trace
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert!(trace.wait().unwrap().success());

    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    for (line, says) in [
        (0, "\"converted\":4,"),
        (
            0,
            "\"policy\":\"ZERO\",\"result\":0,\"runs\":1,\"scrambled\":0,\"size\":16384",
        ),
        (0, "\"to\":\"private\",\"zeroed\":2"),
        (1, "\"policy\":\"PRESERVE\",\"result\":0"),
        (2, "\"event\":\"kvm_gmem_busy\""),
        (2, "\"offset\":4096"),
        (3, "\"result\":-11"),
        (4, "\"refused\":{\"11\":1}"),
        (
            4,
            "{\"pages\":4,\"policy\":\"ZERO\",\"requests\":1,\"to\":\"private\"}",
        ),
    ] {
        assert!(lines[line].contains(says), "line {line}, {says}: {text}");
    }
}
