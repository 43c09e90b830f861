"""Which door a source goes through, and what is said about sources that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgec.errors import EdgecError
from edgec.importers import classify, load


def refused(source: object, code: str, **options: object) -> EdgecError:
    with pytest.raises(EdgecError) as caught:
        load(source, **options)
    assert caught.value.code == code, caught.value.render()
    return caught.value


def test_kinds(tmp_path: Path) -> None:
    import torch

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "net.py").write_text("")
    assert classify(tmp_path) == ("hf", str(tmp_path))
    (tmp_path / "net.onnx").write_bytes(b"")
    assert classify(tmp_path / "net.onnx") == ("onnx", str(tmp_path / "net.onnx"))
    assert classify(f"{tmp_path}/net.py:make") == ("factory", f"{tmp_path}/net.py:make")
    assert classify(torch.nn.Identity()) == ("module", "")


def test_missing_path() -> None:
    assert "no such file or folder" in refused("not/here", "E0003").found
    assert "no such file" in refused("not/here.py:make", "E0003").found


def test_foreign_sources(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("x")
    assert "some.txt" in refused(tmp_path, "E0101").found
    (tmp_path / "model.tflite").write_bytes(b"\x08\x01")
    error = refused(tmp_path / "model.tflite", "E0101")
    assert ".tflite" in error.found
    assert "Hugging Face folder" in error.wanted
    assert "FACTORY" in error.wanted
    assert "float" in refused(1.5, "E0101").found
    refused("", "E0101")


def test_python_file_without_factory(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("")
    assert ":FACTORY" in refused(tmp_path / "net.py", "E0101").hint
    assert "factory" in refused(f"{tmp_path}/net.py:not-a-name", "E0101").found


def test_unknown_option(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "did you mean 'check'" in refused(tmp_path, "E0002", chek=False).wanted
    refused(tmp_path, "E0002", example_inputs=())


@pytest.mark.parametrize(
    ("config", "code", "found"),
    [
        ("{", "E0101", "not JSON"),
        ("[]", "E0101", "a JSON list"),
        ("{}", "E0101", "no model_type"),
        ({"model_type": "llama", "auto_map": {"AutoModel": "x.Y"}}, "E0101", "auto_map"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, "E0101", "no weights"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "E0101", "no weights"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "E0101", "no weights"),
        ({"model_type": "llama"}, "E0101", "no weights"),
    ],
)
def test_config(tmp_path: Path, config: object, code: str, found: str) -> None:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    assert found in refused(tmp_path, code).found


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    error = refused(tmp_path, "E0101")
    assert "pytorch_model.bin" in error.found
    assert "save_pretrained" in error.hint


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "."])
def test_shards_outside_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    assert repr(name) in refused(tmp_path, "E0101").found


def test_missing_shard(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-00001-of-00002.safetensors"}}')
    assert "missing" in refused(tmp_path, "E0101").found
