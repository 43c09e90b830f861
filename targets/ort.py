"""The ort backend: a folder with model.onnx that stock ONNX Runtime runs, and what onnxruntime-genai wants besides."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from edgec import version
from edgec.compress.low_bit import LowBitMatrix
from edgec.errors import EdgecError
from edgec.ir.info import ModelInfo, info_of
from edgec.ir.model import dims_of, is_op, op_of, walk
from edgec.ir.ops import DOMAIN, OPSET
from edgec.ir.opset import OLDEST, restate
from edgec.ir.passes import Capabilities
from edgec.targets import Artifact, EmitOptions, genai, ort_kernels, ort_library
from edgec.targets.devices import Device
from edgec.targets.onnx_file import write_onnx
from edgec.targets.output import output_folder, write_json, write_manifest
from edgec.targets.provenance import provenance

if TYPE_CHECKING:
    from edgec.native.plan import StoredWeight

MODEL = "model.onnx"
LIBRARY = "library"  # of the manifest: the name of the library that the model needs
# The first opset with Attention, RotaryEmbedding and RMSNormalization, which onnxruntime has kernels for.
DEFAULT_OPSET = 23
_VENDOR = "com.microsoft"


def opset_of(options: EmitOptions) -> int:
    """The opset asked for. Raises EdgecError (E0002) for one that nothing is written in."""
    chosen = DEFAULT_OPSET if options.opset is None else options.opset
    if not OLDEST <= chosen <= OPSET:
        raise EdgecError("E0002", stage="options", where="--opset", found=str(chosen),
                         wanted=f"an opset from {OLDEST} to {OPSET}")
    return chosen


def check_options(options: EmitOptions, device: Device) -> None:
    """Raises EdgecError (E0002) for settings of the native runtime, which would change nothing here; E0005.

    model.onnx is the same for every device; only the library is of one."""
    opset_of(options)
    ort_kernels.require_onnxruntime()
    if options.library:
        ort_library.check_device(device)
    foreign = [(name, value) for name, value, default in (
        ("--kv", options.kv, "f32"), ("--arithmetic", options.arithmetic, "exact"),
        ("--memory-budget", options.memory_budget, None)) if value != default]
    for name, value in foreign:
        raise EdgecError("E0002", stage="options", where=name, found=f"{value} with --backend ort",
                         wanted="without it: onnxruntime decides about its memory and its kernels")


def capabilities(options: EmitOptions) -> Capabilities:
    return ort_kernels.capabilities(opset_of(options)) | (ort_library.OPERATORS if options.library else frozenset())


def refuses(options: EmitOptions) -> Callable[[ir.Node], str | None]:
    opset, ours = opset_of(options), ort_library.OPERATORS if options.library else frozenset()
    return lambda node: None if op_of(node) in ours else ort_kernels.refuses(node, opset)


def pass_options(options: EmitOptions) -> dict[str, object]:
    return {"narrow_weights.weights": options.weights}


def problems(model: ir.Model, options: EmitOptions) -> list[tuple[ir.Node, str]]:
    """Every node of a lowered model that onnxruntime does not run, and why."""
    ours = ort_library.OPERATORS if options.library else frozenset()
    return ort_kernels.unsupported([node for node in walk(model) if op_of(node) not in ours], opset_of(options))


def check(model: ir.Model, options: EmitOptions) -> None:
    """What emit would find wrong with a lowered model before it writes. Raises EdgecError E0002, E0301."""
    info = info_of(model)
    _context(info, options)
    if info.task == "causal-lm":
        genai.check(model)
    copy = model.clone()
    restate(copy, opset_of(options))


def _context(info: ModelInfo, options: EmitOptions) -> int:
    """Most tokens of a sequence."""
    wanted = options.max_context or info.max_context
    if info.task == "causal-lm" and wanted > info.max_context > 0:
        raise EdgecError("E0002", stage="emit ort", where="--ctx", found=f"{wanted} tokens",
                         wanted=f"at most {info.max_context}, as the model")
    return wanted


def emit(model: ir.Model, device: Device, outdir: Path, options: Mapping[str, Any]) -> Artifact:
    """Writes a lowered model into `outdir`; options are the fields of EmitOptions.

    model.onnx with model.onnx.data, manifest.json, edgec.json, reports/weights.json and options.reports; of language
    models genai_config.json and the tokenizer's files; with options.library edgec's operators for `device`, if the
    model has any. onnx's checker and onnxruntime have accepted the graph before the folder appears. Raises EdgecError:
    E0002, E0004, E0005, E0007, E0301.
    """
    chosen = EmitOptions(**options)
    check_options(chosen, device)
    opset, info = opset_of(chosen), info_of(model)
    context = _context(info, chosen)
    copy = model.clone()
    copy.meta.update(model.meta)
    restate(copy, opset)
    copy.ir_version = _ir_version(opset)
    notes = [*info.notes, *filter(None, [ort_kernels.version_note(ort_kernels.require_onnxruntime())])]
    ours = ort_library.needed(copy)
    if chosen.library and not ours:
        notes.append("no product with weights of few bits: the library is not needed and was left out")
    with output_folder(outdir) as work:
        sizes = write_onnx(copy, work / MODEL)
        _accepted(work / MODEL, ours)
        library = ort_library.ship(device, work) if ours else ""
        if info.task == "causal-lm":
            spoken = info if chosen.tokenizer else replace(info, tokenizer=None)
            notes += genai.write_genai(work, copy, spoken, context, MODEL, library)
        weights = stored(copy, sizes)
        write_json(work / "reports" / "weights.json", {
            "weights": [{"name": w.name, "shape": list(w.shape), "form": w.form, "bytes": w.bytes,
                         "read_by": list(w.kernels)} for w in weights], "notes": notes})
        for name, report in chosen.reports.items():
            write_json(work / "reports" / name, report(weights))
        write_json(work / "edgec.json", dict(chosen.config))
        manifest = write_manifest(work, _described(copy, info, chosen, context, notes) | {
            "target": device.name, **({LIBRARY: library} if library else {})})
    final = outdir.resolve()
    return Artifact(final, final / MODEL, manifest, library=final / library if library else None, notes=tuple(notes))


def _ir_version(opset: int) -> int:
    """The oldest file version that holds such an opset, so that older runtimes read it too."""
    import onnx.helper

    return int(onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)]))


def _described(model: ir.Model, info: ModelInfo, options: EmitOptions, context: int, notes: list[str]
               ) -> dict[str, Any]:
    return {
        "edgec_version": version.__version__, "backend": "ort", "opset": model.graph.opset_imports[""],
        "model": {"name": info.name, "task": info.task, "sha256": info.source_sha256, "max_context": context,
                  "vocab_size": info.vocab_size, "bos_token": info.bos_token, "eos_tokens": list(info.eos_tokens),
                  **({"weights": "random"} if info.random_weights else {})},
        "inputs": [_port(v, info) for v in model.graph.inputs],
        "outputs": [_port(v, info) for v in model.graph.outputs],
        "config": dict(options.config), "provenance": provenance(info, options), "notes": notes,
    }


def _port(value: ir.Value, info: ModelInfo) -> dict[str, Any]:
    """Name, type and dims; a dim with a range at its largest, as for the native backend."""
    dims = [info.dynamic[d][1] if isinstance(d, str) and d in info.dynamic else d for d in dims_of(value) or ()]
    return {"name": value.name, "dtype": value.dtype.name.lower() if value.dtype else "?", "shape": dims}


def _accepted(path: Path, library: bool) -> None:
    """Raises EdgecError (E0301) unless onnx's checker and onnxruntime, with our library or without, take the file."""
    import onnx.checker
    import onnxruntime

    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as e:
        raise EdgecError("E0301", stage="emit ort", where="onnx.checker", found=str(e).strip(), wanted="a valid model",
                         hint="another --opset, or --backend native; please report it") from e
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # The graph as it is, weights mapped: neither folded nor laid out anew: a big model must not fill the memory.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    if library:
        ort_library.register(options)
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime's exception classes share no public base
        raise EdgecError("E0301", stage="emit ort", where="onnxruntime", found=str(e), wanted="a model that it loads",
                         hint="another --opset, or --backend native") from e


def stored(model: ir.Model, sizes: Mapping[str, int]) -> list[StoredWeight]:
    """How the file stores each weight: the parts of a compressed one together, under the name of the weight."""
    from edgec.native.plan import StoredWeight

    found: dict[str, StoredWeight] = {}
    covered: set[str] = set()
    for node in walk(model):
        places = _PARTS.get(op_of(node), ())
        given = [node.inputs[i] for i in places if i < len(node.inputs)]
        parts = {v.name or "" for v in given if v is not None and v.is_initializer()}
        if not given or given[0] is None or given[0].name not in parts:
            continue
        name = _OURS.sub("", given[0].name or "")
        readers = {*_readers(node), *(found[name].kernels if name in found else ())}
        found[name] = StoredWeight(name, _shape(node), _form(node), sum(sizes.get(p, 0) for p in parts), _form(node),
                                   tuple(sorted(readers)))
        covered |= parts
    for name, value in model.graph.initializers.items():
        shape = tuple(d for d in dims_of(value) or () if isinstance(d, int))
        if name not in covered and len(shape) > 1 and value.dtype is not None:
            found[name] = StoredWeight(name, shape, value.dtype.name.lower(), sizes.get(name, 0), "",
                                       tuple(sorted({use.node.op_type for use in value.uses()})))
    return [found[name] for name in sorted(found)]


# The inputs that are one weight: codes, scales, zero points.
_PARTS: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", "DequantizeLinear"): (0, 1, 2), (_VENDOR, "MatMulNBits"): (1, 2, 3),
    (_VENDOR, "GatherBlockQuantized"): (0, 2, 3), (DOMAIN, "LinearBits"): (1,), (DOMAIN, "GatherBits"): (0,)}
# What our passes put behind the name of a weight; other people's names stay as they are.
_OURS = re.compile(r"\.(codes|nbits|rows|bits64)(_\d+)?$")


def _form(node: ir.Node) -> str:
    """What an operator that reads a compressed weight calls its form."""
    if node.domain == DOMAIN:
        return str(_matrix(node).spec)
    if node.domain == _VENDOR:
        return f"int{node.attributes['bits'].as_int()}g{node.attributes['block_size'].as_int()}"
    kind = node.inputs[0].dtype if node.inputs[0] is not None else None
    return kind.name.lower() if kind is not None else ""


def _matrix(node: ir.Node) -> LowBitMatrix:
    return LowBitMatrix.of(*(node.attributes[key].as_int() for key in ("N", "K", "bits", "group", "form")))


def _shape(node: ir.Node) -> tuple[int, ...]:
    if node.domain == DOMAIN:
        return _matrix(node).n, _matrix(node).k
    if node.op_type == "MatMulNBits":
        return node.attributes["N"].as_int(), node.attributes["K"].as_int()
    dims = [d for d in dims_of(node.inputs[0]) or () if isinstance(d, int)]
    if node.op_type == "GatherBlockQuantized":
        dims[-1] = dims[-1] * 8 // node.attributes["bits"].as_int()
    return tuple(dims) if math.prod(dims) else ()


def _readers(node: ir.Node) -> tuple[str, ...]:
    if is_op(node, "DequantizeLinear"):
        return tuple(sorted({use.node.op_type for use in node.outputs[0].uses()}))
    return (node.op_type,)
