"""Running a CA for years: status, policy, rotation, ledger, backup, the offline root, tokens, looking at files."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from pki import CertificateAuthority, rotation
from pki.ledger import verify_head
from pki.store import DATABASE_FILE, database
from tests.pki.cli.parts import Run, mode, one_line
from tests.pki.conftest import AGENT, DOMAIN, PASSWORD
from tests.pki.judges import request, uri
from trust.bundles import TrustBundles
from trust.credentials import Credentials
from trust.identity import fingerprint

POLICY = """
[[allow]]
ids = ["/billing", "/eu/**"]
dns = ["*.fleet.example"]
max_lifetime = "24h"

[[deny]]
ids = ["/eu/legacy/**"]
"""

pytestmark = pytest.mark.usefixtures("password")


# status


def test_status(run: Run, folder: Path) -> None:
    run("issue", folder, AGENT)
    run("crl", folder)
    answer = run("status", folder)
    assert (answer.code, answer.err) == (0, "")
    for text in ("100%", "in 90 days", "in 10 years", "active", "prepare the next intermediate", "ok   store"):
        assert text in answer.out
    facts = run("status", folder, "--json").json
    (root,) = TrustBundles.from_json(run("bundle", folder).out).by_domain[DOMAIN].roots
    assert facts["root_fingerprint"] == fingerprint(root.public_bytes(Encoding.DER))
    assert f"root fingerprint {facts['root_fingerprint']}\n" in answer.out
    assert [(i["kind"], i["state"]) for i in facts["issuers"]] == [("root", "active"), ("intermediate", "active")]
    assert facts["certificates"]["valid"] == 3
    assert all(check["ok"] for check in facts["health"])
    names = [check["name"] for check in facts["health"]]
    assert names == ["clock", "store", "intermediate", "root", "revocation lists", "ledger"]
    assert len(facts["revocation_lists"]) == 2
    assert facts["next"][0]["at"] < facts["next"][1]["at"]


def test_a_ca_without_lists_is_well_until_somebody_misses_them(run: Run, folder: Path) -> None:
    """No list was ever made, and the one who asks cannot make it."""
    run("issue", folder, AGENT)
    answer = run("status", folder)
    assert (answer.code, answer.err) == (0, "")
    assert (
        "ok   revocation lists: none yet, and nobody misses one: `a2a-pki crl` or `a2a-pki serve` makes" in answer.out
    )
    run("revoke", folder, AGENT)
    answer = run("status", folder)
    assert (answer.code, answer.err) == (1, "")
    assert "FAIL revocation lists: no current revocation list" in answer.out


def test_certificates_that_name_their_lists_miss_them(run: Run) -> None:
    run("init", "ca", "--trust-domain", DOMAIN, "--public-url", "http://pki.example:8080")
    assert run("status", "ca").code == 0
    run("issue", "ca", AGENT)
    assert "FAIL revocation lists" in run("status", "ca").out
    run("crl", "ca")
    assert run("status", "ca").code == 0


# bundle


def test_roots_for_what_knows_no_bundles(run: Run, folder: Path) -> None:
    run("rotate", folder, "--kind", "root")
    roots = TrustBundles.from_json(run("bundle", folder).out).by_domain[DOMAIN].roots
    assert len(roots) == 2
    answer = run("bundle", folder, "--pem")
    assert answer.code == 0
    assert tuple(x509.load_pem_x509_certificates(answer.out.encode())) == tuple(roots)
    for other in ("--spiffe", "--json"):
        assert "leave one of them out" in one_line(run("bundle", folder, "--pem", other), code=2)


# list and show


def test_list_with_filters(run: Run, folder: Path) -> None:
    run("issue", folder, AGENT, "spiffe://fleet.example/eu/archive", "--lifetime", "12h")
    run("issue", folder, "spiffe://fleet.example/eu/desk", "--lifetime", "7d")

    def ids(*options: object) -> list[str]:
        return [
            r["agent_id"].rpartition("/")[2]
            for r in run("list", folder, "--json", *options).json
            if "/" in r["agent_id"][9:]
        ]

    assert ids() == [DOMAIN, DOMAIN, "billing", "archive", "desk"][2:]
    assert ids("--expires-within", "1d") == ["billing", "archive"]
    assert ids("--id", "spiffe://fleet.example/eu/*") == ["archive", "desk"]
    assert ids("--revoked") == []
    run("revoke", folder, AGENT)
    assert ids("--revoked") == ["billing"]


def test_show_files(run: Run, folder: Path) -> None:
    run("issue", folder, AGENT, "--dns", "localhost")
    run("crl", folder, "--out", "lists")
    Path("agent.csr").write_bytes(request(uri(AGENT)))
    leaf = Credentials.load("billing").certificate
    Path("leaf.der").write_bytes(leaf.public_bytes(Encoding.DER))
    chain = run("show", "billing/chain.pem", "--json").json
    assert chain["uris"] == [AGENT]
    assert chain["dns_names"] == ["localhost"]
    assert chain["thumbprint"] == Credentials.load("billing").thumbprint
    assert run("show", "leaf.der", "--json").json["serial"] == chain["serial"]
    assert run("show", "agent.csr", "--json").json["signed_by_its_key"] is True
    (der,) = [
        path
        for path in Path("lists").iterdir()
        if path.name.startswith(run("show", folder, chain["serial"], "--json").json["issuer"])
    ]
    for path in ("lists/intermediate.crl.pem", der):
        assert run("show", path, "--json").json["revoked"] == 0
    (domain,) = run("show", "billing/bundle.json", "--json").json["domains"]
    assert (domain["trust_domain"], len(domain["roots"])) == (DOMAIN, 1)
    Path("spiffe.json").write_text(run("bundle", folder, "--spiffe").out)
    assert run("show", "spiffe.json", "--json").json["domains"][0]["roots"] == domain["roots"]
    Path("both.pem").write_bytes(Path("billing/chain.pem").read_bytes() + Path("lists/root.crl.pem").read_bytes())
    parts = run("show", "both.pem", "--json").json
    assert [part["what"][:15] for part in parts] == ["chain of 2 cert", "revocation list"]
    for path in ("billing/chain.pem", "agent.csr", "both.pem", "lists/root.crl.pem", "billing/bundle.json"):
        assert run("show", path).code == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"{", b'{"keys": 1}', b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\x30\x00"],
)
def test_show_what_is_nothing(content: bytes, run: Run) -> None:
    Path("file").write_bytes(content)
    assert "file is not readable: expected a certificate, a request" in one_line(run("show", "file"))


def test_show_a_private_key_shows_nothing_of_it(run: Run, folder: Path) -> None:
    run("issue", folder, AGENT)
    assert "is not readable" in one_line(run("show", "billing/key.pem"))


# revoke


def test_revoke_an_agent_and_ban_it(run: Run, folder: Path) -> None:
    run("issue", folder, AGENT)
    run("issue", folder, AGENT, "--replace")
    facts = run("revoke", folder, AGENT, "--ban", "--reason", "keyCompromise", "--json").json
    assert [(r["status"], r["reason"]) for r in facts] == [("revoked", "keyCompromise")] * 2
    assert "banned" in one_line(run("issue", folder, AGENT, "--replace"))
    assert run("unban", folder, AGENT).code == 0
    assert run("issue", folder, AGENT, "--replace").code == 0


def test_revoke_by_thumbprint(run: Run, folder: Path) -> None:
    run("issue", folder, AGENT)
    thumbprint = Credentials.load("billing").thumbprint
    assert run("revoke", folder, thumbprint, "--json").json["status"] == "revoked"
    for unknown in ("A" * 43, "-" + "A" * 42, "--" + "A" * 41):
        assert "expected one that this CA has issued" in one_line(run("revoke", folder, unknown))


def test_a_serial_cannot_be_banned(run: Run, folder: Path) -> None:
    assert "--ban bans an agent" in one_line(run("revoke", folder, "1", "--ban"), code=2)


def test_a_revoked_intermediate_is_replaced(run: Run, folder: Path) -> None:
    run("issue", folder, AGENT)
    old = Credentials.load("billing").chain[1]
    answer = run("revoke", folder, f"{old.serial_number:x}", "--reason", "cACompromise")
    assert answer.code == 0, answer.err
    assert "Every agent below it renews" in answer.out
    run("issue", folder, AGENT, "--replace")
    new = Credentials.load("billing").chain[1]
    assert new.serial_number != old.serial_number
    lists = {c["issuer"]: c["revoked"] for c in run("crl", folder, "--json").json["crls"]}
    assert lists["root"] == [f"{old.serial_number:x}"]


# token


def test_token_and_tokens(run: Run, folder: Path) -> None:
    made = run("token", folder, AGENT, "--dns", "billing.fleet.example", "--valid-for", "10m", "--json").json
    (waiting,) = run("tokens", folder, "--json").json
    assert (waiting["id"], waiting["agent_id"], waiting["dns_names"]) == (made["id"], AGENT, ["billing.fleet.example"])
    assert made["token"] not in json.dumps(waiting)
    assert AGENT in run("tokens", folder).out
    assert run("tokens", folder, "--cancel", made["id"]).code == 0
    assert run("tokens", folder, "--json").json == []
    assert "expected one that `a2a-pki tokens` lists" in one_line(run("tokens", folder, "--cancel", made["id"]))
    printed = run("token", folder, AGENT)
    assert printed.out.count("\n") == 1
    assert printed.out.startswith("a2ae_")


def test_a_token_is_signed_so_that_the_password_is_needed(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("A2A_PKI_PASSWORD")
    assert "Password of the CA: got none, expected a password; set A2A_PKI_PASSWORD" in one_line(
        run("token", folder, AGENT)
    )
    Path("secret").write_text(PASSWORD)
    assert run("token", folder, AGENT, "--password-file", "secret").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("spiffe://other.example/x",), "expected an ID of fleet.example"),
        (("spiffe://fleet.example/a2a-pki/server",), "which is for the CA itself"),
        ((AGENT, "--valid-for", "25h"), "24"),
        ((AGENT, "--lifetime", "8d"), "expected from 1 second to 7 days"),
        ((AGENT, "--dns", "*.x"), "DNS name"),
    ],
)
def test_a_token_that_could_not_be_used_is_not_made(
    arguments: tuple[str, ...], message: str, run: Run, folder: Path
) -> None:
    assert message in one_line(run("token", folder, *arguments))
    assert run("tokens", folder, "--json").json == []


# passwd


def test_the_password_is_changed(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "expected a password; set A2A_PKI_NEW_PASSWORD or give --new-password-file" in one_line(
        run("passwd", folder)
    )
    Path("new").write_text("another password\n")
    changed = run("passwd", folder, "--new-password-file", "new")
    assert changed.code == 0
    assert changed.err == (
        "a program that has the CA open, as `a2a-pki serve` does, has the former password: start it again\n"
    )
    assert changed.out == (
        "2 private keys have the new password\nBackups that were made before are opened by the former one\n"
    )
    assert "does not open: got a wrong password" in one_line(run("issue", folder, AGENT))
    assert "does not open: got a wrong password" in one_line(run("passwd", folder, "--new-password-file", "new"))
    assert run("issue", folder, AGENT, "--password-file", "new").code == 0
    monkeypatch.setenv("A2A_PKI_NEW_PASSWORD", "short")
    changed = run("passwd", folder, "--password-file", "new", "--json")
    assert json.loads(changed.out) == {"keys": 2, "password_file": None, "former_password_file": None}
    assert "has 5 characters" in changed.err
    monkeypatch.setenv("A2A_PKI_PASSWORD", "short")
    assert run("issue", folder, AGENT, "--replace").code == 0


def test_the_file_beside_the_ca_gets_the_new_password(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A2A_PKI_PASSWORD")
    assert run("init", "fleet", "--trust-domain", DOMAIN).code == 0
    monkeypatch.setenv("A2A_PKI_NEW_PASSWORD", "another password")
    first = Path("fleet.password").read_text()
    assert run("backup", "fleet", "copy.db").code == 0
    assert json.loads(run("passwd", "fleet", "--json").out) == {
        "keys": 2,
        "password_file": str(Path("fleet.password").absolute()),
        "former_password_file": str(Path("fleet.password.old").absolute()),
    }
    assert Path("fleet.password").read_text() == "another password\n"
    assert mode("fleet.password") == 0o600
    assert run("issue", "fleet", AGENT).code == 0
    monkeypatch.setenv("A2A_PKI_NEW_PASSWORD", "a third password")
    assert "which" in (changed := run("passwd", "fleet")).out and "fleet.password.old2 keeps" in changed.out
    assert [Path(f"fleet.password.old{n}").read_text() for n in ("", "2")] == [first, "another password\n"]
    assert {mode(f"fleet.password.old{n}") for n in ("", "2")} == {0o600}
    line = one_line(run("restore", "copy.db", "fleet", "--replace"))
    assert "does not open: got a wrong password, expected the password that it was written with" in line
    assert "opened by the former one: --password-file" in line and "fleet.password.old\n" in line
    restored = run("restore", "copy.db", "again", "--password-file", "fleet.password.old", "--json").json
    assert restored["root_fingerprints"] == [json.loads(run("status", "again", "--json").out)["root_fingerprint"]]


def test_the_file_beside_the_ca_follows_also_while_somebody_reads_the_database(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("A2A_PKI_PASSWORD")
    monkeypatch.setattr(database, "BUSY_TIMEOUT", timedelta(milliseconds=100))
    assert run("init", "fleet", "--trust-domain", DOMAIN).code == 0
    monkeypatch.setenv("A2A_PKI_NEW_PASSWORD", "another password")
    with closing(sqlite3.connect(Path("fleet", DATABASE_FILE), isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM settings").fetchall()
        answer = run("passwd", "fleet")
    warning, line = answer.err.splitlines()
    assert answer.code == 1 and "start it again" in warning
    assert "it is done, but what was there before is still in the log of the database" in line
    assert Path("fleet.password").read_text() == "another password\n"
    assert run("issue", "fleet", AGENT).code == 0


# policy


def test_policy(run: Run, folder: Path) -> None:
    Path("rules.toml").write_text(POLICY)
    assert run("policy", "check", "rules.toml", AGENT).code == 0
    assert run("policy", "check", folder, "spiffe://fleet.example/other").code == 0, "no policy yet"
    assert run("policy", "apply", folder, "rules.toml").code == 0
    assert run("policy", "show", folder).out == POLICY
    allowed = run(
        "policy", "check", folder, "spiffe://fleet.example/eu/desk", "--dns", "a.fleet.example", "--json"
    ).json
    assert (allowed["allowed"], allowed["rule"]) == (True, "allow 1")
    for arguments, why in (
        (("spiffe://fleet.example/other",), "no allow rule has the ID /other"),
        (("spiffe://fleet.example/eu/legacy/x",), "deny 1 refuses /eu/legacy/x"),
        (("spiffe://fleet.example/billing", "--dns", "x.example"), "allow 1 does not have the DNS name x.example"),
        (("spiffe://fleet.example/billing", "--lifetime", "2d"), "allow 1 allows at most"),
        (("spiffe://other.example/billing",), "expected an ID of fleet.example"),
        (("spiffe://fleet.example/a2a-pki/server",), "for the CA itself"),
    ):
        answer = run("policy", "check", folder, *arguments)
        assert answer.code == 1
        assert answer.out.startswith("denied: ")
        assert why in answer.out
    assert "the policy of this CA refuses it" in one_line(run("issue", folder, "spiffe://fleet.example/other"))
    assert run("issue", folder, AGENT).code == 0


def test_a_policy_that_is_none_changes_nothing(run: Run, folder: Path) -> None:
    Path("rules.toml").write_text("[[allow]]\nid = []\n")
    assert "policy: allow 1: got 'id'" in one_line(run("policy", "apply", folder, "rules.toml"))
    assert run("policy", "show", folder).out == ""
    Path("rules.toml").write_bytes(b"\xff")
    assert "expected TOML in UTF-8" in one_line(run("policy", "apply", folder, "rules.toml"))


# rotate, prune


def test_rotate(run: Run, folder: Path) -> None:
    plan = run("rotate", folder, "--plan", "--json").json
    assert [(step["action"], step["kind"]) for step in plan[:2]] == [
        ("prepare", "intermediate"),
        ("activate", "intermediate"),
    ]
    assert "prepare the next intermediate" in run("rotate", folder, "--plan").out
    assert run("rotate", folder).out == "nothing is due\n"
    done = run("rotate", folder, "--kind", "intermediate", "--json").json
    assert [step["action"] for step in done] == ["prepare"]
    assert "active not before" in done[0]["says"]
    states = [
        i["state"] for i in json.loads(run("status", folder, "--json").out)["issuers"] if i["kind"] == "intermediate"
    ]
    assert states == ["active", "prepared"]
    assert run("prune", folder).out == "0 rows pruned\n"


def test_rotate_the_root(run: Run, folder: Path) -> None:
    """Both roots are in the bundle; the new one signs nothing before everybody can know it."""
    run("rotate", folder, "--kind", "root")
    bundle = TrustBundles.from_json(run("bundle", folder).out).by_domain[DOMAIN]
    assert len(bundle.roots) == 2
    states = [i["state"] for i in json.loads(run("status", folder, "--json").out)["issuers"] if i["kind"] == "root"]
    assert states == ["active", "prepared"]


# ceremony


def test_a_root_that_is_kept_offline(run: Run, tmp_path: Path) -> None:
    answer = run("init", "ca", "--trust-domain", DOMAIN, "--offline-root", "root.pem")
    assert answer.code == 0, answer.err
    assert mode("root.pem") == 0o600
    assert b"ENCRYPTED PRIVATE KEY" in Path("root.pem").read_bytes()
    assert run("issue", "ca", AGENT).code == 0
    lists = {c["issuer"] for c in run("crl", "ca", "--json").json["crls"]}
    assert lists == {"root", "intermediate"}, "the root's list was made before it left"
    old = Credentials.load("billing").chain[1]
    asked = run("ceremony", "request", "ca", "--out", "next.csr")
    assert asked.code == 0, asked.err
    key = asked.out.splitlines()[1].strip()
    assert key.startswith("sha256:")
    assert "next.csr exists already" in one_line(run("ceremony", "request", "ca", "--out", "next.csr"))
    signed = run("ceremony", "sign", "root.pem", "next.csr", "--out", "next.pem")
    assert signed.code == 0, signed.err
    assert f"CA certificate for {DOMAIN}, valid from 20" in signed.out
    assert f"for the key\n  {key}\nand a revocation list of the root that names 0." in signed.out
    facts = run("ceremony", "sign", "root.pem", "next.csr", "--out", "next.pem", "--json").json
    assert (facts["key"], facts["trust_domain"], facts["revoked"]) == (key, DOMAIN, 0)
    for file, kinds in {
        "next.csr": ["certificate request"],
        "next.pem": ["certificate", "revocation list"],
        "root.pem": ["certificate", "encrypted private key, not shown"],
    }.items():
        found = run("show", file, "--json").json
        assert [part["what"] for part in (found if isinstance(found, list) else [found])] == kinds
        assert run("show", file).code == 0
    accepted = run("ceremony", "accept", "ca", "next.pem")
    assert accepted.code == 0, accepted.err
    issuers = json.loads(run("status", "ca", "--json").out)["issuers"]
    assert [i["state"] for i in issuers if i["kind"] == "intermediate"] == ["active", "prepared"]
    with CertificateAuthority.open("ca", password=PASSWORD) as ca:
        ca.rotate(datetime.now(UTC) + rotation.LISTED)  # when every agent has its lists
        new = ca.intermediate
    assert new.serial_number != old.serial_number
    (root,) = TrustBundles.from_json(run("bundle", "ca").out).by_domain[DOMAIN].roots
    new.verify_directly_issued_by(root)


def test_a_ceremony_with_the_wrong_password(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("init", "ca", "--trust-domain", DOMAIN, "--offline-root", "root.pem")
    run("ceremony", "request", "ca", "--out", "next.csr")
    monkeypatch.setenv("A2A_PKI_PASSWORD", "wrong")
    assert "wrong password" in one_line(run("ceremony", "sign", "root.pem", "next.csr", "--out", "next.pem"))
    assert not Path("next.pem").exists()


def test_a_certificate_of_somebody_else_is_not_accepted(run: Run, folder: Path) -> None:
    run("init", "ca", "--trust-domain", DOMAIN, "--offline-root", "root.pem")
    run("issue", "ca", AGENT)
    run("ceremony", "request", "ca", "--out", "next.csr")
    assert run("ceremony", "accept", "ca", "billing/chain.pem").code == 1
    assert "nothing is due" in run("rotate", "ca").out


def test_what_only_the_offline_root_can_do_says_so(run: Run) -> None:
    run("init", "ca", "--trust-domain", DOMAIN, "--offline-root", "root.pem")
    line = one_line(run("rotate", "ca", "--kind", "intermediate"))
    assert "key of the root CA is not here" in line and "`a2a-pki ceremony request`" in line


def test_a_revoked_intermediate_of_an_offline_root_waits_for_its_ceremony(run: Run) -> None:
    run("init", "ca", "--trust-domain", DOMAIN, "--offline-root", "root.pem")
    run("issue", "ca", AGENT)
    ceremony = "`a2a-pki ceremony request`, `sign`, `accept`"
    answer = run("revoke", "ca", f"{Credentials.load('billing').chain[1].serial_number:x}")
    assert answer.code == 0 and ceremony in answer.out and "renews" not in answer.out
    assert "nothing can be issued or renewed until the offline root has signed" in answer.err
    for command in (["issue", "ca", AGENT, "--replace"], ["token", "ca", AGENT], ["crl", "ca"]):
        assert ceremony in one_line(run(*command))
    answer = run("rotate", "ca")
    assert answer.out == "nothing was done\n" and ceremony in answer.err
    assert ceremony in run("status", "ca").out
    run("ceremony", "request", "ca", "--out", "next.csr")
    run("ceremony", "sign", "root.pem", "next.csr", "--out", "next.pem")
    run("ceremony", "accept", "ca", "next.pem")
    assert run("issue", "ca", AGENT, "--replace").code == 0
    assert (answer := run("rotate", "ca")).out == "nothing is due\n" and answer.err == ""


def test_a_short_password_is_warned_of(run: Run) -> None:
    Path("secret").write_text("seven77")
    answer = run("init", "ca", "--trust-domain", DOMAIN, "--password-file", "secret")
    assert (answer.code, answer.err) == (0, "the password has 7 characters: whoever gets the database can guess it\n")


def test_the_module_of_a_token_is_named_by_the_operator(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = sqlite3.connect(folder / DATABASE_FILE)
    connection.execute(
        "UPDATE issuers SET key_pem = NULL, key_uri = 'pkcs11:token=t;object=o?module-path=/tmp/evil.so'"
    )
    connection.commit()
    connection.close()
    Path("pin").write_text("1234\n")
    monkeypatch.setenv("A2A_PKI_PKCS11_MODULE", f"/usr/lib/good.so{os.pathsep}/usr/lib/other.so")
    for command in (("issue", folder, AGENT), ("serve", folder, "--port", "0")):
        line = one_line(run(*command, "--pin-file", "pin"))
        assert "module of the token: got /tmp/evil.so, from the database" in line
    monkeypatch.setenv("A2A_PKI_PKCS11_MODULE", "/tmp/evil.so")
    assert "from the database" not in one_line(run("issue", folder, AGENT, "--pin-file", "pin"))


# ledger


def test_a_certificate_is_proven_to_be_in_the_ledger(run: Run, folder: Path) -> None:
    """Judged by RFC 9162 section 2.1.3.2 as it stands there, and by nothing of ours but the head's signature."""
    for _ in range(5):
        run("issue", folder, AGENT)
    with CertificateAuthority.open(folder) as ca:
        records, signer = ca.certificates(kind="agent"), ca.intermediate
    for record in records:
        shown = json.loads(run("ledger", "prove", folder, f"{record.serial:x}").out)
        assert json.loads(shown["entry"])["serial"] == f"{record.serial:040x}"
        fn, sn = shown["index"], shown["tree_size"] - 1
        r = hashlib.sha256(b"\0" + shown["entry"].encode()).digest()
        for p in map(bytes.fromhex, shown["audit_path"]):
            assert sn != 0
            if fn & 1 or fn == sn:
                r = hashlib.sha256(b"\1" + p + r).digest()
                while not fn & 1 and fn:
                    fn, sn = fn >> 1, sn >> 1
            else:
                r = hashlib.sha256(b"\1" + r + p).digest()
            fn, sn = fn >> 1, sn >> 1
        assert (sn, r.hex()) == (0, shown["root_hash"])
        key = signer.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        head = verify_head(shown["signed_head"], key)
        assert (head.size, head.root.hex()) == (shown["tree_size"], shown["root_hash"])


def test_what_is_not_in_the_ledger_is_not_proven(run: Run, folder: Path) -> None:
    assert "expected one that this CA has issued" in one_line(run("ledger", "prove", folder, "123"))
    run("issue", folder, AGENT)
    with CertificateAuthority.open(folder) as ca:
        (record,) = ca.certificates(kind="agent")
    with closing(sqlite3.connect(f"{folder}/{DATABASE_FILE}")) as database, database:
        database.execute("UPDATE certificates SET spiffe_id = 'spiffe://fleet.example/other' WHERE kind = 'agent'")
    database.close()
    assert "ledger lacks an entry" in one_line(run("ledger", "prove", folder, f"{record.serial:x}"))


def test_ledger(run: Run, folder: Path) -> None:
    run("issue", folder, AGENT)
    Path("kept.jws").write_text(run("ledger", "head", folder).out)
    run("revoke", folder, AGENT)
    report = run("ledger", "verify", folder, "--head", "kept.jws", "--json").json
    assert report["problems"] == []
    assert report["size"] > 3
    root = json.loads(run("status", folder, "--json").out)["root_fingerprint"]
    assert run("ledger", "verify", folder, "--root", root).code == 0
    answer = run("ledger", "verify", folder, "--root", "sha256:" + "0" * 64)
    assert answer.code == 1 and "this is the ledger of another CA" in answer.out
    assert "expected sha256: and 64 hex" in one_line(run("ledger", "verify", folder, "--root", "0" * 64))
    serial = Credentials.load("billing").certificate.serial_number
    connection = sqlite3.connect(folder / DATABASE_FILE)
    connection.execute("UPDATE certificates SET spiffe_id = 'spiffe://fleet.example/admin' WHERE kind = 'agent'")
    connection.commit()
    connection.close()
    answer = run("ledger", "verify", folder)
    assert answer.code == 1
    assert f"{serial:x}" in answer.out
    Path("kept.jws").write_bytes(b"\xff")
    assert "expected what `a2a-pki ledger head` printed" in one_line(
        run("ledger", "verify", folder, "--head", "kept.jws")
    )


def test_a_head_of_another_past(run: Run, folder: Path, tmp_path: Path) -> None:
    """A backup was restored over what came later: whoever kept a head notices."""
    assert run("backup", folder, "copy.db").code == 0
    run("issue", folder, AGENT)
    Path("kept.jws").write_text(run("ledger", "head", folder).out)
    line = one_line(run("restore", "copy.db", folder, "--replace", "--head", "kept.jws"))
    assert "copy.db is older than the head: got a ledger of" in line and "damaged" not in line
    assert "take a newer backup, or leave out --head" in line
    assert run("restore", "copy.db", folder, "--replace").code == 0
    answer = run("ledger", "verify", folder, "--head", "kept.jws")
    assert answer.code == 1
    assert "1 problem" in answer.out


# backup, restore, upgrade


def test_backup_and_restore(run: Run, folder: Path) -> None:
    run("issue", folder, AGENT)
    saved = run("backup", folder, "copy.db", "--json").json
    assert mode("copy.db") == 0o600
    assert saved["certificates"] == 3
    back = run("restore", "copy.db", "again", "--json").json
    assert back["ledger_size"] == saved["ledger_size"]
    assert run("list", "again", "--json").json == run("list", folder, "--json").json
    assert run("issue", "again", AGENT, "--replace").code == 0
    assert "exists" in one_line(run("restore", "copy.db", "again"))
    assert "exists" in one_line(run("backup", folder, "copy.db"))


def test_a_backup_that_was_altered_is_not_restored(run: Run, folder: Path) -> None:
    run("issue", folder, AGENT)
    run("backup", folder, "copy.db")
    connection = sqlite3.connect("copy.db")
    connection.execute("DELETE FROM certificates WHERE kind = 'agent'")
    connection.commit()
    connection.close()
    assert AGENT in one_line(run("restore", "copy.db", "again"))
    assert not Path("again").exists()
    before = run("list", folder, "--json").json
    one_line(run("restore", "copy.db", folder, "--replace"))
    assert run("list", folder, "--json").json == before


def test_a_backup_that_was_cut_off_is_one_sentence(run: Run, folder: Path) -> None:
    run("backup", folder, "copy.db")
    os.truncate("copy.db", Path("copy.db").stat().st_size // 2)
    line = one_line(run("restore", "copy.db", "again"))
    assert line.startswith("a2a-pki: copy.db is no good backup (") and line.endswith("); take another one\n")
    assert (line.count("got"), line.count("expected")) == (1, 1)


@pytest.mark.parametrize("content", [b"", b"no database", b"x" * 5000])
def test_what_is_no_database_is_not_restored(content: bytes, run: Run) -> None:
    Path("file").write_bytes(content)
    line = one_line(run("restore", "file", "again"))
    assert line == "a2a-pki: file is no backup: expected a file that `a2a-pki backup` has made\n"
    assert not Path("again").exists()


# serve


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        ("nowhere.pem", "other.pem", "cannot read nowhere.pem: got No such file"),
        ("rubbish.pem", "other.pem", "certificate rubbish.pem with key other.pem: got"),
        ("billing/chain.pem", "rubbish.pem", "expected a PEM chain, and its private key"),
        ("billing/chain.pem", "other.pem", "with key other.pem: got the key of another certificate"),
        (
            "billing/chain.pem",
            "locked.pem",
            "private key locked.pem: got an encrypted one, expected one without a pass",
        ),
    ],
)
def test_a_certificate_of_the_web_is_looked_at_before_anything_is_served(
    certificate: str, key: str, message: str, run: Run, folder: Path
) -> None:
    run("issue", folder, AGENT)
    Path("rubbish.pem").write_text("rubbish")
    other = ec.generate_private_key(ec.SECP256R1())
    Path("other.pem").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    ours = Credentials.load("billing").private_key
    locked = ours.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    Path("locked.pem").write_bytes(locked)
    web = ("--web-port", "0", "--web-certificate", certificate, "--web-key", key)
    assert message in one_line(run("serve", folder, "--port", "0", *web))


def test_a_certificate_of_the_web_has_a_port_and_a_key(run: Run, folder: Path) -> None:
    assert "--web-key go together" in one_line(run("serve", folder, "--web-port", "0"), code=2)


def test_several_processes_on_sqlite_are_advised_against(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pki.service.serve", lambda *_, **__: None)
    assert "one is faster; --workers is for PostgreSQL" in run("serve", folder, "--workers", "2").err
    assert run("serve", folder).err == ""


# upgrade


def test_upgrade_of_what_is_new(run: Run, folder: Path) -> None:
    answer = run("upgrade", folder)
    assert (answer.code, "already" in answer.out) == (0, True)


# issue


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nowhere"])
def test_nothing_is_issued_for_a_place_that_cannot_be_written(run: Run, folder: Path, out: str) -> None:
    Path("file").touch()
    line = one_line(run("issue", folder, AGENT, "--out", out))
    assert f"cannot write {out}/billing: got " in line and "choose another --out" in line
    assert AGENT not in run("list", folder).out


def test_bulk_issuing(run: Run, folder: Path) -> None:
    Path("ids").write_text("".join(f"spiffe://fleet.example/agent-{n}\n" for n in range(20)) + "\n")
    answer = run("issue", folder, "--from", "ids", "--out", "fleet", "--json")
    assert len(answer.json["certificates"]) == 20
    assert str(Credentials.load("fleet/agent-7").agent_id) == "spiffe://fleet.example/agent-7"
    assert "no SPIFFE-ID given" in one_line(run("issue", folder), code=2)
    Path("ids").write_bytes(b"\xff")
    assert "expected SPIFFE IDs, one a line" in one_line(run("issue", folder, "--from", "ids"))


def test_progress_is_shown_to_who_looks(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets a bar on stderr; a pipe gets the answer and nothing else."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    answer = run("issue", folder, AGENT, "spiffe://fleet.example/archive", "--out", "fleet", "--json")
    assert answer.code == 0
    assert "Issuing" in answer.err
    assert len(json.loads(answer.out)["certificates"]) == 2


# PostgreSQL and passwords


def test_a_database_url_needs_a_password_from_somewhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A2A_PKI_PASSWORD")
    line = one_line(run("init", "postgresql://u:geheim@127.0.0.1:1/x", "--trust-domain", DOMAIN))
    assert "set A2A_PKI_PASSWORD or give --password-file" in line


def test_a_database_that_does_not_answer(run: Run) -> None:
    line = one_line(run("list", "postgresql://u:geheim@127.0.0.1:1/x"))
    assert "geheim" not in line


def test_a_ca_is_open_to_python_too(run: Run) -> None:
    run("init", "ca", "--trust-domain", DOMAIN)
    with CertificateAuthority.open("ca", password=PASSWORD) as ca:
        assert isinstance(ca.root, x509.Certificate)
