/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Guests of KVM_GMEM_EMULATE_TDX_MIRROR, which select shared memory by bit 39 of an
 * address.
 *
 * libkvm lets page tables point to shared memory in their last level only. Here
 * only a guest_memfd has private memory, so the guest's code, its page tables and
 * CR3 have the bit, too. For the pages of a guest_memfd this file does the work of a
 * guest's kernel: before a vCPU runs, it makes the addresses that the vCPU is about
 * to use select the kind that the file has, like a guest that has requested each
 * conversion itself. A test can choose otherwise.
 *
 * The tables are changed while the vCPU is out of the guest. It reads them again
 * when it enters, as the emulated processor has no ASIDs.
 */
#ifndef SELFTEST_KVM_GMEM_MIRROR_H
#define SELFTEST_KVM_GMEM_MIRROR_H

#define GMEM_SHARED_BIT		BIT_ULL(39)

/* Bits that the processor ignores: the kind was decided; the test has fixed it. */
#define GMEM_PTE_DECIDED	BIT_ULL(9)
#define GMEM_PTE_FIXED		BIT_ULL(10)

static inline bool gmem_guest_chooses(struct kvm_vm *vm)
{
	return vm->gpa_tag_mask == GMEM_SHARED_BIT;
}

/* By default everything is shared. */
static inline void gmem_share_tables(struct kvm_vm *vm, gpa_t table, int level)
{
	u64 *ptes = addr_gpa2hva(vm, table), old;
	int i;

	for (i = 0; i < PAGE_SIZE / sizeof(*ptes); i++) {
		if (!(ptes[i] & PTE_PRESENT_MASK(&vm->mmu)))
			continue;
		if (level > PG_LEVEL_4K)
			gmem_share_tables(vm, PTE_GET_PA(ptes[i]), level - 1);
		/* If another thread has decided meanwhile, its decision stays. */
		old = ptes[i];
		if (!(old & GMEM_PTE_DECIDED))
			__atomic_compare_exchange_n(&ptes[i], &old,
						    old | GMEM_SHARED_BIT | GMEM_PTE_DECIDED,
						    false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	}
}

/* The files that a VM has, as far as they were bound with this library. */
struct gmem_bound {
	struct kvm_vm *vm;
	int fd;
	gpa_t gpa;
	u64 size;
	u64 file_offset;
};

static struct gmem_bound gmem_bound[16];

static inline void gmem_bound_set(struct kvm_vm *vm, gpa_t gpa, u64 size, int fd, u64 file_offset)
{
	int i, at = -1;

	for (i = 0; i < ARRAY_SIZE(gmem_bound); i++) {
		if (gmem_bound[i].vm == vm && gmem_bound[i].gpa == gpa)
			gmem_bound[i].vm = NULL;
		if (!gmem_bound[i].vm)
			at = i;
	}
	if (!size)
		return;
	TEST_ASSERT(at >= 0, "Too many files");
	gmem_bound[at] = (struct gmem_bound) { vm, fd, gpa, size, file_offset };
}

static inline bool gmem_file_says_private(struct kvm_vm *vm, gpa_t gpa)
{
	struct kvm_memory_attributes2 attrs = {};
	int i;

	for (i = 0; i < ARRAY_SIZE(gmem_bound); i++) {
		struct gmem_bound *b = &gmem_bound[i];

		if (b->vm != vm || gpa < b->gpa || gpa >= b->gpa + b->size)
			continue;
		attrs.offset = gpa - b->gpa + b->file_offset;
		return !ioctl(b->fd, KVM_GET_MEMORY_ATTRIBUTES2, &attrs) &&
		       attrs.attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE;
	}
	return false;
}

static inline void gmem_pte_set_kind(u64 *pte, bool private, u64 fixed)
{
	u64 old = *pte & ~(GMEM_SHARED_BIT | GMEM_PTE_FIXED);

	/* At once: another vCPU may be using it. */
	WRITE_ONCE(*pte, old | GMEM_PTE_DECIDED | fixed | (private ? 0 : GMEM_SHARED_BIT));
}

/* The vCPU is about to use [gpa, gpa + size) at gva = gpa, as far as this is mapped. */
static inline void gmem_guest_decides(struct kvm_vm *vm, gpa_t gpa, u64 size)
{
	gpa_t at;

	gmem_share_tables(vm, vm->mmu.pgd, vm->mmu.pgtable_levels);
	for (at = gpa & ~(gpa_t)(PAGE_SIZE - 1); at < gpa + size; at += PAGE_SIZE) {
		u64 *pte;

		if (!sparsebit_is_set(vm->vpages_mapped, at >> vm->page_shift))
			continue;
		pte = vm_get_pte(vm, at);
		if (!(*pte & GMEM_PTE_FIXED))
			gmem_pte_set_kind(pte, gmem_file_says_private(vm, at), 0);
	}
}

/* The guest uses the page as one kind of memory from now on, or as the file's kind. */
static inline void gmem_guest_means(struct kvm_vm *vm, gpa_t gpa, u64 kind)
{
	gmem_pte_set_kind(vm_get_pte(vm, gpa), kind == KVM_GMEM_EMULATE_ACCESS_PRIVATE,
			  kind == KVM_GMEM_EMULATE_ACCESS_ANY ? 0 : GMEM_PTE_FIXED);
}

/* CR3 has the bit, too. */
static inline void gmem_vcpu_shares_tables(struct kvm_vcpu *vcpu)
{
	struct kvm_sregs sregs;

	vcpu_sregs_get(vcpu, &sregs);
	sregs.cr3 |= GMEM_SHARED_BIT;
	vcpu_sregs_set(vcpu, &sregs);
}

#endif /* SELFTEST_KVM_GMEM_MIRROR_H */
