"""The PyTorch door."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgec.errors import EdgecError
from edgec.importers import load
from edgec.importers import torch as door
from edgec.importers.check import runner
from edgec.ir.info import info_of


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, image: torch.Tensor, scale: float = 2.0) -> dict[str, torch.Tensor]:
        x = torch.relu(self.norm(self.conv(image)))
        return {"logits": self.head(self.drop(x.mean((2, 3)))) * scale, "map": x}


class Branch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # the line that the error names
            return x + 1
        return x - 1


class FixedBatch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 8)


class Counting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + self.calls


class Noise(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Svd(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(x)


class Nested(torch.nn.Module):
    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return pair[0] + pair[1]


def refused(module: torch.nn.Module, code: str, example: Any = None, **options: Any) -> EdgecError:
    with pytest.raises(EdgecError) as caught:
        load(module, example_inputs=torch.randn(4, 4) if example is None else example, **options)
    assert caught.value.code == code, caught.value.render()
    return caught.value


@pytest.fixture(scope="module")
def imported() -> tuple[Net, ir.Model]:
    torch.manual_seed(0)
    net = Net()
    net.norm.running_mean.uniform_(-1, 1)
    net.train()
    model = load(net, example_inputs={"image": torch.randn(1, 3, 16, 16), "scale": 3.0},
                 dynamic={"image": {0: ("batch", 1, 8)}}, name="net")
    return net, model


def test_names_shapes_opset(imported: tuple[Net, ir.Model]) -> None:
    _, model = imported
    assert [v.name for v in model.graph.inputs] == ["image"]
    assert [v.name for v in model.graph.outputs] == ["logits", "map"]
    assert [str(d) for d in model.graph.inputs[0].shape or ()] == ["batch", "3", "16", "16"]
    assert [str(d) for d in model.graph.outputs[1].shape or ()] == ["batch", "8", "8", "8"]
    assert model.opset_imports[""] == 24
    info = info_of(model)
    assert (info.task, info.name, info.dynamic) == ("generic", "net", {"batch": (1, 8)})
    assert len(info.source_sha256) == 64


def test_the_module_stays_as_it_was(imported: tuple[Net, ir.Model]) -> None:
    net, _ = imported
    assert net.training
    assert net.drop.training


def test_numbers_at_every_batch(imported: tuple[Net, ir.Model]) -> None:
    net, model = imported
    net.eval()
    with runner(model) as session, torch.no_grad():
        for batch in (1, 3, 8):
            image = torch.randn(batch, 3, 16, 16)
            wanted = net(image, 3.0)
            found = session.run({"image": image.numpy()})
            np.testing.assert_allclose(found["logits"], wanted["logits"].numpy(), rtol=1e-4, atol=1e-5)
    net.train()


def test_module_paths_and_no_local_paths(imported: tuple[Net, ir.Model]) -> None:
    _, model = imported
    paths = {n.metadata_props.get("namespace") for n in model.graph}
    assert {"head"} <= paths
    assert str(Path(__file__).parent) not in str([n.metadata_props for n in model.graph])


def test_stdout_stays_clean(capfd: pytest.CaptureFixture[str]) -> None:
    load(torch.nn.Linear(4, 3), example_inputs=torch.randn(2, 4))
    assert capfd.readouterr().out == ""


def test_tied_weights_stay_one_tensor() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(64, 32)
            self.head = torch.nn.Linear(32, 64, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(ids))

    model = load(Tied(), example_inputs=torch.arange(6)[None])
    big = [v for v in model.graph.initializers.values() if v.const_value is not None and v.const_value.size == 64 * 32]
    assert len(big) == 1
    assert Counter(use.node.op_type for use in big[0].uses()) == {"Gather": 1, "Transpose": 1}


def test_data_dependent_branch_names_the_line() -> None:
    error = refused(Branch(), "E0102")
    assert "test_torch.py" in error.where
    assert "if x.sum() > 0" in error.where
    assert "torch.where" in error.hint


def test_size_that_cannot_vary() -> None:
    error = refused(FixedBatch(), "E0102", dynamic={"x": {0: (1, 8)}})
    assert "x_0" in error.found
    assert "range" in error.hint


def test_side_effect() -> None:
    module = Counting()
    assert "calls" in refused(module, "E0102").found
    assert module.calls.item() == 0


def test_chance() -> None:
    refused(Noise(), "E0102")


def test_operator_without_translation() -> None:
    assert "svd" in refused(Svd(), "E0102").found


def test_wrong_arithmetic_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = door.to_ir

    def broken(*args: Any) -> ir.Model:
        model = real(*args)
        for value in model.graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
                value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(1.001))
        return model

    monkeypatch.setattr(door, "to_ir", broken)
    error = refused(torch.nn.Linear(4, 3), "E0104")
    assert "largest difference" in error.found


@pytest.mark.parametrize(
    ("dynamic", "word"),
    [
        ({"y": {0: (1, 8)}}, "no such input"),
        ({"input": {5: (1, 8)}}, "rank 2"),
        ({"input": {0: (5, 8)}}, "size 4"),
        ({"input": {0: (3, 1)}}, "3..1"),
        ({"input": {0: ("a b", 1, 8)}}, "a b"),
        ({"input": {0: ("n", 1, 8), 1: ("n", 1, 9)}}, "n"),
    ],
)
def test_bad_dynamic(dynamic: Any, word: str) -> None:
    assert word in refused(torch.nn.Linear(4, 3), "E0002", dynamic=dynamic).found


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net, torch.ones(1, 4))])
def test_torchscript(make: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = make(torch.nn.Linear(4, 3))
    capfd.readouterr()
    assert "TorchScript" in refused(script, "E0102").found
    torch.jit.save(script, tmp_path / "net.pt")
    torch.save(torch.nn.Linear(4, 3).state_dict(), tmp_path / "state.pt")
    for name, script_file in (("net.pt", True), ("state.pt", False)):
        with pytest.raises(EdgecError) as caught:
            load(tmp_path / name)
        assert caught.value.code == "E0101"
        assert ("TorchScript" in caught.value.hint) == script_file
    assert capfd.readouterr() == ("", "")


def test_bad_examples() -> None:
    assert "tensors inside" in refused(Nested(), "E0002", ((torch.ones(1), torch.ones(1)),)).found
    assert "no tensor" in refused(Net(), "E0002", {"image": None}).found
    refused(Net(), "E0002", {"picture": torch.ones(1, 3, 4, 4)})
    with pytest.raises(EdgecError, match="example_inputs"):
        load(torch.nn.Linear(4, 3))


def factory(tmp_path: Path, body: str) -> str:
    path = tmp_path / "net.py"
    path.write_text("import torch\n" + body)
    return f"{path}:make"


def test_factory(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("SIZE = 6\n")
    spec = factory(tmp_path, "from neighbour import SIZE\ndef make():\n    print('hello')\n    return ("
                             "torch.nn.Linear(SIZE, 2), (torch.ones(1, SIZE),), {'dynamic': {'input': {0: (1, 4)}}})\n")
    model = load(spec)
    assert info_of(model).name == "net"
    assert info_of(model).source == spec
    assert info_of(model).dynamic == {"input_0": (1, 4)}
    assert info_of(load(spec, dynamic={"input": {0: ("n", 1, 3)}}, name="other")).dynamic == {"n": (1, 3)}


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ("def make(:\n", "E0101", "SyntaxError"),
        ("def make():\n    raise KeyError('lost')\n", "E0101", "lost"),
        ("import sys\nsys.exit(3)\n", "E0101", "SystemExit"),
        ("def mkae():\n    return 1\n", "E0101", "mkae"),
        ("def make():\n    return 1\n", "E0101", "int"),
        ("def make():\n    return torch.nn.Linear(1, 1), (torch.ones(1, 1),), {'dynamik': {}}\n", "E0002", "dynamik"),
    ],
)
def test_broken_factory(tmp_path: Path, body: str, code: str, text: str) -> None:
    with pytest.raises(EdgecError) as caught:
        load(factory(tmp_path, body))
    assert caught.value.code == code
    assert text in caught.value.render()


def test_lift_refuses_an_operator_that_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx.defs

    model = load(torch.nn.ReLU(), example_inputs=torch.ones(2), check=False)
    real = onnx.defs.get_schema

    def schema(name: str, version: int, domain: str) -> Any:
        return real("Add" if version == door.OPSET else name, version, domain)

    monkeypatch.setattr(onnx.defs, "get_schema", schema)
    with pytest.raises(EdgecError, match="changed its meaning"):
        door.lift_opset(model)
