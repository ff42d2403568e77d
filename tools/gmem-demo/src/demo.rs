// SPDX-License-Identifier: GPL-2.0

//! Checks the requirements of the demonstration, runs it, and counts.

use crate::{
    contract::{
        self,
        Platform,
        Scramble,
        REAL,
        SIMULATED, //
    },
    grid,
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
    Capabilities,
    Content,
    Feature,
    PolicySupport,
    Visibility, //
};
use kvm_ioctls::{
    Kvm,
    VmFd, //
};
use std::{
    ffi::OsString,
    fs,
    path::{
        Path,
        PathBuf, //
    },
};

/// How to get a suitable kernel.
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
    if let Err(missing) = Capabilities::of(&kvm).require(&[Feature::ExitMapGpaRange]) {
        return unavailable(format!(
            "{missing}: on arm64 KVM has to be booted with kvm-arm.mode=protected"
        ));
    }
    Ok(kvm)
}

fn create_vm(kvm: &Kvm, platform: &Platform) -> Result<VmFd, Failure> {
    kvm.create_vm_with_type(contract::vm_type(platform))
        .map_err(|error| Failure::Broken(format!("creating a VM for {}: {error}", platform.name)))
}

fn need(capabilities: &Capabilities, features: &[Feature]) -> Result<(), Failure> {
    match capabilities.require(features) {
        Ok(()) => Ok(()),
        Err(missing) => unavailable(format!("{missing}: {GET_KERNEL}")),
    }
}

fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or("unknown".into(), |release| release.trim().into())
}

/// Draws the file of `machine` into a directory, if one was given.
fn draw(machine: &Machine, directory: Option<&Path>, when: &str) -> Result<(), Failure> {
    let Some(directory) = directory else {
        return Ok(());
    };
    let path = directory.join(format!("{when}.svg"));
    fs::write(&path, machine.picture(when)?)
        .map_err(|error| Failure::Broken(format!("writing {}: {error}", path.display())))
}

/// How to show everything.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// A row for each request instead of grids.
    rows: bool,
    colour: bool,
    /// The directory for drawings of the file before, during and after that.
    pictures: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments of the program.
    pub fn parse(arguments: &[OsString]) -> Option<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.to_str()? {
                "--rows" => options.rows = true,
                "--colour" => options.colour = true,
                "--pictures" => options.pictures = Some(arguments.next()?.into()),
                _ => return None,
            }
        }
        Some(options)
    }
}

/// Shows everything.
pub fn all(options: &Options) -> Result<(), Failure> {
    let pictures = options.pictures.as_deref();
    let kvm = open_kvm()?;
    if let Some(why) = contract::missing(&kvm, &REAL) {
        return unavailable(why);
    }
    let vm = create_vm(&kvm, &REAL)?;
    let capabilities = Capabilities::of(&vm);
    need(
        &capabilities,
        &[
            Feature::InPlace,
            Feature::Mmap,
            Feature::InitShared,
            Feature::ReadAttributes,
        ],
    )?;
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
    let mut tally = Tally {
        as_rows: options.rows,
        colour: options.colour,
        ..Tally::default()
    };
    tally.capabilities(&REAL, &capabilities);

    let mut machine = Machine::new(&kvm, vm, &REAL)?;
    if !machine.starts_shared()? {
        return Err(Failure::Broken(
            "a file made with INIT_SHARED does not start shared".into(),
        ));
    }
    draw(&machine, pictures, "before")?;
    let early_payload = Payload::before(&mut machine, Phase::BeforeLaunch)?;
    let early_policies = Policies::before(&mut machine, Phase::BeforeLaunch)?;

    // From here on the guest runs: its first step is the launch.
    machine.start()?;
    println!("\n1. Payload injection");
    let mut rows = early_payload.after(&mut machine, scramble)?.to_vec();
    let late_payload = Payload::before(&mut machine, Phase::AfterLaunch)?;
    rows.extend(late_payload.after(&mut machine, scramble)?);
    tally.show(&rows);

    println!("\n2. Bounce buffer, at the guest's request");
    tally.show(&bounce_buffer(&mut machine, scramble)?);

    println!("\n3. Every policy");
    if !options.rows {
        println!("{}\n", grid::LEGEND);
    }
    let mut rows = early_policies.after(&mut machine, scramble)?;
    let late_policies = Policies::before(&mut machine, Phase::AfterLaunch)?;
    draw(&machine, pictures, "during")?;
    rows.extend(late_policies.after(&mut machine, scramble)?);
    draw(&machine, pictures, "after")?;
    tally.show_policies(&machine, &rows)?;

    let mut number = 3;
    let mut section = |title: &str| {
        number += 1;
        println!("\n{number}. {title}");
    };
    if REAL.guest_shares {
        section("Pages that the guest has not shared");
        tally.show(&consent(&mut machine, scramble)?);
    }

    section("Page tables ahead of time: pages that the guest touches first, and its faults");
    if let Err(missing) = capabilities.require(&[Feature::MapMemory]) {
        println!("not shown: {missing}");
    } else if machine.faults()?.is_none() {
        println!("not shown: KVM does not count faults here (pf_taken)");
    } else {
        for to in [Visibility::Private, Visibility::Shared] {
            for populated in [false, true] {
                tally.faults(&mut machine, to, populated)?;
            }
        }
    }

    for platform in &SIMULATED {
        section(platform.name);
        match contract::missing(&kvm, platform) {
            Some(why) => println!("not shown: {why}"),
            None => simulated(&kvm, platform, scramble, &mut tally)?,
        }
    }
    tally.conclude()
}

/// Shows a platform on simulated hardware: a payload that the launch gives to the guest,
/// and every policy.
fn simulated(
    kvm: &Kvm,
    platform: &'static Platform,
    scramble: Scramble,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let mut machine = Machine::new(kvm, create_vm(kvm, platform)?, platform)?;
    tally.capabilities(platform, &Capabilities::of(machine.vm()));

    let payload = Payload::before(&mut machine, Phase::BeforeLaunch)?;
    let early = Policies::before(&mut machine, Phase::BeforeLaunch)?;
    machine.launch()?;
    let payload = payload.after(&mut machine, scramble)?;
    let mut rows = early.after(&mut machine, scramble)?;
    let late = Policies::before(&mut machine, Phase::AfterLaunch)?;
    rows.extend(late.after(&mut machine, scramble)?);
    println!("payload:");
    tally.show(&payload);
    println!("every policy:");
    tally.show_policies(&machine, &rows)
}

/// Shows that the guest itself works, on a VM without private memory.
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
    let flags = [Feature::Mmap, Feature::InitShared];
    need(&Capabilities::of(&vm), &flags)?;

    let mut machine = Machine::new(&kvm, vm, &REAL)?;
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
    /// Whether each row is shown.
    as_rows: bool,
    colour: bool,
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

    /// Lets the guest write to fresh pages, mapped ahead or not, and counts faults.
    fn faults(
        &mut self,
        machine: &mut Machine,
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

    /// Counts rows, and returns how many of them are wrong.
    fn count(&mut self, rows: &[Row]) -> usize {
        let wrong = rows.iter().filter(|row| !row.faults.is_empty()).count();
        self.rows += rows.len();
        self.wrong_rows += wrong;
        wrong
    }

    /// Shows the rows of a scene, or the number of correct rows and all wrong ones.
    fn show(&mut self, rows: &[Row]) {
        let wrong = self.count(rows);
        let shown: Vec<_> = rows
            .iter()
            .filter(|row| self.as_rows || !row.faults.is_empty())
            .collect();
        if !shown.is_empty() {
            println!("{Heading}");
        }
        for row in shown {
            println!("{row}");
        }
        if !self.as_rows {
            println!(
                "{} of {} requests as promised",
                rows.len() - wrong,
                rows.len()
            );
        }
    }

    /// Shows every policy of a platform as rows, or as a grid with the file beside it.
    fn show_policies(&mut self, machine: &Machine, rows: &[Row]) -> Result<(), Failure> {
        if self.as_rows {
            self.show(rows);
            return Ok(());
        }
        self.count(rows);
        print!(
            "{}\n{}",
            grid::draw(machine.platform().name, rows, self.colour),
            machine.sketch(self.colour)?
        );
        Ok(())
    }

    fn conclude(self) -> Result<(), Failure> {
        let Self {
            rows,
            wrong_rows,
            wrong_checks,
            ..
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
    fn options_are_read() {
        let parse = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(OsString::from).collect();
            Options::parse(&words)
        };
        assert_eq!(parse(&[]), Some(Options::default()));
        let all = parse(&["--colour", "--pictures", "there", "--rows"]).unwrap();
        assert!(all.rows && all.colour);
        assert_eq!(all.pictures.as_deref(), Some(Path::new("there")));
        assert_eq!(parse(&["--pictures"]), None);
        assert_eq!(parse(&["--row"]), None);
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        match need(&Capabilities::default(), &[Feature::Mmap]) {
            Err(Failure::Unavailable(why)) => {
                assert!(why.contains("GUEST_MEMFD_FLAG_MMAP"), "{why}");
                assert!(why.contains("make demo"), "{why}");
            }
            _ => panic!("the flag is not missed"),
        }
        assert!(need(&Capabilities::default(), &[]).is_ok());
    }
}
