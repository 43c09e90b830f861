"""Lowering of Resize: which input pixels each output pixel reads, and how much of each, as tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array, Dtype
from edgec.ir.model import SMALL, float_attr, int_attr, ints_attr, str_attr
from edgec.native.dims import dim
from edgec.native.lower_math import binary, need_f32, norm_axis
from edgec.native.lower_nn import as_image, channels_last
from edgec.native.lower_shape import gather
from edgec.native.lower_values import Const, Lowering, UnsupportedError, Value, View, of_data
from edgec.native.lower_whole import constant

_LARGEST = 1 << 24  # entries of one table
_NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - np.float32(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}
_CROP = "tf_crop_and_resize"
_COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", _CROP)
_POLICIES = ("stretch", "not_larger", "not_smaller")


@dataclass(frozen=True)
class _Filter:
    """The attributes that decide the weights. support: how far the unscaled filter reaches.

    crop: the part of an axis that _CROP resizes, from 0 to 1.
    """

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool
    antialias: bool
    crop: tuple[float, float] = (0.0, 1.0)

    @property
    def support(self) -> int:
        return {"nearest": 1, "linear": 1, "cubic": 2}[self.mode]

    def weight(self, distance: Array) -> Array:
        """Linear and cubic (Keys 1981) interpolation; distance >= 0."""
        d, a = distance, self.cubic
        if self.mode == "linear":
            return np.maximum(0.0, 1.0 - d)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def check_resize(node: ir.Node) -> str | None:
    mode = str_attr(node, "mode", "nearest")
    coordinates = str_attr(node, "coordinate_transformation_mode", "half_pixel")
    if mode not in ("nearest", "linear", "cubic"):
        return f"mode = {mode!r}"
    if coordinates not in _COORDINATES:
        return f"coordinate_transformation_mode = {coordinates!r}"
    if str_attr(node, "nearest_mode", "round_prefer_floor") not in _NEAREST:
        return f"nearest_mode = {str_attr(node, 'nearest_mode', '')!r}"
    policy = str_attr(node, "keep_aspect_ratio_policy", "stretch")
    return None if policy in _POLICIES else f"keep_aspect_ratio_policy = {policy!r}"


def lower_resize(ctx: Lowering, node: ir.Node) -> Value:
    """X [B, C, W] or [B, C, H, W], resized along its last one or two axes, whose sizes must be known; of whole numbers,
    any shape along any axes, to the nearest (those of 8 bits come as float32: passes/lower/decompose_quantized.py)."""
    x = ctx.need(node, 0)
    if x.dtype in (Dtype.I64, Dtype.I32, Dtype.BOOL):
        return _whole(ctx, node, x)
    need_f32(x)
    if x.rank not in (3, 4):
        raise UnsupportedError(f"a tensor of rank {x.rank}; the kernel takes images and sequences")
    how = _filter(node)
    tables: list[View] = []
    sizes = [1, 1]
    crops = _crops(ctx, node, x.rank) if how.coordinates == _CROP else {}
    outside: list[Array] = []
    for axis, (out, scale) in enumerate(_sizes(ctx, node, x)):
        size = x.dims[axis].const
        if axis < 2:
            if scale != 1.0:
                raise UnsupportedError(f"axis {axis} is resized; the kernel resizes images")
            continue
        if size is None:
            raise UnsupportedError(f"the size {x.dims[axis]} of axis {axis} is not known at compile time")
        sizes.append(out)
        how = replace(how, crop=crops.get(axis, (0.0, 1.0)))
        tables += _tables(ctx, how, size, out, scale)
        at = _positions(how, size, out, scale)
        outside.append((at < 0) | (at > size - 1) if how.coordinates == _CROP else np.zeros(out, bool))
    if x.rank == 3:
        tables = [*_tables(ctx, _Filter("nearest", "asymmetric", "floor", 0.0, False, False), 1, 1, 1.0), *tables]
    order = channels_last(x.rank)
    source = as_image(ctx.view(x, order))
    dims = (*x.dims[:2], *map(dim, sizes[2:]))
    out_view = ctx.fresh([dims[a] for a in order])
    ctx.emit("resize2d", [as_image(out_view)], [source, *tables])
    result = Value(dims, Dtype.F32, order, buf=out_view.buf)
    beyond = float_attr(node, "extrapolation_value", 0.0) if any(o.any() for o in outside) else 0.0
    if beyond == 0.0:
        return result
    # The tables give 0 there.
    where = outside[0] if x.rank == 3 else outside[0][:, None] | outside[1]
    return binary(ctx, "Add", result, constant(where * np.float32(beyond), Dtype.F32))


def _filter(node: ir.Node) -> _Filter:
    return _Filter(
        str_attr(node, "mode", "nearest"), str_attr(node, "coordinate_transformation_mode", "half_pixel"),
        str_attr(node, "nearest_mode", "round_prefer_floor"), float_attr(node, "cubic_coeff_a", -0.75),
        bool(int_attr(node, "exclude_outside", 0)), bool(int_attr(node, "antialias", 0)),
    )


def _whole(ctx: Lowering, node: ir.Node, x: Value) -> Value:
    """Each number as it is, from where the nearest pixel lies; float32 would change those above 2^24."""
    how, kind = _filter(node), x.dtype.name.lower()
    if how.mode != "nearest":
        raise UnsupportedError(f"mode = {how.mode!r} of {kind}: no standard says how its fractions become whole "
                               "numbers; cast to float32 before and back after it")
    if how.coordinates == _CROP:
        raise UnsupportedError(f"coordinate_transformation_mode = {_CROP!r} of {kind}")
    for axis, (out, scale) in enumerate(_sizes(ctx, node, x)):
        if scale == 1.0:
            continue
        size = x.dims[axis].const
        if size is None:
            raise UnsupportedError(f"the size {x.dims[axis]} of axis {axis} is not known at compile time")
        if min(size, out) < 1 or out > _LARGEST:
            raise UnsupportedError(f"axis {axis}: {size} to {out} pixels")
        index, known = resize_table(how, size, out, scale)[0][:, 0], ctx.known(x)
        x = (gather(ctx, x, constant(index, Dtype.I32), axis) if known is None or known.size // size * out > SMALL else
             of_data(np.take(known, index, axis=axis), x.dtype))
    return x


def _crops(ctx: Lowering, node: ir.Node, rank: int) -> dict[int, tuple[float, float]]:
    """Axis -> (start, end) of a region that is known at compile time."""
    axes = [norm_axis(a, rank) for a in ints_attr(node, "axes") or range(rank)]
    region = ctx.get(node, 1)
    if region is None or region.const is None or region.count != 2 * len(axes):
        raise UnsupportedError("the region that it crops is not known at compile time")
    ends = region.const.load().reshape(2, -1).tolist()
    return dict(zip(axes, zip(*ends, strict=True), strict=True))


def _sizes(ctx: Lowering, node: ir.Node, x: Value) -> list[tuple[int, float]]:
    """(size, scale) of every axis of the result; an axis that keeps its size has scale 1, whatever its size."""
    axes = [norm_axis(a, x.rank) for a in ints_attr(node, "axes") or range(x.rank)]
    result = [(d.const or 0, 1.0) for d in x.dims]
    scales, sizes = ctx.get(node, 2), ctx.get(node, 3)
    if scales is not None and scales.const is not None and scales.count != 0:
        if scales.count != len(axes):
            raise UnsupportedError(f"{scales.count} scales for {len(axes)} axes")
        for axis, scale in zip(axes, scales.const.load().reshape(-1).tolist(), strict=True):
            if not 0 < scale < math.inf:
                raise UnsupportedError(f"scale {scale} of axis {axis}")
            if scale != 1.0:
                # As ONNX Runtime multiplies: 10 * float32(0.7) is 7, while exact arithmetic would give 6.
                result[axis] = int(np.float32(result[axis][0]) * np.float32(scale)), scale
        return result
    known = None if sizes is None else ctx.known(sizes)
    if known is None:
        raise UnsupportedError("the size of the result is not known at compile time")
    if known.size != len(axes):
        raise UnsupportedError(f"{known.size} sizes for {len(axes)} axes")
    policy = str_attr(node, "keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        pairs = [(a, x.dims[a].const, dim(w).const) for a, w in zip(axes, known.reshape(-1), strict=True)]
        if not all(size and given for _, size, given in pairs):
            raise UnsupportedError("sizes that keep the aspect ratio are not known at compile time")
        factors = [(given or 1) / (size or 1) for _, size, given in pairs]
        factor = min(factors) if policy == "not_larger" else max(factors)
        for a, size, _ in pairs:
            result[a] = (int(factor * (size or 1) + 0.5), factor)
        return result
    for axis, wanted in zip(axes, known.reshape(-1), strict=True):
        if dim(wanted) != x.dims[axis]:
            size, given = x.dims[axis].const, dim(wanted).const
            if size is None or given is None:
                raise UnsupportedError(f"axis {axis}: {x.dims[axis]} to {wanted} is not known at compile time")
            if min(size, given) < 1:
                raise UnsupportedError(f"axis {axis}: {size} to {given} pixels")
            result[axis] = given, given / size
    return result


def _tables(ctx: Lowering, how: _Filter, size: int, out: int, scale: float) -> list[View]:
    """Indices i32 [out, taps] and weights f32 [out, taps] as constants."""
    # Antialiasing reads as many pixels as become one, which a mean scale makes more than the image has.
    taps = 2 * how.support / min(scale, 1.0) if how.antialias else 2 * how.support
    if out < 1 or out * taps > _LARGEST:
        raise UnsupportedError(f"{size} to {out} pixels with scale {scale:g}")
    index, weight = resize_table(how, size, out, scale)
    name = f"resize.{size}.{out}.{scale!r}.{'.'.join(map(str, vars(how).values()))}"
    return [_constant(ctx, f"{name}.index", index, Dtype.I32), _constant(ctx, f"{name}.weight", weight, Dtype.F32)]


def _constant(ctx: Lowering, name: str, array: Array, dtype: Dtype) -> View:
    return ctx.weight(Const(name, lambda: array, array.shape, dtype, (0, 1)))


def resize_table(how: _Filter, size: int, out: int, scale: float) -> tuple[Array, Array]:
    """Which of `size` inputs each of `out` outputs reads, and their weights.

    Source: the ONNX operator Resize, version 19; positions in float32 as ONNX Runtime and PyTorch compute them.
    """
    at = _positions(how, size, out, scale)
    # Beyond the image there is nothing to read for a crop; others repeat the border.
    inside = ((at >= 0) & (at <= size - 1) if how.coordinates == _CROP else np.ones(out, bool))[:, None]
    if how.mode == "nearest":
        index = np.clip(_NEAREST[how.nearest](at), 0, size - 1)[:, None]
        return index.astype(np.int32), inside.astype(np.float32)
    smooth = how.antialias and scale < 1.0
    reach = how.support / scale if smooth else float(how.support)
    first = np.floor(at.astype(np.float64) - reach) + 1
    taps = np.arange(math.ceil(2 * reach))
    places = first[:, None] + taps
    distance = np.abs(places - at[:, None]) * (scale if smooth else 1.0)
    weight = how.weight(distance)
    if how.exclude_outside and (how.antialias or how.mode == "cubic"):
        weight = np.where((places >= 0) & (places < size), weight, 0.0)
    weight = weight / weight.sum(axis=1, keepdims=True)
    return np.clip(places, 0, size - 1).astype(np.int32), (weight * inside).astype(np.float32)


def _positions(how: _Filter, size: int, out: int, scale: float) -> Array:
    """Where each output pixel lies among the input pixels, float32 [out]."""
    coordinates = how.coordinates
    if coordinates == _CROP:
        first, last = (np.float32(c * (size - 1)) for c in how.crop)
        middle = np.full(out, 0.5 * (first + last), np.float32)
        return first + np.arange(out, dtype=np.float32) * (last - first) / np.float32(out - 1) if out > 1 else middle
    i, factor = np.arange(out, dtype=np.float32), np.float32(scale)
    half = np.float32(0.5)
    if coordinates == "align_corners":
        return i * np.float32((size - 1) / (out - 1)) if out > 1 else np.zeros(out, np.float32)
    if coordinates == "asymmetric":
        return i / factor
    if coordinates == "pytorch_half_pixel" and out <= 1:
        return np.zeros(out, np.float32)
    shift = np.float32(0)
    if coordinates == "half_pixel_symmetric":
        # The part of the input that the rounded-down output covers, centred.
        shift = np.float32(size / 2 * (1 - out / (size * scale)))
    return shift + (i + half) / factor - half
