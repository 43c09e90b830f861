#!/bin/sh
# Emulators and fuzzers for tests: setup_test_tools.sh PYTHON [browser]
# - bochscpu-python (2 MB) into PYTHON's environment: the CPU of Bochs, for AVX-512 (run_in_bochs.py). Here and not
#   among the project's extras, for it has no wheels for every system that has ours; what it depends on is not used.
# - atheris into PYTHON's environment where it has a wheel: fuzzing of importers guided by coverage (make fuzz).
# - qemu-aarch64, node, sshd, llvm-objdump, with `browser` Chromium (80 MB) and javac, and clang with its runtime libraries (libFuzzer) with apt-get where that is allowed.
# Without them those tests skip, and under CI (EDGEC_REQUIRE_ASSETS=1) fail; this script fails there without what apt-get gives.
set -eu
browser=${2:-}

if [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then
    "$1" -m pip install --quiet --no-deps --only-binary :all: bochscpu-python==0.4.0 ||
        echo "note: without bochscpu-python the AVX-512 kernels are tested only on a CPU that has AVX-512" >&2
fi

"$1" -m pip install --quiet --no-deps --only-binary :all: atheris==3.0.0 ||
    echo "note: without atheris \`make fuzz\` does not fuzz the importers" >&2

# Of clang's own version; of the distribution's where there is no clang yet, which is the same.
fuzzer_runtime() {
    version=$(clang -dumpversion 2>/dev/null | cut -d. -f1)
    [ -n "$version" ] || version=$(apt-cache depends clang 2>/dev/null | sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p')
    echo "libclang-rt-$version-dev"
}

has_libfuzzer() {
    echo 'int LLVMFuzzerTestOneInput(const unsigned char *data, unsigned long n) { return data && n > 9 ? 0 : 0; }' |
        clang -fsanitize=fuzzer -x c - -o /dev/null 2>/dev/null
}

missing() {
    command -v qemu-aarch64 >/dev/null || command -v qemu-aarch64-static >/dev/null || echo qemu-user
    command -v node >/dev/null || echo nodejs
    [ "$browser" = "" ] || command -v javac >/dev/null || echo default-jdk-headless
    command -v sshd >/dev/null || [ -x /usr/sbin/sshd ] || echo openssh-server
    command -v ssh >/dev/null || echo openssh-client
    [ "$browser" = "" ] || command -v chromium >/dev/null || echo chromium
    command -v llvm-objdump >/dev/null || echo llvm
    has_libfuzzer || echo clang "$(fuzzer_runtime)"
}

wanted=$(missing)
[ -n "$wanted" ] || exit 0
if command -v apt-get >/dev/null; then
    as_root=
    if [ "$(id -u)" != 0 ]; then
        # -n: never wait for a password in the middle of `make test`.
        command -v sudo >/dev/null && sudo -n true 2>/dev/null && as_root="sudo -n"
    fi
    if [ "$(id -u)" = 0 ] || [ -n "$as_root" ]; then
        echo "installing" $wanted >&2
        # shellcheck disable=SC2086  # one word per package
        { $as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq \
            --no-install-recommends $wanted; } >&2 || true
    fi
fi
wanted=$(missing)
[ -n "$wanted" ] || exit 0
if [ "${EDGEC_REQUIRE_ASSETS:-0}" = 1 ]; then
    echo "error: packages" $wanted "are missing and could not be installed" >&2
    exit 2
fi
echo "note: without the packages" $wanted "the tests that need them are skipped" >&2
