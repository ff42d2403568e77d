// SPDX-License-Identifier: GPL-2.0
/*
 * The content contract of guest_memfd's in-place conversion: every platform,
 * phase, direction, policy and state of a page. The guarantees of the contract are
 * written down here a second time, by hand.
 *
 * SW_PROTECTED is not simulated. SNP and TDX are the kernel's software models
 * (CONFIG_KVM_GMEM_EMULATION) under the vendor code that also drives the hardware.
 * TDX runs a second time below KVM's mirrored page table, and SNP under KVM's own
 * code on simulated hardware (CONFIG_KVM_SNP_SIMULATION). Without the model or
 * simulation these tests are skipped with that reason.
 */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>

#include "gmem_platform.h"

kvm_static_assert(sizeof(struct kvm_gmem_emulate) == 64);
kvm_static_assert(KVM_GMEM_EMULATE == 0xC040AED6);

/* --- Platforms and phases ------------------------------------------------ */

enum phase {
	BEFORE_LAUNCH,
	AFTER_LAUNCH,
};

/* --- The contract --------------------------------------------------------- */

enum state {
	S_NEVER,	/* shared, never allocated */
	S_FALLOC,	/* shared, fallocated, never used */
	S_READ,		/* shared, the host has read it: allocated, zeroes */
	S_HOST,		/* shared, written by the host */
	S_GUEST,	/* shared, written by the guest */
	P_NEVER,	/* private, never allocated */
	P_FALLOC,	/* private, fallocated, never used */
	P_HOST,		/* private, never mapped, written by the host while shared */
	P_READ,		/* private, the guest has read it */
	P_GUEST,	/* private, written by the guest */
	P_LOADED,	/* private, given to the guest by the launch */
	S_POISON,	/* shared, written by the host, poisoned */
	P_POISON,	/* the same made private */
	NR_STATES,
};

static const struct {
	const char *name;
	bool private;
	bool needs_guest;
	bool unused;
} states[NR_STATES] = {
	[S_NEVER]  = { "shared, never allocated", .unused = true },
	[S_FALLOC] = { "shared, fallocated and untouched", .unused = true },
	[S_READ]   = { "shared, untouched but for a read" },
	[S_HOST]   = { "shared, written by host" },
	[S_GUEST]  = { "shared, written by guest", .needs_guest = true },
	[P_NEVER]  = { "private, never allocated", .private = true, .unused = true },
	[P_FALLOC] = { "private, fallocated and untouched", .private = true,
		       .unused = true },
	[P_HOST]   = { "private, never mapped, host's bytes", .private = true },
	[P_READ]   = { "private, mapped by guest", .private = true, .needs_guest = true },
	[P_GUEST]  = { "private, written by guest", .private = true, .needs_guest = true },
	[P_LOADED] = { "private, given by the launch", .private = true },
	[S_POISON] = { "shared, poisoned" },
	[P_POISON] = { "private, poisoned", .private = true },
};

/*
 * The expected result for a page. A row has the two directions, to private and to
 * shared, and in each the policies PRESERVE, ZERO and NONE. An entry is either
 *
 *   EO	EOPNOTSUPP because of this page,
 *   EH	EHWPOISON because of this page,
 *
 * which leaves the whole range as it was; or what the host and the guest then read.
 * The host reads when the page is shared. If it became private, the host reads after
 * PRESERVE has made it shared again, with no access in between:
 *
 *   p	the bytes that were written, or zeroes if none were,
 *   0	zeroes,
 *   x	0xab everywhere,
 *   k	p, as the other side of an encrypting platform reads them,
 *   z	zeroes, as the other side of an encrypting platform reads them,
 *   *	no promise: p, k, 0 or z, nothing else,
 *   ~	no promise, but not p either: the guest's bytes in the clear,
 *   !	nothing, the page is poisoned,
 *   -	the host cannot read: PRESERVE to shared is EOPNOTSUPP.
 *
 * The guest reads the page as the request left it. Where a platform takes a private
 * page at the guest's first touch, this touch changes how its bytes read (SNP: k and
 * z) or clears them (TDX: 0). That is after the request, and not a part of the
 * contract. The expected bytes are those of the models.
 *
 * The phase decides which states are possible, not what is promised about them: the
 * table is the same before and after launch.
 */
static const char * const contract[NR_PLATFORMS][NR_STATES] = {
	[SW_PROTECTED] = {
		[S_NEVER]  = "00 00 00|00 00 00",
		[S_FALLOC] = "00 00 00|00 00 00",
		[S_READ]   = "00 00 xx|00 00 xx",
		[S_HOST]   = "pp 00 xx|pp 00 xx",
		[S_GUEST]  = "pp 00 xx|pp 00 xx",
		[P_NEVER]  = "00 00 00|00 00 00",
		[P_FALLOC] = "00 00 00|00 00 00",
		[P_HOST]   = "pp 00 xx|pp 00 xx",
		[P_READ]   = "00 00 xx|00 00 xx",
		[P_GUEST]  = "pp 00 xx|pp 00 xx",
		[S_POISON] = "!! EH EH|!! EH EH",
		[P_POISON] = "!! EH EH|!! EH EH",
	},
	[SNP] = {
		[S_NEVER]  = "0z 0z 0z|00 00 00",
		[S_FALLOC] = "0z 0z 0z|00 00 00",
		[S_READ]   = "0z 0z **|00 00 **",
		[S_HOST]   = "pk 0z **|pp 00 **",
		[S_GUEST]  = "pk 0z **|pp 00 **",
		[P_NEVER]  = "0z 0z 0z|00 00 00",
		[P_FALLOC] = "0z 0z 0z|00 00 00",
		[P_HOST]   = "pk 0z **|pp 00 **",
		[P_READ]   = "0z EO 0z|00 00 **",
		[P_GUEST]  = "kp EO kp|kk 00 ~~",
		[P_LOADED] = "kp EO kp|kk 00 ~~",
		[S_POISON] = "!! EH !!|!! EH !!",
		[P_POISON] = "!! EH !!|!! EH !!",
	},
	[TDX] = {
		[S_NEVER]  = "00 00 00|00 00 00",
		[S_FALLOC] = "00 00 00|00 00 00",
		[S_READ]   = "00 00 *0|00 00 **",
		[S_HOST]   = "p0 00 *0|pp 00 **",
		[S_GUEST]  = "p0 00 *0|pp 00 **",
		[P_NEVER]  = "00 00 00|00 00 00",
		[P_FALLOC] = "00 00 00|00 00 00",
		[P_HOST]   = "p0 00 *0|pp 00 **",
		[P_READ]   = "-0 EO -0|EO 00 **",
		[P_GUEST]  = "-p EO -p|EO 00 ~~",
		[P_LOADED] = "-p EO -p|EO 00 ~~",
		[S_POISON] = "!! EH !!|!! EH !!",
		[P_POISON] = "!! EH !!|!! EH !!",
	},
	[TDX_ZEROES] = {
		[S_NEVER]  = "00 00 00|00 00 00",
		[S_FALLOC] = "00 00 00|00 00 00",
		[S_READ]   = "00 00 *0|00 00 **",
		[S_HOST]   = "p0 00 *0|pp 00 **",
		[S_GUEST]  = "p0 00 *0|pp 00 **",
		[P_NEVER]  = "00 00 00|00 00 00",
		[P_FALLOC] = "00 00 00|00 00 00",
		[P_HOST]   = "p0 00 *0|pp 00 **",
		[P_READ]   = "-0 EO -0|EO 00 **",
		[P_GUEST]  = "-p EO -p|EO 00 ~~",
		[P_LOADED] = "-p EO -p|EO 00 ~~",
		[S_POISON] = "!! EH !!|!! EH !!",
		[P_POISON] = "!! EH !!|!! EH !!",
	},
};

/* The literal values of the two FLAGS capabilities, the same in both phases. */
static const u32 announced[NR_PLATFORMS] = {
	[SW_PROTECTED]	= 0x030303,
	[SNP]		= 0x030303,
	[TDX]		= 0x030101,
	[TDX_ZEROES]	= 0x030101,
	[TDX_MIRROR]	= 0x030101,
	[SNP_SIMULATED]	= 0x030303,
};

#define NR_POLICIES	ARRAY_SIZE(policies)
#define NR_DIRECTIONS	ARRAY_SIZE(directions)

struct outcome {
	int err;
	char host;
	char guest;
};

static struct outcome outcome_of(enum platform platform, enum state state,
				 u32 direction, u32 policy, bool scrambles)
{
	/* The mirrored page table changes nothing, and a model's promises are the hardware's. */
	enum platform promised = platform == TDX_MIRROR ? TDX :
				 platform == SNP_SIMULATED ? SNP : platform;
	const char *row = contract[promised][state];
	struct outcome o = {};
	const char *entry;

	TEST_ASSERT(row && strlen(row) == 17, "No row for '%s' on %s",
		    states[state].name, platforms[platform].name);

	/* Without scrambling, SW_PROTECTED does not change contents under NONE. */
	if (platform == SW_PROTECTED && policies[policy] == GMEM_NONE && !scrambles)
		policy = 0;

	entry = row + 9 * direction + 3 * policy;
	if (entry[0] == 'E')
		o.err = entry[1] == 'O' ? EOPNOTSUPP : EHWPOISON;
	o.host = entry[0];
	o.guest = entry[1];
	return o;
}

/* PRESERVE to the attribute that a page already has does not change it. */
static struct outcome outcome_unchanged(enum platform platform, enum state state)
{
	return outcome_of(platform, state, states[state].private ? 0 : 1, 0, true);
}

/* --- Cells ----------------------------------------------------------------- */

/* The pages of a range: of one state, or of several. */
static const struct kind {
	const char *name;
	u32 nr;
	enum state state[NR_STATES];
} mixtures[] = {
	{
		"mixed range, none owned", 8,
		{ S_NEVER, P_HOST, S_FALLOC, S_READ, P_NEVER, S_HOST, P_FALLOC, S_GUEST }
	}, {
		"mixed range, some owned", 7,
		{ S_HOST, P_HOST, S_NEVER, P_NEVER, P_READ, P_GUEST, P_LOADED }
	},
};

#define NR_KINDS	(NR_STATES + ARRAY_SIZE(mixtures))
#define NR_CELLS	(NR_KINDS * NR_DIRECTIONS * NR_POLICIES)

/* After the request, the host reads one of the pages first, and the guest the other. */
#define PAGES_PER_STATE	2

/*
 * Where a cell lies in the file: a page before and one behind the range have
 * the opposite of the requested attributes and the host's bytes, so that a
 * request that does too much is seen.
 */
struct cell {
	const char *name;
	u32 direction;
	u32 policy;
	u32 seed;
	u32 nr;
	enum state state[NR_STATES];
	u64 first;	/* of the range */
	u64 npages;	/* of the range */
	int err;	/* what is expected, and of which page */
	u64 err_page;
	struct outcome outcome[NR_STATES];
	u64 healed;	/* bits: pages that failed, and that a hole has replaced */
};

struct table {
	enum platform platform;
	enum phase phase;
	bool scrambles;
	bool block;	/* the file is 2 MiB of contiguous memory, with the same results */
	bool folio;	/* and one folio until the first of the pages is converted */
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct gmem_area a;
	struct cell cells[NR_CELLS];
	u32 nr_cells;
	u32 nr_impossible;
	u32 nr_unavailable;
	u64 npages;
	/* A direction and policy that all pages not yet there were granted. */
	bool granted[NR_DIRECTIONS][NR_POLICIES];
	u32 errors;
};

/* In memory shared by the processes of all variants. */
static struct {
	atomic_uint run;
	atomic_uint impossible;
	atomic_uint unavailable;
} *totals;

/* A wrong cell does not end the test: the others are checked, too. */
static __printf(3, 4)
void cell_error(struct table *t, struct cell *c, const char *fmt, ...)
{
	char what[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	t->errors++;
	ksft_print_msg("WRONG %s, %s, to %s, %s, %s: %s\n",
		       platforms[t->platform].name,
		       t->phase == BEFORE_LAUNCH ? "before launch" : "after launch",
		       directions[c->direction] ? "private" : "shared",
		       policy_names[c->policy], c->name, what);
}

static bool can_poison(void)
{
	u8 *mem = kvm_mmap(PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	int r = madvise(mem, 0, MADV_HWPOISON);

	kvm_munmap(mem, PG);
	return !r;
}

/* Why a page in this state is not possible, or NULL. */
static const char *why_impossible(struct table *t, enum state state)
{
	if (states[state].needs_guest && t->phase == BEFORE_LAUNCH)
		return "no guest runs before launch";
	if (state == P_LOADED && t->platform == SW_PROTECTED)
		return "SW_PROTECTED has no launch that takes pages";
	if (states[state].unused && t->folio)
		return "the first use of a page is that of its folio";
	return NULL;
}

static const char *why_unavailable(enum state state)
{
	if ((state == S_POISON || state == P_POISON) && !can_poison())
		return "madvise(MADV_HWPOISON) needs CONFIG_MEMORY_FAILURE and root";
	return NULL;
}

static u64 cell_page(struct cell *c, u64 i)
{
	return c->first + i;
}

static u64 guard_page(struct cell *c, int guard)
{
	return guard ? c->first + c->npages : c->first - 1;
}

static const u32 guard_seed = GMEM_SEED(0x77);

/* The pages of each cell, and the expected result. */
static void plan_cell(struct table *t, const char *name, u32 nr, const enum state *state,
		      u32 direction, u32 policy)
{
	struct cell *c = &t->cells[t->nr_cells];
	struct outcome o;
	u32 i;

	c->name = name;
	c->direction = direction;
	c->policy = policy;
	c->seed = GMEM_SEED(t->nr_cells + 1);
	c->nr = 0;
	for (i = 0; i < nr; i++) {
		/* A mixture of fewer states also counts as mixed. */
		if (why_impossible(t, state[i]))
			continue;
		c->state[c->nr++] = state[i];
	}
	c->npages = c->nr * PAGES_PER_STATE;
	c->first = t->npages + 1;
	t->npages += c->npages + 2;

	for (i = 0; i < c->nr && !c->err; i++) {
		o = outcome_of(t->platform, c->state[i], direction, policy, t->scrambles);
		c->err = o.err;
		c->err_page = cell_page(c, i * PAGES_PER_STATE);
	}
	for (i = 0; i < c->nr; i++)
		c->outcome[i] = c->err ? outcome_unchanged(t->platform, c->state[i]) :
				outcome_of(t->platform, c->state[i], direction, policy,
					   t->scrambles);
	t->nr_cells++;
}

static void plan_kind(struct table *t, const char *name, u32 nr, const enum state *state)
{
	const char *impossible = NULL, *unavailable = NULL;
	u32 d, p;

	if (nr == 1) {
		impossible = why_impossible(t, *state);
		unavailable = why_unavailable(*state);
	}
	if (impossible) {
		t->nr_impossible += NR_DIRECTIONS * NR_POLICIES;
		ksft_print_msg("6 cells cannot exist: %s: %s\n", name, impossible);
		return;
	}
	if (unavailable) {
		t->nr_unavailable += NR_DIRECTIONS * NR_POLICIES;
		ksft_print_msg("6 cells NOT RUN here: %s: %s\n", name, unavailable);
		return;
	}
	for (d = 0; d < NR_DIRECTIONS; d++) {
		for (p = 0; p < NR_POLICIES; p++)
			plan_cell(t, name, nr, state, d, p);
	}
}

static void plan_table(struct table *t)
{
	enum state s;
	u32 i;

	for (s = 0; s < NR_STATES; s++)
		plan_kind(t, states[s].name, 1, &s);
	for (i = 0; i < ARRAY_SIZE(mixtures); i++)
		plan_kind(t, mixtures[i].name, mixtures[i].nr, mixtures[i].state);

	TEST_ASSERT_EQ(t->nr_cells + t->nr_impossible + t->nr_unavailable, NR_CELLS);
}

static void prepare_page(struct table *t, struct cell *c, enum state state, u64 page)
{
	u64 offset = OFF(page), gpa = t->a.gpa + offset;
	u8 *hva = t->a.hva + offset;
	int fd = t->a.fd, r;
	u8 byte = 0xff;

	switch (state) {
	case S_NEVER:
		break;
	case S_FALLOC:
		TEST_ASSERT_EQ(gmem_allocate(fd, offset, PG), 0);
		break;
	case S_READ:
		TEST_ASSERT(gmem_host_read(hva, &byte) && !byte,
			    "Fresh shared page gives SIGBUS or 0x%02x", byte);
		break;
	case S_HOST:
		gmem_fill(hva, PG, c->seed, offset);
		break;
	case S_GUEST:
		gmem_guest_fill(t->vcpu, gpa, PG, c->seed, offset);
		break;
	case P_NEVER:
		gmem_convert(fd, offset, PG, GMEM_PRIVATE, GMEM_PRESERVE);
		break;
	case P_FALLOC:
		gmem_convert(fd, offset, PG, GMEM_PRIVATE, GMEM_PRESERVE);
		TEST_ASSERT_EQ(gmem_allocate(fd, offset, PG), 0);
		break;
	case P_HOST:
		gmem_fill(hva, PG, c->seed, offset);
		gmem_convert(fd, offset, PG, GMEM_PRIVATE, GMEM_PRESERVE);
		break;
	case P_READ:
		gmem_convert(fd, offset, PG, GMEM_PRIVATE, GMEM_PRESERVE);
		gmem_guest_read(t->vcpu, gpa);
		break;
	case P_GUEST:
		gmem_convert(fd, offset, PG, GMEM_PRIVATE, GMEM_PRESERVE);
		gmem_guest_fill(t->vcpu, gpa, PG, c->seed, offset);
		break;
	case P_LOADED:
		gmem_fill(hva, PG, c->seed, offset);
		gmem_convert(fd, offset, PG, GMEM_PRIVATE, GMEM_PRESERVE);
		r = launch_in_place(t->platform, t->vm, gpa, PG);
		TEST_ASSERT(!r, "LAUNCH_UPDATE in place: errno %d (%s)", r, strerror(r));
		break;
	case S_POISON:
	case P_POISON:
		gmem_fill(hva, PG, c->seed, offset);
		r = gmem_host_poison(hva);
		TEST_ASSERT(!r, "Poisoning a page: errno %d (%s)", r, strerror(r));
		if (state == P_POISON)
			gmem_convert(fd, offset, PG, GMEM_PRIVATE, GMEM_PRESERVE);
		break;
	default:
		TEST_FAIL("No such state");
	}
}

/* Pages that the launch gives to the guest come before it, all others behind. */
static void prepare(struct table *t, bool loaded)
{
	struct cell *c;
	u64 i;

	for (c = t->cells; c < t->cells + t->nr_cells; c++) {
		for (i = 0; i < c->npages; i++) {
			enum state state = c->state[i / PAGES_PER_STATE];

			if ((state == P_LOADED) == loaded)
				prepare_page(t, c, state, cell_page(c, i));
		}
		for (i = 0; i < 2 && !loaded; i++) {
			u64 offset = OFF(guard_page(c, i));

			gmem_fill(t->a.hva + offset, PG, guard_seed, offset);
			gmem_convert(t->a.fd, offset, PG,
				     directions[c->direction] ^ GMEM_PRIVATE,
				     GMEM_PRESERVE);
		}
	}
}

/* --- Checks ----------------------------------------------------------------- */

/* The patterns that an outcome allows. */
static u32 allowed_patterns(struct cell *c, enum state state, char code, u32 *allowed)
{
	bool written = state == S_HOST || state == S_GUEST || state == P_HOST ||
		       state == P_GUEST || state == P_LOADED;
	u32 p = written ? c->seed : GMEM_ZEROES;
	u32 n = 0;

	if (code == 'p' || code == '*')
		allowed[n++] = p;
	if (code == 'k' || code == '*' || code == '~')
		allowed[n++] = GMEM_KEYED(p);
	if (code == '0' || code == '*' || code == '~')
		allowed[n++] = GMEM_ZEROES;
	if (code == 'z' || code == '*' || code == '~')
		allowed[n++] = GMEM_KEYED(GMEM_ZEROES);
	if (code == 'x')
		allowed[n++] = GMEM_SCRAMBLED;
	TEST_ASSERT(n, "'%c' is no bytes", code);
	return n;
}

static bool finally_private(struct cell *c, u64 i)
{
	if (c->err)
		return states[c->state[i / PAGES_PER_STATE]].private;
	return directions[c->direction];
}

static void host_looks(struct table *t, struct cell *c, u64 i)
{
	enum state state = c->state[i / PAGES_PER_STATE];
	char code = c->outcome[i / PAGES_PER_STATE].host;
	u64 offset = OFF(cell_page(c, i)), bad = 0;
	u8 *hva = t->a.hva + offset;
	u32 allowed[4], nr, n;
	u8 byte;

	if (code == '!' && c->healed & BIT_ULL(i)) {
		if (!gmem_host_read(hva, &byte) || byte)
			cell_error(t, c, "host does not see the page behind the hole %lu", i);
		return;
	}
	if (code == '!') {
		if (!gmem_host_refused(hva))
			cell_error(t, c, "host reaches poisoned page %lu", i);
		return;
	}
	if (!gmem_host_read(hva, &byte)) {
		cell_error(t, c, "host gets SIGBUS at shared page %lu", i);
		return;
	}
	nr = allowed_patterns(c, state, code, allowed);
	for (n = 0; n < nr; n++) {
		bad = gmem_check(hva, PG, allowed[n], offset);
		if (bad == GMEM_ALL_GOOD)
			return;
	}
	cell_error(t, c, "host finds 0x%02x 0x%02x 0x%02x at page %lu + %#lx, wanted '%c'",
		   hva[bad], hva[bad + 1], hva[bad + 2], i, bad, code);
}

static void guest_looks(struct table *t, struct cell *c, u64 i)
{
	enum state state = c->state[i / PAGES_PER_STATE];
	char code = c->outcome[i / PAGES_PER_STATE].guest;
	u64 offset = OFF(cell_page(c, i)), bad = 0;
	gpa_t gpa = t->a.gpa + offset;
	u32 allowed[4], nr, n;
	u8 got = 0;
	int r;

	if (code == '!') {
		r = __gmem_guest_do(t->vcpu, GMEM_OP_READ, gpa, 1, 0, 0, 0);
		if (r != -EHWPOISON)
			cell_error(t, c, "guest reads poisoned page %lu: %d", i, r);
		if (!gmem_host_refused(t->a.hva + offset))
			cell_error(t, c, "host reaches poisoned page %lu", i);
		if (r) {
			/* Only a hole lets the guest complete its access. */
			TEST_ASSERT_EQ(gmem_punch(t->a.fd, offset, PG), 0);
			c->healed |= BIT_ULL(i);
			r = gmem_guest_resume(t->vcpu);
			gmem_guest_ok(t->vcpu, r);
		}
		return;
	}
	nr = allowed_patterns(c, state, code, allowed);
	for (n = 0; n < nr; n++) {
		bad = __gmem_guest_check(t->vcpu, gpa, PG, allowed[n], offset, &got);
		if (bad == GMEM_ALL_GOOD)
			return;
	}
	cell_error(t, c, "guest finds 0x%02x at page %lu + %#lx, wanted '%c'", got, i,
		   bad, code);
}

/*
 * Let the host read a private page that was not accessed since the request: PRESERVE
 * makes it shared again. True if the host has read it.
 */
static bool host_looks_behind(struct table *t, struct cell *c, u64 i)
{
	char code = c->outcome[i / PAGES_PER_STATE].host;
	u64 offset = OFF(cell_page(c, i)), eo;
	int r;

	r = gmem_set(t->a.fd, offset, PG, GMEM_SHARED, GMEM_PRESERVE, &eo);
	if (code == '-') {
		if (r != EOPNOTSUPP || eo != offset ||
		    !gmem_is_private(t->a.fd, offset) ||
		    !gmem_host_refused(t->a.hva + offset))
			cell_error(t, c, "PRESERVE to shared of owned page %lu: %d (%s) at %#lx",
				   i, r, strerror(r), eo);
		return false;
	}
	if (r) {
		cell_error(t, c, "PRESERVE to shared of page %lu: %d (%s) at %#lx", i, r,
			   strerror(r), eo);
		return false;
	}
	host_looks(t, c, i);
	return true;
}

/* --- The request and all that follows from it -------------------------------- */

static void request(struct table *t, struct cell *c)
{
	const u64 start = OFF(c->first), size = OFF(c->npages);
	const u64 to = directions[c->direction];
	u64 eo, want_eo, attributes, run;
	u64 i;
	int r;

	r = gmem_set(t->a.fd, start, size, to, policies[c->policy], &eo);
	want_eo = c->err ? OFF(c->err_page) : GMEM_POISON_OFFSET;
	if (r != c->err || eo != want_eo)
		cell_error(t, c, "errno %d (%s), error_offset %#lx, wanted %d, %#lx; range %#lx",
			   r, strerror(r), eo, c->err, want_eo, start);
	if (c->nr == 1 && states[c->state[0]].private != !!to && r && r != EHWPOISON)
		t->granted[c->direction][c->policy] = false;

	/* The attributes of the range, and that they end where it ends. */
	for (i = 0; i < c->npages; i++) {
		r = gmem_get(t->a.fd, OFF(cell_page(c, i)), &attributes, &run);
		if (r || !!attributes != finally_private(c, i))
			cell_error(t, c, "GET at page %lu: errno %d, attributes %#lx", i, r,
				   attributes);
		if (!r && !c->err && run != OFF(c->npages - i))
			cell_error(t, c, "GET at page %lu: run of %#lx", i, run);
	}
	for (i = 0; i < 2; i++) {
		r = gmem_get(t->a.fd, OFF(guard_page(c, i)), &attributes, NULL);
		if (r || attributes == to)
			cell_error(t, c, "GET at neighbour %lu: errno %d, attributes %#lx", i,
				   r, attributes);
	}

	/* The host's access does not depend on time. */
	for (i = 0; i < c->npages; i++) {
		if (finally_private(c, i) &&
		    !gmem_host_refused(t->a.hva + OFF(cell_page(c, i))))
			cell_error(t, c, "host reaches private page %lu", i);
	}
}

static void all_host_looks(struct table *t)
{
	struct cell *c;
	u64 i;

	for (c = t->cells; c < t->cells + t->nr_cells; c++) {
		for (i = 0; i < c->npages; i++) {
			if (!finally_private(c, i))
				host_looks(t, c, i);
			else if (i % PAGES_PER_STATE == 0)
				host_looks_behind(t, c, i);
		}
	}
}

/* Pages that the host has made shared again do not count any more. */
static void all_guest_looks(struct table *t)
{
	struct cell *c;
	u64 i;

	for (c = t->cells; c < t->cells + t->nr_cells; c++) {
		for (i = 0; i < c->npages; i++) {
			if (!finally_private(c, i) || i % PAGES_PER_STATE ||
			    c->outcome[i / PAGES_PER_STATE].host == '-')
				guest_looks(t, c, i);
			if (finally_private(c, i) && i % PAGES_PER_STATE &&
			    !gmem_host_refused(t->a.hva + OFF(cell_page(c, i))))
				cell_error(t, c, "host reaches private page %lu in the end", i);
		}
	}
}

/* The neighbours, and the owners according to the model. */
static void final_looks(struct table *t)
{
	struct cell *c;
	u64 i, bad, state, eo;
	int r;

	for (c = t->cells; c < t->cells + t->nr_cells; c++) {
		for (i = 0; i < 2; i++) {
			u64 offset = OFF(guard_page(c, i));
			u8 *hva = t->a.hva + offset;

			if (gmem_is_private(t->a.fd, offset) == !!directions[c->direction])
				cell_error(t, c, "neighbour %lu has changed its attribute", i);
			r = gmem_set(t->a.fd, offset, PG, GMEM_SHARED, GMEM_PRESERVE, &eo);
			bad = r ? 0 : gmem_check(hva, PG, guard_seed, offset);
			if (bad != GMEM_ALL_GOOD)
				cell_error(t, c, "neighbour %lu: errno %d, byte %#lx is wrong", i,
					   r, bad);
		}
		for (i = 0; i < c->npages && t->platform != SW_PROTECTED; i++) {
			bool private = gmem_is_private(t->a.fd, OFF(cell_page(c, i)));
			bool owned;

			/* Its folio is gone, or was never given to a platform. */
			if (c->outcome[i / PAGES_PER_STATE].host == '!')
				continue;
			state = gmem_state(t->vm, t->a.gpa + OFF(cell_page(c, i)));
			owned = state != KVM_GMEM_EMULATE_STATE_NONE;
			if (owned != private)
				cell_error(t, c, "page %lu is %s, the model has state %lu", i,
					   private ? "private" : "shared", state);
		}
	}
	/* Simulated hardware has no such counter: the error would be an oops. */
	if (t->platform != SW_PROTECTED && t->platform != SNP_SIMULATED && gmem_destroyed(t->vm, t->a.gpa)) {
		t->errors++;
		ksft_print_msg("WRONG %s: %lu private pages were destroyed\n",
			       platforms[t->platform].name,
			       gmem_destroyed(t->vm, t->a.gpa));
	}
}

/*
 * A bit means that the policy is honoured in this direction for every page that is not
 * yet in the requested state. Poisoned pages and pages that are owned already do not
 * count.
 */
static void check_capability(struct table *t)
{
	static const u32 shifts[] = { 16, 8 };
	u32 value, d, p, both = 0xff;

	value = vm_check_cap(t->vm, t->phase == BEFORE_LAUNCH ?
			     KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS :
			     KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS);
	TEST_ASSERT(value == announced[t->platform], "Capability is %#x, wanted %#x",
		    value, announced[t->platform]);

	for (d = 0; d < NR_DIRECTIONS; d++) {
		u32 bits = value >> shifts[d] & 0xff, granted = 0;

		for (p = 0; p < NR_POLICIES; p++) {
			if (policies[p] != GMEM_NONE && t->granted[d][p])
				granted |= policies[p];
			/* NONE promises nothing, so it is never refused. */
			TEST_ASSERT(policies[p] != GMEM_NONE || t->granted[d][p],
				    "NONE was refused");
		}
		TEST_ASSERT(bits == granted, "To %s, policies %#x are announced and %#x granted",
			    directions[d] ? "private" : "shared", bits, granted);
		both &= granted;
	}
	TEST_ASSERT_EQ(value & 0xff, both);
}

FIXTURE(contract)
{
};

FIXTURE_VARIANT(contract)
{
	enum platform platform;
	enum phase phase;
	bool block, folio;
};

#define CONTRACT_VARIANTS(_name, _platform, ...)				\
FIXTURE_VARIANT_ADD(contract, _name##_before_launch)				\
{										\
	.platform = _platform,							\
	.phase = BEFORE_LAUNCH,							\
	__VA_ARGS__								\
};										\
FIXTURE_VARIANT_ADD(contract, _name##_after_launch)				\
{										\
	.platform = _platform,							\
	.phase = AFTER_LAUNCH,							\
	__VA_ARGS__								\
}

CONTRACT_VARIANTS(sw_protected, SW_PROTECTED);
CONTRACT_VARIANTS(sw_protected_in_a_block, SW_PROTECTED, .block = true);
CONTRACT_VARIANTS(sw_protected_in_a_folio, SW_PROTECTED, .block = true, .folio = true);
CONTRACT_VARIANTS(snp, SNP);
CONTRACT_VARIANTS(tdx, TDX);
CONTRACT_VARIANTS(tdx_that_zeroes, TDX_ZEROES);
CONTRACT_VARIANTS(tdx_mirror, TDX_MIRROR);
CONTRACT_VARIANTS(snp_simulated, SNP_SIMULATED);

FIXTURE_SETUP(contract)
{
}

FIXTURE_TEARDOWN(contract)
{
}

TEST_F_TIMEOUT(contract, every_cell, TIMEOUT)
{
	struct table *t;
	struct cell *c;

	if (!is_available(variant->platform)) {
		atomic_fetch_add(&totals->unavailable, NR_CELLS);
		SKIP(return, GMEM_NO_EMULATION);
	}
	if (variant->folio && !(kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) &
				GUEST_MEMFD_FLAG_LARGE_FOLIOS)) {
		atomic_fetch_add(&totals->unavailable, NR_CELLS);
		SKIP(return, "no large folios here (GUEST_MEMFD_FLAG_LARGE_FOLIOS)");
	}

	t = calloc(1, sizeof(*t));
	TEST_ASSERT(t, "No memory");
	t->platform = variant->platform;
	t->phase = variant->phase;
	t->block = variant->block;
	t->folio = variant->folio;
	t->scrambles = gmem_scrambles();
	memset(t->granted, true, sizeof(t->granted));
	plan_table(t);

	if (t->block) {
		TEST_ASSERT(OFF(t->npages) <= SZ_2M, "%lu pages are not a block", t->npages);
		t->npages = SZ_2M / PG;
	}
	t->vm = create_vm(t->platform, 1, t->npages, &t->vcpu);
	if (t->folio)
		gmem_area_create(&t->a, t->vm, GMEM_SLOT, GMEM_GPA, OFF(t->npages),
				 GMEM_MMAP_SHARED | GUEST_MEMFD_FLAG_LARGE_FOLIOS);
	else
		area_create(t->platform, &t->a, t->vm, OFF(t->npages));
	gmem_dirty_free_pages();
	if (t->block) {
		gmem_allocate_blocks(t->a.fd, 0, SZ_2M);
		TEST_ASSERT_EQ(t->folio ? vm_get_stat(t->vm, gmem_folios_made) :
					  vm_get_stat(t->vm, gmem_blocks_made), 1);
	}

	prepare(t, true);
	if (t->phase == AFTER_LAUNCH)
		launch(t->platform, t->vm, &t->vcpu, 1);
	prepare(t, false);

	for (c = t->cells; c < t->cells + t->nr_cells; c++)
		request(t, c);

	/*
	 * Each side looks first in one of the phases: the first look at a page
	 * that nobody has touched is the one that allocates it.
	 */
	if (t->phase == BEFORE_LAUNCH) {
		all_host_looks(t);
		launch(t->platform, t->vm, &t->vcpu, 1);
		all_guest_looks(t);
	} else {
		all_guest_looks(t);
		all_host_looks(t);
	}
	final_looks(t);

	ksft_print_msg("%s, %s: %u cells run (%lu pages), %u cannot exist, %u not run\n",
		       platforms[t->platform].name,
		       t->phase == BEFORE_LAUNCH ? "before launch" : "after launch",
		       t->nr_cells, t->npages, t->nr_impossible, t->nr_unavailable);
	atomic_fetch_add(&totals->run, t->nr_cells);
	atomic_fetch_add(&totals->impossible, t->nr_impossible);
	atomic_fetch_add(&totals->unavailable, t->nr_unavailable);

	TEST_ASSERT(!t->errors, "%u errors, see above", t->errors);
	check_capability(t);

	gmem_area_destroy(&t->a);
	kvm_vm_free(t->vm);
	free(t);
}

/* --- Capabilities ------------------------------------------------------------- */

#define NOBODY
#define ON(vm) vm,

/* Literal numbers, as in programs that are older than the header. */
TEST(capabilities_of_dev_kvm_and_of_vms)
{
	struct kvm_vm *plain = vm_create_barebones();
	enum platform p;
	u32 models = 0;

	TEST_ASSERT_EQ(KVM_CAP_GMEM_EMULATION, 0x10004);

	/* /dev/kvm returns the capabilities of the most capable VM type. */
	capabilities_are(kvm_check_cap, NOBODY, 0x030303, 8);
	TEST_ASSERT_EQ(vm_check_cap(plain, 252), 0);
	TEST_ASSERT_EQ(vm_check_cap(plain, 0x10000), 0);
	TEST_ASSERT_EQ(vm_check_cap(plain, 0x10001), 0);
	kvm_vm_free(plain);

	for (p = 0; p < NR_PLATFORMS; p++) {
		struct ctx x;

		if (!is_available(p)) {
			ksft_print_msg("%s NOT RUN: " GMEM_NO_EMULATION "\n",
				       platforms[p].name);
			continue;
		}
		if (p != SW_PROTECTED && p != SNP_SIMULATED)
			models |= BIT(platforms[p].model);
		ctx_create(&x, p, NR_PAGES);
		capabilities_are(vm_check_cap, ON(x.vm), announced[p], 8);
		ctx_launch(&x);
		capabilities_are(vm_check_cap, ON(x.vm), announced[p], 8);
		ctx_destroy(&x);
	}
	TEST_ASSERT_EQ(kvm_check_cap(0x10004), models);
}

static pid_t harness;

/* The harness ends the process itself. A child that fails does so, too. */
static void print_totals(void)
{
	if (getpid() != harness)
		return;
	ksft_print_msg("All platforms: %u cells run, %u cannot exist, %u not run\n",
		       atomic_load(&totals->run), atomic_load(&totals->impossible),
		       atomic_load(&totals->unavailable));
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();

	totals = kvm_mmap(PG, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	harness = getpid();
	atexit(print_totals);
	return test_harness_run(argc, argv);
}
