"""Output folders: whole or not at all, and never over somebody's files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgec.errors import EdgecError
from edgec.native.bundle import write_bundle
from edgec.targets import output
from edgec.targets.output import check_output, check_writable, output_folder, write_json, write_text
from tests.native import tiny_plans


def fill(outdir: Path, text: str) -> None:
    with output_folder(outdir) as work:
        (work / "include").mkdir()
        (work / "include" / "text").write_text(text)
        write_json(work / "manifest.json", {"edgec_version": "0", "files": {"include/text": {}}})
        assert text not in [p.read_text() for p in outdir.glob("include/text")], "visible before it is complete"


def test_new_empty_and_earlier_outputs(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    fill(out, "first")
    fill(out, "second")
    assert sorted(p.name for p in out.iterdir()) == ["include", "manifest.json"]
    assert (out / "include" / "text").read_text() == "second"
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty", "third")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "empty"]
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_a_failure_leaves_the_earlier_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, "first")

    def fail() -> None:
        with output_folder(out) as work:
            (work / "include").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (out / "include" / "text").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_an_edgec_error(tmp_path: Path) -> None:
    with pytest.raises(EdgecError) as caught, output_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert caught.value.code == "E0004"
    assert "No space left" in str(caught.value)


def full(*args: object, **options: object) -> str:
    raise OSError(28, "No space left on device", "/somewhere/.edgec-1234")


def write_into_nowhere(work: Path) -> None:
    write_bundle(work / "missing" / "model.edgec", tiny_plans.tiny_cnn(), tokenizer=None, golden=None, manifest={})


def write_into_a_folder_without_permission(work: Path) -> None:
    raise OSError(13, "Permission denied", str(work / "include"))


def tell_of_the_folder(work: Path) -> None:
    raise EdgecError("E0007", stage="toolchain", where=f"{work}/libmodel.so", found=f"cannot open {work}",
                     hint="another")


@pytest.mark.parametrize("fail", [write_into_nowhere, write_into_a_folder_without_permission, tell_of_the_folder, None])
def test_errors_name_the_folder_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   fail: Callable[[Path], None] | None) -> None:
    """Files are written elsewhere first, which is no concern of the user and gone again."""
    if fail is None:
        monkeypatch.setattr(tempfile, "mkdtemp", full)
        monkeypatch.setattr(output, "check_output", lambda outdir: None)
    with pytest.raises(EdgecError) as caught, output_folder(tmp_path / "out") as work:
        (fail or full)(work)
    assert caught.value.where.startswith(str(tmp_path / "out"))
    assert ".edgec-" not in str(caught.value)
    assert "another" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(EdgecError) as caught:
            check_output(path)
        assert caught.value.code == "E0004"
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("manifest", ['{"name": "a browser extension"}', "[1]", "no json", "\"edgec_version\"",
                                      '{"edgec_version": "0"}', '{"edgec_version": "0", "files": 3}'])
def test_a_manifest_of_another_program_is_not_ours(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    (tmp_path / "src").mkdir()
    with pytest.raises(EdgecError, match="other files"):
        check_output(tmp_path)


def test_files_put_into_an_output_are_not_removed(tmp_path: Path) -> None:
    for place in ("mine.npz", "include/mine.h"):
        out = tmp_path / place.replace("/", "_")
        fill(out, "first")
        (out / place).write_text("mine")
        with pytest.raises(EdgecError, match=place):
            fill(out, "second")
        assert (out / place).read_text() == "mine"


def test_the_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_output(tmp_path / "deep" / "deeper" / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_behind_a_link_is_written_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("old", "new"):
        link, file = tmp_path / name, tmp_path / "there" / f"{name}.json"
        link.symlink_to(file)
        if name == "old":
            file.write_text("before")
        check_writable(link)
        write_text(link, "after")
        assert (link.is_symlink(), file.read_text()) == (True, "after")
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == ["new.json", "old.json"]


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_writable(pipe)
        write_text(pipe, "text")
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_names_that_are_no_utf_8_can_be_written(tmp_path: Path) -> None:
    odd = os.fsdecode(b"a\xff")
    write_text(tmp_path / "file", json.dumps([odd, "\u00fc"], ensure_ascii=False))
    assert json.loads((tmp_path / "file").read_text(encoding="utf-8")) == [odd, "\u00fc"]
