"""How the commands of the authorization server answer: JSON for machines, lines and tables for people."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 200  # columns of a table that goes to a file or a pipe


def say(answer: Any, as_json: bool, *lines: str) -> None:
    typer.echo(json.dumps(answer) if as_json else "\n".join(_printable(line) for line in lines))


def show_table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Nothing in a cell is markup, nothing moves the cursor, and nothing is cut off: who reads it decides by it."""
    table = Table()
    for heading in headings:
        table.add_column(_printable(heading), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    (Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)).print(table)


def iso(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
