"""Opening what `edgec compile` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgec.errors import EdgecError
from edgec.importers import classify
from edgec.targets.coreml import MODEL as COREML
from edgec.targets.native import BUNDLE
from edgec.targets.ort import MODEL as ONNX
from edgec.targets.output import MANIFEST, check_listing
from edgec.targets.tvm import MODEL as SHARED

if TYPE_CHECKING:
    from edgec.judge.opened import Opened


def bundle_path(path: Path) -> Path:
    """The bundle file: `path` itself, or model.edgec in the folder `path`. Raises EdgecError EDGEC-E0003."""
    refuse_foreign(path)
    found = path / BUNDLE if path.is_dir() else path
    if not found.is_file():
        raise EdgecError("E0003", stage="bundle", where=str(found), found="no such file",
                         wanted="a bundle, or an output folder of `edgec compile`")
    return found


def refuse_foreign(path: Path) -> None:
    """Raises EdgecError (E0003) for what other backends wrote, where only a bundle will do."""
    if (path / COREML).is_dir() or path.name == COREML:
        raise EdgecError("E0003", stage="bundle", where=str(path), found="a Core ML package", wanted="a bundle",
                         hint="only Apple's systems run it (docs/coreml.md); reports/weights.json lists its weights; "
                              "--backend native makes a bundle")
    if tvm_folder(path) is not None:
        raise EdgecError("E0003", stage="bundle", where=str(path), found="a folder of the tvm backend",
                         wanted="a bundle",
                         hint="reports/weights.json lists its weights; --backend native makes a bundle")
    if ort_folder(path) is not None:
        raise EdgecError("E0003", stage="bundle", where=str(path), found="a folder of the ort backend",
                         wanted="a bundle", hint="`edgec inspect` takes its model.onnx, reports/weights.json lists its "
                         "weights, `edgec run --verify` compares its files with the manifest; --backend native makes a "
                         "bundle")


def _folder_of(path: Path, model: str) -> Path | None:
    folder = path if path.is_dir() else path.parent
    ours = (path.is_dir() or path.name == model) and (folder / model).is_file() and (folder / MANIFEST).is_file()
    return folder if ours else None


def ort_folder(path: Path) -> Path | None:
    """The output folder of the ort backend that `path` is, or whose model.onnx it is; None for anything else."""
    return _folder_of(path, ONNX)


def tvm_folder(path: Path) -> Path | None:
    """The output folder of the tvm backend that `path` is, or whose model.so it is; None for anything else."""
    return _folder_of(path, SHARED)


def open_bundle(path: Path, *, verify: bool = False, public_key: bytes | None = None) -> Opened:
    """The opened model (a context manager): a bundle, or a folder of the ort or tvm backend.

    verify: check the hashes of all weights. public_key: who must have signed it.
    Raises EdgecError EDGEC-E0003, E0401, E0402, E0407, E0007, E0005.
    """
    for backend, folder in (("tvm", tvm_folder(path)), ("ort", ort_folder(path))):
        if folder is None:
            continue
        if public_key is not None:
            raise EdgecError("E0407", stage="open", where=str(folder), wanted="a signed bundle",
                             found=f"a folder of the {backend} backend, which nobody signs", hint="--backend native")
        if verify:
            check_listing(folder)
        if backend == "tvm":
            from edgec.judge.tvm_model import TvmModel

            return TvmModel(folder)
        from edgec.judge.ort_model import OrtModel

        return OrtModel(folder)
    from edgec.native.session import Model

    return Model(bundle_path(path), verify_weights=verify, public_key=public_key)


def need_language_model(model: Opened, option: str) -> None:
    """Raises EdgecError EDGEC-E0002 unless `model` is a language model with a tokenizer."""
    if model.info.kind != 1:
        raise EdgecError("E0002", stage="command line", where=option, found="a bundle that is no language model",
                         wanted="a language model")
    if not model.info.has_tokenizer:
        raise EdgecError("E0002", stage="command line", where=option, found="a bundle without a tokenizer",
                         wanted="a bundle that holds a tokenizer", hint="compile a folder that has a tokenizer.json")


def need_trained_weights(model: Opened, reference: str | None) -> None:
    """Raises EdgecError EDGEC-E0503 for a bundle of a model of the zoo, and for a reference that is one."""
    about = model.manifest.get("model")
    if isinstance(about, dict) and about.get("weights") == "random":
        where = f"the bundle of {about.get('name')}"
    elif reference is not None and classify(reference)[0] == "zoo":
        where = f"the reference {reference}"
    else:
        return
    raise EdgecError("E0503", stage="eval", where=where, found="random weights", wanted="a model that was trained",
                     hint="load trained weights into the module of edgec.zoo and compile that")
