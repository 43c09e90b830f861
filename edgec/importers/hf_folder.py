"""A Hugging Face model folder as it lies on the disk: config.json and plain safetensors, looked at but not read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgec.compress.formats import Array
from edgec.errors import EdgecError
from edgec.importers.stored import Dense, Stored, open_shards
from edgec.ir.weights import sha256_of

STAGE = "import"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")


@dataclass(frozen=True)
class Folder:
    """A model folder that has been looked at: its configuration as written and its weight files, by their own names.

    Checkpoints that are not plain safetensors (edgec.importers.hf_source) have their `tensors` here under the names
    that transformers uses; path is then a temporary folder, alive as long as `keep`, and origin the user's.
    label: ORG/NAME@COMMIT of a model of the hub. hollow: for inspection; `state` gives shapes without values.
    """

    path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    tensors: dict[str, Stored] | None = None
    origin: Path | None = None
    keep: object = None
    label: str = ""
    hollow: bool = False

    @property
    def architecture(self) -> str:
        """The transformers class that config.json names, "" for none."""
        named = self.config.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else ""

    @property
    def name(self) -> str:
        """What the model is called that nobody named: as the hub calls it, or as its folder or file."""
        return self.label.partition("@")[0].rpartition("/")[2] or _name_of(self.origin or self.path)

    @property
    def source(self) -> str:
        return self.label or str(self.origin or self.path)

    def sha256(self) -> str:
        """Of the weight file, or of the names and hashes of several; reads all of them."""
        if len(self.weights) == 1:
            return sha256_of(self.weights[0])
        lines = "".join(f"{w.name} {sha256_of(w)}\n" for w in self.weights)
        return hashlib.sha256(lines.encode()).hexdigest()

    def stored(self) -> dict[str, Stored]:
        """The checkpoint's tensors, none of them read. Raises EdgecError (E0101) as open_shards."""
        return dict(open_shards(self.weights) if self.tensors is None else self.tensors)

    def state(self) -> dict[str, Any]:
        """name -> torch tensor. Over the mapped file where that holds them plainly: nothing is read until a tensor's
        values are. Of a hollow folder: one value everywhere, which takes no memory."""
        import safetensors
        import torch

        if self.hollow:
            numbered = enumerate(self.stored().items())
            return {key: torch.from_numpy(_stand_in(t, i)).expand(t.shape) for i, (key, t) in numbered}
        if self.tensors is not None:
            return {name: torch.from_numpy(np.array(t.read())) for name, t in self.tensors.items()}
        tensors: dict[str, Any] = {}
        for file in self.weights:
            try:
                with safetensors.safe_open(file, framework="pt") as opened:
                    names: list[str] = opened.keys()
                    tensors.update({key: opened.get_tensor(key) for key in names})
            except Exception as e:
                raise EdgecError("E0101", stage=STAGE, where=str(file), found=str(e)[:300],
                                 wanted="a complete safetensors file", hint="copy or download the file again") from e
        return tensors


def _stand_in(tensor: Stored, number: int) -> Array:
    """A scalar of the type that `tensor` has in memory. Floats differ from one another and from 0 and 1: exporters
    merge constants that are equal, and drop what does nothing."""
    if isinstance(tensor, Dense) and tensor.dtype.kind in "iub":
        return np.zeros((), tensor.dtype)
    return np.array(number + 2, np.float32)


def _name_of(source: Path) -> str:
    """Its folder's name, or its file's without the suffix.

    Without control characters: the name goes into the manifest and onto terminals.
    """
    name = source.resolve().stem if source.is_file() else source.resolve().name
    return "".join(c if c.isprintable() else "?" for c in name)


def weight_files(path: Path) -> tuple[Path, ...]:
    """The safetensors files of a folder by their own names, not by those of files that they are links to: the hub's
    cache names its files by hash, and the same model must be the same wherever it lies.

    Raises EdgecError (E0101) for none, for a missing shard, and for headers that lie (edgec.importers.stored).
    """
    shards: dict[str, str] = {}
    if (path / INDEX).is_file():
        shards = _weight_map(path / INDEX)
        names = sorted(set(shards.values()))
    elif (path / SINGLE).is_file():
        names = [SINGLE]
    else:
        others = sorted(p.name for p in path.iterdir() if p.suffix in _OTHER_WEIGHTS)
        raise EdgecError(
            "E0101", stage=STAGE, where=str(path), wanted=f"{SINGLE} or {INDEX}",
            found=f"weights only as {', '.join(others[:4])}" if others else "no weights",
            hint="convert them with transformers: save_pretrained(..., safe_serialization=True); or --allow-pickle, if "
                 "torch's restricted reader of pickles is enough for you" if others else "",
        )
    files = tuple(path.absolute() / name for name in names)
    for file in files:
        if not file.is_file():
            raise EdgecError("E0101", stage=STAGE, where=str(file), found="a shard that the index names is missing",
                             wanted="all shards", hint="a link to a file that is gone looks like this too")
    stored = open_shards(files)
    for name, shard in shards.items():
        if name not in stored or stored[name].file.name != shard:
            raise EdgecError("E0101", stage=STAGE, where=f"{path / INDEX}, {name!r}", found=f"not in {shard}",
                             wanted="every tensor in the shard that the index names",
                             hint="copy or download the index and all shards again")
    return files


def _weight_map(index: Path) -> dict[str, str]:
    """tensor -> shard; E0101 unless every shard is a file name inside the folder."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise EdgecError("E0101", stage=STAGE, where=str(index), found="no weight_map",
                         wanted="a map from tensors to files")
    for shard in shards.values():
        if not isinstance(shard, str) or shard != Path(shard).name or shard in ("", ".", "..") or "\0" in shard:
            raise EdgecError("E0101", stage=STAGE, where=str(index), found=f"shard {shard!r}",
                             wanted="file names inside the folder")
    return shards


def _constant(word: str) -> float:
    """Some configurations hold infinite limits; a NaN would only make NaNs."""
    if word == "NaN":
        raise ValueError("it holds a NaN")
    return float(word)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises EdgecError: E0003, E0101."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_constant)
    except OSError as e:
        raise EdgecError("E0003", stage=STAGE, where=str(path), found=str(e), wanted="a readable file") from e
    except (ValueError, RecursionError) as e:
        raise EdgecError("E0101", stage=STAGE, where=str(path), found=f"not JSON: {e}", wanted="a JSON object") from e
    if not isinstance(data, dict):
        raise EdgecError("E0101", stage=STAGE, where=str(path), found=f"a JSON {type(data).__name__}",
                         wanted="a JSON object")
    return data
