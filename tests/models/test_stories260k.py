"""The converter of stories260K: weights, tokenizer, and a story in English."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgec.importers import load
from edgec.importers.reference import load_reference
from edgec.ir.info import info_of
from tests.models import stories260k


@pytest.fixture(scope="module")
def stories(asset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(source, converted folder)"""
    source = asset("stories260k")
    return source, stories260k.convert(source, tmp_path_factory.mktemp("stories") / "stories260k")


def test_tokenizer_is_that_of_llama2_c(stories: tuple[Path, Path]) -> None:
    import tokenizers

    source, folder = stories
    pieces = stories260k.read_vocabulary(source / "tok512.bin", 512)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("Once upon a time, there was a girl.", "Tom's dog  ran fast!\nIt — was 3 o'clock. naïve", "aaaa 😀"):
        ids = tokenizer.encode(text).ids
        assert ids == stories260k.encode(pieces, text)
        assert tokenizer.decode(ids) == text


def test_tells_a_story(stories: tuple[Path, Path]) -> None:
    import tokenizers

    _, folder = stories
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    original = load_reference(folder)
    prompt = tokenizer.encode("Once upon a time").ids
    text = tokenizer.decode(prompt + original.generate(prompt, 60))
    assert text.startswith("Once upon a time, there was a little girl named Lily. She loved to play outside in the")


def test_imports(stories: tuple[Path, Path]) -> None:
    info = info_of(load(stories[1]))
    assert (info.vocab_size, info.max_context, info.bos_token, info.eos_tokens) == (512, 512, 1, (2,))
    assert info.tokenizer is not None
