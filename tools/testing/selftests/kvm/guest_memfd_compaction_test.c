// SPDX-License-Identifier: GPL-2.0
/*
 * Compaction makes blocks of 2 MiB out of memory of which a guest has each second
 * page.
 *
 * Where compaction finds room depends on what is free. So this test takes all that is
 * free of a zone that has only pages that can be moved: ZONE_MOVABLE of one node, which
 * the kernel's parameter movablecore= creates. tools/vm/check boots with it for this
 * test.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>

#include "gmem_move.h"

#define NODE		0
#define PROACTIVENESS	"/proc/sys/vm/compaction_proactiveness"
#define BLOCK		((u64)SZ_2M)
#define BLOCK_PAGES	(BLOCK / PG)
/* So much more than the zone, which may have pages on lists of processors. */
#define SPARE		((u64)SZ_8M)
#define STEP		256

/* How many pages of memory ZONE_MOVABLE of the node has. */
static u64 pages_of_zone(void)
{
	char line[256], name[16] = "";
	u64 pages = 0, n;
	int node = -1;
	FILE *f = fopen("/proc/zoneinfo", "r");

	TEST_ASSERT(f, "/proc/zoneinfo: errno %d", errno);
	while (fgets(line, sizeof(line), f)) {
		sscanf(line, "Node %d, zone %15s", &node, name);
		if (node == NODE && !strcmp(name, "Movable") && sscanf(line, " managed %lu", &n) == 1)
			pages = n;
	}
	fclose(f);
	return pages;
}

/* How many free blocks the zone has. */
static u64 free_blocks(void)
{
	u64 blocks = 0, n;
	char line[256], *at;
	int node, used, order;
	FILE *f = fopen("/proc/buddyinfo", "r");

	TEST_ASSERT(f, "/proc/buddyinfo: errno %d", errno);
	while (fgets(line, sizeof(line), f)) {
		used = 0;
		if (sscanf(line, "Node %d, zone Movable %n", &node, &used) != 1 || !used || node != NODE)
			continue;
		at = line + used;
		for (order = 0; sscanf(at, "%lu %n", &n, &used) == 1; order++, at += used)
			blocks += order < 9 ? 0 : n << (order - 9);
	}
	fclose(f);
	return blocks;
}

/* Where the host has pages of its own mapped: 0 for those that it has not. */
static void read_frames(const u8 *mem, u64 pages, u64 *pfns)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	ssize_t size = pages * sizeof(*pfns);
	u64 i;

	TEST_ASSERT(fd >= 0 && pread(fd, pfns, size, (u64)mem / PG * sizeof(*pfns)) == size,
		    "/proc/self/pagemap: errno %d", errno);
	close(fd);
	for (i = 0; i < pages; i++)
		pfns[i] = pfns[i] >> 63 ? pfns[i] & (BIT_ULL(55) - 1) : 0;
}

static void mark(u8 *mem, u64 page)
{
	*(volatile u64 *)(mem + OFF(page)) = page * GMEM_SEED(7);
}

static bool is_marked(u8 *mem, u64 page)
{
	return *(volatile u64 *)(mem + OFF(page)) == page * GMEM_SEED(7);
}

static void run_on_node(void)
{
	cpu_set_t cpus;
	int first;
	FILE *f = fopen("/sys/devices/system/node/node0/cpulist", "r");

	TEST_ASSERT(f && fscanf(f, "%d", &first) == 1, "No processor of node %d", NODE);
	fclose(f);
	CPU_ZERO(&cpus);
	CPU_SET(first, &cpus);
	TEST_ASSERT(!sched_setaffinity(0, sizeof(cpus), &cpus), "sched_setaffinity: errno %d", errno);
}

/* The block of memory that a large page of the host has: its first frame, or 0. */
static u64 block_of(u8 *mem)
{
	u64 pfns[BLOCK_PAGES], i;

	mem[0] = 1;
	read_frames(mem, BLOCK_PAGES, pfns);
	for (i = 0; i < BLOCK_PAGES; i++) {
		if (!pfns[0] || pfns[0] % BLOCK_PAGES || pfns[i] != pfns[0] + i)
			return 0;
	}
	return pfns[0];
}

/*
 * The file keeps each second page. Those that are free must be the even ones: compaction
 * looks at fewer and fewer pages of a block as long as it finds no free ones, and then
 * at multiples of 32.
 */
static bool is_kept(u64 pfn)
{
	return pfn % 2;
}

/* Guests are slow: they have so few of the pages. */
static bool is_guests(u64 page)
{
	return page % STEP < 2;
}

HAZARD(blocks_of_a_file_with_holes)
{
	const u64 zone = pages_of_zone();
	const u64 npages = (zone * PG + SPARE) / BLOCK * BLOCK_PAGES;
	u64 *before, *after, page, first = 0, moved, blocks, differ = 0, former = 0;
	struct hz h;
	u8 *mem;

	HZ_REQUIRE(zone > BLOCK_PAGES, "node 0 has no ZONE_MOVABLE (movablecore=)");
	HZ_REQUIRE(!access("/sys/kernel/mm/transparent_hugepage", F_OK), "needs large pages");
	before = calloc(npages, sizeof(*before));
	after = calloc(npages, sizeof(*after));
	TEST_ASSERT(before && after, "No memory");
	/* Compaction comes when it is asked for. */
	TEST_ASSERT(!hz_write_file(PROACTIVENESS, "%lu", 0), PROACTIVENESS);
	run_on_node();

	/* All that is free, and then each second page of it. */
	hz_create(&h, npages, GMEM_MOVABLE, 1);
	TEST_ASSERT_EQ(gmem_allocate(h.a.fd, 0, OFF(npages)), 0);
	for (page = 0; page < npages; page++)
		mark(h.a.hva, page);
	read_frames(h.a.hva, npages, before);
	for (page = 0; page < npages; page++) {
		if (!is_kept(before[page]))
			TEST_ASSERT_EQ(gmem_punch(h.a.fd, OFF(page), PG), 0);
	}
	convert(&h, 0, npages / 2, GMEM_PRIVATE, GMEM_PRESERVE);
	for (page = 0; page < npages; page++) {
		if (is_kept(before[page]) && is_guests(page))
			guest_fill(&h, page, 1, GMEM_SEED(1));
	}
	blocks = free_blocks();
	moved = migrated(&h);

	compact();
	moved = migrated(&h) - moved;
	pr_info("# %lu pages moved, %lu blocks were free, %lu are\n", moved, blocks, free_blocks());
	TEST_ASSERT(free_blocks() > blocks, "There is no new free block");
	gmem_dirty_free_pages();

	/* The guest has noticed nothing. */
	for (page = 0; page < npages; page++) {
		if (is_kept(before[page]) && is_guests(page))
			guest_sees(&h, page, 1, GMEM_SEED(1));
	}
	host_refused(&h, 0, npages / 2);
	convert(&h, 0, npages / 2, GMEM_SHARED, GMEM_PRESERVE);
	for (page = 0; page < npages; page++) {
		if (!is_kept(before[page]))
			continue;
		if (is_guests(page))
			host_sees(&h, page, 1, GMEM_SEED(1));
		else
			TEST_ASSERT(is_marked(h.a.hva, page), "Page %lu has other bytes", page);
	}
	read_frames(h.a.hva, npages, after);
	for (page = 0; page < npages; page++)
		differ += is_kept(before[page]) && after[page] != before[page];
	TEST_ASSERT(differ && differ <= moved, "%lu pages are elsewhere, %lu moved", differ, moved);

	/* One of the blocks that are free now, whose pages the file had. */
	blocks = free_blocks();
	mem = kvm_mmap((blocks + 1) * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	kvm_madvise(mem, (blocks + 1) * BLOCK, MADV_HUGEPAGE);
	for (mem += BLOCK - (u64)mem % BLOCK; !former && blocks--; mem += BLOCK) {
		first = block_of(mem);
		if (!first)
			break;
		for (page = 0; page < npages; page++)
			former += is_kept(before[page]) && before[page] - first < BLOCK_PAGES;
	}
	TEST_ASSERT(former, "No page of the file was in a block that is free now");
	pr_info("# %lu pages were in the block at frame %#lx\n", former, first);
	mg_destroy(&h);
	free(before);
	free(after);
}

int main(int argc, char *argv[])
{
	gmem_require_moves();
	return test_harness_run(argc, argv);
}
