// SPDX-License-Identifier: GPL-2.0
/*
 * The trace events, and for each a function that the Rust side calls if the
 * event is on.
 */
#include <linux/kvm_host.h>
#include <linux/mm.h>
#include <linux/swap.h>

#include "helpers.h"

#define CREATE_TRACE_POINTS
#include <trace/events/kvm_gmem.h>

void gmem_trace_convert_begin(u64 ino, u64 offset, u64 size, bool to_private, u64 policy)
{
	trace_kvm_gmem_convert_begin(ino, offset, size, to_private, policy);
}

void gmem_trace_convert_end(u64 ino, u64 offset, u64 size, bool to_private, u64 policy,
			    u64 converted, u64 runs, u64 zeroed, u64 scrambled, int result,
			    u64 error_offset)
{
	trace_kvm_gmem_convert_end(ino, offset, size, to_private, policy, converted, runs, zeroed,
				   scrambled, result, error_offset);
}

/* The folio is locked. */
void gmem_trace_busy(struct folio *folio, u32 unexplained, int drained)
{
	trace_kvm_gmem_busy(folio->mapping->host->i_ino, (u64)folio->index << PAGE_SHIFT, folio,
			    unexplained, drained);
}

void gmem_trace_split(u64 ino, struct kvm *kvm, u64 start, u64 end)
{
	trace_kvm_gmem_split(ino, kvm->userspace_pid, start, end);
}

void gmem_trace_split_folio(u64 ino, u64 offset, int result)
{
	trace_kvm_gmem_split_folio(ino, offset, result);
}

void gmem_trace_zap(u64 ino, struct kvm *kvm, u64 start, u64 end, u32 kinds)
{
	trace_kvm_gmem_zap(ino, kvm->userspace_pid, start, end, kinds);
}

void gmem_trace_guest_fault(u64 ino, u64 offset, u64 gfn, bool is_private, bool first_use)
{
	trace_kvm_gmem_guest_fault(ino, offset, gfn, is_private, first_use);
}

void gmem_trace_host_fault(u64 ino, u64 offset, bool first_use)
{
	trace_kvm_gmem_host_fault(ino, offset, first_use);
}

void gmem_trace_populate(u64 gfn, u64 npages, long result)
{
	trace_kvm_gmem_populate(gfn, npages, result);
}

void gmem_trace_rmp_refusal(u64 pfn, u64 gfn, u32 asid, bool known, u64 known_gfn, u32 known_asid)
{
	trace_kvm_gmem_rmp_refusal(pfn, gfn, asid, known, known_gfn, known_asid);
}

void gmem_trace_migrate(u64 ino, u64 offset, u64 from, u64 to, int result)
{
	trace_kvm_gmem_migrate(ino, offset, from, to, result);
}

void gmem_trace_map_memory(u64 base, u64 size, u64 left, int result)
{
	trace_kvm_gmem_map_memory(base, size, left, result);
}
