"""Weights that no operator of onnxruntime reads: bit planes with a scale per bit, and palettes.

They are left as their bodies in standard operators, which onnxruntime computes once, when it loads the model: the file
is small, the answers are right, and the weights in memory are dense. That is worth something for small models only, so
above a limit it is refused here, before anything is written.
"""

from __future__ import annotations

import math
from dataclasses import replace

import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.info import attach_info, info_of
from edgec.ir.model import is_op, op_of, static_shape, walk
from edgec.ir.ops import DOMAIN, OPS
from edgec.ir.passes import Context, Pass

LIMIT_BYTES = 200 * 10**6
OPTION = "ort_unpack.limit"
_UNPACK = ("BitPlaneToDense", "PaletteToDense")


def _lacking(found: list[ir.Node], ctx: Context) -> list[str]:
    """Weights whose body holds an operator that the target lacks; which operators."""
    if not ctx.capabilities:
        return []
    bodies = {name: OPS[name].function() for name in {node.op_type for node in found}}
    missing = {name: sorted({op_of(n)[1] for n in body if op_of(n) not in ctx.capabilities and n.op_type != "Constant"})
               for name, body in bodies.items()}
    return [f"{(node.inputs[0].name if node.inputs[0] else '') or node.name}: no {', '.join(missing[node.op_type])}"
            for node in found if missing[node.op_type]]


class OrtUnpack(Pass):
    """Changes no node: notes in the ModelInfo what becomes dense, and raises EdgecError (E0304) above the limit.

    ctx.options["ort_unpack.limit"]: dense bytes, LIMIT_BYTES by default. Runs after the passes that find operators for
    uniform codes.
    """

    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]:
        found = [node for node in walk(model) if is_op(node, *_UNPACK, domain=DOMAIN)]
        if not found:
            return model, False
        lacking = _lacking(found, ctx)
        if lacking:
            raise EdgecError(
                "E0301", stage="pass ort_unpack", where=f"{len(lacking)} weights", found="; ".join(lacking[:20]),
                wanted="formats whose unpacking this opset can spell", hint="--opset 18 or newer, or --quant int4")
        dense = sum(4 * math.prod(static_shape(node.outputs[0]) or (0,)) for node in found)
        limit = ctx.options.get(OPTION, LIMIT_BYTES)
        assert isinstance(limit, int)
        kinds = " and ".join(sorted({node.op_type.removesuffix("ToDense") for node in found}))
        if dense > limit:
            raise EdgecError(
                "E0304", stage="pass ort_unpack", where=f"{len(found)} weights ({kinds})",
                found=f"{dense / 1e6:.0f} MB once onnxruntime has unpacked them at load",
                wanted=f"at most {limit / 1e6:.0f} MB: it has no operator that reads these formats",
                hint="--quant int4 or int8, which it reads as they are stored, or --backend native")
        note = (f"{len(found)} weights ({kinds}) become dense when onnxruntime loads the model, {dense / 1e6:.1f} MB "
                "in memory; int4 and int8 stay in few bits")
        info = info_of(model)
        if note not in info.notes:
            attach_info(model, replace(info, notes=(*info.notes, note)))
        return model, False
