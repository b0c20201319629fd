"""a2a-pki as its users see it: tables, JSON, exit codes, files, and one line for whatever goes wrong."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from pki import CertificateAuthority, founding
from pki.cli import output, passwords
from pki.store import DATABASE_FILE, Store
from tests.pki.cli.parts import Answer, Run, mode, one_line
from tests.pki.conftest import AGENT, DOMAIN, PASSWORD
from tests.pki.judges import lint, listing, needs_openssl, openssl, request, uri, verify
from trust.bundles import RevocationLists, TrustBundle, TrustBundles
from trust.credentials import Credentials
from trust.identity import thumbprint

# init


def test_init_generates_a_password_where_nobody_can_be_asked(run: Run, tmp_path: Path) -> None:
    answer = run("init", "ca", "--trust-domain", DOMAIN)
    assert answer.code == 0
    assert "CA of fleet.example made in ca" in answer.out
    assert f"Password generated and kept in {tmp_path}/ca.password" in answer.out
    assert mode("ca.password") == 0o600
    secret = Path("ca.password").read_text().strip()
    assert len(secret) >= 32
    assert secret not in answer.out
    CertificateAuthority.open("ca", password=secret).close()
    assert run("issue", "ca", AGENT).code == 0, "found again without being told"


def test_init_as_json(run: Run, tmp_path: Path) -> None:
    facts = run("init", "deep/ca", "--trust-domain", DOMAIN, "--json").json
    assert facts["trust_domain"] == DOMAIN
    assert facts["folder"] == "deep/ca"
    assert facts["password_file"] == str(tmp_path / "deep" / "ca.password")
    (root,) = TrustBundles.from_json(run("bundle", "deep/ca").out).by_domain[DOMAIN].roots
    assert facts["root_thumbprint"] == thumbprint(root.public_bytes(Encoding.DER))


def test_init_with_options(run: Run, password: None) -> None:
    facts = run(
        "init", "ca", "--trust-domain", DOMAIN, "--name-constraint", "--crl-url", "http://pki.example/crl", "--json"
    ).json
    assert facts["password_file"] is None
    assert not Path("ca.password").exists()
    with CertificateAuthority.open("ca", password=PASSWORD) as ca:
        kinds = {type(e.value) for e in ca.intermediate.extensions}
    assert {x509.NameConstraints, x509.CRLDistributionPoints} <= kinds


def test_init_with_a_password_file(run: Run) -> None:
    Path("secret").write_text("from a file\r\n")
    assert run("init", "ca", "--trust-domain", DOMAIN, "--password-file", "secret").code == 0
    CertificateAuthority.open("ca", password="from a file").close()
    assert run("crl", "ca", "--password-file", "secret").code == 0


def test_init_generates_although_there_is_one_in_the_environment(run: Run, password: None) -> None:
    assert run("init", "ca", "--trust-domain", DOMAIN, "--generate-password").code == 0
    assert Path("ca.password").read_text().strip() != PASSWORD


def test_init_on_an_existing_folder_keeps_everything(run: Run, folder: Path) -> None:
    before = listing()
    line = one_line(run("init", folder, "--trust-domain", DOMAIN))
    assert "exists already: expected a folder that does not exist; choose another, or use that CA" in line
    assert listing() == before


def test_init_that_fails_leaves_nothing(run: Run) -> None:
    assert "trust domain: got 'Fleet'" in one_line(run("init", "ca", "--trust-domain", "Fleet"))
    assert listing() == []


def test_init_keeps_the_password_of_another_ca(run: Run) -> None:
    Path("ca.password").write_text("precious")
    assert "ca.password exists already" in one_line(run("init", "ca", "--trust-domain", DOMAIN))
    assert Path("ca.password").read_text() == "precious"


def test_of_two_that_make_a_ca_at_once_one_is_told_to_stop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one has looked, found nothing, and is at work; its password is the one that opens the CA."""
    real = passwords.new
    others: list[Answer] = []

    def new(*arguments: Any) -> tuple[str, bool]:
        answer = real(*arguments)
        if not others:
            others.append(Answer(0, "", ""))
            others.append(run("init", "ca", "--trust-domain", DOMAIN))
        return answer

    monkeypatch.setattr(passwords, "new", new)
    assert "ca.password exists already" in one_line(run("init", "ca", "--trust-domain", DOMAIN))
    assert others[1].code == 0
    assert run("issue", "ca", AGENT).code == 0


def test_of_two_at_once_the_password_of_the_slower_goes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The faster one brought its own, so the file beside the folder would be taken for the password, and is not."""
    real = founding.found

    def found(target: Path, *arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(founding, "found", real)
        CertificateAuthority.create(target, trust_domain=DOMAIN, password=PASSWORD).close()
        return real(target, *arguments, **options)

    monkeypatch.setattr(founding, "found", found)
    assert "exists already" in one_line(run("init", "ca", "--trust-domain", DOMAIN))
    assert listing() == ["ca"]


def test_an_interrupt_that_comes_late_leaves_the_ca_its_password(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "open", interrupt)
        assert run("init", "ca", "--trust-domain", DOMAIN).code == 130
    assert listing() == ["ca", "ca.password"]
    assert run("issue", "ca", AGENT).code == 0


def test_a_password_that_cannot_be_kept_makes_no_ca(run: Run) -> None:
    Path("file").write_text("")
    line = one_line(run("init", "file/ca", "--trust-domain", DOMAIN))
    assert "file/ca.password: got a file where a folder must be, expected a place for a CA and its password" in line
    line = one_line(run("init", f"{os.devnull}/x/ca", "--trust-domain", DOMAIN))
    assert "cannot write" in line and "got Not a directory" in line
    assert listing() == ["file"]


def test_init_with_a_name_constraint_that_cannot_be(run: Run) -> None:
    line = one_line(run("init", "ca", "--trust-domain", ".example", "--name-constraint"))
    assert "name constraint: got '.example', expected a trust domain that is a DNS name" in line
    assert listing() == []


# issue


def test_issue(run: Run, password: None, folder: Path) -> None:
    answer = run("issue", folder, AGENT)
    assert answer.code == 0
    assert "expires in 24 hours" in answer.out
    assert "written to billing" in answer.out
    assert listing("billing") == ["bundle.json", "chain.pem", "key.pem"]
    assert TrustBundles.load("billing/bundle.json").by_domain[DOMAIN].roots
    assert mode("billing/key.pem") == 0o600
    credentials = Credentials.load("billing")
    assert str(credentials.agent_id) == AGENT
    assert f"{credentials.certificate.serial_number:x}" in answer.out


def test_issue_with_names_as_json(run: Run, password: None, folder: Path) -> None:
    facts = run(
        "issue", folder, AGENT, "--out", "a/b", "--dns", "a.example", "--dns", "localhost", "--ip", "::1",
        "--lifetime", "30m", "--json",
    ).json["certificates"][0]  # fmt: skip
    credentials = Credentials.load("a/b/billing")
    assert facts["files"] == [f"a/b/billing/{name}" for name in ("chain.pem", "key.pem", "bundle.json")]
    assert (facts["agent_id"], facts["kind"], facts["status"]) == (AGENT, "agent", "valid")
    assert facts["serial"] == f"{credentials.certificate.serial_number:x}"
    assert facts["thumbprint"] == credentials.thumbprint
    shown = run("show", folder, facts["serial"], "--json").json
    assert (shown["dns_names"], shown["ip_addresses"]) == (["a.example", "localhost"], ["::1"])


@needs_openssl
def test_what_is_issued_by_default_pleases_the_judges(run: Run, password: None, folder: Path, tmp_path: Path) -> None:
    run("issue", folder, AGENT)
    chain = Credentials.load("billing").chain
    (root,) = TrustBundles.from_json(run("bundle", folder).out).by_domain[DOMAIN].roots
    assert lint(tmp_path, chain[0]) == []
    assert verify(tmp_path, chain, root, purpose="sslserver").returncode == 0


@needs_openssl
def test_issue_for_a_request_of_openssl(run: Run, password: None, folder: Path) -> None:
    made = openssl(
        "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "own.pem",
        "-subj", "/CN=whatever", "-addext", f"subjectAltName=URI:{AGENT},DNS:bank.example",
        "-addext", "basicConstraints=critical,CA:TRUE", "-out", "agent.csr",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert run("issue", folder, AGENT, "--csr", "agent.csr", "--out", "out").code == 0
    assert listing("out/billing") == ["bundle.json", "chain.pem"], "the key stays where it is"
    credentials = Credentials.load(Path("out/billing/chain.pem"), key="own.pem")
    names = credentials.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [n.value for n in names] == [AGENT]
    assert not credentials.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_issue_for_a_request_for_another_id(run: Run, password: None, folder: Path) -> None:
    Path("agent.csr").write_bytes(request(uri("spiffe://fleet.example/payroll")))
    line = one_line(run("issue", folder, AGENT, "--csr", "agent.csr"))
    assert "got spiffe://fleet.example/payroll, expected spiffe://fleet.example/billing" in line
    assert not Path("billing").exists()


def test_issue_replaces_nothing_unasked(run: Run, password: None, folder: Path) -> None:
    run("issue", folder, AGENT)
    first = Credentials.load("billing").thumbprint
    assert "billing/chain.pem exists already" in one_line(run("issue", folder, AGENT))
    assert Credentials.load("billing").thumbprint == first
    assert len(run("list", folder, "--agent", AGENT, "--json").json) == 1, "and nothing was issued"
    assert run("issue", folder, AGENT, "--replace").code == 0
    assert Credentials.load("billing").thumbprint != first


def test_issue_for_several_agents_at_once(run: Run, password: None, folder: Path) -> None:
    archive = "spiffe://fleet.example/archive"
    assert run("issue", folder, AGENT, archive, "--out", "fleet").code == 0
    assert listing("fleet") == ["archive", "billing"]
    assert str(Credentials.load("fleet/archive").agent_id) == archive
    assert "two agents would share one folder" in one_line(run("issue", folder, AGENT, AGENT, "--out", "other"))
    assert not Path("other").exists()
    for name in ("BILLING", "Billing", "x/BILLing"):  # one folder, on a Mac or on Windows
        line = one_line(run("issue", folder, AGENT, f"spiffe://fleet.example/{name}", "--out", "other"))
        assert "two agents would share one folder" in line
    assert not Path("other").exists()
    answer = run("issue", folder, AGENT, archive, "--csr", "x", "--out", "other")
    assert (answer.code, "--csr certifies one agent's request" in answer.err) == (2, True)


@pytest.mark.parametrize("by_request", [False, True], ids=["key", "request"])
def test_what_could_not_be_written_is_named(by_request: bool, run: Run, password: None, folder: Path) -> None:
    """Issued it is, and on record; the operator is told which one, and what to do."""
    Path("agent.csr").write_bytes(request(uri(AGENT)))
    Path("out/billing/chain.pem/there").mkdir(parents=True)  # which nobody replaces by a file
    arguments = ("--csr", "agent.csr", "--out", "out") if by_request else ("--out", "out")
    line = one_line(run("issue", folder, AGENT, *arguments, "--replace"))
    (record,) = run("list", folder, "--agent", AGENT, "--json").json
    assert f"certificate {record['serial']} of {AGENT} was issued and not written" in line
    assert "Is a directory" in line
    command = line.partition("`a2a-pki ")[2].partition("`")[0].split()
    assert command == ["revoke", str(folder), record["serial"]]
    assert run(*command).code == 0
    assert run("show", folder, record["serial"], "--json").json["status"] == "revoked"


def test_what_was_replaced_in_part_is_not_revoked(run: Run, password: None, folder: Path) -> None:
    """The agent's new pair is there and only the bundle is not: revoking it would lock the agent out."""
    run("issue", folder, AGENT)
    first = Credentials.load("billing").thumbprint
    Path("billing/bundle.json").unlink()
    Path("billing/bundle.json").mkdir()
    line = one_line(run("issue", folder, AGENT, "--replace"))
    second = Credentials.load("billing")
    assert second.thumbprint != first
    assert f"certificate {second.certificate.serial_number:x} of {AGENT} was issued and not written" in line
    assert {r["status"] for r in run("list", folder, "--agent", AGENT, "--json").json} == {"valid"}


def test_of_several_agents_none_is_issued_when_one_is_refused(run: Run, password: None, folder: Path) -> None:
    one_line(run("issue", folder, AGENT, "spiffe://other.example/x", "--out", "fleet"))
    assert not Path("fleet").exists()
    assert run("list", folder, "--agent", AGENT, "--json").json == []


def test_a_list_is_written_under_the_name_that_certificates_point_to(run: Run, password: None) -> None:
    run("init", "pointing", "--trust-domain", DOMAIN, "--crl-url", "http://crl.example/lists")
    run("issue", "pointing", AGENT)
    run("crl", "pointing", "--out", "lists")
    leaf = Credentials.load("billing").certificate
    points = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    (url,) = [name.value for point in points for name in point.full_name or ()]
    served = x509.load_der_x509_crl((Path("lists") / url.removeprefix("http://crl.example/lists/")).read_bytes())
    assert served.issuer == leaf.issuer


# revoke, list, show


def issue(run: Run, folder: Path, *options: object) -> dict[str, Any]:
    answer: dict[str, Any] = run("issue", folder, AGENT, "--replace", "--json", *options).json["certificates"][0]
    return answer


@pytest.mark.parametrize(
    "form",
    [
        lambda serial: f"{serial:x}",
        lambda serial: f"{serial:040X}",
        lambda serial: f"0x{serial:x}",
        lambda serial: f"{serial}",
        lambda serial: ":".join(f"{serial:040x}"[i : i + 2] for i in range(0, 40, 2)),
    ],
    ids=["hex", "padded", "0x", "decimal", "colons"],
)
def test_revoke(form: Callable[[int], str], run: Run, password: None, folder: Path) -> None:
    serial = issue(run, folder)["serial"]
    facts = run("revoke", folder, form(int(serial, 16)), "--reason", "keyCompromise", "--json").json
    assert (facts["serial"], facts["status"], facts["reason"]) == (serial, "revoked", "keyCompromise")
    assert run("crl", folder, "--json").json["crls"][0]["revoked"] == [serial]


def test_revoke_needs_no_password_and_says_what_is_next(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A2A_PKI_PASSWORD", PASSWORD)
    day, hour = issue(run, folder)["serial"], issue(run, folder, "--lifetime", "1h")["serial"]
    monkeypatch.delenv("A2A_PKI_PASSWORD")
    answer = run("revoke", folder, day)
    assert answer.code == 0
    assert f"{AGENT}: certificate {day} is revoked" in answer.out
    assert "RFC 9608" not in answer.out
    assert "RFC 9608" in run("revoke", folder, hour).out


@pytest.mark.parametrize("text", ["1234", "zz", "", "0x", "f" * 41, "9" * 60, "-1", "1" * 5000])
def test_an_unknown_serial(text: str, run: Run, folder: Path) -> None:
    for command in ("revoke", "show"):
        assert "expected one that this CA has issued; see `a2a-pki list`" in one_line(run(command, folder, "--", text))


def test_a_reason_that_is_none(run: Run, password: None, folder: Path) -> None:
    serial = issue(run, folder)["serial"]
    assert "got certificateHold, expected one of" in one_line(
        run("revoke", folder, serial, "--reason", "certificateHold")
    )
    assert run("show", folder, serial, "--json").json["status"] == "valid"


def test_list(run: Run, password: None, folder: Path) -> None:
    issued = issue(run, folder)
    table = run("list", folder)
    assert table.code == 0
    for text in (AGENT, "in 24 hours", "in 90 days", "in 10 years", "valid", issued["serial"], "intermediate"):
        assert text in table.out
    run("revoke", folder, issued["serial"])
    assert "revoked" in run("list", folder).out
    records = run("list", folder, "--json").json
    assert [(r["kind"], r["status"]) for r in records] == [
        ("root", "valid"),
        ("intermediate", "valid"),
        ("agent", "revoked"),
    ]


def test_list_leaves_out_what_has_expired(run: Run, folder: Path, tmp_path: Path) -> None:
    with CertificateAuthority.open(folder, password=PASSWORD) as ca:
        ca.issue(request(), AGENT, lifetime=timedelta(seconds=1))
    time.sleep(2.1)
    assert run("list", folder, "--agent", AGENT, "--json").json == []
    (record,) = run("list", folder, "--agent", AGENT, "--all", "--json").json
    assert record["status"] == "expired"
    assert "ago" in run("list", folder, "--all").out


def test_show(run: Run, password: None, folder: Path) -> None:
    issued = issue(run, folder, "--dns", "localhost")
    answer = run("show", folder, issued["serial"])
    assert answer.code == 0
    for text in (AGENT, "localhost", "valid", "(in 24 hours)", issued["thumbprint"]):
        assert text in answer.out
    assert "reason" not in answer.out
    leaf = Credentials.load("billing").certificate
    assert x509.load_pem_x509_certificate(answer.out[answer.out.index("-----BEGIN") :].encode()) == leaf
    shown = run("show", folder, issued["serial"], "--json").json
    assert x509.load_pem_x509_certificate(shown["pem"].encode()) == leaf


# crl and bundle


def test_crl(run: Run, password: None, folder: Path) -> None:
    printed = run("crl", folder)
    assert printed.code == 0
    first, _, second = printed.out.partition("-----END X509 CRL-----\n")
    assert first and second.startswith("-----BEGIN X509 CRL-----")
    written = run("crl", folder, "--out", "lists")
    assert "lists/root.crl.pem: 0 revoked, expires in 24 hours" in written.out
    lists = RevocationLists.load("lists/intermediate.crl.pem", "lists/root.crl.pem")
    assert printed.out.encode() == b"".join(c.public_bytes(Encoding.PEM) for c in lists.crls)
    facts = run("crl", folder, "--out", "lists", "--json").json["crls"]
    assert [(c["issuer"], c["file"]) for c in facts] == [
        ("intermediate", "lists/intermediate.crl.pem"),
        ("root", "lists/root.crl.pem"),
    ]
    numbers = [c.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for c in lists.crls]
    assert sorted(c["number"] for c in facts) == sorted(numbers)


def test_bundle(run: Run, folder: Path) -> None:
    text = run("bundle", folder).out
    Path("bundle.json").write_text(text)
    bundles = TrustBundles.load("bundle.json")
    assert run("bundle", folder, "--json").out == text
    plain = TrustBundle.from_json(run("bundle", folder, "--spiffe").out, DOMAIN)
    assert bundles.by_domain == {DOMAIN: plain}
    assert len(plain.roots) == 1


# What goes wrong


def test_a_wrong_password(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A2A_PKI_PASSWORD", "wrong")
    assert "got a wrong password" in one_line(run("issue", folder, AGENT))
    assert not Path("billing").exists()


def test_no_password_and_nobody_to_ask(run: Run, folder: Path) -> None:
    assert "set A2A_PKI_PASSWORD or give --password-file" in one_line(run("issue", folder, AGENT))


def test_a_password_from_the_keyboard(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def prompt(text: str, **options: Any) -> str:
        asked.append(options)
        return PASSWORD

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", prompt)
    assert run("issue", folder, AGENT).code == 0
    assert run("init", "new", "--trust-domain", DOMAIN).code == 0
    assert [(o["hide_input"], o["confirmation_prompt"], o["err"]) for o in asked] == [
        (True, False, True),
        (True, True, True),
    ]
    CertificateAuthority.open("new", password=PASSWORD).close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got nothing"),
        (b"\n", "got nothing"),
        (b"\xff\xfe", "UTF-8"),
        (b"x" * 5000, "too large"),
        (None, "cannot read"),
    ],
)
def test_a_password_file_that_holds_none(content: bytes | None, message: str, run: Run, folder: Path) -> None:
    if content is not None:
        Path("secret").write_bytes(content)
    assert message in one_line(run("crl", folder, "--password-file", "secret"))
    assert message in one_line(run("init", "new", "--trust-domain", DOMAIN, "--password-file", "secret"))


def test_a_password_of_the_environment_that_is_no_text(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A2A_PKI_NEW_PASSWORD", "\udcff\udcfe")
    monkeypatch.setenv("A2A_PKI_PASSWORD", PASSWORD)
    assert "A2A_PKI_NEW_PASSWORD: got other bytes" in one_line(run("passwd", folder))
    monkeypatch.setenv("A2A_PKI_PASSWORD", "\udcff\udcfe")
    for command in (("issue", folder, AGENT), ("init", "new", "--trust-domain", DOMAIN)):
        assert "A2A_PKI_PASSWORD: got other bytes" in one_line(run(*command))
    assert not Path("new").exists()


def test_a_password_is_as_long_as_can_be_read_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A2A_PKI_PASSWORD", "x" * 4097)
    assert "got 4097 bytes, expected at most 4096" in one_line(run("init", "new", "--trust-domain", DOMAIN))
    assert not Path("new").exists()
    monkeypatch.setenv("A2A_PKI_PASSWORD", "x" * 4096)
    assert run("init", "new", "--trust-domain", DOMAIN).code == 0
    monkeypatch.setenv("A2A_PKI_NEW_PASSWORD", "x" * 4097)
    assert "got 4097 bytes" in one_line(run("passwd", "new"))
    monkeypatch.delenv("A2A_PKI_PASSWORD")
    Path("secret").write_text("x" * 4096 + "\n")
    assert run("issue", "new", AGENT, "--password-file", "secret").code == 0


@pytest.mark.parametrize(
    "arguments",
    [("issue", "nowhere", AGENT), ("revoke", "nowhere", "1"), ("list", "nowhere"), ("show", "nowhere", "1"),
     ("crl", "nowhere"), ("bundle", "nowhere")],
    ids=lambda a: a[0],
)  # fmt: skip
def test_a_folder_that_is_not_there(arguments: tuple[str, ...], run: Run) -> None:
    assert "no CA in nowhere: expected a folder with ca.db; make one with `a2a-pki init`" in one_line(run(*arguments))
    assert listing() == []


def test_a_locked_database(run: Run, password: None, folder: Path, locked: Callable[[], None]) -> None:
    locked()
    assert "CA database is locked" in one_line(run("issue", folder, AGENT))
    assert not Path("billing").exists()
    assert run("list", folder).code == 0, "readers do not wait"


@pytest.mark.parametrize("damage", ["x'00'", "'text'", "zeroblob(700)"])
@pytest.mark.parametrize("command", ["issue", "list", "show", "revoke", "crl", "bundle"])
def test_a_damaged_database(command: str, damage: str, run: Run, password: None, folder: Path) -> None:
    serial = issue(run, folder)["serial"]
    run("crl", folder)
    connection = sqlite3.connect(folder / DATABASE_FILE)
    connection.execute(f"UPDATE certificates SET der = {damage}")
    connection.execute(f"UPDATE crls SET der = {damage}")
    connection.execute(f"UPDATE issuers SET der = {damage}")
    connection.commit()
    connection.close()
    arguments = {"issue": (AGENT, "--replace"), "show": (serial,), "revoke": (serial,)}.get(command, ())
    line = one_line(run(command, folder, *arguments))
    assert "CA database is damaged" in line and "restore a backup" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("issue", "CA", "spiffe://Fleet/x"), "trust domain: got 'Fleet'"),
        (("issue", "CA", "billing"), "SPIFFE ID scheme: got billing, expected spiffe://trust-domain/path"),
        (("issue", "CA", "spiffe://fleet.example/a\nb"), "SPIFFE ID path segment"),
        (("issue", "CA", "spiffe://other.example/x"), "expected an ID of fleet.example"),
        (("issue", "CA", AGENT, "--lifetime", "8d"), "expected from 1 second to 7 days"),
        (("issue", "CA", AGENT, "--lifetime", "soon"), "lifetime: got 'soon', expected a number and s, m, h or d"),
        (("issue", "CA", AGENT, "--lifetime", "0s"), "expected from 1 second to 7 days"),
        (("issue", "CA", AGENT, "--dns", "*.example"), "DNS name: got '*.example'"),
        (("issue", "CA", AGENT, "--ip", "x"), "IP address: got 'x'"),
        (("issue", "CA", AGENT, "--csr", "nowhere.csr"), "cannot read nowhere.csr"),
        (("issue", "CA", AGENT, "--out", "CA/ca.db"), "Not a directory"),
        (("issue", "CA", AGENT, "--lifetime", "30d"), "got 30 days, expected from 1 second to 7 days"),
        (("token", "CA", AGENT, "--valid-for", "2000m"), "got 2000 minutes, expected from 1 second to 24 hours"),
        (("list", "CA", "--expires-within", "soon"), "a2a-pki: --expires-within: got 'soon', expected a number and"),
        (("renew", "."), "a2a-pki: . is not enrolled: got no chain.pem; run `a2a-pki enrol`"),
        (
            ("renew", "ISSUED"),
            "CA service of the agent: got no URL, expected its URL (`--ca`), or a folder with ca.json",
        ),
        (
            ("renew", "ISSUED", "--ca", "https://127.0.0.1:1", "--hook", "/nowhere/x"),
            "hook: got /nowhere/x, expected a",
        ),
        (("list", "CA", "--agent", "x"), "SPIFFE ID scheme: got x"),
        (("init", "new", "--trust-domain", DOMAIN, "--crl-url", "ftp://x"), "CRL base URL: got 'ftp://x'"),
        (("init", "new", "--trust-domain", DOMAIN, "--generate-password", "--password-file", "x"), "one of them"),
        (("crl", "CA", "--out", "CA/ca.db"), "File exists"),
        (("crl", "CA", "--pin-file", os.devnull), "got nothing readable, expected a secret in UTF-8"),
    ],
)
def test_one_line_for_what_is_refused(
    arguments: tuple[str, ...], message: str, run: Run, password: None, folder: Path
) -> None:
    if "ISSUED" in arguments:
        run("issue", folder, AGENT)
    places = {"CA": str(folder), "ISSUED": "billing"}
    assert message in one_line(run(*(places.get(a, a.replace("CA/", f"{folder}/")) for a in arguments)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bogus",), "No such command 'bogus'."),
        (("init",), "Missing argument 'CA'."),
        (("init", "ca"), "Missing option '--trust-domain'"),
        (("list", "ca", "--bogus"), "No such option: --bogus"),
        (("list", "ca", "more"), "unexpected extra argument"),
    ],
)
def test_one_line_for_wrong_usage(arguments: tuple[str, ...], message: str, run: Run) -> None:
    assert message in one_line(run(*arguments), code=2)


def test_help(run: Run) -> None:
    for command in ((), ("init",), ("issue",), ("revoke",), ("list",), ("show",), ("crl",), ("bundle",)):
        answer = run(*command, "--help")
        assert (answer.code, answer.err) == (0, "")
        assert "Usage: a2a-pki" in answer.out
    assert run().code == 2
    order = re.findall("^│ ([a-z]+) ", run("--help").out, re.MULTILINE)
    assert order.index("init") < order.index("issue") < order.index("token") < order.index("serve")


def test_control_c(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CertificateAuthority, "open", interrupt)
    assert one_line(run("list", folder), code=130) == "a2a-pki: interrupted\n"


def test_control_c_at_the_password(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise typer.Abort

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", interrupt)
    assert "interrupted" in one_line(run("crl", folder), code=130)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1, "in 0 seconds"), (2, "in 1 second"), (120, "in 119 seconds"), (7201, "in 2 hours"), (-3, "3 seconds ago"),
     (-7200, "2 hours ago"), (86_400 * 3 + 1, "in 3 days"), (86_400 * 365 * 3, "in 3 years")],
)  # fmt: skip
def test_times_in_words(seconds: int, words: str) -> None:
    assert output.words(output.now() + timedelta(seconds=seconds)) == words


# As a process


def a2a_pki(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pki.cli", *map(str, arguments)]
    environment = {**os.environ, "A2A_PKI_PASSWORD": PASSWORD}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def test_the_process_has_the_exit_code(folder: Path) -> None:
    good = a2a_pki("bundle", folder)
    assert DOMAIN in good.communicate(timeout=60)[0]
    assert good.returncode == 0
    bad = a2a_pki("bundle", folder / "nowhere")
    assert bad.communicate(timeout=60)[1].count("\n") == 1
    assert bad.returncode == 1


@pytest.mark.parametrize("command", ["bundle", "list"])
def test_a_reader_that_has_enough(command: str, folder: Path) -> None:
    process = a2a_pki(command, folder)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1
    assert "Traceback" not in errors and "Exception" not in errors


def test_a_real_control_c_while_making_a_ca(tmp_path: Path) -> None:
    """While scrypt runs: the process ends with 130, without a traceback, and nothing is left."""
    process = a2a_pki("init", tmp_path / "ca", "--trust-domain", DOMAIN)
    deadline = time.monotonic() + 60
    while not listing(tmp_path) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if process.returncode != 0:  # else it was faster than we
        assert process.returncode == 130
        assert listing(tmp_path) == []
    assert "Traceback" not in errors


def test_a_p384_key_of_an_agent(run: Run, password: None, folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    Path("agent.csr").write_bytes(request(uri(AGENT), key=key, encoding=Encoding.PEM))
    assert run("issue", folder, AGENT, "--csr", "agent.csr").code == 0
    assert x509.load_pem_x509_certificates(Path("billing/chain.pem").read_bytes())[0].public_key() == key.public_key()
