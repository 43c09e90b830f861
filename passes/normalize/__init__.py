"""Exact rewrites to canonical spellings (docs/ir.md, stage "normalized")."""

from __future__ import annotations
