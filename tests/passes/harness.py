"""Graphs from ONNX text, passes under the runner, and numbers before and after from the reference evaluator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx.reference
import onnx_ir as ir

from edgec.ir.execute import Runner, random_inputs, runnable
from edgec.ir.info import ModelInfo, attach_info
from edgec.ir.model import walk
from edgec.ir.passes import Capabilities, Context, Pass
from edgec.ir.rules import RuleReport
from edgec.pipeline import run_passes

Array = npt.NDArray[np.generic]


def model(text: str, *, functions: str = "", domains: Mapping[str, int] | None = None,
          **weights: npt.ArrayLike) -> ir.Model:
    """`g (float[N,3] x, float[3,4] w) => (float[N,4] y) { y = MatMul(x, w) }` with w bound to an array."""
    opsets = {"": 24, **(domains or {})}
    listed = ", ".join(f'"{k}" : {v}' for k, v in opsets.items())
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{listed}]>\n{text}\n{functions}")
    made = ir.from_proto(proto)
    inputs = {v.name: v for v in made.graph.inputs}
    for name, array in weights.items():
        value = inputs[name]
        made.graph.inputs.remove(value)
        dtype = value.dtype.numpy() if value.dtype else np.float32
        value.const_value = ir.tensor(np.asarray(array, dtype), name=name)
        value.shape = ir.Shape(value.const_value.shape)
        made.graph.register_initializer(value)
    return attach_info(made, ModelInfo())


def evaluate(graph: ir.Model, feeds: Mapping[str, Array], engine: str = "reference") -> dict[str, Array]:
    if engine == "onnxruntime":
        with Runner(graph, "test") as runner:
            return runner.run(feeds)
    proto = ir.to_proto(runnable(graph))
    values = onnx.reference.ReferenceEvaluator(proto).run(None, dict(feeds))
    return dict(zip([v.name or "" for v in graph.graph.outputs], values, strict=True))


def close(found: Mapping[str, Array], wanted: Mapping[str, Array], tolerance: float = 2e-5) -> None:
    assert list(found) == list(wanted)
    for name, expected in wanted.items():
        assert found[name].shape == expected.shape, name
        assert found[name].dtype == expected.dtype, name
        np.testing.assert_allclose(found[name], expected, rtol=tolerance, atol=tolerance, err_msg=name)


def run(
    step: Pass, graph: ir.Model, *, capabilities: Capabilities = frozenset(), feeds: Mapping[str, Array] | None = None,
    tolerance: float = 2e-5, engine: str = "reference",
) -> tuple[ir.Model, bool, RuleReport]:
    """Runs one pass under the runner; the numbers must stay, and a second run must find nothing more to do."""
    feeds = random_inputs(graph, seed=1) if feeds is None else feeds
    before = evaluate(graph, feeds, engine)
    report = run_passes(graph, [step], Context(capabilities=capabilities))
    close(evaluate(report.model, feeds, engine), before, tolerance)
    onnx.checker.check_model(ir.to_proto(runnable(report.model)))
    first = report.records[0]
    again = run_passes(report.model, [step], Context(capabilities=capabilities))
    assert not again.records[0].modified, "a second run changed the graph again"
    return again.model, first.modified, first.rules


def ops(graph: ir.Model) -> Counter[str]:
    return Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in walk(graph))


def reasons(report: RuleReport) -> str:
    return "\n".join(f"{e.rule}: {e.reason}" for e in report.declined)
