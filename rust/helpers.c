// SPDX-License-Identifier: GPL-2.0
/*
 * Inline functions and macros for the Rust side, one function each.
 *
 * They are an object of kvm.ko and not of the kernel's own rust/helpers,
 * because several of them call what only kvm.ko has.
 */
#include <kunit/static_stub.h>
#include <kunit/test-bug.h>
#include <linux/debugfs.h>
#include <linux/kmemleak.h>
#include <linux/mman.h>
#include <linux/pagemap.h>
#include <linux/userfaultfd_k.h>
#include <uapi/linux/kvm_gmem.h>

#include "helpers.h"
#include "kvm_mm.h"
#include "guest_memfd.h"
#ifdef CONFIG_X86
#include "x86.h"
#endif
#ifdef CONFIG_ARM64
#include <asm/kvm_pkvm.h>
#endif

struct folio *gmem_filemap_lock_folio(struct address_space *mapping, pgoff_t index)
{
	return filemap_lock_folio(mapping, index);
}

struct folio *gmem_filemap_create_folio(struct address_space *mapping, pgoff_t index,
					struct mempolicy *policy)
{
	return __filemap_get_folio_mpol(mapping, index, FGP_LOCK | FGP_CREAT,
					mapping_gfp_mask(mapping), policy);
}

void gmem_folio_lock(struct folio *folio)
{
	folio_lock(folio);
}

void gmem_folio_unlock_put(struct folio *folio)
{
	folio_unlock(folio);
	folio_put(folio);
}

bool gmem_folio_uptodate(struct folio *folio)
{
	return folio_test_uptodate(folio);
}

bool gmem_folio_hwpoison(struct folio *folio)
{
	/* The other flag is in a second page, which single pages do not have. */
	return folio_test_hwpoison(folio) ||
	       (folio_test_large(folio) && folio_test_has_hwpoisoned(folio));
}

bool gmem_folio_mapped(struct folio *folio)
{
	return folio_mapped(folio);
}

/*
 * From its first use on a folio holds the only copy of its bytes, and a guest's
 * page tables refer to it without being counted: a clean folio that nobody has
 * mapped or holds could be dropped, as by soft offlining.  Who writes is not
 * known, so each folio in use counts as dirty.
 */
static void gmem_folio_in_use(struct folio *folio)
{
	folio_mark_uptodate(folio);
	folio_mark_dirty(folio);
}

/*
 * Zero at first use; the test is on this side because every fault asks.
 * Returns 1 if this was it, and -EHWPOISON for memory that failed before it.
 */
int gmem_folio_prepare(struct folio *folio)
{
	unsigned long page, nr = folio_nr_pages(folio);

	if (folio_test_uptodate(folio))
		return 0;
	if (folio_test_hwpoison(folio))
		return -EHWPOISON;
	for (page = 0; page < nr; page++)
		clear_highpage(folio_page(folio, page));
	gmem_folio_in_use(folio);
	return 1;
}

void gmem_folio_clear(struct folio *folio, unsigned long page)
{
	clear_highpage(folio_page(folio, page));
}

/* The caller's reference keeps the folio in its file until it is dirty. */
void gmem_page_mark_uptodate(struct page *page)
{
	gmem_folio_in_use(page_folio(page));
}

void gmem_put_page(struct page *page)
{
	put_page(page);
}

void gmem_folio_fill(struct folio *folio, unsigned long page, u8 byte)
{
	void *kaddr = kmap_local_folio(folio, page * PAGE_SIZE);

	memset(kaddr, byte, PAGE_SIZE);
	flush_dcache_folio(folio);
	kunmap_local(kaddr);
}

/*
 * References that are kept for ever to a page that has failed: by memory failure,
 * and by us if a platform may still have it.
 */
static unsigned int gmem_folio_kept_refs(struct folio *folio)
{
	return !!folio_test_hwpoison(folio) +
	       !!(gmem_folio_record(folio) & GMEM_RECORD_RETIRED);
}

/* References beyond those of the page cache, of page tables, kept ones, and the caller's own. */
unsigned int gmem_folio_excess_refs(struct folio *folio, unsigned int own)
{
	int excess = folio_ref_count(folio) - folio_expected_ref_count(folio) -
		     (int)(own + gmem_folio_kept_refs(folio));

	return max(excess, 0);
}

/*
 * Whether nobody but the page cache and @own have a reference: no page table of
 * the host has the folio either, and no fault is about to map it.  A mapping has
 * a reference of its own, which is the fault's before, and lasts until the TLBs
 * are flushed.  So one look at the count tells; but not that somebody has one,
 * as references can be kept for ever.
 */
bool gmem_folio_is_quiet(struct folio *folio, unsigned int own)
{
	return folio_ref_count(folio) == (int)(folio_nr_pages(folio) + own);
}

/* Drains for what gmem_folio_excess_refs() counts, and for nothing else. */
void gmem_folio_drain(struct folio *folio, unsigned int own, enum lru_cache_drained *drained)
{
	lru_cache_drain_for_folio(folio, own + gmem_folio_kept_refs(folio), drained);
}

/* One for the module: it is all CPUs that are drained, whichever file it is for. */
static DEFINE_MUTEX(gmem_drains_mutex);

void gmem_drains_lock(void)
{
	mutex_lock(&gmem_drains_mutex);
}

void gmem_drains_unlock(void)
{
	mutex_unlock(&gmem_drains_mutex);
}

pgoff_t gmem_folio_index(struct folio *folio)
{
	return folio->index;
}

unsigned long gmem_folio_nr_pages(struct folio *folio)
{
	return folio_nr_pages(folio);
}

unsigned int gmem_folio_order(struct folio *folio)
{
	return folio_order(folio);
}

struct page *gmem_folio_file_page(struct folio *folio, pgoff_t index)
{
	return folio_file_page(folio, index);
}

kvm_pfn_t gmem_page_pfn(struct page *page)
{
	return page_to_pfn(page);
}

kvm_pfn_t gmem_folio_pfn(struct folio *folio)
{
	return folio_pfn(folio);
}

struct folio *gmem_page_folio(struct page *page)
{
	return page_folio(page);
}

/*
 * An aligned word is read at once, as get_user() does: it may be an entry of a
 * page table that another processor of the guest is about to change.
 */
void gmem_page_read(struct page *page, size_t offset, void *to, size_t len)
{
	void *kaddr = kmap_local_page(page);

	if (len == sizeof(u64) && IS_ALIGNED(offset, len))
		*(u64 *)to = READ_ONCE(*(u64 *)(kaddr + offset));
	else if (len == sizeof(u32) && IS_ALIGNED(offset, len))
		*(u32 *)to = READ_ONCE(*(u32 *)(kaddr + offset));
	else
		memcpy(to, kaddr + offset, len);
	kunmap_local(kaddr);
}

void gmem_page_write(struct page *page, size_t offset, const void *from, size_t len)
{
	memcpy_to_page(page, offset, from, len);
}

#define gmem_cmpxchg(type)							\
({										\
	type __old = *old;							\
	bool __same = try_cmpxchg((type *)(kaddr + offset), &__old, (type)new);	\
										\
	*old = __old;								\
	__same;									\
})

/* @len is 1, 2, 4 or 8. False, with what is there in @old, if that is another value. */
bool gmem_page_cmpxchg(struct page *page, size_t offset, size_t len, u64 *old, u64 new)
{
	void *kaddr = kmap_local_page(page);
	bool same = false;

	switch (len) {
	case 1:
		same = gmem_cmpxchg(u8);
		break;
	case 2:
		same = gmem_cmpxchg(u16);
		break;
	case 4:
		same = gmem_cmpxchg(u32);
		break;
	case 8:
		same = gmem_cmpxchg(u64);
		break;
	}
	kunmap_local(kaddr);
	return same;
}

void gmem_folio_get(struct folio *folio)
{
	folio_get(folio);
}

/* Without PG_private nobody but guest_memfd looks at it. */
unsigned long gmem_folio_record(struct folio *folio)
{
	return (unsigned long)READ_ONCE(folio->private);
}

void gmem_folio_change_record(struct folio *folio, unsigned long out, unsigned long in)
{
	void *old = READ_ONCE(folio->private);

	while (!try_cmpxchg(&folio->private, &old, (void *)(((unsigned long)old & ~out) | in)))
		;
}

void gmem_folio_batch_init(struct folio_batch *batch)
{
	folio_batch_init(batch);
}

void gmem_folio_batch_release(struct folio_batch *batch)
{
	folio_batch_release(batch);
}

void gmem_invalidate_lock(struct address_space *mapping)
{
	filemap_invalidate_lock(mapping);
}

int gmem_invalidate_lock_killable(struct address_space *mapping)
{
	return down_write_killable(&mapping->invalidate_lock);
}

void gmem_invalidate_unlock(struct address_space *mapping)
{
	filemap_invalidate_unlock(mapping);
}

void gmem_invalidate_lock_shared(struct address_space *mapping)
{
	filemap_invalidate_lock_shared(mapping);
}

bool gmem_invalidate_trylock_shared(struct address_space *mapping)
{
	return filemap_invalidate_trylock_shared(mapping);
}

int gmem_invalidate_lock_shared_killable(struct address_space *mapping)
{
	return down_read_killable(&mapping->invalidate_lock);
}

/*
 * Takes the invalidate lock shared for a fault.  Returns 0 with the lock held,
 * or what the fault has to return without it.
 *
 * Whoever has the lock may keep it for as long as converting many GiB takes.
 * So the fault does not wait with mmap_lock or the VMA lock held, which others
 * wait for, but drops it, waits, and is tried again.  Then it can have lost the
 * next race, too: it is tried as often as it takes, as with handle_userfault(),
 * and the fault core looks for signals in between.  Only if the caller cannot do
 * without the lock is it held.  Where the fault core lets the task be killed,
 * VM_FAULT_RETRY without the lock is how to say that it was.
 */
vm_fault_t gmem_fault_lock(struct vm_fault *vmf, struct address_space *mapping)
{
	struct rw_semaphore *lock = &mapping->invalidate_lock;
	struct file *file;

	if (down_read_trylock(lock))
		return 0;
	/* With this flag the lock is not dropped. */
	if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT)
		return VM_FAULT_RETRY;

	if (vmf->flags & FAULT_FLAG_ALLOW_RETRY) {
		/* Keeps the lock's memory: the VMA may be gone. */
		file = get_file(vmf->vma->vm_file);
		release_fault_lock(vmf);
		if (!down_read_killable(lock))
			up_read(lock);
		fput(file);
		return VM_FAULT_RETRY;
	}

	if (!(vmf->flags & FAULT_FLAG_KILLABLE)) {
		down_read(lock);
	} else if (down_read_killable(lock)) {
		release_fault_lock(vmf);
		return VM_FAULT_RETRY;
	}
	return 0;
}

void gmem_invalidate_unlock_shared(struct address_space *mapping)
{
	filemap_invalidate_unlock_shared(mapping);
}

void *gmem_alloc_inode(struct super_block *sb, struct kmem_cache *cache)
{
	return alloc_inode_sb(sb, cache, GFP_KERNEL);
}

struct kmem_cache *gmem_inode_cache_create(unsigned int size, void (*ctor)(void *))
{
	struct kmem_cache_args args = {
		.align = 0,
		.ctor = ctor,
	};

	return kmem_cache_create("kvm_gmem_inode_cache", size, &args, SLAB_ACCOUNT);
}

bool gmem_init_pseudo(struct fs_context *fc, unsigned long magic,
		      const struct super_operations *ops)
{
	struct pseudo_fs_context *ctx = init_pseudo(fc, magic);

	if (!ctx)
		return false;
	ctx->ops = ops;
	return true;
}

void gmem_mount_noexec(struct vfsmount *mnt)
{
	mnt->mnt_flags |= MNT_NOEXEC;
}

struct super_block *gmem_mount_sb(struct vfsmount *mnt)
{
	return mnt->mnt_sb;
}

void gmem_inode_init(struct inode *inode, const struct inode_operations *iops,
		     const struct address_space_operations *aops, loff_t size)
{
	inode->i_op = iops;
	inode->i_mode |= S_IFREG;
	/* Guests write as well, and nobody would notice. */
	inode->i_flags |= S_NOCMTIME;
	inode->i_size = size;
	inode->i_mapping->a_ops = aops;
	mapping_set_gfp_mask(inode->i_mapping, GFP_HIGHUSER);
	mapping_set_inaccessible(inode->i_mapping);
	/* Unmovable mappings are supposed to be marked unevictable as well. */
	WARN_ON_ONCE(!mapping_unevictable(inode->i_mapping));
}

bool gmem_vma_is_shared(struct vm_area_struct *vma)
{
	const vm_flags_t shared = VM_SHARED | VM_MAYSHARE;

	return (vma->vm_flags & shared) == shared;
}

pgoff_t gmem_vma_index(struct vm_area_struct *vma, unsigned long addr)
{
	return linear_page_index(vma, addr);
}

/* A slot is unbound before another one is bound in its place, and not used any more. */
void gmem_warn_stale_slot(void)
{
	WARN_ON_ONCE(1);
}

/* The mapping is unmovable. */
void gmem_warn_migrate(void)
{
	WARN_ON_ONCE(1);
}

bool gmem_fops_get(const struct file_operations *fops)
{
	return fops_get(fops);
}

void gmem_fops_put(const struct file_operations *fops)
{
	fops_put(fops);
}

/* Whether the task is being killed, or a test says that it is. */
bool gmem_killed(void)
{
#ifdef CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST
	KUNIT_STATIC_STUB_REDIRECT(gmem_killed);
#endif
	return fatal_signal_pending(current);
}

void gmem_cond_resched(void)
{
	cond_resched();
}

/*
 * Nodes of attribute maps.  User space decides how many there are: they are
 * charged to it, and a cgroup that has no room for one gets ENOMEM, not the
 * OOM killer.
 */
#define GMEM_NODE_GFP	(GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN)

struct gmem_bitmap {
	u64 words[GMEM_BITMAP_WORDS];
	struct kvfree_rcu_head rcu;
};

static void gmem_table_free(struct page *page)
{
	kmemleak_free(page_address(page));
	__free_page(page);
}

static void gmem_table_free_cb(struct rcu_head *head)
{
	gmem_table_free(container_of(head, struct page, rcu_head));
}

/* Whether a test wants no memory to be found. */
bool gmem_node_denied(void)
{
#ifdef CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST
	KUNIT_STATIC_STUB_REDIRECT(gmem_node_denied);
#endif
	return false;
}

void *gmem_node_alloc(bool table)
{
	void *node;

	if (gmem_node_denied())
		return NULL;
	if (!table)
		return kmalloc(sizeof(struct gmem_bitmap), GMEM_NODE_GFP);

	node = (void *)__get_free_page(GMEM_NODE_GFP);
	/* The only pointers to bitmaps are in tables. */
	if (node)
		kmemleak_alloc(node, PAGE_SIZE, 1, GMEM_NODE_GFP);
	return node;
}

void gmem_node_free(void *node, bool table)
{
	if (table)
		gmem_table_free(virt_to_page(node));
	else
		kfree(node);
}

void gmem_node_free_rcu(void *node, bool table)
{
	struct gmem_bitmap *bitmap = node;

	if (table)
		call_rcu(&virt_to_page(node)->rcu_head, gmem_table_free_cb);
	else
		kfree_rcu(bitmap, rcu);
}

static_assert(GMEM_XA_PRESENT == (__force unsigned int)XA_PRESENT);

void gmem_xa_init(struct xarray *xa)
{
	xa_init(xa);
}

int gmem_xa_err(void *entry)
{
	return xa_err(entry);
}

void gmem_policy_init(struct shared_policy *policy)
{
	mpol_shared_policy_init(policy, NULL);
}

void gmem_policy_free(struct shared_policy *policy)
{
	mpol_free_shared_policy(policy);
}

struct mempolicy *gmem_policy_lookup(struct shared_policy *policy, pgoff_t index)
{
	return mpol_shared_policy_lookup(policy, index);
}

void gmem_policy_put(struct mempolicy *policy)
{
	mpol_cond_put(policy);
}

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

void gmem_vm_flush_remote_tlbs(struct kvm *kvm)
{
	kvm_flush_remote_tlbs(kvm);
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

bool kvm_gmem_page_is_zero(struct page *page)
{
	return gmem_folio_record(page_folio(page)) & GMEM_RECORD_ZERO;
}

/*
 * What cannot be told counts as kept. What the guest waits to share becomes shared
 * if it is @for_host.
 */
bool gmem_vm_keeps_from_host(struct kvm *kvm, gfn_t gfn, u64 nr, bool for_host, u64 *same)
{
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_TAKE_BACK
	int state = kvm_arch_gmem_page_state(kvm, gfn, nr, same);

	if (state == PKVM_GUEST_PAGE_OWNED && for_host && !kvm_arch_gmem_share_page(kvm, gfn)) {
		*same = 1;
		return false;
	}
	return state < 0 || state == PKVM_GUEST_PAGE_OWNED;
#else
	*same = nr;
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

bool gmem_vm_dead(struct kvm *kvm)
{
	return READ_ONCE(kvm->vm_dead);
}

bool gmem_vm_has_private_mem(struct kvm *kvm)
{
	return kvm_arch_has_private_mem(kvm);
}

u32 gmem_vm_platform(struct kvm *kvm)
{
#ifdef CONFIG_X86
	switch (kvm->arch.vm_type) {
	case KVM_X86_SW_PROTECTED_VM:
		return IS_ENABLED(CONFIG_KVM_SW_PROTECTED_VM) ? GMEM_PLATFORM_SW_PROTECTED :
								GMEM_PLATFORM_NONE;
	case KVM_X86_SNP_VM:
		return GMEM_PLATFORM_SNP;
	case KVM_X86_TDX_VM:
		return GMEM_PLATFORM_TDX;
	}
#endif
#ifdef CONFIG_ARM64
	if (kvm_vm_is_protected(kvm))
		return GMEM_PLATFORM_PKVM;
#endif
	return GMEM_PLATFORM_NONE;
}

bool gmem_platform_available(u32 platform)
{
#ifdef CONFIG_X86
	static const unsigned long types[] = {
		[GMEM_PLATFORM_SW_PROTECTED] = IS_ENABLED(CONFIG_KVM_SW_PROTECTED_VM) ?
					 BIT(KVM_X86_SW_PROTECTED_VM) : 0,
		[GMEM_PLATFORM_SNP] = BIT(KVM_X86_SNP_VM),
		[GMEM_PLATFORM_TDX] = BIT(KVM_X86_TDX_VM),
		[GMEM_PLATFORM_PKVM] = 0,
	};

	return kvm_caps.supported_vm_types & types[platform];
#elif defined(CONFIG_ARM64)
	return platform == GMEM_PLATFORM_PKVM && is_protected_kvm_enabled();
#else
	return false;
#endif
}

#ifdef CONFIG_KVM_GMEM_EMULATION
/* Whether the guest's initial memory has been measured, and the guest may run. */
bool gmem_vm_launched(struct kvm *kvm)
{
	return READ_ONCE(kvm->arch.pre_fault_allowed);
}
#endif

/*
 * Statistics are not atomic, here as anywhere in KVM: of two files that are
 * converted at the same instant one may be missing.
 */
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

/* In the directory of the VM. */
struct dentry *gmem_vm_debugfs_file(struct kvm *kvm, const char *name, void *data,
				    const struct file_operations *fops)
{
	return debugfs_create_file(name, 0400, kvm->debugfs_dentry, data, fops);
}

void gmem_debugfs_remove(struct dentry *dentry)
{
	debugfs_remove(dentry);
}

void gmem_vm_kill(struct kvm *kvm)
{
	kvm_vm_dead(kvm);
}

bool gmem_vm_mem_is_private(struct kvm *kvm, gfn_t gfn)
{
	return kvm_mem_is_private(kvm, gfn_to_memslot(kvm, gfn), gfn);
}

bool gmem_host_wide(void)
{
	return kvm_gmem_host_wide();
}

bool gmem_scramble(void)
{
	return kvm_gmem_scramble;
}

u64 gmem_vm_supported_flags(struct kvm *kvm)
{
	return kvm_gmem_get_supported_flags(kvm);
}

int gmem_vm_make_private(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn, kvm_pfn_t nr)
{
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_CONVERT
	return kvm_arch_gmem_make_private(kvm, gfn, pfn, nr);
#else
	return 0;
#endif
}

struct kvm_memory_slot *gmem_vm_gmem_slot(struct kvm *kvm, gfn_t gfn)
{
	struct kvm_memory_slot *slot = gfn_to_memslot(kvm, gfn);

	return kvm_slot_has_gmem(slot) ? slot : NULL;
}

int gmem_pin_user_page(unsigned long addr, bool write, struct page **page)
{
	return get_user_pages_fast(addr, 1, write ? FOLL_WRITE : 0, page);
}

void gmem_reclaim(struct folio *folio)
{
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_RECLAIM
	kvm_arch_gmem_reclaim(folio_pfn(folio), folio_nr_pages(folio));
#endif
}

/* The platform does not give the page back, which nothing gets over. */
void gmem_warn_leak(u64 pfn, bool model)
{
	/* A model fails because somebody has asked it to, as do the tests' platforms. */
	WARN_ONCE(!model && !kunit_get_current_test(),
		  "guest_memfd: a page was lost to the platform\n");
	pr_err_ratelimited("guest_memfd: lost page 0x%llx to the platform\n", pfn);
}

/*
 * The frame of the page at @index, if its folio is a small one that is in use
 * and has not failed.  Without lock and reference: only who can tell that the
 * folio has not left the file since may use it.
 *
 * The memory can be somebody else's before its flags are read, so they are read
 * as a word: what the tests of other flags assert need not hold.
 */
static bool gmem_folio_in_use_pfn(struct folio *folio, u64 *pfn)
{
	const unsigned long mask = BIT(PG_uptodate) | BIT(PG_head) | __PG_HWPOISON;

	if (!folio || xa_is_internal(folio) || xa_is_value(folio))
		return false;
	if ((READ_ONCE(folio->flags.f) & mask) != BIT(PG_uptodate))
		return false;
	/* Pairs with the barrier of folio_mark_uptodate(): bytes after the flag. */
	smp_rmb();
	*pfn = folio_pfn(folio);
	return true;
}

bool gmem_mapping_pfn(struct address_space *mapping, pgoff_t index, u64 *pfn)
{
	XA_STATE(xas, &mapping->i_pages, index);

	guard(rcu)();
	return gmem_folio_in_use_pfn(xas_load(&xas), pfn);
}

/* The same for @nr pages, as far as they are like that without a gap. Returns how many. */
int gmem_mapping_pfns(struct address_space *mapping, pgoff_t index, int nr, u64 *pfns)
{
	XA_STATE(xas, &mapping->i_pages, index);
	struct folio *folio;
	int found = 0;

	guard(rcu)();
	for (folio = xas_load(&xas); found < nr; folio = xas_next(&xas), found++)
		if (!gmem_folio_in_use_pfn(folio, &pfns[found]))
			break;
	return found;
}

/* The first folio at or after *@index that is not beyond @last, by its index. */
bool gmem_mapping_next(struct address_space *mapping, pgoff_t *index, pgoff_t last)
{
	struct folio *folio;

	XA_STATE(xas, &mapping->i_pages, *index);

	guard(rcu)();
	do {
		folio = xas_find(&xas, last);
	} while (xas_retry(&xas, folio) || xa_is_value(folio));
	if (!folio)
		return false;
	*index = max(*index, xas.xa_index);
	return true;
}

/*
 * Whether the host has the page before that of a fault mapped, and so is likely
 * to want the next ones as well.  Who goes through new memory does not count: if
 * the page itself is not in use, neither are those.  The table is freed behind
 * RCU, if somebody takes it out meanwhile.
 */
bool gmem_fault_follows(struct vm_fault *vmf)
{
	unsigned long before = vmf->address - PAGE_SIZE;
	pmd_t pmd;
	u64 pfn;

	if (!pte_index(vmf->address) || vmf->address < vmf->vma->vm_start + PAGE_SIZE ||
	    uffd_disable_fault_around(vmf->vma))
		return false;
	guard(rcu)();
	pmd = pmdp_get_lockless(vmf->pmd);
	if (!pmd_present(pmd) || pmd_leaf(pmd))
		return false;
	return pte_present(ptep_get(pte_offset_kernel(&pmd, before))) &&
	       gmem_mapping_pfn(vmf->vma->vm_file->f_mapping, vmf->pgoff, &pfn);
}

/*
 * Maps what is in use of the pages from that of a fault to @last, a few at most,
 * in the page table of the fault.  The caller has made sure that the host may
 * have all of them.
 */
vm_fault_t gmem_fault_around(struct vm_fault *vmf, pgoff_t last)
{
	const pgoff_t few = 16;
	struct vm_area_struct *vma = vmf->vma;
	pgoff_t nr = min3(few, (pgoff_t)PTRS_PER_PTE - pte_index(vmf->address),
			  (vma->vm_end - vmf->address) >> PAGE_SHIFT);

	return filemap_map_pages(vmf, vmf->pgoff, min(last, vmf->pgoff + nr - 1));
}

/*
 * A file that is being closed is no longer there for a new user; some time
 * can pass between its last fput() and release() clearing the slot's pointer.
 */
struct file *gmem_slot_get_file(struct kvm_memory_slot *slot)
{
	return get_file_active(&slot->gmem.file);
}

/*
 * The inode of a slot's file without a reference, for a caller inside RCU.
 *
 * The memory of a struct file can become that of another file at any time.
 * But the slot's pointer is cleared before the file goes away: if it still is
 * the same after f_inode was read, what was read is this file's.  The inode
 * itself is freed behind RCU.
 */
struct inode *gmem_slot_inode_rcu(const struct kvm_memory_slot *slot)
{
	struct file *file = READ_ONCE(slot->gmem.file);
	struct inode *inode;

	if (!file)
		return NULL;
	inode = READ_ONCE(file->f_inode);
	/*
	 * The memory is reused after release() has cleared the pointer and
	 * dropped its locks: who sees the new file here sees that, too.
	 */
	smp_rmb();
	return READ_ONCE(slot->gmem.file) == file ? inode : NULL;
}

struct file *gmem_slot_file(struct kvm_memory_slot *slot)
{
	return READ_ONCE(slot->gmem.file);
}

void gmem_slot_set_file(struct kvm_memory_slot *slot, struct file *file)
{
	WRITE_ONCE(slot->gmem.file, file);
}

bool __weak kvm_arch_supports_gmem_init_shared(struct kvm *kvm)
{
	return true;
}

EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_get_pfn);
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_is_private);
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_POPULATE
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_populate);
#endif

/* Its mutex is held. */
/* -ENOEXEC, and nothing loaded, for a vCPU that has no state yet: VHE would load what is no state. */
int gmem_vcpu_load(struct kvm_vcpu *vcpu)
{
#ifdef CONFIG_ARM64
	if (!kvm_vcpu_initialized(vcpu))
		return -ENOEXEC;
#endif
	vcpu_load(vcpu);
	return srcu_read_lock(&vcpu->kvm->srcu);
}

void gmem_vcpu_put(struct kvm_vcpu *vcpu, int slots)
{
	srcu_read_unlock(&vcpu->kvm->srcu, slots);
	vcpu_put(vcpu);
}
