// SPDX-License-Identifier: GPL-2.0
/*
 * Hazards of in-place conversion, one subtest each.
 *
 * The numbers are those of Documentation/virt/kvm/guest_memfd/hazards.rst, which
 * also says where the others are tested.
 *
 * Of these only a part can be seen from user space on this type of VM:
 *
 *  1 SW_PROTECTED loses no bytes when a private mapping is zapped without
 *    need, so the number of mappings is looked at, too.
 *  6 The drain's cost is not visible, its number is, where the kernel has
 *    the workqueue trace events.
 * 12, 13 Allocation failures need FAULT_INJECTION, which the sanitised
 *    kernel has; leaks are looked for in the size of all slabs.
 * 20, 21 The large folios that they are about do not exist in 7.3; the
 *    subtests pin down the results for when they do.
 * 33 That faults get in between chunks is tested, the length of a hold is
 *    the benchmark's business.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/falloc.h>
#include <linux/futex.h>
/* For <linux/io_uring.h>: the <linux/types.h> of tools/include lacks it. */
#include <linux/stddef.h>
#include <linux/io_uring.h>
#include <linux/kernel-page-flags.h>
#include <linux/mempolicy.h>
#include <linux/sizes.h>
#include <linux/userfaultfd.h>

#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "gmem_test.h"
#include "hyperv.h"
#include "kvm_test_harness.h"
#include "numaif.h"
#include "svm.h"
#include "svm_util.h"

#define PG		((u64)PAGE_SIZE)
#define OFF(page)	((u64)(page) * PG)

/* Enough for software emulation of a sanitised kernel; a hang takes longer. */
#define HANG_SECONDS	600

#define DEBUGFS		"/sys/kernel/debug"

/* A VM with one file, one slot, one mapping by the host, all the same size. */
struct hz {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[2];
	struct gmem_area a;
	u64 npages;
};

FIXTURE(hazard)
{
	int unused;
};

FIXTURE_SETUP(hazard)
{
}

FIXTURE_TEARDOWN(hazard)
{
}

#define HAZARD(name)	TEST_F_TIMEOUT(hazard, name, HANG_SECONDS)

#define HZ_REQUIRE(cond, why)			\
do {						\
	if (!(cond))				\
		SKIP(return, why);		\
} while (0)

static void hz_create(struct hz *h, u64 npages, u64 flags, u32 nr_vcpus)
{
	u32 i;

	memset(h, 0, sizeof(*h));
	h->npages = npages;
	h->vm = gmem_vm_create(nr_vcpus, npages, h->vcpus);
	gmem_area_create(&h->a, h->vm, GMEM_SLOT, GMEM_GPA, OFF(npages), flags);
	for (i = 0; i < nr_vcpus; i++)
		gmem_guest_start(h->vcpus[i]);
}

static gpa_t hz_gpa(struct hz *h, u64 page)
{
	return h->a.gpa + OFF(page);
}

static volatile u8 *hz_hva(struct hz *h, u64 page)
{
	return h->a.hva + OFF(page);
}

static void hz_host_fill(struct hz *h, u64 page, u64 n, u32 pattern)
{
	gmem_fill(hz_hva(h, page), OFF(n), pattern, OFF(page));
}

static void hz_guest_fill(struct hz *h, u64 page, u64 n, u32 pattern)
{
	gmem_guest_fill(h->vcpus[0], hz_gpa(h, page), OFF(n), pattern, OFF(page));
}

/* Macros, so that a failure names the line of the test. */
#define hz_host_sees(h, page, n, pattern)					\
	gmem_host_assert(hz_hva(h, page), OFF(n), pattern, OFF(page))
#define hz_guest_sees(h, page, n, pattern)					\
	gmem_guest_assert((h)->vcpus[0], hz_gpa(h, page), OFF(n), pattern, OFF(page))
#define hz_convert(h, page, n, attrs, policy)					\
	gmem_convert((h)->a.fd, OFF(page), OFF(n), attrs, policy)
#define hz_attrs_are(h, page, n, attrs)						\
	gmem_assert_attributes((h)->a.fd, OFF(page), OFF(n), attrs)
#define hz_host_refused(h, page, n)						\
	gmem_host_assert_refused(hz_hva(h, page), OFF(n))

/* One request, no retry: the wanted errno, and error_offset where given. */
#define hz_refused(h, page, n, attrs, policy, want, want_page)			\
do {										\
	u64 __eo;								\
	int __r = gmem_set_once((h)->a.fd, OFF(page), OFF(n), attrs, policy,	\
				&__eo);						\
										\
	TEST_ASSERT(__r == (want), "Wanted errno %d, got %d (%s)", (want), __r,	\
		    strerror(__r));						\
	TEST_ASSERT(__eo == OFF(want_page),					\
		    "Wanted error_offset %#lx, got %#lx", OFF(want_page), __eo);\
} while (0)

/* The same where a transient reference may still come first: retry a little. */
static int hz_set_until(struct hz *h, u64 page, u64 n, u64 attrs, u64 policy,
			u64 want_page, u64 *eo)
{
	int i, r = 0;

	for (i = 0; i < GMEM_MAX_RETRIES; i++) {
		r = gmem_set_once(h->a.fd, OFF(page), OFF(n), attrs, policy, eo);
		if (r != EAGAIN || *eo == OFF(want_page))
			break;
		sched_yield();
	}
	return r;
}

/*
 * The same against threads that never stop to take references: as often as it
 * takes, which the harness's timeout limits.
 */
#define hz_convert_racing(h, page, n, attrs, policy)				\
do {										\
	int __r;								\
										\
	while ((__r = gmem_set_once((h)->a.fd, OFF(page), OFF(n), attrs,	\
				    policy, NULL)) == EAGAIN)			\
		sched_yield();							\
	TEST_ASSERT(!__r, "errno %d (%s)", __r, strerror(__r));			\
} while (0)

static bool hz_have_debugfs(void)
{
	if (!access(DEBUGFS "/kvm", F_OK))
		return true;
	if (mount("debugfs", DEBUGFS, "debugfs", 0, NULL) && errno != EBUSY)
		return false;
	return !access(DEBUGFS, R_OK);
}

static int hz_write_file(const char *path, const char *fmt, u64 val)
{
	char buf[64];
	int fd, r = 0;

	/* Truncating is what empties the trace. */
	fd = open(path, O_WRONLY | O_TRUNC);
	if (fd < 0)
		return errno;
	snprintf(buf, sizeof(buf), fmt, val);
	if (write(fd, buf, strlen(buf)) < 0)
		r = errno;
	close(fd);
	return r;
}

/* Bit 63 of a page map entry: present; the low 55: the frame, for root. */
static u64 hz_pagemap(const volatile void *hva)
{
	u64 entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	if (fd < 0)
		return 0;
	if (pread(fd, &entry, sizeof(entry),
		  (unsigned long)hva / PG * sizeof(entry)) != sizeof(entry))
		entry = 0;
	close(fd);
	return entry;
}

static u64 hz_pfn(const volatile void *hva)
{
	u64 entry = hz_pagemap(hva);

	return entry >> 63 ? entry & ((1ULL << 55) - 1) : 0;
}

static u32 hz_rand(u32 *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

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

/* --- References that do not go away -------------------------------------- */

/* From mm/gup_test.h, which is not exported. */
struct hz_pin_longterm {
	__u64 addr;
	__u64 size;
	__u32 flags;
};

#define HZ_PIN_START	_IOW('g', 7, struct hz_pin_longterm)
#define HZ_PIN_STOP	_IO('g', 8)
#define HZ_PIN_READ	_IOW('g', 9, __u64)
#define HZ_PIN_WRITE	1
#define HZ_PIN_FAST	2

enum pin_kind {
	PIN_GUP,
	PIN_GUP_FAST,
	PIN_IO_URING,
	PIN_VMSPLICE,
	NR_PIN_KINDS,
};

static const char * const pin_names[] = {
	[PIN_GUP]	= "long-term pin",
	[PIN_GUP_FAST]	= "long-term pin, fast path",
	[PIN_IO_URING]	= "io_uring registered buffer",
	[PIN_VMSPLICE]	= "vmsplice()d page",
};

struct pin {
	enum pin_kind kind;
	int fd;
	int pipe[2];
};

static int ring_create(struct io_uring_params *p)
{
	memset(p, 0, sizeof(*p));
	return syscall(__NR_io_uring_setup, 4, p);
}

/* Returns 0 or errno; ENODEV if the kernel lacks the means. */
static int pin_page(struct pin *pin, enum pin_kind kind, volatile u8 *hva)
{
	struct iovec iov = { .iov_base = (void *)hva, .iov_len = PG };
	struct hz_pin_longterm args = {
		.addr = (unsigned long)hva,
		.size = PG,
		.flags = HZ_PIN_WRITE | (kind == PIN_GUP_FAST ? HZ_PIN_FAST : 0),
	};
	struct io_uring_params params;
	int r = 0;

	pin->kind = kind;
	pin->fd = -1;
	pin->pipe[0] = -1;
	pin->pipe[1] = -1;

	switch (kind) {
	case PIN_GUP:
	case PIN_GUP_FAST:
		if (!hz_have_debugfs())
			return ENODEV;
		pin->fd = open(DEBUGFS "/gup_test", O_RDWR);
		if (pin->fd < 0)
			return ENODEV;
		if (ioctl(pin->fd, HZ_PIN_START, &args))
			r = errno;
		break;
	case PIN_IO_URING:
		pin->fd = ring_create(&params);
		if (pin->fd < 0)
			return ENODEV;
		if (syscall(__NR_io_uring_register, pin->fd,
			    IORING_REGISTER_BUFFERS, &iov, 1))
			r = errno;
		break;
	case PIN_VMSPLICE:
		TEST_ASSERT(!pipe(pin->pipe), "pipe() failed");
		if (vmsplice(pin->pipe[1], &iov, 1, 0) != PG)
			r = errno;
		break;
	default:
		TEST_FAIL("No such pin");
	}
	return r;
}

static void unpin_page(struct pin *pin)
{
	if (pin->kind == PIN_IO_URING)
		syscall(__NR_io_uring_register, pin->fd,
			IORING_UNREGISTER_BUFFERS, NULL, 0);
	if (pin->fd >= 0)
		close(pin->fd);
	if (pin->pipe[0] >= 0) {
		close(pin->pipe[0]);
		close(pin->pipe[1]);
	}
}

/* --- A guest of our own --------------------------------------------------- */

enum {
	MSR_OP_WRMSR,
	MSR_OP_VMSAVE,
	MSR_OP_CLOCK_PAIRING,
	MSR_OP_NOP,
};

static struct {
	u64 op;
	u64 msr;
	u64 val;
	u64 vector;
} msr_cmd;

/* Executes what makes KVM write to guest memory on the guest's behalf. */
static void msr_guest_code(void)
{
	for (;;) {
		GUEST_SYNC(0);
		switch (READ_ONCE(msr_cmd.op)) {
		case MSR_OP_WRMSR:
			msr_cmd.vector = wrmsr_safe(msr_cmd.msr, msr_cmd.val);
			break;
		case MSR_OP_VMSAVE:
			wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SVME);
			msr_cmd.vector = kvm_asm_safe("vmsave %%rax",
						      "a"(msr_cmd.val));
			break;
		case MSR_OP_CLOCK_PAIRING:
			kvm_hypercall(KVM_HC_CLOCK_PAIRING, msr_cmd.val, 0, 0, 0);
			break;
		}
	}
}

/* Returns as gmem_guest_resume() does; the result is in msr_cmd. */
static int msr_try(struct kvm_vcpu *vcpu, u64 op, u64 msr, u64 val)
{
	int r;

	msr_cmd.op = op;
	msr_cmd.msr = msr;
	msr_cmd.val = val;
	msr_cmd.vector = 0;
	sync_global_to_guest(vcpu->vm, msr_cmd);
	r = gmem_guest_resume(vcpu);
	sync_global_from_guest(vcpu->vm, msr_cmd);
	return r;
}

/* The vector of the exception that the guest got, 0 for none. */
static u64 msr_do(struct kvm_vcpu *vcpu, u64 op, u64 msr, u64 val)
{
	int r = msr_try(vcpu, op, msr, val);

	gmem_guest_ok(vcpu, r);
	return msr_cmd.vector;
}

/*
 * Guest code for races: touch pages until told to stop. It does not use the
 * ucall pool while it runs, so that nothing but the pages can fault.
 */
static struct {
	u64 gpa;
	u64 npages;
	u64 forbidden;	/* a qword that no page may ever hold */
	u64 write;	/* count up in the first qword of each page */
	u64 stop;
	u64 rounds;	/* out: times round */
	u64 seen;	/* out: the forbidden one was seen */
	u64 lost;	/* out: a count was not what this vCPU had left there */
} spin;

#define SPIN_MAX_PAGES	64

static void spin_guest_code(void)
{
	u64 left[SPIN_MAX_PAGES] = {};
	u64 i;

	GUEST_SYNC(0);
	while (!READ_ONCE(spin.stop)) {
		for (i = 0; i < READ_ONCE(spin.npages); i++) {
			volatile u64 *p = (void *)(spin.gpa + i * PAGE_SIZE);
			u64 val = *p;

			if (spin.forbidden && val == spin.forbidden)
				spin.seen = 1;
			if (!spin.write)
				continue;
			if (val != left[i])
				spin.lost++;
			left[i] = val + 1;
			*p = left[i];
		}
		WRITE_ONCE(spin.rounds, spin.rounds + 1);
	}
	GUEST_SYNC(1);
	for (;;)
		;
}

#define spin_shared(vm) ((volatile typeof(spin) *)addr_gva2hva(vm, (gva_t)&spin))

struct spin_thread {
	pthread_t thread;
	struct kvm_vcpu *vcpu;
	atomic_ulong faults;
	/* What else than a reason to go on ended the run; 0 if nothing did. */
	int error;
};

/*
 * Run until the guest is done. A memory fault (no file behind the slot at
 * this moment) and an access to a hole (no slot at this moment) are what
 * the tests with slots that vanish ask for: go on, with nothing read.
 */
static void *spin_thread(void *arg)
{
	struct spin_thread *t = arg;
	struct kvm_run *run = t->vcpu->run;
	int r;

	for (;;) {
		r = __vcpu_run(t->vcpu);
		if (r < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (r < 0 && errno == EFAULT &&
		    run->exit_reason == KVM_EXIT_MEMORY_FAULT) {
			atomic_fetch_add(&t->faults, 1);
			sched_yield();
			continue;
		}
		if (r < 0) {
			t->error = errno;
			return NULL;
		}
		if (run->exit_reason == KVM_EXIT_MMIO) {
			memset(run->mmio.data, 0, sizeof(run->mmio.data));
			atomic_fetch_add(&t->faults, 1);
			sched_yield();
			continue;
		}
		if (run->exit_reason != KVM_EXIT_IO)
			t->error = 10000 + run->exit_reason;
		return NULL;
	}
}

static void spin_start(struct spin_thread *t, struct kvm_vcpu *vcpu, u64 gpa,
		       u64 npages, u64 forbidden, bool write)
{
	memset(t, 0, sizeof(*t));
	t->vcpu = vcpu;
	memset(&spin, 0, sizeof(spin));
	spin.gpa = gpa;
	spin.npages = npages;
	spin.forbidden = forbidden;
	spin.write = write;
	TEST_ASSERT(npages <= SPIN_MAX_PAGES, "Too many pages to spin on");
	sync_global_to_guest(vcpu->vm, spin);
	kvm_pthread_create(&t->thread, NULL, spin_thread, t);
}

static void spin_stop(struct spin_thread *t)
{
	struct kvm_vm *vm = t->vcpu->vm;

	spin_shared(vm)->stop = 1;
	kvm_pthread_join(t->thread, NULL);
	TEST_ASSERT(!t->error, "vCPU ended with %d, exit reason %u (%s)",
		    t->error, t->vcpu->run->exit_reason,
		    exit_reason_str(t->vcpu->run->exit_reason));
	TEST_ASSERT(!spin_shared(vm)->seen, "The guest saw %#lx",
		    spin_shared(vm)->forbidden);
}

/* Wait until the guest has gone round once more, so that it takes part. */
static void spin_wait_round(struct spin_thread *t)
{
	volatile typeof(spin) *s = spin_shared(t->vcpu->vm);
	u64 before = s->rounds;

	while (s->rounds == before && !t->error)
		sched_yield();
}

/* Make vCPU 0 of a fresh VM a spinning one and bring it to its start. */
static void spin_prepare(struct kvm_vcpu *vcpu)
{
	vcpu_arch_set_entry_point(vcpu, spin_guest_code);
	gmem_guest_start(vcpu);
}

/* --- 1 to 9 ---------------------------------------------------------------- */

HAZARD(h01_mixed_range_to_private_keeps_private_bytes)
{
	struct hz h;
	u64 mapped;
	int i;

	hz_create(&h, 8, GMEM_MMAP_SHARED, 1);

	for (i = 0; i < 8; i += 2) {
		hz_convert(&h, i, 1, GMEM_PRIVATE, GMEM_PRESERVE);
		hz_guest_fill(&h, i, 1, GMEM_SEED(1));
		hz_host_fill(&h, i + 1, 1, GMEM_SEED(2));
	}

	for (i = 0; i < 8; i += 2)
		hz_guest_sees(&h, i + 1, 1, GMEM_SEED(2));

	mapped = vm_get_stat(h.vm, pages_4k);
	hz_convert(&h, 0, 8, GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT_EQ(vm_get_stat(h.vm, pages_4k), mapped - 4);

	hz_attrs_are(&h, 0, 8, GMEM_PRIVATE);
	for (i = 0; i < 8; i += 2) {
		hz_guest_sees(&h, i, 1, GMEM_SEED(1));
		hz_guest_sees(&h, i + 1, 1, GMEM_SEED(2));
	}
	hz_host_refused(&h, 0, 8);
}

struct h02_reader {
	struct hz *h;
	u64 shared_page;
	u64 private_page;
	atomic_bool stop;
	atomic_ulong reads;
	atomic_ulong wrong;
};

static void *h02_reader(void *arg)
{
	struct h02_reader *r = arg;
	u8 val;

	while (!atomic_load(&r->stop)) {
		if (!gmem_host_read(hz_hva(r->h, r->shared_page), &val) ||
		    val != 0x5a)
			atomic_fetch_add(&r->wrong, 1);
		if (gmem_host_read(hz_hva(r->h, r->private_page), &val))
			atomic_fetch_add(&r->wrong, 1);
		if (gmem_is_private(r->h->a.fd, OFF(r->shared_page)) ||
		    !gmem_is_private(r->h->a.fd, OFF(r->private_page)))
			atomic_fetch_add(&r->wrong, 1);
		atomic_fetch_add(&r->reads, 1);
	}
	return NULL;
}

/*
 * Entries are split, merged and stored all around two pages whose own state
 * never changes: nobody may see another state of these two at any instant.
 */
HAZARD(h02_lookup_while_the_map_is_rewritten)
{
	struct h02_reader reader = { .shared_page = 15, .private_page = 16 };
	struct spin_thread t;
	pthread_t thread;
	u32 seed = 2;
	struct hz h;
	int i;

	memset(&h, 0, sizeof(h));
	h.npages = 32;
	h.vm = gmem_vm_create(1, 32, h.vcpus);
	gmem_area_create(&h.a, h.vm, GMEM_SLOT, GMEM_GPA, OFF(32), GMEM_MMAP_SHARED);

	gmem_fill(hz_hva(&h, 15), PG, 0x5a, 0);
	hz_convert(&h, 16, 1, GMEM_PRIVATE, GMEM_ZERO);
	spin_prepare(h.vcpus[0]);
	spin_start(&t, h.vcpus[0], hz_gpa(&h, 15), 2, 0, false);
	reader.h = &h;
	kvm_pthread_create(&thread, NULL, h02_reader, &reader);
	spin_wait_round(&t);

	for (i = 0; i < 4000; i++) {
		bool high = hz_rand(&seed) & 1;
		u64 first = hz_rand(&seed) % 15;
		u64 n = 1 + hz_rand(&seed) % (15 - first);

		hz_convert(&h, first + (high ? 17 : 0), n,
			   hz_rand(&seed) & 1 ? GMEM_PRIVATE : GMEM_SHARED,
			   GMEM_PRESERVE);
	}
	spin_wait_round(&t);

	atomic_store(&reader.stop, true);
	kvm_pthread_join(thread, NULL);
	spin_stop(&t);
	TEST_ASSERT(!t.faults, "The guest got %lu memory faults",
		    (unsigned long)t.faults);
	TEST_ASSERT(atomic_load(&reader.reads), "The reader never ran");
	TEST_ASSERT(!atomic_load(&reader.wrong),
		    "%lu of %lu looks at unchanging pages were wrong",
		    (unsigned long)reader.wrong, (unsigned long)reader.reads);
}

/* The runs that GET reports tile the file and say what a plain array says. */
HAZARD(h03_no_page_without_an_entry)
{
	const u64 n = 64;
	bool model[64] = {};
	u64 off, attr, size;
	u32 seed = 3;
	struct hz h;
	int i, r;

	hz_create(&h, n, GMEM_MMAP_SHARED, 1);

	r = gmem_get(h.a.fd, 0, &attr, &size);
	TEST_ASSERT(!r && !attr && size == OFF(n),
		    "A new file: errno %d, attributes %#lx, run %#lx", r, attr, size);

	for (i = 0; i < 500; i++) {
		u64 first = hz_rand(&seed) % n;
		u64 len = 1 + hz_rand(&seed) % (n - first);
		bool private = hz_rand(&seed) & 1;
		u64 p, end;

		hz_convert(&h, first, len, private ? GMEM_PRIVATE : GMEM_SHARED,
			   GMEM_PRESERVE);
		for (p = first; p < first + len; p++)
			model[p] = private;

		for (off = 0; off < OFF(n); off += size) {
			r = gmem_get(h.a.fd, off, &attr, &size);
			TEST_ASSERT(!r, "GET at %#lx: errno %d", off, r);
			for (end = off / PG;
			     end < n && model[end] == model[off / PG]; end++)
				;
			TEST_ASSERT(!!attr == model[off / PG] &&
				    off + size == OFF(end),
				    "Run at page %lu: attributes %#lx to page %lu, wanted %d to %lu",
				    off / PG, attr, (off + size) / PG,
				    model[off / PG], end);
		}
	}
}

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
		gmem_guest_write(h.vcpus[0], hz_gpa(&h, i + 6), 1);

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
	hz_host_fill(&h, 0, 64, 1);
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
 * Who has a page pinned can have as many requests fail as he wants, each of
 * which drains all CPUs. So they take their time. This is a lower bound, which
 * holds on a slow machine, too.
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
	hz_host_fill(&h, 0, 16, 1);
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

/* The batch holds 31 folios, so that the first of 128 has left it. */
HAZARD(h07_folios_are_on_the_lru)
{
	u64 pfn, flags = 0;
	struct hz h;
	int fd;

	hz_create(&h, 128, GMEM_MMAP_SHARED, 1);
	pin_self_to_any_cpu();
	hz_host_fill(&h, 0, 128, 1);

	pfn = hz_pfn(hz_hva(&h, 0));
	HZ_REQUIRE(pfn, "needs /proc/self/pagemap with frame numbers");
	fd = open("/proc/kpageflags", O_RDONLY);
	HZ_REQUIRE(fd >= 0, "needs /proc/kpageflags");
	TEST_ASSERT(pread(fd, &flags, sizeof(flags), pfn * sizeof(flags)) == sizeof(flags),
		    "kpageflags cannot be read");
	close(fd);

	TEST_ASSERT(flags & BIT(KPF_LRU), "Not on the LRU, flags %#lx", flags);
	TEST_ASSERT(flags & BIT(KPF_UNEVICTABLE), "Evictable, flags %#lx", flags);
}

#define SECRET	0x5e	/* written by the guest into private pages only */

struct h08_reader {
	struct hz *h;
	atomic_bool stop;
	atomic_ulong reads;
	atomic_ulong secrets;
};

static void *h08_reader(void *arg)
{
	struct h08_reader *r = arg;
	u8 val;
	int i;

	while (!atomic_load(&r->stop)) {
		for (i = 0; i < 2; i++) {
			if (!gmem_host_read(hz_hva(r->h, i) + 8, &val))
				continue;
			atomic_fetch_add(&r->reads, 1);
			if (val == SECRET)
				atomic_fetch_add(&r->secrets, 1);
		}
	}
	return NULL;
}

HAZARD(h08_host_fault_races_conversion)
{
	struct h08_reader reader = {};
	pthread_t threads[2];
	struct hz h;
	int i;

	hz_create(&h, 2, GMEM_MMAP_SHARED, 1);
	reader.h = &h;
	for (i = 0; i < 2; i++)
		kvm_pthread_create(&threads[i], NULL, h08_reader, &reader);

	for (i = 0; i < 1000; i++) {
		/* The readers' references are transient, but there are many. */
		hz_convert_racing(&h, 0, 2, GMEM_PRIVATE, GMEM_ZERO);
		gmem_guest_write(h.vcpus[0], hz_gpa(&h, 0) + 8, SECRET);
		gmem_guest_write(h.vcpus[0], hz_gpa(&h, 1) + 8, SECRET);
		hz_convert(&h, 0, 2, GMEM_SHARED, GMEM_ZERO);
	}

	atomic_store(&reader.stop, true);
	for (i = 0; i < 2; i++)
		kvm_pthread_join(threads[i], NULL);
	TEST_ASSERT(atomic_load(&reader.reads), "No read ever succeeded");
	TEST_ASSERT(!atomic_load(&reader.secrets),
		    "%lu of %lu reads saw a private byte",
		    (unsigned long)reader.secrets, (unsigned long)reader.reads);
}

/*
 * The guest counts up in a page that changes state beneath it with PRESERVE:
 * whichever mapping it has at a moment, it is the same page and no count is
 * lost; nor is there any reason for it to leave KVM_RUN.
 */
HAZARD(h09_guest_fault_races_conversion)
{
	struct spin_thread t;
	struct hz h;
	int i;

	memset(&h, 0, sizeof(h));
	h.npages = 4;
	h.vm = gmem_vm_create(1, 4, h.vcpus);
	gmem_area_create(&h.a, h.vm, GMEM_SLOT, GMEM_GPA, OFF(4), GMEM_MMAP_SHARED);
	spin_prepare(h.vcpus[0]);
	spin_start(&t, h.vcpus[0], hz_gpa(&h, 0), 4, 0, true);

	for (i = 0; i < 1000; i++) {
		hz_convert_racing(&h, i & 3, 1, i & 4 ? GMEM_PRIVATE : GMEM_SHARED,
				  GMEM_PRESERVE);
		if (!(i & 63))
			spin_wait_round(&t);
	}
	spin_wait_round(&t);
	spin_stop(&t);
	TEST_ASSERT(!t.faults, "The guest got %lu memory faults",
		    (unsigned long)t.faults);
	TEST_ASSERT(!spin_shared(h.vm)->lost, "%lu counts were lost",
		    spin_shared(h.vm)->lost);

	hz_convert(&h, 0, 4, GMEM_SHARED, GMEM_PRESERVE);
	for (i = 0; i < 4; i++)
		TEST_ASSERT_EQ(*(volatile u64 *)hz_hva(&h, i),
			       spin_shared(h.vm)->rounds);
}

/* --- 10 to 13 --------------------------------------------------------------- */

/* Returns false if the kernel lacks this kind. */
static bool h10_one_kind(enum pin_kind kind)
{
	static const u64 policies[] = { GMEM_NONE, GMEM_ZERO, GMEM_PRESERVE };
	struct pin pins[2];
	struct hz h;
	u64 eo;
	int i, r;

	hz_create(&h, 16, GMEM_MMAP_SHARED, 1);
	hz_host_fill(&h, 0, 16, GMEM_SEED(10));

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
		hz_attrs_are(&h, 0, 16, GMEM_SHARED);
		hz_host_sees(&h, 0, 16, GMEM_SEED(10));
		hz_guest_sees(&h, 0, 16, GMEM_SEED(10));
	}

	/* To shared nobody minds. */
	hz_convert(&h, 2, 12, GMEM_SHARED, GMEM_PRESERVE);

	/* The parts without pinned pages convert. */
	hz_convert(&h, 2, 3, GMEM_PRIVATE, GMEM_PRESERVE);
	hz_convert(&h, 6, 3, GMEM_PRIVATE, GMEM_PRESERVE);

	unpin_page(&pins[0]);
	r = hz_set_until(&h, 2, 12, GMEM_PRIVATE, GMEM_PRESERVE, 9, &eo);
	TEST_ASSERT(r == EAGAIN && eo == OFF(9),
		    "%s, one released: wanted EAGAIN at page 9, got %d (%s) at %#lx",
		    pin_names[kind], r, strerror(r), eo);
	hz_attrs_are(&h, 5, 1, GMEM_SHARED);

	unpin_page(&pins[1]);
	hz_convert(&h, 2, 12, GMEM_PRIVATE, GMEM_PRESERVE);
	hz_attrs_are(&h, 2, 12, GMEM_PRIVATE);
	hz_guest_sees(&h, 0, 16, GMEM_SEED(10));
	hz_host_refused(&h, 2, 12);
	kvm_vm_free(h.vm);
	return true;
}

HAZARD(h10_long_term_pin)
{
	HZ_REQUIRE(h10_one_kind(PIN_GUP), "needs debugfs and GUP_TEST");
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

/* What a pin reads is what a device would read by DMA. */
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
		gmem_guest_write(h.vcpus[0], hz_gpa(&h, 0) + 8, SECRET);
		hz_convert(&h, 0, 1, GMEM_SHARED, GMEM_ZERO);
	}

	atomic_store(&pinner.stop, true);
	for (i = 0; i < 2; i++)
		kvm_pthread_join(threads[i], NULL);
	TEST_ASSERT(!atomic_load(&pinner.secrets),
		    "%lu of %lu pins read a private byte",
		    (unsigned long)pinner.secrets, (unsigned long)pinner.pins);
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
	hz_host_fill(&h, 0, 32, GMEM_SEED(12));
	hz_convert(&h, 8, 8, GMEM_PRIVATE, GMEM_PRESERVE);
	r = pin_page(&pin, PIN_VMSPLICE, hz_hva(&h, 31));
	TEST_ASSERT(!r, "vmsplice(): errno %d", r);

	for (i = 0; i < ARRAY_SIZE(policies); i++) {
		r = hz_set_until(&h, 0, 32, GMEM_PRIVATE, policies[i], 31, &eo);
		TEST_ASSERT(r == EAGAIN && eo == OFF(31),
			    "Policy %#lx: %d (%s) at %#lx", policies[i], r,
			    strerror(r), eo);
		hz_attrs_are(&h, 0, 8, GMEM_SHARED);
		hz_attrs_are(&h, 8, 8, GMEM_PRIVATE);
		hz_attrs_are(&h, 16, 16, GMEM_SHARED);
		hz_guest_sees(&h, 0, 32, GMEM_SEED(12));
		hz_host_sees(&h, 0, 8, GMEM_SEED(12));
		hz_host_sees(&h, 16, 16, GMEM_SEED(12));
		hz_host_refused(&h, 8, 8);
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
	hz_host_fill(&h, 0, 16, GMEM_SEED(12));

	for (i = 0; i < ARRAY_SIZE(policies) * 2; i++) {
		u64 attrs, before;

		to_private = i & 1;
		attrs = to_private ? GMEM_PRIVATE : GMEM_SHARED;
		before = to_private ? GMEM_SHARED : GMEM_PRIVATE;
		/* Holes on both sides, so that the store needs nodes. */
		hz_convert(&h, 0, 16, GMEM_SHARED, GMEM_PRESERVE);
		hz_convert(&h, 3, 10, before, GMEM_PRESERVE);

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
			hz_attrs_are(&h, 0, 3, GMEM_SHARED);
			hz_attrs_are(&h, 3, 10, before);
			hz_attrs_are(&h, 13, 3, GMEM_SHARED);
			hz_guest_sees(&h, 0, 16, GMEM_SEED(12));
		}
		TEST_ASSERT(!r, "Still failing after %d allocations", nth);
		hz_attrs_are(&h, 3, 10, attrs);
		hz_convert(&h, 0, 16, GMEM_SHARED, GMEM_PRESERVE);
		hz_host_fill(&h, 0, 16, GMEM_SEED(12));
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

/* A bitmap of attributes takes 96 bytes: two leaked by each request make 1.9 MiB. */
HAZARD(h13_failed_requests_leak_no_nodes)
{
	long before, after;
	struct pin pin;
	struct hz h;
	int i, r;

	HZ_REQUIRE(!hz_kasan(), "KASAN's quarantine keeps freed memory");
	HZ_REQUIRE(h13_slab_kib() > 0, "needs SUnreclaim in /proc/meminfo");

	hz_create(&h, 1024, GMEM_MMAP_SHARED, 1);
	hz_host_fill(&h, 0, 16, 1);
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

/* --- 18 to 25 ---------------------------------------------------------------- */

/*
 * The first four pages are shared, the others private, all written and so
 * mapped by the guest, with both kinds of mapping on either side.
 */
static void h18_create(struct hz *h, u64 flags)
{
	hz_create(h, 8, flags, 2);
	if (flags & GUEST_MEMFD_FLAG_INIT_SHARED)
		hz_convert(h, 4, 4, GMEM_PRIVATE, GMEM_PRESERVE);
	else
		hz_convert(h, 0, 4, GMEM_SHARED, GMEM_PRESERVE);
	hz_guest_fill(h, 0, 8, GMEM_SEED(18));
	hz_host_sees(h, 0, 4, GMEM_SEED(18));
}

HAZARD(h18_punch_invalidates_both_kinds)
{
	static const u64 flags[] = { GMEM_MMAP_SHARED, GUEST_MEMFD_FLAG_MMAP };
	struct hz h;
	int i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		h18_create(&h, flags[i]);
		TEST_ASSERT(!gmem_punch(h.a.fd, OFF(2), OFF(4)), "punch failed");

		hz_attrs_are(&h, 0, 4, GMEM_SHARED);
		hz_attrs_are(&h, 4, 4, GMEM_PRIVATE);
		hz_guest_sees(&h, 0, 2, GMEM_SEED(18));
		hz_guest_sees(&h, 2, 4, GMEM_ZEROES);
		hz_guest_sees(&h, 6, 2, GMEM_SEED(18));
		hz_host_sees(&h, 0, 2, GMEM_SEED(18));
		hz_host_sees(&h, 2, 2, GMEM_ZEROES);
		hz_host_refused(&h, 4, 4);

		/* Both see the new page, none the old one. */
		hz_guest_fill(&h, 2, 4, GMEM_SEED(19));
		hz_host_sees(&h, 2, 2, GMEM_SEED(19));
		hz_convert(&h, 4, 2, GMEM_SHARED, GMEM_PRESERVE);
		hz_host_sees(&h, 4, 2, GMEM_SEED(19));
		kvm_vm_free(h.vm);
	}
}

/* With the file gone neither kind of page is reachable by the guest. */
HAZARD(h18_release_invalidates_both_kinds)
{
	static const u64 flags[] = { GMEM_MMAP_SHARED, GUEST_MEMFD_FLAG_MMAP };
	struct hz h;
	int i, j, r;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		h18_create(&h, flags[i]);
		kvm_munmap(h.a.hva, h.a.size);
		kvm_close(h.a.fd);

		for (j = 0; j < 2; j++) {
			r = __gmem_guest_do(h.vcpus[j], GMEM_OP_READ,
					    hz_gpa(&h, j ? 6 : 1), 1, 0, 0, 0);
			TEST_ASSERT(r == -EFAULT &&
				    h.vcpus[j]->run->exit_reason == KVM_EXIT_MEMORY_FAULT,
				    "%s page after release: %d, exit reason %u",
				    j ? "Private" : "Shared", r,
				    h.vcpus[j]->run->exit_reason);
		}
		kvm_vm_free(h.vm);
	}
}

/*
 * Poison a page through the mapping. The kernel tells the process by SIGBUS,
 * which comes when madvise() returns. EBUSY is what it says for a page that is
 * poisoned but that somebody else still holds, if only at this moment.
 */
static int poison_mapped(volatile u8 *hva)
{
	volatile int r = 0;

	if (!sigsetjmp(gmem_probe_env, 1)) {
		gmem_probing = 1;
		if (madvise((void *)hva, PG, MADV_HWPOISON) && errno != EBUSY)
			r = errno;
	}
	gmem_probing = 0;
	return r;
}

/* Poison the frame, wherever it is. Returns 0 or errno. */
static int poison_pfn(u64 pfn)
{
	volatile int r = 0;

	if (!sigsetjmp(gmem_probe_env, 1)) {
		gmem_probing = 1;
		r = hz_write_file(DEBUGFS "/hwpoison/corrupt-pfn", "%#lx", pfn);
		if (r == EBUSY)
			r = 0;
	}
	gmem_probing = 0;
	return r;
}

static bool can_poison_pfn(void)
{
	return hz_have_debugfs() && !access(DEBUGFS "/hwpoison/corrupt-pfn", W_OK);
}

/* Whether this kernel has MADV_HWPOISON at all, tried on an innocent page. */
static bool can_poison_mapped(void)
{
	u8 *mem = kvm_mmap(PG, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1);
	int r = madvise(mem, 0, MADV_HWPOISON);

	kvm_munmap(mem, PG);
	return !r;
}

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
		hz_convert(&h, 6, 1, GMEM_SHARED, GMEM_PRESERVE);
		hz_host_sees(&h, 6, 1, GMEM_SEED(18));
		pfn = hz_pfn(hz_hva(&h, 6));
		TEST_ASSERT(pfn, "No frame number of a mapped page");
		hz_convert(&h, 6, 1, GMEM_PRIVATE, GMEM_PRESERVE);
		hz_guest_sees(&h, 6, 1, GMEM_SEED(18));

		r = poison_mapped(hz_hva(&h, 1));
		TEST_ASSERT(!r, "MADV_HWPOISON: errno %d (%s)", r, strerror(r));
		r = poison_pfn(pfn);
		TEST_ASSERT(!r, "corrupt-pfn: errno %d (%s)", r, strerror(r));

		hz_host_refused(&h, 1, 1);
		hz_host_refused(&h, 6, 1);
		for (j = 0; j < 2; j++) {
			u64 page = j ? 6 : 1;

			r = __gmem_guest_do(h.vcpus[j], GMEM_OP_READ,
					    hz_gpa(&h, page), 1, 0, 0, 0);
			TEST_ASSERT(r == -EHWPOISON,
				    "%s poisoned page: %d, exit reason %u",
				    j ? "Private" : "Shared", r,
				    h.vcpus[j]->run->exit_reason);

			/* A hole in its place is as good as new. */
			TEST_ASSERT(!gmem_punch(h.a.fd, OFF(page), PG), "punch");
			r = gmem_guest_resume(h.vcpus[j]);
			TEST_ASSERT(!r, "After the punch: %d", r);
			TEST_ASSERT_EQ((u8)gmem_cmd_of(h.vcpus[j])->value, 0);
		}
		hz_guest_sees(&h, 2, 4, GMEM_SEED(18));
		kvm_vm_free(h.vm);
	}
}

/* Not one page too few, not one too many, up to indexes over 32 bits. */
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
	/* Batched references off, so that only the pin is left. */
	hz_convert(&h, 0, 512, GMEM_PRIVATE, GMEM_PRESERVE);
	hz_convert(&h, 0, 512, GMEM_SHARED, GMEM_PRESERVE);
	*hz_hva(&h, 100) = 1;
	r = pin_page(&pin, PIN_VMSPLICE, hz_hva(&h, 100));
	TEST_ASSERT(!r, "vmsplice(): errno %d", r);

	hz_refused(&h, 100, 1, GMEM_PRIVATE, GMEM_PRESERVE, EAGAIN, 100);
	hz_refused(&h, 100, 412, GMEM_PRIVATE, GMEM_PRESERVE, EAGAIN, 100);
	hz_refused(&h, 0, 101, GMEM_PRIVATE, GMEM_PRESERVE, EAGAIN, 100);
	hz_refused(&h, 0, 512, GMEM_PRIVATE, GMEM_PRESERVE, EAGAIN, 100);
	hz_convert(&h, 101, 411, GMEM_PRIVATE, GMEM_PRESERVE);
	hz_convert(&h, 0, 100, GMEM_PRIVATE, GMEM_PRESERVE);
	unpin_page(&pin);
}

HAZARD(h21_neighbours_keep_their_state)
{
	u64 page = 257, attr, len;
	struct hz h;
	int r;

	hz_create(&h, 512, GUEST_MEMFD_FLAG_MMAP, 1);
	gmem_guest_fill(h.vcpus[0], hz_gpa(&h, page - 1), 3 * PG, GMEM_SEED(21), 0);

	hz_convert(&h, page, 1, GMEM_SHARED, GMEM_ZERO);
	r = gmem_get(h.a.fd, OFF(page), &attr, &len);
	TEST_ASSERT(!r && !attr && len == PG, "errno %d, attributes %#lx, run %#lx",
		    r, attr, len);
	hz_attrs_are(&h, 0, page, GMEM_PRIVATE);
	hz_attrs_are(&h, page + 1, 512 - page - 1, GMEM_PRIVATE);
	hz_host_refused(&h, 0, page);
	hz_host_refused(&h, page + 1, 512 - page - 1);
	hz_host_sees(&h, page, 1, GMEM_ZEROES);
	gmem_guest_assert(h.vcpus[0], hz_gpa(&h, page - 1), PG, GMEM_SEED(21), 0);
	gmem_guest_assert(h.vcpus[0], hz_gpa(&h, page + 1), PG, GMEM_SEED(21), 2 * PG);
}

/* EFAULT for the write of the result: nothing was converted, as documented. */
HAZARD(h22_efault_on_the_way_back)
{
	struct kvm_memory_attributes2 *attrs;
	struct pin pin;
	struct hz h;
	int i, r;

	hz_create(&h, 4, GMEM_MMAP_SHARED, 1);
	hz_host_fill(&h, 0, 4, GMEM_SEED(22));
	attrs = kvm_mmap(PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	attrs->size = OFF(4);
	attrs->attributes = GMEM_PRIVATE;
	attrs->flags = GMEM_ZERO;
	TEST_ASSERT(!mprotect(attrs, PG, PROT_READ), "mprotect() failed");

	r = pin_page(&pin, PIN_VMSPLICE, hz_hva(&h, 2));
	TEST_ASSERT(!r, "vmsplice(): errno %d", r);
	TEST_ASSERT_EQ(gmem_ioctl(h.a.fd, KVM_SET_MEMORY_ATTRIBUTES2, attrs), EFAULT);
	hz_attrs_are(&h, 0, 4, GMEM_SHARED);
	hz_host_sees(&h, 0, 4, GMEM_SEED(22));
	unpin_page(&pin);

	/*
	 * There is nothing to write back on success. A transient reference
	 * would be EFAULT, too, hence the retries.
	 */
	for (i = 0, r = EFAULT; i < GMEM_MAX_RETRIES && r == EFAULT; i++)
		r = gmem_ioctl(h.a.fd, KVM_SET_MEMORY_ATTRIBUTES2, attrs);
	TEST_ASSERT(!r, "errno %d (%s)", r, strerror(r));
	hz_attrs_are(&h, 0, 4, GMEM_PRIVATE);
}

/* What is announced works, in both phases, for pages in either state. */
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
			hz_convert(&h, 0, 2, GMEM_SHARED, policies[i]);
			hz_host_fill(&h, 0, 1, GMEM_SEED(23));
			hz_convert(&h, 0, 2, GMEM_PRIVATE, policies[i]);
			hz_convert(&h, 0, 2, GMEM_PRIVATE, policies[i]);
			hz_convert(&h, 0, 2, GMEM_SHARED, policies[i]);
			hz_host_sees(&h, 0, 1, policies[i] == GMEM_ZERO ?
				     GMEM_ZEROES : GMEM_SEED(23));
		}
		if (!j)
			gmem_guest_start(h.vcpus[0]);
	}

	plain = vm_create_barebones();
	TEST_ASSERT_EQ(vm_check_cap(plain, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES), 0);
	kvm_vm_free(plain);
}

/*
 * A slot whose userspace_addr is other memory, which is a mistake, and a file
 * without a mapping: shared faults come from the file all the same.
 */
HAZARD(h24_shared_faults_come_from_the_file)
{
	static const u64 flags[] = {
		GUEST_MEMFD_FLAG_INIT_SHARED, GMEM_MMAP_SHARED, GUEST_MEMFD_FLAG_MMAP,
	};
	struct kvm_vcpu *vcpus[1];
	struct kvm_vm *vm;
	u8 *other;
	int fd, i, r;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		vm = gmem_vm_create(1, 4, vcpus);
		fd = vm_create_guest_memfd(vm, OFF(4), flags[i]);
		other = kvm_mmap(OFF(4), PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1);
		gmem_fill(other, OFF(4), GMEM_SEED(24), 0);
		vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
					   GMEM_GPA, OFF(4), other, fd, 0);
		virt_map(vm, GMEM_GPA, GMEM_GPA, 4);
		gmem_convert(fd, 0, OFF(4), GMEM_SHARED, GMEM_PRESERVE);
		gmem_guest_start(vcpus[0]);

		gmem_guest_assert(vcpus[0], GMEM_GPA, OFF(4), GMEM_ZEROES, 0);
		gmem_guest_fill(vcpus[0], GMEM_GPA, OFF(4), GMEM_SEED(25), 0);
		gmem_host_assert(other, OFF(4), GMEM_SEED(24), 0);

		gmem_convert(fd, PG, PG, GMEM_PRIVATE, GMEM_PRESERVE);
		gmem_guest_assert(vcpus[0], GMEM_GPA, OFF(4), GMEM_SEED(25), 0);

		/* Unmapping what the slot points to takes nothing away. */
		kvm_munmap(other, OFF(4));
		gmem_guest_assert(vcpus[0], GMEM_GPA, OFF(4), GMEM_SEED(25), 0);
		r = gmem_punch(fd, 0, OFF(4));
		TEST_ASSERT(!r, "punch: errno %d", r);
		gmem_guest_assert(vcpus[0], GMEM_GPA, OFF(4), GMEM_ZEROES, 0);
		kvm_vm_free(vm);
		kvm_close(fd);
	}
}

HAZARD(h25_state_survives_the_slot)
{
	struct hz h;
	int i;

	hz_create(&h, 8, GMEM_MMAP_SHARED, 1);
	hz_host_fill(&h, 0, 8, GMEM_SEED(25));
	hz_convert(&h, 2, 3, GMEM_PRIVATE, GMEM_PRESERVE);

	for (i = 0; i < 20; i++) {
		gmem_area_unbind(&h.a);
		hz_attrs_are(&h, 0, 2, GMEM_SHARED);
		hz_attrs_are(&h, 2, 3, GMEM_PRIVATE);
		hz_attrs_are(&h, 5, 3, GMEM_SHARED);
		hz_host_refused(&h, 2, 3);
		hz_host_sees(&h, 5, 3, GMEM_SEED(25));

		/* Converting without a slot works like with one. */
		hz_convert(&h, 6, 1, GMEM_PRIVATE, GMEM_PRESERVE);
		hz_host_refused(&h, 6, 1);

		gmem_area_bind(&h.a);
		hz_attrs_are(&h, 6, 1, GMEM_PRIVATE);
		hz_guest_sees(&h, 0, 8, GMEM_SEED(25));
		hz_convert(&h, 6, 1, GMEM_SHARED, GMEM_PRESERVE);
	}
}

/* --- 27, 28, 32 ---------------------------------------------------------------- */

#define DECOY	0xdec0dec0dec0dec0ULL

/*
 * The last reference to a file goes while vCPUs fault on it, and other files
 * are opened at once, which get its memory: no vCPU may ever reach one that
 * is not behind the slot.
 */
HAZARD(h27_release_races_get_pfn)
{
	struct kvm_vm *vm, *other;
	struct kvm_vcpu *vcpus[2];
	struct spin_thread t;
	int i, j, fd, decoys[4];
	u64 rounds;

	vm = gmem_vm_create(1, 8, vcpus);
	other = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	virt_map(vm, GMEM_GPA, GMEM_GPA, 8);
	spin_prepare(vcpus[0]);
	fd = vm_create_guest_memfd(vm, OFF(8), GMEM_MMAP_SHARED);
	vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA,
				   OFF(8), NULL, fd, 0);
	spin_start(&t, vcpus[0], GMEM_GPA, 8, DECOY, false);
	spin_wait_round(&t);

	for (i = 0; i < 200; i++) {
		/* Every other time the guest faults while it happens. */
		if (i & 1)
			gmem_punch(fd, 0, OFF(8));
		kvm_close(fd);
		for (j = 0; j < ARRAY_SIZE(decoys); j++) {
			volatile u64 *mem;
			int p;

			decoys[j] = vm_create_guest_memfd(j & 1 ? vm : other,
							  OFF(8), GMEM_MMAP_SHARED);
			mem = kvm_mmap(OFF(8), PROT_READ | PROT_WRITE,
				       MAP_SHARED, decoys[j]);
			for (p = 0; p < 8; p++)
				mem[p * PG / sizeof(*mem)] = DECOY;
			kvm_munmap((void *)mem, OFF(8));
		}
		vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
					   GMEM_GPA, 0, NULL, fd, 0);
		fd = vm_create_guest_memfd(vm, OFF(8),
					   i & 2 ? GMEM_MMAP_SHARED :
						   GUEST_MEMFD_FLAG_MMAP);
		vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
					   GMEM_GPA, OFF(8), NULL, fd, 0);
		for (j = 0; j < ARRAY_SIZE(decoys); j++)
			kvm_close(decoys[j]);
		if (!(i & 15))
			spin_wait_round(&t);
	}

	/* With a file behind the slot for good the guest goes on. */
	rounds = spin_shared(vm)->rounds;
	spin_wait_round(&t);
	TEST_ASSERT(spin_shared(vm)->rounds > rounds, "The guest is stuck");
	spin_stop(&t);
	pr_info("# %lu accesses found no file or no slot\n",
		(unsigned long)atomic_load(&t.faults));
}

HAZARD(h28_close_of_a_large_sparse_file)
{
	const u64 size = 1ULL << 50, slot_size = 16ULL << 30;
	struct kvm_vcpu *vcpus[1];
	struct kvm_vm *vm;
	int i, fd, r;
	u64 off;

	vm = gmem_vm_create(1, 64, vcpus);
	virt_map(vm, GMEM_GPA, GMEM_GPA, 4);
	virt_map(vm, GMEM_GPA + slot_size - OFF(4), GMEM_GPA + slot_size - OFF(4), 4);
	gmem_guest_start(vcpus[0]);

	for (i = 0; i < 3; i++) {
		fd = vm_create_guest_memfd(vm, size, GMEM_MMAP_SHARED);
		for (off = 0; off < size; off = off ? off * 4 : PG)
			gmem_convert(fd, off, PG, GMEM_PRIVATE, GMEM_PRESERVE);
		gmem_convert(fd, size - PG, PG, GMEM_PRIVATE, GMEM_PRESERVE);
		/* The end of the slot is the end of the file, or is not. */
		vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
					   GMEM_GPA, slot_size, NULL, fd,
					   i == 1 ? size - slot_size : 0);
		gmem_guest_fill(vcpus[0], GMEM_GPA, OFF(4), GMEM_SEED(28), 0);
		gmem_guest_fill(vcpus[0], GMEM_GPA + slot_size - OFF(4), OFF(4),
				GMEM_SEED(28), 0);
		kvm_close(fd);

		r = __gmem_guest_do(vcpus[0], GMEM_OP_READ,
				    GMEM_GPA + slot_size - PG, 1, 0, 0, 0);
		TEST_ASSERT(r == -EFAULT, "Last page after the close: %d", r);

		/* Something to read for the access that is still waiting. */
		vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
					   GMEM_GPA, 0, NULL, fd, 0);
		fd = vm_create_guest_memfd(vm, slot_size, GMEM_MMAP_SHARED);
		vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
					   GMEM_GPA, slot_size, NULL, fd, 0);
		r = gmem_guest_resume(vcpus[0]);
		TEST_ASSERT(!r, "With a new file: %d", r);
		TEST_ASSERT_EQ((u8)gmem_cmd_of(vcpus[0])->value, 0);
		vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
					   GMEM_GPA, 0, NULL, fd, 0);
		kvm_close(fd);
	}
}

HAZARD(h32_shared_and_private_are_the_same_page)
{
	u64 pfn, again;
	struct hz h;

	hz_create(&h, 2, GMEM_MMAP_SHARED, 1);
	hz_host_fill(&h, 0, 2, GMEM_SEED(32));
	pfn = hz_pfn(hz_hva(&h, 1));

	hz_convert(&h, 0, 2, GMEM_PRIVATE, GMEM_PRESERVE);
	hz_guest_sees(&h, 0, 2, GMEM_SEED(32));
	hz_guest_fill(&h, 0, 2, GMEM_SEED(33));
	hz_host_refused(&h, 0, 2);

	hz_convert(&h, 0, 2, GMEM_SHARED, GMEM_PRESERVE);
	hz_host_sees(&h, 0, 2, GMEM_SEED(33));
	hz_guest_sees(&h, 0, 2, GMEM_SEED(33));
	again = hz_pfn(hz_hva(&h, 1));
	TEST_ASSERT(pfn == again, "Frame %#lx became %#lx", pfn, again);

	hz_host_fill(&h, 0, 2, GMEM_SEED(34));
	hz_guest_sees(&h, 0, 2, GMEM_SEED(34));
}

/* --- 33 to 36 --------------------------------------------------------------- */

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

	/* Convert until the guest is through; a starved one never is. */
	for (rounds = 0; rounds < max_rounds && shared->done < faults; rounds++) {
		for (first = chunk; first + chunk <= h.npages; first += chunk)
			hz_convert(&h, first, chunk,
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
	/* What batches of charges, page tables and slabs may blur. */
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

		hz_convert(&h, 0, npages, GMEM_PRIVATE, GMEM_ZERO);
		hz_convert(&h, 0, npages / 2, GMEM_SHARED, GMEM_PRESERVE);
		full = h35_current();
		TEST_ASSERT(full - before > (long)OFF(npages) - slack &&
			    full - before < (long)OFF(npages) + slack,
			    "Cycle %d: %lu bytes of file, but %ld charged", j,
			    OFF(npages), full - before);

		TEST_ASSERT(!gmem_punch(h.a.fd, 0, OFF(npages)), "punch failed");
		hz_convert(&h, 0, npages, GMEM_SHARED, GMEM_PRESERVE);
		vals = h35_current() - before;
		TEST_ASSERT((long)vals < slack, "Cycle %d: %ld bytes left charged",
			    j, (long)vals);
	}

	/* The same for what is there when the file goes. */
	for (vals = 0; vals < npages; vals++)
		*hz_hva(&h, vals) = 1;
	hz_convert(&h, 0, npages / 2, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_area_destroy(&h.a);
	full = h35_current() - before;
	TEST_ASSERT(full < slack, "%ld bytes left charged by a closed file", full);
	hz_write_file(CG_ROOT "/cgroup.procs", "0", 0);
}

HAZARD(h36_fork_childs_mapping)
{
	int to_child[2], from_child[2], i;
	char ok, cmd = 0;
	struct hz h;
	pid_t pid;

	hz_create(&h, 4, GMEM_MMAP_SHARED, 1);
	hz_host_fill(&h, 0, 3, GMEM_SEED(36));
	TEST_ASSERT(!pipe(to_child) && !pipe(from_child), "pipe() failed");

	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid) {
		u64 step;

		/* Else it would keep itself waiting for the end. */
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
			hz_convert(&h, 0, 4, GMEM_PRIVATE, GMEM_PRESERVE);
			hz_guest_fill(&h, 0, 4, GMEM_SEED(37));
		} else if (i == 2) {
			hz_convert(&h, 0, 4, GMEM_SHARED, GMEM_PRESERVE);
		}
		TEST_ASSERT(write(to_child[1], &cmd, 1) == 1 &&
			    read(from_child[0], &ok, 1) == 1, "The child died");
		TEST_ASSERT(ok, "Step %d is wrong in the child", i);
	}
	close(to_child[1]);
	waitpid(pid, NULL, 0);
	hz_host_sees(&h, 0, 4, GMEM_SEED(37));
}

/* --- 37: every way that the host has to a page ---------------------------------- */

/*
 * Page 1 is private and holds the guest's bytes, 0 and 2 are shared and hold
 * the host's. Each subtest tries one way; afterwards all has to be as it was.
 */
static void h37_create(struct hz *h)
{
	hz_create(h, 3, GMEM_MMAP_SHARED, 1);
	hz_host_fill(h, 0, 1, GMEM_SEED(1));
	hz_host_fill(h, 2, 1, GMEM_SEED(2));
	hz_convert(h, 1, 1, GMEM_PRIVATE, GMEM_ZERO);
	hz_guest_fill(h, 1, 1, GMEM_SEED(37));
}

#define h37_unharmed(h)								\
do {										\
	hz_attrs_are(h, 0, 1, GMEM_SHARED);					\
	hz_attrs_are(h, 1, 1, GMEM_PRIVATE);					\
	hz_attrs_are(h, 2, 1, GMEM_SHARED);					\
	hz_host_sees(h, 0, 1, GMEM_SEED(1));					\
	hz_guest_sees(h, 1, 1, GMEM_SEED(37));					\
	hz_host_sees(h, 2, 1, GMEM_SEED(2));					\
	hz_host_refused(h, 1, 1);						\
	TEST_ASSERT(!(hz_pagemap(hz_hva(h, 1)) >> 63),				\
		    "A private page is mapped by the host");			\
} while (0)

/* The call has to fail with this errno. */
#define refused(call, want)							\
do {										\
	long __r;								\
										\
	errno = 0;								\
	__r = (long)(call);							\
	TEST_ASSERT(__r == -1 && errno == (want),				\
		    "%s: %ld, errno %d (%s), wanted %s", #call, __r, errno,	\
		    strerror(errno), strerror(want));				\
} while (0)

/* The call has to fail, the reason is somebody else's business. */
#define fails(call)								\
do {										\
	long __r = (long)(call);						\
										\
	TEST_ASSERT(__r == -1, "%s: %ld", #call, __r);				\
} while (0)

HAZARD(h37_touch_and_mremap)
{
	volatile u8 *mem, *moved;
	struct hz h;

	h37_create(&h);
	h37_unharmed(&h);

	/* A mapping of its own, moved, doubled, and a part of it split off. */
	mem = kvm_mmap(OFF(3), PROT_READ | PROT_WRITE, MAP_SHARED, h.a.fd);
	moved = kvm_mmap(OFF(3), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	moved = mremap((void *)mem, OFF(3), OFF(3), MREMAP_MAYMOVE | MREMAP_FIXED,
		       moved);
	TEST_ASSERT(moved != MAP_FAILED, "mremap() failed");
	TEST_ASSERT(gmem_host_refused(moved + PG), "Reached through mremap()");
	mem = mremap((void *)moved, 0, OFF(3), MREMAP_MAYMOVE);
	if (mem != MAP_FAILED)
		TEST_ASSERT(gmem_host_refused(mem + PG), "Reached through a double");
	TEST_ASSERT(!mprotect((void *)(moved + PG), PG, PROT_READ), "mprotect() failed");
	TEST_ASSERT(!mprotect((void *)(moved + PG), PG, PROT_READ | PROT_WRITE),
		    "mprotect() failed");
	TEST_ASSERT(gmem_host_refused(moved + PG), "Reached after mprotect()");
	h37_unharmed(&h);
}

HAZARD(h37_map_populate_and_mlock)
{
	unsigned char vec[3];
	struct hz h;
	u8 *mem;

	h37_create(&h);
	mem = mmap(NULL, OFF(3), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
		   h.a.fd, 0);
	TEST_ASSERT(mem != MAP_FAILED, "mmap() failed");
	TEST_ASSERT(gmem_host_refused(mem + PG), "Populated");
	TEST_ASSERT(!(hz_pagemap(mem + PG) >> 63), "A private page is mapped");
	fails(mmap(NULL, OFF(3), PROT_READ | PROT_WRITE, MAP_PRIVATE, h.a.fd, 0));

	fails(mlock(mem, OFF(3)));
	TEST_ASSERT(gmem_host_refused(mem + PG), "Reached after mlock()");
	munlock(mem, OFF(3));
	/* VM_LOCKED with no page behind it, and the other way round. */
	mlock2(mem + PG, PG, MLOCK_ONFAULT);
	TEST_ASSERT(gmem_host_refused(mem + PG), "Reached after mlock2()");
	munlock(mem, OFF(3));
	mincore(mem, OFF(3), vec);
	msync(mem, OFF(3), MS_SYNC);
	h37_unharmed(&h);
}

HAZARD(h37_userfaultfd)
{
	static const u64 modes[] = {
		UFFDIO_REGISTER_MODE_MISSING,
		UFFDIO_REGISTER_MODE_WP,
		UFFDIO_REGISTER_MODE_MINOR,
	};
	struct uffdio_api api = { .api = UFFD_API };
	static u8 src[4096] __attribute__((aligned(4096)));
	int i, fd, registered = 0;
	struct hz h;

	fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	HZ_REQUIRE(fd >= 0, "needs USERFAULTFD");
	h37_create(&h);
	TEST_ASSERT(!ioctl(fd, UFFDIO_API, &api), "UFFDIO_API failed");

	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		struct uffdio_range range = {
			.start = (unsigned long)hz_hva(&h, 0),
			.len = OFF(3),
		};
		struct uffdio_register reg = { .range = range, .mode = modes[i] };
		struct uffdio_copy copy = {
			.dst = (unsigned long)hz_hva(&h, 1),
			.src = (unsigned long)src,
			.len = PG,
		};
		struct uffdio_zeropage zero = {
			.range = { .start = copy.dst, .len = PG },
		};
		struct uffdio_continue cont = {
			.range = { .start = copy.dst, .len = PG },
		};

		if (!ioctl(fd, UFFDIO_REGISTER, &reg))
			registered++;
		fails(ioctl(fd, UFFDIO_COPY, &copy));
		fails(ioctl(fd, UFFDIO_ZEROPAGE, &zero));
		fails(ioctl(fd, UFFDIO_CONTINUE, &cont));
		ioctl(fd, UFFDIO_UNREGISTER, &range);
		h37_unharmed(&h);
	}
	pr_info("# %d of %d modes could be registered\n", registered,
		(int)ARRAY_SIZE(modes));
	close(fd);
}

HAZARD(h37_ptrace)
{
	int status;
	struct hz h;
	pid_t pid;

	h37_create(&h);
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		_exit(0);
	}
	TEST_ASSERT(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status),
		    "The child did not stop");

	errno = 0;
	ptrace(PTRACE_PEEKDATA, pid, hz_hva(&h, 0), NULL);
	TEST_ASSERT(!errno, "PEEKDATA of a shared page: %s", strerror(errno));
	refused(ptrace(PTRACE_PEEKDATA, pid, hz_hva(&h, 1), NULL), EIO);
	refused(ptrace(PTRACE_POKEDATA, pid, hz_hva(&h, 1), 0x41414141), EIO);
	ptrace(PTRACE_KILL, pid, NULL, NULL);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	h37_unharmed(&h);
}

HAZARD(h37_process_vm_readv)
{
	static u8 buf[3 * 4096];
	struct iovec local = { .iov_base = buf, .iov_len = PG };
	struct iovec remote = { .iov_len = PG };
	struct hz h;

	h37_create(&h);
	remote.iov_base = (void *)hz_hva(&h, 0);
	if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != PG)
		SKIP(return, "needs CROSS_MEMORY_ATTACH");

	remote.iov_base = (void *)hz_hva(&h, 1);
	refused(process_vm_readv(getpid(), &local, 1, &remote, 1, 0), EFAULT);
	refused(process_vm_writev(getpid(), &local, 1, &remote, 1, 0), EFAULT);

	/* From shared into private: as far as the border. */
	remote.iov_base = (void *)hz_hva(&h, 0);
	remote.iov_len = OFF(3);
	local.iov_len = OFF(3);
	TEST_ASSERT_EQ((u64)process_vm_readv(getpid(), &local, 1, &remote, 1, 0), PG);
	h37_unharmed(&h);
}

HAZARD(h37_proc_pid_mem)
{
	static u8 buf[4096];
	struct hz h;
	int fd;

	h37_create(&h);
	fd = open("/proc/self/mem", O_RDWR);
	HZ_REQUIRE(fd >= 0, "needs /proc/self/mem");
	TEST_ASSERT(pread(fd, buf, PG, (unsigned long)hz_hva(&h, 0)) == PG,
		    "A shared page cannot be read");
	refused(pread(fd, buf, PG, (unsigned long)hz_hva(&h, 1)), EIO);
	refused(pwrite(fd, buf, PG, (unsigned long)hz_hva(&h, 1)), EIO);
	close(fd);
	h37_unharmed(&h);
}

HAZARD(h37_read_and_write_with_it_as_buffer)
{
	int zero, p[2], fds[2];
	struct hz h;
	u8 *mem;

	h37_create(&h);
	mem = (u8 *)hz_hva(&h, 1);
	TEST_ASSERT(!pipe(p) && !pipe(fds), "pipe() failed");
	TEST_ASSERT(write(p[1], "x", 1) == 1, "write() failed");

	refused(write(p[1], mem, PG), EFAULT);
	refused(read(p[0], mem, 1), EFAULT);
	zero = open("/dev/zero", O_RDWR);
	if (zero >= 0) {
		refused(read(zero, mem, PG), EFAULT);
		close(zero);
	}
	/* As a structure that a system call takes or returns. */
	refused(fstat(p[0], (struct stat *)mem), EFAULT);
	refused(open((char *)mem, O_RDONLY), EFAULT);
	refused(poll((struct pollfd *)mem, 1, 0), EFAULT);
	refused(syscall(__NR_futex, mem, FUTEX_WAIT, 0, NULL, NULL, 0), EFAULT);
	refused(syscall(__NR_futex, mem, FUTEX_WAKE, 1, NULL, NULL, 0), EFAULT);
	refused(syscall(__NR_futex, mem, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0), EFAULT);
	refused(syscall(__NR_futex, mem, FUTEX_LOCK_PI, 0, NULL, NULL, 0), EFAULT);
	h37_unharmed(&h);
}

HAZARD(h37_o_direct)
{
	struct hz h;
	int fd;

	fd = open("/dev/ram0", O_RDWR | O_DIRECT);
	HZ_REQUIRE(fd >= 0, "needs /dev/ram0");
	h37_create(&h);

	/* That it works on a shared one shows that the private one is why not. */
	TEST_ASSERT(pwrite(fd, (void *)hz_hva(&h, 0), PG, 0) == PG,
		    "O_DIRECT write of a shared page: %s", strerror(errno));
	TEST_ASSERT(pread(fd, (void *)hz_hva(&h, 0), PG, 0) == PG,
		    "O_DIRECT read into a shared page: %s", strerror(errno));
	refused(pread(fd, (void *)hz_hva(&h, 1), PG, 0), EFAULT);
	refused(pwrite(fd, (void *)hz_hva(&h, 1), PG, 0), EFAULT);
	close(fd);
	h37_unharmed(&h);
}

/* One request on a ring of its own; returns the completion's result. */
static int ring_rw(int op, int fd, void *buf)
{
	struct io_uring_params p;
	struct io_uring_sqe *sqes;
	u8 *sq, *cq;
	int ring, res;
	u32 tail;

	ring = ring_create(&p);
	TEST_ASSERT(ring >= 0, "io_uring_setup() failed");
	sq = __kvm_mmap(p.sq_off.array + p.sq_entries * sizeof(u32),
			PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	cq = __kvm_mmap(p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe),
			PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	sqes = __kvm_mmap(p.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE,
			  MAP_SHARED, ring, IORING_OFF_SQES);

	memset(&sqes[0], 0, sizeof(sqes[0]));
	sqes[0].opcode = op;
	sqes[0].fd = fd;
	sqes[0].addr = (unsigned long)buf;
	sqes[0].len = PG;
	tail = *(u32 *)(sq + p.sq_off.tail);
	((u32 *)(sq + p.sq_off.array))[tail & *(u32 *)(sq + p.sq_off.ring_mask)] = 0;
	__atomic_store_n((u32 *)(sq + p.sq_off.tail), tail + 1, __ATOMIC_RELEASE);

	TEST_ASSERT(syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS,
			    NULL, 0) == 1, "io_uring_enter() failed");
	res = ((struct io_uring_cqe *)(cq + p.cq_off.cqes))->res;
	close(ring);
	return res;
}

HAZARD(h37_io_uring)
{
	struct io_uring_params params;
	struct iovec iov;
	struct hz h;
	int ring, fd;

	ring = ring_create(&params);
	HZ_REQUIRE(ring >= 0, "needs IO_URING");
	h37_create(&h);

	iov.iov_base = (void *)hz_hva(&h, 1);
	iov.iov_len = PG;
	refused(syscall(__NR_io_uring_register, ring, IORING_REGISTER_BUFFERS,
			&iov, 1), EFAULT);
	iov.iov_base = (void *)hz_hva(&h, 0);
	iov.iov_len = OFF(3);
	refused(syscall(__NR_io_uring_register, ring, IORING_REGISTER_BUFFERS,
			&iov, 1), EFAULT);
	close(ring);

	/* The failed registration of all three has left no pin behind. */
	hz_convert(&h, 0, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	hz_convert(&h, 0, 1, GMEM_SHARED, GMEM_PRESERVE);

	fd = open("/dev/zero", O_RDWR);
	HZ_REQUIRE(fd >= 0, "needs /dev/zero");
	TEST_ASSERT_EQ(ring_rw(IORING_OP_READ, fd, (void *)hz_hva(&h, 1)), -EFAULT);
	close(fd);
	fd = open("/dev/ram0", O_RDWR | O_DIRECT);
	if (fd >= 0) {
		TEST_ASSERT_EQ(ring_rw(IORING_OP_WRITE, fd, (void *)hz_hva(&h, 1)),
			       -EFAULT);
		TEST_ASSERT_EQ(ring_rw(IORING_OP_READ, fd, (void *)hz_hva(&h, 1)),
			       -EFAULT);
		close(fd);
	}
	h37_unharmed(&h);
}

HAZARD(h37_vmsplice)
{
	struct iovec iov = { .iov_len = PG };
	struct hz h;
	int p[2];

	h37_create(&h);
	iov.iov_base = (void *)hz_hva(&h, 1);
	TEST_ASSERT(!pipe(p), "pipe() failed");
	refused(vmsplice(p[1], &iov, 1, 0), EFAULT);
	refused(vmsplice(p[1], &iov, 1, SPLICE_F_GIFT), EFAULT);
	TEST_ASSERT(write(p[1], "x", 1) == 1, "write() failed");
	refused(vmsplice(p[0], &iov, 1, 0), EFAULT);
	h37_unharmed(&h);
}

HAZARD(h37_gup_pin)
{
	struct pin pin;
	struct hz h;
	int r;

	h37_create(&h);
	r = pin_page(&pin, PIN_GUP, hz_hva(&h, 1));
	HZ_REQUIRE(r != ENODEV, "needs debugfs and GUP_TEST");
	TEST_ASSERT_EQ(r, EFAULT);
	unpin_page(&pin);
	r = pin_page(&pin, PIN_GUP_FAST, hz_hva(&h, 1));
	TEST_ASSERT_EQ(r, EFAULT);
	unpin_page(&pin);
	h37_unharmed(&h);
}

HAZARD(h37_madvise)
{
	static const struct {
		const char *name;
		int advice;
		int want;	/* errno, or -1: may do what it likes */
	} advices[] = {
		{ "MADV_POPULATE_READ", MADV_POPULATE_READ, EFAULT },
		{ "MADV_POPULATE_WRITE", MADV_POPULATE_WRITE, EFAULT },
		{ "MADV_DONTNEED", MADV_DONTNEED, 0 },
		{ "MADV_FREE", MADV_FREE, EINVAL },
		{ "MADV_COLD", MADV_COLD, -1 },
		{ "MADV_PAGEOUT", MADV_PAGEOUT, -1 },
		{ "MADV_WILLNEED", MADV_WILLNEED, -1 },
		{ "MADV_MERGEABLE", MADV_MERGEABLE, -1 },
		{ "MADV_UNMERGEABLE", MADV_UNMERGEABLE, -1 },
		{ "MADV_HUGEPAGE", MADV_HUGEPAGE, -1 },
		{ "MADV_COLLAPSE", MADV_COLLAPSE, EINVAL },
		{ "MADV_DONTDUMP", MADV_DONTDUMP, 0 },
		{ "MADV_DODUMP", MADV_DODUMP, -1 },
	};
	struct hz h;
	int i, r;

	h37_create(&h);
	for (i = 0; i < ARRAY_SIZE(advices); i++) {
		r = madvise((void *)hz_hva(&h, 1), PG, advices[i].advice) ? errno : 0;
		TEST_ASSERT(advices[i].want < 0 || r == advices[i].want,
			    "%s: errno %d (%s), wanted %d", advices[i].name, r,
			    strerror(r), advices[i].want);
		h37_unharmed(&h);
	}

	/*
	 * MADV_REMOVE is the hole that the owner of the file can punch, too:
	 * its bytes may go, but to zeroes, and the state may not.
	 */
	r = madvise((void *)hz_hva(&h, 1), PG, MADV_REMOVE) ? errno : 0;
	if (!r) {
		hz_guest_sees(&h, 1, 1, GMEM_ZEROES);
		hz_guest_fill(&h, 1, 1, GMEM_SEED(37));
	}
	h37_unharmed(&h);
}

HAZARD(h37_madvise_poison)
{
	struct hz h;

	HZ_REQUIRE(can_poison_mapped(), "needs MEMORY_FAILURE and root");
	h37_create(&h);
	TEST_ASSERT_EQ(poison_mapped(hz_hva(&h, 1)), EFAULT);
	fails(madvise((void *)hz_hva(&h, 1), PG, MADV_SOFT_OFFLINE));
	h37_unharmed(&h);
	/* Nor can a mapped one be moved away under its owner. */
	madvise((void *)hz_hva(&h, 0), PG, MADV_SOFT_OFFLINE);
	h37_unharmed(&h);
}

HAZARD(h37_numa_migration)
{
	unsigned long mask = 1;
	void *page;
	int status = 0;
	struct hz h;

	h37_create(&h);
	page = (void *)hz_hva(&h, 1);
	mbind(page, PG, MPOL_BIND, &mask, 8, MPOL_MF_MOVE_ALL | MPOL_MF_STRICT);
	h37_unharmed(&h);
	if (move_pages(0, 1, &page, NULL, &status, 0) && errno == ENOSYS)
		SKIP(return, "needs NUMA and MIGRATION");
	TEST_ASSERT(status < 0, "A private page is on node %d, says move_pages()",
		    status);
	mbind((void *)hz_hva(&h, 0), OFF(3), MPOL_DEFAULT, NULL, 0, 0);
	h37_unharmed(&h);
}

HAZARD(h37_file_operations)
{
	static u8 buf[4096];
	loff_t off = PG;
	off_t soff = PG;
	int p[2], tmp;
	struct hz h;

	h37_create(&h);
	TEST_ASSERT(!pipe(p), "pipe() failed");
	tmp = memfd_create("gmem-hazard", 0);
	TEST_ASSERT(tmp >= 0 && !ftruncate(tmp, PG), "memfd failed");

	fails(read(h.a.fd, buf, PG));
	fails(pread(h.a.fd, buf, PG, PG));
	fails(write(h.a.fd, buf, PG));
	fails(pwrite(h.a.fd, buf, PG, PG));
	fails(splice(h.a.fd, &off, p[1], NULL, PG, 0));
	TEST_ASSERT(write(p[1], buf, PG) == PG, "write() failed");
	fails(splice(p[0], NULL, h.a.fd, &off, PG, 0));
	fails(sendfile(tmp, h.a.fd, &soff, PG));
	soff = 0;
	fails(sendfile(h.a.fd, tmp, &soff, PG));
	off = PG;
	fails(copy_file_range(h.a.fd, &off, tmp, NULL, PG, 0));
	off = PG;
	fails(copy_file_range(tmp, NULL, h.a.fd, &off, PG, 0));
	fails(ftruncate(h.a.fd, 0));
	fails(ftruncate(h.a.fd, OFF(6)));
	fails(fallocate(h.a.fd, FALLOC_FL_ZERO_RANGE, PG, PG));
	fails(fallocate(h.a.fd, FALLOC_FL_COLLAPSE_RANGE, PG, PG));
	h37_unharmed(&h);
}

/* --- 38: KVM itself ----------------------------------------------------------- */

/* A VM whose guest runs msr_guest_code(); six pages, shared at first. */
static void h38_create(struct hz *h, bool hyperv)
{
	memset(h, 0, sizeof(*h));
	h->npages = 6;
	h->vm = gmem_vm_create(1, 6, h->vcpus);
	gmem_area_create(&h->a, h->vm, GMEM_SLOT, GMEM_GPA, OFF(6), GMEM_MMAP_SHARED);
	if (hyperv)
		vcpu_set_hv_cpuid(h->vcpus[0]);
	vcpu_arch_set_entry_point(h->vcpus[0], msr_guest_code);
	gmem_guest_start(h->vcpus[0]);
}

/*
 * All to private with a policy that says what the bytes are, so that a write
 * by KVM shows when they are shared again; with runs and everything that
 * makes KVM update its structures in between.
 */
static void h38_no_write_to_private(struct hz *h)
{
	struct kvm_clock_data clock = {};
	int i, cpu;

	hz_convert(h, 0, 6, GMEM_PRIVATE, GMEM_ZERO);
	for (i = 0; i < 20; i++) {
		/* Another CPU: clock and steal time are written anew. */
		cpu = i % sysconf(_SC_NPROCESSORS_ONLN);
		__pin_task_to_cpu(pthread_self(), cpu);
		vm_ioctl(h->vm, KVM_GET_CLOCK, &clock);
		clock.flags = 0;
		vm_ioctl(h->vm, KVM_SET_CLOCK, &clock);
		__vcpu_ioctl(h->vcpus[0], KVM_KVMCLOCK_CTRL, NULL);
		msr_do(h->vcpus[0], MSR_OP_NOP, 0, 0);
	}
	hz_attrs_are(h, 0, 6, GMEM_PRIVATE);
	/* Back with the vCPU out of the guest, so that nobody writes now. */
	hz_convert(h, 0, 6, GMEM_SHARED, GMEM_PRESERVE);
	hz_host_sees(h, 0, 6, GMEM_ZEROES);
}

HAZARD(h38_kvm_clock)
{
	struct hz h;

	h38_create(&h, false);
	TEST_ASSERT_EQ(msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_SYSTEM_TIME_NEW,
			      hz_gpa(&h, 0) | 1), 0ULL);
	msr_do(h.vcpus[0], MSR_OP_NOP, 0, 0);
	TEST_ASSERT(gmem_check(hz_hva(&h, 0), 32, GMEM_ZEROES, 0) != GMEM_ALL_GOOD,
		    "KVM does not write the clock even to a shared page");
	h38_no_write_to_private(&h);

	/* It comes back by itself. */
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_SYSTEM_TIME_NEW, hz_gpa(&h, 0) | 1);
	msr_do(h.vcpus[0], MSR_OP_NOP, 0, 0);
	TEST_ASSERT(gmem_check(hz_hva(&h, 0), 32, GMEM_ZEROES, 0) != GMEM_ALL_GOOD,
		    "KVM does not write the clock to a page that is shared again");
}

HAZARD(h38_clock_enabled_on_a_private_page)
{
	struct hz h;

	h38_create(&h, false);
	hz_convert(&h, 0, 6, GMEM_PRIVATE, GMEM_ZERO);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_SYSTEM_TIME_NEW, hz_gpa(&h, 0) | 1);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_STEAL_TIME, hz_gpa(&h, 1) | 1);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_PV_EOI_EN, hz_gpa(&h, 2) | 1);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_ASYNC_PF_INT, 0xf0);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_ASYNC_PF_EN, hz_gpa(&h, 3) | 9);
	/* Nothing enabled when its page is shared again writes to it then. */
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_WALL_CLOCK_NEW, hz_gpa(&h, 4));
	msr_do(h.vcpus[0], MSR_OP_CLOCK_PAIRING, 0, hz_gpa(&h, 5));
	h38_no_write_to_private(&h);
}

HAZARD(h38_steal_time_pv_eoi_async_pf)
{
	struct hz h;

	h38_create(&h, false);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_STEAL_TIME, hz_gpa(&h, 1) | 1);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_PV_EOI_EN, hz_gpa(&h, 2) | 1);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_ASYNC_PF_INT, 0xf0);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_ASYNC_PF_EN, hz_gpa(&h, 3) | 9);
	msr_do(h.vcpus[0], MSR_OP_NOP, 0, 0);
	h38_no_write_to_private(&h);
}

HAZARD(h38_wall_clock_and_clock_pairing)
{
	struct hz h;

	h38_create(&h, false);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_WALL_CLOCK_NEW, hz_gpa(&h, 4));
	TEST_ASSERT(gmem_check(hz_hva(&h, 4), 16, GMEM_ZEROES, 0) != GMEM_ALL_GOOD,
		    "KVM does not write the wall clock even to a shared page");

	hz_convert(&h, 0, 6, GMEM_PRIVATE, GMEM_ZERO);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, MSR_KVM_WALL_CLOCK_NEW, hz_gpa(&h, 4));
	msr_do(h.vcpus[0], MSR_OP_CLOCK_PAIRING, 0, hz_gpa(&h, 5));
	hz_convert(&h, 0, 6, GMEM_SHARED, GMEM_PRESERVE);
	hz_host_sees(&h, 0, 6, GMEM_ZEROES);
}

HAZARD(h38_hyperv_pages)
{
	struct hz h;
	u64 vector;

	HZ_REQUIRE(kvm_has_cap(KVM_CAP_HYPERV_CPUID), "needs KVM_HYPERV");
	h38_create(&h, true);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, HV_X64_MSR_GUEST_OS_ID, 1);
	vector = msr_do(h.vcpus[0], MSR_OP_WRMSR, HV_X64_MSR_HYPERCALL,
			hz_gpa(&h, 0) | 1);
	TEST_ASSERT(!vector && gmem_check(hz_hva(&h, 0), 16, GMEM_ZEROES, 0) != GMEM_ALL_GOOD,
		    "No hypercall page even on a shared one, vector %lu", vector);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, HV_X64_MSR_HYPERCALL, 0);

	hz_convert(&h, 0, 6, GMEM_PRIVATE, GMEM_ZERO);
	vector = msr_do(h.vcpus[0], MSR_OP_WRMSR, HV_X64_MSR_HYPERCALL,
			hz_gpa(&h, 0) | 1);
	TEST_ASSERT(vector == GP_VECTOR, "Hypercall page on a private one: vector %lu",
		    vector);
	vector = msr_do(h.vcpus[0], MSR_OP_WRMSR, HV_X64_MSR_VP_ASSIST_PAGE,
			hz_gpa(&h, 1) | 1);
	TEST_ASSERT(vector == GP_VECTOR, "Assist page on a private one: vector %lu",
		    vector);
	msr_do(h.vcpus[0], MSR_OP_WRMSR, HV_X64_MSR_REFERENCE_TSC, hz_gpa(&h, 2) | 1);
	msr_do(h.vcpus[0], MSR_OP_NOP, 0, 0);
	hz_attrs_are(&h, 0, 6, GMEM_PRIVATE);
	/* The TSC page may be written when its page is a shared one again. */
	msr_do(h.vcpus[0], MSR_OP_WRMSR, HV_X64_MSR_REFERENCE_TSC, 0);
	hz_convert(&h, 0, 6, GMEM_SHARED, GMEM_PRESERVE);
	hz_host_sees(&h, 0, 6, GMEM_ZEROES);
}

/* Nested state: KVM maps the page itself to write to it. */
HAZARD(h38_nested_vmsave)
{
	struct hz h;
	u64 vector;
	int r;

	HZ_REQUIRE(kvm_cpu_has(X86_FEATURE_SVM), "needs nested SVM");
	h38_create(&h, false);
	vector = msr_do(h.vcpus[0], MSR_OP_VMSAVE, 0, hz_gpa(&h, 0));
	TEST_ASSERT(!vector, "VMSAVE to a shared page: vector %lu", vector);
	TEST_ASSERT(gmem_check(hz_hva(&h, 0), PG, GMEM_ZEROES, 0) != GMEM_ALL_GOOD,
		    "VMSAVE does not write even to a shared page");

	hz_convert(&h, 0, 6, GMEM_PRIVATE, GMEM_ZERO);
	r = msr_try(h.vcpus[0], MSR_OP_VMSAVE, 0, hz_gpa(&h, 0));
	hz_convert(&h, 0, 6, GMEM_SHARED, GMEM_PRESERVE);
	if (!r && !msr_cmd.vector) {
		/* Where the CPU does it without KVM it is the guest's write. */
		SKIP(return, "the CPU executes VMSAVE without KVM");
	}
	/* KVM either tells the guest or gives up on the instruction. */
	TEST_ASSERT(r == KVM_EXIT_INTERNAL_ERROR || (!r && msr_cmd.vector == GP_VECTOR),
		    "VMSAVE to a private page: %d, vector %lu", r, msr_cmd.vector);
	hz_host_sees(&h, 0, 6, GMEM_ZEROES);
}

/* --- 41 to 43 ------------------------------------------------------------------ */

HAZARD(h41_vm_attributes_leave_in_place_slots_alone)
{
	struct kvm_memory_attributes attrs = { .address = GMEM_GPA, .size = OFF(8) };
	struct hz h;

	hz_create(&h, 8, GMEM_MMAP_SHARED, 1);
	hz_convert(&h, 2, 4, GMEM_PRIVATE, GMEM_ZERO);
	hz_guest_fill(&h, 0, 8, GMEM_SEED(41));

	/* Clear, over the slot, a part of it, and more than it. */
	vm_ioctl(h.vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs);
	attrs.address = GMEM_GPA + OFF(3);
	attrs.size = PG;
	vm_ioctl(h.vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs);
	attrs.address = GMEM_GPA - OFF(8);
	attrs.size = OFF(32);
	vm_ioctl(h.vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs);
	hz_attrs_are(&h, 0, 2, GMEM_SHARED);
	hz_attrs_are(&h, 2, 4, GMEM_PRIVATE);
	hz_attrs_are(&h, 6, 2, GMEM_SHARED);
	hz_guest_sees(&h, 0, 8, GMEM_SEED(41));
	hz_host_refused(&h, 2, 4);

	/* Set is refused wherever an in-place slot is touched. */
	attrs.attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE;
	refused(__vm_ioctl(h.vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs), EINVAL);
	attrs.address = GMEM_GPA;
	attrs.size = PG;
	refused(__vm_ioctl(h.vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs), EINVAL);
	attrs.address = GMEM_GPA + OFF(7);
	attrs.size = OFF(9);
	refused(__vm_ioctl(h.vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs), EINVAL);
	hz_attrs_are(&h, 0, 2, GMEM_SHARED);
	hz_guest_sees(&h, 0, 8, GMEM_SEED(41));

	/* Stored before the slot was: ignored while it is there. */
	gmem_area_unbind(&h.a);
	attrs.address = GMEM_GPA;
	attrs.size = OFF(8);
	if (!get_kvm_param_bool("gmem_in_place_conversion"))
		vm_ioctl(h.vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs);
	gmem_area_bind(&h.a);
	hz_attrs_are(&h, 0, 2, GMEM_SHARED);
	hz_guest_sees(&h, 0, 8, GMEM_SEED(41));
	hz_host_sees(&h, 0, 2, GMEM_SEED(41));
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
	hz_host_fill(&h, 0, 8, GMEM_SEED(42));
	r = poison_mapped(hz_hva(&h, 5));
	TEST_ASSERT(!r, "MADV_HWPOISON: errno %d (%s)", r, strerror(r));
	hz_host_refused(&h, 5, 1);

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
		hz_attrs_are(&h, 0, 8, GMEM_SHARED);
		hz_guest_sees(&h, 0, 5, GMEM_SEED(42));
		hz_guest_sees(&h, 6, 2, GMEM_SEED(42));
	}

	hz_convert(&h, 2, 6, GMEM_PRIVATE, GMEM_PRESERVE);
	hz_attrs_are(&h, 2, 6, GMEM_PRIVATE);
	hz_guest_sees(&h, 0, 5, GMEM_SEED(42));
	hz_guest_sees(&h, 6, 2, GMEM_SEED(42));
	for (i = 0; i < ARRAY_SIZE(policies); i++) {
		if (policies[i] == GMEM_NONE && !gmem_scrambles())
			continue;
		r = gmem_set(h.a.fd, OFF(2), OFF(6), GMEM_SHARED, policies[i], &eo);
		TEST_ASSERT(r == EHWPOISON && eo == OFF(5),
			    "To shared, policy %#lx: %d (%s) at %#lx", policies[i],
			    r, strerror(r), eo);
		hz_attrs_are(&h, 2, 6, GMEM_PRIVATE);
	}
	hz_convert(&h, 2, 6, GMEM_SHARED, GMEM_PRESERVE);
	hz_host_sees(&h, 0, 5, GMEM_SEED(42));
	hz_host_sees(&h, 6, 2, GMEM_SEED(42));
	hz_host_refused(&h, 5, 1);

	/* The guest gets to know, too; a hole heals it. */
	r = __gmem_guest_do(h.vcpus[1], GMEM_OP_READ, hz_gpa(&h, 5), 1, 0, 0, 0);
	TEST_ASSERT(r == -EHWPOISON, "The guest's read: %d", r);
	TEST_ASSERT(!gmem_punch(h.a.fd, OFF(5), PG), "punch failed");
	r = gmem_guest_resume(h.vcpus[1]);
	TEST_ASSERT(!r, "After the punch: %d", r);
	hz_guest_sees(&h, 5, 1, GMEM_ZEROES);
	hz_convert(&h, 2, 6, GMEM_PRIVATE, GMEM_ZERO);
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
			 * A frame that was let go may be anybody's by the
			 * time that its number is written. Pin it so that it
			 * stays what it is, and see that it was this one.
			 */
			struct pin pin;

			pfn = hz_pfn(hva);
			if (!pin_page(&pin, PIN_VMSPLICE, hva) && pfn &&
			    pfn == hz_pfn(hva) && !poison_pfn(pfn))
				n++;
			unpin_page(&pin);
		}
		atomic_store(&s.progress[3], n);

		/* The others shall meet this one before the next comes. */
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
	hz_convert(&s.h, 0, STORM_PAGES, GMEM_PRIVATE, GMEM_ZERO);
	hz_guest_sees(&s.h, 0, STORM_PAGES, GMEM_ZEROES);
	hz_convert(&s.h, 0, STORM_PAGES, GMEM_SHARED, GMEM_ZERO);
	hz_host_sees(&s.h, 0, STORM_PAGES, GMEM_ZEROES);
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
	HZ_REQUIRE(hz_pfn(hz_hva(&h, 0)), "needs frame numbers in /proc/self/pagemap");
	h42_storm(true);
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
		hz_convert(&h, 0, npages, steps[s].attrs ? GMEM_SHARED : GMEM_PRIVATE,
			   GMEM_PRESERVE);
		h43_dirty_free_memory();
		TEST_ASSERT(!gmem_allocate(h.a.fd, 0, OFF(npages)), "fallocate failed");
		hz_convert(&h, 0, npages, steps[s].attrs, steps[s].policy);
		/* There and back, and over pages in the state already. */
		hz_convert(&h, 0, npages / 2, steps[s].attrs, steps[s].policy);

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
			hz_convert(&h, 0, npages, GMEM_SHARED, GMEM_PRESERVE);
		}
		for (i = 0; i < OFF(npages); i += sizeof(bytes)) {
			bytes = *(volatile u64 *)(h.a.hva + i);
			TEST_ASSERT(!bytes, "Step %d: the host finds %#lx at %#lx",
				    s, bytes, i);
		}
	}
}

/* --- The module that knows the platform --------------------------------- */

static int remove_vendor_module(void)
{
	return syscall(SYS_delete_module, "kvm_amd", O_NONBLOCK) ? errno : 0;
}

/* What a file needs to give its memory back must not be unloaded before. */
HAZARD(vendor_module_stays_as_long_as_the_memory)
{
	struct kvm_create_guest_memfd args = {
		.size = 4 * PG,
		.flags = GMEM_MMAP_SHARED,
	};
	int kvm, vm, fd;
	u8 *hva;

	HZ_REQUIRE(!access("/sys/module/kvm_amd/refcnt", F_OK),
		   "kvm-amd is no module here");

	kvm = open_kvm_dev_path_or_exit();
	vm = ioctl(kvm, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM);
	fd = ioctl(vm, KVM_CREATE_GUEST_MEMFD, &args);
	TEST_ASSERT(fd >= 0, "KVM_CREATE_GUEST_MEMFD: errno %d", errno);
	hva = kvm_mmap(args.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	*hva = 1;
	TEST_ASSERT_EQ(remove_vendor_module(), EWOULDBLOCK);

	/* The file keeps the VM, ... */
	kvm_close(vm);
	kvm_close(kvm);
	TEST_ASSERT_EQ(remove_vendor_module(), EWOULDBLOCK);
	TEST_ASSERT_EQ(gmem_set(fd, 0, PG, GMEM_PRIVATE, GMEM_PRESERVE, NULL), 0);
	TEST_ASSERT_EQ(gmem_set(fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), 0);

	/* ... and a mapping the file. */
	kvm_close(fd);
	TEST_ASSERT_EQ(remove_vendor_module(), EWOULDBLOCK);
	TEST_ASSERT_EQ(*hva, 1);
	kvm_munmap(hva, args.size);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_VM_TYPES));
	__TEST_REQUIRE(gmem_vm_type_supported(), "KVM has no SW_PROTECTED VMs");
	__TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES),
		       "guest_memfd does not convert in place");

	return test_harness_run(argc, argv);
}
