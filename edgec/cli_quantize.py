"""The command quantize, and what compile shares with it: options of a quantization, progress, the table of layers."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgec.cli_output import envelope, note, print_json, print_table, progress
from edgec.cli_values import bad_value, format_bytes, parse_bytes, parse_dynamic, parse_triple

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgec.quantization import QuantizeOptions, StaticOptions

Quant = Annotated[str | None, typer.Option(
    "--quant", help="hlq2, hlq3, hlq4, int2, int3, int4, int8, palette1..8; with g32, g64 or g128 (default). "
                    "compile also: static8, 8-bit integers for activations too.")]
Override = Annotated[list[str] | None, typer.Option(
    "--quant-override", help="GLOB=FORMAT or GLOB=none (static8: f32) for layers by name, or @FILE of such "
                              "lines; the last that matches decides. Repeatable.")]
Calib = Annotated[str | None, typer.Option(
    "--calib", help="self, none, FILE.txt, FILE.npz or a folder of images. Default: self for language models of at "
                    "most 3 bits, else none.")]
CalibSamples = Annotated[int, typer.Option("--calib-samples", min=1, help="At most this many samples.")]
CalibWindow = Annotated[int, typer.Option("--calib-window", min=0, help="Tokens of a sample; 0: min(context, 256).")]
CalibSeed = Annotated[int, typer.Option("--calib-seed", min=0, help="Which samples are drawn.")]
Method = Annotated[str, typer.Option(
    "--quant-method", help="The solver, for layers of a format that it can make; auto: the best for what is known.")]
CalibMethod = Annotated[str | None, typer.Option(
    "--calib-method", help="Of static8: minmax, percentile (percentile:99.9), entropy or mse. Default: mse.")]
Equalized = Annotated[bool | None, typer.Option(
    "--equalize/--no-equalize", help="Of static8: equal ranges of the weights on either side. Default: no.")]
Corrected = Annotated[bool | None, typer.Option(
    "--bias-correction/--no-bias-correction", help="Of static8: no shift of the mean by rounding. Default: no.")]
Force = Annotated[bool, typer.Option("--force", help="At most 3 bits without calibration all the same.")]
MaxMemory = Annotated[str | None, typer.Option("--max-memory", help="Refuse to need more than this, as 4G.")]

# A line this often where there is no terminal for a bar.
_SECONDS = 10.0


def quantize(
    model: Annotated[str, typer.Argument(help="A model as for compile.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the result.")],
    quant: Quant = None,
    override: Override = None,
    calib: Calib = None,
    calib_samples: CalibSamples = 128,
    calib_window: CalibWindow = 0,
    calib_seed: CalibSeed = 0,
    mean: Annotated[str, typer.Option(help="Of images: subtracted per channel, of RGB / 255.")] = "0.485,0.456,0.406",
    std: Annotated[str, typer.Option(help="Of images: divisor per channel.")] = "0.229,0.224,0.225",
    method: Method = "auto",
    force: Force = False,
    max_memory: MaxMemory = None,
    threads: Annotated[int, typer.Option("-t", "--threads", min=0, help="Of the solver; 0: all cores.")] = 0,
    ctx: Annotated[int | None, typer.Option("--ctx", min=1, help="Most tokens of a session (.onnx files).")] = None,
    dynamic: Annotated[list[str] | None, typer.Option("--dynamic", help="As of compile. Repeatable.")] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="As of compile.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of tables.")] = False,
) -> None:
    """Quantize a model's layers into a folder for compile --quant-from. The same command continues a stopped run."""
    from edgec import api

    started = time.time()
    if quant is None:
        raise bad_value("--quant", None, "a format, as hlq2 or int4g64")
    options = quantize_options(quant, override, calib, calib_samples, calib_window, calib_seed, method, force,
                               max_memory, threads, parse_triple("--mean", mean), parse_triple("--std", std))
    with quant_progress() as update:
        result = api.quantize(model, output, options, ctx=ctx, dynamic=parse_dynamic("--dynamic", dynamic or []),
                              allow_pickle=allow_pickle, progress=update)
    if json:
        print_json(envelope("quantize", started, **result))
        return
    print_layers(result["layers"], result["kept"])
    note(f"{len(result['layers'])} layers, {format_bytes(result['bytes'])}, {result['bits_per_weight']} bits per "
         f"weight in {output}; {time.time() - started:.1f} s")


def quantize_options(
    quant: str, override: Sequence[str] | None, calib: str | None, samples: int, window: int, seed: int, method: str,
    force: bool, max_memory: str | None, threads: int,
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406), std: tuple[float, float, float] = (0.229, 0.224, 0.225),
) -> QuantizeOptions:
    """The options of a quantization from those of a command. Raises EdgecError (E0002, E0003)."""
    from edgec.quantization import QuantizeOptions, check_override

    limit = parse_bytes("--max-memory", max_memory) if max_memory is not None else None
    overrides = tuple(_override_lines(override or (), check_override))
    return QuantizeOptions(quant, overrides, calib, samples, window, seed, mean, std, method, force, limit, threads)


def static_options(
    override: Sequence[str] | None, calib: str | None, samples: int, seed: int, method: str | None,
    equalize: bool | None, correct: bool | None,
) -> StaticOptions:
    """The options of a static quantization from those of a command; None: the default. Raises EdgecError."""
    from edgec.compress.regions import Choice
    from edgec.quantization import StaticOptions

    given: dict[str, Any] = {"method": method, "equalize": equalize, "correct": correct}
    lines = tuple(_override_lines(override or (), lambda text, where: Choice.parse(text, where)))
    return StaticOptions(calib, samples, seed, overrides=lines, **{k: v for k, v in given.items() if v is not None})


def _override_lines(texts: Sequence[str], check: Callable[[str, str], object]) -> Iterator[str]:
    """The overrides, those of `@FILE` from its lines that are neither empty nor comments (#); check(text, where)."""
    for text in texts:
        if not text.startswith("@"):
            yield text
            continue
        try:
            lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as e:
            found = f"{text}: {e.strerror if isinstance(e, OSError) else 'not UTF-8'}"
            raise bad_value("--quant-override", found, "@FILE with a GLOB=FORMAT per line",
                            "`edgec compare --write-overrides FILE` writes one") from e
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.lstrip().startswith("#"):
                check(line.strip(), f"--quant-override {text}, line {number}")
                yield line.strip()


@contextmanager
def quant_progress() -> Iterator[Callable[[int, int, str], None]]:
    """Progress on stderr: a bar with the time left on a terminal, a line now and then elsewhere."""
    if sys.stderr.isatty():
        with progress("quantizing") as update:
            yield lambda done, total, what: update(done, total)
        return
    began, last = time.monotonic(), time.monotonic()
    first: dict[int, int] = {}

    def line(done: int, total: int, what: str) -> None:
        nonlocal began, last
        now = time.monotonic()
        if total not in first:
            # Another kind of work, or the start of a run that was continued: what was there took no time of this one.
            first[total], began = done, now
        if now - last < _SECONDS:
            return
        last = now
        passed = done - first[total]
        left = f", about {(now - began) * (total - done) / passed:.0f} s left" if passed else ""
        note(f"{100 * done / total:3.0f} %{left}: {what}")

    yield line


def print_static(layers: Sequence[Mapping[str, Any]], kept: Sequence[Mapping[str, Any]]) -> None:
    """The table of regions with the range of each result, the sizes of their weights, and what stayed in float."""
    rows = [(layer["name"], layer["op"], format_bytes(layer["bytes"]) if "bytes" in layer else "-",
             f"{layer['low']:.4g} .. {layer['high']:.4g}", layer["zero"],
             "exact" if layer["sqnr_db"] is None else f"{layer['sqnr_db']:.1f} dB") for layer in layers]
    print_table(("layer", "operator", "bytes", "range", "zero", "own SQNR"), rows)
    if kept:
        print_table(("in float", "because"), [(k["name"], k["reason"]) for k in kept], "\nNot quantized")
    size, whole = (sum(layer.get(key, 0) for layer in layers) for key in ("bytes", "float_bytes"))
    note(f"{len(layers)} operators on 8-bit integers, {format_bytes(size)} of weights and biases instead of "
         f"{format_bytes(whole)}")


def print_layers(layers: Sequence[Mapping[str, Any]], kept: Sequence[Mapping[str, Any]]) -> None:
    """The table of layers, and what was left out."""
    calibrated = any("accumulated" in layer for layer in layers)
    kernels = any("kernels" in layer for layer in layers)
    columns = ["layer", "format", "shape", "bytes", "bits", "own error"]
    columns += (["accumulated"] if calibrated else []) + (["kernels"] if kernels else [])
    rows = []
    for layer in layers:
        # A bundle may store a layer in another form than it was made in.
        form, size = layer.get("stored", layer["spec"]), layer.get("stored_bytes", layer["bytes"])
        bits = 8 * size / (layer["rows"] * layer["columns"])
        spec = layer["spec"] if form == layer["spec"] else f"{layer['spec']} as {form}"
        row = [layer["name"], spec, f"{layer['rows']} x {layer['columns']}", format_bytes(size), f"{bits:.3f}",
               f"{layer['error']:.3e}"]
        row += [f"{layer['accumulated']:.3e}" if "accumulated" in layer else "-"] if calibrated else []
        row += [", ".join(layer.get("kernels", ())) or "-"] if kernels else []
        rows.append(row)
    print_table(columns, rows)
    dead = [layer["name"] for layer in layers if "input" in layer]
    if dead:
        note(f"{len(dead)} layers had zeros alone as input and were made without samples: {', '.join(dead)}")
    if kept:
        print_table(("left as it is", "because"), [(k["name"], k["reason"]) for k in kept], "\nNot quantized")


def print_pairs(found: Mapping[str, Any]) -> None:
    """The table of decoupled convolutions, the sums, and what was left out."""
    timed = any("ms" in layer for layer in found["layers"])
    rows = [[x["name"], f"{x['inputs']} to {x['outputs']}, {' x '.join(map(str, x['kernel']))}", x["rank"],
             f"{x['error']:.3e}", f"{x['macs'] / 1e6:.2f}", f"{x['macs_after'] / 1e6:.2f}",
             *([f"{x['ms']:.3f}", f"{x['ms_after']:.3f}"] if timed else [])] for x in found["layers"]]
    print_table(("convolution", "shape", "rank", "error", "MMACs", "after", *(("ms", "after") if timed else ())), rows)
    ms = f", {found['ms']['before']:.3f} ms to {found['ms']['after']:.3f} ms" if "ms" in found else ""
    note(f"{found['macs']['before'] / 1e6:.1f} million multiplications to {found['macs']['after'] / 1e6:.1f}{ms}")
    if found["kept"]:
        print_table(("left as it is", "because"), [(k["name"], k["reason"]) for k in found["kept"]], "\nNot decoupled")
