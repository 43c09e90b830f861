"""Commands on sources and targets: inspect, check, compile, targets, doctor, explain."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgec.cli_output import envelope, note, print_json, print_table, stdout
from edgec.cli_quantize import (
    Calib,
    CalibMethod,
    CalibSamples,
    CalibSeed,
    CalibWindow,
    Corrected,
    Equalized,
    Force,
    MaxMemory,
    Method,
    Override,
    Quant,
    print_layers,
    print_pairs,
    print_static,
    quant_progress,
    quantize,
    quantize_options,
    static_options,
)
from edgec.cli_values import bad_value, choice, format_bytes, parse_bytes, parse_dynamic
from edgec.errors import CODES, EXIT_GATE, EXIT_UNSUPPORTED, EdgecError, did_you_mean

if TYPE_CHECKING:
    from edgec.quantization import QuantizeOptions, StaticOptions
    from edgec.support import Problem

Source = Annotated[
    str, typer.Argument(help="A Hugging Face folder or ORG/NAME, FILE.gguf, FILE.onnx, FILE.py:FACTORY or zoo:NAME.",
                        show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of tables.")]
Target = Annotated[str, typer.Option("--target", help="Device row; `edgec targets` lists them.")]
Backend = Annotated[
    str, typer.Option("--backend", help="native (model.edgec and its runtime), ort (model.onnx), coreml (.mlpackage), "
                           "tvm (model.so).")
]
Opset = Annotated[
    int | None, typer.Option("--opset", help="Of model.onnx, 17 to 24 (default 23); with --backend ort.")
]
Library = Annotated[bool, typer.Option(
    "--library", help="edgec's kernels as operators beside model.onnx; with --backend ort.")]
Context = Annotated[
    int | None, typer.Option("--ctx", min=1, help="Most tokens of a session (default: the model's).")
]
Dynamic = Annotated[
    list[str] | None, typer.Option("--dynamic", help="Axis that varies, INPUT:AXIS=MIN..MAX, as x:0=1..8. Repeatable.")
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Also pickled weights, unpickled with care in another process.")
]

_STATIC = "static8"
_WEIGHTS = {"auto": "auto", "fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_LAYER_NUMBER = re.compile(r"\.\d+\.")
_KV = {"fp32": "f32", "fp16": "f16", "int8": "int8", "int4": "int4"}
_ARITHMETIC = {"exact": "exact", "fast": "fast"}


def register(app: typer.Typer) -> None:
    app.command()(inspect)
    app.command()(check)
    app.command("compile")(compile_)
    app.command()(quantize)
    app.command()(targets)
    app.command()(doctor)
    app.command()(explain)


def inspect(
    model: Annotated[str, typer.Argument(help="A model as for compile, or a bundle.", show_default=False)],
    allow_pickle: AllowPickle = False,
    json: Json = False,
) -> None:
    """What a model or bundle is: task, shapes, parameters, operators, sizes. Runs nothing."""
    from edgec import api

    started = time.time()
    found = api.inspect(model, allow_pickle=allow_pickle)
    if json:
        print_json(envelope("inspect", started, **found))
        return
    facts = [(k.replace("_", " "), format_bytes(v) if k.endswith("bytes") else v)
             for k, v in found.items() if not isinstance(v, (dict, list)) and v not in (None, "", 0)]
    facts += [(f"  {part}", format_bytes(size)) for part, size in found.get("estimated_ram", {}).items()
              if size and part != "total"]
    print_table(("field", "value"), facts)
    print_table(("port", "name", "dtype", "shape"),
                [(kind[:-1], *row) for kind in ("inputs", "outputs") for row in _ports(found[kind])],
                "\nInputs, outputs")
    for title in ("operators", "kernels"):
        if title in found:
            counts: dict[str, int] = found[title]
            rows = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
            print_table((title[:-1], "count"), rows,
                        f"\n{title.capitalize()}")
    if "storage" in found:
        _print_storage(found["storage"])
    if "memory" in found:
        _print_memory(found["memory"])
    for text in found.get("notes", ()):
        note(f"note: {text}")


def _ports(ports: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(name, dtype, shape) of ports; those of numbered layers that differ in nothing else share a row."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for port in ports:
        pattern = _LAYER_NUMBER.sub(".{}.", port["name"], count=1)
        shape = f"[{', '.join(map(str, port['shape']))}]"
        rows.setdefault((pattern, port["dtype"], shape), []).append(port["name"])
    return [
        (names[0] if len(names) == 1 else f"{pattern.replace('{}', '*')} ({len(names)} layers)", dtype, shape)
        for (pattern, dtype, shape), names in rows.items()
    ]


def _print_storage(weights: list[dict[str, Any]]) -> None:
    """How many weights are stored in which form, and what that takes."""
    forms: dict[str, list[int]] = {}
    for weight in weights:
        total = forms.setdefault(weight["form"], [0, 0, 0])
        for i, n in enumerate((1, math.prod(weight["shape"]), weight["bytes"])):
            total[i] += n
    rows = [(form, count, values, format_bytes(size), f"{8 * size / values:.3f}")
            for form, (count, values, size) in sorted(forms.items(), key=lambda pair: -pair[1][2])]
    print_table(("stored as", "tensors", "values", "bytes", "bits per value"), rows, "\nWeights")


def check(
    model: Source, target: Target = "host", backend: Backend = "native", opset: Opset = None,
    library: Library = False, ctx: Context = None, dynamic: Dynamic = None,
    save_node: Annotated[
        Path | None, typer.Option("--save-node", help="Write each node that cannot be compiled as an .onnx file here.")
    ] = None,
    allow_pickle: AllowPickle = False,
    json: Json = False,
) -> None:
    """Whether a model compiles for a target; lists everything that stands in the way. Exit code 3 if something does."""
    from edgec import api

    started = time.time()
    report = api.check(model, target=target, backend=backend, opset=opset, library=library, ctx=ctx,
                       dynamic=parse_dynamic("--dynamic", dynamic or []),
                       save_node=save_node, allow_pickle=allow_pickle)
    if json:
        print_json(envelope("check", started, target, **report.to_dict()))
    elif report.problems:
        print_table(
            ("operator", "count", "reason", "where", "shapes", "suggestion"),
            [(p.op, p.count, p.reason, _short(_places(p)), _short(p.shapes), p.suggestion) for p in report.problems],
        )
    else:
        print_table(("operator", "count"), sorted(report.operators.items()), f"{model} compiles for {target}")
    if not json:
        for text in report.notes:
            note(f"note: {text}")
    if report.problems:
        note(f"{sum(p.count for p in report.problems)} nodes cannot be compiled for {target}")
        if save_node is not None:
            note(f"{sum(len(p.saved) for p in report.problems)} different ones are in {save_node}")
        raise typer.Exit(EXIT_UNSUPPORTED)


def compile_(
    model: Source,
    output: Annotated[Path, typer.Option("-o", "--output", help="Output folder.")] = Path("out"),
    target: Target = "host",
    backend: Backend = "native",
    opset: Opset = None,
    library: Library = False,
    ctx: Context = None,
    dynamic: Dynamic = None,
    weights: Annotated[
        str, typer.Option(help="Storage: auto (smallest lossless one per tensor), fp32, fp16, bf16.")
    ] = "auto",
    kv: Annotated[str, typer.Option(help="Storage of the key/value cache: fp32, fp16, int8, int4.")] = "fp32",
    arithmetic: Annotated[
        str, typer.Option(help="Products with weights of few bits: exact (off by 0.1 %), fast (by up to 1.5 %).")
    ] = "exact",
    memory_budget: Annotated[
        str | None, typer.Option(help="Fail when the planned peak memory is above, as 900M or 1.5G.")
    ] = None,
    quant: Quant = None,
    quant_from: Annotated[
        Path | None, typer.Option("--quant-from", help="Layers that `edgec quantize` made, instead of --quant.")
    ] = None,
    override: Override = None,
    calib: Calib = None,
    calib_samples: CalibSamples = 128,
    calib_window: CalibWindow = 0,
    calib_seed: CalibSeed = 0,
    calib_method: CalibMethod = None,
    equalize: Equalized = None,
    bias_correction: Corrected = None,
    method: Method = "auto",
    force: Force = False,
    max_memory: MaxMemory = None,
    coreml_target: Annotated[str, typer.Option(
        "--coreml-target", help="Oldest system of the package: iOS16, iOS17, iOS18; auto takes what the weights need.")
    ] = "auto",
    coreml_precision: Annotated[
        str, typer.Option("--coreml-precision", help="What the package computes in: fp16, fp32.")
    ] = "fp16",
    coreml_image: Annotated[list[str] | None, typer.Option(
        "--coreml-image", help="INPUT=rgb:SCALE:BIAS,BIAS,BIAS: this input takes pictures (also bgr, gray).")] = None,
    coreml_sizes: Annotated[list[str] | None, typer.Option(
        "--coreml-sizes", help="DIM=16,64: the sizes that a dim may have, instead of its range.")] = None,
    coreml_force: Annotated[bool, typer.Option(
        "--coreml-force", help="Allow weight formats that cost more bits there than they promise (hlq3, hlq4).")
    ] = False,
    decouple: Annotated[str | None, typer.Option(
        "--decouple", help="Convolutions become depthwise-separable pairs: macs=0.5 or latency=0.6 of what there is.")
    ] = None,
    ppl: Annotated[Path | None, typer.Option("--ppl", help="Then the result's perplexity over this text.")] = None,
    dump_dir: Annotated[Path | None, typer.Option(help="Write the graph after each pass, NNN_pass.onnx.")] = None,
    stop_after: Annotated[str | None, typer.Option(help="Stop after this pass; with --dump-dir.")] = None,
    print_after: Annotated[str | None, typer.Option(help="Print the graph after this pass, on stderr.")] = None,
    tokenizer: Annotated[
        bool, typer.Option("--tokenizer/--no-tokenizer", help="Store the tokenizer in the bundle.")
    ] = True,
    allow_pickle: AllowPickle = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but write: says memory and sizes.")] = False,
    json: Json = False,
) -> None:
    """Compile a model into a folder: model.edgec with library and header, or model.onnx, or model.mlpackage."""
    from edgec import api
    from edgec.targets.coreml_options import CoreMLOptions

    started = time.time()
    static = quant == _STATIC
    # (option, value, default, whether it is one of --quant static8, and of other formats)
    known = (
        ("--quant-override", override or None, None, True, True), ("--calib", calib, None, True, True),
        ("--calib-samples", calib_samples, 128, True, True), ("--calib-window", calib_window, 0, False, True),
        ("--calib-seed", calib_seed, 0, True, True), ("--calib-method", calib_method, None, True, False),
        ("--equalize", equalize, None, True, False), ("--bias-correction", bias_correction, None, True, False),
        ("--quant-method", method, "auto", False, True), ("--force", force, False, False, True),
        ("--max-memory", max_memory, None, False, True))
    # Both kinds of compression look at samples.
    samples = () if decouple is None else ("--calib", "--calib-samples", "--calib-seed")
    given = [name for name, value, default, *_ in known if value != default and name not in samples]
    strange = [name for name, _, _, *fits in known if name in given and not fits[0 if static else 1]]
    if quant is not None and strange:
        raise bad_value(strange[0], f"with --quant {quant}", "without it: it belongs to --quant "
                        + ("a format of weights, as hlq2" if static else _STATIC))
    if quant is None and given:
        raise bad_value("--quant", None, f"a format, as hlq2: {', '.join(given)} would change nothing without it",
                        "with --quant-from: these belong to `edgec quantize`" if quant_from is not None else "")
    idle = [name for name, value, default, *_ in known if name in samples and value != default]
    if quant is None and calib is None and idle:
        raise bad_value("--calib", None, f"samples: {idle[0]} would change nothing without them")
    if ppl is not None and not ppl.is_file():
        # Before an hour's work, not after it.
        raise EdgecError("E0003", stage="compile", where="--ppl", found=f"no such file: {ppl}", wanted="a text file")
    options: QuantizeOptions | StaticOptions | None = None
    if static:
        options = static_options(override, calib, calib_samples, calib_seed, calib_method, equalize, bias_correction)
    elif quant is not None:
        options = quantize_options(
            quant, override, calib, calib_samples, calib_window, calib_seed, method, force, max_memory, 0)
    pairs = None
    if decouple is not None:
        from edgec.decoupling import DecoupleOptions

        pairs = DecoupleOptions(decouple, calib, calib_samples, calib_seed)
    for_coreml = (coreml_target, coreml_precision, coreml_image or [], coreml_sizes or [], coreml_force)
    coreml = None if for_coreml == ("auto", "fp16", [], [], False) else CoreMLOptions.parse(*for_coreml)
    if ppl is not None and backend == "coreml":
        raise bad_value("--ppl", str(ppl), "with a backend whose results run here: Core ML is Apple's")
    with quant_progress() as update:
        result = api.compile(
            model, output, target=target, backend=backend, opset=opset, library=library, coreml=coreml,
            ctx=ctx,
            dynamic=parse_dynamic("--dynamic", dynamic or []),
            weights=choice("--weights", weights, _WEIGHTS), kv=choice("--kv", kv, _KV),
            arithmetic=choice("--arithmetic", arithmetic, _ARITHMETIC),
            memory_budget=parse_bytes("--memory-budget", memory_budget) if memory_budget is not None else None,
            dump_dir=dump_dir, stop_after=stop_after, print_after=print_after, dry_run=dry_run,
            tokenizer=tokenizer, allow_pickle=allow_pickle, quant=options, quant_from=quant_from,
            decouple=pairs, progress=update,
        )
    quality = api.evaluate(result.artifact.outdir, ppl=ppl) if result.artifact is not None and ppl is not None else {}
    if json:
        print_json(envelope("compile", started, target, **result.to_dict(), **({"eval": quality} if quality else {})))
        return
    if result.memory:
        _print_memory(result.memory)
    if result.decoupled:
        print_pairs(result.decoupled)
    if result.artifact is None:
        note("dry run: nothing was written" if dry_run else f"stopped after {stop_after}: nothing was emitted")
        return
    artifact = result.artifact
    if result.quant:
        (print_static if static else print_layers)(result.quant["layers"], result.quant["kept"])
    rows = [(str(path.relative_to(artifact.outdir)), format_bytes(path.stat().st_size))
            for path in sorted(artifact.outdir.rglob("*")) if path.is_file()]
    print_table(("file", "size"), rows, f"\n{artifact.outdir}")
    for text in artifact.notes:
        note(f"note: {text}")
    if quality:
        print_table(("perplexity", "predictions"), [
            (f"{side['perplexity']:.6g}", side["predictions"]) for side in quality["sides"].values()], quality["about"])
    note(f"compiled {model} for {target} in {time.time() - started:.1f} s")


def targets(
    name: Annotated[
        str | None, typer.Argument(help="Show one row in full; detect: measure this machine into one.",
                                   show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """The device rows that can be compiled for."""
    from edgec import api
    from edgec.targets.devices import device, devices

    started = time.time()
    rows = [api.detect() if name == "detect" else device(name)] if name is not None else list(devices())
    if json:
        print_json(envelope("targets", started, targets=[row.to_dict() for row in rows]))
    elif name is not None:
        fields = rows[0].to_dict()
        print_table(("field", "value"), [
            (k, ", ".join(f"{count} {kind}" for kind, count in v) or "-" if k == "clusters" else
             " ".join(v) if isinstance(v, tuple) else format_bytes(v) if k in _SIZES and v else v or "-")
            for k, v in fields.items()
        ])
    else:
        print_table(("target", "system", "instruction sets", "about"),
                    [(r.name, f"{r.arch} {r.os}", " ".join(r.isa), r.about) for r in rows])


_SIZES = ("l1d", "l2", "l3", "page_size")


def doctor(json: Json = False) -> None:
    """Whether this installation works: compilers, CPU, runtime library and its self-test, optional parts."""
    from edgec.doctor import examine

    started = time.time()
    findings = examine()
    if json:
        print_json(envelope("doctor", started, findings=[f.to_dict() for f in findings]))
    else:
        print_table(("check", "state", "details"), [(f.name, f.state, f.details) for f in findings])
    if any(f.state == "failed" for f in findings):
        raise typer.Exit(EXIT_GATE)


def explain(
    code: Annotated[str, typer.Argument(help="EDGEC-E0301 or E0301.", show_default=False)], json: Json = False
) -> None:
    """What an error code means and which exit status it has."""
    started = time.time()
    key = code.upper().removeprefix("EDGEC-")
    if key not in CODES:
        raise EdgecError("E0002", stage="explain", where="CODE", found=repr(code), wanted="an error code",
                         hint=did_you_mean(f"EDGEC-{key}", [f"EDGEC-{known}" for known in CODES]))
    row = CODES[key]
    if json:
        print_json(envelope("explain", started, code=f"EDGEC-{key}", title=row.title, explain=row.explain,
                            exit_code=row.exit))
    else:
        stdout().print(f"EDGEC-{key}: {row.title}\n{row.explain}\nExit status {row.exit}.", markup=False)


def _places(problem: Problem) -> list[str]:
    """Module paths with the lines of the user's code, each once."""
    both = (f"{layer} ({line})" if line else layer for layer, line in zip(problem.layers, problem.lines, strict=True))
    return list(dict.fromkeys(both))


def _short(items: Sequence[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _print_memory(memory: dict[str, Any]) -> None:
    """The memory table: what a process maps and what a session allocates, per context length."""
    contexts = sorted(memory["state"], key=int)
    language = contexts != ["0"]
    arena = max(memory["arena"].values())
    rows: list[tuple[str, ...]] = [
        (f"weights (mapped, {memory['bits_per_weight']:.4g} bits per value)",
         *[format_bytes(memory["weights"])] * len(contexts)),
        (f"arena ({max(memory['arena'], key=memory['arena'].get)})", *[format_bytes(arena)] * len(contexts)),
        ("scratch per thread", *[format_bytes(memory["scratch_per_thread"])] * len(contexts)),
    ]
    if language:
        rows.append((f"key/value cache ({memory['state_per_token']} bytes per token)",
                     *[format_bytes(memory["state"][c]) for c in contexts]))
    rows.append(("peak, one thread", *[format_bytes(memory["peak"][c]) for c in contexts]))
    heads = [f"{c} tokens" for c in contexts] if language else ["bytes"]
    print_table(("memory", *heads), rows)
    if memory["unpacked"]:
        kernels = sorted({kernel for weight in memory["unpacked"] for kernel in weight["read_by"]})
        note(f"{len(memory['unpacked'])} compressed weights are stored dense, as {', '.join(kernels)} needs them")
