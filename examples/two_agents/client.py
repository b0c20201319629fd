"""The agent `planner`: reads billing's card, gets a token, sends a signed message with a2a-sdk's own client."""

import asyncio

from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.helpers.proto_helpers import get_message_text, new_text_message
from a2a.types import Role, SendMessageRequest

import trust
from trust.oauth.cards import check_card, read_card

ISSUER, URL = "https://localhost:8400", "https://localhost:8443"
us = trust.Credentials.load("fleet/planner")
bundles = trust.TrustBundles.load("fleet/planner/bundle.json")
BILLING = "spiffe://fleet.example/billing"


async def main():
    card = await card_of_billing()
    needs = read_card(card)
    check_card(needs, issuers=[ISSUER])  # no weaker than our own policy, and our own authorization server
    signer = trust.MessageSigner(us, audience=BILLING, bundles=bundles)
    signer.check_card(card)  # it takes signatures like ours
    print("billing asks for", *needs.scopes)
    authority = trust.exactly("spiffe://fleet.example/authority")
    tokens = trust.TokenSource(
        issuer=ISSUER,
        resource=BILLING,
        scopes=needs.scopes,
        origins=[URL],
        source=us,
        http=trust.agent_client(source=us, bundles=bundles, authorize=authority),
    )
    async with trust.agent_client(
        source=us, bundles=bundles, authorize=trust.exactly(BILLING), tokens=tokens, signer=signer
    ) as http:
        parsed = await A2ACardResolver(http, URL).get_agent_card()
        agent = ClientFactory(ClientConfig(httpx_client=http, streaming=False)).create(parsed)
        request = SendMessageRequest(message=new_text_message("invoice 42", role=Role.ROLE_USER))
        async for answer in agent.send_message(request):
            print(get_message_text(answer.message))


async def card_of_billing():
    async with trust.agent_client(source=us, bundles=bundles, authorize=trust.exactly(BILLING)) as http:
        return (await http.get(f"{URL}/.well-known/agent-card.json")).json()


asyncio.run(main())
