"""Regions spelled with QuantizeLinear and DequantizeLinear, and what their weights and biases are in integers.

    DequantizeLinear(x uint8)  DequantizeLinear(w int8, axis 0)  DequantizeLinear(b int32)
                      \\                 |                 /
                         Conv | Gemm | MatMul, Add          -> [Relu | Clip] -> QuantizeLinear

Weights are symmetric with a scale per output channel, biases have the scale that a sum of products has, x times w. An
activation is left out where saturation of the rounded result is the same function. Source of the form: ONNX's QDQ, as
onnxruntime's kernels take it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array
from edgec.compress.ranges import LEVELS, QParams
from edgec.compress.regions import Region
from edgec.errors import EdgecError
from edgec.ir.model import Builder
from edgec.ir.weights import opened

_MOST = 127  # -128 is left out, so that the grid is symmetric
_MOST_BIAS = 2.0**30
_LEAST_SCALE = 2.0**-60


@dataclass(frozen=True)
class IntegerWeight:
    """codes: int8 [N, ...]. scale: float32 [N]. bias: int32 [N] with the scale x scale[n], None without one.
    bytes: as stored, with a zero point per channel."""

    codes: Array
    scale: Array
    bias: Array | None

    @property
    def bytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes + len(self.codes) + (0 if self.bias is None else self.bias.nbytes)


def quantize_weight(weight: Array, bias: Array | None, x_scale: float, where: str) -> IntegerWeight:
    """Rounds `weight` [N, ...] to 127 steps on either side of 0 per output channel.

    A channel whose bias would not fit 32 bits at that scale takes a larger one, as one of zeros alone does.
    Raises EdgecError (E0101) for infinities and NaNs.
    """
    rows = np.asarray(weight, np.float64).reshape(len(weight), -1)
    if not np.isfinite(rows).all() or (bias is not None and not np.isfinite(bias).all()):
        raise EdgecError("E0101", stage="quantize", where=where, found="infinity or NaN among the weights",
                         wanted="finite weights", hint=f"leave it as it is: --quant-override '{where}=f32'")
    scale = np.abs(rows).max(1) / _MOST
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias) / (x_scale * _MOST_BIAS))
    scale = np.where(scale > 0, np.maximum(scale, _LEAST_SCALE), 1.0).astype(np.float32)
    codes = np.clip(np.rint(rows / scale[:, None].astype(np.float64)), -_MOST, _MOST).astype(np.int8)
    whole = None
    if bias is not None:
        whole = np.rint(bias / (np.float32(x_scale) * scale).astype(np.float64)).astype(np.int32)
    return IntegerWeight(codes.reshape(weight.shape), scale, whole)


@dataclass
class Emitter:
    """Builds regions into graphs. params: of their activations, by value: names change on the way.
    weights: what was rounded so far, by the name of the region's result."""

    params: Mapping[ir.Value, QParams]
    weights: dict[str, IntegerWeight] = field(default_factory=dict)

    def quantized(self, op: Builder, x: ir.Value, params: QParams) -> ir.Value:
        """uint8 codes of `x`."""
        return _typed(op.QuantizeLinear(x, *_constants(op, params)), ir.DataType.UINT8, x)

    def restored(self, op: Builder, codes: ir.Value, params: QParams) -> ir.Value:
        return _typed(op.DequantizeLinear(codes, *_constants(op, params)), ir.DataType.FLOAT, codes)

    def rounded(self, op: Builder, x: ir.Value, params: QParams) -> ir.Value:
        return self.restored(op, self.quantized(op, x, params), params)

    def region(self, op: Builder, region: Region, inputs: Callable[[ir.Value], ir.Value]) -> tuple[ir.Value, ir.Value]:
        """(raw, out) of `region` on the restored activations `inputs(value)`; out is raw where rounding it to its
        range does what the activation does."""
        read = [inputs(value) for value in region.inputs]
        raw = self._linear(op, region, read[0]) if region.weight is not None else self._plain(op, region, read)
        raw = _typed(raw, ir.DataType.FLOAT, region.raw)
        act = region.activation
        if act is None or self.folds(region):
            return raw, raw
        out = op.node(act.op_type, [raw, *act.inputs[1:]], {k: a.value for k, a in act.attributes.items()}).outputs[0]
        return raw, _typed(out, ir.DataType.FLOAT, region.out)

    def folds(self, region: Region) -> bool:
        """Whether the activation does nothing that the saturation of its rounded result does not do as well."""
        low, high = region.bounds or (None, None)
        params = self.params[region.out]
        return (low is None or params.code(low) <= 0) and (high is None or params.code(high) >= LEVELS - 1)

    def _plain(self, op: Builder, region: Region, read: list[ir.Value]) -> ir.Value:
        node = region.node
        new = op.node(node.op_type, [*read, *node.inputs[len(read):]], {k: a.value for k, a in node.attributes.items()})
        return new.outputs[0]

    def _linear(self, op: Builder, region: Region, x: ir.Value) -> ir.Value:
        node, name, x_scale = region.node, region.name, self.params[region.inputs[0]].scale
        whole = self.weights.get(region.raw.name or name)
        if whole is None:
            assert region.weight is not None  # by the caller
            with opened(region.weight) as weight:
                whole = self.weights[region.raw.name or name] = quantize_weight(weight, region.bias, x_scale, name)
        scale = op.const(whole.scale, name=f"{name}.scale")
        # onnxruntime has no integer Gemm for weights without zero points, even ones that are all 0.
        zero = op.const(np.zeros(len(whole.codes), np.int8), name=f"{name}.zero")
        dense = op.DequantizeLinear(op.const(whole.codes, name=f"{name}.codes"), scale, zero, axis=0)
        dense = _typed(dense, ir.DataType.FLOAT, region.weight)
        bias = None
        if whole.bias is not None:
            step = op.const(np.float32(x_scale) * whole.scale, name=f"{name}.bias_scale")
            bias = op.DequantizeLinear(op.const(whole.bias, name=f"{name}.bias_codes"), step, axis=0)
            bias.type, bias.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(whole.bias.shape)
        if node.op_type == "MatMul":
            y = op.MatMul(x, op.Transpose(dense, perm=(1, 0)))
            return y if bias is None else op.Add(y, bias)
        return op.node(node.op_type, [x, dense, bias], {k: a.value for k, a in node.attributes.items()}).outputs[0]


def _constants(op: Builder, params: QParams) -> tuple[ir.Value, ir.Value]:
    return op.const(np.array(params.scale, np.float32)), op.const(np.array(params.zero, np.uint8))


def _typed(value: ir.Value, dtype: ir.DataType, like: ir.Value | None) -> ir.Value:
    value.type = ir.TensorType(dtype)
    if like is not None and like.shape is not None:
        value.shape = like.shape
    return value
