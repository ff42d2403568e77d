// SPDX-License-Identifier: GPL-2.0
/*
 * Faults of the host: waiting for the file, and mapping more than the requested
 * page.
 */
#include <linux/mm.h>
#include <linux/userfaultfd_k.h>

#include "../helpers.h"

/*
 * Takes the invalidate lock shared for a fault.  Returns 0 with the lock held.
 * Otherwise returns the result of the fault, without the lock.
 *
 * The lock can be held for as long as converting many GiB takes.  So the fault
 * does not wait with mmap_lock or the VMA lock held, for which others wait: it
 * drops that lock, waits, and is tried again.  The retry can lose the next
 * race, too, so there is no limit on retries, as with handle_userfault(), and
 * the fault core looks for signals in between.  The fault waits with mmap_lock
 * or the VMA lock held only if the caller must keep it.  Where the fault core
 * lets the task be killed, VM_FAULT_RETRY without the lock reports this.
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

/*
 * Whether the host has the page before that of a fault mapped, and so is
 * likely to want the next ones as well. Going through new memory does not
 * count: if the page itself is not in use, the next ones are not either. The
 * table is freed behind RCU, if it is removed meanwhile. @missing: the page
 * was looked up, and has no folio.
 */
bool gmem_fault_follows(struct vm_fault *vmf, bool *missing)
{
	unsigned long before = vmf->address - PAGE_SIZE;
	u32 found;
	pmd_t pmd;
	u64 pfn;

	if (!pte_index(vmf->address) || vmf->address < vmf->vma->vm_start + PAGE_SIZE ||
	    uffd_disable_fault_around(vmf->vma))
		return false;
	guard(rcu)();
	pmd = pmdp_get_lockless(vmf->pmd);
	if (!pmd_present(pmd) || pmd_leaf(pmd))
		return false;
	if (!pte_present(ptep_get(pte_offset_kernel(&pmd, before))))
		return false;
	found = gmem_mapping_pfn(vmf->vma->vm_file->f_mapping, vmf->pgoff, &pfn);
	*missing = found == GMEM_FOUND_NOTHING;
	return found == GMEM_FOUND_IN_USE;
}

/*
 * Maps the pages that are in use, from that of a fault to @last, a few at
 * most, in the page table of the fault. The caller has made sure that the host
 * may have all of them.
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
 * Maps the page of a fault, which the caller has locked, and nothing else of its
 * folio, in which another page has failed: the fault core would map that, too.
 */
vm_fault_t gmem_fault_one(struct vm_fault *vmf, struct page *page)
{
	/* All of it was mapped before the failure was known, and is about to be unmapped. */
	if (pmd_leaf(pmdp_get_lockless(vmf->pmd)))
		return VM_FAULT_NOPAGE;
	return vmf_insert_page_mkwrite(vmf, page, vmf->flags & FAULT_FLAG_WRITE);
}
