"""GatherBits: which lookups become GatherBits; test_ort_library.py computes with them."""

from __future__ import annotations

import numpy as np
import pytest

from edgec.compress.formats import BitsSpec, pack_bits64
from edgec.ir.model import walk
from edgec.ir.ops import DOMAIN, LIBRARY
from edgec.ir.passes import Context
from edgec.passes.compress.quantize import Quantize
from edgec.passes.lower.gather_bits import GatherBits
from edgec.pipeline import run_passes
from tests.compress.random_weights import random_quantized
from tests.passes.harness import model, ops

CAPABLE = Context(capabilities=frozenset((DOMAIN, name) for name in LIBRARY))
ROWS, K = 70, 100


@pytest.mark.parametrize(("kind", "axis", "changes"), [("int64", 0, True), ("int32", 0, True), ("int64", 1, False)])
def test_rows_are_looked_up(kind: str, axis: int, changes: bool) -> None:
    q = random_quantized(np.random.default_rng(15), BitsSpec(3), ROWS, K)
    body = f"y = Gather<axis = {axis}>(w, i)"
    graph = model(f"g ({kind}[2,3] i, float[{ROWS},{K}] w) => (float y) {{ {body} }}", w=np.zeros((ROWS, K)))
    graph = run_passes(graph, [Quantize()], Context(quantized={"w": q})).model
    for context in (Context(), CAPABLE):
        report = run_passes(graph.clone(), [GatherBits()], context)
        assert report.records[0].modified is (changes and context is CAPABLE)
    found = ops(report.model)
    assert found["edgec::GatherBits"] == changes
    assert found["Cast"] == (kind == "int32")
    if not changes:
        assert "does not choose rows" in "".join(e.reason for e in report.records[0].rules.declined)
        return
    (node,) = (n for n in walk(report.model) if n.op_type == "GatherBits")
    told = {name: attribute.as_int() for name, attribute in node.attributes.items()}
    assert told == {"N": ROWS, "K": K, "bits": 3, "group": 128, "form": 0}
    tensor = node.inputs[0].const_value if node.inputs[0] is not None else None
    assert tensor is not None
    assert np.array_equal(tensor.numpy(), pack_bits64(q))
