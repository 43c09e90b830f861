"""What a user asked of a quantization, handed to compress/: a folder of quantized layers (`edgec quantize`), or static
8-bit integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgec.calibration import NONE, SELF, CalibOptions, open_samples
from edgec.compress import driver
from edgec.compress.formats import Array, PaletteSpec
from edgec.compress.policy import CALIBRATED_BITS, Override, Spec, needs_calibration, parse_override, parse_spec
from edgec.compress.ranges import Method as RangeMethod
from edgec.compress.regions import STATIC
from edgec.compress.regions import Choice as StaticChoice
from edgec.compress.solvers import LinearStats, Method, quantize_matrix, quantize_palette
from edgec.compress.solvers.native import MAX_THREADS
from edgec.compress.static import Static
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
    bits without calibration all the same. method: of the solvers, for layers of formats that it can make. max_memory:
    bytes of this process. threads: 0: all. uniform_heads: a head whose bits are raised takes uniform codes, for
    backends that store bit planes of few bits only. Raises EdgecError (E0002, E0003) for values that no model could
    take.
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
    uniform_heads: bool = False

    def __post_init__(self) -> None:
        if self.quant == STATIC:
            raise EdgecError("E0002", stage=_STAGE, where="--quant", found=STATIC, wanted="a format of weights: hlq2",
                             hint=f"edgec compile --quant {STATIC} --calib FOLDER rounds activations too, on the way")
        _plain(parse_spec(self.quant), "--quant")
        for text in self.overrides:
            check_override(text)
        known = [AUTO, *(m.value for m in Method)]
        if self.method not in known:
            raise EdgecError("E0002", stage=_STAGE, where="--quant-method", found=repr(self.method),
                             wanted=did_you_mean(self.method, known))
        if self.method != AUTO and not _makes(Method(self.method), parse_spec(self.quant)):
            fitting = [m.value for m in Method if _makes(m, parse_spec(self.quant))]
            raise EdgecError("E0002", stage=_STAGE, where="--quant-method", found=f"{self.method} for {self.quant}",
                             wanted=", ".join([AUTO, *fitting]), hint="or another format for --quant")
        if not 0 <= self.threads <= MAX_THREADS:
            raise EdgecError("E0002", stage=_STAGE, where="--threads", found=str(self.threads),
                             wanted=f"0 (all cores) to {MAX_THREADS}")
        self.samples_from(NONE if self.calib is None else self.calib)

    def samples_from(self, source: str) -> CalibOptions:
        """The options of a calibration from `source`. Raises EdgecError (E0002, E0003)."""
        return CalibOptions(source, self.samples, self.window, self.seed, self.mean, self.std)


@dataclass(frozen=True)
class StaticOptions:
    """Static 8-bit integers, `--quant static8`. calib: a path, images or arrays of what the model will read.
    method: of the ranges, as ranges.Method.parse takes it. equalize, correct: the passes Equalize and CorrectBias.
    overrides: `GLOB=f32` or `GLOB=static8`. The others as of QuantizeOptions. Raises EdgecError (E0002, E0003)."""

    calib: str | None
    samples: int = 128
    seed: int = 0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    method: str = "mse"
    equalize: bool = False
    correct: bool = False
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        RangeMethod.parse(self.method)
        for text in self.overrides:
            StaticChoice.parse(text)
        if self.calib in (None, NONE, SELF):
            raise EdgecError("E0002", stage=_STAGE, where="--calib", found=self.calib or "nothing",
                             wanted=f"samples of what the model will read: {STATIC} has a range for every activation",
                             hint="--calib FOLDER of images, FILE.npz or FILE.txt; not those it will be judged on")
        self.source()

    def source(self) -> CalibOptions:
        return CalibOptions(self.calib or NONE, self.samples, 0, self.seed, self.mean, self.std)

    def arguments(self) -> dict[str, Any]:
        """What the report and the bundle say: no paths, the same for the same samples."""
        return {"quant": STATIC, "overrides": list(self.overrides), "method": str(RangeMethod.parse(self.method)),
                "equalize": self.equalize, "bias_correction": self.correct, "calibration": self.source().identity()}


def open_static(model: ir.Model, options: StaticOptions, progress: driver.Progress) -> Static:
    """The samples for the normalized `model` and the settings, for the passes. Raises EdgecError."""
    def none_drawn(path: Path) -> None:
        raise AssertionError("samples of the model's own are refused by the options")

    if info_of(model).task == "causal-lm":
        raise EdgecError("E0002", stage=_STAGE, where="--quant", found=f"{STATIC} for a language model",
                         wanted="weights of few bits: hlq4, int8")
    return Static(
        open_samples(model, options.source(), Path(), none_drawn, progress), RangeMethod.parse(options.method),
        tuple(StaticChoice.parse(text) for text in options.overrides), options.equalize, options.correct, progress)


def check_override(text: str, where: str = "--quant-override") -> Override:
    """`GLOB=SPEC` or `GLOB=none`. Raises EdgecError (E0002), also for formats that no solver makes."""
    override = parse_override(text, where)
    if override.spec is not None:
        _plain(override.spec, where)
    return override


def _plain(spec: Spec, where: str) -> None:
    if isinstance(spec, PaletteSpec) and spec.vector > 1:
        raise EdgecError("E0002", stage=_STAGE, where=where, found=f"{spec}: a palette of vectors",
                         wanted="a palette of single values", hint=f"palette{spec.bits}")


def _makes(method: Method, spec: Spec) -> bool:
    """Whether `method` is one for layers of `spec`. Palettes have a solver of their own, which compensates."""
    if isinstance(spec, PaletteSpec):
        return method is Method.GPTQ
    return not spec.uniform or method not in (Method.ALS, Method.PUBLISHED)


def quantize(model: ir.Model, options: QuantizeOptions, folder: Path, float_bundle: Callable[[Path], None],
             progress: driver.Progress) -> Finished:
    """Quantizes the normalized `model` into `folder`, or goes on where an earlier run of the same was stopped.

    float_bundle: compiles the model as it is to a path, for samples of its own. The result depends on the model and
    the options alone, but for max_memory and threads, which change nothing. Raises EdgecError.
    """
    work = driver.plan_work(model, parse_spec(options.quant), [check_override(text) for text in options.overrides],
                            _solver(options), options.max_memory, options.uniform_heads)
    calibration = options.samples_from(_calibration(model, options, work))
    info = info_of(model)
    arguments: dict[str, Any] = {
        "edgec_version": __version__, "model": info.name, "model_sha256": info.source_sha256,
        "quant": str(parse_spec(options.quant)), "overrides": list(options.overrides), "method": options.method,
        "calibration": calibration.identity(), **({"uniform_heads": True} if options.uniform_heads else {}),
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
    method = None if options.method == AUTO else Method(options.method)
    threads = options.threads or None

    def solve(weights: Array, spec: Spec, stats: LinearStats | None, name: str) -> Packed:
        if isinstance(spec, PaletteSpec):
            return quantize_palette(weights, spec, stats, threads=threads, where=name)
        # Tables of embeddings and dead layers meet no input, and single layers may have another format than --quant.
        fits = method is not None and _makes(method, spec) and not (stats is None and options.method in _COMPENSATED)
        chosen = method if fits else None
        return quantize_matrix(weights, spec, chosen, stats, threads=threads, where=name)

    return solve


def check_same_model(finished: Finished, model: ir.Model, folder: Path) -> None:
    """Raises EdgecError (E0002) when `finished` was made of another model."""
    was, now = finished.state["arguments"].get("model_sha256"), info_of(model).source_sha256
    if was != now:
        raise EdgecError("E0002", stage=_STAGE, where=f"--quant-from {folder}", found=f"made of a model {was}",
                         wanted=f"this model, {now}", hint="quantize this model: edgec quantize MODEL -o OUT")
