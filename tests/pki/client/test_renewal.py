"""Renewal over real sockets: with a clock that is set, a service that comes and goes, folders that others write to."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.responses import JSONResponse, PlainTextResponse, Response

from pki.client import Condition, Event, RenewingCredentials
from pki.client.folder import AgentFolder, Enrolment
from pki.client.renewal import SHORTEST_GAP
from pki.errors import AuthorityUnreachable, EnrolmentFailed
from tests.forge import NOW
from tests.pki.client.fake import BILLING, FORGE, TOKEN, Service
from trust.bundles import RevocationLists, TrustBundle, TrustBundles
from trust.credentials import Credentials
from trust.errors import BundleError, ConfigurationError, CredentialsError, RevocationUnknown

REENROLL = "/.well-known/est/simplereenroll"


class Clock:
    """The wall clock, set forward or back."""

    def __init__(self) -> None:
        self.offset = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def advance(self, **by: float) -> None:
        self.offset += timedelta(**by)


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def brief(seconds: float = 60) -> Credentials:
    """Of the next minute, so that the clock is looked at every second or so."""
    now = datetime.now(UTC).replace(microsecond=0)
    return FORGE.leaf("/billing", not_before=now, not_after=now + timedelta(seconds=seconds))


def folder(path: Path, credentials: Credentials, url: str = "https://127.0.0.1:1") -> Path:
    credentials.save(path)
    files = AgentFolder(path)
    files.save_bundle(FORGE.bundle)
    files.save_enrolment(Enrolment(url=url))
    return path


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    with made.running() as url:
        made.url = url  # type: ignore[attr-defined]
        yield made


def agent(service: Service, source: Any = None, **options: Any) -> RenewingCredentials:
    url = service.url  # type: ignore[attr-defined]
    if source is None or isinstance(source, Credentials):
        options = {"bundles": FORGE.bundles, **options}
    return RenewingCredentials(FORGE.leaf("/billing") if source is None else source, url=url, **options)


# The clock.


def test_it_renews_when_the_time_has_come_and_not_before(service: Service) -> None:
    clock, present = Clock(), brief()
    with agent(service, present, clock=clock) as source:
        clock.advance(seconds=30)
        time.sleep(1.5)
        assert source.current() is present and REENROLL not in service.paths
        clock.advance(seconds=10)  # a suspended machine wakes up, or somebody sets the clock
        until(lambda: source.current() is not present)
        until(lambda: source.health.condition is Condition.HEALTHY)
        assert source.health.next_attempt > clock() + timedelta(hours=12)  # the new one lives for a day
    assert service.paths.count(REENROLL) == 1


def test_a_clock_that_is_set_back_and_forth(service: Service) -> None:
    clock, present = Clock(), brief()
    service.instead = {REENROLL: PlainTextResponse("", 503)}
    with agent(service, present, clock=clock) as source:
        clock.advance(hours=2)  # wrongly: the certificate seems to have ended
        until(lambda: source.health.failures)
        assert source.health.condition is Condition.EXPIRED and not source.health.ok
        clock.advance(hours=-2)
        time.sleep(0.1)
        assert source.health.condition is not Condition.EXPIRED and source.health.ok
        service.instead = {}
        clock.advance(seconds=45)
        until(lambda: source.current() is not present)
        assert source.health.condition is Condition.HEALTHY and source.health.problem is None


def test_it_keeps_trying_after_the_end_and_says_what_to_do(service: Service) -> None:
    clock = Clock()
    present = brief()
    service.instead = {REENROLL: PlainTextResponse("", 503)}
    with agent(service, present, clock=clock) as source:
        clock.advance(minutes=5)
        until(lambda: source.health.failures >= 2)
        line = str(source.health)
        assert "expired" in line and "enrol again with a new token" in line and "in trouble" in line
        assert "this machine's clock says" in line and "the CA's" in line and "\n" not in line
        assert abs((source.health.ca_clock or NOW) - datetime.now(UTC)) < timedelta(seconds=30)
        service.instead = {}
        until(lambda: source.current() is not present)
        assert source.health.ok


def test_failures_are_waited_out(service: Service) -> None:
    service.instead = {REENROLL: PlainTextResponse("", 503)}
    clock = Clock()
    with agent(service, brief(600), clock=clock) as source:
        clock.advance(seconds=540)
        until(lambda: source.health.failures)
        time.sleep(2)
        assert source.health.failures <= 2  # at first a hundredth of its life
        assert source.health.condition is Condition.LATE and source.health.ok
    assert service.paths.count(REENROLL) <= 2


def test_a_refused_agent_does_not_hammer(service: Service) -> None:
    service.instead = {REENROLL: JSONResponse({"check": "pki.policy.banned", "error": "access_denied"}, 403)}
    events: list[Event] = []
    clock = Clock()
    with agent(service, brief(), clock=clock, on_event=events.append) as source:
        clock.advance(seconds=50)
        until(lambda: source.health.condition is Condition.REFUSED)
        assert service.paths.count(REENROLL) <= 2, "a fifth of what is left is two seconds"
        assert "banned" in (source.health.problem or "")
        clock.advance(minutes=1)
        until(lambda: source.health.next_attempt > clock() + timedelta(minutes=2))  # now that nothing is left
        time.sleep(2.5)
    assert service.paths.count(REENROLL) <= 3
    assert [event.kind for event in events].count("failed") <= 3


def test_a_jumping_clock_makes_no_storm(service: Service) -> None:
    """Each step back after an attempt would allow another at once; a clock that nobody sets has its own word."""
    service.instead = {REENROLL: PlainTextResponse("", 503)}
    clock = Clock()
    with agent(service, brief(), clock=clock) as source:
        clock.advance(days=30)
        started = time.monotonic()
        for _ in range(100):
            clock.advance(seconds=-60)
            source._look()
        took = time.monotonic() - started
    assert service.paths.count(REENROLL) <= took / SHORTEST_GAP + 2


# What the service advises.


def test_a_tainted_issuer_means_now(service: Service) -> None:
    present = FORGE.leaf("/billing")
    service.urgent = True
    with agent(service, present) as source:
        until(lambda: source.current() is not present)
    assert service.paths.count(REENROLL) == 1


def test_a_new_bundle_reaches_whoever_asks(service: Service, tmp_path: Path) -> None:
    home = folder(tmp_path / "agent", FORGE.leaf("/billing"))
    events: list[Event] = []
    source = agent(service, home, on_event=events.append)
    assert source.bundles.current().by_domain["fleet.example"].sequence == 0
    source.poll()
    assert source.bundles.current().by_domain["fleet.example"].sequence == 7
    assert TrustBundles.load(home / "bundle.json").by_domain["fleet.example"].sequence == 7
    assert [event.kind for event in events] == ["trust", "stale"], "it has no lists"
    held = source.bundles.current()
    source.poll()
    assert source.bundles.current() is held  # the same object until it is another value


# Tokens, after the end.


def test_a_token_brings_an_expired_agent_back(service: Service, tmp_path: Path) -> None:
    token = tmp_path / "token"
    home = folder(tmp_path / "agent", brief())
    clock = Clock()
    service.instead = {REENROLL: JSONResponse({"check": "pki.renewal.expired"}, 403)}
    with agent(service, home, clock=clock, token=token) as source:
        clock.advance(minutes=2)
        until(lambda: source.health.failures)
        assert service.tokens == []
        token.write_text(TOKEN + "\n")
        until(lambda: source.health.condition is Condition.HEALTHY)  # long before the next attempt was due
        assert service.tokens == [f"agent:{TOKEN}"]
        assert Credentials.load(home).thumbprint == source.current().thumbprint
    assert sorted(f.name for f in home.iterdir() if f.name[0] != ".") == [
        "bundle.json",
        "ca.json",
        "chain.pem",
        "key.pem",
    ]


def test_a_token_is_tried_once(service: Service) -> None:
    clock = Clock()
    service.instead = {"/.well-known/est/simpleenroll": JSONResponse({"check": "pki.token.used"}, 401)}
    with agent(service, brief(), clock=clock, token=lambda: TOKEN) as source:
        clock.advance(minutes=2)
        until(lambda: source.health.failures)
        clock.advance(hours=1)
        until(lambda: REENROLL in service.paths)
    assert len(service.tokens) == 1
    assert TOKEN not in str(source.health)


def test_the_answer_to_a_token_that_was_lost_is_had_by_asking_again(service: Service, tmp_path: Path) -> None:
    asked: list[Any] = []
    issue = service.issue

    def lose_the_first(public_key: Any) -> Any:
        asked.append(public_key)
        chain = issue(public_key)
        return [] if len(asked) == 1 else chain

    service.issue = lose_the_first  # type: ignore[method-assign]
    clock = Clock()
    home = folder(tmp_path / "agent", brief())
    with agent(service, home, clock=clock, token=lambda: TOKEN) as source:
        clock.advance(minutes=2)
        until(lambda: source.health.condition is Condition.HEALTHY)
    assert len(asked) == 2 and asked[0] == asked[1]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"])
def test_a_token_file_that_holds_none(service: Service, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    clock = Clock()
    with agent(service, brief(), clock=clock, token=tmp_path / "token") as source:
        clock.advance(minutes=2)
        until(lambda: source.health.condition is Condition.HEALTHY)
    assert service.tokens == []


# Lost replies and folders.


def test_a_lost_reply_locks_nobody_out(service: Service, tmp_path: Path) -> None:
    home = folder(tmp_path / "agent", FORGE.leaf("/billing"))
    present = Credentials.load(home)
    source = agent(service, home)
    service.answer = lambda chain: chain[1:]  # it was issued, and did not arrive
    with pytest.raises(Exception, match="our key"):
        source.renew()
    assert source.current().thumbprint == Credentials.load(home).thumbprint == present.thumbprint
    service.answer = lambda chain: chain
    assert source.renew().thumbprint == Credentials.load(home).thumbprint != present.thumbprint


def test_what_cannot_be_written_is_not_used(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = folder(tmp_path / "agent", FORGE.leaf("/billing"))
    source = agent(service, home)
    present = source.current()

    def full(*_: object) -> None:
        raise CredentialsError("cannot write", got="No space left on device")

    monkeypatch.setattr(Credentials, "save", full)
    with pytest.raises(CredentialsError, match="No space"):
        source.renew()
    assert source.current() is present and source.health.failures == 1


def test_credentials_that_somebody_else_wrote_are_taken_over(service: Service, tmp_path: Path) -> None:
    home = folder(tmp_path / "agent", brief())
    events: list[Event] = []
    with agent(service, home, on_event=events.append) as source:
        theirs = FORGE.leaf("/billing")
        theirs.save(home)
        until(lambda: source.current().thumbprint == theirs.thumbprint)
        assert source.health.next_attempt > datetime.now(UTC) + timedelta(hours=10)
    assert "replaced" in [event.kind for event in events] and REENROLL not in service.paths


def test_credentials_that_were_written_during_a_renewal_win(service: Service, tmp_path: Path) -> None:
    home = folder(tmp_path / "agent", FORGE.leaf("/billing"))
    source = agent(service, home)
    theirs = FORGE.leaf("/billing")
    issue = service.issue

    def meanwhile(public_key: Any) -> Any:
        theirs.save(home)
        return issue(public_key)

    service.issue = meanwhile  # type: ignore[method-assign]
    assert source.renew().thumbprint == Credentials.load(home).thumbprint == theirs.thumbprint


def test_another_agents_credentials_are_not_taken_over(service: Service, tmp_path: Path) -> None:
    home = folder(tmp_path / "agent", FORGE.leaf("/billing"))
    clock = Clock()
    with agent(service, home, clock=clock) as source:
        present = source.current()
        FORGE.leaf("/planner").save(home)
        clock.advance(hours=20)
        until(lambda: source.health.failures)
        assert "another agent" in (source.health.problem or "")
        assert source.current() is present
        assert str(Credentials.load(home).agent_id).endswith("/planner")


def test_another_agents_credentials_are_not_overwritten(service: Service, tmp_path: Path) -> None:
    home = folder(tmp_path / "agent", FORGE.leaf("/billing"))
    source = agent(service, home)
    present, issue = source.current(), service.issue

    def meanwhile(public_key: Any) -> Any:
        FORGE.leaf("/planner").save(home)
        return issue(public_key)

    service.issue = meanwhile  # type: ignore[method-assign]
    with pytest.raises(CredentialsError, match="another agent"):
        source.renew()
    assert source.current() is present
    assert str(Credentials.load(home).agent_id).endswith("/planner")


@pytest.mark.parametrize("name", ["chain.pem", "key.pem"])
def test_a_folder_whose_files_are_damaged_is_mended_by_the_next_renewal(
    service: Service, tmp_path: Path, name: str
) -> None:
    home = folder(tmp_path / "agent", brief())
    clock = Clock()
    with agent(service, home, clock=clock) as source:
        present = source.current()
        (home / name).write_text("rubbish")
        clock.advance(seconds=45)
        until(lambda: source.current() is not present)
        assert Credentials.load(home).thumbprint == source.current().thumbprint


def test_a_folder_that_is_replaced_beneath_it(service: Service, tmp_path: Path) -> None:
    home = folder(tmp_path / "agent", brief(), service.url)  # type: ignore[attr-defined]
    clock = Clock()
    with agent(service, home, clock=clock) as source:
        present = source.current()
        home.rename(tmp_path / "old")
        shutil.copytree(tmp_path / "old", home)
        clock.advance(seconds=45)
        until(lambda: source.current() is not present)
        until(lambda: Credentials.load(home).thumbprint == source.current().thumbprint)
        assert Credentials.load(tmp_path / "old").thumbprint == present.thumbprint


def test_a_folder_that_is_gone_for_a_while(service: Service, tmp_path: Path) -> None:
    home = folder(tmp_path / "agent", brief())
    clock = Clock()
    with agent(service, home, clock=clock) as source:
        home.rename(tmp_path / "away")
        clock.advance(seconds=45)
        until(lambda: source.health.failures)
        assert source.health.condition is Condition.LATE and source.current()
        (tmp_path / "away").rename(home)
        until(lambda: source.health.condition is Condition.HEALTHY)


def test_of_two_that_share_a_folder_one_renews_and_the_other_follows(service: Service, tmp_path: Path) -> None:
    home = folder(tmp_path / "agent", brief())
    clock = Clock()
    with agent(service, home, clock=clock) as first:
        time.sleep(0.2)
        with agent(service, home, clock=clock) as second:
            time.sleep(0.2)
            clock.advance(seconds=45)
            until(lambda: first.health.next_attempt > clock() + timedelta(hours=1))
            until(lambda: second.current().thumbprint == first.current().thumbprint)
    assert service.paths.count(REENROLL) == 1


def test_the_other_takes_over_when_the_first_ends(service: Service, tmp_path: Path) -> None:
    home = folder(tmp_path / "agent", brief())
    clock = Clock()
    first = agent(service, home, clock=clock)
    first.start()
    first.start()  # once is enough
    time.sleep(0.2)
    with agent(service, home, clock=clock) as second:
        first.close()
        present = second.current()
        clock.advance(seconds=45)
        until(lambda: second.current() is not present)


# Revocation lists.


def listed(service: Service, *serials: int) -> None:
    for issuer, key in ((FORGE.root, FORGE.root_key), (FORGE.intermediate, FORGE.key)):
        crl = FORGE.crl(issuer, key, list(serials))
        name = _key_id(issuer)
        service.instead[f"/crl/{name}.crl"] = Response(crl.public_bytes(Encoding.DER))


def with_lists(shard: str = "") -> Credentials:
    point = x509.DistributionPoint(
        [x509.UniformResourceIdentifier(f"http://pki.example/crl/{_key_id(FORGE.intermediate)}{shard}.crl")],
        None,
        None,
        None,
    )
    return FORGE.leaf("/billing", extra=[(x509.CRLDistributionPoints([point]), False)])


def _key_id(issuer: x509.Certificate) -> str:
    return issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def test_without_lists_in_the_certificates_there_are_none(service: Service) -> None:
    with agent(service) as source:
        assert source.crls.current() == RevocationLists()
    assert not any("/crl/" in path for path in service.paths)


def test_lists_are_fetched_when_certificates_name_them(service: Service, tmp_path: Path) -> None:
    home = folder(tmp_path / "agent", with_lists())
    listed(service, 4711)
    with agent(service, home) as source:
        lists = source.crls.current()
        assert [len(list(crl)) for crl in lists.crls] == [1, 1]
        source.poll()
        assert source.crls.current() is lists
        listed(service, 4711, 4712)
        source.poll()
        assert [len(list(crl)) for crl in source.crls.current().crls] == [2, 2]
    # The next start needs no service for what is known.
    offline = RenewingCredentials(home, url="https://127.0.0.1:1")
    assert [len(list(crl)) for crl in offline.crls.current().crls] == [2, 2]


def test_lists_that_are_not_known_yet_let_nobody_pass(service: Service) -> None:
    listed(service)
    for path in service.instead:
        service.instead[path] = PlainTextResponse("", 503)
    source = agent(service, with_lists())
    source.poll()
    with pytest.raises(RevocationUnknown):
        source.crls.current()
    assert "in trouble" in (source.health.trust_problem or "")


def test_a_service_without_any_list_does_not_switch_revocation_off(service: Service) -> None:
    source = agent(service, with_lists())
    source.poll()
    assert "index of the revocation lists: got 0 names" in (source.health.trust_problem or "")
    with pytest.raises(RevocationUnknown):
        source.crls.current()


def test_a_renewed_certificate_that_names_lists_for_the_first_time(service: Service) -> None:
    source = agent(service)
    assert source.crls.current().crls == ()
    service.leaf = {
        "extra": [
            (with_lists().certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value, False)
        ]
    }
    source.renew()
    with pytest.raises(RevocationUnknown):
        source.crls.current()
    listed(service)
    source.poll()
    assert len(source.crls.current().crls) == 2


# The rest.


def test_no_url_and_no_bundle(tmp_path: Path) -> None:
    FORGE.leaf("/billing").save(tmp_path)
    with pytest.raises(BundleError):
        RenewingCredentials(tmp_path, url="https://ca.example")
    AgentFolder(tmp_path).save_bundle(FORGE.bundle)
    with pytest.raises(ConfigurationError):
        RenewingCredentials(tmp_path)
    with pytest.raises(ConfigurationError):
        RenewingCredentials(tmp_path, url="https://ca.example", bundles=FORGE.bundles)
    (tmp_path / "ca.json").write_text("{")
    with pytest.raises(CredentialsError, match=r"ca\.json"):
        RenewingCredentials(tmp_path)
    other = TrustBundle(trust_domain="other.example", roots=(FORGE.root,))
    (tmp_path / "bundle.json").write_text(TrustBundles.of(other).to_json())
    with pytest.raises(BundleError):
        RenewingCredentials(tmp_path, url="https://ca.example")


def test_in_an_event_loop_it_renews_without_stopping_it(service: Service) -> None:
    present = brief(3)

    async def program() -> None:
        with agent(service, present) as source:
            async with asyncio.timeout(10):
                while source.current() is present:
                    await asyncio.sleep(0.01)
        source = agent(service, present)
        await asyncio.to_thread(source.renew)
        assert source.renew()  # it blocks, and it works

    asyncio.run(program())


def test_a_listener_that_fails_decides_nothing(service: Service) -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("listener")

    source = agent(service, on_event=broken)
    present = source.current()
    assert source.renew() is not present


def test_a_defect_does_not_end_the_thread_nor_make_it_race(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    present = brief(3)
    source = agent(service, present)
    renew, broken = source._renewer.renew, [True, True]

    def twice() -> None:
        if broken:
            broken.pop()
            raise RuntimeError("defect")
        renew()

    monkeypatch.setattr(source._renewer, "renew", twice)
    with source:
        until(lambda: source.health.failures)
        assert "RuntimeError" in (source.health.problem or "")
        until(lambda: source.current() is not present)


def test_closing_breaks_off_what_is_under_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        source = RenewingCredentials(brief(), url=url, bundles=FORGE.bundles)
        source.start()
        time.sleep(0.5)
        source.close()  # the silence lasts for as long as this test does
        with pytest.raises(asyncio.CancelledError):
            source.renew()


def test_a_slow_service_is_given_up(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    from pki.client import est

    monkeypatch.setattr(est, "EXCHANGE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        source = RenewingCredentials(FORGE.leaf("/billing"), url=url, bundles=FORGE.bundles)
        with pytest.raises(AuthorityUnreachable):
            source.renew()


def test_a_refusal_without_a_known_check_is_told_as_it_came(service: Service) -> None:
    service.instead = {REENROLL: JSONResponse({"check": "pki.new", "error": "access_denied", "request": "r-1"}, 403)}
    with pytest.raises(EnrolmentFailed, match=r"CA service refuses: got status 403 check pki\.new.*r-1"):
        agent(service).renew()


def test_the_interpreter_ends_although_it_renews(tmp_path: Path) -> None:
    home = folder(tmp_path / "agent", FORGE.leaf("/billing"))
    code = f"from pki.client import RenewingCredentials; RenewingCredentials({str(home)!r}).start(); print('end')"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, cwd=Path(__file__).parents[3]
    )
    assert ran.returncode == 0 and ran.stdout == "end\n"


def test_ca_json_is_what_somebody_may_write(tmp_path: Path) -> None:
    (tmp_path / "ca.json").write_text(json.dumps({"url": "https://ca.example"}))
    assert AgentFolder(tmp_path).enrolment() == Enrolment(url="https://ca.example")
    assert BILLING
