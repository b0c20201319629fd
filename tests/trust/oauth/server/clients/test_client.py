from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from trust.errors import ConfigurationError
from trust.identity import AgentID
from trust.oauth.server.clients import AgentPattern, Client, ClientPattern

RIGHTS: dict[str, Any] = {
    "scopes": ("read:rates",),
    "exchange_scopes": ("read:ledger.eu",),
    "resources": ("spiffe://fleet.example/ledger",),
}
VALID: dict[str, Any] = {"agent_id": AgentID.parse("spiffe://fleet.example/billing"), **RIGHTS}


@pytest.mark.parametrize(
    "change",
    [
        {"scopes": (), "exchange_scopes": ()},
        {"scopes": ("read",)},
        {"exchange_scopes": ("read:",)},
        {"resources": ()},
        {"resources": ("ledger",)},
        {"resources": ("https://ledger.example/#part",)},
        {"audiences": ("ledger",)},
        {"assertion_audiences": ("https://auth.partner.example",), "exchange_scopes": ()},
        {"lifetime": timedelta(0)},
        {"lifetime": timedelta(minutes=30, seconds=1)},
        {"client_id": "a b"},
        {"client_id": "x" * 2049},
        # No scope can name this agent, so no caller could ever consent to its delegation.
        {"agent_id": AgentID.parse("spiffe://fleet.example/a..b")},
    ],
    ids=str,
)
def test_a_client_that_no_token_could_be_issued_for_is_refused(change: dict[str, Any]) -> None:
    assert Client(**VALID).path == ("billing",)
    with pytest.raises(ConfigurationError) as caught:
        Client(**{**VALID, **change})
    assert type(caught.value) is ConfigurationError


def test_every_agent_of_a_domain_is_noted() -> None:
    everybody = ClientPattern(pattern=AgentPattern.parse("spiffe://fleet.example/**"), **RIGHTS)
    assert everybody.notes() == ["spiffe://fleet.example/**: is every agent of fleet.example"]
