"""Static 8-bit integers on every kind of torch network: the graph is made, runs, is near the float one and compiles."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec import importers
from edgec.ir.execute import Runner
from edgec.ir.model import op_of, walk
from edgec.ir.passes import Context
from edgec.judge.metrics import distance
from edgec.native.lower import build_plan, capabilities, unsupported
from edgec.passes import LOWER, NORMALIZE
from edgec.pipeline import run_passes
from tests.models.torch_zoo import NETS, build
from tests.passes.static_graphs import Fed, quantized

# Residual sums and depthwise filters, attention: always. The others every night.
ALWAYS = ("mobilenet_v3", "vit")
CASES = [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in NETS]


@pytest.mark.parametrize("name", CASES)
def test_network(name: str) -> None:
    module, example = build(name)
    loaded = importers.load(module, check=False, example_inputs=(example,))
    ctx = Context(capabilities=capabilities(), refuses=unsupported)
    source = run_passes(loaded, NORMALIZE, ctx).model
    x = source.graph.inputs[0].name or ""
    rng = np.random.default_rng(0)
    samples = Fed([{x: rng.standard_normal(tuple(example.shape)).astype(np.float32)} for _ in range(3)])
    wanted = [_run(source, feed) for feed in samples.feeds]
    made, static = quantized(source, samples, equalize=True, correct=True)
    found = [_run(made, feed) for feed in samples.feeds]
    report = static.report
    assert all(r["sqnr_db"] is None or r["sqnr_db"] > 18 for r in report["layers"]), report["layers"]
    assert distance(np.stack(found), np.stack(wanted)).sqnr_db > 12
    # Whatever has a constant weight is a region, but for what a reason is given for.
    products = [n for n in walk(made) if op_of(n) in (("", "Conv"), ("", "Gemm"))]
    for node in products:
        weight = node.inputs[1]
        assert weight is not None
        maker = weight.producer()
        assert (maker is not None and maker.op_type == "DequantizeLinear") or weight.name in {
            k["name"] for k in report["kept"]} or not weight.is_initializer()
    lowered = run_passes(made, LOWER, ctx).model
    plan = build_plan(lowered)
    assert plan.entries
    # Another order of sums rounds some values to the next code.
    assert distance(_run(lowered, samples.feeds[0]), found[0]).sqnr_db > 20


def _run(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with Runner(model, "test") as runner:
        return next(iter(runner.run(feeds).values()))
