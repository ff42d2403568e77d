/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A simulation of the TDX module, for development and tests.  See mirror.c.
 */
#ifndef _KVM_GMEM_MIRROR_H
#define _KVM_GMEM_MIRROR_H

#include <linux/kvm_host.h>

/* The result of a SEAMCALL of the simulation. */
enum {
	GMEM_SEAMCALL_DONE,
	GMEM_SEAMCALL_BUSY,
	GMEM_SEAMCALL_INPUT,
	GMEM_SEAMCALL_STATE,
};

#ifdef CONFIG_KVM_GMEM_EMULATION
bool gmem_td_possible(void);
void *gmem_td_create(void);
void gmem_td_free(void *td);
void gmem_td_attach(struct kvm *kvm, void *td);
void *gmem_vm_take_td(struct kvm *kvm);
void gmem_td_finalize(struct kvm *kvm);
struct kvm_vcpu *gmem_td_lock_vcpu(struct kvm *kvm);
void gmem_td_unlock_vcpu(struct kvm_vcpu *vcpu);
void gmem_td_load_vcpu(struct kvm_vcpu *vcpu);
void gmem_td_put_vcpu(struct kvm_vcpu *vcpu);
int gmem_td_map(struct kvm_vcpu *vcpu, gfn_t gfn, kvm_pfn_t pfn, struct page *source);
void gmem_sept_set(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn);
void gmem_sept_clear(struct kvm *kvm, gfn_t gfn);

/* The simulation's operations on pages, in rust/emulation/module.rs. */
int kvm_gmem_module_page_add(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn, struct page *source);
int kvm_gmem_module_page_aug(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn);
int kvm_gmem_module_range_block(struct kvm *kvm, gfn_t gfn);
int kvm_gmem_module_track(struct kvm *kvm);
int kvm_gmem_module_page_remove(struct kvm *kvm, gfn_t gfn);
int kvm_gmem_module_page_relocate(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn);
int kvm_gmem_module_range_unblock(struct kvm *kvm, gfn_t gfn);
int kvm_gmem_module_page_wbinvd(struct kvm *kvm, kvm_pfn_t pfn);
void kvm_gmem_module_page_reset(struct kvm *kvm, kvm_pfn_t pfn);
#endif

#endif /* _KVM_GMEM_MIRROR_H */
