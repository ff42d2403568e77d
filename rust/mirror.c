// SPDX-License-Identifier: GPL-2.0
/*
 * A simulation of the TDX module, for development and tests.  Nothing here is
 * TDX, and nothing is confidential.
 *
 * KVM's mirrored page table and its order of SEAMCALLs (vmx/tdx_sept.h) are
 * the real ones. The SEAMCALLs are functions of this file: they enforce what
 * the module enforces, and keep an S-EPT in the format of AMD's nested page
 * tables. A vCPU walks a root of its own, which is made when it enters the
 * guest: below the shared bit it has the S-EPT, above it KVM's page table for
 * shared memory. rust/emulation/tdx.rs handles pages and their bytes.
 */
#include <linux/kvm_host.h>
#include <asm/shared/tdx_errno.h>

#include "mmu.h"
#include "mmu/mmu_internal.h"
#include "mmu/spte.h"
#include "mirror.h"

/* The highest of the 40 bits that QEMU's processors have. Half of a table of level 4. */
#define SHARED_BIT	39

#define SEPT_TABLE	(PT_PRESENT_MASK | PT_WRITABLE_MASK | PT_USER_MASK | PT_ACCESSED_MASK)
#define SEPT_PAGE	(SEPT_TABLE | PT_DIRTY_MASK)

enum td_state {
	TD_STATE_INITIALIZED,
	TD_STATE_RUNNABLE,
};

/* The module's data of a TD. */
struct simulated_td {
	struct kvm *kvm;
	u64 *sept;
	int levels;
	/* How often TLBs were tracked. Under mmu_lock. */
	u64 epoch;
};

/* KVM's data of a TD, as far as tdx_sept.h uses it. */
struct kvm_tdx {
	int hkid;
	enum td_state state;
	struct simulated_td td;
	struct page *page_add_src;
	bool wait_for_sept_zap;
};

static struct kvm_tdx *to_kvm_tdx(struct kvm *kvm)
{
	return kvm->arch.gmem_mirror;
}

static bool is_hkid_assigned(struct kvm_tdx *kvm_tdx)
{
	return kvm_tdx->hkid > 0;
}

/* --- The S-EPT ------------------------------------------------------------- */

static u64 *sept_child(u64 entry)
{
	return entry & PT_PRESENT_MASK ? __va(entry & SPTE_BASE_ADDR_MASK) : NULL;
}

/* The entry for @gfn in a table of @level, if there is such a table. */
static u64 *sept_entry(struct simulated_td *td, gfn_t gfn, int level)
{
	u64 *table = td->sept;
	int at;

	for (at = td->levels; table && at > level; at--)
		table = sept_child(READ_ONCE(table[SPTE_INDEX(gfn_to_gpa(gfn), at)]));
	return table ? &table[SPTE_INDEX(gfn_to_gpa(gfn), level)] : NULL;
}

void gmem_sept_set(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn)
{
	u64 *entry = sept_entry(&to_kvm_tdx(kvm)->td, gfn, PG_LEVEL_4K);

	if (!WARN_ON_ONCE(!entry))
		WRITE_ONCE(*entry, PFN_PHYS(pfn) | SEPT_PAGE);
}

void gmem_sept_clear(struct kvm *kvm, gfn_t gfn)
{
	u64 *entry = sept_entry(&to_kvm_tdx(kvm)->td, gfn, PG_LEVEL_4K);

	if (!WARN_ON_ONCE(!entry))
		WRITE_ONCE(*entry, 0);
}

/* --- SEAMCALLs -------------------------------------------------------------- */

/* Whether a vCPU that entered the guest before @epoch began is still in it. */
static bool runs_since_before(struct kvm *kvm, u64 epoch)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		u64 entered = READ_ONCE(vcpu->arch.gmem_mirror_in_guest);

		if (entered && entered - 1 < epoch)
			return true;
	}
	return false;
}

/*
 * Tests inject failures of the other kinds. A call in the wrong order is a bug
 * that a dead VM alone would not make visible, so warn. KVM continues to remove
 * a page after a failed TRACK, but then the failure is known.
 */
static u64 seamcall_status(struct kvm *kvm, int r, const char *which)
{
	switch (r) {
	case GMEM_SEAMCALL_DONE:
		return 0;
	case GMEM_SEAMCALL_BUSY:
		return TDX_OPERAND_BUSY | TDX_OPERAND_ID_SEPT;
	case GMEM_SEAMCALL_INPUT:
		return TDX_OPERAND_INVALID;
	default:
		WARN(!kvm->vm_bugged, "emulation: %s in the wrong order\n", which);
		return TDX_EPT_ENTRY_STATE_INCORRECT;
	}
}

static u64 seamcall_page(struct simulated_td *td, u64 gpa, int level, u64 *entry, u64 *state)
{
	u64 *at = sept_entry(td, gpa_to_gfn(gpa), PG_LEVEL_4K);

	*entry = at ? READ_ONCE(*at) : 0;
	*state = level;
	if (level != PG_LEVEL_4K || gpa & BIT_ULL(SHARED_BIT))
		return TDX_OPERAND_INVALID;
	return at ? 0 : TDX_EPT_WALK_FAILED;
}

static u64 simulated_sept_add(struct simulated_td *td, u64 gpa, int level, struct page *page,
			      u64 *entry, u64 *state)
{
	u64 *at = sept_entry(td, gpa_to_gfn(gpa), level);

	*entry = at ? READ_ONCE(*at) : 0;
	*state = level;
	if (level <= PG_LEVEL_4K || level > td->levels || gpa & BIT_ULL(SHARED_BIT))
		return TDX_OPERAND_INVALID;
	if (!at)
		return TDX_EPT_WALK_FAILED;
	if (*at)
		return TDX_EPT_ENTRY_STATE_INCORRECT;
	if (page_private(page))
		return TDX_PAGE_METADATA_INCORRECT;

	clear_page(page_address(page));
	set_page_private(page, (unsigned long)td->kvm);
	smp_store_release(at, page_to_phys(page) | SEPT_TABLE);
	return 0;
}

static u64 simulated_page_add(struct simulated_td *td, u64 gpa, kvm_pfn_t pfn,
			      struct page *source, u64 *entry, u64 *state)
{
	u64 err = seamcall_page(td, gpa, PG_LEVEL_4K, entry, state);

	if (err)
		return err;
	return seamcall_status(td->kvm, kvm_gmem_module_page_add(td->kvm, gpa_to_gfn(gpa), pfn, source),
			       "PAGE.ADD");
}

static u64 simulated_page_aug(struct simulated_td *td, u64 gpa, int level, kvm_pfn_t pfn,
			      u64 *entry, u64 *state)
{
	u64 err = seamcall_page(td, gpa, level, entry, state);

	if (err)
		return err;
	return seamcall_status(td->kvm, kvm_gmem_module_page_aug(td->kvm, gpa_to_gfn(gpa), pfn),
			       "PAGE.AUG");
}

static u64 simulated_range_block(struct simulated_td *td, u64 gpa, int level, u64 *entry,
				 u64 *state)
{
	u64 err = seamcall_page(td, gpa, level, entry, state);

	if (err)
		return err;
	return seamcall_status(td->kvm, kvm_gmem_module_range_block(td->kvm, gpa_to_gfn(gpa)),
			       "RANGE.BLOCK");
}

static u64 simulated_track(struct simulated_td *td)
{
	u64 err;

	/* No vCPU may be two epochs behind. */
	if (runs_since_before(td->kvm, td->epoch))
		return TDX_PREVIOUS_TLB_EPOCH_BUSY | TDX_OPERAND_ID_TD_EPOCH;

	err = seamcall_status(td->kvm, kvm_gmem_module_track(td->kvm), "TRACK");
	if (!err)
		WRITE_ONCE(td->epoch, td->epoch + 1);
	return err;
}

static u64 simulated_page_remove(struct simulated_td *td, u64 gpa, int level, u64 *entry,
				 u64 *state)
{
	u64 err = seamcall_page(td, gpa, level, entry, state);

	if (err)
		return err;
	/* TRACK is not enough: vCPUs that have entered before it must have left, too. */
	if (WARN_ON_ONCE(runs_since_before(td->kvm, td->epoch)))
		return TDX_PREVIOUS_TLB_EPOCH_BUSY | TDX_OPERAND_ID_TD_EPOCH;
	return seamcall_status(td->kvm, kvm_gmem_module_page_remove(td->kvm, gpa_to_gfn(gpa)),
			       "PAGE.REMOVE");
}

static u64 simulated_page_relocate(struct simulated_td *td, u64 gpa, kvm_pfn_t pfn, u64 *entry,
				   u64 *state)
{
	u64 err = seamcall_page(td, gpa, PG_LEVEL_4K, entry, state);

	if (err)
		return err;
	/* As for PAGE.REMOVE. */
	if (WARN_ON_ONCE(runs_since_before(td->kvm, td->epoch)))
		return TDX_PREVIOUS_TLB_EPOCH_BUSY | TDX_OPERAND_ID_TD_EPOCH;
	return seamcall_status(td->kvm, kvm_gmem_module_page_relocate(td->kvm, gpa_to_gfn(gpa), pfn),
			       "PAGE.RELOCATE");
}

static u64 simulated_range_unblock(struct simulated_td *td, u64 gpa, int level, u64 *entry,
				   u64 *state)
{
	u64 err = seamcall_page(td, gpa, level, entry, state);

	if (err)
		return err;
	return seamcall_status(td->kvm, kvm_gmem_module_range_unblock(td->kvm, gpa_to_gfn(gpa)),
			       "RANGE.UNBLOCK");
}

static u64 simulated_page_wbinvd(struct kvm *kvm, kvm_pfn_t pfn)
{
	return seamcall_status(kvm, kvm_gmem_module_page_wbinvd(kvm, pfn), "PHYMEM.PAGE.WBINVD");
}

/* PHYMEM.PAGE.RECLAIM. */
static int simulated_page_reclaim(struct kvm *kvm, struct page *page)
{
	if (WARN_ON_ONCE(is_hkid_assigned(to_kvm_tdx(kvm)) ||
			 page_private(page) != (unsigned long)kvm))
		return -EIO;
	set_page_private(page, 0);
	return 0;
}

/* --- KVM's side -------------------------------------------------------------- */

static bool tdx_operand_busy(u64 err)
{
	return (err & TDX_SEAMCALL_STATUS_MASK) == TDX_OPERAND_BUSY;
}

/* Like tdx.c's, without the warning: tests inject failures. */
#define TDX_BUG_ON(err, fn, kvm)						\
({										\
	u64 __status = (err);							\
										\
	if (__status && !(kvm)->vm_bugged) {					\
		kvm_vm_bugged(kvm);						\
		pr_err_ratelimited("emulation: " #fn " failed: %#llx\n", __status); \
	}									\
	unlikely(__status);							\
})
#define TDX_BUG_ON_2(err, fn, entry, level_state, kvm)	TDX_BUG_ON(err, fn, kvm)

#define tdx_spte_is_rwx(spte)							\
	(((spte) & (PT_PRESENT_MASK | PT_WRITABLE_MASK | PT64_NX_MASK)) ==	\
	 (PT_PRESENT_MASK | PT_WRITABLE_MASK))

#define tdh_mem_sept_add	simulated_sept_add
#define tdh_mem_page_add	simulated_page_add
#define tdh_mem_page_aug	simulated_page_aug
#define tdh_mem_range_block	simulated_range_block
#define tdh_mem_track		simulated_track
#define tdh_mem_page_remove	simulated_page_remove

/* These get the page only. The caller has the VM in "kvm". */
#define tdh_phymem_page_wbinvd_hkid(hkid, pfn)	simulated_page_wbinvd(kvm, pfn)
#define tdx_quirk_reset_paddr(pa, size)		kvm_gmem_module_page_reset(kvm, PHYS_PFN(pa))
#define tdx_reclaim_page(page)			simulated_page_reclaim(kvm, page)

#include "vmx/tdx_sept.h"

int kvm_gmem_mirror_set_spte(struct kvm *kvm, gfn_t gfn, u64 old_spte, u64 new_spte,
			     enum pg_level level)
{
	int r = tdx_sept_set_private_spte(kvm, gfn, old_spte, new_spte, level);

	/* The code that frees the page sees that the TD keeps it for ever. */
	if (r && is_shadow_present_pte(old_spte))
		SetPageReserved(pfn_to_page(spte_to_pfn(old_spte)));
	return r;
}

void kvm_gmem_mirror_free_spt(struct kvm *kvm, struct kvm_mmu_page *sp)
{
	tdx_sept_free_private_spt(kvm, sp);
}

/*
 * Moves a page to another frame.  tdx.c has nothing like this: the order of the
 * SEAMCALLs is the simulation's own.  See kvm_tdp_mmu_move_private_pfn() for what is
 * returned.
 */
int kvm_gmem_mirror_move_spte(struct kvm *kvm, gfn_t gfn, u64 old_spte, u64 new_spte,
			      enum pg_level level)
{
	kvm_pfn_t from = spte_to_pfn(old_spte), to = spte_to_pfn(new_spte);
	struct kvm_tdx *kvm_tdx = to_kvm_tdx(kvm);
	u64 err, entry, level_state;
	gpa_t gpa = gfn_to_gpa(gfn);

	if (KVM_BUG_ON(!is_hkid_assigned(kvm_tdx), kvm))
		return -EIO;

	if (tdh_do_no_vcpus(tdh_mem_range_block, kvm, &kvm_tdx->td, gpa, level, &entry,
			    &level_state))
		return -EBUSY;

	/* A page that is not tracked cannot be unblocked either. */
	tdx_track(kvm);
	if (kvm->vm_bugged)
		return -EIO;

	if (tdh_do_no_vcpus(simulated_page_relocate, kvm, &kvm_tdx->td, gpa, to, &entry,
			    &level_state)) {
		err = tdh_do_no_vcpus(simulated_range_unblock, kvm, &kvm_tdx->td, gpa, level,
				      &entry, &level_state);
		return TDX_BUG_ON(err, TDH_MEM_RANGE_UNBLOCK, kvm) ? -EIO : -EBUSY;
	}

	/* The guest has its page.  If the host does not get the old frame, nobody does. */
	if (tdh_phymem_page_wbinvd_hkid((u16)kvm_tdx->hkid, from)) {
		pr_err_ratelimited("emulation: the old frame of a page is lost\n");
		get_page(pfn_to_page(from));
		return 0;
	}
	tdx_quirk_reset_paddr(PFN_PHYS(from), PAGE_SIZE);
	return 0;
}

/* Like tdx_gmem_post_populate(). */
int gmem_td_map(struct kvm_vcpu *vcpu, gfn_t gfn, kvm_pfn_t pfn, struct page *source)
{
	struct kvm_tdx *kvm_tdx = to_kvm_tdx(vcpu->kvm);
	int r;

	kvm_tdx->page_add_src = source ?: pfn_to_page(pfn);
	r = kvm_tdp_mmu_map_private_pfn(vcpu, gfn, pfn);
	kvm_tdx->page_add_src = NULL;
	return r;
}

/* INIT_MEM_REGION is an ioctl on a vCPU. Returns NULL if there is none, or a signal. */
struct kvm_vcpu *gmem_td_lock_vcpu(struct kvm *kvm)
{
	struct kvm_vcpu *vcpu = kvm_get_vcpu(kvm, 0);

	if (!vcpu || mutex_lock_killable(&vcpu->mutex))
		return NULL;
	return vcpu;
}

void gmem_td_unlock_vcpu(struct kvm_vcpu *vcpu)
{
	mutex_unlock(&vcpu->mutex);
}

void gmem_td_load_vcpu(struct kvm_vcpu *vcpu)
{
	vcpu_load(vcpu);
}

void gmem_td_put_vcpu(struct kvm_vcpu *vcpu)
{
	vcpu_put(vcpu);
}

/* --- vCPUs -------------------------------------------------------------------- */

/* Reads KVM's page table, whose entries can be frozen or for MMIO. */
static u64 *direct_child(u64 entry)
{
	return is_shadow_present_pte(entry) ? sept_child(entry) : NULL;
}

/* @root has two tables, the second one for a table of level 4 below the root. */
hpa_t kvm_gmem_mirror_root(struct kvm_vcpu *vcpu, hpa_t root)
{
	if (!VALID_PAGE(vcpu->arch.mmu->mirror_root_hpa))
		return root;

	if (!vcpu->arch.gmem_mirror_root)
		vcpu->arch.gmem_mirror_root =
			(void *)__get_free_pages(GFP_KERNEL_ACCOUNT | __GFP_ZERO, 1);
	if (!vcpu->arch.gmem_mirror_root) {
		kvm_vm_dead(vcpu->kvm);
		return root;
	}
	return __pa(vcpu->arch.gmem_mirror_root);
}

/*
 * With interrupts off, after the vCPU's mode is IN_GUEST_MODE: a task that
 * changes one of the tables or begins an epoch after this makes the vCPU leave
 * the guest.
 */
bool kvm_gmem_mirror_enter(struct kvm_vcpu *vcpu)
{
	struct simulated_td *td = &to_kvm_tdx(vcpu->kvm)->td;
	u64 *root = vcpu->arch.gmem_mirror_root;
	u64 epoch = READ_ONCE(td->epoch);
	u64 *direct, *sept = td->sept;
	bool flush;

	if (!root || is_guest_mode(vcpu))
		return false;

	direct = __va(vcpu->arch.mmu->root.hpa);
	if (td->levels == PT64_ROOT_5LEVEL) {
		root[0] = __pa(root + PTRS_PER_PTE) | SEPT_TABLE;
		root += PTRS_PER_PTE;
		sept = sept_child(READ_ONCE(sept[0]));
		direct = direct_child(READ_ONCE(direct[0]));
	}
	root[0] = sept ? READ_ONCE(sept[0]) : 0;
	root[1] = direct ? READ_ONCE(direct[1]) : 0;
	if (!direct_child(root[1]))
		root[1] = 0;

	flush = vcpu->arch.gmem_mirror_epoch != epoch;
	vcpu->arch.gmem_mirror_epoch = epoch;
	WRITE_ONCE(vcpu->arch.gmem_mirror_in_guest, epoch + 1);
	return flush;
}

void kvm_gmem_mirror_exit(struct kvm_vcpu *vcpu)
{
	WRITE_ONCE(vcpu->arch.gmem_mirror_in_guest, 0);
}

void kvm_gmem_mirror_free_vcpu(struct kvm_vcpu *vcpu)
{
	free_pages((unsigned long)vcpu->arch.gmem_mirror_root, 1);
}

/* --- TDs ------------------------------------------------------------------------ */

/* Whether the VMs of this machine can be TDs. */
bool gmem_td_possible(void)
{
	return tdp_mmu_enabled && kvm_host.maxphyaddr > SHARED_BIT &&
	       kvm_x86_ops.set_external_spte == kvm_gmem_mirror_set_spte;
}

void *gmem_td_create(void)
{
	struct kvm_tdx *kvm_tdx = kzalloc_obj(*kvm_tdx, GFP_KERNEL_ACCOUNT);

	if (!kvm_tdx)
		return NULL;
	kvm_tdx->td.sept = (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	if (!kvm_tdx->td.sept) {
		kfree(kvm_tdx);
		return NULL;
	}
	kvm_tdx->td.levels = pgtable_l5_enabled() ? PT64_ROOT_5LEVEL : PT64_ROOT_4LEVEL;
	kvm_tdx->hkid = 1;
	return kvm_tdx;
}

void gmem_td_free(void *td)
{
	struct kvm_tdx *kvm_tdx = td;

	if (kvm_tdx)
		free_page((unsigned long)kvm_tdx->td.sept);
	kfree(kvm_tdx);
}

/* The VM has no vCPU yet, and gets none meanwhile. */
void gmem_td_attach(struct kvm *kvm, void *td)
{
	struct kvm_tdx *kvm_tdx = td;

	kvm_tdx->td.kvm = kvm;
	kvm->arch.gfn_direct_bits = gpa_to_gfn(BIT_ULL(SHARED_BIT));
	WRITE_ONCE(kvm->arch.gmem_mirror, td);
}

/* The VM is about to be freed. */
void *gmem_vm_take_td(struct kvm *kvm)
{
	void *td = kvm->arch.gmem_mirror;

	kvm->arch.gmem_mirror = NULL;
	return td;
}

void gmem_td_finalize(struct kvm *kvm)
{
	to_kvm_tdx(kvm)->state = TD_STATE_RUNNABLE;
	/* Pairs with the barrier in tdx_sept_map_leaf_spte(). */
	smp_wmb();
}

void kvm_gmem_mirror_release(struct kvm *kvm)
{
	if (kvm_gmem_mirrors(kvm))
		to_kvm_tdx(kvm)->hkid = -1;
}
