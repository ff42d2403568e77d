// SPDX-License-Identifier: GPL-2.0
/*
 * Inline functions and macros of the VFS: the invalidate lock, inodes, the pseudo
 * file system, files, arrays.  Each is wrapped by one function without decisions.
 */
#include <linux/debugfs.h>

#include "../helpers.h"

void gmem_invalidate_lock(struct address_space *mapping)
{
	filemap_invalidate_lock(mapping);
}

int gmem_invalidate_lock_killable(struct address_space *mapping)
{
	return down_write_killable(&mapping->invalidate_lock);
}

void gmem_invalidate_unlock(struct address_space *mapping)
{
	filemap_invalidate_unlock(mapping);
}

void gmem_invalidate_lock_shared(struct address_space *mapping)
{
	filemap_invalidate_lock_shared(mapping);
}

int gmem_invalidate_lock_shared_killable(struct address_space *mapping)
{
	return down_read_killable(&mapping->invalidate_lock);
}

bool gmem_invalidate_trylock_shared(struct address_space *mapping)
{
	return filemap_invalidate_trylock_shared(mapping);
}

void gmem_invalidate_unlock_shared(struct address_space *mapping)
{
	filemap_invalidate_unlock_shared(mapping);
}

struct kmem_cache *gmem_inode_cache_create(unsigned int size, void (*ctor)(void *))
{
	struct kmem_cache_args args = {
		.align = 0,
		.ctor = ctor,
	};

	return kmem_cache_create("kvm_gmem_inode_cache", size, &args, SLAB_ACCOUNT);
}

void *gmem_alloc_inode(struct super_block *sb, struct kmem_cache *cache)
{
	return alloc_inode_sb(sb, cache, GFP_KERNEL);
}

void gmem_inode_init(struct inode *inode, const struct inode_operations *iops,
		     const struct address_space_operations *aops, loff_t size, bool migratable,
		     bool large)
{
	inode->i_op = iops;
	inode->i_mode |= S_IFREG;
	/* Guests write as well, which the kernel does not see. */
	inode->i_flags |= S_NOCMTIME;
	inode->i_size = size;
	inode->i_mapping->a_ops = aops;
	mapping_set_gfp_mask(inode->i_mapping, migratable ? GFP_HIGHUSER_MOVABLE : GFP_HIGHUSER);
	mapping_set_inaccessible(inode->i_mapping);
	if (migratable)
		mapping_set_migratable(inode->i_mapping);
	if (large)
		mapping_set_folio_order_range(inode->i_mapping, 0, GMEM_BLOCK_ORDER);
	/* Inaccessible mappings are supposed to be marked unevictable as well. */
	WARN_ON_ONCE(!mapping_unevictable(inode->i_mapping));
}

bool gmem_init_pseudo(struct fs_context *fc, unsigned long magic,
		      const struct super_operations *ops)
{
	struct pseudo_fs_context *ctx = init_pseudo(fc, magic);

	if (!ctx)
		return false;
	ctx->ops = ops;
	return true;
}

void gmem_mount_noexec(struct vfsmount *mnt)
{
	mnt->mnt_flags |= MNT_NOEXEC;
}

struct super_block *gmem_mount_sb(struct vfsmount *mnt)
{
	return mnt->mnt_sb;
}

bool gmem_fops_get(const struct file_operations *fops)
{
	return fops_get(fops);
}

void gmem_fops_put(const struct file_operations *fops)
{
	fops_put(fops);
}

void gmem_debugfs_remove(struct dentry *dentry)
{
	debugfs_remove(dentry);
}

static_assert(GMEM_XA_PRESENT == (__force unsigned int)XA_PRESENT);

void gmem_xa_init(struct xarray *xa)
{
	xa_init(xa);
}

int gmem_xa_err(void *entry)
{
	return xa_err(entry);
}
