"""`inspect` reads headers: the same facts as from the weights, and nothing of weights that are far too large to read.

The large models are files with holes, so they take no room on the disk; reading one would be seen in what the kernel
counts for this process, in bytes read and in memory.
"""

from __future__ import annotations

import functools
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgec import api, importers
from edgec.cli_build import _ports
from edgec.importers.hf import ROUTE_KEY
from edgec.importers.hf_folder import Folder
from edgec.ir.info import info_of
from tests.importers.gguf_writer import write_gguf
from tests.importers.test_checkpoints import quantize_folder
from tests.models import families, tiny_lm

LARGE = 2 << 30
# What an inspection may read besides headers (a tokenizer, a source file that Python imports late), and take.
BYTES_READ, BYTES_TAKEN = 1 << 20, 400 << 20


# -- models in files with holes --------------------------------------------------------------------------------------


def hollow_folder(folder: Path, kind: str, auto: str, settings: dict[str, Any]) -> Path:
    """config.json and model.safetensors of a transformers model whose weights are a hole."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(kind, **settings)
    with torch.device("meta"):
        module = getattr(transformers, auto).from_config(config)
    config.architectures = [type(module).__name__]
    config.save_pretrained(folder)
    header: dict[str, Any] = {}
    end = 0
    shared: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) in shared:
            continue
        shared.add(id(tensor))
        first, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [first, end]}
    data = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + end)
    return folder


def language(folder: Path, width: int, *, bias: bool) -> Path:
    """A llama of one layer, wide and with many tokens: few tensors, many bytes. bias: in its MLP; mobius has none."""
    return hollow_folder(folder, "llama", "AutoModelForCausalLM", {
        "vocab_size": 16 * width, "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": width // 16,
        "num_key_value_heads": width // 16, "intermediate_size": 4 * width, "max_position_embeddings": 128,
        "mlp_bias": bias, "tie_word_embeddings": False})


def encoder(folder: Path, width: int) -> Path:
    return hollow_folder(folder, "bert", "AutoModel", {
        "vocab_size": 32 * width, "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": width // 16,
        "intermediate_size": 4 * width, "max_position_embeddings": 64})


def graph_file(folder: Path, width: int) -> Path:
    """x [1, width] times a matrix that is external data."""
    folder.mkdir(parents=True, exist_ok=True)
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[width, width],
                              data_location=onnx.TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="w.bin")
    port = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, width]) for n in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "net", port[:1], port[1:],
                                   initializer=[weight])
    path = folder / "net.onnx"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    with (folder / "w.bin").open("wb") as file:
        file.truncate(4 * width * width)
    return path


def gguf_file(folder: Path, width: int) -> Path:
    """A llama of one layer in Q8_0 (blocks of 32 in 34 bytes): the writer's header, then a hole."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = {"general.architecture": "llama", "llama.attention.head_count": 4, "llama.embedding_length": width,
             "llama.block_count": 1, "llama.feed_forward_length": 4 * width, "llama.context_length": 128,
             "llama.attention.layer_norm_rms_epsilon": 1e-5}
    shapes = {"token_embd.weight": (32 * width, width), "output.weight": (32 * width, width)}
    for name in ("q", "k", "v", "output"):
        shapes[f"blk.0.attn_{name}.weight"] = (width, width)
    shapes |= {"blk.0.ffn_gate.weight": (4 * width, width), "blk.0.ffn_up.weight": (4 * width, width),
               "blk.0.ffn_down.weight": (width, 4 * width)}
    tensors = {k: (8, s, b"") for k, s in shapes.items()}
    norms = ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight")
    tensors |= dict.fromkeys(norms, (0, (width,), b""))
    path = write_gguf(folder / "net.gguf", pairs, tensors)
    # The writer put every tensor at 0, for it was given no bytes; the real places follow from the sizes.
    data, at = path.read_bytes(), 0
    for name, (kind, shape, _) in tensors.items():
        entry = name.encode() + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, 0)
        assert data.count(entry) == 1
        data = data.replace(entry, entry[:-8] + struct.pack("<Q", at))
        size = shape[0] * (shape[1] // 32 * 34 if kind == 8 else 4) if len(shape) == 2 else 4 * shape[0]
        at += -(-size // 32) * 32
    with path.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + at)
    return path


LARGE_MODELS: dict[str, tuple[Callable[[Path, int], Path], int]] = {
    "mobius": (functools.partial(language, bias=False), 4096),
    "torch": (functools.partial(language, bias=True), 4096),
    "encoder": (encoder, 4096),
    "onnx": (graph_file, 32768),
    "gguf": (gguf_file, 8192),
}


# -- what the kernel counts ------------------------------------------------------------------------------------------


def numbers(file: str) -> dict[str, int]:
    lines = (line.split() for line in Path(f"/proc/self/{file}").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


@pytest.mark.skipif(sys.platform != "linux", reason="counts what Linux says of a process")
@pytest.mark.parametrize("model", LARGE_MODELS)
def test_nothing_of_the_weights_is_read(tmp_path: Path, model: str) -> None:
    make, width = LARGE_MODELS[model]
    small = str(make(tmp_path / "small", 64))
    api.inspect(small)  # so that all modules are imported
    if model in ("mobius", "torch"):
        assert importers.load(small, hollow=True).metadata_props[ROUTE_KEY] == model
    source = make(tmp_path / "large", width)
    assert sum(p.stat().st_size for p in (tmp_path / "large").iterdir()) > LARGE
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far is now's
    before, memory = numbers("io")["rchar"], numbers("status")["VmRSS"]
    found = api.inspect(str(source))
    assert numbers("io")["rchar"] - before < BYTES_READ
    assert (numbers("status")["VmHWM"] - memory) << 10 < BYTES_TAKEN
    assert found["weight_bytes"] > LARGE
    assert found["estimated_ram_bytes"] > found["weight_bytes"]
    assert found["operators"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_facts_are_those_of_the_whole_model(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    same_facts(str(families.make(tmp_path, families.LANGUAGE[family])), monkeypatch)


@pytest.mark.parametrize("family", ["bert", "t5", "swin", "wav2vec2"])
def test_facts_of_other_models(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, parts = families.OTHERS[family]
    folder = families.make(tmp_path, chosen)
    for part in parts:
        same_facts(f"{folder}:{part}" if part else str(folder), monkeypatch)


def same_facts(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = api.inspect(source)
    real, hollow = importers.load, []

    def whole(what: object, **options: Any) -> Any:
        hollow.append(options.pop("hollow"))
        return real(what, **options)

    with monkeypatch.context() as patch:
        patch.setattr(importers, "load", whole)
        assert api.inspect(source) == found
    assert hollow == [True]


@pytest.mark.parametrize("family", ["llama", "llama_bias"])
def test_facts_of_quantized_models(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built by mobius, and traced."""
    folder = tiny_lm.make(tmp_path, family)
    quantize_folder(folder, "gptq")
    same_facts(str(folder), monkeypatch)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_parameters_are_the_checkpoints(tmp_path: Path, family: str) -> None:
    """Without tables of rotary positions, and a head that is the embedding counts once."""
    import transformers

    folder = tiny_lm.make(tmp_path, family)
    module = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert module.config.tie_word_embeddings == (family == "qwen3")
    assert api.inspect(str(folder))["parameters"] == sum(p.numel() for p in module.parameters())


def test_a_decoder_without_cache_says_so(tmp_path: Path) -> None:
    folder = families.make(tmp_path, families.OTHERS["t5"][0])
    assert "without a key/value cache" in " ".join(api.inspect(f"{folder}:decoder")["notes"])
    assert api.inspect(f"{folder}:encoder")["notes"] == []
    assert "without a key/value cache" in " ".join(api.check(f"{folder}:decoder").notes)


def test_layers_share_a_row() -> None:
    ports = [{"name": n, "dtype": "float", "shape": s} for n, s in (
        ("ids", []), ("past.0.key", [1, "past"]), ("past.0.value", [1, "past"]), ("past.1.key", [1, "past"]),
        ("past.1.value", [1, 7]), ("alone.3.key", [2]))]
    assert _ports(ports) == [
        ("ids", "float", "[]"), ("past.*.key (2 layers)", "float", "[1, past]"),
        ("past.0.value", "float", "[1, past]"), ("past.1.value", "float", "[1, 7]"), ("alone.3.key", "float", "[2]"),
    ]


def test_the_hash_waits_until_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = families.make(tmp_path, families.LANGUAGE["llama"])
    asked: list[Folder] = []
    real = Folder.sha256
    monkeypatch.setattr(Folder, "sha256", lambda self: asked.append(self) or real(self))
    info = info_of(importers.load(folder))
    assert not asked
    assert len(info.source_sha256) == 64
    assert info.source_sha256 == info.source_sha256
    assert len(asked) == 1
