"""Plans of whole models: numbers, the text that people read, the memory table, the rules of the format."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.ir.passes import Context
from edgec.native.arena import Buffer, live_bytes
from edgec.native.dims import dim, symbol
from edgec.native.lower import build_plan
from edgec.native.plan import ABSENT, Call, Entry, Operand, Plan, Port, Space, State
from edgec.native.plan_check import plan_problems
from edgec.passes.lower.merge_siblings import MergeSiblings
from edgec.pipeline import run_passes
from tests.native.lower_cases import CASES, model_of, reference
from tests.native.models import CONTEXT, VOCAB, encoder, llama, llama_reference, mobilenet
from tests.native.plan_interpreter import Interpreter

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TOKENS = np.random.default_rng(5).integers(0, VOCAB, 30).astype(np.int32)


PANELS = {"head": 8, "hidden": 32}  # widths with which siblings merge


def merged(model: ir.Model) -> ir.Model:
    return run_passes(model, [MergeSiblings()], Context()).model


def plans() -> dict[str, Plan]:
    """The plans whose text is kept under tests/golden/."""
    return {
        "plan_mobilenet": build_plan(model_of(mobilenet())), "plan_encoder": build_plan(model_of(encoder())),
        "plan_llama": build_plan(llama(), prefill_chunk=16),
        "plan_llama_merged": build_plan(merged(llama(**PANELS)), prefill_chunk=16),
        "plan_llama_int4": build_plan(llama(), prefill_chunk=16, kv="int4"),
    }


@pytest.mark.parametrize(
    "name", ["plan_mobilenet", "plan_encoder", "plan_llama", "plan_llama_merged", "plan_llama_int4"])
def test_text(name: str) -> None:
    # After a wanted change: python -m tests.native.test_plan
    assert plans()[name].text() == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("make", [mobilenet, encoder])
def test_model_computes_what_onnxruntime_computes(make) -> None:  # type: ignore[no-untyped-def]
    case = make()
    got = Interpreter(build_plan(model_of(case))).run("main", case.feeds)
    for name, wanted in reference(case).items():
        np.testing.assert_allclose(got[name], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("options", [{}, {"window": 5}, {"tied": False}, PANELS], ids=str)
def test_language_model_entries_agree_with_one_pass(options: dict[str, object], merge: bool) -> None:
    model = llama(**options)  # type: ignore[arg-type]
    wanted = llama_reference(model, TOKENS)
    model = merged(model) if merge else model
    session = Interpreter(build_plan(model, prefill_chunk=16), context=32)
    scored = session.run("score", {"tokens": TOKENS[:9]}, past=0)["logits"]
    np.testing.assert_allclose(scored, wanted[:9], atol=2e-5)
    appended = session.run("prefill", {"tokens": TOKENS[9:25]}, past=9)["logits"]
    np.testing.assert_allclose(appended, wanted[24], atol=2e-5)
    for at in range(25, 30):
        got = session.run("decode", {"tokens": TOKENS[at : at + 1]}, past=at)["logits"]
        np.testing.assert_allclose(got, wanted[at], atol=2e-5)


def test_cache_in_half_precision() -> None:
    model = llama(kv_format="f16")
    plan = build_plan(model)
    assert {s.dtype.name for s in plan.states} == {"F16"}
    assert {s.dtype.name for s in build_plan(model, kv="f32").states} == {"F32"}
    got = Interpreter(plan).run("prefill", {"tokens": TOKENS}, past=0)["logits"]
    np.testing.assert_allclose(got, llama_reference(model, TOKENS)[-1], atol=5e-3)


@pytest.mark.parametrize(("kv", "row", "limit"), [("int8", 2 + 4, 2e-2), ("int4", 4 + 2, 3e-1)])
def test_cache_of_codes(kv: Literal["int8", "int4"], row: int, limit: float) -> None:
    model = llama()
    plan = build_plan(model, kv=kv)
    table = plan.memory_table([8])
    assert table.state_per_token == 2 * 2 * 2 * row  # layers, key and value, heads
    assert table.state == {8: 8 * table.state_per_token}
    got = Interpreter(plan).run("prefill", {"tokens": TOKENS}, past=0)["logits"]
    away = np.abs(got - llama_reference(model, TOKENS)[-1]).max()
    assert 1e-5 < away < limit


def test_a_cache_format_that_does_not_exist() -> None:
    with pytest.raises(EdgecError, match="wanted: one of f32, f16, int8, int4") as caught:
        build_plan(llama(kv_format="int3"))
    assert caught.value.code == "E0302"


def test_merged_siblings_need_no_copies() -> None:
    apart, wide = build_plan(llama(**PANELS)), build_plan(merged(llama(**PANELS)))
    for entry in ("prefill", "decode", "score"):
        before, after = (Counter(c.kernel for c in p.entry(entry).calls) for p in (apart, wide))
        assert before - after == {"linear": 10}
        assert after - before == {"linear_split": 4}
    assert sum(w.bytes for w in wide.weights) == sum(w.bytes for w in apart.weights)


@pytest.mark.parametrize("merge", [False, True])
def test_prefill_narrows_to_the_last_token_after_the_last_attention(merge: bool) -> None:
    model = llama(**PANELS)
    calls = build_plan(merged(model) if merge else model).entry("prefill").calls
    last = max(i for i, c in enumerate(calls) if c.kernel == "attention_cached")
    assert [c.kernel for c in calls[last + 1 : last + 3]] == ["slice", "slice"]
    seq = {s for c in calls[last + 3 :] for o in c.operands for d in o.dims for s in d.symbols}
    assert not seq
    assert not [c for c in build_plan(llama()).entry("decode").calls if c.kernel == "slice"]


def test_position_tables_end_with_the_context() -> None:
    sizes = {w.name.split(".")[0]: w.dims[0] for w in build_plan(llama(), max_context=20).weights}
    assert (sizes["cos"], sizes["sin"]) == (20, 20)


def test_memory_table() -> None:
    plan = build_plan(llama(), prefill_chunk=16)
    table = plan.memory_table([8, CONTEXT])
    per_token = 2 * 2 * 2 * 4 * 4  # layers, key and value, heads, width, bytes
    assert table.state == {8: 8 * per_token, CONTEXT: CONTEXT * per_token}
    assert table.weights == sum(w.bytes for w in plan.weights)
    assert table.peak[8] == table.weights + max(table.arena.values()) + table.scratch_per_thread + 8 * per_token
    assert table.state_per_token == table.to_json()["state_per_token"] == per_token
    assert table.to_json()["state"] == {"8": 8 * per_token, str(CONTEXT): CONTEXT * per_token}
    assert build_plan(model_of(mobilenet())).memory_table().state == {0: 0}
    assert build_plan(model_of(mobilenet())).memory_table().state_per_token == 0


def _lifetimes(entry: Entry) -> list[Buffer]:
    """Arena ranges with their lifetimes, read back from the finished calls: an independent account."""
    found: list[Buffer] = []
    open_at: dict[int, tuple[int, int, int]] = {}
    for step, call in enumerate(entry.calls):
        reads = {o.offset for o in call.inputs if o.space is Space.ARENA}
        for offset in reads:
            size, first, _ = open_at[offset]
            open_at[offset] = size, first, step
        for o in call.outputs:
            if o.space is not Space.ARENA:
                continue
            before = open_at.pop(o.offset, None)
            if before is not None and o.offset in reads and before[0] == o.bytes.hi:
                open_at[o.offset] = before[0], before[1], step
                continue
            if before is not None:
                found.append(Buffer(*before))
            open_at[o.offset] = o.bytes.hi, step, step
    return found + [Buffer(*b) for b in open_at.values()]


def test_arena_is_close_to_the_largest_live_set() -> None:
    every = [*plans().values(), *(build_plan(model_of(case)) for case in CASES)]
    for entry in (e for plan in every for e in plan.entries):
        assert entry.arena_bytes <= 1.1 * live_bytes(_lifetimes(entry)), entry.name


@pytest.mark.parametrize(("settings", "wanted"), [
    ({"max_context": CONTEXT + 1}, f"1..{CONTEXT}"), ({"max_context": 0}, f"1..{CONTEXT}"),
    ({"prefill_chunk": 0}, "1 or more"),
])
def test_impossible_settings(settings: dict[str, int], wanted: str) -> None:
    with pytest.raises(EdgecError, match=wanted) as e:
        build_plan(llama(), **settings)  # type: ignore[arg-type]
    assert e.value.code == "E0002"


def test_context_of_a_generic_model() -> None:
    with pytest.raises(EdgecError, match="this model has none"):
        build_plan(model_of(mobilenet()), max_context=8)


def test_language_model_of_another_form() -> None:
    model = llama()
    model.graph.inputs[1].name = "something"
    with pytest.raises(EdgecError, match="lacks past_len"):
        build_plan(model)


# -- the rules -------------------------------------------------------------------------------------------------------

_N = dim(16)
_X, _Y = Operand(Space.INPUT, dims=(_N,)), Operand(Space.OUTPUT, dims=(_N,))


def _at(offset: int, n: int = 16) -> Operand:
    return Operand(Space.ARENA, offset=offset, dims=(dim(n),))


def _relu(y: Operand, x: Operand) -> Call:
    return Call("unary", "layer", (y, x), (1,), (0.0, 0.0))


def _split(y0: Operand, y1: Operand, x: Operand = _X) -> Call:
    return Call("linear_split", "layer", (y0, y1, ABSENT, ABSENT, x, ABSENT, ABSENT), (0,), (0.0, 0.0))


def _plan(*calls: Call, arena: int = 256) -> Plan:
    ports = (Port("x", _X.dtype, (_N,)),), (Port("y", _Y.dtype, (_N,)),)
    return Plan(0, 0, 0, 0, (), (), (Entry("main", *ports, calls, arena),))


@pytest.mark.parametrize(("calls", "problem"), [
    ([_relu(_at(0), _X), _relu(_Y, _at(64))], "no call left there"),
    ([_relu(_at(0), _X), _relu(_at(0, 8), Operand(Space.INPUT, dims=(dim(8),))), _relu(_Y, _at(0))], "left there"),
    ([_relu(_at(0), _X), _relu(_Y, _at(0, 17))], "left there"),
    ([_relu(_at(256), _X), _relu(_Y, _at(256))], "of 256 bytes"),
    ([_relu(_at(32), _X), _relu(_Y, _at(32))], "arena operand"),
    ([_relu(_at(0), _X)], "written by no call"),
    ([_relu(_X, _X), _relu(_Y, _X)], "writes an input"),
    ([_relu(Operand(Space.OUTPUT, dims=(dim(8),)), _X)], "writes 8 of 16"),
    ([_relu(_Y, Operand(Space.INPUT, dims=(dim(17),)))], "operand ['17'] of input x"),
    ([_relu(_Y, Operand(Space.INPUT, index=1, dims=(_N,)))], "input 1 does not exist"),
    ([_relu(_at(0), _Y), _relu(_Y, _at(0))], "reads output 0 before"),
    ([_relu(_at(0), _X), Call("copy", "layer", (_at(0), _at(0))), _relu(_Y, _at(0))], "overlaps operand 1"),
    ([_relu(_at(0), _X), _relu(_at(0, 8), _at(0)), _relu(_Y, _X)], "overlaps operand 1"),
    ([_relu(_at(0), dataclasses.replace(_X, offset=64)), _relu(_Y, _at(0))], "outside the arena"),
    ([_split(_at(0), _at(0)), _relu(_Y, _at(0))], "output 0 overlaps operand 1"),
    ([_split(_at(0, 32), _at(64)), _relu(_Y, _at(64))], "output 1 overlaps operand 0"),
    ([_split(_Y, _Y)], "output 1 overlaps operand 0"),
    ([_relu(_at(0), _X), _split(_at(64), _at(0), _at(0)), _relu(_Y, _at(0))], "output 1 overlaps operand 4"),
    ([_split(_at(0), _at(256)), _relu(_Y, _at(0))], "of 256 bytes"),
    ([_split(_at(0), Operand(Space.OUTPUT, dims=(dim(8),))), _relu(_Y, _at(0))], "writes 8 of 16"),
    ([_split(_at(0), _X), _relu(_Y, _at(0))], "writes an input"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_broken_rules_are_found(calls: list[Call], problem: str) -> None:
    found = plan_problems(_plan(*calls))
    assert any(problem in text for text in found), found


def test_sound_plan_has_no_problems() -> None:
    assert plan_problems(_plan(_relu(_at(0), _X), _relu(_at(0), _at(0)), _relu(_Y, _at(0)))) == []


def test_state_dims_use_the_context_only() -> None:
    plan = dataclasses.replace(_plan(_relu(_Y, _X)), states=(State("s", _X.dtype, (symbol("seq", 1, 4),), 0),))
    assert plan_problems(plan) == ["state s: its dims use more than `context`"]


if __name__ == "__main__":
    for title, made in plans().items():
        (GOLDEN / f"{title}.txt").write_text(made.text())
