"""What an assertion says, and what becomes of it. How each is refused: `tests.attacks.test_chaining_attacks`."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from tests.authority import BILLING, ISSUER, LEDGER, PLANNER
from tests.forge import NOW, Forge
from trust.identity import AgentID
from trust.oauth.claims import AccessToken, sign_access_token
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.oauth.metadata import APPROVED, JWT_TYPE
from trust.oauth.server.clients import Client
from trust.oauth.server.grants import Grant, GrantPolicy, PartnerIssuer, Partners, TokenRequest
from trust.oauth.server.grants.assertions import (
    LIFETIME,
    assertion_for_partner,
    presented_assertion,
    read_assertion,
    token_for_assertion,
)
from trust.oauth.server.store import Issued
from trust.peers import PeerVerifier

PARTNER, VAULT = "https://auth.partner.example", "spiffe://partner.example/vault"
FORGE, KEY = Forge(), SigningKey.generate()
PEER = PeerVerifier(FORGE.bundles).verify(FORGE.leaf(BILLING).chain_der, now=NOW, usage="client")
SECONDS = int(NOW.timestamp())
END = NOW + timedelta(minutes=8)
AT_HOME = Client(
    agent_id=AgentID.parse(BILLING),
    exchange_scopes=("read:ledger.*", "delegate:vault"),
    assertion_audiences=(PARTNER,),
    resources=(LEDGER,),
)
AWAY = Client(agent_id=AgentID.parse(BILLING), assertion_scopes=("read:ledger.*", "delegate:vault"), resources=(VAULT,))
PARENT = Issued(
    token_id="parent",
    parent_id=None,
    root_id="root",
    root_issued_at=NOW,
    client_id=PLANNER,
    subject=PLANNER,
    issued_at=NOW,
    expires_at=END,
)
SUBJECT = AccessToken(
    issuer=ISSUER,
    subject=PLANNER,
    client_id=LEDGER,
    audience=(BILLING,),
    scopes=("read:ledger.eu", "delegate:billing", "delegate:vault"),
    token_id="parent",
    issued_at=NOW,
    expires_at=END,
    thumbprint="of the ledger",
    actors=(LEDGER,),
    claims={},
)
AWAY_POLICY = GrantPolicy(
    issuer=PARTNER,
    partners=Partners(
        [
            PartnerIssuer(
                issuer=ISSUER,
                keys=StaticKeys(public_jwks([KEY])),
                trust_domains=("fleet.example",),
                scopes=("read:ledger.*", "delegate:*"),
            )
        ]
    ),
)


def assertion(scope: str = "read:ledger.eu", **changes: Any) -> Grant:
    request = TokenRequest(
        form={"resource": PARTNER, "scope": scope},
        client=AT_HOME,
        peer=PEER,
        policy=GrantPolicy(issuer=ISSUER),
        now=NOW,
        token_id="assertion",
    )
    return assertion_for_partner(request, replace(SUBJECT, **changes), PARENT)


def brought(grant: Grant, scope: str = "read:ledger.eu") -> Grant:
    form = {"assertion": sign_access_token(grant.claims, KEY, grant.typ), "resource": VAULT, "scope": scope}
    request = TokenRequest(form=form, client=AWAY, peer=PEER, policy=AWAY_POLICY, now=NOW, token_id="away")
    return token_for_assertion(request, read_assertion(request, presented_assertion(request)))


def test_an_assertion_is_for_one_server_one_holder_and_a_minute() -> None:
    grant = assertion()
    assert grant.claims == {
        "iss": ISSUER,
        "sub": PLANNER,
        "aud": PARTNER,
        "client_id": BILLING,
        "iat": SECONDS,
        "exp": SECONDS + 60,
        "grant_exp": SECONDS + 480,
        "jti": "assertion",
        "scope": "read:ledger.eu",
        "cnf": {"x5t#S256": PEER.thumbprint},
        "act": {"sub": BILLING, "act": {"sub": LEDGER}},
    }
    assert (grant.typ, grant.token_type, grant.expires_in) == ("authorization-grant+jwt", JWT_TYPE, 60)
    assert (grant.issued.parent_id, grant.issued.root_id) == ("parent", "root")
    assert grant.issued.expires_at == NOW + LIFETIME


def test_what_is_nearly_over_is_passed_on_for_no_longer() -> None:
    grant = assertion(expires_at=NOW + timedelta(seconds=20))
    assert (grant.claims["exp"], grant.claims["grant_exp"], grant.expires_in) == (SECONDS + 20, SECONDS + 20, 20)


def test_the_token_of_the_other_server_says_the_same_in_its_own_name() -> None:
    grant = brought(assertion())
    assert grant.claims == {
        "iss": PARTNER,
        "sub": PLANNER,
        "aud": VAULT,
        "client_id": BILLING,
        "iat": SECONDS,
        "exp": SECONDS + 480,
        "jti": "away",
        "scope": "read:ledger.eu",
        "cnf": {"x5t#S256": PEER.thumbprint},
        "act": {"sub": BILLING, "act": {"sub": LEDGER}},
    }
    assert grant.assertion is not None
    assert (grant.assertion.issuer, grant.assertion.token_id) == (ISSUER, "assertion")
    assert (grant.issued.parent_id, grant.issued.root_id) == (None, "away")  # no token of ours is its parent


def test_of_what_a_partner_writes_only_what_was_checked_is_said_again() -> None:
    grant = assertion()
    more = {"act": {"sub": BILLING, "admin": True, "act": {"sub": LEDGER, "iss": PARTNER}}, "roles": ["admin"]}
    grant.claims.update(more)
    assert brought(grant).claims.keys() == brought(assertion()).claims.keys()
    assert brought(grant).claims["act"] == {"sub": BILLING, "act": {"sub": LEDGER}}


def test_a_persons_yes_at_home_is_none_elsewhere() -> None:
    grant = assertion(claims={"acr": APPROVED, "auth_time": SECONDS - 5})
    assert (grant.claims["acr"], grant.claims["auth_time"]) == (APPROVED, SECONDS - 5)
    assert not {"acr", "auth_time"} & brought(grant).claims.keys()


def test_consent_to_act_onward_is_the_other_servers_to_write_down() -> None:
    grant = assertion("read:ledger.eu delegate:vault")
    assert "may_act" not in grant.claims
    assert brought(grant, "read:ledger.eu delegate:vault").claims["may_act"] == {"sub": VAULT}
