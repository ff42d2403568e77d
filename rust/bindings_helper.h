/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen reads for the private bindings of this directory: KVM's side,
 * which the kernel's own bindings do not have, and our helpers.  Everything
 * else comes from the kernel's bindings (see the blocklist by allowlist in
 * ../Kbuild), so that there is one type for one struct.
 */
#include <linux/swap.h>
#include <trace/events/kvm_gmem.h>
#include <uapi/linux/falloc.h>
#include <uapi/linux/kvm_gmem.h>

#include "emulation.h"
#include "helpers.h"
#include "mirror.h"
#include "testing.h"
#include "guest_memfd.h"

#ifdef CONFIG_KVM_SNP_SIMULATION
static_assert(SNP_SIM_KEY == KVM_GMEM_EMULATION_KEY);
#endif

/* bindgen does not evaluate macros that use sizeof. */
enum {
	GMEM_IOCTL_SET_MEMORY_ATTRIBUTES = KVM_SET_MEMORY_ATTRIBUTES,
	GMEM_IOCTL_SET_MEMORY_ATTRIBUTES2 = KVM_SET_MEMORY_ATTRIBUTES2,
	GMEM_IOCTL_GET_MEMORY_ATTRIBUTES2 = KVM_GET_MEMORY_ATTRIBUTES2,
	GMEM_IOCTL_MAP_MEMORY = KVM_MAP_MEMORY,
	GMEM_IOCTL_EMULATE = KVM_GMEM_EMULATE,
};
