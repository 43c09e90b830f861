"""Runtime libraries for other machines: flags, cache, and what the results are."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from edgec.errors import EdgecError
from edgec.targets import toolchain
from edgec.targets.binary import read_binary
from edgec.targets.devices import device

ROOT = Path(__file__).resolve().parents[2]


def test_flags_are_those_of_cmake() -> None:
    """Two lists of flags would drift apart unnoticed, and a cross-built library would be another one."""
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    code = "\n".join(line.partition("#")[0] for line in cmake.splitlines())
    given_by_cmake = {"-std=c++17"}
    for flag in set(toolchain.COMPILE_FLAGS) - given_by_cmake:
        assert flag in code, f"{flag} is not in CMakeLists.txt"
    wanted = set(re.findall(r"-f(?:no-|visibility|function|data)[\w=-]*", code)) - {
        "-fno-omit-frame-pointer", "-fno-sanitize-recover=all",
        # Said by CMakeLists.txt to be gcc's, for size.
        "-fno-tree-ch", "-fno-align-functions", "-fno-align-jumps", "-fno-align-labels"}
    assert wanted <= set(toolchain.COMPILE_FLAGS), "CMakeLists.txt has a flag that cross builds lack"
    assert "target_include_directories(edgec_flags INTERFACE " + " ".join(toolchain.INCLUDES) + ")" in code


def test_commands_are_lists_without_machine_flags() -> None:
    command = toolchain.build_command(device("apple-m2"), ROOT, Path("out"))
    assert all(isinstance(word, str) for word in command)
    assert not [word for word in command if re.fullmatch(r"-m(?!$).+", word)]
    assert "-DEDGEC_NO_NEON" not in command
    scalar = toolchain.build_command(device("generic-c"), ROOT, Path("out"))
    assert {"-DEDGEC_NO_AVX2", "-DEDGEC_NO_AVX512", "-DEDGEC_NO_NEON", "-DEDGEC_NO_WASM"} <= set(scalar)


def test_webassembly_has_its_vectors_in_every_function() -> None:
    command = toolchain.build_command(device("wasm32"), ROOT, Path("out"))
    assert "-msimd128" in command
    assert "-fPIC" not in command
    assert "-DEDGEC_NO_WASM" not in command


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, require: Callable[[bool, str], None]) -> Path:
    require(importlib.util.find_spec("ziglang") is not None, "ziglang is not installed")
    return tmp_path_factory.mktemp("cache")


def build(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEC_CACHE", str(cache))
    return toolchain.cross_library(device(name))


@pytest.mark.parametrize(("name", "found"), [
    ("apple-m2", ("mach-o", "aarch64")),
    pytest.param("aarch64-linux", ("elf", "aarch64"), marks=pytest.mark.slow),
    pytest.param("generic-c", None, marks=pytest.mark.slow),
])
def test_cross_builds(
    name: str, found: tuple[str, str] | None, cache: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = build(name, cache, monkeypatch)
    binary = read_binary(library)
    row = device(name)
    assert (binary.format, binary.arch) == (found or ("elf" if row.os == "linux" else "mach-o", row.arch))
    assert binary.kind == "shared"
    shown = {word for word in binary.exports if not word.startswith("_")}
    assert shown, "nothing is exported"
    assert all(word.startswith("edgec_") for word in shown), sorted(shown)[:5]
    declared = set(re.findall(r"\b(edgec_\w+)\(", (ROOT / "runtime" / "include" / "edgec.h").read_text()))
    assert declared - {"edgec_last_error"} <= binary.exports | {"edgec_last_error"}
    # The second time it comes from the cache: the same file, not written again, and nothing is left of the build.
    before = library.stat().st_mtime_ns
    assert toolchain.cross_library(row) == library
    assert library.stat().st_mtime_ns == before
    assert [p.name for p in library.parent.iterdir()] == [library.name]


def test_a_wrong_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "libedgec.so"
    path.write_bytes(toolchain.runtime_library(device("host")).read_bytes())
    with pytest.raises(EdgecError) as caught:
        toolchain.check_library(path, device("apple-m2"))
    assert caught.value.code == "E0007"


def test_a_failing_compiler_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "cc"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo fake 1; exit 0; }\necho "a.cpp: error: no" >&2\nexit 1\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EdgecError) as caught:
        toolchain.cross_library(device("generic-c"))
    assert caught.value.code == "E0007"
    assert "a.cpp: error: no" in str(caught.value)


def test_the_cache_key_follows_sources_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "src"
    for folder in ("kernels", "runtime"):
        (root / folder).mkdir(parents=True)
    (root / "kernels" / "a.cpp").write_text("int a;")
    (root / "runtime" / "a.h").write_text("")
    row = device("generic-c")
    first = toolchain._cache_key(row, root)
    assert toolchain._cache_key(row, root) == first
    (root / "runtime" / "a.h").write_text("int b;")
    second = toolchain._cache_key(row, root)
    monkeypatch.setattr(toolchain, "COMPILE_FLAGS", (*toolchain.COMPILE_FLAGS, "-g"))
    assert len({first, second, toolchain._cache_key(row, root)}) == 3


def test_programs_are_linked_whole() -> None:
    command = toolchain.program_command(device("aarch64-linux"), ROOT, Path("out"))
    assert command[command.index("-target") + 1] == "aarch64-linux-musl"
    assert "-static" in command
    assert "-shared" not in command
    assert str(ROOT / toolchain.BENCH) in command
    # With musl, this machine's own architecture takes ziglang too: the system's compiler has another C library.
    assert "ziglang" in toolchain.program_command(device("generic-c"), ROOT, Path("out"))
    assert "-mexec-model=reactor" not in toolchain.program_command(device("wasm32"), ROOT, Path("out"))
    with pytest.raises(EdgecError) as caught:
        toolchain.program_command(device("apple-a17"), ROOT, Path("out"))
    assert caught.value.code == "E0007"
    assert "Xcode" in caught.value.hint
    phone = toolchain.program_command(device("pixel-8"), ROOT, Path("out"))
    assert phone == command
    library = toolchain._cache_key(device("wasm32"), ROOT)
    assert library != toolchain._cache_key(device("wasm32"), ROOT, toolchain.program_command)
