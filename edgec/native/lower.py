"""From a lowered graph to a Plan: the operator table, the entries, and the search for what cannot be lowered.

`SUPPORTED` is the native backend's capability set: what is not in it must be decomposed by a pass before, or the
compile ends with EDGEC-E0301 and the list of all such nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from edgec.compress.formats import Dtype
from edgec.compress.low_bit import check_dense
from edgec.errors import EdgecError
from edgec.ir.info import ModelInfo, info_of
from edgec.ir.model import describe, float_attr, int_attr, ints_attr, op_of, str_attr
from edgec.native import lower_math as maths
from edgec.native import lower_mixers as mixers
from edgec.native import lower_nn as nn
from edgec.native import lower_q8 as q8
from edgec.native import lower_resize as resizing
from edgec.native import lower_rnn as recurrent
from edgec.native import lower_select as select
from edgec.native import lower_shape as shapes
from edgec.native import lower_whole as whole
from edgec.native.dims import Dim, dim, product, symbol
from edgec.native.kv import KV_DTYPES, KvFormat, kv_row
from edgec.native.lower_place import bind_output, finish
from edgec.native.lower_values import (
    DTYPES,
    FLOATS,
    HALVES,
    Buf,
    Dims,
    Lowering,
    Storage,
    UnsupportedError,
    Value,
    Weights,
    const_from,
    identity,
    of_const,
    of_data,
    safe_name,
)
from edgec.native.lower_weights import fold_unpacked, lower_dense
from edgec.native.plan import TABLES, Entry, Plan, Port, Space, State

_STAGE = "plan"
_CACHED = ("edgec", "CachedAttention")


@dataclass(frozen=True)
class Row:
    """lower: drafts the calls of one node. check: the reason why its attributes cannot be lowered, or None."""

    lower: Callable[[Lowering, ir.Node], Value | list[Value]]
    check: Callable[[ir.Node], str | None] | None = None


_UNARY = Row(maths.lower_unary, maths.check_unary)
_BINARY = Row(maths.lower_binary, maths.check_binary)
_RECURRENT = Row(recurrent.lower_rnn, recurrent.check_rnn)
_WINDOW = Row(nn.lower_pool, nn.check_window)
_GROUPS = Row(mixers.lower_group_norm)
_STANDARD: dict[str, Row] = {
    **dict.fromkeys((*maths.ACT, *maths.UNARY), _UNARY),
    **dict.fromkeys(maths.BINARY, _BINARY),
    **{name: Row(whole.lower_reduce) for name in maths.REDUCE},
    **{name: Row(whole.lower_bitwise) for name in whole.BITWISE},
    "ArgMax": Row(maths.lower_arg, maths.check_arg),
    "ArgMin": Row(maths.lower_arg, maths.check_arg),
    "Attention": Row(nn.lower_attention, nn.check_attention),
    "AveragePool": _WINDOW,
    "Clip": Row(whole.lower_clip),
    "Cast": Row(maths.lower_cast, maths.check_cast),
    "Concat": Row(shapes.lower_concat),
    "Constant": Row(shapes.lower_constant),
    "ConstantOfShape": Row(shapes.lower_constant_of_shape),
    "Conv": Row(nn.lower_conv, nn.check_window),
    "DequantizeLinear": Row(q8.lower_dequantize, q8.check_dequantize),
    "Dropout": Row(shapes.lower_identity, shapes.check_dropout),
    "Expand": Row(shapes.lower_expand),
    "Flatten": Row(shapes.lower_flatten),
    "GRU": _RECURRENT,
    "Gather": Row(shapes.lower_gather),
    "Gemm": Row(nn.lower_gemm),
    "GlobalAveragePool": Row(maths.lower_global_pool),
    "GlobalMaxPool": Row(maths.lower_global_pool),
    "GroupNormalization": _GROUPS,
    "Identity": Row(shapes.lower_identity),
    "InstanceNormalization": _GROUPS,
    "LSTM": _RECURRENT,
    "LayerNormalization": Row(maths.lower_norm, maths.check_norm),
    "LogSoftmax": Row(maths.lower_softmax),
    "MatMul": Row(nn.lower_matmul),
    "MaxPool": _WINDOW,
    "Pad": Row(whole.lower_pad, whole.check_pad),
    "QuantizeLinear": Row(q8.lower_quantize, q8.check_quantize),
    "RNN": _RECURRENT,
    "RMSNormalization": Row(maths.lower_norm, maths.check_norm),
    "Range": Row(shapes.lower_range),
    "Reshape": Row(shapes.lower_reshape),
    "Resize": Row(resizing.lower_resize, resizing.check_resize),
    "RotaryEmbedding": Row(nn.lower_rotary),
    "ScatterElements": Row(select.lower_scatter_elements, select.check_scatter),
    "ScatterND": Row(select.lower_scatter_nd, select.check_scatter),
    "Shape": Row(shapes.lower_shape),
    "Size": Row(shapes.lower_size),
    "Slice": Row(shapes.lower_slice),
    "Softmax": Row(maths.lower_softmax),
    "Split": Row(shapes.lower_split),
    "Squeeze": Row(shapes.lower_squeeze),
    "Tile": Row(shapes.lower_tile),
    "TopK": Row(select.lower_top_k),
    "Transpose": Row(shapes.lower_transpose),
    "Unsqueeze": Row(shapes.lower_unsqueeze),
    "Where": Row(maths.lower_where),
}
SUPPORTED: Mapping[tuple[str, str], Row] = {
    **{("", name): row for name, row in _STANDARD.items()}, _CACHED: Row(nn.lower_cached, nn.check_cached),
    **dict.fromkeys((("edgec", "BitPlaneToDense"), ("edgec", "PaletteToDense")), Row(lower_dense, check_dense)),
    ("edgec", "SelectiveScan"): Row(mixers.lower_selective_scan),
    ("edgec", "CausalConv1d"): Row(mixers.lower_causal_conv),
    ("edgec", "DynamicDepthwise"): Row(mixers.lower_dynamic_depthwise),
}


def capabilities() -> frozenset[tuple[str, str]]:
    """(domain, op_type) of every operator with a row; the standard domain is ''."""
    return frozenset(SUPPORTED)


def unsupported(node: ir.Node) -> str | None:
    """Why `node` cannot be lowered, as far as operator and attributes tell; None when they do not say no."""
    row = SUPPORTED.get(op_of(node))
    if row is None:
        return "the native backend has no kernel or decomposition for this operator"
    return None if row.check is None else row.check(node)


def layer_of(node: ir.Node) -> str:
    """The module path that the importer recorded, else the node's name: `model.layers.0.mlp.up_proj`."""
    path = ""
    for segment in node.metadata_props.get("namespace", "").split("/"):
        name, _, kind = segment.partition(":")
        name = name.strip()
        # torch names the traced function last and repeats the full path in each segment; mobius does neither.
        if name and not kind.strip().startswith("aten."):
            path = name if not path or name.startswith(f"{path}.") else f"{path}.{name}"
    return safe_name(path or node.name or node.op_type)


def build_plan(
    model: ir.Model, *, weights: Storage = "auto", kv: KvFormat | None = None,
    max_context: int | None = None, prefill_chunk: int = 256, low_bit: bool = True,
    arithmetic: Literal["exact", "fast"] = "exact",
) -> Plan:
    """The plan of a graph in the lowered(native) stage (docs/ir.md); the graph is not changed.

    weights: storage of linear, convolution and embedding weights; "auto" keeps the smallest lossless type per tensor.
    low_bit: keep weights of few bits as they are where a kernel reads them; False: every weight dense.
    arithmetic: fast lets products with such weights be computed in 8 bits.
    kv: storage of the cache; None: what each edgec::CachedAttention says. max_context: tokens, None: the model's.
    Raises EdgecError: E0301 with every node that cannot be lowered, E0302 for shapes that cannot be planned, E0002 for
    settings the model cannot have.
    """
    info = info_of(model)
    store = Weights(weights, low_bit)
    if info.task != "causal-lm" and max_context is not None:
        raise EdgecError("E0002", stage=_STAGE, where="max_context", found=str(max_context),
                         wanted="a language model", hint="leave the context out: this model has none")
    try:
        if info.task == "causal-lm":
            plan = _language_model(model.graph, info, store, kv, max_context, prefill_chunk)
        else:
            plan = _generic(model.graph, info, store)
    except EdgecError as e:
        # A size that is not known may be the fault of an operator that is: that one is said first.
        problems = [(node, reason) for node in model.graph if (reason := unsupported(node)) is not None]
        if isinstance(e, UnsupportedNodesError) or not problems:
            raise
        raise UnsupportedNodesError(problems) from e
    return _fast(plan) if arithmetic == "fast" else plan


def _fast(plan: Plan) -> Plan:
    entries = (replace(e, calls=tuple(replace(c, ints=(*c.ints, 1)) if c.kernel in TABLES else c for c in e.calls))
               for e in plan.entries)
    return replace(plan, entries=tuple(entries))


class UnsupportedNodesError(EdgecError):
    """E0301 for `nodes`: (node, reason) in graph order."""

    def __init__(self, nodes: list[tuple[ir.Node, str]]) -> None:
        self.nodes = tuple(nodes)
        lines = [f"{describe(node)}: {reason}" for node, reason in nodes]
        super().__init__(
            "E0301", stage=_STAGE, where=f"{len(lines)} node{'s' if len(lines) > 1 else ''}",
            found="\n    ".join(["", *lines]), wanted="operators that the native backend has kernels for",
            hint="`edgec check` groups them by cause; replace them in the model's code or use another target",
        )


def unsupported_nodes(model: ir.Model) -> tuple[tuple[ir.Node, str], ...]:
    """Every node of a lowered graph that `build_plan` would refuse, with the reason; empty when it plans.

    Goes further than `unsupported`: types and shapes are followed through the graph as far as its operators are known.
    Raises EdgecError for what is not about one node, as `build_plan` does.
    """
    try:
        build_plan(model, weights="f32", low_bit=False)  # choosing how to store a weight would read it
    except UnsupportedNodesError as e:
        return e.nodes
    return ()


def _lower_nodes(ctx: Lowering, graph: ir.Graph) -> None:
    """Drafts every node; raises E0301 for all that fail, not only the first."""
    problems: list[tuple[ir.Node, str]] = []
    for name, initializer in graph.initializers.items():
        tensor = initializer.const_value
        # Other types have no values of their own here: only DequantizeLinear reads them.
        if tensor is not None and initializer not in ctx.values and tensor.dtype in (*FLOATS, *DTYPES):
            ctx.values[initializer] = of_const(const_from(name, tensor))
    lost: set[ir.Value] = set()
    coded = q8.groups(graph)
    inside = {node for group in coded.values() for node in group.nodes}

    def one(node: ir.Node) -> Value:
        results = SUPPORTED[op_of(node)].lower(ctx, node)
        return results[0] if isinstance(results, list) else results

    def draft(node: ir.Node) -> None:
        reason = unsupported(node)
        if reason is not None:
            problems.append((node, reason))
        if reason is not None or any(v in lost for v in node.inputs if v is not None):
            lost.update(node.outputs)
            return
        ctx.layer = layer_of(node)
        try:
            results = fold_unpacked(ctx, node) or SUPPORTED[op_of(node)].lower(ctx, node)
        except UnsupportedError as e:
            problems.append((node, str(e)))
            lost.update(node.outputs)
            return
        for output, value in zip(node.outputs, results if isinstance(results, list) else [results], strict=False):
            ctx.values[output] = value

    for node in graph:
        group = coded.get(node)
        if node in inside:
            continue
        if group is not None and not any(s.value in lost for s in group.sources):
            ctx.layer = layer_of(group.core or node)
            try:
                ctx.values[node.outputs[0]] = group.lower(ctx, one)
                continue
            except UnsupportedError:  # not in integers: one by one, in float32
                pass
        for part in (*reversed(group.nodes if group is not None else ()), node):
            draft(part)
    if problems:
        raise UnsupportedNodesError(problems)


def _tied(graph: ir.Graph) -> frozenset[str]:
    """Initializers [N, K] that a linear reads as its weight: a Gather of the same one uses those panels."""
    found = set()
    for name, value in graph.initializers.items():
        for use in value.uses():
            node = use.node
            if op_of(node) == ("", "Gemm") and use.idx == 1 and int_attr(node, "transB", 0):
                if float_attr(node, "alpha", 1.0) == 1.0:
                    found.add(name)
            elif op_of(node) == ("", "Transpose") and (ints_attr(node, "perm") or (1, 0)) == (1, 0) and any(
                op_of(u.node) == ("", "MatMul") and u.idx == 1 for u in node.outputs[0].uses()
            ):
                found.add(name)
    return frozenset(found)


# -- generic models --------------------------------------------------------------------------------------------------


def _input_dims(value: ir.Value, info: ModelInfo) -> Dims:
    if value.shape is None:
        raise EdgecError("E0302", stage=_STAGE, where=f"input {value.name!r}", found="no shape", wanted="a known rank",
                         hint="give example inputs, or --dynamic for the sizes that vary")
    dims: list[Dim] = []
    for axis, d in enumerate(value.shape):
        if isinstance(d, int):
            dims.append(dim(d))
            continue
        name = d.value
        if name is None or name not in info.dynamic:
            raise EdgecError(
                "E0302", stage=_STAGE, where=f"input {value.name!r}, axis {axis}", found=f"size {name or 'unknown'}",
                wanted="a number, or a name with a declared range", hint=f"--dynamic {name or 'NAME'}=MIN:MAX",
            )
        dims.append(symbol(name, *info.dynamic[name]))
    return tuple(dims)


def _generic(graph: ir.Graph, info: ModelInfo, store: Weights) -> Plan:
    ctx = Lowering(store, max_context=0, tied=_tied(graph))
    inputs: list[Port] = []
    for value in graph.inputs:
        dims = _input_dims(value, info)
        kinds = {**DTYPES, **HALVES}
        if value.dtype is None or value.dtype not in kinds:
            raise EdgecError("E0302", stage=_STAGE, where=f"input {value.name!r}", found=f"type {value.dtype}",
                             wanted=", ".join(sorted(t.name for t in kinds)), hint="convert the model to float32")
        port = Port(safe_name(value.name or f"input_{len(inputs)}"), kinds[value.dtype], dims)
        size = product(dims) * port.dtype.size
        from_caller = Value(dims, port.dtype, identity(len(dims)), buf=Buf(Space.INPUT, size, len(inputs)))
        ctx.layer = f"input.{value.name}"
        ctx.values[value] = ctx.cast(from_caller, Dtype.F32) if value.dtype in HALVES else from_caller
        inputs.append(port)
    _lower_nodes(ctx, graph)
    outputs = []
    for i, value in enumerate(graph.outputs):
        ctx.layer = f"output.{value.name}"
        try:
            result = ctx.values[value]
            result = ctx.cast(result, HALVES[value.dtype]) if value.dtype in HALVES else result
            bind_output(ctx, result, i)
        except UnsupportedError as e:
            raise EdgecError("E0302", stage=_STAGE, where=f"output {value.name!r}", found=str(e),
                             wanted="a tensor that the runtime can write") from e
        outputs.append(Port(safe_name(value.name or f"output_{i}"), result.dtype, result.dims))
    entry = finish("main", tuple(inputs), tuple(outputs), ctx.drafts)
    return Plan(0, 0, 0, 0, tuple(store.items), (), (entry,))


# -- language models -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LanguageModel:
    """The parts of a graph in the form of docs/ir.md."""

    tokens: ir.Value
    past: ir.Value
    caches: tuple[ir.Value, ...]
    logits: ir.Value


def _parts(graph: ir.Graph) -> _LanguageModel:
    by_name = {v.name: v for v in graph.inputs}
    outputs = {v.name: v for v in graph.outputs}
    missing = [n for n in ("input_ids", "past_len") if n not in by_name] + ([] if "logits" in outputs else ["logits"])
    caches = tuple(v for v in graph.inputs if v.name not in ("input_ids", "past_len"))
    for cache in caches:
        uses = list(cache.uses())
        if any(op_of(u.node) != _CACHED or u.idx not in (3, 4) for u in uses) or cache.is_graph_output():
            missing.append(f"{cache.name} read only as a cache of edgec::CachedAttention")
    if missing:
        raise EdgecError("E0302", stage=_STAGE, where="the language model's graph", found=f"lacks {', '.join(missing)}",
                         wanted="the form after the pass static_kv (docs/ir.md)")
    return _LanguageModel(by_name["input_ids"], by_name["past_len"], caches, outputs["logits"])


def _cache_state(cache: ir.Value, context: Dim, kv: str | None) -> State:
    """State [Hkv, context, a row of D numbers] behind the input [1, Hkv, C, D]."""
    if cache.shape is None or len(cache.shape) != 4:
        raise EdgecError("E0302", stage=_STAGE, where=f"input {cache.name!r}", found=f"shape {cache.shape}",
                         wanted="[1, heads, context, width]")
    heads, width = cache.shape[1], cache.shape[3]
    if not isinstance(heads, int) or not isinstance(width, int):
        raise EdgecError("E0302", stage=_STAGE, where=f"input {cache.name!r}", found=f"shape {cache.shape}",
                         wanted="numbers for heads and width")
    formats = {str_attr(u.node, "kv_format", "f32") for u in cache.uses()} if kv is None else {kv}
    if not formats <= set(KV_DTYPES) or len(formats) > 1:
        raise EdgecError("E0302", stage=_STAGE, where=f"input {cache.name!r}", found=f"formats {sorted(formats)}",
                         wanted="one of " + ", ".join(KV_DTYPES))
    dtype = KV_DTYPES[next(iter(formats), "f32")]
    return State(safe_name(cache.name or "cache"), dtype, (dim(heads), context, dim(kv_row(dtype, width))), 1)


def _language_model(
    graph: ir.Graph, info: ModelInfo, store: Weights, kv: str | None, max_context: int | None, prefill_chunk: int
) -> Plan:
    longest = info.max_context if max_context is None else max_context
    if not 1 <= longest <= info.max_context:
        raise EdgecError("E0002", stage=_STAGE, where="max_context", found=str(longest),
                         wanted=f"1..{info.max_context}, what the model was made for")
    if prefill_chunk < 1:
        raise EdgecError("E0002", stage=_STAGE, where="prefill_chunk", found=str(prefill_chunk), wanted="1 or more")
    chunk = min(prefill_chunk, longest)
    parts = _parts(graph)
    seq, past = symbol("seq", 1, chunk), symbol("past", 0, longest)
    context = symbol("context", 1, longest)
    states = [_cache_state(cache, context, kv) for cache in parts.caches]
    tied = _tied(graph)

    def lower(tokens: Dim, narrow: frozenset[ir.Node]) -> Lowering:
        ctx = Lowering(store, longest, past=past, tied=tied, narrow=narrow,
                       tokens=tokens if tokens.const is None else None)
        ids = Buf(Space.INPUT, tokens * 4, 0)
        ctx.values[parts.tokens] = Value((dim(1), tokens), Dtype.I32, identity(2), buf=ids)
        ctx.values[parts.past] = of_data(past)
        for i, (cache, state) in enumerate(zip(parts.caches, states, strict=True)):
            dims = (dim(1), *state.dims)
            ctx.values[cache] = Value(dims, state.dtype, identity(4), buf=Buf(Space.STATE, state.bytes, i))
        _lower_nodes(ctx, graph)
        return ctx

    def close(name: str, ctx: Lowering, tokens: Dim, rows: tuple[Dim, ...]) -> Entry:
        ctx.layer = "logits"
        bind_output(ctx, ctx.values[parts.logits], 0)
        inputs = (Port("tokens", Dtype.I32, (tokens,)),)
        return finish(name, inputs, (Port("logits", Dtype.F32, (*rows, vocab)),), ctx.drafts)

    # `score` comes first: its shapes tell which later operators work on each token by itself.
    score = lower(seq, frozenset())
    result = score.values[parts.logits]
    if result.rank != 3 or result.dims[:2] != (dim(1), seq) or result.dims[2].const is None:
        raise EdgecError("E0302", stage=_STAGE, where="output 'logits'", found=f"[{', '.join(map(str, result.dims))}]",
                         wanted="[1, seq, a number]")
    vocab = result.dims[2]
    narrow = _last_token_nodes(graph, parts.logits, score.values, seq)
    prefill, decode = lower(seq, narrow), lower(dim(1), frozenset())
    if prefill.values[parts.logits].dims[1] != 1:
        prefill.values[parts.logits] = prefill.last(prefill.values[parts.logits])
    entries = (
        close("prefill", prefill, seq, ()), close("decode", decode, dim(1), ()), close("score", score, seq, (seq,)),
    )
    return Plan(1, longest, vocab.const or 0, chunk, tuple(store.items), tuple(states), entries)


_PER_TOKEN = {
    *maths.ACT, *maths.UNARY, *maths.BINARY, "Cast", "Identity", "Dropout", "Where", "MatMul", "RMSNormalization",
    "LayerNormalization", "Split",
}


def _last_token_nodes(
    graph: ir.Graph, logits: ir.Value, values: Mapping[ir.Value, Value], seq: Dim
) -> frozenset[ir.Node]:
    """Nodes whose result is needed for the last token only: everything they feed is logits of each token by itself."""
    found: set[ir.Node] = set()
    whole = next(iter(seq.symbols))

    def by_token(value: Value) -> bool:
        if not any(whole in d.symbols for d in value.dims):
            return value.run is None
        others = [d for a, d in enumerate(value.dims) if a != 1]
        return value.rank == 3 and value.dims[1] == seq and not any(whole in d.symbols for d in others)

    for node in reversed(list(graph)):
        outputs = [o for o in node.outputs if o.uses() or o.is_graph_output()]
        needed = all(
            all(u.node in found for u in o.uses()) and (not o.is_graph_output() or o is logits) for o in outputs
        )
        domain, name = op_of(node)
        if not needed or domain or name not in _PER_TOKEN:
            continue
        touched = [v for v in (*node.inputs, *outputs) if v is not None]
        if name == "MatMul" and values[touched[1]].const is None:
            continue
        if all(by_token(values[v]) for v in touched):
            found.add(node)
    return frozenset(found)
