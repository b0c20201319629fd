"""What of an issuer's answers is taken, and where its keys are looked for."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.trust.oauth.keys.issuer import ISSUER, NEW, NOW, OLD, SECOND, URL, Answer, Issuer, finds
from trust.errors import ConfigurationError, KeysUnavailable, TrustError
from trust.oauth.fetch import MAX_ANSWER_BYTES
from trust.oauth.keys import RemoteKeys, public_jwks
from trust.oauth.keys.jwks import MAX_JWKS_BYTES, MAX_KEYS
from trust.oauth.keys.remote import FAILURE_REST


async def _endless() -> AsyncIterator[bytes]:
    while True:
        yield b" " * 4096


def typed(content: Any, content_type: str | None = "application/json", **headers: str) -> Answer:
    """200 with this body, of this type."""
    named = {} if content_type is None else {"content-type": content_type}
    return lambda _: httpx.Response(200, headers={**named, **headers}, content=content)


GOOD = json.dumps(public_jwks([OLD])).encode()
BAD_ANSWERS: dict[str, Answer] = {
    "redirect": lambda _: httpx.Response(302, headers={"location": "https://evil.example/jwks"}),
    "error": lambda _: httpx.Response(500, json=public_jwks([OLD])),
    "created": lambda _: httpx.Response(201, json=public_jwks([OLD])),
    "not JSON": typed("<html>"),
    "not a JWKS": typed("[]"),
    "duplicate members": typed('{"keys":[],"keys":[]}'),
    "too many keys": lambda _: httpx.Response(200, json=public_jwks([OLD] * (MAX_KEYS + 1))),
    "too large": typed(GOOD + b" " * MAX_JWKS_BYTES),
    "endless": lambda _: httpx.Response(200, headers={"content-type": "application/json"}, content=_endless()),
    "compressed": typed(gzip.compress(GOOD), **{"content-encoding": "gzip"}),
    "compressed and not": typed(gzip.compress(GOOD), **{"content-encoding": "identity, gzip"}),
    "no type": typed(GOOD, None),
    "HTML": typed(GOOD, "text/html"),
    "text": typed(GOOD, "text/plain; charset=utf-8"),
    "script": typed(GOOD, "application/javascript"),
    "type that begins alike": typed(GOOD, "application/jsonp"),
    "one key alone": typed(GOOD, "application/jwk+json"),
    "two types": typed(GOOD, "application/json, text/html"),
    "timeout": lambda _: httpx.ReadTimeout("slow"),
    "TLS refused": lambda _: TrustError("handshake"),
    "closed client": lambda _: RuntimeError("closed"),
}


@pytest.mark.parametrize("content_type", ["application/jwk-set+json", "Application/JSON", "application/json;a=b"])
def test_the_types_that_are_taken(content_type: str) -> None:
    async def run() -> None:
        issuer = Issuer()
        issuer.answer = typed(GOOD, content_type)
        keys = RemoteKeys(URL, issuer.client())
        await keys.prepare(OLD.kid, now=NOW)
        assert finds(keys, OLD, NOW)

    asyncio.run(run())


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
        assert finds(keys, OLD, NOW + FAILURE_REST * 2)
        assert [str(r.url) for r in issuer.requests] == [URL] * 3

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
        "https://user@auth.example/jwks",
        "https://user:password@auth.example/jwks",
        "https://auth.example/jwks#part",
        "https://auth.example/jwks\n",
        None,
        b"https://auth.example/jwks",
    ],
)
def test_only_https(url: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RemoteKeys(url, Issuer().client())
    assert "password" not in str(caught.value)


# By the name of the issuer.

METADATA = {"issuer": ISSUER, "jwks_uri": URL, "token_endpoint": "https://auth.example/token"}
METADATA_URL = "https://auth.example/.well-known/oauth-authorization-server/tenant"


def documents(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**METADATA, **changes}.items() if value is not None}


def test_of_an_issuer_whose_metadata_says_where() -> None:
    async def run() -> None:
        issuer = Issuer(OLD)
        at = {METADATA_URL: METADATA, URL: public_jwks([OLD])}
        issuer.answer = lambda request: httpx.Response(200, json=at[str(request.url)])
        keys = RemoteKeys.of_issuer(ISSUER, issuer.client())
        await asyncio.gather(*(keys.prepare(OLD.kid, now=NOW) for _ in range(200)))
        assert finds(keys, OLD, NOW)
        assert [str(r.url) for r in issuer.requests] == [METADATA_URL, URL]
        # The issuer moves its keys: the next fetch finds them.
        elsewhere = "https://auth.example/new/jwks"
        at.clear()
        at.update({METADATA_URL: documents(jwks_uri=elsewhere), elsewhere: public_jwks([NEW])})
        await keys.prepare(NEW.kid, now=NOW + SECOND)
        assert finds(keys, NEW, NOW + SECOND)
        assert not finds(keys, OLD, NOW + SECOND)

    asyncio.run(run())


BAD_METADATA: dict[str, Answer] = {
    "another issuer's": lambda _: httpx.Response(200, json=documents(issuer="https://auth.example/other")),
    "with a slash more": lambda _: httpx.Response(200, json=documents(issuer=ISSUER + "/")),
    "of nobody": lambda _: httpx.Response(200, json=documents(issuer=None)),
    "no keys": lambda _: httpx.Response(200, json=documents(jwks_uri=None)),
    "keys at another host": lambda _: httpx.Response(200, json=documents(jwks_uri="https://evil.example/jwks")),
    "keys at another port": lambda _: httpx.Response(200, json=documents(jwks_uri="https://auth.example:444/jwks")),
    "keys without TLS": lambda _: httpx.Response(200, json=documents(jwks_uri="http://auth.example/jwks")),
    "keys at a user": lambda _: httpx.Response(200, json=documents(jwks_uri="https://evil@auth.example/jwks")),
    "keys in a file": lambda _: httpx.Response(200, json=documents(jwks_uri="file:///etc/passwd")),
    "keys at a number": lambda _: httpx.Response(200, json=documents(jwks_uri=7)),
    "alias at another host": lambda _: httpx.Response(
        200, json=documents(mtls_endpoint_aliases={"jwks_uri": "https://evil.example/jwks"})
    ),
    "a list": lambda _: httpx.Response(200, json=[METADATA]),
    "duplicate members": typed(json.dumps(METADATA)[:-1] + f',"issuer":"{ISSUER}"}}'),
    "as a key set": typed(json.dumps(METADATA), "application/jwk-set+json"),
    "too large": typed(json.dumps(METADATA) + " " * MAX_ANSWER_BYTES),
    "redirect": lambda _: httpx.Response(302, headers={"location": "https://evil.example/"}),
    "missing": lambda _: httpx.Response(404),
}


@pytest.mark.parametrize("answer", BAD_METADATA.values(), ids=BAD_METADATA)
def test_metadata_that_does_not_say_where(answer: Answer) -> None:
    """Nothing but the metadata is asked for, and the keys that are there stay."""

    async def run() -> None:
        issuer = Issuer(OLD)
        issuer.answer = answer
        keys = RemoteKeys.of_issuer(ISSUER, issuer.client(follow_redirects=True))
        with pytest.raises(KeysUnavailable):
            await keys.prepare(OLD.kid, now=NOW)
        assert [str(r.url) for r in issuer.requests] == [METADATA_URL]
        at = {METADATA_URL: METADATA, URL: public_jwks([OLD])}
        issuer.answer = lambda request: httpx.Response(200, json=at[str(request.url)])
        await keys.prepare(OLD.kid, now=NOW + FAILURE_REST)
        issuer.answer = answer
        await keys.prepare("made up", now=NOW + FAILURE_REST)
        assert finds(keys, OLD, NOW + FAILURE_REST)
        assert {r.url.host for r in issuer.requests} == {"auth.example"}

    asyncio.run(run())


@pytest.mark.parametrize("issuer", ["http://auth.example", "https://auth.example?a", "https://u@auth.example", ""])
def test_only_an_issuer(issuer: str) -> None:
    with pytest.raises(ConfigurationError):
        RemoteKeys.of_issuer(issuer, Issuer().client())
