"""`a2a-trust serve`: exit codes, one-line errors, and what is served with what."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.forge import Forge
from trust import cli, files
from trust.authorize import allows
from trust.bundles import TrustBundles
from trust.cli import serve as serving
from trust.identity import AgentID

FORGE = Forge()


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    folder = tmp_path / "agent"
    FORGE.leaf("/authority").save(folder)
    (folder / "bundle.json").write_text(FORGE.bundles.to_json())
    (folder / "foreign.crl").write_bytes(Forge().crls().crls[0].public_bytes(Encoding.PEM))
    return folder


USAGE = {
    "nothing to serve": (["serve"], "give either MODULE:APP or --authority"),
    "two things to serve": (["serve", "a:b", "--authority", "x"], "give either MODULE:APP or --authority"),
    "nobody allowed": (["serve", "a:b", "--credentials", "{agent}"], "nobody may connect"),
    "no issuer": (["serve", "--authority", "x", "--credentials", "{agent}", "--allow", "fleet.example"], "--issuer"),
    "two bundle maps": (
        ["serve", "a:b", "--credentials", "{agent}", "--allow", "a.b", "--bundles", "x", "--bundles", "y"],
        "--bundles: give either one FILE",
    ),
    "a domain's bundle twice": (
        ["serve", "a:b", "--credentials", "{agent}", "--allow", "a.b", "--bundles", "a.b=x", "--bundles", "a.b=y"],
        "--bundles: give either one FILE",
    ),
    "a map and a domain's bundle": (
        ["serve", "a:b", "--credentials", "{agent}", "--allow", "a.b", "--bundles", "a.b=x", "--bundles", "y"],
        "--bundles: give either one FILE",
    ),
    "not an import": (["serve", "nowhere", "--credentials", "{agent}", "--allow", "fleet.example"], "MODULE:APP"),
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage_is_one_line_and_2(name: str, agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = USAGE[name]
    assert cli.main([a.replace("{agent}", str(agent)) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


REFUSED = {
    "no credentials": (
        ["serve", "a:b", "--credentials", "nowhere", "--allow", "fleet.example"],
        "no credentials in nowhere: expected chain.pem and key.pem, svid.pem and svid_key.pem, or tls.crt and tls.key; "
        "give --credentials DIR, which `a2a-pki enrol` makes",
    ),
    "no bundle": (["serve", "a:b", "--credentials", "{agent}", "--bundles", "x", "--allow", "a.b"], "cannot read x"),
    "malformed ID": (["serve", "a:b", "--credentials", "{agent}", "--allow", "spiffe://A/b"], "trust domain"),
    "malformed domain": (["serve", "a:b", "--credentials", "{agent}", "--allow", "A b"], "trust domain"),
    "no such module": (
        ["serve", "nowhere:app", "--credentials", "{agent}", "--allow", "fleet.example"],
        "cannot import",
    ),
    "not an application": (
        ["serve", "json:__doc__", "--credentials", "{agent}", "--allow", "fleet.example"],
        "json:__doc__: got str, expected an ASGI application",
    ),
    "a domain without roots": (
        ["serve", "a:b", "--credentials", "{agent}", "--allow", "planner"],
        "--allow: got trust domain planner, expected one of fleet.example",
    ),
    "revocation lists of another CA": (
        ["serve", "a:b", "--credentials", "{agent}", "--allow", "fleet.example", "--crl", "{agent}/foreign.crl"],
        "our own certificate would be refused",
    ),
    "no clients": (
        ["serve", "--authority", "x", "--issuer", "https://a", "--credentials", "{agent}", "--allow", "fleet.example"],
        "cannot read x",
    ),
    "a proxy that is no ID": (
        ["serve", "a:b", "--credentials", "{agent}", "--allow", "fleet.example", "--proxy", "fleet.example"],
        "spiffe://",
    ),
    "no CRL": (["serve", "a:b", "--credentials", "{agent}", "--allow", "a.b", "--crl", "x"], "cannot read x"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_one_line_and_1(name: str, agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = REFUSED[name]
    assert cli.main([a.replace("{agent}", str(agent)) for a in arguments]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_an_expired_certificate_is_told_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FORGE.leaf("/authority", not_after=datetime.now(UTC) - timedelta(seconds=1)).save(tmp_path)
    (tmp_path / "bundle.json").write_text(FORGE.bundles.to_json())
    assert cli.main(["serve", "a:b", "--credentials", str(tmp_path), "--allow", "fleet.example"]) == 1
    assert "our own certificate would be refused: certificate has expired" in capsys.readouterr().err


def test_the_password_of_an_encrypted_key_is_told_with_its_variable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    FORGE.leaf("/authority").save(tmp_path, password="right")
    (tmp_path / "bundle.json").write_text(FORGE.bundles.to_json())
    (tmp_path / "clients.toml").write_text("# nobody yet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serving, "serve_app", lambda *_, **__: None)
    arguments = ["serve", "--authority", "clients.toml", "--issuer", "https://localhost"]
    arguments += ["--credentials", ".", "--allow", "fleet.example"]
    monkeypatch.delenv("A2A_TRUST_PASSWORD", raising=False)
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err == "a2a-trust: private key in . is encrypted; set A2A_TRUST_PASSWORD\n"
    monkeypatch.setenv("A2A_TRUST_PASSWORD", "wrong")
    assert cli.main(arguments) == 1
    assert "the password is that of A2A_TRUST_PASSWORD\n" in capsys.readouterr().err
    # The same variable is nothing to the signing keys: their password is the one in their folder.
    monkeypatch.setenv("A2A_TRUST_PASSWORD", "right")
    monkeypatch.delenv("A2A_TRUST_AUTHORITY_PASSWORD", raising=False)
    for _ in range(2):
        assert cli.main(arguments) == 0
    assert (tmp_path / "authority-state" / "signing-key.password").is_file()


def test_a_partner_of_our_own_trust_domain_is_to_be_looked_at(
    agent: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def serve(*_: object, **__: object) -> None:
        limit = time.monotonic() + 20
        while "may speak for the agents of fleet.example, which is our own trust domain" not in caplog.text:
            assert time.monotonic() < limit
            time.sleep(0.02)

    monkeypatch.setattr(serving, "serve_app", serve)
    (agent / "clients.toml").write_text(
        '[[partner]]\nissuer = "https://other.example"\njwks_uri = "https://other.example/jwks"\n'
        'trust_domains = ["fleet.example"]\nscopes = ["read:x"]\n'
    )
    arguments = ["serve", "--authority", str(agent / "clients.toml"), "--issuer", "https://localhost"]
    arguments += ["--credentials", str(agent), "--allow", "fleet.example", "--state", str(agent / "state")]
    assert cli.main(arguments) == 0


def served(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """What `serve` would serve with."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(serving, "serve_app", lambda app, **settings: given.update(settings))
    monkeypatch.setattr(serving, "_import", lambda target: target)
    assert cli.main(["serve", "a:b", "--allow", "fleet.example", *arguments]) == 0
    return given


def test_what_is_served_with_follows_its_files(agent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crls = []
    for number, crl in enumerate(FORGE.crls().crls):
        crls.append(agent / f"{number}.crl")
        crls[-1].write_bytes(crl.public_bytes(Encoding.PEM))
    given = served(monkeypatch, "--credentials", str(agent), *(a for c in crls for a in ("--crl", str(c))))
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(files, "SETTLE_SECONDS", 0.0)
    renewed, revoked = FORGE.leaf("/authority"), FORGE.leaf("/revoked")
    renewed.save(agent)
    (agent / "bundle.json").write_text(TrustBundles.of(FORGE.bundle, Forge("other.example").bundle).to_json())
    crls[0].write_bytes(FORGE.crls(revoked).crls[0].public_bytes(Encoding.PEM))

    def follows() -> bool:
        return (
            given["source"].current().thumbprint == renewed.thumbprint
            and set(given["bundles"].current().by_domain) == {"fleet.example", "other.example"}
            and len(given["crls"].current().crls[0]) == 1
        )

    deadline = time.monotonic() + 10
    while not follows():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_files_of_spiffe_helper_are_served_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = FORGE.leaf("/authority"), Forge("other.example")
    (tmp_path / "svid.pem").write_bytes(ours.chain_pem)
    (tmp_path / "svid_key.pem").write_bytes(ours.key_pem())
    (tmp_path / "svid_bundle.pem").write_bytes(FORGE.root.public_bytes(Encoding.PEM))
    (tmp_path / "other.json").write_text(other.bundle.to_json())
    given = served(
        monkeypatch,
        *("--credentials", str(tmp_path)),
        *("--bundles", f"fleet.example={tmp_path / 'svid_bundle.pem'}"),
        *("--bundles", f"other.example={tmp_path / 'other.json'}"),
    )
    assert given["source"].current().thumbprint == ours.thumbprint
    assert given["bundles"].current() == TrustBundles.of(FORGE.bundle, other.bundle)


def test_proxies_are_believed_by_their_ids(agent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"spiffe://fleet.example/{name}" for name in ("nginx", "envoy", "billing")]
    given = served(monkeypatch, "--credentials", str(agent), "--proxy", ids[0], "--proxy", ids[1])
    assert [allows(given["proxies"], AgentID.parse(each)) for each in ids] == [True, True, False]
    assert served(monkeypatch, "--credentials", str(agent))["proxies"] is None


def test_interrupts_and_broken_files_are_one_line(
    monkeypatch: pytest.MonkeyPatch, agent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, "serve_app", interrupted)
    monkeypatch.setattr(serving, "_import", lambda target: target)
    assert cli.main(["serve", "a:b", "--credentials", str(agent), "--allow", "fleet.example"]) == 130
    assert capsys.readouterr().err == "a2a-trust: interrupted\n"
    (agent / "file").write_text("")
    monkeypatch.setattr(serving, "serve_app", lambda *_, **__: None)
    arguments = ["serve", "--authority", "c.toml", "--issuer", "https://localhost", "--credentials", str(agent)]
    assert cli.main([*arguments, "--allow", "fleet.example", "--state", str(agent / "file")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
