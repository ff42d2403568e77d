// SPDX-License-Identifier: GPL-2.0
/*
 * Objects that KUnit makes by itself, with only the parts that are used, so
 * that no mounted file system, vCPU or hardware is needed.
 */
#include <kunit/static_stub.h>
#include <kunit/test.h>
#include <linux/backing-dev.h>
#include <linux/mman.h>
#include <linux/pagemap.h>
#include <linux/swap.h>

#include "helpers.h"
#include "testing.h"
#include "kvm_mm.h"
#ifdef CONFIG_X86
#include "mmu.h"
#endif

/*
 * Without the TDP MMU a zap walks reverse maps, which the memslots here do not
 * have.
 */
bool gmem_test_can_zap(void)
{
#ifdef CONFIG_X86
	return tdp_mmu_enabled;
#else
	return true;
#endif
}

/* A vendor's module keeps its data behind struct kvm. The module need not be loaded. */
static size_t gmem_test_vm_size(void)
{
#ifdef CONFIG_X86
	return max_t(size_t, sizeof(struct kvm), kvm_x86_ops.vm_size);
#else
	return sizeof(struct kvm);
#endif
}

/* Enough of a VM to count users, to be invalidated in and to die. */
struct kvm *gmem_test_vm_alloc(void)
{
	struct kvm *kvm = kvzalloc(gmem_test_vm_size(), GFP_KERNEL);

	if (!kvm)
		return NULL;
	KVM_MMU_LOCK_INIT(kvm);
	mutex_init(&kvm->slots_lock);
	spin_lock_init(&kvm->mn_invalidate_lock);
	refcount_set(&kvm->users_count, 1);
	xa_init(&kvm->vcpu_array);
#ifdef CONFIG_X86_64
	INIT_LIST_HEAD(&kvm->arch.tdp_mmu_roots);
#endif
	return kvm;
}

void gmem_test_vm_free(struct kvm *kvm)
{
	WARN_ON_ONCE(refcount_read(&kvm->users_count) != 1);
	kvfree(kvm);
}

/* What kvm_vm_dead() does to a VM without vCPUs. */
void gmem_test_vm_kill(struct kvm *kvm)
{
	kvm->vm_dead = true;
}

/* A VM becomes a protected one by a call to the hypervisor, so a flag would not do. */
void gmem_test_vm_set_private_mem(struct kvm *kvm)
{
#ifdef CONFIG_X86
	kvm->arch.has_private_mem = true;
#endif
}

/* Two fresh pages of user memory with nothing mapped behind them; 0 if there are none. */
unsigned long gmem_test_user_pages(void)
{
	unsigned long addr;

	if (!current->mm && kunit_attach_mm())
		return 0;
	addr = vm_mmap(NULL, 0, 3 * PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_ANONYMOUS | MAP_PRIVATE, 0);
	if (IS_ERR_VALUE(addr) || vm_munmap(addr + 2 * PAGE_SIZE, PAGE_SIZE))
		return 0;
	return addr;
}

unsigned long gmem_test_vm_invalidations(struct kvm *kvm)
{
	return kvm->mmu_invalidate_in_progress;
}

unsigned long gmem_test_vm_sequence(struct kvm *kvm)
{
	return kvm->mmu_invalidate_seq;
}

/* Enough of an inode for its mapping to be locked and to have folios. */
void gmem_test_inode_init(struct inode *inode, u64 size)
{
	/* Releasing a dirty folio checks whether it could be written back. */
	static struct super_block sb = { .s_bdi = &noop_backing_dev_info };
	static struct lock_class_key key;
	struct address_space *mapping = &inode->i_data;

	inode_init_once(inode);
	spin_lock_init(&inode->i_lock);
	atomic_set(&inode->i_count, 1);
	inode->i_sb = &sb;
	inode->i_size = size;
	inode->i_mapping = mapping;
	mapping->host = inode;
	mapping->a_ops = &empty_aops;
	mapping_set_gfp_mask(mapping, GFP_HIGHUSER);
	__init_rwsem(&mapping->invalidate_lock, "gmem_test_invalidate_lock", &key);
}

/* The base reference is never put: the creator of the file frees it. */
void gmem_test_file_init(struct file *file, struct inode *inode, void *data)
{
	memset(file, 0, sizeof(*file));
	file_ref_init(&file->f_ref, 1);
	file->f_inode = inode;
	file->f_mapping = inode->i_mapping;
	file->private_data = data;
}

void gmem_test_slot_init(struct kvm_memory_slot *slot, gfn_t base, unsigned long npages,
			 pgoff_t pgoff)
{
	memset(slot, 0, sizeof(*slot));
	slot->base_gfn = base;
	slot->npages = npages;
	slot->gmem.pgoff = pgoff;
}

void *gmem_test_page_address(struct page *page)
{
	return page_address(page);
}

bool gmem_test_page_is_zero(struct page *page)
{
	return kvm_gmem_page_is_zero(page);
}

bool gmem_test_page_locked(struct page *page)
{
	return PageLocked(page);
}

int gmem_test_page_references(struct page *page)
{
	enum lru_cache_drained drained = LRU_CACHE_NOT_DRAINED;

	/* Not the references of pages on their way to an LRU list. */
	lru_cache_drain_for_folio(page_folio(page), 0, &drained);
	return page_ref_count(page);
}

void gmem_test_page_set_failed(struct page *page, bool failed)
{
#ifdef CONFIG_MEMORY_FAILURE
	if (failed)
		SetPageHWPoison(page);
	else
		ClearPageHWPoison(page);
#endif
}

/* Memory that a page can be moved to, locked, with bytes of an earlier owner. */
struct folio *gmem_test_folio_alloc(void)
{
	struct folio *folio = folio_alloc(GFP_KERNEL, 0);

	if (!folio)
		return NULL;
	folio->private = NULL;
	memset(folio_address(folio), 0xff, PAGE_SIZE);
	folio_lock(folio);
	return folio;
}

/* What memory management does to a page before the move, except isolating it. */
void gmem_test_folio_isolate(struct folio *folio)
{
	enum lru_cache_drained drained = LRU_CACHE_NOT_DRAINED;

	lru_cache_drain_for_folio(folio, 1, &drained);
	folio_lock(folio);
}

/*
 * What memory management does to a page after the move.  Only a page that does not move
 * may get here: a page that moves has to be off the LRU lists, and the function for that
 * is not exported to modules.
 */
void gmem_test_folio_done(struct folio *from, struct folio *to)
{
	folio_unlock(to);
	folio_unlock(from);
	folio_put(to);
}

struct page *gmem_test_folio_hold(struct folio *folio)
{
	folio_get(folio);
	return folio_page(folio, 0);
}

/*
 * Drops folios like soft offlining: a folio that is clean, not mapped and not
 * held leaves its file. Returns how many did.
 */
unsigned long gmem_test_drop_clean(struct address_space *mapping, pgoff_t end)
{
	enum lru_cache_drained drained = LRU_CACHE_NOT_DRAINED;
	struct folio *folio;
	pgoff_t index;

	/* Folios on their way to an LRU list count as held. */
	for (index = 0; index < end; index++) {
		folio = filemap_get_folio(mapping, index);
		if (IS_ERR(folio))
			continue;
		lru_cache_drain_for_folio(folio, 1, &drained);
		folio_put(folio);
	}
	return invalidate_mapping_pages(mapping, 0, end - 1);
}

struct page *gmem_test_page_get(u64 pfn)
{
	struct page *page = pfn_to_page(pfn);

	get_page(page);
	return page;
}

void gmem_test_page_unlock(struct page *page)
{
	folio_unlock(page_folio(page));
}

/* KUnit runs one test at a time. */
static unsigned int gmem_test_nodes_left;

static bool gmem_test_node_denied(void)
{
	if (!gmem_test_nodes_left)
		return true;
	gmem_test_nodes_left--;
	return false;
}

/* This test's attribute maps can allocate this many more nodes. */
void gmem_test_limit_nodes(unsigned int nodes)
{
	gmem_test_nodes_left = nodes;
	kunit_activate_static_stub(kunit_get_current_test(), gmem_node_denied,
				   gmem_test_node_denied);
}

void gmem_test_unlimit_nodes(void)
{
	kunit_deactivate_static_stub(kunit_get_current_test(), gmem_node_denied);
}

static unsigned int gmem_test_looks_left;
static bool gmem_test_was_killed;

static bool gmem_test_killed(void)
{
	if (gmem_test_looks_left) {
		gmem_test_looks_left--;
		return false;
	}
	gmem_test_was_killed = true;
	return true;
}

/* This test's task is being killed, which is seen after this many checks. */
void gmem_test_kill(unsigned int looks)
{
	gmem_test_looks_left = looks;
	gmem_test_was_killed = false;
	kunit_activate_static_stub(kunit_get_current_test(), gmem_killed, gmem_test_killed);
}

/* It is not being killed any more.  Returns whether it was seen. */
bool gmem_test_unkill(void)
{
	kunit_deactivate_static_stub(kunit_get_current_test(), gmem_killed);
	return gmem_test_was_killed;
}
