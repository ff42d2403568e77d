// SPDX-License-Identifier: GPL-2.0
/*
 * Platforms with an owner of pages, as the kernel emulates them: conversion
 * beside a running guest, and when the platform fails in the middle.
 *
 * Of the hazards that only such platforms have, 1, 30, 39, 40 and 44 have a
 * subtest here. Hazard 29 has none: all pages have 4K here, so no RMP entry is split,
 * and emulated vCPUs have no VMSA. KUnit (kvm_gmem_snp) tests the split, and
 * guest_memfd_snp_test the VMSA.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include <linux/mempolicy.h>
#include <linux/sizes.h>

#include <sys/mman.h>
#include <sys/syscall.h>

#include "gmem_emulated.h"

/* --- One VM, one file -------------------------------------------------------- */

FIXTURE(tdx)
{
	struct ctx x;
};

FIXTURE_VARIANT(tdx)
{
	enum platform platform;
};

FIXTURE_VARIANT_ADD(tdx, model) { .platform = TDX };
FIXTURE_VARIANT_ADD(tdx, mirror) { .platform = TDX_MIRROR };

FIXTURE_SETUP(tdx)
{
	if (!is_available(variant->platform))
		SKIP(return, GMEM_NO_EMULATION);
	ctx_create(&self->x, variant->platform, NR_PAGES);
}

FIXTURE_TEARDOWN(tdx)
{
	ctx_destroy(&self->x);
}

#define TDX_TEST(name)		TEST_F_TIMEOUT(tdx, name, TIMEOUT)

/* --- Hazards with a guest ------------------------------------------------------------ */

/* Hazard 1: pages that are private already are left alone, mappings included. */
EMULATED_TEST(h01_mixed_range_to_private)
{
	struct ctx *x = &self->x;
	u64 mapped, i;

	ctx_launch(x);
	for (i = 0; i < NR_PAGES; i += 2) {
		convert(x, i, 1, GMEM_PRIVATE, GMEM_PRESERVE);
		guest_fill(x, i, 1, GMEM_SEED(1));
		host_fill(x, i + 1, 1, GMEM_SEED(2));
		guest_sees(x, i + 1, 1, GMEM_SEED(2));
	}

	mapped = vm_get_stat(x->vm, pages_4k);
	convert(x, 0, NR_PAGES, GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT_EQ(vm_get_stat(x->vm, pages_4k), mapped - NR_PAGES / 2);
	for (i = 0; i < NR_PAGES; i += 2) {
		ownership_is(x, i, 1, true);
		ownership_is(x, i + 1, 1, false);
	}
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, x->a.gpa), 0);
	host_refused(x, 0, NR_PAGES);
	for (i = 0; i < NR_PAGES; i += 2)
		guest_sees(x, i, 1, GMEM_SEED(1));

	/* The whole range again, with nothing to change. */
	convert(x, 0, NR_PAGES, GMEM_PRIVATE, GMEM_NONE);
	refused(x, 1, NR_PAGES - 1, GMEM_PRIVATE, GMEM_ZERO, EOPNOTSUPP, 2);
	for (i = 0; i < NR_PAGES; i += 2)
		guest_sees(x, i, 1, GMEM_SEED(1));
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, x->a.gpa), 0);
}

static void write_proc(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	/* Not every kernel has every file; those that exist are written. */
	if (fd < 0)
		return;
	if (write(fd, text, strlen(text)) < 0)
		ksft_print_msg("%s > %s: %s\n", text, path, strerror(errno));
	close(fd);
}

/*
 * Hazard 39: everything that makes the host's kernel touch or move a page, on
 * pages that it has no mapping of. An access would be an oops.
 */
EMULATED_TEST(h39_host_kernel_leaves_owned_pages_alone)
{
	struct ctx *x = &self->x;
	void *pages[NR_PAGES];
	int status[NR_PAGES], nodes[NR_PAGES] = {};
	u64 i;

	ctx_launch(x);
	convert(x, 0, NR_PAGES, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(x, 0, NR_PAGES, GMEM_SEED(1));

	for (i = 0; i < NR_PAGES; i++)
		pages[i] = ctx_hva(x, i);
	syscall(__NR_move_pages, 0, NR_PAGES, pages, nodes, status, 2 /* MPOL_MF_MOVE */);
	madvise(x->a.hva, x->a.size, MADV_MERGEABLE);
	madvise(x->a.hva, x->a.size, MADV_COLD);
	madvise(x->a.hva, x->a.size, MADV_PAGEOUT);
	madvise(x->a.hva, x->a.size, MADV_DONTNEED);
	madvise(x->a.hva, x->a.size, MADV_SOFT_OFFLINE);
	mlock2(x->a.hva, x->a.size, MLOCK_ONFAULT);
	msync(x->a.hva, x->a.size, MS_SYNC);
	write_proc("/sys/kernel/mm/ksm/run", "1");
	write_proc("/proc/sys/vm/compact_memory", "1");
	write_proc("/proc/sys/vm/drop_caches", "3");
	gmem_dirty_free_pages();

	host_refused(x, 0, NR_PAGES);
	ownership_is(x, 0, NR_PAGES, true);
	attributes_are(x, 0, NR_PAGES, GMEM_PRIVATE);
	guest_sees(x, 0, NR_PAGES, GMEM_SEED(1));
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, x->a.gpa), 0);
	write_proc("/sys/kernel/mm/ksm/run", "0");
}

/* The host gets pages that the platform owned back by a hole, and when the file is closed. */
EMULATED_TEST(freed_pages_are_given_up)
{
	const u64 npages = SZ_1M / PG;
	struct ctx y;
	int i;

	ctx_create(&y, variant->platform, npages);
	ctx_launch(&y);
	for (i = 0; i < 2; i++) {
		convert(&y, 0, npages, GMEM_PRIVATE, GMEM_PRESERVE);
		guest_fill(&y, 0, npages, GMEM_SEED(1 + i));
		ownership_is(&y, 0, npages, true);
		if (i)
			break;
		TEST_ASSERT_EQ(gmem_punch(y.a.fd, 0, y.a.size), 0);
		attributes_are(&y, 0, npages, GMEM_PRIVATE);
		host_refused(&y, 0, npages);
		gmem_dirty_free_pages();
		convert(&y, 0, npages, GMEM_SHARED, GMEM_PRESERVE);
		host_sees(&y, 0, npages, GMEM_ZEROES);
		host_fill(&y, 0, npages, GMEM_SEED(3));
		guest_sees(&y, 0, npages, GMEM_SEED(3));
	}
	ctx_destroy(&y);
	/* The next owner of the pages writes to them. */
	for (i = 0; i < 8; i++)
		gmem_dirty_free_pages();
}

/* Reads all pages of the file repeatedly. */
struct reader {
	struct ctx *x;
	pthread_t thread;
	atomic_bool stop;
	atomic_ulong reads;
	int error;
};

static void *read_pages(void *arg)
{
	struct reader *reader = arg;
	struct ctx *x = reader->x;
	u64 page = 0;
	int r;

	while (!atomic_load(&reader->stop) && !reader->error) {
		r = __gmem_guest_do(x->vcpus[1], GMEM_OP_READ, page_gpa(x, page), 1, 0, 0, 0);
		/* The guest's access is of the old kind at the fault, and of the new kind afterwards. */
		while (r == -EFAULT && x->vcpus[1]->run->exit_reason == KVM_EXIT_MEMORY_FAULT)
			r = gmem_guest_resume(x->vcpus[1]);
		if (r)
			reader->error = r;
		page = (page + 1) % 4;
		atomic_fetch_add(&reader->reads, 1);
	}
	return NULL;
}

#define H40_ROUNDS	400

/*
 * Hazard 40: while a vCPU touches the page, PRESERVE to shared either reports that the
 * page is owned or keeps the bytes. With an answer from before the invalidation it
 * could succeed and lose them.
 */
TDX_TEST(h40_preserve_against_a_running_guest)
{
	struct reader reader = { .x = &self->x };
	u32 i, j, kept = 0, owned = 0, spins = 0;
	struct ctx *x = &self->x;
	u64 eo, bad;
	int r;

	ctx_launch(x);
	kvm_pthread_create(&reader.thread, NULL, read_pages, &reader);
	for (i = 0; i < H40_ROUNDS; i++) {
		const u32 seed = GMEM_SEED(i);

		host_fill(x, 0, 4, seed);
		convert(x, 0, 4, GMEM_PRIVATE, GMEM_PRESERVE);
		/* More or less time for the guest, so that both outcomes occur. */
		for (j = 0; j < spins; j++)
			sched_yield();
		for (j = 0; j < 4; j++) {
			r = gmem_set(x->a.fd, OFF(j), PG, GMEM_SHARED, GMEM_PRESERVE, &eo);
			if (r == EOPNOTSUPP) {
				TEST_ASSERT_EQ(eo, OFF(j));
				convert(x, j, 1, GMEM_SHARED, GMEM_ZERO);
				host_sees(x, j, 1, GMEM_ZEROES);
				owned++;
				continue;
			}
			assert_errno(r, 0);
			bad = gmem_check(ctx_hva(x, j), PG, seed, OFF(j));
			TEST_ASSERT(bad == GMEM_ALL_GOOD,
				    "Round %u: PRESERVE returned 0 and byte %#lx of page %u is 0x%02x",
				    i, bad, j, bad == GMEM_ALL_GOOD ? 0 : ctx_hva(x, j)[bad]);
			kept++;
		}
		spins = owned < kept ? spins + 1 : 0;
	}
	atomic_store(&reader.stop, true);
	kvm_pthread_join(reader.thread, NULL);
	TEST_ASSERT(!reader.error, "The guest's read: %d", reader.error);
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, x->a.gpa), 0);
	ksft_print_msg("%u pages kept their bytes, %u were owned, %lu reads\n", kept, owned,
		       atomic_load(&reader.reads));
	TEST_ASSERT(kept && owned, "One of the two outcomes never came up");
}

struct held {
	struct ctx *x;
	pthread_t thread;
	int r;
	u64 eo;
};

static void *read_held(void *arg)
{
	struct held *held = arg;
	struct ctx *x = held->x;

	held->r = __gmem_guest_do(x->vcpus[1], GMEM_OP_READ, page_gpa(x, 1), 1, 0, 0, 0);
	return NULL;
}

/* Until a vCPU has been given page 1, which is private, and is about to map it. */
static void hold_reader(struct held *guest)
{
	struct ctx *x = guest->x;

	ctx_launch(x);
	host_fill(x, 0, 4, GMEM_SEED(1));
	convert(x, 0, 4, GMEM_PRIVATE, GMEM_PRESERVE);

	gmem_hold(x->vm, page_gpa(x, 1), KVM_GMEM_EMULATE_HOLD_FAULT, true);
	kvm_pthread_create(&guest->thread, NULL, read_held, guest);
	gmem_wait_held(x->vm, page_gpa(x, 1), KVM_GMEM_EMULATE_HOLD_FAULT);
}

static void *convert_held(void *arg)
{
	struct held *held = arg;

	held->r = gmem_set(held->x->a.fd, OFF(1), PG, GMEM_SHARED, GMEM_PRESERVE, &held->eo);
	return NULL;
}

/*
 * The same with a forced order: a vCPU has been given the page, a conversion is about
 * to begin its invalidation, the vCPU maps the page, the conversion continues. An
 * answer from before the invalidation would be wrong by now.
 */
TDX_TEST(h40_page_is_mapped_just_before_the_invalidation)
{
	struct held guest = { .x = &self->x }, host = { .x = &self->x };
	struct ctx *x = &self->x;
	const gpa_t gpa = page_gpa(x, 1);

	hold_reader(&guest);

	gmem_hold(x->vm, gpa, KVM_GMEM_EMULATE_HOLD_INVALIDATION, true);
	kvm_pthread_create(&host.thread, NULL, convert_held, &host);
	gmem_wait_held(x->vm, gpa, KVM_GMEM_EMULATE_HOLD_INVALIDATION);

	/* The vCPU has left get_pfn(), and needs no lock that the conversion has. */
	gmem_hold(x->vm, gpa, KVM_GMEM_EMULATE_HOLD_FAULT, false);
	kvm_pthread_join(guest.thread, NULL);
	TEST_ASSERT(!guest.r, "The guest's read: %d", guest.r);

	gmem_hold(x->vm, gpa, KVM_GMEM_EMULATE_HOLD_INVALIDATION, false);
	kvm_pthread_join(host.thread, NULL);
	assert_errno(host.r, EOPNOTSUPP);
	TEST_ASSERT_EQ(host.eo, OFF(1));
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, gpa), 0);
	host_refused(x, 1, 1);
	guest_sees(x, 1, 1, GMEM_ZEROES);
}

/*
 * The opposite order: the vCPU comes too late, and must not map the page with the old
 * attribute.
 */
TDX_TEST(h40_page_is_not_mapped_after_the_invalidation)
{
	struct held guest = { .x = &self->x };
	struct ctx *x = &self->x;
	const gpa_t gpa = page_gpa(x, 1);

	hold_reader(&guest);

	convert(x, 1, 1, GMEM_SHARED, GMEM_PRESERVE);
	host_sees(x, 1, 1, GMEM_SEED(1));

	gmem_hold(x->vm, gpa, KVM_GMEM_EMULATE_HOLD_FAULT, false);
	kvm_pthread_join(guest.thread, NULL);
	if (x->platform == TDX_MIRROR) {
		/* Its address still selects private memory, until it faults. */
		assert_errno(-guest.r, EFAULT);
		TEST_ASSERT_EQ(x->vcpus[1]->run->exit_reason, KVM_EXIT_MEMORY_FAULT);
		TEST_ASSERT_EQ(x->vcpus[1]->run->memory_fault.gpa, gpa);
		TEST_ASSERT_EQ(x->vcpus[1]->run->memory_fault.flags, KVM_MEMORY_EXIT_FLAG_PRIVATE);
		guest.r = gmem_guest_resume(x->vcpus[1]);
	}
	TEST_ASSERT(!guest.r, "The guest's read: %d", guest.r);
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, gpa), 0);
	host_sees(x, 1, 1, GMEM_SEED(1));
	guest_sees(x, 1, 1, GMEM_SEED(1));
}

/* --- Failure in the middle ------------------------------------------------------------- */

static void assert_dead(struct ctx *x)
{
	u64 eo;
	int i;

	assert_errno(gmem_set(x->a.fd, 0, PG, GMEM_PRIVATE, GMEM_PRESERVE, &eo), EIO);
	TEST_ASSERT_EQ(eo, GMEM_POISON_OFFSET);
	assert_errno(gmem_set(x->a.fd, 0, PG, GMEM_SHARED, GMEM_NONE, &eo), EIO);
	TEST_ASSERT_EQ(eo, GMEM_POISON_OFFSET);
	assert_errno(gmem_get(x->a.fd, 0, NULL, NULL), EIO);
	assert_errno(gmem_launch_finish(x->vm), EIO);
	assert_errno(gmem_ioctl(x->vm->fd, KVM_CHECK_EXTENSION, (void *)KVM_CAP_USER_MEMORY), EIO);
	for (i = 0; i < 2; i++)
		assert_errno(-gmem_guest_resume(x->vcpus[i]), EIO);
}

/*
 * Sixteen pages of the guest are to become shared, and the platform fails at
 * one of them. No attribute changes, the VM is dead, and nothing else has changed.
 * (GET is refused, so the host's accesses show the attributes.)
 */
static void fail_at(enum platform platform, u64 bad, u64 which, u64 error, u64 policy,
		    struct ctx *other)
{
	/* shared, private, the range, private, shared */
	const u64 first = 2, npages = 16, total = 20;
	struct ctx x;
	u64 eo;

	ctx_create(&x, platform, total);
	ctx_launch(&x);
	host_fill(&x, 0, 1, GMEM_SEED(1));
	host_fill(&x, total - 1, 1, GMEM_SEED(1));
	convert(&x, 1, npages + 2, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(&x, 1, npages + 2, GMEM_SEED(2));

	gmem_inject(x.vm, page_gpa(&x, first + bad), which, error, 1000);
	assert_errno(gmem_set_once(x.a.fd, OFF(first), OFF(npages), GMEM_SHARED, policy, &eo),
		     EIO);
	TEST_ASSERT(eo == OFF(first + bad), "Page %lu failed, error_offset is %#lx", bad, eo);

	host_refused(&x, 1, npages + 2);
	host_sees(&x, 0, 1, GMEM_SEED(1));
	host_sees(&x, total - 1, 1, GMEM_SEED(1));
	assert_dead(&x);

	/* Hazard 44: the page stays lost, whatever is tried. */
	gmem_punch(x.a.fd, OFF(first), OFF(npages));
	gmem_allocate(x.a.fd, OFF(first), OFF(npages));
	host_refused(&x, 1, npages + 2);
	gmem_dirty_free_pages();

	guest_sees(other, 0, NR_PAGES, GMEM_SEED(99));
	ctx_destroy(&x);
	gmem_dirty_free_pages();
	guest_sees(other, 0, NR_PAGES, GMEM_SEED(99));
	ownership_is(other, 0, NR_PAGES, true);
}

static void other_vm(struct ctx *x)
{
	ctx_launch(x);
	convert(x, 0, NR_PAGES, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(x, 0, NR_PAGES, GMEM_SEED(99));
}

EMULATED_TEST(h44_giving_up_fails_at_each_page)
{
	u64 i;

	other_vm(&self->x);
	for (i = 0; i < 16; i++) {
		/* TDX refuses PRESERVE, the first of the policies. */
		u32 policy = self->x.platform == SNP ? i % 3 : 1 + i % 2;

		fail_at(self->x.platform, i,
			self->x.platform == SNP ? KVM_GMEM_EMULATE_FAIL_UNASSIGN :
			KVM_GMEM_EMULATE_FAIL_REMOVE,
			self->x.platform == SNP ? KVM_GMEM_EMULATE_ERROR_PERMISSION :
			KVM_GMEM_EMULATE_ERROR_INPUT,
			policies[policy], &self->x);
	}
}

/* The steps before the removal itself, where the S-EPT keeps the page. */
TDX_TEST(h44_blocking_and_tracking_fail)
{
	static const u64 steps[] = { KVM_GMEM_EMULATE_FAIL_BLOCK, KVM_GMEM_EMULATE_FAIL_TRACK };
	u32 i;

	other_vm(&self->x);
	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		fail_at(variant->platform, 0, steps[i], KVM_GMEM_EMULATE_ERROR_INPUT, GMEM_ZERO,
			&self->x);
		fail_at(variant->platform, 15, steps[i], KVM_GMEM_EMULATE_ERROR_INPUT, GMEM_NONE,
			&self->x);
	}
}

/*
 * Hazard 30: adding sixteen pages fails at one of them. The pages before it stay
 * added, it and those behind it are as before, and the caller continues at the
 * returned address.
 */
EMULATED_TEST(h30_adding_fails_at_each_page)
{
	u64 i, done, which;

	other_vm(&self->x);
	which = self->x.platform == SNP ? KVM_GMEM_EMULATE_FAIL_ASSIGN :
					  KVM_GMEM_EMULATE_FAIL_ADD;
	for (i = 0; i < 16; i++) {
		struct ctx x;
		int r;

		ctx_create(&x, self->x.platform, 16);
		host_fill(&x, 0, 16, GMEM_SEED(i));
		convert(&x, 0, 16, GMEM_PRIVATE, GMEM_PRESERVE);
		/* The first call hides the error if pages before it were mapped. */
		gmem_inject(x.vm, page_gpa(&x, i), which, KVM_GMEM_EMULATE_ERROR_INPUT,
			    i ? 2 : 1);
		r = add(&x, 0, 16, NULL, &done);
		TEST_ASSERT(r == EIO && done == i, "Page %lu failed: errno %d, %lu pages added", i,
			    r, done);
		if (x.platform == TDX_MIRROR) {
			/* KVM treats it as a bug, and the VM is dead. */
			host_refused(&x, 0, 16);
			guest_sees(&self->x, 0, NR_PAGES, GMEM_SEED(99));
			ctx_destroy(&x);
			continue;
		}
		ownership_is(&x, 0, i, true);
		ownership_is(&x, i, 16 - i, false);
		host_refused(&x, 0, 16);

		assert_errno(add(&x, i, 16 - i, NULL, NULL), 0);
		ctx_launch(&x);
		guest_sees(&x, 0, 16, GMEM_SEED(i));
		guest_sees(&self->x, 0, NR_PAGES, GMEM_SEED(99));
		ctx_destroy(&x);
	}
	ownership_is(&self->x, 0, NR_PAGES, true);
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
