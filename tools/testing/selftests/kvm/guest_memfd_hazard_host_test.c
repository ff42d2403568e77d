// SPDX-License-Identifier: GPL-2.0
/*
 * Hazards 37 and 62 of in-place conversion: every way for the host to reach a page,
 * tried on a private one. In 62 a part of the kernel reads the page cache without
 * asking the file.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/falloc.h>
#include <linux/futex.h>
/* For <linux/io_uring.h>: the <linux/types.h> of tools/include lacks it. */
#include <linux/stddef.h>
#include <linux/io_uring.h>
#include <linux/mempolicy.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "gmem_hazard.h"
#include "numaif.h"

/*
 * Page 1 is private and holds the guest's bytes, 0 and 2 are shared and hold
 * the host's. Each subtest tries one way; afterwards all has to be as it was.
 */
static void h37_create(struct hz *h)
{
	hz_create(h, 3, GMEM_MMAP_SHARED, 1);
	host_fill(h, 0, 1, GMEM_SEED(1));
	host_fill(h, 2, 1, GMEM_SEED(2));
	convert(h, 1, 1, GMEM_PRIVATE, GMEM_ZERO);
	guest_fill(h, 1, 1, GMEM_SEED(37));
}

HAZARD(h37_touch_and_mremap)
{
	volatile u8 *mem, *moved;
	struct hz h;

	h37_create(&h);
	h37_unharmed(&h);

	/* A mapping of its own, moved, doubled, and a part of it split off. */
	mem = kvm_mmap(OFF(3), PROT_READ | PROT_WRITE, MAP_SHARED, h.a.fd);
	moved = kvm_mmap(OFF(3), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	moved = mremap((void *)mem, OFF(3), OFF(3), MREMAP_MAYMOVE | MREMAP_FIXED,
		       moved);
	TEST_ASSERT(moved != MAP_FAILED, "mremap() failed");
	TEST_ASSERT(gmem_host_refused(moved + PG), "Reached through mremap()");
	mem = mremap((void *)moved, 0, OFF(3), MREMAP_MAYMOVE);
	if (mem != MAP_FAILED)
		TEST_ASSERT(gmem_host_refused(mem + PG), "Reached through a double");
	TEST_ASSERT(!mprotect((void *)(moved + PG), PG, PROT_READ), "mprotect() failed");
	TEST_ASSERT(!mprotect((void *)(moved + PG), PG, PROT_READ | PROT_WRITE),
		    "mprotect() failed");
	TEST_ASSERT(gmem_host_refused(moved + PG), "Reached after mprotect()");
	h37_unharmed(&h);
}

HAZARD(h37_map_populate_and_mlock)
{
	unsigned char vec[3];
	struct hz h;
	u8 *mem;

	h37_create(&h);
	mem = mmap(NULL, OFF(3), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
		   h.a.fd, 0);
	TEST_ASSERT(mem != MAP_FAILED, "mmap() failed");
	TEST_ASSERT(gmem_host_refused(mem + PG), "Populated");
	TEST_ASSERT(!(gmem_pagemap(mem + PG) >> 63), "A private page is mapped");
	fails(mmap(NULL, OFF(3), PROT_READ | PROT_WRITE, MAP_PRIVATE, h.a.fd, 0));

	fails(mlock(mem, OFF(3)));
	TEST_ASSERT(gmem_host_refused(mem + PG), "Reached after mlock()");
	munlock(mem, OFF(3));
	/* VM_LOCKED with no page behind it, and the other way round. */
	mlock2(mem + PG, PG, MLOCK_ONFAULT);
	TEST_ASSERT(gmem_host_refused(mem + PG), "Reached after mlock2()");
	munlock(mem, OFF(3));
	mincore(mem, OFF(3), vec);
	msync(mem, OFF(3), MS_SYNC);
	h37_unharmed(&h);
}

HAZARD(h37_userfaultfd)
{
	static const u64 modes[] = {
		UFFDIO_REGISTER_MODE_MISSING,
		UFFDIO_REGISTER_MODE_WP,
		UFFDIO_REGISTER_MODE_MINOR,
	};
	struct uffdio_api api = { .api = UFFD_API };
	static u8 src[4096] __attribute__((aligned(4096)));
	int i, fd, registered = 0;
	struct hz h;

	fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	HZ_REQUIRE(fd >= 0, "needs USERFAULTFD");
	h37_create(&h);
	TEST_ASSERT(!ioctl(fd, UFFDIO_API, &api), "UFFDIO_API failed");

	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		struct uffdio_range range = {
			.start = (unsigned long)hz_hva(&h, 0),
			.len = OFF(3),
		};
		struct uffdio_register reg = { .range = range, .mode = modes[i] };
		struct uffdio_copy copy = {
			.dst = (unsigned long)hz_hva(&h, 1),
			.src = (unsigned long)src,
			.len = PG,
		};
		struct uffdio_zeropage zero = {
			.range = { .start = copy.dst, .len = PG },
		};
		struct uffdio_continue cont = {
			.range = { .start = copy.dst, .len = PG },
		};

		if (!ioctl(fd, UFFDIO_REGISTER, &reg))
			registered++;
		fails(ioctl(fd, UFFDIO_COPY, &copy));
		fails(ioctl(fd, UFFDIO_ZEROPAGE, &zero));
		fails(ioctl(fd, UFFDIO_CONTINUE, &cont));
		ioctl(fd, UFFDIO_UNREGISTER, &range);
		h37_unharmed(&h);
	}
	pr_info("# %d of %d modes could be registered\n", registered,
		(int)ARRAY_SIZE(modes));
	close(fd);
}

HAZARD(h37_ptrace)
{
	int status;
	struct hz h;
	pid_t pid;

	h37_create(&h);
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		_exit(0);
	}
	TEST_ASSERT(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status),
		    "The child did not stop");

	errno = 0;
	ptrace(PTRACE_PEEKDATA, pid, hz_hva(&h, 0), NULL);
	TEST_ASSERT(!errno, "PEEKDATA of a shared page: %s", strerror(errno));
	refused(ptrace(PTRACE_PEEKDATA, pid, hz_hva(&h, 1), NULL), EIO);
	refused(ptrace(PTRACE_POKEDATA, pid, hz_hva(&h, 1), 0x41414141), EIO);
	ptrace(PTRACE_KILL, pid, NULL, NULL);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	h37_unharmed(&h);
}

HAZARD(h37_process_vm_readv)
{
	static u8 buf[3 * 4096];
	struct iovec local = { .iov_base = buf, .iov_len = PG };
	struct iovec remote = { .iov_len = PG };
	struct hz h;

	h37_create(&h);
	remote.iov_base = (void *)hz_hva(&h, 0);
	if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != PG)
		SKIP(return, "needs CROSS_MEMORY_ATTACH");

	remote.iov_base = (void *)hz_hva(&h, 1);
	refused(process_vm_readv(getpid(), &local, 1, &remote, 1, 0), EFAULT);
	refused(process_vm_writev(getpid(), &local, 1, &remote, 1, 0), EFAULT);

	/* From shared into private: up to the border. */
	remote.iov_base = (void *)hz_hva(&h, 0);
	remote.iov_len = OFF(3);
	local.iov_len = OFF(3);
	TEST_ASSERT_EQ((u64)process_vm_readv(getpid(), &local, 1, &remote, 1, 0), PG);
	h37_unharmed(&h);
}

HAZARD(h37_proc_pid_mem)
{
	static u8 buf[4096];
	struct hz h;
	int fd;

	h37_create(&h);
	fd = open("/proc/self/mem", O_RDWR);
	HZ_REQUIRE(fd >= 0, "needs /proc/self/mem");
	TEST_ASSERT(pread(fd, buf, PG, (unsigned long)hz_hva(&h, 0)) == PG,
		    "A shared page cannot be read");
	refused(pread(fd, buf, PG, (unsigned long)hz_hva(&h, 1)), EIO);
	refused(pwrite(fd, buf, PG, (unsigned long)hz_hva(&h, 1)), EIO);
	close(fd);
	h37_unharmed(&h);
}

HAZARD(h37_read_and_write_with_it_as_buffer)
{
	int zero, p[2], fds[2];
	struct hz h;
	u8 *mem;

	h37_create(&h);
	mem = (u8 *)hz_hva(&h, 1);
	TEST_ASSERT(!pipe(p) && !pipe(fds), "pipe() failed");
	TEST_ASSERT(write(p[1], "x", 1) == 1, "write() failed");

	refused(write(p[1], mem, PG), EFAULT);
	refused(read(p[0], mem, 1), EFAULT);
	zero = open("/dev/zero", O_RDWR);
	if (zero >= 0) {
		refused(read(zero, mem, PG), EFAULT);
		close(zero);
	}
	/* As a structure that a system call takes or returns. */
	refused(fstat(p[0], (struct stat *)mem), EFAULT);
	refused(open((char *)mem, O_RDONLY), EFAULT);
	refused(poll((struct pollfd *)mem, 1, 0), EFAULT);
	refused(syscall(__NR_futex, mem, FUTEX_WAIT, 0, NULL, NULL, 0), EFAULT);
	refused(syscall(__NR_futex, mem, FUTEX_WAKE, 1, NULL, NULL, 0), EFAULT);
	refused(syscall(__NR_futex, mem, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0), EFAULT);
	refused(syscall(__NR_futex, mem, FUTEX_LOCK_PI, 0, NULL, NULL, 0), EFAULT);
	h37_unharmed(&h);
}

HAZARD(h37_o_direct)
{
	struct hz h;
	int fd;

	fd = open("/dev/ram0", O_RDWR | O_DIRECT);
	HZ_REQUIRE(fd >= 0, "needs /dev/ram0");
	h37_create(&h);

	/* It works on a shared page, so it fails because the page is private. */
	TEST_ASSERT(pwrite(fd, (void *)hz_hva(&h, 0), PG, 0) == PG,
		    "O_DIRECT write of a shared page: %s", strerror(errno));
	TEST_ASSERT(pread(fd, (void *)hz_hva(&h, 0), PG, 0) == PG,
		    "O_DIRECT read into a shared page: %s", strerror(errno));
	refused(pread(fd, (void *)hz_hva(&h, 1), PG, 0), EFAULT);
	refused(pwrite(fd, (void *)hz_hva(&h, 1), PG, 0), EFAULT);
	close(fd);
	h37_unharmed(&h);
}

/* One request on a ring of its own; returns the completion's result. */
static int ring_rw(int op, int fd, void *buf)
{
	struct io_uring_params p;
	struct io_uring_sqe *sqes;
	u8 *sq, *cq;
	int ring, res;
	u32 tail;

	ring = ring_create(&p);
	TEST_ASSERT(ring >= 0, "io_uring_setup() failed");
	sq = __kvm_mmap(p.sq_off.array + p.sq_entries * sizeof(u32),
			PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	cq = __kvm_mmap(p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe),
			PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	sqes = __kvm_mmap(p.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE,
			  MAP_SHARED, ring, IORING_OFF_SQES);

	memset(&sqes[0], 0, sizeof(sqes[0]));
	sqes[0].opcode = op;
	sqes[0].fd = fd;
	sqes[0].addr = (unsigned long)buf;
	sqes[0].len = PG;
	tail = *(u32 *)(sq + p.sq_off.tail);
	((u32 *)(sq + p.sq_off.array))[tail & *(u32 *)(sq + p.sq_off.ring_mask)] = 0;
	__atomic_store_n((u32 *)(sq + p.sq_off.tail), tail + 1, __ATOMIC_RELEASE);

	TEST_ASSERT(syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS,
			    NULL, 0) == 1, "io_uring_enter() failed");
	res = ((struct io_uring_cqe *)(cq + p.cq_off.cqes))->res;
	close(ring);
	return res;
}

HAZARD(h37_io_uring)
{
	struct io_uring_params params;
	struct iovec iov;
	struct hz h;
	int ring, fd;

	ring = ring_create(&params);
	HZ_REQUIRE(ring >= 0, "needs IO_URING");
	h37_create(&h);

	iov.iov_base = (void *)hz_hva(&h, 1);
	iov.iov_len = PG;
	refused(syscall(__NR_io_uring_register, ring, IORING_REGISTER_BUFFERS,
			&iov, 1), EFAULT);
	iov.iov_base = (void *)hz_hva(&h, 0);
	iov.iov_len = OFF(3);
	refused(syscall(__NR_io_uring_register, ring, IORING_REGISTER_BUFFERS,
			&iov, 1), EFAULT);
	close(ring);

	/* The failed registration of all three has left no pin behind. */
	convert(&h, 0, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	convert(&h, 0, 1, GMEM_SHARED, GMEM_PRESERVE);

	fd = open("/dev/zero", O_RDWR);
	HZ_REQUIRE(fd >= 0, "needs /dev/zero");
	TEST_ASSERT_EQ(ring_rw(IORING_OP_READ, fd, (void *)hz_hva(&h, 1)), -EFAULT);
	close(fd);
	fd = open("/dev/ram0", O_RDWR | O_DIRECT);
	if (fd >= 0) {
		TEST_ASSERT_EQ(ring_rw(IORING_OP_WRITE, fd, (void *)hz_hva(&h, 1)),
			       -EFAULT);
		TEST_ASSERT_EQ(ring_rw(IORING_OP_READ, fd, (void *)hz_hva(&h, 1)),
			       -EFAULT);
		close(fd);
	}
	h37_unharmed(&h);
}

HAZARD(h37_vmsplice)
{
	struct iovec iov = { .iov_len = PG };
	struct hz h;
	int p[2];

	h37_create(&h);
	iov.iov_base = (void *)hz_hva(&h, 1);
	TEST_ASSERT(!pipe(p), "pipe() failed");
	refused(vmsplice(p[1], &iov, 1, 0), EFAULT);
	refused(vmsplice(p[1], &iov, 1, SPLICE_F_GIFT), EFAULT);
	TEST_ASSERT(write(p[1], "x", 1) == 1, "write() failed");
	refused(vmsplice(p[0], &iov, 1, 0), EFAULT);
	h37_unharmed(&h);
}

HAZARD(h37_gup_pin)
{
	struct pin pin;
	struct hz h;
	int r;

	h37_create(&h);
	r = pin_page(&pin, PIN_GUP, hz_hva(&h, 1));
	HZ_REQUIRE(r != ENODEV, "needs debugfs and GUP_TEST");
	TEST_ASSERT_EQ(r, EFAULT);
	unpin_page(&pin);
	r = pin_page(&pin, PIN_GUP_FAST, hz_hva(&h, 1));
	TEST_ASSERT_EQ(r, EFAULT);
	unpin_page(&pin);
	h37_unharmed(&h);
}

HAZARD(h37_madvise)
{
	static const struct {
		const char *name;
		int advice;
		int want;	/* errno, or -1: any result */
	} advices[] = {
		{ "MADV_POPULATE_READ", MADV_POPULATE_READ, EFAULT },
		{ "MADV_POPULATE_WRITE", MADV_POPULATE_WRITE, EFAULT },
		{ "MADV_DONTNEED", MADV_DONTNEED, 0 },
		{ "MADV_FREE", MADV_FREE, EINVAL },
		{ "MADV_COLD", MADV_COLD, -1 },
		{ "MADV_PAGEOUT", MADV_PAGEOUT, -1 },
		{ "MADV_WILLNEED", MADV_WILLNEED, -1 },
		{ "MADV_MERGEABLE", MADV_MERGEABLE, -1 },
		{ "MADV_UNMERGEABLE", MADV_UNMERGEABLE, -1 },
		{ "MADV_HUGEPAGE", MADV_HUGEPAGE, -1 },
		{ "MADV_COLLAPSE", MADV_COLLAPSE, EINVAL },
		{ "MADV_DONTDUMP", MADV_DONTDUMP, 0 },
		{ "MADV_DODUMP", MADV_DODUMP, -1 },
	};
	struct hz h;
	int i, r;

	h37_create(&h);
	for (i = 0; i < ARRAY_SIZE(advices); i++) {
		r = madvise((void *)hz_hva(&h, 1), PG, advices[i].advice) ? errno : 0;
		TEST_ASSERT(advices[i].want < 0 || r == advices[i].want,
			    "%s: errno %d (%s), wanted %d", advices[i].name, r,
			    strerror(r), advices[i].want);
		h37_unharmed(&h);
	}

	/*
	 * MADV_REMOVE punches a hole, as the owner of the file can: the page
	 * then reads as zeroes, but its state must not change.
	 */
	r = madvise((void *)hz_hva(&h, 1), PG, MADV_REMOVE) ? errno : 0;
	if (!r) {
		guest_sees(&h, 1, 1, GMEM_ZEROES);
		guest_fill(&h, 1, 1, GMEM_SEED(37));
	}
	h37_unharmed(&h);
}

HAZARD(h37_madvise_poison)
{
	struct hz h;

	HZ_REQUIRE(can_poison_mapped(), "needs MEMORY_FAILURE and root");
	h37_create(&h);
	TEST_ASSERT_EQ(poison_mapped(hz_hva(&h, 1)), EFAULT);
	fails(madvise((void *)hz_hva(&h, 1), PG, MADV_SOFT_OFFLINE));
	h37_unharmed(&h);
	/* A mapped page cannot be moved either. */
	madvise((void *)hz_hva(&h, 0), PG, MADV_SOFT_OFFLINE);
	h37_unharmed(&h);
}

HAZARD(h37_numa_migration)
{
	unsigned long mask = 1;
	void *page;
	int status = 0;
	struct hz h;

	h37_create(&h);
	page = (void *)hz_hva(&h, 1);
	mbind(page, PG, MPOL_BIND, &mask, 8, MPOL_MF_MOVE_ALL | MPOL_MF_STRICT);
	h37_unharmed(&h);
	if (move_pages(0, 1, &page, NULL, &status, 0) && errno == ENOSYS)
		SKIP(return, "needs NUMA and MIGRATION");
	TEST_ASSERT(status < 0, "A private page is on node %d, says move_pages()",
		    status);
	mbind((void *)hz_hva(&h, 0), OFF(3), MPOL_DEFAULT, NULL, 0, 0);
	h37_unharmed(&h);
}

HAZARD(h37_file_operations)
{
	static u8 buf[4096];
	loff_t off = PG;
	off_t soff = PG;
	int p[2], tmp;
	struct hz h;

	h37_create(&h);
	TEST_ASSERT(!pipe(p), "pipe() failed");
	tmp = memfd_create("gmem-hazard", 0);
	TEST_ASSERT(tmp >= 0 && !ftruncate(tmp, PG), "memfd failed");

	fails(read(h.a.fd, buf, PG));
	fails(pread(h.a.fd, buf, PG, PG));
	fails(write(h.a.fd, buf, PG));
	fails(pwrite(h.a.fd, buf, PG, PG));
	fails(splice(h.a.fd, &off, p[1], NULL, PG, 0));
	TEST_ASSERT(write(p[1], buf, PG) == PG, "write() failed");
	fails(splice(p[0], NULL, h.a.fd, &off, PG, 0));
	fails(sendfile(tmp, h.a.fd, &soff, PG));
	soff = 0;
	fails(sendfile(h.a.fd, tmp, &soff, PG));
	off = PG;
	fails(copy_file_range(h.a.fd, &off, tmp, NULL, PG, 0));
	off = PG;
	fails(copy_file_range(tmp, NULL, h.a.fd, &off, PG, 0));
	fails(ftruncate(h.a.fd, 0));
	fails(ftruncate(h.a.fd, OFF(6)));
	fails(fallocate(h.a.fd, FALLOC_FL_ZERO_RANGE, PG, PG));
	fails(fallocate(h.a.fd, FALLOC_FL_COLLAPSE_RANGE, PG, PG));
	h37_unharmed(&h);
}

#define BUILD_ID_SIZE	20

/* An image that contains nothing but a build ID. */
struct h62_image {
	Elf64_Ehdr file;
	Elf64_Phdr segment;
	Elf64_Nhdr note;
	char name[4];
	u8 id[BUILD_ID_SIZE];
};

static void h62_write_image(volatile u8 *page)
{
	struct h62_image image = {
		.file = {
			.e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64,
				     ELFDATA2LSB, EV_CURRENT },
			.e_type = ET_DYN,
			.e_version = EV_CURRENT,
			.e_phoff = offsetof(struct h62_image, segment),
			.e_phentsize = sizeof(Elf64_Phdr),
			.e_phnum = 1,
		},
		.segment = {
			.p_type = PT_NOTE,
			.p_offset = offsetof(struct h62_image, note),
			.p_filesz = sizeof(image) - offsetof(struct h62_image, note),
			.p_align = 4,
		},
		.note = { .n_namesz = 4, .n_descsz = BUILD_ID_SIZE, .n_type = NT_GNU_BUILD_ID },
		.name = "GNU",
	};
	int i;

	memset(image.id, SECRET, sizeof(image.id));
	for (i = 0; i < sizeof(image); i++)
		page[i] = ((u8 *)&image)[i];
}

/* Checks that the guest reads the image in the page. */
static void h62_guest_has_image(struct hz *h)
{
	u64 at = h->a.gpa + offsetof(struct h62_image, id);

	TEST_ASSERT_EQ(gmem_guest_read(h->vcpus[0], at), SECRET);
}

#define PERF_BUFFER	OFF(9)

/* A recorder of this task's mappings, executable or not, with build IDs. */
static int h62_record(struct perf_event_mmap_page **buffer)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(attr),
		.config = PERF_COUNT_SW_DUMMY,
		.mmap = 1,
		.mmap_data = 1,
		.mmap2 = 1,
		.build_id = 1,
		.exclude_kernel = 1,
	};
	int fd = syscall(__NR_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);

	if (fd >= 0)
		*buffer = kvm_mmap(PERF_BUFFER, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	return fd;
}

/* From linux/perf_event.h, where it is a comment. */
struct h62_mmap2 {
	struct perf_event_header header;
	u32 pid, tid;
	u64 addr, len, pgoff;
	u8 id_size, reserved[3];
	u8 id[BUILD_ID_SIZE];
};

/* The record of the mapping at @addr, with its build ID or without. */
static struct h62_mmap2 h62_recorded(struct perf_event_mmap_page *buffer, const void *addr)
{
	struct h62_mmap2 record = { };
	u8 *data = (u8 *)buffer + buffer->data_offset;
	u64 at, head = __atomic_load_n(&buffer->data_head, __ATOMIC_ACQUIRE);
	struct perf_event_header *header;

	TEST_ASSERT(head < buffer->data_size, "The buffer is too small");
	for (at = 0; at < head; at += header->size) {
		header = (void *)(data + at);
		if (header->type != PERF_RECORD_MMAP2)
			continue;
		memcpy(&record, header, sizeof(record));
		if (record.addr == (unsigned long)addr)
			return record;
	}
	TEST_FAIL("The mapping was not recorded");
	return record;
}

/* perf reads the build ID from the page cache of a mapped file, for any process. */
HAZARD(h62_build_id_of_a_mapping)
{
	struct perf_event_mmap_page *buffer;
	struct h62_mmap2 record;
	struct hz h;
	int fd, tmp;
	u8 *mem;

	fd = h62_record(&buffer);
	HZ_REQUIRE(fd >= 0, "needs PERF_EVENTS");

	/* It finds that of an ordinary file, so the image is valid. */
	tmp = memfd_create("gmem-hazard", 0);
	TEST_ASSERT(tmp >= 0 && !ftruncate(tmp, PG), "memfd failed");
	mem = kvm_mmap(PG, PROT_READ | PROT_WRITE, MAP_SHARED, tmp);
	h62_write_image(mem);
	mem = kvm_mmap(PG, PROT_READ, MAP_SHARED, tmp);
	record = h62_recorded(buffer, mem);
	TEST_ASSERT(record.header.misc & PERF_RECORD_MISC_MMAP_BUILD_ID,
		    "No build ID of an ordinary file");
	TEST_ASSERT(record.id_size == BUILD_ID_SIZE && record.id[0] == SECRET,
		    "Another build ID than the file's");

	hz_create(&h, 3, GMEM_MMAP_SHARED, 1);
	h62_write_image(hz_hva(&h, 0));
	convert(&h, 0, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	mem = kvm_mmap(OFF(3), PROT_READ, MAP_SHARED, h.a.fd);
	record = h62_recorded(buffer, mem);
	TEST_ASSERT(!(record.header.misc & PERF_RECORD_MISC_MMAP_BUILD_ID),
		    "perf has the build ID of a private page, %#x", record.id[0]);

	/* The mapping is recorded again when its protection changes. */
	TEST_ASSERT(!mprotect(mem, PG, PROT_READ | PROT_WRITE), "mprotect() failed");
	TEST_ASSERT(gmem_host_refused(mem), "Reached");
	h62_guest_has_image(&h);
	close(fd);
}

/* Other parts of the kernel that read a file's pages. */
HAZARD(h62_other_readers_of_the_page_cache)
{
	static char * const args[] = { "gmem", NULL };
	char path[64];
	struct hz h;
	u8 *mem;

	hz_create(&h, 3, GMEM_MMAP_SHARED, 1);
	h62_write_image(hz_hva(&h, 0));
	convert(&h, 0, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", h.a.fd);

	fails(execveat(h.a.fd, "", args, args, AT_EMPTY_PATH));
	fails(syscall(__NR_finit_module, h.a.fd, "", 0));
	fails(syscall(__NR_kexec_file_load, h.a.fd, -1, 1UL, "", 4UL));
	fails(swapon(path, 0));
	fails(open(path, O_RDONLY));
	fails(mmap(NULL, PG, PROT_READ | PROT_EXEC, MAP_SHARED, h.a.fd, 0));
	mem = kvm_mmap(PG, PROT_READ | PROT_WRITE, MAP_SHARED, h.a.fd);
	fails(mprotect(mem, PG, PROT_READ | PROT_WRITE | PROT_EXEC));

	/* Calls that read pages ahead or drop them read nothing, and drop nothing in use. */
	fails(readahead(h.a.fd, 0, PG));
	posix_fadvise(h.a.fd, 0, OFF(3), POSIX_FADV_WILLNEED);
	posix_fadvise(h.a.fd, 0, OFF(3), POSIX_FADV_DONTNEED);
	hz_write_file("/proc/sys/vm/drop_caches", "1", 0);
	sync_file_range(h.a.fd, 0, OFF(3), SYNC_FILE_RANGE_WRITE);

	TEST_ASSERT(gmem_host_refused(mem), "Reached");
	h62_guest_has_image(&h);
	attributes_are(&h, 0, 1, GMEM_PRIVATE);
}

#ifdef __x86_64__
/* Changes of the host's mappings of the file do not remove mappings of the guest. */
HAZARD(h58_host_unmaps)
{
	const u64 n = 4;
	u64 before;
	struct hz h;

	hz_create(&h, n, GMEM_MMAP_SHARED, 1);
	host_fill(&h, 0, n, GMEM_SEED(1));
	convert(&h, 3, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	for (u64 page = 0; page < n; page++)
		gmem_guest_write(h.vcpus[0], h.a.gpa + OFF(page), page);
	before = vcpu_get_stat(h.vcpus[0], pf_taken);

	TEST_ASSERT(!madvise((void *)hz_hva(&h, 0), OFF(n), MADV_DONTNEED), "madvise() failed");
	TEST_ASSERT(!(gmem_pagemap(hz_hva(&h, 0)) >> 63), "The host still has it mapped");
	for (u64 page = 0; page < n; page++)
		TEST_ASSERT_EQ(gmem_guest_read(h.vcpus[0], h.a.gpa + OFF(page)), page);
	TEST_ASSERT(!mprotect((void *)hz_hva(&h, 0), OFF(n), PROT_NONE), "mprotect() failed");
	TEST_ASSERT(!munmap((void *)hz_hva(&h, 0), OFF(n)), "munmap() failed");
	for (u64 page = 0; page < n; page++)
		gmem_guest_write(h.vcpus[0], h.a.gpa + OFF(page), page);
	TEST_ASSERT_EQ(vcpu_get_stat(h.vcpus[0], pf_taken) - before, 0);
}
#endif

/*
 * Pages 0 to 7 are shared, 8 and 9 private, the others shared again. A host
 * that goes through the first gets some of them mapped ahead, and none of the
 * next.
 */
static void h60_around(bool write)
{
	const u64 first = 8, next = 10, n = 14, unused = 6;
	u64 ahead = 0;
	struct hz h;
	u8 *mem;
	u8 val;

	hz_create(&h, n, GMEM_MMAP_SHARED, 1);
	host_fill(&h, 0, n, GMEM_SEED(1));
	TEST_ASSERT(!gmem_punch(h.a.fd, OFF(unused), PG), "Punching failed");
	TEST_ASSERT(!gmem_allocate(h.a.fd, OFF(unused), PG), "Allocating failed");
	convert(&h, first, next - first, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(&h, first, next - first, GMEM_SEED(37));

	/* All pages belong to one page table, in which none is mapped yet. */
	mem = kvm_mmap(2 * SZ_2M, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	mem = mmap((void *)align_up((unsigned long)mem, SZ_2M), OFF(n), PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_FIXED, h.a.fd, 0);
	TEST_ASSERT(mem != MAP_FAILED, "mmap() failed");
	for (u64 page = 0; page < n; page++)
		TEST_ASSERT(!(gmem_pagemap(mem + OFF(page)) >> 63), "Page %lu is mapped", page);

	for (u64 page = 0; page < 2; page++)
		TEST_ASSERT(write ? gmem_host_write(mem + OFF(page), 1) :
				    gmem_host_read(mem + OFF(page), &val), "Refused");
	for (u64 page = 2; page < first; page++)
		ahead += gmem_pagemap(mem + OFF(page)) >> 63;
	for (u64 page = first; page < n; page++)
		TEST_ASSERT(!(gmem_pagemap(mem + OFF(page)) >> 63), "Page %lu is mapped", page);
	TEST_ASSERT(!(gmem_pagemap(mem + OFF(unused)) >> 63), "A page never used is mapped");
#ifdef __x86_64__
	TEST_ASSERT_EQ(ahead, first - 2 - 1);
#else
	TEST_ASSERT_EQ(ahead, 0);
#endif
	TEST_ASSERT(gmem_host_refused(mem + OFF(first)), "A private page is reached");
	TEST_ASSERT(gmem_host_read(mem + OFF(unused), &val) && !val, "A new page is not zero");
	TEST_ASSERT(gmem_host_read(mem + OFF(next), &val), "Refused");

	/* Pages that were mapped ahead do not prevent conversions, and are not left over. */
	convert(&h, 0, first, GMEM_PRIVATE, GMEM_PRESERVE);
	for (u64 page = 0; page < next; page++) {
		TEST_ASSERT(!(gmem_pagemap(mem + OFF(page)) >> 63), "Page %lu is mapped", page);
		TEST_ASSERT(gmem_host_refused(mem + OFF(page)), "Page %lu is reached", page);
	}
}

HAZARD(h60_read_ahead_of_the_host)
{
	h60_around(false);
}

HAZARD(h60_write_ahead_of_the_host)
{
	h60_around(true);
}

#ifdef __x86_64__
/* The same for a guest, which takes no fault where it gets pages ahead. */
HAZARD(h60_ahead_of_the_guest)
{
	/* 6 is not in use, 8 and 9 are private, and 13 is mapped before. */
	static const u8 faults[] = { 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0 };
	const u64 n = ARRAY_SIZE(faults);
	struct hz h;

	hz_create(&h, n, GMEM_MMAP_SHARED, 1);
	host_fill(&h, 0, n, GMEM_SEED(1));
	TEST_ASSERT(!gmem_punch(h.a.fd, OFF(6), PG), "Punching failed");
	convert(&h, 8, 2, GMEM_PRIVATE, GMEM_PRESERVE);
	/* A new memslot has no mappings. Map the pages that the guest's code needs first. */
	gmem_area_unbind(&h.a);
	gmem_area_bind(&h.a);
	gmem_guest_read(h.vcpus[0], h.a.gpa + OFF(n - 1));

	for (u64 page = 0; page < n; page++) {
		u64 before = vcpu_get_stat(h.vcpus[0], pf_taken), taken;

		gmem_guest_read(h.vcpus[0], h.a.gpa + OFF(page));
		taken = vcpu_get_stat(h.vcpus[0], pf_taken) - before;
		TEST_ASSERT(taken == faults[page], "Page %lu takes %lu faults", page, taken);
	}
}
#endif

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
