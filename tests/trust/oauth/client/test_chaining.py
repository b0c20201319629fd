"""What each of two servers is told; the rest of chaining is shown between real ones."""

from __future__ import annotations

import asyncio

import httpx

from tests.authority import BILLING, LEDGER
from tests.trust.oauth.client.servers import CREDENTIALS, Fake
from trust.oauth.client import ChainedTokens
from trust.oauth.metadata import APPROVED, JWT_TYPE

PARTNER = "https://auth.partner.example"


def test_the_person_is_asked_by_the_server_that_issues_the_token() -> None:
    async def main() -> None:
        home, partner = Fake(), Fake()
        home.token = {"access_token": "a.b.c", "token_type": "N_A", "issued_token_type": JWT_TYPE}
        partner.metadata = {**partner.metadata, "issuer": PARTNER, "token_endpoint": f"{PARTNER}/token"}
        del partner.metadata["revocation_endpoint"]
        http = httpx.AsyncClient(transport=httpx.MockTransport(partner))
        away = ChainedTokens(home=home.source(resource=BILLING), issuer=PARTNER, http=http, source=CREDENTIALS)
        auth = away.on_behalf_of("x.y.z", resource=LEDGER, scopes=["read:x"], origins=["https://ledger.example"])
        await auth.needing_approval("the books").token()
        (asked,) = home.forms("/token")
        assert (asked["resource"], asked["requested_token_type"]) == (PARTNER, JWT_TYPE)
        assert not {"acr_values", "binding_message"} & asked.keys()
        (asked,) = partner.forms("/token")
        assert (asked["assertion"], asked["acr_values"], asked["binding_message"]) == ("a.b.c", APPROVED, "the books")

    asyncio.run(main())
