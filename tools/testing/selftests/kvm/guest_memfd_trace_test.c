// SPDX-License-Identifier: GPL-2.0
/*
 * The trace events of guest_memfd, each read back after an operation with a known
 * event, in a tracing instance of the test's own.
 */
#include <stdio.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "gmem_test.h"
#include "kvm_test_harness.h"

#define TRACING	"/sys/kernel/tracing/instances/gmem"
#define NPAGES	16
#define PS	((u64)PAGE_SIZE)

static void put(const char *file, const char *text)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), TRACING "/%s", file);
	fd = open(path, O_WRONLY | O_TRUNC);
	TEST_ASSERT(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text),
		    "%s: errno %d (%s)", path, errno, strerror(errno));
	close(fd);
}

/* Clears the trace. */
static void clear(void)
{
	int fd = open(TRACING "/trace", O_WRONLY | O_TRUNC);

	TEST_ASSERT(fd >= 0, "trace: errno %d", errno);
	close(fd);
}

/* The number of events with this name whose text contains @text. */
static int count(const char *event, const char *text)
{
	char name[64], line[512];
	FILE *f = fopen(TRACING "/trace", "r");
	int n = 0;

	TEST_ASSERT(f, "trace: errno %d", errno);
	snprintf(name, sizeof(name), " %s: ", event);
	while (fgets(line, sizeof(line), f)) {
		const char *at = strstr(line, name);

		n += at && strstr(at + strlen(name), text);
	}
	fclose(f);
	return n;
}

#define expect(n, event, fmt, ...)						\
do {										\
	char __text[256];							\
	int __n;								\
										\
	snprintf(__text, sizeof(__text), fmt, ##__VA_ARGS__);			\
	__n = count(event, __text);						\
	TEST_ASSERT(__n == (n), "%d events %s with \"%s\", wanted %d", __n, event, __text, n); \
} while (0)

/* Seconds. */
#define TIMEOUT	120
#define TRACE_TEST(name)	TEST_F_TIMEOUT(trace, name, TIMEOUT)

FIXTURE(trace) {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct gmem_area a;
	u64 ino;
};

FIXTURE_SETUP(trace)
{
	struct stat st;

	TEST_ASSERT(!mkdir(TRACING, 0700) || errno == EEXIST,
		    "%s: errno %d: is CONFIG_FTRACE on, and tracefs mounted?", TRACING, errno);
	self->vm = gmem_vm_create(1, NPAGES, &self->vcpu);
	gmem_area_create(&self->a, self->vm, GMEM_SLOT, GMEM_GPA, NPAGES * PS, GMEM_MMAP_SHARED);
	TEST_ASSERT(!fstat(self->a.fd, &st), "fstat: %d", errno);
	self->ino = st.st_ino;
	put("events/kvm_gmem/enable", "1");
	clear();
}

FIXTURE_TEARDOWN(trace)
{
	put("events/kvm_gmem/enable", "0");
	gmem_area_destroy(&self->a);
	kvm_vm_free(self->vm);
	rmdir(TRACING);
}

TRACE_TEST(conversions)
{
	struct gmem_area *a = &self->a;
	const u64 ino = self->ino;

	gmem_fill(a->hva, 4 * PS, GMEM_SEED(1), 0);
	clear();

	gmem_convert(a->fd, 0, 8 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	expect(1, "kvm_gmem_convert_begin", "ino %lu offset 0x0 size 0x8000 to private PRESERVE", ino);
	expect(1, "kvm_gmem_convert_end",
	       "ino %lu offset 0x0 size 0x8000 to private PRESERVE: converted 8 runs 1 zeroed 0 scrambled 0 result 0 error_offset 0xffffffffffffffff",
	       ino);

	/* Settled pages are not converted, but written. */
	gmem_convert(a->fd, 2 * PS, PS, GMEM_SHARED, GMEM_PRESERVE);
	gmem_convert(a->fd, 0, 8 * PS, GMEM_SHARED, GMEM_ZERO);
	expect(1, "kvm_gmem_convert_end",
	       "ino %lu offset 0x0 size 0x8000 to shared ZERO: converted 7 runs 2 zeroed 4 scrambled 0 result 0",
	       ino);
	gmem_convert(a->fd, PS, 8 * PS, GMEM_PRIVATE, GMEM_NONE);
	expect(1, "kvm_gmem_convert_end",
	       "ino %lu offset 0x1000 size 0x8000 to private NONE: converted 8 runs 1 zeroed 0 scrambled %d result 0",
	       ino, gmem_scrambles() ? 3 : 0);
	/* Nothing to do. */
	gmem_convert(a->fd, PS, 8 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	expect(1, "kvm_gmem_convert_end",
	       "offset 0x1000 size 0x8000 to private PRESERVE: converted 0 runs 0 zeroed 0 scrambled 0 result 0");

	/* A malformed request sends no event. */
	clear();
	TEST_ASSERT_EQ(gmem_set_once(a->fd, 1, PS, GMEM_PRIVATE, GMEM_NONE, NULL), EINVAL);
	expect(0, "kvm_gmem_convert_begin", "ino");
	expect(0, "kvm_gmem_convert_end", "ino");
}

TRACE_TEST(busy_page)
{
	struct gmem_area *a = &self->a;
	struct iovec iov = { a->hva + 3 * PS, PS };
	int ends[2];
	u64 eo;

	gmem_fill(a->hva, 8 * PS, GMEM_SEED(1), 0);
	TEST_ASSERT(!pipe(ends), "pipe: %d", errno);
	TEST_ASSERT_EQ(vmsplice(ends[1], &iov, 1, 0), PS);
	clear();
	TEST_ASSERT_EQ(gmem_set_once(a->fd, 0, 8 * PS, GMEM_PRIVATE, GMEM_PRESERVE, &eo), EAGAIN);
	TEST_ASSERT_EQ(eo, 3 * PS);
	expect(1, "kvm_gmem_busy", "ino %lu offset 0x3000", self->ino);
	expect(1, "kvm_gmem_busy", "unexplained 1 mapped 0 drained all holder reference");
	expect(1, "kvm_gmem_convert_end", "converted 0 runs 0 zeroed 0 scrambled 0 result %d error_offset 0x3000",
	       -EAGAIN);
	close(ends[0]);
	close(ends[1]);
}

TRACE_TEST(faults)
{
	struct gmem_area *a = &self->a;
	const u64 ino = self->ino, gfn = GMEM_GPA / PS;
	u8 val;

	gmem_guest_start(self->vcpu);
	gmem_convert(a->fd, 4 * PS, 4 * PS, GMEM_PRIVATE, GMEM_NONE);
	gmem_install_sigbus_handler();
	clear();

	*(volatile u8 *)(a->hva + PS) = 1;
	expect(1, "kvm_gmem_host_fault", "ino %lu offset 0x1000 first use", ino);
	TEST_ASSERT(!gmem_host_read(a->hva + 5 * PS, &val), "A private page");
	expect(1, "kvm_gmem_host_fault", "ino");

	gmem_guest_write(self->vcpu, GMEM_GPA + PS, 2);
	gmem_guest_write(self->vcpu, GMEM_GPA + 2 * PS, 2);
	gmem_guest_write(self->vcpu, GMEM_GPA + 5 * PS, 2);
	expect(1, "kvm_gmem_guest_fault", "ino %lu offset 0x1000 gfn 0x%lx shared\n", ino, gfn + 1);
	expect(1, "kvm_gmem_guest_fault", "ino %lu offset 0x2000 gfn 0x%lx shared first use", ino, gfn + 2);
	expect(1, "kvm_gmem_guest_fault", "ino %lu offset 0x5000 gfn 0x%lx private first use", ino, gfn + 5);

	/* In use, and behind a page that the host has: the next one is mapped ahead, without an event. */
	gmem_guest_write(self->vcpu, GMEM_GPA + 3 * PS, 2);
	TEST_ASSERT(gmem_host_read(a->hva + 2 * PS, &val) && val == 2, "A shared page");
	TEST_ASSERT(gmem_host_read(a->hva + 3 * PS, &val) && val == 2, "The next one");
	expect(1, "kvm_gmem_host_fault", "ino %lu offset 0x2000\n", ino);
	expect(0, "kvm_gmem_host_fault", "ino %lu offset 0x3000", ino);
}

TRACE_TEST(mappings_taken_away)
{
	struct gmem_area *a = &self->a;
	const u64 gfn = GMEM_GPA / PS;

	gmem_fill(a->hva, 4 * PS, GMEM_SEED(1), 0);
	clear();
	gmem_convert(a->fd, 0, 2 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	expect(1, "kvm_gmem_zap", "ino %lu pid %d gfns 0x%lx-0x%lx kinds shared\n", self->ino, getpid(),
	       gfn, gfn + 2);
	gmem_convert(a->fd, 0, 2 * PS, GMEM_SHARED, GMEM_PRESERVE);
	expect(1, "kvm_gmem_zap", "gfns 0x%lx-0x%lx kinds private\n", gfn, gfn + 2);
	TEST_ASSERT(!gmem_punch(a->fd, PS, 2 * PS), "punch: %d", errno);
	expect(1, "kvm_gmem_zap", "gfns 0x%lx-0x%lx kinds shared|private\n", gfn + 1, gfn + 3);
}

/* A large mapping is split if a part of it is removed. */
TRACE_TEST(large_mappings_split)
{
	const u64 gpa = GMEM_GPA + SZ_1G, gfn = gpa / PS;
	struct gmem_area a;
	struct stat st;

	/* Its memory is in one piece. */
	gmem_area_create(&a, self->vm, GMEM_SLOT + 1, gpa, SZ_2M, GMEM_MMAP_SHARED);
	TEST_ASSERT(!fstat(a.fd, &st), "fstat: %d", errno);
	TEST_ASSERT(!gmem_allocate(a.fd, 0, SZ_2M), "fallocate: %d", errno);
	gmem_guest_start(self->vcpu);
	gmem_guest_write(self->vcpu, gpa, 1);
	if (!vm_get_stat(self->vm, gmem_blocks_mapped)) {
		gmem_area_destroy(&a);
		SKIP(return, "needs large mappings, and memory in one piece");
	}
	clear();
	gmem_convert(a.fd, 3 * PS, 2 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	expect(1, "kvm_gmem_split", "ino %lu pid %d gfns 0x%lx-0x%lx\n", st.st_ino, getpid(), gfn + 3,
	       gfn + 5);
	gmem_convert(a.fd, 5 * PS, PS, GMEM_PRIVATE, GMEM_PRESERVE);
	expect(1, "kvm_gmem_split", "ino");
	gmem_area_destroy(&a);
}

TRACE_TEST(map_memory)
{
	struct kvm_memory_mapping args = {
		.base_address = GMEM_GPA + (NPAGES - 2) * PS,
		.size = 4 * PS,
	};

	gmem_guest_start(self->vcpu);
	clear();
	TEST_ASSERT(!__vcpu_ioctl(self->vcpu, KVM_MAP_MEMORY, &args), "errno %d", errno);
	expect(1, "kvm_gmem_map_memory", "base 0x%lx size 0x4000 left 0x2000 result %d",
	       GMEM_GPA + (NPAGES - 2) * PS, -ENOENT);
}

/* A guest on the model of SNP's RMP, the first half of whose memory is private. */
static struct kvm_vm *create_snp(struct gmem_area *a, struct kvm_vcpu **vcpu)
{
	struct kvm_vm *vm;

	vm = gmem_vm_create_emulated(KVM_GMEM_EMULATE_SNP, 0, 1, NPAGES, vcpu);
	gmem_area_create(a, vm, GMEM_SLOT, GMEM_GPA, NPAGES * PS, GMEM_MMAP_SHARED);
	gmem_convert(a->fd, 0, NPAGES / 2 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	put("events/snp/snp_rmp_change/enable", "1");
	clear();
	return vm;
}

static void destroy_snp(struct gmem_area *a, struct kvm_vm *vm)
{
	put("events/snp/snp_rmp_change/enable", "0");
	gmem_area_destroy(a);
	kvm_vm_free(vm);
}

/* The number by which the RMP identifies the owner of the page. */
static u64 asid_of(struct kvm_vm *vm, gpa_t gpa)
{
	struct kvm_gmem_emulate args;

	gmem_query(vm, gpa, &args);
	return args.value[2];
}

/*
 * Every change of an RMP entry, with the code of the instruction. The model's
 * are traced by the kernel's own event.
 */
TRACE_TEST(populate_and_rmp)
{
	const u64 gpa = GMEM_GPA, gfn = gpa / PS;
	struct kvm_vcpu *vcpu;
	struct gmem_area a;
	struct kvm_vm *vm;
	u64 asid;
	int r;

	if (!gmem_emulates(KVM_GMEM_EMULATE_SNP))
		SKIP(return, GMEM_NO_EMULATION);
	vm = create_snp(&a, &vcpu);

	TEST_ASSERT(!gmem_launch_update(vm, KVM_GMEM_EMULATE_PAGE_NORMAL, gpa, 2 * PS, NULL, NULL),
		    "LAUNCH_UPDATE failed");
	asid = asid_of(vm, gpa);
	expect(1, "kvm_gmem_populate", "gfn 0x%lx npages 2 result 2\n", gfn);
	expect(2, "snp_rmp_change", "assign immutable pfn");
	expect(1, "snp_rmp_change", "level 1 gpa 0x%lx asid %lu code 0", gpa, asid);
	expect(1, "snp_rmp_change", "level 1 gpa 0x%lx asid %lu code 0", gpa + PS, asid);
	/* Not a second time. */
	TEST_ASSERT(gmem_launch_update(vm, KVM_GMEM_EMULATE_PAGE_NORMAL, gpa, PS, NULL, NULL),
		    "LAUNCH_UPDATE twice");
	expect(1, "kvm_gmem_populate", "gfn 0x%lx npages 1 result -", gfn);
	expect(2, "snp_rmp_change", "assign immutable pfn");
	gmem_convert(a.fd, 0, PS, GMEM_SHARED, GMEM_PRESERVE);
	expect(1, "snp_rmp_change", "unassign pfn");
	expect(1, "snp_rmp_change", "level 1 gpa 0x0 asid 0 code 0");

	/* The hardware's code, not the kernel's errno. */
	TEST_ASSERT(!gmem_launch_finish(vm), "LAUNCH_FINISH: errno %d", errno);
	gmem_guest_start(vcpu);
	gmem_inject(vm, gpa + 3 * PS, KVM_GMEM_EMULATE_FAIL_ASSIGN,
		    KVM_GMEM_EMULATE_ERROR_PERMISSION, 1);
	clear();
	r = __gmem_guest_do(vcpu, GMEM_OP_READ, gpa + 3 * PS, 1, 0, 0, 0);
	TEST_ASSERT_EQ(r, -EIO);
	expect(1, "snp_rmp_change", "assign pfn");
	expect(1, "snp_rmp_change", "level 1 gpa 0x%lx asid %lu code 2", gpa + 3 * PS, asid);

	destroy_snp(&a, vm);
}

/* A page that is assigned already does not change the RMP, but is traced. */
TRACE_TEST(rmp_refusal)
{
	const u64 gpa = GMEM_GPA, other = gpa + SZ_1M;
	struct kvm_vcpu *vcpu;
	struct gmem_area a;
	struct kvm_vm *vm;
	u64 asid;
	int r;

	if (!gmem_emulates(KVM_GMEM_EMULATE_SNP))
		SKIP(return, GMEM_NO_EMULATION);
	vm = create_snp(&a, &vcpu);
	TEST_ASSERT(!gmem_launch_finish(vm), "LAUNCH_FINISH: errno %d", errno);
	gmem_guest_start(vcpu);
	gmem_guest_write(vcpu, gpa, 1);
	asid = asid_of(vm, gpa);
	expect(1, "snp_rmp_change", "assign pfn");

	gmem_area_unbind(&a);
	a.gpa = other;
	gmem_area_bind(&a);
	gmem_area_virt_map(&a);
	clear();
	r = __gmem_guest_do(vcpu, GMEM_OP_READ, other, 1, 0, 0, 0);
	TEST_ASSERT_EQ(r, -EEXIST);
	expect(1, "kvm_gmem_rmp_refusal", "gfn 0x%lx asid %lu given to gfn 0x%lx asid %lu\n",
	       other / PS, asid, gpa / PS, asid);
	expect(0, "snp_rmp_change", "pfn");

	destroy_snp(&a, vm);
}

/* Events that are off send nothing. */
TRACE_TEST(off)
{
	put("events/kvm_gmem/enable", "0");
	gmem_fill(self->a.hva, PS, GMEM_SEED(1), 0);
	gmem_convert(self->a.fd, 0, 8 * PS, GMEM_PRIVATE, GMEM_ZERO);
	expect(0, "kvm_gmem_convert_end", "ino");
	expect(0, "kvm_gmem_host_fault", "ino");
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(gmem_vm_type_supported());
	return test_harness_run(argc, argv);
}
