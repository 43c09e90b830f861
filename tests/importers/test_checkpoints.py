"""Whole checkpoints that are not float safetensors: imported, compared with transformers, compiled, run."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec import env
from edgec.errors import EdgecError
from edgec.importers import hf, hf_check, load
from edgec.importers.check import difference, runner
from edgec.importers.reference import load_reference
from edgec.importers.stored import open_safetensors
from edgec.ir.info import info_of
from edgec.ir.model import walk
from tests.importers.gguf_writer import write_gguf
from tests.importers.test_quantized import bit_stream
from tests.models import tiny_lm

Array = np.ndarray[Any, Any]
SIZE = 16


def rounded(weight: Array) -> tuple[Array, Array, Array]:
    """4-bit codes, zeros and scales of [N, K] in groups of 16 columns."""
    blocks = weight.reshape(weight.shape[0], -1, SIZE)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    scale = ((high - low) / 15).astype(np.float16)
    zero = np.clip(np.round(-low / scale.astype(np.float32)), 1, 15).astype(np.uint32)
    codes = np.clip(np.round(blocks / scale[..., None].astype(np.float32)) + zero[..., None], 0, 15).astype(np.uint32)
    return codes.reshape(weight.shape), zero, scale


def quantize_folder(folder: Path, method: str) -> dict[str, Array]:
    """Rewrites a float folder as a GPTQ or compressed-tensors one; returns the dense weights that it now means."""
    from safetensors.numpy import save_file

    file = folder / "model.safetensors"
    tensors, dense = {}, {}
    for name, tensor in open_safetensors(file).items():
        values = tensor.read()
        if "_proj" not in name or values.ndim != 2:
            tensors[name] = dense[name] = values
            continue
        codes, zero, scale = rounded(values)
        stem, group = name.removesuffix(".weight"), np.arange(values.shape[1]) // SIZE
        dense[name] = (codes.astype(np.float32) - zero[:, group]) * scale[:, group].astype(np.float32)
        if method == "gptq":
            tensors |= {f"{stem}.qweight": bit_stream(codes.T, 4), f"{stem}.qzeros": bit_stream(zero - 1, 4).T,
                        f"{stem}.scales": scale.T, f"{stem}.g_idx": group.astype(np.int32)}
        else:
            tensors |= {f"{stem}.weight_packed": bit_stream(codes.T, 4).T, f"{stem}.weight_scale": scale,
                        f"{stem}.weight_zero_point": bit_stream(zero, 4),
                        f"{stem}.weight_shape": np.array(values.shape)}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, file)
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": SIZE}
    settings: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": SIZE, "desc_act": False}
    if method != "gptq":
        settings = {"quant_method": method, "format": "pack-quantized",
                    "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return dense


def agrees(source: Path, **options: Any) -> Any:
    """Imports, and compares the graph's logits with those of transformers; returns the model."""
    model = load(source, **options)
    tokens = np.random.default_rng(9).integers(0, info_of(model).vocab_size, 37)
    wanted = load_reference(source, **options).logits(tokens.tolist())
    with runner(model) as session:
        gap = difference(hf_check.run_graph(session, model, tokens, (20, 21)), wanted)
    assert gap.within(1e-4), str(gap)
    return model


@pytest.mark.parametrize(("family", "method", "route"), [
    ("llama", "gptq", "mobius"), ("qwen2", "compressed-tensors", "mobius"), ("phi3", "gptq", "mobius"),
    ("llama_bias", "gptq", "torch"),
])
def test_quantized_folder(tmp_path: Path, family: str, method: str, route: str) -> None:
    folder = tiny_lm.make(tmp_path, family)
    dense = quantize_folder(folder, method)
    model = agrees(folder)
    assert model.metadata_props[hf.ROUTE_KEY] == route
    # The reference, too, has the weights that the checkpoint means.
    module = load_reference(folder).module
    for name, values in dense.items():
        np.testing.assert_array_equal(module.state_dict()[name].numpy(), values)
    linears = sum("_proj" in name and values.ndim == 2 for name, values in dense.items())
    assert sum(node.op_type == "DequantizeLinear" for node in walk(model)) >= linears
    assert not any("_proj.weight" in name and "codes" not in name for name in model.graph.initializers)


def test_quantized_folder_compiles_and_runs(tmp_path: Path, prose_lm: Path) -> None:
    import edgec

    folder = tiny_lm.make(tmp_path / "m", "llama")
    quantize_folder(folder, "gptq")
    edgec.compile(str(folder), tmp_path / "out")
    runs_alike(tmp_path / "out" / "model.edgec", folder)


def runs_alike(bundle: Path, source: Path) -> None:
    import edgec

    # Scalar kernels multiply weights of few bits exactly; tests/native/test_low_bit_models.py has the others' bounds.
    with env.ISA.override("scalar"):
        report = edgec.compare(bundle, str(source), tokens=40)
    assert report["outputs"]["logits"]["max_rel"] < 1e-4, report
    assert report["greedy"]["equal"] == report["greedy"]["tokens"] > 0, report


GGUF_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
GGUF_LAYER = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
              "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
              "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
              "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def q8_0(values: Array) -> bytes:
    blocks = values.reshape(-1, 32)
    scale = (np.abs(blocks).max(-1, keepdims=True) / 127).astype(np.float16)
    codes = np.round(blocks / scale.astype(np.float32)).astype(np.int8)
    return b"".join(d.tobytes() + q.tobytes() for d, q in zip(scale, codes, strict=True))


def gguf_of(folder: Path, file: Path, **more: Any) -> tuple[Path, dict[str, Array]]:
    """A tiny model as llama.cpp would store it, matrices as Q8_0; and the dense weights it now means."""
    config = json.loads((folder / "config.json").read_text())
    kind, heads, kv = config["model_type"], config["num_attention_heads"], config["num_key_value_heads"]
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]] = {}
    dense: dict[str, Array] = {}
    for name, tensor in open_safetensors(folder / "model.safetensors").items():
        stem, _, part = name.rpartition(".")
        values = tensor.read()
        if stem.startswith("model.layers."):
            _, _, layer, rest = stem.split(".", 3)
            target = f"blk.{layer}.{GGUF_LAYER[rest]}.{part}"
        else:
            target = f"{GGUF_NAMES[stem]}.{part}"
        stored = values
        if kind == "llama" and stem.endswith(("q_proj", "k_proj")):
            count = heads if stem.endswith("q_proj") else kv
            stored = values.reshape(count, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            tensors[target] = (8, values.shape, q8_0(stored))
            scale = np.frombuffer(q8_0(values), np.uint8).reshape(-1, 34)
            d = np.ascontiguousarray(scale[:, :2]).view("<f2").astype(np.float32)
            dense[name] = (np.ascontiguousarray(scale[:, 2:]).view(np.int8) * d).reshape(values.shape)
        else:
            tensors[target] = (0, values.shape, stored.astype("<f4").tobytes())
            dense[name] = values
    pairs = {
        "general.architecture": kind, f"{kind}.block_count": config["num_hidden_layers"],
        f"{kind}.embedding_length": config["hidden_size"], f"{kind}.feed_forward_length": config["intermediate_size"],
        f"{kind}.attention.head_count": heads, f"{kind}.attention.head_count_kv": kv,
        f"{kind}.attention.key_length": config["head_dim"], f"{kind}.rope.freq_base": 10000.0,
        f"{kind}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{kind}.context_length": config["max_position_embeddings"], **more,
    }
    return write_gguf(file, pairs, tensors), dense


@pytest.mark.parametrize("family", ["llama", "llama_mha_tied", "qwen2", "qwen3"])
def test_gguf(tmp_path: Path, family: str) -> None:
    file, dense = gguf_of(tiny_lm.make(tmp_path, family), tmp_path / "tiny.gguf")
    model = agrees(file)
    assert info_of(model).name == "tiny"
    module = load_reference(file).module
    for name, values in dense.items():
        np.testing.assert_array_equal(module.state_dict()[name].numpy(), values)


def test_gguf_compiles_and_runs(tmp_path: Path) -> None:
    import edgec

    file, _ = gguf_of(tiny_lm.make(tmp_path / "m", "qwen3"), tmp_path / "tiny.gguf")
    edgec.compile(str(file), tmp_path / "out")
    runs_alike(tmp_path / "out" / "model.edgec", file)
    stored = edgec.inspect(tmp_path / "out")["storage"]
    kernels = Counter(tuple(w["kernels"]) for w in stored if w["form"] == "int8g32")
    # Per layer: query, key and value in one call, gate and up in another.
    assert kernels == {("gather_bits", "linear_bits"): 1, ("linear_bits_split",): 10, ("linear_bits",): 4}


def test_gguf_with_a_tokenizer(tmp_path: Path, prose_lm: Path) -> None:
    from tokenizers import Tokenizer

    source = json.loads((prose_lm / "tokenizer.json").read_text())
    vocab = source["model"]["vocab"] | {t["content"]: t["id"] for t in source["added_tokens"]}
    kinds = [1] * len(vocab)
    for token in source["added_tokens"]:
        kinds[token["id"]] = 3
    merges = [m if isinstance(m, str) else " ".join(m) for m in source["model"]["merges"]]
    folder = tiny_lm.make(tmp_path / "m", "llama")
    file, _ = gguf_of(folder, tmp_path / "tiny.gguf", **{
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.tokens": sorted(vocab, key=vocab.__getitem__), "tokenizer.ggml.merges": merges})
    model = load(file, check=False)
    made = info_of(model).tokenizer
    assert made is not None
    text = "The cat sat on 12 mats, didn't it?"
    wanted = Tokenizer.from_file(str(prose_lm / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    assert Tokenizer.from_file(str(made)).encode(text, add_special_tokens=False).ids == wanted


@pytest.mark.parametrize(("pairs", "reason"), [
    ({"general.architecture": "mamba"}, "architecture 'mamba'"), ({"llama.expert_count": 8}, "mixture"),
    ({"llama.rope.scaling.type": "yarn"}, "yarn"), ({"llama.block_count": "two"}, "'two'"),
    ({"llama.attention.head_count": 0}, "found: 0"), ({"llama.attention.key_length": "wide"}, "'wide'"),
    ({"llama.attention.head_count_kv": [1, 2]}, "[1, 2]"), ({"llama.rope.freq_base": "high"}, "'high'"),
    ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": "x"}, "'x'"),
])
def test_gguf_refused(tmp_path: Path, pairs: dict[str, Any], reason: str) -> None:
    file, _ = gguf_of(tiny_lm.make(tmp_path, "llama"), tmp_path / "tiny.gguf", **pairs)
    with pytest.raises(EdgecError) as caught:
        load(file)
    assert reason in str(caught.value)


def test_pickles_only_when_allowed(tmp_path: Path) -> None:
    import torch

    folder = tiny_lm.make(tmp_path, "llama")
    state = {k: torch.from_numpy(t.read()) for k, t in open_safetensors(folder / "model.safetensors").items()}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(EdgecError, match="--allow-pickle"):
        load(folder)
    agrees(folder, allow_pickle=True)


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_a_pickle_that_is_a_program_is_refused(tmp_path: Path) -> None:
    folder = tiny_lm.make(tmp_path / "m", "llama")
    (folder / "model.safetensors").unlink()
    proof = tmp_path / "ran"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"w": _Evil(proof)}, protocol=2))
    with pytest.raises(EdgecError) as caught:
        load(folder, allow_pickle=True)
    assert caught.value.code == "E0101"
    assert not proof.exists()
