"""An Agent Card with all that ours have, the agent that it is of, and a2a-sdk's own signer and verifier."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

from a2a.client.card_resolver import parse_agent_card
from a2a.utils.signing import create_agent_card_signer, create_signature_verifier
from cryptography import x509
from google.protobuf.json_format import MessageToDict

from tests.forge import NOW, Forge, spiffe
from trust.credentials import Credentials
from trust.oauth.cards import CardPolicy, secured
from trust.peers import PeerVerifier
from trust.signing.cards import VerifiedCard, verify_card

HOST = "billing.fleet.example"
URL = f"https://{HOST}/.well-known/agent-card.json"
FORGE = Forge()
KEYS = PeerVerifier(FORGE.bundles)


def agent_of(path: str, *hosts: str, forge: Forge = FORGE, **changes: Any) -> Credentials:
    names = [spiffe(f"spiffe://{forge.domain}{path}"), *map(x509.DNSName, hosts)]
    return forge.leaf(path, sans=names, **changes)


BILLING = agent_of("/billing", HOST)

_PLAIN: dict[str, Any] = {
    "name": "billing",
    "description": "Bills, in € and “quoted”.",
    "version": "1.0.0",
    "supportedInterfaces": [{"url": f"https://{HOST}/a2a", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}],
    "provider": {"organization": "Fleet", "url": "https://fleet.example"},
    "defaultInputModes": ["text/plain"],
    "defaultOutputModes": ["text/plain"],
    "skills": [{"id": "bill", "name": "Bill", "description": "Writes a bill.", "tags": ["money"]}],
}
CARD = secured(_PLAIN, CardPolicy(issuer="https://auth.fleet.example", scopes={"agent:execute": "Give it work."}))
CARD["capabilities"]["streaming"] = False
CARD["capabilities"]["extensions"][0]["params"].update(ratio=0.5, whole=5, deep={"list": [1, True, "😀", "\uffff"]})


def changed(card: Mapping[str, Any] = CARD, **members: Any) -> dict[str, Any]:
    """A copy with other members; None takes one out."""
    result = copy.deepcopy({**card, **members})
    return {name: value for name, value in result.items() if value is not None}


def without(card: Mapping[str, Any], *path: str | int) -> dict[str, Any]:
    """A copy without what is at a path."""
    result = copy.deepcopy(dict(card))
    holder: Any = result
    for step in path[:-1]:
        holder = holder[step]
    del holder[path[-1]]
    return result


def text(card: Mapping[str, Any]) -> bytes:
    return json.dumps(card).encode()


def sdk_signed(card: Mapping[str, Any], key: Any = BILLING.private_key, **header: Any) -> dict[str, Any]:
    """Signed by a2a-sdk, with everything in the document that was there before, be it signed or not."""
    protected = {"alg": "ES256", "kid": "key-1", "typ": "JOSE", **header}
    message = parse_agent_card(copy.deepcopy(dict(card)))
    create_agent_card_signer(key, {n: v for n, v in protected.items() if v is not None})(message)  # type: ignore[arg-type]
    return {**card, "signatures": MessageToDict(message)["signatures"]}


def sdk_verifies(
    document: bytes,
    key: Any = None,
    algorithms: tuple[str, ...] = ("ES256",),
    provider: Callable[[str | None, str | None], Any] | None = None,
) -> None:
    """As a client of a2a-sdk does, from the body of the answer."""
    message = parse_agent_card(json.loads(document))
    create_signature_verifier(provider or (lambda kid, jku: key or BILLING.private_key.public_key()), list(algorithms))(
        message
    )


def x5c(credentials: Credentials) -> dict[str, Any]:
    """The header members that show a chain."""
    return {
        "x5t#S256": credentials.thumbprint,
        "x5c": [base64.b64encode(der).decode() for der in credentials.chain_der],
    }


def verified(card: bytes | Mapping[str, Any], **changes: Any) -> VerifiedCard:
    settings = {"keys": KEYS, "agent": BILLING.agent_id, "now": NOW, **changes}
    return verify_card(card, **settings)
