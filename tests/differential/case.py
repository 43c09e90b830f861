"""A graph with inputs: what is generated, compared, saved and replayed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from tests.differential.reference import Array

Ranges = dict[str, dict[int, tuple[int, int]]]
FOLDER = Path(__file__).resolve().parents[2] / "build" / "repros"


@dataclass(frozen=True)
class Case:
    """feeds: one set of inputs per size that is tried. dynamic: input -> axis -> least and largest size."""

    model: onnx.ModelProto
    feeds: tuple[dict[str, Array], ...]
    dynamic: Ranges

    def operators(self) -> Counter[str]:
        return Counter(n.op_type for n in self.model.graph.node)

    def __repr__(self) -> str:
        # What hypothesis prints of a failure.
        return onnx.printer.to_text(self.model.graph) + f"\ndynamic {self.dynamic}"

    def save(self, name: str, folder: Path = FOLDER) -> Path:
        """NAME.onnx and NAME.npz; the path of the first."""
        folder.mkdir(parents=True, exist_ok=True)
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        entry = model.metadata_props.add()
        entry.key, entry.value = "dynamic", json.dumps(self.dynamic)
        path = folder / f"{name}.onnx"
        onnx.save(model, path)
        arrays = {f"{i}/{key}": array for i, feed in enumerate(self.feeds) for key, array in feed.items()}
        np.savez(path.with_suffix(".npz"), sets=len(self.feeds), **arrays)  # type: ignore[arg-type]
        return path


def load(path: Path) -> Case:
    model = onnx.load(path)
    text = {p.key: p.value for p in model.metadata_props}.get("dynamic", "{}")
    dynamic = {k: {int(a): (r[0], r[1]) for a, r in v.items()} for k, v in json.loads(text).items()}
    del model.metadata_props[:]
    with np.load(path.with_suffix(".npz")) as arrays:
        feeds = tuple(
            {k.split("/", 1)[1]: arrays[k] for k in arrays.files if k.startswith(f"{i}/")}
            for i in range(int(arrays["sets"]))
        )
    return Case(model, feeds, dynamic)
