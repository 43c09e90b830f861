"""The native backend: a bundle, the runtime library that runs it, the C header, a manifest and reports."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from edgec import version
from edgec.errors import EdgecError
from edgec.ir.info import ModelInfo, info_of
from edgec.ir.model import walk
from edgec.ir.passes import Capabilities
from edgec.targets import Artifact, EmitOptions
from edgec.targets.devices import Device
from edgec.targets.output import output_folder, write_json, write_manifest
from edgec.targets.provenance import provenance
from edgec.targets.toolchain import header, runtime_library

if TYPE_CHECKING:
    from edgec.native.plan import Plan

BUNDLE = "model.edgec"


def plan_model(model: ir.Model, options: EmitOptions) -> tuple[Plan, dict[str, Any]]:
    """(the plan of a lowered model, its memory table as JSON).

    Raises EdgecError: E0301 unsupported operators, E0302 unplannable shapes, E0303 above options.memory_budget.
    """
    from edgec.native.lower import build_plan

    plan = build_plan(model, weights=options.weights, kv=options.kv, max_context=options.max_context,
                      prefill_chunk=options.prefill_chunk, arithmetic=options.arithmetic)
    memory = plan.memory_table(_contexts(plan.max_context)).to_json()
    peak = max(memory["peak"].values())
    if options.memory_budget is not None and peak > options.memory_budget:
        raise EdgecError(
            "E0303", stage="plan", where="--memory-budget", found=f"{peak} bytes at the largest context, one thread",
            wanted=f"at most {options.memory_budget} bytes",
            hint="a shorter --ctx, --kv int8 or --weights fp16 need less",
        )
    return plan, memory


def _contexts(longest: int) -> list[int]:
    """Context lengths of the memory table: the maximum and a few below it."""
    return sorted({c for c in (256, 1024, longest) if c <= longest}) if longest else []


def _tokenizer_section(info: ModelInfo) -> bytes | None:
    if info.tokenizer is None:
        return None
    from edgec.native.tokenizer import tokenizer_section

    return tokenizer_section(info.tokenizer, bos=info.bos_token, eos=info.eos_tokens, vocab_size=info.vocab_size)


def check_options(options: EmitOptions, device: Device) -> None:
    """Raises EdgecError (E0002) for settings of other backends."""
    if options.library:
        raise EdgecError("E0002", stage="options", where="--library", found="--backend native", wanted="--backend ort",
                         hint="a bundle comes with the runtime library anyway")
    if options.opset is not None:
        raise EdgecError("E0002", stage="options", where="--opset", found=f"{options.opset} with --backend native",
                         wanted="without it: a bundle holds no ONNX")


def capabilities(options: EmitOptions) -> Capabilities:
    from edgec.native.lower import capabilities as implemented

    return implemented()


def refuses(options: EmitOptions) -> Callable[[ir.Node], str | None]:
    from edgec.native.lower import unsupported

    return unsupported


def pass_options(options: EmitOptions) -> dict[str, object]:
    return {}


def problems(model: ir.Model, options: EmitOptions) -> list[tuple[ir.Node, str]]:
    """Every node of a lowered model that cannot be planned: by operator and attributes, then by shapes."""
    from edgec.native.lower import unsupported, unsupported_nodes

    found = {node: reason for node in walk(model) if (reason := unsupported(node)) is not None}
    try:
        for node, reason in unsupported_nodes(model):
            found.setdefault(node, reason)
    except EdgecError:
        if not found:
            raise
    return list(found.items())


def check(model: ir.Model, options: EmitOptions) -> None:
    """What the plan has against a lowered model; reads no weights. Raises EdgecError E0301, E0302."""
    from edgec.native.lower import build_plan

    build_plan(model, weights="f32", kv=options.kv, low_bit=False, max_context=options.max_context)


def accept(bundle: Path) -> None:
    """Opens the bundle as a device will: the kernels' own contracts have the last word about a plan.

    Raises EdgecError E0302 when a kernel refuses what the model gives it.
    """
    from edgec.native.session import Model

    try:
        Model(bundle, selftest=False).close()
    except EdgecError as e:
        if e.code == "E0405":  # too large for this machine, which need not be the device
            return
        if e.code != "E0401":
            raise
        raise EdgecError(
            "E0302", stage="plan", where=bundle.name, found=e.found, wanted="calls that the runtime accepts",
            hint="the model gives this operator inputs that do not fit together (onnx.checker may say more); if they "
                 "are right by ONNX, please report it with the model",
        ) from e


def emit(model: ir.Model, device: Device, outdir: Path, options: Mapping[str, Any]) -> Artifact:
    """Compiles a lowered model into `outdir`; options are the fields of EmitOptions.

    Writes model.edgec, the runtime library, include/edgec.h, manifest.json (sizes and SHA-256 of every file),
    edgec.json (the resolved configuration), reports/memory.json and options.reports. The folder appears only when all
    of it is complete; an earlier output in its place is replaced. Raises EdgecError: E0004, E0005, E0007, those of
    plan_model and accept.
    """
    from edgec.native.bundle import write_bundle
    from edgec.native.golden import golden_section, left_out

    chosen = EmitOptions(**options)
    info = info_of(model)
    plan, memory = plan_model(model, chosen)
    missing = left_out(model) if chosen.golden else "not asked for"
    golden = None if missing else golden_section(model, plan)
    tokenizer = _tokenizer_section(info) if chosen.tokenizer else None
    library = runtime_library(device)
    described = {
        "edgec_version": version.__version__,
        "model": {"name": info.name, "task": info.task, "sha256": info.source_sha256, "max_context": plan.max_context,
                  "vocab_size": plan.vocab_size, **({"weights": "random"} if info.random_weights else {})},
        "config": dict(chosen.config),
        "provenance": provenance(info, chosen),
        "memory": memory,
    }
    if golden is None:
        # `edgec verify` and people who wonder why a device cannot check itself find the reason here.
        described["golden"] = missing or "the format cannot describe this model's answers"
    with output_folder(outdir) as work:
        write_bundle(work / BUNDLE, plan, tokenizer=tokenizer, golden=golden, manifest=described)
        accept(work / BUNDLE)
        shutil.copyfile(library, work / device.library_name)
        (work / "include").mkdir()
        shutil.copyfile(header(), work / "include" / "edgec.h")
        write_json(work / "edgec.json", dict(chosen.config))
        write_json(work / "reports" / "memory.json", memory)
        for name, report in chosen.reports.items():
            write_json(work / "reports" / name, report(plan.stored()))
        manifest = write_manifest(work, described | {"target": device.name})
    final = outdir.resolve()
    return Artifact(final, final / BUNDLE, manifest, final / device.library_name, final / "include" / "edgec.h", memory)
