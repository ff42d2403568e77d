// SPDX-License-Identifier: GPL-2.0
/*
 * Races of moving pages of a guest_memfd with a running guest, conversions, holes,
 * memslots, KVM_MAP_MEMORY, and the end of the process.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/wait.h>

#include "gmem_move.h"

/* Moves pages back and forth until it is stopped. */
struct mover {
	pthread_t thread;
	struct hz *h;
	u64 first, n;
	bool compacts;
	atomic_bool stop;
};

static void *mover(void *arg)
{
	struct mover *m = arg;
	int status[MAX_MOVED], node = 0;

	while (!atomic_load(&m->stop)) {
		node = !node;
		move_by(0, hz_hva(m->h, m->first), m->n, node, MPOL_MF_MOVE_ALL, status);
		if (m->compacts)
			compact();
		sched_yield();
	}
	return NULL;
}

static void mover_start(struct mover *m, struct hz *h, u64 first, u64 n, bool compacts)
{
	m->h = h;
	m->first = first;
	m->n = n;
	m->compacts = compacts;
	atomic_store(&m->stop, false);
	kvm_pthread_create(&m->thread, NULL, mover, m);
}

static void mover_stop(struct mover *m)
{
	atomic_store(&m->stop, true);
	kvm_pthread_join(m->thread, NULL);
}

#define ROUNDS		40
/* The number of pages to be moved meanwhile, however long that takes. */
#define MOVES		100

#define BUSY(h, i)	((i) < ROUNDS || migrated(h) < MOVES)

/* The guest counts in one word of each of these pages. */
#define COUNTED		4
static u64 stop_counting;

/* Returns the number that it has reached, or ~page if the page had another number. */
static u64 guest_counts(void)
{
	u64 n = 0, page;

	while (!*(volatile u64 *)&stop_counting) {
		for (page = 0; page < COUNTED; page++) {
			volatile u64 *word = (u64 *)(GMEM_GPA + OFF(page) + 8 * page);

			if (*word != n)
				return ~page;
			*word = n + 1;
		}
		n++;
	}
	return n;
}

static void *counting_guest(void *arg)
{
	struct hz *h = arg;
	int r;

	r = __gmem_guest_do(h->vcpus[0], GMEM_OP_CALL, (gpa_t)guest_counts, 0, 0, 0, 0);
	gmem_guest_ok(h->vcpus[0], r);
	return NULL;
}

/*
 * Guest and host count in pages that move all the time. No write is lost or seen late.
 */
HAZARD(running_guest)
{
	volatile u64 *stop;
	pthread_t thread;
	struct mover m;
	u64 i, n, page;
	struct hz h;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	hz_create(&h, COUNTED, GMEM_MOVABLE, 1);
	for (page = 0; page < COUNTED; page++)
		*hz_hva(&h, page) = 0;
	/* If the last page can be private, only compaction can move it. */
	may_convert(&h, COUNTED - 1, 1);
	stop = addr_gva2hva(h.vm, (gva_t)&stop_counting);
	*stop = 0;
	kvm_pthread_create(&thread, NULL, counting_guest, &h);
	mover_start(&m, &h, 0, COUNTED, true);
	for (i = 0; BUSY(&h, i / 100); i++) {
		for (page = 0; page < COUNTED - 1; page++) {
			volatile u64 *word = (volatile u64 *)(hz_hva(&h, page) + 2048);

			TEST_ASSERT(*word == i, "Page %lu: the host has counted to %lu, and sees %lu",
				    page, i, *word);
			*word = i + 1;
		}
	}
	mover_stop(&m);
	*stop = 1;
	kvm_pthread_join(thread, NULL);
	n = gmem_cmd_of(h.vcpus[0])->value;
	TEST_ASSERT(n < ~0ul - COUNTED, "The guest sees another number in page %lu", ~n);
	TEST_ASSERT(n, "The guest has not counted");
#ifdef __x86_64__
	convert(&h, COUNTED - 1, 1, GMEM_SHARED, GMEM_PRESERVE);
#endif
	for (page = 0; page < COUNTED; page++)
		TEST_ASSERT_EQ(*(volatile u64 *)(hz_hva(&h, page) + 8 * page), n);
	pr_info("# %lu moves, guest counted to %lu, host to %lu\n", migrated(&h), n, i);
	mg_destroy(&h);
}

#ifdef __x86_64__
/* The attribute stays with the page of the file, whatever frame that has. */
HAZARD(conversions_between_moves)
{
	struct hz h;
	int i, node;
	u64 page;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	hz_create(&h, 4, GMEM_MOVABLE, 1);
	host_fill(&h, 0, 4, GMEM_SEED(0));
	for (i = 0; i < 8; i++) {
		page = i & 3;
		node = !node_of(hz_hva(&h, page));
		moves(&h, page, 1, node);
		convert(&h, page, 1, GMEM_PRIVATE, GMEM_PRESERVE);
		host_refused(&h, page, 1);
		attributes_are(&h, page, 1, GMEM_PRIVATE);
		guest_sees(&h, page, 1, GMEM_SEED(i / 4));
		guest_fill(&h, page, 1, GMEM_SEED(i / 4 + 1));
		if (!page)
			compact();
		host_refused(&h, page, 1);
		guest_sees(&h, page, 1, GMEM_SEED(i / 4 + 1));
		convert(&h, page, 1, GMEM_SHARED, GMEM_PRESERVE);
		host_sees(&h, page, 1, GMEM_SEED(i / 4 + 1));
		moves(&h, page, 1, !node_of(hz_hva(&h, page)));
		attributes_are(&h, 0, 4, GMEM_SHARED);
		guest_sees(&h, page, 1, GMEM_SEED(i / 4 + 1));
	}
	mg_destroy(&h);
}

/* The policy holds after the call, and continues to hold. */
HAZARD(conversions_race_moves)
{
	struct mover m;
	struct hz h;
	u64 i, page, n;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	hz_create(&h, NPAGES, GMEM_MOVABLE, 1);
	host_fill(&h, 0, NPAGES, GMEM_SEED(0));
	mover_start(&m, &h, 0, NPAGES, true);
	for (i = 0; BUSY(&h, i); i++) {
		const u32 seed = GMEM_SEED(i);

		page = i % (NPAGES - 3);
		n = 1 + i % 3;
		host_fill(&h, page, n, seed);
		hz_convert_racing(&h, page, n, GMEM_PRIVATE, GMEM_PRESERVE);
		host_refused(&h, page, n);
		guest_sees(&h, page, n, seed);
		guest_fill(&h, page, n, seed + 1);
		hz_convert_racing(&h, page, n, GMEM_SHARED, i & 1 ? GMEM_ZERO : GMEM_PRESERVE);
		host_sees(&h, page, n, i & 1 ? GMEM_ZEROES : seed + 1);
		host_fill(&h, page, n, seed);
		hz_convert_racing(&h, page, n, GMEM_PRIVATE, GMEM_ZERO);
		guest_sees(&h, page, n, GMEM_ZEROES);
		hz_convert_racing(&h, page, n, GMEM_SHARED, GMEM_PRESERVE);
		host_sees(&h, page, n, GMEM_ZEROES);
	}
	mover_stop(&m);
	attributes_are(&h, 0, NPAGES, GMEM_SHARED);
	pr_info("# %lu moves, %lu rounds\n", migrated(&h), i);
	mg_destroy(&h);
}

#endif /* __x86_64__ */

HAZARD(holes_race_moves)
{
	struct mover m;
	struct hz h;
	u64 i, page;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	hz_create(&h, NPAGES, GMEM_MOVABLE, 1);
	host_fill(&h, 0, NPAGES, GMEM_SEED(0));
	mover_start(&m, &h, 0, NPAGES, false);
	for (i = 0; BUSY(&h, i); i++) {
		page = i % NPAGES;
		host_fill(&h, page, 1, GMEM_SEED(i));
		guest_sees(&h, page, 1, GMEM_SEED(i));
		TEST_ASSERT_EQ(gmem_punch(h.a.fd, OFF(page), PG), 0);
		if (i & 1)
			guest_sees(&h, page, 1, GMEM_ZEROES);
		host_sees(&h, page, 1, GMEM_ZEROES);
		guest_sees(&h, page, 1, GMEM_ZEROES);
		/* A hole does not affect the next page. */
		host_fill(&h, (page + 1) % NPAGES, 1, GMEM_SEED(i));
		guest_sees(&h, (page + 1) % NPAGES, 1, GMEM_SEED(i));
	}
	mover_stop(&m);
	pr_info("# %lu moves, %lu holes\n", migrated(&h), i);
	mg_destroy(&h);
}

/* Memslots are deleted and added while pages move, and the file is closed at the end. */
HAZARD(slots_race_moves)
{
	struct mover m;
	struct hz h;
	u64 i;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	hz_create(&h, NPAGES, GMEM_MOVABLE, 1);
	host_fill(&h, 0, NPAGES, GMEM_SEED(0));
	mover_start(&m, &h, 0, NPAGES, false);
	for (i = 0; BUSY(&h, i); i++) {
		gmem_area_unbind(&h.a);
		host_fill(&h, i % NPAGES, 1, GMEM_SEED(0));
		gmem_area_bind(&h.a);
		guest_sees(&h, 0, NPAGES, GMEM_SEED(0));
	}
	pr_info("# %lu moves, %lu slots\n", migrated(&h), i);
	/* The host's mapping keeps the inode. */
	gmem_area_unbind(&h.a);
	kvm_close(h.a.fd);
	kvm_vm_free(h.vm);
	for (i = 0; i < ROUNDS; i++)
		host_sees(&h, 0, NPAGES, GMEM_SEED(0));
	mover_stop(&m);
	kvm_munmap(h.a.hva, h.a.size);
}

HAZARD(map_memory_races_moves)
{
	struct kvm_memory_mapping args;
	struct mover m;
	struct hz h;
	u64 i;
	int r;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	hz_create(&h, NPAGES, GMEM_MOVABLE, 1);
	host_fill(&h, 0, NPAGES, GMEM_SEED(0));
	mover_start(&m, &h, 0, NPAGES, false);
	for (i = 0; BUSY(&h, i); i++) {
		args = (struct kvm_memory_mapping){ .base_address = GMEM_GPA, .size = OFF(NPAGES) };
		do {
			r = gmem_ioctl(h.vcpus[0]->fd, KVM_MAP_MEMORY, &args);
		} while ((!r && args.size) || r == EAGAIN || r == EINTR);
		TEST_ASSERT(!r, "KVM_MAP_MEMORY: errno %d (%s)", r, strerror(r));
		guest_sees(&h, 0, NPAGES, GMEM_SEED(i));
		guest_fill(&h, 0, NPAGES, GMEM_SEED(i + 1));
		host_sees(&h, i % NPAGES, 1, GMEM_SEED(i + 1));
	}
	mover_stop(&m);
	pr_info("# %lu moves, %lu calls\n", migrated(&h), i);
	mg_destroy(&h);
}

/* The parent watches it, in shared memory. */
static void doomed(volatile u64 *moved)
{
	pthread_t thread;
	struct mover m;
	struct hz h;

	hz_create(&h, NPAGES, GMEM_MOVABLE, 1);
	memset(h.a.hva, 0, h.a.size);
	kvm_pthread_create(&thread, NULL, counting_guest, &h);
	mover_start(&m, &h, 0, NPAGES, false);
	for (;;)
		*moved = migrated(&h);
}

HAZARD(killed_while_pages_move)
{
	volatile u64 *moved = kvm_mmap(PG, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	int i, status;
	pid_t pid;

	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	for (i = 0; i < 5; i++) {
		*moved = 0;
		pid = fork();
		TEST_ASSERT(pid >= 0, "fork: errno %d", errno);
		if (!pid) {
			doomed(moved);
			_exit(1);
		}
		while (*moved < 20 * (i + 1) && waitpid(pid, &status, WNOHANG) != pid)
			sched_yield();
		TEST_ASSERT(*moved, "The child has ended by itself: status %#x", status);
		TEST_ASSERT(!kill(pid, SIGKILL), "kill: errno %d", errno);
		TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
		TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status %#x", status);
	}
	/* Nobody waits for locks that the child held. */
	nodes(DEFAULT_VM);
}

int main(int argc, char *argv[])
{
	gmem_require_moves();
	return test_harness_run(argc, argv);
}
