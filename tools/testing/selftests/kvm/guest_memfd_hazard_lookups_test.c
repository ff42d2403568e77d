// SPDX-License-Identifier: GPL-2.0
/*
 * Hazards of in-place conversion: lookups of what is private, faults that race
 * with conversion, memslots, and the life of files.
 *
 * 1 SW_PROTECTED loses no bytes when a private mapping is zapped without need,
 *   so the number of mappings is checked, too.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "gmem_hazard.h"
#include "svm_util.h"

/* --- A guest of our own --------------------------------------------------- */

/*
 * Guest code for races: touch pages until told to stop. It does not use the
 * ucall pool while it runs, so that nothing but the pages can fault.
 */
static struct {
	u64 gpa;
	u64 npages;
	u64 forbidden;	/* a qword that no page may ever hold */
	u64 write;	/* count up in the first qword of each page */
	u64 stop;
	u64 rounds;	/* out: rounds done */
	u64 seen;	/* out: the forbidden one was seen */
	u64 lost;	/* out: a count was not what this vCPU had left there */
} spin;

#define SPIN_MAX_PAGES	64

static void spin_guest_code(void)
{
	u64 left[SPIN_MAX_PAGES] = {};
	u64 i;

	GUEST_SYNC(0);
	while (!READ_ONCE(spin.stop)) {
		for (i = 0; i < READ_ONCE(spin.npages); i++) {
			volatile u64 *p = (void *)(spin.gpa + i * PAGE_SIZE);
			u64 val = *p;

			if (spin.forbidden && val == spin.forbidden)
				spin.seen = 1;
			if (!spin.write)
				continue;
			if (val != left[i])
				spin.lost++;
			left[i] = val + 1;
			*p = left[i];
		}
		WRITE_ONCE(spin.rounds, spin.rounds + 1);
	}
	GUEST_SYNC(1);
	for (;;)
		;
}

#define spin_shared(vm) ((volatile typeof(spin) *)addr_gva2hva(vm, (gva_t)&spin))

static void spin_start(struct spin_thread *t, struct kvm_vcpu *vcpu, u64 gpa,
		       u64 npages, u64 forbidden, bool write)
{
	memset(t, 0, sizeof(*t));
	t->vcpu = vcpu;
	memset(&spin, 0, sizeof(spin));
	spin.gpa = gpa;
	spin.npages = npages;
	spin.forbidden = forbidden;
	spin.write = write;
	TEST_ASSERT(npages <= SPIN_MAX_PAGES, "Too many pages to spin on");
	sync_global_to_guest(vcpu->vm, spin);
	kvm_pthread_create(&t->thread, NULL, spin_thread, t);
}

static void spin_stop(struct spin_thread *t)
{
	struct kvm_vm *vm = t->vcpu->vm;

	spin_shared(vm)->stop = 1;
	kvm_pthread_join(t->thread, NULL);
	TEST_ASSERT(!t->error, "vCPU ended with %d, exit reason %u (%s)",
		    t->error, t->vcpu->run->exit_reason,
		    exit_reason_str(t->vcpu->run->exit_reason));
	TEST_ASSERT(!spin_shared(vm)->seen, "The guest saw %#lx",
		    spin_shared(vm)->forbidden);
}

/* Wait until the guest has done another round, so that it takes part. */
static void spin_wait_round(struct spin_thread *t)
{
	volatile typeof(spin) *s = spin_shared(t->vcpu->vm);
	u64 before = s->rounds;

	while (s->rounds == before && !t->error)
		sched_yield();
}

/* Let vCPU 0 of a fresh VM run the spinning code, and bring it to its start. */
static void spin_prepare(struct kvm_vcpu *vcpu)
{
	vcpu_arch_set_entry_point(vcpu, spin_guest_code);
	gmem_guest_start(vcpu);
}

HAZARD(h01_mixed_range_to_private_keeps_private_bytes)
{
	struct hz h;
	u64 mapped;
	int i;

	hz_create(&h, 8, GMEM_MMAP_SHARED, 1);

	for (i = 0; i < 8; i += 2) {
		convert(&h, i, 1, GMEM_PRIVATE, GMEM_PRESERVE);
		guest_fill(&h, i, 1, GMEM_SEED(1));
		host_fill(&h, i + 1, 1, GMEM_SEED(2));
	}

	for (i = 0; i < 8; i += 2)
		guest_sees(&h, i + 1, 1, GMEM_SEED(2));

	mapped = vm_get_stat(h.vm, pages_4k);
	convert(&h, 0, 8, GMEM_PRIVATE, GMEM_PRESERVE);
	TEST_ASSERT_EQ(vm_get_stat(h.vm, pages_4k), mapped - 4);

	attributes_are(&h, 0, 8, GMEM_PRIVATE);
	for (i = 0; i < 8; i += 2) {
		guest_sees(&h, i, 1, GMEM_SEED(1));
		guest_sees(&h, i + 1, 1, GMEM_SEED(2));
	}
	host_refused(&h, 0, 8);
}

struct h02_reader {
	struct hz *h;
	u64 shared_page;
	u64 private_page;
	atomic_bool stop;
	atomic_ulong reads;
	atomic_ulong wrong;
};

static void *h02_reader(void *arg)
{
	struct h02_reader *r = arg;
	u8 val;

	while (!atomic_load(&r->stop)) {
		if (!gmem_host_read(hz_hva(r->h, r->shared_page), &val) ||
		    val != 0x5a)
			atomic_fetch_add(&r->wrong, 1);
		if (gmem_host_read(hz_hva(r->h, r->private_page), &val))
			atomic_fetch_add(&r->wrong, 1);
		if (gmem_is_private(r->h->a.fd, OFF(r->shared_page)) ||
		    !gmem_is_private(r->h->a.fd, OFF(r->private_page)))
			atomic_fetch_add(&r->wrong, 1);
		atomic_fetch_add(&r->reads, 1);
	}
	return NULL;
}

/*
 * Entries are split, merged and stored around two pages whose state never changes:
 * no lookup may find another state of these two.
 */
HAZARD(h02_lookup_while_the_map_is_rewritten)
{
	struct h02_reader reader = { .shared_page = 15, .private_page = 16 };
	struct spin_thread t;
	pthread_t thread;
	u32 seed = 2;
	struct hz h;
	int i;

	memset(&h, 0, sizeof(h));
	h.npages = 32;
	h.vm = gmem_vm_create(1, 32, h.vcpus);
	gmem_area_create(&h.a, h.vm, GMEM_SLOT, GMEM_GPA, OFF(32), GMEM_MMAP_SHARED);

	gmem_fill(hz_hva(&h, 15), PG, 0x5a, 0);
	convert(&h, 16, 1, GMEM_PRIVATE, GMEM_ZERO);
	spin_prepare(h.vcpus[0]);
	spin_start(&t, h.vcpus[0], page_gpa(&h, 15), 2, 0, false);
	reader.h = &h;
	kvm_pthread_create(&thread, NULL, h02_reader, &reader);
	spin_wait_round(&t);

	for (i = 0; i < 4000; i++) {
		bool high = hz_rand(&seed) & 1;
		u64 first = hz_rand(&seed) % 15;
		u64 n = 1 + hz_rand(&seed) % (15 - first);

		convert(&h, first + (high ? 17 : 0), n,
			hz_rand(&seed) & 1 ? GMEM_PRIVATE : GMEM_SHARED,
			   GMEM_PRESERVE);
	}
	spin_wait_round(&t);

	atomic_store(&reader.stop, true);
	kvm_pthread_join(thread, NULL);
	spin_stop(&t);
	TEST_ASSERT(!t.faults, "The guest got %lu memory faults",
		    (unsigned long)t.faults);
	TEST_ASSERT(atomic_load(&reader.reads), "The reader never ran");
	TEST_ASSERT(!atomic_load(&reader.wrong),
		    "%lu of %lu lookups of unchanging pages were wrong",
		    (unsigned long)reader.wrong, (unsigned long)reader.reads);
}

/* The runs that GET reports cover the file, and agree with a plain array. */
HAZARD(h03_no_page_without_an_entry)
{
	const u64 n = 64;
	bool model[64] = {};
	u64 off, attr, size;
	u32 seed = 3;
	struct hz h;
	int i, r;

	hz_create(&h, n, GMEM_MMAP_SHARED, 1);

	r = gmem_get(h.a.fd, 0, &attr, &size);
	TEST_ASSERT(!r && !attr && size == OFF(n),
		    "A new file: errno %d, attributes %#lx, run %#lx", r, attr, size);

	for (i = 0; i < 500; i++) {
		u64 first = hz_rand(&seed) % n;
		u64 len = 1 + hz_rand(&seed) % (n - first);
		bool private = hz_rand(&seed) & 1;
		u64 p, end;

		convert(&h, first, len, private ? GMEM_PRIVATE : GMEM_SHARED,
			GMEM_PRESERVE);
		for (p = first; p < first + len; p++)
			model[p] = private;

		for (off = 0; off < OFF(n); off += size) {
			r = gmem_get(h.a.fd, off, &attr, &size);
			TEST_ASSERT(!r, "GET at %#lx: errno %d", off, r);
			for (end = off / PG;
			     end < n && model[end] == model[off / PG]; end++)
				;
			TEST_ASSERT(!!attr == model[off / PG] &&
				    off + size == OFF(end),
				    "Run at page %lu: attributes %#lx to page %lu, wanted %d to %lu",
				    off / PG, attr, (off + size) / PG,
				    model[off / PG], end);
		}
	}
}

struct h08_reader {
	struct hz *h;
	atomic_bool stop;
	atomic_ulong reads;
	atomic_ulong secrets;
};

static void *h08_reader(void *arg)
{
	struct h08_reader *r = arg;
	u8 val;
	int i;

	while (!atomic_load(&r->stop)) {
		for (i = 0; i < 2; i++) {
			if (!gmem_host_read(hz_hva(r->h, i) + 8, &val))
				continue;
			atomic_fetch_add(&r->reads, 1);
			if (val == SECRET)
				atomic_fetch_add(&r->secrets, 1);
		}
	}
	return NULL;
}

HAZARD(h08_host_fault_races_conversion)
{
	struct h08_reader reader = {};
	pthread_t threads[2];
	struct hz h;
	int i;

	hz_create(&h, 2, GMEM_MMAP_SHARED, 1);
	reader.h = &h;
	for (i = 0; i < 2; i++)
		kvm_pthread_create(&threads[i], NULL, h08_reader, &reader);

	for (i = 0; i < 1000; i++) {
		/* The readers' references are transient, but there are many. */
		hz_convert_racing(&h, 0, 2, GMEM_PRIVATE, GMEM_ZERO);
		gmem_guest_write(h.vcpus[0], page_gpa(&h, 0) + 8, SECRET);
		gmem_guest_write(h.vcpus[0], page_gpa(&h, 1) + 8, SECRET);
		convert(&h, 0, 2, GMEM_SHARED, GMEM_ZERO);
	}

	atomic_store(&reader.stop, true);
	for (i = 0; i < 2; i++)
		kvm_pthread_join(threads[i], NULL);
	TEST_ASSERT(atomic_load(&reader.reads), "No read ever succeeded");
	TEST_ASSERT(!atomic_load(&reader.secrets),
		    "%lu of %lu reads saw a private byte",
		    (unsigned long)reader.secrets, (unsigned long)reader.reads);
}

/*
 * The guest counts in a page that is converted with PRESERVE meanwhile: with either
 * kind of mapping it is the same page, and no count is lost. The guest has no reason
 * to leave KVM_RUN.
 */
HAZARD(h09_guest_fault_races_conversion)
{
	struct spin_thread t;
	struct hz h;
	int i;

	memset(&h, 0, sizeof(h));
	h.npages = 4;
	h.vm = gmem_vm_create(1, 4, h.vcpus);
	gmem_area_create(&h.a, h.vm, GMEM_SLOT, GMEM_GPA, OFF(4), GMEM_MMAP_SHARED);
	spin_prepare(h.vcpus[0]);
	spin_start(&t, h.vcpus[0], page_gpa(&h, 0), 4, 0, true);

	for (i = 0; i < 1000; i++) {
		hz_convert_racing(&h, i & 3, 1, i & 4 ? GMEM_PRIVATE : GMEM_SHARED,
				  GMEM_PRESERVE);
		if (!(i & 63))
			spin_wait_round(&t);
	}
	spin_wait_round(&t);
	spin_stop(&t);
	TEST_ASSERT(!t.faults, "The guest got %lu memory faults",
		    (unsigned long)t.faults);
	TEST_ASSERT(!spin_shared(h.vm)->lost, "%lu counts were lost",
		    spin_shared(h.vm)->lost);

	convert(&h, 0, 4, GMEM_SHARED, GMEM_PRESERVE);
	for (i = 0; i < 4; i++)
		TEST_ASSERT_EQ(*(volatile u64 *)hz_hva(&h, i),
			       spin_shared(h.vm)->rounds);
}

HAZARD(h18_punch_invalidates_both_kinds)
{
	static const u64 flags[] = { GMEM_MMAP_SHARED, GUEST_MEMFD_FLAG_MMAP };
	struct hz h;
	int i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		h18_create(&h, flags[i]);
		TEST_ASSERT(!gmem_punch(h.a.fd, OFF(2), OFF(4)), "punch failed");

		attributes_are(&h, 0, 4, GMEM_SHARED);
		attributes_are(&h, 4, 4, GMEM_PRIVATE);
		guest_sees(&h, 0, 2, GMEM_SEED(18));
		guest_sees(&h, 2, 4, GMEM_ZEROES);
		guest_sees(&h, 6, 2, GMEM_SEED(18));
		host_sees(&h, 0, 2, GMEM_SEED(18));
		host_sees(&h, 2, 2, GMEM_ZEROES);
		host_refused(&h, 4, 4);

		/* Host and guest see the new page, and neither sees the old one. */
		guest_fill(&h, 2, 4, GMEM_SEED(19));
		host_sees(&h, 2, 2, GMEM_SEED(19));
		convert(&h, 4, 2, GMEM_SHARED, GMEM_PRESERVE);
		host_sees(&h, 4, 2, GMEM_SEED(19));
		kvm_vm_free(h.vm);
	}
}

/* With the file closed the guest can reach neither kind of page. */
HAZARD(h18_release_invalidates_both_kinds)
{
	static const u64 flags[] = { GMEM_MMAP_SHARED, GUEST_MEMFD_FLAG_MMAP };
	struct hz h;
	int i, j, r;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		h18_create(&h, flags[i]);
		kvm_munmap(h.a.hva, h.a.size);
		kvm_close(h.a.fd);

		for (j = 0; j < 2; j++) {
			r = __gmem_guest_do(h.vcpus[j], GMEM_OP_READ,
					    page_gpa(&h, j ? 6 : 1), 1, 0, 0, 0);
			TEST_ASSERT(r == -EFAULT &&
				    h.vcpus[j]->run->exit_reason == KVM_EXIT_MEMORY_FAULT,
				    "%s page after release: %d, exit reason %u",
				    j ? "Private" : "Shared", r,
				    h.vcpus[j]->run->exit_reason);
		}
		kvm_vm_free(h.vm);
	}
}

/*
 * A slot whose userspace_addr wrongly is other memory, and a file without a mapping:
 * pages of shared faults still come from the file.
 */
HAZARD(h24_shared_faults_come_from_the_file)
{
	static const u64 flags[] = {
		GUEST_MEMFD_FLAG_INIT_SHARED, GMEM_MMAP_SHARED, GUEST_MEMFD_FLAG_MMAP,
	};
	struct kvm_vcpu *vcpus[1];
	struct kvm_vm *vm;
	u8 *other;
	int fd, i, r;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		vm = gmem_vm_create(1, 4, vcpus);
		fd = vm_create_guest_memfd(vm, OFF(4), flags[i]);
		other = kvm_mmap(OFF(4), PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1);
		gmem_fill(other, OFF(4), GMEM_SEED(24), 0);
		vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
					   GMEM_GPA, OFF(4), other, fd, 0);
		virt_map(vm, GMEM_GPA, GMEM_GPA, 4);
		gmem_convert(fd, 0, OFF(4), GMEM_SHARED, GMEM_PRESERVE);
		gmem_guest_start(vcpus[0]);

		gmem_guest_assert(vcpus[0], GMEM_GPA, OFF(4), GMEM_ZEROES, 0);
		gmem_guest_fill(vcpus[0], GMEM_GPA, OFF(4), GMEM_SEED(25), 0);
		gmem_host_assert(other, OFF(4), GMEM_SEED(24), 0);

		gmem_convert(fd, PG, PG, GMEM_PRIVATE, GMEM_PRESERVE);
		gmem_guest_assert(vcpus[0], GMEM_GPA, OFF(4), GMEM_SEED(25), 0);

		/* Unmapping the memory that the slot points to removes no guest mapping. */
		kvm_munmap(other, OFF(4));
		gmem_guest_assert(vcpus[0], GMEM_GPA, OFF(4), GMEM_SEED(25), 0);
		r = gmem_punch(fd, 0, OFF(4));
		TEST_ASSERT(!r, "punch: errno %d", r);
		gmem_guest_assert(vcpus[0], GMEM_GPA, OFF(4), GMEM_ZEROES, 0);
		kvm_vm_free(vm);
		kvm_close(fd);
	}
}

/*
 * A guest of a guest reads its pages: each once, then each again after its
 * memslot was created anew.  The number of pages is that of one prefetch.
 */
#define H24_PAGES 8

static void h24_l2_code(void)
{
	int round, i;

	for (round = 0; round < 2; round++) {
		for (i = 0; i < H24_PAGES; i++)
			GUEST_ASSERT_EQ(READ_ONCE(*(u8 *)(GMEM_GPA + OFF(i))), 0x11);
		GUEST_SYNC(round);
	}
	/* A page that was freed must not stay mapped for the guest. */
	for (i = 0; i < H24_PAGES; i++)
		WRITE_ONCE(*(u8 *)(GMEM_GPA + OFF(i)), 0x33);
	GUEST_DONE();
}

static void h24_l1_code(struct svm_test_data *svm)
{
	generic_svm_setup(svm, h24_l2_code);
	run_guest(svm->vmcb, svm->vmcb_gpa);
	GUEST_FAIL("L2 has left: exit code %#lx, info %#lx", svm->vmcb->control.exit_code,
		   svm->vmcb->control.exit_info_2);
}

static void h24_run(struct kvm_vcpu *vcpu, u64 until)
{
	struct ucall uc;

	vcpu_run(vcpu);
	switch (get_ucall(vcpu, &uc)) {
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	case UCALL_SYNC:
	case UCALL_DONE:
		TEST_ASSERT_EQ(uc.cmd, until);
		break;
	default:
		TEST_FAIL("exit %u", vcpu->run->exit_reason);
	}
}

/*
 * A fault in a shadow page table maps the neighbours ahead of their faults.  Memory at
 * userspace_addr does not belong to the guest, and KVM would not be notified when it is
 * freed.  The file does not convert; its memslot is guest_memfd-only as well.
 */
HAZARD(h24_shadow_prefetch_comes_from_the_file)
{
	struct kvm_vcpu *vcpu;
	u8 *other, *bytes;
	struct kvm_vm *vm;
	gva_t svm;
	int fd, i;

	HZ_REQUIRE(kvm_cpu_has(X86_FEATURE_SVM) && kvm_cpu_has_npt(), "needs nested NPT");
	vm = vm_create_with_one_vcpu(&vcpu, h24_l1_code);
	vm_enable_npt(vm);
	virt_map(vm, GMEM_GPA, GMEM_GPA, H24_PAGES);
	vcpu_alloc_svm(vm, &svm);
	vcpu_args_set(vcpu, 1, svm);
	/* Maps the pages that are allocated so far. */
	tdp_identity_map_default_memslots(vm);
	tdp_map(vm, GMEM_GPA, GMEM_GPA, OFF(H24_PAGES));

	fd = vm_create_guest_memfd(vm, OFF(H24_PAGES),
				   GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED);
	bytes = kvm_mmap(OFF(H24_PAGES), PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	memset(bytes, 0x11, OFF(H24_PAGES));
	other = kvm_mmap(OFF(H24_PAGES), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memset(other, 0x22, OFF(H24_PAGES));

	for (i = 0; i < 2; i++) {
		vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA,
					   OFF(H24_PAGES), other, fd, 0);
		h24_run(vcpu, UCALL_SYNC);
		if (!i)
			vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
						   GMEM_GPA, 0, other, fd, 0);
	}
	kvm_munmap(other, OFF(H24_PAGES));
	h24_run(vcpu, UCALL_DONE);
	for (i = 0; i < H24_PAGES; i++)
		TEST_ASSERT(bytes[OFF(i)] == 0x33, "page %d of the file is %#x", i, bytes[OFF(i)]);

	kvm_munmap(bytes, OFF(H24_PAGES));
	kvm_vm_free(vm);
	kvm_close(fd);
}

HAZARD(h25_state_survives_the_slot)
{
	struct hz h;
	int i;

	hz_create(&h, 8, GMEM_MMAP_SHARED, 1);
	host_fill(&h, 0, 8, GMEM_SEED(25));
	convert(&h, 2, 3, GMEM_PRIVATE, GMEM_PRESERVE);

	for (i = 0; i < 20; i++) {
		gmem_area_unbind(&h.a);
		attributes_are(&h, 0, 2, GMEM_SHARED);
		attributes_are(&h, 2, 3, GMEM_PRIVATE);
		attributes_are(&h, 5, 3, GMEM_SHARED);
		host_refused(&h, 2, 3);
		host_sees(&h, 5, 3, GMEM_SEED(25));

		/* Converting without a slot works like with one. */
		convert(&h, 6, 1, GMEM_PRIVATE, GMEM_PRESERVE);
		host_refused(&h, 6, 1);

		gmem_area_bind(&h.a);
		attributes_are(&h, 6, 1, GMEM_PRIVATE);
		guest_sees(&h, 0, 8, GMEM_SEED(25));
		convert(&h, 6, 1, GMEM_SHARED, GMEM_PRESERVE);
	}
}

#define DECOY	0xdec0dec0dec0dec0ULL

/*
 * The last reference to a file is dropped while vCPUs fault on it, and other files are
 * opened at once, which get its memory: no vCPU may ever reach a file that is not
 * behind the slot.
 */
HAZARD(h27_release_races_get_pfn)
{
	struct kvm_vm *vm, *other;
	struct kvm_vcpu *vcpus[2];
	struct spin_thread t;
	int i, j, fd, decoys[4];
	u64 rounds;

	vm = gmem_vm_create(1, 8, vcpus);
	other = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	virt_map(vm, GMEM_GPA, GMEM_GPA, 8);
	spin_prepare(vcpus[0]);
	fd = vm_create_guest_memfd(vm, OFF(8), GMEM_MMAP_SHARED);
	vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA,
				   OFF(8), NULL, fd, 0);
	spin_start(&t, vcpus[0], GMEM_GPA, 8, DECOY, false);
	spin_wait_round(&t);

	for (i = 0; i < 200; i++) {
		/* Every other time the guest faults meanwhile. */
		if (i & 1)
			gmem_punch(fd, 0, OFF(8));
		kvm_close(fd);
		for (j = 0; j < ARRAY_SIZE(decoys); j++) {
			volatile u64 *mem;
			int p;

			decoys[j] = vm_create_guest_memfd(j & 1 ? vm : other,
							  OFF(8), GMEM_MMAP_SHARED);
			mem = kvm_mmap(OFF(8), PROT_READ | PROT_WRITE,
				       MAP_SHARED, decoys[j]);
			for (p = 0; p < 8; p++)
				mem[p * PG / sizeof(*mem)] = DECOY;
			kvm_munmap((void *)mem, OFF(8));
		}
		vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
					   GMEM_GPA, 0, NULL, fd, 0);
		fd = vm_create_guest_memfd(vm, OFF(8),
					   i & 2 ? GMEM_MMAP_SHARED :
						   GUEST_MEMFD_FLAG_MMAP);
		vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
					   GMEM_GPA, OFF(8), NULL, fd, 0);
		for (j = 0; j < ARRAY_SIZE(decoys); j++)
			kvm_close(decoys[j]);
		if (!(i & 15))
			spin_wait_round(&t);
	}

	/* With a file that stays behind the slot, the guest continues. */
	rounds = spin_shared(vm)->rounds;
	spin_wait_round(&t);
	TEST_ASSERT(spin_shared(vm)->rounds > rounds, "The guest is stuck");
	spin_stop(&t);
	pr_info("# %lu accesses found no file or no slot\n",
		(unsigned long)atomic_load(&t.faults));
}

HAZARD(h28_close_of_a_large_sparse_file)
{
	const u64 size = 1ULL << 50, slot_size = 16ULL << 30;
	struct kvm_vcpu *vcpus[1];
	struct kvm_vm *vm;
	int i, fd, r;
	u64 off;

	vm = gmem_vm_create(1, 64, vcpus);
	virt_map(vm, GMEM_GPA, GMEM_GPA, 4);
	virt_map(vm, GMEM_GPA + slot_size - OFF(4), GMEM_GPA + slot_size - OFF(4), 4);
	gmem_guest_start(vcpus[0]);

	for (i = 0; i < 3; i++) {
		fd = vm_create_guest_memfd(vm, size, GMEM_MMAP_SHARED);
		for (off = 0; off < size; off = off ? off * 4 : PG)
			gmem_convert(fd, off, PG, GMEM_PRIVATE, GMEM_PRESERVE);
		gmem_convert(fd, size - PG, PG, GMEM_PRIVATE, GMEM_PRESERVE);
		/* The slot may end with the file, or before it. */
		vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
					   GMEM_GPA, slot_size, NULL, fd,
					   i == 1 ? size - slot_size : 0);
		gmem_guest_fill(vcpus[0], GMEM_GPA, OFF(4), GMEM_SEED(28), 0);
		gmem_guest_fill(vcpus[0], GMEM_GPA + slot_size - OFF(4), OFF(4),
				GMEM_SEED(28), 0);
		kvm_close(fd);

		r = __gmem_guest_do(vcpus[0], GMEM_OP_READ,
				    GMEM_GPA + slot_size - PG, 1, 0, 0, 0);
		TEST_ASSERT(r == -EFAULT, "Last page after the close: %d", r);

		/* Memory for the access that is still pending. */
		vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
					   GMEM_GPA, 0, NULL, fd, 0);
		fd = vm_create_guest_memfd(vm, slot_size, GMEM_MMAP_SHARED);
		vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
					   GMEM_GPA, slot_size, NULL, fd, 0);
		r = gmem_guest_resume(vcpus[0]);
		TEST_ASSERT(!r, "With a new file: %d", r);
		TEST_ASSERT_EQ((u8)gmem_cmd_of(vcpus[0])->value, 0);
		vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
					   GMEM_GPA, 0, NULL, fd, 0);
		kvm_close(fd);
	}
}

HAZARD(h32_shared_and_private_are_the_same_page)
{
	u64 pfn, again;
	struct hz h;

	hz_create(&h, 2, GMEM_MMAP_SHARED, 1);
	host_fill(&h, 0, 2, GMEM_SEED(32));
	pfn = gmem_frame_of(hz_hva(&h, 1));

	convert(&h, 0, 2, GMEM_PRIVATE, GMEM_PRESERVE);
	guest_sees(&h, 0, 2, GMEM_SEED(32));
	guest_fill(&h, 0, 2, GMEM_SEED(33));
	host_refused(&h, 0, 2);

	convert(&h, 0, 2, GMEM_SHARED, GMEM_PRESERVE);
	host_sees(&h, 0, 2, GMEM_SEED(33));
	guest_sees(&h, 0, 2, GMEM_SEED(33));
	again = gmem_frame_of(hz_hva(&h, 1));
	TEST_ASSERT(pfn == again, "Frame %#lx became %#lx", pfn, again);

	host_fill(&h, 0, 2, GMEM_SEED(34));
	guest_sees(&h, 0, 2, GMEM_SEED(34));
}

HAZARD(h41_vm_attributes_leave_in_place_slots_alone)
{
	struct kvm_memory_attributes attrs = { .address = GMEM_GPA, .size = OFF(8) };
	struct hz h;

	hz_create(&h, 8, GMEM_MMAP_SHARED, 1);
	convert(&h, 2, 4, GMEM_PRIVATE, GMEM_ZERO);
	guest_fill(&h, 0, 8, GMEM_SEED(41));

	/* Clear, over the slot, a part of it, and more than it. */
	vm_ioctl(h.vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs);
	attrs.address = GMEM_GPA + OFF(3);
	attrs.size = PG;
	vm_ioctl(h.vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs);
	attrs.address = GMEM_GPA - OFF(8);
	attrs.size = OFF(32);
	vm_ioctl(h.vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs);
	attributes_are(&h, 0, 2, GMEM_SHARED);
	attributes_are(&h, 2, 4, GMEM_PRIVATE);
	attributes_are(&h, 6, 2, GMEM_SHARED);
	guest_sees(&h, 0, 8, GMEM_SEED(41));
	host_refused(&h, 2, 4);

	/* Set is refused wherever an in-place slot is touched. */
	attrs.attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE;
	refused(__vm_ioctl(h.vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs), EINVAL);
	attrs.address = GMEM_GPA;
	attrs.size = PG;
	refused(__vm_ioctl(h.vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs), EINVAL);
	attrs.address = GMEM_GPA + OFF(7);
	attrs.size = OFF(9);
	refused(__vm_ioctl(h.vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs), EINVAL);
	attributes_are(&h, 0, 2, GMEM_SHARED);
	guest_sees(&h, 0, 8, GMEM_SEED(41));

	/* Stored before the slot existed: ignored while it exists. */
	gmem_area_unbind(&h.a);
	attrs.address = GMEM_GPA;
	attrs.size = OFF(8);
	if (!get_kvm_param_bool("gmem_in_place_conversion"))
		vm_ioctl(h.vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs);
	gmem_area_bind(&h.a);
	attributes_are(&h, 0, 2, GMEM_SHARED);
	guest_sees(&h, 0, 8, GMEM_SEED(41));
	host_sees(&h, 0, 2, GMEM_SEED(41));
}

/* --- The vendor's module ------------------------------------------------- */

static int remove_vendor_module(void)
{
	return syscall(SYS_delete_module, "kvm_amd", O_NONBLOCK) ? errno : 0;
}

/* The module that a file needs to give its memory back must not be unloaded before. */
HAZARD(vendor_module_stays_as_long_as_the_memory)
{
	struct kvm_create_guest_memfd args = {
		.size = 4 * PG,
		.flags = GMEM_MMAP_SHARED,
	};
	int kvm, vm, fd;
	u8 *hva;

	HZ_REQUIRE(!access("/sys/module/kvm_amd/refcnt", F_OK),
		   "kvm-amd is not a module here");

	kvm = open_kvm_dev_path_or_exit();
	vm = ioctl(kvm, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM);
	fd = ioctl(vm, KVM_CREATE_GUEST_MEMFD, &args);
	TEST_ASSERT(fd >= 0, "KVM_CREATE_GUEST_MEMFD: errno %d", errno);
	hva = kvm_mmap(args.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	*hva = 1;
	TEST_ASSERT_EQ(remove_vendor_module(), EWOULDBLOCK);

	/* The file keeps the VM, ... */
	kvm_close(vm);
	kvm_close(kvm);
	TEST_ASSERT_EQ(remove_vendor_module(), EWOULDBLOCK);
	TEST_ASSERT_EQ(gmem_set(fd, 0, PG, GMEM_PRIVATE, GMEM_PRESERVE, NULL), 0);
	TEST_ASSERT_EQ(gmem_set(fd, 0, PG, GMEM_SHARED, GMEM_PRESERVE, NULL), 0);

	/* ... and a mapping the file. */
	kvm_close(fd);
	TEST_ASSERT_EQ(remove_vendor_module(), EWOULDBLOCK);
	TEST_ASSERT_EQ(*hva, 1);
	kvm_munmap(hva, args.size);
}

int main(int argc, char *argv[])
{
	gmem_require_in_place();
	return test_harness_run(argc, argv);
}
