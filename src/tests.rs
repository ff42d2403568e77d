// SPDX-License-Identifier: GPL-2.0

//! KUnit: the checks of the policy crate, the same that run under cargo.

use gmem_policy::checks;
#[cfg(CONFIG_KVM_GMEM_EMULATION)]
use gmem_policy::emulation;
use kernel::prelude::*;

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
