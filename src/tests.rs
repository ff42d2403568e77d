// SPDX-License-Identifier: GPL-2.0

//! KUnit: the checks of the policy crate, which also run under cargo; pages that must stay in the
//! file, and pages that a hypervisor zeroes.

use crate::Gmem;
use gmem_policy::checks;
#[cfg(CONFIG_KVM_GMEM_EMULATION)]
use gmem_policy::emulation;
use gmem_sys::testing::{
    platform::{
        RmpOperation,
        TestRmp, //
    },
    TestFile,
    TestVm, //
};
use gmem_types::{
    platform::{
        Base,
        Platform, //
    },
    visibility::Visibility, //
};
use kernel::prelude::*;

/// Files whose pages memory management tries to drop.
#[kunit_tests(kvm_gmem_page_cache)]
mod page_cache {
    use super::*;

    /// Where the guest sees the file.
    const BASE: u64 = 0x1000;
    const BYTE: u8 = 0x5a;

    /// The kernel does not see writes of guests and platforms, as these are not mappings of the host.
    #[test]
    fn pages_cannot_be_dropped() -> Result {
        TestRmp::reset();
        let vm = TestVm::new()?;
        vm.put_on(Platform::SwProtected, 0)?;

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
            // This page is never used.
            file.allocate(3)?;

            assert_eq!(file.drop_clean(), 0);
            assert_eq!(file.allocated(), 4);
            for at in 0..3 {
                assert_eq!(file.byte(at)?, Some(BYTE));
            }
        }
        Ok(())
    }

    /// The platform cannot say whose a page is. The reference that would keep the page for ever would
    /// be lost, if the page were dropped.
    #[test]
    fn unused_pages_of_an_unknown_owner_cannot_be_dropped() -> Result {
        TestRmp::reset();
        let vm = TestVm::new()?;
        vm.put_on(Platform::Snp(Base::Test), 7)?;

        for initial in [Visibility::Shared, Visibility::Private] {
            let Some(file) = TestFile::<Gmem>::new(&vm, 2, initial, BASE)? else {
                return Ok(());
            };
            file.allocate(0)?;
            let page = file.page(1)?;
            TestRmp::fail(RmpOperation::Lookup, 0, u32::MAX);
            assert_eq!(file.drop_clean(), 0);
            assert_eq!(file.allocated(), 2);
            // A page that leaves the file in another way does keep it.
            drop(file);
            assert_eq!(page.references(), 2);
            TestRmp::fail(RmpOperation::Lookup, u32::MAX, 1);
        }
        Ok(())
    }
}

/// Pages that a hypervisor has to zero when it gives them to a guest.
#[cfg(CONFIG_HAVE_KVM_ARCH_GMEM_TAKE_BACK)]
#[kunit_tests(kvm_gmem_donation)]
mod donation {
    use super::*;

    const BASE: u64 = 0x1000;

    /// Unused pages, which the host has no means to write to.
    #[test]
    fn unused_pages_are_given_as_zeroes() -> Result {
        let vm = TestVm::new()?;
        vm.put_on(Platform::SwProtected, 0)?;

        let Some(file) = TestFile::<Gmem>::new(&vm, 2, Visibility::Private, BASE)? else {
            return Ok(());
        };
        file.allocate(1)?;
        for gfn in [BASE, BASE + 1] {
            assert!(file.guest_fault(gfn)?.is_zero_for_guests());
            // After an invalidation it is requested again.
            assert!(file.guest_fault(gfn)?.is_zero_for_guests());
        }
        Ok(())
    }

    /// A page that the host has mapped keeps its bytes.
    #[test]
    fn used_pages_are_given_as_they_are() -> Result {
        let vm = TestVm::new()?;
        vm.put_on(Platform::SwProtected, 0)?;

        let Some(file) = TestFile::<Gmem>::new(&vm, 2, Visibility::Shared, BASE)? else {
            return Ok(());
        };
        assert!(!file.host_fault(0)?.is_zero_for_guests());
        assert!(!file.guest_fault(BASE)?.is_zero_for_guests());
        // The other way round as well.
        assert!(file.guest_fault(BASE + 1)?.is_zero_for_guests());
        assert!(!file.host_fault(1)?.is_zero_for_guests());
        assert!(!file.guest_fault(BASE + 1)?.is_zero_for_guests());
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
