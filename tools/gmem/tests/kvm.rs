// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The wrappers against a kernel that converts in place.
//!
//! They need such a kernel, so an ordinary `cargo test` ignores them. Run them there by
//! `cargo test --test kvm -- --ignored`, or the (static) test binary alone with `--ignored`.

#![cfg(target_arch = "x86_64")]

use gmem::{
    abi,
    fdinfo::{
        BoundSlot,
        FdInfo,
        FdInfoError,
        Totals, //
    },
    Capabilities,
    Content,
    ConvertError,
    CreateFlags,
    GuestMemfd,
    Mapping,
    Populate,
    PopulateError,
    SlotLayout,
    Visibility, //
};
use kvm_ioctls::{
    Kvm,
    VmFd, //
};
use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::{
        AsRawFd,
        FromRawFd,
        OwnedFd, //
    },
    sync::Arc, //
};

const PAGE: u64 = 0x1000;
const SIZE: u64 = 16 * PAGE;

fn in_place() -> CreateFlags {
    CreateFlags::MMAP | CreateFlags::INIT_SHARED
}

fn protected_vm() -> VmFd {
    Kvm::new()
        .unwrap()
        .create_vm_with_type(abi::KVM_X86_SW_PROTECTED_VM)
        .unwrap()
}

fn ordinary_vm() -> VmFd {
    Kvm::new().unwrap().create_vm_with_type(0).unwrap()
}

fn pages(range: Range<u64>) -> Range<u64> {
    range.start * PAGE..range.end * PAGE
}

fn error(errno: i32, offset: Option<u64>) -> Result<(), ConvertError> {
    Err(ConvertError { errno, offset })
}

/// Holds a reference to a page until it is dropped: the page sits in a pipe.
fn hold(mapping: &Mapping, offset: u64) -> (File, File) {
    let mut fds = [-1; 2];
    // SAFETY: The kernel writes two descriptors to the array.
    assert_eq!(unsafe { libc::pipe(fds.as_mut_ptr()) }, 0);
    // SAFETY: Both descriptors are new and ours.
    let [reader, writer] = fds.map(|fd| unsafe { File::from_raw_fd(fd) });
    let page = libc::iovec {
        iov_base: mapping.address(offset).unwrap().cast(),
        iov_len: PAGE as usize,
    };
    // SAFETY: The kernel only reads the page.
    let moved = unsafe { libc::vmsplice(writer.as_raw_fd(), &page, 1, 0) };
    assert_eq!(moved, PAGE as isize, "{}", io::Error::last_os_error());
    (reader, writer)
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn capabilities_of_a_protected_vm() {
    let capabilities = Capabilities::of(&protected_vm());
    assert!(capabilities.converts_in_place);
    assert!(capabilities.reads_attributes);
    assert!(capabilities.create_flags.contains(in_place()));
    for support in [capabilities.before_launch, capabilities.after_launch] {
        for to in [Visibility::Shared, Visibility::Private] {
            assert!(support.allows(to, Content::Zero));
            assert!(support.allows(to, Content::Preserve));
        }
    }
    assert!(!Capabilities::of(&ordinary_vm()).converts_in_place);
}

/// The flags of a descriptor, not those of its file.
fn descriptor_flags(fd: &impl AsRawFd) -> i32 {
    // SAFETY: Reads flags of a descriptor.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) }
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn a_new_file_is_closed_by_exec() {
    let vm = protected_vm();
    let file = GuestMemfd::create(&vm, SIZE, in_place()).unwrap();
    assert_eq!(descriptor_flags(&file), libc::FD_CLOEXEC);

    // What is taken over stays as it was made.
    let args = kvm_bindings::kvm_create_guest_memfd {
        size: SIZE,
        ..Default::default()
    };
    let fd = vm.create_guest_memfd(args).unwrap();
    // SAFETY: The descriptor is new and ours.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    assert_eq!(descriptor_flags(&fd), 0);
    let file = GuestMemfd::from_fd(fd).unwrap();
    assert_eq!(descriptor_flags(&file), 0);
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn errors_about_the_request_have_no_offset() {
    use Visibility::Private;
    let vm = protected_vm();
    let file = GuestMemfd::create(&vm, SIZE, in_place()).unwrap();
    for range in [0..0, 1..PAGE, 0..PAGE + 1, SIZE..SIZE + PAGE] {
        let converted = file.convert(range.clone(), Private, Content::None);
        assert_eq!(converted, error(libc::EINVAL, None), "{range:x?}");
    }
    let old = GuestMemfd::create(&vm, SIZE, CreateFlags::NONE).unwrap();
    let converted = old.convert(0..PAGE, Private, Content::None);
    assert_eq!(converted, error(libc::ENOTTY, None));
    let vm = ordinary_vm();
    let ordinary = GuestMemfd::create(&vm, SIZE, in_place()).unwrap();
    let converted = ordinary.convert(0..PAGE, Private, Content::None);
    assert_eq!(converted, error(libc::EINVAL, None));
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn a_held_page_is_named_and_can_be_waited_for() {
    let vm = protected_vm();
    let file = GuestMemfd::create(&vm, SIZE, in_place()).unwrap();
    let mapping = file.map(0..SIZE).unwrap();
    let convert = || file.convert(0..SIZE, Visibility::Private, Content::Zero);
    mapping.try_write(0, &[0x5a; SIZE as usize]).unwrap();

    let held = hold(&mapping, 5 * PAGE);
    assert_eq!(convert(), error(libc::EAGAIN, Some(5 * PAGE)));
    assert_eq!(
        file.convert_retrying(0..SIZE, Visibility::Private, Content::Zero, 3),
        Err(ConvertError {
            errno: libc::EAGAIN,
            offset: Some(5 * PAGE)
        })
    );
    // Nothing has happened to the pages before it.
    assert_eq!(mapping.load(0), 0x5a);
    drop(held);
    file.convert_retrying(0..SIZE, Visibility::Private, Content::Zero, 1000)
        .unwrap();
    assert!(mapping.try_read(0, &mut [0]).unwrap_err().is_refused());
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn runs_are_what_was_converted() {
    let vm = protected_vm();
    let file = GuestMemfd::create(&vm, SIZE, in_place()).unwrap();
    for range in [pages(2..5), pages(7..8), pages(5..6)] {
        file.convert(range, Visibility::Private, Content::Preserve)
            .unwrap();
    }
    let runs: Vec<_> = file.runs().map(|run| run.unwrap()).collect();
    let seen: Vec<_> = runs
        .iter()
        .map(|run| (run.range.clone(), run.visibility == Visibility::Private))
        .collect();
    assert_eq!(
        seen,
        [
            (pages(0..2), false),
            (pages(2..6), true),
            (pages(6..7), false),
            (pages(7..8), true),
            (pages(8..16), false),
        ]
    );
    let inside = file.attributes_at(3 * PAGE).unwrap();
    assert_eq!(inside.range, pages(3..6));
    for bad in [1, SIZE] {
        let refused = file.attributes_at(bad).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{bad:#x}");
    }
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn a_slot_is_there_until_it_is_dropped() {
    let vm = protected_vm();
    let file = GuestMemfd::create(&vm, SIZE, in_place()).unwrap();
    let mapping = Arc::new(file.map(0..SIZE).unwrap());
    let layout = |slot| SlotLayout {
        slot,
        guest_phys_addr: 0x100000,
        file_range: 0..SIZE,
    };
    let first = file.bind(&vm, &layout(0), Some(&mapping)).unwrap();
    let second = file.bind(&vm, &layout(1), Some(&mapping)).unwrap_err();
    assert_eq!(second.raw_os_error(), Some(libc::EEXIST));
    drop(first);
    // The state is the file's: it outlives the slot.
    file.convert(0..PAGE, Visibility::Private, Content::Preserve)
        .unwrap();
    let again = file.bind(&vm, &layout(1), Some(&mapping)).unwrap();
    let state = file.attributes_at(0).unwrap();
    assert_eq!(
        (state.range, state.visibility),
        (0..PAGE, Visibility::Private)
    );
    drop(again);
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn guest_memory_is_populated_up_to_where_it_ends() {
    let vm = protected_vm();
    let file = GuestMemfd::create(&vm, SIZE, in_place()).unwrap();
    let mapping = Arc::new(file.map(0..SIZE).unwrap());
    let base = 0x100000;
    let layout = SlotLayout {
        slot: 0,
        guest_phys_addr: base,
        file_range: 0..SIZE,
    };
    let _slot = file.bind(&vm, &layout, Some(&mapping)).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    file.convert(0..PAGE, Visibility::Private, Content::Preserve)
        .unwrap();

    vcpu.populate(base..base + SIZE, 1000).unwrap();
    let error = |errno, left| Err(PopulateError { errno, left });
    assert_eq!(
        vcpu.populate(base..base + SIZE + PAGE, 1000),
        error(libc::ENOENT, base + SIZE..base + SIZE + PAGE)
    );
    for range in [base..base, base + 1..base + PAGE, base + PAGE..base] {
        assert_eq!(
            vcpu.populate(range.clone(), 1000),
            error(libc::EINVAL, range)
        );
    }
}

/// Descriptor `fd` of this process.
fn fdinfo(fd: i32) -> Result<FdInfo, FdInfoError> {
    FdInfo::read(std::process::id(), fd as u32)
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn fdinfo_follows_a_file() {
    let vm = protected_vm();
    let memory = GuestMemfd::create(&vm, SIZE, in_place()).unwrap();
    let layout = SlotLayout {
        slot: 0,
        guest_phys_addr: 0x100000,
        file_range: pages(4..8),
    };
    let mapping = Arc::new(memory.map(pages(4..8)).unwrap());
    let slot = memory.bind(&vm, &layout, Some(&mapping)).unwrap();

    memory
        .convert(pages(1..3), Visibility::Private, Content::Zero)
        .unwrap();
    let expected = FdInfo {
        converts_in_place: true,
        vendor: "sw-protected".to_owned(),
        size: SIZE,
        allocated: 0,
        totals: Some(Totals {
            private: 2 * PAGE,
            shared: SIZE - 2 * PAGE,
            runs: 3,
        }),
        slots: vec![BoundSlot {
            gfns: 0x100..0x104,
            offset: 4 * PAGE,
        }],
    };
    assert_eq!(fdinfo(memory.as_raw_fd()).unwrap(), expected);

    drop(slot);
    assert_eq!(fdinfo(memory.as_raw_fd()).unwrap().slots, []);
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn fdinfo_of_something_else_is_refused() {
    let vm = protected_vm();
    assert!(matches!(
        fdinfo(vm.as_raw_fd()),
        Err(FdInfoError::NotGuestMemfd)
    ));
    assert!(matches!(
        fdinfo(i32::MAX),
        Err(FdInfoError::Io(error)) if error.raw_os_error() == Some(libc::ENOENT)
    ));
}

/// Runs the program `gmem`, which lies beside this one: whether it succeeded, and what it printed.
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
    // Mode, then KiB of the file, allocated, private, shared, and runs.
    let last = ours[0].len() - 6;
    assert_eq!(ours[0][last..], ["in-place", "64", "0", "12", "52", "2"]);

    let (ok, json, _) = gmem(&["--json", "show", &pid, &fd]);
    assert!(ok);
    assert!(json.contains("\"private\":12288"), "{json}");
    assert!(json.contains("\"runs\":2"), "{json}");
    assert!(json.contains("\"vendor\":\"sw-protected\""), "{json}");
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
    assert_eq!(words[1], ["default", "no", "yes", "yes", "yes"]);
    let protected = words
        .iter()
        .position(|words| words[0] == "SW_PROTECTED")
        .unwrap();
    assert_eq!(
        words[protected].join(" "),
        "SW_PROTECTED yes yes yes yes before launch to private NONE ZERO PRESERVE"
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
    // The last thing that it does before it listens.
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
