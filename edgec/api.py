"""The verbs of the command line as functions; `edgec.compile(...)` and its siblings lead here."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgec.errors import EdgecError

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgec.decoupling import DecoupleOptions
    from edgec.judge.speed import Samples
    from edgec.packaging import Packaged
    from edgec.pipeline import QuantProgress
    from edgec.quantization import QuantizeOptions, StaticOptions
    from edgec.support import CheckReport
    from edgec.targets import Artifact
    from edgec.targets.coreml_options import CoreMLOptions
    from edgec.targets.devices import Device

# Files that are models or parts of models; any other is taken for a bundle.
_MODEL_SUFFIXES = (".py", ".onnx", ".gguf", ".safetensors", ".pt2", ".pt", ".pth", ".ckpt", ".h5", ".tflite", ".json")
Dynamic = Mapping[str, Mapping[int, tuple[int, int]]]


def _silent(done: int, total: int, what: str) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class Compiled:
    """artifact: None after a dry run or stop_after. memory: planned bytes, empty after stop_after. quant: what
    reports/quant.json says, empty without quantization; decoupled: the same of reports/decouple.json."""

    artifact: Artifact | None
    memory: dict[str, Any]
    passes: list[dict[str, Any]]
    quant: dict[str, Any] = field(default_factory=dict)
    decoupled: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        artifact = self.artifact
        written = {"output": str(artifact.outdir), "files": artifact.manifest["files"]} if artifact else {}
        quant = {"quant": self.quant} if self.quant else {}
        quant |= {"decoupled": self.decoupled} if self.decoupled else {}
        return {**written, **quant, "memory": self.memory, "passes": self.passes}


def compile(
    source: str | object, output: Path | str = "out", *, target: str = "host", backend: str = "native",
    opset: int | None = None, library: bool = False, coreml: CoreMLOptions | None = None, ctx: int | None = None,
    dynamic: Dynamic | None = None, weights: str = "auto", kv: str = "f32", arithmetic: str = "exact",
    memory_budget: int | None = None,
    dump_dir: Path | None = None, stop_after: str | None = None, print_after: str | None = None,
    dry_run: bool = False, tokenizer: bool = True, example_inputs: Sequence[Any] | None = None,
    allow_pickle: bool = False, custom_ops: Mapping[Any, Any] | None = None,
    quant: QuantizeOptions | StaticOptions | None = None, quant_from: Path | str | None = None,
    decouple: DecoupleOptions | None = None, progress: QuantProgress = _silent,
) -> Compiled:
    """Compiles `source` for `target`: a Hugging Face folder or hub id, an .onnx file, FILE.py:FACTORY, zoo:NAME, a
    torch module.

    backend: native, ort for a folder with model.onnx that onnxruntime runs (opset: of that file; library: with edgec's
    kernels as custom operators), or coreml for one with model.mlpackage (coreml: its settings).
    weights: auto, f32, f16, bf16. kv: f32, f16, int8, int4 (docs/kv_cache.md). arithmetic: exact, or fast products with
    weights of few bits. ctx: most tokens of a session. dynamic: {input: {axis: (min, max)}}.
    example_inputs: what a torch module's forward takes. custom_ops: what operators of torch.library are in ONNX.
    memory_budget: bytes. tokenizer: False leaves it out of the bundle. allow_pickle: also pickled weights, read by
    torch's restricted unpickler in a process of its own. quant: quantize on the way, in a folder beside `output` that
    an interrupted compile leaves and the same compile continues; StaticOptions: into 8-bit integers, activations too.
    quant_from: use what `quantize` left there. decouple: first, convolutions become depthwise-separable pairs within a
    budget (docs/cli.md). progress(done, all, what) of both. Raises EdgecError.
    """
    from edgec import backends
    from edgec.pipeline import (
        CompileOptions,
        DecoupleStep,
        QuantStep,
        RunOptions,
        StaticStep,
        compile_model,
        emit_options,
        prepare_model,
    )
    from edgec.quantization import StaticOptions
    from edgec.targets import native
    from edgec.targets.devices import device
    from edgec.targets.output import check_output

    device(target)
    row = backends.backend(backend)
    if coreml is not None and backend != "coreml":
        raise EdgecError("E0002", stage="options", where="--coreml-...", found=f"with --backend {backend}",
                         wanted="--backend coreml")
    output = Path(output)
    static = isinstance(quant, StaticOptions)
    if quant is not None and ((dry_run and not static) or quant_from is not None):
        raise EdgecError("E0002", stage="compile", where="quant", wanted="one of the two",
                         found="quant with quant_from" if quant_from is not None else "quant in a dry run",
                         hint="quantize first (edgec quantize), then compile with --quant-from")
    if decouple is not None and quant_from is not None:
        raise EdgecError("E0002", stage="compile", where="decouple", found="decouple with quant_from",
                         wanted="one of the two",
                         hint="layers that were quantized before are those of the whole convolutions: use --quant")
    if not dry_run and not stop_after:
        check_output(output)
    step: QuantStep | StaticStep | None = None
    if isinstance(quant, StaticOptions):
        step = StaticStep(quant, progress)
    elif quant is not None:
        step = QuantStep(output.with_name(output.name + ".quant"), quant, progress)
    elif quant_from is not None:
        step = QuantStep(Path(quant_from))
    # Without paths: the same model compiled anywhere gives the same bytes.
    config = {"target": target, **({} if backend == backends.DEFAULT else {"backend": backend, "opset": opset}),
              **({"library": True} if library else {}), **({} if coreml is None else {"coreml": coreml.to_json()}),
              "ctx": ctx, "weights": weights, "kv": kv, "arithmetic": arithmetic,
              "memory_budget": memory_budget,
              "tokenizer": tokenizer,
              "dynamic": {name: {str(axis): list(pair) for axis, pair in axes.items()}
                          for name, axes in (dynamic or {}).items()}}
    emitter: dict[str, Any] = {"weights": weights, "kv": kv, "arithmetic": arithmetic, "max_context": ctx,
                               "memory_budget": memory_budget, "tokenizer": tokenizer, "opset": opset,
                               "library": library, "config": config, **({} if coreml is None else {"coreml": coreml})}
    options = CompileOptions(
        target=target, backend=backend, outdir=output, emitter=emitter,
        importer=_importer_options(source, ctx, dynamic, example_inputs, allow_pickle)
        | ({"custom_ops": custom_ops} if custom_ops else {}),
        run=RunOptions(dump_dir=dump_dir, print_after=(print_after,) if print_after else (),
                       stop_after=stop_after or ""),
        quant=step, decouple=None if decouple is None else DecoupleStep(decouple, progress),
    )
    chosen = emit_options(options)
    if dry_run:
        report = prepare_model(source, options)
        memory: dict[str, Any] = {}
        if not report.stopped_after and backend == backends.DEFAULT:
            memory = native.plan_model(report.model, chosen)[1]
        elif not report.stopped_after:
            row.emitter.check(report.model, chosen)
        return Compiled(None, memory, report.to_json(), decoupled=report.decoupled)
    result = compile_model(source, options)
    artifact = result.artifact
    if artifact is None:
        return Compiled(None, {}, result.report.to_json(), decoupled=result.report.decoupled)
    found: dict[str, Any] = {}
    if step is not None:
        found = json.loads((artifact.outdir / "reports" / "quant.json").read_text(encoding="utf-8"))
        if quant is not None and isinstance(step, QuantStep):
            shutil.rmtree(step.folder)
    return Compiled(artifact, artifact.memory, result.report.to_json(), found, result.report.decoupled)


def quantize(
    source: str | object, output: Path | str, options: QuantizeOptions, *, ctx: int | None = None,
    dynamic: Dynamic | None = None, example_inputs: Sequence[Any] | None = None, allow_pickle: bool = False,
    progress: QuantProgress = _silent,
) -> dict[str, Any]:
    """Quantizes the layers of `source` into the folder `output`, or goes on where the same call was interrupted.

    ctx, dynamic, example_inputs, allow_pickle: as of compile. Returns arguments, layers (name, format, bytes, errors)
    and kept ones with the reason. Raises EdgecError: E0002 other arguments than those of the run that began it, few
    bits without calibration; E0303 max_memory too small; E0004 a folder that is something else.
    """
    from edgec.pipeline import QuantStep, quantize_model

    importer = _importer_options(source, ctx, dynamic, example_inputs, allow_pickle)
    finished = quantize_model(source, importer, QuantStep(Path(output), options, progress))
    layers = [dict(layer) for layer in finished.state["layers"]]
    weights = sum(layer["rows"] * layer["columns"] for layer in layers)
    total = sum(layer["bytes"] for layer in layers)
    return {"output": str(output), "arguments": finished.state["arguments"], "layers": layers,
            "kept": finished.state["kept"], "weights": weights, "bytes": total,
            "bits_per_weight": round(8 * total / weights, 4)}


def _importer_options(
    source: str | object, ctx: int | None, dynamic: Dynamic | None, example_inputs: Sequence[Any] | None,
    allow_pickle: bool = False,
) -> dict[str, Any]:
    from edgec.importers import classify

    options: dict[str, Any] = {"allow_pickle": True} if allow_pickle else {}
    # A graph file does not say how long its contexts may be.
    if ctx is not None and classify(source)[0] == "onnx":
        options["max_context"] = ctx
    if dynamic:
        options["dynamic"] = {name: dict(axes) for name, axes in dynamic.items()}
    if example_inputs is not None:
        options["example_inputs"] = tuple(example_inputs)
    return options


def inspect(source: str, *, allow_pickle: bool = False) -> dict[str, Any]:
    """Facts about a model or a bundle (a file, or a folder with model.edgec). Nothing is run, and of safetensors, GGUF
    and external data of ONNX no weights are read. Raises EdgecError.

    allow_pickle: as of compile.
    """
    path = Path(source)
    if path.is_dir() and (path / "manifest.json").is_file() and not (path / "model.edgec").is_file():
        from edgec.judge.bundle import refuse_foreign
        from edgec.targets.output import is_foreign

        if not is_foreign(path):
            refuse_foreign(path)
    if (path.is_file() and path.suffix not in _MODEL_SUFFIXES) or (path / "model.edgec").is_file():
        if allow_pickle:
            raise EdgecError("E0002", stage="inspect", where="allow_pickle", found="a bundle, which holds no pickles",
                             wanted="a model")
        return _inspect_bundle(path / "model.edgec" if path.is_dir() else path)
    from edgec import importers
    from edgec.ir.estimate import estimated_ram
    from edgec.ir.info import info_of
    from edgec.ir.model import walk

    options = {"hollow": True} if importers.classify(source)[0] == "hf" else {}
    model = importers.load(source, check=False, **options, **({"allow_pickle": True} if allow_pickle else {}))
    info = info_of(model)
    weights = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    # Shapes, axes and limits are no parameters.
    parameters = [w for w in weights if len(w.shape) and w.dtype.name not in ("INT64", "INT32", "BOOL", "STRING")]
    return {
        "kind": "model", "name": info.name, "task": info.task, "max_context": info.max_context,
        "vocab_size": info.vocab_size, "parameters": info.parameters or sum(w.size for w in parameters),
        "weight_bytes": sum(w.nbytes for w in weights),
        "estimated_ram_bytes": estimated_ram(model)["total"], "estimated_ram": estimated_ram(model),
        "inputs": [_port(v) for v in model.graph.inputs], "outputs": [_port(v) for v in model.graph.outputs],
        "operators": dict(Counter(_operator(node) for node in walk(model))), "notes": list(info.notes),
    }


def _operator(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _port(value: ir.Value) -> dict[str, Any]:
    shape = [d if isinstance(d, int) else str(d) for d in value.shape] if value.shape is not None else []
    return {"name": value.name, "dtype": str(value.dtype).lower() if value.dtype else "?", "shape": shape}


def _inspect_bundle(path: Path) -> dict[str, Any]:
    from edgec.native.bundle import read_bundle
    from edgec.native.plan import kernel_text

    bundle = read_bundle(path)
    plan = bundle.plan
    entry, stored = plan.entries[0], plan.stored()
    manifest = bundle.manifest
    return {
        "kind": "bundle", "name": manifest.get("model", {}).get("name", ""), "file_bytes": path.stat().st_size,
        "task": ("generic", "causal-lm")[plan.model_kind], "edgec_version": manifest.get("edgec_version", ""),
        "sha256": manifest.get("model", {}).get("sha256", ""),
        "max_context": plan.max_context, "vocab_size": plan.vocab_size,
        "parameters": sum(w.count for w in stored), "weight_bytes": sum(w.bytes for w in stored),
        "bits_per_weight": round(plan.memory_table().bits_per_weight, 3),
        "inputs": [{"name": p.name, "dtype": p.dtype.name.lower(), "shape": [str(d) for d in p.dims]}
                   for p in entry.inputs],
        "outputs": [{"name": p.name, "dtype": p.dtype.name.lower(), "shape": [str(d) for d in p.dims]}
                    for p in entry.outputs],
        "kernels": dict(Counter(kernel_text(call) for e in plan.entries for call in e.calls)),
        "storage": [{"name": w.name, "shape": list(w.shape), "form": w.form, "bytes": w.bytes,
                     "bits_per_weight": round(w.bits, 4), "kernels": list(w.kernels)} for w in stored],
        "memory": plan.memory_table().to_json(),
    }


def check(
    source: str | object, *, target: str = "host", backend: str = "native", opset: int | None = None,
    library: bool = False, ctx: int | None = None, dynamic: Dynamic | None = None,
    example_inputs: Sequence[Any] | None = None, save_node: Path | None = None, allow_pickle: bool = False,
) -> CheckReport:
    """Everything in `source` that cannot be compiled for `target` and `backend`, grouped by operator and reason.

    Imports the model, runs all passes and, when every operator can be compiled, plans. save_node: a folder for one
    runnable .onnx file per different node among them; nothing else is written. allow_pickle: as of compile. Raises
    EdgecError when the model cannot be imported or planned (E0302 a shape, E0002 a `ctx` beyond the model's).
    """
    from edgec.support import examine

    return examine(source, target, _importer_options(source, ctx, dynamic, example_inputs, allow_pickle), ctx,
                   save_node, backend, opset, library)


@contextmanager
def bundle_of(bundle: Path | str) -> Iterator[Path]:
    """A bundle's path for the length of a `with` block; `zoo:NAME` is compiled for this machine first."""
    from edgec.zoo import PREFIX

    if not str(bundle).startswith(PREFIX):
        yield Path(bundle)
        return
    with TemporaryDirectory(prefix="edgec-zoo-") as folder:
        compile(str(bundle), Path(folder) / "out")
        yield Path(folder) / "out"


def compare(bundle: Path | str, reference: str, **options: Any) -> dict[str, Any]:
    """Distances between a bundle's outputs and those of `reference`; options as judge.compare.compare_bundle."""
    from edgec.judge.bundle import open_bundle
    from edgec.judge.compare import compare_bundle

    with bundle_of(bundle) as path, open_bundle(path) as model:
        return compare_bundle(model, reference, **options)


def evaluate(bundle: Path | str, *, ppl: Path | str | None = None, images: Path | str | None = None,
             **options: Any) -> dict[str, Any]:
    """Perplexity over the text `ppl`, or top-k over the folder `images`; options as judge.evaluate.text and .images."""
    from edgec.judge import evaluate as judge
    from edgec.judge.bundle import open_bundle

    if (ppl is None) == (images is None):
        raise EdgecError("E0002", stage="evaluate", where="ppl, images", found="both or none", wanted="one of the two")
    with bundle_of(bundle) as path, open_bundle(path) as model:
        if ppl is not None:
            return judge.text(model, Path(ppl), **options)
        return judge.images(model, Path(str(images)), **options)


def bench(bundle: Path | str, *, prompt: int = 512, tokens: int = 128, threads: Sequence[int] = (1,),
          repetitions: int = 5, warmup: int = 1) -> list[Samples]:
    """Speed of a bundle; see judge.bench.bench_bundle."""
    from edgec.judge.bench import bench_bundle
    from edgec.judge.bundle import open_bundle

    with bundle_of(bundle) as path, open_bundle(path) as model:
        return bench_bundle(model, prompt, tokens, threads, repetitions, warmup)


def detect() -> Device:
    """This machine, measured into a device row; see judge.detect."""
    from edgec.judge.detect import detect as measured

    return measured()


def profile(bundle: Path | str, *, device: str = "local", target: str = "", **options: Any) -> dict[str, Any]:
    """Where time goes on `device`; options are the fields of judge.profile.ProfileOptions. Raises EdgecError."""
    from edgec.judge.profile import ProfileOptions, profile_bundle
    from edgec.targets.transport import transport

    there = transport(device, target)
    with bundle_of(bundle) as path:
        return profile_bundle(path, there, ProfileOptions(**options))


def sign(bundle: Path | str, key: Path | str, *, passphrase: Callable[[], str] | None = None) -> dict[str, Any]:
    """Signs a bundle (the file, or its output folder, whose manifest follows) with an Ed25519 private key (PKCS8 PEM).

    A symbolic link stays one: the file that it leads to is signed, and the manifests on both sides follow. passphrase:
    called for an encrypted key. Returns bundle, bytes, sha256, public_key and replaced (the key of an earlier
    signature, or ""), keys in hexadecimal. Raises EdgecError.
    """
    from edgec.judge.bundle import bundle_path
    from edgec.keys import private_key
    from edgec.native.signing import sign_file
    from edgec.targets.output import relisting

    path = bundle_path(Path(bundle))
    private = private_key(Path(key), passphrase)
    with relisting(path) as put:
        signed = sign_file(path, private.public, private.sign, lambda new: put(new.size, new.sha256))
    return {"bundle": str(path), "bytes": signed.size, "sha256": signed.sha256, "public_key": private.public.hex(),
            "replaced": signed.replaced.hex() if signed.replaced else ""}


def verify(bundle: Path | str, *, public_key: str | None = None) -> dict[str, Any]:
    """Checks every hash of a bundle and its signature; of an output folder also the files that its manifest lists.

    public_key: who must have signed it, as a PEM file or 64 hexadecimal digits. Without one a signature must still be
    valid, by whichever key the file names. Returns bundle, bytes, sections (name -> bytes), signed_by (in hexadecimal,
    "" for nobody), pinned (whether that is who was asked for) and files. Raises EdgecError: E0401, E0402, E0407.
    """
    from edgec.judge.bundle import bundle_path
    from edgec.keys import public_key as read_key
    from edgec.native.bundle import read_bundle
    from edgec.native.session import Model
    from edgec.targets.output import check_listing

    wanted = None if public_key is None else read_key(public_key)
    path = bundle_path(Path(bundle))
    read = read_bundle(path)
    signer = read.signature.key if read.signature else None
    with Model(path, verify_weights=True, selftest=False, public_key=wanted if wanted is not None else signer):
        pass
    files = check_listing(Path(bundle)) if Path(bundle).is_dir() else 0
    return {"bundle": str(path), "bytes": len(read.data), "signed_by": (wanted or signer or b"").hex(),
            "sections": {kind.name: len(data) for kind, data in read.sections.items()},
            "pinned": wanted is not None, "files": files}


def package(bundle: Path | str, out: Path | str, *, format: str = "cmake", weights: str = "file",
            name: str | None = None, target: str | None = None, signatures: bool = False) -> Packaged:
    """Writes a folder with a compiled bundle, its runtime and a typed interface, for apps to build: packaging.package
    says what the options are. Raises EdgecError."""
    from edgec import packaging

    return packaging.package(bundle, out, format=format, weights=weights, name=name, target=target,
                             signatures=signatures)


def size(bundle: Path | str | None = None, *, layers: int = 10) -> dict[str, Any]:
    """What the bytes of a bundle and of this machine's runtime library are: size.bundle_size under "model" (None: no
    bundle was given) and size.library_size under "library"; of a folder that `package` wrote size.package_size under
    "package" instead. Raises EdgecError."""
    from edgec.size import bundle_size, is_package, library_size, package_size

    if bundle is not None and is_package(Path(bundle)):
        return {"package": package_size(Path(bundle))}
    return {"model": None if bundle is None else bundle_size(Path(bundle), layers), "library": library_size()}
