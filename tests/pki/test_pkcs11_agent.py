"""An agent whose key is on a token: it signs messages, cards, HTTP and tokens through the same signer as a CA's key."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwcrypto import jws as jwcrypto_jws
from jwcrypto.jwk import JWK

from pki import CertificateAuthority, keys, requests
from pki.errors import KeyStoreError
from pki.pkcs11 import TokenKey, generate_on_token, open_on_token
from tests.a2a_objects import EXAMPLES
from tests.cards import CARD, HOST
from tests.pki.softhsm import PIN, Tokens, needs_softhsm, tokens
from trust.authorize import exactly
from trust.bundles import TrustBundles
from trust.credentials import Credentials
from trust.errors import TrustError
from trust.identity import AgentID
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.peers import PeerVerifier
from trust.signing import jws
from trust.signing.cards import sign_card, verify_card
from trust.signing.evidence import verify_evidence
from trust.signing.http import authenticate_request, new_message_id, sign_request, sign_response, verify_response
from trust.signing.messages import authenticate_message, sign_message
from trust.tls.engine import client_context

__all__ = ["tokens"]  # the fixture

pytestmark = needs_softhsm

DOMAIN = "fleet.example"
PLANNER = AgentID.parse(f"spiffe://{DOMAIN}/planner")
BILLING = AgentID.parse(f"spiffe://{DOMAIN}/billing")


class Agents:
    """Two agents of one CA: the planner's key is on a token, made there, and named by its URI from then on."""

    def __init__(self, ca: CertificateAuthority, token: str) -> None:
        self.uri = generate_on_token(token, PIN).uri
        self.bundles = TrustBundles.of(ca.bundle())
        self.verifier = PeerVerifier(self.bundles)
        key = keys.private_key(open_on_token(self.uri, PIN))
        issued = ca.issue(requests.make(key, PLANNER), PLANNER, dns_names=[HOST])
        self.planner = Credentials.of(issued.chain, key)
        self.billing = ca.issue_credentials(BILLING)
        self.now = datetime.now(UTC)


@pytest.fixture(scope="module")
def agents(tokens: Tokens, tmp_path_factory: pytest.TempPathFactory) -> Agents:
    folder = tmp_path_factory.mktemp("ca") / "ca"
    with CertificateAuthority.create(folder, trust_domain=DOMAIN, password="pw") as ca:
        return Agents(ca, tokens.make("an agent"))


def test_a_message_and_the_evidence_of_it(agents: Agents) -> None:
    for author, receiver in ((agents.planner, agents.billing), (agents.billing, agents.planner)):
        signed = sign_message(
            EXAMPLES["Message"],
            "Message",
            credentials=author,
            audience=receiver.agent_id,
            now=agents.now,
            jti=new_message_id(),
        )
        message = authenticate_message(
            signed,
            "Message",
            audience=receiver.agent_id,
            verifier=agents.verifier,
            now=agents.now,
            signers=exactly(author.agent_id),
        )
        bundle = message.evidence(credentials=receiver, verifier=agents.verifier, jti=new_message_id())
        assert verify_evidence(bundle, agents.bundles, at=agents.now).receiver.agent_id == receiver.agent_id


def test_an_agent_card(agents: Agents) -> None:
    document = sign_card(CARD, credentials=agents.planner).text
    card = verify_card(document, keys=agents.verifier, agent=PLANNER, now=agents.now)
    assert (card.card, card.kid) == (CARD, agents.planner.thumbprint)


def test_a_request_and_its_answer(agents: Agents) -> None:
    request: dict[str, Any] = {"method": "POST", "url": f"https://{HOST}/a2a", "body": b"{}"}
    for ours, theirs in ((agents.planner, agents.billing), (agents.billing, agents.planner)):
        peers = [
            agents.verifier.verify(agent.chain_der, now=agents.now, usage=usage)
            for agent, usage in ((ours, "client"), (theirs, "server"))
        ]
        asked = sign_request(ours, **request, audience=theirs.agent_id, now=agents.now, jti=new_message_id())
        received = authenticate_request(
            asked.jws, **request, audience=theirs.agent_id, verifier=agents.verifier, peer=peers[0], now=agents.now
        )
        answer = sign_response(theirs, request=received, status=200, body=b"done", now=agents.now, jti=new_message_id())
        verified = verify_response(
            answer,
            request=asked,
            status=200,
            body=b"done",
            audience=ours.agent_id,
            signers=exactly(theirs.agent_id),
            verifier=agents.verifier,
            peer=peers[1],
            now=agents.now,
        )
        assert verified.payload == b"done"


def test_access_tokens(agents: Agents) -> None:
    key = SigningKey.of(agents.planner.private_key)
    token = jws.sign_compact(b"{}", key=key.private_key, header={"typ": "at+jwt", "kid": key.kid})
    public = StaticKeys(public_jwks([key])).find(key.kid, "ES256", now=agents.now)
    assert jws.parse_compact(token, algorithms=["ES256"], typ="at+jwt").verify(public) == b"{}"
    other = jwcrypto_jws.JWS()
    other.deserialize(token, JWK(**key.public_jwk))  # another library agrees
    assert other.payload == b"{}"


@pytest.mark.parametrize(
    "use",
    [
        lambda agents, folder: agents.planner.key_pem(),
        lambda agents, folder: agents.planner.key_pem("password"),
        lambda agents, folder: agents.planner.save(folder / "agent"),
        lambda agents, folder: SigningKey.of(agents.planner.private_key).to_pem(b"password"),
        lambda agents, folder: client_context(agents.planner, agents.bundles, exactly(BILLING)),
    ],
    ids=["PEM", "encrypted PEM", "a folder", "PEM of a token key", "TLS"],
)
def test_what_needs_the_key_itself_does_not_get_it(
    agents: Agents, use: Callable[[Agents, Path], object], tmp_path: Path
) -> None:
    with pytest.raises(TrustError) as caught:
        use(agents, tmp_path)
    assert type(caught.value) is KeyStoreError
    assert "does not leave its token" in str(caught.value)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_a_token_that_signs_wrongly_is_found_before_anybody_is_told(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    monkeypatch.setattr(TokenKey, "sign", lambda self, data, algorithm: other.sign(data, algorithm))
    with pytest.raises(KeyStoreError, match="wrong signature"):
        jws.sign_detached(b"{}", key=agents.planner.private_key, header={"typ": "t"})
