"""Several processes that train one model: FSDP2 shards it, each takes its rows of every batch, the first writes.

    torchrun --nproc-per-node 2 -m edgec train MODEL --data FILE --steps N -o OUT

Clustered weights are gathered for their forward pass, so every process clusters the whole weight and gets the same.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch import Tensor, nn

from edgec.errors import EdgecError

_STAGE = "train"
_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Processes:
    """This one is `rank` of `count`. All call every method, in the same order."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum over the processes, without a gradient; the tensor itself with one process."""
        if self.count == 1:
            return value
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def once(self, make: Callable[[], T]) -> T:
        """What `make` gives the first process, for all of them: so is the EdgecError that it raises."""
        if self.count == 1:
            return make()
        said: list[Any] = [None, None]
        if self.first:
            try:
                said[1] = make()
            except EdgecError as e:
                said[0] = vars(e)
        dist.broadcast_object_list(said, 0)
        if said[0] is not None:
            raise EdgecError(**said[0])
        return cast(T, said[1])

    def every(self, value: T) -> list[T]:
        """The values of all processes."""
        found: list[Any] = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(found, value)
        return found

    def same(self, value: object, where: str, hint: str) -> None:
        """Raises EdgecError (E0002) where processes have different values."""
        found = sorted({str(v) for v in self.every(value)})
        if len(found) > 1:
            raise _bad(where, f"different ones in {self.count} processes: {', '.join(found)[:200]}",
                       "the same in all of them", hint)

    def share(self, value: Any, where: str) -> Any:
        """The rows of a batch, in whatever it holds them, that are this process's. Raises EdgecError (E0502)."""
        if self.count == 1:
            return value
        lengths = {len(t) if t.ndim else 0 for t in _tensors(value)}
        if len(lengths) != 1 or min(lengths) == 0 or min(lengths) % self.count:
            raise EdgecError("E0502", stage=_STAGE, where=where, found=f"tensors of {sorted(lengths)} rows",
                             wanted=f"tensors of as many rows each, a multiple of the {self.count} processes",
                             hint="another batch size, or another --nproc-per-node")
        return _mapped(value, lambda t: t.chunk(self.count)[self.rank])

    def whole(self, state: Any) -> Any:
        """`state` with whole tensors in place of shards, for the first process; the others help, and get None."""
        return _mapped(state, lambda t: self._gathered(t) if is_sharded(t) else t)

    def _gathered(self, tensor: Tensor) -> Tensor | None:
        full = whole_tensor(tensor)
        return full if self.first else None


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(value, found.append)
    return found


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(one, change) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_mapped(one, change) for one in value)
    return value


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def whole_tensor(tensor: Tensor) -> Tensor:
    """Gathered from all processes, where it is sharded."""
    return cast(Tensor, cast(Any, tensor).full_tensor()) if is_sharded(tensor) else tensor


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of `tensor`, as `like` is sharded; all have the whole, so nothing is sent."""
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed = cast(Any, like)
    return distribute_tensor(tensor, placed.device_mesh, placed.placements, src_data_rank=None)


def of_model(model: nn.Module) -> Processes:
    """Those that the parameters of `model` are sharded over."""
    if not any(is_sharded(p) for p in model.parameters()):
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


@contextmanager
def launched() -> Iterator[Processes]:
    """The processes that torchrun has started; one without it. Raises EdgecError (E0002)."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count == "1":
        yield Processes()
        return
    missing = [name for name in _TORCHRUN if name not in os.environ]
    if missing:
        raise _bad("WORLD_SIZE", f"{count} without {', '.join(missing)}", "the variables that torchrun sets",
                   "torchrun --nproc-per-node N -m edgec train ..., or unset WORLD_SIZE")
    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group("gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        if mine:
            dist.destroy_process_group()


def shard(model: nn.Module) -> None:
    """FSDP2, in place: each module of the most frequent class in a ModuleList by itself, and the rest together, with
    those that have a parameter in common with another module.

    Raises EdgecError (E0002) for what a share of the batch changes, and for what FSDP2 does not take.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise _bad(name, type(module).__name__, "no statistics over a batch of which each process has a part",
                       "fold the norm before training (torch.nn.utils.fusion.fuse_conv_bn_eval), or one process")
    for name, parameter in model.named_parameters():
        if not parameter.ndim:
            raise _bad(name, "a parameter that is a scalar", "parameters with a dim to shard along",
                       "a parameter of one element, or one process")
    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    places = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    listed = [one for module in model.modules() if isinstance(module, nn.ModuleList) for one in module
              if not isinstance(one, nn.ModuleList | nn.ModuleDict)]
    often = Counter(type(one) for one in listed).most_common(1)
    try:
        for one in listed:
            inside = Counter(id(p) for _, p in one.named_parameters(remove_duplicate=False))
            if type(one) is often[0][0] and all(places[key] == count for key, count in inside.items()):
                fully_shard(one, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
    except (ValueError, AssertionError, NotImplementedError) as e:
        raise _bad(type(model).__name__, f"{type(e).__name__}: {e}", "a model that fully_shard takes",
                   "one process trains it") from e


def _bad(where: str, found: str, wanted: str, hint: str = "") -> EdgecError:
    return EdgecError("E0002", stage=_STAGE, where=where, found=found, wanted=wanted, hint=hint)
