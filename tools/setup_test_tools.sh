#!/bin/sh
# Test tools that PyPI does not carry: qemu-aarch64, which runs the Arm builds of the kernel tests.
# Installs it with apt-get where that is allowed. Without it those tests skip, and under CI
# (EDGEC_REQUIRE_ASSETS=1) this script fails, because a skip would be a failure there.
set -eu

if command -v qemu-aarch64 >/dev/null || command -v qemu-aarch64-static >/dev/null; then
    exit 0
fi
if command -v apt-get >/dev/null; then
    as_root=
    if [ "$(id -u)" != 0 ]; then
        # -n: never wait for a password in the middle of `make test`.
        command -v sudo >/dev/null && sudo -n true 2>/dev/null && as_root="sudo -n"
    fi
    if [ "$(id -u)" = 0 ] || [ -n "$as_root" ]; then
        echo "installing qemu-user" >&2
        { $as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq \
            --no-install-recommends qemu-user; } >&2 || true
    fi
fi
if ! command -v qemu-aarch64 >/dev/null; then
    if [ "${EDGEC_REQUIRE_ASSETS:-0}" = 1 ]; then
        echo "error: qemu-aarch64 is missing and could not be installed: install the package qemu-user" >&2
        exit 2
    fi
    echo "note: without qemu-aarch64 (package qemu-user) the Arm kernel tests are skipped" >&2
fi
