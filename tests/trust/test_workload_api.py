"""The Workload API as a source: it follows, it survives outages, and it never makes up an identity."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import spiffe

from tests.forge import Forge
from tests.trust.tls.parts import AGENTS, SERVERS, echo, run
from tests.trust.workload_agent import Said, WorkloadAgent, answer, ders, svid
from trust import workload_api
from trust.agent import agent_client
from trust.credentials import Credentials
from trust.errors import (
    CertificateRevoked,
    ConfigurationError,
    HandshakeFailed,
    HandshakeRefused,
    TransportError,
    TrustError,
    WorkloadAPIDenied,
    WorkloadAPIRefused,
    WorkloadAPIUnavailable,
)
from trust.peers import verify_peer
from trust.private_keys import generate
from trust.tls import serving
from trust.workload_api import WorkloadSource

FORGE, PARTNER, NEXT = Forge(), Forge("partner.example"), Forge()
ROOTS = (FORGE.root,)
BILLING, PLANNER = FORGE.leaf("/billing"), FORGE.leaf("/planner")
GOOD = answer(svid(BILLING, ROOTS))
FOREIGN = {"spiffe://partner.example": ders([PARTNER.root])}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[WorkloadAgent]:
    with WorkloadAgent(tmp_path, GOOD) as running:
        yield running


@pytest.fixture
def source(agent: WorkloadAgent) -> Iterator[WorkloadSource]:
    with WorkloadSource(agent.endpoint) as following:
        yield following


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def withdrawn(source: WorkloadSource) -> bool:
    try:
        source.current()
    except WorkloadAPIDenied:
        return True
    return False


def is_now(source: WorkloadSource, credentials: Credentials) -> Callable[[], bool]:
    return lambda: not withdrawn(source) and source.current().thumbprint == credentials.thumbprint


# The first answer


def test_identity_trust_and_lists_come_together(agent: WorkloadAgent) -> None:
    agent.say(answer(svid(BILLING, ROOTS), federated=FOREIGN, crl=FORGE.crls(PLANNER).crls))
    with WorkloadSource(agent.endpoint) as source:
        assert source.current().thumbprint == BILLING.thumbprint
        assert source.problem is None
        bundles, crls = source.bundles.current(), source.crls.current()
        assert sorted(bundles.by_domain) == ["fleet.example", "partner.example"]
        now = datetime.now(UTC)
        verify_peer(BILLING.chain_der, bundles=bundles, now=now, crls=crls, usage="client")
        verify_peer(PARTNER.leaf().chain_der, bundles=bundles, now=now, crls=crls, usage="client")
        with pytest.raises(CertificateRevoked):
            verify_peer(PLANNER.chain_der, bundles=bundles, now=now, crls=crls, usage="client")
        assert source.current() is source.current()
        assert source.bundles.current() is bundles


def test_the_package_of_that_name_gets_the_same_from_our_test_server(agent: WorkloadAgent) -> None:
    agent.say(answer(svid(BILLING, ROOTS), federated=FOREIGN))
    with spiffe.WorkloadApiClient(agent.endpoint) as client, WorkloadSource(agent.endpoint) as source:
        theirs = client.fetch_x509_context(timeout=20)
        assert str(theirs.default_svid.spiffe_id) == str(source.current().agent_id)
        assert tuple(theirs.default_svid.cert_chain) == source.current().chain
        for domain, bundle in source.bundles.current().by_domain.items():
            found = theirs.x509_bundle_set.get_bundle_for_trust_domain(spiffe.TrustDomain(domain))
            assert found is not None and set(found.x509_authorities) == set(bundle.roots)


def test_several_identities(agent: WorkloadAgent) -> None:
    agent.say(answer(svid(BILLING, ROOTS), svid(PLANNER, ROOTS)))
    with WorkloadSource(agent.endpoint) as first, WorkloadSource(agent.endpoint, agent_id=PLANNER.agent_id) as named:
        assert (first.current().agent_id.path, named.current().agent_id.path) == ("/billing", "/planner")
        # Whoever was the first is that agent for good, wherever it stands from now on.
        renewed = FORGE.leaf("/billing")
        agent.say(answer(svid(PLANNER, ROOTS), svid(renewed, ROOTS)))
        until(is_now(first, renewed))
        assert named.current().thumbprint == PLANNER.thumbprint


def test_a_post_quantum_identity(agent: WorkloadAgent) -> None:
    credentials = FORGE.leaf("/billing", key=generate("ML-DSA-65"))
    agent.say(answer(svid(credentials, ROOTS)))
    with WorkloadSource(agent.endpoint) as source:
        assert source.current().thumbprint == credentials.thumbprint


def test_the_endpoint_of_the_environment(agent: WorkloadAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", agent.endpoint)
    with WorkloadSource() as source:
        assert source.current().agent_id == BILLING.agent_id
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", "unix:///nowhere")
    with WorkloadSource(agent.endpoint) as source:  # an argument outweighs it
        assert source.current().agent_id == BILLING.agent_id


STATUS = grpc.StatusCode
STARTS: list[tuple[str, Said, type[TrustError], str]] = [
    ("silence", None, WorkloadAPIUnavailable, "nothing within"),
    ("a stream that ends without a word", STATUS.OK, WorkloadAPIUnavailable, "nothing within"),
    ("denied", STATUS.PERMISSION_DENIED, WorkloadAPIDenied, "no identity for this process"),
    ("an API without this call", STATUS.UNIMPLEMENTED, WorkloadAPIRefused, "UNIMPLEMENTED"),
    ("a request that it dislikes", STATUS.INVALID_ARGUMENT, WorkloadAPIRefused, "INVALID_ARGUMENT"),
    ("not up yet", STATUS.UNAVAILABLE, WorkloadAPIUnavailable, "nobody listens"),
    ("rubbish", b"\xff\xff", WorkloadAPIRefused, "X509SVIDResponse"),
    ("too much", b"\x12\x80\x80\x80\x03" + bytes(6 << 20), WorkloadAPIRefused, "RESOURCE_EXHAUSTED"),
    ("no identity", answer(), WorkloadAPIRefused, "0 identities"),
    ("a wrong key", answer(svid(BILLING, ROOTS, x509_svid_key=svid(PLANNER, ROOTS).x509_svid_key)),
     WorkloadAPIRefused, "another certificate"),
    ("another identity", answer(svid(PLANNER, ROOTS)), WorkloadAPIDenied, "expected spiffe://fleet.example/billing"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "expected", "words"), [row[1:] for row in STARTS], ids=[row[0] for row in STARTS])
def test_without_an_identity_there_is_no_source(
    agent: WorkloadAgent, said: Said, expected: type[TrustError], words: str
) -> None:
    agent.say(said)
    patience = 1.0 if expected is WorkloadAPIUnavailable else 30.0
    with pytest.raises(ConfigurationError) as caught:
        WorkloadSource(agent.endpoint, agent_id=BILLING.agent_id, timeout=patience)
    assert type(caught.value) is expected
    assert words in str(caught.value)
    assert "nobody's business" not in str(caught.value)
    assert not [t for t in threading.enumerate() if t.name == "workload-api"], "nothing goes on in the background"


def test_a_socket_that_is_not_there_and_one_where_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(WorkloadAPIUnavailable, match="no such socket: unix:/") as caught:
        WorkloadSource(f"unix://{tmp_path}/none.sock", timeout=30)
    assert caught.value.check == "credentials.workload_api"
    with socket.socket(socket.AF_UNIX) as nobody:
        nobody.bind(str(tmp_path / "nobody.sock"))
        with pytest.raises(WorkloadAPIUnavailable, match="nobody listens"):
            WorkloadSource(f"unix://{tmp_path}/nobody.sock", timeout=1)


def test_an_endpoint_that_comes_up_in_time(agent: WorkloadAgent) -> None:
    agent.say(STATUS.UNAVAILABLE)
    timer = threading.Timer(0.3, agent.say, [GOOD])
    timer.start()
    with WorkloadSource(agent.endpoint, timeout=30) as source:
        assert source.current().thumbprint == BILLING.thumbprint
        assert source.problem is None
    timer.join()


ENDPOINTS = [
    "", "/run/agent.sock", "unix:", "unix:relative.sock", "unix://host/agent.sock", "unix:///a.sock?x=y",
    "unix:///a.sock#f", "http://127.0.0.1:80", "tcp://127.0.0.1", "tcp://10.0.0.1:8081", "tcp://localhost:8081",
    "tcp://127.0.0.1:8081/path", "tcp://user@127.0.0.1:8081", "tcp://127.0.0.1:99999", "tcp://[::1:80",
]  # fmt: skip


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_endpoint_is_a_socket_of_this_machine(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPIFFE_ENDPOINT_SOCKET", raising=False)
    with pytest.raises(ConfigurationError, match="Workload API endpoint: got") as caught:
        WorkloadSource(endpoint)
    assert type(caught.value) is ConfigurationError


def test_one_over_tcp_on_this_machine() -> None:
    with WorkloadAgent(None, GOOD) as agent, WorkloadSource(agent.endpoint) as source:
        assert source.current().thumbprint == BILLING.thumbprint
    with pytest.raises(WorkloadAPIUnavailable, match=r"nobody listens: 127\.0\.0\.1"):
        WorkloadSource(agent.endpoint, timeout=1)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'a2a-trust\[spiffe\]'"):
        WorkloadSource("unix:///run/agent.sock")


# What comes later


def test_it_follows_and_changes_only_what_changed(agent: WorkloadAgent, source: WorkloadSource) -> None:
    before, bundles, crls = source.current(), source.bundles.current(), source.crls.current()
    agent.say(answer(svid(BILLING, (FORGE.root, NEXT.root))))
    until(lambda: source.bundles.current() is not bundles)
    assert source.bundles.current().by_domain["fleet.example"].roots == (FORGE.root, NEXT.root)
    assert source.current() is before and source.crls.current() is crls
    renewed = FORGE.leaf("/billing")
    agent.say(answer(svid(renewed, (FORGE.root, NEXT.root)), federated=FOREIGN))
    until(is_now(source, renewed))
    assert "partner.example" in source.bundles.current().by_domain
    agent.say(answer(svid(renewed, (NEXT.root,))))
    until(lambda: "partner.example" not in source.bundles.current().by_domain)
    assert source.bundles.current().by_domain["fleet.example"].roots == (NEXT.root,)
    assert agent.streams == 1


def test_an_outage_is_survived(agent: WorkloadAgent, source: WorkloadSource, caplog: Any) -> None:
    agent.stop()
    until(lambda: source.problem)
    assert "Workload API cannot be reached" in (source.problem or "")
    assert source.current().thumbprint == BILLING.thumbprint
    renewed = FORGE.leaf("/billing")
    agent.say(answer(svid(renewed, ROOTS)))
    agent.start()
    until(is_now(source, renewed))
    assert source.problem is None
    assert "the last good answer stays in use" in caplog.text


@pytest.mark.parametrize("said", [b"\xff", answer(), STATUS.INTERNAL, STATUS.UNAUTHENTICATED])
def test_what_cannot_be_used_changes_nothing(agent: WorkloadAgent, source: WorkloadSource, said: Said) -> None:
    agent.say(said)
    until(lambda: source.problem)
    assert source.current().thumbprint == BILLING.thumbprint
    renewed = FORGE.leaf("/billing")
    agent.say(answer(svid(renewed, ROOTS)))
    until(is_now(source, renewed))
    assert source.problem is None


@pytest.mark.parametrize("said", [STATUS.PERMISSION_DENIED, answer(svid(PLANNER, ROOTS))], ids=["all", "this one"])
def test_an_identity_that_is_taken_back_is_no_longer_used(
    agent: WorkloadAgent, source: WorkloadSource, said: Said, caplog: Any
) -> None:
    agent.say(said)
    until(lambda: withdrawn(source))
    assert source.problem and "nothing is in use" in caplog.text
    agent.stop()
    until(lambda: "cannot be reached" in (source.problem or ""))
    assert withdrawn(source), "an outage afterwards does not bring it back"
    agent.start()
    agent.say(GOOD)
    until(is_now(source, BILLING))
    assert source.problem is None


def test_trust_changes_with_or_without_our_identity(agent: WorkloadAgent, source: WorkloadSource) -> None:
    agent.say(answer(svid(PLANNER, (NEXT.root,))))
    until(lambda: withdrawn(source))
    assert source.bundles.current().by_domain["fleet.example"].roots == (NEXT.root,)


def test_streams_that_end_are_opened_again_and_not_in_a_hurry(agent: WorkloadAgent, source: WorkloadSource) -> None:
    agent.say(STATUS.OK)
    until(lambda: agent.streams >= 4)
    assert source.current().thumbprint == BILLING.thumbprint
    renewed = FORGE.leaf("/billing")
    agent.say(answer(svid(renewed, ROOTS)))
    until(is_now(source, renewed))


def test_an_endpoint_that_falls_silent_is_asked_anew_before_the_certificate_ends(
    agent: WorkloadAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload_api, "QUIET_SECONDS", 0.2)
    now = datetime.now(UTC)
    ending = FORGE.leaf("/billing", not_before=now - timedelta(seconds=500), not_after=now + timedelta(seconds=101))
    agent.say(answer(svid(ending, ROOTS)))
    with WorkloadSource(agent.endpoint) as source:
        until(lambda: agent.streams >= 4)  # again and again, for it may never come to replace it
        assert source.problem is None
        assert source.current().thumbprint == ending.thumbprint


def test_an_endpoint_that_hangs_is_noticed(agent: WorkloadAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload_api, "ANSWER_SECONDS", 0.3)
    with WorkloadSource(agent.endpoint, timeout=30) as source:
        agent.stop()
        agent.say(None)
        agent.start()
        until(lambda: "no answer in time" in (source.problem or ""))
        assert source.current().thumbprint == BILLING.thumbprint
        agent.say(GOOD)
        until(lambda: source.problem is None)


def test_a_defect_does_not_end_the_following(
    agent: WorkloadAgent, source: WorkloadSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: bytes) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(source._messages, "read", broken)
    agent.say(GOOD)
    until(lambda: source.problem)
    assert source.problem == "answer of the Workload API: got RuntimeError"
    monkeypatch.undo()
    until(lambda: source.problem is None)


def test_closing_ends_it(agent: WorkloadAgent) -> None:
    source = WorkloadSource(agent.endpoint)
    source.close()
    source.close()
    assert not [t for t in threading.enumerate() if t.name == "workload-api"]
    agent.say(answer(svid(FORGE.leaf("/billing"), (NEXT.root,))))
    assert source.current().thumbprint == BILLING.thumbprint
    assert source.problem is None


# In use


def test_agents_over_mutual_tls_follow_a_rotation_without_a_failed_call(tmp_path: Path) -> None:
    """Certificates change with every step, and the roots by way of both, as SPIRE replaces its CA."""
    for name in ("server", "client"):
        (tmp_path / name).mkdir()
    both = (FORGE.root, NEXT.root)
    steps = [(FORGE, ROOTS), (FORGE, both), (NEXT, both), (NEXT, (NEXT.root,)), (NEXT, (NEXT.root,))]

    def given(forge: Forge, roots: Any, path: str) -> bytes:
        return answer(svid(forge.leaf(path), roots))

    with (
        WorkloadAgent(tmp_path / "server", given(*steps[0], "/server")) as here,
        WorkloadAgent(tmp_path / "client", given(*steps[0], "/billing")) as there,
        WorkloadSource(here.endpoint) as server,
        WorkloadSource(there.endpoint) as client,
    ):

        async def main() -> None:
            seen: set[str] = set()
            async with (
                serving(echo, source=server, bundles=server.bundles, crls=server.crls, authorize=AGENTS) as live,
                agent_client(source=client, bundles=client.bundles, authorize=SERVERS) as http,
            ):

                async def call() -> None:
                    answered = await http.post(live.url, content=b"x" * 2000)
                    assert (answered.status_code, answered.headers["x-peer"]) == (200, "/billing")
                    seen.add(client.current().thumbprint)

                await call()
                for forge, roots in steps[1:]:
                    # The new root is everywhere before the first certificate of it is, as its CA sees to.
                    before = server.current(), client.current()
                    here.say(given(forge, roots, "/server"))
                    there.say(given(forge, roots, "/billing"))
                    while server.current() is before[0] or client.current() is before[1]:
                        await call()
                    await call()
            assert len(seen) == len(steps)

        run(main())


def test_an_agent_whose_identity_was_taken_back_says_so_and_comes_back_with_it(tmp_path: Path) -> None:
    refused: list[TrustError] = []
    server = FORGE.leaf("/server")
    with (
        WorkloadAgent(tmp_path, answer(svid(server, ROOTS))) as agent,
        WorkloadSource(agent.endpoint) as source,
    ):

        async def main() -> None:
            options: dict[str, Any] = {"bundles": source.bundles, "authorize": AGENTS}
            async with serving(echo, source=source, on_refused=lambda e, _: refused.append(e), **options) as live:

                async def call(ours: Any) -> int:
                    async with agent_client(source=ours, bundles=FORGE.bundles, authorize=SERVERS) as http:
                        return (await http.get(live.url)).status_code

                assert await call(BILLING) == 200
                agent.say(STATUS.PERMISSION_DENIED)
                await asyncio.to_thread(until, lambda: withdrawn(source))
                with pytest.raises(TransportError) as caught:
                    await call(BILLING)
                assert type(caught.value) in (HandshakeFailed, HandshakeRefused)
                assert [type(error) for error in refused] == [WorkloadAPIDenied]
                with pytest.raises(WorkloadAPIDenied, match="no identity for this process"):
                    await call(source)
                agent.say(answer(svid(server, ROOTS)))
                await asyncio.to_thread(until, lambda: not withdrawn(source))
                assert await call(BILLING) == 200

        run(main())
