"""Takes from the bias of every linear what rounding adds to its result on the average, per output channel.

Rounded weights and inputs shift the mean of a result; the shift is measured on the samples, each linear on its own
rounded input beside the float one (edgec/compress/static.py), so that what a layer adds is taken away where it arises
and no shift is counted twice. Source: Nagel et al., Data-Free Quantization, arXiv 1906.04721, the empirical form.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgec.compress.static import Static
from edgec.ir.model import Builder, add_initializer, graph_of, is_op, required
from edgec.ir.passes import Context, Pass


class CorrectBias(Pass):
    """Where `ctx.static` asks for it. A convolution or Gemm without a bias gets one; a MatMul without one is left."""

    exact: ClassVar[bool] = False

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        static = ctx.static
        if not isinstance(static, Static) or not static.correct:
            return model, False
        regions, _ = static.regions(model)
        errors = static.errors(model, regions)
        for region in regions:
            mean = errors[region.out.name or ""].mean
            if region.weight is None or mean is None:
                continue
            node = region.chain[1] if is_op(region.node, "MatMul") and region.bias is not None else region.node
            if is_op(node, "MatMul"):
                ctx.rules.add(self.name, region.name, "it has no bias")
                continue
            op = Builder(node)
            old = np.zeros(len(mean)) if region.bias is None else region.bias
            bias = op.const((old - mean).astype(np.float32), name=f"{region.name}.corrected")
            add_initializer(graph_of(node), bias)
            if is_op(node, "Add"):
                at = next(i for i in (0, 1) if required(node, i).is_initializer())
                node.replace_input_with(at, bias)
            else:
                node.resize_inputs(3)
                node.replace_input_with(2, bias)
            ctx.rules.add(self.name, region.name)
        _drop_unread(model)
        return model, ctx.rules.modified


def _drop_unread(model: ir.Model) -> None:
    """The biases that were replaced."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del model.graph.initializers[name]
