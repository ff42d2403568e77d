// SPDX-License-Identifier: GPL-2.0
/*
 * A host reclaims memory that guests use: it takes a block of memory offline, or a
 * frame out of use that may fail soon, or a driver allocates contiguous memory.  The
 * guests' pages move, private ones too, and the guests notice nothing.
 *
 * The machine needs ZONE_MOVABLE, which the kernel's parameter movablecore= creates,
 * and an area for contiguous memory, which cma= creates.  tools/vm/check boots with
 * both for this test.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/mount.h>

#include "gmem_test.h"
#include "kvm_test_harness.h"

#define TIMEOUT		300
#define PG		((u64)PAGE_SIZE)
#define OFF(page)	((u64)(page) * PG)
/* The first half is private. */
#define PAGES		64
#define PRIVATE		(PAGES / 2)

#define MOVABLE		(GMEM_MMAP_SHARED | GUEST_MEMFD_FLAG_MIGRATABLE)

#define MEMORY		"/sys/devices/system/memory"
#define KPF_HWPOISON	19

/* The area that drivers without an area of their own allocate from. */
#define DEBUGFS		"/sys/kernel/debug"
#define AREA		DEBUGFS "/cma/reserved"
/* How often a driver would try to get all of it. */
#define TRIES		10

/* Memory to allocate in order to reach a block of memory: at most, and at a time. */
#define FILES		48
#define FILE_SIZE	((u64)SZ_16M)
/* What is allocated in one piece, if there is one. */
#define BLOCK		((u64)SZ_2M)

static u64 read_number(const char *path, int base)
{
	char text[32] = "";
	int fd = open(path, O_RDONLY);

	TEST_ASSERT(fd >= 0 && read(fd, text, sizeof(text) - 1) > 0, "%s: %s", path, strerror(errno));
	close(fd);
	return strtoull(text, NULL, base);
}

/* Returns 0 or an errno. */
static int write_text(const char *path, const char *text)
{
	int r, fd = open(path, O_WRONLY);

	if (fd < 0)
		return errno;
	r = write(fd, text, strlen(text)) < 0 ? errno : 0;
	close(fd);
	return r;
}

static int write_number(const char *path, u64 number)
{
	char text[32];

	snprintf(text, sizeof(text), "%#lx", number);
	return write_text(path, text);
}

static bool frame_has_failed(u64 pfn)
{
	u64 flags = 0;
	int fd = open("/proc/kpageflags", O_RDONLY);

	TEST_ASSERT(fd >= 0 && pread(fd, &flags, sizeof(flags), pfn * sizeof(flags)) == sizeof(flags),
		    "/proc/kpageflags: %s", strerror(errno));
	close(fd);
	return flags & BIT(KPF_HWPOISON);
}

FIXTURE(offline)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[2];
	struct gmem_area a;
	/* Of the area's pages, from when all of them were shared. */
	u64 frames[PAGES];
	/* Files that have other memory. */
	int fds[FILES];
	int files;
	pthread_t looking;
	bool stop;
};

FIXTURE_SETUP(offline)
{
	if (kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) < 0)
		SKIP(return, "no flags of guest_memfd");
	self->vm = gmem_vm_create(2, PAGES + FILE_SIZE / PG, self->vcpus);
	if (!(vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_MIGRATABLE))
		SKIP(return, "files cannot be made migratable here");

	gmem_guest_start(self->vcpus[0]);
	gmem_guest_start(self->vcpus[1]);
}

FIXTURE_TEARDOWN(offline)
{
	kvm_vm_free(self->vm);
}

/* Fills the first pages of the area, notes where they are, and makes half of them private. */
static void make_half_private(FIXTURE_DATA(offline) *self)
{
	struct gmem_area *a = &self->a;
	u64 page;

	gmem_fill(a->hva, OFF(PAGES), GMEM_SEED(1), 0);
	for (page = 0; page < PAGES; page++) {
		self->frames[page] = gmem_frame_of(a->hva + OFF(page));
		TEST_ASSERT(self->frames[page], "No frame number of a mapped page");
	}
	gmem_convert(a->fd, a->file_offset, OFF(PRIVATE), GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_guest_assert(self->vcpus[0], a->gpa, OFF(PAGES), GMEM_SEED(1), 0);
}

static void *look(void *data)
{
	FIXTURE_DATA(offline) *self = data;

	do
		gmem_guest_assert(self->vcpus[1], self->a.gpa, OFF(PAGES), GMEM_SEED(1), 0);
	while (!READ_ONCE(self->stop));
	return NULL;
}

/* A second vCPU compares all bytes repeatedly, until look_no_more(). */
static void keep_looking(FIXTURE_DATA(offline) *self)
{
	self->stop = false;
	TEST_ASSERT(!pthread_create(&self->looking, NULL, look, self), "pthread_create");
}

static void look_no_more(FIXTURE_DATA(offline) *self)
{
	WRITE_ONCE(self->stop, true);
	TEST_ASSERT(!pthread_join(self->looking, NULL), "pthread_join");
}

/*
 * Guest and host read the same bytes as before, private pages are still private, and no
 * page is in a frame of [@first, @last].
 */
static void assert_moved_out(FIXTURE_DATA(offline) *self, u64 first, u64 last)
{
	struct gmem_area *a = &self->a;
	u64 page, frame, moved = 0;

	gmem_guest_assert(self->vcpus[0], a->gpa, OFF(PAGES), GMEM_SEED(1), 0);
	gmem_host_assert_refused(a->hva, OFF(PRIVATE));
	gmem_host_assert(a->hva + OFF(PRIVATE), OFF(PAGES - PRIVATE), GMEM_SEED(1), OFF(PRIVATE));
	/* Both kinds can be written. */
	gmem_guest_fill(self->vcpus[0], a->gpa, OFF(PAGES), GMEM_SEED(2), 0);
	gmem_host_assert(a->hva + OFF(PRIVATE), OFF(PAGES - PRIVATE), GMEM_SEED(2), OFF(PRIVATE));

	gmem_convert(a->fd, a->file_offset, OFF(PRIVATE), GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert(a->hva, OFF(PAGES), GMEM_SEED(2), 0);
	for (page = 0; page < PAGES; page++) {
		frame = gmem_frame_of(a->hva + OFF(page));
		TEST_ASSERT(frame < first || frame > last, "Page %lu is in frame %#lx", page, frame);
		moved += frame != self->frames[page];
	}
	TEST_ASSERT(moved, "No page has moved");
}

/* Whether everything in the block of memory can be moved. */
static bool block_is_movable(u64 block)
{
	char path[128], zones[64] = "";
	int fd;

	snprintf(path, sizeof(path), MEMORY "/memory%lu/valid_zones", block);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return false;
	TEST_ASSERT(read(fd, zones, sizeof(zones) - 1) >= 0, "%s: %s", path, strerror(errno));
	close(fd);
	return !strncmp(zones, "Movable", 7);
}

/* Returns 0 or an errno. */
static int set_block(u64 block, const char *state)
{
	char path[128];

	snprintf(path, sizeof(path), MEMORY "/memory%lu/state", block);
	return write_text(path, state);
}

/*
 * The first block of movable memory that can be taken offline while no guest uses it.
 * Others contain memory that the kernel allocated before zones existed.
 * Returns 0 if there is none: block 0 always belongs to the kernel.
 */
static u64 find_block(u64 per_block)
{
	u64 last = sysconf(_SC_PHYS_PAGES) * 2 / per_block, block;
	int r;

	for (block = 1; block <= last; block++) {
		if (!block_is_movable(block) || set_block(block, "offline"))
			continue;
		r = set_block(block, "online_movable");
		TEST_ASSERT(!r, "Block %lu does not come back: %s", block, strerror(r));
		return block;
	}
	return 0;
}

/* Runs on the node that has the block, so that memory is allocated there while there is any. */
static void run_near(u64 block)
{
	char path[128];
	cpu_set_t cpus;
	int node = 0;

	do
		snprintf(path, sizeof(path), MEMORY "/memory%lu/node%d", block, node);
	while (access(path, F_OK) && node++ < 64);
	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/cpulist", node);
	CPU_ZERO(&cpus);
	CPU_SET(read_number(path, 10), &cpus);
	TEST_ASSERT(!sched_setaffinity(0, sizeof(cpus), &cpus), "sched_setaffinity: %s", strerror(errno));
}

/* How many of the first pages from @mem on are in a frame of [@first, @last]. */
static u64 pages_within(u8 *mem, u64 first, u64 last)
{
	u64 page, frame, n = 0;

	for (page = 0; page < PAGES; page++) {
		mem[OFF(page)] = 1;
		frame = gmem_frame_of(mem + OFF(page));
		TEST_ASSERT(frame, "No frame number of a mapped page");
		n += frame >= first && frame <= last;
	}
	return n;
}

static int create_file(FIXTURE_DATA(offline) *self, u64 flags)
{
	int r, fd = vm_create_guest_memfd(self->vm, FILE_SIZE, flags);

	r = gmem_allocate(fd, 0, FILE_SIZE);
	TEST_ASSERT(!r, "fallocate: %s", strerror(r));
	return fd;
}

/* The first block of the file that begins in frames of [@first, @last], or the file's size. */
static u64 find_within(int fd, u64 first, u64 last)
{
	u8 *mem = kvm_mmap(FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	u64 at;

	for (at = 0; at < FILE_SIZE; at += BLOCK) {
		if (pages_within(mem + at, first, last) == PAGES)
			break;
	}
	kvm_munmap(mem, FILE_SIZE);
	return at;
}

/*
 * Allocates files until a block of one is in frames of [@first, @last], and gives that to
 * the guest. The others stay until close_others().
 */
static void create_within(FIXTURE_DATA(offline) *self, u64 first, u64 last)
{
	struct gmem_area *a = &self->a;

	a->vm = self->vm;
	a->slot = GMEM_SLOT;
	a->gpa = GMEM_GPA;
	a->size = BLOCK;
	for (self->files = 0; self->files < FILES; self->files++) {
		a->fd = create_file(self, MOVABLE);
		a->file_offset = find_within(a->fd, first, last);
		if (a->file_offset < FILE_SIZE)
			break;
		self->fds[self->files] = a->fd;
	}
	TEST_ASSERT(self->files < FILES, "No file of %lu MiB came from frames %#lx to %#lx",
		    FILES * FILE_SIZE / SZ_1M, first, last);
	a->hva = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, a->fd, a->file_offset);
	TEST_ASSERT(a->hva != MAP_FAILED, "mmap: %s", strerror(errno));
	gmem_area_bind(a);
	gmem_area_virt_map(a);
}

static void close_others(FIXTURE_DATA(offline) *self)
{
	while (self->files--)
		kvm_close(self->fds[self->files]);
}

TEST_F_TIMEOUT(offline, a_block_of_memory_goes, TIMEOUT)
{
	u64 per_block, block, first, last;
	int r;

	if (access(MEMORY "/block_size_bytes", R_OK))
		SKIP(return, "memory cannot be offlined (CONFIG_MEMORY_HOTREMOVE)");
	per_block = read_number(MEMORY "/block_size_bytes", 16) / PG;
	block = find_block(per_block);
	if (!block)
		SKIP(return, "no block of memory is movable (movablecore=)");
	first = block * per_block;
	last = first + per_block - 1;

	run_near(block);
	create_within(self, first, last);
	close_others(self);
	make_half_private(self);

	keep_looking(self);
	r = set_block(block, "offline");
	look_no_more(self);
	TEST_ASSERT(!r, "Block %lu stays: %s", block, strerror(r));
	assert_moved_out(self, first, last);

	r = set_block(block, "online_movable");
	TEST_ASSERT(!r, "Block %lu does not come back: %s", block, strerror(r));
	gmem_area_destroy(&self->a);
}

/* Drivers get all of an area from which a guest has memory. Some had memory there before. */
TEST_F_TIMEOUT(offline, contiguous_memory_is_allocated, TIMEOUT)
{
	u64 first, last, all, pages, at;
	int tries, r, fd;
	u8 *mem;

	if (access(AREA, F_OK) && mount("debugfs", DEBUGFS, "debugfs", 0, NULL) && errno != EBUSY)
		SKIP(return, "no debugfs");
	if (access(AREA "/alloc", W_OK))
		SKIP(return, "no " AREA "/alloc (CONFIG_CMA_DEBUGFS, cma=)");
	first = read_number(AREA "/base_pfn", 10);
	all = read_number(AREA "/count", 10);
	pages = all - read_number(AREA "/used", 10);
	last = first + all - 1;

	run_near(first * PG / read_number(MEMORY "/block_size_bytes", 16));
	create_within(self, first, last);
	/* Now more memory comes from there, if it can be moved. */
	fd = create_file(self, GMEM_MMAP_SHARED);
	mem = kvm_mmap(FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	for (at = 0; at < FILE_SIZE; at += OFF(PAGES))
		TEST_ASSERT_EQ(pages_within(mem + at, first, last), 0);
	kvm_munmap(mem, FILE_SIZE);
	kvm_close(fd);
	fd = create_file(self, MOVABLE);
	TEST_ASSERT(find_within(fd, first, last) < FILE_SIZE, "Memory comes from elsewhere");
	kvm_close(fd);
	close_others(self);
	make_half_private(self);

	keep_looking(self);
	/* A vCPU that is about to map a page has a reference to it. */
	for (tries = 0, r = ENOMEM; tries < TRIES && r; tries++)
		r = write_number(AREA "/alloc", pages);
	look_no_more(self);
	TEST_ASSERT(!r, "%lu pages are not allocated: %s", pages, strerror(r));
	TEST_ASSERT_EQ(read_number(AREA "/used", 10), all);
	assert_moved_out(self, first, last);

	r = write_number(AREA "/free", pages);
	TEST_ASSERT(!r, "The area is not freed: %s", strerror(r));
	gmem_area_destroy(&self->a);
}

/* The memory of a file without the flag does not come from ZONE_MOVABLE. */
TEST_F_TIMEOUT(offline, other_files_stay_out_of_movable_memory, TIMEOUT)
{
	u64 per_block, page, frame;
	int fd;
	u8 *mem;

	if (access(MEMORY "/block_size_bytes", R_OK))
		SKIP(return, "memory cannot be offlined (CONFIG_MEMORY_HOTREMOVE)");
	per_block = read_number(MEMORY "/block_size_bytes", 16) / PG;
	fd = vm_create_guest_memfd(self->vm, OFF(PAGES), GMEM_MMAP_SHARED);
	mem = kvm_mmap(OFF(PAGES), PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	for (page = 0; page < PAGES; page++) {
		mem[OFF(page)] = 1;
		frame = gmem_frame_of(mem + OFF(page));
		TEST_ASSERT(!block_is_movable(frame / per_block), "Page %lu is in movable memory", page);
	}
	kvm_munmap(mem, OFF(PAGES));
	kvm_close(fd);
}

/* The host acts after corrected errors, before the frame fails. */
TEST_F_TIMEOUT(offline, a_private_frame_goes_softly, TIMEOUT)
{
	struct gmem_area *a = &self->a;
	u64 frame;
	int r;

	if (access(MEMORY "/soft_offline_page", W_OK))
		SKIP(return, "no " MEMORY "/soft_offline_page (CONFIG_MEMORY_FAILURE)");
	gmem_area_create(a, self->vm, GMEM_SLOT, GMEM_GPA, OFF(PAGES), MOVABLE);
	make_half_private(self);
	frame = self->frames[3];

	keep_looking(self);
	r = write_number(MEMORY "/soft_offline_page", frame * PG);
	look_no_more(self);
	TEST_ASSERT(!r, "soft_offline_page: %s", strerror(r));
	TEST_ASSERT(frame_has_failed(frame), "Frame %#lx is still in use", frame);
	assert_moved_out(self, frame, frame);
	gmem_area_destroy(a);
}

TEST_F_TIMEOUT(offline, a_private_frame_of_another_file_stays, TIMEOUT)
{
	struct gmem_area *a = &self->a;
	u64 frame;
	int r;

	if (access(MEMORY "/soft_offline_page", W_OK))
		SKIP(return, "no " MEMORY "/soft_offline_page (CONFIG_MEMORY_FAILURE)");
	gmem_area_create(a, self->vm, GMEM_SLOT, GMEM_GPA, OFF(PAGES), GMEM_MMAP_SHARED);
	make_half_private(self);
	frame = self->frames[3];

	r = write_number(MEMORY "/soft_offline_page", frame * PG);
	TEST_ASSERT(r, "A page that cannot be moved was taken");
	TEST_ASSERT(!frame_has_failed(frame), "Frame %#lx is out of use", frame);
	gmem_guest_assert(self->vcpus[0], a->gpa, OFF(PAGES), GMEM_SEED(1), 0);
	gmem_convert(a->fd, 0, OFF(PRIVATE), GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert(a->hva, OFF(PAGES), GMEM_SEED(1), 0);
	TEST_ASSERT_EQ(gmem_frame_of(a->hva + OFF(3)), frame);
	gmem_area_destroy(a);
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
