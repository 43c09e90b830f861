"""Golden vectors: the stream of inputs, the bytes of the section, and what is recorded for each kind of model."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from edgec.native.golden import Golden, encode_golden, golden_section, splitmix
from edgec.native.lower import build_plan
from tests.native.lower_cases import Case, f, i, model_of
from tests.native.models import VOCAB, llama, mobilenet
from tests.native.plan_interpreter import Interpreter


def splitmix_by_hand(seed: int, n: int) -> list[float]:
    """The stream of docs/format.md, one value at a time in Python integers."""
    mask, values = (1 << 64) - 1, []
    for _ in range(n):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        values.append(((z ^ (z >> 31)) >> 40) * 2.0**-23 - 1)
    return values


def test_stream_fills_the_inputs_in_order() -> None:
    a, b = splitmix(7, [(2, 3), (4,)])
    assert [*a.reshape(-1), *b] == splitmix_by_hand(7, 10)
    assert a.dtype == np.float32
    assert min(splitmix(1, [(1000,)])[0]) >= -1


def test_bytes() -> None:
    lm = encode_golden(Golden(0.5, tokens=(3, 4), pairs=((9, 1.5),)))
    assert lm == struct.pack("<IfIiiIIf", 1, 0.5, 2, 3, 4, 1, 9, 1.5)
    generic = encode_golden(Golden(0.25, seed=1 << 40, outputs=((2, (1.0, 2.0)),)))
    assert generic == struct.pack("<IfQIIIff", 0, 0.25, 1 << 40, 1, 2, 2, 1.0, 2.0)


def test_generic_model_is_recorded_at_its_largest_shape() -> None:
    case = Case("big", [("Relu", "x", "y")], {"x": f(2, 3)}, dims={"x": ["n", 50]}, dynamic={"n": (1, 4)})
    model = model_of(case)
    section = golden_section(model, build_plan(model))
    assert section is not None
    kind, tolerance, seed, count, stride, n = struct.unpack_from("<IfQIII", section)
    assert (kind, count, stride, n) == (0, 1, 4, 50)
    assert tolerance == np.float32(1e-3)
    values = struct.unpack_from("<50f", section, 28)
    assert values == tuple(np.maximum(splitmix(seed, [(4, 50)])[0].reshape(-1)[::4], 0))


def test_recorded_answers_are_those_of_the_plan() -> None:
    model = model_of(mobilenet())
    plan = build_plan(model)
    section = golden_section(model, plan)
    assert section is not None
    _, _, seed, _, _, n = struct.unpack_from("<IfQIII", section)
    got = Interpreter(plan).run("main", {"x": splitmix(seed, [(1, 3, 16, 16)])[0]})["y"]
    np.testing.assert_allclose(struct.unpack_from(f"<{n}f", section, 28), got.reshape(-1), atol=1e-4)


@pytest.mark.parametrize(("weights", "tolerance"), [("auto", 1e-3), ("f16", 5e-2)])
def test_language_model(weights: str, tolerance: float) -> None:
    model = llama()
    plan = build_plan(model, weights=weights)  # type: ignore[arg-type]
    section = golden_section(model, plan)
    assert section is not None
    kind, found, n = struct.unpack_from("<IfI", section)
    assert (kind, found) == (1, np.float32(tolerance))
    tokens = np.array(struct.unpack_from(f"<{n}i", section, 12), np.int32)
    (pairs,) = struct.unpack_from("<I", section, 12 + 4 * n)
    rows = [struct.unpack_from("<If", section, 16 + 4 * n + 8 * k) for k in range(pairs)]
    logits = Interpreter(plan).run("prefill", {"tokens": tokens}, past=0)["logits"]
    assert pairs == min(32, VOCAB)
    assert [t for t, _ in rows] == sorted((t for t, _ in rows), key=lambda t: -dict(rows)[t])
    for token, logit in rows:
        assert abs(logits[token] - logit) <= tolerance * np.abs(logits).max()


@pytest.mark.parametrize("case", [
    Case("integers", [("Cast", "x", "y", {"to": 1})], {"x": i(1, 2)}),
    Case("not_a_number", [("Log", "x", "y")], {"x": f(9)}),
    Case("nothing", [("Relu", "x", "y")], {"x": f(0, 3)}),
], ids=lambda c: c.name)
def test_what_the_format_cannot_describe(case: Case) -> None:
    model = model_of(case)
    assert golden_section(model, build_plan(model)) is None
