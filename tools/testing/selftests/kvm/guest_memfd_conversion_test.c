// SPDX-License-Identifier: GPL-2.0
/*
 * In-place conversion of guest_memfd memory on SW_PROTECTED VMs: the content
 * contract, for pages of every state, files of every size, holes, prefaults,
 * guests that ask, and in random order.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include <linux/sizes.h>

#include <sys/mman.h>
#include <sys/stat.h>

#include "gmem_conversion.h"

static int prefault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 size)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa, .size = size };
	int i, r = 0;

	for (i = 0; range.size && i < GMEM_MAX_RETRIES; i++) {
		r = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range) ? errno : 0;
		if (r && r != EINTR && r != EAGAIN)
			break;
	}
	TEST_ASSERT(r || (!range.size && range.gpa == gpa + size),
		    "KVM_PRE_FAULT_MEMORY left gpa %#llx size %#llx", range.gpa,
		    range.size);
	return r;
}

/* --- The contract ------------------------------------------------------- */

enum page_state {
	SHARED_NEVER_ALLOCATED,		/* and not even mapped by the host */
	SHARED_FALLOCATED,
	SHARED_MAPPED_UNTOUCHED,
	SHARED_READ_BY_HOST,
	SHARED_WRITTEN_BY_HOST,
	SHARED_READ_BY_GUEST,
	SHARED_WRITTEN_BY_GUEST,
	PRIVATE_NEVER_MAPPED,
	PRIVATE_FALLOCATED,
	PRIVATE_PREFAULTED,
	PRIVATE_WRITTEN_BY_HOST,	/* while it was shared */
	PRIVATE_READ_BY_GUEST,
	PRIVATE_WRITTEN_BY_GUEST,
	NR_PAGE_STATES,
};

/*
 * What the bytes are afterwards: 'p' the pattern that was there, '0' zeroes,
 * 'x' scrambled. By policy, in the order PRESERVE, ZERO, NONE. The direction
 * makes no difference on SW_PROTECTED, and neither does whether the page was
 * in the requested state already: a row is tried in both directions, so one
 * of them is "already there".
 */
static const struct {
	const char *name;
	bool needs_run;
	const char *after;
} contract[NR_PAGE_STATES] = {
	[SHARED_NEVER_ALLOCATED]   = { "shared, never allocated",     false, "000" },
	[SHARED_FALLOCATED]	   = { "shared, fallocated",	      false, "000" },
	[SHARED_MAPPED_UNTOUCHED]  = { "shared, mapped by host",      false, "000" },
	[SHARED_READ_BY_HOST]	   = { "shared, read by host",	      false, "00x" },
	[SHARED_WRITTEN_BY_HOST]   = { "shared, written by host",     false, "p0x" },
	[SHARED_READ_BY_GUEST]	   = { "shared, read by guest",	      true,  "00x" },
	[SHARED_WRITTEN_BY_GUEST]  = { "shared, written by guest",    true,  "p0x" },
	[PRIVATE_NEVER_MAPPED]	   = { "private, never allocated",    false, "000" },
	[PRIVATE_FALLOCATED]	   = { "private, fallocated",	      false, "000" },
	[PRIVATE_PREFAULTED]	   = { "private, prefaulted",	      false, "00x" },
	[PRIVATE_WRITTEN_BY_HOST]  = { "private, host's bytes",	      false, "p0x" },
	[PRIVATE_READ_BY_GUEST]	   = { "private, read by guest",      true,  "00x" },
	[PRIVATE_WRITTEN_BY_GUEST] = { "private, written by guest",   true,  "p0x" },
};

static u32 pattern_after(enum page_state state, u64 policy, bool scrambles,
			 u32 written)
{
	const char *after = contract[state].after;
	char c;

	if (policy == GMEM_PRESERVE)
		c = after[0];
	else if (policy == GMEM_ZERO)
		c = after[1];
	else
		c = scrambles ? after[2] : after[0];

	switch (c) {
	case 'p':
		return written;
	case '0':
		return GMEM_ZEROES;
	case 'x':
		return GMEM_SCRAMBLED;
	default:
		TEST_FAIL("Bad table");
	}
}

/*
 * One cell: a file of its own with two neighbours on either side of the range, one in
 * each state, so that a request that does too much is detected in either direction.
 */
struct cell {
	const char *name;
	struct gmem_area a;
	u32 npages;
	u32 seed;
	enum page_state state[NR_PAGE_STATES];
};

#define NR_GUARDS	2
#define CELL_STRIDE	SZ_128K

static u64 cell_start(struct cell *c)
{
	return NR_GUARDS * PS;
}

static u64 cell_end(struct cell *c)
{
	return cell_start(c) + c->npages * PS;
}

static const u32 guard_seed = GMEM_SEED(0x77);

/* Outermost guards have the requested attributes, the inner ones have not. */
static u64 guard_attributes(u32 guard, u64 to)
{
	bool outer = guard == 0 || guard == 3;

	return outer ? to : to ^ GMEM_PRIVATE;
}

static u64 guard_offset(struct cell *c, u32 guard)
{
	return guard < 2 ? guard * PS : cell_end(c) + (guard - 2) * PS;
}

static void prepare_page(struct gmem_area *a, struct kvm_vcpu *vcpu, u64 offset,
			 enum page_state state, u32 seed)
{
	u8 byte = 0xff;
	int r;

	switch (state) {
	case SHARED_NEVER_ALLOCATED:
	case SHARED_MAPPED_UNTOUCHED:
		break;
	case SHARED_FALLOCATED:
		r = gmem_allocate(a->fd, offset, PS);
		TEST_ASSERT(!r, "fallocate: errno %d", r);
		break;
	case SHARED_READ_BY_HOST:
		TEST_ASSERT(gmem_host_read(a->hva + offset, &byte) && !byte,
			    "Fresh shared page gives SIGBUS or 0x%02x", byte);
		break;
	case SHARED_WRITTEN_BY_HOST:
		gmem_fill(a->hva + offset, PS, seed, offset);
		break;
	case SHARED_READ_BY_GUEST:
		TEST_ASSERT_EQ(gmem_guest_read(vcpu, a->gpa + offset), 0);
		break;
	case SHARED_WRITTEN_BY_GUEST:
		gmem_guest_fill(vcpu, a->gpa + offset, PS, seed, offset);
		break;
	case PRIVATE_NEVER_MAPPED:
		gmem_convert(a->fd, offset, PS, GMEM_PRIVATE, GMEM_PRESERVE);
		break;
	case PRIVATE_FALLOCATED:
		gmem_convert(a->fd, offset, PS, GMEM_PRIVATE, GMEM_PRESERVE);
		r = gmem_allocate(a->fd, offset, PS);
		TEST_ASSERT(!r, "fallocate: errno %d", r);
		break;
	case PRIVATE_PREFAULTED:
		gmem_convert(a->fd, offset, PS, GMEM_PRIVATE, GMEM_PRESERVE);
		r = prefault(vcpu, a->gpa + offset, PS);
		TEST_ASSERT(!r, "KVM_PRE_FAULT_MEMORY: errno %d", r);
		break;
	case PRIVATE_WRITTEN_BY_HOST:
		gmem_fill(a->hva + offset, PS, seed, offset);
		gmem_convert(a->fd, offset, PS, GMEM_PRIVATE, GMEM_PRESERVE);
		break;
	case PRIVATE_READ_BY_GUEST:
		gmem_convert(a->fd, offset, PS, GMEM_PRIVATE, GMEM_PRESERVE);
		TEST_ASSERT_EQ(gmem_guest_read(vcpu, a->gpa + offset), 0);
		break;
	case PRIVATE_WRITTEN_BY_GUEST:
		gmem_convert(a->fd, offset, PS, GMEM_PRIVATE, GMEM_PRESERVE);
		gmem_guest_fill(vcpu, a->gpa + offset, PS, seed, offset);
		break;
	default:
		TEST_FAIL("No such state");
	}
}

static void prepare_cell(struct cell *c, struct kvm_vcpu *vcpu, u32 index,
			 u64 to)
{
	u64 offset;
	u32 i;

	gmem_area_create(&c->a, vcpu->vm, GMEM_SLOT + index,
			 GMEM_GPA + index * CELL_STRIDE,
			 (c->npages + 2 * NR_GUARDS) * PS, GMEM_MMAP_SHARED);

	for (i = 0; i < 2 * NR_GUARDS; i++) {
		offset = guard_offset(c, i);
		gmem_fill(c->a.hva + offset, PS, guard_seed, offset);
		gmem_convert(c->a.fd, offset, PS, guard_attributes(i, to),
			     GMEM_PRESERVE);
	}
	for (i = 0; i < c->npages; i++)
		prepare_page(&c->a, vcpu, cell_start(c) + i * PS, c->state[i],
			     c->seed);
}

static void convert_cell(struct cell *c, u64 to, u64 policy)
{
	const bool unmap = c->state[0] == SHARED_NEVER_ALLOCATED &&
			   c->state[1] == SHARED_NEVER_ALLOCATED;
	void *mem;

	/* This row is about a file that no process has mapped. */
	if (unmap)
		kvm_munmap(c->a.hva, c->a.size);

	gmem_convert(c->a.fd, cell_start(c), c->npages * PS, to, policy);

	if (unmap) {
		mem = mmap(c->a.hva, c->a.size, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_FIXED, c->a.fd, 0);
		TEST_ASSERT(mem == c->a.hva, __KVM_SYSCALL_ERROR("mmap()", -1));
	}
}

static void check_attributes(struct cell *c, u64 to)
{
	u64 attributes, size;
	u32 i;
	int r;

	/* outer guard | inner guard | range | inner guard | outer guard */
	r = gmem_get(c->a.fd, cell_start(c), &attributes, &size);
	TEST_ASSERT(!r && attributes == to && size == c->npages * PS,
		    "%s: GET gives errno %d, attributes %#lx, size %#lx",
		    c->name, r, attributes, size);
	for (i = 0; i < 2 * NR_GUARDS; i++) {
		r = gmem_get(c->a.fd, guard_offset(c, i), &attributes, &size);
		TEST_ASSERT(!r && attributes == guard_attributes(i, to) &&
			    size == PS,
			    "%s: GET at neighbour %u gives errno %d, attributes %#lx, size %#lx",
			    c->name, i, r, attributes, size);
	}
}

static void check_host(struct cell *c, u64 offset, u64 attributes, u32 pattern,
		       const char *what)
{
	u64 bad;

	if (attributes == GMEM_PRIVATE) {
		TEST_ASSERT(gmem_host_refused(c->a.hva + offset),
			    "%s: host reaches private page %#lx", c->name, offset);
		return;
	}
	bad = gmem_check(c->a.hva + offset, PS, pattern, offset);
	if (bad != GMEM_ALL_GOOD)
		TEST_FAIL("%s: %s: host sees 0x%02x at %#lx, wanted 0x%02x",
			  c->name, what, c->a.hva[offset + bad], offset + bad,
			  gmem_pattern_byte(pattern, offset + bad));
}

static void check_guest(struct cell *c, struct kvm_vcpu *vcpu, u64 offset,
			u32 pattern, const char *what)
{
	u64 bad;
	u8 got;

	bad = __gmem_guest_check(vcpu, c->a.gpa + offset, PS, pattern, offset,
				 &got);
	TEST_ASSERT(bad == GMEM_ALL_GOOD,
		    "%s: %s: guest sees 0x%02x at %#lx, wanted 0x%02x", c->name,
		    what, got, offset + bad,
		    gmem_pattern_byte(pattern, offset + bad));
}

/* All pages of a cell, neighbours included, from one side. */
static void check_cell(struct cell *c, struct kvm_vcpu *guest, u64 to, u64 policy,
		       bool scrambles)
{
	u64 offset;
	u32 i, pattern;

	for (i = 0; i < c->npages; i++) {
		offset = cell_start(c) + i * PS;
		pattern = pattern_after(c->state[i], policy, scrambles, c->seed);
		if (guest)
			check_guest(c, guest, offset, pattern,
				    contract[c->state[i]].name);
		else
			check_host(c, offset, to, pattern,
				   contract[c->state[i]].name);
	}
	for (i = 0; i < 2 * NR_GUARDS; i++) {
		offset = guard_offset(c, i);
		if (guest)
			check_guest(c, guest, offset, guard_seed, "neighbour");
		else
			check_host(c, offset, guard_attributes(i, to),
				   guard_seed, "neighbour");
	}
}

FIXTURE(contract)
{
};

FIXTURE_VARIANT(contract)
{
	bool launched;
	u64 to;
	u64 policy;
};

#define CONTRACT_VARIANT(_phase, _launched, _dir, _to, _pol, _policy)		\
FIXTURE_VARIANT_ADD(contract, _phase##_##_dir##_##_pol)				\
{										\
	.launched = _launched,							\
	.to = _to,								\
	.policy = _policy,							\
}

#define CONTRACT_VARIANTS(_phase, _launched)					\
CONTRACT_VARIANT(_phase, _launched, to_private, GMEM_PRIVATE, preserve, GMEM_PRESERVE); \
CONTRACT_VARIANT(_phase, _launched, to_private, GMEM_PRIVATE, zero, GMEM_ZERO);	\
CONTRACT_VARIANT(_phase, _launched, to_private, GMEM_PRIVATE, none, GMEM_NONE);	\
CONTRACT_VARIANT(_phase, _launched, to_shared, GMEM_SHARED, preserve, GMEM_PRESERVE); \
CONTRACT_VARIANT(_phase, _launched, to_shared, GMEM_SHARED, zero, GMEM_ZERO);	\
CONTRACT_VARIANT(_phase, _launched, to_shared, GMEM_SHARED, none, GMEM_NONE)

CONTRACT_VARIANTS(before_first_run, false);
CONTRACT_VARIANTS(after_first_run, true);

FIXTURE_SETUP(contract)
{
}

FIXTURE_TEARDOWN(contract)
{
}

TEST_F_TIMEOUT(contract, every_page_state, GMEM_TIMEOUT)
{
	const bool scrambles = gmem_scrambles();
	struct cell cells[NR_PAGE_STATES + 1];
	u32 i, nr_cells = 0, nr_pages = 0;
	struct kvm_vcpu *vcpu;
	enum page_state s;
	struct kvm_vm *vm;
	struct cell *c;

	vm = gmem_vm_create(1, 1024, &vcpu);
	if (variant->launched)
		gmem_guest_start(vcpu);

	/* A cell for each state, and one with a page of each: mixed. */
	memset(cells, 0, sizeof(cells));
	c = &cells[0];
	for (s = 0; s < NR_PAGE_STATES; s++) {
		if (contract[s].needs_run && !variant->launched)
			continue;
		c->name = contract[s].name;
		c->npages = 3;
		for (i = 0; i < c->npages; i++)
			c->state[i] = s;
		c++;
	}
	c->name = "mixed range";
	for (s = 0; s < NR_PAGE_STATES; s++) {
		if (contract[s].needs_run && !variant->launched)
			continue;
		c->state[c->npages++] = s;
	}
	nr_cells = c + 1 - cells;

	gmem_dirty_free_pages();
	for (i = 0; i < nr_cells; i++) {
		cells[i].seed = GMEM_SEED(i + 1);
		prepare_cell(&cells[i], vcpu, i, variant->to);
		nr_pages += cells[i].npages;
	}
	for (i = 0; i < nr_cells; i++)
		convert_cell(&cells[i], variant->to, variant->policy);

	for (i = 0; i < nr_cells; i++)
		check_attributes(&cells[i], variant->to);

	/*
	 * Each side looks first in one of the phases: the first look at a page
	 * that nobody has touched is the one that allocates it.
	 */
	if (!variant->launched) {
		for (i = 0; i < nr_cells; i++)
			check_cell(&cells[i], NULL, variant->to, variant->policy,
				   scrambles);
		gmem_guest_start(vcpu);
	}
	for (i = 0; i < nr_cells; i++)
		check_cell(&cells[i], vcpu, variant->to, variant->policy,
			   scrambles);
	for (i = 0; i < nr_cells; i++)
		check_cell(&cells[i], NULL, variant->to, variant->policy,
			   scrambles);

	/*
	 * Both views are the same memory: what the guest saw while it was
	 * private is what the host finds when it is shared again.
	 */
	for (i = 0; i < nr_cells; i++) {
		c = &cells[i];
		gmem_convert(c->a.fd, 0, c->a.size, GMEM_SHARED, GMEM_PRESERVE);
		for (s = 0; s < c->npages; s++)
			check_host(c, cell_start(c) + s * PS, GMEM_SHARED,
				   pattern_after(c->state[s], variant->policy,
						 scrambles, c->seed),
				   "shared again");
	}

	ksft_print_msg("%s, %s, %s%s: %u cells, %u pages\n",
		       variant->launched ? "after first run" : "before first run",
		       variant->to ? "to private" : "to shared",
		       variant->policy == GMEM_PRESERVE ? "PRESERVE" :
		       variant->policy == GMEM_ZERO ? "ZERO" : "NONE",
		       variant->policy != GMEM_NONE ? "" :
		       scrambles ? " (scrambles)" : " (does not scramble)",
		       nr_cells, nr_pages);

	for (i = 0; i < nr_cells; i++)
		gmem_area_destroy(&cells[i].a);
	kvm_vm_free(vm);
}

/* --- Sizes -------------------------------------------------------------- */

GMEM_TEST(sparse_file_of_one_tebibyte)
{
	const u64 size = BIT(40), step = size / 8;
	const u64 policies[] = { GMEM_NONE, GMEM_ZERO, GMEM_PRESERVE };
	struct stat st;
	int fd, i, j;
	u8 *mem;

	fd = vm_create_guest_memfd(self->vm, size, GMEM_MMAP_SHARED);
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd);

	/* Nothing is allocated, so there is nothing to do, and nothing is done. */
	for (i = 0; i < ARRAY_SIZE(policies); i++) {
		gmem_convert(fd, 0, size, GMEM_PRIVATE, policies[i]);
		gmem_assert_attributes(fd, 0, size, GMEM_PRIVATE);
		TEST_ASSERT_EQ(count_runs(fd, size), 1);
		gmem_host_assert_refused(mem + size - PS, PS);
		gmem_convert(fd, 0, size, GMEM_SHARED, policies[i]);
		TEST_ASSERT_EQ(count_runs(fd, size), 1);
	}
	TEST_ASSERT(!fstat(fd, &st), "fstat() failed");
	TEST_ASSERT_EQ(st.st_blocks, 0);

	/* Pages far apart, the last one among them. */
	for (i = 0; i < ARRAY_SIZE(policies); i++) {
		u32 after = policies[i] == GMEM_ZERO ? GMEM_ZEROES :
			    policies[i] == GMEM_PRESERVE || !gmem_scrambles() ?
			    GMEM_SEED(10) : GMEM_SCRAMBLED;

		for (j = 1; j <= 8; j++)
			gmem_fill(mem + j * step - PS, PS, GMEM_SEED(10),
				  j * step - PS);
		gmem_convert(fd, 0, size, GMEM_PRIVATE, policies[i]);
		for (j = 1; j <= 8; j++)
			gmem_host_assert_refused(mem + j * step - PS, PS);
		gmem_convert(fd, 0, size, GMEM_SHARED, GMEM_PRESERVE);
		for (j = 1; j <= 8; j++)
			gmem_host_assert(mem + j * step - PS, PS, after,
					 j * step - PS);
		gmem_host_assert(mem + step, PS, GMEM_ZEROES, 0);
		TEST_ASSERT_EQ(gmem_punch(fd, 0, size), 0);
	}
	kvm_munmap(mem, size);
	kvm_close(fd);
}

/*
 * The map that remembers the attributes is a tree, whose nodes are freed in one
 * go with the file. Do that with trees of every shape, and take the memory that
 * was freed for the next ones: a node that was not one corrupts memory, which
 * sanitised kernels report and others do not survive.
 */
GMEM_TEST(maps_of_all_sizes_are_freed)
{
	const u64 max_runs = 320;
	u64 runs, i, attributes, size;
	int fd;

	for (runs = 1; runs <= max_runs; runs++) {
		fd = vm_create_guest_memfd(self->vm, max_runs * PS, GMEM_MMAP_SHARED);
		for (i = 1; i < runs; i += 2)
			gmem_convert(fd, i * PS, PS, GMEM_PRIVATE, GMEM_NONE);
		for (i = 0; i < runs; i++) {
			TEST_ASSERT_EQ(gmem_get(fd, i * PS, &attributes, &size), 0);
			TEST_ASSERT_EQ(attributes, i & 1 ? GMEM_PRIVATE : GMEM_SHARED);
		}
		kvm_close(fd);
	}
}

GMEM_TEST(file_of_the_largest_size)
{
	const u64 size = INT64_MAX & ~(PS - 1);
	u64 attributes, run, eo;
	int fd;

	fd = __vm_create_guest_memfd(self->vm, size, GMEM_MMAP_SHARED);
	TEST_ASSERT(fd >= 0, "A file of %#lx bytes: errno %d", size, errno);

	gmem_convert(fd, size - PS, PS, GMEM_PRIVATE, GMEM_ZERO);
	TEST_ASSERT_EQ(gmem_get(fd, 0, &attributes, &run), 0);
	TEST_ASSERT_EQ(attributes, 0);
	TEST_ASSERT_EQ(run, size - PS);
	TEST_ASSERT_EQ(gmem_get(fd, size - PS, &attributes, &run), 0);
	TEST_ASSERT_EQ(attributes, GMEM_PRIVATE);
	TEST_ASSERT_EQ(run, PS);

	gmem_convert(fd, 0, size, GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT_EQ(count_runs(fd, size), 1);

	TEST_ASSERT_EQ(gmem_set_once(fd, size, PS, 0, 0, &eo), EINVAL);
	TEST_ASSERT_EQ(gmem_set_once(fd, size - PS, 2 * PS, 0, 0, &eo), EINVAL);
	TEST_ASSERT_EQ(gmem_set_once(fd, PS, size, 0, 0, &eo), EINVAL);
	TEST_ASSERT_EQ(gmem_get(fd, size, NULL, NULL), EINVAL);
	kvm_close(fd);
}

/* --- Holes -------------------------------------------------------------- */

GMEM_TEST(punched_pages_read_zero_and_keep_their_attributes)
{
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;
	const u64 half = a->size / 2;

	gmem_guest_start(vcpu);
	fill_area(a, GMEM_SEED(11));
	gmem_convert(a->fd, 0, half, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(11), 0);
	gmem_dirty_free_pages();

	/* Two private pages, two shared ones, and two across the border. */
	TEST_ASSERT_EQ(gmem_punch(a->fd, PS, 2 * PS), 0);
	TEST_ASSERT_EQ(gmem_punch(a->fd, half - PS, 2 * PS), 0);
	TEST_ASSERT_EQ(gmem_punch(a->fd, half + 4 * PS, 2 * PS), 0);
	gmem_assert_attributes(a->fd, 0, half, GMEM_PRIVATE);
	gmem_assert_attributes(a->fd, half, half, GMEM_SHARED);

	gmem_host_assert_refused(a->hva, half);
	gmem_guest_assert(vcpu, a->gpa, PS, GMEM_SEED(11), 0);
	gmem_guest_assert(vcpu, a->gpa + PS, 2 * PS, GMEM_ZEROES, 0);
	gmem_guest_assert(vcpu, a->gpa + 3 * PS, 4 * PS, GMEM_SEED(11), 3 * PS);
	gmem_host_assert(a->hva + half, PS, GMEM_ZEROES, 0);
	gmem_guest_assert(vcpu, a->gpa + half - PS, 2 * PS, GMEM_ZEROES, 0);
	gmem_host_assert(a->hva + half + PS, 3 * PS, GMEM_SEED(11), half + PS);
	gmem_guest_assert(vcpu, a->gpa + half + 4 * PS, 2 * PS, GMEM_ZEROES, 0);
	gmem_host_assert(a->hva + half + 6 * PS, 2 * PS, GMEM_SEED(11),
			 half + 6 * PS);

	/* A hole is "never allocated" again: NONE does not scramble it. */
	TEST_ASSERT_EQ(gmem_punch(a->fd, 0, a->size), 0);
	TEST_ASSERT_EQ(gmem_allocate(a->fd, 0, 4 * PS), 0);
	gmem_convert(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_NONE);
	gmem_convert(a->fd, 0, a->size, GMEM_SHARED, GMEM_NONE);
	gmem_host_assert(a->hva, a->size, GMEM_ZEROES, 0);
}

/* Whichever kind of mapping the guest has, punching takes it away. */
GMEM_TEST(punching_unmaps_both_kinds_from_the_guest)
{
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;

	gmem_guest_start(vcpu);
	gmem_convert(a->fd, PS, PS, GMEM_PRIVATE, GMEM_NONE);
	gmem_guest_fill(vcpu, a->gpa, 2 * PS, GMEM_SEED(12), 0);
	TEST_ASSERT_EQ(gmem_punch(a->fd, 0, 2 * PS), 0);
	gmem_guest_assert(vcpu, a->gpa, 2 * PS, GMEM_ZEROES, 0);
}

/* --- Requests of the guest ---------------------------------------------- */

GMEM_TEST(payload_injection_by_hypercall)
{
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;
	int i;

	gmem_guest_start(vcpu);
	for (i = 0; i < 4; i++) {
		gmem_fill(a->hva, a->size, GMEM_SEED(30 + i), 0);
		gmem_guest_convert(vcpu, a, PS, a->size - 2 * PS, GMEM_PRIVATE,
				   GMEM_PRESERVE);
		gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(30 + i), 0);
		gmem_host_assert_refused(a->hva + PS, a->size - 2 * PS);
		gmem_guest_convert(vcpu, a, 0, a->size, GMEM_SHARED, GMEM_ZERO);
		gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_ZEROES, 0);
		gmem_host_assert(a->hva, a->size, GMEM_ZEROES, 0);
	}
}

GMEM_TEST(bounce_buffer_by_hypercall)
{
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;
	int i;

	gmem_guest_start(vcpu);
	gmem_guest_convert(vcpu, a, 0, a->size, GMEM_PRIVATE, GMEM_ZERO);
	for (i = 0; i < 4; i++) {
		/* Out: what the guest wrote in private, the host reads. */
		gmem_guest_fill(vcpu, a->gpa, a->size, GMEM_SEED(40 + i), 0);
		gmem_guest_convert(vcpu, a, 4 * PS, 4 * PS, GMEM_SHARED,
				   GMEM_PRESERVE);
		gmem_host_assert(a->hva + 4 * PS, 4 * PS, GMEM_SEED(40 + i), 4 * PS);
		gmem_host_assert_refused(a->hva, 4 * PS);
		gmem_host_assert_refused(a->hva + 8 * PS, 8 * PS);

		/* In: the host's answer, read while still shared and after. */
		gmem_fill(a->hva + 4 * PS, 4 * PS, GMEM_SEED(50 + i), 4 * PS);
		gmem_guest_assert(vcpu, a->gpa + 4 * PS, 4 * PS, GMEM_SEED(50 + i),
				  4 * PS);
		gmem_guest_convert(vcpu, a, 4 * PS, 4 * PS, GMEM_PRIVATE,
				   GMEM_PRESERVE);
		gmem_guest_assert(vcpu, a->gpa + 4 * PS, 4 * PS, GMEM_SEED(50 + i),
				  4 * PS);
		gmem_guest_assert(vcpu, a->gpa, 4 * PS, GMEM_SEED(40 + i), 0);
	}
}

/* --- KVM_PRE_FAULT_MEMORY ----------------------------------------------- */

GMEM_TEST(prefault_of_a_mixed_range)
{
	struct gmem_area *a = &self->a, warm_up;
	struct kvm_vcpu *vcpu = self->vcpu;
	u64 mapped;
	int i;

	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		SKIP(return, "No KVM_CAP_PRE_FAULT_MEMORY");

	/* Map the guest's code before anything is counted. */
	gmem_area_create(&warm_up, self->vm, GMEM_SLOT + 1, GMEM_GPA + SZ_1M, PS,
			 GMEM_MMAP_SHARED);
	gmem_guest_start(vcpu);
	gmem_guest_assert(vcpu, warm_up.gpa, PS, GMEM_ZEROES, 0);

	/* Even pages private, the first half written, the second untouched. */
	gmem_fill(a->hva, a->size / 2, GMEM_SEED(60), 0);
	for (i = 0; i < NR_PAGES; i += 2)
		gmem_convert(a->fd, i * PS, PS, GMEM_PRIVATE, GMEM_PRESERVE);

	mapped = vm_get_stat(self->vm, pages_4k);
	gmem_dirty_free_pages();
	TEST_ASSERT_EQ(prefault(vcpu, a->gpa, a->size), 0);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_4k), mapped + NR_PAGES);

	for (i = 0; i < NR_PAGES; i++)
		gmem_assert_attributes(a->fd, i * PS, PS,
				       i & 1 ? GMEM_SHARED : GMEM_PRIVATE);
	gmem_guest_assert(vcpu, a->gpa, a->size / 2, GMEM_SEED(60), 0);
	gmem_guest_assert(vcpu, a->gpa + a->size / 2, a->size / 2, GMEM_ZEROES, 0);

	/* The guest needed no fault for that. */
	TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_4k), mapped + NR_PAGES);

	/* A conversion takes prefaulted mappings away like any other. */
	gmem_convert(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_ZERO);
	TEST_ASSERT(vm_get_stat(self->vm, pages_4k) <= mapped + NR_PAGES / 2,
		    "%lu pages are mapped, some of them still shared",
		    vm_get_stat(self->vm, pages_4k) - mapped);
	TEST_ASSERT_EQ(prefault(vcpu, a->gpa, a->size), 0);
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_ZEROES, 0);
	gmem_host_assert_refused(a->hva, a->size);
	gmem_area_destroy(&warm_up);
}

/* --- All of it in random order ------------------------------------------ */

#define MODEL_STEPS 400

struct model_page {
	bool private;
	bool allocated;		/* zeroed at a first use, i.e. up to date */
	u32 pattern;
};

GMEM_TEST(random_operations_follow_the_model)
{
	const bool scrambles = gmem_scrambles();
	struct model_page model[NR_PAGES] = {};
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;
	u32 step, i, first, nr, seed;
	u64 to, policy;

	gmem_guest_start(vcpu);
	for (step = 0; step < MODEL_STEPS; step++) {
		first = kvm_random_u32(&kvm_rng) % NR_PAGES;
		nr = 1 + kvm_random_u32(&kvm_rng) % (NR_PAGES - first);
		seed = GMEM_SEED(step);

		switch (kvm_random_u32(&kvm_rng) % 8) {
		case 0:
			gmem_guest_fill(vcpu, a->gpa + first * PS, nr * PS, seed,
					first * PS);
			for (i = first; i < first + nr; i++) {
				model[i].allocated = true;
				model[i].pattern = seed;
			}
			break;
		case 1:
			for (i = first; i < first + nr; i++) {
				if (model[i].private)
					continue;
				gmem_fill(a->hva + i * PS, PS, seed, i * PS);
				model[i].allocated = true;
				model[i].pattern = seed;
			}
			break;
		case 2:
			TEST_ASSERT_EQ(gmem_punch(a->fd, first * PS, nr * PS), 0);
			for (i = first; i < first + nr; i++) {
				model[i].allocated = false;
				model[i].pattern = GMEM_ZEROES;
			}
			break;
		case 3:
			TEST_ASSERT_EQ(gmem_allocate(a->fd, first * PS, nr * PS), 0);
			break;
		default:
			to = kvm_random_bool(&kvm_rng) ? GMEM_PRIVATE : GMEM_SHARED;
			policy = kvm_random_u32(&kvm_rng) % 3;
			gmem_convert(a->fd, first * PS, nr * PS, to, policy);
			for (i = first; i < first + nr; i++) {
				model[i].private = to;
				if (!model[i].allocated)
					continue;
				if (policy == GMEM_ZERO)
					model[i].pattern = GMEM_ZEROES;
				else if (policy == GMEM_NONE && scrambles)
					model[i].pattern = GMEM_SCRAMBLED;
			}
			break;
		}

		for (i = 0; i < NR_PAGES; i++) {
			TEST_ASSERT(gmem_is_private(a->fd, i * PS) == model[i].private,
				    "Step %u: page %u should be %s", step, i,
				    model[i].private ? "private" : "shared");
		}

		/* Read one page from both sides, which may allocate it. */
		i = kvm_random_u32(&kvm_rng) % NR_PAGES;
		if (model[i].private)
			gmem_host_assert_refused(a->hva + i * PS, PS);
		else
			gmem_host_assert(a->hva + i * PS, PS, model[i].pattern, i * PS);
		gmem_guest_assert(vcpu, a->gpa + i * PS, PS, model[i].pattern, i * PS);
		model[i].allocated = true;
	}

	for (i = 0; i < NR_PAGES; i++)
		gmem_guest_assert(vcpu, a->gpa + i * PS, PS, model[i].pattern, i * PS);
	ksft_print_msg("%u steps, seed %#x\n", step, kvm_random_seed);
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
