"""A CA whose rotations take seconds, and its service as a process: `python -m tests.pki.client.hurried FOLDER PORT`.

The steps and their order are those of every CA; only the waits between them are shorter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from pki import CertificateAuthority, rotation
from pki.service import serve, upkeep
from tests.pki.client.parts import PASSWORD

# Agents poll four times in a life, here oftener than the hint asks for. A CA that was revoked is believed for two
# hints: so a busy machine has eleven seconds between the latest poll and then, for renewing everybody.
HINT = timedelta(seconds=8)
LIFETIME = timedelta(seconds=20)  # of agents' certificates


def hurry(change: Callable[[Any, str, Any], None] = setattr) -> None:
    change(rotation, "REFRESH_HINT", HINT)
    change(rotation, "OVERLAP", 3 * HINT)
    change(rotation, "LISTED", HINT + timedelta(seconds=1))
    change(rotation, "MAX_LEAF_VALIDITY", LIFETIME)
    change(rotation, "MARGIN", timedelta(seconds=1))
    change(upkeep, "ROUND_SECONDS", 0.5)


if __name__ == "__main__":
    hurry()
    with CertificateAuthority.open(sys.argv[1], password=PASSWORD) as ca:
        serve(ca, port=int(sys.argv[2]))
