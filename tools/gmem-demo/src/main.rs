// SPDX-License-Identifier: GPL-2.0

//! A minimal VMM that shows guest_memfd's in-place conversion with a running guest.

mod contract;
mod demo;
mod grid;
mod guest;
mod machine;
mod scenes;
mod stats;
mod table;

use std::process::ExitCode;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("its guest is code for x86-64 or arm64");

/// Why the demonstration failed.
enum Failure {
    /// It cannot run here. The text says why, and what to do about it.
    Unavailable(String),
    /// It has run, and something is wrong.
    Broken(String),
}

const HELP: &str = "\
gmem-demo: converts the memory of a running guest in place, and checks every byte

usage: gmem-demo [--rows] [--colour] [--pictures DIRECTORY]
       gmem-demo --guest-only | --help

It makes a VM whose memory is one guest_memfd, runs a small guest in it, and shows
  1. payload injection: the host writes code, makes the page private, the guest runs it;
  2. a bounce buffer: the guest asks by hypercall (KVM_HC_MAP_GPA_RANGE) for its private buffer to
     become shared and private again, with the bytes staying where they are;
  3. every content policy, in both directions and where nothing has to change, for pages that were
     written to and pages that were not, before and after launch.
The VM is a software-protected one on x86-64, and a protected one on arm64, where the kernel has to
be booted with kvm-arm.mode=protected. There the guest itself shares what is to become shared; a
fourth section shows what the VMM gets if it has not: EPERM.
On an x86-64 kernel with CONFIG_KVM_SNP_SIMULATION it shows the same for SNP under KVM's own code for
it, and with CONFIG_KVM_GMEM_EMULATION for TDX under KVM's mirrored page table, on simulated hardware:
a payload that the launch gives to the guest, and every policy. The guest there says by each access
which kind of memory it means. What it or the host reads through the other's key is garbage that can
be told (\"through key\").
Every policy is shown in a grid for each platform, phase and direction down, policy and state across.
A cell says what host and guest read after the request; what is odd is explained below. All bytes of
the range are compared with what was promised; so is the page behind it, which the request must leave
alone.

  --rows        a row for each request, with what was promised, in the place of the grids
  --colour      use colours
  --pictures DIRECTORY
                draw the VM's file there as before.svg, during.svg and after.svg
  --guest-only  x86-64: run the same guest on an ordinary VM without converting anything: tells a broken
                nested virtualisation from a broken guest_memfd
  --help        this text

exit status: 0 every promise was kept, 1 some was not or the guest failed, 2 it cannot run here";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let given = match arguments.as_slice() {
        [only] if only == "--guest-only" => demo::guest_only(),
        [only] if only == "--help" || only == "-h" => {
            println!("{HELP}");
            Ok(())
        }
        options => match demo::Options::parse(options) {
            Some(options) => demo::all(&options),
            None => Err(Failure::Unavailable(
                "unknown arguments; gmem-demo --help shows what there is".into(),
            )),
        },
    };
    match given {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Broken(why)) => {
            println!("gmem-demo: FAILED: {why}");
            ExitCode::from(1)
        }
        Err(Failure::Unavailable(why)) => {
            eprintln!("gmem-demo: {why}");
            ExitCode::from(2)
        }
    }
}
