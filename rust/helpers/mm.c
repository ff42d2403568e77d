// SPDX-License-Identifier: GPL-2.0
/*
 * Inline functions and macros of memory management: folios, pages, mappings of
 * the host, memory policies.  Each is wrapped by one function without decisions.
 */
#include "../helpers.h"

struct folio *gmem_filemap_lock_folio(struct address_space *mapping, pgoff_t index)
{
	return filemap_lock_folio(mapping, index);
}

struct folio *gmem_filemap_create_folio(struct address_space *mapping, pgoff_t index,
					struct mempolicy *policy)
{
	struct folio *folio = __filemap_get_folio_mpol(mapping, index, FGP_LOCK | FGP_CREAT,
						       mapping_gfp_mask(mapping), policy);

	/* One that was found is kept already. */
	if (!IS_ERR(folio) && !folio_test_dirty(folio))
		gmem_folio_keep(folio);
	return folio;
}

/* For a page that had no folio a moment ago. -EEXIST if it has one now. */
struct folio *gmem_filemap_add_folio(struct address_space *mapping, pgoff_t index,
				     struct mempolicy *policy)
{
	gfp_t gfp = mapping_gfp_mask(mapping);
	struct folio *folio = filemap_alloc_folio(gfp, 0, policy);
	int err;

	if (!folio)
		return ERR_PTR(-ENOMEM);
	err = filemap_add_folio(mapping, folio, index, gfp);
	if (err) {
		folio_put(folio);
		return ERR_PTR(err);
	}
	gmem_folio_keep(folio);
	return folio;
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

void gmem_folio_get(struct folio *folio)
{
	folio_get(folio);
}

bool gmem_folio_uptodate(struct folio *folio)
{
	return folio_test_uptodate(folio);
}

bool gmem_folio_has_hwpoisoned(struct folio *folio)
{
	return folio_test_large(folio) && folio_test_has_hwpoisoned(folio);
}

bool gmem_folio_mapped(struct folio *folio)
{
	return folio_mapped(folio);
}

pgoff_t gmem_folio_index(struct folio *folio)
{
	return folio->index;
}

unsigned long gmem_folio_nr_pages(struct folio *folio)
{
	return folio_nr_pages(folio);
}

kvm_pfn_t gmem_folio_pfn(struct folio *folio)
{
	return folio_pfn(folio);
}

struct page *gmem_folio_file_page(struct folio *folio, pgoff_t index)
{
	return folio_file_page(folio, index);
}

void gmem_folio_clear(struct folio *folio, unsigned long page)
{
	clear_highpage(folio_page(folio, page));
}

void gmem_folio_fill(struct folio *folio, unsigned long page, u8 byte)
{
	void *kaddr = kmap_local_folio(folio, page * PAGE_SIZE);

	memset(kaddr, byte, PAGE_SIZE);
	flush_dcache_folio(folio);
	kunmap_local(kaddr);
}

struct folio *gmem_page_folio(struct page *page)
{
	return page_folio(page);
}

kvm_pfn_t gmem_page_pfn(struct page *page)
{
	return page_to_pfn(page);
}

void gmem_put_page(struct page *page)
{
	put_page(page);
}

int gmem_pin_user_page(unsigned long addr, bool write, struct page **page)
{
	return get_user_pages_fast(addr, 1, write ? FOLL_WRITE : 0, page);
}

void gmem_folio_batch_init(struct folio_batch *batch)
{
	folio_batch_init(batch);
}

void gmem_folio_batch_release(struct folio_batch *batch)
{
	folio_batch_release(batch);
}

unsigned long gmem_get_unmapped_area(struct file *file, unsigned long addr, unsigned long len,
				     unsigned long pgoff, unsigned long flags, bool large)
{
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	if (large)
		return thp_get_unmapped_area(file, addr, len, pgoff, flags);
#endif
	return mm_get_unmapped_area(file, addr, len, pgoff, flags);
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

/* Memory management does not move folios of unmovable mappings. */
void gmem_warn_migrate(void)
{
	WARN_ON_ONCE(1);
}
