/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A protected VM for each test, with or without exits of its hypercalls. A program defines
 * the fixtures that it needs.
 */
#ifndef SELFTEST_KVM_GMEM_PKVM_FIXTURE_H
#define SELFTEST_KVM_GMEM_PKVM_FIXTURE_H

#include "kvm_test_harness.h"
#include "gmem_pkvm.h"

/* Seconds, after which a test counts as hung. The sanitised kernel is slow. */
#define TIMEOUT	300

/* One VM, whose hypercalls exit or not, and whose file has these flags. */
#define PVM_FIXTURE(name, flags, exits_too)					\
	FIXTURE(name) {								\
		struct pvm p;							\
	};									\
	FIXTURE_SETUP(name)							\
	{									\
		pvm_create(&self->p, flags, exits_too);				\
	}									\
	FIXTURE_TEARDOWN(name)							\
	{									\
		pvm_destroy(&self->p);						\
	}

/* Each test runs twice. Without exits EL2 answers SHARE and UNSHARE by itself. */
#define PVM_FIXTURES(name, flags)						\
	FIXTURE(name) {								\
		struct pvm p;							\
	};									\
	FIXTURE_VARIANT(name) {							\
		bool exits;							\
	};									\
	FIXTURE_VARIANT_ADD(name, told) {					\
		.exits = true,							\
	};									\
	FIXTURE_VARIANT_ADD(name, untold) {					\
		.exits = false,							\
	};									\
	FIXTURE_SETUP(name)							\
	{									\
		pvm_create(&self->p, flags, variant->exits);			\
	}									\
	FIXTURE_TEARDOWN(name)							\
	{									\
		pvm_destroy(&self->p);						\
	}

#define PVM_TEST(name)	TEST_F_TIMEOUT(pvm, name, TIMEOUT)

#endif /* SELFTEST_KVM_GMEM_PKVM_FIXTURE_H */
