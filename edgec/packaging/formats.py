"""The formats of packages: one function each, and the table of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgec import version
from edgec.packaging.amalgamate import Selection, amalgamate
from edgec.packaging.described import Described
from edgec.packaging.examples import example, usage
from edgec.packaging.header import fill, model_header
from edgec.packaging.template import template
from edgec.targets.devices import Device
from edgec.targets.toolchain import header, source_root

BUNDLE = "model.edgec"


@dataclass(frozen=True)
class Parts:
    """What every format is made from. linked: the bundle is an object of the program. device: it is for, or None."""

    model: Described
    selection: Selection
    linked: bool
    device: Device | None

    def runtime(self) -> str:
        """edgec_runtime.cpp."""
        return amalgamate(source_root(), version.__version__, self.selection)

    def header(self) -> str:
        """`<model>.h`."""
        return model_header(self.model, linked=self.linked, signatures="signatures" in self.selection.parts)

    def fill(self, name: str, **values: str) -> str:
        """A template with the words that all of them know, and `values`."""
        model = self.model
        return fill(template(name), **values, ID=model.id, VERSION=version.__version__, UPPER=model.id.upper())


@dataclass(frozen=True)
class Format:
    """A row. write: fills a folder. build: the command of its ecosystem. weights: ways that it can carry them."""

    write: Callable[[Path, Parts], None]
    build: str
    weights: tuple[str, ...]
    weights_hint: str = ""
    about: str = ""


def _put(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _runtime(folder: Path, parts: Parts) -> None:
    """edgec_runtime.h and .cpp, the model's header, the bundle."""
    _put(folder, "edgec_runtime.h", header().read_text(encoding="utf-8"))
    _put(folder, "edgec_runtime.cpp", parts.runtime())
    _put(folder, f"{parts.model.id}.h", parts.header())


def _bundle(path: Path, parts: Parts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(parts.model.path, path)


def _files(parts: Parts) -> str:
    model = parts.model
    rows = ["edgec_runtime.h, .cpp   the runtime, with the kernels of this model only",
            f"{model.id}.h   the typed interface, C99 and C++17",
            f"{BUNDLE}   the model; " + ("linked into the program" if parts.linked else "the program maps it")]
    return "".join(f"- {row}\n" for row in rows)


def cmake(folder: Path, parts: Parts) -> None:
    """A library target and two example programs."""
    model, data = parts.model, f"{parts.model.id}_data.c"
    _runtime(folder, parts)
    _bundle(folder / BUNDLE, parts)
    rules = ""
    if parts.linked:
        _put(folder, data, parts.fill("data.c"))
        rules = (f'set_source_files_properties({data} PROPERTIES OBJECT_DEPENDS '
                 f'"${{CMAKE_CURRENT_SOURCE_DIR}}/{BUNDLE}"\n'
                 f'  COMPILE_DEFINITIONS "EDGEC_BUNDLE=\\"${{CMAKE_CURRENT_SOURCE_DIR}}/{BUNDLE}\\"")\n')
    _put(folder, "CMakeLists.txt", parts.fill("CMakeLists.txt", DATA_SOURCE=f" {data}" if parts.linked else "",
                                              DATA_RULES=rules))
    words = {"MODEL.edgec": BUNDLE, "PROMPT": '"It was"', "TOKEN": "1", "COUNT": "30"}
    given = " ".join(words[word] for word in usage(model, linked=parts.linked))
    program = f"build/edgec_{model.id}_example_"
    for language in ("c", "cpp"):
        _put(folder, f"example.{language}", example(model, language, linked=parts.linked, program=program + language))
    linked = f" -DEDGEC_BUNDLE='\"{BUNDLE}\"' {data}" if parts.linked else ""
    _put(folder, "README.md", parts.fill("README.cmake.md", RUN=f"{program}c {given}", FILES=_files(parts),
                                         DATA_OBJECT=linked))


FORMATS: dict[str, Format] = {
    "cmake": Format(cmake, "cmake -S . -B build && cmake --build build", ("file", "object"),
                    about="a library target and example programs in C and C++"),
}
