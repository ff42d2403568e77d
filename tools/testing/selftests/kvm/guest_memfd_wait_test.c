// SPDX-License-Identifier: GPL-2.0
/*
 * Which operations wait for a conversion or for the end of a file, and how.
 *
 * The conversion is held at a gate of the emulated platform, with the lock of its
 * file. So each test has as much time as it needs, and uses no clock. If something
 * waits that must not, the test hangs until its timeout.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "gmem_test.h"
#include "kvm_test_harness.h"

#define PS	((u64)PAGE_SIZE)
#define NPAGES	16
/* The page that is converted; nothing else touches it. */
#define HELD	8

#define PLACE	KVM_GMEM_EMULATE_HOLD_INVALIDATION

struct machine {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[1];
	struct gmem_area a;
};

static gpa_t held_gpa(struct machine *m)
{
	return m->a.gpa + HELD * PS;
}

static void machine_create(struct machine *m)
{
	m->vm = gmem_vm_create_emulated(KVM_GMEM_EMULATE_SNP, 0, 1, NPAGES, m->vcpus);
	gmem_area_create(&m->a, m->vm, GMEM_SLOT, GMEM_GPA, NPAGES * PS, GMEM_MMAP_SHARED);
	TEST_ASSERT(!gmem_launch_finish(m->vm), "LAUNCH_FINISH failed");
	gmem_guest_start(m->vcpus[0]);
}

static void *convert_held(void *arg)
{
	struct machine *m = arg;

	gmem_convert(m->a.fd, HELD * PS, PS, GMEM_PRIVATE, GMEM_PRESERVE);
	return NULL;
}

static void on_signal(int sig)
{
}

/* Lets a task through the gate, which stays closed for others. */
static void let_through(pthread_t thread)
{
	struct sigaction sa = { .sa_handler = on_signal };

	TEST_ASSERT(!sigaction(SIGUSR1, &sa, NULL), "sigaction(): errno %d", errno);
	TEST_ASSERT(!pthread_kill(thread, SIGUSR1), "pthread_kill() failed");
}

/* Until the task waits in the kernel, in a state that signals do not end. */
static void wait_until_stuck(pid_t pid, pid_t tid)
{
	char path[64], line[256], *end;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
	for (;;) {
		f = fopen(path, "r");
		TEST_ASSERT(f, "%s: errno %d", path, errno);
		TEST_ASSERT(fgets(line, sizeof(line), f), "%s is empty", path);
		fclose(f);
		end = strrchr(line, ')');
		if (end && end[2] == 'D')
			break;
		sched_yield();
	}
}

FIXTURE(wait)
{
	struct machine m;
	pthread_t converter;
};

FIXTURE_SETUP(wait)
{
	if (!gmem_emulates(KVM_GMEM_EMULATE_SNP))
		SKIP(return, GMEM_NO_EMULATION);
}

FIXTURE_TEARDOWN(wait)
{
}

#define WAIT(name)	TEST_F_TIMEOUT(wait, name, 240)

static void hold(struct machine *m, pthread_t *converter)
{
	machine_create(m);
	gmem_hold(m->vm, held_gpa(m), PLACE, true);
	kvm_pthread_create(converter, NULL, convert_held, m);
	gmem_wait_held(m->vm, held_gpa(m), PLACE);
}

static void let_go(struct machine *m, pthread_t converter)
{
	gmem_hold(m->vm, held_gpa(m), PLACE, false);
	kvm_pthread_join(converter, NULL);
	TEST_ASSERT(gmem_is_private(m->a.fd, HELD * PS), "The conversion is not done");
}

struct toucher {
	u8 *mem;
	/* How to access the page other than by writing a byte. */
	void (*use)(u8 *mem);
	_Atomic pid_t tid;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;

	t->tid = syscall(SYS_gettid);
	if (t->use)
		t->use(t->mem);
	else
		*(volatile u8 *)t->mem = 7;
	return NULL;
}

/*
 * Neither mmap_lock nor the lock of the mapping is held by a fault that waits:
 * changing that very mapping takes both.
 */
WAIT(host_faults_hold_no_lock_of_the_process)
{
	struct machine *m = &self->m;
	struct toucher t = { };
	pthread_t toucher;

	hold(m, &self->converter);
	t.mem = m->a.hva;
	kvm_pthread_create(&toucher, NULL, touch, &t);
	while (!t.tid)
		sched_yield();
	wait_until_stuck(getpid(), t.tid);

	TEST_ASSERT(!mprotect(m->a.hva + (NPAGES - 1) * PS, PS, PROT_READ),
		    "mprotect(): errno %d", errno);
	TEST_ASSERT(!munmap(m->a.hva + (NPAGES - 2) * PS, PS), "munmap(): errno %d", errno);

	let_go(m, self->converter);
	kvm_pthread_join(toucher, NULL);
	TEST_ASSERT_EQ(m->a.hva[0], 7);
}

struct converter {
	struct machine *m;
	_Atomic pid_t tid;
};

static void *convert_back(void *arg)
{
	struct converter *c = arg;

	c->tid = syscall(SYS_gettid);
	gmem_convert(c->m->a.fd, HELD * PS, PS, GMEM_SHARED, GMEM_PRESERVE);
	return NULL;
}

/*
 * A second conversion is queued behind a fault that waits for a first one. When the
 * fault is tried again, it finds the lock taken again. It still must not wait with a
 * lock of the process held.
 */
static void lose_twice(struct machine *m, pthread_t *first, void (*use)(u8 *mem))
{
	struct converter back = { .m = m };
	struct toucher t = { .use = use };
	pthread_t toucher, second;

	hold(m, first);
	t.mem = m->a.hva;
	kvm_pthread_create(&toucher, NULL, touch, &t);
	while (!t.tid)
		sched_yield();
	wait_until_stuck(getpid(), t.tid);
	kvm_pthread_create(&second, NULL, convert_back, &back);
	while (!back.tid)
		sched_yield();
	wait_until_stuck(getpid(), back.tid);

	let_through(*first);
	kvm_pthread_join(*first, NULL);
	gmem_wait_held(m->vm, held_gpa(m), PLACE);
	wait_until_stuck(getpid(), t.tid);

	TEST_ASSERT(!mprotect(m->a.hva + (NPAGES - 1) * PS, PS, PROT_READ),
		    "mprotect(): errno %d", errno);
	TEST_ASSERT(!munmap(m->a.hva + (NPAGES - 2) * PS, PS), "munmap(): errno %d", errno);

	gmem_hold(m->vm, held_gpa(m), PLACE, false);
	kvm_pthread_join(second, NULL);
	kvm_pthread_join(toucher, NULL);
	TEST_ASSERT(!gmem_is_private(m->a.fd, HELD * PS), "The conversion is not done");
}

WAIT(retried_host_faults_hold_no_lock_of_the_process)
{
	lose_twice(&self->m, &self->converter, NULL);
	TEST_ASSERT_EQ(self->m.a.hva[0], 7);
}

/* The kernel's own access. */
static void use_as_buffer(u8 *mem)
{
	int p[2];

	TEST_ASSERT(!pipe(p), "pipe(): errno %d", errno);
	TEST_ASSERT_EQ(write(p[1], mem, 1), 1);
}

WAIT(retried_accesses_of_the_kernel_hold_no_lock_of_the_process)
{
	lose_twice(&self->m, &self->converter, use_as_buffer);
}

static void use_as_page(u8 *mem)
{
	struct iovec iov = { .iov_base = mem, .iov_len = PS };
	int p[2];

	TEST_ASSERT(!pipe(p), "pipe(): errno %d", errno);
	TEST_ASSERT_EQ(vmsplice(p[1], &iov, 1, 0), (ssize_t)PS);
}

WAIT(retried_pins_hold_no_lock_of_the_process)
{
	lose_twice(&self->m, &self->converter, use_as_page);
}

/* The mapping of a waiting fault is removed; the fault then finds no mapping. */
WAIT(the_mapping_goes_while_a_host_fault_waits)
{
	struct machine *m = &self->m;
	int gone[2], status;
	char byte = 0;
	pid_t pid;

	TEST_ASSERT(!pipe(gone), "pipe(): errno %d", errno);
	hold(m, &self->converter);
	pid = fork();
	if (!pid) {
		struct toucher t = { .mem = m->a.hva };
		pthread_t toucher;

		signal(SIGSEGV, SIG_DFL);
		pthread_create(&toucher, NULL, touch, &t);
		while (!t.tid)
			sched_yield();
		wait_until_stuck(getpid(), t.tid);
		munmap(m->a.hva, m->a.size);
		if (write(gone[1], &byte, 1) != 1)
			_exit(1);
		pthread_join(toucher, NULL);
		_exit(0);
	}
	TEST_ASSERT_EQ(read(gone[0], &byte, 1), 1);
	let_go(m, self->converter);
	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV,
		    "The child ended with %#x", status);
}

/* A process that waits for a page of the host's can be killed. */
WAIT(host_faults_can_be_killed)
{
	struct machine *m = &self->m;
	int status;
	pid_t pid;

	hold(m, &self->converter);
	pid = fork();
	if (!pid) {
		*(volatile u8 *)m->a.hva = 7;
		_exit(0);
	}
	wait_until_stuck(pid, pid);
	TEST_ASSERT(!kill(pid, SIGKILL), "kill(): errno %d", errno);
	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
		    "The child ended with %#x", status);
	let_go(m, self->converter);
}

/*
 * Kills a VMM that waits for a conversion, and sees it end while the conversion goes
 * on. The VMM sends the id of the converting process through @ready.
 */
static void kill_stuck(pid_t vmm, int ready)
{
	pid_t converter = 0;
	int status;

	TEST_ASSERT_EQ(read(ready, &converter, sizeof(converter)), sizeof(converter));
	wait_until_stuck(vmm, vmm);
	TEST_ASSERT(!kill(vmm, SIGKILL), "kill(): errno %d", errno);
	TEST_ASSERT_EQ(waitpid(vmm, &status, 0), vmm);
	TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
		    "The VMM ended with %#x", status);
	/* A signal lets it through the gate. */
	TEST_ASSERT(!kill(converter, SIGKILL), "The conversion has ended: errno %d", errno);
}

/* Lets another process convert, and holds the conversion. Its process id goes to @ready. */
static void hold_another(struct machine *m, int ready)
{
	pid_t pid;

	gmem_hold(m->vm, held_gpa(m), PLACE, true);
	pid = fork();
	if (!pid) {
		convert_held(m);
		_exit(0);
	}
	gmem_wait_held(m->vm, held_gpa(m), PLACE);
	if (write(ready, &pid, sizeof(pid)) != sizeof(pid))
		_exit(1);
}

/*
 * A VMM whose vCPU waits for a page can be killed, too. Another process converts, so that
 * only the vCPU can keep the VMM from ending.
 */
WAIT(guest_faults_can_be_killed)
{
	pid_t vmm;
	int ready[2];

	TEST_ASSERT(!pipe(ready), "pipe(): errno %d", errno);
	vmm = fork();
	if (!vmm) {
		struct machine m;

		machine_create(&m);
		hold_another(&m, ready[1]);
		__gmem_guest_do(m.vcpus[0], GMEM_OP_READ, m.a.gpa, 1, 0, 0, 0);
		_exit(0);
	}
	kill_stuck(vmm, ready[0]);
}

/*
 * A VMM that is killed while it waits to bind a memslot ends, too. The second slot
 * shows no page that the first one does.
 */
WAIT(binding_can_be_killed)
{
	pid_t vmm;
	int ready[2];

	TEST_ASSERT(!pipe(ready), "pipe(): errno %d", errno);
	vmm = fork();
	if (!vmm) {
		struct kvm_vcpu *vcpus[1];
		struct machine m;

		m.vm = gmem_vm_create_emulated(KVM_GMEM_EMULATE_SNP, 0, 1, NPAGES, vcpus);
		m.a.gpa = GMEM_GPA;
		m.a.fd = vm_create_guest_memfd(m.vm, 2 * NPAGES * PS, GMEM_MMAP_SHARED);
		TEST_ASSERT(!__vm_set_user_memory_region2(m.vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
							  GMEM_GPA, NPAGES * PS, NULL, m.a.fd, 0),
			    "The first slot: errno %d", errno);
		hold_another(&m, ready[1]);
		__vm_set_user_memory_region2(m.vm, GMEM_SLOT + 1, KVM_MEM_GUEST_MEMFD,
					     GMEM_GPA + NPAGES * PS, NPAGES * PS, NULL,
					     m.a.fd, NPAGES * PS);
		_exit(0);
	}
	kill_stuck(vmm, ready[0]);
}

/* A task that is killed before the point of no return converts nothing. */
WAIT(conversion_of_a_killed_task_does_not_happen)
{
	struct machine *m = &self->m;
	int status;
	pid_t pid;

	machine_create(m);
	gmem_fill(m->a.hva, m->a.size, GMEM_SEED(1), 0);
	gmem_hold(m->vm, held_gpa(m), PLACE, true);
	pid = fork();
	if (!pid) {
		gmem_set_once(m->a.fd, 0, NPAGES * PS, GMEM_PRIVATE, GMEM_ZERO, NULL);
		_exit(0);
	}
	gmem_wait_held(m->vm, held_gpa(m), PLACE);
	TEST_ASSERT(!kill(pid, SIGKILL), "kill(): errno %d", errno);
	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
		    "The child ended with %#x", status);
	gmem_hold(m->vm, held_gpa(m), PLACE, false);
	gmem_assert_attributes(m->a.fd, 0, m->a.size, GMEM_SHARED);
	gmem_host_assert(m->a.hva, m->a.size, GMEM_SEED(1), 0);
}

#define CORRUPT_PFN	"/sys/kernel/debug/hwpoison/corrupt-pfn"

static void *close_file(void *arg)
{
	struct machine *m = arg;

	close(m->a.fd);
	return NULL;
}

/*
 * All other memory failures of the machine wait for this one. So it must not wait for a
 * file that is being closed, which takes a time proportional to its pages.
 */
WAIT(memory_failure_does_not_wait_for_a_close)
{
	struct machine *m = &self->m;
	pthread_t closer;
	char frame[32];
	int fd, len;
	u64 pfn;

	fd = open(CORRUPT_PFN, O_WRONLY);
	if (fd < 0)
		SKIP(return, "needs HWPOISON_INJECT");
	machine_create(m);
	m->a.hva[0] = 7;
	pfn = gmem_frame_of(m->a.hva);
	TEST_ASSERT(pfn, "The frame is not known");
	len = snprintf(frame, sizeof(frame), "%#lx", pfn);

	/* No mapping keeps the file. */
	kvm_munmap(m->a.hva, m->a.size);
	gmem_hold(m->vm, held_gpa(m), PLACE, true);
	kvm_pthread_create(&closer, NULL, close_file, m);
	gmem_wait_held(m->vm, held_gpa(m), PLACE);

	/* EBUSY: somebody has a short-lived reference. */
	TEST_ASSERT(write(fd, frame, len) == len || errno == EBUSY, "corrupt-pfn: errno %d", errno);
	close(fd);

	gmem_hold(m->vm, held_gpa(m), PLACE, false);
	kvm_pthread_join(closer, NULL);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(gmem_vm_type_supported());
	return test_harness_run(argc, argv);
}
