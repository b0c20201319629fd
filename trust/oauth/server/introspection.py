"""The introspection endpoint: is this token good, and what does it say? RFC 7662; signed answers by RFC 9701."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from starlette.responses import JSONResponse, Response

from trust.clock import utc
from trust.errors import GrantRequestMalformed, TokenError
from trust.identity import PeerIdentity
from trust.json_text import write
from trust.oauth.claims import AccessToken, verified_token
from trust.oauth.keys import SigningKey
from trust.oauth.server.authentication import Form
from trust.oauth.server.clients import Client
from trust.oauth.server.edge import NO_STORE, Endpoint, Outcome
from trust.signing import jws

TYPE = "token-introspection+jwt"  # RFC 9701 section 5
JWT_MEDIA_TYPE = f"application/{TYPE}"
MAX_JWT_BYTES = 16 << 10  # it travels in a body; what it says was in a token of half that size

# RFC 7662 section 2.2, and what RFC 8705 section 3.2, RFC 8693 section 4 and RFC 9470 add. Other claims are nobody's
# business who cannot read the token.
_TOLD = ("scope", "client_id", "sub", "aud", "iss", "exp", "iat", "nbf", "jti", "cnf", "act", "acr", "auth_time")
_INACTIVE: Mapping[str, Any] = {"active": False}


class IntrospectionEndpoint(Endpoint):
    """What a token says is told to the client that holds it, and to the one that it was made for.

    A token is active when

    1. this server signed it, as an access token
    2. it was issued to the client that asks, or its audience is one of that client's names
    3. its time has come and has not passed
    4. it is in the store, and not revoked

    Everything else is `{"active": false}`, whatever the reason, and costs at most one signature and one look into the
    store. A stranger is never told, by the answer or by its time, what the store says of a token: it is asked last.
    The audit trail says which of these failed.
    """

    event = "introspection"

    async def decide(
        self, form: Form, *, client: Client, peer: PeerIdentity, now: datetime, proofs: Sequence[str]
    ) -> Outcome:
        if "token" not in form:
            raise GrantRequestMalformed("token", got="none", expected="the token to introspect")
        token, found = await self._found(form["token"], client, now)
        told = _INACTIVE if token is None or found else _told(token)
        return Outcome(
            response=JSONResponse(dict(told), headers=NO_STORE),
            on_request={JWT_MEDIA_TYPE: partial(self._signed, told, client, now)},
            subject="" if token is None else token.subject,
            facts={
                "jti": "" if token is None else token.token_id,
                "active": "no" if found else "yes",
                "found": found,
            },
        )

    async def _found(self, text: str, client: Client, now: datetime) -> tuple[AccessToken | None, str]:
        """The token, where this server signed it; and the check that it fails, empty where it is active."""
        # 1.
        try:
            verified = verified_token(text, issuer=self.parts.policy.issuer, keys=self.parts.published, now=now)
        except TokenError as error:
            return None, error.check
        token = verified.token
        # 2.
        if token.client_id != client.client_id and not set(token.audience) & set(client.audiences):
            return token, "introspection.client"
        # 3.
        if not verified.not_before <= utc(now).timestamp() < verified.expires:
            return token, "introspection.time"
        # 4.
        issued = await self.parts.in_thread(partial(self.parts.store.tokens.find, token.token_id))
        return token, "introspection.revoked" if issued is None or issued.revoked else ""

    def _signed(self, told: Mapping[str, Any], client: Client, now: datetime) -> Response:
        text = sign_introspection(
            told, issuer=self.parts.policy.issuer, audience=client.client_id, now=now, key=self.parts.signing_key
        )
        return Response(text, headers=NO_STORE, media_type=JWT_MEDIA_TYPE)


def sign_introspection(told: Mapping[str, Any], *, issuer: str, audience: str, now: datetime, key: SigningKey) -> str:
    """The answer as a JWT for the client that asked. RFC 9701 section 5.

    It has neither `sub` nor `exp` of its own, so that nobody takes it for an access token.
    """
    claims = {"iss": issuer, "aud": audience, "iat": int(now.timestamp()), "token_introspection": dict(told)}
    header = {"alg": key.alg, "typ": TYPE, "kid": key.kid}
    return jws.sign_compact(write(claims), key=key.private_key, header=header, max_bytes=MAX_JWT_BYTES)


def _told(token: AccessToken) -> dict[str, Any]:
    said = {name: token.claims[name] for name in _TOLD if name in token.claims}
    return {"active": True, **said, "token_type": "DPoP" if token.key_thumbprint else "Bearer"}
