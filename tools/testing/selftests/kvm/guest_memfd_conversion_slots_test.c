// SPDX-License-Identifier: GPL-2.0
/*
 * In-place conversion of guest_memfd memory on SW_PROTECTED VMs: who decides
 * what is private when files, memslots and VMs of both kinds are around, and
 * how a guest's accesses exit.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <linux/sizes.h>

#include <sys/mman.h>

#include "gmem_conversion.h"

/* --- The flags of a file ------------------------------------------------ */

GMEM_TEST(init_shared_without_mmap)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	const gpa_t gpa = GMEM_GPA + SZ_1M;
	const u64 size = 4 * PS;
	struct gmem_area a = {
		.vm = self->vm, .slot = GMEM_SLOT + 1, .gpa = gpa, .size = size,
	};
	u8 *decoy;

	a.fd = vm_create_guest_memfd(self->vm, size, GUEST_MEMFD_FLAG_INIT_SHARED);
	TEST_ASSERT(mmap(NULL, size, PROT_READ, MAP_SHARED, a.fd, 0) == MAP_FAILED &&
		    errno == ENODEV, "mmap() without the flag");
	gmem_assert_attributes(a.fd, 0, size, GMEM_SHARED);

	/*
	 * The slot is guest_memfd-only as well: the guest does not use the memory at
	 * userspace_addr.
	 */
	decoy = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1);
	gmem_fill(decoy, size, GMEM_SEED(13), 0);
	a.hva = decoy;
	gmem_area_bind(&a);
	gmem_area_virt_map(&a);

	gmem_guest_start(vcpu);
	gmem_guest_assert(vcpu, gpa, size, GMEM_ZEROES, 0);
	gmem_guest_fill(vcpu, gpa, size, GMEM_SEED(14), 0);
	gmem_host_assert(decoy, size, GMEM_SEED(13), 0);

	gmem_convert(a.fd, PS, 2 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_guest_assert(vcpu, gpa, size, GMEM_SEED(14), 0);
	gmem_convert(a.fd, 2 * PS, 2 * PS, GMEM_PRIVATE, GMEM_ZERO);
	gmem_guest_assert(vcpu, gpa, 2 * PS, GMEM_SEED(14), 0);
	gmem_guest_assert(vcpu, gpa + 2 * PS, 2 * PS, GMEM_ZEROES, 0);
	gmem_convert(a.fd, 0, size, GMEM_SHARED, GMEM_NONE);
	if (gmem_scrambles())
		gmem_guest_assert(vcpu, gpa, size, GMEM_SCRAMBLED, 0);
	gmem_host_assert(decoy, size, GMEM_SEED(13), 0);

	gmem_area_unbind(&a);
	kvm_munmap(decoy, size);
	kvm_close(a.fd);
}

GMEM_TEST(mmap_without_init_shared)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct gmem_area a;

	gmem_area_create(&a, self->vm, GMEM_SLOT + 1, GMEM_GPA + SZ_1M, 4 * PS,
			 GUEST_MEMFD_FLAG_MMAP);
	gmem_assert_attributes(a.fd, 0, a.size, GMEM_PRIVATE);
	gmem_host_assert_refused(a.hva, a.size);

	gmem_guest_start(vcpu);
	gmem_guest_assert(vcpu, a.gpa, 2 * PS, GMEM_ZEROES, 0);
	gmem_guest_fill(vcpu, a.gpa, 2 * PS, GMEM_SEED(15), 0);
	gmem_host_assert_refused(a.hva, a.size);

	gmem_convert(a.fd, PS, 2 * PS, GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert_refused(a.hva, PS);
	gmem_host_assert(a.hva + PS, PS, GMEM_SEED(15), PS);
	gmem_host_assert(a.hva + 2 * PS, PS, GMEM_ZEROES, 0);
	gmem_host_assert_refused(a.hva + 3 * PS, PS);
	gmem_area_destroy(&a);
}

/* --- Files and slots ---------------------------------------------------- */

GMEM_TEST(two_files_in_one_vm)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct gmem_area *a = &self->a, b;

	gmem_area_create(&b, self->vm, GMEM_SLOT + 1, GMEM_GPA + a->size,
			 a->size, GMEM_MMAP_SHARED);
	fill_area(a, GMEM_SEED(16));
	fill_area(&b, GMEM_SEED(17));
	gmem_guest_start(vcpu);

	gmem_convert(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_assert_attributes(b.fd, 0, b.size, GMEM_SHARED);
	gmem_host_assert_refused(a->hva, a->size);
	gmem_host_assert(b.hva, b.size, GMEM_SEED(17), 0);

	gmem_convert(b.fd, 0, b.size, GMEM_PRIVATE, GMEM_ZERO);
	gmem_convert(a->fd, 0, a->size, GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert_refused(b.hva, b.size);
	gmem_host_assert(a->hva, a->size, GMEM_SEED(16), 0);
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(16), 0);
	gmem_guest_assert(vcpu, b.gpa, b.size, GMEM_ZEROES, 0);
	gmem_area_destroy(&b);
}

/*
 * The second slot starts in the middle of the file and below the first in
 * guest physical memory, so no offset is right by accident.
 */
GMEM_TEST(two_slots_on_one_file)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	const u64 size = 8 * PS, split = 3 * PS;
	struct gmem_area low = {
		.vm = self->vm, .slot = GMEM_SLOT + 1, .gpa = GMEM_GPA + SZ_2M,
		.size = split,
	};
	struct gmem_area high = {
		.vm = self->vm, .slot = GMEM_SLOT + 2, .gpa = GMEM_GPA + SZ_1M,
		.size = size - split, .file_offset = split,
	};
	struct gmem_area overlap;
	u8 *mem;
	int fd;

	fd = vm_create_guest_memfd(self->vm, size, GMEM_MMAP_SHARED);
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	low.fd = fd;
	high.fd = fd;
	low.hva = mem;
	high.hva = mem + split;
	gmem_area_bind(&low);
	gmem_area_bind(&high);
	gmem_area_virt_map(&low);
	gmem_area_virt_map(&high);

	overlap = high;
	overlap.slot = GMEM_SLOT + 3;
	overlap.gpa = GMEM_GPA + SZ_4M;
	TEST_ASSERT_EQ(__gmem_area_set_slot(&overlap, overlap.size), EEXIST);

	gmem_guest_start(vcpu);
	gmem_fill(mem, size, GMEM_SEED(18), 0);
	gmem_guest_assert(vcpu, low.gpa, low.size, GMEM_SEED(18), 0);
	gmem_guest_assert(vcpu, high.gpa, high.size, GMEM_SEED(18), split);

	/* Across both: two pages of each. */
	gmem_convert(fd, split - 2 * PS, 4 * PS, GMEM_PRIVATE, GMEM_ZERO);
	gmem_guest_assert(vcpu, low.gpa, PS, GMEM_SEED(18), 0);
	gmem_guest_assert(vcpu, low.gpa + PS, 2 * PS, GMEM_ZEROES, 0);
	gmem_guest_assert(vcpu, high.gpa, 2 * PS, GMEM_ZEROES, 0);
	gmem_guest_assert(vcpu, high.gpa + 2 * PS, high.size - 2 * PS,
			  GMEM_SEED(18), split + 2 * PS);
	gmem_host_assert_refused(mem + split - 2 * PS, 4 * PS);

	/* The guest's private writes through either slot read back. */
	gmem_guest_fill(vcpu, low.gpa, low.size, GMEM_SEED(19), 0);
	gmem_guest_fill(vcpu, high.gpa, high.size, GMEM_SEED(19), split);
	gmem_convert(fd, 0, size, GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert(mem, size, GMEM_SEED(19), 0);

	gmem_area_unbind(&low);
	gmem_area_unbind(&high);
	kvm_munmap(mem, size);
	kvm_close(fd);
}

/* Slots show two windows of the file; the rest of the file converts as well. */
GMEM_TEST(unbound_parts_of_a_file_convert_too)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	const u64 size = NR_PAGES * PS;
	struct gmem_area w[2] = {
		{ .vm = self->vm, .slot = GMEM_SLOT + 1, .gpa = GMEM_GPA + SZ_1M,
		  .size = 4 * PS, .file_offset = 3 * PS },
		{ .vm = self->vm, .slot = GMEM_SLOT + 2, .gpa = GMEM_GPA + SZ_2M,
		  .size = 2 * PS, .file_offset = 12 * PS },
	};
	u64 policy;
	u8 *mem;
	int fd, i;

	fd = vm_create_guest_memfd(self->vm, size, GMEM_MMAP_SHARED);
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	for (i = 0; i < 2; i++) {
		w[i].fd = fd;
		w[i].hva = mem + w[i].file_offset;
		gmem_area_bind(&w[i]);
		gmem_area_virt_map(&w[i]);
	}

	gmem_guest_start(vcpu);
	for (policy = GMEM_ZERO; policy <= GMEM_PRESERVE; policy++) {
		u32 after = policy == GMEM_ZERO ? GMEM_ZEROES : GMEM_SEED(90);

		gmem_fill(mem, size, GMEM_SEED(90), 0);
		for (i = 0; i < 2; i++)
			gmem_guest_assert(vcpu, w[i].gpa, w[i].size,
					  GMEM_SEED(90), w[i].file_offset);

		/* From before the first window into the second one. */
		gmem_convert(fd, PS, 12 * PS, GMEM_PRIVATE, policy);
		gmem_host_assert(mem, PS, GMEM_SEED(90), 0);
		gmem_host_assert_refused(mem + PS, 12 * PS);
		gmem_host_assert(mem + 13 * PS, 3 * PS, GMEM_SEED(90), 13 * PS);
		gmem_guest_assert(vcpu, w[0].gpa, w[0].size, after,
				  w[0].file_offset);
		gmem_guest_assert(vcpu, w[1].gpa, PS, after, 12 * PS);
		gmem_guest_assert(vcpu, w[1].gpa + PS, PS, GMEM_SEED(90), 13 * PS);

		gmem_convert(fd, 0, size, GMEM_SHARED, GMEM_PRESERVE);
		gmem_host_assert(mem + PS, 12 * PS, after, PS);
	}

	for (i = 0; i < 2; i++)
		gmem_area_unbind(&w[i]);
	kvm_munmap(mem, size);
	kvm_close(fd);
}

/* Mappings that start elsewhere in the file lose exactly the same pages. */
GMEM_TEST(every_mapping_of_the_file_loses_the_range)
{
	struct gmem_area *a = &self->a;
	u8 *tail, *head, byte;
	int i;

	tail = __kvm_mmap(10 * PS, PROT_READ | PROT_WRITE, MAP_SHARED, a->fd, 6 * PS);
	head = kvm_mmap(7 * PS, PROT_READ, MAP_SHARED, a->fd);
	fill_area(a, GMEM_SEED(91));
	gmem_host_assert(tail, 10 * PS, GMEM_SEED(91), 6 * PS);
	gmem_host_assert(head, 7 * PS, GMEM_SEED(91), 0);

	gmem_convert(a->fd, 5 * PS, 4 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	for (i = 0; i < NR_PAGES; i++) {
		bool private = i >= 5 && i < 9;

		TEST_ASSERT(gmem_host_read(a->hva + i * PS, &byte) == !private,
			    "Page %d in the mapping of all", i);
		if (i >= 6)
			TEST_ASSERT(gmem_host_write(tail + (i - 6) * PS,
						    gmem_pattern_byte(GMEM_SEED(91), i * PS)) == !private,
				    "Page %d in the mapping of the tail", i);
		if (i < 7)
			TEST_ASSERT(gmem_host_read(head + i * PS, &byte) == !private,
				    "Page %d in the mapping of the head", i);
	}

	gmem_convert(a->fd, 0, a->size, GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert(tail, 10 * PS, GMEM_SEED(91), 6 * PS);
	gmem_host_assert(head, 7 * PS, GMEM_SEED(91), 0);
	kvm_munmap(tail, 10 * PS);
	kvm_munmap(head, 7 * PS);
}

GMEM_TEST(state_survives_deletion_of_the_slot)
{
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;
	const u64 half = a->size / 2;
	int i;

	gmem_guest_start(vcpu);
	fill_area(a, GMEM_SEED(20));
	gmem_convert(a->fd, 0, half, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(20), 0);

	/* At the same address, then at another one. */
	for (i = 0; i < 2; i++) {
		gmem_area_unbind(a);
		gmem_assert_attributes(a->fd, 0, half, GMEM_PRIVATE);
		gmem_assert_attributes(a->fd, half, half, GMEM_SHARED);
		gmem_host_assert_refused(a->hva, half);
		gmem_host_assert(a->hva + half, half, GMEM_SEED(20), half);
		if (i) {
			a->gpa += SZ_1M;
			gmem_area_virt_map(a);
		}
		gmem_area_bind(a);
		gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(20), 0);
		gmem_host_assert_refused(a->hva, half);
	}

	/* Converting while no slot is there counts too. */
	gmem_area_unbind(a);
	gmem_convert(a->fd, 0, PS, GMEM_SHARED, GMEM_PRESERVE);
	gmem_convert(a->fd, a->size - PS, PS, GMEM_PRIVATE, GMEM_ZERO);
	gmem_area_bind(a);
	gmem_host_assert(a->hva, PS, GMEM_SEED(20), 0);
	gmem_guest_assert(vcpu, a->gpa, a->size - PS, GMEM_SEED(20), 0);
	gmem_guest_assert(vcpu, a->gpa + a->size - PS, PS, GMEM_ZEROES, 0);
	gmem_host_assert_refused(a->hva + a->size - PS, PS);
}

static int vm_attributes(struct kvm_vm *vm, gpa_t gpa, u64 size, u64 attributes)
{
	struct kvm_memory_attributes attrs = {
		.address = gpa, .size = size, .attributes = attributes,
	};

	return __vm_ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs) ? errno : 0;
}

GMEM_TEST(without_a_slot_the_vm_decides)
{
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_run *run = vcpu->run;
	int r;

	if (host_wide_mode())
		SKIP(return, "kvm.gmem_in_place_conversion=Y: the VM's attributes never decide");

	gmem_guest_start(vcpu);
	fill_area(a, GMEM_SEED(21));
	gmem_convert(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(21), 0);
	gmem_area_unbind(a);

	/* Shared, whatever the deleted slot's file says: plain MMIO. */
	r = __gmem_guest_do(vcpu, GMEM_OP_READ, a->gpa, 1, 0, 0, 0);
	TEST_ASSERT_EQ(r, KVM_EXIT_MMIO);
	TEST_ASSERT_EQ(run->mmio.phys_addr, a->gpa);
	run->mmio.data[0] = 0x42;
	r = gmem_guest_resume(vcpu);
	gmem_guest_ok(vcpu, r);
	TEST_ASSERT_EQ(gmem_cmd_of(vcpu)->value, 0x42);

	/*
	 * Private because the VM's attributes say so. Another page: KVM has
	 * noted that the first one is MMIO.
	 */
	TEST_ASSERT_EQ(vm_attributes(self->vm, a->gpa + PS, PS, GMEM_PRIVATE), 0);
	r = __gmem_guest_do(vcpu, GMEM_OP_READ, a->gpa + PS, 1, 0, 0, 0);
	TEST_ASSERT_EQ(r, -EFAULT);
	TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(run->memory_fault.gpa, a->gpa + PS);
	TEST_ASSERT_EQ(run->memory_fault.flags, KVM_MEMORY_EXIT_FLAG_PRIVATE);

	/* An in-place slot ends that; the interrupted read continues. */
	gmem_area_bind(a);
	r = gmem_guest_resume(vcpu);
	gmem_guest_ok(vcpu, r);
	TEST_ASSERT_EQ(gmem_cmd_of(vcpu)->value,
		       gmem_pattern_byte(GMEM_SEED(21), PS));
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(21), 0);
}

GMEM_TEST(attributes_stored_before_the_slot_are_ignored)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct gmem_area b;

	if (host_wide_mode())
		SKIP(return, "kvm.gmem_in_place_conversion=Y: none can be stored");

	TEST_ASSERT_EQ(vm_attributes(self->vm, GMEM_GPA + SZ_1M, 4 * PS,
				     GMEM_PRIVATE), 0);
	gmem_area_create(&b, self->vm, GMEM_SLOT + 1, GMEM_GPA + SZ_1M, 4 * PS,
			 GMEM_MMAP_SHARED);
	gmem_fill(b.hva, b.size, GMEM_SEED(22), 0);
	gmem_assert_attributes(b.fd, 0, b.size, GMEM_SHARED);

	gmem_guest_start(vcpu);
	gmem_guest_assert(vcpu, b.gpa, b.size, GMEM_SEED(22), 0);
	gmem_guest_fill(vcpu, b.gpa, b.size, GMEM_SEED(23), 0);
	gmem_host_assert(b.hva, b.size, GMEM_SEED(23), 0);

	gmem_convert(b.fd, 0, PS, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_guest_assert(vcpu, b.gpa, b.size, GMEM_SEED(23), 0);
	gmem_area_destroy(&b);
}

GMEM_TEST(vm_ioctl_refuses_private_over_in_place_slots)
{
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;
	const gpa_t plain = a->gpa + a->size;
	const struct {
		gpa_t gpa;
		u64 size;
	} touching[] = {
		{ a->gpa, a->size },
		{ a->gpa, PS },
		{ a->gpa + a->size - PS, PS },
		{ a->gpa - PS, 2 * PS },
		{ a->gpa + a->size - PS, 2 * PS },
		{ a->gpa - SZ_1G, SZ_2G },
	};
	u64 mapped;
	int i;

	/* An ordinary slot right behind it, to check that the ioctl did not change it. */
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS, plain,
				    GMEM_SLOT + 1, 2, 0);
	virt_map(self->vm, plain, plain, 2);

	gmem_guest_start(vcpu);
	fill_area(a, GMEM_SEED(24));
	gmem_convert(a->fd, 4 * PS, 4 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(24), 0);
	gmem_guest_fill(vcpu, plain, 2 * PS, GMEM_SEED(25), 0);
	mapped = vm_get_stat(self->vm, pages_4k);

	for (i = 0; i < ARRAY_SIZE(touching); i++) {
		TEST_ASSERT_EQ(vm_attributes(self->vm, touching[i].gpa,
					     touching[i].size, GMEM_PRIVATE),
			       EINVAL);
		TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_4k), mapped);
	}
	gmem_assert_attributes(a->fd, 0, 4 * PS, GMEM_SHARED);
	gmem_assert_attributes(a->fd, 4 * PS, 4 * PS, GMEM_PRIVATE);
	gmem_assert_attributes(a->fd, 8 * PS, 8 * PS, GMEM_SHARED);

	/* A private gfn of an ordinary slot would end in an exit. */
	gmem_guest_assert(vcpu, plain, 2 * PS, GMEM_SEED(25), 0);
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(24), 0);

	/* For other slots the ioctl works as before. */
	if (!host_wide_mode()) {
		TEST_ASSERT_EQ(vm_attributes(self->vm, a->gpa - PS, PS,
					     GMEM_PRIVATE), 0);
		TEST_ASSERT_EQ(vm_attributes(self->vm, a->gpa - PS, PS,
					     GMEM_SHARED), 0);
	}
}

/*
 * On other platforms a zapped private page is a lost one, so count what the
 * guest has mapped: contents alone would not show it here.
 */
GMEM_TEST(vm_ioctl_to_shared_leaves_in_place_slots_alone)
{
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;
	u64 mapped;

	gmem_guest_start(vcpu);
	fill_area(a, GMEM_SEED(26));
	gmem_convert(a->fd, 4 * PS, 8 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(26), 0);
	mapped = vm_get_stat(self->vm, pages_4k);
	TEST_ASSERT(mapped >= NR_PAGES, "Only %lu pages are mapped", mapped);

	TEST_ASSERT_EQ(vm_attributes(self->vm, a->gpa, a->size, 0), 0);
	TEST_ASSERT_EQ(vm_attributes(self->vm, a->gpa - SZ_1M, SZ_2M, 0), 0);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_4k), mapped);

	gmem_assert_attributes(a->fd, 4 * PS, 8 * PS, GMEM_PRIVATE);
	gmem_host_assert_refused(a->hva + 4 * PS, 8 * PS);
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(26), 0);
}

/* Only the kind of mapping that goes away is taken from the guest. */
GMEM_TEST(conversion_of_a_mixed_range_keeps_the_other_mappings)
{
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;
	u64 mapped;

	gmem_guest_start(vcpu);
	fill_area(a, GMEM_SEED(27));
	gmem_convert(a->fd, 0, 10 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(27), 0);
	mapped = vm_get_stat(self->vm, pages_4k);

	/* 6 shared pages go, 10 private ones stay. */
	gmem_convert(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_4k), mapped - 6);
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(27), 0);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_4k), mapped);

	/* And in the other direction. */
	gmem_convert(a->fd, 0, 12 * PS, GMEM_SHARED, GMEM_PRESERVE);
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(27), 0);
	gmem_convert(a->fd, 0, a->size, GMEM_SHARED, GMEM_PRESERVE);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_4k), mapped - 4);

	/* No attribute changes and the policy has no work: nothing is touched. */
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(27), 0);
	gmem_convert(a->fd, 0, a->size, GMEM_SHARED, GMEM_PRESERVE);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_4k), mapped);
}

/*
 * With kvm.gmem_in_place_conversion=Y a file needs no flags to convert, and only the
 * file decides.
 */
GMEM_TEST(host_wide_mode_has_files_only)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	const u64 size = 4 * PS;
	struct gmem_area b = {
		.vm = self->vm, .slot = GMEM_SLOT + 1, .gpa = GMEM_GPA + SZ_1M,
		.size = size,
	};
	u8 *decoy;
	int r;

	if (!host_wide_mode())
		SKIP(return, "kvm.gmem_in_place_conversion=N");

	decoy = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1);
	gmem_fill(decoy, size, GMEM_SEED(80), 0);
	b.fd = vm_create_guest_memfd(self->vm, size, 0);
	b.hva = decoy;
	gmem_assert_attributes(b.fd, 0, size, GMEM_PRIVATE);
	gmem_area_bind(&b);
	gmem_area_virt_map(&b);

	gmem_guest_start(vcpu);
	gmem_guest_fill(vcpu, b.gpa, size, GMEM_SEED(81), 0);
	gmem_convert(b.fd, PS, PS, GMEM_SHARED, GMEM_PRESERVE);
	gmem_convert(b.fd, 2 * PS, PS, GMEM_SHARED, GMEM_ZERO);
	gmem_guest_assert(vcpu, b.gpa, 2 * PS, GMEM_SEED(81), 0);
	gmem_guest_assert(vcpu, b.gpa + 2 * PS, PS, GMEM_ZEROES, 0);
	gmem_guest_assert(vcpu, b.gpa + 3 * PS, PS, GMEM_SEED(81), 3 * PS);
	gmem_host_assert(decoy, size, GMEM_SEED(80), 0);

	/* Neither over a slot nor where there is no slot. */
	TEST_ASSERT_EQ(vm_attributes(self->vm, b.gpa, PS, GMEM_PRIVATE), EINVAL);
	TEST_ASSERT_EQ(vm_attributes(self->vm, b.gpa + SZ_1M, PS, GMEM_PRIVATE),
		       EINVAL);
	gmem_area_unbind(&b);
	r = __gmem_guest_do(vcpu, GMEM_OP_READ, b.gpa, 1, 0, 0, 0);
	TEST_ASSERT_EQ(r, KVM_EXIT_MMIO);

	kvm_munmap(decoy, size);
	kvm_close(b.fd);
}

/* --- VMs of both kinds at once ------------------------------------------ */

#define BOTH_ROUNDS 40

struct old_style {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	gpa_t gpa;
	u64 size;
};

/*
 * Two backings: the guest's private bytes and the host's shared ones are in
 * different places and both survive the switch.
 */
static void *run_old_style(void *arg)
{
	struct old_style *o = arg;
	u8 *hva = addr_gpa2hva(o->vm, o->gpa);
	int i;

	for (i = 0; i < BOTH_ROUNDS; i++) {
		gmem_fill(hva, o->size, GMEM_SEED(i), 0);
		vm_mem_set_private(o->vm, o->gpa, o->size);
		if (i)
			gmem_guest_assert(o->vcpu, o->gpa, o->size,
					  GMEM_SEED(1000 + i - 1), 0);
		else
			gmem_guest_assert(o->vcpu, o->gpa, o->size, GMEM_ZEROES, 0);
		gmem_guest_fill(o->vcpu, o->gpa, o->size, GMEM_SEED(1000 + i), 0);

		/* The host's view of its own memory never changes. */
		gmem_host_assert(hva, o->size, GMEM_SEED(i), 0);
		vm_mem_set_shared(o->vm, o->gpa, o->size);
		gmem_guest_assert(o->vcpu, o->gpa, o->size, GMEM_SEED(i), 0);
	}
	return NULL;
}

GMEM_TEST(old_style_vm_beside_an_in_place_one)
{
	struct gmem_area *a = &self->a;
	struct old_style o = { .gpa = GMEM_GPA, .size = 4 * PS };
	pthread_t thread;
	int i;

	if (host_wide_mode())
		SKIP(return, "kvm.gmem_in_place_conversion=Y: no VM is old style");

	o.vm = gmem_vm_create(1, 0, &o.vcpu);
	vm_mem_add(o.vm, VM_MEM_SRC_ANONYMOUS, o.gpa, GMEM_SLOT, 4,
		   KVM_MEM_GUEST_MEMFD, -1, 0);
	virt_map(o.vm, o.gpa, o.gpa, 4);
	gmem_guest_start(o.vcpu);
	gmem_guest_start(self->vcpu);

	kvm_pthread_create(&thread, NULL, run_old_style, &o);
	for (i = 0; i < BOTH_ROUNDS; i++) {
		gmem_fill(a->hva, 4 * PS, GMEM_SEED(2000 + i), 0);
		gmem_convert(a->fd, 0, 4 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
		gmem_guest_assert(self->vcpu, a->gpa, 4 * PS,
				  GMEM_SEED(2000 + i), 0);
		gmem_guest_fill(self->vcpu, a->gpa, 4 * PS, GMEM_SEED(3000 + i), 0);
		gmem_host_assert_refused(a->hva, 4 * PS);
		gmem_convert(a->fd, 0, 4 * PS, GMEM_SHARED, GMEM_PRESERVE);
		gmem_host_assert(a->hva, 4 * PS, GMEM_SEED(3000 + i), 0);
	}
	kvm_pthread_join(thread, NULL);
	kvm_vm_free(o.vm);
}

/* Both kinds of file in one VM. */
GMEM_TEST(old_style_slot_beside_an_in_place_one)
{
	struct gmem_area *a = &self->a;
	struct old_style o = {
		.vm = self->vm, .vcpu = self->vcpu, .gpa = GMEM_GPA + SZ_1M,
		.size = 4 * PS,
	};

	if (host_wide_mode())
		SKIP(return, "kvm.gmem_in_place_conversion=Y: no file is old style");

	vm_mem_add(o.vm, VM_MEM_SRC_ANONYMOUS, o.gpa, GMEM_SLOT + 1, 4,
		   KVM_MEM_GUEST_MEMFD, -1, 0);
	virt_map(o.vm, o.gpa, o.gpa, 4);
	gmem_guest_start(self->vcpu);

	fill_area(a, GMEM_SEED(28));
	gmem_convert(a->fd, 0, a->size / 2, GMEM_PRIVATE, GMEM_PRESERVE);
	run_old_style(&o);
	gmem_guest_assert(self->vcpu, a->gpa, a->size, GMEM_SEED(28), 0);
	gmem_assert_attributes(a->fd, 0, a->size / 2, GMEM_PRIVATE);
	gmem_assert_attributes(a->fd, a->size / 2, a->size / 2, GMEM_SHARED);
}

/* --- Exits -------------------------------------------------------------- */

/* Close the only references to the file; the slot stays. */
static void close_file(struct gmem_area *a)
{
	kvm_munmap(a->hva, a->size);
	kvm_close(a->fd);
	a->fd = -1;
}

GMEM_TEST(closed_file_with_private_pages_exits_private)
{
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;
	int r;

	gmem_guest_start(vcpu);
	gmem_convert(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_NONE);
	gmem_guest_fill(vcpu, a->gpa, PS, GMEM_SEED(70), 0);
	close_file(a);

	/* The page was mapped; closing took that away. It stays so. */
	r = __gmem_guest_do(vcpu, GMEM_OP_READ, a->gpa, 1, 0, 0, 0);
	assert_memory_fault(vcpu, r, a->gpa);
	TEST_ASSERT_EQ(vcpu->run->memory_fault.flags, KVM_MEMORY_EXIT_FLAG_PRIVATE);
	r = gmem_guest_resume(vcpu);
	assert_memory_fault(vcpu, r, a->gpa);
}

GMEM_TEST(closed_file_with_shared_pages_exits)
{
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;
	int r;

	gmem_guest_start(vcpu);
	gmem_guest_fill(vcpu, a->gpa, PS, GMEM_SEED(71), 0);
	close_file(a);

	r = __gmem_guest_do(vcpu, GMEM_OP_READ, a->gpa, 1, 0, 0, 0);
	assert_memory_fault(vcpu, r, a->gpa);
	ksft_print_msg("shared gfn of a closed file: exit flags %#llx\n",
		       vcpu->run->memory_fault.flags);
}

/* --- Lifetime of the module ------------------------------------------------ */

/* Users of the module that runs the guests; -1 if it is built in. */
static int vendor_users(void)
{
	static const char * const names[] = { "kvm_amd", "kvm_intel" };
	char path[64];
	int i, users;
	FILE *f;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "/sys/module/%s/refcnt", names[i]);
		f = fopen(path, "r");
		if (!f)
			continue;
		TEST_ASSERT_EQ(fscanf(f, "%d", &users), 1);
		fclose(f);
		return users;
	}
	return -1;
}

/* A file keeps its VM, and nothing else keeps the VM's module loaded. */
GMEM_TEST(file_keeps_the_module_of_the_vendor)
{
	int users = vendor_users(), fd;

	if (users < 0)
		SKIP(return, "the vendor's module is built in");
	fd = vm_create_guest_memfd(self->vm, PS, 0);
	TEST_ASSERT_EQ(vendor_users(), users + 1);
	close(fd);
	TEST_ASSERT_EQ(vendor_users(), users);
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
