/* SPDX-License-Identifier: GPL-2.0 */
/*
 * For tests with one VM, vm, its vcpus[], and one file, a: what host and guest write
 * to and read from pages. Page numbers count in the file. These are macros because
 * the tests have structures of their own, and so that a failure names the test's line.
 */
#ifndef SELFTEST_KVM_GMEM_ONE_FILE_H
#define SELFTEST_KVM_GMEM_ONE_FILE_H

#include "gmem_test.h"

#define PG		((u64)PAGE_SIZE)
#define OFF(page)	((u64)(page) * PG)

#define page_gpa(x, page)	((gpa_t)((x)->a.gpa + OFF(page)))

#define host_fill(x, page, n, pattern)						\
	gmem_fill((x)->a.hva + OFF(page), OFF(n), pattern, OFF(page))
#define guest_fill(x, page, n, pattern)						\
	gmem_guest_fill((x)->vcpus[0], page_gpa(x, page), OFF(n), pattern, OFF(page))
#define host_sees(x, page, n, pattern)						\
	gmem_host_assert((x)->a.hva + OFF(page), OFF(n), pattern, OFF(page))
#define guest_sees(x, page, n, pattern)						\
	gmem_guest_assert((x)->vcpus[0], page_gpa(x, page), OFF(n), pattern, OFF(page))
#define host_refused(x, page, n)						\
	gmem_host_assert_refused((x)->a.hva + OFF(page), OFF(n))
#define convert(x, page, n, to, policy)						\
	gmem_convert((x)->a.fd, OFF(page), OFF(n), to, policy)
#define attributes_are(x, page, n, want)					\
	gmem_assert_attributes((x)->a.fd, OFF(page), OFF(n), want)

#endif /* SELFTEST_KVM_GMEM_ONE_FILE_H */
