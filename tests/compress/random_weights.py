"""Random matrices of every low-bit format, and the dull quantizer: round to nearest, one scale per bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgec.compress.formats import BitsSpec, PaletteSpec, PaletteTensor, Quantized

Array = npt.NDArray[Any]


def random_quantized(rng: np.random.Generator, spec: BitsSpec, n: int, k: int) -> Quantized:
    groups = spec.groups(k)
    codes = rng.integers(0, spec.levels, (n, k)).astype(np.uint8)
    scale = rng.standard_normal((n, groups) if spec.uniform else (spec.bits, n, groups))
    offset = rng.integers(0, spec.levels, (n, groups)) if spec.uniform else rng.standard_normal((n, groups))
    return Quantized(spec, codes, (0.1 * scale).astype(np.float16), offset.astype(np.float16))


def random_palette(
    rng: np.random.Generator, spec: PaletteSpec, n: int, k: int, dtype: type[np.floating[Any]] = np.float16
) -> PaletteTensor:
    indices = rng.integers(0, 1 << spec.bits, (n, spec.indices(k))).astype(np.uint8)
    shape = (spec.tables(n), 1 << spec.bits, *((spec.vector,) if spec.vector > 1 else ()))
    return PaletteTensor(spec, indices, rng.standard_normal(shape).astype(dtype), k)


def round_to_nearest(w: Array, spec: BitsSpec) -> Quantized:
    """Evenly spaced levels over each group's range; HLQ writes them as scales 2^j s / 2 about the middle."""
    n, k = w.shape
    missing = spec.groups(k) * spec.group - k
    grouped = np.pad(w.astype(np.float32), ((0, 0), (0, missing)), mode="edge").reshape(n, -1, spec.group)
    low, high = grouped.min(-1), grouped.max(-1)
    low, high = (np.minimum(low, 0), np.maximum(high, 0)) if spec.uniform else (low, high)
    step = np.maximum((high - low) / (spec.levels - 1), 1e-4).astype(np.float16)
    if spec.uniform:
        offset = np.clip(np.round(-low / step), 0, spec.levels - 1).astype(np.float16)
        codes, scale = np.round(grouped / step[..., None].astype(np.float32)) + offset[..., None], step
    else:
        scale = (step / 2 * 2.0 ** np.arange(spec.bits)[:, None, None]).astype(np.float16)
        offset = ((low + high) / 2).astype(np.float16)
        start = offset - scale.astype(np.float32).sum(0)
        codes = np.round((grouped - start[..., None]) / step[..., None].astype(np.float32))
    codes = np.clip(codes, 0, spec.levels - 1).astype(np.uint8).reshape(n, -1)[:, :k]
    return Quantized(spec, np.ascontiguousarray(codes), scale, offset)
