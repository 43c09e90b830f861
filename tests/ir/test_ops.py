"""The table: its bodies mean the same in the reference evaluator, in onnxruntime as a function and inlined."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from edgec.errors import EdgecError
from edgec.ir.execute import Runner
from edgec.ir.ops import DOMAIN, OPS, attach_bodies, attribute, infer_ops, row_of, strip_bodies
from edgec.native.kv import KV_DTYPES
from tests.native.kv_codes import decode_rows, encode_rows
from tests.passes.harness import Array, close, evaluate, model

HQ, HKV, D, DV, C = 4, 2, 4, 6, 9


def attention(tokens: str = "T", **attributes: float | str) -> ir.Model:
    listed = ", ".join(f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in
                       {"q_num_heads": HQ, "kv_num_heads": HKV, **attributes}.items())
    return model(
        f"g (float[1,{tokens},{HQ * D}] q, float[1,{tokens},{HKV * D}] k, float[1,{tokens},{HKV * DV}] v,"
        f" float[1,{HKV},{C},{D}] kc, float[1,{HKV},{C},{DV}] vc, int64 past_len) =>"
        f" (float[1,{tokens},{HQ * DV}] y, float[1,{HKV},{C},{D}] ok, float[1,{HKV},{C},{DV}] ov) {{"
        f" y, ok, ov = edgec.CachedAttention<{listed}>(q, k, v, kc, vc, past_len) }}", domains={"edgec": 1})


def feeds(tokens: int, past: int) -> dict[str, Array]:
    rng = np.random.default_rng(tokens * 100 + past)
    shapes = {"q": (1, tokens, HQ * D), "k": (1, tokens, HKV * D), "v": (1, tokens, HKV * DV), "kc": (1, HKV, C, D),
              "vc": (1, HKV, C, DV)}
    made: dict[str, Array] = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    for name in ("kc", "vc"):
        made[name][:, :, past:] = 0
    made["past_len"] = np.array(past)
    return made


def plain(x: dict[str, Array], scale: float, softcap: float, window: int) -> dict[str, Array]:
    """The same in loops over heads and tokens, in float64."""
    past, tokens = int(x["past_len"]), x["q"].shape[1]
    keys, values = x["kc"].astype(np.float64), x["vc"].astype(np.float64)
    keys[0, :, past:past + tokens] = x["k"].reshape(tokens, HKV, D).transpose(1, 0, 2)
    values[0, :, past:past + tokens] = x["v"].reshape(tokens, HKV, DV).transpose(1, 0, 2)
    y = np.zeros((1, tokens, HQ, DV))
    for h in range(HQ):
        for t in range(tokens):
            low = max(0, past + t - window + 1) if window else 0
            seen = slice(low, past + t + 1)
            s = keys[0, h // (HQ // HKV), seen] @ x["q"].reshape(tokens, HQ, D)[t, h].astype(np.float64) * scale
            s = np.tanh(s / softcap) * softcap if softcap else s
            p = np.exp(s - s.max())
            y[0, t, h] = p / p.sum() @ values[0, h // (HQ // HKV), seen]
    f32 = np.float32
    return {"y": y.reshape(1, tokens, -1).astype(f32), "ok": keys.astype(f32), "ov": values.astype(f32)}


@pytest.mark.parametrize("engine", ["reference", "onnxruntime", "inlined"])
@pytest.mark.parametrize(("scale", "softcap", "window"), [(0.5, 0.0, 0), (1.0, 0.0, 3), (0.7, 1.5, 0), (0.7, 1.5, 2)])
@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (1, 8), (3, 0), (3, 4), (9, 0), (2, 7)])
def test_cached_attention(engine: str, scale: float, softcap: float, window: int, tokens: int, past: int) -> None:
    graph = attention(scale=scale, softcap=softcap, window=window)
    x = feeds(tokens, past)
    if engine == "inlined":
        common.InlinePass()(attach_bodies(graph))
        assert not graph.functions
    found = evaluate(graph, x, "reference" if engine == "inlined" else engine)
    close(found, plain(x, scale, softcap, window), 1e-5)


def stored(kv_format: str, x: Array) -> Array:
    """Numbers as a cache gives them back; the last axis is a head's."""
    if kv_format == "f16":
        return x.astype(np.float16).astype(np.float32)
    return decode_rows(KV_DTYPES[kv_format], encode_rows(KV_DTYPES[kv_format], x), x.shape[-1])


@pytest.mark.parametrize("engine", ["reference", "onnxruntime"])
@pytest.mark.parametrize("kv_format", ["f16", "int8", "int4"])
@pytest.mark.parametrize("width", [4, 32, 37, 64])
def test_the_body_keeps_what_a_session_stores(engine: str, kv_format: str, width: int) -> None:
    rng = np.random.default_rng(width)
    new, kept = (1, 3, width), (1, 1, 5, width)
    shapes = {"q": (1, 3, 2 * width), "k": new, "v": new, "kc": kept, "vc": kept}
    x: dict[str, Array] = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    x["k"][0, 1], x["v"][0, 1] = 0, 1e6 * x["v"][0, 1]  # nothing but zeros; beyond what f16 holds
    x["k"][0, 2, width // 2] = 90  # far from the others
    x["past_len"] = np.array(1)
    graph = model(
        f"g (float[1,T,{2 * width}] q, float[1,T,{width}] k, float[1,T,{width}] v, float[1,1,5,{width}] kc,"
        f" float[1,1,5,{width}] vc, int64 past_len) => (float[1,T,{2 * width}] y, float[1,1,5,{width}] ok,"
        f" float[1,1,5,{width}] ov) {{ y, ok, ov = edgec.CachedAttention<q_num_heads = 2, kv_num_heads = 1,"
        f" kv_format = \"{kv_format}\">(q, k, v, kc, vc, past_len) }}", domains={"edgec": 1})
    with np.errstate(over="ignore", invalid="ignore"):
        found = evaluate(graph, x, engine)
        for cache, new, out in (("kc", "k", "ok"), ("vc", "v", "ov")):
            wanted = x[cache].copy()
            wanted[0, 0, 1:4] = stored(kv_format, x[new][0])
            np.testing.assert_allclose(found[out], wanted, rtol=1e-6, atol=1e-9, err_msg=out)


def test_a_format_that_does_not_exist() -> None:
    node = next(iter(attention(kv_format="int2").graph))
    [problem] = OPS["CachedAttention"].problems(node)
    assert problem == "attribute kv_format = 'int2', wants one of f32, f16, int8, int4"


def test_chunks_equal_one_pass() -> None:
    graph = attention(scale=0.5, window=4)
    whole = feeds(7, 0)
    once = evaluate(graph, whole)
    kc, vc = whole["kc"], whole["vc"]
    parts = []
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        part = {n: whole[n][:, start:stop] for n in ("q", "k", "v")} | {"kc": kc, "vc": vc, "past_len": np.array(start)}
        out = evaluate(graph, part)
        kc, vc = out["ok"], out["ov"]
        parts.append(out["y"])
    np.testing.assert_allclose(np.concatenate(parts, 1), once["y"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(kc, once["ok"])


@pytest.mark.parametrize("name", sorted(OPS))
def test_bodies_are_valid_functions_with_the_declared_signature(name: str) -> None:
    row, function = OPS[name], OPS[name].function()
    assert function.identifier() == (DOMAIN, name, "")
    assert tuple(v.name for v in function.inputs) == row.inputs
    assert tuple(v.name for v in function.outputs) == row.outputs
    assert set(function.attributes) == set(row.attributes)
    for key, default in row.attributes.items():
        value = function.attributes[key].value
        assert (value == pytest.approx(default)) if default is not None else value is None
    assert all(node.domain == "" for node in function)


def test_bodies_are_copies() -> None:
    first, second = OPS["CachedAttention"].function(), OPS["CachedAttention"].function()
    assert first is not second
    assert not set(first) & set(second)


def test_attach_and_strip() -> None:
    graph = attention()
    attach_bodies(attach_bodies(graph))
    assert list(graph.functions) == [(DOMAIN, "CachedAttention", "")]
    node = next(iter(graph.graph))
    assert node.attributes["scale"].as_float() == 1.0
    onnx.checker.check_model(ir.to_proto(graph))
    assert not strip_bodies(graph).functions


def test_attach_leaves_other_models_alone() -> None:
    graph = model("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    attach_bodies(graph)
    assert not graph.functions
    assert DOMAIN not in graph.opset_imports


def test_inference() -> None:
    graph = attention()
    node = next(iter(graph.graph))
    for value in node.outputs:
        value.shape, value.type = None, None
    assert infer_ops(graph)
    assert [str(v.shape) for v in node.outputs] == ["[1,T,24]", "[1,2,9,4]", "[1,2,9,6]"]
    assert all(v.dtype == ir.DataType.FLOAT for v in node.outputs)
    assert not infer_ops(graph)


def test_cost() -> None:
    node = next(iter(attention().graph))
    cost = OPS["CachedAttention"].cost(node, {"T": 3})
    assert cost.flops == 2 * HQ * 3 * C * (D + DV)
    assert cost.bytes == 4 * (HKV * C * (D + DV) + 3 * (HQ + HKV) * (D + DV))
    with pytest.raises(EdgecError) as caught:
        OPS["CachedAttention"].cost(node, {})
    assert caught.value.code == "E0302"
    assert "'T'" in str(caught.value) or "dim T" in str(caught.value)


def test_attribute() -> None:
    node = next(iter(attention(window=3).graph))
    assert attribute(node, "window") == 3
    assert attribute(node, "kv_format") == "f32"
    with pytest.raises(EdgecError):
        attribute(node, "heads")


def test_problems_of_a_use() -> None:
    node = ir.node("CachedAttention", [None], {"windw": 3, "q_num_heads": 2}, domain=DOMAIN)
    row = row_of(node)
    assert row is not None
    text = "\n".join(row.problems(node))
    for part in ("inputs 1", "1 outputs", "'windw'", "'kv_num_heads' is missing"):
        assert part in text


def test_unknown_operator_is_an_error() -> None:
    with pytest.raises(EdgecError) as caught:
        row_of(ir.node("Nonsense", [], domain=DOMAIN))
    assert "CachedAttention" in str(caught.value)
    assert row_of(ir.node("Relu", [])) is None


def test_a_row_that_contradicts_itself_is_refused() -> None:
    row = OPS["CachedAttention"]
    with pytest.raises(ValueError, match="disagree"):
        replace(row, attributes=MappingProxyType({**row.attributes, "window": 0.5}))


def test_onnxruntime_runs_the_function_uninlined() -> None:
    with Runner(attention(), "test") as runner:
        assert runner.run(feeds(2, 1))["y"].shape == (1, 2, HQ * DV)
