from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jwcrypto.jwk import JWK

from trust.errors import (
    ConfigurationError,
    CredentialsError,
    KeysUnavailable,
    TokenKeyUnknown,
    TrustError,
    WrongPassword,
)
from trust.oauth.keys import (
    FAILURE_REST,
    FRESH,
    MAX_JWKS_BYTES,
    MAX_KEYS,
    UNKNOWN_KID_REST,
    USABLE,
    RemoteKeys,
    SigningKey,
    StaticKeys,
    public_jwks,
)
from trust.oauth.tokens import ALGORITHMS

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
URL = "https://auth.example/jwks"
RSA = rsa.generate_private_key(65537, 2048)


def jwk(key: Any, **members: Any) -> dict[str, Any]:
    return {**JWK.from_pyca(key.public_key()).export_public(as_dict=True), "kid": "k", **members}


def private_jwk(key: Any) -> dict[str, Any]:
    return {**JWK.from_pyca(key).export_private(as_dict=True), "kid": "k"}


# Our own keys.


@pytest.mark.parametrize(
    ("private_key", "alg"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
    ],
    ids=["P-256", "P-384", "Ed25519"],
)
def test_signing_key_round_trip(private_key: Any, alg: str) -> None:
    key = SigningKey.of(private_key)
    assert key.alg == alg
    again = SigningKey.from_pem(key.to_pem(b"secret"), b"secret")
    assert (again.kid, again.alg, again.public_jwk) == (key.kid, key.alg, key.public_jwk)
    found = StaticKeys(public_jwks([key])).find(key.kid, alg, now=NOW)
    assert found == private_key.public_key()


def test_the_key_id_is_the_rfc_7638_thumbprint() -> None:
    public = JWK(  # the key of RFC 8037 appendix A.3, with its thumbprint there
        kty="OKP", crv="Ed25519", x="11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        d="nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
    )  # fmt: skip
    key = SigningKey.from_pem(public.export_to_pem(private_key=True, password=None), None)
    assert key.kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_what_is_published_holds_no_private_part() -> None:
    keys = [SigningKey.generate(), SigningKey.of(ed25519.Ed25519PrivateKey.generate())]
    published = public_jwks(keys)
    assert [k["kid"] for k in published["keys"]] == [k.kid for k in keys]
    assert not {"d", "k", "p", "q"} & {name for k in published["keys"] for name in k}
    assert {k["use"] for k in published["keys"]} == {"sig"}
    assert "private_key" not in repr(keys[0])


@pytest.mark.parametrize(
    "private_key",
    [ec.generate_private_key(ec.SECP521R1()), ec.generate_private_key(ec.SECP224R1()), RSA,
     ed448.Ed448PrivateKey.generate()],
    ids=["P-521", "P-224", "RSA", "Ed448"],
)  # fmt: skip
def test_other_keys_do_not_sign(private_key: Any) -> None:
    with pytest.raises(ConfigurationError):
        SigningKey.of(private_key)


def test_pem_errors() -> None:
    key = SigningKey.generate()
    clear = key.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    locked = key.to_pem(b"secret")
    assert b"ENCRYPTED" in locked
    assert SigningKey.from_pem(clear, None).kid == key.kid
    for pem, password in [(locked, None), (locked, b"wrong"), (clear, b"secret")]:
        with pytest.raises(WrongPassword):
            SigningKey.from_pem(pem, password)
    for pem, password in [(b"no key", None), (b"no key", b"secret"), (locked[:100] + locked[120:], b"secret")]:
        with pytest.raises(CredentialsError) as caught:
            SigningKey.from_pem(pem, password)
        assert type(caught.value) is CredentialsError
    with pytest.raises(ConfigurationError):
        key.to_pem(b"")


# An issuer's keys.

P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
ED = ed25519.Ed25519PrivateKey.generate()
ML_DSA = mldsa.MLDSA44PrivateKey.generate()


@pytest.mark.parametrize(
    ("entry", "algorithms"),
    [
        (jwk(P256), ["ES256"]),
        (jwk(P256, alg="ES256", use="sig", key_ops=["verify"]), ["ES256"]),
        (jwk(P256, key_ops=["sign", "verify"], x5c=["AAAA"], unknown={"deep": []}), ["ES256"]),
        (jwk(P384), ["ES384"]),
        (jwk(ED), ["Ed25519", "EdDSA"]),
        (jwk(ED, alg="EdDSA"), ["EdDSA"]),
        (jwk(ED, alg="Ed25519"), ["Ed25519"]),
        (jwk(RSA), ["PS256"]),
        (jwk(RSA, alg="PS256"), ["PS256"]),
        (jwk(ML_DSA), ["ML-DSA-44"]),
        (jwk(mldsa.MLDSA65PrivateKey.from_seed_bytes(bytes(32))), ["ML-DSA-65"]),
    ],
)
def test_a_key_is_for_its_algorithm_only(entry: dict[str, Any], algorithms: list[str]) -> None:
    keys = StaticKeys({"keys": [entry]})
    for alg in (*ALGORITHMS, "RS256", "HS256", "ML-DSA-44", "ML-DSA-65", "ML-DSA-87", "none", ""):
        if alg in algorithms:
            assert keys.find("k", alg, now=NOW) is keys.find("k", alg, now=NOW)
        else:
            with pytest.raises(TokenKeyUnknown):
                keys.find("k", alg, now=NOW)
    with pytest.raises(TokenKeyUnknown):
        keys.find("other", algorithms[0], now=NOW)
    asyncio.run(keys.prepare("other", now=NOW))


UNUSABLE: dict[str, Any] = {
    "symmetric": {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "k"},
    "symmetric, named ES256": {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "k", "alg": "ES256"},
    "private EC": private_jwk(P256),
    "private RSA": private_jwk(RSA),
    "private OKP": private_jwk(ED),
    "public with k": jwk(P256, k="AAAA"),
    "for encryption": jwk(P256, use="enc"),
    "use is null": jwk(P256, use=None),
    "operations without verify": jwk(P256, key_ops=["encrypt"]),
    "operations as text": jwk(P256, key_ops="verify"),
    "other algorithm": jwk(P256, alg="ES384"),
    "HMAC algorithm": jwk(P256, alg="HS256"),
    "RSA with PKCS#1 v1.5": jwk(RSA, alg="RS256"),
    "algorithm is a list": jwk(P256, alg=["ES256"]),
    "no key ID": {k: v for k, v in jwk(P256).items() if k != "kid"},
    "empty key ID": jwk(P256, kid=""),
    "number as key ID": jwk(P256, kid=7),
    "endless key ID": jwk(P256, kid="k" * 257),
    "unknown type": jwk(P256, kty="XX"),
    "type is a list": jwk(P256, kty=["EC"]),
    "no type": {k: v for k, v in jwk(P256).items() if k != "kty"},
    "other curve": jwk(ec.generate_private_key(ec.SECP521R1())),
    "secp256k1": jwk(ec.generate_private_key(ec.SECP256K1())),
    "agreement key": jwk(x25519.X25519PrivateKey.generate()),
    "curve of another type": jwk(P256, crv="X25519"),
    "curve is missing": {k: v for k, v in jwk(P256).items() if k != "crv"},
    "x is missing": {k: v for k, v in jwk(P256).items() if k != "x"},
    "x is a number": jwk(P256, x=7),
    "x is empty": jwk(P256, x=""),
    "point off the curve": jwk(P256, x=jwk(P256)["y"], y=jwk(P256)["x"]),
    "point of the other curve": jwk(P384, crv="P-256"),
    "not base64url": jwk(P256, x="*"),
    "short Ed25519": jwk(ED, x="AAAA"),
    "RSA of 1024 bits": jwk(rsa.generate_private_key(65537, 1024)),
    "RSA of 16384 bits": jwk(RSA, n="_" * 2731),
    "RSA with an even exponent": jwk(RSA, e="Ag"),
    "RSA without e": {k: v for k, v in jwk(RSA).items() if k != "e"},
    "private ML-DSA": private_jwk(ML_DSA),
    "ML-DSA-87": jwk(mldsa.MLDSA87PrivateKey.from_seed_bytes(bytes(32))),
    "ML-DSA without alg": {k: v for k, v in jwk(ML_DSA).items() if k != "alg"},
    "ML-DSA named ES256": jwk(ML_DSA, alg="ES256"),
    "ML-DSA named by the other size": jwk(ML_DSA, alg="ML-DSA-65"),
    "ML-DSA, short": jwk(ML_DSA, pub="AAAA"),
    "ML-DSA without pub": {k: v for k, v in jwk(ML_DSA).items() if k != "pub"},
    "not an object": "k",
    "null": None,
}  # fmt: skip


@pytest.mark.parametrize("entry", UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_entries_are_passed_over(entry: Any) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    keys = StaticKeys({"keys": [entry, jwk(other, kid="good")]})
    assert keys.find("good", "ES256", now=NOW) == other.public_key()
    for alg in (*ALGORITHMS, "RS256", "HS256", "ML-DSA-44", "ML-DSA-65", "ML-DSA-87"):
        with pytest.raises(TokenKeyUnknown):
            keys.find("k", alg, now=NOW)
    with pytest.raises(ConfigurationError):
        StaticKeys({"keys": [entry]})


@pytest.mark.parametrize(
    "entry",
    [
        private_jwk(P256),
        {**private_jwk(P256), "kid": "another"},
        {**private_jwk(P256), "kid": None},
        {**private_jwk(P256), "kid": "another", "use": "enc", "alg": "ECDH-ES"},
        private_jwk(P384),
        {"kty": "EC", "d": "AAAA", "kid": "k"},
    ],
    ids=["the same entry", "by another kid", "by no kid", "for encryption", "another key by its kid", "half of one"],
)
def test_a_key_is_everyones_whose_private_half_is_in_the_set(entry: dict[str, Any]) -> None:
    for entries in ([jwk(P256), entry], [entry, jwk(P256)]):
        keys = StaticKeys({"keys": [*entries, jwk(ED, kid="good")]})
        assert keys.find("good", "EdDSA", now=NOW) == ED.public_key()
        with pytest.raises(TokenKeyUnknown):
            keys.find("k", "ES256", now=NOW)


def test_a_key_id_that_occurs_twice_names_no_key() -> None:
    keys = StaticKeys({"keys": [jwk(P256), jwk(P384), jwk(ED, kid="good")]})
    assert keys.find("good", "EdDSA", now=NOW) == ED.public_key()
    for alg in ("ES256", "ES384"):
        with pytest.raises(TokenKeyUnknown):
            keys.find("k", alg, now=NOW)


@pytest.mark.parametrize("document", [{}, {"keys": {}}, {"keys": []}, [], {"keys": [jwk(P256)] * (MAX_KEYS + 1)}])
def test_not_a_jwks(document: Any) -> None:
    with pytest.raises(ConfigurationError):
        StaticKeys(document)


# The remote set.

Answer = Callable[[httpx.Request], httpx.Response | Exception]


class Issuer:
    """An issuer's JWKS endpoint, reached through httpx in this process; it counts and notes what it is asked."""

    def __init__(self, *keys: SigningKey) -> None:
        self.keys = keys
        self.requests: list[httpx.Request] = []
        self.answer: Answer = lambda _: httpx.Response(200, json=public_jwks(self.keys))
        self.gate: asyncio.Event | None = None

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.gate:
            await self.gate.wait()
        answer = self.answer(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self), **options)

    @property
    def fetches(self) -> int:
        return len(self.requests)


OLD, NEW, NEVER = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()


def test_a_fresh_set_is_not_fetched_again() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        key = keys.find(OLD.kid, "ES256", now=NOW)
        assert key == OLD.private_key.public_key()
        await keys.prepare(OLD.kid, now=NOW + FRESH - SECOND)
        await keys.prepare(None, now=NOW + FRESH - SECOND)
        assert keys.find(OLD.kid, "ES256", now=NOW + FRESH) is key
        assert issuer.fetches == 1
        await keys.prepare(OLD.kid, now=NOW + FRESH)
        assert issuer.fetches == 2
        assert keys.find(OLD.kid, "ES256", now=NOW + FRESH) is key
        issuer.keys = (OLD, NEW)
        await keys.prepare(OLD.kid, now=NOW + FRESH * 2)
        assert keys.find(OLD.kid, "ES256", now=NOW + FRESH * 2) == key

    asyncio.run(run())


def test_a_withdrawn_key_is_gone_with_the_next_fetch() -> None:
    async def run() -> None:
        issuer = Issuer(OLD, NEW)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        issuer.keys = (NEW,)
        await keys.prepare(OLD.kid, now=NOW + FRESH)
        with pytest.raises(TokenKeyUnknown):
            keys.find(OLD.kid, "ES256", now=NOW + FRESH)

    asyncio.run(run())


def test_unknown_key_ids_cause_one_fetch_in_thirty_seconds() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        issuer.keys = (OLD, NEW)
        await keys.prepare(NEW.kid, now=NOW + SECOND)
        assert keys.find(NEW.kid, "ES256", now=NOW + SECOND) == NEW.private_key.public_key()
        assert issuer.fetches == 2
        for n in range(100):
            await keys.prepare(f"made up {n}", now=NOW + SECOND * 2)
        await keys.prepare(NEVER.kid, now=NOW + UNKNOWN_KID_REST)
        assert issuer.fetches == 2
        with pytest.raises(TokenKeyUnknown):
            keys.find(NEVER.kid, "ES256", now=NOW)
        await keys.prepare(NEVER.kid, now=NOW + SECOND + UNKNOWN_KID_REST)
        assert issuer.fetches == 3

    asyncio.run(run())


def test_a_known_set_outlives_the_issuer_for_an_hour() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        issuer.answer = lambda _: httpx.ConnectError("refused")
        late = NOW + USABLE - SECOND
        await keys.prepare(OLD.kid, now=late)
        assert keys.find(OLD.kid, "ES256", now=late) == OLD.private_key.public_key()
        assert issuer.fetches == 2
        await keys.prepare(OLD.kid, now=late)  # it failed just now
        assert issuer.fetches == 2
        with pytest.raises(KeysUnavailable):
            await keys.prepare(OLD.kid, now=NOW + USABLE)
        with pytest.raises(KeysUnavailable):
            keys.find(OLD.kid, "ES256", now=NOW + USABLE)
        with pytest.raises(KeysUnavailable):
            await keys.prepare(OLD.kid, now=late + FAILURE_REST)
        assert issuer.fetches == 3
        issuer.answer = lambda _: httpx.Response(200, json=public_jwks([NEW]))
        back = late + FAILURE_REST * 2
        await keys.prepare(NEW.kid, now=back)
        assert keys.find(NEW.kid, "ES256", now=back) == NEW.private_key.public_key()

    asyncio.run(run())


def test_a_clock_set_back_makes_the_set_unknown_not_fresh() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        with pytest.raises(KeysUnavailable):
            keys.find(OLD.kid, "ES256", now=NOW - USABLE)
        await keys.prepare(OLD.kid, now=NOW - FRESH)
        assert issuer.fetches == 2
        assert keys.find(OLD.kid, "ES256", now=NOW - USABLE)

    asyncio.run(run())


def test_a_request_that_came_before_the_fetch_can_use_it() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        await keys.prepare(OLD.kid, now=NOW - SECOND)
        assert keys.find(OLD.kid, "ES256", now=NOW - SECOND)
        assert issuer.fetches == 1

    asyncio.run(run())


def test_cold_without_an_issuer_is_unavailable_not_unknown() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        issuer.answer = lambda _: httpx.ConnectError("refused")
        keys = RemoteKeys(URL, issuer.client())
        with pytest.raises(KeysUnavailable):
            keys.find(OLD.kid, "ES256", now=NOW)
        with pytest.raises(KeysUnavailable) as caught:
            await keys.prepare(OLD.kid, now=NOW)
        assert caught.value.status == 503
        assert "ConnectError" in str(caught.value)

    asyncio.run(run())


async def _endless() -> AsyncIterator[bytes]:
    while True:
        yield b" " * 4096


BAD_ANSWERS: dict[str, Answer] = {
    "redirect": lambda _: httpx.Response(302, headers={"location": "https://evil.example/jwks"}),
    "error": lambda _: httpx.Response(500, json=public_jwks([OLD])),
    "created": lambda _: httpx.Response(201, json=public_jwks([OLD])),
    "not JSON": lambda _: httpx.Response(200, text="<html>"),
    "not a JWKS": lambda _: httpx.Response(200, json=[]),
    "duplicate members": lambda _: httpx.Response(200, text='{"keys":[],"keys":[]}'),
    "too many keys": lambda _: httpx.Response(200, json=public_jwks([OLD] * (MAX_KEYS + 1))),
    "too large": lambda _: httpx.Response(200, text=json.dumps(public_jwks([OLD])) + " " * MAX_JWKS_BYTES),
    "endless": lambda _: httpx.Response(200, content=_endless()),
    "compressed": lambda _: httpx.Response(
        200, headers={"content-encoding": "gzip"}, content=gzip.compress(json.dumps(public_jwks([OLD])).encode())
    ),
    "timeout": lambda _: httpx.ReadTimeout("slow"),
    "TLS refused": lambda _: TrustError("handshake"),
    "closed client": lambda _: RuntimeError("closed"),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_a_bad_answer_neither_gives_nor_takes_keys(answer: Answer) -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        issuer.answer, good = answer, issuer.answer
        keys = RemoteKeys(URL, issuer.client(follow_redirects=True))
        with pytest.raises(KeysUnavailable):
            await keys.prepare(OLD.kid, now=NOW)
        issuer.answer = good
        await keys.prepare(OLD.kid, now=NOW + FAILURE_REST)
        assert keys.find(OLD.kid, "ES256", now=NOW + FAILURE_REST)
        issuer.answer = answer
        await keys.prepare("made up", now=NOW + FAILURE_REST * 2)
        assert keys.find(OLD.kid, "ES256", now=NOW + FAILURE_REST * 2)
        assert [str(r.url) for r in issuer.requests] == [URL] * 3

    asyncio.run(run())


def test_a_silent_issuer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trust.oauth.keys.FETCH_SECONDS", 0.05)

    async def run() -> None:
        issuer = Issuer(OLD)
        issuer.gate = asyncio.Event()
        keys = RemoteKeys(URL, issuer.client(timeout=None))
        with pytest.raises(KeysUnavailable, match="TimeoutError"):
            await keys.prepare(OLD.kid, now=NOW)

    asyncio.run(run())


def test_an_empty_set_withdraws_every_key() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        issuer.keys = ()
        await keys.prepare(OLD.kid, now=NOW + FRESH)
        with pytest.raises(TokenKeyUnknown):
            keys.find(OLD.kid, "ES256", now=NOW + FRESH)

    asyncio.run(run())


def test_many_wait_for_one_fetch() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        issuer.gate = asyncio.Event()
        keys = RemoteKeys(URL, issuer.client())
        waiting = [asyncio.create_task(keys.prepare(OLD.kid, now=NOW)) for _ in range(200)]
        await asyncio.sleep(0)
        issuer.gate.set()
        await asyncio.gather(*waiting)
        assert issuer.fetches == 1

    asyncio.run(run())


def test_a_caller_that_gives_up_does_not_stop_the_others() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        issuer.gate = asyncio.Event()
        keys = RemoteKeys(URL, issuer.client())
        first, second = (asyncio.create_task(keys.prepare(OLD.kid, now=NOW)) for _ in range(2))
        while not issuer.fetches:
            await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        issuer.gate.set()
        await second
        assert issuer.fetches == 1
        assert keys.find(OLD.kid, "ES256", now=NOW)

    asyncio.run(run())


def test_the_client_sends_no_credentials_with_the_fetch() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        keys = RemoteKeys(URL, issuer.client(auth=("user", "password")))
        await keys.prepare(OLD.kid, now=NOW)
        assert "authorization" not in issuer.requests[0].headers
        assert issuer.requests[0].headers["accept-encoding"] == "identity"

    asyncio.run(run())


@pytest.mark.parametrize(
    "url",
    [
        "http://auth.example/jwks",
        "file:///etc/passwd",
        "https:///jwks",
        "auth.example",
        "",
        "https://[",
        "https://auth.example:x/jwks",
        None,
        b"https://auth.example/jwks",
    ],
)
def test_only_https(url: Any) -> None:
    with pytest.raises(ConfigurationError):
        RemoteKeys(url, Issuer().client())
