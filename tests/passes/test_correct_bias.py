"""The pass CorrectBias: rounding shifts the mean of a layer's result, and the shift goes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.passes.compress.correct_bias import CorrectBias
from edgec.passes.compress.quantize_static import QuantizeStatic
from tests.passes.harness import Array, evaluate, model
from tests.passes.static_graphs import Fed, quantized

CONV = ("g (float[1,4,6,5] x, float[7,4,3,3] w{more}) => (float[1,7,6,5] y) {{ y = Conv<pads=[1,1,1,1]>(x, w{bias}) }}")
MATMUL = ("g (float[2,9,16] x, float[7,16] w, float[7] b) => (float[2,9,7] y) "
          "{ t = Transpose<perm=[1,0]>(w) m = MatMul(x, t) y = Add(m, b) }")


def coarse(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Weights of one sign that mostly round the same way: half a step above a grid whose largest is 127 steps."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(1, 8, shape) + 0.45
    codes.reshape(len(codes), -1)[:, 0] = 127
    return codes / 127


def samples(shape: tuple[int, ...], count: int = 6, seed: int = 1) -> Fed:
    rng = np.random.default_rng(seed)
    return Fed([{"x": rng.uniform(0.5, 1.5, shape).astype(np.float32)} for _ in range(count)])


def shift(made: ir.Model, source: ir.Model, fed: Fed, axis: int) -> Array:
    """Mean per channel of what the rounded graph makes too much."""
    errors = [evaluate(made, f, "onnxruntime")["y"].astype(np.float64) - evaluate(source, f)["y"] for f in fed.feeds]
    axes = tuple(a for a in range(errors[0].ndim + 1) if a != axis + 1)
    return np.asarray(np.mean(errors, axis=axes))


@pytest.mark.parametrize("kind", ["bias", "no bias", "matmul"])
def test_the_mean_of_the_error_goes(kind: str) -> None:
    def source() -> ir.Model:
        if kind == "matmul":
            return model(MATMUL, w=coarse((7, 16)), b=np.ones(7))
        bias = {"b": np.ones(7)} if kind == "bias" else {}
        text = CONV.format(more=", float[7] b" if bias else "", bias=", b" if bias else "")
        return model(text, w=coarse((7, 4, 3, 3)), **bias)

    shape, axis = ((2, 9, 16), 2) if kind == "matmul" else ((1, 4, 6, 5), 1)
    fed = samples(shape)
    plain, static = quantized(source(), fed)
    corrected, _ = quantized(source(), fed, passes=(CorrectBias(), QuantizeStatic()), correct=True)
    step = static.report["layers"][-1]["scale"]
    before, after = (np.abs(shift(m, source(), fed, axis)) for m in (plain, corrected))
    assert before.max() > 0.5 * step
    # What is left is the rounding of the result itself, whose mean is not zero on so few values.
    assert after.max() < 0.25 * before.max()
    assert after.max() < 0.15 * step
    # And on samples that were not looked at.
    fresh = samples(shape, seed=9)
    before, after = (np.abs(shift(m, source(), fresh, axis)) for m in (plain, corrected))
    assert after.max() < 0.4 * before.max()


def test_not_asked_for() -> None:
    made, _ = quantized(model(CONV.format(more="", bias=""), w=coarse((7, 4, 3, 3))), samples((1, 4, 6, 5)))
    (conv,) = [n for n in made.graph if n.op_type == "Conv"]
    assert len(conv.inputs) == 2


def test_a_vector_is_corrected_channel_by_channel() -> None:
    text = ("g (float[16] x, float[7,16] w, float[7] b) => (float[7] y) "
            "{ t = Transpose<perm=[1,0]>(w) m = MatMul(x, t) y = Add(m, b) }")
    fed = samples((16,))
    corrected, _ = quantized(model(text, w=coarse((7, 16)), b=np.ones(7)), fed, passes=(CorrectBias(),), correct=True)
    bias = next(v for k, v in corrected.graph.initializers.items() if k.endswith(".corrected"))
    assert bias.const_value is not None
    assert len(set(bias.const_value.numpy().tolist())) == 7
