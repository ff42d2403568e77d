// SPDX-License-Identifier: GPL-2.0
/*
 * Folios of a guest_memfd: when they are in use, their record, and who else
 * holds them.
 */
#include <kunit/test-bug.h>
#include <linux/migrate.h>

#include "../helpers.h"
#include "guest_memfd.h"

/* Without PG_private only guest_memfd uses it. */
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

bool kvm_gmem_page_is_zero(struct page *page)
{
	return gmem_folio_record(page_folio(page)) & GMEM_RECORD_ZERO;
}

/*
 * Keeps memory management from dropping the folio, as it could a clean one that
 * nobody has mapped or holds: by soft offlining, fadvise() or drop_caches. A folio in
 * use has the only copy of its bytes, and a guest's page tables refer to it without
 * being counted. A folio that was never used may still be the platform's, if that
 * cannot say whose it is. Then it needs a reference that is never dropped, and the
 * count of a folio that is being dropped is overwritten after ->free_folio().
 *
 * Only the flag says so, see noop_dirty_folio(). The caller has locked the folio since
 * it was added to the file.
 */
void gmem_folio_keep(struct folio *folio)
{
	folio_set_dirty(folio);
}

/*
 * Zeroes at the first use; the check is on this side because every fault does it.
 * Returns 1 if this was the first use, and -EHWPOISON for memory that failed before.
 * A large folio is used as a whole: if a page of it has failed, it is not used before
 * it is split.
 */
int gmem_folio_prepare(struct folio *folio)
{
	unsigned long page, nr = folio_nr_pages(folio);

	if (folio_test_uptodate(folio))
		return 0;
	if (folio_contain_hwpoisoned_page(folio))
		return -EHWPOISON;
	for (page = 0; page < nr; page++) {
		clear_highpage(folio_page(folio, page));
		if (nr > 1)
			cond_resched();
	}
	folio_mark_uptodate(folio);
	return 1;
}

/* The first of @nr pages of the folio that has failed, or the number behind them. */
unsigned long gmem_folio_hwpoison(struct folio *folio, unsigned long first, unsigned long nr)
{
	unsigned long page;

	for (page = first; page < first + nr; page++)
		if (PageHWPoison(folio_page(folio, page)))
			break;
	return page;
}

/*
 * Splits a large folio, which the caller has locked and has a reference to, so that
 * one of the new folios begins with its page @page: into halves, then the half with
 * that page into halves, and so on.  The host loses its mappings of the folio, and
 * faults them back.
 *
 * Returns -EAGAIN if there are other references, and -ENOMEM; it may be in parts then,
 * but not yet as it should.  The lock and the reference are those of the first page's
 * folio, in any case.
 */
int gmem_folio_split(struct folio *folio, unsigned long page)
{
	struct page *at = folio_page(folio, page);
	int err;

	err = folio_split(folio, __ffs(page), at, NULL);
	if (err == -ENOMEM) {
		/* The part that has the page is another folio by now, and not locked. */
		if (page_folio(at) != folio)
			return -EAGAIN;
		/*
		 * A node of the page cache was to be allocated, with locks held that keep it
		 * from waiting for memory.  This waits, and splits into folios of one size.
		 */
		err = split_huge_page_to_order(&folio->page, __ffs(page));
	}
	/* It is in the file, is not being written back, and has no minimum. */
	WARN_ON_ONCE(err == -EINVAL);
	return !err || err == -ENOMEM ? err : -EAGAIN;
}

void gmem_page_mark_uptodate(struct page *page)
{
	folio_mark_uptodate(page_folio(page));
}

/*
 * References that are kept for ever to a page that has failed: by memory failure,
 * and by us if a platform may still have it.  Memory failure keeps none to a large
 * folio that it could not split, nor to what that is split into later, so the
 * flag alone does not tell.  What it keeps ends when the flag is taken back.
 */
static unsigned int gmem_folio_kept_refs(struct folio *folio)
{
	unsigned long record = gmem_folio_record(folio);

	return !!(record & GMEM_RECORD_FAILED && folio_test_hwpoison(folio)) +
	       !!(record & GMEM_RECORD_RETIRED);
}

/* References beyond those of the page cache, of page tables, kept ones, and the caller's own. */
unsigned int gmem_folio_excess_refs(struct folio *folio, unsigned int own)
{
	int excess = folio_ref_count(folio) - folio_expected_ref_count(folio) -
		     (int)(own + gmem_folio_kept_refs(folio));

	return max(excess, 0);
}

/*
 * Whether nobody but the page cache and @own have a reference: no page table
 * of the host has the folio either, and no fault is about to map it. A mapping
 * has a reference of its own, which is the fault's before, and lasts until the
 * TLBs are flushed. So one look at the count is enough to show that nobody has
 * a reference. It does not show that somebody has one, as some references are
 * kept for ever.
 */
bool gmem_folio_is_quiet(struct folio *folio, unsigned int own)
{
	return folio_ref_count(folio) == (int)(folio_nr_pages(folio) + own);
}

#ifdef CONFIG_MIGRATION
/* Returns 0, or -EHWPOISON if there is memory that cannot be read. */
int gmem_folio_copy(struct folio *to, struct folio *from)
{
	return folio_mc_copy(to, from);
}

/*
 * Puts @to, which has the bytes of @from, in the place of @from in the file, with
 * what is remembered of the page.  Both are locked, so nobody looks at either
 * until it is done.  Returns -EAGAIN, with nothing changed, if there are other
 * references to @from than those of the page cache and the one that memory
 * management holds.  If the bytes are @gone from @from it does not fail: what such
 * references there are is left to those who have them, who have found the folio in
 * the page cache and look once more when they get the lock.
 */
int gmem_folio_replace(struct folio *to, struct folio *from, bool gone)
{
	void *record = from->private;
	int err, others = 0;

	do {
		if (gone)
			others = folio_ref_count(from) - folio_expected_ref_count(from) - 1;
		err = folio_migrate_mapping(from->mapping, to, from, others);
	} while (err && gone);
	if (err)
		return err;
	to->private = record;
	/* Up to date, the memory cgroup, and so on; forgets what @from had. */
	folio_migrate_flags(to, from);
	return 0;
}
#else
int gmem_folio_copy(struct folio *to, struct folio *from)
{
	return -EOPNOTSUPP;
}

int gmem_folio_replace(struct folio *to, struct folio *from, bool gone)
{
	return -EOPNOTSUPP;
}
#endif

/* Drains for what gmem_folio_excess_refs() counts, and for nothing else. */
void gmem_folio_drain(struct folio *folio, unsigned int own, enum lru_cache_drained *drained)
{
	lru_cache_drain_for_folio(folio, own + gmem_folio_kept_refs(folio), drained);
}

/* The platform does not give the page back, which cannot be repaired. */
void gmem_warn_leak(u64 pfn, bool model)
{
	/* Models and the tests' platforms fail only on request. */
	WARN_ONCE(!model && !kunit_get_current_test(),
		  "guest_memfd: a page was lost to the platform\n");
	pr_err_ratelimited("guest_memfd: lost page 0x%llx to the platform\n", pfn);
}
