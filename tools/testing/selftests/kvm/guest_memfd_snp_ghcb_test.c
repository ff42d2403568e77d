// SPDX-License-Identifier: GPL-2.0
/*
 * Malformed requests of an SNP guest, on simulated hardware
 * (CONFIG_KVM_SNP_SIMULATION): the GHCB's fields and its buffer, its address, and the
 * MSR protocol. Each gets the answer of the GHCB's specification, or ends KVM_RUN with
 * an error, and changes nothing: neither the guest's pages nor another guest.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gmem_snp_vm.h"

/* What the tests use the pages of the file for. */
#define BYTES		0	/* The guest's, private. */
#define IMAGE		1	/* What the guest copies to its GHCB, and gets back from there. */
#define TARGET		2	/* What requests are about, shared. */
#define OTHER		3	/* A page that is not the GHCB. */
#define VMSA		17

/* Answers of the GHCB's specification, in exit info 1 and 2. */
#define NO_ACTION	0
#define EXCEPTION	1
#define MALFORMED	2
#define NOT_REGISTERED	1
#define BAD_USAGE	2
#define BAD_SCRATCH	3
#define MISSING		4
#define BAD_INPUT	5
#define BAD_EVENT	6

#define PSC_GENERIC	(0x100ULL << 32)
#define PSC_BAD_HEADER	(1ULL << 32 | 1)
#define PSC_BAD_ENTRY	(1ULL << 32 | 2)

#define VMGEXIT_MSR		0x7c
#define VMGEXIT_MMIO_READ	0x80000001ULL
#define VMGEXIT_MMIO_WRITE	0x80000002ULL
#define VMGEXIT_JUMP_TABLE	0x80000005ULL
#define VMGEXIT_EXT_REQUEST	0x80000012ULL
#define VMGEXIT_FEATURES	0x8000fffdULL
#define VMGEXIT_UNSUPPORTED	0x8000ffffULL

#define GHCB_RBX		0x318
#define GHCB_XSS		0x140
#define GHCB_XCR0		0x3e8

/* Far above all memory of the guest. */
#define NOWHERE		(1ULL << 37)

/* --- Two guests ------------------------------------------------------------------ */

/* A guest that nobody attacks. */
struct other {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[2];
	struct gmem_area a;
	u64 assigned;
};

static struct kvm_vcpu *begin(snp_fixture *self, struct other *o)
{
	struct snp_start starts[SNP_MAX_VCPUS];
	u32 status;

	memcpy(starts, snp_starts, sizeof(starts));
	o->vm = snp_vm_create(ARRAY_SIZE(o->vcpus), NR_PAGES, o->vcpus);
	snp_area_create(&o->a, o->vm, OFF(NR_PAGES));
	TEST_ASSERT(!memcmp(starts, snp_starts, sizeof(starts)), "The guests are not alike");
	gmem_convert(o->a.fd, 0, PG, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(snp_start(o->vm, &status), 0);
	snp_launch(o->vm, o->vcpus, 1);
	snp_fill(o->vcpus[0], o->a.gpa + SNP_PRIVATE, PG, GMEM_SEED(2), 0);

	running(self);
	make_private(self, BYTES, 1);
	snp_fill(self->vcpus[0], private_gva(self, BYTES), PG, GMEM_SEED(1), 0);
	gmem_fill(self->a.hva + OFF(TARGET), PG, GMEM_SEED(3), 0);
	o->assigned = nr_assigned(self->vm);
	return self->vcpus[0];
}

/* Both guests have what they had, and still work. */
static void end(snp_fixture *self, struct other *o)
{
	TEST_ASSERT_EQ(nr_assigned(self->vm), o->assigned);
	snp_check(self->vcpus[0], private_gva(self, BYTES), PG, GMEM_SEED(1), 0);
	gmem_assert_attributes(self->a.fd, 0, PG, GMEM_PRIVATE);
	gmem_assert_attributes(self->a.fd, OFF(1), OFF(NR_PAGES - 1), GMEM_SHARED);
	gmem_host_assert(self->a.hva + OFF(TARGET), PG, GMEM_SEED(3), 0);

	snp_check(o->vcpus[0], o->a.gpa + SNP_PRIVATE, PG, GMEM_SEED(2), 0);
	kvm_munmap(o->a.hva, o->a.size);
	kvm_close(o->a.fd);
	kvm_vm_free(o->vm);
}

/* --- One request ----------------------------------------------------------------- */

static u8 *image(snp_fixture *self)
{
	return self->a.hva + OFF(IMAGE);
}

static u64 ghcb_gpa(void)
{
	return snp_starts[0].ghcb_gpa;
}

/* A GHCB with the fields that each exit needs. */
static u8 *fresh(snp_fixture *self, u64 code, u64 info1, u64 info2)
{
	u8 *ghcb = image(self);

	memset(ghcb, 0, PG);
	ghcb_put(ghcb, GHCB_EXIT_CODE, code);
	ghcb_put(ghcb, GHCB_EXIT_INFO_1, info1);
	ghcb_put(ghcb, GHCB_EXIT_INFO_2, info2);
	*(u16 *)(ghcb + GHCB_VERSION) = 2;
	return ghcb;
}

static void omit(u8 *ghcb, u32 field)
{
	ghcb[GHCB_VALID + field / 64] &= ~(1 << field / 8 % 8);
}

/* Executes VMGEXIT with this value in the MSR. Returns as snp_resume(). */
static int request(snp_fixture *self, u64 msr)
{
	return __snp_run(self->vcpus[0], SNP_OP_VMGEXIT, 0, 0, 0, gpa(self, IMAGE), msr);
}

static u64 msr_of(snp_fixture *self)
{
	return snp_cmd_of(self->vcpus[0])->value;
}

#define assert_answer(ghcb, info1, info2)						\
do {											\
	u64 __got1 = ghcb_get(ghcb, GHCB_EXIT_INFO_1), __want1 = (info1);			\
	u64 __got2 = ghcb_get(ghcb, GHCB_EXIT_INFO_2), __want2 = (info2);			\
											\
	TEST_ASSERT(__got1 == __want1 && __got2 == __want2,				\
		    "The guest got %#lx, %#lx, wanted %#lx, %#lx", __got1, __got2,		\
		    __want1, __want2);							\
} while (0)

/* The request of fresh() is answered without an exit to the host. */
#define answers(self, info1, info2)							\
do {											\
	snp_run_ok((self)->vcpus[0], request(self, ghcb_gpa()));				\
	assert_answer(image(self), info1, info2);						\
} while (0)

/* The request ends KVM_RUN, and the guest goes on after it. */
#define ends_with(self, want)								\
do {											\
	int __r = request(self, ghcb_gpa());						\
											\
	TEST_ASSERT(__r == (want), "KVM_RUN: %d, wanted %d", __r, (want));			\
	snp_run_ok((self)->vcpus[0], snp_resume((self)->vcpus[0]));			\
} while (0)

/* --- The GHCB's fields --------------------------------------------------------------- */

SNP_TEST(missing_fields)
{
	static const u32 fields[] = { GHCB_EXIT_CODE, GHCB_EXIT_INFO_1, GHCB_EXIT_INFO_2 };
	struct other o;
	u32 i;

	begin(self, &o);
	for (i = 0; i < ARRAY_SIZE(fields); i++) {
		omit(fresh(self, VMGEXIT_FEATURES, 0, 0), fields[i]);
		answers(self, MALFORMED, MISSING);
	}
	/* None at all. */
	memset(image(self), 0, PG);
	answers(self, MALFORMED, MISSING);

	/* What some exits need besides. */
	fresh(self, VMGEXIT_PSC, 0, 0);
	answers(self, MALFORMED, MISSING);
	fresh(self, VMGEXIT_MMIO_READ, GMEM_GPA, 8);
	answers(self, MALFORMED, MISSING);
	fresh(self, VMGEXIT_IOIO, SNP_PORT << 16 | 1 << 4, 0);
	answers(self, MALFORMED, MISSING);
	fresh(self, VMGEXIT_MSR, 0, 0);
	answers(self, MALFORMED, MISSING);
	fresh(self, VMGEXIT_AP_CREATION, 1ULL << 32 | AP_CREATE, gpa(self, VMSA));
	answers(self, MALFORMED, MISSING);
	end(self, &o);
}

SNP_TEST(usage_and_version)
{
	struct other o;
	u64 features;

	begin(self, &o);
	fresh(self, VMGEXIT_FEATURES, 0, 0);
	snp_run_ok(self->vcpus[0], request(self, ghcb_gpa()));
	features = ghcb_get(image(self), GHCB_EXIT_INFO_2);
	assert_answer(image(self), NO_ACTION, features);
	TEST_ASSERT(features & 1, "No SNP in %#lx", features);

	*(u32 *)(fresh(self, VMGEXIT_FEATURES, 0, 0) + GHCB_USAGE) = 1;
	answers(self, MALFORMED, BAD_USAGE);
	*(u32 *)(fresh(self, VMGEXIT_FEATURES, 0, 0) + GHCB_USAGE) = ~0;
	answers(self, MALFORMED, BAD_USAGE);

	/* KVM does not look at the version: the MSR protocol has negotiated it. */
	*(u16 *)(fresh(self, VMGEXIT_FEATURES, 0, 0) + GHCB_VERSION) = 0xffff;
	answers(self, NO_ACTION, features);

	/* Registers that the processor refuses stay as they are. */
	ghcb_put(fresh(self, VMGEXIT_FEATURES, 0, 0), GHCB_XCR0, ~0ULL);
	ghcb_put(image(self), GHCB_XSS, ~0ULL);
	answers(self, NO_ACTION, features);
	end(self, &o);
}

SNP_TEST(unknown_events)
{
	static const u64 codes[] = {
		0x400, 0x7fff, 0x80000006, 0x800000ff, 0x8000fffc, 0xffffffff,
		1ULL << 32 | VMGEXIT_IOIO, ~0ULL,
	};
	struct other o;
	u32 i;

	begin(self, &o);
	for (i = 0; i < ARRAY_SIZE(codes); i++) {
		fresh(self, codes[i], 0, 0);
		answers(self, MALFORMED, BAD_EVENT);
	}
	fresh(self, VMGEXIT_JUMP_TABLE, 2, 0);
	answers(self, MALFORMED, BAD_INPUT);

	/* An MSR that there is not: #GP. */
	ghcb_put(fresh(self, VMGEXIT_MSR, 0, 0), GHCB_RCX, 0xdeadbeef);
	snp_run_ok(self->vcpus[0], request(self, ghcb_gpa()));
	TEST_ASSERT_EQ(ghcb_get(image(self), GHCB_EXIT_INFO_1), EXCEPTION);
	/* There is no error code, so the upper half means nothing. KVM sets all bits of it. */
	TEST_ASSERT_EQ((u32)ghcb_get(image(self), GHCB_EXIT_INFO_2), 1u << 31 | 3 << 8 | 13);

	/* The guest says of itself that it cannot go on. */
	fresh(self, VMGEXIT_UNSUPPORTED, 0, 0);
	ends_with(self, -EINVAL);
	end(self, &o);
}

/* --- The buffer ---------------------------------------------------------------------- */

SNP_TEST(scratch_area)
{
	const u64 ghcb = ghcb_gpa();
	const u64 bad[] = {
		0,
		1,
		/* Not in the buffer: in the GHCB's fields, at its end, on its borders. */
		ghcb,
		ghcb + GHCB_VALID,
		ghcb + GHCB_BUFFER - 8,
		ghcb + GHCB_BUFFER - 1,
		ghcb + GHCB_BUFFER_END - 7,
		ghcb + GHCB_BUFFER_END,
		ghcb + PG - 1,
		/* In other pages. */
		ghcb + PG,
		ghcb - 4,
		gpa(self, BYTES),
		gpa(self, TARGET),
		NOWHERE,
		1ULL << 63,
		~0ULL,
		~0ULL - 7,
		~0ULL - PG,
	};
	struct other o;
	u32 i;

	begin(self, &o);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		ghcb_put(fresh(self, VMGEXIT_PSC, 0, 0), GHCB_SCRATCH, bad[i]);
		answers(self, MALFORMED, BAD_SCRATCH);
		ghcb_put(fresh(self, VMGEXIT_MMIO_WRITE, NOWHERE, 8), GHCB_SCRATCH, bad[i]);
		answers(self, MALFORMED, BAD_SCRATCH);
		ghcb_put(fresh(self, VMGEXIT_MMIO_READ, NOWHERE, 8), GHCB_SCRATCH, bad[i]);
		answers(self, MALFORMED, BAD_SCRATCH);
	}

	/* An MMIO access of more bytes than a register has, and of none. */
	ghcb_put(fresh(self, VMGEXIT_MMIO_READ, NOWHERE, 9), GHCB_SCRATCH, ghcb + GHCB_BUFFER);
	answers(self, MALFORMED, BAD_INPUT);
	ghcb_put(fresh(self, VMGEXIT_MMIO_WRITE, NOWHERE, ~0ULL), GHCB_SCRATCH, ghcb + GHCB_BUFFER);
	answers(self, MALFORMED, BAD_INPUT);
	ghcb_put(fresh(self, VMGEXIT_MMIO_READ, NOWHERE, 0), GHCB_SCRATCH, ghcb + GHCB_BUFFER);
	answers(self, NO_ACTION, 0);
	end(self, &o);
}

/* OUTS: the count comes from the guest. */
SNP_TEST(string_output)
{
	const u64 outsb = SNP_PORT << 16 | 1 << 4 | 1 << 2, outsl = SNP_PORT << 16 | 1 << 6 | 1 << 2;
	struct other o;

	begin(self, &o);
	ghcb_put(fresh(self, VMGEXIT_IOIO, outsb, 2033), GHCB_SCRATCH, ghcb_gpa() + GHCB_BUFFER);
	answers(self, MALFORMED, BAD_SCRATCH);
	ghcb_put(fresh(self, VMGEXIT_IOIO, outsl, 508), GHCB_SCRATCH, ghcb_gpa() + GHCB_BUFFER + 1);
	answers(self, MALFORMED, BAD_SCRATCH);
	ghcb_put(fresh(self, VMGEXIT_IOIO, outsb, 0), GHCB_SCRATCH, ghcb_gpa() + GHCB_BUFFER);
	answers(self, NO_ACTION, 0);

	ghcb_put(fresh(self, VMGEXIT_IOIO, outsb, ~0ULL), GHCB_SCRATCH, ghcb_gpa() + GHCB_BUFFER);
	ends_with(self, -EINVAL);
	ghcb_put(fresh(self, VMGEXIT_IOIO, outsl, 0x40000000), GHCB_SCRATCH,
		 ghcb_gpa() + GHCB_BUFFER);
	ends_with(self, -EINVAL);
	end(self, &o);
}

/* --- Page-state changes ------------------------------------------------------------------ */

#define PSC_ENTRY(gpa, op, large, done) \
	((gpa) | (u64)(op) << 52 | (u64)(large) << 56 | (u64)(done))

/* A request with the entries @cur to @end, in a buffer that begins at @at. */
static u8 *psc_at(snp_fixture *self, u32 at, u16 cur, u16 end)
{
	u8 *ghcb = fresh(self, VMGEXIT_PSC, 0, 0);

	ghcb_put(ghcb, GHCB_SCRATCH, ghcb_gpa() + at);
	*(u16 *)(ghcb + at) = cur;
	*(u16 *)(ghcb + at + 2) = end;
	return ghcb + at;
}

static u8 *psc(snp_fixture *self, u16 cur, u16 end)
{
	return psc_at(self, GHCB_BUFFER, cur, end);
}

static void psc_entry(u8 *buffer, u64 i, u64 entry)
{
	*(u64 *)(buffer + 8 + 8 * i) = entry;
}

static u16 psc_current(snp_fixture *self)
{
	return *(u16 *)(image(self) + GHCB_BUFFER);
}

SNP_TEST(psc_headers)
{
	struct other o;
	u8 *buffer;

	begin(self, &o);
	/* More entries than the buffer has. */
	psc(self, 0, PSC_MAX);
	answers(self, NO_ACTION, PSC_BAD_HEADER);
	psc(self, 0, 0xffff);
	answers(self, NO_ACTION, PSC_BAD_HEADER);
	psc(self, 0xffff, 0xffff);
	answers(self, NO_ACTION, PSC_BAD_HEADER);
	psc_at(self, GHCB_BUFFER + 1024, 0, 125);
	answers(self, NO_ACTION, PSC_BAD_HEADER);
	psc_at(self, GHCB_BUFFER_END - 15, 0, 0);
	answers(self, NO_ACTION, PSC_BAD_HEADER);
	psc_at(self, GHCB_BUFFER_END - 8, 0, 0);
	answers(self, NO_ACTION, PSC_BAD_HEADER);

	/* The current entry is behind the last one: there is nothing to do. */
	buffer = psc(self, 3, 2);
	psc_entry(buffer, 2, PSC_ENTRY(gpa(self, TARGET), PSC_PRIVATE, 0, 0));
	psc_entry(buffer, 3, PSC_ENTRY(gpa(self, TARGET), PSC_PRIVATE, 0, 0));
	answers(self, NO_ACTION, 0);
	psc(self, 0xffff, PSC_MAX - 1);
	answers(self, NO_ACTION, 0);

	/* The last entry of all. */
	psc_entry(psc(self, PSC_MAX - 1, PSC_MAX - 1), PSC_MAX - 1,
		  PSC_ENTRY(gpa(self, TARGET), PSC_PRIVATE, 0, 0));
	TEST_ASSERT_EQ(request(self, ghcb_gpa()), KVM_EXIT_HYPERCALL);
	TEST_ASSERT_EQ(self->vcpus[0]->run->hypercall.args[0], gpa(self, TARGET));
	TEST_ASSERT_EQ(self->vcpus[0]->run->hypercall.args[1], 1);
	self->vcpus[0]->run->hypercall.ret = EINVAL;
	snp_run_ok(self->vcpus[0], snp_resume(self->vcpus[0]));
	assert_answer(image(self), NO_ACTION, PSC_GENERIC);
	end(self, &o);
}

SNP_TEST(psc_entries)
{
	static const u32 operations[] = { 0, 3, 4, 15 };
	const u64 block = gpa(self, 0) / SZ_2M * SZ_2M;
	const u64 bad[] = {
		/* A large page that is not aligned; more pages done than there are. */
		PSC_ENTRY(block + PG, PSC_PRIVATE, 1, 0),
		PSC_ENTRY(block + SZ_1M, PSC_SHARED, 1, 0),
		PSC_ENTRY(block + PG, PSC_PRIVATE, 1, 512),
		PSC_ENTRY(block, PSC_PRIVATE, 1, 513),
		PSC_ENTRY(block, PSC_PRIVATE, 1, 0xfff),
		PSC_ENTRY(block, PSC_PRIVATE, 0, 2),
		PSC_ENTRY(block, PSC_PRIVATE, 0, 0xfff),
		~0ULL,
	};
	struct other o;
	u8 *buffer;
	u32 i;

	begin(self, &o);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		psc_entry(psc(self, 0, 0), 0, bad[i]);
		answers(self, NO_ACTION, PSC_BAD_ENTRY);
		TEST_ASSERT_EQ(psc_current(self), 0);
	}

	/* Operations that KVM does not have are done when they are begun. */
	for (i = 0; i < ARRAY_SIZE(operations); i++) {
		buffer = psc(self, 0, 1);
		psc_entry(buffer, 0, PSC_ENTRY(gpa(self, TARGET), operations[i], 0, 0));
		psc_entry(buffer, 1, PSC_ENTRY(block, operations[i], 1, 0));
		answers(self, NO_ACTION, 0);
		TEST_ASSERT_EQ(psc_current(self), 2);
	}

	/* Entries that are done, according to the guest. */
	buffer = psc(self, 0, 1);
	psc_entry(buffer, 0, PSC_ENTRY(gpa(self, TARGET), PSC_PRIVATE, 0, 1));
	psc_entry(buffer, 1, PSC_ENTRY(block, PSC_PRIVATE, 1, 512));
	answers(self, NO_ACTION, 0);
	TEST_ASSERT_EQ(psc_current(self), 2);

	/* What comes before a bad entry is done. */
	buffer = psc(self, 0, 2);
	psc_entry(buffer, 0, PSC_ENTRY(gpa(self, TARGET), PSC_SHARED, 0, 0));
	psc_entry(buffer, 1, bad[0]);
	psc_entry(buffer, 2, PSC_ENTRY(gpa(self, TARGET), PSC_PRIVATE, 0, 0));
	TEST_ASSERT_EQ(request(self, ghcb_gpa()), KVM_EXIT_HYPERCALL);
	self->vcpus[0]->run->hypercall.ret = 0;
	snp_run_ok(self->vcpus[0], snp_resume(self->vcpus[0]));
	assert_answer(image(self), NO_ACTION, PSC_BAD_ENTRY);
	TEST_ASSERT_EQ(psc_current(self), 1);
	end(self, &o);
}

/* KVM does not know what memory the host has for the guest; the host refuses. */
SNP_TEST(psc_beyond_memory)
{
	static const struct {
		u64 gpa;
		u32 large;
	} ranges[] = {
		{ NOWHERE, 0 },
		{ NOWHERE, 1 },
		{ (1ULL << 52) - PG, 0 },
		{ (1ULL << 52) - SZ_2M, 1 },
	};
	struct kvm_run *run = self->vcpus[0]->run;
	struct other o;
	u32 i;

	begin(self, &o);
	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		psc_entry(psc(self, 0, 0), 0, PSC_ENTRY(ranges[i].gpa, PSC_PRIVATE, ranges[i].large, 0));
		TEST_ASSERT_EQ(request(self, ghcb_gpa()), KVM_EXIT_HYPERCALL);
		TEST_ASSERT_EQ(run->hypercall.args[0], ranges[i].gpa);
		TEST_ASSERT_EQ(run->hypercall.args[1], ranges[i].large ? 512 : 1);
		run->hypercall.ret = EINVAL;
		snp_run_ok(self->vcpus[0], snp_resume(self->vcpus[0]));
		assert_answer(image(self), NO_ACTION, PSC_GENERIC);
		TEST_ASSERT_EQ(psc_current(self), 0);
	}
	end(self, &o);
}

/* --- The GHCB's address ---------------------------------------------------------------- */

/* KVM cannot map the page, so there is nobody to answer: the guest goes on. */
SNP_TEST(ghcb_out_of_reach)
{
	const u64 bad[] = {
		0,
		gpa(self, BYTES),
		NOWHERE,
		1ULL << 51,
		~0ULL << 12,
	};
	struct other o;
	u32 i;

	begin(self, &o);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		fresh(self, VMGEXIT_FEATURES, 7, 8);
		snp_run_ok(self->vcpus[0], request(self, bad[i]));
		TEST_ASSERT_EQ(msr_of(self), bad[i]);
		assert_answer(image(self), 7, 8);
	}
	end(self, &o);
}

SNP_TEST(ghcb_elsewhere)
{
	struct other o;
	u8 *elsewhere;
	u64 i;

	begin(self, &o);
	/* A page that was not registered. */
	elsewhere = self->a.hva + OFF(OTHER);
	memcpy(elsewhere, fresh(self, VMGEXIT_FEATURES, 0, 0), PG);
	snp_run_ok(self->vcpus[0], request(self, gpa(self, OTHER)));
	assert_answer(elsewhere, MALFORMED, NOT_REGISTERED);

	/* An address within the page is a request of the MSR protocol, and not a known one. */
	memcpy(elsewhere, fresh(self, VMGEXIT_FEATURES, 7, 8), PG);
	for (i = 0x020; i < PG; i += 0x408) {
		snp_run_ok(self->vcpus[0], request(self, gpa(self, OTHER) + i));
		TEST_ASSERT_EQ(msr_of(self), gpa(self, OTHER) + i);
		assert_answer(elsewhere, 7, 8);
	}

	/* Any address can be registered; that alone does nothing. */
	snp_run_ok(self->vcpus[0], request(self, gpa(self, BYTES) | GHCB_MSR_REG_REQ));
	TEST_ASSERT_EQ(msr_of(self), gpa(self, BYTES) | (GHCB_MSR_REG_REQ + 1));
	snp_run_ok(self->vcpus[0], request(self, NOWHERE | GHCB_MSR_REG_REQ));
	TEST_ASSERT_EQ(msr_of(self), NOWHERE | (GHCB_MSR_REG_REQ + 1));
	end(self, &o);
}

/* --- The MSR protocol ----------------------------------------------------------------- */

/* The answer to a page-state change has an error in its upper half. */
#define assert_msr_refused(self)							\
do {											\
	u64 __msr = msr_of(self);							\
											\
	TEST_ASSERT((u32)__msr == GHCB_MSR_PSC_RESP && __msr >> 32, "The MSR is %#lx", __msr);	\
} while (0)

SNP_TEST(msr_protocol)
{
	/* Reserved codes, and those of answers. */
	static const u64 unknown[] = {
		0x001, 0x003, 0x005, 0x007, 0x011, 0x013, 0x015, 0x016, 0x018, 0x081, 0x101, 0xfff,
	};
	static const u32 operations[] = { 0, 3, 15 };
	struct other o;
	u64 value;
	u32 i;

	begin(self, &o);
	for (i = 0; i < ARRAY_SIZE(unknown); i++) {
		value = gpa(self, TARGET) | unknown[i];
		snp_run_ok(self->vcpus[0], request(self, value));
		TEST_ASSERT_EQ(msr_of(self), value);
	}
	for (i = 0; i < ARRAY_SIZE(operations); i++) {
		value = (u64)operations[i] << 52 | gpa(self, TARGET) | GHCB_MSR_PSC_REQ;
		snp_run_ok(self->vcpus[0], request(self, value));
		assert_msr_refused(self);
	}

	/* Beyond memory: the host refuses. */
	value = (u64)PSC_PRIVATE << 52 | NOWHERE | GHCB_MSR_PSC_REQ;
	TEST_ASSERT_EQ(request(self, value), KVM_EXIT_HYPERCALL);
	TEST_ASSERT_EQ(self->vcpus[0]->run->hypercall.args[0], NOWHERE);
	self->vcpus[0]->run->hypercall.ret = EINVAL;
	snp_run_ok(self->vcpus[0], snp_resume(self->vcpus[0]));
	assert_msr_refused(self);
	end(self, &o);
}

/* --- Requests with addresses ------------------------------------------------------------- */

SNP_TEST(guest_requests)
{
	const u64 request_gpa = gpa(self, OTHER), response_gpa = gpa(self, OTHER + 1);
	struct other o;
	u8 *ghcb;

	begin(self, &o);
	fresh(self, VMGEXIT_GUEST_REQUEST, request_gpa + 8, response_gpa);
	answers(self, MALFORMED, BAD_INPUT);
	fresh(self, VMGEXIT_GUEST_REQUEST, request_gpa, response_gpa + 1);
	answers(self, MALFORMED, BAD_INPUT);
	fresh(self, VMGEXIT_GUEST_REQUEST, request_gpa, request_gpa);
	answers(self, MALFORMED, BAD_INPUT);

	/* The host's copy of the certificates has no place. The message is a request for a report. */
	memset(self->a.hva + OFF(OTHER), 5, PG);
	fresh(self, VMGEXIT_EXT_REQUEST, request_gpa, response_gpa);
	answers(self, MALFORMED, BAD_INPUT);
	ghcb = fresh(self, VMGEXIT_EXT_REQUEST, request_gpa, response_gpa);
	ghcb_put(ghcb, GHCB_RAX, gpa(self, TARGET) + 1);
	ghcb_put(ghcb, GHCB_RBX, 1);
	answers(self, MALFORMED, BAD_INPUT);

	/* Memory that the host cannot read or write: KVM_RUN ends, as the guest may mean any. */
	fresh(self, VMGEXIT_GUEST_REQUEST, NOWHERE, response_gpa);
	ends_with(self, -EIO);
	fresh(self, VMGEXIT_GUEST_REQUEST, request_gpa, NOWHERE);
	ends_with(self, -EIO);
	fresh(self, VMGEXIT_GUEST_REQUEST, gpa(self, BYTES), response_gpa);
	ends_with(self, -EIO);
	fresh(self, VMGEXIT_GUEST_REQUEST, request_gpa, gpa(self, BYTES));
	ends_with(self, -EIO);
	ghcb = fresh(self, VMGEXIT_EXT_REQUEST, request_gpa, response_gpa);
	ghcb_put(ghcb, GHCB_RAX, gpa(self, BYTES));
	ghcb_put(ghcb, GHCB_RBX, 1);
	ends_with(self, -EIO);
	end(self, &o);
}

/* A request for a second vCPU that KVM refuses. */
static void ap_create(snp_fixture *self, u64 id, u64 how, u64 features, u64 vmsa)
{
	ghcb_put(fresh(self, VMGEXIT_AP_CREATION, id << 32 | how, vmsa), GHCB_RAX, features);
}

SNP_TEST(ap_creation)
{
	const u64 block = gpa(self, 0) / SZ_2M * SZ_2M, vmsa = gpa(self, VMSA);
	struct other o;

	begin(self, &o);
	ap_create(self, 77, AP_CREATE, 1, vmsa);
	answers(self, MALFORMED, BAD_INPUT);
	ap_create(self, ~0u, AP_CREATE, 1, vmsa);
	answers(self, MALFORMED, BAD_INPUT);
	ap_create(self, 1, 3, 1, vmsa);
	answers(self, MALFORMED, BAD_INPUT);
	ap_create(self, 1, ~0u, 1, vmsa);
	answers(self, MALFORMED, BAD_INPUT);
	ap_create(self, 1, AP_CREATE, 0, vmsa);
	answers(self, MALFORMED, BAD_INPUT);
	ap_create(self, 1, AP_CREATE, ~0ULL, vmsa);
	answers(self, MALFORMED, BAD_INPUT);
	ap_create(self, 1, AP_CREATE, 1, vmsa + 16);
	answers(self, MALFORMED, BAD_INPUT);
	ap_create(self, 1, AP_CREATE, 1, block);
	answers(self, MALFORMED, BAD_INPUT);
	ap_create(self, 1, AP_CREATE, 1, ~0ULL << 12);
	answers(self, MALFORMED, BAD_INPUT);
	end(self, &o);
}

/* KVM takes the address, and the second vCPU cannot run from what is there. */
SNP_TEST(ap_without_a_vmsa)
{
	/* A shared page, and none. */
	const u64 pages[] = { gpa(self, TARGET), NOWHERE + PG };
	struct kvm_vcpu *ap = self->vcpus[1];
	struct other o;
	u32 i;
	int r;

	begin(self, &o);
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		ap_create(self, ap->id, AP_CREATE, 1, pages[i]);
		answers(self, NO_ACTION, 0);
		r = snp_resume(ap);
		TEST_ASSERT(r == KVM_EXIT_FAIL_ENTRY, "Address %#lx: %d", pages[i], r);
	}

	/* A private page that the guest has not touched, and one that has other bytes. */
	make_private(self, VMSA, 1);
	for (i = 0; i < 2; i++) {
		if (i)
			snp_fill(self->vcpus[0], private_gva(self, VMSA), PG, GMEM_SEED(4), 0);
		ap_create(self, ap->id, AP_CREATE, 1, gpa(self, VMSA));
		answers(self, NO_ACTION, 0);
		r = snp_resume(ap);
		TEST_ASSERT(r == KVM_EXIT_FAIL_ENTRY, "VMSA %u: %d", i, r);
	}
	gmem_convert(self->a.fd, OFF(VMSA), PG, GMEM_SHARED, GMEM_PRESERVE);
	end(self, &o);
}

TEST_HARNESS_MAIN
