"""What commands print: data on stdout (a table or one JSON document), progress and notes on stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgec import version
from edgec.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

SCHEMA_VERSION = 1


# A table that is piped somewhere must not be folded at the 80 columns rich assumes there.
_PIPE_WIDTH = 240


def stdout() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def envelope(command: str, started: float, target: str = "", **content: Any) -> dict[str, Any]:
    """A JSON document of `command`: the fields all of them have, then `content`."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started))
    return {
        "schema_version": SCHEMA_VERSION, "edgec_version": version.__version__, "command": command, "target": target,
        "started_at": at, "seconds": round(time.time() - started, 3), **content,
    }


def _plain(value: Any) -> Any:
    """JSON has no infinities and no NaN: they become null, and numpy scalars become numbers."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def json_text(document: dict[str, Any]) -> str:
    # A file name that is not UTF-8 must not stop the document: its odd bytes become question marks.
    text = json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    return text.encode("utf-8", "replace").decode() + "\n"


def print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json_text(document))
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """A table on stdout; columns whose cells are all numbers or sizes are right-aligned."""
    from rich.markup import escape
    from rich.table import Table

    cells = [[printable(str(cell)) for cell in row] for row in rows]
    heading = escape("\n".join(map(printable, title.split("\n"))))
    table = Table(title=heading or None, box=None, pad_edge=False, title_justify="left", header_style="bold")
    for index, name in enumerate(columns):
        numeric = bool(cells) and all(row[index][:1].isdigit() or row[index][:1] in "-+" for row in cells)
        table.add_column(escape(name), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(escape(cell) for cell in row))
    stdout().print(table)


def note(text: str) -> None:
    """A line for people, on stderr."""
    stderr().print(printable(text), markup=False)


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr while it is a terminal; yields `update(done, total)`."""
    from rich.progress import Progress

    console = stderr()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
