// SPDX-License-Identifier: GPL-2.0
/*
 * Faults of protected guests: ahead of time by KVM_MAP_MEMORY, and while the
 * host converts, punches out and touches the same pages.
 *
 * The guests and EL2 are real: the kernel has to be booted with
 * kvm-arm.mode=protected.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "gmem_pkvm_fixture.h"

PVM_FIXTURES(pvm, GUEST_MEMFD_FLAG_MMAP)
PVM_FIXTURE(untold, GUEST_MEMFD_FLAG_MMAP, false)

/* --- KVM_MAP_MEMORY ------------------------------------------------------- */

/* Private pages become the guest's ahead of its faults. */
PVM_TEST(map_memory)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	u64 left, eo;

	TEST_ASSERT_EQ(vm_check_cap(p->vm, KVM_CAP_MAP_MEMORY), 1);
	gmem_convert(p->fd, 0, 8 * PG, GMEM_SHARED, GMEM_PRESERVE);
	gmem_fill(p->mem, 8 * PG, GMEM_SEED(1), 0);
	gmem_convert(p->fd, 0, 4 * PG, GMEM_PRIVATE, GMEM_PRESERVE);

	/* EL2 learns of the vCPU at its first run, which executes nothing of the guest. */
	assert_errno(map_memory(c, 0, PG, &left), EOPNOTSUPP);
	c->vcpu->run->immediate_exit = 1;
	TEST_ASSERT(__vcpu_run(c->vcpu) && errno == EINTR, "KVM_RUN: errno %d", errno);
	c->vcpu->run->immediate_exit = 0;

	/* Up to the first page that is not private. */
	assert_errno(map_memory(c, 0, 8 * PG, &left), 0);
	TEST_ASSERT_EQ(left, 4);
	assert_errno(map_memory(c, 4 * PG, 4 * PG, &left), EFAULT);
	TEST_ASSERT_EQ(left, 4);
	host_check(p, 4 * PG, 4 * PG, GMEM_SEED(1));
	/* The pages are the guest's; mapping them again has no effect. */
	assert_errno(gmem_set_once(p->fd, 3 * PG, PG, GMEM_SHARED, GMEM_NONE, &eo), EPERM);
	assert_errno(map_memory(c, 0, 4 * PG, &left), 0);
	TEST_ASSERT_EQ(left, 0);

	cpu_start(c);
	cpu_check(c, 0, 4 * PG, GMEM_SEED(1));
	TEST_ASSERT_EQ(c->wanted_private, 0);
	/* Pages that the guest shares are mapped already. */
	cpu_share(c, 0, PG);
	assert_errno(map_memory(c, 0, PG, &left), 0);
	/* Memory outside of guest_memfd can be mapped as well. */
	assert_errno(gmem_ioctl(c->vcpu->fd, KVM_MAP_MEMORY,
				&(struct kvm_memory_mapping){ .size = 16 * PG }), 0);
}

/* --- Storms --------------------------------------------------------------- */

struct storm {
	struct pvm *p;
	_Atomic int running;
	bool zero;		/* also with guests whose hypercalls do not exit */
	u64 result[256];	/* by errno */
};

/*
 * Uses a byte of a page that may be private. SIGBUS comes from the file. SIGSEGV comes
 * from EL2, for a page that the host has mapped and the guest owns.
 */
static void host_touch(struct storm *s, u64 page, bool may_be_kept)
{
	volatile u8 *mem = s->p->mem + page * PG + 2048;
	u8 val;

	gmem_refused_with = 0;
	if (gmem_host_read(mem, &val))
		gmem_host_write(mem, val + 1);
	TEST_ASSERT(may_be_kept || gmem_refused_with != SIGSEGV,
		    "The host has page %lu mapped, and the guest owns it", page);
}

static u64 random_below(u64 *seed, u64 n)
{
	*seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
	return (*seed >> 33) % n;
}

static void *run_storm(void *arg)
{
	struct cpu *c = arg;

	TEST_ASSERT(cpu_run(c), "A fault that no conversion helps");
	return NULL;
}

static void set_storm(struct cpu *c, int i, u64 n)
{
	cpu_start(c);
	c->cmd->op = GMEM_OP_STORM;
	c->cmd->gpa = GMEM_GPA + i * NPAGES / NVCPUS * PG;
	c->cmd->size = NPAGES / NVCPUS * PG;
	c->cmd->pattern = n;
	c->cmd->pos = i + 1;
}

/* Converts at random while the guest runs. */
static void *convert_storm(void *arg)
{
	static const u64 policies[] = { GMEM_PRESERVE, GMEM_NONE, GMEM_ZERO };
	struct storm *s = arg;
	u64 seed = 42;
	int r;

	while (s->running) {
		u64 page = random_below(&seed, NPAGES);
		u64 n = random_below(&seed, 4) + 1;
		u64 policy = policies[random_below(&seed, 3)];
		u64 to = random_below(&seed, 2) ? GMEM_PRIVATE : GMEM_SHARED;

		if (!s->zero && policy == GMEM_ZERO)
			policy = GMEM_PRESERVE;
		n = page + n > NPAGES ? NPAGES - page : n;
		r = gmem_set_once(s->p->fd, page * PG, n * PG, to, policy, NULL);
		s->result[r]++;
		TEST_ASSERT(!r || r == EPERM || r == EAGAIN || r == EOPNOTSUPP, "errno %d", r);
		/* Allowed and refused accesses of the host, to a byte that is not checked. */
		host_touch(s, random_below(&seed, NPAGES), !s->p->exits);
	}
	return NULL;
}

TEST_F_TIMEOUT(pvm, storm, 2 * TIMEOUT)
{
	struct pvm *p = &self->p;
	/*
	 * A guest without exits can take a page back while EL2 is asked to zero
	 * it, which kills the guest. See guest_against_zero.
	 */
	struct storm s = { .p = p, .running = 1, .zero = variant->exits };
	pthread_t converter, vcpus[NVCPUS];
	int i;

	for (i = 0; i < NVCPUS; i++)
		set_storm(&p->cpu[i], i, variant->exits ? 2000 : 20000);
	pthread_create(&converter, NULL, convert_storm, &s);
	for (i = 0; i < NVCPUS; i++)
		pthread_create(&vcpus[i], NULL, run_storm, &p->cpu[i]);
	for (i = 0; i < NVCPUS; i++)
		pthread_join(vcpus[i], NULL);
	s.running = 0;
	pthread_join(converter, NULL);

	for (i = 0; i < NVCPUS; i++)
		TEST_ASSERT(!p->cpu[i].cmd->value, "The guest has lost %ld pages",
			    (long)p->cpu[i].cmd->value);
	TH_LOG("converted %lu times, refused %lu (EPERM) %lu (EAGAIN) %lu (EOPNOTSUPP)",
	       s.result[0], s.result[EPERM], s.result[EAGAIN], s.result[EOPNOTSUPP]);
	TEST_ASSERT(s.result[0] && s.result[EPERM], "The races never met");
}

/*
 * A guest without exits takes pages back while the host zeroes pages that it has just
 * found to be shared. The guest may die of it, but the host writes only its own pages.
 * The two need not meet: both outcomes are right.
 */
enum { NOT_YET, RUNNING, THROUGH };

static void *zero_all(void *arg)
{
	struct storm *s = arg;
	u64 eo;
	int r;

	/* The guest can finish before this thread runs for the first time. */
	while (s->running == NOT_YET)
		sched_yield();
	do {
		r = gmem_set_once(s->p->fd, 0, NPAGES * PG, GMEM_PRIVATE, GMEM_ZERO, &eo);
		s->result[r]++;
	} while (!r && s->running == RUNNING);
	TEST_ASSERT(!r || r == EOPNOTSUPP || r == EIO, "errno %d", r);
	return NULL;
}

TEST_F_TIMEOUT(untold, guest_against_zero, 2 * TIMEOUT)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	struct storm s = { .p = p };
	pthread_t zeroer;
	u64 round;
	int r;

	cpu_start(c);
	for (round = 0; round < 50; round++) {
		cpu_share(c, 0, NPAGES * PG);
		s.running = NOT_YET;
		pthread_create(&zeroer, NULL, zero_all, &s);
		c->cmd->op = GMEM_OP_UNSHARE;
		s.running = RUNNING;
		r = __vcpu_run(c->vcpu) ? errno : 0;
		s.running = THROUGH;
		pthread_join(zeroer, NULL);
		TEST_ASSERT_EQ(force_reclaims() - p->reclaims, 0);
		if (s.result[EIO])
			break;
		TEST_ASSERT(!r && !c->cmd->value, "Unsharing: errno %d, %ld", r,
			    (long)c->cmd->value);
	}
	TH_LOG("zeroed %lu times, refused %lu times, VM %s in round %lu", s.result[0],
	       s.result[EOPNOTSUPP], s.result[EIO] ? "dead" : "alive", round);
	if (s.result[EIO]) {
		assert_errno(gmem_set_once(p->fd, 0, PG, GMEM_PRIVATE, GMEM_NONE, NULL), EIO);
		TEST_ASSERT(__vcpu_run(c->vcpu) && errno == EIO, "A dead VM runs: %d", errno);
	}
}

/* Pages that the guest touches for the first time while they are converted. */
static void *to_and_fro(void *arg)
{
	struct storm *s = arg;
	u64 seed = 7, page;
	int r;

	while (s->running) {
		page = random_below(&seed, NPAGES);
		r = gmem_set_once(s->p->fd, page * PG, PG, GMEM_SHARED, GMEM_PRESERVE, NULL);
		s->result[r]++;
		/* The guest shares nothing, so the host gets no page that the guest has. */
		host_touch(s, page, false);
		r = gmem_set_once(s->p->fd, page * PG, PG, GMEM_PRIVATE, GMEM_PRESERVE, NULL);
		s->result[r]++;
	}
	return NULL;
}

/* The guest repeatedly touches new pages while @other runs. */
static void touch_anew(struct storm *s, void *(*other)(void *))
{
	struct pvm *p = s->p;
	struct cpu *c = &p->cpu[0];
	pthread_t thread;
	int i;

	cpu_start(c);
	pthread_create(&thread, NULL, other, s);
	for (i = 0; i < 30; i++) {
		cpu_fill(c, 0, NPAGES * PG, GMEM_SEED(i));
		cpu_check(c, 0, NPAGES * PG, GMEM_SEED(i));
		/* So that the next touch is a first one again. */
		cpu_relinquish(c, 0, NPAGES * PG);
		gmem_punch(p->fd, 0, NPAGES * PG);
	}
	s->running = 0;
	pthread_join(thread, NULL);
}

PVM_TEST(conversion_against_faults)
{
	struct storm s = { .p = &self->p, .running = 1 };

	touch_anew(&s, to_and_fro);
	TH_LOG("converted %lu times, refused %lu times", s.result[0], s.result[EPERM]);
	TEST_ASSERT(s.result[0], "No conversion");
}

/* A protected VM that has run keeps its memslots. */
static void *delete_in_vain(void *arg)
{
	struct storm *s = arg;
	int r;

	while (s->running) {
		r = __vm_set_user_memory_region2(s->p->vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA,
						 0, s->p->mem, s->p->fd, 0) ? errno : 0;
		s->result[r]++;
		TEST_ASSERT_EQ(r, EPERM);
	}
	return NULL;
}

/* The guest faults while KVM has disabled the memslot, before it refuses to delete it. */
PVM_TEST(memslot_that_stays)
{
	struct storm s = { .p = &self->p, .running = 1 };

	touch_anew(&s, delete_in_vain);
	TH_LOG("refused %lu times", s.result[EPERM]);
	TEST_ASSERT(s.result[EPERM], "The races never met");
	TEST_ASSERT_EQ(self->p.cpu[0].wanted_private, 0);
}

TEST_HARNESS_MAIN
