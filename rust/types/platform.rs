// SPDX-License-Identifier: GPL-2.0

//! The platforms that keep private memory private.

/// What implements a platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// The machine's hardware.
    Hardware,
    /// A software model.
    Model,
    /// A test.
    Test,
}

/// What keeps the private memory of a VM private, and what implements that.
///
/// It is determined when a file is created, and kept with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// KVM's own page tables alone: `KVM_X86_SW_PROTECTED_VM`, on which the rest is tested.
    SwProtected,
    /// AMD SEV-SNP: pages of the guest are encrypted, and assigned to it in the RMP.
    Snp(Base),
    /// Intel TDX: pages of the guest are encrypted, and in its S-EPT, which the TDX module keeps.
    Tdx(Base),
    /// pKVM on arm64: EL2's page tables, which the host cannot access, say which pages the guest
    /// owns. The guest itself shares pages with the host, and takes them back.
    Pkvm,
}

impl Platform {
    /// All platforms, on hardware.
    pub const ALL: &'static [Self] = &[
        Self::SwProtected,
        Self::Snp(Base::Hardware),
        Self::Tdx(Base::Hardware),
        Self::Pkvm,
    ];

    /// Returns what implements the platform.
    pub const fn base(self) -> Base {
        match self {
            Self::Snp(base) | Self::Tdx(base) => base,
            Self::SwProtected | Self::Pkvm => Base::Hardware,
        }
    }

    /// Whether pages can belong to the platform, so that the host may not write them. They are given
    /// to it by guest faults.
    #[inline]
    pub const fn owns_pages(self) -> bool {
        match self {
            Self::SwProtected => false,
            Self::Snp(_) | Self::Tdx(_) | Self::Pkvm => true,
        }
    }

    /// Whether the platform can be given many pages at once, and a guest maps them at once then.
    /// Others are given pages one by one.
    #[inline]
    pub const fn takes_blocks(self) -> bool {
        match self {
            Self::Snp(_) => true,
            Self::SwProtected | Self::Tdx(_) | Self::Pkvm => false,
        }
    }

    /// Whether a hypervisor above the host owns the private pages, and shares them or takes them
    /// back at the guest's request. So the host can lose a page between the check that it owns the
    /// page and the write, and only the hypervisor can write such pages safely.
    #[inline]
    pub const fn guest_decides(self) -> bool {
        match self {
            Self::Pkvm => true,
            Self::SwProtected | Self::Snp(_) | Self::Tdx(_) => false,
        }
    }

    /// Whether the platform moves pages that it owns to other memory, when it is asked to. Where there
    /// is an S-EPT, it says so itself.
    #[inline]
    pub const fn moves_pages(self) -> bool {
        match self {
            Self::Snp(base) => matches!(base, Base::Hardware),
            Self::Pkvm => true,
            Self::SwProtected | Self::Tdx(_) => false,
        }
    }

    /// Returns what implements the S-EPT that has the private pages, if there is one.
    #[inline]
    pub const fn sept(self) -> Option<Base> {
        match self {
            Self::Tdx(base) => Some(base),
            Self::SwProtected | Self::Snp(_) | Self::Pkvm => None,
        }
    }

    /// Returns its name, as `fdinfo` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SwProtected => "sw-protected",
            Self::Snp(_) => "snp",
            Self::Tdx(_) => "tdx",
            Self::Pkvm => "pkvm",
        }
    }
}
