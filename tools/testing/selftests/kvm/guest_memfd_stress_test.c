// SPDX-License-Identifier: GPL-2.0
/*
 * All operations on an in-place guest_memfd at once, checked against a model of which
 * party may see which bytes: the host's side. gmem_stress.h has the model and the guest.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "gmem_stress.h"
#include "numaif.h"

/* --- The VMM ---------------------------------------------------------------------- */

/* A hole replaces poisoned pages by fresh ones. */
static void heal(u64 page)
{
	gmem_punch(gmem_fd, offset_of(ctl, page), PAGE_SIZE);
	count(ctl, PUNCHES);
}

static void *vcpu_thread(void *arg)
{
	u64 id = (unsigned long)arg, off, none = NO_SLOT;
	struct kvm_vcpu *vcpu = vcpus[id];
	struct kvm_run *run = vcpu->run;
	struct ucall uc;
	int r;

	for (;;) {
		r = __vcpu_run(vcpu);
		if (r < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (r < 0 && (errno == EFAULT || errno == EHWPOISON)) {
			TEST_ASSERT(run->exit_reason == KVM_EXIT_MEMORY_FAULT,
				    "KVM_RUN: errno %d with exit reason %u", errno,
				    run->exit_reason);
			off = run->memory_fault.gpa - GMEM_GPA;
			TEST_ASSERT(off < offset_of(ctl, NPAGES),
				    "Memory fault at %#llx", run->memory_fault.gpa);
			count(ctl, GUEST_FAULTS);
			if (errno == EHWPOISON) {
				TEST_ASSERT(page_of(ctl, off) >= FIRST_POISON,
					    "Page %lu was never poisoned",
					    page_of(ctl, off));
				heal(page_of(ctl, off));
			}
			sched_yield();
			continue;
		}
		TEST_ASSERT(!r, "KVM_RUN of vCPU %lu: errno %d (%s)", id, errno,
			    strerror(errno));

		if (run->exit_reason == KVM_EXIT_MMIO) {
			off = run->mmio.phys_addr - GMEM_GPA;
			TEST_ASSERT(off < offset_of(ctl, NPAGES),
				    "MMIO at %#llx", run->mmio.phys_addr);
			count(ctl, SLOT_MISSES);
			if (run->mmio.is_write)
				STORE(ctl->dropped[id], 1);
			else
				memcpy(run->mmio.data, &none, sizeof(none));
			sched_yield();
			continue;
		}

		if (run->exit_reason != KVM_EXIT_IO)
			vcpu_dump(stderr, vcpu, 2);
		TEST_ASSERT(run->exit_reason == KVM_EXIT_IO,
			    "vCPU %lu: exit reason %u (%s)", id, run->exit_reason,
			    exit_reason_str(run->exit_reason));
		switch (get_ucall(vcpu, &uc)) {
		case UCALL_NONE:
			sched_yield();
			break;
		case UCALL_DONE:
			STORE(ctl->done[VCPU0 + id], 1);
			return NULL;
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
			break;
		default:
			TEST_FAIL("Unexpected ucall %lu", uc.cmd);
		}
	}
}

/* --- The host's accesses ---------------------------------------------------------- */

static volatile u64 *host_word(u64 page, u64 word)
{
	return (volatile u64 *)(hva + offset_of(ctl, page)) + word;
}

static bool host_read_word(volatile u64 *p, u64 *w)
{
	return gmem_host_can(*w = *p);
}

static bool host_write_word(volatile u64 *p, u64 w)
{
	return gmem_host_can(*p = w);
}

/* Checks one access; before is the page's state before the access. */
static void judge_access(u64 who, u64 page, u64 before, bool ok, u64 value)
{
	struct page_model *p = &ctl->pages[page];

	count(ctl, ok ? HOST_READS : HOST_REFUSED);
	if (before != LOAD(p->state))
		return;
	if (phase_of(before) == PRIVATE && ok)
		violation(ctl, HOST_REACHED_PRIVATE, who, page, value, 0, before);
	if (phase_of(before) == SHARED && !ok && !may_be_poisoned(p))
		violation(ctl, HOST_REFUSED_SHARED, who, page, 0, 0, before);
}

/*
 * Reads through a reference to the page that a pipe holds for a while. Requests to
 * private fail for that long.
 */
static bool host_read_pinned(volatile u64 *p, u64 *w)
{
	struct iovec iov = { .iov_base = (void *)p, .iov_len = sizeof(*p) };
	int fds[2], i;
	bool ok;

	TEST_ASSERT(!pipe(fds), "pipe(): errno %d", errno);
	ok = vmsplice(fds[1], &iov, 1, 0) == sizeof(*p);
	if (ok) {
		/* Long enough for a request to meet the pin, if requests still run. */
		u64 before = LOAD(ctl->progress[CONVERT0]);

		for (i = 0; i < 64 && LOAD(ctl->progress[CONVERT0]) == before; i++)
			sched_yield();
		ok = read(fds[0], w, sizeof(*w)) == sizeof(*w);
	}
	close(fds[0]);
	close(fds[1]);
	return ok;
}

static void host_read(u64 who, u64 page, u64 word, bool pinned)
{
	struct page_model *p = &ctl->pages[page];
	u64 state = LOAD(p->state), wiping = LOAD(p->wiping);
	u64 destroyed = LOAD(p->destroyed), exposed, w = 0;
	bool ok = pinned ? host_read_pinned(host_word(page, word), &w) :
			   host_read_word(host_word(page, word), &w);

	exposed = LOAD(p->exposed);
	judge_access(who, page, state, ok, w);
	if (!ok)
		return;

	if (!word_legal(ctl, w, page)) {
		if (!(wiping & 1) && wiping == LOAD(p->wiping))
			violation(ctl, MALFORMED_WORD, who, page, w, 0, word);
		return;
	}
	if (ctl->platform) {
		if (word_is(w, KIND_SECRET))
			violation(ctl, SECRET_LEAKED, who, page, w, 0, 0);
		w ^= KVM_GMEM_EMULATION_KEY;
	}
	if (word_is(w, KIND_SECRET) && word_is_of(w, page)) {
		count(ctl, SECRETS_SEEN);
		if (word_gen(w) <= destroyed || word_gen(w) > exposed)
			violation(ctl, SECRET_LEAKED, who, page, w, destroyed,
				  exposed);
	}
}

static void host_write(u64 who, u64 page, u64 word)
{
	struct page_model *p = &ctl->pages[page];
	u64 state = LOAD(p->state);
	u64 w = make_word(KIND_HOST, page, LOAD(p->gen));
	bool ok = host_write_word(host_word(page, word), w);

	judge_access(who, page, state, ok, w);
}

/* With the lock, and the page shared: the first word is known. */
static void host_check_word0(u64 who, u64 page)
{
	struct page_model *p = &ctl->pages[page];
	u64 w = 0;

	if (!precise(page))
		return;
	if (!host_read_word(host_word(page, 0), &w))
		violation(ctl, HOST_REFUSED_SHARED, who, page, 0, 0, LOAD(p->state));
	else if (!may_be(&p->word0, w))
		violation(ctl, WRONG_WORD0, who, page, w, p->word0.word[0], p->word0.n);
	else
		set_word(&p->word0, w);
}

static void host_locked(u64 who, u64 page)
{
	struct page_model *p = &ctl->pages[page];
	u64 w;

	if (!try_lock(ctl, page, who))
		return;
	if (phase_of(LOAD(p->state)) == SHARED) {
		host_check_word0(who, page);
		w = make_word(KIND_HOST, page, p->gen);
		if (host_write_word(host_word(page, 0), w))
			set_word(&p->word0, w);
		else if (!may_be_poisoned(p))
			violation(ctl, HOST_REFUSED_SHARED, who, page, w, 0,
				  LOAD(p->state));
	}
	unlock(ctl, page);
}

static void host_touch(u64 who, u64 *seed, bool may_lock)
{
	u64 page = next_random(seed) % NPAGES;

	switch (next_random(seed) % 4) {
	case 0:
		host_write(who, page, 1 + next_random(seed) % (WORDS - 1));
		break;
	case 1:
		if (may_lock) {
			host_locked(who, page);
			break;
		}
		/* fallthrough */
	default:
		host_read(who, page,
			  next_random(seed) & 1 ? 0 : next_random(seed) % WORDS,
			  !(next_random(seed) % 16));
	}
}

static void *touch_thread(void *arg)
{
	u64 who = (unsigned long)arg, seed = ctl->seed * (who + 7) + 3, i;

	for (i = 0; i < ctl->iterations * TOUCH_OPS && !LOAD(ctl->stop); i++) {
		host_pace(i / TOUCH_OPS);
		host_touch(who, &seed, true);
		STORE(ctl->progress[who], i + 1);
	}
	STORE(ctl->done[who], 1);
	return NULL;
}

/*
 * A child has its own mapping in its own mm, and shares the memory of the model.
 * It takes no lock, so that no lock is lost when it dies.
 */
static void *fork_thread(void *arg)
{
	u64 who = (unsigned long)arg, seed = ctl->seed * (who + 7) + 3, i, j;
	int status;
	pid_t pid;

	for (i = 0; i < (ctl->iterations + 49) / 50 && !LOAD(ctl->stop); i++) {
		host_pace(i * 50);
		next_random(&seed);
		pid = fork();
		TEST_ASSERT(pid >= 0, "fork(): errno %d", errno);
		if (!pid) {
			for (j = 0; j < 200 && !LOAD(ctl->stop); j++)
				host_touch(who, &seed, false);
			_exit(0);
		}
		TEST_ASSERT(waitpid(pid, &status, 0) == pid && WIFEXITED(status) &&
			    !WEXITSTATUS(status), "Child: status %#x", status);
		count(ctl, FORKS);
		STORE(ctl->progress[who], i + 1);
	}
	STORE(ctl->done[who], 1);
	return NULL;
}

/* --- Conversions -------------------------------------------------------------------- */

/* With the locks: updates the model of a range before the request. */
static void before_request(u64 first, u64 n, u64 attrs, bool destroys,
			   u64 *old_exposed)
{
	u64 i;

	for (i = 0; i < n; i++) {
		struct page_model *p = &ctl->pages[first + i];

		if (destroys)
			ADD(p->wiping, 1);
		old_exposed[i] = p->exposed;
		if (!attrs && !destroys)
			STORE(p->exposed, p->gen);
		if (phase_of(p->state) != (attrs ? SHARED : PRIVATE))
			continue;
		/* Nobody may see secrets of the next private phase yet. */
		if (attrs) {
			STORE(p->gen, p->gen + 1);
			p->entered = slot_changes(ctl, first + i);
		}
		ADD(p->state, 1);
	}
}

/* The platform has done its part. */
static void after_grant(u64 who, u64 page, u64 attrs, u64 policy, bool changes)
{
	struct page_model *p = &ctl->pages[page];
	bool owned = surely_owned(ctl, page);
	u64 i;

	if (owned && ((attrs && policy == GMEM_ZERO) ||
		      (!attrs && policy == GMEM_PRESERVE && has_sept(ctl))))
		violation(ctl, EMPTY_PROMISE, who, page, attrs, policy, p->since);

	if (policy == GMEM_ZERO) {
		set_empty(p);
	} else if (changes && attrs) {
		set_word(&p->inside, 0);
	} else if (changes && has_sept(ctl) &&
		   (policy == GMEM_NONE || slot_changed(ctl, page, p->entered))) {
		/* The page may have been in the S-EPT, and been removed from it. */
		add_word(&p->word0, ctl->remove_zeroes ? 0 : KVM_GMEM_EMULATION_KEY);
		for (i = 0; i < p->inside.n && !ctl->remove_zeroes; i++)
			add_word(&p->word0, p->inside.word[i] ^ KVM_GMEM_EMULATION_KEY);
	} else if (changes && policy == GMEM_PRESERVE) {
		count(ctl, KEPT);
	}
	if (changes)
		p->mapped = 0;
}

/* With the locks: updates the model of a range after the request. */
static void after_request(u64 who, u64 first, u64 n, u64 attrs, u64 policy,
			  bool destroys, bool ok, u64 *old_exposed)
{
	u64 i;

	for (i = 0; i < n; i++) {
		struct page_model *p = &ctl->pages[first + i];
		enum phase phase = phase_of(p->state);

		if (ok && destroys) {
			if (policy == GMEM_ZERO)
				set_word(&p->word0, 0);
			else
				scramble_word(&p->word0);
			STORE(p->destroyed, p->gen);
			STORE(p->gen, p->gen + 1);
		}
		if (!ok)
			STORE(p->exposed, old_exposed[i]);
		else if (ctl->platform)
			after_grant(who, first + i, attrs, policy,
				    phase == TO_PRIVATE || phase == TO_SHARED);
		if (phase == TO_PRIVATE || phase == TO_SHARED)
			ADD(p->state, ok ? 1 : 3);
		if (destroys)
			ADD(p->wiping, 1);
	}
}

static void check_after_request(u64 who, u64 first, u64 n)
{
	u64 i, w, attrs;

	for (i = first; i < first + n; i++) {
		struct page_model *p = &ctl->pages[i];
		bool private = phase_of(p->state) == PRIVATE;
		int r = gmem_get(gmem_fd, offset_of(ctl, i), &attrs, NULL);

		if (r || !!attrs != private)
			violation(ctl, WRONG_ATTRIBUTES, who, i, attrs, private, r);
		if (private) {
			if (host_read_word(host_word(i, 0), &w))
				violation(ctl, HOST_REACHED_PRIVATE, who, i, w, 0,
					  p->state);
		} else {
			host_check_word0(who, i);
		}
	}
}

static bool has_folios(void)
{
	return ctl->step > 1;
}

/*
 * A part of the file that has pages of the model, and what is between those before and
 * behind. Without @seed it begins and ends with them.
 */
struct part {
	u64 offset, size;
};

static struct part part_of(u64 first, u64 n, u64 *seed)
{
	u64 start = offset_of(ctl, first), end = offset_of(ctl, first + n);

	if (seed) {
		end -= next_random(seed) % ctl->step * PAGE_SIZE;
		if (first)
			start -= next_random(seed) % ctl->step * PAGE_SIZE;
	}
	return (struct part) { start, end - start };
}

/* The errors that a request may return. */
static bool may_refuse(int r, u64 page, u64 attrs, u64 policy, bool destroys)
{
	switch (r) {
	case EAGAIN:
		return attrs || has_folios();
	case EHWPOISON:
		return destroys && may_be_poisoned(&ctl->pages[page]);
	case EOPNOTSUPP:
		/* The platform can own private pages only. */
		return phase_of(LOAD(ctl->pages[page].state)) == PRIVATE &&
		       ((ctl->platform && attrs && policy == GMEM_ZERO) ||
			(has_sept(ctl) && !attrs && policy == GMEM_PRESERVE));
	default:
		return false;
	}
}

/* With the locks. Returns whether it has worked. */
static bool request(u64 who, u64 first, u64 n, u64 attrs, u64 policy, u64 *seed)
{
	const struct part part = part_of(first, n, seed);
	bool destroys = policy == GMEM_ZERO ||
			(policy == GMEM_NONE && ctl->scrambles);
	u64 old_exposed[NPAGES], eo = 0, page;
	int i, r = EAGAIN;

	before_request(first, n, attrs, destroys, old_exposed);
	for (i = 0; i < 50 && r == EAGAIN; i++) {
		r = gmem_set_once(gmem_fd, part.offset, part.size, attrs, policy, &eo);
		if (r == EAGAIN) {
			count(ctl, REFUSED_EAGAIN);
			sched_yield();
		}
	}
	after_request(who, first, n, attrs, policy, destroys, !r, old_exposed);

	if (r) {
		page = page_of(ctl, eo);
		TEST_ASSERT(eo >= part.offset && eo < part.offset + part.size,
			    "errno %d (%s): error_offset %#lx is outside pages %lu to %lu",
			    r, strerror(r), eo, first, first + n - 1);
		TEST_ASSERT(may_refuse(r, page, attrs, policy, destroys),
			    "Pages %lu to %lu, attributes %#lx, policy %#lx: errno %d (%s) for page %lu",
			    first, first + n - 1, attrs, policy, r, strerror(r), page);
		if (r == EOPNOTSUPP)
			count(ctl, REFUSED_OWNED);
		if (r == EHWPOISON) {
			count(ctl, REFUSED_HWPOISON);
			heal(page);
		}
	} else {
		count(ctl, CONVERSIONS);
	}
	check_after_request(who, first, n);
	return !r;
}

/* With the locks: writes bytes to be preserved. */
static void host_write_words(u64 first, u64 n)
{
	u64 i, w;

	for (i = first; i < first + n; i++) {
		struct page_model *p = &ctl->pages[i];

		w = make_word(KIND_HOST, i, p->gen);
		if (phase_of(p->state) == SHARED &&
		    host_write_word(host_word(i, 0), w))
			set_word(&p->word0, w);
	}
}

static void convert(u64 who, u64 *seed)
{
	static const u64 policies[] = {
		GMEM_NONE, GMEM_ZERO, GMEM_PRESERVE, GMEM_PRESERVE,
	};
	u64 first = next_random(seed) % NPAGES;
	u64 n = 1 + next_random(seed) % (next_random(seed) % 8 ? 4 : 24);
	u64 attrs = next_random(seed) & 1 ? GMEM_PRIVATE : GMEM_SHARED;
	u64 policy = policies[next_random(seed) % ARRAY_SIZE(policies)];

	if (n > NPAGES - first)
		n = NPAGES - first;
	if (!try_lock_range(ctl, first, n, who))
		return;
	request(who, first, n, attrs, policy, seed);
	if (ctl->platform && next_random(seed) & 1) {
		/*
		 * To private and back, while the guest faults on the pages. The
		 * bytes depend only on whether the guest gets a page before, or
		 * while, PRESERVE asks for its owner.
		 */
		request(who, first, n, GMEM_SHARED, GMEM_ZERO, seed);
		host_write_words(first, n);
		if (next_random(seed) & 1)
			STORE(ctl->hot, first << 32 | n);
		request(who, first, n, GMEM_PRIVATE, GMEM_PRESERVE, seed);
		STORE(ctl->hot, first << 32 | n);
		request(who, first, n, GMEM_SHARED, GMEM_PRESERVE, seed);
		STORE(ctl->hot, 0);
	}
	unlock_range(ctl, first, n);
}

static void *convert_thread(void *arg)
{
	u64 who = (unsigned long)arg, seed = ctl->seed * (who + 7) + 3, i;

	for (i = 0; i < ctl->iterations && !LOAD(ctl->stop); i++) {
		while (ahead_of_guest(ctl, i))
			sched_yield();
		convert(who, &seed);
		STORE(ctl->progress[who], i + 1);
	}
	STORE(ctl->done[who], 1);
	return NULL;
}

/* --- Holes, slots, poison --------------------------------------------------------------- */

/* Returns whether there is a hole now: not if a folio would be split that is held. */
static bool punch(u64 first, u64 n, u64 *seed)
{
	const struct part part = part_of(first, n, seed);
	int r = gmem_punch(gmem_fd, part.offset, part.size);

	TEST_ASSERT(!r || (r == EAGAIN && seed && has_folios()), "punch: errno %d", r);
	if (!r)
		count(ctl, PUNCHES);
	return !r;
}

/* With the locks a hole acts like a request with ZERO that keeps the state. */
static void punch_locked(u64 who, u64 first, u64 n, u64 *seed)
{
	u64 i;

	if (punch(first, n, seed)) {
		for (i = first; i < first + n; i++) {
			struct page_model *p = &ctl->pages[i];

			set_empty(p);
			STORE(p->destroyed, p->gen);
			STORE(p->gen, p->gen + 1);
		}
	}
	check_after_request(who, first, n);
}

/*
 * Makes the pages of a slot a folio again. All others only try to take locks, so that
 * one may wait for them.
 */
static void renew_folio(u64 who, u64 first, u64 attrs)
{
	const struct part part = part_of(first, SLOT_PAGES, NULL);
	u64 n;
	int r;

	for (n = 0; n < SLOT_PAGES && !LOAD(ctl->stop); n++)
		while (!try_lock(ctl, first + n, who) && !LOAD(ctl->stop))
			sched_yield();
	if (!LOAD(ctl->stop) && request(who, first, n, attrs, GMEM_NONE, NULL)) {
		punch_locked(who, first, n, NULL);
		r = gmem_allocate(gmem_fd, part.offset, part.size);
		TEST_ASSERT(!r, "fallocate: errno %d", r);
	}
	unlock_range(ctl, first, n);
}

static void *punch_thread(void *arg)
{
	u64 who = (unsigned long)arg, seed = ctl->seed * (who + 7) + 3, i, first, n;

	for (i = 0; i < (ctl->iterations + 1) / 2 && !LOAD(ctl->stop); i++) {
		host_pace(i * 2);
		n = 1 + next_random(&seed) % 4;
		if (next_random(&seed) & 1) {
			first = next_random(&seed) % (NPAGES - n + 1);
			if (try_lock_range(ctl, first, n, who)) {
				punch_locked(who, first, n, &seed);
				unlock_range(ctl, first, n);
			}
		} else {
			first = FIRST_WILD +
				next_random(&seed) % (NPAGES - FIRST_WILD - n + 1);
			punch(first, n, &seed);
		}
		if (has_folios() && !(i % HOLES_PER_FOLIO))
			renew_folio(who, i / HOLES_PER_FOLIO % NR_SLOTS * SLOT_PAGES,
				    next_random(&seed) & 1 ? GMEM_PRIVATE : GMEM_SHARED);
		STORE(ctl->progress[who], i + 1);
	}
	STORE(ctl->done[who], 1);
	return NULL;
}

static void set_slot(int i, bool present)
{
	const struct part part = part_of(i * SLOT_PAGES, SLOT_PAGES, NULL);

	vm_set_user_memory_region2(vm, GMEM_SLOT + i, KVM_MEM_GUEST_MEMFD,
				   GMEM_GPA + part.offset, present ? part.size : 0,
				   hva + part.offset, gmem_fd, part.offset);
}

static void *slots_thread(void *arg)
{
	u64 who = (unsigned long)arg, seed = ctl->seed * (who + 7) + 3, i;

	for (i = 0; i < (ctl->iterations + 19) / 20 && !LOAD(ctl->stop); i++) {
		int slot = next_random(&seed) % NR_SLOTS;

		host_pace(i * 20);
		ADD(ctl->slot_changes[slot], 1);
		set_slot(slot, false);
		if (next_random(&seed) & 1)
			sched_yield();
		set_slot(slot, true);
		ADD(ctl->slot_changes[slot], 1);
		STORE(ctl->progress[who], i + 1);
	}
	STORE(ctl->done[who], 1);
	return NULL;
}

/*
 * Moves pages that the host has mapped to the other node, and all pages, private ones
 * too, by compaction. It is not known whether a page can be moved at this moment.
 */
static void move(u64 first, u64 n, int node)
{
	int nodes[NPAGES], status[NPAGES];
	void *pages[NPAGES];
	u64 i;

	for (i = 0; i < n; i++) {
		pages[i] = hva + offset_of(ctl, first + i);
		nodes[i] = node;
	}
	TEST_ASSERT(move_pages(0, n, pages, nodes, status, MPOL_MF_MOVE_ALL) >= 0,
		    "move_pages: errno %d (%s)", errno, strerror(errno));
}

static void *move_thread(void *arg)
{
	u64 who = (unsigned long)arg, seed = ctl->seed * (who + 7) + 3, i, first, n;
	int fd = open("/proc/sys/vm/compact_memory", O_WRONLY);

	TEST_ASSERT(fd >= 0, "compact_memory: errno %d", errno);
	for (i = 0; i < (ctl->iterations + 4) / 5 && ctl->moves && !LOAD(ctl->stop); i++) {
		host_pace(i * 5);
		first = next_random(&seed) % NPAGES;
		n = 1 + next_random(&seed) % (NPAGES - first);
		move(first, n, next_random(&seed) & 1);
		if (!(i % MOVES_PER_COMPACTION))
			TEST_ASSERT(pwrite(fd, "1", 1, 0) == 1, "compact_memory: errno %d", errno);
		STORE(ctl->progress[who], i + 1);
	}
	close(fd);
	ctl->stats[MOVED] = ctl->moves ? vm_get_stat(vm, gmem_migrated) : 0;
	STORE(ctl->done[who], 1);
	return NULL;
}

/* EBUSY: poisoned, but held by somebody else at this moment. */
static int poison(u64 page)
{
	volatile int r = 0;

	if (!sigsetjmp(gmem_probe_env, 1)) {
		gmem_probing = 1;
		if (madvise(hva + offset_of(ctl, page), PAGE_SIZE, MADV_HWPOISON) &&
		    errno != EBUSY)
			r = errno;
	}
	gmem_probing = 0;
	return r;
}

static void *poison_thread(void *arg)
{
	u64 who = (unsigned long)arg, i, page, tries, n = 0;
	int r;

	for (i = 0; i < NR_POISON && !LOAD(ctl->stop); i++) {
		page = FIRST_POISON + i;
		STORE(ctl->pages[page].poisoned, 1);
		/* Private pages cannot be poisoned, so wait for the page to be shared. */
		for (tries = 0; tries < 10000 && !LOAD(ctl->stop); tries++) {
			r = poison(page);
			if (!r)
				n++;
			STORE(ctl->progress[who], ctl->progress[who] + 1);
			if (r != EFAULT)
				break;
			sched_yield();
		}
		/* The difference of two counts shows what the other threads did meanwhile. */
		tries = LOAD(ctl->progress[CONVERT0]) + ctl->iterations / (NR_POISON + 1);
		while (LOAD(ctl->progress[CONVERT0]) < tries &&
		       !LOAD(ctl->done[CONVERT0]) && !LOAD(ctl->stop)) {
			STORE(ctl->progress[who], ctl->progress[who] + 1);
			usleep(1000);
		}
	}
	ctl->stats[POISONED] = n;
	STORE(ctl->done[who], 1);
	return NULL;
}

/* --- Main ------------------------------------------------------------------------------- */

/* Returns when all are done; ends the program if one hangs. */
static void watch(void)
{
	u64 last[NR_THREADS] = {}, now;
	int quiet[NR_THREADS] = {}, i, left, ticks = 0;

	do {
		usleep(100000);
		for (i = 0, left = 0; i < NR_THREADS; i++)
			left += !LOAD(ctl->done[i]);
		if (++ticks % 10)
			continue;
		for (i = 0; i < NR_THREADS; i++) {
			now = LOAD(ctl->progress[i]);
			quiet[i] = now == last[i] && !LOAD(ctl->done[i]) ? quiet[i] + 1 : 0;
			last[i] = now;
			if (quiet[i] < HANG_SECONDS)
				continue;
			for (i = 0; i < NR_THREADS; i++)
				ksft_print_msg("%s: %lu operations, %s\n",
					       thread_names[i],
					       LOAD(ctl->progress[i]),
					       LOAD(ctl->done[i]) ? "done" :
					       quiet[i] >= HANG_SECONDS / 2 ? "STUCK" : "running");
			for (i = 0; i < NPAGES; i++)
				if (LOAD(ctl->pages[i].owner))
					ksft_print_msg("page %d: phase %d, locked by %s\n",
						       i, phase_of(LOAD(ctl->pages[i].state)),
						       thread_names[LOAD(ctl->pages[i].owner) - 1]);
			ksft_test_result_fail("stress: a thread hangs\n");
			fflush(NULL);
			_exit(KSFT_FAIL);
		}
	} while (left);
}

static void report(void)
{
	u64 i, n = ctl->nr_violations;

	for (i = 0; i < NR_STATS; i++)
		ksft_print_msg("%lu %s\n", ctl->stats[i], stat_names[i]);
	for (i = 0; i < n && i < MAX_REPORTS; i++)
		ksft_print_msg("VIOLATION: %s: page %lu by %s: value %#lx, wanted %#lx (%#lx)\n",
			       violation_names[ctl->reports[i].what],
			       ctl->reports[i].page,
			       thread_names[ctl->reports[i].who],
			       ctl->reports[i].value, ctl->reports[i].want,
			       ctl->reports[i].extra);
}

struct storm {
	const char *name;
	u32 platform;	/* KVM_GMEM_EMULATE_*, or none */
	u64 flags;
	bool large;
};

static const struct storm storms[] = {
	{ "sw_protected" },
	{ "sw_protected_large", .large = true },
	{ "emulated_snp", KVM_GMEM_EMULATE_SNP },
	{ "emulated_tdx", KVM_GMEM_EMULATE_TDX },
	{ "emulated_tdx_zeroing", KVM_GMEM_EMULATE_TDX, KVM_GMEM_EMULATE_REMOVE_ZEROES },
};

/* A run without one of these has not tested enough. */
static bool all_happened(void)
{
	static const enum counter stats[] = {
		HOST_READS, HOST_REFUSED, CONVERSIONS, REFUSED_EAGAIN, PUNCHES, SECRETS,
		SECRETS_SEEN, GUEST_LOCKED, FORKS, REFUSED_OWNED, KEPT, MOVED,
		FOLIOS_MADE, FOLIOS_SPLIT,
	};
	bool ok = true;
	int i;

	for (i = 0; i < ARRAY_SIZE(stats); i++) {
		if (ctl->stats[stats[i]] ||
		    (stats[i] == SECRETS_SEEN && ctl->remove_zeroes) ||
		    (stats[i] == MOVED && !ctl->moves) ||
		    (stats[i] >= FOLIOS_MADE && !has_folios()) ||
		    (stats[i] >= REFUSED_OWNED && stats[i] <= KEPT && !ctl->platform))
			continue;
		ksft_print_msg("This never happened: %s\n", stat_names[stats[i]]);
		ok = false;
	}
	return ok;
}

static void create_vm(const struct storm *storm, u64 npages)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};
	int i, r;

	if (!storm->platform) {
		vm = __vm_create_with_vcpus(shape, NR_VCPUS, npages, guest_code, vcpus);
		return;
	}
	vm = gmem_vm_create_emulated(storm->platform, storm->flags, NR_VCPUS, npages,
				     vcpus);
	for (i = 0; i < NR_VCPUS; i++)
		vcpu_arch_set_entry_point(vcpus[i], guest_code);
	r = gmem_launch_finish(vm);
	TEST_ASSERT(!r, "LAUNCH_FINISH: errno %d (%s)", r, strerror(r));
}

static bool run_storm(const struct storm *storm, u64 iterations, u64 seed)
{
	static void *(*fns[NR_THREADS])(void *) = {
		[VCPU0] = vcpu_thread, [VCPU1] = vcpu_thread,
		[CONVERT0] = convert_thread, [CONVERT1] = convert_thread,
		[TOUCH0] = touch_thread, [TOUCH1] = touch_thread,
		[PUNCH] = punch_thread, [SLOTS] = slots_thread,
		[FORK] = fork_thread, [MOVE] = move_thread,
		[POISON] = poison_thread,
	};
	const u64 ctl_size = align_up(sizeof(struct ctl), PAGE_SIZE);
	const u64 step = storm->large ? LARGE_STEP : 1, size = NPAGES * step * PAGE_SIZE;
	struct userspace_mem_region *region;
	pthread_t threads[NR_THREADS];
	u64 destroyed = 0;
	bool ok;
	int i;

	create_vm(storm, NPAGES * step);

	/*
	 * The children test the file's mapping only. Keep copy-on-write away from
	 * the guest's code, stack and page tables, as VMMs do.
	 */
	region = memslot2region(vm, 0);
	TEST_ASSERT(!madvise(region->host_mem, region->region.memory_size, MADV_DONTFORK),
		    "MADV_DONTFORK: errno %d", errno);

	/* Shared with the children, hence not in the memory of libkvm. */
	ctl = kvm_mmap(ctl_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	vm_set_user_memory_region(vm, CTL_SLOT, 0, CTL_GPA, ctl_size, ctl);
	virt_map(vm, CTL_GPA, CTL_GPA, ctl_size / PAGE_SIZE);
	ctl->iterations = iterations;
	ctl->seed = seed;
	ctl->platform = storm->platform;
	ctl->remove_zeroes = !!(storm->flags & KVM_GMEM_EMULATE_REMOVE_ZEROES);
	ctl->scrambles = !storm->platform && gmem_scrambles();
	ctl->step = step;
	/* Files with large folios have none that move. */
	ctl->moves = !storm->large && is_multi_numa_node_system() &&
		     vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_MIGRATABLE;
	for (i = 0; i < NPAGES; i++) {
		ctl->pages[i].gen = 1;
		set_empty(&ctl->pages[i]);
	}

	gmem_fd = vm_create_guest_memfd(vm, size, GMEM_MMAP_SHARED |
					(storm->large ? GUEST_MEMFD_FLAG_LARGE_FOLIOS : 0) |
					(ctl->moves ? GUEST_MEMFD_FLAG_MIGRATABLE : 0));
	hva = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, gmem_fd);
	for (i = 0; i < NR_SLOTS; i++)
		set_slot(i, true);
	virt_map(vm, GMEM_GPA, GMEM_GPA, NPAGES * step);

	for (i = 0; i < NR_VCPUS; i++)
		vcpu_args_set(vcpus[i], 2, CTL_GPA, (u64)i);
	for (i = 0; i < NR_THREADS; i++)
		kvm_pthread_create(&threads[i], NULL, fns[i],
				   (void *)(unsigned long)i);
	watch();
	for (i = 0; i < NR_THREADS; i++)
		kvm_pthread_join(threads[i], NULL);

	ctl->stats[FOLIOS_MADE] = vm_get_stat(vm, gmem_folios_made);
	ctl->stats[FOLIOS_SPLIT] = vm_get_stat(vm, gmem_folios_split);
	report();
	if (storm->platform)
		destroyed = gmem_destroyed(vm, GMEM_GPA);
	if (destroyed)
		ksft_print_msg("VIOLATION: %lu private pages of the guest were destroyed\n",
			       destroyed);
	ok = !ctl->nr_violations && !destroyed && all_happened();

	kvm_munmap(hva, size);
	kvm_close(gmem_fd);
	kvm_vm_free(vm);
	kvm_munmap(ctl, ctl_size);
	return ok;
}

int main(int argc, char *argv[])
{
	u64 iterations = DEFAULT_ITERATIONS, seed = 0x5eed;
	const char *only = NULL;
	int opt, i, nr = 0;

	while ((opt = getopt(argc, argv, "i:s:p:h")) != -1) {
		switch (opt) {
		case 'i':
			iterations = atoi_positive("iterations", optarg);
			break;
		case 's':
			seed = atoi_positive("seed", optarg);
			break;
		case 'p':
			only = optarg;
			break;
		default:
			printf("usage: %s [-i iterations] [-s seed] [-p platform]\n",
			       argv[0]);
			return opt == 'h' ? 0 : KSFT_FAIL;
		}
	}
	for (i = 0; i < ARRAY_SIZE(storms); i++)
		nr += !only || !strcmp(only, storms[i].name);
	TEST_ASSERT(nr, "There is no platform %s here", only);

	ksft_print_header();
	gmem_require_in_place();
	ksft_set_plan(nr);
	gmem_install_sigbus_handler();

	for (i = 0; i < ARRAY_SIZE(storms); i++) {
		const struct storm *storm = &storms[i];
		u64 n = storm->platform ? DIV_ROUND_UP(iterations, EMULATED_SHARE) :
					  iterations;

		if (only && strcmp(only, storm->name))
			continue;
		if (storm->platform && !gmem_emulates(storm->platform)) {
			ksft_test_result_skip("stress %s: %s\n", storm->name,
					      GMEM_NO_EMULATION);
			continue;
		}
		if (storm->large && !(kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) &
				      GUEST_MEMFD_FLAG_LARGE_FOLIOS)) {
			ksft_test_result_skip("stress %s: no large folios here\n", storm->name);
			continue;
		}
		ksft_print_msg("%s: %lu iterations, seed %lu\n", storm->name, n, seed);
		ksft_test_result(run_storm(storm, n, seed), "stress %s\n", storm->name);
	}
	ksft_finished();
}
