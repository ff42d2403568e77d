/* SPDX-License-Identifier: GPL-2.0 */
/*
 * All operations on an in-place guest_memfd at once, checked against a model of
 * which party may see which bytes.
 *
 * Two vCPUs and host threads touch the pages of one file, while other threads
 * convert ranges of it with random policies, punch holes, delete and re-add
 * the memslots, fork children that access pages, move pages to other memory, and
 * poison a few pages. Every thread does a fixed number of operations.
 *
 * The model, per page, in memory that the guest, all threads and the children
 * share:
 *
 * state: counts up, the low two bits are the phase. 0: shared. 1: a request to
 *	private is under way. 2: private. 3: a request to shared is under way.
 *	It is advanced to 1 or 3 before the ioctl and to 2 or 0 after it. If the
 *	value is the same before and after an access, and its phase is 2, the
 *	whole access was between the return of a request to private and the
 *	start of the next one to shared: the host must have got SIGBUS. With
 *	phase 0 it must not. In the phases 1 and 3, or if the value changed,
 *	either is legal.
 *
 * owner: a lock that all, the guest included, only try to take. Requests hold
 *	it for all of their pages. While it is held, the page's state does not
 *	change.
 *
 * word0: the value of the page's first word, or its possible values. Only the
 *	holder of the lock writes that word, and each holder compares it first.
 *	So PRESERVE has to preserve, ZERO to zero, NONE to scramble, and guest
 *	and host have to see the same page.
 *
 * gen, exposed, destroyed: A guest that holds the lock of a private page
 *	writes secrets, marked with the page's generation. A request or a hole
 *	that destroys the bytes ends a generation: destroyed is the last one
 *	that cannot be in the page any more. PRESERVE to shared exposes all
 *	generations up to the current one. The host may see a secret of
 *	generation g only if destroyed, read before the access, < g <= exposed,
 *	read after it. Everything else is a leak.
 *
 * wiping: odd while a request that writes bytes is under way. The kernel may
 *	write to a page that is in the requested state already while others
 *	read it. Only then can a half-written word be read.
 *
 * All other words are read and written without any lock, by the guest in any
 * state and by the host while it has access. They may race with anything, but a
 * word must be one that was written for this page, or zero, or what NONE leaves.
 *
 * The last pages of the file are wild: holes are punched there without the
 * lock, and some of them are poisoned. word0 says nothing about these, and for
 * those that are poisoned SIGBUS is legal in each phase.
 *
 * If a guest touches a page whose slot is deleted, KVM_RUN exits for MMIO. A read
 * returns NO_SLOT. A write is dropped, and the VMM records this in "dropped", so
 * that the guest tries again.
 *
 * The model does not contain moves, as nobody can observe one.
 *
 * A file with large folios has 16 pages for each page of the model, which is their first
 * one.  Requests and holes begin and end anywhere between these, so that folios are
 * split everywhere.  From time to time a block is freed and allocated as a whole, which
 * makes it a folio again. The model does not contain folios, but for requests to shared
 * and holes, which fail if a folio is held that they split.
 *
 * The test runs once on a plain SW_PROTECTED VM, and once on each platform that
 * the kernel emulates, where pages do not move. There the model has more state:
 *
 * word0 is what the host reads or would read. On SNP the guest sees the word of
 *	a private page through its key. On TDX it does not see it at all:
 *
 * inside, since: TDX: inside is what the guest finds in the first word of a
 *	private page, zero after its first touch; since is how often the slot
 *	had been deleted and added by then. Deleting a slot removes its pages
 *	from the S-EPT: from then on zero is legal, too.
 *
 * entered: TDX: the same count from before the page became private. As long as
 *	it has not changed, a page that comes back by PRESERVE has never been
 *	in the S-EPT: word0 has to be there.
 *
 * mapped: The guest has written to the private page with the lock, so the
 *	platform owns it. Policies that an owned page rules out are refused then.
 *
 * Only the guest may see a secret in the clear. The rules above apply to the
 * secret as the key encrypts it.
 *
 * "hot" is the range that is being converted. The guest makes many of its
 * accesses without the lock there, so that they meet the conversion.
 */
#ifndef SELFTEST_KVM_GMEM_STRESS_H
#define SELFTEST_KVM_GMEM_STRESS_H

#include <sched.h>
#include <signal.h>
#include <stdatomic.h>

#include <linux/sizes.h>

#include "gmem_test.h"

#define NPAGES		64
#define FIRST_WILD	48	/* holes without the lock from here on */
#define FIRST_POISON	56	/* pages that may get poisoned, once each */
#define NR_POISON	4
#define NR_SLOTS	2
#define SLOT_PAGES	(NPAGES / NR_SLOTS)
/* Of a file with large folios, so that a slot is one block. */
#define LARGE_STEP	(SZ_2M / PAGE_SIZE / SLOT_PAGES)
#define NR_VCPUS	2
#define WORDS		(PAGE_SIZE / sizeof(u64))

#define CTL_SLOT	9
#define CTL_GPA		((gpa_t)SZ_2G)

/* How often a block becomes a folio again: once in so many holes. */
#define HOLES_PER_FOLIO	4

/* How often a move is a compaction of all memory: once in so many. */
#define MOVES_PER_COMPACTION 16

#define DEFAULT_ITERATIONS 1500
/* Each iteration on them does several conversions, and each takes longer. */
#define EMULATED_SHARE	4

/* A thread that makes no progress for so long hangs, also in a sanitised kernel. */
#define HANG_SECONDS	120

#define SCRAMBLED	0xababababababababULL
#define NO_SLOT		0xfeedfeedfeedfeedULL

enum kind {
	KIND_HOST = 0x11,
	KIND_GUEST = 0x22,
	KIND_SECRET = 0x33,
};

enum phase {
	SHARED,
	TO_PRIVATE,
	PRIVATE,
	TO_SHARED,
};

/* The value of a word, or its few possible values. */
struct words {
	u64 n;
	u64 word[8];
};

struct page_model {
	u64 state;
	u64 owner;
	struct words word0;
	struct words inside;
	u64 since;
	u64 entered;
	u64 mapped;
	u64 gen;
	u64 exposed;
	u64 destroyed;
	u64 wiping;
	u64 poisoned;
};

enum thread_id {
	VCPU0,
	VCPU1,
	CONVERT0,
	CONVERT1,
	TOUCH0,
	TOUCH1,
	PUNCH,
	SLOTS,
	FORK,
	MOVE,
	POISON,
	NR_THREADS,
};

static const char * const thread_names[] = {
	[VCPU0] = "vcpu0", [VCPU1] = "vcpu1",
	[CONVERT0] = "convert0", [CONVERT1] = "convert1",
	[TOUCH0] = "touch0", [TOUCH1] = "touch1",
	[PUNCH] = "punch", [SLOTS] = "slots", [FORK] = "fork",
	[MOVE] = "move", [POISON] = "poison",
};

enum violation {
	HOST_REACHED_PRIVATE,
	HOST_REFUSED_SHARED,
	SECRET_LEAKED,
	MALFORMED_WORD,
	WRONG_WORD0,
	WRITE_LOST,
	WRONG_ATTRIBUTES,
	EMPTY_PROMISE,
	NR_VIOLATIONS,
};

static const char * const violation_names[] = {
	[HOST_REACHED_PRIVATE] = "the host reached a private page",
	[HOST_REFUSED_SHARED] = "the host got SIGBUS on a shared page",
	[SECRET_LEAKED] = "the host saw a secret",
	[MALFORMED_WORD] = "a word that nobody wrote to this page",
	[WRONG_WORD0] = "the first word has a wrong value",
	[WRITE_LOST] = "a write of the guest was lost",
	[WRONG_ATTRIBUTES] = "GET disagrees with what was set",
	[EMPTY_PROMISE] = "a policy was granted for a page that the platform owns",
};

#define MAX_REPORTS 16

enum counter {
	HOST_READS,
	HOST_REFUSED,
	CONVERSIONS,
	REFUSED_EAGAIN,
	REFUSED_HWPOISON,
	REFUSED_OWNED,
	KEPT,
	PUNCHES,
	SECRETS,
	SECRETS_SEEN,
	GUEST_LOCKED,
	SLOT_MISSES,
	GUEST_FAULTS,
	FORKS,
	MOVED,
	POISONED,
	FOLIOS_MADE,
	FOLIOS_SPLIT,
	NR_STATS,
};

static const char * const stat_names[] = {
	[HOST_READS] = "accesses by the host",
	[HOST_REFUSED] = "SIGBUS for the host",
	[CONVERSIONS] = "conversions",
	[REFUSED_EAGAIN] = "requests refused by EAGAIN",
	[REFUSED_HWPOISON] = "requests refused by EHWPOISON",
	[REFUSED_OWNED] = "requests refused by EOPNOTSUPP",
	[KEPT] = "private pages made shared by PRESERVE",
	[PUNCHES] = "holes",
	[SECRETS] = "secrets written",
	[SECRETS_SEEN] = "secrets seen after PRESERVE",
	[GUEST_LOCKED] = "checks of the first word by the guest",
	[SLOT_MISSES] = "guest accesses without a slot",
	[GUEST_FAULTS] = "memory faults of the guest",
	[FORKS] = "children",
	[MOVED] = "pages moved",
	[POISONED] = "poisoned pages",
	[FOLIOS_MADE] = "large folios",
	[FOLIOS_SPLIT] = "large folios split",
};

struct ctl {
	struct page_model pages[NPAGES];
	u64 iterations;
	u64 seed;
	u64 stop;
	u64 scrambles;
	u64 platform;
	u64 remove_zeroes;
	u64 moves;
	/* How many pages the file has for each page of the model. */
	u64 step;
	u64 hot;
	u64 slot_changes[NR_SLOTS];
	u64 dropped[NR_VCPUS];
	u64 progress[NR_THREADS];
	u64 done[NR_THREADS];
	u64 stats[NR_STATS];
	u64 nr_violations;
	struct {
		u64 what, who, page, value, want, extra;
	} reports[MAX_REPORTS];
};

/* The host's data; the guest gets the address of ctl as an argument. */
static struct ctl *ctl;
static u8 *hva;
static int gmem_fd;
static struct kvm_vm *vm;
static struct kvm_vcpu *vcpus[NR_VCPUS];

#define LOAD(x)		__atomic_load_n(&(x), __ATOMIC_SEQ_CST)
#define STORE(x, v)	__atomic_store_n(&(x), v, __ATOMIC_SEQ_CST)
#define ADD(x, v)	__atomic_add_fetch(&(x), v, __ATOMIC_SEQ_CST)

/* Where a page of the model is in the file; for NPAGES, how large the file is. */
static inline u64 offset_of(struct ctl *c, u64 page)
{
	return page * c->step * PAGE_SIZE;
}

/* The other way round, for an offset between pages of the model as well. */
static inline u64 page_of(struct ctl *c, u64 offset)
{
	return offset / PAGE_SIZE / c->step;
}

static inline void count(struct ctl *c, enum counter stat)
{
	__atomic_add_fetch(&c->stats[stat], 1, __ATOMIC_RELAXED);
}

static inline void violation(struct ctl *c, enum violation what, u64 who, u64 page,
		      u64 value, u64 want, u64 extra)
{
	u64 n = __atomic_fetch_add(&c->nr_violations, 1, __ATOMIC_SEQ_CST);

	if (n < MAX_REPORTS) {
		c->reports[n].what = what;
		c->reports[n].who = who;
		c->reports[n].page = page;
		c->reports[n].value = value;
		c->reports[n].want = want;
		c->reports[n].extra = extra;
	}
	STORE(c->stop, 1);
}

static inline u64 next_random(u64 *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state >> 11;
}

/*
 * Fast threads would finish before slow ones have begun. So no thread gets ahead
 * of the conversions, and these not ahead of the first vCPU, by more than a few.
 * The unit is conversions; a vCPU does 20 operations for each of them.
 */
#define PACE_SLACK	20
#define VCPU_OPS	20
#define TOUCH_OPS	10

static inline bool ahead_of_conversions(struct ctl *c, u64 conversions)
{
	return conversions > LOAD(c->progress[CONVERT0]) + PACE_SLACK &&
	       !LOAD(c->done[CONVERT0]) && !LOAD(c->stop);
}

static inline bool ahead_of_guest(struct ctl *c, u64 conversions)
{
	return conversions > LOAD(c->progress[VCPU0]) / VCPU_OPS + PACE_SLACK &&
	       !LOAD(c->done[VCPU0]) && !LOAD(c->stop);
}

static inline void host_pace(u64 conversions)
{
	while (ahead_of_conversions(ctl, conversions))
		sched_yield();
}

/* --- Words ------------------------------------------------------------------ */

/* kind, page, generation, and a checksum so that no such word arises by chance. */
static inline u64 word_check(u64 w)
{
	w *= 0x9e3779b97f4a7c15ULL;
	return (w >> 40) & 0xffffff;
}

static inline u64 make_word(enum kind kind, u64 page, u64 gen)
{
	u64 w = (u64)kind << 56 | page << 48 | (gen & 0xffffff) << 24;

	return w | word_check(w);
}

static inline u64 word_gen(u64 w)
{
	return w >> 24 & 0xffffff;
}

static inline bool word_is(u64 w, enum kind kind)
{
	return w >> 56 == kind;
}

static inline bool word_is_of(u64 w, u64 page)
{
	return (word_is(w, KIND_HOST) || word_is(w, KIND_GUEST) ||
		word_is(w, KIND_SECRET)) && (w >> 48 & 0xff) == page &&
	       (w & 0xffffff) == word_check(w & ~0xffffffULL);
}

/* Encrypted words occur, too. */
static inline bool has_key(struct ctl *c)
{
	return c->platform && !c->remove_zeroes;
}

static inline bool word_legal(struct ctl *c, u64 w, u64 page)
{
	if (!w || (w == SCRAMBLED && c->scrambles) || word_is_of(w, page))
		return true;
	w ^= KVM_GMEM_EMULATION_KEY;
	return has_key(c) && (!w || word_is_of(w, page));
}

static inline bool may_be(struct words *words, u64 w)
{
	u64 i;

	for (i = 0; i < words->n; i++) {
		if (words->word[i] == w)
			return true;
	}
	return false;
}

static inline void add_word(struct words *words, u64 w)
{
	if (!may_be(words, w) && words->n < ARRAY_SIZE(words->word))
		words->word[words->n++] = w;
}

static inline void set_word(struct words *words, u64 w)
{
	words->word[0] = w;
	words->n = 1;
}

/* If the word is not zero, the page is allocated. If it is zero, this is not known. */
static inline void scramble_word(struct words *words)
{
	bool zero = may_be(words, 0);

	set_word(words, SCRAMBLED);
	if (zero)
		add_word(words, 0);
}

static inline bool precise(u64 page)
{
	return page < FIRST_WILD;
}

static inline bool may_be_poisoned(struct page_model *p)
{
	return LOAD(p->poisoned);
}

/* --- Locks -------------------------------------------------------------------- */

static inline bool try_lock(struct ctl *c, u64 page, u64 who)
{
	u64 free = 0;

	return __atomic_compare_exchange_n(&c->pages[page].owner, &free, who + 1,
					   false, __ATOMIC_SEQ_CST,
					   __ATOMIC_SEQ_CST);
}

static inline void unlock(struct ctl *c, u64 page)
{
	STORE(c->pages[page].owner, 0);
}

static inline bool try_lock_range(struct ctl *c, u64 first, u64 n, u64 who)
{
	u64 i;

	for (i = 0; i < n; i++) {
		if (try_lock(c, first + i, who))
			continue;
		while (i--)
			unlock(c, first + i);
		return false;
	}
	return true;
}

static inline void unlock_range(struct ctl *c, u64 first, u64 n)
{
	while (n--)
		unlock(c, first + n);
}

static inline enum phase phase_of(u64 state)
{
	return state & 3;
}

/* --- Emulated platforms ------------------------------------------------------- */

static inline u64 slot_changes(struct ctl *c, u64 page)
{
	return LOAD(c->slot_changes[page / SLOT_PAGES]);
}

/* Whether the slot of a page may have been deleted, even for a moment. */
static inline bool slot_changed(struct ctl *c, u64 page, u64 since)
{
	return since & 1 || slot_changes(c, page) != since;
}

static inline bool has_sept(struct ctl *c)
{
	return c->platform == KVM_GMEM_EMULATE_TDX;
}

/* With the lock: the platform owns the page, and nothing can have changed that. */
static inline bool surely_owned(struct ctl *c, u64 page)
{
	struct page_model *p = &c->pages[page];

	return precise(page) && p->mapped &&
	       !(has_sept(c) && slot_changed(c, page, p->since));
}

static inline void set_empty(struct page_model *p)
{
	set_word(&p->word0, 0);
	set_word(&p->inside, 0);
	p->mapped = 0;
}

/* --- The guest ------------------------------------------------------------------ */

static inline volatile u64 *guest_word(struct ctl *c, u64 page, u64 word)
{
	return (volatile u64 *)(GMEM_GPA + offset_of(c, page) + word * sizeof(u64));
}

static inline u64 guest_read(struct ctl *c, u64 page, u64 word)
{
	u64 w;

	do {
		w = *guest_word(c, page, word);
	} while (w == NO_SLOT);
	return w;
}

/* Repeats the write until it has arrived; only for words that no other thread writes now. */
static inline void guest_write_checked(struct ctl *c, u64 id, u64 page, u64 w,
				bool inside)
{
	u64 since, got;

	for (;;) {
		since = slot_changes(c, page);
		STORE(c->dropped[id], 0);
		*guest_word(c, page, 0) = w;
		if (LOAD(c->dropped[id]))
			continue;
		got = guest_read(c, page, 0);
		if (inside && !got && slot_changed(c, page, since))
			continue;
		if (got != w && precise(page))
			violation(c, WRITE_LOST, id, page, got, w, 0);
		c->pages[page].since = since;
		return;
	}
}

/* With the lock: compare the first word and write a new one. */
static inline void guest_locked(struct ctl *c, u64 id, u64 page, u64 *seed)
{
	struct page_model *p = &c->pages[page];
	bool private = phase_of(LOAD(p->state)) == PRIVATE;
	bool inside = private && has_sept(c);
	u64 key = private && c->platform == KVM_GMEM_EMULATE_SNP ?
		  KVM_GMEM_EMULATION_KEY : 0;
	enum kind kind = private ? KIND_SECRET : KIND_GUEST;
	struct words *words = inside ? &p->inside : &p->word0;
	u64 w = guest_read(c, page, 0);

	if (precise(page) && !may_be(words, w ^ key) &&
	    !(inside && !w && slot_changed(c, page, p->since)))
		violation(c, WRONG_WORD0, id, page, w ^ key, words->word[0], words->n);

	w = make_word(kind, page, p->gen);
	guest_write_checked(c, id, page, w, inside);
	set_word(words, w ^ key);
	p->mapped = private && c->platform;

	/* One more secret, which accesses without the lock may overwrite. */
	*guest_word(c, page, 1 + next_random(seed) % (WORDS - 1)) = w;
	count(c, GUEST_LOCKED);
	if (private)
		count(c, SECRETS);
}

static inline void guest_unlocked_read(struct ctl *c, u64 id, u64 page, u64 word)
{
	struct page_model *p = &c->pages[page];
	u64 wiping = LOAD(p->wiping), w = guest_read(c, page, word);

	if (!word_legal(c, w, page) && !(wiping & 1) && wiping == LOAD(p->wiping))
		violation(c, MALFORMED_WORD, id, page, w, 0, word);
}

/* A fault in the range of a running conversion, if there is one, without the lock. */
static inline void guest_touch_hot(struct ctl *c, u64 id, u64 *seed)
{
	u64 hot = LOAD(c->hot), first = hot >> 32, n = (u32)hot, i;

	for (i = 0; i < n; i++)
		guest_unlocked_read(c, id, first + next_random(seed) % n, WORDS - 1);
}

static inline void guest_code(struct ctl *c, u64 id)
{
	u64 seed = c->seed * (id + 1) + 1, n = c->iterations * VCPU_OPS, i;

	for (i = 0; i < n && !LOAD(c->stop); i++) {
		u64 page = next_random(&seed) % NPAGES;
		u64 word = 1 + next_random(&seed) % (WORDS - 1);

		/* Yields the CPU to the threads that the guest waits for. */
		while (ahead_of_conversions(c, i / VCPU_OPS)) {
			guest_touch_hot(c, id, &seed);
			GUEST_UCALL_NONE();
		}

		switch (next_random(&seed) % 4) {
		case 0:
			guest_unlocked_read(c, id, page, word);
			guest_touch_hot(c, id, &seed);
			break;
		case 1:
			*guest_word(c, page, word) =
				make_word(KIND_GUEST, page, c->pages[page].gen);
			guest_touch_hot(c, id, &seed);
			break;
		default:
			if (!try_lock(c, page, id))
				break;
			guest_locked(c, id, page, &seed);
			unlock(c, page);
		}
		STORE(c->progress[VCPU0 + id], i + 1);
	}
	GUEST_DONE();
}

#endif /* SELFTEST_KVM_GMEM_STRESS_H */
