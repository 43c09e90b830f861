from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.ir.weights import lazy, opened, release, sha256_of, total_bytes, transposed
from tests.passes.harness import model

BIG = np.arange(1024 * 512, dtype=np.float32).reshape(1024, 512)


def mapped(folder: Path) -> ir.ExternalTensor:
    (folder / "w.bin").write_bytes(BIG.tobytes())
    return ir.ExternalTensor("w.bin", 0, BIG.nbytes, ir.DataType.FLOAT, shape=ir.Shape(BIG.shape), name="w",
                             base_dir=str(folder))


def test_mapped_weights_are_read_and_released(tmp_path: Path) -> None:
    tensor = mapped(tmp_path)
    value = ir.Value(name="w", const_value=tensor)
    ir.Graph([], [], nodes=[], initializers=[value])
    with opened(value) as array:
        assert array[3, 4] == BIG[3, 4]
        del array
    assert tensor.raw is None, "the file is unmapped"
    with opened(value) as array:
        assert array[1, 1] == BIG[1, 1]
    assert array[2, 2] == BIG[2, 2], "a view that is kept stays valid"


def test_opening_what_is_no_constant() -> None:
    with pytest.raises(EdgecError) as caught, opened(ir.val("x")):
        pass
    assert caught.value.code == "E0101"


def test_truncated_file(tmp_path: Path) -> None:
    tensor = mapped(tmp_path)
    (tmp_path / "w.bin").write_bytes(b"short")
    value = ir.Value(name="w", const_value=tensor)
    ir.Graph([], [], nodes=[], initializers=[value])
    with pytest.raises(EdgecError) as caught, opened(value):
        pass
    assert caught.value.code == "E0101"
    assert "[1024, 512]" in str(caught.value)


def test_lazy_computes_on_each_read_and_keeps_nothing() -> None:
    calls = []
    tensor = lazy(ir.tensor(BIG), lambda a: calls.append(1) or a * 2, BIG.shape, "w2")  # type: ignore[func-returns-value]
    assert not calls
    assert tensor.dtype == ir.DataType.FLOAT
    assert tensor.shape == BIG.shape
    for _ in range(2):
        assert tensor.numpy()[2, 3] == 2 * BIG[2, 3]
    assert len(calls) == 2


def test_lazy_refuses_another_shape() -> None:
    tensor = lazy(ir.tensor(BIG), lambda a: a[:1], BIG.shape, "w")
    with pytest.raises(EdgecError):
        tensor.numpy()


def test_small_tensors_are_changed_at_once() -> None:
    calls = []
    lazy(ir.tensor(BIG[:2]), lambda a: calls.append(1) or a, (2, 512), "w")  # type: ignore[func-returns-value]
    assert calls


@pytest.mark.parametrize("array", [BIG, BIG[:3]])
def test_transposed_twice_is_the_first(array: np.ndarray) -> None:
    tensor = ir.tensor(array)
    once = transposed(tensor, "t")
    assert np.array_equal(once.numpy(), array.T)
    assert once.numpy().flags["C_CONTIGUOUS"]
    assert transposed(once, "tt") is tensor


def test_total_bytes_counts_shared_tensors_once() -> None:
    graph = model("g (float[2] x, float[4] v, float[4] w) => (float[4] y) { y = Add(v, w)"
                  " }", v=np.ones(4), w=np.ones(4))
    assert total_bytes(graph) == 32
    graph.graph.initializers["w"].const_value = graph.graph.initializers["v"].const_value
    assert total_bytes(graph) == 16


def test_sha256_of_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"1")
    (tmp_path / "y").write_bytes(b"2")
    first = sha256_of(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "z").write_bytes(b"3")
    assert sha256_of(tmp_path) == first
    (tmp_path / "y").rename(tmp_path / "z")
    renamed = sha256_of(tmp_path)
    assert renamed != first
    (tmp_path / "z").write_bytes(b"4")
    assert sha256_of(tmp_path) not in (first, renamed)
    assert sha256_of(tmp_path / "z") == "4b227777d4dd1fc61c6f884f48641d02b4d121d3fd328cb08b5531fcacdabf8a"


def test_sha256_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(EdgecError) as caught:
        sha256_of(tmp_path / "missing")
    assert caught.value.code == "E0003"


def test_release_leaves_tensors_in_ram() -> None:
    tensor = ir.tensor(BIG)
    release(tensor)
    assert tensor.numpy()[0, 1] == 1
