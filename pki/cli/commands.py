"""All the commands of a2a-pki."""

# The order of these lines is the order of the commands in `a2a-pki --help`.
from pki.cli import authority, certificates, agents, publish, rotation, rules, ledger  # noqa: F401, I001 - each adds its own to the app, in this order
from pki.cli.app import app

__all__ = ["app"]
