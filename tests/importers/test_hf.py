"""The Hugging Face door: both routes, the check that chooses, what is read and what is refused."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.importers import hf, hf_check, hf_source, hf_transformers, load
from edgec.importers.check import difference, runner
from edgec.importers.reference import load_reference
from edgec.ir.info import info_of
from tests.models import tiny_lm

Make = Callable[[str], Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = tiny_lm.make(tmp_path_factory.mktemp(family), family)
        return made[family]

    return get


def logits_agree(model: ir.Model, folder: Path) -> None:
    tokens = np.random.default_rng(9).integers(0, info_of(model).vocab_size, 37)
    wanted = load_reference(folder).logits(tokens.tolist())
    with runner(model) as session:
        for cuts in ((), (20, 21)):
            gap = difference(hf_check.run_graph(session, model, tokens, cuts), wanted)
            assert gap.within(1e-4), str(gap)


@pytest.mark.parametrize(
    ("family", "route"),
    [
        ("llama", "mobius"), ("llama_mha_tied", "mobius"), ("llama3_rope", "mobius"), ("mistral", "mobius"),
        ("qwen2", "mobius"), ("qwen3", "mobius"), ("phi3", "mobius"), ("gemma3", "mobius"),
        # mobius has no bias in the MLP, and leaves these windows and the soft cap's mask out or wrong.
        ("llama_bias", "torch"), ("mistral_window", "torch"), ("gemma2", "torch"),
    ],
)
def test_families(tiny: Make, family: str, route: str) -> None:
    model = load(tiny(family))
    assert model.metadata_props[hf.ROUTE_KEY] == route
    logits_agree(model, tiny(family))


def test_window_longer_than_the_prompt_is_checked(tiny: Make) -> None:
    # With its own weights and a short prompt this model agrees; only the tiny sibling shows that mobius has no window.
    folder = hf_source.read(tiny("mistral_long_window"))
    with hf.offline(), hf.quiet():
        config = hf_transformers.read_config(folder)
        model = hf.build_with_mobius(folder, config)
        with pytest.raises(EdgecError) as caught:
            hf_check.verify(model, folder, config, hf.build_with_mobius)
    assert caught.value.code == "E0104"
    assert "window of 8" in caught.value.found


def test_big_models_are_checked_as_a_tiny_sibling(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_check, "_BIG", 1000)
    loaded: list[Path] = []
    real = hf_transformers.load_transformers
    monkeypatch.setattr(hf_transformers, "load_transformers", lambda f, *rest: loaded.append(f.path) or real(f, *rest))
    model = load(tiny("qwen3"))
    assert model.metadata_props[hf.ROUTE_KEY] == "mobius"
    assert tiny("qwen3") not in loaded
    assert len(loaded) == 1


def test_forced_fallback(prose_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(folder: Any, config: Any) -> ir.Model:
        raise EdgecError("E0103", stage="import", found="forced")

    monkeypatch.setattr(hf, "build_with_mobius", fails)
    model = load(prose_lm)
    assert model.metadata_props[hf.ROUTE_KEY] == "torch"
    # The head and the embedding are one tensor in the files and stay one.
    shapes = [list(v.shape.numpy()) for v in model.graph.initializers.values() if v.shape is not None]
    assert shapes.count([4096, 256]) == 1
    logits_agree(model, prose_lm)


def test_nothing_agrees(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_check, "RTOL", 0.0)
    monkeypatch.setattr(hf_check, "difference", lambda a, b: difference(a, b + np.float32(1)))
    with pytest.raises(EdgecError) as caught:
        load(tiny("llama"))
    assert caught.value.code == "E0104"
    assert "mobius: largest difference" in caught.value.found
    assert "torch: largest difference" in caught.value.found


def test_information(prose_lm: Path) -> None:
    model = load(prose_lm, name="prose")
    info = info_of(model)
    assert (info.task, info.name, info.vocab_size, info.max_context) == ("causal-lm", "prose", 4096, 2048)
    assert (info.bos_token, info.eos_tokens) == (0, (1,))
    assert info.tokenizer == (prose_lm / "tokenizer.json").resolve()
    import hashlib

    assert model.graph.name == "prose"
    assert info.source_sha256 == hashlib.sha256((prose_lm / "model.safetensors").read_bytes()).hexdigest()
    paths = {n.metadata_props.get("namespace") for n in model.graph}
    assert "model.layers.3.mlp.down_proj" in paths
    assert "lm_head" in paths


def test_several_end_tokens(tiny: Make, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny("llama"), folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7, 5000], "bos_token_id": 3}))
    info = info_of(load(folder, check=False))
    assert (info.bos_token, info.eos_tokens) == (3, (2, 7))


def test_weights_stay_in_their_file(prose_lm: Path) -> None:
    model = load(prose_lm, check=False)
    weights = [v.const_value for v in model.graph.initializers.values() if v.name and v.name.endswith("proj.weight")]
    assert len(weights) == 6 * 7
    for tensor in weights:
        assert isinstance(tensor, ir.LazyTensor)
        assert not tensor.cache
        assert tensor.dtype == ir.DataType.FLOAT


def test_no_network(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", no)
    monkeypatch.setattr(socket, "getaddrinfo", no)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    load(tiny("llama"), check=False)
    import os

    assert os.environ["HF_HUB_OFFLINE"] == "0"


def test_links_as_in_the_hub_cache(tiny: Make, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(tiny("llama").iterdir())):
        shutil.copy(file, blobs / str(i))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(i))
    logits_agree(load(snapshot), snapshot)


def test_shards(tiny: Make, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "sharded"
    shutil.copytree(tiny("llama"), folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({k: state[k] for k in keys}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {k: file for file, keys in parts.items() for k in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    logits_agree(load(folder), folder)


@pytest.mark.parametrize("keep", [0, 4, 60, 0.5])
def test_truncated_weights(tiny: Make, tmp_path: Path, keep: float) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny("llama"), folder)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: int(keep if keep != 0.5 else len(data) / 2)])
    with pytest.raises(EdgecError) as caught:
        load(folder)
    assert caught.value.code == "E0101"
    assert "model.safetensors" in caught.value.where


def test_missing_tensor(tiny: Make, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "less"
    shutil.copytree(tiny("llama"), folder)
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EdgecError) as caught:
        load(folder)
    assert caught.value.code == "E0101"
    assert "model.layers.1.mlp.up_proj.weight" in caught.value.found


@pytest.mark.parametrize(("key", "value"), [("max_position_embeddings", 1 << 40), ("vocab_size", -3)])
def test_absurd_sizes(tiny: Make, tmp_path: Path, key: str, value: int) -> None:
    folder = tmp_path / "absurd"
    shutil.copytree(tiny("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    config[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EdgecError) as caught:
        load(folder)
    assert caught.value.code == "E0103"
    assert key in caught.value.found


def test_unknown_family(tiny: Make, tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    shutil.copytree(tiny("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="nobody_knows", architectures=["NobodyForCausalLM"])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EdgecError) as caught:
        load(folder)
    assert caught.value.code == "E0103"
    assert "nobody_knows" in caught.value.found
