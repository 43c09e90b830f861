from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.passes.normalize.merge_trunks import MergeBranchesOfOneInput, MergeTrunks
from tests.passes.harness import model, ops, reasons, run

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def graph(body: str, out: str, x: str = "2,3,13,11", integers: dict[str, tuple[int, ...]] | None = None,
          **weights: np.ndarray) -> ir.Model:
    listed = "".join(f", float{list(w.shape)} {k}" for k, w in weights.items())
    listed += "".join(f", int64[{len(v)}] {k}" for k, v in (integers or {}).items())
    return model(f"g (float[{x}] x{listed}) => (float[{out}] y) {{ {body} }}", **weights, **(integers or {}))


def trunk(name: str, heads: str) -> str:
    """Two convolutions with activations and pools, and a head."""
    return (f"{name}0 = Conv<pads = [1, 1, 1, 1]>(x, {name}w) {name}1 = Relu({name}0)"
            f" {name}2 = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>({name}1)"
            f" {name}3 = Conv({name}2, {name}v, {name}b) {name}4 = LeakyRelu<alpha = 0.3>({name}3)"
            + heads.replace("#", name))


def weights(name: str, head: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {f"{name}w": normal(4, 3, 3, 3), f"{name}v": normal(6, 4, 3, 3), f"{name}b": normal(6),
            f"{name}h": normal(*head), f"{name}c": normal(head[0])}


CONV_HEAD = " #5 = Conv(#4, #h, #c) #6 = Relu(#5) #7 = Flatten(#6)"
DENSE_HEAD = " #5 = Flatten(#4) #6 = Gemm<transB = 1>(#5, #h, #c) #7 = Relu(#6)"


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_trunks_with_heads(dense: bool, count: int) -> None:
    """Heads as convolutions of the whole map, or as linears of the flattened one."""
    names, head = "pqr"[:count], (5, 72) if dense else (5, 6, 4, 3)
    body = " ".join(trunk(n, DENSE_HEAD if dense else CONV_HEAD) for n in names)
    before = graph(f"{body} y = Concat<axis = 1>({', '.join(f'{n}7' for n in names)})", f"2,{5 * count}",
                   **{k: v for n in names for k, v in weights(n, head).items()})
    after, modified, report = run(MergeTrunks(), before)
    assert modified, reasons(report)
    assert ops(after) == {"Conv": 3, "Relu": 2, "MaxPool": 1, "LeakyRelu": 1, "Reshape": 1}
    groups = [n.attributes["group"].as_int() for n in after.graph if n.op_type == "Conv"]
    assert groups == [1, count, count]


def test_dense_and_full_convolution_are_the_same() -> None:
    """The twin of the test above: one set of weights, written both ways, gives one graph."""
    shared = {n: weights(n, (5, 6, 4, 3)) for n in "pq"}
    results = []
    for dense in (False, True):
        used = {k: v.reshape(5, -1) if dense and k.endswith("h") else v for n in "pq" for k, v in shared[n].items()}
        body = " ".join(trunk(n, DENSE_HEAD if dense else CONV_HEAD) for n in "pq")
        after, _, _ = run(MergeTrunks(), graph(f"{body} y = Concat<axis = 1>(p7, q7)", "2,10", **used))
        results.append([v.const_value.numpy() for n in after.graph if n.op_type == "Conv" for v in n.inputs[1:]
                        if v is not None and v.const_value is not None])
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one, other)


def test_siblings_of_unequal_width_become_one_wider_convolution() -> None:
    before = graph("p = Conv<strides = [2, 2]>(x, w) q = Conv<strides = [2, 2]>(x, v, b) r = Clip(p, l, h)"
                   " s = Clip(q, l, h) y = Concat<axis = -3>(r, s)", "2,12,6,5", w=normal(5, 3, 3, 3),
                   v=normal(7, 3, 3, 3), b=normal(7), l=np.array(-0.5), h=np.array(0.5))
    after, modified, _ = run(MergeTrunks(), before)
    assert modified
    assert ops(after) == {"Conv": 1, "Clip": 1}


def test_depthwise_branches_keep_their_groups() -> None:
    before = graph("p = Conv(x, w) q = Conv(x, v) r = Conv<group = 4>(p, s) t = Conv<group = 4>(q, u)"
                   " y = Concat<axis = 1>(r, t)", "2,8,11,9", w=normal(4, 3, 1, 1), v=normal(4, 3, 1, 1),
                   s=normal(4, 1, 3, 3), u=normal(4, 1, 3, 3))
    after, _, _ = run(MergeTrunks(), before)
    assert [n.attributes["group"].as_int() for n in after.graph] == [1, 8]


def test_a_batch_that_varies() -> None:
    before = graph("p = Conv(x, w) q = Conv(x, v) f = Flatten(p) g = Flatten(q) h = Gemm<transB = 1>(f, s)"
                   " i = Gemm<transB = 1>(g, u) y = Concat<axis = 1>(h, i)", "N,6", "N,3,3,4", w=normal(4, 3, 2, 2),
                   v=normal(4, 3, 2, 2), s=normal(3, 24), u=normal(3, 24))
    after, _, _ = run(MergeTrunks(), before)
    assert ops(after) == {"Conv": 2, "Reshape": 1}


TWO = "p = Conv(x, w) q = Conv(x, v)"


@pytest.mark.parametrize(("body", "out", "reason"), [
    (f"{TWO} r = Relu(p) s = Sigmoid(q) t = Tanh(r) u = Tanh(s) y = Concat<axis = 1>(t, u)", "2,8,11,9", "differ"),
    (f"{TWO} c = Concat<axis = 1>(p, q) m = ReduceSum(p) y = Add(c, m)", "2,8,11,9", ""),
    (f"{TWO} r = Relu(p) s = Relu(q) c = Concat<axis = 1>(r, s) m = ReduceSum(p) y = Add(c, m)", "2,8,11,9",
     "read by others"),
    ("p = Conv(x, w) q = Conv<strides = [2, 2], pads = [5, 4, 6, 5]>(x, v) y = Concat<axis = 1>(p, q)", "2,8,11,9",
     "different pixels"),
    ("p = Conv(x, w) q = Conv(x, w) y = Concat<axis = 1>(p, q)", "2,8,11,9", "of its own"),
    (f"{TWO} r = Conv(p, a) s = Conv(q, b) y = Concat<axis = 1>(r, s)", "2,11,11,9", "different channels"),
    ("p = Relu(x) q = Relu(x) y = Concat<axis = 1>(p, q)", "2,6,13,11", "no convolution"),
    ("p = Conv<group = 3>(x, d) q = Conv<group = 3>(x, e) y = Concat<axis = 1>(p, q)", "2,6,11,9", "in groups"),
    (f"{TWO} y = Concat<axis = 2>(p, q)", "2,4,22,9", ""),
    (f"{TWO} r = Clip(p, l) s = Clip(q, h) y = Concat<axis = 1>(r, s)", "2,8,11,9", ""),
    ("r = Relu(x) p = Conv(x, w) q = Conv(r, v) y = Concat<axis = 1>(p, q)", "2,8,11,9", ""),
])
def test_declined(body: str, out: str, reason: str) -> None:
    known = {"w": normal(4, 3, 3, 3), "v": normal(4, 3, 3, 3), "a": normal(5, 4, 1, 1), "b": normal(6, 4, 1, 1),
             "d": normal(3, 1, 3, 3), "e": normal(3, 1, 3, 3), "l": np.array(-0.5), "h": np.array(0.5)}
    before = graph(body, out, **{k: w for k, w in known.items() if f", {k})" in body})
    _, modified, report = run(MergeTrunks(), before)
    assert not modified
    assert reason in reasons(report)


def test_a_bn_that_was_not_folded_keeps_its_branches() -> None:
    before = graph("a = Conv(x, v) b = Conv(x, w) c = Concat<axis = 1>(a, b) y = BatchNormalization(c, s, t, m, r)",
                   "2,9,11,9", v=normal(4, 3, 3, 3), w=normal(5, 3, 3, 3), s=normal(9), t=normal(9), m=normal(9),
                   r=np.abs(normal(9)) + 1)
    after, _, report = run(MergeTrunks(), before)
    assert ops(after)["Conv"] == 2
    assert "a BatchNormalization reads it" in reasons(report)


def test_a_concat_of_scalars_is_left_to_its_errors() -> None:
    scalars = ir.Value(name="a", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
    node = ir.node("Concat", [scalars, scalars], {"axis": 0}, name="joined")
    node.outputs[0].shape = ir.Shape([])
    assert MergeBranchesOfOneInput().match(node) is None
