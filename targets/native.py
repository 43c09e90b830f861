"""The native backend: a bundle, the runtime library that runs it, the C header, a manifest and reports."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec import version
from edgec.errors import EdgecError
from edgec.ir.info import ModelInfo, info_of
from edgec.targets import Artifact, EmitOptions
from edgec.targets.devices import Device
from edgec.targets.output import MANIFEST, file_sha256, output_folder, write_json
from edgec.targets.toolchain import header, runtime_library

if TYPE_CHECKING:
    import onnx_ir as ir

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
            hint="a shorter --ctx, --kv fp16 or --weights fp16 need less",
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


def _provenance(info: ModelInfo, options: EmitOptions) -> dict[str, Any]:
    """What the bundle was made of and by which steps (docs/format.md, MANIFEST)."""
    source = {
        "weights": info.source_sha256, "graph": info.graph_sha256,
        "facts": _json_sha256([info.task, info.max_context, info.vocab_size, info.bos_token, info.eos_tokens,
                               sorted(info.dynamic.items())]),
        **({"tokenizer": file_sha256(info.tokenizer)} if options.tokenizer and info.tokenizer is not None else {}),
    }
    return {"source": source, "source_sha256": _json_sha256(source), "config_sha256": _json_sha256(options.config),
            "passes": list(options.passes)}


def _json_sha256(value: Any) -> str:
    """SHA-256 of a value as JSON without spaces, keys in order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def emit(model: ir.Model, device: Device, outdir: Path, options: Mapping[str, Any]) -> Artifact:
    """Compiles a lowered model into `outdir`; options are the fields of EmitOptions.

    Writes model.edgec, the runtime library, include/edgec.h, manifest.json (sizes and SHA-256 of every file),
    edgec.json (the resolved configuration), reports/memory.json and options.reports. The folder appears only when all
    of it is complete; an earlier output in its place is replaced. Raises EdgecError: E0004, E0005, E0007, those of
    plan_model.
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
                  "vocab_size": plan.vocab_size},
        "config": dict(chosen.config),
        "provenance": _provenance(info, chosen),
        "memory": memory,
    }
    if golden is None:
        # `edgec verify` and people who wonder why a device cannot check itself find the reason here.
        described["golden"] = missing or "the format cannot describe this model's answers"
    with output_folder(outdir) as work:
        write_bundle(work / BUNDLE, plan, tokenizer=tokenizer, golden=golden, manifest=described)
        shutil.copyfile(library, work / device.library_name)
        (work / "include").mkdir()
        shutil.copyfile(header(), work / "include" / "edgec.h")
        write_json(work / "edgec.json", dict(chosen.config))
        write_json(work / "reports" / "memory.json", memory)
        for name, report in chosen.reports.items():
            write_json(work / "reports" / name, report(plan))
        files = sorted(path for path in work.rglob("*") if path.is_file())
        manifest = described | {
            "target": device.name,
            "files": {
                path.relative_to(work).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
                for path in files
            },
        }
        write_json(work / MANIFEST, manifest)
    final = outdir.resolve()
    return Artifact(final, final / BUNDLE, final / device.library_name, final / "include" / "edgec.h", manifest, memory)
