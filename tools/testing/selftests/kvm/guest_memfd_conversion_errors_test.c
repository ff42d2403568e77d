// SPDX-License-Identifier: GPL-2.0
/*
 * In-place conversion of guest_memfd memory on SW_PROTECTED VMs: the layout and
 * the errors of the two ioctls, who may call them, and the capabilities.
 *
 * These cannot be reached from user space on this VM type, and are not tested here:
 *  - EOPNOTSUPP and EPERM: SW_PROTECTED honours every policy in every phase
 *    and needs no consent of the guest;
 *  - ENOMEM: it needs fault injection, KUnit tests it;
 *  - EIO for a platform that fails in the middle: there is no platform.
 *
 * The order among causes that share EINVAL is not observable either; that each
 * of them comes before EAGAIN, and after EFAULT and EIO, is.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/sizes.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "gmem_conversion.h"

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

/* Hold a reference to the page at @mem, until both ends are closed. */
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
 * Run @fn(@arg) in a forked child, i.e. with another mm, and check that every
 * assertion in it held.
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

/* --- Errors ------------------------------------------------------------- */

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
		/* It is decided before the argument is read. */
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
 * The ioctls, flags and values of a VMM that was written for the public interface. It
 * leaves the policy at 0, and expects that either all files convert or none. Both
 * parameters together make the host behave like this.
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

	/* The VMM assumes this for every file, and that the VM's attributes do not decide. */
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

	/* A request to shared succeeds: the page is shared already. */
	gmem_convert(a->fd, 0, a->size, GMEM_SHARED, GMEM_PRESERVE);

	/* A request beside the page succeeds, too. */
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
	snprintf(pfn, sizeof(pfn), "%#lx", gmem_frame_of(a->hva + bad));
	TEST_ASSERT(strcmp(pfn, "0"), "No frame number of a mapped page");
	gmem_convert(a->fd, 0, a->size, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_guest_start(self->vcpu);
	gmem_guest_assert(self->vcpu, a->gpa, a->size, GMEM_SEED(6), 0);

	/* The result says what the kernel could save, not whether the page is poisoned. */
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

	/* A request to shared checks no references, only the contents. */
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

	/* From the middle of a run, only the rest of the run is returned. */
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
	/* Large folios need transparent huge pages. */
	const u32 flags = access("/sys/kernel/mm/transparent_hugepage", F_OK) ? 0x10003 : 0x30003;

	TEST_ASSERT_EQ(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES, 252);
	TEST_ASSERT_EQ(KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS, 0x10000);
	TEST_ASSERT_EQ(KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS, 0x10001);
	TEST_ASSERT_EQ(KVM_CAP_GET_MEMORY_ATTRIBUTES2, 0x10002);

	/* /dev/kvm: what some VM type here can do. */
	TEST_ASSERT_EQ(kvm_check_cap(252), 8);
	TEST_ASSERT_EQ(kvm_check_cap(0x10000), policies);
	TEST_ASSERT_EQ(kvm_check_cap(0x10001), policies);
	TEST_ASSERT_EQ(kvm_check_cap(0x10002), 1);
	TEST_ASSERT_EQ(kvm_check_cap(244), flags);

	TEST_ASSERT_EQ(vm_check_cap(self->vm, 252), 8);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, 0x10000), policies);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, 0x10001), policies);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, 0x10002), 1);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, 244), flags);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, KVM_CAP_MEMORY_ATTRIBUTES),
		       host_wide_mode() ? 0 : 8);

	/* No private memory, nothing to convert. */
	TEST_ASSERT_EQ(vm_check_cap(plain, 252), 0);
	TEST_ASSERT_EQ(vm_check_cap(plain, 0x10000), 0);
	TEST_ASSERT_EQ(vm_check_cap(plain, 0x10001), 0);
	TEST_ASSERT_EQ(vm_check_cap(plain, 244), flags);

	/* The first run does not change them on SW_PROTECTED. */
	gmem_guest_start(self->vcpu);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, 252), 8);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, 0x10000), policies);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, 0x10001), policies);
	kvm_vm_free(plain);
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
