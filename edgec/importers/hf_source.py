"""Checkpoints that are no safetensors of floats, made to look like one: quantized layers, GGUF files, pickles.

Builders read a configuration from a folder, so each of these gets a temporary one with its small files, and its
tensors by the names that transformers uses. The weights themselves stay where they are.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgec.errors import EdgecError
from edgec.importers import gguf, gguf_model, pickles, quantized
from edgec.importers.hf import Folder
from edgec.importers.stored import Stored, open_safetensors

STAGE = "import"
_SMALL = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_SMALL_BYTES = 64 << 20


def from_quantized(path: Path, config: Mapping[str, Any], weights: tuple[Path, ...]) -> Folder:
    """A folder whose config.json has a quantization_config. Raises EdgecError as edgec.importers.quantized."""
    settings = config["quantization_config"]
    if not isinstance(settings, dict):
        raise EdgecError("E0101", stage=STAGE, where=str(path / "config.json"), wanted="a JSON object",
                         found=f"quantization_config is a {type(settings).__name__}")
    tensors: dict[str, Stored] = {}
    for file in weights:
        tensors.update(open_safetensors(file))
    plain = {k: v for k, v in config.items() if k != "quantization_config"}
    return _staged(path, plain, weights, quantized.unpacked(tensors, settings, str(path / "config.json")))


def from_gguf(path: Path) -> Folder:
    """A GGUF file of a language model. Raises EdgecError as edgec.importers.gguf and gguf_model."""
    file = gguf.read_gguf(path)
    config = gguf_model.config_of(file)
    folder = _staged(path, config, (path.resolve(),), gguf_model.tensors_of(file, config))
    tokenizer = gguf_model.tokenizer_of(file)
    if tokenizer is not None:
        (folder.path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def from_pickles(path: Path, config: Mapping[str, Any]) -> Folder | None:
    """A folder with pytorch_model*.bin, unpickled in a child process; None when it has none."""
    files = pickles.pickle_files(path)
    if not files:
        return None
    folder = _staged(path, config, tuple(f.resolve() for f in files), {})
    tensors: dict[str, Stored] = {}
    for file in folder.weights:
        tensors.update(open_safetensors(pickles.convert(file, folder.path)))
    folder.tensors.update(tensors)  # type: ignore[union-attr]  # a dict, made above
    return folder


def _staged(path: Path, config: Mapping[str, Any], weights: tuple[Path, ...], tensors: dict[str, Stored]) -> Folder:
    keep = tempfile.TemporaryDirectory(prefix="edgec-import-")
    place = Path(keep.name)
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in _SMALL if path.is_dir() else ():
        if (path / name).is_file() and (path / name).stat().st_size <= _SMALL_BYTES:
            shutil.copyfile(path / name, place / name)
    return Folder(place, dict(config), weights, tensors, path, keep)
