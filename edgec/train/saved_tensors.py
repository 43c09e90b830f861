"""What autograd keeps for the gradient, in host memory and small: the three techniques of eDKM (Cho et al., 2023,
arXiv:2309.00964) as a hook that works with any layer.

    with SavedTensors() as saved:
        saved.watch(weight)             # of 16 bits, whose values the layer's maps are functions of
        loss = ...
    loss.backward()

Marshaling: a tensor that shares its storage with one that has a copy already is a reference with sizes and strides.
The storage itself is compared, so it needs no walk over the graph and no list of operators to replay.
Uniquification: equal weights have equal rows in every map that depends on nothing else of them. A tensor of |W| rows
that is its rows of unique weights, indexed, is kept as these rows; whether it is, is checked value by value, and what
is not is copied. The index, 16 bits per weight, is kept once per weight. Sharding: each of L learners keeps 1 / L of
it, and it is gathered when a map is needed.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from edgec.errors import EdgecError
from edgec.train.soft_kmeans import HALVES, VALUES, index_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_STAGE = "train saved_tensors"
_PIECE = 1 << 18  # rows restored or compared at once
_LEAST = 1 << 10  # smaller tensors are copied as they are


class SavedTensors:
    """The hook, as a context manager around forward passes; backward may come after it.

    marshal, uniquify: the techniques. group: learners over which index lists are sharded; all must have the same
    weights and run the same passes. device: where copies go. Parameters and their views are not copied, only referred
    to. Changes in place are noticed by the tensors' versions; writes through `.data` have none and go unnoticed: the
    gradient is then of mixed values.
    bytes: kept at this moment by this process. peak: the most so far. copied, aliased, uniquified: tensors, so far.
    """

    def __init__(self, *, marshal: bool = True, uniquify: bool = True, group: ProcessGroup | None = None,
                 device: str | torch.device = "cpu") -> None:
        if group is not None and not uniquify:
            raise _bad("group", "sharding without uniquification", "index lists to shard: uniquify=True")
        self.marshal, self.uniquify, self.group, self.device = marshal, uniquify, group, torch.device(device)
        self.bytes = self.peak = self.copied = self.aliased = self.uniquified = 0
        self._weights: list[_Weight] = []
        self._known: dict[int, tuple[StorageWeakRef, int, weakref.ref[_Copy | _Rows]]] = {}
        self._hooks: Any = None

    def watch(self, weight: Tensor) -> None:
        """Maps of a row per value of `weight` (any shape, bfloat16 or float16) may be kept as rows of unique values.

        It may change in place; maps that follow are then of its new values, unless index lists are sharded, which is
        refused. Raises EdgecError (E0002) for other types, no values, and when learners have different weights.
        """
        if weight.dtype not in HALVES:
            raise _bad("watch", str(weight.dtype), "a weight of bfloat16 or float16, of at most 65536 values")
        if not weight.numel():
            raise _bad("watch", f"an empty weight {list(weight.shape)}", "a weight with at least one value",
                       "leave it out")
        if self.uniquify:
            self._weights.append(_Weight(weight.detach(), self.group, self.device, self))

    def __enter__(self) -> SavedTensors:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
                 ) -> None:
        self._hooks.__exit__(kind, value, trace)
        self._weights.clear()
        self._known.clear()

    def hold(self, owner: object, size: int) -> None:
        """Counts `size` bytes until `owner` is gone."""
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(owner, self._release, size)

    def _release(self, size: int) -> None:
        self.bytes -= size

    def _pack(self, tensor: Tensor) -> _Reference | _View:
        if tensor.is_leaf and tensor.requires_grad:
            return _Reference(tensor, tensor._version)
        base = tensor._base
        if base is not None and _is_view(tensor, base):
            # nn.Linear saves weight.t().
            return _Reference(base, base._version,
                              (tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())))
        # A storage does not know that its values are to be conjugated or negated.
        tensor = tensor.resolve_conj().resolve_neg()
        # A cut out of something larger is copied alone; anything else with its whole storage, as others may need it.
        storage = tensor.untyped_storage()
        if storage.nbytes() > max(tensor.nbytes, _LEAST) or not storage.nbytes():
            return _View(self._kept(tensor.detach().contiguous().reshape(-1)), tuple(tensor.shape), None, 0)
        layout = tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())
        found = self._known.get(storage._cdata) if self.marshal else None
        if found is not None and found[1] == tensor._version and not _gone(found[0]):
            kept = found[2]()
            if kept is not None and kept.dtype == tensor.dtype:
                self.aliased += 1
                return _View(kept, *layout)
        flat = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage)
        kept = self._kept(flat)
        if self.marshal:
            self._known[storage._cdata] = _weak(storage), tensor._version, weakref.ref(kept)
        return _View(kept, *layout)

    def _kept(self, flat: Tensor) -> _Copy | _Rows:
        if flat.numel() >= _LEAST:
            for weight in self._weights:
                rows = weight.rows_of(flat)
                if rows is not None:
                    self.uniquified += 1
                    self.hold(rows, rows.table.nbytes)
                    return rows
        self.copied += 1
        copy = _Copy(flat.to(self.device, copy=True), flat.device)
        self.hold(copy, copy.values.nbytes)
        return copy

    @staticmethod
    def _unpack(packed: _Reference | _View) -> Tensor:
        return packed.restore()


@dataclass(frozen=True)
class _Reference:
    """A parameter, which the model keeps anyway. layout: shape, strides and offset of a view of it."""

    tensor: Tensor
    version: int
    layout: tuple[tuple[int, ...], tuple[int, ...], int] | None = None

    def restore(self) -> Tensor:
        if self.tensor._version != self.version:
            # Autograd's own check does not look into what a hook has packed.
            raise _bad(f"parameter {list(self.tensor.shape)}", "changed in place between forward and backward",
                       "the value that the forward pass has used", "optimizer.step() after backward()")
        return self.tensor if self.layout is None else torch.as_strided(self.tensor.detach(), *self.layout)


class _Copy:
    """A storage in host memory."""

    def __init__(self, values: Tensor, device: torch.device) -> None:
        self.values, self.device, self.dtype = values, device, values.dtype

    def flat(self) -> Tensor:
        return self.values.to(self.device)


class _Rows:
    """A storage as rows of unique weights: table [U, k]; transposed: the storage has [k, |W|]."""

    def __init__(self, index: _Index, table: Tensor, transposed: bool, device: torch.device) -> None:
        self.index, self.table, self.transposed = index, table, transposed
        self.device, self.dtype = device, table.dtype
        # Several views of one map are often needed one after the other.
        self._restored: weakref.ref[Tensor] | None = None

    def flat(self) -> Tensor:
        found = None if self._restored is None else self._restored()
        if found is None:
            found = self._restore()
            self._restored = weakref.ref(found)
        return found

    def _restore(self) -> Tensor:
        index, table = self.index.gather(), self.table.to(self.device)
        k = table.shape[1]
        flat = torch.empty(len(index) * k, dtype=table.dtype, device=self.device)
        rows = flat.view(k, -1).T if self.transposed else flat.view(-1, k)
        for at in range(0, len(index), _PIECE):
            rows[at : at + _PIECE] = table[index_of(index[at : at + _PIECE]).to(self.device)]
        return flat


@dataclass(frozen=True)
class _View:
    """A tensor over a kept storage; strides None: contiguous over all of it."""

    kept: _Copy | _Rows
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    offset: int

    def restore(self) -> Tensor:
        flat = self.kept.flat()
        if self.strides is None:
            return flat.reshape(self.shape)
        return torch.as_strided(flat, self.shape, self.strides, self.offset)


class _Index:
    """For every value of a weight the number of its bit pattern among those that occur: int16, or a learner's part."""

    def __init__(self, values: Tensor, group: ProcessGroup | None) -> None:
        self.count, self._group, self._values = len(values), group, values
        if group is not None:
            import torch.distributed as dist

            share = -(-self.count // dist.get_world_size(group))
            mine = values[dist.get_rank(group) * share :][:share]
            # Every learner sends as much.
            self._values = torch.cat([mine, mine.new_zeros(share - len(mine))])

    @property
    def nbytes(self) -> int:
        return self._values.nbytes

    def gather(self) -> Tensor:
        """All of it. Collective when it is sharded."""
        if self._group is None:
            return self._values
        import torch.distributed as dist

        # Not every backend knows integers of 16 bits.
        mine = self._values.view(torch.uint8)
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(parts, mine, group=self._group)
        return torch.cat(parts).view(torch.int16)[: self.count]


class _Weight:
    """A watched weight. index: counted by `owner` from the first map that uses it."""

    def __init__(self, weight: Tensor, group: ProcessGroup | None, device: torch.device, owner: SavedTensors) -> None:
        self._weight, self._group, self._device, self._owner = weight, group, device, owner
        self._build()

    def _build(self) -> None:
        weight, group, device = self._weight, self._group, self._device
        self._version = weight._version
        self._flat = weight.contiguous().reshape(-1)
        count, here = len(self._flat), weight.device
        first = torch.full((VALUES,), count, dtype=torch.int64, device=here)
        for at in range(0, count, _PIECE):
            bits = index_of(self._flat[at : at + _PIECE])
            first.scatter_reduce_(0, bits, torch.arange(at, at + len(bits), device=here), "amin")
        present = (first < count).nonzero()[:, 0]
        self._first = first[present]
        self._rank = torch.zeros(VALUES, dtype=torch.int64, device=here)
        self._rank[present] = torch.arange(len(present), device=here)
        if group is not None:
            self._check_same(group)
        # Numbers above 32767 become negative, which index_of undoes.
        values = torch.cat([self._numbers(at).to(torch.int16).to(device) for at in range(0, count, _PIECE)])
        self.index, self._counted = _Index(values, group), False

    def _numbers(self, at: int) -> Tensor:
        return self._rank[index_of(self._flat[at : at + _PIECE])]

    def rows_of(self, flat: Tensor) -> _Rows | None:
        """`flat` as rows of unique weights, when that is what it is."""
        k, rest = divmod(flat.numel(), self.index.count)
        if rest or not flat.is_floating_point():
            return None
        if self._weight._version != self._version:
            if self._group is not None:
                # Learners would have to agree on new lists at a moment that each finds out by itself.
                raise _bad(f"watched weight {list(self._weight.shape)}", "changed in place after watch()",
                           "the values that the learners have agreed on", "watch() it in a new SavedTensors")
            self._build()  # maps that are kept already have the list of their own values
        for transposed in (False, True)[: 1 + (k > 1)]:
            rows = flat.view(k, -1).T if transposed else flat.view(-1, k)
            table = rows[self._first]
            if all(torch.equal(table[self._numbers(at)], rows[at : at + _PIECE])
                   for at in range(0, self.index.count, _PIECE)):
                if not self._counted:
                    self._counted = True
                    self._owner.hold(self.index, self.index.nbytes)
                return _Rows(self.index, table.to(self._device), transposed, flat.device)
        return None

    def _check_same(self, group: ProcessGroup) -> None:
        import torch.distributed as dist

        total = torch.zeros((), dtype=torch.int64)
        for at in range(0, len(self._flat), _PIECE):
            bits = index_of(self._flat[at : at + _PIECE])
            total += (bits * torch.arange(at + 1, at + 1 + len(bits), device=bits.device)).sum().cpu()
        facts = torch.stack([torch.tensor(len(self._flat)), total])
        others = [torch.empty_like(facts) for _ in range(dist.get_world_size(group))]
        dist.all_gather(others, facts, group=group)
        if any(not torch.equal(other, facts) for other in others):
            raise _bad("watch", "learners with different weights", "the same weights in every process of the group")


def _is_view(tensor: Tensor, base: Tensor) -> bool:
    """Whether `tensor` is values of the parameter `base` as they are."""
    return (base.is_leaf and base.requires_grad and tensor.dtype == base.dtype
            and not tensor.is_conj() and not tensor.is_neg() and not base.is_conj() and not base.is_neg()
            and tensor.untyped_storage()._cdata == base.untyped_storage()._cdata)


def _weak(storage: torch.UntypedStorage) -> StorageWeakRef:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def _gone(reference: StorageWeakRef) -> bool:
    return bool(reference.expired())  # type: ignore[no-untyped-call]


def _bad(where: str, found: str, wanted: str, hint: str = "") -> EdgecError:
    return EdgecError("E0002", stage=_STAGE, where=where, found=found, wanted=wanted, hint=hint)
