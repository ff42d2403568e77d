/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of emulated platforms share.
 */
#ifndef SELFTEST_KVM_GMEM_EMULATED_H
#define SELFTEST_KVM_GMEM_EMULATED_H

#include "gmem_platform.h"

/* --- One VM, one file -------------------------------------------------------- */

static inline u8 *ctx_hva(struct ctx *x, u64 page)
{
	return x->a.hva + OFF(page);
}

/* What LAUNCH_UPDATE wants as the type of a page with contents. */
static inline u32 normal_type(struct ctx *x)
{
	return x->platform == SNP ? KVM_GMEM_EMULATE_PAGE_NORMAL : 0;
}

static inline int add(struct ctx *x, u64 page, u64 n, const void *source, u64 *done)
{
	u64 bytes;
	int r;

	r = gmem_launch_update(x->vm, normal_type(x), page_gpa(x, page), OFF(n), source,
			       &bytes);
	if (done)
		*done = bytes / PG;
	return r;
}

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
