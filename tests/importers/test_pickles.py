"""The child process that reads pickles: what it has of this one, and what it may take."""

from __future__ import annotations

import json
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgec.errors import EdgecError
from edgec.importers import pickles
from edgec.importers.stored import open_safetensors

torch = pytest.importorskip("torch")
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")

PROBE = """
import json, os
with open(sys.argv[2], "w") as file:
    json.dump({"environment": dict(os.environ), "files": len(os.listdir("/proc/self/fd")),
               "limits": {n: resource.getrlimit(getattr(resource, n))[0] for n in
                          ("RLIMIT_CORE", "RLIMIT_NPROC", "RLIMIT_NOFILE", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_AS")},
               "size": int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()}, file)
"""


def saved(file: Path, state: Any, **options: Any) -> Path:
    torch.save(state, file, **options)
    return file


def refused(file: Path) -> EdgecError:
    with pytest.raises(EdgecError) as caught:
        pickles.convert(file, file.parent)
    assert caught.value.code == "E0101"
    return caught.value


@linux
def test_what_the_child_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_READ", PROBE)
    monkeypatch.setenv("EDGEC_SECRET", "x")
    file = saved(tmp_path / "a.bin", {"w": torch.zeros(3)})
    with (tmp_path / "open").open("w") as kept:
        os.set_inheritable(kept.fileno(), True)
        found = json.loads(pickles.convert(file, tmp_path).read_text())
    assert "EDGEC_SECRET" not in found["environment"]
    assert "HOME" not in found["environment"]
    # stdin, stdout, stderr, the probe's own file and the folder that it lists
    assert found["files"] == 5
    room, limits = pickles.memory_room(file), found["limits"]
    assert limits.pop("RLIMIT_AS") <= found["size"] + room
    assert limits == {"RLIMIT_CORE": 0, "RLIMIT_NPROC": 0, "RLIMIT_NOFILE": 64, "RLIMIT_CPU": pickles._SECONDS,
                      "RLIMIT_FSIZE": room}


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_honest_files_fit(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large beside the room that every file has, and with tensors that are written twice."""
    monkeypatch.setattr(pickles, "_BESIDES", 64 << 20)
    large = torch.arange(40 << 20, dtype=torch.int32)
    file = saved(tmp_path / "a.bin", {"w": large, "tied": large, "turned": large.reshape(2, -1).T},
                 _use_new_zipfile_serialization=form == "zip")
    tensors = open_safetensors(pickles.convert(file, tmp_path))
    assert {k: t.shape for k, t in tensors.items()} == {"w": (40 << 20,), "tied": (40 << 20,),
                                                       "turned": (20 << 20, 2)}
    assert tensors["turned"].read()[7].tolist() == [7, 7 + (20 << 20)]


class _Call:
    """Unpickles as function(*arguments)."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def views(file: Path, count: int) -> Path:
    """`count` values that are one value in the file."""
    return saved(file, {"w": torch.zeros(1).expand(count)})


def bytearrays(file: Path, count: int) -> Path:
    file.write_bytes(pickle.dumps({"w": _Call(bytearray, 4 * count)}, protocol=2))
    return file


def deflated(file: Path, count: int) -> Path:
    """The zip form with its zeros compressed."""
    saved(file, {"w": torch.zeros(count)})
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(file.with_suffix(".new"), "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    return file.with_suffix(".new").rename(file)


@linux
@pytest.mark.parametrize("bomb", [views, bytearrays])
def test_memory_bombs(tmp_path: Path, bomb: Any) -> None:
    error = refused(bomb(tmp_path / "bomb.bin", 300 << 20))
    assert "takes more than 512 MiB of memory" in error.found
    assert "4 times its size" in error.wanted


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    """They cannot be mapped, so what they grow to does not matter."""
    assert "not resizable" in refused(deflated(tmp_path / "bomb.bin", 1 << 20)).found


def test_the_same_in_small_is_read(tmp_path: Path) -> None:
    assert open_safetensors(pickles.convert(views(tmp_path / "a.bin", 1 << 20), tmp_path))["w"].shape == (1 << 20,)
    # Not for want of memory: it holds no tensors.
    assert "memory" not in refused(bytearrays(tmp_path / "b.bin", 1 << 10)).found
