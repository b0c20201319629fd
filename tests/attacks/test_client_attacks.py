"""The OAuth client against servers, resources and cards that lie, over real mutual TLS.

The good answer is taken; each row changes one thing in it and names the error. No row may make the client send
anything to another path or host, and no error, log line or `repr` may show a token or a secret.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tests.forge import Forge
from trust.agent import agent_client, serving
from trust.authorize import exactly, members_of
from trust.errors import (
    AuthorizationServerUnavailable,
    CardRefused,
    ConfigurationError,
    CredentialsError,
    MetadataRefused,
    OriginRefused,
    ScopeNotGranted,
    TokenRequestRefused,
    TokenResponseRefused,
    TrustError,
)
from trust.oauth.cards import CardPolicy, secured
from trust.oauth.client import ClientSecret, TokenSource, talk
from trust.oauth.metadata import ACCESS_TOKEN_TYPE, WELL_KNOWN, WELL_KNOWN_RESOURCE
from trust.peers import PeerVerifier
from trust.signing.cards import VerifiedCard, sign_card, verify_card

FORGE = Forge()
AUTHORITY = FORGE.leaf("/authority")
PLANNER = FORGE.leaf("/planner")
BILLING = FORGE.leaf("/billing")
SECRET = "correct:horse+battery%staple /?&="
TOKEN = "eyJ.stolen-if-you-read.this"
REFRESH = "refresh-stolen-if-you-read-this"
SUBJECT = "subject-stolen-if-you-read-this"
SCOPES = ("agent:execute", "temporal:20min")
AGENT = "https://billing.fleet.example"


class Liar:
    """An authorization server and a resource that answer well, until a row changes what they say."""

    def __init__(self) -> None:
        self.issuer = ""
        self.reset()

    def reset(self) -> None:
        self.seen: list[tuple[str, dict[str, str], dict[str, str]]] = []
        self.answer: dict[str, Callable[[], Response]] = {}
        self.documents: dict[str, dict[str, Any]] = {
            WELL_KNOWN: {
                "issuer": self.issuer,
                "token_endpoint": f"{self.issuer}/token",
                "revocation_endpoint": f"{self.issuer}/revoke",
                "token_endpoint_auth_methods_supported": ["tls_client_auth", "client_secret_basic"],
                "tls_client_certificate_bound_access_tokens": True,
            },
            WELL_KNOWN_RESOURCE: {
                "resource": str(BILLING.agent_id),
                "authorization_servers": ["https://other.example", self.issuer],
                "bearer_methods_supported": ["header"],
            },
            "/token": {"access_token": TOKEN, "token_type": "Bearer", "expires_in": 600, "refresh_token": REFRESH},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        request = Request(scope, receive)
        self.seen.append(
            (request.url.path, dict(request.headers), dict(httpx.QueryParams((await request.body()).decode())))
        )
        answer = self.answer.get(request.url.path)
        document = self.documents.get(request.url.path)
        if request.url.path == "/revoke":
            answer = answer or Response
        response = answer() if answer else PlainTextResponse("?", 404) if document is None else JSONResponse(document)
        await response(scope, receive, send)

    @property
    def paths(self) -> list[str]:
        return [path for path, _, _ in self.seen]


class Ground:
    """The liar on a real socket, and the planner's client for it, in one event loop for all rows."""

    def __init__(self) -> None:
        self.liar = Liar()
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self.http: httpx.AsyncClient
        self.run(self._start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    async def _start(self) -> None:
        members = members_of("fleet.example")
        server = await self._stack.enter_async_context(
            serving(self.liar, source=AUTHORITY, bundles=FORGE.bundles, authorize=members)
        )
        self.http = await self._stack.enter_async_context(
            agent_client(source=PLANNER, bundles=FORGE.bundles, authorize=exactly(AUTHORITY.agent_id))
        )
        self.liar.issuer = server.url

    def close(self) -> None:
        self.run(self._stack.aclose())
        self._runner.close()

    def source(self, **changes: Any) -> TokenSource:
        settings: dict[str, Any] = {
            "issuer": self.liar.issuer,
            "resource": BILLING.agent_id,
            "scopes": SCOPES,
            "origins": [AGENT],
            "http": self.http,
            "source": PLANNER,
            "authentication": ClientSecret(lambda: SECRET),
            **changes,
        }
        return TokenSource(**settings)


@pytest.fixture(scope="module")
def started() -> Iterator[Ground]:
    ground = Ground()
    yield ground
    ground.close()


@pytest.fixture
def ground(started: Ground, caplog: pytest.LogCaptureFixture) -> Iterator[Ground]:
    started.liar.reset()
    yield started
    assert not leaks(caplog.text)


def leaks(text: str) -> list[str]:
    return [secret for secret in (SECRET, TOKEN, REFRESH, SUBJECT, *SECRET.split(":")) if secret in text]


def refused(ground: Ground, work: Coroutine[Any, Any, Any], expected: type[TrustError]) -> None:
    with pytest.raises(TrustError) as caught:
        ground.run(work)
    assert type(caught.value) is expected
    assert not leaks("".join(traceback.format_exception(caught.value)) + repr(caught.value))


async def token_of(source: TokenSource) -> str:
    return (await source.token()).value


def test_the_good_answers_are_taken(ground: Ground) -> None:
    """So that the broken ones below fail for what is broken in them."""
    source = ground.source()
    assert ground.run(token_of(source)) == TOKEN
    assert ground.liar.paths == [WELL_KNOWN, "/token"]
    _, headers, form = ground.liar.seen[-1]
    scheme, _, pair = headers["authorization"].partition(" ")
    name, secret = base64.b64decode(pair, validate=True).decode().split(":")
    assert (scheme, unquote_plus(name), unquote_plus(secret)) == ("Basic", str(PLANNER.agent_id), SECRET)
    assert form == {
        "grant_type": "client_credentials",
        "client_id": str(PLANNER.agent_id),
        "resource": str(BILLING.agent_id),
        "scope": " ".join(SCOPES),
    }


HUGE = json.dumps({"padding": "x" * (64 << 10)}).encode()


def drip() -> StreamingResponse:
    async def bytes_for_ever() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.05)

    return StreamingResponse(bytes_for_ever(), media_type="application/json")


def cut() -> StreamingResponse:
    async def begin() -> AsyncIterator[bytes]:
        yield b'{"access_token":'
        raise ConnectionResetError("cut")

    return StreamingResponse(begin(), media_type="application/json")


def raw(content: bytes, media_type: str | None = "application/json", status: int = 200, **headers: str) -> Response:
    return Response(content, status, {name.replace("_", "-"): value for name, value in headers.items()}, media_type)


# What each of the three documents may be instead of one: (answer, whether it is a server in trouble).
BROKEN: dict[str, tuple[Callable[[], Response], bool]] = {
    "HTML": (lambda: HTMLResponse("<html>"), False),
    "no content type": (lambda: raw(b"{}", None), False),
    "JSON by name only": (lambda: raw(b"<html>"), False),
    "JSON as text": (lambda: raw(b"{}", "text/json"), False),
    "list": (lambda: raw(b"[]"), False),
    "duplicate member": (lambda: raw(b'{"issuer":"https://a","issuer":"https://b"}'), False),
    "NaN": (lambda: raw(b'{"expires_in":NaN}'), False),
    "deep": (lambda: raw(b'{"a":' * 40 + b"1" + b"}" * 40), False),
    "not UTF-8": (lambda: raw(b'{"issuer":"\xff"}'), False),
    "huge": (lambda: raw(HUGE), False),
    "compressed": (lambda: raw(gzip.compress(b"{}" + b" " * (1 << 20)), content_encoding="gzip"), False),
    "redirect": (lambda: raw(b"{}", status=307, location="/stolen"), False),
    "see other": (lambda: raw(b"{}", status=303, location="/stolen"), False),
    "not found": (lambda: raw(b"{}", status=404), False),
    "no content": (lambda: Response(status_code=204), False),
    "too slow": (drip, True),
    "cut": (cut, True),
    "500": (lambda: raw(b"{}", status=500), True),
    "503": (lambda: raw(b"{}", status=503), True),
    "429": (lambda: raw(b"{}", status=429), True),
}


@pytest.mark.parametrize("row", BROKEN)
@pytest.mark.parametrize(
    "path, malformed",
    [(WELL_KNOWN, MetadataRefused), ("/token", TokenResponseRefused), (WELL_KNOWN_RESOURCE, MetadataRefused)],
)
def test_answers_that_are_no_answers(
    ground: Ground, path: str, malformed: type[TrustError], row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, trouble = BROKEN[row]
    if row == "too slow":
        monkeypatch.setattr(talk, "FETCH_SECONDS", 0.3)
    ground.liar.answer[path] = answer
    if path == WELL_KNOWN_RESOURCE:
        work: Coroutine[Any, Any, Any] = by_resource(ground)
    else:
        work = ground.source().token()
    refused(ground, work, AuthorizationServerUnavailable if trouble else malformed)
    assert "/stolen" not in ground.liar.paths


ELSEWHERE = "https://evil.example/token"
METADATA: dict[str, dict[str, Any]] = {
    "another issuer": {"issuer": "https://evil.example"},
    "issuer with a slash more": {"issuer": "{issuer}/"},
    "issuer in upper case": {"issuer": "HTTPS://LOCALHOST"},
    "issuer a list": {"issuer": ["{issuer}"]},
    "no issuer": {"issuer": None},
    "tokens not bound": {"tls_client_certificate_bound_access_tokens": False},
    "tokens bound by text": {"tls_client_certificate_bound_access_tokens": "true"},
    "tokens bound by one": {"tls_client_certificate_bound_access_tokens": 1},
    "token endpoint elsewhere": {"token_endpoint": ELSEWHERE},
    "token endpoint in the clear": {"token_endpoint": "http://localhost/token"},
    "token endpoint on another port": {"token_endpoint": "https://localhost:1/token"},
    "token endpoint by a user": {"token_endpoint": "{issuer}@evil.example/token"},
    "token endpoint by a longer name": {"token_endpoint": "https://localhost.evil.example/token"},
    "token endpoint missing": {"token_endpoint": None},
    "token endpoint not a URL": {"token_endpoint": "https://[::1"},
    "token endpoint a list": {"token_endpoint": ["{issuer}/token"]},
    "alias elsewhere": {"mtls_endpoint_aliases": {"token_endpoint": ELSEWHERE}},
    "alias null": {"mtls_endpoint_aliases": {"token_endpoint": 7}},
    "aliases a list": {"mtls_endpoint_aliases": [ELSEWHERE]},
    "revocation endpoint elsewhere": {"revocation_endpoint": ELSEWHERE},
    "revocation alias elsewhere": {"mtls_endpoint_aliases": {"revocation_endpoint": ELSEWHERE}},
    "another authentication": {"token_endpoint_auth_methods_supported": ["tls_client_auth"]},
    "no authentication": {"token_endpoint_auth_methods_supported": []},
    "authentication a text": {"token_endpoint_auth_methods_supported": "client_secret_basic"},
    "too many ways": {"token_endpoint_auth_methods_supported": ["client_secret_basic"] * 65},
}


@pytest.mark.parametrize("row", METADATA)
def test_metadata_that_is_not_the_issuers(ground: Ground, row: str) -> None:
    changes = json.loads(json.dumps(METADATA[row]).replace("{issuer}", ground.liar.issuer))
    ground.liar.documents[WELL_KNOWN].update(changes)
    refused(ground, ground.source().token(), MetadataRefused)
    assert ground.liar.paths == [WELL_KNOWN]


TOKENS: dict[str, tuple[dict[str, Any], type[TrustError]]] = {
    "no token": ({"access_token": None}, TokenResponseRefused),
    "empty token": ({"access_token": ""}, TokenResponseRefused),
    "token of two lines": ({"access_token": f"{TOKEN}\r\nX-Injected: 1"}, TokenResponseRefused),
    "token with a line end": ({"access_token": f"{TOKEN}\n"}, TokenResponseRefused),
    "token with a space": ({"access_token": f"{TOKEN} x"}, TokenResponseRefused),
    "token of other letters": ({"access_token": "\u0430bc"}, TokenResponseRefused),
    "token a list": ({"access_token": [TOKEN]}, TokenResponseRefused),
    "huge token": ({"access_token": "a" * 8001}, TokenResponseRefused),
    "no type": ({"token_type": None}, TokenResponseRefused),
    "type N_A": ({"token_type": "N_A"}, TokenResponseRefused),
    "type MAC": ({"token_type": "mac"}, TokenResponseRefused),
    "type a list": ({"token_type": ["Bearer"]}, TokenResponseRefused),
    "no expires_in": ({"expires_in": None}, TokenResponseRefused),
    "expires_in text": ({"expires_in": "600"}, TokenResponseRefused),
    "expires_in true": ({"expires_in": True}, TokenResponseRefused),
    "expires_in a fraction": ({"expires_in": 600.5}, TokenResponseRefused),
    "expires_in zero": ({"expires_in": 0}, TokenResponseRefused),
    "expires_in negative": ({"expires_in": -600}, TokenResponseRefused),
    "expires_in for ever": ({"expires_in": 10**12}, TokenResponseRefused),
    "one scope less": ({"scope": "agent:execute"}, ScopeNotGranted),
    "the time scope lost": ({"scope": "agent:execute agent:admin"}, ScopeNotGranted),
    "other scopes": ({"scope": "agent:read temporal:20min"}, ScopeNotGranted),
    "a wider scope": ({"scope": "agent:** temporal:20min"}, ScopeNotGranted),
    "empty scope": ({"scope": ""}, ScopeNotGranted),
    "scope a list": ({"scope": list(SCOPES)}, ScopeNotGranted),
    "refresh token a list": ({"refresh_token": [REFRESH]}, TokenResponseRefused),
    "refresh token of two lines": ({"refresh_token": f"{REFRESH}\r\nX: 1"}, TokenResponseRefused),
    "huge refresh token": ({"refresh_token": "a" * 8001}, TokenResponseRefused),
    "empty refresh token": ({"refresh_token": ""}, TokenResponseRefused),
}


@pytest.mark.parametrize("row", TOKENS)
def test_token_answers_that_break_the_rfcs(ground: Ground, row: str) -> None:
    changes, expected = TOKENS[row]
    ground.liar.documents["/token"].update(changes)
    refused(ground, ground.source().token(), expected)


@pytest.mark.parametrize("kind", [None, "urn:ietf:params:oauth:token-type:jwt", [ACCESS_TOKEN_TYPE], ""])
def test_an_exchange_that_returns_another_kind_of_token(ground: Ground, kind: object) -> None:
    ground.liar.documents["/token"]["issued_token_type"] = kind
    work = ground.source().exchange(SUBJECT, resource="https://ledger.example/", scopes=["agent:execute"])
    refused(ground, work, TokenResponseRefused)


NO: dict[str, tuple[Callable[[], Response], type[TrustError]]] = {
    "a code": (
        lambda: JSONResponse({"error": "invalid_client", "error_uri": SECRET}, 401),
        TokenRequestRefused,
    ),
    "a code that is a token": (lambda: JSONResponse({"error": TOKEN}, 400), TokenResponseRefused),
    "a code that is a secret": (lambda: JSONResponse({"error": SECRET}, 400), TokenResponseRefused),
    "a long code": (lambda: JSONResponse({"error": "x" * 65}, 400), TokenResponseRefused),
    "no code": (lambda: JSONResponse({"access_token": TOKEN}, 400), TokenResponseRefused),
    "a code of another type": (lambda: JSONResponse({"error": {"x": SECRET}}, 400), TokenResponseRefused),
    "created": (lambda: JSONResponse({"access_token": TOKEN}, 201), TokenResponseRefused),
}


@pytest.mark.parametrize("row", NO)
def test_what_a_server_says_with_its_no_is_not_repeated(ground: Ground, row: str) -> None:
    answer, expected = NO[row]
    ground.liar.answer["/token"] = answer
    refused(ground, ground.source().token(), expected)


# RFC 9728: the metadata of a resource chooses among our issuers.


async def by_resource(ground: Ground, **changes: Any) -> TokenSource:
    settings: dict[str, Any] = {
        "issuers": [ground.liar.issuer, "https://auth.fleet.example"],
        "resource": BILLING.agent_id,
        "scopes": SCOPES,
        "http": ground.http,
        "source": PLANNER,
        **changes,
    }
    return await TokenSource.from_resource(ground.liar.issuer, **settings)


def test_a_resource_that_names_one_of_our_issuers(ground: Ground) -> None:
    source = ground.run(by_resource(ground))
    assert ground.run(token_of(source)) == TOKEN
    assert ground.liar.paths == [WELL_KNOWN_RESOURCE, WELL_KNOWN, "/token"]
    assert ground.liar.seen[-1][2]["resource"] == str(BILLING.agent_id)
    source.check_origin(ground.liar.issuer + "/a2a")
    with pytest.raises(OriginRefused):
        source.check_origin("https://other.example")


RESOURCES: dict[str, dict[str, Any]] = {
    "another resource": {"resource": "spiffe://fleet.example/ledger"},
    "a resource of a longer name": {"resource": f"{BILLING.agent_id}/x"},
    "no resource": {"resource": None},
    "resource a list": {"resource": [str(BILLING.agent_id)]},
    "another issuer": {"authorization_servers": ["https://evil.example"]},
    "an issuer with a slash more": {"authorization_servers": ["https://auth.fleet.example/"]},
    "no issuers": {"authorization_servers": None},
    "empty issuers": {"authorization_servers": []},
    "issuers a text": {"authorization_servers": "https://auth.fleet.example"},
    "issuers of other types": {"authorization_servers": [7, "https://auth.fleet.example"]},
    "too many issuers": {"authorization_servers": ["https://auth.fleet.example"] * 65},
    "tokens in bodies only": {"bearer_methods_supported": ["body", "query"]},
    "methods a text": {"bearer_methods_supported": "header"},
}


@pytest.mark.parametrize("row", RESOURCES)
def test_resource_metadata_that_lies(ground: Ground, row: str) -> None:
    ground.liar.documents[WELL_KNOWN_RESOURCE].update(RESOURCES[row])
    refused(ground, by_resource(ground), MetadataRefused)
    assert ground.liar.paths == [WELL_KNOWN_RESOURCE]


# Agent Cards: signed by the very agent, and lying.


def card(**policy: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "issuer": "https://auth.fleet.example",
        "scopes": {"agent:execute": "call it"},
        **policy,
    }
    members = {
        "name": "billing",
        "description": "bills",
        "version": "1",
        "supportedInterfaces": [
            {"url": f"{url}/a2a", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
            for url in (AGENT, "https://elsewhere.example")
        ],
        "defaultInputModes": ["text/plain"],
        "defaultOutputModes": ["text/plain"],
        "skills": [
            {"id": skill, "name": skill, "description": "bills", "tags": ["bill"]} for skill in ("bill", "look")
        ],
    }
    return secured(members, CardPolicy(**settings))


def verified(members: dict[str, Any], *, mtls: bool = True) -> VerifiedCard:
    signed = sign_card(members, credentials=BILLING).text
    keys = PeerVerifier(FORGE.bundles)
    return verify_card(signed, keys=keys, agent=BILLING.agent_id, now=datetime.now(UTC), mtls=mtls)


def by_card(ground: Ground, found: Any, **changes: Any) -> TokenSource:
    settings: dict[str, Any] = {
        "issuers": ["https://other.fleet.example", "https://auth.fleet.example"],
        "resource": BILLING.agent_id,
        "scopes": ["agent:*", "temporal:20min"],
        "origins": [AGENT, "https://billing-2.fleet.example"],
        "http": ground.http,
        "source": PLANNER,
        **changes,
    }
    return TokenSource.from_card(found, **settings)


def test_a_card_chooses_within_our_policy(ground: Ground) -> None:
    ours = ground.liar.issuer
    source = by_card(ground, verified(card(issuer=ours)), issuers=["https://other.fleet.example", ours])
    assert ground.run(token_of(source)) == TOKEN
    assert ground.liar.seen[-1][2]["scope"] == "agent:execute temporal:20min"
    source.check_origin(AGENT)
    for url in ("https://elsewhere.example", "https://billing-2.fleet.example"):  # only the card's; only ours
        with pytest.raises(OriginRefused):
            source.check_origin(url)


def test_a_skill_may_need_less(ground: Ground) -> None:
    members = card(scopes={"agent:all": ""}, skills={"look": ("agent:look",), "bill": ("agent:all",)})
    found = VerifiedCard(card=members, kid="x", signer=None, uncovered=())
    ours = "temporal:20min"  # a caveat of our policy is in every token
    asked = [by_card(ground, found, skill=skill)._ask.scopes for skill in ("look", "bill", None)]
    assert asked == [("agent:look", ours), ("agent:all", ours), ("agent:all", ours)]


def without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(members: dict[str, Any]) -> None:
        del members[name]

    return change


def _no_mtls(members: dict[str, Any]) -> None:
    del members["securitySchemes"]["mtls"]
    del members["securityRequirements"][0]["schemes"]["mtls"]


def _a_way_without(members: dict[str, Any]) -> None:
    members["securityRequirements"].append({"schemes": {"mtls": {"list": ["spiffe"]}}})


def _other_token_url(members: dict[str, Any]) -> None:
    members["securitySchemes"]["oauth2"]["oauth2SecurityScheme"]["flows"]["clientCredentials"]["tokenUrl"] = ELSEWHERE


def _other_metadata(members: dict[str, Any]) -> None:
    members["securitySchemes"]["oauth2"]["oauth2SecurityScheme"]["oauth2MetadataUrl"] = "https://evil.example/x"


def _elsewhere(members: dict[str, Any]) -> None:
    members["supportedInterfaces"] = members["supportedInterfaces"][1:]


CARDS: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], None] | None]] = {
    "an issuer that is not ours": ({"issuer": "https://evil.example"}, None),
    "tokens of another server": ({}, _other_token_url),
    "metadata of another server": ({}, _other_metadata),
    "a scope beyond our policy": ({"scopes": {"agent:execute": "", "admin:all": ""}}, None),
    "a wider scope": ({"scopes": {"agent:**": ""}}, None),
    "only a time scope of our policy": ({"scopes": {"temporal:20min": "", "admin:all": ""}}, None),
    "an agent elsewhere": ({}, _elsewhere),
    "no mutual TLS": ({}, _no_mtls),
    "a way without OAuth2": ({}, _a_way_without),
    "no signed messages": ({"signatures": "optional"}, None),
    "a skill's scope beyond our policy": ({"skills": {"look": ("admin:all",), "bill": ("agent:execute",)}}, None),
    "no interface": ({}, lambda members: members.update(supportedInterfaces=[])),
    "no requirement": ({}, without("securityRequirements")),
}


@pytest.mark.parametrize("row", CARDS)
def test_cards_that_ask_for_less_or_for_more(ground: Ground, row: str) -> None:
    policy, change = CARDS[row]
    members = card(**policy)
    if change:
        change(members)
    # As it would be if the signature were good: some of these are no cards that anybody can sign.
    found = VerifiedCard(card=members, kid="x", signer=None, uncovered=())
    with pytest.raises(TrustError) as caught:
        by_card(ground, found, skill="look")
    assert type(caught.value) is CardRefused
    assert ground.liar.seen == []


@pytest.mark.parametrize("found", [card(), json.dumps(card()), None, object()], ids=["JSON", "text", "None", "object"])
def test_a_card_that_nobody_verified(ground: Ground, found: Any) -> None:
    with pytest.raises(ConfigurationError, match="was not verified"):
        by_card(ground, found)


# Secrets.


@pytest.mark.parametrize(
    "secret",
    ["", "two\r\nX-Injected: 1", "line\n", "\0", "\x7f", "gr\u00fcn", "a" * 1025, b"bytes", None, 7, ["x"]],
    ids=lambda secret: type(secret).__name__ + str(len(secret) if isinstance(secret, str) else ""),
)
def test_a_secret_that_is_none_is_never_sent(ground: Ground, secret: Any) -> None:
    refused(ground, ground.source(authentication=ClientSecret(lambda: secret)).token(), CredentialsError)
    assert "/token" not in ground.liar.paths


def test_nothing_shows_a_secret_or_a_token(ground: Ground, caplog: pytest.LogCaptureFixture) -> None:
    """In `repr`, in what the objects of a source hold, and in the log of a failure in the background."""
    caplog.set_level("DEBUG")
    authentication = ClientSecret(lambda: SECRET)
    source = ground.source(authentication=authentication)
    token = ground.run(source.token())
    ground.liar.documents["/token"]["issued_token_type"] = ACCESS_TOKEN_TYPE
    other = source.on_behalf_of(SUBJECT, resource="https://ledger.example/", scopes=["agent:execute"])
    ground.run(other.token())
    proof = ground.run(
        authentication.prove(client_id="x", issuer="https://a", credentials=PLANNER, now=datetime.now(UTC))
    )
    shown = [repr(thing) for thing in (token, source, other, authentication, proof, source._cache, source._ask)]
    shown += [repr(vars(thing)) for thing in (source, other, source._cache, source._cache.authority, authentication)]
    assert not leaks("".join(shown))
    ground.run(source.revoke(token))
    assert [form.get("token") for path, _, form in ground.liar.seen if path == "/revoke"] == [REFRESH, TOKEN]
