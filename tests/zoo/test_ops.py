"""The torch operators: against loops in float64, as one node each in the graph, and compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgec
from edgec.importers import torch as door
from edgec.ir.model import op_of, walk
from edgec.zoo import ops
from tests.ir.mixers import ALL, CASES

OPERATORS = {"SelectiveScan": torch.ops.edgec.selective_scan, "CausalConv1d": torch.ops.edgec.causal_conv1d,
             "DynamicDepthwise": torch.ops.edgec.dynamic_depthwise}


def called(name: str, feeds: dict[str, Tensor], attributes: dict[str, int]) -> tuple[Tensor, ...]:
    kinds = {"softplus": bool, "silu": bool, "kernel_size": int}
    defaults = {"SelectiveScan": {"softplus": 0}, "CausalConv1d": {"silu": 0}, "DynamicDepthwise": {}}
    settings = [kinds[k](v) for k, v in (defaults[name] | attributes).items()]
    found = OPERATORS[name](*feeds.values(), *settings)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize(("name", "shape", "attributes"), ALL)
def test_reference_implementations(name: str, shape: tuple[int, ...], attributes: dict[str, int]) -> None:
    inputs, reference, _ = CASES[name]
    feeds = inputs(*shape)
    wanted = reference(feeds, **attributes).values()
    exact = called(name, {k: torch.from_numpy(v).double() for k, v in feeds.items()}, attributes)
    single = called(name, {k: torch.from_numpy(v) for k, v in feeds.items()}, attributes)
    for one, other, want in zip(exact, single, wanted, strict=True):
        np.testing.assert_allclose(one.numpy(), want, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(other.numpy(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_operators_are_declared_as_they_are(name: str) -> None:
    inputs, _, cases = CASES[name]
    shape, attributes = cases[1]
    feeds = {k: torch.from_numpy(v) for k, v in inputs(*shape).items()}
    settings = {"SelectiveScan": (True,), "CausalConv1d": (True,), "DynamicDepthwise": (3,)}[name]
    torch.library.opcheck(OPERATORS[name].default, (*feeds.values(), *settings),
                          test_utils=("test_schema", "test_faketensor"))
    assert len(called(name, feeds, attributes)) == len(edgec.ir.ops.OPS[name].outputs)


class Mixed(nn.Module):
    """All three, with everything left out that may be."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.rates = nn.Parameter(-torch.rand(6, 5) * 4)

    def forward(self, x: Tensor, delta: Tensor, b: Tensor, c: Tensor, image: Tensor, kernels: Tensor
                ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mixed, tail = ops.causal_conv1d(x, self.weight)
        y, state = ops.selective_scan(mixed, delta, self.rates, b, c, z=x, softplus=True)
        return y, state, tail, ops.dynamic_depthwise(image, kernels)


def inputs() -> tuple[Tensor, ...]:
    return (*(torch.randn(2, 9, n) for n in (6, 6, 5, 5)), torch.randn(1, 8, 5, 6), torch.randn(1, 2, 9, 5, 6))


def test_the_door_keeps_each_as_one_node() -> None:
    graph = door.load(Mixed(), inputs())  # which compares with the module
    ours = [op_of(node)[1] for node in walk(graph) if op_of(node)[0] == "edgec"]
    assert ours == ["CausalConv1d", "SelectiveScan", "DynamicDepthwise"]


def test_a_translation_of_the_users_wins() -> None:
    from onnxscript import opset23 as op

    class Net(nn.Module):
        def forward(self, image: Tensor, kernels: Tensor) -> Tensor:
            return ops.dynamic_depthwise(image, kernels)

    def theirs(x, w, kernel_size):  # type: ignore[no-untyped-def]
        return op.Neg(x)

    graph = door.load(Net(), inputs()[4:], check=False, custom_ops={"edgec::dynamic_depthwise": theirs})
    assert [op_of(node) for node in walk(graph)] == [("", "Neg")]


def test_compiled(tmp_path: Path) -> None:
    module, examples = Mixed().eval(), inputs()
    edgec.compile(module, tmp_path / "mixed", example_inputs=examples)
    names = ("x", "delta", "b", "c", "image", "kernels")
    with edgec.Model(tmp_path / "mixed" / "model.edgec") as model, model.session(threads=2) as session:
        found = session.run({n: t.numpy() for n, t in zip(names, examples, strict=True)})
        with torch.no_grad():
            wanted = module(*examples)
        for port, want in zip(model.outputs, wanted, strict=True):
            np.testing.assert_allclose(found[port.name], want.numpy(), rtol=1e-5, atol=1e-5)


def test_kernels_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="kernels of 4 values"):
        ops.dynamic_depthwise(torch.randn(1, 4, 3, 3), torch.randn(1, 2, 4, 3, 3))


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_gradients(name: str) -> None:
    shapes = {"SelectiveScan": (1, 3, 2, 2), "CausalConv1d": (1, 3, 2, 3), "DynamicDepthwise": (1, 2, 1, 2, 3, 3)}
    settings = {"SelectiveScan": (True,), "CausalConv1d": (True,), "DynamicDepthwise": (3,)}[name]
    feeds = [torch.from_numpy(v).double().requires_grad_() for v in CASES[name][0](*shapes[name]).values()]
    assert torch.autograd.gradcheck(lambda *t: OPERATORS[name](*t, *settings), feeds)
