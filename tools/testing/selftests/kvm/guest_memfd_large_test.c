// SPDX-License-Identifier: GPL-2.0
/*
 * Large mappings of a guest_memfd: when a guest gets a mapping of 2M, when it loses
 * it, and when it gets it back. The bytes are the same in each case.
 *
 * KVM's statistic pages_2m counts such mappings. The memory of the guest's code has
 * none.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>

#include "gmem_large.h"
#include "svm_util.h"

static void lg_simple(struct lg *l, u64 npages, bool private)
{
	lg_create(l, KVM_X86_SW_PROTECTED_VM, npages,
		  private ? GUEST_MEMFD_FLAG_MMAP : GMEM_MMAP_SHARED, GMEM_GPA, 0, 0);
}

/* One mapping for a whole block: private, shared, and of a default VM. */
HAZARD(block_is_mapped_at_once)
{
	struct lg l;
	int kind;

	for (kind = 0; kind < 3; kind++) {
		lg_create(&l, kind == 2 ? KVM_X86_DEFAULT_VM : KVM_X86_SW_PROTECTED_VM, 2 * PAGES,
			  kind ? GMEM_MMAP_SHARED : GUEST_MEMFD_FLAG_MMAP, GMEM_GPA, 0, 0);
		lg_filled(&l, PAGES, GMEM_SEED(kind));
		TEST_ASSERT_EQ(allocated(&l), PAGES);
		became(&l, made, 1);
		became(&l, mapped, 1);
		became(&l, split, 0);
		g_sees(&l, PAGES, PAGES, GMEM_SEED(kind));
		if (kind)
			h_sees(&l, PAGES, PAGES, GMEM_SEED(kind));
		else
			gmem_host_assert_refused(l.file + OFF(PAGES), BLOCK);
		/* Bytes that were never written are zero. */
		gmem_guest_assert(l.vcpus[0], gpa_of(&l, PAGES + 1), 64, GMEM_ZEROES, 0);
		lg_destroy(&l);
	}
}

/* No memory is allocated beyond the request. */
HAZARD(memory_is_what_was_asked_for)
{
	struct lg l;

	lg_simple(&l, 3 * PAGES, true);
	touch(&l, 7);
	TEST_ASSERT_EQ(allocated(&l), 1);
	large_is(&l, 0);

	/* All but one page of a block, and then that page: the pages are not contiguous. */
	allocate(&l, PAGES + 1, PAGES - 1);
	TEST_ASSERT_EQ(allocated(&l), PAGES);
	touch(&l, PAGES + 1);
	large_is(&l, 0);

	/* From the middle of one block to the middle of the next; the next has one page already. */
	allocate(&l, 5, 2 * PAGES);
	TEST_ASSERT_EQ(allocated(&l), 2 * PAGES);
	became(&l, occupied, 1);
	allocate(&l, 0, 3 * PAGES);
	TEST_ASSERT_EQ(allocated(&l), 3 * PAGES);
	/* The first block, and the last, of which only the first five pages existed. */
	became(&l, occupied, 3);
	became(&l, made, 0);
	became(&l, no_memory, 0);
	touch(&l, 2 * PAGES);

	/* Blocks whose pages all exist are not counted. */
	allocate(&l, 0, 3 * PAGES);
	maps(&l, 0, 3 * PAGES);
	became(&l, occupied, 3);
	lg_destroy(&l);
}

/* Unused pages are not mapped together with a used one. */
HAZARD(unused_pages_of_a_block)
{
	struct lg l;
	u64 i;

	lg_simple(&l, PAGES, false);
	gmem_dirty_free_pages();
	allocate(&l, 0, PAGES);
	/* A first use by the host is of one page. */
	for (i = 0; i < 8; i += 2)
		l.file[OFF(64 * i)] = 0x11;
	l.file[OFF(PAGES - 1)] = 0x11;
	TEST_ASSERT_EQ(gmem_guest_read(l.vcpus[0], gpa_of(&l, 0)), 0x11);
	large_is(&l, 0);
	blocks_are(&l, 1, 0);

	/* A first use by the guest is of all pages. */
	g_sees(&l, 1, 63, GMEM_ZEROES);
	large_is(&l, 1);
	g_sees(&l, 1, PAGES - 2, GMEM_ZEROES);
	lg_destroy(&l);
}

/* A block with one page of the other kind, anywhere, is mapped small; later large again. */
static void borders_of(bool private)
{
	const u64 was = private ? GMEM_PRIVATE : GMEM_SHARED;
	const u64 other = private ? GMEM_SHARED : GMEM_PRIVATE;
	const u32 seed = GMEM_SEED(9);
	u64 before, page;
	struct lg l;
	int i;

	lg_simple(&l, 2 * PAGES, private);
	lg_filled(&l, PAGES, seed);

	for (i = 0; i < ARRAY_SIZE(borders); i++) {
		page = PAGES + borders[i];

		became(&l, split, i);
		to(&l, page, 1, other);
		became(&l, split, i + 1);
		large_is(&l, 0);
		blocks_are(&l, 1, 0);
		/* The guest still has all other pages. */
		before = faults(&l);
		g_sees(&l, PAGES, PAGES, seed);
		TEST_ASSERT(faults(&l) - before < FEW, "Page %lu: the guest lost %lu others",
			    borders[i], faults(&l) - before);
		large_is(&l, 0);
		if (private) {
			h_sees(&l, page, 1, seed);
			if (borders[i])
				gmem_host_assert_refused(l.file + OFF(page - 1), PG);
			if (borders[i] < PAGES - 1)
				gmem_host_assert_refused(l.file + OFF(page + 1), PG);
		} else {
			gmem_host_assert_refused(l.file + OFF(page), PG);
			h_sees(&l, PAGES, borders[i], seed);
			h_sees(&l, page + 1, PAGES - borders[i] - 1, seed);
		}

		to(&l, page, 1, was);
		g_sees(&l, page, 1, seed);
		large_is(&l, 1);
		g_sees(&l, PAGES, PAGES, seed);
		if (private)
			gmem_host_assert_refused(l.file + OFF(PAGES), BLOCK);
		else
			h_sees(&l, PAGES, PAGES, seed);
	}

	/* Each large mapping came back. */
	became(&l, mapped, 1 + i);

	/* Converted as a whole, to private and back. */
	to(&l, PAGES, PAGES, other);
	large_is(&l, 0);
	g_sees(&l, PAGES, PAGES, seed);
	large_is(&l, 1);
	to(&l, PAGES, PAGES, was);
	large_is(&l, 0);
	g_sees(&l, PAGES, PAGES, seed);
	large_is(&l, 1);
	became(&l, split, i);
	became(&l, made, 1);
	lg_destroy(&l);
}

HAZARD(page_of_private_block_converts)
{
	borders_of(true);
}

HAZARD(page_of_shared_block_converts)
{
	borders_of(false);
}

/* Ranges that begin or end within a block, with blocks between. */
HAZARD(range_across_blocks_converts)
{
	const u32 seed = GMEM_SEED(4);
	struct lg l;
	u64 i;

	lg_simple(&l, 4 * PAGES, true);
	allocate(&l, 0, 4 * PAGES);
	for (i = 0; i < 4; i++)
		touch(&l, i * PAGES);
	large_is(&l, 4);
	g_write(&l, 0, 4 * PAGES, seed);

	to(&l, 100, 3 * PAGES, GMEM_SHARED);
	large_is(&l, 0);
	h_sees(&l, 100, 3 * PAGES, seed);
	gmem_host_assert_refused(l.file, OFF(100));
	gmem_host_assert_refused(l.file + OFF(3 * PAGES + 100), BLOCK - OFF(100));
	g_sees(&l, 0, 4 * PAGES, seed);
	/* The blocks in the middle are of one kind. */
	large_is(&l, 2);

	to(&l, 100, 3 * PAGES, GMEM_PRIVATE);
	g_sees(&l, 0, 4 * PAGES, seed);
	large_is(&l, 4);
	lg_destroy(&l);
}

HAZARD(hole_in_a_block)
{
	const u32 seed = GMEM_SEED(5);
	u64 page;
	int i, r;

	for (i = 0; i < ARRAY_SIZE(borders); i++) {
		struct lg l;

		lg_simple(&l, PAGES, i & 1);
		lg_filled(&l, 0, seed);
		page = borders[i];
		r = gmem_punch(l.a.fd, OFF(page), PG);
		TEST_ASSERT(!r, "punch: errno %d", r);
		large_is(&l, 0);
		blocks_are(&l, 0, 0);
		TEST_ASSERT_EQ(allocated(&l), PAGES - 1);
		/* The guest still has the neighbours, and no mapping includes the hole. */
		g_sees(&l, 0, page, seed);
		g_sees(&l, page + 1, PAGES - page - 1, seed);
		large_is(&l, 0);
		g_sees(&l, page, 1, GMEM_ZEROES);
		TEST_ASSERT_EQ(allocated(&l), PAGES);

		/* The whole block is punched, and allocated anew. */
		r = gmem_punch(l.a.fd, 0, BLOCK);
		TEST_ASSERT(!r, "punch: errno %d", r);
		large_is(&l, 0);
		allocate(&l, 0, PAGES);
		touch(&l, 1);
		large_is(&l, 1);
		g_sees(&l, 0, PAGES, GMEM_ZEROES);
		lg_destroy(&l);
	}
}

HAZARD(failed_memory_in_a_block)
{
	const u32 seed = GMEM_SEED(6);
	u64 page;
	int i, r;

	HZ_REQUIRE(can_poison_mapped(), "needs MEMORY_FAILURE and root");

	for (i = 0; i < ARRAY_SIZE(borders); i += 2) {
		struct lg l;

		lg_simple(&l, PAGES, false);
		lg_filled(&l, 0, seed);
		page = borders[i];
		r = poison_mapped(l.file + OFF(page));
		TEST_ASSERT(!r, "MADV_HWPOISON: errno %d (%s)", r, strerror(r));
		large_is(&l, 0);
		/* Memory failure must not wait for memory, so nothing is split. */
		became(&l, split, 0);
		gmem_host_assert_refused(l.file + OFF(page), PG);

		/* Its neighbours stay, with small mappings. */
		to(&l, (page + 1) % PAGES, 1, GMEM_PRIVATE);
		to(&l, (page + 1) % PAGES, 1, GMEM_SHARED);
		only_one_fails(&l, page, seed);
		lg_destroy(&l);
	}
}

HAZARD(failed_memory_in_an_unused_block)
{
	struct lg l;

	HZ_REQUIRE(can_poison_mapped(), "needs MEMORY_FAILURE and root");
	lg_simple(&l, PAGES, false);
	fails_unused(&l);
	lg_destroy(&l);
}

/* A reference to a page prevents the conversion of this page only. */
HAZARD(pinned_page_of_a_block)
{
	const u32 seed = GMEM_SEED(7);
	struct pin pin;
	struct lg l;
	u64 eo;
	int r;

	lg_simple(&l, PAGES, false);
	lg_filled(&l, 0, seed);
	h_sees(&l, 0, PAGES, seed);
	r = pin_page(&pin, PIN_IO_URING, l.file + OFF(100));
	HZ_REQUIRE(r != ENODEV, "needs io_uring");
	TEST_ASSERT(!r, "pin: errno %d", r);

	r = gmem_set(l.a.fd, 0, BLOCK, GMEM_PRIVATE, GMEM_PRESERVE, &eo);
	TEST_ASSERT(r == EAGAIN && eo == OFF(100), "errno %d, error_offset %#lx", r, eo);
	large_is(&l, 1);
	g_sees(&l, 0, PAGES, seed);
	h_sees(&l, 0, PAGES, seed);

	to(&l, 99, 1, GMEM_PRIVATE);
	to(&l, 101, 1, GMEM_PRIVATE);
	large_is(&l, 0);
	h_sees(&l, 100, 1, seed);
	gmem_host_assert_refused(l.file + OFF(99), PG);
	gmem_host_assert_refused(l.file + OFF(101), PG);
	g_sees(&l, 0, PAGES, seed);

	unpin_page(&pin);
	to(&l, 0, PAGES, GMEM_PRIVATE);
	g_sees(&l, 0, PAGES, seed);
	large_is(&l, 1);
	gmem_host_assert_refused(l.file, BLOCK);
	lg_destroy(&l);
}

static void enter_smm(struct kvm_vcpu *vcpu, bool in)
{
	struct kvm_vcpu_events events;

	vcpu_events_get(vcpu, &events);
	events.flags |= KVM_VCPUEVENT_VALID_SMM;
	events.smi.smm = in;
	vcpu_events_set(vcpu, &events);
}

HAZARD(map_memory_maps_large)
{
	u64 before;
	struct lg l;
	int kind;

	for (kind = 0; kind < 2; kind++) {
		lg_simple(&l, 6 * PAGES, kind);
		/* One call, for two blocks that are not allocated, and some pages on either side. */
		maps(&l, PAGES - 3, 2 * PAGES + 7);
		large_is(&l, 2);
		TEST_ASSERT_EQ(allocated(&l), 2 * PAGES + 7);
		before = faults(&l);
		g_write(&l, PAGES - 3, 2 * PAGES + 7, GMEM_SEED(kind));
		TEST_ASSERT(faults(&l) - before < FEW, "%lu faults", faults(&l) - before);
		g_sees(&l, PAGES - 3, 2 * PAGES + 7, GMEM_SEED(kind));

		/* More than the request is mapped, where it is allocated. */
		allocate(&l, 4 * PAGES, 2 * PAGES);
		maps(&l, 5 * PAGES - 1, 1);
		large_is(&l, 3);
		maps(&l, 5 * PAGES - 1, 2);
		large_is(&l, 4);
		maps(&l, 4 * PAGES + 17, 2 * PAGES - 17);
		large_is(&l, 4);
		TEST_ASSERT_EQ(allocated(&l), 4 * PAGES + 7);

		/* Mapped large again, although there is a page table. */
		to(&l, PAGES + 5, 1, kind ? GMEM_SHARED : GMEM_PRIVATE);
		to(&l, PAGES + 5, 1, kind ? GMEM_PRIVATE : GMEM_SHARED);
		large_is(&l, 3);
		maps(&l, PAGES, PAGES);
		large_is(&l, 4);
		g_sees(&l, PAGES - 3, 2 * PAGES + 7, GMEM_SEED(kind));
		lg_destroy(&l);
	}
}

/* The offset in the file decides, not the host's address. */
HAZARD(slots_that_are_not_aligned)
{
	static const struct {
		u64 gpa_off, first, hva_off;
		u64 want;
	} slots[] = {
		{ 0, 0, 0, 3 },
		{ 0, 0, SZ_4K, 3 },
		{ 0, 0, SZ_1M, 3 },
		/* The offset in the file shifts pages against gfns, also if userspace_addr is aligned. */
		{ 0, 1, 0, 0 },
		{ 0, 1, BLOCK - SZ_4K, 0 },
		{ SZ_4K, 0, 0, 0 },
		{ SZ_4K, 0, SZ_4K, 0 },
		/* The offset shifts both. */
		{ SZ_4K, 1, 0, 2 },
		{ BLOCK - SZ_4K, PAGES - 1, SZ_4K, 2 },
	};
	struct lg l;
	int i, type;
	u64 page;

	for (i = 0; i < ARRAY_SIZE(slots); i++) {
		for (type = 0; type < 2; type++) {
			const u32 seed = GMEM_SEED(i);

			lg_create(&l, type ? KVM_X86_DEFAULT_VM : KVM_X86_SW_PROTECTED_VM,
				  3 * PAGES, GMEM_MMAP_SHARED, GMEM_GPA + slots[i].gpa_off,
				  slots[i].first, slots[i].hva_off);
			allocate(&l, 0, 3 * PAGES);
			for (page = slots[i].first; page < 3 * PAGES; page++)
				gmem_fill(l.file + some_at(page), SOME, seed, some_at(page));
			g_sees(&l, slots[i].first, 3 * PAGES - slots[i].first, seed);
			large_is(&l, slots[i].want);
			g_write(&l, slots[i].first, 3 * PAGES - slots[i].first, seed + 1);
			h_sees(&l, slots[i].first, 3 * PAGES - slots[i].first, seed + 1);
			lg_destroy(&l);
		}
	}
}

/* A page of a block, by the number in the file, in one of two memslots. */
static gpa_t gpa_in(const struct gmem_area *a, u64 page)
{
	return a->gpa + OFF(page) - a->file_offset;
}

/* A slot that has half of a block maps none of it large, wherever the other half is. */
HAZARD(block_in_two_slots)
{
	const u32 seed = GMEM_SEED(3);
	const u64 half = BLOCK / 2;
	struct lg l;
	u64 page, i;
	int swapped;

	lg_simple(&l, PAGES, false);
	lg_filled(&l, 0, seed);
	gmem_area_unbind(&l.a);
	for (swapped = 0; swapped < 2; swapped++) {
		struct gmem_area parts[2] = { l.a, l.a };

		for (i = 0; i < 2; i++) {
			parts[i].slot = l.a.slot + i;
			parts[i].size = half;
			parts[i].file_offset = i * half;
			parts[i].hva = l.file + i * half;
			parts[i].gpa = l.a.gpa + (i ^ swapped) * half;
			gmem_area_bind(&parts[i]);
		}
		/* A page of each, and two that lie next to each other across the border. */
		for (i = 0; i < 4; i++) {
			static const u64 at[] = { 7, PAGES / 2 - 1, PAGES / 2, PAGES - 1 };

			to(&l, at[i], 1, GMEM_PRIVATE);
			for (page = 0; page < PAGES; page++)
				gmem_guest_assert(l.vcpus[0],
						  gpa_in(&parts[page >= PAGES / 2], page) +
						  some_at(page) - OFF(page),
						  SOME, seed, some_at(page));
			large_is(&l, 0);
			gmem_host_assert_refused(l.file + OFF(at[i]), PG);
			to(&l, at[i], 1, GMEM_SHARED);
			h_sees(&l, at[i], 1, seed);
		}
		became(&l, mapped, 1);
		for (i = 0; i < 2; i++)
			gmem_area_unbind(&parts[i]);
	}
	gmem_area_bind(&l.a);
	g_sees(&l, 0, PAGES, seed);
	large_is(&l, 1);
	lg_destroy(&l);
}

/*
 * If a file is always private, the VM's attributes decide for each gfn whether the guest
 * gets a page of the file, or memory at userspace_addr.
 */
static void private_by_the_vm(u64 first)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = KVM_X86_SW_PROTECTED_VM };
	const u64 want = first ? 0 : 1, page = first + 100;
	const u32 seed = GMEM_SEED(7);
	struct lg l = {};
	u64 blocks, split;
	u8 *mem;

	l.vm = __vm_create_with_vcpus(shape, 1, 2 * PAGES, gmem_guest_code, l.vcpus);
	vcpu_args_set(l.vcpus[0], 1, 0ul);
	mem = kvm_mmap(2 * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	mem = (u8 *)(((u64)mem + BLOCK - 1) & ~(BLOCK - 1));
	TEST_ASSERT(!madvise(mem, BLOCK, MADV_NOHUGEPAGE) || errno == EINVAL, "madvise: %d", errno);
	l.a = (struct gmem_area) {
		.vm = l.vm,
		.slot = GMEM_SLOT,
		.gpa = GMEM_GPA,
		.size = BLOCK,
		.file_offset = OFF(first),
		.hva = mem,
		.fd = vm_create_guest_memfd(l.vm, 2 * BLOCK, 0),
	};
	gmem_area_bind(&l.a);
	gmem_area_virt_map(&l.a);
	gmem_guest_start(l.vcpus[0]);
	allocate(&l, 0, 2 * PAGES);

	vm_mem_set_private(l.vm, l.a.gpa, BLOCK);
	g_write(&l, first, PAGES, seed);
	large_is(&l, want);
	mem[OFF(page - first)] = 0x33;

	/* One page comes from userspace_addr now. The guest loses the block, and faults in pages. */
	vm_mem_set_shared(l.vm, gpa_of(&l, page), PG);
	large_is(&l, 0);
	TEST_ASSERT_EQ(gmem_guest_read(l.vcpus[0], gpa_of(&l, page)), 0x33);
	g_sees(&l, first, 100, seed);
	g_sees(&l, page + 1, PAGES - 101, seed);
	large_is(&l, 0);

	vm_mem_set_private(l.vm, gpa_of(&l, page), PG);
	g_sees(&l, first, PAGES, seed);
	large_is(&l, want);

	/* The same, with the hole that VMMs punch then. */
	vm_mem_set_shared(l.vm, gpa_of(&l, page), PG);
	g_sees(&l, first, 100, seed);
	TEST_ASSERT(!gmem_punch(l.a.fd, OFF(page), PG), "punch: errno %d", errno);
	TEST_ASSERT_EQ(gmem_guest_read(l.vcpus[0], gpa_of(&l, page)), 0x33);
	vm_mem_set_private(l.vm, gpa_of(&l, page), PG);
	g_sees(&l, page, 1, GMEM_ZEROES);
	g_sees(&l, first, 100, seed);
	g_sees(&l, page + 1, PAGES - 101, seed);

	/* All pages come from userspace_addr: a hole splits no mapping of memory outside of the file. */
	vm_mem_set_shared(l.vm, l.a.gpa, BLOCK);
	if (!madvise(mem, BLOCK, MADV_DONTNEED) && !madvise(mem, BLOCK, MADV_HUGEPAGE))
		memset(mem, 0x44, BLOCK);
	blocks = vm_get_stat(l.vm, gmem_blocks_mapped);
	split = vm_get_stat(l.vm, gmem_blocks_split);
	TEST_ASSERT_EQ(gmem_guest_read(l.vcpus[0], gpa_of(&l, page)), mem[OFF(page - first)]);
	if (large(&l) != 1)
		ksft_print_msg("No large pages at userspace_addr\n");
	TEST_ASSERT(!gmem_punch(l.a.fd, OFF(page + 1), PG), "punch: errno %d", errno);
	TEST_ASSERT_EQ(gmem_guest_read(l.vcpus[0], gpa_of(&l, page + 1)), mem[OFF(page + 1 - first)]);
	became(&l, mapped, blocks);
	became(&l, split, split);
	lg_destroy(&l);
}

HAZARD(private_block_by_the_attributes_of_the_vm)
{
	HZ_REQUIRE(!get_kvm_param_bool("gmem_in_place_conversion"),
		   "needs files that do not convert in place");
	private_by_the_vm(0);
	/* Not aligned in the file. */
	private_by_the_vm(1);
}

/* Dirty logging is refused, so it never has to change the size of mappings. */
HAZARD(dirty_logging_is_refused)
{
	struct lg l;
	int r;

	lg_create(&l, KVM_X86_DEFAULT_VM, PAGES, GMEM_MMAP_SHARED, GMEM_GPA, 0, 0);
	lg_filled(&l, 0, GMEM_SEED(8));
	r = __vm_set_user_memory_region2(l.vm, l.a.slot, KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES,
					 l.a.gpa, l.a.size, l.a.hva, l.a.fd, 0) ? errno : 0;
	TEST_ASSERT_EQ(r, EINVAL);
	r = __vm_set_user_memory_region(l.vm, l.a.slot, KVM_MEM_LOG_DIRTY_PAGES, l.a.gpa, l.a.size,
					l.a.hva) ? errno : 0;
	TEST_ASSERT_EQ(r, EINVAL);
	gmem_area_unbind(&l.a);
	large_is(&l, 0);
	r = __vm_set_user_memory_region2(l.vm, l.a.slot, KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES,
					 l.a.gpa, l.a.size, l.a.hva, l.a.fd, 0) ? errno : 0;
	TEST_ASSERT_EQ(r, EINVAL);
	gmem_area_bind(&l.a);
	g_sees(&l, 0, PAGES, GMEM_SEED(8));
	large_is(&l, 1);
	lg_destroy(&l);
}

#define KVM_PARAM	"/sys/module/kvm/parameters/"

/* Where large mappings must not be executable: small while executed, large afterwards. */
HAZARD(executed_block)
{
	/* mov $42, %eax; ret */
	static const u8 code[] = { 0xb8, 42, 0, 0, 0, 0xc3 };
	const u32 seed = GMEM_SEED(2);
	struct lg l;
	int i, r;

	HZ_REQUIRE(!hz_write_file(KVM_PARAM "nx_huge_pages", "%lu", 1), "needs kvm.nx_huge_pages");
	hz_write_file(KVM_PARAM "nx_huge_pages_recovery_ratio", "%lu", 0);
	for (i = 0; i < 2; i++) {
		lg_create(&l, i ? KVM_X86_DEFAULT_VM : KVM_X86_SW_PROTECTED_VM, PAGES,
			  GMEM_MMAP_SHARED, GMEM_GPA, 0, 0);
		lg_filled(&l, 0, seed);
		memcpy(l.file + OFF(200) + 8, code, sizeof(code));
		r = __gmem_guest_do(l.vcpus[0], GMEM_OP_CALL, gpa_of(&l, 200) + 8, 0, 0, 0, 0);
		gmem_guest_ok(l.vcpus[0], r);
		TEST_ASSERT_EQ(gmem_cmd_of(l.vcpus[0])->value, 42);
		large_is(&l, 0);
		TEST_ASSERT(vm_get_stat(l.vm, nx_lpage_splits), "Not split");
		g_sees(&l, 0, 200, seed);
		g_sees(&l, 201, PAGES - 201, seed);

		/* A worker removes the small mappings. */
		hz_write_file(KVM_PARAM "nx_huge_pages_recovery_period_ms", "%lu", 10);
		hz_write_file(KVM_PARAM "nx_huge_pages_recovery_ratio", "%lu", 1);
		while (vm_get_stat(l.vm, nx_lpage_splits))
			sched_yield();
		hz_write_file(KVM_PARAM "nx_huge_pages_recovery_ratio", "%lu", 0);
		touch(&l, 0);
		large_is(&l, 1);
		g_sees(&l, 0, 200, seed);
		g_sees(&l, 201, PAGES - 201, seed);
		h_sees(&l, 0, 200, seed);
		lg_destroy(&l);
	}
	hz_write_file(KVM_PARAM "nx_huge_pages", "%lu", 0);
}

/* Pages of the block, in an order that no large mapping can have. */
static const u64 l1_has[] = { 5, 9, 511, 0 };
/* Where L2 has them: in 4K as L1 orders them, and the whole block in 2M. */
#define L2_SMALL	(GMEM_GPA + SZ_1G)
#define L2_LARGE	(GMEM_GPA + 2ul * SZ_1G)

static u64 l2_saw[2][ARRAY_SIZE(l1_has)];

static void l2_code(void)
{
	u64 i, round;

	for (round = 0; round < 4; round++) {
		for (i = 0; i < ARRAY_SIZE(l1_has); i++) {
			l2_saw[0][i] = *(volatile u64 *)(L2_SMALL + i * SZ_4K);
			l2_saw[1][i] = *(volatile u64 *)(L2_LARGE + l1_has[i] * SZ_4K);
		}
		/* Exits to L0. */
		GUEST_SYNC(round);
	}
	vmmcall();
}

/* Lets L2 read its memory. @gone: a page whose bytes L0 has destroyed. */
static void l2_sees(struct kvm_vm *vm, struct kvm_vcpu *vcpu, u64 gone)
{
	u64 i, want, saw[2][ARRAY_SIZE(l1_has)];
	struct ucall uc;

	vcpu_run(vcpu);
	switch (get_ucall(vcpu, &uc)) {
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	case UCALL_SYNC:
		break;
	default:
		TEST_FAIL("Unexpected ucall %lu, exit %u", uc.cmd, vcpu->run->exit_reason);
	}
	memcpy(saw, addr_gva2hva(vm, (gva_t)&l2_saw), sizeof(saw));
	for (i = 0; i < ARRAY_SIZE(l1_has); i++) {
		want = l1_has[i] == gone ? 0 : 0x1000 + l1_has[i];
		TEST_ASSERT_EQ(saw[0][i], want);
		TEST_ASSERT_EQ(saw[1][i], want);
	}
}

static void l1_code(struct svm_test_data *svm)
{
	generic_svm_setup(svm, l2_code);
	run_guest(svm->vmcb, svm->vmcb_gpa);
	GUEST_ASSERT_EQ(svm->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
	GUEST_DONE();
}

/*
 * A nested guest gets no larger mappings than L1 has given it, and loses what L1 loses.
 * Its page table is a shadow page table, which is not split.
 */
static void nested(u32 type)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = type };
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct gmem_area a = {};
	int status, node;
	u64 i, moves;
	gva_t svm;

	vm = vm_create_shape_with_one_vcpu(shape, &vcpu, l1_code);
	vm_enable_npt(vm);
	vcpu_alloc_svm(vm, &svm);
	vcpu_args_set(vcpu, 1, svm);

	a.vm = vm;
	a.slot = GMEM_SLOT;
	a.gpa = GMEM_GPA;
	a.size = BLOCK;
	moves = vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_MIGRATABLE;
	a.fd = vm_create_guest_memfd(vm, BLOCK, GMEM_MMAP_SHARED | moves);
	a.hva = kvm_mmap(BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, a.fd);
	gmem_area_bind(&a);
	gmem_allocate_blocks(a.fd, 0, BLOCK);
	for (i = 0; i < PAGES; i++)
		*(volatile u64 *)(a.hva + OFF(i)) = 0x1000 + i;

	virt_map(vm, L2_SMALL, L2_SMALL, ARRAY_SIZE(l1_has));
	virt_map(vm, L2_LARGE, L2_LARGE, PAGES);
	tdp_identity_map_default_memslots(vm);
	for (i = 0; i < ARRAY_SIZE(l1_has); i++)
		tdp_map(vm, L2_SMALL + OFF(i), GMEM_GPA + OFF(l1_has[i]), PG);
	__virt_pg_map(vm, &vm->stage2_mmu, L2_LARGE, GMEM_GPA, PG_LEVEL_2M);

	l2_sees(vm, vcpu, PAGES);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 1);
	/* No block is looked for where L1 allows none. */
	TEST_ASSERT_EQ(vm_get_stat(vm, gmem_blocks_mapped), 1);

	/* To private and back, as L2 can have no private memory. Then the page gets another frame. */
	if (type == KVM_X86_SW_PROTECTED_VM) {
		gmem_convert(a.fd, OFF(9), PG, GMEM_PRIVATE, GMEM_ZERO);
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 0);
		gmem_convert(a.fd, OFF(9), PG, GMEM_SHARED, GMEM_PRESERVE);
		l2_sees(vm, vcpu, 9);
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 1);
		*(volatile u64 *)(a.hva + OFF(9)) = 1;
	}
	TEST_ASSERT(!gmem_punch(a.fd, OFF(9), PG), "punch: %d", errno);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 0);
	/* The frame has another owner now. */
	gmem_dirty_free_pages();
	l2_sees(vm, vcpu, 9);

	/* A page gets another frame without a hole. */
	if (moves && two_nodes()) {
		node = !node_of(a.hva + OFF(l1_has[0]));
		TEST_ASSERT(!move_by(0, a.hva + OFF(l1_has[0]), 1, node, MPOL_MF_MOVE, &status) &&
			    status == node, "The page does not move");
		gmem_dirty_free_pages();
		l2_sees(vm, vcpu, 9);
	}
	kvm_vm_free(vm);
}

HAZARD(nested_guest)
{
	HZ_REQUIRE(kvm_cpu_has(X86_FEATURE_SVM) && kvm_cpu_has_npt(), "needs nested SVM with NPT");
	nested(KVM_X86_DEFAULT_VM);
}

HAZARD(nested_guest_of_a_vm_that_converts)
{
	HZ_REQUIRE(kvm_cpu_has(X86_FEATURE_SVM) && kvm_cpu_has_npt(), "needs nested SVM with NPT");
	nested(KVM_X86_SW_PROTECTED_VM);
}

HAZARD(no_memory_in_one_piece)
{
	struct lg l;

	HZ_REQUIRE(hz_have_debugfs() && refuse_blocks(false), "needs FAIL_PAGE_ALLOC");
	lg_simple(&l, 2 * PAGES, true);
	TEST_ASSERT(refuse_blocks(true), "Cannot refuse");
	allocate(&l, 0, PAGES);
	TEST_ASSERT_EQ(allocated(&l), PAGES);
	maps(&l, PAGES, PAGES);
	TEST_ASSERT_EQ(allocated(&l), 2 * PAGES);
	refuse_blocks(false);
	became(&l, no_memory, 2);
	became(&l, made, 0);

	g_write(&l, 0, 2 * PAGES, GMEM_SEED(3));
	g_sees(&l, 0, 2 * PAGES, GMEM_SEED(3));
	large_is(&l, 0);
	blocks_are(&l, 0, 0);
	/* New memory is contiguous again. */
	TEST_ASSERT(!gmem_punch(l.a.fd, 0, OFF(2 * PAGES)), "punch");
	lg_filled(&l, 0, GMEM_SEED(3));
	lg_destroy(&l);
}

/* A NUMA policy applies page by page, so the pages are not contiguous. */
HAZARD(numa_policy)
{
	unsigned long node = 1;
	struct lg l;
	int r;

	lg_simple(&l, PAGES, false);
	r = mbind(l.file, BLOCK, MPOL_BIND, &node, 8, 0) ? errno : 0;
	HZ_REQUIRE(r != ENOSYS, "needs NUMA");
	TEST_ASSERT(!r, "mbind(): errno %d (%s)", r, strerror(r));
	allocate(&l, 0, PAGES);
	TEST_ASSERT_EQ(allocated(&l), PAGES);
	became(&l, policy, 1);
	became(&l, made, 0);
	g_write(&l, 0, PAGES, GMEM_SEED(3));
	h_sees(&l, 0, PAGES, GMEM_SEED(3));
	large_is(&l, 0);
	lg_destroy(&l);
}

/* A request that is refused allocates nothing. */
HAZARD(refused_map_memory)
{
	struct lg l;
	u64 left;
	int r;

	lg_simple(&l, 2 * PAGES, true);
	gmem_area_unbind(&l.a);
	r = map_memory(&l, 0, PAGES, &left);
	TEST_ASSERT(r == ENOENT && left == BLOCK, "errno %d, %#lx left", r, left);
	TEST_ASSERT_EQ(allocated(&l), 0);
	gmem_area_bind(&l.a);

	/* A vCPU in SMM has other page tables. */
	enter_smm(l.vcpus[0], true);
	r = map_memory(&l, 0, PAGES, &left);
	TEST_ASSERT(r == EOPNOTSUPP && left == BLOCK, "errno %d, %#lx left", r, left);
	TEST_ASSERT_EQ(allocated(&l), 0);
	became(&l, made, 0);
	enter_smm(l.vcpus[0], false);

	maps(&l, 0, PAGES);
	TEST_ASSERT_EQ(allocated(&l), PAGES);
	became(&l, made, 1);
	large_is(&l, 1);
	lg_destroy(&l);
}

struct racer {
	pthread_t thread;
	struct lg *l;
	struct kvm_vcpu *vcpu;
	pthread_barrier_t *start;
};

static void *racing_guest(void *arg)
{
	struct racer *r = arg;

	pthread_barrier_wait(r->start);
	gmem_guest_read(r->vcpu, gpa_of(r->l, 0));
	return NULL;
}

/*
 * A fault on a page next to one that is being freed or converted: the fault does not
 * bring back a mapping of that page.
 */
HAZARD(fault_next_to_what_goes_away)
{
	/* Long enough for a fault to come while the page goes. */
	const u64 blocks = 16;
	pthread_barrier_t start;
	struct racer racer;
	struct lg l;
	u64 round;
	int r;

	lg_simple(&l, blocks * PAGES, true);
	pthread_barrier_init(&start, NULL, 2);
	for (round = 0; round < 60; round++) {
		allocate(&l, 0, blocks * PAGES);
		gmem_guest_write(l.vcpus[0], gpa_of(&l, 256), 0x77);
		/* The guest has no mapping of it, but the pages are in use. */
		to(&l, 0, PAGES, GMEM_SHARED);
		to(&l, 0, PAGES, GMEM_PRIVATE);
		racer = (struct racer) { .l = &l, .start = &start, .vcpu = l.vcpus[0] };
		kvm_pthread_create(&racer.thread, NULL, racing_guest, &racer);
		pthread_barrier_wait(&start);
		if (round & 1) {
			r = gmem_punch(l.a.fd, OFF(256), OFF(blocks * PAGES - 256));
			TEST_ASSERT(!r, "punch: errno %d", r);
		} else {
			gmem_convert(l.a.fd, OFF(256), OFF(blocks * PAGES - 256), GMEM_SHARED,
				     GMEM_ZERO);
		}
		kvm_pthread_join(racer.thread, NULL);
		large_is(&l, 0);
		TEST_ASSERT_EQ(gmem_guest_read(l.vcpus[0], gpa_of(&l, 256)), 0);
		to(&l, 0, blocks * PAGES, GMEM_PRIVATE);
		TEST_ASSERT(!gmem_punch(l.a.fd, 0, OFF(blocks * PAGES)), "punch");
	}
	lg_destroy(&l);
}

static void *racing_reader(void *arg)
{
	struct racer *r = arg;
	u64 page;

	pthread_barrier_wait(r->start);
	for (page = 1; page < PAGES; page++)
		gmem_guest_read(r->vcpu, gpa_of(r->l, page));
	return NULL;
}

/*
 * Faults on single pages of a block while another vCPU maps all of it: a fault that
 * found a single page before the block was in use does not split the mapping later.
 */
HAZARD(fault_in_what_becomes_large)
{
	const int readers = 3;
	struct racer racers[readers];
	pthread_barrier_t start;
	struct kvm_vcpu *vcpu;
	struct lg l;
	u64 round;
	int i;

	lg_simple(&l, PAGES, true);
	pthread_barrier_init(&start, NULL, 1 + readers);
	for (i = 0; i < readers; i++) {
		vcpu = vm_vcpu_add(l.vm, 1 + i, gmem_guest_code);
		vcpu_args_set(vcpu, 1, (u64)(1 + i));
		gmem_guest_start(vcpu);
		racers[i] = (struct racer) { .l = &l, .start = &start, .vcpu = vcpu };
	}
	/* Each takes seconds in a sanitised kernel. */
	for (round = 0; round < 20; round++) {
		allocate(&l, 0, PAGES);
		for (i = 0; i < readers; i++)
			kvm_pthread_create(&racers[i].thread, NULL, racing_reader, &racers[i]);
		pthread_barrier_wait(&start);
		touch(&l, 0);
		for (i = 0; i < readers; i++)
			kvm_pthread_join(racers[i].thread, NULL);
		large_is(&l, 1);
		TEST_ASSERT(!gmem_punch(l.a.fd, 0, BLOCK), "punch");
	}
	lg_destroy(&l);
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
