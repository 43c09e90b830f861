"""Models over several processes: torchrun and FSDP2 (fully_shard) around clustered weights, and in `edgec train`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from edgec.compress.driver import _dense
from edgec.compress.formats import PaletteTensor
from edgec.compress.store import load_finished
from edgec.errors import EdgecError
from edgec.train.cluster import Schedule, cluster, harden
from edgec.train.loop import FitOptions
from edgec.train.losses import distillation, label_loss
from edgec.train.sharded import Processes, shard
from edgec.train.tune import TuneOptions, _tuned
from tests.train.test_cluster import Net, loss, tokens

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4


def untied() -> Net:
    net = Net()
    net.head = nn.Linear(64, 200, bias=False)
    with torch.no_grad():
        net.head.weight.copy_(net.embed.weight.flip(0))
    return net


def trained(model: nn.Module, schedule: Schedule, rank: int, world: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(model, tokens(step).chunk(world)[rank]).backward()
        optimizer.step()
        schedule.step()


def worker(folder: Path) -> None:
    """What torchrun starts."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, schedule = dist.get_rank(), Schedule()
    model = untied()
    cluster(model, "palette2", schedule=schedule)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for part in (model.wide, model.conv):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    trained(model, schedule, rank, 2)
    with pytest.raises(EdgecError, match="sharded over processes"):
        harden(model)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        torch.save(state, folder / "state.pt")
    dist.barrier()
    dist.destroy_process_group()


def palettes(state: dict[str, torch.Tensor]) -> dict[str, PaletteTensor]:
    model, schedule = untied(), Schedule()
    cluster(model, "palette2", schedule=schedule)
    model.load_state_dict(state)
    return harden(model)


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint",
            "localhost:0")


def python(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *map(str, words)], env=environment, cwd=ROOT, capture_output=True, text=True,
                          timeout=600, check=False)


@pytest.mark.slow
def test_sharded_training_is_training(tmp_path: Path) -> None:
    done = python(*TORCHRUN, Path(__file__).resolve(), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "state.pt", weights_only=True)
    model, schedule = untied(), Schedule()
    cluster(model, "palette2", schedule=schedule)
    trained(model, schedule, 0, 1)
    wanted = model.state_dict()
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        # Sums in another order: float32 gradients, and what bfloat16 makes of weights on an edge.
        assert torch.allclose(found[name].float(), value.float(), rtol=1e-3, atol=2e-4), name
    assert set(palettes(found)) == {"embed.weight", "conv.weight", "wide.weight", "narrow.weight", "head.weight"}


LM = '''
import os, signal
from pathlib import Path
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, drop):
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(64, 96), nn.Linear(96, 64), nn.Dropout(drop)

    def forward(self, x):
        return x + self.drop(self.down(torch.relu(self.up(torch.tanh(x.cumsum(1))))))

class LM(nn.Module):
    def __init__(self, drop=0.0):
        super().__init__()
        self.embed = nn.Embedding(200, 64)
        self.blocks = nn.ModuleList(Block(drop) for _ in range(2))
        self.head = nn.Linear(64, 200, bias=False)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.head.weight = self.embed.weight

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

def make(drop=0.0):
    torch.manual_seed(0)
    return LM(drop), (torch.zeros(1, 8, dtype=torch.int64),)

def dropped():
    return make(0.2)

def unseeded():
    torch.manual_seed(int(os.environ["RANK"]))
    return LM(), (torch.zeros(1, 8, dtype=torch.int64),)

def batches(number):
    die = Path(__file__).with_name("die")
    if number == 14 and os.environ.get("RANK") == "1" and die.exists():
        die.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    x = torch.randint(0, 200, (4, 8), generator=torch.Generator().manual_seed(number % 2))
    labels = x.flip(1).clone()
    labels[0, 3:] = -100  # not as many for each process
    return x, labels

def odd(number):
    return tuple(part[:3] for part in batches(number))

def evaluate(model):
    x, y = batches(1000)
    with torch.no_grad():
        return -float(nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()))
'''


def command(folder: Path, factory: str, *more: object, data: str = "batches") -> list[object]:
    (folder / "lm.py").write_text(LM)
    lm = folder / "lm.py"
    return ["-m", "edgec", "train", f"{lm}:{factory}", "--data", f"{lm}:{data}", "--steps", 10, "--accumulate", 2,
            "--lr", "2e-2", "--checkpoint-every", 3, "--eval", f"{lm}:evaluate", "--evaluate-every", 5, *more]


def log(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "log.json").read_text())
    return found


def lm(folder: Path) -> Any:
    found: dict[str, Any] = {"__file__": str(folder / "lm.py")}
    exec(compile(LM, "lm.py", "exec"), found)
    return SimpleNamespace(**found)


def digests(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for part in ("layers", "model") for file in sorted((folder / part).rglob("*"))
            if file.is_file() and file.suffix != ".json"}


@pytest.mark.slow
@pytest.mark.parametrize(("how", "bound"), [("auto", 4e-4), ("dense", 4e-4), ("layers", 1e-5)])
def test_two_processes_have_the_losses_of_one(tmp_path: Path, how: str, bound: float) -> None:
    """Up to sums of float32 in another order, which AdamW makes most of where gradients are about 0."""
    more: list[object] = ["--milestone", 2, "--engine", how]
    if how == "layers":
        (tmp_path / "lm.py").write_text(LM)
        done = python("-m", "edgec", "quantize", f"{tmp_path / 'lm.py'}:make", "--quant", "hlq2g32", "--force", "-o",
                      tmp_path / "q")
        assert done.returncode == 0, done.stderr[-3000:]
        more = ["--layers", tmp_path / "q"]
    one = python(*command(tmp_path, "make", *more, "-o", tmp_path / "one"))
    assert one.returncode == 0, one.stderr[-3000:]
    two = python(*TORCHRUN, *command(tmp_path, "make", *more, "-o", tmp_path / "two"))
    assert two.returncode == 0, two.stderr[-3000:]
    wanted, found = log(tmp_path / "one"), log(tmp_path / "two")
    assert wanted["losses"][-1] < wanted["losses"][0] - 0.05
    assert found["losses"] == pytest.approx(wanted["losses"], rel=bound)
    assert [e["value"] for e in found["evaluations"]] == pytest.approx([e["value"] for e in wanted["evaluations"]],
                                                                       rel=10 * bound)
    assert found["identity"]["processes"] == 2
    assert two.stderr.count("step 10 of 10") == 1
    assert two.stdout.count("head.weight") == 1
    layers = [{name: _dense(layer.load()) for name, layer in load_finished(tmp_path / folder / "layers").items()}
              for folder in ("one", "two")]
    assert layers[0].keys() == layers[1].keys() >= {"head.weight"}
    untrained = dict(lm(tmp_path).make()[0].state_dict())
    for name, value in layers[0].items():
        assert np.abs(layers[1][name] - value).mean() < 0.02 * np.abs(value).mean(), name
        assert np.abs(untrained[name].numpy() - value).mean() > 0.05 * np.abs(value).mean(), name


@pytest.mark.slow
def test_killed_and_resumed_in_two_processes(tmp_path: Path) -> None:
    whole = python(*TORCHRUN, *command(tmp_path, "dropped", "-o", tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr[-3000:]
    words = command(tmp_path, "dropped", "-o", tmp_path / "killed")
    (tmp_path / "die").touch()
    assert python(*TORCHRUN, *words).returncode != 0
    assert not (tmp_path / "die").exists()
    assert len(log(tmp_path / "killed")["losses"]) == 6
    resumed = python(*TORCHRUN, *words)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    assert len(digests(tmp_path / "whole")) > 2
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    alone = python(*words)
    assert alone.returncode == 2
    assert "processes: 2 then, null now" in alone.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("factory", "data", "said"), [
    ("make", "odd", "a multiple of the 2 processes"), ("unseeded", "batches", "a factory that seeds")])
def test_refuses_what_processes_cannot_share(tmp_path: Path, factory: str, data: str, said: str) -> None:
    done = python(*TORCHRUN, *command(tmp_path, factory, "-o", tmp_path / "out", data=data))
    assert done.returncode != 0
    assert said in done.stderr
    assert not (tmp_path / "out" / "model").exists()


def test_shares() -> None:
    x, labels = torch.arange(12).reshape(4, 3), torch.arange(4)
    inputs, own = Processes(1, 2).share(({"x": x, "scale": 2.0}, labels), "batch 0")
    assert inputs["scale"] == 2.0
    assert torch.equal(inputs["x"], x[2:])
    assert torch.equal(own, labels[2:])
    for wrong in ((x, labels[:2]), (x[:3], labels[:3]), (x, torch.tensor(1)), (x[:0], None)):
        with pytest.raises(EdgecError, match="rows each") as caught:
            Processes(0, 2).share(wrong, "batch 7")
        assert caught.value.code == "E0502"


def test_refuses_windows_that_do_not_divide(tmp_path: Path) -> None:
    with pytest.raises(EdgecError, match="3 windows for 2 processes") as caught:
        _tuned(Processes(1, 2), str(tmp_path), "text.txt", tmp_path / "out", TuneOptions(FitOptions(1), batch=3), None,
               None)
    assert caught.value.code == "E0002"


def test_blocks_that_share_a_weight_are_sharded_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[nn.Module] = []
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda module, **_: taken.append(module))
    monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda *_: None)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))
    blocks[2][0].weight = blocks[1][0].weight
    model = nn.Module()
    model.blocks, model.lists = blocks, nn.ModuleList(nn.ModuleList([nn.Linear(2, 2)]) for _ in range(2))
    shard(model)
    assert taken == [blocks[0], model]

    def refuse(module: nn.Module, **_: object) -> None:
        raise AssertionError("uniform original parameter dtype")

    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", refuse)
    with pytest.raises(EdgecError, match="uniform original") as caught:
        shard(model)
    assert caught.value.code == "E0002"


def test_refuses_models_that_shares_change() -> None:
    for model, said in ((nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "BatchNorm1d"),
                        (nn.ParameterDict({"scale": nn.Parameter(torch.tensor(1.0))}), "a scalar")):
        with pytest.raises(EdgecError, match=said):
            shard(model)


@pytest.mark.parametrize("kind", ["forward", "reverse", "mix"])
def test_parts_of_a_loss_add_up(kind: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    own, wanted = torch.randn(2, 4, 5, 9, generator=generator)
    labels = torch.randint(0, 9, (4, 5), generator=generator)
    labels[0, 1:] = -100
    counted = labels != -100
    halves = (slice(0, 2), slice(2, 4))
    # What the two ask for, in order: how many positions, and for the mix what the entropies add up to.
    entropy = torch.special.entr(wanted.softmax(-1)).sum(-1)[counted].sum()
    for part_of, whole in ((lambda r, t: label_loss(own[r], labels[r], t), label_loss(own, labels)),
                           (lambda r, t: distillation(own[r], wanted[r], kind, 1.0, labels[r], t),
                            distillation(own, wanted, kind, 1.0, labels))):
        parts = [part_of(r, lambda value: entropy if value.is_floating_point() else counted.sum()) for r in halves]
        assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-5)


def test_the_same_state_gives_the_same_palettes() -> None:
    model, schedule = untied(), Schedule()
    cluster(model, "palette2", schedule=schedule)
    trained(model, schedule, 0, 1)
    again = palettes(model.state_dict())
    for name, palette in harden(model).items():
        assert (palette.indices == again[name].indices).all()
        assert (palette.lut == again[name].lut).all()


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
