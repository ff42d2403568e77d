/* SPDX-License-Identifier: GPL-2.0 */
/* A protected VM for each test, with and without exits of its hypercalls. */
#ifndef SELFTEST_KVM_GMEM_PKVM_FIXTURE_H
#define SELFTEST_KVM_GMEM_PKVM_FIXTURE_H

#include "kvm_test_harness.h"
#include "gmem_pkvm.h"

/* Seconds, after which a test counts as hung. The sanitised kernel is slow. */
#define TIMEOUT	300

FIXTURE(pvm) {
	struct pvm p;
};

FIXTURE_VARIANT(pvm) {
	bool exits;
};

FIXTURE_VARIANT_ADD(pvm, told) {
	.exits = true,
};

/* EL2 answers SHARE and UNSHARE without an exit. */
FIXTURE_VARIANT_ADD(pvm, untold) {
	.exits = false,
};

FIXTURE_SETUP(pvm)
{
	pvm_create(&self->p, GUEST_MEMFD_FLAG_MMAP, variant->exits);
}

FIXTURE_TEARDOWN(pvm)
{
	pvm_destroy(&self->p);
}

#define PVM_TEST(name)	TEST_F_TIMEOUT(pvm, name, TIMEOUT)

/* KVM_MAP_MEMORY: returns 0 or the errno, and how many pages are left. */
static inline int map_memory(struct cpu *c, u64 offset, u64 size, u64 *left)
{
	struct kvm_memory_mapping args = {
		.base_address = GMEM_GPA + offset,
		.size = size,
	};
	int r = gmem_ioctl(c->vcpu->fd, KVM_MAP_MEMORY, &args);

	*left = args.size / PG;
	return r;
}

#endif /* SELFTEST_KVM_GMEM_PKVM_FIXTURE_H */
