"""The coreml backend: a folder with model.mlpackage, an ML program for Apple's devices.

The program is built through coremltools (an optional extra). Nothing here runs it: Core ML exists on Apple's systems
only. What is written is checked by an interpreter of ours in the tests.
"""

from __future__ import annotations

import contextlib
import io
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from edgec import version
from edgec.errors import EdgecError, missing_extra
from edgec.ir.info import ModelInfo, info_of
from edgec.ir.passes import Capabilities
from edgec.targets import Artifact, EmitOptions
from edgec.targets import coreml_program as programs
from edgec.targets.coreml_ops import OURS, STANDARD
from edgec.targets.coreml_options import CoreMLOptions
from edgec.targets.coreml_scope import NewerNeededError
from edgec.targets.devices import Device, host
from edgec.targets.output import output_folder, write_json, write_manifest
from edgec.targets.provenance import provenance

if TYPE_CHECKING:
    from edgec.native.plan import StoredWeight

MODEL = "model.mlpackage"
_STAGE = "emit coreml"
_TESTED = "9.0"
_DEFAULT, _NEWEST = "iOS17", "iOS18"
_INSIDE = Path("Data") / "com.apple.CoreML"
_WEIGHTS = _INSIDE / "weights" / "weight.bin"


def check_options(options: EmitOptions, device: Device) -> None:
    """Raises EdgecError: E0002 for settings that another runtime decides about and for targets without Core ML, E0005
    without coremltools."""
    _coremltools_version()
    # The host is what nobody has chosen.
    if device.os != "macos" and device.name != host().name:
        raise EdgecError("E0002", stage="options", where="--target", found=f"{device.name} with --backend coreml",
                         wanted="a system of Apple's, or no --target: Core ML exists nowhere else",
                         hint="--coreml-target says which system the package needs")
    foreign = [(name, value) for name, value, default in (
        ("--weights", options.weights, "auto"), ("--kv", options.kv, "f32"), ("--opset", options.opset, None),
        ("--arithmetic", options.arithmetic, "exact"), ("--memory-budget", options.memory_budget, None),
        ("--library", options.library, False),
    ) if value != default]
    for name, value in foreign:
        raise EdgecError("E0002", stage="options", where=name, found=f"{value} with --backend coreml",
                         wanted="without it: see --coreml-precision and --coreml-target")


def _coremltools_version() -> str:
    """Raises EdgecError (E0005) when coremltools is not installed."""
    try:
        return installed("coremltools")
    except PackageNotFoundError:
        raise missing_extra("coreml", "coremltools", _STAGE) from None


def _notes(info: ModelInfo) -> list[str]:
    found = _coremltools_version()
    notes = list(info.notes)
    if found != _TESTED:
        notes.append(f"coremltools {found} is installed, edgec is tested with {_TESTED}: pip install "
                     f"coremltools=={_TESTED}")
    if info.task == "causal-lm":
        notes.append("the package computes whole prompts (a prefill) and keeps no cache between calls")
    return notes


def capabilities(options: EmitOptions) -> Capabilities:
    return frozenset({("", name) for name in STANDARD} | {("edgec", name) for name in OURS})


def refuses(options: EmitOptions) -> Callable[[ir.Node], str | None]:
    return programs.refusal


def pass_options(options: EmitOptions) -> dict[str, object]:
    return {}


def problems(model: ir.Model, options: EmitOptions) -> list[tuple[ir.Node, str]]:
    """Every node of a lowered model that Core ML does not take, and why."""
    return programs.problems(model)


def check(model: ir.Model, options: EmitOptions) -> None:
    """What emit would find wrong with a lowered model, without reading weights. Raises EdgecError: E0301 with the nodes
    that Core ML does not take; E0002, E0302 about its inputs."""
    from edgec.ir.model import describe

    found = programs.problems(model)
    if found:
        raise EdgecError("E0301", stage=_STAGE, where=describe(found[0][0]), wanted="operators of Core ML",
                         found="; ".join(f"{describe(node)}: {reason}" for node, reason in found[:20]),
                         hint="`edgec check --backend coreml` lists all; --backend native and ort take more")
    context = _context(info_of(model), options)
    with _quiet():
        wanted = _NEWEST if options.coreml.target == "auto" else options.coreml.target
        try:
            programs.check_inputs(model, options.coreml, context, wanted)
        except NewerNeededError as e:
            raise _too_old(e, wanted) from None


def _context(info: ModelInfo, options: EmitOptions) -> int:
    """Most tokens of a prompt. Raises EdgecError (E0002) beyond the model's."""
    wanted = options.max_context or info.max_context
    if info.task == "causal-lm" and wanted > info.max_context > 0:
        raise EdgecError("E0002", stage=_STAGE, where="--ctx", found=f"{wanted} tokens",
                         wanted=f"at most {info.max_context}, as the model")
    return wanted


def emit(model: ir.Model, device: Device, outdir: Path, options: Mapping[str, Any]) -> Artifact:
    """Writes a lowered model into `outdir`; options are the fields of EmitOptions.

    model.mlpackage, manifest.json, edgec.json, reports/weights.json and options.reports; the same model gives the same
    bytes. Raises EdgecError: E0002, E0004, E0005, E0301, E0302.
    """
    chosen = EmitOptions(**options)
    check_options(chosen, device)
    check(model, chosen)
    info = info_of(model)
    context, notes = _context(info, chosen), _notes(info)
    with _quiet():
        built, target = _built(model, chosen.coreml, context)
        with output_folder(outdir) as work:
            _convert(built, target, work / MODEL)
            about = _about(info, chosen, built, target, context, notes)
            _settle(work / MODEL, about)
            weights = stored(built)
            write_json(work / "reports" / "weights.json", {
                "weights": [{"name": w.name, "shape": list(w.shape), "form": w.form, "bytes": w.bytes,
                             "bits_per_weight": round(w.bits, 4)} for w in weights],
                "weight_bytes": _size(work / MODEL / _WEIGHTS), "notes": notes})
            for name, report in chosen.reports.items():
                write_json(work / "reports" / name, report(weights))
            write_json(work / "edgec.json", dict(chosen.config))
            manifest = write_manifest(work, about | {"target": device.name})
    final = outdir.resolve()
    return Artifact(final, final / MODEL, manifest, notes=tuple(notes))


def _built(model: ir.Model, options: CoreMLOptions, context: int) -> tuple[programs.Built, str]:
    """(the program, its deployment target). Raises EdgecError (E0301) when the target asked for lacks something."""
    wanted = _DEFAULT if options.target == "auto" else options.target
    try:
        return programs.build(model, options, wanted, context), wanted
    except NewerNeededError as e:
        if options.target == "auto":
            return programs.build(model, options, _NEWEST, context), _NEWEST
        raise _too_old(e, wanted) from None


def _too_old(error: NewerNeededError, target: str) -> EdgecError:
    return EdgecError("E0301", stage=_STAGE, where=error.where, found=f"{error.what} for {target}",
                      wanted=f"--coreml-target {_NEWEST}",
                      hint="or a palette of one table, or int8 with one scale per row, for older systems")


@contextmanager
def _quiet() -> Iterator[None]:
    """coremltools tells of frameworks it was not tested with, which are not used here."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _convert(built: programs.Built, target: str, package: Path) -> None:
    """Writes the package. Our graph is final: of coremltools' passes only those run that writing needs."""
    import coremltools as ct

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            ct.convert(built.program, source="milinternal", convert_to="mlprogram", inputs=built.inputs,
                       minimum_deployment_target=getattr(ct.target, target), compute_precision=ct.precision.FLOAT32,
                       pass_pipeline=ct.PassPipeline(["common::dedup_op_and_var_names"], "edgec"),
                       skip_model_load=True, package_dir=str(package))
    except (ValueError, TypeError, AssertionError, NotImplementedError) as e:
        raise EdgecError("E0301", stage=_STAGE, where="coremltools", found=str(e) or type(e).__name__,
                         wanted="a program that it writes", hint="--backend native or ort; please report it") from e


def _settle(package: Path, about: Mapping[str, Any]) -> None:
    """Metadata in, dates and random names out: the same model gives the same bytes."""
    from coremltools.proto import Model_pb2

    path = package / _INSIDE / "model.mlmodel"
    spec = Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    meta = spec.description.metadata
    meta.Clear()
    meta.author = f"edgec {about['edgec_version']}"
    meta.shortDescription = about["model"]["name"]
    meta.versionString = about["edgec_version"]
    for key, value in (("edgec.source_sha256", about["provenance"]["source_sha256"]),
                       ("edgec.weights_sha256", about["model"]["sha256"]), ("edgec.coremltools", about["coremltools"])):
        meta.userDefined[key] = value
    spec.mlProgram.attributes.clear()
    path.write_bytes(spec.SerializeToString(deterministic=True))
    entries = {"model.mlmodel": "CoreML Model Specification"}
    if (package / _WEIGHTS).exists():
        entries["weights"] = "CoreML Model Weights"
    elif (package / _WEIGHTS).parent.exists():
        (package / _WEIGHTS).parent.rmdir()  # empty: no constant was large enough
    keys = {name: str(uuid.uuid5(uuid.NAMESPACE_OID, f"edgec/{name}")).upper() for name in entries}
    write_json(package / "Manifest.json", {
        "fileFormatVersion": "1.0.0", "rootModelIdentifier": keys["model.mlmodel"],
        "itemInfoEntries": {keys[name]: {"author": "com.apple.CoreML", "description": text, "name": name,
                                         "path": f"com.apple.CoreML/{name}"} for name, text in entries.items()}})


def _size(weights: Path) -> int:
    """Bytes of the weight file, which a program without large constants lacks."""
    return weights.stat().st_size if weights.exists() else 0


def _about(info: ModelInfo, options: EmitOptions, built: programs.Built, target: str, context: int, notes: list[str]
           ) -> dict[str, Any]:
    return {
        "edgec_version": version.__version__, "backend": "coreml", "deployment_target": target,
        "precision": options.coreml.precision, "coremltools": _coremltools_version(),
        "model": {"name": info.name, "task": info.task, "sha256": info.source_sha256, "max_context": context,
                  "vocab_size": info.vocab_size, **({"weights": "random"} if info.random_weights else {})},
        "names": built.names, "config": dict(options.config), "provenance": provenance(info, options), "notes": notes,
    }


def stored(built: programs.Built) -> list[StoredWeight]:
    """How the package stores each weight."""
    from edgec.native.plan import StoredWeight

    return [StoredWeight(name, shape, form, size, form, ()) for name, (shape, form, size) in
            sorted(built.stored.items())]
