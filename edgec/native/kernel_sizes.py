"""What each kernel of kernels.def costs the library: kernel_sizes.py TABLE.json OBJECT..., for `edgec size`.

Run by CMake after the library is linked, because an installed library has no symbols. Whatever is wrong with an object
file, the build of the library goes on: the table then says why it has no kernels, and so does standard error. Every
function is a section of its own in the object files, and their relocations say which function needs which: what can be
reached from a kernel's body on an instruction set is what that costs. Reads 64-bit little-endian ELF and nothing else;
needs Python 3.9 and no package, for it is CMake that chooses the interpreter.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

ALLOC, MERGED = 2, 0x10
SYMTAB, RELA = 2, 4
LONGEST_NAME = 8192
CONTRACT = ("check", "tiles", "cost", "scratch")
# edgec::ISA::KERNEL(const Args &, int64_t, int64_t, void *), and edgec::KERNEL_check(const Args &) and its siblings.
# In a package (edgec/packaging) all of that has internal linkage.
INTERNAL, EXTERNAL = re.compile(r"^_ZN12_GLOBAL__N_15edgec(.+?)ERKNS0_4Args"), r"_ZN5edgec\1ERKNS_4Args"
BODY, RULE = re.compile(r"_ZN5edgec(.+)ERKNS_4ArgsEllPv"), re.compile(r"_ZN5edgec(.+)ERKNS_4ArgsE")
Section = tuple[str, int]


class UnreadableError(Exception):
    """Why there is no table."""


class Objects:
    """size: bytes of every section that is loaded and not merged with equal ones. needs: section -> sections it names.
    symbols: name of a function or constant -> its section."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.size: dict[Section, int] = {}
        self.needs: dict[Section, set[Section]] = {}
        self.symbols: dict[str, Section] = {}
        self._named: dict[Section, set[str]] = {}
        for path in paths:
            try:
                self._read(path.read_bytes(), str(path))
            except (OSError, struct.error, IndexError, ValueError, OverflowError) as e:
                raise UnreadableError(f"{path} cannot be read ({type(e).__name__}: {e})") from e
        for section, names in self._named.items():
            self.needs[section] |= {self.symbols[name] for name in names if name in self.symbols}

    def _read(self, data: bytes, where: str) -> None:
        if data[:6] != b"\x7fELF\x02\x01":
            raise UnreadableError(f"{where} is no 64-bit little-endian ELF file")
        (table,), (count,) = struct.unpack_from("<Q", data, 40), struct.unpack_from("<H", data, 60)
        headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * i) for i in range(count)]
        for i, header in enumerate(headers):
            if header[2] & ALLOC:
                self.size[where, i] = 0 if header[2] & MERGED else header[5]
                self.needs[where, i] = set()
        symbols = next((h for h in headers if h[1] == SYMTAB), None)
        if symbols is None:
            return
        strings = headers[symbols[6]][4]
        found: list[tuple[str, int, int]] = []
        for at in range(symbols[4], symbols[4] + symbols[5], 24):
            name, info, _, section = struct.unpack_from("<IBBH", data, at)
            end = data.index(b"\0", strings + name, strings + name + LONGEST_NAME)
            found.append((data[strings + name : end].decode(), info >> 4, section))
        for name, binding, section in found:
            if (where, section) in self.size and (binding or INTERNAL.match(name)):
                # Of weak ones the linker keeps the first.
                self.symbols.setdefault(INTERNAL.sub(EXTERNAL, name), (where, section))
        for header in headers:
            if header[1] != RELA or (where, header[7]) not in self.needs:
                continue
            user = (where, header[7])
            for at in range(header[4], header[4] + header[5], 24):
                name, binding, section = found[struct.unpack_from("<QQ", data, at)[1] >> 32]
                if binding:
                    self._named.setdefault(user, set()).add(name)
                elif (where, section) in self.needs:
                    self.needs[user].add((where, section))

    def reached(self, root: Section) -> set[Section]:
        """What `root` needs, itself included."""
        seen, todo = {root}, [root]
        while todo:
            new = self.needs[todo.pop()] - seen
            seen |= new
            todo += new
        return seen


def words(mangled: str) -> list[str]:
    """`4avx26linear` -> [avx2, linear]; empty for what is no such name."""
    found = []
    while mangled:
        digits = re.match(r"\d+", mangled)
        if digits is None:
            return []
        end = digits.end() + int(digits[0])
        found.append(mangled[digits.end() : end])
        mangled = mangled[end:]
    return found


def roots(objects: Objects, kernels: list[str]) -> dict[tuple[str, str], set[Section]]:
    """(kernel, instruction set, or "" for what all of them share) -> what that needs."""
    found: dict[tuple[str, str], set[Section]] = {}
    for name, section in objects.symbols.items():
        body, rule = BODY.fullmatch(name), RULE.fullmatch(name)
        if body and len(parts := words(body[1])) > 1 and parts[-1] in kernels:
            key = parts[-1], "".join(parts[:-1]) if parts[-2] == "vbmi" else parts[-2]
        elif rule and len(parts := words(rule[1])) == 1 and parts[0].rpartition("_")[2] in CONTRACT:
            key = parts[0].rpartition("_")[0], ""
        else:
            continue
        if key[0] in kernels:
            found.setdefault(key, set()).update(objects.reached(section))
    return found


def sizes(objects: Objects, kernels: list[str]) -> dict[str, object]:
    """Of each kernel, isa: bytes that it needs on each instruction set; checks: what it needs besides, on all of them;
    alone: what nothing but this kernel needs, and would go with it. shared: what several kernels need."""
    needed = roots(objects, kernels)
    bodies = {kernel for kernel, isa in needed if isa}
    if not kernels or any(name not in bodies or (name, "") not in needed for name in kernels):
        raise UnreadableError("the object files lack symbols of " + ", ".join(
            name for name in kernels if name not in bodies or (name, "") not in needed)[:200])
    users: dict[Section, set[str]] = {}
    for (kernel, _), sections in needed.items():
        for section in sections:
            users.setdefault(section, set()).add(kernel)

    def total(sections: Iterable[Section]) -> int:
        return sum(objects.size[section] for section in sections)

    return {
        "schema_version": 1, "shared": total(section for section, names in users.items() if len(names) > 1),
        "kernels": {name: {
            "isa": {isa: total(sections) for (kernel, isa), sections in needed.items() if kernel == name and isa},
            "checks": total(needed[name, ""]), "alone": total(s for s, names in users.items() if names == {name}),
        } for name in kernels},
    }


def main() -> None:
    output, *objects = map(Path, sys.argv[1:])
    table: dict[str, object]
    try:
        output.unlink(missing_ok=True)  # of an earlier library
        definition = (Path(__file__).resolve().parents[2] / "kernels" / "kernels.def").read_text(encoding="utf-8")
        kernels = re.findall(r"^(?:KERNEL|PREPARED|DOTTED|LEVELED|NARROW|PORTABLE)\((\w+),", definition, re.MULTILINE)
        try:
            table = sizes(Objects(objects), kernels)
        except UnreadableError as e:
            table = {"schema_version": 1, "missing": str(e)}
            sys.stderr.write(f"{Path(__file__).name}: no sizes of kernels for `edgec size`: {e}\n")
        part = output.with_name(output.name + ".part")
        part.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        part.replace(output)
    except Exception as e:  # a table of sizes is no reason to have no library
        sys.stderr.write(f"{Path(__file__).name}: no {output.name} for `edgec size`: {type(e).__name__}: {e}\n")


if __name__ == "__main__":
    main()
