/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * <linux/kvm.h> as a later kernel has it, on top of the one that is installed.
 * The values are those of <linux/kvm_gmem.h>, written in other ways.
 */
#include_next <linux/kvm.h>

#ifndef _NEWER_LINUX_KVM_H
#define _NEWER_LINUX_KVM_H

/* The next release. */
struct kvm_memory_attributes2 {
	union {
		__u64 address;
		__u64 offset;
	};
	__u64 size;
	__u64 attributes;
	__u64 flags;
	__u64 error_offset;
	__u64 reserved[11];
};

#define KVM_SET_MEMORY_ATTRIBUTES2	_IOWR(KVMIO,  0xd2, struct kvm_memory_attributes2)
#define KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES (252)

/* Definitions that a later release could have. */
#ifdef EVERYTHING
#define KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_NONE (0)
#define KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_ZERO (1)
#define KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_PRESERVE (2)
#define KVM_GET_MEMORY_ATTRIBUTES2	_IOWR(KVMIO,  0xd3, struct kvm_memory_attributes2)
struct kvm_memory_mapping {
	__u64 base_address;
	__u64 size;
	__u64 flags;
};
#define KVM_MAP_MEMORY			_IOWR(KVMIO,  0xd5, struct kvm_memory_mapping)
#define KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS (0x10000)
#define KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS (0x10001)
#define KVM_CAP_GET_MEMORY_ATTRIBUTES2 (0x10002)
#define KVM_CAP_MAP_MEMORY (0x10003)
#endif

#endif
