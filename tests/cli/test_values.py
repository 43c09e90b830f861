"""Option values: what is accepted, and that everything else is EDGEC-E0002."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgec import cli_values as v
from edgec.errors import EdgecError


@pytest.mark.parametrize(("text", "wanted"), [
    ("4096", 4096), ("900M", 900 << 20), ("1.5G", 3 << 29), ("2k", 2048), ("1GiB", 1 << 30), ("0", 0),
])
def test_bytes(text: str, wanted: int) -> None:
    assert v.parse_bytes("--memory-budget", text) == wanted


def test_dynamic() -> None:
    assert v.parse_dynamic("--dynamic", ["x:0=1..8,x:2=32..64", "mask:1=2..2"]) == {
        "x": {0: (1, 8), 2: (32, 64)}, "mask": {1: (2, 2)}}


def test_counts_triples_tolerances() -> None:
    assert v.parse_counts("-t", "1,2,4") == [1, 2, 4]
    assert v.parse_triple("--mean", "0,0.5,1") == (0.0, 0.5, 1.0)
    assert v.parse_tolerances("--tol", ["sqnr:30", "max_abs:1e-3"]) == {"sqnr": 30.0, "max_abs": 1e-3}


@pytest.mark.parametrize("call", [
    lambda: v.parse_bytes("-m", "much"), lambda: v.parse_bytes("-m", "-1"), lambda: v.parse_bytes("-m", ""),
    lambda: v.parse_dynamic("-d", ["x"]), lambda: v.parse_dynamic("-d", ["x:0=8..1"]),
    lambda: v.parse_dynamic("-d", ["x:0=0..1"]), lambda: v.parse_dynamic("-d", ["x:0=1..2,x:0=1..3"]),
    lambda: v.parse_counts("-t", "1,a"), lambda: v.parse_counts("-t", "0"), lambda: v.parse_counts("-t", ""),
    lambda: v.parse_triple("--mean", "1,2"), lambda: v.parse_triple("--mean", "1,2,x"),
    lambda: v.parse_tolerances("--tol", ["sqnr"]), lambda: v.parse_tolerances("--tol", ["snr:1"]),
    lambda: v.choice("--kv", "int8", {"fp32": "f32"}), lambda: v.read_arrays(["x"], None),
])
def test_bad_values(call: object) -> None:
    with pytest.raises(EdgecError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.code == "E0002"


@pytest.mark.parametrize(("count", "wanted"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 40, "3 TiB")])
def test_format_bytes(count: int, wanted: str) -> None:
    assert v.format_bytes(count) == wanted


def test_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(3))
    np.savez(tmp_path / "all.npz", y=np.ones(2), x=np.zeros(1))
    found = v.read_arrays([f"x={tmp_path / 'x.npy'}"], tmp_path / "all.npz")
    assert found["x"].tolist() == [0, 1, 2]
    assert found["y"].tolist() == [1, 1]


def test_array_files_that_cannot_be_used(tmp_path: Path) -> None:
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name, code in (("pickled", "E0502"), ("text", "E0502"), ("empty", "E0502"), ("absent", "E0003")):
        with pytest.raises(EdgecError) as caught:
            v.read_arrays([f"x={tmp_path / name}.npy"], None)
        assert caught.value.code == code, name
