// SPDX-License-Identifier: GPL-2.0
/*
 * Checks that long work makes about its own task. One function each, which
 * decides nothing.
 */
#include <kunit/static_stub.h>
#include <linux/sched/signal.h>

#include "../helpers.h"

void gmem_cond_resched(void)
{
	cond_resched();
}

/* Whether the task is being killed, or a test says that it is. */
bool gmem_killed(void)
{
#ifdef CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST
	KUNIT_STATIC_STUB_REDIRECT(gmem_killed);
#endif
	return fatal_signal_pending(current);
}
