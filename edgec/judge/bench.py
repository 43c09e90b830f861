"""`edgec bench`: speed of a bundle. Language models in llama-bench's conventions (ppN, tgN), others as latency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgec.errors import EdgecError
from edgec.judge.compare import random_feeds
from edgec.judge.speed import Samples, measure

if TYPE_CHECKING:
    from edgec.judge.opened import Opened


def sweep(cores: int) -> list[int]:
    """Thread counts to try on a machine of so many cores: all up to eight, then doubling, the number of cores last."""
    doubled = (1 << k for k in range(3, cores.bit_length()) if 1 << k <= cores)
    return sorted({*range(1, min(cores, 8) + 1), *doubled, cores})


def fastest(rows: Sequence[Samples]) -> dict[str, int]:
    """Test -> the thread count with the smallest median; of equals the smaller count."""
    best: dict[str, Samples] = {}
    for row in sorted(rows, key=lambda row: row.threads):
        if row.name not in best or row.quantile(0.5) < best[row.name].quantile(0.5):
            best[row.name] = row
    return {name: row.threads for name, row in best.items()}


def bench_bundle(
    model: Opened, prompt: int, tokens: int, threads: Sequence[int], repetitions: int, warmup: int
) -> list[Samples]:
    """One row per test and thread count.

    ppN: N tokens in one call from an empty context. tgN: N calls of one token from an empty context; both with
    random tokens and without sampling. Other models: one run at the largest shapes.
    """
    rows: list[Samples] = []
    if model.info.kind == 0:
        feeds = random_feeds(model, 0)
        for count in threads:
            with model.session(threads=count) as session:
                rows.append(measure("run", count, 1, lambda s=session: s.run(feeds), repetitions, warmup))  # type: ignore[misc]
        return rows
    longest = max(prompt, tokens)
    if longest > model.info.max_context:
        raise EdgecError("E0404", stage="bench", where="-p, -n", found=f"{longest} tokens",
                         wanted=f"at most {model.info.max_context}")
    if longest == 0:
        raise EdgecError("E0002", stage="bench", where="-p, -n", found="0 and 0", wanted="one of them above zero")
    ids = [int(t) for t in np.random.default_rng(0).integers(0, model.info.vocab_size, longest)]
    for count in threads:
        with model.session(threads=count, context=longest) as session:
            def prefill() -> None:
                session.step(ids[:prompt])

            def decode() -> None:
                for token in ids[:tokens]:
                    session.step([token])

            for name, work, run in ((f"pp{prompt}", prompt, prefill), (f"tg{tokens}", tokens, decode)):
                if work:
                    rows.append(measure(name, count, work, run, repetitions, warmup, session.reset))
    return rows
