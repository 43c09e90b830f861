"""Writes the table of docs/zoo.md from edgec.zoo.ZOO: python tools/zoo_table.py"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgec.zoo import PREFIX, ZOO  # noqa: E402

PAGE = ROOT / "docs" / "zoo.md"
HEAD = "| name | image | parameters | compiled | million MACs |\n|---|---|---|---|---|\n"


def table() -> str:
    return HEAD + "".join(
        f"| `{PREFIX}{row.name}` | {row.channels} x {row.size} x {row.size} | {row.parameters:,} | {row.folded:,} | "
        f"{row.macs / 1e6:,.2f} |\n" for row in ZOO)


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(HEAD)
    rows = rest.splitlines(keepends=True)
    PAGE.write_text(before + table() + "".join(row for row in rows if not row.startswith("| `")), encoding="utf-8")
