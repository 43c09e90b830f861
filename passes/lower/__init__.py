"""From canonical spellings to what one target implements."""

from __future__ import annotations
