"""From trained layers to the compiler: the folder that `compile --quant-from` takes, without solving anything.

    layers = harden(model)              # or harden_bits(model)
    write_layers(layers, model, "layers", example_inputs=example)
    edgec.compile(model, "out", example_inputs=example, quant_from="layers", backend="coreml")

The source is imported and normalized as a compile would do it, and a layer is written only for a weight that is its
values there, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.compress.formats import Array, PaletteTensor, Quantized, dequantize, dequantize_palette
from edgec.compress.layers import Layer, find_layers
from edgec.compress.store import Packed, Store, opened
from edgec.compress.stored import StoredLayer
from edgec.errors import EdgecError, did_you_mean
from edgec.ir.info import info_of
from edgec.version import __version__

_STAGE = "train finalize"
_FOLDED = ("a norm that the compiler folds into its neighbours is folded before training: "
           "torch.nn.utils.fusion.fuse_conv_bn_eval")


def write_layers(trained: Mapping[str, Packed], source: str | object, folder: Path | str, **importer: Any
                 ) -> dict[str, Any]:
    """Writes `trained` (name of a weight -> palette or bit planes) for `source`, the model that has their values.

    source: what `compile` takes. importer: keyword arguments of its door, example_inputs among them. Returns layers
    and kept ones as `edgec.quantize` does. Raises EdgecError: E0002 for a layer whose weight the compiler has not, or
    with other values, and a folder with the layers of another call; E0004 for a folder that is something else; whatever
    the import raises.
    """
    model = _imported(source, importer)
    layers = find_layers(model)
    found = {layer.name: _checked(layer, trained[layer.name]) for layer in layers if layer.name in trained}
    _check_all_found(trained, found, layers)
    info = info_of(model)
    formats = sorted({str(p.spec) for p in found.values()})
    arguments = {"edgec_version": __version__, "model": info.name, "model_sha256": info.source_sha256,
                 "quant": ", ".join(formats), "overrides": [], "method": "trained", "calibration": {"source": "none"},
                 # Another choice of layers, or others of the same values, are another result.
                 "layers": sorted(found), "layers_sha256": _digest(found)}
    kept = [{"name": layer.name, "reason": layer.refused or "not trained in few bits"}
            for layer in layers if layer.name not in found]
    with opened(Path(folder), arguments) as store:
        if not store.complete:
            chosen = [layer for layer in layers if layer.name in found]
            for index, layer in enumerate(chosen[store.step:], store.step):
                store.commit([_record(store, index, layer, found[layer.name])])
            store.finish({"kept": kept})
        records = list(store.state["layers"])
    weights = sum(r["rows"] * r["columns"] for r in records)
    total = sum(r["bytes"] for r in records)
    return {"output": str(folder), "arguments": arguments, "layers": records, "kept": kept, "weights": weights,
            "bytes": total, "bits_per_weight": round(8 * total / weights, 4)}


def check_source(weights: Mapping[str, Array], source: str | object, **importer: Any) -> None:
    """Before a training: whether the compiler has each of these weights (name -> float32 matrix [N, K] as
    compress/layers.py has it) with the same values. Raises EdgecError (E0002) as `write_layers` would after it."""
    layers = {layer.name: layer for layer in find_layers(_imported(source, importer))}
    for name, matrix in weights.items():
        layer = layers.get(name)
        # A tied weight has one name in the graph.
        if layer is None and any(other != name and other in layers and np.array_equal(values, matrix)
                                 for other, values in weights.items()):
            continue
        if layer is None:
            raise _bad(name, "no such weight after import", "the name of a weight that the compiler has",
                       "linears with nothing between them are merged: leave both alone, or merge them before; "
                       + did_you_mean(name, layers))
        if layer.refused:
            raise _bad(name, layer.refused, "a weight that is stored in few bits", f"train without {name}")
        if not np.array_equal(layer.read(), matrix):
            raise _bad(name, "other values after import", "a weight that the compiler leaves as it is", _FOLDED)


def _imported(source: str | object, importer: Mapping[str, Any]) -> ir.Model:
    from edgec.passes import COMPRESS
    from edgec.pipeline import CompileOptions, RunOptions, prepare_model

    # Nothing is compressed yet: these passes find nothing to do.
    options = CompileOptions(importer=importer, run=RunOptions(stop_after=COMPRESS[-1].name))
    model = prepare_model(source, options).model
    model.graph.sort()
    return model


def _record(store: Store, index: int, layer: Layer, packed: Packed) -> dict[str, Any]:
    return {"name": layer.name, "kind": layer.kind, "spec": str(packed.spec), "rows": layer.rows,
            "columns": layer.columns, "bytes": packed.spec.bytes(layer.rows, layer.columns),
            "error": 0.0,  # against this model, whose weights are these values
            "file": store.write_layer(index, layer.name, packed)}


def _checked(layer: Layer, packed: Packed) -> Packed:
    if layer.refused:
        raise _bad(layer.name, layer.refused, "a weight that is stored in few bits", f"train without {layer.name}")
    if packed.shape != (layer.rows, layer.columns):
        raise _bad(layer.name, f"{packed.spec} of {list(packed.shape)}", f"{[layer.rows, layer.columns]}")
    dense = dequantize(packed) if isinstance(packed, Quantized) else dequantize_palette(packed)
    wrong = np.count_nonzero(dense != layer.read())
    if wrong:
        raise _bad(layer.name, f"{wrong} of {layer.rows * layer.columns} weights that are not the trained values",
                   "the model as it was left when the layers were taken from it", _FOLDED)
    return packed


def _check_all_found(trained: Mapping[str, Packed], found: Mapping[str, Packed], layers: list[Layer]) -> None:
    for name, packed in trained.items():
        # A tied weight has one name in the graph.
        if name not in found and not any(_equal(packed, other) for other in found.values()):
            raise _bad(name, "no such weight after import", "the name of a weight of the model",
                       did_you_mean(name, [layer.name for layer in layers]))
    if not found:
        raise _bad("trained", "no layer", "at least one")


def _equal(a: Packed, b: Packed) -> bool:
    if isinstance(a, PaletteTensor) and isinstance(b, PaletteTensor):
        return a.spec == b.spec and np.array_equal(a.lut, b.lut) and np.array_equal(a.indices, b.indices)
    if isinstance(a, Quantized) and isinstance(b, Quantized):
        return a.spec == b.spec and all(np.array_equal(x, y) for x, y in (
            (a.codes, b.codes), (a.scale, b.scale), (a.offset, b.offset)))
    return False


def _digest(layers: Mapping[str, Packed]) -> str:
    found = hashlib.sha256()
    for name, packed in sorted(layers.items()):
        layer = StoredLayer.of(packed)
        found.update(f"{name} {layer.spec} {layer.shape}\n".encode())
        for part in layer.layout():
            found.update(np.ascontiguousarray(layer.read(part)).data)
    return found.hexdigest()


def _bad(where: str, found: str, wanted: str, hint: str = "") -> EdgecError:
    return EdgecError("E0002", stage=_STAGE, where=where, found=found, wanted=wanted, hint=hint)
