// SPDX-License-Identifier: GPL-2.0
/*
 * Hazards of in-place conversion: pins of pages, and other references to them that
 * last, or last for a moment.
 *
 * 6 The cost of drains is not visible. Their number is, if the kernel has the
 *   workqueue trace events.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* For <linux/io_uring.h>: the <linux/types.h> of tools/include lacks it. */
#include <linux/stddef.h>
#include <linux/io_uring.h>
#include <linux/kernel-page-flags.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "gmem_hazard.h"

/* --- References that last ------------------------------------------------- */

static const char * const pin_names[] = {
	[PIN_GUP]	= "long-term pin",
	[PIN_GUP_FAST]	= "long-term pin, fast path",
	[PIN_IO_URING]	= "io_uring registered buffer",
	[PIN_VMSPLICE]	= "vmsplice()d page",
};

static void pin_to_cpu(int cpu)
{
	pin_self_to_cpu(cpu);
}

struct h05_toucher {
	struct hz *h;
	u64 first, n;
};

static void *h05_toucher(void *arg)
{
	struct h05_toucher *t = arg;
	u64 i;

	pin_to_cpu(1);
	for (i = 0; i < t->n; i++)
		*hz_hva(t->h, t->first + i) = 1;
	return NULL;
}

/*
 * A page that was faulted in a moment ago sits in a batch of the CPU that did
 * it, which holds a reference. Nobody else has one here, so the very first
 * request has to succeed, for batches of this and of another CPU.
 */
HAZARD(h05_no_false_eagain_from_lru_batches)
{
	struct h05_toucher toucher;
	pthread_t thread;
	struct hz h;
	u64 i, j, eo;
	int r;

	HZ_REQUIRE(sysconf(_SC_NPROCESSORS_ONLN) > 1, "needs two CPUs");

	hz_create(&h, 1024, GMEM_MMAP_SHARED, 1);
	pin_to_cpu(0);
	toucher.h = &h;

	/* An odd number, so that batches are in every state of filling. */
	for (i = 0; i + 7 <= h.npages; i += 7) {
		toucher.first = i;
		toucher.n = 3;
		kvm_pthread_create(&thread, NULL, h05_toucher, &toucher);
		kvm_pthread_join(thread, NULL);
		for (j = 3; j < 6; j++)
			*hz_hva(&h, i + j) = 1;
		gmem_guest_write(h.vcpus[0], page_gpa(&h, i + 6), 1);

		r = gmem_set_once(h.a.fd, OFF(i), OFF(7), GMEM_PRIVATE,
				  i & 1 ? GMEM_PRESERVE : GMEM_ZERO, &eo);
		TEST_ASSERT(!r, "Pages %lu to %lu: errno %d (%s), error_offset %#lx",
			    i, i + 6, r, strerror(r), eo);
	}
}

static bool h06_trace(const char *file, const char *val)
{
	static const char * const roots[] = {
		"/sys/kernel/tracing", DEBUGFS "/tracing",
	};
	char path[256];
	int i;

	for (i = 0; i < ARRAY_SIZE(roots); i++) {
		snprintf(path, sizeof(path), "%s/%s", roots[i], file);
		if (!hz_write_file(path, val, 0))
			return true;
	}
	return false;
}

static int h06_count_drains(void)
{
	char line[512];
	int n = 0;
	FILE *f = fopen("/sys/kernel/tracing/trace", "r");

	if (!f)
		f = fopen(DEBUGFS "/tracing/trace", "r");
	TEST_ASSERT(f, "The trace cannot be read");
	while (fgets(line, sizeof(line), f))
		n += !!strstr(line, "lru_add_drain_per_cpu");
	fclose(f);
	return n;
}

/* The number of work items queued to drain all CPUs by one request. */
static int h06_drains_of(struct hz *h, u64 page, u64 n, int want)
{
	int r;

	TEST_ASSERT(h06_trace("trace", "0"), "The trace cannot be cleared");
	TEST_ASSERT(h06_trace("tracing_on", "1"), "Tracing cannot be started");
	r = gmem_set_once(h->a.fd, OFF(page), OFF(n), GMEM_PRIVATE,
			  GMEM_PRESERVE, NULL);
	TEST_ASSERT(h06_trace("tracing_on", "0"), "Tracing cannot be stopped");
	TEST_ASSERT(r == want, "errno %d (%s), wanted %d", r, strerror(r), want);
	return h06_count_drains();
}

HAZARD(h06_drain_all_at_most_once_a_request)
{
	int ncpus = sysconf(_SC_NPROCESSORS_ONLN);
	struct pin pins[16];
	struct hz h;
	int i, n;

	mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL);
	HZ_REQUIRE(hz_have_debugfs(), "needs debugfs");
	HZ_REQUIRE(h06_trace("events/workqueue/workqueue_queue_work/enable", "1"),
		   "needs the trace event workqueue_queue_work");

	hz_create(&h, 64, GMEM_MMAP_SHARED, 1);
	host_fill(&h, 0, 64, 1);
	for (i = 0; i < 16; i++)
		TEST_ASSERT(!pin_page(&pins[i], PIN_VMSPLICE, hz_hva(&h, 32 + i)),
			    "vmsplice() failed");

	n = h06_drains_of(&h, 0, 64, EAGAIN);
	TEST_ASSERT(n <= ncpus, "%d drains for one request on %d CPUs", n, ncpus);

	/* Its batches are drained by now, so there is no reason for another. */
	for (i = 0; i < 16; i++)
		unpin_page(&pins[i]);
	n = h06_drains_of(&h, 0, 16, 0);
	TEST_ASSERT(!n, "%d drains for pages with no unexpected reference", n);

	h06_trace("events/workqueue/workqueue_queue_work/enable", "0");
	h06_trace("tracing_on", "1");
}

/*
 * A process with a pinned page can make any number of requests fail, each of which
 * drains all CPUs. So their rate is limited. This checks a lower bound of the time,
 * which also holds on a slow machine.
 */
HAZARD(h06_drains_are_limited_in_rate)
{
	const u64 burst = 256, requests = 2000;
	struct timespec begin, end;
	struct pin pin;
	struct hz h;
	u64 ms, i;
	int r;

	hz_create(&h, 16, GMEM_MMAP_SHARED, 1);
	host_fill(&h, 0, 16, 1);
	r = pin_page(&pin, PIN_VMSPLICE, hz_hva(&h, 8));
	TEST_ASSERT(!r, "vmsplice(): errno %d", r);

	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (i = 0; i < requests; i++) {
		r = gmem_set_once(h.a.fd, 0, OFF(16), GMEM_PRIVATE, GMEM_ZERO, NULL);
		TEST_ASSERT(r == EAGAIN, "Request %lu: errno %d (%s)", i, r, strerror(r));
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	unpin_page(&pin);
	ms = (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000;
	TEST_ASSERT(ms + burst + 10 >= requests, "%lu requests drained within %lu ms", requests, ms);
}

/* Tasks with many files or many VMs are limited, too: a drain affects the whole machine. */
HAZARD(h06_drains_of_many_files_are_limited_in_rate)
{
	const u64 burst = 256, requests = 2000;
	struct timespec begin, end;
	struct hz files[10];
	struct pin pins[10];
	u64 ms, i;
	int r;

	for (i = 0; i < ARRAY_SIZE(files); i++) {
		hz_create(&files[i], 16, GMEM_MMAP_SHARED, 1);
		host_fill(&files[i], 0, 16, 1);
		r = pin_page(&pins[i], PIN_VMSPLICE, hz_hva(&files[i], 8));
		TEST_ASSERT(!r, "vmsplice(): errno %d", r);
	}

	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (i = 0; i < requests; i++) {
		r = gmem_set_once(files[i % ARRAY_SIZE(files)].a.fd, 0, OFF(16), GMEM_PRIVATE,
				  GMEM_ZERO, NULL);
		TEST_ASSERT(r == EAGAIN, "Request %lu: errno %d (%s)", i, r, strerror(r));
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	for (i = 0; i < ARRAY_SIZE(files); i++)
		unpin_page(&pins[i]);
	ms = (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000;
	TEST_ASSERT(ms + burst + 10 >= requests, "%lu requests drained within %lu ms", requests, ms);
}

/*
 * A page that has failed keeps a reference for ever, which batches cannot hold. Another
 * CPU makes sure that there is something to drain.
 */
HAZARD(h06_failed_pages_are_no_reason_to_drain)
{
	struct h05_toucher toucher = { };
	pthread_t thread;
	struct hz h;
	int n;

	HZ_REQUIRE(sysconf(_SC_NPROCESSORS_ONLN) > 1, "needs two CPUs");
	HZ_REQUIRE(can_poison_mapped(), "needs MEMORY_FAILURE and root");
	mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL);
	HZ_REQUIRE(hz_have_debugfs(), "needs debugfs");
	HZ_REQUIRE(h06_trace("events/workqueue/workqueue_queue_work/enable", "1"),
		   "needs the trace event workqueue_queue_work");

	hz_create(&h, 16, GMEM_MMAP_SHARED, 1);
	pin_to_cpu(0);
	host_fill(&h, 0, 1, 1);
	TEST_ASSERT(!gmem_host_poison((u8 *)hz_hva(&h, 0)), "A page cannot be made to fail");
	/* The page itself is in no batch: this drains all of them. */
	convert(&h, 0, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	convert(&h, 0, 1, GMEM_SHARED, GMEM_PRESERVE);

	toucher.h = &h;
	toucher.first = 8;
	toucher.n = 3;
	kvm_pthread_create(&thread, NULL, h05_toucher, &toucher);
	kvm_pthread_join(thread, NULL);

	n = h06_drains_of(&h, 0, 1, 0);
	TEST_ASSERT(!n, "%d drains for a page that has failed", n);
	/* The batches were not drained, and are drained for a request that needs it. */
	n = h06_drains_of(&h, 8, 3, 0);
	TEST_ASSERT(n > 0, "Nothing was drained");

	h06_trace("events/workqueue/workqueue_queue_work/enable", "0");
	h06_trace("tracing_on", "1");
}

/* The batch holds 31 folios, so that the first of 128 has left it. */
HAZARD(h07_folios_are_on_the_lru)
{
	u64 pfn, flags = 0;
	struct hz h;
	int fd;

	hz_create(&h, 128, GMEM_MMAP_SHARED, 1);
	pin_self_to_any_cpu();
	host_fill(&h, 0, 128, 1);

	pfn = gmem_frame_of(hz_hva(&h, 0));
	HZ_REQUIRE(pfn, "needs /proc/self/pagemap with frame numbers");
	fd = open("/proc/kpageflags", O_RDONLY);
	HZ_REQUIRE(fd >= 0, "needs /proc/kpageflags");
	TEST_ASSERT(pread(fd, &flags, sizeof(flags), pfn * sizeof(flags)) == sizeof(flags),
		    "kpageflags cannot be read");
	close(fd);

	TEST_ASSERT(flags & BIT(KPF_LRU), "Not on the LRU, flags %#lx", flags);
	TEST_ASSERT(flags & BIT(KPF_UNEVICTABLE), "Evictable, flags %#lx", flags);
}

/* Returns false if the kernel lacks this kind. */
static bool h10_one_kind(enum pin_kind kind)
{
	static const u64 policies[] = { GMEM_NONE, GMEM_ZERO, GMEM_PRESERVE };
	struct pin pins[2];
	struct hz h;
	u64 eo;
	int i, r;

	hz_create(&h, 16, GMEM_MMAP_SHARED, 1);
	host_fill(&h, 0, 16, GMEM_SEED(10));

	r = pin_page(&pins[0], kind, hz_hva(&h, 5));
	if (r == ENODEV)
		return false;
	TEST_ASSERT(!r, "%s of a shared page: errno %d (%s)", pin_names[kind], r,
		    strerror(r));
	r = pin_page(&pins[1], kind, hz_hva(&h, 9));
	TEST_ASSERT(!r, "Second %s: errno %d (%s)", pin_names[kind], r, strerror(r));

	for (i = 0; i < ARRAY_SIZE(policies); i++) {
		r = hz_set_until(&h, 2, 12, GMEM_PRIVATE, policies[i], 5, &eo);
		TEST_ASSERT(r == EAGAIN && eo == OFF(5),
			    "%s, policy %#lx: wanted EAGAIN at page 5, got %d (%s) at %#lx",
			    pin_names[kind], policies[i], r, strerror(r), eo);
		attributes_are(&h, 0, 16, GMEM_SHARED);
		host_sees(&h, 0, 16, GMEM_SEED(10));
		guest_sees(&h, 0, 16, GMEM_SEED(10));
	}

	/* A request to shared succeeds. */
	convert(&h, 2, 12, GMEM_SHARED, GMEM_PRESERVE);

	/* The parts without pinned pages convert. */
	convert(&h, 2, 3, GMEM_PRIVATE, GMEM_PRESERVE);
	convert(&h, 6, 3, GMEM_PRIVATE, GMEM_PRESERVE);

	unpin_page(&pins[0]);
	r = hz_set_until(&h, 2, 12, GMEM_PRIVATE, GMEM_PRESERVE, 9, &eo);
	TEST_ASSERT(r == EAGAIN && eo == OFF(9),
		    "%s, one released: wanted EAGAIN at page 9, got %d (%s) at %#lx",
		    pin_names[kind], r, strerror(r), eo);
	attributes_are(&h, 5, 1, GMEM_SHARED);

	unpin_page(&pins[1]);
	convert(&h, 2, 12, GMEM_PRIVATE, GMEM_PRESERVE);
	attributes_are(&h, 2, 12, GMEM_PRIVATE);
	guest_sees(&h, 0, 16, GMEM_SEED(10));
	host_refused(&h, 2, 12);
	kvm_vm_free(h.vm);
	return true;
}

HAZARD(h10_long_term_pin)
{
	HZ_REQUIRE(h10_one_kind(PIN_GUP), "needs debugfs and GUP_TEST");
}

/* Pages without references are skipped by the thousand, but one with a reference is found. */
HAZARD(h10_pins_far_apart)
{
	static const u64 pinned[] = { 1023, 1024, 1025, 2500, 3071 };
	const u64 npages = 3072;
	struct pin pins[ARRAY_SIZE(pinned)];
	struct hz h;
	u64 eo;
	int r;

	hz_create(&h, npages, GMEM_MMAP_SHARED, 1);
	for (u64 i = 0; i < npages; i++)
		*hz_hva(&h, i) = i;
	for (int i = 0; i < ARRAY_SIZE(pinned); i++) {
		r = pin_page(&pins[i], PIN_VMSPLICE, hz_hva(&h, pinned[i]));
		TEST_ASSERT(!r, "vmsplice: errno %d (%s)", r, strerror(r));
	}
	for (int i = 0; i < ARRAY_SIZE(pinned); i++) {
		r = hz_set_until(&h, 0, npages, GMEM_PRIVATE, GMEM_PRESERVE, pinned[i], &eo);
		TEST_ASSERT(r == EAGAIN && eo == OFF(pinned[i]),
			    "Wanted EAGAIN at page %lu, got %d (%s) at %#lx", pinned[i], r,
			    strerror(r), eo);
		attributes_are(&h, 0, npages, GMEM_SHARED);
		unpin_page(&pins[i]);
	}
	convert(&h, 0, npages, GMEM_PRIVATE, GMEM_PRESERVE);
	host_refused(&h, 2500, 1);
	kvm_vm_free(h.vm);
}

HAZARD(h10_long_term_pin_fast)
{
	HZ_REQUIRE(h10_one_kind(PIN_GUP_FAST), "needs debugfs and GUP_TEST");
}

HAZARD(h10_io_uring_registered_buffer)
{
	HZ_REQUIRE(h10_one_kind(PIN_IO_URING), "needs IO_URING");
}

HAZARD(h10_vmsplice)
{
	h10_one_kind(PIN_VMSPLICE);
}

struct h11_pinner {
	struct hz *h;
	atomic_bool stop;
	atomic_ulong pins;
	atomic_ulong secrets;
};

/* A read through a pin stands for a device that reads by DMA. */
static void *h11_pinner(void *arg)
{
	struct h11_pinner *p = arg;
	struct hz_pin_longterm args = {
		.addr = (unsigned long)hz_hva(p->h, 0),
		.size = PG,
		.flags = HZ_PIN_WRITE | HZ_PIN_FAST,
	};
	static u8 buf[4096];
	u64 addr = (unsigned long)buf;
	int fd = open(DEBUGFS "/gup_test", O_RDWR);

	while (!atomic_load(&p->stop)) {
		if (ioctl(fd, HZ_PIN_START, &args)) {
			sched_yield();
			continue;
		}
		atomic_fetch_add(&p->pins, 1);
		if (!ioctl(fd, HZ_PIN_READ, &addr) && buf[8] == SECRET)
			atomic_fetch_add(&p->secrets, 1);
		ioctl(fd, HZ_PIN_STOP, NULL);
		sched_yield();
	}
	close(fd);
	return NULL;
}

static void *h11_compactor(void *arg)
{
	struct h11_pinner *p = arg;

	while (!atomic_load(&p->stop)) {
		/* Takes speculative references of every folio that it meets. */
		hz_write_file("/proc/sys/vm/compact_memory", "1", 0);
		madvise((void *)hz_hva(p->h, 0), PG, MADV_COLD);
	}
	return NULL;
}

HAZARD(h11_speculative_reference_before_commit)
{
	struct h11_pinner pinner = {};
	pthread_t threads[2];
	struct hz h;
	int i;

	HZ_REQUIRE(hz_have_debugfs() && !access(DEBUGFS "/gup_test", F_OK),
		   "needs debugfs and GUP_TEST");

	hz_create(&h, 1, GMEM_MMAP_SHARED, 1);
	pinner.h = &h;
	kvm_pthread_create(&threads[0], NULL, h11_pinner, &pinner);
	kvm_pthread_create(&threads[1], NULL, h11_compactor, &pinner);
	while (!atomic_load(&pinner.pins))
		sched_yield();

	for (i = 0; i < 500; i++) {
		hz_convert_racing(&h, 0, 1, GMEM_PRIVATE, GMEM_ZERO);
		gmem_guest_write(h.vcpus[0], page_gpa(&h, 0) + 8, SECRET);
		convert(&h, 0, 1, GMEM_SHARED, GMEM_ZERO);
	}

	atomic_store(&pinner.stop, true);
	for (i = 0; i < 2; i++)
		kvm_pthread_join(threads[i], NULL);
	TEST_ASSERT(!atomic_load(&pinner.secrets),
		    "%lu of %lu pins read a private byte",
		    (unsigned long)pinner.secrets, (unsigned long)pinner.pins);
}

HAZARD(h36_fork_childs_mapping)
{
	int to_child[2], from_child[2], i;
	char ok, cmd = 0;
	struct hz h;
	pid_t pid;

	hz_create(&h, 4, GMEM_MMAP_SHARED, 1);
	host_fill(&h, 0, 3, GMEM_SEED(36));
	TEST_ASSERT(!pipe(to_child) && !pipe(from_child), "pipe() failed");

	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid) {
		u64 step;

		/* Otherwise the child would keep its own pipe open. */
		close(to_child[1]);
		/* One step for each byte that comes. */
		for (step = 0; read(to_child[0], &cmd, 1) == 1; step++) {
			ok = 0;
			if (step == 0)
				ok = gmem_check(hz_hva(&h, 0), OFF(2), GMEM_SEED(36), 0) ==
				     GMEM_ALL_GOOD;
			else if (step == 1)
				/* Pages 2 and 3 it never touched before. */
				ok = gmem_host_refused(hz_hva(&h, 0)) &&
				     gmem_host_refused(hz_hva(&h, 1)) &&
				     gmem_host_refused(hz_hva(&h, 2)) &&
				     gmem_host_refused(hz_hva(&h, 3));
			else
				ok = gmem_check(hz_hva(&h, 0), OFF(4), GMEM_SEED(37), 0) ==
				     GMEM_ALL_GOOD;
			if (write(from_child[1], &ok, 1) != 1)
				break;
		}
		_exit(0);
	}

	for (i = 0; i < 3; i++) {
		if (i == 1) {
			convert(&h, 0, 4, GMEM_PRIVATE, GMEM_PRESERVE);
			guest_fill(&h, 0, 4, GMEM_SEED(37));
		} else if (i == 2) {
			convert(&h, 0, 4, GMEM_SHARED, GMEM_PRESERVE);
		}
		TEST_ASSERT(write(to_child[1], &cmd, 1) == 1 &&
			    read(from_child[0], &ok, 1) == 1, "The child died");
		TEST_ASSERT(ok, "Step %d is wrong in the child", i);
	}
	close(to_child[1]);
	waitpid(pid, NULL, 0);
	host_sees(&h, 0, 4, GMEM_SEED(37));
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
