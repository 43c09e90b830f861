"""Graphs whose parts do not fit together are refused with a reason, not with an exception of Python's nor with a bundle
that the runtime refuses. The cases were found by tests/fuzz/importers.py, kind compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.errors import EdgecError
from edgec.native.session import Model
from tests.fuzz.importers import compile_onnx
from tests.native.lower_cases import Case, f, i, proto

REC = {"w": f(1, 20, 3), "r": f(1, 20, 5), "b": f(1, 40)}
LSTM = "x w r b - h c"


def lstm(name: str, x: Any, *, h: Any = None, c: Any = None, **weights: Any) -> Case:
    states = {"h": f(1, 2, 5) if h is None else h, "c": f(1, 2, 5) if c is None else c}
    return Case(name, [("LSTM", LSTM, "y", {"hidden_size": 5})], {"x": x, **states}, REC | weights)


CASES = [
    ("an initial state", lstm("state", f(4, 2, 3), h=f(1, 2, 1))),
    ("an initial state", lstm("cell", f(4, 2, 3), c=f(1, 2, 15))),
    ("may have no step", lstm("steps", f(0, 2, 3))),
    ("with weights", lstm("bias", f(4, 2, 3), b=f(1, 20))),
    ("with weights", lstm("recurrence", f(4, 2, 3), r=f(1, 20, 4))),
    ("with weights", lstm("rank", f(4, 2), w=f(1, 20))),
    ("numbers of padding", Case("pad", [("Pad", "x p", "y", {"mode": "edge"})], {"x": i(*range(10)).reshape(2, 5)},
                                {"p": i(2, 1)})),
    ("numbers of padding", Case("pad_f32", [("Pad", "x p", "y")], {"x": f(2, 5)}, {"p": i(2, 1)})),
    ("elements from", Case("split", [("Split", "x s", "y z", {"axis": 1})], {"x": f(5, 4)}, {"s": i(1, 16)},
                           outputs=("y", "z"))),
    ("sizes for", Case("parts", [("Split", "x s", "y z", {"axis": 1})], {"x": f(5, 4)}, {"s": i(1, 1, 2)},
                       outputs=("y", "z"))),
    ("starts", Case("slice", [("Slice", "x s e a", "y")], {"x": f(5, 4)}, {"s": i(1), "e": i(2), "a": i(0, 1)})),
    ("scales for", Case("scales", [("Resize", "x - s", "y")], {"x": f(1, 1, 4, 4)}, {"s": np.float32([1, 2, 2])})),
    ("sizes for", Case("sizes", [("Resize", "x - - s", "y")], {"x": f(1, 1, 4, 4)}, {"s": i(1, 8, 8)})),
    ("an order", Case("perm", [("Transpose", "x", "y", {"perm": [2, 0, 1]})], {"x": f(3, 4)})),
    ("not one number", Case("range", [("Range", "a b c", "y")], {"x": f(1)}, {"a": i(0, 1), "b": i(5), "c": i(1)})),
    ("repeat counts", Case("tile", [("Tile", "x r", "y")], {"x": f(3, 4)}, {"r": i(2)})),
    ("of 2 heads", Case("heads", [("Attention", "q k v", "y", {"q_num_heads": 2, "kv_num_heads": 2})],
                        {"q": f(2, 3, 8), "k": f(2, 5, 9), "v": f(2, 5, 8)})),
    ("do not fit", Case("batch", [("Attention", "q k v", "y", {"q_num_heads": 2, "kv_num_heads": 2})],
                        {"q": f(2, 3, 8), "k": f(1, 5, 8), "v": f(2, 5, 8)})),
    ("strides", Case("strides", [("Conv", "x w", "y", {"strides": [1, 1, 1]})], {"x": f(1, 2, 5, 5)},
                     {"w": f(3, 2, 3, 3)})),
    ("a bias [2]", Case("bias", [("Conv", "x w b", "y")], {"x": f(1, 2, 5, 5)}, {"w": f(3, 2, 3, 3), "b": f(2)})),
    ("was read as", Case("norm", [("LayerNormalization", "x w", "y")], {"x": f(2, 5)}, {"w": f(3)})),
    ("kernel_shape", Case("window", [("Conv", "x w", "y", {"kernel_shape": [3, 2]})], {"x": f(1, 2, 5, 5)},
                          {"w": f(3, 2, 3, 3)})),
    ("strides = [0, 1]", Case("still", [("MaxPool", "x", "y", {"kernel_shape": [2, 2], "strides": [0, 1]})],
                              {"x": f(1, 2, 5, 5)})),
    ("of rank", Case("product", [("MatMul", "x z", "y")], {"x": f(2, 3), "z": np.float32(1)[...]})),
    ("inputs, not", Case("sum", [("Add", "x x", "y")], {"x": f(3)})),
    ("no attribute 'to'", Case("cast", [("Cast", "x", "y")], {"x": f(3)})),
    ("must be of one type", Case("types", [("Add", "x z", "y")], {"x": f(3), "z": i(1, 2, 3)})),
    ("input 'indices' of float", Case("indices", [("Gather", "x z", "y")], {"x": f(3), "z": f(3)})),
]


def written(case: Case, folder: Path) -> Path:
    model = proto(case)
    if case.name == "sum":  # with one input less, which could not be written
        del model.graph.node[0].input[1]
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(("words", "case"), CASES, ids=lambda c: c.name if isinstance(c, Case) else "")
def test_parts_that_do_not_fit(words: str, case: Case, tmp_path: Path) -> None:
    with pytest.raises(EdgecError) as caught:
        compile_onnx(written(case, tmp_path))
    assert caught.value.code in ("E0101", "E0301", "E0302")
    assert words in caught.value.found


@pytest.mark.parametrize("op", ["Dropout", "Relu"])
def test_negative_sizes_of_outputs_are_not_believed(op: str, tmp_path: Path) -> None:
    model = proto(Case(op, [(op, "x", "y")], {"x": f(3)}))
    for size in (-1, -(1 << 31)):
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = size
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        compile_onnx(tmp_path / "model.onnx")
        with Model(tmp_path / "model.edgec") as opened:
            assert opened.outputs[0].shape == (3,)
