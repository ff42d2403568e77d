// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of a file with contiguous memory.
 */
#include "../helpers.h"

static bool gmem_is_folio(const void *entry)
{
	return entry && !xa_is_internal(entry) && !xa_is_value(entry);
}

static bool gmem_is_large(const struct folio *folio)
{
	return READ_ONCE(folio->flags.f) & BIT(PG_head);
}

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
 * The order of the large folio that @xas has found, whose first page is @page, if it is
 * @order, and the folio has the required flag and none of its pages has failed; 0 if not.
 *
 * While a folio is split, it loses the flag of failed pages for a moment.  Its
 * references are frozen before that, and come back when its entry has changed.  So the
 * flag is right if the folio had a reference after the flag was read, and the entry is
 * the same after that.
 */
static unsigned int gmem_block_folio(struct xa_state *xas, const struct page *page,
				     unsigned int order, unsigned long used)
{
	smp_rmb();
	if (!order || (READ_ONCE(page->flags.f) & used) != used ||
	    READ_ONCE(page[1].flags.f) & BIT(PG_has_hwpoisoned))
		return 0;
	smp_rmb();
	if (!page_ref_count(page))
		return 0;
	smp_rmb();
	return xas_reload(xas) == page && xas_get_order(xas) == order ? order : 0;
}

/*
 * Whether the memory of the block with the page @at is in one piece, aligned, and
 * has not failed, and all of it in use if that is asked for; with the first frame.
 * It can be one folio, or several of any size.
 *
 * Pages are mostly used in the order of their addresses, up or down.  So where @at is in
 * a small folio, the pages next to it and the last page are checked first: they tell
 * early that a block is not in use.
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
	const struct page *page, *at_node;
	struct folio *folio;
	unsigned long i, j;
	unsigned int order;

	guard(rcu)();
	folio = xas_load(&xas);
	if (!gmem_is_folio(folio))
		return false;
	/* A folio is aligned in the file as it is large. */
	order = gmem_is_large(folio) ? xas_get_order(&xas) : 0;
	*pfn = folio_pfn(folio) - (round_down(at, 1UL << order) - first);
	if (!IS_ALIGNED(*pfn, nr))
		return false;
	page = pfn_to_page(*pfn);
	if (order == GMEM_BLOCK_ORDER && !gmem_block_folio(&xas, page, order, used))
		return false;

	for (i = 0; !order && i < ARRAY_SIZE(hints); i++) {
		xas_set(&xas, hints[i]);
		folio = xas_load(&xas);
		if (!gmem_block_has(folio, page + (hints[i] - first), bad | used, used) &&
		    !(gmem_is_folio(folio) && gmem_is_large(folio)))
			return false;
	}
	for (i = order == GMEM_BLOCK_ORDER ? nr : 0; i < nr;) {
		xas_set(&xas, first + i);
		if (xas_load(&xas) != page + i || !xas.xa_node)
			return false;
		if (gmem_is_large((const void *)(page + i))) {
			order = gmem_block_folio(&xas, page + i, xas_get_order(&xas), used);
			if (!order)
				return false;
			i += 1UL << order;
			continue;
		}
		/* Node by node: each fault on a block comes here, and each page of it costs. */
		at_node = page + i - xas.xa_offset;
		for (j = xas.xa_offset; j < XA_CHUNK_SIZE; j++)
			if (!gmem_block_has(xa_entry(xas.xa, xas.xa_node, j), at_node + j,
					    bad | used, used))
				break;
		/* Perhaps a large folio follows. */
		if (j == xas.xa_offset)
			return false;
		i += j - xas.xa_offset;
	}
	/* Pairs with the barrier of folio_mark_uptodate(): bytes after the flag. */
	smp_rmb();
	return true;
}

/*
 * Whether a platform was given a page of the memory of a block.  The caller holds
 * none of its pages, so it is a hint: they can have another owner by now.
 */
bool gmem_block_was_given(u64 pfn)
{
	struct page *page = pfn_to_page(pfn);
	unsigned long i;

	for (i = 0; i < 1UL << GMEM_BLOCK_ORDER; i++)
		if (READ_ONCE(page[i].private) & GMEM_RECORD_ASSIGNED)
			return true;
	return false;
}

/* Whether the block with the page @at is one folio. */
bool gmem_mapping_is_large(struct address_space *mapping, pgoff_t at)
{
	XA_STATE(xas, &mapping->i_pages, at);
	void *entry;

	guard(rcu)();
	entry = xas_load(&xas);
	return gmem_is_folio(entry) && xas_get_order(&xas) == GMEM_BLOCK_ORDER;
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
		if (!err) {
			gmem_folio_keep(folio);
			folio_unlock(folio);
		} else {
			made = err == -ENOMEM ? GMEM_BLOCK_NO_MEMORY : GMEM_BLOCK_OCCUPIED;
		}
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
	if (!err) {
		gmem_folio_keep(folio);
		folio_unlock(folio);
	}
	folio_put(folio);
	if (err)
		return err == -EEXIST ? GMEM_BLOCK_OCCUPIED : GMEM_BLOCK_NO_MEMORY;
	return GMEM_FOLIO_MADE;
}
