"""PyTorch modules of small architectures, written out so that they can be read, changed and compiled."""

from __future__ import annotations
