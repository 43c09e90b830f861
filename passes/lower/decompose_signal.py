"""Fourier transforms as products with constant matrices, and frames of a signal as one lookup.

A transform of n points costs n^2 products here. The lengths of audio front ends (400, 512, 1024) make matrices that a
linear kernel runs through at its full speed; there is no shorter way without a kernel of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgec.ir.model import Array, Builder, const_of, dims_of, input_of, int_attr, ints_of, required
from edgec.passes.lower.decompose_math import Decomposed, Entry

_POINTS = 4096


def _matrix(size: int, points: int, outputs: int, parts: int, inverse: bool) -> Array:
    """[size * parts, outputs * 2]: input (n, re | im) to output (k, re | im); inputs beyond `points` are left out."""
    n, k = np.arange(min(size, points)), np.arange(outputs)
    # The product is reduced before the angle is made: large angles would lose digits.
    angle = 2 * np.pi * (np.outer(n, k) % points) / points
    sine = np.sin(angle) if inverse else -np.sin(angle)
    cosine = np.cos(angle)
    turn = np.zeros((size, parts, outputs, 2))
    turn[: len(n), 0, :, 0], turn[: len(n), 0, :, 1] = cosine, sine
    if parts == 2:
        turn[: len(n), 1, :, 0], turn[: len(n), 1, :, 1] = -sine, cosine
    return turn.reshape(size * parts, outputs * 2) / (points if inverse else 1)


def _half_inverse(size: int, points: int) -> Array:
    """[size * 2, points]: the half of a spectrum that a real signal has, back to that signal."""
    turn = np.zeros((size, 2, points))
    for k in range(min(size, points // 2 + 1)):
        weight = 1 if k == 0 or 2 * k == points else 2  # the other half is this one's mirror image
        angle = 2 * np.pi * ((k * np.arange(points)) % points) / points
        turn[k, 0], turn[k, 1] = weight * np.cos(angle), -weight * np.sin(angle)
    return turn.reshape(size * 2, points) / points


def dft(op: Builder, node: ir.Node) -> Decomposed:
    x, length, where = required(node, 0), input_of(node, 1), input_of(node, 2)
    dims = dims_of(x)
    given, axes = (None if length is None else ints_of(length)), (-2,) if where is None else ints_of(where)
    if dims is None or axes is None or (length is not None and given is None):
        return "its length, its axis or the rank of its input is not known"
    axis, size, parts = axes[0] % len(dims), dims[axes[0] % len(dims)], dims[-1]
    if not isinstance(size, int) or parts not in (1, 2) or axis == len(dims) - 1:
        return "the size of its axis, or whether its input is complex, is not known"
    inverse, half = bool(int_attr(node, "inverse", 0)), bool(int_attr(node, "onesided", 0))
    points = given[0] if given else 2 * (size - 1) if inverse and half else size
    if not 1 <= points <= _POINTS:
        return f"{points} points; up to {_POINTS} are written as a matrix"
    if inverse and half:
        if parts != 2:
            return "an inverse of half a spectrum takes a complex one"
        matrix, outputs, made = _half_inverse(size, points), points, 1
    else:
        outputs, made = points // 2 + 1 if half else points, 2
        matrix = _matrix(size, points, outputs, int(parts), inverse)
    rank = len(dims)
    others = [a for a in range(rank - 1) if a != axis]
    perm = [*others, axis, rank - 1]
    lead = op.Shape(op.Transpose(x, perm=perm), end=rank - 2) if others else None

    def formed(value: ir.Value, tail: list[int]) -> ir.Value:
        shape = op.ints(tail) if lead is None else op.Concat(lead, op.ints(tail), axis=0)
        return op.Reshape(value, shape)

    flat = formed(op.Transpose(x, perm=perm), [size * int(parts)])
    y = formed(op.MatMul(flat, op.const(matrix, x.dtype)), [outputs, made])
    return op.Transpose(y, perm=[perm.index(a) for a in range(rank)])


def stft(op: Builder, node: ir.Node) -> Decomposed:
    """signal [B, N] or [B, N, 1 | 2] to [B, frames, bins, 2]."""
    x, step, window, length = required(node, 0), ints_of(input_of(node, 1)), input_of(node, 2), input_of(node, 3)
    dims = dims_of(x)
    given = None if length is None else ints_of(length)
    if dims is None or step is None or not isinstance(dims[1], int) or (length is not None and given is None):
        return "its step, its frame length or the length of the signal is not known"
    if len(dims) == 3 and dims[2] != 1:
        return "its signal is complex"
    shape = dims_of(window)
    frame = given[0] if given else shape[0] if shape is not None else dims[1]
    if not isinstance(frame, int) or not 1 <= frame <= min(_POINTS, dims[1]):
        return f"frames of {frame} values"
    if step[0] < 1 or (shape is not None and isinstance(shape[0], int) and shape[0] != frame):
        return f"a window of {list(shape or ())} over frames of {frame}, {step[0]} apart"
    count = 1 + (dims[1] - frame) // step[0]
    bins = frame // 2 + 1 if int_attr(node, "onesided", 1) else frame
    places = np.arange(count)[:, None] * step[0] + np.arange(frame)
    signal = op.Squeeze(x, op.ints([2])) if len(dims) == 3 else x
    frames = op.Gather(signal, op.const(places.astype(np.int64)), axis=1)
    if window is not None and const_of(window, _POINTS) is None:
        frames, weights = op.Mul(frames, window), np.ones(frame)
    else:
        weights = np.asarray(np.ones(frame) if window is None else const_of(window, _POINTS), np.float64)
    matrix = np.multiply(_matrix(frame, frame, bins, 1, False), weights[:, None])
    y = op.MatMul(frames, op.const(matrix, x.dtype))
    return op.Reshape(y, op.ints([0, count, bins, 2]))


TABLE: Mapping[str, Entry] = {"DFT": dft, "STFT": stft}
