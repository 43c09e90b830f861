"""From a lowered ONNX graph to Relax, TVM's graph: through its own importer, except what our kernels compute.

Products and convolutions with constant weights become calls of C functions (runtime/tvm/entry.cpp) that are linked into
the compiled model; TVM fuses and compiles the rest. Everything of TVM is imported inside functions: it is an extra.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgec.compress.formats import Array, Dtype, Format, pack


def to_relax(proto: Any, opset: int) -> Any:
    """The IRModule of a ModelProto of `opset` whose operators are those of targets/tvm.py."""
    return _importer()({}, "float32", sanitize=False).from_onnx(proto.graph, opset)


def _importer() -> Any:
    from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

    class Importer(ONNXGraphImporter):  # type: ignore[misc]  # TVM has no types
        def _check_for_unsupported_ops(self, graph: Any) -> None:
            """The backend's capabilities have decided that; TVM's own list lacks the operators of ours."""

        def _convert_operator(self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int) -> Any:
            given = [inputs[i] for i in range(len(inputs))]
            convert = _CONVERT.get(op_name)
            found = None if convert is None else convert(self.bb, given, attrs)
            if found is None:
                return super()._convert_operator(op_name, inputs, attrs, opset)
            return self.bb.normalize(found)

    return Importer


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
                *(tirx.IntImm("int64", n) if isinstance(n, int) else n.astype("int64") for n in numbers))
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


def _linear(bb: Any, x: Any, weight: Array, bias: Any) -> Any:
    """x Wᵀ + bias for W [N, K]; None where the kernel does not take it."""
    n, k = weight.shape
    dims, shift = _dims(x), _biased(bias, n)
    if dims is None or not dims or shift is None or not _is_float(x) or weight.dtype != np.float32 or dims[-1] != k:
        return None
    packed = pack(weight, Dtype.F32, Format.PANEL16).reshape(-1)
    return _extern(bb, "edgec_tvm_linear", [*dims[:-1], n], [x, _const(packed), shift[0]],
                   [_product(dims[:-1]), k, n, shift[1]])


def _matmul(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    """By a constant matrix, or of two stacks of matrices with the same leading dims."""
    weight = _array(inputs[1])
    if weight is not None:
        return _linear(bb, inputs[0], weight.T, None) if weight.ndim == 2 else None
    x, y = (_dims(value) for value in inputs)
    if x is None or y is None or len(x) < 3 or [str(d) for d in x[:-2]] != [str(d) for d in y[:-2]]:
        return None
    if not all(map(_is_float, inputs)) or str(x[-1]) != str(y[-2]):
        return None
    return _extern(bb, "edgec_tvm_matmul", [*x[:-1], y[-1]], inputs, [_product(x[:-2]), x[-2], x[-1], y[-1]])


def _gemm(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    weight = _array(inputs[1])
    plain = (attrs.get("alpha", 1.0), attrs.get("beta", 1.0), attrs.get("transA", 0)) == (1.0, 1.0, 0)
    if weight is None or not plain:
        return None
    bias = inputs[2] if len(inputs) > 2 else None
    return _linear(bb, inputs[0], weight if attrs.get("transB", 0) else weight.T, bias)


def _linear_bits(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    x, weight = inputs[0], inputs[1]
    dims, n = _dims(x), int(attrs["N"])
    shift = _biased(inputs[2] if len(inputs) > 2 else None, n)
    if dims is None or shift is None:
        raise ValueError("LinearBits of a tensor of unknown rank, or with a bias that is no constant vector")
    return _extern(bb, "edgec_tvm_linear_bits", [*dims[:-1], n], [x, weight, shift[0]],
                   [_product(dims[:-1]), dims[-1], n, shift[1], int(_dims(weight)[0]),  # type: ignore[index]
                    *(int(attrs[key]) for key in ("bits", "group", "form"))])


def _gather_bits(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    weight, index = inputs
    dims, n, k = _dims(index), int(attrs["N"]), int(attrs["K"])
    if dims is None:
        raise ValueError("GatherBits with indices of unknown rank")
    return _extern(bb, "edgec_tvm_gather_bits", [*dims, k], [weight, index],
                   [_product(dims), n, k, int(_dims(weight)[0]),  # type: ignore[index]
                    *(int(attrs[key]) for key in ("bits", "group", "form"))])


def _conv(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    """Images of a known size: turned to NHWC, multiplied, turned back; TVM fuses the turns with what is beside them."""
    from tvm import relax

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
    turned = bb.emit(relax.op.permute_dims(x, [0, 2, 3, 1]))
    numbers = [b, h, w, ci, oh, ow, co, shift[1], kh, kw, sh, sw, top, left, dh, dw, *([] if deep else [groups])]
    made = _extern(bb, "edgec_tvm_dwconv2d" if deep else "edgec_tvm_conv2d", [b, oh, ow, co],
                   [turned, _const(packed.reshape(-1)), shift[0]], [int(n) for n in numbers])
    return relax.op.permute_dims(made, [0, 3, 1, 2])


def _transpose(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    """Of a constant: at once, so that a product sees its weight."""
    array = _array(inputs[0])
    return None if array is None else _const(np.transpose(array, attrs.get("perm")))


def _reshape(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    array, shape = _array(inputs[0]), _array(inputs[1])
    if array is None or shape is None or not array.size or attrs.get("allowzero", 0):
        return None
    return _const(array.reshape([array.shape[i] if d == 0 else int(d) for i, d in enumerate(shape.reshape(-1))]))


def _gather(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Any:
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


_CONVERT: dict[str, Callable[[Any, list[Any], dict[str, Any]], Any]] = {
    "MatMul": _matmul, "Gemm": _gemm, "Conv": _conv, "LinearBits": _linear_bits, "GatherBits": _gather_bits,
    "Transpose": _transpose, "Reshape": _reshape, "Gather": _gather,
}
