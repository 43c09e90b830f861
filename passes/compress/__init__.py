"""Passes that trade accuracy for bytes. None exists yet that runs by default: `COMPRESS` is empty."""

from __future__ import annotations
