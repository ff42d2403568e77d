// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Software models of confidential platforms, for the development of VMMs.
//!
//! A kernel with `CONFIG_KVM_GMEM_EMULATION` can give a software-protected VM the behaviour of SNP
//! or TDX: the launch, the contents that the other side sees, the errors. A kernel with
//! `CONFIG_KVM_SNP_SIMULATION` has SNP VMs on simulated hardware, which are made and launched as on
//! real hardware. None of this protects a guest.

use crate::{
    abi::{
        self,
        Emulate, //
    },
    kvm, //
};
use std::{
    io,
    ops::Range,
    os::fd::{
        AsRawFd,
        OwnedFd, //
    },
};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

/// A platform that can be emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx {
        /// Whether a page reads as zeroes when it has been removed from the guest.
        removal_zeroes: bool,
    },
    /// Intel TDX under KVM's mirrored page table. Bit 39 of an address selects shared
    /// memory, also for the guest's code and page tables. The launch needs a vCPU.
    MirroredTdx,
}

impl Platform {
    fn number(self) -> u64 {
        match self {
            Self::Snp => abi::KVM_GMEM_EMULATE_SNP,
            Self::Tdx { .. } => abi::KVM_GMEM_EMULATE_TDX,
            Self::MirroredTdx => abi::KVM_GMEM_EMULATE_TDX_MIRROR,
        }
    }

    fn flags(self) -> u64 {
        match self {
            Self::Tdx {
                removal_zeroes: true,
            } => abi::KVM_GMEM_EMULATE_REMOVE_ZEROES,
            _ => 0,
        }
    }

    /// Whether `asked`, the descriptor of `/dev/kvm` or a VM, has a model of this platform.
    pub fn is_emulated(self, asked: &impl AsRawFd) -> bool {
        kvm::check_extension(asked, abi::KVM_CAP_GMEM_EMULATION) & 1 << self.number() != 0
    }
}

/// What kind of page is given to the guest at launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// One with contents.
    Normal,
    /// A page of zeroes. SNP only.
    Zero,
    /// The CPUID table. SNP only.
    Cpuid,
}

/// A VM that emulates a platform. It has a descriptor of its own for the VM.
#[derive(Debug)]
pub struct Emulation {
    vm: OwnedFd,
    platform: Platform,
}

impl Emulation {
    /// Makes `vm`, the descriptor of a VM, emulate `platform`. It must not have a guest_memfd, a
    /// memslot or a vCPU yet.
    ///
    /// # Errors
    ///
    /// Those of `KVM_ENABLE_CAP` for `KVM_CAP_GMEM_EMULATION` (`<linux/kvm_gmem.h>`); `EINVAL` from a
    /// kernel without models.
    pub fn enable(vm: &impl AsRawFd, platform: Platform) -> io::Result<Self> {
        let vm = kvm::duplicate(vm)?;
        let args = [platform.number(), platform.flags(), 0, 0];
        kvm::enable_cap(&vm, abi::KVM_CAP_GMEM_EMULATION as u32, args)?;
        Ok(Self { vm, platform })
    }

    /// What is emulated.
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// Gives private pages to the guest, with their own contents.
    ///
    /// # Errors
    ///
    /// Some pages may have been given to the guest then; the range becomes the rest.
    pub fn add_in_place(
        &self,
        page: Page,
        guest: Range<u64>,
    ) -> Result<(), (io::Error, Range<u64>)> {
        let mut operation = update(self.platform, page, &guest);
        while operation.size != 0 {
            let before = operation;
            if let Err(error) = operate(&self.vm, &mut operation) {
                let rest = operation.gpa..guest.end;
                return Err((error, rest));
            }
            // Without progress this would not end.
            if operation == before {
                return Err((io::ErrorKind::WriteZero.into(), guest));
            }
        }
        Ok(())
    }

    /// Ends the launch: from here on the guest runs.
    ///
    /// # Errors
    ///
    /// Those of `KVM_GMEM_EMULATE_OP_LAUNCH_FINISH` (`<linux/kvm_gmem.h>`).
    pub fn finish_launch(&self) -> io::Result<()> {
        let mut operation = Emulate {
            op: abi::KVM_GMEM_EMULATE_OP_LAUNCH_FINISH,
            ..Default::default()
        };
        operate(&self.vm, &mut operation)
    }

    /// Whether the platform owns the page at the guest physical address `gpa`.
    ///
    /// # Errors
    ///
    /// Those of `KVM_GMEM_EMULATE_OP_QUERY` (`<linux/kvm_gmem.h>`).
    pub fn is_owned(&self, gpa: u64) -> io::Result<bool> {
        let page = query(&self.vm, gpa)?;
        Ok(page.value[0] != abi::KVM_GMEM_EMULATE_STATE_NONE)
    }
}

/// The platform's state of the page at the guest physical address `gpa` of `vm`.
fn query(vm: &impl AsRawFd, gpa: u64) -> io::Result<Emulate> {
    let mut operation = Emulate {
        op: abi::KVM_GMEM_EMULATE_OP_QUERY,
        gpa,
        ..Default::default()
    };
    operate(vm, &mut operation)?;
    Ok(operation)
}

fn operate(vm: &impl AsRawFd, operation: &mut Emulate) -> io::Result<()> {
    // SAFETY: The ioctl reads and writes only the struct behind the reference, whose size is in
    // the number. Without a source it touches no other memory of ours.
    match unsafe { ioctl_with_mut_ref(vm, abi::KVM_GMEM_EMULATE, operation) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn update(platform: Platform, page: Page, guest: &Range<u64>) -> Emulate {
    Emulate {
        op: abi::KVM_GMEM_EMULATE_OP_LAUNCH_UPDATE,
        page_type: match (platform, page) {
            // There all pages are alike.
            (Platform::Tdx { .. } | Platform::MirroredTdx, Page::Normal) => 0,
            (_, Page::Normal) => abi::KVM_GMEM_EMULATE_PAGE_NORMAL,
            (_, Page::Zero) => abi::KVM_GMEM_EMULATE_PAGE_ZERO,
            (_, Page::Cpuid) => abi::KVM_GMEM_EMULATE_PAGE_CPUID,
        },
        gpa: guest.start,
        size: guest.end.saturating_sub(guest.start),
        ..Default::default()
    }
}

/// The key of a platform that encrypts: each aligned word is XORed with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The key of the models.
    pub const MODEL: Self = Self(abi::KVM_GMEM_EMULATION_KEY);

    /// The key of `vm`, the descriptor of an SNP VM on simulated hardware, which has memory of a
    /// guest_memfd at the guest physical address `gpa`. Another guest has another key.
    ///
    /// # Errors
    ///
    /// Those of `KVM_GMEM_EMULATE_OP_QUERY` (`<linux/kvm_gmem.h>`).
    pub fn of_simulated_snp(vm: &impl AsRawFd, gpa: u64) -> io::Result<Self> {
        let page = query(vm, gpa)?;
        Ok(Self::of_asid(page.value[2]))
    }

    /// The simulation rotates the models' key by the ASID.
    fn of_asid(asid: u64) -> Self {
        Self(Self::MODEL.0.rotate_left((asid % 64) as u32))
    }

    /// The bytes that the other side reads for `bytes`, which begin at a multiple of 8.
    ///
    /// It is its own inverse.
    pub fn apply(self, bytes: &[u8]) -> Vec<u8> {
        let byte = |(byte, key): (&u8, u8)| byte ^ key;
        bytes
            .iter()
            .zip(self.0.to_le_bytes().into_iter().cycle())
            .map(byte)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TDX: Platform = Platform::Tdx {
        removal_zeroes: false,
    };

    #[test]
    fn bytes_through_a_key_are_reversible_garbage() {
        let bytes: Vec<u8> = (0..=255).collect();
        let seen = Key::MODEL.apply(&bytes);
        assert!(bytes.iter().zip(&seen).all(|(a, b)| a != b));
        assert_eq!(Key::MODEL.apply(&seen), bytes);
        // Each aligned word, not a stream.
        let zeroes = Key::MODEL.apply(&[0; 16]);
        assert_eq!(zeroes[..8], zeroes[8..]);
        assert_eq!(zeroes[..8], abi::KVM_GMEM_EMULATION_KEY.to_le_bytes());
    }

    #[test]
    fn guests_of_the_simulation_have_keys_of_their_own() {
        assert_eq!(Key::of_asid(0), Key::MODEL);
        assert_eq!(Key::of_asid(1).0, 0xd6ec_dabe_ceda_cada);
        assert_ne!(Key::of_asid(1), Key::of_asid(7));
    }

    #[test]
    fn platforms_have_numbers_and_flags() {
        let zeroes = Platform::Tdx {
            removal_zeroes: true,
        };
        assert_eq!((Platform::Snp.number(), Platform::Snp.flags()), (1, 0));
        assert_eq!((TDX.number(), TDX.flags()), (2, 0));
        assert_eq!((zeroes.number(), zeroes.flags()), (2, 1));
        let mirrored = Platform::MirroredTdx;
        assert_eq!((mirrored.number(), mirrored.flags()), (3, 0));
    }

    #[test]
    fn in_place_has_no_source() {
        let operation = update(Platform::Snp, Page::Normal, &(0x1000..0x3000));
        assert_eq!(operation.op, 1);
        assert_eq!(operation.page_type, 1);
        assert_eq!(
            (operation.gpa, operation.size, operation.uaddr),
            (0x1000, 0x2000, 0)
        );
        for platform in [TDX, Platform::MirroredTdx] {
            assert_eq!(update(platform, Page::Normal, &(0..0)).page_type, 0);
        }
        // TDX has no such pages; the kernel returns the error.
        assert_eq!(update(TDX, Page::Cpuid, &(0..0)).page_type, 6);
    }
}
