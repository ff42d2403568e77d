// SPDX-License-Identifier: GPL-2.0
/*
 * KVM's own code for SNP (arch/x86/kvm/svm/sev.c) with memory that converts in
 * place, on simulated hardware (CONFIG_KVM_SNP_SIMULATION): the launch, the RMP's
 * entry of each page, a guest that runs from its VMSA and changes the state of its
 * pages through the GHCB, and pages that move.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gmem_snp_vm.h"
#include "gmem_move.h"

/* --- The launch ---------------------------------------------------------------- */

SNP_TEST(launch_in_place)
{
	u32 asid, status;

	start(self);
	gmem_fill(self->a.hva, OFF(2), GMEM_SEED(1), 0);
	make_private(self, 0, 4);
	assert_rmp(self, 0, KVM_GMEM_EMULATE_STATE_NONE);

	assert_errno(snp_update(self->vm, KVM_SEV_SNP_PAGE_TYPE_NORMAL, gpa(self, 0), OFF(2),
				NULL, &status), 0);
	asid = assert_rmp(self, 0, KVM_GMEM_EMULATE_STATE_VALIDATED);
	assert_rmp(self, 1, KVM_GMEM_EMULATE_STATE_VALIDATED);
	assert_rmp(self, 2, KVM_GMEM_EMULATE_STATE_NONE);
	gmem_host_assert_refused(self->a.hva, OFF(4));

	/* A page can be assigned to the guest only once. */
	assert_errno(snp_update(self->vm, KVM_SEV_SNP_PAGE_TYPE_NORMAL, gpa(self, 1), PG, NULL,
				&status), EIO);
	TEST_ASSERT(asid >= 1 && asid <= 7, "ASID %u", asid);
	finish(self);

	/* The host reads the guest's bytes as the guest's key encrypts them. */
	gmem_convert(self->a.fd, 0, OFF(2), GMEM_SHARED, GMEM_PRESERVE);
	assert_rmp(self, 0, KVM_GMEM_EMULATE_STATE_NONE);
	gmem_host_assert(self->a.hva, OFF(2), GMEM_KEYED(GMEM_SEED(1)), 0);
}

SNP_TEST(launch_from_source)
{
	u8 *source = kvm_mmap(OFF(2), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	u32 status;

	start(self);
	gmem_fill(source, OFF(2), GMEM_SEED(2), 0);
	make_private(self, 0, 2);
	assert_errno(snp_update(self->vm, KVM_SEV_SNP_PAGE_TYPE_NORMAL, gpa(self, 0), OFF(2),
				source, &status), 0);
	assert_rmp(self, 1, KVM_GMEM_EMULATE_STATE_VALIDATED);
	gmem_host_assert(source, OFF(2), GMEM_SEED(2), 0);
	finish(self);

	gmem_convert(self->a.fd, 0, OFF(2), GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert(self->a.hva, OFF(2), GMEM_KEYED(GMEM_SEED(2)), 0);
	kvm_munmap(source, OFF(2));
}

/* Firmware corrects a CPUID page, which the host can then still read. */
SNP_TEST(launch_cpuid_in_place)
{
	u32 *page = (u32 *)self->a.hva, status;

	start(self);
	page[0] = 65;
	page[1] = 0x1234;
	make_private(self, 0, 1);
	assert_errno(snp_update(self->vm, KVM_SEV_SNP_PAGE_TYPE_CPUID, gpa(self, 0), PG, NULL,
				&status), EIO);
	TEST_ASSERT_EQ(status, INVALID_PARAM);
	assert_rmp(self, 0, KVM_GMEM_EMULATE_STATE_NONE);

	gmem_convert(self->a.fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE);
	TEST_ASSERT_EQ(page[0], 64);
	TEST_ASSERT_EQ(page[1], 0x1234);
	make_private(self, 0, 1);
	assert_errno(snp_update(self->vm, KVM_SEV_SNP_PAGE_TYPE_CPUID, gpa(self, 0), PG, NULL,
				&status), 0);
	assert_rmp(self, 0, KVM_GMEM_EMULATE_STATE_VALIDATED);
	finish(self);
}

/* All pages of the guest belong to the host again when the guest is gone. */
SNP_TEST(teardown_gives_all_back)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct gmem_area a;
	u64 before = nr_assigned(self->vm);
	u32 status;
	int i;

	/* More guests than ASIDs: ASIDs are used again after a DF_FLUSH. */
	for (i = 0; i < 9; i++) {
		vm = snp_vm_create(1, NR_PAGES, &vcpu);
		snp_area_create(&a, vm, OFF(NR_PAGES));
		gmem_convert(a.fd, 0, a.size, GMEM_PRIVATE, GMEM_PRESERVE);
		assert_errno(snp_start(vm, &status), 0);
		if (i % 3) {
			assert_errno(snp_update(vm, KVM_SEV_SNP_PAGE_TYPE_ZERO, a.gpa, a.size,
						NULL, &status), 0);
			snp_vm_launch_update(vm);
		}
		if (i % 3 == 2)
			assert_errno(snp_finish(vm, &status), 0);
		TEST_ASSERT(nr_assigned(self->vm) >= before + (i % 3 ? NR_PAGES : 0),
			    "%lu pages are assigned to guests", nr_assigned(self->vm));
		kvm_munmap(a.hva, a.size);
		kvm_close(a.fd);
		kvm_vm_free(vm);
		TEST_ASSERT_EQ(nr_assigned(self->vm), before);
	}
}

/* --- The guest ------------------------------------------------------------------ */

/* The host converts on the guest's request, as a VMM does. */
static void psc(snp_fixture *self, struct kvm_vcpu *vcpu, enum snp_op op, u64 page, u64 n, u64 to)
{
	struct kvm_run *run = vcpu->run;
	int r = __snp_run(vcpu, op, gpa(self, page), OFF(n), 0, 0, to);

	TEST_ASSERT(r == KVM_EXIT_HYPERCALL, "Wanted KVM_EXIT_HYPERCALL, got %d", r);
	TEST_ASSERT_EQ(run->hypercall.nr, KVM_HC_MAP_GPA_RANGE);
	TEST_ASSERT_EQ(run->hypercall.args[0], gpa(self, page));
	TEST_ASSERT_EQ(run->hypercall.args[1], n);
	TEST_ASSERT_EQ(!!(run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED), to == PSC_PRIVATE);
	gmem_convert(self->a.fd, OFF(page), OFF(n), to == PSC_PRIVATE ? GMEM_PRIVATE : GMEM_SHARED,
		     GMEM_PRESERVE);
	run->hypercall.ret = 0;
	snp_run_ok(vcpu, snp_resume(vcpu));
}

SNP_TEST(guest_runs_from_its_vmsa)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	u32 status;

	start(self);
	gmem_fill(self->a.hva, PG, GMEM_SEED(1), 0);
	make_private(self, 0, 2);
	assert_errno(snp_update(self->vm, KVM_SEV_SNP_PAGE_TYPE_NORMAL, gpa(self, 0), PG, NULL,
				&status), 0);
	finish(self);
	snp_run_ok(vcpu, snp_resume(vcpu));

	/* A page that the launch has added, and a page that is assigned at its first touch. */
	snp_check(vcpu, private_gva(self, 0), PG, GMEM_SEED(1), 0);
	assert_rmp(self, 1, KVM_GMEM_EMULATE_STATE_NONE);
	snp_fill(vcpu, private_gva(self, 1), PG, GMEM_SEED(2), 0);
	assert_rmp(self, 1, KVM_GMEM_EMULATE_STATE_ASSIGNED);
	snp_check(vcpu, private_gva(self, 1), PG, GMEM_SEED(2), 0);

	/* A shared page that both sides see. */
	gmem_fill(self->a.hva + OFF(2), PG, GMEM_SEED(3), 0);
	snp_check(vcpu, gpa(self, 2), PG, GMEM_SEED(3), 0);
	snp_fill(vcpu, gpa(self, 2), PG, GMEM_SEED(4), 0);
	gmem_host_assert(self->a.hva + OFF(2), PG, GMEM_SEED(4), 0);
	assert_rmp(self, 2, KVM_GMEM_EMULATE_STATE_NONE);

	gmem_convert(self->a.fd, OFF(1), PG, GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert(self->a.hva + OFF(1), PG, GMEM_KEYED(GMEM_SEED(2)), 0);
}

/*
 * A page of a file that does not convert in place. KVM's hooks assign it when the guest
 * touches it, and take it back when the VM ends.
 */
SNP_TEST(file_that_does_not_convert)
{
	gpa_t at = OFF(1023);
	u64 gva = private_gva(self, NR_PAGES);
	struct kvm_gmem_emulate q;
	struct kvm_vcpu *vcpu;

	snp_map(self->vm, gva, at, PG, true);
	vcpu = running(self);
	vm_mem_set_private(self->vm, at, PG);
	gmem_query(self->vm, at, &q);
	TEST_ASSERT_EQ(q.value[0], KVM_GMEM_EMULATE_STATE_NONE);
	snp_fill(vcpu, gva, PG, GMEM_SEED(1), 0);
	gmem_query(self->vm, at, &q);
	TEST_ASSERT_EQ(q.value[0], KVM_GMEM_EMULATE_STATE_ASSIGNED);
	TEST_ASSERT_EQ(q.value[1], at >> PAGE_SHIFT);
	snp_check(vcpu, gva, PG, GMEM_SEED(1), 0);
}

static void check_page_state_changes(snp_fixture *self, enum snp_op op, u64 n)
{
	struct kvm_vcpu *vcpu = running(self);
	u64 i;

	make_private(self, 0, n);
	snp_fill(vcpu, private_gva(self, 0), OFF(n), GMEM_SEED(1), 0);
	assert_rmp(self, 0, KVM_GMEM_EMULATE_STATE_ASSIGNED);

	psc(self, vcpu, op, 0, n, PSC_SHARED);
	for (i = 0; i < n; i++)
		assert_rmp(self, i, KVM_GMEM_EMULATE_STATE_NONE);
	gmem_host_assert(self->a.hva, OFF(n), GMEM_KEYED(GMEM_SEED(1)), 0);
	snp_check(vcpu, gpa(self, 0), OFF(n), GMEM_KEYED(GMEM_SEED(1)), 0);
	snp_fill(vcpu, gpa(self, 0), OFF(n), GMEM_SEED(2), 0);
	gmem_host_assert(self->a.hva, OFF(n), GMEM_SEED(2), 0);

	/* The page is assigned when the guest touches it, not before. */
	psc(self, vcpu, op, 0, n, PSC_PRIVATE);
	gmem_host_assert_refused(self->a.hva, OFF(n));
	for (i = 0; i < n; i++)
		assert_rmp(self, i, KVM_GMEM_EMULATE_STATE_NONE);
	snp_check(vcpu, private_gva(self, 0), OFF(n), GMEM_KEYED(GMEM_SEED(2)), 0);
	for (i = 0; i < n; i++)
		assert_rmp(self, i, KVM_GMEM_EMULATE_STATE_ASSIGNED);
	snp_fill(vcpu, private_gva(self, 0), OFF(n), GMEM_SEED(3), 0);
	snp_check(vcpu, private_gva(self, 0), OFF(n), GMEM_SEED(3), 0);
}

SNP_TEST(guest_changes_states_by_ghcb)
{
	check_page_state_changes(self, SNP_OP_PSC, 5);
}

SNP_TEST(guest_changes_states_by_msr)
{
	check_page_state_changes(self, SNP_OP_PSC_MSR, 1);
}

/* The host refuses, and the guest gets an error. */
SNP_TEST(guest_is_refused)
{
	struct kvm_vcpu *vcpu = running(self);

	TEST_ASSERT_EQ(__snp_run(vcpu, SNP_OP_PSC, gpa(self, 0), OFF(2), 0, 0, PSC_PRIVATE),
		       KVM_EXIT_HYPERCALL);
	vcpu->run->hypercall.ret = EINVAL;
	snp_run_ok(vcpu, snp_resume(vcpu));
	TEST_ASSERT(snp_cmd_of(vcpu)->value, "The guest got no error");
	gmem_assert_attributes(self->a.fd, 0, OFF(2), GMEM_SHARED);
}

/* A guest access of the wrong kind exits, which asks for a conversion. */
SNP_TEST(guest_changes_states_by_access)
{
	struct kvm_vcpu *vcpu = running(self);

	TEST_ASSERT_EQ(__snp_run(vcpu, SNP_OP_WRITE, private_gva(self, 3), 1, 0, 0, 7), -EFAULT);
	TEST_ASSERT_EQ(vcpu->run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(vcpu->run->memory_fault.flags, KVM_MEMORY_EXIT_FLAG_PRIVATE);
	TEST_ASSERT_EQ(vcpu->run->memory_fault.gpa, gpa(self, 3));
	make_private(self, 3, 1);
	snp_run_ok(vcpu, snp_resume(vcpu));
	assert_rmp(self, 3, KVM_GMEM_EMULATE_STATE_ASSIGNED);

	make_private(self, 4, 1);
	TEST_ASSERT_EQ(__snp_run(vcpu, SNP_OP_READ, gpa(self, 4), 1, 0, 0, 0), -EFAULT);
	TEST_ASSERT_EQ(vcpu->run->memory_fault.flags, 0);
	TEST_ASSERT_EQ(vcpu->run->memory_fault.gpa, gpa(self, 4));
	gmem_convert(self->a.fd, OFF(4), PG, GMEM_SHARED, GMEM_PRESERVE);
	snp_run_ok(vcpu, snp_resume(vcpu));
}

/* KVM has the GHCB mapped until the guest continues, so it cannot become private. */
SNP_TEST(ghcb_in_a_converted_range)
{
	struct kvm_vcpu *vcpu = running(self);
	u64 eo;

	snp_run_ok(vcpu, __snp_run(vcpu, SNP_OP_GHCB, gpa(self, 8), 0, 0, gpa(self, 8), 0));
	assert_errno(gmem_set_once(self->a.fd, OFF(6), OFF(4), GMEM_PRIVATE, GMEM_PRESERVE, &eo),
		     EAGAIN);
	TEST_ASSERT_EQ(eo, OFF(8));
	gmem_assert_attributes(self->a.fd, OFF(6), OFF(4), GMEM_SHARED);

	/* It is an ordinary page again once the guest uses another GHCB. */
	snp_run_ok(vcpu, __snp_run(vcpu, SNP_OP_GHCB, gpa(self, 9), 0, 0, gpa(self, 9), 0));
	make_private(self, 8, 1);
}

SNP_TEST(guest_terminates)
{
	struct kvm_vcpu *vcpu = running(self);

	TEST_ASSERT_EQ(__snp_run(vcpu, SNP_OP_TERMINATE, 0, 0, 0, 0, 0), KVM_EXIT_SYSTEM_EVENT);
	TEST_ASSERT_EQ(vcpu->run->system_event.type, KVM_SYSTEM_EVENT_SEV_TERM);
}

/* --- VMSAs in guest memory -------------------------------------------------------- */

#define VMSA_CPL		0x0cb
#define VMSA_EFER		0x0d0
#define VMSA_CR4		0x148
#define VMSA_CR3		0x150
#define VMSA_CR0		0x158
#define VMSA_DR7		0x160
#define VMSA_DR6		0x168
#define VMSA_RFLAGS		0x170
#define VMSA_RIP		0x178
#define VMSA_RSP		0x1d8
#define VMSA_PAT		0x268
#define VMSA_RDI		0x338
#define VMSA_FEATURES		0x3b0
#define VMSA_XCR0		0x3e8

static void vmsa_segment(u8 *vmsa, u32 i, const struct kvm_segment *segment)
{
	u16 attributes = segment->type | segment->s << 4 | segment->dpl << 5 |
			 segment->present << 7 | segment->avl << 8 | segment->l << 9 |
			 segment->db << 10 | segment->g << 11;

	memcpy(vmsa + 16 * i, &segment->selector, 2);
	memcpy(vmsa + 16 * i + 2, &attributes, 2);
	memcpy(vmsa + 16 * i + 4, &segment->limit, 4);
	memcpy(vmsa + 16 * i + 8, &segment->base, 8);
}

static void vmsa_table(u8 *vmsa, u32 i, const struct kvm_dtable *table)
{
	u32 limit = table->limit;

	memcpy(vmsa + 16 * i + 4, &limit, 4);
	memcpy(vmsa + 16 * i + 8, &table->base, 8);
}

static void vmsa_put(u8 *vmsa, u32 at, u64 value)
{
	memcpy(vmsa + at, &value, sizeof(value));
}

/* The state in which the vCPU would start, before it is launched. */
static void fill_vmsa(u8 *vmsa, struct kvm_vcpu *vcpu)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	vcpu_sregs_get(vcpu, &sregs);
	vcpu_regs_get(vcpu, &regs);
	memset(vmsa, 0, PG);
	vmsa_segment(vmsa, 0, &sregs.es);
	vmsa_segment(vmsa, 1, &sregs.cs);
	vmsa_segment(vmsa, 2, &sregs.ss);
	vmsa_segment(vmsa, 3, &sregs.ds);
	vmsa_segment(vmsa, 4, &sregs.fs);
	vmsa_segment(vmsa, 5, &sregs.gs);
	vmsa_table(vmsa, 6, &sregs.gdt);
	vmsa_segment(vmsa, 7, &sregs.ldt);
	vmsa_table(vmsa, 8, &sregs.idt);
	vmsa_segment(vmsa, 9, &sregs.tr);
	vmsa_put(vmsa, VMSA_EFER, sregs.efer | 1 << 12);
	vmsa_put(vmsa, VMSA_CR0, sregs.cr0);
	vmsa_put(vmsa, VMSA_CR3, sregs.cr3);
	vmsa_put(vmsa, VMSA_CR4, sregs.cr4);
	vmsa_put(vmsa, VMSA_DR6, 0xffff0ff0);
	vmsa_put(vmsa, VMSA_DR7, 0x400);
	vmsa_put(vmsa, VMSA_RFLAGS, 2);
	vmsa_put(vmsa, VMSA_RIP, regs.rip);
	vmsa_put(vmsa, VMSA_RSP, regs.rsp);
	vmsa_put(vmsa, VMSA_RDI, regs.rdi);
	vmsa_put(vmsa, VMSA_PAT, 0x7040600070406ULL);
	vmsa_put(vmsa, VMSA_FEATURES, 1);
	vmsa_put(vmsa, VMSA_XCR0, 1);
}

#define VMSA	17	/* The second vCPU's; hardware refuses one at 2M */
#define TEMPLATE 18	/* A copy of its initial contents */

/* A launched VM whose second vCPU runs from a VMSA in the file. */
static struct kvm_vcpu *running_ap(snp_fixture *self)
{
	struct kvm_vcpu *bsp = self->vcpus[0], *ap = self->vcpus[1];
	u32 status;

	fill_vmsa(self->a.hva + OFF(VMSA), ap);
	memcpy(self->a.hva + OFF(TEMPLATE), self->a.hva + OFF(VMSA), PG);
	make_private(self, VMSA, 2);
	start(self);
	assert_errno(snp_update(self->vm, KVM_SEV_SNP_PAGE_TYPE_NORMAL, gpa(self, VMSA), OFF(2),
				NULL, &status), 0);
	finish(self);
	snp_run_ok(bsp, snp_resume(bsp));
	snp_run_ok(bsp, __snp_run(bsp, SNP_OP_AP_CREATE, gpa(self, VMSA), 0, 0, 0, ap->id));
	TEST_ASSERT(!snp_cmd_of(bsp)->value, "AP creation: %#lx", (u64)snp_cmd_of(bsp)->value);
	snp_run_ok(ap, snp_resume(ap));
	return ap;
}

SNP_TEST(ap_creation)
{
	struct kvm_vcpu *ap = running_ap(self);

	make_private(self, 0, 1);
	snp_fill(ap, private_gva(self, 0), PG, GMEM_SEED(5), 0);
	snp_check(self->vcpus[0], private_gva(self, 0), PG, GMEM_SEED(5), 0);
}

/* The vCPU's state is lost with the page, and KVM looks the page up again. */
SNP_TEST(h29_vmsa_in_a_hole)
{
	struct kvm_vcpu *bsp = self->vcpus[0], *ap = running_ap(self);

	TEST_ASSERT_EQ(gmem_punch(self->a.fd, OFF(VMSA), PG), 0);
	/* The freed page may get any owner, but does not become the next VMSA. */
	gmem_fill(self->a.hva, OFF(8), GMEM_SEED(1), 0);
	snp_run_ok(bsp, __snp_run(bsp, SNP_OP_COPY, private_gva(self, VMSA), PG, 0,
			  private_gva(self, TEMPLATE), 0));
	snp_run_ok(ap, snp_resume(ap));
	make_private(self, 9, 1);
	snp_fill(ap, private_gva(self, 9), PG, GMEM_SEED(5), 0);
	gmem_host_assert(self->a.hva, OFF(8), GMEM_SEED(1), 0);
}

SNP_TEST(h29_vmsa_in_a_converted_range)
{
	struct kvm_vcpu *bsp = self->vcpus[0], *ap = running_ap(self);
	int r;

	gmem_convert(self->a.fd, OFF(VMSA), PG, GMEM_SHARED, GMEM_PRESERVE);
	assert_rmp(self, VMSA, KVM_GMEM_EMULATE_STATE_NONE);
	/* The page is not a VMSA any more. */
	r = __snp_run(ap, SNP_OP_READ, gpa(self, 0), 1, 0, 0, 0);
	TEST_ASSERT(r == KVM_EXIT_FAIL_ENTRY, "Wanted KVM_EXIT_FAIL_ENTRY, got %d", r);

	make_private(self, VMSA, 1);
	snp_run_ok(bsp, __snp_run(bsp, SNP_OP_COPY, private_gva(self, VMSA), PG, 0,
			  private_gva(self, TEMPLATE), 0));
	snp_run_ok(ap, snp_resume(ap));
	snp_run_ok(ap, __snp_run(ap, SNP_OP_READ, gpa(self, 0), 1, 0, 0, 0));
}

static void *spin(void *arg)
{
	struct kvm_vcpu *vcpu = arg;

	return (void *)(long)__snp_run(vcpu, SNP_OP_SPIN, 0, 0, 0, 0, 0);
}

/*
 * The vCPU is in the guest when its VMSA is taken away. Nothing has mapped the
 * page for the guest, so there is no translation whose removal would stop it.
 */
SNP_TEST(h29_vmsa_in_use_is_converted)
{
	struct kvm_vcpu *ap = running_ap(self);
	pthread_t thread;
	void *r;

	snp_cmd_of(ap)->bad = 0;
	TEST_ASSERT(!pthread_create(&thread, NULL, spin, ap), "No thread");
	while (snp_cmd_of(ap)->bad != 1)
		sched_yield();
	gmem_convert(self->a.fd, OFF(VMSA), PG, GMEM_SHARED, GMEM_PRESERVE);
	assert_rmp(self, VMSA, KVM_GMEM_EMULATE_STATE_NONE);
	snp_cmd_of(ap)->value = 1;
	TEST_ASSERT(!pthread_join(thread, &r), "The thread does not end");
	TEST_ASSERT((long)r == KVM_EXIT_FAIL_ENTRY, "Wanted KVM_EXIT_FAIL_ENTRY, got %ld", (long)r);
}

/* --- The measurement -------------------------------------------------------------- */

/* The launch digest that firmware reports to the guest, for a launch with this page. */
static u64 digest_of(u32 seed)
{
	struct kvm_vcpu *vcpu;
	struct gmem_area a;
	struct kvm_vm *vm;
	u32 status;
	u64 digest;

	vm = snp_vm_create(1, NR_PAGES, &vcpu);
	snp_area_create(&a, vm, OFF(NR_PAGES));
	assert_errno(snp_start(vm, &status), 0);
	gmem_fill(a.hva, PG, seed, 0);
	gmem_convert(a.fd, 0, PG, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(snp_update(vm, KVM_SEV_SNP_PAGE_TYPE_NORMAL, a.gpa, PG, NULL, &status), 0);
	snp_vm_launch_update(vm);
	assert_errno(snp_finish(vm, &status), 0);
	snp_run_ok(vcpu, snp_resume(vcpu));

	gmem_fill(a.hva + OFF(1), PG, GMEM_SEED(9), 0);
	snp_run_ok(vcpu, __snp_run(vcpu, SNP_OP_REPORT, a.gpa + OFF(1), 0, 0, a.gpa + OFF(2), 0));
	TEST_ASSERT(!snp_cmd_of(vcpu)->value, "GUEST_REQUEST: %#lx", (u64)snp_cmd_of(vcpu)->value);
	digest = *(u64 *)(a.hva + OFF(2));
	TEST_ASSERT(!memcmp(a.hva + OFF(2) + 16, a.hva + OFF(1), 48),
		    "The answer does not belong to the request");

	kvm_munmap(a.hva, a.size);
	kvm_close(a.fd);
	kvm_vm_free(vm);
	return digest;
}

SNP_TEST(measurement)
{
	u64 digest = digest_of(GMEM_SEED(1));

	TEST_ASSERT_EQ(digest_of(GMEM_SEED(1)), digest);
	TEST_ASSERT(digest_of(GMEM_SEED(2)) != digest, "Another page has the same digest");
}

/* --- Pages that move ------------------------------------------------------------- */

#define NEEDS_MOVES	"needs simulated SNP, " SOFT_OFFLINE " and HWPOISON_INJECT"

/* A VM whose file can have its pages moved, and where the pages were when the host had them. */
struct snp_move {
	snp_fixture snp;
	u64 frames[NR_PAGES];
};

static bool snp_moves(void)
{
	return snp_is_simulated() && !access(SOFT_OFFLINE, W_OK) && can_poison_pfn();
}

static snp_fixture *snp_move_create(struct snp_move *m)
{
	snp_fixture *snp = &m->snp;
	u64 i;

	snp->vm = snp_vm_create(ARRAY_SIZE(snp->vcpus), NR_PAGES, snp->vcpus);
	snp_area_create_with(&snp->a, snp->vm, OFF(NR_PAGES), GMEM_MOVABLE);
	for (i = 0; i < NR_PAGES; i++) {
		gmem_fill(snp->a.hva + OFF(i), PG, GMEM_SEED(1), OFF(i));
		m->frames[i] = gmem_frame_of(snp->a.hva + OFF(i));
		TEST_ASSERT(m->frames[i], "No frame number of page %lu", i);
	}
	return snp;
}

static void snp_move_destroy(struct snp_move *m)
{
	kvm_munmap(m->snp.a.hva, m->snp.a.size);
	kvm_close(m->snp.a.fd);
	kvm_vm_free(m->snp.vm);
}

/* The guest has the page somewhere else, with its bytes. */
static void assert_replaced(struct snp_move *m, u64 page, u64 state, u32 pattern)
{
	snp_fixture *snp = &m->snp;
	u64 moved = migrated(snp);
	u32 asid = assert_rmp(snp, page, state);
	int r = replace(m->frames[page]);

	TEST_ASSERT(!r, "soft_offline_page: errno %d (%s)", r, strerror(r));
	TEST_ASSERT_EQ(migrated(snp), moved + 1);
	use_again(m->frames[page]);
	TEST_ASSERT_EQ(assert_rmp(snp, page, state), asid);
	snp_check(snp->vcpus[0], private_gva(snp, page), PG, pattern, OFF(page));
}

/* The page is where it was, and the guest has it as before. */
static void assert_not_replaced(struct snp_move *m, u64 page, u64 state, u32 pattern)
{
	snp_fixture *snp = &m->snp;
	u64 moved = migrated(snp);
	u32 asid = assert_rmp(snp, page, state);
	int r = replace(m->frames[page]);

	TEST_ASSERT(r, "The page was replaced");
	TEST_ASSERT_EQ(migrated(snp), moved);
	gmem_dirty_free_pages();
	TEST_ASSERT_EQ(assert_rmp(snp, page, state), asid);
	snp_check(snp->vcpus[0], private_gva(snp, page), PG, pattern, OFF(page));
}

/* Pages that the guest has got by LAUNCH_UPDATE, by its first touch, and not yet. */
HAZARD(private_pages)
{
	snp_fixture *snp;
	struct snp_move m;
	struct kvm_vcpu *vcpu;
	u32 status;
	u64 page;

	HZ_REQUIRE(snp_moves(), NEEDS_MOVES);
	snp = snp_move_create(&m);
	make_private(snp, 0, 3);
	start(snp);
	assert_errno(snp_update(snp->vm, KVM_SEV_SNP_PAGE_TYPE_NORMAL, gpa(snp, 0), PG, NULL,
				&status), 0);
	finish(snp);
	vcpu = snp->vcpus[0];
	snp_run_ok(vcpu, snp_resume(vcpu));
	snp_fill(vcpu, private_gva(snp, 1), PG, GMEM_SEED(2), OFF(1));

	assert_replaced(&m, 0, KVM_GMEM_EMULATE_STATE_VALIDATED, GMEM_SEED(1));
	assert_replaced(&m, 1, KVM_GMEM_EMULATE_STATE_ASSIGNED, GMEM_SEED(2));
	TEST_ASSERT_EQ(replace(m.frames[2]), 0);
	use_again(m.frames[2]);
	assert_rmp(snp, 2, KVM_GMEM_EMULATE_STATE_NONE);
	snp_check(vcpu, private_gva(snp, 2), PG, GMEM_KEYED(GMEM_SEED(1)), OFF(2));

	/* They are like any others where they are now. */
	for (page = 0; page < 3; page++)
		snp_fill(vcpu, private_gva(snp, page), PG, GMEM_SEED(3), OFF(page));
	gmem_host_assert_refused(snp->a.hva, OFF(3));
	gmem_convert(snp->a.fd, 0, OFF(3), GMEM_SHARED, GMEM_PRESERVE);
	for (page = 0; page < 3; page++) {
		assert_rmp(snp, page, KVM_GMEM_EMULATE_STATE_NONE);
		gmem_host_assert(snp->a.hva + OFF(page), PG, GMEM_KEYED(GMEM_SEED(3)), OFF(page));
		TEST_ASSERT(gmem_frame_of(snp->a.hva + OFF(page)) != m.frames[page],
			    "Page %lu is where it was", page);
	}
	snp_move_destroy(&m);
}

HAZARD(shared_pages_between_nodes)
{
	snp_fixture *snp;
	struct snp_move m;
	struct kvm_vcpu *vcpu;
	int status[4], node, i;
	u64 page;

	HZ_REQUIRE(snp_moves(), NEEDS_MOVES);
	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	snp = snp_move_create(&m);
	vcpu = running(snp);
	for (i = 0; i < 4; i++) {
		node = !node_of(snp->a.hva);
		TEST_ASSERT_EQ(move_by(0, snp->a.hva, 4, node, MPOL_MF_MOVE, status), 0);
		gmem_dirty_free_pages();
		for (page = 0; page < 4; page++) {
			TEST_ASSERT_EQ(status[page], node);
			TEST_ASSERT_EQ(node_of(snp->a.hva + OFF(page)), node);
		}
		snp_check(vcpu, gpa(snp, 0), OFF(4), GMEM_SEED(i + 1), 0);
		gmem_host_assert(snp->a.hva, OFF(4), GMEM_SEED(i + 1), 0);
		snp_fill(vcpu, gpa(snp, 0), OFF(4), GMEM_SEED(i + 2), 0);
		gmem_host_assert(snp->a.hva, OFF(4), GMEM_SEED(i + 2), 0);
	}
	TEST_ASSERT_EQ(migrated(snp), 16);
	snp_move_destroy(&m);
}

/* KVM has the GHCB mapped until the guest goes on. */
HAZARD(ghcb_stays)
{
	snp_fixture *snp;
	struct snp_move m;
	struct kvm_vcpu *vcpu;
	int status = 1000, node;

	HZ_REQUIRE(snp_moves(), NEEDS_MOVES);
	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	snp = snp_move_create(&m);
	memset(snp->a.hva + OFF(8), 0, OFF(2));
	vcpu = running(snp);
	snp_run_ok(vcpu, __snp_run(vcpu, SNP_OP_GHCB, gpa(snp, 8), 0, 0, gpa(snp, 8), 0));
	stays(snp->a.hva + OFF(8));
	snp_run_ok(vcpu, __snp_run(vcpu, SNP_OP_GHCB, gpa(snp, 9), 0, 0, gpa(snp, 9), 0));
	node = !node_of(snp->a.hva + OFF(8));
	TEST_ASSERT_EQ(move_by(0, snp->a.hva + OFF(8), 1, node, MPOL_MF_MOVE, &status), 0);
	TEST_ASSERT_EQ(status, node);
	snp_move_destroy(&m);
}

/* What a vCPU runs from stays, and what else the guest has does not. */
HAZARD(vmsa_stays)
{
	snp_fixture *snp;
	struct snp_move m;
	struct kvm_vcpu *ap;
	u64 moved;
	pthread_t thread;
	void *r;

	HZ_REQUIRE(snp_moves(), NEEDS_MOVES);
	snp = snp_move_create(&m);
	ap = running_ap(snp);
	moved = migrated(snp);
	TEST_ASSERT_EQ(replace(m.frames[VMSA]), EBUSY);
	snp_cmd_of(ap)->bad = 0;
	TEST_ASSERT(!pthread_create(&thread, NULL, spin, ap), "No thread");
	while (snp_cmd_of(ap)->bad != 1)
		sched_yield();
	TEST_ASSERT_EQ(replace(m.frames[VMSA]), EBUSY);
	TEST_ASSERT_EQ(migrated(snp), moved);
	TEST_ASSERT_EQ(replace(m.frames[TEMPLATE]), 0);
	snp_cmd_of(ap)->value = 1;
	TEST_ASSERT(!pthread_join(thread, &r), "No end of the thread");
	TEST_ASSERT(!r, "The vCPU: %ld", (long)r);
	use_again(m.frames[TEMPLATE]);

	/* It has its copy there. */
	snp_run_ok(snp->vcpus[0], __snp_run(snp->vcpus[0], SNP_OP_COPY, private_gva(snp, VMSA), PG, 0,
					    private_gva(snp, TEMPLATE), 0));
	snp_run_ok(ap, snp_resume(ap));
	snp_run_ok(ap, __snp_run(ap, SNP_OP_READ, gpa(snp, 0), 1, 0, 0, 0));
	snp_move_destroy(&m);
}

/* Each step that fails leaves the page where it is, and it moves when asked once more. */
HAZARD(failing_step_is_undone)
{
	snp_fixture *snp;
	struct snp_move m;
	struct kvm_vcpu *vcpu;
	u64 page, before;
	u32 status;

	HZ_REQUIRE(snp_moves(), NEEDS_MOVES);
	snp = snp_move_create(&m);
	make_private(snp, 0, 2);
	start(snp);
	assert_errno(snp_update(snp->vm, KVM_SEV_SNP_PAGE_TYPE_NORMAL, gpa(snp, 0), PG, NULL,
				&status), 0);
	finish(snp);
	vcpu = snp->vcpus[0];
	snp_run_ok(vcpu, snp_resume(vcpu));
	snp_fill(vcpu, private_gva(snp, 1), PG, GMEM_SEED(1), OFF(1));

	for (page = 0; page < 2; page++) {
		const u64 state = page ? KVM_GMEM_EMULATE_STATE_ASSIGNED :
					 KVM_GMEM_EMULATE_STATE_VALIDATED;

		before = nr_assigned(snp->vm);
		gmem_inject(snp->vm, gpa(snp, page), KVM_GMEM_EMULATE_FAIL_ASSIGN,
			    KVM_GMEM_EMULATE_ERROR_INPUT, 1);
		assert_not_replaced(&m, page, state, GMEM_SEED(1));
		snp_inject(snp->vm, SNP_HANDOVER, KVM_GMEM_EMULATE_ERROR_INPUT, 1);
		assert_not_replaced(&m, page, state, GMEM_SEED(1));
		snp_inject(snp->vm, SNP_PAGE_MOVE, RESOURCE_LIMIT, 1);
		assert_not_replaced(&m, page, state, GMEM_SEED(1));
		TEST_ASSERT_EQ(nr_assigned(snp->vm), before);

		/* Firmware keeps the memory that it was given. */
		snp_inject(snp->vm, SNP_PAGE_MOVE, RESOURCE_LIMIT, 1);
		snp_inject(snp->vm, SNP_PAGE_RECLAIM, RESOURCE_LIMIT, 1);
		assert_not_replaced(&m, page, state, GMEM_SEED(1));
		TEST_ASSERT_EQ(nr_assigned(snp->vm), before + 1);

		assert_replaced(&m, page, state, GMEM_SEED(1));
		TEST_ASSERT_EQ(nr_assigned(snp->vm), before + 1);
	}
	snp_move_destroy(&m);
}

/* The page has moved, and its old memory is nobody's to use. */
HAZARD(old_memory_is_kept)
{
	snp_fixture *snp;
	struct snp_move m;
	struct kvm_vcpu *vcpu;

	HZ_REQUIRE(snp_moves(), NEEDS_MOVES);
	snp = snp_move_create(&m);
	vcpu = running(snp);
	make_private(snp, 0, 2);
	snp_fill(vcpu, private_gva(snp, 0), OFF(2), GMEM_SEED(1), 0);

	snp_inject(snp->vm, SNP_PAGE_RECLAIM, RESOURCE_LIMIT, 1);
	TEST_ASSERT_EQ(replace(m.frames[0]), 0);
	gmem_inject(snp->vm, gpa(snp, 1), KVM_GMEM_EMULATE_FAIL_UNASSIGN,
		    KVM_GMEM_EMULATE_ERROR_PERMISSION, 1000);
	TEST_ASSERT_EQ(replace(m.frames[1]), 0);
	TEST_ASSERT_EQ(migrated(snp), 2);
	gmem_dirty_free_pages();
	assert_rmp(snp, 0, KVM_GMEM_EMULATE_STATE_ASSIGNED);
	assert_rmp(snp, 1, KVM_GMEM_EMULATE_STATE_ASSIGNED);
	snp_check(vcpu, private_gva(snp, 0), OFF(2), GMEM_SEED(1), 0);
	snp_fill(vcpu, private_gva(snp, 0), OFF(2), GMEM_SEED(2), 0);
	gmem_convert(snp->a.fd, 0, OFF(2), GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert(snp->a.hva, OFF(2), GMEM_KEYED(GMEM_SEED(2)), 0);
	snp_move_destroy(&m);
}

/* Firmware keeps both: the VM is dead, and nobody gets either. */
HAZARD(firmware_keeps_both)
{
	snp_fixture *snp;
	struct snp_move m;
	u64 before;
	struct kvm_vcpu *vcpu;

	HZ_REQUIRE(snp_moves(), NEEDS_MOVES);
	snp = snp_move_create(&m);
	before = nr_assigned(snp->vm);
	vcpu = running(snp);
	make_private(snp, 0, 2);
	snp_fill(vcpu, private_gva(snp, 0), OFF(2), GMEM_SEED(1), 0);
	snp_inject(snp->vm, SNP_PAGE_MOVE, RESOURCE_LIMIT, 1);
	snp_inject(snp->vm, SNP_PAGE_RECLAIM, RESOURCE_LIMIT, 2);
	TEST_ASSERT(replace(m.frames[0]), "The page was replaced");
	TEST_ASSERT_EQ(__snp_run(vcpu, SNP_OP_READ, private_gva(snp, 1), 1, 0, 0, 0), -EIO);
	/* It is not tried again. */
	TEST_ASSERT(replace(m.frames[0]), "The page was replaced");
	TEST_ASSERT_EQ(migrated(snp), 0);
	gmem_dirty_free_pages();
	assert_lost(snp, before, 2);
	snp_move_destroy(&m);
}

struct worker {
	snp_fixture *snp;
	bool stop;
};

static void *work(void *arg)
{
	struct worker *worker = arg;
	snp_fixture *snp = worker->snp;
	struct kvm_vcpu *vcpu = snp->vcpus[0];
	u64 seed;

	for (seed = 1; !READ_ONCE(worker->stop); seed = seed % 100 + 1) {
		snp_fill(vcpu, private_gva(snp, 0), OFF(4), GMEM_SEED(seed), 0);
		snp_check(vcpu, private_gva(snp, 0), OFF(4), GMEM_SEED(seed), 0);
	}
	return NULL;
}

/* A guest that uses its pages while they are replaced. */
HAZARD(running_guest)
{
	snp_fixture *snp;
	struct snp_move m;
	struct worker worker = {};
	u64 frames[NR_PAGES], page, n = 0;
	pthread_t thread;
	int i, r;

	HZ_REQUIRE(snp_moves(), NEEDS_MOVES);
	snp = snp_move_create(&m);
	worker.snp = snp;
	running(snp);
	make_private(snp, 0, 4);
	snp_fill(snp->vcpus[0], private_gva(snp, 0), OFF(4), GMEM_SEED(1), 0);
	TEST_ASSERT(!pthread_create(&thread, NULL, work, &worker), "No thread");
	for (page = 0; page < 4; page++) {
		/* A vCPU that is about to map the page has a reference to it. */
		for (i = 0; i < 1000; i++) {
			r = replace(m.frames[page]);
			if (!r)
				break;
			sched_yield();
		}
		TEST_ASSERT(!r, "Page %lu: errno %d", page, r);
		frames[n++] = m.frames[page];
	}
	WRITE_ONCE(worker.stop, true);
	TEST_ASSERT(!pthread_join(thread, NULL), "No end of the thread");
	TEST_ASSERT_EQ(migrated(snp), 4);
	while (n--)
		use_again(frames[n]);
	snp_move_destroy(&m);
}

TEST_HARNESS_MAIN
