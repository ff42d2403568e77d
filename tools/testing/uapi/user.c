// SPDX-License-Identifier: GPL-2.0
/*
 * A user of <linux/kvm_gmem.h>, in C and in C++. The interface is the same whatever
 * <linux/kvm.h> defines itself, and wherever it is included.
 */
#ifdef KVM_FIRST
#include <linux/kvm.h>
#endif
#include <linux/kvm_gmem.h>
#ifdef KVM_LAST
#include <linux/kvm.h>
#endif

#ifdef __cplusplus
#define same(a, b)	static_assert((a) == (b), #a " is not " #b)
#else
#define same(a, b)	_Static_assert((a) == (b), #a " is not " #b)
#endif
#define offset(type, field)	__builtin_offsetof(struct type, field)

same(sizeof(struct kvm_memory_attributes2), 128);
same(offset(kvm_memory_attributes2, offset), offset(kvm_memory_attributes, address));
same(offset(kvm_memory_attributes2, address), offset(kvm_memory_attributes, address));
same(offset(kvm_memory_attributes2, size), offset(kvm_memory_attributes, size));
same(offset(kvm_memory_attributes2, attributes), offset(kvm_memory_attributes, attributes));
same(offset(kvm_memory_attributes2, flags), offset(kvm_memory_attributes, flags));
same(offset(kvm_memory_attributes2, error_offset), 32);
same(offset(kvm_memory_attributes2, reserved), 40);
same(KVM_SET_MEMORY_ATTRIBUTES2, 0xc080aed2);
same(KVM_GET_MEMORY_ATTRIBUTES2, 0xc080aed3);
same(KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_NONE, 0);
same(KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_ZERO, 1);
same(KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_PRESERVE, 2);

same(sizeof(struct kvm_memory_mapping), 24);
same(KVM_MAP_MEMORY, 0xc018aed5);

same(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES, 252);
same(KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS, 0x10000);
same(KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS, 0x10001);
same(KVM_CAP_GET_MEMORY_ATTRIBUTES2, 0x10002);
same(KVM_CAP_MAP_MEMORY, 0x10003);
same(KVM_MEMORY_ATTRIBUTES2_BOTH(0x030201), 1);
same(KVM_MEMORY_ATTRIBUTES2_TO_SHARED(0x030201), 2);
same(KVM_MEMORY_ATTRIBUTES2_TO_PRIVATE(0x030201), 3);

same(sizeof(struct kvm_gmem_emulate), 64);
same(KVM_GMEM_EMULATE, 0xc040aed6);

__u64 first_page(struct kvm_memory_attributes2 *range);

__u64 first_page(struct kvm_memory_attributes2 *range)
{
	range->flags = KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_PRESERVE;
	range->attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE;
	return range->address + range->offset;
}
