// SPDX-License-Identifier: GPL-2.0
/*
 * Platforms with an owner of pages, as the kernel emulates them: the choice of
 * one, and the launch of a VM on it.
 *
 * Of the hazards that only such platforms have, 14 to 17 and 31 have a subtest
 * here. 31 has a second half, a page that another VM has: one file belongs to
 * one VM, so user space cannot offer a page to two of them. KUnit does.
 */
#include <stdlib.h>
#include <string.h>

#include <linux/sizes.h>

#include <sys/mman.h>

#include "gmem_emulated.h"

/* --- One VM, one file -------------------------------------------------------- */

/* For tests of a single platform. */
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
	assert_errno(gmem_enable_emulation(vm, KVM_GMEM_EMULATE_TDX_MIRROR + 1, 0), EINVAL);
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

	/* A VM without a platform has nothing to operate on. */
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

/* The effect of the flag, which no guarantee depends on. */
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

	/* A shared page cannot be added as private memory. */
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

	/* The first page already has other bytes; the other pages have none. */
	host_fill(x, 0, 2, GMEM_SEED(2));
	convert(x, 0, 5, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(add(x, 1, 4, source, NULL), 0);
	gmem_host_assert(source, OFF(4), GMEM_SEED(1), OFF(1));
	ownership_is(x, 0, 1, false);
	ownership_is(x, 1, 4, true);
	ownership_is(x, 5, 1, false);
	host_refused(x, 0, 5);

	/* The caller can use the source again. */
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
	/* The helper checks how far the three fields have been advanced. */
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

	/* A private page cannot be the source, neither another page nor the page itself. */
	assert_errno(add(x, 4, 1, ctx_hva(x, 5), &done), EFAULT);
	TEST_ASSERT_EQ(done, 0);
	assert_errno(add(x, 4, 1, ctx_hva(x, 4), &done), EFAULT);
	TEST_ASSERT_EQ(done, 0);
	assert_errno(add(x, 4, 1, ctx_hva(x, 8), &done), EFAULT);
	TEST_ASSERT_EQ(done, 0);
	/* The second page of the source is private. */
	assert_errno(add(x, 4, 2, ctx_hva(x, 3), &done), EFAULT);
	TEST_ASSERT_EQ(done, 1);
	ownership_is(x, 4, 1, true);
	ownership_is(x, 5, 1, false);

	ctx_launch(x);
	gmem_guest_assert(x->vcpus[0], page_gpa(x, 8), OFF(2), GMEM_SEED(1), 0);
	gmem_guest_assert(x->vcpus[0], page_gpa(x, 4), PG, GMEM_SEED(1), OFF(3));
	host_refused(x, 4, 8);

	/* Later changes of the source have no effect. */
	convert(x, 0, 4, GMEM_PRIVATE, GMEM_PRESERVE);
	host_refused(x, 0, 12);
}

/* Hazard 31: a page that is assigned already is not assigned again. */
EMULATED_TEST(h31_already_assigned_pages)
{
	struct ctx *x = &self->x;
	/* KVM finds it mapped, and does not call the platform. */
	const int given = x->platform == TDX_MIRROR ? EIO : EEXIST;
	u64 done;
	u8 *source;

	source = kvm_mmap(PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	gmem_fill(source, PG, GMEM_SEED(2), 0);
	host_fill(x, 0, 4, GMEM_SEED(1));
	convert(x, 0, 4, GMEM_PRIVATE, GMEM_PRESERVE);
	assert_errno(add(x, 2, 1, NULL, NULL), 0);

	assert_errno(add(x, 2, 1, NULL, &done), given);
	TEST_ASSERT_EQ(done, 0);
	assert_errno(add(x, 2, 1, source, &done), given);
	TEST_ASSERT_EQ(done, 0);

	/* In the middle of a range: only the pages before it are added. */
	assert_errno(add(x, 0, 4, NULL, &done), given);
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
		seen |= (u32)gmem_guest_read(x->vcpus[0], page_gpa(x, page) + i) << i * 8;
	TEST_ASSERT_EQ(seen, functions);
	gmem_guest_assert(x->vcpus[0], page_gpa(x, page) + 4, PG - 4, GMEM_SEED(15),
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
	assert_errno(gmem_launch_update(x->vm, type, page_gpa(x, 0), PG, NULL, NULL), 0);
	assert_errno(gmem_launch_update(x->vm, type, page_gpa(x, 1), PG, NULL, &done), EIO);
	TEST_ASSERT_EQ(done, 0);
	ownership_is(x, 1, 1, false);
	assert_errno(gmem_launch_update(x->vm, type, page_gpa(x, 1), PG, NULL, NULL), 0);

	/* With a source: only the source's page is corrected. */
	fill_cpuid(source, 1000, OFF(2));
	gmem_fill(source + PG, PG, GMEM_SEED(2), 0);
	assert_errno(gmem_launch_update(x->vm, type, page_gpa(x, 2), PG, source, &done), EIO);
	TEST_ASSERT_EQ(done, 0);
	TEST_ASSERT_EQ(*(u32 *)source, 64);
	gmem_host_assert(source + 4, PG - 4, GMEM_SEED(15), OFF(2) + 4);
	gmem_host_assert(source + PG, PG, GMEM_SEED(2), 0);
	ownership_is(x, 2, 1, false);
	assert_errno(gmem_launch_update(x->vm, type, page_gpa(x, 2), PG, source, NULL), 0);
	fill_cpuid(source, 7, OFF(3));
	assert_errno(gmem_launch_update(x->vm, type, page_gpa(x, 3), PG, source, NULL), 0);
	TEST_ASSERT_EQ(*(u32 *)source, 7);

	host_refused(x, 0, 4);
	host_sees(x, 4, 1, GMEM_SEED(1));
	ctx_launch(x);
	for (i = 0; i < 4; i++)
		guest_sees_cpuid(x, i, (u32[]) { 3, 64, 64, 7 }[i]);
	kvm_munmap(source, OFF(2));
}

/*
 * Hazard 31: the page is assigned to one gfn and appears at another. At the first gfn
 * the guest can still use it.
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
	TEST_ASSERT_EQ(run->memory_fault.gpa, page_gpa(x, page));
	TEST_ASSERT_EQ(run->memory_fault.size, PG);
	TEST_ASSERT_EQ(run->memory_fault.flags, flags);
}

/*
 * Hazard 50: the guest selects the kind of memory, as on the platform, and user space
 * gets an exit if the file has the other kind.
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
	gmem_access(x->vm, page_gpa(x, 0), KVM_GMEM_EMULATE_ACCESS_PRIVATE);
	r = __gmem_guest_do(x->vcpus[0], GMEM_OP_READ, page_gpa(x, 0), 1, 0, 0, 0);
	asks_for(x, r, 0, KVM_MEMORY_EXIT_FLAG_PRIVATE);
	asks_for(x, gmem_guest_resume(x->vcpus[0]), 0, KVM_MEMORY_EXIT_FLAG_PRIVATE);
	convert(x, 0, 1, GMEM_PRIVATE, GMEM_ZERO);
	gmem_guest_ok(x->vcpus[0], gmem_guest_resume(x->vcpus[0]));
	ownership_is(x, 0, 1, true);

	gmem_access(x->vm, page_gpa(x, 1), KVM_GMEM_EMULATE_ACCESS_SHARED);
	r = __gmem_guest_do(x->vcpus[0], GMEM_OP_READ, page_gpa(x, 1), 1, 0, 0, 0);
	asks_for(x, r, 1, 0);
	/* Its data there has not changed. */
	ownership_is(x, 1, 1, true);
	TEST_ASSERT_EQ(gmem_destroyed(x->vm, x->a.gpa), 0);
	convert(x, 1, 1, GMEM_SHARED, GMEM_ZERO);
	gmem_guest_ok(x->vcpus[0], gmem_guest_resume(x->vcpus[0]));
	guest_sees(x, 1, 1, GMEM_ZEROES);
	host_sees(x, 1, 1, GMEM_ZEROES);

	/* From here on the file decides. */
	gmem_access(x->vm, page_gpa(x, 1), KVM_GMEM_EMULATE_ACCESS_ANY);
	convert(x, 1, 1, GMEM_PRIVATE, GMEM_ZERO);
	guest_sees(x, 1, 1, x->platform == SNP ? GMEM_KEYED(GMEM_ZEROES) : GMEM_ZEROES);
}

/*
 * Hazard 48: a guest's fault in which the platform fails is EIO, and not a memory
 * fault, after which a VMM would convert the page and try again for ever. The guest
 * gets no page, and can repeat the fault, except where KVM treats it as a bug.
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
	gmem_inject(x->vm, page_gpa(x, 0),
		    snp ? KVM_GMEM_EMULATE_FAIL_ASSIGN : KVM_GMEM_EMULATE_FAIL_ADD,
		    snp ? KVM_GMEM_EMULATE_ERROR_PERMISSION : KVM_GMEM_EMULATE_ERROR_INPUT, 1);
	r = __gmem_guest_do(x->vcpus[0], GMEM_OP_READ, page_gpa(x, 0), 1, 0, 0, 0);
	assert_errno(-r, EIO);
	TEST_ASSERT(run->exit_reason != KVM_EXIT_MEMORY_FAULT, "The page is to be converted");
	if (x->platform == TDX_MIRROR) {
		assert_errno(-gmem_guest_resume(x->vcpus[1]), EIO);
		host_refused(x, 0, 2);
		return;
	}
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

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
