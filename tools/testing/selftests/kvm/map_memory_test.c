// SPDX-License-Identifier: GPL-2.0
/*
 * KVM_MAP_MEMORY: what it maps, which range it reports as left, and that it changes
 * nothing else.
 *
 * Whether a page is mapped is seen by the faults that a guest takes when it
 * touches it: vCPU statistics count them on x86 ("pf_taken"), and count exits
 * on arm64, where a page whose mapping is missing costs one. Pages are 4K
 * unless a subtest is about larger ones.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>

#include <linux/kvm_gmem.h>
#include <linux/sizes.h>

#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"
#include "gmem_test.h"
#ifdef __x86_64__
#include "svm_util.h"
#endif

#define SLOT		20
/* Above what libkvm uses, below the limit of any address space; gva = gpa. */
#define GPA		((gpa_t)SZ_4G * 2)
#define NPAGES		64ul
#define PG		((u64)getpagesize())

static struct {
	u64 gva;
	u64 npages;
	u64 write;
} touch;

static void guest_code(void)
{
	u64 i;

	for (;;) {
		GUEST_SYNC(0);
		for (i = 0; i < touch.npages; i++) {
			volatile u64 *at = (u64 *)(touch.gva + i * SZ_4K);

			if (touch.write)
				*at = i;
			else
				(void)*at;
		}
	}
}

struct ctx {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u8 *hva;
};

static void run_to_sync(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	vcpu_run(vcpu);
	switch (get_ucall(vcpu, &uc)) {
	case UCALL_SYNC:
		break;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	default:
		TEST_FAIL("Unexpected ucall %lu", uc.cmd);
	}
}

static u64 faults(struct kvm_vcpu *vcpu)
{
#ifdef __x86_64__
	return vcpu_get_stat(vcpu, pf_taken);
#else
	return vcpu_get_stat(vcpu, exits);
#endif
}

/*
 * An ioctl other than KVM_RUN. Returns 0 or the errno. It must not change kvm_run,
 * which describes the last exit of KVM_RUN.
 */
static int prefault_ioctl(struct kvm_vcpu *vcpu, unsigned long cmd, void *args)
{
	struct kvm_run *run = vcpu->run;
	struct kvm_run before;
	int r;

	/* A value that is not an exit reason. */
	const u32 reason = run->exit_reason;
	run->exit_reason = 0x5a5a5a5a;
	memcpy(&before, run, sizeof(before));
	r = ioctl(vcpu->fd, cmd, args) ? errno : 0;
	TEST_ASSERT(!memcmp(&before, run, sizeof(before)), "errno %d, and kvm_run has exit %u", r,
		    run->exit_reason);
	run->exit_reason = reason;
	return r;
}

/* One call. Returns 0 or the errno; what is left goes to @left if that is given. */
static int map_once(struct kvm_vcpu *vcpu, u64 base, u64 size, u64 flags,
		    struct kvm_memory_mapping *left)
{
	struct kvm_memory_mapping args = {
		.base_address = base,
		.size = size,
		.flags = flags,
	};
	int r = prefault_ioctl(vcpu, KVM_MAP_MEMORY, &args);

	TEST_ASSERT(args.base_address + args.size == base + size && args.size <= size,
		    "%#lx + %#lx became %#llx + %#llx", base, size, args.base_address, args.size);
	TEST_ASSERT(!!r == (args.size == size), "errno %d, %#llx of %#lx bytes left", r,
		    args.size, size);
	TEST_ASSERT(args.flags == flags, "flags became %#llx", args.flags);
	if (left)
		*left = args;
	return r;
}

/* The ioctl, repeated until all is mapped. */
static int map_all(struct kvm_vcpu *vcpu, u64 base, u64 size)
{
	struct kvm_memory_mapping left = { .base_address = base, .size = size };
	int r, tries = 10000;

	do {
		r = map_once(vcpu, left.base_address, left.size, 0, &left);
	} while (left.size && (!r || ((r == EAGAIN || r == EINTR) && --tries)));
	return r;
}

/* The guest's code and page tables, which are not checked. */
static void map_the_rest(struct kvm_vcpu *vcpu)
{
	const struct userspace_mem_region *slot0 = memslot2region(vcpu->vm, 0);

	assert_errno(map_all(vcpu, slot0->region.guest_phys_addr, slot0->region.memory_size), 0);
}

/* The number of pages that were not mapped as the guest needs them. */
static u64 missing(struct ctx *x, u64 page, u64 npages, bool write)
{
	u64 before;

	touch.gva = GPA + page * PG;
	touch.npages = npages;
	touch.write = write;
	sync_global_to_guest(x->vm, touch);
	map_the_rest(x->vcpu);
	before = faults(x->vcpu);
	run_to_sync(x->vcpu);
#ifdef __x86_64__
	return faults(x->vcpu) - before;
#else
	/*
	 * One exit is the ucall's. Interrupts of the host cause a few more in so
	 * short a time.
	 */
	before = faults(x->vcpu) - before - 1;
	return before < npages / 4 ? 0 : npages / 2 <= before ? npages : before;
#endif
}

static void *map_pages(u64 npages)
{
	void *mem = kvm_mmap(npages * PG, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);

	madvise(mem, npages * PG, MADV_NOHUGEPAGE);
	return mem;
}

static int set_slot(struct ctx *x, u64 npages, u32 flags)
{
	return __vm_set_user_memory_region(x->vm, SLOT, flags, GPA, npages * PG, x->hva);
}

static void ctx_create(struct ctx *x, u64 npages)
{
	x->vm = vm_create_with_one_vcpu(&x->vcpu, guest_code);
	x->hva = map_pages(npages);
	TEST_ASSERT(!set_slot(x, npages, 0), "The memslot: errno %d", errno);
	virt_map(x->vm, GPA, GPA, npages * (PG / x->vm->page_size));
	run_to_sync(x->vcpu);
}

static void ctx_destroy(struct ctx *x, u64 npages)
{
	kvm_vm_free(x->vm);
	kvm_munmap(x->hva, npages * PG);
}

/* Seconds, after which a test counts as hung. The sanitised kernel is slow. */
#define TIMEOUT		300
#define MAP_TEST(name)	TEST_F_TIMEOUT(map, name, TIMEOUT)

FIXTURE(map) {
	struct ctx x;
};

FIXTURE_SETUP(map)
{
	ctx_create(&self->x, NPAGES);
}

FIXTURE_TEARDOWN(map)
{
	ctx_destroy(&self->x, NPAGES);
}

MAP_TEST(capability)
{
	TEST_ASSERT_EQ(vm_check_cap(self->x.vm, KVM_CAP_MAP_MEMORY), 1);
#ifdef __aarch64__
	/* Only protected hosts have this capability, and these have no KVM_PRE_FAULT_MEMORY. */
	if (kvm_check_cap(KVM_CAP_EXIT_HYPERCALL))
		return;
#endif
	TEST_ASSERT(vm_check_cap(self->x.vm, KVM_CAP_PRE_FAULT_MEMORY), "No PRE_FAULT_MEMORY");
}

MAP_TEST(bad_arguments_change_nothing)
{
	static const struct { u64 base, size, flags; } bad[] = {
		{ GPA, SZ_4K, 1 },
		{ GPA, SZ_4K, 1ull << 63 },
		{ GPA + 1, SZ_4K, 0 },
		{ GPA, SZ_4K + 1, 0 },
		{ GPA, 0, 0 },
		{ -(u64)SZ_64K, SZ_64K, 0 },
		{ -(u64)SZ_64K, SZ_128K, 0 },
		{ SZ_64K, -(u64)SZ_64K, 0 },
	};
	struct kvm_vcpu *vcpu = self->x.vcpu;
	int i, r;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		struct kvm_memory_mapping args = {
			.base_address = bad[i].base,
			.size = bad[i].size,
			.flags = bad[i].flags,
		};

		r = __vcpu_ioctl(vcpu, KVM_MAP_MEMORY, &args);
		TEST_ASSERT(r && errno == EINVAL, "Case %d: %d, errno %d", i, r, errno);
		TEST_ASSERT(args.base_address == bad[i].base && args.size == bad[i].size &&
			    args.flags == bad[i].flags, "Case %d changed", i);
	}
	r = ioctl(vcpu->fd, KVM_MAP_MEMORY, NULL);
	TEST_ASSERT(r && errno == EFAULT, "No struct: %d, errno %d", r, errno);
	TEST_ASSERT_EQ(missing(&self->x, 0, NPAGES, false), NPAGES);
}

/* The result cannot be written back, but mapped pages stay mapped. */
MAP_TEST(struct_that_cannot_be_written)
{
	struct kvm_memory_mapping *args;
	int r;

	args = kvm_mmap(PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	*args = (struct kvm_memory_mapping){ .base_address = GPA, .size = NPAGES * PG };
	TEST_ASSERT(!mprotect(args, PG, PROT_READ), "mprotect: %d", errno);
	r = __vcpu_ioctl(self->x.vcpu, KVM_MAP_MEMORY, args);
	TEST_ASSERT(r && errno == EFAULT, "%d, errno %d", r, errno);
	TEST_ASSERT_EQ(missing(&self->x, 0, NPAGES, false), 0);
	kvm_munmap(args, PG);
}

MAP_TEST(what_is_left)
{
	struct kvm_vcpu *vcpu = self->x.vcpu;
	struct kvm_memory_mapping left;
	const u64 end = GPA + NPAGES * PG;

	assert_errno(map_once(vcpu, end - NPAGES / 2 * PG, (NPAGES / 2 + 3) * PG, 0, &left), 0);
	TEST_ASSERT_EQ(left.base_address, end);
	TEST_ASSERT_EQ(left.size, 3 * PG);
	assert_errno(map_once(vcpu, left.base_address, left.size, 0, &left), ENOENT);
	TEST_ASSERT_EQ(left.size, 3 * PG);
	assert_errno(map_once(vcpu, GPA - PG, 2 * PG, 0, NULL), ENOENT);
	/* The last page with an address. */
	assert_errno(map_once(vcpu, -2 * PG, PG, 0, NULL), ENOENT);

	TEST_ASSERT_EQ(missing(&self->x, NPAGES / 2, NPAGES / 2, false), 0);
	TEST_ASSERT_EQ(missing(&self->x, 0, NPAGES / 2, false), NPAGES / 2);
}

MAP_TEST(mapped_pages_take_no_fault)
{
	struct ctx *x = &self->x;

	memset(x->hva, 0x5a, NPAGES * PG);
	assert_errno(map_once(x->vcpu, GPA, NPAGES / 2 * PG, 0, NULL), 0);
	/* Mapped twice is mapped. */
	assert_errno(map_once(x->vcpu, GPA, NPAGES / 2 * PG, 0, NULL), 0);
	TEST_ASSERT_EQ(missing(x, 0, NPAGES / 2, true), 0);
	TEST_ASSERT_EQ(missing(x, NPAGES / 2, NPAGES / 2, true), NPAGES / 2);
}

/* The pages were never written: they are the host's zero page, and stay it. */
MAP_TEST(copy_on_write_is_not_broken)
{
	struct ctx *x = &self->x;

	assert_errno(map_all(x->vcpu, GPA, NPAGES * PG), 0);
	TEST_ASSERT_EQ(missing(x, 0, NPAGES, false), 0);
	/* Some faults come twice, as the first one replaces the zero page. */
	TEST_ASSERT(missing(x, 0, NPAGES, true) >= NPAGES, "Pages were mapped writable");
}

MAP_TEST(contents_are_not_touched)
{
	struct ctx *x = &self->x;
	u64 i;

	memset(x->hva, 0x5a, NPAGES * PG);
	assert_errno(map_all(x->vcpu, GPA, NPAGES * PG), 0);
	for (i = 0; i < NPAGES * PG; i++)
		TEST_ASSERT(x->hva[i] == 0x5a, "Byte %#lx is %#x", i, x->hva[i]);
}

MAP_TEST(read_only_slot)
{
	struct ctx *x = &self->x;

	if (!kvm_has_cap(KVM_CAP_READONLY_MEM))
		SKIP(return, "no read-only memslots here");
	memset(x->hva, 0x5a, NPAGES * PG);
	TEST_ASSERT(!set_slot(x, 0, 0), "Deleting: %d", errno);
	TEST_ASSERT(!set_slot(x, NPAGES, KVM_MEM_READONLY), "Read-only: %d", errno);
	assert_errno(map_all(x->vcpu, GPA, NPAGES * PG), 0);
	TEST_ASSERT_EQ(missing(x, 0, NPAGES, false), 0);
}

static void assert_all_dirty(struct ctx *x)
{
	unsigned long log[NPAGES / BITS_PER_LONG] = {};
	struct kvm_dirty_log args = { .slot = SLOT, .dirty_bitmap = log };
	u64 i;

	vm_ioctl(x->vm, KVM_GET_DIRTY_LOG, &args);
	for (i = 0; i < ARRAY_SIZE(log); i++)
		TEST_ASSERT(!~log[i], "Word %lu of the log is %#lx", i, log[i]);
}

/*
 * The log has all pages that the guest writes, however they were mapped. (On x86 pages
 * that are mapped writable count as written. On arm64 they are not mapped writable.)
 */
MAP_TEST(dirty_log)
{
	struct ctx *x = &self->x;
	int i;

	memset(x->hva, 0x5a, NPAGES * PG);
	TEST_ASSERT(!set_slot(x, NPAGES, KVM_MEM_LOG_DIRTY_PAGES), "Logging: %d", errno);
	for (i = 0; i < 3; i++) {
		assert_errno(map_all(x->vcpu, GPA, NPAGES * PG), 0);
		missing(x, 0, NPAGES, true);
		assert_all_dirty(x);
	}
}

MAP_TEST(pre_fault_memory_beside_it)
{
	struct kvm_pre_fault_memory range = { .gpa = GPA, .size = NPAGES * PG };

	TEST_ASSERT(!__vcpu_ioctl(self->x.vcpu, KVM_PRE_FAULT_MEMORY, &range), "errno %d", errno);
	TEST_ASSERT_EQ(range.size, 0);
	TEST_ASSERT_EQ(missing(&self->x, 0, NPAGES, false), 0);
	assert_errno(map_all(self->x.vcpu, GPA, NPAGES * PG), 0);
}

/* Tests that make their VM themselves. */
FIXTURE(vm) { };
FIXTURE_SETUP(vm) { }
FIXTURE_TEARDOWN(vm) { }
#define VM_TEST(name)	TEST_F_TIMEOUT(vm, name, TIMEOUT)

static atomic_ulong signals;

static void count_signal(int signal)
{
	atomic_fetch_add(&signals, 1);
}

/* After a signal the call reports the rest, which can be requested again. */
VM_TEST(signals_in_the_middle)
{
	const u64 npages = 8192;
	const struct sigaction action = { .sa_handler = count_signal };
	const struct itimerval timer = {
		.it_interval.tv_usec = 1000,
		.it_value.tv_usec = 1000,
	};
	struct kvm_memory_mapping left = { .base_address = GPA, .size = npages * PG };
	u64 partial = 0, calls = 0;
	struct ctx x;
	int r;

	ctx_create(&x, npages);
	memset(x.hva, 0x5a, npages * PG);
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	while (left.size) {
		r = map_once(x.vcpu, left.base_address, left.size, 0, &left);
		TEST_ASSERT(!r || r == EINTR || r == EAGAIN, "errno %d", r);
		partial += !r && left.size;
		calls++;
	}
	setitimer(ITIMER_REAL, &(struct itimerval){}, NULL);
	ksft_print_msg("%lu calls, %lu signals, %lu times something was left\n", calls,
		       atomic_load(&signals), partial);
	TEST_ASSERT(partial, "No signal came in the middle");
	TEST_ASSERT_EQ(missing(&x, 0, npages, true), 0);
	ctx_destroy(&x, npages);
}

/* Ordinary memory that has failed: an error, and no SIGBUS, as there was no access. */
VM_TEST(poisoned_ordinary_page)
{
	const struct sigaction action = { .sa_handler = count_signal };
	struct sigaction old;
	struct kvm_memory_mapping left;
	struct ctx x;

	ctx_create(&x, NPAGES);
	memset(x.hva, 0x5a, NPAGES * PG);
	sigaction(SIGBUS, &action, &old);
	if (madvise(x.hva + 3 * PG, PG, MADV_HWPOISON)) {
		const int err = errno;

		sigaction(SIGBUS, &old, NULL);
		ctx_destroy(&x, NPAGES);
		SKIP(return, "MADV_HWPOISON: %s", strerror(err));
	}
	atomic_store(&signals, 0);
	assert_errno(map_once(x.vcpu, GPA, NPAGES * PG, 0, &left), 0);
	TEST_ASSERT_EQ(left.base_address, GPA + 3 * PG);
	assert_errno(map_once(x.vcpu, left.base_address, left.size, 0, NULL), EHWPOISON);
	TEST_ASSERT_EQ(atomic_load(&signals), 0);
	assert_errno(map_all(x.vcpu, GPA + 4 * PG, (NPAGES - 4) * PG), 0);
	sigaction(SIGBUS, &old, NULL);
	ctx_destroy(&x, NPAGES);
}

/*
 * A signal that comes before anything is mapped ends the call with nothing done. It
 * has to come in the few instructions between the entry and the first page, which
 * happens once in many calls.
 */
VM_TEST(signal_at_the_start)
{
	const struct sigaction action = { .sa_handler = count_signal };
	const struct itimerval timer = {
		.it_interval.tv_usec = 200,
		.it_value.tv_usec = 200,
	};
	struct kvm_memory_mapping left;
	u64 calls, done = 0;
	struct ctx x;
	int r = 0;

	ctx_create(&x, NPAGES);
	memset(x.hva, 0x5a, NPAGES * PG);
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	for (calls = 1; r != EINTR; calls++) {
		TEST_ASSERT(calls < 20000000, "No signal came at the start");
		r = map_once(x.vcpu, GPA, PG, 0, &left);
		TEST_ASSERT(!r || r == EINTR || r == EAGAIN, "errno %d", r);
		done += !r;
	}
	setitimer(ITIMER_REAL, &(struct itimerval){}, NULL);
	TEST_ASSERT_EQ(left.size, PG);
	ksft_print_msg("after %lu calls, %lu of them mapped\n", calls, done);
	ctx_destroy(&x, NPAGES);
}

/* A request for one page of memory in a page of 2M. */
VM_TEST(larger_than_requested)
{
	const u64 npages = SZ_4M / PG;
	struct ctx x;
	u8 *aligned;
	u64 i;

	if (access("/sys/kernel/mm/transparent_hugepage/enabled", F_OK))
		SKIP(return, "this kernel has no transparent huge pages (CONFIG_TRANSPARENT_HUGEPAGE)");
	x.vm = vm_create_with_one_vcpu(&x.vcpu, guest_code);
	x.hva = kvm_mmap(SZ_4M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	aligned = (u8 *)(((uintptr_t)x.hva + SZ_2M - 1) & -SZ_2M);
	TEST_ASSERT(!madvise(aligned, SZ_2M, MADV_HUGEPAGE), "MADV_HUGEPAGE: %d", errno);
	memset(x.hva, 0x5a, SZ_4M);
	TEST_ASSERT(!__vm_set_user_memory_region(x.vm, SLOT, 0, GPA, SZ_2M, aligned),
		    "The memslot: errno %d", errno);
	virt_map(x.vm, GPA, GPA, SZ_2M / x.vm->page_size);
	run_to_sync(x.vcpu);

	assert_errno(map_once(x.vcpu, GPA + 5 * PG, PG, 0, NULL), 0);
	TEST_ASSERT_EQ(missing(&x, 0, npages / 2, true), 0);
	for (i = 0; i < SZ_4M; i += PG)
		TEST_ASSERT(x.hva[i + 8] == 0x5a, "Page %lu changed", i / PG);
	kvm_vm_free(x.vm);
	kvm_munmap(x.hva, SZ_4M);
}

/* Slots are added and deleted while their pages are mapped. */
struct slot_changer {
	struct ctx *x;
	pthread_t thread;
	atomic_bool stop;
	u64 changes;
};

static void *change_slot(void *arg)
{
	struct slot_changer *changer = arg;

	while (!atomic_load(&changer->stop)) {
		TEST_ASSERT(!set_slot(changer->x, 0, 0), "Deleting: %d", errno);
		TEST_ASSERT(!set_slot(changer->x, NPAGES, 0), "Adding: %d", errno);
		changer->changes++;
	}
	return NULL;
}

MAP_TEST(against_slots_that_change)
{
	struct slot_changer changer = { .x = &self->x };
	u64 round, mapped = 0, none = 0, again = 0;
	int r;

	memset(self->x.hva, 0x5a, NPAGES * PG);
	kvm_pthread_create(&changer.thread, NULL, change_slot, &changer);
	for (round = 0; round < 1000 || !mapped || !(none + again); round++) {
		r = map_once(self->x.vcpu, GPA, NPAGES * PG, 0, NULL);
		TEST_ASSERT(!r || r == ENOENT || r == EAGAIN, "Round %lu: errno %d", round, r);
		mapped += !r;
		none += r == ENOENT;
		again += r == EAGAIN;
		TEST_ASSERT(round < 2000000, "Nothing ever came in between");
	}
	atomic_store(&changer.stop, true);
	kvm_pthread_join(changer.thread, NULL);
	ksft_print_msg("%lu changes of the slot: mapped %lu times, no slot %lu, EAGAIN %lu\n",
		       changer.changes, mapped, none, again);
	assert_errno(map_all(self->x.vcpu, GPA, NPAGES * PG), 0);
	TEST_ASSERT_EQ(missing(&self->x, 0, NPAGES, true), 0);
}

/* The host takes the pages away while they are mapped. */
static void *discard(void *arg)
{
	struct slot_changer *changer = arg;

	while (!atomic_load(&changer->stop)) {
		madvise(changer->x->hva, NPAGES * PG, MADV_DONTNEED);
		memset(changer->x->hva, 0x5a, NPAGES * PG);
		changer->changes++;
	}
	return NULL;
}

MAP_TEST(against_the_mmu_notifier)
{
	struct slot_changer changer = { .x = &self->x };
	u64 round;
	int r;

	kvm_pthread_create(&changer.thread, NULL, discard, &changer);
	for (round = 0; round < 1000 || changer.changes < 100; round++) {
		r = map_once(self->x.vcpu, GPA, NPAGES * PG, 0, NULL);
		TEST_ASSERT(!r || r == EAGAIN, "Round %lu: errno %d", round, r);
	}
	atomic_store(&changer.stop, true);
	kvm_pthread_join(changer.thread, NULL);
	assert_errno(map_all(self->x.vcpu, GPA, NPAGES * PG), 0);
	TEST_ASSERT_EQ(missing(&self->x, 0, NPAGES, true), 0);
}

#ifdef __x86_64__

/* --- guest_memfd ------------------------------------------------------------ */

struct gmem_ctx {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[2];
	struct gmem_area a;
};

static void gmem_ctx_create(struct gmem_ctx *x, u32 platform, u64 npages)
{
	if (platform)
		x->vm = gmem_vm_create_emulated(platform, 0, 2, npages, x->vcpus);
	else
		x->vm = gmem_vm_create(2, npages, x->vcpus);
	gmem_area_create(&x->a, x->vm, GMEM_SLOT, GMEM_GPA, npages * PG, GMEM_MMAP_SHARED);
}

static void gmem_ctx_destroy(struct gmem_ctx *x)
{
	gmem_area_destroy(&x->a);
	kvm_vm_free(x->vm);
}

/* The faults of reading each page, one command a page. */
static u64 gmem_missing(struct gmem_ctx *x, u64 page, u64 npages)
{
	u64 i, before;

	map_the_rest(x->vcpus[0]);
	before = faults(x->vcpus[0]);
	for (i = page; i < page + npages; i++)
		gmem_guest_read(x->vcpus[0], x->a.gpa + i * PG);
	return faults(x->vcpus[0]) - before;
}

VM_TEST(private_shared_and_mixed)
{
	struct gmem_ctx x;
	u64 i;

	gmem_ctx_create(&x, 0, NPAGES);
	gmem_guest_start(x.vcpus[0]);
	gmem_fill(x.a.hva, NPAGES * PG, GMEM_SEED(1), 0);
	/* Two of three are private. */
	for (i = 0; i < NPAGES; i++) {
		if (i % 3)
			gmem_convert(x.a.fd, i * PG, PG, GMEM_PRIVATE, GMEM_PRESERVE);
	}
	assert_errno(map_all(x.vcpus[0], x.a.gpa, NPAGES * PG), 0);
	TEST_ASSERT_EQ(gmem_missing(&x, 0, NPAGES), 0);

	/* Nothing else has happened. */
	gmem_guest_assert(x.vcpus[0], x.a.gpa, NPAGES * PG, GMEM_SEED(1), 0);
	for (i = 0; i < NPAGES; i++) {
		TEST_ASSERT(gmem_is_private(x.a.fd, i * PG) == !!(i % 3), "Page %lu", i);
		if (i % 3)
			gmem_host_assert_refused(x.a.hva + i * PG, PG);
	}
	/* And the mappings lead to the right pages. */
	gmem_convert(x.a.fd, 0, NPAGES * PG, GMEM_SHARED, GMEM_ZERO);
	gmem_guest_assert(x.vcpus[0], x.a.gpa, NPAGES * PG, GMEM_ZEROES, 0);
	gmem_ctx_destroy(&x);
}

/* The first use zeroes, also if KVM_MAP_MEMORY is the first use. */
VM_TEST(unused_pages_are_zeroed)
{
	struct gmem_ctx x;

	gmem_dirty_free_pages();
	gmem_ctx_create(&x, 0, NPAGES);
	gmem_guest_start(x.vcpus[0]);
	assert_errno(gmem_allocate(x.a.fd, 0, NPAGES / 2 * PG), 0);
	assert_errno(map_all(x.vcpus[0], x.a.gpa, NPAGES * PG), 0);
	TEST_ASSERT_EQ(gmem_missing(&x, 0, NPAGES), 0);
	gmem_guest_assert(x.vcpus[0], x.a.gpa, NPAGES * PG, GMEM_ZEROES, 0);
	gmem_host_assert(x.a.hva, NPAGES * PG, GMEM_ZEROES, 0);
	gmem_ctx_destroy(&x);
}

VM_TEST(poisoned_page)
{
	struct kvm_memory_mapping left;
	struct gmem_ctx x;
	int r;

	gmem_ctx_create(&x, 0, NPAGES);
	gmem_guest_start(x.vcpus[0]);
	gmem_fill(x.a.hva, NPAGES * PG, GMEM_SEED(1), 0);
	r = gmem_host_poison(x.a.hva + 3 * PG);
	if (r) {
		gmem_ctx_destroy(&x);
		SKIP(return, "MADV_HWPOISON: %s", strerror(r));
	}
	assert_errno(map_once(x.vcpus[0], x.a.gpa, NPAGES * PG, 0, &left), 0);
	TEST_ASSERT_EQ(left.base_address, x.a.gpa + 3 * PG);
	assert_errno(map_once(x.vcpus[0], left.base_address, left.size, 0, NULL), EHWPOISON);
	assert_errno(map_all(x.vcpus[0], x.a.gpa + 4 * PG, (NPAGES - 4) * PG), 0);
	gmem_ctx_destroy(&x);
}

static void refused_before_launch(u32 platform)
{
	struct gmem_ctx x;

	gmem_ctx_create(&x, platform, NPAGES);
	gmem_convert(x.a.fd, 0, NPAGES / 2 * PG, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(map_once(x.vcpus[0], x.a.gpa, NPAGES * PG, 0, NULL), EOPNOTSUPP);
	TEST_ASSERT_EQ(gmem_state(x.vm, x.a.gpa), KVM_GMEM_EMULATE_STATE_NONE);
	assert_errno(gmem_launch_finish(x.vm), 0);
	gmem_guest_start(x.vcpus[0]);
	assert_errno(map_all(x.vcpus[0], x.a.gpa, NPAGES * PG), 0);
	TEST_ASSERT(gmem_state(x.vm, x.a.gpa) != KVM_GMEM_EMULATE_STATE_NONE,
		    "The platform does not have the page");
	TEST_ASSERT_EQ(gmem_missing(&x, 0, NPAGES), 0);
	gmem_ctx_destroy(&x);
}

VM_TEST(snp_before_launch)
{
	if (!gmem_emulates(KVM_GMEM_EMULATE_SNP))
		SKIP(return, GMEM_NO_EMULATION);
	refused_before_launch(KVM_GMEM_EMULATE_SNP);
}

VM_TEST(tdx_before_launch)
{
	if (!gmem_emulates(KVM_GMEM_EMULATE_TDX))
		SKIP(return, GMEM_NO_EMULATION);
	refused_before_launch(KVM_GMEM_EMULATE_TDX);
}

VM_TEST(mirror_before_launch)
{
	if (!gmem_emulates(KVM_GMEM_EMULATE_TDX_MIRROR))
		SKIP(return, GMEM_NO_EMULATION);
	refused_before_launch(KVM_GMEM_EMULATE_TDX_MIRROR);
}

/* Hazard 48: an error of the platform's is EIO, and nothing has changed. */
static void platform_fails(u32 platform)
{
	const bool snp = platform == KVM_GMEM_EMULATE_SNP;
	struct kvm_pre_fault_memory range;
	struct gmem_ctx x;

	gmem_ctx_create(&x, platform, NPAGES);
	assert_errno(gmem_launch_finish(x.vm), 0);
	gmem_guest_start(x.vcpus[0]);
	gmem_convert(x.a.fd, 0, NPAGES * PG, GMEM_PRIVATE, GMEM_PRESERVE);

	range = (struct kvm_pre_fault_memory) { .gpa = x.a.gpa, .size = PG };
	gmem_inject(x.vm, x.a.gpa, snp ? KVM_GMEM_EMULATE_FAIL_ASSIGN : KVM_GMEM_EMULATE_FAIL_ADD,
		    snp ? KVM_GMEM_EMULATE_ERROR_PERMISSION : KVM_GMEM_EMULATE_ERROR_INPUT, 2);
	assert_errno(map_once(x.vcpus[0], x.a.gpa, PG, 0, NULL), EIO);
	assert_errno(prefault_ioctl(x.vcpus[0], KVM_PRE_FAULT_MEMORY, &range), EIO);
	if (platform == KVM_GMEM_EMULATE_TDX_MIRROR) {
		/* KVM treats it as a bug, and the VM is dead. */
		assert_errno(-gmem_guest_resume(x.vcpus[0]), EIO);
		kvm_munmap(x.a.hva, x.a.size);
		kvm_close(x.a.fd);
		kvm_vm_free(x.vm);
		return;
	}
	TEST_ASSERT_EQ(gmem_state(x.vm, x.a.gpa), KVM_GMEM_EMULATE_STATE_NONE);
	assert_errno(map_all(x.vcpus[0], x.a.gpa, NPAGES * PG), 0);
	TEST_ASSERT_EQ(gmem_missing(&x, 0, NPAGES), 0);
	gmem_ctx_destroy(&x);
}

VM_TEST(h48_snp_fails)
{
	if (!gmem_emulates(KVM_GMEM_EMULATE_SNP))
		SKIP(return, GMEM_NO_EMULATION);
	platform_fails(KVM_GMEM_EMULATE_SNP);
}

VM_TEST(h48_tdx_fails)
{
	if (!gmem_emulates(KVM_GMEM_EMULATE_TDX))
		SKIP(return, GMEM_NO_EMULATION);
	platform_fails(KVM_GMEM_EMULATE_TDX);
}

VM_TEST(h48_mirror_fails)
{
	if (!gmem_emulates(KVM_GMEM_EMULATE_TDX_MIRROR))
		SKIP(return, GMEM_NO_EMULATION);
	platform_fails(KVM_GMEM_EMULATE_TDX_MIRROR);
}

/* --- Modes of the vCPU ------------------------------------------------------ */

MAP_TEST(vcpu_in_smm)
{
	struct kvm_vcpu_events events;

	if (!kvm_has_cap(KVM_CAP_X86_SMM))
		SKIP(return, "KVM has no SMM");
	vcpu_events_get(self->x.vcpu, &events);
	events.flags = KVM_VCPUEVENT_VALID_SMM;
	events.smi.smm = 1;
	vcpu_events_set(self->x.vcpu, &events);
	assert_errno(map_once(self->x.vcpu, GPA, PG, 0, NULL), EOPNOTSUPP);
	events.smi.smm = 0;
	vcpu_events_set(self->x.vcpu, &events);
	assert_errno(map_once(self->x.vcpu, GPA, PG, 0, NULL), 0);
}

static void l2_guest_code(void)
{
	GUEST_SYNC(2);
}

static void l1_guest_code(struct svm_test_data *svm)
{
	generic_svm_setup(svm, l2_guest_code);
	GUEST_SYNC(1);
	run_guest(svm->vmcb, svm->vmcb_gpa);
	GUEST_DONE();
}

/* KVM maps for the address space of L1, which is not loaded here. */
VM_TEST(vcpu_that_runs_a_nested_guest)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct ucall uc;
	gva_t svm;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no nested SVM");
	vm = vm_create_with_one_vcpu(&vcpu, l1_guest_code);
	vcpu_alloc_svm(vm, &svm);
	vcpu_args_set(vcpu, 1, svm);
	run_to_sync(vcpu);
	assert_errno(map_once(vcpu, 0, PG, 0, NULL), 0);
	vcpu_run(vcpu);
	TEST_ASSERT(get_ucall(vcpu, &uc) == UCALL_SYNC && uc.args[1] == 2, "Not in L2: %lu", uc.cmd);
	assert_errno(map_once(vcpu, 0, PG, 0, NULL), EOPNOTSUPP);
	kvm_vm_free(vm);
}

/* --- Races with conversion ------------------------------------------------------ */

struct converter {
	struct gmem_ctx *x;
	pthread_t thread;
	atomic_bool stop;
	u64 conversions;
	u64 busy;
	u64 holes;
};

static void *convert_at_random(void *arg)
{
	struct converter *converter = arg;
	struct gmem_ctx *x = converter->x;
	u32 seed = 1;
	u64 eo;

	while (!atomic_load(&converter->stop)) {
		const u64 page = rand_r(&seed) % NPAGES;
		const u64 npages = 1 + rand_r(&seed) % (NPAGES - page);
		const u64 to = rand_r(&seed) & 1 ? GMEM_PRIVATE : GMEM_SHARED;
		int r;

		if (rand_r(&seed) % 16 == 0) {
			assert_errno(gmem_punch(x->a.fd, page * PG, PG), 0);
			converter->holes++;
			continue;
		}
		r = gmem_set_once(x->a.fd, page * PG, npages * PG, to, GMEM_NONE, &eo);
		TEST_ASSERT(!r || r == EAGAIN, "Converting %lu pages at %lu: errno %d", npages, page, r);
		converter->conversions += !r;
		converter->busy += r == EAGAIN;
	}
	return NULL;
}

static void map_against_conversion(u32 platform)
{
	struct converter converter = {};
	u64 round, mapped = 0, again = 0, i;
	struct gmem_ctx x;
	int r, r2;

	gmem_ctx_create(&x, platform, NPAGES);
	converter.x = &x;
	if (platform)
		assert_errno(gmem_launch_finish(x.vm), 0);
	gmem_guest_start(x.vcpus[0]);
	kvm_pthread_create(&converter.thread, NULL, convert_at_random, &converter);
	for (round = 0; round < 500 || converter.conversions < 100; round++) {
		struct kvm_pre_fault_memory range = { .gpa = x.a.gpa, .size = NPAGES * PG };

		r = map_once(x.vcpus[0], x.a.gpa, NPAGES * PG, 0, NULL);
		TEST_ASSERT(!r || r == EAGAIN, "Round %lu: errno %d", round, r);
		r2 = prefault_ioctl(x.vcpus[0], KVM_PRE_FAULT_MEMORY, &range);
		TEST_ASSERT(!r2 || r2 == EAGAIN, "Round %lu, KVM_PRE_FAULT_MEMORY: errno %d", round, r2);
		mapped += !r + !r2;
		again += (r == EAGAIN) + (r2 == EAGAIN);
	}
	atomic_store(&converter.stop, true);
	kvm_pthread_join(converter.thread, NULL);
	ksft_print_msg("%lu conversions, %lu busy, %lu holes: mapped %lu times, EAGAIN %lu\n",
		       converter.conversions, converter.busy, converter.holes, mapped, again);

	/* Host and guest see the expected bytes. */
	assert_errno(map_all(x.vcpus[0], x.a.gpa, NPAGES * PG), 0);
	for (i = 0; i < NPAGES; i++) {
		gmem_guest_write(x.vcpus[0], x.a.gpa + i * PG, 0x40 + i % 32);
		if (gmem_is_private(x.a.fd, i * PG))
			gmem_host_assert_refused(x.a.hva + i * PG, PG);
		else
			TEST_ASSERT_EQ(x.a.hva[i * PG], 0x40 + i % 32);
	}
	if (platform)
		TEST_ASSERT_EQ(gmem_destroyed(x.vm, x.a.gpa), 0);
	gmem_ctx_destroy(&x);
}

VM_TEST(against_conversion)
{
	map_against_conversion(0);
}

VM_TEST(against_conversion_on_snp)
{
	if (!gmem_emulates(KVM_GMEM_EMULATE_SNP))
		SKIP(return, GMEM_NO_EMULATION);
	map_against_conversion(KVM_GMEM_EMULATE_SNP);
}

VM_TEST(against_conversion_on_tdx)
{
	if (!gmem_emulates(KVM_GMEM_EMULATE_TDX))
		SKIP(return, GMEM_NO_EMULATION);
	map_against_conversion(KVM_GMEM_EMULATE_TDX);
}

/* Here the guest selects the kind, and a prefault selects it for the guest. */
VM_TEST(against_conversion_on_mirror)
{
	if (!gmem_emulates(KVM_GMEM_EMULATE_TDX_MIRROR))
		SKIP(return, GMEM_NO_EMULATION);
	map_against_conversion(KVM_GMEM_EMULATE_TDX_MIRROR);
}

#endif /* __x86_64__ */

/* A VM whose memory is a file that does not convert, with all pages in use. */
static int file_ctx_create(struct ctx *x)
{
	int fd, r;

	x->vm = vm_create_with_one_vcpu(&x->vcpu, guest_code);
	fd = vm_create_guest_memfd(x->vm, NPAGES * PG,
				   GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED);
	/* All in one page table of the host. */
	x->hva = kvm_mmap(2 * SZ_2M, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	x->hva = mmap((void *)align_up((unsigned long)x->hva, SZ_2M), NPAGES * PG,
		      PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	TEST_ASSERT(x->hva != MAP_FAILED, "mmap(): errno %d", errno);
	r = __vm_set_user_memory_region2(x->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, NPAGES * PG,
					 x->hva, fd, 0);
	TEST_ASSERT(!r, "The memslot: errno %d", errno);
	memset(x->hva, 0x5a, NPAGES * PG);
	virt_map(x->vm, GPA, GPA, NPAGES * (PG / x->vm->page_size));
	run_to_sync(x->vcpu);
	return fd;
}

static void file_ctx_destroy(struct ctx *x, int fd)
{
	kvm_vm_free(x->vm);
	kvm_munmap(x->hva, NPAGES * PG);
	kvm_close(fd);
}

/* A guest that goes through pages in use takes one fault for several pages. */
VM_TEST(pages_ahead_of_the_guest)
{
	u64 faults = NPAGES / 4;
	struct ctx x;
	int fd;

	fd = file_ctx_create(&x);
#ifdef __aarch64__
	/* On protected hosts EL2 maps each page by itself. */
	if (kvm_check_cap(KVM_CAP_EXIT_HYPERCALL))
		faults = NPAGES;
#endif
	TEST_ASSERT(missing(&x, 0, NPAGES, true) <= faults, "Nothing was mapped ahead");
	/* A freed page does not stay mapped, for host or guest. */
	TEST_ASSERT(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, NPAGES * PG),
		    "Punching: errno %d", errno);
	TEST_ASSERT_EQ(missing(&x, 0, NPAGES, false), NPAGES);
	for (u64 i = 0; i < NPAGES * PG; i += 8)
		TEST_ASSERT(!*(u64 *)(x.hva + i), "A new page is not zero at %#lx", i);
	file_ctx_destroy(&x, fd);
}

/* KVM_MAP_MEMORY maps used and unused pages, and does not stop at a page that is mapped. */
VM_TEST(pages_in_use_and_others)
{
	struct ctx x;
	int fd;

	fd = file_ctx_create(&x);
	TEST_ASSERT(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5 * PG, PG),
		    "Punching: errno %d", errno);
	TEST_ASSERT(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 20 * PG, 3 * PG),
		    "Punching: errno %d", errno);
	missing(&x, 9, 1, true);
	missing(&x, 33, 2, true);
	assert_errno(map_all(x.vcpu, GPA, NPAGES * PG), 0);
	TEST_ASSERT_EQ(missing(&x, 0, NPAGES, true), 0);
	file_ctx_destroy(&x, fd);
}

/* The same for the host, on a file that does not convert. */
VM_TEST(pages_ahead_of_the_host)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	u64 entry, ahead = 0;
	struct ctx x;
	int fd;

	TEST_ASSERT(pagemap >= 0, "No pagemap: errno %d", errno);
	fd = file_ctx_create(&x);
	TEST_ASSERT(!madvise(x.hva, NPAGES * PG, MADV_DONTNEED), "errno %d", errno);
	for (u64 i = 0; i < 2; i++)
		*(volatile u8 *)(x.hva + i * PG) = 1;
	for (u64 i = 0; i < NPAGES; i++) {
		TEST_ASSERT_EQ(pread(pagemap, &entry, 8, (unsigned long)(x.hva + i * PG) / PG * 8),
			       8);
		ahead += i > 1 && entry >> 63;
	}
	TEST_ASSERT_EQ(ahead, 15);
	kvm_close(pagemap);
	file_ctx_destroy(&x, fd);
}

#ifdef __aarch64__

/* The vCPU is not initialised; there are no registers to load. */
VM_TEST(vcpu_that_was_not_initialised)
{
	struct kvm_memory_mapping args = { .base_address = GPA, .size = PG };
	struct kvm_vm *vm = vm_create_barebones();
	int r, fd = __vm_ioctl(vm, KVM_CREATE_VCPU, (void *)0ul);

	TEST_ASSERT(fd >= 0, "KVM_CREATE_VCPU: errno %d", errno);
	r = ioctl(fd, KVM_MAP_MEMORY, &args);
	TEST_ASSERT(r && errno == ENOEXEC, "%d, errno %d", r, errno);
	TEST_ASSERT(args.base_address == GPA && args.size == PG, "The struct changed");
	kvm_close(fd);
	kvm_vm_free(vm);
}

/* The host reads the guest's bytes: in each page of the slot, the page's number. */
static void each_page_is_its_own(struct ctx *x, u64 npages)
{
	u64 i;

	for (i = 0; i < npages; i++)
		TEST_ASSERT_EQ(*(u64 *)(x->hva + i * PG), i);
}

/*
 * Contiguous memory of a guest_memfd is mapped by one block, until a part of it leaves
 * the file. x86 has a test program of its own for that.
 */
VM_TEST(block_of_a_guest_memfd)
{
	const u64 npages = SZ_2M / PG;
	struct ctx x;
	u64 mapped;
	int fd, r;

	/* EL2 takes pages one by one. */
	if (kvm_check_cap(KVM_CAP_EXIT_HYPERCALL))
		SKIP(return, "pKVM maps page by page");
	x.vm = vm_create_with_one_vcpu(&x.vcpu, guest_code);
	fd = vm_create_guest_memfd(x.vm, SZ_2M, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED);
	x.hva = kvm_mmap(SZ_2M, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	r = __vm_set_user_memory_region2(x.vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SZ_2M, x.hva, fd, 0);
	TEST_ASSERT(!r, "The memslot: errno %d", errno);
	virt_map(x.vm, GPA, GPA, npages);
	run_to_sync(x.vcpu);

	r = fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, SZ_2M);
	TEST_ASSERT(!r, "fallocate(): errno %d", errno);
	TEST_ASSERT_EQ(vm_get_stat(x.vm, gmem_blocks_made), 1);
	/* The fault may be on any page. */
	missing(&x, 5, 1, true);
	TEST_ASSERT_EQ(vm_get_stat(x.vm, gmem_blocks_mapped), 1);
	TEST_ASSERT_EQ(missing(&x, 0, npages, true), 0);
	TEST_ASSERT_EQ(vm_get_stat(x.vm, gmem_blocks_mapped), 1);
	each_page_is_its_own(&x, npages);

	/* A hole: the other pages lose nothing, and nothing is left of the old page. */
	r = fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 5 * PG, PG);
	TEST_ASSERT(!r, "punch: errno %d", errno);
	TEST_ASSERT_EQ(*(u64 *)(x.hva + 5 * PG), 0);
	*(u64 *)(x.hva + 5 * PG) = 5;
	each_page_is_its_own(&x, npages);
	*(u64 *)(x.hva + 5 * PG) = 0;
	missing(&x, 0, npages, true);
	each_page_is_its_own(&x, npages);
	/* The page can get the same frame again, which restores the block. */
	mapped = vm_get_stat(x.vm, gmem_blocks_mapped);

	/* Allocated anew by KVM_MAP_MEMORY, and mapped by one call. */
	r = fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, SZ_2M);
	TEST_ASSERT(!r, "punch: errno %d", errno);
	assert_errno(map_all(x.vcpu, GPA, SZ_2M), 0);
	TEST_ASSERT_EQ(vm_get_stat(x.vm, gmem_blocks_made), 2);
	TEST_ASSERT_EQ(vm_get_stat(x.vm, gmem_blocks_mapped), mapped + 1);
	TEST_ASSERT_EQ(missing(&x, 0, npages, true), 0);
	each_page_is_its_own(&x, npages);

	kvm_vm_free(x.vm);
	kvm_munmap(x.hva, SZ_2M);
	kvm_close(fd);
}

#endif /* __aarch64__ */

int main(int argc, char *argv[])
{
	__TEST_REQUIRE(kvm_check_cap(KVM_CAP_MAP_MEMORY),
		       "KVM_CAP_MAP_MEMORY is 0 (no TDP MMU)");
	return test_harness_run(argc, argv);
}
