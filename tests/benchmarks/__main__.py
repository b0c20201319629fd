"""`python -m tests.benchmarks [name ...]`: every benchmark, or the named ones, beside its peer."""

from __future__ import annotations

import importlib
import sys

from rich.console import Console
from rich.table import Table

# Each is a module here with a function `rows`. In process first; what opens sockets comes last.
MODULES = (
    "jose",
    "signing",
    "streams",
    "tokens",
    "replay",
    "revocation",
    "gate",
    "post_quantum",
    "pki",
    "pki_memory",
    "pki_revocation",
    "pki_service",
    "oauth",
    "transports",
    "servers",
    "http2",
    "step_ca",  # last, for the first time it installs what it compares with
)


def main(names: tuple[str, ...]) -> None:
    table = Table("what", "ours", "peer", "peer's", "ratio", "goal")
    for name in names:
        for row in importlib.import_module(f"tests.benchmarks.{name}").rows():
            ours, peer = row.shown(row.ours), row.shown(row.peer)
            table.add_row(row.name, ours, row.peer_name, peer, f"{row.ratio:.2f}x", row.goal)
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or MODULES)
