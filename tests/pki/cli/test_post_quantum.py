"""Post-quantum keys on the command line: asked about, and shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from pki.authority import CertificateAuthority
from pki.requests import make
from tests.pki.cli.parts import Run
from tests.pki.conftest import AGENT, DOMAIN, PASSWORD
from trust.identity import AgentID
from trust.private_keys import KINDS, POST_QUANTUM, generate

POLICY = '[[allow]]\nids = ["/**"]\nkeys = ["P-256", "ML-DSA-44"]\n'


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_is_asked_about_every_kind_of_key(run: Run, tmp_path: Path, kind: str) -> None:
    (tmp_path / "policy.toml").write_text(POLICY)
    said = run("policy", "check", "policy.toml", AGENT, "--key", kind, "--json")
    assert said.code == (0 if kind in ("P-256", "ML-DSA-44") else 1)


@pytest.mark.usefixtures("password")
def test_a_ca_without_a_policy_refuses_them_and_shows_what_it_has_issued(run: Run, tmp_path: Path) -> None:
    key = generate("ML-DSA-44")
    with CertificateAuthority.create(tmp_path / "ca", trust_domain=DOMAIN, password=PASSWORD) as ca:
        for kind in sorted(POST_QUANTUM):
            said = run("policy", "check", "ca", AGENT, "--key", kind)
            assert said.code == 1
            assert f'allow keys = ["{kind}"]' in " ".join(said.out.split())
        ca.set_policy(POLICY)
        assert run("policy", "check", "ca", AGENT, "--key", "ML-DSA-44").code == 0
        chain = ca.issue(make(key, AgentID.parse(AGENT)), AgentID.parse(AGENT)).chain_pem
    (tmp_path / "chain.pem").write_bytes(chain if isinstance(chain, bytes) else chain.encode())
    assert "ML-DSA-44" in run("show", "chain.pem").out
