"""`a2a-trust sign | verify | evidence show`, on files and pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from tests.a2a_objects import ARTIFACT, EXAMPLES, MESSAGE
from tests.forge import HOUR, Forge
from tests.trust.signing.test_pinned import KEYS, PARTNER, jwks, signed_elsewhere
from trust import cli
from trust.authorize import exactly
from trust.clock import shown, wall_clock
from trust.peers import PeerVerifier
from trust.private_keys import generate
from trust.signing.http import new_message_id
from trust.signing.messages import authenticate_message, sign_message
from trust.signing.proto_json import canonical_form

FORGE = Forge()
PLANNER, BILLING = FORGE.leaf("/planner"), FORGE.leaf("/billing")
REVOKING = FORGE.crls(PLANNER)
TO_BILLING = ["--audience", "spiffe://fleet.example/billing"]
BY_PLANNER = ["--signer", "spiffe://fleet.example/planner"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, credentials in (("planner", PLANNER), ("billing", BILLING)):
        credentials.save(tmp_path / name)
        (tmp_path / name / "bundle.json").write_text(FORGE.bundles.to_json())
    (tmp_path / "message.json").write_text(json.dumps(MESSAGE))
    for number, (good, revoking) in enumerate(zip(FORGE.crls().crls, REVOKING.crls, strict=True)):
        (tmp_path / f"good-{number}.crl").write_bytes(good.public_bytes(Encoding.DER))
        (tmp_path / f"revoking-{number}.crl").write_bytes(revoking.public_bytes(Encoding.DER))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    assert cli.main(arguments) == code
    return capfd.readouterr()


def signed(folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    out, err = run(capfd, "sign", "message.json", *TO_BILLING, "--credentials", "planner")
    assert err == ""
    (folder / "signed.json").write_text(out)
    return out


def crls(kind: str) -> list[str]:
    return [argument for number in range(2) for argument in ("--crl", f"{kind}-{number}.crl")]


def test_sign_and_verify(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    signed(folder, capfd)
    out, err = run(capfd, "verify", "signed.json", *BY_PLANNER, "--credentials", "billing")
    assert out.encode() == canonical_form("Message", MESSAGE) + b"\n"
    assert "kind: Message\nsigner: spiffe://fleet.example/planner\n" in err
    out, err = run(capfd, "verify", "signed.json", *BY_PLANNER, "--credentials", "billing", "--json")
    facts = json.loads(out)
    assert (facts["type"], facts["audience"], err) == ("a2a-msg+jws", "spiffe://fleet.example/billing", "")
    assert json.loads(facts["payload"])["messageId"] == "m-1"


def test_without_credentials_it_is_told_whom_it_is_for(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    signed(folder, capfd)
    trust = ["--bundles", "billing/bundle.json", "--signer", "fleet.example"]
    assert run(capfd, "verify", "signed.json", *TO_BILLING, *trust)[0]


def test_by_keys_that_are_pinned(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    key = KEYS["ML-DSA-65"]
    (folder / "jwks.json").write_text(json.dumps(jwks(k=key)))
    (folder / "signed.json").write_text(json.dumps(signed_elsewhere(key, "ML-DSA-65", now=wall_clock())))
    partner = ["--signer", str(PARTNER), *TO_BILLING, "--jwks", "jwks.json"]
    out, err = run(capfd, "verify", "signed.json", *partner, "--post-quantum")
    assert out.encode() == canonical_form("Message", EXAMPLES["Message"]) + b"\n"
    assert f"signer: {PARTNER}\n" in err
    assert "got ML-DSA-65" in run(capfd, "verify", "signed.json", *partner, code=1)[1]
    for more in (["--bundles", "x"], ["--crl", "x"], ["--evidence", "x"], BY_PLANNER):
        assert "--jwks: " in run(capfd, "verify", "signed.json", *partner, *more, code=2)[1]
    domain = ["--signer", "partner.example", *TO_BILLING, "--jwks", "jwks.json"]
    assert "SPIFFE ID" in run(capfd, "verify", "signed.json", *domain, code=1)[1]


def test_evidence_of_post_quantum_signatures(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("planner", "billing"):
        FORGE.leaf(f"/{name}", key=generate("ML-DSA-65")).save(folder / name)
    signed(folder, capfd)
    keep = ["--evidence", "kept.json", "--credentials", "billing", *BY_PLANNER]
    assert "got ML-DSA-65" in run(capfd, "verify", "signed.json", *keep, code=1)[1]
    run(capfd, "verify", "signed.json", *keep, "--post-quantum")
    show = ["evidence", "show", "kept.json", "--bundles", "planner/bundle.json"]
    assert "got ML-DSA-65" in run(capfd, *show, code=1)[1]
    assert "receiver: spiffe://fleet.example/billing\n" in run(capfd, *show, "--post-quantum")[1]


def test_a_pipe_of_two_processes(folder: Path) -> None:
    """The programs as they are installed, each with nothing but its standard input."""
    program = [sys.executable, "-m", "trust.cli"]
    sign = [*program, "sign", *TO_BILLING, "--kind", "Artifact", "--credentials", "planner"]
    verify = [*program, "verify", *BY_PLANNER, "--kind", "Artifact", "--credentials", "billing"]
    first = subprocess.run(sign, input=json.dumps(ARTIFACT).encode(), capture_output=True, check=True, timeout=120)
    second = subprocess.run(verify, input=first.stdout, capture_output=True, check=True, timeout=120)
    assert second.stdout == canonical_form("Artifact", ARTIFACT) + b"\n"
    forged = subprocess.run(verify, input=first.stdout.replace(b"a-1", b"a-2"), capture_output=True, timeout=120)
    assert (forged.returncode, forged.stdout) == (1, b"")
    assert forged.stderr.count(b"\n") == 1
    assert b"signature does not verify" in forged.stderr


def test_evidence(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    signed(folder, capfd)
    keep = ["--evidence", "kept.json", "--credentials", "billing", *crls("good")]
    run(capfd, "verify", "signed.json", *BY_PLANNER, *keep)
    if os.name == "posix":
        assert (folder / "kept.json").stat().st_mode & 0o777 == 0o600
    show = ["evidence", "show", "kept.json", "--bundles", "planner/bundle.json"]
    out, err = run(capfd, *show, "--at", "2099-01-01T00:00:00Z")
    assert out.encode() == canonical_form("Message", MESSAGE) + b"\n"
    assert "receiver: spiffe://fleet.example/billing\nrevocation checked at receipt: yes\n" in err
    facts = json.loads(run(capfd, *show, "--json")[0])
    assert (facts["receiver"], facts["revocation_checked_at_receipt"]) == ("spiffe://fleet.example/billing", True)
    kept = (folder / "kept.json").read_bytes()
    assert "is there already" in run(capfd, "verify", "signed.json", *BY_PLANNER, *keep, code=2)[1]
    assert (folder / "kept.json").read_bytes() == kept
    assert "revoked before" in run(capfd, *show, *crls("revoking"), code=1)[1]
    assert "later than the time" in run(capfd, *show, "--at", "2020-01-01T00:00:00Z", code=1)[1]


def test_a_signer_forges_no_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    audience = "https://b.example\nsigner: spiffe://fleet.example/ceo\x1b]0;x\x07"
    forged = sign_message(
        MESSAGE, "Message", credentials=PLANNER, audience=audience, now=wall_clock(), jti=new_message_id()
    )
    (folder / "signed.json").write_text(json.dumps(forged))
    arguments = ["--audience", audience, *BY_PLANNER, "--credentials", "billing"]
    _, err = run(capfd, "verify", "signed.json", *arguments)
    assert "audience: https://b.example\\x0asigner: spiffe://fleet.example/ceo\\x1b]0;x\\x07\n" in err
    assert err.count("\nsigner: ") == 1


def test_evidence_shows_what_was_signed_for_what_and_who_cannot_be_believed(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A relay's signature is not taken for an author's, nor a receipt by a revoked key for one that stands."""
    now = wall_clock()
    to_billing: dict[str, Any] = {"audience": BILLING.agent_id, "now": now}
    verifier = PeerVerifier(FORGE.bundles)
    trusting: dict[str, Any] = {**to_billing, "verifier": verifier, "signers": exactly(PLANNER.agent_id)}
    message = sign_message(MESSAGE, "Message", credentials=PLANNER, jti=new_message_id(), **to_billing)
    author = authenticate_message(message, "Message", **trusting)
    message = sign_message(message, "Message", credentials=PLANNER, jti=new_message_id(), relaying=author, **to_billing)
    relay = authenticate_message(message, "Message", relayed=author, **trusting)
    (folder / "e.json").write_bytes(relay.evidence(credentials=BILLING, verifier=verifier, jti=new_message_id()))
    revoked = x509.RevokedCertificateBuilder().serial_number(BILLING.certificate.serial_number)
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(FORGE.intermediate.subject)
        .last_update(now)
        .next_update(now + HOUR)
        .add_revoked_certificate(revoked.revocation_date(now + HOUR).build())
        .sign(FORGE.key, hashes.SHA256())
    )
    (folder / "late.crl").write_bytes(crl.public_bytes(Encoding.DER))
    (other,) = Forge("fleet.example").crls().crls[:1]
    (folder / "other.crl").write_bytes(other.public_bytes(Encoding.DER))
    lists = ["--crl", "late.crl", "--crl", "other.crl"]
    _, err = run(capfd, "evidence", "show", "e.json", "--credentials", "billing", *lists)
    lines = dict(line.split(": ", 1) for line in err.splitlines())
    assert json.loads(lines["rel"]) == {"jti": author.message_id, "s256": author.digest}
    assert (lines["kind"], lines["revocation checked at receipt"]) == ("Message", "no")
    assert lines["receiver revoked since"] == shown(now + HOUR)
    assert lines["revocation lists that say nothing about them"] == "1"


def test_an_origin_is_an_audience(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outside = ["--audience", "https://b.example:8443"]
    out, _ = run(capfd, "sign", "message.json", *outside, "--credentials", "planner")
    (folder / "signed.json").write_text(out)
    _, err = run(capfd, "verify", "signed.json", *outside, *BY_PLANNER, "--credentials", "billing")
    assert "audience: https://b.example:8443\n" in err


REFUSED: list[tuple[list[str], int, str]] = [
    (["sign", "message.json", "--credentials", "planner"], 2, "--audience"),
    (
        ["sign", "message.json", "--audience", "billing"],
        2,
        "--audience: got billing, expected a SPIFFE ID, or an origin",
    ),
    (["sign", "message.json", "--audience", "spiffe://fleet.example"], 2, "--audience: got spiffe://fleet.example"),
    (["sign", "message.json", "--audience", "https://B.example/a"], 2, "expected https://b.example"),
    (["sign", "message.json", "--audience", "https://b.example\nx"], 2, "--audience: got https://b.example\\x0ax"),
    (["sign", "message.json", *TO_BILLING, "--kind", "Card"], 2, "--kind: got Card"),
    (["sign", "none.json", *TO_BILLING, "--credentials", "planner"], 1, "none.json"),
    (["sign", "planner/chain.pem", *TO_BILLING, "--credentials", "planner"], 1, "expected strict JSON"),
    (["sign", "message.json", *TO_BILLING, "--credentials", "nowhere"], 1, "nowhere"),
    (["verify", "message.json", "--credentials", "billing"], 2, "give --signer"),
    (["verify", "message.json", *BY_PLANNER, "--credentials", "billing"], 1, "message is not signed"),
    (["verify", "message.json", "--signer", "x.example", "--credentials", "billing"], 1, "trust domain x.example"),
    (["verify", "message.json", "--signer", "spiffe://x", "--credentials", "billing"], 1, "names no agent"),
    (["verify", "message.json", *BY_PLANNER, "--at", "noon", "--credentials", "billing"], 2, "--at: got noon"),
    (
        ["verify", "message.json", *BY_PLANNER, "--at", "2026-01-01T00:00:00", "--credentials", "billing"],
        2,
        "with its zone",
    ),
    (["verify", "message.json", *BY_PLANNER, "--at", "2026-01-01T00:00:00Z", "--evidence", "x"], 2, "--evidence"),
    (
        ["verify", "message.json", *BY_PLANNER, "--at", "0001-01-01T00:00:00+14:00", "--credentials", "billing"],
        2,
        "--at: got 0001",
    ),
    (["verify", "message.json", *BY_PLANNER, "--bundles", "none"], 1, "none"),
    (["verify", "message.json", *BY_PLANNER, "--bundles", "a=b", "--bundles", "c"], 2, "DOMAIN=FILE"),
    (["evidence", "show", "message.json", "--credentials", "billing"], 1, "expected an object of exactly v, message"),
    (["evidence", "show", "message.json", "--receiver", "x.example", "--credentials", "billing"], 1, "--receiver"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), REFUSED)
def test_what_is_refused_is_told_in_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    out, err = run(capfd, *arguments, code=code)
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


def test_standard_input_is_bounded(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless:
        def read(self, size: int) -> bytes:
            return b" " * size

    class Stdin:
        buffer: Any = Endless()

    monkeypatch.setattr(sys, "stdin", Stdin())
    assert "too large" in run(capfd, "sign", *TO_BILLING, "--credentials", "planner", code=1)[1]


def test_a_terminal_sees_no_control_characters(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "message.json").write_text(json.dumps({"messageId": "\x9b2J"}))
    signed(folder, capfd)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    out, _ = run(capfd, "verify", "signed.json", *BY_PLANNER, "--credentials", "billing")
    assert out == '{"messageId":"\\x9b2J"}\n'
