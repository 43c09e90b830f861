"""Whole language models against transformers: tokens, perplexity, chunked prefill, seek, every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgec import env
from edgec.errors import EdgecError
from edgec.importers.reference import Reference
from edgec.judge.perplexity import perplexity
from edgec.native.session import Model

PROMPTS = (
    "Once upon a time, there was a little girl",
    "It was a quiet evening, and the old house",
    "The captain looked at the sea and",
    "\"Why,\" said she,",
    "A dog and a cat",
)
GENERATED = 200


@pytest.mark.parametrize("threads", [1, 2])
def test_greedy_tokens_are_those_of_the_original(
    lm_name: str, lm: Model, references: dict[str, Reference], threads: int
) -> None:
    for prompt in PROMPTS:
        tokens = lm.tokenize(prompt)
        wanted = references[lm_name].generate(tokens, GENERATED)
        with lm.session(threads=threads) as session:
            found = session.generate(tokens, GENERATED, ignore_eos=True)
        assert len(wanted) == GENERATED
        assert found == wanted, prompt


def test_perplexity_equals_the_originals_to_four_digits(
    lm_name: str, lm: Model, references: dict[str, Reference], asset: Callable[[str], Path]
) -> None:
    text = asset("prose/valid.txt").read_text(encoding="utf-8")[:60_000]
    tokens = lm.tokenize(text)[:256 * 24]
    wanted = perplexity(references[lm_name].logits, tokens, 256)
    with lm.session() as session:
        def score(piece: list[int]) -> np.ndarray:
            session.reset()
            return session.score(piece)

        found = perplexity(score, tokens, 256)
    assert found.predictions == wanted.predictions > 1000
    assert f"{found.perplexity:.4g}" == f"{wanted.perplexity:.4g}"
    assert abs(found.perplexity / wanted.perplexity - 1) < 1e-5


def long_tokens(lm: Model, count: int) -> list[int]:
    rng = np.random.default_rng(7)
    return [int(t) for t in rng.integers(2, lm.info.vocab_size, count)]


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.max(np.abs(found - wanted)) / np.max(np.abs(wanted)))


def test_chunked_prefill_then_decode_equals_one_pass(
    lm_name: str, lm: Model, references: dict[str, Reference]
) -> None:
    """520 tokens span three prefill chunks (prose_lm) or nearly the whole context (stories260k: 512)."""
    tokens = long_tokens(lm, 520 if lm_name == "prose_lm" else 500)
    wanted = references[lm_name].logits(tokens)
    with lm.session() as session:
        scored = session.score(tokens)
        assert relative(scored, wanted) < 1e-4
        session.reset()
        prefilled = session.step(tokens[:-4])
        assert relative(prefilled, wanted[-5]) < 1e-4
        for i in range(-4, 0):
            assert relative(session.step([tokens[i]]), wanted[i]) < 1e-4
        session.reset()
        # Pieces that no chunk boundary divides.
        at = 0
        for size in (1, 7, 255, 256, 300):
            piece = tokens[at:at + size]
            if not piece:
                break
            at += len(piece)
            assert relative(session.step(piece), wanted[at - 1]) < 1e-4


def test_seek_and_regenerate_gives_the_same_tokens(lm: Model) -> None:
    tokens = lm.tokenize(PROMPTS[0])
    with lm.session() as session:
        first = session.generate(tokens, 60, ignore_eos=True)
        end = session.position
        session.seek(len(tokens) - 1)
        assert session.position == len(tokens) - 1
        again = session.generate(tokens[-1:], 60, ignore_eos=True)
        assert again == first
        assert session.position == end
        # In the middle of what was generated.
        session.seek(len(tokens) + 20)
        assert session.generate(first[20:21], 39, ignore_eos=True) == first[21:]


def test_saved_state_goes_on_in_another_session(lm: Model) -> None:
    tokens = lm.tokenize(PROMPTS[1])
    with lm.session() as one, lm.session() as other:
        wanted = one.generate(tokens, 40, ignore_eos=True)
        one.seek(len(tokens) + 10)
        saved = one.save()
        other.load(saved)
        assert other.position == one.position
        assert other.generate(wanted[10:11], 29, ignore_eos=True) == wanted[11:]


def test_every_instruction_set_gives_the_same_answers(lm_name: str, lm_bundles: dict[str, Path]) -> None:
    logits = {}
    tokens = None
    available = [isa for isa in ("scalar", "avx2", "avx512") if _opens(lm_bundles[lm_name], isa)]
    assert available[0] == "scalar"
    assert len(available) > 1, "this machine has no vector instruction set: nothing is compared"
    for isa in available:
        with env.ISA.override(isa), Model(lm_bundles[lm_name]) as model:
            assert model.info.isa == isa
            tokens = long_tokens(model, 300) if tokens is None else tokens
            with model.session() as session:
                logits[isa] = session.score(tokens)
    for isa in available[1:]:
        assert relative(logits[isa], logits["scalar"]) < 1e-4, isa


def _opens(bundle: Path, isa: str) -> bool:
    """False where this CPU lacks the instruction set, which a forced name must say; any other error is one."""
    try:
        with env.ISA.override(isa), Model(bundle):
            return True
    except EdgecError as e:
        if "EDGEC_ISA" not in str(e):
            raise
        return False


def test_self_test_and_golden_answers(lm: Model) -> None:
    lm.selftest(golden=True)  # raises EDGEC-E0406
    assert lm.info.warning == ""
