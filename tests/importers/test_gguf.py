"""GGUF files written here: dense values against dequantizers in plain loops, and files that are not what they say."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.errors import EdgecError
from edgec.importers.ggml_blocks import TYPES
from edgec.importers.gguf import read_gguf
from edgec.importers.packed import Packed
from tests.importers.gguf_writer import write_gguf
from tests.importers.test_quantized import same_in_half

Array = np.ndarray[Any, Any]


def half(data: bytes) -> np.float32:
    return np.float32(np.frombuffer(data, "<f2")[0])


def q4_0(b: bytes) -> list[np.float32]:
    d, out = half(b[0:2]), [np.float32(0)] * 32
    for j in range(16):
        out[j] = np.float32((b[2 + j] & 0xF) - 8) * d
        out[j + 16] = np.float32((b[2 + j] >> 4) - 8) * d
    return out


def q4_1(b: bytes) -> list[np.float32]:
    d, m, out = half(b[0:2]), half(b[2:4]), [np.float32(0)] * 32
    for j in range(16):
        out[j] = np.float32(b[4 + j] & 0xF) * d + m
        out[j + 16] = np.float32(b[4 + j] >> 4) * d + m
    return out


def fives(b: bytes, bits: int, at: int) -> list[int]:
    (qh,) = struct.unpack("<I", b[bits : bits + 4])
    out = [0] * 32
    for j in range(16):
        out[j] = (b[at + j] & 0xF) | ((qh >> j) & 1) << 4
        out[j + 16] = (b[at + j] >> 4) | ((qh >> (j + 16)) & 1) << 4
    return out


def q5_0(b: bytes) -> list[np.float32]:
    return [np.float32(q - 16) * half(b[0:2]) for q in fives(b, 2, 6)]


def q5_1(b: bytes) -> list[np.float32]:
    return [np.float32(q) * half(b[0:2]) + half(b[2:4]) for q in fives(b, 4, 8)]


def q8_0(b: bytes) -> list[np.float32]:
    return [np.float32(q) * half(b[0:2]) for q in struct.unpack("<32b", b[2:])]


def scale_min(j: int, q: bytes) -> tuple[int, int]:
    if j < 4:
        return q[j] & 63, q[j + 4] & 63
    return (q[j + 4] & 0xF) | ((q[j - 4] >> 6) << 4), (q[j + 4] >> 4) | ((q[j] >> 6) << 4)


def q4_k(b: bytes) -> list[np.float32]:
    d, low, scales, qs = half(b[0:2]), half(b[2:4]), b[4:16], b[16:]
    out = []
    for group in range(8):
        sc, m = scale_min(group, scales)
        for i in range(32):
            byte = qs[(group // 2) * 32 + i]
            out.append(d * np.float32(sc) * np.float32(byte >> 4 if group % 2 else byte & 0xF) - low * np.float32(m))
    return out


def q5_k(b: bytes) -> list[np.float32]:
    d, low, scales, qh, qs = half(b[0:2]), half(b[2:4]), b[4:16], b[16:48], b[48:]
    out = []
    for group in range(8):
        sc, m = scale_min(group, scales)
        for i in range(32):
            byte = qs[(group // 2) * 32 + i]
            q = (byte >> 4 if group % 2 else byte & 0xF) + (16 if qh[i] & (1 << group) else 0)
            out.append(d * np.float32(sc) * np.float32(q) - low * np.float32(m))
    return out


def q6_k(b: bytes) -> list[np.float32]:
    ql, qh, sc, d = b[0:128], b[128:192], struct.unpack("<16b", b[192:208]), half(b[208:210])
    out = [np.float32(0)] * 256
    for n in range(2):
        for i in range(32):
            lows, tops, at = ql[64 * n :], qh[32 * n + i], 128 * n + i
            codes = [lows[i] & 0xF, lows[i + 32] & 0xF, lows[i] >> 4, lows[i + 32] >> 4]
            for part, low in enumerate(codes):
                q = (low | ((tops >> (2 * part)) & 3) << 4) - 32
                out[at + 32 * part] = d * np.float32(sc[8 * n + i // 16 + 2 * part]) * np.float32(q)
    return out


REFERENCES: dict[str, Callable[[bytes], list[np.float32]]] = {
    "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q8_0": q8_0, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k,
}
# Where each block type keeps 16-bit floats: random bytes there would be infinities and NaNs.
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
IDS = {row.name: kind for kind, row in TYPES.items()}


def random_blocks(name: str, rows: int, columns: int, seed: int = 0) -> bytes:
    row, rng = TYPES[IDS[name]], np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows * columns // row.block, row.bytes)).astype(np.uint8)
    for at in HALVES.get(name, (0,)):
        blocks[:, at : at + 2] = (rng.standard_normal(len(blocks)) * 0.01).astype("<f2").view(np.uint8).reshape(-1, 2)
    return blocks.tobytes()


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_blocks(tmp_path: Path, name: str) -> None:
    rows, columns = 6, 512
    data = random_blocks(name, rows, columns)
    file = write_gguf(tmp_path / "m.gguf", {}, {"w": (IDS[name], (rows, columns), data)})
    size, read = TYPES[IDS[name]].bytes, REFERENCES[name]
    wanted = np.array([x for i in range(0, len(data), size) for x in read(data[i : i + size])], np.float32)
    tensor = read_gguf(file).tensors["w"]
    assert isinstance(tensor, Packed)
    np.testing.assert_array_equal(tensor.read(), wanted.reshape(rows, columns))
    same_in_half(tensor, wanted.reshape(rows, columns).astype(np.float16))


def test_every_type_has_a_reference() -> None:
    assert {row.name for row in TYPES.values() if row.numpy is None} == set(REFERENCES)


@pytest.mark.parametrize(("kind", "dtype"), [(0, np.float32), (1, np.float16)])
def test_plain_types(tmp_path: Path, kind: int, dtype: type) -> None:
    values: Array = np.random.default_rng(0).standard_normal((3, 5)).astype(dtype)
    row = (kind, (3, 5), values.tobytes())
    file = write_gguf(tmp_path / "m.gguf", {}, {"a": row, "b": row})
    for tensor in read_gguf(file).tensors.values():
        np.testing.assert_array_equal(tensor.read(), values.astype(np.float32))


def test_metadata(tmp_path: Path) -> None:
    pairs = {"general.architecture": "llama", "n": 7, "eps": 1.5, "flag": True, "names": ["a", "", "ä"], "ids": [1, 2],
             "scores": [0.5, -1.0]}
    assert dict(read_gguf(write_gguf(tmp_path / "m.gguf", pairs, {})).metadata) == pairs


def damaged(change: Callable[[bytearray], bytes | bytearray]) -> Callable[[bytes], bytes]:
    return lambda data: bytes(change(bytearray(data)))


def put(at: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:at] + data + whole[at + len(data) :]


@pytest.mark.parametrize(("change", "reason"), [
    (lambda d: b"", "empty"), (lambda d: d[:3], "bytes at"), (put(0, b"GGML"), "GGML"), (put(4, b"\x01"), "version 1"),
    (put(8, b"\xff" * 8), "tensors"), (put(16, b"\xff" * 8), "pairs"), (put(24, b"\xff" * 8), "bytes of text"),
    (lambda d: d[:40], "where the file has"), (lambda d: d[:-1], "in a file of"),
])
def test_damaged_files(tmp_path: Path, change: Callable[[bytes], bytes], reason: str) -> None:
    file = write_gguf(tmp_path / "m.gguf", {"key": "text"}, {"w": (0, (2, 2), bytes(16))})
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(EdgecError) as caught:
        read_gguf(file)
    assert caught.value.code == "E0101"
    assert reason in caught.value.found


@pytest.mark.parametrize(("tensors", "pairs", "code", "reason"), [
    ({"w": (99, (2, 2), bytes(16))}, {}, "E0103", "type 99"),
    ({"w": (2, (2, 33), bytes(72))}, {}, "E0101", "blocks of 32"),
    ({"w": (2, (2, 2, 32), bytes(72))}, {}, "E0101", "no matrix"),
    ({"w": (0, (1, 1, 1, 1, 1), bytes(4))}, {}, "E0101", "5 dims"),
    ({"w": (0, (1 << 39, 1 << 39), bytes(4))}, {}, "E0101", "in blocks"),
    ({"w": (0, (0, 2), b"")}, {}, "E0101", "in blocks"),
    ({}, {"general.alignment": 0}, "E0101", "alignment"),
])
def test_tensors_that_cannot_be(tmp_path: Path, tensors: dict[str, Any], pairs: dict[str, Any], code: str, reason: str
                                ) -> None:
    with pytest.raises(EdgecError) as caught:
        read_gguf(write_gguf(tmp_path / "m.gguf", pairs, tensors))
    assert caught.value.code == code
    assert reason in caught.value.found


def test_no_byte_of_the_header_can_do_harm(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", {"key": "text", "list": [1, 2, 3]}, {"w": (0, (2, 2), bytes(16))})
    original, rng = file.read_bytes(), np.random.default_rng(0)
    for _ in range(500):
        data = bytearray(original)
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(0, 256)
        file.write_bytes(data)
        with contextlib.suppress(EdgecError):
            assert sum(tensor.read().size for tensor in read_gguf(file).tensors.values()) <= 1 << 20
