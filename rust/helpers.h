/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Functions that Rust cannot call directly. Inline functions and macros of the
 * kernel and of KVM are wrapped in helpers/, one function each. C code that
 * decides something is in a separate file, beside the Rust file that calls it.
 *
 * They are objects of kvm.ko and not of the kernel's own rust/helpers, because
 * several of them call functions that only kvm.ko has.
 */
#ifndef _KVM_GMEM_HELPERS_H
#define _KVM_GMEM_HELPERS_H

#include <linux/fs.h>
#include <linux/kvm_host.h>
#include <linux/mempolicy.h>
#include <linux/pagemap.h>
#include <linux/pseudo_fs.h>
#include <linux/swap.h>

#ifndef CONFIG_HAVE_KVM_ARCH_GMEM_POPULATE
/* It has no callers then, but the Rust side is the same in all configurations. */
typedef int (*kvm_gmem_populate_cb)(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn,
				    struct page *page, void *opaque);
#endif

/* Folios. */

/* Bits of a folio's record that C uses, too; see Frame for the other bits. */
enum {
	GMEM_RECORD_ASSIGNED	= 1 << 0,
	GMEM_RECORD_ZERO	= 1 << 4,
	GMEM_RECORD_RETIRED	= 1 << 5,
	GMEM_RECORD_FAILED	= 1 << 6,
};

struct folio *gmem_filemap_lock_folio(struct address_space *mapping, pgoff_t index);
struct folio *gmem_filemap_create_folio(struct address_space *mapping, pgoff_t index,
					struct mempolicy *policy);
struct folio *gmem_filemap_add_folio(struct address_space *mapping, pgoff_t index,
				     struct mempolicy *policy);
void gmem_folio_keep(struct folio *folio);
void gmem_folio_lock(struct folio *folio);
void gmem_folio_unlock_put(struct folio *folio);
bool gmem_folio_uptodate(struct folio *folio);
unsigned long gmem_folio_hwpoison(struct folio *folio, unsigned long first, unsigned long nr);
int gmem_folio_split(struct folio *folio, unsigned long page);
bool gmem_folio_mapped(struct folio *folio);
int gmem_folio_prepare(struct folio *folio);
void gmem_folio_clear(struct folio *folio, unsigned long page);
void gmem_page_mark_uptodate(struct page *page);
bool gmem_folio_has_hwpoisoned(struct folio *folio);
void gmem_put_page(struct page *page);
void gmem_folio_fill(struct folio *folio, unsigned long page, u8 byte);
int gmem_folio_copy(struct folio *to, struct folio *from);
int gmem_folio_replace(struct folio *to, struct folio *from, bool gone);
unsigned int gmem_folio_excess_refs(struct folio *folio, unsigned int own);
bool gmem_folio_is_quiet(struct folio *folio, unsigned int own);
void gmem_folio_drain(struct folio *folio, unsigned int own, enum lru_cache_drained *drained);
pgoff_t gmem_folio_index(struct folio *folio);
unsigned long gmem_folio_nr_pages(struct folio *folio);
struct page *gmem_folio_file_page(struct folio *folio, pgoff_t index);
kvm_pfn_t gmem_page_pfn(struct page *page);
kvm_pfn_t gmem_folio_pfn(struct folio *folio);
struct folio *gmem_page_folio(struct page *page);
void gmem_page_read(struct page *page, size_t offset, void *to, size_t len);
void gmem_page_write(struct page *page, size_t offset, const void *from, size_t len);
bool gmem_page_cmpxchg(struct page *page, size_t offset, size_t len, u64 *old, u64 new);
void gmem_folio_get(struct folio *folio);
unsigned long gmem_folio_record(struct folio *folio);
void gmem_folio_change_record(struct folio *folio, unsigned long out, unsigned long in);
void gmem_folio_batch_init(struct folio_batch *batch);
void gmem_folio_batch_release(struct folio_batch *batch);

/* The mapping, its lock, the file. */
void gmem_invalidate_lock(struct address_space *mapping);
int gmem_invalidate_lock_killable(struct address_space *mapping);
void gmem_invalidate_unlock(struct address_space *mapping);
void gmem_invalidate_lock_shared(struct address_space *mapping);
int gmem_invalidate_lock_shared_killable(struct address_space *mapping);
vm_fault_t gmem_fault_lock(struct vm_fault *vmf, struct address_space *mapping);
bool gmem_fault_follows(struct vm_fault *vmf, bool *missing);
vm_fault_t gmem_fault_around(struct vm_fault *vmf, pgoff_t last);
vm_fault_t gmem_fault_one(struct vm_fault *vmf, struct page *page);
bool gmem_invalidate_trylock_shared(struct address_space *mapping);
enum {
	GMEM_FOUND_NOTHING,
	/* A folio that cannot be used as it is. */
	GMEM_FOUND_FOLIO,
	GMEM_FOUND_IN_USE,
};
u32 gmem_mapping_pfn(struct address_space *mapping, pgoff_t index, u64 *pfn);
int gmem_mapping_pfns(struct address_space *mapping, pgoff_t index, int nr, u64 *pfns);
enum { GMEM_BLOCK_ORDER = PMD_ORDER };
/* Events of blocks that the VM's statistics count. */
enum {
	GMEM_BLOCK_MADE,
	GMEM_BLOCK_OCCUPIED,
	GMEM_BLOCK_NO_MEMORY,
	GMEM_BLOCK_POLICY,
	GMEM_BLOCK_MAPPED,
	GMEM_BLOCK_SPLIT,
	GMEM_FOLIO_MADE,
	GMEM_FOLIO_SPLIT,
	GMEM_FOLIO_HELD,
};
bool gmem_mapping_block(struct address_space *mapping, pgoff_t at, bool in_use, u64 *pfn);
bool gmem_block_was_given(u64 pfn);
u32 gmem_mapping_add_block(struct address_space *mapping, pgoff_t index);
u32 gmem_mapping_add_large(struct address_space *mapping, pgoff_t index);
bool gmem_mapping_is_large(struct address_space *mapping, pgoff_t at);
bool gmem_mapping_next(struct address_space *mapping, pgoff_t *index, pgoff_t last);
bool gmem_mapping_held(struct address_space *mapping, pgoff_t *index, pgoff_t last);
bool gmem_mapping_missing(struct address_space *mapping, pgoff_t *index, pgoff_t last);
void gmem_invalidate_unlock_shared(struct address_space *mapping);
void *gmem_alloc_inode(struct super_block *sb, struct kmem_cache *cache);
bool gmem_fops_get(const struct file_operations *fops);
void gmem_fops_put(const struct file_operations *fops);
void gmem_cond_resched(void);
int gmem_vcpu_load(struct kvm_vcpu *vcpu);
void gmem_vcpu_put(struct kvm_vcpu *vcpu, int slots);

/* Nodes of attribute maps: a bitmap, or a table, which is a page. */
#define GMEM_BITMAP_WORDS 8
bool gmem_node_denied(void);
bool gmem_killed(void);
void *gmem_node_alloc(bool table);
void gmem_node_free(void *node, bool table);
void gmem_node_free_rcu(void *node, bool table);

/* The file system. */
struct kmem_cache *gmem_inode_cache_create(unsigned int size, void (*ctor)(void *));
bool gmem_init_pseudo(struct fs_context *fc, unsigned long magic,
		      const struct super_operations *ops);
void gmem_mount_noexec(struct vfsmount *mnt);
struct super_block *gmem_mount_sb(struct vfsmount *mnt);
void gmem_inode_init(struct inode *inode, const struct inode_operations *iops,
		     const struct address_space_operations *aops, loff_t size, bool migratable,
		     bool large);
bool gmem_vma_is_shared(struct vm_area_struct *vma);
unsigned long gmem_get_unmapped_area(struct file *file, unsigned long addr, unsigned long len,
				     unsigned long pgoff, unsigned long flags, bool large);
pgoff_t gmem_vma_index(struct vm_area_struct *vma, unsigned long addr);
void gmem_warn_stale_slot(void);
void gmem_warn_migrate(void);

/* Arrays of memslots. */
#define GMEM_XA_PRESENT 8U
void gmem_xa_init(struct xarray *xa);
int gmem_xa_err(void *entry);

/* Memory policy. */
void gmem_policy_init(struct shared_policy *policy);
void gmem_policy_free(struct shared_policy *policy);
struct mempolicy *gmem_policy_lookup(struct shared_policy *policy, pgoff_t index);
void gmem_policy_put(struct mempolicy *policy);

/* KVM. */
enum {
	GMEM_SLOT_GMEM_ONLY = KVM_MEMSLOT_GMEM_ONLY,
	GMEM_SLOT_IN_PLACE = KVM_MEMSLOT_GMEM_IN_PLACE,
};
void gmem_vm_mmu_lock(struct kvm *kvm);
void gmem_vm_mmu_unlock(struct kvm *kvm);
void gmem_vm_slots_lock(struct kvm *kvm);
void gmem_vm_slots_unlock(struct kvm *kvm);
void gmem_vm_assert_slots_lock(struct kvm *kvm);
void gmem_vm_flush_remote_tlbs(struct kvm *kvm);
bool gmem_vm_has_large(struct kvm *kvm);
int gmem_vm_split(struct kvm *kvm, struct kvm_gfn_range *range);
bool gmem_vm_zap(struct kvm *kvm, struct kvm_gfn_range *range);
void gmem_vm_take_back(struct kvm *kvm, gfn_t start, gfn_t end);
bool gmem_vm_retire(struct kvm *kvm, gfn_t start, gfn_t end);
bool gmem_vm_keeps_from_host(struct kvm *kvm, gfn_t gfn, u64 nr, bool for_host, u64 *same);
int gmem_zero_by_hypervisor(u64 pfn);
bool gmem_vm_dead(struct kvm *kvm);
bool gmem_vm_has_private_mem(struct kvm *kvm);
enum {
	GMEM_PLATFORM_NONE,
	GMEM_PLATFORM_SW_PROTECTED,
	GMEM_PLATFORM_SNP,
	GMEM_PLATFORM_TDX,
	GMEM_PLATFORM_PKVM,
};
u32 gmem_vm_platform(struct kvm *kvm);
bool gmem_has_plain_vms(void);
bool gmem_vm_is_plain(struct kvm *kvm);
bool gmem_platform_moves(void);
int gmem_vm_move_page(struct kvm *kvm, gfn_t gfn, u64 from, u64 to);
bool gmem_platform_available(u32 platform);
bool gmem_vm_launched(struct kvm *kvm);
void gmem_vm_kill(struct kvm *kvm);
void gmem_vm_count_conversion(struct kvm *kvm, bool to_private, u64 policy, u64 pages, u64 zeroed);
void gmem_vm_count_busy(struct kvm *kvm);
void gmem_vm_count_blocks(struct kvm *kvm, u32 what, u64 nr);
void gmem_vm_count_migration(struct kvm *kvm, bool moved);
void gmem_vm_count_unsupported(struct kvm *kvm);
void gmem_vm_note_locked(struct kvm *kvm, u64 ns);
struct dentry *gmem_vm_debugfs_file(struct kvm *kvm, const char *name, void *data,
				    const struct file_operations *fops);
void gmem_debugfs_remove(struct dentry *dentry);
bool gmem_vm_mem_is_private(struct kvm *kvm, gfn_t gfn);
bool gmem_host_wide(void);
bool gmem_scramble(void);
u64 gmem_vm_supported_flags(struct kvm *kvm);
int gmem_vm_make_private(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn, kvm_pfn_t nr);
struct kvm_memory_slot *gmem_vm_gmem_slot(struct kvm *kvm, gfn_t gfn);
int gmem_pin_user_page(unsigned long addr, bool write, struct page **page);
void gmem_reclaim(struct folio *folio);
void gmem_warn_leak(u64 pfn, bool model);

/* To be called if the event is on, see trace.rs. */
void gmem_trace_convert_begin(u64 ino, u64 offset, u64 size, bool to_private, u64 policy);
void gmem_trace_convert_end(u64 ino, u64 offset, u64 size, bool to_private, u64 policy,
			    u64 converted, u64 runs, u64 zeroed, u64 scrambled, int result,
			    u64 error_offset);
void gmem_trace_busy(struct folio *folio, u32 unexplained, int drained);
void gmem_trace_split(u64 ino, struct kvm *kvm, u64 start, u64 end);
void gmem_trace_split_folio(u64 ino, u64 offset, int result);
void gmem_trace_zap(u64 ino, struct kvm *kvm, u64 start, u64 end, u32 kinds);
void gmem_trace_guest_fault(u64 ino, u64 offset, u64 gfn, bool is_private, bool first_use);
void gmem_trace_host_fault(u64 ino, u64 offset, bool first_use);
void gmem_trace_populate(u64 gfn, u64 npages, long result);
void gmem_trace_rmp_refusal(u64 pfn, u64 gfn, u32 asid, bool known, u64 known_gfn, u32 known_asid);
void gmem_trace_migrate(u64 ino, u64 offset, u64 from, u64 to, int result);
void gmem_trace_map_memory(u64 base, u64 size, u64 left, int result);

/* The platforms. */
bool gmem_rmp_exists(void);
u32 gmem_rmp_asid(struct kvm *kvm);
int gmem_rmp_lookup(u64 pfn, bool *assigned, bool *large);
int gmem_rmp_assign(u64 pfn, u64 gfn, u32 asid);
int gmem_rmp_unassign(u64 pfn);
int gmem_rmp_assign_block(u64 pfn, u64 gfn, u32 asid);
int gmem_rmp_unassign_block(u64 pfn);
int gmem_rmp_smash(u64 pfn, bool *in_use);
bool gmem_rmp_may_move(struct kvm *kvm, u64 gfn);
int gmem_rmp_move(struct kvm *kvm, u64 gfn, u64 from, u64 to);
bool gmem_sept_contains(struct kvm *kvm, gfn_t gfn);
bool gmem_sept_removal_zeroes(void);
bool gmem_sept_moves(void);
int gmem_sept_move(struct kvm *kvm, gfn_t gfn, u64 from, u64 to);
struct file *gmem_slot_get_file(struct kvm_memory_slot *slot);
struct inode *gmem_slot_inode_rcu(const struct kvm_memory_slot *slot);
struct file *gmem_slot_file(struct kvm_memory_slot *slot);
void gmem_slot_set_file(struct kvm_memory_slot *slot, struct file *file);

#endif /* _KVM_GMEM_HELPERS_H */
