/* SPDX-License-Identifier: GPL-2.0 */
/*
 * SNP guests on simulated hardware (CONFIG_KVM_SNP_SIMULATION): VMs of type
 * KVM_X86_SNP_VM under KVM's own code for SNP, with a guest that executes commands
 * of the host.
 *
 * The guest's program and its stacks are private, in slot 0 of libkvm. Commands
 * and GHCBs are in shared pages. The test's memory is a file that converts in
 * place: the guest has it mapped twice, without the C-bit at gva = gpa, and with
 * it at gva = gpa + SNP_PRIVATE. The guest has no exception handlers.
 */
#ifndef SELFTEST_KVM_GMEM_SNP_H
#define SELFTEST_KVM_GMEM_SNP_H

#include "gmem_test.h"
#include "sev.h"

#define SNP_C_BIT		39
#define SNP_PRIVATE		(1ULL << 38)
#define SNP_KEY(asid)		snp_rol(KVM_GMEM_EMULATION_KEY, asid)
#define SNP_MAX_VCPUS		4
#define SNP_PORT		0x4ff
#define SNP_NOT_SIMULATED \
	"SNP is not simulated here (CONFIG_KVM_SNP_SIMULATION=y)"

/* Commands of the firmware. */
#define SNP_GCTX_CREATE		0x093
#define SNP_ACTIVATE		0x091
#define SNP_DECOMMISSION	0x090
#define SNP_DF_FLUSH		0x084
#define SNP_GUEST_REQUEST	0x094
#define SNP_LAUNCH_START	0x0a0
#define SNP_LAUNCH_UPDATE	0x0a1
#define SNP_LAUNCH_FINISH	0x0a2
#define SNP_PAGE_MOVE		0x0c2
#define SNP_PAGE_RECLAIM	0x0c7
/* Not a command: RMPUPDATE that hands a page of the host's to firmware. */
#define SNP_HANDOVER		0

static inline u64 snp_rol(u64 value, u32 by)
{
	by %= 64;
	return by ? value << by | value >> (64 - by) : value;
}

/* --- The guest --------------------------------------------------------------- */

enum snp_op {
	SNP_OP_FILL,		/* write pattern to [gva, gva + size) */
	SNP_OP_CHECK,		/* compare it, bad = offset of the first error */
	SNP_OP_READ,		/* value = the byte at gva */
	SNP_OP_WRITE,		/* the byte at gva = value */
	SNP_OP_PSC,		/* page-state change of size bytes at gva, to value; value = its result */
	SNP_OP_PSC_MSR,		/* the same of one page by the MSR protocol */
	SNP_OP_AP_CREATE,	/* vCPU value starts from the VMSA at gpa gva; value = exit info 1 */
	SNP_OP_REPORT,		/* GUEST_REQUEST: request at gva, response at pos; value = exit info 2 */
	SNP_OP_GHCB,		/* from now on the GHCB is at gpa gva, mapped at pos */
	SNP_OP_COPY,		/* size bytes from gva pos to gva, in words */
	SNP_OP_SPIN,		/* until value is not 0 */
	SNP_OP_TERMINATE,	/* request the guest's termination */
	SNP_OP_VMGEXIT,		/* with the GHCB's bytes at pos, and value in the MSR; both get the answer */
};

struct snp_cmd {
	u64 op;
	u64 gva;
	u64 size;
	u64 pos;
	u64 pattern;
	u64 value;
	u64 bad;
	u64 key;
};

static inline int snp_gmem_do(struct kvm_vcpu *vcpu, enum gmem_op op, gpa_t gpa, u64 size,
			      u64 pattern, u64 pos, u64 value);
static inline int snp_gmem_resume(struct kvm_vcpu *vcpu);

/* The initial state of a vCPU. */
struct snp_start {
	struct snp_cmd *cmd;
	u8 *ghcb;
	u64 ghcb_gpa;
};

/* Private: the guest's copy is part of the launch. */
static struct snp_start snp_starts[SNP_MAX_VCPUS];

#define GHCB_RAX		0x1f8
#define GHCB_RCX		0x308
#define GHCB_EXIT_CODE		0x390
#define GHCB_EXIT_INFO_1	0x398
#define GHCB_EXIT_INFO_2	0x3a0
#define GHCB_SCRATCH		0x3a8
#define GHCB_VALID		0x3f0
#define GHCB_BUFFER		0x800
#define GHCB_BUFFER_END		0xff0
#define GHCB_VERSION		0xffa
#define GHCB_USAGE		0xffc

#define GHCB_MSR_REG_REQ	0x012
#define GHCB_MSR_PSC_REQ	0x014
#define GHCB_MSR_PSC_RESP	0x015

#define VMGEXIT_IOIO		0x7b
#define VMGEXIT_PSC		0x80000010ULL
#define VMGEXIT_GUEST_REQUEST	0x80000011ULL
#define VMGEXIT_AP_CREATION	0x80000013ULL
#define AP_CREATE		1

#define PSC_PRIVATE		1
#define PSC_SHARED		2
#define PSC_MAX			253

static inline void snp_msr_write(u64 value)
{
	asm volatile("wrmsr" : : "c"(0xc0010130), "a"((u32)value),
		     "d"((u32)(value >> 32)) : "memory");
}

static inline u64 snp_msr_read(void)
{
	u32 lo, hi;

	asm volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(0xc0010130) : "memory");
	return lo | (u64)hi << 32;
}

static inline void snp_vmgexit(void)
{
	asm volatile("rep; vmmcall" : : : "memory");
}

static inline u64 snp_msr_call(u64 value)
{
	snp_msr_write(value);
	snp_vmgexit();
	return snp_msr_read();
}

static inline void ghcb_put(volatile u8 *ghcb, u32 field, u64 value)
{
	*(volatile u64 *)(ghcb + field) = value;
	ghcb[GHCB_VALID + field / 64] |= 1 << field / 8 % 8;
}

static inline u64 ghcb_get(volatile u8 *ghcb, u32 field)
{
	return *(volatile u64 *)(ghcb + field);
}

static inline void ghcb_call(struct snp_start *me, u64 code, u64 info1, u64 info2)
{
	ghcb_put(me->ghcb, GHCB_EXIT_CODE, code);
	ghcb_put(me->ghcb, GHCB_EXIT_INFO_1, info1);
	ghcb_put(me->ghcb, GHCB_EXIT_INFO_2, info2);
	snp_vmgexit();
}

static inline void ghcb_use(struct snp_start *me)
{
	snp_msr_call(me->ghcb_gpa | GHCB_MSR_REG_REQ);
	*(volatile u16 *)(me->ghcb + GHCB_VERSION) = 2;
	*(volatile u32 *)(me->ghcb + GHCB_USAGE) = 0;
	snp_msr_write(me->ghcb_gpa);
}

/* OUT of a byte: the host gets KVM_EXIT_IO. */
static inline void snp_yield(struct snp_start *me)
{
	ghcb_put(me->ghcb, GHCB_RAX, 0);
	ghcb_call(me, VMGEXIT_IOIO, SNP_PORT << 16 | 1 << 9 | 1 << 4, 0);
}

/* One entry for each page; the host answers all at once. */
static inline u64 snp_psc(struct snp_start *me, u64 gpa, u64 size, u64 to)
{
	volatile u8 *buffer = me->ghcb + GHCB_BUFFER;
	u64 i, pages = size / PAGE_SIZE;

	*(volatile u16 *)buffer = 0;
	*(volatile u16 *)(buffer + 2) = pages - 1;
	*(volatile u32 *)(buffer + 4) = 0;
	for (i = 0; i < pages; i++)
		*(volatile u64 *)(buffer + 8 + 8 * i) =
			(gpa + i * PAGE_SIZE) | to << 52;
	ghcb_put(me->ghcb, GHCB_SCRATCH, me->ghcb_gpa + GHCB_BUFFER);
	ghcb_call(me, VMGEXIT_PSC, 0, 0);
	return ghcb_get(me->ghcb, GHCB_EXIT_INFO_2);
}

static inline void snp_copy(u64 to, u64 from, u64 size)
{
	u64 i;

	for (i = 0; i < size; i += sizeof(u64))
		*(volatile u64 *)(to + i) = *(volatile u64 *)(from + i);
}

static void snp_guest_code(u64 index)
{
	struct snp_start *me = &snp_starts[index];
	volatile struct snp_cmd *cmd = me->cmd;
	volatile u8 *mem;

	ghcb_use(me);
	for (;;) {
		snp_yield(me);

		mem = (volatile u8 *)cmd->gva;
		gmem_key = cmd->key;
		switch (cmd->op) {
		case SNP_OP_FILL:
			gmem_fill(mem, cmd->size, cmd->pattern, cmd->pos);
			break;
		case SNP_OP_CHECK:
			cmd->bad = gmem_check(mem, cmd->size, cmd->pattern, cmd->pos);
			if (cmd->bad != GMEM_ALL_GOOD)
				cmd->value = mem[cmd->bad];
			break;
		case SNP_OP_READ:
			cmd->value = *mem;
			break;
		case SNP_OP_WRITE:
			*mem = cmd->value;
			break;
		case SNP_OP_PSC:
			cmd->value = snp_psc(me, cmd->gva, cmd->size, cmd->value);
			break;
		case SNP_OP_PSC_MSR:
			cmd->value = snp_msr_call(cmd->value << 52 | cmd->gva |
						  GHCB_MSR_PSC_REQ);
			snp_msr_write(me->ghcb_gpa);
			break;
		case SNP_OP_AP_CREATE:
			ghcb_put(me->ghcb, GHCB_RAX, 1);
			ghcb_call(me, VMGEXIT_AP_CREATION, cmd->value << 32 | AP_CREATE,
				  cmd->gva);
			cmd->value = ghcb_get(me->ghcb, GHCB_EXIT_INFO_1);
			break;
		case SNP_OP_REPORT:
			ghcb_call(me, VMGEXIT_GUEST_REQUEST, cmd->gva, cmd->pos);
			cmd->value = ghcb_get(me->ghcb, GHCB_EXIT_INFO_2);
			break;
		case SNP_OP_GHCB:
			me->ghcb_gpa = cmd->gva;
			me->ghcb = (u8 *)cmd->pos;
			ghcb_use(me);
			break;
		case SNP_OP_COPY:
			snp_copy(cmd->gva, cmd->pos, cmd->size);
			break;
		case SNP_OP_SPIN:
			cmd->bad = 1;
			while (!cmd->value)
				cpu_relax();
			break;
		case SNP_OP_TERMINATE:
			snp_msr_call(GHCB_MSR_TERM_REQ);
			break;
		case SNP_OP_VMGEXIT:
			snp_copy((u64)me->ghcb, cmd->pos, PAGE_SIZE);
			cmd->value = snp_msr_call(cmd->value);
			snp_copy(cmd->pos, (u64)me->ghcb, PAGE_SIZE);
			ghcb_use(me);
			break;
		}
	}
}

/* --- The VM -------------------------------------------------------------------- */

static inline bool snp_is_simulated(void)
{
	return kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SNP_VM) &&
	       kvm_check_cap(KVM_CAP_GMEM_EMULATION) & BIT(KVM_GMEM_EMULATE_SNP);
}

/*
 * An SNP VM, not launched. libkvm reads the C-bit from CPUID, where QEMU's processor
 * has none: this does what __vm_create() does, with the simulation's C-bit.
 */
static inline struct kvm_vm *snp_vm_create(u32 nr_vcpus, u64 extra_pages,
					   struct kvm_vcpu **vcpus)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SNP_VM,
	};
	struct kvm_vm *vm;
	u32 i;

	TEST_ASSERT(nr_vcpus <= SNP_MAX_VCPUS, "Too many vCPUs");

	vm = ____vm_create(shape);
	vm->arch.c_bit = BIT_ULL(SNP_C_BIT);
	vm->gpa_tag_mask = vm->arch.c_bit;

	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, 0, 0,
				    1024 + extra_pages / 64, KVM_MEM_GUEST_MEMFD);
	for (i = 0; i < NR_MEM_REGIONS; i++)
		vm->memslots[i] = 0;
	kvm_vm_elf_load(vm, program_invocation_name);
	kvm_arch_vm_post_create(vm, nr_vcpus);
	for (i = 0; i < nr_vcpus; i++) {
		struct snp_start *start = &snp_starts[i];

		start->cmd = (void *)vm_alloc_shared(vm, PAGE_SIZE, KVM_UTIL_MIN_VADDR,
						     MEM_REGION_TEST_DATA);
		start->ghcb = (void *)vm_alloc_shared(vm, PAGE_SIZE, KVM_UTIL_MIN_VADDR,
						      MEM_REGION_TEST_DATA);
		start->ghcb_gpa = addr_gva2gpa(vm, (gva_t)start->ghcb);
	}
	sync_global_to_guest(vm, snp_starts);
	for (i = 0; i < nr_vcpus; i++) {
		vcpus[i] = vm_vcpu_add(vm, i, snp_guest_code);
		vcpu_args_set(vcpus[i], 1, (u64)i);
	}
	vm_enable_cap(vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));
	gmem_install_sigbus_handler();
	gmem_guest_do_other = snp_gmem_do;
	gmem_guest_resume_other = snp_gmem_resume;
	return vm;
}

/* The memory that commands are about. */
static struct gmem_area *snp_area;

/*
 * Maps memory without telling libkvm about its slot: libkvm takes from the slot what
 * is private.  So a page of slot 0 is mapped first.
 */
static inline void snp_map(struct kvm_vm *vm, u64 gva, gpa_t gpa, u64 size, bool private)
{
	u64 i, *pte;

	for (i = 0; i < size; i += PAGE_SIZE) {
		virt_pg_map(vm, gva + i, 0);
		pte = vm_get_pte(vm, gva + i);
		*pte &= ~PHYSICAL_PAGE_MASK;
		*pte |= (gpa + i) | (private ? BIT_ULL(SNP_C_BIT) : 0);
	}
}

/* In-place memory, which the guest has mapped twice; takes over the VM's key. */
static inline void snp_area_create_with(struct gmem_area *a, struct kvm_vm *vm, u64 size,
					u64 flags)
{
	struct kvm_gmem_emulate query;

	memset(a, 0, sizeof(*a));
	a->vm = vm;
	a->slot = GMEM_SLOT;
	a->gpa = GMEM_GPA;
	a->size = size;
	a->fd = vm_create_guest_memfd(vm, size, flags);
	a->hva = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, a->fd);
	gmem_area_bind(a);
	snp_map(vm, a->gpa, a->gpa, size, false);
	snp_map(vm, a->gpa + SNP_PRIVATE, a->gpa, size, true);
	snp_area = a;
	gmem_query(vm, a->gpa, &query);
	gmem_key = SNP_KEY(query.value[2]);
}

static inline void snp_area_create(struct gmem_area *a, struct kvm_vm *vm, u64 size)
{
	snp_area_create_with(a, vm, size, GMEM_MMAP_SHARED);
}

/* One command of the launch. Returns 0, or the errno, with firmware's status. */
static inline int snp_command(struct kvm_vm *vm, u32 id, void *data, u32 *status)
{
	struct kvm_sev_cmd cmd = {
		.id = id,
		.data = (u64)data,
		.sev_fd = vm->arch.sev_fd,
	};
	int r = gmem_ioctl(vm->fd, KVM_MEMORY_ENCRYPT_OP, &cmd);

	if (status)
		*status = cmd.error;
	return r;
}

static inline int snp_start(struct kvm_vm *vm, u32 *status)
{
	struct kvm_sev_snp_launch_start start = { .policy = snp_default_policy() };

	return snp_command(vm, KVM_SEV_SNP_LAUNCH_START, &start, status);
}

/* Repeats as a VMM does. */
static inline int snp_update(struct kvm_vm *vm, u32 type, gpa_t gpa, u64 size,
			     void *source, u32 *status)
{
	struct kvm_sev_snp_launch_update update = {
		.gfn_start = gpa >> PAGE_SHIFT,
		.uaddr = (u64)source,
		.len = size,
		.type = type,
	};
	int r;

	do {
		r = snp_command(vm, KVM_SEV_SNP_LAUNCH_UPDATE, &update, status);
	} while (!r && update.len);
	return r;
}

static inline int snp_finish(struct kvm_vm *vm, u32 *status)
{
	struct kvm_sev_snp_launch_finish finish = {};

	return snp_command(vm, KVM_SEV_SNP_LAUNCH_FINISH, &finish, status);
}

/* The next commands of a kind fail, whichever VM issues them. */
static inline void snp_inject(struct kvm_vm *vm, u64 command, u64 status, u64 times)
{
	struct kvm_gmem_emulate args = {
		.op = KVM_GMEM_EMULATE_OP_COMMAND,
		.value = { command, status, times },
	};
	int r = gmem_emulate(vm, &args);

	TEST_ASSERT(!r, "COMMAND: errno %d (%s)", r, strerror(r));
}

/* --- Commands to the guest ------------------------------------------------------- */

static inline volatile struct snp_cmd *snp_cmd_of(struct kvm_vcpu *vcpu)
{
	struct kvm_vm *vm = vcpu->vm;
	bool launched = vm->arch.is_pt_protected;
	void *hva;

	/* libkvm's own copy of the page tables is as it was before the launch. */
	vm->arch.is_pt_protected = false;
	hva = addr_gva2hva(vm, (gva_t)snp_starts[vcpu->id].cmd);
	vm->arch.is_pt_protected = launched;
	return hva;
}

/* Until the guest asks for its next command: 0, -errno, or another exit. */
static inline int snp_resume(struct kvm_vcpu *vcpu)
{
	int r;

	do {
		r = __vcpu_run(vcpu);
	} while (r < 0 && (errno == EINTR || errno == EAGAIN));
	if (r < 0)
		return -errno;
	if (vcpu->run->exit_reason == KVM_EXIT_IO && vcpu->run->io.port == SNP_PORT)
		return 0;
	return vcpu->run->exit_reason;
}

static inline int __snp_run(struct kvm_vcpu *vcpu, enum snp_op op, u64 gva, u64 size, u64 pattern,
			    u64 pos, u64 value)
{
	volatile struct snp_cmd *cmd = snp_cmd_of(vcpu);

	cmd->op = op;
	cmd->gva = gva;
	cmd->size = size;
	cmd->pattern = pattern;
	cmd->pos = pos;
	cmd->value = value;
	cmd->bad = GMEM_ALL_GOOD;
	cmd->key = gmem_key;
	return snp_resume(vcpu);
}

#define snp_run_ok(vcpu, r)							\
do {										\
	int __ok = (r);								\
										\
	TEST_ASSERT(!__ok, "vCPU %u: %d (%s), exit reason %u (%s), fault at gpa %#llx flags %#llx", \
		    (vcpu)->id, __ok, __ok < 0 ? strerror(-__ok) : "exit",	\
		    (vcpu)->run->exit_reason,					\
		    exit_reason_str((vcpu)->run->exit_reason),			\
		    (vcpu)->run->memory_fault.gpa, (vcpu)->run->memory_fault.flags); \
} while (0)

/* --- The commands of gmem_test.h -------------------------------------------------- */

static inline int snp_gmem_result(struct kvm_vcpu *vcpu, int r)
{
	gmem_cmd_of(vcpu)->value = snp_cmd_of(vcpu)->value;
	gmem_cmd_of(vcpu)->bad = snp_cmd_of(vcpu)->bad;
	return r;
}

static inline int snp_gmem_resume(struct kvm_vcpu *vcpu)
{
	return snp_gmem_result(vcpu, snp_resume(vcpu));
}

kvm_static_assert((int)GMEM_OP_FILL == (int)SNP_OP_FILL &&
		  (int)GMEM_OP_CHECK == (int)SNP_OP_CHECK &&
		  (int)GMEM_OP_READ == (int)SNP_OP_READ &&
		  (int)GMEM_OP_WRITE == (int)SNP_OP_WRITE);

/* The guest selects the kind of memory that the file has. */
static inline int snp_gmem_do(struct kvm_vcpu *vcpu, enum gmem_op op, gpa_t gpa, u64 size,
			      u64 pattern, u64 pos, u64 value)
{
	u64 gva = gpa;

	TEST_ASSERT(op <= GMEM_OP_WRITE, "SNP guests know no command %u", op);
	if (gmem_is_private(snp_area->fd, gpa - snp_area->gpa))
		gva += SNP_PRIVATE;
	return snp_gmem_result(vcpu, __snp_run(vcpu, (enum snp_op)op, gva, size, pattern, pos,
					       value));
}

/* All of the launch but for its start, with the vCPUs at their first commands. */
static inline void snp_launch(struct kvm_vm *vm, struct kvm_vcpu **vcpus, u32 nr_vcpus)
{
	u32 i, status;
	int r;

	snp_vm_launch_update(vm);
	r = snp_finish(vm, &status);
	TEST_ASSERT(!r, "LAUNCH_FINISH: errno %d (%s), status %#x", r, strerror(r), status);

	for (i = 0; i < nr_vcpus; i++)
		snp_run_ok(vcpus[i], snp_resume(vcpus[i]));
}

#endif /* SELFTEST_KVM_GMEM_SNP_H */
