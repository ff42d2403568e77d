// SPDX-License-Identifier: GPL-2.0
/*
 * What /proc/PID/fdinfo/FD says about a guest_memfd, after operations whose
 * effect on each line is known.
 */
#include <stdio.h>

#include "gmem_test.h"
#include "kvm_test_harness.h"

#define NR_PAGES	16
#define PS		((u64)PAGE_SIZE)

/* The lines of one file. The slots are those of up to two lines. */
struct fdinfo {
	char mode[16], vendor[16];
	u64 size, allocated, private, shared, runs;
	unsigned int lines, nr_slots;
	struct {
		u64 first, end, offset;
	} slots[2];
};

static void fdinfo_read(int fd, struct fdinfo *info)
{
	char path[64], line[256];
	FILE *f;

	memset(info, 0, sizeof(*info));
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	f = fopen(path, "r");
	TEST_ASSERT(f, "%s: errno %d (%s)", path, errno, strerror(errno));

	while (fgets(line, sizeof(line), f)) {
		u64 first, end, offset;

		if (strncmp(line, "gmem-", 5))
			continue;
		if (sscanf(line, "gmem-slot:\t%lx-%lx offset %lx\n", &first, &end,
			   &offset) == 3) {
			TEST_ASSERT(info->nr_slots < ARRAY_SIZE(info->slots),
				    "Too many slots: %s", line);
			info->slots[info->nr_slots].first = first;
			info->slots[info->nr_slots].end = end;
			info->slots[info->nr_slots++].offset = offset;
			continue;
		}
		TEST_ASSERT(sscanf(line, "gmem-mode:\t%15s\n", info->mode) == 1 ||
			    sscanf(line, "gmem-vendor:\t%15s\n", info->vendor) == 1 ||
			    sscanf(line, "gmem-size:\t%lu\n", &info->size) == 1 ||
			    sscanf(line, "gmem-allocated:\t%lu\n", &info->allocated) == 1 ||
			    sscanf(line, "gmem-private:\t%lu\n", &info->private) == 1 ||
			    sscanf(line, "gmem-shared:\t%lu\n", &info->shared) == 1 ||
			    sscanf(line, "gmem-runs:\t%lu\n", &info->runs) == 1,
			    "Unknown line: %s", line);
		info->lines++;
	}
	fclose(f);
	TEST_ASSERT_EQ(info->lines, 7);
}

static void expect_pages(int fd, u64 allocated, u64 private, u64 runs)
{
	struct fdinfo info;

	fdinfo_read(fd, &info);
	TEST_ASSERT_EQ(info.size, NR_PAGES * PS);
	TEST_ASSERT_EQ(info.allocated, allocated * PS);
	TEST_ASSERT_EQ(info.private, private * PS);
	TEST_ASSERT_EQ(info.shared, (NR_PAGES - private) * PS);
	TEST_ASSERT_EQ(info.runs, runs);
}

static struct kvm_vm *create_vm(void)
{
	return vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
}

static void expect_mode(u64 flags, const char *mode, u64 private)
{
	struct kvm_vm *vm = create_vm();
	int fd = vm_create_guest_memfd(vm, NR_PAGES * PS, flags);
	struct fdinfo info;

	fdinfo_read(fd, &info);
	TEST_ASSERT(!strcmp(info.mode, mode), "Mode '%s', wanted '%s'", info.mode, mode);
	TEST_ASSERT(!strcmp(info.vendor, "sw-protected"), "Vendor '%s'", info.vendor);
	expect_pages(fd, 0, private, 1);

	kvm_close(fd);
	kvm_vm_free(vm);
}

TEST(in_place_file)
{
	expect_mode(GMEM_MMAP_SHARED, "in-place", 0);
	expect_mode(GUEST_MEMFD_FLAG_MMAP, "in-place", NR_PAGES);
}

TEST(file_without_flags)
{
	if (get_kvm_param_bool("gmem_in_place_conversion"))
		SKIP(return, "kvm.gmem_in_place_conversion makes every file convert in place");
	expect_mode(0, "fixed", NR_PAGES);
}

TEST(conversions_change_totals_and_runs)
{
	struct kvm_vm *vm = create_vm();
	int fd = vm_create_guest_memfd(vm, NR_PAGES * PS, GMEM_MMAP_SHARED);

	gmem_convert(fd, 4 * PS, 3 * PS, GMEM_PRIVATE, GMEM_ZERO);
	expect_pages(fd, 0, 3, 3);
	gmem_convert(fd, 0, PS, GMEM_PRIVATE, GMEM_ZERO);
	expect_pages(fd, 0, 4, 4);
	/* Closes the gap: the neighbours on both sides become one run. */
	gmem_convert(fd, PS, 3 * PS, GMEM_PRIVATE, GMEM_ZERO);
	expect_pages(fd, 0, 7, 2);
	gmem_convert(fd, 0, NR_PAGES * PS, GMEM_SHARED, GMEM_ZERO);
	expect_pages(fd, 0, 0, 1);

	kvm_close(fd);
	kvm_vm_free(vm);
}

TEST(allocation_is_counted)
{
	struct kvm_vm *vm = create_vm();
	int fd = vm_create_guest_memfd(vm, NR_PAGES * PS, GMEM_MMAP_SHARED);

	TEST_ASSERT_EQ(gmem_allocate(fd, 2 * PS, 5 * PS), 0);
	expect_pages(fd, 5, 0, 1);
	TEST_ASSERT_EQ(gmem_punch(fd, 3 * PS, 2 * PS), 0);
	expect_pages(fd, 3, 0, 1);

	kvm_close(fd);
	kvm_vm_free(vm);
}

static void set_slot(struct kvm_vm *vm, int fd, u32 slot, u64 gpa, u64 pages, u64 page)
{
	int r = __vm_set_user_memory_region2(vm, slot, KVM_MEM_GUEST_MEMFD, gpa,
					     pages * PS, NULL, fd, page * PS);

	TEST_ASSERT(!r, "KVM_SET_USER_MEMORY_REGION2: errno %d (%s)", errno,
		    strerror(errno));
}

TEST(slots_are_listed_while_bound)
{
	struct kvm_vm *vm = create_vm();
	int fd = vm_create_guest_memfd(vm, NR_PAGES * PS, GMEM_MMAP_SHARED);
	struct fdinfo info;

	fdinfo_read(fd, &info);
	TEST_ASSERT_EQ(info.nr_slots, 0);

	set_slot(vm, fd, GMEM_SLOT, GMEM_GPA, 4, 8);
	set_slot(vm, fd, GMEM_SLOT + 1, GMEM_GPA + 32 * PS, 2, 1);
	fdinfo_read(fd, &info);
	TEST_ASSERT_EQ(info.nr_slots, 2);
	TEST_ASSERT_EQ(info.slots[0].first, GMEM_GPA / PS + 32);
	TEST_ASSERT_EQ(info.slots[0].end, GMEM_GPA / PS + 34);
	TEST_ASSERT_EQ(info.slots[0].offset, PS);
	TEST_ASSERT_EQ(info.slots[1].first, GMEM_GPA / PS);
	TEST_ASSERT_EQ(info.slots[1].end, GMEM_GPA / PS + 4);
	TEST_ASSERT_EQ(info.slots[1].offset, 8 * PS);

	set_slot(vm, fd, GMEM_SLOT, GMEM_GPA, 0, 8);
	fdinfo_read(fd, &info);
	TEST_ASSERT_EQ(info.nr_slots, 1);
	TEST_ASSERT_EQ(info.slots[0].offset, PS);

	kvm_close(fd);
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(gmem_vm_type_supported());
	__TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES),
		       "This kernel does not convert guest_memfd in place");

	return test_harness_run(argc, argv);
}
