"""How our commands speak: exit codes, one line for every error, never a traceback. For a2a-trust and a2a-pki."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from trust.errors import TrustError


def run(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted."""
    try:
        return int(app(args=arguments, prog_name=name, standalone_mode=False) or 0)
    except typer.TyperException as error:
        return _fail(name, error.format_message(), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _fail(name, "interrupted", 130)
    except TrustError as error:
        return _fail(name, str(error))
    except BrokenPipeError:
        silence()
        return 1
    except OSError as error:
        return _fail(name, f"{error.filename or 'input or output'}: {error.strerror or type(error).__name__}")


def silence() -> None:
    """Whoever read our output has enough: what is still written goes nowhere, also at the interpreter's exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(name: str, message: str, code: int = 1) -> int:
    if message:  # without arguments the help says it all
        typer.echo(f"{name}: {message}", err=True)
    return code
