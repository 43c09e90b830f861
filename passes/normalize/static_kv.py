"""Gives a language model its explicit cache: past/present pairs become edgec::CachedAttention (docs/ir.md).

The graph that comes in takes a past of any length and returns it longer; the one that goes out takes a cache of fixed
length and the number of tokens in it. What each layer's mask hides is not read off the graph's spelling: the part of
the graph that makes the mask is run for many lengths, and must hide exactly what a causal mask, or one with a sliding
window, hides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.execute import Runner
from edgec.ir.info import info_of
from edgec.ir.model import (
    Array,
    Builder,
    describe,
    dims_of,
    input_of,
    int_attr,
    ints_attr,
    is_op,
    producer,
    rank_of,
    remove_unused,
    replace_value,
    required,
)
from edgec.ir.ops import DOMAIN
from edgec.ir.passes import Context, Pass
from edgec.ir.shapes import infer_shapes
from edgec.passes.normalize.kv_sites import HIDDEN, RefusedError, Site, cache_dims, find_sites

Bools = npt.NDArray[np.bool_]

_STAGE = "pass static_kv"
# (tokens, past) at which masks are looked at, besides those around a window.
_PROBES = ((1, 0), (1, 1), (1, 6), (7, 0), (5, 9), (3, 40), (40, 0), (33, 17))
# What stands between a cache and the attention that reads it.
_ON_THE_WAY = ("Unsqueeze", "Expand", "Reshape", "Transpose", "Mul", "Div", "MatMul", "Add", "Where", "Softmax", "Tanh",
               "Cast")
_SYMBOL = re.compile(r"[A-Za-z_]\w*")


class StaticKV(Pass):
    """past_key_values.i.*, attention_mask, position_ids -> past_len, key_cache.i, value_cache.i. Generic models stay.

    Raises EdgecError (EDGEC-E0301) with the reason of every layer that cannot be converted; the model given is then
    unchanged.
    """

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        if info_of(model).task != "causal-lm" or any(v.name == "past_len" for v in model.graph.inputs):
            return model, False
        work = model.clone()
        work.meta.update(model.meta)
        work.graph.opset_imports[DOMAIN] = 1
        sites, refused = find_sites(work.graph)
        inputs = list(work.graph.inputs)
        sites.sort(key=lambda site: inputs.index(site.past_key))
        if refused or not sites:
            raise _refusal(refused or ["no attention layer reads a cache that is an input of the model"])
        try:
            _Conversion(work, sites, ctx).run()
        except RefusedError as e:
            raise _refusal([str(e)]) from e
        return work, True

    def ensures(self, model: ir.Model) -> Sequence[str]:
        if info_of(model).task != "causal-lm":
            return []  # an encoder may well have a mask among its inputs
        left = [v.name for v in model.graph.inputs if v.name in ("attention_mask", "position_ids")]
        return [f"input {name} is left" for name in left]


def _refusal(reasons: Sequence[str]) -> EdgecError:
    return EdgecError("E0301", stage=_STAGE, where="attention over a cache", found="; ".join(reasons[:8]),
                      wanted="causal attention, with or without a sliding window, over past keys and values")


class _Conversion:
    def __init__(self, model: ir.Model, sites: list[Site], ctx: Context) -> None:
        self.model, self.graph, self.sites, self.ctx = model, model.graph, sites, ctx
        self.windows: dict[tuple[ir.Value | None, bool, bool], int] = {}
        by_name = {v.name: v for v in self.graph.inputs}
        if "input_ids" not in by_name:
            raise RefusedError("the model has no input input_ids")
        self.tokens = by_name["input_ids"]
        if rank_of(self.tokens) != 2:
            raise RefusedError(f"input_ids has rank {rank_of(self.tokens)}, not 2")
        self.past_len = ir.Value(name="past_len", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))

    def run(self) -> None:
        self._fix_batch()
        self.graph.inputs.append(self.past_len)
        self._replace_positions()
        self._replace_token_shapes()
        self._replace_shapes()
        # All masks are read before the first layer changes: a mask may come out of one that is about to go.
        windows = [self._window(site) for site in self.sites]
        for index, (site, window) in enumerate(zip(self.sites, windows, strict=True)):
            self._convert(index, site, window)
            self.ctx.rules.add("static_kv", f"{describe(site.anchor)}, window {window}")
        self._set_interface()
        remove_unused(self.model)
        self._forget_old_symbols()
        infer_shapes(self.model)

    def _fix_batch(self) -> None:
        """One sequence: the batch symbol of input_ids becomes 1 in every shape, the token symbol becomes seq."""
        batch, seq = dims_of(self.tokens) or (None, None)
        names = {}
        if isinstance(seq, str):
            names[seq] = "seq"
        if isinstance(batch, str):
            names[batch] = "1"
        elif batch != 1:
            raise RefusedError(f"input_ids has batch {batch}, not one that can be 1")
        for value in _values(self.graph):
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(d, names) for d in value.shape])

    def _insert(self, op: Builder, before: ir.Node) -> None:
        for value in op.initializers:
            self.graph.register_initializer(value)
        self.graph.insert_before(before, op.nodes)

    def _replace_positions(self) -> None:
        """position_ids and attention_mask as what they are for one sequence without padding."""
        first = self.graph[0]
        op = _builder("static_kv/inputs")
        count = op.Shape(self.tokens, start=1, end=2)
        total = op.Add(op.Reshape(self.past_len, op.ints([1])), count)
        self.total = total
        new: dict[str, ir.Value] = {}
        start, stop = self.past_len, op.Squeeze(total)
        steps = op.Range(start, stop, op.const(np.array(1, np.int64)))
        positions = op.Unsqueeze(steps, op.ints([0]))
        steps.type = positions.type = ir.TensorType(ir.DataType.INT64)
        steps.shape, positions.shape = ir.Shape(["seq"]), ir.Shape([1, "seq"])
        new["position_ids"] = positions
        mask = next((v for v in self.graph.inputs if v.name == "attention_mask"), None)
        if mask is not None:
            one = op.const(np.array([1]), mask.dtype)
            new["attention_mask"] = op.Expand(one, op.Concat(op.ints([1]), total, axis=0))
        self._insert(op, first)
        for value in list(self.graph.inputs):
            if value.name in new:
                if rank_of(value) != 2 or (value.name == "position_ids" and value.dtype != ir.DataType.INT64):
                    raise RefusedError(f"{value.name} is {value.dtype} of rank {rank_of(value)}")
                value.replace_all_uses_with(new[value.name], replace_graph_outputs=True)
                self.graph.inputs.remove(value)

    def _replace_token_shapes(self) -> None:
        """Shape of anything as long as input_ids reads input_ids itself: a mask then depends on how many, not which."""
        seq = (dims_of(self.tokens) or (None, None))[1]
        for node in list(self.graph):
            source = input_of(node, 0)
            if not is_op(node, "Shape") or source is self.tokens or not isinstance(seq, str):
                continue
            dims = list(dims_of(source) or ())
            stop = node.attributes.get("end")
            picked = dims[int_attr(node, "start", 0):None if stop is None else stop.as_int()]
            if seq not in picked or not all(isinstance(d, int) or d == seq for d in picked):
                continue
            op = Builder(node)
            parts = [op.Shape(self.tokens, start=1, end=2) if d == seq else op.ints([int(d or 0)]) for d in picked]
            result = parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)
            self._insert(op, node)
            replace_value(node.outputs[0], result)
            self.graph.remove(node, safe=True)

    def _replace_shapes(self) -> None:
        """Shape(past) and Shape(present) in terms of past_len; anything else that reads a cache is refused."""
        anchors = {site.anchor for site in self.sites}
        for site in self.sites:
            writers = {site.present_key.producer(), site.present_value.producer()}
            for value, length in ((site.past_key, None), (site.past_value, None), (site.present_key, self.total),
                                  (site.present_value, self.total)):
                for use in list(value.uses()):
                    node = use.node
                    if is_op(node, "Shape"):
                        self._replace_shape(node, value, length)
                    elif node not in anchors and node not in writers and not self._leads_to_site(node, anchors):
                        raise RefusedError(f"{describe(node)} reads the cache {value.name!r}")

    def _leads_to_site(self, node: ir.Node, anchors: set[ir.Node]) -> bool:
        """Whether everything that reads the node ends in an attention layer: repetition, transposition, scores."""
        if node in anchors:
            return True
        if not is_op(node, *_ON_THE_WAY):
            return False
        return all(
            not out.is_graph_output() and all(self._leads_to_site(use.node, anchors) for use in out.uses())
            for out in node.outputs
        )

    def _replace_shape(self, node: ir.Node, value: ir.Value, length: ir.Value | None) -> None:
        heads, size = cache_dims(value) if length is None else cache_dims(next(
            s.past_key if value is s.present_key else s.past_value for s in self.sites
            if value in (s.present_key, s.present_value)))
        op = Builder(node)
        middle = op.Reshape(self.past_len, op.ints([1])) if length is None else length
        parts = [op.ints([1]), op.ints([heads]), middle, op.ints([size])]
        parts = parts[slice(int_attr(node, "start", 0), int_attr(node, "end", 4))]
        new = op.Concat(*parts, axis=0)
        self._insert(op, node)
        replace_value(node.outputs[0], new)
        self.graph.remove(node, safe=True)

    def _window(self, site: Site) -> int:
        """The sliding window of a layer, 0 for none. Raises RefusedError when the mask hides anything else."""
        key = (site.mask, site.inverted, site.causal)
        if key not in self.windows:
            self.windows[key] = self._measure(site)
        return self.windows[key]

    def _measure(self, site: Site) -> int:
        where = describe(site.anchor)
        if site.mask is None:
            if not site.causal:
                raise RefusedError(f"{where} is not causal: it has no mask")
            return 0
        probe = _MaskProbe(self.graph, site.mask, self.tokens, self.past_len, where)
        with probe:
            # One token at the end of the longest context sees min(window, context) positions.
            context = max(info_of(self.model).max_context, 64)
            seen = int(probe.visible(1, context - 1, site.inverted).sum())
            window = seen if seen < context else 0
            around = [(3, window - 2), (2, window + 3), (5, max(window - 5, 0))] if window else []
            if 0 < window <= 256:
                around.append((window + 9, 2))
            for tokens, past in (*_PROBES, *((t, max(p, 0)) for t, p in around)):
                if past + tokens > context:
                    continue
                found = probe.visible(tokens, past, site.inverted)
                row, column = np.arange(past, past + tokens)[:, None], np.arange(past + tokens)[None]
                wanted = column <= row
                if site.causal:
                    found = found & wanted
                if window:
                    wanted &= column > row - window
                if not np.array_equal(found, wanted):
                    kind = f"causal with a window of {window}" if window else "causal"
                    raise RefusedError(f"the mask of {where} is not {kind}: for {tokens} tokens after {past} it "
                                       f"differs at {int((found != wanted).sum())} places")
        return window

    def _convert(self, index: int, site: Site, window: int) -> None:
        kv_heads, key_size = cache_dims(site.past_key)
        value_heads, value_size = cache_dims(site.past_value)
        if value_heads != kv_heads:
            raise RefusedError(f"{describe(site.anchor)}: {kv_heads} key heads and {value_heads} value heads")
        for value, part, size in ((site.past_key, "key", key_size), (site.past_value, "value", value_size)):
            value.name = f"{part}_cache.{index}"
            value.shape = ir.Shape([1, kv_heads, "context", size])
        op = Builder(site.anchor)
        flat = [
            _flat(op, site.q, site.q_heads * key_size, site.q_heads), _flat(op, site.k, kv_heads * key_size, kv_heads),
            _flat(op, site.v, kv_heads * value_size, kv_heads),
        ]
        y, keys, values = op.CachedAttention.many(
            3, *flat, site.past_key, site.past_value, self.past_len, _domain=DOMAIN, q_num_heads=site.q_heads,
            kv_num_heads=kv_heads, scale=site.scale, softcap=site.softcap, window=window, kv_format="f32",
        )
        y.type = ir.TensorType(ir.DataType.FLOAT)
        y.shape = ir.Shape([1, (dims_of(self.tokens) or (1, "seq"))[1], site.q_heads * value_size])
        for new, old in ((keys, site.past_key), (values, site.past_value)):
            new.type, new.shape = ir.TensorType(ir.DataType.FLOAT), old.shape
        self._replace_present(site, keys, values)
        if site.heads_first:
            split = op.Reshape(y, op.ints([0, 0, site.q_heads, value_size]))
            result = op.Transpose(split, perm=(0, 2, 1, 3))
        else:
            result = y
        self._insert(op, site.anchor)
        if site.heads_first:
            _merge_heads(site.output, y)
        site.output.replace_all_uses_with(result, replace_graph_outputs=True)
        keys.name, values.name = f"key_cache_out.{index}", f"value_cache_out.{index}"

    def _replace_present(self, site: Site, keys: ir.Value, values: ir.Value) -> None:
        """The model's outputs; readers inside the old attention die with it."""
        for old, new in ((site.present_key, keys), (site.present_value, values)):
            places = [i for i, v in enumerate(self.graph.outputs) if v is old]
            if len(places) != 1:
                raise RefusedError(f"{old.name!r} is {len(places)} outputs of the model, not one")
            self.graph.outputs[places[0]] = new
            old.name = None

    def _set_interface(self) -> None:
        by_name = {v.name: v for v in self.graph.inputs}
        count = len(self.sites)
        caches = [f"{part}_cache.{i}" for i in range(count) for part in ("key", "value")]
        wanted = ["input_ids", "past_len", *caches]
        spare = sorted(str(n) for n in by_name if n not in wanted)
        if spare:
            raise RefusedError(f"the model has other inputs: {', '.join(spare)}")
        self.graph.inputs[:] = [by_name[n] for n in wanted]
        states = {f"{part}_cache_out.{i}" for i in range(count) for part in ("key", "value")}
        others = [v for v in self.graph.outputs if v.name not in states]
        if len(others) != 1 or rank_of(others[0]) != 3:
            raise RefusedError(f"the model returns {len(others)} values besides its cache, not logits alone")
        logits, out = others[0], {v.name: v for v in self.graph.outputs}
        logits.name = "logits"
        self.graph.outputs[:] = [logits, *(out[n.replace("_cache.", "_cache_out.")] for n in caches)]

    def _forget_old_symbols(self) -> None:
        """Shapes in lengths that no longer exist (past_sequence_len) are dropped and inferred anew."""
        for value in _values(self.graph):
            if value.shape is None:
                continue
            for dim in value.shape:
                text = dim.value if isinstance(dim, ir.SymbolicDim) else None
                if text is not None and not set(_SYMBOL.findall(text)) <= {"seq", "context"}:
                    value.shape = None
                    break


class _MaskProbe:
    """Runs the part of the graph that makes a mask, which may depend on past_len and the number of tokens only."""

    def __init__(self, graph: ir.Graph, mask: ir.Value, tokens: ir.Value, past_len: ir.Value, where: str) -> None:
        self._where, self._mask = where, mask
        _only_lengths(mask, {tokens, past_len}, where)
        used = _inputs_of(mask, {tokens, past_len})
        if not used:
            raise RefusedError(f"the mask of {where} does not depend on the number of tokens")
        part = ir.convenience.extract(graph, used, [mask])
        self._output = part.outputs[0].name or "mask"
        self._inputs = {v.name for v in part.inputs}
        self._tokens, self._past = tokens.name or "", past_len.name or ""
        self._runner = Runner(ir.Model(part, ir_version=10), _STAGE)

    def __enter__(self) -> _MaskProbe:
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.close()

    def visible(self, tokens: int, past: int, inverted: bool) -> Bools:
        """BOOL [tokens, past + tokens]: what token t sees."""
        feeds: dict[str, Array] = {
            self._tokens: np.zeros((1, tokens), np.int64), self._past: np.array(past, np.int64),
        }
        mask = self._runner.run({k: v for k, v in feeds.items() if k in self._inputs})[self._output]
        if mask.dtype == np.bool_:
            sees = mask.astype(np.bool_) != inverted
        else:
            added = mask.astype(np.float64)
            sees = added > HIDDEN
            if np.any(added[sees] != 0):
                raise RefusedError(f"the mask of {self._where} has values besides 0 and minus infinity")
        try:
            wide = np.broadcast_to(sees, (*sees.shape[:-2], tokens, past + tokens)).reshape(-1, tokens, past + tokens)
        except ValueError:
            raise RefusedError(f"the mask of {self._where} has shape {sees.shape} for {tokens} tokens after {past}"
                               ) from None
        if not (wide == wide[:1]).all():
            raise RefusedError(f"the mask of {self._where} differs between heads")
        first: Bools = wide[0]
        return first


def _ancestors(value: ir.Value, ends: set[ir.Value]) -> Iterator[ir.Value]:
    """Every value that `value` is computed from, not looking behind `ends`."""
    stack, seen = [value], set()
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        yield current
        node = current.producer()
        if node is not None and current not in ends:
            stack.extend(v for v in node.inputs if v is not None)


def _only_lengths(mask: ir.Value, lengths: set[ir.Value], where: str) -> None:
    for value in _ancestors(mask, lengths):
        if value.is_graph_input() and value not in lengths:
            raise RefusedError(f"the mask of {where} depends on the input {value.name!r}")
        for use in value.uses() if value.name == "input_ids" else ():
            if not is_op(use.node, "Shape") and any(out in set(_ancestors(mask, lengths)) for out in use.node.outputs):
                raise RefusedError(f"the mask of {where} depends on which tokens are read, not only on how many")


def _inputs_of(mask: ir.Value, lengths: set[ir.Value]) -> list[ir.Value]:
    found = set(_ancestors(mask, lengths))
    return [v for v in lengths if v in found]


def _flat(op: Builder, value: ir.Value, width: int, heads: int) -> ir.Value:
    """`value` as [1, T, width], taken from before its heads were brought to the front where that is possible."""
    if rank_of(value) == 3:
        return value
    rotary, transpose = producer(value, "RotaryEmbedding"), producer(value, "Transpose")
    if rotary is not None:
        inner = _flat(op, required(rotary, 0), width, heads)
        new = op.RotaryEmbedding(
            inner, *rotary.inputs[1:], num_heads=heads, interleaved=int_attr(rotary, "interleaved", 0),
            rotary_embedding_dim=int_attr(rotary, "rotary_embedding_dim", 0),
        )
    elif transpose is not None and ints_attr(transpose, "perm") == (0, 2, 1, 3):
        split = required(transpose, 0)
        reshape = producer(split, "Reshape")
        if reshape is not None and (dims := dims_of(input_of(reshape, 0))) and len(dims) == 3 and dims[2] == width:
            return required(reshape, 0)
        new = op.Reshape(split, op.ints([0, 0, width]))
    else:
        new = op.Reshape(op.Transpose(value, perm=(0, 2, 1, 3)), op.ints([0, 0, width]))
    new.type = ir.TensorType(ir.DataType.FLOAT)
    new.shape = ir.Shape([1, "seq", width])
    return new


def _merge_heads(output: ir.Value, y: ir.Value) -> None:
    """Readers that only bring [1, H, T, D] back to [1, T, H*D] read `y` itself."""
    for use in list(output.uses()):
        if not is_op(use.node, "Transpose") or ints_attr(use.node, "perm") != (0, 2, 1, 3):
            continue
        for inner in list(use.node.outputs[0].uses()):
            result = inner.node.outputs[0]
            dims = dims_of(result)
            wanted = dims_of(y)
            if is_op(inner.node, "Reshape") and dims is not None and wanted is not None and dims == wanted:
                replace_value(result, y)


def _builder(stem: str) -> Builder:
    """A builder whose nodes belong to no layer."""
    holder = ir.node("Identity", [None], name=stem)
    holder.outputs[0].name = stem
    return Builder(holder)


def _renamed(dim: int | ir.SymbolicDim, names: dict[str, str]) -> int | ir.SymbolicDim:
    if isinstance(dim, int) or dim.value is None:
        return dim
    text = _SYMBOL.sub(lambda m: names.get(m.group(0), m.group(0)), dim.value)
    return int(text) if text.isdigit() else ir.SymbolicDim(text)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs
