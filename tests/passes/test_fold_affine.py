from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.passes.normalize.fold_affine import FoldAffine
from tests.passes.harness import model, ops, reasons, run

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape) + 0.01


def graph(body: str, out: str, x: str = "2,4,5,5", **weights: np.ndarray) -> ir.Model:
    listed = "".join(f", float{list(w.shape)} {k}" for k, w in weights.items())
    return model(f"g (float[{x}] x{listed}) => (float[{out}] y) {{ {body} }}", **weights)


CONV = {"w": normal(6, 4, 3, 3)}
PADDED = "Conv<pads = [1, 1, 1, 1]>"


@pytest.mark.parametrize("op", ["t = Mul(p, a)", "t = Mul(a, p)", "t = Div(p, a)", "t = Add(p, a)", "t = Sub(p, a)",
                                "t = Sub(a, p)"])
@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), (1,)])
def test_behind_a_padded_convolution(op: str, shape: tuple[int, ...]) -> None:
    before = graph(f"p = {PADDED}(x, w) {op} y = Relu(t)", "2,6,5,5", **CONV, a=normal(*shape))
    after, modified, _ = run(FoldAffine(), before)
    assert modified
    assert ops(after) == {"Conv": 1, "Relu": 1}


@pytest.mark.parametrize("mean", ["GlobalAveragePool(p)", "ReduceMean(p, axes)"])
def test_through_a_mean_and_a_flattening(mean: str) -> None:
    before = graph(f"p = {PADDED}(x, w) q = {mean} r = Flatten(q) s = Mul(r, a) y = Add(s, c)", "2,6", **CONV,
                   a=normal(6), c=normal(6), **({"axes": np.array([2.0, 3.0])} if "axes" in mean else {}))
    if "axes" in mean:
        before.graph.initializers["axes"].const_value = ir.tensor(np.array([2, 3], np.int64))
        before.graph.initializers["axes"].dtype = ir.DataType.INT64
    after, _, _ = run(FoldAffine(), before)
    assert set(ops(after)) == {"Conv", "Flatten", mean.split("(")[0]}


def test_behind_linears() -> None:
    before = graph("p = MatMul(x, w) q = Add(p, b) r = Mul(q, a) s = Add(r, c) y = Relu(s)", "2,3,6", "2,3,4",
                   w=normal(4, 6), b=normal(6), a=normal(6), c=normal(6))
    after, _, _ = run(FoldAffine(), before)
    assert ops(after) == {"MatMul": 1, "Add": 1, "Relu": 1}


def test_in_front_of_an_unpadded_convolution() -> None:
    before = graph("p = Sub(x, m) q = Div(p, a) y = Conv(q, w)", "2,6,3,3", **CONV,
                   m=normal(4, 1, 1), a=normal(4, 1, 1))
    after, _, _ = run(FoldAffine(), before)
    assert ops(after) == {"Conv": 1}


def test_in_front_of_two_linears() -> None:
    before = graph("p = Mul(x, a) q = MatMul(p, w) r = MatMul(p, v) s = Relu(r) y = Mul(q, s)", "2,3,6", "2,3,4",
                   w=normal(4, 6), v=normal(4, 6), a=normal(4))
    after, _, _ = run(FoldAffine(), before)
    assert ops(after) == {"MatMul": 2, "Relu": 1, "Mul": 1}


@pytest.mark.parametrize("bias", [(6,), (), (1,)])
def test_in_front_of_linears_whose_bias_is_an_addition(bias: tuple[int, ...]) -> None:
    """What BatchNormalization over tokens is at inference, before q, k and v of a transformer."""
    before = graph("p = Mul(x, a) t = Add(p, b) q = MatMul(t, w) r = Add(c, q) i = Transpose<perm = [1, 0]>(v)"
                   " s = MatMul(t, i) u = Add(s, d) o = Relu(u) y = Mul(r, o)", "2,3,6", "2,3,4", w=normal(4, 6),
                   v=normal(6, 4), a=normal(4), b=normal(4), c=normal(*bias), d=normal(6))
    after, _, _ = run(FoldAffine(), before)
    assert ops(after) == {"MatMul": 2, "Add": 2, "Transpose": 1, "Relu": 1, "Mul": 1}


@pytest.mark.parametrize(("body", "reason"), [
    (f"q = Sub(x, k) y = {PADDED}(q, w)", "pads with zeros"),
    (f"q = Mul(x, k) p = {PADDED}(q, w) r = Relu(q) s = ReduceSum(r) y = Add(p, s)", "Relu 'r' reads it, too"),
    (f"p = {PADDED}(x, w) q = Relu(p) r = Mul(q, a) y = Relu(r)", "Relu 'q' stands between"),
    (f"p = {PADDED}(x, w) q = Mul(p, wide) y = Relu(q)", "other axes"),
    (f"p = {PADDED}(x, w) q = Mul(p, a) y = Add(p, q)", "read by others"),
    (f"p = {PADDED}(x, half) q = Mul(p, a) y = Relu(q)", "16 bits"),
    (f"p = {PADDED}(x, w) z = Sub(a, a) q = Div(p, nil) y = Relu(q)", "divides by zero"),
])
def test_declined(body: str, reason: str) -> None:
    weights = {"w": CONV["w"], "half": CONV["w"].astype(np.float16), "a": normal(6, 1, 1), "k": normal(4, 1, 1),
               "wide": normal(6, 5, 5), "nil": np.zeros((6, 1, 1))}
    body = body.replace(" z = Sub(a, a)", "")
    used = {k: w for k, w in weights.items() if f", {k})" in body}
    before = graph(body, "2,6,5,5", **used)
    feeds = {"x": np.abs(normal(2, 4, 5, 5)).astype(np.float32)}
    if "nil" in used:
        from edgec.ir.rules import apply_rules
        from edgec.ir.shapes import infer_shapes
        from edgec.passes.normalize.fold_affine import AffineIntoProducer

        infer_shapes(before)
        report = apply_rules(before, (AffineIntoProducer(),))
        assert not report.modified
    else:
        _, modified, report = run(FoldAffine(), before, feeds=feeds)
        assert not modified
    assert reason in reasons(report)


def test_powers_of_two_keep_16_bits() -> None:
    before = graph(f"p = {PADDED}(x, w) y = Mul(p, a)", "2,6,5,5", w=CONV["w"].astype(np.float16), a=np.array([0.25]))
    after, _, _ = run(FoldAffine(), before)
    assert ops(after) == {"Conv": 1}


def shapes(text: str, weights: dict[str, np.ndarray], **integers: tuple[int, ...]) -> ir.Model:
    """`graph` with integer constants (shapes, axes) as well."""
    inputs, body = text.split(" => ")
    listed = "".join(f", float{list(w.shape)} {k}" for k, w in weights.items())
    listed += "".join(f", int64[{len(v)}] {k}" for k, v in integers.items())
    return model(f"g ({inputs}{listed}) => {body}", **weights, **integers)


@pytest.mark.parametrize("op", ["Mul(j, a)", "Div(j, a)", "Add(a, j)", "Sub(a, j)"])
@pytest.mark.parametrize("constant", [(1, 14, 1, 1), (14, 1, 1), (1,)])
def test_behind_a_concat_of_channels_every_part_takes_its_range(op: str, constant: tuple[int, ...]) -> None:
    before = graph(f"p = {PADDED}(x, w) q = ConvTranspose<group = 2, pads = [1, 1, 1, 1]>(x, v) r = Conv(x, u)"
                   f" j = Concat<axis = -3>(p, q, r) t = {op} y = Relu(t)", "2,14,5,7", "2,4,5,7", **CONV,
                   v=normal(4, 2, 3, 3), u=normal(4, 4, 1, 1), a=normal(*constant))
    # The reference evaluator has no groups in ConvTranspose.
    after, modified, _ = run(FoldAffine(), before, engine="onnxruntime")
    assert modified
    assert ops(after) == {"Conv": 2, "ConvTranspose": 1, "Concat": 1, "Relu": 1}


def test_behind_a_concat_of_pixels_every_part_takes_all() -> None:
    before = graph("p = Conv(x, w, b) q = Conv(x, v) j = Concat<axis = 2>(p, q) t = Mul(j, a) y = Add(t, c)",
                   "2,6,8,5", "2,4,4,5", w=normal(6, 4, 1, 1), b=normal(6), v=normal(6, 4, 1, 1), a=normal(6, 1, 1),
                   c=normal(1, 6, 1, 1))
    after, _, _ = run(FoldAffine(), before)
    assert ops(after) == {"Conv": 2, "Concat": 1}


def test_concats_of_concats_and_transposes() -> None:
    before = graph("p = MatMul(x, w) q = MatMul(x, v) o = Add(q, b) i = Concat<axis = 2>(p, o)"
                   " s = Transpose<perm = [0, 2, 1]>(i) r = MatMul(x, u) k = Transpose<perm = [0, 2, 1]>(r)"
                   " j = Concat<axis = 1>(k, s) t = Mul(j, a) n = Sub(t, c) y = Relu(n)", "2,10,3", "2,3,4",
                   w=normal(4, 3), v=normal(4, 5), b=normal(5), u=normal(4, 2), a=normal(10, 1), c=normal(1, 10, 1))
    after, _, _ = run(FoldAffine(), before)
    assert ops(after) == {"MatMul": 3, "Add": 3, "Concat": 2, "Transpose": 2, "Relu": 1}


def test_batch_norm_behind_a_concat_and_behind_a_transpose() -> None:
    norm = {"g": normal(5), "b": normal(5), "m": normal(5), "v": RNG.random(5) + 0.5}
    before = graph("p = Conv(x, w) q = Conv(x, u) j = Concat<axis = 1>(p, q) y = BatchNormalization(j, g, b, m, v)",
                   "2,5,5,5", w=normal(2, 4, 1, 1), u=normal(3, 4, 1, 1), **norm)
    assert ops(run(FoldAffine(), before)[0]) == {"Conv": 2, "Concat": 1}
    before = graph("p = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(p) y = BatchNormalization(t, g, b, m, v)",
                   "2,5,3", "2,3,4", w=normal(4, 5), **norm)
    assert ops(run(FoldAffine(), before)[0]) == {"MatMul": 1, "Add": 1, "Transpose": 1}


@pytest.mark.parametrize(("body", "integers", "out", "constant"), [
    ("r = Reshape(p, s)", {"s": (0, 6, 35)}, "2,6,35", (6, 1)),
    ("r = Flatten(p)", {}, "2,210", (1,)),
    ("q = Unsqueeze(p, s) r = Transpose<perm = [0, 3, 1, 2, 4]>(q)", {"s": (2,)}, "2,5,6,1,7", (6, 1, 1)),
    ("q = Unsqueeze(p, s) r = Squeeze(q, s)", {"s": (1,)}, "2,6,5,7", (6, 1, 1)),
    ("q = Transpose(p) r = Reshape(q, s)", {"s": (35, 6, 2)}, "35,6,2", (6, 1)),
    ("r = Reshape(p, s)", {"s": (0, 3, 2, 35)}, "2,3,2,35", (3, 1, 1)),
    ("r = Reshape(p, s)", {"s": (0, 3, 2, 35)}, "2,3,2,35", (2, 1)),
    ("q = ReduceMean<keepdims = 0>(p, s) r = Transpose(q)", {"s": (2, -1)}, "6,2", (6, 1)),
    ("q = GlobalAveragePool(p) r = Reshape(q, s)", {"s": (0, -1)}, "2,6", (6,)),
])
def test_behind_moves(body: str, integers: dict[str, tuple[int, ...]], out: str, constant: tuple[int, ...]) -> None:
    before = shapes(f"float[2,4,5,7] x => (float[{out}] y) {{ p = {PADDED}(x, w) {body} t = Mul(r, a) n = Add(t, c)"
                    " y = Relu(n) }", {**CONV, "a": normal(*constant), "c": normal(*constant)}, **integers)
    after, modified, report = run(FoldAffine(), before)
    assert modified, reasons(report)
    assert {"Mul", "Add"}.isdisjoint(ops(after))


def test_behind_a_flattening_constants_in_blocks_are_per_channel() -> None:
    blocks = np.repeat(normal(6), 35)
    before = graph(f"p = {PADDED}(x, w) r = Flatten(p) y = Mul(r, a)", "2,210", "2,4,5,7", **CONV, a=blocks)
    assert ops(run(FoldAffine(), before)[0]) == {"Conv": 1, "Flatten": 1}
    blocks[3] += 1
    before = graph(f"p = {PADDED}(x, w) r = Flatten(p) y = Mul(r, a)", "2,210", "2,4,5,7", **CONV, a=blocks)
    _, modified, report = run(FoldAffine(), before)
    assert not modified
    assert "splits the channels" in reasons(report)


def test_unknown_batch() -> None:
    before = shapes("float[N,4,5,7] x => (float[N,6,35] y) { p = Conv<pads = [1, 1, 1, 1]>(x, w) r = Reshape(p, s)"
                    " y = Mul(r, a) }", {**CONV, "a": normal(6, 1)}, s=(0, 6, 35))
    assert ops(run(FoldAffine(), before)[0]) == {"Conv": 1, "Reshape": 1}


@pytest.mark.parametrize("part", ["q = Mul(x, a)", "q = Div(x, a)", "q = Add(x, a)", "q = Sub(a, x)"])
def test_in_front_of_a_concat_the_reader_takes_it(part: str) -> None:
    before = graph(f"{part} z = Relu(x) j = Concat<axis = 1>(z, q, x) y = Conv<group = 2>(j, w)", "2,6,3,5", "2,4,5,7",
                   w=normal(6, 6, 3, 3), a=normal(4, 1, 1))
    after, modified, _ = run(FoldAffine(), before)
    assert modified
    assert ops(after) == {"Conv": 1, "Concat": 1, "Relu": 1}


def test_in_front_of_a_concat_every_part_its_own() -> None:
    before = graph("p = Mul(x, a) q = Add(x, c) j = Concat<axis = 1>(p, q) y = Gemm<alpha = 0.5, beta = 2.0>(j, w, b)",
                   "3,5", "3,4", w=normal(8, 5), b=normal(5), a=normal(4), c=normal(1))
    assert ops(run(FoldAffine(), before)[0]) == {"Gemm": 1, "Concat": 1}


@pytest.mark.parametrize(("body", "out", "weight"), [
    ("r = Transpose<perm = [0, 2, 3, 1]>(q) y = MatMul(r, w)", "2,5,7,3", (4, 3)),
    ("r = Flatten(q) y = Gemm(r, w)", "2,3", (140, 3)),
    ("r = GlobalAveragePool(q) s = Flatten(r) y = Gemm<transB = 1>(s, w)", "2,3", (3, 4)),
    ("r = Transpose<perm = [0, 2, 1, 3]>(q) s = Transpose<perm = [0, 2, 1, 3]>(r) y = Conv(s, w)", "2,3,3,5",
     (3, 4, 3, 3)),
])
def test_in_front_of_moves(body: str, out: str, weight: tuple[int, ...]) -> None:
    shift = "q = Mul(x, a)" if "MatMul" in body else "p = Mul(x, a) q = Sub(p, c)"
    before = graph(f"{shift} {body}", out, "2,4,5,7", w=normal(*weight), a=normal(4, 1, 1),
                   **({} if "MatMul" in body else {"c": normal(1, 4, 1, 1)}))
    after, modified, report = run(FoldAffine(), before)
    assert modified, reasons(report)
    assert {"Mul", "Sub"}.isdisjoint(ops(after))


@pytest.mark.parametrize("bias", ["", "Add(p, b)", "Add(b, p)", "Add(p, o)", "Add(p, r)"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_matmul_without_bias_gains_one(bias: str, turned: bool) -> None:
    """The shift goes into the constant that is added already; else there is an Add of its own."""
    turn, weight, shape = ("u = Transpose<perm = [1, 0]>(w)", "u", (6, 4)) if turned else ("", "w", (4, 6))
    added = {"b": normal(6), "o": normal(1), "r": normal(3, 6)}
    before = graph(f"{turn} t = Mul(x, a) s = Add(t, c) "
                   + (f"p = MatMul(s, {weight}) y = {bias}" if bias else f"y = MatMul(s, {weight})"), "2,3,6", "2,3,4",
                   w=normal(*shape), a=normal(4), c=normal(4), **{k: v for k, v in added.items() if k in bias[4:]})
    after, modified, _ = run(FoldAffine(), before)
    assert modified
    assert ops(after) == {"MatMul": 1, "Add": 1, **({"Transpose": 1} if turned else {})}


def test_three_linears_of_one_input_take_a_shift_each() -> None:
    """Query, key, value: one has a bias, one has none, one is a graph output."""
    before = model("g (float[2,3,4] x, float[4,4] w, float[4,4] v, float[4,4] u, float[4] b, float[4] c) =>"
                   " (float[2,3,4] y, float[2,3,4] z) { t = Add(x, c) p = MatMul(t, w) q = Add(p, b)"
                   " k = MatMul(t, v) z = MatMul(t, u) y = Mul(q, k) }", w=normal(4, 4), v=normal(4, 4),
                   u=normal(4, 4), b=normal(4), c=normal(4))
    after, modified, _ = run(FoldAffine(), before)
    assert modified
    assert ops(after) == {"MatMul": 3, "Add": 3, "Mul": 1}
    assert [v.name for v in after.graph.outputs] == ["y", "z"]


def test_through_a_rolled_map() -> None:
    """As torch.roll is written: two slices, joined the other way round."""
    before = shapes("float[2,5,7,4] x => (float[2,5,7,3] y) { t = Mul(x, a) s = Add(t, c) l = Slice(s, three, end, one)"
                    " h = Slice(s, zero, three, one) m = Concat<axis = 1>(l, h) y = MatMul(m, w) }",
                    {"a": normal(4), "c": normal(4), "w": normal(4, 3)}, zero=(0,), one=(1,), three=(3,),
                    end=(np.iinfo(np.int64).max,))
    after, modified, report = run(FoldAffine(), before)
    assert modified, reasons(report)
    assert ops(after) == {"Slice": 2, "Concat": 1, "MatMul": 1, "Add": 1}


def test_behind_a_slice_of_pixels() -> None:
    before = shapes(f"float[2,4,5,7] x => (float[2,6,3,7] y) {{ p = {PADDED}(x, w) s = Slice(p, one, four, two)"
                    " t = Mul(s, a) y = Relu(t) }", {**CONV, "a": normal(6, 1, 1)}, one=(1,), four=(4,), two=(2,))
    assert ops(run(FoldAffine(), before)[0]) == {"Conv": 1, "Slice": 1, "Relu": 1}


TURN = "t = Transpose<perm = [1, 0]>(w)"


def test_weights_that_a_matmul_reads_transposed() -> None:
    """As torch.onnx writes a Linear over tokens."""
    before = graph(f"{TURN} p = MatMul(x, t) q = Add(p, b) r = Transpose<perm = [0, 2, 1]>(q) s = Mul(r, a)"
                   " y = Sub(s, c)", "2,6,3", "2,3,4", w=normal(6, 4), b=normal(6), a=normal(6, 1), c=normal(6, 1))
    assert ops(run(FoldAffine(), before)[0]) == {"MatMul": 1, "Add": 1, "Transpose": 2}
    before = graph(f"{TURN} p = Mul(x, a) y = MatMul(p, t)", "2,3,6", "2,3,4", w=normal(6, 4), a=normal(4))
    assert ops(run(FoldAffine(), before)[0]) == {"MatMul": 1, "Transpose": 1}


@pytest.mark.parametrize("body", [
    f"{TURN} p = MatMul(x, t) q = MatMul(p, t) y = Mul(q, a)",
    f"{TURN} p = Mul(x, a) q = MatMul(p, t) y = MatMul(q, t)",
    f"{TURN} u = Transpose(w) p = MatMul(x, t) q = MatMul(p, u) y = Mul(q, a)",
])
def test_transposed_weights_of_two_linears_stay(body: str) -> None:
    _, modified, report = run(FoldAffine(), graph(body, "2,3,4", "2,3,4", w=normal(4, 4), a=normal(4)))
    assert not modified
    assert "shared" in reasons(report)


TWO = f"p = {PADDED}(x, w) q = {PADDED}(x, v)"


@pytest.mark.parametrize(("body", "out", "reason"), [
    (f"{TWO} r = Relu(q) j = Concat<axis = 1>(p, r) y = Mul(j, a)", "2,12,5,5", "Relu 'r' stands between"),
    (f"p = {PADDED}(x, w) j = Concat<axis = 1>(p, x) y = Mul(j, d)", "2,10,5,5", "'x' is an input"),
    (f"{TWO} j = Concat<axis = 1>(p, q) t = Mul(j, a) y = Add(j, t)", "2,12,5,5", "Concat 'j' is read by others"),
    (f"{TWO} j = Concat<axis = 1>(p, q) t = Mul(j, a) k = Concat<axis = 1>(q, p) y = Add(k, t)", "2,12,5,5",
     "Conv 'q' is read by others"),
    (f"p = {PADDED}(x, w) j = Concat<axis = 1>(p, p) y = Mul(j, a)", "2,12,5,5", "is read by others"),
    (f"p = {PADDED}(x, w) q = {PADDED}(x, half) j = Concat<axis = 1>(p, q) y = Mul(j, a)", "2,12,5,5", "16 bits"),
    (f"{TWO} j = Concat<axis = 2>(p, q) y = Mul(j, e)", "2,6,10,5", "other axes"),
    (f"p = {PADDED}(x, w) t = Transpose<perm = [0, 2, 1, 3]>(p) y = Mul(t, f)", "2,5,6,5", "other axes"),
    (f"p = {PADDED}(x, w) r = Flatten(p) y = Mul(r, i)", "2,150", "splits the channels"),
    (f"t = Add(x, k) j = Concat<axis = 1>(t, x) y = {PADDED}(j, u)", "2,6,5,5", "pads with zeros"),
    (f"t = Mul(x, k) r = Relu(x) j = Concat<axis = 2>(t, r) y = {PADDED}(j, w)", "2,6,10,5", "joins it along another"),
    (f"t = Mul(x, k) j = Concat<axis = 1>(t, t) y = {PADDED}(j, u)", "2,6,5,5", "in two ways"),
    (f"t = Mul(x, k) r = Transpose<perm = [0, 2, 1, 3]>(t) y = {PADDED}(r, z)", "2,6,4,5", "other axes"),
    (f"t = Mul(x, k) r = ReduceMean(t, one) y = {PADDED}(r, n)", "2,6,5,5", "mean over that axis"),
    (f"t = Mul(x, k) j = Concat<axis = 1>(t, x) o = {PADDED}(j, u) m = Relu(j) s = ReduceSum(m) y = Add(o, s)",
     "2,6,5,5", "Relu 'm' reads it, too"),
    (f"t = Mul(x, k) o = Slice(t, zero, three, one) y = {PADDED}(o, few)", "2,6,5,5", "takes some of them"),
    (f"t = Mul(x, k) o = Slice(t, zero, three) y = {PADDED}(o, w)", "2,6,5,5", "takes some of them"),
    (f"{TWO} j = Concat<axis = 1>(p, q) o = Slice(j, zero, three, one) y = Mul(o, part)", "2,3,5,5",
     "takes some of them"),
    (f"t = Mul(x, k) o = Slice(t, zero, three, two) j = Concat<axis = 2>(t, o, x) y = {PADDED}(j, w)", "2,6,13,5",
     "joins it along another"),
    ("t = Mul(x, k) j = Concat<axis = 2>(t, t) l = Conv(j, w) m = Relu(j) s = ReduceSum(m) y = Add(l, s)",
     "2,6,8,3", "Relu 'm' reads it, too"),
])
def test_declined_behind_and_in_front_of_moves(body: str, out: str, reason: str) -> None:
    weights = {"w": CONV["w"], "v": normal(6, 4, 3, 3), "half": CONV["w"].astype(np.float16), "u": normal(6, 8, 3, 3),
               "z": normal(6, 5, 3, 3), "n": normal(6, 1, 3, 3), "h": normal(4, 3), "a": normal(12, 1, 1),
               "few": normal(6, 3, 3, 3), "part": normal(3, 1, 1), "d": normal(10, 1, 1), "e": normal(10, 1),
               "f": normal(5, 1, 1), "i": normal(150), "k": normal(4, 1, 1)}
    used = {k: w for k, w in weights.items() if f", {k})" in body}
    integers = {"zero": (0,), "one": (1,), "two": (2,), "three": (3,)}
    axes = {name: value for name, value in integers.items() if f", {name}" in body}
    before = shapes(f"float[2,4,5,5] x => (float[{out}] y) {{ {body} }}", used, **axes)
    _, modified, report = run(FoldAffine(), before)
    assert not modified
    assert reason in reasons(report)


def test_results_that_are_outputs_stay() -> None:
    before = model(f"g (float[2,4,5,5] x, float[6,8,3,3] u, float[4,1,1] k) => (float[2,6,5,5] y, float[2,8,5,5] j)"
                   f" {{ t = Mul(x, k) j = Concat<axis = 1>(t, x) y = {PADDED}(j, u) }}", u=normal(6, 8, 3, 3),
                   k=normal(4, 1, 1))
    _, modified, report = run(FoldAffine(), before)
    assert not modified
    assert "graph output" in reasons(report)


def test_linears_of_another_graph_stay_there() -> None:
    before = model("g (float[2,4,5,5] x, bool c, float[6,4,3,3] w, float[6,1,1] a) => (float[2,6,3,3] y) {"
                   " p = Conv(x, w) y = If(c) <then_branch = t () => (float[2,6,3,3] z) { z = Mul(p, a) },"
                   " else_branch = e () => (float[2,6,3,3] o) { o = Conv(x, w) }> }", **CONV, a=normal(6, 1, 1))
    _, modified, report = run(FoldAffine(), before, feeds={"x": normal(2, 4, 5, 5).astype(np.float32),
                                                           "c": np.array(True)})
    assert not modified
    assert "another graph" in reasons(report)


def test_long_ways_end() -> None:
    ways = " ".join(f"t{i + 1} = Transpose<perm = [0, 1, 3, 2]>(t{i})" for i in range(300))
    before = graph(f"t0 = {PADDED}(x, w) {ways} y = Mul(t300, a)", "2,6,5,5", **CONV, a=normal(6, 1, 1))
    _, modified, report = run(FoldAffine(), before)
    assert not modified
    assert not reasons(report)


Integers = dict[str, tuple[int, ...]]


def moves(rng: np.random.Generator, value: str, shape: tuple[int, ...]) -> tuple[str, str, tuple[int, ...], Integers]:
    """Up to three random operators behind `value`: their text, the last one's name and shape, constants they read."""
    text, integers, new = "", Integers(), list(shape)
    for i in range(int(rng.integers(0, 4))):
        kind, axis = str(rng.choice(["turn", "merge", "split", "one", "mean"])), int(rng.integers(0, len(new) - 1))
        if kind == "turn":
            order = rng.permutation(len(new)).tolist()
            new, op = [new[a] for a in order], f"Transpose<perm = {order}>({value})"
        elif kind == "mean" and len(new) > 2:
            del new[axis]
            integers[f"s{i}"], op = (axis,), f"ReduceMean<keepdims = 0>({value}, s{i})"
        else:
            if kind == "merge" and len(new) > 2:
                new[axis : axis + 2] = [new[axis] * new[axis + 1]]
            elif kind == "split" and new[axis] % 2 == 0:
                new[axis : axis + 1] = [2, new[axis] // 2]
            else:
                new.insert(axis, 1)
            integers[f"s{i}"], op = tuple(new), f"Reshape({value}, s{i})"
        value = f"m{i}"
        text += f"{value} = {op} "
    return text, value, tuple(new), integers


def per_axis(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    axis = int(rng.integers(0, len(shape)))
    return rng.standard_normal([d if a == axis else 1 for a, d in enumerate(shape)])


def sized(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))


@pytest.mark.parametrize("seed", range(60))
def test_random_ways_behind(seed: int) -> None:
    """Whatever is folded, `run` holds the numbers; what is not has a reason."""
    rng = np.random.default_rng(seed)
    text, end, shape, integers = moves(rng, "p", (2, 6, 3, 4))
    before = shapes(f"float[2,4,3,4] x => (float[{sized(shape)}] y) {{ p = {PADDED}(x, w) {text}t = Mul({end}, a)"
                    f" y = Add(t, c) }}", {**CONV, "a": per_axis(rng, shape), "c": per_axis(rng, shape)}, **integers)
    after, modified, report = run(FoldAffine(), before)
    assert bool(reasons(report)) == bool({"Mul", "Add"} & set(ops(after)))
    assert modified == (len([op for op in ("Mul", "Add") if op in ops(after)]) < 2)


@pytest.mark.parametrize("seed", range(60))
def test_random_ways_in_front(seed: int) -> None:
    rng = np.random.default_rng(seed)
    text, end, shape, integers = moves(rng, "q", (2, 4, 3, 4))
    before = shapes(f"float[2,4,3,4] x => (float[{sized((*shape[:-1], 5))}] y) {{ z = Expand(one, zs) q = Mul(x, a)"
                    f" {text}j = Concat<axis = -1>(z, {end}) y = MatMul(j, w) }}",
                    {"one": np.ones(1), "a": per_axis(rng, (2, 4, 3, 4)), "w": rng.standard_normal((2 * shape[-1], 5))},
                    **integers, zs=shape)
    after, modified, report = run(FoldAffine(), before)
    assert modified == ("Mul" not in ops(after)) != bool(reasons(report))


def test_a_bn_that_is_behind_weights_of_16_bits_once_the_sum_is_folded() -> None:
    """Legal graphs are not refused: the stage wants no BatchNormalization right behind a convolution."""
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((4, 3, 3)).astype(np.float16)
    source = model("g (float[1,3,9] x, float[4,3,3] w, float[4,1] c, float[4] s, float[4] t, float[4] m, float[4] v) "
                   "=> (float[1,4,7] y) { a = Conv(x, w) b = Sub(c, a) y = BatchNormalization(b, s, t, m, v) }",
                   w=weights, c=rng.standard_normal((4, 1)), s=rng.standard_normal(4), t=rng.standard_normal(4),
                   m=rng.standard_normal(4), v=rng.uniform(0.5, 1.5, 4))
    after, _, _ = run(FoldAffine(), source)
    assert ops(after) == {"Conv": 1}
