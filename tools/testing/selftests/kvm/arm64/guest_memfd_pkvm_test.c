// SPDX-License-Identifier: GPL-2.0
/*
 * guest_memfd as the memory of protected VMs: who can access which page, its
 * contents, and which hypercalls exit.
 *
 * The guests and EL2 are real: the kernel has to be booted with
 * kvm-arm.mode=protected.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "gmem_pkvm_fixture.h"
#include "gic.h"
#include "vgic.h"

static struct iovec iov(void *base, u64 len)
{
	return (struct iovec){ base, len };
}

PVM_FIXTURES(pvm, GUEST_MEMFD_FLAG_MMAP)
PVM_FIXTURE(told, GUEST_MEMFD_FLAG_MMAP, true)

PVM_TEST(capabilities)
{
	struct pvm *p = &self->p;
	int phase;

	for (phase = 0; phase < 2; phase++) {
		TEST_ASSERT_EQ(vm_check_cap(p->vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES),
			       KVM_MEMORY_ATTRIBUTE_PRIVATE);
		TEST_ASSERT_EQ(vm_check_cap(p->vm, KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS), 0x030303);
		TEST_ASSERT_EQ(vm_check_cap(p->vm, KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS),
			       0x030303);
		TEST_ASSERT_EQ(vm_check_cap(p->vm, KVM_CAP_GET_MEMORY_ATTRIBUTES2), 1);
		TEST_ASSERT_EQ(vm_check_cap(p->vm, KVM_CAP_GUEST_MEMFD_FLAGS),
			       GMEM_MMAP_SHARED | GUEST_MEMFD_FLAG_MIGRATABLE);
		TEST_ASSERT_EQ(vm_check_cap(p->vm, KVM_CAP_EXIT_HYPERCALL),
			       BIT(KVM_HC_MAP_GPA_RANGE));
		cpu_start(&p->cpu[0]);
	}
	/* EL2 may know the vCPU already. */
	TEST_ASSERT(__vm_enable_cap(p->vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE)) &&
		    errno == EBUSY, "Enabled after the first run: errno %d", errno);
	TEST_ASSERT_EQ(kvm_check_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES),
		       KVM_MEMORY_ATTRIBUTE_PRIVATE);
	TEST_ASSERT_EQ(kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS), 0x030303);
}

/* The VM neither announces nor takes the flag, with whatever other flags. */
static void assert_unknown(int vm, u64 flag)
{
	struct kvm_create_guest_memfd args = { .size = SZ_2M };
	u64 others;

	TEST_ASSERT(!(ioctl(vm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_GUEST_MEMFD_FLAGS) & flag),
		    "The flag %#lx is announced", flag);
	for (others = 0; others <= GMEM_MMAP_SHARED; others++) {
		args.flags = others | flag;
		assert_errno(gmem_ioctl(vm, KVM_CREATE_GUEST_MEMFD, &args), EINVAL);
	}
}

/* EL2 tracks the frame of each page of other VMs, too, and moves only those of protected ones. */
PVM_TEST(pages_of_other_vms_stay)
{
	int kvm = open_kvm_dev_path_or_exit(), ordinary = __real_ioctl(kvm, KVM_CREATE_VM, NULL);

	TEST_ASSERT(ordinary >= 0, "KVM_CREATE_VM: %s", strerror(errno));
	assert_unknown(ordinary, GUEST_MEMFD_FLAG_MIGRATABLE);
	close(ordinary);
	close(kvm);
}

/* Pages go to guests one by one, of whatever VM. */
PVM_TEST(no_large_folios)
{
	int kvm = open_kvm_dev_path_or_exit(), ordinary = __real_ioctl(kvm, KVM_CREATE_VM, NULL);

	TEST_ASSERT(ordinary >= 0, "KVM_CREATE_VM: %s", strerror(errno));
	assert_unknown(ordinary, GUEST_MEMFD_FLAG_LARGE_FOLIOS);
	assert_unknown(self->p.vm->fd, GUEST_MEMFD_FLAG_LARGE_FOLIOS);
	TEST_ASSERT(!(kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_LARGE_FOLIOS),
		    "The flag is announced");
	close(ordinary);
	close(kvm);
}

/* An address of the guest without memory. */
#define DOORBELL	(GMEM_GPA - SZ_64K)
#define LEVEL_SPI	40
#define EDGE_SPI	41

/* Enables the test's interrupts at the first call. Returns the pending interrupt, and ends it. */
static u64 guest_takes_interrupt(void)
{
	unsigned int intid;

	gic_init(GIC_V3, NVCPUS);
	gic_irq_set_config(LEVEL_SPI, false);
	gic_irq_set_config(EDGE_SPI, true);
	gic_irq_enable(EDGE_SPI);
	gic_irq_enable(LEVEL_SPI);

	intid = gic_get_and_ack_irq();
	if (intid != IAR_SPURIOUS)
		gic_set_eoi(intid);
	return intid;
}

#define cpu_takes_interrupt(c)							\
	cpu_do(c, GMEM_OP_CALL, (u64)guest_takes_interrupt - GMEM_GPA, 0, 0)

static u64 count_of(int eventfd)
{
	u64 count = 0;

	TEST_ASSERT(read(eventfd, &count, sizeof(count)) == sizeof(count) || errno == EAGAIN,
		    "read() of an eventfd: errno %d", errno);
	return count;
}

static void signal_eventfd(int eventfd)
{
	u64 one = 1;

	TEST_ASSERT(write(eventfd, &one, sizeof(one)) == sizeof(one), "write(): errno %d", errno);
}

/* Capabilities that a VMM checks before it runs a guest, and those that a protected VM lacks. */
PVM_TEST(kvm_says_what_works)
{
	static const int works[] = {
		KVM_CAP_IRQCHIP, KVM_CAP_DEVICE_CTRL, KVM_CAP_IRQFD, KVM_CAP_IRQFD_RESAMPLE,
		KVM_CAP_IOEVENTFD, KVM_CAP_SIGNAL_MSI, KVM_CAP_ARM_IRQ_LINE_LAYOUT_2,
		KVM_CAP_ONE_REG, KVM_CAP_MP_STATE, KVM_CAP_IMMEDIATE_EXIT,
		KVM_CAP_VCPU_ATTRIBUTES, KVM_CAP_ARM_PSCI_0_2,
	};
	static const int does_not[] = {
		KVM_CAP_READONLY_MEM, KVM_CAP_SET_GUEST_DEBUG, KVM_CAP_STEAL_TIME,
		KVM_CAP_COUNTER_OFFSET, KVM_CAP_ARM_MTE, KVM_CAP_ARM_PMU_V3,
		KVM_CAP_ARM_EL1_32BIT, KVM_CAP_ARM_NISV_TO_USER,
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(works); i++)
		TEST_ASSERT(vm_check_cap(self->p.vm, works[i]) >= 1, "Capability %d", works[i]);
	for (i = 0; i < ARRAY_SIZE(does_not); i++)
		TEST_ASSERT(!vm_check_cap(self->p.vm, does_not[i]), "Capability %d", does_not[i]);
}

/* The guest writes to an address, without an exit from KVM_RUN. */
PVM_TEST(ioeventfd)
{
	struct pvm *p = &self->p;
	struct kvm_ioeventfd doorbell = {
		.addr = DOORBELL,
		.len = 1,
		.fd = eventfd(0, EFD_NONBLOCK),
	};

	TEST_ASSERT_EQ(vm_check_cap(p->vm, KVM_CAP_IOEVENTFD), 1);
	vm_ioctl(p->vm, KVM_IOEVENTFD, &doorbell);
	virt_map(p->vm, DOORBELL, DOORBELL, 1);
	cpu_start(&p->cpu[0]);
	TEST_ASSERT_EQ(count_of(doorbell.fd), 0);
	cpu_do(&p->cpu[0], GMEM_OP_WRITE, DOORBELL - GMEM_GPA, 1, 0);
	cpu_do(&p->cpu[0], GMEM_OP_WRITE, DOORBELL - GMEM_GPA, 1, 0);
	TEST_ASSERT_EQ(count_of(doorbell.fd), 2);
	close(doorbell.fd);
}

/* By a line and by an eventfd. */
PVM_TEST(interrupts)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	int edge = kvm_new_eventfd();

	TEST_REQUIRE(kvm_supports_vgic_v3());
	TEST_ASSERT_EQ(vm_check_cap(p->vm, KVM_CAP_ARM_IRQ_LINE_LAYOUT_2), 1);
	TEST_ASSERT_EQ(vm_check_cap(p->vm, KVM_CAP_IRQFD), 1);
	cpu_start(c);
	TEST_ASSERT_EQ(cpu_takes_interrupt(c), IAR_SPURIOUS);

	/* The interrupt stays pending for as long as the line is high. */
	kvm_arm_irq_line(p->vm, LEVEL_SPI, 1);
	TEST_ASSERT_EQ(cpu_takes_interrupt(c), LEVEL_SPI);
	TEST_ASSERT_EQ(cpu_takes_interrupt(c), LEVEL_SPI);
	kvm_arm_irq_line(p->vm, LEVEL_SPI, 0);
	TEST_ASSERT_EQ(cpu_takes_interrupt(c), IAR_SPURIOUS);

	kvm_assign_irqfd(p->vm, EDGE_SPI - MIN_SPI, edge);
	signal_eventfd(edge);
	TEST_ASSERT_EQ(cpu_takes_interrupt(c), EDGE_SPI);
	TEST_ASSERT_EQ(cpu_takes_interrupt(c), IAR_SPURIOUS);

	close(edge);
}

/* The owner of a line is notified when the guest is done, and may raise it again. */
PVM_TEST(resampling)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	struct kvm_irqfd level = {
		.fd = kvm_new_eventfd(),
		.gsi = LEVEL_SPI - MIN_SPI,
		.flags = KVM_IRQFD_FLAG_RESAMPLE,
		.resamplefd = eventfd(0, EFD_NONBLOCK),
	};
	int round;

	TEST_REQUIRE(kvm_supports_vgic_v3());
	TEST_ASSERT_EQ(vm_check_cap(p->vm, KVM_CAP_IRQFD_RESAMPLE), 1);
	vm_ioctl(p->vm, KVM_IRQFD, &level);
	cpu_start(c);
	TEST_ASSERT_EQ(cpu_takes_interrupt(c), IAR_SPURIOUS);

	for (round = 0; round < 2; round++) {
		signal_eventfd(level.fd);
		TEST_ASSERT_EQ(count_of(level.resamplefd), 0);
		TEST_ASSERT_EQ(cpu_takes_interrupt(c), LEVEL_SPI);
		TEST_ASSERT_EQ(count_of(level.resamplefd), 1);
		TEST_ASSERT_EQ(cpu_takes_interrupt(c), IAR_SPURIOUS);
	}

	close(level.fd);
	close(level.resamplefd);
}

/* The VMM decides when a vCPU runs, and where it continues. */
PVM_TEST(vcpu_state)
{
	struct kvm_mp_state stopped = { .mp_state = KVM_MP_STATE_STOPPED };
	struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_RUNNABLE };
	struct cpu *c = &self->p.cpu[0];
	u64 pc;
	int r;

	TEST_ASSERT_EQ(vm_check_cap(self->p.vm, KVM_CAP_MP_STATE), 1);
	TEST_ASSERT_EQ(vm_check_cap(self->p.vm, KVM_CAP_IMMEDIATE_EXIT), 1);
	TEST_ASSERT_EQ(vm_check_cap(self->p.vm, KVM_CAP_ONE_REG), 1);
	TEST_ASSERT_EQ(vm_check_cap(self->p.vm, KVM_CAP_VCPU_ATTRIBUTES), 1);
	TEST_ASSERT(!__vcpu_has_device_attr(c->vcpu, KVM_ARM_VCPU_TIMER_CTRL,
					    KVM_ARM_VCPU_TIMER_IRQ_VTIMER),
		    "No attribute of the timer");
	cpu_start(c);

	vcpu_mp_state_set(c->vcpu, &stopped);
	vcpu_ioctl(c->vcpu, KVM_GET_MP_STATE, &state);
	TEST_ASSERT_EQ(state.mp_state, KVM_MP_STATE_STOPPED);
	state.mp_state = KVM_MP_STATE_RUNNABLE;
	vcpu_mp_state_set(c->vcpu, &state);

	c->cmd->op = GMEM_OP_FILL;
	c->cmd->gpa = GMEM_GPA;
	c->cmd->size = PG;
	c->cmd->pattern = GMEM_SEED(1);
	c->cmd->pos = 0;
	c->vcpu->run->immediate_exit = 1;
	r = __vcpu_run(c->vcpu);
	TEST_ASSERT(r == -1 && errno == EINTR, "%d, errno %d", r, errno);
	c->vcpu->run->immediate_exit = 0;
	pc = vcpu_get_reg(c->vcpu, ARM64_CORE_REG(regs.pc));
	vcpu_set_reg(c->vcpu, ARM64_CORE_REG(regs.pc), pc);
	TEST_ASSERT(cpu_run(c), "A fault");
	cpu_check(c, 0, PG, GMEM_SEED(1));
}

/* Private memory is the guest's at its first touch, without an exit. */
PVM_TEST(first_touch)
{
	struct cpu *c = &self->p.cpu[0];

	cpu_start(c);
	c->shares = 0;
	cpu_check(c, 0, 4 * PG, GMEM_ZEROES);
	cpu_fill(c, 0, 4 * PG, GMEM_SEED(1));
	cpu_check(c, 0, 4 * PG, GMEM_SEED(1));
	TEST_ASSERT_EQ(c->wanted_private, 0);
	TEST_ASSERT_EQ(c->shares + c->unshares, 0);
	TEST_ASSERT(gmem_host_refused(self->p.mem), "The host has a private page");
}

/* The guest cannot access shared memory that it has not shared itself. */
PVM_TEST(fault_on_shared_memory)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];

	gmem_convert(p->fd, 0, NPAGES * PG, GMEM_SHARED, GMEM_PRESERVE);
	gmem_fill(p->mem, 4 * PG, GMEM_SEED(1), 0);
	cpu_start(c);

	p->stop_at_fault = true;
	TEST_ASSERT(!__cpu_do(c, GMEM_OP_CHECK, 2 * PG, PG, GMEM_SEED(1)), "No fault");
	TEST_ASSERT_EQ(c->vcpu->run->memory_fault.gpa, GMEM_GPA + 2 * PG);
	/* Nothing has changed, so the fault is repeated. */
	TEST_ASSERT(!cpu_run(c), "No second fault");
	host_check(p, 0, 4 * PG, GMEM_SEED(1));

	p->stop_at_fault = false;
	TEST_ASSERT(cpu_run(c), "The guest does not continue");
	TEST_ASSERT(c->cmd->bad == GMEM_ALL_GOOD, "Wrong at %#lx", (u64)c->cmd->bad);
	TEST_ASSERT(gmem_is_private(p->fd, 2 * PG), "Still shared");
	TEST_ASSERT(gmem_host_refused(p->mem + 2 * PG), "The host has a private page");
	host_check(p, 0, 2 * PG, GMEM_SEED(1));
	TEST_ASSERT_EQ(c->wanted_private, 3);
}

/* Which hypercalls exit, in which order, and the effect of a refusal. */
PVM_TEST(share_and_unshare)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	u64 eo;

	cpu_start(c);
	c->shares = 0;
	cpu_fill(c, 0, PG, GMEM_SEED(1));

	/* The guest owns it, and does not share it. */
	assert_errno(gmem_set_once(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, &eo), EPERM);
	TEST_ASSERT_EQ(eo, 0);

	if (variant->exits) {
		p->refuse = true;
		TEST_ASSERT(cpu_do(c, GMEM_OP_SHARE, 0, PG, 0), "Shared despite the refusal");
		assert_errno(gmem_set_once(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);
		p->refuse = false;
		c->shares = 0;
	}
	cpu_share(c, 0, PG);
	TEST_ASSERT_EQ(c->shares, variant->exits);
	if (!variant->exits)
		gmem_convert(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 0, PG, GMEM_SEED(1));

	gmem_fill(p->mem, PG, GMEM_SEED(2), 0);
	cpu_check(c, 0, PG, GMEM_SEED(2));
	/* Shared already. */
	TEST_ASSERT(cpu_do(c, GMEM_OP_SHARE, 0, PG, 0), "Shared twice");

	if (variant->exits) {
		p->refuse = true;
		TEST_ASSERT(cpu_do(c, GMEM_OP_UNSHARE, 0, PG, 0), "Unshared despite the refusal");
		p->refuse = false;
		c->unshares = 0;
		host_check(p, 0, PG, GMEM_SEED(2));
	}
	cpu_unshare(c, 0, PG);
	TEST_ASSERT_EQ(c->unshares, variant->exits);
	if (!variant->exits) {
		u8 val;

		/* The effect without exits: the host gets SIGSEGV instead of the page. */
		TEST_ASSERT(!gmem_host_read(p->mem, &val), "The host reads an unshared page");
		gmem_convert(p->fd, 0, PG, GMEM_PRIVATE, GMEM_PRESERVE);
	}
	TEST_ASSERT(gmem_is_private(p->fd, 0), "Unshared, and shared");
	TEST_ASSERT(gmem_host_refused(p->mem), "The host has a private page");
	cpu_check(c, 0, PG, GMEM_SEED(2));
	TEST_ASSERT(cpu_do(c, GMEM_OP_UNSHARE, 0, PG, 0), "Unshared twice");

	/* Pages that were never touched are donated first. */
	cpu_share(c, PG, PG);
	if (!variant->exits)
		gmem_convert(p->fd, PG, PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, PG, PG, GMEM_ZEROES);
	/* Not page aligned, and not the guest's memory. */
	TEST_ASSERT(cpu_do(c, GMEM_OP_SHARE, 8, PG, 0), "Shared at 8");
	TEST_ASSERT(cpu_do(c, GMEM_OP_UNSHARE, 8, PG, 0), "Unshared at 8");
}

/* Several pages by one hypercall, up to the first in another state. */
PVM_TEST(share_several_pages)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	u64 n;

	cpu_start(c);
	c->shares = 0;
	cpu_fill(c, 0, 48 * PG, GMEM_SEED(1));

	TEST_ASSERT_EQ(cpu_hvc(c, MEM_SHARE, 0, 3, &n), 0);
	TEST_ASSERT_EQ(n, 3);
	/* A page that is shared already, or was never touched, ends the call. */
	TEST_ASSERT_EQ(cpu_hvc(c, MEM_SHARE, 2 * PG, 4, &n), INVALID_PARAMETER);
	TEST_ASSERT_EQ(cpu_hvc(c, MEM_SHARE, 46 * PG, 4, &n), 0);
	TEST_ASSERT_EQ(n, 2);
	TEST_ASSERT_EQ(cpu_hvc(c, MEM_SHARE, 48 * PG, 4, &n), 0);
	TEST_ASSERT_EQ(n, 1);
	/* 0 counts as 1. One call does a limited number, however many are requested. */
	TEST_ASSERT_EQ(cpu_hvc(c, MEM_SHARE, 3 * PG, 0, &n), 0);
	TEST_ASSERT_EQ(n, 1);
	TEST_ASSERT_EQ(cpu_hvc(c, MEM_SHARE, 4 * PG, -1ul, &n), 0);
	TEST_ASSERT_EQ(n, 32);
	if (variant->exits) {
		TEST_ASSERT_EQ(c->shares, 5);
		TEST_ASSERT_EQ(c->pages, 32);
	} else {
		gmem_convert(p->fd, 0, 36 * PG, GMEM_SHARED, GMEM_PRESERVE);
		gmem_convert(p->fd, 46 * PG, 3 * PG, GMEM_SHARED, GMEM_PRESERVE);
	}
	host_check(p, 0, 36 * PG, GMEM_SEED(1));
	host_check(p, 46 * PG, 2 * PG, GMEM_SEED(1));
	host_check(p, 48 * PG, PG, GMEM_ZEROES);
	assert_errno(gmem_set_once(p->fd, 36 * PG, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);
	assert_errno(gmem_set_once(p->fd, 45 * PG, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);

	gmem_fill(p->mem, 36 * PG, GMEM_SEED(2), 0);
	if (!variant->exits)
		gmem_convert(p->fd, 0, 36 * PG, GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT_EQ(cpu_hvc(c, MEM_UNSHARE, 32 * PG, 8, &n), 0);
	TEST_ASSERT_EQ(n, 4);
	TEST_ASSERT_EQ(cpu_hvc(c, MEM_UNSHARE, 0, 32, &n), 0);
	TEST_ASSERT_EQ(n, 32);
	TEST_ASSERT_EQ(cpu_hvc(c, MEM_UNSHARE, 0, 2, &n), INVALID_PARAMETER);
	if (variant->exits)
		TEST_ASSERT_EQ(c->unshares, 2);
	TEST_ASSERT(gmem_host_refused(p->mem), "The host has a private page");
	cpu_check(c, 0, 36 * PG, GMEM_SEED(2));
	cpu_check(c, 36 * PG, 12 * PG, GMEM_SEED(1));
	assert_errno(gmem_set_once(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);
}

/* User space agrees to the first pages only: the guest gets their number. */
TEST_F_TIMEOUT(told, some_of_several_pages, TIMEOUT)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	struct kvm_run *run = c->vcpu->run;
	u64 eo;

	cpu_start(c);
	cpu_fill(c, 0, 8 * PG, GMEM_SEED(1));
	c->cmd->op = GMEM_OP_HVC;
	c->cmd->pattern = MEM_SHARE;
	c->cmd->gpa = GMEM_GPA;
	c->cmd->pos = 8;
	TEST_ASSERT(!__vcpu_run(c->vcpu), "KVM_RUN: errno %d", errno);
	TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_HYPERCALL);
	TEST_ASSERT_EQ(run->hypercall.args[1], 8);
	/* Pages are done in order: this would be the second. */
	assert_errno(gmem_set_once(p->fd, PG, PG, GMEM_SHARED, GMEM_PRESERVE, &eo), EPERM);
	gmem_convert(p->fd, 0, 3 * PG, GMEM_SHARED, GMEM_PRESERVE);
	run->hypercall.ret = EPERM;
	TEST_ASSERT(cpu_run(c), "The guest does not continue");
	TEST_ASSERT_EQ(c->cmd->value, 0);
	TEST_ASSERT_EQ(c->cmd->bad, 3);
	host_check(p, 0, 3 * PG, GMEM_SEED(1));
	assert_errno(gmem_set_once(p->fd, 3 * PG, PG, GMEM_SHARED, GMEM_PRESERVE, &eo), EPERM);

	c->cmd->pattern = MEM_UNSHARE;
	TEST_ASSERT(!__vcpu_run(c->vcpu), "KVM_RUN: errno %d", errno);
	TEST_ASSERT_EQ(run->hypercall.args[1], 3);
	gmem_convert(p->fd, 0, PG, GMEM_PRIVATE, GMEM_PRESERVE);
	gmem_convert(p->fd, 2 * PG, PG, GMEM_PRIVATE, GMEM_PRESERVE);
	run->hypercall.ret = 0;
	TEST_ASSERT(cpu_run(c), "The guest does not continue");
	TEST_ASSERT_EQ(c->cmd->value, 0);
	TEST_ASSERT_EQ(c->cmd->bad, 1);
	assert_errno(gmem_set_once(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, &eo), EPERM);
	gmem_convert(p->fd, 2 * PG, PG, GMEM_SHARED, GMEM_PRESERVE);
	cpu_check(c, 0, 8 * PG, GMEM_SEED(1));
}

/* User space agrees without converting: EL2 does not unshare the page. */
TEST_F_TIMEOUT(told, yes_without_conversion, TIMEOUT)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	struct kvm_run *run = c->vcpu->run;

	cpu_start(c);
	cpu_fill(c, 0, PG, GMEM_SEED(1));
	cpu_share(c, 0, PG);
	host_check(p, 0, PG, GMEM_SEED(1));

	c->cmd->op = GMEM_OP_UNSHARE;
	c->cmd->gpa = GMEM_GPA;
	c->cmd->size = PG;
	TEST_ASSERT(!__vcpu_run(c->vcpu), "KVM_RUN: errno %d", errno);
	TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_HYPERCALL);
	run->hypercall.ret = 0;
	TEST_ASSERT(cpu_run(c), "The guest does not continue");
	TEST_ASSERT(c->cmd->value, "Unshared a page that is shared in the file");
	gmem_fill(p->mem, PG, GMEM_SEED(2), 0);
	cpu_check(c, 0, PG, GMEM_SEED(2));

	/* A signal between exit and answer changes nothing. */
	c->cmd->op = GMEM_OP_UNSHARE;
	TEST_ASSERT(!__vcpu_run(c->vcpu), "KVM_RUN: errno %d", errno);
	TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_HYPERCALL);
	gmem_convert(p->fd, 0, PG, GMEM_PRIVATE, GMEM_PRESERVE);
	run->hypercall.ret = 0;
	run->immediate_exit = 1;
	TEST_ASSERT(__vcpu_run(c->vcpu) && errno == EINTR, "No EINTR: %d", errno);
	run->immediate_exit = 0;
	TEST_ASSERT(cpu_run(c), "The guest does not continue");
	TEST_ASSERT(!c->cmd->value, "Not unshared: %ld", (long)c->cmd->value);
	cpu_check(c, 0, PG, GMEM_SEED(2));
}

/* --- The contract --------------------------------------------------------- */

enum state {
	NEVER_USED,	/* no folio */
	ALLOCATED,	/* a folio that was never used */
	HOST_USED,	/* shared, written by the host, never the guest's */
	HOST_WROTE,	/* the same, private again */
	GUEST_OWNS,	/* private, owned by the guest */
	GUEST_SHARES,	/* the guest shares it, the file says private */
	BOTH_USE,	/* shared by both */
	NR_STATES,
};

static const char * const state_name[] = {
	"never used", "allocated", "used by the host", "written by the host", "the guest's",
	"shared by the guest only", "used by both",
};

static bool guest_has(enum state state)
{
	return state >= GUEST_OWNS;
}

/* Brings a page into a state, with pattern SEED(1) if it can be written. */
static u32 prepare(struct pvm *p, u64 offset, enum state state)
{
	struct cpu *c = &p->cpu[0];

	switch (state) {
	case NEVER_USED:
		return GMEM_ZEROES;
	case ALLOCATED:
		TEST_ASSERT(!gmem_allocate(p->fd, offset, PG), "fallocate: %d", errno);
		return GMEM_ZEROES;
	case HOST_USED:
	case HOST_WROTE:
		gmem_convert(p->fd, offset, PG, GMEM_SHARED, GMEM_PRESERVE);
		gmem_fill(p->mem + offset, PG, GMEM_SEED(1), offset);
		if (state == HOST_WROTE)
			gmem_convert(p->fd, offset, PG, GMEM_PRIVATE, GMEM_PRESERVE);
		return GMEM_SEED(1);
	default:
		cpu_fill(c, offset, PG, GMEM_SEED(1));
		if (state == GUEST_OWNS)
			return GMEM_SEED(1);
		p->refuse = false;
		cpu_share(c, offset, PG);
		gmem_convert(p->fd, offset, PG, state == BOTH_USE ? GMEM_SHARED : GMEM_PRIVATE,
			     GMEM_PRESERVE);
		return GMEM_SEED(1);
	}
}

/* The contract for one page. */
static int expected(enum state state, u64 to, u64 policy, u32 *pattern)
{
	if (state == GUEST_OWNS && to == GMEM_SHARED)
		return EPERM;
	if (state == GUEST_OWNS && policy == GMEM_ZERO)
		return EOPNOTSUPP;
	if (policy == GMEM_ZERO)
		*pattern = GMEM_ZEROES;
	return 0;
}

static void contract_cell(struct __test_metadata *_metadata, struct pvm *p, bool run,
			  enum state state, u64 to, u64 policy)
{
	struct cpu *c = &p->cpu[0];
	const u64 at = 3 * PG;
	u64 eo, was;
	u32 pattern;
	int want, r;

	pattern = prepare(p, at, state);
	TEST_ASSERT(!gmem_get(p->fd, at, &was, NULL), "GET");
	want = expected(state, to, policy, &pattern);

	r = gmem_set(p->fd, at, PG, to, policy, &eo);
	TEST_ASSERT(r == want, "%s, to %s, policy %#lx: errno %d, wanted %d", state_name[state],
		    to ? "private" : "shared", policy, r, want);
	if (r) {
		TEST_ASSERT_EQ(eo, at);
		gmem_assert_attributes(p->fd, at, PG, was);
		cpu_check(c, at, PG, GMEM_SEED(1));
		return;
	}
	TEST_ASSERT_EQ(eo, GMEM_POISON_OFFSET);
	gmem_assert_attributes(p->fd, at, PG, to);

	/* Checks from the side that has it now, and then from the other. */
	if (to == GMEM_SHARED) {
		host_check(p, at, PG, pattern);
		if (guest_has(state))
			cpu_check(c, at, PG, pattern);
	} else {
		TEST_ASSERT(gmem_host_refused(p->mem + at), "The host has a private page");
		if (run)
			cpu_check(c, at, PG, pattern);
		if (state == GUEST_SHARES || state == BOTH_USE) {
			cpu_unshare(c, at, PG);
			cpu_check(c, at, PG, pattern);
		}
		if (!run || !guest_has(state)) {
			if (run)
				return;
			gmem_convert(p->fd, at, PG, GMEM_SHARED, GMEM_PRESERVE);
			host_check(p, at, PG, pattern);
		}
	}
}

TEST_F_TIMEOUT(pvm, contract, 2 * TIMEOUT)
{
	static const u64 policies[] = { GMEM_NONE, GMEM_ZERO, GMEM_PRESERVE };
	enum state state;
	int run, to, i, cells = 0;

	/* The fixture's VM is not used: each cell has its own VM. */
	for (run = 0; run < 2; run++) {
		for (state = 0; state < NR_STATES; state++) {
			/* Before it runs, a guest has no pages. */
			if (!run && guest_has(state))
				continue;
			for (to = 0; to < 2; to++) {
				for (i = 0; i < ARRAY_SIZE(policies); i++) {
					struct pvm p;

					pvm_create(&p, GUEST_MEMFD_FLAG_MMAP, variant->exits);
					if (run)
						cpu_start(&p.cpu[0]);
					contract_cell(_metadata, &p, run, state,
						      to ? GMEM_PRIVATE : GMEM_SHARED,
						      policies[i]);
					pvm_destroy(&p);
					cells++;
				}
			}
		}
	}
	TH_LOG("%d cells", cells);
}

/*
 * ZERO of a shared page keeps the host's mapping. The host can write through it, and
 * PRESERVE keeps these bytes, up to the guest's first touch.
 */
PVM_TEST(zero_while_mapped)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	struct iovec theirs = iov(p->mem + 3 * PG, PG);
	int ends[2];

	/* Mapped and written; mapped only; unmapped again; unmapped, and held. */
	gmem_convert(p->fd, 0, 4 * PG, GMEM_SHARED, GMEM_PRESERVE);
	gmem_fill(p->mem, PG, GMEM_SEED(1), 0);
	host_check(p, PG, 3 * PG, GMEM_ZEROES);
	TEST_ASSERT(!pipe(ends), "pipe: %d", errno);
	TEST_ASSERT_EQ(vmsplice(ends[1], &theirs, 1, 0), PG);
	kvm_madvise(p->mem + 2 * PG, 2 * PG, MADV_DONTNEED);

	gmem_convert(p->fd, 0, 4 * PG, GMEM_SHARED, GMEM_ZERO);
	host_check(p, 0, 2 * PG, GMEM_ZEROES);
	gmem_fill(p->mem, 4 * PG, GMEM_SEED(2), 0);
	close(ends[0]);
	close(ends[1]);
	gmem_convert(p->fd, 0, 4 * PG, GMEM_PRIVATE, GMEM_PRESERVE);
	cpu_start(c);
	cpu_check(c, 0, 4 * PG, GMEM_SEED(2));
}

/* All or nothing, and the error names the first page that prevents it. */
PVM_TEST(first_page_that_is_not_shared)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	u64 eo;

	cpu_start(c);
	cpu_fill(c, 0, 8 * PG, GMEM_SEED(1));
	cpu_share(c, 0, 5 * PG);
	gmem_convert(p->fd, 0, 5 * PG, GMEM_PRIVATE, GMEM_NONE);

	assert_errno(gmem_set_once(p->fd, PG, 6 * PG, GMEM_SHARED, GMEM_ZERO, &eo), EPERM);
	TEST_ASSERT_EQ(eo, 5 * PG);
	gmem_assert_attributes(p->fd, 0, 8 * PG, GMEM_PRIVATE);
	cpu_check(c, 0, 8 * PG, GMEM_SEED(1));
	/* To private with ZERO: the guest keeps that page. */
	assert_errno(gmem_set_once(p->fd, 0, 8 * PG, GMEM_PRIVATE, GMEM_ZERO, &eo), EOPNOTSUPP);
	TEST_ASSERT_EQ(eo, 5 * PG);
	cpu_check(c, 0, 8 * PG, GMEM_SEED(1));
}

/* --- Payloads ------------------------------------------------------------- */

/* mov x0, #42; ret */
static const u32 payload[] = { 0xd2800540, 0xd65f03c0 };

/* The host writes code and the guest runs it; the host cannot see it in between. */
PVM_TEST(injected_payload_runs)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];

	gmem_convert(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE);
	memcpy(p->mem, payload, sizeof(payload));
	gmem_convert(p->fd, 0, PG, GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT(gmem_host_refused(p->mem), "The host has the payload");
	cpu_start(c);
	TEST_ASSERT_EQ(cpu_do(c, GMEM_OP_CALL, 0, 0, 0), 42);
}

/* The guest fills and shares a page, the host reads and answers, the guest takes it back. */
PVM_TEST(bounce_buffer)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	const u64 at = 8 * PG, size = 8 * PG;
	int i;

	cpu_start(c);
	for (i = 0; i < 8; i++) {
		cpu_fill(c, at, size, GMEM_SEED(2 * i));
		cpu_share(c, at, size);
		if (!variant->exits)
			gmem_convert(p->fd, at, size, GMEM_SHARED, GMEM_PRESERVE);
		host_check(p, at, size, GMEM_SEED(2 * i));
		gmem_fill(p->mem + at, size, GMEM_SEED(2 * i + 1), at);
		if (!variant->exits)
			gmem_convert(p->fd, at, size, GMEM_PRIVATE, GMEM_PRESERVE);
		cpu_unshare(c, at, size);
		cpu_check(c, at, size, GMEM_SEED(2 * i + 1));
		TEST_ASSERT(gmem_host_refused(p->mem + at), "The host has a private page");
	}
	if (variant->exits) {
		TEST_ASSERT_EQ(c->shares, 8 * 8 + 1);
		TEST_ASSERT_EQ(c->unshares, 8 * 8);
	}
}

/* --- Giving memory back --------------------------------------------------- */

/*
 * Pages of all kinds are punched out while the guest lives, and come back zeroed. Where
 * the guest had shared a page it finds zeroes. Where it owned a page it gets no page any
 * more.
 */
PVM_TEST(punch)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	enum state state;
	int round;

	cpu_start(c);
	for (round = 0; round < 4; round++) {
		const u64 at = round * NR_STATES * PG;

		for (state = 0; state < NR_STATES; state++)
			prepare(p, at + state * PG, state);
		assert_errno(gmem_punch(p->fd, at, NR_STATES * PG), 0);
		for (state = 0; state < NR_STATES; state++) {
			const u64 page = at + state * PG;
			bool shared = !gmem_is_private(p->fd, page);

			/* The attributes stay. */
			TEST_ASSERT_EQ(shared, state == HOST_USED || state == BOTH_USE);
			if (shared)
				host_check(p, page, PG, GMEM_ZEROES);
			/* The guest does not own it any more, and need not agree. */
			gmem_convert(p->fd, page, PG, GMEM_SHARED, GMEM_PRESERVE);
			host_check(p, page, PG, GMEM_ZEROES);
			gmem_fill(p->mem + page, PG, GMEM_SEED(3), page);
			gmem_convert(p->fd, page, PG, GMEM_PRIVATE, GMEM_PRESERVE);
			if (state == GUEST_OWNS)
				cpu_assert_lost(c, page);
			else
				cpu_check(c, page, PG, guest_has(state) ? GMEM_ZEROES : GMEM_SEED(3));
		}
	}
}

/* The guest gives memory back: EL2 has scrubbed it, and the host may use it. */
PVM_TEST(relinquish)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	gva_t anon = vm_alloc_page(p->vm);
	/* Translated now: later the host cannot read the guest's page tables. */
	gpa_t anon_gpa = addr_gva2gpa(p->vm, anon);
	u64 left, val = 0, exits = 0;

	cpu_start(c);
	TEST_ASSERT(cpu_do(c, GMEM_OP_HVC, 0, 0, VENDOR_HYP_FEATURES) & BIT(9), "Not announced");

	cpu_fill(c, 0, 8 * PG, GMEM_SEED(1));
	cpu_share(c, 7 * PG, PG);
	/* Not aligned, not its own page, an invalid argument. */
	TEST_ASSERT_EQ((s64)cpu_do(c, GMEM_OP_RELINQUISH, 8, PG, 0), INVALID_PARAMETER);
	TEST_ASSERT_EQ((s64)cpu_do(c, GMEM_OP_RELINQUISH, 7 * PG, PG, 0), INVALID_PARAMETER);
	TEST_ASSERT_EQ((s64)cpu_do(c, GMEM_OP_HVC, PG, PG, MEM_RELINQUISH), INVALID_PARAMETER);
	cpu_check(c, 0, 8 * PG, GMEM_SEED(1));
	TEST_ASSERT_EQ(c->relinquishes, 0);

	/* Never used: the guest still finds zeroes, whatever the host has written there. */
	gmem_convert(p->fd, 16 * PG, 2 * PG, GMEM_SHARED, GMEM_PRESERVE);
	gmem_fill(p->mem + 16 * PG, 2 * PG, GMEM_SEED(2), 16 * PG);
	gmem_convert(p->fd, 16 * PG, PG, GMEM_PRIVATE, GMEM_PRESERVE);
	cpu_relinquish(c, 16 * PG, 3 * PG);
	exits += 3;
	TEST_ASSERT_EQ(c->relinquishes, variant->exits ? exits : 0);
	gmem_convert(p->fd, 16 * PG, 3 * PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 16 * PG, 3 * PG, GMEM_ZEROES);
	gmem_fill(p->mem + 16 * PG, 3 * PG, GMEM_SEED(2), 16 * PG);
	gmem_convert(p->fd, 16 * PG, 3 * PG, GMEM_PRIVATE, GMEM_PRESERVE);
	cpu_check(c, 16 * PG, 3 * PG, GMEM_ZEROES);

	/* The host can use the page. Later the guest finds zeroes, and not the host's bytes. */
	cpu_relinquish(c, 0, 4 * PG);
	exits += 4;
	TEST_ASSERT_EQ(c->relinquishes, variant->exits ? exits : 0);
	gmem_assert_attributes(p->fd, 0, 4 * PG, GMEM_PRIVATE);
	gmem_convert(p->fd, 0, 2 * PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 0, 2 * PG, GMEM_ZEROES);
	gmem_fill(p->mem, 2 * PG, GMEM_SEED(2), 0);
	gmem_convert(p->fd, 0, 2 * PG, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(gmem_punch(p->fd, PG, 2 * PG), 0);
	cpu_check(c, 0, 4 * PG, GMEM_ZEROES);
	/* The guest owns it again. */
	assert_errno(gmem_set_once(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);
	cpu_fill(c, 0, 4 * PG, GMEM_SEED(3));
	cpu_check(c, 0, 8 * PG - 4 * PG, GMEM_SEED(3));

	/* User space frees it at once; a second time has no effect. */
	p->punch = true;
	cpu_relinquish(c, 0, PG);
	cpu_relinquish(c, 0, PG);
	exits++;
	TEST_ASSERT_EQ(c->relinquishes, variant->exits ? exits : 0);
	cpu_check(c, 0, PG, GMEM_ZEROES);

	/* Mapped ahead of the guest, or by sharing it. */
	cpu_relinquish(c, 0, 2 * PG);
	assert_errno(map_memory(c, 0, PG, &left), 0);
	assert_errno(gmem_set_once(p->fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), EPERM);
	cpu_share(c, PG, PG);
	if (!variant->exits)
		gmem_convert(p->fd, PG, PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, PG, PG, GMEM_ZEROES);
	cpu_check(c, 0, 2 * PG, GMEM_ZEROES);

	/* Memory outside of guest_memfd stays pinned, and is used again. */
	c->cmd->op = GMEM_OP_WRITE;
	c->cmd->gpa = anon;
	c->cmd->value = 42;
	TEST_ASSERT(cpu_run(c), "A fault");
	cpu_relinquish(c, anon_gpa - GMEM_GPA, PG);
	TEST_ASSERT(cpu_read(c, anon - GMEM_GPA, &val), "A fault");
	TEST_ASSERT_EQ(val, 0);

	/* A hole takes pages that the guest has not given back. */
	cpu_relinquish(c, 4 * PG, PG);
	assert_errno(gmem_punch(p->fd, 4 * PG, 2 * PG), 0);
	cpu_check(c, 4 * PG, PG, GMEM_ZEROES);
	cpu_assert_lost(c, 5 * PG);
	TEST_ASSERT_EQ((s64)cpu_do(c, GMEM_OP_RELINQUISH, 5 * PG, PG, 0), INVALID_PARAMETER);
	TEST_ASSERT_EQ((s64)cpu_do(c, GMEM_OP_SHARE, 5 * PG, PG, 0), INVALID_PARAMETER);
	cpu_check(c, 6 * PG, PG, GMEM_SEED(1));
}

/* A guest that shares and touches pages while a hole is punched never sees old bytes. */
static void *punch_all_the_time(void *arg)
{
	struct pvm *p = arg;
	int i;

	for (i = 0; i < 300; i++)
		TEST_ASSERT(!gmem_punch(p->fd, 0, NPAGES / 2 * PG), "punch: %d", errno);
	return NULL;
}

PVM_TEST(punch_against_a_running_guest)
{
	bool lost[NPAGES / 2] = {};
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	u64 page, val = 0, n = 0;
	pthread_t thread;
	int i;

	cpu_start(c);
	pthread_create(&thread, NULL, punch_all_the_time, p);
	for (i = 1; i <= 50; i++) {
		for (page = i % 8; page < NPAGES / 2; page += 8) {
			/* It is lost if a hole was punched after its first touch. */
			cpu_do(c, GMEM_OP_SHARE, page * PG, PG, 0);
			c->cmd->op = GMEM_OP_WRITE;
			c->cmd->gpa = GMEM_GPA + page * PG;
			c->cmd->value = i;
			if (!cpu_run(c)) {
				TEST_ASSERT(c->lost, "A fault");
				cpu_skip(c);
				lost[page] = true;
			}
			if (!cpu_read(c, page * PG, &val)) {
				lost[page] = true;
				continue;
			}
			TEST_ASSERT(!lost[page], "%lu was lost, and is not", page);
			TEST_ASSERT(!val || val == i, "The guest reads %lu in round %d", val, i);
		}
		/* Pages outside of the hole keep their bytes. */
		cpu_fill(c, NPAGES / 2 * PG, 4 * PG, GMEM_SEED(i));
		cpu_check(c, NPAGES / 2 * PG, 4 * PG, GMEM_SEED(i));
	}
	pthread_join(thread, NULL);
	assert_errno(gmem_punch(p->fd, 0, NPAGES / 2 * PG), 0);
	gmem_convert(p->fd, 0, NPAGES / 2 * PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 0, NPAGES / 2 * PG, GMEM_ZEROES);
	for (page = 0; page < NPAGES / 2; page++)
		n += lost[page];
	TH_LOG("%lu of %lu pages were lost", n, NPAGES / 2);
}

/* The file is closed first: the guest finds no memory any more, but lives. */
PVM_TEST(file_closed_before_the_vm)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];

	cpu_start(c);
	cpu_fill(c, 0, 8 * PG, GMEM_SEED(1));
	cpu_share(c, 4 * PG, 2 * PG);
	gmem_convert(p->fd, 4 * PG, 2 * PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 4 * PG, 2 * PG, GMEM_SEED(1));

	kvm_munmap(p->mem, NPAGES * PG);
	close(p->fd);
	p->stop_at_fault = true;
	TEST_ASSERT(!__cpu_do(c, GMEM_OP_READ, 0, PG, 0), "Memory without a file");
	TEST_ASSERT(!cpu_run(c), "Memory without a file");

	/* For the fixture's teardown. */
	p->fd = open("/dev/null", O_RDONLY);
	p->mem = kvm_mmap(NPAGES * PG, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

/* The VM's descriptors are closed first: the file keeps the VM and its memory. */
PVM_TEST(vm_closed_before_the_file)
{
	struct pvm *p = &self->p, q;
	u64 eo;

	pvm_create(&q, GUEST_MEMFD_FLAG_MMAP, variant->exits);
	cpu_start(&q.cpu[0]);
	cpu_fill(&q.cpu[0], 0, 8 * PG, GMEM_SEED(1));
	cpu_share(&q.cpu[0], 4 * PG, 2 * PG);
	gmem_convert(q.fd, 4 * PG, 2 * PG, GMEM_SHARED, GMEM_PRESERVE);
	kvm_vm_free(q.vm);

	host_check(&q, 4 * PG, 2 * PG, GMEM_SEED(1));
	assert_errno(gmem_set_once(q.fd, 0, PG, GMEM_SHARED, GMEM_NONE, &eo), EPERM);
	assert_errno(gmem_punch(q.fd, 0, PG), 0);
	gmem_convert(q.fd, 0, PG, GMEM_SHARED, GMEM_NONE);
	host_check(&q, 0, PG, GMEM_ZEROES);
	kvm_munmap(q.mem, NPAGES * PG);
	close(q.fd);
	/* The next owner of the pages can use them. */
	gmem_dirty_free_pages();
	cpu_start(&p->cpu[0]);
	cpu_check(&p->cpu[0], 0, NPAGES * PG, GMEM_ZEROES);
}

/*
 * The VM's process ends while another process still has the file. Nothing is left
 * there of the guest's bytes, private or shared.
 */
TEST_F_TIMEOUT(pvm, teardown_scrubs, 2 * TIMEOUT)
{
	int i, status, ends[2], pidfd, fd;
	struct pvm p;
	pid_t child;
	u8 *mem;

	TEST_ASSERT(!pipe(ends), "pipe: %d", errno);
	for (i = 0; i < 50; i++) {
		child = fork();
		if (!child) {
			pvm_create(&p, GUEST_MEMFD_FLAG_MMAP, variant->exits);
			cpu_start(&p.cpu[0]);
			cpu_fill(&p.cpu[0], 0, 16 * PG, GMEM_SEED(i));
			cpu_share(&p.cpu[0], 0, 8 * PG);
			gmem_convert(p.fd, 0, 4 * PG, GMEM_SHARED, GMEM_PRESERVE);
			host_check(&p, 0, 4 * PG, GMEM_SEED(i));
			TEST_ASSERT(write(ends[1], &p.fd, sizeof(int)) == sizeof(int), "write");
			pause();
		}
		TEST_ASSERT(read(ends[0], &fd, sizeof(int)) == sizeof(int), "read: %d", errno);
		pidfd = syscall(__NR_pidfd_open, child, 0);
		fd = syscall(__NR_pidfd_getfd, pidfd, fd, 0);
		TEST_ASSERT(fd >= 0, "pidfd_getfd: %d", errno);
		close(pidfd);
		/* No clean end: the kernel has to clean up. */
		kill(child, SIGKILL);
		TEST_ASSERT(waitpid(child, &status, 0) == child && WIFSIGNALED(status) &&
			    WTERMSIG(status) == SIGKILL, "The child: %#x", status);
		gmem_convert(fd, 0, NPAGES * PG, GMEM_SHARED, GMEM_PRESERVE);
		mem = kvm_mmap(NPAGES * PG, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
		TEST_ASSERT(gmem_check(mem, NPAGES * PG, GMEM_ZEROES, 0) == GMEM_ALL_GOOD,
			    "Run %d: the guest's bytes have survived it", i);
		memset(mem, 0x5a, NPAGES * PG);
		kvm_munmap(mem, NPAGES * PG);
		close(fd);
	}
	close(ends[0]);
	close(ends[1]);
}

/* --- Ways to a private page ----------------------------------------------- */

/* Reads a page of another process' memory word by word, as a debugger does. */
static bool peek(pid_t child, u8 *mem)
{
	errno = 0;
	return ptrace(PTRACE_PEEKDATA, child, mem, NULL) != -1 || !errno;
}

PVM_TEST(no_way_to_a_private_page)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	static u8 buf[SZ_4K];
	struct iovec ours, theirs;
	int fd, ends[2], status;
	u8 *mem = p->mem, *moved;
	pid_t child;
	ssize_t n;

	/* The page is mapped everywhere while it is shared, and then becomes the guest's. */
	cpu_start(c);
	cpu_fill(c, 0, 4 * PG, GMEM_SEED(1));
	cpu_share(c, 0, 4 * PG);
	gmem_convert(p->fd, 0, 4 * PG, GMEM_SHARED, GMEM_PRESERVE);
	host_check(p, 0, 4 * PG, GMEM_SEED(1));
	child = fork();
	if (!child) {
		TEST_ASSERT(gmem_check(mem, PG, GMEM_SEED(1), 0) == GMEM_ALL_GOOD, "The child");
		TEST_ASSERT(!ptrace(PTRACE_TRACEME, 0, NULL, NULL), "TRACEME: %d", errno);
		raise(SIGSTOP);
		_exit(!gmem_host_refused(mem));
	}
	TEST_ASSERT(waitpid(child, &status, 0) == child && WIFSTOPPED(status), "%#x", status);
	TEST_ASSERT(peek(child, mem), "A debugger does not read shared memory");

	gmem_convert(p->fd, 0, 4 * PG, GMEM_PRIVATE, GMEM_PRESERVE);
	cpu_unshare(c, 0, 4 * PG);

	TEST_ASSERT(gmem_host_refused(mem), "The mapping");
	TEST_ASSERT(!peek(child, mem), "PTRACE_PEEKDATA");
	TEST_ASSERT(ptrace(PTRACE_POKEDATA, child, mem, 0) && errno == EIO, "PTRACE_POKEDATA");

	ours = iov(buf, sizeof(buf));
	theirs = iov(mem, sizeof(buf));
	n = process_vm_readv(getpid(), &ours, 1, &theirs, 1, 0);
	TEST_ASSERT(n < 0 && errno == EFAULT, "process_vm_readv: %zd", n);
	n = process_vm_writev(getpid(), &ours, 1, &theirs, 1, 0);
	TEST_ASSERT(n < 0 && errno == EFAULT, "process_vm_writev: %zd", n);

	fd = open("/proc/self/mem", O_RDWR);
	TEST_ASSERT(fd >= 0, "/proc/self/mem: %d", errno);
	n = pread(fd, buf, sizeof(buf), (off_t)mem);
	TEST_ASSERT(n <= 0, "Reading /proc/self/mem: %zd", n);
	n = pwrite(fd, buf, sizeof(buf), (off_t)mem);
	TEST_ASSERT(n <= 0, "Writing /proc/self/mem: %zd", n);
	close(fd);

	/* System calls that copy, and those that take pages. */
	TEST_ASSERT(!pipe(ends), "pipe: %d", errno);
	n = write(ends[1], mem, PG);
	TEST_ASSERT(n < 0 && errno == EFAULT, "write: %zd", n);
	n = write(ends[1], buf, PG);
	TEST_ASSERT_EQ(n, PG);
	n = read(ends[0], mem, PG);
	TEST_ASSERT(n < 0 && errno == EFAULT, "read: %zd", n);
	theirs = iov(mem, PG);
	n = vmsplice(ends[1], &theirs, 1, 0);
	TEST_ASSERT(n < 0 && errno == EFAULT, "vmsplice: %zd", n);
	close(ends[0]);
	close(ends[1]);

	TEST_ASSERT(madvise(mem, PG, MADV_POPULATE_READ) && errno == EFAULT, "POPULATE_READ");
	TEST_ASSERT(madvise(mem, PG, MADV_POPULATE_WRITE) && errno == EFAULT, "POPULATE_WRITE");
	/* These may succeed, but must not reveal the guest's bytes. */
	(void)!mlock(mem, PG);
	TEST_ASSERT(gmem_host_refused(mem), "mlock");
	munlock(mem, PG);
	moved = mmap(NULL, 4 * PG, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, p->fd, 0);
	TEST_ASSERT(moved == MAP_FAILED || gmem_host_refused(moved), "MAP_POPULATE");
	moved = mremap(moved, 4 * PG, 4 * PG, MREMAP_MAYMOVE | MREMAP_FIXED,
		       moved + 1024 * PG);
	TEST_ASSERT(moved == MAP_FAILED || gmem_host_refused(moved), "mremap");

	TEST_ASSERT(!ptrace(PTRACE_DETACH, child, NULL, NULL), "DETACH: %d", errno);
	TEST_ASSERT(waitpid(child, &status, 0) == child && WIFEXITED(status) &&
		    !WEXITSTATUS(status), "A forked child has the page: %#x", status);

	/* The guest has seen nothing of it. */
	cpu_check(c, 0, 4 * PG, GMEM_SEED(1));
	TEST_ASSERT_EQ(force_reclaims() - p->reclaims, 0);
}

/*
 * Checks that the counter counts: memory outside of guest_memfd is lost by a fork(),
 * which copies pinned pages. guest_memfd has no such pages.
 */
TEST(force_reclaims_are_counted)
{
	const struct userspace_mem_region *slot0;
	u64 before = force_reclaims();
	struct pvm p;
	pid_t child;
	int status;

	pvm_create(&p, GUEST_MEMFD_FLAG_MMAP, false);
	cpu_start(&p.cpu[0]);
	slot0 = memslot2region(p.vm, 0);
	kvm_madvise(slot0->host_mem, slot0->region.memory_size, MADV_DOFORK);
	child = fork();
	if (!child)
		_exit(0);
	TEST_ASSERT(waitpid(child, &status, 0) == child && !status, "The child: %#x", status);
	TEST_ASSERT(force_reclaims() > before, "Not counted");
	kvm_vm_free(p.vm);
	close(p.fd);
}

/* Somebody holds a reference to a page: it does not become private, and the guest gets an error. */
PVM_TEST(page_that_is_held)
{
	struct pvm *p = &self->p;
	struct cpu *c = &p->cpu[0];
	struct iovec theirs = iov(p->mem + 2 * PG, PG);
	static u8 buf[SZ_4K];
	int ends[2];
	u64 eo;

	cpu_start(c);
	cpu_fill(c, 0, 4 * PG, GMEM_SEED(1));
	cpu_share(c, 0, 4 * PG);
	gmem_convert(p->fd, 0, 4 * PG, GMEM_SHARED, GMEM_PRESERVE);

	TEST_ASSERT(!pipe(ends), "pipe: %d", errno);
	TEST_ASSERT_EQ(vmsplice(ends[1], &theirs, 1, 0), PG);
	assert_errno(gmem_set(p->fd, 0, 4 * PG, GMEM_PRIVATE, GMEM_PRESERVE, &eo), EAGAIN);
	TEST_ASSERT_EQ(eo, 2 * PG);
	if (variant->exits) {
		c->again = 99000;	/* limits the retries */
		TEST_ASSERT(cpu_do(c, GMEM_OP_UNSHARE, 2 * PG, PG, 0), "Unshared while held");
		c->again = 0;
	}
	host_check(p, 0, 4 * PG, GMEM_SEED(1));
	cpu_check(c, 0, 4 * PG, GMEM_SEED(1));

	TEST_ASSERT_EQ(read(ends[0], buf, PG), PG);
	close(ends[0]);
	close(ends[1]);
	gmem_convert(p->fd, 0, 4 * PG, GMEM_PRIVATE, GMEM_PRESERVE);
	cpu_unshare(c, 0, 4 * PG);
	cpu_check(c, 0, 4 * PG, GMEM_SEED(1));
}

TEST_HARNESS_MAIN
