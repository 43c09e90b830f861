"""Files that packages are made from, with @NAME@ where a model's own words go."""

from __future__ import annotations

from pathlib import Path


def template(name: str) -> str:
    """The text of templates/`name`."""
    return (Path(__file__).resolve().parent / "templates" / name).read_text(encoding="utf-8")
