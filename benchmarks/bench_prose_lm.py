"""Claim: a small Llama model prefills and decodes not slower than onnxruntime; both sides in turn, 1 and 2 threads.

onnxruntime runs the graph the importer made, with its key/value cache kept as OrtValues between steps (no copy to
Python), which is how its own generation loop works. That graph computes the logits of every token: `pp` is ours as we
prefill (the last token's logits only), `score` is equal work on both sides. Both sides compute in fp32 on fp32
weights; the second set of rows shows our default, which stores losslessly narrowed weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from harness import WORK, Report, arguments, compiled, ort_session

import edgec
from edgec import Model, Session, importers
from edgec.ir.execute import save
from edgec.judge.bundle import BUNDLE

SOURCE = "examples/models/prose_lm"
PROMPT, DECODE = 128, 32


class OrtModel:
    """The imported graph as onnxruntime runs it: step(tokens) -> logits, the cache stays inside."""

    def __init__(self, path: Any, threads: int) -> None:
        self.session = ort_session(path, threads)
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]
        self.caches = [n for n, i in self.inputs.items() if len(i.shape) == 4]
        self.reset()

    def reset(self) -> None:
        import onnxruntime as ort

        self.past = 0
        self.cache = {}
        for name in self.caches:
            _, heads, _, size = self.inputs[name].shape
            empty = np.zeros((1, heads, 0, size), np.float32)
            self.cache[name] = ort.OrtValue.ortvalue_from_numpy(empty)

    def step(self, tokens: list[int]) -> Any:
        import onnxruntime as ort

        n = len(tokens)
        feeds = {
            "input_ids": np.asarray([tokens], np.int64),
            "attention_mask": np.ones((1, self.past + n), np.int64),
            "position_ids": np.arange(self.past, self.past + n, dtype=np.int64)[None],
        }
        values = {k: ort.OrtValue.ortvalue_from_numpy(v) for k, v in feeds.items() if k in self.inputs} | self.cache
        results = self.session.run_with_ort_values(self.outputs, values)
        # Present values come in the order of the past ones, after the logits.
        self.cache = dict(zip(self.caches, results[1:], strict=True))
        self.past += n
        return results[0].numpy()[0, -1]


def rows(report: Report, label: str, model: Model, graph: Any, threads: list[int], turns: int) -> None:
    rng = np.random.default_rng(0)
    ids = [int(t) for t in rng.integers(0, model.info.vocab_size, PROMPT + DECODE)]
    for count in threads:
        theirs = OrtModel(graph, count)
        with model.session(threads=count, context=PROMPT + DECODE) as ours:
            error = float(np.abs(ours.step(ids[:PROMPT]) - theirs.step(ids[:PROMPT])).max())
            if not error < 1e-2:
                raise SystemExit(f"error: logits differ by {error}: timing wrong answers says nothing")

            def prefill(side: Session | OrtModel) -> None:
                side.reset()
                side.step(ids[:PROMPT])

            def score(side: Session | OrtModel) -> None:
                side.reset()
                (side.step if isinstance(side, OrtModel) else side.score)(ids[:PROMPT])

            def decode(side: Session | OrtModel) -> None:
                side.reset()
                for token in ids[PROMPT:]:
                    side.step([token])

            for name, work, run in (
                (f"pp{PROMPT}", PROMPT, prefill), (f"score{PROMPT}", PROMPT, score), (f"tg{DECODE}", DECODE, decode),
            ):
                report.add(f"{name} {label}", count, work, lambda r=run, s=ours: r(s), lambda r=run, s=theirs: r(s),
                           turns)


def main() -> None:
    chosen = arguments(__doc__ or "", turns=10)
    WORK.mkdir(parents=True, exist_ok=True)
    graph = WORK / "prose_lm.onnx"
    save(importers.load(SOURCE, check=False), graph)
    edgec.compile(SOURCE, WORK / "prose_lm_f32", weights="f32")
    report = Report("prose_lm")
    with Model(WORK / "prose_lm_f32" / BUNDLE) as model:
        rows(report, "fp32", model, graph, chosen.threads, chosen.turns)
    with Model(compiled(SOURCE, "prose_lm")) as model:
        rows(report, "auto", model, graph, chosen.threads, chosen.turns)
        report.write(isa=model.info.isa, model=SOURCE)


if __name__ == "__main__":
    main()
