// SPDX-License-Identifier: GPL-2.0

//! Compares the numbers that the crate gmem has with those of the header, as a C compiler sees it.
//!
//! The test is here because a package of the crate has no header in it.

use gmem::abi::*;
use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::Path,
    process::Command, //
};

/// Names that the header shortens, or that stand in another header.
fn name_in_c(name: &str) -> String {
    match name {
        "CONTENT_POLICY_ZERO" | "CONTENT_POLICY_PRESERVE" => {
            format!("KVM_SET_MEMORY_ATTRIBUTES2_{name}")
        }
        _ => name.into(),
    }
}

macro_rules! numbers {
    ($($name:ident),* $(,)?) => {
        [$((stringify!($name), $name as u64)),*]
    };
}

/// Evaluates `expressions` in a program that includes the header, and whose name is `what`.
fn ask_c(what: &str, expressions: &[(String, String)]) -> BTreeMap<String, u64> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (directory.join(format!("{what}.c")), directory.join(what));
    let mut text = String::from(
        "#include <stdio.h>\n#include <stddef.h>\n#include <linux/kvm_gmem.h>\nint main(void)\n{\n",
    );
    for (name, expression) in expressions {
        let _ = writeln!(
            text,
            "\tprintf(\"{name} %llu\\n\", (unsigned long long)({expression}));"
        );
    }
    text += "\treturn 0;\n}\n";
    fs::write(&source, text).unwrap();
    let uapi = concat!(env!("CARGO_MANIFEST_DIR"), "/../../include/uapi");
    let compiler = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Werror", "-idirafter", uapi, "-o"])
        .args([&program, &source])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&compiler.stderr).into_owned();
    assert!(compiler.status.success(), "{said}");
    let output = Command::new(&program).output().unwrap().stdout;
    String::from_utf8(output)
        .unwrap()
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, value)| (name.into(), value.parse().unwrap()))
        .collect()
}

#[test]
fn numbers_are_those_of_the_header() {
    let rust: BTreeMap<&str, u64> = numbers![
        KVM_SET_MEMORY_ATTRIBUTES2,
        KVM_GET_MEMORY_ATTRIBUTES2,
        KVM_MAP_MEMORY,
        GUEST_MEMFD_FLAG_MIGRATABLE,
        GUEST_MEMFD_FLAG_LARGE_FOLIOS,
        CONTENT_POLICY_ZERO,
        CONTENT_POLICY_PRESERVE,
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
        KVM_GMEM_EMULATE,
        KVM_GMEM_EMULATE_OP_LAUNCH_UPDATE,
        KVM_GMEM_EMULATE_OP_LAUNCH_FINISH,
        KVM_GMEM_EMULATE_OP_QUERY,
        KVM_GMEM_EMULATE_PAGE_NORMAL,
        KVM_GMEM_EMULATE_PAGE_ZERO,
        KVM_GMEM_EMULATE_PAGE_CPUID,
        KVM_GMEM_EMULATE_STATE_NONE,
    ]
    .into();
    // Whatever the crate defines and the header as well has to be in the list.
    let header = include_str!("../../../include/uapi/linux/kvm_gmem.h");
    for line in include_str!("../../gmem/src/abi.rs").lines() {
        let Some(rest) = line.strip_prefix("pub const ") else {
            continue;
        };
        let name = rest.split(':').next().unwrap();
        let defined = format!("#define {}", name_in_c(name));
        let in_header = header.lines().any(|line| {
            line.strip_prefix(&defined)
                .is_some_and(|rest| rest.starts_with(char::is_whitespace))
        });
        assert_eq!(in_header, rust.contains_key(name), "{name}");
    }

    let asked: Vec<_> = rust
        .keys()
        .map(|&name| (name.into(), name_in_c(name)))
        .collect();
    let c = ask_c("numbers", &asked);
    for (name, value) in rust {
        assert_eq!(c[name], value, "{name}");
    }
}

macro_rules! layout {
    ($rust:ident, $c:literal, $($field:ident = $name:literal),*) => {{
        let mut rust = vec![(concat!($c, ".size").to_string(), size_of::<$rust>() as u64)];
        let mut asked = vec![(concat!($c, ".size").to_string(), concat!("sizeof(struct ", $c, ")").to_string())];
        $(
            rust.push((concat!($c, ".", $name).to_string(), std::mem::offset_of!($rust, $field) as u64));
            asked.push((
                concat!($c, ".", $name).to_string(),
                concat!("offsetof(struct ", $c, ", ", $name, ")").to_string(),
            ));
        )*
        assert_eq!(ask_c($c, &asked), rust.into_iter().collect());
    }};
}

#[test]
fn structures_are_those_of_the_header() {
    layout!(
        MemoryAttributes2,
        "kvm_memory_attributes2",
        offset = "offset",
        size = "size",
        attributes = "attributes",
        flags = "flags",
        error_offset = "error_offset",
        reserved = "reserved"
    );
    layout!(
        MemoryMapping,
        "kvm_memory_mapping",
        base_address = "base_address",
        size = "size",
        flags = "flags"
    );
    layout!(
        Emulate,
        "kvm_gmem_emulate",
        op = "op",
        page_type = "type",
        gpa = "gpa",
        size = "size",
        uaddr = "uaddr",
        value = "value"
    );
}
