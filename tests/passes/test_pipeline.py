"""From a source to the lowered graph and the artifact, with the real importers, passes and native table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgec import env
from edgec.errors import EdgecError
from edgec.ir import verify
from edgec.ir.execute import Runner, random_inputs
from edgec.native.lower import capabilities
from edgec.passes import COMPRESS, LOWER, NORMALIZE
from edgec.pipeline import CompileOptions, RunOptions, compile_model, prepare_model
from tests.passes.harness import ops

NET = '''
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (z.view(b, t, 2, c // 2).transpose(1, 2) for z in self.qkv(self.norm(x)).chunk(3, -1))
        a = torch.softmax(q @ k.transpose(-1, -2) * (c // 2) ** -0.5, -1) @ v
        x = x + self.out(a.transpose(1, 2).reshape(b, t, c))
        h = self.up(x)
        return x + self.down(0.5 * h * (1.0 + torch.erf(h / 2 ** 0.5)))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.wise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU6())
        self.group, self.block, self.head = nn.GroupNorm(2, 8), Block(8), nn.Linear(8, 5)

    def forward(self, image):
        x = self.stem(image)
        x = nn.functional.silu(self.group(x + self.wise(x)))
        x = self.block(x.flatten(2).transpose(1, 2))
        return self.head(x.mean(1))

def net():
    torch.manual_seed(0)
    made = Net()
    for name, value in made.named_buffers():
        if value.dtype == torch.float32:
            value.data = torch.rand_like(value) + 0.5
    return made.eval(), (torch.randn(1, 3, 8, 8),)

class Odd(nn.Module):
    def forward(self, x):
        return torch.linalg.det(x) + torch.nonzero(x).sum()

def odd():
    return Odd(), (torch.randn(3, 3),)
'''


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.py"
    path.write_text(NET)
    return path


def test_every_stage_of_a_small_network(source: Path, tmp_path: Path) -> None:
    with env.CHECK.override(1):
        report = prepare_model(f"{source}:net", CompileOptions(run=RunOptions(dump_dir=tmp_path)))
    found = ops(report.model)
    assert found["Attention"] == 1
    assert found["Gelu"] == 1
    assert found["HardSwish"] == 1
    assert found["GroupNormalization"] == 1
    assert not {"BatchNormalization", "Softmax", "Erf"} & set(found)
    assert verify.lowered(capabilities())(report.model) == []
    assert len(list(tmp_path.glob("*.onnx"))) == len(NORMALIZE) + len(COMPRESS) + len(LOWER)
    # The last dump computes what torch computes.
    from edgec.importers.torch import call_factory

    module, inputs, _ = call_factory(f"{source}:net")
    with Runner(report.model, "test") as runner:
        y = next(iter(runner.run({"image": inputs[0].numpy()}).values()))
    with torch.no_grad():
        np.testing.assert_allclose(y, module(*inputs).numpy(), rtol=1e-4, atol=1e-5)


def test_stop_after(source: Path) -> None:
    options = CompileOptions(run=RunOptions(stop_after="fold_bn"))
    report = prepare_model(f"{source}:net", options)
    assert report.stopped_after == "fold_bn"
    assert report.records[-1].name == "fold_bn"
    assert compile_model(f"{source}:net", options).artifact is None


def test_operators_the_target_lacks_are_all_named(source: Path) -> None:
    with pytest.raises(EdgecError) as caught:
        prepare_model(f"{source}:odd", CompileOptions())
    assert caught.value.code == "E0301"
    assert "Det" in caught.value.found
    assert "NonZero" in caught.value.found


def test_mistakes_are_found_before_the_model_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was read")

    monkeypatch.setattr("edgec.importers.load", refuse)
    with pytest.raises(EdgecError) as caught:
        compile_model("x", CompileOptions(target="apple-m33"))
    assert caught.value.code == "E0006"
    with pytest.raises(EdgecError) as caught:
        prepare_model("x", CompileOptions(run=RunOptions(stop_after="fold_bm")))
    assert caught.value.code == "E0002"


def test_the_same_source_gives_the_same_graph(source: Path) -> None:
    first, second = (prepare_model(f"{source}:net", CompileOptions()).model for _ in range(2))
    assert [n.name for n in first.graph] == [n.name for n in second.graph]
    x = random_inputs(first)
    with Runner(first, "a") as a, Runner(second, "b") as b:
        one, two = a.run(x), b.run(x)
    assert all(np.array_equal(one[k], two[k]) for k in one)
