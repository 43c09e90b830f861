"""edgec: an edge-deployment compiler. `edgec.compile(...)` here, `edgec compile ...` in a shell.

The names below are the whole public Python interface; each is imported when it is first used, because torch and
onnx take seconds and `import edgec` must not.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.version import __version__

if TYPE_CHECKING:
    from edgec.api import bench, check, compare, compile, evaluate, inspect, package
    from edgec.errors import EdgecError
    from edgec.native.session import Model, Session

# The public interface: name -> module that has it.
_PUBLIC = {
    "EdgecError": "edgec.errors", "Model": "edgec.native.session", "Session": "edgec.native.session",
    "bench": "edgec.api", "check": "edgec.api", "compare": "edgec.api", "compile": "edgec.api",
    "evaluate": "edgec.api", "inspect": "edgec.api", "package": "edgec.api",
}

__all__ = [
    "EdgecError", "Model", "Session", "__version__", "bench", "check", "compare", "compile", "evaluate", "inspect",
    "package",
]


def _check_links(package: Path) -> None:
    """Raises ImportError when git wrote a text file instead of a link (a checkout without symlink support)."""
    for name in ("passes", "targets"):
        if (package / name).is_file():
            raise ImportError(
                f"{package / name} is a file, but must be a link to the folder {name!r} beside the package: this "
                f"checkout was made without symbolic links. Run `git config core.symlinks true` and then "
                f"`git checkout -- edgec/{name}` (on Windows: first switch on Developer Mode), or install the wheel."
            )


_check_links(Path(__file__).parent)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgec' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
