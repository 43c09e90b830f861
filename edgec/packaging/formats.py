"""The formats of packages: one function each, and the table of them."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgec import version
from edgec.compress.formats import Dtype
from edgec.packaging.amalgamate import Selection, amalgamate
from edgec.packaging.apps import jni_words, kotlin_words, swift_words
from edgec.packaging.described import Described, shape_text
from edgec.packaging.examples import example, usage
from edgec.packaging.header import fill, model_header
from edgec.packaging.prefix import renamed, unguarded
from edgec.packaging.template import template
from edgec.targets.devices import Device
from edgec.targets.devices import device as find_device
from edgec.targets.toolchain import check_library, compile_unit, header, source_root

BUNDLE = "model.edgec"


@dataclass(frozen=True)
class Parts:
    """What every format is made from. linked: the bundle is an object of the program. device: it is for, or None."""

    model: Described
    selection: Selection
    linked: bool
    device: Device | None

    def runtime(self, *, own_names: bool = True) -> str:
        """edgec_runtime.cpp. own_names: of its functions (prefix.py)."""
        text = amalgamate(source_root(), version.__version__, self.selection)
        own = renamed(header().read_text(encoding="utf-8"), self.model.id)
        return (own if own_names else "") + text

    def header(self) -> str:
        """`<model>.h`."""
        return model_header(self.model, linked=self.linked)

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
    with path.open("x", encoding="utf-8") as file:  # two files of one name would be a mistake here
        file.write(text)


def _runtime(folder: Path, parts: Parts) -> None:
    """edgec_runtime.h and .cpp, the model's header, the bundle."""
    _put(folder, "edgec_runtime.h", unguarded(header().read_text(encoding="utf-8")))
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


def _given(parts: Parts) -> str:
    """What a reader gives to an example, as typed in a shell."""
    words = {"MODEL.edgec": BUNDLE, "PROMPT": '"It was"', "TOKEN": "1", "COUNT": "30"}
    return " ".join(words[word] for word in usage(parts.model, linked=parts.linked))


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
    program = f"build/edgec_{model.id}_example_"
    for language in ("c", "cpp"):
        _put(folder, f"example.{language}", example(model, language, linked=parts.linked, program=program + language))
    linked = f" -DEDGEC_BUNDLE='\"{BUNDLE}\"' {data}" if parts.linked else ""
    _put(folder, "README.md", parts.fill("README.cmake.md", RUN=f"{program}c {_given(parts)}", FILES=_files(parts),
                                         DATA_OBJECT=linked))


def single_header(folder: Path, parts: Parts) -> None:
    """One header: interface, and with EDGEC_IMPLEMENTATION in one file of C++ the runtime too."""
    model, include = parts.model, '#include "edgec_runtime.h"\n'
    interface = parts.header().replace(include, unguarded(header().read_text(encoding="utf-8")))
    _put(folder, f"{model.id}.h", parts.fill("single_header.h", INTERFACE=interface,
                                             RUNTIME=parts.runtime().replace(include, "")))
    _put(folder, "implementation.cpp", f'#define EDGEC_IMPLEMENTATION\n#include "{model.id}.h"\n')
    _bundle(folder / BUNDLE, parts)
    _put(folder, "example.c", example(model, "c", linked=False, program="./example"))
    _put(folder, "README.md", parts.fill("README.single-header.md", RUN=f"./example {_given(parts)}"))


def pip(folder: Path, parts: Parts) -> None:
    """A Python project: a wheel with the runtime as a library, the bundle, and a module that calls it by ctypes."""
    model = parts.model
    _put(folder, "src/edgec_runtime.h", header().read_text(encoding="utf-8"))
    _put(folder, "src/edgec_runtime.cpp", parts.runtime(own_names=False))
    _bundle(folder / model.id / BUNDLE, parts)
    kind = "lm" if model.language_model else "tensors"
    _put(folder, f"{model.id}/__init__.py", parts.fill("python_common.py.in", KIND=template(f"python_{kind}.py.in")))
    _put(folder, f"{model.id}/py.typed", "")
    _put(folder, "CMakeLists.txt", parts.fill("CMakeLists.pip.txt"))
    needs = "" if model.language_model else '"numpy>=1.22"'
    _put(folder, "pyproject.toml", parts.fill("pyproject.toml.in", NEEDS=needs))
    _put(folder, "README.md", parts.fill("README.pip.md", USE=_python_use(model)))


def _quoted(name: str) -> str:
    """A string of JavaScript; nothing in it is taken for a template's @NAME@."""
    return json.dumps(name).replace("@", "\\u0040")


def _python_use(model: Described) -> str:
    if model.language_model:
        what = '"It was"' if model.tokenizer else "[1, 2, 3]"
        return f"    for token, text in model.generate({what}, max_tokens=30):\n        print(text or token, end=\" \")"
    return f"    outputs = model.run({{{', '.join(f'{t.name!a}: {t.id}' for t in model.inputs)}}})"


def wasm(folder: Path, parts: Parts) -> None:
    """A module with a loader and typed wrappers, for node, bundlers and browsers."""
    model, device = parts.model, find_device("wasm32")
    _put(folder, "edgec.mjs", (source_root() / "runtime" / "wasm" / "edgec.mjs").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="edgec-") as work:
        _put(Path(work), "edgec_runtime.h", header().read_text(encoding="utf-8"))
        _put(Path(work), "edgec_runtime.cpp", parts.runtime(own_names=False))
        compile_unit(device, Path(work) / "edgec_runtime.cpp", folder / "edgec.wasm")
    check_library(folder / "edgec.wasm", device)
    _bundle(folder / BUNDLE, parts)
    kind = "lm" if model.language_model else "tensors"
    for suffix in ("mjs", "d.mts"):
        _put(folder, f"{model.id}.{suffix}", parts.fill(f"wasm_{kind}.{suffix}", TYPES=_typescript(model),
                                                      STOPS=json.dumps(model.stop_tokens)))
    _put(folder, "example.mjs", parts.fill(f"wasm_{kind}_example.mjs", FEEDS=_feeds(model)))
    _put(folder, "package.json", parts.fill("package.json"))
    _put(folder, "README.md", parts.fill("README.wasm.md"))


_ARRAYS = {Dtype.F32: "Float32Array", Dtype.F16: "Uint16Array", Dtype.BF16: "Uint16Array", Dtype.I8: "Int8Array",
           Dtype.U8: "Uint8Array", Dtype.I32: "Int32Array", Dtype.I64: "BigInt64Array", Dtype.BOOL: "Uint8Array"}


def _typescript(model: Described) -> str:
    """The types of inputs and outputs, by their names in the bundle."""
    symbols = {s.name: name for name, s in model.symbols}
    lines = []
    for kind, tensors in (("Inputs", model.inputs), ("Outputs", model.outputs)):
        lines.append(f"export interface {kind} {{")
        lines += [f"    /** {shape_text(t, symbols)} */\n    {_quoted(t.name)}: "
                  f"{{ data: {_ARRAYS[t.dtype]}; shape: number[] }};" for t in tensors]
        lines.append("}")
    return "\n".join(lines)


def _feeds(model: Described) -> str:
    """Made-up inputs, as those of the examples in C."""
    lines = []
    for t in model.inputs:
        shape = [d.at({symbol.name: max(1, symbol.min) for symbol in d.symbols}) for d in t.dims]
        n, value = math.prod(shape), "(i * 7919 % 1000) / 500 - 1" if t.dtype is Dtype.F32 else "1"
        value = "1n" if t.dtype is Dtype.I64 else value
        data = f"{_ARRAYS[t.dtype]}.from({{ length: {n} }}, (_, i) => {value})"
        lines.append(f"    [{_quoted(t.name)}]: {{ data: {data}, shape: {json.dumps(shape)} }},")
    return "\n".join(lines)


def swiftpm(folder: Path, parts: Parts) -> None:
    """A Swift package: the runtime as a target of C, a class over it. Written, not compiled: its README says so."""
    model, words = parts.model, swift_words(parts.model)
    name, interface = words["CAMEL"], f"Sources/C{words['CAMEL']}/include"
    _put(folder, f"{interface}/edgec_runtime.h", unguarded(header().read_text(encoding="utf-8")))
    _put(folder, f"{interface}/{model.id}.h", parts.header())
    _put(folder, f"{interface}/C{name}.h", parts.fill("swift_shim.h.in"))
    _put(folder, f"Sources/C{name}/edgec_runtime.cpp", parts.runtime())
    _bundle(folder / "Sources" / name / BUNDLE, parts)
    kind = "lm" if model.language_model else "tensors"
    _put(folder, f"Sources/{name}/{name}.swift", parts.fill(f"swift_{kind}.swift.in", **words))
    _put(folder, "Package.swift", parts.fill("Package.swift.in", **words))
    _put(folder, "README.md", parts.fill("README.swiftpm.md", **words))


def gradle(folder: Path, parts: Parts) -> None:
    """An Android library: the runtime with JNI functions, a Kotlin class. Its README says what was never compiled."""
    model, native = parts.model, "src/main/cpp"
    kind = "lm" if model.language_model else "tensors"
    _runtime(folder / native, parts)
    words = jni_words(model)
    _put(folder, f"{native}/jni.c",
         fill(fill(template("jni_common.c"), KIND=template(f"jni_{kind}.c")), **words, ID=model.id))
    _put(folder, f"{native}/CMakeLists.txt", parts.fill("CMakeLists.gradle.txt"))
    _put(folder, f"src/main/kotlin/edgec/{model.id}/Model.kt", parts.fill(f"Model_{kind}.kt.in", **kotlin_words(model)))
    _put(folder, "src/main/AndroidManifest.xml",
         '<manifest xmlns:android="http://schemas.android.com/apk/res/android" />\n')
    _bundle(folder / "src" / "main" / "assets" / BUNDLE, parts)
    for name in ("settings.gradle.kts", "build.gradle.kts"):
        _put(folder, name, parts.fill(f"{name}.in"))
    _put(folder, "README.md", parts.fill("README.gradle.md"))


FORMATS: dict[str, Format] = {
    "cmake": Format(cmake, "cmake -S . -B build && cmake --build build", ("file", "object"),
                    about="a library target and example programs in C and C++"),
    "single-header": Format(single_header,
                            "c++ -std=c++17 -O2 -fno-exceptions -fno-rtti -fno-threadsafe-statics -c "
                            "implementation.cpp",
                            ("file",),
                            "--format cmake links the bundle into the program", "one header, stb style"),
    "pip": Format(pip, "pip wheel . --no-deps -w dist", ("file",), "a wheel holds the bundle as a file",
                  "a Python project that builds a wheel"),
    "wasm": Format(wasm, "node example.mjs", ("file",), "a page fetches the bundle as a file",
                   "a WebAssembly module with JavaScript and its types"),
    "swiftpm": Format(swiftpm, "swift build -c release", ("file",), "a Swift package holds the bundle as a resource",
                      "a Swift package (not compiled here)"),
    "gradle": Format(gradle, "gradle assembleRelease", ("file",), "an Android library holds the bundle as an asset",
                     "an Android library with Kotlin (not compiled here)"),
}
