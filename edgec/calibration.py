"""Where the samples of a calibration come from: a text, a folder of images, an .npz file, or the model itself.

All samples of a run have the same shapes. Texts are tokenized once, cut into windows as `edgec eval` does, and some
windows drawn by the seed; `self` draws sequences from the model's own distribution (temperature 1, from its first
token, or a random one where it has none), which needs no data at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.compress.calibrate import Samples
from edgec.compress.formats import Array
from edgec.errors import EdgecError
from edgec.ir.info import ModelInfo, info_of
from edgec.ir.model import dims_of
from edgec.ir.weights import sha256_of

_STAGE = "calibration"
SELF, NONE = "self", "none"
_WINDOW = 256
_SOURCES = "self, none, FILE.txt, FILE.npz or a folder of images"
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class CalibOptions:
    """source: `self`, `none`, or a path. samples: at most so many. window: tokens of a sample, 0: the smaller of the
    model's context and 256. mean, std: of images, as of `edgec eval`."""

    source: str
    samples: int = 128
    window: int = 0
    seed: int = 0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        """Raises EdgecError: E0002 for numbers out of range, E0003 for a path that does not exist."""
        for name, value, least in (("samples", self.samples, 1), ("window", self.window, 0), ("seed", self.seed, 0)):
            if value < least:
                raise EdgecError("E0002", stage=_STAGE, where=f"--calib-{name}", found=str(value),
                                 wanted=f"at least {least}")
        if self.window == 1:
            raise EdgecError("E0002", stage=_STAGE, where="--calib-window", found="1 token", wanted="at least 2 tokens",
                             hint="0 takes the smaller of the model's context and 256")
        if min(self.std) <= 0:
            raise EdgecError("E0002", stage=_STAGE, where="--std", found=str(self.std),
                             wanted="three deviations above zero")
        if self.source not in (SELF, NONE) and not (self.source and Path(self.source).exists()):
            raise EdgecError("E0003", stage=_STAGE, where="--calib", found=f"no such file or folder: {self.source!r}",
                             wanted=_SOURCES)

    def identity(self) -> dict[str, Any]:
        """What makes two calibrations the same: settings and content of the files, not where they lie."""
        if self.source == NONE:
            return {"source": NONE}
        settings = {"samples": self.samples, "window": self.window, "seed": self.seed}
        if self.source == SELF:
            return {"source": SELF, **settings}
        path = Path(self.source)
        images = {"mean": list(self.mean), "std": list(self.std)} if path.is_dir() else {}
        return {"source": path.name, "sha256": sha256_of(path), **settings, **images}


def open_samples(model: ir.Model, options: CalibOptions, work: Path, float_bundle: Callable[[Path], None],
                 progress: Progress) -> Samples:
    """The samples for the normalized `model`. work: a folder for what is drawn from the model itself, which an
    interrupted run continues. float_bundle: compiles the model as it is to a path.

    Raises EdgecError: E0002 a source that does not fit the model, E0003, E0502 unusable data, E0005 without Pillow.
    """
    if options.source == SELF:
        return _language(model, options, _drawn(model, options, work, float_bundle, progress))
    path = Path(options.source)
    if path.is_dir():
        return _images(model, options, path)
    if path.suffix == ".npz":
        return _arrays(model, options, path)
    return _text(model, options, path)


@dataclass(frozen=True)
class _Stacked:
    """varying: one entry per sample. constant: the same for all."""

    varying: Mapping[str, Sequence[Array]]
    constant: Mapping[str, Array]

    @property
    def count(self) -> int:
        return min(len(arrays) for arrays in self.varying.values())

    def feed(self, index: int) -> Mapping[str, Array]:
        return {**self.constant, **{name: arrays[index] for name, arrays in self.varying.items()}}


@dataclass(frozen=True)
class _ImageFiles:
    files: Sequence[Path]
    name: str
    height: int
    width: int
    options: CalibOptions

    @property
    def count(self) -> int:
        return len(self.files)

    def feed(self, index: int) -> Mapping[str, Array]:
        from edgec.judge.images import load_image

        image = load_image(self.files[index], self.height, self.width, self.options.mean, self.options.std,
                           _STAGE)
        return {self.name: image}


def _language(model: ir.Model, options: CalibOptions, windows: Sequence[Sequence[int]]) -> Samples:
    """Windows of token ids as the inputs of a language model with empty caches, or of an encoder of texts."""
    width = len(windows[0])
    constant: dict[str, Array] = {}
    ids: ir.Value | None = None
    for value in model.graph.inputs:
        name, dims = value.name or "", dims_of(value) or ()
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        if name == "input_ids":
            ids = value
        elif name == "past_len":
            constant[name] = np.array(0, dtype)
        elif "cache" in name and "context" in dims:
            constant[name] = np.zeros([width if d == "context" else int(str(d)) for d in dims], dtype)
        elif name == "attention_mask":
            constant[name] = np.ones((1, width), dtype)
        elif name == "position_ids":
            constant[name] = np.arange(width, dtype=dtype)[None]
        elif name == "token_type_ids":
            constant[name] = np.zeros((1, width), dtype)
        else:
            raise _unfit(options, f"an input {name!r} that is no text", "FILE.npz with every input of the model")
    if ids is None:
        raise _unfit(options, "a model without an input input_ids", "a folder of images, or FILE.npz")
    dtype = (ids.dtype or ir.DataType.INT64).numpy()
    return _Stacked({"input_ids": [np.array([w], dtype) for w in windows]}, constant)


def _unfit(options: CalibOptions, found: str, wanted: str) -> EdgecError:
    return EdgecError("E0002", stage=_STAGE, where=f"--calib {options.source}", found=found, wanted=wanted)


def _width(model: ir.Model, options: CalibOptions) -> int:
    """Tokens of a sample."""
    info = info_of(model)
    ids = next((v for v in model.graph.inputs if v.name == "input_ids"), None)
    most = info.max_context or _WINDOW
    if info.task != "causal-lm" and ids is not None:
        last = (dims_of(ids) or (None,))[-1]
        most = last if isinstance(last, int) else info.dynamic.get(str(last), (1, _WINDOW))[1]
        if isinstance(last, int):
            return last
    if options.window > most:
        raise EdgecError("E0404", stage=_STAGE, where="--calib-window", found=f"{options.window} tokens",
                         wanted=f"at most {most}", hint="a smaller --calib-window; 0 takes what fits")
    return options.window or min(most, _WINDOW)


def _text(model: ir.Model, options: CalibOptions, path: Path) -> Samples:
    from edgec.judge.perplexity import read_text

    width = _width(model, options)
    tokenizer = _tokenizer(model, options)
    ids = tokenizer.encode(read_text(path, _STAGE), add_special_tokens=False).ids
    # What the tokenizer puts around every text of an encoder; a language model's windows are cut out of one.
    around = tokenizer.encode("", add_special_tokens=True).ids if info_of(model).task != "causal-lm" else []
    half = (len(around) + 1) // 2
    inner = width - len(around)
    whole = [[*around[:half], *ids[at : at + inner], *around[half:]] for at in range(0, len(ids) - inner + 1, inner)]
    if not whole:
        raise EdgecError("E0502", stage=_STAGE, where=str(path), found=f"{len(ids)} tokens",
                         wanted=f"at least {inner}, one sample", hint="a longer text, or a smaller --calib-window")
    return _language(model, options, [whole[i] for i in _draw(len(whole), options)])


def _draw(count: int, options: CalibOptions) -> list[int]:
    """Which of `count` to take, in their order."""
    order = np.random.default_rng(options.seed).permutation(count)[: options.samples]
    return sorted(int(i) for i in order)


def _tokenizer(model: ir.Model, options: CalibOptions) -> Any:
    import tokenizers

    info = info_of(model)
    # Only language models carry the path of theirs.
    beside = Path(info.source.rpartition(":")[0] or info.source) / "tokenizer.json"
    found = next((p for p in (info.tokenizer, Path(info.source) / "tokenizer.json", beside) if p and p.is_file()), None)
    if found is None:
        named = [v.name for v in model.graph.inputs]
        wanted = ("FILE.npz with token ids" if "input_ids" in named else "a folder of images, or FILE.npz")
        raise _unfit(options, f"a text for a model without tokenizer.json, whose inputs are {named[:4]}",
                     wanted + (", or self" if info.task == "causal-lm" else ""))
    tokenizer = tokenizers.Tokenizer.from_file(str(found))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _images(model: ir.Model, options: CalibOptions, folder: Path) -> Samples:
    inputs = list(model.graph.inputs)
    dims = dims_of(inputs[0]) or ()
    height, width = dims[2:] if len(inputs) == 1 and len(dims) == 4 and dims[1] == 3 else (None, None)
    if not isinstance(height, int) or not isinstance(width, int):
        raise _unfit(options, f"a model whose inputs are {[(v.name, dims_of(v)) for v in inputs][:4]}",
                     "one input of shape [N, 3, H, W], or FILE.npz")
    entries = sorted(folder.iterdir())
    files = [p for p in entries if p.suffix.lower() in _IMAGES]
    if not files:
        raise EdgecError("E0502", stage=_STAGE, where=str(folder), found=f"{len(entries)} entries, no image among them",
                         wanted="files *" + ", *".join(_IMAGES), hint="images in folders inside it are not looked for")
    return _ImageFiles([files[i] for i in _draw(len(files), options)], inputs[0].name or "", height, width, options)


def _arrays(model: ir.Model, options: CalibOptions, path: Path) -> Samples:
    """Arrays by input name: one sample more dims than the input has, or the first dim a multiple of the input's."""
    from edgec.judge.arrays import read_npz

    arrays = read_npz(path, _STAGE)
    if info_of(model).task == "causal-lm":
        ids = arrays.get("input_ids")
        if set(arrays) != {"input_ids"} or ids is None or ids.ndim != 2 or ids.dtype.kind not in "iu":
            held = ", ".join(f"{k} {a.dtype} {list(a.shape)}" for k, a in arrays.items())
            raise _unfit(options, held or "no array", "input_ids [samples, tokens] of an integer type alone")
        _check_tokens(ids, info_of(model), path)
        return _language(model, options, [ids[i] for i in _draw(len(ids), options)])
    inputs = {v.name or "": v for v in model.graph.inputs}
    if set(arrays) != set(inputs):
        raise _unfit(options, f"arrays {sorted(arrays)}", f"{sorted(inputs)}, the inputs of the model")
    cut = {name: _cut(arrays[name], inputs[name], path) for name in inputs}
    counts = {len(parts) for parts in cut.values()}
    if len(counts) != 1:
        raise _unfit(options, f"{ {k: len(v) for k, v in cut.items()} } samples", "as many of every input")
    chosen = _draw(counts.pop(), options)
    return _Stacked({name: [parts[i] for i in chosen] for name, parts in cut.items()}, {})


def _check_tokens(ids: Array, info: ModelInfo, path: Path) -> None:
    count, width = ids.shape
    low, high = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
    if not ids.size or width > info.max_context or low < 0 or high >= info.vocab_size:
        raise EdgecError("E0502", stage=_STAGE, where=f"{path}, input_ids", found=f"{count} samples of {width} tokens"
                         + (f", from {low} to {high}" if ids.size else ""),
                         wanted=f"samples of at most {info.max_context} tokens from 0 to {info.vocab_size - 1}")


def _cut(array: Array, value: ir.Value, path: Path) -> list[Array]:
    dims, dtype = dims_of(value) or (), (value.dtype or ir.DataType.FLOAT).numpy()
    batch = dims[0] if dims and isinstance(dims[0], int) else 1
    more = array.ndim == len(dims) + 1
    shape = array.shape[1:] if more else (batch, *array.shape[1:])
    fits = (more or (array.ndim == len(dims) and array.shape[0] % batch == 0)) and array.dtype == dtype and all(
        not isinstance(d, int) or d == n for d, n in zip(dims, shape, strict=True))
    if not fits or not len(array):
        raise EdgecError("E0502", stage=_STAGE, where=f"{path}, {value.name}", found=f"{array.dtype} {array.shape}",
                         wanted=f"{dtype} [samples, {', '.join(map(str, dims))}]")
    return list(array) if more else list(array.reshape(-1, batch, *array.shape[1:]))


def _drawn(model: ir.Model, options: CalibOptions, work: Path, float_bundle: Callable[[Path], None],
           progress: Progress) -> list[list[int]]:
    """Sequences of the model's own. They are added to a file one by one, so an interrupted run continues there."""
    info = info_of(model)
    if info.task != "causal-lm":
        raise _unfit(options, "a model that makes no text", "a folder of images, FILE.txt or FILE.npz")
    width = _width(model, options)
    work.mkdir(parents=True, exist_ok=True)
    file = work / "self.i32"
    size = 4 * width
    have = file.stat().st_size // size if file.is_file() else 0
    if have < options.samples:
        with file.open("ab") as out:
            out.truncate(have * size)
            for i, tokens in enumerate(_sequences(info, options, width, have, work, float_bundle)):
                out.write(np.asarray(tokens, "<i4").tobytes())
                out.flush()
                progress(have + i + 1, options.samples, "sequences drawn from the model")
            os.fsync(out.fileno())
    stored = np.fromfile(file, "<i4").reshape(-1, width)[: options.samples]
    return [[int(t) for t in row] for row in stored]


def _sequences(info: ModelInfo, options: CalibOptions, width: int, first: int, work: Path,
               float_bundle: Callable[[Path], None]) -> Iterator[list[int]]:
    """The sequences from number `first` on; each depends on the seed and its number alone."""
    from edgec.native.session import Model

    bundle = work / "float.edgec"
    float_bundle(bundle)
    try:
        with Model(bundle) as model, model.session(context=width) as session:
            for i in range(first, options.samples):
                rng = np.random.default_rng((options.seed, i))
                start = info.bos_token if info.bos_token is not None else int(rng.integers(info.vocab_size))
                session.reset()
                made = session.generate([start], width - 1, temperature=1.0, seed=int(rng.integers(1 << 62)),
                                        ignore_eos=True)
                yield [start, *made]
    finally:
        bundle.unlink(missing_ok=True)
