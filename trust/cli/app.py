"""What the commands have in common: the program, and the arguments that mean the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

PASSWORD_VARIABLE = "A2A_TRUST_PASSWORD"  # noqa: S105 (the name of a variable)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Agents that know which agent is calling, what it may do, and that nobody altered what it said.",
)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
