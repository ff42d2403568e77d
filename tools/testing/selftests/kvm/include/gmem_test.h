/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Helpers for the tests of guest_memfd's in-place conversion.
 *
 * Four things are here: wrappers around the two ioctls that return an errno
 * instead of setting it, a VM with in-place memory at a guest physical
 * address, a guest that executes commands of the host (fill, check, read,
 * write, ask for a conversion), so that a test is one straight piece of host
 * code, and the platforms that a kernel with CONFIG_KVM_GMEM_EMULATION
 * emulates.
 *
 * Everything is static because a test is one translation unit that is linked
 * with libkvm.
 */
#ifndef SELFTEST_KVM_GMEM_TEST_H
#define SELFTEST_KVM_GMEM_TEST_H

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include <linux/falloc.h>
#include <linux/kvm_para.h>
#include <linux/sizes.h>

#include <linux/kvm_gmem.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#ifdef __x86_64__
#include "gmem_mirror.h"
#endif

#define GMEM_PRIVATE	KVM_MEMORY_ATTRIBUTE_PRIVATE
#define GMEM_SHARED	0ULL

#define GMEM_NONE	KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_NONE
#define GMEM_ZERO	KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_ZERO
#define GMEM_PRESERVE	KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_PRESERVE

#define GMEM_MMAP_SHARED (GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)

/* The value that a test puts into error_offset to detect whether the kernel wrote it. */
#define GMEM_POISON_OFFSET	0xdeadbeefcafef00dULL

/*
 * Above slot 0 of libkvm and above the PCI hole; gva = gpa there.
 */
#define GMEM_GPA		((gpa_t)SZ_4G)
#define GMEM_SLOT		10

/* A transient reference is gone after a few attempts, a pin is not. */
#define GMEM_MAX_RETRIES	1000

/* --- Byte patterns ------------------------------------------------------ */

/*
 * A pattern below 0x100 is that byte everywhere. Any other is a seed: the byte
 * depends on the seed and on the position, so that exchanged pages and
 * shifted bytes are seen, and is never 0x00, never 0xab and never above 0x7f,
 * so that it cannot be confused with a zeroed or a scrambled page.
 */
#define GMEM_ZEROES		0x00u
#define GMEM_SCRAMBLED		0xabu
#define GMEM_SEED(n)		(0x100u + (n))

/* The same as the other side of an emulated platform reads it. */
#define GMEM_KEYED_BIT		(1u << 31)
#define GMEM_KEYED(pattern)	((pattern) ^ GMEM_KEYED_BIT)

#define GMEM_ALL_GOOD		(~0ULL)

/* The key; guests of simulated hardware have their own. */
static u64 gmem_key __maybe_unused = KVM_GMEM_EMULATION_KEY;

static inline u8 gmem_pattern_byte(u32 pattern, u64 pos)
{
	u32 p = (u32)pos;

	if (pattern & GMEM_KEYED_BIT)
		return gmem_pattern_byte(GMEM_KEYED(pattern), pos) ^
		       (u8)(gmem_key >> pos % 8 * 8);
	if (pattern < 0x100)
		return pattern;
	return (pattern * 29 + p * 7 + (p >> 8) * 13 + (p >> 12) * 31) % 127 + 1;
}

/* @pos is the position of @mem[0], normally its offset in the file. */
static inline void gmem_fill(volatile u8 *mem, u64 size, u32 pattern, u64 pos)
{
	u64 i;

	for (i = 0; i < size; i++)
		mem[i] = gmem_pattern_byte(pattern, pos + i);
}

/* The offset from @mem of the first wrong byte, else GMEM_ALL_GOOD. */
static inline u64 gmem_check(const volatile u8 *mem, u64 size, u32 pattern,
			     u64 pos)
{
	u64 i;

	for (i = 0; i < size; i++) {
		if (mem[i] != gmem_pattern_byte(pattern, pos + i))
			return i;
	}
	return GMEM_ALL_GOOD;
}

/*
 * Leave a few MiB of recognisable bytes in the free pages of this CPU, so that
 * tests notice a page that was not zeroed.
 */
static inline void gmem_dirty_free_pages(void)
{
	const size_t size = SZ_4M;
	void *mem = kvm_mmap(size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);

	kvm_madvise(mem, size, MADV_NOHUGEPAGE);
	memset(mem, 0x5a, size);
	kvm_munmap(mem, size);
}

/* --- Host access that may be refused ------------------------------------ */

static __thread sigjmp_buf gmem_probe_env;
static __thread volatile sig_atomic_t gmem_probing;
/* How the last probe was refused. */
static __thread volatile sig_atomic_t gmem_refused_with __maybe_unused;

static void gmem_sigbus_handler(int sig)
{
	gmem_refused_with = sig;
	if (gmem_probing)
		siglongjmp(gmem_probe_env, 1);

	/* It was not expected: let it kill the test. */
	signal(sig, SIG_DFL);
	raise(sig);
}

/*
 * The handler is process wide and stays, so that several threads can probe at
 * the same time; what it does is decided per thread. Do not mix it with
 * TEST_EXPECT_SIGBUS() in other threads.
 */
static inline void gmem_install_sigbus_handler(void)
{
	struct sigaction sa = { .sa_handler = gmem_sigbus_handler };

	TEST_ASSERT(!sigaction(SIGBUS, &sa, NULL), "sigaction(SIGBUS) failed");
#ifdef __aarch64__
	/* For a page that EL2 protects from the host. */
	TEST_ASSERT(!sigaction(SIGSEGV, &sa, NULL), "sigaction(SIGSEGV) failed");
#endif
}

#define assert_errno(got, want)							\
do {										\
	int __r = (got), __want = (want);					\
										\
	TEST_ASSERT(__r == __want, "Wanted errno %d (%s), got %d (%s)", __want,	\
		    strerror(__want), __r, strerror(__r));			\
} while (0)

/* Whether @access of the host gives no SIGBUS. */
#define gmem_host_can(access)							\
({										\
	volatile bool __ok = false;						\
										\
	if (!sigsetjmp(gmem_probe_env, 1)) {					\
		gmem_probing = 1;						\
		access;								\
		__ok = true;							\
	}									\
	gmem_probing = 0;							\
	__ok;									\
})

/* Read one byte; false if that gave SIGBUS. */
static inline bool gmem_host_read(const volatile u8 *mem, u8 *val)
{
	return gmem_host_can(*val = *mem);
}

/* Write one byte; false if that gave SIGBUS. */
static inline bool gmem_host_write(volatile u8 *mem, u8 val)
{
	return gmem_host_can(*mem = val);
}

/* Whether reading and writing the page at @mem both give SIGBUS. */
static inline bool gmem_host_refused(volatile u8 *mem)
{
	u8 val;

	return !gmem_host_read(mem, &val) && !gmem_host_write(mem, 0xee);
}

/*
 * Poison the page at @mem, which the host can reach, as a memory error would.
 * Returns 0, or the errno if that is not possible here.
 *
 * The result of madvise() is not reliable: it is EBUSY for a page that is poisoned
 * but that somebody else holds at this moment, for example a fault in progress. And
 * the caller can get SIGBUS like a process that has lost data.
 */
static inline int gmem_host_poison(u8 *mem)
{
	volatile int err = 0;
	u8 val;

	if (!sigsetjmp(gmem_probe_env, 1)) {
		gmem_probing = 1;
		if (madvise(mem, getpagesize(), MADV_HWPOISON))
			err = errno;
	}
	gmem_probing = 0;

	if (!gmem_host_read(mem, &val))
		return 0;
	return err ? err : EIO;
}

/* --- The ioctls --------------------------------------------------------- */

/* Any ioctl, returning 0 or the positive errno. */
static inline int gmem_ioctl(int fd, unsigned long cmd, void *arg)
{
	return ioctl(fd, cmd, arg) < 0 ? errno : 0;
}

/*
 * One KVM_SET_MEMORY_ATTRIBUTES2, no retry. Returns 0 or the positive errno.
 * If @error_offset is not NULL it gets the field's value, which is
 * GMEM_POISON_OFFSET if the kernel did not write it.
 */
static inline int gmem_set_once(int fd, u64 offset, u64 size, u64 attributes,
				u64 policy, u64 *error_offset)
{
	struct kvm_memory_attributes2 attrs = {
		.offset = offset,
		.size = size,
		.attributes = attributes,
		.flags = policy,
		.error_offset = GMEM_POISON_OFFSET,
	};
	int r = gmem_ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, &attrs);

	if (error_offset)
		*error_offset = attrs.error_offset;
	return r;
}

/*
 * The same, retrying on EAGAIN as every user of the interface has to: a vCPU
 * or another thread that faults at this moment holds a reference for a short
 * time. A reference that stays is still reported, after GMEM_MAX_RETRIES.
 */
static inline int gmem_set(int fd, u64 offset, u64 size, u64 attributes,
			   u64 policy, u64 *error_offset)
{
	int i, r = EAGAIN;

	for (i = 0; i < GMEM_MAX_RETRIES && r == EAGAIN; i++) {
		if (i)
			sched_yield();
		r = gmem_set_once(fd, offset, size, attributes, policy,
				  error_offset);
	}
	return r;
}

/* The same, and it has to succeed. */
#define gmem_convert(fd, offset, size, attributes, policy)			\
do {										\
	u64 __eo, __o = (offset), __s = (size), __a = (attributes);		\
	u64 __p = (policy);							\
	int __r = gmem_set(fd, __o, __s, __a, __p, &__eo);			\
										\
	TEST_ASSERT(!__r, "[%#lx, +%#lx) to %s, policy %#lx: errno %d (%s), error_offset %#lx", \
		    __o, __s, __a ? "private" : "shared", __p, __r,		\
		    strerror(__r), __eo);					\
} while (0)

/* One KVM_GET_MEMORY_ATTRIBUTES2. Returns 0 or the positive errno. */
static inline int gmem_get(int fd, u64 offset, u64 *attributes, u64 *size)
{
	struct kvm_memory_attributes2 attrs = { .offset = offset };
	int r = gmem_ioctl(fd, KVM_GET_MEMORY_ATTRIBUTES2, &attrs);

	if (attributes)
		*attributes = attrs.attributes;
	if (size)
		*size = attrs.size;
	return r;
}

static inline bool gmem_is_private(int fd, u64 offset)
{
	u64 attributes;
	int r = gmem_get(fd, offset, &attributes, NULL);

	TEST_ASSERT(!r, "KVM_GET_MEMORY_ATTRIBUTES2 at %#lx: errno %d (%s)",
		    offset, r, strerror(r));
	return attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE;
}

/* Every page of the range has exactly these attributes. */
#define gmem_assert_attributes(fd, offset, len, want)				\
do {										\
	u64 __off = (offset), __end = __off + (len), __attr, __size;		\
										\
	while (__off < __end) {							\
		int __r = gmem_get(fd, __off, &__attr, &__size);		\
										\
		TEST_ASSERT(!__r, "KVM_GET_MEMORY_ATTRIBUTES2 at %#lx: errno %d (%s)", \
			    __off, __r, strerror(__r));				\
		TEST_ASSERT(__attr == (want),					\
			    "Page at %#lx has attributes %#lx, wanted %#lx",	\
			    __off, __attr, (u64)(want));			\
		TEST_ASSERT(__size, "Run at %#lx has no length", __off);	\
		__off += __size;						\
	}									\
} while (0)

static inline int gmem_punch(int fd, u64 offset, u64 size)
{
	return fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
			 offset, size) ? errno : 0;
}

static inline int gmem_allocate(int fd, u64 offset, u64 size)
{
	return fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, size) ? errno : 0;
}

/* Compacts memory once: earlier programs may have fragmented it, later tests do not. */
static inline void gmem_want_blocks(void)
{
	static bool done;
	int fd;

	if (done)
		return;
	done = true;
	fd = open("/proc/sys/vm/compact_memory", O_WRONLY);
	TEST_ASSERT(fd >= 0 && write(fd, "1", 1) == 1, "compact_memory: errno %d", errno);
	close(fd);
}

static inline void gmem_allocate_blocks(int fd, u64 offset, u64 size)
{
	int r;

	gmem_want_blocks();
	r = gmem_allocate(fd, offset, size);
	TEST_ASSERT(!r, "fallocate(): errno %d (%s)", r, strerror(r));
}

/* The entry of /proc/self/pagemap; 0 if there is none. Bit 63: the page is present. */
static inline u64 gmem_pagemap(const volatile void *hva)
{
	u64 entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	if (fd < 0)
		return 0;
	if (pread(fd, &entry, sizeof(entry), (unsigned long)hva / getpagesize() * sizeof(entry)) !=
	    sizeof(entry))
		entry = 0;
	close(fd);
	return entry;
}

/* The frame of a page that the host has mapped; 0 if there is none, or without root's rights. */
static inline u64 gmem_frame_of(const volatile void *hva)
{
	u64 entry = gmem_pagemap(hva);

	return entry >> 63 ? entry & ((1ULL << 55) - 1) : 0;
}

/* The bytes of a page after CONTENT_POLICY_NONE. */
static inline bool gmem_scrambles(void)
{
	return get_kvm_param_bool("gmem_scramble");
}

/* --- The guest ---------------------------------------------------------- */

enum gmem_op {
	GMEM_OP_FILL,		/* write pattern to [gpa, gpa + size) */
	GMEM_OP_CHECK,		/* compare it, bad = offset of the first error */
	GMEM_OP_READ,		/* value = the byte at gpa */
	GMEM_OP_WRITE,		/* the byte at gpa = value */
	GMEM_OP_MAP_GPA,	/* x86: KVM_HC_MAP_GPA_RANGE, pattern = its flags */
	GMEM_OP_SHARE,		/* arm64: MEM_SHARE, value = its result */
	GMEM_OP_UNSHARE,	/* arm64: MEM_UNSHARE, value = its result */
	GMEM_OP_RELINQUISH,	/* arm64: MEM_RELINQUISH, value = its result */
	GMEM_OP_HVC,		/* arm64: function @pattern of gpa and pos, value = its result */
	GMEM_OP_SMC,		/* arm64: the same by SMC */
	GMEM_OP_CALL,		/* value = what the function at gpa returns */
	GMEM_OP_COPY,		/* arm64: from pos to gpa, in words */
	GMEM_OP_STORM,		/* arm64: share and unshare, value = times that bytes were lost */
	GMEM_OP_RELINQUISHES,	/* arm64: relinquish and use anew, value = the same */
};

/*
 * One slot per vCPU, in the guest's copy of the program's data; the host
 * reaches it through addr_gva2hva().
 */
struct gmem_cmd {
	u64 op;
	u64 gpa;
	u64 size;
	u64 pos;
	u64 pattern;
	u64 value;	/* in for WRITE, out for READ, MAP_GPA, bad CHECK */
	u64 bad;
};

#define GMEM_MAX_VCPUS 16

static struct gmem_cmd gmem_cmds[GMEM_MAX_VCPUS];

/* Entry point of every vCPU; its argument is the vCPU's index. */
static void gmem_guest_code(u64 index)
{
	volatile struct gmem_cmd *cmd = &gmem_cmds[index];
	volatile u8 *mem;

	for (;;) {
		GUEST_SYNC(index);

		mem = (volatile u8 *)cmd->gpa;
		switch (cmd->op) {
		case GMEM_OP_FILL:
			gmem_fill(mem, cmd->size, cmd->pattern, cmd->pos);
			break;
		case GMEM_OP_CHECK:
			cmd->bad = gmem_check(mem, cmd->size, cmd->pattern,
					      cmd->pos);
			if (cmd->bad != GMEM_ALL_GOOD)
				cmd->value = mem[cmd->bad];
			break;
		case GMEM_OP_READ:
			cmd->value = *mem;
			break;
		case GMEM_OP_WRITE:
			*mem = cmd->value;
			break;
		case GMEM_OP_CALL:
			cmd->value = ((u64 (*)(void))cmd->gpa)();
			break;
#ifdef __x86_64__
		case GMEM_OP_MAP_GPA:
			cmd->value = __kvm_hypercall_map_gpa_range(cmd->gpa,
								   cmd->size,
								   cmd->pattern);
			break;
#endif
		default:
			GUEST_FAIL("Unknown command %lu", (u64)cmd->op);
		}
	}
}

/* --- The VM ------------------------------------------------------------- */

/* A VM of @type whose vCPUs execute commands; see gmem_vm_create(). */
static inline struct kvm_vm *gmem_vm_create_type(u32 type, u32 nr_vcpus, u64 extra_pages,
						 struct kvm_vcpu **vcpus)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = type,
	};
	struct kvm_vm *vm;
	u32 i;

	TEST_ASSERT(nr_vcpus <= GMEM_MAX_VCPUS, "Too many vCPUs");

	vm = __vm_create_with_vcpus(shape, nr_vcpus, extra_pages,
				    gmem_guest_code, vcpus);
	for (i = 0; i < nr_vcpus; i++)
		vcpu_args_set(vcpus[i], 1, (u64)i);
	gmem_install_sigbus_handler();
	return vm;
}

#ifdef __x86_64__
static inline bool gmem_vm_type_supported(void)
{
	return kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM);
}

/* Skips the whole program where no file converts in place. */
static inline void gmem_require_in_place(void)
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_VM_TYPES));
	__TEST_REQUIRE(gmem_vm_type_supported(), "KVM has no SW_PROTECTED VMs");
	__TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES),
		       "guest_memfd does not convert in place");
}

/*
 * A SW_PROTECTED VM whose vCPUs execute commands. No vCPU has run when it
 * returns. @extra_pages: how many pages of guest memory the test will map.
 */
static inline struct kvm_vm *gmem_vm_create(u32 nr_vcpus, u64 extra_pages,
					    struct kvm_vcpu **vcpus)
{
	struct kvm_vm *vm = gmem_vm_create_type(KVM_X86_SW_PROTECTED_VM, nr_vcpus, extra_pages,
						vcpus);

	vm_enable_cap(vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));
	return vm;
}

/* --- Emulated platforms -------------------------------------------------- */

/* Whether this kernel has a model of the platform, a KVM_GMEM_EMULATE_*. */
static inline bool gmem_emulates(u32 platform)
{
	return kvm_check_cap(KVM_CAP_GMEM_EMULATION) & BIT(platform);
}

#define GMEM_NO_EMULATION \
	"this kernel emulates no such platform (CONFIG_KVM_GMEM_EMULATION=y)"

/* Returns 0 or the positive errno. */
static inline int gmem_enable_emulation(struct kvm_vm *vm, u64 platform, u64 flags)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_GMEM_EMULATION,
		.args = { platform, flags },
	};

	return gmem_ioctl(vm->fd, KVM_ENABLE_CAP, &cap);
}

/*
 * Like gmem_vm_create(), but on an emulated platform and not launched, so that the
 * vCPUs do not run yet. The platform has to be chosen before the first memslot, which
 * libkvm adds in __vm_create(). So this does the work of __vm_create() itself.
 */
static inline struct kvm_vm *gmem_vm_create_emulated(u32 platform, u64 flags,
						     u32 nr_vcpus, u64 extra_pages,
						     struct kvm_vcpu **vcpus)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};
	struct userspace_mem_region *slot0;
	struct kvm_vm *vm;
	int r;
	u32 i;

	TEST_ASSERT(nr_vcpus <= GMEM_MAX_VCPUS, "Too many vCPUs");

	vm = ____vm_create(shape);
	r = gmem_enable_emulation(vm, platform, flags);
	TEST_ASSERT(!r, "KVM_CAP_GMEM_EMULATION, platform %u, flags %#lx: errno %d (%s)",
		    platform, flags, r, strerror(r));
	if (platform == KVM_GMEM_EMULATE_TDX_MIRROR)
		vm->gpa_tag_mask = GMEM_SHARED_BIT;

	/* The program, stacks, and page tables for all of that. */
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, 0, 0,
				    1024 + extra_pages / 128, 0);
	for (i = 0; i < NR_MEM_REGIONS; i++)
		vm->memslots[i] = 0;
	kvm_vm_elf_load(vm, program_invocation_name);
	slot0 = memslot2region(vm, 0);
	ucall_init(vm, slot0->region.guest_phys_addr + slot0->region.memory_size);
	kvm_arch_vm_post_create(vm, nr_vcpus);
	for (i = 0; i < nr_vcpus; i++) {
		vcpus[i] = vm_vcpu_add(vm, i, gmem_guest_code);
		vcpu_args_set(vcpus[i], 1, (u64)i);
		if (gmem_guest_chooses(vm))
			gmem_vcpu_shares_tables(vcpus[i]);
	}

	vm_enable_cap(vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));
	gmem_install_sigbus_handler();
	return vm;
}

/* One KVM_GMEM_EMULATE. Returns 0 or the positive errno. */
static inline int gmem_emulate(struct kvm_vm *vm, struct kvm_gmem_emulate *args)
{
	return gmem_ioctl(vm->fd, KVM_GMEM_EMULATE, args);
}

/*
 * Add pages to the guest, repeating as a VMM does. Returns 0 or the positive
 * errno; *@done, if not NULL, gets the number of bytes that were added.
 */
static inline int gmem_launch_update(struct kvm_vm *vm, u32 type, gpa_t gpa,
				     u64 size, const void *source, u64 *done)
{
	struct kvm_gmem_emulate args = {
		.op = KVM_GMEM_EMULATE_OP_LAUNCH_UPDATE,
		.type = type,
		.gpa = gpa,
		.size = size,
		.uaddr = (u64)source,
	};
	int r;

	do {
		r = gmem_emulate(vm, &args);
	} while (!r && args.size);

	TEST_ASSERT(args.gpa + args.size == gpa + size,
		    "LAUNCH_UPDATE left gpa %#llx size %#llx of %#lx, %#lx",
		    args.gpa, args.size, (u64)gpa, size);
	TEST_ASSERT(args.uaddr == (source ? (u64)source + args.gpa - gpa : 0),
		    "LAUNCH_UPDATE left source %#llx", args.uaddr);
	if (done)
		*done = args.gpa - gpa;
	return r;
}

static inline int gmem_launch_finish(struct kvm_vm *vm)
{
	struct kvm_gmem_emulate args = { .op = KVM_GMEM_EMULATE_OP_LAUNCH_FINISH };

	return gmem_emulate(vm, &args);
}

/* The next @times operations of kind @which on the page at @gpa fail. */
static inline void gmem_inject(struct kvm_vm *vm, gpa_t gpa, u64 which, u64 error,
			       u64 times)
{
	struct kvm_gmem_emulate args = {
		.op = KVM_GMEM_EMULATE_OP_INJECT,
		.gpa = gpa,
		.value = { which, error, times },
	};
	int r = gmem_emulate(vm, &args);

	TEST_ASSERT(!r, "INJECT at %#lx: errno %d (%s)", (u64)gpa, r, strerror(r));
}

/* Makes the guest use the page at @gpa as KVM_GMEM_EMULATE_ACCESS_@kind. */
static inline void gmem_access(struct kvm_vm *vm, gpa_t gpa, u64 kind)
{
	struct kvm_gmem_emulate args = {
		.op = KVM_GMEM_EMULATE_OP_ACCESS,
		.gpa = gpa,
		.value = { kind },
	};
	int r;

	if (gmem_guest_chooses(vm)) {
		gmem_guest_means(vm, gpa, kind);
		return;
	}
	r = gmem_emulate(vm, &args);

	TEST_ASSERT(!r, "ACCESS at %#lx: errno %d (%s)", (u64)gpa, r, strerror(r));
}

/* Holds tasks that reach @place, or releases them; returns how many are held. */
static inline u64 gmem_hold(struct kvm_vm *vm, gpa_t gpa, u64 place, bool hold)
{
	struct kvm_gmem_emulate args = {
		.op = KVM_GMEM_EMULATE_OP_HOLD,
		.gpa = gpa,
		.value = { place, hold },
	};
	int r = gmem_emulate(vm, &args);

	TEST_ASSERT(!r, "HOLD at %#lx: errno %d (%s)", (u64)gpa, r, strerror(r));
	return args.value[2];
}

/* Waits until a task is held at @place. */
static inline void gmem_wait_held(struct kvm_vm *vm, gpa_t gpa, u64 place)
{
	while (!gmem_hold(vm, gpa, place, true))
		sched_yield();
}

/* The model's state of the page at @gpa. */
static inline void gmem_query(struct kvm_vm *vm, gpa_t gpa,
			      struct kvm_gmem_emulate *args)
{
	int r;

	memset(args, 0, sizeof(*args));
	args->op = KVM_GMEM_EMULATE_OP_QUERY;
	args->gpa = gpa;
	r = gmem_emulate(vm, args);
	TEST_ASSERT(!r, "QUERY at %#lx: errno %d (%s)", (u64)gpa, r, strerror(r));
}

/* A KVM_GMEM_EMULATE_STATE_*. */
static inline u64 gmem_state(struct kvm_vm *vm, gpa_t gpa)
{
	struct kvm_gmem_emulate args;

	gmem_query(vm, gpa, &args);
	return args.value[0];
}

/* How many private pages lost their contents although they stayed private. */
static inline u64 gmem_destroyed(struct kvm_vm *vm, gpa_t gpa)
{
	struct kvm_gmem_emulate args;

	gmem_query(vm, gpa, &args);
	return args.value[3];
}

#else

/* An ordinary VM: protected ones are made in gmem_pkvm.h. */
static inline struct kvm_vm *gmem_vm_create(u32 nr_vcpus, u64 extra_pages,
					    struct kvm_vcpu **vcpus)
{
	return gmem_vm_create_type(0, nr_vcpus, extra_pages, vcpus);
}

#endif /* __x86_64__ */

/* --- Memory for the VM --------------------------------------------------- */

/* A guest_memfd, bound to a memslot, and the host's mapping of it if any. */
struct gmem_area {
	struct kvm_vm *vm;
	int fd;
	u32 slot;
	gpa_t gpa;
	u64 size;
	u64 file_offset;
	u8 *hva;	/* of file_offset; NULL without GUEST_MEMFD_FLAG_MMAP */
};

/* KVM_SET_USER_MEMORY_REGION2 for the area; size 0 deletes the slot. */
static inline int __gmem_area_set_slot(struct gmem_area *a, u64 size)
{
#ifdef __x86_64__
	gmem_bound_set(a->vm, a->gpa, size, a->fd, a->file_offset);
#endif
	return __vm_set_user_memory_region2(a->vm, a->slot, KVM_MEM_GUEST_MEMFD,
					    a->gpa, size, a->hva, a->fd,
					    a->file_offset) ? errno : 0;
}

static inline void gmem_area_bind(struct gmem_area *a)
{
	int r = __gmem_area_set_slot(a, a->size);

	TEST_ASSERT(!r, "KVM_SET_USER_MEMORY_REGION2: errno %d (%s)", r,
		    strerror(r));
}

static inline void gmem_area_unbind(struct gmem_area *a)
{
	int r = __gmem_area_set_slot(a, 0);

	TEST_ASSERT(!r, "Deleting slot %u: errno %d (%s)", a->slot, r,
		    strerror(r));
}

/*
 * Map the area in the guest's page tables, at gva = gpa. Once per address and
 * VM: libkvm refuses to map twice.
 */
static inline void gmem_area_virt_map(struct gmem_area *a)
{
	virt_map(a->vm, a->gpa, a->gpa, a->size / a->vm->page_size);
}

/*
 * A file of @size bytes with @flags, mapped by the host if it can be, bound
 * as @slot at @gpa and mapped by the guest. Needs a VM with memory for page
 * tables, i.e. not a barebones one.
 */
static inline void gmem_area_create(struct gmem_area *a, struct kvm_vm *vm,
				    u32 slot, gpa_t gpa, u64 size, u64 flags)
{
	memset(a, 0, sizeof(*a));
	a->vm = vm;
	a->slot = slot;
	a->gpa = gpa;
	a->size = size;
	a->fd = vm_create_guest_memfd(vm, size, flags);
	if (flags & GUEST_MEMFD_FLAG_MMAP)
		a->hva = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED,
				  a->fd);
	gmem_area_bind(a);
	gmem_area_virt_map(a);
}

/* The guest's page tables keep the address: do not use it a second time. */
static inline void gmem_area_destroy(struct gmem_area *a)
{
	gmem_area_unbind(a);
	if (a->hva)
		kvm_munmap(a->hva, a->size);
	kvm_close(a->fd);
}

/* --- Commands to the guest ---------------------------------------------- */

#ifdef __x86_64__
/* Those of SNP guests on simulated hardware: gmem_snp.h. */
static int (*gmem_guest_do_other)(struct kvm_vcpu *vcpu, enum gmem_op op, gpa_t gpa,
				  u64 size, u64 pattern, u64 pos, u64 value);
static int (*gmem_guest_resume_other)(struct kvm_vcpu *vcpu);
#endif

static inline volatile struct gmem_cmd *gmem_cmd_of(struct kvm_vcpu *vcpu)
{
#ifdef __x86_64__
	/* Those of SNP guests are in a shared page; results come back here. */
	if (vcpu->vm->type == KVM_X86_SNP_VM)
		return &gmem_cmds[vcpu->id];
#endif
	return addr_gva2hva(vcpu->vm, (gva_t)&gmem_cmds[vcpu->id]);
}

/*
 * Run the vCPU until it asks for its next command. Returns
 *   0		it did,
 *   < 0	-errno of KVM_RUN; vcpu->run tells more (KVM_EXIT_MEMORY_FAULT),
 *   > 0	the exit reason, for an exit that the protocol does not know.
 * To continue after the latter two, call it again: the guest repeats what it was
 * at.
 */
static inline int gmem_guest_resume(struct kvm_vcpu *vcpu)
{
	struct ucall uc;
	int r;

#ifdef __x86_64__
	if (vcpu->vm->type == KVM_X86_SNP_VM)
		return gmem_guest_resume_other(vcpu);
#endif

	do {
#ifdef __x86_64__
		volatile struct gmem_cmd *cmd = gmem_cmd_of(vcpu);

		if (gmem_guest_chooses(vcpu->vm))
			gmem_guest_decides(vcpu->vm, cmd->gpa, cmd->size);
#endif
		r = __vcpu_run(vcpu);
	} while (r < 0 && (errno == EINTR || errno == EAGAIN));
	if (r < 0)
		return -errno;
	if (vcpu->run->exit_reason != UCALL_EXIT_REASON)
		return vcpu->run->exit_reason;

	switch (get_ucall(vcpu, &uc)) {
	case UCALL_SYNC:
		return 0;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	default:
		TEST_FAIL("Unexpected ucall %lu", uc.cmd);
	}
	return 0;
}

/*
 * Bring a vCPU to where it waits for its first command. This is the "first
 * vCPU run", i.e. the VM is launched afterwards.
 */
static inline void gmem_guest_start(struct kvm_vcpu *vcpu)
{
	int r = gmem_guest_resume(vcpu);

	TEST_ASSERT(!r, "First run of vCPU %u: %d, exit reason %u (%s)",
		    vcpu->id, r, vcpu->run->exit_reason,
		    exit_reason_str(vcpu->run->exit_reason));
}

/* Execute a command, return as gmem_guest_resume() does. */
static inline int __gmem_guest_do(struct kvm_vcpu *vcpu, enum gmem_op op,
				  gpa_t gpa, u64 size, u64 pattern, u64 pos,
				  u64 value)
{
	volatile struct gmem_cmd *cmd = gmem_cmd_of(vcpu);

#ifdef __x86_64__
	if (vcpu->vm->type == KVM_X86_SNP_VM)
		return gmem_guest_do_other(vcpu, op, gpa, size, pattern, pos, value);
#endif

	cmd->op = op;
	cmd->gpa = gpa;
	cmd->size = size;
	cmd->pattern = pattern;
	cmd->pos = pos;
	cmd->value = value;
	cmd->bad = GMEM_ALL_GOOD;
	return gmem_guest_resume(vcpu);
}

#define gmem_guest_ok(vcpu, r)							\
	TEST_ASSERT(!(r), "vCPU %u: %d (%s), exit reason %u (%s), fault at gpa %#llx flags %#llx", \
		    (vcpu)->id, (r), (r) < 0 ? strerror(-(r)) : "exit",		\
		    (vcpu)->run->exit_reason,					\
		    exit_reason_str((vcpu)->run->exit_reason),			\
		    (vcpu)->run->memory_fault.gpa,				\
		    (vcpu)->run->memory_fault.flags)

static inline void gmem_guest_fill(struct kvm_vcpu *vcpu, gpa_t gpa, u64 size,
				   u32 pattern, u64 pos)
{
	int r = __gmem_guest_do(vcpu, GMEM_OP_FILL, gpa, size, pattern, pos, 0);

	gmem_guest_ok(vcpu, r);
}

static inline u8 gmem_guest_read(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	int r = __gmem_guest_do(vcpu, GMEM_OP_READ, gpa, 1, 0, 0, 0);

	gmem_guest_ok(vcpu, r);
	return gmem_cmd_of(vcpu)->value;
}

static inline void gmem_guest_write(struct kvm_vcpu *vcpu, gpa_t gpa, u8 val)
{
	int r = __gmem_guest_do(vcpu, GMEM_OP_WRITE, gpa, 1, 0, 0, val);

	gmem_guest_ok(vcpu, r);
}

/*
 * The guest compares every byte of the range. Returns the offset of the first
 * wrong byte from @gpa (and its value in *@got), else GMEM_ALL_GOOD.
 */
static inline u64 __gmem_guest_check(struct kvm_vcpu *vcpu, gpa_t gpa, u64 size,
				     u32 pattern, u64 pos, u8 *got)
{
	int r = __gmem_guest_do(vcpu, GMEM_OP_CHECK, gpa, size, pattern, pos, 0);

	gmem_guest_ok(vcpu, r);
	if (got)
		*got = gmem_cmd_of(vcpu)->value;
	return gmem_cmd_of(vcpu)->bad;
}

/* Macros, so that a failure names the line of the caller. */
#define gmem_guest_assert(vcpu, gpa, size, pattern, pos)			\
do {										\
	u64 __pos = (pos);							\
	u32 __pat = (pattern);							\
	u8 __got;								\
	u64 __bad = __gmem_guest_check(vcpu, gpa, size, __pat, __pos, &__got);	\
										\
	TEST_ASSERT(__bad == GMEM_ALL_GOOD,					\
		    "Guest sees 0x%02x at position %#lx, wanted 0x%02x",	\
		    __got, __pos + __bad,					\
		    gmem_pattern_byte(__pat, __pos + __bad));			\
} while (0)

#define gmem_host_assert(mem, size, pattern, pos)				\
do {										\
	const volatile u8 *__mem = (mem);					\
	u64 __pos = (pos);							\
	u32 __pat = (pattern);							\
	u64 __bad = gmem_check(__mem, size, __pat, __pos);			\
										\
	/* The arguments of TEST_ASSERT() are evaluated in any case. */		\
	if (__bad != GMEM_ALL_GOOD)						\
		TEST_FAIL("Host sees 0x%02x at position %#lx, wanted 0x%02x",	\
			  __mem[__bad], __pos + __bad,				\
			  gmem_pattern_byte(__pat, __pos + __bad));		\
} while (0)

/* The host gets SIGBUS on every page of the range, reading and writing. */
#define gmem_host_assert_refused(mem, size)					\
do {										\
	volatile u8 *__mem = (mem);						\
	u64 __i;								\
										\
	for (__i = 0; __i < (size); __i += getpagesize())			\
		TEST_ASSERT(gmem_host_refused(__mem + __i),			\
			    "Host reaches the page %#lx bytes into a private range", \
			    __i);						\
} while (0)

#ifdef __x86_64__
/*
 * Let the guest issue KVM_HC_MAP_GPA_RANGE, and convert for it like a VMM. Only for
 * ranges inside @a.
 */
static inline void gmem_guest_convert(struct kvm_vcpu *vcpu, struct gmem_area *a,
				      u64 offset, u64 size, u64 attributes,
				      u64 policy)
{
	u64 flags = attributes ? KVM_MAP_GPA_RANGE_ENCRYPTED :
				 KVM_MAP_GPA_RANGE_DECRYPTED;
	struct kvm_run *run = vcpu->run;
	int r;

	r = __gmem_guest_do(vcpu, GMEM_OP_MAP_GPA, a->gpa + offset, size, flags,
			    0, ~0ULL);
	TEST_ASSERT(r == KVM_EXIT_HYPERCALL, "Wanted KVM_EXIT_HYPERCALL, got %d",
		    r);
	TEST_ASSERT_EQ(run->hypercall.nr, KVM_HC_MAP_GPA_RANGE);
	TEST_ASSERT_EQ(run->hypercall.args[0], a->gpa + offset);
	TEST_ASSERT_EQ(run->hypercall.args[1], size / vcpu->vm->page_size);
	TEST_ASSERT(!!(run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED) ==
		    !!attributes, "Hypercall flags %#llx", run->hypercall.args[2]);

	gmem_convert(a->fd,
		     run->hypercall.args[0] - a->gpa + a->file_offset,
		     run->hypercall.args[1] * vcpu->vm->page_size,
		     run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED ?
		     GMEM_PRIVATE : GMEM_SHARED, policy);
	run->hypercall.ret = 0;

	r = gmem_guest_resume(vcpu);
	gmem_guest_ok(vcpu, r);
	TEST_ASSERT(!gmem_cmd_of(vcpu)->value, "Guest got %ld from its hypercall",
		    (long)gmem_cmd_of(vcpu)->value);
}

#endif /* __x86_64__ */

#endif /* SELFTEST_KVM_GMEM_TEST_H */
