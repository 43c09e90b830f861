"""Builds instrumented programs in folders below build/ that are kept, so that only the first build is slow.

`sanitize`: the machine's compiler, AddressSanitizer and UBSan. `thread`: ThreadSanitizer. `libfuzzer`: clang, the first
two and coverage.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = {"sanitize": "address,undefined", "thread": "thread", "libfuzzer": "address,undefined,fuzzer-no-link"}


def has_libfuzzer() -> bool:
    """Whether clang and its runtime libraries are there."""
    if not shutil.which("clang++"):
        return False
    link = ["clang++", "-fsanitize=fuzzer,address", "-x", "c++", "-", "-o", os.devnull]
    source = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char *, unsigned long) { return 0; }'
    return subprocess.run(link, input=source, capture_output=True, text=True, check=False).returncode == 0


def build(kind: str, programs: Sequence[str]) -> Path:
    """The folder of `programs` (targets of CMakeLists.txt), built as SANITIZERS[kind] says. Raises RuntimeError."""
    folder = ROOT / "build" / kind
    # Little optimization: the build is most of the time.
    options = [f"-DEDGEC_SANITIZE={SANITIZERS[kind]}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
               "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1"]
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # tests run in several processes
        configure = ["cmake", "-S", str(ROOT), "-B", str(folder), *options]
        if not (folder / "CMakeCache.txt").is_file():
            if kind == "libfuzzer":
                configure += ["-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++"]
            if shutil.which("ninja"):
                configure += ["-G", "Ninja"]
        for command in (configure, ["cmake", "--build", str(folder), "--parallel", jobs, "--target", *programs]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(done.stdout[-4000:] + done.stderr[-4000:])
    return folder
