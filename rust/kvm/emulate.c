// SPDX-License-Identifier: GPL-2.0
/*
 * Accesses to a page for KVM's emulation of the guest's instructions.
 */
#include "../helpers.h"

/*
 * An aligned word is read at once, as get_user() does: it may be an entry of a
 * page table that another processor of the guest is about to change.
 */
void gmem_page_read(struct page *page, size_t offset, void *to, size_t len)
{
	void *kaddr = kmap_local_page(page);

	if (len == sizeof(u64) && IS_ALIGNED(offset, len))
		*(u64 *)to = READ_ONCE(*(u64 *)(kaddr + offset));
	else if (len == sizeof(u32) && IS_ALIGNED(offset, len))
		*(u32 *)to = READ_ONCE(*(u32 *)(kaddr + offset));
	else
		memcpy(to, kaddr + offset, len);
	kunmap_local(kaddr);
}

void gmem_page_write(struct page *page, size_t offset, const void *from, size_t len)
{
	memcpy_to_page(page, offset, from, len);
}

#define gmem_cmpxchg(type)							\
({										\
	type __old = *old;							\
	bool __same = try_cmpxchg((type *)(kaddr + offset), &__old, (type)new);	\
										\
	*old = __old;								\
	__same;									\
})

/* @len is 1, 2, 4 or 8. False, with the current value in @old, if that differs. */
bool gmem_page_cmpxchg(struct page *page, size_t offset, size_t len, u64 *old, u64 new)
{
	void *kaddr = kmap_local_page(page);
	bool same = false;

	switch (len) {
	case 1:
		same = gmem_cmpxchg(u8);
		break;
	case 2:
		same = gmem_cmpxchg(u16);
		break;
	case 4:
		same = gmem_cmpxchg(u32);
		break;
	case 8:
		same = gmem_cmpxchg(u64);
		break;
	}
	kunmap_local(kaddr);
	return same;
}
