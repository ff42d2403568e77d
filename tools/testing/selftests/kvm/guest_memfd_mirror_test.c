// SPDX-License-Identifier: GPL-2.0
/*
 * TDs under KVM's mirrored page table: guests that select the kind of memory by a bit
 * of the address, above a simulation of the TDX module (KVM_GMEM_EMULATE_TDX_MIRROR).
 *
 * KVM's MMU and its order of SEAMCALLs are the real ones. The simulation warns,
 * which fails the run, if it is called in the wrong order, and kills the VM.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <sys/mman.h>

#include "gmem_platform.h"

FIXTURE(mirror)
{
	struct ctx x;
};

FIXTURE_SETUP(mirror)
{
	if (!is_available(TDX_MIRROR))
		SKIP(return, GMEM_NO_EMULATION);
	ctx_create(&self->x, TDX_MIRROR, NR_PAGES);
}

FIXTURE_TEARDOWN(mirror)
{
	ctx_destroy(&self->x);
}

#define MIRROR_TEST(name)	TEST_F_TIMEOUT(mirror, name, TIMEOUT)

/* --- Two addresses ------------------------------------------------------------- */

/* A second address for the page, which selects the other kind of memory. */
static gpa_t other_address(struct ctx *x, u64 page, u64 kind)
{
	const gpa_t gva = page_gpa(x, page) + SZ_1G;

	virt_map(x->vm, gva, page_gpa(x, page), 1);
	gmem_guest_means(x->vm, gva, kind);
	return gva;
}

static void asks_for(struct ctx *x, int r, u64 page, u64 flags)
{
	struct kvm_run *run = x->vcpus[0]->run;

	assert_errno(-r, EFAULT);
	TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(run->memory_fault.gpa, page_gpa(x, page));
	TEST_ASSERT_EQ(run->memory_fault.size, PG);
	TEST_ASSERT_EQ(run->memory_fault.flags, flags);
}

MIRROR_TEST(guest_has_memory_of_both_kinds)
{
	struct ctx *x = &self->x;

	ctx_launch(x);
	host_fill(x, 0, NR_PAGES, GMEM_SEED(1));
	convert(x, 0, 8, GMEM_PRIVATE, GMEM_PRESERVE);
	/* A TD's pages are zeroed when it accepts them. */
	guest_sees(x, 0, 8, GMEM_ZEROES);
	guest_fill(x, 0, 8, GMEM_SEED(2));
	guest_sees(x, 8, 8, GMEM_SEED(1));
	guest_fill(x, 8, 8, GMEM_SEED(3));

	guest_sees(x, 0, 8, GMEM_SEED(2));
	host_sees(x, 8, 8, GMEM_SEED(3));
	host_refused(x, 0, 8);
	ownership_is(x, 0, 8, true);
	ownership_is(x, 8, 8, false);

	convert(x, 0, NR_PAGES, GMEM_SHARED, GMEM_ZERO);
	guest_sees(x, 0, NR_PAGES, GMEM_ZEROES);
	ownership_is(x, 0, NR_PAGES, false);
}

/* The file decides, and the guest cannot get around it by the other address. */
MIRROR_TEST(the_other_address_is_refused)
{
	struct ctx *x = &self->x;
	gpa_t shared, private;
	int r;

	ctx_launch(x);
	convert(x, 0, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	shared = other_address(x, 0, KVM_GMEM_EMULATE_ACCESS_SHARED);
	private = other_address(x, 1, KVM_GMEM_EMULATE_ACCESS_PRIVATE);
	guest_fill(x, 0, 2, GMEM_SEED(1));

	r = __gmem_guest_do(x->vcpus[0], GMEM_OP_READ, shared, 1, 0, 0, 0);
	asks_for(x, r, 0, 0);
	asks_for(x, gmem_guest_resume(x->vcpus[0]), 0, 0);
	ownership_is(x, 0, 1, true);
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, x->a.gpa), 0);
	convert(x, 0, 1, GMEM_SHARED, GMEM_ZERO);
	r = gmem_guest_resume(x->vcpus[0]);
	gmem_guest_ok(x->vcpus[0], r);
	TEST_ASSERT_EQ(gmem_cmd_of(x->vcpus[0])->value, 0);

	r = __gmem_guest_do(x->vcpus[0], GMEM_OP_WRITE, private, 1, 0, 0, 0x11);
	asks_for(x, r, 1, KVM_MEMORY_EXIT_FLAG_PRIVATE);
	host_sees(x, 1, 1, GMEM_SEED(1));
	convert(x, 1, 1, GMEM_PRIVATE, GMEM_ZERO);
	r = gmem_guest_resume(x->vcpus[0]);
	gmem_guest_ok(x->vcpus[0], r);
	TEST_ASSERT_EQ(gmem_guest_read(x->vcpus[0], private), 0x11);
	TEST_ASSERT_EQ(gmem_guest_read(x->vcpus[0], page_gpa(x, 1)), 0x11);
	host_refused(x, 1, 1);
}

/* One entry of KVM's page table for 2M of shared memory; the S-EPT has pages. */
MIRROR_TEST(shared_memory_is_mapped_large)
{
	const u64 npages = SZ_2M / PG;
	struct ctx x;

	ctx_create(&x, TDX_MIRROR, npages);
	ctx_launch(&x);
	gmem_allocate_blocks(x.a.fd, 0, SZ_2M);
	TEST_ASSERT_EQ(vm_get_stat(x.vm, gmem_blocks_made), 1);
	guest_fill(&x, 0, npages, GMEM_SEED(1));
	TEST_ASSERT_EQ(vm_get_stat(x.vm, pages_2m), 1);
	host_sees(&x, 0, npages, GMEM_SEED(1));

	/* The guest keeps the rest. */
	convert(&x, 5, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT_EQ(vm_get_stat(x.vm, pages_2m), 0);
	TEST_ASSERT_EQ(vm_get_stat(x.vm, gmem_blocks_split), 1);
	guest_sees(&x, 5, 1, GMEM_ZEROES);
	guest_sees(&x, 0, 5, GMEM_SEED(1));
	guest_sees(&x, 6, npages - 6, GMEM_SEED(1));
	TEST_ASSERT_EQ(vm_get_stat(x.vm, pages_2m), 0);
	host_refused(&x, 5, 1);
	ownership_is(&x, 5, 1, true);
	ownership_is(&x, 6, 1, false);

	/* The large mapping comes back with the page. */
	convert(&x, 5, 1, GMEM_SHARED, GMEM_ZERO);
	guest_sees(&x, 5, 1, GMEM_ZEROES);
	TEST_ASSERT_EQ(vm_get_stat(x.vm, pages_2m), 1);
	guest_sees(&x, 6, npages - 6, GMEM_SEED(1));
	host_sees(&x, 0, 5, GMEM_SEED(1));

	/* The same memory as the guest's own. */
	convert(&x, 0, npages, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_sees(&x, 0, npages, GMEM_ZEROES);
	guest_fill(&x, 0, npages, GMEM_SEED(2));
	guest_sees(&x, 0, npages, GMEM_SEED(2));
	TEST_ASSERT_EQ(vm_get_stat(x.vm, pages_2m), 0);
	host_refused(&x, 0, npages);
	ownership_is(&x, 0, npages, true);
	ctx_destroy(&x);
}

/* Memory outside of guest_memfd is always shared. */
MIRROR_TEST(ordinary_memory_is_shared_only)
{
	struct ctx *x = &self->x;
	const gpa_t gpa = GMEM_GPA + SZ_2G;
	struct kvm_run *run = x->vcpus[0]->run;
	int r;

	vm_userspace_mem_region_add(x->vm, VM_MEM_SRC_ANONYMOUS, gpa, GMEM_SLOT + 1, 1, 0);
	virt_map(x->vm, gpa, gpa, 1);
	ctx_launch(x);
	gmem_guest_write(x->vcpus[0], gpa, 0x22);
	TEST_ASSERT_EQ(*(u8 *)addr_gpa2hva(x->vm, gpa), 0x22);

	gmem_guest_means(x->vm, gpa, KVM_GMEM_EMULATE_ACCESS_PRIVATE);
	r = __gmem_guest_do(x->vcpus[0], GMEM_OP_READ, gpa, 1, 0, 0, 0);
	assert_errno(-r, EFAULT);
	TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(run->memory_fault.gpa, gpa);
	TEST_ASSERT_EQ(run->memory_fault.flags, KVM_MEMORY_EXIT_FLAG_PRIVATE);
}

/* The bit is a part of the address, and not of the memory there. */
MIRROR_TEST(the_bit_is_in_no_slot)
{
	struct kvm_pre_fault_memory range = { .size = PG };
	struct ctx *x = &self->x;
	void *mem;
	int r;

	ctx_launch(x);
	mem = kvm_mmap(PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	r = __vm_set_user_memory_region2(x->vm, GMEM_SLOT + 1, 0, GMEM_SHARED_BIT, PG, mem, 0, 0);
	assert_errno(r ? errno : 0, EINVAL);
	r = __vm_set_user_memory_region2(x->vm, GMEM_SLOT + 1, 0, GMEM_SHARED_BIT - PG, PG, mem, 0, 0);
	assert_errno(r ? errno : 0, 0);
	range.gpa = page_gpa(x, 0) | GMEM_SHARED_BIT;
	assert_errno(gmem_ioctl(x->vcpus[0]->fd, KVM_PRE_FAULT_MEMORY, &range), EINVAL);
}

/* The guest's page tables select the kind, not an ioctl of the test. */
MIRROR_TEST(access_is_the_guests)
{
	struct kvm_gmem_emulate args = {
		.op = KVM_GMEM_EMULATE_OP_ACCESS,
		.gpa = GMEM_GPA,
		.value = { KVM_GMEM_EMULATE_ACCESS_PRIVATE },
	};

	assert_errno(gmem_emulate(self->x.vm, &args), EOPNOTSUPP);
}

/* Like INIT_MEM_REGION, which is an ioctl on a vCPU. */
MIRROR_TEST(a_launch_takes_a_vcpu)
{
	struct kvm_vm *vm = ____vm_create((struct vm_shape) {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	});
	int fd;

	assert_errno(gmem_enable_emulation(vm, KVM_GMEM_EMULATE_TDX_MIRROR, 0), 0);
	fd = vm_create_guest_memfd(vm, PG, GMEM_MMAP_SHARED);
	TEST_ASSERT_EQ(__vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA,
						    PG, NULL, fd, 0), 0);
	gmem_convert(fd, 0, PG, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(gmem_launch_update(vm, 0, GMEM_GPA, PG, NULL, NULL), EINVAL);
	vm_create_irqchip(vm);
	__vm_vcpu_add(vm, 0);
	assert_errno(gmem_launch_update(vm, 0, GMEM_GPA, PG, NULL, NULL), 0);
	TEST_ASSERT_EQ(gmem_state(vm, GMEM_GPA), KVM_GMEM_EMULATE_STATE_PRESENT);
	kvm_close(fd);
	kvm_vm_free(vm);
}

/* Tables of all levels come and go with pages that are far from one another. */
MIRROR_TEST(memory_is_spread)
{
	static const u64 distances[] = { SZ_2M, SZ_1G, 64ull * SZ_1G, 480ull * SZ_1G };
	struct gmem_area areas[ARRAY_SIZE(distances)];
	struct ctx *x = &self->x;
	u32 i;

	for (i = 0; i < ARRAY_SIZE(areas); i++)
		gmem_area_create(&areas[i], x->vm, GMEM_SLOT + 1 + i, x->a.gpa + distances[i],
				 OFF(2), GMEM_MMAP_SHARED);
	ctx_launch(x);
	for (i = 0; i < ARRAY_SIZE(areas); i++) {
		gmem_convert(areas[i].fd, 0, PG, GMEM_PRIVATE, GMEM_PRESERVE);
		gmem_guest_fill(x->vcpus[i % 2], areas[i].gpa, OFF(2), GMEM_SEED(i), 0);
	}
	for (i = 0; i < ARRAY_SIZE(areas); i++) {
		gmem_guest_assert(x->vcpus[1 - i % 2], areas[i].gpa, OFF(2), GMEM_SEED(i), 0);
		gmem_host_assert_refused(areas[i].hva, PG);
		gmem_host_assert(areas[i].hva + PG, PG, GMEM_SEED(i), PG);
		TEST_ASSERT_EQ(gmem_state(x->vm, areas[i].gpa), KVM_GMEM_EMULATE_STATE_PRESENT);
	}
	for (i = 0; i < ARRAY_SIZE(areas); i++) {
		gmem_convert(areas[i].fd, 0, PG, GMEM_SHARED, GMEM_ZERO);
		gmem_guest_assert(x->vcpus[0], areas[i].gpa, PG, GMEM_ZEROES, 0);
		gmem_area_destroy(&areas[i]);
	}
}

/* --- MapGPA -------------------------------------------------------------------- */

MIRROR_TEST(guest_converts)
{
	struct ctx *x = &self->x;
	struct kvm_run *run = x->vcpus[0]->run;
	int r;

	ctx_launch(x);
	host_fill(x, 0, NR_PAGES, GMEM_SEED(1));
	gmem_guest_convert(x->vcpus[0], &x->a, 0, OFF(8), GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(x, 0, 8, GMEM_SEED(2));
	host_refused(x, 0, 8);
	gmem_guest_convert(x->vcpus[0], &x->a, OFF(4), OFF(4), GMEM_SHARED, GMEM_ZERO);
	guest_sees(x, 0, 4, GMEM_SEED(2));
	guest_sees(x, 4, 4, GMEM_ZEROES);
	host_sees(x, 4, 4, GMEM_ZEROES);
	guest_sees(x, 8, 8, GMEM_SEED(1));

	/* The VMM refuses, and the guest gets an error. */
	r = __gmem_guest_do(x->vcpus[0], GMEM_OP_MAP_GPA, page_gpa(x, 0), PG,
			    KVM_MAP_GPA_RANGE_DECRYPTED, 0, 0);
	TEST_ASSERT_EQ(r, KVM_EXIT_HYPERCALL);
	run->hypercall.ret = -KVM_EINVAL;
	r = gmem_guest_resume(x->vcpus[0]);
	gmem_guest_ok(x->vcpus[0], r);
	TEST_ASSERT_EQ((long)gmem_cmd_of(x->vcpus[0])->value, -KVM_EINVAL);
	guest_sees(x, 0, 4, GMEM_SEED(2));
	host_refused(x, 0, 4);
}

/* --- Which mappings are removed ------------------------------------------------------- */

MIRROR_TEST(each_kind_is_zapped_by_itself)
{
	struct ctx *x = &self->x;
	u64 mapped;

	ctx_launch(x);
	convert(x, 0, 8, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(x, 0, NR_PAGES, GMEM_SEED(1));
	mapped = vm_get_stat(x->vm, pages_4k);

	/* Conversion to the current attribute: no mapping is removed. */
	convert(x, 0, 8, GMEM_PRIVATE, GMEM_NONE);
	TEST_ASSERT_EQ(vm_get_stat(x->vm, pages_4k), mapped);

	/* The host loses its mappings of shared pages; private pages are not affected. */
	TEST_ASSERT_EQ(madvise(x->a.hva, x->a.size, MADV_DONTNEED), 0);
	kvm_munmap(x->a.hva, x->a.size);
	x->a.hva = kvm_mmap(x->a.size, PROT_READ | PROT_WRITE, MAP_SHARED, x->a.fd);
	ownership_is(x, 0, 8, true);
	guest_sees(x, 0, NR_PAGES, GMEM_SEED(1));

	/* A range of both: the private half stays as it is. */
	convert(x, 4, 8, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_sees(x, 0, 8, GMEM_SEED(1));
	guest_sees(x, 8, 4, GMEM_ZEROES);
	guest_sees(x, 12, 4, GMEM_SEED(1));
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, x->a.gpa), 0);
	ownership_is(x, 0, 12, true);

	/* Shared pages that become private leave the other table only. */
	mapped = vm_get_stat(x->vm, pages_4k);
	convert(x, 12, 2, GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT_EQ(vm_get_stat(x->vm, pages_4k), mapped - 2);
	ownership_is(x, 12, 4, false);
}

/*
 * Shared memory outside of the file: the host unmaps it, also where the guest has
 * private memory, and the guest loses only its shared mappings.
 */
MIRROR_TEST(unmapping_in_the_host_leaves_private_pages)
{
	const gpa_t gpa = GMEM_GPA + SZ_2G;
	struct ctx *x = &self->x;
	u8 *mem;
	int fd;

	mem = kvm_mmap(OFF(2), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	fd = vm_create_guest_memfd(x->vm, OFF(2), 0);
	TEST_ASSERT_EQ(__vm_set_user_memory_region2(x->vm, GMEM_SLOT + 1, KVM_MEM_GUEST_MEMFD, gpa,
						    OFF(2), mem, fd, 0), 0);
	virt_map(x->vm, gpa, gpa, 2);
	gmem_guest_means(x->vm, gpa, KVM_GMEM_EMULATE_ACCESS_PRIVATE);
	vm_set_memory_attributes(x->vm, gpa, PG, KVM_MEMORY_ATTRIBUTE_PRIVATE);
	ctx_launch(x);
	gmem_guest_write(x->vcpus[0], gpa, 0x11);
	gmem_guest_write(x->vcpus[0], gpa + PG, 0x22);
	TEST_ASSERT_EQ(mem[PG], 0x22);

	TEST_ASSERT_EQ(madvise(mem, OFF(2), MADV_DONTNEED), 0);
	TEST_ASSERT_EQ(gmem_guest_read(x->vcpus[0], gpa + PG), 0);
	TEST_ASSERT_EQ(gmem_state(x->vm, gpa), KVM_GMEM_EMULATE_STATE_PRESENT);
	TEST_ASSERT_EQ(gmem_guest_read(x->vcpus[0], gpa), 0x11);
	kvm_close(fd);
}

MIRROR_TEST(a_slot_takes_its_pages_along)
{
	struct ctx *x = &self->x;

	ctx_launch(x);
	convert(x, 0, 8, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(x, 0, NR_PAGES, GMEM_SEED(1));
	gmem_area_unbind(&x->a);
	gmem_area_bind(&x->a);
	ownership_is(x, 0, 8, false);
	host_refused(x, 0, 8);
	guest_sees(x, 0, 8, GMEM_ZEROES);
	guest_sees(x, 8, 8, GMEM_SEED(1));
	ownership_is(x, 0, 8, true);
}

/* A vCPU that checks pages of both kinds, and is in the guest for most of the time. */
struct checker {
	struct ctx *x;
	pthread_t thread;
	atomic_bool stop;
	atomic_ulong rounds;
	u64 bad;
	int r;
};

static void *check_pages(void *arg)
{
	struct checker *c = arg;
	struct ctx *x = c->x;

	do {
		c->r = __gmem_guest_do(x->vcpus[1], GMEM_OP_CHECK, page_gpa(x, 4), OFF(8),
				       GMEM_SEED(1), OFF(4), 0);
		c->bad = gmem_cmd_of(x->vcpus[1])->bad;
		atomic_fetch_add(&c->rounds, 1);
	} while (!c->r && c->bad == GMEM_ALL_GOOD && !atomic_load(&c->stop));
	return NULL;
}

/*
 * Pages are removed while a vCPU runs. The simulation notices if nobody makes the vCPU
 * leave the guest. The vCPU finds all other pages as before.
 */
MIRROR_TEST(pages_leave_while_the_guest_runs)
{
	struct checker c = { .x = &self->x, .bad = GMEM_ALL_GOOD };
	struct ctx *x = &self->x;
	u32 i;

	ctx_launch(x);
	convert(x, 4, 4, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(x, 4, 8, GMEM_SEED(1));
	kvm_pthread_create(&c.thread, NULL, check_pages, &c);
	for (i = 0; i < 100 || atomic_load(&c.rounds) < 10; i++) {
		convert(x, 0, 2, GMEM_PRIVATE, GMEM_PRESERVE);
		guest_fill(x, 0, 2, GMEM_SEED(2));
		convert(x, 0, 2, GMEM_SHARED, GMEM_ZERO);
		guest_sees(x, 0, 2, GMEM_ZEROES);
		if (c.r || c.bad != GMEM_ALL_GOOD)
			break;
	}
	atomic_store(&c.stop, true);
	kvm_pthread_join(c.thread, NULL);
	TEST_ASSERT(!c.r && c.bad == GMEM_ALL_GOOD, "The vCPU: %d, wrong byte at %#lx", c.r, c.bad);
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, x->a.gpa), 0);
}

/* --- The module fails ------------------------------------------------------------- */

static const u64 removal[] = {
	KVM_GMEM_EMULATE_FAIL_BLOCK,
	KVM_GMEM_EMULATE_FAIL_TRACK,
	KVM_GMEM_EMULATE_FAIL_REMOVE,
	KVM_GMEM_EMULATE_FAIL_FLUSH,
};

/* KVM kicks the vCPUs and tries each step once more. WBINVD is not tried twice. */
MIRROR_TEST(removal_that_is_busy_once_succeeds)
{
	struct ctx *x = &self->x;
	u32 i;

	ctx_launch(x);
	convert(x, 0, NR_PAGES, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(x, 0, NR_PAGES, GMEM_SEED(1));
	for (i = 0; i < ARRAY_SIZE(removal) - 1; i++) {
		gmem_inject(x->vm, page_gpa(x, i), removal[i], KVM_GMEM_EMULATE_ERROR_BUSY, 1);
		convert(x, i, 1, GMEM_SHARED, GMEM_ZERO);
		guest_sees(x, i, 1, GMEM_ZEROES);
		ownership_is(x, i, 1, false);
	}
	guest_sees(x, i, NR_PAGES - i, GMEM_SEED(1));
}

/*
 * The VM is dead, error_offset names the page that could not be removed, and nobody
 * gets that page any more.
 */
static void removal_fails(u64 step, u64 error, u64 times, u64 bad)
{
	struct ctx x;
	u64 eo;

	ctx_create(&x, TDX_MIRROR, NR_PAGES);
	ctx_launch(&x);
	convert(&x, 0, NR_PAGES, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(&x, 0, NR_PAGES, GMEM_SEED(1));
	gmem_inject(x.vm, page_gpa(&x, bad), step, error, times);
	assert_errno(gmem_set_once(x.a.fd, 0, OFF(NR_PAGES), GMEM_SHARED, GMEM_ZERO, &eo), EIO);
	TEST_ASSERT(eo == OFF(bad), "Step %lu of page %lu failed, error_offset is %#lx", step,
		    bad, eo);
	host_refused(&x, 0, NR_PAGES);
	assert_errno(-gmem_guest_resume(x.vcpus[0]), EIO);
	gmem_punch(x.a.fd, 0, OFF(NR_PAGES));
	host_refused(&x, 0, NR_PAGES);
	gmem_dirty_free_pages();
	ctx_destroy(&x);
	gmem_dirty_free_pages();
}

MIRROR_TEST(removal_fails_at_each_step)
{
	static const u64 pages[] = { 0, 7, NR_PAGES - 1 };
	u32 i, j;

	for (i = 0; i < ARRAY_SIZE(removal); i++) {
		for (j = 0; j < ARRAY_SIZE(pages); j++)
			removal_fails(removal[i], KVM_GMEM_EMULATE_ERROR_INPUT, 1000, pages[j]);
		removal_fails(removal[i], KVM_GMEM_EMULATE_ERROR_BUSY, 2, 3);
	}
}

MIRROR_TEST(adding_that_is_busy_is_tried_again)
{
	struct ctx *x = &self->x;

	host_fill(x, 0, 2, GMEM_SEED(1));
	convert(x, 0, 4, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_inject(x->vm, page_gpa(x, 1), KVM_GMEM_EMULATE_FAIL_ADD,
		    KVM_GMEM_EMULATE_ERROR_BUSY, 5);
	assert_errno(add(x, 0, 2, NULL, NULL), 0);
	ctx_launch(x);
	gmem_inject(x->vm, page_gpa(x, 2), KVM_GMEM_EMULATE_FAIL_ADD,
		    KVM_GMEM_EMULATE_ERROR_BUSY, 5);
	guest_sees(x, 0, 2, GMEM_SEED(1));
	guest_sees(x, 2, 2, GMEM_ZEROES);
	ownership_is(x, 0, 4, true);
}

/* There are no translations of a page that was added before the launch. */
MIRROR_TEST(added_pages_leave_before_launch)
{
	struct ctx *x = &self->x;

	host_fill(x, 0, 4, GMEM_SEED(1));
	convert(x, 0, 4, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(add(x, 0, 4, NULL, NULL), 0);
	convert(x, 0, 2, GMEM_SHARED, GMEM_ZERO);
	host_sees(x, 0, 2, GMEM_ZEROES);
	ownership_is(x, 0, 2, false);
	ctx_launch(x);
	guest_sees(x, 2, 2, GMEM_SEED(1));
	guest_sees(x, 0, 2, GMEM_ZEROES);
}

/* The module refuses permanently: EIO, no memory fault, and the VM is dead. */
MIRROR_TEST(adding_fails)
{
	struct ctx *x = &self->x;
	struct kvm_run *run = x->vcpus[0]->run;
	int r;

	ctx_launch(x);
	convert(x, 0, 2, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(x, 1, 1, GMEM_SEED(1));
	gmem_inject(x->vm, page_gpa(x, 0), KVM_GMEM_EMULATE_FAIL_ADD,
		    KVM_GMEM_EMULATE_ERROR_INPUT, 1);
	r = __gmem_guest_do(x->vcpus[0], GMEM_OP_READ, page_gpa(x, 0), 1, 0, 0, 0);
	assert_errno(-r, EIO);
	TEST_ASSERT(run->exit_reason != KVM_EXIT_MEMORY_FAULT, "The page is to be converted");
	assert_errno(-gmem_guest_resume(x->vcpus[1]), EIO);
	host_refused(x, 0, 2);
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
