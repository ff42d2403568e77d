/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Ways to make the host's memory management move pages, for the tests of guest_memfds
 * with GUEST_MEMFD_FLAG_MIGRATABLE.
 *
 * The tests find a page's frame by the host's page table, which has no entry for private
 * pages. So the frame is read before a page becomes private, and when it is shared again.
 */
#ifndef SELFTEST_KVM_GMEM_MOVE_H
#define SELFTEST_KVM_GMEM_MOVE_H

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <linux/kernel-page-flags.h>

#include <sys/mman.h>

#include "gmem_hazard.h"
#include "numaif.h"

/* The number of pages of most files here. */
#define NPAGES		16

#define GMEM_MOVABLE	(GMEM_MMAP_SHARED | GUEST_MEMFD_FLAG_MIGRATABLE)

/* The largest number of pages in one call. */
#define MAX_MOVED	512

#define NEEDS_NODES	"needs two NUMA nodes"

#ifdef __x86_64__
#define DEFAULT_VM	KVM_X86_DEFAULT_VM
#else
#define DEFAULT_VM	0
#endif

/* Makes pages private in a VM of hz_create(), if they can be: those of arm64 do not convert. */
static inline void may_convert(struct hz *h, u64 page, u64 n)
{
#ifdef __x86_64__
	convert(h, page, n, GMEM_PRIVATE, GMEM_PRESERVE);
#endif
}

static inline bool two_nodes(void)
{
	return is_multi_numa_node_system();
}

/* The node of a page that the host has mapped, or a negative errno. */
static inline int node_of(const volatile u8 *hva)
{
	void *page = (void *)hva;
	int status = -EINVAL;

	TEST_ASSERT(!move_pages(0, 1, &page, NULL, &status, 0), "move_pages: errno %d", errno);
	return status;
}

/*
 * Requests that pages of a process be moved to @node. Returns what the call returns, or
 * -errno. If the call does not reach a page, its status does not change.
 */
static inline long move_by(pid_t pid, volatile u8 *hva, u64 n, int node, int flags,
			   int *status)
{
	void *pages[MAX_MOVED];
	int nodes[MAX_MOVED];
	long r;
	u64 i;

	TEST_ASSERT(n <= MAX_MOVED, "%lu pages", n);
	for (i = 0; i < n; i++) {
		pages[i] = (void *)(hva + i * PAGE_SIZE);
		nodes[i] = node;
	}
	r = move_pages(pid, n, pages, nodes, status, flags);
	return r < 0 ? -errno : r;
}

/* Compacts all zones: movable pages go to one end of each zone. */
static inline void compact(void)
{
	int fd = open("/proc/sys/vm/compact_memory", O_WRONLY);

	TEST_ASSERT(fd >= 0 && write(fd, "1", 1) == 1, "compact_memory: errno %d", errno);
	close(fd);
}

/* Memory outside of the file, contiguous or in pages. */
static inline u8 *other_memory(u64 size, bool whole)
{
	u8 *mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	u64 at;

	kvm_madvise(mem, size, whole ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (at = 0; at < size; at += PAGE_SIZE)
		mem[at] = 0x5a;
	return mem;
}

/* What hz_create() makes, of a VM of @type. */
static inline void mg_create(struct hz *h, u32 type, u64 npages, u64 flags, u32 nr_vcpus)
{
	u32 i;

	memset(h, 0, sizeof(*h));
	h->npages = npages;
	h->vm = gmem_vm_create_type(type, nr_vcpus, npages, h->vcpus);
	gmem_area_create(&h->a, h->vm, GMEM_SLOT, GMEM_GPA, OFF(npages), flags);
	for (i = 0; i < nr_vcpus; i++)
		gmem_guest_start(h->vcpus[i]);
}

static inline void mg_destroy(struct hz *h)
{
	gmem_area_destroy(&h->a);
	kvm_vm_free(h->vm);
}

#define migrated(h)	vm_get_stat((h)->vm, gmem_migrated)

/* All pages of the range get there, each in another frame. */
#define moves(h, page, n, node)							\
do {										\
	u64 __page = (page), __n = (n), __i, __before[MAX_MOVED];		\
	int __node = (node), __status[MAX_MOVED] = {};				\
	long __r;								\
										\
	for (__i = 0; __i < __n; __i++)						\
		__before[__i] = gmem_frame_of(hz_hva(h, __page + __i));		\
	__r = move_by(0, hz_hva(h, __page), __n, __node, MPOL_MF_MOVE, __status); \
	TEST_ASSERT(!__r, "move_pages: %ld", __r);				\
	for (__i = 0; __i < __n; __i++) {					\
		TEST_ASSERT(__status[__i] == __node, "Page %lu: status %d, wanted node %d", \
			    __page + __i, __status[__i], __node);		\
		TEST_ASSERT_EQ(node_of(hz_hva(h, __page + __i)), __node);	\
		TEST_ASSERT(__before[__i] &&					\
			    __before[__i] != gmem_frame_of(hz_hva(h, __page + __i)),	\
			    "Page %lu did not move", __page + __i);		\
	}									\
} while (0)

/* A request to move the page at @hva fails, and the page stays. */
#define stays(hva)								\
do {										\
	volatile u8 *__hva = (hva);						\
	int __status = 1000, __from = node_of(__hva);				\
	u64 __before = gmem_frame_of(__hva);						\
	long __r = move_by(0, __hva, 1, !__from, MPOL_MF_MOVE_ALL, &__status);	\
										\
	TEST_ASSERT(__r == 1 || (!__r && __status < 0), "move_pages: %ld, status %d", __r, \
		    __status);							\
	TEST_ASSERT_EQ(node_of(__hva), __from);					\
	TEST_ASSERT_EQ(gmem_frame_of(__hva), __before);				\
} while (0)

/*
 * Spreads the file's first @n pages over a node's memory. @between bytes of other memory
 * follow each @step pages, and are freed at the end. Compaction then moves pages from one
 * end of the node to the other. Pages are written, or only allocated.
 */
static inline void spread(struct hz *h, u64 n, u64 step, u64 between, bool write)
{
	u8 *others[MAX_MOVED];
	u64 page, i = 0;

	pin_self_to_cpu(0);
	for (page = 0; page < n; page += step) {
		if (write)
			host_fill(h, page, step, GMEM_SEED(1));
		else
			TEST_ASSERT(!gmem_allocate(h->a.fd, OFF(page), OFF(step)), "fallocate()");
		others[i++] = other_memory(between, step > 1);
	}
	while (i--)
		kvm_munmap(others[i], between);
}

static inline void frames(struct hz *h, u64 n, u64 *pfns)
{
	u64 i;

	for (i = 0; i < n; i++) {
		pfns[i] = gmem_frame_of(hz_hva(h, i));
		TEST_ASSERT(pfns[i], "No frame number of page %lu", i);
	}
}

static inline u64 different(const u64 *a, const u64 *b, u64 n)
{
	u64 i, all = 0;

	for (i = 0; i < n; i++)
		all += a[i] != b[i];
	return all;
}

/* A KPF_* flag of a frame. */
static inline bool has_flag(u64 pfn, int flag)
{
	u64 flags = 0;
	int fd = open("/proc/kpageflags", O_RDONLY);

	TEST_ASSERT(fd >= 0 && pread(fd, &flags, sizeof(flags), pfn * sizeof(flags)) == sizeof(flags),
		    "/proc/kpageflags: errno %d", errno);
	close(fd);
	return flags & BIT_ULL(flag);
}

#define SOFT_OFFLINE	"/sys/devices/system/memory/soft_offline_page"

/*
 * Has the page replaced by another one, which works without a mapping of the
 * host's. Returns 0, and the old frame is of no use from then on, or an errno.
 */
static inline int replace(u64 frame)
{
	int r = hz_write_file(SOFT_OFFLINE, "%#lx", frame * PG);

	TEST_ASSERT_EQ(has_flag(frame, KPF_HWPOISON), !r);
	return r;
}

/* A frame that was replaced is the host's, and can be used again. */
static inline void use_again(u64 frame)
{
	int r = hz_write_file(DEBUGFS "/hwpoison/unpoison-pfn", "%#lx", frame);

	TEST_ASSERT(!r, "unpoison-pfn: errno %d", r);
	gmem_dirty_free_pages();
}

/* Moves a VM's pages to the other node and back; guest and host read and write in between. */
static inline void nodes(u32 type)
{
	struct hz h;
	int node, i;

	mg_create(&h, type, NPAGES, GMEM_MOVABLE, 1);
	host_fill(&h, 0, NPAGES, GMEM_SEED(0));
	node = node_of(hz_hva(&h, 0));
	for (i = 1; i <= 4; i++) {
		guest_sees(&h, 0, NPAGES, GMEM_SEED(i - 1));
		node = !node;
		moves(&h, 0, NPAGES, node);
		/* A stale mapping of an old page would show these bytes. */
		gmem_dirty_free_pages();
		guest_sees(&h, 0, NPAGES, GMEM_SEED(i - 1));
		host_sees(&h, 0, NPAGES, GMEM_SEED(i - 1));
		if (i & 1) {
			guest_fill(&h, 0, NPAGES, GMEM_SEED(i));
			host_sees(&h, 0, NPAGES, GMEM_SEED(i));
		} else {
			host_fill(&h, 0, NPAGES, GMEM_SEED(i));
			guest_sees(&h, 0, NPAGES, GMEM_SEED(i));
		}
	}
	mg_destroy(&h);
}

/* Skips the whole program where pages of ordinary VMs cannot move. */
static inline void gmem_require_moves(void)
{
	struct kvm_vm *vm;
	u64 flags;

#ifdef __x86_64__
	gmem_require_in_place();
#endif
	vm = vm_create_barebones();
	flags = vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS);
	kvm_vm_free(vm);
	__TEST_REQUIRE(flags & GUEST_MEMFD_FLAG_MIGRATABLE,
		       "no pages of ordinary VMs move here (GUEST_MEMFD_FLAG_MIGRATABLE)");
}

#endif /* SELFTEST_KVM_GMEM_MOVE_H */
