// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vm-memory` on a file that is shared as a whole, for which no KVM is needed. Private pages are
//! in `kvm.rs`.

#![cfg(feature = "vm-memory")]

#[path = "common/device.rs"]
mod device;

use device::Device;
use gmem::{
    vm_memory::GuestMemoryGmem,
    Content,
    GuestMemfd,
    Region,
    Regions,
    Visibility, //
};
use std::{
    fs::File,
    io,
    os::fd::FromRawFd,
    sync::{
        atomic::Ordering,
        Arc, //
    },
};
use vm_memory::{
    Bytes,
    GuestAddress,
    GuestMemoryBackend,
    GuestMemoryError,
    GuestMemoryRegion,
    MemoryRegionAddress,
    VolatileMemory, //
};

const SIZE: u64 = 0x8000;
const BASE: u64 = 0x10_0000;

fn file() -> Arc<GuestMemfd> {
    // SAFETY: The name is a C string.
    let fd = unsafe { libc::memfd_create(c"gmem-test".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: The descriptor is new and ours.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(SIZE).unwrap();
    Arc::new(GuestMemfd::from_fd(file.into()).unwrap())
}

fn regions() -> (Arc<GuestMemfd>, Regions) {
    let file = file();
    let mapping = Arc::new(file.map(0..SIZE).unwrap());
    let at =
        |range, address| Region::new(file.clone(), range, address, Some(mapping.clone())).unwrap();
    // One behind the other in the guest, but not in the file.
    let regions = vec![
        at(0x4000..SIZE, BASE),
        at(0..0x4000, BASE + 0x4000),
        at(0..0x1000, BASE + 0x10000),
    ];
    (file.clone(), Regions::new(regions).unwrap())
}

fn memory() -> (Arc<GuestMemfd>, GuestMemoryGmem) {
    let (file, regions) = regions();
    (file, regions.guest_memory().unwrap())
}

/// Whether the page at an offset in the file cannot become private.
fn is_held(file: &GuestMemfd, offset: u64) -> bool {
    let to = Visibility::Private;
    let error = file
        .convert(offset..offset + 0x1000, to, Content::Preserve)
        .unwrap_err();
    // An ordinary file does not convert.
    assert!([libc::EAGAIN, libc::ENOTTY].contains(&error.errno));
    error.errno == libc::EAGAIN
}

#[test]
fn bytes_cross_regions() {
    let (file, memory) = memory();
    let written: Vec<u8> = (0..0x2000u32).map(|i| (i * 5 + (i >> 7)) as u8).collect();
    let address = GuestAddress(BASE + 0x3123);
    memory.write_slice(&written, address).unwrap();
    let mut read = vec![0; written.len()];
    memory.read_slice(&mut read, address).unwrap();
    assert_eq!(read, written);
    let mut in_file = vec![0; 0xedd];
    let mapping = file.map(0..SIZE).unwrap();
    mapping.try_read(0x7123, &mut in_file).unwrap();
    assert_eq!(in_file, written[..0xedd]);

    memory
        .store(0x1234_5678u32, GuestAddress(BASE + 8), Ordering::Release)
        .unwrap();
    let loaded: u32 = memory
        .load(GuestAddress(BASE + 8), Ordering::Acquire)
        .unwrap();
    assert_eq!(loaded, 0x1234_5678);
    let outside = memory.write_slice(&written, GuestAddress(BASE + 0x7000));
    assert!(matches!(
        outside,
        Err(GuestMemoryError::PartialBuffer {
            completed: 0x1000,
            ..
        })
    ));
    let nowhere = memory.read_obj::<u8>(GuestAddress(0));
    assert!(matches!(
        nowhere,
        Err(GuestMemoryError::InvalidGuestAddress(_))
    ));
    assert_eq!(memory.num_regions(), 3);
    assert_eq!(memory.last_addr(), GuestAddress(BASE + 0x10fff));
}

#[test]
fn a_region_has_bytes_up_to_its_end() {
    let (file, memory) = memory();
    let region = memory.find_region(GuestAddress(BASE)).unwrap();
    let at = MemoryRegionAddress;
    assert_eq!(region.len(), 0x4000);
    assert_eq!(region.write(&[7; 8], at(0x3ffc)).unwrap(), 4);
    assert_eq!(region.read(&mut [0; 8], at(0x3ffc)).unwrap(), 4);
    assert_eq!(region.read(&mut [], at(0x9999)).unwrap(), 0);
    for address in [0x4000, u64::MAX] {
        assert!(matches!(
            region.read(&mut [0], at(address)),
            Err(GuestMemoryError::InvalidBackendAddress)
        ));
    }
    assert!(matches!(
        region.read_slice(&mut [0; 8], at(0x3ffc)),
        Err(GuestMemoryError::PartialBuffer { completed: 4, .. })
    ));
    let mut sink = Vec::new();
    assert_eq!(
        region.write_volatile_to(at(0x3ffe), &mut sink, 9).unwrap(),
        2
    );
    assert_eq!(sink, [7, 7]);
    let exactly = region.write_all_volatile_to(at(0x3ffe), &mut sink, 9);
    assert!(matches!(
        exactly,
        Err(GuestMemoryError::InvalidBackendAddress)
    ));
    let mut source = &[1u8, 2, 3][..];
    let read = region.read_volatile_from(at(0), &mut source, 2).unwrap();
    assert_eq!(
        (read, region.load::<u8>(at(1), Ordering::Relaxed).unwrap()),
        (2, 2)
    );
    assert!(region.get_slice(at(0x3fff), 2).is_err());
    assert!(region.get_slice(at(u64::MAX), 2).is_err());
    assert!(region.get_slice(at(0x4000), 0).unwrap().is_empty());
    // A page cannot be reached without a hold.
    assert!(region.get_host_address(at(0)).is_err());
    assert!(region.file_offset().is_none());
    assert!(!is_held(&file, 0x4000) && !is_held(&file, 0x7000));
}

#[test]
fn a_slice_and_all_that_is_made_of_it_hold_the_pages() {
    let (file, memory) = memory();
    let slice = memory
        .get_slice(GuestAddress(BASE + 0x1800), 0x1000)
        .unwrap();
    assert!(is_held(&file, 0x5000) && is_held(&file, 0x6000));
    assert!(!is_held(&file, 0x4000) && !is_held(&file, 0x7000));

    let part = slice.subslice(0, 4).unwrap();
    let (_, behind) = part.split_at(2).unwrap();
    let clone = behind.clone();
    drop((slice, part, behind));
    assert!(is_held(&file, 0x5000));
    drop(clone);
    assert!(!is_held(&file, 0x5000) && !is_held(&file, 0x6000));

    let slice = memory.get_slice(GuestAddress(BASE), 0x100).unwrap();
    let reference = slice.get_ref::<u32>(0).unwrap();
    reference.store(3);
    let array = slice.get_array_ref::<u16>(8, 4).unwrap();
    let element = array.ref_at(1);
    element.store(9);
    let again = element.to_slice();
    assert!(is_held(&file, 0x4000));
    drop((again, element, array, reference));
    assert!(is_held(&file, 0x4000));
    drop(slice);
    assert!(!is_held(&file, 0x4000));
}

#[test]
fn virtio_queue_works_on_it_and_lets_go() {
    let (file, memory) = memory();
    let mut device = Device::new(BASE, 0);
    assert!(device.is_valid(&memory));
    assert_eq!(device.run(&memory), Ok(0));
    for number in 0..6 {
        let request: Vec<u8> = (0..0x1000u32)
            .map(|i| (i + u32::from(number)) as u8)
            .collect();
        device.ask(&memory, number, &request);
        assert_eq!(device.run(&memory), Ok(1));
        let complement: Vec<u8> = request.iter().map(|byte| !byte).collect();
        assert_eq!(device.answered(&memory, 0x1000), (number + 1, complement));
    }
    for page in 0..SIZE / 0x1000 {
        assert!(!is_held(&file, page * 0x1000), "page {page}");
    }
}

#[test]
fn regions_that_are_not_mapped_are_left_out() {
    let region = Region::new(file(), 0..0x1000, 0, None).unwrap();
    let regions = Regions::new(vec![region]).unwrap();
    assert!(regions.guest_memory().is_err());
}
