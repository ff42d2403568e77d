// SPDX-License-Identifier: GPL-2.0
/*
 * The statistics of conversions, read through KVM's binary interface after operations
 * with known numbers.
 */
#include <sys/uio.h>

#include "gmem_test.h"
#include "kvm_test_harness.h"

#define NPAGES	16
#define PS	((u64)PAGE_SIZE)

/* All but the time, in the order of struct kvm_vm_stat_generic. */
struct stats {
	/* NONE, ZERO, PRESERVE */
	u64 to_private[3], to_shared[3], pages_to_private[3], pages_to_shared[3];
	u64 zeroed, busy, unsupported;
};

static struct stats read_stats(struct kvm_vm *vm)
{
	return (struct stats){
		.to_private = {
			vm_get_stat(vm, gmem_to_private_none),
			vm_get_stat(vm, gmem_to_private_zero),
			vm_get_stat(vm, gmem_to_private_preserve),
		},
		.to_shared = {
			vm_get_stat(vm, gmem_to_shared_none),
			vm_get_stat(vm, gmem_to_shared_zero),
			vm_get_stat(vm, gmem_to_shared_preserve),
		},
		.pages_to_private = {
			vm_get_stat(vm, gmem_pages_to_private_none),
			vm_get_stat(vm, gmem_pages_to_private_zero),
			vm_get_stat(vm, gmem_pages_to_private_preserve),
		},
		.pages_to_shared = {
			vm_get_stat(vm, gmem_pages_to_shared_none),
			vm_get_stat(vm, gmem_pages_to_shared_zero),
			vm_get_stat(vm, gmem_pages_to_shared_preserve),
		},
		.zeroed = vm_get_stat(vm, gmem_zeroed_bytes),
		.busy = vm_get_stat(vm, gmem_busy),
		.unsupported = vm_get_stat(vm, gmem_unsupported),
	};
}

static void expect_stats(struct kvm_vm *vm, const struct stats *want)
{
	const struct stats got = read_stats(vm);
	const u64 *g = (const u64 *)&got, *w = (const u64 *)want;
	int i;

	for (i = 0; i < (int)(sizeof(got) / sizeof(*g)); i++)
		TEST_ASSERT(g[i] == w[i], "Number %d is %lu, wanted %lu", i, g[i], w[i]);
}

static struct kvm_vm *create_vm(void)
{
	return vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
}

TEST(conversions_are_counted)
{
	struct kvm_vm *vm = create_vm(), *other = create_vm();
	int fd = vm_create_guest_memfd(vm, NPAGES * PS, GMEM_MMAP_SHARED);
	u8 *mem = kvm_mmap(NPAGES * PS, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	struct iovec iov = { mem + PS, PS };
	struct stats want = {};
	int ends[2];

	expect_stats(vm, &want);
	gmem_fill(mem, 4 * PS, GMEM_SEED(1), 0);

	/* Pages that change, pages that are written. */
	gmem_convert(fd, 0, 6 * PS, GMEM_PRIVATE, GMEM_ZERO);
	want.to_private[1] = 1;
	want.pages_to_private[1] = 6;
	want.zeroed = 4 * PS;
	gmem_convert(fd, 2 * PS, 8 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	want.to_private[2] = 1;
	want.pages_to_private[2] = 4;
	expect_stats(vm, &want);

	/* A request that finds nothing to do counts as a request. */
	gmem_convert(fd, 0, 6 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	want.to_private[2]++;
	gmem_convert(fd, 0, 5 * PS, GMEM_SHARED, GMEM_NONE);
	want.to_shared[0] = 1;
	want.pages_to_shared[0] = 5;
	/* Settled, and zeroed. */
	gmem_convert(fd, 0, 2 * PS, GMEM_SHARED, GMEM_ZERO);
	want.to_shared[1] = 1;
	want.zeroed += 2 * PS;
	gmem_convert(fd, 0, NPAGES * PS, GMEM_SHARED, GMEM_PRESERVE);
	want.to_shared[2] = 1;
	want.pages_to_shared[2] = 5;
	expect_stats(vm, &want);

	/* Requests that fail. */
	TEST_ASSERT(!pipe(ends), "pipe: %d", errno);
	TEST_ASSERT_EQ(vmsplice(ends[1], &iov, 1, 0), PS);
	TEST_ASSERT_EQ(gmem_set_once(fd, 0, 4 * PS, GMEM_PRIVATE, GMEM_ZERO, NULL), EAGAIN);
	want.busy = 1;
	close(ends[0]);
	close(ends[1]);
	TEST_ASSERT_EQ(gmem_set_once(fd, 1, 4 * PS, GMEM_PRIVATE, GMEM_ZERO, NULL), EINVAL);
	expect_stats(vm, &want);

	TEST_ASSERT(vm_get_stat(vm, gmem_locked_max_ns), "Converted in no time");
	/* Each VM has its own. */
	expect_stats(other, &(struct stats){});
	TEST_ASSERT_EQ(vm_get_stat(other, gmem_locked_max_ns), 0);

	kvm_munmap(mem, NPAGES * PS);
	kvm_close(fd);
	kvm_vm_free(vm);
	kvm_vm_free(other);
}

TEST(what_a_platform_cannot_do_is_counted)
{
	const gpa_t gpa = GMEM_GPA;
	struct stats want = {};
	struct kvm_vcpu *vcpu;
	struct gmem_area a;
	struct kvm_vm *vm;

	if (!gmem_emulates(KVM_GMEM_EMULATE_SNP))
		SKIP(return, GMEM_NO_EMULATION);
	vm = gmem_vm_create_emulated(KVM_GMEM_EMULATE_SNP, 0, 1, NPAGES, &vcpu);
	gmem_area_create(&a, vm, GMEM_SLOT, gpa, NPAGES * PS, GMEM_MMAP_SHARED);
	gmem_convert(a.fd, 0, 4 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	want.to_private[2] = 1;
	want.pages_to_private[2] = 4;
	TEST_ASSERT(!gmem_launch_update(vm, KVM_GMEM_EMULATE_PAGE_NORMAL, gpa, PS, NULL, NULL),
		    "LAUNCH_UPDATE failed");
	expect_stats(vm, &want);

	/* The host cannot write the page that the guest has. */
	TEST_ASSERT_EQ(gmem_set_once(a.fd, 0, 2 * PS, GMEM_PRIVATE, GMEM_ZERO, NULL), EOPNOTSUPP);
	want.unsupported = 1;
	expect_stats(vm, &want);
	gmem_convert(a.fd, PS, PS, GMEM_PRIVATE, GMEM_ZERO);
	want.to_private[1] = 1;
	expect_stats(vm, &want);

	gmem_area_destroy(&a);
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(gmem_vm_type_supported());
	return test_harness_run(argc, argv);
}
