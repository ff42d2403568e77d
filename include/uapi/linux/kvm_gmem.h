/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * User-space interface of guest_memfd's in-place conversion.
 *
 * The ioctls here are issued on a guest_memfd file descriptor, with two
 * exceptions: KVM_MAP_MEMORY is a vCPU ioctl, and the emulation of platforms
 * has a VM ioctl. The capabilities are checked with KVM_CHECK_EXTENSION on a
 * VM or on /dev/kvm.
 */
#ifndef _UAPI_LINUX_KVM_GMEM_H
#define _UAPI_LINUX_KVM_GMEM_H

#include <linux/ioctl.h>
#include <linux/kvm.h>
#include <linux/types.h>

/*
 * KVM_CREATE_GUEST_MEMFD: the host can move the file's pages to other memory
 * (compaction, move_pages(), soft offlining, memory hot-remove, CMA), for which
 * they are allocated from movable zones as well. Accepted only if
 * KVM_CAP_GUEST_MEMFD_FLAGS has it. The number is out of tree: bits from 16 on do
 * not collide with upstream ones.
 */
#ifndef GUEST_MEMFD_FLAG_MIGRATABLE
#define GUEST_MEMFD_FLAG_MIGRATABLE		(1ULL << 16)
#endif

/*
 * KVM_CREATE_GUEST_MEMFD: memory that is allocated 2 MiB at a time is one folio,
 * which the host maps and converts at once. In exchange, a request or a hole that
 * begins or ends within such 2 MiB fails with EAGAIN while somebody has a reference
 * to them. Cannot be combined with MIGRATABLE. Only where
 * KVM_CAP_GUEST_MEMFD_FLAGS has it.
 */
#ifndef GUEST_MEMFD_FLAG_LARGE_FOLIOS
#define GUEST_MEMFD_FLAG_LARGE_FOLIOS		(1ULL << 17)
#endif

/*
 * A newer <linux/kvm.h> may define parts of this itself, which are left out here.
 * The preprocessor cannot test for a struct, so a struct is guarded by its ioctl,
 * which no header has without it.
 */
#ifndef KVM_SET_MEMORY_ATTRIBUTES2
/**
 * struct kvm_memory_attributes2 - a range of a guest_memfd and its attributes
 * @address: the name that @offset has in the VM ioctl's struct
 * @offset: byte offset in the file, page aligned
 * @size: bytes, a multiple of the page size, not 0
 * @attributes: 0 (shared) or KVM_MEMORY_ATTRIBUTE_PRIVATE
 * @flags: one of KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_*
 * @error_offset: out, byte offset of the first page that stopped the request;
 *	written only for the errors that are about a page
 * @reserved: must be 0
 *
 * The first four fields have the same offsets as in struct
 * kvm_memory_attributes.
 */
struct kvm_memory_attributes2 {
	union {
		__u64 address;
		__u64 offset;
	};
	__u64 size;
	__u64 attributes;
	__u64 flags;
	__u64 error_offset;
	__u64 reserved[11];
};

/* Convert a range in place. */
#define KVM_SET_MEMORY_ATTRIBUTES2 \
	_IOWR(KVMIO, 0xd2, struct kvm_memory_attributes2)
#endif

/* Content policies: the guarantee for the bytes of the range. */
#ifndef KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_NONE
#define KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_NONE		0ULL
#endif
#ifndef KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_ZERO
#define KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_ZERO		(1ULL << 0)
#endif
#ifndef KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_PRESERVE
#define KVM_SET_MEMORY_ATTRIBUTES2_CONTENT_POLICY_PRESERVE	(1ULL << 1)
#endif

/*
 * Return the attributes of the page at @offset in @attributes, and in @size
 * how many bytes from there have the same attributes.
 */
#ifndef KVM_GET_MEMORY_ATTRIBUTES2
#define KVM_GET_MEMORY_ATTRIBUTES2 \
	_IOWR(KVMIO, 0xd3, struct kvm_memory_attributes2)
#endif

#ifndef KVM_MAP_MEMORY
/**
 * struct kvm_memory_mapping - guest physical memory to be mapped
 * @base_address: in and out, guest physical address in bytes, page aligned
 * @size: in and out, bytes, a multiple of the page size, not 0 on input
 * @flags: must be 0
 *
 * On return, also with an error, @base_address and @size say what is left to
 * map.
 */
struct kvm_memory_mapping {
	__u64 base_address;
	__u64 size;
	__u64 flags;
};

/*
 * vCPU ioctl: populate the VM's second-level page tables. Returns 0 if at least
 * one page was mapped: repeat it until @size is 0.
 */
#define KVM_MAP_MEMORY		_IOWR(KVMIO, 0xd5, struct kvm_memory_mapping)
#endif

#ifndef KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES
#define KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES		252
#endif
/* Out of tree: numbers from 0x10000 do not collide with upstream ones. */
#ifndef KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS
#define KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS		0x10000
#endif
#ifndef KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS
#define KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS	0x10001
#endif
#ifndef KVM_CAP_GET_MEMORY_ATTRIBUTES2
#define KVM_CAP_GET_MEMORY_ATTRIBUTES2			0x10002
#endif
#ifndef KVM_CAP_MAP_MEMORY
#define KVM_CAP_MAP_MEMORY				0x10003
#endif

/*
 * The two FLAGS capabilities hold three bytes of policies: supported in both
 * directions, to shared, to private.
 */
#define KVM_MEMORY_ATTRIBUTES2_BOTH(cap)		((cap) & 0xff)
#define KVM_MEMORY_ATTRIBUTES2_TO_SHARED(cap)		(((cap) >> 8) & 0xff)
#define KVM_MEMORY_ATTRIBUTES2_TO_PRIVATE(cap)		(((cap) >> 16) & 0xff)

/*
 * Software models of confidential platforms, for development and tests. The
 * rest of this header needs CONFIG_KVM_GMEM_EMULATION.
 *
 * KVM_CHECK_EXTENSION returns a mask of 1 << KVM_GMEM_EMULATE_*.
 * KVM_ENABLE_CAP gives a VM of type KVM_X86_SW_PROTECTED_VM the behaviour of
 * one of them: args[0] is KVM_GMEM_EMULATE_*, args[1] holds flags, the rest
 * must be 0. The VM must not have a guest_memfd, a memslot or a vCPU yet.
 */
#define KVM_CAP_GMEM_EMULATION				0x10004

#define KVM_GMEM_EMULATE_SNP				1
#define KVM_GMEM_EMULATE_TDX				2
/*
 * TDX as well, but the guest itself selects the kind of memory: bit 39
 * of a guest physical address is set for shared memory.  KVM mirrors the page
 * table for private memory into the S-EPT, as it does on hardware.
 * LAUNCH_UPDATE needs a vCPU.
 */
#define KVM_GMEM_EMULATE_TDX_MIRROR			3

/* args[1], both TDX: removing a page from the guest zeroes it. */
#define KVM_GMEM_EMULATE_REMOVE_ZEROES			(1ULL << 0)

/*
 * If the platform gave a page up without clearing it, the host sees each
 * aligned 64-bit word of the page XORed with this.
 */
#define KVM_GMEM_EMULATION_KEY				0x6b766d5f676d656dULL

/**
 * struct kvm_gmem_emulate - one operation on an emulated platform
 * @op: KVM_GMEM_EMULATE_OP_*
 * @type: LAUNCH_UPDATE on SNP: KVM_GMEM_EMULATE_PAGE_*; otherwise 0
 * @gpa: guest physical address, page aligned
 * @size: LAUNCH_UPDATE: bytes; otherwise 0
 * @uaddr: LAUNCH_UPDATE: page-aligned source, or 0 for the pages' own
 *	contents; otherwise 0
 * @value: arguments or results, see the operations; otherwise 0
 *
 * LAUNCH_UPDATE advances @gpa, @size and, unless it is 0, @uaddr past the
 * pages that it has added. Repeat it until @size is 0.
 */
struct kvm_gmem_emulate {
	__u32 op;
	__u32 type;
	__u64 gpa;
	__u64 size;
	__u64 uaddr;
	__u64 value[4];
};

/* VM ioctl, on a VM that emulates a platform. */
#define KVM_GMEM_EMULATE	_IOWR(KVMIO, 0xd6, struct kvm_gmem_emulate)

/* Add pages to the guest before launch: SNP_LAUNCH_UPDATE, INIT_MEM_REGION. */
#define KVM_GMEM_EMULATE_OP_LAUNCH_UPDATE		1
/* End the launch; vCPUs run from then on. */
#define KVM_GMEM_EMULATE_OP_LAUNCH_FINISH		2
/*
 * Make operations on the page that is at @gpa now fail: value[0] is the
 * operation (KVM_GMEM_EMULATE_FAIL_*), value[1] the error
 * (KVM_GMEM_EMULATE_ERROR_*), value[2] how often; 0 cancels the failure.
 */
#define KVM_GMEM_EMULATE_OP_INJECT			3
/*
 * Query the model about the page at @gpa: value[0] becomes
 * KVM_GMEM_EMULATE_STATE_*, value[1] the gfn that the model has for the page,
 * value[2] the model's identifier of the owner, and value[3] how many of the
 * VM's private pages the model has destroyed although they stayed private.
 */
#define KVM_GMEM_EMULATE_OP_QUERY			4
/*
 * Hold tasks that reach a place in the code with the page at @gpa, until they
 * are released or get a signal: value[0] is the place
 * (KVM_GMEM_EMULATE_HOLD_*), value[1] is 1 to hold and 0 to release. value[2]
 * becomes the number of tasks that are held. A place holds for one page at a
 * time, the last one that was named.
 */
#define KVM_GMEM_EMULATE_OP_HOLD			5
/*
 * Make the guest use the page at @gpa as memory of one kind, as the page
 * tables of a guest on hardware do: value[0] is
 * KVM_GMEM_EMULATE_ACCESS_*. If the page is of the other kind, its next access
 * is KVM_EXIT_MEMORY_FAULT. ENOSPC for more than 16 pages; EOPNOTSUPP for
 * TDX_MIRROR, whose guests have a separate address for each kind.
 */
#define KVM_GMEM_EMULATE_OP_ACCESS			6
/*
 * VMs of type KVM_X86_SNP_VM on simulated hardware
 * (CONFIG_KVM_SNP_SIMULATION): make the next commands of the PSP's firmware
 * fail. value[0] is the command's number, value[1] the status that it returns,
 * value[2] how often; 0 cancels the failure. No command has number 0: it stands
 * for an RMPUPDATE that hands a page of the host to firmware, which fails with
 * the error value[1]. This affects the firmware of the whole machine, whichever
 * VM issues the command. Of the operations above, these VMs have only QUERY and
 * INJECT. For a page that nobody owns, QUERY returns this VM's identifier in
 * value[2]. In value[3] it returns how many pages of the machine belong to
 * guests.
 */
#define KVM_GMEM_EMULATE_OP_COMMAND			7

/* Types of pages for LAUNCH_UPDATE. */
#define KVM_GMEM_EMULATE_PAGE_NORMAL			1
#define KVM_GMEM_EMULATE_PAGE_ZERO			3
#define KVM_GMEM_EMULATE_PAGE_CPUID			6

#define KVM_GMEM_EMULATE_FAIL_ASSIGN			1
#define KVM_GMEM_EMULATE_FAIL_UNASSIGN			2
#define KVM_GMEM_EMULATE_FAIL_SMASH			3
#define KVM_GMEM_EMULATE_FAIL_ADD			4
#define KVM_GMEM_EMULATE_FAIL_BLOCK			5
#define KVM_GMEM_EMULATE_FAIL_TRACK			6
#define KVM_GMEM_EMULATE_FAIL_REMOVE			7
/* TDX_MIRROR: flushing the caches of a page that the guest has lost fails. */
#define KVM_GMEM_EMULATE_FAIL_FLUSH			8
/* TDX_MIRROR: moving a page to another frame fails. */
#define KVM_GMEM_EMULATE_FAIL_RELOCATE			9
/* TDX_MIRROR: the same, and then undoing the steps before fails. */
#define KVM_GMEM_EMULATE_FAIL_UNBLOCK			10

/* Errors of RMPUPDATE and PSMASH. TDX has BUSY and INPUT. */
#define KVM_GMEM_EMULATE_ERROR_INPUT			1
#define KVM_GMEM_EMULATE_ERROR_PERMISSION		2
#define KVM_GMEM_EMULATE_ERROR_IN_USE			3
#define KVM_GMEM_EMULATE_ERROR_OVERLAP			4
#define KVM_GMEM_EMULATE_ERROR_BUSY			5

/* A vCPU that has the page and is about to map it. */
#define KVM_GMEM_EMULATE_HOLD_FAULT			1
/* A conversion or a hole punch, before its invalidation begins. */
#define KVM_GMEM_EMULATE_HOLD_INVALIDATION		2

/* The guest's accesses are of the kind that the file has, or always of one kind. */
#define KVM_GMEM_EMULATE_ACCESS_ANY			0
#define KVM_GMEM_EMULATE_ACCESS_SHARED			1
#define KVM_GMEM_EMULATE_ACCESS_PRIVATE			2

/* States of an RMP entry, then of an entry in the S-EPT. */
#define KVM_GMEM_EMULATE_STATE_NONE			0
#define KVM_GMEM_EMULATE_STATE_ASSIGNED			1
#define KVM_GMEM_EMULATE_STATE_VALIDATED		2
#define KVM_GMEM_EMULATE_STATE_IMMUTABLE		3
/* Added to one of these: the entry is for 2M. */
#define KVM_GMEM_EMULATE_STATE_LARGE			8
#define KVM_GMEM_EMULATE_STATE_PRESENT			16
#define KVM_GMEM_EMULATE_STATE_BLOCKED			17
#define KVM_GMEM_EMULATE_STATE_TRACKED			18

#endif /* _UAPI_LINUX_KVM_GMEM_H */
