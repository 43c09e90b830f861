"""What the shared library is made of: its size, what it exports, what it needs, how it is aligned (ELF hosts)."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from edgec.native.library import library_path
from edgec.targets import toolchain
from edgec.targets.devices import device

HEADER = Path(__file__).resolve().parents[2] / "runtime" / "include" / "edgec.h"
LIMIT = 624 * 1024

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


# What a level may not have although the next one does: docs/kernels.md, kernels/dispatch.cpp. Registers first, then
# names: of VBMI and its kin, of VNNI, and of bfloat16 and tiles.
EVEX = re.compile(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|%k[0-7]")
VBMI = re.compile(r"vperm[it]?2?b$|vpermb$|vpmultishiftqb|vpdp(bu|ws)sds?|vpcompress[bw]|vpexpand[bw]|vpsh[lr]dv?[wdq]|"
                  r"vpopcnt[bwdq]|vpshufbitqmb")
AMX = re.compile(r"t(ile|dp|load|store)|ldtilecfg|sttilecfg|vdpbf16ps|vcvtne2?ps2?bf16|vcvtneps2bf16")
FP16 = re.compile(r"v\w+(ph|sh)$(?<!ph2ps)(?<!cvtps2ph)|vcvtph2(?!ps$)|vcvtsh|vmovw$")  # but those of F16C
BASELINE = re.compile(r"v|(andn|bextr|bls[ir]|blsmsk|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx)[lq]?$")
# SSE3 to SSE4.2, POPCNT and others that x86-64-v1 lacks. No tzcnt: older CPUs take it for bsf, and compilers know.
NEWER = re.compile(
    r"(popcnt|lzcnt|movbe|crc32)[bwlq]?$|adcx|adox|rdrand|rdseed|aes(enc|dec|imc|keygen)|pclmul|sha(1|256)|gf2p8|"
    r"addsubp|h(add|sub)p|lddqu|mov(d|sl|sh)dup|fisttp|ph(add|sub|minpos)|pmaddubsw|pmulhrsw|pshufb|psign[bwd]|pabs[bwd]|"
    r"palignr|round[ps][sd]|dpp[sd]|p?blend|insertps|extractps|p(insr|extr)[bdq]|pmov[sz]x|ptest|pmul(ld|dq)|"
    r"pcmp(eqq|gtq|[ei]str)|packusdw|p(max|min)(s[bd]|u[wd])$|mpsadbw|movntdqa")


def _level(function: str) -> str:
    """The instruction set that a function of the library was compiled for."""
    for level in ("avx512::amx", "avx512::vbmi", "avx512", "avx2"):
        if f"edgec::{level}::" in function:
            return level
    return ""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 instructions")
def test_vector_instructions_only_where_the_cpu_was_asked(require: Callable[[bool, str], None]) -> None:
    """Outside the kernels of avx2 and avx512 nothing may need more than the baseline: no VEX or EVEX encoding (all
    their names begin with v), none of BMI and none of SSE3 and later, so that one build starts on every CPU. And no
    level has what only a higher one asks the CPU for."""
    require(shutil.which("objdump") is not None, "no objdump")
    code = subprocess.run(["objdump", "-d", "-C", "--no-show-raw-insn", str(library_path())], check=True,
                          capture_output=True, text=True).stdout
    vectors: Counter[str] = Counter()
    wrong, function = set(), ""
    for line in code.splitlines():
        if line.endswith(">:"):
            function = line
        elif "\t" in line:
            name, _, operands = line.split("\t")[1].partition(" ")
            level = _level(function)
            kinds = {"BASELINE": bool(BASELINE.match(name)), "NEWER": bool(NEWER.match(name)),
                     "EVEX": bool(EVEX.search(operands)), "VBMI": bool(VBMI.match(name)),
                     "AMX": bool(AMX.match(name)), "FP16": bool(FP16.match(name))}
            avx2 = ("BASELINE", "NEWER")
            allowed = {"": (), "avx2": avx2, "avx512": (*avx2, "EVEX"), "avx512::vbmi": (*avx2, "EVEX", "VBMI"),
                       "avx512::amx": (*avx2, "EVEX", "VBMI", "AMX")}[level]
            wrong |= {(kind, name, function) for kind, found in kinds.items() if found and kind not in allowed}
            vectors.update((level, kind) for kind, found in kinds.items() if found)
    require("edgec::scalar::linear(" in code, "the library has no symbols")
    assert wrong == set()
    # The search itself finds what it looks for.
    assert vectors["avx2", "BASELINE"] > 1000
    assert vectors["avx512", "EVEX"] > 1000
    assert vectors["avx512::vbmi", "VBMI"] > 10
    assert vectors["avx512::amx", "AMX"] > 10


def test_arm_needs_only_the_baseline(tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    """Armv8.0: no dot products but those of kernels/isa/neondot.cpp, no matrix products, half-precision arithmetic or
    SVE. llvm-objdump, not told of any extension, shows them as unknown."""
    require(shutil.which("llvm-objdump") is not None, "no llvm-objdump (apt-get install llvm)")
    require(importlib.util.find_spec("ziglang") is not None, "ziglang is not installed (pip install 'edgec[cross]')")

    def unknown(path: Path) -> tuple[list[tuple[int, int]], int]:
        code = subprocess.run(["llvm-objdump", "-d", str(path)], check=True, capture_output=True, text=True).stdout
        found = re.findall(r"^ *(\w+): ((?:\w\w ){4}) *\t<unknown>$", code, re.MULTILINE)
        assert len(found) == code.count("<unknown>")
        words = [(int(at, 16), int.from_bytes(bytes.fromhex(word), "little")) for at, word in found]
        return words, code.count("fmla")

    def is_sdot(word: int) -> bool:  # by a four of bytes, as neondot.cpp uses it
        return word & 0xBFC0F400 == 0x0F80E000

    # One instruction of each extension: sdot, smmla, fadd v.8h, add z.s.
    words = (0x4E829420, 0x4E82A420, 0x4E421420, 0x04A20020)
    source, twin = tmp_path / "twin.c", tmp_path / "twin.o"
    source.write_text("void f(void) { __asm__(\"" + "".join(f".inst {w:#x}\\n" for w in words) + "\"); }")
    subprocess.run([sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu", "-c", str(source), "-o",
                    str(twin)], check=True)
    assert [word for _, word in unknown(twin)[0]] == list(words)
    assert not any(map(is_sdot, words))
    found, products = unknown(toolchain.cross_library(device("aarch64-linux")))
    assert [hex(word) for _, word in found if not is_sdot(word)] == []
    # The library has no symbols, but one file's functions lie together. That nothing else reaches them is what a CPU
    # without dot products shows (test_cpus.py).
    assert len(found) > 30
    assert found[-1][0] - found[0][0] < 8192
    assert products > 100


def test_the_searches_know_what_they_look_for() -> None:
    newer = ("popcnt", "popcntq", "pshufb", "pmulld", "roundps", "crc32q", "lzcnt", "movbe", "aesenc", "adcx",
             "sha256rnds2", "pminud", "pmaxsd", "haddps", "ptest", "pextrd", "pinsrb", "blendvps", "pblendw")
    plain = ("pshufd", "pshufw", "pmaxsw", "pminub", "pextrw", "pinsrw", "tzcnt", "shl", "addps", "pmuludq", "bsf",
             "packuswb", "movdqa")
    assert [name for name in newer if not NEWER.match(name)] == []
    assert [name for name in plain if NEWER.match(name)] == []
    assert [name for name in ("vaddph", "vfmadd231sh", "vcvtph2w", "vmovw") if not FP16.match(name)] == []
    assert [name for name in ("vcvtph2ps", "vcvtps2ph", "vaddps", "vmovss", "vpshufb") if FP16.match(name)] == []
