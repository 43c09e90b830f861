from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.ir import verify
from edgec.ir.model import walk
from edgec.passes.normalize.normalize_linear import NormalizeLinear
from tests.passes.harness import model, ops, reasons, run

RNG = np.random.default_rng(0)


def test_matmul_gets_out_in_weight() -> None:
    graph = model("g (float[N,3,4] x, float[4,5] w) => (float[N,3,5] y) { y = MatMul(x, w)"
                  " }", w=RNG.standard_normal((4, 5)))
    after, modified, _ = run(NormalizeLinear(), graph)
    assert modified
    assert ops(after) == {"Transpose": 1, "MatMul": 1}
    assert [tuple(v.shape or ()) for v in after.graph.initializers.values()] == [(5, 4)]
    assert verify.normalized(after) == []


def test_canonical_forms_stay() -> None:
    graph = model("g (float[N,4] x, float[5,4] w, float[5] b) => (float[N,5] y, float[N,5] z) {"
                  " t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t) z = Gemm<transB = 1>(x, w, b) }",
                  w=RNG.standard_normal((5, 4)), b=RNG.standard_normal(5))
    _, modified, _ = run(NormalizeLinear(), graph)
    assert not modified


def test_shared_weight_is_transposed_once() -> None:
    graph = model("g (float[N,4] x, float[4,4] w) => (float[N,4] y, float[N,4] z) {"
                  " y = MatMul(x, w) t = MatMul(y, w) z = Gemm(t, w) }", w=RNG.standard_normal((4, 4)))
    after, _, _ = run(NormalizeLinear(), graph)
    assert len(after.graph.initializers) == 1
    assert verify.normalized(after) == []


def test_weight_others_read_keeps_its_layout_for_them() -> None:
    graph = model("g (float[N,4] x, int64[2] i, float[4,5] w) => (float[N,5] y, float[2,5] z) {"
                  " y = MatMul(x, w) z = Gather(w, i) }", w=RNG.standard_normal((4, 5)))
    after, _, _ = run(NormalizeLinear(), graph)
    assert {tuple(v.shape or ()) for v in after.graph.initializers.values()} == {(5, 4), (4, 5)}


def test_tied_embedding_stays_one_tensor() -> None:
    graph = model("g (int64[1,T] i, float[6,4] w) => (float[1,T,6] y) {"
                  " e = Gather(w, i) t = Transpose<perm = [1, 0]>(w) y = MatMul(e, t) }", w=RNG.standard_normal((6, 4)))
    after, modified, _ = run(NormalizeLinear(), graph)
    assert not modified
    assert len(after.graph.initializers) == 1


@pytest.mark.parametrize("attributes", ["", "alpha = 0.5", "beta = 3.0", "transA = 1", "transB = 1, alpha = 2.0",
                                        "transA = 1, alpha = 0.5, beta = 2.0", "beta = 0.0"])
@pytest.mark.parametrize("bias", [None, (), (1,), (5,), (1, 5), (3, 1), (3, 5)])
def test_gemm(attributes: str, bias: tuple[int, ...] | None) -> None:
    a = "float[4,3] x" if "transA" in attributes else "float[3,4] x"
    w = RNG.standard_normal((5, 4) if "transB" in attributes else (4, 5))
    c = {} if bias is None else {"c": RNG.standard_normal(bias)}
    signature = "" if bias is None else f", float{list(bias) if bias else ''} c"
    graph = model(f"g ({a}, float{list(w.shape)} w{signature}) => (float[3,5] y) {{"
                  f" y = Gemm<{attributes or 'alpha = 1.0'}>(x, w{', c' if c else ''}) }}", w=w, **c)
    after, _, _ = run(NormalizeLinear(), graph)
    assert verify.normalized(after) == []
    gemm = next(n for n in walk(after) if n.op_type == "Gemm")
    if len(gemm.inputs) == 3 and gemm.inputs[2] is not None:
        assert tuple(gemm.inputs[2].shape or ()) == (5,)


def test_one_number_per_row_is_no_bias_of_a_square() -> None:
    graph = model("g (float[5,4] x, float[4,5] w, float[5,1] c) => (float[5,5] y) { y = Gemm(x, w, c) }",
                  w=RNG.standard_normal((4, 5)), c=RNG.standard_normal((5, 1)))
    after, _, _ = run(NormalizeLinear(), graph)
    assert ops(after) == {"Gemm": 1, "Add": 1}


def test_weights_are_not_read() -> None:
    def refuse() -> ir.TensorProtocol:
        raise AssertionError("the weight was read")

    graph = model("g (float[N,1024] x, float[1024,512] w) => (float[N,512] y) { y = MatMul(x, w)"
                  " }", w=np.zeros((1024, 512)))
    graph.graph.initializers["w"].const_value = ir.LazyTensor(
        refuse, dtype=ir.DataType.FLOAT, shape=ir.Shape((1024, 512)), name="w")
    from edgec.ir.passes import Context

    after, modified = NormalizeLinear().call(graph, Context())
    assert modified
    with pytest.raises(AssertionError, match="was read"):
        after.graph.initializers["w.T"].const_value.numpy()  # type: ignore[union-attr]


def test_dynamic_and_batched_products_stay() -> None:
    graph = model("g (float[2,3,4] x, float[2,4,5] u, float[2,4,5] w) => (float[2,3,5] y, float[2,3,5] z) {"
                  " y = MatMul(x, u) z = MatMul(x, w) }", w=RNG.standard_normal((2, 4, 5)))
    _, modified, _ = run(NormalizeLinear(), graph)
    assert not modified


def test_vector_on_the_left_is_declined() -> None:
    graph = model("g (float[4] x, float[4,5] w) => (float[5] y) { y = MatMul(x, w) }", w=RNG.standard_normal((4, 5)))
    _, modified, report = run(NormalizeLinear(), graph)
    assert not modified
    assert "vector" in reasons(report)
    assert verify.normalized(graph) == []


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_a_factor_of_no_bias_goes(beta: float) -> None:
    graph = model(f"g (float[2,4] x, float[5,4] w) => (float[2,5] y) {{ y = Gemm<transB = 1, beta = {beta}>(x, w) }}",
                  w=RNG.standard_normal((5, 4)))
    after, modified, _ = run(NormalizeLinear(), graph)
    assert modified
    assert verify.normalized(after) == []
