"""a2a-trust: agents that know each other, on the command line.

Every command exits with 0 only when the thing asked for is true, and says in one line on stderr what failed, what was
expected and what to do.
"""

from collections.abc import Sequence

from trust.command_line import run


def main(arguments: Sequence[str] | None = None) -> int:
    return run("trust.cli.commands", "a2a-trust", arguments)
