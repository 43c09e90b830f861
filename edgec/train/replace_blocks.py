"""Blocks of a trained network replaced by lighter ones that learn from them.

    done = replace_blocks(model, ["layer*.*"], inverted_residual, batches, example, evaluate=accuracy)

Every module whose path matches becomes a new block of the same shapes. First each new block learns, alone, what the
old one makes of its input; then the whole network learns the old one's logits for a short while. Nothing is promised
about the result: the report says what it costs and what it is worth, before and after.
"""

from __future__ import annotations

import copy
import fnmatch
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from edgec.errors import EdgecError, did_you_mean
from edgec.train.match import Batches, distill, match_blocks, tapped
from edgec.zoo.lsnet import LSConv

_STAGE = "train replace_blocks"
_RUNS = 30

# (input channels, output channels, stride) -> a block
Maker = Callable[[int, int, int], nn.Module]


@dataclass(frozen=True)
class Measures:
    """bytes: of parameters and statistics as they are stored. macs: as of macs_of, for the example.
    ms: one run of the native runtime on one thread, the fastest of a few; None when it was not asked for."""

    accuracy: float | None
    bytes: int
    macs: int
    ms: float | None


@dataclass(frozen=True)
class Replaced:
    """model: with new blocks, in eval mode. blocks: path -> error of the block on its own, relative to the variance of
    what it was to match, before
    the blocks were trained together."""

    model: nn.Module
    before: Measures
    after: Measures
    blocks: dict[str, float] = field(default_factory=dict)


def replace_blocks(
    model: nn.Module, paths: Sequence[str], make: Maker, batches: Batches, example: Tensor, *, match_steps: int = 300,
    joint_steps: int = 200, lr: float = 3e-3, labels: float = 0.5, evaluate: Callable[[nn.Module], float] | None = None,
    timed: bool = True,
) -> Replaced:
    """Replaces the modules of `model`, which stays as it is, whose path matches one of `paths` (globs; inside a module
    that matches, none does any more).

    make: the new block. batches(step): inputs and labels or None. example: an input, as it is compiled for. labels:
    their share of the joint loss. Raises EdgecError (E0002): nothing matches, or a block is not [B, C, H, W] in and out
    with a whole stride.
    """
    teacher = copy.deepcopy(model).eval()
    found = _matching(teacher, paths)
    students = _blocks(teacher, found, make, batches)
    before = measure(teacher, example, evaluate, timed=timed)
    errors = match_blocks(students, teacher, batches, match_steps, lr=lr) if match_steps else {}
    student = copy.deepcopy(teacher)
    for path, block in students.items():
        parent, _, name = path.rpartition(".")
        setattr(student.get_submodule(parent), name, block)
    if joint_steps:
        # Other batches than the blocks have seen.
        distill(student, teacher, lambda step: batches(match_steps + step), joint_steps, lr=lr / 3, labels=labels)
    student.eval()
    return Replaced(student, before, measure(student, example, evaluate, timed=timed), errors)


def _matching(model: nn.Module, globs: Sequence[str]) -> list[str]:
    known = [path for path, _ in model.named_modules() if path]
    found: list[str] = []
    for glob in globs:
        hits = fnmatch.filter(known, glob)
        if not hits:
            raise EdgecError("E0002", stage=_STAGE, where="paths", found=repr(glob), wanted="the path of a module",
                             hint=did_you_mean(glob, known))
        found += hits
    inner = {path for path in found for other in found if path.startswith(f"{other}.")}
    return [path for path in known if path in found and path not in inner]


def _blocks(teacher: nn.Module, paths: Sequence[str], make: Maker, batches: Batches) -> dict[str, nn.Module]:
    with tapped(teacher, paths) as seen, torch.no_grad():
        teacher(batches(0)[0])
    made: dict[str, nn.Module] = {}
    for path in paths:
        if path not in seen:
            raise EdgecError("E0002", stage=_STAGE, where=path, found="a module that does not run",
                             wanted="a block of the forward pass")
        x, y = seen[path]
        strides = {-(-a // b) for a, b in zip(x.shape[2:], y.shape[2:], strict=False)}
        if x.ndim != 4 or y.ndim != 4 or len(strides) != 1:
            raise EdgecError("E0002", stage=_STAGE, where=path, found=f"{list(x.shape)} to {list(y.shape)}",
                             wanted="[B, C, H, W] to [B, C', H / s, W / s]")
        block = make(x.shape[1], y.shape[1], strides.pop())
        # New blocks end without an activation; the old ones' readers may rely on one.
        block = nn.Sequential(block, nn.ReLU()) if bool((y >= 0).all()) else block
        if (shape := block(x).shape) != y.shape:
            raise EdgecError("E0002", stage=_STAGE, where=path, found=f"a new block that gives {list(shape)}",
                             wanted=str(list(y.shape)))
        made[path] = block
    return made


def measure(model: nn.Module, example: Tensor, evaluate: Callable[[nn.Module], float] | None = None, *,
            timed: bool = True) -> Measures:
    """What `model`, in eval mode, is worth and costs."""
    model.eval()
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    return Measures(None if evaluate is None else evaluate(model), size, macs_of(model, example),
                    milliseconds(model, example) if timed else None)


def macs_of(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of convolutions (not transposed ones), linears and LS convolutions for one `example`."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        # An LS convolution multiplies its image with the 9 weights per pixel that its own layers have made.
        weight = getattr(module, "weight", None)
        total += output.numel() * (9 if weight is None else weight[0].numel())

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, LSConv)
    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return total


def milliseconds(model: nn.Module, example: Tensor) -> float:
    """The fastest of a few runs of the compiled model, one thread."""
    from edgec import api
    from edgec.native.session import Model

    with tempfile.TemporaryDirectory(prefix="edgec-") as folder:
        api.compile(model, Path(folder) / "out", example_inputs=(example,))
        with Model(Path(folder) / "out" / "model.edgec") as opened, opened.session(threads=1) as session:
            feeds = {opened.inputs[0].name: example.numpy()}
            seconds = []
            for _ in range(_RUNS):
                start = time.perf_counter()
                session.run(feeds)
                seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds)
