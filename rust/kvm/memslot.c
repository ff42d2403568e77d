// SPDX-License-Identifier: GPL-2.0
/*
 * The file of a memslot, which can be closed at any time.
 */
#include "../helpers.h"

/*
 * A file that is being closed gives out no new references. Some time can pass
 * between its last fput() and release() clearing the slot's pointer.
 */
struct file *gmem_slot_get_file(struct kvm_memory_slot *slot)
{
	return get_file_active(&slot->gmem.file);
}

/*
 * The inode of a slot's file without a reference, for a caller inside RCU.
 *
 * The memory of a struct file can be reused for another file at any time. But
 * the slot's pointer is cleared before the file goes away: if the pointer
 * still is the same after f_inode was read, f_inode was this file's. The inode
 * itself is freed behind RCU.
 */
struct inode *gmem_slot_inode_rcu(const struct kvm_memory_slot *slot)
{
	struct file *file = READ_ONCE(slot->gmem.file);
	struct inode *inode;

	if (!file)
		return NULL;
	inode = READ_ONCE(file->f_inode);
	/*
	 * The memory is reused after release() has cleared the pointer and
	 * dropped its locks: if the new file is seen here, so is the cleared
	 * pointer.
	 */
	smp_rmb();
	return READ_ONCE(slot->gmem.file) == file ? inode : NULL;
}
