"""Commands on compiled bundles: run, compare, eval, bench, profile, diff."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgec.cli_build import AllowPickle, Json
from edgec.cli_output import envelope, json_text, note, print_json, print_table, progress
from edgec.cli_quantize import print_layers
from edgec.cli_values import bad_value, parse_counts, parse_tolerances, parse_triple, read_arrays
from edgec.env import ISA
from edgec.errors import EdgecError

if TYPE_CHECKING:
    from edgec.judge.opened import Opened

Bundle = Annotated[
    Path, typer.Argument(help="An output folder of compile, its model.edgec, or zoo:NAME.", show_default=False)
]
Threads = Annotated[int, typer.Option("-t", "--threads", min=0, help="0: one per core.")]
Isa = Annotated[
    str, typer.Option("--isa", help="Force scalar, avx2, avx512, avx512vbmi, amx, neon or neondot (default: best).")
]
Verify = Annotated[bool, typer.Option("--verify", help="First check the hashes of all weights.")]
PublicKey = Annotated[
    str | None, typer.Option("--public-key", help="KEY.pub (PEM) or 64 hex digits: only a bundle that it has signed.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]


def register(app: typer.Typer) -> None:
    app.command()(run)
    app.command()(compare)
    app.command("eval")(eval_)
    app.command()(bench)
    app.command()(profile)
    app.command()(diff)


@contextmanager
def opened(bundle: Path, isa: str, verify: bool, public_key: str | None) -> Iterator[Opened]:
    """The bundle, opened with the instruction set and the checks asked for; warnings of the runtime go to stderr."""
    from edgec.api import bundle_of
    from edgec.judge.bundle import open_bundle
    from edgec.judge.ort_model import OrtModel
    from edgec.keys import public_key as read_key

    key = None if public_key is None else read_key(public_key)
    with (ISA.override(isa or ISA.get()), bundle_of(bundle) as path,
          open_bundle(path, verify=verify, public_key=key) as model):
        if isa and isinstance(model, OrtModel) and not model.library:
            raise bad_value("--isa", isa, "without it: these are kernels of onnxruntime, which chooses by itself",
                            "compile with --library, or --backend native")
        if model.info.warning:
            note(f"warning: {model.info.warning}")
        yield model


def run(
    bundle: Bundle,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to continue.")] = None,
    tokens: Annotated[int, typer.Option("-n", "--tokens", min=1, help="Tokens to generate.")] = 64,
    threads: Threads = 0,
    ctx: Annotated[int, typer.Option("--ctx", min=0, help="Session context in tokens; 0: the model's.")] = 0,
    seed: Seed = 0,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="0: off.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="1: off.")] = 1.0,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print the text as it comes.")] = False,
    input_: Annotated[list[str] | None, typer.Option("--input", help="NAME=FILE.npy, for other models.")] = None,
    inputs: Annotated[Path | None, typer.Option("--inputs", help="FILE.npz with all inputs.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the outputs to FILE.npz.")] = None,
    isa: Isa = "",
    verify: Verify = False,
    public_key: PublicKey = None,
    json: Json = False,
) -> None:
    """Run a bundle: continue a text, or compute outputs from arrays."""
    from edgec.judge import execute

    started = time.time()
    with opened(bundle, isa, verify, public_key) as model:
        if model.info.kind == 0:
            if prompt is not None:
                raise bad_value("--prompt", prompt, "--input NAME=FILE.npy: this bundle is no language model")
            found = execute.run_arrays(model, read_arrays(input_ or [], inputs), threads)
            if output is not None:
                execute.save_arrays(output, found)
            if json:
                print_json(envelope("run", started, outputs=execute.summary(found)))
            else:
                print_table(("output", "dtype", "shape", "min", "mean", "max", "top"), execute.summary_rows(found))
            return
        for option, given in (("--input", input_), ("--inputs", inputs)):
            if given:
                raise bad_value(option, "arrays", "-p TEXT: this bundle is a language model")
        if output is not None:
            raise bad_value("-o", str(output), "no file of arrays: this bundle is a language model",
                            "its text goes to stdout, or with the tokens into a JSON document: --json")
        if not prompt:
            raise bad_value("-p", prompt, "a text to continue")
        result = execute.generate(
            model, prompt, tokens, threads=threads, context=ctx, seed=seed, temperature=temperature, top_k=top_k,
            top_p=top_p, on_text=execute.to_stdout if stream and not json else None,
        )
    if json:
        print_json(envelope("run", started, **result.to_dict()))
        return
    execute.to_stdout("\n" if stream else prompt + result.text + "\n")
    note(f"prompt {result.prompt_tokens} tokens, {result.prompt_per_s:.1f} tokens/s; "
         f"generated {len(result.tokens)} tokens, {result.generate_per_s:.1f} tokens/s; {result.isa}")


def compare(
    bundle: Bundle,
    reference: Annotated[str, typer.Option("--reference", help="The model the bundle was compiled from.")],
    allow_pickle: AllowPickle = False,
    inputs: Annotated[Path | None, typer.Option("--inputs", help="FILE.npz; default: random inputs.")] = None,
    text: Annotated[Path | None, typer.Option("--text", help="Text for language models.")] = None,
    tokens: Annotated[int, typer.Option("-n", "--tokens", min=2, help="Tokens of the text to compare over.")] = 128,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Also the errors of a quantized bundle's layers, the worst first.")
    ] = False,
    write_overrides: Annotated[
        Path | None, typer.Option("--write-overrides", help="One bit more for the worst quarter of the layers, as a "
                                                            "file for --quant-override @FILE.")
    ] = None,
    tol: Annotated[list[str] | None, typer.Option("--tol", help="Gate METRIC:LIMIT (sqnr:30). Repeatable.")] = None,
    threads: Threads = 0,
    seed: Seed = 0,
    isa: Isa = "",
    verify: Verify = False,
    public_key: PublicKey = None,
    json: Json = False,
) -> None:
    """How far a bundle's outputs are from the original's. Exit code 1 when a --tol limit is missed."""
    from edgec.judge import layers as judge_layers
    from edgec.judge.compare import compare_bundle, gate

    started = time.time()
    limits = parse_tolerances("--tol", tol or [])
    arrays = read_arrays([], inputs)
    with opened(bundle, isa, verify, public_key) as model:
        layers = judge_layers.layer_errors(bundle) if per_layer or write_overrides else []
        if write_overrides is not None:
            judge_layers.write_overrides(write_overrides, judge_layers.raising_overrides(layers))
        report = compare_bundle(model, reference, arrays=arrays, text=text, tokens=tokens, threads=threads, seed=seed,
                                allow_pickle=allow_pickle)
    missed = gate(report, limits)
    if per_layer:
        report["layers"] = layers
    if json:
        print_json(envelope("compare", started, **report, gate={"limits": limits, "missed": missed}))
    else:
        print_table(
            ("output", "max abs", "max rel", "SQNR dB", "cosine", "same top-1"),
            [(name, f"{d['max_abs']:.3g}", f"{d['max_rel']:.3g}", f"{d['sqnr_db']:.1f}", f"{d['cosine']:.8f}",
              f"{d['top1']:.4f}") for name, d in report["outputs"].items()],
        )
        if "greedy" in report:
            greedy = report["greedy"]
            print_table(("greedy tokens", "equal", "first difference"),
                        [(greedy["tokens"], greedy["equal"], greedy["first_difference"])])
        if per_layer:
            print_layers(layers, [])
    if missed:
        raise EdgecError("E0501", stage="compare", where=str(bundle), found="; ".join(missed),
                         wanted=", ".join(tol or []))


def eval_(
    bundle: Bundle,
    ppl: Annotated[Path | None, typer.Option("--ppl", help="Text file: perplexity over it.")] = None,
    images: Annotated[Path | None, typer.Option("--images", help="Folder of INDEX_name.jpg: top-1, top-5.")] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="Original model, side by side.")] = None,
    allow_pickle: AllowPickle = False,
    window: Annotated[int, typer.Option("--window", min=0, help="Tokens per window; 0: min(context, 256).")] = 0,
    samples: Annotated[int, typer.Option("--samples", min=0, help="At most this many images or windows; 0: all.")] = 0,
    mean: Annotated[str, typer.Option(help="Subtracted per channel, of RGB / 255.")] = "0.485,0.456,0.406",
    std: Annotated[str, typer.Option(help="Divisor per channel.")] = "0.229,0.224,0.225",
    threads: Threads = 0,
    isa: Isa = "",
    verify: Verify = False,
    public_key: PublicKey = None,
    json: Json = False,
) -> None:
    """Quality: perplexity over a text, or top-1 and top-5 over labelled images."""
    from edgec.judge import evaluate

    started = time.time()
    if (ppl is None) == (images is None):
        raise bad_value("--ppl, --images", "both" if ppl else "none", "one of the two")
    if allow_pickle and reference is None:
        raise bad_value("--allow-pickle", "no reference", "--reference MODEL")
    means, stds = parse_triple("--mean", mean), parse_triple("--std", std)
    if min(stds) <= 0:
        raise bad_value("--std", std, "three numbers above zero")
    with opened(bundle, isa, verify, public_key) as model, progress("evaluating") as update:
        if ppl is not None:
            report = evaluate.text(model, ppl, reference, window, samples, threads, update,
                                   allow_pickle=allow_pickle)
        else:
            assert images is not None
            report = evaluate.images(model, images, reference, means, stds, samples, threads, update,
                                     allow_pickle=allow_pickle)
    if json:
        print_json(envelope("eval", started, **report))
        return
    sides: dict[str, Any] = report["sides"]
    columns = list(next(iter(sides.values())))
    print_table(("side", *(c.replace("_", " ") for c in columns)),
                [(side, *(f"{v:.6g}" if isinstance(v, float) else v for v in row.values()))
                 for side, row in sides.items()], report["about"])
    if "agreement" in report:
        note(f"same first choice as the reference: {report['agreement']:.4%}")


def bench(
    bundle: Bundle,
    prompt: Annotated[int, typer.Option("-p", "--prompt", min=0, help="Prompt tokens; 0: skip.")] = 512,
    tokens: Annotated[int, typer.Option("-n", "--tokens", min=0, help="Generated tokens; 0: skip.")] = 128,
    threads: Annotated[str, typer.Option("-t", "--threads", help="Thread counts, as 1,2.")] = "",
    sweep_threads: Annotated[
        bool, typer.Option("--sweep-threads", help="Every thread count from 1 to the cores, and which is fastest.")
    ] = False,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Timed repetitions.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed repetitions before.")] = 1,
    isa: Isa = "",
    verify: Verify = False,
    public_key: PublicKey = None,
    json: Json = False,
) -> None:
    """Speed: prompt and generation tokens per second, or latency percentiles for other models."""
    from edgec.judge.bench import bench_bundle, fastest, sweep
    from edgec.targets.devices import host, host_cores

    started = time.time()
    if sweep_threads and threads:
        raise bad_value("-t", threads, "without it: --sweep-threads chooses the counts")
    counts = sweep(host_cores()) if sweep_threads else (
        parse_counts("-t", threads, 1, 1024) if threads else [host_cores()])
    with opened(bundle, isa, verify, public_key) as model:
        language = model.info.kind == 1
        tests = bench_bundle(model, prompt, tokens, counts, repetitions, warmup)
        used = model.info.isa
    best = fastest(tests) if sweep_threads else None
    if json:
        print_json(envelope("bench", started, isa=used, device=host().to_dict(), tests=[t.to_dict() for t in tests],
                            fastest_threads=best))
        return
    rows = [t.to_dict() for t in tests]
    if language:
        print_table(
            ("test", "threads", "t/s mean", "median", "stddev", "repetitions"),
            [(r["test"], r["threads"], f"{r['per_second']['mean']:.2f}", f"{r['per_second']['median']:.2f}",
              f"{r['per_second']['stddev']:.2f}", r["repetitions"]) for r in rows], f"{bundle}, {used}",
        )
    else:
        print_table(
            ("test", "threads", "p50 ms", "p90 ms", "p99 ms", "repetitions"),
            [(r["test"], r["threads"], *(f"{1e3 * r['seconds'][q]:.3f}" for q in ("p50", "p90", "p99")),
              r["repetitions"]) for r in rows], f"{bundle}, {used}",
        )
    for name, count in (best or {}).items():
        note(f"{name}: fastest with {count} thread{'s' if count > 1 else ''} (by the median)")


FailIf = Annotated[
    list[str] | None, typer.Option("--fail-if", help="NAME>NUMBER, as p50_ms>12: then exit code 1. Repeatable.")
]


def profile(
    bundle: Bundle,
    device: Annotated[
        str, typer.Option("--device", help="local, ssh:HOST, adb[:SERIAL], qemu:ARCH[:CPU], wasm:node or "
                                           "exec:'CMD {program} {args}'.")
    ] = "local",
    target: Annotated[
        str, typer.Option("--target", help="Device row that the program is built for (default: what the device is).")
    ] = "",
    prompt: Annotated[int, typer.Option("-p", "--prompt", min=1, max=1 << 20, help="Prompt tokens.")] = 128,
    tokens: Annotated[int, typer.Option("-n", "--tokens", min=1, max=2000, help="Tokens decoded behind it.")] = 32,
    threads: Annotated[int, typer.Option("-t", "--threads", min=0, max=1024, help="0: one per core there.")] = 0,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, max=2000, help="Least timed runs.")] = 20,
    warmup: Annotated[int, typer.Option(min=0, max=1000, help="Untimed runs before.")] = 3,
    min_ms: Annotated[int, typer.Option("--min-ms", min=0, max=600000, help="Least time of each phase.")] = 300,
    most: Annotated[int, typer.Option("--calls", min=0, help="So many of the longest in the table; 0: all.")] = 20,
    trace: Annotated[Path | None, typer.Option("--trace", help="Write a Chrome/Perfetto trace to FILE.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a report with charts to FILE.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write a report to FILE.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the JSON document to FILE.")] = None,
    write_overrides: Annotated[
        Path | None, typer.Option("--write-overrides", help="More bits where quantized layers lose most, fewer where "
                                                            "time goes and room is left, for --quant-override @FILE.")
    ] = None,
    fail_if: FailIf = None,
    isa: Isa = "",
    json: Json = False,
) -> None:
    """Where time goes on a device: every call's kernel, ms, GB/s and GOP/s against what the machine can do."""
    from edgec.api import bundle_of
    from edgec.judge import layers as judge_layers
    from edgec.judge import profile as judge
    from edgec.judge import report as views
    from edgec.judge.conditions import failing, parse_conditions
    from edgec.targets.output import check_writable, write_text
    from edgec.targets.transport import transport

    started = time.time()
    conditions = parse_conditions(fail_if or [], views.FIGURES)
    there = transport(device, target)
    options = judge.ProfileOptions(threads, repetitions, warmup, min_ms, prompt, tokens, isa)
    for path in (trace, html, markdown, output, write_overrides):
        if path is not None:
            check_writable(path)
    with bundle_of(bundle) as path:
        judge.check_wanted(path, [c.name for c in conditions], write_overrides is not None)
        found = judge.profile_bundle(path, there, options)
    document = envelope("profile", started, target, **found)
    for file, text in ((trace, views.trace), (html, views.html_report), (markdown, views.markdown)):
        if file is not None:
            write_text(file, text(found))
    if output is not None:
        write_text(output, json_text(document))
    if json:
        print_json(document)
    else:
        print_table(("what", "found"), views.fact_rows(found))
        print_table(views.TEST_COLUMNS, views.test_rows(found), "\nPhases")
        for test in found["tests"]:
            print_table(views.CALL_COLUMNS, views.call_rows(test, most), f"\nCalls of {test['name']}")
    # Last: what was measured is there, whatever these find wrong.
    if write_overrides is not None:
        judge_layers.write_overrides(write_overrides, judge.overrides(found))
    _gate("profile", str(bundle), failing(conditions, views.figures(found)), fail_if)


def diff(
    a: Annotated[Path, typer.Argument(help="A document of profile --json or -o.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Another one.", show_default=False)],
    least: Annotated[float, typer.Option(min=0, max=1, help="Smaller changes of a median do not count.")] = 0.02,
    most: Annotated[int, typer.Option("--calls", min=0, help="So many calls that changed most; 0: all.")] = 10,
    fail_if: FailIf = None,
    json: Json = False,
) -> None:
    """What changed between two profiles, and whether it is more than noise."""
    from edgec.judge import diff as judge
    from edgec.judge.conditions import failing, parse_conditions

    started = time.time()
    conditions = parse_conditions(fail_if or [])
    found = judge.diff_profiles(judge.read_profile(a), judge.read_profile(b), least)
    if json:
        print_json(envelope("diff", started, **found))
    else:
        columns = ("A ms", "B ms", "change", "95 % of change", "p", "more than noise")
        print_table(("phase", *columns), [(t["name"], *_changed(t)) for t in found["tests"]], f"{a} -> {b}")
        for test in found["tests"]:
            print_table(("layer", "kernel", *columns), [
                (c["layer"], c["kernel_a"] if c["kernel_a"] == c["kernel_b"] else f"{c['kernel_a']} -> {c['kernel_b']}",
                 *_changed(c)) for c in test["calls"][: most or None]], f"\nCalls of {test['name']}")
        for test in found["tests"]:
            if not test["calls_decidable"]:
                note(f"{test['name']}: too few samples for {len(test['calls'])} calls: none of them can be more than "
                     f"noise; {test['samples_for_calls']} on each side would do (profile -r)")
            for side, only in (("A", test["only_a"]), ("B", test["only_b"])):
                if only:
                    note(f"{test['name']}: only in {side}: {', '.join(only[:8])}{', ...' if len(only) > 8 else ''}")
        for row in found["conditions"]:
            note(f"not the same: {row['name']}: {row['a']} -> {row['b']}")
    _gate("diff", f"{a}, {b}", failing(conditions, judge.diff_figures(found)), fail_if)


def _changed(row: dict[str, Any]) -> tuple[str, ...]:
    change = "-" if row["change"] is None else f"{row['change']:+.1%}"
    return (f"{row['a_ms']:.4f}", f"{row['b_ms']:.4f}", change, "{:+.1%} .. {:+.1%}".format(*row["ci95"]),
            f"{row['p']:.2g}", "yes" if row["significant"] else "no")


def _gate(stage: str, where: str, held: list[str], asked: list[str] | None) -> None:
    if held:
        raise EdgecError("E0501", stage=stage, where=where, found="; ".join(held),
                         wanted="none of: " + ", ".join(asked or []))
