// SPDX-License-Identifier: GPL-2.0
/*
 * KVM's own code for SNP with memory that converts in place, on simulated hardware
 * (CONFIG_KVM_SNP_SIMULATION): 2M that the guest has by one entry of the RMP and in one
 * mapping, and what splits them.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define NR_PAGES	1024

#include "gmem_snp_vm.h"
#include "gmem_move.h"

#define BLOCK		((u64)SZ_2M)
#define PAGES		(BLOCK / PG)
/* The page of the block that is treated differently. */
#define ODD		9ul
#define NONE		KVM_GMEM_EMULATE_STATE_NONE
#define SMALL		KVM_GMEM_EMULATE_STATE_ASSIGNED
#define LARGE		(SMALL | KVM_GMEM_EMULATE_STATE_LARGE)

/* Mappings of 2M that the guest had before it used the block. */
static u64 large_before;

static u64 nr_large(snp_fixture *self)
{
	return vm_get_stat(self->vm, pages_2m);
}

#define large_is(self, want)	TEST_ASSERT_EQ(nr_large(self) - large_before, want)

/* The RMP's entries of pages, each with its gfn. */
static void rmp_is(snp_fixture *self, u64 page, u64 n, u64 state)
{
	u64 i;

	for (i = page; i < page + n; i++)
		assert_rmp(self, i, state);
}

/* Of all pages of the block but the odd one. */
static void rest_is(snp_fixture *self, u64 state)
{
	rmp_is(self, 0, ODD, state);
	rmp_is(self, ODD + 1, PAGES - ODD - 1, state);
}

static void guest_fills(snp_fixture *self, u64 page, u64 n, u32 pattern)
{
	snp_fill(self->vcpus[0], private_gva(self, page), OFF(n), pattern, OFF(page));
}

#define guest_sees_private(self, page, n, pattern)				\
	snp_check((self)->vcpus[0], private_gva(self, page), OFF(n), pattern, OFF(page))

#define guest_sees_rest(self, pattern)						\
do {										\
	guest_sees_private(self, 0, ODD, pattern);				\
	guest_sees_private(self, ODD + 1, PAGES - ODD - 1, pattern);		\
} while (0)

/* A guest that runs, with a private block of which it has used nothing. */
static void with_block(snp_fixture *self)
{
	/* The simulation looks at the page of the last fault of a vCPU where that was. */
	pin_self_to_cpu(0);
	gmem_allocate_blocks(self->a.fd, 0, BLOCK);
	make_private(self, 0, PAGES);
	running(self);
	large_before = nr_large(self);
}

/* The same, and the guest has filled the block. */
static void with_filled_block(snp_fixture *self)
{
	with_block(self);
	guest_fills(self, 0, PAGES, GMEM_SEED(1));
	large_is(self, 1);
	rmp_is(self, 0, PAGES, LARGE);
}

SNP_TEST(one_fault_and_one_entry)
{
	u64 before;

	pin_self_to_cpu(0);
	gmem_allocate_blocks(self->a.fd, 0, BLOCK);
	gmem_fill(self->a.hva, BLOCK, GMEM_SEED(2), 0);
	with_block(self);
	before = nr_assigned(self->vm);
	rmp_is(self, 0, PAGES, NONE);

	/* RMPUPDATE of any page but the first fails. */
	gmem_inject(self->vm, gpa(self, 3), KVM_GMEM_EMULATE_FAIL_ASSIGN,
		    KVM_GMEM_EMULATE_ERROR_INPUT, 1000);
	gmem_inject(self->vm, gpa(self, 511), KVM_GMEM_EMULATE_FAIL_ASSIGN,
		    KVM_GMEM_EMULATE_ERROR_INPUT, 1000);
	guest_sees_private(self, 3, 1, GMEM_KEYED(GMEM_SEED(2)));
	large_is(self, 1);
	rmp_is(self, 0, PAGES, LARGE);
	rmp_is(self, PAGES, 2, NONE);
	TEST_ASSERT_EQ(nr_assigned(self->vm), before + PAGES);

	/* There are no more faults on it. */
	guest_sees_private(self, 0, PAGES, GMEM_KEYED(GMEM_SEED(2)));
	guest_fills(self, 0, PAGES, GMEM_SEED(1));
	guest_sees_private(self, 0, PAGES, GMEM_SEED(1));
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_blocks_mapped), 1);
	large_is(self, 1);
	gmem_host_assert_refused(self->a.hva, BLOCK);

	/* A failure is one of the frame, which gets another owner. */
	gmem_inject(self->vm, gpa(self, 3), KVM_GMEM_EMULATE_FAIL_ASSIGN,
		    KVM_GMEM_EMULATE_ERROR_INPUT, 0);
	gmem_inject(self->vm, gpa(self, 511), KVM_GMEM_EMULATE_FAIL_ASSIGN,
		    KVM_GMEM_EMULATE_ERROR_INPUT, 0);
}

/* The other pages stay the guest's, with their bytes, and are mapped page by page. */
SNP_TEST(one_page_is_converted)
{
	u64 before = nr_assigned(self->vm);

	with_filled_block(self);
	gmem_convert(self->a.fd, OFF(ODD), PG, GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert(self->a.hva + OFF(ODD), PG, GMEM_KEYED(GMEM_SEED(1)), OFF(ODD));
	assert_rmp(self, ODD, NONE);
	rest_is(self, SMALL);
	large_is(self, 0);
	TEST_ASSERT(vm_get_stat(self->vm, gmem_blocks_split) >= 1, "Nothing was split");
	gmem_host_assert_refused(self->a.hva, OFF(ODD));
	gmem_host_assert_refused(self->a.hva + OFF(ODD + 1), OFF(PAGES - ODD - 1));

	/* The host writes to it, and the guest reads that and keeps the rest. */
	gmem_fill(self->a.hva + OFF(ODD), PG, GMEM_SEED(3), OFF(ODD));
	snp_check(self->vcpus[0], gpa(self, ODD), PG, GMEM_SEED(3), OFF(ODD));
	guest_sees_rest(self, GMEM_SEED(1));
	rest_is(self, SMALL);

	/* Back again, it is given alone: the other entries are there. */
	make_private(self, ODD, 1);
	guest_fills(self, ODD, 1, GMEM_SEED(4));
	guest_sees_rest(self, GMEM_SEED(1));
	guest_sees_private(self, ODD, 1, GMEM_SEED(4));
	rmp_is(self, 0, PAGES, SMALL);
	large_is(self, 0);
	TEST_ASSERT(nr_assigned(self->vm) >= before + PAGES, "Pages are missing");
}

/* A whole block goes to the host and comes back as one. */
SNP_TEST(all_pages_are_converted)
{
	with_filled_block(self);
	gmem_convert(self->a.fd, 0, BLOCK, GMEM_SHARED, GMEM_PRESERVE);
	rmp_is(self, 0, PAGES, NONE);
	large_is(self, 0);
	gmem_host_assert(self->a.hva, BLOCK, GMEM_KEYED(GMEM_SEED(1)), 0);
	gmem_fill(self->a.hva, BLOCK, GMEM_SEED(2), 0);

	make_private(self, 0, PAGES);
	guest_sees_private(self, 0, PAGES, GMEM_KEYED(GMEM_SEED(2)));
	rmp_is(self, 0, PAGES, LARGE);
	large_is(self, 1);
}

SNP_TEST(hole_in_a_block)
{
	with_filled_block(self);
	TEST_ASSERT_EQ(gmem_punch(self->a.fd, OFF(ODD), PG), 0);
	assert_rmp(self, ODD, NONE);
	rest_is(self, SMALL);
	large_is(self, 0);
	gmem_dirty_free_pages();
	guest_sees_rest(self, GMEM_SEED(1));
	guest_fills(self, ODD, 1, GMEM_SEED(2));
	guest_sees_private(self, ODD, 1, GMEM_SEED(2));
	guest_sees_rest(self, GMEM_SEED(1));
	assert_rmp(self, ODD, SMALL);
}

/* The guest ends with blocks that are whole, and with one that is not. */
SNP_TEST(end_of_a_guest)
{
	u64 before = nr_assigned(self->vm);
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct gmem_area a;
	u32 status;

	vm = snp_vm_create(1, NR_PAGES, &vcpu);
	snp_area_create(&a, vm, OFF(NR_PAGES));
	gmem_allocate_blocks(a.fd, 0, a.size);
	gmem_convert(a.fd, 0, a.size, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(snp_start(vm, &status), 0);
	snp_launch(vm, &vcpu, 1);
	snp_fill(vcpu, a.gpa + SNP_PRIVATE, a.size, GMEM_SEED(1), 0);
	TEST_ASSERT(vm_get_stat(vm, pages_2m) >= 2, "Nothing is mapped large");
	gmem_convert(a.fd, OFF(ODD), PG, GMEM_SHARED, GMEM_PRESERVE);
	TEST_ASSERT(nr_assigned(vm) >= before + NR_PAGES - 1, "Pages are missing");
	kvm_munmap(a.hva, a.size);
	kvm_close(a.fd);
	kvm_vm_free(vm);
	TEST_ASSERT_EQ(nr_assigned(self->vm), before);
}

/* A page that the launch has added is there first: the others are given one by one. */
SNP_TEST(block_with_a_launched_page)
{
	u32 status;

	pin_self_to_cpu(0);
	gmem_allocate_blocks(self->a.fd, 0, BLOCK);
	make_private(self, 0, PAGES);
	start(self);
	assert_errno(snp_update(self->vm, KVM_SEV_SNP_PAGE_TYPE_ZERO, gpa(self, ODD), PG, NULL,
				&status), 0);
	finish(self);
	snp_run_ok(self->vcpus[0], snp_resume(self->vcpus[0]));
	large_before = nr_large(self);

	guest_fills(self, ODD - 1, 3, GMEM_SEED(1));
	guest_sees_private(self, ODD - 1, 3, GMEM_SEED(1));
	assert_rmp(self, ODD - 2, NONE);
	assert_rmp(self, ODD - 1, SMALL);
	assert_rmp(self, ODD, KVM_GMEM_EMULATE_STATE_VALIDATED);
	assert_rmp(self, ODD + 1, SMALL);
	assert_rmp(self, ODD + 2, NONE);
	large_is(self, 0);

	/* A page of a block that the guest has is not launched once more. */
	TEST_ASSERT(snp_update(self->vm, KVM_SEV_SNP_PAGE_TYPE_ZERO, gpa(self, ODD), PG, NULL,
			       &status), "Launched again");
}

/* KVM_MAP_MEMORY allocates the block, gives it to the guest, and maps it. */
SNP_TEST(map_memory)
{
	struct kvm_memory_mapping args = {};
	struct kvm_vcpu *vcpu;
	int r;

	gmem_want_blocks();
	make_private(self, 0, PAGES);
	vcpu = running(self);
	large_before = nr_large(self);
	args.base_address = gpa(self, 0);
	args.size = BLOCK;
	do {
		r = gmem_ioctl(vcpu->fd, KVM_MAP_MEMORY, &args);
	} while (r == EAGAIN || r == EINTR || (!r && args.size));
	assert_errno(r, 0);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_blocks_made), 1);
	rmp_is(self, 0, PAGES, LARGE);
	large_is(self, 1);
	guest_fills(self, 0, PAGES, GMEM_SEED(1));
	guest_sees_private(self, 0, PAGES, GMEM_SEED(1));
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_blocks_mapped), 1);
}

/* --- Failures ---------------------------------------------------------------------- */

/* The page of the fault is given alone if all of the block cannot be. */
SNP_TEST(rmpupdate_of_the_block_fails)
{
	with_block(self);
	gmem_inject(self->vm, gpa(self, 0), KVM_GMEM_EMULATE_FAIL_ASSIGN,
		    KVM_GMEM_EMULATE_ERROR_INPUT, 1);
	guest_fills(self, ODD, 1, GMEM_SEED(1));
	assert_rmp(self, ODD, SMALL);
	rest_is(self, NONE);
	large_is(self, 0);
	guest_fills(self, 0, PAGES, GMEM_SEED(2));
	guest_sees_private(self, 0, PAGES, GMEM_SEED(2));
	rmp_is(self, 0, PAGES, SMALL);
}

/* If both fail, nothing has changed. */
SNP_TEST(rmpupdate_of_both_fails)
{
	u64 before;

	with_block(self);
	before = nr_assigned(self->vm);
	gmem_inject(self->vm, gpa(self, 0), KVM_GMEM_EMULATE_FAIL_ASSIGN,
		    KVM_GMEM_EMULATE_ERROR_INPUT, 1);
	gmem_inject(self->vm, gpa(self, ODD), KVM_GMEM_EMULATE_FAIL_ASSIGN,
		    KVM_GMEM_EMULATE_ERROR_INPUT, 1);
	TEST_ASSERT_EQ(__snp_run(self->vcpus[0], SNP_OP_WRITE, private_gva(self, ODD), 1, 0, 0, 7),
		       -EIO);
	rmp_is(self, 0, PAGES, NONE);
	TEST_ASSERT_EQ(nr_assigned(self->vm), before);
	snp_run_ok(self->vcpus[0], snp_resume(self->vcpus[0]));
	rmp_is(self, 0, PAGES, LARGE);
	large_is(self, 1);
}

/* An entry that another CPU is changing is split a moment later. */
SNP_TEST(psmash_of_an_entry_in_use)
{
	with_filled_block(self);
	gmem_inject(self->vm, gpa(self, 0), KVM_GMEM_EMULATE_FAIL_SMASH,
		    KVM_GMEM_EMULATE_ERROR_IN_USE, 3);
	gmem_convert(self->a.fd, OFF(ODD), PG, GMEM_SHARED, GMEM_PRESERVE);
	assert_rmp(self, ODD, NONE);
	rest_is(self, SMALL);
	guest_sees_rest(self, GMEM_SEED(1));
}

/* If it cannot be split, the page is lost with the VM. The others go back to the host. */
SNP_TEST(psmash_fails_to_convert)
{
	u64 before = nr_assigned(self->vm), eo;

	with_filled_block(self);
	gmem_inject(self->vm, gpa(self, 0), KVM_GMEM_EMULATE_FAIL_SMASH,
		    KVM_GMEM_EMULATE_ERROR_PERMISSION, 1);
	assert_errno(gmem_set(self->a.fd, OFF(ODD), OFF(2), GMEM_SHARED, GMEM_PRESERVE, &eo), EIO);
	TEST_ASSERT_EQ(eo, OFF(ODD));
	gmem_host_assert_refused(self->a.hva, BLOCK);
	assert_lost(self, before, 1);
}

/*
 * A page in a hole that cannot be split off is not freed; the guest keeps the others. They
 * are mapped page by page without a fault, so the simulation does not see their entry's size.
 */
SNP_TEST(psmash_fails_to_free)
{
	with_filled_block(self);
	gmem_inject(self->vm, gpa(self, 0), KVM_GMEM_EMULATE_FAIL_SMASH,
		    KVM_GMEM_EMULATE_ERROR_PERMISSION, 1);
	TEST_ASSERT_EQ(gmem_punch(self->a.fd, OFF(ODD), PG), 0);
	assert_rmp(self, ODD, NONE);
	rest_is(self, LARGE);
	gmem_dirty_free_pages();
	guest_sees_rest(self, GMEM_SEED(1));
	guest_fills(self, ODD, 1, GMEM_SEED(2));
	assert_rmp(self, ODD, SMALL);
	guest_sees_rest(self, GMEM_SEED(1));
	/* A second hole splits it. */
	TEST_ASSERT_EQ(gmem_punch(self->a.fd, OFF(ODD + 1), PG), 0);
	assert_rmp(self, ODD + 1, NONE);
	rmp_is(self, ODD + 2, PAGES - ODD - 2, SMALL);
	guest_sees_private(self, ODD + 2, PAGES - ODD - 2, GMEM_SEED(1));
}

/* --- Memory that fails or moves ------------------------------------------------------ */

/*
 * The guest loses the page, and keeps the others: mapped page by page, they have entries of
 * another size until the guest's access faults and KVM splits the entry.
 */
SNP_TEST(page_of_a_block_fails)
{
	u64 frame;
	int r;

	if (!can_poison_pfn())
		SKIP(return, "needs MEMORY_FAILURE and HWPOISON_INJECT");
	gmem_allocate_blocks(self->a.fd, 0, BLOCK);
	gmem_fill(self->a.hva + OFF(ODD), PG, GMEM_SEED(1), 0);
	frame = gmem_frame_of(self->a.hva + OFF(ODD));
	TEST_ASSERT(frame, "No frame number");
	with_filled_block(self);

	r = poison_pfn(frame);
	TEST_ASSERT(!r, "corrupt-pfn: errno %d", r);
	large_is(self, 0);
	rmp_is(self, 0, PAGES, LARGE);
	guest_sees_rest(self, GMEM_SEED(1));
	rmp_is(self, 0, PAGES, SMALL);
	large_is(self, 0);
	r = __snp_run(self->vcpus[0], SNP_OP_READ, private_gva(self, ODD), 1, 0, 0, 0);
	TEST_ASSERT_EQ(r, -EHWPOISON);
}

#define SOFT_OFFLINE	"/sys/devices/system/memory/soft_offline_page"
#define NEEDS_MOVES	"needs simulated SNP, " SOFT_OFFLINE " and HWPOISON_INJECT"

/* Firmware moves pages that have an entry of their own. */
static void check_moved_page(bool fails)
{
	snp_fixture snp = {}, *self = &snp;
	u64 frame, moved;
	int r;

	self->vm = snp_vm_create(ARRAY_SIZE(self->vcpus), NR_PAGES, self->vcpus);
	snp_area_create_with(&self->a, self->vm, OFF(NR_PAGES), GMEM_MOVABLE);
	gmem_allocate_blocks(self->a.fd, 0, BLOCK);
	gmem_fill(self->a.hva + OFF(ODD), PG, GMEM_SEED(1), 0);
	frame = gmem_frame_of(self->a.hva + OFF(ODD));
	TEST_ASSERT(frame, "No frame number");
	with_filled_block(self);

	moved = migrated(self);
	if (fails)
		gmem_inject(self->vm, gpa(self, 0), KVM_GMEM_EMULATE_FAIL_SMASH,
			    KVM_GMEM_EMULATE_ERROR_PERMISSION, 1000);
	r = hz_write_file(SOFT_OFFLINE, "%#lx", frame * PG);
	TEST_ASSERT_EQ(!r, !fails);
	TEST_ASSERT_EQ(migrated(self), moved + !fails);
	TEST_ASSERT_EQ(has_flag(frame, KPF_HWPOISON), !fails);
	if (!fails) {
		r = hz_write_file(DEBUGFS "/hwpoison/unpoison-pfn", "%#lx", frame);
		TEST_ASSERT(!r, "unpoison-pfn: errno %d", r);
	}
	gmem_dirty_free_pages();
	rmp_is(self, 0, PAGES, fails ? LARGE : SMALL);
	guest_sees_private(self, 0, PAGES, GMEM_SEED(1));
	rmp_is(self, 0, PAGES, fails ? LARGE : SMALL);
	large_is(self, fails);
	gmem_inject(self->vm, gpa(self, 0), KVM_GMEM_EMULATE_FAIL_SMASH,
		    KVM_GMEM_EMULATE_ERROR_PERMISSION, 0);

	gmem_convert(self->a.fd, 0, BLOCK, GMEM_SHARED, GMEM_PRESERVE);
	rmp_is(self, 0, PAGES, NONE);
	gmem_host_assert(self->a.hva, BLOCK, GMEM_KEYED(GMEM_SEED(1)), 0);
	TEST_ASSERT_EQ(gmem_frame_of(self->a.hva + OFF(ODD)) == frame, fails);
	kvm_munmap(self->a.hva, self->a.size);
	kvm_close(self->a.fd);
	kvm_vm_free(self->vm);
}

static bool snp_moves(void)
{
	return snp_is_simulated() && !access(SOFT_OFFLINE, W_OK) && can_poison_pfn();
}

HAZARD(page_moves_out_of_a_block)
{
	HZ_REQUIRE(snp_moves(), NEEDS_MOVES);
	check_moved_page(false);
}

HAZARD(psmash_fails_to_move)
{
	HZ_REQUIRE(snp_moves(), NEEDS_MOVES);
	check_moved_page(true);
}

TEST_HARNESS_MAIN
