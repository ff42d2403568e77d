// SPDX-License-Identifier: GPL-2.0

//! The launch of an SNP guest, by commands to the firmware.
//!
//! See `Documentation/virt/kvm/x86/amd-memory-encryption.rst` of the kernel.

use super::PAGE;
use kvm_bindings::{
    kvm_sev_cmd,
    kvm_sev_init,
    kvm_sev_snp_launch_finish,
    kvm_sev_snp_launch_start,
    kvm_sev_snp_launch_update,
    sev_cmd_id,
    sev_cmd_id_KVM_SEV_INIT2,
    sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH,
    sev_cmd_id_KVM_SEV_SNP_LAUNCH_START,
    sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE,
    KVM_SEV_SNP_PAGE_TYPE_NORMAL, //
};
use kvm_ioctls::VmFd;
use std::{
    fs::File,
    ops::Range,
    os::fd::AsRawFd, //
};

/// The policy of the guest: a bit that has to be set, and the permission to run with more than one
/// thread per core.
const POLICY: u64 = 1 << 17 | 1 << 16;

/// The firmware, which a launch needs.
pub struct Firmware(File);

impl Firmware {
    /// Makes `vm` an SNP guest without memory, and begins its launch.
    pub fn start(vm: &VmFd) -> Result<Self, String> {
        let path = "/dev/sev";
        let device = File::open(path).map_err(|error| format!("opening {path}: {error}"))?;
        let firmware = Self(device);
        firmware.command(vm, sev_cmd_id_KVM_SEV_INIT2, &mut kvm_sev_init::default())?;
        let mut start = kvm_sev_snp_launch_start {
            policy: POLICY,
            ..Default::default()
        };
        firmware.command(vm, sev_cmd_id_KVM_SEV_SNP_LAUNCH_START, &mut start)?;
        Ok(firmware)
    }

    /// Gives private pages to the guest, with their contents.
    pub fn update(&self, vm: &VmFd, range: Range<u64>) -> Result<(), String> {
        let mut update = kvm_sev_snp_launch_update {
            gfn_start: range.start / PAGE,
            len: range.end - range.start,
            type_: KVM_SEV_SNP_PAGE_TYPE_NORMAL as u8,
            ..Default::default()
        };
        while update.len != 0 {
            let before = update.len;
            self.command(vm, sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE, &mut update)?;
            if update.len == before {
                return Err(format!("KVM gets nowhere, {before:#x} bytes left"));
            }
        }
        Ok(())
    }

    /// Measures the state of the vCPUs and ends the launch.
    pub fn finish(&self, vm: &VmFd) -> Result<(), String> {
        let mut finish = kvm_sev_snp_launch_finish::default();
        self.command(vm, sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH, &mut finish)
    }

    fn command<T>(&self, vm: &VmFd, id: sev_cmd_id, data: &mut T) -> Result<(), String> {
        let mut command = kvm_sev_cmd {
            id,
            data: std::ptr::from_mut(data) as u64,
            sev_fd: self.0.as_raw_fd() as u32,
            ..Default::default()
        };
        vm.encrypt_op_sev(&mut command).map_err(|error| {
            format!(
                "command {id}: {error}, the firmware says {:#x}",
                command.error
            )
        })
    }
}
