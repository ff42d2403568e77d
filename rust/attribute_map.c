// SPDX-License-Identifier: GPL-2.0
/*
 * Nodes of attribute maps. User space decides their number, so they are
 * charged to it. If the cgroup has no room for one, the result is ENOMEM,
 * without the OOM killer.
 */
#include <kunit/static_stub.h>
#include <linux/kmemleak.h>

#include "helpers.h"

#define GMEM_NODE_GFP	(GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN)

struct gmem_bitmap {
	u64 words[GMEM_BITMAP_WORDS];
	struct kvfree_rcu_head rcu;
};

static void gmem_table_free(struct page *page)
{
	kmemleak_free(page_address(page));
	__free_page(page);
}

static void gmem_table_free_cb(struct rcu_head *head)
{
	gmem_table_free(container_of(head, struct page, rcu_head));
}

/* Whether a test lets allocations fail. */
bool gmem_node_denied(void)
{
#ifdef CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST
	KUNIT_STATIC_STUB_REDIRECT(gmem_node_denied);
#endif
	return false;
}

void *gmem_node_alloc(bool table)
{
	void *node;

	if (gmem_node_denied())
		return NULL;
	if (!table)
		return kmalloc(sizeof(struct gmem_bitmap), GMEM_NODE_GFP);

	node = (void *)__get_free_page(GMEM_NODE_GFP);
	/* The only pointers to bitmaps are in tables. */
	if (node)
		kmemleak_alloc(node, PAGE_SIZE, 1, GMEM_NODE_GFP);
	return node;
}

void gmem_node_free(void *node, bool table)
{
	if (table)
		gmem_table_free(virt_to_page(node));
	else
		kfree(node);
}

void gmem_node_free_rcu(void *node, bool table)
{
	struct gmem_bitmap *bitmap = node;

	if (table)
		call_rcu(&virt_to_page(node)->rcu_head, gmem_table_free_cb);
	else
		kfree_rcu(bitmap, rcu);
}
