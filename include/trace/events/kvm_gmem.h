/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Trace events of guest_memfd.
 *
 * Files are known by their inode's number, which is unique while they exist and
 * is what fdinfo and stat show. Offsets and sizes are bytes, pages are pages,
 * errors are negative.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm_gmem

#if !defined(_TRACE_KVM_GMEM_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_KVM_GMEM_H

#include <linux/tracepoint.h>

#define kvm_gmem_policies				\
	{ 0, "NONE" },					\
	{ 1, "ZERO" },					\
	{ 2, "PRESERVE" }

/* A valid request, before its file is locked. */
TRACE_EVENT(kvm_gmem_convert_begin,
	TP_PROTO(u64 ino, u64 offset, u64 size, bool to_private, u64 policy),
	TP_ARGS(ino, offset, size, to_private, policy),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(u64, offset)
		__field(u64, size)
		__field(u64, policy)
		__field(bool, to_private)
	),

	TP_fast_assign(
		__entry->ino		= ino;
		__entry->offset		= offset;
		__entry->size		= size;
		__entry->policy		= policy;
		__entry->to_private	= to_private;
	),

	TP_printk("ino %llu offset 0x%llx size 0x%llx to %s %s",
		  __entry->ino, __entry->offset, __entry->size,
		  __entry->to_private ? "private" : "shared",
		  __print_symbolic(__entry->policy, kvm_gmem_policies))
);

/*
 * The end of a request. converted is how many pages changed their attribute, and
 * runs how many runs they form; zeroed and scrambled count pages that were
 * written. error_offset is -1 if the error is not about a page.
 */
TRACE_EVENT(kvm_gmem_convert_end,
	TP_PROTO(u64 ino, u64 offset, u64 size, bool to_private, u64 policy, u64 converted,
		 u64 runs, u64 zeroed, u64 scrambled, int result, u64 error_offset),
	TP_ARGS(ino, offset, size, to_private, policy, converted, runs, zeroed, scrambled, result,
		error_offset),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(u64, offset)
		__field(u64, size)
		__field(u64, policy)
		__field(u64, converted)
		__field(u64, runs)
		__field(u64, zeroed)
		__field(u64, scrambled)
		__field(u64, error_offset)
		__field(int, result)
		__field(bool, to_private)
	),

	TP_fast_assign(
		__entry->ino		= ino;
		__entry->offset		= offset;
		__entry->size		= size;
		__entry->policy		= policy;
		__entry->converted	= converted;
		__entry->runs		= runs;
		__entry->zeroed		= zeroed;
		__entry->scrambled	= scrambled;
		__entry->error_offset	= error_offset;
		__entry->result		= result;
		__entry->to_private	= to_private;
	),

	TP_printk("ino %llu offset 0x%llx size 0x%llx to %s %s: converted %llu runs %llu zeroed %llu scrambled %llu result %d error_offset 0x%llx",
		  __entry->ino, __entry->offset, __entry->size,
		  __entry->to_private ? "private" : "shared",
		  __print_symbolic(__entry->policy, kvm_gmem_policies), __entry->converted,
		  __entry->runs, __entry->zeroed, __entry->scrambled, __entry->result,
		  __entry->error_offset)
);

#define kvm_gmem_drains					\
	{ LRU_CACHE_NOT_DRAINED, "none" },		\
	{ LRU_CACHE_DRAINED, "local" },		\
	{ LRU_CACHE_DRAINED_ALL, "all" }

/*
 * A page that cannot become private: refs are all references to it, unexplained
 * those that neither page cache nor page tables nor the request itself have.
 * holder is what this suggests: pinned is FOLL_PIN (DMA, O_DIRECT, io_uring),
 * mapped a fault that came in between, reference anything else (a pipe, a
 * guest's fault in progress).
 */
TRACE_EVENT(kvm_gmem_busy,
	TP_PROTO(u64 ino, u64 offset, struct folio *folio, u32 unexplained, int drained),
	TP_ARGS(ino, offset, folio, unexplained, drained),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(u64, offset)
		__field(int, refs)
		__field(int, mapped)
		__field(u32, unexplained)
		__field(int, drained)
		__field(bool, pinned)
	),

	TP_fast_assign(
		__entry->ino		= ino;
		__entry->offset		= offset;
		__entry->refs		= folio_ref_count(folio);
		__entry->mapped		= folio_mapcount(folio);
		__entry->unexplained	= unexplained;
		__entry->drained	= drained;
		__entry->pinned		= folio_maybe_dma_pinned(folio);
	),

	TP_printk("ino %llu offset 0x%llx refs %d unexplained %u mapped %d drained %s holder %s",
		  __entry->ino, __entry->offset, __entry->refs, __entry->unexplained,
		  __entry->mapped, __print_symbolic(__entry->drained, kvm_gmem_drains),
		  __entry->pinned ? "pinned" : __entry->mapped ? "mapped" : "reference")
);

#define kvm_gmem_kinds					\
	{ KVM_FILTER_SHARED, "shared" },		\
	{ KVM_FILTER_PRIVATE, "private" }

/*
 * Large guest mappings that have pages of start to end and others are split, in the VM
 * of process pid.
 */
TRACE_EVENT(kvm_gmem_split,
	TP_PROTO(u64 ino, int pid, u64 start, u64 end),
	TP_ARGS(ino, pid, start, end),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(u64, start)
		__field(u64, end)
		__field(int, pid)
	),

	TP_fast_assign(
		__entry->ino		= ino;
		__entry->start		= start;
		__entry->end		= end;
		__entry->pid		= pid;
	),

	TP_printk("ino %llu pid %d gfns 0x%llx-0x%llx", __entry->ino, __entry->pid,
		  __entry->start, __entry->end)
);

/*
 * A large folio of a file, at offset, is split, as a part of it is converted or
 * freed; or it is not, as somebody holds it (EAGAIN), or for want of memory.
 */
TRACE_EVENT(kvm_gmem_split_folio,
	TP_PROTO(u64 ino, u64 offset, int result),
	TP_ARGS(ino, offset, result),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(u64, offset)
		__field(int, result)
	),

	TP_fast_assign(
		__entry->ino		= ino;
		__entry->offset		= offset;
		__entry->result		= result;
	),

	TP_printk("ino %llu offset 0x%llx result %d", __entry->ino, __entry->offset,
		  __entry->result)
);

/* Guest mappings of a file's pages are taken away, in the VM of process pid. */
TRACE_EVENT(kvm_gmem_zap,
	TP_PROTO(u64 ino, int pid, u64 start, u64 end, u32 kinds),
	TP_ARGS(ino, pid, start, end, kinds),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(u64, start)
		__field(u64, end)
		__field(int, pid)
		__field(u32, kinds)
	),

	TP_fast_assign(
		__entry->ino		= ino;
		__entry->start		= start;
		__entry->end		= end;
		__entry->pid		= pid;
		__entry->kinds		= kinds;
	),

	TP_printk("ino %llu pid %d gfns 0x%llx-0x%llx kinds %s", __entry->ino, __entry->pid,
		  __entry->start, __entry->end,
		  __print_flags(__entry->kinds, "|", kvm_gmem_kinds))
);

/* A guest's fault at gfn was given the page at offset. */
TRACE_EVENT(kvm_gmem_guest_fault,
	TP_PROTO(u64 ino, u64 offset, u64 gfn, bool is_private, bool first_use),
	TP_ARGS(ino, offset, gfn, is_private, first_use),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(u64, offset)
		__field(u64, gfn)
		__field(bool, is_private)
		__field(bool, first_use)
	),

	TP_fast_assign(
		__entry->ino		= ino;
		__entry->offset		= offset;
		__entry->gfn		= gfn;
		__entry->is_private	= is_private;
		__entry->first_use	= first_use;
	),

	TP_printk("ino %llu offset 0x%llx gfn 0x%llx %s%s", __entry->ino, __entry->offset,
		  __entry->gfn, __entry->is_private ? "private" : "shared",
		  __entry->first_use ? " first use" : "")
);

/* A fault of the host was given the page at offset. */
TRACE_EVENT(kvm_gmem_host_fault,
	TP_PROTO(u64 ino, u64 offset, bool first_use),
	TP_ARGS(ino, offset, first_use),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(u64, offset)
		__field(bool, first_use)
	),

	TP_fast_assign(
		__entry->ino		= ino;
		__entry->offset		= offset;
		__entry->first_use	= first_use;
	),

	TP_printk("ino %llu offset 0x%llx%s", __entry->ino, __entry->offset,
		  __entry->first_use ? " first use" : "")
);

/* Private pages were filled before launch: how many of npages, or an error. */
TRACE_EVENT(kvm_gmem_populate,
	TP_PROTO(u64 gfn, u64 npages, long result),
	TP_ARGS(gfn, npages, result),

	TP_STRUCT__entry(
		__field(u64, gfn)
		__field(u64, npages)
		__field(long, result)
	),

	TP_fast_assign(
		__entry->gfn		= gfn;
		__entry->npages		= npages;
		__entry->result		= result;
	),

	TP_printk("gfn 0x%llx npages %llu result %ld", __entry->gfn, __entry->npages,
		  __entry->result)
);

/*
 * SNP: a guest does not get the page at gfn, as the RMP already assigns it. known
 * is set if the file has given the page to a guest; the last two fields are to
 * whom. The RMP's own owner cannot be read. Changes of RMP entries are traced by
 * snp:snp_rmp_change.
 */
TRACE_EVENT(kvm_gmem_rmp_refusal,
	TP_PROTO(u64 pfn, u64 gfn, u32 asid, bool known, u64 known_gfn, u32 known_asid),
	TP_ARGS(pfn, gfn, asid, known, known_gfn, known_asid),

	TP_STRUCT__entry(
		__field(u64, pfn)
		__field(u64, gfn)
		__field(u64, known_gfn)
		__field(u32, asid)
		__field(u32, known_asid)
		__field(bool, known)
	),

	TP_fast_assign(
		__entry->pfn		= pfn;
		__entry->gfn		= gfn;
		__entry->known_gfn	= known_gfn;
		__entry->asid		= asid;
		__entry->known_asid	= known_asid;
		__entry->known		= known;
	),

	TP_printk("pfn 0x%llx gfn 0x%llx asid %u %s gfn 0x%llx asid %u", __entry->pfn,
		  __entry->gfn, __entry->asid, __entry->known ? "given to" : "not given,",
		  __entry->known_gfn, __entry->known_asid)
);

/*
 * The page at offset was moved from one page of the host's memory to another, or
 * was not: -EAGAIN if somebody has a reference to it, or its file is being
 * changed, -EBUSY if it cannot be moved, for example if its memory has failed.
 */
TRACE_EVENT(kvm_gmem_migrate,
	TP_PROTO(u64 ino, u64 offset, u64 from, u64 to, int result),
	TP_ARGS(ino, offset, from, to, result),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(u64, offset)
		__field(u64, from)
		__field(u64, to)
		__field(int, result)
	),

	TP_fast_assign(
		__entry->ino		= ino;
		__entry->offset		= offset;
		__entry->from		= from;
		__entry->to		= to;
		__entry->result		= result;
	),

	TP_printk("ino %llu offset 0x%llx pfn 0x%llx to 0x%llx result %d", __entry->ino,
		  __entry->offset, __entry->from, __entry->to, __entry->result)
);

/* KVM_MAP_MEMORY has ended, with left bytes not mapped. */
TRACE_EVENT(kvm_gmem_map_memory,
	TP_PROTO(u64 base, u64 size, u64 left, int result),
	TP_ARGS(base, size, left, result),

	TP_STRUCT__entry(
		__field(u64, base)
		__field(u64, size)
		__field(u64, left)
		__field(int, result)
	),

	TP_fast_assign(
		__entry->base		= base;
		__entry->size		= size;
		__entry->left		= left;
		__entry->result		= result;
	),

	TP_printk("base 0x%llx size 0x%llx left 0x%llx result %d", __entry->base, __entry->size,
		  __entry->left, __entry->result)
);

#endif /* _TRACE_KVM_GMEM_H */

#include <trace/define_trace.h>
