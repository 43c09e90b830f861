"""Shape inference over standard and `edgec::` operators."""

from __future__ import annotations

import onnx_ir as ir

from edgec.ir.model import graphs
from edgec.ir.ops import infer_ops


def infer_shapes(model: ir.Model) -> None:
    """Fills in types and shapes of values as far as they can be known without running.

    ONNX's inference works on the standard operators and the table's `infer` on `edgec::`; they take turns until
    neither learns more. What cannot be inferred stays unknown: it is for the stage that needs it to complain.
    """
    import onnx_ir.passes.common as common

    standard = common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)
    before = -1
    while (known := _known(model)) != before:
        before = known
        infer_ops(model)
        standard(model)


def _known(model: ir.Model) -> int:
    values = [v for graph in graphs(model) for node in graph for v in node.outputs]
    return sum((v.type is not None) + (v.shape is not None) for v in values)
