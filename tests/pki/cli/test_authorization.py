"""`a2a-pki serve --authority`: what is wrong is said before anything is served. (`test_journey` shows it at work.)"""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import pytest

from pki.cli.authorization import beside
from pki.service.beside import Lent
from tests.forge import Forge
from tests.pki.cli.parts import Run, one_line
from tests.pki.conftest import DOMAIN
from trust.audit import AuditLog
from trust.clock import wall_clock
from trust.sources import Live

CLIENTS = f"""
[[client]]
agent_id = "spiffe://{DOMAIN}/planner"
scopes = ["agent:execute"]
resources = ["spiffe://{DOMAIN}/rates"]
"""


PARTNER = f"""
[[partner]]
issuer = "https://localhost:1"
jwks_uri = "https://localhost:1/jwks"
agent_id = "spiffe://{DOMAIN}/partner"
trust_domains = ["{DOMAIN}"]
scopes = ["agent:execute"]
"""


def test_worker_processes_are_given_the_way_to_open_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "clients.toml").write_text(CLIENTS + PARTNER)
    forge = Forge(DOMAIN)
    opener = beside(
        DOMAIN,
        clients=tmp_path / "clients.toml",
        issuer="https://localhost",
        folder=tmp_path / "state",
        url=None,
        redis_url=None,
    )
    ours = Live(forge.leaf("/a2a-pki/server"))
    lent = Lent(audit=AuditLog(), clock=wall_clock, credentials=ours, bundles=forge.bundles, crls=forge.crls())
    with pickle.loads(pickle.dumps(opener))(lent) as app:
        assert "/token" in {route.path for route in app.routes}
        limit = time.monotonic() + 20
        while f"may speak for the agents of {DOMAIN}, which is our own trust domain" not in caplog.text:
            assert time.monotonic() < limit
            time.sleep(0.02)


def test_what_cannot_be_served_is_one_line(tmp_path: Path, run: Run, password: None) -> None:
    assert run("init", "ca", "--trust-domain", DOMAIN).code == 0
    issuer = ("--issuer", "https://localhost")
    assert "--issuer URL go together" in one_line(run("serve", "ca", "--authority", "clients.toml"), code=2)
    assert "--issuer URL go together" in one_line(run("serve", "ca", *issuer), code=2)
    assert "cannot read clients.toml" in one_line(
        run("serve", "ca", "--port", 0, "--authority", "clients.toml", *issuer)
    )
    Path("clients.toml").write_text(CLIENTS)
    wrong = ("serve", "ca", "--port", 0, "--authority", "clients.toml", "--issuer", "http://localhost")
    assert "expected an https URL" in one_line(run(*wrong))
    assert "--authority-state" in one_line(
        run("serve", "postgresql://x/y", "--authority", "clients.toml", *issuer), code=2
    )
    assert "--authority-redis is for --authority" in one_line(run("serve", "ca", "--authority-redis", "x"), code=2)
    right = ("serve", "ca", "--port", 0, "--authority", "clients.toml", *issuer)
    assert "without TLS" in one_line(run(*right, "--authority-redis", "redis://elsewhere.example"))
    Path("clients.toml").write_text(CLIENTS + PARTNER.replace("scopes", "scope"))
    assert "unknown members: got scope" in one_line(run(*right))
    Path("clients.toml").write_text(CLIENTS + PARTNER.replace(f"{DOMAIN}/partner", "partner.example/partner"))
    assert "got an agent of partner.example, expected one of" in one_line(run(*right))
    assert not Path("ca/authority").exists()
