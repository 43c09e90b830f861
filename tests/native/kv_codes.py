"""Rows of caches of codes in numpy, written from docs/format.md."""

from __future__ import annotations

import numpy as np

from edgec.compress.formats import Array, Dtype


def encode_rows(dtype: Dtype, x: Array) -> Array:
    """Bytes [..., row] of float32 numbers [..., width]."""
    flat = np.asarray(x, np.float32).reshape(-1, x.shape[-1])
    size = 32 if dtype is Dtype.U8 else flat.shape[1]
    parts = []
    for at in range(0, flat.shape[1], size):
        group = flat[:, at : at + size]
        if dtype is Dtype.I8:
            unit = np.minimum(np.abs(group).max(1, keepdims=True) / np.float32(127), 65504).astype("<f2")
            codes = np.clip(np.rint(group / _step(unit)), -127, 127)
            parts += [unit.view(np.uint8), codes.astype(np.int8).view(np.uint8)]
            continue
        start = np.clip(group.min(1, keepdims=True), -65504, 65504).astype("<f2")
        above = np.maximum(group.max(1, keepdims=True) - start.astype(np.float32), 0)
        unit = np.minimum(above / np.float32(15), 65504).astype("<f2")
        codes = np.clip(np.rint((group - start.astype(np.float32)) / _step(unit)), 0, 15).astype(np.uint8)
        half = -(-group.shape[1] // 2)
        low, high = codes[:, :half], np.zeros((len(codes), half), np.uint8)
        high[:, : group.shape[1] - half] = codes[:, half:]
        parts += [unit.view(np.uint8), start.view(np.uint8), low | high << 4]
    return np.concatenate(parts, 1).reshape(*x.shape[:-1], -1)


def decode_rows(dtype: Dtype, rows: Array, width: int) -> Array:
    """float32 numbers [..., width] of bytes [..., row]."""
    flat = np.ascontiguousarray(rows).view(np.uint8).reshape(-1, rows.shape[-1])
    found, at = [], 0
    for n in [width] if dtype is Dtype.I8 else [min(32, width - c) for c in range(0, width, 32)]:
        unit = np.ascontiguousarray(flat[:, at : at + 2]).view("<f2").astype(np.float32)
        if dtype is Dtype.I8:
            found.append(unit * np.ascontiguousarray(flat[:, 2:]).view(np.int8).astype(np.float32))
            break
        start = np.ascontiguousarray(flat[:, at + 2 : at + 4]).view("<f2").astype(np.float32)
        half = -(-n // 2)
        packed = flat[:, at + 4 : at + 4 + half]
        codes = np.concatenate([packed & 15, packed >> 4], 1)[:, :n]
        found.append(unit * codes.astype(np.float32) + start)
        at += 4 + half
    return np.concatenate(found, 1).reshape(*rows.shape[:-1], width)


def _step(unit: Array) -> Array:
    return np.maximum(unit.astype(np.float32), np.float32(2.0**-24))
