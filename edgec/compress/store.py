"""The folder of a quantization: one safetensors file per finished layer, and quant.json.

    OUT/quant.json                  arguments, model, finished layers with their errors, what was left out and why
    OUT/layers/0007-NAME.safetensors  planes, scale, offset; or planes, lut
    OUT/calibration/                activations and samples of a calibration, until it is finished

A file appears whole or not at all (written beside, flushed to the disk, renamed), and quant.json counts the steps
after whose files it was written, so that whatever moment a run is killed at, the next one goes on from a whole step.
Nothing in the folder depends on when or where it was made.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgec.compress.formats import Array, PaletteSpec, PaletteTensor, Quantized
from edgec.compress.policy import parse_spec
from edgec.compress.stored import StoredLayer
from edgec.errors import EdgecError

STATE = "quant.json"
FORMAT = 2  # 1 had the columns of a convolution's matrix in another order
_STAGE = "quantize"
_HALF, _SINGLE = np.dtype("<f2"), np.dtype("<f4")
_PART_TYPES = {"planes": (np.dtype("u1"),), "scale": (_HALF,), "offset": (_HALF,), "lut": (_HALF, _SINGLE)}
_TYPES = {np.dtype("u1"): "U8", _HALF: "F16", _SINGLE: "F32", np.dtype("<i8"): "I64"}

Packed = Quantized | PaletteTensor


class Store:
    """A folder that a quantization writes to. Use it in `with opened(...)`."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder, self.state = folder, state
        self.work = folder / "calibration"

    @property
    def step(self) -> int:
        """How many steps are finished."""
        return int(self.state["step"])

    @property
    def complete(self) -> bool:
        return bool(self.state["complete"])

    def write_layer(self, index: int, name: str, packed: Packed) -> str:
        """Writes the file of a layer and returns its path below the folder."""
        file = f"layers/{index:04d}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)[:120]}.safetensors"
        layer = StoredLayer.of(packed)
        write_safetensors(self.folder / file, {part: layer.read(part) for part in layer.parts}, {
            "name": name, "spec": str(layer.spec), "rows": str(layer.shape[0]), "columns": str(layer.shape[1])})
        return file

    def commit(self, records: list[dict[str, Any]]) -> None:
        """One more step, which finished the layers of `records`, is done."""
        self.state["layers"].extend(records)
        self.state["step"] += 1
        _write_state(self.folder, self.state)

    def finish(self, more: Mapping[str, Any]) -> None:
        """Every step is done: `more` joins quant.json, and the activations go."""
        if not self.complete:
            self.state.update(more)
            self.state["complete"] = True
            _write_state(self.folder, self.state)
        shutil.rmtree(self.work, ignore_errors=True)


class Finished(Mapping[str, StoredLayer]):
    """The layers of a finished quantization by weight name, their parts read when they are asked for."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder, self.state = folder, state
        self._layers: dict[str, dict[str, Any]] = {layer["name"]: layer for layer in state["layers"]}

    def __getitem__(self, name: str) -> StoredLayer:
        return read_layer(self.folder, self._layers[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


@contextmanager
def opened(folder: Path, arguments: dict[str, Any]) -> Iterator[Store]:
    """The store in `folder` for a run with `arguments`, new or as an earlier run left it; no second run may have it.

    A run that fails before it has anything to go on from leaves nothing: the same command without its mistake must not
    be refused. Raises EdgecError: E0004 for a folder that is something else or in use, E0002 when the earlier run had
    other arguments or another model.
    """
    import fcntl

    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as e:
        raise _unwritable(folder, e) from e
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise EdgecError("E0004", stage=_STAGE, where=str(folder), found="another run that writes to it",
                             wanted="one run at a time") from e
        store = Store(folder, _begin(folder, arguments))
        try:
            (folder / "layers").mkdir(exist_ok=True)
            for left in [*folder.glob("*.tmp"), *folder.glob("layers/*.tmp")]:
                left.unlink()
            yield store
        except (EdgecError, OSError):
            _discard_beginning(store, made)
            raise
    except OSError as e:
        raise _unwritable(folder, e) from e
    finally:
        os.close(lock)


def _discard_beginning(store: Store, made: bool) -> None:
    """Deletes what a run wrote that has finished no step and drawn no samples."""
    if store.step or any(store.work.glob("self.*")):
        return
    for folder in (store.work, store.folder / "layers"):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # why the run failed is what must be said
        (store.folder / STATE).unlink(missing_ok=True)
        if made:
            store.folder.rmdir()


def _begin(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    # As they will be read back: tuples are lists there.
    arguments = json.loads(json.dumps(arguments))
    if (folder / STATE).exists():
        state = _read_state(folder)
        differing = sorted(key for key in {*arguments, *state["arguments"]}
                           if arguments.get(key) != state["arguments"].get(key))
        if differing:
            raise EdgecError(
                "E0002", stage=_STAGE, where=str(folder), wanted="the arguments and the model of the run that began it",
                found="; ".join(f"{k}: {state['arguments'].get(k)!r} then, {arguments.get(k)!r} now"
                                for k in differing),
                hint="choose another -o folder, or delete this one",
            )
        return state
    foreign = sorted(p.name for p in folder.iterdir() if not p.name.endswith(".tmp"))
    if foreign:
        raise EdgecError("E0004", stage=_STAGE, where=str(folder), found=f"other files ({', '.join(foreign[:4])})",
                         wanted="a new folder, an empty one, or an earlier quantization",
                         hint="choose another -o folder")
    # From here on the folder is known for what it is, whatever happens next.
    state = {"format": FORMAT, "arguments": arguments, "step": 0, "complete": False, "layers": []}
    _write_state(folder, state)
    return state


def load_finished(folder: Path) -> Finished:
    """The result of `edgec quantize -o folder`. Raises EdgecError: E0003 missing, E0101 damaged, E0002 unfinished."""
    if not (folder / STATE).is_file():
        raise EdgecError("E0003", stage=_STAGE, where=str(folder / STATE), found="no such file",
                         wanted="a folder that `edgec quantize` wrote")
    state = _read_state(folder)
    if not state["complete"]:
        raise EdgecError("E0002", stage=_STAGE, where=str(folder), found=f"{state['step']} finished steps",
                         wanted="a finished quantization", hint="run the same `edgec quantize` again: it goes on")
    return Finished(folder, state)


def _read_state(folder: Path) -> dict[str, Any]:
    def damaged(found: str) -> EdgecError:
        return EdgecError("E0101", stage=_STAGE, where=str(folder / STATE), found=found,
                          wanted="the state of an `edgec quantize`", hint="delete the folder and begin anew")

    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise damaged(str(e)) from e
    types = {"format": int, "arguments": dict, "step": int, "complete": bool, "layers": list}
    if not isinstance(state, dict) or any(type(state.get(k)) is not t for k, t in types.items()):
        raise damaged(f"not an object with {', '.join(types)}")
    if state["format"] != FORMAT:
        raise damaged(f"format {state['format']}, of another version of edgec")
    wanted = {"name": str, "file": str, "spec": str, "rows": int, "columns": int}
    for layer in state["layers"]:
        if not isinstance(layer, dict) or any(type(layer.get(k)) is not t for k, t in wanted.items()):
            raise damaged(f"a layer without {', '.join(wanted)}")
    return state


def read_layer(folder: Path, record: Mapping[str, Any]) -> StoredLayer:
    """The layer of a record of quant.json, its parts not yet read.

    Reading them raises EdgecError (E0101) when the file is not what the record says.
    """
    spec = parse_spec(record["spec"], "quant.json")
    names = ("planes", "lut") if isinstance(spec, PaletteSpec) else ("planes", "scale", "offset")
    return StoredLayer(spec, (record["rows"], record["columns"]),
                       {name: partial(_read_part, folder, record, name) for name in names})


def _read_part(folder: Path, record: Mapping[str, Any], part: str) -> Array:
    from safetensors import SafetensorError, safe_open

    file = folder / record["file"]

    def damaged(found: str) -> EdgecError:
        return EdgecError("E0101", stage=_STAGE, where=f"{file}, {part}", found=found,
                          wanted=f"{record['name']}, {record['spec']} of {record['rows']} x {record['columns']}",
                          hint="delete the folder and quantize anew")

    if not re.fullmatch(r"layers/[A-Za-z0-9._-]+", record["file"]):
        raise damaged("a path outside the folder")
    try:
        with safe_open(file, "numpy") as opened_file:
            head = opened_file.metadata() or {}
            values: Array = opened_file.get_tensor(part)
    except (OSError, SafetensorError) as e:
        raise damaged(str(e)) from e
    if any(head.get(k) != str(record[k]) for k in ("name", "spec", "rows", "columns")):
        raise damaged(f"{head.get('name')}, {head.get('spec')} of {head.get('rows')} x {head.get('columns')}")
    if values.dtype not in _PART_TYPES[part] or (values.dtype.kind == "f" and not np.isfinite(values).all()):
        raise damaged(f"{values.dtype}, or a value that is not finite")
    return values


def _write_state(folder: Path, state: Mapping[str, Any]) -> None:
    _write_whole(folder / STATE, [json.dumps(state, indent=1, sort_keys=True).encode() + b"\n"])


def write_safetensors(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """A safetensors file whose bytes depend on its content alone (the package orders metadata at random)."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    arrays = {name: np.ascontiguousarray(a, a.dtype.newbyteorder("<")) for name, a in tensors.items()}
    at = 0
    for name, array in arrays.items():
        end = at + array.nbytes
        header[name] = {"dtype": _TYPES[array.dtype], "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    _write_whole(path, [len(text).to_bytes(8, "little") + text, *(array.data for array in arrays.values())])


def _write_whole(path: Path, parts: list[bytes | memoryview]) -> None:
    """Writes a file beside its place, flushes it to the disk and renames it there."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _unwritable(folder: Path, e: OSError) -> EdgecError:
    return EdgecError("E0004", stage=_STAGE, where=e.filename or str(folder), found=e.strerror or str(e),
                      wanted="a folder that can be written, with room for the result",
                      hint="choose another -o folder; the run goes on from where it is when it is started again")
