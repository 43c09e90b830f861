"""Headers of safetensors files that no honest writer makes, each beside one that differs only in being right."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.errors import EdgecError
from edgec.importers.hf_source import read
from edgec.importers.stored import open_safetensors, open_shards

DATA = np.arange(4, dtype="<f4").tobytes()


def entry(shape: object = (4,), offsets: object = (0, 16), dtype: object = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def pair(first: object, second: object) -> dict[str, Any]:
    """Two tensors of two values at these offsets."""
    return {"a": entry([2], first), "b": entry([2], second)}


def written(file: Path, header: object, data: bytes = DATA, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


def refused(file: Path) -> EdgecError:
    with pytest.raises(EdgecError) as caught:
        open_safetensors(file)
    assert caught.value.code == "E0101"
    assert str(file) in caught.value.where
    assert caught.value.found
    return caught.value


TWICE = b'{"w": %b, "w": %b}'
ONE = json.dumps(entry([2], [0, 8])).encode()
OTHER = json.dumps(entry([2], [8, 16])).encode()

# name -> (header that is wrong, its healthy twin, a word of the error)
HEADERS: dict[str, tuple[object, object, str]] = {
    "overlap": (pair([0, 8], [4, 12]), pair([0, 8], [8, 16]), "begins at byte 4"),
    "the same bytes twice": (pair([0, 8], [0, 8]), pair([0, 8], [8, 16]), "begins at byte 0"),
    "gap": (pair([0, 8], [12, 20]), pair([0, 8], [8, 16]), "begins at byte 12"),
    "first byte unused": (pair([4, 12], [12, 20]), pair([8, 16], [0, 8]), "begins at byte 4"),
    "bytes after the last": ({"w": entry([2], [0, 8])}, {"w": entry()}, "ends at byte 8 of 16"),
    "beyond the file": ({"w": entry([5], [0, 20])}, {"w": entry()}, "ends at byte 20 of 16"),
    "backwards": ({"w": entry([4], [16, 0])}, {"w": entry()}, "-16 bytes"),
    "negative offset": ({"w": entry([4], [-16, 0])}, {"w": entry()}, "lies at"),
    "infinite offset": (json.dumps({"w": entry([4], [0, float("inf")])}).encode(), {"w": entry()}, "lies at"),
    "offset with a fraction": ({"w": entry([4], [0, 16.0])}, {"w": entry()}, "lies at"),
    "offset as text": ({"w": entry([4], ["0", "16"])}, {"w": entry()}, "lies at"),
    "one offset": ({"w": entry([4], [16])}, {"w": entry()}, "lies at"),
    "offsets that are no list": ({"w": entry([4], 16)}, {"w": entry()}, "lies at"),
    "offset of 500 digits": ({"w": entry([4], [0, 10**500])}, {"w": entry()}, "lies at"),
    "name twice": (TWICE % (ONE, OTHER), TWICE.replace(b'"w"', b'"v"', 1) % (ONE, OTHER), "'w' twice"),
    "field twice": (b'{"w": {"dtype": "F32", "shape": [4], "shape": [2, 2], "data_offsets": [0, 16]}}', {"w": entry()},
                    "'shape' twice"),
    "field missing": ({"w": {"dtype": "F32", "shape": [4]}}, {"w": entry()}, "is not dtype, shape and data_offsets"),
    "field too many": ({"w": {**entry(), "stride": [1]}}, {"w": entry()}, "is not dtype, shape and data_offsets"),
    "negative sizes": ({"w": entry([-2, -2])}, {"w": entry([2, 2])}, "shape"),
    "truth as a size": ({"w": entry([True, 4])}, {"w": entry([1, 4])}, "shape"),
    "rank": ({"w": entry([1] * 99 + [4])}, {"w": entry([1] * 7 + [4])}, "shape"),
    "huge beside 0": ({"z": entry([0, 1 << 62], [0, 0]), "w": entry()}, {"z": entry([0, 7], [0, 0]), "w": entry()},
                      "shape"),
    "bytes too few": ({"w": entry([5])}, {"w": entry([4])}, "16 bytes"),
    "bytes of another type": ({"w": entry([4], dtype="F16")}, {"w": entry([8], dtype="F16")}, "16 bytes"),
    "unknown type": ({"w": entry([16], dtype="F7")}, {"w": entry([16], dtype="U8")}, "type F7"),
    "type that is a list": ({"w": entry(dtype=["F32"])}, {"w": entry()}, "type"),
    "a list": (b"[]", {"w": entry()}, "a header that is a list"),
    "nested": (b'{"w":' + b"[" * 200_000, {"w": entry()}, "recursion"),
    "no JSON": (b'{"w"', {"w": entry()}, "Expecting"),
    "no text": (b"\xff\xfe\xff", {"w": entry()}, "decode"),
    "no tensors": ({"__metadata__": {"format": "pt"}}, {"__metadata__": {"format": "pt"}, "w": entry()}, "no tensors"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers(tmp_path: Path, case: str) -> None:
    wrong, right, word = HEADERS[case]
    assert word in refused(written(tmp_path / "wrong.safetensors", wrong)).found
    tensors = open_safetensors(written(tmp_path / "right.safetensors", right))
    assert b"".join(tensors[k].raw().tobytes() for k in sorted(tensors, key=lambda k: tensors[k].offset)) == DATA


def test_a_name_twice_among_very_many(tmp_path: Path) -> None:
    """Found in time that grows with the header, not with its square: a header may have a hundred megabytes."""
    header = b"{" + b", ".join(b'"%d": 0' % (i % 199_999) for i in range(200_000)) + b"}"
    start = time.process_time()
    assert "'0' twice" in refused(written(tmp_path / "wrong.safetensors", header)).found
    assert time.process_time() - start < 20


@pytest.mark.parametrize("length", [0, 1, 1 << 20, (1 << 63) + 5, (1 << 64) - 1])
def test_lengths_of_headers(tmp_path: Path, length: int) -> None:
    header = {"w": entry()}
    assert "a header of" in refused(written(tmp_path / "wrong.safetensors", header, length=length)).found
    assert open_safetensors(written(tmp_path / "right.safetensors", header))["w"].read().tolist() == [0, 1, 2, 3]


def test_files_that_end_early(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.safetensors", {"w": entry()}).read_bytes()
    for size in (0, 7, 8, 20, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        refused(tmp_path / "cut.safetensors")


# -- several files ---------------------------------------------------------------------------------------------------


def sharded(folder: Path, shards: dict[str, list[str]], weight_map: dict[str, Any]) -> Path:
    """A llama's folder in which each shard holds these tensors."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for file, names in shards.items():
        header = {k: entry([4], [16 * i, 16 * i + 16]) for i, k in enumerate(names)}
        written(folder / file, header, DATA * len(names))
    return folder


MAP = {"a": "1.safetensors", "b": "2.safetensors"}


@pytest.mark.parametrize(("shards", "weight_map", "word"), [
    ({"1.safetensors": ["a", "b"], "2.safetensors": ["b"]}, MAP, "1.safetensors holds too"),
    ({"1.safetensors": ["a"], "2.safetensors": ["c"]}, MAP, "not in 2.safetensors"),
    ({"1.safetensors": ["b"], "2.safetensors": ["a"]}, MAP, "not in 1.safetensors"),
    ({"1.safetensors": ["a"]}, MAP, "missing"),
    ({"1.safetensors": ["a"]}, {}, "no weight_map"),
    ({"1.safetensors": ["a"]}, {"a": 1}, "shard 1"),
    ({"1.safetensors": ["a"]}, {"a": "../1.safetensors"}, "shard '../1.safetensors'"),
    ({"1.safetensors": ["a"]}, {"a": "1.safetensors\0"}, "shard"),
], ids=["twice", "elsewhere", "exchanged", "missing", "empty", "number", "outside", "zero byte"])
def test_shards_that_contradict_their_index(tmp_path: Path, shards: dict[str, list[str]], weight_map: dict[str, Any],
                                            word: str) -> None:
    with pytest.raises(EdgecError) as caught:
        read(sharded(tmp_path / "wrong", shards, weight_map))
    assert caught.value.code == "E0101"
    assert word in caught.value.found
    right = read(sharded(tmp_path / "right", {"1.safetensors": ["a"], "2.safetensors": ["b"]}, MAP))
    assert list(right.stored()) == ["a", "b"]


def test_an_index_that_is_a_bomb(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", {"1.safetensors": ["a"]}, {"a": "1.safetensors"})
    (folder / "model.safetensors.index.json").write_text('{"weight_map":' * 100_000)
    with pytest.raises(EdgecError) as caught:
        read(folder)
    assert caught.value.code == "E0101"


def test_a_tensor_of_two_files(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{i}.safetensors", {"w": entry()}) for i in range(2)]
    assert list(open_shards(files[:1])) == ["w"]
    with pytest.raises(EdgecError, match="'w'"):
        open_shards(files)


def test_links_hash_as_what_they_lead_to(tmp_path: Path) -> None:
    """The hub's cache: names of our own, contents under hashes; the order of hashes is not that of the names."""
    shards = {"1.safetensors": ["a"], "2.safetensors": ["b", "c"]}
    plain = sharded(tmp_path / "plain", shards, {**MAP, "c": "2.safetensors"})
    linked, blobs = tmp_path / "linked", tmp_path / "blobs"
    linked.mkdir()
    blobs.mkdir()
    for i, file in enumerate(sorted(plain.iterdir(), reverse=True)):
        (blobs / f"{i}").write_bytes(file.read_bytes())
        (linked / file.name).symlink_to(Path("..") / "blobs" / f"{i}")
    assert read(linked).sha256() == read(plain).sha256()
    (blobs / "2").write_bytes((blobs / "2").read_bytes()[:-1] + b"\1")
    assert (linked / "2.safetensors").resolve().name == "2"
    assert read(linked).sha256() != read(plain).sha256()
