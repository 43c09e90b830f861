"""The ONNX door: any .onnx file of opset 7 or newer, lifted to opset 24 and compared with onnxruntime on the file.

Vendor operators that exporters leave are spelled in standard ones here already, so that the comparison covers them.
A graph with `input_ids` and a past becomes a language model: its context length and special tokens come from the
config.json that exporters put beside it, or from the option `max_context`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError, did_you_mean
from edgec.importers import onnx_file, onnx_opset
from edgec.importers.check import difference, other_values, require_numbers, rounded_outputs, runner
from edgec.importers.onnx_original import Original
from edgec.importers.torch import DimRange, rename_symbols
from edgec.ir.execute import random_inputs
from edgec.ir.info import ModelInfo, attach_info
from edgec.ir.model import Array, describe, dims_of, is_op, op_of, scalar_of, walk
from edgec.ir.ops import DOMAIN, OPSET
from edgec.ir.opset import schema
from edgec.ir.shapes import infer_shapes
from edgec.passes.normalize.inline_functions import inline, spell_vendor_operators

STAGE = "import"
VENDOR = "com.microsoft"
RTOL = 1e-4
# For outputs behind a rounding to 8 bits (rounded_outputs).
QUANTIZED_RTOL = 5e-2
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
# Context lengths as the configurations beside exported models call them.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length", "seq_length")
_CONFIG_BYTES = 1 << 20
# Characters of a symbol; sums of several are not longer either.
_SYMBOL = 80
# Values of one input whose sizes are all known: the comparison makes that many.
_INPUT_VALUES = 1 << 28
_PAST = re.compile(r"past|cache", re.IGNORECASE)


def load(path: Path, *, name: str | None = None, check: bool = True,
         dynamic: Mapping[str, Mapping[int, DimRange]] | None = None, max_context: int | None = None) -> ir.Model:
    """Imports the file; initializers stay mapped where they are external.

    dynamic: {"x": {0: (1, 8)}} declares the range of the symbolic size of axis 0 of x, (n, n) fixes it. max_context:
    tokens, for language models without a configuration. Initializers that are graph inputs too become constants.
    Raises EdgecError: E0002 a bad option, E0003, E0101 a file that breaks a rule (edgec.importers.onnx_file), E0102 an
    operator that opset 24 cannot spell or onnxruntime cannot run, E0104 other numbers than onnxruntime's on the file,
    E0105 no numbers to compare.
    """
    model, hash_source = onnx_file.read(path)
    for value in [v for v in model.graph.inputs if v.is_initializer()]:
        model.graph.inputs.remove(value)
    if model.functions:
        inline(model)
    onnx_opset.lift(model)
    _well_typed(model, path)
    notes = _name_sizes(model, path)
    ranges = _declare(model, dynamic or {})
    infer_shapes(model)
    # The name goes into the manifest and onto terminals.
    plain = "".join(c if c.isprintable() else "?" for c in path.stem)
    info = ModelInfo(task="generic", name=name or plain, source=str(path), hash_source=hash_source, dynamic=ranges,
                     notes=notes)
    if _has_cache(model):
        info = _language_model(model, info, path, max_context)
    elif max_context is not None:
        raise EdgecError("E0002", stage=STAGE, where="max_context", found=str(max_context), wanted="a language model",
                         hint="leave the context out: this graph has no input_ids with a past")
    attach_info(model, info)
    tolerances = [QUANTIZED_RTOL if rounded else RTOL for rounded in rounded_outputs(model)]
    spell_vendor_operators(model)
    if check and not incomparable(model):
        _compare(path, model, tolerances)
    return model


def incomparable(model: ir.Model) -> list[ir.Node]:
    """Operators of no known operator set, which nothing can run, and random ones, which never give the same twice.

    No target has them: the compile lists all of them.
    """
    return [
        n for n in walk(model)
        if op_of(n)[0] not in ("", DOMAIN, VENDOR) or (op_of(n)[0] == "" and (
            n.op_type in _RANDOM or schema(n.op_type, OPSET) is None))
    ]


def _well_typed(model: ir.Model, path: Path) -> None:
    """What every later stage relies on, as errors of the file."""
    from edgec.ir import verify

    found = verify.well_formed(model)
    found += [f"graph input {v.name!r} is no tensor" for v in model.graph.inputs
              if v.type is not None and not isinstance(v.type, ir.TensorType)]
    found += [f"graph input {v.name!r} has no dtype or no rank" for v in model.graph.inputs
              if v.dtype is None or dims_of(v) is None]
    found += [f"graph input {v.name!r} has {n} values" for v in model.graph.inputs
              if (n := math.prod(d for d in dims_of(v) or () if isinstance(d, int))) > _INPUT_VALUES]
    found += [f"{describe(node)} gives {many:g} values" for node in walk(model)
              if not (many := _range_values(node)) <= _INPUT_VALUES]  # NaN too
    found += [f"{describe(node)}: {problem}" for node in walk(model) if (problem := onnx_opset.misused(node, OPSET))]
    found += [f"initializer {k!r} has no value" for k, v in model.graph.initializers.items() if v.const_value is None]
    if found:
        raise EdgecError("E0101", stage=STAGE, where=str(path), found="; ".join(found[:10]),
                         wanted="nodes as ONNX has them, and every value typed, named once and made before it is read")


def _range_values(node: ir.Node) -> float:
    """How many numbers a Range of constants gives: ONNX's shape inference makes them all, in any memory."""
    numbers = [n for v in node.inputs if (n := scalar_of(v)) is not None] if is_op(node, "Range") else []
    if len(numbers) != 3:
        return 0
    start, limit, step = numbers
    return (limit - start) / step if step else math.inf


# -- sizes that vary -------------------------------------------------------------------------------------------------


def _name_sizes(model: ir.Model, path: Path) -> tuple[str, ...]:
    """Symbols become identifiers (`batch size` -> batch_size), sizes without a name get the one of their axis.

    Returns notes on sizes of -1, which some tools write for an unknown one. Raises E0101 for other negative sizes.
    """
    names: dict[str, str | int] = {}
    unknown: list[str] = []
    for value in model.graph.inputs:
        dims: list[int | str] = []
        for axis, size in enumerate(dims_of(value) or ()):
            if isinstance(size, int) and size < -1:
                raise EdgecError("E0101", stage=STAGE, where=f"{path}, input {value.name!r}, axis {axis}",
                                 found=f"size {size}", wanted="a size from 0, a name, or -1 for an unknown size")
            if size == -1:
                unknown.append(f"{value.name}:{axis}")
            if isinstance(size, int) and size >= 0:
                dims.append(size)
            elif isinstance(size, str) and size.strip() and len(size) <= _SYMBOL:
                # Sums of symbols (past + sequence) are kept: they follow when their parts are known.
                if not re.fullmatch(r"[\w\s+*()\-/]+", size) or re.fullmatch(r"[A-Za-z_]\w*\s[\w\s]*", size):
                    names[size] = re.sub(r"\W", "_", size).strip("_") or f"{value.name}_{axis}"
                dims.append(size)
            else:
                dims.append(re.sub(r"\W", "_", f"{value.name}_{axis}"))
        value.shape = ir.Shape(dims)
    for value in (v for node in walk(model) for v in node.outputs):
        if value.shape is not None and any(isinstance(d, int) and d < 0 for d in value.shape):
            # Of what nodes make, inference finds it.
            value.shape = ir.Shape([None if isinstance(d, int) and d < 0 else d for d in value.shape])
    _rename(model, names)
    return (f"the size -1 of {', '.join(unknown)} is taken for one that varies",) if unknown else ()


def _rename(model: ir.Model, names: Mapping[str, str | int]) -> None:
    """Whole dims first, whatever characters they hold; then the symbols inside sums."""
    for value in (*model.graph.inputs, *(v for node in walk(model) for v in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([names.get(d.value, d) if isinstance(d, ir.SymbolicDim) and d.value else d
                                    for d in value.shape])
    rename_symbols(model, {k: v for k, v in names.items() if k.isidentifier()})


def _declare(model: ir.Model, dynamic: Mapping[str, Mapping[int, DimRange]]) -> dict[str, tuple[int, int]]:
    """Symbol -> (min, max) for what `dynamic` says; sizes with one possible value become numbers."""
    inputs = {v.name or "": v for v in model.graph.inputs}
    ranges: dict[str, tuple[int, int]] = {}
    for key, axes in dynamic.items():
        if key not in inputs:
            raise EdgecError("E0002", stage=STAGE, where=f"dynamic {key!r}", found="no such input",
                             wanted=did_you_mean(key, inputs))
        dims = dims_of(inputs[key]) or ()
        for axis, wanted in axes.items():
            where = f"dynamic {key}:{axis}"
            if not -len(dims) <= axis < len(dims):
                raise EdgecError("E0002", stage=STAGE, where=where, found=f"an input of rank {len(dims)}",
                                 wanted=f"an axis in 0..{len(dims) - 1}")
            low, high = int(wanted[-2]), int(wanted[-1])
            if not 1 <= low <= high < 2**31:
                raise EdgecError("E0002", stage=STAGE, where=where, found=f"{low}..{high}",
                                 wanted="a range MIN..MAX with 1 <= MIN <= MAX")
            size = dims[axis]
            if not isinstance(size, str) or not size.isidentifier():
                raise EdgecError("E0002", stage=STAGE, where=where, found=f"the size {size} in the file",
                                 wanted="an axis whose size is one symbol")
            if ranges.setdefault(size, (low, high)) != (low, high):
                raise EdgecError("E0002", stage=STAGE, where=where, found=f"{size} = {low}..{high}",
                                 wanted=f"one range for one symbol, as {ranges[size][0]}..{ranges[size][1]}")
    _rename(model, {k: low for k, (low, high) in ranges.items() if low == high})
    return {k: pair for k, pair in ranges.items() if pair[0] < pair[1]}


# -- language models -------------------------------------------------------------------------------------------------


def _has_cache(model: ir.Model) -> bool:
    names = [v.name or "" for v in model.graph.inputs]
    return "input_ids" in names and any(_PAST.search(n) for n in names if n not in ("input_ids", "past_len"))


def _language_model(model: ir.Model, info: ModelInfo, path: Path, max_context: int | None) -> ModelInfo:
    settings = _config(path.parent)
    context = max_context or next((n for k in _CONTEXT_KEYS if (n := _number(settings.get(k)))), 0)
    if not context:
        raise EdgecError("E0101", stage=STAGE, where=str(path), found="a language model of unknown context length",
                         wanted=f"a config.json beside it with one of {', '.join(_CONTEXT_KEYS)}",
                         hint="or say it: --ctx TOKENS")
    logits = next((dims for v in model.graph.outputs if len(dims := dims_of(v) or ()) == 3), ())
    vocab = logits[2] if logits and isinstance(logits[2], int) else _number(settings.get("vocab_size"))
    if not vocab:
        raise EdgecError("E0101", stage=STAGE, where=str(path), found="logits of unknown width",
                         wanted="an output [batch, sequence, vocabulary], or vocab_size in config.json beside the file")
    assert isinstance(vocab, int)
    tokenizer = path.parent / "tokenizer.json"
    eos = settings.get("eos_token_id")
    bos = settings.get("bos_token_id")
    return replace(
        info, task="causal-lm", max_context=context, vocab_size=vocab, dynamic={},
        bos_token=bos if isinstance(bos, int) and 0 <= bos < vocab else None,
        eos_tokens=tuple(t for t in (eos if isinstance(eos, list) else [eos]) if isinstance(t, int) and 0 <= t < vocab),
        tokenizer=tokenizer.resolve() if tokenizer.is_file() else None,
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) and 0 < value <= 1 << 24 else 0


def _config(folder: Path) -> dict[str, Any]:
    """config.json or the `model` part of genai_config.json beside the file; empty when there is none."""
    for name in ("config.json", "genai_config.json"):
        file = folder / name
        if not file.is_file() or file.stat().st_size > _CONFIG_BYTES:
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as e:
            raise EdgecError("E0101", stage=STAGE, where=str(file), found=str(e), wanted="a JSON object") from e
        if isinstance(found, dict):
            inner = found.get("model")
            return inner if name.startswith("genai") and isinstance(inner, dict) else found
    return {}


# -- the comparison --------------------------------------------------------------------------------------------------


def _compare(path: Path, model: ir.Model, tolerances: Sequence[float]) -> None:
    """E0104 unless onnxruntime gives the same on the imported graph and on the file, for several sizes.

    E0105 when an output is NaN whatever the values. tolerances: one for each output, relative to its largest value.
    """
    original = Original(path)
    unproven = set(original.output_names)
    with runner(model) as session:
        for feeds, wanted in _cases(model, original):
            unproven -= _agreed(path, session.run(feeds), wanted, tolerances)
        for other in other_values(feeds) if unproven else ():
            try:
                wanted = original.run(other)
            except EdgecError:
                continue  # values that the original refuses prove nothing
            unproven -= _agreed(path, session.run(other), wanted, tolerances)
    require_numbers(unproven, str(path))


def _agreed(path: Path, found: Mapping[str, Array], wanted: Mapping[str, Array], tolerances: Sequence[float]
            ) -> set[str]:
    """The outputs that are equal; E0104 for one that differs. Those with no number but NaN are neither."""
    agreed: set[str] = set()
    for name, ours, rtol in zip(wanted, found.values(), tolerances, strict=True):
        gap = difference(ours, wanted[name])
        if gap.within(rtol):
            agreed.add(name)
        elif not gap.blind:
            raise EdgecError("E0104", stage=STAGE, where=f"{path}, output {name!r}", found=str(gap),
                             wanted=f"at most {rtol:g} of the largest value, as onnxruntime on the file")
    return agreed


def _cases(model: ir.Model, original: Original) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Inputs the original accepts and its outputs: at the middle and the lower end of the declared ranges.

    The size of a symbol without a range is anybody's guess: 2, else 1, else the first error stands.
    """
    info: ModelInfo = model.meta["edgec.info"]
    if original.task == "causal-lm":
        yield from _tokens(original, info.vocab_size)
        return
    free = {d for v in model.graph.inputs for d in dims_of(v) or () if isinstance(d, str)} - set(info.dynamic)
    ends = [{k: (low, low) for k, (low, _) in info.dynamic.items()}] if info.dynamic else []
    accepted: int | None = None
    for declared in ({}, *ends):
        problem: EdgecError | None = None
        for guess in (2, 1) if accepted is None else (accepted,):
            sizes = dict.fromkeys(free, (guess, guess))
            feeds = _feeds(model, replace(info, dynamic={**info.dynamic, **declared, **sizes}))
            try:
                wanted = original.run(feeds)
            except EdgecError as e:
                problem = problem or e
                continue
            accepted = guess
            yield feeds, wanted
            break
        else:
            assert problem is not None
            raise EdgecError("E0102", stage=STAGE, where="random inputs", found=problem.found,
                             wanted="sizes and values that the model accepts",
                             hint="declare what varies: --dynamic INPUT:AXIS=MIN..MAX") from problem


def _tokens(original: Original, vocabulary: int) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """A prompt, and a few tokens after it over random keys and values."""
    rng = np.random.default_rng(0)
    for count, past in ((7, 0), (5, 6)):
        feeds = original.token_feeds([int(t) for t in rng.integers(0, vocabulary, count)], past, {})
        for name, value in feeds.items():
            if np.issubdtype(value.dtype, np.floating):
                feeds[name] = rng.standard_normal(value.shape).astype(value.dtype)
        yield feeds, original.run(feeds)


def _feeds(model: ir.Model, info: ModelInfo) -> dict[str, Array]:
    kept = model.meta["edgec.info"]
    attach_info(model, info)
    try:
        return random_inputs(model)
    finally:
        attach_info(model, kept)
