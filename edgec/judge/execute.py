"""Running a bundle for `edgec run`: text in, text out; arrays in, arrays out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec.errors import EdgecError
from edgec.judge.bundle import need_language_model
from edgec.judge.metrics import Array

if TYPE_CHECKING:
    from edgec.judge.opened import Opened


@dataclass(frozen=True)
class Generated:
    """What a prompt became. prompt_per_s, generate_per_s: tokens per second of the two phases."""

    text: str
    tokens: list[int]
    prompt_tokens: int
    prompt_per_s: float
    generate_per_s: float
    isa: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def generate(
    model: Opened, prompt: str, count: int, *, threads: int = 0, context: int = 0, seed: int = 0,
    temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, on_text: Callable[[str], None] | None = None,
) -> Generated:
    """Continues `prompt` by up to `count` tokens; on_text receives the prompt first and then each new piece.

    Raises EdgecError: E0404 when prompt and `count` do not fit the context, E0403 for text that is no text.
    """
    need_language_model(model, "-p")
    tokens = model.tokenize(prompt)
    limit = context or model.info.max_context
    if len(tokens) + count > limit:
        raise EdgecError(
            "E0404", stage="run", where="-p, -n", found=f"{len(tokens)} prompt tokens and {count} to generate",
            wanted=f"at most {limit} together", hint="shorten the prompt, lower -n, or compile with a larger --ctx",
        )
    pieces: list[str] = []
    made: list[int] = []
    first = 0.0

    def on_token(token: int, text: str) -> bool:
        nonlocal first
        if not made:
            first = time.perf_counter()
        made.append(token)
        pieces.append(text)
        if on_text is not None:
            on_text(text)
        return True

    with model.session(threads=threads, context=context) as session:
        if on_text is not None:
            on_text(prompt)
        start = time.perf_counter()
        session.generate(tokens, count, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
                         on_token=on_token)
        end = time.perf_counter()
    # The first token comes from the prompt's own logits: it belongs to the prompt phase.
    decode = end - first if made else 0.0
    return Generated(
        "".join(pieces), made, len(tokens), len(tokens) / max(first - start, 1e-9) if made else 0.0,
        (len(made) - 1) / decode if len(made) > 1 and decode > 0 else 0.0, model.info.isa,
    )


def to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def run_arrays(model: Opened, arrays: dict[str, Array], threads: int) -> dict[str, Array]:
    """Outputs of a generic model. Raises EdgecError E0403 for names, shapes or dtypes that do not fit."""
    with model.session(threads=threads) as session:
        return session.run(arrays)


def save_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """Writes an .npz. Raises EdgecError EDGEC-E0004."""
    try:
        with path.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
    except OSError as e:
        raise EdgecError("E0004", stage="run", where=str(path), found=e.strerror or str(e), wanted="a file") from e


def summary(arrays: dict[str, Array]) -> dict[str, Any]:
    """Per output: dtype, shape, range, and the places of the five largest values."""
    report: dict[str, Any] = {}
    for name, array in arrays.items():
        flat = array.reshape(-1).astype(np.float64)
        top = np.argsort(-flat, kind="stable")[:5]
        report[name] = {
            "dtype": str(array.dtype), "shape": list(array.shape),
            "min": float(flat.min(initial=np.inf)), "mean": float(flat.mean()) if flat.size else 0.0,
            "max": float(flat.max(initial=-np.inf)), "top": [int(i) for i in top],
        }
    return report


def summary_rows(arrays: dict[str, Array]) -> list[tuple[object, ...]]:
    return [
        (name, row["dtype"], "x".join(map(str, row["shape"])), f"{row['min']:.6g}", f"{row['mean']:.6g}",
         f"{row['max']:.6g}", " ".join(map(str, row["top"])))
        for name, row in summary(arrays).items()
    ]
