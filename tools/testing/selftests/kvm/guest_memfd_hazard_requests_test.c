// SPDX-License-Identifier: GPL-2.0
/*
 * Hazards of in-place conversion: requests that are refused, malformed, interrupted
 * or long, and their use of memory.
 *
 * 12, 13 Allocation failures need FAULT_INJECTION, which the sanitised
 *    kernel has; leaks are looked for in the size of all slabs.
 * 20, 21 The large folios that they are about do not exist in 7.3; the
 *    subtests define the results for when they do.
 * 33 The subtest shows that faults get in between chunks. The benchmark measures
 *    how long the lock is held.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/sizes.h>

#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>

#include "gmem_hazard.h"

static bool hz_kasan(void)
{
	char line[256];
	bool found = false;
	FILE *f = fopen("/proc/kallsyms", "r");

	if (!f)
		return false;
	while (!found && fgets(line, sizeof(line), f))
		found = strstr(line, " kasan_report\n");
	fclose(f);
	return found;
}

/* A page at the end of the range stops it: not a byte has changed before it. */
HAZARD(h12_refused_late_nothing_changed_early)
{
	static const u64 policies[] = { GMEM_NONE, GMEM_ZERO, GMEM_PRESERVE };
	struct pin pin;
	struct hz h;
	u64 eo;
	int i, r;

	hz_create(&h, 32, GMEM_MMAP_SHARED, 1);
	host_fill(&h, 0, 32, GMEM_SEED(12));
	convert(&h, 8, 8, GMEM_PRIVATE, GMEM_PRESERVE);
	r = pin_page(&pin, PIN_VMSPLICE, hz_hva(&h, 31));
	TEST_ASSERT(!r, "vmsplice(): errno %d", r);

	for (i = 0; i < ARRAY_SIZE(policies); i++) {
		r = hz_set_until(&h, 0, 32, GMEM_PRIVATE, policies[i], 31, &eo);
		TEST_ASSERT(r == EAGAIN && eo == OFF(31),
			    "Policy %#lx: %d (%s) at %#lx", policies[i], r,
			    strerror(r), eo);
		attributes_are(&h, 0, 8, GMEM_SHARED);
		attributes_are(&h, 8, 8, GMEM_PRIVATE);
		attributes_are(&h, 16, 16, GMEM_SHARED);
		guest_sees(&h, 0, 32, GMEM_SEED(12));
		host_sees(&h, 0, 8, GMEM_SEED(12));
		host_sees(&h, 16, 16, GMEM_SEED(12));
		host_refused(&h, 8, 8);
	}
	unpin_page(&pin);
}

/* Fail the n-th allocation of one request, for every n that it has. */
static int h12_fail_nth(struct hz *h, int nth, u64 attrs, u64 policy, u64 *eo,
			bool *injected)
{
	char buf[16] = {};
	int fd, r;

	fd = open("/proc/thread-self/fail-nth", O_RDWR);
	TEST_ASSERT(fd >= 0, "fail-nth cannot be opened");
	snprintf(buf, sizeof(buf), "%d", nth);
	TEST_ASSERT(write(fd, buf, strlen(buf)) > 0, "fail-nth cannot be set");
	r = gmem_set_once(h->a.fd, OFF(3), OFF(10), attrs, policy, eo);
	memset(buf, 0, sizeof(buf));
	TEST_ASSERT(pread(fd, buf, sizeof(buf) - 1, 0) > 0, "fail-nth cannot be read");
	*injected = !atoi(buf);
	TEST_ASSERT(pwrite(fd, "0", 1, 0) == 1, "fail-nth cannot be reset");
	close(fd);
	return r;
}

HAZARD(h12_out_of_memory_changes_nothing)
{
	static const u64 policies[] = { GMEM_NONE, GMEM_ZERO, GMEM_PRESERVE };
	bool injected;
	int i, nth, r, failures = 0, to_private;
	struct hz h;
	u64 eo;

	HZ_REQUIRE(!access("/proc/thread-self/fail-nth", W_OK) && hz_have_debugfs() &&
		   !hz_write_file(DEBUGFS "/failslab/ignore-gfp-wait", "N", 0),
		   "needs FAULT_INJECTION and FAILSLAB");
	hz_write_file(DEBUGFS "/fail_page_alloc/ignore-gfp-wait", "N", 0);
	/* A stack trace for each injected failure would look like a complaint. */
	hz_write_file(DEBUGFS "/failslab/verbose", "0", 0);
	hz_write_file(DEBUGFS "/fail_page_alloc/verbose", "0", 0);

	hz_create(&h, 16, GMEM_MMAP_SHARED, 1);
	host_fill(&h, 0, 16, GMEM_SEED(12));

	for (i = 0; i < ARRAY_SIZE(policies) * 2; i++) {
		u64 attrs, before;

		to_private = i & 1;
		attrs = to_private ? GMEM_PRIVATE : GMEM_SHARED;
		before = to_private ? GMEM_SHARED : GMEM_PRIVATE;
		/* Holes on both sides, so that the store needs nodes. */
		convert(&h, 0, 16, GMEM_SHARED, GMEM_PRESERVE);
		convert(&h, 3, 10, before, GMEM_PRESERVE);

		for (nth = 1; nth < 200; nth++) {
			r = h12_fail_nth(&h, nth, attrs, policies[i / 2], &eo,
					 &injected);
			if (!r)
				break;
			TEST_ASSERT(injected && (r == ENOMEM || r == EFAULT),
				    "Allocation %d: errno %d (%s), injected %d",
				    nth, r, strerror(r), injected);
			TEST_ASSERT(r != ENOMEM || eo == OFF(3),
				    "ENOMEM with error_offset %#lx", eo);
			failures++;
			attributes_are(&h, 0, 3, GMEM_SHARED);
			attributes_are(&h, 3, 10, before);
			attributes_are(&h, 13, 3, GMEM_SHARED);
			guest_sees(&h, 0, 16, GMEM_SEED(12));
		}
		TEST_ASSERT(!r, "Still failing after %d allocations", nth);
		attributes_are(&h, 3, 10, attrs);
		convert(&h, 0, 16, GMEM_SHARED, GMEM_PRESERVE);
		host_fill(&h, 0, 16, GMEM_SEED(12));
	}
	pr_info("# %d requests failed for want of memory\n", failures);
}

static long h13_slab_kib(void)
{
	char line[256];
	long kib = -1;
	FILE *f = fopen("/proc/meminfo", "r");

	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "SUnreclaim: %ld", &kib);
	if (f)
		fclose(f);
	return kib;
}

/* A bitmap of attributes takes at least 96 bytes: two leaked by each request make 1.9 MiB. */
HAZARD(h13_failed_requests_leak_no_nodes)
{
	long before, after;
	struct pin pin;
	struct hz h;
	int i, r;

	HZ_REQUIRE(!hz_kasan(), "KASAN's quarantine keeps freed memory");
	HZ_REQUIRE(h13_slab_kib() > 0, "needs SUnreclaim in /proc/meminfo");

	hz_create(&h, 1024, GMEM_MMAP_SHARED, 1);
	host_fill(&h, 0, 16, 1);
	r = pin_page(&pin, PIN_VMSPLICE, hz_hva(&h, 8));
	TEST_ASSERT(!r, "vmsplice(): errno %d", r);

	for (i = 0; i < 100; i++)
		gmem_set_once(h.a.fd, OFF(3), OFF(1000), GMEM_PRIVATE, GMEM_ZERO, NULL);
	before = h13_slab_kib();
	for (i = 0; i < 10000; i++) {
		r = gmem_set_once(h.a.fd, OFF(3), OFF(1000), GMEM_PRIVATE,
				  GMEM_ZERO, NULL);
		TEST_ASSERT(r == EAGAIN, "Request %d: errno %d (%s)", i, r,
			    strerror(r));
	}
	after = h13_slab_kib();
	TEST_ASSERT(after - before < 1024,
		    "Slabs grew from %ld to %ld KiB in %d failed requests",
		    before, after, i);
	unpin_page(&pin);
}

/* Exactly the requested pages, also with indexes of more than 32 bits. */
HAZARD(h19_index_arithmetic)
{
	const u64 size = 1ULL << 50;
	static const u64 starts[] = {
		0, 0x1000, 0xfffff000ULL, 1ULL << 32, (1ULL << 44) - 0x1000,
		1ULL << 44, (1ULL << 44) + 0x3000, (1ULL << 50) - 0x3000,
	};
	struct kvm_vcpu *vcpus[1];
	struct kvm_vm *vm;
	u64 attr, len, i;
	int fd, r;

	vm = gmem_vm_create(1, 0, vcpus);
	fd = vm_create_guest_memfd(vm, size, GMEM_MMAP_SHARED);

	for (i = 0; i < ARRAY_SIZE(starts); i++) {
		u64 off = starts[i];

		gmem_convert(fd, off, 2 * PG, GMEM_PRIVATE, GMEM_PRESERVE);
		r = gmem_get(fd, off, &attr, &len);
		TEST_ASSERT(!r && attr == GMEM_PRIVATE && len == 2 * PG,
			    "At %#lx: errno %d, attributes %#lx, run %#lx", off, r,
			    attr, len);
		if (off) {
			gmem_assert_attributes(fd, 0, off, GMEM_SHARED);
			r = gmem_get(fd, 0, NULL, &len);
			TEST_ASSERT(!r && len == off, "Run before %#lx: %#lx", off, len);
		}
		if (off + 2 * PG < size) {
			r = gmem_get(fd, off + 2 * PG, &attr, &len);
			TEST_ASSERT(!r && !attr && len == size - off - 2 * PG,
				    "After %#lx: errno %d, attributes %#lx, run %#lx",
				    off, r, attr, len);
		}
		gmem_convert(fd, off, 2 * PG, GMEM_SHARED, GMEM_PRESERVE);
	}

	gmem_convert(fd, 0, size, GMEM_PRIVATE, GMEM_PRESERVE);
	r = gmem_get(fd, 0, &attr, &len);
	TEST_ASSERT(!r && attr == GMEM_PRIVATE && len == size, "Whole file: run %#lx", len);

	TEST_ASSERT_EQ(gmem_set_once(fd, size - PG, 2 * PG, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(gmem_set_once(fd, size, PG, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(gmem_set_once(fd, 0, size + PG, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(gmem_set_once(fd, 0, PG - 1, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(gmem_set_once(fd, 0, PG + 1, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(gmem_set_once(fd, 1, PG, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(gmem_set_once(fd, 0, 0, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(gmem_set_once(fd, -PG, PG, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(gmem_set_once(fd, PG, -PG, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(gmem_set_once(fd, -PG, 2 * PG, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(gmem_set_once(fd, 1ULL << 63, PG, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(gmem_get(fd, size, NULL, NULL), EINVAL);
	TEST_ASSERT_EQ(gmem_get(fd, 1, NULL, NULL), EINVAL);
	gmem_assert_attributes(fd, 0, size, GMEM_PRIVATE);
	kvm_close(fd);
}

/* The offset that is reported is inside the request, whatever is around it. */
HAZARD(h20_error_offset_inside_the_request)
{
	struct pin pin;
	struct hz h;
	u64 i;
	int r;

	hz_create(&h, 512, GMEM_MMAP_SHARED, 1);
	for (i = 0; i < 512; i++)
		*hz_hva(&h, i) = 1;
	/* Drains the batches, so that only the pin is left. */
	convert(&h, 0, 512, GMEM_PRIVATE, GMEM_PRESERVE);
	convert(&h, 0, 512, GMEM_SHARED, GMEM_PRESERVE);
	*hz_hva(&h, 100) = 1;
	r = pin_page(&pin, PIN_VMSPLICE, hz_hva(&h, 100));
	TEST_ASSERT(!r, "vmsplice(): errno %d", r);

	hz_refused(&h, 100, 1, GMEM_PRIVATE, GMEM_PRESERVE, EAGAIN, 100);
	hz_refused(&h, 100, 412, GMEM_PRIVATE, GMEM_PRESERVE, EAGAIN, 100);
	hz_refused(&h, 0, 101, GMEM_PRIVATE, GMEM_PRESERVE, EAGAIN, 100);
	hz_refused(&h, 0, 512, GMEM_PRIVATE, GMEM_PRESERVE, EAGAIN, 100);
	convert(&h, 101, 411, GMEM_PRIVATE, GMEM_PRESERVE);
	convert(&h, 0, 100, GMEM_PRIVATE, GMEM_PRESERVE);
	unpin_page(&pin);
}

HAZARD(h21_neighbours_keep_their_state)
{
	u64 page = 257, attr, len;
	struct hz h;
	int r;

	hz_create(&h, 512, GUEST_MEMFD_FLAG_MMAP, 1);
	gmem_guest_fill(h.vcpus[0], page_gpa(&h, page - 1), 3 * PG, GMEM_SEED(21), 0);

	convert(&h, page, 1, GMEM_SHARED, GMEM_ZERO);
	r = gmem_get(h.a.fd, OFF(page), &attr, &len);
	TEST_ASSERT(!r && !attr && len == PG, "errno %d, attributes %#lx, run %#lx",
		    r, attr, len);
	attributes_are(&h, 0, page, GMEM_PRIVATE);
	attributes_are(&h, page + 1, 512 - page - 1, GMEM_PRIVATE);
	host_refused(&h, 0, page);
	host_refused(&h, page + 1, 512 - page - 1);
	host_sees(&h, page, 1, GMEM_ZEROES);
	gmem_guest_assert(h.vcpus[0], page_gpa(&h, page - 1), PG, GMEM_SEED(21), 0);
	gmem_guest_assert(h.vcpus[0], page_gpa(&h, page + 1), PG, GMEM_SEED(21), 2 * PG);
}

/* EFAULT for the write of the result: nothing was converted, as documented. */
HAZARD(h22_efault_on_the_way_back)
{
	struct kvm_memory_attributes2 *attrs;
	struct pin pin;
	struct hz h;
	int i, r;

	hz_create(&h, 4, GMEM_MMAP_SHARED, 1);
	host_fill(&h, 0, 4, GMEM_SEED(22));
	attrs = kvm_mmap(PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	attrs->size = OFF(4);
	attrs->attributes = GMEM_PRIVATE;
	attrs->flags = GMEM_ZERO;
	TEST_ASSERT(!mprotect(attrs, PG, PROT_READ), "mprotect() failed");

	r = pin_page(&pin, PIN_VMSPLICE, hz_hva(&h, 2));
	TEST_ASSERT(!r, "vmsplice(): errno %d", r);
	TEST_ASSERT_EQ(gmem_ioctl(h.a.fd, KVM_SET_MEMORY_ATTRIBUTES2, attrs), EFAULT);
	attributes_are(&h, 0, 4, GMEM_SHARED);
	host_sees(&h, 0, 4, GMEM_SEED(22));
	unpin_page(&pin);

	/*
	 * There is nothing to write back on success. A transient reference
	 * would be EFAULT, too, hence the retries.
	 */
	for (i = 0, r = EFAULT; i < GMEM_MAX_RETRIES && r == EFAULT; i++)
		r = gmem_ioctl(h.a.fd, KVM_SET_MEMORY_ATTRIBUTES2, attrs);
	TEST_ASSERT(!r, "errno %d (%s)", r, strerror(r));
	attributes_are(&h, 0, 4, GMEM_PRIVATE);
}

/* The announced policies work, in both phases, for pages in either state. */
HAZARD(h23_capabilities_are_honoured)
{
	static const u64 policies[] = { GMEM_ZERO, GMEM_PRESERVE };
	struct kvm_vm *plain;
	struct hz h;
	int post, pre, i, j;

	memset(&h, 0, sizeof(h));
	h.vm = gmem_vm_create(1, 2, h.vcpus);
	gmem_area_create(&h.a, h.vm, GMEM_SLOT, GMEM_GPA, OFF(2), GMEM_MMAP_SHARED);

	post = vm_check_cap(h.vm, KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS);
	pre = vm_check_cap(h.vm, KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS);
	TEST_ASSERT_EQ(post, 0x030303);
	TEST_ASSERT_EQ(pre, 0x030303);
	TEST_ASSERT_EQ(vm_check_cap(h.vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES),
		       (int)KVM_MEMORY_ATTRIBUTE_PRIVATE);
	TEST_ASSERT_EQ(vm_check_cap(h.vm, KVM_CAP_GET_MEMORY_ATTRIBUTES2), 1);

	for (j = 0; j < 2; j++) {
		for (i = 0; i < ARRAY_SIZE(policies); i++) {
			convert(&h, 0, 2, GMEM_SHARED, policies[i]);
			host_fill(&h, 0, 1, GMEM_SEED(23));
			convert(&h, 0, 2, GMEM_PRIVATE, policies[i]);
			convert(&h, 0, 2, GMEM_PRIVATE, policies[i]);
			convert(&h, 0, 2, GMEM_SHARED, policies[i]);
			host_sees(&h, 0, 1, policies[i] == GMEM_ZERO ?
				  GMEM_ZEROES : GMEM_SEED(23));
		}
		if (!j)
			gmem_guest_start(h.vcpus[0]);
	}

	plain = vm_create_barebones();
	TEST_ASSERT_EQ(vm_check_cap(plain, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES), 0);
	kvm_vm_free(plain);
}

#define BIG_PAGES	((u64)SZ_256M / PAGE_SIZE)

/* A file of 256 MiB with every page written by the host, and no guest page. */
static void big_create(struct hz *h, u64 npages, u32 nr_vcpus)
{
	u64 i;

	memset(h, 0, sizeof(*h));
	h->npages = npages;
	h->vm = gmem_vm_create(nr_vcpus, npages, h->vcpus);
	gmem_area_create(&h->a, h->vm, GMEM_SLOT, GMEM_GPA, OFF(npages),
			 GMEM_MMAP_SHARED);
	for (i = 0; i < npages; i++)
		*(volatile u64 *)hz_hva(h, i) = i + 1;
}

/* The guest finds pages that it has not touched, so that each is a fault. */
static struct {
	u64 gpa;
	u64 npages;
	u64 done;
} walk;

static void walk_guest_code(void)
{
	u64 i;

	GUEST_SYNC(0);
	for (i = 0; i < READ_ONCE(walk.npages); i++) {
		*(volatile u64 *)(walk.gpa + i * PAGE_SIZE) = i;
		WRITE_ONCE(walk.done, i + 1);
	}
	GUEST_SYNC(1);
}

HAZARD(h33_faults_get_in_between_chunks)
{
	const u64 chunk = SZ_4M / PG, faults = 256, max_rounds = 200;
	volatile typeof(walk) *shared;
	struct spin_thread t = {};
	u64 first, rounds, at_start;
	struct hz h;

	big_create(&h, BIG_PAGES / 4, 1);
	vcpu_arch_set_entry_point(h.vcpus[0], walk_guest_code);
	gmem_guest_start(h.vcpus[0]);
	TEST_ASSERT(!gmem_punch(h.a.fd, 0, OFF(faults)), "punch failed");

	walk.gpa = h.a.gpa;
	walk.npages = faults;
	sync_global_to_guest(h.vm, walk);
	shared = addr_gva2hva(h.vm, (gva_t)&walk);
	t.vcpu = h.vcpus[0];
	at_start = shared->done;
	kvm_pthread_create(&t.thread, NULL, spin_thread, &t);

	/* Convert until the guest is done; a starved guest never is. */
	for (rounds = 0; rounds < max_rounds && shared->done < faults; rounds++) {
		for (first = chunk; first + chunk <= h.npages; first += chunk)
			convert(&h, first, chunk,
				rounds & 1 ? GMEM_SHARED : GMEM_PRIVATE,
				   GMEM_PRESERVE);
	}
	TEST_ASSERT(shared->done > at_start, "No fault got in between");
	TEST_ASSERT(shared->done == faults,
		    "%lu of %lu faults in %lu rounds of conversions",
		    shared->done, faults, rounds);
	kvm_pthread_join(t.thread, NULL);
	TEST_ASSERT(!t.error, "vCPU ended with %d", t.error);
}

static atomic_ulong h34_alarms;

static void h34_alarm(int sig)
{
	atomic_fetch_add(&h34_alarms, 1);
}

/*
 * The timer fires many times in each request, with a handler and without
 * SA_RESTART: the request has to come to its end and to have done all of it.
 */
HAZARD(h34_signal_in_a_long_request)
{
	static const struct {
		u64 attrs, policy;
	} steps[] = {
		{ GMEM_PRIVATE, GMEM_PRESERVE },
		{ GMEM_SHARED, GMEM_PRESERVE },
		{ GMEM_PRIVATE, GMEM_NONE },
		{ GMEM_SHARED, GMEM_ZERO },
		{ GMEM_PRIVATE, GMEM_ZERO },
		{ GMEM_SHARED, GMEM_NONE },
	};
	struct itimerval on = {
		.it_interval.tv_usec = 2000,
		.it_value.tv_usec = 2000,
	}, off = {};
	struct sigaction sa = { .sa_handler = h34_alarm };
	unsigned long before, hit = 0;
	struct hz h;
	u64 i, eo, val;
	int s, r;

	big_create(&h, BIG_PAGES, 1);
	TEST_ASSERT(!sigaction(SIGALRM, &sa, NULL), "sigaction() failed");

	for (s = 0; s < ARRAY_SIZE(steps); s++) {
		before = atomic_load(&h34_alarms);
		TEST_ASSERT(!setitimer(ITIMER_REAL, &on, NULL), "setitimer() failed");
		r = gmem_set(h.a.fd, 0, h.a.size, steps[s].attrs,
			     steps[s].policy, &eo);
		TEST_ASSERT(!setitimer(ITIMER_REAL, &off, NULL), "setitimer() failed");
		hit += atomic_load(&h34_alarms) - before;
		TEST_ASSERT(!r, "Step %d: errno %d (%s) at %#lx", s, r,
			    strerror(r), eo);
		gmem_assert_attributes(h.a.fd, 0, h.a.size, steps[s].attrs);

		if (steps[s].attrs)
			continue;
		for (i = 0; i < h.npages; i++) {
			val = *(volatile u64 *)hz_hva(&h, i);
			if (steps[s].policy == GMEM_PRESERVE)
				TEST_ASSERT_EQ(val, i + 1);
			else if (steps[s].policy == GMEM_ZERO)
				TEST_ASSERT_EQ(val, 0UL);
			else if (gmem_scrambles())
				break;
		}
		for (i = 0; steps[s].policy == GMEM_NONE && gmem_scrambles() &&
		     i < h.npages; i++)
			if (*(volatile u64 *)hz_hva(&h, i) != 0xababababababababULL)
				TEST_FAIL("Page %lu is not scrambled", i);
	}
	TEST_ASSERT(hit, "No signal came during any request");
}

#define CG_ROOT	"/sys/fs/cgroup"
#define CG	CG_ROOT "/gmem-hazard"

static bool h35_cgroup(void)
{
	if (access(CG_ROOT "/cgroup.controllers", R_OK) &&
	    mount("cgroup2", CG_ROOT, "cgroup2", 0, NULL))
		return false;
	hz_write_file(CG_ROOT "/cgroup.subtree_control", "+memory", 0);
	if (mkdir(CG, 0755) && errno != EEXIST)
		return false;
	return !access(CG "/memory.current", R_OK) &&
	       !hz_write_file(CG "/cgroup.procs", "0", 0);
}

static long h35_current(void)
{
	long val = -1;
	FILE *f = fopen(CG "/memory.current", "r");

	if (!f)
		return -1;
	if (fscanf(f, "%ld", &val) != 1)
		val = -1;
	fclose(f);
	return val;
}

struct h35_faulter {
	struct hz *h;
	atomic_int *go;
};

static void *h35_faulter(void *arg)
{
	struct h35_faulter *f = arg;
	u64 i;

	while (!atomic_load(f->go))
		sched_yield();
	for (i = 0; i < f->h->npages; i++)
		(void)*hz_hva(f->h, i);
	return NULL;
}

/* All threads fault each page at the same time; one charge a page remains. */
HAZARD(h35_memory_cgroup_charge)
{
	/* The inaccuracy due to batches of charges, page tables and slabs. */
	const long slack = SZ_2M;
	const u64 npages = SZ_16M / PG;
	struct h35_faulter faulter;
	pthread_t threads[4];
	long before, full;
	atomic_int go;
	struct hz h;
	u64 vals;
	int i, j;

	HZ_REQUIRE(h35_cgroup(), "needs cgroup 2 with the memory controller");

	hz_create(&h, npages, GMEM_MMAP_SHARED, 1);
	faulter.h = &h;
	faulter.go = &go;
	before = h35_current();
	TEST_ASSERT(before >= 0, "memory.current cannot be read");

	for (j = 0; j < 6; j++) {
		atomic_store(&go, 0);
		for (i = 0; i < ARRAY_SIZE(threads); i++)
			kvm_pthread_create(&threads[i], NULL, h35_faulter, &faulter);
		atomic_store(&go, 1);
		for (i = 0; i < ARRAY_SIZE(threads); i++)
			kvm_pthread_join(threads[i], NULL);

		convert(&h, 0, npages, GMEM_PRIVATE, GMEM_ZERO);
		convert(&h, 0, npages / 2, GMEM_SHARED, GMEM_PRESERVE);
		full = h35_current();
		TEST_ASSERT(full - before > (long)OFF(npages) - slack &&
			    full - before < (long)OFF(npages) + slack,
			    "Cycle %d: %lu bytes of file, but %ld charged", j,
			    OFF(npages), full - before);

		TEST_ASSERT(!gmem_punch(h.a.fd, 0, OFF(npages)), "punch failed");
		convert(&h, 0, npages, GMEM_SHARED, GMEM_PRESERVE);
		vals = h35_current() - before;
		TEST_ASSERT((long)vals < slack, "Cycle %d: %ld bytes left charged",
			    j, (long)vals);
	}

	/* The same for memory that exists when the file is closed. */
	for (vals = 0; vals < npages; vals++)
		*hz_hva(&h, vals) = 1;
	convert(&h, 0, npages / 2, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_area_destroy(&h.a);
	full = h35_current() - before;
	TEST_ASSERT(full < slack, "%ld bytes left charged by a closed file", full);
	hz_write_file(CG_ROOT "/cgroup.procs", "0", 0);
}

#define STALE	0x57a1e57a1e57a1e5ULL

/* Leave free memory full of a pattern that must not be seen again. */
static void h43_dirty_free_memory(void)
{
	u64 size = SZ_512M, i;
	volatile u64 *mem;

	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	for (i = 0; i < size / sizeof(*mem); i++)
		mem[i] = STALE;
	kvm_munmap((void *)mem, size);
}

static struct {
	u64 gpa;
	u64 size;
	u64 first_bad;
} scan;

static void scan_guest_code(void)
{
	u64 i;

	for (;;) {
		GUEST_SYNC(0);
		scan.first_bad = ~0ULL;
		for (i = 0; i < scan.size; i += sizeof(u64)) {
			if (*(volatile u64 *)(scan.gpa + i)) {
				scan.first_bad = i;
				break;
			}
		}
	}
}

HAZARD(h43_fallocated_untouched_pages_read_zero)
{
	static const struct {
		u64 attrs, policy;
	} steps[] = {
		{ GMEM_PRIVATE, GMEM_NONE }, { GMEM_PRIVATE, GMEM_ZERO },
		{ GMEM_PRIVATE, GMEM_PRESERVE }, { GMEM_SHARED, GMEM_NONE },
		{ GMEM_SHARED, GMEM_ZERO }, { GMEM_SHARED, GMEM_PRESERVE },
	};
	const u64 npages = SZ_8M / PG;
	u64 i, bytes;
	struct hz h;
	int s, r;

	memset(&h, 0, sizeof(h));
	h.npages = npages;
	h.vm = gmem_vm_create(1, npages, h.vcpus);
	gmem_area_create(&h.a, h.vm, GMEM_SLOT, GMEM_GPA, OFF(npages), GMEM_MMAP_SHARED);
	vcpu_arch_set_entry_point(h.vcpus[0], scan_guest_code);
	gmem_guest_start(h.vcpus[0]);

	for (s = 0; s < ARRAY_SIZE(steps); s++) {
		TEST_ASSERT(!gmem_punch(h.a.fd, 0, OFF(npages)), "punch failed");
		convert(&h, 0, npages, steps[s].attrs ? GMEM_SHARED : GMEM_PRIVATE,
			GMEM_PRESERVE);
		h43_dirty_free_memory();
		TEST_ASSERT(!gmem_allocate(h.a.fd, 0, OFF(npages)), "fallocate failed");
		convert(&h, 0, npages, steps[s].attrs, steps[s].policy);
		/* To private and back, and over pages in the requested state already. */
		convert(&h, 0, npages / 2, steps[s].attrs, steps[s].policy);

		scan.gpa = h.a.gpa;
		scan.size = OFF(npages);
		sync_global_to_guest(h.vm, scan);
		if (steps[s].attrs) {
			r = gmem_guest_resume(h.vcpus[0]);
			gmem_guest_ok(h.vcpus[0], r);
			sync_global_from_guest(h.vm, scan);
			TEST_ASSERT(scan.first_bad == ~0ULL,
				    "Step %d: the guest finds a stale byte at %#lx",
				    s, scan.first_bad);
			convert(&h, 0, npages, GMEM_SHARED, GMEM_PRESERVE);
		}
		for (i = 0; i < OFF(npages); i += sizeof(bytes)) {
			bytes = *(volatile u64 *)(h.a.hva + i);
			TEST_ASSERT(!bytes, "Step %d: the host finds %#lx at %#lx",
				    s, bytes, i);
		}
	}
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
