"""Results on stdout: JSON or tables. Progress and errors go to stderr, so that stdout can be piped."""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = [
    "STATE_STYLES",
    "Format",
    "FormatOption",
    "ago",
    "moment",
    "print_fields",
    "print_json",
    "print_table",
    "seconds",
]


class Format(enum.StrEnum):
    """How a result is written."""

    TABLE = "table"
    JSON = "json"


FormatOption = Annotated[Format, typer.Option("--output", "-o", help="How the result is written.")]

STATE_STYLES = {
    "QUEUED": "cyan",
    "RUNNING": "blue",
    "WAITING": "yellow",
    "SUCCEEDED": "green",
    "FAILED": "red",
    "CANCELLED": "magenta",
    "SKIPPED": "dim",
    "READY": "green",
    "DRAINING": "yellow",
    "ENDED": "dim",
    "LOST": "red",
}

_PIPED_WIDTH = 400


def _console() -> Console:
    # Into a pipe nothing is cut: the columns are as wide as their content.
    return Console() if sys.stdout.isatty() else Console(width=_PIPED_WIDTH, color_system=None)


def print_json(value: Any) -> None:
    """Indented JSON; moments in UTC after RFC 3339."""
    if is_dataclass(value) and not isinstance(value, type):
        value = _plain(value)
    elif isinstance(value, list):
        value = [_plain(item) if is_dataclass(item) and not isinstance(item, type) else item for item in value]
    options = orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE
    sys.stdout.write(orjson.dumps(value, option=options).decode())
    sys.stdout.flush()


_DERIVED = ("id", "incarnation", "workflow_id", "version")


def _plain(value: Any) -> dict[str, Any]:
    """The fields, after the short names that commands take and that are only parts of other fields."""
    fields = asdict(value)
    derived = {name: getattr(value, name) for name in _DERIVED if name not in fields and hasattr(value, name)}
    return {**derived, **fields}


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str) -> None:
    """A plain table without lines; `empty` is said on stderr when there are no rows."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis" if sys.stdout.isatty() else "ignore")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    if table.row_count == 0:
        print(empty, file=sys.stderr)
        return
    for line in _lines(table):
        print(line)


def print_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """Names and values, one a line; empty values are left out."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields:
        if value not in (None, ""):
            table.add_row(name, _cell(value))
    for line in _lines(table):
        print(line)


def _lines(table: Table) -> list[str]:
    console = _console()
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def _cell(value: Any) -> Text:
    text = "" if value is None else str(value)
    return Text(text, style=STATE_STYLES.get(text, ""))


def moment(value: datetime | None) -> str:
    """A moment in the local time zone, to the second."""
    return "" if value is None else value.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ago(value: datetime | None) -> str:
    """How long ago a moment was, in one unit."""
    if value is None:
        return ""
    passed = max(0.0, (datetime.now(UTC) - value).total_seconds())
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if passed >= size:
            return f"{int(passed // size)} {unit} ago"
    return f"{int(passed)} s ago"


def seconds(value: float | None) -> str:
    """A duration that a person can compare."""
    if value is None:
        return ""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.2f} s"
    minutes, rest = divmod(value, 60)
    if minutes < 60:
        return f"{int(minutes)} min {int(rest)} s"
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes} min"
