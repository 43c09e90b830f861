"""Pickled weights (pytorch_model.bin), read only when the user asks for it and never in this process.

A pickle is a program. torch's restricted unpickler (weights_only) runs in a child process, and all that comes back is
a safetensors file in a temporary folder. The child has next to nothing of this process: no open files, and of its
environment only what it takes to find libraries. Where the system can (not Windows; memory: Linux alone) it also has
limits, set before the file is opened: `memory_room` more memory than it has then, a file no larger than that, half an
hour of processor time, few open files, no children, no core dump.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgec.errors import EdgecError

STAGE = "import"
_SINGLE, _INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_SECONDS = 1800
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
# The file as it is mapped, its tensors, those that are written twice because they share memory, and bytes to write.
_TIMES, _BESIDES = 4, 512 << 20
# What Python, torch, the allocator and the loader say when there is no more.
_NO_MEMORY = ("MemoryError", "allocate memory", "not enough memory", "bad_alloc", "memory allocation of")
# torch first: what it takes by itself differs from build to build.
_LIMITS = """
import sys, torch
from safetensors.torch import save_file
room, seconds = int(sys.argv[4]), int(sys.argv[5])
try:
    import resource
except ImportError:
    limits = []
else:
    limits = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 0), (resource.RLIMIT_NOFILE, 64),
              (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, room)]
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            limits.append((resource.RLIMIT_AS, room + int(file.read().split()[0]) * resource.getpagesize()))
for what, most in limits:
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))
"""
# Tensors that share memory are written once each: safetensors refuses to guess which of them is meant.
_READ = """
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
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as e:
            raise EdgecError("E0101", stage=STAGE, where=str(folder / _INDEX), found=str(e)[:300],
                             wanted="a map from tensors to files") from e
        wrong = [n for n in names if not isinstance(n, str) or n != Path(n).name or not (folder / n).is_file()]
        if wrong:
            raise EdgecError("E0101", stage=STAGE, where=str(folder / _INDEX), found=f"shard {wrong[0]!r}",
                             wanted="files inside the folder")
        return [folder / n for n in names]
    return [folder / _SINGLE] if (folder / _SINGLE).is_file() else []


def memory_room(file: Path) -> int:
    """Bytes that the child may take for this file besides what it has after its imports."""
    return _TIMES * file.stat().st_size + _BESIDES


def convert(file: Path, into: Path) -> Path:
    """Writes the tensors of a pickle as `into`/NAME.safetensors and returns that file.

    Raises EdgecError (E0101) when torch's restricted unpickler refuses the file, because it holds more than tensors,
    and when reading it takes more memory than its size explains.
    """
    target = into / f"{file.stem}.safetensors"
    try:
        room = memory_room(file)
        arguments: list[Any] = [sys.executable, "-I", "-c", _LIMITS + _READ, file, target, _mapping(file), str(room),
                                str(_SECONDS)]
        done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", timeout=_SECONDS,
                              check=False, stdin=subprocess.DEVNULL, cwd=into, env=_environment())
    except (OSError, subprocess.TimeoutExpired) as e:
        raise EdgecError("E0101", stage=STAGE, where=str(file), found=str(e)[:300], wanted="a pickle of tensors") from e
    if done.returncode or not target.is_file():
        raise _refused(file, room, done.stderr, done.returncode)
    return target


def _refused(file: Path, room: int, said: str, status: int) -> EdgecError:
    if any(words in said for words in _NO_MEMORY):
        return EdgecError(
            "E0101", stage=STAGE, where=str(file), found=f"reading it takes more than {room >> 20} MiB of memory",
            wanted=f"a pickle that takes at most {_TIMES} times its size and {_BESIDES >> 20} MiB",
            hint="it may have been made to exhaust the memory: ask its author for safetensors",
        )
    lines = [line for line in said.strip().splitlines() if line.strip()] or [f"status {status}"]
    reason = next((line for line in lines if "Unsupported" in line or "Error" in line), lines[-1])
    return EdgecError("E0101", stage=STAGE, where=str(file), found=reason.strip()[:300],
                      wanted="a pickle of tensors and nothing else",
                      hint="ask its author for safetensors; edgec never runs code from a checkpoint")


def _environment() -> dict[str, str]:
    """One thread: each of them takes memory of its own, and there is nothing to compute."""
    return {"OMP_NUM_THREADS": "1", **{name: os.environ[name] for name in _KEPT if name in os.environ}}


def _mapping(file: Path) -> str:
    """torch maps the zip form of its files only; older ones are read."""
    with file.open("rb") as opened:
        return "mmap" if opened.read(4) == b"PK\x03\x04" else "read"
