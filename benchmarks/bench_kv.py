"""Claim: caches of 8 and 4 bits cost little quality and no time: docs/kv_cache.md shows the figures.

Four formats of one cache, in turn in one process. `attention`: a model that is nothing but an attention layer over 2048
positions of normally distributed queries, keys and values, which tells what the format does to the result (against
float64) and to the layer's time. `prose_lm decode`: a trained model at the same context, with all of a token's work.
`quality`: its perplexity within the 256 tokens that it was trained on, with the interval of the difference to f32 over
the same windows.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from harness import RESULTS, ROOT, WORK, asset
from onnx import TensorProto, helper, numpy_helper

import edgec
from edgec import Model, Session
from edgec.ir.info import ModelInfo, attach_info
from edgec.judge.bundle import BUNDLE
from edgec.judge.speed import Samples
from edgec.native.bundle import write_bundle
from edgec.native.lower import build_plan
from edgec.targets.devices import host

FORMATS = ("f32", "f16", "int8", "int4")
CONTEXT, WINDOW, BASE = 2048, 256, "f16"
SETTLE = 0.06  # seconds: workers of the session before fall asleep
# (heads of keys, queries per head of keys, width): of TinyLlama, Llama 3.2 1B, Qwen3 0.6B, Llama-like models without
# groups, Phi-2.
SHAPES = ((4, 8, 64), (8, 4, 64), (8, 2, 128), (32, 1, 64), (32, 1, 80))
SOURCE = "examples/models/prose_lm"


def attention_model(hkv: int, group: int, width: int) -> tuple[ir.Model, dict[str, Any]]:
    """Token t stands for row t of q, k and v, and the logits are the layer's result; with the three tables."""
    rng = np.random.default_rng([hkv, group, width])
    sizes = {"q": hkv * group * width, "k": hkv * width, "v": hkv * width}
    tables = {n: rng.standard_normal((CONTEXT, size), np.float32) for n, size in sizes.items()}
    nodes = [helper.make_node("Gather", [f"{n}.table", "input_ids"], [n], name=n) for n in sizes]
    nodes.append(helper.make_node(
        "CachedAttention", ["q", "k", "v", "key_cache.0", "value_cache.0", "past_len"],
        ["logits", "key_cache_out.0", "value_cache_out.0"], name="attention", domain="edgec", q_num_heads=hkv * group,
        kv_num_heads=hkv, scale=width**-0.5))
    caches = [f"{n}_cache{{}}.0" for n in ("key", "value")]
    value, real = helper.make_tensor_value_info, TensorProto.FLOAT
    cache = [1, hkv, "context", width]
    graph = helper.make_graph(
        nodes, "attention",
        [value("input_ids", TensorProto.INT64, [1, "seq"]), value("past_len", TensorProto.INT64, []),
         *(value(c.format(""), real, cache) for c in caches)],
        [value("logits", real, [1, "seq", sizes["q"]]), *(value(c.format("_out"), real, cache) for c in caches)],
        [numpy_helper.from_array(table, f"{n}.table") for n, table in tables.items()])
    imports = [helper.make_opsetid("", 24), helper.make_opsetid("edgec", 1)]
    made = ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=11))
    info = ModelInfo(task="causal-lm", name="attention", max_context=CONTEXT, vocab_size=sizes["q"])
    return attach_info(made, info), tables


def exact(tables: dict[str, Any], hkv: int, group: int, width: int) -> Any:
    """The last token's result in float64."""
    k, v = (tables[n].astype(np.float64).reshape(CONTEXT, hkv, width) for n in "kv")
    q = tables["q"][-1].astype(np.float64).reshape(hkv, group, width)
    scores = np.einsum("hgd,thd->hgt", q, k) * width**-0.5
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hgt,thd->hgd", shares / shares.sum(-1, keepdims=True), v).reshape(-1)


def timed(
    sessions: dict[str, Session], ids: Sequence[int], threads: int, turns: int, tokens: int
) -> dict[str, Samples]:
    """Decoding the last `tokens` of `ids` behind the others, each format in turn."""
    past = len(ids) - tokens
    for session in sessions.values():
        session.reset()
        session.step(ids[:past])

    def decode(session: Session) -> None:
        session.seek(past)
        for token in ids[past:]:
            session.step([token])

    # A single thread is timed by what it ran, which other programs on the machine disturb less.
    clock = time.thread_time if threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(turns):
        for name, session in sessions.items():
            time.sleep(SETTLE)
            decode(session)
            start = clock()
            decode(session)
            seconds[name].append(clock() - start)
    return {name: Samples(name, threads, tokens, tuple(values)) for name, values in seconds.items()}


def row(test: str, threads: int, samples: dict[str, Samples]) -> dict[str, Any]:
    base = samples[BASE].seconds
    shown, result = [], {"test": test, "threads": threads, "formats": {n: s.to_dict() for n, s in samples.items()}}
    for name, sample in samples.items():
        ratios = sorted(a / b for a, b in zip(sample.seconds, base, strict=True))
        low, high = (ratios[round(q * (len(ratios) - 1))] for q in (0.1, 0.9))
        ratio = statistics.median(sample.seconds) / statistics.median(base)
        result["formats"][name] |= {"ratio": ratio, "ratio_p10": low, "ratio_p90": high}
        micros = 1e6 * statistics.median(sample.seconds) / sample.work
        shown.append(f"{name} {micros:9.1f} us {ratio:5.2f} ({low:.2f}-{high:.2f})")
    print(f"{test:<22}{threads} threads   " + "   ".join(shown), flush=True)
    return result


def attention_rows(threads: Sequence[int], turns: int) -> list[dict[str, Any]]:
    rows = []
    for shape in SHAPES:
        model, tables = attention_model(*shape)
        test = "attention {}x{} d {}".format(*shape)
        models = {}
        for kv in FORMATS:
            path = WORK / f"kv_{kv}.edgec"
            write_bundle(path, build_plan(model, weights="f32", kv=kv), tokenizer=None, golden=None, manifest={})
            models[kv] = Model(path)
        wanted, ids, errors = exact(tables, *shape), list(range(CONTEXT)), {}
        for kv, opened in models.items():
            with opened.session() as session:
                away = session.step(ids) - wanted
            errors[kv] = float(np.sqrt((away**2).mean() / (wanted**2).mean()))
        print(f"{test:<22}error against float64   " + "   ".join(f"{n} {e:.2e}" for n, e in errors.items()))
        rows.append({"test": test, "relative_rms_error": errors})
        for count in threads:
            sessions = {kv: opened.session(threads=count) for kv, opened in models.items()}
            rows.append(row(test, count, timed(sessions, ids, count, turns, 16)))
            for session in sessions.values():
                session.close()
        for opened in models.values():
            opened.close()
    return rows


def losses(model: Model, windows: Sequence[Sequence[int]]) -> Any:
    """Mean negative log-likelihood of each window's tokens but the first, each from an empty context."""
    found = []
    with model.session(context=WINDOW) as session:
        for ids in windows:
            session.reset()
            logits = session.score(ids)[:-1].astype(np.float64)
            top = logits.max(-1, keepdims=True)
            chosen = logits[np.arange(len(ids) - 1), ids[1:]]
            found.append((np.log(np.exp(logits - top).sum(-1)) + top[:, 0] - chosen).mean())
    return np.array(found)


def model_rows(threads: Sequence[int], turns: int, samples: int) -> list[dict[str, Any]]:
    rows, models, base = [], {}, None
    text = asset("prose/valid.txt").read_text(encoding="utf-8")
    for kv in FORMATS:
        compiled = edgec.compile(SOURCE, WORK / f"prose_lm_{kv}", kv=kv)
        model = models[kv] = Model(WORK / f"prose_lm_{kv}" / BUNDLE)
        tokens = model.tokenize(text, add_special=False)
        pieces = [tokens[i : i + WINDOW] for i in range(0, len(tokens) - WINDOW + 1, WINDOW)]
        found = losses(model, pieces[:: max(1, len(pieces) // samples)][:samples])
        base = found if base is None else base
        change = found - base
        rows.append({
            "test": "quality", "kv": kv, "bytes_per_token": compiled.memory["state_per_token"], "windows": len(found),
            "perplexity": float(np.exp(found.mean())), "loss_change": float(change.mean()),
            "loss_change_95": float(1.96 * change.std(ddof=1) / len(change) ** 0.5)})
        print("   ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    ids = [int(t) for t in np.random.default_rng(0).integers(2, models[BASE].info.vocab_size, CONTEXT)]
    for count in threads:
        sessions = {kv: opened.session(threads=count) for kv, opened in models.items()}
        rows.append(row("prose_lm decode", count, timed(sessions, ids, count, turns, 16)))
        for session in sessions.values():
            session.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-r", "--turns", type=int, default=15, help="turns of each format")
    parser.add_argument("-t", "--threads", default="1,2", help="thread counts, comma-separated")
    parser.add_argument("-n", "--samples", type=int, default=400, help="windows of text")
    chosen = parser.parse_args()
    threads = [int(t) for t in chosen.threads.split(",")]
    WORK.mkdir(parents=True, exist_ok=True)
    rows = attention_rows(threads, chosen.turns) + model_rows(threads, chosen.turns, chosen.samples)
    here = host()
    document = {
        "schema_version": 1, "benchmark": "kv", "edgec_version": edgec.__version__, "context": CONTEXT,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "base": BASE,
        "machine": {"arch": here.arch, "os": here.os, "cores": here.cores, "isa": list(here.isa),
                    "python": platform.python_version()}, "rows": rows,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path: Path = RESULTS / "kv.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
