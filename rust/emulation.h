/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Kernel functions for the software models of confidential platforms. See
 * emulation.c.
 */
#ifndef _KVM_GMEM_EMULATION_H
#define _KVM_GMEM_EMULATION_H

#include <linux/kvm_host.h>
#include <linux/pagemap.h>

#ifdef CONFIG_KVM_GMEM_EMULATION
#include <asm/trace/snp.h>

enum {
	GMEM_RMP_UNASSIGN = SNP_RMP_UNASSIGN,
	GMEM_RMP_ASSIGN = SNP_RMP_ASSIGN,
	GMEM_RMP_ASSIGN_IMMUTABLE = SNP_RMP_ASSIGN_IMMUTABLE,
	GMEM_RMP_SMASH = SNP_RMP_SMASH,
};

#ifdef CONFIG_KVM_SNP_SIMULATION
#include <asm/snp_sim.h>

enum {
	GMEM_SIM_ASSIGNED = SNP_SIM_RMP_ASSIGNED,
	GMEM_SIM_VALIDATED = SNP_SIM_RMP_VALIDATED,
	GMEM_SIM_IMMUTABLE = SNP_SIM_RMP_IMMUTABLE,
	GMEM_SIM_LARGE = SNP_SIM_RMP_LARGE,
};
u32 gmem_vm_simulated_asid(struct kvm *kvm);
#endif

void gmem_trace_rmp(int operation, u64 pfn, bool large, gfn_t gfn, u32 asid, int code);
void gmem_vm_fault_again(struct kvm *kvm, gfn_t gfn);
void *gmem_vm_emulation(struct kvm *kvm);
int gmem_vm_set_emulation(struct kvm *kvm, void *emulation, void *td);
void gmem_vm_close_emulation(struct kvm *kvm);
void gmem_vm_set_launched(struct kvm *kvm);
int gmem_direct_map_split(kvm_pfn_t pfn);
bool gmem_direct_map_is_split(kvm_pfn_t pfn);
bool gmem_direct_map_lacks(kvm_pfn_t pfn);
int gmem_direct_map_remove(kvm_pfn_t pfn);
void gmem_direct_map_restore(kvm_pfn_t pfn);
void gmem_pfn_combine(kvm_pfn_t pfn, u64 key);
void gmem_pfn_zero(kvm_pfn_t pfn);
void gmem_pfn_copy(kvm_pfn_t pfn, kvm_pfn_t source);
void gmem_pfn_copy_from(kvm_pfn_t pfn, struct page *source);
void gmem_pfn_copy_to(kvm_pfn_t pfn, struct page *target);
u32 gmem_pfn_read(kvm_pfn_t pfn);
void gmem_pfn_write(kvm_pfn_t pfn, u32 value);
void gmem_pfn_keep(kvm_pfn_t pfn);
bool gmem_pfn_is_kept(kvm_pfn_t pfn);
struct folio *gmem_pfn_folio(kvm_pfn_t pfn);
bool gmem_mapping_has_pfn(struct address_space *mapping, pgoff_t index, kvm_pfn_t pfn);
#endif

#endif /* _KVM_GMEM_EMULATION_H */
