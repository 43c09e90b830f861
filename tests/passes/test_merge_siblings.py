from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from edgec.ir.model import const_tensor, walk
from edgec.ir.passes import Context
from edgec.native.lower_math import ACT
from edgec.native.plan import KERNELS
from edgec.passes.lower.merge_siblings import ACTIVATIONS, MOST, MergeSiblings
from tests.passes.harness import model, ops, reasons, run

RNG = np.random.default_rng(0)


def linear(n: int, bias: str = "") -> str:
    """y{n}, from weight w{n} and, when given, the vector `bias`."""
    product = f"t{n} = Transpose<perm = [1, 0]>(w{n})"
    return product + (f" m{n} = MatMul(x, t{n}) y{n} = Add({bias}, m{n})" if bias else f" y{n} = MatMul(x, t{n})")


def graph(body: str, widths: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], x: str = "2,3,8") -> ir.Model:
    """widths: the outputs and their sizes; shapes: the weights."""
    lead = x[: x.rindex(",")]
    outs = ", ".join(f"float[{lead},{n}] {name}" for name, n in widths.items())
    listed = "".join(f", float{list(s)} {k}" for k, s in shapes.items())
    weights = {k: RNG.standard_normal(s) for k, s in shapes.items()}
    return model(f"g (float[{x}] x{listed}) => ({outs}) {{ {body} }}", **weights)


def sizes_of(after: ir.Model) -> list[int]:
    """The sizes of the only Split."""
    split = next(n for n in walk(after) if n.op_type == "Split")
    sizes = const_tensor(split.inputs[1])
    assert sizes is not None
    return [int(i) for i in sizes.numpy()]


def test_what_the_pass_knows_of_the_kernels() -> None:
    assert KERNELS["linear_split"].n_out == MOST
    assert set(ACTIVATIONS) == set(ACT)


def test_three_of_one_input() -> None:
    before = graph(" ".join(linear(i) for i in range(3)), {"y0": 48, "y1": 16, "y2": 16},
                   {"w0": (48, 8), "w1": (16, 8), "w2": (16, 8)})
    after, modified, report = run(MergeSiblings(), before)
    assert modified
    assert ops(after) == {"Concat": 1, "Transpose": 1, "MatMul": 1, "Split": 1}
    assert sizes_of(after) == [48, 16, 16]
    assert len(report.fired) == 1


def test_biases_are_joined() -> None:
    before = graph(f"{linear(0, 'b0')} {linear(1, 'b1')}", {"y0": 32, "y1": 16},
                   {"w0": (32, 8), "w1": (16, 8), "b0": (32,), "b1": (16,)})
    after, _, _ = run(MergeSiblings(), before)
    assert ops(after) == {"Concat": 2, "Transpose": 1, "MatMul": 1, "Add": 1, "Split": 1}


@pytest.mark.parametrize("bias", [False, True])
def test_gemms(bias: bool) -> None:
    b = (", b0", ", b1") if bias else ("", "")
    body = f"y0 = Gemm<transB = 1>(x, w0{b[0]}) y1 = Gemm<transB = 1>(x, w1{b[1]})"
    before = graph(body, {"y0": 16, "y1": 5},
                   {"w0": (16, 8), "w1": (5, 8), **({"b0": (16,), "b1": (5,)} if bias else {})}, "4,8")
    after, _, _ = run(MergeSiblings(), before)
    assert ops(after) == {"Concat": 1 + bias, "Gemm": 1, "Split": 1}


def test_a_part_that_ends_inside_a_panel_goes_last() -> None:
    before = graph(" ".join(linear(i) for i in range(4)), {"y0": 7, "y1": 16, "y2": 32, "y3": 5},
                   {"w0": (7, 8), "w1": (16, 8), "w2": (32, 8), "w3": (5, 8)})
    after, _, report = run(MergeSiblings(), before)
    assert sizes_of(after) == [16, 32, 7]
    assert ops(after)["MatMul"] == 2
    assert "its 5 rows end inside a panel" in reasons(report)


def test_six_are_four_and_two() -> None:
    before = graph(" ".join(linear(i) for i in range(6)), {f"y{i}": 16 for i in range(6)},
                   {f"w{i}": (16, 8) for i in range(6)})
    after, _, report = run(MergeSiblings(), before)
    assert ops(after) == {"Concat": 2, "Transpose": 2, "MatMul": 2, "Split": 2}
    assert len(report.fired) == 2


def test_a_gate_is_merged_with_its_partner() -> None:
    body = f"{linear(0)} a = Swish(y0) {linear(1)} z = Mul(a, y1)"
    after, _, _ = run(MergeSiblings(), graph(body, {"z": 16}, {"w0": (16, 8), "w1": (16, 8)}), engine="onnxruntime")
    assert ops(after)["Split"] == 1


@pytest.mark.parametrize("block", [4, 32])
def test_weights_in_few_bits_stay_apart(block: int) -> None:
    """Joined they would be dense; the plan joins the calls (native/lower_fuse.py). Blocks of 4 are dense anyway."""
    parts, listed, weights = [], "", {}
    for i, n in enumerate((32, 16)):
        parts.append(f"d{i} = DequantizeLinear<axis = 1, block_size = {block}>(c{i}, s{i}) "
                     f"t{i} = Transpose<perm = [1, 0]>(d{i}) y{i} = MatMul(x, t{i})")
        listed += f", int8[{n},64] c{i}, float[{n},{64 // block}] s{i}"
        weights |= {f"c{i}": RNG.integers(-8, 8, (n, 64)), f"s{i}": RNG.uniform(0.1, 1, (n, 64 // block))}
    before = model(f"g (float[2,3,64] x{listed}) => (float[2,3,32] y0, float[2,3,16] y1) {{ {' '.join(parts)} }}",
                   **weights)
    _, modified, report = run(MergeSiblings(), before)
    assert modified == (block == 4)
    assert ("few bits" in reasons(report)) == (block == 32)


@pytest.mark.parametrize("vector", [1, 8, 9])
def test_palettes_stay_apart(vector: int) -> None:
    """But for those of longer vectors than the kernels read."""
    parts, listed, weights = [], "", {}
    for i, n in enumerate((32, 16)):
        count = (63 + vector) // vector
        width = (7 + count) // 8
        parts.append(f"d{i} = edgec.PaletteToDense<bits = 2, columns = 64, vector = {vector}>(p{i}, l{i}) "
                     f"t{i} = Transpose<perm = [1, 0]>(d{i}) y{i} = MatMul(x, t{i})")
        table = (1, 4, vector) if vector > 1 else (1, 4)
        listed += f", uint8[2,{n},{width}] p{i}, float16[{','.join(map(str, table))}] l{i}"
        weights |= {f"p{i}": RNG.integers(0, 256, (2, n, width)).astype(np.uint8),
                    f"l{i}": RNG.uniform(0.1, 1, table).astype(np.float16)}
    before = model(f"g (float[2,3,64] x{listed}) => (float[2,3,32] y0, float[2,3,16] y1) {{ {' '.join(parts)} }}",
                   domains={"edgec": 1}, **weights)
    _, modified, report = run(MergeSiblings(), before, engine="onnxruntime")
    assert modified == (vector == 9)
    assert ("few bits" in reasons(report)) == (vector < 9)


def test_weights_are_not_read() -> None:
    def never() -> ir.TensorProtocol:
        raise AssertionError("a pass read a weight")

    made = graph(" ".join(linear(i) for i in range(2)), {"y0": 16, "y1": 16}, {"w0": (16, 8), "w1": (16, 8)})
    for name in ("w0", "w1"):
        made.graph.initializers[name].const_value = ir.LazyTensor(
            never, dtype=ir.DataType.FLOAT, shape=ir.Shape((16, 8)), name=name)
    after, modified = MergeSiblings().call(made, Context())
    assert modified
    assert ops(after)["Split"] == 1


@pytest.mark.parametrize(("names", "common"), [
    ((": LM/layer.0: Layer/q: Linear", ": LM/layer.0: Layer/k: Linear"), ": LM/layer.0: Layer"),
    ((": LM/a.0: Layer/a.0.q: Linear", ": LM/a.0: Layer/a.0.k: Linear"), ": LM/a.0: Layer/a.0"),
    (("model.layers.1.attn.q_proj", "model.layers.1.attn.k_proj"), "model.layers.1.attn"),
    (("model.kv", "model.kvq"), "model"), (("model.attn", "model.attn"), "model.attn"), (("q", "k"), ""),
])
def test_layers_are_named_after_the_common_module(names: tuple[str, str], common: str) -> None:
    made = graph(" ".join(linear(i) for i in range(2)), {"y0": 16, "y1": 16}, {"w0": (16, 8), "w1": (16, 8)})
    for node in made.graph:
        if node.op_type == "MatMul":
            node.metadata_props["namespace"] = names[node.outputs[0].name == "y1"]
    after, _, _ = run(MergeSiblings(), made)
    assert {n.metadata_props["namespace"] for n in walk(after)} == {common}


PAIR = {"w0": (16, 8), "w1": (16, 8)}


@pytest.mark.parametrize(("body", "outputs", "shapes", "reason"), [
    (f"{linear(0)} t1 = Transpose<perm = [1, 0]>(w0) y1 = MatMul(x, t1)", {"y0": 16, "y1": 16}, {"w0": (16, 8)},
     "its weight is shared"),
    (f"{linear(0)} y1 = MatMul(x, t0)", {"y0": 16, "y1": 16}, {"w0": (16, 8)}, "its weight is shared"),
    (f"{linear(0, 'b')} {linear(1)}", {"y0": 16, "y1": 16}, {**PAIR, "b": (16,)}, "no sibling is left"),
    (f"{linear(0, 'b')} {linear(1)}", {"y0": 16, "y1": 16}, {**PAIR, "b": (1,)}, "no constant vector of 16"),
    (f"{linear(0)} {linear(1)} z = Relu(y0)", {"z": 16, "y1": 16}, PAIR, "does Relu on the way out"),
    (f"{linear(0)} {linear(1)} z = Add(x, y0)", {"z": 8, "y1": 16}, {"w0": (8, 8), "w1": (16, 8)}, "adds on the way"),
    (f"{linear(0)} {linear(1)}", {"y0": 7, "y1": 9}, {"w0": (7, 8), "w1": (9, 8)}, "its 9 rows end inside a panel"),
    (f"{linear(0)} {linear(1)}", {"y0": 16}, PAIR, "nobody reads it"),
])
def test_declined(
    body: str, outputs: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], reason: str
) -> None:
    after, modified, report = run(MergeSiblings(), graph(body, outputs, shapes))
    assert not modified
    assert "Split" not in ops(after)
    assert reason in reasons(report)


@pytest.mark.parametrize("body", [
    f"{linear(0)} r = Relu(x) t1 = Transpose<perm = [1, 0]>(w1) y1 = MatMul(r, t1)",
    f"{linear(0)} u = Sigmoid(w1) t1 = Transpose<perm = [1, 0]>(u) y1 = MatMul(x, t1)",
    "y0 = MatMul(x, w2) y1 = MatMul(x, w3)",
])
def test_other_pairs_are_no_siblings(body: str) -> None:
    shapes = {k: s for k, s in {**PAIR, "w2": (8, 16), "w3": (8, 16)}.items() if k in body}
    _, modified, _ = run(MergeSiblings(), graph(body, {"y0": 16, "y1": 16}, shapes))
    assert not modified


def test_types_differ() -> None:
    made = model("g (float[2,8] x, float[16,8] w0, double[16,8] w1) => (float[2,16] y0, double[2,16] y1) {"
                 " y0 = Gemm<transB = 1>(x, w0) z = Cast<to = 11>(x) y1 = Gemm<transB = 1>(z, w1) }",
                 w0=RNG.standard_normal((16, 8)), w1=RNG.standard_normal((16, 8)))
    _, modified, _ = run(MergeSiblings(), made)
    assert not modified
