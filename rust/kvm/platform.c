// SPDX-License-Identifier: GPL-2.0
/*
 * Determines the platform of a VM, and makes the calls to platforms that only
 * C can make: to the RMP and the S-EPT through the functions of the kernel and
 * of KVM, and to the hypervisor of pKVM.
 */
#include "../helpers.h"

#ifdef CONFIG_X86
#include <linux/cc_platform.h>
#include <asm/cacheflush.h>
#include <asm/cpufeature.h>
#include <asm/sev.h>

#include "mmu.h"
#include "x86.h"
#endif
#ifdef CONFIG_ARM64
#include <asm/kvm_pkvm.h>
#endif

u32 gmem_vm_platform(struct kvm *kvm)
{
#ifdef CONFIG_X86
	switch (kvm->arch.vm_type) {
	case KVM_X86_SW_PROTECTED_VM:
		return IS_ENABLED(CONFIG_KVM_SW_PROTECTED_VM) ? GMEM_PLATFORM_SW_PROTECTED :
								GMEM_PLATFORM_NONE;
	case KVM_X86_SNP_VM:
		return GMEM_PLATFORM_SNP;
	case KVM_X86_TDX_VM:
		return GMEM_PLATFORM_TDX;
	}
#endif
#ifdef CONFIG_ARM64
	if (kvm_vm_is_protected(kvm))
		return GMEM_PLATFORM_PKVM;
#endif
	return GMEM_PLATFORM_NONE;
}

/*
 * Whether there can be VMs here in whose memory nobody but the host has a part.  Under
 * pKVM EL2 has to know of each frame that any guest has.
 */
bool gmem_has_plain_vms(void)
{
#if defined(CONFIG_X86_64)
	return true;
#elif defined(CONFIG_ARM64)
	return !is_protected_kvm_enabled();
#else
	return false;
#endif
}

/*
 * Whether this can be one of them, as far as its type tells.  What SEV encrypts
 * depends on where it is: a VM of the default type that becomes an SEV guest has to
 * have its memory pinned (KVM_MEMORY_ENCRYPT_REG_REGION), of whatever kind it is.
 */
bool gmem_vm_is_plain(struct kvm *kvm)
{
#ifdef CONFIG_X86_64
	if (kvm->arch.vm_type != KVM_X86_DEFAULT_VM &&
	    kvm->arch.vm_type != KVM_X86_SW_PROTECTED_VM)
		return false;
#endif
	return gmem_has_plain_vms();
}

/* Whether the vendor's module moves pages that a guest was given, or EL2 does. */
bool gmem_platform_moves(void)
{
#ifdef CONFIG_X86
	return kvm_x86_ops.gmem_move;
#else
	return IS_ENABLED(CONFIG_ARM64);
#endif
}

/*
 * Has the hypervisor move what the guest has at @gfn.  -ENOENT means that @from is
 * the host's, as far as this VM is concerned.
 */
int gmem_vm_move_page(struct kvm *kvm, gfn_t gfn, u64 from, u64 to)
{
#ifdef CONFIG_ARM64
	return pkvm_move_gmem(kvm, gfn, from, to);
#else
	return -EOPNOTSUPP;
#endif
}

bool gmem_platform_available(u32 platform)
{
#ifdef CONFIG_X86
	static const unsigned long types[] = {
		[GMEM_PLATFORM_SW_PROTECTED] = IS_ENABLED(CONFIG_KVM_SW_PROTECTED_VM) ?
					 BIT(KVM_X86_SW_PROTECTED_VM) : 0,
		[GMEM_PLATFORM_SNP] = BIT(KVM_X86_SNP_VM),
		[GMEM_PLATFORM_TDX] = BIT(KVM_X86_TDX_VM),
	};

	return platform < ARRAY_SIZE(types) && kvm_caps.supported_vm_types & types[platform];
#elif defined(CONFIG_ARM64)
	return platform == GMEM_PLATFORM_PKVM && is_protected_kvm_enabled();
#else
	return false;
#endif
}

/*
 * If the state is not known, the page counts as kept. If it is @for_host, a
 * page that the guest waits to share becomes shared.
 */
bool gmem_vm_keeps_from_host(struct kvm *kvm, gfn_t gfn, u64 nr, bool for_host, u64 *same)
{
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_TAKE_BACK
	int state = kvm_arch_gmem_page_state(kvm, gfn, nr, same);

	if (state == PKVM_GUEST_PAGE_OWNED && for_host && !kvm_arch_gmem_share_page(kvm, gfn)) {
		*same = 1;
		return false;
	}
	return state < 0 || state == PKVM_GUEST_PAGE_OWNED;
#else
	*same = nr;
	return false;
#endif
}

#ifdef CONFIG_X86
/* Without an RMP no page is assigned. */
bool gmem_rmp_exists(void)
{
	return cc_platform_has(CC_ATTR_HOST_SEV_SNP);
}

/* 0 for a VM that the RMP does not know. */
u32 gmem_rmp_asid(struct kvm *kvm)
{
	return kvm_x86_call(gmem_asid)(kvm);
}

/*
 * These return 0 for success, and otherwise an errno, or the instruction's
 * code, which is positive.
 */
int gmem_rmp_lookup(u64 pfn, bool *assigned, bool *large)
{
	int level, ret;

	ret = snp_lookup_rmpentry(pfn, assigned, &level);
	if (ret)
		return ret;
	*large = level > PG_LEVEL_4K;
	/* Of a 2M entry only the first page's counts. */
	if (*large && !*assigned)
		ret = snp_lookup_rmpentry(ALIGN_DOWN(pfn, PTRS_PER_PMD), assigned, &level);
	return ret;
}

/*
 * rmpupdate() repeats an update that overlaps with an entry of another size, for ever
 * if nobody changes that one.  So these look whether there is one: 0, or an error.
 */
static int gmem_rmp_overlaps(u64 pfn, bool large)
{
	bool assigned, is_large;
	int ret = gmem_rmp_lookup(pfn, &assigned, &is_large);

	if (ret)
		return ret;
	return assigned && is_large != large ? RMPUPDATE_FAIL_OVERLAP : 0;
}

int gmem_rmp_assign(u64 pfn, u64 gfn, u32 asid)
{
	int ret = gmem_rmp_overlaps(pfn, false);

	return ret ?: rmp_make_private(pfn, gfn_to_gpa(gfn), PG_LEVEL_4K, asid, false);
}

int gmem_rmp_unassign(u64 pfn)
{
	int ret = gmem_rmp_overlaps(pfn, false);

	if (!ret)
		ret = rmp_make_shared(pfn, PG_LEVEL_4K);
	/* The host's next access must not hit cache lines of the guest. */
	if (!ret)
		clflush_cache_range(__va(PFN_PHYS(pfn)), PAGE_SIZE);
	return ret;
}

/*
 * The same for 2M, whose first page and first gfn these are.  A page of it can be taken
 * back later only if the direct map is split, which needs memory.
 */
int gmem_rmp_assign_block(u64 pfn, u64 gfn, u32 asid)
{
	int i, ret = 0;

	for (i = 0; i < PTRS_PER_PMD && !ret; i++)
		ret = gmem_rmp_overlaps(pfn + i, true);
	if (!ret)
		ret = snp_split_direct_map(pfn);
	return ret ?: rmp_make_private(pfn, gfn_to_gpa(gfn), PG_LEVEL_2M, asid, false);
}

int gmem_rmp_unassign_block(u64 pfn)
{
	int ret = gmem_rmp_overlaps(pfn, true);

	if (!ret)
		ret = rmp_make_shared(pfn, PG_LEVEL_2M);
	if (!ret)
		clflush_cache_range(__va(PFN_PHYS(pfn)), PMD_SIZE);
	return ret;
}

int gmem_rmp_smash(u64 pfn, bool *in_use)
{
	int ret = psmash(ALIGN_DOWN(pfn, PTRS_PER_PMD));

	*in_use = ret == PSMASH_FAIL_INUSE;
	return ret;
}

/* Whether a page of an SNP guest's may move, as far as KVM knows. */
bool gmem_rmp_may_move(struct kvm *kvm, u64 gfn)
{
	return kvm->arch.vm_type != KVM_X86_SNP_VM ||
	       kvm_x86_call(gmem_may_move)(kvm, gfn);
}

/* -EBUSY if the guest has the page as before, any other error if it has lost it. */
int gmem_rmp_move(struct kvm *kvm, u64 gfn, u64 from, u64 to)
{
	return kvm_x86_call(gmem_move)(kvm, gfn, from, to);
}

bool gmem_sept_contains(struct kvm *kvm, gfn_t gfn)
{
	return kvm_tdp_mmu_mirror_has_leaf(kvm, gfn);
}

/* See tdx_quirk_reset_paddr(): PAGE.REMOVE itself does not zero. */
bool gmem_sept_removal_zeroes(void)
{
	return boot_cpu_has_bug(X86_BUG_TDX_PW_MCE);
}

/* Whether the vendor's module moves pages that are in an S-EPT.  kvm-intel does not. */
bool gmem_sept_moves(void)
{
	return kvm_x86_ops.move_external_spte;
}

/*
 * -ENOENT if there is no page at @gfn, -EBUSY if it is where it was, and any other
 * error if the VM is dead.
 */
int gmem_sept_move(struct kvm *kvm, gfn_t gfn, u64 from, u64 to)
{
	return kvm_tdp_mmu_move_private_pfn(kvm, gfn, from, to);
}
#else
bool gmem_rmp_exists(void)
{
	return false;
}

u32 gmem_rmp_asid(struct kvm *kvm)
{
	return 0;
}

int gmem_rmp_lookup(u64 pfn, bool *assigned, bool *large)
{
	return -ENODEV;
}

int gmem_rmp_assign(u64 pfn, u64 gfn, u32 asid)
{
	return -ENODEV;
}

int gmem_rmp_unassign(u64 pfn)
{
	return -ENODEV;
}

int gmem_rmp_assign_block(u64 pfn, u64 gfn, u32 asid)
{
	return -ENODEV;
}

int gmem_rmp_unassign_block(u64 pfn)
{
	return -ENODEV;
}

int gmem_rmp_smash(u64 pfn, bool *in_use)
{
	*in_use = false;
	return -ENODEV;
}

/* No page was given to an RMP, but by a test. */
bool gmem_rmp_may_move(struct kvm *kvm, u64 gfn)
{
	return true;
}

int gmem_rmp_move(struct kvm *kvm, u64 gfn, u64 from, u64 to)
{
	return -EBUSY;
}

/* Without a way to find out, a page is not known to be the host's. */
bool gmem_sept_contains(struct kvm *kvm, gfn_t gfn)
{
	return true;
}

bool gmem_sept_removal_zeroes(void)
{
	return false;
}

bool gmem_sept_moves(void)
{
	return false;
}

int gmem_sept_move(struct kvm *kvm, gfn_t gfn, u64 from, u64 to)
{
	return -EBUSY;
}
#endif
