// SPDX-License-Identifier: GPL-2.0
/*
 * Checks of the calling task during long work. Each is wrapped by one function
 * without decisions.
 */
#include <kunit/static_stub.h>
#include <linux/sched/signal.h>

#include "../helpers.h"

void gmem_cond_resched(void)
{
	cond_resched();
}

/* Whether the task is being killed, or a test simulates that. */
bool gmem_killed(void)
{
#ifdef CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST
	KUNIT_STATIC_STUB_REDIRECT(gmem_killed);
#endif
	return fatal_signal_pending(current);
}
