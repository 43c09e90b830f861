"""Uniform codes in front of an operator, and their bytes as onnxruntime's contrib operators want them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import codes_of
from edgec.compress.low_bit import check_dense
from edgec.ir.model import (
    Array,
    Builder,
    const_tensor,
    dims_of,
    float_attr,
    input_of,
    int_attr,
    ints_attr,
    is_op,
    producer,
    rank_of,
    required,
    static_shape,
)
from edgec.ir.ops import DOMAIN
from edgec.ir.weights import release

VENDOR = "com.microsoft"
_MIDDLE = {ir.DataType.UINT4: 0, ir.DataType.UINT8: 0, ir.DataType.INT4: 8, ir.DataType.INT8: 128}
_LEAST_BLOCK = 16


@dataclass(frozen=True)
class Codes:
    """A matrix [N, K] as (code - zero) * scale with one scale and one zero per row and `block` columns.

    bits: 2, 4 or 8 per code, as onnxruntime stores it. name: of the weight. codes u8 [N, K]; scale f32 [N, G];
    zero [N, G]: u8, or f32 where it is no whole number. All are read when they are asked for.
    """

    name: str
    shape: tuple[int, int]
    block: int
    bits: int
    codes: Callable[[], Array]
    scale: Callable[[], Array]
    zero: Callable[[], Array]
    whole: bool

    @property
    def groups(self) -> int:
        return -(-self.shape[1] // self.block)

    def part(self, op: Builder, key: str, kind: ir.DataType, shape: tuple[int, ...], read: Callable[[], Array]
             ) -> ir.Value:
        """An initializer `name.key` that is computed whenever it is read."""
        def compute() -> ir.TensorProtocol:
            return ir.Tensor(np.ascontiguousarray(read()).reshape(shape), dtype=kind, name=name)

        name = f"{self.name}.{key}"
        return op.tensor(ir.LazyTensor(compute, dtype=kind, shape=ir.Shape(shape), name=name, cache=False), name)

    def scales(self, op: Builder) -> ir.Value:
        return self.part(op, "scale", ir.DataType.FLOAT, (self.shape[0], self.groups), self.scale)

    def zeros(self, op: Builder) -> ir.Value:
        """Zero points as onnxruntime packs them: rows of whole bytes, or floats."""
        if not self.whole:
            return self.part(op, "zero", ir.DataType.FLOAT, (self.shape[0], self.groups), self.zero)
        wide = -(-self.groups * self.bits // 8)
        return self.part(op, "zero", ir.DataType.UINT8, (self.shape[0], wide), lambda: packed(self.zero(), self.bits))


def packed(codes: Array, bits: int) -> Array:
    """u8 [N, M] codes as bytes [N, ceil(M * bits / 8)], the first code in the lowest bits."""
    per = 8 // bits
    if per == 1:
        return codes
    wide = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per)))
    result = np.zeros((len(codes), wide.shape[1] // per), np.uint8)
    for i in range(per):
        result |= np.left_shift(wide[:, i::per], bits * i, dtype=np.uint8)
    return result


def linear_weight(node: ir.Node) -> ir.Value | None:
    """W [N, K] of MatMul(x, Transpose(W)) or Gemm(x, W, b); None for other operands."""
    if not is_op(node, "MatMul"):
        return node.inputs[1]
    turn = producer(node.inputs[1], "Transpose")
    return None if turn is None or ints_attr(turn, "perm") not in (None, (1, 0)) else turn.inputs[0]


def unlike_linear(node: ir.Node) -> str | None:
    """Why a MatMul or Gemm with such a weight is not x Wᵀ + b in float32; None when it is."""
    if is_op(node, "Gemm"):
        factors = float_attr(node, "alpha", 1.0), float_attr(node, "beta", 1.0)
        if int_attr(node, "transA", 0) or not int_attr(node, "transB", 0) or factors != (1.0, 1.0):
            return "it is not x Wᵀ + b"
        bias = input_of(node, 2)
        if bias is not None and (rank_of(bias) != 1 or dims_of(bias) == (1,)):
            return "its bias is no vector of one number per row"
    x = required(node, 0)
    return None if x.dtype == ir.DataType.FLOAT else f"its input is {x.dtype}"


def find_codes(value: ir.Value | None) -> Codes | str | None:
    """What makes the matrix `value`: uniform codes, a reason why onnxruntime has no form for them, None for others."""
    node = None if value is None else value.producer()
    if node is None:
        return None
    if is_op(node, "DequantizeLinear"):
        return _of_dequantize(node)
    if is_op(node, "BitPlaneToDense", domain=DOMAIN) and int_attr(node, "uniform", 0):
        return _of_planes(node)
    return None


def _of_dequantize(node: ir.Node) -> Codes | str | None:
    codes, scale, zero = (const_tensor(input_of(node, i)) for i in range(3))
    block, shape = int_attr(node, "block_size", 0), static_shape(node.inputs[0])
    if codes is None or scale is None or shape is None or len(shape) != 2:
        return None
    if not block or int_attr(node, "axis", 1) not in (1, -1):
        return "its scales are not those of blocks along its columns"
    if codes.dtype not in _MIDDLE or scale.dtype != ir.DataType.FLOAT:
        return f"it has {codes.dtype.name.lower()} codes and {scale.dtype.name.lower()} scales"
    if input_of(node, 2) is not None and zero is None:
        return "its zero points are known only at run time"
    if block < _LEAST_BLOCK or block & (block - 1):
        return f"its blocks are of {block} columns, not of 16, 32, 64, ..."
    shift = _MIDDLE[codes.dtype]

    def moved(tensor: ir.TensorProtocol) -> Array:
        array = np.asarray(tensor.numpy())
        small = array.view(np.uint8) if tensor.dtype == ir.DataType.UINT4 else array
        result = small if small.dtype == np.uint8 and not shift else (small.astype(np.int16) + shift).astype(np.uint8)
        release(tensor)
        return result

    groups = -(-shape[1] // block)

    def zeros() -> Array:
        return np.full((shape[0], groups), shift, np.uint8) if zero is None else moved(zero)

    most = max(int(moved(codes).max(initial=0)), int(zeros().max(initial=0)))
    name = (node.inputs[0].name if node.inputs[0] is not None else "") or "weight"
    return Codes(name.removesuffix(".codes"), (shape[0], shape[1]), block, 2 if most < 4 else 4 if most < 16 else 8,
                 lambda: moved(codes), lambda: np.asarray(scale.numpy()), zeros, whole=True)


def _of_planes(node: ir.Node) -> Codes | str | None:
    planes, scale, offset = (const_tensor(input_of(node, i)) for i in range(3))
    if planes is None or scale is None or offset is None:
        return None
    wrong = check_dense(node)
    if wrong is not None:
        return wrong
    bits = int_attr(node, "bits", 0)
    if bits > 4:
        return "of 8 bits onnxruntime takes whole zero points only"
    rows, columns = int(planes.shape.numpy()[1]), int_attr(node, "columns", 0)
    name = (node.inputs[0].name if node.inputs[0] is not None else "") or "weight"
    return Codes(
        name.removesuffix(".planes"), (rows, columns), int_attr(node, "group_size", 0), 2 if bits < 3 else 4,
        lambda: codes_of(np.asarray(planes.numpy()), columns), lambda: np.asarray(scale.numpy())[0].astype(np.float32),
        lambda: np.asarray(offset.numpy()).astype(np.float32), whole=False)
