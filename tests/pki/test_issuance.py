"""Many certificates at once, by whichever way each is to be had."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from pki import CertificateAuthority, keys, profiles, requests
from pki.errors import EnrolmentTokenUsed, IDRefused, NotIssuedHere, PossessionNotProven
from pki.issuance import Issued
from pki.records import Issue
from tests.pki.conftest import AGENT
from tests.pki.judges import request, uri

PATIENCE = 20  # seconds, on a busy machine
OTHER = "spiffe://fleet.example/reports"


def test_each_gets_what_it_would_have_got_alone(ca: CertificateAuthority) -> None:
    old = ca.issue(request(), AGENT)
    token = ca.create_token(OTHER, dns_names=["reports.fleet.example"]).text
    unsigned = bytearray(request())
    unsigned[-1] ^= 1
    results = ca.together(
        [
            ca.issuing(request(), AGENT),
            ca.issuing(bytes(unsigned), AGENT),
            ca.issuing(request(uri(OTHER)), AGENT),
            ca.enrolling(request(), token),
            ca.enrolling(request(), token),
            ca.renewing(request(), old.der),
            ca.renewing(request(), b"another"),
        ]
    )
    assert [AGENT if isinstance(one, Issued) else type(one) for one in results] == [
        AGENT,
        PossessionNotProven,
        IDRefused,
        AGENT,
        EnrolmentTokenUsed,
        AGENT,
        NotIssuedHere,
    ]
    made = [one for one in results if isinstance(one, Issued)]
    assert [str(one.agent_id) for one in made] == [AGENT, OTHER, AGENT]
    assert [ca.find(one.serial).der for one in made] == [one.der for one in made]
    assert all(one.certificate.public_bytes(Encoding.DER) == one.der for one in made)
    for one in made:
        one.certificate.verify_directly_issued_by(ca.intermediate)
    assert ca.audit_ledger().problems == ()


PARTS = [(requests, "parse"), (profiles, "agent"), (keys, "sign_agent")]


def test_each_part_is_done_for_all_before_the_next_is_begun(
    ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the code of one part stays in the processor's caches until all have passed it."""
    done: list[str] = []

    def noted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            done.append(name)
            return real(*arguments, **named)

        return call

    for module, name in PARTS:
        monkeypatch.setattr(module, name, noted(name, getattr(module, name)))
    old = ca.issue(request(), AGENT).der
    ways = {
        "issue": lambda: ca.issuing(request(), AGENT),
        "enrol": lambda: ca.enrolling(request(), ca.create_token(AGENT).text),
        "renew": lambda: ca.renewing(request(), old),
    }
    for way, steps in ways.items():
        done.clear()
        ca.together([steps() for _ in range(3)])
        assert done == [name for _, name in PARTS for _ in range(3)], way


def test_callers_in_several_threads_share_a_transaction(
    ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go, sizes, real = threading.Event(), threading.Event(), list[int](), ca._store.issue_many

    def slow(items: Sequence[Issue]) -> Sequence[Exception | None]:
        sizes.append(len(items))
        entered.set()
        assert go.wait(PATIENCE)
        return real(items)

    monkeypatch.setattr(ca._store, "issue_many", slow)
    with ThreadPoolExecutor(6) as pool:
        made = [pool.submit(ca.issue, request(), AGENT)]
        assert entered.wait(PATIENCE)
        made += [pool.submit(ca.issue, request(), AGENT) for _ in range(4)]
        refused = pool.submit(ca.issue, request(uri(OTHER)), AGENT)
        end = time.monotonic() + PATIENCE
        while len(ca._callers._waiting) < 5 and time.monotonic() < end:
            time.sleep(0.001)
        go.set()
        assert len({one.result(PATIENCE).serial for one in made}) == 5
        assert type(refused.exception(PATIENCE)) is IDRefused
    assert sizes == [1, 4]
