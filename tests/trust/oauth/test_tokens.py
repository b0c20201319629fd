from __future__ import annotations

import asyncio
import base64
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS
from jwcrypto.jwt import JWT

from tests.forge import HOUR, Forge
from trust.credentials import Credentials
from trust.errors import (
    ConfigurationError,
    IdentityError,
    KeysUnavailable,
    TokenAudienceWrong,
    TokenBoundElsewhere,
    TokenClaimMissing,
    TokenError,
    TokenExpired,
    TokenKeyUnknown,
    TokenLifetimeTooLong,
    TokenNotBound,
    TokenNotYetValid,
    TokenRevoked,
    TokenSignatureWrong,
    TokenWithoutCertificate,
    TokenWithoutProof,
)
from trust.identity import AgentID, PeerIdentity
from trust.oauth import tokens
from trust.oauth.claims import sign_access_token
from trust.oauth.denylist import MemoryDenylist
from trust.oauth.dpop import Proof
from trust.oauth.keys import RemoteKeys, SigningKey, StaticKeys, public_jwks
from trust.oauth.tokens import TokenValidator, TokenValidators
from trust.signing import jws

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
T = int(NOW.timestamp())
ISSUER = "https://auth.fleet.example"
AUDIENCE = "https://billing.fleet.example"
KEY = SigningKey.generate()
FORGE = Forge()


def peer_with(credentials: Credentials) -> PeerIdentity:
    return PeerIdentity(
        agent_id=credentials.agent_id,
        thumbprint=credentials.thumbprint,
        serial=credentials.certificate.serial_number,
        not_before=credentials.certificate.not_valid_before_utc,
        not_after=credentials.certificate.not_valid_after_utc,
        chain=tuple(credentials.chain_der),
        public_key=credentials.certificate.public_key(),
    )


PEER = peer_with(FORGE.leaf("/planner"))
OTHER_PEER = peer_with(FORGE.leaf("/planner"))  # the same agent, with another certificate
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "sub": "spiffe://fleet.example/planner",
    "aud": AUDIENCE,
    "client_id": "spiffe://fleet.example/planner",
    "iat": T,
    "exp": T + 900,
    "jti": "token-1",
    "scope": "agent:execute read:customers.*",
    "cnf": {"x5t#S256": PEER.thumbprint},
}


def token(key: SigningKey = KEY, **claims: Any) -> str:
    return sign_access_token({**CLAIMS, **claims}, key)


def validator(*keys: SigningKey, **options: Any) -> TokenValidator:
    options = {"issuer": ISSUER, "audience": AUDIENCE, "keys": StaticKeys(public_jwks(keys or [KEY])), **options}
    return TokenValidator(**options)


# What a valid token says.


def test_a_valid_token() -> None:
    access = validator().validate(token(), peer=PEER, now=NOW)
    assert access.issuer == ISSUER
    assert access.subject == access.client_id == "spiffe://fleet.example/planner"
    assert access.audience == (AUDIENCE,)
    assert access.scopes == ("agent:execute", "read:customers.*")
    assert access.token_id == "token-1"
    assert access.issued_at == NOW
    assert access.expires_at == NOW + timedelta(minutes=15)
    assert access.thumbprint == PEER.thumbprint
    assert access.actors == ()
    assert access.claims["scope"] == CLAIMS["scope"]
    assert "claims" not in repr(access)
    with pytest.raises(TypeError):
        access.claims["sub"] = "root"  # type: ignore[index]


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": [AUDIENCE]},
        {"aud": ["https://other.example", AUDIENCE]},
        {"nbf": T},
        {"nbf": T + 10},
        {"iat": T + 10},
        {"exp": T + 0.5, "iat": T - 0.5},
        {"exp": T + 1800},
        {"may_act": {"sub": "somebody"}, "unknown": [{"deep": None}]},
    ],
    ids=", ".join,
)
def test_also_valid(claims: dict[str, Any]) -> None:
    validator().validate(token(**claims), peer=PEER, now=NOW)


@pytest.mark.parametrize("scope", [None, ""])
def test_a_token_may_have_no_scopes(scope: str | None) -> None:
    claims = {k: v for k, v in CLAIMS.items() if k != "scope"} | ({"scope": ""} if scope == "" else {})
    assert validator().validate(sign_access_token(claims, KEY), peer=PEER, now=NOW).scopes == ()


def test_actors_are_outermost_first() -> None:
    act = {"sub": "c", "act": {"sub": "b", "client_id": "x", "act": {"sub": "a"}}}
    assert validator().validate(token(act=act), peer=PEER, now=NOW).actors == ("c", "b", "a")


@pytest.mark.parametrize(
    ("private_key", "alg"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (rsa.generate_private_key(65537, 2048), "PS256"),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
    ],
    ids=["ES256", "ES384", "PS256", "EdDSA"],
)
@pytest.mark.parametrize("typ", ["at+jwt", "application/at+jwt"])
def test_tokens_that_jwcrypto_made(private_key: Any, alg: str, typ: str) -> None:
    jwk = JWK.from_pyca(private_key)
    public = {**jwk.export_public(as_dict=True), "kid": "foreign"}
    made = JWT(header={"alg": alg, "typ": typ, "kid": "foreign"}, claims=CLAIMS)
    made.make_signed_token(jwk)
    keys = StaticKeys({"keys": [public]})
    assert validator(keys=keys).validate(made.serialize(), peer=PEER, now=NOW).token_id == "token-1"


@pytest.mark.parametrize("private_key", [ec.generate_private_key(ec.SECP384R1()), KEY.private_key])
def test_our_tokens_verify_with_jwcrypto(private_key: Any) -> None:
    key = SigningKey.of(private_key)
    parsed = JWS()
    parsed.deserialize(token(key), JWK(**key.public_jwk))
    assert json.loads(parsed.payload) == CLAIMS
    assert parsed.jose_header == {"alg": key.alg, "typ": "at+jwt", "kid": key.kid}


def test_our_ed25519_tokens() -> None:
    key = SigningKey.of(ed25519.Ed25519PrivateKey.generate())
    assert key.alg == "Ed25519"
    assert validator(key).validate(token(key), peer=PEER, now=NOW)


def test_a_token_that_is_not_json_is_not_made() -> None:
    with pytest.raises(ValueError, match="JSON"):
        token(exp=float("nan"))


def test_no_token_is_made_that_is_too_large_to_be_accepted() -> None:
    """Issuer, holder and resource have one limit; the resource's refusal would come too late."""
    spare = jws.MAX_COMPACT_BYTES - len(token(padding=""))
    largest = token(padding="x" * (spare * 3 // 4))
    assert jws.MAX_COMPACT_BYTES - 4 <= len(largest) <= jws.MAX_COMPACT_BYTES
    assert validator().validate(largest, peer=PEER, now=NOW)
    with pytest.raises(ConfigurationError, match="too large"):
        token(padding="x" * (spare * 3 // 4 + 4))
    # One line of a request's head, as nginx takes it: 8 KiB with the line's end.
    assert len(f"Authorization: Bearer {'x' * jws.MAX_COMPACT_BYTES}\r\n") <= 8192


def test_the_audience_may_be_an_agents_id() -> None:
    agent = AgentID.parse("spiffe://fleet.example/billing")
    assert validator(audience=agent).validate(token(aud=str(agent)), peer=PEER, now=NOW)
    with pytest.raises(TokenAudienceWrong):
        validator(audience=agent).validate(token(), peer=PEER, now=NOW)


# Time.


def test_the_last_moment_of_a_token() -> None:
    valid = validator()
    end = NOW + timedelta(minutes=15)
    valid.validate(token(), peer=PEER, now=end - timedelta(microseconds=1))
    for again in (valid, validator()):
        with pytest.raises(TokenExpired):
            again.validate(token(), peer=PEER, now=end)


def test_the_first_moment_of_a_token() -> None:
    for claims in ({"iat": T + 11}, {"nbf": T + 11}, {"iat": T - 600, "nbf": T + 11}, {"iat": T + 11, "nbf": T}):
        valid = validator()
        with pytest.raises(TokenNotYetValid):
            valid.validate(token(**claims), peer=PEER, now=NOW)
        valid.validate(token(**claims), peer=PEER, now=NOW + SECOND)


def test_now_needs_a_zone() -> None:
    with pytest.raises(IdentityError):
        validator().validate(token(), peer=PEER, now=NOW.replace(tzinfo=None))


# What is remembered, and what is checked again.


@pytest.fixture
def parsings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    parse = jws.parse_compact

    def counting(text: str, **options: Any) -> Any:
        seen.append(text)
        return parse(text, **options)

    monkeypatch.setattr(jws, "parse_compact", counting)
    return seen


def test_a_token_is_verified_once(parsings: list[str]) -> None:
    valid, text = validator(), token()
    first = valid.validate(text, peer=PEER, now=NOW)
    assert valid.validate(text, peer=PEER, now=NOW + SECOND) is first
    asyncio.run(valid.prepare(text, now=NOW))
    assert parsings == [text]
    valid.validate(token(), peer=PEER, now=NOW)  # another signature over the same claims, or the same text again
    valid.validate(token(jti="token-2"), peer=PEER, now=NOW)
    assert len(set(parsings)) == len(parsings) >= 2


def test_a_remembered_token_is_still_checked() -> None:
    denied = MemoryDenylist()
    valid, text = validator(denylist=denied), token()
    asyncio.run(valid.prepare(text, now=NOW))
    valid.validate(text, peer=PEER, now=NOW)
    with pytest.raises(TokenExpired):
        valid.validate(text, peer=PEER, now=NOW + timedelta(minutes=15))
    with pytest.raises(TokenNotYetValid):
        valid.validate(text, peer=PEER, now=NOW - timedelta(seconds=11))
    with pytest.raises(TokenBoundElsewhere):
        valid.validate(text, peer=OTHER_PEER, now=NOW)
    with pytest.raises(TokenWithoutCertificate):
        valid.validate(text, peer=None, now=NOW)
    for issuer, jti in ((ISSUER, "another token"), ("https://another.example", "token-1")):
        denied.deny(issuer, jti, expires_at=NOW + HOUR, now=NOW)
    valid.validate(text, peer=PEER, now=NOW)
    denied.deny(ISSUER, "token-1", expires_at=NOW + HOUR, now=NOW)
    with pytest.raises(TokenRevoked):
        valid.validate(text, peer=PEER, now=NOW)


class ChangingKeys:
    """A key source whose set is replaced, as that of an issuer is."""

    def __init__(self, jwks: dict[str, Any]) -> None:
        self.keys = StaticKeys(jwks)

    def find(self, kid: str, alg: str, *, now: datetime) -> Any:
        return self.keys.find(kid, alg, now=now)

    async def prepare(self, kid: str | None, *, now: datetime) -> None:
        raise KeysUnavailable("issuer is away")


def test_a_withdrawn_key_ends_remembered_tokens() -> None:
    keys = ChangingKeys(public_jwks([KEY]))
    valid, text = validator(keys=keys), token()
    valid.validate(text, peer=PEER, now=NOW)
    other = SigningKey.generate()
    keys.keys = StaticKeys(public_jwks([other]))
    with pytest.raises(TokenKeyUnknown):
        valid.validate(text, peer=PEER, now=NOW)
    keys.keys = StaticKeys({"keys": [{**other.public_jwk, "kid": KEY.kid}]})
    with pytest.raises(TokenSignatureWrong):
        valid.validate(text, peer=PEER, now=NOW)
    keys.keys = StaticKeys(public_jwks([KEY]))
    valid.validate(text, peer=PEER, now=NOW)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch, parsings: list[str]) -> None:
    monkeypatch.setattr(tokens, "MAX_CACHED_TOKENS", 3)
    valid = validator()
    texts = [token(jti=f"token-{n}") for n in range(5)]
    for text in texts:
        valid.validate(text, peer=PEER, now=NOW)
    assert parsings == texts
    for text in texts[2:]:
        valid.validate(text, peer=PEER, now=NOW)
    assert parsings == texts
    valid.validate(texts[0], peer=PEER, now=NOW)
    assert parsings == [*texts, texts[0]]


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_CACHED_TOKENS", 4)
    valid = validator()
    texts = [token(jti=f"token-{n}") for n in range(8)]

    def run(n: int) -> bool:
        return valid.validate(texts[n % 8], peer=PEER, now=NOW).token_id == f"token-{n % 8}"

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(400)))


# Preparing.


class Recording(ChangingKeys):
    def __init__(self) -> None:
        super().__init__(public_jwks([KEY]))
        self.prepared: list[str | None] = []

    async def prepare(self, kid: str | None, *, now: datetime) -> None:
        self.prepared.append(kid)


def test_prepare_asks_for_the_key_of_the_token() -> None:
    keys = Recording()
    valid = validator(keys=keys)
    asyncio.run(valid.prepare(token(), now=NOW))
    valid.validate(token(), peer=PEER, now=NOW)
    asyncio.run(valid.prepare(token(), now=NOW))
    assert keys.prepared == [KEY.kid, KEY.kid]


NO_KEY_ID = jws.sign_compact(b"{}", key=KEY.private_key, header={"alg": "ES256", "typ": "at+jwt"})


@pytest.mark.parametrize(
    "text",
    [NO_KEY_ID, "", "x", "a.b", "..", "a.b.c", "\u00e9", "x" * 100_000, token() + ".", token()[1:]],
    ids=[
        "no key ID",
        "empty",
        "word",
        "two parts",
        "empty parts",
        "not JSON",
        "not ASCII",
        "huge",
        "four parts",
        "cut",
    ],
)
def test_a_malformed_token_causes_no_fetch(text: str) -> None:
    keys = Recording()
    asyncio.run(validator(keys=keys).prepare(text, now=NOW))
    assert keys.prepared == []


def test_prepare_says_that_keys_are_unavailable() -> None:
    with pytest.raises(KeysUnavailable):
        asyncio.run(validator(keys=ChangingKeys(public_jwks([KEY]))).prepare(token(), now=NOW))


def test_with_remote_keys() -> None:
    """An outage before the first fetch is 503; an unknown key ID is 401; neither is an internal error."""
    answers = iter([httpx.Response(500), httpx.Response(200, json=public_jwks([KEY]))])

    async def run() -> None:
        http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: next(answers)))
        valid = validator(keys=RemoteKeys(f"{ISSUER}/jwks", http))
        with pytest.raises(KeysUnavailable) as caught:
            valid.validate(token(), peer=PEER, now=NOW)
        assert caught.value.status == 503
        with pytest.raises(KeysUnavailable):
            await valid.prepare(token(), now=NOW)
        later = NOW + timedelta(minutes=1)
        await valid.prepare(token(), now=later)
        assert valid.validate(token(), peer=PEER, now=later)
        with pytest.raises(TokenKeyUnknown) as unknown:
            valid.validate(token(SigningKey.generate()), peer=PEER, now=later)
        assert unknown.value.status == 401

    asyncio.run(run())


# Configuration.


@pytest.mark.parametrize(
    "options",
    [
        {"issuer": ""},
        {"issuer": None},
        {"issuer": "http://auth.fleet.example"},
        {"issuer": "auth.fleet.example"},
        {"audience": ""},
        {"audience": None},
        {"audience": [AUDIENCE]},
        {"keys": "https://auth.fleet.example/jwks"},
        {"keys": {"keys": []}},
        {"keys": None},
        {"keys": StaticKeys},
        {"denylist": "redis://127.0.0.1"},
        {"algorithms": []},
        {"algorithms": ["ES256", "RS256"]},
        {"algorithms": ["none"]},
        {"algorithms": ["HS256"]},
        {"max_lifetime": timedelta(0)},
        {"bindings": []},
        {"bindings": "dpop"},
        {"bindings": ["jwk"]},
        {"required_claims": "acr"},
    ],
    ids=str,
)
def test_unsafe_configuration_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        validator(**options)
    assert type(caught.value) is ConfigurationError and "\n" not in str(caught.value)


def test_a_narrower_policy_is_kept() -> None:
    es384 = SigningKey.of(ec.generate_private_key(ec.SECP384R1()))
    narrow = validator(KEY, es384, algorithms=["ES384"], max_lifetime=timedelta(minutes=5))
    assert narrow.validate(token(es384, exp=T + 300), peer=PEER, now=NOW)
    for text in (token(es384, exp=T + 301), token(exp=T + 300)):
        with pytest.raises(TokenError):
            narrow.validate(text, peer=PEER, now=NOW)


# What else may be asked for.


@pytest.mark.parametrize("name", ["acr", "auth_time"])
def test_further_claims_are_required_by_name(name: str) -> None:
    valid = validator(required_claims=["acr", "auth_time"])
    assert valid.validate(token(acr="1", auth_time=T), peer=PEER, now=NOW)
    text = token(**{"acr": "1", "auth_time": T, name: None})
    assert valid.validate(text, peer=PEER, now=NOW)  # it is there; what it says is not for the validator
    claims = {n: v for n, v in {**CLAIMS, "acr": "1", "auth_time": T}.items() if n != name}
    with pytest.raises(TokenClaimMissing, match=f"expected {name}$"):
        valid.validate(sign_access_token(claims, KEY), peer=PEER, now=NOW)


class Trail:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def record(self, **facts: Any) -> None:
        self.events.append(facts)


def test_tokens_that_live_for_long_are_taken_where_that_is_meant_and_told_once_for_each_client(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MAX_WARNED_CLIENTS", 2)
    trail = Trail()
    lenient = validator(max_lifetime=timedelta(hours=1), audit=trail)
    lenient.validate(token(exp=T + 1800), peer=PEER, now=NOW)
    assert not trail.events
    assert not caplog.records
    for _ in range(2):
        for client in ("a", "b"):
            lenient.validate(token(exp=T + 1801, client_id=client), peer=PEER, now=NOW)
    told = [(e["event"], e["decision"], e["check"], e["client"]) for e in trail.events]
    assert told == [("token", "allow", "token.lifetime", client) for client in ("a", "b")]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    for client in ("c", "b", "a"):  # the third pushes out the first, which is told of again
        lenient.validate(token(exp=T + 1801, client_id=client), peer=PEER, now=NOW)
    assert [e["client"] for e in trail.events] == ["a", "b", "c", "a"]
    with pytest.raises(TokenLifetimeTooLong):
        lenient.validate(token(exp=T + 3601), peer=PEER, now=NOW)


# Bound to a key.

DPOP_KEY = SigningKey.generate()
PROOF = Proof(thumbprint=DPOP_KEY.kid, proof_id="p", issued_at=T)
OTHER_PROOF = Proof(thumbprint=KEY.kid, proof_id="p", issued_at=T)
TO_KEY = {"cnf": {"jkt": DPOP_KEY.kid}}
TO_BOTH = {"cnf": {"jkt": DPOP_KEY.kid, "x5t#S256": PEER.thumbprint}}
ALL_WORDS = ("certificate", "dpop")

BOUND: dict[str, tuple[dict[str, Any], tuple[str, ...], PeerIdentity | None, Proof | None, Any]] = {
    "key": (TO_KEY, ("dpop",), None, PROOF, None),
    "key, of two words": (TO_KEY, ALL_WORDS, OTHER_PEER, PROOF, None),
    "certificate, of two words": ({}, ALL_WORDS, PEER, None, None),
    "both": (TO_BOTH, ALL_WORDS, PEER, PROOF, None),
    "both, where keys are not taken": (TO_BOTH, ("certificate",), PEER, PROOF, None),
    "both, where certificates are not taken": (TO_BOTH, ("dpop",), PEER, PROOF, None),
    "key, where keys are not taken": (TO_KEY, ("certificate",), PEER, PROOF, TokenNotBound),
    "certificate, where they are not taken": ({}, ("dpop",), PEER, None, TokenNotBound),
    "key, and no proof": (TO_KEY, ALL_WORDS, PEER, None, TokenWithoutProof),
    "key, and a proof of another": (TO_KEY, ALL_WORDS, PEER, OTHER_PROOF, TokenBoundElsewhere),
    "certificate, and a proof": ({}, ALL_WORDS, PEER, PROOF, TokenNotBound),
    "both, and no proof": (TO_BOTH, ALL_WORDS, PEER, None, TokenWithoutProof),
    "both, and another's proof": (TO_BOTH, ALL_WORDS, PEER, OTHER_PROOF, TokenBoundElsewhere),
    "both, and another's certificate": (TO_BOTH, ALL_WORDS, OTHER_PEER, PROOF, TokenBoundElsewhere),
    "both, and no certificate": (TO_BOTH, ALL_WORDS, None, PROOF, TokenWithoutCertificate),
    "both, no proof, where keys are not taken": (TO_BOTH, ("certificate",), PEER, None, TokenWithoutProof),
}


@pytest.mark.parametrize("name", BOUND)
def test_what_a_token_is_bound_to_is_there_each_time(name: str) -> None:
    claims, bindings, peer, proof, expected = BOUND[name]
    valid, text = validator(bindings=bindings), token(**claims)
    for _ in range(2):  # the second time it may be a token that is remembered
        if expected is None:
            assert valid.validate(text, peer=peer, now=NOW, proof=proof).token_id == "token-1"
            continue
        with pytest.raises(TokenError) as caught:
            valid.validate(text, peer=peer, now=NOW, proof=proof)
        assert type(caught.value) is expected


def test_a_remembered_token_needs_its_proof_again() -> None:
    valid, text = validator(bindings=["dpop"]), token(**TO_KEY)
    valid.validate(text, peer=None, now=NOW, proof=PROOF)
    with pytest.raises(TokenWithoutProof):
        valid.validate(text, peer=None, now=NOW)
    with pytest.raises(TokenBoundElsewhere):
        valid.validate(text, peer=None, now=NOW, proof=OTHER_PROOF)


# Several issuers.

PARTNER = "https://auth.partner.example"


def test_each_issuers_keys_are_prepared_and_no_others() -> None:
    home, partner = Recording(), Recording()
    several = TokenValidators(validator(keys=home), validator(issuer=PARTNER, keys=partner, bindings=["dpop"]))
    assert several.issuers == (ISSUER, PARTNER)
    assert several.audience == AUDIENCE
    assert several.bindings == {"certificate", "dpop"}
    asyncio.run(several.prepare(token(), now=NOW))
    assert (home.prepared, partner.prepared) == ([KEY.kid], [])
    asyncio.run(several.prepare(token(iss=PARTNER), now=NOW))
    assert (home.prepared, partner.prepared) == ([KEY.kid], [KEY.kid])
    for text in (token(iss="https://another.example"), "x", ""):
        asyncio.run(several.prepare(text, now=NOW))
    assert (home.prepared, partner.prepared) == ([KEY.kid], [KEY.kid])


def test_a_remembered_token_is_found_without_reading_it_again(parsings: list[str]) -> None:
    several, text = TokenValidators(validator(), validator(issuer=PARTNER)), token(iss=PARTNER)
    first = several.validate(text, peer=PEER, now=NOW)
    assert parsings == [text, text]  # to choose, and to verify
    assert several.validate(text, peer=PEER, now=NOW) is first
    assert len(parsings) == 2


@pytest.mark.parametrize(
    "validators",
    [
        (),
        (validator(), validator()),
        (validator(), validator(issuer=PARTNER, audience="https://another.example")),
        ([validator(), validator(issuer=PARTNER)],),
    ],
    ids=["none", "one issuer twice", "two audiences", "a list of them"],
)
def test_validators_that_do_not_belong_together(validators: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigurationError):
        TokenValidators(*validators)


# Anything at all.

TEXT = token()
VALIDATOR = validator()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.integers(0, len(TEXT) - 1), st.characters(max_codepoint=0x17F))
def test_no_altered_token_is_accepted(place: int, character: str) -> None:
    altered = TEXT[:place] + character + TEXT[place + 1 :]
    if altered != TEXT:
        with pytest.raises(TokenError):
            VALIDATOR.validate(altered, peer=PEER, now=NOW)


@given(st.text(alphabet=st.characters(max_codepoint=0x17F), max_size=60))
def test_no_text_is_accepted(text: str) -> None:
    with pytest.raises(TokenError):
        VALIDATOR.validate(text, peer=PEER, now=NOW)
    asyncio.run(VALIDATOR.prepare(text, now=NOW))


@given(st.sampled_from([*CLAIMS, "nbf", "act"]), JSON)
def test_whatever_a_claim_holds_the_answer_is_an_access_token_or_a_token_error(name: str, value: Any) -> None:
    try:
        access = VALIDATOR.validate(token(**{name: value}), peer=PEER, now=NOW)
    except TokenError:
        return
    assert access.thumbprint == PEER.thumbprint
    assert access.expires_at > NOW
    assert AUDIENCE in access.audience
    assert all(isinstance(s, str) for s in (*access.scopes, *access.actors, access.subject, access.token_id))


def test_part_order_of_a_token() -> None:
    header, payload, _ = (base64.urlsafe_b64decode(p + "==") for p in TEXT.split("."))
    assert json.loads(header) == {"alg": "ES256", "typ": "at+jwt", "kid": KEY.kid}
    assert json.loads(payload) == CLAIMS
