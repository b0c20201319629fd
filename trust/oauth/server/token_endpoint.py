"""The token endpoint: which grant is asked for, and what becomes of it. RFC 6749 section 3.2."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from starlette.responses import JSONResponse

from trust.errors import (
    ClientRefused,
    GrantNotAllowed,
    GrantRequestMalformed,
    GrantTypeUnknown,
    KeysUnavailable,
    PartnerUnavailable,
)
from trust.identity import PeerIdentity
from trust.oauth.claims import sign_access_token
from trust.oauth.metadata import CLIENT_CREDENTIALS, JWT_BEARER, JWT_TYPE, TOKEN_EXCHANGE
from trust.oauth.server.approvals import Approvals, pending
from trust.oauth.server.authentication import Form
from trust.oauth.server.clients import Client
from trust.oauth.server.edge import NO_STORE, Endpoint, Outcome, Parts
from trust.oauth.server.grants import (
    Grant,
    TokenRequest,
    assertion_for_partner,
    bound_to_key,
    check_permit,
    client_credentials,
    presented_assertion,
    read_assertion,
    read_subject_token,
    token_exchange,
    token_for_assertion,
)
from trust.oauth.server.store import Approval, Issued, use_approval, use_assertion
from trust.oauth.server.together import Together

GRANT_TYPES = (CLIENT_CREDENTIALS, TOKEN_EXCHANGE, JWT_BEARER)  # as metadata names them
TOKEN_ID_BYTES = 16  # RFC 9700 section 4.10.2 asks for 128 bits where guessing matters


class TokenEndpoint(Endpoint):
    event = "token"

    def __init__(self, parts: Parts, approvals: Approvals) -> None:
        super().__init__(parts)
        self._approvals = approvals
        self._remembered = Together[tuple[Issued, datetime, Client], None](self._remember, parts.in_thread)

    async def decide(
        self, form: Form, *, client: Client, peer: PeerIdentity, now: datetime, proofs: Sequence[str]
    ) -> Outcome:
        policy, token_id = self.parts.policy, secrets.token_urlsafe(TOKEN_ID_BYTES)
        request = TokenRequest(form=form, client=client, peer=peer, policy=policy, now=now, token_id=token_id)
        grant = await self._grant(request)
        if proofs:
            grant = bound_to_key(grant, proofs, issuer=policy.issuer, now=now)
        check_permit(grant, request)
        grant, approval = await self._approvals.approved(grant, form, client=client, now=now)
        used = grant.assertion
        if approval is None and used is None:
            await self._remembered.ask((grant.issued, now, client))
        else:
            await self.parts.in_thread(partial(self._remember_using, grant, approval, client, now))
        token = sign_access_token(grant.claims, self.parts.signing_key, grant.typ)
        return Outcome(
            response=JSONResponse(_answer(grant, token), headers=NO_STORE),
            subject=grant.issued.subject,
            facts={
                "jti": grant.issued.token_id,
                "scope": grant.scope,
                "parent": grant.issued.parent_id or "",
                **({} if used is None else {"assertion": f"{used.issuer} {used.token_id}"}),
                **({} if approval is None else {"approval": approval.approval_id, "approved_by": approval.decided_by}),
            },
        )

    def _remember(self, tokens: Sequence[tuple[Issued, datetime, Client]]) -> list[Exception | None]:
        """Before they are signed; for each, what refuses it.

        Whoever is disabled from now on has these tokens revoked. Whoever was disabled and also removed meanwhile, the
        store does not know any more: so it is asked afterwards whether each is still the client that it was.
        """
        refused = self.parts.store.tokens.add_all([(issued, now) for issued, now, _ in tokens])
        registered = self.parts.clients.current()
        return [
            error or _changed(client, registered.find(client.client_id))
            for error, (_, _, client) in zip(refused, tokens, strict=True)
        ]

    def _remember_using(self, grant: Grant, approval: Approval | None, client: Client, now: datetime) -> None:
        """As `_remember`, with what the token uses up: all or nothing.

        Only a client that is removed or registered anew at that very moment loses what it brought.
        """

        def use(connection: Any) -> None:
            if approval is not None and not use_approval(connection, approval, now=now):
                raise pending(approval, now)
            if grant.assertion is not None:
                use_assertion(connection, grant.assertion, now=now)

        self.parts.store.tokens.add(grant.issued, now=now, using=use)
        changed = _changed(client, self.parts.clients.current().find(client.client_id))
        if changed is not None:
            raise changed

    async def _grant(self, request: TokenRequest) -> Grant:
        grant_type = request.form.get("grant_type")
        if grant_type == CLIENT_CREDENTIALS:
            return client_credentials(request)
        if grant_type == TOKEN_EXCHANGE:
            subject = read_subject_token(request, self.parts.published)
            parent = await self.parts.in_thread(partial(self.parts.store.tokens.find, subject.token_id))
            make = assertion_for_partner if request.form.get("requested_token_type") == JWT_TYPE else token_exchange
            return make(request, subject, parent)
        if grant_type == JWT_BEARER:
            presented = presented_assertion(request)
            try:
                await presented.partner.keys.prepare(presented.kid, now=request.now)
            except KeysUnavailable as error:
                raise PartnerUnavailable(str(error)) from None
            return token_for_assertion(request, read_assertion(request, presented))
        if grant_type is None:
            raise GrantRequestMalformed("grant_type", got="none", expected="one")
        raise GrantTypeUnknown("grant_type", got=grant_type, expected=" or ".join(GRANT_TYPES))


def _changed(before: Client, after: Client | None) -> Exception | None:
    """What refuses a token of a client that was authenticated `before`. A new secret is no other client."""
    if after is None:
        return ClientRefused("client is gone", got=before.client_id, expected="one that still was when it asked")
    if replace(after, secrets=before.secrets) != before:
        return GrantNotAllowed("client was registered anew meanwhile", got=before.client_id, do="ask again")
    return None


def _answer(grant: Grant, token: str) -> dict[str, str | int]:
    """RFC 6749 section 5.1; RFC 8693 section 2.2.1 for an exchange: what is no access token is of no token type."""
    members: dict[str, str | int] = {
        "access_token": token,
        "token_type": "N_A" if grant.token_type == JWT_TYPE else "DPoP" if "jkt" in grant.claims["cnf"] else "Bearer",
        "expires_in": grant.expires_in,
        "scope": grant.scope,
    }
    if grant.issued.parent_id is not None:
        members["issued_token_type"] = grant.token_type
    return members
