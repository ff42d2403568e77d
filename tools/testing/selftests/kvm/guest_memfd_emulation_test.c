// SPDX-License-Identifier: GPL-2.0
/*
 * Instructions that KVM emulates and that lie in, or work on, private memory. In a
 * SW_PROTECTED VM the guest does not notice which of its pages are private. On all
 * other platforms KVM cannot access private memory either.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gmem_test.h"
#include "kvm_test_harness.h"

#define TIMEOUT		300
#define PG		((u64)PAGE_SIZE)
#define OFF(page)	((u64)(page) * PG)
#define PAGES		8

/* No memslot is there. */
#define MMIO		(GMEM_GPA + SZ_1G)
/* Not the port of ucalls. */
#define PORT		0x510

/* The VMM's answers to all reads of MMIO and to IN, counted up. */
#define MMIO_BYTE	0xee
#define IN_BYTE		0xc0

enum op {
	OP_OUTS,	/* count bytes from src to the port */
	OP_INS,		/* count bytes from the port to dst */
	OP_MOVS,	/* count bytes from src to dst, one at a time */
	OP_MOVSQ,	/* 8 bytes from src to dst, at once */
	OP_CALL,	/* the code at src, with MMIO and dst as its arguments */
	OP_CMPXCHG,	/* count to dst if dst is src, emulated by KVM */
	OP_STORE,	/* count to dst, emulated by KVM */
};

static struct cmd {
	u64 op;
	u64 src;
	u64 dst;
	u64 count;
	/* The result: the exception, 0 if none, the address of a page fault, RAX. */
	u64 vector;
	u64 cr2;
	u64 rax;
} cmd;

#define string_op(insn)								\
do {										\
	asm volatile(KVM_ASM_SAFE(insn)						\
		     : KVM_ASM_SAFE_OUTPUTS(vector, error), "+S"(src), "+D"(dst),	\
		       "+c"(count)						\
		     : "d"(PORT)						\
		     : "memory", KVM_ASM_SAFE_CLOBBERS);			\
} while (0)

static void guest_code(void)
{
	u64 src, dst, count, error;
	u8 vector;

	for (;;) {
		GUEST_SYNC(0);
		src = cmd.src;
		dst = cmd.dst;
		count = cmd.count;
		vector = 0;
		switch (cmd.op) {
		case OP_OUTS:
			string_op("rep outsb");
			break;
		case OP_INS:
			string_op("rep insb");
			break;
		case OP_MOVS:
			string_op("rep movsb");
			break;
		case OP_MOVSQ:
			string_op("movsq");
			break;
		case OP_CALL:
			((void (*)(u64, u64))src)(MMIO, dst);
			break;
		case OP_CMPXCHG:
			asm volatile(KVM_FEP "lock cmpxchg %2, (%1)"
				     : "+a"(src) : "r"(dst), "r"(count) : "memory", "cc");
			break;
		case OP_STORE:
			asm volatile(KVM_FEP "mov %1, (%0)"
				     : : "r"(dst), "r"(count) : "memory");
			break;
		}
		cmd.vector = vector;
		cmd.rax = src;
		asm volatile("mov %%cr2, %0" : "=r"(cmd.cr2));
	}
}

/* Bytes that the VMM handled, in order. */
struct bytes {
	unsigned int n;
	struct {
		u64 addr;
		u8 byte;
	} at[64];
};

struct emulator {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu, *checker;
	struct gmem_area a;
	/* The VMM's work for the last instruction. */
	struct bytes out, mmio_read, mmio_written;
	unsigned int in;
};

/* Page 0 to 3 shared, 4 to 7 private, all with the same pattern. */
static void emulator_init(struct emulator *e, struct kvm_vm *vm, struct kvm_vcpu **vcpus,
			  u64 policy)
{
	e->vm = vm;
	e->vcpu = vcpus[0];
	e->checker = vcpus[1];
	gmem_area_create(&e->a, vm, GMEM_SLOT, GMEM_GPA, OFF(PAGES), GMEM_MMAP_SHARED);
	virt_map(vm, MMIO, MMIO, 1);
	gmem_fill(e->a.hva, OFF(PAGES), GMEM_SEED(1), 0);
	vcpu_arch_set_entry_point(e->vcpu, guest_code);
	gmem_guest_start(e->vcpu);
	gmem_guest_start(e->checker);
	gmem_convert(e->a.fd, OFF(4), OFF(4), GMEM_PRIVATE, policy);
	if (policy != GMEM_PRESERVE)
		gmem_guest_fill(e->checker, e->a.gpa + OFF(4), OFF(4), GMEM_SEED(1), OFF(4));
}

FIXTURE(emulation)
{
	struct emulator e;
};

FIXTURE_SETUP(emulation)
{
	struct kvm_vcpu *vcpus[2];
	struct kvm_vm *vm = gmem_vm_create(2, PAGES + 16, vcpus);

	emulator_init(&self->e, vm, vcpus, GMEM_PRESERVE);
}

FIXTURE_TEARDOWN(emulation)
{
	kvm_vm_free(self->e.vm);
}

static void note(struct bytes *bytes, u64 addr, u8 byte)
{
	TEST_ASSERT(bytes->n < ARRAY_SIZE(bytes->at), "Too many bytes, %#lx is the next", addr);
	bytes->at[bytes->n].addr = addr;
	bytes->at[bytes->n++].byte = byte;
}

static void serve_io(struct emulator *e)
{
	struct kvm_run *run = e->vcpu->run;
	u8 *data = (u8 *)run + run->io.data_offset;
	u32 i;

	TEST_ASSERT_EQ(run->io.size, 1);
	for (i = 0; i < run->io.count; i++) {
		if (run->io.direction == KVM_EXIT_IO_OUT)
			note(&e->out, PORT, data[i]);
		else
			data[i] = IN_BYTE + e->in++;
	}
}

static void serve_mmio(struct emulator *e)
{
	struct kvm_run *run = e->vcpu->run;
	u32 i;

	for (i = 0; i < run->mmio.len; i++) {
		if (!run->mmio.is_write)
			run->mmio.data[i] = MMIO_BYTE;
		note(run->mmio.is_write ? &e->mmio_written : &e->mmio_read,
		     run->mmio.phys_addr + i, run->mmio.data[i]);
	}
}

/*
 * Let the guest execute it, and handle each exit like a VMM. Returns 0, -errno, or the
 * reason of an unknown exit.
 */
static int execute(struct emulator *e, enum op op, u64 src, u64 dst, u64 count)
{
	struct kvm_run *run = e->vcpu->run;
	struct ucall uc;

	cmd = (struct cmd) { .op = op, .src = src, .dst = dst, .count = count };
	sync_global_to_guest(e->vm, cmd);
	e->out.n = e->mmio_read.n = e->mmio_written.n = e->in = 0;

	for (;;) {
		if (__vcpu_run(e->vcpu))
			return -errno;
		if (run->exit_reason == KVM_EXIT_IO && run->io.port == PORT) {
			serve_io(e);
		} else if (run->exit_reason == KVM_EXIT_MMIO) {
			serve_mmio(e);
		} else if (run->exit_reason == KVM_EXIT_IO &&
			   get_ucall(e->vcpu, &uc) == UCALL_SYNC) {
			sync_global_from_guest(e->vm, cmd);
			return 0;
		} else {
			return run->exit_reason;
		}
	}
}

#define assert_executes(op, src, dst, count)					\
do {										\
	int __r = execute(e, op, src, dst, count);				\
										\
	TEST_ASSERT(!__r && !cmd.vector, "%d, exit reason %u, vector %lu", __r,	\
		    e->vcpu->run->exit_reason, cmd.vector);			\
} while (0)

static u8 pattern_at(u64 offset)
{
	return gmem_pattern_byte(GMEM_SEED(1), offset);
}

static u64 gpa(struct emulator *e, u64 offset)
{
	return e->a.gpa + offset;
}

/* The VMM handled exactly these @n bytes of the VM's memory as if they were a device's. */
#define assert_mmio(bytes, address, nr)						\
do {										\
	u64 __i;								\
										\
	TEST_ASSERT_EQ((bytes)->n, nr);						\
	for (__i = 0; __i < (nr); __i++)					\
		TEST_ASSERT_EQ((bytes)->at[__i].addr, (address) + __i);		\
} while (0)

/* The bytes around a border between two pages, of which the second one is @end. */
static void border_is(struct emulator *e, u64 border, const u8 want[8])
{
	u64 i;

	for (i = 0; i < 8; i++)
		TEST_ASSERT(gmem_guest_read(e->checker, gpa(e, border - 4 + i)) == want[i],
			    "Byte %ld from the border: %#x, wanted %#x", (long)i - 4,
			    (u8)gmem_cmd_of(e->checker)->value, want[i]);
}

static void fill_border(u64 border, u8 bytes[8])
{
	int i;

	for (i = 0; i < 8; i++)
		bytes[i] = pattern_at(border - 4 + i);
}

/* The VMM gets no exit for private memory. */
#define assert_no_mmio()							\
do {										\
	assert_mmio(&e->mmio_read, 0, 0);					\
	assert_mmio(&e->mmio_written, 0, 0);					\
} while (0)

/* From shared to private, from private to shared, private and shared throughout. */
static const u64 borders[] = { OFF(4), OFF(2), OFF(6), OFF(3) };

static void make_borders(struct emulator *e)
{
	gmem_convert(e->a.fd, 0, OFF(2), GMEM_PRIVATE, GMEM_PRESERVE);
}

TEST_F_TIMEOUT(emulation, outs_reads_private_memory, TIMEOUT)
{
	struct emulator *e = &self->e;
	u64 from;
	int i, j;

	make_borders(e);
	for (i = 0; i < ARRAY_SIZE(borders); i++) {
		from = borders[i] - 4;
		assert_executes(OP_OUTS, gpa(e, from), 0, 8);
		assert_no_mmio();
		TEST_ASSERT_EQ(e->out.n, 8);
		for (j = 0; j < 8; j++)
			TEST_ASSERT_EQ(e->out.at[j].byte, pattern_at(from + j));
	}
	gmem_guest_assert(e->checker, e->a.gpa, e->a.size, GMEM_SEED(1), 0);
}

TEST_F_TIMEOUT(emulation, ins_writes_private_memory, TIMEOUT)
{
	struct emulator *e = &self->e;
	u8 want[8];
	int i, j;

	make_borders(e);
	for (j = 0; j < 8; j++)
		want[j] = IN_BYTE + j;
	for (i = 0; i < ARRAY_SIZE(borders); i++) {
		assert_executes(OP_INS, 0, gpa(e, borders[i] - 4), 8);
		TEST_ASSERT_EQ(e->in, 8);
		assert_no_mmio();
		border_is(e, borders[i], want);
	}
	/* The host reads the shared half. */
	TEST_ASSERT_EQ(e->a.hva[OFF(2)], IN_BYTE + 4);
	gmem_host_assert(e->a.hva + OFF(2) + 4, 64, GMEM_SEED(1), OFF(2) + 4);
	TEST_ASSERT(gmem_host_refused(&e->a.hva[OFF(2) - 1]), "The host reads a private page");
}

/* One access that is half shared, half private; and byte by byte. */
TEST_F_TIMEOUT(emulation, movs_between_mmio_and_a_border, TIMEOUT)
{
	static const enum op ops[] = { OP_MOVS, OP_MOVSQ };
	struct emulator *e = &self->e;
	u8 want[8];
	int i, j, k;

	make_borders(e);
	for (k = 0; k < ARRAY_SIZE(borders); k++) {
		for (j = 0; j < ARRAY_SIZE(ops); j++) {
			assert_executes(ops[j], gpa(e, borders[k] - 4), MMIO, 8);
			assert_mmio(&e->mmio_read, 0, 0);
			assert_mmio(&e->mmio_written, MMIO, 8);
			for (i = 0; i < 8; i++)
				TEST_ASSERT_EQ(e->mmio_written.at[i].byte,
					       pattern_at(borders[k] - 4 + i));
		}
	}
	memset(want, MMIO_BYTE, sizeof(want));
	for (k = 0; k < ARRAY_SIZE(borders); k++) {
		for (j = 0; j < ARRAY_SIZE(ops); j++) {
			gmem_guest_fill(e->checker, gpa(e, borders[k] - 64), 128,
					GMEM_SEED(2), 0);
			assert_executes(ops[j], MMIO, gpa(e, borders[k] - 4), 8);
			assert_mmio(&e->mmio_read, MMIO, 8);
			assert_mmio(&e->mmio_written, 0, 0);
			border_is(e, borders[k], want);
		}
	}
}

/* Instructions that the processor executes itself have no limits. */
TEST_F_TIMEOUT(emulation, movs_in_memory_is_not_emulated, TIMEOUT)
{
	struct emulator *e = &self->e;
	u8 want[8];
	int i;

	fill_border(OFF(4), want);
	assert_executes(OP_MOVS, gpa(e, OFF(4) - 4), gpa(e, OFF(2) - 4), 8);
	border_is(e, OFF(2), want);
	fill_border(OFF(6), want);
	assert_executes(OP_MOVS, gpa(e, OFF(6) - 4), gpa(e, OFF(4) - 4), 8);
	border_is(e, OFF(4), want);
	for (i = 4; i < 8; i++)
		want[i] = pattern_at(OFF(1) - 8 + i);
	assert_executes(OP_MOVSQ, gpa(e, OFF(1) - 4), gpa(e, OFF(4)), 8);
	border_is(e, OFF(4), want);
	assert_no_mmio();
}

static bool cpu_has(const char *flag)
{
	char line[8192], want[32];
	bool found = false;
	FILE *f = fopen("/proc/cpuinfo", "r");

	TEST_ASSERT(f, "/proc/cpuinfo: %s", strerror(errno));
	snprintf(want, sizeof(want), " %s ", flag);
	while (!found && fgets(line, sizeof(line), f)) {
		if (strncmp(line, "flags", 5))
			continue;
		line[strcspn(line, "\n")] = ' ';
		found = strstr(line, want);
	}
	fclose(f);
	return found;
}

/* Code without exits, code that KVM has to step over, code that it has to emulate. */
static const struct {
	const char *name;
	u8 code[24];
} codes[] = {
	/* mov $42, %eax; ret */
	{ "arithmetic", { 0xb8, 0x2a, 0, 0, 0, 0xc3 } },
	/* push %rbx; xor %eax, %eax; xor %ecx, %ecx; cpuid; pop %rbx; ret */
	{ "CPUID", { 0x53, 0x31, 0xc0, 0x31, 0xc9, 0x0f, 0xa2, 0x5b, 0xc3 } },
	/* mov $100, %eax; vmmcall or vmcall; ret */
	{ "a hypercall", { 0xb8, 100, 0, 0, 0, 0x0f, 0x01, 0xd9, 0xc3 } },
	/* mov (%rdi), %al; ret */
	{ "MMIO", { 0x8a, 0x07, 0xc3 } },
	/*
	 * push %rbx; mov %rsp, %rbx; mov %rsi, %rsp; push (%rdi); pop %rax;
	 * mov %rbx, %rsp; pop %rbx; ret
	 */
	{ "MMIO to the stack", { 0x53, 0x48, 0x89, 0xe3, 0x48, 0x89, 0xf4, 0xff, 0x37, 0x58,
				 0x48, 0x89, 0xdc, 0x5b, 0xc3 } },
};

static void put_code(struct emulator *e, int i)
{
	u8 *to = e->a.hva + OFF(5), *vmmcall;

	gmem_convert(e->a.fd, OFF(5), PG, GMEM_SHARED, GMEM_PRESERVE);
	memcpy(to, codes[i].code, sizeof(codes[i].code));
	vmmcall = memmem(to, sizeof(codes[i].code), "\x0f\x01\xd9", 3);
	if (vmmcall && cpu_has("vmx"))
		vmmcall[2] = 0xc1;
}

TEST_F_TIMEOUT(emulation, private_code_and_stack, TIMEOUT)
{
	struct emulator *e = &self->e;
	/* The stack grows down from a private page into a private page, and into a shared one. */
	const u64 stacks[] = { OFF(7) + 4, OFF(4) + 4 };
	u8 want[8];
	int i, j;

	memset(want, MMIO_BYTE, sizeof(want));
	for (i = 0; i < ARRAY_SIZE(codes); i++) {
		put_code(e, i);
		/* In shared memory all of the code runs. */
		assert_executes(OP_CALL, gpa(e, OFF(5)), gpa(e, stacks[1]), 0);

		gmem_convert(e->a.fd, OFF(5), PG, GMEM_PRIVATE, GMEM_PRESERVE);
		for (j = 0; j < ARRAY_SIZE(stacks); j++)
			assert_executes(OP_CALL, gpa(e, OFF(5)), gpa(e, stacks[j]), 0);
	}
	for (j = 0; j < ARRAY_SIZE(stacks); j++)
		border_is(e, stacks[j] - 4, want);
}

struct converter {
	int fd;
	bool stop;
	u64 conversions;
	pthread_t thread;
};

static void *convert_over_and_over(void *arg)
{
	struct converter *c = arg;

	while (!READ_ONCE(c->stop)) {
		gmem_convert(c->fd, OFF(4), OFF(4), GMEM_SHARED, GMEM_PRESERVE);
		gmem_convert(c->fd, OFF(4), OFF(4), GMEM_PRIVATE, GMEM_PRESERVE);
		c->conversions += 2;
	}
	return NULL;
}

static void converter_start(struct converter *c, int fd)
{
	*c = (struct converter) { .fd = fd };
	kvm_pthread_create(&c->thread, NULL, convert_over_and_over, c);
}

/* Pages 4 to 7 are private then. */
static void converter_stop(struct converter *c)
{
	WRITE_ONCE(c->stop, true);
	kvm_pthread_join(c->thread, NULL);
}

#define FORCE_PREFIX "/sys/module/kvm/parameters/force_emulation_prefix"

/* Returns whether KVM emulates the instruction behind KVM_FEP. */
static bool force_emulation(bool on)
{
	FILE *f = fopen(FORCE_PREFIX, "w");

	if (!f)
		return false;
	fprintf(f, "%d", on);
	return !fclose(f);
}

FIXTURE(forced)
{
	struct emulator e;
};

FIXTURE_SETUP(forced)
{
	struct kvm_vcpu *vcpus[2];

	/* A vCPU reads it when it is created. */
	if (!force_emulation(true))
		SKIP(return, "Cannot write " FORCE_PREFIX);
	emulator_init(&self->e, gmem_vm_create(2, PAGES + 16, vcpus), vcpus, GMEM_PRESERVE);
}

FIXTURE_TEARDOWN(forced)
{
	force_emulation(false);
	kvm_vm_free(self->e.vm);
}

static u64 guest_read64(struct emulator *e, u64 offset)
{
	u64 value = 0;
	int i;

	for (i = 7; i >= 0; i--)
		value = value << 8 | gmem_guest_read(e->checker, gpa(e, offset + i));
	return value;
}

TEST_F_TIMEOUT(forced, stores_and_locked_instructions, TIMEOUT)
{
	const u64 old = 0x1122334455667788, new = 0x99aabbccddeeff00, third = 0x123456789abcdef;
	/* A private page, a shared one. */
	const u64 at[] = { OFF(6) + 8, OFF(1) + 8 };
	struct emulator *e = &self->e;
	int i;

	for (i = 0; i < ARRAY_SIZE(at); i++) {
		assert_executes(OP_STORE, 0, gpa(e, at[i]), old);
		TEST_ASSERT_EQ(guest_read64(e, at[i]), old);

		assert_executes(OP_CMPXCHG, old, gpa(e, at[i]), new);
		TEST_ASSERT_EQ(cmd.rax, old);
		TEST_ASSERT_EQ(guest_read64(e, at[i]), new);

		/* The value is no longer the expected one. */
		assert_executes(OP_CMPXCHG, old, gpa(e, at[i]), third);
		TEST_ASSERT_EQ(cmd.rax, new);
		TEST_ASSERT_EQ(guest_read64(e, at[i]), new);
		assert_no_mmio();
	}

	/* Half shared, half private. */
	assert_executes(OP_STORE, 0, gpa(e, OFF(4) - 4), old);
	TEST_ASSERT_EQ(guest_read64(e, OFF(4) - 4), old);
	assert_no_mmio();
}

#define INCREMENTS	50000

static void guest_increments(u64 *at)
{
	int i;

	for (i = 0; i < INCREMENTS; i++)
		asm volatile(KVM_FEP "lock incq (%0)" : : "r"(at) : "memory", "cc");
	GUEST_DONE();
}

static void *run_increments(void *vcpu)
{
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_DONE);
	return NULL;
}

/* No increment of one vCPU gets between the read and the write of another's. */
static void check_increments(bool converting)
{
	struct kvm_vcpu *vcpus[2];
	pthread_t threads[2];
	struct gmem_area a;
	struct converter c;
	struct kvm_vm *vm;
	int i;

	vm = gmem_vm_create(2, PAGES + 16, vcpus);
	gmem_area_create(&a, vm, GMEM_SLOT, GMEM_GPA, OFF(PAGES), GMEM_MMAP_SHARED);
	gmem_convert(a.fd, OFF(4), OFF(4), GMEM_PRIVATE, GMEM_ZERO);
	if (converting)
		converter_start(&c, a.fd);
	for (i = 0; i < 2; i++) {
		vcpu_arch_set_entry_point(vcpus[i], guest_increments);
		vcpu_args_set(vcpus[i], 1, GMEM_GPA + OFF(4));
		kvm_pthread_create(&threads[i], NULL, run_increments, vcpus[i]);
	}
	for (i = 0; i < 2; i++)
		kvm_pthread_join(threads[i], NULL);
	if (converting)
		converter_stop(&c);
	gmem_convert(a.fd, OFF(4), OFF(4), GMEM_SHARED, GMEM_PRESERVE);
	TEST_ASSERT_EQ(*(u64 *)(a.hva + OFF(4)), 2 * INCREMENTS);
	kvm_vm_free(vm);
}

TEST_F_TIMEOUT(forced, locked_instructions_are_atomic, TIMEOUT)
{
	check_increments(false);
}

TEST_F_TIMEOUT(forced, locked_instructions_race_with_conversions, TIMEOUT)
{
	check_increments(true);
}

#define TABLES_GVA	(1ULL << 46)

static const u64 tables[] = { 4, 5, 6 };

/* Maps MMIO at TABLES_GVA by tables in the file, which are shared. */
static void map_mmio(struct emulator *e)
{
	/* The second half of the lower addresses: the entry is free. */
	const u64 entry = TABLES_GVA >> 39 & 511, flags = 7;
	struct kvm_sregs sregs;
	u64 *root;
	int i;

	vcpu_sregs_get(e->vcpu, &sregs);
	root = addr_gpa2hva(e->vm, sregs.cr3 & PHYSICAL_PAGE_MASK);
	if (e->vm->mmu.pgtable_levels == 5)
		root = addr_gpa2hva(e->vm, root[0] & PHYSICAL_PAGE_MASK);
	TEST_ASSERT(!root[entry], "The entry is in use");
	gmem_convert(e->a.fd, OFF(4), OFF(4), GMEM_SHARED, GMEM_ZERO);
	root[entry] = gpa(e, OFF(4)) | flags;
	for (i = 0; i < 3; i++)
		*(u64 *)(e->a.hva + OFF(tables[i])) =
			(i < 2 ? gpa(e, OFF(tables[i + 1])) : MMIO) | flags;
}

/*
 * KVM walks the guest's page tables for instructions that it emulates, unless the
 * processor reports the address, which it cannot for two operands.
 */
TEST_F_TIMEOUT(emulation, private_page_tables, TIMEOUT)
{
	struct emulator *e = &self->e;
	const u64 accessed = 1 << 5;
	int i;

	map_mmio(e);
	/* One of the tables, then all three. */
	for (i = 0; i < 4; i++) {
		gmem_convert(e->a.fd, i < 3 ? OFF(tables[i]) : OFF(4), i < 3 ? PG : OFF(3),
			     GMEM_PRIVATE, GMEM_PRESERVE);
		assert_executes(OP_MOVS, TABLES_GVA, gpa(e, OFF(1)), 1);
		assert_mmio(&e->mmio_read, MMIO, 1);
		gmem_convert(e->a.fd, OFF(4), OFF(3), GMEM_SHARED, GMEM_PRESERVE);
		TEST_ASSERT_EQ(e->a.hva[OFF(1)], MMIO_BYTE);
	}
	for (i = 0; i < 3; i++) {
		u64 *entry = (u64 *)(e->a.hva + OFF(tables[i]));

		TEST_ASSERT(*entry & accessed, "Level %d: %#lx", 3 - i, *entry);
		*entry &= ~accessed;
	}
	/* Only KVM walks them here, as the processor's TLB has no private ones. */
	gmem_convert(e->a.fd, OFF(4), OFF(3), GMEM_PRIVATE, GMEM_PRESERVE);
	assert_executes(OP_OUTS, TABLES_GVA, 0, 1);
	assert_mmio(&e->mmio_read, MMIO, 1);
	gmem_convert(e->a.fd, OFF(4), OFF(3), GMEM_SHARED, GMEM_PRESERVE);
	for (i = 0; i < 3; i++)
		TEST_ASSERT(*(u64 *)(e->a.hva + OFF(tables[i])) & accessed, "Level %d", 3 - i);
}

TEST_F_TIMEOUT(emulation, racing_conversions, TIMEOUT)
{
	struct emulator *e = &self->e;
	u64 from, rounds = 0;
	struct converter c;
	u8 want[8];
	int i;

	/* MMIO from private code, too. */
	put_code(e, 3);
	for (i = 0; i < 8; i++)
		want[i] = IN_BYTE + i;
	converter_start(&c, e->a.fd);
	do {
		from = OFF(rounds % 2 ? 4 : 6) - 4;
		gmem_guest_fill(e->checker, gpa(e, from - 60), 128, GMEM_SEED(3), 0);
		assert_executes(OP_OUTS, gpa(e, from), 0, 8);
		assert_no_mmio();
		for (i = 0; i < 8; i++)
			TEST_ASSERT_EQ(e->out.at[i].byte,
				       gmem_pattern_byte(GMEM_SEED(3), 60 + i));
		assert_executes(OP_INS, 0, gpa(e, from), 8);
		assert_no_mmio();
		border_is(e, from + 4, want);
		assert_executes(OP_CALL, gpa(e, OFF(5)), 0, 0);
		assert_mmio(&e->mmio_read, MMIO, 1);
		rounds++;
	} while (rounds < 100 || READ_ONCE(c.conversions) < 100);
	converter_stop(&c);
}

/* The page tables that KVM walks are converted. */
TEST_F_TIMEOUT(emulation, racing_page_tables, TIMEOUT)
{
	struct emulator *e = &self->e;
	struct converter c;
	u64 rounds = 0;

	map_mmio(e);
	converter_start(&c, e->a.fd);
	do {
		assert_executes(OP_OUTS, TABLES_GVA, 0, 1);
		assert_mmio(&e->mmio_read, MMIO, 1);
		rounds++;
	} while (rounds < 1000 || READ_ONCE(c.conversions) < 1000);
	converter_stop(&c);
}

/* --- Lookups of KVM for the VMM --------------------------------------------- */

static bool translate(struct kvm_vcpu *vcpu, u64 gva, u64 *gpa)
{
	struct kvm_translation t = { .linear_address = gva };

	vcpu_ioctl(vcpu, KVM_TRANSLATE, &t);
	*gpa = t.physical_address;
	return t.valid;
}

/* No instruction of the guest makes KVM walk the tables, which only the guest uses. */
TEST_F_TIMEOUT(emulation, private_tables_are_not_translated, TIMEOUT)
{
	struct emulator *e = &self->e;
	const u64 accessed = 1 << 5;
	u64 gpa;
	int i;

	map_mmio(e);
	gmem_convert(e->a.fd, OFF(4), OFF(4), GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT(!translate(e->vcpu, TABLES_GVA, &gpa), "Translated");

	gmem_convert(e->a.fd, OFF(4), OFF(4), GMEM_SHARED, GMEM_PRESERVE);
	for (i = 0; i < 3; i++)
		TEST_ASSERT(!(*(u64 *)(e->a.hva + OFF(tables[i])) & accessed), "Level %d", 3 - i);
	TEST_ASSERT(translate(e->vcpu, TABLES_GVA, &gpa), "Not translated");
	TEST_ASSERT_EQ(gpa, MMIO);
}

TEST_F_TIMEOUT(emulation, private_pdptrs_are_not_read, TIMEOUT)
{
	const u64 pdpte = GMEM_GPA | 1;
	struct emulator *e = &self->e;
	struct kvm_sregs2 sregs2;
	struct kvm_sregs sregs;
	int i, private;

	/* Shared first, to show that the lookup works. */
	for (private = 0; private < 2; private++) {
		gmem_convert(e->a.fd, OFF(4), OFF(4), GMEM_SHARED, GMEM_ZERO);
		for (i = 0; i < 4; i++)
			((u64 *)(e->a.hva + OFF(4 + private)))[i] = pdpte;
		if (private)
			gmem_convert(e->a.fd, OFF(4), OFF(4), GMEM_PRIVATE, GMEM_PRESERVE);
		vcpu_sregs_get(e->vcpu, &sregs);
		sregs.efer &= ~(EFER_LME | EFER_LMA);
		sregs.cr4 = X86_CR4_PAE;
		sregs.cs.l = 0;
		sregs.cr3 = GMEM_GPA + OFF(4 + private);
		vcpu_sregs_set(e->vcpu, &sregs);
		memset(&sregs2, 0, sizeof(sregs2));
		vcpu_ioctl(e->vcpu, KVM_GET_SREGS2, &sregs2);
		for (i = 0; i < 4 && private; i++)
			TEST_ASSERT(sregs2.pdptrs[i] != pdpte, "PDPTR %d", i);
		for (i = 0; i < 4 && !private; i++)
			TEST_ASSERT_EQ(sregs2.pdptrs[i], pdpte);
		/* The last value that was read is kept. */
		sregs.cr3 = GMEM_GPA + OFF(1);
		memset(e->a.hva + OFF(1), 0, PG);
		vcpu_sregs_set(e->vcpu, &sregs);
	}
}

/* --- Platforms that keep private memory from KVM -------------------------- */

FIXTURE(refused)
{
	struct emulator e;
};

FIXTURE_VARIANT(refused)
{
	u32 model;
};

FIXTURE_VARIANT_ADD(refused, snp) { .model = KVM_GMEM_EMULATE_SNP };
FIXTURE_VARIANT_ADD(refused, tdx) { .model = KVM_GMEM_EMULATE_TDX };

FIXTURE_SETUP(refused)
{
	struct kvm_vcpu *vcpus[2];
	struct kvm_vm *vm;
	int r;

	if (!gmem_emulates(variant->model))
		SKIP(return, GMEM_NO_EMULATION);
	vm = gmem_vm_create_emulated(variant->model, 0, 2, PAGES + 16, vcpus);
	r = gmem_launch_finish(vm);
	TEST_ASSERT(!r, "LAUNCH_FINISH: errno %d (%s)", r, strerror(r));
	emulator_init(&self->e, vm, vcpus, GMEM_NONE);
}

FIXTURE_TEARDOWN(refused)
{
	kvm_vm_free(self->e.vm);
}

/* KVM treats the address as a device's, and exits to the VMM. */
TEST_F_TIMEOUT(refused, operands_are_mmio, TIMEOUT)
{
	struct emulator *e = &self->e;
	int i;

	assert_executes(OP_OUTS, gpa(e, OFF(4) - 4), 0, 8);
	assert_mmio(&e->mmio_read, gpa(e, OFF(4)), 4);
	assert_mmio(&e->mmio_written, 0, 0);
	for (i = 0; i < 8; i++)
		TEST_ASSERT_EQ(e->out.at[i].byte, i < 4 ? pattern_at(OFF(4) - 4 + i) : MMIO_BYTE);

	/* The write is lost. */
	assert_executes(OP_INS, 0, gpa(e, OFF(4) - 4), 8);
	assert_mmio(&e->mmio_written, gpa(e, OFF(4)), 4);
	for (i = 0; i < 4; i++) {
		TEST_ASSERT_EQ(e->mmio_written.at[i].byte, IN_BYTE + 4 + i);
		TEST_ASSERT_EQ(gmem_guest_read(e->checker, gpa(e, OFF(4) + i)),
			       pattern_at(OFF(4) + i));
	}
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
