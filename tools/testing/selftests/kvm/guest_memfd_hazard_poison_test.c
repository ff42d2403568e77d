// SPDX-License-Identifier: GPL-2.0
/*
 * Hazards of in-place conversion: memory failure, alone and in a storm.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>

#include "gmem_hazard.h"

HAZARD(h18_memory_failure_invalidates_both_kinds)
{
	static const u64 flags[] = { GMEM_MMAP_SHARED, GUEST_MEMFD_FLAG_MMAP };
	struct hz h;
	int i, j, r;
	u64 pfn;

	HZ_REQUIRE(can_poison_mapped() && can_poison_pfn(),
		   "needs MEMORY_FAILURE and HWPOISON_INJECT");

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		h18_create(&h, flags[i]);
		convert(&h, 6, 1, GMEM_SHARED, GMEM_PRESERVE);
		host_sees(&h, 6, 1, GMEM_SEED(18));
		pfn = gmem_frame_of(hz_hva(&h, 6));
		TEST_ASSERT(pfn, "No frame number of a mapped page");
		convert(&h, 6, 1, GMEM_PRIVATE, GMEM_PRESERVE);
		guest_sees(&h, 6, 1, GMEM_SEED(18));

		r = poison_mapped(hz_hva(&h, 1));
		TEST_ASSERT(!r, "MADV_HWPOISON: errno %d (%s)", r, strerror(r));
		r = poison_pfn(pfn);
		TEST_ASSERT(!r, "corrupt-pfn: errno %d (%s)", r, strerror(r));

		host_refused(&h, 1, 1);
		host_refused(&h, 6, 1);
		for (j = 0; j < 2; j++) {
			u64 page = j ? 6 : 1;

			r = __gmem_guest_do(h.vcpus[j], GMEM_OP_READ,
					    page_gpa(&h, page), 1, 0, 0, 0);
			TEST_ASSERT(r == -EHWPOISON,
				    "%s poisoned page: %d, exit reason %u",
				    j ? "Private" : "Shared", r,
				    h.vcpus[j]->run->exit_reason);

			/* After a hole the page works again. */
			TEST_ASSERT(!gmem_punch(h.a.fd, OFF(page), PG), "punch");
			r = gmem_guest_resume(h.vcpus[j]);
			TEST_ASSERT(!r, "After the punch: %d", r);
			TEST_ASSERT_EQ((u8)gmem_cmd_of(h.vcpus[j])->value, 0);
		}
		guest_sees(&h, 2, 4, GMEM_SEED(18));
		kvm_vm_free(h.vm);
	}
}

/* A poisoned page and each policy, in both directions. */
HAZARD(h42_poison_and_policies)
{
	static const u64 policies[] = { GMEM_NONE, GMEM_ZERO };
	struct hz h;
	u64 eo;
	int i, r;

	HZ_REQUIRE(can_poison_mapped(), "needs MEMORY_FAILURE and root");
	hz_create(&h, 8, GMEM_MMAP_SHARED, 2);
	host_fill(&h, 0, 8, GMEM_SEED(42));
	r = poison_mapped(hz_hva(&h, 5));
	TEST_ASSERT(!r, "MADV_HWPOISON: errno %d (%s)", r, strerror(r));
	host_refused(&h, 5, 1);

	for (i = 0; i < ARRAY_SIZE(policies); i++) {
		if (policies[i] == GMEM_NONE && !gmem_scrambles())
			continue;
		r = gmem_set(h.a.fd, OFF(2), OFF(6), GMEM_PRIVATE, policies[i], &eo);
		TEST_ASSERT(r == EHWPOISON && eo == OFF(5),
			    "To private, policy %#lx: %d (%s) at %#lx", policies[i],
			    r, strerror(r), eo);
		r = gmem_set(h.a.fd, OFF(2), OFF(6), GMEM_SHARED, policies[i], &eo);
		TEST_ASSERT(r == EHWPOISON && eo == OFF(5),
			    "Shared to shared, policy %#lx: %d (%s) at %#lx",
			    policies[i], r, strerror(r), eo);
		attributes_are(&h, 0, 8, GMEM_SHARED);
		guest_sees(&h, 0, 5, GMEM_SEED(42));
		guest_sees(&h, 6, 2, GMEM_SEED(42));
	}

	convert(&h, 2, 6, GMEM_PRIVATE, GMEM_PRESERVE);
	attributes_are(&h, 2, 6, GMEM_PRIVATE);
	guest_sees(&h, 0, 5, GMEM_SEED(42));
	guest_sees(&h, 6, 2, GMEM_SEED(42));
	for (i = 0; i < ARRAY_SIZE(policies); i++) {
		if (policies[i] == GMEM_NONE && !gmem_scrambles())
			continue;
		r = gmem_set(h.a.fd, OFF(2), OFF(6), GMEM_SHARED, policies[i], &eo);
		TEST_ASSERT(r == EHWPOISON && eo == OFF(5),
			    "To shared, policy %#lx: %d (%s) at %#lx", policies[i],
			    r, strerror(r), eo);
		attributes_are(&h, 2, 6, GMEM_PRIVATE);
	}
	convert(&h, 2, 6, GMEM_SHARED, GMEM_PRESERVE);
	host_sees(&h, 0, 5, GMEM_SEED(42));
	host_sees(&h, 6, 2, GMEM_SEED(42));
	host_refused(&h, 5, 1);

	/* The guest's access exits, too; a hole repairs the page. */
	r = __gmem_guest_do(h.vcpus[1], GMEM_OP_READ, page_gpa(&h, 5), 1, 0, 0, 0);
	TEST_ASSERT(r == -EHWPOISON, "The guest's read: %d", r);
	TEST_ASSERT(!gmem_punch(h.a.fd, OFF(5), PG), "punch failed");
	r = gmem_guest_resume(h.vcpus[1]);
	TEST_ASSERT(!r, "After the punch: %d", r);
	guest_sees(&h, 5, 1, GMEM_ZEROES);
	convert(&h, 2, 6, GMEM_PRIVATE, GMEM_ZERO);
}

#define STORM_PAGES	64
#define STORM_POISON	16

struct storm {
	struct hz h;
	u64 pfns[STORM_POISON];
	atomic_int busy;
	atomic_ulong progress[4];
	bool by_pfn;
};

static void *storm_punch(void *arg)
{
	struct storm *s = arg;
	u32 seed = 421;

	while (atomic_load(&s->busy)) {
		u64 first = hz_rand(&seed) % STORM_PAGES;

		gmem_punch(s->h.a.fd, OFF(first),
			   OFF(1 + hz_rand(&seed) % (STORM_PAGES - first)));
		atomic_fetch_add(&s->progress[0], 1);
	}
	return NULL;
}

static void *storm_convert(void *arg)
{
	static const u64 policies[] = { GMEM_NONE, GMEM_ZERO, GMEM_PRESERVE };
	struct storm *s = arg;
	u32 seed = 422;

	while (atomic_load(&s->busy)) {
		u64 first = hz_rand(&seed) % STORM_PAGES;
		int r;

		r = gmem_set_once(s->h.a.fd, OFF(first),
				  OFF(1 + hz_rand(&seed) % (STORM_PAGES - first)),
				  hz_rand(&seed) & 1 ? GMEM_PRIVATE : GMEM_SHARED,
				  policies[hz_rand(&seed) % 3], NULL);
		TEST_ASSERT(!r || r == EAGAIN || r == EHWPOISON,
			    "Conversion in the storm: errno %d (%s)", r, strerror(r));
		atomic_fetch_add(&s->progress[1], 1);
	}
	return NULL;
}

static void *storm_touch(void *arg)
{
	struct storm *s = arg;
	u32 seed = 423;

	while (atomic_load(&s->busy)) {
		gmem_host_write(hz_hva(&s->h, hz_rand(&seed) % STORM_PAGES), 1);
		atomic_fetch_add(&s->progress[2], 1);
	}
	return NULL;
}

/*
 * Memory failure enters with the folio locked, punch and conversion take the
 * invalidate lock first: with the wrong order this hangs, which the harness's
 * timeout turns into a failure after the watchdog has said where.
 */
static void *storm_watchdog(void *arg)
{
	unsigned long last[4] = {}, now;
	struct storm *s = arg;
	int i, quiet = 0;

	while (atomic_load(&s->busy)) {
		bool moved = true;

		sleep(1);
		for (i = 0; i < 3; i++) {
			now = atomic_load(&s->progress[i]);
			moved = moved && now != last[i];
			last[i] = now;
		}
		quiet = moved ? 0 : quiet + 1;
		if (quiet == HANG_SECONDS / 10)
			TEST_FAIL("Hang: punches %lu, conversions %lu, touches %lu, poisoned %lu",
				  last[0], last[1], last[2],
				  (unsigned long)atomic_load(&s->progress[3]));
	}
	return NULL;
}

static void h42_storm(bool by_pfn)
{
	static void *(*fns[])(void *) = {
		storm_punch, storm_convert, storm_touch, storm_watchdog,
	};
	struct storm s = { .by_pfn = by_pfn };
	pthread_t threads[ARRAY_SIZE(fns)];
	unsigned long punches, conversions;
	int i, n = 0, tries;
	u64 pfn;

	hz_create(&s.h, STORM_PAGES, GMEM_MMAP_SHARED, 1);
	atomic_store(&s.busy, 1);
	for (i = 0; i < ARRAY_SIZE(fns); i++)
		kvm_pthread_create(&threads[i], NULL, fns[i], &s);

	/*
	 * What is poisoned is a page that was there a moment ago; if it was
	 * punched meanwhile it was another page or none, so few are tried.
	 */
	for (tries = 0; n < STORM_POISON && tries < 100000; tries++) {
		volatile u8 *hva = hz_hva(&s.h, tries % STORM_PAGES);

		if (!gmem_host_write(hva, 2))
			continue;
		if (!by_pfn) {
			if (!poison_mapped(hva))
				n++;
		} else {
			/*
			 * A freed frame may have another owner by the
			 * time that its number is written. Pin it so that it
			 * stays, and check that it was this one.
			 */
			struct pin pin;

			pfn = gmem_frame_of(hva);
			if (!pin_page(&pin, PIN_VMSPLICE, hva) && pfn &&
			    pfn == gmem_frame_of(hva) && !poison_pfn(pfn))
				n++;
			unpin_page(&pin);
		}
		atomic_store(&s.progress[3], n);

		/* Gives the other threads time to meet this one before the next comes. */
		punches = atomic_load(&s.progress[0]);
		conversions = atomic_load(&s.progress[1]);
		while (atomic_load(&s.progress[0]) < punches + 5 ||
		       atomic_load(&s.progress[1]) < conversions + 5)
			sched_yield();
	}

	atomic_store(&s.busy, 0);
	for (i = 0; i < ARRAY_SIZE(fns); i++)
		kvm_pthread_join(threads[i], NULL);
	TEST_ASSERT(n, "Nothing could be poisoned");
	pr_info("# %d pages poisoned, %lu punches, %lu conversions\n", n,
		(unsigned long)s.progress[0], (unsigned long)s.progress[1]);

	/*
	 * With the holes in their place everything works as before. What the
	 * kernel left in the host's page table for a poisoned page goes when
	 * the mapping does, or with MADV_DONTNEED.
	 */
	TEST_ASSERT(!gmem_punch(s.h.a.fd, 0, OFF(STORM_PAGES)), "punch failed");
	kvm_madvise(s.h.a.hva, OFF(STORM_PAGES), MADV_DONTNEED);
	convert(&s.h, 0, STORM_PAGES, GMEM_PRIVATE, GMEM_ZERO);
	guest_sees(&s.h, 0, STORM_PAGES, GMEM_ZEROES);
	convert(&s.h, 0, STORM_PAGES, GMEM_SHARED, GMEM_ZERO);
	host_sees(&s.h, 0, STORM_PAGES, GMEM_ZEROES);
}

HAZARD(h42_poison_storm_madvise)
{
	HZ_REQUIRE(can_poison_mapped(), "needs MEMORY_FAILURE and root");
	h42_storm(false);
}

HAZARD(h42_poison_storm_frame)
{
	struct hz h;

	HZ_REQUIRE(can_poison_pfn(), "needs HWPOISON_INJECT");
	hz_create(&h, 1, GMEM_MMAP_SHARED, 1);
	*hz_hva(&h, 0) = 1;
	HZ_REQUIRE(gmem_frame_of(hz_hva(&h, 0)), "needs frame numbers in /proc/self/pagemap");
	h42_storm(true);
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
