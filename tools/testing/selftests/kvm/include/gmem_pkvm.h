/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Protected VMs on arm64 whose guests execute commands of the host.
 *
 * The host cannot read a protected guest's memory. So the guest first shares a page,
 * takes its commands from there, and ends each with a write to the address that
 * libkvm has for ucalls. Programs that include this are linked with
 * -Wl,--wrap=ioctl.
 */
#ifndef SELFTEST_KVM_GMEM_PKVM_H
#define SELFTEST_KVM_GMEM_PKVM_H

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/arm-smccc.h>

#include "gmem_test.h"

#define KVM_VM_TYPE_ARM_PROTECTED	(1UL << 31)
#define HYP_MEMINFO			0xc6000002u
#define MEM_SHARE			0xc6000003u
#define MEM_UNSHARE			0xc6000004u
#define MEM_RELINQUISH			0xc6000009u
#define VENDOR_HYP_FEATURES		0x86000000u
#define INVALID_PARAMETER		(-3l)

#ifndef KVM_MAP_GPA_RANGE_ENCRYPTED
#define KVM_MAP_GPA_RANGE_ENCRYPTED	(1 << 4)
#define KVM_MAP_GPA_RANGE_DECRYPTED	0
#endif
#ifndef KVM_MAP_GPA_RANGE_RELINQUISHED
#define KVM_MAP_GPA_RANGE_RELINQUISHED	(1 << 5)
#endif

#define PG	((u64)SZ_4K)
#define NPAGES	64ul
#define NVCPUS	2

/* --- libkvm, and protected VMs ------------------------------------------- */

int __real_ioctl(int fd, unsigned long cmd, void *arg);
int __wrap_ioctl(int fd, unsigned long cmd, void *arg);

/* The linker sends all of libkvm's ioctls here: it has no VM types for arm64. */
int __wrap_ioctl(int fd, unsigned long cmd, void *arg)
{
	if (cmd == KVM_CREATE_VM)
		arg = (void *)((unsigned long)arg | KVM_VM_TYPE_ARM_PROTECTED);
	return __real_ioctl(fd, cmd, arg);
}

/* Pages that EL2 has taken from guests because the host's kernel touched them. */
static inline u64 force_reclaims(void)
{
	u64 n;
	FILE *f = fopen("/sys/kernel/debug/pkvm/force_reclaims", "r");

	TEST_ASSERT(f && fscanf(f, "%lu", &n) == 1, "No counter of force-reclaims");
	fclose(f);
	return n;
}

/* --- The guest ----------------------------------------------------------- */

static inline u64 hypercall(u32 function, u64 gpa)
{
	struct arm_smccc_res res;

	smccc_hvc(function, gpa, 0, 0, 0, 0, 0, 0, &res);
	return res.a0;
}

/*
 * Gives pages back and uses them again, @n times in all. The guest's bytes stay until
 * it gives the page back. After that it finds zeroes, whatever the host does meanwhile.
 */
static inline u64 guest_relinquishes(u64 gpa, u64 npages, u64 n, u64 seed)
{
	volatile u64 *mem;
	u64 lost = 0, i;

	for (i = 0; i < n; i++) {
		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		mem = (volatile u64 *)(gpa + (seed >> 33) % npages * SZ_4K);

		mem[0] = mem[511] = seed;
		lost += mem[0] != seed || mem[511] != seed;
		lost += !!hypercall(MEM_RELINQUISH, (u64)mem);
		lost += mem[0] || mem[256] || mem[511];
	}
	return lost;
}

/*
 * Shares and unshares pages, @n times in all. Bytes that the guest writes to a page
 * of its own have to stay until it shares the page again.
 */
static inline u64 guest_storm(u64 gpa, u64 npages, u64 n, u64 seed)
{
	u64 tag[NPAGES] = {}, lost = 0, i, page;
	volatile u64 *mem;

	for (i = 0; i < n; i++) {
		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		page = (seed >> 33) % npages;
		mem = (volatile u64 *)(gpa + page * SZ_4K);

		if (tag[page])
			lost += mem[0] != tag[page] || mem[511] != tag[page];
		/* User space may refuse either for some time. */
		while (hypercall(MEM_SHARE, (u64)mem))
			;
		mem[1] = seed;
		while (hypercall(MEM_UNSHARE, (u64)mem))
			;
		tag[page] = seed | 1;
		mem[0] = tag[page];
		mem[511] = tag[page];
	}
	return lost;
}

static inline void guest_code(volatile struct gmem_cmd *cmd, u64 cmd_gpa)
{
	u64 i, first = hypercall(MEM_SHARE, cmd_gpa);
	struct arm_smccc_res res;
	volatile u8 *mem;

	for (;;) {
		WRITE_ONCE(*ucall_exit_mmio_addr, first);

		mem = (volatile u8 *)cmd->gpa;
		switch (cmd->op) {
		case GMEM_OP_FILL:
			gmem_fill(mem, cmd->size, cmd->pattern, cmd->pos);
			break;
		case GMEM_OP_CHECK:
			cmd->bad = gmem_check(mem, cmd->size, cmd->pattern, cmd->pos);
			if (cmd->bad != GMEM_ALL_GOOD)
				cmd->value = mem[cmd->bad];
			break;
		case GMEM_OP_READ:
			cmd->value = *mem;
			break;
		case GMEM_OP_WRITE:
			*mem = cmd->value;
			break;
		case GMEM_OP_SHARE:
		case GMEM_OP_UNSHARE:
		case GMEM_OP_RELINQUISH:
			/* The first failure counts, and @bad is its place. */
			cmd->value = 0;
			for (i = 0; i < cmd->size && !cmd->value; i += SZ_4K) {
				cmd->bad = i;
				cmd->value = hypercall(cmd->op == GMEM_OP_SHARE ? MEM_SHARE :
						       cmd->op == GMEM_OP_UNSHARE ? MEM_UNSHARE :
						       MEM_RELINQUISH, cmd->gpa + i);
			}
			break;
		case GMEM_OP_HVC:
			smccc_hvc(cmd->pattern, cmd->gpa, cmd->pos, 0, 0, 0, 0, 0, &res);
			cmd->value = res.a0;
			cmd->bad = res.a1;
			break;
		case GMEM_OP_SMC:
			smccc_smc(cmd->pattern, cmd->gpa, cmd->pos, 0, 0, 0, 0, 0, &res);
			cmd->value = res.a0;
			break;
		case GMEM_OP_CALL:
			cmd->value = ((u64 (*)(void))cmd->gpa)();
			break;
		case GMEM_OP_COPY:
			for (i = 0; i < cmd->size; i += sizeof(u64))
				*(volatile u64 *)(cmd->gpa + i) = *(volatile u64 *)(cmd->pos + i);
			break;
		case GMEM_OP_STORM:
			cmd->value = guest_storm(cmd->gpa, cmd->size / SZ_4K, cmd->pattern,
						 cmd->pos);
			break;
		case GMEM_OP_RELINQUISHES:
			cmd->value = guest_relinquishes(cmd->gpa, cmd->size / SZ_4K, cmd->pattern,
							cmd->pos);
			break;
		default:
			cmd->value = -1;
		}
	}
}

/* --- The VM -------------------------------------------------------------- */

struct pvm;

/* A vCPU, and the events of its runs. */
struct cpu {
	struct pvm *p;
	struct kvm_vcpu *vcpu;
	volatile struct gmem_cmd *cmd;
	u64 wanted_private;	/* memory faults */
	u64 lost;		/* memory faults that no conversion resolves */
	u64 shares, unshares, relinquishes;	/* hypercalls */
	u64 pages;		/* of the last of these */
	u64 again;		/* EAGAIN of conversions */
};

struct pvm {
	struct kvm_vm *vm;
	struct cpu cpu[NVCPUS];
	int fd;
	u8 *mem;
	bool exits;		/* KVM_CAP_EXIT_HYPERCALL */
	bool refuse;		/* refuses the guest's SHARE and UNSHARE */
	bool stop_at_fault;	/* does not convert for the guest */
	bool punch;		/* frees what the guest has given back */
	u64 reclaims;		/* force_reclaims() at the beginning */
};

static inline u64 offset_of(gpa_t gpa)
{
	return gpa - GMEM_GPA;
}

static inline bool in_gmem(gpa_t gpa)
{
	return gpa >= GMEM_GPA && gpa < GMEM_GPA + NPAGES * PG;
}

static inline void pvm_create(struct pvm *p, u64 flags, bool exits)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT };
	const struct userspace_mem_region *slot0;
	struct kvm_vcpu *vcpus[NVCPUS];
	int i;

	*p = (struct pvm){ .exits = exits, .reclaims = force_reclaims() };
	p->vm = __vm_create_with_vcpus(shape, NVCPUS, 2 * NPAGES, guest_code, vcpus);
	if (exits)
		vm_enable_cap(p->vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));

	p->fd = vm_create_guest_memfd(p->vm, NPAGES * PG, flags);
	vm_set_user_memory_region2(p->vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA,
				   NPAGES * PG, NULL, p->fd, 0);
	p->mem = kvm_mmap(NPAGES * PG, PROT_READ | PROT_WRITE, MAP_SHARED, p->fd);
	virt_map(p->vm, GMEM_GPA, GMEM_GPA, NPAGES);

	for (i = 0; i < NVCPUS; i++) {
		gva_t mail = vm_alloc_page(p->vm);

		p->cpu[i] = (struct cpu){
			.p = p,
			.vcpu = vcpus[i],
			.cmd = addr_gva2hva(p->vm, mail),
		};
		vcpu_args_set(vcpus[i], 2, mail, addr_gva2gpa(p->vm, mail));
	}
	/*
	 * Other memory than guest_memfd is pinned, and fork() copies pinned
	 * pages: the guest would lose them. See force_reclaims_are_counted.
	 */
	slot0 = memslot2region(p->vm, 0);
	kvm_madvise(slot0->host_mem, slot0->region.memory_size, MADV_DONTFORK);
	gmem_install_sigbus_handler();
}

static inline void pvm_destroy(struct pvm *p)
{
	/* None of the tests touches pages that the guest owns. */
	TEST_ASSERT_EQ(force_reclaims() - p->reclaims, 0);
	kvm_vm_free(p->vm);
	kvm_munmap(p->mem, NPAGES * PG);
	close(p->fd);
	TEST_ASSERT_EQ(force_reclaims() - p->reclaims, 0);
}

/* The guest's request by a hypercall: user space agrees or refuses. */
static inline void map_gpa_range(struct cpu *c)
{
	struct kvm_run *run = c->vcpu->run;
	gpa_t gpa = run->hypercall.args[0];
	u64 attributes, eo;
	int r;

	TEST_ASSERT(c->p->exits, "An exit that was not enabled");
	TEST_ASSERT_EQ(run->hypercall.nr, KVM_HC_MAP_GPA_RANGE);
	c->pages = run->hypercall.args[1];
	TEST_ASSERT(c->pages >= 1 && c->pages <= 32, "%lu pages", c->pages);
	if (run->hypercall.args[2] & KVM_MAP_GPA_RANGE_RELINQUISHED) {
		TEST_ASSERT_EQ(run->hypercall.args[2],
			       KVM_MAP_GPA_RANGE_RELINQUISHED | KVM_MAP_GPA_RANGE_ENCRYPTED);
		c->relinquishes++;
		if (c->p->punch && in_gmem(gpa))
			TEST_ASSERT(!gmem_punch(c->p->fd, offset_of(gpa), PG), "punch: %d", errno);
		TEST_ASSERT_EQ(c->pages, 1);
		/* The answer does not matter: it is done already. */
		run->hypercall.ret = EPERM;
		return;
	}
	TEST_ASSERT_EQ(run->hypercall.args[2] & ~(u64)KVM_MAP_GPA_RANGE_ENCRYPTED, 0);
	attributes = run->hypercall.args[2] ? GMEM_PRIVATE : GMEM_SHARED;
	if (attributes)
		c->unshares++;
	else
		c->shares++;

	run->hypercall.ret = 0;
	if (!in_gmem(gpa))
		return;
	if (c->p->refuse) {
		run->hypercall.ret = EPERM;
		return;
	}
	do {
		r = gmem_set_once(c->p->fd, offset_of(gpa), c->pages * PG, attributes,
				  GMEM_PRESERVE, &eo);
		if (r == EAGAIN)
			c->again++;
	} while (r == EAGAIN && c->again < 100000);
	run->hypercall.ret = r;
}

/*
 * Runs until the guest has done its command, and returns true. Returns false at a
 * fault that no conversion resolves, which is counted in c->lost, and with
 * stop_at_fault also at a fault that user space has to handle.
 */
static inline bool cpu_run(struct cpu *c)
{
	struct kvm_run *run = c->vcpu->run;
	int r;

	for (;;) {
		r = __vcpu_run(c->vcpu);
		if (r && errno == EINTR)
			continue;
		switch (run->exit_reason) {
		case KVM_EXIT_MMIO:
			TEST_ASSERT(!r && run->mmio.is_write &&
				    run->mmio.phys_addr == c->p->vm->ucall_mmio_addr,
				    "The guest is lost: MMIO at %#llx", run->mmio.phys_addr);
			TEST_ASSERT(!*(u64 *)run->mmio.data, "The guest shares no page: %#lx",
				    *(u64 *)run->mmio.data);
			return true;
		case KVM_EXIT_HYPERCALL:
			map_gpa_range(c);
			break;
		case KVM_EXIT_MEMORY_FAULT:
			TEST_ASSERT(r && (errno == EFAULT || errno == EHWPOISON), "%d, errno %d",
				    r, errno);
			TEST_ASSERT_EQ(run->memory_fault.flags, KVM_MEMORY_EXIT_FLAG_PRIVATE);
			TEST_ASSERT_EQ(run->memory_fault.size, PG);
			if (errno == EHWPOISON) {
				c->lost++;
				return false;
			}
			c->wanted_private++;
			if (c->p->stop_at_fault)
				return false;
			gmem_convert(c->p->fd, offset_of(run->memory_fault.gpa), PG, GMEM_PRIVATE,
				     GMEM_PRESERVE);
			break;
		default:
			TEST_FAIL("KVM_RUN: %d, errno %d, exit %s", r, errno,
				  exit_reason_str(run->exit_reason));
		}
	}
}

/* Runs a vCPU for the first time, until it waits for commands. */
static inline void cpu_start(struct cpu *c)
{
	TEST_ASSERT(cpu_run(c), "A fault at the start");
}

static inline bool __cpu_do(struct cpu *c, enum gmem_op op, u64 offset, u64 size, u32 pattern)
{
	c->cmd->op = op;
	c->cmd->gpa = GMEM_GPA + offset;
	c->cmd->size = size;
	c->cmd->pattern = pattern;
	c->cmd->pos = offset;
	c->cmd->value = 0;
	c->cmd->bad = GMEM_ALL_GOOD;
	return cpu_run(c);
}

static inline u64 cpu_do(struct cpu *c, enum gmem_op op, u64 offset, u64 size, u32 pattern)
{
	TEST_ASSERT(__cpu_do(c, op, offset, size, pattern), "A fault at %#llx",
		    c->vcpu->run->memory_fault.gpa);
	return c->cmd->value;
}

#define cpu_fill(c, offset, size, pattern)	cpu_do(c, GMEM_OP_FILL, offset, size, pattern)

#define cpu_check(c, offset, size, pattern)					\
do {										\
	struct cpu *__c = (c);							\
										\
	cpu_do(__c, GMEM_OP_CHECK, offset, size, pattern);			\
	TEST_ASSERT(__c->cmd->bad == GMEM_ALL_GOOD,				\
		    "The guest reads %#lx at %#lx, not pattern %#x",		\
		    (u64)__c->cmd->value, (u64)(offset) + (u64)__c->cmd->bad,	\
		    (u32)(pattern));						\
} while (0)

/* The guest continues behind the instruction that has faulted. */
static inline void cpu_skip(struct cpu *c)
{
	u64 pc = vcpu_get_reg(c->vcpu, ARM64_CORE_REG(regs.pc));

	vcpu_set_reg(c->vcpu, ARM64_CORE_REG(regs.pc), pc + 4);
	TEST_ASSERT(cpu_run(c), "The guest does not continue");
}

/* Reads a byte of a page: false if the address is lost. The guest continues. */
static inline bool cpu_read(struct cpu *c, u64 offset, u64 *value)
{
	if (__cpu_do(c, GMEM_OP_READ, offset, 1, 0)) {
		*value = c->cmd->value;
		return true;
	}
	TEST_ASSERT(c->lost, "A fault at %#llx", c->vcpu->run->memory_fault.gpa);
	cpu_skip(c);
	return false;
}

/* A page that the guest cannot access any more, however often it tries. */
#define cpu_assert_lost(c, offset)						\
do {										\
	struct cpu *__c = (c);							\
	u64 __off = (offset), __lost = __c->lost;				\
										\
	TEST_ASSERT(!__cpu_do(__c, GMEM_OP_READ, __off, 1, 0), "%#lx is not lost", __off); \
	TEST_ASSERT(!cpu_run(__c), "%#lx is not lost", __off);			\
	TEST_ASSERT_EQ(__c->lost, __lost + 2);					\
	TEST_ASSERT_EQ(__c->vcpu->run->memory_fault.gpa, GMEM_GPA + __off);	\
	cpu_skip(__c);								\
} while (0)

/* A hypercall for @n pages. Returns the guest's result, and for how many it was done. */
static inline s64 cpu_hvc(struct cpu *c, u32 function, u64 offset, u64 n, u64 *done)
{
	c->cmd->op = GMEM_OP_HVC;
	c->cmd->pattern = function;
	c->cmd->gpa = GMEM_GPA + offset;
	c->cmd->pos = n;
	TEST_ASSERT(cpu_run(c), "A fault");
	*done = c->cmd->bad;
	return c->cmd->value;
}

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

/* Runs a hypercall of the guest until it exits to user space. */
static inline void until_told(struct cpu *c, enum gmem_op op, u64 offset)
{
	struct kvm_run *run = c->vcpu->run;

	c->cmd->op = op;
	c->cmd->gpa = GMEM_GPA + offset;
	c->cmd->size = PG;
	TEST_ASSERT(!__vcpu_run(c->vcpu), "KVM_RUN: errno %d", errno);
	TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_HYPERCALL);
	TEST_ASSERT_EQ(run->hypercall.args[0], GMEM_GPA + offset);
}

#define cpu_relinquish(c, offset, size)						\
	TEST_ASSERT_EQ(cpu_do(c, GMEM_OP_RELINQUISH, offset, size, 0), 0)
#define cpu_share(c, offset, size)						\
	TEST_ASSERT_EQ(cpu_do(c, GMEM_OP_SHARE, offset, size, 0), 0)
#define cpu_unshare(c, offset, size)						\
	TEST_ASSERT_EQ(cpu_do(c, GMEM_OP_UNSHARE, offset, size, 0), 0)

#define host_check(p, offset, size, pattern)					\
do {										\
	u64 __off = (offset), __bad;						\
										\
	__bad = gmem_check((p)->mem + __off, size, pattern, __off);		\
	TEST_ASSERT(__bad == GMEM_ALL_GOOD, "The host reads not pattern %#x at %#lx", \
		    (u32)(pattern), __off + __bad);				\
} while (0)

#endif /* SELFTEST_KVM_GMEM_PKVM_H */
