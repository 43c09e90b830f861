"""Models of the Hugging Face hub: ORG/NAME or ORG/NAME@REVISION becomes a folder of the hub's own cache.

The cache is asked first, and the network only for what it does not hold, unless HF_HUB_OFFLINE or EDGEC_OFFLINE
forbids it. Only data is fetched: configuration, tokenizer and safetensors; pickles where the user allows them; never
code. A folder of the cache consists of links into its blobs, which the Hugging Face door resolves.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.env import OFFLINE
from edgec.errors import EdgecError, missing_extra

STAGE = "import"
_DATA = ("*.json", "*.safetensors", "*.txt", "*.model")
_PICKLES = ("pytorch_model*.bin",)
# Other copies of the same weights: those in subfolders, and the ones in the layout of their authors.
_COPIES = ("*/*", "consolidated*")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_WORD = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_ID = re.compile(rf"({_WORD}/{_WORD})(?:@([\w./-]+))?(?::(\w+))?", re.ASCII)
_OUR_FILES = (".py", ".onnx", ".gguf")


@dataclass(frozen=True)
class HubId:
    """repository: ORG/NAME. revision: branch, tag or commit. part: as of FOLDER:PART, "" for none."""

    repository: str
    revision: str
    part: str

    def __str__(self) -> str:
        return self.repository if self.revision == "main" else f"{self.repository}@{self.revision}"


def parse(source: str) -> HubId | None:
    """The id that `source` spells; None for what exists here, and for what can only be the name of a file."""
    found = _ID.fullmatch(source)
    if found is None:
        return None
    repository, revision, part = found.groups()
    if ".." in source or "--" in repository or repository.endswith(_OUR_FILES):
        return None
    if Path(source).exists() or Path(source.rpartition(":")[0] or source).exists():
        return None
    return HubId(repository, revision or "main", part or "")


def fetch(model: HubId, *, allow_pickle: bool = False) -> Path:
    """The folder of the hub's cache that holds `model`, downloaded first if it has to be; its name is the commit.

    Raises EdgecError: E0003 when it is not here and cannot be had, E0005, E0101 when the hub refuses to hand it out
    or it is no model of transformers.
    """
    cached = _download(model, ("config.json",), local=True)
    if cached is not None and _complete(cached, allow_pickle):
        return cached
    forbidden = _forbidden()
    if forbidden and cached is None:
        raise EdgecError(
            "E0003", stage=STAGE, where=str(model), wanted="a folder, a file, or a model of the Hugging Face hub",
            found=f"no such file or folder, not in the hub's cache ({_cache()}), and {forbidden} forbids a download",
            hint=f"check the path; or download it: hf download {_arguments(model)}",
        )
    folder = cached if forbidden else _download(model, _DATA)
    assert folder is not None
    # Pickles only of a model that has nothing else.
    if not forbidden and allow_pickle and not _has(folder, _WEIGHTS):
        folder = _download(model, (*_DATA, *_PICKLES, "pytorch_model.bin.index.json"))
        assert folder is not None
    if not (folder / "config.json").is_file():
        raise EdgecError("E0101", stage=STAGE, where=str(model), found="a repository without config.json",
                         wanted="a model of transformers",
                         hint="download single files, as .gguf or .onnx, and name the file")
    if forbidden and not _complete(folder, allow_pickle):
        raise EdgecError("E0101", stage=STAGE, where=str(model), wanted="model.safetensors, or all its shards",
                         found=f"incomplete in the hub's cache ({folder}), and {forbidden} forbids a download",
                         hint=f"download the rest: hf download {_arguments(model)}")
    return folder


def _arguments(model: HubId) -> str:
    return model.repository + (f" --revision {model.revision}" if model.revision != "main" else "")


def _download(model: HubId, patterns: tuple[str, ...], *, local: bool = False) -> Path | None:
    """The snapshot with the files of `patterns`; local: what the cache holds, None for nothing."""
    hub = _library()
    errors = hub.errors
    bars = hub.utils.are_progress_bars_disabled()
    if not sys.stderr.isatty():
        hub.utils.disable_progress_bars()
    try:
        return Path(hub.snapshot_download(
            model.repository, revision=model.revision, cache_dir=_cache(), local_files_only=local,
            allow_patterns=list(patterns), ignore_patterns=list(_COPIES),
        ))
    except errors.LocalEntryNotFoundError as e:
        if local:
            return None
        raise _failed(model, e) from e
    except errors.GatedRepoError as e:
        raise EdgecError("E0101", stage=STAGE, where=str(model), wanted="a model you may download",
                         found="the hub hands it out only to those who accepted its terms",
                         hint=f"accept its terms on https://huggingface.co/{model.repository} and run hf auth login",
                         ) from e
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as e:
        what = "revision" if isinstance(e, errors.RevisionNotFoundError) else "repository"
        raise EdgecError(
            "E0003", stage=STAGE, where=str(model), wanted="a folder, a file, or a model of the Hugging Face hub",
            found=f"no such file or folder, not in the hub's cache ({_cache()}), and the hub knows no such {what}",
            hint="check the spelling; a private model needs hf auth login",
        ) from e
    except (errors.HfHubHTTPError, OSError, ValueError, RuntimeError) as e:
        raise _failed(model, e) from e
    finally:
        if not bars:
            hub.utils.enable_progress_bars()


def _failed(model: HubId, error: Exception) -> EdgecError:
    return EdgecError(
        "E0003", stage=STAGE, where=str(model), wanted="a folder, a file, or a model of the Hugging Face hub",
        found=f"no such file or folder, not complete in the hub's cache ({_cache()}), and the download failed: "
              f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
        hint="check the path and the connection",
    )


def _complete(folder: Path, allow_pickle: bool) -> bool:
    """Whether config.json and all weight files are there."""
    if not (folder / "config.json").is_file():
        return False
    return _has(folder, _WEIGHTS) or (allow_pickle and _has(folder, _PICKLED))


def _has(folder: Path, names: tuple[str, str]) -> bool:
    single, index = (folder / name for name in names)
    if not index.is_file():
        return single.is_file()
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((folder / shard).is_file() for shard in shards)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return True  # the door says what is wrong with the index


def _forbidden() -> str:
    """The variable that keeps us off the network, "" for none."""
    if OFFLINE.get():
        return OFFLINE.name
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return "HF_HUB_OFFLINE" if offline or _library().constants.HF_HUB_OFFLINE else ""


def _cache() -> str:
    return os.environ.get("HF_HUB_CACHE") or str(_library().constants.HF_HUB_CACHE)


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as e:
        raise missing_extra("hf", "huggingface_hub", STAGE) from e
    return huggingface_hub
