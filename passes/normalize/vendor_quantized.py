"""Integer operators as their float meaning: DequantizeLinear, the float operator, QuantizeLinear.

Both the vendor's QLinear* family and the standard QLinearConv, QLinearMatMul, ConvInteger and MatMulInteger are spelled
so: what they compute is defined that way, and every later pass then sees one kind of convolution and of product. Sums
of products are taken in float32 instead of int32; they are exact below 2**24.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from edgec.ir.model import (
    Array,
    Builder,
    const_tensor,
    dims_of,
    float_attr,
    input_of,
    int_attr,
    ints_attr,
    rank_of,
    required,
)
from edgec.ir.rules import Bindings
from edgec.ir.weights import release
from edgec.passes.normalize.vendor import VENDOR, VendorRule, attributes, channel_order, given, swapped

_FLOAT = int(ir.DataType.FLOAT)
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_CODES = (ir.DataType.UINT8, ir.DataType.UINT4, ir.DataType.INT4)


def _dequantized(op: Builder, node: ir.Node, at: int, axis: int | None = None) -> ir.Value:
    """The value at inputs `at` (codes), at + 1 (scale), at + 2 (zero point)."""
    return op.DequantizeLinear(required(node, at), required(node, at + 1), input_of(node, at + 2), axis=axis)


def _quantized(op: Builder, node: ir.Node, value: ir.Value, at: int) -> ir.Value:
    """`value` in the scale at input `at` and the zero point at `at + 1`."""
    return op.QuantizeLinear(value, required(node, at), input_of(node, at + 1))


# -- one or two operands, a function, a result -----------------------------------------------------------------------


def _global_pool(op: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    return op.GlobalAveragePool(x)


def _average_pool(op: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    return op.AveragePool(x, **attributes(node, "channels_last"))


def _reduce_mean(op: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    axes = ints_attr(node, "axes")
    return op.ReduceMean(x, None if axes is None else op.ints(axes), keepdims=int_attr(node, "keepdims", 1))


_UNARY: Mapping[str, Callable[[Builder, ir.Node, ir.Value], ir.Value]] = MappingProxyType({
    "QLinearSigmoid": lambda op, node, x: op.Sigmoid(x),
    "QLinearLeakyRelu": lambda op, node, x: op.LeakyRelu(x, alpha=float_attr(node, "alpha", 0.01)),
    "QLinearSoftmax": lambda op, node, x: op.Softmax(x, axis=int_attr(node, "axis", -1)),
    "QLinearGlobalAveragePool": _global_pool,
    "QLinearAveragePool": _average_pool,
    "QLinearReduceMean": _reduce_mean,
})


class QLinearUnary(VendorRule):
    """QLinearX(x, scale, zero, y scale, y zero) of one operand."""

    roots = tuple(_UNARY)

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        rank = rank_of(input_of(node, 0))
        old = node.op_type == "QLinearSoftmax" and int_attr(node, "opset", 13) < 13
        if old and (not rank or int_attr(node, "axis", -1) % rank != rank - 1):
            return "its axis is not the last one, with the meaning of an old opset"
        return "the rank of its input is not known" if int_attr(node, "channels_last", 0) and rank is None else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        last = int_attr(node, "channels_last", 0)
        x = _dequantized(op, node, 0)
        if last:
            x = op.Transpose(x, perm=channel_order(rank_of(input_of(node, 0)) or 4, channels_first=True))
        y = _UNARY[node.op_type](op, node, x)
        if last:
            y = op.Transpose(y, perm=channel_order(rank_of(input_of(node, 0)) or 4, channels_first=False))
        return _quantized(op, node, y, 3)


class QLinearBinary(VendorRule):
    """QLinearAdd and QLinearMul(a, scale, zero, b, scale, zero, c scale, c zero)."""

    roots = ("QLinearAdd", "QLinearMul")

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        a, b = _dequantized(op, node, 0), _dequantized(op, node, 3)
        return _quantized(op, node, op.Add(a, b) if node.op_type == "QLinearAdd" else op.Mul(a, b), 6)


class QLinearConcat(VendorRule):
    """QLinearConcat(y scale, y zero, then codes, scale, zero of each operand)."""

    roots = ("QLinearConcat",)

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        parts_ = [_dequantized(op, node, at) for at in range(2, len(node.inputs), 3)]
        return _quantized(op, node, op.Concat(*parts_, axis=int_attr(node, "axis", 0)), 0)


class QLinearWhere(VendorRule):
    """QLinearWhere(condition, x, scale, zero, y, scale, zero, z scale, z zero)."""

    roots = ("QLinearWhere",)

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        chosen = op.Where(required(node, 0), _dequantized(op, node, 1), _dequantized(op, node, 4))
        return _quantized(op, node, chosen, 7)


class VendorQDQ(VendorRule):
    """QuantizeLinear and DequantizeLinear of the vendor's domain, which are the standard ones."""

    roots = ("QuantizeLinear", "DequantizeLinear")

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return op.node(node.op_type, node.inputs, attributes(node)).outputs[0]


# -- products and convolutions ---------------------------------------------------------------------------------------


class QLinearConv(VendorRule):
    """QLinearConv(x, scale, zero, w, scale, zero, y scale, y zero, [bias INT32 in units of both scales])."""

    roots = ("QLinearConv",)

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        last = int_attr(node, "channels_last", 0)
        return "the rank of its input is not known" if last and rank_of(input_of(node, 0)) is None else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        last = int_attr(node, "channels_last", 0)
        x, w, bias = _dequantized(op, node, 0), _dequantized(op, node, 3, axis=0), input_of(node, 8)
        if last:
            x = op.Transpose(x, perm=channel_order(rank_of(input_of(node, 0)) or 4, channels_first=True))
        if bias is not None:
            bias = op.Mul(op.Cast(bias, to=_FLOAT), op.Mul(required(node, 1), required(node, 4)))
        y = op.Conv(x, w, bias, **attributes(node, "channels_last"))
        if last:
            y = op.Transpose(y, perm=channel_order(rank_of(input_of(node, 0)) or 4, channels_first=False))
        return _quantized(op, node, y, 6)


class StandardQLinearConv(QLinearConv):
    domain = ""


class QLinearMatMul(VendorRule):
    """QLinearMatMul(a, scale, zero, b, scale, zero, y scale, y zero), scales per tensor or per column of b."""

    roots = ("QLinearMatMul",)
    domain: ClassVar[str] = ""

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        return None if rank_of(input_of(node, 1)) == 0 or (dims_of(input_of(node, 1)) or (0,)) == (1,) else (
            "its left operand has a scale per row")

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        b = _dequantized(op, node, 3, axis=(rank_of(input_of(node, 3)) or 2) - 1)
        return _quantized(op, node, op.MatMul(_dequantized(op, node, 0), b), 6)


def _centred(op: Builder, codes: ir.Value, zero: ir.Value | None, axis: int | None = None) -> ir.Value:
    """The integers `codes - zero` as FLOAT."""
    if zero is not None and axis is not None and rank_of(zero) == 1:
        scale: ir.Value = op.Expand(op.const(np.array(1, np.float32)), op.Shape(zero))
    else:
        scale, axis = op.const(np.array(1, np.float32)), None
    return op.DequantizeLinear(codes, scale, zero, axis=axis)


class IntegerProduct(VendorRule):
    """MatMulInteger and ConvInteger(a, b, [a zero], [b zero]) -> INT32."""

    roots = ("MatMulInteger", "ConvInteger")
    domain: ClassVar[str] = ""

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        zero = input_of(node, 2)
        return None if zero is None or rank_of(zero) == 0 or dims_of(zero) == (1,) else (
            "its left operand has a zero point per row")

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        a = _centred(op, required(node, 0), input_of(node, 2))
        if node.op_type == "ConvInteger":
            y = op.Conv(a, _centred(op, required(node, 1), input_of(node, 3), axis=0), **attributes(node))
        else:
            last = (rank_of(input_of(node, 1)) or 2) - 1
            y = op.MatMul(a, _centred(op, required(node, 1), input_of(node, 3), axis=last))
        return op.Cast(y, to=int(ir.DataType.INT32))


class MatMulIntegerToFloat(VendorRule):
    """(a, b, a scale, b scale, [a zero], [b zero], [bias]) -> FLOAT."""

    roots = ("MatMulIntegerToFloat",)

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        a = op.DequantizeLinear(required(node, 0), required(node, 2), input_of(node, 4))
        last = (rank_of(input_of(node, 1)) or 2) - 1
        b = op.DequantizeLinear(required(node, 1), required(node, 3), input_of(node, 5), axis=last)
        y, bias = op.MatMul(a, b), input_of(node, 6)
        return y if bias is None else op.Add(y, bias)


class DynamicQuantizeMatMul(VendorRule):
    """(a FLOAT, b, b scale, [b zero], [bias]): a is quantized to 8 bits with its own range."""

    roots = ("DynamicQuantizeMatMul",)

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        codes, scale, zero = op.DynamicQuantizeLinear.many(3, required(node, 0))
        a = op.DequantizeLinear(codes, scale, zero)
        last = (rank_of(input_of(node, 1)) or 2) - 1
        b = op.DequantizeLinear(required(node, 1), required(node, 2), input_of(node, 3), axis=last)
        y, bias = op.MatMul(a, b), input_of(node, 4)
        return y if bias is None else op.Add(y, bias)


class QGemm(VendorRule):
    """(a, scale, zero, b, scale, zero, [c INT32 in units of both scales], [y scale, y zero]); no y scale: FLOAT."""

    roots = ("QGemm",)

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        return None if rank_of(input_of(node, 3)) == 2 else "the rank of its weight is not known"

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        turned, alpha, c = int_attr(node, "transB", 0), float_attr(node, "alpha", 1.0), input_of(node, 6)
        a, b = _dequantized(op, node, 0), _dequantized(op, node, 3, axis=0 if turned else 1)
        y = op.MatMul(swapped(op, a) if int_attr(node, "transA", 0) else a, swapped(op, b) if turned else b)
        if c is not None:
            y = op.Add(y, op.Mul(op.Cast(c, to=_FLOAT), op.Mul(required(node, 1), required(node, 4))))
        if alpha != 1.0:
            y = op.Mul(y, op.const(np.array(alpha, np.float32)))
        return _quantized(op, node, y, 7) if given(node, 7) else y


class QAttention(VendorRule):
    """(x, w, bias FLOAT, x scale, w scale, [mask], [x zero], [w zero], [past]): the vendor's Attention on floats."""

    roots = ("QAttention",)

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        return "it rotates positions" if int_attr(node, "do_rotary", 0) else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> Sequence[ir.Value]:
        x = op.DequantizeLinear(required(node, 0), required(node, 3), input_of(node, 6))
        w = op.DequantizeLinear(required(node, 1), required(node, 4), input_of(node, 7), axis=1)
        # Their shapes are those of the codes; the rule for Attention needs them before inference runs again.
        for made, codes in ((x, required(node, 0)), (w, required(node, 1))):
            made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), codes.shape
        return op.Attention.many(len(node.outputs), x, w, required(node, 2), input_of(node, 5), input_of(node, 8),
                                 _domain=VENDOR, **attributes(node, "past_present_share_buffer"))


# -- weights in blocks -----------------------------------------------------------------------------------------------


class MatMulNBits(VendorRule):
    """(a, b UINT8 [N, blocks, bytes], scales, [zero points], [order], [bias]) with weights of 4 or 8 bits.

    The codes are the same bytes as a UINT4 or UINT8 tensor [N, K], so nothing is unpacked here: the result is
    MatMul(a, Transpose(DequantizeLinear(codes, scales, zero points; axis 1, block_size))).
    """

    roots = ("MatMulNBits",)

    def match(self, node: ir.Node) -> Bindings | None:
        return {"bits": int_attr(node, "bits", 4), "block": int_attr(node, "block_size", 32),
                "n": int_attr(node, "N", 0), "k": int_attr(node, "K", 0)}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        if parts["bits"] not in (4, 8):
            return f"weights of {parts['bits']} bits"
        if given(node, 4):
            return "its columns are in another order (g_idx)"
        if len(given(node, 0, 1, 2)) < 3 or any(const_tensor(node.inputs[i]) is None for i in given(node, 1, 2, 3)):
            return "its weights are not constant"
        return self._misfit(node, **parts)

    @staticmethod
    def _misfit(node: ir.Node, bits: int, block: int, n: int, k: int) -> str | None:
        """What of the attributes the tensors contradict; the rewriting then relies on both."""
        if min(block, n, k) < 1 or block * bits % 8:
            return f"N = {n}, K = {k} in blocks of {block}"
        blocks = -(-k // block)
        # Zero points are packed per row when they are bytes, else there is one per block.
        zeros = input_of(node, 3)
        row = -(-blocks * bits // 8) if zeros is not None and zeros.dtype == ir.DataType.UINT8 else blocks
        for index, wanted in ((1, n * blocks * (block * bits // 8)), (2, n * blocks), (3, n * row)):
            if given(node, index) and (found := _constant(node, index).size) != wanted:
                return f"input {index} has {found} values instead of {wanted}"
        return _wrong_types(node, (1, ir.DataType.UINT8), 2, (3, ir.DataType.UINT8, _constant(node, 2).dtype))

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        bits, block, n, k = (parts[key] for key in ("bits", "block", "n", "k"))
        blocks = -(-k // block)
        a, scales, zeros = required(node, 0), _constant(node, 2), input_of(node, 3)
        dtype = ir.DataType.UINT4 if bits == 4 else ir.DataType.UINT8
        codes = _codes(_constant(node, 1), bits, (n, blocks * block), (n, k), node.inputs[1])
        table = op.tensor(_reshaped(scales, (n, blocks)))
        if zeros is not None and zeros.dtype != ir.DataType.UINT8:
            w = self._with_float_zeros(op, node, codes, (n, blocks), block)
        else:
            if zeros is None:
                zero = np.full((n, blocks), 1 << (bits - 1), np.uint8)
            else:
                zero = _unpacked(np.asarray(_constant(node, 3).numpy()).reshape(n, -1), bits)[:, :blocks]
            w = op.DequantizeLinear(op.tensor(codes), table, op.tensor(_packed(zero, dtype)), axis=1, block_size=block)
        y, bias = op.MatMul(a, op.Transpose(w, perm=(1, 0))), input_of(node, 5)
        return y if bias is None else op.Add(y, bias)

    @staticmethod
    def _with_float_zeros(op: Builder, node: ir.Node, codes: ir.TensorProtocol, shape: tuple[int, int],
                          block: int) -> ir.Value:
        """(code - zero) * scale with a zero that is no integer: code * scale - zero * scale, spread over the blocks."""
        scales = np.asarray(_constant(node, 2).numpy()).reshape(shape)
        zeros = np.asarray(_constant(node, 3).numpy()).reshape(shape).astype(np.float32)
        size = codes.shape[1]
        assert isinstance(size, int)
        offsets = np.repeat(zeros * scales.astype(np.float32), block, 1)[:, :size].astype(scales.dtype)
        dense = op.DequantizeLinear(op.tensor(codes), op.const(scales), None, axis=1, block_size=block)
        return op.Sub(dense, op.const(offsets))


class GatherBlockQuantized(VendorRule):
    """(codes, indices, scales, [zero points]): rows of a table in blocks, each dequantized."""

    roots = ("GatherBlockQuantized",)

    def match(self, node: ir.Node) -> Bindings | None:
        return {"bits": int_attr(node, "bits", 4), "block": int_attr(node, "block_size", 128),
                "along": int_attr(node, "quantize_axis", 1), "picked": int_attr(node, "gather_axis", 0)}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        if len(given(node, 0, 1, 2)) < 3 or any(const_tensor(node.inputs[i]) is None for i in given(node, 0, 2, 3)):
            return "its table is not constant"
        return self._misfit(node, **parts)

    @staticmethod
    def _misfit(node: ir.Node, bits: int, block: int, along: int, picked: int) -> str | None:
        """What of the attributes the tensors contradict, or onnxruntime refuses; the rewriting then relies on both."""
        codes = _constant(node, 0)
        dims = [int(d) for d in codes.shape.numpy()]
        rank, in_bytes = len(dims), codes.dtype == ir.DataType.UINT8
        if codes.dtype not in _CODES or bits not in ((4, 8) if in_bytes else (4,)):
            return f"codes of {bits} bits in {codes.dtype}"
        if block < 16 or block & (block - 1):
            return f"blocks of {block}"
        if rank < 2 or not (-rank <= along < rank and -rank <= picked < rank):
            return f"axes {along} and {picked} of a table of rank {rank}"
        if in_bytes and (along % rank != rank - 1 or picked % rank):
            return f"bytes in blocks along axis {along}, picked along axis {picked}"
        packing = 8 // bits if in_bytes else 1
        dims[-1] *= packing
        dims[along] = -(-dims[along] // block)
        for index, wanted in ((2, dims), (3, [*dims[:-1], -(-dims[-1] // packing)])):
            if given(node, index) and (found := list(_constant(node, index).shape.numpy())) != wanted:
                return f"input {index} has shape {found} instead of {wanted}"
        return _wrong_types(node, 2, (3, codes.dtype))

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        bits, codes, zeros = parts["bits"], _constant(node, 0), input_of(node, 3)
        packed = codes.dtype == ir.DataType.UINT8 and bits == 4
        zero = None if zeros is None else _constant(node, 3)
        if packed:
            dims = tuple(int(d) for d in codes.shape.numpy())
            whole = (*dims[:-1], dims[-1] * 2)
            codes = _codes(codes, 4, whole, whole, node.inputs[0])
            if zero is not None:
                blocks = np.asarray(_constant(node, 2).numpy()).shape
                loose = _unpacked(np.asarray(zero.numpy()), 4)[..., : blocks[-1]]
                zero = _packed(loose, ir.DataType.UINT4)
        if zero is None and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.UINT8:
            shape = _constant(node, 2).shape.numpy()
            zero = _packed(np.full(shape, 1 << (bits - 1), np.uint8), codes.dtype)
        table = op.DequantizeLinear(op.tensor(codes), required(node, 2), None if zero is None else op.tensor(zero),
                                    axis=parts["along"], block_size=parts["block"])
        return op.Gather(table, required(node, 1), axis=parts["picked"])


def _wrong_types(node: ir.Node, *wanted: int | tuple[int | ir.DataType, ...]) -> str | None:
    """The first constant input that is of none of its types: (input, type, ...), or an input that has to be a float."""
    for row in wanted:
        index, types = (row, _FLOATS) if isinstance(row, int) else (int(row[0]), row[1:])
        if given(node, index) and _constant(node, index).dtype not in types:
            return f"input {index} is {_constant(node, index).dtype}"
    return None


def _constant(node: ir.Node, index: int) -> ir.TensorProtocol:
    tensor = const_tensor(node.inputs[index])
    assert tensor is not None  # checked
    return tensor


def _reshaped(tensor: ir.TensorProtocol, shape: tuple[int, ...]) -> ir.TensorProtocol:
    """Scales: small next to the weights, so they are read."""
    return ir.Tensor(np.asarray(tensor.numpy()).reshape(shape), name=tensor.name)


def _unpacked(array: Array, bits: int) -> Array:
    """UINT8 codes out of bytes that hold one of 8 bits or two of 4, the low half first, along the last axis."""
    if bits == 8:
        return array
    whole = array.astype(np.uint8)
    halves = np.stack([whole & 15, whole >> 4], axis=-1)
    return halves.reshape(*array.shape[:-1], array.shape[-1] * 2)


def _packed(array: Array, dtype: ir.DataType) -> ir.TensorProtocol:
    if dtype != ir.DataType.UINT4:
        return ir.Tensor(np.ascontiguousarray(array.astype(np.uint8)))
    return ir.Tensor(np.ascontiguousarray(array).astype(dtype.numpy()), dtype=dtype)


def _codes(tensor: ir.TensorProtocol, bits: int, whole: tuple[int, ...], shape: tuple[int, ...],
           value: ir.Value | None) -> ir.TensorProtocol:
    """The bytes of `tensor` as codes of `whole`, cut to `shape`; read again whenever they are used, never kept."""
    dtype = ir.DataType.UINT4 if bits == 4 else ir.DataType.UINT8
    name = (value.name if value is not None else None) or "codes"

    def convert() -> ir.TensorProtocol:
        loose = _unpacked(np.asarray(tensor.numpy()).reshape(*whole[:-1], -1), bits).reshape(whole)
        cut = loose[..., : shape[-1]]
        made = _packed(cut, dtype)
        release(tensor)
        return made

    return ir.LazyTensor(convert, dtype=dtype, shape=ir.Shape(shape), name=name, cache=False)


RULES = (
    QLinearUnary(), QLinearBinary(), QLinearConcat(), QLinearWhere(), VendorQDQ(), QLinearConv(), StandardQLinearConv(),
    QLinearMatMul(), IntegerProduct(), MatMulIntegerToFloat(), DynamicQuantizeMatMul(), QGemm(), QAttention(),
    MatMulNBits(), GatherBlockQuantized(),
)
