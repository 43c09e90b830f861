"""Nodes and attributes that no ONNX model has are errors of the file (E0101), whatever would have read them first.

Found by tests/fuzz/importers.py; what a valid file does differently is beside each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgec.errors import EdgecError
from edgec.importers import onnx as door
from tests.fuzz.importers import onnx_seeds

CONV, CONTROL, OLD = 0, 2, 4  # of onnx_seeds


def _load(proto: onnx.ModelProto, folder: Path) -> object:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializePartialToString())
    return door.load(path, check=False)


def _node(proto: onnx.ModelProto, op_type: str) -> Any:
    return next(n for n in proto.graph.node if n.op_type == op_type)


def _attribute(proto: onnx.ModelProto, op_type: str, name: str) -> Any:
    return next(a for a in _node(proto, op_type).attribute if a.name == name)


def _no_output(proto: onnx.ModelProto) -> None:
    del _node(proto, "Dropout").output[:]


def _more_outputs(proto: onnx.ModelProto) -> None:
    _node(proto, "Upsample").output.append("more")
    proto.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def _more_inputs(proto: onnx.ModelProto) -> None:
    _node(proto, "Dropout").input.extend(["x"] * 3)


def _one_scale(proto: onnx.ModelProto) -> None:
    _attribute(proto, "Upsample", "scales").CopyFrom(helper.make_attribute("scales", 2.0))


def _bytes_mode(proto: onnx.ModelProto) -> None:
    _attribute(proto, "Upsample", "mode").s = b"neare\xec"


def _no_tensor(proto: onnx.ModelProto) -> None:
    body = _attribute(proto, "Loop", "body")
    body.ClearField("g")
    body.type = onnx.AttributeProto.TENSOR


def _no_graph(proto: onnx.ModelProto) -> None:
    _attribute(proto, "If", "then_branch").ClearField("g")


def _argument(proto: onnx.ModelProto) -> None:
    branch = _attribute(proto, "If", "then_branch")
    branch.ClearField("g")
    branch.ref_attr_name = "x"


@pytest.mark.parametrize(("seed", "change", "found"), [
    (OLD, _no_output, "no output"),
    (OLD, _more_outputs, "2 outputs"),
    (OLD, _more_inputs, "4 inputs"),
    (OLD, _one_scale, "the type FLOAT"),
    (OLD, _bytes_mode, "not UTF-8"),
    (CONTROL, _no_tensor, "without a value"),
    (CONTROL, _no_graph, "without a value"),
    (CONTROL, _argument, "outside a function"),
])
def test_malformed_nodes(seed: int, change: Callable[[onnx.ModelProto], None], found: str, tmp_path: Path) -> None:
    proto = onnx.load_from_string(onnx_seeds()[seed])
    _load(proto, tmp_path)
    change(proto)
    with pytest.raises(EdgecError) as caught:
        _load(proto, tmp_path)
    assert caught.value.code == "E0101"
    assert found in caught.value.found


@pytest.mark.parametrize("version", [-1, -(1 << 31), -(1 << 63)])
def test_operator_sets_before_the_first(version: int, tmp_path: Path) -> None:
    """Without a node that could tell, all versions from there on were counted through."""
    proto = onnx.load_from_string(onnx_seeds()[OLD])
    del proto.graph.node[:], proto.graph.output[:]
    proto.opset_import[0].version = version
    with pytest.raises(EdgecError) as caught:
        _load(proto, tmp_path)
    assert caught.value.code == "E0101"
    assert f"opset {version}" in caught.value.found


@pytest.mark.parametrize("old", [b"Relu", b"GlobalAveragePool", b"batch"])
def test_names_that_are_not_text(old: bytes, tmp_path: Path) -> None:
    """Protobuf reads them as bytes instead of text."""
    data = onnx_seeds()[CONV]
    assert old in data
    (tmp_path / "model.onnx").write_bytes(data.replace(old, old[:-1] + b"\xe1"))
    with pytest.raises(EdgecError) as caught:
        door.load(tmp_path / "model.onnx", check=False)
    assert caught.value.code == "E0101"


@pytest.mark.parametrize("field", ["node", "graph", "producer", "key", "value"])
def test_descriptions_that_are_not_text(field: str, tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy")
    node = helper.make_node("Relu", ["x"], ["y"], doc_string="text of node")
    proto = helper.make_model(helper.make_graph([node], "text of graph", [x], [y]), producer_name="text of producer",
                              opset_imports=[helper.make_opsetid("", 17)])
    entry = proto.metadata_props.add()
    entry.key, entry.value = "text of key", "text of value"
    data = proto.SerializeToString()
    assert data.count(f"text of {field}".encode()) == 1
    (tmp_path / "model.onnx").write_bytes(data.replace(b"text of " + field.encode(), b"\xffext of " + field.encode()))
    with pytest.raises(EdgecError) as caught:
        door.load(tmp_path / "model.onnx", check=False)
    assert caught.value.code == "E0101"


def test_arguments_inside_a_function_are_allowed(tmp_path: Path) -> None:
    inner = helper.make_node("LeakyRelu", ["a"], ["b"])
    inner.attribute.append(onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope"))
    opset = helper.make_opsetid("", 17)
    function = helper.make_function("own", "Leaky", ["a"], ["b"], [inner], [opset], ["slope"])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Leaky", ["x"], ["y"], domain="own", slope=0.25)], "g", [x], [y])
    proto = helper.make_model(graph, opset_imports=[opset, helper.make_opsetid("own", 1)], functions=[function])
    _load(proto, tmp_path)
