// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* One conversion in C: a payload is written while its page is shared, and stays when it is not. */
#define _DEFAULT_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm_gmem.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

/* EAGAIN: somebody holds a page, perhaps only for a moment. */
static void convert(int fd, __u64 offset, __u64 size, __u64 attributes, __u64 policy)
{
	for (int tries = 100; tries--;) {
		struct kvm_memory_attributes2 range = {
			.offset = offset, .size = size, .attributes = attributes, .flags = policy,
		};

		if (!ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, &range))
			return;
		if (errno != EAGAIN)
			err(1, "converting, at offset 0x%llx", range.error_offset);
	}
	errx(1, "a page stays in use");
}

int main(void)
{
	struct kvm_create_guest_memfd create = {
		.size = 0x4000,
		.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
	};
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = ioctl(kvm, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM);
	int fd = ioctl(vm, KVM_CREATE_GUEST_MEMFD, &create);
	char *memory = mmap(NULL, create.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (memory == MAP_FAILED)
		err(1, "making the file");
	strcpy(memory, "payload");
	/* The host may not look now: an access would be a SIGBUS. */
	convert(fd, 0, 0x1000, KVM_MEMORY_ATTRIBUTE_PRIVATE, KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_PRESERVE);
	convert(fd, 0, 0x1000, 0, KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_PRESERVE);
	puts(memory);
	return 0;
}
