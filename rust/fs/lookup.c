// SPDX-License-Identifier: GPL-2.0
/*
 * Looking pages up in the page cache without a lock and a reference.
 */
#include "../helpers.h"

/*
 * The same for a page of a large folio other than the first, whose entry @xas
 * has found.
 *
 * While a large folio is split, each of its pages has an entry of its own that
 * still says the large folio, for a moment. Whoever takes a reference does not
 * get one then. Here it is the folio's index that tells.
 */
static noinline bool gmem_large_in_use_pfn(const struct xa_state *xas, struct folio *folio,
					   u64 *pfn)
{
	const struct xa_node *node = xas->xa_node;
	const struct page *page;
	pgoff_t first;

	if (!node)
		return false;
	first = round_down(xas->xa_index, XA_CHUNK_SIZE << node->shift) +
		((pgoff_t)xas->xa_offset << node->shift);
	if (READ_ONCE(folio->index) != first)
		return false;
	/* What is in use is so as a whole, but memory fails page by page. */
	page = &folio->page + (xas->xa_index - first);
	if (!(READ_ONCE(folio->flags.f) & BIT(PG_uptodate)) ||
	    READ_ONCE(page->flags.f) & __PG_HWPOISON)
		return false;
	smp_rmb();
	*pfn = page_to_pfn(page);
	return true;
}

/*
 * The frame of the page that @xas has found the entry of, if its folio is in use
 * and the page has not failed. No lock and no reference is taken: a caller may
 * use the frame only if it can tell that the page has not left the file since.
 *
 * The memory can have another owner before its flags are read, so they are read
 * as a word: the assertions in the tests of other flags need not hold.
 */
static bool gmem_folio_in_use_pfn(const struct xa_state *xas, struct folio *folio, u64 *pfn)
{
	const unsigned long mask = BIT(PG_uptodate) | __PG_HWPOISON;

	if (!folio || xa_is_internal(folio) || xa_is_value(folio))
		return false;
	if (unlikely(READ_ONCE(folio->index) != xas->xa_index))
		return gmem_large_in_use_pfn(xas, folio, pfn);
	if ((READ_ONCE(folio->flags.f) & mask) != BIT(PG_uptodate))
		return false;
	/* Pairs with the barrier of folio_mark_uptodate(): bytes after the flag. */
	smp_rmb();
	*pfn = folio_pfn(folio);
	return true;
}

/* Whether @xas is at the slot of its index, and not at that of the folio's first page. */
static bool gmem_at_own_slot(const struct xa_state *xas)
{
	struct xa_node *node = xas->xa_node;

	/* Without a node there is one slot, or none. */
	return xas_not_node(node) ||
	       xas->xa_offset == ((xas->xa_index >> node->shift) & XA_CHUNK_MASK);
}

/* The entry of the next page, which can be that of the same folio. */
static void *gmem_next(struct xa_state *xas)
{
	void *entry = xas_next(xas);

	/*
	 * xas_next() goes from slot to slot, of which a large folio has several. xas_load()
	 * has left it at the folio's first one. If the folio has been split since, the slot
	 * behind that one has another folio, and is not the index's.
	 */
	if (unlikely(xa_is_sibling(entry) || !gmem_at_own_slot(xas))) {
		xas_set(xas, xas->xa_index);
		entry = xas_load(xas);
	}
	return entry;
}

u32 gmem_mapping_pfn(struct address_space *mapping, pgoff_t index, u64 *pfn)
{
	XA_STATE(xas, &mapping->i_pages, index);
	struct folio *folio;

	guard(rcu)();
	folio = xas_load(&xas);
	if (gmem_folio_in_use_pfn(&xas, folio, pfn))
		return GMEM_FOUND_IN_USE;
	return folio ? GMEM_FOUND_FOLIO : GMEM_FOUND_NOTHING;
}

/* The same for up to @nr pages, until the first that does not qualify. Returns how many. */
int gmem_mapping_pfns(struct address_space *mapping, pgoff_t index, int nr, u64 *pfns)
{
	XA_STATE(xas, &mapping->i_pages, index);
	struct folio *folio;
	int found = 0;

	guard(rcu)();
	for (folio = xas_load(&xas); found < nr; folio = gmem_next(&xas), found++)
		if (!gmem_folio_in_use_pfn(&xas, folio, &pfns[found]))
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

/* How many folios are checked before other tasks get a chance to run. */
#define GMEM_LOOKS 1024

/*
 * Whether the page cache alone has references to a folio, one for each page.
 * The size of a large one is read after the count, and as a word, too: folios
 * are split and never made larger, so it had that size when it was counted.
 */
static bool gmem_folio_is_counted(struct folio *folio)
{
	unsigned long refs = folio_ref_count(folio);

	if (likely(refs == 1))
		return true;
	smp_rmb();
	return READ_ONCE(folio->flags.f) & BIT(PG_head) && refs == folio_large_nr_pages(folio);
}

/*
 * Finds the first folio at or after *@index and not beyond @last that has a
 * reference besides the page cache's, by its index. After many folios without
 * one, it returns the next folio, whatever its references are.
 *
 * No reference is taken: the caller keeps the folios in their file.
 */
bool gmem_mapping_held(struct address_space *mapping, pgoff_t *index, pgoff_t last)
{
	XA_STATE(xas, &mapping->i_pages, *index);
	unsigned int looks = 0;
	struct folio *folio;

	/* GUP-fast takes its reference before it looks at the page table again. */
	smp_mb();
	guard(rcu)();
	xas_for_each(&xas, folio, last) {
		if (xas_retry(&xas, folio) || xa_is_value(folio))
			continue;
		if (!gmem_folio_is_counted(folio) || ++looks > GMEM_LOOKS) {
			*index = max(*index, xas.xa_index);
			return true;
		}
	}
	/* A mapping had its reference until the TLBs were flushed. */
	smp_acquire__after_ctrl_dep();
	return false;
}

/*
 * Whether a page from *@index to @last has no folio. If so, *@index becomes
 * the first such page. If not, it becomes the index behind the pages that were
 * looked at: all, or many.
 */
bool gmem_mapping_missing(struct address_space *mapping, pgoff_t *index, pgoff_t last)
{
	XA_STATE(xas, &mapping->i_pages, *index);
	unsigned int looks = 0;
	void *entry;

	guard(rcu)();
	for (entry = xas_load(&xas); *index <= last && looks++ < GMEM_LOOKS;
	     entry = gmem_next(&xas)) {
		if (!entry || xa_is_internal(entry) || xa_is_value(entry))
			return true;
		++*index;
	}
	return false;
}
