"""Which weights are layers, which of them are quantized and how, and what overrides do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compress.formats import BitsSpec, PaletteSpec
from edgec.compress.layers import Layer, find_layers, weight_of
from edgec.compress.policy import Override, choose, needs_calibration, parse_override, parse_spec
from edgec.errors import EdgecError
from tests.models import graphs_for_quantization as graphs

DEFAULT = BitsSpec(2)


def layers_of(model: ir.Model) -> dict[str, Layer]:
    return {layer.name: layer for layer in find_layers(model)}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    return graphs.normalized_lm(tmp_path_factory.mktemp("lm"), "llama_mha_tied")


def test_layers_of_a_language_model(llama: ir.Model) -> None:
    layers = layers_of(llama)
    linears = [n for n, x in layers.items() if x.kind == "linear" and not x.table]
    assert len(linears) == 14
    tied = layers["model.embed_tokens.weight"]
    assert (tied.kind, tied.head, tied.table, tied.rows, tied.columns) == ("linear", True, True, 97, 64)
    assert not any(x.head or x.table for n, x in layers.items() if n in linears)
    # The rotary tables are looked up by position, not by the caller's ids.
    assert all(layers[n].refused for n in layers if "rotary" in n)
    q = layers["model.layers.0.self_attn.q_proj.weight"]
    k = layers["model.layers.0.self_attn.k_proj.weight"]
    assert q.source is k.source
    assert q.source is not layers["model.layers.0.self_attn.o_proj.weight"].source


def test_defaults_of_a_language_model(llama: ir.Model) -> None:
    chosen, kept = choose(find_layers(llama), DEFAULT)
    specs = {c.layer.name: str(c.spec) for c in chosen}
    assert specs["model.embed_tokens.weight"] == "hlq4g128"
    assert {s for n, s in specs.items() if "layers" in n} == {"hlq2g128"}
    assert {k.name for k in kept} == {n for n in layers_of(llama) if "rotary" in n}
    assert len(needs_calibration(chosen)) == 14
    # What already has more bits keeps them.
    assert {str(c.spec) for c in choose(find_layers(llama), BitsSpec(8, 32, True))[0]} == {"int8g32"}


def test_tables_that_are_only_looked_up_take_uniform_codes(llama: ir.Model) -> None:
    """A tied one is a head too and keeps the format; raised to 4 bits, a table does not pay for small groups."""
    tied = layers_of(llama)["model.embed_tokens.weight"]
    table = replace(tied, head=False)

    def chosen(spec: BitsSpec | PaletteSpec, layer: Layer) -> str:
        return str(choose([layer], spec)[0][0].spec)

    assert chosen(BitsSpec(2, 32), tied) == "hlq4g32"
    # For a backend without bit planes of 4 bits; what the user asked for stays.
    assert [str(choose([tied], BitsSpec(bits, 32), uniform_heads=True)[0][0].spec) for bits in (2, 4)] == [
        "int4g128", "hlq4g32"]
    assert chosen(BitsSpec(2, 32), table) == "int4g128"
    assert chosen(BitsSpec(3, 64, True), table) == "int4g128"
    assert chosen(BitsSpec(4, 64), table) == "int4g64"
    assert chosen(BitsSpec(8, 32, True), table) == "int8g32"
    assert chosen(PaletteSpec(2, 16), table) == "palette4r16"


def test_convolutions() -> None:
    model = graphs.small_cnn()
    layers = layers_of(model)
    reasons = {k.name: k.reason for k in choose(list(layers.values()), DEFAULT)[1]}
    assert reasons == {
        "stem.weight": "the first convolution", "depthwise.weight": "depthwise",
        "narrow.weight": "small: 64 x 8"}
    chosen = {c.layer.name: c for c in choose(list(layers.values()), DEFAULT)[0]}
    assert set(chosen) == {"point.weight", "spatial.weight", "head.weight"}
    assert str(chosen["head.weight"].spec) == "hlq4g128"
    assert (layers["spatial.weight"].rows, layers["spatial.weight"].columns) == (32, 64 * 9)


def test_overrides() -> None:
    layers = find_layers(graphs.small_cnn())
    chosen, kept = choose(layers, DEFAULT, [
        parse_override("*=int8g32"), parse_override("spatial=palette4"), parse_override("head.weight=none")])
    # A glob over everything leaves alone what cannot be quantized; the last one that matches decides.
    assert {c.layer.name: str(c.spec) for c in chosen} == {
        "stem.weight": "int8g32", "point.weight": "int8g32", "narrow.weight": "int8g32", "spatial.weight": "palette4"}
    assert {k.name: k.reason for k in kept} == {"depthwise.weight": "depthwise", "head.weight": "by override"}
    with pytest.raises(EdgecError, match="no such layer") as unknown:
        choose(layers, DEFAULT, [parse_override("heat=int8")])
    assert "head" in unknown.value.hint
    with pytest.raises(EdgecError, match="depthwise"):
        choose(layers, DEFAULT, [parse_override("depthwise=int8")])
    with pytest.raises(EdgecError, match="at least one layer"):
        choose(layers, DEFAULT, [parse_override("*=none")])


def test_weights_that_others_read_are_refused() -> None:
    model = graphs.small_cnn()
    head = next(layer for layer in find_layers(model) if layer.name == "head.weight")
    model.graph.append(ir.node("Relu", [head.weight]))
    again = layers_of(model)["head.weight"]
    assert "also read by Relu" in again.refused


def test_matrix_and_rows_agree_with_the_convolution() -> None:
    """The product of im2col rows and the matrix is what the convolution computes, strides and pads included."""
    import torch

    rng = np.random.default_rng(5)
    layer = layers_of(graphs.small_cnn())["spatial.weight"]
    x = rng.standard_normal((2, 64, 9, 7)).astype(np.float32)
    found = layer.rows_of(x) @ layer.read().T
    weight = torch.from_numpy(weight_of(layer.read(), (32, 64, 3, 3)))
    stored = layer.weight.const_value
    assert stored is not None
    assert np.array_equal(weight.numpy(), stored.numpy())
    wanted = torch.nn.functional.conv2d(torch.from_numpy(x), weight, stride=2, padding=1).numpy()
    np.testing.assert_allclose(found, wanted.transpose(0, 2, 3, 1).reshape(-1, 32), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("text", "spec"), [
    ("hlq2", BitsSpec(2)), ("hlq3g64", BitsSpec(3, 64)), ("int4g32", BitsSpec(4, 32, True)),
    ("palette4", PaletteSpec(4)), ("palette2r16", PaletteSpec(2, 16)),
])
def test_spec_texts(text: str, spec: BitsSpec | PaletteSpec) -> None:
    assert parse_spec(text) == spec
    assert parse_override(f"a.*[0-9]={text}") == Override("a.*[0-9]", spec)


@pytest.mark.parametrize("text", ["", "hlq", "hlq9", "int4g48", "hlq0", "palette", "palette9", "q4_0", "hlq2 "])
def test_bad_specs(text: str) -> None:
    with pytest.raises(EdgecError, match="--quant"):
        parse_spec(text)


@pytest.mark.parametrize("text", ["", "a", "=int4", "a=", "a=b=c", "a=int99"])
def test_bad_overrides(text: str) -> None:
    with pytest.raises(EdgecError, match="--quant-override"):
        parse_override(text)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = graphs.small_cnn()
    layer = layers_of(model)["head.weight"]
    values = layer.read()
    values[3, 5] = np.nan
    layer.weight.const_value = ir.tensor(values, name=layer.name)
    with pytest.raises(EdgecError, match="infinity or NaN"):
        layer.read()


def test_reading_does_not_give_away_the_model(tmp_path: Path) -> None:
    layer = layers_of(graphs.small_cnn())["head.weight"]
    layer.read()[:] = 0
    assert layer.read().any()


def test_matrices_that_tiles_make_no_smaller_are_kept() -> None:
    model = graphs.small_cnn(classes=10)
    # 64-row tiles: a head of 10 rows takes more than six times its bits.
    reasons = {k.name: k.reason for k in choose(find_layers(model), BitsSpec(3, 32, True))[1]}
    assert "bits per weight in int4g32" in reasons["head.weight"]
    reasons = {k.name: k.reason for k in choose(find_layers(model), PaletteSpec(4))[1]}
    assert "bits per weight in palette4" in reasons["head.weight"]
