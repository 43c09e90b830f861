"""Loops of a known number of turns and decided branches, against the reference evaluator; others keep their reason."""

from __future__ import annotations

import numpy as np
import pytest

from edgec.ir.passes import Context
from edgec.native.lower import capabilities
from edgec.passes.lower.decompose import Decompose
from edgec.pipeline import run_passes
from tests.passes.harness import model, ops, reasons, run

SCAN = """g (float[2] s, float[4,2] x) => (float[2] y, float[4,2] z) {
    y, z = Scan<num_scan_inputs = 1, scan_input_directions = [%d], scan_output_directions = [%d], body = step (
        float[2] before, float[2] now) => (float[2] after, float[2] kept) {
        two = Constant<value = float {2.0}>()
        half = Div(now, two)
        after = Add(before, half)
        kept = Mul(after, now)
    }>(s, x)
}"""
LOOP = """g (int64 n, bool c, float[2] x) => (float[2] y, float[%s,2] z) {
    y, z = Loop(n, c, x) <body = step (int64 i, bool go, float[2] before) => (bool on, float[2] after, float[2] kept) {
        on = Identity(go)
        f = Cast<to = 1>(i)
        after = Add(before, f)
        kept = Mul(after, x)
    }>
}"""
BRANCH = """g (bool c, float[2] x) => (float[2] y) {
    y = If(c) <then_branch = a () => (float[2] o) { o = Neg(x) }, else_branch = b () => (float[2] p) { p = Exp(x) }>
}"""


@pytest.mark.parametrize("inputs", [0, 1])
@pytest.mark.parametrize("outputs", [0, 1])
def test_scan(inputs: int, outputs: int) -> None:
    after, modified, _ = run(Decompose(), model(SCAN % (inputs, outputs)), capabilities=capabilities(),
                             engine="onnxruntime")
    assert modified
    assert "Scan" not in ops(after)


def test_counted_loop() -> None:
    graph = model(LOOP % 5, n=np.array(5), c=np.array(True))
    after, modified, _ = run(Decompose(), graph, capabilities=capabilities())
    assert modified
    assert "Loop" not in ops(after)


@pytest.mark.parametrize("taken", [True, False])
def test_decided_branch(taken: bool) -> None:
    after, modified, _ = run(Decompose(), model(BRANCH, c=np.array(taken)), capabilities=capabilities())
    assert modified
    assert set(ops(after)) <= {"Neg" if taken else "Exp", "Identity"}


def test_what_the_run_decides_stays() -> None:
    for text, name in ((LOOP % "N", "Loop"), (BRANCH, "If")):
        ctx = Context(capabilities=capabilities())
        report = run_passes(model(text), [Decompose()], ctx)
        assert name in ops(report.model)
        assert "only at run time" in reasons(ctx.rules)
