from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.authority import BILLING, CLIENTS, ISSUER, LEDGER, PLANNER, ask
from tests.forge import HOUR, NOW, Forge
from trust.errors import GrantError, ScopeRefused, SubjectTokenRefused
from trust.identity import PeerIdentity
from trust.oauth.calendars import Calendar
from trust.oauth.claims import AccessToken
from trust.oauth.metadata import APPROVED
from trust.oauth.scopes import Catalogue, attenuates
from trust.oauth.server.authentication import authenticate
from trust.oauth.server.clients import ClientRegistry
from trust.oauth.server.edge import parse_form
from trust.oauth.server.grants import Grant, GrantPolicy, TokenRequest, client_credentials, token_exchange
from trust.oauth.server.store import Issued
from trust.peers import PeerVerifier

FORGE = Forge()
VERIFIER = PeerVerifier(FORGE.bundles)
PEERS: Mapping[str, PeerIdentity] = {
    agent: VERIFIER.verify(FORGE.leaf(agent).chain_der, now=NOW, usage="client") for agent in (PLANNER, BILLING)
}
REGISTRY = ClientRegistry(CLIENTS)
POLICY = GrantPolicy(issuer=ISSUER)

PARENT = Issued(
    token_id="parent",
    parent_id=None,
    root_id="parent",
    root_issued_at=NOW,
    client_id=PLANNER,
    subject=PLANNER,
    issued_at=NOW,
    expires_at=NOW + timedelta(minutes=10),
)
SUBJECT = AccessToken(
    issuer=ISSUER,
    subject=PLANNER,
    client_id=PLANNER,
    audience=(BILLING,),
    scopes=("agent:execute", "read:ledger.eu", "delegate:billing"),
    token_id="parent",
    issued_at=NOW,
    expires_at=NOW + timedelta(minutes=10),
    thumbprint=PEERS[PLANNER].thumbprint,
    actors=(),
    claims={},
)


def exchanged(
    form: Mapping[str, str],
    *,
    subject: AccessToken = SUBJECT,
    parent: Issued | None = PARENT,
    policy: GrantPolicy = POLICY,
) -> Grant:
    client, peer = authenticate(form, PEERS[BILLING], REGISTRY, now=NOW)
    request = TokenRequest(form=dict(form), client=client, peer=peer, policy=policy, now=NOW, token_id="child")
    return token_exchange(request, subject, parent)


FORM = {"client_id": BILLING, "resource": LEDGER, "scope": "read:ledger.eu"}


def test_the_decision_is_a_function_of_its_arguments() -> None:
    first, second = exchanged(FORM), exchanged(FORM)
    assert first == second
    assert first.claims == {
        "iss": ISSUER,
        "sub": PLANNER,
        "aud": LEDGER,
        "client_id": BILLING,
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 600,
        "jti": "child",
        "scope": "read:ledger.eu",
        "cnf": {"x5t#S256": PEERS[BILLING].thumbprint},
        "act": {"sub": BILLING},
    }
    assert (first.issued.parent_id, first.issued.root_id, first.expires_in) == ("parent", "parent", 600)


def test_no_token_of_a_request_is_in_its_repr() -> None:
    client, peer = authenticate(FORM, PEERS[BILLING], REGISTRY, now=NOW)
    form = {**FORM, "subject_token": "secret"}
    request = TokenRequest(form=form, client=client, peer=peer, policy=POLICY, now=NOW, token_id="child")
    assert "secret" not in repr(request)


def test_authentication_refuses_in_the_same_words_whatever_is_wrong() -> None:
    messages = set()
    for form, peer in (({}, None), ({"client_id": "nobody"}, None), ({"client_id": PLANNER}, PEERS[BILLING])):
        with pytest.raises(GrantError) as caught:
            authenticate(form, peer, REGISTRY, now=NOW)
        messages.add((type(caught.value), caught.value.failed, caught.value.status, caught.value.code))
    assert len(messages) == 1


@pytest.mark.parametrize("parent", [None, replace(PARENT, revoked=True)])
def test_a_subject_token_that_the_store_does_not_vouch_for(parent: Issued | None) -> None:
    with pytest.raises(SubjectTokenRefused):
        exchanged(FORM, parent=parent)


@pytest.mark.parametrize("consent", ["delegate:billing", "delegate:*", "delegate:**"])
def test_consent_may_be_a_wildcard_or_come_through_the_catalogue(consent: str) -> None:
    assert exchanged(FORM, subject=replace(SUBJECT, scopes=("read:ledger.eu", consent)))
    policy = GrantPolicy(issuer=ISSUER, catalogue=Catalogue({"agent:trusted": [consent]}))
    assert exchanged(FORM, subject=replace(SUBJECT, scopes=("read:ledger.eu", "agent:trusted")), policy=policy)


def test_the_catalogue_narrows_as_wildcards_do() -> None:
    policy = GrantPolicy(issuer=ISSUER, catalogue=Catalogue({"read:ledger.eu": ["read:ledger.totals"]}))
    assert exchanged({**FORM, "scope": "read:ledger.totals"}, policy=policy).scope == "read:ledger.totals"
    with pytest.raises(ScopeRefused):
        exchanged({**FORM, "scope": "read:ledger.totals"})


def test_business_hours_end_the_token_and_refuse_it_outside() -> None:
    monday = datetime(2026, 11, 23, 16, 55, tzinfo=UTC)
    hours = Calendar(zone="UTC", days=frozenset(range(1, 6)), opens=time(9), closes=time(17))
    policy = GrantPolicy(issuer=ISSUER, calendars={"business-hours": hours})
    client = replace(CLIENTS[0], scopes=("agent:execute", "temporal:business-hours"))
    peer = replace(PEERS[PLANNER], not_before=monday - HOUR, not_after=monday + 24 * HOUR)
    form = ask(scope="agent:execute temporal:business-hours")

    def granted(now: datetime, policy: GrantPolicy = policy) -> Grant:
        request = TokenRequest(form=form, client=client, peer=peer, policy=policy, now=now, token_id="x")
        return client_credentials(request)

    assert granted(monday).expires_in == 300
    with pytest.raises(ScopeRefused):
        granted(monday + timedelta(minutes=5))
    with pytest.raises(ScopeRefused):
        granted(monday, POLICY)


def test_the_expiry_is_the_earliest_of_all_that_limit_it() -> None:
    def left(**changes: Any) -> int:
        return exchanged(FORM, subject=replace(SUBJECT, **changes)).expires_in

    assert left() == 600
    assert left(expires_at=NOW + timedelta(minutes=9)) == 540
    assert left(expires_at=NOW + timedelta(minutes=20)) == 600
    timed = replace(SUBJECT, scopes=(*SUBJECT.scopes, "temporal:30min"))
    form = {**FORM, "scope": "read:ledger.eu temporal:30min"}
    early = replace(PARENT, root_issued_at=NOW - timedelta(minutes=29))
    assert exchanged(form, subject=timed, parent=early).expires_in == 60
    assert exchanged(form, subject=timed, parent=early).issued.root_issued_at == early.root_issued_at


@pytest.mark.parametrize(
    ("claims", "approved"),
    [
        ({"acr": APPROVED, "auth_time": 7}, True),
        ({"acr": "1", "auth_time": 7}, False),
        ({"auth_time": 7}, False),
        ({"acr": APPROVED}, False),
    ],
    ids=str,
)
def test_an_exchange_keeps_a_persons_yes_and_makes_none(claims: dict[str, Any], approved: bool) -> None:
    grant = exchanged(FORM, subject=replace(SUBJECT, claims=claims))
    assert grant.approved is approved
    assert {name: grant.claims[name] for name in ("acr", "auth_time") if name in grant.claims} == (
        claims if approved else {}
    )


def test_a_time_scope_that_is_left_out_is_named() -> None:
    client, peer = authenticate({"client_id": PLANNER}, PEERS[PLANNER], REGISTRY, now=NOW)
    timed = replace(SUBJECT, scopes=(*SUBJECT.scopes, "temporal:30min"))
    form = ask(scope="agent:execute")
    request = TokenRequest(form=form, client=client, peer=peer, policy=POLICY, now=NOW, token_id="t")
    for refused, whose in (
        (lambda: client_credentials(request), "add temporal:20min: it limits what the client is registered for"),
        (lambda: exchanged(FORM, subject=timed), "add temporal:30min: it limits what the subject token grants"),
    ):
        with pytest.raises(ScopeRefused) as caught:
            refused()
        assert str(caught.value).endswith(f"; {whose}")


RESOURCES = ["read:ledger.eu", "read:ledger.*", "read:**", "write:ledger.eu", "agent:execute"]
CAVEATS = ["delegate:billing", "delegate:*", "delegate:ledger", "temporal:30min", "temporal:20min"]
SCOPES = st.sampled_from([*RESOURCES, *CAVEATS])


@given(st.lists(SCOPES, unique=True), st.lists(SCOPES, unique=True, min_size=1))
def test_whatever_is_exchanged_is_covered_by_the_parent_and_by_the_client(held: list[str], wanted: list[str]) -> None:
    try:
        grant = exchanged({**FORM, "scope": " ".join(wanted)}, subject=replace(SUBJECT, scopes=tuple(held)))
    except GrantError:
        return
    assert attenuates(held, grant.scope)
    assert attenuates(CLIENTS[1].exchange_scopes, grant.scope)
    assert any(s in held for s in ("delegate:billing", "delegate:*"))


def test_a_form_is_read_once_and_without_empty_values() -> None:
    assert parse_form(b"a=1&b=two+words&c=%C3%BC&d=") == {"a": "1", "b": "two words", "c": "ü"}
    assert parse_form(b"") == {}


@given(st.binary(max_size=60))
def test_parsing_raises_nothing_but_refusals(body: bytes) -> None:
    try:
        form = parse_form(body)
    except GrantError:
        return
    assert all(isinstance(name, str) and value for name, value in form.items())
