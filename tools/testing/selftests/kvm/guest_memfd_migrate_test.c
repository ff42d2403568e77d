// SPDX-License-Identifier: GPL-2.0
/*
 * The host's memory management moves memory of a guest_memfd under a running guest:
 * between nodes, by compaction, and for soft offlining. A page stays where it is if
 * somebody holds it, or if its file is not migratable.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "gmem_move.h"

#define BLOCK		((u64)SZ_2M)
#define BLOCK_PAGES	(BLOCK / PG)
/* Bits of a node mask. */
#define MASK_BITS	8

#ifdef __x86_64__
#define TYPES_THAT_MOVE	KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM
#else
#define TYPES_THAT_MOVE	DEFAULT_VM
#endif

/* --- Which files can be moved ---------------------------------------------- */

static u64 flags_of(struct kvm_vm *vm)
{
	return vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS);
}

/* The flag is announced exactly where it is accepted, with any other flags. */
static void check_flag(struct kvm_vm *vm, bool can)
{
	const u64 known = flags_of(vm);
	u64 others;
	int fd;

	TEST_ASSERT(!!(known & GUEST_MEMFD_FLAG_MIGRATABLE) == can, "The VM has flags %#lx", known);
	for (others = 0; others <= GMEM_MMAP_SHARED; others++) {
		if (others & ~known)
			continue;
		fd = __vm_create_guest_memfd(vm, PG, others | GUEST_MEMFD_FLAG_MIGRATABLE);
		TEST_ASSERT(can ? fd >= 0 : fd == -1 && errno == EINVAL,
			    "With flags %#lx: %d, errno %d", others, fd, errno);
		if (can)
			kvm_close(fd);
	}
}

#ifdef __x86_64__
HAZARD(flag_of_each_type_of_vm)
{
	const u64 types = kvm_check_cap(KVM_CAP_VM_TYPES);
	struct kvm_vm *vm;
	u32 type;

	for (type = 0; type < 64; type++) {
		if (!(types & BIT_ULL(type)))
			continue;
		vm = vm_create_barebones_type(type);
		check_flag(vm, type == KVM_X86_DEFAULT_VM || type == KVM_X86_SW_PROTECTED_VM ||
			       type == KVM_X86_SNP_VM);
		kvm_vm_free(vm);
	}
}

HAZARD(flag_of_emulated_platforms)
{
	static const u32 platforms[] = {
		KVM_GMEM_EMULATE_SNP, KVM_GMEM_EMULATE_TDX, KVM_GMEM_EMULATE_TDX_MIRROR,
	};
	struct kvm_vm *vm;
	int i, n = 0;

	for (i = 0; i < ARRAY_SIZE(platforms); i++) {
		if (!gmem_emulates(platforms[i]))
			continue;
		vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
		TEST_ASSERT_EQ(gmem_enable_emulation(vm, platforms[i], 0), 0);
		check_flag(vm, platforms[i] == KVM_GMEM_EMULATE_TDX_MIRROR);
		kvm_vm_free(vm);
		n++;
	}
	HZ_REQUIRE(n, GMEM_NO_EMULATION);
}
#else
/* With pKVM there is no flag: guest_memfd_pkvm_test. */
HAZARD(flag_of_an_ordinary_vm)
{
	struct kvm_vm *vm = vm_create_barebones();

	check_flag(vm, true);
	kvm_vm_free(vm);
}
#endif

/* A line of the file's fdinfo. */
static bool fdinfo_migratable(int fd)
{
	char path[64], line[256], value[16] = "";
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	f = fopen(path, "r");
	TEST_ASSERT(f, "%s cannot be read", path);
	while (fgets(line, sizeof(line), f))
		sscanf(line, "gmem-migratable:\t%15s\n", value);
	fclose(f);
	TEST_ASSERT(!*value || !strcmp(value, "yes"), "gmem-migratable: '%s'", value);
	return *value;
}

HAZARD(fdinfo_says_it)
{
	static const u32 types[] = { TYPES_THAT_MOVE };
	struct kvm_vm *vm;
	int i, fd;

	for (i = 0; i < ARRAY_SIZE(types); i++) {
		vm = vm_create_barebones_type(types[i]);
		fd = vm_create_guest_memfd(vm, PG, GMEM_MOVABLE);
		TEST_ASSERT(fdinfo_migratable(fd), "Not in fdinfo");
		kvm_close(fd);
		fd = vm_create_guest_memfd(vm, PG, GMEM_MMAP_SHARED);
		TEST_ASSERT(!fdinfo_migratable(fd), "In fdinfo");
		kvm_close(fd);
		kvm_vm_free(vm);
	}
}

/* --- Between nodes ----------------------------------------------------------- */

HAZARD(move_pages_of_a_default_vm)
{
	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	nodes(DEFAULT_VM);
}

#ifdef __x86_64__
HAZARD(move_pages_of_a_vm_that_converts)
{
	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	nodes(KVM_X86_SW_PROTECTED_VM);
}

/* move_pages() cannot name pages that the host has not mapped: holes, and private pages. */
HAZARD(move_pages_of_what_the_host_does_not_have)
{
	int status[4] = { 1000, 1000, 1000, 1000 }, node;
	struct hz h;
	long r;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	hz_create(&h, 4, GMEM_MOVABLE, 1);
	host_fill(&h, 0, 3, GMEM_SEED(1));
	convert(&h, 1, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(&h, 1, 1, GMEM_SEED(2));
	node = !node_of(hz_hva(&h, 0));

	r = move_by(0, hz_hva(&h, 0), 4, node, MPOL_MF_MOVE_ALL, status);
	TEST_ASSERT(!r, "move_pages: %ld", r);
	TEST_ASSERT_EQ(status[0], node);
	TEST_ASSERT_EQ(status[1], -ENOENT);
	TEST_ASSERT_EQ(status[2], node);
	TEST_ASSERT_EQ(status[3], -ENOENT);
	TEST_ASSERT_EQ(migrated(&h), 2);
	attributes_are(&h, 1, 1, GMEM_PRIVATE);
	host_refused(&h, 1, 1);
	guest_sees(&h, 0, 1, GMEM_SEED(1));
	guest_sees(&h, 1, 1, GMEM_SEED(2));
	guest_sees(&h, 2, 1, GMEM_SEED(1));
	guest_sees(&h, 3, 1, GMEM_ZEROES);
	mg_destroy(&h);
}

HAZARD(migrate_pages_of_the_process)
{
	unsigned long from, to;
	struct hz h;
	int i, node;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	hz_create(&h, NPAGES, GMEM_MOVABLE, 1);
	host_fill(&h, 0, NPAGES, GMEM_SEED(1));
	convert(&h, 0, 2, GMEM_PRIVATE, GMEM_PRESERVE);
	node = node_of(hz_hva(&h, 2));
	for (i = 0; i < 2; i++, node = !node) {
		u64 page;

		guest_sees(&h, 0, NPAGES, GMEM_SEED(1));
		from = 1ul << node;
		to = 1ul << !node;
		/* Pages that are shared with other processes stay; the file's pages are not. */
		TEST_ASSERT(migrate_pages(0, MASK_BITS, &from, &to) >= 0, "errno %d", errno);
		for (page = 2; page < NPAGES; page++)
			TEST_ASSERT_EQ(node_of(hz_hva(&h, page)), !node);
		gmem_dirty_free_pages();
		guest_sees(&h, 0, NPAGES, GMEM_SEED(1));
		host_sees(&h, 2, NPAGES - 2, GMEM_SEED(1));
		host_refused(&h, 0, 2);
	}
	mg_destroy(&h);
}
#endif

static int bind_to(struct hz *h, int node)
{
	unsigned long mask = 1ul << node;

	return mbind((void *)h->a.hva, h->a.size, MPOL_BIND, &mask, MASK_BITS,
		     MPOL_MF_MOVE | MPOL_MF_STRICT) ? errno : 0;
}

HAZARD(mbind_moves)
{
	struct hz h;
	u64 page;
	int node;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	hz_create(&h, NPAGES, GMEM_MOVABLE, 1);
	host_fill(&h, 0, NPAGES - 1, GMEM_SEED(1));
	guest_sees(&h, 0, NPAGES - 1, GMEM_SEED(1));
	node = !node_of(hz_hva(&h, 0));
	TEST_ASSERT_EQ(bind_to(&h, node), 0);
	gmem_dirty_free_pages();
	guest_sees(&h, 0, NPAGES - 1, GMEM_SEED(1));
	host_sees(&h, 0, NPAGES - 1, GMEM_SEED(1));
	host_fill(&h, NPAGES - 1, 1, GMEM_SEED(1));
	/* The last page is newly allocated there. */
	for (page = 0; page < NPAGES; page++)
		TEST_ASSERT_EQ(node_of(hz_hva(&h, page)), node);
	TEST_ASSERT_EQ(migrated(&h), NPAGES - 1);
	mg_destroy(&h);
}

/* --- Other users of the file ------------------------------------------------------ */

/* In the child: checks the page's bytes, and writes one. */
static int look(volatile u8 *mem, u32 pattern)
{
	if (gmem_check(mem, PG, pattern, 0) != GMEM_ALL_GOOD)
		return 1;
	mem[100] = 0x42;
	return 0;
}

HAZARD(second_mapping_and_child)
{
	int ready[2], go[2], status = 1000, node, exit;
	struct hz h;
	pid_t pid;
	u8 *again, byte = 0;
	long r;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	hz_create(&h, 2, GMEM_MOVABLE, 1);
	host_fill(&h, 0, 2, GMEM_SEED(1));
	again = kvm_mmap(OFF(2), PROT_READ | PROT_WRITE, MAP_SHARED, h.a.fd);
	gmem_host_assert(again, PG, GMEM_SEED(1), 0);
	TEST_ASSERT(!pipe(ready) && !pipe(go), "pipe: errno %d", errno);
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork: errno %d", errno);
	if (!pid) {
		if (!gmem_host_read(h.a.hva, &byte) || write(ready[1], &byte, 1) != 1 ||
		    read(go[0], &byte, 1) != 1)
			_exit(2);
		_exit(look(h.a.hva, GMEM_SEED(1)));
	}
	TEST_ASSERT_EQ(read(ready[0], &byte, 1), 1);

	/* The page is mapped twice: only MPOL_MF_MOVE_ALL moves it. */
	node = !node_of(h.a.hva);
	r = move_by(0, h.a.hva, 1, node, MPOL_MF_MOVE, &status);
	TEST_ASSERT(!r && status == -EACCES, "move_pages: %ld, status %d", r, status);
	r = move_by(pid, h.a.hva, 1, node, MPOL_MF_MOVE_ALL, &status);
	TEST_ASSERT(!r && status == node, "move_pages: %ld, status %d", r, status);
	gmem_dirty_free_pages();
	TEST_ASSERT_EQ(node_of(h.a.hva), node);
	TEST_ASSERT_EQ(gmem_frame_of(h.a.hva), gmem_frame_of(again));
	gmem_host_assert(again, PG, GMEM_SEED(1), 0);
	host_sees(&h, 0, 2, GMEM_SEED(1));
	guest_sees(&h, 0, 2, GMEM_SEED(1));

	/* All mappings and the guest see what the child writes now. */
	TEST_ASSERT_EQ(write(go[1], &byte, 1), 1);
	TEST_ASSERT_EQ(waitpid(pid, &exit, 0), pid);
	TEST_ASSERT(WIFEXITED(exit) && !WEXITSTATUS(exit), "The child: status %#x", exit);
	TEST_ASSERT_EQ(again[100], 0x42);
	TEST_ASSERT_EQ(gmem_guest_read(h.vcpus[0], page_gpa(&h, 0) + 100), 0x42);

#ifdef __x86_64__
	/* A conversion removes both mappings of the page at its new place. */
	convert(&h, 0, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	host_refused(&h, 0, 1);
	gmem_host_assert_refused(again, PG);
#endif
	kvm_munmap(again, OFF(2));
	mg_destroy(&h);
}

/* Two memslots with one part of the file each; one of them is deleted and added again. */
HAZARD(two_slots_of_one_file)
{
	struct gmem_area second;
	struct hz h;
	int node;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	hz_create(&h, 8, GMEM_MOVABLE, 1);
	host_fill(&h, 0, 8, GMEM_SEED(1));
	gmem_area_unbind(&h.a);
	h.a.size = OFF(4);
	gmem_area_bind(&h.a);
	second = h.a;
	second.slot = GMEM_SLOT + 1;
	second.gpa = GMEM_GPA + SZ_1G;
	second.file_offset = OFF(4);
	gmem_area_bind(&second);
	gmem_area_virt_map(&second);

	guest_sees(&h, 0, 4, GMEM_SEED(1));
	gmem_guest_assert(h.vcpus[0], second.gpa, OFF(4), GMEM_SEED(1), OFF(4));
	node = !node_of(hz_hva(&h, 0));
	moves(&h, 2, 4, node);
	gmem_dirty_free_pages();
	guest_sees(&h, 0, 4, GMEM_SEED(1));
	gmem_guest_assert(h.vcpus[0], second.gpa, OFF(4), GMEM_SEED(1), OFF(4));

	/* Pages that no memslot has. */
	gmem_area_unbind(&second);
	moves(&h, 6, 2, node);
	gmem_area_bind(&second);
	gmem_guest_assert(h.vcpus[0], second.gpa, OFF(4), GMEM_SEED(1), OFF(4));
	gmem_area_unbind(&second);
	gmem_area_unbind(&h.a);
	kvm_munmap(h.a.hva, OFF(8));
	kvm_close(h.a.fd);
	kvm_vm_free(h.vm);
}

/* A memslot without a guest_memfd, whose memory is a mapping of the file. */
HAZARD(slot_of_the_mapping)
{
	struct hz h;
	int i;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	mg_create(&h, DEFAULT_VM, NPAGES, GMEM_MOVABLE, 1);
	gmem_area_unbind(&h.a);
	vm_set_user_memory_region(h.vm, h.a.slot, 0, h.a.gpa, h.a.size, h.a.hva);
	for (i = 0; i < 2; i++) {
		guest_fill(&h, 0, NPAGES, GMEM_SEED(i));
		moves(&h, 0, NPAGES, !node_of(hz_hva(&h, 0)));
		gmem_dirty_free_pages();
		guest_sees(&h, 0, NPAGES, GMEM_SEED(i));
		host_sees(&h, 0, NPAGES, GMEM_SEED(i));
	}
	mg_destroy(&h);
}

/* --- Pages that stay where they are -------------------------------------------- */

HAZARD(pinned_page_stays)
{
	static const enum pin_kind kinds[] = { PIN_VMSPLICE, PIN_IO_URING, PIN_GUP };
	struct pin pin;
	struct hz h;
	u64 failed;
	int i, r;
	u8 byte;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	hz_create(&h, 4, GMEM_MOVABLE, 1);
	host_fill(&h, 0, 4, GMEM_SEED(1));
	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		r = pin_page(&pin, kinds[i], hz_hva(&h, 1));
		if (r == ENODEV)
			continue;
		TEST_ASSERT(!r, "pin %d: errno %d", kinds[i], r);
		guest_sees(&h, 0, 4, GMEM_SEED(1));
		failed = vm_get_stat(h.vm, gmem_migrate_failed);
		stays(hz_hva(&h, 1));
		TEST_ASSERT(vm_get_stat(h.vm, gmem_migrate_failed) > failed,
			    "No failure was counted");
		guest_sees(&h, 0, 4, GMEM_SEED(1));
		host_sees(&h, 0, 4, GMEM_SEED(1));

		/* The pin and the guest have the same page. */
		gmem_guest_write(h.vcpus[0], page_gpa(&h, 1), 0x33);
		if (kinds[i] == PIN_VMSPLICE) {
			TEST_ASSERT_EQ(read(pin.pipe[0], &byte, 1), 1);
			TEST_ASSERT_EQ(byte, 0x33);
		}
		unpin_page(&pin);
		host_fill(&h, 1, 1, GMEM_SEED(1));
		moves(&h, 1, 1, !node_of(hz_hva(&h, 1)));
		guest_sees(&h, 0, 4, GMEM_SEED(1));
	}
	mg_destroy(&h);
}

HAZARD(file_without_the_flag_stays)
{
	static const u32 types[] = { TYPES_THAT_MOVE };
	u64 before[NPAGES], after[NPAGES];
	struct hz h;
	int i;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	for (i = 0; i < ARRAY_SIZE(types); i++) {
		mg_create(&h, types[i], NPAGES, GMEM_MMAP_SHARED, 1);
		spread(&h, NPAGES, 2, SZ_16M, true);
		guest_sees(&h, 0, NPAGES, GMEM_SEED(1));
		frames(&h, NPAGES, before);
		stays(hz_hva(&h, 0));
		TEST_ASSERT_EQ(bind_to(&h, !node_of(hz_hva(&h, 0))), EIO);
		if (can_poison_mapped())
			refused(madvise((void *)hz_hva(&h, 1), PG, MADV_SOFT_OFFLINE), EBUSY);
		compact();
		frames(&h, NPAGES, after);
		TEST_ASSERT_EQ(different(before, after, NPAGES), 0);
		TEST_ASSERT(!has_flag(before[1], KPF_HWPOISON), "Taken offline despite that");
		guest_sees(&h, 0, NPAGES, GMEM_SEED(1));
		host_sees(&h, 0, NPAGES, GMEM_SEED(1));
		TEST_ASSERT_EQ(migrated(&h), 0);
		mg_destroy(&h);
	}
}

#ifdef __x86_64__
/* Nobody can read failed memory; after a hole, the page works again. */
HAZARD(failed_memory_stays)
{
	int status[4] = { 1000, 1000, 1000, 1000 }, node, r;
	struct hz h;
	u64 pfn;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	HZ_REQUIRE(can_poison_mapped() && can_poison_pfn(),
		   "needs MEMORY_FAILURE and HWPOISON_INJECT");
	hz_create(&h, 4, GMEM_MOVABLE, 1);
	host_fill(&h, 0, 4, GMEM_SEED(1));
	guest_sees(&h, 0, 4, GMEM_SEED(1));
	moves(&h, 0, 4, !node_of(hz_hva(&h, 0)));
	node = !node_of(hz_hva(&h, 0));
	pfn = gmem_frame_of(hz_hva(&h, 3));
	r = poison_mapped(hz_hva(&h, 1));
	TEST_ASSERT(!r, "MADV_HWPOISON: errno %d", r);
	convert(&h, 3, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	r = poison_pfn(pfn);
	TEST_ASSERT(!r, "corrupt-pfn: errno %d", r);

	r = move_by(0, hz_hva(&h, 0), 4, node, MPOL_MF_MOVE_ALL, status);
	TEST_ASSERT(!r, "move_pages: %d", r);
	TEST_ASSERT_EQ(status[0], node);
	TEST_ASSERT_EQ(status[1], -ENOENT);
	TEST_ASSERT_EQ(status[2], node);
	TEST_ASSERT_EQ(status[3], -ENOENT);
	compact();
	guest_sees(&h, 0, 1, GMEM_SEED(1));
	guest_sees(&h, 2, 1, GMEM_SEED(1));
	host_refused(&h, 1, 1);
	r = __gmem_guest_do(h.vcpus[0], GMEM_OP_READ, page_gpa(&h, 1), 1, 0, 0, 0);
	TEST_ASSERT_EQ(r, -EHWPOISON);
	TEST_ASSERT(has_flag(pfn, KPF_HWPOISON), "The private page's memory is in use again");

	TEST_ASSERT_EQ(gmem_punch(h.a.fd, 0, OFF(4)), 0);
	r = gmem_guest_resume(h.vcpus[0]);
	TEST_ASSERT(!r, "After the hole: %d", r);
	convert(&h, 3, 1, GMEM_SHARED, GMEM_PRESERVE);
	host_fill(&h, 0, 4, GMEM_SEED(2));
	moves(&h, 0, 4, !node_of(hz_hva(&h, 0)));
	guest_sees(&h, 0, 4, GMEM_SEED(2));
	mg_destroy(&h);
}

#endif /* __x86_64__ */

/* --- Compaction, and pages that are taken offline -------------------------------- */

#define SPREAD_PAGES	64

static void put_back(u64 pfn)
{
	hz_write_file(DEBUGFS "/hwpoison/unpoison-pfn", "%#lx", pfn);
}

/* Compaction moves pages that the host has mapped, too. Returns how many were moved. */
static u64 compact_mapped(u64 between)
{
	u64 moved;
	struct hz h;

	mg_create(&h, DEFAULT_VM, SPREAD_PAGES, GMEM_MOVABLE, 1);
	spread(&h, SPREAD_PAGES, 8, between, true);
	guest_sees(&h, 0, SPREAD_PAGES, GMEM_SEED(1));
	compact();
	gmem_dirty_free_pages();
	moved = migrated(&h);
	guest_sees(&h, 0, SPREAD_PAGES, GMEM_SEED(1));
	host_sees(&h, 0, SPREAD_PAGES, GMEM_SEED(1));
	guest_fill(&h, 0, SPREAD_PAGES, GMEM_SEED(2));
	host_sees(&h, 0, SPREAD_PAGES, GMEM_SEED(2));
	mg_destroy(&h);
	return moved;
}

HAZARD(compaction_moves_pages_of_a_default_vm)
{
	u64 between, moved = 0;

	for (between = SZ_16M; between <= SZ_128M && !moved; between *= 2)
		moved = compact_mapped(between);
	HZ_REQUIRE(moved, "no page was in compaction's way");
	pr_info("# %lu of %d pages moved\n", moved, SPREAD_PAGES);
}

#ifdef __x86_64__

/*
 * Compaction moves pages that the host has not mapped. Returns how many were
 * moved, which can be none if all lay well.
 */
static u64 compact_private(u64 between)
{
	u64 before[SPREAD_PAGES], after[SPREAD_PAGES], moved;
	struct hz h;

	hz_create(&h, SPREAD_PAGES, GMEM_MOVABLE, 1);
	spread(&h, SPREAD_PAGES, 8, between, true);
	frames(&h, SPREAD_PAGES, before);
	convert(&h, 0, SPREAD_PAGES, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_sees(&h, 0, SPREAD_PAGES, GMEM_SEED(1));
	guest_fill(&h, 0, SPREAD_PAGES, GMEM_SEED(2));

	compact();
	gmem_dirty_free_pages();
	moved = migrated(&h);
	attributes_are(&h, 0, SPREAD_PAGES, GMEM_PRIVATE);
	host_refused(&h, 0, SPREAD_PAGES);
	guest_sees(&h, 0, SPREAD_PAGES, GMEM_SEED(2));
	guest_fill(&h, 0, SPREAD_PAGES, GMEM_SEED(3));
	convert(&h, 0, SPREAD_PAGES, GMEM_SHARED, GMEM_PRESERVE);
	host_sees(&h, 0, SPREAD_PAGES, GMEM_SEED(3));
	frames(&h, SPREAD_PAGES, after);
	TEST_ASSERT(different(before, after, SPREAD_PAGES) <= moved, "%lu of %lu were counted",
		    moved, different(before, after, SPREAD_PAGES));
	moved = different(before, after, SPREAD_PAGES);
	mg_destroy(&h);
	return moved;
}

HAZARD(compaction_moves_private_pages)
{
	u64 between, moved = 0;

	for (between = SZ_16M; between <= SZ_128M && !moved; between *= 2)
		moved = compact_private(between);
	HZ_REQUIRE(moved, "no private page was in compaction's way");
	pr_info("# %lu of %d private pages moved\n", moved, SPREAD_PAGES);
}

/* A file that the host cannot map, whose pages are always private. */
HAZARD(compaction_moves_a_file_that_does_not_convert)
{
	u64 between, moved = 0;
	struct hz h;

	HZ_REQUIRE(!get_kvm_param_bool("gmem_in_place_conversion"), "needs such files");
	for (between = SZ_16M; between <= SZ_128M && !moved; between *= 2) {
		hz_create(&h, SPREAD_PAGES, GUEST_MEMFD_FLAG_MIGRATABLE, 1);
		vm_mem_set_private(h.vm, h.a.gpa, h.a.size);
		spread(&h, SPREAD_PAGES, 8, between, false);
		guest_fill(&h, 0, SPREAD_PAGES, GMEM_SEED(1));
		compact();
		gmem_dirty_free_pages();
		moved = migrated(&h);
		guest_sees(&h, 0, SPREAD_PAGES, GMEM_SEED(1));
		mg_destroy(&h);
	}
	HZ_REQUIRE(moved, "no page was in compaction's way");
	pr_info("# %lu of %d pages moved\n", moved, SPREAD_PAGES);
}

/* Pages that were never used are moved, and read as zeroes at their first use. */
HAZARD(compaction_moves_unused_pages)
{
	u64 between, moved = 0;
	struct hz h;

	for (between = SZ_16M; between <= SZ_128M && !moved; between *= 2) {
		hz_create(&h, SPREAD_PAGES, GMEM_MOVABLE, 1);
		gmem_dirty_free_pages();
		spread(&h, SPREAD_PAGES, 8, between, false);
		convert(&h, 0, SPREAD_PAGES / 2, GMEM_PRIVATE, GMEM_PRESERVE);
		compact();
		moved = migrated(&h);
		guest_sees(&h, 0, SPREAD_PAGES / 2, GMEM_ZEROES);
		host_sees(&h, SPREAD_PAGES / 2, SPREAD_PAGES / 2, GMEM_ZEROES);
		guest_sees(&h, SPREAD_PAGES / 2, SPREAD_PAGES / 2, GMEM_ZEROES);
		mg_destroy(&h);
	}
	HZ_REQUIRE(moved, "no unused page was in compaction's way");
	pr_info("# %lu of %d unused pages moved\n", moved, SPREAD_PAGES);
}

#endif /* __x86_64__ */

HAZARD(soft_offline_replaces_the_page)
{
	struct hz h;
	u64 pfn, page;
	int r;

	HZ_REQUIRE(can_poison_mapped(), "needs MEMORY_FAILURE and root");
	hz_have_debugfs();
	hz_create(&h, 4, GMEM_MOVABLE, 1);
	host_fill(&h, 0, 4, GMEM_SEED(1));
	guest_sees(&h, 0, 4, GMEM_SEED(1));
	for (page = 0; page < 2; page++) {
		pfn = gmem_frame_of(hz_hva(&h, page));
		r = madvise((void *)hz_hva(&h, page), PG, MADV_SOFT_OFFLINE) ? errno : 0;
		TEST_ASSERT(!r, "MADV_SOFT_OFFLINE: errno %d (%s)", r, strerror(r));
		TEST_ASSERT_EQ(migrated(&h), page + 1);
		TEST_ASSERT(gmem_frame_of(hz_hva(&h, page)) && gmem_frame_of(hz_hva(&h, page)) != pfn,
			    "The page did not move");
		TEST_ASSERT(has_flag(pfn, KPF_HWPOISON), "The old frame is in use again");
		gmem_dirty_free_pages();
		guest_sees(&h, 0, 4, GMEM_SEED(1));
		host_sees(&h, 0, 4, GMEM_SEED(1));
		put_back(pfn);
	}
	guest_fill(&h, 0, 4, GMEM_SEED(2));
	may_convert(&h, 0, 4);
	guest_sees(&h, 0, 4, GMEM_SEED(2));
	mg_destroy(&h);
}

#ifdef __x86_64__
/* A block loses its large mapping when one of its pages moves, but no byte. */
HAZARD(large_mapping_ends)
{
	const u32 seed = GMEM_SEED(5);
	const u64 page = 300;
	struct hz h;
	int private;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	for (private = 0; private < 2; private++) {
		hz_create(&h, BLOCK_PAGES, GMEM_MOVABLE, 1);
		gmem_allocate_blocks(h.a.fd, 0, BLOCK);
		guest_fill(&h, 0, 1, seed);
		HZ_REQUIRE(vm_get_stat(h.vm, pages_2m) == 1, "needs memory in one piece");
		guest_fill(&h, 0, BLOCK_PAGES, seed);
		TEST_ASSERT_EQ(vm_get_stat(h.vm, pages_2m), 1);
		host_sees(&h, page, 1, seed);
		if (private)
			convert(&h, 0, page, GMEM_PRIVATE, GMEM_PRESERVE);
		moves(&h, page, 1, !node_of(hz_hva(&h, page)));
		TEST_ASSERT_EQ(vm_get_stat(h.vm, pages_2m), 0);
		gmem_dirty_free_pages();
		guest_sees(&h, 0, BLOCK_PAGES, seed);
		/* There is no large mapping at the block's first page either. */
		TEST_ASSERT_EQ(vm_get_stat(h.vm, pages_2m), 0);
		guest_fill(&h, page, 1, seed + 1);
		host_sees(&h, page, 1, seed + 1);
		host_sees(&h, page + 1, BLOCK_PAGES - page - 1, seed);
		mg_destroy(&h);
	}
}
#else
/* arm64 has no statistics of large mappings. */
HAZARD(page_of_a_block_moves)
{
	const u32 seed = GMEM_SEED(5);
	const u64 page = 300;
	struct hz h;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	hz_create(&h, BLOCK_PAGES, GMEM_MOVABLE, 1);
	gmem_allocate_blocks(h.a.fd, 0, BLOCK);
	guest_fill(&h, 0, BLOCK_PAGES, seed);
	host_sees(&h, page, 1, seed);
	moves(&h, page, 1, !node_of(hz_hva(&h, page)));
	gmem_dirty_free_pages();
	guest_sees(&h, 0, BLOCK_PAGES, seed);
	guest_fill(&h, page, 1, seed + 1);
	host_sees(&h, page, 1, seed + 1);
	host_sees(&h, page + 1, BLOCK_PAGES - page - 1, seed);
	mg_destroy(&h);
}
#endif

/* --- Statistics and trace events -------------------------------------------------- */

HAZARD(moves_are_counted)
{
	struct hz h, other;
	struct pin pin;
	u64 failed;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	hz_create(&h, NPAGES, GMEM_MOVABLE, 1);
	hz_create(&other, 1, GMEM_MOVABLE, 1);
	host_fill(&h, 0, NPAGES, GMEM_SEED(1));
	TEST_ASSERT_EQ(migrated(&h), 0);
	moves(&h, 0, NPAGES, !node_of(hz_hva(&h, 0)));
	TEST_ASSERT_EQ(migrated(&h), NPAGES);
	TEST_ASSERT_EQ(vm_get_stat(h.vm, gmem_migrate_failed), 0);
	moves(&h, 0, 3, !node_of(hz_hva(&h, 0)));
	TEST_ASSERT_EQ(migrated(&h), NPAGES + 3);

	TEST_ASSERT(!pin_page(&pin, PIN_VMSPLICE, hz_hva(&h, 5)), "vmsplice()");
	stays(hz_hva(&h, 5));
	unpin_page(&pin);
	failed = vm_get_stat(h.vm, gmem_migrate_failed);
	TEST_ASSERT(failed, "A failure is not counted");
	TEST_ASSERT_EQ(migrated(&h), NPAGES + 3);
	TEST_ASSERT_EQ(migrated(&other), 0);
	TEST_ASSERT_EQ(vm_get_stat(other.vm, gmem_migrate_failed), 0);
	mg_destroy(&other);
	mg_destroy(&h);
}

#define TRACING	"/sys/kernel/tracing/instances/migrate"

/* Whether there were events since the last call whose text contains @text. */
static int traced(const char *text)
{
	char line[512];
	int n = 0;
	FILE *f = fopen(TRACING "/trace", "r");

	TEST_ASSERT(f, "The trace cannot be read");
	while (fgets(line, sizeof(line), f))
		n += strstr(line, " kvm_gmem_migrate: ") && strstr(line, text);
	fclose(f);
	return n;
}

HAZARD(moves_are_traced)
{
	struct stat st;
	struct pin pin;
	char text[128];
	struct hz h;
	u64 pfn;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL);
	HZ_REQUIRE(!mkdir(TRACING, 0700) || errno == EEXIST, "needs tracefs");
	TEST_ASSERT(!hz_write_file(TRACING "/events/kvm_gmem/kvm_gmem_migrate/enable", "%lu", 1),
		    "The event cannot be enabled");
	hz_create(&h, 4, GMEM_MOVABLE, 1);
	host_fill(&h, 0, 4, GMEM_SEED(1));
	TEST_ASSERT(!fstat(h.a.fd, &st), "fstat: %d", errno);
	pfn = gmem_frame_of(hz_hva(&h, 2));
	moves(&h, 2, 1, !node_of(hz_hva(&h, 2)));
	snprintf(text, sizeof(text), "ino %lu offset 0x2000 pfn 0x%lx to 0x%lx result 0\n",
		 (u64)st.st_ino, pfn, gmem_frame_of(hz_hva(&h, 2)));
	TEST_ASSERT_EQ(traced(text), 1);
	TEST_ASSERT_EQ(traced("ino"), 1);

	TEST_ASSERT(!pin_page(&pin, PIN_VMSPLICE, hz_hva(&h, 3)), "vmsplice()");
	stays(hz_hva(&h, 3));
	unpin_page(&pin);
	snprintf(text, sizeof(text), "ino %lu offset 0x3000 pfn 0x%lx to ", (u64)st.st_ino,
		 gmem_frame_of(hz_hva(&h, 3)));
	TEST_ASSERT(traced(text), "A failure is not traced");
	snprintf(text, sizeof(text), "result %d\n", -EAGAIN);
	TEST_ASSERT(traced(text), "Not with %s", text);
	hz_write_file(TRACING "/events/kvm_gmem/kvm_gmem_migrate/enable", "%lu", 0);
	mg_destroy(&h);
	rmdir(TRACING);
}

int main(int argc, char *argv[])
{
	gmem_require_moves();
	return test_harness_run(argc, argv);
}
