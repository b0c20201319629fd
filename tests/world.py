"""One valid request to one agent, with every part of it open to mutation: the ground of the gate's attack table."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from tests.forge import NOW, Forge
from trust.authorize import exactly
from trust.bundles import RevocationLists
from trust.credentials import Credentials
from trust.gate import Admission, admit
from trust.gate_policy import GatePolicy, RequestFacts
from trust.oauth.claims import sign_access_token
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.oauth.tokens import TokenValidator
from trust.peers import PeerVerifier
from trust.replay import MemoryReplayGuard
from trust.signing.http import HEADER, sign_request

ISSUER = "https://authority.fleet.example"
BODY = b'{"jsonrpc":"2.0","id":"1","method":"SendMessage","params":{"message":{"role":"ROLE_USER"}}}'
URL = "https://billing.fleet.example/a2a/jsonrpc?tenant=1"

_forge = Forge()
_key = SigningKey.generate()


def claims(peer: Credentials, audience: str, **changes: Any) -> dict[str, Any]:
    """The claims of a valid access token for `peer`; None removes one."""
    issued = int(NOW.timestamp())
    valid = {
        "iss": ISSUER,
        "sub": str(peer.agent_id),
        "client_id": str(peer.agent_id),
        "aud": audience,
        "iat": issued,
        "exp": issued + 600,
        "jti": secrets.token_urlsafe(16),
        "scope": "agent:execute",
        "cnf": {"x5t#S256": peer.thumbprint},
        **changes,
    }
    return {name: value for name, value in valid.items() if value is not None}


@dataclass(kw_only=True)
class World:
    """A fleet of one domain, the agent `billing` behind a gate, and `planner` who calls it."""

    forge: Forge = field(default_factory=lambda: _forge)
    key: SigningKey = field(default_factory=lambda: _key)
    planner: Credentials = field(default_factory=lambda: _forge.leaf("/planner"))
    billing: Credentials = field(default_factory=lambda: _forge.leaf("/billing"))

    def policy(self, **changes: Any) -> GatePolicy:
        valid = GatePolicy(
            verifier=PeerVerifier(self.forge.bundles, RevocationLists()),
            authorize=exactly(self.planner.agent_id),
            tokens=self.validator(),
            audience=self.billing.agent_id,
            signatures="required",
            replay=MemoryReplayGuard(started_at=NOW - timedelta(minutes=1)),
            scope="agent:execute",
        )
        return replace(valid, **changes)

    def validator(self, **changes: Any) -> TokenValidator:
        settings: dict[str, Any] = {
            "issuer": ISSUER,
            "audience": str(self.billing.agent_id),
            "keys": StaticKeys(public_jwks([self.key])),
            **changes,
        }
        return TokenValidator(**settings)

    def token(self, peer: Credentials | None = None, **changes: Any) -> str:
        return sign_access_token(claims(peer or self.planner, str(self.billing.agent_id), **changes), self.key)

    def signature(self, signer: Credentials | None = None, **changes: Any) -> str:
        settings: dict[str, Any] = {
            "method": "POST",
            "url": URL,
            "body": BODY,
            "audience": self.billing.agent_id,
            "now": NOW,
            "jti": secrets.token_urlsafe(16),
            "content_type": "application/json",
            "version": "1.0",
            **changes,
        }
        return sign_request(signer or self.planner, **settings).jws

    def request(
        self,
        *,
        token: str | None = "",
        signature: str | None = "",
        content_type: bytes | None = b"application/json",
        peer: Credentials | None = None,
        extra: tuple[tuple[bytes, bytes], ...] = (),
        now: datetime = NOW,
        **changes: Any,
    ) -> RequestFacts:
        """A valid request; None for `token`, `signature` or `content_type` leaves that header out."""
        headers = [(b"host", b"billing.fleet.example"), (b"a2a-version", b"1.0")]
        if content_type is not None:
            headers.append((b"content-type", content_type))
        if token is not None:
            headers.append((b"authorization", b"Bearer " + (token or self.token()).encode()))
        if signature is not None:
            headers.append((HEADER.lower().encode(), (signature or self.signature()).encode()))
        facts = RequestFacts(
            peer_chain=tuple((peer or self.planner).chain_der),
            method="POST",
            url=URL,
            path="/a2a/jsonrpc",
            headers=(*headers, *extra),
            body=BODY,
            now=now,
        )
        return replace(facts, **changes)

    def admit(self, facts: RequestFacts, **policy: Any) -> Admission:
        return admit(facts, self.policy(**policy))
