/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * User-space interface of guest_memfd's in-place conversion.
 *
 * Everything here is issued on a guest_memfd file descriptor, except the
 * capabilities, which are asked for with KVM_CHECK_EXTENSION on a VM or on
 * /dev/kvm.
 */
#ifndef _UAPI_LINUX_KVM_GMEM_H
#define _UAPI_LINUX_KVM_GMEM_H

#include <linux/ioctl.h>
#include <linux/kvm.h>
#include <linux/types.h>

/**
 * struct kvm_memory_attributes2 - a range of a guest_memfd and its attributes
 * @address: name of @offset in the VM ioctl's struct, at the same place
 * @offset: byte offset in the file, page aligned
 * @size: bytes, a multiple of the page size, not 0
 * @attributes: 0 (shared) or KVM_MEMORY_ATTRIBUTE_PRIVATE
 * @flags: one of KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_*
 * @error_offset: out, byte offset of the first page that stopped the request;
 *	written only for the errors that are about a page
 * @reserved: must be 0
 *
 * The first four fields lie where struct kvm_memory_attributes has them.
 */
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

/* What the caller is promised about the bytes of the range. */
#define KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_NONE		0ULL
#define KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_ZERO		(1ULL << 0)
#define KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_PRESERVE	(1ULL << 1)

/* Convert a range in place. */
#define KVM_SET_MEMORY_ATTRIBUTES2 \
	_IOWR(KVMIO, 0xd2, struct kvm_memory_attributes2)

/*
 * Ask for the attributes at @offset; @size returns how many bytes from there
 * have the same ones.
 */
#define KVM_GET_MEMORY_ATTRIBUTES2 \
	_IOWR(KVMIO, 0xd3, struct kvm_memory_attributes2)

#ifndef KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES
#define KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES		252
#endif
/* Out of tree: numbers from 0x10000 never meet an upstream one. */
#define KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS		0x10000
#define KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS	0x10001
#define KVM_CAP_GET_MEMORY_ATTRIBUTES2			0x10002

/*
 * The two FLAGS capabilities hold three bytes of policies: supported in both
 * directions, to shared, to private.
 */
#define KVM_MEMORY_ATTRIBUTES2_BOTH(cap)		((cap) & 0xff)
#define KVM_MEMORY_ATTRIBUTES2_TO_SHARED(cap)		(((cap) >> 8) & 0xff)
#define KVM_MEMORY_ATTRIBUTES2_TO_PRIVATE(cap)		(((cap) >> 16) & 0xff)

#endif /* _UAPI_LINUX_KVM_GMEM_H */
