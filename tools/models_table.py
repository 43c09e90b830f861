"""Writes docs/models.md: every model family of the tests, imported, compiled, run natively and compared here and now.

    python tools/models_table.py            takes a few minutes; needs the extra [hf] and the native library

The families are those of tests/models/families.py and tests/models/torch_zoo.py, and so are the errors.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

HEAD = """\
# Model families

Made by `python tools/models_table.py`. Every row is a tiny random model (2 layers) of its family, imported, compiled
for this machine with default options, run by the native runtime and compared with the original in float32.

*error*: largest difference of an output over the largest value of that output, the worst of all outputs; of language
models over a prompt of {prompt} tokens and {steps} decode steps. Above {tolerance:.0e}, or NaN, is a failure of the
tests. *import*: seconds, the comparison with the original included. *passes*: those that changed the graph, with the
number of rewrites; what torch.onnx and onnxscript have fused before is not among them.

A name with a colon is one network of a pair, compiled as `FOLDER:PART`. An encoder-decoder's `:decoder` takes all
tokens so far together with the encoder's states and returns logits for each. Networks other than causal language
models have inputs without padding and therefore no attention mask; batch 1 unless `--dynamic` says otherwise.

| family | door | error | import | passes |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    family: str
    door: str
    error: float
    seconds: float
    passes: str

    def __str__(self) -> str:
        return f"| {self.family} | {self.door} | {self.error:.1e} | {self.seconds:.1f} | {self.passes} |"


def measure(family: str, source: object, error: Callable[[Path], float], **options: Any) -> Row:
    """Imports, compiles and compares one model; `error` gets the bundle."""
    import edgec
    from edgec import importers

    start = time.perf_counter()
    model = importers.load(source, **options)
    seconds = time.perf_counter() - start
    route = model.metadata_props.get("edgec.import_route")
    with tempfile.TemporaryDirectory() as folder:
        compiled = edgec.compile(source, Path(folder) / "out", **options)
        found = error(Path(folder) / "out" / "model.edgec")
    fired: Counter[str] = Counter()
    for record in compiled.passes:
        if record["modified"]:
            fired[record["pass"]] += int(record["fired"])
    passes = ", ".join(f"{name} {count}" if count else name for name, count in fired.items())
    return Row(family, f"hf ({route})" if route else "torch", found, seconds, passes)


def rows() -> Iterator[Row]:
    """All families in the order of their tables."""
    from tests.models import families, torch_zoo

    with tempfile.TemporaryDirectory() as folder:
        for name, family in families.LANGUAGE.items():
            source = str(families.make(Path(folder) / name, family))
            yield measure(name, source, lambda bundle, source=source: families.language_error(source, bundle))
        for name, (family, parts) in families.OTHERS.items():
            made = str(families.make(Path(folder) / name, family))
            for part in parts:
                source = f"{made}:{part}" if part else made
                yield measure(f"{name}:{part}" if part else name, source,
                              lambda bundle, source=source: families.other_error(source, bundle))
    for name in torch_zoo.NETS:
        module, x = torch_zoo.build(name)
        yield measure(name, module, lambda bundle, module=module, x=x: _torch_error(module, x, bundle),
                      example_inputs=(x,))


def _torch_error(module: Any, x: Any, bundle: Path) -> float:
    import torch

    from edgec.native.session import Model
    from tests.models import families

    with torch.no_grad():
        result = module(x)
    with Model(bundle) as model, model.session() as session:
        found = session.run({model.inputs[0].name: x.numpy()})
        pairs = [(found[p.name], t.numpy()) for p, t in
                 zip(model.outputs, result if isinstance(result, tuple) else (result,), strict=True)]
    return families.worst_of(families.relative_error(a, b) for a, b in pairs)


def main() -> int:
    from tests.models import families

    text, wrong = HEAD.format(prompt=families.PROMPT, steps=families.STEPS, tolerance=families.TOLERANCE), 0
    for row in rows():
        print(row, flush=True)
        text += f"{row}\n"
        if not row.error <= families.TOLERANCE:
            print(f"{row.family}: error {row.error:.1e}, wanted {families.TOLERANCE:.0e}", file=sys.stderr, flush=True)
            wrong += 1
    (ROOT / "docs" / "models.md").write_text(text, encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
