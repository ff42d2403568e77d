// SPDX-License-Identifier: GPL-2.0
/*
 * Functions that other modules of KVM call, and that an architecture may
 * define.
 */
#include <linux/kvm_host.h>

bool __weak kvm_arch_supports_gmem_init_shared(struct kvm *kvm)
{
	return true;
}

EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_get_pfn);
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_is_private);
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_POPULATE
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_populate);
#endif
