"""Training recipes for models that are to become small, with torch: for user code, and for `edgec train`."""

from __future__ import annotations
