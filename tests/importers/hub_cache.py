"""A cache of the Hugging Face hub as its library lays it out, made from a folder."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put(cache: Path, repository: str, folder: Path, leave_out: tuple[str, ...] = ()) -> Path:
    """Adds `folder` to `cache` as the branch main of `repository`: links into blobs. Returns the snapshot."""
    place = cache / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / COMMIT
    for directory in (place / "refs", place / "blobs", snapshot):
        directory.mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text(COMMIT)
    for file in sorted(folder.iterdir()):
        if file.name in leave_out or (snapshot / file.name).exists():
            continue
        blob = hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, place / "blobs" / blob)
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / blob)
    return snapshot
