"""The validator and the client of "How to Secure A2A Agents with OAuth2", and ours: what each does in the same place.

The sample is written down as the article has it, on PyJWT and Starlette. Both sides get the same tokens, and keys from
the same real https server; the issuer signs with RS256, for the sample knows no other algorithm. Every row asserts what
the sample does wrong, so that a row that shows nothing fails.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwcrypto.jwk import JWK
from jwt import PyJWKClient
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.endpoints import over_web, web_roots
from tests.forge import Forge
from trust.authorize import members_of
from trust.clock import wall_clock
from trust.credentials import Credentials
from trust.identity import PEER_EXTENSION
from trust.middleware import AGENT_CARD_PATH, Gate
from trust.oauth.client import TokenSource
from trust.oauth.keys import RemoteKeys
from trust.oauth.tokens import TokenValidator
from trust.peers import PeerVerifier

AUDIENCE = "https://expense-agent.example.com"
FORGE = Forge()
AGENT, CALLER, THIEF = (FORGE.leaf(f"/{name}") for name in ("expense", "planner", "thief"))
KEY, ATTACKER = (rsa.generate_private_key(65537, 2048) for _ in range(2))
GONE: Any = object()
SECONDS = 20  # that anything may take


# The sample, as the article has it; `validator` is an argument here.


class SampleValidator:
    def __init__(self, issuer: str, jwks_url: str, audience: str) -> None:
        self.issuer = issuer
        self.audience = audience
        self.jwks_client = PyJWKClient(jwks_url)

    def validate(self, token: str) -> dict[str, Any]:
        signing_key = self.jwks_client.get_signing_key_from_jwt(token)
        claims: dict[str, Any] = jwt.decode(
            token,
            signing_key.key,
            algorithms=["RS256"],
            audience=self.audience,
            issuer=self.issuer,
        )
        return claims

    def has_scope(self, claims: dict[str, Any], required_scope: str) -> bool:
        token_scopes = claims.get("scope", "").split(" ")
        return required_scope in token_scopes


def sample_middleware(validator: SampleValidator) -> Callable[..., Any]:
    async def auth_middleware(request: Request, call_next: Any) -> Response:
        if request.url.path == "/.well-known/agent-card.json":
            return await call_next(request)  # type: ignore[no-any-return]  # the article has no types
        auth_header = request.headers.get("Authorization")
        if not auth_header or not auth_header.startswith("Bearer "):
            return JSONResponse(status_code=401, content={"error": "Missing or invalid Authorization header"})
        token = auth_header.split("Bearer ")[1]
        try:
            claims = validator.validate(token)
        except jwt.InvalidTokenError as e:
            return JSONResponse(status_code=401, content={"error": f"Invalid token: {e!s}"})
        if not validator.has_scope(claims, "agent:execute"):
            return JSONResponse(status_code=403, content={"error": "Insufficient scope. Required: agent:execute"})
        request.state.auth_claims = claims
        return await call_next(request)  # type: ignore[no-any-return]  # the article has no types

    return auth_middleware


class SampleClient:
    def __init__(self, token_url: str, client_id: str, client_secret: str) -> None:
        self.token_url = token_url
        self.client_id = client_id
        self.client_secret = client_secret
        self._token: str | None = None

    async def get_token(self) -> str:
        async with httpx.AsyncClient() as http:
            response = await http.post(
                self.token_url,
                data={
                    "grant_type": "client_credentials",
                    "client_id": self.client_id,
                    "client_secret": self.client_secret,
                    "scope": "agent:execute",
                },
            )
            response.raise_for_status()
            self._token = response.json()["access_token"]
            return str(self._token)


# The issuer of both.


def public(key: rsa.RSAPrivateKey, kid: str) -> dict[str, Any]:
    return {**JWK.from_pyca(key.public_key()).export_public(as_dict=True), "kid": kid, "alg": "RS256", "use": "sig"}


@dataclass
class Issuer:
    """An https server in a thread of its own, so that it answers while a caller blocks its event loop."""

    url: str = ""
    status: int = 200
    holds: float = 0  # seconds, at most, that an answer waits for `release`
    asked: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    released: list[bool] = field(default_factory=list)  # for each answer, whether it was released in time
    forms: list[dict[str, list[str]]] = field(default_factory=list)
    callers: set[Any] = field(default_factory=set)  # connections that asked for tokens

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/token":
            body = (await receive())["body"]
            self.forms.append(parse_qs(body.decode()))
            self.callers.add(tuple(scope["client"]))
            answer: Any = {
                "access_token": self.token(),
                "token_type": "Bearer",
                "expires_in": 600,
                "scope": "agent:execute",
            }
        else:
            self.asked.set()
            if self.holds:
                self.released.append(await asyncio.to_thread(self.release.wait, self.holds))
            answer = {"keys": [public(KEY, "k1")]}
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    def token(self, *, key: Any = KEY, kid: str = "k1", typ: str = "at+jwt", **claims: Any) -> str:
        now = int(time.time())
        valid = {
            "iss": self.url,
            "sub": str(CALLER.agent_id),
            "client_id": str(CALLER.agent_id),
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + 600,
            "jti": secrets.token_urlsafe(),
            "scope": "agent:execute",
            "cnf": {"x5t#S256": CALLER.thumbprint},
            **claims,
        }
        left = {name: value for name, value in valid.items() if value is not GONE}
        return jwt.encode(left, key, "RS256", headers={"kid": kid, "typ": typ})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], str, Path]]:
    """The running server, which asks the issuer of the test, its URL, and the file of roots that clients trust."""
    folder = tmp_path_factory.mktemp("web")
    current: dict[str, Any] = {}
    started: Future[str] = Future()
    ended = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await current["issuer"](scope, receive, send)

    async def serve() -> None:
        async with over_web(app, folder) as url:
            started.set_result(url.removesuffix("/bundle"))
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        yield current, started.result(SECONDS), web_roots(folder)
    finally:
        ended.set()
        thread.join(SECONDS)


@dataclass
class Both:
    """The sample and ours in front of the same application."""

    issuer: Issuer
    roots: Path

    async def sample(self, authorization: list[str], **_: Any) -> httpx.Response:
        app = Starlette(routes=[Route("/tasks/send", done, methods=["POST"])])
        validator = SampleValidator(self.issuer.url, f"{self.issuer.url}/jwks", AUDIENCE)
        app.add_middleware(BaseHTTPMiddleware, dispatch=sample_middleware(validator))
        return await ask(app, authorization)

    async def ours(self, authorization: list[str], *, peer: Credentials | None = CALLER) -> httpx.Response:
        context = ssl.create_default_context(cafile=self.roots)
        async with httpx.AsyncClient(verify=context, trust_env=False) as http:
            keys = RemoteKeys(f"{self.issuer.url}/jwks", http)
            validator = TokenValidator(issuer=self.issuer.url, audience=AUDIENCE, keys=keys, unsafe_rs256=True)
            gate = Gate(
                Starlette(routes=[Route("/tasks/send", done, methods=["POST"])]),
                source=AGENT,
                bundles=FORGE.bundles,
                authorize=members_of("fleet.example"),
                tokens=validator,
                scope="agent:execute",
                signatures="optional",
                public_paths=(AGENT_CARD_PATH,),
            )

            async def with_peer(scope: Any, receive: Any, send: Any) -> None:
                if peer is not None:
                    verified = PeerVerifier(FORGE.bundles).verify(peer.chain_der, now=wall_clock(), usage="client")
                    scope = {**scope, "extensions": {PEER_EXTENSION: verified}}
                await gate(scope, receive, send)

            return await ask(with_peer, authorization)


async def done(request: Request) -> Response:
    return JSONResponse({"done": True})


async def ask(app: Any, authorization: list[str]) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=AUDIENCE) as client:
        return await client.post("/tasks/send", headers=[("authorization", value) for value in authorization])


@pytest.fixture
def both(served: tuple[dict[str, Any], str, Path], monkeypatch: pytest.MonkeyPatch) -> Both:
    current, url, roots = served
    monkeypatch.setenv("SSL_CERT_FILE", str(roots))  # how the sample, which names no roots, comes to trust this one
    current["issuer"] = Issuer(url=url)
    return Both(current["issuer"], roots)


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def test_what_is_right_passes_both(both: Both) -> None:
    bearer = [f"Bearer {both.issuer.token()}"]
    for side in (both.sample, both.ours):
        answer = run(side(bearer))
        assert (answer.status_code, answer.json()) == (200, {"done": True})


def test_what_is_forged_passes_neither(both: Both) -> None:
    bearer = [f"Bearer {both.issuer.token(key=ATTACKER)}"]
    assert [run(side(bearer)).status_code for side in (both.sample, both.ours)] == [401, 401]


Row = tuple[Callable[[Issuer], list[str]], dict[str, Any], int, int, str]


def bearer(**changes: Any) -> Callable[[Issuer], list[str]]:
    return lambda issuer: [f"Bearer {issuer.token(**changes)}"]


# What is sent, how it comes to us, the status of the sample, and ours with its code.
ROWS: dict[str, Row] = {
    "bound token without a certificate": (bearer(), {"peer": None}, 200, 401, "invalid_token"),
    "bound token with the thief's certificate": (bearer(), {"peer": THIEF}, 200, 401, "invalid_token"),
    "token that is bound to nothing": (bearer(cnf=GONE), {}, 200, 401, "invalid_token"),
    "no exp": (bearer(exp=GONE), {}, 200, 401, "invalid_token"),
    "an ID token": (bearer(typ="JWT", nonce="n", client_id=GONE, at_hash="x"), {}, 200, 401, "invalid_token"),
    "a token of a year": (bearer(exp=int(time.time()) + 365 * 86400), {}, 200, 401, "invalid_token"),
    "unknown kid": (bearer(key=ATTACKER, kid="k2"), {}, 500, 401, "invalid_token"),
    "scope as a list": (bearer(scope=["agent:execute"]), {}, 500, 401, "invalid_token"),
    "bearer in lower case": (lambda issuer: [f"bearer {issuer.token()}"], {}, 401, 200, ""),
    "two Authorization headers": (
        lambda issuer: [f"Bearer {issuer.token()}", f"Bearer {issuer.token(sub='another')}"],
        {},
        200,
        400,
        "invalid_request",
    ),
    "a word after the token": (lambda issuer: [f"Bearer {issuer.token()}Bearer x"], {}, 200, 400, "invalid_request"),
    "a scope by wildcard": (bearer(scope="agent:*"), {}, 403, 200, ""),
}


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str, both: Both) -> None:
    headers, options, theirs, status, code = ROWS[name]
    sent = headers(both.issuer)
    assert run(both.sample(sent)).status_code == theirs
    answer = run(both.ours(sent, **options))
    assert (answer.status_code, answer.json()) == (status, {"error": code} if code else {"done": True})


def test_an_outage_of_the_jwks(both: Both) -> None:
    both.issuer.status = 500
    sent = [f"Bearer {both.issuer.token()}"]
    assert run(both.sample(sent)).status_code == 500
    answer = run(both.ours(sent))
    assert (answer.status_code, answer.json()) == (503, {"error": "temporarily_unavailable"})
    assert answer.headers["retry-after"]


def test_the_callers_learn_what_the_library_says(both: Both) -> None:
    now = int(time.time())
    sent = [f"Bearer {both.issuer.token(iat=now - 60, exp=now - 1)}"]
    assert run(both.sample(sent)).json() == {"error": "Invalid token: Signature has expired"}
    assert run(both.ours(sent)).json() == {"error": "invalid_token"}


@pytest.mark.parametrize(
    ("sent", "challenge"), [([], "Bearer resource_metadata="), (["Bearer x.y.z"], 'Bearer error="invalid_token", ')]
)
def test_the_challenge_of_a_refusal(sent: list[str], challenge: str, both: Both) -> None:
    theirs, ours = run(both.sample(sent)), run(both.ours(sent))
    assert (theirs.status_code, ours.status_code) == (401, 401)
    assert "www-authenticate" not in theirs.headers
    assert ours.headers["www-authenticate"].startswith(challenge)


@pytest.mark.parametrize(("side", "holds", "goes_on"), [("sample", 0.5, False), ("ours", 2.5, True)])
def test_the_event_loop_during_the_fetch_of_keys(side: str, holds: float, goes_on: bool, both: Both) -> None:
    """The keys are held back until another task of the caller's event loop releases them, or for `holds` seconds."""
    issuer = both.issuer
    issuer.holds = holds

    async def another_task() -> None:
        while not issuer.asked.is_set():
            await asyncio.sleep(0.001)
        issuer.release.set()

    async def go() -> None:
        other = asyncio.create_task(another_task())
        answer = await getattr(both, side)([f"Bearer {issuer.token()}"])
        assert answer.status_code == 200
        await other

    run(asyncio.wait_for(go(), SECONDS))
    assert issuer.released == [goes_on]


def test_tokens_for_two_calls(both: Both) -> None:
    issuer = both.issuer

    async def sample() -> None:
        client = SampleClient(f"{issuer.url}/token", "planner", "secret")
        assert await client.get_token() != await client.get_token()

    async def ours() -> None:
        context = ssl.create_default_context(cafile=both.roots)
        async with httpx.AsyncClient(verify=context, trust_env=False) as http:
            tokens = TokenSource(
                issuer=issuer.url,
                token_endpoint=f"{issuer.url}/token",
                resource=AUDIENCE,
                scopes=["agent:execute"],
                http=http,
                source=CALLER,
            )
            assert (await tokens.token()).value == (await tokens.token()).value

    run(sample())
    assert (len(issuer.forms), len(issuer.callers)) == (2, 2)  # each over a connection of its own
    assert [form["client_secret"] for form in issuer.forms] == [["secret"]] * 2
    issuer.forms.clear()
    run(ours())
    assert len(issuer.forms) == 1
    assert "client_secret" not in issuer.forms[0]
