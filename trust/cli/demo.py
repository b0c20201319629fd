"""`a2a-trust demo`: the whole journey, shown."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from trust.cli.app import AsJson, app
from trust.command_line import run_loop, silence
from trust.errors import ConfigurationError


@app.command()
def demo(
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep everything in this new folder; default: a temporary one.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Run the whole journey: a CA, two agents, an authorization server, and fourteen attacks that must fail."""
    try:
        from trust.demo import CHAPTERS, Step, journey
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "the demo needs a2a-sdk",
            got=f"no module {error.name}",
            do="install the extra `a2a` of a2a-trust",
        ) from None
    console = Console(highlight=False, soft_wrap=True)
    wrong = 0
    chapter = 0

    def show(step: Step) -> None:
        nonlocal wrong, chapter
        wrong += not step.ok
        if as_json:
            typer.echo(json.dumps(asdict(step)))
            return
        if step.chapter != chapter:
            chapter = step.chapter
            console.print(Text(f"\n{chapter}. {CHAPTERS[chapter]}", style="bold"))
        mark = "      " if step.ok and chapter == max(CHAPTERS) else "  ok  " if step.ok else "  !!  "
        line = Text(mark, style="green" if step.ok else "bold red")
        line.append(f"{step.what}: {step.outcome}", style="default")
        if step.check:
            line.append(f"  [{step.check}, {step.status}]", style="cyan")
        console.print(line)

    async def walk(where: Path) -> None:
        async for step in journey(where):
            try:
                show(step)
            except BrokenPipeError:  # `| head` has read enough; the servers still want to be stopped in order
                silence()

    if folder is not None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigurationError(f"{folder} is in use", expected="a new or empty folder")
        run_loop(walk(folder))
    else:
        with tempfile.TemporaryDirectory(prefix="a2a-trust-demo-") as temporary:
            run_loop(walk(Path(temporary)))
    if not as_json:
        summary = f"{wrong} of the steps went wrong" if wrong else "Every step and every refusal happened as it must."
        console.print(Text(f"\n{summary}", style="bold red" if wrong else "bold green"))
    return 1 if wrong else 0
