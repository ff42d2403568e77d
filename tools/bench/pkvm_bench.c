// SPDX-License-Identifier: GPL-2.0
/*
 * The cost of passing pages between a protected guest on arm64 and its VMM, in
 * instructions: in place and through a bounce buffer.
 *
 * To be run under QEMU's "-icount shift=0" with one CPU: an instruction is a
 * nanosecond of virtual time then, and the counter ticks once in several of
 * them. In place, the guest shares each page, which is an exit, and user space
 * converts the page and reads it; and back. Without exits, the guest shares all
 * pages, and they are converted together. The bounce buffer is memory outside of
 * guest_memfd that the guest has shared once: the guest copies, and user space
 * reads; and back. What giving pages to the guest for the first time costs is
 * measured with KVM_MAP_MEMORY, without the guest's exits.
 *
 * Lines that start with "bench," are figures: name, unit, minimum, median,
 * maximum of the repetitions.
 */
#include <stdio.h>
#include <stdlib.h>

#include "gmem_pkvm.h"

#define REPS	5
/* Reads a page of words; the compiler must not omit the loads. */
#define WORDS	(PG / sizeof(u64))

static u64 ns_per_tick;

static inline u64 now(void)
{
	u64 ticks;

	asm volatile("isb\n\tmrs %0, cntvct_el0" : "=r"(ticks) :: "memory");
	return ticks;
}

/*
 * Two million instructions by construction. Anything else means that the
 * figures are not instructions, and then there are none.
 */
static void calibrate(void)
{
	u64 frequency, start, count = 1000000, passed;

	asm volatile("mrs %0, cntfrq_el0" : "=r"(frequency));
	ns_per_tick = 1000000000ull / frequency;
	start = now();
	asm volatile("1: subs %0, %0, #1\n\tb.ne 1b" : "+r"(count) :: "cc");
	passed = (now() - start) * ns_per_tick;
	printf("# calibration: 2000000 instructions took %lu ns\n", passed);
	/* A timer interrupt or two may come in between. */
	if (passed < 1999000 || passed > 2040000) {
		fprintf(stderr, "The counter does not count instructions: is this \"-icount shift=0\"?\n");
		exit(KSFT_FAIL);
	}
}

static int by_value(const void *a, const void *b)
{
	const u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static void figure(const char *name, u64 *ticks)
{
	const double per_page = (double)ns_per_tick / NPAGES;

	qsort(ticks, REPS, sizeof(*ticks), by_value);
	printf("bench,%s,page,%.1f,%.1f,%.1f\n", name, ticks[0] * per_page,
	       ticks[REPS / 2] * per_page, ticks[REPS - 1] * per_page);
}

static u64 read_words(const volatile u64 *mem)
{
	u64 i, sum = 0;

	for (i = 0; i < NPAGES * WORDS; i++)
		sum += mem[i];
	return sum;
}

static void write_words(volatile u64 *mem, u64 value)
{
	u64 i;

	for (i = 0; i < NPAGES * WORDS; i++)
		mem[i] = value;
}

static void copy(struct cpu *c, gva_t to, gva_t from)
{
	c->cmd->op = GMEM_OP_COPY;
	c->cmd->gpa = to;
	c->cmd->pos = from;
	c->cmd->size = NPAGES * PG;
	TEST_ASSERT(cpu_run(c), "The guest does not copy");
}

static void in_place(struct pvm *p, u64 *there, u64 *back)
{
	struct cpu *c = &p->cpu[0];
	u64 start;

	start = now();
	cpu_share(c, 0, NPAGES * PG);
	if (!p->exits)
		gmem_convert(p->fd, 0, NPAGES * PG, GMEM_SHARED, GMEM_PRESERVE);
	read_words((u64 *)p->mem);
	*there = now() - start;

	start = now();
	write_words((u64 *)p->mem, start);
	if (!p->exits)
		gmem_convert(p->fd, 0, NPAGES * PG, GMEM_PRIVATE, GMEM_PRESERVE);
	cpu_unshare(c, 0, NPAGES * PG);
	*back = now() - start;
}

static void measure_in_place(const char *there_name, const char *back_name, bool exits)
{
	u64 there[REPS + 1], back[REPS + 1];
	struct pvm p;
	int i;

	pvm_create(&p, GUEST_MEMFD_FLAG_MMAP, exits);
	cpu_start(&p.cpu[0]);
	cpu_fill(&p.cpu[0], 0, NPAGES * PG, GMEM_SEED(1));
	/* The first round finds page tables and caches empty. */
	for (i = 0; i <= REPS; i++)
		in_place(&p, &there[i], &back[i]);
	figure(there_name, there + 1);
	figure(back_name, back + 1);
	pvm_destroy(&p);
}

static void bounced(struct cpu *c, gva_t own, gva_t bounce, u64 *hva, u64 *there, u64 *back)
{
	u64 start;

	start = now();
	copy(c, bounce, own);
	read_words(hva);
	*there = now() - start;

	start = now();
	write_words(hva, start);
	copy(c, own, bounce);
	*back = now() - start;
}

static void measure_bounce_buffer(void)
{
	u64 there[REPS + 1], back[REPS + 1], *hva;
	gva_t own, bounce;
	gpa_t bounce_gpa;
	struct pvm p;
	struct cpu *c = &p.cpu[0];
	int i;

	pvm_create(&p, GUEST_MEMFD_FLAG_MMAP, false);
	own = vm_alloc_pages(p.vm, NPAGES);
	bounce = vm_alloc_pages(p.vm, NPAGES);
	/* Translated before the guest owns the page tables. */
	hva = addr_gva2hva(p.vm, bounce);
	bounce_gpa = addr_gva2gpa(p.vm, bounce);
	cpu_start(c);
	c->cmd->op = GMEM_OP_SHARE;
	c->cmd->gpa = bounce_gpa;
	c->cmd->size = NPAGES * PG;
	TEST_ASSERT(cpu_run(c) && !c->cmd->value, "No bounce buffer: %ld", (long)c->cmd->value);

	for (i = 0; i <= REPS; i++)
		bounced(c, own, bounce, hva, &there[i], &back[i]);
	figure("pkvm/to-host/bounce-buffer", there + 1);
	figure("pkvm/to-guest/bounce-buffer", back + 1);
	pvm_destroy(&p);
}

/* Pages become the guest's that were allocated and never used. Each round has a VM. */
static void measure_donation(void)
{
	u64 ticks[REPS + 1], left;
	struct pvm p;
	int i, r;

	for (i = 0; i <= REPS; i++) {
		pvm_create(&p, GUEST_MEMFD_FLAG_MMAP, false);
		cpu_start(&p.cpu[0]);
		assert_errno(gmem_allocate(p.fd, 0, NPAGES * PG), 0);
		ticks[i] = now();
		r = map_memory(&p.cpu[0], 0, NPAGES * PG, &left);
		ticks[i] = now() - ticks[i];
		TEST_ASSERT(!r && !left, "KVM_MAP_MEMORY: errno %d, %lu pages left", r, left);
		pvm_destroy(&p);
	}
	figure("pkvm/donate/map-memory", ticks + 1);
}

int main(void)
{
	calibrate();
	measure_in_place("pkvm/to-host/in-place", "pkvm/to-guest/in-place", true);
	measure_in_place("pkvm/to-host/in-place-untold", "pkvm/to-guest/in-place-untold", false);
	measure_bounce_buffer();
	measure_donation();
	return 0;
}
