"""What we present: what OpenSSL refuses is a mistake of the configuration, and the key stays in memory."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.trust.tls.parts import AGENT, FORGE, SERVER
from tests.trust.tls.test_connection import established
from trust.authorize import unsafe_allow_any_peer
from trust.credentials import Credentials
from trust.errors import ConfigurationError
from trust.sources import Live
from trust.tls import client_context, server_context
from trust.tls import snapshot as snapshot_module

ANY = unsafe_allow_any_peer()
BOTH = FORGE.bundles


def test_a_server_always_has_a_certificate() -> None:
    with pytest.raises(ConfigurationError, match="server has no credentials"):
        server_context(Live(None), BOTH, ANY)  # type: ignore[arg-type]


def test_a_key_of_another_certificate() -> None:
    mixed = Credentials(
        agent_id=AGENT.agent_id, chain=AGENT.chain, private_key=SERVER.private_key, thumbprint=AGENT.thumbprint
    )
    with pytest.raises(ConfigurationError):
        client_context(mixed, BOTH, ANY)


_opened: list[Any] | None = None
sys.addaudithook(lambda event, args: _opened.append(args) if event == "open" and _opened is not None else None)


def test_the_key_never_touches_a_file() -> None:
    """By Python's own `open`, that is: what OpenSSL itself opens is not seen here."""
    global _opened
    _opened = []
    try:
        established()
        opened = _opened
    finally:
        _opened = None
    assert opened == []


def test_the_callback_outside_of_a_handshake_refuses() -> None:
    assert snapshot_module._verify(1, snapshot_module._ffi.NULL) == 0
