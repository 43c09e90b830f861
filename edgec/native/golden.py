"""The GOLDEN section: what a reference answered, so that a device can check itself (docs/format.md).

The reference is ONNX Runtime on the same lowered graph in float32, and in exact integers between roundings to 8 bits.
Language models store the largest logits after a
short prompt; generic models store strided samples of every output for inputs drawn from a seeded stream.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array, Dtype, from_storage, to_storage
from edgec.ir.execute import Runner
from edgec.ir.info import info_of
from edgec.ir.model import dims_of, is_op, op_of, walk
from edgec.ir.weights import total_bytes
from edgec.native.kv import KV_NAMES
from edgec.native.lower_weights import DECOMPRESS
from edgec.native.plan import TABLES, Plan, Weight, is_fast, low_bit_matrices

_STAGE = "golden"
_TOKENS, _PAIRS, _SAMPLES, _SEED = 16, 32, 64, 0x5EED
# Relative to the largest magnitude. Exact weights leave rounding only; 16-bit storage of 32-bit weights and a 16-bit
# cache change the answer itself, and so do the tables that weights of few bits are multiplied with, most of all those
# of 8 bits, and what rounds keys and values to the next code.
# Activations of 8 bits are compared with exact integers (MobileNetV2: equal); what onnxruntime computes in float32
# between two roundings may come out a step apart.
_EXACT, _ROUNDED, _FAST = 1e-3, 5e-2, 1.5e-1
_MASK = (1 << 64) - 1
# The reference holds all weights as float32; a compile must not need more memory for it than for everything else.
_LARGEST = 1 << 30


@dataclass(frozen=True)
class Golden:
    """A decoded section. Language models: tokens and pairs (token, logit). Generic: seed and per output (stride,
    values)."""

    tolerance: float
    tokens: tuple[int, ...] = ()
    pairs: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    outputs: tuple[tuple[int, tuple[float, ...]], ...] = ()


def encode_golden(golden: Golden) -> bytes:
    """The section's bytes; a golden with tokens is a language model's."""
    if golden.tokens:
        data = struct.pack("<IfI", 1, golden.tolerance, len(golden.tokens))
        data += struct.pack(f"<{len(golden.tokens)}iI", *golden.tokens, len(golden.pairs))
        return data + b"".join(struct.pack("<If", token, logit) for token, logit in golden.pairs)
    data = struct.pack("<IfQI", 0, golden.tolerance, golden.seed, len(golden.outputs))
    for stride, values in golden.outputs:
        data += struct.pack(f"<II{len(values)}f", stride, len(values), *values)
    return data


def splitmix(seed: int, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """float32 arrays in [-1, 1), filled in order from one SplitMix64 stream started at `seed`."""
    total = sum(int(np.prod(s)) for s in shapes)
    with np.errstate(over="ignore"):
        state = np.uint64(seed & _MASK) + np.arange(1, total + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    flat = ((z >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1).astype(np.float32)
    arrays, at = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        arrays.append(flat[at : at + size].reshape(shape))
        at += size
    return arrays


def left_out(model: ir.Model) -> str:
    """Why a bundle of this model carries no golden vectors by default; "" when it does."""
    # ONNX Runtime makes weights dense when it loads the graph.
    dense = [dims_of(node.outputs[0]) or () for node in walk(model) if op_of(node) in DECOMPRESS]
    size = total_bytes(model) + sum(4 * math.prod(d for d in dims if isinstance(d, int)) for dims in dense)
    return f"the reference would hold {size} bytes of weights, more than {_LARGEST}" if size > _LARGEST else ""


def golden_section(model: ir.Model, plan: Plan) -> bytes | None:
    """What ONNX Runtime answers for the lowered `model` of `plan`.

    None where the format cannot describe it: a generic model with inputs or outputs that are not float32, or whose
    answer to such inputs is empty or not a number. Raises EdgecError (E0202) when ONNX Runtime cannot run the graph.
    """
    calls = [call for entry in plan.entries for call in entry.calls]
    low_bit = any(m.looked_up for call in calls if call.kernel in TABLES for _, m in low_bit_matrices(call))
    exact = not low_bit and all(s.dtype is Dtype.F32 for s in plan.states) and all(map(_lossless, plan.weights))
    codes = any(is_op(node, "QuantizeLinear") for node in walk(model))
    tolerance = _EXACT if exact and not codes else _FAST if any(map(is_fast, calls)) else _ROUNDED
    if plan.model_kind == 1:
        return encode_golden(_language_model(model, plan, tolerance, codes))
    entry = plan.entries[0]
    if any(p.dtype is not Dtype.F32 for p in (*entry.inputs, *entry.outputs)):
        return None
    # The runtime runs the check with every symbol at its maximum: the only shapes it can know.
    shapes = [tuple(d.at_max() for d in p.dims) for p in entry.inputs]
    names = [v.name or "" for v in model.graph.inputs]
    with Runner(model, _STAGE, integers=codes) as runner:
        results = runner.run(dict(zip(names, splitmix(_SEED, shapes), strict=True)))
    outputs = []
    for value in model.graph.outputs:
        flat = results[value.name or ""].reshape(-1)
        if flat.size == 0 or np.isnan(flat).any():
            return None
        stride = max(1, -(-flat.size // _SAMPLES))
        outputs.append((stride, tuple(float(x) for x in flat[::stride])))
    return encode_golden(Golden(tolerance, seed=_SEED, outputs=tuple(outputs)))


def _lossless(weight: Weight) -> bool:
    if weight.dtype not in (Dtype.F16, Dtype.BF16):
        return True
    values = weight.load()
    exact = np.array_equal(from_storage(to_storage(values, weight.dtype), weight.dtype), values)
    del values
    weight.release()
    return exact


def _language_model(model: ir.Model, plan: Plan, tolerance: float, codes: bool) -> Golden:
    info = info_of(model)
    n = min(_TOKENS, plan.max_context, plan.prefill_chunk)
    rng = np.random.default_rng(_SEED)
    first = [info.bos_token] if info.bos_token is not None else []
    tokens = [*first, *(int(t) for t in rng.integers(0, plan.vocab_size, n - len(first)))][:n]
    feeds: dict[str, Array] = {"input_ids": np.array([tokens], np.int64), "past_len": np.array(0, np.int64)}
    # The reference rounds keys and values as the plan's states do, whatever the graph says.
    stored = model.clone()
    caches = [v for v in stored.graph.inputs if v.name not in feeds]
    for cache, state in zip(caches, plan.states, strict=True):
        for node, _ in cache.uses():
            node.attributes["kv_format"] = ir.AttrString("kv_format", KV_NAMES[state.dtype])
        _, heads, _, width = dims_of(cache) or ()
        assert isinstance(heads, int)  # or there were no plan
        assert isinstance(width, int)
        feeds[cache.name or ""] = np.zeros((1, heads, n, width), np.float32)
    with Runner(stored, _STAGE, integers=codes) as runner:
        last = runner.run(feeds)["logits"].reshape(n, -1)[-1]
    order = np.argsort(-last, kind="stable")[:_PAIRS]
    return Golden(tolerance, tuple(tokens), tuple((int(t), float(last[t])) for t in order))
