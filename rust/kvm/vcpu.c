// SPDX-License-Identifier: GPL-2.0
/*
 * Loading a vCPU to map memory for it.
 */
#include "../helpers.h"

/*
 * The vCPU's mutex is held. Returns -ENOEXEC, with nothing loaded, for a vCPU
 * that has no state yet: VHE would load invalid state.
 */
int gmem_vcpu_load(struct kvm_vcpu *vcpu)
{
#ifdef CONFIG_ARM64
	if (!kvm_vcpu_initialized(vcpu))
		return -ENOEXEC;
#endif
	vcpu_load(vcpu);
	return srcu_read_lock(&vcpu->kvm->srcu);
}

void gmem_vcpu_put(struct kvm_vcpu *vcpu, int slots)
{
	srcu_read_unlock(&vcpu->kvm->srcu, slots);
	vcpu_put(vcpu);
}
