// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The wrappers against a kernel that converts in place.
//!
//! They need such a kernel, so an ordinary `cargo test` ignores them. Run them there by
//! `cargo test --test kvm -- --ignored`, or the (static) test binary alone with `--ignored`.

#[cfg(feature = "vm-memory")]
#[path = "common/device.rs"]
mod device;
#[cfg(target_arch = "x86_64")]
#[path = "kvm/program.rs"]
mod program;

use gmem::{
    abi,
    fdinfo::{
        BoundSlot,
        FdInfo,
        FdInfoError,
        Totals, //
    },
    AccessError,
    Capabilities,
    Content,
    ConvertError,
    CreateFlags,
    Feature,
    GuestMemfd,
    Mapping,
    Outside,
    PopulateError,
    Populator,
    RangeError,
    Region,
    Regions,
    Service,
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
        BorrowedFd,
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

/// The type of VM that has private memory here, and what fdinfo calls its platform.
#[cfg(target_arch = "x86_64")]
const PROTECTED: (u64, &str) = (abi::KVM_X86_SW_PROTECTED_VM, "sw-protected");
/// The type of VM that has private memory here, `KVM_VM_TYPE_ARM_PROTECTED`, and what fdinfo calls its
/// platform.
#[cfg(target_arch = "aarch64")]
const PROTECTED: (u64, &str) = (1 << 31, "pkvm");

fn protected_vm() -> VmFd {
    let kvm = Kvm::new().unwrap();
    kvm.create_vm_with_type(PROTECTED.0).unwrap()
}

fn ordinary_vm() -> VmFd {
    Kvm::new().unwrap().create_vm_with_type(0).unwrap()
}

/// A new file of `vm`, mapped, and all of it at a guest physical address.
fn region(vm: &VmFd, guest_phys_addr: u64) -> Region {
    let file = Arc::new(GuestMemfd::create(vm, SIZE, in_place()).unwrap());
    let mapping = Arc::new(file.map(0..SIZE).unwrap());
    Region::new(file, 0..SIZE, guest_phys_addr, Some(mapping)).unwrap()
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
    let everything = [
        Feature::InPlace,
        Feature::Mmap,
        Feature::InitShared,
        Feature::ReadAttributes,
        Feature::MapMemory,
        Feature::ExitMapGpaRange,
        Feature::Migratable,
    ];
    assert_eq!(capabilities.require(&everything), Ok(()));
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
fn a_file_that_is_taken_over_keeps_its_flag() {
    let vm = protected_vm();
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
    // The pages before it have not changed.
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
    let region = region(&vm, 0x100000);
    let file = region.memory();
    let first = region.bind(&vm, 0).unwrap();
    let second = region.bind(&vm, 1).unwrap_err();
    assert_eq!(second.raw_os_error(), Some(libc::EEXIST));
    drop(first);
    // The state belongs to the file: it outlives the slot.
    file.convert(0..PAGE, Visibility::Private, Content::Preserve)
        .unwrap();
    let again = region.bind(&vm, 1).unwrap();
    let state = file.attributes_at(0).unwrap();
    assert_eq!(
        (state.range, state.visibility),
        (0..PAGE, Visibility::Private)
    );
    drop(again);
}

/// The reservations of `length` bytes in which this process has no memory.
fn reservations(length: u64) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let is_one = |line: &&str| {
        let mut words = line.split(' ');
        let (start, end) = words
            .next()
            .and_then(|range| range.split_once('-'))
            .unwrap();
        let address = |hex| u64::from_str_radix(hex, 16).unwrap();
        words.next() == Some("---p") && address(end) - address(start) == length
    };
    maps.lines().filter(is_one).count()
}

/// KVM would access other memory that is there.
#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn a_slot_without_a_mapping_has_addresses_of_its_own() {
    let vm = protected_vm();
    let memory = Arc::new(GuestMemfd::create(&vm, SIZE, in_place()).unwrap());
    let range = pages(0..SIZE / PAGE - 1);
    let length = range.end;
    let region = Region::new(memory, range, 0, None).unwrap();
    assert_eq!(reservations(length), 0);
    let slot = region.bind(&vm, 0).unwrap();
    assert_eq!(reservations(length), 1);
    drop(slot);
    assert_eq!(reservations(length), 0);
}

/// Kernels without models say so by a capability.
#[cfg(target_arch = "x86_64")]
#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn a_model_gives_pages_to_its_guest() {
    use gmem::emulation::{
        Emulation,
        Key,
        Page,
        Platform, //
    };
    use std::io::Write;

    let kvm = Kvm::new().unwrap();
    for platform in [
        Platform::Snp,
        Platform::Tdx {
            removal_zeroes: false,
        },
        Platform::Tdx {
            removal_zeroes: true,
        },
    ] {
        if !platform.is_emulated(&kvm) {
            // What the macros print is only seen if the test fails.
            let why = "no CONFIG_KVM_GMEM_EMULATION";
            writeln!(io::stdout(), "# {platform:?} NOT RUN: {why}").unwrap();
            continue;
        }
        let vm = protected_vm();
        let model = Emulation::enable(&vm, platform).unwrap();
        let base = 0x100000;
        let region = region(&vm, base);
        let _slot = region.bind(&vm, 0).unwrap();
        let (file, host) = (region.memory(), region.mapping().unwrap());
        host.try_write(0, &[0x5a; 2 * PAGE as usize]).unwrap();
        file.convert(pages(0..3), Visibility::Private, Content::Preserve)
            .unwrap();
        let owned = || [0, 1, 2].map(|page| model.is_owned(base + page * PAGE).unwrap());

        assert_eq!(owned(), [false; 3]);
        model
            .add_in_place(Page::Normal, base..base + 2 * PAGE)
            .unwrap();
        assert_eq!(owned(), [true, true, false]);
        model.finish_launch().unwrap();
        let late = base + 2 * PAGE..base + 3 * PAGE;
        let (_, left) = model
            .add_in_place(Page::Normal, late.clone())
            .expect_err("the launch has ended");
        assert_eq!(left, late);

        let back = file.convert(pages(0..1), Visibility::Shared, Content::Preserve);
        if platform == Platform::Snp {
            let mut bytes = [0; PAGE as usize];
            assert_eq!(back, Ok(()));
            host.try_read(0, &mut bytes).unwrap();
            assert_eq!(bytes[..], Key::MODEL.apply(&[0x5a; PAGE as usize]));
        } else {
            assert_eq!(back, error(libc::EOPNOTSUPP, Some(0)));
        }
    }
}

/// Protected VMs on arm64 have no page tables before the first run.
#[cfg(target_arch = "x86_64")]
#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn guest_memory_is_populated_up_to_where_it_ends() {
    let vm = protected_vm();
    let base = 0x100000;
    let region = region(&vm, base);
    let _slot = region.bind(&vm, 0).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let vcpu = Populator::new(&vcpu).unwrap();
    region
        .memory()
        .convert(0..PAGE, Visibility::Private, Content::Preserve)
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

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn new_descriptors_are_closed_by_exec() {
    let vm = protected_vm();
    let region = region(&vm, 0);
    let _slot = region.bind(&vm, 0).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let _populator = Populator::new(&vcpu).unwrap();
    let mut files = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let Ok(link) = std::fs::read_link(entry.path()) else {
            continue;
        };
        if !link.to_string_lossy().contains("kvm") {
            continue;
        }
        files += 1;
        let fd: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
        // SAFETY: The call takes numbers.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC, "{link:?}");
    }
    // VM, file, the slot's VM, vCPU, the populator's vCPU.
    assert!(files >= 5, "{files}");
}

/// For VMMs that do not use `kvm-ioctls`.
#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn any_descriptor_of_a_vm_will_do() {
    let vm = protected_vm();
    // SAFETY: The descriptor is open as long as `vm` lives.
    let borrowed = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
    let fd = borrowed.try_clone_to_owned().unwrap();
    drop(vm);
    assert!(Capabilities::of(&fd).converts_in_place);
    gmem::exit_on_map_gpa_range(&fd).unwrap();
    let memory = Arc::new(GuestMemfd::create(&fd, SIZE, in_place()).unwrap());
    let region = Region::new(memory.clone(), 0..SIZE, 0, None).unwrap();
    let _slot = region.bind(&fd, 0).unwrap();
    drop(fd);
    memory
        .convert(0..SIZE, Visibility::Private, Content::Preserve)
        .unwrap();
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn a_slot_outlives_what_it_was_made_of() {
    let vm = protected_vm();
    let slot = {
        let region = region(&vm, 0x100000);
        region.bind(&vm, 0).unwrap()
    };
    drop(vm);
    let memory = slot.region().memory().clone();
    let slots = || fdinfo(memory.as_raw_fd()).unwrap().slots.len();
    assert_eq!(slots(), 1);
    // The VM ends with the slot.
    drop(slot);
    assert_eq!(slots(), 0);
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn a_guests_request_is_served_across_slots() {
    let vm = protected_vm();
    gmem::exit_on_map_gpa_range(&vm).unwrap();
    let base = 0x100000;
    let (low, high) = (region(&vm, base), region(&vm, base + SIZE));
    let _slots = [low.bind(&vm, 0).unwrap(), high.bind(&vm, 1).unwrap()];
    let vcpu = vm.create_vcpu(0).unwrap();
    let populator = Populator::new(&vcpu).unwrap();
    let regions = Regions::new(vec![high.clone(), low.clone()]).unwrap();
    let serve = |address: u64, pages, attributes, outside| {
        let service = Service {
            content: Content::Preserve,
            attempts: 3,
            outside,
            // Protected VMs on arm64 have no page tables before the first run.
            populate: cfg!(target_arch = "x86_64").then_some(&populator),
        };
        let args = [address, pages, attributes, 0, 0, 0];
        regions
            .serve(abi::KVM_HC_MAP_GPA_RANGE, &args, &service)
            .unwrap()
    };
    let private = abi::KVM_MAP_GPA_RANGE_ENCRYPTED;
    let state = |region: &Region, page: u64| {
        let run = region.memory().attributes_at(page * PAGE).unwrap();
        (run.visibility, (run.range.end - run.range.start) / PAGE)
    };

    // The last two pages of one file, and the first three of the other.
    let served = serve(base + 14 * PAGE, 5, private, Outside::Refuse);
    let mapped = cfg!(target_arch = "x86_64").then_some(Ok(()));
    assert_eq!((served.ret(), &served.populated), (0, &mapped));
    assert_eq!(state(&low, 14), (Visibility::Private, 2));
    assert_eq!(state(&high, 0), (Visibility::Private, 3));
    let served = serve(base + 15 * PAGE, 2, 0, Outside::Refuse);
    assert_eq!(served.ret(), 0);
    assert_eq!(state(&low, 14), (Visibility::Private, 1));
    assert_eq!(state(&high, 0), (Visibility::Shared, 1));

    // A page that is in use stops the request there; the guest can ask again.
    let held = hold(high.mapping().unwrap(), 4 * PAGE);
    let served = serve(base, 32, private, Outside::Refuse);
    assert_eq!(served.ret(), libc::EAGAIN as u64);
    assert_eq!(
        served.converted,
        Err(RangeError {
            errno: libc::EAGAIN,
            address: Some(base + SIZE + 4 * PAGE),
            converted: base..base + SIZE,
        })
    );
    assert_eq!(state(&low, 0), (Visibility::Private, 16));
    assert_eq!(state(&high, 3), (Visibility::Shared, 13));
    drop(held);
    assert_eq!(serve(base, 32, private, Outside::Refuse).ret(), 0);
    assert_eq!(state(&high, 0), (Visibility::Private, 16));

    // Only guests of pKVM give memory back. Its state stays.
    let given_back = private | abi::KVM_MAP_GPA_RANGE_RELINQUISHED;
    let served = serve(base + 15 * PAGE, 2, given_back, Outside::Refuse);
    let expected = match cfg!(target_arch = "aarch64") {
        true => 0,
        false => libc::EINVAL as u64,
    };
    assert_eq!((served.ret(), served.populated), (expected, None));
    assert_eq!(state(&low, 0), (Visibility::Private, 16));

    // Addresses outside of the regions are not converted.
    let served = serve(base, 33, 0, Outside::Refuse);
    assert_eq!(served.ret(), libc::EINVAL as u64);
    assert_eq!(state(&low, 0), (Visibility::Private, 16));
    let served = serve(base, 33, 0, Outside::Skip);
    assert_eq!(served.ret(), 0);
    assert_eq!(state(&low, 0), (Visibility::Shared, 16));
    // Addresses outside of the regions are not mapped either.
    assert_eq!(served.populated, mapped);
}

#[test]
#[ignore = "needs a kernel whose guest_memfd converts in place"]
fn a_hold_keeps_pages_shared() {
    use Visibility::{Private, Shared};
    let vm = protected_vm();
    let file = Arc::new(GuestMemfd::create(&vm, SIZE, in_place()).unwrap());
    let convert = |range, to| file.convert(pages(range), to, Content::Preserve);
    let hold = |range| file.hold(pages(range));
    let refused = |range, page: u64| {
        let refused = hold(range).unwrap_err();
        assert!(
            matches!(refused, AccessError::Refused { offset } if offset == page * PAGE),
            "{refused:?}"
        );
    };

    let held = hold(3..6).unwrap();
    assert_eq!(convert(0..16, Private), error(libc::EAGAIN, Some(3 * PAGE)));
    assert_eq!(convert(5..6, Private), error(libc::EAGAIN, Some(5 * PAGE)));
    assert_eq!(convert(0..3, Private), Ok(()));
    assert_eq!(convert(6..16, Private), Ok(()));
    assert_eq!(convert(0..16, Shared), Ok(()));
    drop(held);
    assert_eq!(convert(4..5, Private), Ok(()));
    refused(0..16, 4);
    refused(4..5, 4);
    // Pages that were held before the refusal are not held any more.
    assert_eq!(convert(0..4, Private), Ok(()));
    assert_eq!(convert(0..16, Shared), Ok(()));
    drop(hold(0..16).unwrap());

    // Pages that start private, and a VM that has none.
    let file = Arc::new(GuestMemfd::create(&vm, SIZE, CreateFlags::MMAP).unwrap());
    assert!(file.hold(0..PAGE).unwrap_err().is_refused());
    let vm = ordinary_vm();
    let file = Arc::new(GuestMemfd::create(&vm, SIZE, in_place()).unwrap());
    drop(file.hold(0..SIZE).unwrap());
}

#[cfg(feature = "vm-memory")]
mod memory {
    use super::*;
    use crate::device::Device;
    use vm_memory::{
        Bytes,
        GuestAddress,
        GuestMemoryBackend,
        GuestMemoryError, //
    };

    const BASE: u64 = 0x100000;

    fn is_refusal(error: &GuestMemoryError) -> bool {
        let GuestMemoryError::IOError(error) = error else {
            return false;
        };
        error.kind() == io::ErrorKind::PermissionDenied
            && error
                .get_ref()
                .is_some_and(|inner| inner.is::<AccessError>())
    }

    #[test]
    #[ignore = "needs a kernel whose guest_memfd converts in place"]
    fn slices_of_private_pages_are_refused_and_others_stay_shared() {
        let vm = protected_vm();
        let region = region(&vm, BASE);
        let file = region.memory().clone();
        let memory = Regions::new(vec![region]).unwrap().guest_memory().unwrap();
        let convert = |range, to| file.convert(pages(range), to, Content::Preserve);
        let at = |page: u64| GuestAddress(BASE + page * PAGE);

        memory.write_obj(0x5a5a_u16, at(2)).unwrap();
        let slice = memory.get_slice(at(2), 8).unwrap();
        let busy = error(libc::EAGAIN, Some(2 * PAGE));
        assert_eq!(convert(0..16, Visibility::Private), busy);
        assert_eq!(slice.read_obj::<u16>(0).unwrap(), 0x5a5a);
        drop(slice);
        assert_eq!(convert(2..3, Visibility::Private), Ok(()));

        let mut bytes = vec![0; 2 * PAGE as usize];
        for error in [
            memory.get_slice(at(2), 1).map(drop).unwrap_err(),
            memory
                .get_slice(at(1), 2 * PAGE as usize)
                .map(drop)
                .unwrap_err(),
            memory
                .read_obj::<u8>(GuestAddress(at(3).0 - 1))
                .unwrap_err(),
            memory.write_obj(1u8, at(2)).unwrap_err(),
            memory
                .load::<u32>(at(2), std::sync::atomic::Ordering::Acquire)
                .unwrap_err(),
            memory
                .store(1u32, at(2), std::sync::atomic::Ordering::Release)
                .unwrap_err(),
            memory.read_slice(&mut bytes, at(1)).unwrap_err(),
            memory
                .write_volatile_to(at(2), &mut Vec::new(), 9)
                .unwrap_err(),
        ] {
            assert!(is_refusal(&error), "{error:?}");
        }
        assert!(!memory.check_range(at(1), 2 * PAGE as usize));
        assert!(memory.check_range(at(0), 2 * PAGE as usize));
        // The pages beside it have not changed.
        memory.write_slice(&[1; PAGE as usize], at(1)).unwrap();
        memory.write_slice(&[3; PAGE as usize], at(3)).unwrap();
        assert_eq!(convert(2..3, Visibility::Shared), Ok(()));
        assert_eq!(memory.read_obj::<u16>(at(2)).unwrap(), 0x5a5a);
    }

    #[test]
    #[ignore = "needs a kernel whose guest_memfd converts in place"]
    fn a_ring_in_private_memory_is_an_error_of_the_device() {
        let vm = protected_vm();
        let region = region(&vm, BASE);
        let file = region.memory().clone();
        let memory = Regions::new(vec![region]).unwrap().guest_memory().unwrap();
        // Descriptors, both rings, and the buffers: each of them, in a ring that has a request.
        for page in 0..5 {
            let mut device = Device::new(BASE, page);
            device.ask(&memory, page, &[page as u8; 64]);
            let private = pages(page.into()..u64::from(page) + 1);
            file.convert(private.clone(), Visibility::Private, Content::Preserve)
                .unwrap();
            assert_eq!(device.is_valid(&memory), page > 2, "page {page}");
            let error = device.run(&memory).unwrap_err();
            let expected = match page {
                0 => "no descriptors",
                _ => "Refused",
            };
            assert!(error.contains(expected), "page {page}: {error}");

            // A device that has failed is reset, and works again where it is allowed to.
            file.convert(private, Visibility::Shared, Content::Preserve)
                .unwrap();
            let mut device = Device::new(BASE, page);
            assert_eq!(device.run(&memory), Ok(1));
            let complement = vec![!(page as u8); 64];
            assert_eq!(device.answered(&memory, 64), (page + 1, complement));
        }
    }

    /// A device serves requests while a vCPU's thread makes its pages private and shared again: each
    /// access is one to a shared page or an error.
    #[test]
    #[ignore = "needs a kernel whose guest_memfd converts in place"]
    fn conversions_beside_accesses_kill_nobody() {
        use std::sync::atomic::{
            AtomicBool,
            AtomicU32,
            Ordering, //
        };

        let vm = protected_vm();
        let region = region(&vm, BASE);
        let file = region.memory().clone();
        let memory = Regions::new(vec![region]).unwrap().guest_memory().unwrap();
        let done = AtomicBool::new(false);
        let (good, refused) = (AtomicU32::new(0), AtomicU32::new(0));
        let access = || {
            let mut bytes = [0; 3 * PAGE as usize];
            while !done.load(Ordering::Relaxed) {
                for result in [
                    memory.write_slice(&bytes, GuestAddress(BASE + PAGE)),
                    memory.read_slice(&mut bytes, GuestAddress(BASE + PAGE)),
                    memory.store(1u32, GuestAddress(BASE + 2 * PAGE), Ordering::Release),
                ] {
                    let count = match result {
                        Ok(()) => &good,
                        Err(error) if is_refusal(&error) => &refused,
                        Err(error) => panic!("{error:?}"),
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        let convert = || {
            for round in 0..2000 {
                for (to, count) in [(Visibility::Private, &refused), (Visibility::Shared, &good)] {
                    let before = count.load(Ordering::Relaxed);
                    while let Err(error) = file.convert(pages(2..3), to, Content::Preserve) {
                        assert!(error.is_transient(), "{error}");
                        std::thread::yield_now();
                    }
                    // Mostly it continues at once. But both answers have to be seen.
                    while round % 50 == 0 && count.load(Ordering::Relaxed) == before {
                        std::thread::yield_now();
                    }
                }
            }
            done.store(true, Ordering::Relaxed);
        };
        std::thread::scope(|scope| {
            scope.spawn(access);
            convert();
        });
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
    let memory = Arc::new(GuestMemfd::create(&vm, SIZE, in_place()).unwrap());
    let mapping = Arc::new(memory.map(pages(4..8)).unwrap());
    let region = Region::new(memory.clone(), pages(4..8), 0x100000, Some(mapping)).unwrap();
    let slot = region.bind(&vm, 0).unwrap();

    memory
        .convert(pages(1..3), Visibility::Private, Content::Zero)
        .unwrap();
    let expected = FdInfo {
        converts_in_place: true,
        vendor: PROTECTED.1.to_owned(),
        size: SIZE,
        allocated: 0,
        totals: Some(Totals {
            private: 2 * PAGE,
            shared: SIZE - 2 * PAGE,
            runs: 3,
        }),
        migratable: false,
        contiguous: Some(0),
        large: Some(0),
        folios: None,
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
fn files_can_be_moved_where_the_capability_says_so() {
    for vm in [protected_vm(), ordinary_vm()] {
        let flags = CreateFlags::MMAP | CreateFlags::MIGRATABLE;
        match GuestMemfd::create(&vm, SIZE, flags) {
            Ok(memory) => {
                assert!(Capabilities::of(&vm).has(Feature::Migratable));
                assert!(fdinfo(memory.as_raw_fd()).unwrap().migratable);
            }
            Err(error) => {
                assert!(!Capabilities::of(&vm).has(Feature::Migratable));
                assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
            }
        }
    }
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
