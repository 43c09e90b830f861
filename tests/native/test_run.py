"""The graphs of the lowering tests through the real runtime: same plans, same bundles, C++ kernels."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.native.bundle import write_bundle
from edgec.native.golden import golden_section
from edgec.native.lower import build_plan
from edgec.native.plan import Plan
from edgec.native.session import Model, NativeError, Status, library_path
from tests.native.lower_cases import CASES, Case, model_of, reference
from tests.native.models import CONTEXT, VOCAB, encoder, llama, llama_reference, mobilenet

TOKENS = np.random.default_rng(5).integers(0, VOCAB, 30).astype(np.int32)


@pytest.fixture(scope="module", autouse=True)
def library(require: Callable[[bool, str], None]) -> None:
    try:
        found = library_path().exists()
    except EdgecError:
        found = False
    require(found, "the runtime library is not built")


def _bundle(folder: Path, plan: Plan, golden: bytes | None = None) -> Path:
    path = folder / "model.edgec"
    # Without the plan's own figure the runtime takes what its kernels ask for: that is what the plan must foretell.
    plan = dataclasses.replace(plan, entries=tuple(dataclasses.replace(e, scratch_bytes=0) for e in plan.entries))
    write_bundle(path, plan, tokenizer=None, golden=golden, manifest={})
    return path


@pytest.mark.parametrize("case", [*CASES, mobilenet(), encoder()], ids=lambda c: c.name)
def test_case(case: Case, tmp_path: Path) -> None:
    model = model_of(case)
    plan = build_plan(model)
    golden = golden_section(model, plan)
    with Model(_bundle(tmp_path, plan, golden)) as opened, opened.session(threads=1) as session:
        got = session.run(dict(case.feeds))
        for name, wanted in reference(case).items():
            np.testing.assert_allclose(got[name], wanted, rtol=3e-5, atol=3e-5, err_msg=name)
        # What the compiler says about memory before anything runs is what the session takes.
        assert session.memory.scratch == plan.memory_table().scratch_per_thread
        if golden is not None:
            opened.selftest(golden=True)


def test_a_longer_signal_takes_no_more_scratch() -> None:
    signal = next(c for c in CASES if c.name == "Conv_long_signal")
    longer = dataclasses.replace(signal, feeds={"x": np.zeros((1, 2, 2**20), np.float32)})
    scratch = build_plan(model_of(longer)).memory_table().scratch_per_thread
    assert 0 < scratch <= 256 * 6 * 4


@pytest.mark.parametrize("options", [{}, {"window": 5}, {"kv_format": "f16"}, {"kv_format": "int8"},
                                     {"kv_format": "int4", "window": 5}], ids=str)
def test_language_model(options: dict[str, object], tmp_path: Path) -> None:
    model = llama(**options)  # type: ignore[arg-type]
    plan = build_plan(model, prefill_chunk=16)
    wanted = llama_reference(model, TOKENS)
    limit = {"f16": 5e-3, "int8": 2e-2, "int4": 3e-1}.get(str(options.get("kv_format")), 3e-5)
    with Model(_bundle(tmp_path, plan, golden_section(model, plan))) as opened:
        opened.selftest(golden=True)
        with opened.session(threads=2) as session:
            np.testing.assert_allclose(session.score(TOKENS), wanted, atol=limit)
            table = plan.memory_table([CONTEXT])
            assert session.memory.state == table.state[CONTEXT]
            assert session.memory.arena == max(table.arena.values())
            assert session.memory.scratch == 2 * table.scratch_per_thread
            session.reset()
            np.testing.assert_allclose(session.step(TOKENS[:20]), wanted[19], atol=limit)
            np.testing.assert_allclose(session.step(TOKENS[20:21]), wanted[20], atol=limit)


@pytest.mark.parametrize("case", [mobilenet(), llama()], ids=["generic", "language"])
def test_golden_vectors_within_max_memory(case: Case | ir.Model, tmp_path: Path) -> None:
    model = model_of(case) if isinstance(case, Case) else case
    plan = build_plan(model)
    with Model(_bundle(tmp_path, plan, golden_section(model, plan))) as opened:
        limit = 1
        for part in ("session", "golden"):  # first the session does not fit, then what it is asked
            for less in (limit, 0):
                with pytest.raises(NativeError, match=f"{part}: found a need of") as caught:
                    opened.selftest(golden=True, max_memory=less or limit - 1)
                assert caught.value.status == Status.LIMIT
                limit = int(re.findall(r"need of (\d+) bytes", caught.value.found)[0])
        opened.selftest(golden=True, max_memory=limit)
        opened.selftest(max_memory=1)  # nothing is run
