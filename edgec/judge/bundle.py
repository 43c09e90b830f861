"""Opening what `edgec compile` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgec.errors import EdgecError

if TYPE_CHECKING:
    from edgec.native.session import Model

BUNDLE = "model.edgec"


def bundle_path(path: Path) -> Path:
    """The bundle file: `path` itself, or model.edgec in the folder `path`. Raises EdgecError EDGEC-E0003."""
    found = path / BUNDLE if path.is_dir() else path
    if not found.is_file():
        raise EdgecError("E0003", stage="bundle", where=str(found), found="no such file",
                         wanted="a bundle, or an output folder of `edgec compile`")
    return found


def open_bundle(path: Path, *, verify: bool = False, public_key: bytes | None = None) -> Model:
    """The opened model (a context manager). verify: check the hashes of all weights. public_key: who must have signed.

    Raises EdgecError EDGEC-E0003, E0401, E0402, E0407, E0007.
    """
    from edgec.native.session import Model

    return Model(bundle_path(path), verify_weights=verify, public_key=public_key)


def need_language_model(model: Model, option: str) -> None:
    """Raises EdgecError EDGEC-E0002 unless `model` is a language model with a tokenizer."""
    if model.info.kind != 1:
        raise EdgecError("E0002", stage="command line", where=option, found="a bundle that is no language model",
                         wanted="a language model")
    if not model.info.has_tokenizer:
        raise EdgecError("E0002", stage="command line", where=option, found="a bundle without a tokenizer",
                         wanted="a bundle that holds a tokenizer", hint="compile a folder that has a tokenizer.json")
