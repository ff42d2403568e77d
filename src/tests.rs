// SPDX-License-Identifier: GPL-2.0

//! KUnit: the checks of the policy crate, the same that run under cargo.

use gmem_policy::checks;
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
