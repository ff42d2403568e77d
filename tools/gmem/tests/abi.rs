// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The numbers of `gmem::abi` against those of the kernel's header, where that is next to this crate.

use gmem::abi;
use std::{
    collections::HashMap,
    fs, //
};

/// What the header defines on one line, by name.
fn header() -> Option<HashMap<String, String>> {
    const PATH: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../include/uapi/linux/kvm_gmem.h"
    );

    let text = fs::read_to_string(PATH).ok()?.replace("\\\n", " ");
    let defined = text.lines().filter_map(|line| {
        let (name, value) = line
            .strip_prefix("#define")?
            .trim_start()
            .split_once(char::is_whitespace)?;
        Some((name.to_owned(), value.trim().to_owned()))
    });
    Some(defined.collect())
}

/// The value of `N`, `N << M` or `_IOWR(KVMIO, N, ...)`, of which the number is asked.
fn value(text: &str) -> Option<u64> {
    let number = |text: &str| {
        let text = text.trim().trim_end_matches("ULL");
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
    };
    if let Some(arguments) = text.strip_prefix("_IOWR(") {
        return number(arguments.split(',').nth(1)?);
    }
    let text = text.trim_start_matches('(').trim_end_matches(')');
    match text.split_once("<<") {
        Some((one, shift)) => Some(number(one)? << number(shift)?),
        None => number(text),
    }
}

/// Names of both, with the value here.
macro_rules! constants {
    ($($name:ident),* $(,)?) => {
        [$((stringify!($name), abi::$name as u64)),*]
    };
}

#[test]
fn numbers_are_those_of_the_header() {
    let Some(header) = header() else {
        eprintln!("the kernel's header is not here");
        return;
    };
    let same = constants![
        GUEST_MEMFD_FLAG_MIGRATABLE,
        KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES,
        KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS,
        KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS,
        KVM_CAP_GET_MEMORY_ATTRIBUTES2,
        KVM_CAP_MAP_MEMORY,
        KVM_CAP_GMEM_EMULATION,
        KVM_GMEM_EMULATE_SNP,
        KVM_GMEM_EMULATE_TDX,
        KVM_GMEM_EMULATE_TDX_MIRROR,
        KVM_GMEM_EMULATE_REMOVE_ZEROES,
        KVM_GMEM_EMULATION_KEY,
        KVM_GMEM_EMULATE_OP_LAUNCH_UPDATE,
        KVM_GMEM_EMULATE_OP_LAUNCH_FINISH,
        KVM_GMEM_EMULATE_OP_QUERY,
        KVM_GMEM_EMULATE_PAGE_NORMAL,
        KVM_GMEM_EMULATE_PAGE_ZERO,
        KVM_GMEM_EMULATE_PAGE_CPUID,
        KVM_GMEM_EMULATE_STATE_NONE,
    ];
    let other = [
        (
            "KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_ZERO",
            abi::CONTENT_POLICY_ZERO,
        ),
        (
            "KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_PRESERVE",
            abi::CONTENT_POLICY_PRESERVE,
        ),
    ];
    // The low byte of what _IOWR() makes.
    let ioctls = constants![
        KVM_SET_MEMORY_ATTRIBUTES2,
        KVM_GET_MEMORY_ATTRIBUTES2,
        KVM_MAP_MEMORY,
        KVM_GMEM_EMULATE,
    ]
    .map(|(name, number)| (name, number & 0xff));

    for (name, number) in same.into_iter().chain(other).chain(ioctls) {
        let defined = header.get(name).map(|text| value(text));
        assert_eq!(defined, Some(Some(number)), "{name}");
    }
}
