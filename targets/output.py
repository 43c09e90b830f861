"""An output folder appears whole or not at all: files are written beside it and renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edgec.errors import EdgecError

MANIFEST = "manifest.json"


def check_output(outdir: Path) -> None:
    """Raises EdgecError EDGEC-E0004 unless `outdir` can become an output folder.

    It may be absent, empty, or an earlier output of edgec; anything else is somebody's and is left alone, and so is
    an output that has got other files since, because it is replaced as a whole. Called before the work starts, so
    that an hour's compile does not end in a permission error; it leaves nothing behind.
    """
    def refuse(found: str, hint: str) -> EdgecError:
        return EdgecError("E0004", stage="output", where=str(outdir), found=found,
                          wanted="a new folder, an empty one, or an earlier output of edgec", hint=hint)

    try:
        if outdir.is_dir():
            foreign = _foreign(outdir)
            if foreign:
                raise refuse(f"a folder with other files ({', '.join(foreign[:4])})",
                             "choose another -o folder, or move the files")
        elif outdir.exists() or outdir.is_symlink():
            raise refuse("a file", "choose another -o folder")
        above = next(folder for folder in outdir.resolve().parents if folder.exists())
        if not above.is_dir():
            raise refuse(f"{above} is a file", "choose another -o folder")
        with tempfile.TemporaryDirectory(prefix=".edgec-", dir=above):
            pass
    except OSError as e:
        raise refuse(e.strerror or str(e), "choose another -o folder, or change its permissions") from e


def _foreign(outdir: Path) -> list[str]:
    """What is in the folder `outdir` besides the files that its manifest, if it is one of ours, lists."""
    listed: set[str] = set()
    try:
        manifest = json.loads((outdir / MANIFEST).read_text(encoding="utf-8"))
        if "edgec_version" in manifest:
            listed = {MANIFEST, *manifest["files"]}
    except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
        pass  # no manifest of ours: every file is foreign
    known = listed | {above.as_posix() for name in listed for above in Path(name).parents}
    entries = outdir.rglob("*") if listed else outdir.iterdir()
    return sorted(name for entry in entries if (name := entry.relative_to(outdir).as_posix()) not in known)


def listed(folder: Path) -> dict[str, Any]:
    """The manifest of `folder` when it is an output of ours, else {}."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    ours = isinstance(manifest, dict) and "edgec_version" in manifest and isinstance(manifest.get("files"), dict)
    return manifest if ours else {}


def is_foreign(folder: Path) -> bool:
    """Whether the manifest.json of `folder` is somebody else's: JSON that `edgec compile` did not write. One that
    cannot be read may be ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return not isinstance(manifest, dict) or "edgec_version" not in manifest


def check_listing(folder: Path) -> int:
    """Compares the files of an output folder with what its manifest lists, and returns how many these are.

    Raises EdgecError EDGEC-E0402 naming the first that is missing or differs, or a manifest that lists none.
    """
    files = listed(folder).get("files", {})
    if not files and (folder / MANIFEST).exists():
        raise EdgecError("E0402", stage="verify", where=str(folder / MANIFEST), found="no list of files",
                         wanted="the manifest of an output folder", hint="copy the folder again")
    for name, entry in sorted(files.items()):
        path = folder / name
        # A name that leads out of the folder is none that edgec wrote. A link that does was put there by the user.
        inside = path.is_file() and not Path(name).is_absolute() and ".." not in Path(name).parts
        found = {"bytes": path.stat().st_size, "sha256": file_sha256(path)} if inside else {}
        if not inside or found != entry:
            raise EdgecError("E0402", stage="verify", where=str(path), hint="copy the folder again",
                             found=f"SHA-256 {found['sha256']}" if found else "no such file in this folder",
                             wanted=f"{entry} of {MANIFEST}")
    return len(files)


def _listings(path: Path) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """(manifest, the name it has for it, its contents) of every manifest that lists the file `path`: beside `path`, and
    where that is a symbolic link, beside what it leads to."""
    seen = set()
    while True:
        manifest = path.with_name(MANIFEST).resolve()
        content = listed(path.parent)
        if path.name in content.get("files", {}) and manifest not in seen:
            seen.add(manifest)
            yield manifest, path.name, content
        if not path.is_symlink():
            return
        path = path.parent / path.readlink()


@contextmanager
def relisting(path: Path) -> Iterator[Callable[[int, str], None]]:
    """Keeps manifests true while the file `path` is replaced: those beside it and, if it is a link, beside its target.

    Yields what is to be called with size and SHA-256 before the new file takes its place; the new manifests are then
    written, and take theirs at the end of the block unless it raises. Raises EdgecError (E0004) when one cannot be.
    """
    parts: list[tuple[Path, Path]] = []

    def put(size: int, sha256: str) -> None:
        for manifest, name, content in _listings(path):
            content["files"][name] = {"bytes": size, "sha256": sha256}
            part = manifest.with_name(f".{manifest.name}.{os.getpid()}.part")
            parts.append((part, manifest))
            try:
                write_json(part, content)
                shutil.copymode(manifest, part)
            except OSError as e:
                raise _unwritable(manifest.parent, e) from e

    try:
        yield put
        for part, manifest in parts:
            try:
                part.replace(manifest)
            except OSError as e:
                raise _unwritable(manifest.parent, e) from e
    finally:
        for part, _ in parts:
            with suppress(OSError):
                part.unlink(missing_ok=True)


@contextmanager
def output_folder(outdir: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; on success it takes the place of `outdir`, on any error nothing has changed.

    Raises EdgecError EDGEC-E0004 as check_output does, and when writing fails (a full disk).
    """
    check_output(outdir)
    final = outdir.resolve()
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".edgec-", dir=final.parent))
    except OSError as e:
        raise _unwritable(outdir, e) from e
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
        raise _unwritable(outdir, e) from e
    except EdgecError as e:
        if str(work) not in str(e):
            raise
        # The user knows the folder that was asked for, not the one that is gone again.
        named = [text.replace(str(work), str(outdir)) for text in (e.where, e.found, e.wanted, e.hint)]
        raise EdgecError(e.code, stage=e.stage, where=named[0], found=named[1], wanted=named[2], hint=named[3]) from e
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if old is not None:
            shutil.rmtree(old.parent, ignore_errors=True)


def _unwritable(outdir: Path, error: OSError) -> EdgecError:
    return EdgecError("E0004", stage="output", where=str(outdir), found=error.strerror or type(error).__name__,
                      wanted="a folder that can be written, with room for the bundle",
                      hint="make room there, change its permissions, or choose another -o folder")


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Writes and returns the manifest of a filled folder: `about`, and size and SHA-256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = about | {"files": {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in files
    }}
    write_json(folder / MANIFEST, manifest)
    return manifest


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def check_writable(path: Path) -> None:
    """Raises EdgecError (E0004) unless a file can be written at `path`; nothing is left behind."""
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "a folder")
        if _is_special(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(13, "no permission to write")
            return
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
            pass
    except OSError as e:
        raise _unwritable_file(path, e) from e


def _is_special(path: Path) -> bool:
    """A pipe, a terminal or another device: what is written to, and never replaced by a file."""
    return path.exists() and not path.is_file()


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file under another name and renames it; where `path` is a symbolic link, the file it leads to.

    A pipe or a device is written to as it is. Names of files that are no UTF-8 are written with \\udcXX in place of the
    odd bytes, which JSON reads again. Raises EdgecError (E0004).
    """
    data = text.encode("utf-8", "backslashreplace")
    try:
        if _is_special(path):
            with path.open("wb") as stream:
                stream.write(data)
            return
        file = Path(os.path.realpath(path))
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            part.write_bytes(data)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    except OSError as e:
        raise _unwritable_file(path, e) from e


def _unwritable_file(path: Path, error: OSError) -> EdgecError:
    return EdgecError("E0004", stage="output", where=str(path), found=error.strerror or type(error).__name__,
                      wanted="a file that can be written")
