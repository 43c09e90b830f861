"""Pickled weights (pytorch_model.bin), read only when the user asks for it and never in this process.

A pickle is a program. torch's restricted unpickler (weights_only) runs in a child process, and all that comes back is
a safetensors file in a temporary folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgec.errors import EdgecError

STAGE = "import"
_SINGLE, _INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_SECONDS = 1800
# Tensors that share memory are written once each: safetensors refuses to guess which of them is meant.
_CHILD = """
import sys, torch
from safetensors.torch import save_file
state = torch.load(sys.argv[1], map_location="cpu", weights_only=True, mmap=sys.argv[3] == "mmap")
state = state.get("state_dict", state) if isinstance(state, dict) else state
if not isinstance(state, dict):
    sys.exit("it holds a " + type(state).__name__ + ", not a state dict")
tensors, seen = {}, set()
for name, value in state.items():
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous()
        tensors[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
save_file(tensors, sys.argv[2])
"""


def pickle_files(folder: Path) -> list[Path]:
    """The pickled weight files of a folder, all of them plain names in it; empty when there are none."""
    if (folder / _INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as e:
            raise EdgecError("E0101", stage=STAGE, where=str(folder / _INDEX), found=str(e)[:300],
                             wanted="a map from tensors to files") from e
        wrong = [n for n in names if not isinstance(n, str) or n != Path(n).name or not (folder / n).is_file()]
        if wrong:
            raise EdgecError("E0101", stage=STAGE, where=str(folder / _INDEX), found=f"shard {wrong[0]!r}",
                             wanted="files inside the folder")
        return [folder / n for n in names]
    return [folder / _SINGLE] if (folder / _SINGLE).is_file() else []


def convert(file: Path, into: Path) -> Path:
    """Writes the tensors of a pickle as `into`/NAME.safetensors and returns that file.

    Raises EdgecError (E0101) when torch's restricted unpickler refuses the file: it holds more than tensors.
    """
    target = into / f"{file.stem}.safetensors"
    arguments: list[Any] = [sys.executable, "-I", "-c", _CHILD, str(file), str(target), _mapping(file)]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=_SECONDS, check=False,
                              stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise EdgecError("E0101", stage=STAGE, where=str(file), found=str(e)[:300], wanted="a pickle of tensors") from e
    if done.returncode or not target.is_file():
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or [f"status {done.returncode}"]
        reason = next((line for line in lines if "Unsupported" in line or "Error" in line), lines[-1])
        raise EdgecError("E0101", stage=STAGE, where=str(file), found=reason.strip()[:300],
                         wanted="a pickle of tensors and nothing else",
                         hint="ask its author for safetensors; edgec never runs code from a checkpoint")
    return target


def _mapping(file: Path) -> str:
    """torch maps the zip form of its files only; older ones are read."""
    with file.open("rb") as opened:
        return "mmap" if opened.read(4) == b"PK\x03\x04" else "read"
