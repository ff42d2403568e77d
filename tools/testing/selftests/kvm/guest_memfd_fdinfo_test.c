// SPDX-License-Identifier: GPL-2.0
/*
 * The lines of a guest_memfd in /proc/PID/fdinfo/FD and debugfs, after operations
 * whose effect on each line is known, and while conversions run.  Other places that
 * show its memory: stat(), the memory cgroup, the process that maps it.
 */
#include <pthread.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "gmem_test.h"
#include "kvm_test_harness.h"

#define NR_PAGES	16
#define PS		((u64)PAGE_SIZE)

/* The lines of one file. The slots are those of up to two lines. */
struct fdinfo {
	char mode[16], vendor[16];
	u64 size, allocated, private, shared, runs, contiguous, large;
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
			    sscanf(line, "gmem-runs:\t%lu\n", &info->runs) == 1 ||
			    sscanf(line, "gmem-contiguous:\t%lu\n", &info->contiguous) == 1 ||
			    sscanf(line, "gmem-large:\t%lu\n", &info->large) == 1,
			    "Unknown line: %s", line);
		info->lines++;
	}
	fclose(f);
	TEST_ASSERT_EQ(info->lines, 9);
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

/* Existing pages are skipped, by the thousand, and the rest is allocated. */
TEST(allocation_fills_what_is_missing)
{
	static const u64 missing[] = { 0, 1, 511, 1023, 1024, 1025, 2047, 2048, 2500, 3071 };
	const u64 pages = 3072;
	struct kvm_vm *vm = create_vm();
	int fd = vm_create_guest_memfd(vm, pages * PS, GMEM_MMAP_SHARED);
	struct stat st;

	TEST_ASSERT_EQ(gmem_allocate(fd, 0, (pages - 1) * PS), 0);
	for (int i = 0; i < ARRAY_SIZE(missing); i++)
		TEST_ASSERT_EQ(gmem_punch(fd, missing[i] * PS, PS), 0);
	TEST_ASSERT_EQ(fstat(fd, &st), 0);
	TEST_ASSERT_EQ(st.st_blocks, (pages - ARRAY_SIZE(missing)) * PS / 512);
	/* One of them is not in the range. */
	TEST_ASSERT_EQ(gmem_allocate(fd, 0, (pages - 1) * PS), 0);
	TEST_ASSERT_EQ(fstat(fd, &st), 0);
	TEST_ASSERT_EQ(st.st_blocks, (pages - 1) * PS / 512);
	TEST_ASSERT_EQ(gmem_allocate(fd, 0, pages * PS), 0);
	TEST_ASSERT_EQ(fstat(fd, &st), 0);
	TEST_ASSERT_EQ(st.st_blocks, pages * PS / 512);

	kvm_close(fd);
	kvm_vm_free(vm);
}

static void expect_blocks(int fd, u64 pages)
{
	char path[64];
	struct stat st;

	TEST_ASSERT_EQ(fstat(fd, &st), 0);
	TEST_ASSERT_EQ(st.st_blocks, pages * PS / 512);
	TEST_ASSERT_EQ(st.st_size, NR_PAGES * PS);
	TEST_ASSERT(S_ISREG(st.st_mode), "st_mode %#o", st.st_mode);
	/* As other programs see it, for example du. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	TEST_ASSERT_EQ(stat(path, &st), 0);
	TEST_ASSERT_EQ(st.st_blocks, pages * PS / 512);
}

TEST(stat_counts_allocated_blocks)
{
	struct kvm_vm *vm = create_vm();
	int fd = vm_create_guest_memfd(vm, NR_PAGES * PS, GMEM_MMAP_SHARED);
	u8 *mem = kvm_mmap(NR_PAGES * PS, PROT_READ | PROT_WRITE, MAP_SHARED, fd);

	expect_blocks(fd, 0);
	TEST_ASSERT_EQ(gmem_allocate(fd, 2 * PS, 5 * PS), 0);
	expect_blocks(fd, 5);
	mem[0] = 1;
	expect_blocks(fd, 6);
	gmem_convert(fd, 0, 4 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	expect_blocks(fd, 6);
	TEST_ASSERT_EQ(gmem_punch(fd, 0, 4 * PS), 0);
	expect_blocks(fd, 3);

	kvm_munmap(mem, NR_PAGES * PS);
	kvm_close(fd);

	/* A file that does not convert. */
	fd = vm_create_guest_memfd(vm, NR_PAGES * PS, 0);
	TEST_ASSERT_EQ(gmem_allocate(fd, 0, 2 * PS), 0);
	expect_blocks(fd, 2);
	kvm_close(fd);
	kvm_vm_free(vm);
}

#define CGROUPS		"/sys/fs/cgroup"
#define CGROUP		CGROUPS "/gmem-fdinfo"

static bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return done;
}

/* The number behind @name at the beginning of a line; -1 if there is none. */
static long number_in(const char *path, const char *name)
{
	char line[256];
	long n = -1;
	FILE *f = fopen(path, "r");

	if (!f)
		return -1;
	while (n < 0 && fgets(line, sizeof(line), f)) {
		if (!strncmp(line, name, strlen(name)))
			sscanf(line + strlen(name), "%ld", &n);
	}
	fclose(f);
	return n;
}

#define assert_about(got, want)						\
	TEST_ASSERT((got) > (want) - SZ_1M && (got) < (want) + SZ_1M,	\
		    #got " is %ld, wanted about %ld", (long)(got), (long)(want))

/* Batched counters make both inexact, so the test uses much memory. */
TEST(memory_shows_in_the_cgroup_and_in_who_maps_it)
{
	const long size = SZ_16M;
	long file, unevictable, shmem, resident;
	struct kvm_vm *vm;
	u8 *mem;
	int fd;
	long i;

	if (access(CGROUPS "/cgroup.controllers", R_OK))
		mount("cgroup2", CGROUPS, "cgroup2", 0, NULL);
	write_file(CGROUPS "/cgroup.subtree_control", "+memory");
	mkdir(CGROUP, 0755);
	if (!write_file(CGROUP "/cgroup.procs", "0") || access(CGROUP "/memory.stat", R_OK))
		SKIP(return, "needs cgroup 2 with the memory controller");

	vm = create_vm();
	fd = vm_create_guest_memfd(vm, size, GMEM_MMAP_SHARED);
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	file = number_in(CGROUP "/memory.stat", "file ");
	unevictable = number_in(CGROUP "/memory.stat", "unevictable ");
	shmem = number_in(CGROUP "/memory.stat", "shmem ");
	resident = number_in("/proc/self/status", "RssFile:") * 1024;

	for (i = 0; i < size; i += PS)
		mem[i] = 1;
	assert_about(number_in(CGROUP "/memory.stat", "file ") - file, size);
	assert_about(number_in("/proc/self/status", "RssFile:") * 1024 - resident, size);
	assert_about(number_in(CGROUP "/memory.stat", "shmem ") - shmem, 0L);

	/* Private memory still counts for the cgroup, but for no process. */
	gmem_convert(fd, 0, size, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_about(number_in(CGROUP "/memory.stat", "file ") - file, size);
	assert_about(number_in(CGROUP "/memory.stat", "unevictable ") - unevictable, size);
	assert_about(number_in("/proc/self/status", "RssFile:") * 1024 - resident, 0L);

	TEST_ASSERT_EQ(gmem_punch(fd, 0, size), 0);
	assert_about(number_in(CGROUP "/memory.stat", "file ") - file, 0L);

	kvm_munmap(mem, size);
	kvm_close(fd);
	kvm_vm_free(vm);
	write_file(CGROUPS "/cgroup.procs", "0");
	rmdir(CGROUP);
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

/* One line of debugfs. */
struct run {
	u64 start, end;
	bool private;
};

static void runs_path(char *path, size_t size, struct kvm_vm *vm, int fd)
{
	struct stat st;

	TEST_ASSERT(!fstat(fd, &st), "fstat: errno %d", errno);
	snprintf(path, size, "/sys/kernel/debug/kvm/%d-%d/guest_memfd-%lu", getpid(),
		 vm->fd, (unsigned long)st.st_ino);
}

/*
 * Reads by @chunk bytes, which is what the kernel's position must survive, and
 * sleeps for @pause microseconds in between, so that others run.
 */
static int runs_read(struct kvm_vm *vm, int fd, struct run *runs, int max, size_t chunk,
		     useconds_t pause)
{
	static char text[1 << 16];
	char path[128], *line;
	size_t len = 0;
	ssize_t got;
	int in, n = 0;

	runs_path(path, sizeof(path), vm, fd);
	in = open(path, O_RDONLY);
	TEST_ASSERT(in >= 0, "%s: errno %d (%s)", path, errno, strerror(errno));
	while ((got = read(in, text + len, min(chunk, sizeof(text) - 1 - len))) > 0) {
		len += got;
		if (pause)
			usleep(pause);
	}
	TEST_ASSERT(!got, "%s: errno %d (%s)", path, errno, strerror(errno));
	close(in);
	text[len] = 0;

	for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		char kind[16];

		TEST_ASSERT(n < max, "More than %d runs", max);
		TEST_ASSERT(sscanf(line, "%lx-%lx %15s", &runs[n].start, &runs[n].end,
				   kind) == 3, "Unknown line: %s", line);
		runs[n].private = !strcmp(kind, "private");
		TEST_ASSERT(runs[n].private || !strcmp(kind, "shared"),
			    "Unknown line: %s", line);
		n++;
	}
	return n;
}

/* @ends in pages; the first run is private if @private, the others alternate. */
static void expect_runs(struct kvm_vm *vm, int fd, bool private, int nr, const u64 *ends)
{
	struct run runs[NR_PAGES];
	size_t chunk;
	int i;

	for (chunk = 1; chunk < 1000; chunk *= 7) {
		TEST_ASSERT_EQ(runs_read(vm, fd, runs, NR_PAGES, chunk, 0), nr);
		for (i = 0; i < nr; i++) {
			TEST_ASSERT_EQ(runs[i].start, i ? ends[i - 1] * PS : 0);
			TEST_ASSERT_EQ(runs[i].end, ends[i] * PS);
			TEST_ASSERT_EQ(runs[i].private, private ^ (i & 1));
		}
	}
}

static bool have_debugfs(void)
{
	return !access("/sys/kernel/debug/kvm", R_OK | X_OK);
}

#define NO_DEBUGFS "no debugfs of KVM at /sys/kernel/debug, or no right to read it"

TEST(debugfs_shows_the_runs)
{
	struct kvm_vm *vm;
	char path[128];
	int fd, open_fd;

	if (!have_debugfs())
		SKIP(return, NO_DEBUGFS);
	vm = create_vm();
	fd = vm_create_guest_memfd(vm, NR_PAGES * PS, GMEM_MMAP_SHARED);
	expect_runs(vm, fd, false, 1, (const u64[]){ NR_PAGES });
	gmem_convert(fd, 4 * PS, 3 * PS, GMEM_PRIVATE, GMEM_ZERO);
	expect_runs(vm, fd, false, 3, (const u64[]){ 4, 7, NR_PAGES });
	gmem_convert(fd, 0, PS, GMEM_PRIVATE, GMEM_ZERO);
	expect_runs(vm, fd, true, 4, (const u64[]){ 1, 4, 7, NR_PAGES });
	gmem_convert(fd, PS, 3 * PS, GMEM_PRIVATE, GMEM_ZERO);
	expect_runs(vm, fd, true, 2, (const u64[]){ 7, NR_PAGES });

	/* It goes away with the file, also for readers that have it open. */
	runs_path(path, sizeof(path), vm, fd);
	open_fd = open(path, O_RDONLY);
	TEST_ASSERT(open_fd >= 0, "%s: errno %d", path, errno);
	kvm_close(fd);
	TEST_ASSERT(access(path, F_OK) && errno == ENOENT, "%s is still there", path);
	TEST_ASSERT(read(open_fd, path, sizeof(path)) < 0 && errno == EIO,
		    "Read what is gone, errno %d", errno);
	kvm_close(open_fd);
	kvm_vm_free(vm);
}

TEST(debugfs_shows_a_fixed_file)
{
	struct kvm_vm *vm;
	int fd;

	if (!have_debugfs())
		SKIP(return, NO_DEBUGFS);
	vm = create_vm();
	fd = vm_create_guest_memfd(vm, NR_PAGES * PS, 0);
	expect_runs(vm, fd, true, 1, (const u64[]){ NR_PAGES });
	kvm_close(fd);
	kvm_vm_free(vm);
}

/*
 * Pages that one thread converts while the other reads; the pages around them stay.
 * The kernel makes lines for a page of text at a time, so there are several pages.
 */
#define MANY_PAGES	512
#define MOVING_FIRST	3
#define MOVING_PAGES	506
#define LOOKS		50

struct converter {
	int fd;
	bool stop;
	unsigned long rounds;
};

static void *convert_back_and_forth(void *arg)
{
	struct converter *c = arg;
	u64 i;

	while (!READ_ONCE(c->stop)) {
		/* Runs come and go one by one, then all at once. */
		for (i = 0; i < MOVING_PAGES; i += 2)
			gmem_convert(c->fd, (MOVING_FIRST + i) * PS, PS, GMEM_PRIVATE,
				     GMEM_PRESERVE);
		gmem_convert(c->fd, MOVING_FIRST * PS, MOVING_PAGES * PS, GMEM_PRIVATE,
			     GMEM_PRESERVE);
		gmem_convert(c->fd, MOVING_FIRST * PS, MOVING_PAGES * PS, GMEM_SHARED,
			     GMEM_PRESERVE);
		WRITE_ONCE(c->rounds, c->rounds + 1);
	}
	return NULL;
}

TEST(each_page_is_seen_once_while_conversions_run)
{
	struct converter c = {};
	struct kvm_vm *vm = create_vm();
	unsigned long changes = 0, begun;
	static struct run runs[MANY_PAGES];
	struct fdinfo info;
	pthread_t thread;
	u64 last = 0;
	int i, j, n;

	c.fd = vm_create_guest_memfd(vm, MANY_PAGES * PS, GMEM_MMAP_SHARED);
	kvm_pthread_create(&thread, NULL, convert_back_and_forth, &c);

	/* Until both have done enough; neither waits for the other to begin. */
	for (i = 0; i < LOOKS || READ_ONCE(c.rounds) < LOOKS; i++) {
		fdinfo_read(c.fd, &info);
		TEST_ASSERT_EQ(info.private + info.shared, MANY_PAGES * PS);
		TEST_ASSERT(info.private <= MOVING_PAGES * PS, "%lu bytes private",
			    info.private);
		TEST_ASSERT(info.runs >= 1 && info.runs <= MOVING_PAGES + 1, "%lu runs",
			    info.runs);
		changes += info.private != last;
		last = info.private;

		if (!have_debugfs())
			continue;
		n = runs_read(vm, c.fd, runs, MANY_PAGES, PAGE_SIZE, 1);
		for (j = 0; j < n; j++) {
			TEST_ASSERT_EQ(runs[j].start, j ? runs[j - 1].end : 0);
			TEST_ASSERT(runs[j].start < runs[j].end, "Run %d is empty", j);
			TEST_ASSERT(!runs[j].private ||
				    (runs[j].start >= MOVING_FIRST * PS &&
				     runs[j].end <= (MOVING_FIRST + MOVING_PAGES) * PS),
				    "0x%lx-0x%lx is private", runs[j].start, runs[j].end);
		}
		TEST_ASSERT_EQ(runs[n - 1].end, MANY_PAGES * PS);
	}
	begun = READ_ONCE(c.rounds);
	WRITE_ONCE(c.stop, true);
	kvm_pthread_join(thread, NULL);
	ksft_print_msg("%d looks, %lu rounds of conversions, %lu looks saw a change\n", i,
		       begun, changes);
	TEST_ASSERT(changes, "No read saw a conversion");
	if (!have_debugfs())
		ksft_print_msg("Without the runs: " NO_DEBUGFS "\n");

	kvm_close(c.fd);
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
