"""The runtime as one C++ file with only what one plan needs.

Every function but those of edgec.h gets internal linkage, so a compiler drops whatever a kept kernel does not call,
with whatever flags and without help of the linker. What is certainly not needed is not even in the text: kernels that
the plan does not call, the tokenizer, language models, signatures. Instruction sets stay function-level target regions,
as in the library, so the one file needs no flags of its own and holds every architecture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgec.errors import EdgecError

_ROW = re.compile(r"^(KERNEL|PREPARED|DOTTED|LEVELED|NARROW|PORTABLE)\((\w+),")
_INCLUDE = re.compile(r'^#include "([^"]+)"')
_TRIAL = re.compile(r'^    \{"(\w+)",')
_NAME = re.compile(r"\w+")
_UNSAID = re.compile(r'//.*|"(?:[^"\\\n]|\\.)*"')  # comments and strings name nothing
# What a file of kernels gives to others, by the house's layout: definitions begin in the first column.
_DEFINES = (
    re.compile(r"^(?!#|//|\s|namespace|using|return)[^(=]*?\b(\w+)\(", re.MULTILINE),
    re.compile(r"^(?:constexpr|const|static)\b[^(]*?\b(\w+)(?:\[[^\]]*\])? =", re.MULTILINE),
    re.compile(r"^constexpr [\w:]+ (\w+)\{", re.MULTILINE),
    re.compile(r"^(?:template <[^>]*> )?(?:struct|enum|class) (\w+)", re.MULTILINE),
    re.compile(r"^using (\w+) =", re.MULTILINE),
    re.compile(r"^#define (\w+)", re.MULTILINE),
)
# Files that a part of the runtime is, and the macro that tells without.cpp to stand in.
_PARTS = {
    "tokenizer": ("EDGEC_NO_TOKENIZER", ("tokenizer.cpp", "tokenizer_encode.cpp", "pretokenize.cpp", "unicode.cpp")),
    "language_models": ("EDGEC_NO_LANGUAGE_MODELS", ("lm.cpp", "sampler.cpp")),
    "signatures": ("EDGEC_NO_SIGNATURES", ("ed25519.cpp", "sha512.cpp")),
}
# Kinds of rows of kernels.def without which a file of an instruction set is empty.
_ONLY_FOR = {"amx.cpp": {"LEVELED"}, "neondot.cpp": {"LEVELED"}, "avx512vbmi.cpp": {"LEVELED", "DOTTED"},
             "portable.cpp": {"PORTABLE"}}
LINKAGE = ("namespace edgec {", "namespace {\nnamespace edgec {"), ("}  // namespace edgec", "}  // namespace edgec\n}")
PARTS = frozenset(_PARTS)
CACHES = ("F32", "F16", "I8", "U8")  # types of states that kernels read as keys and values
_PANELS = {"F32": 1, "F16": 2, "BF16": 3}  # Dtype of kernels/kernel.h
_PANEL = re.compile(r"\bpanel\((\w+),")
_CACHES = dict(zip(CACHES, (1, 2, 4, 5), strict=True))
# Kernels without activations, and where others have theirs among their integers. What is in neither may have any.
_NO_ACTS = {"matmul", "pool2d", "reduce", "argmax", "gather", "transpose", "slice", "concat", "pad", "expand", "copy",
            "softmax", "rmsnorm", "layernorm", "attention", "attention_cached", "kv_write", "rope", "iota", "cast"}
_ACTS = {"linear": (0,), "linear_split": (0,), "conv2d": (9,), "conv2d_winograd": (2,), "dwconv2d": (8,),
         "mbconv2d": (8, 9, 10)}
_CLAMPS = 2  # the last code of those that are none or clamps
_INTS = re.compile(r"\}, \{([-\d, ]*)\}, \{")  # of a trial
_CACHED = {"attention_cached", "kv_write"}  # the kernels that read and write them
_CACHE = re.compile(r"\bother\((\w+), \d+, \d+, \d+\)")  # in one of their trials; f32 where there is none
# Where time does not go is made small, as in the library (CMakeLists.txt): all but the kernels of instruction sets. gcc
# only: clang has no such pragma that would leave the callers of these functions as they are.
_SMALL = ("#if defined(EDGEC_SMALL){condition}", "#pragma GCC push_options", '#pragma GCC optimize("Os")', "#endif")
_SMALL_END = ("#if defined(EDGEC_SMALL){condition}", "#pragma GCC pop_options", "#endif")
_ELSE_FASTER = " && (EDGEC_HAVE_AVX2 || EDGEC_HAVE_NEON)"  # otherwise portable kernels are what runs


@dataclass(frozen=True)
class Selection:
    """What the file is to hold. kernels: names of kernels.def. panels: types of its
    weights in panels, of F32, F16, BF16. parts: of PARTS. without: instruction sets of
    kernels/view.h that are left out, as AVX512. caches: types of its states, of F32, F16, I8, U8. curved: whether there
    are activations but clamps."""

    kernels: frozenset[str]
    panels: frozenset[str]
    parts: frozenset[str] = frozenset()
    without: tuple[str, ...] = ()
    caches: frozenset[str] = frozenset()
    curved: bool = True

    def __post_init__(self) -> None:
        unknown = (self.parts - PARTS) | (self.panels - set(_PANELS)) | (self.caches - set(_CACHES))
        if unknown:
            raise ValueError(f"no parts or types {sorted(unknown)}")


def curved(kernel: str, ints: Sequence[object]) -> bool:
    """Whether a call of `kernel` may have an activation but a clamp; ints: its integers, dims not as int."""
    if kernel in _NO_ACTS:
        return False
    return kernel not in _ACTS or any(ints[i] not in range(_CLAMPS + 1) for i in _ACTS[kernel])


def kernel_rows(root: Path) -> dict[str, str]:
    """Kernel -> kind of row (PORTABLE, ...), of kernels.def below the sources' root."""
    lines = (root / "kernels" / "kernels.def").read_text(encoding="utf-8").splitlines()
    return {m[2]: m[1] for line in lines if (m := _ROW.match(line))}


def amalgamate(root: Path, version: str, chosen: Selection) -> str:
    """The text of edgec_runtime.cpp: C++17 for gcc and clang; it includes edgec_runtime.h.

    root: the folder with kernels/ and runtime/. Raises EdgecError (E0007) for a kernel that the sources do not have.
    """
    rows = kernel_rows(root)
    missing = sorted(chosen.kernels - set(rows))
    if missing:
        raise EdgecError("E0007", stage="package", where=str(root / "kernels" / "kernels.def"),
                         found=f"without {', '.join(missing)}", wanted="every kernel of the bundle",
                         hint="the bundle was compiled by another version of edgec; compile the model again")
    builder = _Builder(root, chosen, {rows[name] for name in chosen.kernels})
    left_out = [_PARTS[part][0] for part in sorted(PARTS - chosen.parts)]
    head = [
        f"// edgec {version}, its runtime in one file, made by `edgec package`. Apache License 2.0.",
        f"// Kernels: {', '.join(sorted(chosen.kernels))}.",
        "// C++17, gcc or clang, any optimization; no exceptions, no RTTI and no C++ library are needed.",
        "#if defined(__linux__) && !defined(_GNU_SOURCE)", "#define _GNU_SOURCE", "#endif",
        f'#define EDGEC_VERSION "{version}"', "#define EDGEC_PACKAGED 1",
        f"#define EDGEC_PANELS {sum(1 << _PANELS[name] for name in chosen.panels)}",
        f"#define EDGEC_CACHES {sum(1 << _CACHES[name] for name in chosen.caches)}",
        *([] if chosen.curved else ["#define EDGEC_CURVED 0"]),
        *(f"#define {name} 1" for name in left_out),
        "#if defined(__GNUC__) && !defined(__clang__) && defined(__OPTIMIZE__) && !defined(__OPTIMIZE_SIZE__)",
        "#define EDGEC_SMALL 1", "#endif",
        *(f"#define EDGEC_NO_{isa} 1" for isa in chosen.without),
        "// Functions that no kept kernel calls are left to the compiler to drop.",
        "#if defined(__GNUC__)", "#pragma GCC diagnostic push",
        '#pragma GCC diagnostic ignored "-Wunused-function"', "#endif",
        "#if defined(__clang__)", '#pragma clang diagnostic ignored "-Wunused-const-variable"',
        '#pragma clang diagnostic ignored "-Wpass-failed"',  # unroll requests for vectors, where there are none
        # In the one-header form the handles' structures lie in a header, which gcc takes for one of many files.
        "#elif defined(__GNUC__)", '#pragma GCC diagnostic ignored "-Wsubobject-linkage"', "#endif",
    ]
    tail = ["#if defined(__GNUC__)", "#pragma GCC diagnostic pop", "#endif"]
    return "\n".join([*head, *builder.text(), *tail]) + "\n"


def _curved_trial(kernel: str, row: Sequence[str]) -> bool:
    ints = _INTS.search(" ".join(line.strip() for line in row))
    return ints is None or curved(kernel, [int(word) for word in ints[1].split(",")])


@dataclass
class _Builder:
    root: Path
    chosen: Selection
    kinds: set[str]
    _once: set[Path] = field(default_factory=set)
    _read: dict[Path, str] = field(default_factory=dict)

    def text(self) -> Iterator[str]:
        dropped = self._not_needed()
        for unit in self._units():
            if unit in dropped:
                continue
            small = unit.parent.name != "isa" or unit.name == "scalar.cpp"
            words = {"condition": _ELSE_FASTER if unit.name == "scalar.cpp" else ""}
            yield from (line.format(**words) for line in _SMALL if small)
            yield from self._inline(unit, dropped)
            yield from (line.format(**words) for line in _SMALL_END if small)

    def _units(self) -> list[Path]:
        kernels, runtime = self.root / "kernels", self.root / "runtime"
        isas = [path for path in sorted((kernels / "isa").glob("*.cpp"))
                if _ONLY_FOR.get(path.name, self.kinds) & self.kinds]
        out = {name for part, (_, names) in _PARTS.items() if part not in self.chosen.parts for name in names}
        return [*sorted(kernels.glob("*.cpp")), *sorted((kernels / "contract").glob("*.cpp")), *isas,
                *(path for path in sorted(runtime.glob("*.cpp")) if path.name not in out)]

    def _content(self, path: Path) -> str:
        if path not in self._read:
            text = path.read_text(encoding="utf-8")
            if path.name == "kernels.def":
                text = "\n".join(line for line in text.splitlines()
                                 if (m := _ROW.match(line)) and m[2] in self.chosen.kernels)
            elif path.name == "selftest.cpp":
                text = "\n".join(self._trials(text.splitlines()))
            self._read[path] = text
        return self._read[path]

    def _names(self, path: Path) -> list[str]:
        return _NAME.findall(_UNSAID.sub("", self._content(path)))

    def _trials(self, lines: Iterable[str]) -> Iterator[str]:
        """The self-test without the rows of kernels and types of weights that are not there."""
        row: list[str] = []  # the lines of one trial
        for line in [*lines, ""]:
            if row and not line.startswith("     "):
                name, panels = _TRIAL.match(row[0]), set(_PANEL.findall("".join(row)))
                caches = set(_CACHE.findall("".join(row))) or {"F32"} if name and name[1] in _CACHED else set()
                if (name and name[1] in self.chosen.kernels and panels <= self.chosen.panels
                        and caches <= self.chosen.caches and (self.chosen.curved or not _curved_trial(name[1], row))):
                    yield from row
                row = []
            if row or _TRIAL.match(line):
                row.append(line)
            else:
                yield line

    def _find(self, name: str, beside: Path) -> Path:
        for folder in (beside, self.root / "runtime", self.root / "runtime" / "include", self.root / "kernels"):
            if (folder / name).is_file():
                return (folder / name).resolve()
        raise EdgecError("E0007", stage="package", where=str(beside), found=f"no {name}", wanted="complete sources",
                         hint="reinstall edgec: its sources are part of the package")

    def _inline(self, path: Path, dropped: set[Path]) -> Iterator[str]:
        text = self._content(path)
        if "#pragma once" in text:
            if path in self._once:
                return
            self._once.add(path)
        yield f"// ---- {path.relative_to(self.root.resolve()).as_posix()}"
        for line in text.splitlines():
            included = _INCLUDE.match(line)
            if included and included[1] == "edgec.h":
                yield '#include "edgec_runtime.h"'
            elif included:
                found = self._find(included[1], path.parent)
                if found not in dropped:
                    yield from self._inline(found, dropped)
            elif line != "#pragma once":
                yield next((new for old, new in LINKAGE if line == old), line)

    def _not_needed(self) -> set[Path]:
        """Files of kernels and contracts that neither are a kept kernel's nor define a name that a kept file uses."""
        kernels = (self.root / "kernels").resolve()
        optional = {path for path in (kernels / "generic").glob("*.h") if '#include "' not in self._content(path)}
        optional |= set((kernels / "contract").glob("*.cpp"))
        # A kernel is named by the table alone, and words of the language are no names.
        roots = {name for kernel in self.chosen.kernels for name in (kernel, f"{kernel}_check")}
        others = {name for kernel in set(kernel_rows(self.root)) - self.chosen.kernels
                  for name in (kernel, *(f"{kernel}_{rule}" for rule in ("check", "tiles", "cost", "scratch")))}
        words = others | {"static_assert", "alignas"}
        defines = {path: {name for pattern in _DEFINES for name in pattern.findall(self._content(path))} - words
                   for path in optional}
        always = {path for path in self._always(optional) if kernels in path.parents}
        used = roots | {name for path in always for name in self._names(path)}
        kept: set[Path] = set()
        while new := {path for path in optional - kept if defines[path] & used}:
            kept |= new
            used |= {name for path in new for name in self._names(path)}
        return optional - kept

    def _always(self, optional: set[Path]) -> set[Path]:
        """Every other file that the units bring in; dispatch.cpp names kernels by kernels.def alone."""
        seen: set[Path] = set()
        todo = [unit.resolve() for unit in self._units()]
        while todo:
            path = todo.pop()
            if path in seen or path in optional or path.suffix == ".def":
                continue
            seen.add(path)
            names = (m[1] for line in self._content(path).splitlines() if (m := _INCLUDE.match(line)))
            todo += [self._find(name, path.parent) for name in names if name != "edgec.h"]
        return seen
