"""Graphs of opset 24 spelled in older opsets, run by onnxruntime before and after."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.ir.model import walk
from edgec.ir.opset import misfit, restate
from tests.passes.harness import Array, evaluate, model

X = np.random.default_rng(3).standard_normal((2, 4, 6, 6)).astype(np.float32)
SAME = {
    "reduce": "y = ReduceMax<keepdims = 1>(x, axes)",
    "reduce_all": "y = ReduceMean<keepdims = 1>(x)",
    "split": "y, z = Split<axis = 1, num_outputs = 2>(x)",
    "norm": "y = LayerNormalization<axis = -1>(x, scale)",
    "cast": "h = Cast<to = 10, saturate = 1>(x) y = Cast<to = 1>(h)",
    "grid": 'y = GridSample<mode = "cubic">(x, grid)',
}


def graph(body: str) -> ir.Model:
    return model(
        "g (float[2,4,6,6] x, int64[2] axes, float[6] scale, float[2,5,5,2] grid) => (float y) {" + body + "}",
        axes=[2, 3], scale=np.arange(6), grid=np.linspace(-1, 1, 100).reshape(2, 5, 5, 2))


@pytest.mark.parametrize("version", [17, 18, 19, 20, 21, 22, 23])
@pytest.mark.parametrize("name", SAME)
def test_the_same_numbers(name: str, version: int) -> None:
    made = graph(SAME[name])
    wanted = evaluate(made, {"x": X}, "onnxruntime")["y"]
    restate(made, version)
    assert made.graph.opset_imports[""] == version
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto)
    found: Array = evaluate(made, {"x": X}, "onnxruntime")["y"]
    assert np.allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("body", "version", "reason"), [
    ("y = Gelu(x)", 19, "Gelu came with opset 20"),
    ("y = Swish(x)", 23, "Swish came with opset 24"),
    ("y = GroupNormalization<num_groups = 2>(x, c, c)", 20, "one number per group before opset 21"),
    ("a = ReduceSum<keepdims = 0>(x) i = Cast<to = 7>(a) k = Reshape(i, one) y = ReduceMax<keepdims = 1>(x, k)", 17,
     "its axes were constant before opset 18"),
    ("k = Constant<value = int64[0] {}>() y = ReduceMax<noop_with_empty_axes = 1>(x, k)", 17, "where none were given"),
    ("y, z = Split<axis = 1, num_outputs = 2>(o)", 17, "of one size before opset 18"),
    ('y = Resize<antialias = 1, mode = "linear">(x, , , sizes)', 17, "does not have its attribute antialias"),
    ("y = DequantizeLinear<axis = 1, block_size = 2>(q, s)", 20, "does not have its attribute block_size"),
])
def test_what_has_no_older_spelling_is_named(body: str, version: int, reason: str) -> None:
    made = model(
        "g (float[2,4,6,6] x, float[2,5] o, float[4] c, int64[1] one, int64[4] sizes, uint8[2,4] q, float[2,2] s) =>"
        " (float y) {" + body + "}", c=np.ones(4), one=[1], sizes=[2, 4, 3, 3], q=np.ones((2, 4)), s=np.ones((2, 2)))
    before = [n.op_type for n in walk(made)]
    with pytest.raises(EdgecError) as raised:
        restate(made, version)
    assert raised.value.code == "E0301"
    assert reason in raised.value.found
    assert [n.op_type for n in walk(made)] == before
    assert made.graph.opset_imports[""] == 24


def test_every_change_of_a_meaning_has_a_step_down() -> None:
    """An operator that changed between the oldest opset and 24 is spelled in the older one, or refused, never kept."""
    from edgec.importers.onnx_opset import STEPS
    from edgec.ir import opset

    assert {key for key in STEPS if key[1] > opset.OLDEST} == set(opset._STEPS)


def test_other_domains_have_versions_of_their_own() -> None:
    node = ir.node("MatMulNBits", [None], domain="com.microsoft")
    assert misfit(node, 17) is None
