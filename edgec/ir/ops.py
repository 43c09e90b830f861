"""THE table of `edgec::` operators.

One row per operator: signature, body in standard ONNX, shape inference, cost. The body is what the operator means:
every other implementation is judged against it, and a backend without the operator inlines it. No body, no operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.attention_bodies import CACHED_ATTENTION, KV_FORMATS
from edgec.ir.dense_bodies import BIT_PLANE_TO_DENSE, PALETTE_TO_DENSE
from edgec.ir.mixer_bodies import CAUSAL_CONV, DYNAMIC_DEPTHWISE, SELECTIVE_SCAN
from edgec.ir.model import describe, dims_of, float_attr, graphs, int_attr, str_attr, walk

DOMAIN = "edgec"
OPSET = 24
_VERSION = 1

Default = int | float | str | None
Dim = int | str | None
Inferred = tuple[tuple[ir.DataType | None, tuple[Dim, ...] | None], ...]


@dataclass(frozen=True)
class Cost:
    """Work of one execution: multiply-adds counted as two, bytes read and written once each at f32."""

    flops: int
    bytes: int


@dataclass(frozen=True)
class Op:
    """A row. attributes: name -> default, None when the node must carry it (then the type is in `types`). choices: the
    values that an attribute may have, where not all of its type.

    body: ONNX function text. infer(node): (dtype, dims) per output, None where unknown. cost(node, symbols): raises
    EdgecError (EDGEC-E0302) when a dim is neither a number nor in `symbols`.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Default]
    types: Mapping[str, type]
    body: str
    infer: Callable[[ir.Node], Inferred]
    cost: Callable[[ir.Node, Mapping[str, int]], Cost]
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = [k for k, v in self.attributes.items() if v is not None and type(v) is not self.types.get(k)]
        if wrong or set(self.types) != set(self.attributes):
            raise ValueError(f"{self.name}: attributes and types disagree: {wrong or sorted(self.types)}")

    def function(self) -> ir.Function:
        """A fresh copy of the body as a model-local function with the declared attributes."""
        return _parsed(self.name).clone()

    def problems(self, node: ir.Node) -> list[str]:
        """What is wrong with a use of this operator; empty when nothing is."""
        found = []
        if len(node.inputs) != len(self.inputs) or any(v is None for v in node.inputs):
            found.append(f"has inputs {len(node.inputs)}, wants {', '.join(self.inputs)}")
        if len(node.outputs) != len(self.outputs):
            found.append(f"has {len(node.outputs)} outputs, wants {', '.join(self.outputs)}")
        found += [f"unknown attribute {k!r}" for k in node.attributes if k not in self.attributes]
        found += [f"attribute {k!r} is missing" for k, v in self.attributes.items()
                  if v is None and k not in node.attributes]
        found += [f"attribute {k} = {value!r}, wants one of {', '.join(known)}" for k, known in self.choices.items()
                  if (value := str_attr(node, k, known[0])) not in known]
        return found


def _infer_cached_attention(node: ir.Node) -> Inferred:
    q, key_cache, value_cache = node.inputs[0], node.inputs[3], node.inputs[4]
    keys, values = dims_of(key_cache), dims_of(value_cache)
    dtype = None if q is None else q.dtype
    y = None
    q_dims = dims_of(q)
    if q_dims is not None and values is not None and isinstance(values[3], int):
        y = (q_dims[0], q_dims[1], int_attr(node, "q_num_heads", 0) * values[3])
    return ((dtype, y), (None if key_cache is None else key_cache.dtype, keys),
            (None if value_cache is None else value_cache.dtype, values))


def _number(node: ir.Node, dim: Dim, symbols: Mapping[str, int]) -> int:
    found = dim if isinstance(dim, int) else symbols.get(dim or "")
    if found is None:
        raise EdgecError("E0302", stage="cost", where=describe(node), found=f"dim {dim or '?'}",
                         wanted="a number or one of: " + ", ".join(sorted(symbols)))
    return found


def _cost_cached_attention(node: ir.Node, symbols: Mapping[str, int]) -> Cost:
    q, keys, values = dims_of(node.inputs[0]), dims_of(node.inputs[3]), dims_of(node.inputs[4])
    if q is None or keys is None or values is None:
        raise EdgecError("E0302", stage="cost", where=describe(node), found="an input of unknown rank")
    tokens = _number(node, q[1], symbols)
    hkv, context, d, dv = (_number(node, dim, symbols) for dim in (*keys[1:], values[3]))
    hq = int_attr(node, "q_num_heads", 0)
    cache = hkv * context * (d + dv)
    fresh = tokens * (hq * (d + dv) + hkv * (d + dv))
    return Cost(2 * hq * tokens * context * (d + dv), 4 * (cache + fresh))


def _infer_dense(node: ir.Node) -> Inferred:
    planes = dims_of(node.inputs[0])
    rows = planes[1] if planes is not None and len(planes) == 3 else None
    return ((ir.DataType.FLOAT, (rows, int_attr(node, "columns", 0))),)


def _cost_dense(node: ir.Node, symbols: Mapping[str, int]) -> Cost:
    """Every bit is looked at once; the compressed tensors are read and the dense one is written."""
    read = 0.0
    for value in node.inputs:
        dims = dims_of(value)
        if dims is None or value is None or value.dtype is None:
            raise EdgecError("E0302", stage="cost", where=describe(node), found="an input of unknown type or rank")
        read += math.prod(_number(node, d, symbols) for d in dims) * value.dtype.itemsize
    rows = _number(node, (dims_of(node.inputs[0]) or (None, None))[1], symbols)
    weights = rows * int_attr(node, "columns", 0)
    return Cost(int(weights * int_attr(node, "bits", 0)), int(read + 4 * weights))


def _as_inputs(*like: int) -> Callable[[ir.Node], Inferred]:
    """Output i has the type and dims of input like[i]."""
    def infer(node: ir.Node) -> Inferred:
        return tuple((None if v is None else v.dtype, dims_of(v)) for v in (node.inputs[i] for i in like))
    return infer


def _sizes(node: ir.Node, symbols: Mapping[str, int], *like: int) -> tuple[list[list[int]], int]:
    """(dims of the inputs, bytes of all inputs and of outputs that are as large as the inputs `like`)."""
    sizes = []
    for value in node.inputs:
        dims = dims_of(value)
        if dims is None:
            raise EdgecError("E0302", stage="cost", where=describe(node), found="an input of unknown rank")
        sizes.append([_number(node, d, symbols) for d in dims])
    return sizes, 4 * sum(map(math.prod, [*sizes, *(sizes[i] for i in like)]))


def _cost_scan(node: ir.Node, symbols: Mapping[str, int]) -> Cost:
    """Per token, channel and state: rate, exponential, decay, write (2) and read (2); per token and channel 4 more."""
    sizes, moved = _sizes(node, symbols, 0, 6)
    return Cost(math.prod(sizes[0]) * (7 * sizes[2][1] + 4), moved)


def _cost_causal_conv(node: ir.Node, symbols: Mapping[str, int]) -> Cost:
    sizes, moved = _sizes(node, symbols, 0, 3)
    return Cost(2 * math.prod(sizes[0]) * sizes[1][1], moved)


def _cost_dynamic_depthwise(node: ir.Node, symbols: Mapping[str, int]) -> Cost:
    sizes, moved = _sizes(node, symbols, 0)
    return Cost(2 * math.prod(sizes[0]) * sizes[1][2], moved)


OPS: Mapping[str, Op] = MappingProxyType({op.name: op for op in (
    Op(
        name="CachedAttention",
        inputs=("q", "k", "v", "key_cache", "value_cache", "past_len"),
        outputs=("y", "key_cache_out", "value_cache_out"),
        attributes={"q_num_heads": None, "kv_num_heads": None, "scale": 1.0, "softcap": 0.0, "window": 0,
                    "kv_format": "f32"},
        types={"q_num_heads": int, "kv_num_heads": int, "scale": float, "softcap": float, "window": int,
               "kv_format": str},
        body=CACHED_ATTENTION,
        infer=_infer_cached_attention,
        cost=_cost_cached_attention,
        choices={"kv_format": KV_FORMATS},
    ),
    # planes u8 [bits, N, ceil(columns / 8)]; scale f16 [bits, N, G] (uniform: [1, N, G]), offset f16 [N, G],
    # G = ceil(columns / group_size): the arrays of edgec/compress/formats_bits.py. Result FLOAT [N, columns].
    Op(
        name="BitPlaneToDense",
        inputs=("planes", "scale", "offset"),
        outputs=("dense",),
        attributes={"bits": None, "group_size": None, "columns": None, "uniform": 0},
        types={"bits": int, "group_size": int, "columns": int, "uniform": int},
        body=BIT_PLANE_TO_DENSE,
        infer=_infer_dense,
        cost=_cost_dense,
    ),
    # planes u8 [bits, N, ceil(M / 8)], M = ceil(columns / vector); lut f16 or f32 [tables, 2^bits] or, for vectors,
    # [tables, 2^bits, vector]: edgec/compress/formats_palette.py. Result FLOAT [N, columns].
    Op(
        name="PaletteToDense",
        inputs=("planes", "lut"),
        outputs=("dense",),
        attributes={"bits": None, "columns": None, "rows_per_table": 0, "vector": 1},
        types={"bits": int, "columns": int, "rows_per_table": int, "vector": int},
        body=PALETTE_TO_DENSE,
        infer=_infer_dense,
        cost=_cost_dense,
    ),
    # x, delta [B, L, D], A [D, N], B, C [B, L, N], D [D], state [B, D, N], all FLOAT -> y [B, L, D], last_state as
    # state. softplus: delta is the argument of softplus. N is the number of states of a channel.
    Op(
        name="SelectiveScan",
        inputs=("x", "delta", "A", "B", "C", "D", "state"),
        outputs=("y", "last_state"),
        attributes={"softplus": 0},
        types={"softplus": int},
        body=SELECTIVE_SCAN,
        infer=_as_inputs(0, 6),
        cost=_cost_scan,
    ),
    # x [B, L, C], weight [C, K], bias [C], tail [B, K - 1, C], all FLOAT -> y as x, last_tail as tail:
    # y[t] = bias + sum over k of weight[k] rows[t + k], rows being tail and then x. silu: y = y sigmoid(y).
    Op(
        name="CausalConv1d",
        inputs=("x", "weight", "bias", "tail"),
        outputs=("y", "last_tail"),
        attributes={"silu": 0},
        types={"silu": int},
        body=CAUSAL_CONV,
        infer=_as_inputs(0, 3),
        cost=_cost_causal_conv,
    ),
    # x [B, C, H, W], w [B, G, k k, H, W], both FLOAT, C a multiple of G, k = kernel_size odd -> y as x:
    # y[c, h, w] = sum over i, j of x[c, h + i - k / 2, w + j - k / 2] w[c mod G, k i + j, h, w], zeros outside x.
    Op(
        name="DynamicDepthwise",
        inputs=("x", "w"),
        outputs=("y",),
        attributes={"kernel_size": None},
        types={"kernel_size": int},
        body=DYNAMIC_DEPTHWISE,
        infer=_as_inputs(0),
        cost=_cost_dynamic_depthwise,
    ),
)})


@cache
def _parsed(name: str) -> ir.Function:
    import onnx.parser

    proto = onnx.parser.parse_function(OPS[name].body)
    return ir.serde.deserialize_function(proto)


# Of the same domain, but in no stage before the last: what our kernels bring to onnxruntime and TVM. Such a node reads
# bytes in the kernels' own layout, which no standard body could, and only a target with these capabilities gets one.
LIBRARY = frozenset({"LinearBits", "GatherBits"})


def row_of(node: ir.Node) -> Op | None:
    """The table row of an `edgec::` node, None for other domains and for operators of LIBRARY.

    Raises EdgecError (EDGEC-E0301) when the domain is `edgec` and the table has no such operator.
    """
    if node.domain != DOMAIN or node.op_type in LIBRARY:
        return None
    row = OPS.get(node.op_type)
    if row is None:
        raise EdgecError("E0301", stage="operators", where=describe(node), found=f"edgec::{node.op_type}",
                         wanted="one of: " + ", ".join(sorted(OPS)))
    return row


def attribute(node: ir.Node, name: str) -> int | float | str:
    """An attribute of an `edgec::` node, its default when left out.

    Raises EdgecError (EDGEC-E0301) when the attribute has no default and is missing, or is not declared.
    """
    row = row_of(node)
    kind = None if row is None else row.types.get(name)
    if row is None or kind is None or (name not in node.attributes and row.attributes[name] is None):
        raise EdgecError("E0301", stage="operators", where=describe(node), found=f"no attribute {name!r}")
    default = row.attributes[name]
    if kind is int:
        return int_attr(node, name, default if isinstance(default, int) else 0)
    if kind is float:
        return float_attr(node, name, default if isinstance(default, float) else 0.0)
    return str_attr(node, name, str(default))


def attach_bodies(model: ir.Model) -> ir.Model:
    """Adds the body of every `edgec::` operator the model uses, so that other tools can run it; returns the model.

    Defaults are written out on the nodes: the reference evaluator does not apply those of a function.
    """
    for node in walk(model):
        row = row_of(node)
        if row is None:
            continue
        for name, default in row.attributes.items():
            if default is not None and name not in node.attributes:
                node.attributes.add(ir.convenience.convert_attribute(name, default))
        key = (DOMAIN, row.name, "")
        if key not in model.functions:
            model.functions[key] = row.function()
    if any(key[0] == DOMAIN for key in model.functions):
        model.graph.opset_imports[DOMAIN] = _VERSION
    return model


def strip_bodies(model: ir.Model) -> ir.Model:
    """Removes the bodies again: between passes the table is the only place that holds them."""
    for key in [key for key in model.functions if key[0] == DOMAIN]:
        del model.functions[key]
    return model


def infer_ops(model: ir.Model) -> bool:
    """Sets dtype and shape of the outputs of `edgec::` nodes from their inputs; True when something became known."""
    changed = False
    for graph in graphs(model):
        for node in graph:
            row = row_of(node)
            if row is None:
                continue
            for value, (dtype, dims) in zip(node.outputs, row.infer(node), strict=True):
                if value.type is None and dtype is not None:
                    value.type, changed = ir.TensorType(dtype), True
                if value.shape is None and dims is not None:
                    value.shape, changed = ir.Shape(dims), True
    return changed
