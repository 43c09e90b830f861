"""The tvm backend: a folder with model.so, code that Apache TVM compiled, with our kernels linked into it.

TVM (the package apache-tvm, an optional extra) fuses and compiles what our kernels do not compute (tvm_graph.py).
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from edgec import version
from edgec.errors import EdgecError, missing_extra
from edgec.ir.info import ModelInfo, info_of
from edgec.ir.model import describe, dims_of, op_of, walk
from edgec.ir.ops import DOMAIN
from edgec.ir.opset import misfit, restate
from edgec.ir.passes import Capabilities
from edgec.targets import Artifact, EmitOptions
from edgec.targets.devices import X86_64_V3, X86_64_V4, Device, host
from edgec.targets.output import output_folder, write_json, write_manifest
from edgec.targets.provenance import provenance
from edgec.targets.toolchain import TVM, installed_library

if TYPE_CHECKING:
    from edgec.native.plan import StoredWeight

MODEL = "model.so"
_STAGE = "emit tvm"
_PACKAGE, _TESTED = "apache-tvm", "0.27"
# The first with Swish, which is ours. What TVM's importer takes has not changed its meaning since 18, but got more
# types, which TVM does not have.
_OPSET, _THEIRS = 24, 18
# What goes through TVM's importer as it is; each of them is in tests/targets/test_tvm.py.
_STANDARD = (
    "Abs", "Add", "AveragePool", "Cast", "Ceil", "Clip", "Concat", "Conv", "Cos", "Div", "Equal", "Erf", "Exp",
    "Expand", "Flatten", "Floor", "Gather", "Gelu", "Gemm", "GlobalAveragePool", "Greater", "HardSigmoid", "HardSwish",
    "Identity", "LayerNormalization", "LeakyRelu", "Less", "Log", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg",
    "Not", "Pow", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid", "Sin",
    "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Swish", "Tanh", "Transpose", "Unsqueeze", "Where")
_OURS = ("LinearBits", "GatherBits")
# What our passes put behind the name of a weight: that it is unpacked, and how it was turned then.
_MADE = re.compile(r"(\.(codes|planes)\.dense(_\d+)?)?(/(Reshape|Transpose)(_\d+)?)*$")


def require_tvm() -> str:
    """The version of apache-tvm. Raises EdgecError (E0005) without it; the package `tvm` of PyPI is something else."""
    try:
        return importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise missing_extra("tvm", _PACKAGE, "backend tvm") from None


def version_note(found: str) -> str:
    """A sentence for a version that nobody tested, "" for the one that was."""
    if found.startswith(f"{_TESTED}."):
        return ""
    return f"{_PACKAGE} {found} is installed; edgec was tested with {_TESTED}, and TVM's interfaces change"


def check_options(options: EmitOptions, device: Device) -> None:
    """Raises EdgecError: E0002 for settings of other backends and for other machines than this one, E0005."""
    require_tvm()
    here = host()
    if (device.arch, device.os) != (here.arch, here.os) or device.os != "linux" or device.isa == ("scalar",):
        raise EdgecError("E0002", stage="options", where="--target", found=f"{device.name} with --backend tvm",
                         wanted="Linux on this machine's architecture", hint="--backend native is cross-built")
    foreign = [(name, value) for name, value, default in (
        ("--weights", options.weights, "auto"), ("--kv", options.kv, "f32"), ("--opset", options.opset, None),
        ("--arithmetic", options.arithmetic, "exact"), ("--memory-budget", options.memory_budget, None),
        ("--library", options.library, False)) if value != default]
    for name, value in foreign:
        raise EdgecError("E0002", stage="options", where=name, found=f"{value} with --backend tvm",
                         wanted="without it: TVM decides about storage and memory")


def capabilities(options: EmitOptions) -> Capabilities:
    return frozenset({("", name) for name in _STANDARD} | {(DOMAIN, name) for name in _OURS})


def refuses(options: EmitOptions) -> Callable[[ir.Node], str | None]:
    return _refuse


def _refuse(node: ir.Node) -> str | None:
    if op_of(node) == ("", "LayerNormalization") and any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return "TVM makes only the first of its outputs"
    return misfit(node, _OPSET if node.op_type in ("Gelu", "Swish") else _THEIRS)


def pass_options(options: EmitOptions) -> dict[str, object]:
    return {}


def problems(model: ir.Model, options: EmitOptions) -> list[tuple[ir.Node, str]]:
    """Every node of a lowered model that this backend does not take, and why."""
    known, refuse = capabilities(options), refuses(options)
    found = ((node, "TVM's importer is not used for it" if op_of(node) not in known else refuse(node))
             for node in walk(model))
    return [(node, reason) for node, reason in found if reason is not None]


def check(model: ir.Model, options: EmitOptions) -> None:
    """What emit would find wrong with a lowered model, without reading weights. Raises EdgecError (E0301)."""
    found = problems(model, options)
    if found:
        raise EdgecError("E0301", stage=_STAGE, where=describe(found[0][0]), wanted="operators that TVM takes",
                         found="; ".join(f"{describe(node)}: {reason}" for node, reason in found[:20]),
                         hint="`edgec check --backend tvm` lists all; --backend native and ort take more")
    if info_of(model).task == "causal-lm":
        raise EdgecError("E0301", stage=_STAGE, where="the model", found="a language model, which keeps a past",
                         wanted="a model without one", hint="--backend native or ort")


def emit(model: ir.Model, device: Device, outdir: Path, options: Mapping[str, Any]) -> Artifact:
    """Writes a lowered model into `outdir`; options are the fields of EmitOptions.

    model.so, manifest.json, edgec.json, reports/weights.json and options.reports. Raises EdgecError: E0002, E0004,
    E0005, E0007 when TVM or the linker fails, E0301.
    """
    chosen = EmitOptions(**options)
    check_options(chosen, device)
    check(model, chosen)
    info = info_of(model)
    copy = model.clone()
    copy.meta.update(model.meta)
    restate(copy, _OPSET)
    copy.ir_version = 10
    notes = [*info.notes, *filter(None, [version_note(require_tvm())])]
    with output_folder(outdir) as work:
        _compile(copy, device, work / MODEL)
        weights = stored(copy)
        write_json(work / "reports" / "weights.json", {
            "weights": [{"name": w.name, "shape": list(w.shape), "form": w.form, "bytes": w.bytes,
                         "read_by": list(w.kernels)} for w in weights], "notes": notes})
        for name, report in chosen.reports.items():
            write_json(work / "reports" / name, report(weights))
        write_json(work / "edgec.json", dict(chosen.config))
        manifest = write_manifest(work, _described(copy, info, chosen, notes) | {"target": device.name})
    final = outdir.resolve()
    return Artifact(final, final / MODEL, manifest, notes=tuple(notes))


def _compile(model: ir.Model, device: Device, path: Path) -> None:
    """Raises EdgecError (E0007) with what TVM or the linker said."""
    import tvm
    from tvm import relax

    from edgec.targets.tvm_graph import to_relax

    kernels = installed_library(device, TVM)
    if shutil.which("cc") is None and shutil.which("g++") is None:
        raise EdgecError("E0007", stage=_STAGE, where="the linker", found="no cc or g++",
                         wanted="a C compiler to link with")
    try:
        module = to_relax(ir.to_proto(model), _OPSET)
        built = relax.build(module, tvm.target.Target({"kind": "llvm", "mcpu": _cpu(device)}))
        # The archive comes before TVM's code on the command line: -u says that it will be wanted. What is not found
        # then is found out when the file is opened (now), not in the middle of a run.
        built.export_library(str(path), options=[
            "-Wl,-u,edgec_tvm_linear", str(kernels), "-lm", "-lpthread", "-Wl,--gc-sections", "-Wl,-z,now"])
    except Exception as e:  # TVM's exceptions share no public base
        raise EdgecError("E0007", stage=_STAGE, where="TVM", found=f"{type(e).__name__}: {str(e).strip()[-1500:]}",
                         wanted="a model that TVM compiles and links", hint="--backend native or ort") from e


def _cpu(device: Device) -> str:
    """LLVM's name for what the device promises."""
    if device.arch != "x86_64":
        return "generic"
    found = set(device.features)
    return "x86-64-v4" if found >= set(X86_64_V4) else "x86-64-v3" if found >= set(X86_64_V3) else "x86-64"


def _described(model: ir.Model, info: ModelInfo, options: EmitOptions, notes: list[str]) -> dict[str, Any]:
    def port(value: ir.Value) -> dict[str, Any]:
        # A dim with a range at its largest, as for the other backends.
        dims = [info.dynamic[d][1] if isinstance(d, str) and d in info.dynamic else d for d in dims_of(value) or ()]
        return {"name": value.name, "dtype": value.dtype.name.lower() if value.dtype else "?", "shape": dims}

    return {
        "edgec_version": version.__version__, "backend": "tvm", "tvm": require_tvm(),
        "model": {"name": info.name, "task": info.task, "sha256": info.source_sha256,
                  **({"weights": "random"} if info.random_weights else {})},
        "inputs": [port(v) for v in model.graph.inputs], "outputs": [port(v) for v in model.graph.outputs],
        "config": dict(options.config), "provenance": provenance(info, options), "notes": notes,
    }


def stored(model: ir.Model) -> list[StoredWeight]:
    """How the model holds each weight."""
    from edgec.compress.low_bit import LowBitMatrix
    from edgec.native.plan import StoredWeight

    found = []
    for name, value in model.graph.initializers.items():
        uses = list(value.uses())
        readers = tuple(sorted({use.node.op_type for use in uses}))
        node = next((use.node for use in uses if op_of(use.node) in {(DOMAIN, op) for op in _OURS}), None)
        if node is not None and name.endswith(".bits64"):
            matrix = LowBitMatrix.of(*(node.attributes[key].as_int() for key in ("N", "K", "bits", "group", "form")))
            found.append(StoredWeight(name.removesuffix(".bits64"), (matrix.n, matrix.k), str(matrix.spec),
                                      matrix.bytes, str(matrix.spec), readers))
            continue
        shape = tuple(d for d in dims_of(value) or () if isinstance(d, int))
        if len(shape) > 1 and value.dtype is not None and value.const_value is not None:
            found.append(StoredWeight(_MADE.sub("", name), shape, value.dtype.name.lower(), value.const_value.nbytes,
                                      "", readers))
    return sorted(found, key=lambda weight: weight.name)
