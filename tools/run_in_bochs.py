"""Runs the kernel tests for instruction sets that this CPU lacks: each kernel on the CPU that Bochs emulates.

    python -m pip install --no-deps bochscpu-python==0.4.0
    cmake --build build --target edgec_emulated_tests
    python tools/run_in_bochs.py build/libedgec_emulated_tests.so --isa avx512vbmi --filter linear_bits --case 3x64

Arguments after the library are those of the kernel tests (tests/kernels/main.cpp). Only the kernels are emulated, at
some ten million instructions a second; references and comparisons run here, so most kernels take seconds. x86-64 Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

# The plainest CPU of Bochs that has a level: an instruction of a higher level in a kernel ends the run.
MODELS = {"scalar": "core2_penryn_t9600", "avx2": "corei7_haswell_4770", "avx512": "corei7_skylake_x",
          "avx512vbmi": "corei7_icelake_u"}
SOURCE = Path(__file__).with_name("bochs_call.c")


def bochs_library() -> Path | None:
    """The shared library of bochscpu-python, or None where that is not installed."""
    spec = importlib.util.find_spec("bochscpu")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(next(iter(spec.submodule_search_locations))).glob("_bochscpu*.so"), None)


def start(isa: str, folder: Path) -> ctypes.CDLL:
    """Compiles bochs_call.c in `folder` and starts a CPU with the level `isa`. SystemExit says what is wrong."""
    bochs = bochs_library()
    if bochs is None:
        raise SystemExit("run_in_bochs: bochscpu-python is missing: pip install --no-deps bochscpu-python==0.4.0")
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SystemExit("run_in_bochs: no C compiler: install gcc or clang, or set CC")
    made = folder / "bochs_call.so"
    flags = ["-std=gnu99", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-fPIC", "-shared"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(made), "-ldl"], check=True)
    calls = ctypes.CDLL(str(made), mode=ctypes.RTLD_GLOBAL)
    calls.bochs_start.restype = ctypes.c_char_p
    wrong = calls.bochs_start(os.fsencode(bochs), MODELS[isa].encode())
    if wrong is not None:
        raise SystemExit(f"run_in_bochs: {bochs}: {wrong.decode()}")
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=600, help="seconds after which the run ends with 124")
    parser.add_argument("program", type=Path, help="the kernel tests as a shared library")
    parser.add_argument("--isa", choices=MODELS, default="avx512vbmi")
    parser.add_argument("--model", choices=MODELS, help="the level of the emulated CPU; the one of --isa by default")
    options, rest = parser.parse_known_args()

    tests = ctypes.CDLL(str(options.program.resolve()))
    with tempfile.TemporaryDirectory() as folder:
        calls = start(options.model or options.isa, Path(folder))
    ctypes.c_void_p.in_dll(tests, "kt_emulate").value = ctypes.cast(calls.bochs_call, ctypes.c_void_p).value

    def too_long() -> None:
        ctypes.CDLL(None).fflush(None)
        print(f"run_in_bochs: not done after {options.limit:g} seconds", file=sys.stderr)
        os._exit(124)

    timer = threading.Timer(options.limit, too_long)
    timer.daemon = True
    timer.start()
    words = ["kernel_tests", "--isa", options.isa, *rest]
    code = tests.main(len(words), (ctypes.c_char_p * len(words))(*(os.fsencode(w) for w in words)))
    ctypes.CDLL(None).fflush(None)
    os._exit(code)  # Bochs has no way to be taken down


if __name__ == "__main__":
    main()
