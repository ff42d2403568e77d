// SPDX-License-Identifier: GPL-2.0
/*
 * The content contract of guest_memfd's in-place conversion: every platform,
 * phase, direction, policy and state of a page, with what the contract
 * promises written down here a second time, by hand.
 *
 * SW_PROTECTED is the real thing. SNP and TDX are the kernel's software models
 * (CONFIG_KVM_GMEM_EMULATION) under the vendor code that also drives the
 * hardware; without them those tests are skipped and say so.
 *
 * Of the hazards that only platforms with an owner of pages have, these have a
 * subtest here: 1, 14 to 17, 30, 31, 39, 40, 44, 48 and 50. Those that have none:
 *
 * 29 "an RMP entry is found unassigned during PSMASH, a VMSA page goes under a
 *    running vCPU": everything here is mapped by 4K, so nothing is ever split,
 *    and emulated vCPUs have no VMSA. The split is the RMP model's own test.
 * 31 has a second half, a page that another VM has: one file belongs to one
 *    VM, so user space cannot offer a page to two of them. KUnit does.
 */
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>

#include "gmem_test.h"
#include "kvm_test_harness.h"

/* Emulated CPUs under sanitisers are slow; this only bounds a hang. */
#define TIMEOUT		600

#define PG		((u64)PAGE_SIZE)
#define OFF(page)	((u64)(page) * PG)

kvm_static_assert(sizeof(struct kvm_gmem_emulate) == 64);
kvm_static_assert(KVM_GMEM_EMULATE == 0xC040AED6);

/* --- Platforms and phases ------------------------------------------------ */

enum platform {
	SW_PROTECTED,
	SNP,
	TDX,
	TDX_ZEROES,	/* removing a page zeroes it, as on some parts */
	NR_PLATFORMS,
};

enum phase {
	BEFORE_LAUNCH,
	AFTER_LAUNCH,
};

static const struct {
	const char *name;
	u32 model;
	u64 flags;
} platforms[NR_PLATFORMS] = {
	[SW_PROTECTED]	= { "SW_PROTECTED" },
	[SNP]		= { "SNP (emulated)", KVM_GMEM_EMULATE_SNP },
	[TDX]		= { "TDX (emulated)", KVM_GMEM_EMULATE_TDX },
	[TDX_ZEROES]	= { "TDX that zeroes (emulated)", KVM_GMEM_EMULATE_TDX,
			    KVM_GMEM_EMULATE_REMOVE_ZEROES },
};

static bool is_available(enum platform platform)
{
	return platform == SW_PROTECTED || gmem_emulates(platforms[platform].model);
}

static struct kvm_vm *create_vm(enum platform platform, u32 nr_vcpus, u64 pages,
				struct kvm_vcpu **vcpus)
{
	if (platform == SW_PROTECTED)
		return gmem_vm_create(nr_vcpus, pages, vcpus);
	return gmem_vm_create_emulated(platforms[platform].model,
				       platforms[platform].flags, nr_vcpus, pages,
				       vcpus);
}

/* SW_PROTECTED is launched by the first run, the others before it. */
static void launch(enum platform platform, struct kvm_vm *vm, struct kvm_vcpu **vcpus,
		   u32 nr_vcpus)
{
	u32 i;
	int r;

	if (platform != SW_PROTECTED) {
		r = gmem_launch_finish(vm);
		TEST_ASSERT(!r, "LAUNCH_FINISH: errno %d (%s)", r, strerror(r));
	}
	for (i = 0; i < nr_vcpus; i++)
		gmem_guest_start(vcpus[i]);
}

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
} states[NR_STATES] = {
	[S_NEVER]  = { "shared, never allocated" },
	[S_FALLOC] = { "shared, fallocated and untouched" },
	[S_READ]   = { "shared, untouched but for a read" },
	[S_HOST]   = { "shared, written by host" },
	[S_GUEST]  = { "shared, written by guest", .needs_guest = true },
	[P_NEVER]  = { "private, never allocated", .private = true },
	[P_FALLOC] = { "private, fallocated and untouched", .private = true },
	[P_HOST]   = { "private, never mapped, host's bytes", .private = true },
	[P_READ]   = { "private, mapped by guest", .private = true, .needs_guest = true },
	[P_GUEST]  = { "private, written by guest", .private = true, .needs_guest = true },
	[P_LOADED] = { "private, given by the launch", .private = true },
	[S_POISON] = { "shared, poisoned" },
	[P_POISON] = { "private, poisoned", .private = true },
};

/*
 * What is to come of a page. A row has the two directions, to private and to
 * shared, and in each the policies PRESERVE, ZERO and NONE. An entry is either
 *
 *   EO	EOPNOTSUPP because of this page,
 *   EH	EHWPOISON because of this page,
 *
 * which leaves the whole range as it was; or what the host and what the guest
 * then find there. The host finds it when the page is shared; where it became
 * private, after PRESERVE has made it shared again, with nobody having touched
 * it in between:
 *
 *   p	the bytes that were written, or zeroes if none were,
 *   0	zeroes,
 *   x	0xab everywhere,
 *   k	p, as the other side of an encrypting platform sees them,
 *   z	zeroes, as the other side of an encrypting platform sees them,
 *   *	no promise: p, k, 0 or z, nothing else,
 *   ~	no promise, but not p either: the guest's bytes in the clear,
 *   !	nothing, the page is poisoned,
 *   -	the host cannot look: PRESERVE to shared is EOPNOTSUPP.
 *
 * The guest looks while the page has what the request gave it. Where a platform
 * takes a private page at the guest's first touch the bytes under it change
 * their meaning (SNP: k and z) or are cleared (TDX: 0). That is after the
 * request, and no business of the contract's; that it comes to exactly this is
 * what the models say that hardware does.
 *
 * The phase decides which states there are, not what is promised about them:
 * it is the same table before and after launch.
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
};

static const u64 policies[] = { GMEM_PRESERVE, GMEM_ZERO, GMEM_NONE };
static const char * const policy_names[] = { "PRESERVE", "ZERO", "NONE" };
static const u64 directions[] = { GMEM_PRIVATE, GMEM_SHARED };

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
	const char *row = contract[platform][state];
	struct outcome o = {};
	const char *entry;

	TEST_ASSERT(row && strlen(row) == 17, "No row for '%s' on %s",
		    states[state].name, platforms[platform].name);

	/* Without scrambling SW_PROTECTED leaves alone what has no promise. */
	if (platform == SW_PROTECTED && policies[policy] == GMEM_NONE && !scrambles)
		policy = 0;

	entry = row + 9 * direction + 3 * policy;
	if (entry[0] == 'E')
		o.err = entry[1] == 'O' ? EOPNOTSUPP : EHWPOISON;
	o.host = entry[0];
	o.guest = entry[1];
	return o;
}

/* PRESERVE to what a page already is leaves it as it is. */
static struct outcome outcome_unchanged(enum platform platform, enum state state)
{
	return outcome_of(platform, state, states[state].private ? 0 : 1, 0, true);
}

/* --- Cells ----------------------------------------------------------------- */

/* What a range consists of: pages of one state, or of several. */
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

/* At one page the host looks first after the request, at the other the guest. */
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

/* In memory that the processes of all variants share. */
static struct {
	atomic_uint run;
	atomic_uint impossible;
	atomic_uint unavailable;
} *totals;

/* A wrong cell does not keep the others from being looked at. */
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

/* Why there can be no page in this state, or NULL. */
static const char *why_impossible(struct table *t, enum state state)
{
	if (states[state].needs_guest && t->phase == BEFORE_LAUNCH)
		return "no guest runs before launch";
	if (state == P_LOADED && t->platform == SW_PROTECTED)
		return "SW_PROTECTED has no launch that takes pages";
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

/* Which pages each cell has, and what is expected of them. */
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
		/* A mixture of fewer states is one, too. */
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
		r = gmem_launch_update(t->vm, t->platform == SNP ?
				       KVM_GMEM_EMULATE_PAGE_NORMAL : 0,
				       gpa, PG, NULL, NULL);
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

/* --- Looking ---------------------------------------------------------------- */

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
			/* Only a hole gets the guest past its access. */
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
 * Let the host have a look at a private page that nobody has touched since the
 * request: PRESERVE makes it shared again. True if the host has had its look.
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

	/* Whether the host gets in is not a matter of time. */
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

/* The pages that the host has made shared again are not the request's any more. */
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

/* The neighbours, and what the model has to say about who owns what. */
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
				cell_error(t, c, "neighbour %lu has changed sides", i);
			r = gmem_set(t->a.fd, offset, PG, GMEM_SHARED, GMEM_PRESERVE, &eo);
			bad = r ? 0 : gmem_check(hva, PG, guard_seed, offset);
			if (bad != GMEM_ALL_GOOD)
				cell_error(t, c, "neighbour %lu: errno %d, byte %#lx is wrong", i,
					   r, bad);
		}
		for (i = 0; i < c->npages && t->platform != SW_PROTECTED; i++) {
			bool private = gmem_is_private(t->a.fd, OFF(cell_page(c, i)));
			bool owned;

			/* Its folio is gone, or was never given to anybody. */
			if (c->outcome[i / PAGES_PER_STATE].host == '!')
				continue;
			state = gmem_state(t->vm, t->a.gpa + OFF(cell_page(c, i)));
			owned = state != KVM_GMEM_EMULATE_STATE_NONE;
			if (owned != private)
				cell_error(t, c, "page %lu is %s, the model has state %lu", i,
					   private ? "private" : "shared", state);
		}
	}
	if (t->platform != SW_PROTECTED && gmem_destroyed(t->vm, t->a.gpa)) {
		t->errors++;
		ksft_print_msg("WRONG %s: %lu private pages were destroyed\n",
			       platforms[t->platform].name,
			       gmem_destroyed(t->vm, t->a.gpa));
	}
}

/*
 * What a bit means: the policy is honoured in this direction for every page not
 * yet in the requested state. Poison says nothing about that, and neither do
 * pages that the platform owns already.
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
			/* It promises nothing, so nothing can speak against it. */
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
};

#define CONTRACT_VARIANTS(_name, _platform)					\
FIXTURE_VARIANT_ADD(contract, _name##_before_launch)				\
{										\
	.platform = _platform,							\
	.phase = BEFORE_LAUNCH,							\
};										\
FIXTURE_VARIANT_ADD(contract, _name##_after_launch)				\
{										\
	.platform = _platform,							\
	.phase = AFTER_LAUNCH,							\
}

CONTRACT_VARIANTS(sw_protected, SW_PROTECTED);
CONTRACT_VARIANTS(snp, SNP);
CONTRACT_VARIANTS(tdx, TDX);
CONTRACT_VARIANTS(tdx_that_zeroes, TDX_ZEROES);

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

	t = calloc(1, sizeof(*t));
	TEST_ASSERT(t, "No memory");
	t->platform = variant->platform;
	t->phase = variant->phase;
	t->scrambles = gmem_scrambles();
	memset(t->granted, true, sizeof(t->granted));
	plan_table(t);

	t->vm = create_vm(t->platform, 1, t->npages, &t->vcpu);
	gmem_area_create(&t->a, t->vm, GMEM_SLOT, GMEM_GPA, OFF(t->npages),
			 GMEM_MMAP_SHARED);
	gmem_dirty_free_pages();

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

	TEST_ASSERT(!t->errors, "%u complaints, see above", t->errors);
	check_capability(t);

	gmem_area_destroy(&t->a);
	kvm_vm_free(t->vm);
	free(t);
}

/* --- One VM, one file -------------------------------------------------------- */

struct ctx {
	enum platform platform;
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[2];
	struct gmem_area a;
};

static void ctx_create(struct ctx *x, enum platform platform, u64 npages)
{
	memset(x, 0, sizeof(*x));
	x->platform = platform;
	x->vm = create_vm(platform, ARRAY_SIZE(x->vcpus), npages, x->vcpus);
	gmem_area_create(&x->a, x->vm, GMEM_SLOT, GMEM_GPA, OFF(npages), GMEM_MMAP_SHARED);
}

/* Of a VM that is dead, too: its slots go with it. */
static void ctx_destroy(struct ctx *x)
{
	if (x->a.fd >= 0) {
		kvm_munmap(x->a.hva, x->a.size);
		kvm_close(x->a.fd);
	}
	kvm_vm_free(x->vm);
}

static void ctx_launch(struct ctx *x)
{
	launch(x->platform, x->vm, x->vcpus, ARRAY_SIZE(x->vcpus));
}

static u8 *ctx_hva(struct ctx *x, u64 page)
{
	return x->a.hva + OFF(page);
}

static gpa_t ctx_gpa(struct ctx *x, u64 page)
{
	return x->a.gpa + OFF(page);
}

static void host_fill(struct ctx *x, u64 page, u64 n, u32 pattern)
{
	gmem_fill(ctx_hva(x, page), OFF(n), pattern, OFF(page));
}

static void guest_fill(struct ctx *x, u64 page, u64 n, u32 pattern)
{
	gmem_guest_fill(x->vcpus[0], ctx_gpa(x, page), OFF(n), pattern, OFF(page));
}

/* Macros, so that a failure names the line of the test. */
#define host_sees(x, page, n, pattern)						\
	gmem_host_assert(ctx_hva(x, page), OFF(n), pattern, OFF(page))
#define guest_sees(x, page, n, pattern)						\
	gmem_guest_assert((x)->vcpus[0], ctx_gpa(x, page), OFF(n), pattern, OFF(page))
#define host_refused(x, page, n)						\
	gmem_host_assert_refused(ctx_hva(x, page), OFF(n))
#define convert(x, page, n, to, policy)						\
	gmem_convert((x)->a.fd, OFF(page), OFF(n), to, policy)
#define attributes_are(x, page, n, want)					\
	gmem_assert_attributes((x)->a.fd, OFF(page), OFF(n), want)

#define assert_errno(r, want)							\
do {										\
	int __r = (r), __want = (want);						\
										\
	TEST_ASSERT(__r == __want, "Wanted errno %d (%s), got %d (%s)", __want,	\
		    strerror(__want), __r, strerror(__r));			\
} while (0)

/* A request that is refused because of a page. */
#define refused(x, page, n, to, policy, want, want_page)			\
do {										\
	u64 __eo;								\
										\
	assert_errno(gmem_set((x)->a.fd, OFF(page), OFF(n), to, policy, &__eo), want); \
	TEST_ASSERT(__eo == OFF(want_page), "Wanted error_offset %#lx, got %#lx", \
		    OFF(want_page), __eo);					\
} while (0)

/* Every page of the range is the platform's, or none is. */
#define ownership_is(x, page, n, want)						\
do {										\
	u64 __p;								\
										\
	for (__p = (page); __p < (page) + (n); __p++) {				\
		u64 __state = gmem_state((x)->vm, ctx_gpa(x, __p));		\
										\
		TEST_ASSERT((__state != KVM_GMEM_EMULATE_STATE_NONE) == (want),	\
			    "Page %lu is in state %lu of the model", __p, __state); \
	}									\
} while (0)

/* What LAUNCH_UPDATE wants as the type of a page with contents. */
static u32 normal_type(struct ctx *x)
{
	return x->platform == SNP ? KVM_GMEM_EMULATE_PAGE_NORMAL : 0;
}

static int add(struct ctx *x, u64 page, u64 n, const void *source, u64 *done)
{
	u64 bytes;
	int r;

	r = gmem_launch_update(x->vm, normal_type(x), ctx_gpa(x, page), OFF(n), source,
			       &bytes);
	if (done)
		*done = bytes / PG;
	return r;
}

#define NR_PAGES	16

FIXTURE(emulated)
{
	struct ctx x;
};

FIXTURE_VARIANT(emulated)
{
	enum platform platform;
};

FIXTURE_VARIANT_ADD(emulated, snp) { .platform = SNP };
FIXTURE_VARIANT_ADD(emulated, tdx) { .platform = TDX };
FIXTURE_VARIANT_ADD(emulated, tdx_that_zeroes) { .platform = TDX_ZEROES };

FIXTURE_SETUP(emulated)
{
	if (!is_available(variant->platform))
		SKIP(return, GMEM_NO_EMULATION);
	ctx_create(&self->x, variant->platform, NR_PAGES);
}

FIXTURE_TEARDOWN(emulated)
{
	ctx_destroy(&self->x);
}

#define EMULATED_TEST(name)	TEST_F_TIMEOUT(emulated, name, TIMEOUT)

/* What only one of them has. */
FIXTURE(snp)
{
	struct ctx x;
};

FIXTURE_SETUP(snp)
{
	if (!is_available(SNP))
		SKIP(return, GMEM_NO_EMULATION);
	ctx_create(&self->x, SNP, NR_PAGES);
}

FIXTURE_TEARDOWN(snp)
{
	ctx_destroy(&self->x);
}

#define SNP_TEST(name)		TEST_F_TIMEOUT(snp, name, TIMEOUT)

FIXTURE(tdx)
{
	struct ctx x;
};

FIXTURE_SETUP(tdx)
{
	if (!is_available(TDX))
		SKIP(return, GMEM_NO_EMULATION);
	ctx_create(&self->x, TDX, NR_PAGES);
}

FIXTURE_TEARDOWN(tdx)
{
	ctx_destroy(&self->x);
}

#define TDX_TEST(name)		TEST_F_TIMEOUT(tdx, name, TIMEOUT)

/* --- Capabilities ------------------------------------------------------------- */

#define capabilities_are(check, fd_or_vm, policies, attributes)			\
do {										\
	TEST_ASSERT_EQ(check(fd_or_vm 252), attributes);			\
	TEST_ASSERT_EQ(check(fd_or_vm 0x10000), policies);			\
	TEST_ASSERT_EQ(check(fd_or_vm 0x10001), policies);			\
	TEST_ASSERT_EQ(check(fd_or_vm 0x10002), 1);				\
} while (0)

#define NOBODY
#define ON(vm) vm,

/* Literal numbers, as programs that are older than any header have them. */
TEST(capabilities_of_dev_kvm_and_of_vms)
{
	struct kvm_vm *plain = vm_create_barebones();
	enum platform p;
	u32 models = 0;

	TEST_ASSERT_EQ(KVM_CAP_GMEM_EMULATION, 0x10004);

	/* What some VM type here can do is what the most capable one can. */
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
		models |= p == SW_PROTECTED ? 0 : BIT(platforms[p].model);
		ctx_create(&x, p, NR_PAGES);
		capabilities_are(vm_check_cap, ON(x.vm), announced[p], 8);
		ctx_launch(&x);
		capabilities_are(vm_check_cap, ON(x.vm), announced[p], 8);
		ctx_destroy(&x);
	}
	TEST_ASSERT_EQ(kvm_check_cap(0x10004), models);
}

/* --- Choosing a platform -------------------------------------------------------- */

static struct kvm_vm *bare_vm(unsigned long type)
{
	return ____vm_create((struct vm_shape) { .mode = VM_MODE_DEFAULT, .type = type });
}

EMULATED_TEST(the_choice_is_checked)
{
	const struct kvm_enable_cap good = {
		.cap = KVM_CAP_GMEM_EMULATION,
		.args = { platforms[self->x.platform].model,
			  platforms[self->x.platform].flags },
	};
	struct kvm_vm *vm = bare_vm(KVM_X86_SW_PROTECTED_VM);
	struct kvm_enable_cap cap;
	u32 i;

	for (i = 0; i < 64; i++) {
		if (BIT_ULL(i) == KVM_GMEM_EMULATE_SNP || BIT_ULL(i) == KVM_GMEM_EMULATE_TDX)
			continue;
		assert_errno(gmem_enable_emulation(vm, BIT_ULL(i), 0), EINVAL);
	}
	assert_errno(gmem_enable_emulation(vm, 0, 0), EINVAL);
	assert_errno(gmem_enable_emulation(vm, 3, 0), EINVAL);
	assert_errno(gmem_enable_emulation(vm, KVM_GMEM_EMULATE_SNP,
					   KVM_GMEM_EMULATE_REMOVE_ZEROES), EINVAL);
	for (i = 1; i < 64; i++)
		assert_errno(gmem_enable_emulation(vm, good.args[0], BIT_ULL(i)), EINVAL);
	for (i = 2; i < ARRAY_SIZE(cap.args); i++) {
		cap = good;
		cap.args[i] = 1;
		assert_errno(gmem_ioctl(vm->fd, KVM_ENABLE_CAP, &cap), EINVAL);
	}
	cap = good;
	cap.flags = 1;
	assert_errno(gmem_ioctl(vm->fd, KVM_ENABLE_CAP, &cap), EINVAL);

	cap = good;
	assert_errno(gmem_ioctl(vm->fd, KVM_ENABLE_CAP, &cap), 0);
	kvm_vm_free(vm);
}

EMULATED_TEST(the_choice_comes_first)
{
	const u32 model = platforms[self->x.platform].model;
	const u64 flags = platforms[self->x.platform].flags;
	struct kvm_vm *vm;
	int fd;

	vm = bare_vm(0);
	assert_errno(gmem_enable_emulation(vm, model, flags), EINVAL);
	kvm_vm_free(vm);

	vm = bare_vm(KVM_X86_SW_PROTECTED_VM);
	fd = vm_create_guest_memfd(vm, PG, GMEM_MMAP_SHARED);
	assert_errno(gmem_enable_emulation(vm, model, flags), EINVAL);
	kvm_close(fd);
	kvm_vm_free(vm);

	vm = bare_vm(KVM_X86_SW_PROTECTED_VM);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, 0, 0, 1, 0);
	assert_errno(gmem_enable_emulation(vm, model, flags), EINVAL);
	kvm_vm_free(vm);

	vm = bare_vm(KVM_X86_SW_PROTECTED_VM);
	vm_create_irqchip(vm);
	__vm_vcpu_add(vm, 0);
	assert_errno(gmem_enable_emulation(vm, model, flags), EINVAL);
	kvm_vm_free(vm);

	/* A VM that has not chosen has nothing to operate on. */
	vm = bare_vm(KVM_X86_SW_PROTECTED_VM);
	TEST_ASSERT(gmem_launch_finish(vm), "A real platform takes the models' ioctl");
	kvm_vm_free(vm);
}

/* Two platforms and a plain VM at the same time, each with its own rules. */
EMULATED_TEST(platforms_side_by_side)
{
	struct ctx plain, *x = &self->x;

	ctx_create(&plain, SW_PROTECTED, NR_PAGES);
	ctx_launch(&plain);
	ctx_launch(x);
	convert(&plain, 0, 4, GMEM_PRIVATE, GMEM_ZERO);
	convert(x, 0, 4, GMEM_PRIVATE, GMEM_ZERO);
	guest_fill(&plain, 0, 4, GMEM_SEED(1));
	guest_fill(x, 0, 4, GMEM_SEED(2));

	convert(&plain, 0, 4, GMEM_PRIVATE, GMEM_ZERO);
	refused(x, 0, 4, GMEM_PRIVATE, GMEM_ZERO, EOPNOTSUPP, 0);
	guest_sees(&plain, 0, 4, GMEM_ZEROES);
	guest_sees(x, 0, 4, GMEM_SEED(2));

	guest_fill(&plain, 0, 4, GMEM_SEED(3));
	convert(&plain, 0, 4, GMEM_SHARED, GMEM_PRESERVE);
	host_sees(&plain, 0, 4, GMEM_SEED(3));
	guest_sees(x, 0, 4, GMEM_SEED(2));
	ctx_destroy(&plain);
	guest_sees(x, 0, 4, GMEM_SEED(2));
}

/* What the flag changes, which no promise depends on. */
EMULATED_TEST(what_removal_leaves)
{
	struct ctx *x = &self->x;
	bool zeroes = x->platform == TDX_ZEROES;

	ctx_launch(x);
	convert(x, 0, 2, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(x, 0, 2, GMEM_SEED(1));
	convert(x, 0, 2, GMEM_SHARED, GMEM_NONE);
	host_sees(x, 0, 2, zeroes ? GMEM_ZEROES : GMEM_KEYED(GMEM_SEED(1)));
	guest_sees(x, 0, 2, zeroes ? GMEM_ZEROES : GMEM_KEYED(GMEM_SEED(1)));
}

/* --- Launch ---------------------------------------------------------------------- */

EMULATED_TEST(no_vcpu_runs_before_launch)
{
	struct kvm_pre_fault_memory range = { .gpa = GMEM_GPA, .size = PG };
	struct ctx *x = &self->x;
	int i;

	for (i = 0; i < 2; i++)
		assert_errno(-gmem_guest_resume(x->vcpus[i]), EINVAL);
	convert(x, 0, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(gmem_ioctl(x->vcpus[0]->fd, KVM_PRE_FAULT_MEMORY, &range), EOPNOTSUPP);
	ownership_is(x, 0, 1, false);

	ctx_launch(x);
	assert_errno(gmem_launch_finish(x->vm), EINVAL);
	convert(x, 1, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(add(x, 1, 1, NULL, NULL), EINVAL);
	ownership_is(x, 0, 2, false);

	assert_errno(gmem_ioctl(x->vcpus[0]->fd, KVM_PRE_FAULT_MEMORY, &range), 0);
	ownership_is(x, 0, 1, true);
	guest_sees(x, 0, 1, x->platform == SNP ? GMEM_KEYED(GMEM_ZEROES) : GMEM_ZEROES);
}

EMULATED_TEST(launch_ioctl_is_checked)
{
	const struct kvm_gmem_emulate good = {
		.op = KVM_GMEM_EMULATE_OP_LAUNCH_UPDATE,
		.type = normal_type(&self->x),
		.gpa = GMEM_GPA,
		.size = PG,
	};
	struct kvm_gmem_emulate args;
	struct ctx *x = &self->x;
	u64 *mem;

	host_fill(x, 0, 1, GMEM_SEED(1));
	convert(x, 0, 1, GMEM_PRIVATE, GMEM_PRESERVE);

#define bad_argument(what)							\
	do {									\
		args = good;							\
		args.what;							\
		assert_errno(gmem_emulate(x->vm, &args), EINVAL);		\
	} while (0)

	bad_argument(op = 0);
	bad_argument(op = 99);
	bad_argument(type = 99);
	bad_argument(gpa = GMEM_GPA + 1);
	bad_argument(gpa = GMEM_GPA - PG);
	bad_argument(size = 0);
	bad_argument(size = PG / 2);
	bad_argument(size = -PG);
	bad_argument(uaddr = 1);
	bad_argument(value[0] = 1);
	bad_argument(value[3] = 1);
#undef bad_argument
	mem = kvm_mmap(PG, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	kvm_munmap(mem, PG);
	assert_errno(gmem_ioctl(x->vm->fd, KVM_GMEM_EMULATE, mem), EFAULT);

	/* A page that is shared is nothing for a guest's private memory. */
	assert_errno(add(x, 1, 1, NULL, NULL), EINVAL);
	ownership_is(x, 0, 2, false);

	assert_errno(add(x, 0, 1, NULL, NULL), 0);
	ctx_launch(x);
	guest_sees(x, 0, 1, GMEM_SEED(1));
}

EMULATED_TEST(launch_update_with_a_source)
{
	struct ctx *x = &self->x;
	u8 *source;

	source = kvm_mmap(OFF(4), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	gmem_fill(source, OFF(4), GMEM_SEED(1), OFF(1));

	/* The first page has other bytes already, the others have none. */
	host_fill(x, 0, 2, GMEM_SEED(2));
	convert(x, 0, 5, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(add(x, 1, 4, source, NULL), 0);
	gmem_host_assert(source, OFF(4), GMEM_SEED(1), OFF(1));
	ownership_is(x, 0, 1, false);
	ownership_is(x, 1, 4, true);
	ownership_is(x, 5, 1, false);
	host_refused(x, 0, 5);

	/* The source is the caller's again. */
	memset(source, 0x11, OFF(4));
	ctx_launch(x);
	guest_sees(x, 1, 4, GMEM_SEED(1));
	host_refused(x, 0, 5);
	host_sees(x, 5, 1, GMEM_ZEROES);
	kvm_munmap(source, OFF(4));
}

/* Hazard 16: 0 stays 0, and every page gets its own contents. */
EMULATED_TEST(h16_launch_update_in_place)
{
	struct ctx *x = &self->x;

	host_fill(x, 0, 6, GMEM_SEED(1));
	convert(x, 0, 5, GMEM_PRIVATE, GMEM_PRESERVE);
	/* The helper looks where the three fields have been advanced to. */
	assert_errno(add(x, 0, 3, NULL, NULL), 0);
	assert_errno(add(x, 3, 1, NULL, NULL), 0);
	ownership_is(x, 0, 4, true);
	ownership_is(x, 4, 2, false);
	host_refused(x, 0, 5);
	host_sees(x, 5, 1, GMEM_SEED(1));

	ctx_launch(x);
	guest_sees(x, 0, 4, GMEM_SEED(1));
	guest_sees(x, 5, 1, GMEM_SEED(1));
}

/* Hazard 14: without a source, a page without contents has zeroes. */
EMULATED_TEST(h14_launch_update_of_untouched_pages)
{
	struct ctx *x = &self->x;

	convert(x, 0, NR_PAGES, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_dirty_free_pages();
	TEST_ASSERT_EQ(gmem_allocate(x->a.fd, 0, OFF(NR_PAGES / 2)), 0);
	assert_errno(add(x, 0, NR_PAGES, NULL, NULL), 0);
	ctx_launch(x);
	guest_sees(x, 0, NR_PAGES, GMEM_ZEROES);
	host_refused(x, 0, NR_PAGES);
}

/* Hazard 17: the file's own memory is the source. */
EMULATED_TEST(h17_the_source_is_the_file_itself)
{
	struct ctx *x = &self->x;
	u64 done;

	host_fill(x, 0, 4, GMEM_SEED(1));
	convert(x, 4, 8, GMEM_PRIVATE, GMEM_PRESERVE);
	/* Patterns depend on the position: page 8 has page 0's bytes then. */
	assert_errno(add(x, 8, 2, ctx_hva(x, 0), NULL), 0);
	host_sees(x, 0, 4, GMEM_SEED(1));

	/* A private page is no source, neither another one nor the page itself. */
	assert_errno(add(x, 4, 1, ctx_hva(x, 5), &done), EFAULT);
	TEST_ASSERT_EQ(done, 0);
	assert_errno(add(x, 4, 1, ctx_hva(x, 4), &done), EFAULT);
	TEST_ASSERT_EQ(done, 0);
	assert_errno(add(x, 4, 1, ctx_hva(x, 8), &done), EFAULT);
	TEST_ASSERT_EQ(done, 0);
	/* The second of two sources is one. */
	assert_errno(add(x, 4, 2, ctx_hva(x, 3), &done), EFAULT);
	TEST_ASSERT_EQ(done, 1);
	ownership_is(x, 4, 1, true);
	ownership_is(x, 5, 1, false);

	ctx_launch(x);
	gmem_guest_assert(x->vcpus[0], ctx_gpa(x, 8), OFF(2), GMEM_SEED(1), 0);
	gmem_guest_assert(x->vcpus[0], ctx_gpa(x, 4), PG, GMEM_SEED(1), OFF(3));
	host_refused(x, 4, 8);

	/* The source may go its own way. */
	convert(x, 0, 4, GMEM_PRIVATE, GMEM_PRESERVE);
	host_refused(x, 0, 12);
}

/* Hazard 31: what is given already is not given again. */
EMULATED_TEST(h31_already_assigned_pages)
{
	struct ctx *x = &self->x;
	u64 done;
	u8 *source;

	source = kvm_mmap(PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	gmem_fill(source, PG, GMEM_SEED(2), 0);
	host_fill(x, 0, 4, GMEM_SEED(1));
	convert(x, 0, 4, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(add(x, 2, 1, NULL, NULL), 0);

	assert_errno(add(x, 2, 1, NULL, &done), EEXIST);
	TEST_ASSERT_EQ(done, 0);
	assert_errno(add(x, 2, 1, source, &done), EEXIST);
	TEST_ASSERT_EQ(done, 0);

	/* In the middle of a range: those before it are added, no others. */
	assert_errno(add(x, 0, 4, NULL, &done), EEXIST);
	TEST_ASSERT_EQ(done, 2);
	ownership_is(x, 0, 3, true);
	ownership_is(x, 3, 1, false);

	ctx_launch(x);
	guest_sees(x, 0, 3, GMEM_SEED(1));
	kvm_munmap(source, PG);
}

/* --- The launch of SNP -------------------------------------------------------------- */

SNP_TEST(zero_pages)
{
	struct ctx *x = &self->x;

	host_fill(x, 0, 1, GMEM_SEED(1));
	convert(x, 0, 2, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(gmem_launch_update(x->vm, KVM_GMEM_EMULATE_PAGE_ZERO, x->a.gpa, OFF(2),
					NULL, NULL), 0);
	ctx_launch(x);
	guest_sees(x, 0, 2, GMEM_ZEROES);
}

/* A CPUID page begins with the number of its functions, of which 64 are too many. */
static void fill_cpuid(u8 *mem, u32 functions, u64 pos)
{
	gmem_fill(mem, PG, GMEM_SEED(15), pos);
	memcpy(mem, &functions, sizeof(functions));
}

static void guest_sees_cpuid(struct ctx *x, u64 page, u32 functions)
{
	u32 i, seen = 0;

	for (i = 0; i < 4; i++)
		seen |= (u32)gmem_guest_read(x->vcpus[0], ctx_gpa(x, page) + i) << i * 8;
	TEST_ASSERT_EQ(seen, functions);
	gmem_guest_assert(x->vcpus[0], ctx_gpa(x, page) + 4, PG - 4, GMEM_SEED(15),
			  OFF(page) + 4);
}

/*
 * Hazard 15: firmware corrects a CPUID page that it refuses, and KVM writes the
 * result to the source, if there is one. The caller tries again with that.
 */
SNP_TEST(h15_cpuid_page_without_a_source)
{
	const u32 type = KVM_GMEM_EMULATE_PAGE_CPUID;
	struct ctx *x = &self->x;
	u8 *source;
	u64 done;
	u32 i;

	source = kvm_mmap(OFF(2), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	fill_cpuid(ctx_hva(x, 0), 3, 0);
	fill_cpuid(ctx_hva(x, 1), 65, OFF(1));
	host_fill(x, 4, 1, GMEM_SEED(1));
	convert(x, 0, 4, GMEM_PRIVATE, GMEM_PRESERVE);

	/* In place. */
	assert_errno(gmem_launch_update(x->vm, type, ctx_gpa(x, 0), PG, NULL, NULL), 0);
	assert_errno(gmem_launch_update(x->vm, type, ctx_gpa(x, 1), PG, NULL, &done), EIO);
	TEST_ASSERT_EQ(done, 0);
	ownership_is(x, 1, 1, false);
	assert_errno(gmem_launch_update(x->vm, type, ctx_gpa(x, 1), PG, NULL, NULL), 0);

	/* With a source, which is corrected and nothing behind it. */
	fill_cpuid(source, 1000, OFF(2));
	gmem_fill(source + PG, PG, GMEM_SEED(2), 0);
	assert_errno(gmem_launch_update(x->vm, type, ctx_gpa(x, 2), PG, source, &done), EIO);
	TEST_ASSERT_EQ(done, 0);
	TEST_ASSERT_EQ(*(u32 *)source, 64);
	gmem_host_assert(source + 4, PG - 4, GMEM_SEED(15), OFF(2) + 4);
	gmem_host_assert(source + PG, PG, GMEM_SEED(2), 0);
	ownership_is(x, 2, 1, false);
	assert_errno(gmem_launch_update(x->vm, type, ctx_gpa(x, 2), PG, source, NULL), 0);
	fill_cpuid(source, 7, OFF(3));
	assert_errno(gmem_launch_update(x->vm, type, ctx_gpa(x, 3), PG, source, NULL), 0);
	TEST_ASSERT_EQ(*(u32 *)source, 7);

	host_refused(x, 0, 4);
	host_sees(x, 4, 1, GMEM_SEED(1));
	ctx_launch(x);
	for (i = 0; i < 4; i++)
		guest_sees_cpuid(x, i, (u32[]) { 3, 64, 64, 7 }[i]);
	kvm_munmap(source, OFF(2));
}

/*
 * Hazard 31: the page is assigned to one gfn and shows up at another. Where it
 * belongs it is the guest's as before.
 */
SNP_TEST(h31_assigned_for_another_gfn)
{
	struct ctx *x = &self->x;
	const gpa_t home = x->a.gpa;
	int r;

	ctx_launch(x);
	convert(x, 0, 2, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(x, 0, 2, GMEM_SEED(1));

	gmem_area_unbind(&x->a);
	x->a.gpa = home + SZ_1M;
	gmem_area_bind(&x->a);
	gmem_area_virt_map(&x->a);
	r = __gmem_guest_do(x->vcpus[1], GMEM_OP_READ, x->a.gpa, 1, 0, 0, 0);
	assert_errno(-r, EEXIST);
	host_refused(x, 0, 2);

	gmem_area_unbind(&x->a);
	x->a.gpa = home;
	gmem_area_bind(&x->a);
	guest_sees(x, 0, 2, GMEM_SEED(1));
	convert(x, 0, 2, GMEM_SHARED, GMEM_PRESERVE);
	host_sees(x, 0, 2, GMEM_KEYED(GMEM_SEED(1)));
}

static void asks_for(struct ctx *x, int r, u64 page, u64 flags)
{
	struct kvm_run *run = x->vcpus[0]->run;

	assert_errno(-r, EFAULT);
	TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(run->memory_fault.gpa, ctx_gpa(x, page));
	TEST_ASSERT_EQ(run->memory_fault.size, PG);
	TEST_ASSERT_EQ(run->memory_fault.flags, flags);
}

/*
 * Hazard 50: the guest says which kind of memory it means, as on the platform,
 * and user space hears of it if that is not what the file says.
 */
EMULATED_TEST(h50_guest_means_the_other_kind)
{
	struct ctx *x = &self->x;
	int r;

	ctx_launch(x);
	host_fill(x, 0, 2, GMEM_SEED(1));
	convert(x, 1, 1, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(x, 1, 1, GMEM_SEED(2));
	guest_sees(x, 0, 1, GMEM_SEED(1));

	/* The page that is mapped as shared it now uses as private, and the other way round. */
	gmem_access(x->vm, ctx_gpa(x, 0), KVM_GMEM_EMULATE_ACCESS_PRIVATE);
	r = __gmem_guest_do(x->vcpus[0], GMEM_OP_READ, ctx_gpa(x, 0), 1, 0, 0, 0);
	asks_for(x, r, 0, KVM_MEMORY_EXIT_FLAG_PRIVATE);
	asks_for(x, gmem_guest_resume(x->vcpus[0]), 0, KVM_MEMORY_EXIT_FLAG_PRIVATE);
	convert(x, 0, 1, GMEM_PRIVATE, GMEM_ZERO);
	gmem_guest_ok(x->vcpus[0], gmem_guest_resume(x->vcpus[0]));
	ownership_is(x, 0, 1, true);

	gmem_access(x->vm, ctx_gpa(x, 1), KVM_GMEM_EMULATE_ACCESS_SHARED);
	r = __gmem_guest_do(x->vcpus[0], GMEM_OP_READ, ctx_gpa(x, 1), 1, 0, 0, 0);
	asks_for(x, r, 1, 0);
	/* What it had there is as it was. */
	ownership_is(x, 1, 1, true);
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, x->a.gpa), 0);
	convert(x, 1, 1, GMEM_SHARED, GMEM_ZERO);
	gmem_guest_ok(x->vcpus[0], gmem_guest_resume(x->vcpus[0]));
	guest_sees(x, 1, 1, GMEM_ZEROES);
	host_sees(x, 1, 1, GMEM_ZEROES);

	/* From here on what the file says. */
	gmem_access(x->vm, ctx_gpa(x, 1), KVM_GMEM_EMULATE_ACCESS_ANY);
	convert(x, 1, 1, GMEM_PRIVATE, GMEM_ZERO);
	guest_sees(x, 1, 1, x->platform == SNP ? GMEM_KEYED(GMEM_ZEROES) : GMEM_ZEROES);
}

/*
 * Hazard 48: a guest's fault in which the platform fails is EIO, and no memory
 * fault, by which a VMM would convert the page and try again for ever. It has
 * given nothing and can be repeated.
 */
EMULATED_TEST(h48_platform_fails_in_a_guest_fault)
{
	struct ctx *x = &self->x;
	const bool snp = x->platform == SNP;
	struct kvm_run *run = x->vcpus[0]->run;
	int r;

	ctx_launch(x);
	host_fill(x, 0, 2, GMEM_SEED(1));
	convert(x, 0, 2, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_inject(x->vm, ctx_gpa(x, 0),
		    snp ? KVM_GMEM_EMULATE_FAIL_ASSIGN : KVM_GMEM_EMULATE_FAIL_ADD,
		    snp ? KVM_GMEM_EMULATE_ERROR_PERMISSION : KVM_GMEM_EMULATE_ERROR_INPUT, 1);
	r = __gmem_guest_do(x->vcpus[0], GMEM_OP_READ, ctx_gpa(x, 0), 1, 0, 0, 0);
	assert_errno(-r, EIO);
	TEST_ASSERT(run->exit_reason != KVM_EXIT_MEMORY_FAULT, "The page is to be converted");
	ownership_is(x, 0, 2, false);
	attributes_are(x, 0, 2, GMEM_PRIVATE);
	host_refused(x, 0, 2);

	r = gmem_guest_resume(x->vcpus[0]);
	gmem_guest_ok(x->vcpus[0], r);
	/* A TD's pages are zeroed as it accepts them. */
	guest_sees(x, 0, 2, snp ? GMEM_KEYED(GMEM_SEED(1)) : GMEM_ZEROES);
	ownership_is(x, 0, 2, true);
	if (snp) {
		convert(x, 0, 2, GMEM_SHARED, GMEM_PRESERVE);
		host_sees(x, 0, 2, GMEM_SEED(1));
	}
}

/* --- Hazards with a guest ------------------------------------------------------------ */

/* Hazard 1: what is private already is left alone, mappings included. */
EMULATED_TEST(h01_mixed_range_to_private)
{
	struct ctx *x = &self->x;
	u64 mapped, i;

	ctx_launch(x);
	for (i = 0; i < NR_PAGES; i += 2) {
		convert(x, i, 1, GMEM_PRIVATE, GMEM_PRESERVE);
		guest_fill(x, i, 1, GMEM_SEED(1));
		host_fill(x, i + 1, 1, GMEM_SEED(2));
		guest_sees(x, i + 1, 1, GMEM_SEED(2));
	}

	mapped = vm_get_stat(x->vm, pages_4k);
	convert(x, 0, NR_PAGES, GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT_EQ(vm_get_stat(x->vm, pages_4k), mapped - NR_PAGES / 2);
	for (i = 0; i < NR_PAGES; i += 2) {
		ownership_is(x, i, 1, true);
		ownership_is(x, i + 1, 1, false);
	}
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, x->a.gpa), 0);
	host_refused(x, 0, NR_PAGES);
	for (i = 0; i < NR_PAGES; i += 2)
		guest_sees(x, i, 1, GMEM_SEED(1));

	/* All of it again with nothing to change. */
	convert(x, 0, NR_PAGES, GMEM_PRIVATE, GMEM_NONE);
	refused(x, 1, NR_PAGES - 1, GMEM_PRIVATE, GMEM_ZERO, EOPNOTSUPP, 2);
	for (i = 0; i < NR_PAGES; i += 2)
		guest_sees(x, i, 1, GMEM_SEED(1));
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, x->a.gpa), 0);
}

static void write_proc(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	/* Not every kernel has every knob; those that it has are turned. */
	if (fd < 0)
		return;
	if (write(fd, text, strlen(text)) < 0)
		ksft_print_msg("%s > %s: %s\n", text, path, strerror(errno));
	close(fd);
}

/*
 * Hazard 39: everything that makes the host's kernel touch or move a page, on
 * pages that it has no mapping of. An access would be an oops.
 */
EMULATED_TEST(h39_host_kernel_leaves_owned_pages_alone)
{
	struct ctx *x = &self->x;
	void *pages[NR_PAGES];
	int status[NR_PAGES], nodes[NR_PAGES] = {};
	u64 i;

	ctx_launch(x);
	convert(x, 0, NR_PAGES, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(x, 0, NR_PAGES, GMEM_SEED(1));

	for (i = 0; i < NR_PAGES; i++)
		pages[i] = ctx_hva(x, i);
	syscall(__NR_move_pages, 0, NR_PAGES, pages, nodes, status, 2 /* MPOL_MF_MOVE */);
	madvise(x->a.hva, x->a.size, MADV_MERGEABLE);
	madvise(x->a.hva, x->a.size, MADV_COLD);
	madvise(x->a.hva, x->a.size, MADV_PAGEOUT);
	madvise(x->a.hva, x->a.size, MADV_DONTNEED);
	madvise(x->a.hva, x->a.size, MADV_SOFT_OFFLINE);
	mlock2(x->a.hva, x->a.size, MLOCK_ONFAULT);
	msync(x->a.hva, x->a.size, MS_SYNC);
	write_proc("/sys/kernel/mm/ksm/run", "1");
	write_proc("/proc/sys/vm/compact_memory", "1");
	write_proc("/proc/sys/vm/drop_caches", "3");
	gmem_dirty_free_pages();

	host_refused(x, 0, NR_PAGES);
	ownership_is(x, 0, NR_PAGES, true);
	attributes_are(x, 0, NR_PAGES, GMEM_PRIVATE);
	guest_sees(x, 0, NR_PAGES, GMEM_SEED(1));
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, x->a.gpa), 0);
	write_proc("/sys/kernel/mm/ksm/run", "0");
}

/* What the platform owned is the host's again after a hole, and after the file. */
EMULATED_TEST(freed_pages_are_given_up)
{
	const u64 npages = SZ_1M / PG;
	struct ctx y;
	int i;

	ctx_create(&y, variant->platform, npages);
	ctx_launch(&y);
	for (i = 0; i < 2; i++) {
		convert(&y, 0, npages, GMEM_PRIVATE, GMEM_PRESERVE);
		guest_fill(&y, 0, npages, GMEM_SEED(1 + i));
		ownership_is(&y, 0, npages, true);
		if (i)
			break;
		TEST_ASSERT_EQ(gmem_punch(y.a.fd, 0, y.a.size), 0);
		attributes_are(&y, 0, npages, GMEM_PRIVATE);
		host_refused(&y, 0, npages);
		gmem_dirty_free_pages();
		convert(&y, 0, npages, GMEM_SHARED, GMEM_PRESERVE);
		host_sees(&y, 0, npages, GMEM_ZEROES);
		host_fill(&y, 0, npages, GMEM_SEED(3));
		guest_sees(&y, 0, npages, GMEM_SEED(3));
	}
	ctx_destroy(&y);
	/* Whoever gets the pages next writes to them. */
	for (i = 0; i < 8; i++)
		gmem_dirty_free_pages();
}

/* Reads all pages of the file, over and over. */
struct reader {
	struct ctx *x;
	pthread_t thread;
	atomic_bool stop;
	atomic_ulong reads;
	int error;
};

static void *read_pages(void *arg)
{
	struct reader *reader = arg;
	struct ctx *x = reader->x;
	u64 page = 0;
	int r;

	while (!atomic_load(&reader->stop) && !reader->error) {
		r = __gmem_guest_do(x->vcpus[1], GMEM_OP_READ, ctx_gpa(x, page), 1, 0, 0, 0);
		/* The guest means what the page was when it faulted, and the next time what it is. */
		while (r == -EFAULT && x->vcpus[1]->run->exit_reason == KVM_EXIT_MEMORY_FAULT)
			r = gmem_guest_resume(x->vcpus[1]);
		if (r)
			reader->error = r;
		page = (page + 1) % 4;
		atomic_fetch_add(&reader->reads, 1);
	}
	return NULL;
}

#define H40_ROUNDS	400

/*
 * Hazard 40: while a vCPU touches the page, PRESERVE to shared either says that
 * the page is owned or keeps the bytes. An answer that is older than the
 * invalidation says that it is not and loses them.
 */
TDX_TEST(h40_preserve_against_a_running_guest)
{
	struct reader reader = { .x = &self->x };
	u32 i, j, kept = 0, owned = 0, spins = 0;
	struct ctx *x = &self->x;
	u64 eo, bad;
	int r;

	ctx_launch(x);
	kvm_pthread_create(&reader.thread, NULL, read_pages, &reader);
	for (i = 0; i < H40_ROUNDS; i++) {
		const u32 seed = GMEM_SEED(i);

		host_fill(x, 0, 4, seed);
		convert(x, 0, 4, GMEM_PRIVATE, GMEM_PRESERVE);
		/* More or less time for the guest, whichever it was given too little of. */
		for (j = 0; j < spins; j++)
			sched_yield();
		for (j = 0; j < 4; j++) {
			r = gmem_set(x->a.fd, OFF(j), PG, GMEM_SHARED, GMEM_PRESERVE, &eo);
			if (r == EOPNOTSUPP) {
				TEST_ASSERT_EQ(eo, OFF(j));
				convert(x, j, 1, GMEM_SHARED, GMEM_ZERO);
				host_sees(x, j, 1, GMEM_ZEROES);
				owned++;
				continue;
			}
			assert_errno(r, 0);
			bad = gmem_check(ctx_hva(x, j), PG, seed, OFF(j));
			TEST_ASSERT(bad == GMEM_ALL_GOOD,
				    "Round %u: PRESERVE returned 0 and byte %#lx of page %u is 0x%02x",
				    i, bad, j, bad == GMEM_ALL_GOOD ? 0 : ctx_hva(x, j)[bad]);
			kept++;
		}
		spins = owned < kept ? spins + 1 : 0;
	}
	atomic_store(&reader.stop, true);
	kvm_pthread_join(reader.thread, NULL);
	TEST_ASSERT(!reader.error, "The guest's read: %d", reader.error);
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, x->a.gpa), 0);
	ksft_print_msg("%u pages kept their bytes, %u were owned, %lu reads\n", kept, owned,
		       atomic_load(&reader.reads));
	TEST_ASSERT(kept && owned, "One of the two outcomes never came up");
}

struct held {
	struct ctx *x;
	pthread_t thread;
	int r;
	u64 eo;
};

static void *read_held(void *arg)
{
	struct held *held = arg;
	struct ctx *x = held->x;

	held->r = __gmem_guest_do(x->vcpus[1], GMEM_OP_READ, ctx_gpa(x, 1), 1, 0, 0, 0);
	return NULL;
}

/* Until a vCPU has been given page 1, which is private, and is about to map it. */
static void hold_reader(struct held *guest)
{
	struct ctx *x = guest->x;

	ctx_launch(x);
	host_fill(x, 0, 4, GMEM_SEED(1));
	convert(x, 0, 4, GMEM_PRIVATE, GMEM_PRESERVE);

	gmem_hold(x->vm, ctx_gpa(x, 1), KVM_GMEM_EMULATE_HOLD_FAULT, true);
	kvm_pthread_create(&guest->thread, NULL, read_held, guest);
	gmem_wait_held(x->vm, ctx_gpa(x, 1), KVM_GMEM_EMULATE_HOLD_FAULT);
}

static void *convert_held(void *arg)
{
	struct held *held = arg;

	held->r = gmem_set(held->x->a.fd, OFF(1), PG, GMEM_SHARED, GMEM_PRESERVE, &held->eo);
	return NULL;
}

/*
 * The same with the order made instead of hoped for: a vCPU has been given the
 * page, a conversion is about to begin its invalidation, the vCPU maps the page,
 * the conversion goes on. What it asked before the invalidation is wrong by now.
 */
TDX_TEST(h40_page_is_mapped_just_before_the_invalidation)
{
	struct held guest = { .x = &self->x }, host = { .x = &self->x };
	struct ctx *x = &self->x;
	const gpa_t gpa = ctx_gpa(x, 1);

	hold_reader(&guest);

	gmem_hold(x->vm, gpa, KVM_GMEM_EMULATE_HOLD_INVALIDATION, true);
	kvm_pthread_create(&host.thread, NULL, convert_held, &host);
	gmem_wait_held(x->vm, gpa, KVM_GMEM_EMULATE_HOLD_INVALIDATION);

	/* The vCPU has left get_pfn(), and needs no lock that the conversion has. */
	gmem_hold(x->vm, gpa, KVM_GMEM_EMULATE_HOLD_FAULT, false);
	kvm_pthread_join(guest.thread, NULL);
	TEST_ASSERT(!guest.r, "The guest's read: %d", guest.r);

	gmem_hold(x->vm, gpa, KVM_GMEM_EMULATE_HOLD_INVALIDATION, false);
	kvm_pthread_join(host.thread, NULL);
	assert_errno(host.r, EOPNOTSUPP);
	TEST_ASSERT_EQ(host.eo, OFF(1));
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, gpa), 0);
	host_refused(x, 1, 1);
	guest_sees(x, 1, 1, GMEM_ZEROES);
}

/*
 * The other way round: the vCPU comes too late, and must not map the page as
 * what it was.
 */
TDX_TEST(h40_page_is_not_mapped_after_the_invalidation)
{
	struct held guest = { .x = &self->x };
	struct ctx *x = &self->x;
	const gpa_t gpa = ctx_gpa(x, 1);

	hold_reader(&guest);

	convert(x, 1, 1, GMEM_SHARED, GMEM_PRESERVE);
	host_sees(x, 1, 1, GMEM_SEED(1));

	gmem_hold(x->vm, gpa, KVM_GMEM_EMULATE_HOLD_FAULT, false);
	kvm_pthread_join(guest.thread, NULL);
	TEST_ASSERT(!guest.r, "The guest's read: %d", guest.r);
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, gpa), 0);
	host_sees(x, 1, 1, GMEM_SEED(1));
	guest_sees(x, 1, 1, GMEM_SEED(1));
}

/* --- Failure in the middle ------------------------------------------------------------- */

static void assert_dead(struct ctx *x)
{
	u64 eo;
	int i;

	assert_errno(gmem_set(x->a.fd, 0, PG, GMEM_PRIVATE, GMEM_PRESERVE, &eo), EIO);
	TEST_ASSERT_EQ(eo, GMEM_POISON_OFFSET);
	assert_errno(gmem_set(x->a.fd, 0, PG, GMEM_SHARED, GMEM_NONE, &eo), EIO);
	TEST_ASSERT_EQ(eo, GMEM_POISON_OFFSET);
	assert_errno(gmem_get(x->a.fd, 0, NULL, NULL), EIO);
	assert_errno(gmem_launch_finish(x->vm), EIO);
	assert_errno(gmem_ioctl(x->vm->fd, KVM_CHECK_EXTENSION, (void *)KVM_CAP_USER_MEMORY), EIO);
	for (i = 0; i < 2; i++)
		assert_errno(-gmem_guest_resume(x->vcpus[i]), EIO);
}

/*
 * Sixteen pages of the guest are to become shared, and the platform fails at
 * one of them. No attribute changes, the VM is dead, and everybody else is as
 * before. (GET is refused, so that what the host may touch has to tell.)
 */
static void fail_at(enum platform platform, u64 bad, u64 which, u64 error, u64 policy,
		    struct ctx *other)
{
	/* shared, private, the range, private, shared */
	const u64 first = 2, npages = 16, total = 20;
	struct ctx x;
	u64 eo;

	ctx_create(&x, platform, total);
	ctx_launch(&x);
	host_fill(&x, 0, 1, GMEM_SEED(1));
	host_fill(&x, total - 1, 1, GMEM_SEED(1));
	convert(&x, 1, npages + 2, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(&x, 1, npages + 2, GMEM_SEED(2));

	gmem_inject(x.vm, ctx_gpa(&x, first + bad), which, error, 1000);
	assert_errno(gmem_set_once(x.a.fd, OFF(first), OFF(npages), GMEM_SHARED, policy, &eo),
		     EIO);
	TEST_ASSERT(eo == OFF(first + bad), "Page %lu failed, error_offset is %#lx", bad, eo);

	host_refused(&x, 1, npages + 2);
	host_sees(&x, 0, 1, GMEM_SEED(1));
	host_sees(&x, total - 1, 1, GMEM_SEED(1));
	assert_dead(&x);

	/* Hazard 44: it stays so, whatever is tried. */
	gmem_punch(x.a.fd, OFF(first), OFF(npages));
	gmem_allocate(x.a.fd, OFF(first), OFF(npages));
	host_refused(&x, 1, npages + 2);
	gmem_dirty_free_pages();

	guest_sees(other, 0, NR_PAGES, GMEM_SEED(99));
	ctx_destroy(&x);
	gmem_dirty_free_pages();
	guest_sees(other, 0, NR_PAGES, GMEM_SEED(99));
	ownership_is(other, 0, NR_PAGES, true);
}

static void other_vm(struct ctx *x)
{
	ctx_launch(x);
	convert(x, 0, NR_PAGES, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_fill(x, 0, NR_PAGES, GMEM_SEED(99));
}

EMULATED_TEST(h44_giving_up_fails_at_each_page)
{
	u64 i;

	other_vm(&self->x);
	for (i = 0; i < 16; i++) {
		/* TDX refuses PRESERVE, the first of the policies. */
		u32 policy = self->x.platform == SNP ? i % 3 : 1 + i % 2;

		fail_at(self->x.platform, i,
			self->x.platform == SNP ? KVM_GMEM_EMULATE_FAIL_UNASSIGN :
			KVM_GMEM_EMULATE_FAIL_REMOVE,
			self->x.platform == SNP ? KVM_GMEM_EMULATE_ERROR_PERMISSION :
			KVM_GMEM_EMULATE_ERROR_INPUT,
			policies[policy], &self->x);
	}
}

/* The steps before the removal itself, where the S-EPT keeps the page. */
TDX_TEST(h44_blocking_and_tracking_fail)
{
	static const u64 steps[] = { KVM_GMEM_EMULATE_FAIL_BLOCK, KVM_GMEM_EMULATE_FAIL_TRACK };
	u32 i;

	other_vm(&self->x);
	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		fail_at(TDX, 0, steps[i], KVM_GMEM_EMULATE_ERROR_INPUT, GMEM_ZERO, &self->x);
		fail_at(TDX, 15, steps[i], KVM_GMEM_EMULATE_ERROR_INPUT, GMEM_NONE, &self->x);
	}
}

/*
 * Hazard 30: adding sixteen pages fails at one of them. Those before it stay
 * added, it and those behind it are as before, and the caller goes on from
 * where it is told that it is.
 */
EMULATED_TEST(h30_adding_fails_at_each_page)
{
	u64 i, done, which;

	other_vm(&self->x);
	which = self->x.platform == SNP ? KVM_GMEM_EMULATE_FAIL_ASSIGN :
					  KVM_GMEM_EMULATE_FAIL_ADD;
	for (i = 0; i < 16; i++) {
		struct ctx x;
		int r;

		ctx_create(&x, self->x.platform, 16);
		host_fill(&x, 0, 16, GMEM_SEED(i));
		convert(&x, 0, 16, GMEM_PRIVATE, GMEM_PRESERVE);
		/* The first time the pages before it hide the error, unless there are none. */
		gmem_inject(x.vm, ctx_gpa(&x, i), which, KVM_GMEM_EMULATE_ERROR_INPUT,
			    i ? 2 : 1);
		r = add(&x, 0, 16, NULL, &done);
		TEST_ASSERT(r == EIO && done == i, "Page %lu failed: errno %d, %lu pages added", i,
			    r, done);
		ownership_is(&x, 0, i, true);
		ownership_is(&x, i, 16 - i, false);
		host_refused(&x, 0, 16);

		assert_errno(add(&x, i, 16 - i, NULL, NULL), 0);
		ctx_launch(&x);
		guest_sees(&x, 0, 16, GMEM_SEED(i));
		guest_sees(&self->x, 0, NR_PAGES, GMEM_SEED(99));
		ctx_destroy(&x);
	}
	ownership_is(&self->x, 0, NR_PAGES, true);
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
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_VM_TYPES));
	__TEST_REQUIRE(gmem_vm_type_supported(), "KVM has no SW_PROTECTED VMs");
	__TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES),
		       "guest_memfd does not convert in place");

	totals = kvm_mmap(PG, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	harness = getpid();
	atexit(print_totals);
	return test_harness_run(argc, argv);
}
