"""The originals that compiled models are compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgec.errors import EdgecError
from edgec.importers.reference import load_reference


class Two(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor, sign: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        return a + sign * b, a * b


def test_module() -> None:
    original = load_reference(Two(), example_inputs={"a": torch.ones(2), "b": torch.ones(2), "sign": -1})
    assert (original.task, original.input_names) == ("generic", ["a", "b"])
    a, b = np.array([1, 2, 3], np.float32), np.array([5, 7, 9], np.float32)
    result = original.run({"b": b, "a": a})
    np.testing.assert_array_equal(result["output_0"], a - b)
    np.testing.assert_array_equal(result["output_1"], a * b)
    with pytest.raises(EdgecError, match="EDGEC-E0403"):
        original.run({"a": a})
    with pytest.raises(EdgecError, match="EDGEC-E0403"):
        original.run({"a": a, "b": np.ones(2, np.float32)})
    with pytest.raises(EdgecError, match="EDGEC-E0403"):
        original.logits([1])


def test_factory(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("import torch\ndef make():\n    return torch.nn.Dropout(0.9), torch.ones(3)\n")
    result = load_reference(f"{path}:make").run({"input": np.arange(3, dtype=np.float32)})
    np.testing.assert_array_equal(result["output"], np.arange(3))


def test_language_model(prose_lm: Path) -> None:
    original = load_reference(prose_lm)
    tokens = [0, 100, 200, 300, 400]
    logits = original.logits(tokens)
    assert logits.shape == (5, 4096)
    assert logits.dtype == np.float32
    more = original.generate(tokens, 6)
    assert len(more) == 6
    # Greedy with a cache is greedy without one.
    for i in range(6):
        assert more[i] == int(original.logits(tokens + more[:i])[-1].argmax())


def test_generation_ends_with_the_context(prose_lm: Path) -> None:
    original = load_reference(prose_lm)
    assert len(original.generate([5] * 2046, 10)) == 3


@pytest.mark.parametrize("tokens", [[], [-1], [4096]])
def test_bad_tokens(prose_lm: Path, tokens: list[int]) -> None:
    original = load_reference(prose_lm)
    calls: list[Callable[[], object]] = [lambda: original.logits(tokens), lambda: original.generate(tokens, 1)]
    for call in calls:
        with pytest.raises(EdgecError, match="EDGEC-E0403"):
            call()


def test_missing() -> None:
    with pytest.raises(EdgecError, match="EDGEC-E0003"):
        load_reference("no/such/folder")
