/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Objects that KUnit makes by itself, as much of them as is used.  See testing.c.
 */
#ifndef _KVM_GMEM_TESTING_H
#define _KVM_GMEM_TESTING_H

#include <linux/fs.h>
#include <linux/kvm_host.h>

#ifdef CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST
bool gmem_test_can_zap(void);
struct kvm *gmem_test_vm_alloc(void);
void gmem_test_vm_free(struct kvm *kvm);
void gmem_test_vm_kill(struct kvm *kvm);
void gmem_test_vm_set_private_mem(struct kvm *kvm);
unsigned long gmem_test_user_pages(void);
unsigned long gmem_test_vm_invalidations(struct kvm *kvm);
unsigned long gmem_test_vm_sequence(struct kvm *kvm);
void gmem_test_inode_init(struct inode *inode, u64 size);
void gmem_test_file_init(struct file *file, struct inode *inode, void *data);
void gmem_test_slot_init(struct kvm_memory_slot *slot, gfn_t base, unsigned long npages,
			 pgoff_t pgoff);
void *gmem_test_page_address(struct page *page);
bool gmem_test_page_is_zero(struct page *page);
bool gmem_test_page_locked(struct page *page);
int gmem_test_page_references(struct page *page);
void gmem_test_page_set_failed(struct page *page, bool failed);
struct folio *gmem_test_folio_alloc(void);
void gmem_test_folio_isolate(struct folio *folio);
void gmem_test_folio_done(struct folio *from, struct folio *to);
struct page *gmem_test_folio_hold(struct folio *folio);
unsigned long gmem_test_drop_clean(struct address_space *mapping, pgoff_t end);
struct page *gmem_test_page_get(u64 pfn);
void gmem_test_page_unlock(struct page *page);
void gmem_test_limit_nodes(unsigned int nodes);
void gmem_test_unlimit_nodes(void);
void gmem_test_kill(unsigned int looks);
bool gmem_test_unkill(void);
#endif

#endif /* _KVM_GMEM_TESTING_H */
