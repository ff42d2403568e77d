// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of TDs under KVM's mirrored page table that move to other memory: a page in the
 * S-EPT is moved by the simulated TDX module, any other is copied. In both cases the
 * guest finds its bytes, and a step that fails leaves the page where it was, or the VM
 * dead.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>

#include "gmem_move.h"

#define PRESENT		KVM_GMEM_EMULATE_STATE_PRESENT
#define NONE		KVM_GMEM_EMULATE_STATE_NONE
#define INPUT		KVM_GMEM_EMULATE_ERROR_INPUT
#define BUSY		KVM_GMEM_EMULATE_ERROR_BUSY
#define ALWAYS		1000

#define NEEDS_MOVES	"needs TDs that are simulated, " SOFT_OFFLINE " and HWPOISON_INJECT"

static bool td_moves(void)
{
	return gmem_emulates(KVM_GMEM_EMULATE_TDX_MIRROR) && !access(SOFT_OFFLINE, W_OK) &&
	       can_poison_pfn();
}

/* A TD that is not launched yet, and the frames of its pages, which are shared so far. */
struct td {
	struct hz h;
	u64 frames[NPAGES];
};

static struct hz *td_create(struct td *td, u64 npages)
{
	struct hz *h = &td->h;
	u64 page;

	memset(h, 0, sizeof(*h));
	h->npages = npages;
	h->vm = gmem_vm_create_emulated(KVM_GMEM_EMULATE_TDX_MIRROR, 0, ARRAY_SIZE(h->vcpus),
					npages, h->vcpus);
	gmem_area_create(&h->a, h->vm, GMEM_SLOT, GMEM_GPA, OFF(npages), GMEM_MOVABLE);
	for (page = 0; page < npages && page < NPAGES; page++) {
		host_fill(h, page, 1, GMEM_SEED(1));
		td->frames[page] = gmem_frame_of(hz_hva(h, page));
		TEST_ASSERT(td->frames[page], "No frame number of page %lu", page);
	}
	return h;
}

static void td_launch(struct hz *h)
{
	u32 i;

	TEST_ASSERT_EQ(gmem_launch_finish(h->vm), 0);
	for (i = 0; i < ARRAY_SIZE(h->vcpus); i++)
		gmem_guest_start(h->vcpus[i]);
}

/* Also for a VM that is dead, whose slots are deleted with it. */
static void td_destroy(struct hz *h)
{
	kvm_munmap(h->a.hva, h->a.size);
	kvm_close(h->a.fd);
	kvm_vm_free(h->vm);
}

#define state_is(h, page, want)		TEST_ASSERT_EQ(gmem_state((h)->vm, page_gpa(h, page)), want)

/* The guest's pages are private and in the S-EPT, with these bytes. */
static void td_owns(struct hz *h, u64 page, u64 n, u32 pattern)
{
	u64 i;

	convert(h, page, n, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(h, page, n, pattern);
	for (i = page; i < page + n; i++)
		state_is(h, i, PRESENT);
}

/* The guest has the page in other memory, with its bytes, and nothing else has changed. */
static void is_replaced(struct td *td, u64 page, u64 state, u32 pattern)
{
	struct hz *h = &td->h;
	u64 moved = migrated(h);
	int r;

	state_is(h, page, state);
	r = replace(td->frames[page]);
	TEST_ASSERT(!r, "soft_offline_page: errno %d (%s)", r, strerror(r));
	TEST_ASSERT_EQ(migrated(h), moved + 1);
	/* From here on others have the old memory. */
	use_again(td->frames[page]);
	state_is(h, page, state);
	guest_sees(h, page, 1, pattern);
	TEST_ASSERT_EQ(gmem_destroyed(h->vm, h->a.gpa), 0);
}

/* The page is where it was, and the guest has it as before. */
static void is_not_replaced(struct td *td, u64 page, u64 state, u32 pattern)
{
	struct hz *h = &td->h;
	u64 moved = migrated(h);

	state_is(h, page, state);
	TEST_ASSERT(replace(td->frames[page]), "The page was replaced");
	TEST_ASSERT_EQ(migrated(h), moved);
	gmem_dirty_free_pages();
	state_is(h, page, state);
	guest_sees(h, page, 1, pattern);
	TEST_ASSERT_EQ(gmem_destroyed(h->vm, h->a.gpa), 0);
}

/* Pages that the launch has added, that the guest has used, that it has not, and shared ones. */
HAZARD(pages_of_each_kind)
{
	struct hz *h;
	struct td td;
	u64 page;

	HZ_REQUIRE(td_moves(), NEEDS_MOVES);
	h = td_create(&td, NPAGES);
	convert(h, 0, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT_EQ(gmem_launch_update(h->vm, 0, page_gpa(h, 0), PG, NULL, NULL), 0);
	td_launch(h);
	td_owns(h, 1, 1, GMEM_SEED(2));
	convert(h, 2, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_sees(h, 3, 1, GMEM_SEED(1));

	is_replaced(&td, 0, PRESENT, GMEM_SEED(1));
	is_replaced(&td, 1, PRESENT, GMEM_SEED(2));
	is_replaced(&td, 3, NONE, GMEM_SEED(1));
	/* The guest accepts the page when it uses it, and finds zeroes. */
	TEST_ASSERT_EQ(replace(td.frames[2]), 0);
	use_again(td.frames[2]);
	state_is(h, 2, NONE);
	guest_sees(h, 2, 1, GMEM_ZEROES);
	state_is(h, 2, PRESENT);

	/* They are like any others where they are now. */
	host_refused(h, 0, 3);
	host_sees(h, 3, 1, GMEM_SEED(1));
	guest_fill(h, 0, 4, GMEM_SEED(3));
	guest_sees(h, 0, 4, GMEM_SEED(3));
	hz_refused(h, 0, 3, GMEM_SHARED, GMEM_PRESERVE, EOPNOTSUPP, 0);
	convert(h, 0, 4, GMEM_SHARED, GMEM_ZERO);
	for (page = 0; page < 4; page++) {
		state_is(h, page, NONE);
		host_sees(h, page, 1, GMEM_ZEROES);
		TEST_ASSERT(gmem_frame_of(hz_hva(h, page)) != td.frames[page],
			    "Page %lu is where it was", page);
	}
	guest_sees(h, 0, 4, GMEM_ZEROES);
	td_destroy(h);
}

/* A private page that the guest has not used keeps its bytes for a conversion. */
HAZARD(unused_private_page)
{
	struct hz *h;
	struct td td;

	HZ_REQUIRE(td_moves(), NEEDS_MOVES);
	h = td_create(&td, NPAGES);
	td_launch(h);
	convert(h, 0, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT_EQ(replace(td.frames[0]), 0);
	use_again(td.frames[0]);
	convert(h, 0, 1, GMEM_SHARED, GMEM_PRESERVE);
	host_sees(h, 0, 1, GMEM_SEED(1));
	guest_sees(h, 0, 1, GMEM_SEED(1));
	td_destroy(h);
}

/* A page that was added to a TD whose launch has not ended. */
HAZARD(before_the_launch_ends)
{
	struct hz *h;
	struct td td;

	HZ_REQUIRE(td_moves(), NEEDS_MOVES);
	h = td_create(&td, NPAGES);
	convert(h, 0, 2, GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT_EQ(gmem_launch_update(h->vm, 0, page_gpa(h, 0), OFF(2), NULL, NULL), 0);
	TEST_ASSERT_EQ(replace(td.frames[1]), 0);
	use_again(td.frames[1]);
	state_is(h, 1, PRESENT);
	td_launch(h);
	guest_sees(h, 0, 2, GMEM_SEED(1));
	td_destroy(h);
}

HAZARD(shared_pages_between_nodes)
{
	struct hz *h;
	struct td td;
	int i;

	HZ_REQUIRE(td_moves(), NEEDS_MOVES);
	HZ_REQUIRE(two_nodes(), NEEDS_NODES);
	h = td_create(&td, NPAGES);
	td_launch(h);
	td_owns(h, 4, 1, GMEM_SEED(9));
	for (i = 1; i <= 4; i++) {
		guest_sees(h, 0, 4, GMEM_SEED(i));
		moves(h, 0, 4, !node_of(hz_hva(h, 0)));
		gmem_dirty_free_pages();
		guest_sees(h, 0, 4, GMEM_SEED(i));
		host_sees(h, 0, 4, GMEM_SEED(i));
		guest_fill(h, 0, 4, GMEM_SEED(i + 1));
		host_sees(h, 0, 4, GMEM_SEED(i + 1));
	}
	guest_sees(h, 4, 1, GMEM_SEED(9));
	TEST_ASSERT_EQ(migrated(h), 16);
	td_destroy(h);
}

/* Its neighbours, and what another TD has at the same address, stay where they are. */
HAZARD(other_pages_stay)
{
	struct td td, other;
	struct hz *h, *o;

	HZ_REQUIRE(td_moves(), NEEDS_MOVES);
	h = td_create(&td, NPAGES);
	o = td_create(&other, NPAGES);
	td_launch(h);
	td_launch(o);
	td_owns(h, 0, 3, GMEM_SEED(2));
	td_owns(o, 0, 3, GMEM_SEED(3));
	is_replaced(&td, 1, PRESENT, GMEM_SEED(2));
	guest_sees(h, 0, 3, GMEM_SEED(2));
	guest_sees(o, 0, 3, GMEM_SEED(3));
	TEST_ASSERT_EQ(migrated(o), 0);
	guest_fill(h, 0, 3, GMEM_SEED(4));
	guest_sees(o, 0, 3, GMEM_SEED(3));
	is_replaced(&other, 1, PRESENT, GMEM_SEED(3));
	guest_sees(h, 0, 3, GMEM_SEED(4));
	td_destroy(o);
	td_destroy(h);
}

/* A page of a slot that is gone is in no S-EPT, and keeps its bytes for the host. */
HAZARD(page_without_a_slot)
{
	struct hz *h;
	struct td td;

	HZ_REQUIRE(td_moves(), NEEDS_MOVES);
	h = td_create(&td, NPAGES);
	td_launch(h);
	td_owns(h, 0, 1, GMEM_SEED(2));
	convert(h, 1, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_area_unbind(&h->a);
	TEST_ASSERT_EQ(replace(td.frames[0]), 0);
	use_again(td.frames[0]);
	TEST_ASSERT_EQ(replace(td.frames[1]), 0);
	use_again(td.frames[1]);
	gmem_area_bind(&h->a);
	guest_sees(h, 0, 1, GMEM_ZEROES);
	convert(h, 1, 1, GMEM_SHARED, GMEM_PRESERVE);
	host_sees(h, 1, 1, GMEM_SEED(1));
	td_destroy(h);
}

static void hold_fault(struct hz *h, u64 page, bool hold, u64 *held)
{
	struct kvm_gmem_emulate args = {
		.op = KVM_GMEM_EMULATE_OP_HOLD,
		.gpa = page_gpa(h, page),
		.value = { KVM_GMEM_EMULATE_HOLD_FAULT, hold },
	};

	TEST_ASSERT_EQ(gmem_emulate(h->vm, &args), 0);
	if (held)
		*held = args.value[2];
}

static void *touch(void *arg)
{
	struct hz *h = arg;

	return (void *)(long)__gmem_guest_do(h->vcpus[1], GMEM_OP_READ, page_gpa(h, 0), 1, 0, 0, 0);
}

/* A vCPU that is about to put the page into the S-EPT has a reference to it. */
HAZARD(page_that_is_being_mapped_stays)
{
	pthread_t thread;
	u64 held = 0;
	struct hz *h;
	struct td td;
	void *r;

	HZ_REQUIRE(td_moves(), NEEDS_MOVES);
	h = td_create(&td, NPAGES);
	td_launch(h);
	convert(h, 0, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	hold_fault(h, 0, true, NULL);
	kvm_pthread_create(&thread, NULL, touch, h);
	while (!held) {
		sched_yield();
		hold_fault(h, 0, true, &held);
	}
	TEST_ASSERT(replace(td.frames[0]), "The page was replaced");
	hold_fault(h, 0, false, NULL);
	kvm_pthread_join(thread, &r);
	TEST_ASSERT(!r, "The vCPU: %ld", (long)r);
	state_is(h, 0, PRESENT);
	guest_fill(h, 0, 1, GMEM_SEED(2));
	is_replaced(&td, 0, PRESENT, GMEM_SEED(2));
	td_destroy(h);
}

/* --- A guest that runs meanwhile ------------------------------------------------- */

struct worker {
	struct hz *h;
	pthread_t thread;
	atomic_bool stop;
	int r;
	u64 bad;
};

/* Fills the pages with other bytes all the time, and checks them. */
static void *work(void *arg)
{
	struct worker *w = arg;
	struct hz *h = w->h;
	u64 seed;

	w->bad = GMEM_ALL_GOOD;
	for (seed = 1; !atomic_load(&w->stop) && !w->r && w->bad == GMEM_ALL_GOOD;
	     seed = seed % 100 + 1) {
		w->r = __gmem_guest_do(h->vcpus[1], GMEM_OP_FILL, page_gpa(h, 0), OFF(4),
				       GMEM_SEED(seed), 0, 0);
		if (w->r)
			break;
		w->r = __gmem_guest_do(h->vcpus[1], GMEM_OP_CHECK, page_gpa(h, 0), OFF(4),
				       GMEM_SEED(seed), 0, 0);
		w->bad = gmem_cmd_of(h->vcpus[1])->bad;
	}
	return NULL;
}

HAZARD(running_guest)
{
	struct worker w = {};
	struct hz *h;
	struct td td;
	u64 page;
	int i, r = EBUSY;

	HZ_REQUIRE(td_moves(), NEEDS_MOVES);
	h = td_create(&td, NPAGES);
	td_launch(h);
	td_owns(h, 0, 3, GMEM_SEED(1));
	guest_fill(h, 3, 1, GMEM_SEED(1));
	w.h = h;
	kvm_pthread_create(&w.thread, NULL, work, &w);
	for (page = 0; page < 4; page++) {
		/* A vCPU that faults on the page has a reference to it. */
		for (i = 0; i < 1000; i++) {
			r = replace(td.frames[page]);
			if (!r)
				break;
			sched_yield();
		}
		TEST_ASSERT(!r, "Page %lu: errno %d", page, r);
		use_again(td.frames[page]);
	}
	atomic_store(&w.stop, true);
	kvm_pthread_join(w.thread, NULL);
	TEST_ASSERT(!w.r && w.bad == GMEM_ALL_GOOD, "The vCPU: %d, wrong byte at %#lx", w.r, w.bad);
	TEST_ASSERT_EQ(migrated(h), 4);
	TEST_ASSERT_EQ(gmem_destroyed(h->vm, h->a.gpa), 0);
	td_destroy(h);
}

#define SPREAD_PAGES	64

/* Returns how many pages were moved, which can be none if all lay well. */
static u64 compact_private(u64 between)
{
	struct hz *h;
	struct td td;
	u64 moved;

	h = td_create(&td, SPREAD_PAGES);
	TEST_ASSERT_EQ(gmem_punch(h->a.fd, 0, OFF(SPREAD_PAGES)), 0);
	spread(h, SPREAD_PAGES, 8, between, true);
	td_launch(h);
	td_owns(h, 0, SPREAD_PAGES, GMEM_SEED(2));
	compact();
	gmem_dirty_free_pages();
	moved = migrated(h);
	host_refused(h, 0, SPREAD_PAGES);
	guest_sees(h, 0, SPREAD_PAGES, GMEM_SEED(2));
	guest_fill(h, 0, SPREAD_PAGES, GMEM_SEED(3));
	guest_sees(h, 0, SPREAD_PAGES, GMEM_SEED(3));
	TEST_ASSERT_EQ(gmem_destroyed(h->vm, h->a.gpa), 0);
	td_destroy(h);
	return moved;
}

HAZARD(compaction_of_private_pages)
{
	u64 between, moved = 0;

	HZ_REQUIRE(td_moves(), NEEDS_MOVES);
	for (between = SZ_16M; between <= SZ_128M && !moved; between *= 2)
		moved = compact_private(between);
	HZ_REQUIRE(moved, "no private page was in compaction's way");
	pr_info("# %lu of %d private pages moved\n", moved, SPREAD_PAGES);
}

/* --- Steps that fail ----------------------------------------------------------------- */

/* Each step is tried once more after all vCPUs have left the guest. */
HAZARD(step_that_is_busy_once)
{
	static const u64 steps[] = {
		KVM_GMEM_EMULATE_FAIL_BLOCK,
		KVM_GMEM_EMULATE_FAIL_TRACK,
		KVM_GMEM_EMULATE_FAIL_RELOCATE,
	};
	struct hz *h;
	struct td td;
	u32 i;

	HZ_REQUIRE(td_moves(), NEEDS_MOVES);
	h = td_create(&td, NPAGES);
	td_launch(h);
	td_owns(h, 0, ARRAY_SIZE(steps), GMEM_SEED(2));
	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		gmem_inject(h->vm, page_gpa(h, i), steps[i], BUSY, 1);
		is_replaced(&td, i, PRESENT, GMEM_SEED(2));
	}
	td_destroy(h);
}

/* The page is unblocked, and it moves when it is tried again. */
HAZARD(failing_step_is_undone)
{
	static const struct {
		u64 step, error, times;
	} failures[] = {
		{ KVM_GMEM_EMULATE_FAIL_BLOCK, INPUT, 1 },
		{ KVM_GMEM_EMULATE_FAIL_BLOCK, BUSY, 2 },
		{ KVM_GMEM_EMULATE_FAIL_RELOCATE, INPUT, 1 },
		{ KVM_GMEM_EMULATE_FAIL_RELOCATE, BUSY, 2 },
		{ KVM_GMEM_EMULATE_FAIL_UNBLOCK, BUSY, 1 },
	};
	struct hz *h;
	struct td td;
	u32 i;

	HZ_REQUIRE(td_moves(), NEEDS_MOVES);
	h = td_create(&td, NPAGES);
	td_launch(h);
	td_owns(h, 0, ARRAY_SIZE(failures), GMEM_SEED(2));
	for (i = 0; i < ARRAY_SIZE(failures); i++) {
		gmem_inject(h->vm, page_gpa(h, i), failures[i].step, failures[i].error,
			    failures[i].times);
		is_not_replaced(&td, i, PRESENT, GMEM_SEED(2));
		is_replaced(&td, i, PRESENT, GMEM_SEED(2));
	}
	TEST_ASSERT(vm_get_stat(h->vm, gmem_migrate_failed) >= ARRAY_SIZE(failures),
		    "Failures are not counted");
	td_destroy(h);
}

/* The guest has its page, and nobody gets the old memory, whose cache lines may be the guest's. */
HAZARD(old_memory_is_kept)
{
	struct hz *h;
	struct td td;

	HZ_REQUIRE(td_moves(), NEEDS_MOVES);
	h = td_create(&td, NPAGES);
	td_launch(h);
	td_owns(h, 0, 2, GMEM_SEED(2));
	gmem_inject(h->vm, page_gpa(h, 0), KVM_GMEM_EMULATE_FAIL_FLUSH, INPUT, 1);
	TEST_ASSERT_EQ(replace(td.frames[0]), 0);
	TEST_ASSERT_EQ(migrated(h), 1);
	gmem_dirty_free_pages();
	guest_sees(h, 0, 2, GMEM_SEED(2));
	guest_fill(h, 0, 2, GMEM_SEED(3));
	is_replaced(&td, 1, PRESENT, GMEM_SEED(3));
	guest_sees(h, 0, 2, GMEM_SEED(3));
	convert(h, 0, 2, GMEM_SHARED, GMEM_ZERO);
	host_sees(h, 0, 2, GMEM_ZEROES);
	td_destroy(h);
	gmem_dirty_free_pages();
}

/*
 * The page can neither be moved nor unblocked, so the VM is dead. The page has not
 * moved, and nobody gets it any more.
 */
static void kills(u64 step)
{
	struct hz *h;
	struct td td;

	h = td_create(&td, NPAGES);
	td_launch(h);
	td_owns(h, 0, 2, GMEM_SEED(2));
	gmem_inject(h->vm, page_gpa(h, 0), step, INPUT, ALWAYS);
	TEST_ASSERT(replace(td.frames[0]), "The page was replaced");
	TEST_ASSERT_EQ(__gmem_guest_do(h->vcpus[0], GMEM_OP_READ, page_gpa(h, 1), 1, 0, 0, 0), -EIO);
	/* It is not tried again. */
	TEST_ASSERT(replace(td.frames[0]), "The page was replaced");
	TEST_ASSERT(replace(td.frames[1]), "A page of a dead VM was replaced");
	TEST_ASSERT_EQ(migrated(h), 0);
	host_refused(h, 0, 2);
	td_destroy(h);
	gmem_dirty_free_pages();
}

HAZARD(tracking_fails)
{
	HZ_REQUIRE(td_moves(), NEEDS_MOVES);
	kills(KVM_GMEM_EMULATE_FAIL_TRACK);
}

HAZARD(unblocking_fails)
{
	HZ_REQUIRE(td_moves(), NEEDS_MOVES);
	kills(KVM_GMEM_EMULATE_FAIL_UNBLOCK);
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
