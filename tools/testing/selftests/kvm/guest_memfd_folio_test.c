// SPDX-License-Identifier: GPL-2.0
/*
 * Large folios of a guest_memfd, which files have that were created with
 * GUEST_MEMFD_FLAG_LARGE_FOLIOS: 2M are one folio for the host, and for a
 * conversion, until a part of them is converted, freed, or fails.
 *
 * On arm64 nothing converts. There the tests are of all but that, with pages that the
 * host has.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/wait.h>

/* vCPUs cannot be added to a VM of arm64 whose interrupt controller is there. */
#define LG_VCPUS	3
#include "gmem_large.h"

#define LARGE		GUEST_MEMFD_FLAG_LARGE_FOLIOS

#ifdef __x86_64__
#define FO_VM		KVM_X86_SW_PROTECTED_VM
#define converts()	true
#else
#define FO_VM		DEFAULT_VM
#define converts()	false
#endif

static void fo_simple(struct lg *l, u64 npages, bool private)
{
	lg_create(l, FO_VM, npages,
		  LARGE | (private && converts() ? GUEST_MEMFD_FLAG_MMAP : GMEM_MMAP_SHARED),
		  GMEM_GPA, 0, 0);
}

/* The host loses pages: they become private or, where nothing does, are freed. */
static void leave_the_host(struct lg *l, u64 page, u64 n)
{
	if (converts())
		to(l, page, n, GMEM_PRIVATE);
	else
		TEST_ASSERT(!gmem_punch(l->a.fd, OFF(page), OFF(n)), "punch: errno %d", errno);
}

/* What the host has there then: nothing, or a new page. */
#define has_left_the_host(l, page)						\
do {										\
	if (converts())								\
		gmem_host_assert_refused((l)->file + OFF(page), PG);		\
	else									\
		h_sees(l, page, 1, GMEM_ZEROES);				\
} while (0)

/* How many large folios there are, and what became of others since the VM was created. */
#define folios_are(l, want)	TEST_ASSERT_EQ(pages_of(l, "folios"), (want) * PAGES)
#define folios_were(l, what, want)						\
	TEST_ASSERT_EQ(vm_get_stat((l)->vm, gmem_folios_##what), want)

/* How much of the file the host has mapped 2M at a time, in pages. */
static u64 host_large(struct lg *l)
{
	unsigned long start, end, kb, sum = 0;
	bool here = false;
	char line[256];
	FILE *f;

	f = fopen("/proc/self/smaps", "r");
	TEST_ASSERT(f, "smaps: errno %d", errno);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = start <= (u64)l->file && (u64)l->file < end;
		if (here && sscanf(line, "FilePmdMapped: %lu", &kb) == 1)
			sum += kb;
	}
	fclose(f);
	return sum * 1024 / PG;
}

/* A folio with its bytes, which the guest has by one mapping. */
static void fo_filled(struct lg *l, u64 page, u32 pattern)
{
	lg_filled(l, page, pattern);
	folios_are(l, 1);
}

/* And the host, too. */
static void fo_shared(struct lg *l, u64 page, u32 pattern)
{
	fo_filled(l, page, pattern);
	h_sees(l, page, PAGES, pattern);
	TEST_ASSERT_EQ(host_large(l), PAGES);
}

HAZARD(flag_is_announced_where_it_works)
{
	static const u32 types[] = { FO_VM, DEFAULT_VM };
	const bool thp = !access("/sys/kernel/mm/transparent_hugepage", F_OK);
	struct kvm_vm *vm;
	int i, fd;

	for (i = 0; i < ARRAY_SIZE(types); i++) {
		vm = vm_create_barebones_type(types[i]);
		TEST_ASSERT_EQ(!!(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & LARGE), thp);
		fd = __vm_create_guest_memfd(vm, BLOCK, GMEM_MMAP_SHARED | LARGE);
		TEST_ASSERT(thp ? fd >= 0 : fd == -1 && errno == EINVAL, "fd %d, errno %d", fd, errno);
		if (fd >= 0)
			kvm_close(fd);
		/* A page is moved by itself. */
		fd = __vm_create_guest_memfd(vm, BLOCK, GMEM_MMAP_SHARED | LARGE |
					     GUEST_MEMFD_FLAG_MIGRATABLE);
		TEST_ASSERT(fd == -1 && errno == EINVAL, "fd %d, errno %d", fd, errno);
		kvm_vm_free(vm);
	}
}

#ifdef __x86_64__
/* A platform that pages belong to has none. With pKVM there are none: guest_memfd_pkvm_test. */
HAZARD(platforms_have_small_folios)
{
	static const u32 platforms[] = { KVM_GMEM_EMULATE_SNP, KVM_GMEM_EMULATE_TDX };
	struct kvm_vm *vm;
	int i, r, fd;

	for (i = 0; i < ARRAY_SIZE(platforms); i++) {
		HZ_REQUIRE(gmem_emulates(platforms[i]), "needs CONFIG_KVM_GMEM_EMULATION");
		vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
		r = gmem_enable_emulation(vm, platforms[i], 0);
		TEST_ASSERT(!r, "errno %d", r);
		TEST_ASSERT(!(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & LARGE), "announced");
		fd = __vm_create_guest_memfd(vm, BLOCK, GMEM_MMAP_SHARED | LARGE);
		TEST_ASSERT(fd == -1 && errno == EINVAL, "fd %d, errno %d", fd, errno);
		kvm_vm_free(vm);
	}
}
#endif

/* Of either kind, and of a VM that has but one kind. */
HAZARD(folio_is_mapped_at_once)
{
	struct lg l;
	int kind;

	for (kind = converts() ? 0 : 2; kind < 3; kind++) {
		gmem_dirty_free_pages();
		lg_create(&l, kind == 2 ? DEFAULT_VM : FO_VM, 2 * PAGES,
			  LARGE | (kind ? GMEM_MMAP_SHARED : GUEST_MEMFD_FLAG_MMAP), GMEM_GPA, 0, 0);
		fo_filled(&l, PAGES, GMEM_SEED(kind));
		TEST_ASSERT_EQ(allocated(&l), PAGES);
		folios_were(&l, made, 1);
		folios_were(&l, split, 0);
		became(&l, made, 0);
		g_sees(&l, PAGES, PAGES, GMEM_SEED(kind));
		if (kind) {
			h_sees(&l, PAGES, PAGES, GMEM_SEED(kind));
			TEST_ASSERT_EQ(host_large(&l), PAGES);
		} else {
			gmem_host_assert_refused(l.file + OFF(PAGES), BLOCK);
		}
		/* Bytes that were never written are zero. */
		gmem_guest_assert(l.vcpus[0], gpa_of(&l, PAGES + 1), 64, GMEM_ZEROES, 0);
		lg_destroy(&l);
	}
}

/* The host's first use of a page is that of all. */
HAZARD(host_uses_a_folio)
{
	struct lg l;
	u8 *mem;
	u64 i;

	fo_simple(&l, 2 * PAGES, false);
	gmem_dirty_free_pages();
	allocate(&l, 0, 2 * PAGES);
	folios_are(&l, 2);
	for (i = 0; i < BLOCK; i += 61)
		TEST_ASSERT_EQ(l.file[i], 0);
	TEST_ASSERT_EQ(host_large(&l), PAGES);
	l.file[BLOCK + OFF(77)] = 0x11;
	TEST_ASSERT_EQ(host_large(&l), 2 * PAGES);
	TEST_ASSERT_EQ(gmem_guest_read(l.vcpus[0], gpa_of(&l, PAGES + 77)), 0x11);
	large_is(&l, 1);

	/* Where the kernel maps it, it is aligned; where not, it is mapped small. */
	mem = kvm_mmap(2 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, l.a.fd);
	TEST_ASSERT(!((u64)mem & (BLOCK - 1)), "Mapped at %p", mem);
	kvm_munmap(mem, 2 * BLOCK);
	mem = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, l.a.fd, PG);
	TEST_ASSERT(mem != MAP_FAILED, "mmap: errno %d", errno);
	TEST_ASSERT_EQ(mem[BLOCK - PG], 0);
	TEST_ASSERT_EQ(mem[0], 0);
	kvm_munmap(mem, BLOCK);
	/* Nobody makes a folio of other pages, or takes it away. */
	TEST_ASSERT(madvise(l.file, BLOCK, MADV_COLLAPSE), "collapsed");
	folios_are(&l, 2);
	lg_destroy(&l);
}

#ifdef __x86_64__
/* As a whole, there and back: it stays a folio. */
HAZARD(folio_converts_as_a_whole)
{
	const u32 seed = GMEM_SEED(2);
	struct lg l;
	u64 zeroed;
	int i;

	fo_simple(&l, 2 * PAGES, false);
	fo_shared(&l, PAGES, seed);
	for (i = 0; i < 3; i++) {
		to(&l, PAGES, PAGES, GMEM_PRIVATE);
		TEST_ASSERT_EQ(host_large(&l), 0);
		gmem_host_assert_refused(l.file + BLOCK, BLOCK);
		g_sees(&l, PAGES, PAGES, seed);
		large_is(&l, 1);
		to(&l, PAGES, PAGES, GMEM_SHARED);
		large_is(&l, 0);
		h_sees(&l, PAGES, PAGES, seed);
		TEST_ASSERT_EQ(host_large(&l), PAGES);
		g_sees(&l, PAGES, PAGES, seed);
		large_is(&l, 1);
	}
	/* With the pages around it, of which there are none. */
	to(&l, 0, 2 * PAGES, GMEM_PRIVATE);
	to(&l, PAGES - 1, PAGES + 1, GMEM_SHARED);
	h_sees(&l, PAGES, PAGES, seed);
	folios_are(&l, 1);
	zeroed = vm_get_stat(l.vm, gmem_zeroed_bytes);
	gmem_convert(l.a.fd, BLOCK, BLOCK, GMEM_PRIVATE, GMEM_ZERO);
	TEST_ASSERT_EQ(vm_get_stat(l.vm, gmem_zeroed_bytes) - zeroed, BLOCK);
	g_sees(&l, PAGES, PAGES, GMEM_ZEROES);
	folios_are(&l, 1);
	folios_were(&l, split, 0);
	folios_were(&l, held, 0);
	lg_destroy(&l);
}

/* A page of a folio, wherever: it is split, and can be mapped large again. */
static void borders_of(bool private)
{
	const u64 was = private ? GMEM_PRIVATE : GMEM_SHARED;
	const u64 other = private ? GMEM_SHARED : GMEM_PRIVATE;
	const u32 seed = GMEM_SEED(9);
	u64 page;
	struct lg l;
	int i;

	for (i = 0; i < ARRAY_SIZE(borders); i++) {
		fo_simple(&l, 2 * PAGES, private);
		if (private)
			fo_filled(&l, PAGES, seed);
		else
			fo_shared(&l, PAGES, seed);
		page = PAGES + borders[i];

		to(&l, page, 1, other);
		folios_are(&l, 0);
		folios_were(&l, split, 1);
		large_is(&l, 0);
		blocks_are(&l, 1, 0);
		TEST_ASSERT_EQ(allocated(&l), PAGES);
		g_sees(&l, PAGES, PAGES, seed);
		TEST_ASSERT_EQ(host_large(&l), 0);
		if (private) {
			h_sees(&l, page, 1, seed);
			gmem_host_assert_refused(l.file + BLOCK, OFF(borders[i]));
			gmem_host_assert_refused(l.file + OFF(page + 1), OFF(2 * PAGES - page - 1));
		} else {
			/* Not even when it has the pages next to it. */
			h_sees(&l, PAGES, borders[i], seed);
			h_sees(&l, page + 1, PAGES - borders[i] - 1, seed);
			gmem_host_assert_refused(l.file + OFF(page), PG);
		}

		to(&l, page, 1, was);
		g_sees(&l, PAGES, PAGES, seed);
		large_is(&l, 1);
		folios_are(&l, 0);

		/* New memory is a folio again. The host has a page table there, and goes on to use it. */
		TEST_ASSERT(!gmem_punch(l.a.fd, BLOCK, BLOCK), "punch: errno %d", errno);
		fo_filled(&l, PAGES, seed);
		if (!private)
			h_sees(&l, PAGES, PAGES, seed);
		lg_destroy(&l);
	}
}

HAZARD(page_of_private_folio_converts)
{
	borders_of(true);
}

HAZARD(page_of_shared_folio_converts)
{
	borders_of(false);
}

/* How many folios of any size the shared pages of a block have, which the host maps for this. */
static u64 folios_of(struct lg *l, u64 page)
{
	u64 i, heads = 0, pfn;

	for (i = page; i < page + PAGES; i++) {
		*(volatile u8 *)(l->file + OFF(i));
		pfn = gmem_frame_of(l->file + OFF(i));
		TEST_ASSERT(pfn, "No frame number of page %lu", i);
		heads += !has_flag(pfn, KPF_COMPOUND_TAIL);
	}
	return heads;
}

/* A folio is not split more than a request needs: each halving makes one more. */
HAZARD(rest_of_a_split_folio_is_large)
{
	static const struct {
		u64 first, n, folios;
	} parts[] = {
		{ 0, 256, 2 }, { 256, 256, 2 }, { 0, 1, 10 }, { 511, 1, 10 }, { 256, 1, 10 },
		{ 300, 1, 10 }, { 301, 1, 10 }, { 128, 256, 4 }, { 64, 8, 7 }, { 72, 56, 7 },
		/* They begin at 96, 100, 104, 108 and 110, and where 96 to 111 are cut off. */
		{ 100, 10, 10 },
	};
	const u32 seed = GMEM_SEED(10);
	struct lg l;
	int i;

	HZ_REQUIRE(!access("/proc/kpageflags", R_OK), "needs /proc/kpageflags");
	fo_simple(&l, 2 * PAGES, false);
	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		fo_filled(&l, PAGES, seed);
		TEST_ASSERT_EQ(folios_of(&l, PAGES), 1);
		to(&l, PAGES + parts[i].first, parts[i].n, GMEM_PRIVATE);
		folios_were(&l, split, i + 1);
		gmem_host_assert_refused(l.file + OFF(PAGES + parts[i].first), OFF(parts[i].n));
		to(&l, PAGES + parts[i].first, parts[i].n, GMEM_SHARED);
		TEST_ASSERT_EQ(folios_of(&l, PAGES), parts[i].folios);
		h_sees(&l, PAGES, PAGES, seed);
		g_sees(&l, PAGES, PAGES, seed);
		/* Together they can be mapped as one folio can. */
		large_is(&l, 1);
		blocks_are(&l, 1, 1);
		TEST_ASSERT(!gmem_punch(l.a.fd, BLOCK, BLOCK), "punch: errno %d", errno);
	}
	lg_destroy(&l);
}

/* Ranges of all sizes, one after another, in a block that has folios of all sizes by then. */
HAZARD(parts_of_parts_convert)
{
	const u32 seed = GMEM_SEED(11);
	u64 attrs[PAGES] = {}, first, n, to_what, i;
	u32 random = 0x5eed;
	struct lg l;
	int round;

	fo_simple(&l, 2 * PAGES, false);
	fo_shared(&l, PAGES, seed);
	for (round = 0; round < 40; round++) {
		first = hz_rand(&random) % PAGES;
		n = 1 + hz_rand(&random) % (1 << hz_rand(&random) % 9);
		if (n > PAGES - first)
			n = PAGES - first;
		to_what = hz_rand(&random) & 1 ? GMEM_PRIVATE : GMEM_SHARED;
		to(&l, PAGES + first, n, to_what);
		for (i = first; i < first + n; i++)
			attrs[i] = to_what;
		for (i = 0; i < PAGES; i++) {
			gmem_assert_attributes(l.a.fd, OFF(PAGES + i), PG, attrs[i]);
			if (attrs[i])
				TEST_ASSERT(gmem_host_refused(l.file + OFF(PAGES + i)), "Page %lu", i);
			else
				h_sees(&l, PAGES + i, 1, seed);
		}
		if (!(round % 10))
			g_sees(&l, PAGES, PAGES, seed);
	}
	to(&l, PAGES, PAGES, GMEM_PRIVATE);
	g_sees(&l, PAGES, PAGES, seed);
	large_is(&l, 1);
	lg_destroy(&l);
}

/* Once it is split, who has a page has that part only. A part can be freed, and can fail. */
HAZARD(parts_of_a_folio_are_apart)
{
	const u32 seed = GMEM_SEED(12);
	struct io_uring_params params;
	struct pin pin;
	struct lg l;
	u64 eo;
	int r;

	HZ_REQUIRE(can_poison_mapped(), "needs MEMORY_FAILURE and root");
	HZ_REQUIRE(ring_create(&params) >= 0, "needs io_uring");
	fo_simple(&l, 3 * PAGES, false);
	fo_shared(&l, PAGES, seed);
	to(&l, PAGES + 300, 1, GMEM_PRIVATE);
	to(&l, PAGES + 300, 1, GMEM_SHARED);
	h_sees(&l, PAGES, PAGES, seed);
	r = pin_page(&pin, PIN_IO_URING, l.file + OFF(PAGES + 400));
	TEST_ASSERT(!r, "pin: errno %d", r);

	/* The folio of 128 pages, from 384 on. */
	to(&l, PAGES + 10, 373, GMEM_PRIVATE);
	r = gmem_set(l.a.fd, BLOCK, BLOCK, GMEM_PRIVATE, GMEM_PRESERVE, &eo);
	TEST_ASSERT(r == EAGAIN && eo == OFF(PAGES + 384), "errno %d, error_offset %#lx", r, eo);
	r = gmem_set(l.a.fd, OFF(PAGES + 450), PG, GMEM_PRIVATE, GMEM_PRESERVE, &eo);
	TEST_ASSERT(r == EAGAIN && eo == OFF(PAGES + 450), "errno %d, error_offset %#lx", r, eo);
	r = gmem_punch(l.a.fd, OFF(PAGES + 380), OFF(10));
	TEST_ASSERT(r == EAGAIN, "punch: errno %d", r);
	TEST_ASSERT_EQ(allocated(&l), PAGES);
	unpin_page(&pin);

	TEST_ASSERT(!gmem_punch(l.a.fd, OFF(PAGES + 380), OFF(10)), "punch: errno %d", errno);
	TEST_ASSERT_EQ(allocated(&l), PAGES - 10);
	g_sees(&l, PAGES, 380, seed);
	g_sees(&l, PAGES + 380, 10, GMEM_ZEROES);
	g_sees(&l, PAGES + 390, 122, seed);
	h_sees(&l, PAGES + 390, 122, seed);

	r = poison_mapped(l.file + OFF(PAGES + 470));
	TEST_ASSERT(!r, "MADV_HWPOISON: errno %d (%s)", r, strerror(r));
	gmem_host_assert_refused(l.file + OFF(PAGES + 470), PG);
	h_sees(&l, PAGES + 390, 80, seed);
	h_sees(&l, PAGES + 471, 41, seed);
	g_sees(&l, PAGES + 390, 80, seed);
	g_sees(&l, PAGES + 471, 41, seed);
	r = __gmem_guest_do(l.vcpus[0], GMEM_OP_READ, gpa_of(&l, PAGES + 470), 1, 0, 0, 0);
	TEST_ASSERT(r == -EHWPOISON, "The guest's read: %d", r);
	lg_destroy(&l);
}

/* It was split before anybody used it. The guest's first use is that of all parts, as with a block. */
HAZARD(unused_folio_in_parts)
{
	struct lg l;

	fo_simple(&l, PAGES, false);
	gmem_dirty_free_pages();
	allocate(&l, 0, PAGES);
	to(&l, 300, 1, GMEM_PRIVATE);
	folios_were(&l, split, 1);
	to(&l, 300, 1, GMEM_SHARED);
	touch(&l, 5);
	large_is(&l, 1);
	g_sees(&l, 0, PAGES, GMEM_ZEROES);
	h_sees(&l, 0, PAGES, GMEM_ZEROES);
	lg_destroy(&l);
}

/* The memory that splitting a folio takes, nodes of the page cache, which are refused to this task. */
enum refused { NONE, WHERE_NOBODY_WAITS, ALL };

static bool refuse_nodes(enum refused what)
{
	const struct { const char *file; long value; } set[] = {
		{ DEBUGFS "/failslab/ignore-gfp-wait", what != ALL },
		{ DEBUGFS "/failslab/cache-filter", 1 }, { DEBUGFS "/failslab/task-filter", 1 },
		{ DEBUGFS "/failslab/verbose", 0 }, { DEBUGFS "/failslab/times", -1 },
		{ "/sys/kernel/slab/radix_tree_node/failslab", what != NONE },
		{ "/proc/self/make-it-fail", what != NONE },
		{ DEBUGFS "/failslab/probability", what == NONE ? 0 : 100 },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(set); i++)
		if (hz_write_file(set[i].file, "%ld", set[i].value))
			return false;
	return true;
}

HAZARD(no_memory_to_split_a_folio)
{
	const u32 seed = GMEM_SEED(13);
	struct lg l;
	int r, hole;
	u64 eo;

	HZ_REQUIRE(hz_have_debugfs() && refuse_nodes(NONE), "needs FAILSLAB");
	fo_simple(&l, 2 * PAGES, false);
	fo_shared(&l, PAGES, seed);
	TEST_ASSERT(refuse_nodes(ALL), "Cannot refuse");
	r = gmem_set(l.a.fd, OFF(PAGES + 301), PG, GMEM_PRIVATE, GMEM_ZERO, &eo);
	hole = gmem_punch(l.a.fd, OFF(PAGES + 301), PG);
	refuse_nodes(NONE);
	TEST_ASSERT(r == ENOMEM && eo == OFF(PAGES + 301), "errno %d, error_offset %#lx", r, eo);
	TEST_ASSERT(hole == ENOMEM, "punch: errno %d", hole);
	folios_were(&l, held, 2);
	/* Nothing has changed, although it is in parts: those that need no node. */
	folios_were(&l, split, 1);
	gmem_assert_attributes(l.a.fd, 0, 2 * BLOCK, GMEM_SHARED);
	TEST_ASSERT_EQ(allocated(&l), PAGES);
	h_sees(&l, PAGES, PAGES, seed);
	g_sees(&l, PAGES, PAGES, seed);
	large_is(&l, 1);

	/* There is memory for who waits: 64 pages are split in another way. */
	TEST_ASSERT(!gmem_punch(l.a.fd, BLOCK, BLOCK), "punch: errno %d", errno);
	fo_filled(&l, PAGES, seed);
	TEST_ASSERT(refuse_nodes(WHERE_NOBODY_WAITS), "Cannot refuse");
	r = gmem_set(l.a.fd, OFF(PAGES + 301), PG, GMEM_PRIVATE, GMEM_PRESERVE, &eo);
	refuse_nodes(NONE);
	TEST_ASSERT(!r, "errno %d, error_offset %#lx", r, eo);
	folios_were(&l, split, 2);
	h_sees(&l, PAGES, 301, seed);
	gmem_host_assert_refused(l.file + OFF(PAGES + 301), PG);
	h_sees(&l, PAGES + 302, 210, seed);
	g_sees(&l, PAGES, PAGES, seed);
	to(&l, PAGES + 301, 1, GMEM_SHARED);
	TEST_ASSERT_EQ(folios_of(&l, PAGES), 3 + 64);
	lg_destroy(&l);
}

/* At most two are split: those at the ends. */
HAZARD(range_across_folios_converts)
{
	const u32 seed = GMEM_SEED(4);
	struct lg l;
	u64 i;

	fo_simple(&l, 4 * PAGES, true);
	allocate(&l, 0, 4 * PAGES);
	folios_are(&l, 4);
	for (i = 0; i < 4; i++)
		touch(&l, i * PAGES);
	g_write(&l, 0, 4 * PAGES, seed);

	/* What is so already is not split. */
	to(&l, 100, 3 * PAGES, GMEM_PRIVATE);
	gmem_convert(l.a.fd, OFF(PAGES + 5), PG, GMEM_PRIVATE, GMEM_ZERO);
	folios_are(&l, 4);
	g_sees(&l, PAGES + 5, 1, GMEM_ZEROES);
	g_write(&l, PAGES + 5, 1, seed);
	g_sees(&l, PAGES, PAGES, seed);
	large_is(&l, 4);

	to(&l, 100, 3 * PAGES, GMEM_SHARED);
	folios_are(&l, 2);
	folios_were(&l, split, 2);
	h_sees(&l, 100, 3 * PAGES, seed);
	TEST_ASSERT_EQ(host_large(&l), 2 * PAGES);
	gmem_host_assert_refused(l.file, OFF(100));
	gmem_host_assert_refused(l.file + OFF(3 * PAGES + 100), BLOCK - OFF(100));
	g_sees(&l, 0, 4 * PAGES, seed);
	large_is(&l, 2);

	to(&l, 100, 3 * PAGES, GMEM_PRIVATE);
	folios_are(&l, 2);
	folios_were(&l, split, 2);
	g_sees(&l, 0, 4 * PAGES, seed);
	large_is(&l, 4);
	lg_destroy(&l);
}

/* Memory for pages of both kinds is not one folio. */
HAZARD(memory_of_two_kinds)
{
	struct lg l;

	fo_simple(&l, 2 * PAGES, true);
	to(&l, 7, 1, GMEM_SHARED);
	allocate(&l, 0, 2 * PAGES);
	folios_are(&l, 1);
	folios_were(&l, made, 1);
	became(&l, made, 1);
	h_sees(&l, 7, 1, GMEM_ZEROES);
	gmem_host_assert_refused(l.file + OFF(6), PG);
	gmem_host_assert_refused(l.file + OFF(8), PG);
	lg_destroy(&l);
}
#endif

HAZARD(hole_in_a_folio)
{
	const u32 seed = GMEM_SEED(5);
	struct lg l;
	u64 page;
	int i;

	for (i = 0; i < ARRAY_SIZE(borders); i++) {
		fo_simple(&l, 3 * PAGES, i & 1);
		fo_filled(&l, PAGES, seed);
		page = PAGES + borders[i];
		TEST_ASSERT(!gmem_punch(l.a.fd, OFF(page), PG), "punch: errno %d", errno);
		large_is(&l, 0);
		folios_are(&l, 0);
		folios_were(&l, split, 1);
		TEST_ASSERT_EQ(allocated(&l), PAGES - 1);
		g_sees(&l, PAGES, borders[i], seed);
		g_sees(&l, page + 1, PAGES - borders[i] - 1, seed);
		g_sees(&l, page, 1, GMEM_ZEROES);
		TEST_ASSERT_EQ(allocated(&l), PAGES);

		/* All of it, in a hole that begins before and ends behind it. */
		TEST_ASSERT(!gmem_punch(l.a.fd, BLOCK, BLOCK), "punch: errno %d", errno);
		fo_filled(&l, PAGES, seed);
		TEST_ASSERT(!gmem_punch(l.a.fd, PG, 2 * BLOCK), "punch: errno %d", errno);
		TEST_ASSERT_EQ(allocated(&l), 0);
		folios_were(&l, split, 1);
		large_is(&l, 0);
		g_sees(&l, PAGES, PAGES, GMEM_ZEROES);
		lg_destroy(&l);
	}
}

#ifdef __x86_64__
/* Who has a page has the folio: nothing of it becomes private. */
HAZARD(pinned_folio)
{
	const u32 seed = GMEM_SEED(7);
	struct pin pin;
	struct lg l;
	u64 eo;
	int r;

	fo_simple(&l, 3 * PAGES, false);
	fo_shared(&l, PAGES, seed);
	r = pin_page(&pin, PIN_IO_URING, l.file + OFF(PAGES + 100));
	HZ_REQUIRE(r != ENODEV, "needs io_uring");
	TEST_ASSERT(!r, "pin: errno %d", r);

	/* The offset is that of the first page that is the request's. */
	r = gmem_set(l.a.fd, BLOCK, BLOCK, GMEM_PRIVATE, GMEM_PRESERVE, &eo);
	TEST_ASSERT(r == EAGAIN && eo == BLOCK, "errno %d, error_offset %#lx", r, eo);
	r = gmem_set(l.a.fd, OFF(PAGES + 300), PG, GMEM_PRIVATE, GMEM_ZERO, &eo);
	TEST_ASSERT(r == EAGAIN && eo == OFF(PAGES + 300), "errno %d, error_offset %#lx", r, eo);
	r = gmem_set(l.a.fd, 0, OFF(PAGES + 300), GMEM_PRIVATE, GMEM_NONE, &eo);
	TEST_ASSERT(r == EAGAIN && eo == BLOCK, "errno %d, error_offset %#lx", r, eo);
	r = gmem_set(l.a.fd, OFF(PAGES + 300), BLOCK, GMEM_PRIVATE, GMEM_NONE, &eo);
	TEST_ASSERT(r == EAGAIN && eo == OFF(PAGES + 300), "errno %d, error_offset %#lx", r, eo);
	/* Nothing has changed. */
	gmem_assert_attributes(l.a.fd, 0, 3 * BLOCK, GMEM_SHARED);
	folios_are(&l, 1);
	folios_were(&l, split, 0);
	TEST_ASSERT(vm_get_stat(l.vm, gmem_folios_held) >= 3, "not counted");
	g_sees(&l, PAGES, PAGES, seed);
	h_sees(&l, PAGES, PAGES, seed);
	large_is(&l, 1);

	unpin_page(&pin);
	to(&l, PAGES + 300, 1, GMEM_PRIVATE);
	folios_were(&l, split, 1);
	g_sees(&l, PAGES, PAGES, seed);
	h_sees(&l, PAGES, 300, seed);
	gmem_host_assert_refused(l.file + OFF(PAGES + 300), PG);
	lg_destroy(&l);
}
#endif

/* Nor is a part of it freed. */
HAZARD(hole_in_a_pinned_folio)
{
	const u32 seed = GMEM_SEED(7);
	struct pin pin;
	struct lg l;
	int r;

	fo_simple(&l, 3 * PAGES, false);
	fo_shared(&l, PAGES, seed);
	r = pin_page(&pin, PIN_IO_URING, l.file + OFF(PAGES + 100));
	HZ_REQUIRE(r != ENODEV, "needs io_uring");
	TEST_ASSERT(!r, "pin: errno %d", r);
	r = gmem_punch(l.a.fd, 0, BLOCK + PG);
	TEST_ASSERT(r == EAGAIN, "punch: errno %d", r);
	r = gmem_punch(l.a.fd, 2 * BLOCK - PG, BLOCK);
	TEST_ASSERT(r == EAGAIN, "punch: errno %d", r);
	TEST_ASSERT_EQ(allocated(&l), PAGES);
	folios_are(&l, 1);
	folios_were(&l, split, 0);
	TEST_ASSERT_EQ(vm_get_stat(l.vm, gmem_folios_held), 2);
	g_sees(&l, PAGES, PAGES, seed);
	h_sees(&l, PAGES, PAGES, seed);
	large_is(&l, 1);

	unpin_page(&pin);
	r = gmem_punch(l.a.fd, 2 * BLOCK - PG, BLOCK);
	TEST_ASSERT(!r, "punch: errno %d", r);
	folios_were(&l, split, 1);
	large_is(&l, 0);
	g_sees(&l, PAGES, PAGES - 1, seed);
	g_sees(&l, 2 * PAGES - 1, 1, GMEM_ZEROES);
	h_sees(&l, PAGES, PAGES - 1, seed);
	lg_destroy(&l);
}

/* A hole that has all of a folio leaves it to who holds it, as with small ones. */
HAZARD(pinned_folio_in_a_hole)
{
	struct pin pin;
	struct lg l;
	int r;

	fo_simple(&l, PAGES, false);
	fo_shared(&l, 0, GMEM_SEED(3));
	r = pin_page(&pin, PIN_IO_URING, l.file + OFF(100));
	HZ_REQUIRE(r != ENODEV, "needs io_uring");
	TEST_ASSERT(!r, "pin: errno %d", r);
	TEST_ASSERT(!gmem_punch(l.a.fd, 0, BLOCK), "punch: errno %d", errno);
	TEST_ASSERT_EQ(allocated(&l), 0);
	fo_filled(&l, 0, GMEM_SEED(4));
	if (converts())
		to(&l, 0, PAGES, GMEM_PRIVATE);
	unpin_page(&pin);
	g_sees(&l, 0, PAGES, GMEM_SEED(4));
	lg_destroy(&l);
}

/* A child has the same mappings, which end with those of its parent. */
HAZARD(forked_host)
{
	const u32 seed = GMEM_SEED(8);
	int to_child[2], to_parent[2], status;
	struct lg l;
	pid_t pid;
	char c;

	fo_simple(&l, PAGES, false);
	fo_shared(&l, 0, seed);
	TEST_ASSERT(!pipe(to_child) && !pipe(to_parent), "pipe: errno %d", errno);
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork: errno %d", errno);
	if (!pid) {
		h_sees(&l, 0, PAGES, seed);
		TEST_ASSERT_EQ(host_large(&l), PAGES);
		TEST_ASSERT(write(to_parent[1], "", 1) == 1 && read(to_child[0], &c, 1) == 1, "pipe");
		h_sees(&l, 0, PAGES - 1, seed);
		has_left_the_host(&l, 511);
		_exit(0);
	}
	TEST_ASSERT(read(to_parent[0], &c, 1) == 1, "pipe");
	leave_the_host(&l, 511, 1);
	TEST_ASSERT(write(to_child[1], "", 1) == 1, "pipe");
	TEST_ASSERT(waitpid(pid, &status, 0) == pid && !status, "The child: %#x", status);
	g_sees(&l, 0, 511, seed);
	g_sees(&l, 511, 1, converts() ? seed : GMEM_ZEROES);
	lg_destroy(&l);
}

/* Memory failure splits the folio. */
HAZARD(failed_memory_in_a_folio)
{
	const u32 seed = GMEM_SEED(6);
	u64 page;
	int i, r;

	HZ_REQUIRE(can_poison_mapped(), "needs MEMORY_FAILURE and root");

	for (i = 0; i < ARRAY_SIZE(borders); i += 2) {
		struct lg l;

		fo_simple(&l, PAGES, false);
		fo_shared(&l, 0, seed);
		page = borders[i];
		r = poison_mapped(l.file + OFF(page));
		TEST_ASSERT(!r, "MADV_HWPOISON: errno %d (%s)", r, strerror(r));
		large_is(&l, 0);
		folios_are(&l, 0);
		gmem_host_assert_refused(l.file + OFF(page), PG);

		if (converts()) {
			to(&l, (page + 1) % PAGES, 1, GMEM_PRIVATE);
			to(&l, (page + 1) % PAGES, 1, GMEM_SHARED);
		}
		only_one_fails(&l, page, seed);
		/* The reference of memory failure is nobody's. */
		leave_the_host(&l, 0, PAGES);
		if (converts())
			gmem_host_assert_refused(l.file, BLOCK);
		lg_destroy(&l);
	}
}

/* As a whole, and in part, it stays what it is as long as it is held. */
static void failed_folio_converts(struct lg *l, struct pin *pin, u64 page)
{
	struct pin other;
	u64 eo;
	int r;

	r = gmem_set(l->a.fd, 0, BLOCK, GMEM_PRIVATE, GMEM_PRESERVE, &eo);
	TEST_ASSERT(r == EAGAIN && !eo, "errno %d, error_offset %#lx", r, eo);
	r = gmem_set(l->a.fd, OFF(7), PG, GMEM_PRIVATE, GMEM_PRESERVE, &eo);
	TEST_ASSERT(r == EAGAIN && eo == OFF(7), "errno %d, error_offset %#lx", r, eo);
	unpin_page(pin);

	/* The pin is not taken for a reference that memory failure keeps. */
	r = pin_page(&other, PIN_IO_URING, l->file + OFF(50));
	TEST_ASSERT(!r, "pin: errno %d", r);
	r = gmem_set(l->a.fd, 0, BLOCK, GMEM_PRIVATE, GMEM_PRESERVE, &eo);
	TEST_ASSERT(r == EAGAIN && !eo, "errno %d, error_offset %#lx", r, eo);
	unpin_page(&other);

	/* Contents are not written where memory has failed, and elsewhere. */
	r = gmem_set(l->a.fd, 0, BLOCK, GMEM_PRIVATE, GMEM_ZERO, &eo);
	TEST_ASSERT(r == EHWPOISON && eo == OFF(page), "errno %d, error_offset %#lx", r, eo);
	folios_are(l, 1);
	to(l, 7, 1, GMEM_PRIVATE);
	folios_are(l, 0);
	r = gmem_set(l->a.fd, 0, BLOCK, GMEM_PRIVATE, GMEM_ZERO, &eo);
	TEST_ASSERT(r == EHWPOISON && eo == OFF(page), "errno %d, error_offset %#lx", r, eo);
	to(l, 0, PAGES, GMEM_PRIVATE);
}

/* No part of it is freed as long as it is held, and then it can be split. */
static void hole_in_a_failed_folio(struct lg *l, struct pin *pin, u32 pattern)
{
	int r;

	r = gmem_punch(l->a.fd, OFF(7), PG);
	TEST_ASSERT(r == EAGAIN, "punch: errno %d", r);
	unpin_page(pin);
	r = gmem_punch(l->a.fd, OFF(7), PG);
	TEST_ASSERT(!r, "punch: errno %d", r);
	folios_are(l, 0);
	g_sees(l, 7, 1, GMEM_ZEROES);
	g_write(l, 7, 1, pattern);
}

/* The folio is held, so memory failure cannot split it. */
static void fails_in_a_pinned_folio(u64 page)
{
	const u32 seed = GMEM_SEED(6);
	struct pin pin;
	struct lg l;
	int r;

	fo_simple(&l, PAGES, false);
	fo_shared(&l, 0, seed);
	r = pin_page(&pin, PIN_IO_URING, l.file + OFF(100));
	TEST_ASSERT(!r, "pin: errno %d", r);
	gmem_guest_start(l.vcpus[1]);
	r = gmem_host_poison(l.file + OFF(page));
	TEST_ASSERT(!r, "MADV_HWPOISON: errno %d (%s)", r, strerror(r));

	/* Guest and host lose the page, and have the others, one by one. */
	large_is(&l, 0);
	folios_are(&l, 1);
	blocks_are(&l, 0, 0);
	TEST_ASSERT_EQ(host_large(&l), 0);
	h_sees(&l, 0, page, seed);
	gmem_host_assert_refused(l.file + OFF(page), PG);
	h_sees(&l, page + 1, PAGES - page - 1, seed);
	gmem_host_assert_refused(l.file + OFF(page), PG);
	g_sees(&l, 0, page, seed);
	g_sees(&l, page + 1, PAGES - page - 1, seed);
	large_is(&l, 0);
	TEST_ASSERT_EQ(host_large(&l), 0);
	/* Another vCPU reads it, as one that has failed tries that again for ever. */
	r = __gmem_guest_do(l.vcpus[1], GMEM_OP_READ, gpa_of(&l, page), 1, 0, 0, 0);
	TEST_ASSERT(r == -EHWPOISON, "The guest's read: %d", r);

	if (converts())
		failed_folio_converts(&l, &pin, page);
	else
		hole_in_a_failed_folio(&l, &pin, seed);
	g_sees(&l, 0, page, seed);
	g_sees(&l, page + 1, PAGES - page - 1, seed);
	r = __gmem_guest_do(l.vcpus[0], GMEM_OP_READ, gpa_of(&l, page), 1, 0, 0, 0);
	TEST_ASSERT(r == -EHWPOISON, "The guest's read: %d", r);
	lg_destroy(&l);
}

HAZARD(failed_memory_in_a_pinned_folio)
{
	struct io_uring_params params;

	HZ_REQUIRE(can_poison_mapped(), "needs MEMORY_FAILURE and root");
	HZ_REQUIRE(ring_create(&params) >= 0, "needs io_uring");
	/* The first one has the flags of the folio. */
	fails_in_a_pinned_folio(0);
	fails_in_a_pinned_folio(200);
}

HAZARD(failed_memory_in_an_unused_folio)
{
	struct lg l;

	HZ_REQUIRE(can_poison_mapped(), "needs MEMORY_FAILURE and root");
	fo_simple(&l, PAGES, false);
	fails_unused(&l);
	folios_are(&l, 0);
	lg_destroy(&l);
}

/* User space has folios split by other means, below the guest. */
HAZARD(folio_is_split_by_others)
{
	const u32 seed = GMEM_SEED(3);
	struct lg l;

	fo_simple(&l, PAGES, false);
	fo_shared(&l, 0, seed);
	HZ_REQUIRE(!madvise(l.file + OFF(17), OFF(3), MADV_PAGEOUT), "needs MADV_PAGEOUT");
	folios_are(&l, 0);
	/* The guest has its mapping still, as nothing has moved. */
	large_is(&l, 1);
	g_sees(&l, 0, PAGES, seed);
	h_sees(&l, 0, PAGES, seed);
	leave_the_host(&l, 18, 1);
	g_sees(&l, 0, 18, seed);
	g_sees(&l, 18, 1, converts() ? seed : GMEM_ZEROES);
	g_sees(&l, 19, PAGES - 19, seed);
	folios_were(&l, split, 0);
	lg_destroy(&l);
}

HAZARD(no_memory_for_a_folio)
{
	struct lg l;

	HZ_REQUIRE(hz_have_debugfs() && refuse_blocks(false), "needs FAIL_PAGE_ALLOC");
	fo_simple(&l, 2 * PAGES, true);
	TEST_ASSERT(refuse_blocks(true), "Cannot refuse");
	allocate(&l, 0, PAGES);
	TEST_ASSERT_EQ(allocated(&l), PAGES);
	maps(&l, PAGES, PAGES);
	TEST_ASSERT_EQ(allocated(&l), 2 * PAGES);
	refuse_blocks(false);
	became(&l, no_memory, 2);
	folios_were(&l, made, 0);
	folios_are(&l, 0);
	g_write(&l, 0, 2 * PAGES, GMEM_SEED(3));
	g_sees(&l, 0, 2 * PAGES, GMEM_SEED(3));
	TEST_ASSERT(!gmem_punch(l.a.fd, 0, OFF(2 * PAGES)), "punch");
	fo_filled(&l, 0, GMEM_SEED(3));
	lg_destroy(&l);
}

/* KVM_MAP_MEMORY allocates folios, and maps them at once. */
HAZARD(folios_are_mapped_ahead)
{
	struct lg l;
	u64 before;

	fo_simple(&l, 4 * PAGES, true);
	maps(&l, 0, 4 * PAGES);
	folios_are(&l, 4);
	large_is(&l, 4);
	before = faults(&l);
	g_write(&l, 0, 4 * PAGES, GMEM_SEED(1));
	g_sees(&l, 0, 4 * PAGES, GMEM_SEED(1));
	few_faults_since(&l, before);
	lg_destroy(&l);
}

/* Folios show at frames that are not aligned like them: many at a time, but small. */
HAZARD(misaligned_slot)
{
	const u32 seed = GMEM_SEED(1);
	struct lg l;

	lg_create(&l, FO_VM, 2 * PAGES, LARGE | GMEM_MMAP_SHARED, GMEM_GPA, 3, 0);
	allocate(&l, 0, 2 * PAGES);
	folios_are(&l, 2);
	g_write(&l, 3, 2 * PAGES - 3, seed);
	large_is(&l, 0);
	h_sees(&l, 3, 2 * PAGES - 3, seed);
	maps(&l, 3, 2 * PAGES - 3);
	g_sees(&l, 3, 2 * PAGES - 3, seed);
	leave_the_host(&l, 3, 2 * PAGES - 3);
	folios_were(&l, split, 1);
	folios_are(&l, converts() ? 1 : 0);
	g_sees(&l, 3, 2 * PAGES - 3, converts() ? seed : GMEM_ZEROES);
	large_is(&l, 0);
	lg_destroy(&l);
}

struct reader {
	pthread_t thread;
	struct lg *l;
	struct kvm_vcpu *vcpu;
	atomic_int *stop;
};

static void *reads_all_the_time(void *arg)
{
	struct reader *r = arg;
	u64 page = 0;

	while (!atomic_load(r->stop)) {
		page = page % (PAGES - 1) + 1;
		gmem_guest_assert(r->vcpu, gpa_of(r->l, 0) + some_at(page), SOME, GMEM_SEED(5),
				  some_at(page));
	}
	return NULL;
}

/*
 * Guests fault a folio's pages in, with and without the lock, while it is split, and
 * the host reads them: nobody is given another page of it.
 */
HAZARD(faults_while_a_folio_is_split)
{
	const int readers = 2;
	struct reader r[readers];
	atomic_int stop;
	struct lg l;
	u64 round;
	int i;

	fo_simple(&l, PAGES, false);
	for (i = 0; i < readers; i++) {
		gmem_guest_start(l.vcpus[1 + i]);
		r[i] = (struct reader) { .l = &l, .vcpu = l.vcpus[1 + i], .stop = &stop };
	}
	for (round = 0; round < 30; round++) {
		allocate(&l, 0, PAGES);
		folios_are(&l, 1);
		for (i = 0; i < PAGES; i++)
			gmem_fill(l.file + some_at(i), SOME, GMEM_SEED(5), some_at(i));
		atomic_store(&stop, 0);
		for (i = 0; i < readers; i++)
			kvm_pthread_create(&r[i].thread, NULL, reads_all_the_time, &r[i]);
		if (round & 1) {
			while ((converts() ?
				gmem_set_once(l.a.fd, 0, PG, GMEM_PRIVATE, GMEM_NONE, NULL) :
				gmem_punch(l.a.fd, 0, PG)) == EAGAIN)
				sched_yield();
		} else {
			madvise(l.file, PG, MADV_PAGEOUT);
		}
		h_sees(&l, 1, PAGES - 1, GMEM_SEED(5));
		atomic_store(&stop, 1);
		for (i = 0; i < readers; i++)
			kvm_pthread_join(r[i].thread, NULL);
		gmem_guest_assert(l.vcpus[0], gpa_of(&l, 0) + some_at(511), SOME, GMEM_SEED(5),
				  some_at(511));
		if (converts())
			to(&l, 0, PAGES, GMEM_SHARED);
		TEST_ASSERT(!gmem_punch(l.a.fd, 0, BLOCK), "punch");
	}
	lg_destroy(&l);
}

#ifdef __aarch64__
/* The tests read how guests have pages mapped. */
static void require_page_tables(void)
{
	struct kvm_vm *vm = vm_create_barebones();
	FILE *f = lg_stage2(vm);

	__TEST_REQUIRE(f, "needs CONFIG_PTDUMP_STAGE2_DEBUGFS");
	fclose(f);
	kvm_vm_free(vm);
}
#endif

int main(int argc, char *argv[])
{
#ifdef __x86_64__
	gmem_require_in_place();
#endif
	__TEST_REQUIRE(kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & LARGE,
		       "no large folios here (GUEST_MEMFD_FLAG_LARGE_FOLIOS)");
#ifdef __aarch64__
	require_page_tables();
#endif
	return test_harness_run(argc, argv);
}
