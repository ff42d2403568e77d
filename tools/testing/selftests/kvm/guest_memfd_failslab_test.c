// SPDX-License-Identifier: GPL-2.0
/*
 * Every allocation of every operation on a guest_memfd fails once: the first
 * of the operation, then the second, and so on until the operation needs no
 * more. An operation that fails returns the right errno and changes nothing. One
 * that succeeds despite the failure has done its work.
 *
 * Needs CONFIG_FAULT_INJECTION, FAILSLAB and FAIL_PAGE_ALLOC.
 */
#include <sys/stat.h>

#include "gmem_snp.h"
#include "kvm_test_harness.h"

#define NPAGES		16
#define PS		((u64)PAGE_SIZE)
#define SIZE		(NPAGES * PS)
#define DEBUGFS		"/sys/kernel/debug"
#define FAIL_NTH	"/proc/thread-self/fail-nth"
/* More allocations than any operation makes. */
#define MAX_NTH		500

/* --- Injection ---------------------------------------------------------- */

static int fail_nth_fd = -1;

static bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok;
}

static bool injection_ready(void)
{
	static const char * const kinds[] = { "failslab", "fail_page_alloc" };
	char path[128];
	int i;

	if (access(FAIL_NTH, W_OK))
		return false;
	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		snprintf(path, sizeof(path), DEBUGFS "/%s/ignore-gfp-wait", kinds[i]);
		if (!write_file(path, "N"))
			return false;
		/* A stack trace for each would look like a kernel warning. */
		snprintf(path, sizeof(path), DEBUGFS "/%s/verbose", kinds[i]);
		if (!write_file(path, "0"))
			return false;
	}
	/* Allocations of one page count, too, and those of the page cache. */
	return write_file(DEBUGFS "/fail_page_alloc/min-order", "0") &&
	       write_file(DEBUGFS "/fail_page_alloc/ignore-gfp-highmem", "N");
}

static void arm(int nth)
{
	char text[16];
	int n = snprintf(text, sizeof(text), "%d", nth);

	TEST_ASSERT(pwrite(fail_nth_fd, text, n, 0) == n, "fail-nth cannot be set");
}

/* Whether an allocation has failed since arm(). */
static bool disarm(void)
{
	char text[16] = {};

	TEST_ASSERT(pread(fail_nth_fd, text, sizeof(text) - 1, 0) > 0,
		    "fail-nth cannot be read");
	TEST_ASSERT(pwrite(fail_nth_fd, "0", 1, 0) == 1, "fail-nth cannot be reset");
	return !atoi(text);
}

/* --- One operation ------------------------------------------------------- */

struct env {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct gmem_area area;
	/* The objects of the operation. */
	int fd;
	void *mem;
	u64 to, policy, error_offset;
	u64 offset;
	u64 assigned;
	u32 page_type;
};

struct operation {
	const char *name;
	/* Prepares the initial state, if necessary. */
	void (*before)(struct env *e);
	/* Returns 0 or the positive errno. Must not print. */
	int (*run)(struct env *e);
	/* Nothing has changed. */
	void (*failed)(struct env *e, int error);
	/* Checks that the operation has worked, and undoes it. */
	void (*done)(struct env *e);
	/* It succeeds whichever allocation fails. */
	bool never_fails;
};

static void fail_each_allocation(struct env *e, const struct operation *op)
{
	int nth, r, failures = 0, survived = 0;
	bool injected;

	for (nth = 1; nth < MAX_NTH; nth++) {
		if (op->before)
			op->before(e);
		arm(nth);
		r = op->run(e);
		injected = disarm();

		TEST_ASSERT(injected || !r, "%s fails by itself: errno %d (%s)", op->name,
			    r, strerror(r));
		TEST_ASSERT(!r || !op->never_fails, "%s: errno %d (%s) for allocation %d",
			    op->name, r, strerror(r), nth);
		/* Of files there may be too few. */
		TEST_ASSERT(!r || r == ENOMEM || r == ENFILE,
			    "%s: errno %d (%s) for allocation %d", op->name, r, strerror(r), nth);
		if (r) {
			failures++;
			if (op->failed)
				op->failed(e, r);
		} else {
			survived += injected;
			if (op->done)
				op->done(e);
		}
		if (!injected)
			break;
	}
	TEST_ASSERT(nth < MAX_NTH, "%s allocates for ever", op->name);
	pr_info("# %s: %d allocations, %d of them needed\n", op->name, failures + survived,
		failures);
}

/* --- Operations ---------------------------------------------------------- */

static int run_create(struct env *e)
{
	struct kvm_create_guest_memfd args = { .size = SIZE, .flags = GMEM_MMAP_SHARED };

	e->fd = __vm_ioctl(e->vm, KVM_CREATE_GUEST_MEMFD, &args);
	return e->fd < 0 ? errno : 0;
}

static void done_create(struct env *e)
{
	gmem_assert_attributes(e->fd, 0, SIZE, GMEM_SHARED);
	kvm_close(e->fd);
}

static void before_close(struct env *e)
{
	TEST_ASSERT(!run_create(e), "KVM_CREATE_GUEST_MEMFD");
	TEST_ASSERT(!gmem_allocate(e->fd, 0, SIZE), "fallocate()");
	gmem_convert(e->fd, 3 * PS, 5 * PS, GMEM_PRIVATE, GMEM_ZERO);
}

static int run_close(struct env *e)
{
	return close(e->fd) ? errno : 0;
}

/* Not with libkvm, which opens files and makes VMs to probe capabilities. */
static int set_slot(struct env *e, u64 size)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = GMEM_SLOT,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = GMEM_GPA,
		.memory_size = size,
		.userspace_addr = (u64)e->area.hva,
		.guest_memfd = e->area.fd,
	};

	return gmem_ioctl(e->vm->fd, KVM_SET_USER_MEMORY_REGION2, &region);
}

static int run_bind(struct env *e)
{
	return set_slot(e, SIZE);
}

static void failed_bind(struct env *e, int error)
{
	/* It can be bound afterwards, so it was not bound. */
	gmem_area_bind(&e->area);
	gmem_area_unbind(&e->area);
}

static void done_bind(struct env *e)
{
	gmem_area_unbind(&e->area);
}

static void before_unbind(struct env *e)
{
	gmem_area_bind(&e->area);
}

static int run_unbind(struct env *e)
{
	return set_slot(e, 0);
}

static void failed_unbind(struct env *e, int error)
{
	gmem_area_unbind(&e->area);
}

static int run_mmap(struct env *e)
{
	e->mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, e->area.fd, 0);
	return e->mem == MAP_FAILED ? errno : 0;
}

static void done_mmap(struct env *e)
{
	kvm_munmap(e->mem, SIZE);
}

static void punched(struct env *e)
{
	TEST_ASSERT(!gmem_punch(e->area.fd, 0, SIZE), "punch");
}

/* The kernel repeats a fault for which there was no memory. */
static int run_host_fault(struct env *e)
{
	e->area.hva[5 * PS] = 0x5a;
	return 0;
}

static void done_host_fault(struct env *e)
{
	TEST_ASSERT_EQ(e->area.hva[5 * PS], 0x5a);
	TEST_ASSERT_EQ(e->area.hva[5 * PS + 1], 0);
}

static int run_allocate(struct env *e)
{
	return gmem_allocate(e->area.fd, 0, SIZE);
}

static int run_punch(struct env *e)
{
	return gmem_punch(e->area.fd, 4 * PS, 4 * PS);
}

/* Private and shared in turns, with bytes in all of it. */
static void before_convert(struct env *e)
{
	u64 from = e->to ? GMEM_SHARED : GMEM_PRIVATE;

	gmem_convert(e->area.fd, 0, SIZE, GMEM_SHARED, GMEM_PRESERVE);
	gmem_fill(e->area.hva, SIZE, GMEM_SEED(1), 0);
	gmem_convert(e->area.fd, 3 * PS, 10 * PS, from, GMEM_PRESERVE);
	gmem_convert(e->area.fd, 5 * PS, PS, e->to, GMEM_PRESERVE);
}

static int run_convert(struct env *e)
{
	return gmem_set_once(e->area.fd, 2 * PS, 12 * PS, e->to, e->policy,
			     &e->error_offset);
}

static void failed_convert(struct env *e, int error)
{
	u64 from = e->to ? GMEM_SHARED : GMEM_PRIVATE;

	TEST_ASSERT_EQ(error, ENOMEM);
	TEST_ASSERT_EQ(e->error_offset, 2 * PS);
	gmem_assert_attributes(e->area.fd, 0, 3 * PS, GMEM_SHARED);
	gmem_assert_attributes(e->area.fd, 3 * PS, 2 * PS, from);
	gmem_assert_attributes(e->area.fd, 5 * PS, PS, e->to);
	gmem_assert_attributes(e->area.fd, 6 * PS, 7 * PS, from);
	gmem_assert_attributes(e->area.fd, 13 * PS, 3 * PS, GMEM_SHARED);
	gmem_convert(e->area.fd, 0, SIZE, GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert(e->area.hva, SIZE, GMEM_SEED(1), 0);
}

static void done_convert(struct env *e)
{
	u32 bytes = e->policy == GMEM_PRESERVE ? GMEM_SEED(1) :
		    e->policy == GMEM_ZERO ? GMEM_ZEROES :
		    gmem_scrambles() ? GMEM_SCRAMBLED : GMEM_SEED(1);

	gmem_assert_attributes(e->area.fd, 2 * PS, 12 * PS, e->to);
	gmem_convert(e->area.fd, 0, SIZE, GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert(e->area.hva + 2 * PS, 12 * PS, bytes, 2 * PS);
	gmem_host_assert(e->area.hva, 2 * PS, GMEM_SEED(1), 0);
	gmem_host_assert(e->area.hva + 14 * PS, 2 * PS, GMEM_SEED(1), 14 * PS);
}

/* All pages are of one kind, which takes no memory to remember: another kind for some does. */
static void before_first_convert(struct env *e)
{
	gmem_convert(e->area.fd, 0, SIZE, GMEM_SHARED, GMEM_PRESERVE);
	gmem_fill(e->area.hva, SIZE, GMEM_SEED(1), 0);
	if (!e->to)
		gmem_convert(e->area.fd, 0, SIZE, GMEM_PRIVATE, GMEM_PRESERVE);
}

static void failed_first_convert(struct env *e, int error)
{
	u64 from = e->to ? GMEM_SHARED : GMEM_PRIVATE;

	TEST_ASSERT_EQ(error, ENOMEM);
	TEST_ASSERT_EQ(e->error_offset, 2 * PS);
	gmem_assert_attributes(e->area.fd, 0, SIZE, from);
	gmem_convert(e->area.fd, 0, SIZE, GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert(e->area.hva, SIZE, GMEM_SEED(1), 0);
}

static int run_get(struct env *e)
{
	return gmem_get(e->area.fd, 4 * PS, NULL, NULL);
}

static int read_all(const char *path)
{
	char text[4096];
	int fd = open(path, O_RDONLY), r = 0;
	ssize_t n;

	if (fd < 0)
		return errno;
	while ((n = read(fd, text, sizeof(text))) > 0)
		;
	if (n < 0)
		r = errno;
	close(fd);
	return r;
}

static int run_fdinfo(struct env *e)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", e->area.fd);
	return read_all(path);
}

static int run_debugfs(struct env *e)
{
	char path[128];
	struct stat st;

	TEST_ASSERT(!fstat(e->area.fd, &st), "fstat()");
	snprintf(path, sizeof(path), DEBUGFS "/kvm/%d-%d/guest_memfd-%lu", getpid(), e->vm->fd,
		 (unsigned long)st.st_ino);
	return read_all(path);
}

/* Its page tables are gone with the slot, so that each time is the first. */
static void before_guest_fault(struct env *e)
{
	volatile struct gmem_cmd *cmd = gmem_cmd_of(e->vcpu);

	gmem_area_unbind(&e->area);
	punched(e);
	gmem_area_bind(&e->area);
	cmd->op = GMEM_OP_WRITE;
	cmd->gpa = GMEM_GPA + 7 * PS;
	cmd->value = 0x77;
}

static int run_guest_fault(struct env *e)
{
	return __vcpu_run(e->vcpu) < 0 ? errno : 0;
}

static void done_guest_fault(struct env *e)
{
	TEST_ASSERT_EQ(e->vcpu->run->exit_reason, KVM_EXIT_IO);
	TEST_ASSERT_EQ(gmem_guest_read(e->vcpu, GMEM_GPA + 7 * PS), 0x77);
	TEST_ASSERT_EQ(gmem_guest_read(e->vcpu, GMEM_GPA + 7 * PS + 1), 0);
}

static void failed_guest_fault(struct env *e, int error)
{
	/* The guest continues where it was. */
	TEST_ASSERT(!run_guest_fault(e), "KVM_RUN once more: errno %d (%s)", errno,
		    strerror(errno));
	done_guest_fault(e);
}

static int run_map_memory(struct env *e)
{
	struct kvm_memory_mapping left = { .base_address = GMEM_GPA, .size = SIZE };
	int r = 0;

	while (!r && left.size)
		r = gmem_ioctl(e->vcpu->fd, KVM_MAP_MEMORY, &left);
	return r;
}

/* A page that was never used, with the bytes of another one. */
static int run_launch_update(struct env *e)
{
	struct kvm_gmem_emulate args = {
		.op = KVM_GMEM_EMULATE_OP_LAUNCH_UPDATE,
		.type = e->page_type,
		.gpa = GMEM_GPA + e->offset,
		.size = PS,
		.uaddr = (u64)e->mem,
	};

	return gmem_emulate(e->vm, &args);
}

static void failed_launch_update(struct env *e, int error)
{
	TEST_ASSERT_EQ(gmem_state(e->vm, GMEM_GPA + e->offset), KVM_GMEM_EMULATE_STATE_NONE);
}

static void done_launch_update(struct env *e)
{
	TEST_ASSERT(gmem_state(e->vm, GMEM_GPA + e->offset) != KVM_GMEM_EMULATE_STATE_NONE,
		    "The page at %#lx was not added", e->offset);
	e->offset += PS;
}

/* --- SNP guests under KVM's own code, on simulated hardware ------------------ */

/* What a guest has got to when the operation begins. */
enum snp_stage {
	SNP_CREATED,
	SNP_STARTED,
	SNP_LAUNCHED,
};

/* The operation of a VM that has got there, unless there is one from the last time. */
static void snp_get_to(struct env *e, enum snp_stage stage)
{
	u32 status = 0;

	if (e->vm)
		return;
	e->vm = snp_vm_create(1, NPAGES, &e->vcpu);
	snp_area_create(&e->area, e->vm, SIZE);
	gmem_fill(e->area.hva, SIZE, GMEM_SEED(1), 0);
	gmem_convert(e->area.fd, 0, SIZE, GMEM_PRIVATE, GMEM_PRESERVE);
	e->offset = 0;
	if (stage >= SNP_STARTED)
		TEST_ASSERT(!snp_start(e->vm, &status), "LAUNCH_START: %#x", status);
	if (stage >= SNP_LAUNCHED)
		snp_launch(e->vm, &e->vcpu, 1);
}

static void snp_free(struct env *e)
{
	kvm_munmap(e->area.hva, e->area.size);
	kvm_close(e->area.fd);
	kvm_vm_free(e->vm);
	e->vm = NULL;
}

/* How many pages are guests' on this machine. The VM has its program at 0. */
static u64 snp_nr_assigned(struct env *e)
{
	struct kvm_gmem_emulate q;

	gmem_query(e->vm, 0, &q);
	return q.value[3];
}

static int run_snp_init(struct env *e)
{
	struct kvm_sev_init init = {};

	return snp_command(e->vm, KVM_SEV_INIT2, &init, NULL);
}

/* The first guest of all has the platform initialised, whose failures are EIO. */
static void before_snp_init(struct env *e)
{
	static bool initialised;

	if (e->vm)
		return;
	e->vm = vm_create_barebones_type(KVM_X86_SNP_VM);
	if (initialised)
		return;
	TEST_ASSERT(!run_snp_init(e), "KVM_SEV_INIT2");
	initialised = true;
	kvm_vm_free(e->vm);
	e->vm = vm_create_barebones_type(KVM_X86_SNP_VM);
}

static void done_snp_init(struct env *e)
{
	kvm_vm_free(e->vm);
	e->vm = NULL;
}

static void before_snp_vcpu(struct env *e)
{
	if (e->vm)
		return;
	before_snp_init(e);
	TEST_ASSERT(!run_snp_init(e), "KVM_SEV_INIT2");
}

static int run_snp_vcpu(struct env *e)
{
	e->fd = __vm_ioctl(e->vm, KVM_CREATE_VCPU, NULL);
	return e->fd < 0 ? errno : 0;
}

static void done_snp_vcpu(struct env *e)
{
	kvm_close(e->fd);
	done_snp_init(e);
}

static void before_snp_start(struct env *e)
{
	snp_get_to(e, SNP_CREATED);
}

static int run_snp_start(struct env *e)
{
	return snp_start(e->vm, NULL);
}

static void done_snp_start(struct env *e)
{
	snp_free(e);
}

static void before_snp_update(struct env *e)
{
	snp_get_to(e, SNP_STARTED);
}

static int run_snp_update(struct env *e)
{
	return snp_update(e->vm, KVM_SEV_SNP_PAGE_TYPE_NORMAL, GMEM_GPA + e->offset, PS, e->mem,
			  NULL);
}

static void done_snp_update(struct env *e)
{
	TEST_ASSERT_EQ(gmem_state(e->vm, GMEM_GPA + e->offset), KVM_GMEM_EMULATE_STATE_VALIDATED);
	e->offset += PS;
	if (e->offset == SIZE)
		snp_free(e);
}

/* Not a second time: what was measured stays so. */
static void before_snp_finish(struct env *e)
{
	snp_get_to(e, SNP_STARTED);
	snp_vm_launch_update(e->vm);
}

static int run_snp_finish(struct env *e)
{
	return snp_finish(e->vm, NULL);
}

static void failed_snp_finish(struct env *e, int error)
{
	snp_free(e);
}

static void done_snp_finish(struct env *e)
{
	snp_run_ok(e->vcpu, snp_resume(e->vcpu));
	snp_free(e);
}

/* A page that nobody has used, as with a guest that is no SNP guest. */
static void before_snp_fault(struct env *e)
{
	volatile struct snp_cmd *cmd;

	snp_get_to(e, SNP_LAUNCHED);
	gmem_area_unbind(&e->area);
	punched(e);
	gmem_area_bind(&e->area);
	cmd = snp_cmd_of(e->vcpu);
	cmd->op = SNP_OP_WRITE;
	cmd->gva = GMEM_GPA + 7 * PS + SNP_PRIVATE;
	cmd->value = 0x77;
}

static void done_snp_fault(struct env *e)
{
	TEST_ASSERT_EQ(e->vcpu->run->exit_reason, KVM_EXIT_IO);
	TEST_ASSERT_EQ(gmem_state(e->vm, GMEM_GPA + 7 * PS), KVM_GMEM_EMULATE_STATE_ASSIGNED);
	TEST_ASSERT_EQ(gmem_guest_read(e->vcpu, GMEM_GPA + 7 * PS), 0x77);
}

static void failed_snp_fault(struct env *e, int error)
{
	int r = run_guest_fault(e);

	TEST_ASSERT(!r, "KVM_RUN once more: errno %d (%s)", r, strerror(r));
	done_snp_fault(e);
}

/* All is private, which takes no memory to remember: the conversion of a part does. */
static void before_snp_convert(struct env *e)
{
	snp_get_to(e, SNP_LAUNCHED);
	gmem_convert(e->area.fd, 0, SIZE, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_guest_fill(e->vcpu, GMEM_GPA + 2 * PS, 8 * PS, GMEM_SEED(2), 0);
}

static int run_snp_convert(struct env *e)
{
	return gmem_set_once(e->area.fd, 4 * PS, 4 * PS, GMEM_SHARED, GMEM_PRESERVE,
			     &e->error_offset);
}

static void snp_states_are(struct env *e, u64 page, u64 n, u64 state)
{
	for (; n--; page++)
		TEST_ASSERT_EQ(gmem_state(e->vm, GMEM_GPA + page * PS), state);
}

static void failed_snp_convert(struct env *e, int error)
{
	TEST_ASSERT_EQ(e->error_offset, 4 * PS);
	gmem_assert_attributes(e->area.fd, 0, SIZE, GMEM_PRIVATE);
	snp_states_are(e, 2, 8, KVM_GMEM_EMULATE_STATE_ASSIGNED);
	gmem_guest_assert(e->vcpu, GMEM_GPA + 2 * PS, 8 * PS, GMEM_SEED(2), 0);
}

static void done_snp_convert(struct env *e)
{
	snp_states_are(e, 2, 2, KVM_GMEM_EMULATE_STATE_ASSIGNED);
	snp_states_are(e, 4, 4, KVM_GMEM_EMULATE_STATE_NONE);
	snp_states_are(e, 8, 2, KVM_GMEM_EMULATE_STATE_ASSIGNED);
	gmem_host_assert(e->area.hva + 4 * PS, 4 * PS, GMEM_KEYED(GMEM_SEED(2)), 2 * PS);
}

/* All pages of the file are the guest's, and nothing but this file has them. */
static void before_snp_close(struct env *e)
{
	snp_get_to(e, SNP_LAUNCHED);
	gmem_convert(e->area.fd, 0, SIZE, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_guest_fill(e->vcpu, GMEM_GPA, SIZE, GMEM_SEED(1), 0);
	kvm_munmap(e->area.hva, e->area.size);
	e->fd = e->area.fd;
	e->assigned = snp_nr_assigned(e);
}

static void done_snp_close(struct env *e)
{
	TEST_ASSERT_EQ(snp_nr_assigned(e), e->assigned - NPAGES);
	kvm_vm_free(e->vm);
	e->vm = NULL;
}

/* --- Tests ---------------------------------------------------------------- */

FIXTURE(failslab) {
	struct env e;
};

FIXTURE_SETUP(failslab)
{
	struct env *e = &self->e;

	if (!injection_ready())
		SKIP(return, "needs FAULT_INJECTION, FAILSLAB and FAIL_PAGE_ALLOC");
	if (!gmem_vm_type_supported())
		SKIP(return, "needs KVM_X86_SW_PROTECTED_VM");
	fail_nth_fd = open(FAIL_NTH, O_RDWR);
	TEST_ASSERT(fail_nth_fd >= 0, "fail-nth cannot be opened");

	e->vm = gmem_vm_create(1, 512, &e->vcpu);
	gmem_area_create(&e->area, e->vm, GMEM_SLOT, GMEM_GPA, SIZE, GMEM_MMAP_SHARED);
	gmem_guest_start(e->vcpu);
}

FIXTURE_TEARDOWN(failslab)
{
	struct env *e = &self->e;

	gmem_area_destroy(&e->area);
	kvm_vm_free(e->vm);
	close(fail_nth_fd);
}

TEST_F(failslab, files_are_made_and_closed)
{
	static const struct operation create = {
		.name = "create", .run = run_create, .done = done_create,
	};
	static const struct operation close = {
		.name = "close", .before = before_close, .run = run_close, .never_fails = true,
	};

	fail_each_allocation(&self->e, &create);
	fail_each_allocation(&self->e, &close);
}

TEST_F(failslab, memslots_come_and_go)
{
	static const struct operation bind = {
		.name = "bind", .run = run_bind, .failed = failed_bind, .done = done_bind,
	};
	static const struct operation unbind = {
		.name = "unbind", .before = before_unbind, .run = run_unbind,
		.failed = failed_unbind,
	};

	gmem_area_unbind(&self->e.area);
	fail_each_allocation(&self->e, &bind);
	fail_each_allocation(&self->e, &unbind);
	gmem_area_bind(&self->e.area);
}

TEST_F(failslab, the_host_uses_the_file)
{
	static const struct operation operations[] = {
		{ .name = "mmap", .run = run_mmap, .done = done_mmap },
		{ .name = "host fault", .before = punched, .run = run_host_fault,
		  .done = done_host_fault, .never_fails = true },
		{ .name = "fallocate", .before = punched, .run = run_allocate, .done = punched },
		{ .name = "punch", .run = run_punch, .never_fails = true },
		{ .name = "get", .run = run_get, .never_fails = true },
		{ .name = "fdinfo", .run = run_fdinfo },
		{ .name = "debugfs", .run = run_debugfs },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(operations); i++)
		fail_each_allocation(&self->e, &operations[i]);
}

TEST_F(failslab, ranges_are_converted)
{
	static const u64 policies[] = { GMEM_NONE, GMEM_ZERO, GMEM_PRESERVE };
	static const struct operation convert = {
		.name = "convert", .before = before_convert, .run = run_convert,
		.failed = failed_convert, .done = done_convert,
	};
	static const struct operation first = {
		.name = "first convert", .before = before_first_convert, .run = run_convert,
		.failed = failed_first_convert, .done = done_convert,
	};
	int i;

	for (i = 0; i < 2 * ARRAY_SIZE(policies); i++) {
		self->e.to = i & 1 ? GMEM_PRIVATE : GMEM_SHARED;
		self->e.policy = policies[i / 2];
		fail_each_allocation(&self->e, &convert);
		fail_each_allocation(&self->e, &first);
	}
}

TEST_F(failslab, the_guest_faults)
{
	static const struct operation fault = {
		.name = "guest fault", .before = before_guest_fault, .run = run_guest_fault,
		.failed = failed_guest_fault, .done = done_guest_fault,
	};
	static const struct operation map = {
		.name = "map memory", .before = before_guest_fault, .run = run_map_memory,
	};
	int i;

	for (i = 0; i < 2; i++) {
		u64 to = i ? GMEM_PRIVATE : GMEM_SHARED;

		gmem_convert(self->e.area.fd, 0, SIZE, to, GMEM_ZERO);
		fail_each_allocation(&self->e, &fault);
		fail_each_allocation(&self->e, &map);
	}
}

TEST_F(failslab, pages_are_launched)
{
	static const u32 platforms[] = { KVM_GMEM_EMULATE_SNP, KVM_GMEM_EMULATE_TDX };
	static const struct operation update = {
		.name = "launch update", .run = run_launch_update,
		.failed = failed_launch_update, .done = done_launch_update,
	};
	struct kvm_vcpu *vcpu;
	int i;

	for (i = 0; i < ARRAY_SIZE(platforms); i++) {
		struct env e = { .page_type = i ? 0 : KVM_GMEM_EMULATE_PAGE_NORMAL };

		if (!gmem_emulates(platforms[i]))
			SKIP(return, GMEM_NO_EMULATION);
		e.vm = gmem_vm_create_emulated(platforms[i], 0, 1, NPAGES, &vcpu);
		gmem_area_create(&e.area, e.vm, GMEM_SLOT, GMEM_GPA, SIZE, GMEM_MMAP_SHARED);
		gmem_convert(e.area.fd, 0, SIZE, GMEM_PRIVATE, GMEM_ZERO);
		e.mem = kvm_mmap(PS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		memset(e.mem, 0x5a, PS);
		fail_each_allocation(&e, &update);
		kvm_munmap(e.mem, PS);
		gmem_area_destroy(&e.area);
		kvm_vm_free(e.vm);
	}
}

/*
 * Each step that a VMM takes with a guest. One that has failed for lack of memory
 * is taken again with the same VM, but for LAUNCH_FINISH.
 */
TEST_F_TIMEOUT(failslab, snp_guests_are_launched_and_run, 600)
{
	static const struct operation create[] = {
		{ .name = "SNP: INIT2", .before = before_snp_init, .run = run_snp_init,
		  .done = done_snp_init },
		{ .name = "SNP: vCPU", .before = before_snp_vcpu, .run = run_snp_vcpu,
		  .done = done_snp_vcpu },
		{ .name = "SNP: LAUNCH_START", .before = before_snp_start, .run = run_snp_start,
		  .done = done_snp_start },
	};
	static const struct operation update = {
		.name = "SNP: LAUNCH_UPDATE", .before = before_snp_update, .run = run_snp_update,
		.failed = failed_launch_update, .done = done_snp_update,
	};
	static const struct operation finish = {
		.name = "SNP: LAUNCH_FINISH", .before = before_snp_finish, .run = run_snp_finish,
		.failed = failed_snp_finish, .done = done_snp_finish,
	};
	static const struct operation run[] = {
		{ .name = "SNP: guest fault", .before = before_snp_fault, .run = run_guest_fault,
		  .failed = failed_snp_fault, .done = done_snp_fault },
		{ .name = "SNP: convert", .before = before_snp_convert, .run = run_snp_convert,
		  .failed = failed_snp_convert, .done = done_snp_convert },
		{ .name = "SNP: close", .before = before_snp_close, .run = run_close,
		  .done = done_snp_close, .never_fails = true },
	};
	struct env e = {};
	u64 before;
	u8 *source;
	int i;

	if (!snp_is_simulated())
		SKIP(return, SNP_NOT_SIMULATED);
	snp_get_to(&e, SNP_CREATED);
	before = snp_nr_assigned(&e);
	snp_free(&e);

	for (i = 0; i < ARRAY_SIZE(create); i++)
		fail_each_allocation(&e, &create[i]);

	source = kvm_mmap(PS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memset(source, 0x5a, PS);
	fail_each_allocation(&e, &update);
	e.mem = source;
	fail_each_allocation(&e, &update);
	kvm_munmap(source, PS);
	if (e.vm)
		snp_free(&e);

	fail_each_allocation(&e, &finish);

	for (i = 0; i < ARRAY_SIZE(run); i++)
		fail_each_allocation(&e, &run[i]);

	if (e.vm)
		snp_free(&e);

	snp_get_to(&e, SNP_CREATED);
	TEST_ASSERT_EQ(snp_nr_assigned(&e), before);
	snp_free(&e);
}

int main(int argc, char *argv[])
{
	return test_harness_run(argc, argv);
}
