// SPDX-License-Identifier: GPL-2.0

//! Checks that the demonstration can be given, gives it, and counts.

use crate::{
    contract::{
        self,
        Platform,
        Scramble,
        EMULATED,
        REAL, //
    },
    guest,
    machine::{
        Machine,
        PAGE, //
    },
    scenes::{
        bounce_buffer,
        consent,
        Payload,
        Policies, //
    },
    table::{
        Heading,
        Phase,
        Row,
        Seen, //
    },
    Failure, //
};
use gmem::{
    abi,
    Capabilities,
    CheckExtension,
    Content,
    CreateFlags,
    PolicySupport,
    Visibility, //
};
use kvm_bindings::KVM_CAP_EXIT_HYPERCALL;
use kvm_ioctls::{
    Kvm,
    VmFd, //
};
use std::{
    fs,
    path::Path, //
};

const FLAGS: [(CreateFlags, &str); 2] = [
    (CreateFlags::MMAP, "GUEST_MEMFD_FLAG_MMAP"),
    (CreateFlags::INIT_SHARED, "GUEST_MEMFD_FLAG_INIT_SHARED"),
];

/// How to get a kernel that can.
const GET_KERNEL: &str = "the kernel has to be one with this project's guest_memfd \
    (CONFIG_KVM_GUEST_MEMFD_RUST=y): `make demo` builds and boots it";

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Broken(why)
    }
}

fn unavailable<T>(why: String) -> Result<T, Failure> {
    Err(Failure::Unavailable(why))
}

fn open_kvm() -> Result<Kvm, Failure> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            return unavailable(match error.errno() {
                libc::ENOENT => {
                    "there is no /dev/kvm: load kvm-amd or kvm-intel on a machine with \
                    hardware virtualisation (nested, if it is virtual itself), or run `make demo`, \
                    which boots one"
                        .into()
                }
                libc::EACCES => "/dev/kvm may not be opened: run as root or as a member of the \
                    group kvm"
                    .into(),
                _ => format!("/dev/kvm cannot be opened: {error}"),
            });
        }
    };
    let exits = kvm.capability(KVM_CAP_EXIT_HYPERCALL.into());
    if exits & 1 << guest::KVM_HC_MAP_GPA_RANGE == 0 {
        return unavailable(
            "this KVM does not hand the hypercall KVM_HC_MAP_GPA_RANGE to the VMM \
             (KVM_CAP_EXIT_HYPERCALL, 201); on arm64 it has to be booted with \
             kvm-arm.mode=protected"
                .into(),
        );
    }
    Ok(kvm)
}

fn protected_vm(kvm: &Kvm) -> Result<VmFd, Failure> {
    if let Some(why) = contract::missing(kvm) {
        return unavailable(why);
    }
    kvm.create_vm_with_type(contract::VM_TYPE)
        .map_err(|error| Failure::Broken(format!("creating a {} VM: {error}", contract::VM)))
}

fn need_flags(capabilities: &Capabilities) -> Result<(), Failure> {
    for (flag, name) in FLAGS {
        if !capabilities.create_flags.contains(flag) {
            return unavailable(format!(
                "{name} is not to be had for this type of VM (KVM_CAP_GUEST_MEMFD_FLAGS, 244, is \
                 {:#x}): {GET_KERNEL}",
                capabilities.create_flags.bits()
            ));
        }
    }
    Ok(())
}

fn need_conversion(capabilities: &Capabilities) -> Result<(), Failure> {
    if !capabilities.converts_in_place {
        return unavailable(format!(
            "guest_memfd does not convert in place here (KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES, \
             252, has no KVM_MEMORY_ATTRIBUTE_PRIVATE): {GET_KERNEL}"
        ));
    }
    need_flags(capabilities)?;
    if !capabilities.reads_attributes {
        return unavailable(format!(
            "KVM_GET_MEMORY_ATTRIBUTES2 is missing (capability 0x10002): {GET_KERNEL}"
        ));
    }
    Ok(())
}

fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or("unknown".into(), |release| release.trim().into())
}

/// Draws the file of `machine` into a directory, if there is one to draw into.
fn draw(machine: &Machine<'_>, directory: Option<&Path>, when: &str) -> Result<(), Failure> {
    let Some(directory) = directory else {
        return Ok(());
    };
    let path = directory.join(format!("{when}.svg"));
    fs::write(&path, machine.picture(when)?)
        .map_err(|error| Failure::Broken(format!("writing {}: {error}", path.display())))
}

/// Shows everything; the file is drawn into `pictures` before, during and after that.
pub fn all(pictures: Option<&Path>) -> Result<(), Failure> {
    let kvm = open_kvm()?;
    let vm = protected_vm(&kvm)?;
    let capabilities = Capabilities::of(&vm);
    need_conversion(&capabilities)?;
    let scramble = Scramble::read();

    println!(
        "gmem-demo: Linux {}, {} VM, one guest_memfd converting in place",
        kernel(),
        contract::VM
    );
    match scramble {
        Scramble::On => {}
        Scramble::Off => println!(
            "kvm.gmem_scramble=N: NONE promises nothing, and here it leaves the bytes alone"
        ),
        Scramble::Unknown => println!(
            "kvm.gmem_scramble cannot be read: NONE rows may show bytes scrambled or left alone"
        ),
    }
    let mut tally = Tally::default();
    tally.capabilities(&REAL, &capabilities);

    let mut machine = Machine::new(&kvm, &vm, &REAL)?;
    if !machine.starts_shared()? {
        return Err(Failure::Broken(
            "a file made with INIT_SHARED does not start shared".into(),
        ));
    }
    draw(&machine, pictures, "before")?;
    let early_payload = Payload::before(&mut machine, Phase::BeforeLaunch)?;
    let early_policies = Policies::before(&mut machine, Phase::BeforeLaunch)?;

    // From here on the guest runs: whatever it does first is the launch.
    machine.start()?;
    println!("\n1. Payload injection\n{Heading}");
    tally.show(&early_payload.after(&mut machine, scramble)?);
    let late_payload = Payload::before(&mut machine, Phase::AfterLaunch)?;
    tally.show(&late_payload.after(&mut machine, scramble)?);

    println!("\n2. Bounce buffer, at the guest's request\n{Heading}");
    tally.show(&bounce_buffer(&mut machine, scramble)?);

    println!("\n3. Every policy\n{Heading}");
    tally.show(&early_policies.after(&mut machine, scramble)?);
    let late_policies = Policies::before(&mut machine, Phase::AfterLaunch)?;
    draw(&machine, pictures, "during")?;
    tally.show(&late_policies.after(&mut machine, scramble)?);
    draw(&machine, pictures, "after")?;

    let mut number = 3;
    let mut section = |title: &str| {
        number += 1;
        println!("\n{number}. {title}");
    };
    if REAL.guest_shares {
        section("Pages that the guest has not shared");
        println!("{Heading}");
        tally.show(&consent(&mut machine, scramble)?);
    }

    section("Page tables ahead of time: pages that the guest touches first, and its faults");
    if vm.capability(abi::KVM_CAP_MAP_MEMORY) != 1 {
        println!("not shown: this kernel has no KVM_MAP_MEMORY (capability 0x10003)");
    } else if machine.faults()?.is_none() {
        println!("not shown: KVM does not count faults here (pf_taken)");
    } else {
        for to in [Visibility::Private, Visibility::Shared] {
            for populated in [false, true] {
                tally.faults(&mut machine, to, populated)?;
            }
        }
    }

    for platform in &EMULATED {
        section(platform.name);
        if platform.model.is_some_and(|model| model.is_emulated(&kvm)) {
            emulated(&kvm, platform, scramble, &mut tally)?;
        } else {
            println!("not shown: this kernel has no model of it (CONFIG_KVM_GMEM_EMULATION)");
        }
    }
    tally.conclude()
}

/// Shows a platform that a software model stands in for: a payload that the launch gives to the
/// guest, and every policy.
fn emulated(
    kvm: &Kvm,
    platform: &'static Platform,
    scramble: Scramble,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let vm = protected_vm(kvm)?;
    let mut machine = Machine::new(kvm, &vm, platform)?;
    tally.capabilities(platform, &Capabilities::of(&vm));
    println!("{Heading}");

    let payload = Payload::before(&mut machine, Phase::BeforeLaunch)?;
    let early = Policies::before(&mut machine, Phase::BeforeLaunch)?;
    machine.launch()?;
    tally.show(&payload.after(&mut machine, scramble)?);
    tally.show(&early.after(&mut machine, scramble)?);
    let late = Policies::before(&mut machine, Phase::AfterLaunch)?;
    tally.show(&late.after(&mut machine, scramble)?);
    Ok(())
}

/// Shows that the guest itself works, on a VM that has nothing private.
pub fn guest_only() -> Result<(), Failure> {
    if REAL.guest_shares {
        return unavailable(
            "--guest-only needs a guest that asks the VMM, and ordinary ones do not here".into(),
        );
    }
    let kvm = open_kvm()?;
    let vm = kvm
        .create_vm_with_type(0)
        .map_err(|error| Failure::Broken(format!("creating an ordinary VM: {error}")))?;
    need_flags(&Capabilities::of(&vm))?;

    let mut machine = Machine::new(&kvm, &vm, &REAL)?;
    let pages = machine.fresh(2)?;
    let written = machine.guest_fill(&pages, 1)?;
    if machine.host_read(&pages)? != Seen::Bytes(written.clone()) {
        return Err(Failure::Broken("the guest does not fill its memory".into()));
    }
    if machine.guest_read(&pages)? != written {
        return Err(Failure::Broken("the guest does not read its memory".into()));
    }
    machine.host_write(pages.start + PAGE, guest::payload())?;
    for argument in [0, 7] {
        if machine.guest_call(pages.start + PAGE, argument)? != guest::payload_answer(argument) {
            return Err(Failure::Broken("the payload does not run".into()));
        }
    }
    machine.guest_asks_in_vain(&pages)?;
    println!("gmem-demo: the guest fills, reads, calls and asks as it should; nothing converted");
    Ok(())
}

/// How many rows there were, and how many were wrong.
#[derive(Default)]
struct Tally {
    rows: usize,
    wrong_rows: usize,
    wrong_checks: usize,
}

impl Tally {
    fn check(&mut self, good: bool) {
        self.wrong_checks += usize::from(!good);
    }

    fn capabilities(&mut self, platform: &Platform, seen: &Capabilities) {
        let promised = PolicySupport::from_capability(platform.policies);
        for (phase, support) in [
            ("before launch", seen.before_launch),
            ("after launch", seen.after_launch),
        ] {
            let as_promised = support == promised;
            self.check(as_promised);
            println!(
                "policies {phase}: to private {}; to shared {}; both ways {}: {}",
                support.to_private,
                support.to_shared,
                support.both,
                if as_promised { "ok" } else { "MISMATCH" }
            );
        }
    }

    /// Has the guest write to fresh pages, mapped ahead of that or not, and counts.
    fn faults(
        &mut self,
        machine: &mut Machine<'_>,
        to: Visibility,
        populated: bool,
    ) -> Result<(), Failure> {
        const PAGES: u64 = 32;

        let pages = machine.fresh(PAGES)?;
        machine.convert(&pages, to, Content::None)?;
        if populated {
            machine.populate(&pages)?;
        }
        let before = machine.faults()?.unwrap_or(0);
        machine.guest_fill(&pages, 1)?;
        let faults = machine.faults()?.unwrap_or(0) - before;
        let good = faults == if populated { 0 } else { PAGES };
        self.check(good);
        println!(
            "{PAGES} {to} pages{}: {faults} faults: {}",
            if populated {
                " after KVM_MAP_MEMORY"
            } else {
                ""
            },
            if good { "ok" } else { "MISMATCH" }
        );
        Ok(())
    }

    fn show(&mut self, rows: &[Row]) {
        for row in rows {
            println!("{row}");
            self.rows += 1;
            self.wrong_rows += usize::from(!row.faults.is_empty());
        }
    }

    fn conclude(self) -> Result<(), Failure> {
        let Self {
            rows,
            wrong_rows,
            wrong_checks,
        } = self;
        if wrong_rows + wrong_checks == 0 {
            println!("\ngmem-demo: {rows} rows, 0 mismatches: every promise was kept");
            return Ok(());
        }
        Err(Failure::Broken(format!(
            "{rows} rows, {wrong_rows} mismatches; {wrong_checks} capabilities or counts wrong"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mismatch_is_a_failure() {
        assert!(Tally::default().conclude().is_ok());
        let rows = Tally {
            rows: 5,
            wrong_rows: 1,
            ..Default::default()
        };
        assert!(rows.conclude().is_err());
        let mut check = Tally::default();
        check.check(true);
        check.check(false);
        assert!(check.conclude().is_err());
    }

    #[test]
    fn what_is_missing_is_named() {
        let nothing = Capabilities {
            create_flags: CreateFlags::NONE,
            converts_in_place: false,
            before_launch: PolicySupport::default(),
            after_launch: PolicySupport::default(),
            reads_attributes: false,
        };
        let both = CreateFlags::MMAP | CreateFlags::INIT_SHARED;
        let converts = Capabilities {
            converts_in_place: true,
            ..nothing
        };
        let mappable = Capabilities {
            create_flags: CreateFlags::MMAP,
            ..converts
        };
        let shared = Capabilities {
            create_flags: both,
            ..converts
        };
        let enough = Capabilities {
            reads_attributes: true,
            ..shared
        };
        for (capabilities, missing) in [
            (nothing, "252"),
            (converts, "FLAG_MMAP"),
            (mappable, "FLAG_INIT_SHARED"),
            (shared, "0x10002"),
        ] {
            match need_conversion(&capabilities) {
                Err(Failure::Unavailable(why)) => {
                    assert!(why.contains(missing), "{why}");
                    assert!(why.contains("make demo"), "{why}");
                }
                _ => panic!("{missing} is not missed"),
            }
        }
        assert!(need_conversion(&enough).is_ok());
    }
}
