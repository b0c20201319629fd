"""The revocation endpoint (RFC 7009): a client ends a token that was issued to it, and all that came from it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial

from starlette.responses import Response

from trust.errors import (
    GrantRequestMalformed,
    RevocationRefused,
    TokenError,
    TokenNotRevocable,
    TokenTypeWrong,
)
from trust.identity import PeerIdentity
from trust.oauth.claims import verified_token
from trust.oauth.server.authentication import Form
from trust.oauth.server.clients import Client
from trust.oauth.server.edge import NO_STORE, Endpoint, Outcome


class RevocationEndpoint(Endpoint):
    """A token that is unknown, forged, expired or revoked is answered 200: it is not valid, which is what was asked.

    1. a token is named                                                               GrantRequestMalformed
    2. it is not a JWT of another kind, such as an assertion: that would stay valid   TokenNotRevocable
    3. it was issued to the client that asks                                          RevocationRefused

    `token_type_hint` is not looked at, for there is one type. That 3 tells a genuine token from others gives nothing
    away: the server's keys are public. Whether it was revoked before is told to nobody.
    """

    event = "revocation"

    async def decide(
        self, form: Form, *, client: Client, peer: PeerIdentity, now: datetime, proofs: Sequence[str]
    ) -> Outcome:
        # 1.
        if "token" not in form:
            raise GrantRequestMalformed("token", got="none", expected="the token to revoke")
        done = Response(headers=NO_STORE)
        try:
            token = verified_token(
                form["token"], issuer=self.parts.policy.issuer, keys=self.parts.published, now=now
            ).token
        except TokenTypeWrong:
            # 2.
            raise TokenNotRevocable("revocation", got="a JWT of another type", expected="an access token") from None
        except TokenError as error:
            return Outcome(response=done, facts={"found": error.check, "revoked": "0"})
        # 3.
        if token.client_id != client.client_id:
            raise RevocationRefused("token was issued to another client", got=client.client_id)
        revoked = await self.parts.in_thread(partial(self.parts.store.tokens.revoke, token.token_id))
        return Outcome(response=done, subject=token.subject, facts={"jti": token.token_id, "revoked": str(revoked)})
