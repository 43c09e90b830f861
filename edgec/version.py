"""The version, for modules that `edgec` itself imports."""

from __future__ import annotations

__version__ = "0.1.0"
