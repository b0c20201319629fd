"""The token endpoint: which grant is asked for, and what becomes of it. RFC 6749 section 3.2."""

from __future__ import annotations

import secrets
from datetime import datetime
from functools import partial

from starlette.responses import JSONResponse

from trust.errors import GrantRequestMalformed, GrantTypeUnknown
from trust.identity import PeerIdentity
from trust.oauth.metadata import ACCESS_TOKEN_TYPE, CLIENT_CREDENTIALS, TOKEN_EXCHANGE
from trust.oauth.server.authentication import Form
from trust.oauth.server.clients import Client
from trust.oauth.server.edge import NO_STORE, Endpoint, Outcome
from trust.oauth.server.exchange import read_subject_token, token_exchange
from trust.oauth.server.grants import Grant, client_credentials
from trust.oauth.tokens import sign_access_token

TOKEN_ID_BYTES = 16  # RFC 9700 section 4.10.2 asks for 128 bits where guessing matters


class TokenEndpoint(Endpoint):
    event = "token"

    async def decide(self, form: Form, *, client: Client, peer: PeerIdentity, now: datetime) -> Outcome:
        grant = await self._grant(form, client=client, peer=peer, now=now)
        await self.parts.in_thread(partial(self.parts.store.tokens.add, grant.issued, now=now))
        token = sign_access_token(grant.claims, self.parts.signing_key)
        return Outcome(
            response=JSONResponse(_answer(grant, token), headers=NO_STORE),
            subject=grant.issued.subject,
            facts={"jti": grant.issued.token_id, "scope": grant.scope, "parent": grant.issued.parent_id or ""},
        )

    async def _grant(self, form: Form, *, client: Client, peer: PeerIdentity, now: datetime) -> Grant:
        grant_type = form.get("grant_type")
        policy = self.parts.policy
        token_id = secrets.token_urlsafe(TOKEN_ID_BYTES)
        if grant_type == CLIENT_CREDENTIALS:
            return client_credentials(form, client=client, peer=peer, policy=policy, now=now, token_id=token_id)
        if grant_type == TOKEN_EXCHANGE:
            subject = read_subject_token(form, client=client, keys=self.parts.published, policy=policy, now=now)
            return token_exchange(
                form,
                client=client,
                peer=peer,
                subject=subject,
                parent=await self.parts.in_thread(partial(self.parts.store.tokens.find, subject.token_id)),
                policy=policy,
                now=now,
                token_id=token_id,
            )
        if grant_type is None:
            raise GrantRequestMalformed("grant_type", got="none", expected="one")
        raise GrantTypeUnknown("grant_type", got=grant_type, expected=f"{CLIENT_CREDENTIALS} or {TOKEN_EXCHANGE}")


def _answer(grant: Grant, token: str) -> dict[str, str | int]:
    """RFC 6749 section 5.1; RFC 8693 section 2.2.1 for an exchange."""
    members: dict[str, str | int] = {
        "access_token": token,
        "token_type": "Bearer",
        "expires_in": grant.expires_in,
        "scope": grant.scope,
    }
    if grant.issued.parent_id is not None:
        members["issued_token_type"] = ACCESS_TOKEN_TYPE
    return members
