"""From a lowered ONNX graph to Relax, TVM's graph: through its own importer, except what our kernels compute.

Products, convolutions, norms and activations become calls of C functions (runtime/tvm/entry.cpp) that are linked into
the compiled model; TVM fuses and compiles the rest. An activation or an addition that is the only reader of a product
joins its call. Images stay in NHWC, as our kernels take them, from one convolution to the next: what is computed value
by value in between is computed there. Everything of TVM is imported inside functions: it is an extra.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgec.compress.formats import Array, Dtype, Format, pack

# Operators whose results have the shape of their inputs, value by value: as well in NHWC.
_EACH = frozenset(("Abs", "Add", "Ceil", "Clip", "Div", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
                   "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Sigmoid", "Sqrt",
                   "Sub", "Swish", "Tanh"))
_TO_NHWC, _TO_NCHW = [0, 2, 3, 1], [0, 3, 1, 2]


@dataclass(frozen=True)
class _Product:
    """A call of ours that an activation, or the addition of a tensor as large as its result, may still join."""

    symbol: str
    shape: Sequence[Any]
    tensors: Sequence[Any]
    numbers: Sequence[Any]
    residual: Any = None
    first: bool = False
    act: tuple[int, float, float] = (0, 0.0, 0.0)

    def emit(self, bb: Any) -> Any:
        residual = _const(np.zeros(1, np.float32)) if self.residual is None else self.residual
        return _extern(bb, self.symbol, self.shape, [*self.tensors, residual],
                       [*self.numbers, int(self.residual is not None), int(self.first), *self.act])


@dataclass(frozen=True)
class _Known:
    """What is known of a value besides itself: the same in NHWC, and the product it is."""

    value: Any
    last: Any = None
    product: _Product | None = None


@dataclass
class _Notes:
    """What is known of the values of a graph, and how often each name is read."""

    uses: Counter[str] = field(default_factory=Counter)
    known: list[_Known] = field(default_factory=list)

    def of(self, value: Any) -> _Known:
        return next((k for k in reversed(self.known) if k.value.same_as(value)), _Known(value))

    def add(self, bb: Any, *, value: Any = None, last: Any = None, product: _Product | None = None) -> Any:
        """The value, an image that is known in NHWC only being turned."""
        from tvm import relax

        if value is None:
            value = bb.emit(relax.op.permute_dims(last, _TO_NCHW))
        self.known.append(_Known(value, last, product))
        return value

    def nhwc(self, bb: Any, value: Any) -> Any:
        from tvm import relax

        last = self.of(value).last
        if last is None:
            last = bb.emit(relax.op.permute_dims(value, _TO_NHWC))
            self.known.append(_Known(value, last, self.of(value).product))
        return last


def to_relax(proto: Any, opset: int) -> Any:
    """The IRModule of a ModelProto of `opset` whose operators are those of targets/tvm.py."""
    from tvm import relax

    made = _importer()({}, "float32", sanitize=False).from_onnx(proto.graph, opset)
    return relax.transform.DeadCodeElimination()(made)  # without calls that others took in


def _importer() -> Any:
    from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

    class Importer(ONNXGraphImporter):  # type: ignore[misc]  # TVM has no types
        def _check_for_unsupported_ops(self, graph: Any) -> None:
            """The backend's capabilities have decided that; TVM's own list lacks the operators of ours."""
            self.notes = _Notes(Counter([*(name for node in graph.node for name in node.input),
                                         *(value.name for value in graph.output)]))

        def _convert_operator(self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int) -> Any:
            given = [inputs[i] for i in range(len(inputs))]
            found = self._joined(op_name, given, attrs)
            if found is None and op_name in _CONVERT:
                found = _CONVERT[op_name](self.bb, self.notes, given, attrs)
            if found is None:
                found = self._in_nhwc(op_name, inputs, attrs, opset)
            if found is None:
                return super()._convert_operator(op_name, inputs, attrs, opset)
            return self.bb.normalize(found)

        def _read_once(self, value: Any) -> bool:
            names = [name for name, held in self._nodes.items() if held is not None and held.same_as(value)]
            return sum(self.notes.uses[name] for name in names) == 1

        def _joined(self, op_name: str, given: list[Any], attrs: dict[str, Any]) -> Any:
            """The product that `op_name` follows, with it in its call; None where that cannot be."""
            act = None if op_name == "Add" else _activation(op_name, given, attrs)
            if op_name == "Add":
                pairs = [(given[0], given[1]), (given[1], given[0])]
            elif act is not None:
                pairs = [(given[0], None)]
            else:
                return None
            for value, other in pairs:
                product, image = self.notes.of(value).product, self.notes.of(value).last is not None
                if product is None or not self._read_once(value):
                    continue
                if act is not None and not product.act[0]:
                    product = replace(product, act=act, first=product.residual is not None)
                elif other is not None and product.residual is None and _same_dims(value, other) and _is_float(other):
                    product = replace(product, residual=self.notes.nhwc(self.bb, other) if image else other)
                else:
                    continue
                made = product.emit(self.bb)
                return self.notes.add(self.bb, product=product, **({"last": made} if image else {"value": made}))
            return None

        def _in_nhwc(self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int) -> Any:
            """An operator of _EACH on images that are known in NHWC."""
            if op_name not in _EACH:
                return None
            turned = type(inputs)()
            for value in inputs:
                array = None if value is None else _array(value)
                last = None if value is None else self.notes.of(value).last
                if value is None or (array is not None and array.size == 1 and array.ndim <= 4) or last is not None:
                    turned.append(value if last is None else last)
                elif array is not None and array.ndim == 4:
                    turned.append(_const(np.transpose(array, _TO_NHWC)))
                else:
                    return None
            if all(a is b for a, b in zip(inputs, turned, strict=True)):
                return None  # no image among them
            made = self.bb.emit(super()._convert_operator(op_name, turned, attrs, opset))
            return self.notes.add(self.bb, last=made)

    return Importer


def _activation(op_name: str, given: list[Any], attrs: dict[str, Any]) -> tuple[int, float, float] | None:
    """The code and numbers of an operator in docs/kernels.md; None for others."""
    if op_name == "Clip":
        low, high = (_array(given[i]) if len(given) > i and given[i] is not None else np.float32(limit)
                     for i, limit in ((1, -np.inf), (2, np.inf)))
        if low is None or high is None or np.size(low) != 1 or np.size(high) != 1:
            return None
        return 2, float(np.reshape(low, ())), float(np.reshape(high, ()))
    if op_name == "Gelu":
        return 7 if attrs.get("approximate", b"none") in (b"tanh", "tanh") else 6, 0.0, 0.0
    if op_name == "Swish":
        return (4, 0.0, 0.0) if attrs.get("alpha", 1.0) == 1.0 else None
    if op_name == "HardSigmoid":
        return 9, float(attrs.get("alpha", 0.2)), float(attrs.get("beta", 0.5))
    if op_name == "LeakyRelu":
        return 10, float(attrs.get("alpha", 0.01)), 0.0
    code = {"Relu": 1, "Sigmoid": 3, "Tanh": 5, "HardSwish": 8}.get(op_name)
    return None if code is None else (code, 0.0, 0.0)


def _array(value: Any) -> Array | None:
    """What a Relax constant holds; None for anything else."""
    from tvm.ir.expr import GenericConst

    held = value.value if isinstance(value, GenericConst) else None
    return held.numpy() if held is not None and hasattr(held, "numpy") else None


def _const(array: Array) -> Any:
    import tvm
    from tvm import relax

    return relax.const(tvm.runtime.tensor(np.ascontiguousarray(array)))


def _dims(value: Any) -> list[Any] | None:
    """Dims of a tensor, numbers or expressions; None where TVM does not know them."""
    shape = getattr(value.ty, "shape", None)
    values = getattr(shape, "values", None)
    return None if values is None else [int(d) if hasattr(d, "value") else d for d in values]


def _same_dims(a: Any, b: Any) -> bool:
    x, y = _dims(a), _dims(b)
    return x is not None and y is not None and [str(d) for d in x] == [str(d) for d in y]


def _is_float(value: Any) -> bool:
    return str(value.ty.dtype) == "float32"


def _extern(bb: Any, symbol: str, shape: Sequence[Any], tensors: Sequence[Any], numbers: Sequence[Any]) -> Any:
    """A call symbol(tensors..., result, numbers...) that makes a float32 tensor; the compiled code asserts that it
    returns 0."""
    from tvm import te, tirx
    from tvm.ir.expr import StringImm

    def compute(*values: Any) -> Any:
        def body(ins: Any, outs: Any) -> Any:
            call = tirx.call_extern(
                "int32", symbol, *(buffer.access_ptr("r") for buffer in ins), outs[0].access_ptr("w"),
                *(tirx.IntImm("int64", n) if isinstance(n, int) else tirx.FloatImm("float32", n)
                  if isinstance(n, float) else n.astype("int64") for n in numbers))
            said = f"{symbol} returned an error: its operands do not fit, or memory is short"
            return tirx.AssertStmt(tirx.EQ(call, tirx.IntImm("int32", 0)), StringImm("RuntimeError"), [StringImm(said)])

        return te.extern([tuple(shape)], list(values), body, dtype=["float32"], name=symbol)

    return bb.emit_te(compute, *tensors)


def _product(dims: Sequence[Any]) -> Any:
    result: Any = 1
    for d in dims:
        result = result * d
    return result


def _biased(bias: Any, n: int) -> tuple[Any, int] | None:
    """(the bias operand, its length); one that is not read, and 0, without a bias; None for what is no vector [n]."""
    if bias is None:
        return _const(np.zeros(1, np.float32)), 0
    array = _array(bias)
    return (bias, n) if array is not None and array.shape == (n,) and array.dtype == np.float32 else None


def _linear(bb: Any, notes: _Notes, x: Any, weight: Array, bias: Any) -> Any:
    """x Wᵀ + bias for W [N, K]; None where the kernel does not take it."""
    n, k = weight.shape
    dims, shift = _dims(x), _biased(bias, n)
    if dims is None or not dims or shift is None or not _is_float(x) or weight.dtype != np.float32 or dims[-1] != k:
        return None
    packed = pack(weight, Dtype.F32, Format.PANEL16).reshape(-1)
    made = _Product("edgec_tvm_linear", [*dims[:-1], n], [x, _const(packed), shift[0]],
                    [_product(dims[:-1]), k, n, shift[1]])
    return notes.add(bb, value=made.emit(bb), product=made)


def _matmul(bb: Any, notes: _Notes, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    """By a constant matrix, or of two stacks of matrices with the same leading dims."""
    weight = _array(inputs[1])
    if weight is not None:
        return _linear(bb, notes, inputs[0], weight.T, None) if weight.ndim == 2 else None
    x, y = (_dims(value) for value in inputs)
    if x is None or y is None or len(x) < 3 or [str(d) for d in x[:-2]] != [str(d) for d in y[:-2]]:
        return None
    if not all(map(_is_float, inputs)) or str(x[-1]) != str(y[-2]):
        return None
    return _extern(bb, "edgec_tvm_matmul", [*x[:-1], y[-1]], inputs, [_product(x[:-2]), x[-2], x[-1], y[-1]])


def _gemm(bb: Any, notes: _Notes, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    weight = _array(inputs[1])
    plain = (attrs.get("alpha", 1.0), attrs.get("beta", 1.0), attrs.get("transA", 0)) == (1.0, 1.0, 0)
    if weight is None or not plain:
        return None
    bias = inputs[2] if len(inputs) > 2 else None
    return _linear(bb, notes, inputs[0], weight if attrs.get("transB", 0) else weight.T, bias)


def _linear_bits(bb: Any, notes: _Notes, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    x, weight = inputs[0], inputs[1]
    dims, n = _dims(x), int(attrs["N"])
    shift = _biased(inputs[2] if len(inputs) > 2 else None, n)
    if dims is None or shift is None:
        raise ValueError("LinearBits of a tensor of unknown rank, or with a bias that is no constant vector")
    made = _Product("edgec_tvm_linear_bits", [*dims[:-1], n], [x, weight, shift[0]],
                    [_product(dims[:-1]), dims[-1], n, shift[1], int(_dims(weight)[0]),  # type: ignore[index]
                     *(int(attrs[key]) for key in ("bits", "group", "form"))])
    return notes.add(bb, value=made.emit(bb), product=made)


def _gather_bits(bb: Any, notes: _Notes, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    weight, index = inputs
    dims, n, k = _dims(index), int(attrs["N"]), int(attrs["K"])
    if dims is None:
        raise ValueError("GatherBits with indices of unknown rank")
    return _extern(bb, "edgec_tvm_gather_bits", [*dims, k], [weight, index],
                   [_product(dims), n, k, int(_dims(weight)[0]),  # type: ignore[index]
                    *(int(attrs[key]) for key in ("bits", "group", "form"))])


def _conv(bb: Any, notes: _Notes, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    """Images of a known size, in NHWC."""
    x, weight = inputs[0], _array(inputs[1])
    dims = _dims(x)
    if weight is None or weight.ndim != 4 or dims is None or not _is_float(x) or weight.dtype != np.float32:
        return None
    padding = attrs.get("auto_pad", b"NOTSET")
    if not all(isinstance(d, int) for d in dims) or padding not in (b"NOTSET", "NOTSET", b"VALID", "VALID"):
        return None
    (b, ci, h, w), (co, _, kh, kw), groups = dims, weight.shape, int(attrs.get("group", 1))
    (sh, sw), (dh, dw) = (tuple(attrs.get(key, (1, 1))) for key in ("strides", "dilations"))
    top, left, bottom, right = attrs.get("pads", (0, 0, 0, 0))
    oh = (h + top + bottom - dh * (kh - 1) - 1) // sh + 1
    ow = (w + left + right - dw * (kw - 1) - 1) // sw + 1
    shift = _biased(inputs[2] if len(inputs) > 2 else None, co)
    if shift is None or min(oh, ow) < 1 or min(top, left, bottom, right) < 0:
        return None
    deep = groups == ci and co % ci == 0 and groups > 1
    if deep and co != ci:
        return None  # our kernel numbers the channels of a multiplier otherwise
    if deep:
        packed = weight.reshape(co, kh * kw).T
    else:
        rows = np.moveaxis(weight, 1, -1).reshape(groups, co // groups, -1)
        packed = np.stack([pack(part, Dtype.F32, Format.PANEL16) for part in rows])
    numbers = [b, h, w, ci, oh, ow, co, shift[1], kh, kw, sh, sw, top, left, dh, dw, *([] if deep else [groups])]
    made = _Product("edgec_tvm_dwconv2d" if deep else "edgec_tvm_conv2d", [b, oh, ow, co],
                    [notes.nhwc(bb, x), _const(packed.reshape(-1)), shift[0]], [int(n) for n in numbers])
    return notes.add(bb, last=made.emit(bb), product=made)


def _pooled(bb: Any, notes: _Notes, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    """GlobalAveragePool of an image that is known in NHWC."""
    from tvm import relax

    last = notes.of(inputs[0]).last
    return None if last is None else notes.add(bb, last=bb.emit(relax.op.mean(last, [1, 2], True)))


def _each(op_name: str) -> Callable[[Any, _Notes, list[Any], dict[str, Any]], Any]:
    """An activation that joined nothing."""

    def convert(bb: Any, notes: _Notes, inputs: list[Any], attrs: dict[str, Any]) -> Any:
        act, last = _activation(op_name, inputs, attrs), notes.of(inputs[0]).last
        value = inputs[0] if last is None else last
        dims = _dims(value)
        if act is None or dims is None or not _is_float(value) or _array(value) is not None:
            return None
        made = _extern(bb, "edgec_tvm_unary", dims, [value], [_product(dims), *act])
        return made if last is None else notes.add(bb, last=made)

    return convert


def _swish(bb: Any, notes: _Notes, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    """x sigmoid(alpha x), which TVM does not know."""
    from tvm import relax

    found = _each("Swish")(bb, notes, inputs, attrs)
    if found is not None:
        return found
    last = notes.of(inputs[0]).last
    x = inputs[0] if last is None else last
    scaled = relax.op.multiply(x, relax.const(float(attrs.get("alpha", 1.0)), str(x.ty.dtype)))
    made = bb.emit(relax.op.multiply(x, relax.op.sigmoid(scaled)))
    return made if last is None else notes.add(bb, last=made)


def _softmax(bb: Any, notes: _Notes, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    """Over the last axis."""
    dims = _dims(inputs[0])
    if not dims or not _is_float(inputs[0]) or int(attrs.get("axis", -1)) not in (-1, len(dims) - 1):
        return None
    return _extern(bb, "edgec_tvm_softmax", dims, inputs[:1], [_product(dims[:-1]), dims[-1]])


def _layer_norm(bb: Any, notes: _Notes, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    """Over the last axis, with constant vectors."""
    from tvm import relax

    x, scale = inputs[:2]
    dims, gamma = _dims(x), _array(scale)
    if not dims or gamma is None or gamma.shape != (dims[-1],) or not _is_float(x) or gamma.dtype != np.float32:
        return None
    shift = _biased(inputs[2] if len(inputs) > 2 else None, len(gamma))
    if shift is None or int(attrs.get("axis", -1)) not in (-1, len(dims) - 1):
        return None
    made = _extern(bb, "edgec_tvm_layernorm", dims, [x, scale, shift[0]],
                   [_product(dims[:-1]), dims[-1], shift[1], float(attrs.get("epsilon", 1e-5))])
    unread = attrs["tvm_custom"]["num_outputs"] - 1  # nobody does, or the backend would have refused
    return relax.Tuple([made, *([_const(np.zeros(1, np.float32))] * unread)]) if unread else made


def _transpose(bb: Any, notes: _Notes, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    """Of a constant: at once, so that a product sees its weight."""
    array = _array(inputs[0])
    return None if array is None else _const(np.transpose(array, attrs.get("perm")))


def _reshape(bb: Any, notes: _Notes, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    array, shape = _array(inputs[0]), _array(inputs[1])
    if array is None or shape is None or not array.size or attrs.get("allowzero", 0):
        return None
    return _const(array.reshape([array.shape[i] if d == 0 else int(d) for i, d in enumerate(shape.reshape(-1))]))


def _gather(bb: Any, notes: _Notes, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    """Of tensors: an index outside would be read outside of the memory; here it is clipped."""
    from tvm import relax

    table, index = inputs
    axis, dims = int(attrs.get("axis", 0)), _dims(table)
    known = isinstance(getattr(index, "ty", None), relax.TensorType) and isinstance(table.ty, relax.TensorType)
    if not known or dims is None or (_array(table) is not None and _array(index) is not None):
        return None
    length = dims[axis]
    if not isinstance(length, int):
        return None
    kind = "int64" if "64" in str(index.ty.dtype) else "int32"
    zero, size = relax.const(0, kind), relax.const(length, kind)
    counted = bb.normalize(relax.op.where(relax.op.less(index, zero), relax.op.add(index, size), index))
    return relax.op.take(table, counted, axis, mode="clip")


_CONVERT: dict[str, Callable[[Any, _Notes, list[Any], dict[str, Any]], Any]] = {
    "MatMul": _matmul, "Gemm": _gemm, "Conv": _conv, "LinearBits": _linear_bits, "GatherBits": _gather_bits,
    "Transpose": _transpose, "Reshape": _reshape, "Gather": _gather, "GlobalAveragePool": _pooled, "Softmax": _softmax,
    "LayerNormalization": _layer_norm,
    "Swish": _swish, **{name: _each(name) for name in ("Gelu", "Sigmoid", "Tanh", "HardSwish")},
}
