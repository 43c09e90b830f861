"""An index out of range on one of several axes is refused when it is met; it never names another element."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgec.errors import EdgecError
from tests.conformance.node_cases import run_model

CASES = {
    "GatherElements": "g (float[3,4] x, int64[1,1] i) => (float[1,1] y) { y = GatherElements<axis = 1>(x, i) }",
    "GatherND": "g (float[3,4] x, int64[1,2] i) => (float[1] y) { y = GatherND(x, i) }",
    "ReverseSequence": """g (float[3,4] x, int64[3] i) => (float[3,4] y) {
        y = ReverseSequence<batch_axis = 0, time_axis = 1>(x, i) }""",
    "ScatterElements": """g (float[3,4] x, int64[1,1] i, float[1,1] u) => (float[3,4] y) {
        y = ScatterElements<axis = 1>(x, i, u) }""",
    "ScatterND": "g (float[3,4] x, int64[1,2] i, float[1] u) => (float[3,4] y) { y = ScatterND(x, i, u) }",
    "TensorScatter": """g (float[2,3,4,2] x, float[2,3,2,2] u, int64[2] i) => (float[2,3,4,2] y) {
        y = TensorScatter(x, u, i) }""",
}
# name: an index that is in range and two that are not
INDICES = {
    "GatherElements": ([[3]], [[4]], [[-5]]), "GatherND": ([[2, 3]], [[0, 5]], [[0, -5]]),
    "ReverseSequence": ([4, 0, 2], [5, 1, 1], [1, -1, 1]), "ScatterElements": ([[3]], [[4]], [[-5]]),
    "ScatterND": ([[2, 3]], [[0, 5]], [[1, -6]]), "TensorScatter": ([2, 0], [3, 0], [0, -1]),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]> {CASES[name]}')
    feeds = {v.name: np.ones([d.dim_value for d in v.type.tensor_type.shape.dim], np.float32)
             for v in model.graph.input if v.name != "i"}
    right, *wrong = (np.array(index, np.int64) for index in INDICES[name])
    assert run_model(model, {**feeds, "i": right}, {}) is not None
    for index in wrong:
        with pytest.raises(RuntimeError, match=r"E0403 .*out of range"):
            run_model(model, {**feeds, "i": index}, {})


def test_a_window_that_does_not_fit_its_frames_is_declined() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 24]> g (float[1,40,1] x) => (float[1,N,9,2] y) {'
        " s = Constant<value = int64 {3}>() n = Constant<value = int64 {16}>()"
        " w = Constant<value = float[8] {1, 1, 1, 1, 1, 1, 1, 1}>() y = STFT(x, s, w, n) }")
    with pytest.raises(EdgecError) as declined:
        run_model(model, {"x": np.zeros((1, 40, 1), np.float32)}, {})
    assert declined.value.code == "E0301"
