// SPDX-License-Identifier: GPL-2.0

//! KUnit: the checks of the policy crate, the same that run under cargo; pages that stay.

use crate::Gmem;
#[cfg(CONFIG_KVM_GMEM_EMULATION)]
use gmem_policy::emulation;
use gmem_policy::{
    checks,
    request::Visibility, //
};
use gmem_sys::{
    kvm::platform::Kind,
    testing::{
        platform::TestRmp,
        TestFile,
        TestVm, //
    }, //
};
use kernel::prelude::*;

/// Files whose pages memory management would like to have back.
#[kunit_tests(kvm_gmem_page_cache)]
mod page_cache {
    use super::*;

    /// Where the guest sees the file.
    const BASE: u64 = 0x1000;
    const BYTE: u8 = 0x5a;

    /// What a guest or a platform writes, nobody hears of: neither is a mapping of the host.
    #[test]
    fn used_pages_cannot_be_dropped() -> Result {
        TestRmp::reset();
        let vm = TestVm::new()?;
        vm.put_on(Kind::Software, 0)?;

        for initial in [Visibility::Shared, Visibility::Private] {
            let Some(file) = TestFile::<Gmem>::new(&vm, 4, initial, BASE)? else {
                return Ok(());
            };
            file.guest_fault(BASE)?.fill(BYTE);
            if initial == Visibility::Shared {
                file.host_fault(1)?.fill(BYTE);
            } else {
                file.fill(1, BYTE)?;
            }
            file.populate(2, BYTE)?;
            // Nobody has used this one.
            file.allocate(3)?;

            assert_eq!(file.allocated(), 4);
            assert_eq!(file.drop_clean(), 1);
            assert_eq!(file.allocated(), 3);
            for at in 0..3 {
                assert_eq!(file.byte(at)?, Some(BYTE));
            }
        }
        Ok(())
    }
}

/// One test for each check.
macro_rules! suite {
    ($($name:ident,)*) => {
        /// Each is a function of [`checks`], which says what it is about.
        #[kunit_tests(kvm_gmem_policy)]
        mod policy {
            use super::*;

            $(
                #[test]
                fn $name() {
                    assert_eq!(checks::$name(), Ok(()));
                }
            )*
        }
    };
}

gmem_policy::for_each_check!(suite);

/// The same for the software models.
#[cfg(CONFIG_KVM_GMEM_EMULATION)]
macro_rules! emulation_suite {
    ($($name:ident,)*) => {
        /// Each is a function of [`emulation::checks`], which says what it is about.
        #[kunit_tests(kvm_gmem_emulation)]
        mod models {
            use super::*;

            $(
                #[test]
                fn $name() {
                    assert_eq!(emulation::checks::$name(), Ok(()));
                }
            )*
        }
    };
}

#[cfg(CONFIG_KVM_GMEM_EMULATION)]
gmem_policy::for_each_emulation_check!(emulation_suite);
