// SPDX-License-Identifier: GPL-2.0
/*
 * In-place conversion of guest_memfd memory on SW_PROTECTED VMs: the content
 * contract, the errors of the two ioctls, the capabilities, and who decides
 * what is private when files and VMs of both kinds are around.
 *
 * What cannot be reached from user space on this VM type, and so is not here:
 *  - EOPNOTSUPP and EPERM: SW_PROTECTED honours every policy in every phase
 *    and knows no consent of the guest;
 *  - ENOMEM: it needs fault injection, KUnit has it;
 *  - EIO for a platform that fails in the middle: there is no platform.
 *
 * The order among causes that share EINVAL is not observable either; that each
 * of them comes before EAGAIN, and after EFAULT and EIO, is.
 */
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "gmem_test.h"
#include "kvm_test_harness.h"

/* Emulated CPUs under sanitisers are slow; this only bounds a hang. */
#define GMEM_TIMEOUT	600

#define NR_PAGES	16
#define PS		((u64)PAGE_SIZE)

kvm_static_assert(sizeof(struct kvm_memory_attributes2) == 128);
kvm_static_assert(offsetof(struct kvm_memory_attributes2, address) == 0);
kvm_static_assert(offsetof(struct kvm_memory_attributes2, offset) == 0);
kvm_static_assert(offsetof(struct kvm_memory_attributes2, size) == 8);
kvm_static_assert(offsetof(struct kvm_memory_attributes2, attributes) == 16);
kvm_static_assert(offsetof(struct kvm_memory_attributes2, flags) == 24);
kvm_static_assert(offsetof(struct kvm_memory_attributes2, error_offset) == 32);
kvm_static_assert(offsetof(struct kvm_memory_attributes2, reserved) == 40);
kvm_static_assert(offsetof(struct kvm_memory_attributes2, address) ==
		  offsetof(struct kvm_memory_attributes, address));
kvm_static_assert(offsetof(struct kvm_memory_attributes2, size) ==
		  offsetof(struct kvm_memory_attributes, size));
kvm_static_assert(offsetof(struct kvm_memory_attributes2, attributes) ==
		  offsetof(struct kvm_memory_attributes, attributes));
kvm_static_assert(offsetof(struct kvm_memory_attributes2, flags) ==
		  offsetof(struct kvm_memory_attributes, flags));
kvm_static_assert(KVM_SET_MEMORY_ATTRIBUTES2 == 0xC080AED2);
kvm_static_assert(KVM_GET_MEMORY_ATTRIBUTES2 == 0xC080AED3);

/* Whether files without flags convert in place too (a module parameter). */
static bool host_wide_mode(void)
{
	return get_kvm_param_bool("gmem_in_place_conversion");
}

/* Hold a reference to the page at @mem; gone when both ends are closed. */
static void pin_page(void *mem, int pipefd[2])
{
	struct iovec iov = { .iov_base = mem, .iov_len = PAGE_SIZE };
	ssize_t r;

	TEST_ASSERT(!pipe(pipefd), __KVM_SYSCALL_ERROR("pipe()", -1));
	r = vmsplice(pipefd[1], &iov, 1, 0);
	TEST_ASSERT(r == PAGE_SIZE, "vmsplice() of a shared page: %zd, errno %d",
		    r, errno);
}

static void unpin_page(int pipefd[2])
{
	kvm_close(pipefd[0]);
	kvm_close(pipefd[1]);
}

/*
 * Run @fn(@arg) in a forked child, i.e. with another mm, and insist that
 * every assertion in it held.
 */
static void in_child(void (*fn)(void *), void *arg)
{
	pid_t pid = fork();
	int status;

	TEST_ASSERT(pid >= 0, __KVM_SYSCALL_ERROR("fork()", pid));
	if (!pid) {
		fn(arg);
		_exit(0);
	}
	TEST_ASSERT(waitpid(pid, &status, 0) == pid, "waitpid() failed");
	TEST_ASSERT(WIFEXITED(status) && !WEXITSTATUS(status),
		    "The child failed, wait status %#x", status);
}

/*
 * Kill a VM without a bug in the kernel: KVM gives up on a VM whose state it
 * cannot save when it delivers an SMI. Returns false if SMM is not there.
 */
static bool kill_vm(struct kvm_vcpu *vcpu)
{
	const u64 no_memory_here = SZ_2G;
	int r;

	if (!kvm_has_cap(KVM_CAP_X86_SMM))
		return false;

	vcpu_set_msr(vcpu, MSR_IA32_SMBASE, no_memory_here);
	vcpu_ioctl(vcpu, KVM_SMI, NULL);
	r = __vcpu_run(vcpu);
	TEST_ASSERT(r < 0 && errno == EIO,
		    "The VM should be dead: KVM_RUN gives %d, errno %d", r, errno);
	r = __vm_ioctl(vcpu->vm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_USER_MEMORY);
	TEST_ASSERT(r < 0 && errno == EIO, "The VM should be dead");
	return true;
}

static int prefault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 size)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa, .size = size };
	int i, r = 0;

	for (i = 0; range.size && i < GMEM_MAX_RETRIES; i++) {
		r = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range) ? errno : 0;
		if (r && r != EINTR && r != EAGAIN)
			break;
	}
	TEST_ASSERT(r || (!range.size && range.gpa == gpa + size),
		    "KVM_PRE_FAULT_MEMORY left gpa %#llx size %#llx", range.gpa,
		    range.size);
	return r;
}

/* --- The contract ------------------------------------------------------- */

enum page_state {
	SHARED_NEVER_ALLOCATED,		/* and not even mapped by the host */
	SHARED_FALLOCATED,
	SHARED_MAPPED_UNTOUCHED,
	SHARED_READ_BY_HOST,
	SHARED_WRITTEN_BY_HOST,
	SHARED_READ_BY_GUEST,
	SHARED_WRITTEN_BY_GUEST,
	PRIVATE_NEVER_MAPPED,
	PRIVATE_FALLOCATED,
	PRIVATE_PREFAULTED,
	PRIVATE_WRITTEN_BY_HOST,	/* while it was shared */
	PRIVATE_READ_BY_GUEST,
	PRIVATE_WRITTEN_BY_GUEST,
	NR_PAGE_STATES,
};

/*
 * What the bytes are afterwards: 'p' the pattern that was there, '0' zeroes,
 * 'x' scrambled. By policy, in the order PRESERVE, ZERO, NONE. The direction
 * makes no difference on SW_PROTECTED, and neither does whether the page was
 * in the requested state already: a row is tried in both directions, so one
 * of them is "already there".
 */
static const struct {
	const char *name;
	bool needs_run;
	const char *after;
} contract[NR_PAGE_STATES] = {
	[SHARED_NEVER_ALLOCATED]   = { "shared, never allocated",     false, "000" },
	[SHARED_FALLOCATED]	   = { "shared, fallocated",	      false, "000" },
	[SHARED_MAPPED_UNTOUCHED]  = { "shared, mapped by host",      false, "000" },
	[SHARED_READ_BY_HOST]	   = { "shared, read by host",	      false, "00x" },
	[SHARED_WRITTEN_BY_HOST]   = { "shared, written by host",     false, "p0x" },
	[SHARED_READ_BY_GUEST]	   = { "shared, read by guest",	      true,  "00x" },
	[SHARED_WRITTEN_BY_GUEST]  = { "shared, written by guest",    true,  "p0x" },
	[PRIVATE_NEVER_MAPPED]	   = { "private, never allocated",    false, "000" },
	[PRIVATE_FALLOCATED]	   = { "private, fallocated",	      false, "000" },
	[PRIVATE_PREFAULTED]	   = { "private, prefaulted",	      false, "00x" },
	[PRIVATE_WRITTEN_BY_HOST]  = { "private, host's bytes",	      false, "p0x" },
	[PRIVATE_READ_BY_GUEST]	   = { "private, read by guest",      true,  "00x" },
	[PRIVATE_WRITTEN_BY_GUEST] = { "private, written by guest",   true,  "p0x" },
};

static u32 pattern_after(enum page_state state, u64 policy, bool scrambles,
			 u32 written)
{
	const char *after = contract[state].after;
	char c;

	if (policy == GMEM_PRESERVE)
		c = after[0];
	else if (policy == GMEM_ZERO)
		c = after[1];
	else
		c = scrambles ? after[2] : after[0];

	switch (c) {
	case 'p':
		return written;
	case '0':
		return GMEM_ZEROES;
	case 'x':
		return GMEM_SCRAMBLED;
	default:
		TEST_FAIL("Bad table");
	}
}

/*
 * One cell: a file of its own with two neighbours on either side of the
 * range, one in each state, so that a request that does too much is seen
 * whichever way it goes.
 */
struct cell {
	const char *name;
	struct gmem_area a;
	u32 npages;
	u32 seed;
	enum page_state state[NR_PAGE_STATES];
};

#define NR_GUARDS	2
#define CELL_STRIDE	SZ_128K

static u64 cell_start(struct cell *c)
{
	return NR_GUARDS * PS;
}

static u64 cell_end(struct cell *c)
{
	return cell_start(c) + c->npages * PS;
}

static const u32 guard_seed = GMEM_SEED(0x77);

/* Outermost guards have the requested attributes, the inner ones have not. */
static u64 guard_attributes(u32 guard, u64 to)
{
	bool outer = guard == 0 || guard == 3;

	return outer ? to : to ^ GMEM_PRIVATE;
}

static u64 guard_offset(struct cell *c, u32 guard)
{
	return guard < 2 ? guard * PS : cell_end(c) + (guard - 2) * PS;
}

static void prepare_page(struct gmem_area *a, struct kvm_vcpu *vcpu, u64 offset,
			 enum page_state state, u32 seed)
{
	u8 byte = 0xff;
	int r;

	switch (state) {
	case SHARED_NEVER_ALLOCATED:
	case SHARED_MAPPED_UNTOUCHED:
		break;
	case SHARED_FALLOCATED:
		r = gmem_allocate(a->fd, offset, PS);
		TEST_ASSERT(!r, "fallocate: errno %d", r);
		break;
	case SHARED_READ_BY_HOST:
		TEST_ASSERT(gmem_host_read(a->hva + offset, &byte) && !byte,
			    "Fresh shared page gives SIGBUS or 0x%02x", byte);
		break;
	case SHARED_WRITTEN_BY_HOST:
		gmem_fill(a->hva + offset, PS, seed, offset);
		break;
	case SHARED_READ_BY_GUEST:
		TEST_ASSERT_EQ(gmem_guest_read(vcpu, a->gpa + offset), 0);
		break;
	case SHARED_WRITTEN_BY_GUEST:
		gmem_guest_fill(vcpu, a->gpa + offset, PS, seed, offset);
		break;
	case PRIVATE_NEVER_MAPPED:
		gmem_convert(a->fd, offset, PS, GMEM_PRIVATE, GMEM_PRESERVE);
		break;
	case PRIVATE_FALLOCATED:
		gmem_convert(a->fd, offset, PS, GMEM_PRIVATE, GMEM_PRESERVE);
		r = gmem_allocate(a->fd, offset, PS);
		TEST_ASSERT(!r, "fallocate: errno %d", r);
		break;
	case PRIVATE_PREFAULTED:
		gmem_convert(a->fd, offset, PS, GMEM_PRIVATE, GMEM_PRESERVE);
		r = prefault(vcpu, a->gpa + offset, PS);
		TEST_ASSERT(!r, "KVM_PRE_FAULT_MEMORY: errno %d", r);
		break;
	case PRIVATE_WRITTEN_BY_HOST:
		gmem_fill(a->hva + offset, PS, seed, offset);
		gmem_convert(a->fd, offset, PS, GMEM_PRIVATE, GMEM_PRESERVE);
		break;
	case PRIVATE_READ_BY_GUEST:
		gmem_convert(a->fd, offset, PS, GMEM_PRIVATE, GMEM_PRESERVE);
		TEST_ASSERT_EQ(gmem_guest_read(vcpu, a->gpa + offset), 0);
		break;
	case PRIVATE_WRITTEN_BY_GUEST:
		gmem_convert(a->fd, offset, PS, GMEM_PRIVATE, GMEM_PRESERVE);
		gmem_guest_fill(vcpu, a->gpa + offset, PS, seed, offset);
		break;
	default:
		TEST_FAIL("No such state");
	}
}

static void prepare_cell(struct cell *c, struct kvm_vcpu *vcpu, u32 index,
			 u64 to)
{
	u64 offset;
	u32 i;

	gmem_area_create(&c->a, vcpu->vm, GMEM_SLOT + index,
			 GMEM_GPA + index * CELL_STRIDE,
			 (c->npages + 2 * NR_GUARDS) * PS, GMEM_MMAP_SHARED);

	for (i = 0; i < 2 * NR_GUARDS; i++) {
		offset = guard_offset(c, i);
		gmem_fill(c->a.hva + offset, PS, guard_seed, offset);
		gmem_convert(c->a.fd, offset, PS, guard_attributes(i, to),
			     GMEM_PRESERVE);
	}
	for (i = 0; i < c->npages; i++)
		prepare_page(&c->a, vcpu, cell_start(c) + i * PS, c->state[i],
			     c->seed);
}

static void convert_cell(struct cell *c, u64 to, u64 policy)
{
	const bool unmap = c->state[0] == SHARED_NEVER_ALLOCATED &&
			   c->state[1] == SHARED_NEVER_ALLOCATED;
	void *mem;

	/* This row is about a file that no process has mapped. */
	if (unmap)
		kvm_munmap(c->a.hva, c->a.size);

	gmem_convert(c->a.fd, cell_start(c), c->npages * PS, to, policy);

	if (unmap) {
		mem = mmap(c->a.hva, c->a.size, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_FIXED, c->a.fd, 0);
		TEST_ASSERT(mem == c->a.hva, __KVM_SYSCALL_ERROR("mmap()", -1));
	}
}

static void check_attributes(struct cell *c, u64 to)
{
	u64 attributes, size;
	u32 i;
	int r;

	/* outer guard | inner guard | range | inner guard | outer guard */
	r = gmem_get(c->a.fd, cell_start(c), &attributes, &size);
	TEST_ASSERT(!r && attributes == to && size == c->npages * PS,
		    "%s: GET gives errno %d, attributes %#lx, size %#lx",
		    c->name, r, attributes, size);
	for (i = 0; i < 2 * NR_GUARDS; i++) {
		r = gmem_get(c->a.fd, guard_offset(c, i), &attributes, &size);
		TEST_ASSERT(!r && attributes == guard_attributes(i, to) &&
			    size == PS,
			    "%s: GET at neighbour %u gives errno %d, attributes %#lx, size %#lx",
			    c->name, i, r, attributes, size);
	}
}

static void check_host(struct cell *c, u64 offset, u64 attributes, u32 pattern,
		       const char *what)
{
	u64 bad;

	if (attributes == GMEM_PRIVATE) {
		TEST_ASSERT(gmem_host_refused(c->a.hva + offset),
			    "%s: host reaches private page %#lx", c->name, offset);
		return;
	}
	bad = gmem_check(c->a.hva + offset, PS, pattern, offset);
	if (bad != GMEM_ALL_GOOD)
		TEST_FAIL("%s: %s: host sees 0x%02x at %#lx, wanted 0x%02x",
			  c->name, what, c->a.hva[offset + bad], offset + bad,
			  gmem_pattern_byte(pattern, offset + bad));
}

static void check_guest(struct cell *c, struct kvm_vcpu *vcpu, u64 offset,
			u32 pattern, const char *what)
{
	u64 bad;
	u8 got;

	bad = __gmem_guest_check(vcpu, c->a.gpa + offset, PS, pattern, offset,
				 &got);
	TEST_ASSERT(bad == GMEM_ALL_GOOD,
		    "%s: %s: guest sees 0x%02x at %#lx, wanted 0x%02x", c->name,
		    what, got, offset + bad,
		    gmem_pattern_byte(pattern, offset + bad));
}

/* All pages of a cell, neighbours included, from one side. */
static void check_cell(struct cell *c, struct kvm_vcpu *guest, u64 to, u64 policy,
		       bool scrambles)
{
	u64 offset;
	u32 i, pattern;

	for (i = 0; i < c->npages; i++) {
		offset = cell_start(c) + i * PS;
		pattern = pattern_after(c->state[i], policy, scrambles, c->seed);
		if (guest)
			check_guest(c, guest, offset, pattern,
				    contract[c->state[i]].name);
		else
			check_host(c, offset, to, pattern,
				   contract[c->state[i]].name);
	}
	for (i = 0; i < 2 * NR_GUARDS; i++) {
		offset = guard_offset(c, i);
		if (guest)
			check_guest(c, guest, offset, guard_seed, "neighbour");
		else
			check_host(c, offset, guard_attributes(i, to),
				   guard_seed, "neighbour");
	}
}

FIXTURE(contract)
{
};

FIXTURE_VARIANT(contract)
{
	bool launched;
	u64 to;
	u64 policy;
};

#define CONTRACT_VARIANT(_phase, _launched, _dir, _to, _pol, _policy)		\
FIXTURE_VARIANT_ADD(contract, _phase##_##_dir##_##_pol)				\
{										\
	.launched = _launched,							\
	.to = _to,								\
	.policy = _policy,							\
}

#define CONTRACT_VARIANTS(_phase, _launched)					\
CONTRACT_VARIANT(_phase, _launched, to_private, GMEM_PRIVATE, preserve, GMEM_PRESERVE); \
CONTRACT_VARIANT(_phase, _launched, to_private, GMEM_PRIVATE, zero, GMEM_ZERO);	\
CONTRACT_VARIANT(_phase, _launched, to_private, GMEM_PRIVATE, none, GMEM_NONE);	\
CONTRACT_VARIANT(_phase, _launched, to_shared, GMEM_SHARED, preserve, GMEM_PRESERVE); \
CONTRACT_VARIANT(_phase, _launched, to_shared, GMEM_SHARED, zero, GMEM_ZERO);	\
CONTRACT_VARIANT(_phase, _launched, to_shared, GMEM_SHARED, none, GMEM_NONE)

CONTRACT_VARIANTS(before_first_run, false);
CONTRACT_VARIANTS(after_first_run, true);

FIXTURE_SETUP(contract)
{
}

FIXTURE_TEARDOWN(contract)
{
}

TEST_F_TIMEOUT(contract, every_page_state, GMEM_TIMEOUT)
{
	const bool scrambles = gmem_scrambles();
	struct cell cells[NR_PAGE_STATES + 1];
	u32 i, nr_cells = 0, nr_pages = 0;
	struct kvm_vcpu *vcpu;
	enum page_state s;
	struct kvm_vm *vm;
	struct cell *c;

	vm = gmem_vm_create(1, 1024, &vcpu);
	if (variant->launched)
		gmem_guest_start(vcpu);

	/* A cell for each state, and one with a page of each: mixed. */
	memset(cells, 0, sizeof(cells));
	c = &cells[0];
	for (s = 0; s < NR_PAGE_STATES; s++) {
		if (contract[s].needs_run && !variant->launched)
			continue;
		c->name = contract[s].name;
		c->npages = 3;
		for (i = 0; i < c->npages; i++)
			c->state[i] = s;
		c++;
	}
	c->name = "mixed range";
	for (s = 0; s < NR_PAGE_STATES; s++) {
		if (contract[s].needs_run && !variant->launched)
			continue;
		c->state[c->npages++] = s;
	}
	nr_cells = c + 1 - cells;

	gmem_dirty_free_pages();
	for (i = 0; i < nr_cells; i++) {
		cells[i].seed = GMEM_SEED(i + 1);
		prepare_cell(&cells[i], vcpu, i, variant->to);
		nr_pages += cells[i].npages;
	}
	for (i = 0; i < nr_cells; i++)
		convert_cell(&cells[i], variant->to, variant->policy);

	for (i = 0; i < nr_cells; i++)
		check_attributes(&cells[i], variant->to);

	/*
	 * Each side looks first in one of the phases: the first look at a page
	 * that nobody has touched is the one that allocates it.
	 */
	if (!variant->launched) {
		for (i = 0; i < nr_cells; i++)
			check_cell(&cells[i], NULL, variant->to, variant->policy,
				   scrambles);
		gmem_guest_start(vcpu);
	}
	for (i = 0; i < nr_cells; i++)
		check_cell(&cells[i], vcpu, variant->to, variant->policy,
			   scrambles);
	for (i = 0; i < nr_cells; i++)
		check_cell(&cells[i], NULL, variant->to, variant->policy,
			   scrambles);

	/*
	 * Both views are the same memory: what the guest saw while it was
	 * private is what the host finds when it is shared again.
	 */
	for (i = 0; i < nr_cells; i++) {
		c = &cells[i];
		gmem_convert(c->a.fd, 0, c->a.size, GMEM_SHARED, GMEM_PRESERVE);
		for (s = 0; s < c->npages; s++)
			check_host(c, cell_start(c) + s * PS, GMEM_SHARED,
				   pattern_after(c->state[s], variant->policy,
						 scrambles, c->seed),
				   "shared again");
	}

	ksft_print_msg("%s, %s, %s%s: %u cells, %u pages\n",
		       variant->launched ? "after first run" : "before first run",
		       variant->to ? "to private" : "to shared",
		       variant->policy == GMEM_PRESERVE ? "PRESERVE" :
		       variant->policy == GMEM_ZERO ? "ZERO" : "NONE",
		       variant->policy != GMEM_NONE ? "" :
		       scrambles ? " (scrambles)" : " (does not scramble)",
		       nr_cells, nr_pages);

	for (i = 0; i < nr_cells; i++)
		gmem_area_destroy(&cells[i].a);
	kvm_vm_free(vm);
}

/* --- Everything else has one VM and one area ---------------------------- */

FIXTURE(gmem)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct gmem_area a;
};

FIXTURE_SETUP(gmem)
{
	self->vm = gmem_vm_create(1, 1024, &self->vcpu);
	gmem_area_create(&self->a, self->vm, GMEM_SLOT, GMEM_GPA, NR_PAGES * PS,
			 GMEM_MMAP_SHARED);
}

/* A test that has destroyed the area itself says so by fd = -1. */
FIXTURE_TEARDOWN(gmem)
{
	if (self->a.fd >= 0)
		gmem_area_destroy(&self->a);
	kvm_vm_free(self->vm);
}

#define GMEM_TEST(name) TEST_F_TIMEOUT(gmem, name, GMEM_TIMEOUT)

/* Every page holds the same seed, converted back and forth around it. */
static void fill_area(struct gmem_area *a, u32 pattern)
{
	gmem_fill(a->hva, a->size, pattern, 0);
}

/* --- Errors ------------------------------------------------------------- */

/* The request fails with @want, tells nothing about a page, changes nothing. */
#define assert_refused(a, off, len, attr, policy, want)			\
do {										\
	u64 __eo2;								\
	int __r2 = gmem_set_once((a)->fd, off, len, attr, policy, &__eo2);	\
										\
	TEST_ASSERT(__r2 == (want),						\
		    "[%#lx, +%#lx) attributes %#lx flags %#lx: errno %d (%s), wanted %d (%s)", \
		    (u64)(off), (u64)(len), (u64)(attr), (u64)(policy), __r2,	\
		    strerror(__r2), (want), strerror(want));			\
	TEST_ASSERT(__eo2 == GMEM_POISON_OFFSET,				\
		    "error_offset was written: %#lx", __eo2);			\
} while (0)

GMEM_TEST(unknown_ioctls_give_enotty)
{
	const unsigned long cmds[] = {
		_IO(KVMIO, 0xd2),
		_IO(KVMIO, 0xff),
		_IOW(KVMIO, 0xd2, struct kvm_memory_attributes),
		_IOWR(KVMIO, 0xd2, struct kvm_memory_attributes),
		_IOW(KVMIO, 0xd2, struct kvm_memory_attributes2),
		_IOR(KVMIO, 0xd3, struct kvm_memory_attributes2),
		_IOWR(KVMIO, 0xd3, struct kvm_memory_attributes),
		KVM_GET_API_VERSION,
		KVM_CREATE_GUEST_MEMFD,
	};
	struct kvm_memory_attributes2 attrs = { .size = PS };
	int i;

	TEST_ASSERT_EQ(KVM_SET_MEMORY_ATTRIBUTES, 0x4020AED2);

	for (i = 0; i < ARRAY_SIZE(cmds); i++) {
		TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, cmds[i], &attrs), ENOTTY);
		/* It is decided before the argument is looked at. */
		TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, cmds[i], NULL), ENOTTY);
	}
}

GMEM_TEST(old_style_file_gives_enotty)
{
	struct kvm_memory_attributes2 attrs = { .size = PS };
	int fd;

	if (host_wide_mode())
		SKIP(return, "kvm.gmem_in_place_conversion=Y: no file is old style");

	fd = vm_create_guest_memfd(self->vm, PS, 0);
	TEST_ASSERT_EQ(gmem_ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, &attrs), ENOTTY);
	attrs.size = 0;
	TEST_ASSERT_EQ(gmem_ioctl(fd, KVM_GET_MEMORY_ATTRIBUTES2, &attrs), ENOTTY);
	TEST_ASSERT_EQ(gmem_ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, NULL), ENOTTY);
	TEST_ASSERT_EQ(gmem_ioctl(fd, KVM_GET_MEMORY_ATTRIBUTES2, NULL), ENOTTY);
	kvm_close(fd);
}

/*
 * The ioctls, flags and values that a VMM uses which was written for the public
 * interface. It knows neither policies, which it leaves at 0, nor files that do not
 * convert beside such that do: what it was written for is what both parameters
 * together make of the host.
 */
GMEM_TEST(vmm_of_the_public_interface)
{
	struct kvm_memory_attributes attrs = {
		.address = GMEM_GPA + SZ_1G,
		.size = PS,
		.attributes = GMEM_PRIVATE,
	};
	int fd, r;

	/* Whatever the parameters are: some file of this VM converts. */
	TEST_ASSERT_EQ(vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES),
		       GMEM_PRIVATE);

	/* It takes that to be true of every file, and the VM not to decide. */
	fd = vm_create_guest_memfd(self->vm, PS, 0);
	r = gmem_set(fd, 0, PS, GMEM_SHARED, 0, NULL);
	TEST_ASSERT_EQ(r, host_wide_mode() ? 0 : ENOTTY);
	kvm_close(fd);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, KVM_CAP_MEMORY_ATTRIBUTES),
		       host_wide_mode() ? 0 : GMEM_PRIVATE);
	r = __vm_ioctl(self->vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs) ? errno : 0;
	TEST_ASSERT_EQ(r, host_wide_mode() ? EINVAL : 0);

	/* One of its files that the host can map does convert, in each mode. */
	fill_area(&self->a, GMEM_SEED(1));
	gmem_convert(self->a.fd, 0, self->a.size, GMEM_PRIVATE, 0);
	gmem_host_assert_refused(self->a.hva, self->a.size);
	gmem_convert(self->a.fd, 0, self->a.size, GMEM_SHARED, 0);
	/* On other types of VM this depends on the platform, and not on the parameter. */
	gmem_host_assert(self->a.hva, self->a.size,
			 gmem_scrambles() ? GMEM_SCRAMBLED : GMEM_SEED(1), 0);
}

GMEM_TEST(new_file_survives_exec)
{
	TEST_ASSERT_EQ(fcntl(self->a.fd, F_GETFD), 0);
}

GMEM_TEST(vm_without_private_memory_gives_einval)
{
	const u64 flags[] = { 0, GUEST_MEMFD_FLAG_MMAP, GMEM_MMAP_SHARED };
	struct kvm_memory_attributes2 attrs;
	struct kvm_vm *vm = vm_create_barebones();
	int i, fd;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		fd = vm_create_guest_memfd(vm, PS, flags[i]);

		attrs = (struct kvm_memory_attributes2) {
			.size = PS, .error_offset = GMEM_POISON_OFFSET,
		};
		TEST_ASSERT_EQ(gmem_ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, &attrs),
			       EINVAL);
		TEST_ASSERT_EQ(attrs.error_offset, GMEM_POISON_OFFSET);

		memset(&attrs, 0, sizeof(attrs));
		TEST_ASSERT_EQ(gmem_ioctl(fd, KVM_GET_MEMORY_ATTRIBUTES2, &attrs),
			       EINVAL);

		TEST_ASSERT_EQ(gmem_ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, NULL),
			       EFAULT);
		TEST_ASSERT_EQ(gmem_ioctl(fd, KVM_GET_MEMORY_ATTRIBUTES2, NULL),
			       EFAULT);
		kvm_close(fd);
	}
	kvm_vm_free(vm);
}

GMEM_TEST(unreadable_struct_gives_efault)
{
	u8 *mem = kvm_mmap(2 * PS, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct kvm_memory_attributes2 *attrs;

	TEST_ASSERT(!mprotect(mem + PS, PS, PROT_NONE), "mprotect() failed");

	TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, KVM_SET_MEMORY_ATTRIBUTES2, NULL),
		       EFAULT);
	TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, KVM_SET_MEMORY_ATTRIBUTES2, mem + PS),
		       EFAULT);

	/* All of the struct is read, also the last reserved word. */
	attrs = (void *)(mem + PS - sizeof(*attrs) + sizeof(u64));
	attrs->size = PS;
	attrs->attributes = GMEM_PRIVATE;
	TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, KVM_SET_MEMORY_ATTRIBUTES2, attrs),
		       EFAULT);
	TEST_ASSERT_EQ(gmem_is_private(self->a.fd, 0), false);

	/* And nothing behind it. */
	attrs = (void *)(mem + PS - sizeof(*attrs));
	memset(attrs, 0, sizeof(*attrs));
	attrs->size = PS;
	attrs->attributes = GMEM_PRIVATE;
	TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, KVM_SET_MEMORY_ATTRIBUTES2, attrs), 0);
	TEST_ASSERT_EQ(gmem_is_private(self->a.fd, 0), true);

	kvm_munmap(mem, 2 * PS);
}

/*
 * The struct is written only if there is an offset to tell. A write that fails
 * hides EAGAIN; both mean that nothing was converted.
 */
GMEM_TEST(read_only_struct)
{
	struct kvm_memory_attributes2 *attrs;
	int pipefd[2];

	attrs = kvm_mmap(PS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1);
	fill_area(&self->a, GMEM_SEED(1));
	pin_page(self->a.hva + PS, pipefd);

	attrs->size = 4 * PS;
	attrs->attributes = GMEM_PRIVATE;
	attrs->flags = GMEM_PRESERVE;
	TEST_ASSERT(!mprotect(attrs, PS, PROT_READ), "mprotect() failed");

	TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, KVM_SET_MEMORY_ATTRIBUTES2, attrs),
		       EFAULT);
	gmem_assert_attributes(self->a.fd, 0, self->a.size, GMEM_SHARED);

	unpin_page(pipefd);
	TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, KVM_SET_MEMORY_ATTRIBUTES2, attrs), 0);
	gmem_assert_attributes(self->a.fd, 0, 4 * PS, GMEM_PRIVATE);

	/* GET always has something to write. */
	TEST_ASSERT(!mprotect(attrs, PS, PROT_READ | PROT_WRITE), "mprotect() failed");
	memset(attrs, 0, sizeof(*attrs));
	TEST_ASSERT(!mprotect(attrs, PS, PROT_READ), "mprotect() failed");
	TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, KVM_GET_MEMORY_ATTRIBUTES2, attrs),
		       EFAULT);

	/* An error without an offset needs no write. */
	TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, KVM_SET_MEMORY_ATTRIBUTES2, attrs),
		       EINVAL);
	kvm_munmap(attrs, PS);
}

GMEM_TEST(unknown_flags_give_einval)
{
	u64 bit;

	for (bit = BIT(2); bit; bit <<= 1) {
		assert_refused(&self->a, 0, PS, GMEM_PRIVATE, bit, EINVAL);
		assert_refused(&self->a, 0, PS, GMEM_PRIVATE, bit | GMEM_ZERO, EINVAL);
	}
	gmem_assert_attributes(self->a.fd, 0, self->a.size, GMEM_SHARED);
}

GMEM_TEST(both_policies_give_einval)
{
	assert_refused(&self->a, 0, PS, GMEM_PRIVATE, GMEM_ZERO | GMEM_PRESERVE,
		       EINVAL);
	assert_refused(&self->a, 0, PS, GMEM_SHARED, GMEM_ZERO | GMEM_PRESERVE,
		       EINVAL);
	gmem_assert_attributes(self->a.fd, 0, self->a.size, GMEM_SHARED);
}

GMEM_TEST(reserved_words_give_einval)
{
	int i;

	for (i = 0; i < 11; i++) {
		struct kvm_memory_attributes2 attrs = {
			.size = PS,
			.attributes = GMEM_PRIVATE,
			.error_offset = GMEM_POISON_OFFSET,
		};

		attrs.reserved[i] = i & 1 ? 1 : BIT(63);
		TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, KVM_SET_MEMORY_ATTRIBUTES2,
					  &attrs), EINVAL);
		TEST_ASSERT_EQ(attrs.error_offset, GMEM_POISON_OFFSET);
	}
	gmem_assert_attributes(self->a.fd, 0, self->a.size, GMEM_SHARED);
}

GMEM_TEST(unknown_attributes_give_einval)
{
	u64 bit;

	for (bit = BIT(0); bit; bit <<= 1) {
		if (bit == GMEM_PRIVATE)
			continue;
		assert_refused(&self->a, 0, PS, bit, GMEM_NONE, EINVAL);
		assert_refused(&self->a, 0, PS, bit | GMEM_PRIVATE, GMEM_NONE, EINVAL);
	}
	gmem_assert_attributes(self->a.fd, 0, self->a.size, GMEM_SHARED);
}

GMEM_TEST(bad_ranges_give_einval)
{
	const u64 end = self->a.size;
	const struct {
		u64 offset, size;
	} bad[] = {
		{ 0, 0 },
		{ PS, 0 },
		{ end, 0 },
		{ 0, 1 },
		{ 0, PS - 1 },
		{ 0, PS + 1 },
		{ 0, PS / 2 },
		{ 1, PS },
		{ PS - 1, PS },
		{ PS / 2, PS },
		{ PS + 1, 2 * PS },
		{ 0, end + PS },
		{ PS, end },
		{ end - PS, 2 * PS },
		{ end, PS },
		{ end + PS, PS },
		{ 0, BIT(32) },			/* whole pages in 32 bits */
		{ BIT(32), PS },
		{ BIT(44), PS },		/* index 0 in 32 bits */
		{ 0, BIT(44) + PS },
		{ 0, BIT(63) },
		{ BIT(63), PS },
		{ BIT(63), BIT(63) },
		{ 0, -PS },
		{ PS, -PS },			/* ends at 0 */
		{ -PS, PS },
		{ -PS, 2 * PS },		/* wraps to one page */
		{ end - PS, -end + 2 * PS },
		{ -1ULL, 1 },
		{ 1, -1ULL },
		{ -1ULL, -1ULL },
		{ 0, -1ULL },
		{ INT64_MAX & -PS, PS },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_refused(&self->a, bad[i].offset, bad[i].size, GMEM_PRIVATE,
			       GMEM_NONE, EINVAL);
		assert_refused(&self->a, bad[i].offset, bad[i].size, GMEM_SHARED,
			       GMEM_ZERO, EINVAL);
	}
	gmem_assert_attributes(self->a.fd, 0, end, GMEM_SHARED);

	/* The ones next to them are fine. */
	gmem_convert(self->a.fd, 0, end, GMEM_PRIVATE, GMEM_NONE);
	gmem_assert_attributes(self->a.fd, 0, end, GMEM_PRIVATE);
	gmem_convert(self->a.fd, end - PS, PS, GMEM_SHARED, GMEM_NONE);
	gmem_convert(self->a.fd, 0, PS, GMEM_SHARED, GMEM_NONE);
	gmem_assert_attributes(self->a.fd, PS, end - 2 * PS, GMEM_PRIVATE);
	gmem_assert_attributes(self->a.fd, 0, PS, GMEM_SHARED);
	gmem_assert_attributes(self->a.fd, end - PS, PS, GMEM_SHARED);
}

GMEM_TEST(error_offset_is_not_checked_on_input)
{
	u64 eo;

	TEST_ASSERT_EQ(gmem_set(self->a.fd, 0, PS, GMEM_PRIVATE, GMEM_ZERO, &eo), 0);
	TEST_ASSERT_EQ(eo, GMEM_POISON_OFFSET);
	TEST_ASSERT_EQ(gmem_set(self->a.fd, 0, PS, GMEM_PRIVATE, GMEM_PRESERVE, &eo), 0);
	TEST_ASSERT_EQ(eo, GMEM_POISON_OFFSET);
}

GMEM_TEST(pinned_page_gives_eagain)
{
	struct gmem_area *a = &self->a;
	int first[2], second[2];
	u64 eo, policy;
	u8 byte;

	fill_area(a, GMEM_SEED(3));
	pin_page(a->hva + 9 * PS, second);
	pin_page(a->hva + 5 * PS, first);

	for (policy = GMEM_NONE; policy <= GMEM_PRESERVE; policy++) {
		/* The lowest of several, wherever the request starts. */
		TEST_ASSERT_EQ(gmem_set(a->fd, 0, a->size, GMEM_PRIVATE, policy,
					&eo), EAGAIN);
		TEST_ASSERT_EQ(eo, 5 * PS);
		TEST_ASSERT_EQ(gmem_set(a->fd, 5 * PS, 2 * PS, GMEM_PRIVATE,
					policy, &eo), EAGAIN);
		TEST_ASSERT_EQ(eo, 5 * PS);
		TEST_ASSERT_EQ(gmem_set(a->fd, 6 * PS, 4 * PS, GMEM_PRIVATE,
					policy, &eo), EAGAIN);
		TEST_ASSERT_EQ(eo, 9 * PS);

		/* All or nothing: neither attributes nor contents. */
		gmem_assert_attributes(a->fd, 0, a->size, GMEM_SHARED);
		gmem_host_assert(a->hva, a->size, GMEM_SEED(3), 0);
	}

	/* To shared nobody minds: the page is shared already. */
	gmem_convert(a->fd, 0, a->size, GMEM_SHARED, GMEM_PRESERVE);

	/* Beside it nobody minds either. */
	gmem_convert(a->fd, 0, 5 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_convert(a->fd, 0, 5 * PS, GMEM_SHARED, GMEM_PRESERVE);

	unpin_page(first);
	TEST_ASSERT_EQ(gmem_set(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_PRESERVE,
				&eo), EAGAIN);
	TEST_ASSERT_EQ(eo, 9 * PS);
	unpin_page(second);
	gmem_convert(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT(!gmem_host_read(a->hva + 5 * PS, &byte), "Host reads private");

	gmem_guest_start(self->vcpu);
	gmem_guest_assert(self->vcpu, a->gpa, a->size, GMEM_SEED(3), 0);
}

/*
 * A failed request whose range is partly private already leaves that part
 * alone too.
 */
GMEM_TEST(pinned_page_in_mixed_range)
{
	struct gmem_area *a = &self->a;
	int pipefd[2], i;
	u64 eo;

	fill_area(a, GMEM_SEED(4));
	for (i = 0; i < NR_PAGES; i += 2)
		gmem_convert(a->fd, i * PS, PS, GMEM_PRIVATE, GMEM_PRESERVE);
	pin_page(a->hva + 7 * PS, pipefd);
	gmem_guest_start(self->vcpu);

	TEST_ASSERT_EQ(gmem_set(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_ZERO, &eo),
		       EAGAIN);
	TEST_ASSERT_EQ(eo, 7 * PS);
	for (i = 0; i < NR_PAGES; i++)
		gmem_assert_attributes(a->fd, i * PS, PS,
				       i & 1 ? GMEM_SHARED : GMEM_PRIVATE);
	gmem_guest_assert(self->vcpu, a->gpa, a->size, GMEM_SEED(4), 0);

	unpin_page(pipefd);
	gmem_convert(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_ZERO);
	gmem_guest_assert(self->vcpu, a->gpa, a->size, GMEM_ZEROES, 0);
}

GMEM_TEST(poisoned_page_gives_ehwpoison)
{
	struct gmem_area *a = &self->a;
	const u64 bad = 6 * PS;
	u64 eo;
	int r;

	fill_area(a, GMEM_SEED(5));
	r = gmem_host_poison(a->hva + bad);
	if (r)
		SKIP(return, "No MADV_HWPOISON: %s (CONFIG_MEMORY_FAILURE, root)",
		     strerror(r));

	/* Writing contents of a page that is shared already. */
	TEST_ASSERT_EQ(gmem_set(a->fd, 0, a->size, GMEM_SHARED, GMEM_ZERO, &eo),
		       EHWPOISON);
	TEST_ASSERT_EQ(eo, bad);
	gmem_host_assert(a->hva, bad, GMEM_SEED(5), 0);
	gmem_host_assert(a->hva + bad + PS, a->size - bad - PS, GMEM_SEED(5),
			 bad + PS);

	r = gmem_set(a->fd, PS, a->size - PS, GMEM_SHARED, GMEM_NONE, &eo);
	if (gmem_scrambles()) {
		TEST_ASSERT_EQ(r, EHWPOISON);
		TEST_ASSERT_EQ(eo, bad);
	} else {
		TEST_ASSERT_EQ(r, 0);
	}
	gmem_host_assert(a->hva, bad, GMEM_SEED(5), 0);

	/* PRESERVE has neither to read nor to write it. */
	TEST_ASSERT_EQ(gmem_set(a->fd, 0, a->size, GMEM_SHARED, GMEM_PRESERVE, &eo), 0);

	/*
	 * To private the reference that memory failure keeps may be met first;
	 * the page is named in either case, and nothing is converted.
	 */
	r = gmem_set(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_ZERO, &eo);
	TEST_ASSERT(r == EHWPOISON || r == EAGAIN, "errno %d (%s)", r, strerror(r));
	TEST_ASSERT_EQ(eo, bad);
	gmem_assert_attributes(a->fd, 0, a->size, GMEM_SHARED);
	gmem_host_assert(a->hva, bad, GMEM_SEED(5), 0);
	ksft_print_msg("poisoned page to private, ZERO: %s\n", strerror(r));

	/* The guest's access tells the VMM which page it was. */
	gmem_guest_start(self->vcpu);
	r = __gmem_guest_do(self->vcpu, GMEM_OP_READ, a->gpa + bad, 1, 0, 0, 0);
	TEST_ASSERT_EQ(r, -EHWPOISON);
	TEST_ASSERT_EQ(self->vcpu->run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(self->vcpu->run->memory_fault.gpa, a->gpa + bad);
	TEST_ASSERT_EQ(self->vcpu->run->memory_fault.size, PS);
	TEST_ASSERT_EQ(self->vcpu->run->memory_fault.flags, 0);

	/* A fresh page in its place heals everything. */
	TEST_ASSERT_EQ(gmem_punch(a->fd, bad, PS), 0);
	r = gmem_guest_resume(self->vcpu);
	gmem_guest_ok(self->vcpu, r);
	TEST_ASSERT_EQ(gmem_cmd_of(self->vcpu)->value, 0);
	gmem_convert(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_ZERO);
}

#define CORRUPT_PFN	"/sys/kernel/debug/hwpoison/corrupt-pfn"

/* The frame of a page that the host has mapped, 0 if it is not told. */
static u64 frame_of(const u8 *mem)
{
	u64 entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	if (fd < 0)
		return 0;
	if (pread(fd, &entry, sizeof(entry), (u64)mem / PS * sizeof(entry)) !=
	    sizeof(entry))
		entry = 0;
	close(fd);
	return entry >> 63 ? entry & (BIT(55) - 1) : 0;
}

/* A private page is out of madvise()'s reach, so go by its frame. */
GMEM_TEST(poisoned_private_page_exits_private)
{
	struct gmem_area *a = &self->a;
	const u64 bad = 2 * PS;
	char pfn[32];
	int fd, r;
	u64 eo;

	if (access(CORRUPT_PFN, W_OK))
		mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	fd = open(CORRUPT_PFN, O_WRONLY);
	if (fd < 0)
		SKIP(return, "No %s: %s", CORRUPT_PFN, strerror(errno));

	fill_area(a, GMEM_SEED(6));
	snprintf(pfn, sizeof(pfn), "%#lx", frame_of(a->hva + bad));
	TEST_ASSERT(strcmp(pfn, "0"), "No frame number of a mapped page");
	gmem_convert(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_guest_start(self->vcpu);
	gmem_guest_assert(self->vcpu, a->gpa, a->size, GMEM_SEED(6), 0);

	/* Its result is about what the kernel could save, not about poison. */
	r = write(fd, pfn, strlen(pfn));
	ksft_print_msg("%s > corrupt-pfn: %d\n", pfn, r);
	close(fd);

	/* The guest had it mapped. */
	r = __gmem_guest_do(self->vcpu, GMEM_OP_READ, a->gpa + bad, 1, 0, 0, 0);
	TEST_ASSERT_EQ(r, -EHWPOISON);
	TEST_ASSERT_EQ(self->vcpu->run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(self->vcpu->run->memory_fault.gpa, a->gpa + bad);
	TEST_ASSERT_EQ(self->vcpu->run->memory_fault.size, PS);
	TEST_ASSERT_EQ(self->vcpu->run->memory_fault.flags,
		       KVM_MEMORY_EXIT_FLAG_PRIVATE);

	/* To shared nobody asks for references, only for the contents. */
	TEST_ASSERT_EQ(gmem_set(a->fd, 0, a->size, GMEM_SHARED, GMEM_ZERO, &eo),
		       EHWPOISON);
	TEST_ASSERT_EQ(eo, bad);
	gmem_assert_attributes(a->fd, 0, a->size, GMEM_PRIVATE);
	TEST_ASSERT_EQ(gmem_set(a->fd, 0, a->size, GMEM_SHARED, GMEM_PRESERVE,
				&eo), 0);
	gmem_host_assert(a->hva, bad, GMEM_SEED(6), 0);
	TEST_ASSERT(gmem_host_refused(a->hva + bad), "Host reaches poison");
	gmem_host_assert(a->hva + bad + PS, a->size - bad - PS, GMEM_SEED(6),
			 bad + PS);
}

GMEM_TEST(dead_vm_gives_eio)
{
	struct kvm_memory_attributes2 attrs = {
		.size = PS,
		.attributes = GMEM_PRIVATE,
		.error_offset = GMEM_POISON_OFFSET,
	};

	if (!kill_vm(self->vcpu))
		SKIP(return, "No way to kill a VM without KVM_CAP_X86_SMM");

	TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, KVM_SET_MEMORY_ATTRIBUTES2, &attrs),
		       EIO);
	TEST_ASSERT_EQ(attrs.error_offset, GMEM_POISON_OFFSET);
	TEST_ASSERT_EQ(gmem_get(self->a.fd, 0, NULL, NULL), EIO);

	/* A dead VM cannot give its slots back; closing everything must do. */
	kvm_munmap(self->a.hva, self->a.size);
	kvm_close(self->a.fd);
	self->a.fd = -1;
}

/*
 * Every combination of causes that can be had at the same time gives the
 * errno of the one that comes first.
 */
enum cause {
	OLD_STYLE_FILE,
	UNREADABLE,
	DEAD_VM,
	BAD_FLAGS,
	BAD_RESERVED,
	NO_PRIVATE_MEMORY,
	BAD_ATTRIBUTES,
	BAD_RANGE,
	PINNED_PAGE,
	POISONED_PAGE,
	NR_CAUSES,
};

static const struct {
	int err;
	bool about_a_page;
} order[NR_CAUSES] = {
	[OLD_STYLE_FILE]	= { ENOTTY,	false },
	[UNREADABLE]		= { EFAULT,	false },
	[DEAD_VM]		= { EIO,	false },
	[BAD_FLAGS]		= { EINVAL,	false },
	[BAD_RESERVED]		= { EINVAL,	false },
	[NO_PRIVATE_MEMORY]	= { EINVAL,	false },
	[BAD_ATTRIBUTES]	= { EINVAL,	false },
	[BAD_RANGE]		= { EINVAL,	false },
	[PINNED_PAGE]		= { EAGAIN,	true },
	[POISONED_PAGE]		= { EHWPOISON,	true },
};

/* Page 1 is pinned, page 2 poisoned. */
struct order_file {
	int fd;
	u8 *hva;
	int pipefd[2];
	bool poisoned;
};

static void order_file_create(struct order_file *f, struct kvm_vm *vm, u64 flags,
			      bool poison)
{
	memset(f, 0, sizeof(*f));
	f->fd = vm_create_guest_memfd(vm, 4 * PS, flags);
	if (!(flags & GUEST_MEMFD_FLAG_MMAP))
		return;

	f->hva = kvm_mmap(4 * PS, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd);
	gmem_fill(f->hva, 4 * PS, GMEM_SEED(7), 0);
	pin_page(f->hva + PS, f->pipefd);
	if (poison)
		f->poisoned = !gmem_host_poison(f->hva + 2 * PS);
}

static void order_file_destroy(struct order_file *f)
{
	if (f->hva) {
		unpin_page(f->pipefd);
		kvm_munmap(f->hva, 4 * PS);
	}
	kvm_close(f->fd);
}

GMEM_TEST(errors_come_in_their_order)
{
	struct order_file in_place, old_style, default_vm;
	struct order_file dead_in_place, dead_old_style, dead_default;
	struct kvm_vcpu *vcpu2, *vcpu3;
	struct kvm_vm *vm2, *vm3, *vm4;
	u32 set, i, nr = 0;
	bool can_die;

	/* Poisoned pages are lost to the machine: one is enough. */
	order_file_create(&in_place, self->vm, GMEM_MMAP_SHARED, true);
	order_file_create(&old_style, self->vm, 0, false);

	vm2 = gmem_vm_create(1, 0, &vcpu2);
	order_file_create(&dead_in_place, vm2, GMEM_MMAP_SHARED, false);
	order_file_create(&dead_old_style, vm2, 0, false);

	vm3 = vm_create_with_one_vcpu(&vcpu3, gmem_guest_code);
	order_file_create(&dead_default, vm3, GMEM_MMAP_SHARED, false);

	vm4 = vm_create_barebones();
	order_file_create(&default_vm, vm4, GMEM_MMAP_SHARED, false);

	can_die = kill_vm(vcpu2) && kill_vm(vcpu3);

	for (set = 1; set < BIT(NR_CAUSES); set++) {
		struct kvm_memory_attributes2 attrs = {
			.offset = 0,
			.size = 4 * PS,
			.attributes = GMEM_PRIVATE,
			.flags = GMEM_ZERO,
			.error_offset = GMEM_POISON_OFFSET,
		};
		struct order_file *f;
		u64 want_offset = GMEM_POISON_OFFSET;
		int first, want, r;

		/* A file is only one of these, and only one is poisoned. */
		if ((set & BIT(OLD_STYLE_FILE)) &&
		    ((set & BIT(NO_PRIVATE_MEMORY)) || host_wide_mode()))
			continue;
		if ((set & BIT(DEAD_VM)) && !can_die)
			continue;
		if (set & BIT(POISONED_PAGE)) {
			if (!in_place.poisoned ||
			    (set & (BIT(DEAD_VM) | BIT(OLD_STYLE_FILE) |
				    BIT(NO_PRIVATE_MEMORY))))
				continue;
			/* Alone it has a subtest of its own. */
			if (set == BIT(POISONED_PAGE))
				continue;
		}
		/* Without mmap() there is nothing to pin. */
		if ((set & BIT(PINNED_PAGE)) && (set & BIT(OLD_STYLE_FILE)))
			continue;

		if (set & BIT(OLD_STYLE_FILE))
			f = set & BIT(DEAD_VM) ? &dead_old_style : &old_style;
		else if (set & BIT(NO_PRIVATE_MEMORY))
			f = set & BIT(DEAD_VM) ? &dead_default : &default_vm;
		else
			f = set & BIT(DEAD_VM) ? &dead_in_place : &in_place;

		/* Only the range decides which of the bad pages are met. */
		if (!(set & BIT(PINNED_PAGE)))
			attrs.offset = 2 * PS;
		if (!(set & BIT(POISONED_PAGE)))
			attrs.offset = set & BIT(PINNED_PAGE) ? PS : 0;
		attrs.size = set & BIT(POISONED_PAGE) ? 4 * PS - attrs.offset : PS;
		if (set & BIT(BAD_FLAGS))
			attrs.flags = GMEM_ZERO | GMEM_PRESERVE;
		if (set & BIT(BAD_RESERVED))
			attrs.reserved[10] = 1;
		if (set & BIT(BAD_ATTRIBUTES))
			attrs.attributes = GMEM_PRIVATE | 1;
		if (set & BIT(BAD_RANGE))
			attrs.size -= 1;

		first = __builtin_ctz(set);
		want = order[first].err;
		if (order[first].about_a_page)
			want_offset = first == PINNED_PAGE ? PS : 2 * PS;

		r = gmem_ioctl(f->fd, KVM_SET_MEMORY_ATTRIBUTES2,
			       set & BIT(UNREADABLE) ? NULL : &attrs);
		TEST_ASSERT(r == want,
			    "Causes %#x: errno %d (%s), wanted %d (%s)", set, r,
			    strerror(r), want, strerror(want));
		TEST_ASSERT(attrs.error_offset == want_offset,
			    "Causes %#x: error_offset %#llx, wanted %#lx", set,
			    attrs.error_offset, want_offset);
		nr++;
	}
	for (i = 0; i < 4; i++)
		TEST_ASSERT_EQ(gmem_is_private(in_place.fd, i * PS), false);

	ksft_print_msg("%u combinations of causes%s%s\n", nr,
		       can_die ? "" : ", none with a dead VM (no SMM)",
		       in_place.poisoned ? "" : ", none with poison (no MADV_HWPOISON)");

	order_file_destroy(&in_place);
	order_file_destroy(&old_style);
	order_file_destroy(&default_vm);
	order_file_destroy(&dead_in_place);
	order_file_destroy(&dead_old_style);
	order_file_destroy(&dead_default);
	kvm_vm_free(vm4);
	kvm_vm_free(vm3);
	kvm_vm_free(vm2);
}

/* --- Who may call ------------------------------------------------------- */

static void convert_in_child(void *arg)
{
	struct gmem_area *a = arg;
	u8 byte;

	gmem_convert(a->fd, 0, 4 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_assert_attributes(a->fd, 0, 4 * PS, GMEM_PRIVATE);
	TEST_ASSERT(!gmem_host_read(a->hva, &byte),
		    "The child reads a private page through its own mapping");
	TEST_ASSERT(gmem_host_read(a->hva + 4 * PS, &byte),
		    "The child cannot read a shared page");
}

GMEM_TEST(another_process_may_convert)
{
	struct gmem_area *a = &self->a;

	fill_area(a, GMEM_SEED(8));
	in_child(convert_in_child, a);
	gmem_assert_attributes(a->fd, 0, 4 * PS, GMEM_PRIVATE);
	gmem_host_assert_refused(a->hva, 4 * PS);
	gmem_guest_start(self->vcpu);
	gmem_guest_assert(self->vcpu, a->gpa, a->size, GMEM_SEED(8), 0);
}

GMEM_TEST(file_outlives_the_vm)
{
	struct kvm_vm *vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	int fd = vm_create_guest_memfd(vm, 4 * PS, GMEM_MMAP_SHARED);
	u8 *mem = kvm_mmap(4 * PS, PROT_READ | PROT_WRITE, MAP_SHARED, fd);

	kvm_vm_free(vm);

	gmem_fill(mem, 4 * PS, GMEM_SEED(9), 0);
	gmem_convert(fd, PS, 2 * PS, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_host_assert_refused(mem + PS, 2 * PS);
	gmem_convert(fd, 0, 2 * PS, GMEM_SHARED, GMEM_ZERO);
	gmem_assert_attributes(fd, 0, 2 * PS, GMEM_SHARED);
	gmem_assert_attributes(fd, 2 * PS, PS, GMEM_PRIVATE);
	gmem_host_assert(mem, 2 * PS, GMEM_ZEROES, 0);
	gmem_convert(fd, 2 * PS, PS, GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert(mem + 2 * PS, 2 * PS, GMEM_SEED(9), 2 * PS);
	kvm_munmap(mem, 4 * PS);
	kvm_close(fd);
}

static sigjmp_buf no_compat;

static void no_compat_handler(int sig)
{
	siglongjmp(no_compat, 1);
}

/* ioctl() as a 32-bit process calls it, @arg below 4 GiB. Returns errno. */
static int compat_ioctl(int fd, u32 cmd, void *arg)
{
	long r = 54;

	asm volatile("int $0x80"
		     : "+a" (r)
		     : "b" ((long)fd), "c" ((long)cmd), "d" (arg)
		     : "memory", "r8", "r9", "r10", "r11");
	return -(int)r;
}

GMEM_TEST(callers_of_32_bits)
{
	struct sigaction sa = { .sa_handler = no_compat_handler };
	struct kvm_memory_attributes2 *attrs;
	int pipefd[2];

	attrs = kvm_mmap(PS, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1);
	TEST_ASSERT(!sigaction(SIGSEGV, &sa, NULL), "sigaction() failed");
	if (sigsetjmp(no_compat, 1))
		SKIP(return, "No IA32_EMULATION");

	TEST_ASSERT_EQ(compat_ioctl(self->a.fd, KVM_GET_MEMORY_ATTRIBUTES2, attrs), 0);
	TEST_ASSERT_EQ(attrs->attributes, 0);
	TEST_ASSERT_EQ(attrs->size, self->a.size);

	fill_area(&self->a, GMEM_SEED(9));
	pin_page(self->a.hva + 3 * PS, pipefd);
	memset(attrs, 0, sizeof(*attrs));
	attrs->offset = 2 * PS;
	attrs->size = 4 * PS;
	attrs->attributes = GMEM_PRIVATE;
	attrs->flags = GMEM_PRESERVE;
	TEST_ASSERT_EQ(compat_ioctl(self->a.fd, KVM_SET_MEMORY_ATTRIBUTES2, attrs),
		       EAGAIN);
	TEST_ASSERT_EQ(attrs->error_offset, 3 * PS);
	unpin_page(pipefd);

	attrs->size = 1;
	TEST_ASSERT_EQ(compat_ioctl(self->a.fd, KVM_SET_MEMORY_ATTRIBUTES2, attrs),
		       EINVAL);
	attrs->size = PS;
	TEST_ASSERT_EQ(compat_ioctl(self->a.fd, KVM_SET_MEMORY_ATTRIBUTES2, attrs), 0);
	gmem_assert_attributes(self->a.fd, 2 * PS, PS, GMEM_PRIVATE);
	gmem_assert_attributes(self->a.fd, 3 * PS, 13 * PS, GMEM_SHARED);
	kvm_munmap(attrs, PS);
}

/* --- GET ---------------------------------------------------------------- */

static u32 count_runs(int fd, u64 size)
{
	u64 offset, attributes, run, last = ~0ULL;
	u32 nr = 0;
	int r;

	for (offset = 0; offset < size; offset += run) {
		r = gmem_get(fd, offset, &attributes, &run);
		TEST_ASSERT(!r, "GET at %#lx: errno %d (%s)", offset, r, strerror(r));
		TEST_ASSERT(run && offset + run <= size,
			    "GET at %#lx: size %#lx", offset, run);
		TEST_ASSERT(attributes != last,
			    "GET split a run at %#lx", offset);
		last = attributes;
		nr++;
	}
	TEST_ASSERT_EQ(offset, size);
	return nr;
}

GMEM_TEST(get_walks_runs)
{
	struct gmem_area *a = &self->a;
	u64 attributes, size;
	int i;

	TEST_ASSERT_EQ(count_runs(a->fd, a->size), 1);

	/* S P S PP S PPP S PPPP S: 9 runs. */
	gmem_convert(a->fd, 1 * PS, 1 * PS, GMEM_PRIVATE, GMEM_NONE);
	gmem_convert(a->fd, 3 * PS, 2 * PS, GMEM_PRIVATE, GMEM_NONE);
	gmem_convert(a->fd, 6 * PS, 3 * PS, GMEM_PRIVATE, GMEM_NONE);
	gmem_convert(a->fd, 10 * PS, 4 * PS, GMEM_PRIVATE, GMEM_NONE);
	TEST_ASSERT_EQ(count_runs(a->fd, a->size), 9);

	/* From the middle of a run only the rest of it is told. */
	TEST_ASSERT_EQ(gmem_get(a->fd, 11 * PS, &attributes, &size), 0);
	TEST_ASSERT_EQ(attributes, GMEM_PRIVATE);
	TEST_ASSERT_EQ(size, 3 * PS);
	TEST_ASSERT_EQ(gmem_get(a->fd, 15 * PS, &attributes, &size), 0);
	TEST_ASSERT_EQ(attributes, 0);
	TEST_ASSERT_EQ(size, PS);

	/* Filling a gap merges with both neighbours. */
	gmem_convert(a->fd, 5 * PS, PS, GMEM_PRIVATE, GMEM_NONE);
	TEST_ASSERT_EQ(count_runs(a->fd, a->size), 7);
	TEST_ASSERT_EQ(gmem_get(a->fd, 3 * PS, &attributes, &size), 0);
	TEST_ASSERT_EQ(size, 6 * PS);

	/* A request over many runs leaves one. */
	gmem_convert(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_NONE);
	TEST_ASSERT_EQ(count_runs(a->fd, a->size), 1);
	gmem_convert(a->fd, 2 * PS, 12 * PS, GMEM_SHARED, GMEM_NONE);
	TEST_ASSERT_EQ(count_runs(a->fd, a->size), 3);
	gmem_convert(a->fd, 0, a->size, GMEM_SHARED, GMEM_NONE);
	TEST_ASSERT_EQ(count_runs(a->fd, a->size), 1);

	/* The most runs there can be, made in an order that merges nothing. */
	for (i = 1; i < NR_PAGES; i += 2)
		gmem_convert(a->fd, (i * 7 % NR_PAGES) * PS, PS, GMEM_PRIVATE,
			     GMEM_NONE);
	TEST_ASSERT_EQ(count_runs(a->fd, a->size), NR_PAGES);
}

GMEM_TEST(get_refuses_bad_offsets)
{
	const u64 bad[] = {
		1, PS - 1, PS / 2, self->a.size, self->a.size + PS,
		self->a.size - 1, BIT(44), BIT(63), -PS, -1ULL,
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++)
		TEST_ASSERT(gmem_get(self->a.fd, bad[i], NULL, NULL) == EINVAL,
			    "GET at %#lx is not EINVAL", bad[i]);
	TEST_ASSERT_EQ(gmem_get(self->a.fd, self->a.size - PS, NULL, NULL), 0);
}

GMEM_TEST(get_refuses_other_input)
{
	struct kvm_memory_attributes2 attrs;
	int i;

	attrs = (struct kvm_memory_attributes2) { .size = PS };
	TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, KVM_GET_MEMORY_ATTRIBUTES2, &attrs),
		       EINVAL);
	attrs = (struct kvm_memory_attributes2) { .attributes = GMEM_PRIVATE };
	TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, KVM_GET_MEMORY_ATTRIBUTES2, &attrs),
		       EINVAL);
	attrs = (struct kvm_memory_attributes2) { .flags = GMEM_PRESERVE };
	TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, KVM_GET_MEMORY_ATTRIBUTES2, &attrs),
		       EINVAL);
	for (i = 0; i < 11; i++) {
		memset(&attrs, 0, sizeof(attrs));
		attrs.reserved[i] = 1;
		TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, KVM_GET_MEMORY_ATTRIBUTES2,
					  &attrs), EINVAL);
	}
	TEST_ASSERT_EQ(gmem_ioctl(self->a.fd, KVM_GET_MEMORY_ATTRIBUTES2, NULL),
		       EFAULT);
}

/* --- Capabilities ------------------------------------------------------- */

GMEM_TEST(capabilities)
{
	struct kvm_vm *plain = vm_create_barebones();
	const u32 policies = 0x030303;

	TEST_ASSERT_EQ(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES, 252);
	TEST_ASSERT_EQ(KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS, 0x10000);
	TEST_ASSERT_EQ(KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS, 0x10001);
	TEST_ASSERT_EQ(KVM_CAP_GET_MEMORY_ATTRIBUTES2, 0x10002);

	/* /dev/kvm: what some VM type here can do. */
	TEST_ASSERT_EQ(kvm_check_cap(252), 8);
	TEST_ASSERT_EQ(kvm_check_cap(0x10000), policies);
	TEST_ASSERT_EQ(kvm_check_cap(0x10001), policies);
	TEST_ASSERT_EQ(kvm_check_cap(0x10002), 1);
	TEST_ASSERT_EQ(kvm_check_cap(244), GMEM_MMAP_SHARED);

	TEST_ASSERT_EQ(vm_check_cap(self->vm, 252), 8);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, 0x10000), policies);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, 0x10001), policies);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, 0x10002), 1);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, 244), GMEM_MMAP_SHARED);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, KVM_CAP_MEMORY_ATTRIBUTES),
		       host_wide_mode() ? 0 : 8);

	/* No private memory, nothing to convert. */
	TEST_ASSERT_EQ(vm_check_cap(plain, 252), 0);
	TEST_ASSERT_EQ(vm_check_cap(plain, 0x10000), 0);
	TEST_ASSERT_EQ(vm_check_cap(plain, 0x10001), 0);
	TEST_ASSERT_EQ(vm_check_cap(plain, 244), GMEM_MMAP_SHARED);

	/* The first run does not change them on SW_PROTECTED. */
	gmem_guest_start(self->vcpu);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, 252), 8);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, 0x10000), policies);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, 0x10001), policies);
	kvm_vm_free(plain);
}

/* --- Sizes -------------------------------------------------------------- */

GMEM_TEST(sparse_file_of_one_tebibyte)
{
	const u64 size = BIT(40), step = size / 8;
	const u64 policies[] = { GMEM_NONE, GMEM_ZERO, GMEM_PRESERVE };
	struct stat st;
	int fd, i, j;
	u8 *mem;

	fd = vm_create_guest_memfd(self->vm, size, GMEM_MMAP_SHARED);
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd);

	/* Nothing is allocated, so nothing is to be done and nothing is. */
	for (i = 0; i < ARRAY_SIZE(policies); i++) {
		gmem_convert(fd, 0, size, GMEM_PRIVATE, policies[i]);
		gmem_assert_attributes(fd, 0, size, GMEM_PRIVATE);
		TEST_ASSERT_EQ(count_runs(fd, size), 1);
		gmem_host_assert_refused(mem + size - PS, PS);
		gmem_convert(fd, 0, size, GMEM_SHARED, policies[i]);
		TEST_ASSERT_EQ(count_runs(fd, size), 1);
	}
	TEST_ASSERT(!fstat(fd, &st), "fstat() failed");
	TEST_ASSERT_EQ(st.st_blocks, 0);

	/* Pages far apart, the last one among them. */
	for (i = 0; i < ARRAY_SIZE(policies); i++) {
		u32 after = policies[i] == GMEM_ZERO ? GMEM_ZEROES :
			    policies[i] == GMEM_PRESERVE || !gmem_scrambles() ?
			    GMEM_SEED(10) : GMEM_SCRAMBLED;

		for (j = 1; j <= 8; j++)
			gmem_fill(mem + j * step - PS, PS, GMEM_SEED(10),
				  j * step - PS);
		gmem_convert(fd, 0, size, GMEM_PRIVATE, policies[i]);
		for (j = 1; j <= 8; j++)
			gmem_host_assert_refused(mem + j * step - PS, PS);
		gmem_convert(fd, 0, size, GMEM_SHARED, GMEM_PRESERVE);
		for (j = 1; j <= 8; j++)
			gmem_host_assert(mem + j * step - PS, PS, after,
					 j * step - PS);
		gmem_host_assert(mem + step, PS, GMEM_ZEROES, 0);
		TEST_ASSERT_EQ(gmem_punch(fd, 0, size), 0);
	}
	kvm_munmap(mem, size);
	kvm_close(fd);
}

/*
 * The map that remembers the attributes is a tree, whose nodes are freed in one
 * go with the file. Do that with trees of every shape, and take the memory that
 * was freed for the next ones: a node that was not one corrupts memory, which
 * sanitised kernels report and others do not survive.
 */
GMEM_TEST(maps_of_all_sizes_are_freed)
{
	const u64 max_runs = 320;
	u64 runs, i, attributes, size;
	int fd;

	for (runs = 1; runs <= max_runs; runs++) {
		fd = vm_create_guest_memfd(self->vm, max_runs * PS, GMEM_MMAP_SHARED);
		for (i = 1; i < runs; i += 2)
			gmem_convert(fd, i * PS, PS, GMEM_PRIVATE, GMEM_NONE);
		for (i = 0; i < runs; i++) {
			TEST_ASSERT_EQ(gmem_get(fd, i * PS, &attributes, &size), 0);
			TEST_ASSERT_EQ(attributes, i & 1 ? GMEM_PRIVATE : GMEM_SHARED);
		}
		kvm_close(fd);
	}
}

GMEM_TEST(file_of_the_largest_size)
{
	const u64 size = INT64_MAX & ~(PS - 1);
	u64 attributes, run, eo;
	int fd;

	fd = __vm_create_guest_memfd(self->vm, size, GMEM_MMAP_SHARED);
	TEST_ASSERT(fd >= 0, "A file of %#lx bytes: errno %d", size, errno);

	gmem_convert(fd, size - PS, PS, GMEM_PRIVATE, GMEM_ZERO);
	TEST_ASSERT_EQ(gmem_get(fd, 0, &attributes, &run), 0);
	TEST_ASSERT_EQ(attributes, 0);
	TEST_ASSERT_EQ(run, size - PS);
	TEST_ASSERT_EQ(gmem_get(fd, size - PS, &attributes, &run), 0);
	TEST_ASSERT_EQ(attributes, GMEM_PRIVATE);
	TEST_ASSERT_EQ(run, PS);

	gmem_convert(fd, 0, size, GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT_EQ(count_runs(fd, size), 1);

	TEST_ASSERT_EQ(gmem_set_once(fd, size, PS, 0, 0, &eo), EINVAL);
	TEST_ASSERT_EQ(gmem_set_once(fd, size - PS, 2 * PS, 0, 0, &eo), EINVAL);
	TEST_ASSERT_EQ(gmem_set_once(fd, PS, size, 0, 0, &eo), EINVAL);
	TEST_ASSERT_EQ(gmem_get(fd, size, NULL, NULL), EINVAL);
	kvm_close(fd);
}

/* --- Holes -------------------------------------------------------------- */

GMEM_TEST(punched_pages_read_zero_and_keep_their_attributes)
{
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;
	const u64 half = a->size / 2;

	gmem_guest_start(vcpu);
	fill_area(a, GMEM_SEED(11));
	gmem_convert(a->fd, 0, half, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(11), 0);
	gmem_dirty_free_pages();

	/* Two private pages, two shared ones, and two across the border. */
	TEST_ASSERT_EQ(gmem_punch(a->fd, PS, 2 * PS), 0);
	TEST_ASSERT_EQ(gmem_punch(a->fd, half - PS, 2 * PS), 0);
	TEST_ASSERT_EQ(gmem_punch(a->fd, half + 4 * PS, 2 * PS), 0);
	gmem_assert_attributes(a->fd, 0, half, GMEM_PRIVATE);
	gmem_assert_attributes(a->fd, half, half, GMEM_SHARED);

	gmem_host_assert_refused(a->hva, half);
	gmem_guest_assert(vcpu, a->gpa, PS, GMEM_SEED(11), 0);
	gmem_guest_assert(vcpu, a->gpa + PS, 2 * PS, GMEM_ZEROES, 0);
	gmem_guest_assert(vcpu, a->gpa + 3 * PS, 4 * PS, GMEM_SEED(11), 3 * PS);
	gmem_host_assert(a->hva + half, PS, GMEM_ZEROES, 0);
	gmem_guest_assert(vcpu, a->gpa + half - PS, 2 * PS, GMEM_ZEROES, 0);
	gmem_host_assert(a->hva + half + PS, 3 * PS, GMEM_SEED(11), half + PS);
	gmem_guest_assert(vcpu, a->gpa + half + 4 * PS, 2 * PS, GMEM_ZEROES, 0);
	gmem_host_assert(a->hva + half + 6 * PS, 2 * PS, GMEM_SEED(11),
			 half + 6 * PS);

	/* A hole is "never allocated" again: NONE does not scramble it. */
	TEST_ASSERT_EQ(gmem_punch(a->fd, 0, a->size), 0);
	TEST_ASSERT_EQ(gmem_allocate(a->fd, 0, 4 * PS), 0);
	gmem_convert(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_NONE);
	gmem_convert(a->fd, 0, a->size, GMEM_SHARED, GMEM_NONE);
	gmem_host_assert(a->hva, a->size, GMEM_ZEROES, 0);
}

/* Whichever kind of mapping the guest has, punching takes it away. */
GMEM_TEST(punching_unmaps_both_kinds_from_the_guest)
{
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;

	gmem_guest_start(vcpu);
	gmem_convert(a->fd, PS, PS, GMEM_PRIVATE, GMEM_NONE);
	gmem_guest_fill(vcpu, a->gpa, 2 * PS, GMEM_SEED(12), 0);
	TEST_ASSERT_EQ(gmem_punch(a->fd, 0, 2 * PS), 0);
	gmem_guest_assert(vcpu, a->gpa, 2 * PS, GMEM_ZEROES, 0);
}

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
	 * The slot is guest_memfd-only all the same: what is at userspace_addr
	 * is of no interest to the guest.
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

	/* What the guest writes privately through either comes back. */
	gmem_guest_fill(vcpu, low.gpa, low.size, GMEM_SEED(19), 0);
	gmem_guest_fill(vcpu, high.gpa, high.size, GMEM_SEED(19), split);
	gmem_convert(fd, 0, size, GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert(mem, size, GMEM_SEED(19), 0);

	gmem_area_unbind(&low);
	gmem_area_unbind(&high);
	kvm_munmap(mem, size);
	kvm_close(fd);
}

/* Slots show two windows of the file; the rest of it converts all the same. */
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

/* Mappings that start elsewhere in the file lose the same pages, no others. */
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

	/* Shared, whatever the file that was there says: plain MMIO. */
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

	/* A slot in place ends that; the interrupted read goes on. */
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

	/* An ordinary slot right behind it, to see what the ioctl left there. */
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

	/* Beside it the ioctl is what it was. */
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

	/* And the other way round. */
	gmem_convert(a->fd, 0, 12 * PS, GMEM_SHARED, GMEM_PRESERVE);
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(27), 0);
	gmem_convert(a->fd, 0, a->size, GMEM_SHARED, GMEM_PRESERVE);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_4k), mapped - 4);

	/* Nothing changes, nothing is to be done: nothing is touched. */
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(27), 0);
	gmem_convert(a->fd, 0, a->size, GMEM_SHARED, GMEM_PRESERVE);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_4k), mapped);
}

/*
 * With kvm.gmem_in_place_conversion=Y a file needs no flags to convert, and
 * nobody else has a say.
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

	/* Not over a slot, and not where none is. */
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

/* --- The guest asks ----------------------------------------------------- */

GMEM_TEST(payload_injection_by_hypercall)
{
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;
	int i;

	gmem_guest_start(vcpu);
	for (i = 0; i < 4; i++) {
		gmem_fill(a->hva, a->size, GMEM_SEED(30 + i), 0);
		gmem_guest_convert(vcpu, a, PS, a->size - 2 * PS, GMEM_PRIVATE,
				   GMEM_PRESERVE);
		gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_SEED(30 + i), 0);
		gmem_host_assert_refused(a->hva + PS, a->size - 2 * PS);
		gmem_guest_convert(vcpu, a, 0, a->size, GMEM_SHARED, GMEM_ZERO);
		gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_ZEROES, 0);
		gmem_host_assert(a->hva, a->size, GMEM_ZEROES, 0);
	}
}

GMEM_TEST(bounce_buffer_by_hypercall)
{
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;
	int i;

	gmem_guest_start(vcpu);
	gmem_guest_convert(vcpu, a, 0, a->size, GMEM_PRIVATE, GMEM_ZERO);
	for (i = 0; i < 4; i++) {
		/* Out: what the guest wrote in private, the host reads. */
		gmem_guest_fill(vcpu, a->gpa, a->size, GMEM_SEED(40 + i), 0);
		gmem_guest_convert(vcpu, a, 4 * PS, 4 * PS, GMEM_SHARED,
				   GMEM_PRESERVE);
		gmem_host_assert(a->hva + 4 * PS, 4 * PS, GMEM_SEED(40 + i), 4 * PS);
		gmem_host_assert_refused(a->hva, 4 * PS);
		gmem_host_assert_refused(a->hva + 8 * PS, 8 * PS);

		/* In: the host's answer, read while still shared and after. */
		gmem_fill(a->hva + 4 * PS, 4 * PS, GMEM_SEED(50 + i), 4 * PS);
		gmem_guest_assert(vcpu, a->gpa + 4 * PS, 4 * PS, GMEM_SEED(50 + i),
				  4 * PS);
		gmem_guest_convert(vcpu, a, 4 * PS, 4 * PS, GMEM_PRIVATE,
				   GMEM_PRESERVE);
		gmem_guest_assert(vcpu, a->gpa + 4 * PS, 4 * PS, GMEM_SEED(50 + i),
				  4 * PS);
		gmem_guest_assert(vcpu, a->gpa, 4 * PS, GMEM_SEED(40 + i), 0);
	}
}

/* --- KVM_PRE_FAULT_MEMORY ----------------------------------------------- */

GMEM_TEST(prefault_of_a_mixed_range)
{
	struct gmem_area *a = &self->a, warm_up;
	struct kvm_vcpu *vcpu = self->vcpu;
	u64 mapped;
	int i;

	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		SKIP(return, "No KVM_CAP_PRE_FAULT_MEMORY");

	/* Have the guest's code mapped before anything is counted. */
	gmem_area_create(&warm_up, self->vm, GMEM_SLOT + 1, GMEM_GPA + SZ_1M, PS,
			 GMEM_MMAP_SHARED);
	gmem_guest_start(vcpu);
	gmem_guest_assert(vcpu, warm_up.gpa, PS, GMEM_ZEROES, 0);

	/* Even pages private, the first half written, the second untouched. */
	gmem_fill(a->hva, a->size / 2, GMEM_SEED(60), 0);
	for (i = 0; i < NR_PAGES; i += 2)
		gmem_convert(a->fd, i * PS, PS, GMEM_PRIVATE, GMEM_PRESERVE);

	mapped = vm_get_stat(self->vm, pages_4k);
	gmem_dirty_free_pages();
	TEST_ASSERT_EQ(prefault(vcpu, a->gpa, a->size), 0);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_4k), mapped + NR_PAGES);

	for (i = 0; i < NR_PAGES; i++)
		gmem_assert_attributes(a->fd, i * PS, PS,
				       i & 1 ? GMEM_SHARED : GMEM_PRIVATE);
	gmem_guest_assert(vcpu, a->gpa, a->size / 2, GMEM_SEED(60), 0);
	gmem_guest_assert(vcpu, a->gpa + a->size / 2, a->size / 2, GMEM_ZEROES, 0);

	/* The guest needed no fault for that. */
	TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_4k), mapped + NR_PAGES);

	/* A conversion takes prefaulted mappings away like any other. */
	gmem_convert(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_ZERO);
	TEST_ASSERT(vm_get_stat(self->vm, pages_4k) <= mapped + NR_PAGES / 2,
		    "%lu pages are mapped, some of them still shared",
		    vm_get_stat(self->vm, pages_4k) - mapped);
	TEST_ASSERT_EQ(prefault(vcpu, a->gpa, a->size), 0);
	gmem_guest_assert(vcpu, a->gpa, a->size, GMEM_ZEROES, 0);
	gmem_host_assert_refused(a->hva, a->size);
	gmem_area_destroy(&warm_up);
}

/* --- Exits -------------------------------------------------------------- */

/* Close the only references to the file; the slot stays. */
static void close_file(struct gmem_area *a)
{
	kvm_munmap(a->hva, a->size);
	kvm_close(a->fd);
	a->fd = -1;
}

#define assert_memory_fault(vcpu, r, _gpa)					\
do {										\
	TEST_ASSERT((r) == -EFAULT, "KVM_RUN gives %d", r);			\
	TEST_ASSERT_EQ((vcpu)->run->exit_reason, KVM_EXIT_MEMORY_FAULT);	\
	TEST_ASSERT_EQ((vcpu)->run->memory_fault.gpa, _gpa);			\
	TEST_ASSERT_EQ((vcpu)->run->memory_fault.size, PS);			\
} while (0)

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

/* --- All of it in random order ------------------------------------------ */

#define MODEL_STEPS 400

struct model_page {
	bool private;
	bool allocated;		/* zeroed at a first use, i.e. up to date */
	u32 pattern;
};

GMEM_TEST(random_operations_follow_the_model)
{
	const bool scrambles = gmem_scrambles();
	struct model_page model[NR_PAGES] = {};
	struct gmem_area *a = &self->a;
	struct kvm_vcpu *vcpu = self->vcpu;
	u32 step, i, first, nr, seed;
	u64 to, policy;

	gmem_guest_start(vcpu);
	for (step = 0; step < MODEL_STEPS; step++) {
		first = kvm_random_u32(&kvm_rng) % NR_PAGES;
		nr = 1 + kvm_random_u32(&kvm_rng) % (NR_PAGES - first);
		seed = GMEM_SEED(step);

		switch (kvm_random_u32(&kvm_rng) % 8) {
		case 0:
			gmem_guest_fill(vcpu, a->gpa + first * PS, nr * PS, seed,
					first * PS);
			for (i = first; i < first + nr; i++) {
				model[i].allocated = true;
				model[i].pattern = seed;
			}
			break;
		case 1:
			for (i = first; i < first + nr; i++) {
				if (model[i].private)
					continue;
				gmem_fill(a->hva + i * PS, PS, seed, i * PS);
				model[i].allocated = true;
				model[i].pattern = seed;
			}
			break;
		case 2:
			TEST_ASSERT_EQ(gmem_punch(a->fd, first * PS, nr * PS), 0);
			for (i = first; i < first + nr; i++) {
				model[i].allocated = false;
				model[i].pattern = GMEM_ZEROES;
			}
			break;
		case 3:
			TEST_ASSERT_EQ(gmem_allocate(a->fd, first * PS, nr * PS), 0);
			break;
		default:
			to = kvm_random_bool(&kvm_rng) ? GMEM_PRIVATE : GMEM_SHARED;
			policy = kvm_random_u32(&kvm_rng) % 3;
			gmem_convert(a->fd, first * PS, nr * PS, to, policy);
			for (i = first; i < first + nr; i++) {
				model[i].private = to;
				if (!model[i].allocated)
					continue;
				if (policy == GMEM_ZERO)
					model[i].pattern = GMEM_ZEROES;
				else if (policy == GMEM_NONE && scrambles)
					model[i].pattern = GMEM_SCRAMBLED;
			}
			break;
		}

		for (i = 0; i < NR_PAGES; i++) {
			TEST_ASSERT(gmem_is_private(a->fd, i * PS) == model[i].private,
				    "Step %u: page %u should be %s", step, i,
				    model[i].private ? "private" : "shared");
		}

		/* Look at one page from both sides, which may allocate it. */
		i = kvm_random_u32(&kvm_rng) % NR_PAGES;
		if (model[i].private)
			gmem_host_assert_refused(a->hva + i * PS, PS);
		else
			gmem_host_assert(a->hva + i * PS, PS, model[i].pattern, i * PS);
		gmem_guest_assert(vcpu, a->gpa + i * PS, PS, model[i].pattern, i * PS);
		model[i].allocated = true;
	}

	for (i = 0; i < NR_PAGES; i++)
		gmem_guest_assert(vcpu, a->gpa + i * PS, PS, model[i].pattern, i * PS);
	ksft_print_msg("%u steps, seed %#x\n", step, kvm_random_seed);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(gmem_vm_type_supported());
	__TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES),
		       "This kernel does not convert guest_memfd in place");

	return test_harness_run(argc, argv);
}
