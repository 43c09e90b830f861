"""A tiny plan, written, opened and run by the native runtime on every instruction set of this machine.

Needs no model and no torch: it says whether library, bundle format and kernels of this installation fit together.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from edgec.compress.formats import Array, Dtype, Format
from edgec.env import ISA
from edgec.errors import EdgecError
from edgec.native.bundle import write_bundle
from edgec.native.dims import Dim, dim
from edgec.native.plan import Call, Entry, Operand, Plan, Port, Space, Weight
from edgec.native.session import Model
from edgec.targets.devices import host

_ROWS, _IN, _OUT = 3, 40, 24
_RELU = 1


def tiny_plan(weight: Array, bias: Array) -> Plan:
    """y = relu(x W^T + b) as a plan of one call; weight [24, 40], bias [24], x [3, 40]."""
    def dims(*sizes: int) -> tuple[Dim, ...]:
        return tuple(dim(size) for size in sizes)

    call = Call(
        "linear", "selftest", (
            Operand(Space.OUTPUT, dims=dims(_ROWS, _OUT)), Operand(Space.INPUT, dims=dims(_ROWS, _IN)),
            Operand(Space.WEIGHT, 0, format=Format.PANEL16, dims=dims(_OUT, _IN)),
            Operand(Space.WEIGHT, 1, dims=dims(_OUT)), Operand(Space.NONE),
        ), (_RELU, 0), (0.0, 0.0),
    )
    entry = Entry("main", (Port("x", Dtype.F32, dims(_ROWS, _IN)),), (Port("y", Dtype.F32, dims(_ROWS, _OUT)),),
                  (call,), 0)
    weights = (Weight("w", Dtype.F32, Format.PANEL16, weight.shape, lambda: weight),
               Weight("b", Dtype.F32, Format.PLAIN, bias.shape, lambda: bias))
    return Plan(0, 0, 0, 0, weights, (), (entry,))


def run_selftest() -> str:
    """Says what was run. Raises EdgecError: E0406 for a wrong answer, and whatever opening raises."""
    rng = np.random.default_rng(1)
    weight, bias, x = (rng.standard_normal(shape).astype(np.float32)
                       for shape in ((_OUT, _IN), (_OUT,), (_ROWS, _IN)))
    wanted = np.maximum(x.astype(np.float64) @ weight.astype(np.float64).T + bias, 0)
    sets = host().isa
    with tempfile.TemporaryDirectory(prefix="edgec-") as folder:
        path = Path(folder) / "selftest.edgec"
        write_bundle(path, tiny_plan(weight, bias), tokenizer=None, golden=None, manifest={"purpose": "selftest"})
        for isa in sets:
            with ISA.override(isa), Model(path) as model, model.session() as session:
                if model.info.isa != isa or model.info.warning:
                    raise EdgecError("E0406", stage="selftest", where=isa, wanted=isa,
                                     found=model.info.warning or model.info.isa)
                error = float(np.abs(session.run({"x": x})["y"] - wanted).max())
                if not error < 1e-4:
                    raise EdgecError("E0406", stage="selftest", where=isa, found=f"an error of {error:.3g}",
                                     wanted="less than 1e-4")
    return f"one layer on {', '.join(sets)}"
