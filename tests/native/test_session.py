"""Bundles through the C interface: arrays, tokens, state, errors."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgec.compress.formats import Dtype, Format
from edgec.env import ISA, LIBRARY
from edgec.errors import EdgecError
from edgec.native.bundle import write_bundle
from edgec.native.dims import dim
from edgec.native.library import Tensor, library, library_path, library_version
from edgec.native.plan import ALIGN, Call, Entry, Operand, Plan, Port, Space, Weight
from edgec.native.session import Model, NativeError, Session, Status, _view
from tests.native.plan_interpreter import Interpreter
from tests.native.tiny_plans import CHUNK, CONTEXT, VOCAB, tiny_cnn, tiny_lm, tiny_tokenizer

PROMPT = [5, 17, 260, 3, 99, 41, 7, 280, 12, 150, 66]  # longer than a chunk


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles")
    write_bundle(path / "cnn", tiny_cnn(), tokenizer=None, golden=None, manifest={"name": "cnn"})
    write_bundle(path / "lm", tiny_lm(), tokenizer=tiny_tokenizer().to_bytes(), golden=None, manifest={"name": "lm"})
    return path


@pytest.fixture
def cnn(folder: Path) -> Iterator[Model]:
    with Model(folder / "cnn") as model:
        yield model


@pytest.fixture
def lm(folder: Path) -> Iterator[Model]:
    with Model(folder / "lm") as model:
        yield model


def image(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 8, 8, 3)).astype(np.float32)


def test_info(cnn: Model, lm: Model) -> None:
    assert cnn.info.kind == 0
    assert [(p.name, p.dtype, p.shape) for p in cnn.inputs] == [("image", np.dtype(np.float32), (4, 8, 8, 3))]
    assert [(p.name, p.dtype, p.shape) for p in cnn.outputs] == [("probabilities", np.dtype(np.float32), (4, 10))]
    assert cnn.manifest == {"name": "cnn"}
    info = lm.info
    assert (info.kind, info.max_context, info.vocab_size, info.prefill_chunk) == (1, CONTEXT, VOCAB, CHUNK)
    assert (info.has_tokenizer, info.bos_token, info.eos_token, info.warning) == (True, 298, 299, "")
    assert lm.inputs == lm.outputs == []
    assert info.isa in ("scalar", "avx2", "avx512", "avx512vbmi", "amx", "neon", "neondot")
    assert library_version().count(".") == 2


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 3])
def test_run_against_numpy(cnn: Model, batch: int, threads: int) -> None:
    wanted = Interpreter(tiny_cnn()).run("main", {"image": image(batch)})["probabilities"]
    with cnn.session(threads=threads) as session:
        for _ in range(2):
            found = session.run({"image": image(batch)})
            assert list(found) == ["probabilities"]
            np.testing.assert_allclose(found["probabilities"], wanted, atol=1e-6)


def test_isas_agree(folder: Path) -> None:
    answers = []
    for isa in ("scalar", ""):
        with ISA.override(isa), Model(folder / "cnn") as model, model.session() as session:
            answers.append(session.run({"image": image(3)})["probabilities"])
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-6)
    with ISA.override("mmx"), pytest.raises(NativeError, match="mmx") as caught:
        Model(folder / "cnn")
    assert caught.value.status == Status.UNSUPPORTED


def test_views_need_no_copy_by_the_caller(cnn: Model) -> None:
    x = image(2)
    wide = np.zeros((2, 8, 16, 6), np.float32)
    wide[:, :, ::2, ::2] = x
    flipped = np.ascontiguousarray(x[:, ::-1])[:, ::-1]
    same = np.broadcast_to(np.float32(0.5), (2, 8, 8, 3))
    with cnn.session() as session:
        wanted = session.run({"image": x})["probabilities"]
        for view in (wide[:, :, ::2, ::2], flipped, np.asfortranarray(x)):
            np.testing.assert_array_equal(session.run({"image": view})["probabilities"], wanted)
        full = session.run({"image": np.full((2, 8, 8, 3), 0.5, np.float32)})["probabilities"]
        np.testing.assert_array_equal(session.run({"image": same})["probabilities"], full)


def test_an_output_may_lie_over_an_input(tmp_path: Path) -> None:
    """Two outputs from one input: the first is written before the input is read for the second."""
    shape = (dim(1000),)
    x = Operand(Space.INPUT, 0, 0, Dtype.F32, Format.PLAIN, shape)
    outs = [Operand(Space.OUTPUT, i, 0, Dtype.F32, Format.PLAIN, shape) for i in range(2)]
    calls = tuple(Call("unary", f"layer.{i}", (y, x), (code,), (0.0, 0.0))
                  for i, (y, code) in enumerate(zip(outs, (1, 4), strict=True)))
    entry = Entry("main", (Port("x", Dtype.F32, shape),), tuple(Port(n, Dtype.F32, shape) for n in "yz"), calls, ALIGN)
    weight = Weight("unused", Dtype.F32, Format.PLAIN, (1,), lambda: np.zeros(1, np.float32))
    values = np.linspace(-3, 3, 1000, dtype=np.float32)
    with Model(_bundle(tmp_path / "m", Plan(0, 0, 0, 0, (weight,), (), (entry,)))) as model, model.session() as session:
        wanted = session.run({"x": values})
        assert not np.array_equal(wanted["y"], values)
        for shift in (0, 1, 500):
            memory, other = np.zeros(2000, np.float32), np.empty(1000, np.float32)
            memory[500:1500] = values
            places = {"x": memory[500:1500], "y": memory[500 - shift : 1500 - shift], "z": other}
            views = {name: (Tensor * 1)(_view(name, array)) for name, array in places.items()}
            both = (Tensor * 2)(views["y"][0], views["z"][0])
            assert library().edgec_run(session.handle, views["x"], 1, both, 2) == Status.OK
            np.testing.assert_array_equal(places["y"], wanted["y"])
            np.testing.assert_array_equal(other, wanted["z"])


@pytest.mark.parametrize(
    ("name", "array", "text"),
    [
        ("imag", image(1), "did you mean 'image'"), ("image", image(1).astype(np.float64), "float64"),
        ("image", image(1)[0], "rank"), ("image", image(1)[:, :7], "dim 1"), ("image", image(5), "batch"),
        ("image", np.zeros((0, 8, 8, 3), np.float32), "batch"),
    ],
)
def test_wrong_arrays(cnn: Model, name: str, array: np.ndarray, text: str) -> None:
    with cnn.session() as session:
        before = session.run({"image": image(1)})["probabilities"]
        with pytest.raises(EdgecError) as caught:
            session.run({name: array})
        assert caught.value.code == "E0403"
        assert text in str(caught.value)
        with pytest.raises(EdgecError, match="missing"):
            session.run({})
        with pytest.raises(EdgecError, match="probabilities"):
            session.run({"image": image(1)}, ["scores"])
        np.testing.assert_array_equal(session.run({"image": image(1)})["probabilities"], before)


def test_language_model_against_numpy(lm: Model) -> None:
    reference = Interpreter(tiny_lm())
    wanted = np.concatenate(
        [reference.run("score", {"tokens": np.array(PROMPT[i : i + CHUNK], np.int32)}, past=i)["logits"]
         for i in range(0, len(PROMPT), CHUNK)]
    )
    with lm.session(threads=2) as session:
        np.testing.assert_allclose(session.score(PROMPT), wanted, atol=1e-5)
        assert session.position == len(PROMPT)
        session.reset()
        np.testing.assert_allclose(session.step(PROMPT), wanted[-1], atol=1e-5)
        session.seek(4)
        assert session.position == 4
        for i in range(4, len(PROMPT)):
            np.testing.assert_allclose(session.step(PROMPT[i : i + 1]), wanted[i], atol=1e-5)


def test_save_and_load(lm: Model) -> None:
    with lm.session() as one, lm.session() as other, lm.session(context=16) as smaller:
        one.step(PROMPT)
        saved = one.save()
        other.load(saved)
        assert other.position == len(PROMPT)
        np.testing.assert_array_equal(other.step([1]), one.step([1]))
        with pytest.raises(NativeError) as caught:
            smaller.load(saved)
        assert (caught.value.code, smaller.position) == ("E0404", 0)
        for bad in (b"", saved[:-1], b"x" + saved[1:]):
            with pytest.raises(NativeError) as caught:
                other.load(bad)
            assert caught.value.code == "E0401"


@pytest.mark.parametrize("kept", [Dtype.I8, Dtype.U8], ids=["int8", "int4"])
@pytest.mark.parametrize(("head", "kv_heads"), [(8, 1), (32, 2)])
def test_caches_of_codes(tmp_path: Path, kept: Dtype, head: int, kv_heads: int) -> None:
    """Chunks, single tokens, going back, saving and loading: the logits of the interpreter, whose numbers differ so
    little that hardly any code does."""
    plan = tiny_lm(kept, head, kv_heads)
    reference = Interpreter(plan)
    wanted = np.concatenate(
        [reference.run("score", {"tokens": np.array(PROMPT[i : i + CHUNK], np.int32)}, past=i)["logits"]
         for i in range(0, len(PROMPT), CHUNK)]
    )
    exact = Interpreter(tiny_lm(Dtype.F32, head, kv_heads)).run(
        "score", {"tokens": np.array(PROMPT[:CHUNK], np.int32)}, past=0)["logits"]
    assert np.abs(exact - wanted[:CHUNK]).max() > 1e-4
    with Model(_bundle(tmp_path / "lm", plan)) as model, model.session(threads=2) as one, model.session() as other:
        np.testing.assert_allclose(one.score(PROMPT), wanted, atol=2e-4)
        one.seek(4)
        for i in range(4, len(PROMPT)):
            np.testing.assert_allclose(one.step(PROMPT[i : i + 1]), wanted[i], atol=2e-4)
        other.load(one.save())
        assert other.position == len(PROMPT)
        np.testing.assert_array_equal(other.step([1]), one.step([1]))
        one.reset()
        np.testing.assert_allclose(one.step(PROMPT), wanted[-1], atol=2e-4)
        assert one.memory.state == plan.memory_table([CONTEXT]).state[CONTEXT]


def greedy(session: Session, prompt: list[int], n: int) -> list[int]:
    """Token by token with step(): the lowest id of the largest logit."""
    found: list[int] = []
    logits = session.step(prompt)
    for _ in range(n):
        found.append(int(np.argmax(logits)))
        logits = session.step(found[-1:])
    return found


def test_generate_is_greedy_and_seek_repeats_it(lm: Model) -> None:
    with lm.session() as session:
        wanted = greedy(session, PROMPT, 12)
        session.reset()
        seen: list[tuple[int, str]] = []
        found = session.generate(PROMPT, 12, ignore_eos=True, on_token=lambda t, text: seen.append((t, text)))
        assert found == wanted == [t for t, _ in seen]
        assert "".join(text for _, text in seen) == lm.detokenize(found)
        session.seek(len(PROMPT) - 1)
        assert session.generate(PROMPT[-1:], 12, ignore_eos=True) == wanted


def test_generate_stops(lm: Model) -> None:
    with lm.session() as session:
        whole = session.generate(PROMPT, 8, ignore_eos=True)
        session.reset()
        made: list[int] = []

        def stop(token: int, text: str) -> bool:
            made.append(token)
            return len(made) < 3

        assert session.generate(PROMPT, 8, ignore_eos=True, on_token=stop) == whole[:3] == made
        assert session.position == len(PROMPT) + 3
        session.reset()

        def fail(token: int, text: str) -> bool:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            session.generate(PROMPT, 8, on_token=fail)


def test_interrupted_generation(lm: Model) -> None:
    """Ctrl-C that comes while the runtime works reaches Python at a callback's first instruction."""
    # A parent that ignores Ctrl-C, as a shell does for its background jobs, hands that down to the tests.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    made: list[int] = []

    def press(token: int, text: str) -> None:
        made.append(token)
        if len(made) == 2:
            signal.raise_signal(signal.SIGINT)

    try:
        with lm.session() as session:
            with pytest.raises(KeyboardInterrupt):
                session.generate(PROMPT, 8, ignore_eos=True, on_token=press)
            assert len(made) == 2
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_sampling_follows_the_distribution(lm: Model) -> None:
    """One token after a prompt, over many seeds, against the softmax of the logits; the same seed repeats."""
    with lm.session(threads=1) as session:
        logits = session.step(PROMPT[:4]).astype(np.float64)

        def draw(seed: int, **options: float) -> int:
            session.seek(3)
            (token,) = session.generate(PROMPT[3:4], 1, seed=seed, ignore_eos=True, **options)  # type: ignore[arg-type]
            return token

        cases = ({"temperature": 1.0}, {"temperature": 0.5, "top_k": 7}, {"temperature": 1.0, "top_p": 0.6},
                 {"temperature": 2.0, "top_k": 40, "top_p": 0.5})
        for options in cases:
            p = np.exp((logits - logits.max()) / options["temperature"])
            order = np.argsort(-p, kind="stable")
            p[order[int(options.get("top_k", VOCAB)) :]] = 0
            p /= p.sum()
            kept = int(np.searchsorted(np.cumsum(p[order]), options.get("top_p", 1.0) - 1e-12)) + 1
            p[order[kept:]] = 0
            p /= p.sum()
            n = 1500
            counts = np.bincount([draw(seed, **options) for seed in range(n)], minlength=VOCAB)
            assert not counts[p == 0].any()
            # Five standard deviations for each token.
            assert (np.abs(counts - n * p) <= 5 * np.sqrt(n * p * (1 - p)) + 3).all()
            assert draw(3, **options) == draw(3, **options)
        assert draw(1, temperature=5.0, top_k=1) == int(np.argmax(logits))


def test_sampling_of_equal_and_missing_numbers(tmp_path: Path) -> None:
    """Tied rows of the head give equal logits: the lowest id wins. A row of NaN gives NaN: it never does."""
    plan = tiny_lm()
    rows = plan.weights[0].load().copy()
    with Model(_bundle(tmp_path / "a", plan)) as model, model.session() as session:
        best = int(np.argmax(session.step(PROMPT)))
    low, high, missing = sorted({1, 2, 4} - {best} - set(PROMPT))[0], 299, 298
    rows[low] = rows[high] = rows[best] * 3
    rows[missing] = np.nan
    head = replace(plan.weights[0], load=lambda: rows)
    tied = replace(plan, weights=(head, *plan.weights[1:]))
    with Model(_bundle(tmp_path / "b", tied)) as model, model.session() as session:
        logits = session.step(PROMPT)
        assert logits[low] == logits[high] == np.nanmax(logits)
        assert np.isnan(logits[missing])
        session.seek(len(PROMPT) - 1)
        assert session.generate(PROMPT[-1:], 1, ignore_eos=True) == [low]
        seen = set()
        for seed in range(300):
            session.seek(len(PROMPT) - 1)
            options = ({"top_k": 4}, {"top_p": 0.99}, {})[seed % 3]
            seen.update(session.generate(PROMPT[-1:], 1, temperature=3.0, seed=seed, ignore_eos=True, **options))
        assert missing not in seen
        assert len(seen) > 2


def _bundle(path: Path, plan: Plan) -> Path:
    write_bundle(path, plan, tokenizer=None, golden=None, manifest={})
    return path


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"temperature": -1.0}, "E0403"), ({"temperature": float("nan")}, "E0403"), ({"top_p": 0.0}, "E0403"),
        ({"top_p": 1.5}, "E0403"), ({"max_tokens": CONTEXT}, "E0404"), ({"max_tokens": -1}, "E0403"),
        ({"prompt": []}, "E0403"), ({"prompt": [VOCAB]}, "E0403"), ({"prompt": [2**40]}, "E0403"),
    ],
)
def test_wrong_generation(lm: Model, options: dict[str, object], code: str) -> None:
    arguments = {"prompt": PROMPT, "max_tokens": 2, **options}
    with lm.session() as session:
        session.step([1, 2])
        with pytest.raises(EdgecError) as caught:
            session.generate(**arguments)  # type: ignore[arg-type]
        assert (caught.value.code, session.position) == (code, 2)


def test_context_and_memory_limits(lm: Model, cnn: Model) -> None:
    with lm.session(context=10) as session:
        session.step(PROMPT[:10])
        with pytest.raises(NativeError) as caught:
            session.step([1])
        assert (caught.value.code, session.position) == ("E0404", 10)
        with pytest.raises(NativeError) as caught:
            session.seek(11)
        assert caught.value.code == "E0403"
        need = session.memory
    assert need.total == need.arena + need.scratch + need.state + need.other
    with pytest.raises(NativeError) as caught:
        lm.session(max_memory=1000)
    assert caught.value.status == Status.LIMIT
    assert caught.value.code == "E0405"
    with lm.session(context=10, max_memory=need.total) as session:
        session.step([1])
    for model, options in ((lm, {"context": CONTEXT + 1}), (cnn, {"context": 5}), (lm, {"threads": 10**6})):
        with pytest.raises(NativeError) as caught:
            model.session(**options)
        assert caught.value.status == Status.ARGUMENT


def test_wrong_kind_of_model(lm: Model, cnn: Model) -> None:
    with cnn.session() as session, pytest.raises(EdgecError, match="language model"):
        session.score([1])
    for call in (lambda: cnn.tokenize("a"), lambda: cnn.detokenize([1])):
        with pytest.raises(NativeError, match="without a tokenizer"):
            call()


def test_profile(cnn: Model) -> None:
    with cnn.session(profile=True) as session:
        for _ in range(3):
            session.run({"image": image(2)})
        calls = session.profile()
        assert [(c.kernel, c.layer, c.count) for c in calls] == [
            (c.kernel, c.layer, 3) for c in tiny_cnn().entry("main").calls
        ]
        assert all(c.nanoseconds > 0 and c.bytes > 0 and c.entry == "main" for c in calls)
        session.reset_profile()
        assert all(c.count == c.nanoseconds == 0 for c in session.profile())
    with cnn.session() as session:
        assert session.profile() == []


def test_closing(folder: Path) -> None:
    model = Model(folder / "lm")
    session = model.session()
    with pytest.raises(EdgecError, match="open sessions"):
        model.close()
    session.close()
    session.close()
    model.close()
    model.close()
    with pytest.raises(EdgecError, match="closed"):
        model.tokenize("a")
    with pytest.raises(EdgecError, match="closed"):
        session.step([1])


def test_selftest_and_verify(lm: Model) -> None:
    lm.verify()
    assert lm.selftest() == ""
    with pytest.raises(NativeError, match="golden"):
        lm.selftest(golden=True)


def test_library_lookup(tmp_path: Path) -> None:
    with LIBRARY.override(str(tmp_path / "none.so")), pytest.raises(EdgecError) as caught:
        library_path()
    assert caught.value.code == "E0007"
    assert "EDGEC_LIBRARY" in str(caught.value)
    (tmp_path / "text.so").write_text("no library")
    with LIBRARY.override(str(tmp_path / "text.so")), pytest.raises(EdgecError) as caught:
        library_version()
    assert caught.value.code == "E0007"
