"""Perplexity of a text: windows of equal length, each scored alone from an empty context.

The text is tokenized once; a window's first token is context only, so a window of N tokens gives N - 1 predictions.
Both sides of a comparison see the same tokens. Reported as exp(mean negative log likelihood).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgec.errors import EdgecError
from edgec.judge.metrics import Array, negative_log_likelihood

Scorer = Callable[[list[int]], Array]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Perplexity:
    """nll: mean nats per predicted token. predictions: how many tokens were predicted."""

    perplexity: float
    nll: float
    predictions: int
    windows: int
    window: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_text(path: Path, stage: str = "eval") -> str:
    """The UTF-8 text at `path`. Raises EdgecError EDGEC-E0003 (missing) or EDGEC-E0502 (empty, not text)."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise EdgecError("E0502", stage=stage, where=str(path), found=f"bytes that are not UTF-8 ({e.reason})",
                         wanted="a UTF-8 text file") from e
    except OSError as e:
        raise EdgecError("E0003", stage=stage, where=str(path), found=str(e), wanted="a text file") from e
    if not text.strip():
        raise EdgecError("E0502", stage=stage, where=str(path), found="an empty text", wanted="some text")
    return text


def windows_of(tokens: Sequence[int], window: int) -> list[list[int]]:
    """Windows of `window` tokens in order; a last one of a single token predicts nothing and is left out.

    Raises EdgecError EDGEC-E0502 when the text has fewer than two tokens, EDGEC-E0002 for a window below two.
    """
    if window < 2:
        raise EdgecError("E0002", stage="eval", where="--window", found=str(window), wanted="at least 2 tokens")
    cut = [list(tokens[at:at + window]) for at in range(0, len(tokens), window)]
    cut = [piece for piece in cut if len(piece) > 1]
    if not cut:
        raise EdgecError("E0502", stage="eval", found=f"{len(tokens)} tokens", wanted="at least 2 tokens of text")
    return cut


def perplexity(score: Scorer, tokens: Sequence[int], window: int, progress: Progress | None = None) -> Perplexity:
    """Perplexity of `tokens` under `score`, which returns logits [T, vocab] for T tokens from an empty context."""
    pieces = windows_of(tokens, window)
    total, predictions = 0.0, 0
    for done, piece in enumerate(pieces):
        total += negative_log_likelihood(score(piece), np.asarray(piece, np.int64))
        predictions += len(piece) - 1
        if progress is not None:
            progress(done + 1, len(pieces))
    mean = total / predictions
    # Above 709 nats the perplexity is beyond a float, and NaN compares as neither.
    return Perplexity(math.inf if mean > 709 else math.exp(mean), mean, predictions, len(pieces), window)
