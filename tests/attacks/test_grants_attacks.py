"""The token endpoint, attacked: one valid request, one named mutation a row, the exact refusal in the row.

Each row is checked at the wire (status and RFC error code, nothing else) and in the audit trail (the check that
refused). Each valid request is shown to succeed first, so that no row fails for another reason.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.authority import (
    ACCESS_TOKEN,
    BILLING,
    CLIENTS,
    LEDGER,
    PLANNER,
    STRANGER,
    Authority,
    ask,
    exchange,
)
from tests.forge import HOUR, NOW
from trust.errors import (
    ClientRefused,
    DelegationRefused,
    GrantNotAllowed,
    GrantRequestMalformed,
    GrantTypeUnknown,
    RequestTooLarge,
    ScopeRefused,
    SubjectTokenRefused,
    TargetRefused,
    TrustError,
)
from trust.identity import AgentID
from trust.oauth.claims import sign_access_token
from trust.oauth.keys import SigningKey
from trust.oauth.server.clients import Client
from trust.signing import jws

Refusal = type[TrustError]


async def refused(authority: Authority, answer: httpx.Response, expected: Refusal) -> None:
    assert (answer.status_code, answer.json()) == (expected.status, {"error": expected.code}), authority.trail.last
    assert (authority.trail.last["decision"], authority.trail.last["check"]) == ("deny", expected.check)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"


CREDENTIALS: dict[str, tuple[str | None, dict[str, str | None], Refusal]] = {
    # name: (who connects, the parameters that are changed, the refusal)
    "no certificate": (None, {}, ClientRefused),
    "peer that is not registered": (STRANGER, {"client_id": STRANGER}, ClientRefused),
    "peer that is not registered, as another": (STRANGER, {}, ClientRefused),
    "registered peer as another client": (BILLING, {}, ClientRefused),
    "client_id of another client": (PLANNER, {"client_id": BILLING}, ClientRefused),
    "client_id missing": (PLANNER, {"client_id": None}, ClientRefused),
    "client_id empty": (PLANNER, {"client_id": ""}, ClientRefused),
    "client_id in other case": (PLANNER, {"client_id": PLANNER.upper()}, ClientRefused),
    "client secret beside the certificate": (PLANNER, {"client_secret": "x"}, GrantRequestMalformed),
    "client assertion beside it": (PLANNER, {"client_assertion": "x"}, GrantRequestMalformed),
    "assertion type alone": (PLANNER, {"client_assertion_type": "x"}, GrantRequestMalformed),
    "no grant type": (PLANNER, {"grant_type": None}, GrantRequestMalformed),
    "unknown grant type": (PLANNER, {"grant_type": "password"}, GrantTypeUnknown),
    "grant type in other case": (PLANNER, {"grant_type": "Client_Credentials"}, GrantTypeUnknown),
    "authorization code": (PLANNER, {"grant_type": "authorization_code", "code": "x"}, GrantTypeUnknown),
    "refresh token": (PLANNER, {"grant_type": "refresh_token", "refresh_token": "x"}, GrantTypeUnknown),
    "no resource": (PLANNER, {"resource": None}, TargetRefused),
    "resource empty": (PLANNER, {"resource": ""}, TargetRefused),
    "resource that is not allowed": (PLANNER, {"resource": LEDGER}, TargetRefused),
    "resource with a slash more": (PLANNER, {"resource": BILLING + "/"}, TargetRefused),
    "resource in other case": (PLANNER, {"resource": BILLING.upper()}, TargetRefused),
    "audience beside the resource": (PLANNER, {"audience": LEDGER}, TargetRefused),
    "audience for the resource": (PLANNER, {"audience": BILLING, "resource": None}, TargetRefused),
    "no scope": (PLANNER, {"scope": None}, ScopeRefused),
    "scope empty": (PLANNER, {"scope": ""}, ScopeRefused),
    "scope not registered": (PLANNER, {"scope": "write:ledger.eu temporal:20min"}, ScopeRefused),
    "one scope too many": (PLANNER, {"scope": "agent:execute agent:admin temporal:20min"}, ScopeRefused),
    "scope above in the catalogue": (PLANNER, {"scope": "agent:admin temporal:20min"}, ScopeRefused),
    "wider wildcard": (PLANNER, {"scope": "read:** temporal:20min"}, ScopeRefused),
    "deeper than the wildcard": (PLANNER, {"scope": "read:ledger.eu.de temporal:20min"}, ScopeRefused),
    "not a scope of the grammar": (PLANNER, {"scope": "openid temporal:20min"}, ScopeRefused),
    "scope with two spaces": (PLANNER, {"scope": "agent:execute  temporal:20min"}, ScopeRefused),
    "scope with a newline": (PLANNER, {"scope": "agent:execute\ntemporal:20min"}, ScopeRefused),
    "time scope left out": (PLANNER, {"scope": "agent:execute"}, ScopeRefused),
    "time scope replaced": (PLANNER, {"scope": "agent:execute temporal:30min"}, ScopeRefused),
    "time scope not understood": (PLANNER, {"scope": "agent:execute temporal:20min temporal:dusk"}, ScopeRefused),
    "more scopes than anyone needs": (PLANNER, {"scope": " ".join(f"read:s{n}" for n in range(200))}, ScopeRefused),
    "more than the trail can show": (
        PLANNER,
        {"scope": "temporal:20min " + " ".join(f"read:ledger.{'x' * 30}{n}" for n in range(100, 150))},
        ScopeRefused,
    ),
    "delegation to anyone": (PLANNER, {"scope": "delegate:* temporal:20min"}, ScopeRefused),
    "client without scopes of its own": (LEDGER, {"client_id": LEDGER}, GrantNotAllowed),
}


@pytest.mark.parametrize("name", CREDENTIALS)
def test_client_credentials(tmp_path: Path, name: str) -> None:
    authority = Authority(tmp_path)
    agent, changes, expected = CREDENTIALS[name]

    async def work() -> None:
        assert (await authority.post(PLANNER, ask())).status_code == 200
        await refused(authority, await authority.post(agent, ask(**changes)), expected)

    asyncio.run(work())


FORM = "application/x-www-form-urlencoded"
Request = Callable[[httpx.AsyncClient, bytes], Awaitable[httpx.Response]]


def send(body: Callable[[bytes], bytes] = lambda b: b, path: str = "/token", **headers: str) -> Request:
    fields = {"content-type": FORM} | {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda http, valid: http.post(path, content=body(valid), headers=fields)


WIRE: dict[str, tuple[Request, Refusal]] = {
    "parameter twice": (send(lambda b: b + b"&scope=agent%3Aexecute"), GrantRequestMalformed),
    "parameter twice, once empty": (send(lambda b: b + b"&client_id="), GrantRequestMalformed),
    "parameter twice, once escaped": (send(lambda b: b + b"&%73cope=x"), GrantRequestMalformed),
    "resource twice": (send(lambda b: b + b"&resource=" + LEDGER.encode()), TargetRefused),
    "resource and scope twice": (send(lambda b: b + b"&resource=x&scope=x"), GrantRequestMalformed),
    "not a form": (send(lambda b: b"{}"), GrantRequestMalformed),
    "not ASCII": (send(lambda b: b + b"&x=\xff"), GrantRequestMalformed),
    "not UTF-8 within": (send(lambda b: b + b"&x=%ff"), GrantRequestMalformed),
    "too many parameters": (send(lambda b: b + b"".join(b"&p%d=x" % n for n in range(40))), GrantRequestMalformed),
    "empty body": (send(lambda b: b""), ClientRefused),
    "oversized body": (send(lambda b: b + b"&x=" + b"x" * (16 << 10)), RequestTooLarge),
    "JSON": (send(lambda b: json.dumps(ask()).encode(), content_type="application/json"), GrantRequestMalformed),
    "multipart": (send(content_type="multipart/form-data; boundary=x"), GrantRequestMalformed),
    "no content type": (send(content_type=""), GrantRequestMalformed),
    "compressed": (send(content_encoding="gzip"), GrantRequestMalformed),
    "parameters in the query": (send(path="/token?scope=agent:execute"), GrantRequestMalformed),
    "basic authentication": (send(authorization="Basic eDp5"), ClientRefused),
    "bearer token": (send(authorization="Bearer eDp5"), ClientRefused),
}


@pytest.mark.parametrize("name", WIRE)
def test_the_form_of_requests(tmp_path: Path, name: str) -> None:
    authority = Authority(tmp_path)
    request, expected = WIRE[name]
    valid = str(httpx.QueryParams(ask())).encode()

    async def work() -> None:
        async with authority.http(PLANNER) as http:
            assert (await send()(http, valid)).status_code == 200
            await refused(authority, await request(http, valid), expected)

    asyncio.run(work())


EXCHANGE: dict[str, tuple[str | None, dict[str, str | None], Refusal]] = {
    "no certificate": (None, {}, ClientRefused),
    "the holder of the subject token itself": (PLANNER, {"client_id": PLANNER}, GrantNotAllowed),
    "another agent than it was sent to": (LEDGER, {"client_id": LEDGER, "resource": BILLING}, SubjectTokenRefused),
    "someone else's client_id": (LEDGER, {}, ClientRefused),
    "no subject token": (BILLING, {"subject_token": None}, GrantRequestMalformed),
    "no subject token type": (BILLING, {"subject_token_type": None}, GrantRequestMalformed),
    "ID token type": (
        BILLING,
        {"subject_token_type": "urn:ietf:params:oauth:token-type:id_token"},
        GrantRequestMalformed,
    ),
    "JWT type": (BILLING, {"subject_token_type": "urn:ietf:params:oauth:token-type:jwt"}, GrantRequestMalformed),
    "refresh token wanted": (
        BILLING,
        {"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
        GrantRequestMalformed,
    ),
    "actor token": (BILLING, {"actor_token": "x", "actor_token_type": ACCESS_TOKEN}, GrantRequestMalformed),
    "no scope": (BILLING, {"scope": None}, ScopeRefused),
    "scope that only the client has": (BILLING, {"scope": "write:ledger.eu temporal:20min"}, ScopeRefused),
    "scope that only the subject token has": (BILLING, {"scope": "agent:execute temporal:20min"}, ScopeRefused),
    "scope of the client's own": (BILLING, {"scope": "read:rates temporal:20min"}, ScopeRefused),
    "wider than the subject token": (BILLING, {"scope": "read:ledger.* temporal:20min"}, ScopeRefused),
    "sibling of what the subject token grants": (BILLING, {"scope": "read:ledger.us temporal:20min"}, ScopeRefused),
    "time scope dropped": (BILLING, {"scope": "read:ledger.eu"}, ScopeRefused),
    "time scope stretched": (BILLING, {"scope": "read:ledger.eu temporal:2h"}, ScopeRefused),
    "further delegation that was not granted": (BILLING, {"scope": "delegate:ledger temporal:20min"}, ScopeRefused),
    "resource that is not allowed": (BILLING, {"resource": PLANNER}, TargetRefused),
    "back to itself": (BILLING, {"resource": BILLING}, TargetRefused),
    "no resource": (BILLING, {"resource": None}, TargetRefused),
}


@pytest.mark.parametrize("name", EXCHANGE)
def test_token_exchange(tmp_path: Path, name: str) -> None:
    authority = Authority(tmp_path)
    agent, changes, expected = EXCHANGE[name]

    async def work() -> None:
        subject = await authority.token(PLANNER, ask())
        assert (await authority.post(BILLING, exchange(subject))).status_code == 200
        await refused(authority, await authority.post(agent, exchange(subject, **changes)), expected)

    asyncio.run(work())


class Subject:
    """A valid subject token of the planner's for billing, with its parts, for mutation."""

    def __init__(self, authority: Authority, token: str) -> None:
        self.authority, self.token = authority, token
        self.claims: dict[str, Any] = json.loads(_decoded(token.split(".")[1]))

    def signed(self, key: SigningKey | None = None, **claims: Any) -> str:
        """The token with changed claims, signed by the server's own key unless another one is given."""
        kept = {name: value for name, value in {**self.claims, **claims}.items() if value is not None}
        return sign_access_token(kept, key or self.authority.key)

    def headed(self, **header: Any) -> str:
        payload = json.dumps(self.claims).encode()
        header = {"alg": "ES256", "typ": "at+jwt", "kid": self.authority.key.kid, **header}
        return jws.sign_compact(payload, key=self.authority.key.private_key, header=header)


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _revoked(subject: Subject) -> str:
    subject.authority.store.tokens.revoke(subject.claims["jti"])
    return subject.token


def _expired(subject: Subject) -> str:
    subject.authority.clock.advance(minutes=10)
    return subject.token


def _swapped(subject: Subject, **claims: Any) -> str:
    """Changed claims under the old signature."""
    header, _, signature = subject.token.split(".")
    return f"{header}.{_encoded(json.dumps({**subject.claims, **claims}).encode())}.{signature}"


SUBJECT_TOKENS: dict[str, tuple[Callable[[Subject], str], Refusal]] = {
    "expired": (_expired, SubjectTokenRefused),
    "revoked": (_revoked, SubjectTokenRefused),
    "never issued": (lambda s: s.signed(jti="another"), SubjectTokenRefused),
    "for another audience": (lambda s: s.signed(aud=LEDGER), SubjectTokenRefused),
    "of another issuer": (lambda s: s.signed(iss="https://evil.example"), SubjectTokenRefused),
    "signed by another key": (lambda s: s.signed(SigningKey.generate()), SubjectTokenRefused),
    "signed by another key with our kid": (
        lambda s: s.signed(replace(SigningKey.generate(), kid=s.authority.key.kid)),
        SubjectTokenRefused,
    ),
    "claims changed": (lambda s: _swapped(s, scope="read:ledger.* delegate:billing"), SubjectTokenRefused),
    "not signed": (
        lambda s: ".".join([_encoded(b'{"alg":"none","typ":"at+jwt"}'), s.token.split(".")[1], ""]),
        SubjectTokenRefused,
    ),
    "ID token of ours": (lambda s: s.headed(typ="JWT"), SubjectTokenRefused),
    "signed message of ours": (lambda s: s.headed(typ="a2a-req+jws"), SubjectTokenRefused),
    "no kid": (lambda s: s.headed(kid=None), SubjectTokenRefused),
    "not a JWT": (lambda s: "opaque", SubjectTokenRefused),
    "cut off": (lambda s: s.token[:-2], SubjectTokenRefused),
    "too large": (lambda s: s.token + "A" * 8192, SubjectTokenRefused),
    "payload is a list": (
        lambda s: jws.sign_compact(
            b"[]",
            key=s.authority.key.private_key,
            header={"alg": "ES256", "typ": "at+jwt", "kid": s.authority.key.kid},
        ),
        SubjectTokenRefused,
    ),
    # By our own key, but not as we write them: of an older release, or of another program that has the key.
    "no scope": (lambda s: s.signed(scope=None), DelegationRefused),
    "scope a list": (lambda s: s.signed(scope=["delegate:billing"]), SubjectTokenRefused),
    "scope outside the grammar": (lambda s: s.signed(scope="delegate:billing openid"), SubjectTokenRefused),
    "no expiry": (lambda s: s.signed(exp=None), SubjectTokenRefused),
    "expiry as text": (lambda s: s.signed(exp="never"), SubjectTokenRefused),
    "expiry beyond time": (lambda s: s.signed(exp=10**15), SubjectTokenRefused),
    "no identifier": (lambda s: s.signed(jti=None), SubjectTokenRefused),
    "identifier a number": (lambda s: s.signed(jti=7), SubjectTokenRefused),
    "no subject": (lambda s: s.signed(sub=None), SubjectTokenRefused),
    "no audience": (lambda s: s.signed(aud=None), SubjectTokenRefused),
    "several audiences": (lambda s: s.signed(aud=[BILLING, LEDGER]), SubjectTokenRefused),
    "bound to nothing": (lambda s: s.signed(cnf=None), SubjectTokenRefused),
    "act that is no object": (lambda s: s.signed(act="admin"), SubjectTokenRefused),
    "without consent to delegate": (lambda s: s.signed(scope="read:ledger.eu temporal:20min"), DelegationRefused),
    "consent for another agent": (
        lambda s: s.signed(scope="read:ledger.eu delegate:ledger temporal:20min"),
        DelegationRefused,
    ),
    "may_act of another agent": (lambda s: s.signed(may_act={"sub": LEDGER}), DelegationRefused),
    "may_act of nobody": (lambda s: s.signed(may_act={}), DelegationRefused),
    "may_act that is no object": (lambda s: s.signed(may_act=BILLING), DelegationRefused),
    "actor depth": (
        lambda s: s.signed(act={"sub": "a", "act": {"sub": "b", "act": {"sub": "c", "act": {"sub": "d"}}}}),
        DelegationRefused,
    ),
}


@pytest.mark.parametrize("name", SUBJECT_TOKENS)
def test_subject_tokens(tmp_path: Path, name: str) -> None:
    authority = Authority(tmp_path)
    forge, expected = SUBJECT_TOKENS[name]

    async def work() -> None:
        subject = Subject(authority, await authority.token(PLANNER, ask()))
        for valid in (subject.token, subject.signed(), subject.headed(), subject.signed(may_act={"sub": BILLING})):
            assert (await authority.post(BILLING, exchange(valid))).status_code == 200
        await refused(authority, await authority.post(BILLING, exchange(forge(subject))), expected)

    asyncio.run(work())


def test_the_longest_chain_of_actors_is_the_documented_one(tmp_path: Path) -> None:
    """Five exchanges in a row, each by the next agent: four pass."""
    names = [f"spiffe://fleet.example/agent-{n}" for n in range(6)]
    scope = "read:x delegate:*"
    clients = [
        Client(
            agent_id=AgentID.parse(name),
            scopes=("read:x", "delegate:*"),
            exchange_scopes=("read:x", "delegate:*"),
            resources=tuple(names),
        )
        for name in names
    ]
    authority = Authority(tmp_path, tuple(clients))

    async def work() -> None:
        token = await authority.token(names[0], ask(client_id=names[0], resource=names[1], scope=scope))
        for n in range(1, 5):
            form = exchange(token, client_id=names[n], resource=names[n + 1], scope=scope)
            token = await authority.token(names[n], form)
        form = exchange(token, client_id=names[5], resource=names[0], scope=scope)
        await refused(authority, await authority.post(names[5], form), DelegationRefused)

    asyncio.run(work())


@pytest.mark.parametrize("when", [-2 * HOUR, 25 * HOUR])
def test_a_connection_that_outlives_its_certificate(tmp_path: Path, when: timedelta) -> None:
    authority = Authority(tmp_path)

    async def work() -> None:
        assert (await authority.post(PLANNER, ask())).status_code == 200
        peer = authority.peer(PLANNER)
        assert peer.agent_id == AgentID.parse(PLANNER)
        authority.clock.now = NOW + when
        await refused(authority, await authority.post(PLANNER, ask()), ClientRefused)

    asyncio.run(work())


def test_a_token_that_would_end_within_the_second_is_not_issued(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    async def work() -> None:
        subject = await authority.token(PLANNER, ask())
        authority.clock.now = NOW + timedelta(minutes=9, seconds=59)
        assert (await authority.post(BILLING, exchange(subject))).json()["expires_in"] == 1
        authority.clock.advance(milliseconds=500)
        await refused(authority, await authority.post(BILLING, exchange(subject)), GrantNotAllowed)

    asyncio.run(work())


def test_the_certificate_of_a_foreign_domain_with_the_same_path(tmp_path: Path) -> None:
    """`spiffe://other.example/planner` is verified by its own domain's bundle, and is not our planner."""
    from tests.forge import Forge
    from trust.bundles import TrustBundles
    from trust.peers import PeerVerifier

    authority, other = Authority(tmp_path, CLIENTS), Forge("other.example")
    authority.verifier = PeerVerifier(TrustBundles.of(authority.forge.bundle, other.bundle))
    authority.certificates["other"] = other.leaf("/planner")

    async def work() -> None:
        for client_id in (PLANNER, "spiffe://other.example/planner"):
            await refused(authority, await authority.post("other", ask(client_id=client_id)), ClientRefused)

    asyncio.run(work())


def test_a_subject_token_of_a_server_that_shares_our_issuer_and_key(tmp_path: Path) -> None:
    """A copied installation, or a restored backup: what this store does not know can be revoked by nobody."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    ours, copy = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    copy.forge, copy.certificates, copy.verifier = ours.forge, ours.certificates, ours.verifier
    subject = asyncio.run(ours.token(PLANNER, ask()))
    forged = sign_access_token(json.loads(_decoded(subject.split(".")[1])), copy.key)

    async def work() -> None:
        await refused(copy, await copy.post(BILLING, exchange(forged)), SubjectTokenRefused)

    asyncio.run(work())
