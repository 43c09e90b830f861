"""What else the PyTorch door takes: exported programs, operators of torch.library, ranges from the command line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxscript import opset23 as op

import edgec
from edgec.cli import main
from edgec.errors import EdgecError
from edgec.importers import load
from edgec.importers.reference import load_reference
from edgec.ir.info import info_of
from edgec.native.session import Model


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = torch.nn.Linear(4, 3), torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, scale: float = 2.0, *, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scaled": self.drop(self.layer(x)) * scale, "sum": x + y}


class Loop(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(int(x.abs().sum())):  # as many rounds as the data says
            x = x * 0.5
        return x


class Halving(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while x.norm() > 1:  # as long as the data says
            x = x * 0.5
        return x


def program(size: Any, **options: Any) -> Any:
    shapes = {"x": {0: size}, "scale": None, "y": {0: size}}
    return torch.export.export(Net().eval(), (torch.randn(3, 4), 2.0), {"y": torch.randn(3, 4)}, dynamic_shapes=shapes,
                               **options)


def refused(source: Any, code: str, **options: Any) -> EdgecError:
    with pytest.raises(EdgecError) as caught:
        load(source, **options)
    assert caught.value.code == code, caught.value.render()
    return caught.value


def test_program_with_its_own_range(tmp_path: Path) -> None:
    exported = program(torch.export.Dim("n", min=1, max=6))
    edgec.compile(exported, tmp_path / "out")
    with Model(tmp_path / "out" / "model.edgec") as model, model.session() as session:
        for n in (1, 5, 6):
            feeds = {k: np.random.default_rng(n).standard_normal((n, 4)).astype(np.float32) for k in ("x", "y")}
            wanted = load_reference(exported).run(feeds)
            for name, found in session.run(feeds).items():
                np.testing.assert_allclose(found, wanted[name], rtol=1e-5, atol=1e-5)


def test_program_names_and_ranges() -> None:
    exported = program(torch.export.Dim("n", min=2, max=6))
    assert info_of(load(exported)).dynamic == {"x_0": (2, 6)}
    model = load(exported, dynamic={"y": {0: ("rows", 2, 4)}})
    assert info_of(model).dynamic == {"rows": (2, 4)}
    assert [[str(d) for d in v.shape or ()] for v in model.graph.inputs] == [["rows", "4"], ["rows", "4"]]
    assert "inside 2..6" in refused(exported, "E0002", dynamic={"x": {0: (1, 6)}}).wanted
    assert "fixed size" in refused(exported, "E0002", dynamic={"x": {1: (1, 6)}}).found


def test_program_without_an_upper_end_needs_one() -> None:
    exported = program(torch.export.Dim.DYNAMIC)
    assert "--dynamic x:0=" in refused(exported, "E0002").hint
    assert info_of(load(exported, dynamic={"x": {0: (2, 9)}})).dynamic == {"x_0": (2, 9)}


def test_program_from_a_factory(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("import torch\ndef make():\n    net = torch.nn.Linear(4, 2)\n    x = torch.randn(1, 4)\n"
                    "    return torch.export.export(net.eval(), (x,)), (x,)\n")
    assert [v.name for v in load(f"{path}:make").graph.inputs] == ["input"]


@torch.library.custom_op("edgec_test::bent", mutates_args=())
def bent(x: torch.Tensor, slope: torch.Tensor, shift: float) -> torch.Tensor:
    return torch.where(x > 0, x, x * slope) + shift


@bent.register_fake
def _(x: torch.Tensor, slope: torch.Tensor, shift: float) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("edgec_test::soft", mutates_args=())
def soft(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x)


@soft.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Custom(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor([0.1, 0.2, 0.3, 0.4]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return soft(torch.ops.edgec_test.bent(x, self.slope, 0.5))


def bent_as_onnx(x: Any, slope: Any, shift: float) -> Any:
    return op.Add(op.PRelu(x, slope), shift)


@pytest.mark.parametrize("keys", [
    ("edgec_test::bent", "edgec_test::soft"), (bent, soft), (torch.ops.edgec_test.bent, "edgec_test::soft.default"),
    (torch.ops.edgec_test.bent.default, torch.ops.edgec_test.soft),
])
def test_custom_operators(keys: tuple[Any, Any]) -> None:
    x = torch.randn(3, 4)
    model = load(Custom(), example_inputs=x, custom_ops={keys[0]: bent_as_onnx, keys[1]: "Gelu"})
    assert Counter(n.op_type for n in model.graph) == {"PRelu": 1, "Add": 1, "Gelu": 1}


def test_custom_operators_from_a_factory(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n"
                    "        return torch.ops.edgec_test.soft(x)\ndef make():\n"
                    "    return Net(), (torch.randn(3, 4),), {'custom_ops': {'edgec_test::soft': 'Gelu'}}\n")
    edgec.compile(f"{path}:make", tmp_path / "out")
    with Model(tmp_path / "out" / "model.edgec") as model, model.session() as session:
        x = torch.randn(3, 4)
        found = session.run({"x": x.numpy()})[model.outputs[0].name]
        np.testing.assert_allclose(found, torch.nn.functional.gelu(x).numpy(), rtol=1e-5, atol=1e-5)


def test_custom_operator_without_translation() -> None:
    error = refused(Custom(), "E0102", example_inputs=torch.randn(3, 4), custom_ops={"edgec_test::soft": "Gelu"})
    assert "edgec_test.bent" in error.found
    assert "custom_ops" in error.hint


def test_wrong_translation_is_found() -> None:
    table = {"edgec_test::bent": bent_as_onnx, "edgec_test::soft": "Relu"}
    refused(Custom(), "E0104", example_inputs=torch.randn(3, 4), custom_ops=table)


@pytest.mark.parametrize(("table", "word"), [
    ({"edgec_test::bend": "Gelu"}, "no such operator"), ({"bent": "Gelu"}, "no such operator"),
    ({"edgec_test::soft": "Gelou"}, "Gelou"), ({"edgec_test::soft": 3}, "int"),
])
def test_bad_tables(table: dict[Any, Any], word: str) -> None:
    assert word in refused(Custom(), "E0002", example_inputs=torch.randn(3, 4), custom_ops=table).found


@pytest.mark.parametrize(("module", "line"), [
    (Loop(), "for _ in range(int(x.abs().sum()))"), (Halving(), "while x.norm() > 1"),
])
def test_data_dependent_control_flow_names_the_line(module: torch.nn.Module, line: str) -> None:
    error = refused(module, "E0102", example_inputs=torch.randn(4))
    assert f"{Path(__file__).name}" in error.where
    assert line in error.where


def test_dynamic_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return x.sum(1)\n"
                    "def make():\n    return Net(), (torch.randn(2, 3),)\n")
    assert main(["compile", f"{path}:make", "-o", str(tmp_path / "out"), "--dynamic", "x:0=1..8"]) == 0
    with Model(tmp_path / "out" / "model.edgec") as model, model.session() as session:
        assert model.inputs[0].shape == (8, 3)
        for n in (1, 8):
            x = np.full((n, 3), 2, np.float32)
            np.testing.assert_array_equal(session.run({"x": x})[model.outputs[0].name], np.full(n, 6, np.float32))
