"""Identity chaining, attacked: two authorization servers of two trust domains, one named mutation a row.

Each row is checked at the wire (status and RFC error code) and in the audit trail (the check that refused), and each
starts from a request that is shown to succeed. `tests.trust.oauth.test_chaining` has the same over real sockets.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.authority import ACCESS_TOKEN, BILLING, ISSUER, LEDGER, PLANNER, Authority, ask, exchange
from tests.forge import NOW, Forge
from trust.bundles import TrustBundles
from trust.errors import (
    AssertionBoundElsewhere,
    AssertionIssuerUnknown,
    AssertionRefused,
    AssertionSubjectRefused,
    AssertionUsed,
    ClientRefused,
    DelegationRefused,
    GrantNotAllowed,
    GrantRequestMalformed,
    KeysUnavailable,
    PartnerUnavailable,
    ScopeRefused,
    SubjectTokenRefused,
    TargetRefused,
    TokenTypeWrong,
    TrustError,
)
from trust.identity import AgentID
from trust.oauth.claims import sign_access_token
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.oauth.server.clients import Client, ClientRegistry
from trust.oauth.server.grants import PartnerIssuer, Partners
from trust.oauth.server.grants.assertions import TYPES
from trust.peers import PeerVerifier
from trust.signing import jws
from trust.sources import Live

PARTNER = "https://auth.partner.example"
THIRD = "https://auth.third.example"
JWT = "urn:ietf:params:oauth:token-type:jwt"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
VAULT = "spiffe://partner.example/vault"

HOME_CLIENTS = (
    Client(
        agent_id=AgentID.parse(PLANNER),
        scopes=("read:ledger.*", "write:ledger.*", "delegate:billing", "temporal:20min"),
        resources=(BILLING,),
    ),
    Client(
        agent_id=AgentID.parse(BILLING),
        exchange_scopes=("read:ledger.*", "write:ledger.*", "delegate:vault"),
        resources=(LEDGER,),
        assertion_audiences=(PARTNER,),
    ),
    Client(agent_id=AgentID.parse(LEDGER), exchange_scopes=("read:ledger.*",), resources=(BILLING,)),
)
AWAY_CLIENTS = (
    Client(agent_id=AgentID.parse(BILLING), assertion_scopes=("read:ledger.*", "write:*.eu"), resources=(VAULT,)),
    Client(agent_id=AgentID.parse(PLANNER), assertion_scopes=("read:ledger.*",), resources=(VAULT,)),
    Client(agent_id=AgentID.parse(LEDGER), scopes=("read:ledger.*",), resources=(VAULT,)),
)
SCOPE = "read:ledger.eu write:ledger.eu temporal:20min"


def to_partner(subject_token: str, /, **changes: str | None) -> dict[str, str]:
    """Billing's request at home for an assertion."""
    return exchange(subject_token, **{"requested_token_type": JWT, "resource": PARTNER, "scope": SCOPE, **changes})


def bring(assertion: str, /, **changes: str | None) -> dict[str, str]:
    """Billing's request at the partner for a token."""
    form = {
        "grant_type": JWT_BEARER,
        "client_id": BILLING,
        "assertion": assertion,
        "resource": VAULT,
        "scope": "read:ledger.eu temporal:20min",
        **changes,
    }
    return {name: value for name, value in form.items() if value is not None}


class World:
    """Both servers, each of which knows the other domain's bundle; the partner trusts home, and not the reverse."""

    one_subject: str
    one: Assertion

    def __init__(self, folder: Path, **partner: Any) -> None:
        for name in ("home", "away"):
            (folder / name).mkdir()
        self.home = Authority(folder / "home", HOME_CLIENTS)
        self.third = SigningKey.generate()
        self.home_keys = StaticKeys(public_jwks([self.home.key]))
        partners = [
            PartnerIssuer(
                **{
                    "issuer": ISSUER,
                    "keys": self.home_keys,
                    "trust_domains": ("fleet.example",),
                    "scopes": ("read:ledger.*",),
                    **partner,
                }
            ),
            PartnerIssuer(
                issuer=THIRD,
                keys=StaticKeys(public_jwks([self.third])),
                trust_domains=("third.example",),
                scopes=("read:ledger.*",),
            ),
        ]
        self.partners = Live(Partners(partners))
        self.away = Authority(folder / "away", AWAY_CLIENTS, issuer=PARTNER)
        self.away.clock = self.home.clock
        self.away.serve(partners=self.partners)
        self.away.verifier = PeerVerifier(TrustBundles.of(self.home.forge.bundle, Forge("partner.example").bundle))
        self.away.certificates, self.away.forge = self.home.certificates, self.home.forge

    async def subject(self, scope: str = f"{SCOPE} delegate:billing") -> str:
        return await self.home.token(PLANNER, ask(scope=scope))

    async def assertion(self, **changes: str | None) -> Assertion:
        return Assertion(self, await self.home.token(BILLING, to_partner(await self.subject(), **changes)))

    async def granted(self, assertion: str, **changes: str | None) -> dict[str, Any]:
        answer = await self.away.post(BILLING, bring(assertion, **changes))
        assert answer.status_code == 200, (answer.text, self.away.trail.last)
        return dict(answer.json())


class Assertion:
    """A valid assertion with its parts, for mutation."""

    def __init__(self, world: World, text: str) -> None:
        self.world, self.text = world, text
        self.claims: dict[str, Any] = json.loads(decoded(text.split(".")[1]))
        self.now = int(NOW.timestamp())

    def signed(self, key: SigningKey | None = None, **claims: Any) -> str:
        """With changed claims (None removes one), signed by its server's own key unless another one is given."""
        kept = {name: value for name, value in {**self.claims, **claims}.items() if value is not None}
        return sign_access_token(kept, key or self.world.home.key, TYPES[0])

    def headed(self, **header: Any) -> str:
        header = {"alg": "ES256", "typ": TYPES[0], "kid": self.world.home.key.kid, **header}
        payload = json.dumps(self.claims).encode()
        return jws.sign_compact(
            payload, key=self.world.home.key.private_key, header={k: v for k, v in header.items() if v is not None}
        )

    def raw(self, signature: str = "", payload: bytes | None = None, **header: Any) -> str:
        """Whatever header, with whatever signature: what no signer of ours makes."""
        header = {"alg": "ES256", "typ": TYPES[0], "kid": self.world.home.key.kid, **header}
        body = json.dumps(self.claims).encode() if payload is None else payload
        return f"{encoded(json.dumps(header).encode())}.{encoded(body)}.{signature}"

    def with_hmac(self) -> str:
        """HS256 with the public key, which everybody has, as the secret."""
        public = self.world.home.key.private_key.public_key()
        secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        unsigned = self.raw(alg="HS256").removesuffix(".")
        return f"{unsigned}.{encoded(hmac.digest(secret, unsigned.encode(), hashlib.sha256))}"

    def acted(self, *actors: Any) -> str:
        act: Any = None
        for actor in reversed(actors):
            act = {"sub": actor} if act is None else {"sub": actor, "act": act}
        return self.signed(act=act)


def decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def refused(at: Authority, answer: httpx.Response, expected: type[TrustError]) -> None:
    assert (answer.status_code, answer.json()) == (expected.status, {"error": expected.code}), at.trail.last
    assert (at.trail.last["decision"], at.trail.last["check"]) == ("deny", expected.check), at.trail.last


Mutation = Callable[[Assertion], str]
Expected = type[TrustError]

ASSERTIONS: dict[str, tuple[Mutation, Expected]] = {
    # What it is.
    "our own type in capitals": (lambda a: a.headed(typ="AUTHORIZATION-GRANT+JWT2"), AssertionRefused),
    "typ of an access token": (lambda a: a.headed(typ="at+jwt"), AssertionRefused),
    "typ of an ID token": (lambda a: a.headed(typ="JWT"), AssertionRefused),
    "typ of a client assertion": (lambda a: a.headed(typ="client-authentication+jwt"), AssertionRefused),
    "no typ": (lambda a: a.headed(typ=None), AssertionRefused),
    "not a JWT": (lambda _: "opaque", AssertionRefused),
    "cut off": (lambda a: a.text[:-2], AssertionRefused),
    "too large": (lambda a: a.text + "A" * 8000, AssertionRefused),
    "padded": (lambda a: a.text + "==", AssertionRefused),
    "payload is a list": (lambda a: a.raw(payload=b"[]", signature="AA"), AssertionRefused),
    "payload with a claim twice": (
        lambda a: a.raw(payload=json.dumps(a.claims).encode()[:-1] + b',"sub":"x"}', signature="A" * 86),
        AssertionRefused,
    ),
    # Who signed it.
    "not signed": (lambda a: a.raw(alg="none"), AssertionRefused),
    "signature left out": (lambda a: a.raw(), AssertionRefused),
    "HS256 with the public key": (lambda a: a.with_hmac(), AssertionRefused),
    "RS256": (lambda a: a.raw(alg="RS256", signature="AA"), AssertionRefused),
    "brings its key": (lambda a: a.raw(jwk=a.world.third.public_jwk, signature="A" * 86), AssertionRefused),
    "names the address of a key": (lambda a: a.raw(jku=THIRD, signature="A" * 86), AssertionRefused),
    "unknown critical header": (lambda a: a.raw(crit=["x"], x=1, signature="A" * 86), AssertionRefused),
    "no kid": (lambda a: a.headed(kid=None), AssertionRefused),
    "unknown kid": (lambda a: a.headed(kid="another"), AssertionRefused),
    "signed by another key": (lambda a: a.signed(SigningKey.generate()), AssertionRefused),
    "signed by another key with that kid": (
        lambda a: a.signed(replace(SigningKey.generate(), kid=a.world.home.key.kid)),
        AssertionRefused,
    ),
    "signed by another partner": (lambda a: a.signed(a.world.third), AssertionRefused),
    "signed by the receiving server": (lambda a: a.signed(a.world.away.key), AssertionRefused),
    "claims changed under the signature": (
        lambda a: a.raw(payload=json.dumps({**a.claims, "sub": LEDGER}).encode(), signature=a.text.split(".")[2]),
        AssertionRefused,
    ),
    "unknown issuer": (lambda a: a.signed(iss="https://evil.example"), AssertionIssuerUnknown),
    "issuer with a slash": (lambda a: a.signed(iss=f"{ISSUER}/"), AssertionIssuerUnknown),
    "issuer is the receiving server": (lambda a: a.signed(a.world.away.key, iss=PARTNER), AssertionIssuerUnknown),
    "another partner's name": (lambda a: a.signed(iss=THIRD), AssertionRefused),
    "no issuer": (lambda a: a.signed(iss=None), AssertionRefused),
    "issuer a list": (lambda a: a.signed(iss=[ISSUER]), AssertionRefused),
    # What it says.
    **{
        f"no {claim}": (lambda a, claim=claim: a.signed(**{claim: None}), AssertionRefused)  # type: ignore[misc]  # a default
        for claim in ("sub", "aud", "exp", "iat", "jti", "client_id", "cnf", "act")
    },
    "no scope": (lambda a: a.signed(scope=None), ScopeRefused),
    "scope a list": (lambda a: a.signed(scope=["read:ledger.eu"]), AssertionRefused),
    "scope outside the grammar": (lambda a: a.signed(scope="read:ledger.eu openid"), ScopeRefused),
    "jti a number": (lambda a: a.signed(jti=7), AssertionRefused),
    "jti a list": (lambda a: a.signed(jti=["x"]), AssertionRefused),
    "jti without end": (lambda a: a.signed(jti="x" * 257), AssertionRefused),
    "exp as text": (lambda a: a.signed(exp="never"), AssertionRefused),
    # Whom it is for.
    "for its own server": (lambda a: a.signed(aud=ISSUER), AssertionRefused),
    "for an agent": (lambda a: a.signed(aud=VAULT), AssertionRefused),
    "for the token endpoint": (lambda a: a.signed(aud=f"{PARTNER}/token"), AssertionRefused),
    "for us with a slash": (lambda a: a.signed(aud=f"{PARTNER}/"), AssertionRefused),
    "for two servers": (lambda a: a.signed(aud=[PARTNER, THIRD]), AssertionRefused),
    "for us twice": (lambda a: a.signed(aud=[PARTNER, PARTNER]), AssertionRefused),
    "for nobody": (lambda a: a.signed(aud=[]), AssertionRefused),
    # When.
    "expired": (lambda a: a.signed(iat=a.now - 60, exp=a.now), AssertionRefused),
    "from the future": (lambda a: a.signed(iat=a.now + 11, exp=a.now + 60), AssertionRefused),
    "not before later": (lambda a: a.signed(nbf=a.now + 11), AssertionRefused),
    "lives too long": (lambda a: a.signed(exp=a.now + 301), AssertionRefused),
    "the authority has ended": (lambda a: a.signed(grant_exp=a.now), GrantNotAllowed),
    "the authority ended before it": (lambda a: a.signed(grant_exp=a.now - 1), AssertionRefused),
    "the authority never ends": (lambda a: a.signed(grant_exp=a.now + 10**9), AssertionRefused),
    "the authority's end as text": (lambda a: a.signed(grant_exp="never"), AssertionRefused),
    "the authority's end as a bool": (lambda a: a.signed(grant_exp=True), AssertionRefused),
    # Who brings it.
    "bound to another certificate": (lambda a: a.signed(cnf={"x5t#S256": "A" * 43}), AssertionBoundElsewhere),
    "bound to the subject": (
        lambda a: a.signed(cnf={"x5t#S256": a.world.home.peer(PLANNER).thumbprint}),
        AssertionBoundElsewhere,
    ),
    "bound to a key alone": (lambda a: a.signed(cnf={"jkt": "A" * 43}), AssertionBoundElsewhere),
    "bound to a key, too": (lambda a: a.signed(cnf={**a.claims["cnf"], "jkt": "A" * 43}), AssertionBoundElsewhere),
    "bound to nothing in particular": (lambda a: a.signed(cnf={}), AssertionRefused),
    "another agent acts": (lambda a: a.acted(PLANNER), AssertionBoundElsewhere),
    "another agent acts now, we did before": (lambda a: a.acted(PLANNER, BILLING), AssertionBoundElsewhere),
    # Whom it speaks for.
    "subject of the receiving domain": (lambda a: a.signed(sub=VAULT), AssertionSubjectRefused),
    "subject of a third domain": (lambda a: a.signed(sub="spiffe://third.example/x"), AssertionSubjectRefused),
    "subject of a domain that ends alike": (
        lambda a: a.signed(sub="spiffe://evil.fleet.example/planner"),
        AssertionSubjectRefused,
    ),
    "subject is no agent": (lambda a: a.signed(sub="admin"), AssertionSubjectRefused),
    "subject is the whole domain": (lambda a: a.signed(sub="spiffe://fleet.example"), AssertionSubjectRefused),
    "earlier actor of the receiving domain": (lambda a: a.acted(BILLING, VAULT), AssertionSubjectRefused),
    "actor without a name": (lambda a: a.signed(act={}), AssertionRefused),
    "act that is no object": (lambda a: a.signed(act=BILLING), AssertionRefused),
    "one actor too many": (lambda a: a.acted(BILLING, *[PLANNER] * 4), DelegationRefused),
    "actors without end": (lambda a: a.acted(BILLING, *[PLANNER] * 8), AssertionRefused),
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One world for the rows of a table, with one subject token and one assertion of home's that nobody has used."""
    world = World(tmp_path_factory.mktemp("shared"))
    world.one_subject = asyncio.run(world.subject())
    world.one = Assertion(world, asyncio.run(world.home.token(BILLING, to_partner(world.one_subject))))
    return world


@pytest.mark.parametrize("name", ASSERTIONS)
def test_assertions(shared: World, name: str) -> None:
    mutate, expected = ASSERTIONS[name]
    valid = Assertion(shared, shared.one.signed(jti=f"assertion {name}"))

    async def work() -> None:
        refused(shared.away, await shared.away.post(BILLING, bring(mutate(valid))), expected)
        # It is the mutation that was refused, and it has used up nothing.
        await shared.granted(valid.text)

    asyncio.run(work())


def test_the_longest_chain_and_the_widest_claims_that_pass(world: World) -> None:
    async def work() -> None:
        a = await world.assertion()
        await world.granted(a.acted(BILLING, PLANNER, LEDGER, PLANNER))
        await world.granted(a.signed(jti="1", aud=[PARTNER]))
        await world.granted(a.signed(jti="2", iat=a.now + 9, exp=a.now + 309))
        await world.granted(a.signed(jti="x" * 256))
        # RFC 8693 section 2.1: the other server may be named either way.
        form = to_partner(await world.subject(), resource=None, audience=PARTNER)
        await world.granted(await world.home.token(BILLING, form))

    asyncio.run(work())


REQUESTS: dict[str, tuple[str | None, dict[str, str | None], Expected]] = {
    "no certificate": (None, {}, ClientRefused),
    "another client's name": (PLANNER, {}, ClientRefused),
    "another client that may bring assertions": (PLANNER, {"client_id": PLANNER}, AssertionBoundElsewhere),
    "a client that may not": (LEDGER, {"client_id": LEDGER}, GrantNotAllowed),
    "no assertion": (BILLING, {"assertion": None}, GrantRequestMalformed),
    "no resource": (BILLING, {"resource": None}, TargetRefused),
    "another resource": (BILLING, {"resource": LEDGER}, TargetRefused),
    "no scope": (BILLING, {"scope": None}, ScopeRefused),
    "time scope dropped": (BILLING, {"scope": "read:ledger.eu"}, ScopeRefused),
    "wider than the assertion": (BILLING, {"scope": "read:ledger.* temporal:20min"}, ScopeRefused),
    "beyond the partner's limit": (BILLING, {"scope": "write:ledger.eu temporal:20min"}, ScopeRefused),
    "beyond the assertion": (BILLING, {"scope": "read:ledger.us temporal:20min"}, ScopeRefused),
    "delegation that the assertion does not bring": (BILLING, {"scope": "delegate:vault temporal:20min"}, ScopeRefused),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_at_the_partner(shared: World, name: str) -> None:
    agent, changes, expected = REQUESTS[name]
    valid = shared.one.signed(jti=f"request {name}")

    async def work() -> None:
        refused(shared.away, await shared.away.post(agent, bring(valid, **changes)), expected)
        await shared.granted(valid)

    asyncio.run(work())


def test_the_registration_limits_as_the_partner_does(tmp_path: Path) -> None:
    world = World(tmp_path, scopes=("read:**", "write:**"))

    async def work() -> None:
        wide = "write:ledger.eu write:ledger.us temporal:20min"
        subject = await world.subject(f"{wide} delegate:billing")
        assertion = await world.home.token(BILLING, to_partner(subject, scope=wide))
        answer = await world.away.post(BILLING, bring(assertion, scope=wide))
        refused(world.away, answer, ScopeRefused)
        await world.granted(assertion, scope="write:ledger.eu temporal:20min")

    asyncio.run(work())


AT_HOME: dict[str, tuple[str, dict[str, str | None], Expected]] = {
    "a server that it is not registered for": (BILLING, {"resource": THIRD}, TargetRefused),
    "an agent": (BILLING, {"resource": LEDGER}, TargetRefused),
    "two servers": (BILLING, {"audience": THIRD}, TargetRefused),
    "no server": (BILLING, {"resource": None}, TargetRefused),
    "an access token for a server": (BILLING, {"requested_token_type": ACCESS_TOKEN}, TargetRefused),
    "a client that may take assertions nowhere": (LEDGER, {"client_id": LEDGER}, SubjectTokenRefused),
    "wider than the subject token": (BILLING, {"scope": "read:ledger.* temporal:20min"}, ScopeRefused),
    "time scope dropped": (BILLING, {"scope": "read:ledger.eu"}, ScopeRefused),
    "another token type": (
        BILLING,
        {"requested_token_type": "urn:ietf:params:oauth:token-type:id_token"},
        GrantRequestMalformed,
    ),
    "actor token": (BILLING, {"actor_token": "x", "actor_token_type": JWT}, GrantRequestMalformed),
    "actor token type alone": (BILLING, {"actor_token_type": JWT}, GrantRequestMalformed),
    "an assertion grant": (BILLING, {"grant_type": JWT_BEARER}, GrantNotAllowed),
}


@pytest.mark.parametrize("name", AT_HOME)
def test_requests_at_home(shared: World, name: str) -> None:
    agent, changes, expected = AT_HOME[name]
    subject = shared.one_subject

    async def work() -> None:
        assert (await shared.home.post(BILLING, to_partner(subject))).status_code == 200
        refused(shared.home, await shared.home.post(agent, to_partner(subject, **changes)), expected)

    asyncio.run(work())


def test_without_the_callers_consent_nothing_leaves_home(world: World) -> None:
    async def work() -> None:
        subject = await world.subject(SCOPE)
        refused(world.home, await world.home.post(BILLING, to_partner(subject)), DelegationRefused)
        subject = await world.subject()
        world.home.store.tokens.revoke(json.loads(decoded(subject.split(".")[1]))["jti"])
        refused(world.home, await world.home.post(BILLING, to_partner(subject)), SubjectTokenRefused)

    asyncio.run(work())


def test_an_assertion_is_used_once_by_whoever_asks_first(world: World) -> None:
    async def work() -> None:
        assertion = (await world.assertion()).text
        forms = [bring(assertion) for _ in range(4)]
        answers = await asyncio.gather(*(world.away.post(BILLING, form) for form in forms))
        assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]
        # Another process of the same server, and other words for the same assertion.
        world.away.serve(partners=world.partners)
        refused(world.away, await world.away.post(BILLING, bring(assertion)), AssertionUsed)
        malleable = Assertion(world, assertion).signed()
        refused(world.away, await world.away.post(BILLING, bring(malleable)), AssertionUsed)

    asyncio.run(work())


def test_an_assertion_is_no_token_and_a_token_no_assertion(world: World) -> None:
    """Each where the other belongs: at a resource, at both servers, in both directions."""

    async def work() -> None:
        assertion = (await world.assertion()).text
        with pytest.raises(TokenTypeWrong):
            world.home.validate(assertion, audience=PARTNER, holder=BILLING)
        for at in (world.home, world.away):
            refused(at, await at.post(BILLING, exchange(assertion)), _EXCHANGE_AT[at.issuer])
        refused(
            world.home,
            await world.home.post(BILLING, exchange(assertion, subject_token_type=JWT)),
            GrantRequestMalformed,
        )
        subject = await world.subject()
        onward = await world.home.token(BILLING, exchange(subject, scope="read:ledger.eu temporal:20min"))
        away = (await world.granted(assertion))["access_token"]
        for token in (subject, onward, away):
            refused(world.away, await world.away.post(BILLING, bring(token)), AssertionRefused)

    asyncio.run(work())


_EXCHANGE_AT: dict[str, Expected] = {ISSUER: SubjectTokenRefused, PARTNER: GrantNotAllowed}


class _NoKeys:
    """A partner that cannot be reached: when keys are fetched, or by the time that they are used."""

    def __init__(self, when: str) -> None:
        self.when = when

    async def prepare(self, kid: str | None, *, now: datetime) -> None:
        if self.when == "fetch":
            raise KeysUnavailable("keys of the issuer are not available")

    def find(self, kid: str, alg: str, *, now: datetime) -> Any:
        raise KeysUnavailable("keys of the issuer are not available")


@pytest.mark.parametrize("when", ["fetch", "use"])
def test_a_partner_whose_keys_cannot_be_had(tmp_path: Path, when: str) -> None:
    world = World(tmp_path, keys=_NoKeys(when))

    async def work() -> None:
        assertion = (await world.assertion()).text
        refused(world.away, await world.away.post(BILLING, bring(assertion)), PartnerUnavailable)

    asyncio.run(work())


def test_a_partner_that_is_given_up_is_refused_at_once(world: World) -> None:
    async def work() -> None:
        valid = await world.assertion()
        await world.granted(valid.signed(jti="valid"))
        home = world.partners.current().find(ISSUER)
        assert home is not None
        ourselves = replace(home, issuer=PARTNER)
        for partners in (Partners(), Partners([ourselves])):
            world.partners.replace(partners)
            for assertion in (valid.text, valid.signed(iss=PARTNER)):
                refused(world.away, await world.away.post(BILLING, bring(assertion)), AssertionIssuerUnknown)

    asyncio.run(work())


def test_what_neither_reading_of_the_file_grants_is_not_granted_between_them(world: World) -> None:
    """One edit takes a scope from the client and gives it to the partner, in the middle of a request."""

    async def work() -> None:
        home = world.partners.current().find(ISSUER)
        assert home is not None
        widened = Partners([replace(home, scopes=("read:ledger.*", "write:*.eu"))])
        narrowed = [replace(AWAY_CLIENTS[0], assertion_scopes=("read:ledger.*",)), *AWAY_CLIENTS[1:]]

        class Edited:
            """The partners, of whom is asked after the client was found."""

            def current(self) -> Partners:
                world.away.clients.replace(ClientRegistry(narrowed))
                return widened

        valid = await world.assertion()

        def asked(jti: str) -> dict[str, str]:
            return bring(valid.signed(jti=jti), scope="write:ledger.eu temporal:20min")

        refused(world.away, await world.away.post(BILLING, asked("before")), ScopeRefused)
        world.away.serve(partners=Edited())
        refused(world.away, await world.away.post(BILLING, asked("between")), GrantNotAllowed)
        refused(world.away, await world.away.post(BILLING, asked("after")), ScopeRefused)

    asyncio.run(work())


def test_the_token_ends_with_the_authority_that_it_comes_from(world: World) -> None:
    async def work() -> None:
        subject = await world.subject()
        world.home.clock.advance(minutes=7)
        assertion = Assertion(world, await world.home.token(BILLING, to_partner(subject)))
        assert assertion.claims["exp"] - assertion.claims["iat"] == 60
        assert (await world.granted(assertion.text))["expires_in"] == 180
        # An issuer that does not say when the authority ends: no later than its assertion.
        silent = assertion.signed(jti="silent", grant_exp=None)
        assert (await world.granted(silent))["expires_in"] == 60
        # A time scope counts from the first token of the chain, in whatever domain that was.
        timed = await world.home.token(
            PLANNER, ask(scope="read:ledger.eu delegate:billing temporal:20min temporal:12min")
        )
        world.home.clock.advance(minutes=9)
        late = await world.home.token(BILLING, to_partner(timed, scope="read:ledger.eu temporal:20min temporal:12min"))
        token = await world.granted(late, scope="read:ledger.eu temporal:20min temporal:12min")
        assert token["expires_in"] == 60

    asyncio.run(work())
