// SPDX-License-Identifier: GPL-2.0
/*
 * Attacks of a hostile VMM on a running protected guest, all of which must fail.
 *
 * A VMM should do nothing of this. The guests and EL2 are real: the kernel has to
 * be booted with kvm-arm.mode=protected.
 */
#include <fcntl.h>
#include <pthread.h>

#include "gmem_pkvm_fixture.h"

#define GPA2	(GMEM_GPA + 2 * NPAGES * PG)

PVM_FIXTURES(attack, GUEST_MEMFD_FLAG_MMAP)
PVM_FIXTURE(told, GUEST_MEMFD_FLAG_MMAP, true)

#define ATTACK(name)		TEST_F_TIMEOUT(attack, name, TIMEOUT)
#define TOLD_ATTACK(name)	TEST_F_TIMEOUT(told, name, TIMEOUT)

static void set_x(struct cpu *c, int n, u64 value)
{
	vcpu_set_reg(c->vcpu, ARM64_CORE_REG(regs.regs[0]) + n * 2, value);
}

static s64 get_x(struct cpu *c, int n)
{
	return vcpu_get_reg(c->vcpu, ARM64_CORE_REG(regs.regs[0]) + n * 2);
}

static void write_bytes(struct cpu *c, u64 offset, const void *bytes, u64 n)
{
	u64 i;

	for (i = 0; i < n; i++) {
		c->cmd->op = GMEM_OP_WRITE;
		c->cmd->gpa = GMEM_GPA + offset + i;
		c->cmd->value = ((const u8 *)bytes)[i];
		TEST_ASSERT(cpu_run(c), "A fault");
	}
}

/*
 * Answers the hypercall, then sets the guest's registers to other values.
 * Returns the result that the guest gets.
 */
static s64 answer(struct cpu *c, u64 ret, s64 x0)
{
	struct kvm_run *run = c->vcpu->run;
	int i;

	run->hypercall.ret = ret;
	run->immediate_exit = 1;
	TEST_ASSERT(__vcpu_run(c->vcpu) && errno == EINTR, "No EINTR: %d", errno);
	run->immediate_exit = 0;
	set_x(c, 0, x0);
	for (i = 1; i < 4; i++)
		set_x(c, i, 0x5a5a5a5a);
	TEST_ASSERT(cpu_run(c), "A fault");
	return c->cmd->value;
}

/* --- Replacing the guest's bytes ------------------------------------------ */

/* mov x0, #7; ret, and the same with 42 */
static const u32 own_code[] = { 0xd28000e0, 0xd65f03c0 };
static const u32 other_code[] = { 0xd2800540, 0xd65f03c0 };

/* Punch out the guest's code, put other code there, and let the guest call it. */
ATTACK(h46_code_is_not_exchanged)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	u64 lost;
	int i;

	cpu_start(c);
	write_bytes(c, 0, own_code, sizeof(own_code));
	cpu_fill(c, PG, PG, GMEM_SEED(1));
	TEST_ASSERT_EQ(cpu_do(c, GMEM_OP_CALL, 0, 0, 0), 7);

	assert_errno(gmem_set(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);
	assert_errno(gmem_punch(p->fd, 0, PG), 0);
	gmem_convert(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 0, PG, GMEM_ZEROES);
	memcpy(p->mem, other_code, sizeof(other_code));
	gmem_convert(p->fd, 0, PG, GMEM_PRIVATE, GMEM_PRESERVE);

	lost = c->lost;
	for (i = 0; i < 3; i++) {
		TEST_ASSERT(!__cpu_do(c, GMEM_OP_CALL, 0, 0, 0), "The guest runs other code");
		TEST_ASSERT_EQ(c->lost, lost + 1 + i);
		TEST_ASSERT_EQ(c->vcpu->run->memory_fault.gpa, GMEM_GPA);
	}
	/* Another hole, ZERO, or a retry do not help. */
	assert_errno(gmem_punch(p->fd, 0, PG), 0);
	gmem_convert(p->fd, 0, PG, GMEM_PRIVATE, GMEM_ZERO);
	TEST_ASSERT(!cpu_run(c), "The guest runs zeroes");
	/* Only this address is lost, not the guest. */
	vcpu_set_reg(c->vcpu, ARM64_CORE_REG(regs.pc),
		     vcpu_get_reg(c->vcpu, ARM64_CORE_REG(regs.regs[0]) + 30 * 2));
	TEST_ASSERT(cpu_run(c), "The guest does not continue");
	cpu_check(c, PG, PG, GMEM_SEED(1));
	cpu_assert_lost(c, 0);
}

/* The same page at a second address, in every possible way. */
ATTACK(h46_no_page_at_two_addresses)
{
	struct pvm *p = &self->p, q;
	struct cpu *c;
	int r, other;

	/* A second memslot of the same pages, and an ordinary one of their mapping. */
	TEST_ASSERT(__vm_set_user_memory_region2(p->vm, GMEM_SLOT + 1, KVM_MEM_GUEST_MEMFD, GPA2,
						 NPAGES * PG, NULL, p->fd, 0), "Bound twice");
	TEST_ASSERT(__vm_set_user_memory_region2(p->vm, GMEM_SLOT + 1, KVM_MEM_GUEST_MEMFD, GPA2,
						 PG, NULL, p->fd, PG), "Bound twice");
	vm_set_user_memory_region(p->vm, GMEM_SLOT + 1, 0, GPA2, NPAGES * PG, p->mem);
	virt_map(p->vm, GPA2, GPA2, NPAGES);
	/* Another VM cannot have the file at all. */
	pvm_create(&q, GUEST_MEMFD_FLAG_MMAP, variant->exits);
	TEST_ASSERT(__vm_set_user_memory_region2(q.vm, GMEM_SLOT + 1, KVM_MEM_GUEST_MEMFD, GPA2,
						 NPAGES * PG, NULL, p->fd, 0), "Bound elsewhere");
	pvm_destroy(&q);

	c = &p->cpu[0];
	cpu_start(c);
	cpu_start(&p->cpu[1]);
	cpu_fill(c, 0, 2 * PG, GMEM_SEED(1));
	/* A page that the guest owns, one that it shares, and one that it has never had. */
	cpu_share(c, PG, PG);
	gmem_convert(p->fd, PG, 2 * PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, PG, PG, GMEM_SEED(1));
	gmem_fill(p->mem + 2 * PG, PG, GMEM_SEED(2), 2 * PG);

	for (other = 0; other < 3; other++) {
		struct cpu *d = &p->cpu[1];

		d->cmd->op = GMEM_OP_READ;
		d->cmd->gpa = GPA2 + other * PG;
		r = __vcpu_run(d->vcpu);
		TEST_ASSERT(r && (errno == EFAULT || errno == EIO), "Page %d: %d, errno %d", other,
			    r, errno);
		cpu_skip(d);
	}
	/* This leaves no reference to a page. */
	cpu_check(c, 0, 2 * PG, GMEM_SEED(1));
	gmem_convert(p->fd, PG, 2 * PG, GMEM_PRIVATE, GMEM_PRESERVE);
	cpu_unshare(c, PG, PG);
	cpu_check(c, 0, 2 * PG, GMEM_SEED(1));
	cpu_check(c, 2 * PG, PG, GMEM_SEED(2));
}

/* --- False answers to the guest's requests -------------------------------- */

/* The answer says that the page is shared when it is not, and the other way round. */
TOLD_ATTACK(h47_share_is_what_el2_did)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];

	cpu_start(c);
	cpu_fill(c, 0, 4 * PG, GMEM_SEED(1));

	/* Converted, and then refused: the page is shared, and the guest gets SUCCESS. */
	until_told(c, GMEM_OP_SHARE, 0);
	gmem_convert(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE);
	TEST_ASSERT_EQ(answer(c, EPERM, INVALID_PARAMETER), 0);
	host_check(p, 0, PG, GMEM_SEED(1));

	/* The same, without a refusal in the answer. */
	until_told(c, GMEM_OP_SHARE, PG);
	gmem_convert(p->fd, PG, PG, GMEM_SHARED, GMEM_PRESERVE);
	TEST_ASSERT_EQ(answer(c, 0, INVALID_PARAMETER), 0);

	/* Refused: the page is not shared, and the guest does not wait for a device. */
	until_told(c, GMEM_OP_SHARE, 2 * PG);
	TEST_ASSERT_EQ(answer(c, EPERM, 0), INVALID_PARAMETER);
	assert_errno(gmem_set_once(p->fd, 2 * PG, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);

	/* The page is taken away while shared: the next page at the address is not shared. */
	until_told(c, GMEM_OP_SHARE, 3 * PG);
	gmem_convert(p->fd, 3 * PG, PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 3 * PG, PG, GMEM_SEED(1));
	gmem_convert(p->fd, 3 * PG, PG, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(gmem_punch(p->fd, 3 * PG, PG), 0);
	TEST_ASSERT_EQ(answer(c, 0, INVALID_PARAMETER), 0);
	cpu_check(c, 3 * PG, PG, GMEM_ZEROES);
	cpu_fill(c, 3 * PG, PG, GMEM_SEED(9));
	assert_errno(gmem_set_once(p->fd, 3 * PG, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);
}

/*
 * A page whose sharing is refused was never shared, not even for a moment: a hole
 * that is punched during the exit finds that the guest owns it. So does a request
 * for more pages than the guest wants to share.
 */
TOLD_ATTACK(h47_refused_share_shares_nothing)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	u64 eo;

	cpu_start(c);
	cpu_fill(c, 0, 4 * PG, GMEM_SEED(1));

	until_told(c, GMEM_OP_SHARE, 0);
	assert_errno(gmem_punch(p->fd, 0, PG), 0);
	TEST_ASSERT_EQ(answer(c, EPERM, 0), INVALID_PARAMETER);
	cpu_assert_lost(c, 0);

	/* The host cannot share the page on behalf of this hypercall. */
	until_told(c, GMEM_OP_SHARE, PG);
	assert_errno(gmem_set_once(p->fd, 2 * PG, PG, GMEM_SHARED, GMEM_PRESERVE, &eo), EPERM);
	assert_errno(gmem_set_once(p->fd, PG, 2 * PG, GMEM_PRIVATE, GMEM_ZERO, &eo), EOPNOTSUPP);
	TEST_ASSERT_EQ(eo, PG);
	TEST_ASSERT_EQ(answer(c, EPERM, 0), INVALID_PARAMETER);
	assert_errno(gmem_set_once(p->fd, PG, PG, GMEM_SHARED, GMEM_PRESERVE, &eo), EPERM);
	assert_errno(gmem_punch(p->fd, PG, PG), 0);
	cpu_assert_lost(c, PG);
	cpu_check(c, 2 * PG, 2 * PG, GMEM_SEED(1));

	/* Agreed to without a conversion: the page is shared, the file can be converted later. */
	until_told(c, GMEM_OP_SHARE, 2 * PG);
	TEST_ASSERT_EQ(answer(c, 0, INVALID_PARAMETER), 0);
	gmem_convert(p->fd, 2 * PG, PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 2 * PG, PG, GMEM_SEED(1));
}

/*
 * The VMM answers an UNSHARE as if it were a SHARE. The guest does not get the page back
 * while the file says that it is shared, and the host has it mapped.
 */
TOLD_ATTACK(h47_unshare_is_no_share)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];

	cpu_start(c);
	cpu_fill(c, 0, PG, GMEM_SEED(1));
	until_told(c, GMEM_OP_SHARE, 0);
	gmem_convert(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE);
	TEST_ASSERT_EQ(answer(c, 0, 0), 0);

	until_told(c, GMEM_OP_UNSHARE, 0);
	set_x(c, 0, MEM_SHARE);
	TEST_ASSERT_EQ(answer(c, 0, 0), INVALID_PARAMETER);
	host_check(p, 0, PG, GMEM_SEED(1));
}

/* mov x<d>, #<value>, in four instructions */
static u32 *put_mov(u32 *code, int d, u64 value)
{
	int hw;

	for (hw = 0; hw < 4; hw++)
		*code++ = (hw ? 0xf2800000 : 0xd2800000) | hw << 21 |
			  (value >> (16 * hw) & 0xffff) << 5 | d;
	return code;
}

/*
 * The guest is entered, and stops before its first instruction: its code, which it
 * shares, was punched out. The VMM cannot change the answer then.
 */
TOLD_ATTACK(h47_answer_stays_until_the_guest_goes_on)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	struct kvm_run *run = c->vcpu->run;
	u32 code[20], *next = code;
	int i;

	next = put_mov(next, 0, MEM_SHARE);
	next = put_mov(next, 1, GMEM_GPA + PG);
	next = put_mov(next, 2, 0);
	next = put_mov(next, 3, 0);
	*next++ = 0xd4000002;	/* hvc #0 */
	*next++ = 0xd65f03c0;	/* ret */

	cpu_start(c);
	cpu_fill(c, PG, PG, GMEM_SEED(1));
	write_bytes(c, 0, code, (next - code) * sizeof(*code));
	cpu_share(c, 0, PG);

	c->cmd->op = GMEM_OP_CALL;
	c->cmd->gpa = GMEM_GPA;
	TEST_ASSERT(!__vcpu_run(c->vcpu), "KVM_RUN: errno %d", errno);
	TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_HYPERCALL);
	TEST_ASSERT_EQ(run->hypercall.args[0], GMEM_GPA + PG);
	assert_errno(gmem_punch(p->fd, 0, PG), 0);
	run->hypercall.ret = EPERM;
	for (i = 0; i < 4; i++) {
		TEST_ASSERT(__vcpu_run(c->vcpu) && errno == EFAULT, "No fault: errno %d", errno);
		TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_MEMORY_FAULT);
		TEST_ASSERT_EQ(run->memory_fault.gpa, GMEM_GPA);
		TEST_ASSERT_EQ(get_x(c, 0), INVALID_PARAMETER);
		TEST_ASSERT_EQ(get_x(c, 1), 0);
		set_x(c, 0, 0);
		set_x(c, 1, 0x5a5a5a5a);
	}
	/* At another address it does not wait for an answer. */
	set_x(c, 0, 77);
	vcpu_set_reg(c->vcpu, ARM64_CORE_REG(regs.pc), get_x(c, 30));
	TEST_ASSERT(cpu_run(c), "The guest does not continue");
	TEST_ASSERT_EQ(c->cmd->value, 77);
	assert_errno(gmem_set_once(p->fd, PG, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);
	cpu_check(c, PG, PG, GMEM_SEED(1));
}

/*
 * The same for calls that EL2 answers at once: the call is at the end of a page, and the
 * guest has not got the next page yet.
 */
ATTACK(h47_answer_stays_at_the_end_of_a_page)
{
	/* hvc #0, smc #0 */
	static const u32 calls[] = { 0xd4000002, 0xd4000003 };
	static const s64 answers[] = { INVALID_PARAMETER, -1 };
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	struct kvm_run *run = c->vcpu->run;
	u32 code[20], *next;
	u64 size;
	int i, j;

	cpu_start(c);
	gmem_convert(p->fd, PG, PG, GMEM_SHARED, GMEM_PRESERVE);
	cpu_fill(c, 2 * PG, PG, GMEM_SEED(1));
	for (i = 0; i < ARRAY_SIZE(calls); i++) {
		/* It is the guest's own, and not shared. */
		next = put_mov(code, 0, MEM_UNSHARE);
		next = put_mov(next, 1, GMEM_GPA + 2 * PG);
		next = put_mov(next, 2, 0);
		next = put_mov(next, 3, 0);
		*next++ = calls[i];
		size = (next - code) * sizeof(*code);
		write_bytes(c, PG - size, code, size);

		c->cmd->op = GMEM_OP_CALL;
		c->cmd->gpa = GMEM_GPA + PG - size;
		for (j = 0; j < 4; j++) {
			TEST_ASSERT(__vcpu_run(c->vcpu) && errno == EFAULT, "No fault: errno %d",
				    errno);
			TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_MEMORY_FAULT);
			TEST_ASSERT_EQ(run->memory_fault.gpa, GMEM_GPA + PG);
			TEST_ASSERT_EQ(get_x(c, 0), answers[i]);
			TEST_ASSERT_EQ(get_x(c, 1), 0);
			set_x(c, 0, 0);
			set_x(c, 1, 1);
		}
		set_x(c, 0, 77);
		vcpu_set_reg(c->vcpu, ARM64_CORE_REG(regs.pc), get_x(c, 30));
		TEST_ASSERT(cpu_run(c), "The guest does not continue");
		TEST_ASSERT_EQ(c->cmd->value, 77);
	}
}

/* The host emulates the first instruction after a call: EL2 keeps its result. */
ATTACK(load_from_a_device_after_an_answer)
{
	static const u32 functions[] = { VENDOR_HYP_FEATURES, MEM_SHARE, MEM_SHARE };
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	struct kvm_run *run = c->vcpu->run;
	const u64 device = *(u64 *)addr_gva2hva(p->vm, (gva_t)&ucall_exit_mmio_addr);
	u32 code[24], *next;
	int i;

	cpu_start(c);
	cpu_fill(c, PG, PG, GMEM_SEED(1));
	for (i = 0; i < ARRAY_SIZE(functions); i++) {
		next = put_mov(code, 0, functions[i]);
		next = put_mov(next, 1, GMEM_GPA + PG);
		next = put_mov(next, 2, 0);
		next = put_mov(next, 3, 0);
		next = put_mov(next, 4, device);
		*next++ = 0xd4000002;	/* hvc #0 */
		*next++ = 0xf9400080;	/* ldr x0, [x4] */
		*next++ = 0xd65f03c0;	/* ret */
		write_bytes(c, 0, code, (next - code) * sizeof(*code));

		c->cmd->op = GMEM_OP_CALL;
		c->cmd->gpa = GMEM_GPA;
		TEST_ASSERT(!__vcpu_run(c->vcpu), "KVM_RUN: errno %d", errno);
		/* The second SHARE fails at once. */
		if (variant->exits && i == 1) {
			TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_HYPERCALL);
			run->hypercall.ret = 0;
			TEST_ASSERT(!__vcpu_run(c->vcpu), "KVM_RUN: errno %d", errno);
		}
		TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_MMIO);
		TEST_ASSERT(!run->mmio.is_write && run->mmio.len == 8, "No load");
		*(u64 *)run->mmio.data = 0x1234 + i;
		TEST_ASSERT(cpu_run(c), "A fault");
		TEST_ASSERT_EQ(c->cmd->value, 0x1234 + i);
	}
}

/* A vCPU that is reset during an exit does not wait for an answer any more. */
TOLD_ATTACK(reset_vcpu_hears_no_answer)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0], *gone = &p->cpu[1];
	const u64 mail = get_x(gone, 0), mail_gpa = get_x(gone, 1);
	const u64 sp = vcpu_get_reg(gone->vcpu, ARM64_CORE_REG(sp_el1));
	struct kvm_run *run = gone->vcpu->run;
	struct kvm_vcpu_init init;
	int round, i;

	cpu_start(c);
	cpu_start(gone);
	cpu_fill(c, 0, PG, GMEM_SEED(1));
	kvm_get_default_vcpu_target(p->vm, &init);

	for (round = 0; round < 2; round++) {
		gone->cmd->op = round ? GMEM_OP_UNSHARE : GMEM_OP_SHARE;
		gone->cmd->gpa = GMEM_GPA;
		gone->cmd->size = PG;
		TEST_ASSERT(!__vcpu_run(gone->vcpu), "KVM_RUN: errno %d", errno);
		TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_HYPERCALL);

		aarch64_vcpu_setup(gone->vcpu, &init);
		vcpu_set_reg(gone->vcpu, ARM64_CORE_REG(sp_el1), sp);
		vcpu_set_reg(gone->vcpu, ARM64_CORE_REG(regs.pc), (u64)guest_code);
		set_x(gone, 0, mail);
		set_x(gone, 1, mail_gpa);
		gone->cmd->op = GMEM_OP_HVC;
		gone->cmd->pattern = VENDOR_HYP_FEATURES;
		for (i = 0; i < 2; i++) {
			TEST_ASSERT(!__vcpu_run(gone->vcpu), "KVM_RUN: errno %d", errno);
			TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_MMIO);
			/* It shares its mailbox once more. */
			TEST_ASSERT_EQ(*(s64 *)run->mmio.data, INVALID_PARAMETER);
		}
		TEST_ASSERT(gone->cmd->value & BIT(9), "%#lx", (u64)gone->cmd->value);

		/* Its request was not carried out, and can no longer be. */
		assert_errno(gmem_set_once(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, NULL),
			     round ? 0 : EPERM);
		if (!round)
			cpu_share(c, 0, PG);
	}
	host_check(p, 0, PG, GMEM_SEED(1));
}

TOLD_ATTACK(h47_unshare_is_what_el2_did)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];

	cpu_start(c);
	cpu_fill(c, 0, 2 * PG, GMEM_SEED(1));
	cpu_share(c, 0, 2 * PG);

	/* Nothing was done, and the VMM tries to report success. */
	until_told(c, GMEM_OP_UNSHARE, 0);
	TEST_ASSERT_EQ(answer(c, 0, 0), INVALID_PARAMETER);
	until_told(c, GMEM_OP_UNSHARE, 0);
	TEST_ASSERT_EQ(answer(c, EPERM, 0), INVALID_PARAMETER);
	/* Another page in the guest's registers. */
	until_told(c, GMEM_OP_UNSHARE, 0);
	gmem_convert(p->fd, 0, 2 * PG, GMEM_PRIVATE, GMEM_PRESERVE);
	set_x(c, 1, GMEM_GPA + PG);
	c->vcpu->run->hypercall.ret = 0;
	TEST_ASSERT(cpu_run(c), "A fault");
	TEST_ASSERT_EQ((s64)c->cmd->value, INVALID_PARAMETER);
	gmem_convert(p->fd, 0, 2 * PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 0, 2 * PG, GMEM_SEED(1));

	/* It was done, and the VMM tries to report a failure. */
	until_told(c, GMEM_OP_UNSHARE, 0);
	gmem_convert(p->fd, 0, PG, GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT_EQ(answer(c, 0, INVALID_PARAMETER), 0);
	assert_errno(gmem_set_once(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);
	cpu_check(c, 0, 2 * PG, GMEM_SEED(1));

	/* A guest that gives a page back gets SUCCESS. */
	until_told(c, GMEM_OP_RELINQUISH, 0);
	TEST_ASSERT_EQ(answer(c, EPERM, INVALID_PARAMETER), 0);
	cpu_check(c, 0, PG, GMEM_ZEROES);
}

/*
 * An SMC with the number of one of EL2's calls does nothing, and the host does not get to
 * answer it. The host's KVM would answer FEATURES.
 */
TOLD_ATTACK(smc_shares_nothing)
{
	static const u32 functions[] = {
		MEM_SHARE, MEM_UNSHARE, MEM_RELINQUISH, VENDOR_HYP_FEATURES, HYP_MEMINFO,
	};
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	int i;

	cpu_start(c);
	c->shares = 0;
	cpu_fill(c, 0, PG, GMEM_SEED(1));
	for (i = 0; i < ARRAY_SIZE(functions); i++) {
		/* The page is at the offset that is the second argument, which is to be 0. */
		TEST_ASSERT_EQ((s64)cpu_do(c, GMEM_OP_SMC, 0, PG, functions[i]), -1);
		TEST_ASSERT_EQ(c->shares + c->unshares + c->relinquishes, 0);
	}
	assert_errno(gmem_set_once(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);
	cpu_check(c, 0, PG, GMEM_SEED(1));
}

/*
 * A vCPU is reset before its hypercall is answered. The answer comes later, when the
 * guest, on another vCPU, has already used the page for something else.
 */
TOLD_ATTACK(replay_after_teardown_of_a_vcpu)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0], *gone = &p->cpu[1];
	struct kvm_vcpu_init init;
	int i;

	cpu_start(c);
	cpu_start(gone);
	cpu_fill(c, 0, 2 * PG, GMEM_SEED(1));

	until_told(gone, GMEM_OP_SHARE, 0);
	gmem_convert(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 0, PG, GMEM_SEED(1));
	kvm_get_default_vcpu_target(p->vm, &init);
	vcpu_ioctl(gone->vcpu, KVM_ARM_VCPU_INIT, &init);

	/* The guest takes it back, and shares it again. */
	cpu_unshare(c, 0, PG);
	cpu_fill(c, 0, PG, GMEM_SEED(2));
	assert_errno(gmem_set_once(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);
	cpu_share(c, 0, PG);
	gmem_convert(p->fd, 0, PG, GMEM_PRIVATE, GMEM_PRESERVE);

	/* The old request is answered with a refusal, and then as a forged UNSHARE: neither counts. */
	for (i = 0; i < 2; i++) {
		set_x(gone, 0, i ? MEM_UNSHARE : MEM_SHARE);
		set_x(gone, 1, GMEM_GPA);
		gone->vcpu->run->hypercall.ret = i ? 0 : EPERM;
		gone->vcpu->run->immediate_exit = 1;
		TEST_ASSERT(__vcpu_run(gone->vcpu) && errno == EINTR, "No EINTR: %d", errno);
	}
	/* The guest shares it, and gets SUCCESS. */
	gmem_convert(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 0, PG, GMEM_SEED(2));
	cpu_unshare(c, 0, PG);
	cpu_check(c, 0, PG, GMEM_SEED(2));
}

/* --- Races ------------------------------------------------------------------ */

struct race {
	struct pvm *p;
	_Atomic int running;
	u64 result[256];	/* by errno */
};

/* Converts a page that the guest gives back, and writes other bytes there. */
static void *convert_and_write(void *arg)
{
	static const u64 policies[] = { GMEM_PRESERVE, GMEM_NONE, GMEM_ZERO };
	struct race *race = arg;
	struct pvm *p = race->p;
	u64 n, at, w;
	int r;

	for (n = 0; race->running; n++) {
		at = n % NPAGES * PG;
		r = gmem_set_once(p->fd, at, PG, GMEM_SHARED, policies[n / NPAGES % 3], NULL);
		race->result[r]++;
		TEST_ASSERT(!r || r == EPERM, "To shared: errno %d", r);
		for (w = 0; !r && w < PG; w += 256)
			gmem_host_write(p->mem + at + w, 0x5a);
		r = gmem_set_once(p->fd, at, PG, GMEM_PRIVATE, policies[n % 2], NULL);
		TEST_ASSERT(!r || r == EAGAIN, "To private: errno %d", r);
	}
	return NULL;
}

ATTACK(conversion_against_relinquish)
{
	struct pvm *p = &self->p;
	struct race race = { .p = p, .running = 1 };
	struct cpu *c = &p->cpu[0];
	pthread_t converter;

	cpu_start(c);
	pthread_create(&converter, NULL, convert_and_write, &race);
	c->cmd->op = GMEM_OP_RELINQUISHES;
	c->cmd->gpa = GMEM_GPA;
	c->cmd->size = NPAGES * PG;
	c->cmd->pattern = variant->exits ? 2000 : 5000;
	c->cmd->pos = 1;
	TEST_ASSERT(cpu_run(c), "A page is lost");
	race.running = 0;
	pthread_join(converter, NULL);

	TH_LOG("converted %lu times, refused %lu times", race.result[0], race.result[EPERM]);
	TEST_ASSERT(!c->cmd->value, "The guest has seen %ld wrong bytes", (long)c->cmd->value);
	TEST_ASSERT(race.result[0] && race.result[EPERM], "The races never met");
}

/* --- Memory that fails ------------------------------------------------------ */

/* A page that the guest shares. The guest stops reading it, and can get another page. */
ATTACK(memory_that_fails_while_shared)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];

	cpu_start(c);
	cpu_fill(c, 2 * PG, PG, GMEM_SEED(1));
	cpu_share(c, 2 * PG, PG);
	gmem_convert(p->fd, 2 * PG, PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 2 * PG, PG, GMEM_SEED(1));
	assert_errno(gmem_host_poison(p->mem + 2 * PG), 0);

	gmem_convert(p->fd, 2 * PG, PG, GMEM_PRIVATE, GMEM_PRESERVE);
	cpu_assert_lost(c, 2 * PG);
	assert_errno(gmem_punch(p->fd, 2 * PG, PG), 0);
	cpu_check(c, 2 * PG, PG, GMEM_ZEROES);
	TEST_ASSERT_EQ((s64)cpu_do(c, GMEM_OP_UNSHARE, 2 * PG, PG, 0), INVALID_PARAMETER);
	cpu_fill(c, 2 * PG, PG, GMEM_SEED(2));
}

/* A page that the guest owns. Its address is lost with it, and nothing touches the page. */
ATTACK(memory_that_fails_while_kept)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	char frame[32];
	int fd, n;

	cpu_start(c);
	cpu_fill(c, 0, 4 * PG, GMEM_SEED(1));
	cpu_share(c, 2 * PG, PG);
	gmem_convert(p->fd, 2 * PG, PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 2 * PG, PG, GMEM_SEED(1));
	n = snprintf(frame, sizeof(frame), "%#lx\n", gmem_frame_of(p->mem + 2 * PG));
	gmem_convert(p->fd, 2 * PG, PG, GMEM_PRIVATE, GMEM_PRESERVE);
	cpu_unshare(c, 2 * PG, PG);
	cpu_check(c, 0, 4 * PG, GMEM_SEED(1));

	fd = open("/sys/kernel/debug/hwpoison/corrupt-pfn", O_WRONLY);
	TEST_ASSERT(fd >= 0, "hwpoison/corrupt-pfn: %d", errno);
	TEST_ASSERT(write(fd, frame, n) == n || errno == EBUSY, "corrupt-pfn: %d", errno);
	close(fd);

	cpu_assert_lost(c, 2 * PG);
	/* The file keeps it until a hole is punched, and the host cannot use it either. */
	gmem_convert(p->fd, 2 * PG, PG, GMEM_SHARED, GMEM_PRESERVE);
	TEST_ASSERT(gmem_host_refused(p->mem + 2 * PG), "The host has failed memory");
	gmem_convert(p->fd, 2 * PG, PG, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(gmem_punch(p->fd, 2 * PG, PG), 0);
	cpu_assert_lost(c, 2 * PG);
	/* The file has a new page, which the guest does not see. */
	gmem_convert(p->fd, 2 * PG, PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 2 * PG, PG, GMEM_ZEROES);
	cpu_check(c, 0, 2 * PG, GMEM_SEED(1));
	cpu_check(c, 3 * PG, PG, GMEM_SEED(1));
}

TEST_HARNESS_MAIN
