"""`edgec quantize`: from what the user asked for to a folder of quantized layers. The work is done in compress/."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgec.calibration import NONE, SELF, CalibOptions, open_samples
from edgec.compress import driver
from edgec.compress.formats import Array, PaletteSpec
from edgec.compress.policy import CALIBRATED_BITS, Spec, needs_calibration, parse_override, parse_spec
from edgec.compress.solvers import LinearStats
from edgec.compress.store import Finished, Packed, load_finished, opened
from edgec.errors import EdgecError, did_you_mean
from edgec.ir.info import info_of
from edgec.version import __version__

_STAGE = "quantize"
AUTO = "auto"
_COMPENSATED = ("gptq", "published")  # the methods that need the inputs of a layer


@dataclass(frozen=True)
class QuantizeOptions:
    """quant: the default format, `hlq2g64`. overrides: `GLOB=SPEC` or `GLOB=none`, the last that matches decides.

    calib: `self`, `none` or a path; None: `self` for language models where few bits need it, else `none`. force: few
    bits without calibration all the same. method: of the solvers. max_memory: bytes of this process. threads: 0: all.
    """

    quant: str
    overrides: tuple[str, ...] = ()
    calib: str | None = None
    samples: int = 128
    window: int = 0
    seed: int = 0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    method: str = AUTO
    force: bool = False
    max_memory: int | None = None
    threads: int = 0


def quantize(model: ir.Model, options: QuantizeOptions, folder: Path, float_bundle: Callable[[Path], None],
             progress: driver.Progress) -> Finished:
    """Quantizes the normalized `model` into `folder`, or goes on where an earlier run of the same was stopped.

    float_bundle: compiles the model as it is to a path, for samples of its own. The result depends on the model and
    the options alone, but for max_memory and threads, which change nothing. Raises EdgecError.
    """
    work = driver.plan_work(model, parse_spec(options.quant), [parse_override(text) for text in options.overrides],
                            _solver(options), options.max_memory)
    calibration = CalibOptions(_calibration(model, options, work), options.samples, options.window, options.seed,
                               options.mean, options.std)
    info = info_of(model)
    arguments: dict[str, Any] = {
        "edgec_version": __version__, "model": info.name, "model_sha256": info.source_sha256,
        "quant": str(parse_spec(options.quant)), "overrides": list(options.overrides), "method": options.method,
        "calibration": calibration.identity(),
    }
    if calibration.source != NONE:
        # --ctx and --dynamic change these, and with them the shape of the samples.
        arguments["shapes"] = {"context": info.max_context, **{k: list(v) for k, v in sorted(info.dynamic.items())}}
    with opened(folder, arguments) as store:
        samples = None
        if calibration.source != NONE and not store.complete:
            samples = open_samples(model, calibration, store.work, float_bundle, progress)
        driver.run(work, samples, store, progress)
    return load_finished(folder)


def _calibration(model: ir.Model, options: QuantizeOptions, work: driver.Work) -> str:
    """The source of the samples; few bits are not made without unless that is forced."""
    blind = needs_calibration(work.choices)
    language = info_of(model).task == "causal-lm"
    source = options.calib if options.calib is not None else SELF if blind and language and not options.force else NONE
    if source == NONE and blind and not options.force:
        raise EdgecError(
            "E0002", stage=_STAGE, where="--calib", found=f"none, and {len(blind)} layers of at most {CALIBRATED_BITS} "
            f"bits ({blind[0].layer.name}: {blind[0].spec}, ...)",
            wanted="samples of the model's inputs" + (" (self, or FILE.txt)" if language else ""),
            hint="--calib FOLDER of images, FILE.txt or FILE.npz; or 4 bits, or --force",
        )
    if source == NONE and options.method in _COMPENSATED:
        raise EdgecError("E0002", stage=_STAGE, where="--quant-method", found=f"{options.method} without samples",
                         wanted="--calib, which gives it the inputs of the layers", hint="or --quant-method auto")
    return source


def _solver(options: QuantizeOptions) -> driver.Solver:
    from edgec.compress.solvers import Method, quantize_matrix, quantize_palette

    known = {m.value: m for m in Method}
    if options.method != AUTO and options.method not in known:
        raise EdgecError("E0002", stage=_STAGE, where="--quant-method", found=repr(options.method),
                         wanted=did_you_mean(options.method, [AUTO, *known]))
    method = known.get(options.method)
    threads = options.threads or None

    def solve(weights: Array, spec: Spec, stats: LinearStats | None, name: str) -> Packed:
        if isinstance(spec, PaletteSpec):
            return quantize_palette(weights, spec, stats, threads=threads, where=name)
        # Tables of embeddings and dead layers meet no input, whatever the method of the others needs.
        chosen = None if stats is None and options.method in _COMPENSATED else method
        return quantize_matrix(weights, spec, chosen, stats, threads=threads, where=name)

    return solve


def check_same_model(finished: Finished, model: ir.Model, folder: Path) -> None:
    """Raises EdgecError (E0002) when `finished` was made of another model."""
    was, now = finished.state["arguments"].get("model_sha256"), info_of(model).source_sha256
    if was != now:
        raise EdgecError("E0002", stage=_STAGE, where=f"--quant-from {folder}", found=f"made of a model {was}",
                         wanted=f"this model, {now}", hint="quantize this model: edgec quantize MODEL -o OUT")
