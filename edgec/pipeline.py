"""From a source to an artifact: importer, passes in order, emitter. The runner that watches every pass is here too."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgec import backends, env
from edgec.errors import EdgecError, did_you_mean
from edgec.ir import verify
from edgec.ir.execute import Runner, random_inputs, save
from edgec.ir.info import info_of
from edgec.ir.model import Array, fingerprint, structure_sha256, walk
from edgec.ir.ops import DOMAIN, LIBRARY
from edgec.ir.passes import Context, Pass
from edgec.ir.rules import RuleReport
from edgec.ir.shapes import infer_shapes
from edgec.targets import Artifact, EmitOptions

if TYPE_CHECKING:
    from edgec.compress.store import Finished
    from edgec.decoupling import Decoupled, DecoupleOptions
    from edgec.native.plan import StoredWeight
    from edgec.quantization import QuantizeOptions, StaticOptions

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
    """All passes run so far, in order; `model` is the result. decoupled, static: what a decoupling or a static
    quantization reports, or nothing."""

    model: ir.Model
    records: list[PassRecord] = field(default_factory=list)
    stopped_after: str = ""
    decoupled: dict[str, Any] = field(default_factory=dict)
    static: dict[str, Any] = field(default_factory=dict)

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
        if checker is not None and record.modified and any(
                node.domain == DOMAIN and node.op_type in LIBRARY for node in walk(report.model)):
            _say(f"EDGEC_CHECK: after {step.name} the graph needs edgec's library: nothing is compared from here")
            checker = None
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
class DecoupleStep:
    """Convolutions to depthwise-separable pairs, before anything is quantized. progress(done, all, what)."""

    options: DecoupleOptions
    progress: QuantProgress = lambda done, total, what: None


@dataclass(frozen=True)
class StaticStep:
    """Static 8-bit integers on the way. progress as of QuantStep."""

    options: StaticOptions
    progress: QuantProgress = lambda done, total, what: None


@dataclass(frozen=True)
class CompileOptions:
    """Settings of one compile. importer, emitter: keyword arguments of the door and of EmitOptions."""

    target: str = "host"
    backend: str = backends.DEFAULT
    outdir: Path = Path("out")
    importer: Mapping[str, Any] = field(default_factory=dict)
    emitter: Mapping[str, Any] = field(default_factory=dict)
    passes: Mapping[str, object] = field(default_factory=dict)
    run: RunOptions = field(default_factory=RunOptions)
    quant: QuantStep | StaticStep | None = None
    decouple: DecoupleStep | None = None


@dataclass(frozen=True)
class CompileResult:
    """artifact: None when `stop_after` ended the run before the emitter."""

    model: ir.Model
    report: PassReport
    artifact: Artifact | None


def emit_options(options: CompileOptions) -> EmitOptions:
    """The emitter's settings, checked by the backend. Raises EdgecError (E0002, E0005)."""
    from edgec.targets.devices import device

    # What only the end of a compile knows is no setting.
    chosen = EmitOptions(**{k: v for k, v in options.emitter.items() if k not in ("passes", "reports")})
    backends.backend(options.backend).emitter.check_options(chosen, device(options.target))
    return chosen


def _context(options: CompileOptions) -> Context:
    emitter, chosen = backends.backend(options.backend).emitter, emit_options(options)
    return Context(capabilities=emitter.capabilities(chosen), refuses=emitter.refuses(chosen),
                   options={**emitter.pass_options(chosen), **options.passes})


def import_model(source: str | object, options: CompileOptions) -> ir.Model:
    """The model as the door gives it; of one that was imported before, a copy that shares its weights."""
    from edgec import importers
    from edgec.passes import COMPRESS, NORMALIZE

    row = backends.backend(options.backend)
    options.run.check([p.name for p in (*NORMALIZE, *COMPRESS, *row.lower) if p.name not in row.skips])
    if isinstance(source, ir.Model):
        return _copy(source)
    model = importers.load(source, **options.importer)
    info_of(model).graph_sha256 = structure_sha256(model)
    if env.SPEC.get():
        verify.check(model, verify.imported, "import")
    return model


def _normalize(model: ir.Model, options: CompileOptions, ctx: Context) -> PassReport:
    """The exact passes that the backend wants."""
    from edgec.passes import NORMALIZE

    row = backends.backend(options.backend)
    wanted = tuple(p for p in NORMALIZE if p.name not in row.skips)
    return _stage(wanted, _normal_form(options), "normalize", "E0201", ctx, options.run, PassReport(model))


def _normal_form(options: CompileOptions) -> verify.Spec:
    return verify.canonical if "static_kv" in backends.backend(options.backend).skips else verify.normalized


def _stage(passes: Sequence[Pass], spec: verify.Spec, stage: str, code: str, ctx: Context, run: RunOptions,
           report: PassReport) -> PassReport:
    report = run_passes(report.model, passes, ctx, run, report)
    if not report.stopped_after and env.SPEC.get():
        events = [e for r in report.records for e in r.rules.declined if e.rule == "Decompose"]
        verify.check(report.model, spec, stage, code, "; ".join(f"{e.where}: {e.reason}" for e in events[:20]))
    return report


def _lower(options: CompileOptions, ctx: Context, run: RunOptions, report: PassReport) -> PassReport:
    row = backends.backend(options.backend)
    # The user wrote an operator that the target lacks: that is E0301, not a defect of a pass. The native plan says more
    # about what it refuses than its passes can.
    spec = verify.lowered(ctx.capabilities, True, ctx.refuses) if row.nested else verify.lowered(ctx.capabilities)
    return _stage(row.lower, spec, "lower", "E0301", ctx, run, report)


def prepare_model(source: str | object, options: CompileOptions) -> PassReport:
    """Everything before the emitter: import, normalize, compress, lower. Raises EdgecError."""
    from edgec.passes import COMPRESS

    ctx = _context(options)
    model = import_model(source, options)
    # Samples are drawn and layers are looked at as the native runtime has the model, which calibration runs.
    apart = options.backend != backends.DEFAULT and isinstance(options.quant, QuantStep) and bool(
        options.quant.options) and bool(backends.backend(options.backend).skips)
    native_form = _native_form(model) if apart else None
    report = _normalize(model, options, ctx)
    if report.stopped_after:
        return report
    rest, form = COMPRESS, _normal_form(options)
    if options.decouple is not None:
        # Pairs first: what is quantized then are their weights, calibrated in the graph that they are in.
        after = 1 + [p.name for p in COMPRESS].index("decouple_conv")
        rest = COMPRESS[after:]
        _check_lowers(report.model, options)
        made = _decoupled(report.model, options.decouple, options.target)
        ctx.decoupled, report.decoupled = made.pairs, made.report
        report = _stage(COMPRESS[:after], form, "compress", "E0201", ctx, options.run, report)
        if report.stopped_after:
            return report
    if isinstance(options.quant, StaticStep):
        from edgec.quantization import open_static

        _check_lowers(report.model, options)
        static = open_static(report.model, options.quant.options, options.quant.progress)
        ctx.static, report.static = static, static.report
    elif options.quant is not None:
        if options.quant.options is not None:
            _check_lowers(report.model, options)
        step = options.quant
        if step.options is not None and backends.backend(options.backend).uniform_heads:
            step = replace(step, options=replace(step.options, uniform_heads=True))
        ctx.quantized = _finished_layers(native_form or report.model, step)
    report = _stage(rest, form, "compress", "E0201", ctx, options.run, report)
    return report if report.stopped_after else _lower(options, ctx, options.run, report)


def _native_form(model: ir.Model) -> ir.Model:
    """A normalized copy as the native backend has it; weights are shared."""
    options = CompileOptions()
    return _normalize(_copy(model), options, _context(options)).model


def _copy(model: ir.Model) -> ir.Model:
    copy = model.clone()
    copy.meta.update(model.meta)
    return copy


def _decoupled(model: ir.Model, step: DecoupleStep, target: str) -> Decoupled:
    from edgec import decoupling
    from edgec.targets.devices import device, host

    row, here = device(target), host()
    # Times of this machine say something about a target that runs the same code here.
    timed = row.name == here.name
    return decoupling.decouple(model, step.options, _float_bundle, timed=timed, progress=step.progress)


def _check_lowers(model: ir.Model, options: CompileOptions) -> None:
    """Raises what the target has against the model (E0301, E0302) before hours go into its weights; reads none."""
    # Weights as they are: how they are stored is no question here, and reading them is what this goes before.
    plain = replace(options, passes={**options.passes, "narrow_weights.weights": "f32"})
    backends.backend(options.backend).emitter.check(_lowered_copy(model, plain), emit_options(plain))


def _lowered_copy(model: ir.Model, options: CompileOptions) -> ir.Model:
    return _lower(options, _context(options), RunOptions(), PassReport(_copy(model))).model


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
    return _finished_layers(_normalize(import_model(source, options), options, _context(options)).model, step)


def _float_bundle(model: ir.Model, path: Path) -> None:
    """The normalized `model` as it is, compiled for this machine to `path`, without tokenizer and golden vectors."""
    from edgec.native.bundle import write_bundle
    from edgec.targets import native

    plan = native.plan_model(_lowered_copy(model, CompileOptions()), EmitOptions())[0]
    write_bundle(path, plan, tokenizer=None, golden=None, manifest={})


def compile_model(source: str | object, options: CompileOptions) -> CompileResult:
    """Compiles `source` (a Hugging Face folder, FILE.py:FACTORY, a torch module, what import_model gave).

    Writes the artifact to `options.outdir`. Raises EdgecError; an unknown target is found before the model is read.
    """
    from edgec.compress.store import load_finished
    from edgec.targets.devices import device

    row = device(options.target)
    report = prepare_model(source, options)
    if report.stopped_after:
        return CompileResult(report.model, report, None)
    emitter: dict[str, Any] = {**options.emitter, "passes": tuple(r.name for r in report.records)}
    reports: dict[str, Any] = {}
    if options.decouple is not None:
        emitter["config"] = {**emitter.get("config", {}), "decouple": {
            key: report.decoupled[key] for key in ("budget", "calibration")}}
        reports["decouple.json"] = lambda weights: report.decoupled
    if isinstance(options.quant, StaticStep):
        arguments = options.quant.options.arguments()
        emitter["config"] = {**emitter.get("config", {}), "quant": arguments}
        reports["quant.json"] = partial(_static_report, arguments, report.static)
    elif options.quant is not None:
        state = load_finished(options.quant.folder).state
        # Whether the layers were made on the way or before: the same model gives the same bytes.
        emitter["config"] = {**emitter.get("config", {}), "quant": state["arguments"]}
        reports["quant.json"] = partial(_quant_report, state)
    emit = backends.backend(options.backend).emitter.emit
    artifact = emit(report.model, row, options.outdir, {**emitter, "reports": reports})
    return CompileResult(report.model, report, artifact)


def _quant_report(state: Mapping[str, Any], weights: Sequence[StoredWeight]) -> dict[str, Any]:
    """reports/quant.json: every quantized layer, how it is stored, and which kernels read it."""
    # A weight that was joined with its siblings bears all their names.
    stored = {name: w for w in weights for name in w.name.split("+")}
    return {"arguments": state["arguments"], "kept": state["kept"], "layers": [
        {**{k: v for k, v in layer.items() if k != "file"}, **_stored(stored.get(layer["name"]), layer["rows"])}
        for layer in state["layers"]
    ]}


def _static_report(arguments: Mapping[str, Any], found: Mapping[str, Any], weights: Sequence[StoredWeight]
                   ) -> dict[str, Any]:
    """reports/quant.json of a static quantization: layers with their own errors, every activation's range."""
    stored = {w.name.removesuffix(".codes"): w for w in weights}
    return {"arguments": dict(arguments), **found, "layers": [
        {**layer, **(_stored(stored.get(layer["name"]), layer["rows"]) if "rows" in layer else {})}
        for layer in found["layers"]
    ]}


def _stored(found: StoredWeight | None, rows: int) -> dict[str, Any]:
    """How a layer of `rows` rows lies in the bundle; of joined siblings its share."""
    return {} if found is None else {
        "stored": found.form, "stored_bytes": found.bytes * rows // found.shape[0],
        "bits_per_weight": round(found.bits, 4), "kernels": list(found.kernels)}
