"""Statistics of a calibration against hooks in PyTorch, what crosses a cut, errors, resuming, memory limits."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import gc
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgec import quantization
from edgec.calibration import CalibOptions, open_samples
from edgec.compress import calibrate, driver, products
from edgec.compress.calibrate import Accumulator, Samples, Stream, cuts_of, groups_of, statistics
from edgec.compress.formats import Array, BitsSpec, Quantized, dequantize
from edgec.compress.layers import find_layers
from edgec.compress.solvers import LinearStats, quantize_matrix
from edgec.compress.store import STATE, Finished, load_finished, opened
from edgec.errors import EdgecError
from edgec.ir.info import attach_info, info_of
from tests.compress.random_weights import round_to_nearest
from tests.models import graphs_for_quantization as graphs

SPEC = BitsSpec(3, 32, True)
ARGUMENTS: dict[str, Any] = {"quant": "int3g32"}


def solver(weights: Array, spec: object, stats: LinearStats | None, name: str) -> Quantized:
    assert isinstance(spec, BitsSpec)
    return round_to_nearest(weights, spec)


def nothing(*ignored: object) -> None:
    pass


@dataclass
class Given:
    """Samples from arrays."""

    arrays: list[dict[str, Array]]

    @property
    def count(self) -> int:
        return len(self.arrays)

    def feed(self, index: int) -> Mapping[str, Array]:
        return self.arrays[index]


def images(count: int, seed: int = 1) -> Given:
    rng = np.random.default_rng(seed)
    return Given([{"x": rng.standard_normal((1, 3, 12, 12)).astype(np.float32)} for _ in range(count)])


def tokens(model: ir.Model, count: int, width: int = 24, seed: int = 2) -> Samples:
    ids = np.random.default_rng(seed).integers(0, 97, (count, width))
    path = Path(model.meta["folder"]) / f"{count}-{seed}.npz"
    np.savez(path, input_ids=ids)
    return open_samples(model, CalibOptions(str(path), count), path.parent, nothing, nothing)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    folder = tmp_path_factory.mktemp("lm")
    model = graphs.normalized_lm(folder / "model", "llama_mha_tied")
    model.meta["folder"] = str(folder)
    return model


def run(model: ir.Model, samples: Samples | None, folder: Path, solve: driver.Solver = solver,
        progress: driver.Progress = nothing, limit: int | None = None, drawn: bytes = b"") -> Finished:
    work = driver.plan_work(model, SPEC, [], solve, limit)
    with opened(folder, ARGUMENTS) as store:
        if drawn:
            store.work.mkdir()
            (store.work / "self.i32").write_bytes(drawn)
        driver.run(work, samples, store, progress)
    return load_finished(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def hooked(folder: Path, samples: Samples, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Sum of x xᵀ at every linear of the Hugging Face model in `folder`, by weight name, with `weights` put in."""
    import torch
    import transformers

    module = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, value in weights.items():
            module.get_parameter(name).copy_(torch.from_numpy(value))
    sums: dict[str, Array] = {}

    def hook(name: str) -> Callable[..., None]:
        def add(part: object, inputs: tuple[Any, ...], output: object) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).numpy().astype(np.float64)
            sums[name] = sums.get(name, 0) + x.T @ x

        return add

    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_hook(hook(f"{name}.weight"))
    with torch.no_grad():
        for i in range(samples.count):
            module(torch.from_numpy(samples.feed(i)["input_ids"]))
    return sums


def close(found: Array, wanted: Array, limit: float) -> None:
    assert np.abs(found - wanted).max() <= limit * np.abs(wanted).max()


def test_statistics_are_those_of_pytorch_with_the_layers_before_quantized(llama: ir.Model, tmp_path: Path) -> None:
    samples = tokens(llama, 5)
    seen: dict[str, LinearStats] = {}

    def watch(weights: Array, spec: object, stats: LinearStats | None, name: str) -> Quantized:
        assert stats is not None
        seen[name] = stats
        return solver(weights, spec, stats, name)

    finished = run(llama, samples, tmp_path / "q", watch)
    folder = Path(llama.meta["folder"]) / "model"
    untouched = hooked(folder, samples, {})
    done: dict[str, Array] = {}
    checked = 0
    for name in seen:
        first = not done
        if "q_proj" in name or "o_proj" in name or "gate" in name or "down" in name or "embed" in name:
            wanted = hooked(folder, samples, done)
            found = seen[name]
            key = name if name in wanted else "lm_head.weight"
            close(found.h, wanted[key], 1e-5 if first else 1e-4)
            close(found.diag, wanted[key].diagonal(), 1e-5 if first else 1e-4)
            assert found.count == 5 * 24
            # The quantized layers before it are what makes the difference, and it is seen.
            assert first or np.abs(wanted[key] - untouched[key]).max() > 1e-3 * np.abs(untouched[key]).max()
            checked += 1
        done[name] = dequantize(finished[name].load())  # type: ignore[arg-type]
    assert checked == 9
    # Siblings share their statistics.
    q, v = (seen[f"model.layers.1.self_attn.{p}_proj.weight"] for p in "qv")
    assert q is v


def test_first_group_of_a_real_model(asset: Callable[[str], Path], tmp_path: Path) -> None:
    folder = asset("prose_lm")
    model = graphs.normalized(str(folder))
    text = asset("prose/valid.txt")
    samples = open_samples(model, CalibOptions(str(text), 4, 128), tmp_path, nothing, nothing)
    layers = find_layers(model)
    groups = groups_of(model.graph, [x for x in layers if not x.refused])
    cuts = cuts_of(model.graph, groups)
    stream = Stream(model, cuts, samples, samples.count, tmp_path, "s")
    wanted = hooked(folder, samples, {})
    # Nothing is quantized here, so every group must be as in PyTorch, the head's input too.
    for i, group in enumerate(groups):
        stream.advance(i, nothing)
        found = statistics(stream, i, group)
        name = group.layers[0].name
        close(found.h, wanted[name if name in wanted else "lm_head.weight"], 1e-5 if i == 0 else 1e-4)
        stream.forget(i)
    assert [len(g.layers) for g in groups] == [3, 1, 2, 1] * 6 + [1]


def test_pixels_of_convolutions(tmp_path: Path) -> None:
    """Statistics at a pointwise convolution behind a residual connection, against onnxruntime's own values."""
    from edgec.ir.execute import Runner

    model, samples = graphs.small_cnn(), images(3)
    layers = [x for x in find_layers(model) if x.name in ("point.weight", "spatial.weight", "head.weight")]
    groups = groups_of(model.graph, layers)
    stream = Stream(model, cuts_of(model.graph, groups), samples, 3, tmp_path, "s")
    sources = [g.source for g in groups]
    probe = model.clone()
    by_name = {v.name: v for node in probe.graph for v in node.outputs}
    probe.graph.outputs.extend(by_name[s.name] for s in sources)
    with Runner(probe, "test") as runner:
        values = [runner.run(dict(samples.feed(i))) for i in range(3)]
    for i, group in enumerate(groups):
        stream.advance(i, nothing)
        found = statistics(stream, i, group)
        rows = np.concatenate([group.layers[0].rows_of(v[group.source.name or ""]) for v in values]).astype(np.float64)
        close(found.h, rows.T @ rows, 1e-5)
        np.testing.assert_allclose(found.absmax, np.abs(rows).max(0), rtol=1e-5)
        np.testing.assert_allclose(found.sums, rows.sum(0), rtol=1e-4, atol=1e-3)
        assert found.count == len(rows)


def test_only_what_is_read_later_is_kept(llama: ir.Model, tmp_path: Path) -> None:
    counts: list[int] = []
    folder = tmp_path / "q"

    def watch(done: int, total: int, what: str) -> None:
        if not what.startswith("samples"):
            counts.append(len(list((folder / "calibration").glob("quantized-*.npy"))))

    run(llama, tokens(llama, 2), folder, progress=watch)
    # Per cut: its input and the residual; the angles of both rotary tables; those of the cut before.
    assert max(counts) <= 7
    assert not (folder / "calibration").exists()


def test_products_against_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all sizes around a panel, the same bits for any number of threads."""
    rng = np.random.default_rng(4)
    for rows, columns in ((1, 1), (7, 511), (300, 512), (64, 513), (33, 1100)):
        x, b = rng.standard_normal((rows, columns)).astype(np.float32), rng.standard_normal((columns, 530))
        results = []
        for threads in (1, 3):
            monkeypatch.setattr(products, "default_threads", lambda threads=threads: threads)
            h = np.zeros((columns, columns))
            for _ in range(2):
                products.add_gram(h, x)
            products.mirror(h)
            results.append((h, products.product(x, b.astype(np.float32))))
        close(results[0][0], 2 * x.T.astype(np.float64) @ x, 1e-6)
        close(results[0][1], x.astype(np.float64) @ b, 1e-5)
        assert np.array_equal(results[0][0], results[0][0].T)
        assert all(np.array_equal(one, three) for one, three in zip(*results, strict=True))


def test_the_first_failure_of_parallel_work_ends_it() -> None:
    done: list[int] = []

    def job(i: int) -> None:
        if i == 3:
            raise EdgecError("E0502", stage="test", where=str(i))
        done.append(i)

    with pytest.raises(EdgecError, match="at: 3"):
        products.in_parallel(job, range(100000))
    assert len(done) < 100000 - 1


def test_errors(tmp_path: Path) -> None:
    """Own and accumulated errors against the definitions, in float64."""
    from edgec.compress.calibrate import Errors

    rng = np.random.default_rng(0)
    w, r = rng.standard_normal((2, 2100, 40)).astype(np.float32)
    x, y = rng.standard_normal((2, 30, 40)).astype(np.float32)
    sums = Accumulator(40)
    sums.add(x)
    errors = Errors(sums.stats("test"), [(x, y)])
    errors.add(w, r)
    w64, r64, x64, y64 = (a.astype(np.float64) for a in (w, r, x, y))
    assert errors.own == pytest.approx((((r64 - w64) @ x64.T) ** 2).sum() / ((w64 @ x64.T) ** 2).sum(), rel=1e-5)
    wanted = ((x64 @ r64.T - y64 @ w64.T) ** 2).sum() / ((y64 @ w64.T) ** 2).sum()
    assert errors.accumulated == pytest.approx(wanted, rel=1e-5)
    plain = Errors(None)
    plain.add(w, r)
    assert plain.own == pytest.approx(((r64 - w64) ** 2).sum() / (w64**2).sum(), rel=1e-5)
    assert plain.accumulated is None
    # All of an answer that should be nothing is error.
    nothing_wanted = Errors(None)
    nothing_wanted.add(np.zeros_like(w), r)
    assert nothing_wanted.own == 1.0


def test_errors_of_a_run(llama: ir.Model, tmp_path: Path) -> None:
    found = {x["name"]: x for x in run(llama, tokens(llama, 3), tmp_path / "q").state["layers"]}
    first = found["model.layers.0.self_attn.q_proj.weight"]
    # Nothing before the first group is quantized: both are the same but for how many samples they are taken over.
    assert first["accumulated"] == pytest.approx(first["error"], rel=1e-3)
    last = found["model.layers.1.mlp.down_proj.weight"]
    assert last["accumulated"] > 1.5 * last["error"] > 0


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_run_that_was_stopped_anywhere_ends_in_the_same_bytes(
    llama: ir.Model, tmp_path: Path, calibrated: bool
) -> None:
    samples = tokens(llama, 2) if calibrated else None
    run(llama, samples, tmp_path / "whole")
    wanted = contents(tmp_path / "whole")
    chance = random.Random(7)
    interruptions = 0

    def stop(*ignored: object) -> None:
        if chance.random() < 0.15:
            raise KeyboardInterrupt

    for _ in range(200):
        try:
            run(llama, samples, tmp_path / "parts", progress=stop)
            break
        except KeyboardInterrupt:
            interruptions += 1
            # As if it had been killed while it wrote.
            (tmp_path / "parts" / "layers" / "0000-half.safetensors.tmp").write_bytes(b"half")
    assert interruptions >= 3
    assert contents(tmp_path / "parts") == wanted
    # And a finished folder is left as it is.
    run(llama, samples, tmp_path / "parts")
    assert contents(tmp_path / "parts") == wanted


def test_slabs_of_rows_change_nothing(llama: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def watch(weights: Array, spec: object, stats: LinearStats | None, name: str) -> Quantized:
        rows.append(len(weights))
        return solver(weights, spec, stats, name)

    run(llama, tokens(llama, 2), tmp_path / "whole")
    monkeypatch.setattr(driver, "_PER_WEIGHT", 1 << 26)
    monkeypatch.setattr(driver, "resident_bytes", lambda: 0)
    run(llama, tokens(llama, 2), tmp_path / "slabs", watch, limit=1 << 40)
    assert set(rows) == {64, 32, 33}
    assert contents(tmp_path / "slabs") == contents(tmp_path / "whole")


def test_memory_limit(llama: ir.Model, tmp_path: Path) -> None:
    # What earlier tests left in this process goes now, and not between two looks at its memory.
    gc.collect()
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # not in every C library
    with pytest.raises(EdgecError, match="max-memory") as refused:
        run(llama, tokens(llama, 2), tmp_path / "q", limit=driver.resident_bytes() + 1000)
    assert refused.value.exit_code == 4
    used = int(refused.value.found.split()[0])
    assert abs(used - driver.resident_bytes()) < 64 << 20
    # The limit that the message names is enough, and hardly more, however much this process uses already.
    enough = int(refused.value.hint.split()[1].rstrip("M,")) << 20
    assert used + 1000 < enough < used + (64 << 20)
    run(llama, tokens(llama, 2), tmp_path / "enough", limit=enough + (32 << 20))
    # Nothing was begun, and a higher limit goes on in the same folder.
    run(llama, tokens(llama, 2), tmp_path / "q", limit=driver.resident_bytes() + (256 << 20))


def test_samples_that_make_infinities_are_refused(tmp_path: Path) -> None:
    samples = images(2)
    samples.arrays[1]["x"][0, 0, 3, 3] = np.inf
    work = driver.plan_work(graphs.small_cnn(), SPEC, [], solver)
    with opened(tmp_path / "q", ARGUMENTS) as store, pytest.raises(EdgecError, match="infinity or NaN") as bad:
        driver.run(work, samples, store, nothing)
    assert bad.value.code == "E0502"


def test_layers_whose_input_is_zero_are_made_without_samples(tmp_path: Path) -> None:
    def solve(weights: Array, spec: object, stats: LinearStats | None, name: str) -> Quantized:
        assert isinstance(spec, BitsSpec)
        return quantize_matrix(weights, spec, None, stats, where=name)

    black = Given([{"x": np.zeros((1, 3, 12, 12), np.float32)}] * 2)
    found = run(graphs.small_cnn(), black, tmp_path / "q", solve)
    assert {x["input"] for x in found.state["layers"]} == {"zero in every sample"}
    assert all(0 < x["error"] < 0.1 and x["accumulated"] == 0 for x in found.state["layers"])
    run(graphs.small_cnn(), None, tmp_path / "plain", solve)
    for file in sorted((tmp_path / "plain" / "layers").iterdir()):
        assert (tmp_path / "q" / "layers" / file.name).read_bytes() == file.read_bytes()
    assert all("input" not in x for x in run(graphs.small_cnn(), images(2), tmp_path / "r", solve).state["layers"])


def test_another_context_is_another_run(llama: ir.Model, tmp_path: Path) -> None:
    """Samples of another width must not meet activations of the first."""
    np.savez(tmp_path / "ids.npz", input_ids=np.zeros((1, 24), np.int64))
    options = quantization.QuantizeOptions("int4g32", calib=str(tmp_path / "ids.npz"))
    quantization.quantize(llama, options, tmp_path / "q", nothing, nothing)
    other = llama.clone()
    attach_info(other, dataclasses.replace(info_of(llama), max_context=64))
    with pytest.raises(EdgecError, match="shapes"):
        quantization.quantize(other, options, tmp_path / "q", nothing, nothing)


def test_activations_have_their_place_on_the_disk_before_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing to a hole of a mapped file on a full disk ends the process with a signal that nobody can catch."""
    model = graphs.small_cnn()
    cuts = cuts_of(model.graph, groups_of(model.graph, [x for x in find_layers(model) if not x.refused]))
    stream = Stream(model, cuts, images(2), 2, tmp_path, "s")
    name = stream._live[0][0]
    for fallocate in (True, False):
        if not fallocate:
            monkeypatch.delattr(calibrate.os, "posix_fallocate")
        mapped = stream._create(name, np.zeros((1, 300, 300), np.float32))
        assert mapped.shape == (2, 1, 300, 300)
        assert not mapped.any()
        found = stream._files[name].stat()
        assert found.st_blocks * 512 >= found.st_size == 128 + 2 * 360000

    def full(*ignored: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(calibrate.os, "posix_fallocate", full, raising=False)
    with pytest.raises(EdgecError, match="No space left") as refused:
        stream._create(name, np.zeros((1, 300, 300), np.float32))
    assert refused.value.code == "E0004"
    assert not stream._files[name].exists()


def test_a_run_that_fails_before_its_first_layer_leaves_nothing(llama: ir.Model, tmp_path: Path) -> None:
    """Else the corrected command would be refused: it has other arguments."""
    def broken(*ignored: object) -> Quantized:
        raise EdgecError("E0405", stage="test")

    with pytest.raises(EdgecError, match="E0405"):
        run(llama, tokens(llama, 2), tmp_path / "q", broken)
    assert not (tmp_path / "q").exists()
    (tmp_path / "q").mkdir()
    with pytest.raises(EdgecError, match="E0405"):
        run(llama, None, tmp_path / "q", broken)
    assert list((tmp_path / "q").iterdir()) == []
    # Sequences that were drawn, and finished steps, stay.
    with pytest.raises(EdgecError, match="E0405"):
        run(llama, tokens(llama, 2), tmp_path / "drawn", broken, drawn=b"1234")
    assert (tmp_path / "drawn" / "calibration" / "self.i32").read_bytes() == b"1234"
    calls = iter([solver, solver, broken])
    with pytest.raises(EdgecError, match="E0405"):
        run(llama, None, tmp_path / "q", lambda *layer: next(calls)(*layer))
    assert len(list((tmp_path / "q" / "layers").iterdir())) == 2


def test_samples_of_different_shapes_are_refused(tmp_path: Path) -> None:
    samples = images(2)
    model = graphs.small_cnn()
    model.graph.inputs[0].shape = ir.Shape(["n", 3, 12, 12])
    samples.arrays[1]["x"] = np.zeros((2, 3, 12, 12), np.float32)
    with pytest.raises(EdgecError, match="as of sample 0"):
        run(model, samples, tmp_path / "q")


class Folder:
    """A finished quantization to damage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        run(graphs.small_cnn(), images(1), path)
        self.layer = next((path / "layers").iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "q")


def test_a_folder_of_other_arguments(folder: Folder) -> None:
    with pytest.raises(EdgecError, match="'int3g32' then, 'int4' now"), opened(folder.path, {"quant": "int4"}):
        pass


def test_a_folder_in_use(folder: Folder) -> None:
    with opened(folder.path, ARGUMENTS), pytest.raises(EdgecError, match="another run"), opened(
            folder.path, ARGUMENTS):
        pass


def test_foreign_and_impossible_folders(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(EdgecError, match=r"letter\.txt"), opened(tmp_path, ARGUMENTS):
        pass
    with pytest.raises(EdgecError, match="E0004"), opened(tmp_path / "letter.txt" / "q", ARGUMENTS):
        pass
    with pytest.raises(EdgecError, match="no such file"):
        load_finished(tmp_path)


def test_an_unfinished_folder(tmp_path: Path) -> None:
    with opened(tmp_path / "q", ARGUMENTS) as store:
        store.commit([])
    with pytest.raises(EdgecError, match="1 finished steps"):
        load_finished(tmp_path / "q")


@pytest.mark.parametrize("text", ["", "[]", "{}", "{\"format\": 1}", "\0", "[" * 100000])
def test_a_damaged_state(folder: Folder, text: str) -> None:
    (folder.path / STATE).write_text(text)
    with pytest.raises(EdgecError, match="E0101"):
        load_finished(folder.path)


@pytest.mark.parametrize("damage", [
    lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data.replace(b"planes", b"plants"),
    lambda data: data.replace(b"int3g32", b"int2g32"), lambda data: b"\xff" * 8 + data[8:],
])
def test_damaged_layers(folder: Folder, damage: Callable[[bytes], bytes]) -> None:
    folder.layer.write_bytes(damage(folder.layer.read_bytes()))
    finished = load_finished(folder.path)
    name = next(x["name"] for x in finished.state["layers"] if x["file"].endswith(folder.layer.name))
    with pytest.raises(EdgecError, match="E0101"):
        finished[name].load()


def test_layers_outside_the_folder_are_not_read(folder: Folder) -> None:
    state = load_finished(folder.path).state
    state["layers"][0]["file"] = "layers/../../secret.safetensors"
    name = state["layers"][0]["name"]
    with pytest.raises(EdgecError, match="outside the folder"):
        Finished(folder.path, state)[name].load()
