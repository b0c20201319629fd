from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from tests.authority import ACCESS_TOKEN, BILLING, CLIENTS, ISSUER, LEDGER, PLANNER, Authority, Trail, ask, exchange
from tests.forge import NOW
from trust.errors import ConfigurationError
from trust.identity import AgentID
from trust.oauth.keys import SigningKey, public_jwks
from trust.oauth.server import create_app, edge
from trust.oauth.server.clients import Client, ClientRegistry
from trust.oauth.server.store.tokens import TokenTable
from trust.oauth.server.throttle import FAILURES


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def test_metadata_says_what_is_really_there(authority: Authority) -> None:
    """RFC 8414: every endpoint, grant and way to authenticate that it names answers, and no other one does."""
    others = ("password", "authorization_code", "refresh_token", "implicit", "Client_Credentials")

    async def work() -> dict[str, Any]:
        async with authority.http(PLANNER) as http:
            answer = await http.get("/.well-known/oauth-authorization-server")
            assert answer.headers["content-type"] == "application/json"
            document: dict[str, Any] = answer.json()
            endpoints = {name: url for name, url in document.items() if name.endswith("_endpoint")}
            routes = [route for route in authority.app.routes if isinstance(route, Route)]
            posted = {route.path for route in routes if "POST" in (route.methods or ())}
            assert {url.removeprefix(ISSUER) for url in endpoints.values()} == posted
            for name, url in endpoints.items():
                assert (await http.get(url)).status_code == 405
                assert (await http.post(url, data={"client_id": "nobody"})).json() == {"error": "invalid_client"}
                assert "tls_client_auth" in document[f"{name}_auth_methods_supported"]
            for grant in (*document["grant_types_supported"], *others):
                answer = await http.post(document["token_endpoint"], data=ask(grant_type=grant))
                there = answer.json().get("error") != "unsupported_grant_type"
                assert there == (grant in document["grant_types_supported"]), grant
            jwks = (await http.get(document["jwks_uri"])).json()
            assert jwks == public_jwks([authority.key])
            assert {key["alg"] for key in jwks["keys"]} <= set(document["introspection_signing_alg_values_supported"])
            return document

    document = run(work())
    assert document["issuer"] == ISSUER
    assert document["tls_client_certificate_bound_access_tokens"] is True
    assert document["response_types_supported"] == []


def test_an_issuer_with_a_path_is_served_under_it(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.app = create_app(
        issuer=ISSUER + "/tenant",
        clients=authority.clients,
        store=authority.store,
        keys=[authority.key],
        audit=authority.trail,
    )

    async def work() -> None:
        async with authority.http(PLANNER) as http:
            metadata = (await http.get("/.well-known/oauth-authorization-server/tenant")).json()
            assert metadata["issuer"] == ISSUER + "/tenant"
            assert metadata["token_endpoint"] == ISSUER + "/tenant/token"
            assert (await http.get(metadata["jwks_uri"])).status_code == 200
            assert (await http.post(metadata["token_endpoint"], data=ask())).status_code == 200
            assert (await http.get("/.well-known/oauth-authorization-server")).status_code == 404

    run(work())


def test_jwks_publishes_every_key_and_no_private_member(tmp_path: Path) -> None:
    authority, coming = Authority(tmp_path), SigningKey.generate()
    authority.app = create_app(
        issuer=ISSUER,
        clients=authority.clients,
        store=authority.store,
        keys=[authority.key, coming],
        audit=authority.trail,
    )

    async def work() -> list[dict[str, str]]:
        async with authority.http(PLANNER) as http:
            return list((await http.get("/jwks")).json()["keys"])

    keys = run(work())
    assert [k["kid"] for k in keys] == [authority.key.kid, coming.kid]
    assert all(set(k) == {"kty", "crv", "x", "y", "kid", "use", "alg"} for k in keys)


def test_a_token_for_oneself(authority: Authority) -> None:
    answer: httpx.Response = run(authority.post(PLANNER, ask()))
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    members = answer.json()
    assert set(members) == {"access_token", "token_type", "expires_in", "scope"}
    assert (members["token_type"], members["expires_in"], members["scope"]) == ("Bearer", 600, ask()["scope"])
    token = authority.validate(members["access_token"], audience=BILLING, holder=PLANNER)
    assert (token.subject, token.client_id, token.audience) == (PLANNER, PLANNER, (BILLING,))
    assert token.scopes == tuple(ask()["scope"].split())
    assert token.thumbprint == authority.credentials(PLANNER).thumbprint
    assert (token.issued_at, token.expires_at, token.actors) == (NOW, NOW + timedelta(minutes=10), ())
    issued = authority.store.tokens.find(token.token_id)
    assert issued is not None
    assert (issued.parent_id, issued.root_id, issued.client_id, issued.subject) == (
        None,
        token.token_id,
        PLANNER,
        PLANNER,
    )
    assert authority.trail.records == [
        {
            "event": "token",
            "decision": "allow",
            "check": "all",
            "peer": PLANNER,
            "subject": PLANNER,
            "target": BILLING,
            "grant": "client_credentials",
            "client": PLANNER,
            "jti": token.token_id,
            "scope": ask()["scope"],
            "parent": "",
        }
    ]


def test_a_token_on_behalf_of_the_caller(authority: Authority) -> None:
    async def work() -> tuple[str, httpx.Response]:
        first = await authority.token(PLANNER, ask())
        authority.clock.advance(minutes=5)
        return first, await authority.post(BILLING, exchange(first))

    first, answer = run(work())
    assert answer.status_code == 200
    assert answer.json()["issued_token_type"] == ACCESS_TOKEN
    assert answer.json()["token_type"] == "Bearer"
    parent = authority.validate(first, audience=BILLING, holder=PLANNER)
    token = authority.validate(answer.json()["access_token"], audience=LEDGER, holder=BILLING)
    assert (token.subject, token.client_id, token.actors) == (PLANNER, BILLING, (BILLING,))
    assert token.scopes == ("read:ledger.eu", "temporal:20min")
    assert token.expires_at == parent.expires_at  # never beyond the parent's
    assert answer.json()["expires_in"] == 300
    issued = authority.store.tokens.find(token.token_id)
    assert issued is not None
    assert (issued.parent_id, issued.root_id, issued.root_issued_at) == (parent.token_id, parent.token_id, NOW)
    assert authority.trail.last["parent"] == parent.token_id
    # A revoked parent takes the child with it.
    assert authority.store.tokens.revoke(parent.token_id) == 2


def test_a_third_hop_nests_the_actors_and_keeps_the_subject(authority: Authority) -> None:
    async def work() -> str:
        scope = "read:ledger.eu delegate:ledger temporal:20min"
        first = await authority.token(PLANNER, ask(scope=f"{scope} delegate:billing"))
        second = await authority.token(BILLING, exchange(first, scope=scope))
        return await authority.token(
            LEDGER, exchange(second, client_id=LEDGER, resource=BILLING, scope="read:ledger.eu temporal:20min")
        )

    token = authority.validate(run(work()), audience=BILLING, holder=LEDGER)
    assert token.subject == PLANNER
    assert token.actors == (LEDGER, BILLING)
    assert token.claims["act"] == {"sub": LEDGER, "act": {"sub": BILLING}}


def test_a_time_scope_counts_from_the_first_token_of_the_chain(tmp_path: Path) -> None:
    """`temporal:20min` at the first hop is 20 minutes for all hops, whatever each client's own lifetime."""
    planner = replace(CLIENTS[0], lifetime=timedelta(minutes=30))
    billing = replace(CLIENTS[1], lifetime=timedelta(minutes=30))
    authority = Authority(tmp_path, (planner, billing))

    async def work() -> tuple[str, str, httpx.Response]:
        first = await authority.token(PLANNER, ask())
        authority.clock.advance(minutes=15)
        second = await authority.token(BILLING, exchange(first))
        # A time scope that only the child carries counts from the root as well: that was 15 minutes ago.
        late = await authority.post(BILLING, exchange(first, scope="read:ledger.eu temporal:20min temporal:10min"))
        return first, second, late

    first, second, late = run(work())
    end = NOW + timedelta(minutes=20)
    assert authority.validate(first, audience=BILLING, holder=PLANNER, now=NOW).expires_at == end
    assert authority.validate(second, audience=LEDGER, holder=BILLING).expires_at == end
    assert (late.status_code, late.json()) == (400, {"error": "invalid_scope"})


def test_a_token_ends_with_its_certificate(authority: Authority) -> None:
    authority.certificates[PLANNER] = authority.forge.leaf(PLANNER, not_after=NOW + timedelta(minutes=3))
    answer = run(authority.post(PLANNER, ask()))
    assert answer.json()["expires_in"] == 180


def test_expires_in_is_never_longer_than_what_is_left(authority: Authority) -> None:
    """A client that counts from its own clock must not believe in a longer life than `exp`."""
    authority.clock.advance(seconds=0.75)
    answer = run(authority.post(PLANNER, ask()))
    token = authority.validate(answer.json()["access_token"], audience=BILLING, holder=PLANNER)
    assert answer.json()["expires_in"] == 599
    assert authority.clock.now + timedelta(seconds=599) <= token.expires_at


def test_a_client_that_is_taken_off_the_list_is_refused_at_once(authority: Authority) -> None:
    assert run(authority.post(PLANNER, ask())).status_code == 200
    authority.clients.replace(ClientRegistry(CLIENTS[1:]))
    assert run(authority.post(PLANNER, ask())).json() == {"error": "invalid_client"}


def test_wildcard_registrations_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Authority(tmp_path)
    assert f"{PLANNER}: scopes: read:ledger.* is a wildcard" in caplog.text


def test_parallel_issuance(authority: Authority) -> None:
    async def work() -> list[httpx.Response]:
        async with authority.http(PLANNER) as http:
            return list(await asyncio.gather(*(http.post("/token", data=ask()) for _ in range(64))))

    answers = run(work())
    assert [a.status_code for a in answers] == [200] * 64
    tokens = [authority.validate(a.json()["access_token"], audience=BILLING, holder=PLANNER) for a in answers]
    assert len({t.token_id for t in tokens}) == 64
    assert all(authority.store.tokens.find(t.token_id) is not None for t in tokens)


def test_the_event_loop_goes_on_while_the_store_waits(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    gate, add = threading.Event(), TokenTable.add_all

    def slow(self: TokenTable, tokens: Any) -> Any:
        assert gate.wait(10)
        return add(self, tokens)

    monkeypatch.setattr(TokenTable, "add_all", slow)

    async def work() -> None:
        async with authority.http(PLANNER) as http:
            waiting = asyncio.create_task(http.post("/token", data=ask()))
            assert (await http.get("/jwks")).status_code == 200
            assert not waiting.done()
            gate.set()
            assert (await waiting).status_code == 200

    run(work())


def test_an_unexpected_failure_says_nothing_to_the_wire(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> httpx.Response:
        first = await authority.token(PLANNER, ask())
        authority.store._engine.dispose()
        with authority.store._engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE oauth_tokens")
        answer = await authority.post(BILLING, exchange(first))
        assert first not in caplog.text
        return answer

    answer = run(work())
    assert (answer.status_code, answer.json()) == (500, {"error": "server_error"})
    assert answer.headers["cache-control"] == "no-store"
    assert (authority.trail.last["decision"], authority.trail.last["check"]) == ("deny", "server")
    assert "token request failed" in caplog.text


def test_what_cannot_be_recorded_is_not_handed_out(tmp_path: Path) -> None:
    class Broken(Trail):
        def record(self, **facts: Any) -> None:
            super().record(**facts)
            if facts["decision"] == "allow":
                raise OSError("disk full")

    authority = Authority(tmp_path)
    authority.app = create_app(
        issuer=ISSUER, clients=authority.clients, store=authority.store, keys=[authority.key], audit=Broken()
    )
    answer = run(authority.post(PLANNER, ask()))
    assert (answer.status_code, answer.json()) == (500, {"error": "server_error"})


def test_every_request_has_its_record_and_no_token_secret_or_assertion_is_in_trail_or_log(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret, assertion = "s3cret-of-the-client", "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJ4In0.c2lnbmF0dXJl"
    basic = base64.b64encode(f"{PLANNER.replace(':', '%3A')}:{secret}".encode()).decode()
    jwt_bearer = "urn:ietf:params:oauth:grant-type:jwt-bearer"

    async def work() -> list[tuple[str, str, int]]:
        first = await authority.token(PLANNER, ask())
        second = await authority.token(BILLING, exchange(first))
        issued = [record["jti"] for record in authority.trail.records]
        assert [record["decision"] for record in authority.trail.records] == ["allow", "allow"]
        assert all(authority.store.tokens.find(jti) is not None for jti in issued)
        told = [("token", "allow", 200)] * 2
        requests: list[tuple[str, str, dict[str, str], dict[str, str]]] = [
            (BILLING, "/token", exchange(first, scope="write:ledger.eu"), {}),
            (BILLING, "/token", exchange(first[:-4] + "AAAA"), {}),
            (BILLING, "/token", exchange(first + "x"), {}),
            (PLANNER, "/token", ask(client_secret=secret), {}),
            (PLANNER, "/token", ask(client_assertion=assertion), {}),
            (PLANNER, "/token", ask(grant_type=jwt_bearer, assertion=assertion), {}),
            (PLANNER, "/token", ask(), {"Authorization": f"Basic {basic}"}),
            (PLANNER, "/token", ask(), {"Authorization": f"Bearer {first}"}),
            (PLANNER, f"/token?subject_token={first}", ask(), {}),
            (BILLING, "/introspect", {"token": second, "client_id": BILLING}, {}),
            (PLANNER, "/revoke", {"token": first, "client_id": PLANNER}, {}),
            (BILLING, "/introspect", {"token": second, "client_id": BILLING}, {}),
        ]
        for agent, path, form, headers in requests:
            async with authority.http(agent) as http:
                answer = await http.post(path, data=form, headers=headers)
            assert len(authority.trail.records) == len(told) + 1, path  # one record for one request
            told.append((authority.trail.last["event"], authority.trail.last["decision"], answer.status_code))
        ours = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]
        trail = json.dumps(authority.trail.records) + "\n".join(ours)
        for token in (first, second, assertion):
            assert all(part not in trail for part in token.split("."))
        assert secret not in trail and basic not in trail
        return told

    told = run(work())
    assert {(decision, status < 400) for _, decision, status in told} == {("allow", True), ("deny", False)}
    assert [event for event, decision, _ in told if decision == "allow"] == [
        *("token", "token"),
        *("introspection", "revocation", "introspection"),
    ]


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/token", 405),
        ("PUT", "/token", 405),
        ("POST", "/jwks", 405),
        ("GET", "/", 404),
        ("POST", "/token/", 404),
    ],
)
def test_unknown_paths_and_methods_are_json_too(authority: Authority, method: str, path: str, status: int) -> None:
    async def work() -> httpx.Response:
        async with authority.http(PLANNER) as http:
            return await http.request(method, path)

    answer = run(work())
    assert (answer.status_code, answer.json()) == (status, {"error": "invalid_request"})
    assert (status == 405) == ("allow" in answer.headers)


def test_a_slow_or_broken_sender_is_let_go(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "BODY_SECONDS", 0.05)

    async def never() -> AsyncIterator[bytes]:
        yield b"grant_type="
        await asyncio.sleep(5)

    headers = {"content-type": "application/x-www-form-urlencoded"}

    async def work() -> httpx.Response:
        async with authority.http(PLANNER) as http:
            return await http.post("/token", content=never(), headers=headers)

    answer = run(work())
    assert (answer.status_code, answer.json()) == (408, {"error": "invalid_request"})
    assert authority.trail.last["check"] == "request.time"

    async def disconnected() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/token",
            "query_string": b"",
            "headers": [(b"content-type", b"application/x-www-form-urlencoded")],
        }
        await authority.app(scope, receive, send)
        return sent

    assert run(disconnected())[0]["status"] == 400
    assert authority.trail.last["check"] == "request.disconnected"


@pytest.mark.parametrize(
    "issuer", ["http://auth.fleet.example", "auth", "https://auth.example?x=1", "https://a.example#", ""]
)
def test_a_malformed_issuer_is_refused(authority: Authority, issuer: str) -> None:
    with pytest.raises(ConfigurationError, match="issuer"):
        create_app(
            issuer=issuer,
            clients=authority.clients,
            store=authority.store,
            keys=[authority.key],
            audit=authority.trail,
        )


def test_a_server_without_keys_is_refused(authority: Authority) -> None:
    with pytest.raises(ConfigurationError, match="key"):
        create_app(issuer=ISSUER, clients=authority.clients, store=authority.store, keys=[], audit=authority.trail)


def test_client_ids_need_not_be_spiffe_ids(tmp_path: Path) -> None:
    named = Client(
        agent_id=AgentID.parse(PLANNER), client_id="the-planner", scopes=("agent:execute",), resources=(BILLING,)
    )
    authority = Authority(tmp_path, (named,))
    token = run(authority.token(PLANNER, ask(client_id="the-planner", scope="agent:read")))
    access = authority.validate(token, audience=BILLING, holder=PLANNER)
    assert (access.client_id, access.subject) == ("the-planner", PLANNER)
    assert run(authority.post(PLANNER, ask(scope="agent:read"))).json() == {"error": "invalid_client"}


def test_whoever_fails_without_a_certificate_is_counted_whatever_it_fails_by(authority: Authority) -> None:
    """And nobody who has one: its mistakes are its own."""

    async def work() -> None:
        malformed = ask(client_secret="x")
        for agent, status in ((None, 429), (PLANNER, 200)):
            for _ in range(FAILURES):
                assert (await authority.post(agent, malformed)).status_code == 400
            assert (await authority.post(agent, ask())).status_code == status

    asyncio.run(work())
