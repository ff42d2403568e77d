/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Common code of the tests of emulated platforms.
 */
#ifndef SELFTEST_KVM_GMEM_EMULATED_H
#define SELFTEST_KVM_GMEM_EMULATED_H

#include "gmem_platform.h"

FIXTURE(emulated)
{
	struct ctx x;
};

FIXTURE_VARIANT(emulated)
{
	enum platform platform;
};

FIXTURE_VARIANT_ADD(emulated, snp) { .platform = SNP };
FIXTURE_VARIANT_ADD(emulated, tdx) { .platform = TDX };
FIXTURE_VARIANT_ADD(emulated, tdx_that_zeroes) { .platform = TDX_ZEROES };
FIXTURE_VARIANT_ADD(emulated, tdx_mirror) { .platform = TDX_MIRROR };

FIXTURE_SETUP(emulated)
{
	if (!is_available(variant->platform))
		SKIP(return, GMEM_NO_EMULATION);
	ctx_create(&self->x, variant->platform, NR_PAGES);
}

FIXTURE_TEARDOWN(emulated)
{
	ctx_destroy(&self->x);
}

#define EMULATED_TEST(name)	TEST_F_TIMEOUT(emulated, name, TIMEOUT)

#endif /* SELFTEST_KVM_GMEM_EMULATED_H */
