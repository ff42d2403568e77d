# SPDX-License-Identifier: GPL-2.0 shellcheck shell=bash Common code of the scripts of tools/vm: where things are, how
# progress is shown, how a failure is explained. Meant to be sourced; the sourcing script has set `set -euo pipefail`.

GMEM_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
GMEM_VM=$GMEM_TOP/tools/vm
# Scripts that these scripts call find the cache by the exported name, as O is not passed on (see below).
export GMEM_CACHE=${O:-${GMEM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvm-gmem}}
mkdir -p "$GMEM_CACHE"
GMEM_CACHE=$(cd "$GMEM_CACHE" && pwd)
GMEM_LOGS=$GMEM_CACHE/logs
mkdir -p "$GMEM_LOGS"

# A make that calls these scripts exports its own variables; none of them may reach the kernel's makefiles.
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL O

say() { printf '%s\n' "$*"; }

die() {
	printf 'kvm-gmem: %s\n' "$*" >&2
	exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# GMEM_STEP is "[2/6] " while `check` runs its stages, so that nested steps say where they belong.
step() { say "${GMEM_STEP:-}$*"; }

# run_logged WHAT LOG COMMAND...: runs the command with its output in LOG, says every 30 seconds how far it is,
# and on failure shows the end of the log. A function run this way must not count on `set -e`.
run_logged() {
	local what=$1 log=$2 start=$SECONDS beat status=0 self=$BASHPID
	shift 2
	mkdir -p "$(dirname "$log")"
	step "$what ... log: $log"
	: >"$log"
	(
		trap 'kill "$nap" 2>/dev/null; exit 0' TERM
		while :; do
			sleep 30 &
			nap=$!
			wait "$nap"
			# After ^C nothing else would end this process.
			kill -0 "$self" 2>/dev/null || exit 0
			step "   $(minutes $((SECONDS - start))) $(tail -n 1 "$log" | sed 's,^@@gmem ,,' | tr -s ' \t' ' ' | cut -c 1-100)"
		done
	) &
	beat=$!
	"$@" >>"$log" 2>&1 </dev/null || status=$?
	kill "$beat" 2>/dev/null || true
	wait "$beat" 2>/dev/null || true
	if [ "$status" -ne 0 ]; then
		{
			printf '\n%s failed (exit status %d) after %s. The last lines of %s:\n\n' \
				"$what" "$status" "$(minutes $((SECONDS - start)))" "$log"
			tail -n 30 "$log" | cut -c 1-300 | sed 's/^/    /'
			printf '\n%s\n' "${GMEM_HINT:-Search the log for the first \"error\"; the same command again resumes where this one stopped.}"
		} >&2
		return "$status"
	fi
	[ $((SECONDS - start)) -lt 30 ] || step "   $(minutes $((SECONDS - start))) done"
}

# Only one process at a time may change what is in the cache; several may boot from it.
lock_cache() {
	local name=${1:-lock}
	[ -z "${GMEM_LOCKED:-}" ] || return 0
	exec 9>"$GMEM_CACHE/$name"
	if ! flock -n 9; then
		say "Waiting for another kvm-gmem command that uses $GMEM_CACHE ..."
		flock 9
	fi
	export GMEM_LOCKED=1
}

unlock_cache() {
	[ -n "${GMEM_LOCKED:-}" ] || return 0
	exec 9>&-
	unset GMEM_LOCKED
}

# The compilers. LLVM is what the kernel's make takes: a suffix (-19), a path ending in / or 1.
if [ -z "${LLVM:-}" ]; then
	if have clang-19; then LLVM=-19; else LLVM=1; fi
fi
case $LLVM in
*/) CLANG=${LLVM}clang OBJDUMP=${LLVM}llvm-objdump ;;
-*) CLANG=clang$LLVM OBJDUMP=llvm-objdump$LLVM ;;
*) CLANG=clang OBJDUMP=llvm-objdump ;;
esac
RUSTC=${RUSTC:-/usr/bin/rustc}
CARGO=${CARGO:-/usr/bin/cargo}
RUSTDOC=${RUSTDOC:-/usr/bin/rustdoc}
RUSTFMT=${RUSTFMT:-/usr/bin/rustfmt}
CLIPPY_DRIVER=${CLIPPY_DRIVER:-/usr/bin/clippy-driver}

find_bindgen() {
	if [ -x "$GMEM_CACHE/tools/bin/bindgen" ]; then
		printf '%s\n' "$GMEM_CACHE/tools/bin/bindgen"
	else
		command -v bindgen || true
	fi
}

find_libclang() {
	local dir
	case $LLVM in
	-*) dir=/usr/lib/llvm$LLVM/lib ;;
	*) dir=$(dirname "$(readlink -f "$(command -v "$CLANG")" 2>/dev/null || echo /usr/lib/llvm/bin/clang)")/../lib ;;
	esac
	printf '%s\n' "$dir"
}

# Whether the arm64 QEMU is older than 8.2: it mis-executes TLB invalidation at EL2 with VHE, and emulates no processor
# with FWB and TLB range operations.
qemu_is_old() {
	local version
	version=$(qemu-system-aarch64 --version | sed -n 's/^QEMU emulator version \([0-9]*\.[0-9]*\).*/\1/p')
	[ "$(printf '%s\n8.2\n' "$version" | sort -V | head -n 1)" != 8.2 ]
}

# Things a build depends on besides its sources.
toolchain_id() {
	"$CLANG" --version 2>/dev/null | head -n 1
	"$RUSTC" --version 2>/dev/null || true
	"$(find_bindgen)" --version 2>/dev/null || true
}

# kmake BUILD KARCH ARGS...: the kernel's make in one build directory, with the tools chosen above.
kmake() {
	local build=$1 karch=$2 jobs=${JOBS:-}
	shift 2
	[ -n "$jobs" ] || jobs=$(nproc)
	LIBCLANG_PATH=$(find_libclang) nice -n 10 make -C "$GMEM_TREE" O="$build" ARCH="$karch" LLVM="$LLVM" \
		RUSTC="$RUSTC" RUSTDOC="$RUSTDOC" RUSTFMT="$RUSTFMT" CLIPPY_DRIVER="$CLIPPY_DRIVER" \
		BINDGEN="$(find_bindgen)" KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' \
		KBUILD_BUILD_USER=gmem KBUILD_BUILD_HOST=gmem KBUILD_BUILD_VERSION=1 -j"$jobs" "$@"
}

# A flavour is one line of configs/flavours: name, architecture, configuration fragments.
flavour_line() { awk -v f="$1" '!/^#/ && $1 == f' "$GMEM_VM/configs/flavours"; }

flavour_arch() {
	local line
	line=$(flavour_line "$1")
	[ -n "$line" ] || die "there is no kernel flavour '$1'; configs/flavours lists: $(awk '!/^#/ && NF { printf "%s ", $1 }' "$GMEM_VM/configs/flavours")"
	# shellcheck disable=SC2086
	set -- $line
	printf '%s\n' "$2"
}

flavour_fragments() {
	local f
	# shellcheck disable=SC2046
	set -- $(flavour_line "$1")
	shift 2
	for f in "$@"; do printf '%s\n' "$GMEM_VM/configs/$f.config"; done
}

# The kernel says arm64 where the compilers say aarch64; people may say either.
canonical_arch() {
	case ${1:-x86_64} in
	x86 | x86_64 | amd64) echo x86_64 ;;
	arm64 | aarch64) echo arm64 ;;
	*) die "ARCH=$1 is not supported; use x86_64 or arm64" ;;
	esac
}

# The static busybox for machines of an architecture.
busybox_for() {
	local busybox
	case $1 in
	x86_64) busybox=$(command -v busybox) || true ;;
	arm64) busybox=$(ls "$GMEM_CACHE"/arm64/bin/busybox "$GMEM_CACHE"/arm64/usr/bin/busybox 2>/dev/null | head -n 1) || true ;;
	esac
	[ -n "$busybox" ] || die "there is no static busybox for $1; run 'make setup'"
	printf '%s\n' "$busybox"
}
