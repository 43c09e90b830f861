"""Computes at compile time what does not depend on the inputs, and turns Constant nodes into initializers.

The model never grows by it: a result larger than a few kilobytes is folded only when the constants it came from
disappear, and weights stay lazy (a transposed weight in front of a MatMul is the canonical form, not work).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.ir.model import (
    SMALL,
    Array,
    Builder,
    const_of,
    const_tensor,
    dims_of,
    int_attr,
    ints_of,
    is_op,
    producer,
    required,
    subgraphs,
    walk,
)
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import Bindings, Rule, apply_rules
from edgec.ir.shapes import infer_shapes

_SMALL_BYTES = 4096
_LARGEST_BYTES = 64 << 20
# Not a function of the inputs alone, or cheaper left as it is (a quantized weight is smaller than its dense form).
_NEVER = frozenset({
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial",
    "DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "Dropout", "Constant", "Identity",
})
# Of some forms of these onnx's evaluator gives other numbers than the standard says: LRN of more channels than its
# size, LpNormalization of negative numbers with p = 1, GlobalMaxPool of three axes, dilated AveragePool, grouped
# ConvTranspose, grids of one point, the logarithm of a softmax that is 0. The runtime computes them
# all, in float32: of integers they are refused, constants or not, except Resize to the nearest, which moves them.
_UNSOUND = frozenset({
    "AffineGrid", "AveragePool", "ConvTranspose", "GlobalMaxPool", "GridSample", "LRN", "LogSoftmax",
    "LpNormalization", "MeanVarianceNormalization", "QLinearConv", "Resize", "SoftmaxCrossEntropyLoss", "Upsample",
})
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class FoldNode(Rule):
    """A node all of whose inputs are constants becomes a constant."""

    def __init__(self, roots: tuple[str, ...]) -> None:
        self.roots = roots  # type: ignore[misc]  # what the model contains: every operator may be constant

    def match(self, node: ir.Node) -> Bindings | None:
        if node.op_type in (_NEVER | _UNSOUND) or not node.inputs or any(True for _ in subgraphs(node)):
            return None
        tensors = [(v, const_tensor(v)) for v in node.inputs if v is not None]
        if not tensors or any(t is None or t.dtype == ir.DataType.STRING for _, t in tensors):
            return None
        if node.op_type == "Transpose" and all(
            is_op(use.node, "MatMul") and use.idx == 1 for out in node.outputs for use in out.uses()
        ):
            return None
        return {"tensors": tensors, "results": []}

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        tensors: list[tuple[ir.Value, ir.TensorProtocol]] = parts["tensors"]
        read = sum(t.nbytes for _, t in tensors)
        freed = sum(t.nbytes for v, t in tensors if all(use.node is node for use in v.uses()))
        if read > _LARGEST_BYTES:
            return f"reads {read} bytes of constants"
        sizes = [_result_bytes(value) for value in node.outputs if value.uses() or value.is_graph_output()]
        if any(size is None for size in sizes) and read > _SMALL_BYTES:
            return "the size of its result is not known"
        size = sum(s for s in sizes if s is not None)
        if size > max(freed, _SMALL_BYTES):
            return f"would grow the model by {size - freed} bytes"
        try:
            parts["results"].extend(evaluate(node, [None if v is None else _array(v) for v in node.inputs]))
        except Exception as e:  # whatever the reference evaluator cannot do stays in the graph, and is reported
            return f"cannot be computed here: {e}"
        return None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> list[ir.Value]:
        return [op.const(r, name=v.name or "") for r, v in zip(parts["results"], node.outputs, strict=True)]


def _array(value: ir.Value) -> Array:
    tensor = const_tensor(value)
    assert tensor is not None  # matched
    return np.asarray(tensor.numpy())


def _result_bytes(value: ir.Value) -> int | None:
    dims = dims_of(value)
    if dims is None or value.dtype is None or not all(isinstance(d, int) for d in dims):
        return None
    return math.ceil(math.prod(d for d in dims if isinstance(d, int)) * value.dtype.itemsize)


def evaluate(node: ir.Node, inputs: list[Array | None]) -> list[Array]:
    """Runs one node of the standard domain in the reference evaluator; one array per output.

    What has 16 bits is computed in float32 and rounded once, as the runtime does.
    """
    import onnx.reference

    halves = tuple(t.numpy() for t in _HALVES)
    kinds = [out.dtype for out in node.outputs]
    if all(kind is not None for kind in kinds):
        inputs = [a.astype(np.float32) if a is not None and a.dtype in halves else a for a in inputs]
    values = [None if a is None else ir.val(f"i{k}", dtype=ir.DataType.from_numpy(a.dtype), shape=a.shape)
              for k, a in enumerate(inputs)]
    copy = ir.Node("", node.op_type, values, list(node.attributes.values()), num_outputs=len(node.outputs))
    for k, out in enumerate(copy.outputs):
        out.name = f"o{k}"
    graph = ir.Graph([v for v in values if v is not None], copy.outputs, nodes=[copy], opset_imports={"": 24}, name="g")
    evaluator = onnx.reference.ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=10)))
    feeds = {f"i{k}": a for k, a in enumerate(inputs) if a is not None}
    results = [np.array(r, order="C") for r in evaluator.run(None, feeds)]
    return [r.astype(kind.numpy()) if kind in _HALVES else r for r, kind in zip(results, kinds, strict=True)]


class FoldShape(Rule):
    """Shape of known dims, Size, and Gather of a known dim out of a Shape."""

    roots = ("Shape", "Size", "Gather")

    def match(self, node: ir.Node) -> Bindings | None:
        if node.op_type == "Gather":
            shape, index = producer(node.inputs[0], "Shape"), const_of(node.inputs[1])
            if shape is None or index is None or index.size == 0:
                return None
            dims = _shape_slice(shape)
            picked = None if dims is None else [
                dims[i] if -len(dims) <= i < len(dims) else None for i in (int(k) for k in index.reshape(-1))
            ]
            form: tuple[int, ...] = index.shape
        else:
            picked = _shape_slice(node)
            form = () if node.op_type == "Size" else (-1,)
        known = [d for d in picked or () if isinstance(d, int)]
        if picked is None or len(known) != len(picked):
            return None
        numbers = [math.prod(known)] if node.op_type == "Size" else known
        return {"numbers": np.array(numbers, np.int64).reshape(form)}

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return op.const(parts["numbers"])


def _shape_slice(node: ir.Node) -> list[int | str | None] | None:
    dims = dims_of(node.inputs[0])
    if dims is None:
        return None
    end = node.attributes.get("end")
    return list(dims[slice(int_attr(node, "start", 0), None if end is None else end.as_int())])


class CastLikeToCast(Rule):
    """CastLike names its type by example; the type is known."""

    roots = ("CastLike",)

    def match(self, node: ir.Node) -> Bindings | None:
        target = required(node, 1).dtype
        return None if target is None else {"target": target}

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        return op.Cast(required(node, 0), to=int(parts["target"]))


class ExpandShape(Rule):
    """ConstantOfShape with a known small shape."""

    roots = ("ConstantOfShape",)

    def match(self, node: ir.Node) -> Bindings | None:
        shape = ints_of(node.inputs[0])
        return {"shape": shape} if shape is not None and math.prod(shape) <= SMALL // 8 else None

    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value:
        fill = node.attributes.get("value")
        value = np.zeros(1, np.float32) if fill is None else np.asarray(fill.as_tensor().numpy())
        return op.const(np.full(parts["shape"], value.reshape(-1)[0], value.dtype))


class FoldConstants(Pass):
    """Folds to a fixed point: a folded shape makes the next shape known."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        import onnx_ir.passes.common as common

        modified = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model).modified
        modified |= common.LiftSubgraphInitializersToMainGraphPass()(model).modified
        while True:
            infer_shapes(model)
            roots = tuple(sorted({node.op_type for node in walk(model) if node.domain == ""}))
            report = apply_rules(model, (FoldShape(), CastLikeToCast(), ExpandShape(), FoldNode(roots)))
            ctx.rules.extend(report)
            if not report.modified:
                break
        # What was folded inside a nested graph is an initializer there: one place for all of them is simpler.
        modified |= common.LiftSubgraphInitializersToMainGraphPass()(model).modified
        return model, modified or ctx.rules.modified
