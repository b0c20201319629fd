"""How a client proves who it is: what each way puts into a request, and where its keys and secrets come from."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa

from tests.authority import ISSUER, PLANNER
from tests.forge import NOW, Forge
from tests.trust.oauth.client.servers import CREDENTIALS, Fake, answers, refused, run
from trust.errors import ConfigurationError, CredentialsError, MetadataRefused, TokenRequestRefused
from trust.oauth.client import ClientAuthentication, ClientSecret, PrivateKeyJWT, TLSCertificate, authentication
from trust.oauth.client.authentication import ClientProof
from trust.oauth.keys import SigningKey
from trust.sources import Live

METHODS: dict[str, ClientAuthentication] = {
    "tls_client_auth": TLSCertificate(),
    "self_signed_tls_client_auth": TLSCertificate(self_signed=True),
    "private_key_jwt": PrivateKeyJWT(),
    "client_secret_basic": ClientSecret(lambda: "secret"),
}


def proof(way: ClientAuthentication, client_id: str = PLANNER) -> ClientProof:
    found = run(way.prove(client_id=client_id, issuer=ISSUER, credentials=CREDENTIALS, now=NOW))
    assert isinstance(found, ClientProof)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_server_must_list_the_way_that_is_configured(method: str) -> None:
    server = Fake()
    server.metadata["token_endpoint_auth_methods_supported"] = [method]
    for other, way in METHODS.items():
        assert way.method == other
        source = server.source(authentication=way)
        if other == method:
            run(source.token())
        else:
            run(refused(source, MetadataRefused))
    assert len(server.forms("/token")) == 1
    # RFC 8414 section 2: one that does not say takes secrets.
    del server.metadata["token_endpoint_auth_methods_supported"]
    for other, way in METHODS.items():
        if other == "client_secret_basic":
            run(server.source(authentication=way).token())
        else:
            run(refused(server.source(authentication=way), MetadataRefused))


def test_the_certificate_needs_nothing_else() -> None:
    for method in ("tls_client_auth", "self_signed_tls_client_auth"):
        assert proof(METHODS[method]) == ClientProof(form={}, headers={})


# private_key_jwt


def read(assertion: str, key: SigningKey) -> tuple[dict[str, Any], dict[str, Any]]:
    """As somebody else's library reads it."""
    claims = jwt.decode(
        assertion,
        key.private_key.public_key(),
        algorithms=["ES256", "ES384", "EdDSA"],
        audience=ISSUER,
        issuer=PLANNER,
        options={"verify_exp": False, "verify_iat": False, "require": ["exp", "iat", "jti", "sub"]},
    )
    return jwt.get_unverified_header(assertion), claims


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()], ids=lambda c: str(c.name))
def test_an_assertion_is_for_this_issuer_alone_and_for_a_minute(curve: ec.EllipticCurve) -> None:
    key = SigningKey.of(ec.generate_private_key(curve))
    way = PrivateKeyJWT(key)
    first, second = proof(way).form, proof(way).form
    assert first["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    header, claims = read(first["client_assertion"], key)
    issued = int(NOW.timestamp())
    jti = claims.pop("jti")
    assert header == {"alg": key.alg, "typ": "client-authentication+jwt", "kid": key.kid}
    assert claims == {"iss": PLANNER, "sub": PLANNER, "aud": ISSUER, "iat": issued, "exp": issued + 60}
    assert read(second["client_assertion"], key)[1]["jti"] != jti and len(jti) >= 20


def test_an_ed25519_key_signs_by_its_own_name() -> None:
    key = SigningKey.of(ed25519.Ed25519PrivateKey.generate())
    header = jwt.get_unverified_header(proof(PrivateKeyJWT(key)).form["client_assertion"])
    assert header["alg"] == "Ed25519"


def test_the_key_of_an_assertion_is_the_current_one() -> None:
    old, new = SigningKey.generate(), SigningKey.generate()
    live = Live(old)
    way = PrivateKeyJWT(live)
    read(proof(way).form["client_assertion"], old)
    live.replace(new)
    read(proof(way).form["client_assertion"], new)
    own = SigningKey.of(CREDENTIALS.private_key)
    read(proof(PrivateKeyJWT()).form["client_assertion"], own)


def test_a_key_that_signs_no_assertion_says_so() -> None:
    credentials = Forge().leaf("/planner", key=mldsa.MLDSA65PrivateKey.generate())
    with pytest.raises(ConfigurationError, match="signing key"):
        run(PrivateKeyJWT().prove(client_id=PLANNER, issuer=ISSUER, credentials=credentials, now=NOW))


def test_the_assertion_goes_into_each_form_and_follows_a_renewed_certificate() -> None:
    server = Fake()
    server.metadata["token_endpoint_auth_methods_supported"] = ["private_key_jwt"]
    live, renewed = Live(CREDENTIALS), Forge().leaf("/planner")

    async def work() -> None:
        source = server.source(authentication=PrivateKeyJWT(), source=live)
        await source.token()
        live.replace(renewed)
        await source.revoke(await source.token())

    run(work())
    forms = [*server.forms("/token"), *server.forms("/revoke")]
    assert [form["client_id"] for form in forms] == [PLANNER] * 3
    for form, credentials in zip(forms, (CREDENTIALS, renewed, renewed), strict=True):
        read(form["client_assertion"], SigningKey.of(credentials.private_key))
    assert all("authorization" not in request.headers for request in server.requests)


# client_secret_basic


def secret_in(found: ClientProof) -> tuple[str, str]:
    scheme, _, pair = found.headers["authorization"].partition(" ")
    name, _, secret = base64.b64decode(pair, validate=True).decode().partition(":")
    assert scheme == "Basic" and found.form == {}
    return unquote_plus(name), unquote_plus(secret)


@pytest.mark.parametrize("secret", ["secret", "a:b", "100% +&=?/ ~*", " ", "%3A", "x" * 1024])
@pytest.mark.parametrize("client_id", [PLANNER, "a:b%3A c"])
def test_name_and_secret_are_encoded_before_they_are_joined(client_id: str, secret: str) -> None:
    assert secret_in(proof(ClientSecret(lambda: secret), client_id)) == (client_id, secret)


def test_a_secret_is_read_anew_for_each_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    said = {"callback": ""}

    async def asked() -> str:
        await asyncio.sleep(0)
        return said["callback"]

    def later() -> Awaitable[str]:
        return asked()

    ways = [ClientSecret.from_environment("A2A_TEST_SECRET"), ClientSecret.from_file(str(file))]
    ways += [ClientSecret(lambda: said["callback"]), ClientSecret(asked), ClientSecret(later)]
    for secret, end in (("first", ""), ("second", "\n"), ("third ", "\r\n")):
        monkeypatch.setenv("A2A_TEST_SECRET", secret)
        file.write_text(secret + end, newline="")
        file.chmod(0o600)
        said["callback"] = secret
        assert [secret_in(proof(way))[1] for way in ways] == [secret] * len(ways)


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX")
@pytest.mark.parametrize(
    "mode, fine",
    [(0o600, True), (0o400, True), (0o440, True), (0o604, False), (0o602, False), (0o620, False), (0o601, False)],
    ids=lambda value: oct(value) if isinstance(value, int) and value > 1 else str(value),
)
def test_a_secret_that_others_can_touch_is_none(tmp_path: Path, mode: int, fine: bool) -> None:
    file = tmp_path / "secret"
    file.write_text("secret")
    file.chmod(mode)
    if fine:
        assert secret_in(proof(ClientSecret.from_file(file))) == (PLANNER, "secret")
    else:
        with pytest.raises(CredentialsError, match="is open to others"):
            proof(ClientSecret.from_file(file))


def _raises() -> str:
    raise RuntimeError("the secret is s3cr3t")


async def _never() -> str:
    await asyncio.sleep(60)
    return "s3cr3t"


SOURCES: dict[str, Callable[[Path], ClientSecret]] = {
    "no variable": lambda _: ClientSecret.from_environment("A2A_TEST_NO_SUCH_SECRET"),
    "no file": lambda folder: ClientSecret.from_file(folder / "nothing"),
    "a folder": lambda folder: ClientSecret.from_file(folder),
    "an empty file": lambda folder: ClientSecret.from_file(_file(folder, "")),
    "a file of two lines": lambda folder: ClientSecret.from_file(_file(folder, "s3cr3t\ns3cr3t\n")),
    "a large file": lambda folder: ClientSecret.from_file(_file(folder, "s3cr3t" * 1000)),
    "a callback that fails": lambda _: ClientSecret(_raises),
    "a callback that never answers": lambda _: ClientSecret(_never),
}


def _file(folder: Path, text: str) -> Path:
    path = folder / "secret"
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("row", SOURCES)
def test_a_secret_that_cannot_be_had(tmp_path: Path, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "SECRET_SECONDS", 0.1 if "never" in row else 10)
    with pytest.raises(ConfigurationError) as caught:
        proof(SOURCES[row](tmp_path))
    assert type(caught.value) is CredentialsError
    error: BaseException | None = caught.value
    while error is not None:  # nor in what it came from
        assert "s3cr3t" not in str(error)
        error = error.__cause__ or error.__context__


def test_a_callback_that_blocks_does_not_stop_the_event_loop() -> None:
    turns = 0

    def blocks() -> str:
        end = time.monotonic() + 20
        while turns < 3 and time.monotonic() < end:  # only the event loop, which goes on, ends this
            time.sleep(0.001)
        return "secret" if turns >= 3 else ""

    async def work() -> ClientProof:
        nonlocal turns
        asked = asyncio.create_task(
            ClientSecret(blocks).prove(client_id="x", issuer=ISSUER, credentials=CREDENTIALS, now=NOW)
        )
        while not asked.done():
            turns += 1
            await asyncio.sleep(0.001)
        return await asked

    assert secret_in(run(work()))[1] == "secret"


def test_the_secret_goes_to_the_token_and_the_revocation_endpoint_and_nowhere_else() -> None:
    server = Fake(token_answer=answers(401, json={"error": "invalid_client"}))
    server.metadata["token_endpoint_auth_methods_supported"] = ["client_secret_basic"]
    said = ["old"]

    async def work() -> None:
        source = server.source(authentication=ClientSecret(lambda: said[0]))
        error = await refused(source, TokenRequestRefused)
        assert isinstance(error, TokenRequestRefused) and error.error == "invalid_client"
        server.token_answer = None
        said[0] = "new"
        await source.revoke(await source.token())

    run(work())
    sent = [(r.url.path, r.headers.get("authorization")) for r in server.requests]
    basic = [httpx.BasicAuth(PLANNER.replace(":", "%3A").replace("/", "%2F"), s)._auth_header for s in ("old", "new")]
    assert sent == [
        ("/.well-known/oauth-authorization-server", None),
        ("/token", basic[0]),
        ("/token", basic[1]),
        ("/revoke", basic[1]),
    ]


@pytest.mark.parametrize("way", [lambda: ClientSecret("s3cret"), lambda: PrivateKeyJWT("s3cret.pem")])  # type: ignore[arg-type]
def test_what_is_no_key_and_no_callback_is_told_where_it_is_given(way: Any) -> None:
    with pytest.raises(ConfigurationError, match="got a value of type str") as caught:
        way()
    assert "s3cret" not in str(caught.value)
