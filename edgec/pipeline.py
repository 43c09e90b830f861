"""From a source to an artifact: importer, passes in order, emitter. The runner that watches every pass is here too."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgec import env
from edgec.errors import EdgecError, did_you_mean
from edgec.ir import verify
from edgec.ir.execute import Runner, random_inputs, save
from edgec.ir.info import info_of
from edgec.ir.model import Array, fingerprint, structure_sha256, walk
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import RuleReport
from edgec.ir.shapes import infer_shapes

if TYPE_CHECKING:
    from edgec.compress.store import Finished
    from edgec.native.plan import Plan, StoredWeight
    from edgec.quantization import QuantizeOptions
    from edgec.targets import Artifact

QuantProgress = Callable[[int, int, str], None]

# EDGEC_CHECK: a pass is exact; this leaves room for sums taken in another order, relative to the largest magnitude.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class PassRecord:
    """What the runner saw of one pass. seconds: of `call` alone."""

    name: str
    modified: bool
    seconds: float
    nodes: int
    rules: RuleReport


@dataclass
class PassReport:
    """All passes run so far, in order; `model` is the result."""

    model: ir.Model
    records: list[PassRecord] = field(default_factory=list)
    stopped_after: str = ""

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {"pass": r.name, "modified": r.modified, "seconds": round(r.seconds, 6), "nodes": r.nodes,
             "fired": len(r.rules.fired),
             "declined": [{"rule": e.rule, "where": e.where, "reason": e.reason} for e in r.rules.declined]}
            for r in self.records
        ]


@dataclass(frozen=True)
class RunOptions:
    """How to watch a run. dump_dir: one .onnx per pass. print_after: graph text to stderr. stop_after: end there."""

    dump_dir: Path | None = None
    print_after: tuple[str, ...] = ()
    stop_after: str = ""

    def check(self, known: Sequence[str]) -> None:
        """Raises EdgecError (EDGEC-E0002) for a pass name that is not one of `known`."""
        for name in (*self.print_after, *((self.stop_after,) if self.stop_after else ())):
            if name not in known:
                raise EdgecError("E0002", stage="passes", where="--print-after, --stop-after", found=repr(name),
                                 wanted="the name of a pass", hint=did_you_mean(name, known))


def run_passes(
    model: ir.Model, passes: Sequence[Pass], ctx: Context, options: RunOptions = RunOptions(),
    report: PassReport | None = None,
) -> PassReport:
    """Runs `passes` in order; continues `report` when one is given, so that dumps number on.

    Of each pass the runner checks what it requires, that it told the truth about `modified`, and what it ensures.
    Raises EdgecError: EDGEC-E0203 for a broken contract, EDGEC-E0202 when EDGEC_CHECK finds other numbers, and
    whatever a pass raises, with the passes run so far in its hint.
    """
    report = PassReport(model) if report is None else report
    report.model = model
    if report.stopped_after:
        return report
    # Passes decide by shapes, so those of values that earlier passes made must be known.
    infer_shapes(model)
    debug = env.DEBUG.get()
    checker = _NumericCheck(model) if env.CHECK.get() else None
    for step in passes:
        record = _run_one(step, report, ctx)
        report.records.append(record)
        if record.modified:
            infer_shapes(report.model)
        _log(record, report.model, debug)
        if checker is not None:
            checker.after(step, report.model, record.modified)
        if options.dump_dir is not None:
            _dump(options.dump_dir, len(report.records), step.name, report.model)
        if step.name in options.print_after and debug < 5:
            _say(str(report.model))
        if step.name == options.stop_after:
            report.stopped_after = step.name
            break
    return report


def _run_one(step: Pass, report: PassReport, ctx: Context) -> PassRecord:
    def broken(what: str, found: Sequence[str]) -> EdgecError:
        return EdgecError("E0203", stage=f"pass {step.name}", where=what, found="; ".join(found), hint=_so_far(report))

    before = fingerprint(report.model)
    unmet = list(step.requires(report.model))
    if unmet:
        raise broken("requires", unmet)
    ctx.rules = RuleReport()
    start = time.perf_counter()
    try:
        model, modified = step.call(report.model, ctx)
    except EdgecError as e:
        raise EdgecError(e.code.removeprefix("EDGEC-"), stage=e.stage, where=e.where, found=e.found, wanted=e.wanted,
                         hint="; ".join(filter(None, (e.hint, _so_far(report))))) from e
    seconds = time.perf_counter() - start
    # A new model object without the information would lose it for every later stage.
    if model is not report.model:
        model.meta.update({k: v for k, v in report.model.meta.items() if k not in model.meta})
    changed = fingerprint(model) != before
    if changed != modified:
        raise broken("modified", [f"said {modified}, the graph {'changed' if changed else 'did not change'}"])
    unkept = list(step.ensures(model))
    if unkept:
        raise broken("ensures", unkept)
    if env.SPEC.get() and modified:
        verify.check(model, verify.well_formed, f"after {step.name}")
    report.model = model
    return PassRecord(step.name, modified, seconds, sum(1 for _ in walk(model)), ctx.rules)


def _so_far(report: PassReport) -> str:
    return "passes run so far: " + (", ".join(r.name for r in report.records) or "none")


def _say(text: str) -> None:
    # Progress goes to stderr: stdout belongs to the data a command prints.
    sys.stderr.write(text + "\n")


def _log(record: PassRecord, model: ir.Model, debug: int) -> None:
    if debug >= 1:
        took = f" {record.seconds * 1e3:8.1f} ms" if debug >= 2 else ""
        what = "changed" if record.modified else "-"
        _say(f"pass {record.name:24}{took} {record.nodes:6} nodes  {what}")
    if debug >= 3:
        for line in record.rules.lines():
            _say(f"  {line}")
    if debug >= 5:
        _say(str(model))


def _dump(folder: Path, number: int, name: str, model: ir.Model) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise EdgecError("E0004", stage="dump", where=str(folder), found=str(e), wanted="a writable folder") from e
    save(model, folder / f"{number:03d}_{name}.onnx")


class _NumericCheck:
    """Keeps the outputs of the newest graph on fixed random inputs and compares them after each pass."""

    def __init__(self, model: ir.Model) -> None:
        self._remember(model, "before the passes")

    def _remember(self, model: ir.Model, stage: str) -> None:
        self.feeds = random_inputs(model)
        with Runner(model, stage) as runner:
            self.outputs = runner.run(self.feeds)

    def after(self, step: Pass, model: ir.Model, modified: bool) -> None:
        name = step.name
        if not modified:
            return
        same = {v.name for v in model.graph.inputs} == set(self.feeds) and [
            v.name for v in model.graph.outputs] == list(self.outputs)
        if not same or not step.exact:
            # A pass that gives the model another interface, like static_kv, is compared by its own tests.
            what = "the numbers on purpose" if same else "the interface"
            _say(f"EDGEC_CHECK: {name} changed {what}; comparing anew from here")
            self._remember(model, f"EDGEC_CHECK after {name}")
            return
        with Runner(model, f"EDGEC_CHECK after {name}") as runner:
            found = runner.run(self.feeds)
        for output, wanted in self.outputs.items():
            error = relative_error(found[output], wanted)
            if not error <= _TOLERANCE:
                raise EdgecError("E0202", stage=f"pass {name}", where=f"output {output!r}",
                                 found=f"relative error {error:.3g}", wanted=f"at most {_TOLERANCE:g}")


def relative_error(found: Array, wanted: Array) -> float:
    """Largest difference relative to the largest magnitude of `wanted`; inf for shapes or NaNs that differ."""
    if found.shape != wanted.shape:
        return float("inf")
    if wanted.size == 0:
        return 0.0
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)) or not np.array_equal(a[~np.isfinite(a)], b[~np.isfinite(b)],
                                                                                equal_nan=True):
        return float("inf")
    finite = np.isfinite(b)
    scale = float(np.max(np.abs(b[finite]), initial=0.0))
    return float(np.max(np.abs(a[finite] - b[finite]), initial=0.0)) / (scale or 1.0)


@dataclass(frozen=True)
class QuantStep:
    """How a compile comes by quantized layers. options: quantize into `folder`; None: take what is finished there.

    progress(done, all, what).
    """

    folder: Path
    options: QuantizeOptions | None = None
    progress: QuantProgress = lambda done, total, what: None


@dataclass(frozen=True)
class CompileOptions:
    """Settings of one compile. importer, emitter: keyword arguments of the door and of the backend."""

    target: str = "host"
    outdir: Path = Path("out")
    importer: Mapping[str, Any] = field(default_factory=dict)
    emitter: Mapping[str, Any] = field(default_factory=dict)
    passes: Mapping[str, object] = field(default_factory=dict)
    run: RunOptions = field(default_factory=RunOptions)
    quant: QuantStep | None = None


@dataclass(frozen=True)
class CompileResult:
    """artifact: None when `stop_after` ended the run before the emitter."""

    model: ir.Model
    report: PassReport
    artifact: Artifact | None


def _context(options: CompileOptions) -> Context:
    from edgec.native.lower import capabilities, unsupported

    return Context(capabilities=capabilities(), refuses=unsupported, options=dict(options.passes))


def _normalize(source: str | object, options: CompileOptions, ctx: Context) -> PassReport:
    """Import and the exact passes."""
    from edgec import importers
    from edgec.passes import COMPRESS, LOWER, NORMALIZE

    options.run.check([p.name for p in (*NORMALIZE, *COMPRESS, *LOWER)])
    model = importers.load(source, **options.importer)
    info_of(model).graph_sha256 = structure_sha256(model)
    if env.SPEC.get():
        verify.check(model, verify.imported, "import")
    return _stage(NORMALIZE, verify.normalized, "normalize", "E0201", ctx, options.run, PassReport(model))


def _stage(passes: Sequence[Pass], spec: verify.Spec, stage: str, code: str, ctx: Context, run: RunOptions,
           report: PassReport) -> PassReport:
    report = run_passes(report.model, passes, ctx, run, report)
    if not report.stopped_after and env.SPEC.get():
        events = [e for r in report.records for e in r.rules.declined if e.rule == "Decompose"]
        verify.check(report.model, spec, stage, code, "; ".join(f"{e.where}: {e.reason}" for e in events[:20]))
    return report


def _lower(ctx: Context, run: RunOptions, report: PassReport) -> PassReport:
    from edgec.passes import LOWER

    # The user wrote an operator that the target lacks: that is E0301, not a defect of a pass.
    return _stage(LOWER, verify.lowered(ctx.capabilities), "lower", "E0301", ctx, run, report)


def prepare_model(source: str | object, options: CompileOptions) -> PassReport:
    """Everything before the emitter: import, normalize, compress, lower. Raises EdgecError."""
    from edgec.passes import COMPRESS

    ctx = _context(options)
    report = _normalize(source, options, ctx)
    if report.stopped_after:
        return report
    if options.quant is not None:
        if options.quant.options is not None:
            _check_lowers(report.model, options)
        ctx.quantized = _finished_layers(report.model, options.quant)
    report = _stage(COMPRESS, verify.normalized, "compress", "E0201", ctx, options.run, report)
    return report if report.stopped_after else _lower(ctx, options.run, report)


def _check_lowers(model: ir.Model, options: CompileOptions) -> None:
    """Raises what the target has against the model (E0301, E0302) before hours go into its weights; reads none."""
    from edgec.native.lower import build_plan

    emitter = options.emitter
    build_plan(_lowered_copy(model), weights="f32", kv=emitter.get("kv", "f32"), low_bit=False,
               max_context=emitter.get("max_context"))


def _lowered_copy(model: ir.Model) -> ir.Model:
    copy = model.clone()
    copy.meta.update(model.meta)
    options = CompileOptions()
    return _lower(_context(options), options.run, PassReport(copy)).model


def _finished_layers(model: ir.Model, step: QuantStep) -> Finished:
    from edgec import quantization
    from edgec.compress.store import load_finished

    if step.options is not None:
        # What the import compared with lies in cycles, and may be as large as the model.
        gc.collect()
        return quantization.quantize(model, step.options, step.folder, partial(_float_bundle, model), step.progress)
    finished = load_finished(step.folder)
    quantization.check_same_model(finished, model, step.folder)
    return finished


def quantize_model(source: str | object, importer: Mapping[str, Any], step: QuantStep) -> Finished:
    """The quantization alone, into step.folder. Raises EdgecError."""
    options = CompileOptions(importer=importer)
    return _finished_layers(_normalize(source, options, _context(options)).model, step)


def _float_bundle(model: ir.Model, path: Path) -> None:
    """The normalized `model` as it is, compiled for this machine to `path`, without tokenizer and golden vectors."""
    from edgec.native.bundle import write_bundle
    from edgec.targets import EmitOptions, native

    plan = native.plan_model(_lowered_copy(model), EmitOptions())[0]
    write_bundle(path, plan, tokenizer=None, golden=None, manifest={})


def compile_model(source: str | object, options: CompileOptions) -> CompileResult:
    """Compiles `source` (Hugging Face folder, FILE.py:FACTORY, torch module) for `options.target`.

    Writes the artifact to `options.outdir`. Raises EdgecError; an unknown target is found before the model is read.
    """
    from edgec.compress.store import load_finished
    from edgec.targets import native
    from edgec.targets.devices import device

    row = device(options.target)
    report = prepare_model(source, options)
    if report.stopped_after:
        return CompileResult(report.model, report, None)
    emitter: dict[str, Any] = {**options.emitter, "passes": tuple(r.name for r in report.records)}
    if options.quant is not None:
        state = load_finished(options.quant.folder).state
        # Whether the layers were made on the way or before: the same model gives the same bytes.
        emitter["config"] = {**emitter.get("config", {}), "quant": state["arguments"]}
        emitter["reports"] = {"quant.json": partial(_quant_report, state)}
    artifact = native.emit(report.model, row, options.outdir, emitter)
    return CompileResult(report.model, report, artifact)


def _quant_report(state: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """reports/quant.json: every quantized layer, how the plan stores it, and which kernels read it."""
    # A weight that was joined with its siblings bears all their names.
    stored = {name: w for w in plan.stored() for name in w.name.split("+")}
    return {"arguments": state["arguments"], "kept": state["kept"], "layers": [
        {**{k: v for k, v in layer.items() if k != "file"}, **_stored(stored.get(layer["name"]), layer["rows"])}
        for layer in state["layers"]
    ]}


def _stored(found: StoredWeight | None, rows: int) -> dict[str, Any]:
    """How a layer of `rows` rows lies in the bundle; of joined siblings its share."""
    return {} if found is None else {
        "stored": found.form, "stored_bytes": found.bytes * rows // found.shape[0],
        "bits_per_weight": round(found.bits, 4), "kernels": list(found.kernels)}
