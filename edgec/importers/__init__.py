"""The doors: every source of a model becomes one `onnx_ir.Model` in the *imported* form of docs/ir.md.

    load(nn.Module object, example_inputs=...)      edgec.importers.torch; an ExportedProgram likewise
    load("path/to/file.py:factory")                 the same, after running the user's own file
    load("zoo:name"), load("zoo:name@size")         the same, of edgec.zoo, with random weights
    load("folder")  with a config.json              edgec.importers.hf
    load("file.gguf")                               the same
    load("file.onnx")                               edgec.importers.onnx
    load("folder:part")                             one network of a pair, edgec.importers.hf_parts
    load("org/name"), load("org/name@revision")     a model of the Hugging Face hub, edgec.importers.hub

A door checks what it built against the original before it returns it. None opens the network, but for a hub id that
is not in the cache.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec import zoo
from edgec.errors import EdgecError, did_you_mean
from edgec.importers import hub

if TYPE_CHECKING:
    import onnx_ir as ir

STAGE = "import"
SOURCES = ("a Hugging Face folder (config.json and *.safetensors) or hub id (ORG/NAME), FILE.onnx, FILE.gguf, "
           "FILE.py:FACTORY, zoo:NAME, or a torch.nn.Module object")

_STATE = "weights without a model: write a FILE.py with a function that builds the module and loads them"
_SCRIPT = ("TorchScript cannot be exported: write a FILE.py with a function that builds the module in Python, and load "
           "the weights with module.load_state_dict(torch.jit.load(...).state_dict())")
# Suffix -> what to do with a file that is no source by itself.
_HINTS = {
    ".py": "name the function that builds the model: {file}:FACTORY",
    ".safetensors": "name its folder, with the model's config.json", ".json": "name its folder",
    ".pt2": "write a FILE.py with a function that returns (torch.export.load(...), None); name it as FILE.py:FACTORY",
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), _STATE),
    **dict.fromkeys((".h5", ".tflite", ".pb"), "convert it to ONNX first, with tf2onnx"),
}


def load(source: object, **options: Any) -> ir.Model:
    """Imports `source`; the ModelInfo is attached (edgec.ir.info).

    source: see the module's first lines; a path may be str or Path.
    options: `name`; `check` (bool, default True: compare with the original); Hugging Face models `allow_pickle` and
    `hollow` (bool: from headers alone, no weight is read; to be looked at, not compiled); modules and factories also
    `example_inputs`, `dynamic` and `custom_ops` (see edgec.importers.torch.load), files `dynamic` and `max_context`.
    Raises EdgecError: E0002 unknown option, E0003 missing path, E0101 unreadable source, E0102 untraceable,
    E0103 unknown architecture, E0104 the imported graph computes something else.
    """
    kind, what = classify(source)
    allowed = {
        "hf": ("name", "check", "dynamic", "allow_pickle", "hollow"),
        "onnx": ("name", "check", "dynamic", "max_context"),
        "zoo": ("name", "check", "dynamic"),
    }.get(kind, ("name", "check", "example_inputs", "dynamic", "custom_ops"))
    for key in options:
        if key not in allowed:
            raise EdgecError("E0002", stage=STAGE, where=f"option {key!r}", found=f"a {kind} source",
                             wanted=did_you_mean(key, allowed))
    if kind == "hf":
        from edgec.importers import hf

        return hf.load(what, **options)
    if kind == "onnx":
        from edgec.importers import onnx as onnx_door

        return onnx_door.load(Path(what), **options)
    from edgec.importers import torch as torch_door

    if kind == "module":
        return torch_door.load(source, **options)
    if kind == "zoo":
        return torch_door.load_zoo(what, **options)
    return torch_door.load_factory(what, **options)


def _is_torchscript(path: Path) -> bool:
    """Whether a file is an archive with code; nothing of it is run."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def classify(source: object) -> tuple[str, str]:
    """(kind, path): kind is `module`, `factory`, `zoo`, `onnx` or `hf`; path is "" for a module.

    Decides by looking at the source only: nothing of it is run or downloaded. Raises EdgecError E0003 or E0101.
    """
    torch = sys.modules.get("torch")  # whoever holds a module has imported torch
    if torch is not None and isinstance(source, (torch.nn.Module, torch.export.ExportedProgram)):
        return "module", ""
    if not isinstance(source, (str, Path)):
        raise EdgecError("E0101", stage=STAGE, where="source", found=f"an object of type {type(source).__name__}",
                         wanted=SOURCES)
    text = str(source)
    if not text or "\0" in text:
        raise EdgecError("E0101", stage=STAGE, where="source", found=repr(text), wanted=SOURCES)
    if text.startswith(zoo.PREFIX):
        zoo.find(text)
        return "zoo", text
    path = Path(text)
    if path.is_dir():
        if not (path / "config.json").is_file():
            listed = sorted(p.name for p in path.iterdir())
            shown = ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")
            raise EdgecError("E0101", stage=STAGE, where=text, wanted=SOURCES,
                             found=f"a folder without config.json ({shown or 'empty'})")
        return "hf", text
    if path.is_file() and path.suffix == ".gguf":
        return "hf", text
    if path.is_file() and path.suffix == ".onnx":
        return "onnx", text
    if path.is_file():
        hint = _SCRIPT if _is_torchscript(path) else _HINTS.get(path.suffix, "").format(file=text)
        raise EdgecError("E0101", stage=STAGE, where=text, found=f"a file ({path.suffix or 'no suffix'})",
                         wanted=SOURCES, hint=hint)
    file, colon, factory = text.rpartition(":")
    if colon and (Path(file) / "config.json").is_file():
        return "hf", text
    if colon and file.endswith(".py"):
        if not Path(file).is_file():
            raise EdgecError("E0003", stage=STAGE, where=file, found="no such file", wanted=SOURCES)
        if not factory.isidentifier():
            raise EdgecError("E0101", stage=STAGE, where=text, found=f"factory {factory!r}",
                             wanted="the name of a function in that file")
        return "factory", text
    if hub.parse(text) is not None:
        return "hf", text
    raise EdgecError("E0003", stage=STAGE, where=text, found="no such file or folder", wanted=SOURCES)
