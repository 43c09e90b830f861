"""Random graphs, compiled and run on every instruction set of this CPU, answer as onnxruntime does.

    pytest tests/differential                                 200 graphs, always the same
    pytest tests/differential -m slow                         2,000 from a fresh seed, which is printed
    ... -m slow --differential-graphs 10000 --differential-seed 7

docs/testing.md says what is compared with what, within which bounds, and how a failure is replayed.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgec.errors import EdgecError
from tests.differential import uniform
from tests.differential.case import FOLDER, Case, load
from tests.differential.compare import Declined, Disagreement, check, instruction_sets
from tests.differential.draft import Draft, RejectedError
from tests.differential.graphs import DRAWERS, INVALID, graphs
from tests.differential.shrink import shrink

LEDGER = Path(__file__).resolve().parent.parent / "conformance" / "ledger.tsv"
SEED = 20261130
# Of the operators that pass some node test: those of the ordinary run at least, and of the long one.
COVERED = (110, 125)


@dataclass
class Tally:
    """What was drawn. declined: (operator, reason) -> graphs."""

    graphs: int = 0
    operators: Counter[str] = field(default_factory=Counter)
    declined: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, case: Case, outcome: Declined | None) -> None:
        self.graphs += 1
        self.operators.update(case.operators().keys())
        if outcome is not None:
            line = next(filter(None, map(str.strip, outcome.reason.splitlines())), "?")
            line = re.sub(r" '[^']*'", "", line)  # the node's name
            self.declined[line.split()[0].rstrip(":"), f"{outcome.code} {line}"] += 1

    def report(self) -> str:
        text = [f"{self.graphs} graphs on {', '.join(instruction_sets())}; operators drawn, by graphs:",
                ", ".join(f"{name} {n}" for name, n in sorted(self.operators.items())), "declined:"]
        return "\n".join([*text, *(f"  {n} {reason}" for (_, reason), n in self.declined.most_common())])


def agree(count: int, seed: int) -> Tally:
    """Compares `count` graphs. Raises Disagreement, with the smallest graph found saved below build/repros."""
    tally, running = Tally(), f"running_{seed}"
    uniform.Uniform.seed = seed

    @settings(max_examples=count, backend=uniform.NAME, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))
    @given(graphs())
    def one(case: Case) -> None:
        # It is there after a crash, too; the last to fail is the smallest.
        case.save(running)
        tally.add(case, check(case, threads=tally.graphs % 4 == 0))

    try:
        one()
    except Disagreement as e:
        case = shrink(load(FOLDER / f"{running}.onnx"), _fails)
        path = case.save(f"seed_{seed}")
        raise Disagreement(f"{e}\nseed {seed}; again: python -m tests.differential.replay {path}") from e
    return tally


def _fails(case: Case) -> bool:
    try:
        check(case)
    except Disagreement:
        return True
    return False


def judge(tally: Tally, covered: int) -> None:
    """The generator: operators that pass node tests are drawn, and what is drawn compiles."""
    supported = {row[0] for line in LEDGER.read_text(encoding="utf-8").splitlines()
                 if (row := line.split("\t"))[2] == "pass"}
    assert len(supported.intersection(tally.operators)) >= covered, sorted(supported.difference(tally.operators))
    assert tally.declined.total() <= 0.08 * tally.graphs, tally.report()
    by_operator: Counter[str] = Counter()
    for (operator, _), n in tally.declined.items():
        by_operator[operator] += n
    often = {op: n for op, n in by_operator.items() if n > max(3, 0.4 * tally.operators[op])}
    assert not often, f"declined too often: {often}\n{tally.report()}"
    assert INVALID.total() <= 0.05 * tally.graphs, INVALID.most_common(5)


def test_random_graphs_agree(capsys: pytest.CaptureFixture[str]) -> None:
    INVALID.clear()
    tally = agree(200, SEED)
    with capsys.disabled():
        print(f"\n{tally.report()}")  # noqa: T201  # the coverage report
    judge(tally, COVERED[0])


@pytest.mark.slow
def test_many_random_graphs_agree(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    INVALID.clear()
    seed = request.config.getoption("--differential-seed")
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    with capsys.disabled():
        print(f"\n--differential-seed {seed}")  # noqa: T201  # what repeats this run
        tally = agree(request.config.getoption("--differential-graphs"), seed)
        print(tally.report())  # noqa: T201
    judge(tally, COVERED[1])


def test_the_same_seed_gives_the_same_graphs() -> None:
    def drawn(seed: int) -> list[str]:
        found: list[str] = []
        uniform.Uniform.seed = seed

        @settings(max_examples=5, backend=uniform.NAME, database=None, deadline=None,
                  suppress_health_check=list(HealthCheck))
        @given(graphs())
        def one(case: Case) -> None:
            found.append(repr(case))

        one()
        return found

    assert drawn(3) == drawn(3) != drawn(4)


def test_every_drawer_draws() -> None:
    """An operator whose every attempt is rejected would look like a rare one."""
    empty = set(DRAWERS)
    uniform.Uniform.seed = 5

    @settings(max_examples=30, backend=uniform.NAME, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))
    @given(st.data())
    def one(data: st.DataObject) -> None:
        for name in sorted(empty):
            try:
                DRAWERS[name](Draft(data.draw))
            except RejectedError:
                continue
            empty.discard(name)

    one()
    assert not empty


def test_a_crash_leaves_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(case: Case, threads: bool = False) -> None:
        raise EdgecError("E0001", stage="test")

    monkeypatch.setattr("tests.differential.test_differential.check", crash)
    with pytest.raises(EdgecError):
        agree(3, 1)
    assert load(FOLDER / "running_1.onnx").model.graph.node
