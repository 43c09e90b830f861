"""Hub ids: what is one, what the cache gives, and what is said when it gives nothing. Nothing here has a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors

import edgec
from edgec import api
from edgec.cli import main
from edgec.errors import CODES, EdgecError
from edgec.importers import classify, hub, load
from edgec.importers.reference import load_reference
from edgec.importers.stored import open_safetensors
from edgec.ir.info import info_of
from tests.importers.hub_cache import COMMIT, put
from tests.models import families, tiny_lm

Fetch = Callable[..., str]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a working folder that holds nothing an id could be mistaken for."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lm.make(tmp_path_factory.mktemp("tiny"), "llama")


def refused(call: Callable[[], object], code: str) -> EdgecError:
    with pytest.raises(EdgecError) as caught:
        call()
    assert caught.value.code == code, caught.value.render()
    return caught.value


def online(monkeypatch: pytest.MonkeyPatch, download: Fetch) -> None:
    """A network that is `download`, called for what the cache does not have."""
    real = huggingface_hub.snapshot_download

    def fetch(repository: str, **options: Any) -> str:
        if options["local_files_only"]:
            return str(real(repository, **options))
        return download(repository, **options)

    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)


@pytest.mark.parametrize(("source", "wanted"), [
    ("org/name", ("org/name", "main", "")), ("org/na.me-1_b@v1.0", ("org/na.me-1_b", "v1.0", "")),
    ("org/name@refs/pr/1:encoder", ("org/name", "refs/pr/1", "encoder")),
    ("org/name:text", ("org/name", "main", "text")),
    ("name", None), ("./org/name", None), ("/org/name", None), ("a/b/c", None), ("../name", None), ("org/..", None),
    ("org/name@../../x", None), ("org/net.onnx", None), ("org/net.py:make", None), ("org/x.gguf", None),
    ("org/--name", None), ("org/name\n", None),
])
def test_what_is_an_id(cache: Path, source: str, wanted: tuple[str, str, str] | None) -> None:
    found = hub.parse(source)
    assert (found and (found.repository, found.revision, found.part)) == wanted
    if wanted is not None:
        assert classify(source) == ("hf", source)


def test_what_exists_is_no_id(cache: Path) -> None:
    Path("org/name").mkdir(parents=True)
    assert hub.parse("org/name") is None
    assert hub.parse("org/name:encoder") is None
    refused(lambda: classify("org/name"), "E0101")


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_from_the_cache(cache: Path, tiny: Path, revision: str) -> None:
    put(cache, "org/tiny", tiny)
    info = info_of(load(f"org/tiny{revision}"))
    assert (info.name, info.source) == ("tiny", f"org/tiny@{COMMIT}")
    assert info.source_sha256 == info_of(load(tiny, check=False)).source_sha256


def test_shards_of_the_cache(cache: Path, tiny: Path, tmp_path: Path) -> None:
    """The cache's links lead to files whose names are hashes, in another order: the model is the same one."""
    import transformers

    module = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    module.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    put(cache, "org/shards", tmp_path / "shards")
    found, wanted = load("org/shards", check=False), load(tmp_path / "shards", check=False)
    assert info_of(found).source_sha256 == info_of(wanted).source_sha256


def test_a_nested_index_in_the_cache(cache: Path, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "nested")
    (tmp_path / "nested" / "model.safetensors.index.json").write_text('{"weight_map":' * 100_000)
    put(cache, "org/nested", tmp_path / "nested")
    refused(lambda: load("org/nested"), "E0101")


def test_every_verb(cache: Path, prose_lm: Path, tmp_path: Path) -> None:
    put(cache, "org/prose_lm", prose_lm)
    assert api.inspect("org/prose_lm")["name"] == "prose_lm"
    assert not api.check("org/prose_lm").problems
    edgec.compile("org/prose_lm", tmp_path / "out")
    assert api.compare(tmp_path / "out", "org/prose_lm", tokens=16)["greedy"]["first_difference"] == "none"
    (tmp_path / "text").write_text("It was a quiet evening, and nobody came.")
    assert api.evaluate(tmp_path / "out", ppl=tmp_path / "text", reference="org/prose_lm")["agreement"] == 1.0


def test_one_network_of_a_pair(cache: Path, tmp_path: Path) -> None:
    put(cache, "org/t5", families.make(tmp_path / "t5", families.OTHERS["t5"][0]))
    info = info_of(load("org/t5:encoder"))
    assert (info.name, info.source) == ("t5-encoder", f"org/t5@{COMMIT}")
    assert load_reference("org/t5:encoder").input_names


def test_pickles_of_the_cache(cache: Path, tiny: Path, tmp_path: Path) -> None:
    import torch

    state = {k: torch.from_numpy(np.array(t.read())) for k, t in open_safetensors(tiny / "model.safetensors").items()}
    (tmp_path / "pickled").mkdir()
    torch.save(state, tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "config.json").write_bytes((tiny / "config.json").read_bytes())
    put(cache, "org/pickled", tmp_path / "pickled")
    refused(lambda: load("org/pickled"), "E0101")
    assert info_of(load("org/pickled", allow_pickle=True)).name == "pickled"
    assert api.inspect("org/pickled", allow_pickle=True)["kind"] == "model"
    assert not api.check("org/pickled", allow_pickle=True).problems
    refused(lambda: load_reference("org/pickled"), "E0101")
    ids = [1, 2, 3]
    np.testing.assert_array_equal(load_reference("org/pickled", allow_pickle=True).logits(ids),
                                  load_reference(tiny).logits(ids))
    # The command line hands the option on.
    edgec.compile(tiny, tmp_path / "out")
    out = str(tmp_path / "out")
    for verb in (["check", "org/pickled"], ["inspect", "org/pickled"],
                 ["compare", out, "--reference", "org/pickled", "-n", "16"]):
        assert main([*verb, "--json"]) == CODES["E0101"].exit
        assert main([*verb, "--json", "--allow-pickle"]) == 0


def test_not_here_and_offline(cache: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused(lambda: load("org/absent@v2"), "E0003")
    assert str(cache) in error.found
    assert "HF_HUB_OFFLINE" in error.found
    assert "hf download org/absent --revision v2" in error.hint
    put(cache, "org/tiny", tiny)
    refused(lambda: load("org/tiny@v2"), "E0003")
    online(monkeypatch, lambda repository, **options: pytest.fail("the network was asked"))
    monkeypatch.setenv("EDGEC_OFFLINE", "1")
    assert "EDGEC_OFFLINE" in refused(lambda: load_reference("org/absent"), "E0003").found


def test_incomplete_and_offline(cache: Path, tiny: Path) -> None:
    put(cache, "org/tiny", tiny, leave_out=("model.safetensors",))
    error = refused(lambda: load("org/tiny"), "E0101")
    assert "incomplete" in error.found
    assert "hf download org/tiny" in error.hint


def test_what_is_downloaded(cache: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is missing, never code, and pickles only of a model that has nothing else."""
    import fnmatch

    asked: list[set[str]] = []

    def download(repository: str, **options: Any) -> str:
        names = ["config.json", "model.py", "model.safetensors", "pytorch_model.bin", "onnx/model.json",
                 "tokenizer.json"]
        wanted = {n for n in names if any(fnmatch.fnmatch(n, p) for p in options["allow_patterns"])
                  and not any(fnmatch.fnmatch(n, p) for p in options["ignore_patterns"])}
        asked.append(wanted)
        leave_out = ("model.safetensors",) if repository == "org/pickled" else ()
        return str(put(cache, repository, tiny, leave_out))

    online(monkeypatch, download)
    data = {"config.json", "model.safetensors", "tokenizer.json"}
    for _ in range(2):
        assert info_of(load("org/tiny", check=False, allow_pickle=True)).name == "tiny"
    assert asked == [data]
    refused(lambda: load("org/pickled", allow_pickle=True), "E0101")
    assert asked[1:] == [data, data | {"pytorch_model.bin"}]


@pytest.mark.parametrize(("problem", "code", "words"), [
    (errors.RepositoryNotFoundError, "E0003", "no such repository"),
    (errors.RevisionNotFoundError, "E0003", "no such revision"),
    (errors.GatedRepoError, "E0101", "only to those who"), (errors.HfHubHTTPError, "E0003", "the download failed"),
    (errors.LocalEntryNotFoundError, "E0003", "the download failed"), (OSError, "E0003", "the download failed"),
])
def test_what_the_hub_answers(cache: Path, monkeypatch: pytest.MonkeyPatch, problem: type[Exception], code: str,
                              words: str) -> None:
    def download(repository: str, **options: Any) -> str:
        raise problem.__new__(problem, "no")

    online(monkeypatch, download)
    assert words in refused(lambda: load("org/name"), code).found


def test_a_repository_of_something_else(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.json").write_text(json.dumps({}))
    online(monkeypatch, lambda repository, **options: str(put(cache, repository, tmp_path / "other")))
    assert "config.json" in refused(lambda: load("org/other"), "E0101").found
