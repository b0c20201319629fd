"""How the commands answer: JSON for machines; lines, tables and times in words for people."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pki.records import Record

PLAIN_WIDTH = 200  # columns of a table that goes to a file or a pipe
BAR_CELLS = 20


def say(answer: Any, as_json: bool, *lines: str) -> None:
    typer.echo(json.dumps(answer, indent=2) if as_json else "\n".join(lines))


def show_table(table: Table) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    console.print(table)


def hint(line: str) -> None:
    """A line for the person at the keyboard; what the next program reads stays clean."""
    typer.echo(line, err=True)


def record_facts(record: Record) -> dict[str, str | None]:
    return {
        "serial": f"{record.serial:x}",
        "agent_id": record.spiffe_id,
        "kind": record.kind,
        "status": record.status(now()),
        "not_before": iso(record.not_before),
        "not_after": iso(record.not_after),
        "thumbprint": record.thumbprint,
        "revoked_at": None if record.revoked_at is None else iso(record.revoked_at),
        "reason": None if record.reason is None else record.reason.value,
    }


def coloured(status: str) -> Text:
    return Text(status, style="green" if status in ("valid", "active", "ok") else "red")


def life_bar(start: datetime, end: datetime) -> Text:
    """How much of a life is left: full when it begins, empty when it ends."""
    left = max(0.0, min(1.0, (end - now()) / (end - start))) if end > start else 0.0
    cells = round(left * BAR_CELLS)
    style = "green" if left > 1 / 3 else "yellow" if left > 1 / 6 else "red"
    return Text("█" * cells + "░" * (BAR_CELLS - cells) + f" {left:4.0%}", style=style)


def now() -> datetime:
    return datetime.now(UTC)


def iso(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def words(time: datetime) -> str:
    """ "in 23 hours", "5 minutes ago": rounded, in the largest unit of which there are two."""
    seconds = int(abs((time - now()).total_seconds()))
    for unit, size in (("year", 31_536_000), ("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * size:
            count, name = round(seconds / size), unit
            break
    else:
        count, name = seconds, "second"
    text = f"{count} {name}{'' if count == 1 else 's'}"
    return f"in {text}" if time > now() else f"{text} ago"
