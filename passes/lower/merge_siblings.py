"""Linears that read the same value become one wide linear and a Split: query, key and value, or gate and up.

The weights are joined by a Concat of constants, which nobody computes here: the emitter joins them when it writes them
out, whether they are plain, lazy or unpacked from a quantized form. All parts but the last are whole panels, so that
the native kernel writes each to a place of its own. A linear whose result goes into an activation or an addition alone
stays: its kernel does that on the way out. Weights that the native kernels read in few bits stay apart too, for joined
they would be dense; the plan makes one call of them (native/lower_fuse.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

import onnx_ir as ir

from edgec.compress.formats import GROUPS, MOST_VECTOR, PANEL
from edgec.ir.model import (
    Builder,
    add_initializer,
    const_tensor,
    describe,
    float_attr,
    graphs,
    input_of,
    int_attr,
    ints_attr,
    is_op,
    op_of,
    producer,
    remove_unused,
    replace_value,
    required,
    static_shape,
)
from edgec.ir.passes import Context, Pass

_RULE = "MergeSiblings"
MOST = 4  # outputs of the kernel linear_split (docs/kernels.md)
# What a linear's kernel does on the way out, besides additions.
ACTIVATIONS = (
    "Relu", "Clip", "Sigmoid", "Swish", "Tanh", "Gelu", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Softplus",
    "Mish",
)
# How importers spell a weight that is stored smaller than it is used.
_UNPACKING = ("DequantizeLinear", "BitPlaneToDense", "PaletteToDense", "Add", "Sub", "Mul", "Cast", "Gather", "Reshape")


@dataclass(frozen=True)
class _Linear:
    """node: MatMul or Gemm over weight [N, K]; value: what it and the addition of its bias make."""

    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    value: ir.Value

    @property
    def rows(self) -> int:
        shape = static_shape(self.weight)
        return 0 if shape is None else shape[0]

    @property
    def kind(self) -> tuple[object, ...]:
        """What siblings must have in common."""
        return self.node.op_type, self.weight.dtype, None if self.bias is None else self.bias.dtype


class MergeSiblings(Pass):
    """Needs the form of NormalizeLinear; runs after the compression passes, which see each weight by itself."""

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        import onnx_ir.passes.common as common

        for graph in graphs(model):
            groups = [group for siblings in _siblings(graph) for group in _groups(siblings, ctx)]
            for group in groups:
                _merge(group)
                ctx.rules.add(_RULE, describe(group[0].node))
            if groups:
                graph.sort()  # what unpacks the weights of later members stood behind the first one
        if ctx.rules.modified:
            remove_unused(model)
            common.NameFixPass()(model)
        return model, ctx.rules.modified


def _siblings(graph: ir.Graph) -> list[list[_Linear]]:
    """The linears of each value that more than one reads, in graph order."""
    by_input: dict[ir.Value, list[_Linear]] = {}
    for node in graph:
        linear = _linear(node)
        if linear is not None:
            by_input.setdefault(required(node, 0), []).append(linear)
    return [linears for linears in by_input.values() if len(linears) > 1]


def _linear(node: ir.Node) -> _Linear | None:
    bias, value = None, node.outputs[0] if node.outputs else None
    if value is None or not is_op(node, "MatMul", "Gemm"):
        return None
    weight = node.inputs[1]
    if node.op_type == "Gemm":
        factors = float_attr(node, "alpha", 1.0), float_attr(node, "beta", 1.0)
        if int_attr(node, "transB", 0) != 1 or int_attr(node, "transA", 0) or factors != (1.0, 1.0):
            return None
        bias = input_of(node, 2)
    else:
        turned = producer(weight, "Transpose")
        if turned is None or ints_attr(turned, "perm") not in (None, (1, 0)):
            return None
        weight = turned.inputs[0]
        add = _only_reader(value)
        if add is not None and is_op(add, "Add"):
            other = add.inputs[1] if add.inputs[0] is value else add.inputs[0]
            if const_tensor(other) is not None:
                bias, value = other, add.outputs[0]
    shape = static_shape(weight)
    if weight is None or shape is None or len(shape) != 2 or not _is_constant(weight):
        return None
    return _Linear(node, weight, bias, value)


def _is_constant(value: ir.Value) -> bool:
    """An initializer, or what unpacks from initializers alone."""
    if const_tensor(value) is not None:
        return True
    node = value.producer()
    unpacks = node is not None and node.op_type in _UNPACKING
    return node is not None and unpacks and all(_is_constant(v) for v in node.inputs if v is not None)


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _groups(siblings: list[_Linear], ctx: Context) -> Iterator[list[_Linear]]:
    """The sets that are merged, a part that ends inside a panel last; notes why the others stay."""
    by_kind: dict[tuple[object, ...], list[_Linear]] = {}
    for linear in siblings:
        reason = _problem(linear)
        if reason is None:
            by_kind.setdefault(linear.kind, []).append(linear)
        else:
            ctx.rules.add(_RULE, describe(linear.node), reason)
    for kin in by_kind.values():
        whole = [s for s in kin if s.rows % PANEL == 0]
        ragged = [s for s in kin if s.rows % PANEL != 0]
        ordered = [*whole, *ragged[:1]]
        for linear in ragged[1:]:
            reason = f"its {linear.rows} rows end inside a panel of {PANEL}, and those of a sibling do, too"
            ctx.rules.add(_RULE, describe(linear.node), reason)
        for chunk in (ordered[i : i + MOST] for i in range(0, len(ordered), MOST)):
            if len(chunk) > 1:
                yield chunk
            else:
                reason = "no sibling is left that has its operator, weight type and type of bias"
                ctx.rules.add(_RULE, describe(chunk[0].node), reason)


def _problem(linear: _Linear) -> str | None:
    """Why a linear is to stay by itself."""
    if _few_bits(linear):
        return "its weight is stored in few bits: the plan joins such calls, not their weights"
    if any(len(v.uses()) > 1 or v.is_graph_output() for v in (linear.weight, required(linear.node, 1))):
        return "its weight is shared"
    bias = linear.bias
    if bias is not None and (const_tensor(bias) is None or static_shape(bias) != (linear.rows,)):
        return f"its bias is no constant vector of {linear.rows}"
    if not linear.value.uses() and not linear.value.is_graph_output():
        return "nobody reads it"
    reader = _only_reader(linear.value)
    if reader is None or op_of(reader)[0] != "":
        return None
    if reader.op_type == "Add":
        return "its kernel adds on the way out"
    # A gate's activation joins the product that follows it.
    if reader.op_type in ACTIVATIONS and not is_op(_only_reader(reader.outputs[0]), "Mul"):
        return f"its kernel does {reader.op_type} on the way out"
    return None


def _few_bits(linear: _Linear) -> bool:
    """Whether a native kernel may read the weight as it is stored: bit planes, palettes of vectors that it knows, or
    blocks of whole words of columns."""
    node = linear.weight.producer()
    if node is not None and node.op_type == "PaletteToDense":
        return int_attr(node, "vector", 1) <= MOST_VECTOR
    if node is None or node.op_type != "DequantizeLinear":
        return node is not None and node.op_type == "BitPlaneToDense"
    block, shape = int_attr(node, "block_size", 0), static_shape(linear.weight)
    return block > 0 and (block % min(GROUPS) == 0 or shape is None or block >= shape[1])


def _merge(group: list[_Linear]) -> None:
    first = group[0]
    op = Builder(_earliest(group))
    weight = op.Concat(*(s.weight for s in group), axis=0)
    biases = [s.bias for s in group if s.bias is not None]
    bias = op.Concat(*biases, axis=0) if biases else None
    x = required(first.node, 0)
    if first.node.op_type == "Gemm":
        wide = op.Gemm(x, weight, bias, transB=1)
    else:
        wide = op.MatMul(x, op.Transpose(weight, perm=(1, 0)))
        wide = wide if bias is None else op.Add(wide, bias)
    parts = op.Split.many(len(group), wide, op.ints(s.rows for s in group), axis=-1)
    _name_layer(op, group)
    graph = op.anchor.graph
    assert isinstance(graph, ir.Graph)
    for value in op.initializers:
        add_initializer(graph, value)
    graph.insert_before(op.anchor, op.nodes)
    for linear, part in zip(group, parts, strict=True):
        replace_value(linear.value, part)


def _earliest(group: list[_Linear]) -> ir.Node:
    """The member that comes first in the graph; groups are ordered by width."""
    members = {s.node for s in group}
    return next(node for node in group[0].node.graph or () if node in members)


def _name_layer(op: Builder, group: list[_Linear]) -> None:
    """Profiles show the innermost module that all members are in."""
    paths = [s.node.metadata_props.get("namespace", "") for s in group]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*paths, strict=False))
    common = "".join(letters[0] for letters in alike)
    if any(path != common for path in paths):  # importers separate modules by dots, by slashes, or by both
        common = common[: max(common.rfind("."), common.rfind("/"), 0)]
    for node in op.nodes:
        node.metadata_props["namespace"] = common
