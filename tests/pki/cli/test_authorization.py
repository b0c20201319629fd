"""`a2a-pki serve --authority`: what is wrong is said before anything is served. (`test_journey` shows it at work.)"""

from __future__ import annotations

import pickle
from pathlib import Path

from pki.cli.authorization import beside
from tests.pki.cli.parts import Run, one_line
from tests.pki.conftest import DOMAIN
from trust.audit import AuditLog
from trust.clock import wall_clock

CLIENTS = f"""
[[client]]
agent_id = "spiffe://{DOMAIN}/planner"
scopes = ["agent:execute"]
resources = ["spiffe://{DOMAIN}/rates"]
"""


def test_worker_processes_are_given_the_way_to_open_it(tmp_path: Path) -> None:
    (tmp_path / "clients.toml").write_text(CLIENTS)
    opener = beside(tmp_path / "clients.toml", "https://localhost", tmp_path / "state", None)
    with pickle.loads(pickle.dumps(opener))(AuditLog(), wall_clock) as app:
        assert "/token" in {route.path for route in app.routes}


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
    assert not Path("ca/authority").exists()
