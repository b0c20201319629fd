"""All the commands of a2a-trust."""

# The order of these lines is the order of the commands in `a2a-trust --help`.
from trust.cli import demo, serve, authority, approvals, clients, tokens, messages, card  # noqa: F401, I001 - each adds its own to the app, in this order
from trust.cli.app import app

__all__ = ["app"]
