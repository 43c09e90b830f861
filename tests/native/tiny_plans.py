"""Small plans written out by hand, a CNN, siblings and a language model: bundles for tests of the loader and the
runtime.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgec.compress.formats import Array, Dtype, Format
from edgec.native.dims import Dim, dim, symbol
from edgec.native.plan import ABSENT, ALIGN, Call, Entry, Operand, Plan, Port, Space, State, Weight
from edgec.native.tokenizer import Flag, TokenizerData

VOCAB, WIDTH, HEADS, KV_HEADS, HEAD, HIDDEN, CONTEXT, CHUNK = 300, 16, 2, 1, 8, 24, 32, 8
NO_ACT = (0.0, 0.0)


class _Builder:
    """Collects weights and calls of one entry; every arena buffer gets its own place."""

    def __init__(self, weights: list[Weight], seed: int) -> None:
        self.weights, self.calls, self.arena, self.seed = weights, [], 0, seed

    def weight(
        self, name: str, dims: Sequence[int], fmt: Format = Format.PLAIN, values: Array | None = None
    ) -> Operand:
        index = next((i for i, w in enumerate(self.weights) if w.name == name), None)
        if index is None:
            index = len(self.weights)
            if values is None:
                values = np.random.default_rng([self.seed, index]).standard_normal(dims) * 0.3
            fixed = np.asarray(values, np.float32)
            self.weights.append(Weight(name, Dtype.F32, fmt, tuple(dims), lambda: fixed))
        return Operand(Space.WEIGHT, index, 0, Dtype.F32, fmt, tuple(map(dim, dims)))

    def buffer(self, *dims: Dim | int, dtype: Dtype = Dtype.F32) -> Operand:
        operand = Operand(Space.ARENA, 0, self.arena, dtype, Format.PLAIN, tuple(map(dim, dims)))
        self.arena += -(-operand.bytes.at_max() // ALIGN) * ALIGN
        return operand

    def call(
        self, kernel: str, *operands: Operand, ints: Sequence[int | Dim] = (), floats: Sequence[float] = ()
    ) -> None:
        self.calls.append(Call(kernel, f"layer.{len(self.calls)}", operands, tuple(ints), tuple(floats)))

    def entry(self, name: str, inputs: Sequence[Port], outputs: Sequence[Port]) -> Entry:
        return Entry(name, tuple(inputs), tuple(outputs), tuple(self.calls), max(self.arena, ALIGN))


def _reshaped(operand: Operand, *dims: Dim | int) -> Operand:
    return Operand(operand.space, operand.index, operand.offset, operand.dtype, operand.format, tuple(map(dim, dims)))


def tiny_cnn() -> Plan:
    """image f32 [batch, 8, 8, 3] -> probabilities f32 [batch, 10]; batch 1..4."""
    batch = symbol("batch", 1, 4)
    b = _Builder([], 1)
    image = Port("image", Dtype.F32, (batch, dim(8), dim(8), dim(3)))
    out = Port("probabilities", Dtype.F32, (batch, dim(10)))
    x = Operand(Space.INPUT, 0, 0, Dtype.F32, Format.PLAIN, image.dims)
    stem, deep, pooled = b.buffer(batch, 4, 4, 16), b.buffer(batch, 4, 4, 16), b.buffer(batch, 1, 1, 16)
    scores = b.buffer(batch, 10)
    b.call("conv2d", stem, x, b.weight("stem", (1, 16, 27), Format.PANEL16), b.weight("stem.bias", (16,)), ABSENT,
           ints=(3, 3, 2, 2, 1, 1, 1, 1, 1, 2, 0), floats=(0.0, 6.0))
    b.call("dwconv2d", deep, stem, b.weight("deep", (9, 16)), b.weight("deep.bias", (16,)), stem,
           ints=(3, 3, 1, 1, 1, 1, 1, 1, 1, 0), floats=NO_ACT)
    b.call("pool2d", pooled, deep, ints=(1, 4, 4, 1, 1, 0, 0, 1, 1, 0))
    b.call("linear", scores, _reshaped(pooled, batch, 16), b.weight("head", (10, 16), Format.PANEL16),
           b.weight("head.bias", (10,)), ABSENT, ints=(0, 0), floats=NO_ACT)
    b.call("softmax", Operand(Space.OUTPUT, 0, 0, Dtype.F32, Format.PLAIN, out.dims), scores, ints=(0,))
    return Plan(0, 0, 0, 0, tuple(b.weights), (), (b.entry("main", [image], [out]),))


def tiny_siblings() -> Plan:
    """image f32 [batch, 24] -> f32 [batch, 16], [batch, 32] and [batch, 5], the parts of one product; batch 1..4."""
    batch = symbol("batch", 1, 4)
    b = _Builder([], 3)
    image = Port("image", Dtype.F32, (batch, dim(24)))
    outs = [Port(name, Dtype.F32, (batch, dim(n))) for name, n in (("a", 16), ("b", 32), ("c", 5))]
    to = [Operand(Space.OUTPUT, i, 0, Dtype.F32, Format.PLAIN, port.dims) for i, port in enumerate(outs)]
    x, wide, narrow = b.buffer(batch, 24), b.buffer(batch, 32), b.buffer(batch, 16)
    b.buffer(batch, 32)  # room, so that a larger part would still lie inside the arena
    b.call("unary", x, Operand(Space.INPUT, 0, 0, Dtype.F32, Format.PLAIN, image.dims), ints=(1,), floats=NO_ACT)
    b.call("linear_split", narrow, wide, to[2], ABSENT, x, b.weight("w", (53, 24), Format.PANEL16),
           b.weight("bias", (53,)), ints=(0,), floats=NO_ACT)
    b.call("copy", to[0], narrow)
    b.call("copy", to[1], wide)
    return Plan(0, 0, 0, 0, tuple(b.weights), (), (b.entry("main", [image], outs),))


def _lm_entry(name: str, weights: list[Weight]) -> Entry:
    """One block of attention and gated feed-forward between a tied embedding and head."""
    seq = dim(1) if name == "decode" else symbol("seq", 1, CHUNK)
    past, context = symbol("past", 0, CONTEXT), symbol("context", 1, CONTEXT)
    b = _Builder(weights, 2)
    angles = np.arange(CONTEXT)[:, None] * 10000.0 ** (-np.arange(HEAD // 2) / (HEAD // 2))
    plain = (0, 0)

    def linear(y: Operand, x: Operand, weight: str, n: int, residual: Operand = ABSENT) -> None:
        w = b.weight(weight, (n, x.dims[-1].at_max()), Format.PANEL16)
        b.call("linear", y, x, w, ABSENT, residual, ints=plain, floats=NO_ACT)

    def norm(x: Operand, name: str) -> Operand:
        y = b.buffer(*x.dims)
        b.call("rmsnorm", y, ABSENT, x, ABSENT, b.weight(name, (WIDTH,)), floats=(1e-5,))
        return y

    tokens = Operand(Space.INPUT, 0, 0, Dtype.I32, Format.PLAIN, (seq,))
    embedding = b.weight("embedding", (VOCAB, WIDTH), Format.PANEL16)
    x = b.buffer(seq, WIDTH)
    b.call("gather", _reshaped(x, 1, seq, WIDTH), embedding, tokens)
    positions, cos, sin = b.buffer(seq, dtype=Dtype.I64), b.buffer(seq, HEAD // 2), b.buffer(seq, HEAD // 2)
    b.call("iota", positions, ints=(past, 1))
    for y, table, values in ((cos, "cos", np.cos(angles)), (sin, "sin", np.sin(angles))):
        w = b.weight(table, (1, CONTEXT, HEAD // 2), values=values[None])
        b.call("gather", _reshaped(y, 1, seq, HEAD // 2), w, positions)
    n = norm(x, "norm.attention")
    q, k, v = b.buffer(seq, HEADS * HEAD), b.buffer(seq, KV_HEADS * HEAD), b.buffer(seq, KV_HEADS * HEAD)
    for y, weight in ((q, "q"), (k, "k"), (v, "v")):
        linear(y, n, weight, y.dims[-1].at_max())
    for y, heads in ((q, HEADS), (k, KV_HEADS)):
        b.call("rope", y, y, cos, sin, ints=(heads, HEAD, 0))
    caches = [Operand(Space.STATE, i, 0, Dtype.F32, Format.PLAIN, (dim(KV_HEADS), context, dim(HEAD))) for i in (0, 1)]
    for cache, new in zip(caches, (k, v), strict=True):
        b.call("kv_write", cache, new, ints=(past,))
    attended, mixed = b.buffer(seq, HEADS * HEAD), b.buffer(seq, WIDTH)
    b.call("attention_cached", attended, q, *caches, ints=(past, HEADS, KV_HEADS, 0), floats=(HEAD**-0.5, 0.0))
    linear(mixed, attended, "o", WIDTH, residual=x)
    n = norm(mixed, "norm.mlp")
    gate, up, out = b.buffer(seq, HIDDEN), b.buffer(seq, HIDDEN), b.buffer(seq, WIDTH)
    linear(gate, n, "gate", HIDDEN)
    linear(up, n, "up", HIDDEN)
    b.call("glu", gate, gate, up, ints=(4,), floats=NO_ACT)
    linear(out, gate, "down", WIDTH, residual=mixed)
    if name == "prefill":
        last = b.buffer(1, WIDTH)
        b.call("slice", last, out, ints=(seq - 1, 0, 1, 1))
        out = last
    n = norm(out, "norm.head")
    dims = (seq, dim(VOCAB)) if name == "score" else (dim(VOCAB),)
    logits = Port("logits", Dtype.F32, dims)
    rows = n if name == "score" else _reshaped(n, WIDTH)
    linear(Operand(Space.OUTPUT, 0, 0, Dtype.F32, Format.PLAIN, dims), rows, "embedding", VOCAB)
    return b.entry(name, [Port("tokens", Dtype.I32, (seq,))], [logits])


def tiny_lm() -> Plan:
    """A language model of one block: 300 tokens, context 32, chunks of 8."""
    context = symbol("context", 1, CONTEXT)
    weights: list[Weight] = []
    entries = tuple(_lm_entry(name, weights) for name in ("prefill", "decode", "score"))
    cache = (dim(KV_HEADS), context, dim(HEAD))
    states = tuple(State(name, Dtype.F32, cache, 1) for name in ("key_cache.0", "value_cache.0"))
    return Plan(1, CONTEXT, VOCAB, CHUNK, tuple(weights), states, entries)


def tiny_tokenizer() -> TokenizerData:
    """Bytes are ids 0..255; then merges, `<s>` 298, `</s>` 299. One of each thing that a section can hold."""
    from edgec.native.tokenizer import Added, AddedFlag, Pattern

    data = TokenizerData(pieces=[bytes([i]) for i in range(256)], byte_piece=list(range(256)))
    for left, right in ((b"t", b"h"), (b"th", b"e"), (b" ", b"the"), (b"i", b"n"), (b"in", b"g"), (b"a", b"n")):
        data.merges[data.pieces.index(left), data.pieces.index(right)] = len(data.merges), len(data.pieces)
        data.pieces.append(left + right)
    data.pieces += [b""] * (VOCAB - len(data.pieces))
    data.pieces[298], data.pieces[299], data.pieces[297] = b"<s>", b"</s>", b"<tool>"
    data.added = [Added(298, b"<s>"), Added(299, b"</s>", AddedFlag.STRIP_RIGHT), Added(297, b"<tool>", AddedFlag.LATE)]
    data.special, data.prefix, data.stop = [298, 299], [298], [299]
    data.lookup = list(range(0x61, 0x7B))
    data.flags, data.pattern, data.bos, data.eos = Flag.NFC | Flag.WHOLE_WORDS, Pattern.GPT2, 298, 299
    return data
