"""`a2a-trust card`: exit codes, what goes where, and one line for every refusal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.cards import BILLING, CARD, FORGE, URL, agent_of, changed, sdk_signed, text, x5c
from trust.cli import main
from trust.oauth.keys import SigningKey, public_jwks
from trust.private_keys import generate
from trust.signing.cards import sign_card

ID = str(BILLING.agent_id)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An agent's credentials and bundle, and its card."""
    BILLING.save(tmp_path)
    (tmp_path / "bundle.json").write_text(FORGE.bundles.to_json())
    (tmp_path / "card.json").write_bytes(text(CARD))
    (tmp_path / "signed.json").write_bytes(sign_card(CARD, credentials=BILLING).text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["card", *arguments])
    return code, *capfd.readouterr()


def refused(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    found, out, err = run(capfd, *arguments)
    assert (found, out) == (code, "")
    assert err.startswith("a2a-trust: ")
    assert err.count("\n") == 1, err
    return err


def test_an_agent_whose_host_is_none(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "got https://xn--a/, expected" in refused(capfd, "verify", "signed.json", "--agent", "https://xn--a/")


def test_sign_and_verify(folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, signed, err = run(capfd, "sign", "card.json")
    assert (code, err) == (0, "")
    assert signed == (folder / "signed.json").read_text() + "\n"
    for agent in (ID, URL):
        code, out, err = run(capfd, "verify", "signed.json", "--agent", agent)
        assert (code, json.loads(out), err) == (0, CARD, f"signer: {ID}\n")
        assert out.isascii()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(signed.encode())))
    code, out, _ = run(capfd, "verify", "--agent", ID, "--json", "--bundles", "bundle.json")
    assert (code, json.loads(out)) == (
        0,
        {"signer": ID, "kid": BILLING.thumbprint, "uncovered": [], "card": CARD},
    )


def test_signing_tells_what_it_changed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "card.json").write_bytes(text(changed(iconUrl="")))
    code, signed, err = run(capfd, "sign", "card.json")
    assert (code, err) == (0, "iconUrl: is empty, or the default; left out\n")
    assert "iconUrl" not in json.loads(signed)


def test_two_signatures(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    agent_of("/billing", "billing.fleet.example").save(folder / "new")
    _, signed, _ = run(capfd, "sign", "card.json", "--also", "new")
    assert len(json.loads(signed)["signatures"]) == 2


def test_pinned_keys(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    key = SigningKey.generate()
    (folder / "jwks.json").write_text(json.dumps(public_jwks([key])))
    (folder / "theirs.json").write_bytes(text(sdk_signed(CARD, key.private_key, kid=key.kid)))
    code, _, err = run(capfd, "verify", "theirs.json", "--agent", URL, "--jwks", "jwks.json")
    assert (code, err) == (0, f"signer: pinned key '{key.kid}'\n")
    assert "unknown key" in refused(capfd, "verify", "signed.json", "--agent", URL, "--jwks", "jwks.json")
    both = ["--jwks", "jwks.json", "--bundles", "bundle.json"]
    assert "--jwks" in refused(capfd, "verify", "theirs.json", "--agent", URL, *both, code=2)
    (folder / "jwks.json").write_text("[]")
    assert "JWKS" in refused(capfd, "verify", "theirs.json", "--agent", URL, "--jwks", "jwks.json")


def test_post_quantum_signatures_are_asked_for(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    agent = agent_of("/billing", "billing.fleet.example", key=generate("ML-DSA-44"))
    (folder / "theirs.json").write_bytes(sign_card(CARD, credentials=agent).text)
    assert "got ML-DSA-44" in refused(capfd, "verify", "theirs.json", "--agent", ID)
    code, out, _ = run(capfd, "verify", "theirs.json", "--agent", ID, "--post-quantum")
    assert (code, json.loads(out)) == (0, CARD)


def test_what_no_signature_covers(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    odd = sdk_signed(changed(provider={"organization": "Fleet", "\x9b31m": ""}), **x5c(BILLING))
    (folder / "theirs.json").write_bytes(text(odd))
    assert "provider" in refused(capfd, "verify", "theirs.json", "--agent", ID)
    code, out, err = run(capfd, "verify", "theirs.json", "--agent", ID, "--sdk-form")
    assert (code, json.loads(out)["provider"]) == (0, {"organization": "Fleet"})
    assert "'provider.\\x9b31m'" in err


def test_without_mtls(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_card = changed(securitySchemes=None, securityRequirements=None)
    (folder / "open.json").write_bytes(sign_card(open_card, credentials=BILLING).text)
    assert "mutual TLS" in refused(capfd, "verify", "open.json", "--agent", ID)
    assert run(capfd, "verify", "open.json", "--agent", ID, "--without-mtls")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "card.json", "--agent", ID], "not signed"),
        (["verify", "signed.json", "--agent", "spiffe://fleet.example/other"], "another agent"),
        (["verify", "signed.json", "--agent", "https://mallory.example"], "another host"),
        (["verify", "signed.json", "--agent", "mallory"], "https://"),
        (["verify", "signed.json", "--agent", "spiffe://"], "trust domain"),
        (["verify", "missing.json", "--agent", ID], "missing.json"),
        (["verify", "chain.pem", "--agent", ID], "strict JSON"),
        (["verify", "signed.json", "--agent", ID, "--at", "2099-01-01T00:00:00Z"], "expired"),
        (["verify", "signed.json", "--agent", ID, "--bundles", "card.json"], "card.json"),
        (["sign", "card.json", "--credentials", "nowhere"], "nowhere"),
        (["sign", "chain.pem"], "strict JSON"),
        (["lint", "chain.pem"], "strict JSON"),
    ],
)
def test_refusals(folder: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert words in refused(capfd, *arguments)


def test_usage(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "agent" in refused(capfd, "verify", "signed.json", code=2)
    assert "--at" in refused(capfd, "verify", "signed.json", "--agent", ID, "--at", "noon", code=2)


def test_revoked(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lists = FORGE.crls(BILLING).crls
    (folder / "crl.pem").write_bytes(b"".join(crl.public_bytes(Encoding.PEM) for crl in lists))
    assert "revoked" in refused(capfd, "verify", "signed.json", "--agent", ID, "--crl", "crl.pem")


def test_lint(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "lint", "card.json") == (0, "", "")
    (folder / "card.json").write_bytes(text(changed(iconUrl="", skills=[], url="https://a.example")))
    code, out, err = run(capfd, "lint", "card.json")
    assert (code, err) == (1, "")
    assert [line.split(":")[0] for line in out.splitlines()] == ["iconUrl", "skills", "url"]
    code, out, _ = run(capfd, "lint", "card.json", "--json")
    findings: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
    assert [bool(finding["mended"]) for finding in findings] == [True, False, False]
    error = refused(capfd, "sign", "card.json")
    assert "skills" in error
    assert "1 more" in error
