/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Common code of the tests of in-place conversion on SW_PROTECTED VMs: one VM, one
 * file and helpers.
 */
#ifndef SELFTEST_KVM_GMEM_CONVERSION_H
#define SELFTEST_KVM_GMEM_CONVERSION_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gmem_test.h"
#include "kvm_test_harness.h"

/* Emulated CPUs under sanitisers are slow; this only bounds a hang. */
#define GMEM_TIMEOUT	600

#define NR_PAGES	16
#define PS		((u64)PAGE_SIZE)

/* Whether files without flags convert in place too (a module parameter). */
static inline bool host_wide_mode(void)
{
	return get_kvm_param_bool("gmem_in_place_conversion");
}

FIXTURE(gmem)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct gmem_area a;
};

FIXTURE_SETUP(gmem)
{
	self->vm = gmem_vm_create(1, 1024, &self->vcpu);
	gmem_area_create(&self->a, self->vm, GMEM_SLOT, GMEM_GPA, NR_PAGES * PS,
			 GMEM_MMAP_SHARED);
}

/* A test that has destroyed the area itself sets fd to -1. */
FIXTURE_TEARDOWN(gmem)
{
	if (self->a.fd >= 0)
		gmem_area_destroy(&self->a);
	kvm_vm_free(self->vm);
}

#define GMEM_TEST(name) TEST_F_TIMEOUT(gmem, name, GMEM_TIMEOUT)

/* Every page holds the same seed, converted back and forth around it. */
static inline void fill_area(struct gmem_area *a, u32 pattern)
{
	gmem_fill(a->hva, a->size, pattern, 0);
}

/* The request fails with @want, writes no error_offset, and changes nothing. */
#define assert_refused(a, off, len, attr, policy, want)			\
do {										\
	u64 __eo2;								\
	int __r2 = gmem_set_once((a)->fd, off, len, attr, policy, &__eo2);	\
										\
	TEST_ASSERT(__r2 == (want),						\
		    "[%#lx, +%#lx) attributes %#lx flags %#lx: errno %d (%s), wanted %d (%s)", \
		    (u64)(off), (u64)(len), (u64)(attr), (u64)(policy), __r2,	\
		    strerror(__r2), (want), strerror(want));			\
	TEST_ASSERT(__eo2 == GMEM_POISON_OFFSET,				\
		    "error_offset was written: %#lx", __eo2);			\
} while (0)

static inline u32 count_runs(int fd, u64 size)
{
	u64 offset, attributes, run, last = ~0ULL;
	u32 nr = 0;
	int r;

	for (offset = 0; offset < size; offset += run) {
		r = gmem_get(fd, offset, &attributes, &run);
		TEST_ASSERT(!r, "GET at %#lx: errno %d (%s)", offset, r, strerror(r));
		TEST_ASSERT(run && offset + run <= size,
			    "GET at %#lx: size %#lx", offset, run);
		TEST_ASSERT(attributes != last,
			    "GET split a run at %#lx", offset);
		last = attributes;
		nr++;
	}
	TEST_ASSERT_EQ(offset, size);
	return nr;
}

#define assert_memory_fault(vcpu, r, _gpa)					\
do {										\
	TEST_ASSERT((r) == -EFAULT, "KVM_RUN gives %d", r);			\
	TEST_ASSERT_EQ((vcpu)->run->exit_reason, KVM_EXIT_MEMORY_FAULT);	\
	TEST_ASSERT_EQ((vcpu)->run->memory_fault.gpa, _gpa);			\
	TEST_ASSERT_EQ((vcpu)->run->memory_fault.size, PS);			\
} while (0)

#endif /* SELFTEST_KVM_GMEM_CONVERSION_H */
