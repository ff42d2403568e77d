// SPDX-License-Identifier: GPL-2.0
/*
 * Memory of protected guests that the host's memory management moves
 * (GUEST_MEMFD_FLAG_MIGRATABLE): EL2 moves what a guest has, kept or shared.
 *
 * The guests are real, and so is EL2: the kernel has to be booted with
 * kvm-arm.mode=protected.
 *
 * move_pages(2) moves only what the host has mapped. A guest that does not tell
 * can take a page back that the host has mapped, and whose file says that it is
 * shared: such pages are how a page that the guest keeps is moved for sure here.
 * Compaction moves those that are private in the file, too.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>

#include <linux/kernel-page-flags.h>

#include "gmem_pkvm_fixture.h"
#include "numaif.h"

#define MOVABLE		(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_MIGRATABLE)
#define NEEDS_NODES	"needs two NUMA nodes"

#define migrated(p)		vm_get_stat((p)->vm, gmem_migrated)
#define not_migrated(p)		vm_get_stat((p)->vm, gmem_migrate_failed)

PVM_FIXTURES(pvm, GUEST_MEMFD_FLAG_MMAP)
PVM_FIXTURES(movable, MOVABLE)
PVM_FIXTURE(told, MOVABLE, true)
PVM_FIXTURE(untold, MOVABLE, false)

/* --- Where pages are, and what is where they were ---------------------------- */

static void frames(struct pvm *p, u64 page, u64 n, u64 *pfns)
{
	u64 i;

	for (i = 0; i < n; i++) {
		pfns[i] = gmem_frame_of(p->mem + (page + i) * PG);
		TEST_ASSERT(pfns[i], "No frame number of page %lu", page + i);
	}
}

/* The node of a page that the host has mapped. */
static int node_of(struct pvm *p, u64 page)
{
	void *hva = p->mem + page * PG;
	int status = -EINVAL;

	TEST_ASSERT(!move_pages(0, 1, &hva, NULL, &status, 0), "move_pages: errno %d", errno);
	TEST_ASSERT(status >= 0, "Page %lu: status %d", page, status);
	return status;
}

static long move_to(struct pvm *p, u64 page, u64 n, int node, int *status)
{
	void *pages[NPAGES];
	int nodes[NPAGES];
	u64 i;

	for (i = 0; i < n; i++) {
		pages[i] = p->mem + (page + i) * PG;
		nodes[i] = node;
		status[i] = 1000;
	}
	return move_pages(0, n, pages, nodes, status, MPOL_MF_MOVE);
}

/* All of the pages, which the host has mapped, go to the other node. */
static void moves(struct pvm *p, u64 page, u64 n)
{
	u64 before[NPAGES], after[NPAGES], counted = migrated(p), i;
	int node = !node_of(p, page), status[NPAGES];
	long r;

	frames(p, page, n, before);
	r = move_to(p, page, n, node, status);
	TEST_ASSERT(!r, "move_pages: %ld, errno %d", r, errno);
	frames(p, page, n, after);
	for (i = 0; i < n; i++) {
		TEST_ASSERT(status[i] == node, "Page %lu: status %d, wanted node %d", page + i,
			    status[i], node);
		TEST_ASSERT(before[i] != after[i], "Page %lu is where it was", page + i);
	}
	TEST_ASSERT_EQ(migrated(p) - counted, n);
}

/* Reads a frame of the host's. */
static void read_frame(u64 pfn, u8 *to)
{
	int fd = open("/dev/mem", O_RDONLY);

	TEST_ASSERT(fd >= 0, "/dev/mem: errno %d", errno);
	TEST_ASSERT(pread(fd, to, PG, pfn * PG) == PG, "Frame %#lx: errno %d", pfn, errno);
	close(fd);
}

/* A frame in which the guest had a page with @pattern. Returns whether it is zero. */
static bool was_scrubbed(u64 pfn, u64 page, u32 pattern)
{
	u8 frame[PG];

	read_frame(pfn, frame);
	TEST_ASSERT(gmem_check(frame, PG, pattern, page * PG) != GMEM_ALL_GOOD,
		    "Frame %#lx holds page %lu of the guest", pfn, page);
	return gmem_check(frame, PG, GMEM_ZEROES, 0) == GMEM_ALL_GOOD;
}

/* Pages that were moved. Some of the frames may be in use again; after this more are. */
static void assert_scrubbed(const u64 *pfns, u64 page, u64 n, u32 pattern)
{
	u64 i, zeroes = 0;

	for (i = 0; i < n; i++)
		zeroes += was_scrubbed(pfns[i], page + i, pattern);
	TEST_ASSERT(n < 4 || zeroes > n / 2, "Only %lu of %lu frames are zero", zeroes, n);
	gmem_dirty_free_pages();
}

static bool is_poisoned(u64 pfn)
{
	u64 flags = 0;
	int fd = open("/proc/kpageflags", O_RDONLY);

	TEST_ASSERT(fd >= 0 && pread(fd, &flags, sizeof(flags), pfn * sizeof(flags)) == sizeof(flags),
		    "/proc/kpageflags: errno %d", errno);
	close(fd);
	return flags & BIT_ULL(KPF_HWPOISON);
}

/* --- Pages of each kind ------------------------------------------------------- */

/* The guest fills pages and shares them, and the host has them mapped. */
static void share(struct cpu *c, u64 page, u64 n, u32 pattern)
{
	struct pvm *p = c->p;

	cpu_fill(c, page * PG, n * PG, pattern);
	cpu_share(c, page * PG, n * PG);
	/* Told of it, the host has converted them. */
	if (!p->exits)
		gmem_convert(p->fd, page * PG, n * PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, page * PG, n * PG, pattern);
}

/* Those go on being mapped for the host, and shared in the file, and are the guest's own. */
static void keep_mapped(struct cpu *c, u64 page, u64 n, u32 pattern)
{
	TEST_ASSERT(!c->p->exits, "The host would hear of it");
	share(c, page, n, pattern + 1);
	cpu_unshare(c, page * PG, n * PG);
	cpu_fill(c, page * PG, n * PG, pattern);
}

TEST_F_TIMEOUT(movable, flag_is_announced, TIMEOUT)
{
	struct pvm *p = &self->p;
	int fd;

	TEST_ASSERT(vm_check_cap(p->vm, KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_MIGRATABLE,
		    "Not for a protected VM");
	TEST_ASSERT(kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_MIGRATABLE,
		    "Not here at all");
	fd = vm_create_guest_memfd(p->vm, PG, GUEST_MEMFD_FLAG_MIGRATABLE | GUEST_MEMFD_FLAG_MMAP |
				   GUEST_MEMFD_FLAG_INIT_SHARED);
	close(fd);
}

TEST_F_TIMEOUT(movable, shared_pages, TIMEOUT)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	u64 pfns[16];
	int i;

	if (!is_multi_numa_node_system())
		SKIP(return, NEEDS_NODES);
	cpu_start(c);
	share(c, 0, 16, GMEM_SEED(1));
	for (i = 0; i < 4; i++) {
		frames(p, 0, 16, pfns);
		moves(p, 0, 16);
		assert_scrubbed(pfns, 0, 16, GMEM_SEED(i + 1));
		cpu_check(c, 0, 16 * PG, GMEM_SEED(i + 1));
		host_check(p, 0, 16 * PG, GMEM_SEED(i + 1));
		/* They have the same page. */
		if (i & 1) {
			cpu_fill(c, 0, 16 * PG, GMEM_SEED(i + 2));
			host_check(p, 0, 16 * PG, GMEM_SEED(i + 2));
		} else {
			gmem_fill(p->mem, 16 * PG, GMEM_SEED(i + 2), 0);
			cpu_check(c, 0, 16 * PG, GMEM_SEED(i + 2));
		}
	}
	/* The guest takes them back, from where they are now. */
	if (!p->exits)
		gmem_convert(p->fd, 0, 16 * PG, GMEM_PRIVATE, GMEM_PRESERVE);
	cpu_unshare(c, 0, 16 * PG);
	cpu_check(c, 0, 16 * PG, GMEM_SEED(5));
	cpu_fill(c, 0, 16 * PG, GMEM_SEED(6));
	assert_errno(gmem_set_once(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);
	share(c, 0, 16, GMEM_SEED(7));
}

TEST_F_TIMEOUT(untold, kept_pages, TIMEOUT)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	u64 pfns[16];
	int i;

	if (!is_multi_numa_node_system())
		SKIP(return, NEEDS_NODES);
	cpu_start(c);
	keep_mapped(c, 0, 16, GMEM_SEED(0));
	for (i = 0; i < 4; i++) {
		frames(p, 0, 16, pfns);
		moves(p, 0, 16);
		assert_scrubbed(pfns, 0, 16, GMEM_SEED(i));
		cpu_check(c, 0, 16 * PG, GMEM_SEED(i));
		/* The host has them mapped, and does not have them. */
		TEST_ASSERT(gmem_host_refused(p->mem + i * PG) && gmem_refused_with == SIGSEGV,
			    "Refused with %d", gmem_refused_with);
		cpu_fill(c, 0, 16 * PG, GMEM_SEED(i + 1));
	}
	/* By EL2's account they are the guest's, at the addresses where they were. */
	assert_errno(gmem_set_once(p->fd, 0, PG, GMEM_PRIVATE, GMEM_PRESERVE, NULL), 0);
	assert_errno(gmem_set_once(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);
	cpu_check(c, 0, 16 * PG, GMEM_SEED(4));
	cpu_share(c, 0, 16 * PG);
	gmem_convert(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 0, 16 * PG, GMEM_SEED(4));
}

/* A page of each kind, in one call: kept, shared, given back, lost, and never had. */
TEST_F_TIMEOUT(untold, pages_of_each_kind, TIMEOUT)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	u64 pfns[5];
	int i;

	if (!is_multi_numa_node_system())
		SKIP(return, NEEDS_NODES);
	cpu_start(c);
	keep_mapped(c, 0, 1, GMEM_SEED(1));
	share(c, 1, 1, GMEM_SEED(1));
	keep_mapped(c, 2, 1, GMEM_SEED(1));
	cpu_relinquish(c, 2 * PG, PG);
	cpu_fill(c, 3 * PG, PG, GMEM_SEED(1));
	assert_errno(gmem_punch(p->fd, 3 * PG, PG), 0);
	gmem_convert(p->fd, 3 * PG, 2 * PG, GMEM_SHARED, GMEM_PRESERVE);
	gmem_fill(p->mem + 3 * PG, 2 * PG, GMEM_SEED(1), 3 * PG);

	for (i = 0; i < 2; i++) {
		frames(p, 0, 5, pfns);
		moves(p, 0, 5);
		assert_scrubbed(pfns, 0, 1, GMEM_SEED(1));
		host_check(p, PG, PG, GMEM_SEED(1));
		host_check(p, 3 * PG, 2 * PG, GMEM_SEED(1));
		cpu_check(c, 0, 2 * PG, GMEM_SEED(1));
	}
	/* What it has given back it gets again, as zeroes, whatever the host has done with it. */
	gmem_fill(p->mem + 2 * PG, PG, GMEM_SEED(2), 2 * PG);
	cpu_check(c, 2 * PG, PG, GMEM_ZEROES);
	cpu_fill(c, 2 * PG, PG, GMEM_SEED(3));
	gmem_convert(p->fd, 3 * PG, 2 * PG, GMEM_PRIVATE, GMEM_PRESERVE);
	cpu_assert_lost(c, 3 * PG);
	cpu_check(c, 4 * PG, PG, GMEM_SEED(1));
	cpu_check(c, 2 * PG, PG, GMEM_SEED(3));
	cpu_check(c, 0, 2 * PG, GMEM_SEED(1));
}

/* Memory that is about to fail: the guest does not notice. */
TEST_F_TIMEOUT(untold, soft_offline_of_a_kept_page, TIMEOUT)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	u64 pfns[4], after[4];
	int i;

	cpu_start(c);
	keep_mapped(c, 0, 2, GMEM_SEED(1));
	share(c, 2, 2, GMEM_SEED(1));
	frames(p, 0, 4, pfns);
	for (i = 0; i < 4; i++)
		TEST_ASSERT(!madvise(p->mem + i * PG, PG, MADV_SOFT_OFFLINE),
			    "MADV_SOFT_OFFLINE: errno %d", errno);
	frames(p, 0, 4, after);
	for (i = 0; i < 4; i++)
		TEST_ASSERT(pfns[i] != after[i] && is_poisoned(pfns[i]) && !is_poisoned(after[i]),
			    "Page %d is in use", i);
	gmem_dirty_free_pages();
	cpu_check(c, 0, 4 * PG, GMEM_SEED(1));
	host_check(p, 2 * PG, 2 * PG, GMEM_SEED(1));
}

/* --- Compaction, of pages that the host cannot map -------------------------------- */

static void compact(void)
{
	int fd = open("/proc/sys/vm/compact_memory", O_WRONLY);

	TEST_ASSERT(fd >= 0 && write(fd, "1", 1) == 1, "compact_memory: errno %d", errno);
	close(fd);
}

/*
 * Spreads the pages, which are the host's and end as the guest's, over a node's memory.
 * Compaction fills one end of it with what it finds at the other.
 */
static void spread(struct cpu *c, u64 step, u64 between, u64 *pfns)
{
	u8 *others[NPAGES];
	struct pvm *p = c->p;
	u64 page, at, i = 0;

	pin_self_to_cpu(0);
	gmem_convert(p->fd, 0, NPAGES * PG, GMEM_SHARED, GMEM_PRESERVE);
	for (page = 0; page < NPAGES; page += step) {
		gmem_fill(p->mem + page * PG, step * PG, GMEM_SEED(1), page * PG);
		others[i] = kvm_mmap(between, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				     -1);
		for (at = 0; at < between; at += PG)
			others[i][at] = 0x5a;
		i++;
	}
	frames(p, 0, NPAGES, pfns);
	while (i--)
		kvm_munmap(others[i], between);
	gmem_convert(p->fd, 0, NPAGES * PG, GMEM_PRIVATE, GMEM_PRESERVE);
	cpu_check(c, 0, NPAGES * PG, GMEM_SEED(1));
}

TEST_F_TIMEOUT(movable, compaction_of_private_pages, 2 * TIMEOUT)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	u64 before[NPAGES], after[NPAGES], moved = 0, counted, i;

	cpu_start(c);
	spread(c, 8, SZ_16M, before);
	cpu_fill(c, 0, NPAGES * PG, GMEM_SEED(2));
	compact();
	counted = migrated(p);
	assert_errno(gmem_set_once(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);
	cpu_check(c, 0, NPAGES * PG, GMEM_SEED(2));
	share(c, 0, NPAGES, GMEM_SEED(3));
	frames(p, 0, NPAGES, after);
	for (i = 0; i < NPAGES; i++) {
		if (before[i] == after[i])
			continue;
		was_scrubbed(before[i], i, GMEM_SEED(2));
		moved++;
	}
	TEST_ASSERT(moved <= counted, "%lu of %lu were counted", counted, moved);
	if (!moved)
		SKIP(return, "no private page was in compaction's way");
	TH_LOG("%lu of %lu private pages moved", moved, NPAGES);
}

/* --- While the guest runs --------------------------------------------------------- */

struct mover {
	struct pvm *p;
	_Atomic int running;
	u64 moved, stayed;
};

static void *move_all(void *arg)
{
	struct mover *m = arg;
	int status[NPAGES], node = 0;
	u64 i;

	while (m->running) {
		node = !node;
		TEST_ASSERT(move_to(m->p, 0, NPAGES, node, status) >= 0, "move_pages: errno %d",
			    errno);
		for (i = 0; i < NPAGES; i++)
			*(status[i] == node ? &m->moved : &m->stayed) += 1;
	}
	return NULL;
}

static void *run(void *arg)
{
	TEST_ASSERT(cpu_run(arg), "A fault that nobody sees to");
	return NULL;
}

/* Shares pages and takes them back, and checks what it has written, with the pages on the move. */
TEST_F_TIMEOUT(untold, storm, 2 * TIMEOUT)
{
	struct pvm *p = &self->p;
	struct mover m = { .p = p, .running = 1 };
	pthread_t mover, vcpus[NVCPUS];
	u64 counted;
	int i;

	if (!is_multi_numa_node_system())
		SKIP(return, NEEDS_NODES);
	for (i = 0; i < NVCPUS; i++)
		cpu_start(&p->cpu[i]);
	keep_mapped(&p->cpu[0], 0, NPAGES, GMEM_SEED(1));
	counted = migrated(p);
	for (i = 0; i < NVCPUS; i++) {
		p->cpu[i].cmd->op = GMEM_OP_STORM;
		p->cpu[i].cmd->gpa = GMEM_GPA + i * NPAGES / NVCPUS * PG;
		p->cpu[i].cmd->size = NPAGES / NVCPUS * PG;
		p->cpu[i].cmd->pattern = 20000;
		p->cpu[i].cmd->pos = i + 1;
		pthread_create(&vcpus[i], NULL, run, &p->cpu[i]);
	}
	pthread_create(&mover, NULL, move_all, &m);
	for (i = 0; i < NVCPUS; i++)
		pthread_join(vcpus[i], NULL);
	m.running = 0;
	pthread_join(mover, NULL);

	for (i = 0; i < NVCPUS; i++)
		TEST_ASSERT(!p->cpu[i].cmd->value, "The guest has lost %ld pages",
			    (long)p->cpu[i].cmd->value);
	TEST_ASSERT(migrated(p) > counted, "Nothing has moved");
	TH_LOG("%lu moves, %lu did not", migrated(p) - counted, not_migrated(p));
}

/* --- What a hostile VMM may try ------------------------------------------------------ */

/* Between the guest's request and the answer: the page that it is about is the one that moves. */
TEST_F_TIMEOUT(told, moved_while_the_guest_waits, TIMEOUT)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	int i;

	if (!is_multi_numa_node_system())
		SKIP(return, NEEDS_NODES);
	cpu_start(c);
	share(c, 0, 4, GMEM_SEED(1));
	/* Unshared where it is now, refused, and unshared without a move after that. */
	for (i = 0; i < 3; i++) {
		until_told(c, GMEM_OP_UNSHARE, i * PG);
		if (i < 2)
			moves(p, i, 1);
		if (i != 1)
			gmem_convert(p->fd, i * PG, PG, GMEM_PRIVATE, GMEM_PRESERVE);
		c->vcpu->run->hypercall.ret = i == 1 ? EPERM : 0;
		TEST_ASSERT(cpu_run(c), "A fault");
		TEST_ASSERT_EQ((s64)c->cmd->value, i == 1 ? INVALID_PARAMETER : 0);
	}
	cpu_check(c, 0, 4 * PG, GMEM_SEED(1));
	host_check(p, PG, PG, GMEM_SEED(1));
	assert_errno(gmem_set_once(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);
	/* Shared, moved, and only then answered. */
	until_told(c, GMEM_OP_SHARE, 0);
	gmem_convert(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 0, PG, GMEM_SEED(1));
	moves(p, 0, 1);
	c->vcpu->run->hypercall.ret = 0;
	TEST_ASSERT(cpu_run(c), "A fault");
	TEST_ASSERT_EQ(c->cmd->value, 0);
	cpu_check(c, 0, 4 * PG, GMEM_SEED(1));
	host_check(p, 0, 2 * PG, GMEM_SEED(1));
}

/* Who has pinned a page goes on having it, and so does the guest. */
TEST_F_TIMEOUT(movable, pinned_page_stays, TIMEOUT)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	struct iovec iov = { .iov_base = p->mem, .iov_len = PG };
	int pipes[2], status[2], node;
	u64 pfn, failed;
	u8 byte;

	if (!is_multi_numa_node_system())
		SKIP(return, NEEDS_NODES);
	cpu_start(c);
	share(c, 0, 2, GMEM_SEED(1));
	moves(p, 0, 2);
	TEST_ASSERT(!pipe(pipes) && vmsplice(pipes[1], &iov, 1, 0) == PG, "vmsplice: errno %d",
		    errno);
	pfn = gmem_frame_of(p->mem);
	node = node_of(p, 0);
	failed = not_migrated(p);
	move_to(p, 0, 2, !node, status);
	/* The kernel tells no status of pages that it has tried together with one that stays. */
	TEST_ASSERT_EQ(gmem_frame_of(p->mem), pfn);
	TEST_ASSERT_EQ(node_of(p, 1), !node);
	TEST_ASSERT(not_migrated(p) > failed, "No failure was counted");
	c->cmd->op = GMEM_OP_WRITE;
	c->cmd->gpa = GMEM_GPA;
	c->cmd->value = 0x33;
	TEST_ASSERT(cpu_run(c), "A fault");
	TEST_ASSERT_EQ(read(pipes[0], &byte, 1), 1);
	TEST_ASSERT_EQ(byte, 0x33);
	close(pipes[0]);
	close(pipes[1]);
	cpu_fill(c, 0, PG, GMEM_SEED(1));
	moves(p, 0, 1);
	cpu_check(c, 0, 2 * PG, GMEM_SEED(1));
}

/* Files that do not ask for it. */
TEST_F_TIMEOUT(pvm, file_without_the_flag_stays, TIMEOUT)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	u64 before[4], after[4];
	int status[4], i;

	if (!is_multi_numa_node_system())
		SKIP(return, NEEDS_NODES);
	cpu_start(c);
	share(c, 0, 4, GMEM_SEED(1));
	frames(p, 0, 4, before);
	move_to(p, 0, 4, !node_of(p, 0), status);
	TEST_ASSERT(madvise(p->mem, PG, MADV_SOFT_OFFLINE), "Taken offline all the same");
	compact();
	frames(p, 0, 4, after);
	for (i = 0; i < 4; i++)
		TEST_ASSERT_EQ(before[i], after[i]);
	TEST_ASSERT_EQ(migrated(p), 0);
	cpu_check(c, 0, 4 * PG, GMEM_SEED(1));
	host_check(p, 0, 4 * PG, GMEM_SEED(1));
}

TEST_HARNESS_MAIN
