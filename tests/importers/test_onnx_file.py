"""Files that are damaged or mean harm: every one is an error before anything of it is mapped."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.helper as make
import pytest

from edgec.errors import EdgecError
from edgec.importers import onnx_file

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def write(folder: Path, **external: str) -> Path:
    """y = x W with W in the file w.bin beside it, or where `external` says."""
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=WEIGHT.shape,
                              data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": "w.bin", "offset": "0", "length": str(WEIGHT.nbytes), **external}.items():
        weight.external_data.add(key=key, value=value)
    x, y = make.make_tensor_value_info("x", 1, [2, 3]), make.make_tensor_value_info("y", 1, [2, 4])
    graph = make.make_graph([make.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 24)], ir_version=10)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path, code: str = "E0101") -> EdgecError:
    with pytest.raises(EdgecError) as caught:
        onnx_file.read(path)
    assert caught.value.code == code, caught.value.render()
    return caught.value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / "w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    return inside


def test_a_good_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder)
    monkeypatch.chdir(folder)
    model, sha256 = onnx_file.read(Path("model.onnx"))
    monkeypatch.chdir("/")
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    assert np.array_equal(tensor.numpy(), WEIGHT)
    (folder / "w.bin").write_bytes((WEIGHT + 1).tobytes())
    assert onnx_file.read(folder / "model.onnx")[1] != sha256


def test_a_folder_below_and_a_link_inside(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "w.bin").rename(folder / "data" / "w.bin")
    onnx_file.read(write(folder, location="data/w.bin"))
    (folder / "link.bin").symlink_to("data/w.bin")
    onnx_file.read(write(folder, location="link.bin"))


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "a/../../secret.bin", "", ".", "no.bin",
                                      "c:\\w.bin", "..\\secret.bin", "w.bin\0"])
def test_places_outside(folder: Path, location: str) -> None:
    assert "external data" in refused(write(folder, location=location)).found


def test_links_out(folder: Path) -> None:
    (folder / "link.bin").symlink_to("../secret.bin")
    assert "link" in refused(write(folder, location="link.bin")).found
    (folder / "way").symlink_to("..")
    assert "link" in refused(write(folder, location="way/secret.bin")).found
    os.link(folder.parent / "secret.bin", folder / "hard.bin")
    assert "hard link" in refused(write(folder, location="hard.bin")).found


def test_not_a_regular_file(folder: Path) -> None:
    os.mkfifo(folder / "pipe.bin")
    assert "regular" in refused(write(folder, location="pipe.bin")).found


def swap_for_a_link(folder: Path) -> None:
    (folder / "data" / "w.bin").unlink()
    (folder / "data" / "w.bin").symlink_to("../../secret.bin")


def swap_the_folder(folder: Path) -> None:
    (folder / "data").rename(folder / "old")
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "secret.bin").rename(folder.parent / "elsewhere" / "w.bin")
    (folder / "data").symlink_to("../elsewhere")


def swap_for_another_file(folder: Path) -> None:
    (folder / "data" / "other").write_bytes(WEIGHT.tobytes())
    (folder / "data" / "other").replace(folder / "data" / "w.bin")


def swap_for_a_hard_link(folder: Path) -> None:
    os.link(folder / "data" / "w.bin", folder / "hard.bin")


def swap_for_a_pipe(folder: Path) -> None:
    (folder / "data" / "w.bin").unlink()
    os.mkfifo(folder / "data" / "w.bin")


def change(folder: Path) -> None:
    (folder / "data" / "w.bin").write_bytes((WEIGHT + 1).tobytes())
    os.utime(folder / "data" / "w.bin", (0, 0))  # clocks of file systems are coarse


def cut(folder: Path) -> None:
    os.truncate(folder / "data" / "w.bin", 8)


def remove(folder: Path) -> None:
    (folder / "data" / "w.bin").unlink()


SWAPS = (swap_for_a_link, swap_the_folder, swap_for_another_file, swap_for_a_hard_link, swap_for_a_pipe, change, cut,
         remove)


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("small", [True, False])
def test_files_swapped_after_the_check(folder: Path, swap: Callable[[Path], None], small: bool,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the values nor the hash come from another file than the one that was checked."""
    if not small:
        monkeypatch.setattr(onnx_file, "_SMALL", 4)
    (folder / "data").mkdir()
    (folder / "w.bin").rename(folder / "data" / "w.bin")
    path = write(folder, location="data/w.bin")
    twin = onnx_file.read(path)[0].graph.initializers["w"].const_value
    assert twin is not None
    assert np.array_equal(twin.numpy(), WEIGHT)
    model, sha256 = onnx_file.read(path)
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    swap(folder)
    for use in (tensor.numpy, tensor.tobytes, sha256):
        with pytest.raises(EdgecError) as caught:
            use()
        assert caught.value.code == "E0101"
        assert "w.bin" in caught.value.where


@pytest.mark.parametrize("external", [
    {"offset": "4"}, {"offset": "-4"}, {"length": "44"}, {"length": "999999999999"}, {"offset": "99999999999999999999"},
    {"offset": "four"}, {"length": "-48"},
])
def test_bytes_outside_the_file(folder: Path, external: dict[str, str]) -> None:
    refused(write(folder, **external))


@pytest.mark.parametrize(("kind", "values"), [
    (onnx.TensorProto.UINT4, np.arange(15, dtype=ml_dtypes.uint4)), (onnx.TensorProto.INT64, np.arange(5)),
    (onnx.TensorProto.BFLOAT16, np.arange(7, dtype=ml_dtypes.bfloat16)), (onnx.TensorProto.BOOL, np.ones(3, bool)),
    (onnx.TensorProto.FLOAT, np.zeros((0, 4), np.float32)), (onnx.TensorProto.FLOAT, np.float32(3)),
])
@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_external_values(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: int, values: np.ndarray, small: bool,
                         constant: bool) -> None:
    """Of every width, at an odd offset, as an initializer or inside a Constant node."""
    if not small:
        monkeypatch.setattr(onnx_file, "_SMALL", 0)
    proto = onnx.numpy_helper.from_array(np.asarray(values), "w")
    assert proto.data_type == kind
    (folder / "w.bin").write_bytes(b"odd" + proto.raw_data + b"more")
    raw, proto.data_location = len(proto.raw_data), onnx.TensorProto.EXTERNAL
    proto.ClearField("raw_data")
    for key, value in {"location": "w.bin", "offset": "3", "length": str(raw)}.items():
        proto.external_data.add(key=key, value=value)
    node = make.make_node("Constant", [], ["w"], value=proto) if constant else make.make_node("Identity", ["w"], ["v"])
    out = make.make_tensor_value_info("w" if constant else "v", kind, None)
    graph = make.make_graph([node], "g", [], [out], [] if constant else [proto])
    path = folder / "model.onnx"
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 24)], ir_version=10), path)
    model = onnx_file.read(path)[0]
    nodes = list(model.graph)
    tensor = nodes[0].attributes["value"].as_tensor() if constant else model.graph.initializers["w"].const_value
    assert tensor is not None
    for _ in range(2):
        assert np.array_equal(tensor.numpy(), values)
        assert tensor.numpy().dtype == np.asarray(values).dtype
        assert tensor.tobytes() == (folder / "w.bin").read_bytes()[3 : 3 + raw]


def test_text_as_external_data(folder: Path) -> None:
    path = write(folder)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].data_type = onnx.TensorProto.STRING
    path.write_bytes(proto.SerializeToString())
    assert "text" in refused(path).found


def test_data_files_too_short(folder: Path) -> None:
    (folder / "w.bin").write_bytes(WEIGHT.tobytes()[:-1])
    assert "47" in refused(write(folder)).found


@pytest.mark.parametrize("change", ["raw", "dims", "dtype", "negative", "huge", "huge beside 0", "field", "no field"])
def test_tensors_that_do_not_fit(tmp_path: Path, change: str) -> None:
    weight = onnx.numpy_helper.from_array(WEIGHT, "w")
    if change == "raw":
        weight.raw_data = weight.raw_data[:-4]
    elif change == "dims":
        weight.dims[0] = 4
    elif change == "dtype":
        weight.data_type = 77
    elif change == "negative":
        weight.dims[0] = -3
    elif change == "huge beside 0":
        weight.dims[:] = [1 << 62, 0]
        weight.raw_data = b""
    elif change in ("field", "no field"):
        weight.ClearField("raw_data")
        weight.float_data.extend([1.0] * (11 if change == "field" else 0))
    else:
        weight.dims[0] = 1 << 50
    node = make.make_node("Constant", [], ["y"], value=weight)
    model = make.make_model(make.make_graph([node], "g", [], [make.make_tensor_value_info("y", 1, [3, 4])]))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert "tensor 'w'" in refused(path).where


def test_no_model_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    refused(path, "E0003")
    for data in (b"", b"\x08\x01", b"\xff" * 100, b"# not a model\n"):
        path.write_bytes(data)
        refused(path)


def test_every_cut_of_a_file_is_an_error_or_a_model(folder: Path) -> None:
    """A truncated file never ends in anything but EdgecError."""
    path = write(folder)
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        with contextlib.suppress(EdgecError):
            onnx_file.read(path)


def test_too_many_nodes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_NODES", 0)
    assert "nodes" in refused(write(folder)).found
    monkeypatch.setattr(onnx_file, "MAX_FILE_BYTES", 10)
    assert "bytes" in refused(folder / "model.onnx").found


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "BFLOAT16", "INT64", "UINT64", "DOUBLE", "BOOL", "INT4", "UINT4",
                                  "COMPLEX64"])
def test_values_in_typed_fields(tmp_path: Path, kind: str) -> None:
    weight = make.make_tensor("w", getattr(onnx.TensorProto, kind), [3], [1, 0, 1])
    assert not weight.HasField("raw_data")
    node = make.make_node("Constant", [], ["y"], value=weight)
    model = make.make_model(make.make_graph([node], "g", [], [make.make_tensor_value_info("y", weight.data_type, [3])]))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    tensor = onnx_file.read(path)[0].graph[0].attributes["value"].as_tensor()
    assert tensor.numpy().astype(np.complex64).real.tolist() == [1, 0, 1]
