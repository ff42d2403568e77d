// SPDX-License-Identifier: GPL-2.0
/*
 * How much memory the attributes of a file take, and which cgroup is charged.
 *
 * Hazard 52: user space decides how many runs a file has. So it is charged for the
 * bookkeeping, which is bounded by the size of the file, and gets an errno when its
 * cgroup is full.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <linux/sizes.h>

#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "gmem_test.h"
#include "kvm_test_harness.h"

#define PS	((u64)PAGE_SIZE)
/* None of its pages is ever allocated. */
#define SIZE	(1ull << 44)

#define CG_ROOT	"/sys/fs/cgroup"
#define CG	CG_ROOT "/gmem-attributes"

static int write_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY), r = 0;

	if (fd < 0)
		return errno;
	if (write(fd, text, strlen(text)) < 0)
		r = errno;
	close(fd);
	return r;
}

/* Opened before there is a limit, as opening a file is charged, too. */
static int max_fd;

/* A cgroup of this process's own, with a limit that can be set. */
static bool enter_cgroup(void)
{
	if (access(CG_ROOT "/cgroup.controllers", R_OK) &&
	    mount("cgroup2", CG_ROOT, "cgroup2", 0, NULL))
		return false;
	write_to(CG_ROOT "/cgroup.subtree_control", "+memory");
	if (mkdir(CG, 0755) && errno != EEXIST)
		return false;
	max_fd = open(CG "/memory.max", O_WRONLY);
	return max_fd >= 0 && !write_to(CG "/cgroup.procs", "0");
}

static void limit(long bytes)
{
	char text[32] = "max";

	if (bytes)
		snprintf(text, sizeof(text), "%ld", bytes);
	TEST_ASSERT(pwrite(max_fd, text, strlen(text), 0) > 0, "memory.max: errno %d", errno);
}

static void leave_cgroup(void)
{
	limit(0);
	write_to(CG_ROOT "/cgroup.procs", "0");
}

/* Bytes that the cgroup is charged for: all of them, and those of the kernel. */
static long charged(const char *file, const char *format)
{
	char line[128];
	long bytes = -1;
	FILE *f = fopen(file, "r");

	while (f && bytes < 0 && fgets(line, sizeof(line), f))
		sscanf(line, format, &bytes);
	if (f)
		fclose(f);
	TEST_ASSERT(bytes >= 0, "%s cannot be read", file);
	return bytes;
}

static long charged_kernel(void)
{
	return charged(CG "/memory.stat", "kernel %ld");
}

static long charged_all(void)
{
	return charged(CG "/memory.current", "%ld");
}

static int one_private(int fd, u64 page, u64 *error_offset)
{
	return gmem_set_once(fd, page * PS, PS, GMEM_PRIVATE, GMEM_PRESERVE, error_offset);
}

FIXTURE(h52)
{
	struct kvm_vm *vm;
	int fd;
};

FIXTURE_SETUP(h52)
{
	if (!enter_cgroup())
		SKIP(return, "needs cgroup 2 with the memory controller");
	limit(0);
	self->vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	self->fd = vm_create_guest_memfd(self->vm, SIZE, GMEM_MMAP_SHARED);
}

FIXTURE_TEARDOWN(h52)
{
	kvm_close(self->fd);
	kvm_vm_free(self->vm);
	leave_cgroup();
}

#define H52(name)	TEST_F_TIMEOUT(h52, name, 600)

/* Every second page: a million runs and one take less than half a byte each. */
H52(a_million_runs_need_little_memory)
{
	const u64 pages = 1000000;
	long before, after;
	u64 i, attributes, size;
	int r;

	limit(SZ_32M);
	before = charged_kernel();
	for (i = 0; i < pages; i += 2) {
		r = one_private(self->fd, i + 1, NULL);
		TEST_ASSERT(!r, "Page %lu: errno %d (%s)", i + 1, r, strerror(r));
	}
	after = charged_kernel();
	TEST_ASSERT(after - before < (long)pages / 2, "%lu runs took %ld bytes", pages,
		    after - before);

	/* The runs exist. */
	for (i = 0; i < 1000; i++) {
		r = gmem_get(self->fd, (pages - i) * PS, &attributes, &size);
		TEST_ASSERT(!r, "KVM_GET_MEMORY_ATTRIBUTES2: errno %d", r);
		TEST_ASSERT_EQ(attributes, i % 2 ? GMEM_PRIVATE : GMEM_SHARED);
		TEST_ASSERT_EQ(size, i ? PS : SIZE - pages * PS);
	}
}

/* One page in each 2 MiB takes the most memory. */
H52(who_converts_is_charged)
{
	const u64 requests = 20000, per_2m = SZ_2M / PS;
	long before = charged_kernel(), after;
	u64 i;

	for (i = 0; i < requests; i++)
		gmem_convert(self->fd, i * SZ_2M, PS, GMEM_PRIVATE, GMEM_PRESERVE);
	after = charged_kernel();
	TEST_ASSERT(after - before >= (long)(requests * per_2m / 8),
		    "%lu bitmaps of %lu bytes, but %ld bytes are charged", requests, per_2m / 8,
		    after - before);
	/* 128 bytes each, a page for each 512 of them, and unused parts of slabs. */
	TEST_ASSERT(after - before < (long)(requests * 140 + SZ_512K),
		    "%lu bitmaps, and %ld bytes are charged", requests, after - before);
}

/* If the cgroup is full: ENOMEM, nothing has changed, and no task is killed. */
H52(no_room_is_an_errno)
{
	u64 i, attributes, size, error_offset;
	int r = 0;

	/* Only allocations of the conversion may fail: page faults would call the OOM killer. */
	TEST_ASSERT(!mlockall(MCL_CURRENT | MCL_FUTURE), "mlockall(): errno %d", errno);
	limit(charged_all() + SZ_1M);
	/* A table in each GiB. */
	for (i = 0; !r && i < SIZE / SZ_1G; i++)
		r = one_private(self->fd, i * (SZ_1G / PS) + 7, &error_offset);
	i--;
	TEST_ASSERT(r == ENOMEM, "After %lu requests: errno %d (%s)", i, r, strerror(r));
	TEST_ASSERT_EQ(error_offset, i * SZ_1G + 7 * PS);
	TEST_ASSERT(!gmem_get(self->fd, i * SZ_1G, &attributes, &size), "GET: errno %d", errno);
	TEST_ASSERT_EQ(attributes, GMEM_SHARED);
	TEST_ASSERT_EQ(size, SIZE - i * SZ_1G);
	TEST_ASSERT(gmem_is_private(self->fd, (i - 1) * SZ_1G + 7 * PS), "An earlier request");

	/* Requests that need no memory succeed. */
	gmem_convert(self->fd, 0, SIZE, GMEM_SHARED, GMEM_PRESERVE);
	limit(0);
	gmem_convert(self->fd, i * SZ_1G + 7 * PS, PS, GMEM_PRIVATE, GMEM_PRESERVE);
}

/* All that was charged comes back, from the file and when it is closed. */
H52(charges_end_with_the_runs)
{
	const u64 requests = 20000;
	long before, after;
	u64 i, round;
	int tries;

	for (round = 0; round < 2; round++) {
		before = charged_kernel();
		for (i = 0; i < requests; i++)
			gmem_convert(self->fd, i * SZ_2M, PS, GMEM_PRIVATE, GMEM_PRESERVE);
		if (round == 0) {
			gmem_convert(self->fd, 0, SIZE, GMEM_SHARED, GMEM_PRESERVE);
		} else {
			kvm_close(self->fd);
			self->fd = vm_create_guest_memfd(self->vm, SIZE, GMEM_MMAP_SHARED);
		}
		/* It is freed behind RCU, after an unknown time, so there is no clock here. */
		for (tries = 0; tries < 100; tries++) {
			after = charged_kernel();
			if (after - before < SZ_1M)
				break;
			usleep(200000);
		}
		TEST_ASSERT(after - before < SZ_1M, "Round %lu: %ld bytes are left", round,
			    after - before);
	}
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
