"""The runtime's tokenizer against the `tokenizers` library, through bundles."""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from edgec.errors import EdgecError
from edgec.native.bundle import write_bundle
from edgec.native.session import Model, NativeError, Status
from edgec.native.tokenizer import (
    PATTERNS,
    Added,
    AddedFlag,
    Flag,
    Pattern,
    TokenizerData,
    parse_scored,
    parse_tokenizer,
    tokenizer_section,
)
from tests.native.tiny_plans import tiny_cnn, tiny_lm

ROOT = Path(__file__).resolve().parent.parent.parent
META = "\u2581"
CORPUS = [
    "The tokenizer's job isn't hard, they'd say: it's 1234 words, 99.5% of them known; we'll see what I've done.\n",
    "  Indented code:\n\tif (x == 42) {\r\n        return f(x, \"two\");\r\n    }\n\n\n",
    "WE'LL SHOUT; THEY'RE LOUD. camelCase\n",
    "naïve café résumé Ünïcödé, Ελληνικά, Русский язык, العربية, हिन्दी भाषा, ไทย, 日本語のテキスト, 中文字符, 한국어\n",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 ½ Ⅷ ٣٤٥ ①② x² __init__ https://example.org/a/b?c=d#e  --flag=value ... !!! (((nested)))\n",
] * 20
# Characters where patterns, normalization and word boundaries can go wrong.
TRICKY = [*" \n\r\t'’sSdDtTmMlLeErRvVaAzZéÉſKß012٣Ⅷ²½ǅʰªºカ漢字글한😀🏳\ufe0f\u200d\u0301\u0323\u0307\u0345\u0334ẛ̣Å"
          "\u00a0\u2003\u2028\u3000\x00\x1c\x85-_.,!/▁<|>İı\u0f71\u0f72\U0001d15e\U000118e0\U00011de0\U0001e900",
          "<s>", "</s>", "<unk>", "<extra>", "<ex", "<norm>", "<x> ", "  ", "\n\n", "'LL", "'re", " hello", "World",
          "<0x0A>", "▁▁", "12345", "    ", "\r\n\r\n", "가", "각", "\u1100\u1161\u11a8"]


def train(tokenizer: Tokenizer, size: int, special: tuple[str, ...], **options: Any) -> Tokenizer:
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), show_progress=False, **options)
    )
    return tokenizer


def byte_level(pre: Any, normalizer: Any = None, all_bytes: bool = True, **options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet() if all_bytes else []
    return train(tokenizer, 450 if all_bytes else 250, ("<s>", "</s>"), initial_alphabet=alphabet)


def split(pattern: Pattern, behavior: str = "isolated", invert: bool = False) -> Any:
    text = next(text for text, known in PATTERNS.items() if known == pattern)
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(text), behavior, invert=invert),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


def digits(alone: bool) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=alone),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False)])


def fallback_decoder(strip: bool) -> Any:
    steps = [decoders.Replace(META, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)


def sentencepiece(
    normalizer: Any, pre: Any, decoder: Any, *, fallback: bool = True, fuse: bool = True, across: bool = False
) -> Tokenizer:
    """across: trained without word boundaries, so that some merges cross a space."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=fuse, byte_fallback=fallback))
    trained.normalizer = normalizers.Replace(" ", META)
    if not across:
        trained.pre_tokenizer = pre_tokenizers.Split(META, "merged_with_next")
    byte_tokens = tuple(f"<0x{b:02X}>" for b in range(256)) if fallback else ()
    size = 600 if fallback else 300
    train(trained, size, ("<unk>", "<s>", "</s>", *byte_tokens), limit_alphabet=90)
    spec = json.loads(trained.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    empty = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer if normalizer is not None else empty.normalizer
    tokenizer.pre_tokenizer = pre if pre is not None else empty.pre_tokenizer
    tokenizer.decoder = decoder
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=None, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def llama2_normalizer() -> Any:
    return normalizers.Sequence([normalizers.Prepend(META), normalizers.Replace(" ", META)])


def metaspace(scheme: str, whole: bool) -> Any:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=not whole)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt2 with a prefix": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "gpt2 with some bytes": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), all_bytes=False),
    "no regex": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "llama3": lambda: byte_level(split(Pattern.LLAMA3)),
    "llama3 whole words": lambda: byte_level(split(Pattern.LLAMA3), ignore_merges=True),
    "llama3 inverted": lambda: byte_level(split(Pattern.LLAMA3, "removed", True)),
    "qwen2": lambda: byte_level(split(Pattern.QWEN2), normalizers.NFC()),
    "marks": lambda: byte_level(split(Pattern.MARKS)),
    "o200k": lambda: byte_level(split(Pattern.O200K)),
    "digits alone": lambda: byte_level(digits(True)),
    "digits in runs": lambda: byte_level(digits(False)),
    "llama2": lambda: sentencepiece(llama2_normalizer(), None, fallback_decoder(True)),
    "llama2 unknown": lambda: sentencepiece(llama2_normalizer(), None, fallback_decoder(True), fallback=False),
    "llama2 unfused": lambda: sentencepiece(llama2_normalizer(), None, fallback_decoder(True), fallback=False,
                                            fuse=False),
    "llama2 across": lambda: sentencepiece(llama2_normalizer(), None, fallback_decoder(True), across=True),
    "gemma": lambda: sentencepiece(normalizers.Replace(" ", META), pre_tokenizers.Split(" ", "merged_with_previous"),
                                   fallback_decoder(False)),
    "metaspace always": lambda: sentencepiece(None, metaspace("always", False), fallback_decoder(True)),
    "metaspace first": lambda: sentencepiece(None, metaspace("first", True),
                                             decoders.Metaspace(prepend_scheme="first")),
    "metaspace never": lambda: sentencepiece(None, metaspace("never", False),
                                             decoders.Metaspace(prepend_scheme="never")),
}


class Pair:
    """A tokenizer of the library and the runtime's reading of it."""

    def __init__(self, reference: Tokenizer, data: TokenizerData, folder: Path) -> None:
        self.reference, self.data = reference, data
        # Any bundle will do; in a generic one the ids have no bound of their own.
        write_bundle(folder / "model.edgec", tiny_cnn(), tokenizer=data.to_bytes(), golden=None, manifest={})
        self.model = Model(folder / "model.edgec")

    def check_text(self, text: str) -> None:
        ids = self.reference.encode(text).ids
        assert self.model.tokenize(text) == ids
        assert self.model.tokenize(text, add_special=False) == self.reference.encode(text, add_special_tokens=False).ids
        self.check_ids(ids)

    def check_ids(self, ids: list[int]) -> None:
        assert self.model.detokenize(ids) == self.reference.decode(ids)


# One for each pattern, normalization and use of digits.
DISTINCT = ("gpt2", "llama3", "qwen2", "marks", "o200k", "digits alone", "llama2", "metaspace always")


def make_pair(kind: str, folder: Path) -> Pair:
    reference = KINDS[kind]()
    reference.add_tokens([
        AddedToken("<extra>", normalized=False, lstrip=True, rstrip=True), AddedToken("<ex", normalized=False),
        AddedToken("<norm>", normalized=True), AddedToken("<norm>é", normalized=True),
        AddedToken("<x> ", normalized=False, rstrip=True),
    ])
    return Pair(reference, parse_tokenizer(json.loads(reference.to_str())), folder)


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(request.param, tmp_path_factory.mktemp("pair"))


def test_tricky_texts(pair: Pair) -> None:
    rng = random.Random(7)
    for text in CORPUS[:5]:
        pair.check_text(text)
    pair.check_text("a" * 5000)
    pair.check_text(" " * 3000 + "\n" * 500 + "x")
    for _ in range(1500):
        pair.check_text("".join(rng.choices(TRICKY, k=rng.choice((0, 1, 2, 3, 5, 8, 20, 60)))))


@pytest.mark.parametrize("kind", DISTINCT)
def test_every_character_between_others(kind: str, tmp_path: Path) -> None:
    """Class and normalization of every code point, a few thousand to a text."""
    pair = make_pair(kind, tmp_path)
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for start in range(0, len(characters), 4096):
        part = characters[start : start + 4096]
        # All texts would take minutes; the assigned planes in full, the rest by one in sixteen.
        if start < 0x20000 or start // 4096 % 16 == 0:
            text = "a".join(part) + " ".join(part)
            assert pair.model.tokenize(text) == pair.reference.encode(text).ids


def test_random_ids_decode_alike(pair: Pair) -> None:
    rng = random.Random(3)
    size = len(pair.data.pieces)
    for _ in range(1500):
        pair.check_ids([rng.randrange(size) for _ in range(rng.randrange(12))])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.one_of(st.text(), st.text(alphabet=st.sampled_from("ab '\n\r\t1é\u0301한<>s/"), max_size=60)))
def test_random_texts(pair: Pair, text: str) -> None:
    pair.check_text(text)


def test_byte_level_text_comes_back(pair: Pair) -> None:
    lossless = pair.data.byte_piece.count(None) == 0 and not pair.data.flags & 0b1111101110
    if not lossless:  # a prefix, normalization or unknown characters change the text
        pair.check_text("plain")
        return
    for text in (*CORPUS[:5], "\x00\x01", "e\u0301"):
        assert pair.model.detokenize(pair.model.tokenize(text)) == text


def test_stream_equals_detokenize(tmp_path: Path) -> None:
    """Generation emits whole characters only, and together what detokenize gives."""
    data = TokenizerData(pieces=[bytes([i]) for i in range(256)], byte_piece=list(range(256)))
    data.pieces += [b""] * 44
    write_bundle(tmp_path / "lm", tiny_lm(), tokenizer=data.to_bytes(), golden=None, manifest={})
    with Model(tmp_path / "lm") as model, model.session() as session:
        seen_multibyte = False
        for seed in range(60):
            session.reset()
            parts: list[str] = []
            prompt = list("é漢😀".encode())[: 1 + seed % 9]
            made = session.generate(prompt, 20, temperature=50.0, seed=seed,
                                    on_token=lambda _, text, parts=parts: parts.append(text))  # type: ignore[misc]
            wanted = bytes(i for i in made if i < 256).decode("utf-8", "replace")
            assert "".join(parts) == model.detokenize(made) == wanted
            seen_multibyte = seen_multibyte or any(len(p.encode()) > 1 and "\ufffd" not in p for p in parts)
        assert seen_multibyte


@pytest.mark.parametrize("source", ["prose/valid.txt", "wikitext2/valid.txt"])
def test_prose_lm(asset: Callable[[str], Path], tmp_path: Path, source: str) -> None:
    folder = asset("prose_lm/tokenizer.json").parent
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    pair = Pair(reference, parse_tokenizer(spec, bos=0, eos=[1], vocab_size=4096), tmp_path)
    text = asset(source).read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    assert len(lines) > 3000
    for line, wanted in zip(lines, reference.encode_batch(lines), strict=True):
        assert pair.model.tokenize(line) == wanted.ids
    start = time.perf_counter()
    ids = pair.model.tokenize(text)
    seconds = time.perf_counter() - start
    assert ids == reference.encode(text).ids
    assert pair.model.detokenize(ids) == text
    assert seconds < 5 * len(text) / 1e6  # usually 0.1 s for 1 MB


def test_time_is_not_quadratic(tmp_path: Path) -> None:
    """One word of a megabyte, in the kind that does not cut words, and in one whose merges nest deeply."""
    for name in ("llama2 across", "gpt2", "qwen2"):
        reference = KINDS[name]()
        folder = tmp_path / name
        folder.mkdir()
        pair = Pair(reference, parse_tokenizer(json.loads(reference.to_str())), folder)
        for text in ("a" * 1_000_000, "\u0301\u0323" * 250_000, " \n" * 500_000, "word " * 200_000):
            start = time.perf_counter()
            ids = pair.model.tokenize(text)
            assert time.perf_counter() - start < 10  # about 0.2 s; quadratic would be hours
            assert len(ids) > 1000


@pytest.mark.parametrize("flag", [AddedFlag.STRIP_LEFT, AddedFlag.STRIP_RIGHT])
def test_stripping_is_not_quadratic(flag: AddedFlag, tmp_path: Path) -> None:
    """An added token that is itself a space, and takes in the spaces beside it."""
    data = TokenizerData(pieces=[b"a", b" "], byte_piece=[None] * 256, added=[Added(1, b" ", flag)], lookup=[0])
    data.flags = Flag.CHARACTERS
    write_bundle(tmp_path / "m", tiny_cnn(), tokenizer=data.to_bytes(), golden=None, manifest={})
    with Model(tmp_path / "m") as model:
        assert model.tokenize("a  a a") == [0, 1, 1, 0, 1, 0]
        start = time.perf_counter()
        assert len(model.tokenize("a" + " " * 2_000_000)) == 2_000_001
        assert time.perf_counter() - start < 10  # about 0.1 s; quadratic would be an hour


def _llama2c(text: str, vocabulary: list[tuple[bytes, float]]) -> list[int]:
    """The encoder of score-based vocabularies, by definition: always the best-scoring pair, the leftmost of equals."""
    ids = {piece: i for i, (piece, _) in reversed(list(enumerate(vocabulary)))}
    tokens = [1] + ([ids[b" "]] if text else [])
    for c in text:
        tokens += [ids[c.encode()]] if c.encode() in ids else [b + 3 for b in c.encode()]
    while True:
        pairs = [(vocabulary[a][0] + vocabulary[b][0], i) for i, (a, b) in enumerate(pairwise(tokens))]
        scored = [(-vocabulary[ids[piece]][1], i, ids[piece]) for piece, i in pairs if piece in ids]
        if not scored:
            return tokens
        _, i, joined = min(scored)
        tokens[i : i + 2] = [joined]


def test_scored_vocabulary(asset: Callable[[str], Path], tmp_path: Path) -> None:
    raw = asset("stories260k/tok512.bin").read_bytes()
    vocabulary, at = [], 4
    while at < len(raw):
        score, length = struct.unpack_from("<fi", raw, at)
        vocabulary.append((raw[at + 8 : at + 8 + length], score))
        at += 8 + length
    write_bundle(tmp_path / "m", tiny_cnn(), tokenizer=parse_scored(vocabulary).to_bytes(), golden=None, manifest={})
    rng = random.Random(1)
    prose = asset("prose/valid.txt").read_text(encoding="utf-8")
    with Model(tmp_path / "m") as model:
        for _ in range(200):
            start = rng.randrange(len(prose) - 200)
            text = prose[start : start + rng.randrange(100)] + rng.choice(["", "é漢", "\x00", "  "])
            ids = model.tokenize(text)
            assert ids == _llama2c(text, vocabulary)
            assert model.detokenize(ids) == text


def test_bad_input(pair: Pair) -> None:
    for bad in (b"\xff", b"ok \xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80"):
        with pytest.raises(NativeError, match="not UTF-8") as caught:
            pair.model.tokenize(bad)
        assert caught.value.status == Status.ARGUMENT
    with pytest.raises(NativeError) as caught:
        pair.model.detokenize([-1])
    assert caught.value.status == Status.TENSOR
    assert pair.model.detokenize([]) == ""


def _spec(**changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(KINDS["gpt2"]().to_str())
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = spec
        for parent in parents:
            target = target[parent]
        target[last] = value
    return spec


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"model": {"type": "WordPiece", "vocab": {}}}, "E0103", "WordPiece"),
        ({"model": {"type": "Unigram", "vocab": []}}, "E0103", "Unigram"),
        ({"model__dropout": 0.1}, "E0103", "dropout"), ({"model__end_of_word_suffix": "</w>"}, "E0103", "end_of_word"),
        ({"model__byte_fallback": True}, "E0103", "byte_fallback"), ({"normalizer": {"type": "NFKC"}}, "E0103", "NFKC"),
        ({"normalizer": {"type": "Lowercase"}}, "E0103", "Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "E0103", "Whitespace"),
        ({"pre_tokenizer__pretokenizers": [], "pre_tokenizer__type": "BertPreTokenizer"}, "E0103", "BertPreTokenizer"),
        ({"pre_tokenizer": None}, "E0103", "none"), ({"decoder": {"type": "WordPiece"}}, "E0103", "WordPiece"),
        ({"decoder": None}, "E0103", "decoder"), ({"post_processor": {"type": "Other"}}, "E0103", "Other"),
        ({"truncation": {"max_length": 5}}, "E0103", "truncation"), ({"model__vocab": {}}, "E0101", "KeyError"),
        ({"model__merges": [["q", "qqq"]]}, "E0101", "KeyError"), ({"added_tokens": 5}, "E0101", "TypeError"),
        ({"model": None}, "E0101", "Error"),
    ],
)
def test_unsupported_parts_are_named(changes: dict[str, Any], code: str, text: str) -> None:
    parse_tokenizer(_spec())
    with pytest.raises(EdgecError, match=text) as caught:
        parse_tokenizer(_spec(**changes))
    assert caught.value.code == code
    if code == "E0103":
        assert "external tokenizer" in caught.value.hint


def test_pattern_that_is_not_known() -> None:
    spec = json.loads(byte_level(split(Pattern.LLAMA3)).to_str())
    parse_tokenizer(spec)
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] += "|x"
    with pytest.raises(EdgecError, match="Split"):
        parse_tokenizer(spec)


def test_ids_beyond_the_model(tmp_path: Path) -> None:
    spec = _spec()
    size = max(spec["model"]["vocab"].values()) + 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    assert len(tokenizer_section(tmp_path / "tokenizer.json", vocab_size=size)) > 96
    for wrong in ({"vocab_size": size - 1}, {"vocab_size": size, "bos": size}, {"vocab_size": size, "eos": [size]}):
        with pytest.raises(EdgecError) as caught:
            tokenizer_section(tmp_path / "tokenizer.json", **wrong)  # type: ignore[arg-type]
        assert caught.value.code == "E0103"
    assert parse_tokenizer(spec, eos=[size + 3]).pieces[size:] == [b""] * 4
    with pytest.raises(EdgecError) as caught:
        tokenizer_section(tmp_path / "none.json")
    assert caught.value.code == "E0003"
    (tmp_path / "text.json").write_text("{", encoding="utf-8")
    with pytest.raises(EdgecError) as caught:
        tokenizer_section(tmp_path / "text.json")
    assert caught.value.code == "E0101"


def test_unicode_tables_are_current() -> None:
    """The committed header is what its generator writes with the installed tokenizers library."""
    import importlib.util

    path = ROOT / "runtime" / "gen_unicode_tables.py"
    module_spec = importlib.util.spec_from_file_location("gen_unicode_tables", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    assert path.with_name("unicode_tables.h").read_text(encoding="ascii") == module.text()
