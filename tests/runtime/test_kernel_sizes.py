"""edgec/native/kernel_sizes.py: on objects whose answer is known, and its table of the library that the tests use."""

from __future__ import annotations

import ast
import importlib.util
import json
import platform
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from edgec.native.library import library_path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {name: kind for kind, name in re.findall(r"^(KERNEL|PREPARED|DOTTED|LEVELED|NARROW|PORTABLE)\((\w+),",
                                                   (ROOT / "kernels" / "kernels.def").read_text(), re.MULTILINE)}
SOURCE = """
namespace edgec {
struct Args;
#define BODY(name) void name(const Args &, long, long, void *)
#define RULES(name) const char *name##_check(const Args &) { return ""; } \\
    long name##_tiles(const Args &) { return 1; } long name##_cost(const Args &) { return 2; } \\
    long name##_scratch(const Args &) { return 3; }
ALL
namespace scalar {
volatile int sink;
const int table[100] = {1, 2, 3};
__attribute__((noinline)) void helper(int i) { sink = i + 1; }
__attribute__((noinline)) void both(int i) { sink = i * 7; helper(i); }
__attribute__((noinline)) void mine(int i) { sink = table[i]; }
BODY(linear) { both(1); mine(int(sink)); }
BODY(where) { both(2); }
BODY(copy) { helper(3); }
}
}
"""


@pytest.fixture(autouse=True)
def _linux(require: Callable[[bool, str], None]) -> None:
    require(sys.platform.startswith("linux") and platform.architecture()[0] == "64bit", "reads 64-bit ELF files")


def run(*objects: Path) -> dict[str, Any]:
    """The table. Where it has no sizes, standard error says so too."""
    table = objects[0].with_name("table.json")
    done = subprocess.run([sys.executable, "edgec/native/kernel_sizes.py", table, *objects], cwd=ROOT,
                          capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(table.read_text())
    assert ("kernels" in found) != ("missing" in found)
    assert done.stdout == ""
    assert str(found.get("missing", "")) in done.stderr
    assert (done.stderr == "") == ("kernels" in found)
    return found


def build(folder: Path, source: str, *flags: str) -> Path:
    (folder / "kernels.cpp").write_text(source)
    subprocess.run(["c++", "-O1", "-fPIC", "-ffunction-sections", "-fdata-sections", *flags, "-c",
                    str(folder / "kernels.cpp"), "-o", str(folder / "kernels.o")], check=True)
    return folder / "kernels.o"


def test_what_a_kernel_reaches(tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    require(shutil.which("c++") is not None and shutil.which("nm") is not None, "no C++ compiler, or no nm")
    every = " ".join(f"RULES({name})" for name in KERNELS)
    others = " ".join(f"BODY({name}) {{}}" for name in KERNELS if name not in ("linear", "where", "copy"))
    built = build(tmp_path, SOURCE.replace("ALL", every + f" namespace avx2 {{ {others} }}"),
                  "-fno-asynchronous-unwind-tables")
    listed = subprocess.run(["nm", "-C", "--print-size", "--radix=d", str(built)], capture_output=True, text=True,
                            check=True).stdout
    size = {name: int(n) for n, name in re.findall(r"^\d+ (\d+) \w (?:edgec::)(\S+?)(?:\(.*)?$", listed, re.MULTILINE)}
    scalar = {name.removeprefix("scalar::"): n for name, n in size.items() if name.startswith("scalar::")}
    found = run(built)
    kernels = found["kernels"]
    # Besides code, `sink`, `table` and the pointers by which code finds them count.
    assert scalar["table"] == 400
    helpers = scalar["helper"] + scalar["sink"]
    wanted = {"linear": scalar["linear"] + scalar["both"] + scalar["mine"] + scalar["table"] + helpers,
              "where": scalar["where"] + scalar["both"] + helpers, "copy": scalar["copy"] + helpers}
    assert {name: kernels[name]["isa"] for name in wanted} == {name: {"scalar": n} for name, n in wanted.items()}
    rules = {name: sum(size[f"{name}_{rule}"] for rule in ("check", "tiles", "cost", "scratch")) for name in wanted}
    assert {name: kernels[name]["checks"] for name in wanted} == rules
    alone = {"linear": scalar["linear"] + scalar["mine"] + scalar["table"], "where": scalar["where"],
             "copy": scalar["copy"]}
    assert {name: kernels[name]["alone"] for name in wanted} == {name: n + rules[name] for name, n in alone.items()}
    assert found["shared"] == scalar["both"] + helpers
    assert kernels["rope"]["isa"].keys() == {"avx2"}


def test_the_library_s_table() -> None:
    found = json.loads(library_path().with_name("kernel_sizes.json").read_text())
    sections = subprocess.run(["readelf", "-SW", str(library_path())], capture_output=True, text=True,
                              check=True).stdout
    text, constants = (int(re.search(rf" \.{name} +PROGBITS +\w+ \w+ (\w+)", sections)[1], 16)  # type: ignore[index]
                       for name in ("text", "rodata"))
    total = found["shared"] + sum(row["alone"] for row in found["kernels"].values())
    assert 0.5 * text < total < text + constants
    for name, kind in KERNELS.items():
        row = found["kernels"][name]
        if platform.machine() in ("x86_64", "AMD64"):
            wanted = {"PORTABLE": {"portable"}, "NARROW": {"scalar", "avx2"}, "KERNEL": {"scalar", "avx2", "avx512"},
                      "PREPARED": {"scalar", "avx2", "avx512"},
                      "DOTTED": {"scalar", "avx2", "avx512", "avx512vbmi"},
                      "LEVELED": {"scalar", "avx2", "avx512", "avx512vbmi", "amx"}}[kind]
            assert set(row["isa"]) == wanted, name
        assert min(row["isa"].values()) > 16, name
        assert 0 < row["alone"] <= sum(row["isa"].values()) + row["checks"], name


def test_objects_that_tell_nothing(tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    require(shutil.which("c++") is not None, "no C++ compiler")
    assert "lack symbols of" in run(build(tmp_path, "int f() { return 1; }"))["missing"]
    (tmp_path / "foreign.o").write_bytes(b"\xcf\xfa\xed\xfe" + bytes(100))
    assert "ELF" in run(tmp_path / "foreign.o")["missing"]


def test_damaged_objects(tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    """Cut anywhere, any word of the headers and tables changed: a table or a reason, and the build goes on."""
    require(shutil.which("c++") is not None, "no C++ compiler")
    rules, bodies = (" ".join(f"{kind}({name}) {end}" for name in KERNELS)
                     for kind, end in (("RULES", ""), ("BODY", "{}")))
    whole = build(tmp_path, f"{SOURCE.partition('ALL')[0]} {rules} namespace avx2 {{ {bodies} }} }}").read_bytes()
    (table,), (count,) = struct.unpack_from("<Q", whole, 40), struct.unpack_from("<H", whole, 60)
    headers = [table + 64 * i for i in range(count)]
    random = Random(7)
    damaged = tmp_path / "damaged.o"
    outcomes = Counter[str]()
    objects = load()
    for n in range(120):
        data = bytearray(whole)
        if n % 4 == 0:
            del data[random.randrange(len(data)) :]
        elif n % 4 == 1:
            struct.pack_into("<H", data, random.randrange(40, 62), random.choice([0, 1, 255, 0xFFFF]))
        else:
            at = random.choice(headers) + 4 * random.randrange(16)
            struct.pack_into("<I", data, at, random.choice([0, 1, 2, 4, 7, 0xFFFFFFFF, random.randrange(1 << 32)]))
        damaged.write_bytes(data)
        try:
            objects.sizes(objects.Objects([damaged]), list(KERNELS))
            outcomes["sizes"] += 1
        except objects.UnreadableError as e:
            outcomes["cannot be read" if "cannot be read" in str(e) else "other"] += 1
    assert min(outcomes["sizes"], outcomes["cannot be read"]) > 10, outcomes
    damaged.write_bytes(whole[: len(whole) // 2])
    assert f"{damaged} cannot be read" in run(damaged)["missing"]
    assert "cannot be read" in run(tmp_path / "none.o")["missing"]


def load() -> Any:
    spec = importlib.util.spec_from_file_location("kernel_sizes", ROOT / "edgec" / "native" / "kernel_sizes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_never_fails_and_leaves_no_old_table(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    table.mkdir()  # cannot be written
    done = subprocess.run([sys.executable, "edgec/native/kernel_sizes.py", table, table], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0
    assert "no table.json" in done.stderr
    assert list(tmp_path.iterdir()) == [table]


def test_python_3_9_reads_it() -> None:
    ast.parse((ROOT / "edgec" / "native" / "kernel_sizes.py").read_text(), feature_version=(3, 9))
    assert "find_package(Python3 3.9 " in (ROOT / "CMakeLists.txt").read_text()
