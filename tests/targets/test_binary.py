"""The header reader: real libraries, and damaged ones (an error, never an exception of another kind)."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgec.errors import EdgecError
from edgec.native.library import library_path
from edgec.targets.binary import read_binary, stripped_bytes
from edgec.targets.devices import host_arch, host_os


def macho(symbols: list[tuple[str, int]], cpu: int = 0x0100000C, kind: int = 6) -> bytes:
    """A Mach-O file of a header, one LC_SYMTAB, its symbols (name, type) and strings."""
    strings, entries = b"\0", b""
    for name, flags in symbols:
        entries += struct.pack("<IBBHQ", len(strings), flags, 1, 0, 0)
        strings += name.encode() + b"\0"
    at = 32 + 24
    head = struct.pack("<IIIIIIII", 0xFEEDFACF, cpu, 0, kind, 1, 24, 0, 0)
    load = struct.pack("<IIIIII", 2, 24, at, len(symbols), at + len(entries), len(strings))
    return head + load + entries + strings


def test_macho(tmp_path: Path) -> None:
    path = tmp_path / "lib.dylib"
    path.write_bytes(macho([("_edgec_open", 0x0F), ("_malloc", 0x01), ("_hidden", 0x0E)]))
    binary = read_binary(path)
    assert (binary.format, binary.arch, binary.kind) == ("mach-o", "aarch64", "shared")
    assert binary.exports == {"edgec_open"}
    path.write_bytes(macho([], cpu=7, kind=2))
    assert (read_binary(path).arch, read_binary(path).kind) == ("cpu 0x7", "other")


def wasm(exports: list[tuple[bytes, int]], version: int = 1) -> bytes:
    """A WebAssembly module of a custom section and an export section: (name, kind)."""
    body = bytes([len(exports)]) + b"".join(bytes([len(name)]) + name + bytes([kind, 0]) for name, kind in exports)
    return b"\0asm" + struct.pack("<I", version) + b"\0\x82\0xy" + b"\x07" + bytes([len(body)]) + body


def test_wasm(tmp_path: Path) -> None:
    path = tmp_path / "edgec.wasm"
    path.write_bytes(wasm([(b"edgec_open", 0), (b"memory", 2), (b"free", 0)]))
    binary = read_binary(path)
    assert (binary.format, binary.arch, binary.kind) == ("wasm", "wasm32", "shared")
    assert binary.exports == {"edgec_open", "free"}
    path.write_bytes(wasm([(b"_start", 0)]))
    assert read_binary(path).kind == "other"
    for damaged in (wasm([], version=2), wasm([])[:-1] + b"\x05", wasm([(b"a", 0)])[:-3],
                    b"\0asm\1\0\0\0\7\x80\x80\x80\x80\x80\0"):
        path.write_bytes(damaged)
        with pytest.raises(EdgecError, match="E0007"):
            read_binary(path)


@pytest.fixture(scope="module")
def elf(tmp_path_factory: pytest.TempPathFactory, require: Callable[[bool, str], None]) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    require(host_os() == "linux" and compiler is not None, "needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("elf")
    (folder / "a.c").write_text("int edgec_shown(void) { return 1; }\nstatic int not_shown;\nint *f(void);\n"
                                "int *g(void) { return f() + not_shown; }\n")
    subprocess.run([str(compiler), "-shared", "-fPIC", "-o", "lib.so", "a.c"], cwd=folder, check=True)
    return folder / "lib.so"


def test_elf(elf: Path) -> None:
    binary = read_binary(elf)
    assert (binary.format, binary.arch, binary.kind) == ("elf", host_arch(), "shared")
    assert {"edgec_shown", "g"} <= binary.exports
    assert not {"f", "not_shown"} & binary.exports


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"\x7fELF", b"MZ" + bytes(64), b"\xcf\xfa\xed\xfe", bytes(200)])
def test_foreign_and_short_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(EdgecError) as caught:
        read_binary(path)
    assert caught.value.code == "E0007"


def test_damage_never_escapes(elf: Path, tmp_path: Path) -> None:
    """Random bytes and truncations: an answer or EDGEC-E0007."""
    rng = random.Random(5)
    codes: list[str] = []
    for original in (elf.read_bytes(), macho([("_a", 0x0F), ("_b", 0x0F)]), wasm([(b"a", 0), (b"b", 0)])):
        for _ in range(300):
            data = bytearray(original)
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(min(len(data), 256))] = rng.randrange(256)
            data = data[: rng.randrange(len(data))] if rng.random() < 0.3 else data
            path = tmp_path / "damaged"
            path.write_bytes(data)
            try:
                read_binary(path)
            except EdgecError as e:
                codes.append(e.code)
    assert set(codes) == {"E0007"}
    assert len(codes) > 100


def test_stripped_bytes(tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    """What `strip` leaves, but for the alignment of what it moves."""
    require(shutil.which("strip") is not None, "no strip")
    require(host_os() == "linux", "reads ELF files")
    copy = tmp_path / "lib.so"
    shutil.copy(library_path(), copy)
    subprocess.run(["strip", "--strip-all", str(copy)], check=True)
    found = stripped_bytes(library_path())
    assert found is not None
    assert abs(found - copy.stat().st_size) <= 64
    assert stripped_bytes(copy) == copy.stat().st_size < library_path().stat().st_size
    copy.write_bytes(macho([]))
    assert stripped_bytes(copy) is None
    for n in (0, 1):
        data = bytearray(library_path().read_bytes())
        data[62:64] = b"\xff\xff" if n else data[62:64]
        copy.write_bytes(data if n else data[:2000])
        with pytest.raises(EdgecError, match="E0007"):
            stripped_bytes(copy)
