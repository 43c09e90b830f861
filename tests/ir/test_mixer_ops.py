"""The mixers' bodies: SelectiveScan, CausalConv1d, DynamicDepthwise against loops in float64."""

from __future__ import annotations

import pytest

from edgec.ir.ops import OPS
from tests.ir.mixers import ALL, CASES, close, graph
from tests.passes.harness import evaluate


@pytest.mark.parametrize("engine", ["reference", "onnxruntime"])
@pytest.mark.parametrize(("name", "shape", "attributes"), ALL)
def test_bodies(name: str, shape: tuple[int, ...], attributes: dict[str, int], engine: str) -> None:
    inputs, reference, _ = CASES[name]
    feeds = inputs(*shape)
    made = graph(name, feeds, **attributes)
    wanted = reference(feeds, **attributes)
    close(evaluate(made, feeds, engine), wanted)
    assert [tuple(v.shape or ()) for v in made.graph.outputs] == [w.shape for w in wanted.values()]
    node = next(iter(made.graph))
    assert not OPS[name].problems(node)
    cost = OPS[name].cost(node, {})
    assert cost.flops > 0
    assert cost.bytes == 4 * sum(a.size for a in (*feeds.values(), *wanted.values()))
