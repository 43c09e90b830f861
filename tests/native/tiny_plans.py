"""Small plans written out by hand, a CNN, siblings, weights of few bits, a recurrent network and a language model:
bundles for tests of the loader and the runtime.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgec.compress.formats import Array, Dtype, Format
from edgec.compress.low_bit import LowBitMatrix
from edgec.native.dims import Dim, dim, symbol
from edgec.native.kv import kv_row
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

    def codes(self, name: str, matrix: LowBitMatrix) -> Operand:
        """Any codes; the bytes are such that any two of them are a small finite f16, and any four a small f32."""
        random = np.random.default_rng([self.seed, len(self.weights)])
        values = random.choice(np.array([0x28, 0x2C, 0xA8, 0x2A], np.uint8), matrix.bytes)
        self.weights.append(Weight(name, Dtype.U8, Format.PLAIN, values.shape, lambda: values))
        return Operand(Space.WEIGHT, len(self.weights) - 1, 0, Dtype.U8, Format.PLAIN, (dim(matrix.bytes),))

    def whole(self, name: str, dims: Sequence[int], dtype: Dtype, low: int, high: int, odd: bool = False) -> Operand:
        """Values of low..high; odd: zero in the second half of the last pairs, as conv2d_q8 wants of odd taps."""
        values = np.random.default_rng([self.seed, len(self.weights)]).integers(low, high + 1, dims).astype(dtype.numpy)
        if odd:
            values[..., -1, 1::2] = 0
        self.weights.append(Weight(name, dtype, Format.PLAIN, tuple(dims), lambda: values))
        return Operand(Space.WEIGHT, len(self.weights) - 1, 0, dtype, Format.PLAIN, tuple(map(dim, dims)))

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


def tiny_q8() -> Plan:
    """image f32 [batch, 6, 7, 5] -> f32 [batch, 18], in integers of 8 bits; batch 1..3."""
    batch = symbol("batch", 1, 3)
    b = _Builder([], 6)
    image, out = Port("image", Dtype.F32, (batch, dim(6), dim(7), dim(5))), Port("sums", Dtype.F32, (batch, dim(18)))
    x = Operand(Space.INPUT, 0, 0, Dtype.F32, Format.PLAIN, image.dims)
    codes, deep, wide, total = b.buffer(batch, 6, 7, 5, dtype=Dtype.U8), *(
        b.buffer(batch, 6, 7, 18, dtype=kind) for kind in (Dtype.I8, Dtype.U8, Dtype.U8))
    pooled, bent = b.buffer(batch, 1, 1, 18, dtype=Dtype.U8), b.buffer(batch, 1, 1, 18, dtype=Dtype.I8)
    factors = [b.weight(n, (18,), values=np.full(18, v, np.float32)) for n, v in (("conv.m", 4e-4), ("dw.m", 1e-3))]
    window = (3, 3, 1, 1, 1, 1, 1, 1)
    b.call("quantize", codes, x, ints=(120, 0, 255), floats=(0.02,))
    b.call("conv2d_q8", deep, codes, b.whole("conv", (1, 2, 23, 32), Dtype.I8, -128, 127, odd=True),
           b.whole("conv.bias", (18,), Dtype.I32, -9000, 9000), factors[0], ints=(*window, 1, 120, 128, 0, 255, 0))
    b.call("dwconv2d_q8", wide, deep, b.whole("dw", (9, 18), Dtype.I8, -128, 127),
           b.whole("dw.bias", (18,), Dtype.I32, -9000, 9000), factors[1], ints=(*window, 128, 100, 100, 250))
    b.call("add_q8", total, deep, wide, ints=(128, 100, 90, 0, 255, 1 << 26, 3 << 25, 27))
    b.call("pool2d_q8", pooled, total, ints=(1, 6, 7, 1, 1, 0, 0, 1, 1, 0, 90, 30, 0, 255), floats=(1.25,))
    b.call("table_q8", bent, pooled, b.whole("table", (256,), Dtype.U8, 0, 255))
    b.call("dequantize", Operand(Space.OUTPUT, 0, 0, Dtype.F32, Format.PLAIN, (batch, dim(1), dim(1), dim(18))), bent,
           ints=(99,), floats=(0.1,))
    return Plan(0, 0, 0, 0, tuple(b.weights), (), (b.entry("main", [image], [out]),))


def tiny_bits() -> Plan:
    """image f32 [batch, 5, 5, 7] -> f32 [batch, 40] and [batch, 9], by weights of few bits and palettes; batch 1..3."""
    batch = symbol("batch", 1, 3)
    b = _Builder([], 4)
    image = Port("image", Dtype.F32, (batch, dim(5), dim(5), dim(7)))
    outs = [Port("wide", Dtype.F32, (batch, dim(40))), Port("narrow", Dtype.F32, (batch, dim(9)))]
    to = [Operand(Space.OUTPUT, i, 0, Dtype.F32, Format.PLAIN, port.dims) for i, port in enumerate(outs)]
    x = Operand(Space.INPUT, 0, 0, Dtype.F32, Format.PLAIN, image.dims)
    conv, head = LowBitMatrix.of(20, 63, 2, 32, 0), LowBitMatrix.of(36, 20, 3, 0, 65)
    deep, pooled, rows = b.buffer(batch, 5, 5, 20), b.buffer(batch, 1, 1, 20), b.buffer(batch, 36)
    table, summed, index = b.buffer(batch, 36), b.buffer(batch, 36), b.buffer(batch, dtype=Dtype.I64)
    b.call("conv2d_bits", deep, x, b.codes("conv", conv), b.weight("conv.bias", (20,)), ABSENT,
           ints=(3, 3, 1, 1, 1, 1, 1, 1, 1, 0, conv.n, *conv.ints), floats=NO_ACT)
    b.call("pool2d", pooled, deep, ints=(0, 5, 5, 1, 1, 0, 0, 1, 1, 0))
    b.call("linear_bits", rows, _reshaped(pooled, batch, 20), b.codes("head", head), ABSENT, ABSENT,
           ints=(4, 0, head.n, *head.ints), floats=NO_ACT)
    b.call("iota", index, ints=(0, 1))
    embedding = LowBitMatrix.of(5, 36, 4, 64, 1)
    b.call("gather_bits", table, b.codes("embedding", embedding), index,
           ints=(embedding.n, embedding.k, *embedding.ints))
    b.call("binary", summed, rows, table, ints=(0,))
    parts = [LowBitMatrix.of(40, 36, 1, 32, 0), LowBitMatrix.of(9, 36, 4, 32, 1)]
    b.call("linear_bits_split", to[0], ABSENT, to[1], ABSENT, summed, b.codes("wide", parts[0]), ABSENT,
           b.codes("narrow", parts[1]), ABSENT, b.weight("wide.bias", (40,)), ABSENT, ABSENT, ABSENT,
           ints=(0, 32, parts[0].ints[0], parts[0].ints[2], 0, 0, parts[1].ints[0], parts[1].ints[2], 0, 0, 1),
           floats=NO_ACT)
    return Plan(0, 0, 0, 0, tuple(b.weights), (), (b.entry("main", [image], outs),))


def tiny_mixers() -> Plan:
    """image f32 [batch, 6, 7, 16] -> f32 [batch, 15] and i64 [batch, 1]; batch 1..2: what mixes pixels and tokens, and
    the kernels that no other plan here has."""
    batch = symbol("batch", 1, 2)
    b = _Builder([], 7)
    image = Port("image", Dtype.F32, (batch, dim(6), dim(7), dim(16)))
    outs = [Port("sums", Dtype.F32, (batch, dim(15))), Port("place", Dtype.I64, (batch, dim(1)))]
    to = [Operand(Space.OUTPUT, i, 0, port.dtype, Format.PLAIN, port.dims) for i, port in enumerate(outs)]
    x = Operand(Space.INPUT, 0, 0, Dtype.F32, Format.PLAIN, image.dims)
    deep, bent, normal, small, mixed = b.buffer(batch, 6, 7, 20), b.buffer(batch, 6, 7, 20), b.buffer(batch, 42, 20), *(
        b.buffer(batch, 3, 5, 20) for _ in range(2))
    window, silu = (3, 3, 1, 1, 1, 1, 1, 1), 4
    b.call("conv2d_winograd", deep, x, b.weight("tiles", (1, 20, 144), Format.PANEL16), b.weight("tiles.bias", (20,)),
           ABSENT, ints=(1, 1, silu, 0), floats=NO_ACT)
    b.call("mbconv2d", bent, deep, b.weight("widen", (24, 20), Format.PANEL16), b.weight("widen.bias", (24,)),
           b.weight("filter", (9, 24)), b.weight("filter.bias", (24,)), b.weight("narrow", (20, 24), Format.PANEL16),
           b.weight("narrow.bias", (20,)), deep, ints=(*window, silu, 1, 0, 0), floats=NO_ACT * 3)
    b.call("groupnorm", normal, _reshaped(bent, batch, 42, 20), b.weight("gamma", (20,)), b.weight("beta", (20,)),
           ints=(5, silu), floats=(1e-5, *NO_ACT))
    b.call("resize2d", small, _reshaped(normal, batch, 6, 7, 20), b.whole("rows", (3, 2), Dtype.I32, 0, 5),
           b.weight("row_weights", (3, 2)), b.whole("cols", (5, 2), Dtype.I32, 0, 6), b.weight("col_weights", (5, 2)))
    each = b.buffer(batch, 3, 5, 9, 5)
    b.call("expand", each, b.weight("each", (1, 3, 5, 9, 5)))
    b.call("dynamic_depthwise", mixed, small, each, b.weight("mixed.bias", (20,)), small, ABSENT, ints=(3, silu, 0),
           floats=NO_ACT)
    tokens = _reshaped(mixed, batch, 15, 20)
    scaled, seen, scanned, filtered = (b.buffer(batch, 15, 20) for _ in range(4))
    b.call("layernorm", scaled, ABSENT, tokens, ABSENT, b.weight("scale", (20,)), b.weight("shift", (20,)),
           floats=(1e-5,))
    b.call("attention", seen, scaled, scaled, tokens, ABSENT, ints=(4, 4, 0, 0), floats=(0.4, 0.0))
    into, onto = b.buffer(batch, 15, 4), b.buffer(batch, 15, 4)
    b.call("expand", into, b.weight("into", (1, 15, 4)))
    b.call("expand", onto, b.weight("onto", (1, 15, 4)))
    b.call("selective_scan", scanned, ABSENT, seen, scaled, b.weight("rates", (4, 20)), into, onto, ABSENT, ABSENT,
           ints=(1,))
    b.call("causal_conv1d", filtered, ABSENT, scanned, b.weight("taps", (3, 20)), b.weight("taps.bias", (20,)), ABSENT,
           ints=(silu,), floats=NO_ACT)
    products, sums, chosen, placed = b.buffer(batch, 15, 15), *(b.buffer(batch, 15) for _ in range(3))
    nonzero, place = b.buffer(batch, 15, dtype=Dtype.BOOL), b.buffer(batch, 1, dtype=Dtype.I64)
    b.call("matmul", products, filtered, scaled, ints=(1,), floats=(0.2,))
    b.call("reduce", sums, products, ints=(0,))
    b.call("argmax", place, _reshaped(sums, batch, 15, 1), ints=(0,))
    b.call("bitwise", to[1], place, place, ints=(1,))
    b.call("cast", nonzero, sums)
    b.call("where", chosen, nonzero, sums, b.weight("else", (15,)))
    b.call("scatter", placed, chosen, b.whole("row", (1,), Dtype.I64, 0, 0), b.weight("update", (1, 15)), ints=(1,))
    b.call("copy", to[0], placed)
    return Plan(0, 0, 0, 0, tuple(b.weights), (), (b.entry("main", [image], outs),))


def tiny_recurrent() -> Plan:
    """signal f32 [steps, 1, 6] -> f32 [2 steps + 1, 5] and the places of its largest values i64 [2, 5]; steps 1..6.

    An LSTM whose hidden and cell state are kept between runs, then its steps twice with a frame of padding, sorted.
    """
    steps, hidden = symbol("steps", 1, 6), 5
    b = _Builder([], 5)
    signal = Port("signal", Dtype.F32, (steps, dim(1), dim(6)))
    twice = steps * 2 + 1
    outs = [Port("frames", Dtype.F32, (twice, dim(hidden))), Port("places", Dtype.I64, (dim(2), dim(hidden)))]
    to = [Operand(Space.OUTPUT, i, 0, port.dtype, Format.PLAIN, port.dims) for i, port in enumerate(outs)]
    x = Operand(Space.INPUT, 0, 0, Dtype.F32, Format.PLAIN, signal.dims)
    kept = [Operand(Space.STATE, i, 0, Dtype.F32, Format.PLAIN, (dim(1), dim(hidden))) for i in (0, 1)]
    gates, y = b.buffer(steps, 1, 4 * hidden), b.buffer(steps, 1, hidden)
    new = [b.buffer(1, hidden), b.buffer(1, hidden)]
    b.call("linear", gates, x, b.weight("gates", (4 * hidden, 6), Format.PANEL16), b.weight("bias", (4 * hidden,)),
           ABSENT, ints=(0, 0), floats=NO_ACT)
    b.call("rnn", y, *new, gates, b.weight("recurrent", (4, hidden, hidden), Format.PANEL16), ABSENT, *kept,
           ints=(4, 0))
    for state, value in zip(kept, new, strict=True):
        b.call("copy", state, value)
    both, padded = b.buffer(steps * 2, hidden), b.buffer(twice, hidden)
    flat = _reshaped(y, steps, hidden)
    b.call("concat", both, flat, flat, ints=(0,))
    b.call("pad", padded, both, ints=(1, 0, 0), floats=(0.5,))
    shared, largest = b.buffer(hidden, twice), b.buffer(1, 2, hidden)
    b.call("transpose", shared, padded, ints=(1, 0))
    b.call("softmax", shared, shared, ints=(0,))
    b.call("transpose", to[0], shared, ints=(1, 0))
    b.call("topk", largest, _reshaped(to[1], 1, 2, hidden), _reshaped(padded, 1, twice, hidden), ints=(0,))
    states = tuple(State(name, Dtype.F32, (dim(1), dim(hidden)), 0) for name in ("hidden", "cell"))
    return Plan(0, 0, 0, 0, tuple(b.weights), states, (b.entry("main", [signal], outs),))


def _lm_entry(name: str, weights: list[Weight], kept: Dtype, head: int, kv_heads: int) -> Entry:
    """One block of attention and gated feed-forward between a tied embedding and head."""
    seq = dim(1) if name == "decode" else symbol("seq", 1, CHUNK)
    past, context = symbol("past", 0, CONTEXT), symbol("context", 1, CONTEXT)
    b = _Builder(weights, 2)
    angles = np.arange(CONTEXT)[:, None] * 10000.0 ** (-np.arange(head // 2) / (head // 2))
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
    positions, cos, sin = b.buffer(seq, dtype=Dtype.I64), b.buffer(seq, head // 2), b.buffer(seq, head // 2)
    b.call("iota", positions, ints=(past, 1))
    for y, table, values in ((cos, "cos", np.cos(angles)), (sin, "sin", np.sin(angles))):
        w = b.weight(table, (1, CONTEXT, head // 2), values=values[None])
        b.call("gather", _reshaped(y, 1, seq, head // 2), w, positions)
    n = norm(x, "norm.attention")
    q, k, v = b.buffer(seq, HEADS * head), b.buffer(seq, kv_heads * head), b.buffer(seq, kv_heads * head)
    for y, weight in ((q, "q"), (k, "k"), (v, "v")):
        linear(y, n, weight, y.dims[-1].at_max())
    for y, heads in ((q, HEADS), (k, kv_heads)):
        b.call("rope", y, y, cos, sin, ints=(heads, head, 0))
    rows = (dim(kv_heads), context, dim(kv_row(kept, head)))
    caches = [Operand(Space.STATE, i, 0, kept, Format.PLAIN, rows) for i in (0, 1)]
    for cache, new in zip(caches, (k, v), strict=True):
        b.call("kv_write", cache, new, ints=(past,))
    attended, mixed = b.buffer(seq, HEADS * head), b.buffer(seq, WIDTH)
    b.call("attention_cached", attended, q, *caches, ints=(past, HEADS, kv_heads, 0), floats=(head**-0.5, 0.0))
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


def tiny_lm(kept: Dtype = Dtype.F32, head: int = HEAD, kv_heads: int = KV_HEADS) -> Plan:
    """A language model of one block: 300 tokens, context 32, chunks of 8; keys and values are kept as `kept`."""
    context = symbol("context", 1, CONTEXT)
    weights: list[Weight] = []
    entries = tuple(_lm_entry(name, weights, kept, head, kv_heads) for name in ("prefill", "decode", "score"))
    cache = (dim(kv_heads), context, dim(kv_row(kept, head)))
    states = tuple(State(name, kept, cache, 1) for name in ("key_cache.0", "value_cache.0"))
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


def tiny_scored_tokenizer() -> TokenizerData:
    """Characters with byte pieces, spaces in front and unknown characters, as score-based vocabularies have them."""
    from edgec.native.tokenizer import Pattern, parse_scored

    pieces = [(b"<unk>", 0.0), (b"<s>", 0.0), (b"</s>", 0.0), *((b"<0x%02X>" % i, 0.0) for i in range(256))]
    words = (b" ", b"t", b"h", b"e", b"a", b"\xc3\xa9", b"th", b" t", b"the", b" the", b" a")
    pieces += [(word, -float(i)) for i, word in enumerate(words)]
    data = parse_scored(pieces)
    data.pattern, data.digits = Pattern.NONE, 1
    return data
