"""Weights beside the graph: one in memory at a time, aligned, equal ones once."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from edgec.targets.onnx_file import write_onnx

COUNT, SIZE = 5, 1 << 18


class _Watched:
    """Makes the tensors of a model when they are read, and counts those in memory."""

    def __init__(self) -> None:
        self.tensors: weakref.WeakSet[ir.Tensor] = weakref.WeakSet()
        self.most = 0

    def lazy(self, name: str, seed: int, size: int) -> ir.LazyTensor:
        def compute() -> ir.TensorProtocol:
            tensor = ir.Tensor(np.random.default_rng(seed).standard_normal(size).astype(np.float32), name=name)
            self.tensors.add(tensor)
            self.most = max(self.most, len(self.tensors))
            return tensor

        return ir.LazyTensor(compute, dtype=ir.DataType.FLOAT, shape=ir.Shape([size]), name=name, cache=False)


def graph(watched: _Watched, seeds: tuple[int, ...], size: int = SIZE) -> ir.Model:
    """x plus every weight."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([size]))
    weights = [ir.Value(name=f"w{i}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([size]),
                        const_value=watched.lazy(f"w{i}", seed, size)) for i, seed in enumerate(seeds)]
    nodes, last = [], x
    for i, weight in enumerate(weights):
        node = ir.node("Add", [last, weight], metadata_props={"pkg.torch.onnx.stack_trace": "File model.py, line 3"})
        last = node.outputs[0]
        last.name, last.type, last.shape = f"y{i}", x.type, x.shape
        nodes.append(node)
    return ir.Model(ir.Graph([x], [last], nodes=nodes, initializers=weights, opset_imports={"": 21}, name="g"),
                    ir_version=10)


def test_one_weight_in_memory_at_a_time(tmp_path: Path) -> None:
    watched = _Watched()
    sizes = write_onnx(graph(watched, tuple(range(COUNT))), tmp_path / "m.onnx")
    assert watched.most == 1
    assert sizes == {f"w{i}": 4 * SIZE for i in range(COUNT)}
    loaded = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(loaded)
    for i, tensor in enumerate(loaded.graph.initializer):
        wanted = np.random.default_rng(i).standard_normal(SIZE).astype(np.float32)
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), wanted)


def test_places(tmp_path: Path) -> None:
    write_onnx(graph(_Watched(), (1, 2, 1)), tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    offsets = [next(int(e.value) for e in t.external_data if e.key == "offset") for t in proto.graph.initializer]
    assert offsets[0] == offsets[2] != offsets[1]
    assert all(offset % 4096 == 0 for offset in offsets)
    assert (tmp_path / "m.onnx.data").stat().st_size == 2 * 4 * SIZE


def test_small_weights_stay_in_the_graph(tmp_path: Path) -> None:
    write_onnx(graph(_Watched(), (1, 2), size=8), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx.data").exists()
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"))


def test_nothing_of_the_importer_is_left(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model = graph(_Watched(), (1,))
        model.doc_string = f"from {tmp_path}/{name}"
        (tmp_path / name).mkdir()
        write_onnx(model, tmp_path / name / "m.onnx")
    first, second = ((tmp_path / name / "m.onnx").read_bytes() for name in ("a", "b"))
    assert first == second
    assert b"model.py" not in first
