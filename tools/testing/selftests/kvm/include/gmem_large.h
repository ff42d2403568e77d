/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A VM whose memory in a guest_memfd can be mapped 2M at a time, for the tests of
 * large mappings and of large folios.
 */
#ifndef SELFTEST_KVM_GMEM_LARGE_H
#define SELFTEST_KVM_GMEM_LARGE_H

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <linux/kernel.h>

#include <sys/mman.h>

#include "gmem_move.h"

#define BLOCK		((u64)SZ_2M)
#define PAGES		(BLOCK / PG)
/*
 * More faults than the guest's own page tables take, and fewer than a block takes that
 * is mapped page by page, or sixteen pages at a time.
 */
#define FEW		24
/* Bytes to compare: enough to tell pages apart, also if one is shifted. */
#define SOME		64
/* Pages at the borders of the block, and of words and nodes of the attribute map. */
static const u64 borders[] = { 0, 1, 63, 64, 255, 256, 510, 511 };

/* An offset in the page, another one in each page. */
static inline u64 some_at(u64 page)
{
	return OFF(page) + (page * 192 + 7) % (PG - SOME);
}

/* Programs that need more define it before. */
#ifndef LG_VCPUS
#define LG_VCPUS	1
#endif

/* A VM with a file, a part of which is in a memslot. Page numbers count in the file. */
struct lg {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[LG_VCPUS];
	struct gmem_area a;
	/* The host's mapping of the whole file. */
	u8 *file;
};

#ifdef __x86_64__
/* How many mappings of 2M there are. */
static inline u64 large(struct lg *l)
{
	return vm_get_stat(l->vm, pages_2m);
}

static inline u64 faults(struct lg *l)
{
	return vcpu_get_stat(l->vcpus[0], pf_taken);
}

/* Pages that are mapped give no faults. */
#define few_faults_since(l, before)						\
	TEST_ASSERT(faults(l) - (before) < FEW, "%lu faults on mapped pages", faults(l) - (before))
#else
static inline FILE *lg_stage2(struct kvm_vm *vm)
{
	char path[64];

	TEST_ASSERT(hz_have_debugfs(), "No debugfs");
	snprintf(path, sizeof(path), DEBUGFS "/kvm/%d-%d/stage2_page_tables", getpid(), vm->fd);
	return fopen(path, "r");
}

/* There is no statistic on arm64. The blocks of the slot are counted in the page table. */
static inline u64 large(struct lg *l)
{
	FILE *f = lg_stage2(l->vm);
	u64 start, end, sum = 0;
	char line[256];

	TEST_ASSERT(f, "stage2_page_tables: errno %d", errno);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) != 2 || !strstr(line, " BLK"))
			continue;
		start = max(start, (u64)l->a.gpa);
		end = min(end, (u64)(l->a.gpa + l->a.size));
		sum += start < end ? end - start : 0;
	}
	fclose(f);
	TEST_ASSERT(!(sum % BLOCK), "%#lx bytes in blocks", sum);
	return sum / BLOCK;
}

/* Faults are not counted. What the page table has mapped gives none. */
#define faults(l)			0ul
#define few_faults_since(l, before)	((void)(before))
#endif

#define large_is(l, want)							\
do {										\
	u64 __got = large(l), __want = (want);					\
										\
	TEST_ASSERT(__got == __want, "%lu mappings of 2M, wanted %lu", __got, __want); \
} while (0)

/* Statistics of blocks since the VM was created. */
#define became(l, what, want)							\
	TEST_ASSERT_EQ(vm_get_stat((l)->vm, gmem_blocks_##what), want)

/* The values of fdinfo, in pages. */
static inline u64 pages_of(struct lg *l, const char *key)
{
	char path[64], line[256], format[64];
	unsigned long bytes = ~0ul;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", l->a.fd);
	snprintf(format, sizeof(format), "gmem-%s: %%lu", key);
	f = fopen(path, "r");
	TEST_ASSERT(f, "%s cannot be read", path);
	while (fgets(line, sizeof(line), f))
		sscanf(line, format, &bytes);
	fclose(f);
	TEST_ASSERT(bytes != ~0ul, "No gmem-%s in %s", key, path);
	return bytes / PG;
}

#define allocated(l)	pages_of(l, "allocated")

/* How much is contiguous, and how much of that can be mapped large. */
#define blocks_are(l, contiguous, large)					\
do {										\
	TEST_ASSERT_EQ(pages_of(l, "contiguous"), (contiguous) * PAGES);	\
	TEST_ASSERT_EQ(pages_of(l, "large"), (large) * PAGES);			\
} while (0)

static inline gpa_t gpa_of(struct lg *l, u64 page)
{
	return l->a.gpa + OFF(page) - l->a.file_offset;
}

/*
 * A VM of @type with a file of @npages, whose pages [@first, @npages) are at @gpa. Its first
 * vCPU runs.
 */
static inline void lg_create(struct lg *l, u32 type, u64 npages, u64 flags, gpa_t gpa, u64 first,
		      u64 hva_off)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = type };
	u8 *mem;
	u64 i;

	memset(l, 0, sizeof(*l));
	l->vm = __vm_create_with_vcpus(shape, LG_VCPUS, npages, gmem_guest_code, l->vcpus);
	for (i = 0; i < LG_VCPUS; i++)
		vcpu_args_set(l->vcpus[i], 1, i);
	gmem_install_sigbus_handler();

	l->a.vm = l->vm;
	l->a.slot = GMEM_SLOT;
	l->a.gpa = gpa;
	l->a.size = OFF(npages - first);
	l->a.file_offset = OFF(first);
	l->a.fd = vm_create_guest_memfd(l->vm, OFF(npages), flags);

	/* The slot's memory, at hva_off behind an aligned address. */
	mem = kvm_mmap(OFF(npages) + 2 * BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	mem = (u8 *)(((u64)mem + BLOCK - 1) & ~(BLOCK - 1)) + hva_off;
	l->file = mmap(mem, OFF(npages), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, l->a.fd, 0);
	TEST_ASSERT(l->file == mem, "mmap(): errno %d", errno);
	l->a.hva = l->file + OFF(first);

	gmem_area_bind(&l->a);
	gmem_area_virt_map(&l->a);
	gmem_guest_start(l->vcpus[0]);
	large_is(l, 0);
}

static inline void lg_destroy(struct lg *l)
{
	/* A file that is mapped keeps its VM, and that its place in debugfs. */
	kvm_munmap(l->file, l->a.file_offset + l->a.size);
	kvm_vm_free(l->vm);
	kvm_close(l->a.fd);
}

static inline void allocate(struct lg *l, u64 page, u64 n)
{
	gmem_allocate_blocks(l->a.fd, OFF(page), OFF(n));
}

static inline void g_write(struct lg *l, u64 page, u64 n, u32 pattern)
{
	u64 i;

	for (i = page; i < page + n; i++)
		gmem_guest_fill(l->vcpus[0], gpa_of(l, 0) + some_at(i), SOME, pattern, some_at(i));
}

#define g_sees(l, page, n, pattern)						\
do {										\
	u64 __i, __first = (page), __n = (n);					\
										\
	for (__i = __first; __i < __first + __n; __i++)				\
		gmem_guest_assert((l)->vcpus[0], gpa_of(l, 0) + some_at(__i), SOME, \
				  pattern, some_at(__i));			\
} while (0)

#define h_sees(l, page, n, pattern)						\
do {										\
	u64 __i, __first = (page), __n = (n);					\
										\
	for (__i = __first; __i < __first + __n; __i++)				\
		gmem_host_assert((l)->file + some_at(__i), SOME, pattern, some_at(__i)); \
} while (0)

static inline void touch(struct lg *l, u64 page)
{
	gmem_guest_read(l->vcpus[0], gpa_of(l, page));
}

/* A block with bytes that the guest has in one mapping. */
static inline void lg_filled(struct lg *l, u64 page, u32 pattern)
{
	u64 before;

	allocate(l, page, PAGES);
	gmem_guest_write(l->vcpus[0], gpa_of(l, page + 3), 1);
	large_is(l, 1);
	before = faults(l);
	g_write(l, page, PAGES, pattern);
	few_faults_since(l, before);
	large_is(l, 1);
	blocks_are(l, 1, 1);
}

static inline void to(struct lg *l, u64 page, u64 n, u64 attributes)
{
	gmem_convert(l->a.fd, OFF(page), OFF(n), attributes, GMEM_PRESERVE);
}

/* KVM_MAP_MEMORY; returns the errno, and checks what is left. */
static inline int map_memory(struct lg *l, u64 page, u64 n, u64 *left)
{
	struct kvm_memory_mapping args = {
		.base_address = gpa_of(l, page),
		.size = OFF(n),
	};
	int i, r;

	gmem_want_blocks();
	for (i = 0; i < GMEM_MAX_RETRIES; i++) {
		r = gmem_ioctl(l->vcpus[0]->fd, KVM_MAP_MEMORY, &args);
		TEST_ASSERT(args.base_address + args.size == gpa_of(l, page + n) &&
			    args.size <= OFF(n), "%#llx + %#llx is left", args.base_address, args.size);
		if (!args.size || (r && r != EAGAIN && r != EINTR))
			break;
	}
	*left = args.size;
	return r;
}

#define maps(l, page, n)							\
do {										\
	u64 __left;								\
	int __r = map_memory(l, page, n, &__left);				\
										\
	TEST_ASSERT(!__r && !__left, "errno %d, %#lx left", __r, __left);	\
} while (0)

/* The block's memory has failed in a page. Its other pages have their bytes, and small mappings. */
static inline void only_one_fails(struct lg *l, u64 page, u32 seed)
{
	int r;

	g_sees(l, 0, page, seed);
	g_sees(l, page + 1, PAGES - page - 1, seed);
	h_sees(l, 0, page, seed);
	h_sees(l, page + 1, PAGES - page - 1, seed);
	large_is(l, 0);
	r = __gmem_guest_do(l->vcpus[0], GMEM_OP_READ, gpa_of(l, page), 1, 0, 0, 0);
	TEST_ASSERT(r == -EHWPOISON, "The guest's read: %d", r);
}

/* Page 300 fails before anybody has used the file's first block: the first use does not touch it. */
static inline void fails_unused(struct lg *l)
{
	int r;

	allocate(l, 0, PAGES);
	r = poison_mapped(l->file + OFF(300));
	TEST_ASSERT(!r, "MADV_HWPOISON: errno %d (%s)", r, strerror(r));
	touch(l, 5);
	large_is(l, 0);
	g_write(l, 0, 300, GMEM_SEED(1));
	g_write(l, 301, PAGES - 301, GMEM_SEED(1));
	large_is(l, 0);
	h_sees(l, 0, 300, GMEM_SEED(1));
	h_sees(l, 301, PAGES - 301, GMEM_SEED(1));
}

/* Makes allocations of contiguous memory fail from now on, or succeed again. */
static inline bool refuse_blocks(bool refuse)
{
	static const char dir[] = DEBUGFS "/fail_page_alloc/";
	char path[128];
	const struct { const char *file; long value; } set[] = {
		{ "ignore-gfp-wait", 0 }, { "ignore-gfp-highmem", 0 }, { "min-order", 9 },
		{ "task-filter", 0 }, { "verbose", 0 }, { "times", -1 },
		{ "probability", refuse ? 100 : 0 },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(set); i++) {
		snprintf(path, sizeof(path), "%s%s", dir, set[i].file);
		if (hz_write_file(path, "%ld", set[i].value))
			return false;
	}
	return true;
}

#endif /* SELFTEST_KVM_GMEM_LARGE_H */
