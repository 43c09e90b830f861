"""`edgec compare`: the outputs of a bundle against those of the model it was compiled from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec.errors import EdgecError
from edgec.judge.metrics import Array, distance
from edgec.judge.perplexity import read_text

if TYPE_CHECKING:
    from edgec.judge.opened import Opened

_GREEDY_PROMPT = 8
# Metric of --tol -> (key of Distance, larger is better).
_METRICS = {"max_abs": ("max_abs", False), "max_rel": ("max_rel", False), "sqnr": ("sqnr_db", True),
            "cosine": ("cosine", True), "top1": ("top1", True)}


def compare_bundle(
    model: Opened, reference: str, *, arrays: dict[str, Array] | None = None, text: Path | None = None,
    tokens: int = 128, threads: int = 0, seed: int = 0, allow_pickle: bool = False,
) -> dict[str, Any]:
    """Distances per output. Language models: all logits of `tokens` tokens (of `text`, or drawn from `seed`), and
    greedy tokens after a prompt; others: `arrays`, or normal random inputs from `seed`.
    allow_pickle: also a reference with pickled weights.
    """
    from edgec.importers.reference import load_reference

    if model.info.kind == 1 and arrays:
        raise EdgecError("E0002", stage="compare", where="--inputs", found="arrays for a language model",
                         wanted="--text FILE")
    if model.info.kind == 0 and text is not None:
        raise EdgecError("E0002", stage="compare", where="--text", found="a text for a model without tokens",
                         wanted="--inputs FILE.npz")
    original = load_reference(reference, allow_pickle=allow_pickle)
    report: dict[str, Any] = {"reference": reference, "seed": seed}
    if model.info.kind == 1:
        ids = _token_ids(model, text, tokens, seed)
        prompt = ids[:_GREEDY_PROMPT]
        wanted_ids = original.generate(prompt, len(ids) - len(prompt))
        with model.session(threads=threads, context=len(ids)) as session:
            found = session.score(ids)
            session.reset()
            greedy = session.generate(prompt, len(ids) - len(prompt), ignore_eos=True)
        report["outputs"] = {"logits": _distance("logits", found, original.logits(ids))}
        # A reference that stops at its end token is compared up to there.
        greedy = greedy[: len(wanted_ids)]
        differ = [i for i, (a, b) in enumerate(zip(greedy, wanted_ids, strict=False)) if a != b]
        report["greedy"] = {"tokens": len(wanted_ids), "equal": len(wanted_ids) - len(differ),
                            "first_difference": differ[0] if differ else "none"}
        return report
    feeds = arrays or random_feeds(model, seed)
    with model.session(threads=threads) as session:
        found_all = session.run(feeds)
    wanted_all = original.run(feeds)
    # The original may name its outputs otherwise; their order is the same.
    if len(found_all) != len(wanted_all):
        raise EdgecError("E0501", stage="compare", found=f"{len(found_all)} outputs",
                         wanted=f"{len(wanted_all)} outputs, as the original")
    report["outputs"] = {
        name: _distance(name, found, wanted)
        for (name, found), wanted in zip(found_all.items(), wanted_all.values(), strict=True)
    }
    return report


def _distance(name: str, found: Array, wanted: Array) -> dict[str, float]:
    if found.size != wanted.size:
        raise EdgecError("E0403", stage="compare", where=f"output {name!r}", found=f"shape {found.shape}",
                         wanted=f"{wanted.shape}, as the reference", hint="is it the model this was compiled from?")
    return distance(found, wanted.reshape(found.shape)).to_dict()


def _token_ids(model: Opened, text: Path | None, tokens: int, seed: int) -> list[int]:
    if tokens > model.info.max_context:
        raise EdgecError("E0404", stage="compare", where="-n", found=f"{tokens} tokens",
                         wanted=f"at most {model.info.max_context}")
    if text is not None:
        ids = model.tokenize(read_text(text))[:tokens]
        if len(ids) < 2:
            raise EdgecError("E0502", stage="compare", where=str(text), found=f"{len(ids)} tokens",
                             wanted="at least 2")
        return ids
    drawn = np.random.default_rng(seed).integers(0, model.info.vocab_size, tokens)
    return [int(t) for t in drawn]


def random_feeds(model: Opened, seed: int) -> dict[str, Array]:
    """Standard normal values for float inputs, zeros for the others, at every input's largest shape."""
    rng = np.random.default_rng(seed)
    return {
        port.name: rng.standard_normal(port.shape).astype(np.float32) if port.dtype == np.dtype(np.float32)
        else np.zeros(port.shape, port.dtype)
        for port in model.inputs
    }


def gate(report: dict[str, Any], limits: dict[str, float]) -> list[str]:
    """Sentences for every output that misses a limit; a NaN misses every limit."""
    missed: list[str] = []
    for output, row in report["outputs"].items():
        for metric, limit in limits.items():
            key, larger = _METRICS[metric]
            value = row[key]
            if not (value >= limit if larger else value <= limit):
                missed.append(f"{output}: {metric} {value:.4g}, limit {limit:g}")
    return missed
