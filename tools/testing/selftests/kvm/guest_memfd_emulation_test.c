// SPDX-License-Identifier: GPL-2.0
/*
 * What KVM makes of an instruction that it has to emulate and that lies in, or
 * works on, private memory of a SW_PROTECTED VM: KVM reads and writes for the
 * guest through userspace_addr, which private pages are not reachable by.
 *
 * This pins down what the documentation tells VMMs to expect.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gmem_test.h"
#include "kvm_test_harness.h"

#define TIMEOUT		120
#define PG		((u64)PAGE_SIZE)
#define OFF(page)	((u64)(page) * PG)
#define PAGES		8

/* No memslot is there. */
#define MMIO		(GMEM_GPA + SZ_1G)
/* Not the one of ucalls. */
#define PORT		0x510

/* What the VMM gives to reads of MMIO, wherever they are, and to IN, counted up. */
#define MMIO_BYTE	0xee
#define IN_BYTE		0xc0

enum op {
	OP_OUTS,	/* count bytes from src to the port */
	OP_INS,		/* count bytes from the port to dst */
	OP_MOVS,	/* count bytes from src to dst, one at a time */
	OP_MOVSQ,	/* 8 bytes from src to dst, at once */
	OP_CALL,	/* the code at src, with MMIO as its argument */
};

static struct cmd {
	u64 op;
	u64 src;
	u64 dst;
	u64 count;
	/* What came out: the exception, 0 if none, and the address of a page fault. */
	u64 vector;
	u64 cr2;
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
			((void (*)(u64))src)(MMIO);
			break;
		}
		cmd.vector = vector;
		asm volatile("mov %%cr2, %0" : "=r"(cmd.cr2));
	}
}

/* Bytes that went past the VMM, in order. */
struct bytes {
	unsigned int n;
	struct {
		u64 addr;
		u8 byte;
	} at[64];
};

FIXTURE(emulation)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu, *checker;
	struct gmem_area a;
	/* What the last instruction had the VMM do. */
	struct bytes out, mmio_read, mmio_written;
	unsigned int in;
};

/* Page 0 to 3 shared, 4 to 7 private, all with the same pattern. */
FIXTURE_SETUP(emulation)
{
	struct kvm_vcpu *vcpus[2];

	self->vm = gmem_vm_create(2, PAGES + 16, vcpus);
	self->vcpu = vcpus[0];
	self->checker = vcpus[1];
	gmem_area_create(&self->a, self->vm, GMEM_SLOT, GMEM_GPA, OFF(PAGES), GMEM_MMAP_SHARED);
	virt_map(self->vm, MMIO, MMIO, 1);
	gmem_fill(self->a.hva, OFF(PAGES), GMEM_SEED(1), 0);
	vcpu_arch_set_entry_point(self->vcpu, guest_code);
	gmem_guest_start(self->vcpu);
	gmem_guest_start(self->checker);
	gmem_convert(self->a.fd, OFF(4), OFF(4), GMEM_PRIVATE, GMEM_PRESERVE);
}

FIXTURE_TEARDOWN(emulation)
{
	kvm_vm_free(self->vm);
}

static void note(struct bytes *bytes, u64 addr, u8 byte)
{
	TEST_ASSERT(bytes->n < ARRAY_SIZE(bytes->at), "Too many bytes, %#lx is the next", addr);
	bytes->at[bytes->n].addr = addr;
	bytes->at[bytes->n++].byte = byte;
}

static void serve_io(FIXTURE_DATA(emulation) *self)
{
	struct kvm_run *run = self->vcpu->run;
	u8 *data = (u8 *)run + run->io.data_offset;
	u32 i;

	TEST_ASSERT_EQ(run->io.size, 1);
	for (i = 0; i < run->io.count; i++) {
		if (run->io.direction == KVM_EXIT_IO_OUT)
			note(&self->out, PORT, data[i]);
		else
			data[i] = IN_BYTE + self->in++;
	}
}

static void serve_mmio(FIXTURE_DATA(emulation) *self)
{
	struct kvm_run *run = self->vcpu->run;
	u32 i;

	for (i = 0; i < run->mmio.len; i++) {
		if (!run->mmio.is_write)
			run->mmio.data[i] = MMIO_BYTE;
		note(run->mmio.is_write ? &self->mmio_written : &self->mmio_read,
		     run->mmio.phys_addr + i, run->mmio.data[i]);
	}
}

/*
 * Have the guest execute it, and do what a VMM does that takes each exit for
 * what it says. Returns 0, -errno, or the reason of an exit that it does not know.
 */
static int execute(FIXTURE_DATA(emulation) *self, enum op op, u64 src, u64 dst, u64 count)
{
	struct kvm_run *run = self->vcpu->run;
	struct ucall uc;

	cmd = (struct cmd) { .op = op, .src = src, .dst = dst, .count = count };
	sync_global_to_guest(self->vm, cmd);
	self->out.n = self->mmio_read.n = self->mmio_written.n = self->in = 0;

	for (;;) {
		if (__vcpu_run(self->vcpu))
			return -errno;
		if (run->exit_reason == KVM_EXIT_IO && run->io.port == PORT) {
			serve_io(self);
		} else if (run->exit_reason == KVM_EXIT_MMIO) {
			serve_mmio(self);
		} else if (run->exit_reason == KVM_EXIT_IO &&
			   get_ucall(self->vcpu, &uc) == UCALL_SYNC) {
			sync_global_from_guest(self->vm, cmd);
			return 0;
		} else {
			return run->exit_reason;
		}
	}
}

#define assert_executes(op, src, dst, count)					\
do {										\
	int __r = execute(self, op, src, dst, count);				\
										\
	TEST_ASSERT(!__r && !cmd.vector, "%d, exit reason %u, vector %lu", __r,	\
		    self->vcpu->run->exit_reason, cmd.vector);			\
} while (0)

static u8 pattern_at(u64 offset)
{
	return gmem_pattern_byte(GMEM_SEED(1), offset);
}

static u64 gpa(FIXTURE_DATA(emulation) *self, u64 offset)
{
	return self->a.gpa + offset;
}

/* Exactly these @n bytes of the VM's memory went past the VMM as if they were a device's. */
#define assert_mmio(bytes, address, nr)						\
do {										\
	u64 __i;								\
										\
	TEST_ASSERT_EQ((bytes)->n, nr);						\
	for (__i = 0; __i < (nr); __i++)					\
		TEST_ASSERT_EQ((bytes)->at[__i].addr, (address) + __i);		\
} while (0)

/* The bytes around a border between two pages, of which the second one is @end. */
static void border_is(FIXTURE_DATA(emulation) *self, u64 border, const u8 want[8])
{
	u64 i;

	for (i = 0; i < 8; i++)
		TEST_ASSERT(gmem_guest_read(self->checker, gpa(self, border - 4 + i)) == want[i],
			    "Byte %ld from the border: %#x, wanted %#x", (long)i - 4,
			    (u8)gmem_cmd_of(self->checker)->value, want[i]);
}

static void fill_border(u64 border, u8 bytes[8])
{
	int i;

	for (i = 0; i < 8; i++)
		bytes[i] = pattern_at(border - 4 + i);
}

TEST_F_TIMEOUT(emulation, outs_reads_private_bytes_from_the_vmm, TIMEOUT)
{
	/* From shared to private, the other way round, and shared throughout. */
	static const struct {
		u64 border, private_from, private_nr;
	} cases[] = {
		{ OFF(4), 4, 4 }, { OFF(6), 0, 8 }, { OFF(2), 0, 0 },
	};
	u64 from;
	int i, j;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		from = cases[i].border - 4;
		assert_executes(OP_OUTS, gpa(self, from), 0, 8);
		assert_mmio(&self->mmio_read, gpa(self, from) + cases[i].private_from,
			    cases[i].private_nr);
		assert_mmio(&self->mmio_written, 0, 0);
		TEST_ASSERT_EQ(self->out.n, 8);
		for (j = 0; j < 8; j++) {
			bool private = from + j >= OFF(4);

			TEST_ASSERT_EQ(self->out.at[j].byte,
				       private ? MMIO_BYTE : pattern_at(from + j));
		}
	}
	gmem_convert(self->a.fd, 0, OFF(2), GMEM_PRIVATE, GMEM_PRESERVE);
	from = OFF(2) - 4;
	assert_executes(OP_OUTS, gpa(self, from), 0, 8);
	assert_mmio(&self->mmio_read, gpa(self, from), 4);
	for (j = 0; j < 8; j++)
		TEST_ASSERT_EQ(self->out.at[j].byte,
			       j < 4 ? MMIO_BYTE : pattern_at(from + j));
	gmem_guest_assert(self->checker, self->a.gpa, self->a.size, GMEM_SEED(1), 0);
}

TEST_F_TIMEOUT(emulation, ins_loses_what_it_writes_to_private_memory, TIMEOUT)
{
	u8 want[8];
	int i;

	/* From shared to private. */
	fill_border(OFF(4), want);
	assert_executes(OP_INS, 0, gpa(self, OFF(4) - 4), 8);
	TEST_ASSERT_EQ(self->in, 8);
	assert_mmio(&self->mmio_written, gpa(self, OFF(4)), 4);
	for (i = 0; i < 4; i++) {
		want[i] = IN_BYTE + i;
		TEST_ASSERT_EQ(self->mmio_written.at[i].byte, IN_BYTE + 4 + i);
	}
	border_is(self, OFF(4), want);

	/* From private to shared. */
	gmem_convert(self->a.fd, 0, OFF(2), GMEM_PRIVATE, GMEM_PRESERVE);
	fill_border(OFF(2), want);
	assert_executes(OP_INS, 0, gpa(self, OFF(2) - 4), 8);
	assert_mmio(&self->mmio_written, gpa(self, OFF(2) - 4), 4);
	for (i = 4; i < 8; i++)
		want[i] = IN_BYTE + i;
	border_is(self, OFF(2), want);
	/* Also the host sees the half that it may. */
	gmem_host_assert(self->a.hva + OFF(2) + 4, PG - 4, GMEM_SEED(1), OFF(2) + 4);
	TEST_ASSERT_EQ(self->a.hva[OFF(2)], IN_BYTE + 4);

	/* Shared throughout. */
	assert_executes(OP_INS, 0, gpa(self, OFF(3) - 4), 8);
	assert_mmio(&self->mmio_written, 0, 0);
	for (i = 0; i < 8; i++)
		want[i] = IN_BYTE + i;
	border_is(self, OFF(3), want);
}

/* One access that is half of it shared, half private; and byte by byte. */
TEST_F_TIMEOUT(emulation, movs_between_mmio_and_a_border, TIMEOUT)
{
	static const enum op ops[] = { OP_MOVS, OP_MOVSQ };
	const u64 border = OFF(4);
	u8 want[8];
	int i, j;

	for (j = 0; j < ARRAY_SIZE(ops); j++) {
		/* To MMIO: what is private comes from the VMM first. */
		assert_executes(ops[j], gpa(self, border - 4), MMIO, 8);
		assert_mmio(&self->mmio_read, gpa(self, border), 4);
		assert_mmio(&self->mmio_written, MMIO, 8);
		for (i = 0; i < 8; i++)
			TEST_ASSERT_EQ(self->mmio_written.at[i].byte,
				       i < 4 ? pattern_at(border - 4 + i) : MMIO_BYTE);
	}

	for (j = 0; j < ARRAY_SIZE(ops); j++) {
		/* From MMIO: what is private goes to the VMM, and is lost. */
		gmem_fill(self->a.hva + OFF(3), PG, GMEM_SEED(1), OFF(3));
		fill_border(border, want);
		assert_executes(ops[j], MMIO, gpa(self, border - 4), 8);
		assert_mmio(&self->mmio_read, MMIO, 8);
		assert_mmio(&self->mmio_written, gpa(self, border), 4);
		for (i = 0; i < 4; i++)
			want[i] = MMIO_BYTE;
		border_is(self, border, want);
	}
	gmem_guest_assert(self->checker, gpa(self, OFF(4)), OFF(4), GMEM_SEED(1), OFF(4));
}

/* What the processor executes by itself knows no border. */
TEST_F_TIMEOUT(emulation, movs_in_memory_is_not_emulated, TIMEOUT)
{
	u8 want[8];
	int i;

	fill_border(OFF(4), want);
	assert_executes(OP_MOVS, gpa(self, OFF(4) - 4), gpa(self, OFF(2) - 4), 8);
	border_is(self, OFF(2), want);
	fill_border(OFF(6), want);
	assert_executes(OP_MOVS, gpa(self, OFF(6) - 4), gpa(self, OFF(4) - 4), 8);
	border_is(self, OFF(4), want);
	for (i = 4; i < 8; i++)
		want[i] = pattern_at(OFF(1) - 8 + i);
	assert_executes(OP_MOVSQ, gpa(self, OFF(1) - 4), gpa(self, OFF(4)), 8);
	border_is(self, OFF(4), want);
	assert_mmio(&self->mmio_read, 0, 0);
	assert_mmio(&self->mmio_written, 0, 0);
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

/* Code by itself, code that KVM has to step over, code that it has to emulate. */
TEST_F_TIMEOUT(emulation, private_code, TIMEOUT)
{
	/* The processor says how long an instruction is, or hands its bytes over. */
	const bool steps = cpu_has("vmx") || cpu_has("nrip_save");
	const bool bytes = cpu_has("decodeassists");
	const struct {
		const char *name;
		u8 code[16];
		bool runs;
		/* What KVM gives up to emulate is an invalid instruction to the guest. */
		bool emulated;
	} codes[] = {
		/* mov $42, %eax; ret */
		{ "arithmetic", { 0xb8, 0x2a, 0, 0, 0, 0xc3 }, true },
		/* push %rbx; xor %eax, %eax; xor %ecx, %ecx; cpuid; pop %rbx; ret */
		{ "CPUID", { 0x53, 0x31, 0xc0, 0x31, 0xc9, 0x0f, 0xa2, 0x5b, 0xc3 }, steps },
		/* mov $100, %eax; vmmcall or vmcall; ret */
		{ "a hypercall", { 0xb8, 100, 0, 0, 0, 0x0f, 0x01,
				   cpu_has("vmx") ? 0xc1 : 0xd9, 0xc3 }, steps },
		/* mov (%rdi), %al; ret */
		{ "MMIO", { 0x8a, 0x07, 0xc3 }, bytes, true },
	};
	struct kvm_run *run = self->vcpu->run;
	struct kvm_vcpu_events events;
	int i, r;

	for (i = 0; i < ARRAY_SIZE(codes); i++) {
		gmem_convert(self->a.fd, OFF(5), PG, GMEM_SHARED, GMEM_PRESERVE);
		memcpy(self->a.hva + OFF(5), codes[i].code, sizeof(codes[i].code));
		/* In shared memory all of it runs. */
		assert_executes(OP_CALL, gpa(self, OFF(5)), 0, 0);

		gmem_convert(self->a.fd, OFF(5), PG, GMEM_PRIVATE, GMEM_PRESERVE);
		r = execute(self, OP_CALL, gpa(self, OFF(5)), 0, 0);
		if (codes[i].runs) {
			TEST_ASSERT(!r, "%s in private code: %d", codes[i].name, r);
			continue;
		}
		TEST_ASSERT(r == KVM_EXIT_INTERNAL_ERROR, "%s in private code: %d",
			    codes[i].name, r);
		TEST_ASSERT_EQ(run->internal.suberror, KVM_INTERNAL_ERROR_EMULATION);

		/* Shared again it goes on where it was, unless KVM has told the guest. */
		gmem_convert(self->a.fd, OFF(5), PG, GMEM_SHARED, GMEM_PRESERVE);
		vcpu_events_get(self->vcpu, &events);
		TEST_ASSERT_EQ(events.exception.pending || events.exception.injected,
			       codes[i].emulated);
		if (codes[i].emulated) {
			TEST_ASSERT_EQ(events.exception.nr, UD_VECTOR);
			events.exception.pending = events.exception.injected = 0;
			vcpu_events_set(self->vcpu, &events);
		}
		r = execute(self, OP_CALL, gpa(self, OFF(5)), 0, 0);
		TEST_ASSERT(!r, "%s in code that is shared again: %d", codes[i].name, r);
	}
}

/*
 * KVM walks the guest's page tables for what it emulates, unless the processor
 * has told it the address, which it cannot for two of them.
 */
TEST_F_TIMEOUT(emulation, private_page_tables_are_a_page_fault, TIMEOUT)
{
	const u64 flags = 7, pages[] = { 4, 5, 6 };
	/* The second half of the lower addresses: the entry is free. */
	const u64 gva = 1ULL << 46;
	struct kvm_sregs sregs;
	u64 *root;
	int i, r;

	vcpu_sregs_get(self->vcpu, &sregs);
	root = addr_gpa2hva(self->vm, sregs.cr3 & PHYSICAL_PAGE_MASK);
	if (self->vm->mmu.pgtable_levels == 5)
		root = addr_gpa2hva(self->vm, root[0] & PHYSICAL_PAGE_MASK);
	TEST_ASSERT(!root[gva >> 39 & 511], "The entry is in use");
	gmem_convert(self->a.fd, OFF(4), OFF(4), GMEM_SHARED, GMEM_ZERO);
	root[gva >> 39 & 511] = gpa(self, OFF(4)) | flags;
	for (i = 0; i < 3; i++)
		*(u64 *)(self->a.hva + OFF(pages[i])) =
			(i < 2 ? gpa(self, OFF(pages[i + 1])) : MMIO) | flags;
	/* The page behind is memory. */
	*(u64 *)(self->a.hva + OFF(6) + 8) = gpa(self, 0) | flags;

	assert_executes(OP_MOVS, gva, gpa(self, OFF(1)), 1);
	assert_mmio(&self->mmio_read, MMIO, 1);

	for (i = 0; i < 3; i++) {
		gmem_convert(self->a.fd, OFF(pages[i]), PG, GMEM_PRIVATE, GMEM_PRESERVE);
		/* The processor walks them as before. */
		assert_executes(OP_MOVS, gva + PG, gpa(self, OFF(1)), 8);
		r = execute(self, OP_MOVS, gva, gpa(self, OFF(1)), 1);
		TEST_ASSERT(!r && cmd.vector == PF_VECTOR && cmd.cr2 == gva,
			    "%d, exit reason %u, vector %lu, CR2 %#lx", r,
			    self->vcpu->run->exit_reason, cmd.vector, cmd.cr2);
		assert_mmio(&self->mmio_read, 0, 0);
		gmem_convert(self->a.fd, OFF(pages[i]), PG, GMEM_SHARED, GMEM_PRESERVE);
		assert_executes(OP_MOVS, gva, gpa(self, OFF(1)), 1);
	}
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
