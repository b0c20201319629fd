from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.authority import ACCESS_TOKEN, BILLING, EXCHANGE, ISSUER, LEDGER, PLANNER, Authority, ask, exchange
from tests.forge import NOW, Forge
from trust.errors import DelegationRefused, GrantNotAllowed, GrantRequestMalformed, ScopeRefused, TargetRefused
from trust.identity import AgentID
from trust.oauth.claims import sign_access_token
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.oauth.scopes import Catalogue
from trust.oauth.server.clients import Client
from trust.oauth.server.grants.exchange import MAX_DELEGATIONS, check_delegation, read_subject_token, token_exchange
from trust.oauth.server.grants.grant import Grant, GrantPolicy, TokenRequest, client_credentials, may_act
from trust.peers import PeerVerifier

FORGE = Forge()
NAMES = ("a", "b", "c", "a.b")
AGENTS = tuple(f"spiffe://fleet.example/{name}" for name in NAMES)
PEERS = {
    agent: PeerVerifier(FORGE.bundles).verify(FORGE.leaf(agent).chain_der, now=NOW, usage="client") for agent in AGENTS
}
MAY_EXCHANGE = {
    AGENTS[0]: ("x:**", "delegate:**"),
    AGENTS[1]: ("x:a.*", "x:b", "delegate:*", "temporal:30min"),
    AGENTS[2]: ("x:*", "x:*.a", "delegate:a", "delegate:a.b"),
    AGENTS[3]: ("x:**", "delegate:b"),
}
CLIENTS = {
    agent: Client(
        agent_id=AgentID.parse(agent),
        scopes=("x:**", "delegate:**"),
        exchange_scopes=held,
        resources=AGENTS,
        lifetime=timedelta(minutes=30),
    )
    for agent, held in MAY_EXCHANGE.items()
}
KEY = SigningKey.generate()
KEYS = StaticKeys(public_jwks([KEY]))
POLICY = GrantPolicy(issuer=ISSUER)

# Every scope of up to three segments, `z` being a name that no pattern has: what a pattern matches is counted out.
UNIVERSE = (
    "delegate:c",
    *(
        f"{head}:{'.'.join(path)}"
        for head in ("x", "delegate")
        for length in (1, 2, 3)
        for path in itertools.product("abz", repeat=length)
    ),
)
PATTERNS = [
    f"{head}:{path}" for head in ("x", "delegate") for path in ("**", "*", "a", "b", "a.*", "*.a", "a.**", "a.b")
]
TIMES = ("temporal:10min", "temporal:30min")


def language(scopes: Iterable[str]) -> frozenset[str]:
    """All that these patterns match, by a matcher of its own."""
    expressions = [
        re.compile(re.escape(s).replace(r"\*\*", ".+").replace(r"\*", "[^.]+"))
        for s in scopes
        if not s.startswith("temporal:")
    ]
    return frozenset(u for u in UNIVERSE if any(e.fullmatch(u) for e in expressions))


def times(scopes: Iterable[str]) -> frozenset[str]:
    return frozenset(s for s in scopes if s.startswith("temporal:"))


def actors(claims: Mapping[str, Any]) -> list[str]:
    found, act = [], claims.get("act")
    while act is not None:
        found.append(act["sub"])
        act = act.get("act")
    return found


def request(form: Mapping[str, str], agent: str, *, now: datetime = NOW, token_id: str = "x") -> TokenRequest:
    client, peer = CLIENTS[agent], PEERS[agent]
    return TokenRequest(form=dict(form), client=client, peer=peer, policy=POLICY, now=now, token_id=token_id)


def root(scopes: Iterable[str], target: str) -> Grant:
    form = {"resource": target, "scope": " ".join(scopes)}
    return client_credentials(request(form, AGENTS[0], token_id="0"))


def hop(parent: Grant, form: Mapping[str, str], *, now: datetime, token_id: str) -> Grant:
    """The receiver of a token exchanges it: signed, read and decided by the real functions."""
    form = {
        "subject_token": sign_access_token(parent.claims, KEY),
        "subject_token_type": ACCESS_TOKEN,
        **form,
    }
    asked = request(form, parent.claims["aud"], now=now, token_id=token_id)
    return token_exchange(asked, read_subject_token(asked, KEYS), parent.issued)


SCOPES = st.lists(st.sampled_from([*PATTERNS, *TIMES]), unique=True, max_size=5)
HOPS = st.lists(st.tuples(st.sampled_from(AGENTS), SCOPES, st.integers(0, 500), st.booleans()), min_size=1, max_size=7)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(TIMES), unique=True), st.sampled_from(AGENTS), HOPS)
def test_any_chain_of_exchanges_only_narrows(
    first: list[str], target: str, hops: list[tuple[str, list[str], int, bool]]
) -> None:
    """And refuses nothing that does: what is granted, and what is not, is what counting out says."""
    grant, now = root(["x:**", "delegate:**", *first], target), NOW
    chain = [grant]
    for number, (target, wanted, seconds, honest) in enumerate(hops, 1):
        now += timedelta(seconds=seconds)
        parent, actor = chain[-1], chain[-1].claims["aud"]
        held = parent.claims["scope"].split()
        consented = f"delegate:{AgentID.parse(actor).path[1:]}" in language(held)
        allowed = language(held) & language(MAY_EXCHANGE[actor])
        if honest:  # asks for what it may have, and lets the next one go on where it may: otherwise chains are short
            onward = [f"delegate:{AgentID.parse(target).path[1:]}", "delegate:*", "x:*", *wanted]
            wanted = [scope for scope in onward if language([scope]) and language([scope]) <= allowed]
            wanted = [*dict.fromkeys(wanted), *(times(held) | times(MAY_EXCHANGE[actor]))]
        shallow = len(actors(parent.claims)) < MAX_DELEGATIONS
        narrower = bool(wanted) and language(wanted) <= allowed
        keeps = times(held) | times(MAY_EXCHANGE[actor]) <= times(wanted)
        ends = NOW + timedelta(minutes=10 if "temporal:10min" in wanted else 30)
        in_time = now < min(ends, parent.issued.expires_at)
        form = {"resource": target, "scope": " ".join(wanted)}
        try:
            grant = hop(parent, form, now=now, token_id=str(number))
        except (DelegationRefused, ScopeRefused, GrantRequestMalformed, GrantNotAllowed):
            assert not (consented and shallow and narrower and keeps and in_time)
            continue
        except Exception as error:
            assert type(error).__name__ == "SubjectTokenRefused", error
            assert now >= parent.issued.expires_at
            continue
        assert consented
        assert shallow
        assert narrower
        assert keeps
        assert in_time
        chain.append(grant)
    for parent, child in itertools.pairwise(chain):
        before, after = parent.claims, child.claims
        assert after["exp"] <= before["exp"]
        assert after["sub"] == before["sub"] == AGENTS[0]
        assert actors(after) == [before["aud"], *actors(before)] == [*child.actors]
        assert after["cnf"] == {"x5t#S256": PEERS[before["aud"]].thumbprint}
        assert (child.issued.parent_id, child.issued.root_id) == (parent.issued.token_id, "0")
        assert language(after["scope"].split()) <= language(before["scope"].split())
        assert times(after["scope"].split()) >= times(before["scope"].split())


@pytest.mark.parametrize(
    ("scopes", "target", "named"),
    [
        ("read:x delegate:billing", BILLING, BILLING),
        ("delegate:billing temporal:20min", BILLING, BILLING),
        ("read:x", BILLING, None),
        ("delegate:ledger", BILLING, None),
        ("delegate:*", BILLING, None),
        ("delegate:billing delegate:ledger", BILLING, None),
        ("delegate:billing", "https://billing.fleet.example", None),
        ("delegate:eu/billing", "spiffe://fleet.example/eu/billing", "spiffe://fleet.example/eu/billing"),
        ("delegate:eu.billing", "spiffe://fleet.example/eu/billing", None),
    ],
)
def test_may_act_names_the_one_agent_that_may_exchange_a_token(scopes: str, target: str, named: str | None) -> None:
    assert may_act(scopes.split(), target) == ({} if named is None else {"may_act": {"sub": named}})


def test_may_act_is_issued_at_each_hop(tmp_path: Path) -> None:
    """The planner names billing, and billing names the ledger, each by the scope that it asks for."""
    authority = Authority(tmp_path)

    async def work() -> None:
        both = "read:ledger.eu delegate:billing delegate:ledger temporal:20min"
        first = await authority.token(PLANNER, ask(scope=both))
        assert "may_act" not in authority.validate(first, audience=BILLING, holder=PLANNER).claims
        second = await authority.token(BILLING, exchange(first, scope="read:ledger.eu delegate:ledger temporal:20min"))
        claims = authority.validate(second, audience=LEDGER, holder=BILLING).claims
        assert claims["may_act"] == {"sub": LEDGER}
        named = await authority.token(PLANNER, ask(scope="read:ledger.eu delegate:billing temporal:20min"))
        assert authority.validate(named, audience=BILLING, holder=PLANNER).claims["may_act"] == {"sub": BILLING}
        assert (await authority.post(BILLING, exchange(named))).status_code == 200

    asyncio.run(work())


def test_may_act_decides_where_the_scopes_let_several_agents_go_on() -> None:
    """Two agents of one audience, and a hierarchy by which consent to the one is consent to the other."""
    policy = GrantPolicy(issuer=ISSUER, catalogue=Catalogue({"delegate:a": ["delegate:b"]}))
    one, other = (replace(CLIENTS[agent], audiences=(AGENTS[0],)) for agent in AGENTS[:2])
    parent = root(["x:a", "delegate:a"], AGENTS[0])
    assert parent.claims["may_act"] == {"sub": AGENTS[0]}

    def check(client: Client, **changes: Any) -> None:
        form = {"subject_token": sign_access_token(parent.claims, KEY), "subject_token_type": ACCESS_TOKEN}
        asked = replace(request(form, str(client.agent_id)), client=client, policy=policy)
        check_delegation(asked, replace(read_subject_token(asked, KEYS), **changes), parent.issued)

    check(one)
    check(other, claims={**parent.claims, "may_act": None})
    with pytest.raises(DelegationRefused):
        check(other)


RECEIVERS: dict[str, tuple[dict[str, str | None], type[TargetRefused] | None]] = {
    "resource": ({}, None),
    "audience": ({"resource": None, "audience": LEDGER}, None),
    "both, the same": ({"audience": LEDGER}, None),
    "both, different": ({"audience": BILLING}, TargetRefused),
    "an audience that is not allowed": ({"resource": None, "audience": PLANNER}, TargetRefused),
    "neither": ({"resource": None}, TargetRefused),
}


@pytest.mark.parametrize("name", RECEIVERS)
def test_the_receiver_of_an_exchanged_token(tmp_path: Path, name: str) -> None:
    changes, expected = RECEIVERS[name]
    authority = Authority(tmp_path)

    async def work() -> None:
        subject = await authority.token(PLANNER, ask())
        answer = await authority.post(BILLING, exchange(subject, **changes))
        if expected is None:
            token = authority.validate(answer.json()["access_token"], audience=LEDGER, holder=BILLING)
            assert token.audience == (LEDGER,)
            assert authority.trail.last["target"] == LEDGER
        else:
            assert (answer.status_code, answer.json()) == (expected.status, {"error": expected.code})

    asyncio.run(work())


def test_an_actor_token_is_refused_in_the_words_of_the_rfc(tmp_path: Path) -> None:
    """RFC 8693 section 2.2.2. The certificate says who acts; also an actor token of that very agent is none."""
    authority = Authority(tmp_path)

    async def work() -> None:
        subject = await authority.token(PLANNER, ask())
        own = await authority.token(BILLING, exchange(subject))
        for changes in ({"actor_token": own, "actor_token_type": ACCESS_TOKEN}, {"actor_token_type": ACCESS_TOKEN}):
            answer = await authority.post(BILLING, exchange(subject, **changes))
            assert (answer.status_code, answer.json()) == (400, {"error": "invalid_request"})
            assert authority.trail.last["check"] == GrantRequestMalformed.check
            assert authority.trail.last["grant"] == EXCHANGE

    asyncio.run(work())
