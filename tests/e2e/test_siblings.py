"""Merged siblings in whole language models: the same logits as without the pass, fewer calls, no more bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgec
from edgec import backends
from edgec.native.bundle import read_bundle
from edgec.native.session import Model
from tests.importers.test_checkpoints import gguf_of, quantize_folder
from tests.models import tiny_lm


def compiled(source: Path, out: Path) -> tuple[Counter[str], int, dict[str, np.ndarray]]:
    """Calls of the decode entry by kernel, bytes of weights, and logits of all entries."""
    edgec.compile(str(source), out)
    bundle = out / "model.edgec"
    plan = read_bundle(bundle).plan
    tokens = np.random.default_rng(5).integers(3, tiny_lm.VOCAB, 40).tolist()
    with Model(bundle) as model, model.session(threads=2) as session:
        found = {"score": session.score(tokens)}
        session.reset()
        found["prefill"] = session.step(tokens[:35])
        found["decode"] = np.stack([session.step([t]) for t in tokens[35:]])
    return Counter(c.kernel for c in plan.entry("decode").calls), sum(w.bytes for w in plan.weights), found


@pytest.mark.parametrize("kind", ["llama", "llama_bias", "qwen3", "phi3", "gemma2", "gptq", "gguf"])
def test_logits_stay(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_lm.make(tmp_path / "model", kind if kind in tiny_lm.FAMILIES else "llama")
    if kind == "gptq":
        quantize_folder(source, "gptq")
    elif kind == "gguf":
        source, _ = gguf_of(source, tmp_path / "tiny.gguf")
    merged, merged_bytes, found = compiled(source, tmp_path / "merged")
    row = backends.backend(backends.DEFAULT)
    alone = replace(row, lower=tuple(p for p in row.lower if p.name != "merge_siblings"))
    monkeypatch.setattr(backends, "BACKENDS", (alone,))
    apart, apart_bytes, wanted = compiled(source, tmp_path / "apart")
    for entry, values in wanted.items():
        np.testing.assert_allclose(found[entry], values, rtol=0, atol=1e-5 * np.abs(values).max(), err_msg=entry)
    # The gate and its partner of phi3 are one linear and a Split from the start.
    assert apart["linear_split"] == (2 if kind == "phi3" else 0)
    # Blocks of 32 stay in few bits, and their calls are joined without the pass.
    form = "linear_bits" if kind == "gguf" else "linear"
    assert (merged[form], merged[f"{form}_split"], merged["slice"]) == (5, 4, 0)
    assert merged_bytes == apart_bytes
