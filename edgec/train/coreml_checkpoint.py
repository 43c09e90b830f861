"""Palettes that coremltools has trained (coremltools.optimize.torch.palettization), taken over as they are.

    model = palettizer.finalize()
    layers = palettes_of(model)
    write_layers(layers, model, "layers", example_inputs=example)

A finalized model has the values of its palettes as weights and, per palettized weight NAME, the buffers
`_COREML_/NAME/lut` [groups of axis 0, groups of axis 1, ..., 2^bits, vector], with scales per channel
`palettization_scale` [N, 1, ...], and for vectors `vector_axis` (version 1 of its metadata).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from edgec.compress.formats import Array, PaletteSpec, PaletteTensor, dequantize_palette
from edgec.compress.formats_bits import MAX_BITS
from edgec.compress.layers import matrix_of
from edgec.errors import EdgecError

_STAGE = "train coreml_checkpoint"
_PREFIX = "_COREML_/"
_VERSION = "_COREML_/metadata_version"


def palettes_of(model: nn.Module | Mapping[str, Tensor]) -> dict[str, PaletteTensor]:
    """Name of a weight -> its palette, of a finalized model or of its state dict; removes the buffers from a model.

    Scales per channel become a table per row. Raises EdgecError: E0103 for palettes that `palette` formats cannot say
    (groups of input channels, vectors along another axis than the inputs, other compressions besides, another version),
    E0101 when weights are not values of their table.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else dict(model)
    version = state.get(_VERSION)
    if version is None or int(version) != 1:
        raise _unsupported("metadata_version", "none" if version is None else str(int(version)), "version 1",
                           "finalize() of a palettizer of coremltools 8 or 9")
    found = {}
    for key in state:
        path, mark, rest = key.rpartition(_PREFIX)
        if mark and rest.endswith("/lut"):
            name = path + rest.removesuffix("/lut")
            marks = {k.removeprefix(f"{path}{mark}{rest.removesuffix('lut')}"): v for k, v in state.items()
                     if k.startswith(f"{path}{mark}{rest.removesuffix('lut')}")}
            found[name] = _palette(name, state[name], marks)
    if not found:
        raise _unsupported("the model", "no palettized weight", "a finalized model of a palettizer")
    if isinstance(model, nn.Module):
        for module in model.modules():
            for buffer in [b for b in module._buffers if b.startswith(_PREFIX)]:
                del module._buffers[buffer]
    return found


def _palette(name: str, weight: Tensor, marks: Mapping[str, Tensor]) -> PaletteTensor:
    kinds = marks.get("compression_type")
    if kinds is None or kinds.tolist() != [2]:
        raise _unsupported(name, f"compressions {None if kinds is None else kinds.tolist()}", "palettization alone")
    lut = marks["lut"].detach().float().cpu().numpy()
    groups, entries, vector = lut.shape[:-2], lut.shape[-2], lut.shape[-1]
    bits = entries.bit_length() - 1
    matrix = matrix_of(weight.detach().float().cpu().numpy())
    n, k = matrix.shape
    if lut.ndim != weight.ndim + 2 or entries != 1 << bits or not 1 <= bits <= MAX_BITS or n % groups[0]:
        raise _unsupported(name, f"a table of {list(lut.shape)} for {list(weight.shape)}", "1 to 8 bits")
    if any(count != 1 for count in groups[1:]):
        raise _unsupported(name, f"tables per {list(groups)} groups", "tables for groups of output channels",
                           "palettize with channel_axis=0")
    if vector > 1 and (int(marks.get("vector_axis", -1)) != 1 or weight.shape[1] % vector):
        raise _unsupported(name, f"vectors of {vector} along axis {int(marks.get('vector_axis', -1))}",
                           "vectors along the input channels", "palettize with cluster_dim=1")
    tables = lut.reshape(groups[0], entries, vector)
    rows = n // groups[0] if groups[0] > 1 else 0
    scale = marks.get("palettization_scale")
    if scale is not None:
        each = np.repeat(tables, n // groups[0], 0) if groups[0] > 1 else np.broadcast_to(tables, (n, entries, vector))
        tables, rows = each * scale.detach().float().cpu().numpy().reshape(n, 1, 1), 1
    spec = PaletteSpec(bits, rows if rows != n else 0, vector)
    indices = np.concatenate([_indices(part, table, vector) for part, table in
                              zip(np.split(matrix, len(tables)), tables, strict=True)])
    half = tables.astype(np.float16)
    stored = half if np.array_equal(half.astype(np.float32), tables) else tables.astype(np.float32)
    made = PaletteTensor(spec, indices, stored if vector > 1 else np.ascontiguousarray(stored[..., 0]), k)
    if not np.array_equal(dequantize_palette(made), matrix):
        raise EdgecError("E0101", stage=_STAGE, where=name, found="weights that are not values of their table",
                         wanted="a model as finalize() left it", hint="finalize after the last training step")
    return made


def _indices(part: Array, table: Array, vector: int) -> Array:
    """u8 [rows, K / vector]: the nearest entry of `table` [entries, vector]."""
    points = part.reshape(-1, vector)
    best = np.full(len(points), np.inf)
    found = np.zeros(len(points), np.uint8)
    for entry, value in enumerate(table):
        away = np.square(points - value).sum(1)
        found[away < best] = entry
        best = np.minimum(best, away)
    return found.reshape(len(part), -1)


def _unsupported(where: str, found: str, wanted: str, hint: str = "") -> EdgecError:
    return EdgecError("E0103", stage=_STAGE, where=where, found=found, wanted=wanted, hint=hint)
