"""a2a-pki: the agent CA on the command line.

Every command answers with JSON on request (`--json`), exits with 0 only when the thing asked for is true, and says
in one line on stderr what failed, what was expected and what to do.
"""

# The order of these lines is the order of the commands in `a2a-pki --help`.
from pki.cli import authority, certificates, agents, publish, rotation, rules, ledger  # noqa: F401, I001
from pki.cli.app import app, main

__all__ = ["app", "main"]
