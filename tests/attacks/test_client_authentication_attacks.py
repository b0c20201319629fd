"""Whoever wants to be a client that it is not: every way ends in the same words, and in one audit record."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import httpx
import pytest

from tests.authority import BILLING, ISSUER, PLANNER, STRANGER, Authority, ask
from tests.forge import NOW
from trust.errors import ClientRefused, GrantNotAllowed, GrantRequestMalformed, TrustError
from trust.identity import AgentID
from trust.oauth.policy import Question
from trust.oauth.server.clients import AgentPattern, Client, ClientPattern, digest_of, new_secret
from trust.oauth.server.clients import secrets as client_secrets
from trust.oauth.server.registrations import register

FLEET = "spiffe://fleet.example"
WORKER, EXACT, CAREFUL, OTHER = f"{FLEET}/workers/7", f"{FLEET}/workers/exact", f"{FLEET}/careful", f"{FLEET}/other"
DISABLED, SECRETLESS, NAMED = f"{FLEET}/disabled", f"{FLEET}/secretless", f"{FLEET}/named"
SCOPE = {"scope": "read:rates"}
RIGHTS = {"scopes": ["read:rates"], "resources": [BILLING]}
SECRETS = {name: new_secret() for name in ("old", "ending", "careful", "other", "disabled")}

DECLARED = (
    Client(agent_id=AgentID.parse(PLANNER), scopes=("read:rates",), resources=(BILLING,)),
    Client(agent_id=AgentID.parse(NAMED), client_id="the-named", scopes=("read:rates",), resources=(BILLING,)),
    Client(agent_id=AgentID.parse(EXACT), client_id="exact", scopes=("read:rates",), resources=(BILLING,)),
    ClientPattern(pattern=AgentPattern.parse(f"{FLEET}/workers/*"), scopes=("read:rates",), resources=(BILLING,)),
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return made(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """For those who change nothing but what is counted."""
    return made(tmp_path_factory.mktemp("authority"))


def made(folder: Path) -> Authority:
    authority = Authority(folder, DECLARED)
    table, now, none = authority.store.clients, authority.clock.now, timedelta(0)
    for name in (CAREFUL, OTHER, DISABLED, SECRETLESS):
        register(table, name, RIGHTS, digest=digest_of(new_secret()), now=now)
    rotate(authority, OTHER, SECRETS["other"], overlap=none)
    rotate(authority, DISABLED, SECRETS["disabled"], overlap=none)
    rotate(authority, CAREFUL, SECRETS["old"], overlap=none)
    rotate(authority, CAREFUL, SECRETS["ending"], overlap=timedelta(hours=48))
    rotate(authority, CAREFUL, SECRETS["careful"], overlap=timedelta(hours=24))  # at most two: the old one ends now
    rotate(authority, SECRETLESS, SECRETS["old"], overlap=none)
    with authority.store._engine.begin() as connection:  # as a database that was restored in parts
        connection.exec_driver_sql(f"DELETE FROM oauth_client_secrets WHERE name = '{SECRETLESS}'")
    table.disable(DISABLED, now=now)
    authority.clock.advance(hours=23)
    return authority


def rotate(authority: Authority, name: str, secret: str, *, overlap: timedelta) -> None:
    authority.store.clients.rotate_secret(name, digest_of(secret), overlap=overlap, now=authority.clock.now)


def basic(client_id: str, secret: str) -> str:
    """As RFC 6749 section 2.3.1 has it."""
    return plain(f"{quote_plus(client_id)}:{quote_plus(secret)}")


def plain(text: str | bytes) -> str:
    return "Basic " + base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


RIGHT = basic(CAREFUL, SECRETS["careful"])


@dataclass(frozen=True, kw_only=True)
class Attack:
    peer: str | None
    form: dict[str, str | None]
    headers: tuple[str, ...] = ()  # the values of Authorization
    expected: type[TrustError] = ClientRefused


def certificate(peer: str | None, client_id: str | None, *headers: str) -> Attack:
    return Attack(peer=peer, form={"client_id": client_id}, headers=headers)


def secret(*headers: str, peer: str | None = CAREFUL, **form: str | None) -> Attack:
    return Attack(peer=peer, form={"client_id": CAREFUL, **form}, headers=headers)


def in_form(**form: str) -> Attack:
    return Attack(peer=CAREFUL, form={"client_id": CAREFUL, **form}, expected=GrantRequestMalformed)


PATTERNS = {
    "nothing below the pattern": certificate(f"{FLEET}/workers", f"{FLEET}/workers"),
    "deeper than the pattern": certificate(f"{WORKER}/8", f"{WORKER}/8"),
    "a prefix of a segment": certificate(f"{FLEET}/workers2/7", f"{FLEET}/workers2/7"),
    "other case": certificate(f"{FLEET}/Workers/7", f"{FLEET}/Workers/7"),
    "another trust domain": certificate(WORKER, "spiffe://partner.example/workers/7"),
    "a longer trust domain": certificate(WORKER, "spiffe://fleet.example.evil/workers/7"),
    "trust domain in other case": certificate(WORKER, "spiffe://FLEET.example/workers/7"),
    "dot segments": certificate(WORKER, f"{FLEET}/workers/x/../7"),
    "one dot": certificate(WORKER, f"{FLEET}/./workers/7"),
    "percent-encoded": certificate(WORKER, f"{FLEET}/workers/%37"),
    "slash more": certificate(WORKER, f"{FLEET}/workers/7/"),
    "slashes in the middle": certificate(WORKER, f"{FLEET}/workers//7"),
    "the pattern itself": certificate(WORKER, f"{FLEET}/workers/*"),
    "two stars alone": certificate(WORKER, "**"),
    "another worker": certificate(WORKER, f"{FLEET}/workers/8"),
    "no client_id": certificate(WORKER, None),
    "a client of the pattern, without a certificate": certificate(None, WORKER),
    "a stranger as a worker": certificate(STRANGER, WORKER),
    "registered by itself, as of the pattern": certificate(EXACT, EXACT),
    "its SPIFFE ID for another client_id": certificate(NAMED, NAMED),
    "another client's name": certificate(NAMED, "exact"),
    "disabled": certificate(DISABLED, DISABLED, basic(DISABLED, SECRETS["disabled"])),
}
FACTORS = {
    "no secret": secret(),
    "a wrong secret": secret(basic(CAREFUL, "wrong")),
    "the secret of another client": secret(basic(CAREFUL, SECRETS["other"])),
    "another client with its secret": secret(basic(OTHER, SECRETS["other"])),
    "client_id of another client in the form": secret(RIGHT, client_id=OTHER),
    "an old secret that has ended": secret(basic(CAREFUL, SECRETS["old"])),
    "the beginning of the secret": secret(basic(CAREFUL, SECRETS["careful"][:-1])),
    "more than the secret": secret(basic(CAREFUL, SECRETS["careful"] + "A")),
    "the digest of the secret": secret(basic(CAREFUL, digest_of(SECRETS["careful"]).hex())),
    "secret in other case": secret(basic(CAREFUL, SECRETS["careful"].swapcase())),
    "the right secret without a certificate": secret(RIGHT, peer=None),
    "the right secret with another certificate": secret(RIGHT, peer=OTHER),
    "a secret where none is registered": certificate(PLANNER, PLANNER, basic(PLANNER, SECRETS["careful"])),
    "a client that has lost its secrets": certificate(SECRETLESS, SECRETLESS, basic(SECRETLESS, SECRETS["old"])),
}
HEADERS = {
    "two headers": secret(RIGHT, RIGHT),
    "a wrong one first": secret(basic(CAREFUL, "wrong"), RIGHT),
    "a wrong one last": secret(RIGHT, basic(CAREFUL, "wrong")),
    "two in one": secret(f"{RIGHT}, {RIGHT}"),
    "bearer": secret(f"Bearer {SECRETS['careful']}"),
    "bearer beside it": secret(f"Bearer {SECRETS['careful']}", RIGHT),
    "no scheme": secret(RIGHT.removeprefix("Basic ")),
    "nothing": secret(""),
    "nothing after the scheme": secret("Basic "),
    "two spaces": secret(RIGHT.replace(" ", "  ")),
    "not base64": secret("Basic %%%"),
    "base64 for URLs": secret("Basic " + base64.urlsafe_b64encode(b"\xfb\xff:x").decode()),
    "without padding": secret(RIGHT.rstrip("=") if RIGHT.endswith("=") else RIGHT[:-1]),
    "bits after the end": secret("Basic YTp5eR=="),
    "not UTF-8": secret(plain(b"\xff:\xff")),
    "not UTF-8 within": secret(plain(f"{quote(CAREFUL, safe='')}:%ff")),
    "not ASCII": secret(plain("caf\u00e9:x")),
    "a line break within": secret(plain(f"{quote(CAREFUL, safe='')}:{SECRETS['careful']}%0a")),
    "half an escape": secret(plain(f"{quote(CAREFUL, safe='')}:%4")),
    "an escape that is none": secret(plain(f"{quote(CAREFUL, safe='')}:%zz")),
    "no colon": secret(plain(SECRETS["careful"])),
    "no name": secret(plain(f":{SECRETS['careful']}")),
    "no secret after the colon": secret(plain(f"{quote(CAREFUL, safe='')}:")),
    "colons that are not encoded": secret(plain(f"{CAREFUL}:{SECRETS['careful']}")),
    "a colon more": secret(plain(f"{quote(CAREFUL, safe='')}:{SECRETS['careful']}:")),
    "encoded twice": secret(plain(f"{quote(quote(CAREFUL, safe=''), safe='')}:{SECRETS['careful']}")),
    "too long": secret(plain(f"{quote(CAREFUL, safe='')}:{'x' * 8192}")),
}
FORMS = {
    "secret in the form": in_form(client_secret=SECRETS["careful"]),
    "assertion in the form": in_form(client_assertion="x"),
    "assertion type in the form": in_form(client_assertion_type="urn:ietf:params:oauth:client-assertion-type:jwt"),
}
ATTACKS = {**PATTERNS, **FACTORS, **HEADERS, **FORMS}


async def post(authority: Authority, attack: Attack) -> httpx.Response:
    headers = [("authorization", value) for value in attack.headers]
    return await authority.post(attack.peer, ask(**SCOPE, **attack.form), headers=headers)


@pytest.mark.parametrize("name", ATTACKS)
def test_nobody_is_a_client_that_it_is_not(shared: Authority, name: str) -> None:
    authority, attack = shared, ATTACKS[name]
    authority.serve()  # with new counters: most of these failures are one client's
    answer = asyncio.run(post(authority, attack))
    expected = attack.expected
    assert (answer.status_code, answer.json()) == (expected.status, {"error": expected.code}), authority.trail.last
    assert (authority.trail.last["decision"], authority.trail.last["check"]) == ("deny", expected.check)
    asked_by_basic = {"www-authenticate": f'Basic realm="{ISSUER}"'} if attack.headers else {}
    assert {name: value for name, value in answer.headers.items() if name == "www-authenticate"} == asked_by_basic
    for told in (answer.text, str(authority.trail.records)):
        assert not any(one in told for one in SECRETS.values())


GOOD = {
    "of a pattern": certificate(WORKER, WORKER),
    "by another name": certificate(NAMED, "the-named"),
    "with its secret": secret(RIGHT),
    "with its secret, and its name only there": secret(RIGHT, client_id=None),
    "scheme in other case": secret(RIGHT.replace("Basic", "BASIC")),
    "every character encoded": secret(plain("".join(f"%{ord(c):02X}" for c in CAREFUL) + f":{SECRETS['careful']}")),
    "with the secret before, which has not ended": secret(basic(CAREFUL, SECRETS["ending"])),
    "another one with its secret": certificate(OTHER, OTHER, basic(OTHER, SECRETS["other"])),
}


@pytest.mark.parametrize("name", GOOD)
def test_and_who_is_one_gets_its_token(shared: Authority, name: str) -> None:
    authority, attack = shared, GOOD[name]
    authority.serve()
    answer = asyncio.run(post(authority, attack))
    assert answer.status_code == 200, authority.trail.last
    assert attack.peer is not None
    access = authority.validate(answer.json()["access_token"], audience=BILLING, holder=attack.peer)
    assert access.subject == attack.peer
    assert access.client_id == ("the-named" if attack.peer == NAMED else attack.peer)
    assert authority.trail.last["client"] == access.client_id


def test_the_secret_before_ends_when_it_was_said_to(authority: Authority) -> None:
    before = secret(basic(CAREFUL, SECRETS["ending"]))
    authority.clock.advance(minutes=59, seconds=59)
    authority.certificates[CAREFUL] = authority.forge.leaf(CAREFUL, not_after=NOW + timedelta(days=9))
    assert asyncio.run(post(authority, before)).status_code == 200
    authority.clock.advance(seconds=1)
    assert asyncio.run(post(authority, before)).json() == {"error": "invalid_client"}
    assert asyncio.run(post(authority, secret(RIGHT))).status_code == 200


def test_secrets_are_compared_in_constant_time_with_each_that_counts(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[Any, Any]] = []
    in_constant_time = hmac.compare_digest

    def compare(given: Any, kept: Any) -> bool:
        compared.append((given, kept))
        return in_constant_time(given, kept)

    monkeypatch.setattr(client_secrets.hmac, "compare_digest", compare)
    kept = {digest_of(SECRETS[name]) for name in ("careful", "ending")}
    for given in ("wrong", SECRETS["careful"], SECRETS["ending"]):
        compared.clear()
        asyncio.run(post(authority, secret(basic(CAREFUL, given))))
        assert sorted(compared) == sorted((hashlib.sha256(given.encode()).digest(), one) for one in kept)


def test_a_client_is_refused_at_once_when_it_is_disabled_and_so_is_what_it_holds(authority: Authority) -> None:
    attack = GOOD["of a pattern"]
    token = asyncio.run(post(authority, attack)).json()["access_token"]
    held = authority.validate(token, audience=BILLING, holder=WORKER).token_id
    assert authority.store.clients.disable(WORKER, now=authority.clock.now) == 1
    assert asyncio.run(post(authority, attack)).json() == {"error": "invalid_client"}
    found = authority.store.tokens.find(held)
    assert found is not None and found.revoked
    other = f"{FLEET}/workers/9"
    assert asyncio.run(post(authority, certificate(other, other))).status_code == 200


def again(authority: Authority, scopes: list[str]) -> None:
    """OTHER is registered anew, for all that `client` does by command."""
    table, now = authority.store.clients, authority.clock.now
    table.disable(OTHER, now=now)
    table.remove(OTHER)
    if scopes:
        register(table, OTHER, {**RIGHTS, "scopes": scopes}, digest=digest_of(SECRETS["other"]), now=now)


@pytest.mark.parametrize(
    ("meanwhile", "expected"),
    [
        (lambda a: again(a, []), ClientRefused),
        (lambda a: again(a, ["read:less"]), GrantNotAllowed),
        (lambda a: again(a, ["read:rates"]), None),
        (lambda a: rotate(a, OTHER, new_secret(), overlap=timedelta(0)), None),
    ],
    ids=["it was removed", "it may do less", "it may do the same", "it has another secret"],
)
def test_what_becomes_of_a_client_while_it_asks_counts(
    tmp_path: Path, meanwhile: Callable[[Authority], None], expected: type[TrustError] | None
) -> None:
    """Whoever is disabled and removed is forgotten: what was under way must not be issued afterwards."""
    authority, changes = made(tmp_path), [meanwhile]

    class Slow:
        """Asked between the authentication and the record."""

        def check(self, _question: Question) -> None:
            if changes:
                changes.pop()(authority)

    authority.serve(permit=Slow())
    answer = asyncio.run(post(authority, GOOD["another one with its secret"]))
    assert not changes
    if expected is None:
        assert answer.status_code == 200
    else:
        assert (answer.status_code, answer.json()) == (expected.status, {"error": expected.code})
        assert authority.trail.last["check"] == expected.check


def test_who_fails_too_often_is_locked_out_and_nobody_else(authority: Authority) -> None:
    bad, good = secret(basic(CAREFUL, "wrong")), secret(RIGHT)

    async def work() -> None:
        for _ in range(9):
            assert (await post(authority, bad)).status_code == 401
        assert (await post(authority, good)).status_code == 200  # and that forgives nothing
        assert (await post(authority, bad)).status_code == 401
        assert (authority.trail.last["decision"], authority.trail.last["check"]) == ("deny", "grant.locked")
        assert authority.trail.last["peer"] == CAREFUL
        told = len(authority.trail.records)
        for attack in (good, bad, good):
            answer = await post(authority, attack)
            assert (answer.status_code, answer.json()) == (429, {"error": "temporarily_unavailable"})
            assert 0 < int(answer.headers["retry-after"]) <= 300
        assert len(authority.trail.records) == told  # a trail that whoever knocks can fill helps nobody
        # Not even by whoever says that it is somebody else.
        for _ in range(11):
            await post(authority, certificate(STRANGER, PLANNER))
            await post(authority, certificate(None, PLANNER))
        assert (await post(authority, certificate(PLANNER, PLANNER))).status_code == 200
        authority.clock.advance(minutes=5)
        assert (await post(authority, good)).status_code == 200

    asyncio.run(work())


def test_a_client_that_asks_too_often_waits_and_the_others_do_not(tmp_path: Path) -> None:
    authority = Authority(tmp_path, DECLARED, requests_per_minute=3)
    planner, worker = certificate(PLANNER, PLANNER), certificate(WORKER, WORKER)

    async def work() -> None:
        assert [(await post(authority, planner)).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
        denied = [record for record in authority.trail.records if record["decision"] == "deny"]
        assert [record["check"] for record in denied] == ["grant.rate"]
        assert (await post(authority, worker)).status_code == 200
        authority.clock.advance(minutes=1)
        assert (await post(authority, planner)).status_code == 200

    asyncio.run(work())


def test_the_database_keeps_digests_and_no_secret(authority: Authority, tmp_path: Path) -> None:
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert digest_of(SECRETS["careful"]).hex().encode() in content
    assert not any(one.encode() in content for one in SECRETS.values())
    registered = repr(authority.store.clients.all())
    assert digest_of(SECRETS["careful"]).hex() not in registered
    assert repr(digest_of(SECRETS["careful"])) not in registered
