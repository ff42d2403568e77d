// SPDX-License-Identifier: GPL-2.0
/*
 * Hazard 38 of in-place conversion: KVM's own writes to a guest's memory.
 */
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "gmem_hazard.h"
#include "hyperv.h"

/* --- A guest of our own --------------------------------------------------- */

enum {
	MSR_OP_WRMSR,
	MSR_OP_VMSAVE,
	MSR_OP_CLOCK_PAIRING,
	MSR_OP_NOP,
};

static struct {
	u64 op;
	u64 msr;
	u64 val;
	u64 vector;
} msr_cmd;

/* Executes instructions that make KVM write to guest memory for the guest. */
static void msr_guest_code(void)
{
	for (;;) {
		GUEST_SYNC(0);
		switch (READ_ONCE(msr_cmd.op)) {
		case MSR_OP_WRMSR:
			msr_cmd.vector = wrmsr_safe(msr_cmd.msr, msr_cmd.val);
			break;
		case MSR_OP_VMSAVE:
			wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SVME);
			msr_cmd.vector = kvm_asm_safe("vmsave %%rax",
						      "a"(msr_cmd.val));
			break;
		case MSR_OP_CLOCK_PAIRING:
			kvm_hypercall(KVM_HC_CLOCK_PAIRING, msr_cmd.val, 0, 0, 0);
			break;
		}
	}
}

/* Returns as gmem_guest_resume() does; the result is in msr_cmd. */
static int msr_try(struct kvm_vcpu *vcpu, u64 op, u64 msr, u64 val)
{
	int r;

	msr_cmd.op = op;
	msr_cmd.msr = msr;
	msr_cmd.val = val;
	msr_cmd.vector = 0;
	sync_global_to_guest(vcpu->vm, msr_cmd);
	r = gmem_guest_resume(vcpu);
	sync_global_from_guest(vcpu->vm, msr_cmd);
	return r;
}

/* The vector of the exception that the guest got, 0 for none. */
static u64 msr_do(struct kvm_vcpu *vcpu, u64 op, u64 msr, u64 val)
{
	int r = msr_try(vcpu, op, msr, val);

	gmem_guest_ok(vcpu, r);
	return msr_cmd.vector;
}

/* A VM whose guest runs msr_guest_code(); six pages, shared at first. */
static void h38_create(struct hz *h, bool hyperv)
{
	memset(h, 0, sizeof(*h));
	h->npages = 6;
	h->vm = gmem_vm_create(1, 6, h->vcpus);
	gmem_area_create(&h->a, h->vm, GMEM_SLOT, GMEM_GPA, OFF(6), GMEM_MMAP_SHARED);
	if (hyperv)
		vcpu_set_hv_cpuid(h->vcpus[0]);
	vcpu_arch_set_entry_point(h->vcpus[0], msr_guest_code);
	gmem_guest_start(h->vcpus[0]);
}

/*
 * Converts all pages to private with a policy that defines their bytes, so that a
 * write by KVM shows when they are shared again. In between, the vCPU runs, and KVM
 * is made to update its structures.
 */
static void h38_no_write_to_private(struct hz *h)
{
	struct kvm_clock_data clock = {};
	int i, cpu;

	convert(h, 0, 6, GMEM_PRIVATE, GMEM_ZERO);
	for (i = 0; i < 20; i++) {
		/* Another CPU: clock and steal time are written anew. */
		cpu = i % sysconf(_SC_NPROCESSORS_ONLN);
		__pin_task_to_cpu(pthread_self(), cpu);
		vm_ioctl(h->vm, KVM_GET_CLOCK, &clock);
		clock.flags = 0;
		vm_ioctl(h->vm, KVM_SET_CLOCK, &clock);
		__vcpu_ioctl(h->vcpus[0], KVM_KVMCLOCK_CTRL, NULL);
		msr_do(h->vcpus[0], MSR_OP_NOP, 0, 0);
	}
	attributes_are(h, 0, 6, GMEM_PRIVATE);
	/* Back, with the vCPU outside of the guest, so that nothing writes now. */
	convert(h, 0, 6, GMEM_SHARED, GMEM_PRESERVE);
	host_sees(h, 0, 6, GMEM_ZEROES);
}

HAZARD(h38_kvm_clock)
{
	struct hz h;

	h38_create(&h, false);
	TEST_ASSERT_EQ(msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_SYSTEM_TIME_NEW,
			      page_gpa(&h, 0) | 1), 0ULL);
	msr_do(h.vcpus[0], MSR_OP_NOP, 0, 0);
	TEST_ASSERT(gmem_check(hz_hva(&h, 0), 32, GMEM_ZEROES, 0) != GMEM_ALL_GOOD,
		    "KVM does not write the clock even to a shared page");
	h38_no_write_to_private(&h);

	/* KVM writes it again without a further request. */
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_SYSTEM_TIME_NEW, page_gpa(&h, 0) | 1);
	msr_do(h.vcpus[0], MSR_OP_NOP, 0, 0);
	TEST_ASSERT(gmem_check(hz_hva(&h, 0), 32, GMEM_ZEROES, 0) != GMEM_ALL_GOOD,
		    "KVM does not write the clock to a page that is shared again");
}

HAZARD(h38_clock_enabled_on_a_private_page)
{
	struct hz h;

	h38_create(&h, false);
	convert(&h, 0, 6, GMEM_PRIVATE, GMEM_ZERO);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_SYSTEM_TIME_NEW, page_gpa(&h, 0) | 1);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_STEAL_TIME, page_gpa(&h, 1) | 1);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_PV_EOI_EN, page_gpa(&h, 2) | 1);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_ASYNC_PF_INT, 0xf0);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_ASYNC_PF_EN, page_gpa(&h, 3) | 9);
	/* Nothing enabled when its page is shared again writes to it then. */
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_WALL_CLOCK_NEW, page_gpa(&h, 4));
	msr_do(h.vcpus[0], MSR_OP_CLOCK_PAIRING, 0, page_gpa(&h, 5));
	h38_no_write_to_private(&h);
}

HAZARD(h38_steal_time_pv_eoi_async_pf)
{
	struct hz h;

	h38_create(&h, false);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_STEAL_TIME, page_gpa(&h, 1) | 1);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_PV_EOI_EN, page_gpa(&h, 2) | 1);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_ASYNC_PF_INT, 0xf0);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_ASYNC_PF_EN, page_gpa(&h, 3) | 9);
	msr_do(h.vcpus[0], MSR_OP_NOP, 0, 0);
	h38_no_write_to_private(&h);
}

HAZARD(h38_wall_clock_and_clock_pairing)
{
	struct hz h;

	h38_create(&h, false);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_WALL_CLOCK_NEW, page_gpa(&h, 4));
	TEST_ASSERT(gmem_check(hz_hva(&h, 4), 16, GMEM_ZEROES, 0) != GMEM_ALL_GOOD,
		    "KVM does not write the wall clock even to a shared page");

	convert(&h, 0, 6, GMEM_PRIVATE, GMEM_ZERO);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_WALL_CLOCK_NEW, page_gpa(&h, 4));
	msr_do(h.vcpus[0], MSR_OP_CLOCK_PAIRING, 0, page_gpa(&h, 5));
	convert(&h, 0, 6, GMEM_SHARED, GMEM_PRESERVE);
	host_sees(&h, 0, 6, GMEM_ZEROES);
}

HAZARD(h38_hyperv_pages)
{
	struct hz h;
	u64 vector;

	HZ_REQUIRE(kvm_has_cap(KVM_CAP_HYPERV_CPUID), "needs KVM_HYPERV");
	h38_create(&h, true);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, HV_X64_MSR_GUEST_OS_ID, 1);
	vector = msr_do(h.vcpus[0], MSR_OP_WRMSR, HV_X64_MSR_HYPERCALL,
			page_gpa(&h, 0) | 1);
	TEST_ASSERT(!vector && gmem_check(hz_hva(&h, 0), 16, GMEM_ZEROES, 0) != GMEM_ALL_GOOD,
		    "No hypercall page even on a shared one, vector %lu", vector);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, HV_X64_MSR_HYPERCALL, 0);

	convert(&h, 0, 6, GMEM_PRIVATE, GMEM_ZERO);
	vector = msr_do(h.vcpus[0], MSR_OP_WRMSR, HV_X64_MSR_HYPERCALL,
			page_gpa(&h, 0) | 1);
	TEST_ASSERT(vector == GP_VECTOR, "Hypercall page on a private one: vector %lu",
		    vector);
	vector = msr_do(h.vcpus[0], MSR_OP_WRMSR, HV_X64_MSR_VP_ASSIST_PAGE,
			page_gpa(&h, 1) | 1);
	TEST_ASSERT(vector == GP_VECTOR, "Assist page on a private one: vector %lu",
		    vector);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, HV_X64_MSR_REFERENCE_TSC, page_gpa(&h, 2) | 1);
	msr_do(h.vcpus[0], MSR_OP_NOP, 0, 0);
	attributes_are(&h, 0, 6, GMEM_PRIVATE);
	/* The TSC page may be written when its page is shared again. */
	msr_do(h.vcpus[0], MSR_OP_WRMSR, HV_X64_MSR_REFERENCE_TSC, 0);
	convert(&h, 0, 6, GMEM_SHARED, GMEM_PRESERVE);
	host_sees(&h, 0, 6, GMEM_ZEROES);
}

/* Nested state: KVM maps the page itself to write to it. */
HAZARD(h38_nested_vmsave)
{
	struct hz h;
	u64 vector;
	int r;

	HZ_REQUIRE(kvm_cpu_has(X86_FEATURE_SVM), "needs nested SVM");
	h38_create(&h, false);
	vector = msr_do(h.vcpus[0], MSR_OP_VMSAVE, 0, page_gpa(&h, 0));
	TEST_ASSERT(!vector, "VMSAVE to a shared page: vector %lu", vector);
	TEST_ASSERT(gmem_check(hz_hva(&h, 0), PG, GMEM_ZEROES, 0) != GMEM_ALL_GOOD,
		    "VMSAVE does not write even to a shared page");

	convert(&h, 0, 6, GMEM_PRIVATE, GMEM_ZERO);
	r = msr_try(h.vcpus[0], MSR_OP_VMSAVE, 0, page_gpa(&h, 0));
	convert(&h, 0, 6, GMEM_SHARED, GMEM_PRESERVE);
	if (!r && !msr_cmd.vector) {
		/* If the CPU does it without KVM, it is the guest's write. */
		SKIP(return, "the CPU executes VMSAVE without KVM");
	}
	/* KVM either injects an exception or fails to emulate the instruction. */
	TEST_ASSERT(r == KVM_EXIT_INTERNAL_ERROR || (!r && msr_cmd.vector == GP_VECTOR),
		    "VMSAVE to a private page: %d, vector %lu", r, msr_cmd.vector);
	host_sees(&h, 0, 6, GMEM_ZEROES);
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
