"""The training loop: it learns, it stops, and a killed run goes on with the same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgec.errors import EdgecError
from edgec.train.cluster import Schedule, cluster, gaps, harden
from edgec.train.loop import FitOptions, Fitted, fit

ROOT = Path(__file__).resolve().parents[2]


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 64), nn.ReLU(),
                             nn.Linear(64, 8))


def batches(number: int) -> tuple[Tensor, Tensor | None]:
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(number))
    return x, x[:, :8].argmax(1)


def run(folder: Path, steps: int = 24, pause: float = 0.0, **changes: Any) -> tuple[Fitted, nn.Module]:
    model, schedule = net(), Schedule(milestone=3, anneal=15)
    cluster(model, "palette2", ["5=palette3"], schedule=schedule)

    def slowly(number: int) -> tuple[Tensor, Tensor | None]:
        time.sleep(pause)
        return batches(number)

    options = FitOptions(**{"steps": steps, "lr": 1e-2, "accumulate": 2, "distill": "mix", "checkpoint_every": 5,
                            **changes})
    done = fit(model, slowly, folder, options, schedule=schedule, teacher=net(1), identity={"format": "palette2"})
    return done, model


@pytest.mark.slow
def test_learns(tmp_path: Path) -> None:
    done, model = run(tmp_path / "run", steps=60)
    assert sum(done.losses[-5:]) < 0.92 * sum(done.losses[:5])
    assert not model.training
    assert set(gaps(model)) == {"0", "3", "5"}
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    assert log["losses"] == done.losses


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.train.test_loop import run
import torch
torch.set_num_threads(1)
run(Path(sys.argv[2]), pause=0.05)
"""


def test_killed_and_resumed_is_as_if_nothing_had_happened(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole, kept = run(tmp_path / "whole")
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(ROOT), str(tmp_path / "killed")])
        checkpoint = tmp_path / "killed" / "checkpoint.pt"
        limit = time.monotonic() + 120
        while not checkpoint.exists():
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.01)
        time.sleep(0.15)  # into the steps after it
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert torch.load(checkpoint, weights_only=True)["step"] < 24
        resumed, model = run(tmp_path / "killed")
    finally:
        torch.set_num_threads(threads)
    assert resumed.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(kept.state_dict().values(), model.state_dict().values(), strict=True))
    # A finished run has nothing left to do.
    again, _ = run(tmp_path / "killed")
    assert again.losses == whole.losses


def test_stops_early_with_the_best_weights(tmp_path: Path) -> None:
    model, values, states = net(), [3.0, 1.0, 2.0, 2.0, 2.0], []

    def evaluate(model: nn.Module) -> float:
        assert not model.training
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        return values[len(states) - 1]

    options = FitOptions(steps=100, lr=1e-3, evaluate_every=4, patience=2, higher_is_better=False)
    done = fit(model, batches, tmp_path / "run", options, evaluate=evaluate)
    assert done.stopped
    assert len(done.losses) == 16
    assert done.best is not None
    assert (done.best.step, done.best.value) == (8, 1.0)
    assert all(torch.equal(v, states[1][k]) for k, v in model.state_dict().items())
    again = fit(net(), batches, tmp_path / "run", options, evaluate=evaluate)
    assert (again.stopped, again.best, len(states)) == (True, done.best, 4)


def test_refuses_another_run_and_damage(tmp_path: Path) -> None:
    run(tmp_path / "run", steps=5)
    with pytest.raises(EdgecError, match="options") as caught:
        run(tmp_path / "run", steps=5, lr=2e-3)
    assert caught.value.code == "E0002"
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(EdgecError) as caught:
        run(tmp_path / "run", steps=5)
    assert caught.value.code == "E0101"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(EdgecError, match=r"thesis\.txt") as caught:
        run(tmp_path / "other")
    assert caught.value.code == "E0004"


def test_evaluations_before_the_milestone_are_never_the_best(tmp_path: Path) -> None:
    model, schedule, values = net(), Schedule(milestone=6, anneal=4), iter([9.0, 8.0, 1.0, 2.0, 1.5, 1.5])
    cluster(model, "palette2", schedule=schedule)
    options = FitOptions(steps=20, lr=1e-3, evaluate_every=2, patience=2)
    done = fit(model, batches, tmp_path / "run", options, schedule=schedule, evaluate=lambda m: next(values))
    assert done.best is not None
    assert (done.best.step, done.best.value, len(done.losses)) == (8, 2.0, 12)
    assert set(harden(model)) == {"0.weight", "3.weight"}


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    for clip in (0.0, 1.0):
        model = net()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        model[0].weight.register_hook(lambda g: g * float("inf"))
        with pytest.raises(EdgecError, match="a gradient of norm") as caught:
            fit(model, batches, tmp_path / f"{clip}", FitOptions(3, clip=clip, checkpoint_every=1))
        assert caught.value.code == "E0502"
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert not (tmp_path / f"{clip}" / "checkpoint.pt").exists()


def test_checkpoints_that_are_not_whole_or_of_another_step(tmp_path: Path) -> None:
    options = FitOptions(steps=4, evaluate_every=2)

    def again() -> None:
        fit(net(), batches, tmp_path / "run", options, evaluate=lambda m: 1.0)

    again()
    for name, key, value, said in (("best.pt", "step", 4, "weights of step 4"), ("best.pt", "model", None, "TypeError"),
                                   ("checkpoint.pt", "optimizer", None, "checkpoint"),
                                   ("checkpoint.pt", "random", None, "checkpoint")):
        file = tmp_path / "run" / name
        whole = file.read_bytes()
        state = torch.load(file, weights_only=True)
        for damaged in ({**state, key: value}, {k: v for k, v in state.items() if k != key}):
            torch.save(damaged, file)
            with pytest.raises(EdgecError, match=said if key in damaged else "KeyError") as caught:
                again()
            assert caught.value.code == "E0101"
        file.write_bytes(whole)
    again()


def test_refuses_options_and_data(tmp_path: Path) -> None:
    for changes in ({"steps": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"warmup": 2.0}, {"distill": "both"},
                    {"patience": 2}, {"accumulate": 0}):
        with pytest.raises(EdgecError) as caught:
            FitOptions(**{"steps": 1, **changes})  # type: ignore[arg-type]
        assert caught.value.code == "E0002"
    with pytest.raises(EdgecError, match="with a teacher"):
        fit(net(), batches, tmp_path / "a", FitOptions(1), teacher=net())
    with pytest.raises(EdgecError, match="without an evaluation"):
        fit(net(), batches, tmp_path / "a", FitOptions(1, evaluate_every=1))
    with pytest.raises(EdgecError, match="neither labels nor a teacher"):
        fit(net(), lambda i: (batches(i)[0], None), tmp_path / "a", FitOptions(1))
    def broken(number: int) -> tuple[Tensor, Tensor | None]:
        raise ValueError("no line 3")

    for data, said in ((broken, "no line 3"), (lambda i: batches(i)[0], "found: Tensor"),
                       (lambda i: (torch.zeros(2, 5), None), "inputs that the model takes"),
                       (lambda i: (batches(i)[0], torch.full((16,), 8)), "below the number of classes")):
        with pytest.raises(EdgecError, match=said) as caught:
            fit(net(), data, tmp_path / "a", FitOptions(1))  # type: ignore[arg-type]
        assert caught.value.code == "E0502"
    with pytest.raises(EdgecError, match="evaluation after step 1"):
        fit(net(), batches, tmp_path / "a", FitOptions(1, evaluate_every=1), evaluate=lambda m: None)  # type: ignore[arg-type, return-value]
    model = net()
    with torch.no_grad():
        model[0].weight.fill_(float("inf"))
    with pytest.raises(EdgecError, match="a loss of nan"):
        fit(model, batches, tmp_path / "b", FitOptions(1))
