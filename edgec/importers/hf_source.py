"""From what the user named to a Folder: a folder, a GGUF file, or a hub id.

Checkpoints that are no safetensors of floats (quantized layers, GGUF files, pickles) are made to look like one.
Builders read a configuration from a folder, so each of these gets a temporary one with its small files, and its
tensors by the names that transformers uses. The weights themselves stay where they are.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgec.errors import EdgecError
from edgec.importers import gguf, gguf_model, hub, pickles, quantized
from edgec.importers.hf_folder import INDEX, SINGLE, Folder, read_json, weight_files
from edgec.importers.stored import Stored, open_shards

STAGE = "import"
_SMALL = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_SMALL_BYTES = 64 << 20


def open_source(source: str, *, allow_pickle: bool = False) -> tuple[Folder, str]:
    """(folder, part) of FOLDER, FOLDER:PART, FILE.gguf or a hub id. Raises EdgecError as read and hub.fetch."""
    model = hub.parse(source)
    if model is None:
        path, part = split_part(source)
        return read(path, allow_pickle=allow_pickle), part
    path = hub.fetch(model, allow_pickle=allow_pickle)
    return replace(read(path, allow_pickle=allow_pickle), label=f"{model.repository}@{path.name}"), model.part


def split_part(source: str) -> tuple[Path, str]:
    """FOLDER or FOLDER:PART as (folder, part); a folder whose name has a colon is that folder."""
    folder, colon, part = source.rpartition(":")
    return (Path(folder), part) if colon and not Path(source).exists() else (Path(source), "")


def read(path: Path, *, allow_pickle: bool = False) -> Folder:
    """Raises EdgecError: E0101 for what cannot be read or is not plain data, E0103 for quantized weights."""
    if path.is_file():
        return _from_gguf(path)
    config, where = read_json(path / "config.json"), str(path / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise EdgecError("E0101", stage=STAGE, where=where, found="no model_type",
                         wanted="the config.json of a Hugging Face model")
    if "auto_map" in config:
        raise EdgecError("E0101", stage=STAGE, where=where, found="auto_map: the model is code in the folder",
                         wanted="an architecture that transformers has built in",
                         hint="code from model folders is never run")
    if "quantization_config" in config:
        return _from_quantized(path, config, weight_files(path))
    if allow_pickle and not ((path / SINGLE).is_file() or (path / INDEX).is_file()):
        unpickled = _from_pickles(path, config)
        if unpickled is not None:
            return unpickled
    return Folder(path, config, weight_files(path))


def _from_quantized(path: Path, config: Mapping[str, Any], weights: tuple[Path, ...]) -> Folder:
    """A folder whose config.json has a quantization_config. Raises EdgecError as edgec.importers.quantized."""
    settings = config["quantization_config"]
    if not isinstance(settings, dict):
        raise EdgecError("E0101", stage=STAGE, where=str(path / "config.json"), wanted="a JSON object",
                         found=f"quantization_config is a {type(settings).__name__}")
    tensors: dict[str, Stored] = {**open_shards(weights)}
    plain = {k: v for k, v in config.items() if k != "quantization_config"}
    return _staged(path, plain, weights, quantized.unpacked(tensors, settings, str(path / "config.json")))


def _from_gguf(path: Path) -> Folder:
    """A GGUF file of a language model. Raises EdgecError as edgec.importers.gguf and gguf_model."""
    file = gguf.read_gguf(path)
    config = gguf_model.config_of(file)
    folder = _staged(path, config, (path.absolute(),), gguf_model.tensors_of(file, config))
    tokenizer = gguf_model.tokenizer_of(file)
    if tokenizer is not None:
        (folder.path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def _from_pickles(path: Path, config: Mapping[str, Any]) -> Folder | None:
    """A folder with pytorch_model*.bin, unpickled in a child process; None when it has none."""
    files = pickles.pickle_files(path)
    if not files:
        return None
    folder = _staged(path, config, tuple(f.absolute() for f in files), {})
    converted = open_shards([pickles.convert(file, folder.path) for file in folder.weights])
    return replace(folder, tensors={**converted})


def _staged(path: Path, config: Mapping[str, Any], weights: tuple[Path, ...], tensors: dict[str, Stored]) -> Folder:
    keep = tempfile.TemporaryDirectory(prefix="edgec-import-")
    place = Path(keep.name)
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in _SMALL if path.is_dir() else ():
        if (path / name).is_file() and (path / name).stat().st_size <= _SMALL_BYTES:
            shutil.copyfile(path / name, place / name)
    return Folder(place, dict(config), weights, tensors, path, keep)
