// SPDX-License-Identifier: GPL-2.0
/*
 * KVM's own code for SNP with memory that converts in place, on simulated hardware
 * (CONFIG_KVM_SNP_SIMULATION): firmware and RMPUPDATE that fail, pages and guests that
 * firmware keeps, and a process that is killed.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/userfaultfd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "gmem_snp_vm.h"

/* --- Failures --------------------------------------------------------------------- */

SNP_TEST(firmware_fails_to_start)
{
	static const struct {
		u32 command;
		int err;
	} steps[] = {
		{ SNP_GCTX_CREATE, EIO },
		{ SNP_LAUNCH_START, EIO },
		{ SNP_ACTIVATE, EIO },
	};
	u64 before = nr_assigned(self->vm);
	u32 i, status;

	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		snp_inject(self->vm, steps[i].command, RESOURCE_LIMIT, 1);
		assert_errno(snp_start(self->vm, &status), steps[i].err);
		TEST_ASSERT_EQ(status, RESOURCE_LIMIT);
		TEST_ASSERT_EQ(nr_assigned(self->vm), before);
	}
	start(self);
	finish(self);
	snp_run_ok(self->vcpus[0], snp_resume(self->vcpus[0]));
}

SNP_TEST(firmware_fails_to_update)
{
	u8 *source = kvm_mmap(PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	u32 status;

	start(self);
	gmem_fill(self->a.hva, OFF(2), GMEM_SEED(1), 0);
	make_private(self, 0, 2);
	gmem_fill(source, PG, GMEM_SEED(2), 0);

	snp_inject(self->vm, SNP_LAUNCH_UPDATE, RESOURCE_LIMIT, 2);
	assert_errno(snp_update(self->vm, KVM_SEV_SNP_PAGE_TYPE_NORMAL, gpa(self, 0), PG, NULL,
				&status), EIO);
	TEST_ASSERT_EQ(status, RESOURCE_LIMIT);
	assert_rmp(self, 0, KVM_GMEM_EMULATE_STATE_NONE);
	assert_errno(snp_update(self->vm, KVM_SEV_SNP_PAGE_TYPE_NORMAL, gpa(self, 1), PG, source,
				&status), EIO);
	assert_rmp(self, 1, KVM_GMEM_EMULATE_STATE_NONE);
	gmem_host_assert(source, PG, GMEM_SEED(2), 0);

	/* The pages still belong to the host, and the launch can be tried again. */
	gmem_convert(self->a.fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE);
	gmem_host_assert(self->a.hva, PG, GMEM_SEED(1), 0);
	make_private(self, 0, 1);
	assert_errno(snp_update(self->vm, KVM_SEV_SNP_PAGE_TYPE_NORMAL, gpa(self, 0), OFF(2), NULL,
				&status), 0);
	finish(self);
	snp_run_ok(self->vcpus[0], snp_resume(self->vcpus[0]));
	snp_check(self->vcpus[0], private_gva(self, 0), PG, GMEM_SEED(1), 0);
	kvm_munmap(source, PG);
}

SNP_TEST(firmware_fails_to_finish)
{
	u32 status;

	start(self);
	snp_vm_launch_update(self->vm);
	/* The first vCPU's VMSA. */
	snp_inject(self->vm, SNP_LAUNCH_UPDATE, RESOURCE_LIMIT, 1);
	assert_errno(snp_finish(self->vm, &status), EIO);
	TEST_ASSERT_EQ(status, RESOURCE_LIMIT);
	snp_inject(self->vm, SNP_LAUNCH_FINISH, RESOURCE_LIMIT, 1);
	assert_errno(snp_finish(self->vm, &status), EIO);
	TEST_ASSERT_EQ(status, RESOURCE_LIMIT);
}

SNP_TEST(firmware_fails_a_guest)
{
	struct kvm_vcpu *vcpu = running(self);

	snp_inject(self->vm, SNP_GUEST_REQUEST, RESOURCE_LIMIT, 1);
	snp_run_ok(vcpu, __snp_run(vcpu, SNP_OP_REPORT, gpa(self, 1), 0, 0, gpa(self, 2), 0));
	TEST_ASSERT_EQ(snp_cmd_of(vcpu)->value, RESOURCE_LIMIT);
	snp_run_ok(vcpu, __snp_run(vcpu, SNP_OP_REPORT, gpa(self, 1), 0, 0, gpa(self, 2), 0));
	TEST_ASSERT_EQ(snp_cmd_of(vcpu)->value, 0);
}

/* ASIDs are used again only after a DF_FLUSH. */
SNP_TEST(firmware_fails_to_flush)
{
	struct kvm_sev_init init = {};
	struct kvm_vm *vm;
	u32 i, status;
	int r = 0;

	/* No VM has an ASID that was never used before. */
	snp_inject(self->vm, SNP_DF_FLUSH, RESOURCE_LIMIT, ~0ULL);
	for (i = 0; i < 9 && !r; i++) {
		vm = vm_create_barebones_type(KVM_X86_SNP_VM);
		r = snp_command(vm, KVM_SEV_INIT2, &init, &status);
		kvm_vm_free(vm);
	}
	snp_inject(self->vm, SNP_DF_FLUSH, RESOURCE_LIMIT, 0);
	assert_errno(r, EBUSY);

	vm = vm_create_barebones_type(KVM_X86_SNP_VM);
	assert_errno(snp_command(vm, KVM_SEV_INIT2, &init, &status), 0);
	kvm_vm_free(vm);
}

/* A command fails while a failure is injected, and succeeds again without it. */
SNP_TEST(firmware_fails_as_ordered)
{
	u32 status;

	snp_inject(self->vm, SNP_GCTX_CREATE, RESOURCE_LIMIT, 1);
	snp_inject(self->vm, SNP_LAUNCH_START, RESOURCE_LIMIT, 2);
	assert_errno(snp_start(self->vm, &status), EIO);
	assert_errno(snp_start(self->vm, &status), EIO);
	snp_inject(self->vm, SNP_LAUNCH_START, RESOURCE_LIMIT, 0);
	start(self);
}

/* --- Pages that the platform keeps --------------------------------------------------- */

/* If RMPUPDATE fails, the launch has not assigned the page to the guest. */
SNP_TEST(rmpupdate_fails_to_launch)
{
	u32 status;

	start(self);
	make_private(self, 0, 3);
	/* The first time the page before it hides the error. */
	gmem_inject(self->vm, gpa(self, 1), KVM_GMEM_EMULATE_FAIL_ASSIGN,
		    KVM_GMEM_EMULATE_ERROR_INPUT, 2);
	assert_errno(snp_update(self->vm, KVM_SEV_SNP_PAGE_TYPE_ZERO, gpa(self, 0), OFF(3), NULL,
				&status), EIO);
	assert_rmp(self, 0, KVM_GMEM_EMULATE_STATE_VALIDATED);
	assert_rmp(self, 1, KVM_GMEM_EMULATE_STATE_NONE);
	assert_rmp(self, 2, KVM_GMEM_EMULATE_STATE_NONE);
	assert_errno(snp_update(self->vm, KVM_SEV_SNP_PAGE_TYPE_ZERO, gpa(self, 1), OFF(2), NULL,
				&status), 0);
	assert_rmp(self, 1, KVM_GMEM_EMULATE_STATE_VALIDATED);
	finish(self);
}

/* The guest's access fails, and can be tried again. */
SNP_TEST(rmpupdate_fails_a_fault)
{
	struct kvm_vcpu *vcpu = running(self);

	make_private(self, 0, 1);
	gmem_inject(self->vm, gpa(self, 0), KVM_GMEM_EMULATE_FAIL_ASSIGN,
		    KVM_GMEM_EMULATE_ERROR_INPUT, 1);
	TEST_ASSERT_EQ(__snp_run(vcpu, SNP_OP_WRITE, private_gva(self, 0), 1, 0, 0, 7), -EIO);
	assert_rmp(self, 0, KVM_GMEM_EMULATE_STATE_NONE);
	snp_run_ok(vcpu, snp_resume(vcpu));
	assert_rmp(self, 0, KVM_GMEM_EMULATE_STATE_ASSIGNED);
}

/* If a page cannot be taken back, the VM is dead, and neither host nor guest gets the page. */
SNP_TEST(rmpupdate_fails_to_take_back)
{
	u64 before = nr_assigned(self->vm), eo;
	struct kvm_vcpu *vcpu = running(self);

	make_private(self, 0, 3);
	snp_fill(vcpu, private_gva(self, 0), OFF(3), GMEM_SEED(1), 0);
	gmem_inject(self->vm, gpa(self, 1), KVM_GMEM_EMULATE_FAIL_UNASSIGN,
		    KVM_GMEM_EMULATE_ERROR_PERMISSION, 1000);
	assert_errno(gmem_set(self->a.fd, 0, OFF(3), GMEM_SHARED, GMEM_PRESERVE, &eo), EIO);
	TEST_ASSERT_EQ(eo, OFF(1));
	gmem_host_assert_refused(self->a.hva + OFF(1), PG);
	assert_lost(self, before, 1);
}

/* Firmware does not give back a page with which it was to launch. */
SNP_TEST(firmware_keeps_a_page)
{
	u64 before = nr_assigned(self->vm), eo;
	u32 status;

	start(self);
	make_private(self, 0, 2);
	snp_inject(self->vm, SNP_LAUNCH_UPDATE, RESOURCE_LIMIT, 1);
	snp_inject(self->vm, SNP_PAGE_RECLAIM, RESOURCE_LIMIT, 1);
	assert_errno(snp_update(self->vm, KVM_SEV_SNP_PAGE_TYPE_NORMAL, gpa(self, 1), PG, NULL,
				&status), EIO);
	TEST_ASSERT_EQ(status, RESOURCE_LIMIT);
	assert_errno(gmem_set(self->a.fd, 0, OFF(2), GMEM_SHARED, GMEM_PRESERVE, &eo), EIO);
	gmem_host_assert_refused(self->a.hva + OFF(1), PG);
	assert_lost(self, before, 1);
}

/* Firmware does not give back the page of a vCPU's state. */
SNP_TEST(firmware_keeps_a_vmsa)
{
	u64 before = nr_assigned(self->vm);
	u32 status;

	start(self);
	snp_vm_launch_update(self->vm);
	snp_inject(self->vm, SNP_LAUNCH_UPDATE, RESOURCE_LIMIT, 1);
	snp_inject(self->vm, SNP_PAGE_RECLAIM, RESOURCE_LIMIT, 1);
	assert_errno(snp_finish(self->vm, &status), EIO);
	TEST_ASSERT_EQ(status, RESOURCE_LIMIT);
	assert_lost(self, before, 1);
}

/* A command of the launch in a thread of its own. */
struct command {
	struct kvm_vm *vm;
	u32 id;
	void *data;
	pthread_t thread;
	pid_t tid;
	int err;
};

static void *give_command(void *arg)
{
	struct command *c = arg;

	WRITE_ONCE(c->tid, gettid());
	c->err = snp_command(c->vm, c->id, c->data, NULL);
	return NULL;
}

static void give(struct command *c)
{
	TEST_ASSERT(!pthread_create(&c->thread, NULL, give_command, c), "No thread");
}

/* Until it waits for a lock: D for disk sleep. */
static void await_lock(struct command *c)
{
	char path[64], text[256], state;
	int fd;

	do {
		sched_yield();
		snprintf(path, sizeof(path), "/proc/self/task/%d/stat", READ_ONCE(c->tid));
		state = 0;
		fd = open(path, O_RDONLY);
		if (fd < 0)
			continue;
		memset(text, 0, sizeof(text));
		if (read(fd, text, sizeof(text) - 1) > 0 && strrchr(text, ')'))
			state = strrchr(text, ')')[2];
		close(fd);
	} while (state != 'D');
}

static int result_of(struct command *c)
{
	TEST_ASSERT(!pthread_join(c->thread, NULL), "No end of the thread");
	return c->err;
}

/*
 * Two LAUNCH_FINISH wait for the VM's lock, and firmware keeps a VMSA in the first: the
 * second must not use that. The lock is held by a command whose parameters are not there.
 */
SNP_TEST(firmware_keeps_a_vmsa_that_others_wait_for)
{
	u64 before = nr_assigned(self->vm);
	u8 *missing = kvm_mmap(PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct kvm_sev_snp_launch_finish finish[2] = {};
	struct command first = { self->vm, KVM_SEV_SNP_LAUNCH_UPDATE, missing };
	struct command others[2] = {
		{ self->vm, KVM_SEV_SNP_LAUNCH_FINISH, &finish[0] },
		{ self->vm, KVM_SEV_SNP_LAUNCH_FINISH, &finish[1] },
	};
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { .start = (u64)missing, .len = PG },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_zeropage zero = { .range = reg.range };
	struct pollfd fault = { .events = POLLIN };

	fault.fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fault.fd < 0)
		SKIP(return, "no userfaultfd()");
	TEST_ASSERT(!ioctl(fault.fd, UFFDIO_API, &api), "UFFDIO_API: errno %d", errno);
	TEST_ASSERT(!ioctl(fault.fd, UFFDIO_REGISTER, &reg), "UFFDIO_REGISTER: errno %d", errno);
	start(self);
	snp_vm_launch_update(self->vm);
	snp_inject(self->vm, SNP_LAUNCH_UPDATE, RESOURCE_LIMIT, 1);
	snp_inject(self->vm, SNP_PAGE_RECLAIM, RESOURCE_LIMIT, 1);

	give(&first);
	TEST_ASSERT_EQ(poll(&fault, 1, -1), 1);
	give(&others[0]);
	give(&others[1]);
	await_lock(&others[0]);
	await_lock(&others[1]);
	TEST_ASSERT(!ioctl(fault.fd, UFFDIO_ZEROPAGE, &zero), "UFFDIO_ZEROPAGE: errno %d", errno);
	assert_errno(result_of(&first), EINVAL);
	assert_errno(result_of(&others[0]), EIO);
	assert_errno(result_of(&others[1]), EIO);
	close(fault.fd);
	kvm_munmap(missing, PG);
	assert_lost(self, before, 1);
}

/* How many more SNP VMs can be created. */
static u32 nr_asids(void)
{
	struct kvm_sev_init init = {};
	struct kvm_vm *vms[8];
	u32 i, n, status;
	int r = 0;

	for (n = 0; n < ARRAY_SIZE(vms) && !r; n++) {
		vms[n] = vm_create_barebones_type(KVM_X86_SNP_VM);
		r = snp_command(vms[n], KVM_SEV_INIT2, &init, &status);
	}
	for (i = 0; i < n; i++)
		kvm_vm_free(vms[i]);
	assert_errno(r, EBUSY);
	return n - 1;
}

/* Firmware does not end a guest: the host gets its pages back, but its ASID is not used again. */
SNP_TEST(firmware_keeps_a_guest)
{
	u64 before = nr_assigned(self->vm);
	u32 asids = nr_asids(), status;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct gmem_area a;

	vm = snp_vm_create(1, NR_PAGES, &vcpu);
	snp_area_create(&a, vm, OFF(NR_PAGES));
	assert_errno(snp_start(vm, &status), 0);
	gmem_convert(a.fd, 0, a.size, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(snp_update(vm, KVM_SEV_SNP_PAGE_TYPE_ZERO, a.gpa, a.size, NULL, &status), 0);
	snp_inject(self->vm, SNP_DECOMMISSION, RESOURCE_LIMIT, 1);
	kvm_munmap(a.hva, a.size);
	kvm_close(a.fd);
	kvm_vm_free(vm);

	TEST_ASSERT_EQ(nr_assigned(self->vm), before);
	TEST_ASSERT_EQ(nr_asids(), asids - 1);
	start(self);
	finish(self);
	snp_run_ok(self->vcpus[0], snp_resume(self->vcpus[0]));
}

/* Firmware keeps its pages of a guest that is gone: the next guest gets others. */
SNP_TEST(firmware_keeps_its_pages)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u32 status;

	vm = snp_vm_create(1, NR_PAGES, &vcpu);
	assert_errno(snp_start(vm, &status), 0);
	snp_inject(self->vm, SNP_PAGE_RECLAIM, RESOURCE_LIMIT, ~0ULL);
	kvm_vm_free(vm);
	snp_inject(self->vm, SNP_PAGE_RECLAIM, RESOURCE_LIMIT, 0);
	start(self);
	finish(self);
	snp_run_ok(self->vcpus[0], snp_resume(self->vcpus[0]));
}

/* The host does not write a page before the guest has lost it. */
SNP_TEST(zeroed_when_given_up)
{
	struct kvm_vcpu *vcpu = running(self);

	make_private(self, 0, 4);
	snp_fill(vcpu, private_gva(self, 0), OFF(2), GMEM_SEED(1), 0);
	gmem_convert(self->a.fd, 0, OFF(4), GMEM_SHARED, GMEM_ZERO);
	gmem_host_assert(self->a.hva, OFF(4), 0, 0);
	snp_check(vcpu, gpa(self, 0), OFF(4), 0, 0);
}

/* The process is killed while its guest runs: all pages of the guest are taken back. */
SNP_TEST(killed_while_running)
{
	u64 before = nr_assigned(self->vm);
	int ready[2], status;
	pid_t pid;
	char byte;

	TEST_ASSERT(!pipe(ready), "No pipe");
	pid = fork();
	TEST_ASSERT(pid >= 0, "No process");
	if (!pid) {
		struct kvm_vcpu *vcpu;
		struct gmem_area a;
		struct kvm_vm *vm;
		u32 fw;

		vm = snp_vm_create(1, NR_PAGES, &vcpu);
		snp_area_create(&a, vm, OFF(NR_PAGES));
		gmem_convert(a.fd, 0, a.size, GMEM_PRIVATE, GMEM_PRESERVE);
		assert_errno(snp_start(vm, &fw), 0);
		snp_vm_launch_update(vm);
		assert_errno(snp_finish(vm, &fw), 0);
		snp_run_ok(vcpu, snp_resume(vcpu));
		snp_fill(vcpu, a.gpa + SNP_PRIVATE, a.size, GMEM_SEED(1), 0);
		TEST_ASSERT_EQ(write(ready[1], "r", 1), 1);
		__snp_run(vcpu, SNP_OP_SPIN, 0, 0, 0, 0, 0);
		_exit(1);
	}
	/* A child that fails closes the other end. */
	close(ready[1]);
	TEST_ASSERT_EQ(read(ready[0], &byte, 1), 1);
	TEST_ASSERT(nr_assigned(self->vm) >= before + NR_PAGES, "The guest has no pages");
	kill(pid, SIGKILL);
	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "Status %#x", status);
	while (nr_assigned(self->vm) != before)
		sched_yield();
	close(ready[0]);
}

TEST_HARNESS_MAIN
