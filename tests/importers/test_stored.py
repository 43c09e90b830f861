"""Headers of safetensors files that no honest writer makes: each is an error of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgec.errors import EdgecError
from edgec.importers.stored import open_safetensors


def entry(shape: str, offsets: str = "[0, 4]") -> bytes:
    return f'{{"w": {{"dtype": "F32", "shape": {shape}, "data_offsets": {offsets}}}}}'.encode()


def written(folder: Path, header: bytes) -> Path:
    file = folder / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    return file


def test_a_good_header(tmp_path: Path) -> None:
    assert open_safetensors(written(tmp_path, entry("[1, 1]")))["w"].read().tolist() == [[0.0]]


@pytest.mark.parametrize("header", [
    b"[]", b"[" * 200_000, entry("[1]", "[0, Infinity]"), entry("[1]", "[0, 8]"), entry("[1]", "[4, 0]"),
    entry("[-1, -1]"), entry(str([1] * 100)), entry(f"[0, {1 << 62}, {1 << 62}]", "[0, 0]"), entry("[2]"),
], ids=["list", "nested", "infinite", "beyond", "backwards", "negative", "rank", "huge beside 0", "bytes"])
def test_headers_that_cannot_be(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(EdgecError) as caught:
        open_safetensors(written(tmp_path, header))
    assert caught.value.code == "E0101"
