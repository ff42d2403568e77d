// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel's side of the software models: the VM's pointer to them, the
 * direct map, and the bytes of pages.  x86 only, as SW_PROTECTED VMs are.
 */
#include <linux/set_memory.h>
#include <asm/pgtable_types.h>
#include <asm/set_memory.h>
#include <asm/tlbflush.h>

#include "emulation.h"
#include "helpers.h"
#include "mirror.h"
#include "mmu.h"

void *gmem_vm_emulation(struct kvm *kvm)
{
	/* Pairs with the release in gmem_vm_set_emulation(). */
	return smp_load_acquire(&kvm->arch.gmem_emulation);
}

#ifdef CONFIG_KVM_SNP_SIMULATION
/* 0 for a VM that is not an SNP guest of the simulated hardware. */
u32 gmem_vm_simulated_asid(struct kvm *kvm)
{
	if (!snp_simulated())
		return 0;
	guard(mutex)(&kvm->lock);
	return gmem_rmp_asid(kvm);
}
#endif

/* From its first guest_memfd on a VM's platform does not change. */
void gmem_vm_close_emulation(struct kvm *kvm)
{
	WRITE_ONCE(kvm->arch.gmem_emulation_closed, true);
}

/* @td is NULL, or for a VM whose page table is mirrored. */
int gmem_vm_set_emulation(struct kvm *kvm, void *emulation, void *td)
{
	int i, r = -EINVAL;

	mutex_lock(&kvm->lock);
	mutex_lock(&kvm->slots_lock);
	if (kvm->arch.vm_type != KVM_X86_SW_PROTECTED_VM || kvm->created_vcpus ||
	    kvm->arch.gmem_emulation || READ_ONCE(kvm->arch.gmem_emulation_closed))
		goto out;
	for (i = 0; i < kvm_arch_nr_memslot_as_ids(kvm); i++) {
		if (!kvm_memslots_empty(__kvm_memslots(kvm, i)))
			goto out;
	}
	if (td)
		gmem_td_attach(kvm, td);
	/* No vCPU is allowed in before the launch has ended. */
	WRITE_ONCE(kvm->arch.pre_fault_allowed, false);
	/* Pairs with the acquire: with the pointer, its target and the phase are seen. */
	smp_store_release(&kvm->arch.gmem_emulation, emulation);
	add_taint(TAINT_TEST, LOCKDEP_STILL_OK);
	r = 0;
out:
	mutex_unlock(&kvm->slots_lock);
	mutex_unlock(&kvm->lock);
	return r;
}

void gmem_vm_set_launched(struct kvm *kvm)
{
	lockdep_assert_held(&kvm->slots_lock);
	WRITE_ONCE(kvm->arch.pre_fault_allowed, true);
}

/* Makes the guest's next access to the page a fault, and nothing else. */
void gmem_vm_fault_again(struct kvm *kvm, gfn_t gfn)
{
	kvm_zap_gfn_range(kvm, gfn, gfn + 1);
}

/* The model's RMP is traced like the hardware's. */
void gmem_trace_rmp(int operation, u64 pfn, bool large, gfn_t gfn, u32 asid, int code)
{
	trace_snp_rmp_change(operation, pfn, large ? PG_LEVEL_2M : PG_LEVEL_4K, gfn_to_gpa(gfn),
			     asid, code);
}

/*
 * The direct map is changed a page at a time and in atomic context, where a
 * large page of it cannot be split any more.  So that is done beforehand.
 */
int gmem_direct_map_split(kvm_pfn_t pfn)
{
	if (gmem_direct_map_is_split(pfn))
		return 0;
	return set_memory_4k((unsigned long)pfn_to_kaddr(pfn), 1);
}

bool gmem_direct_map_is_split(kvm_pfn_t pfn)
{
	unsigned int level;

	return lookup_address((unsigned long)pfn_to_kaddr(pfn), &level) && level == PG_LEVEL_4K;
}

/* Whether a page is memory without a mapping of the host. */
bool gmem_direct_map_lacks(kvm_pfn_t pfn)
{
	return pfn_valid(pfn) && !kernel_page_present(pfn_to_page(pfn));
}

int gmem_direct_map_remove(kvm_pfn_t pfn)
{
	unsigned long addr = (unsigned long)pfn_to_kaddr(pfn);
	int r;

	if (!gmem_direct_map_is_split(pfn))
		return -EAGAIN;
	r = set_direct_map_invalid_noflush(pfn_to_page(pfn));
	if (!r)
		flush_tlb_kernel_range(addr, addr + PAGE_SIZE);
	return r;
}

void gmem_direct_map_restore(kvm_pfn_t pfn)
{
	/* It has a page table entry of its own, so nothing has to be allocated. */
	WARN_ON_ONCE(set_direct_map_default_noflush(pfn_to_page(pfn)));
}

/* Converts the bytes that one side of an encrypted page reads to those of the other side. */
void gmem_pfn_combine(kvm_pfn_t pfn, u64 key)
{
	u64 *words = pfn_to_kaddr(pfn);
	int i;

	if (PageHWPoison(pfn_to_page(pfn)))
		return;
	for (i = 0; i < PAGE_SIZE / sizeof(*words); i++)
		words[i] ^= key;
}

void gmem_pfn_zero(kvm_pfn_t pfn)
{
	if (!PageHWPoison(pfn_to_page(pfn)))
		clear_page(pfn_to_kaddr(pfn));
}

void gmem_pfn_copy(kvm_pfn_t pfn, kvm_pfn_t source)
{
	copy_page(pfn_to_kaddr(pfn), pfn_to_kaddr(source));
}

void gmem_pfn_copy_from(kvm_pfn_t pfn, struct page *source)
{
	copy_page(pfn_to_kaddr(pfn), page_address(source));
}

void gmem_pfn_copy_to(kvm_pfn_t pfn, struct page *target)
{
	copy_page(page_address(target), pfn_to_kaddr(pfn));
	set_page_dirty_lock(target);
}

u32 gmem_pfn_read(kvm_pfn_t pfn)
{
	return *(u32 *)pfn_to_kaddr(pfn);
}

void gmem_pfn_write(kvm_pfn_t pfn, u32 value)
{
	*(u32 *)pfn_to_kaddr(pfn) = value;
}

/*
 * The platform keeps the page: nobody must ever get it again. This is
 * recorded in a place that needs no lock, as only mmu_lock is held.
 */
void gmem_pfn_keep(kvm_pfn_t pfn)
{
	struct page *page = pfn_to_page(pfn);

	if (!PageReserved(page)) {
		SetPageReserved(page);
		folio_get(page_folio(page));
	}
}

bool gmem_pfn_is_kept(kvm_pfn_t pfn)
{
	return PageReserved(pfn_to_page(pfn));
}

struct folio *gmem_pfn_folio(kvm_pfn_t pfn)
{
	return page_folio(pfn_to_page(pfn));
}

bool gmem_mapping_has_pfn(struct address_space *mapping, pgoff_t index, kvm_pfn_t pfn)
{
	struct folio *folio;
	bool has;

	rcu_read_lock();
	folio = xa_load(&mapping->i_pages, index);
	has = folio && !xa_is_value(folio) && folio_pfn(folio) == pfn;
	rcu_read_unlock();
	return has;
}
