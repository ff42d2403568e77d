// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of a file with contiguous memory.
 */
#include "../helpers.h"

/*
 * Whether @entry of a file is @page, with the required flags.  A folio has the
 * address of its first page.  The page can have another owner, as with
 * gmem_mapping_pfn().
 */
static bool gmem_block_has(const void *entry, const struct page *page, unsigned long mask,
			   unsigned long flags)
{
	return entry == page && (READ_ONCE(page->flags.f) & mask) == flags;
}

/*
 * The same for a block that is one large folio, whose entry @xas has found.  While
 * the folio is split its entries are smaller ones, which say nothing here.
 */
static bool gmem_block_is_folio(struct xa_state *xas, struct folio *folio, unsigned long used)
{
	if (xas_get_order(xas) != GMEM_BLOCK_ORDER ||
	    (READ_ONCE(folio->flags.f) & used) != used ||
	    READ_ONCE(folio_page(folio, 1)->flags.f) & BIT(PG_has_hwpoisoned))
		return false;
	smp_rmb();
	return true;
}

/*
 * Whether the memory of the block with the page @at is in one piece, aligned, and
 * has not failed, and all of it in use if that is asked for; with the first frame.
 *
 * Pages are mostly used in the order of their addresses, up or down.  So the pages next
 * to @at and the last page are checked first: they tell early that a block is not in use.
 */
bool gmem_mapping_block(struct address_space *mapping, pgoff_t at, bool in_use, u64 *pfn)
{
	const unsigned long bad = BIT(PG_head) | __PG_HWPOISON;
	const unsigned long nr = 1UL << GMEM_BLOCK_ORDER;
	const pgoff_t first = round_down(at, nr);
	const unsigned long used = in_use ? BIT(PG_uptodate) : 0;
	const pgoff_t hints[] = { max(at, first + 1) - 1, min(at + 1, first + nr - 1),
				  first + nr - 1 };
	XA_STATE(xas, &mapping->i_pages, at);
	const struct page *page;
	struct folio *folio;
	unsigned long i, j;

	guard(rcu)();
	folio = xas_load(&xas);
	if (!folio || xa_is_internal(folio) || xa_is_value(folio))
		return false;
	if (READ_ONCE(folio->flags.f) & BIT(PG_head)) {
		*pfn = folio_pfn(folio);
		return gmem_block_is_folio(&xas, folio, used);
	}
	*pfn = folio_pfn(folio) - (at - first);
	if (!IS_ALIGNED(*pfn, nr))
		return false;
	page = pfn_to_page(*pfn);

	for (i = 0; i < ARRAY_SIZE(hints); i++) {
		xas_set(&xas, hints[i]);
		if (!gmem_block_has(xas_load(&xas), page + (hints[i] - first), bad | used, used))
			return false;
	}
	/* Node by node: each fault on a block comes here, and each page of it costs. */
	for (i = 0; i < nr; i += XA_CHUNK_SIZE, page += XA_CHUNK_SIZE) {
		xas_set(&xas, first + i);
		if (xas_load(&xas) != page || !xas.xa_node)
			return false;
		for (j = 0; j < XA_CHUNK_SIZE; j++)
			if (!gmem_block_has(xa_entry(xas.xa, xas.xa_node, j), page + j, bad | used,
					    used))
				return false;
	}
	/* Pairs with the barrier of folio_mark_uptodate(): bytes after the flag. */
	smp_rmb();
	return true;
}

/* Whether the block with the page @at is one folio. */
bool gmem_mapping_is_large(struct address_space *mapping, pgoff_t at)
{
	XA_STATE(xas, &mapping->i_pages, at);
	void *entry;

	guard(rcu)();
	entry = xas_load(&xas);
	return entry && !xa_is_internal(entry) && !xa_is_value(entry) &&
	       xas_get_order(&xas) == GMEM_BLOCK_ORDER;
}

/*
 * Adds a block to the file, as folios of one page, if it has no page there.  It does
 * not try hard to get contiguous memory.  If somebody else adds a page meanwhile, or
 * not all pages can be charged to the cgroup, those that were added stay.
 */
u32 gmem_mapping_add_block(struct address_space *mapping, pgoff_t index)
{
	const gfp_t gfp = mapping_gfp_mask(mapping);
	const unsigned long nr = 1UL << GMEM_BLOCK_ORDER;
	const loff_t start = (loff_t)index << PAGE_SHIFT;
	u32 made = GMEM_BLOCK_MADE;
	unsigned long i;
	struct folio *folio;
	struct page *page;
	int err = 0;

	if (filemap_range_has_page(mapping, start, start + (nr << PAGE_SHIFT) - 1))
		return GMEM_BLOCK_OCCUPIED;
	page = alloc_pages(gfp | __GFP_NORETRY | __GFP_NOWARN, GMEM_BLOCK_ORDER);
	if (!page)
		return GMEM_BLOCK_NO_MEMORY;
	split_page(page, GMEM_BLOCK_ORDER);

	for (i = 0; i < nr; i++) {
		/* alloc_pages() clears that of the first page only. No page has a record yet. */
		set_page_private(page + i, 0);
		folio = page_folio(page + i);
		/* A cgroup that has no room for one has none for the next. */
		if (err != -ENOMEM)
			err = filemap_add_folio(mapping, folio, index + i, gfp);
		if (!err)
			folio_unlock(folio);
		else
			made = err == -ENOMEM ? GMEM_BLOCK_NO_MEMORY : GMEM_BLOCK_OCCUPIED;
		folio_put(folio);
		cond_resched();
	}
	return made;
}

/* The same as one folio, of which nothing is added if not all of it can be. */
u32 gmem_mapping_add_large(struct address_space *mapping, pgoff_t index)
{
	const gfp_t gfp = mapping_gfp_mask(mapping);
	const loff_t start = (loff_t)index << PAGE_SHIFT;
	struct folio *folio;
	int err;

	if (filemap_range_has_page(mapping, start, start + (PAGE_SIZE << GMEM_BLOCK_ORDER) - 1))
		return GMEM_BLOCK_OCCUPIED;
	folio = filemap_alloc_folio(gfp | __GFP_NORETRY | __GFP_NOWARN, GMEM_BLOCK_ORDER, NULL);
	if (!folio)
		return GMEM_BLOCK_NO_MEMORY;
	/* Nothing is remembered of it. */
	folio->private = NULL;
	err = filemap_add_folio(mapping, folio, index, gfp);
	if (!err)
		folio_unlock(folio);
	folio_put(folio);
	if (err)
		return err == -EEXIST ? GMEM_BLOCK_OCCUPIED : GMEM_BLOCK_NO_MEMORY;
	return GMEM_FOLIO_MADE;
}
