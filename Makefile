# SPDX-License-Identifier: GPL-2.0
# The commands of the project; `make help` lists them. The work is done by the scripts of tools/vm. The kernel's build
# uses Kbuild instead of this file.

# `make vmm SHELL=1` asks for a shell in the guest. The name is make's own.
override SHELL := /bin/bash
export ARCH FLAVOUR KSRC LLVM O PROG ARGS APPEND ICOUNT MODE TIMEOUT TESTS JOBS ROWS PAGES REPS RUNS C_FLAVOUR RUST_FLAVOUR
vm := tools/vm

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup kernel demo vmm run shell check check-all misuse series kunit selftests gmem model bench clippy rustdoc fmt clean clean-cache

help:
	@echo 'make demo          build everything and watch a nested guest being converted in place'
	@echo 'make vmm           a VMM boots Linux from private memory; disk, network, conversions  SHELL=1 ARCH='
	@echo 'make check         every test of the gate (x86-64 plain and sanitised, arm64); ends with a count'
	@echo 'make check-all     also what is slow, the C kernels as reference, the configuration matrix'
	@echo ''
	@echo 'make setup         install what is needed (says what first); the other commands do it too'
	@echo 'make kernel        build a kernel                                 FLAVOUR= ARCH='
	@echo 'make run           run a static binary in a booted kernel         PROG= ARGS= ARCH= APPEND= ICOUNT=1'
	@echo 'make shell         a shell in a booted kernel (exit ends it)      ARCH= FLAVOUR= APPEND='
	@echo 'make gmem          the program gmem, static, with its manual page and completions'
	@echo 'make kunit         the KUnit suites                               FLAVOUR='
	@echo 'make selftests     build the KVM selftests, ours and the kernel'"'"'s  ARCH='
	@echo 'make model         the cargo tests of the policy crate'
	@echo 'make misuse        mutants of src/: they must not compile, or have a KUnit test  BOOT=1'
	@echo 'make series        compile KVM after each patch of the series, both architectures'
	@echo 'make bench         instructions per operation, C against Rust           PAGES= REPS= RUNS='
	@echo 'make clippy, rustdoc, fmt     lints, documentation, formatting of the Rust sources'
	@echo 'make clean         forget what was built; clean-cache also the downloads'
	@echo ''
	@echo 'Parameters:'
	@echo '  ARCH=x86_64|arm64     architecture of the machine (x86_64)'
	@echo '  FLAVOUR=name          kernel configuration, see tools/vm/configs/flavours (x86-rust, arm64-rust)'
	@echo '  MODE=vhe|nvhe|protected   how KVM runs on arm64 (vhe)'
	@echo '  KSRC=path             a 7.3.y kernel tree of yours instead of Debian'"'"'s source. It is copied, never'
	@echo '                        written to; patches/ is applied to the copy unless it is in the tree already'
	@echo '  LLVM=-19              as for the kernel'"'"'s make'
	@echo '  O=path                the cache, instead of $${XDG_CACHE_HOME:-~/.cache}/kvm-gmem'
	@echo '  SHELL=1               vmm gives a shell in the guest; "exit" ends it'
	@echo '  BOOT=1                misuse boots kernels with the mutants, and without checks of rust/'
	@echo '  ROWS=1                demo prints a row for each request instead of grids'
	@echo '  NO_COLOR=1            no colours, even on a terminal'
	@echo '  TIMEOUT=seconds       when a run counts as hung (600)'
	@echo '  TESTS="name ..."      only these test programs, for check'
	@echo '  MODES="mode ..."      only these modes of arm64, for check'

setup:
	@$(vm)/setup

kernel: setup
	@$(vm)/kernel $(or $(FLAVOUR),$(if $(filter arm64 aarch64,$(ARCH)),arm64-rust,x86-rust))

demo:
	@$(vm)/demo forecast
	@$(vm)/setup
	@$(vm)/demo

vmm: setup
	@tools/vmm/run $(if $(filter SHELL=1,$(MAKEOVERRIDES)),shell)

run: setup
	@$(vm)/run

shell: setup
	@$(vm)/run shell

check: setup
	@$(vm)/check check

check-all: setup
	@$(vm)/check $(if $(CHECKED),extra,all)
	@tools/testing/misuse/run --boot

misuse: setup
	@tools/testing/misuse/run $(if $(BOOT),--boot)

kunit: setup
	@TESTS=kunit $(vm)/check $(or $(FLAVOUR),x86-rust)

selftests: setup
	@$(vm)/selftests $(or $(ARCH),x86_64)

gmem: setup
	@$(vm)/demo gmem

series: setup
	@$(vm)/series

bench: setup
	@tools/bench/run

model: setup
	@$(vm)/check model

clippy: setup
	@$(vm)/lint clippy

rustdoc: setup
	@$(vm)/lint rustdoc

fmt: setup
	@$(vm)/lint fmt

clean:
	@$(vm)/clean

clean-cache:
	@$(vm)/clean all
