// SPDX-License-Identifier: GPL-2.0
/*
 * The VM's statistics of conversions, large mappings and moved pages.
 *
 * As elsewhere in KVM they are not atomic: if two files are converted at the
 * same instant, one may not be counted.
 */
#include <uapi/linux/kvm_gmem.h>

#include "../helpers.h"

void gmem_vm_count_conversion(struct kvm *kvm, bool to_private, u64 policy, u64 pages, u64 zeroed)
{
	struct kvm_vm_stat_generic *stat = &kvm->stat.generic;

	switch (policy) {
	case KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_ZERO:
		*(to_private ? &stat->gmem_to_private_zero : &stat->gmem_to_shared_zero) += 1;
		*(to_private ? &stat->gmem_pages_to_private_zero :
			       &stat->gmem_pages_to_shared_zero) += pages;
		break;
	case KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_PRESERVE:
		*(to_private ? &stat->gmem_to_private_preserve :
			       &stat->gmem_to_shared_preserve) += 1;
		*(to_private ? &stat->gmem_pages_to_private_preserve :
			       &stat->gmem_pages_to_shared_preserve) += pages;
		break;
	default:
		*(to_private ? &stat->gmem_to_private_none : &stat->gmem_to_shared_none) += 1;
		*(to_private ? &stat->gmem_pages_to_private_none :
			       &stat->gmem_pages_to_shared_none) += pages;
	}
	stat->gmem_zeroed_bytes += zeroed;
}

void gmem_vm_count_busy(struct kvm *kvm)
{
	kvm->stat.generic.gmem_busy++;
}

void gmem_vm_count_blocks(struct kvm *kvm, u32 what, u64 nr)
{
	struct kvm_vm_stat_generic *stat = &kvm->stat.generic;

	switch (what) {
	case GMEM_BLOCK_MADE:
		stat->gmem_blocks_made += nr;
		break;
	case GMEM_BLOCK_OCCUPIED:
		stat->gmem_blocks_occupied += nr;
		break;
	case GMEM_BLOCK_NO_MEMORY:
		stat->gmem_blocks_no_memory += nr;
		break;
	case GMEM_BLOCK_POLICY:
		stat->gmem_blocks_policy += nr;
		break;
	case GMEM_BLOCK_MAPPED:
		stat->gmem_blocks_mapped += nr;
		break;
	case GMEM_BLOCK_SPLIT:
		stat->gmem_blocks_split += nr;
		break;
	case GMEM_FOLIO_MADE:
		stat->gmem_folios_made += nr;
		break;
	case GMEM_FOLIO_SPLIT:
		stat->gmem_folios_split += nr;
		break;
	case GMEM_FOLIO_HELD:
		stat->gmem_folios_held += nr;
		break;
	}
}

void gmem_vm_count_migration(struct kvm *kvm, bool moved)
{
	struct kvm_vm_stat_generic *stat = &kvm->stat.generic;

	*(moved ? &stat->gmem_migrated : &stat->gmem_migrate_failed) += 1;
}

void gmem_vm_count_unsupported(struct kvm *kvm)
{
	kvm->stat.generic.gmem_unsupported++;
}

void gmem_vm_note_locked(struct kvm *kvm, u64 ns)
{
	u64 *max = &kvm->stat.generic.gmem_locked_max_ns;

	if (ns > *max)
		*max = ns;
}
