"""What the shared library is made of: its size, what it exports, what it needs, how it is aligned (ELF hosts)."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgec.native.library import library_path

HEADER = Path(__file__).resolve().parents[2] / "runtime" / "include" / "edgec.h"
LIMIT = 400 * 1024

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF files")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stripped copy of the library the tests use."""
    copy = tmp_path_factory.mktemp("library") / "libedgec.so"
    shutil.copy(library_path(), copy)
    subprocess.run(["strip", "--strip-all", str(copy)], check=True)
    return copy


def symbols(library: Path, *flags: str) -> list[str]:
    output = subprocess.run(["nm", "-D", *flags, str(library)], check=True, capture_output=True, text=True).stdout
    return [line.split()[-1].split("@")[0] for line in output.splitlines()]


@pytest.fixture(autouse=True)
def _tools(require: Callable[[bool, str], None]) -> None:
    for tool in ("nm", "strip", "readelf"):
        require(shutil.which(tool) is not None, f"no {tool}")


def test_size(library: Path) -> None:
    assert library.stat().st_size <= LIMIT


def test_exports_are_the_header(library: Path) -> None:
    declared = re.findall(r"^EDGEC_API [^;]*?\b(edgec_\w+)\(", HEADER.read_text(), re.MULTILINE)
    assert len(declared) == 29
    assert sorted(symbols(library, "--defined-only")) == sorted(declared)


def test_needs_only_the_c_library(library: Path) -> None:
    needed = re.findall(
        r"\(NEEDED\).*\[(.*?)\]", subprocess.run(["readelf", "-d", str(library)], check=True, capture_output=True,
                                                 text=True).stdout)
    assert needed, "no dynamic section was read"
    assert {name.split(".so")[0].split("-")[0] for name in needed} <= {"libc", "libm", "libpthread", "ld"}


def test_no_cpp_runtime_and_no_way_out(library: Path) -> None:
    undefined = symbols(library, "--undefined-only")
    assert "memcpy" in undefined
    # _Z: anything of C++; __cxa_finalize belongs to C. A library neither ends the process nor prints.
    banned = re.compile(r"_Z|__cxa_(?!finalize)|__gxx|_Unwind|abort$|exit$|__assert|puts$|^v?f?printf$")
    assert [name for name in undefined if banned.match(name)] == []


def test_no_exception_tables(library: Path) -> None:
    sections = subprocess.run(["readelf", "-SW", str(library)], check=True, capture_output=True, text=True).stdout
    assert ".text" in sections
    assert ".gcc_except_table" not in sections


def test_pages(library: Path) -> None:
    """16 KiB where Arm systems map such; Linux on x86-64 has pages of 4 KiB, and the file is smaller for it."""
    page = 4096 if platform.machine() in ("x86_64", "AMD64") else 16384
    output = subprocess.run(["readelf", "-lW", str(library)], check=True, capture_output=True, text=True).stdout
    alignments = [int(line.split()[-1], 16) for line in output.splitlines() if line.strip().startswith("LOAD")]
    assert alignments
    assert min(alignments) >= page
    assert not re.search(r"GNU_STACK.*RWE", output)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 instructions")
def test_vector_instructions_only_where_the_cpu_was_asked(require: Callable[[bool, str], None]) -> None:
    """Outside the kernels of avx2 and avx512 nothing may need more than the baseline: no VEX or EVEX encoding (all
    their names begin with v) and none of BMI, so that one build starts on every CPU."""
    require(shutil.which("objdump") is not None, "no objdump")
    code = subprocess.run(["objdump", "-d", "-C", "--no-show-raw-insn", str(library_path())], check=True,
                          capture_output=True, text=True).stdout
    beyond = re.compile(r"v|(andn|bextr|bls[ir]|blsmsk|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx)[lq]?$")
    vectors, wrong, function = {"avx2": 0, "avx512": 0}, set(), ""
    for line in code.splitlines():
        if line.endswith(">:"):
            function = line
        elif "\t" in line and beyond.match(line.split("\t")[1].split(" ")[0]):
            isa = next((name for name in vectors if f"edgec::{name}::" in function), None)
            if isa:
                vectors[isa] += 1
            else:
                wrong.add(function)
    require("edgec::scalar::linear(" in code, "the library has no symbols")
    assert wrong == set()
    assert min(vectors.values()) > 1000  # the search itself finds what it looks for
