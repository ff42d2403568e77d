/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Common code of the tests of the hazards of in-place conversion, for programs with
 * one subtest for each case.
 *
 * The numbers are those of Documentation/virt/kvm/guest_memfd/hazards.rst, which
 * also says where the others are tested.
 */
#ifndef SELFTEST_KVM_GMEM_HAZARD_H
#define SELFTEST_KVM_GMEM_HAZARD_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* For <linux/io_uring.h>: the <linux/types.h> of tools/include lacks it. */
#include <linux/stddef.h>
#include <linux/io_uring.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "gmem_one_file.h"
#include "kvm_test_harness.h"

/* Enough for software emulation of a sanitised kernel; a hang takes longer. */
#define HANG_SECONDS	600

#define DEBUGFS		"/sys/kernel/debug"

/* A VM with one file, one slot, one mapping by the host, all the same size. */
struct hz {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[2];
	struct gmem_area a;
	u64 npages;
};

FIXTURE(hazard)
{
	int unused;
};

FIXTURE_SETUP(hazard)
{
}

FIXTURE_TEARDOWN(hazard)
{
}

#define HAZARD(name)	TEST_F_TIMEOUT(hazard, name, HANG_SECONDS)

#define HZ_REQUIRE(cond, why)			\
do {						\
	if (!(cond))				\
		SKIP(return, why);		\
} while (0)

static inline void hz_create(struct hz *h, u64 npages, u64 flags, u32 nr_vcpus)
{
	u32 i;

	memset(h, 0, sizeof(*h));
	h->npages = npages;
	h->vm = gmem_vm_create(nr_vcpus, npages, h->vcpus);
	gmem_area_create(&h->a, h->vm, GMEM_SLOT, GMEM_GPA, OFF(npages), flags);
	for (i = 0; i < nr_vcpus; i++)
		gmem_guest_start(h->vcpus[i]);
}

static inline volatile u8 *hz_hva(struct hz *h, u64 page)
{
	return h->a.hva + OFF(page);
}

/* One request, no retry: the wanted errno, and error_offset where given. */
#define hz_refused(h, page, n, attrs, policy, want, want_page)			\
do {										\
	u64 __eo;								\
	int __r = gmem_set_once((h)->a.fd, OFF(page), OFF(n), attrs, policy,	\
				&__eo);						\
										\
	TEST_ASSERT(__r == (want), "Wanted errno %d, got %d (%s)", (want), __r,	\
		    strerror(__r));						\
	TEST_ASSERT(__eo == OFF(want_page),					\
		    "Wanted error_offset %#lx, got %#lx", OFF(want_page), __eo);\
} while (0)

/* The same where a transient reference may still come first: retry a little. */
static inline int hz_set_until(struct hz *h, u64 page, u64 n, u64 attrs, u64 policy,
			u64 want_page, u64 *eo)
{
	int i, r = 0;

	for (i = 0; i < GMEM_MAX_RETRIES; i++) {
		r = gmem_set_once(h->a.fd, OFF(page), OFF(n), attrs, policy, eo);
		if (r != EAGAIN || *eo == OFF(want_page))
			break;
		sched_yield();
	}
	return r;
}

/*
 * The same against threads that take references all the time: retries without a
 * limit of its own, as the harness has a timeout.
 */
#define hz_convert_racing(h, page, n, attrs, policy)				\
do {										\
	int __r;								\
										\
	while ((__r = gmem_set_once((h)->a.fd, OFF(page), OFF(n), attrs,	\
				    policy, NULL)) == EAGAIN)			\
		sched_yield();							\
	TEST_ASSERT(!__r, "errno %d (%s)", __r, strerror(__r));			\
} while (0)

static inline bool hz_have_debugfs(void)
{
	if (!access(DEBUGFS "/kvm", F_OK))
		return true;
	if (mount("debugfs", DEBUGFS, "debugfs", 0, NULL) && errno != EBUSY)
		return false;
	return !access(DEBUGFS, R_OK);
}

static inline int hz_write_file(const char *path, const char *fmt, u64 val)
{
	char buf[64];
	int fd, r = 0;

	/* Truncating is what empties the trace. */
	fd = open(path, O_WRONLY | O_TRUNC);
	if (fd < 0)
		return errno;
	snprintf(buf, sizeof(buf), fmt, val);
	if (write(fd, buf, strlen(buf)) < 0)
		r = errno;
	close(fd);
	return r;
}

static inline u32 hz_rand(u32 *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

/* --- References that last ------------------------------------------------ */

/* From mm/gup_test.h, which is not exported. */
struct hz_pin_longterm {
	__u64 addr;
	__u64 size;
	__u32 flags;
};

#define HZ_PIN_START	_IOW('g', 7, struct hz_pin_longterm)
#define HZ_PIN_STOP	_IO('g', 8)
#define HZ_PIN_READ	_IOW('g', 9, __u64)
#define HZ_PIN_WRITE	1
#define HZ_PIN_FAST	2

enum pin_kind {
	PIN_GUP,
	PIN_GUP_FAST,
	PIN_IO_URING,
	PIN_VMSPLICE,
	NR_PIN_KINDS,
};

struct pin {
	enum pin_kind kind;
	int fd;
	int pipe[2];
};

static inline int ring_create(struct io_uring_params *p)
{
	memset(p, 0, sizeof(*p));
	return syscall(__NR_io_uring_setup, 4, p);
}

/* Returns 0 or errno; ENODEV if the kernel lacks the means. */
static inline int pin_page(struct pin *pin, enum pin_kind kind, volatile u8 *hva)
{
	struct iovec iov = { .iov_base = (void *)hva, .iov_len = PG };
	struct hz_pin_longterm args = {
		.addr = (unsigned long)hva,
		.size = PG,
		.flags = HZ_PIN_WRITE | (kind == PIN_GUP_FAST ? HZ_PIN_FAST : 0),
	};
	struct io_uring_params params;
	int r = 0;

	pin->kind = kind;
	pin->fd = -1;
	pin->pipe[0] = -1;
	pin->pipe[1] = -1;

	switch (kind) {
	case PIN_GUP:
	case PIN_GUP_FAST:
		if (!hz_have_debugfs())
			return ENODEV;
		pin->fd = open(DEBUGFS "/gup_test", O_RDWR);
		if (pin->fd < 0)
			return ENODEV;
		if (ioctl(pin->fd, HZ_PIN_START, &args))
			r = errno;
		break;
	case PIN_IO_URING:
		pin->fd = ring_create(&params);
		if (pin->fd < 0)
			return ENODEV;
		if (syscall(__NR_io_uring_register, pin->fd,
			    IORING_REGISTER_BUFFERS, &iov, 1))
			r = errno;
		break;
	case PIN_VMSPLICE:
		TEST_ASSERT(!pipe(pin->pipe), "pipe() failed");
		if (vmsplice(pin->pipe[1], &iov, 1, 0) != PG)
			r = errno;
		break;
	default:
		TEST_FAIL("No such pin");
	}
	return r;
}

static inline void unpin_page(struct pin *pin)
{
	if (pin->kind == PIN_IO_URING)
		syscall(__NR_io_uring_register, pin->fd,
			IORING_UNREGISTER_BUFFERS, NULL, 0);
	if (pin->fd >= 0)
		close(pin->fd);
	if (pin->pipe[0] >= 0) {
		close(pin->pipe[0]);
		close(pin->pipe[1]);
	}
}

/* --- A guest of our own --------------------------------------------------- */

struct spin_thread {
	pthread_t thread;
	struct kvm_vcpu *vcpu;
	atomic_ulong faults;
	/* The exit reason that ended the run, or 0 if the guest is done. */
	int error;
};

/*
 * Run until the guest is done. Tests that delete slots expect memory faults (no
 * file behind the slot at this moment) and accesses without a slot: continue, and
 * let reads return 0.
 */
static inline void *spin_thread(void *arg)
{
	struct spin_thread *t = arg;
	struct kvm_run *run = t->vcpu->run;
	int r;

	for (;;) {
		r = __vcpu_run(t->vcpu);
		if (r < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (r < 0 && errno == EFAULT &&
		    run->exit_reason == KVM_EXIT_MEMORY_FAULT) {
			atomic_fetch_add(&t->faults, 1);
			sched_yield();
			continue;
		}
		if (r < 0) {
			t->error = errno;
			return NULL;
		}
		if (run->exit_reason == KVM_EXIT_MMIO) {
			memset(run->mmio.data, 0, sizeof(run->mmio.data));
			atomic_fetch_add(&t->faults, 1);
			sched_yield();
			continue;
		}
		if (run->exit_reason != KVM_EXIT_IO)
			t->error = 10000 + run->exit_reason;
		return NULL;
	}
}

#define SECRET	0x5e	/* written by the guest into private pages only */

/*
 * The first four pages are shared, the others private, all written and so
 * mapped by the guest, with both kinds of mapping on either side.
 */
static inline void h18_create(struct hz *h, u64 flags)
{
	hz_create(h, 8, flags, 2);
	if (flags & GUEST_MEMFD_FLAG_INIT_SHARED)
		convert(h, 4, 4, GMEM_PRIVATE, GMEM_PRESERVE);
	else
		convert(h, 0, 4, GMEM_SHARED, GMEM_PRESERVE);
	guest_fill(h, 0, 8, GMEM_SEED(18));
	host_sees(h, 0, 4, GMEM_SEED(18));
}

/*
 * Poison a page through the mapping. The kernel notifies the process by SIGBUS,
 * which comes when madvise() returns. It returns EBUSY for a page that is poisoned
 * but that somebody else holds at this moment.
 */
static inline int poison_mapped(volatile u8 *hva)
{
	volatile int r = 0;

	if (!sigsetjmp(gmem_probe_env, 1)) {
		gmem_probing = 1;
		if (madvise((void *)hva, PG, MADV_HWPOISON) && errno != EBUSY)
			r = errno;
	}
	gmem_probing = 0;
	return r;
}

/* Whether this kernel has MADV_HWPOISON at all, tried on an unrelated page. */
static inline bool can_poison_mapped(void)
{
	u8 *mem = kvm_mmap(PG, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1);
	int r = madvise(mem, 0, MADV_HWPOISON);

	kvm_munmap(mem, PG);
	return !r;
}

/* Poison the frame, wherever it is. Returns 0 or errno. */
static inline int poison_pfn(u64 pfn)
{
	volatile int r = 0;

	if (!sigsetjmp(gmem_probe_env, 1)) {
		gmem_probing = 1;
		r = hz_write_file(DEBUGFS "/hwpoison/corrupt-pfn", "%#lx", pfn);
		if (r == EBUSY)
			r = 0;
	}
	gmem_probing = 0;
	return r;
}

static inline bool can_poison_pfn(void)
{
	return hz_have_debugfs() && !access(DEBUGFS "/hwpoison/corrupt-pfn", W_OK);
}

#define h37_unharmed(h)								\
do {										\
	attributes_are(h, 0, 1, GMEM_SHARED);					\
	attributes_are(h, 1, 1, GMEM_PRIVATE);					\
	attributes_are(h, 2, 1, GMEM_SHARED);					\
	host_sees(h, 0, 1, GMEM_SEED(1));					\
	guest_sees(h, 1, 1, GMEM_SEED(37));					\
	host_sees(h, 2, 1, GMEM_SEED(2));					\
	host_refused(h, 1, 1);						\
	TEST_ASSERT(!(gmem_pagemap(hz_hva(h, 1)) >> 63),				\
		    "A private page is mapped by the host");			\
} while (0)

/* The call has to fail with this errno. */
#define refused(call, want)							\
do {										\
	long __r;								\
										\
	errno = 0;								\
	__r = (long)(call);							\
	TEST_ASSERT(__r == -1 && errno == (want),				\
		    "%s: %ld, errno %d (%s), wanted %s", #call, __r, errno,	\
		    strerror(errno), strerror(want));				\
} while (0)

/* The call has to fail; the errno is not checked here. */
#define fails(call)								\
do {										\
	long __r = (long)(call);						\
										\
	TEST_ASSERT(__r == -1, "%s: %ld", #call, __r);				\
} while (0)

#endif /* SELFTEST_KVM_GMEM_HAZARD_H */
