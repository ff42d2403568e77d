/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Common code of the tests of platforms: the platforms, SW_PROTECTED and those that
 * the kernel emulates (CONFIG_KVM_GMEM_EMULATION), and one VM with one file.
 */
#ifndef SELFTEST_KVM_GMEM_PLATFORM_H
#define SELFTEST_KVM_GMEM_PLATFORM_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gmem_one_file.h"
#include "gmem_snp.h"
#include "kvm_test_harness.h"

/* Emulated CPUs under sanitisers are slow; this only bounds a hang. */
#define TIMEOUT		600

/* --- Platforms and phases ------------------------------------------------ */

enum platform {
	SW_PROTECTED,
	SNP,
	TDX,
	TDX_ZEROES,	/* removing a page zeroes it, as on some parts */
	TDX_MIRROR,	/* under KVM's mirrored page table */
	SNP_SIMULATED,	/* KVM's own code for SNP on simulated hardware */
	NR_PLATFORMS,
};

static const struct {
	const char *name;
	u32 model;
	u64 flags;
} platforms[NR_PLATFORMS] = {
	[SW_PROTECTED]	= { "SW_PROTECTED" },
	[SNP]		= { "SNP (emulated)", KVM_GMEM_EMULATE_SNP },
	[TDX]		= { "TDX (emulated)", KVM_GMEM_EMULATE_TDX },
	[TDX_ZEROES]	= { "TDX that zeroes (emulated)", KVM_GMEM_EMULATE_TDX,
			    KVM_GMEM_EMULATE_REMOVE_ZEROES },
	[TDX_MIRROR]	= { "TDX (mirror)", KVM_GMEM_EMULATE_TDX_MIRROR },
	[SNP_SIMULATED]	= { "SNP (sev.c)" },
};

static inline bool is_available(enum platform platform)
{
	if (platform == SNP_SIMULATED)
		return snp_is_simulated();
	return platform == SW_PROTECTED || gmem_emulates(platforms[platform].model);
}

static inline struct kvm_vm *create_vm(enum platform platform, u32 nr_vcpus, u64 pages,
				struct kvm_vcpu **vcpus)
{
	struct kvm_vm *vm;
	u32 status;
	int r;

	if (platform == SW_PROTECTED)
		return gmem_vm_create(nr_vcpus, pages, vcpus);
	if (platform == SNP_SIMULATED) {
		vm = snp_vm_create(nr_vcpus, pages, vcpus);
		r = snp_start(vm, &status);
		TEST_ASSERT(!r, "LAUNCH_START: errno %d (%s), status %#x", r, strerror(r), status);
		return vm;
	}
	return gmem_vm_create_emulated(platforms[platform].model,
				       platforms[platform].flags, nr_vcpus, pages,
				       vcpus);
}

/* SW_PROTECTED is launched by the first run, the others before it. */
static inline void launch(enum platform platform, struct kvm_vm *vm, struct kvm_vcpu **vcpus,
		   u32 nr_vcpus)
{
	u32 i;
	int r;

	if (platform == SNP_SIMULATED) {
		snp_launch(vm, vcpus, nr_vcpus);
		return;
	}
	if (platform != SW_PROTECTED) {
		r = gmem_launch_finish(vm);
		TEST_ASSERT(!r, "LAUNCH_FINISH: errno %d (%s)", r, strerror(r));
	}
	for (i = 0; i < nr_vcpus; i++)
		gmem_guest_start(vcpus[i]);
}

/* In-place memory of a VM on the platform. */
static inline void area_create(enum platform platform, struct gmem_area *a, struct kvm_vm *vm,
			       u64 size)
{
	if (platform == SNP_SIMULATED)
		snp_area_create(a, vm, size);
	else
		gmem_area_create(a, vm, GMEM_SLOT, GMEM_GPA, size, GMEM_MMAP_SHARED);
}

/* The launch gives the pages of the range to the guest, with their bytes. */
static inline int launch_in_place(enum platform platform, struct kvm_vm *vm, gpa_t gpa, u64 size)
{
	if (platform == SNP_SIMULATED)
		return snp_update(vm, KVM_SEV_SNP_PAGE_TYPE_NORMAL, gpa, size, NULL, NULL);
	return gmem_launch_update(vm, platform == SNP ? KVM_GMEM_EMULATE_PAGE_NORMAL : 0, gpa,
				  size, NULL, NULL);
}

/* --- The contract --------------------------------------------------------- */

static const u64 policies[] = { GMEM_PRESERVE, GMEM_ZERO, GMEM_NONE };
static const char * const policy_names[] = { "PRESERVE", "ZERO", "NONE" };
static const u64 directions[] = { GMEM_PRIVATE, GMEM_SHARED };

/* --- One VM, one file -------------------------------------------------------- */

struct ctx {
	enum platform platform;
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[2];
	struct gmem_area a;
};

static inline void ctx_create(struct ctx *x, enum platform platform, u64 npages)
{
	memset(x, 0, sizeof(*x));
	x->platform = platform;
	x->vm = create_vm(platform, ARRAY_SIZE(x->vcpus), npages, x->vcpus);
	area_create(platform, &x->a, x->vm, OFF(npages));
}

/* Also for a dead VM, whose slots are deleted with it. */
static inline void ctx_destroy(struct ctx *x)
{
	if (x->a.fd >= 0) {
		kvm_munmap(x->a.hva, x->a.size);
		kvm_close(x->a.fd);
	}
	kvm_vm_free(x->vm);
}

static inline void ctx_launch(struct ctx *x)
{
	launch(x->platform, x->vm, x->vcpus, ARRAY_SIZE(x->vcpus));
}

/* A request that is refused because of a page. */
#define refused(x, page, n, to, policy, want, want_page)			\
do {										\
	u64 __eo;								\
										\
	assert_errno(gmem_set((x)->a.fd, OFF(page), OFF(n), to, policy, &__eo), want); \
	TEST_ASSERT(__eo == OFF(want_page), "Wanted error_offset %#lx, got %#lx", \
		    OFF(want_page), __eo);					\
} while (0)

/* The platform owns all pages of the range, or none. */
#define ownership_is(x, page, n, want)						\
do {										\
	u64 __p;								\
										\
	for (__p = (page); __p < (page) + (n); __p++) {				\
		u64 __state = gmem_state((x)->vm, page_gpa(x, __p));		\
										\
		TEST_ASSERT((__state != KVM_GMEM_EMULATE_STATE_NONE) == (want),	\
			    "Page %lu is in state %lu of the model", __p, __state); \
	}									\
} while (0)

static inline u8 *ctx_hva(struct ctx *x, u64 page)
{
	return x->a.hva + OFF(page);
}

/* The type for LAUNCH_UPDATE of a page with contents. */
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

#define NR_PAGES	16

/* --- Capabilities ------------------------------------------------------------- */

#define capabilities_are(check, fd_or_vm, policies, attributes)			\
do {										\
	TEST_ASSERT_EQ(check(fd_or_vm 252), attributes);			\
	TEST_ASSERT_EQ(check(fd_or_vm 0x10000), policies);			\
	TEST_ASSERT_EQ(check(fd_or_vm 0x10001), policies);			\
	TEST_ASSERT_EQ(check(fd_or_vm 0x10002), 1);				\
} while (0)

#endif /* SELFTEST_KVM_GMEM_PLATFORM_H */
