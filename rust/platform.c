// SPDX-License-Identifier: GPL-2.0
/*
 * What only C can ask the platforms that keep private memory private: the RMP
 * through the kernel's functions, the vendor's module through the operations
 * that it registers.
 */
#include <linux/rcupdate.h>

#include "helpers.h"

#ifdef CONFIG_X86
#include <linux/cc_platform.h>
#include <asm/cacheflush.h>
#include <asm/sev.h>

#include "trace.h"
#endif

static const struct kvm_gmem_vendor_ops __rcu *vendor_ops;
static DEFINE_MUTEX(vendor_ops_lock);

int kvm_gmem_register_vendor(const struct kvm_gmem_vendor_ops *ops)
{
	guard(mutex)(&vendor_ops_lock);

	if (rcu_access_pointer(vendor_ops))
		return -EBUSY;
	rcu_assign_pointer(vendor_ops, ops);
	return 0;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_register_vendor);

/* Whoever is inside of a call is waited for. */
void kvm_gmem_unregister_vendor(const struct kvm_gmem_vendor_ops *ops)
{
	scoped_guard(mutex, &vendor_ops_lock) {
		if (rcu_access_pointer(vendor_ops) != ops)
			return;
		RCU_INIT_POINTER(vendor_ops, NULL);
	}
	synchronize_rcu();
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_unregister_vendor);

int gmem_vendor_asid(struct kvm *kvm, u32 *asid)
{
	const struct kvm_gmem_vendor_ops *ops;

	guard(rcu)();

	ops = rcu_dereference(vendor_ops);
	if (!ops || !ops->asid)
		return -ENODEV;
	*asid = ops->asid(kvm);
	return 0;
}

/* What nobody can be asked about is not known to be the host's. */
bool gmem_vendor_in_sept(struct kvm *kvm, gfn_t gfn)
{
	const struct kvm_gmem_vendor_ops *ops;

	guard(rcu)();

	ops = rcu_dereference(vendor_ops);
	return !ops || !ops->in_sept || ops->in_sept(kvm, gfn);
}

bool gmem_vendor_removal_zeroes(void)
{
	const struct kvm_gmem_vendor_ops *ops;

	guard(rcu)();

	ops = rcu_dereference(vendor_ops);
	return ops && ops->removal_zeroes && ops->removal_zeroes();
}

#ifdef CONFIG_X86
/* Without an RMP no page is anybody's in it. */
bool gmem_rmp_exists(void)
{
	return cc_platform_has(CC_ATTR_HOST_SEV_SNP);
}

/*
 * These return 0, and nothing else, for success: an errno otherwise, or a number
 * of the instruction's, which is positive.
 */
int gmem_rmp_lookup(u64 pfn, bool *assigned, bool *large)
{
	int level, ret;

	ret = snp_lookup_rmpentry(pfn, assigned, &level);
	if (!ret)
		*large = level > PG_LEVEL_4K;
	return ret;
}

int gmem_rmp_assign(u64 pfn, u64 gfn, u32 asid)
{
	int ret = rmp_make_private(pfn, gfn_to_gpa(gfn), PG_LEVEL_4K, asid, false);

	trace_kvm_rmp_transition(pfn, gfn, asid, false, true, PG_LEVEL_4K, ret);
	return ret;
}

int gmem_rmp_unassign(u64 pfn, u64 gfn, u32 asid)
{
	int ret = rmp_make_shared(pfn, PG_LEVEL_4K);

	trace_kvm_rmp_transition(pfn, gfn, asid, true, false, PG_LEVEL_4K, ret);
	if (ret)
		return ret;
	/* The host's next access must not meet what the guest has left in caches. */
	clflush_cache_range(__va(PFN_PHYS(pfn)), PAGE_SIZE);
	return 0;
}

int gmem_rmp_smash(u64 pfn)
{
	u64 first = ALIGN_DOWN(pfn, PTRS_PER_PMD);
	int ret;

	/* In use: another CPU works on the entry, which does not take long. */
	do {
		ret = psmash(first);
	} while (ret == PSMASH_FAIL_INUSE);

	trace_kvm_rmp_transition(first, ~0ull, 0, true, true, PG_LEVEL_2M, ret);
	return ret;
}

void gmem_trace_rmp(u64 pfn, u64 gfn, u32 asid, bool from, bool to, bool large, int code)
{
	trace_kvm_rmp_transition(pfn, gfn, asid, from, to,
				 large ? PG_LEVEL_2M : PG_LEVEL_4K, code);
}
#else
bool gmem_rmp_exists(void)
{
	return false;
}

int gmem_rmp_lookup(u64 pfn, bool *assigned, bool *large)
{
	return -ENODEV;
}

int gmem_rmp_assign(u64 pfn, u64 gfn, u32 asid)
{
	return -ENODEV;
}

int gmem_rmp_unassign(u64 pfn, u64 gfn, u32 asid)
{
	return -ENODEV;
}

int gmem_rmp_smash(u64 pfn)
{
	return -ENODEV;
}

void gmem_trace_rmp(u64 pfn, u64 gfn, u32 asid, bool from, bool to, bool large, int code)
{
}
#endif
