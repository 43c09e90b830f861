"""Models over several processes: torchrun and FSDP2 (fully_shard) around clustered weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from edgec.compress.formats import PaletteTensor
from edgec.errors import EdgecError
from edgec.train.cluster import Schedule, cluster, harden
from edgec.train.loop import FitOptions, fit
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
    for refused in (lambda: harden(model), lambda: fit(model, lambda i: (tokens(i), None), folder, FitOptions(1))):
        with pytest.raises(EdgecError, match="sharded over processes"):
            refused()
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


@pytest.mark.slow
def test_sharded_training_is_training(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
             "--rdzv-endpoint", "localhost:0", str(Path(__file__).resolve()), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
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
