"""The CA as a whole: make it, look at it, keep a copy of it, bring it back."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.serialization import Encoding
from rich.table import Table
from rich.text import Text

from pki import founding, pkcs11, store
from pki.authority import CertificateAuthority
from pki.cli import passwords
from pki.cli.app import AsJson, PasswordFile, PinFile, Where, app, opened, secret
from pki.cli.files import kept_head
from pki.cli.output import coloured, hint, iso, life_bar, now, say, show_table, words
from pki.errors import AuthorityExists, BackupRefused, NotErased, WrongPassword
from pki.records import State
from trust.identity import fingerprint, thumbprint

SQLITE = b"SQLite format 3\0"  # how each of its files begins
RESTART = "a program that has the CA open, as `a2a-pki serve` does, has the former password: start it again"
SHORT_PASSWORD = 8  # characters; below it there is a warning


@app.command()
def init(
    where: Where,
    trust_domain: Annotated[str, typer.Option(help="SPIFFE trust domain, such as fleet.example.")],
    password_file: PasswordFile = None,
    generate_password: Annotated[
        bool, typer.Option(help="Make a password and keep it in CA.password (the default where nobody can be asked).")
    ] = False,
    name_constraint: Annotated[
        bool, typer.Option(help="Put a URI name constraint into the intermediate (some verifiers refuse those).")
    ] = False,
    crl_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where revocation lists will be served; put into certificates.")
    ] = None,
    public_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where `a2a-pki serve --http-port` will be reached, http://... (https:// if a server in front has a "
            "certificate that every verifier trusts already); certificates then name lists, OCSP and CA certificates "
            "there.",
        ),
    ] = None,
    key_store: Annotated[
        str | None, typer.Option(metavar="URI", help="PKCS#11 token for the CA's keys: pkcs11:token=ca?module-path=...")
    ] = None,
    pin_file: PinFile = None,
    offline_root: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Move the root key into this encrypted file, out of the CA.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a CA: a root and an intermediate, in a new folder or database."""
    is_folder = "://" not in where
    if is_folder:
        founding.vacant(where)
    password, generated = passwords.new(where, password_file, generate_password)
    # Before the CA: a CA whose password is lost would be worse than a password without a CA.
    kept = passwords.keep(where, password) if generated else None
    if len(password) < SHORT_PASSWORD:
        hint(f"the password has {len(password)} characters: whoever gets the database can guess it")
    try:
        ca = CertificateAuthority.create(
            where,
            trust_domain=trust_domain,
            password=password,
            name_constraint=name_constraint,
            crl_base_url=crl_url,
            public_url=public_url,
            key_store=key_store,
            pin=secret(pin_file),
        )
    except BaseException as error:  # an interrupt, too
        # Not where there is a CA after all, as when the interrupt came late; unless it is somebody else's.
        if kept is not None and (isinstance(error, AuthorityExists) or not os.path.lexists(where)):
            kept.unlink(missing_ok=True)
        raise
    with ca:
        if offline_root is not None:
            ca.export_root(offline_root, password)
        root = ca.root
    if key_store is not None:
        module = pkcs11.TokenUri.parse(key_store).module_path
        hint(f"from now on every command that signs needs {pkcs11.MODULES_VARIABLE}={module}")
    der = root.public_bytes(Encoding.DER)
    name = where if is_folder else "its database"
    answer = {
        "folder": where if is_folder else None,
        "trust_domain": trust_domain,
        "root_fingerprint": fingerprint(der),
        "root_thumbprint": thumbprint(der),
        "root_not_after": iso(root.not_valid_after_utc),
        "password_file": None if kept is None else str(kept),
        "offline_root": None if offline_root is None else str(offline_root),
    }
    say(
        answer,
        as_json,
        f"CA of {trust_domain} made in {name}; the fingerprint of its root, for `a2a-pki enrol`, is",
        f"  {fingerprint(der)}",
        *([f"Password generated and kept in {kept}: move it to a safe place"] if kept else []),
        *([f"The root key is in {offline_root} only: take it off this machine"] if offline_root else []),
    )


@app.command()
def status(where: Where, as_json: AsJson = False) -> None:
    """How the CA is: its certificates and their remaining life, what it issued, what happens next, what ails it."""
    with opened(where) as ca:
        moment = now()
        issuers, counts, steps, checks = ca.issuers(), ca.counts(moment), ca.plan(moment), ca.health(moment)
        lists = ca.published_lists()
        answer: dict[str, Any] = {
            "trust_domain": ca.trust_domain,
            "root_fingerprint": fingerprint(ca.root.public_bytes(Encoding.DER)),
            "issuers": [
                {
                    "key_id": issuer.key_id,
                    "kind": issuer.kind,
                    "state": issuer.state.value,
                    "not_after": iso(issuer.certificate.not_valid_after_utc),
                }
                for issuer in issuers
            ],
            "certificates": counts,
            "revocation_lists": [
                {"file": item.file_name, "next_update": iso(item.next_update), "revoked": item.revoked}
                for item in lists
            ],
            "next": [{"at": iso(step.at), "action": step.says} for step in steps],
            "health": [{"name": check.name, "ok": check.ok, "says": check.says} for check in checks],
        }
    if as_json:
        say(answer, True)
    else:
        _show_issuers(issuers)
        typer.echo(f"root fingerprint {answer['root_fingerprint']}")
        typer.echo(", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()))
        for item in lists:
            typer.echo(f"{item.file_name}: {item.revoked:,} revoked, ends {words(item.next_update)}")
        for step in steps:
            typer.echo(f"{_when(step.at, moment)}: {step.says}")
        for check in checks:
            typer.echo(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.says}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@app.command()
def passwd(
    where: Where,
    password_file: PasswordFile = None,
    new_password_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"File with the new password. Else: ${passwords.NEW_VARIABLE}, then a prompt."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change the password that protects the CA's private keys. Start `a2a-pki serve` again afterwards.

    Backups that were made before, and the file of an offline root, keep theirs.
    """
    password = passwords.existing(where, password_file)
    # Opened before anybody is asked for a new one.
    with CertificateAuthority.open(where, password=password) as ca:
        kept = None if password is None else passwords.kept(where, password)
        chosen = passwords.changed(new_password_file)
        if len(chosen) < SHORT_PASSWORD:
            hint(f"the password has {len(chosen)} characters: whoever gets the database can guess it")

        def follow() -> Path | None:
            return None if kept is None or password is None else passwords.replace(kept, password, chosen)

        try:
            count = ca.change_password(chosen)
        except NotErased:  # the keys have it, and so must the file
            follow()
            hint(RESTART)
            raise
    former = follow()
    hint(RESTART)
    say(
        {
            "keys": count,
            "password_file": None if kept is None else str(kept),
            "former_password_file": None if former is None else str(former),
        },
        as_json,
        f"{count} private keys have the new password" + ("" if kept is None else f", and {kept} holds it"),
        "Backups that were made before are opened by the former one"
        + ("" if former is None else f", which {former} keeps: delete it when they are gone"),
    )


@app.command()
def backup(
    where: Where,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Made anew; holds everything, keys encrypted.")],
    as_json: AsJson = False,
) -> None:
    """Copy the CA into one file, consistently, while it serves."""
    report = store.backup(where, file)
    say(
        {"file": str(file), "certificates": report.certificates, "ledger_size": report.ledger_size},
        as_json,
        f"{file}: {report.certificates:,} certificates, ledger of {report.ledger_size:,} entries",
    )


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Made by `a2a-pki backup`.")],
    where: Where,
    replace: Annotated[bool, typer.Option(help="Put it in the place of the CA that is there.")] = False,
    head: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A `ledger head` that was kept elsewhere: is the backup as new?")
    ] = None,
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Bring a CA back from its backup, into a folder or a database; its ledger and its keys are verified before."""
    if file.is_file() and not _is_database(file):
        raise BackupRefused(f"{file} is no backup", expected="a file that `a2a-pki backup` has made")
    password = passwords.existing(where, password_file)
    if password is None:
        raise WrongPassword(
            "keys of the backup",
            got="no password",
            expected="the CA's",
            do="give --password-file: they are verified, too",
        )
    with passwords.former_named(where):
        report = store.restore(file, where, password=password, replace=replace, head=kept_head(head))
    newest = None if report.newest is None else iso(report.newest)
    roots = [f"sha256:{root}" for root in report.roots]
    say(
        {
            "trust_domain": report.trust_domain,
            "root_fingerprints": roots,
            "certificates": report.certificates,
            "ledger_size": report.ledger_size,
            "newest_entry": newest,
        },
        as_json,
        f"restored: CA of {report.trust_domain}, {report.certificates:,} certificates, ledger of "
        f"{report.ledger_size:,} entries, verified",
        f"Its newest entry is of {newest}; what was issued, revoked or banned since is not in it",
        *(f"Root: {root}" for root in roots),
    )


@app.command()
def upgrade(where: Where, password_file: PasswordFile = None, as_json: AsJson = False) -> None:
    """Bring the database of an older release to the form of this one; the password signs a ledger that is made."""
    old, new = store.upgrade(where, password=passwords.existing(where, password_file))
    line = f"database is at {new} already" if old == new else f"database upgraded from {old} to {new}"
    say({"from": old, "to": new}, as_json, line)


def _is_database(file: Path) -> bool:
    with file.open("rb") as opened_file:
        return opened_file.read(len(SQLITE)) == SQLITE


def _show_issuers(issuers: list[Any]) -> None:
    table = Table("CA", "State", "Life left", "Ends", "Key id")
    for issuer in issuers:
        certificate = issuer.certificate
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        state = issuer.state.value
        style = coloured(state) if state in (State.ACTIVE, State.REVOKED) else Text(state)
        table.add_row(issuer.kind, style, life_bar(start, end), words(end), issuer.key_id)
    show_table(table)


def _when(at: datetime, moment: datetime) -> str:
    return "now" if at <= moment + timedelta(seconds=1) else f"{iso(at)} ({words(at)})"
