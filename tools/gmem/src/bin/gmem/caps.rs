// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `gmem caps`: what this kernel supports, queried on a VM of each type.

use crate::{
    Failure,
    Output, //
};
use gmem::{
    Capabilities,
    Content,
    CreateFlags,
    PolicySupport,
    Visibility, //
};
use kvm_ioctls::{
    Kvm,
    VmFd, //
};
use serde_json::{
    json,
    Value, //
};

/// The types of VM that there can be, with the number that KVM_CREATE_VM takes.
#[cfg(target_arch = "x86_64")]
const TYPES: [(&str, u64); 6] = [
    ("default", 0),
    ("SW_PROTECTED", gmem::abi::KVM_X86_SW_PROTECTED_VM),
    ("SEV", 2),
    ("SEV-ES", 3),
    ("SNP", 4),
    ("TDX", 5),
];
/// The types of VM that there can be, with the number that KVM_CREATE_VM takes.
#[cfg(target_arch = "aarch64")]
const TYPES: [(&str, u64); 2] = [("default", 0), ("protected", 1 << 31)];

const PHASES: [&str; 2] = ["before launch", "after launch"];
const DIRECTIONS: [Visibility; 2] = [Visibility::Private, Visibility::Shared];
const POLICIES: [Content; 3] = [Content::None, Content::Zero, Content::Preserve];

/// What a type of VM can do.
struct Type {
    name: &'static str,
    capabilities: Capabilities,
}

impl Type {
    fn ask(name: &'static str, vm: &VmFd) -> Self {
        Self {
            name,
            capabilities: Capabilities::of(vm),
        }
    }

    fn phases(&self) -> [PolicySupport; 2] {
        let Capabilities {
            before_launch,
            after_launch,
            ..
        } = self.capabilities;
        [before_launch, after_launch]
    }

    fn has(&self, flag: CreateFlags) -> bool {
        self.capabilities.create_flags.contains(flag)
    }

    fn json(&self) -> Value {
        let conversions: Vec<Value> = self
            .conversions()
            .map(|(phase, to, policies)| {
                json!({ "phase": phase, "to": to.to_string(), "policies": policies })
            })
            .collect();
        json!({
            "type": self.name,
            "converts_in_place": self.capabilities.converts_in_place,
            "mmap": self.has(CreateFlags::MMAP),
            "init_shared": self.has(CreateFlags::INIT_SHARED),
            "migratable": self.has(CreateFlags::MIGRATABLE),
            "large_folios": self.has(CreateFlags::LARGE_FOLIOS),
            "map_memory": self.capabilities.maps_memory,
            "conversions": conversions,
        })
    }

    /// The supported requests: phase, direction, and the names of the policies.
    fn conversions(&self) -> impl Iterator<Item = (&'static str, Visibility, Vec<String>)> + '_ {
        PHASES
            .into_iter()
            .zip(self.phases())
            .flat_map(|(phase, support)| DIRECTIONS.map(|to| (phase, support, to)))
            .filter(|_| self.capabilities.converts_in_place)
            .map(|(phase, support, to)| {
                let names = POLICIES
                    .into_iter()
                    .filter(|&content| support.allows(to, content))
                    .map(|content| content.to_string())
                    .collect();
                (phase, to, names)
            })
    }
}

/// Prints a table.
pub fn print(out: &mut Output) -> Result<(), Failure> {
    let kvm = Kvm::new().map_err(|error| {
        Failure::Other(match error.errno() {
            libc::ENOENT => {
                "there is no /dev/kvm: this machine has no KVM, or it is not loaded".into()
            }
            libc::EACCES => {
                "no permission to open /dev/kvm: root has it, and often the group kvm".into()
            }
            _ => format!("opening /dev/kvm: {error}"),
        })
    })?;
    // A type that cannot be created counts as not supported.
    let types: Vec<Type> = TYPES
        .into_iter()
        .filter_map(|(name, number)| {
            let vm = kvm.create_vm_with_type(number).ok()?;
            Some(Type::ask(name, &vm))
        })
        .collect();
    if out.json {
        return out.line(Value::from(
            types.iter().map(Type::json).collect::<Vec<_>>(),
        ));
    }
    if !types.iter().any(|one| one.capabilities.converts_in_place) {
        eprintln!(
            "gmem: no type of VM converts in place here: the kernel needs \
             CONFIG_KVM_GUEST_MEMFD_RUST=y, and a type of VM with private memory"
        );
    }
    out.line(format_args!(
        "{:<13} {:<9} {:<5} {:<11} {:<10} {:<10} {:<14} {:<11} POLICIES",
        "VM TYPE",
        "IN PLACE",
        "MMAP",
        "INIT_SHARED",
        "MIGRATABLE",
        "MAP_MEMORY",
        "PHASE",
        "DIRECTION"
    ))?;
    let yes = |is: bool| if is { "yes" } else { "no" };
    for one in &types {
        let mut head = format!(
            "{:<13} {:<9} {:<5} {:<11} {:<10} {:<10}",
            one.name,
            yes(one.capabilities.converts_in_place),
            yes(one.has(CreateFlags::MMAP)),
            yes(one.has(CreateFlags::INIT_SHARED)),
            yes(one.has(CreateFlags::MIGRATABLE)),
            yes(one.capabilities.maps_memory)
        );
        if !one.capabilities.converts_in_place {
            out.line(head)?;
            continue;
        }
        for (phase, to, policies) in one.conversions() {
            let to = format!("to {to}");
            out.line(format_args!(
                "{head} {phase:<14} {to:<11} {}",
                policies.join(" ")
            ))?;
            head = " ".repeat(head.len());
        }
    }
    Ok(())
}
