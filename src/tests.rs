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

            #[test]
            fn none_is_left_out() {
                assert_eq!(checks::ALL.len(), [$(stringify!($name),)*].len());
            }
        }
    };
}

suite! {
    page_size_has_limits,
    offsets_are_64_bits_wide,
    range_is_never_empty,
    range_arithmetic,
    clamp_stays_inside_the_request,
    geometry_checks_the_size,
    geometry_checks_the_range,
    content_flags,
    visibility_attributes,
    raw_request_words,
    request_order_of_checks,
    request_ignores_error_offset,
    query_order_of_checks,
    terms_of_sw_protected,
    capabilities_follow_the_terms,
    plan_nothing_to_do,
    plan_policy_without_a_change,
    plan_skips_what_is_settled,
    plan_merges_with_both_neighbours,
    plan_at_both_ends_of_the_file,
    query_walks_the_runs,
    senseless_map_ends_every_walk,
}
