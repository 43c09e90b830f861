"""Packages of the other ecosystems, built by their own command and run, against the library on the same bundle."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edgec
from edgec.env import CACHE
from edgec.errors import EdgecError
from edgec.native.session import Model
from tests.native import tiny_plans
from tests.packaging.conftest import _written
from tests.packaging.test_package import Run, shown, values


def greedy(bundle: Path, prompt: str, count: int) -> tuple[list[int], str]:
    """(tokens, their text) that the library says."""
    with Model(bundle) as model, model.session() as session:
        tokens = session.generate(model.tokenize(prompt), count)
        return tokens, model.detokenize(tokens)


def conversation(bundle: Path, prompts: tuple[str, str], count: int) -> str:
    """What the library says to two prompts of one session, of which only the first begins a text."""
    with Model(bundle) as model, model.session() as session:
        ids = [model.tokenize(prompt, add_special=i == 0) for i, prompt in enumerate(prompts)]
        return "".join(model.detokenize(session.generate(prompt, count)) for prompt in ids)


def test_single_headers_in_one_file(bundles: dict[str, Path], tmp_path: Path, run: Run, tools: None) -> None:
    """Included before it is implemented, and beside another package's."""
    for name in ("cnn", "lm"):
        edgec.package(bundles[name], tmp_path / name, format="single-header", target="x86-64-v2")
    words = ["c++", "-std=c++17", "-O1", "-fno-exceptions", "-fno-rtti", *(f"-I{tmp_path / n}" for n in ("cnn", "lm"))]
    for mine, other in (("cnn", "lm"), ("lm", "cnn")):
        run(*words, "-c", "-x", "c++", "-", "-o", tmp_path / f"{mine}.o",
            stdin=f'#include "tiny_{mine}.h"\n#include "tiny_{other}.h"\n#define EDGEC_IMPLEMENTATION\n'
                  f'#include "tiny_{mine}.h"\n')
        symbols = [line.split()[-2:] for line in run("nm", "--defined-only", "-g", tmp_path / f"{mine}.o").splitlines()]
        assert ["T", f"tiny_{mine}_edgec_open"] in symbols
        assert not [name for kind, name in symbols if kind in "WuV" or not name.startswith(f"tiny_{mine}_")]
    run("cc", tmp_path / "cnn" / "example.c", *(tmp_path / f"{n}.o" for n in ("cnn", "lm")), "-lm", "-lpthread", "-o",
        tmp_path / "t")
    wanted = values(bundles["cnn"])
    assert np.abs(shown(run(tmp_path / "t", bundles["cnn"])) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_single_header(bundles: dict[str, Path], tmp_path: Path, run: Run, tools: None) -> None:
    found = edgec.package(bundles["layer"], tmp_path / "p", format="single-header", target="x86-64-v2")
    text = (found.folder / "model.h").read_text(encoding="utf-8")
    assert 'include "edgec' not in text
    run("c++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-exceptions", "-fno-rtti", "-c",
        "implementation.cpp", cwd=found.folder)
    run("cc", "-std=c99", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "example.c", "implementation.o", "-lm",
        "-lpthread", "-o", "example", cwd=found.folder)
    wanted = values(bundles["layer"])
    said = shown(run("./example", "model.edgec", cwd=found.folder))
    assert np.abs(said - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.fixture(scope="session")
def wheel(run: Run, tools: None, require: Callable[[bool, str], None]) -> Callable[[Path, Path], Path]:
    """wheel(project, folder): the wheel of a project, unpacked below `folder` instead of installed."""
    require(importlib.util.find_spec("scikit_build_core") is not None, "no scikit-build-core")

    def build(project: Path, folder: Path) -> Path:
        run(sys.executable, "-m", "pip", "wheel", project, "--no-deps", "--no-build-isolation", "--no-index",
            "--no-cache-dir", "-Ccmake.define.EDGEC_OPTIMIZE=-O1", "-w", folder / "dist")
        (file,) = (folder / "dist").glob("*.whl")
        assert "-py3-none-" in file.name
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder / "installed")
        return folder / "installed"

    return build


def test_wheel_of_a_language_model(bundles: dict[str, Path], tmp_path: Path, run: Run,
                                   wheel: Callable[[Path, Path], Path]) -> None:
    found = edgec.package(bundles["lm"], tmp_path / "p", format="pip", target="x86-64-v2")
    installed = wheel(found.folder, tmp_path)
    said = run(sys.executable, "-I", "-c", _SAY, installed)
    tokens, text = greedy(bundles["lm"], "the thing", 20)
    both = conversation(bundles["lm"], ("the thing", " and the"), 8)
    assert both != text[: len(both)]
    assert said.splitlines() == [repr(tokens), ascii(text), "2", "RuntimeError", "ValueError", ascii(both),
                                 "ValueError", "packaged without signatures"]


# -I keeps edgec and everything else of this project out of reach.
_SAY = """
import sys
sys.path.insert(0, sys.argv[1])
import tiny_lm
model = tiny_lm.Model()
found = model.generate("the thing", 20)
print(repr([token for token, _ in found]))
print(ascii("".join(text for _, text in found)))
model.reset()
seen = []
print(len(model.generate("the thing", 20, on_token=lambda token, text: bool(seen.append(token) or len(seen) < 2))))
try:
    model.generate([999999], 2)
except RuntimeError as e:
    print(type(e).__name__)
def raises(token, text):
    raise ValueError("mine")
try:
    model.reset()
    model.generate("the thing", 2, on_token=raises)
except ValueError as e:
    print(type(e).__name__)
model.reset()
print(ascii("".join(text for prompt in ("the thing", " and the") for _, text in model.generate(prompt, 8))))
model.close()
for key in (b"short", bytes(32)):
    try:
        tiny_lm.Model(public_key=key)
    except ValueError as e:
        print(type(e).__name__)
    except RuntimeError as e:
        print(str(e)[str(e).index("packaged"):][:27])
"""


@pytest.mark.slow
def test_wheel_of_a_model_of_tensors(bundles: dict[str, Path], tmp_path: Path, run: Run,
                                     wheel: Callable[[Path, Path], Path]) -> None:
    found = edgec.package(bundles["cnn"], tmp_path / "p", format="pip", target="x86-64-v3")
    program = ("import sys; sys.path.insert(0, sys.argv[1])\nimport numpy as np, tiny_cnn\n"
               "i = np.arange(192)\nx = ((i * 7919 % 1000).astype(np.float32) / 500 - 1).reshape(1, 8, 8, 3)\n"
               "model = tiny_cnn.Model()\n"
               "for v in model.run({'image': x})['probabilities'].ravel(): print('p %.9g' % v)\n"
               "for bad in ({'image': x.astype('f8')}, {'imag': x}):\n"
               "    try: model.run(bad)\n    except ValueError: continue\n    raise SystemExit(1)\n"
               "try: model.run({'image': x[:, :7]})\nexcept RuntimeError: raise SystemExit(0)\nraise SystemExit(1)\n")
    wanted = values(bundles["cnn"])
    said = run(sys.executable, "-c", program, wheel(found.folder, tmp_path))
    assert np.abs(shown(said) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_module_for_node(bundles: dict[str, Path], tmp_path: Path, run: Run, node: tuple[str, ...],
                         zig_cache: str) -> None:
    """Also where a text ends at another token than the first that ends one, and where a conversation goes on."""
    tokens, _ = greedy(bundles["lm"], "the thing", 20)
    data = tiny_plans.tiny_tokenizer()
    data.stop.append(next(t for t in reversed(tokens) if tokens.index(t) > 1))
    bundle = _written(tmp_path, "tiny lm", tiny_plans.tiny_lm(), data.to_bytes())
    with CACHE.override(zig_cache):
        edgec.package(bundle, tmp_path / "lm", format="wasm")
    found, text = greedy(bundle, "the thing", 20)
    assert 1 < len(found) < 20
    assert run(*node, tmp_path / "lm" / "example.mjs", "the thing", 20).rstrip("\n") == text
    (tmp_path / "lm" / "talk.mjs").write_text(_TALK)
    said = run(*node, tmp_path / "lm" / "talk.mjs")
    assert said == conversation(bundle, ("the thing", " and the"), 4)


_TALK = """
import { readFile } from 'node:fs/promises';
import { Model } from './tiny_lm.mjs';
const file = (name) => readFile(new URL(name, import.meta.url));
const model = await Model.load(await file('edgec.wasm'), await file('model.edgec'));
for (const prompt of ['the thing', ' and the']) {
    let left = 4;
    for await (const { text } of model.generate(prompt, { maxTokens: 9 })) {
        process.stdout.write(text);
        if (--left === 0) break;
    }
}
model.close();
// A generation that another one overtakes ends; what it yielded last was said all the same.
const two = await Model.load(await file('edgec.wasm'), await file('model.edgec'));
const first = two.generate('the thing', { maxTokens: 9 });
const said = [(await first.next()).value.token];
const second = two.generate([said[0]], { maxTokens: 1 });
said.push((await second.next()).value.token);
const at = two.session.position;
if (!(await first.next()).done || two.session.position !== at) throw new Error('overtaken, and goes on');
for await (const {} of two.generate([said[1]], { maxTokens: 9 })) { two.close(); break; }
two.close();
const closed = await two.generate('the').next().catch((e) => e.message);
if (closed !== 'the model is closed') throw new Error(closed);
"""


@pytest.mark.slow
def test_module_of_tensors_for_node(bundles: dict[str, Path], tmp_path: Path, run: Run, node: tuple[str, ...],
                                    zig_cache: str) -> None:
    with CACHE.override(zig_cache):
        edgec.package(bundles["cnn"], tmp_path / "cnn", format="wasm")
    wanted = values(bundles["cnn"])
    said = shown(run(*node, tmp_path / "cnn" / "example.mjs"))
    assert np.abs(said - wanted).max() <= 1e-5 * np.abs(wanted).max()
    declared = (tmp_path / "cnn" / "tiny_cnn.d.mts").read_text(encoding="utf-8")
    assert '/** float32 [batch, 8, 8, 3] */\n    "image": { data: Float32Array; shape: number[] };' in declared


@pytest.mark.parametrize("format", ["single-header", "pip", "wasm"])
def test_only_cmake_links_the_bundle(format: str, bundles: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(EdgecError) as error:
        edgec.package(bundles["lm"], tmp_path / "p", format=format, weights="object")
    assert (error.value.code, error.value.where) == ("E0002", "--weights")
