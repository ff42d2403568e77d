// SPDX-License-Identifier: GPL-2.0
/*
 * Inline functions, macros and fields of KVM: the VM, its locks, its memslots,
 * its MMU, operations of the architecture. Each is wrapped by one function
 * without decisions. An operation that an architecture lacks does nothing.
 */
#include <linux/debugfs.h>

#include "../helpers.h"
#include "kvm_mm.h"
#include "guest_memfd.h"

void gmem_vm_mmu_lock(struct kvm *kvm)
{
	KVM_MMU_LOCK(kvm);
}

void gmem_vm_mmu_unlock(struct kvm *kvm)
{
	KVM_MMU_UNLOCK(kvm);
}

void gmem_vm_slots_lock(struct kvm *kvm)
{
	mutex_lock(&kvm->slots_lock);
}

void gmem_vm_slots_unlock(struct kvm *kvm)
{
	mutex_unlock(&kvm->slots_lock);
}

void gmem_vm_assert_slots_lock(struct kvm *kvm)
{
	lockdep_assert_held(&kvm->slots_lock);
}

bool gmem_vm_dead(struct kvm *kvm)
{
	return READ_ONCE(kvm->vm_dead);
}

void gmem_vm_kill(struct kvm *kvm)
{
	kvm_vm_dead(kvm);
}

bool gmem_vm_has_private_mem(struct kvm *kvm)
{
	return kvm_arch_has_private_mem(kvm);
}

bool gmem_vm_mem_is_private(struct kvm *kvm, gfn_t gfn)
{
	return kvm_mem_is_private(kvm, gfn_to_memslot(kvm, gfn), gfn);
}

#ifdef CONFIG_KVM_GMEM_EMULATION
/* Whether the guest's initial memory has been measured, and the guest may run. */
bool gmem_vm_launched(struct kvm *kvm)
{
	return READ_ONCE(kvm->arch.pre_fault_allowed);
}
#endif

u64 gmem_vm_supported_flags(struct kvm *kvm)
{
	return kvm_gmem_get_supported_flags(kvm);
}

bool gmem_host_wide(void)
{
	return kvm_gmem_host_wide();
}

bool gmem_scramble(void)
{
	return kvm_gmem_scramble;
}

/* Makes a file in the VM's directory. */
struct dentry *gmem_vm_debugfs_file(struct kvm *kvm, const char *name, void *data,
				    const struct file_operations *fops)
{
	return debugfs_create_file(name, 0400, kvm->debugfs_dentry, data, fops);
}

bool gmem_vm_has_large(struct kvm *kvm)
{
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_SPLIT
	return kvm_arch_gmem_has_large(kvm);
#else
	return false;
#endif
}

int gmem_vm_split(struct kvm *kvm, struct kvm_gfn_range *range)
{
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_SPLIT
	return kvm_arch_gmem_split_range(kvm, range);
#else
	return 0;
#endif
}

bool gmem_vm_zap(struct kvm *kvm, struct kvm_gfn_range *range)
{
	bool flush;

	lockdep_assert_held_write(&kvm->mmu_lock);
	flush = kvm_unmap_gfn_range(kvm, range);
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_INVALIDATE
	kvm_arch_gmem_invalidate_range(kvm, range);
#endif
	return flush;
}

void gmem_vm_flush_remote_tlbs(struct kvm *kvm)
{
	kvm_flush_remote_tlbs(kvm);
}

void gmem_vm_take_back(struct kvm *kvm, gfn_t start, gfn_t end)
{
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_TAKE_BACK
	kvm_arch_gmem_take_back(kvm, start, end);
#endif
}

/* Takes failed memory from a guest. Returns whether it must never be freed. */
bool gmem_vm_retire(struct kvm *kvm, gfn_t start, gfn_t end)
{
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_TAKE_BACK
	return kvm_arch_gmem_retire(kvm, start, end);
#else
	return false;
#endif
}

int gmem_zero_by_hypervisor(u64 pfn)
{
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_TAKE_BACK
	return kvm_arch_gmem_zero_page(pfn);
#else
	return -EOPNOTSUPP;
#endif
}

int gmem_vm_make_private(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn, kvm_pfn_t nr)
{
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_CONVERT
	return kvm_arch_gmem_make_private(kvm, gfn, pfn, nr);
#else
	return 0;
#endif
}

void gmem_reclaim(struct folio *folio)
{
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_RECLAIM
	kvm_arch_gmem_reclaim(folio_pfn(folio), folio_nr_pages(folio));
#endif
}

struct kvm_memory_slot *gmem_vm_gmem_slot(struct kvm *kvm, gfn_t gfn)
{
	struct kvm_memory_slot *slot = gfn_to_memslot(kvm, gfn);

	return kvm_slot_has_gmem(slot) ? slot : NULL;
}

struct file *gmem_slot_file(struct kvm_memory_slot *slot)
{
	return READ_ONCE(slot->gmem.file);
}

void gmem_slot_set_file(struct kvm_memory_slot *slot, struct file *file)
{
	WRITE_ONCE(slot->gmem.file, file);
}

/* A slot is unbound before another one is bound in its place, and not used any more. */
void gmem_warn_stale_slot(void)
{
	WARN_ON_ONCE(1);
}
