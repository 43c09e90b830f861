"""The trials at every open (runtime/selftest.cpp) notice kernels that read zeros instead of one of their inputs or
misread the codes of a cache, and any kernel with a body of its own that does nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("tests/runtime/blind_selftest.cpp", "runtime/selftest.cpp", "runtime/platform.cpp", "kernels/dispatch.cpp",
           "kernels/view.cpp", "kernels/isa/scalar.cpp", "kernels/isa/portable.cpp")


def test_trials_need_every_input_of_the_products(tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    require(compiler is not None, "no C++ compiler")
    program = tmp_path / "blind_selftest"
    contracts = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "kernels/contract").glob("*.cpp"))
    subprocess.run(
        [str(compiler), "-std=c++17", "-O1", "-fno-exceptions", "-fno-rtti", "-DEDGEC_NO_AVX2", "-DEDGEC_NO_AVX512",
         "-DEDGEC_NO_NEON", "-Iruntime", "-Ikernels", "-Iruntime/include", *SOURCES, *contracts, "-lpthread", "-o",
         str(program)],
        cwd=ROOT, check=True,
    )
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = (ROOT / "kernels" / "kernels.def").read_text()
    own = re.findall(r"^(?:KERNEL|PREPARED|DOTTED|LEVELED|NARROW)\(", rows, re.MULTILINE)
    assert len(own) > 20
    assert f"{22 + len(own)} passed, 0 failed" in done.stdout
