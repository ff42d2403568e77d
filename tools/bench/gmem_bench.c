// SPDX-License-Identifier: GPL-2.0
/*
 * The cost of guest_memfd, in instructions per page.
 *
 * To be run under QEMU's "-icount shift=0", where the time stamp counter
 * counts executed instructions: figures then depend on the kernel alone, and
 * not on the machine that emulates. Work that a processor does beside
 * instructions (page walks, TLB flushes) costs nothing here, and a string
 * instruction counts once per iteration.
 *
 * The program is the same for the C and the Rust guest_memfd. It leaves out what
 * a kernel does not support. Each line of its output that starts with "bench,"
 * is one figure: name, unit, minimum, median, maximum of the repetitions.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "gmem_test.h"
#include "numaif.h"

/* The default; a batch is this many pages, and single calls a sixteenth. */
#define DEFAULT_PAGES	1024
#define DEFAULT_REPS	5
#define MAX_REPS	99

#define BENCH_GPA	GMEM_GPA
#define BENCH_SLOT	GMEM_SLOT
/* A buffer for data that has to survive a change of backing. */
#define BOUNCE_GPA	(BENCH_GPA + SZ_1G)
#define BOUNCE_SLOT	(BENCH_SLOT + 1)

/* TEST_ASSERT() evaluates its arguments even if the condition holds. */
#define must(cond, fmt, ...)						\
do {									\
	if (__builtin_expect(!(cond), 0))				\
		TEST_FAIL(fmt, ##__VA_ARGS__);				\
} while (0)

static u64 pages = DEFAULT_PAGES;
static int reps = DEFAULT_REPS;
static bool in_place;
static bool can_map_memory;
/* Of files that the host maps. */
static u64 file_flags = GMEM_MMAP_SHARED;
static const char *sections;

/* --- Time --------------------------------------------------------------- */

static inline u64 now(void)
{
	u32 lo, hi;

	asm volatile("rdtsc" : "=a"(lo), "=d"(hi) :: "memory");
	return (u64)hi << 32 | lo;
}

/*
 * Two million instructions by construction. Anything but two million ticks
 * means that the figures are not instructions, and then there are none.
 */
static void calibrate(void)
{
	const u64 loops = 1000000;
	u64 count = loops, start, ticks;

	start = now();
	asm volatile("1: dec %0\n\tjnz 1b" : "+r"(count) :: "cc");
	ticks = now() - start;

	printf("# calibration: %lu instructions took %lu ticks\n", 2 * loops,
	       ticks);
	/* A timer interrupt or two may come in between. */
	if (ticks < 2 * loops || ticks > 2 * loops + 2 * loops / 50) {
		fprintf(stderr, "The time stamp counter does not count instructions: is this \"-icount shift=0\"?\n");
		exit(KSFT_FAIL);
	}
}

/* --- Figures ------------------------------------------------------------ */

struct figure {
	u64 ticks[MAX_REPS + 1];
	int n;
};

static void figure_add(struct figure *f, u64 ticks)
{
	TEST_ASSERT(f->n <= MAX_REPS, "Too many repetitions");
	f->ticks[f->n++] = ticks;
}

static int by_value(const void *a, const void *b)
{
	const u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

/*
 * The first repetition is not counted: it has the cost of page tables and caches
 * that the others find.
 */
static void __printf(4, 5) figure_print(struct figure *f, u64 per,
					const char *unit, const char *fmt, ...)
{
	char name[128];
	va_list ap;

	TEST_ASSERT(f->n > 1, "No repetitions");
	va_start(ap, fmt);
	vsnprintf(name, sizeof(name), fmt, ap);
	va_end(ap);

	qsort(f->ticks + 1, f->n - 1, sizeof(f->ticks[0]), by_value);
	printf("bench,%s,%s,%.1f,%.1f,%.1f\n", name, unit,
	       (double)f->ticks[1] / per,
	       (double)f->ticks[1 + (f->n - 1) / 2] / per,
	       (double)f->ticks[f->n - 1] / per);
	fflush(stdout);
}

#define PER_PAGE "instructions/page"
#define PER_CALL "instructions/call"

#define for_each_rep(r) for (int r = 0; r <= reps; r++)

/* --- The guest ---------------------------------------------------------- */

enum {
	OP_NOTHING,
	OP_TOUCH,		/* write one word of each page */
	OP_COPY,		/* copy each page from source */
};

static struct order {
	u64 op;
	u64 gva;
	u64 source;
	u64 pages;
	u64 step;		/* in pages */
} order;

static void copy_pages(u64 to, u64 from, u64 n)
{
	u64 words = n * PAGE_SIZE / 8;

	asm volatile("rep movsq"
		     : "+D"(to), "+S"(from), "+c"(words) :: "memory");
}

/* An exit that needs no memory, unlike a ucall. */
static void guest_code(void)
{
	volatile struct order *o = &order;
	u64 i;

	for (;;) {
		asm volatile("outb %%al, $0xe9" :: "a"(0) : "memory");
		switch (o->op) {
		case OP_TOUCH:
			for (i = 0; i < o->pages; i++)
				*(volatile u64 *)(o->gva + i * o->step * PAGE_SIZE) = i;
			break;
		case OP_COPY:
			copy_pages(o->gva, o->source, o->pages);
			break;
		}
	}
}

/* --- A machine and its memory ------------------------------------------- */

enum backing {
	/* One shared file, on a VM without private memory. */
	DEFAULT_SHARED,
	/* Private memory in the file, shared memory elsewhere; VM attributes. */
	TWO_BACKINGS,
	/* Both in the file, which converts. */
	IN_PLACE,
};

static const char * const backing_name[] = {
	[DEFAULT_SHARED] = "shared-file",
	[TWO_BACKINGS] = "two-backings",
	[IN_PLACE] = "in-place",
};

struct machine {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	volatile struct order *order;
	enum backing backing;
	int fd;
	u64 size;
	u64 bound;	/* how much of the file is in a memslot */
	u8 *hva;	/* of the shared memory of either backing */
	u8 *bounce;
};

static void run(struct machine *m)
{
	int r;

	do {
		r = __vcpu_run(m->vcpu);
	} while (r < 0 && errno == EINTR);
	must(!r && m->vcpu->run->exit_reason == KVM_EXIT_IO,
		    "KVM_RUN: %d, errno %d (%s), exit reason %u (%s), fault at gpa %#llx flags %#llx",
		    r, errno, strerror(errno), m->vcpu->run->exit_reason,
		    exit_reason_str(m->vcpu->run->exit_reason),
		    m->vcpu->run->memory_fault.gpa,
		    m->vcpu->run->memory_fault.flags);
}

/* Let the guest execute an operation on [first, first + n). */
static void guest_do(struct machine *m, u64 op, u64 first, u64 n)
{
	m->order->op = op;
	m->order->gva = BENCH_GPA + first * PAGE_SIZE;
	m->order->source = BOUNCE_GPA + first * PAGE_SIZE;
	m->order->pages = n;
	m->order->step = 1;
	run(m);
}

static void guest_touch(struct machine *m, u64 first, u64 n)
{
	guest_do(m, OP_TOUCH, first, n);
}

/* Every @step-th page of [first, first + n). */
static void guest_touch_apart(struct machine *m, u64 first, u64 n, u64 step)
{
	m->order->op = OP_TOUCH;
	m->order->gva = BENCH_GPA + first * PAGE_SIZE;
	m->order->pages = n / step;
	m->order->step = step;
	run(m);
}

/* Let the guest copy pages to or from the bounce buffer. */
static void guest_copy(struct machine *m, bool out, u64 first, u64 n)
{
	const u64 a = BENCH_GPA + first * PAGE_SIZE;
	const u64 b = BOUNCE_GPA + first * PAGE_SIZE;

	m->order->op = OP_COPY;
	m->order->gva = out ? b : a;
	m->order->source = out ? a : b;
	m->order->pages = n;
	run(m);
}

static void host_touch(struct machine *m, u64 first, u64 n)
{
	u64 i;

	for (i = first; i < first + n; i++)
		*(volatile u64 *)(m->hva + i * PAGE_SIZE) = i;
}

static void host_populate(struct machine *m, u64 first, u64 n)
{
	must(!madvise(m->hva + first * PAGE_SIZE, n * PAGE_SIZE,
			     MADV_POPULATE_WRITE),
		    "madvise: errno %d (%s)", errno, strerror(errno));
}

static void guest_populate(struct machine *m, u64 first, u64 n)
{
	struct kvm_pre_fault_memory range = {
		.gpa = BENCH_GPA + first * PAGE_SIZE,
		.size = n * PAGE_SIZE,
	};
	int r;

	do {
		r = __vcpu_ioctl(m->vcpu, KVM_PRE_FAULT_MEMORY, &range);
		must(!r || errno == EINTR || errno == EAGAIN,
			    "KVM_PRE_FAULT_MEMORY: errno %d (%s)", errno,
			    strerror(errno));
	} while (range.size);
}

/* The same with KVM_MAP_MEMORY, which C does not have. */
static void guest_map(struct machine *m, u64 first, u64 n)
{
	struct kvm_memory_mapping range = {
		.base_address = BENCH_GPA + first * PAGE_SIZE,
		.size = n * PAGE_SIZE,
	};
	int r;

	do {
		r = __vcpu_ioctl(m->vcpu, KVM_MAP_MEMORY, &range);
		must(!r || errno == EINTR || errno == EAGAIN, "KVM_MAP_MEMORY: errno %d (%s)",
		     errno, strerror(errno));
	} while (range.size);
}

static void machine_bind(struct machine *m, bool bind)
{
	int r = __vm_set_user_memory_region2(m->vm, BENCH_SLOT,
					     KVM_MEM_GUEST_MEMFD, BENCH_GPA,
					     bind ? m->bound : 0, m->hva,
					     m->fd, 0);

	must(!r, "KVM_SET_USER_MEMORY_REGION2: errno %d (%s)", errno,
		    strerror(errno));
}

static u8 *map_shared(struct machine *m, bool huge)
{
	u8 *hva;

	if (m->backing != TWO_BACKINGS)
		return kvm_mmap(m->size, PROT_READ | PROT_WRITE, MAP_SHARED,
				m->fd);

	/* Huge pages need alignment, and single pages have to be requested. */
	hva = kvm_mmap(m->size + SZ_2M, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	hva = (u8 *)(((u64)hva + SZ_2M - 1) & ~(SZ_2M - 1ULL));
	must(!madvise(hva, m->size,
			     huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE),
		    "madvise: errno %d", errno);
	return hva;
}

static void machine_make_with(struct machine *m, enum backing backing, u64 npages,
			      bool huge, void *guest, u32 nr, struct kvm_vcpu **vcpus)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = backing == DEFAULT_SHARED ? KVM_X86_DEFAULT_VM :
						    KVM_X86_SW_PROTECTED_VM,
	};

	memset(m, 0, sizeof(*m));
	m->backing = backing;
	m->size = npages * PAGE_SIZE;
	m->vm = __vm_create_with_vcpus(shape, nr, 2 * pages, guest, vcpus);
	m->vcpu = vcpus[0];
	m->order = addr_gva2hva(m->vm, (gva_t)&order);
	m->fd = vm_create_guest_memfd(m->vm, m->size,
				      backing == TWO_BACKINGS ? 0 : file_flags);
	m->hva = map_shared(m, huge);
	/* A file may be larger than what guests can address. */
	m->bound = (m->vm->max_gfn + 1) * PAGE_SIZE - BENCH_GPA;
	if (m->bound > m->size)
		m->bound = m->size;
	machine_bind(m, true);
	virt_map(m->vm, BENCH_GPA, BENCH_GPA, pages);
	if (npages > pages)
		return;

	vm_userspace_mem_region_add(m->vm, VM_MEM_SRC_ANONYMOUS, BOUNCE_GPA,
				    BOUNCE_SLOT, pages, 0);
	virt_map(m->vm, BOUNCE_GPA, BOUNCE_GPA, pages);
	m->bounce = addr_gpa2hva(m->vm, BOUNCE_GPA);
	memset(m->bounce, 0x5a, pages * PAGE_SIZE);
}

static void machine_init(struct machine *m, enum backing backing, u64 npages,
			 bool huge)
{
	struct kvm_vcpu *vcpu;

	machine_make_with(m, backing, npages, huge, guest_code, 1, &vcpu);
	/* One round of the loop, so that the guest's own memory is mapped. */
	run(m);
	guest_do(m, OP_NOTHING, 0, 0);
}

static void machine_destroy(struct machine *m)
{
	machine_bind(m, false);
	kvm_munmap(m->hva, m->size);
	kvm_close(m->fd);
	kvm_vm_free(m->vm);
}

static void punch(struct machine *m, u64 first, u64 n)
{
	int r = gmem_punch(m->fd, first * PAGE_SIZE, n * PAGE_SIZE);

	must(!r, "Punching a hole: errno %d (%s)", r, strerror(r));
}

static void allocate(struct machine *m, u64 first, u64 n)
{
	int r = gmem_allocate(m->fd, first * PAGE_SIZE, n * PAGE_SIZE);

	must(!r, "Allocating: errno %d (%s)", r, strerror(r));
}

/* Give the pages of the other backing back. */
static void discard_shared(struct machine *m, u64 first, u64 n)
{
	must(!madvise(m->hva + first * PAGE_SIZE, n * PAGE_SIZE,
			     MADV_DONTNEED),
		    "madvise: errno %d", errno);
}

/*
 * The ioctl of the backing, and nothing else: libkvm's wrappers take more
 * instructions than some of the measured operations.
 */
static void set_attributes(struct machine *m, u64 first, u64 n, bool private,
			   u64 policy)
{
	static struct kvm_memory_attributes2 in_file;
	static struct kvm_memory_attributes in_vm;
	int r;

	if (m->backing == IN_PLACE) {
		in_file.offset = first * PAGE_SIZE;
		in_file.size = n * PAGE_SIZE;
		in_file.attributes = private ? GMEM_PRIVATE : GMEM_SHARED;
		in_file.flags = policy;
		r = ioctl(m->fd, KVM_SET_MEMORY_ATTRIBUTES2, &in_file);
	} else {
		in_vm.address = BENCH_GPA + first * PAGE_SIZE;
		in_vm.size = n * PAGE_SIZE;
		in_vm.attributes = private ? GMEM_PRIVATE : GMEM_SHARED;
		r = ioctl(m->vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &in_vm);
	}
	must(!r, "Setting attributes: errno %d (%s)", errno,
		    strerror(errno));
}

/*
 * A whole conversion. With two backings this includes freeing the memory that
 * is no longer used.
 */
static void convert(struct machine *m, u64 first, u64 n, bool private,
		    u64 policy)
{
	set_attributes(m, first, n, private, policy);
	if (m->backing != TWO_BACKINGS)
		return;
	if (private)
		discard_shared(m, first, n);
	else
		punch(m, first, n);
}

/* --- Faults ------------------------------------------------------------- */

/* Frees all memory, which unmaps it from host and guest. */
static void forget(struct machine *m)
{
	punch(m, 0, pages);
	if (m->backing == TWO_BACKINGS)
		discard_shared(m, 0, pages);
}

static void bench_guest_fault(enum backing backing, bool private)
{
	struct figure first = {}, again = {}, apart = {}, present = {};
	struct machine m;
	u64 start;

	machine_init(&m, backing, pages, false);
	if (backing != DEFAULT_SHARED)
		set_attributes(&m, 0, pages, private, GMEM_PRESERVE);

	for_each_rep(r) {
		forget(&m);
		start = now();
		guest_touch(&m, 0, pages);
		figure_add(&first, now() - start);

		/* A new slot has no mappings, and the file has the pages. */
		machine_bind(&m, false);
		machine_bind(&m, true);
		/* The tables above the last level were freed as well. */
		guest_touch(&m, 0, 1);
		start = now();
		guest_touch(&m, 0, pages);
		figure_add(&again, now() - start);

		/* Pages whose neighbours are not touched; one entry for each. */
		machine_bind(&m, false);
		machine_bind(&m, true);
		guest_touch(&m, 1, 1);
		start = now();
		guest_touch_apart(&m, 2, pages - 4, 4);
		figure_add(&apart, now() - start);
		guest_touch(&m, 0, pages);

		/* No fault at all: the cost of the loop itself and of the exit. */
		start = now();
		guest_touch(&m, 0, pages);
		figure_add(&present, now() - start);
	}
	figure_print(&first, pages, PER_PAGE, "guest-fault/%s/%s/first-use",
		     private ? "private" : "shared", backing_name[backing]);
	figure_print(&again, pages, PER_PAGE, "guest-fault/%s/%s/allocated",
		     private ? "private" : "shared", backing_name[backing]);
	figure_print(&apart, (pages - 4) / 4, PER_PAGE, "guest-fault/%s/%s/allocated-apart",
		     private ? "private" : "shared", backing_name[backing]);
	figure_print(&present, pages, PER_PAGE, "guest-fault/%s/%s/mapped",
		     private ? "private" : "shared", backing_name[backing]);
	machine_destroy(&m);
}

/*
 * Populating allocated memory, which the host may write where it is shared: in calls
 * of different sizes, and all of the memory each time, except for the single page.
 */
static void bench_populate(enum backing backing, bool private, bool huge)
{
	static const struct {
		const char *name;
		void (*populate)(struct machine *m, u64 first, u64 n);
	} ways[] = {
		{ "map-memory", guest_map },
		{ "pre-fault", guest_populate },
	};
	struct machine m;
	u64 start, n;

	machine_init(&m, backing, pages, huge);
	if (backing != DEFAULT_SHARED)
		set_attributes(&m, 0, pages, private, GMEM_PRESERVE);
	if (!private)
		host_populate(&m, 0, pages);
	guest_touch(&m, 0, pages);

	for (int w = can_map_memory ? 0 : 1; w < (int)ARRAY_SIZE(ways); w++) {
		for (n = 1; n <= pages; n = n < pages && n * 16 > pages ? pages : n * 16) {
			struct figure figure = {};

			for_each_rep(r) {
				machine_bind(&m, false);
				machine_bind(&m, true);
				/* The tables above the last level. */
				guest_touch(&m, 0, 1);
				start = now();
				ways[w].populate(&m, 0, n);
				figure_add(&figure, now() - start);
			}
			figure_print(&figure, n, PER_PAGE, "populate/%s/%s%s/%s/%lu-pages",
				     private ? "private" : "shared", backing_name[backing],
				     huge ? "-2M" : "", ways[w].name, n);
		}
	}
	machine_destroy(&m);
}

/* Whether the cost stays linear, up to 1 GiB in one call. Once: it takes long. */
static void bench_populate_1gib(void)
{
	const u64 saved_pages = pages;
	const int saved_reps = reps;
	struct machine m;
	u64 start, n;

	pages = SZ_1G / PAGE_SIZE;
	reps = 1;
	machine_init(&m, IN_PLACE, pages, false);
	set_attributes(&m, 0, pages, true, GMEM_PRESERVE);
	guest_touch(&m, 0, pages);
	for (n = pages / 256; n <= pages; n *= 16) {
		struct figure figure = {};

		for_each_rep(r) {
			machine_bind(&m, false);
			machine_bind(&m, true);
			guest_touch(&m, 0, 1);
			start = now();
			guest_map(&m, 0, n);
			figure_add(&figure, now() - start);
		}
		figure_print(&figure, n, PER_PAGE, "populate-1GiB/private/in-place/map-memory/%lu-pages",
			     n);
	}
	machine_destroy(&m);
	pages = saved_pages;
	reps = saved_reps;
}

static void bench_host_fault(enum backing backing)
{
	struct figure first = {}, again = {}, apart = {};
	struct machine m;
	u64 start;

	machine_init(&m, backing, pages, false);
	for_each_rep(r) {
		forget(&m);
		start = now();
		host_touch(&m, 0, pages);
		figure_add(&first, now() - start);

		must(!madvise(m.hva, m.size, MADV_DONTNEED),
			    "madvise: errno %d", errno);
		start = now();
		host_touch(&m, 0, pages);
		figure_add(&again, now() - start);

		/* Pages whose neighbours are not touched. */
		must(!madvise(m.hva, m.size, MADV_DONTNEED),
			    "madvise: errno %d", errno);
		start = now();
		for (u64 at = 0; at < pages; at += 2)
			host_touch(&m, at, 1);
		figure_add(&apart, now() - start);
	}
	figure_print(&apart, pages / 2, PER_PAGE, "host-fault/%s/allocated-apart",
		     backing_name[backing]);
	figure_print(&first, pages, PER_PAGE, "host-fault/%s/first-use",
		     backing_name[backing]);
	figure_print(&again, pages, PER_PAGE, "host-fault/%s/allocated",
		     backing_name[backing]);
	machine_destroy(&m);
}

/* --- fallocate() -------------------------------------------------------- */

static void bench_fallocate(enum backing backing)
{
	struct figure alloc = {}, again = {}, free = {}, unmap = {}, empty = {};
	struct machine m;
	u64 start;

	machine_init(&m, backing, pages, false);
	if (backing == TWO_BACKINGS)
		set_attributes(&m, 0, pages, true, GMEM_PRESERVE);
	for_each_rep(r) {
		forget(&m);
		start = now();
		allocate(&m, 0, pages);
		figure_add(&alloc, now() - start);

		start = now();
		allocate(&m, 0, pages);
		figure_add(&again, now() - start);

		start = now();
		punch(&m, 0, pages);
		figure_add(&free, now() - start);

		guest_touch(&m, 0, pages);
		start = now();
		punch(&m, 0, pages);
		figure_add(&unmap, now() - start);

		start = now();
		punch(&m, 0, 1);
		figure_add(&empty, now() - start);
	}
	figure_print(&alloc, pages, PER_PAGE, "fallocate/%s/new", backing_name[backing]);
	figure_print(&again, pages, PER_PAGE, "fallocate/%s/allocated", backing_name[backing]);
	figure_print(&free, pages, PER_PAGE, "punch/%s/allocated", backing_name[backing]);
	figure_print(&unmap, pages, PER_PAGE, "punch/%s/guest-mapped", backing_name[backing]);
	figure_print(&empty, 1, PER_CALL, "punch/%s/one-empty-page", backing_name[backing]);
	machine_destroy(&m);
}

/* --- Attributes --------------------------------------------------------- */

static const struct {
	const char *name;
	u64 flags;
} policies[] = {
	{ "preserve", GMEM_PRESERVE },
	{ "zero", GMEM_ZERO },
	{ "none", GMEM_NONE },
};

/* In one call for all pages, or in one for each. */
static u64 timed_convert(struct machine *m, u64 n, u64 step, bool private,
			 u64 policy, bool attributes_only)
{
	u64 start = now(), at;

	for (at = 0; at < n; at += step) {
		if (attributes_only)
			set_attributes(m, at, step, private, policy);
		else
			convert(m, at, step, private, policy);
	}
	return now() - start;
}

/* Conversions of pages that guest and host have mapped, if they can. */
static void bench_convert(enum backing backing, const char *name, u64 policy,
			  bool attributes_only, bool single)
{
	const u64 n = single ? pages / 16 : pages, step = single ? 1 : n;
	const char *kind = single ? "page-by-page" : "one-call";
	struct figure to_private = {}, to_shared = {};
	struct machine m;

	machine_init(&m, backing, pages, false);
	for_each_rep(r) {
		host_touch(&m, 0, n);
		guest_touch(&m, 0, n);
		figure_add(&to_private, timed_convert(&m, n, step, true, policy,
						      attributes_only));
		guest_touch(&m, 0, n);
		figure_add(&to_shared, timed_convert(&m, n, step, false, policy,
						     attributes_only));
	}
	figure_print(&to_private, n, PER_PAGE, "convert/%s/to-private/%s/%s",
		     backing_name[backing], name, kind);
	figure_print(&to_shared, n, PER_PAGE, "convert/%s/to-shared/%s/%s",
		     backing_name[backing], name, kind);
	machine_destroy(&m);
}

/*
 * A guest requests the conversion of 64 pages: exit, conversion, populating, and
 * entry; the guest then finds the pages mapped.  C uses KVM_PRE_FAULT_MEMORY.
 */
static void bench_request(enum backing backing)
{
	struct figure to_private = {}, to_shared = {};
	const u64 n = 64, calls = pages / n;
	struct machine m;

	machine_init(&m, backing, pages, false);
	for_each_rep(r) {
		for (int private = 1; private >= 0; private--) {
			u64 start;

			host_touch(&m, 0, private ? pages : 0);
			guest_touch(&m, 0, pages);
			start = now();
			for (u64 at = 0; at < pages; at += n) {
				guest_do(&m, OP_NOTHING, 0, 0);
				convert(&m, at, n, private, GMEM_PRESERVE);
				if (can_map_memory)
					guest_map(&m, at, n);
				else
					guest_populate(&m, at, n);
			}
			figure_add(private ? &to_private : &to_shared, now() - start);
		}
	}
	figure_print(&to_private, calls, PER_CALL, "request-64-pages/%s/to-private",
		     backing_name[backing]);
	figure_print(&to_shared, calls, PER_CALL, "request-64-pages/%s/to-shared",
		     backing_name[backing]);
	machine_destroy(&m);
}

/*
 * A file of 1 TiB without pages, which the host has mapped and the guest has as its
 * memory, as far as it can address that much.
 */
static void bench_empty(void)
{
	const u64 npages = (1ULL << 40) / PAGE_SIZE;
	struct machine m;

	machine_init(&m, IN_PLACE, npages, false);
	printf("# 1 TiB file, %lu GiB of it bound to a memslot\n", m.bound >> 30);
	for (int p = 0; p < (int)ARRAY_SIZE(policies); p++) {
		struct figure to_private = {}, to_shared = {}, same = {};

		for_each_rep(r) {
			figure_add(&to_private,
				   timed_convert(&m, npages, npages, true,
						 policies[p].flags, false));
			figure_add(&same,
				   timed_convert(&m, npages, npages, true,
						 policies[p].flags, false));
			figure_add(&to_shared,
				   timed_convert(&m, npages, npages, false,
						 policies[p].flags, false));
		}
		figure_print(&to_private, 1, PER_CALL, "convert-empty-1TiB/in-place/to-private/%s",
			     policies[p].name);
		figure_print(&same, 1, PER_CALL, "convert-empty-1TiB/in-place/no-change/%s",
			     policies[p].name);
		figure_print(&to_shared, 1, PER_CALL, "convert-empty-1TiB/in-place/to-shared/%s",
			     policies[p].name);
	}
	machine_destroy(&m);
}

/*
 * How long the file's lock is held for a large range in one call, with every
 * page of it mapped by host and guest.  At one instruction per nanosecond, as
 * "shift=0" has it, the figure is the hold in virtual nanoseconds, too.
 */
static void bench_hold(void)
{
	const u64 saved_pages = pages, n = SZ_1G / PAGE_SIZE;
	const int saved_reps = reps;

	pages = n;
	reps = 1;
	/* NONE acts like one of these, or does less. */
	for (int p = 0; p < 2; p++) {
		struct figure to_private = {}, to_shared = {};
		struct machine m;

		/* With one more page, no bounce buffer is needed. */
		machine_init(&m, IN_PLACE, n + 1, false);
		for_each_rep(r) {
			host_touch(&m, 0, n);
			guest_touch(&m, 0, n);
			figure_add(&to_private,
				   timed_convert(&m, n, n, true,
						 policies[p].flags, false));
			guest_touch(&m, 0, n);
			figure_add(&to_shared,
				   timed_convert(&m, n, n, false,
						 policies[p].flags, false));
		}
		figure_print(&to_private, 1, PER_CALL, "convert-1GiB/in-place/to-private/%s",
			     policies[p].name);
		figure_print(&to_private, n, PER_PAGE, "convert-1GiB/in-place/to-private/%s/page",
			     policies[p].name);
		figure_print(&to_shared, 1, PER_CALL, "convert-1GiB/in-place/to-shared/%s",
			     policies[p].name);
		figure_print(&to_shared, n, PER_PAGE, "convert-1GiB/in-place/to-shared/%s/page",
			     policies[p].name);
		machine_destroy(&m);
	}
	pages = saved_pages;
	reps = saved_reps;
}

/* A page that is needed all the time, and the longest time that a fault on it took. */
struct needer {
	pthread_t thread;
	volatile u8 *page;
	atomic_bool stop;
	u64 worst;
};

static void *need(void *arg)
{
	struct needer *n = arg;

	while (!atomic_load(&n->stop)) {
		u64 start, took;

		must(!madvise((void *)n->page, PAGE_SIZE, MADV_DONTNEED), "madvise: errno %d", errno);
		start = now();
		*n->page = 1;
		took = now() - start;
		if (took > n->worst)
			n->worst = took;
	}
	return NULL;
}

/* How long a request for 1 GiB delays the host's access to a page outside of the range. */
static void bench_wait(void)
{
	const u64 n = SZ_1G / PAGE_SIZE;
	struct machine m;

	machine_init(&m, IN_PLACE, n + 1, false);
	host_touch(&m, 0, n);
	guest_touch(&m, 0, n);
	for (int private = 1; private >= 0; private--) {
		struct needer needer = { .page = m.hva + n * PAGE_SIZE };
		/* Once; the first is the one that is not counted. */
		struct figure wait = { .n = 1 };

		if (!private)
			guest_touch(&m, 0, n);
		pthread_create(&needer.thread, NULL, need, &needer);
		timed_convert(&m, n, n, private, GMEM_PRESERVE, false);
		atomic_store(&needer.stop, true);
		pthread_join(needer.thread, NULL);
		figure_add(&wait, needer.worst);
		figure_print(&wait, 1, PER_CALL, "longest-wait/host-fault/convert-1GiB-to-%s",
			     private ? "private" : "shared");
	}
	machine_destroy(&m);
}

/* --- Freeing attributes ------------------------------------------------- */

/* How long a task of real-time priority has waited for the CPU. */
struct watch {
	pthread_t thread;
	atomic_bool stop;
	_Atomic u64 worst;
};

static void *watch(void *arg)
{
	const struct timespec nap = { .tv_nsec = 50000 };
	struct watch *w = arg;

	while (!atomic_load(&w->stop)) {
		u64 start = now(), late;

		nanosleep(&nap, NULL);
		late = now() - start;
		/* One tick is an instruction, and with "shift=0" a nanosecond. */
		late -= late < (u64)nap.tv_nsec ? late : (u64)nap.tv_nsec;
		if (late > atomic_load(&w->worst))
			atomic_store(&w->worst, late);
	}
	return NULL;
}

static void watch_start(struct watch *w)
{
	struct sched_param param = { .sched_priority = 50 };
	pthread_attr_t attr;

	memset(w, 0, sizeof(*w));
	pthread_attr_init(&attr);
	pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED);
	pthread_attr_setschedpolicy(&attr, SCHED_FIFO);
	pthread_attr_setschedparam(&attr, &param);
	must(!pthread_create(&w->thread, &attr, watch, w), "No thread with SCHED_FIFO");
	pthread_attr_destroy(&attr);
}

/* @seconds: how long RCU may take to free memory. */
static u64 watch_stop(struct watch *w, int seconds)
{
	sleep(seconds);
	atomic_store(&w->stop, true);
	pthread_join(w->thread, NULL);
	return atomic_load(&w->worst);
}

/*
 * A million runs in the largest number of bitmaps: a page in each 2 MiB. How long do
 * others wait for the CPU while they are freed, by a request that makes all pages the
 * same, and by closing the file?
 */
static void bench_runs(void)
{
	const u64 size = 1ULL << 40, step = SZ_2M;
	/* Once each; the first is the one that is not counted. */
	struct figure idle = { .n = 1 }, same = { .n = 1 }, gone = { .n = 1 };
	struct kvm_vm *vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	int fd = vm_create_guest_memfd(vm, size, GMEM_MMAP_SHARED);
	struct watch w;

	watch_start(&w);
	figure_add(&idle, watch_stop(&w, 2));
	for (int way = 0; way < 2; way++) {
		for (u64 at = 0; at < size; at += step)
			must(!gmem_set_once(fd, at, PAGE_SIZE, GMEM_PRIVATE, GMEM_PRESERVE, NULL),
			     "Conversion at %#lx: errno %d", at, errno);
		watch_start(&w);
		if (way == 0) {
			must(!gmem_set_once(fd, 0, size, GMEM_SHARED, GMEM_PRESERVE, NULL),
			     "Conversion of all: errno %d", errno);
			figure_add(&same, watch_stop(&w, 8));
		} else {
			kvm_close(fd);
			figure_add(&gone, watch_stop(&w, 8));
		}
	}
	figure_print(&idle, 1, PER_CALL, "longest-wait/idle");
	figure_print(&same, 1, PER_CALL, "longest-wait/convert-a-million-runs");
	figure_print(&gone, 1, PER_CALL, "longest-wait/close-a-million-runs");
	kvm_vm_free(vm);
}

/* --- Round trips -------------------------------------------------------- */

/*
 * To shared, a touch by host and guest, back to private, a touch by the guest.
 * With two backings the VMM sets the attributes and frees the memory that is no
 * longer used, as VMMs do. This loses the bytes. With @keep, guest and host copy
 * them through a bounce buffer that is always shared.
 */
enum trip {
	/* Guest and host fault the pages in when they touch them. */
	TOUCHED,
	/* The VMM populates the page tables first. */
	POPULATED,
	/* Like TOUCHED, with the bytes carried over. */
	KEPT,
};

static void round_trip(struct machine *m, u64 first, u64 n, u64 policy,
		       enum trip trip)
{
	const bool keep = trip == KEPT;
	const u64 offset = first * PAGE_SIZE;

	if (keep)
		guest_copy(m, true, first, n);
	convert(m, first, n, false, policy);
	if (trip == POPULATED) {
		host_populate(m, first, n);
		guest_populate(m, first, n);
	}
	if (keep)
		copy_pages((u64)m->hva + offset, (u64)m->bounce + offset, n);
	else
		host_touch(m, first, n);
	guest_touch(m, first, n);

	if (keep)
		copy_pages((u64)m->bounce + offset, (u64)m->hva + offset, n);
	convert(m, first, n, true, policy);
	if (trip == POPULATED)
		guest_populate(m, first, n);
	if (keep)
		guest_copy(m, false, first, n);
	guest_touch(m, first, n);
}

static void bench_round_trip(enum backing backing, const char *name, u64 policy,
			     enum trip trip, bool huge, bool single)
{
	const u64 n = single ? pages / 16 : pages;
	struct figure f = {};
	struct machine m;
	u64 start, at;

	machine_init(&m, backing, pages, huge);
	/* The start of each trip: private, and used by the guest. */
	set_attributes(&m, 0, pages, true, GMEM_PRESERVE);
	guest_touch(&m, 0, pages);

	for_each_rep(r) {
		start = now();
		for (at = 0; at < n; at += single ? 1 : n)
			round_trip(&m, at, single ? 1 : n, policy, trip);
		figure_add(&f, now() - start);
	}
	figure_print(&f, n, PER_PAGE, "round-trip/%s/%s/%s", backing_name[backing],
		     name, single ? "page-by-page" : "one-call");
	machine_destroy(&m);
}

/*
 * Memory that is allocated ahead, so that the guest can have it by large mappings: in
 * small folios, or in large ones.
 */
static void bench_large(bool folios)
{
	const char *name = folios ? "folios" : "in-place";
	struct figure fault = {}, mapped = {}, map = {}, to_private = {}, to_shared = {};
	struct figure one = {}, back = {};
	const u64 block = SZ_2M / PAGE_SIZE, n = pages & ~(block - 1);
	struct machine m;
	u64 start;

	if (!n)
		return;
	file_flags |= folios ? GUEST_MEMFD_FLAG_LARGE_FOLIOS : 0;
	machine_init(&m, IN_PLACE, pages, false);
	file_flags = GMEM_MMAP_SHARED;
	for_each_rep(r) {
		punch(&m, 0, pages);
		allocate(&m, 0, pages);
		guest_touch(&m, 0, n);

		machine_bind(&m, false);
		machine_bind(&m, true);
		start = now();
		guest_touch(&m, 0, n);
		figure_add(&fault, now() - start);
		/* No fault at all: the cost of the loop itself and of the exit. */
		start = now();
		guest_touch(&m, 0, n);
		figure_add(&mapped, now() - start);

		machine_bind(&m, false);
		machine_bind(&m, true);
		start = now();
		guest_map(&m, 0, n);
		figure_add(&map, now() - start);

		start = now();
		set_attributes(&m, 0, n, true, GMEM_PRESERVE);
		figure_add(&to_private, now() - start);
		guest_touch(&m, 0, n);
		start = now();
		set_attributes(&m, 0, n, false, GMEM_PRESERVE);
		figure_add(&to_shared, now() - start);

		/* Converts one page of a large mapping, which is split, and makes it large again. */
		guest_touch(&m, 0, n);
		start = now();
		set_attributes(&m, block / 2, 1, true, GMEM_PRESERVE);
		figure_add(&one, now() - start);
		set_attributes(&m, block / 2, 1, false, GMEM_PRESERVE);
		start = now();
		guest_touch(&m, block / 2, 1);
		figure_add(&back, now() - start);
	}
	figure_print(&fault, n, PER_PAGE, "large/%s/guest-fault", name);
	figure_print(&mapped, n, PER_PAGE, "large/%s/mapped", name);
	figure_print(&map, n, PER_PAGE, "large/%s/map-memory", name);
	figure_print(&to_private, n, PER_PAGE, "large/%s/to-private/preserve/one-call", name);
	figure_print(&to_shared, n, PER_PAGE, "large/%s/to-shared/preserve/one-call", name);
	figure_print(&one, 1, PER_CALL, "large/%s/to-private/preserve/one-page-split", name);
	figure_print(&back, 1, PER_CALL, "large/%s/guest-fault/one-page-large-again", name);
	machine_destroy(&m);
}

/* The cost of entering and leaving the guest, which all of the above include. */
static void bench_exit(enum backing backing)
{
	struct figure f = {};
	struct machine m;
	u64 start;

	machine_init(&m, backing, pages, false);
	for_each_rep(r) {
		start = now();
		for (int i = 0; i < 64; i++)
			guest_do(&m, OP_NOTHING, 0, 0);
		figure_add(&f, now() - start);
	}
	figure_print(&f, 64, PER_CALL, "vcpu-run/%s", backing_name[backing]);
	machine_destroy(&m);
}

/* --- Several at once ---------------------------------------------------- */

#define TRACING "/sys/kernel/tracing/"
#define VCPUS 2

static void tell(const char *file, const char *what)
{
	FILE *f = fopen(file, "w");

	must(f && fputs(what, f) >= 0 && !fclose(f), "%s: errno %d", file, errno);
}

/* The kinds of lock in the kernel's trace. */
enum lock_kind { SEM_READ, SEM_WRITE, SPIN_READ, SPIN_WRITE, OTHER, LOCK_KINDS };

static const char * const lock_name[] = {
	/* The invalidate lock is one, and so are mmap_lock and the like. */
	[SEM_READ] = "rwsem-read",
	[SEM_WRITE] = "rwsem-write",
	/* KVM's mmu_lock. */
	[SPIN_READ] = "rwlock-read",
	[SPIN_WRITE] = "rwlock-write",
	[OTHER] = "others",
};

struct waits {
	u64 n;
	u64 ticks;
};

static enum lock_kind lock_kind(const char *flags)
{
	const bool spin = strstr(flags, "SPIN"), read = strstr(flags, "READ");

	if (strstr(flags, "MUTEX") || (!read && !strstr(flags, "WRITE")))
		return OTHER;
	return spin ? (read ? SPIN_READ : SPIN_WRITE) : (read ? SEM_READ : SEM_WRITE);
}

/* Adds up the times in the trace for which tasks waited for locks. */
static void sum_waits(struct waits *waits)
{
	struct { long pid; u64 begin; enum lock_kind kind; } waiting[64] = {};
	FILE *f = fopen(TRACING "trace", "r");
	char line[512];

	must(f, "No trace: errno %d", errno);
	while (fgets(line, sizeof(line), f)) {
		char *event = strstr(line, ": contention_"), *cpu = strstr(line, " [");
		unsigned int slot;
		char *at = event;
		long pid;
		u64 when;

		if (!event || !cpu)
			continue;
		while (at > line && at[-1] >= '0' && at[-1] <= '9')
			at--;
		when = strtoull(at, NULL, 10);
		for (at = cpu; at > line && at[-1] != '-'; at--)
			;
		pid = strtol(at, NULL, 10);
		for (slot = 0; slot < ARRAY_SIZE(waiting) - 1 && waiting[slot].pid != pid; slot++)
			if (!waiting[slot].pid)
				break;
		if (strstr(event, "contention_begin")) {
			waiting[slot].pid = pid;
			waiting[slot].begin = when;
			waiting[slot].kind = lock_kind(event);
			waits[waiting[slot].kind].n++;
		} else if (waiting[slot].pid == pid && waiting[slot].begin) {
			waits[waiting[slot].kind].ticks += when - waiting[slot].begin;
			waiting[slot].begin = 0;
		}
	}
	fclose(f);
}

static void guest_goes_through(u64 gva, u64 n)
{
	for (;;) {
		for (u64 i = 0; i < n; i++)
			*(volatile u64 *)(gva + i * PAGE_SIZE) = i;
		asm volatile("outb %%al, $0xe9" :: "a"(0) : "memory");
	}
}

struct goer {
	pthread_t thread;
	struct machine m;
	atomic_int *left;
};

static void *go_through(void *arg)
{
	struct goer *g = arg;

	for (int i = 0; i < 64; i++)
		run(&g->m);
	atomic_fetch_sub(g->left, 1);
	return NULL;
}

/*
 * Two vCPUs go through memory of one file, each through its half, while a third task
 * converts all of it back and forth, 64 pages at a time. For new pages, it frees them
 * as well. How often does a task wait for a lock, and for how long?
 */
static void bench_contend(enum backing backing, bool new)
{
	const u64 each = pages / VCPUS, step = 64;
	struct waits waits[LOCK_KINDS] = {};
	const char *what = new ? "new" : "in-use";
	struct goer goers[VCPUS] = {};
	struct kvm_vcpu *vcpus[VCPUS];
	u64 start, ticks, faults = 0, conversions = 0;
	atomic_int left = VCPUS;
	bool private = false;
	struct machine m;

	machine_make_with(&m, backing, pages, false, guest_goes_through, VCPUS, vcpus);
	set_attributes(&m, 0, pages, private, GMEM_PRESERVE);
	tell(TRACING "trace_clock", "x86-tsc");
	tell(TRACING "buffer_size_kb", "16384");
	tell(TRACING "trace", "");
	for (int i = 0; i < VCPUS; i++) {
		vcpu_args_set(vcpus[i], 2, BENCH_GPA + i * each * PAGE_SIZE, each);
		goers[i].m = m;
		goers[i].m.vcpu = vcpus[i];
		goers[i].left = &left;
		run(&goers[i].m);
		faults -= vcpu_get_stat(vcpus[i], pf_taken);
	}

	tell(TRACING "events/lock/enable", "1");
	start = now();
	for (int i = 0; i < VCPUS; i++)
		pthread_create(&goers[i].thread, NULL, go_through, &goers[i]);
	while (atomic_load(&left)) {
		private = !private;
		for (u64 at = 0; at < pages && atomic_load(&left); at += step) {
			set_attributes(&m, at, step, private, GMEM_PRESERVE);
			if (new)
				punch(&m, at, step);
			conversions++;
		}
	}
	ticks = now() - start;
	tell(TRACING "events/lock/enable", "0");

	for (int i = 0; i < VCPUS; i++) {
		pthread_join(goers[i].thread, NULL);
		faults += vcpu_get_stat(vcpus[i], pf_taken);
	}
	sum_waits(waits);
	printf("bench,contend/%s/%s/time,ticks,%lu,,\n", backing_name[backing], what, ticks);
	printf("bench,contend/%s/%s/faults,count,%lu,,\n", backing_name[backing], what, faults);
	printf("bench,contend/%s/%s/conversions,count,%lu,,\n", backing_name[backing], what,
	       conversions);
	for (int k = 0; k < LOCK_KINDS; k++) {
		printf("bench,contend/%s/%s/%s,count,%lu,,\n", backing_name[backing], what,
		       lock_name[k], waits[k].n);
		printf("bench,contend/%s/%s/%s/waited,ticks,%lu,,\n", backing_name[backing],
		       what, lock_name[k], waits[k].ticks);
	}
	machine_destroy(&m);
}

/* --- Moving pages ---------------------------------------------------------- */

#define MOVES		TRACING "instances/moves"

/*
 * The figures are the time between the two trace events of migrate_pages() in
 * mm/migrate.c. They leave out what its callers do to find pages and isolate them.
 */
static bool moves_can_be_traced(void)
{
	if ((mkdir(MOVES, 0700) && errno != EEXIST) ||
	    access(MOVES "/events/migrate/mm_migrate_pages_start/enable", W_OK))
		return false;
	tell(MOVES "/trace_clock", "x86-tsc");
	tell(MOVES "/events/migrate/mm_migrate_pages_start/enable", "1");
	tell(MOVES "/events/migrate/mm_migrate_pages/enable", "1");
	return true;
}

static void moves_begin(void)
{
	tell(MOVES "/trace", " ");
}

/* Ticks since moves_begin(), in which @n pages were moved. */
static u64 moves_end(u64 n)
{
	u64 start = 0, ticks = 0, moved = 0, stamp, more;
	FILE *f = fopen(MOVES "/trace", "r");
	char line[512];

	must(f, "No trace: errno %d", errno);
	while (fgets(line, sizeof(line), f)) {
		char *event = strstr(line, ": mm_migrate_pages"), *at = event;

		if (!event)
			continue;
		while (at > line && at[-1] != ' ')
			at--;
		stamp = strtoull(at, NULL, 10);
		if (sscanf(event, ": mm_migrate_pages: nr_succeeded=%lu", &more) != 1) {
			start = stamp;
			continue;
		}
		must(start, "The end of a move, and no start");
		moved += more;
		ticks += stamp - start;
		start = 0;
	}
	fclose(f);
	must(moved == n, "%lu pages were moved, wanted %lu", moved, n);
	return ticks;
}

/* All in one call, to the other node. */
static u64 move_many(u8 *mem, u64 n)
{
	void **at = malloc(n * sizeof(*at));
	int *nodes = malloc(n * sizeof(*nodes)), *status = malloc(n * sizeof(*status));
	long r;
	u64 i;

	for (i = 0; i < n; i++)
		at[i] = mem + i * PAGE_SIZE;
	must(!move_pages(0, 1, at, NULL, status, 0) && status[0] >= 0, "No node: %d", status[0]);
	for (i = 0; i < n; i++)
		nodes[i] = !status[0];
	moves_begin();
	r = move_pages(0, n, at, nodes, status, MPOL_MF_MOVE);
	must(!r, "move_pages: %ld, errno %d", r, errno);
	free(at);
	free(nodes);
	free(status);
	return moves_end(n);
}

/* The instruction that folio_mc_copy() uses on a processor with ERMS, as QEMU has it. */
static void copy_bytes(u8 *to, const u8 *from, u64 size)
{
	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) :: "memory");
}

/* Anonymous memory, for comparison. */
static void bench_move_anonymous(u64 n)
{
	struct figure copy = {}, many = {};
	u64 start;

	for_each_rep(r) {
		u8 *mem = kvm_mmap(n * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

		must(!madvise(mem, n * PAGE_SIZE, MADV_NOHUGEPAGE), "madvise: errno %d", errno);
		memset(mem, r + 1, n * PAGE_SIZE);
		start = now();
		copy_bytes(mem, mem + n / 2 * PAGE_SIZE, n / 2 * PAGE_SIZE);
		figure_add(&copy, now() - start);
		figure_add(&many, move_many(mem, n));
		kvm_munmap(mem, n * PAGE_SIZE);
	}
	figure_print(&copy, n / 2, PER_PAGE, "move/copy");
	figure_print(&many, n, PER_PAGE, "move/anonymous");
}

/*
 * Pages that the host has mapped, and then the guest as well. Private pages are left out:
 * move_pages() finds pages by the page tables of processes.
 */
static void bench_move(u64 n)
{
	struct figure host = {}, both = {};
	struct machine m;

	file_flags |= GUEST_MEMFD_FLAG_MIGRATABLE;
	machine_init(&m, IN_PLACE, n, false);
	file_flags = GMEM_MMAP_SHARED;
	for_each_rep(r) {
		host_touch(&m, 0, n);
		figure_add(&host, move_many(m.hva, n));
		host_touch(&m, 0, n);
		guest_touch(&m, 0, n);
		figure_add(&both, move_many(m.hva, n));
		punch(&m, 0, n);
	}
	figure_print(&host, n, PER_PAGE, "move/in-place/host-mapped");
	figure_print(&both, n, PER_PAGE, "move/in-place/both-mapped");
	machine_destroy(&m);
}

/* Whether a section was requested; without -s all are. */
static bool wanted(const char *section)
{
	size_t len = strlen(section);

	for (const char *s = sections; s && *s; s += strcspn(s, ","), s += *s == ',')
		if (strcspn(s, ",") == len && !strncmp(s, section, len))
			return true;
	return !sections;
}

int main(int argc, char **argv)
{
	int opt;

	while ((opt = getopt(argc, argv, "n:r:s:")) != -1) {
		switch (opt) {
		case 'n':
			pages = atoi_positive("Pages", optarg);
			break;
		case 'r':
			reps = atoi_positive("Repetitions", optarg);
			break;
		case 's':
			sections = optarg;
			break;
		default:
			fprintf(stderr, "usage: %s [-n pages] [-r repetitions] [-s section,...]\n",
				argv[0]);
			return KSFT_FAIL;
		}
	}
	TEST_ASSERT(reps <= MAX_REPS, "At most %d repetitions", MAX_REPS);
	TEST_ASSERT(pages >= 16 && pages <= SZ_1G / PAGE_SIZE, "16 to %llu pages",
		    (unsigned long long)SZ_1G / PAGE_SIZE);

	TEST_REQUIRE(gmem_vm_type_supported());
	calibrate();
	in_place = kvm_check_cap(KVM_CAP_GET_MEMORY_ATTRIBUTES2) > 0;
	can_map_memory = kvm_check_cap(KVM_CAP_MAP_MEMORY) > 0;
	printf("# in-place conversion: %s\n", in_place ? "yes" : "no");
	printf("# pages %lu, repetitions %d after one that is not counted\n",
	       pages, reps);

	for (enum backing backing = DEFAULT_SHARED; backing <= IN_PLACE; backing++) {
		if (backing == IN_PLACE && !in_place)
			break;
		if (wanted("exit"))
			bench_exit(backing);
		if (wanted("guest")) {
			if (backing != DEFAULT_SHARED)
				bench_guest_fault(backing, true);
			bench_guest_fault(backing, false);
		}
		if (wanted("populate")) {
			if (backing != DEFAULT_SHARED)
				bench_populate(backing, true, false);
			bench_populate(backing, false, false);
			if (backing == TWO_BACKINGS)
				bench_populate(backing, false, true);
			if (backing == IN_PLACE && can_map_memory)
				bench_populate_1gib();
		}
		if (wanted("host") && backing != TWO_BACKINGS)
			bench_host_fault(backing);
		if (wanted("fallocate"))
			bench_fallocate(backing);
		if (wanted("request") && backing != DEFAULT_SHARED)
			bench_request(backing);
	}
	/* For a boot of its own, with a processor for each vCPU. */
	if (sections && wanted("contend")) {
		bench_contend(in_place ? IN_PLACE : TWO_BACKINGS, false);
		bench_contend(in_place ? IN_PLACE : TWO_BACKINGS, true);
	}
	for (int single = 0; single < 2; single++) {
		if (wanted("convert")) {
			bench_convert(TWO_BACKINGS, "attributes-alone", 0, true, single);
			bench_convert(TWO_BACKINGS, "bytes-lost", 0, false, single);
		}
		if (wanted("trip")) {
			bench_round_trip(TWO_BACKINGS, "bytes-lost", 0, TOUCHED, false, single);
			bench_round_trip(TWO_BACKINGS, "bytes-lost-huge", 0, TOUCHED, true, single);
			bench_round_trip(TWO_BACKINGS, "bytes-lost-populated", 0, POPULATED, false, single);
			bench_round_trip(TWO_BACKINGS, "bytes-kept", 0, KEPT, false, single);
		}
		if (!in_place)
			continue;
		for (int p = 0; p < (int)ARRAY_SIZE(policies); p++) {
			if (wanted("convert"))
				bench_convert(IN_PLACE, policies[p].name,
					      policies[p].flags, false, single);
			if (wanted("trip"))
				bench_round_trip(IN_PLACE, policies[p].name,
						 policies[p].flags, TOUCHED, false, single);
		}
		if (wanted("trip"))
			bench_round_trip(IN_PLACE, "preserve-populated", GMEM_PRESERVE,
					 POPULATED, false, single);
	}
	if (wanted("move") && is_multi_numa_node_system() && moves_can_be_traced()) {
		bench_move_anonymous(pages);
		if (in_place && kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_MIGRATABLE)
			bench_move(pages);
	}
	if (!in_place)
		return 0;

	if (wanted("large") && can_map_memory)
		bench_large(false);
	if (wanted("large") && can_map_memory &&
	    kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_LARGE_FOLIOS)
		bench_large(true);
	if (wanted("empty"))
		bench_empty();
	if (wanted("runs"))
		bench_runs();
	if (wanted("hold"))
		bench_hold();
	if (wanted("wait"))
		bench_wait();
	return 0;
}
