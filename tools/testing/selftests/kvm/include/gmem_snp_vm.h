/* SPDX-License-Identifier: GPL-2.0 */
/*
 * An SNP guest with two vCPUs and a file whose memory converts in place, for tests
 * of KVM's own code for SNP on simulated hardware.
 */
#ifndef SELFTEST_KVM_GMEM_SNP_VM_H
#define SELFTEST_KVM_GMEM_SNP_VM_H

#include "gmem_one_file.h"
#include "gmem_snp.h"
#include "kvm_test_harness.h"

/* Tests of large mappings have more. */
#ifndef NR_PAGES
#define NR_PAGES	32
#endif
#define TIMEOUT		600

/* Return codes of firmware. */
#define INVALID_PARAM		0x16
#define RESOURCE_LIMIT		0x17

/* --- One VM, one file ---------------------------------------------------------- */

FIXTURE(snp)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[2];
	struct gmem_area a;
};

FIXTURE_SETUP(snp)
{
	if (!snp_is_simulated())
		SKIP(return, SNP_NOT_SIMULATED);
	self->vm = snp_vm_create(ARRAY_SIZE(self->vcpus), NR_PAGES, self->vcpus);
	snp_area_create(&self->a, self->vm, OFF(NR_PAGES));
}

FIXTURE_TEARDOWN(snp)
{
	kvm_munmap(self->a.hva, self->a.size);
	kvm_close(self->a.fd);
	kvm_vm_free(self->vm);
}

typedef FIXTURE_DATA(snp) snp_fixture;

#define SNP_TEST(name)	TEST_F_TIMEOUT(snp, name, TIMEOUT)

static inline gpa_t gpa(snp_fixture *self, u64 page)
{
	return self->a.gpa + OFF(page);
}

/* The address at which the guest has the page with the C-bit. */
static inline u64 private_gva(snp_fixture *self, u64 page)
{
	return gpa(self, page) + SNP_PRIVATE;
}

/* The RMP's state and gfn for the page, and the ASID that it is assigned to. */
#define assert_rmp(self, page, state)						\
({										\
	struct kvm_gmem_emulate __q;						\
	u64 __page = (page), __state = (state);					\
										\
	gmem_query((self)->vm, gpa(self, __page), &__q);			\
	TEST_ASSERT(__q.value[0] == __state, "RMP has state %llu for page %lu, wanted %lu", \
		    __q.value[0], __page, __state);				\
	TEST_ASSERT(__state == KVM_GMEM_EMULATE_STATE_NONE ||			\
		    __q.value[1] == gpa(self, __page) >> PAGE_SHIFT,		\
		    "RMP has gfn %#llx for page %lu", __q.value[1], __page);	\
	(u32)__q.value[2];							\
})

/* How many pages are assigned to guests on this machine. */
static inline u64 nr_assigned(struct kvm_vm *vm)
{
	struct kvm_gmem_emulate q;

	gmem_query(vm, GMEM_GPA, &q);
	return q.value[3];
}

static inline void start(snp_fixture *self)
{
	u32 status;

	assert_errno(snp_start(self->vm, &status), 0);
}

/* The guest's program, which libkvm knows, and the end of the launch. */
static inline void finish(snp_fixture *self)
{
	u32 status;

	snp_vm_launch_update(self->vm);
	assert_errno(snp_finish(self->vm, &status), 0);
}

static inline void make_private(snp_fixture *self, u64 page, u64 n)
{
	gmem_convert(self->a.fd, OFF(page), OFF(n), GMEM_PRIVATE, GMEM_PRESERVE);
}

#define snp_fill(vcpu, gva, size, pattern, pos)				\
	snp_run_ok(vcpu, __snp_run(vcpu, SNP_OP_FILL, gva, size, pattern, pos, 0))

#define snp_check(vcpu, gva, size, pattern, pos)				\
do {										\
	snp_run_ok(vcpu, __snp_run(vcpu, SNP_OP_CHECK, gva, size, pattern, pos, 0));	\
	TEST_ASSERT(snp_cmd_of(vcpu)->bad == GMEM_ALL_GOOD,				\
		    "Guest sees 0x%02lx at byte %#lx of %#lx",			\
		    (u64)snp_cmd_of(vcpu)->value, (u64)snp_cmd_of(vcpu)->bad, (u64)(gva)); \
} while (0)

/* A launched VM whose first vCPU waits for commands. */
static inline struct kvm_vcpu *running(snp_fixture *self)
{
	start(self);
	finish(self);
	snp_run_ok(self->vcpus[0], snp_resume(self->vcpus[0]));
	return self->vcpus[0];
}

/* Ends a dead VM with pages that are lost for good, and counts them. */
static inline void assert_lost(snp_fixture *self, u64 before, u64 lost)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *other;
	struct gmem_area a;

	TEST_ASSERT_EQ(gmem_ioctl(self->vm->fd, KVM_CHECK_EXTENSION, (void *)0), EIO);
	kvm_munmap(self->a.hva, self->a.size);
	kvm_close(self->a.fd);
	kvm_vm_free(self->vm);

	other = snp_vm_create(1, NR_PAGES, &vcpu);
	snp_area_create(&a, other, OFF(NR_PAGES));
	TEST_ASSERT_EQ(nr_assigned(other), before + lost);
	self->vm = other;
	self->a = a;
}

#endif /* SELFTEST_KVM_GMEM_SNP_VM_H */
