"""The CA's own certificates: rotation, pruning, and the ceremony for a root that is kept offline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from pki.ceremony import MAX_FILE_BYTES, key_fingerprint, sign_intermediate
from pki.cli import passwords
from pki.cli.app import AsJson, PasswordFile, PinFile, Where, app, opened, unlocked
from pki.cli.output import hint, iso, now, say, words
from pki.errors import AuthorityExists
from trust.credentials import read_bounded, write_atomically

ceremony = typer.Typer(
    no_args_is_help=True, help="For a root that is kept offline: request here, sign there, accept here."
)


@app.command()
def rotate(
    where: Where,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what will happen, and when.")] = False,
    kind: Annotated[
        Literal["root", "intermediate"] | None,
        typer.Option(help="Do not wait until it is due: begin with a new one of these now."),
    ] = None,
    password_file: PasswordFile = None,
    pin_file: PinFile = None,
    as_json: AsJson = False,
) -> None:
    """Replace the CA's certificates as they age; `serve` does it by itself. Agents notice nothing.

    What an offline root has to sign is not done, and told on standard error.
    """
    if plan:
        with opened(where) as ca:
            steps = ca.plan(now())
        lines = [f"{iso(step.at)} ({words(step.at)}): {step.says}" for step in steps]
    else:
        with unlocked(where, password_file, pin_file) as ca:
            steps = ca.rotate(now(), kind=kind, force=kind is not None)
            waiting = ca.ceremonies(now())
        lines = [step.says for step in steps] or ["nothing was done"] * bool(waiting)
        for step in waiting:
            hint(f"due, and not to be done from here: {step.says}")
    say(
        [{"at": iso(s.at), "action": s.action, "kind": s.kind, "key_id": s.key_id, "says": s.says} for s in steps],
        as_json,
        *(lines or ["nothing is due"]),
    )


@app.command()
def prune(where: Where, as_json: AsJson = False) -> None:
    """Forget CAs that have retired, with the expired certificates below them, and spent tokens; the ledger stays."""
    with opened(where) as ca:
        count = ca.prune(now())
    say({"pruned": count}, as_json, f"{count:,} rows pruned")


@ceremony.command()
def export(
    where: Where,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Gets the root: certificate and encrypted key.")],
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Move the root key out of the CA, into a file to be kept offline; the CA's password opens it."""
    password = passwords.existing(where, password_file)
    with unlocked(where, password_file) as ca:
        ca.export_root(file, password or "")
    say({"file": str(file)}, as_json, f"The root key is in {file} only: take it off this machine")


@ceremony.command()
def request(
    where: Where,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Gets the request, to be carried to the root.")],
    password_file: PasswordFile = None,
    pin_file: PinFile = None,
    as_json: AsJson = False,
) -> None:
    """Make the key of the next intermediate, and the request that the root is to sign."""
    if os.path.lexists(out):
        raise AuthorityExists(f"{out} exists already", expected="a new file", do="choose another name")
    with unlocked(where, password_file, pin_file) as ca:
        pem = ca.request_intermediate(now())
    key = key_fingerprint(pem)
    write_atomically(out, pem, mode=0o644)
    say(
        {"file": str(out), "key": key},
        as_json,
        f"{out}: carry it to the root, `a2a-pki ceremony sign`, which must show this key:",
        f"  {key}",
    )


@ceremony.command()
def sign(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Written by `init --offline-root` or `export`.")],
    csr: Annotated[Path, typer.Argument(metavar="REQUEST")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Gets what `accept` takes in.")],
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Sign the next intermediate, on the machine that holds the root and nothing else."""
    password = passwords.existing(str(root), password_file) or ""
    signed = sign_intermediate(root, password, read_bounded(csr, MAX_FILE_BYTES), now=now())
    certificate, crl = signed.certificate, signed.crl
    start, end = iso(certificate.not_valid_before_utc), iso(certificate.not_valid_after_utc)
    write_atomically(out, signed.to_pem(), mode=0o644)
    say(
        {
            "file": str(out),
            "trust_domain": signed.trust_domain,
            "key": signed.key_fingerprint,
            "not_before": start,
            "not_after": end,
            "revoked": len(crl),
        },
        as_json,
        f"CA certificate for {signed.trust_domain}, valid from {start} to {end}, for the key",
        f"  {signed.key_fingerprint}",
        f"and a revocation list of the root that names {len(crl)}.",
        "Is that the key which `a2a-pki ceremony request` showed?",
        f"Then carry {out} back, `a2a-pki ceremony accept`; else destroy it.",
    )


@ceremony.command()
def accept(
    where: Where,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Written by `a2a-pki ceremony sign`.")],
    password_file: PasswordFile = None,
    pin_file: PinFile = None,
    as_json: AsJson = False,
) -> None:
    """Take in the intermediate and the revocation list that the root has signed; it goes on as `rotate` does."""
    with unlocked(where, password_file, pin_file) as ca:
        steps = ca.accept_intermediate(read_bounded(file), now())
    says = [step.says for step in steps]
    say({"accepted": True, "done": says}, as_json, *says)


app.add_typer(ceremony, name="ceremony")
