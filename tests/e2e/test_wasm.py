"""Our small language model as WebAssembly under node, against the host's runtime on the same bundle."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgec
from edgec import api
from edgec.env import CACHE, ISA
from edgec.quantization import QuantizeOptions
from edgec.targets.binary import read_binary

ROOT = Path(__file__).resolve().parent.parent.parent
PROMPT = "It was a quiet evening, and the old house"
COUNT = 24
# Relative distance of logits from the host's scalar kernels, which multiply the stored weights in float32: sums in
# another order, and tables that round activations (docs/kernels.md) in every layer.
BOUNDS = {"auto": 1e-5, "hlq3": 2e-3}


Run = Callable[..., str]
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(node: tuple[str, ...]) -> Run:
    """run(script, words...): what the script prints."""

    def start(script: str, *words: object) -> str:
        done = subprocess.run([*node, str(ROOT / script), *map(str, words)], capture_output=True, text=True,
                              timeout=60, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return start


@pytest.fixture(scope="module")
def ask(run: Run) -> Ask:
    """ask(command, folder, arguments...): the answer of wasm.mjs, logits as an array."""

    def start(*words: object) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(run("tests/e2e/wasm.mjs", *words))
        if "logits" in answer:
            answer["logits"] = np.stack([np.frombuffer(base64.b64decode(row), np.float32) for row in answer["logits"]])
        return answer

    return start


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, prose_lm: Path,
             require: Callable[[bool, str], None]) -> Callable[[str], Path]:
    """compiled("auto" or "hlq3"): the output folder. The module is kept in pytest's cache folder."""
    require(importlib.util.find_spec("ziglang") is not None, "ziglang is not installed (pip install 'edgec[cross]')")
    assert request.config.cache is not None
    cache, top = request.config.cache.mkdir("edgec_wasm"), tmp_path_factory.mktemp("wasm")
    text = str(ROOT / "examples" / "text" / "sample.txt")

    def compile(weights: str) -> Path:
        folder = top / weights
        if not folder.exists():
            quant = QuantizeOptions("hlq3", calib=text, samples=8, window=64) if weights == "hlq3" else None
            with CACHE.override(str(cache)):
                edgec.compile(str(prose_lm), folder, target="wasm32", quant=quant)
        return folder

    return compile


def expected(folder: Path, prompt: list[int], tokens: list[int], isa: str) -> Any:
    """Logits of the host's runtime for the steps of wasm.mjs, which chose `tokens`."""
    with ISA.override(isa), edgec.Model(folder / "model.edgec") as model, model.session() as session:
        rows = [session.step(prompt[:-1]), session.step(prompt[-1:]), *(session.step([t]) for t in tokens[:-1])]
        return np.stack(rows)


def distance(found: Any, wanted: Any) -> float:
    assert found.shape == wanted.shape
    return float((np.linalg.norm(found - wanted.astype(np.float64), axis=1) / np.linalg.norm(wanted, axis=1)).max())


def prompt_of(folder: Path) -> list[int]:
    with edgec.Model(folder / "model.edgec") as model:
        return model.tokenize(PROMPT)


@pytest.mark.parametrize("weights", sorted(BOUNDS))
def test_logits_and_tokens_are_the_host_s(compiled: Callable[[str], Path], ask: Ask, weights: str) -> None:
    folder = compiled(weights)
    prompt = prompt_of(folder)
    found = ask("generate", folder, ",".join(map(str, prompt)), COUNT)
    assert (found["info"]["isa"], found["info"]["warning"]) == ("wasm", "")
    assert (found["golden"], found["words"]) == (0, "")
    wanted = expected(folder, prompt, found["tokens"], "scalar")
    assert distance(found["logits"], wanted) < BOUNDS[weights]
    if weights == "hlq3":
        assert distance(found["logits"], wanted) > 1e-5, "no tables were looked up"
    else:
        assert found["tokens"] == [int(np.argmax(row)) for row in wanted[1:]]
    assert len(set(found["tokens"])) > 8, "too dull to tell anything"


def test_a_pinned_key(compiled: Callable[[str], Path], ask: Ask, key_pair: Callable[[str], Path], tmp_path: Path
                      ) -> None:
    folder = tmp_path / "signed"
    shutil.copytree(compiled("auto"), folder)
    public = api.sign(folder, key_pair("alice"))["public_key"]
    found = ask("signed", folder, public)
    assert (found["pinned"], found["free"], found["unseen"]) == (None, None, None)
    assert "no valid signature" in found["other"]
    assert "32 bytes" in found["short"]
    assert "hash mismatch" in found["changed"]


def test_keys_and_bundles_of_any_type_that_holds_bytes(
    compiled: Callable[[str], Path], ask: Ask, key_pair: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "signed"
    shutil.copytree(compiled("auto"), folder)
    found = ask("kinds", folder, api.sign(folder, key_pair("alice"))["public_key"])
    assert "no valid signature" in found["other"]
    refused = {kind: words for kind, words in found["keys"].items() if words}
    assert set(found["keys"]) - set(refused) == {
        "buffer", "bytes", "words", "wide", "floats", "view", "shared", "part", "odd", "none"}
    sizes = {"around": 64, "empty": 0}
    types = {"digits": "String", "number": "Number", "list": "Array", "object": "Object", "undefined": "Undefined",
             "text": "String", "zero": "Number"}
    assert refused == {
        **{kind: f"edgec: publicKey: wanted the 32 bytes of a key, found {n}" for kind, n in sizes.items()},
        **{kind: f"edgec: publicKey: wanted an ArrayBuffer or a typed array, found {n}" for kind, n in types.items()}}
    assert found["bundles"] == {
        "buffer": None, "view": None, "path": "edgec: bundle: wanted an ArrayBuffer or a typed array, found String"}


def test_files_and_instruction_sets(compiled: Callable[[str], Path], ask: Ask) -> None:
    folder = compiled("auto")
    prompt = prompt_of(folder)
    found = ask("files", folder, ",".join(map(str, prompt)), 4, "scalar")
    assert found["info"]["isa"] == "scalar"
    assert distance(found["logits"], expected(folder, prompt, found["tokens"], "scalar")) < 1e-5
    assert "missing: cannot be opened: No such file" in found["missing"]
    assert "cannot be opened" in found["outside"]
    assert "found a folder" in found["directory"]


def test_memory_ends_in_an_error(compiled: Callable[[str], Path], ask: Ask, tmp_path: Path) -> None:
    found = ask("limits", compiled("auto"), tmp_path)
    assert "do not fit" in found["huge"]
    assert "larger than the address space" in found["beyond"]
    assert found["full"]["file"].startswith("out of memory: open: /scratch/sparse: cannot be mapped")
    assert found["full"]["session"].startswith("out of memory: session")
    assert found["overrun"].startswith("the context is full")
    assert found["limited"].startswith("a limit would be exceeded")
    assert found["after"] == 4096


def test_damaged_bundles_are_refused(compiled: Callable[[str], Path], ask: Ask) -> None:
    found = ask("damage", compiled("auto"))
    assert found["empty"].startswith("not a usable bundle")
    assert "it was cut or extended" in found["short"]
    assert found["changed"].startswith("hash mismatch")
    assert "cannot be opened" in found["path"]
    assert found["fine"] == "wasm"


def test_the_example_continues_a_text(compiled: Callable[[str], Path], run: Run) -> None:
    folder = compiled("auto")
    script = "examples/embed_wasm/run.mjs"
    with edgec.Model(folder / "model.edgec") as model, model.session() as session:
        prompt = model.tokenize(PROMPT)
        tokens = list(session.generate(prompt, 12, temperature=0.0))
        assert run(script, folder, "--tokens", ",".join(map(str, prompt)), 12) == ",".join(map(str, tokens)) + "\n"
        assert run(script, folder, PROMPT, 12) == PROMPT + model.detokenize(tokens) + "\n"


def test_the_module_exports_the_c_interface(compiled: Callable[[str], Path]) -> None:
    binary = read_binary(compiled("auto") / "edgec.wasm")
    declared = set(re.findall(r"^EDGEC_API .*?\b(edgec_\w+)\(", (compiled("auto") / "include" / "edgec.h").read_text(),
                              re.MULTILINE))
    assert (binary.format, binary.arch, binary.kind) == ("wasm", "wasm32", "shared")
    assert len(declared) > 20
    assert binary.exports == declared | {"_initialize", "malloc", "aligned_alloc", "free"}
