"""Reads just enough of a library to say what it is (ELF, Mach-O, WebAssembly): format, architecture, kind, exports.

Cross-built libraries cannot be run where they are built, so their headers are checked instead. Every read is inside
the file; anything else raises EdgecError EDGEC-E0007.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from edgec.errors import EdgecError

_ELF_MACHINE = {62: "x86_64", 183: "aarch64", 243: "riscv64"}
_MACHO_CPU = {0x01000007: "x86_64", 0x0100000C: "aarch64"}
_SHT_SYMTAB, _SHT_DYNSYM, _SHF_ALLOC, _LC_SYMTAB = 2, 11, 2, 2
_MAX_SYMBOLS = 1 << 20


@dataclass(frozen=True)
class Binary:
    """format: elf, mach-o or wasm. kind: "shared" or "other". exports: names others may call.

    Mach-O names come without their leading underscore. A WebAssembly program, which exports _start, is "other".
    """

    format: str
    arch: str
    kind: str
    exports: frozenset[str]


class _Bytes:
    """The file's bytes with bounds-checked little-endian reads."""

    def __init__(self, data: bytes, path: Path) -> None:
        self.data, self.path = data, path

    def fail(self, found: str, wanted: str) -> EdgecError:
        return EdgecError("E0007", stage="toolchain", where=str(self.path), found=found, wanted=wanted)

    def unpack(self, layout: str, at: int) -> tuple[int, ...]:
        layout = "<" + layout
        if at < 0 or at + struct.calcsize(layout) > len(self.data):
            raise self.fail(f"a header field at byte {at}, file of {len(self.data)} bytes", "a complete library")
        return struct.unpack_from(layout, self.data, at)

    def name(self, start: int, offset: int, size: int) -> str:
        """The NUL-terminated name at `offset` of the string table [start, start + size)."""
        end = min(start + size, len(self.data))
        stop = self.data.find(b"\0", start + offset, end)
        if offset >= size or stop < 0:
            raise self.fail("a symbol name outside its string table", "a complete library")
        return self.data[start + offset:stop].decode("utf-8", errors="replace")


def _elf_sections(raw: _Bytes) -> list[tuple[int, ...]]:
    """Section headers: name, type, flags, address, offset, size, link, info, alignment, entry size."""
    if raw.unpack("BB", 4) != (2, 1):
        raise raw.fail("an ELF file that is not 64-bit little-endian", "64-bit little-endian ELF")
    (table,) = raw.unpack("Q", 40)
    entry, count = raw.unpack("HH", 58)
    return [raw.unpack("IIQQQQIIQQ", table + i * entry) for i in range(count)]


def _read_elf(raw: _Bytes) -> Binary:
    sections = _elf_sections(raw)
    count = len(sections)
    kind, machine = raw.unpack("HH", 16)
    exports: set[str] = set()
    for section in sections:
        if section[1] != _SHT_DYNSYM:
            continue
        offset, size, link = section[4], section[5], section[6]
        if link >= count or size // 24 > _MAX_SYMBOLS:
            raise raw.fail("a damaged symbol section", "a complete library")
        for at in range(offset, offset + size - 23, 24):
            name, info, _, where = raw.unpack("IBBH", at)
            if info >> 4 in (1, 2) and where != 0:  # global or weak, and defined here
                exports.add(raw.name(sections[link][4], name, sections[link][5]))
    return Binary("elf", _ELF_MACHINE.get(machine, f"machine {machine}"), "shared" if kind == 3 else "other",
                  frozenset(exports))


def _read_macho(raw: _Bytes) -> Binary:
    cpu, _, kind, commands = raw.unpack("IIII", 4)
    exports: set[str] = set()
    at = 32
    for _ in range(commands):
        command, size = raw.unpack("II", at)
        if command == _LC_SYMTAB:
            symbols, count, strings, string_bytes = raw.unpack("IIII", at + 8)
            if count > _MAX_SYMBOLS:
                raise raw.fail(f"{count} symbols", "a complete library")
            for index in range(count):
                name, flags = raw.unpack("IB", symbols + 16 * index)
                if flags & 0x01 and flags & 0x0E and not flags & 0xE0:  # external, defined, not a debug entry
                    exports.add(raw.name(strings, name, string_bytes).removeprefix("_"))
        if size < 8:
            raise raw.fail(f"a load command of {size} bytes", "a complete library")
        at += size
    return Binary("mach-o", _MACHO_CPU.get(cpu, f"cpu {cpu:#x}"), "shared" if kind == 6 else "other",
                  frozenset(exports))


def _leb128(raw: _Bytes, at: int) -> tuple[int, int]:
    """(an unsigned number of at most 32 bits, where it ends)."""
    value = 0
    for shift in range(0, 35, 7):
        (byte,) = raw.unpack("B", at)
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise raw.fail("a number of more than 32 bits", "a complete library")


def _read_wasm(raw: _Bytes) -> Binary:
    if raw.unpack("I", 4) != (1,):
        raise raw.fail("a WebAssembly file that is not version 1", "a module of version 1")
    exports: set[str] = set()
    at = 8
    while at < len(raw.data):
        (section,) = raw.unpack("B", at)
        size, at = _leb128(raw, at + 1)
        if section == 7:
            count, entry = _leb128(raw, at)
            if count > _MAX_SYMBOLS:
                raise raw.fail(f"{count} exports", "a complete library")
            for _ in range(count):
                length, entry = _leb128(raw, entry)
                (kind,) = raw.unpack("B", entry + length)
                if kind == 0:  # a function
                    exports.add(raw.data[entry:entry + length].decode("utf-8", errors="replace"))
                _, entry = _leb128(raw, entry + length + 1)
        at += size
    if at != len(raw.data):
        raise raw.fail("a section beyond the end of the file", "a complete library")
    return Binary("wasm", "wasm32", "other" if "_start" in exports else "shared", frozenset(exports))


def read_binary(path: Path) -> Binary:
    """What the library at `path` is. Raises EdgecError EDGEC-E0007 when it is none of the three, or damaged."""
    raw = _Bytes(path.read_bytes(), path)
    if raw.data[:4] == b"\x7fELF":
        return _read_elf(raw)
    if raw.data[:4] == b"\xcf\xfa\xed\xfe":
        return _read_macho(raw)
    if raw.data[:4] == b"\0asm":
        return _read_wasm(raw)
    raise raw.fail(f"first bytes {raw.data[:4].hex() or 'none'}", "an ELF, 64-bit Mach-O or WebAssembly library")


def stripped_bytes(path: Path) -> int | None:
    """Size of the ELF library at `path` without its tables of symbols and debug sections; None for other formats.

    Raises EdgecError EDGEC-E0007 for a damaged file.
    """
    raw = _Bytes(path.read_bytes(), path)
    if raw.data[:4] != b"\x7fELF":
        return None
    sections = _elf_sections(raw)
    (names,) = raw.unpack("H", 62)
    if names >= len(sections):
        raise raw.fail("no table of section names", "a complete library")
    titles = [raw.name(sections[names][4], section[0], sections[names][5]) for section in sections]
    gone = [section for section, title in zip(sections, titles, strict=True) if not section[2] & _SHF_ALLOC and (
        section[1] == _SHT_SYMTAB or title == ".strtab" or title.startswith(".debug"))]
    # Each takes its record in the table of sections along.
    return len(raw.data) - sum(section[5] + 64 for section in gone)
