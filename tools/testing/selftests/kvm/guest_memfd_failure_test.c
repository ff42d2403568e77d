// SPDX-License-Identifier: GPL-2.0
/*
 * Memory of a guest_memfd that fails: what the host's mappings show before and after a
 * hole is punched (h54), and what the kernel reports.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "gmem_test.h"
#include "kvm_test_harness.h"

#define TIMEOUT		300
#define PG		((u64)PAGE_SIZE)
#define OFF(page)	((u64)(page) * PG)
#define PAGES		8

#define NODES		"/sys/devices/system/node"
#define CORRUPT_PFN	"/sys/kernel/debug/hwpoison/corrupt-pfn"

static volatile sig_atomic_t expecting_failure;

/*
 * Memory failure sends SIGBUS to processes that have the page mapped, as they have
 * lost data. It comes on return from the call that makes the page fail, and must not
 * hide that call's result.
 */
static void on_sigbus(int sig)
{
	if (!expecting_failure)
		gmem_sigbus_handler(sig);
}

FIXTURE(failure)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[1];
	struct gmem_area a;
};

FIXTURE_SETUP(failure)
{
	struct sigaction sa = { .sa_handler = on_sigbus };
	u8 *mem = kvm_mmap(PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (madvise(mem, 0, MADV_HWPOISON))
		SKIP(return, "MADV_HWPOISON: %s (CONFIG_MEMORY_FAILURE, root)", strerror(errno));
	kvm_munmap(mem, PG);

	self->vm = gmem_vm_create(1, PAGES, self->vcpus);
	gmem_area_create(&self->a, self->vm, GMEM_SLOT, GMEM_GPA, OFF(PAGES), GMEM_MMAP_SHARED);
	gmem_guest_start(self->vcpus[0]);
	TEST_ASSERT(!sigaction(SIGBUS, &sa, NULL), "sigaction: %s", strerror(errno));
	gmem_fill(self->a.hva, OFF(PAGES), GMEM_SEED(1), 0);
}

FIXTURE_TEARDOWN(failure)
{
	kvm_vm_free(self->vm);
}

/* Both return the result of the call, 0 or an errno. */
static int poison(volatile u8 *hva)
{
	int r;

	expecting_failure = 1;
	r = madvise((void *)hva, PG, MADV_HWPOISON) ? errno : 0;
	expecting_failure = 0;
	return r;
}

static int poison_frame(u64 pfn)
{
	int r, fd = open(CORRUPT_PFN, O_WRONLY);
	char text[32];

	if (fd < 0)
		return errno;
	snprintf(text, sizeof(text), "%#lx", pfn);
	expecting_failure = 1;
	r = write(fd, text, strlen(text)) < 0 ? errno : 0;
	expecting_failure = 0;
	close(fd);
	return r;
}

/* A second mapping of the file, with every page of it touched. */
static u8 *map_again(struct gmem_area *a)
{
	u8 *mem = kvm_mmap(a->size, PROT_READ | PROT_WRITE, MAP_SHARED, a->fd);
	u64 at;

	for (at = 0; at < a->size; at += PG)
		TEST_ASSERT_EQ(mem[at], gmem_pattern_byte(GMEM_SEED(1), at));
	return mem;
}

/* Checks a fresh page, read and written through an older mapping. */
static void assert_healed(volatile u8 *mem)
{
	u8 byte = 0xff;

	TEST_ASSERT(gmem_host_read(mem, &byte), "The mapping is still SIGBUS for a fresh page");
	TEST_ASSERT_EQ(byte, 0);
	TEST_ASSERT(gmem_host_write(mem, 0), "The mapping cannot be written");
}

/* Another process with the page mapped, which reads it again on request. */
static int child_of_hole(volatile u8 *mem, int ready, int go)
{
	u8 byte = 0xff;
	ssize_t n;

	if (!gmem_host_read(mem, &byte))
		return 1;
	expecting_failure = 1;
	if (write(ready, &byte, 1) != 1)
		return 1;
	do {
		n = read(go, &byte, 1);
	} while (n < 0 && errno == EINTR);
	expecting_failure = 0;
	if (n != 1)
		return 2;
	byte = 0xff;
	return gmem_host_read(mem, &byte) && !byte ? 0 : 3;
}

TEST_F_TIMEOUT(failure, h54_mappings_see_the_page_behind_a_hole, TIMEOUT)
{
	struct gmem_area *a = &self->a;
	u8 *other = map_again(a);
	int ready[2], go[2], status, r;
	pid_t pid;
	u8 byte;

	TEST_ASSERT(!pipe(ready) && !pipe(go), "pipe: %s", strerror(errno));
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork: %s", strerror(errno));
	if (!pid)
		_exit(child_of_hole(a->hva + OFF(1), ready[1], go[0]));
	TEST_ASSERT_EQ(read(ready[0], &byte, 1), 1);

	r = poison(a->hva + OFF(1));
	TEST_ASSERT(!r, "MADV_HWPOISON: %s", strerror(r));
	gmem_host_assert_refused(a->hva + OFF(1), PG);
	gmem_host_assert_refused(other + OFF(1), PG);

	TEST_ASSERT_EQ(gmem_punch(a->fd, OFF(1), PG), 0);
	assert_healed(a->hva + OFF(1));
	assert_healed(other + OFF(1));
	TEST_ASSERT_EQ(write(go[1], "", 1), 1);
	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	TEST_ASSERT(WIFEXITED(status) && !WEXITSTATUS(status), "The child: status %#x", status);

	/* All mappings have the same page. */
	gmem_guest_fill(self->vcpus[0], a->gpa + OFF(1), PG, GMEM_SEED(2), OFF(1));
	gmem_host_assert(a->hva + OFF(1), PG, GMEM_SEED(2), OFF(1));
	gmem_host_assert(other + OFF(1), PG, GMEM_SEED(2), OFF(1));
	gmem_host_assert(other, PG, GMEM_SEED(1), 0);
	gmem_host_assert(other + OFF(2), OFF(PAGES - 2), GMEM_SEED(1), OFF(2));
	kvm_munmap(other, a->size);
	for (r = 0; r < 2; r++) {
		close(ready[r]);
		close(go[r]);
	}
}

/* The page fails while it is shared, or while it is private. */
TEST_F_TIMEOUT(failure, h54_mappings_see_a_converted_page, TIMEOUT)
{
	struct gmem_area *a = &self->a;
	u8 *other = map_again(a);
	u64 pfn, page;
	int r;

	r = poison(a->hva + OFF(2));
	TEST_ASSERT(!r, "MADV_HWPOISON: %s", strerror(r));
	gmem_host_assert_refused(other + OFF(2), PG);
	if (!access(CORRUPT_PFN, W_OK)) {
		pfn = gmem_frame_of(a->hva + OFF(3));
		TEST_ASSERT(pfn, "No frame number of a mapped page");
		gmem_convert(a->fd, OFF(3), PG, GMEM_PRIVATE, GMEM_PRESERVE);
		r = poison_frame(pfn);
		TEST_ASSERT(!r, "%s: %s", CORRUPT_PFN, strerror(r));
	}

	/* A conversion to private and back does not change it, ... */
	gmem_convert(a->fd, OFF(2), OFF(2), GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_host_assert_refused(a->hva + OFF(2), PG);
	gmem_convert(a->fd, OFF(2), OFF(2), GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert_refused(a->hva + OFF(2), PG);
	gmem_host_assert_refused(other + OFF(2), PG);

	/* ... until a hole is punched, which can be while it is private. */
	gmem_convert(a->fd, OFF(2), OFF(2), GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT_EQ(gmem_punch(a->fd, OFF(2), OFF(2)), 0);
	gmem_host_assert_refused(a->hva + OFF(2), OFF(2));
	gmem_convert(a->fd, OFF(2), OFF(2), GMEM_SHARED, GMEM_PRESERVE);
	for (page = 2; page < 4; page++) {
		assert_healed(a->hva + OFF(page));
		assert_healed(other + OFF(page));
	}
	kvm_munmap(other, a->size);
}

/* A file that does not convert, of a VM without private memory. */
TEST_F_TIMEOUT(failure, h54_mappings_of_a_default_vm, TIMEOUT)
{
	struct kvm_vm *vm = vm_create_barebones();
	int fd = vm_create_guest_memfd(vm, OFF(2), GMEM_MMAP_SHARED);
	u8 *mem = kvm_mmap(OFF(2), PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	int r;

	memset(mem, 0x5a, OFF(2));
	r = poison(mem);
	TEST_ASSERT(!r, "MADV_HWPOISON: %s", strerror(r));
	gmem_host_assert_refused(mem, PG);
	TEST_ASSERT_EQ(gmem_punch(fd, 0, PG), 0);
	assert_healed(mem);
	TEST_ASSERT_EQ(mem[PG], 0x5a);
	kvm_munmap(mem, OFF(2));
	kvm_close(fd);
	kvm_vm_free(vm);
}

/* The sum over all nodes of the counter of one kind of result; -1 without such counters. */
static long counted(const char *result)
{
	char path[320];
	struct dirent *node;
	DIR *nodes = opendir(NODES);
	long all = -1, n;
	FILE *f;

	if (!nodes)
		return -1;
	while ((node = readdir(nodes))) {
		snprintf(path, sizeof(path), NODES "/%s/memory_failure/%s", node->d_name, result);
		f = fopen(path, "r");
		if (!f)
			continue;
		if (fscanf(f, "%ld", &n) == 1)
			all = (all < 0 ? 0 : all) + n;
		fclose(f);
	}
	closedir(nodes);
	return all;
}

/*
 * A page of the file stays where it is when it fails, because user space decides what
 * to do with it. The kernel reports this as delayed handling, and not as a failure.
 */
TEST_F_TIMEOUT(failure, is_reported_as_delayed, TIMEOUT)
{
	const long delayed = counted("delayed"), failed = counted("failed"),
		   ignored = counted("ignored"), total = counted("total");
	struct gmem_area *a = &self->a;
	long more = 0;
	u64 pfn;
	int r;

	if (total < 0)
		SKIP(return, "no counters in " NODES " (CONFIG_NUMA)");

	/* Written by the host. */
	r = poison(a->hva + OFF(1));
	TEST_ASSERT(!r, "MADV_HWPOISON of a written page: %s", strerror(r));
	more++;
	/* Only read, never written. */
	TEST_ASSERT_EQ(gmem_punch(a->fd, OFF(2), PG), 0);
	TEST_ASSERT_EQ(*(volatile u8 *)(a->hva + OFF(2)), 0);
	r = poison(a->hva + OFF(2));
	TEST_ASSERT(!r, "MADV_HWPOISON of a page that was only read: %s", strerror(r));
	more++;
	/* The guest has it mapped. */
	gmem_guest_assert(self->vcpus[0], a->gpa + OFF(3), PG, GMEM_SEED(1), OFF(3));
	r = poison(a->hva + OFF(3));
	TEST_ASSERT(!r, "MADV_HWPOISON of a page of the guest: %s", strerror(r));
	more++;
	/* Private. */
	if (!access(CORRUPT_PFN, W_OK)) {
		pfn = gmem_frame_of(a->hva + OFF(4));
		TEST_ASSERT(pfn, "No frame number of a mapped page");
		gmem_convert(a->fd, OFF(4), PG, GMEM_PRIVATE, GMEM_PRESERVE);
		gmem_guest_assert(self->vcpus[0], a->gpa + OFF(4), PG, GMEM_SEED(1), OFF(4));
		r = poison_frame(pfn);
		TEST_ASSERT(!r, "%s of a private page: %s", CORRUPT_PFN, strerror(r));
		more++;
	}

	TEST_ASSERT_EQ(counted("total"), total + more);
	TEST_ASSERT_EQ(counted("delayed"), delayed + more);
	TEST_ASSERT_EQ(counted("failed"), failed);
	TEST_ASSERT_EQ(counted("ignored"), ignored);
	r = __gmem_guest_do(self->vcpus[0], GMEM_OP_READ, a->gpa + OFF(3), 1, 0, 0, 0);
	TEST_ASSERT_EQ(r, -EHWPOISON);
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
