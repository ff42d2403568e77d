// SPDX-License-Identifier: GPL-2.0
/*
 * Looking pages up in the page cache without a lock and a reference.
 */
#include "../helpers.h"

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
