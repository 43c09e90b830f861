"""An output folder appears whole or not at all: files are written beside it and renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgec.errors import EdgecError

MANIFEST = "manifest.json"


def check_output(outdir: Path) -> None:
    """Raises EdgecError EDGEC-E0004 unless `outdir` can become an output folder.

    It may be absent, empty, or an earlier output of edgec; anything else is somebody's and is left alone. Called
    before the work starts, so that an hour's compile does not end in a permission error.
    """
    def refuse(found: str, hint: str) -> EdgecError:
        return EdgecError("E0004", stage="output", where=str(outdir), found=found,
                          wanted="a new folder, an empty one, or an earlier output of edgec", hint=hint)

    try:
        if outdir.is_dir():
            names = {entry.name for entry in outdir.iterdir()}
            if names and MANIFEST not in names:
                raise refuse(f"a folder with other files ({', '.join(sorted(names)[:4])})", "choose another -o folder")
        elif outdir.exists() or outdir.is_symlink():
            raise refuse("a file", "choose another -o folder")
        parent = outdir.resolve().parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".edgec-", dir=parent):
            pass
    except OSError as e:
        raise refuse(e.strerror or str(e), "choose another -o folder, or change its permissions") from e


@contextmanager
def output_folder(outdir: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; on success it takes the place of `outdir`, on any error nothing has changed.

    Raises EdgecError EDGEC-E0004 as check_output does, and when writing fails (a full disk).
    """
    check_output(outdir)
    final = outdir.resolve()
    work = Path(tempfile.mkdtemp(prefix=".edgec-", dir=final.parent))
    old: Path | None = None
    try:
        yield work
        work.chmod(0o755)
        if final.exists():
            old = Path(tempfile.mkdtemp(prefix=".edgec-old-", dir=final.parent)) / "old"
            os.rename(final, old)
        try:
            os.rename(work, final)
        except OSError:
            if old is not None:
                os.rename(old, final)
            raise
    except OSError as e:
        raise EdgecError("E0004", stage="output", where=str(outdir), found=e.strerror or str(e),
                         wanted="a folder that can be written, with room for the bundle") from e
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if old is not None:
            shutil.rmtree(old.parent, ignore_errors=True)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
