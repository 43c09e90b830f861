"""The ONNX backend node tests through edgec's own front door: import, passes, plan, bundle, native session.

The data of a case is the reference, so the import's own comparison with onnxruntime is left out. Nothing else computes
at run time: a case in which no output depends on what the session is given does not count as passed.
"""

from __future__ import annotations

import re
import signal
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgec.errors import EXIT_INTERNAL, EdgecError
from edgec.native.bundle import write_bundle
from edgec.native.plan import Plan, Space
from edgec.native.session import Model
from edgec.pipeline import CompileOptions, prepare_model
from edgec.targets import EmitOptions
from edgec.targets.native import plan_model

Array = np.ndarray[Any, Any]

# Inputs that models have as constants, by operator and place: sizes, axes, bounds, weights. A case is tried with all
# of its inputs given at run time first; only when that is declined are these bound to the case's values.
_REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
               "ReduceProd", "ReduceSum", "ReduceSumSquare")
PARAMETERS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(_REDUCTIONS, (1,)),
    **dict.fromkeys(("CenterCropPad", "Compress", "CumProd", "CumSum", "DFT", "Expand", "Reshape", "Split", "Squeeze",
                     "Tile", "TopK", "Trilu", "Unsqueeze"), (1, 2)),
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger"), (1, 2, 3)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 3, 4, 7)),
    **dict.fromkeys(("Clip", "Dropout", "Col2Im"), (1, 2)),
    **dict.fromkeys(("Pad", "Resize"), (1, 2, 3)),
    "AffineGrid": (1,),
    "CausalConvWithState": (1, 2),
    "DeformConv": (1, 3),
    "DequantizeLinear": (1, 2),
    "MaxUnpool": (2,),
    "OneHot": (1, 2),
    "Pow": (1,),
    "QLinearConv": (1, 2, 3, 4, 5, 6, 7, 8),
    "QLinearMatMul": (1, 2, 3, 4, 5, 6, 7),
    "QuantizeLinear": (1, 2),
    "Range": (2,),
    "Slice": (1, 2, 3, 4),
    "STFT": (1, 2, 3),
    "Upsample": (1,),
}
# Whatever the sizes are, the result does not depend on values: the sizes are declared to vary, and read when it runs.
SIZES = ("Shape", "Size")


# Cases whose values are not what the runtime gives, and why that is right. By pattern.
_ROUNDED = "the case rounds to bfloat16 after every step, the runtime once at the end"
KNOWN: Mapping[str, str] = {
    "test_attention_*bf16*": _ROUNDED,
    "test_dft_inverse*": "the case holds a rounding error of 2e-7 where the result is 0",
    "test_resize_downsample_scales_*_align_corners": "the case spans corners of a size that is not whole; the runtime "
                                                     "does as ONNX Runtime, the reference of the ONNX door",
}


@dataclass(frozen=True)
class Outcome:
    """status: pass, declined, differs (KNOWN says why) or wrong.

    detail: constants that were bound; an error's code and reason; the difference.
    """

    operator: str
    name: str
    status: str
    detail: str = ""

    def line(self) -> str:
        return "\t".join((self.operator, self.name, self.status, self.detail)).rstrip("\t")


@cache
def cases() -> dict[str, Any]:
    """Name -> case; onnx computes the expected values when they are asked for, which takes some seconds."""
    from onnx.backend.test.loader import load_node_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return {case.name: case for case in load_node_model_tests()}


def base_of(name: str) -> str:
    """`test_elu_expanded_ver18`, which spells test_elu in other operators, belongs to test_elu."""
    return re.sub(r"_expanded.*$", "", name)


def operator_of(name: str) -> str:
    """The operator that the case is about; "several" for a graph of more than one."""
    base = cases().get(base_of(name), cases()[name])
    kinds = {(n.domain, n.op_type) for n in base.model.graph.node}
    if len(kinds) != 1:
        return "several"
    domain, op_type = kinds.pop()
    return f"{domain}::{op_type}" if domain not in ("", "ai.onnx") else op_type


def run_case(name: str) -> Outcome:
    """The outcome of one case; exceptions that are not EdgecError are defects and reported as wrong."""
    case, operator = cases()[name], operator_of(name)
    declined: EdgecError | None = None
    for bound in ((), _parameters(case, name, operator)):
        if declined is not None and not bound:
            break
        try:
            outcome = _attempt(case, bound, operator in SIZES)
        except EdgecError as e:
            if e.exit_code == EXIT_INTERNAL:
                return Outcome(operator, name, "wrong", f"{e.code} {_reason(e)}")  # a defect, not a refusal
            declined = e
            continue
        except Exception as e:
            return Outcome(operator, name, "wrong", f"{type(e).__name__}: {_short(str(e))}")
        known = next((why for pattern, why in KNOWN.items() if fnmatch(name, pattern)), "")
        if outcome[0] == "wrong" and known and outcome[1].startswith("output "):
            outcome = ("differs", known)
        return Outcome(operator, name, *outcome)
    assert declined is not None
    return Outcome(operator, name, "declined", f"{declined.code} {_reason(declined)}")


def _parameters(case: Any, name: str, operator: str) -> tuple[str, ...]:
    """Names of the inputs to bind."""
    base = cases().get(base_of(name), case)
    places = PARAMETERS.get(operator, ())
    node = base.model.graph.node[0]
    wanted = {node.input[i] for i in places if i < len(node.input)} - {""}
    return tuple(v.name for v in case.model.graph.input if v.name in wanted)


def _attempt(case: Any, bound: Sequence[str], sizes_vary: bool) -> tuple[str, str]:
    """(status, detail). Raises EdgecError when it is declined."""
    details = []
    for inputs, outputs in case.data_sets:
        names = [v.name for v in case.model.graph.input]
        given = dict(zip(names, map(_array, inputs), strict=False))
        model, dynamic = _bind(case.model, {k: given.pop(k) for k in bound}), {}
        if sizes_vary:
            dynamic = _loosen(model, given)
        found = run_model(model, given, dynamic)
        if found is None:
            return "declined", "nothing depends on the run: every output is known when it is compiled"
        for value, got, wanted in zip(case.model.graph.output, found, map(_array, outputs), strict=True):
            problem = _difference(got, wanted, value.type.tensor_type.elem_type, case.rtol, case.atol)
            if problem:
                details.append(f"output {value.name}: {problem}")
    if details:
        return "wrong", "; ".join(details)
    return "pass", f"constant: {', '.join(bound)}" if bound else ""


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _bind(model: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy with these inputs as initializers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [v for v in copy.graph.input if v.name not in values]
    types = {v.name: v.type.tensor_type.elem_type for v in copy.graph.input}
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    for name, array in values.items():
        tensor = numpy_helper.from_array(np.asarray(array), name)
        tensor.data_type = types[name]
        copy.graph.initializer.append(tensor)
    return copy


def _loosen(model: onnx.ModelProto, given: Mapping[str, Array]) -> dict[str, dict[int, tuple[int, int]]]:
    """Gives every size a name; returns the ranges to declare."""
    ranges: dict[str, dict[int, tuple[int, int]]] = {}
    for value in model.graph.input:
        for axis, d in enumerate(value.type.tensor_type.shape.dim):
            d.dim_param = f"{value.name}_{axis}"
            ranges.setdefault(value.name, {})[axis] = (1, 2 * given[value.name].shape[axis])
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return ranges


def run_model(model: onnx.ModelProto, given: Mapping[str, Array], dynamic: Mapping[str, Any]) -> list[Array] | None:
    """The outputs of the native runtime; None when none of them depends on what it is given."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.onnx"
        onnx.save(model, path)
        options = CompileOptions(importer={"check": False, "dynamic": dynamic})
        lowered = prepare_model(path, options).model
        plan, _ = plan_model(lowered, EmitOptions())
        if not runs(plan):
            return None
        bundle = Path(folder) / "model.edgec"
        write_bundle(bundle, plan, tokenizer=None, golden=None, manifest={})
        try:
            with Model(bundle, selftest=False) as opened, opened.session(threads=1) as session:
                feeds = {port.name: _native(given[port.name]) for port in opened.inputs}
                return list(session.run(feeds).values())
        except EdgecError as e:
            # What compiles must run: a refusal this late is a defect.
            raise RuntimeError(f"at run time: {e.code} {e.found}") from e


def runs(plan: Plan) -> bool:
    """Whether some output is computed from inputs, or from sizes that inputs bring."""
    entry = plan.entry("main")
    live: set[tuple[Space, int, int]] = set()
    for call in entry.calls:
        moving = any(o.space is Space.INPUT or (o.space, o.index, o.offset) in live for o in call.inputs)
        moving = moving or any(not isinstance(i, int) for i in call.ints)
        for o in call.outputs:
            (live.add if moving else live.discard)((o.space, o.index, o.offset))
    return any(space is Space.OUTPUT for space, _, _ in live)


def _native(array: Array) -> Array:
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _difference(found: Array, wanted: Array, kind: int, rtol: float, atol: float) -> str:
    """What onnx's own runner asks: type, shape, and allclose. "" when they agree."""
    if kind == TensorProto.BFLOAT16 and found.dtype == np.uint16:
        found = found.view(wanted.dtype)
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"{found.dtype}{list(found.shape)} instead of {wanted.dtype}{list(wanted.shape)}"
    a, b = (v.astype(np.float64) if v.dtype.kind not in "iub" else v for v in (found, wanted))
    try:
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
    except AssertionError as e:
        return _short(str(e))
    return ""


def _short(text: str) -> str:
    return " ".join(text.split())[:160]


def _reason(error: EdgecError) -> str:
    """One line that names operator and reason, without the names of nodes and values."""
    text = error.found or error.wanted
    text = re.sub(r"^\s*", "", text)
    text = re.sub(r"^(\S+) '[^']*'(?: \([^)]*\))?: ", r"\1: ", text.splitlines()[0] if text.splitlines() else text)
    return _short(text)


# -- all of them -----------------------------------------------------------------------------------------------------

_SECONDS = 30  # of one case; a hang is a defect


def _guarded(name: str) -> Outcome:
    def stop(*_: object) -> None:
        raise TimeoutError(f"no answer within {_SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run_case(name)
    finally:
        signal.alarm(0)


def run_all(names: Sequence[str], workers: int = 2) -> list[Outcome]:
    """Outcomes in the order of `names`. A case that kills its process raises BrokenProcessPool."""
    cases()  # computed once, then shared by forking
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        return list(pool.map(_guarded, names, chunksize=16))
