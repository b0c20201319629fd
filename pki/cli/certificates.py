"""Agents' certificates: issue, revoke, list, show."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from rich.text import Text

from pki import policy
from pki.authority import CertificateAuthority, Issued
from pki.cli import files
from pki.cli.app import TAKES_THUMBPRINT, AsJson, PasswordFile, PinFile, Where, app, duration, opened, unlocked
from pki.cli.output import coloured, hint, iso, now, record_facts, say, show_table, words
from pki.errors import PKIError, UnknownName, UnknownSerial
from pki.profiles import NO_REV_AVAIL, Issuer
from pki.records import Record, State
from pki.requests import MAX_REQUEST_BYTES
from trust.bundles import TrustBundles
from trust.credentials import BUNDLE_FILE, CHAIN_FILE, KEY_FILE, Credentials, read_bounded, write_atomically
from trust.errors import TrustError
from trust.identity import AgentID

T = TypeVar("T")

MAX_ID_FILE_BYTES = 64 << 20  # a million IDs


@app.command()
def issue(
    where: Where,
    spiffe_ids: Annotated[
        list[str] | None, typer.Argument(metavar="SPIFFE-ID...", help="Such as spiffe://fleet.example/billing.")
    ] = None,
    ids_from: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="More SPIFFE IDs, one a line.")
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where each agent gets a folder, named like the last part of its ID.")
    ] = Path(),
    dns: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="DNS name, for TLS clients that do not know SPIFFE; repeatable."),
    ] = None,
    ip: Annotated[list[str] | None, typer.Option(metavar="ADDRESS", help="IP address; repeatable.")] = None,
    lifetime: Annotated[str, typer.Option(help="Such as 45m, 24h or 7d (the longest).")] = "24h",
    csr: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certify this request, so that the key stays where it is.")
    ] = None,
    replace: Annotated[bool, typer.Option(help="Replace files that are there.")] = False,
    password_file: PasswordFile = None,
    pin_file: PinFile = None,
    as_json: AsJson = False,
) -> None:
    """Issue agents' certificates: each agent's folder gets chain.pem, key.pem and bundle.json, the roots it trusts."""
    agents = [AgentID.parse(text) for text in [*(spiffe_ids or ()), *_listed(ids_from)]]
    if not agents:
        raise typer.BadParameter("no SPIFFE-ID given")
    life = duration(lifetime)
    folders = {agent: out / agent.path.rpartition("/")[2] for agent in agents}
    # Many file systems take /Billing and /billing for one, and the second key would replace the first.
    if len({target.name.casefold() for target in folders.values()}) < len(agents):
        raise PKIError("two agents would share one folder", expected="IDs with different last parts")
    if csr is not None and len(agents) > 1:
        raise typer.BadParameter("--csr certifies one agent's request; give one SPIFFE-ID")
    names = (CHAIN_FILE, BUNDLE_FILE) if csr else (CHAIN_FILE, KEY_FILE, BUNDLE_FILE)
    there = [str(f / name) for f in folders.values() for name in names if os.path.lexists(f / name)]
    if there and not replace:
        raise PKIError(f"{there[0]} exists already", expected="a new folder", do="choose another --out, or --replace")
    _writable(folders.values())
    request = read_bounded(csr, MAX_REQUEST_BYTES) if csr else None
    issued = []
    with unlocked(where, password_file, pin_file) as ca:
        bundle = TrustBundles.of(ca.bundle()).to_json().encode()
        for agent in agents:  # all of them before the first is issued
            policy.inside(agent, ca.trust_domain)
        for agent, target in _with_progress(list(folders.items())):
            made: Credentials | Issued
            if request is None:
                made = ca.issue_credentials(agent, dns_names=dns or (), ip_addresses=ip or (), lifetime=life)
            else:
                made = ca.issue(request, agent, dns_names=dns or (), ip_addresses=ip or (), lifetime=life)
            serial = made.certificate.serial_number
            try:
                _write(made, target, bundle)
            except (TrustError, OSError) as error:
                # Not revoked unasked: some of it may be there, in the place of what an agent used before.
                raise PKIError(
                    f"certificate {serial:x} of {agent} was issued and not written",
                    got=error,
                    do=f"`a2a-pki revoke {where} {serial:x}`, and issue another",
                ) from None
            issued.append((target, ca.find(serial)))
    say(
        {
            "certificates": [
                {**record_facts(r), "files": [str(target / name) for name in names]} for target, r in issued
            ]
        },
        as_json,
        *(
            f"{r.spiffe_id}: certificate {r.serial:x}, expires {words(r.not_after)}; written to {target}"
            for target, r in issued
        ),
    )


@app.command(context_settings=TAKES_THUMBPRINT)
def revoke(
    where: Where,
    what: Annotated[
        str,
        typer.Argument(
            metavar="SERIAL|SPIFFE-ID|THUMBPRINT",
            help="A serial number (hexadecimal or decimal); an agent's ID, for all its certificates; an x5t#S256. "
            "A CA whose key may be in other hands is replaced, and all agents below it renew.",
        ),
    ],
    reason: Annotated[
        str, typer.Option(help="One of " + ", ".join(r.value for r in policy.REASONS) + ".")
    ] = x509.ReasonFlags.unspecified.value,
    ban: Annotated[
        bool, typer.Option(help="With a SPIFFE ID: it gets no certificate any more, until `unban`.")
    ] = False,
    password_file: PasswordFile = None,
    pin_file: PinFile = None,
    as_json: AsJson = False,
) -> None:
    """Revoke certificates, for good."""
    if what.startswith("spiffe://"):
        agent = AgentID.parse(what)
        with opened(where) as ca:
            records = ca.revoke_agent(agent, reason, ban=ban)
            known = records or ca.certificates(agent_id=agent)
        if not known and not ban:
            raise UnknownName("agent", got=agent, expected="one with certificates of this CA", do="see `a2a-pki list`")
        notes = [f"{agent} is banned: no token, no renewal, no certificate until `a2a-pki unban`."] if ban else []
        if ban and not known:
            notes.append("Nothing was ever issued to it: is the ID right?")
    elif ban:
        raise typer.BadParameter("--ban bans an agent; give its SPIFFE-ID")
    else:
        with opened(where) as ca:
            record = find(ca, what)
            is_ca = record.kind in ("root", "intermediate")
            records = [] if is_ca else [ca.revoke(record.serial, reason)]
            others = 0 if is_ca else len(ca.certificates(spiffe_id=record.spiffe_id, ends_after=now(), revoked=False))
        notes = []
        if others:
            notes.append(
                f"{record.spiffe_id} has {others} more, perhaps made from it, and goes on with them: "
                f"`a2a-pki revoke {where} {record.spiffe_id} --ban` ends that."
            )
        if is_ca:
            with unlocked(where, password_file, pin_file) as ca:
                notes = [step.says for step in ca.taint(Issuer.of(record.certificate).key_id)]
                records = [record] if record.kind == "root" else [ca.find(record.serial)]
                waiting = [] if _issues(ca) else [step.says for step in ca.ceremonies()]
            notes += waiting or ["Every agent below it renews at its next poll."]
            if waiting:
                hint("nothing can be issued or renewed until the offline root has signed the next intermediate")
    if records:
        notes.append("`a2a-pki serve` lists it at once; where lists are files, the next `a2a-pki crl` does.")
    for record in records:
        if any(e.oid == NO_REV_AVAIL.oid for e in record.certificate.extensions):
            notes.append(
                f"{record.serial:x} says that nobody need ask (RFC 9608), and may be accepted until it expires "
                f"{words(record.not_after)}."
            )
    answer: Any = [record_facts(r) for r in records]
    if not what.startswith("spiffe://"):
        answer = answer[0]
    lines = [f"{r.spiffe_id}: certificate {r.serial:x} is {_fate(r)}" for r in records]
    say(answer, as_json, *lines, *notes)


@app.command()
def unban(
    where: Where,
    spiffe_id: Annotated[str, typer.Argument(metavar="SPIFFE-ID")],
    as_json: AsJson = False,
) -> None:
    """Let a banned agent have certificates again; what was revoked stays revoked."""
    agent = AgentID.parse(spiffe_id)
    with opened(where) as ca:
        if not ca.unban(agent):
            raise UnknownName("agent", got=agent, expected="one that is banned", do="see `a2a-pki bans`")
    say({"agent_id": str(agent), "banned": False}, as_json, f"{agent} may have certificates again")


@app.command()
def bans(where: Where, as_json: AsJson = False) -> None:
    """List the agents that are banned."""
    with opened(where) as ca:
        banned = ca.bans()
    if as_json:
        say([{"agent_id": agent, "since": iso(since)} for agent, since in banned], True)
        return
    table = Table(Column("SPIFFE ID", overflow="fold"), "Banned")
    for agent, since in banned:
        table.add_row(Text(agent), words(since))
    show_table(table)


@app.command("list")
def list_(
    where: Where,
    agent: Annotated[str | None, typer.Option(metavar="SPIFFE-ID", help="Only this agent's.")] = None,
    id_pattern: Annotated[
        str | None, typer.Option("--id", metavar="PATTERN", help="Only IDs with this in them; '*' is anything.")
    ] = None,
    expires_within: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only what ends so soon, such as 12h or 7d.")
    ] = None,
    revoked: Annotated[bool, typer.Option("--revoked", help="Only revoked ones.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Expired ones too.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the certificates that this CA has issued, oldest first."""
    agent_id = None if agent is None else AgentID.parse(agent)
    with opened(where) as ca:
        records = ca.certificates(
            agent_id=agent_id,
            pattern=None if id_pattern is None else f"*{id_pattern}*",
            ends_after=None if every else now(),
            ends_before=None if expires_within is None else now() + duration(expires_within, "--expires-within"),
            revoked=True if revoked else None,
        )
    if as_json:
        typer.echo(json.dumps([record_facts(record) for record in records], indent=2))
        return
    # Folded, never cut: an ID and a serial are there to be copied.
    table = Table(
        Column("SPIFFE ID", overflow="fold"),
        "Kind",
        "Status",
        "Expires",
        Column("Serial", overflow="fold", min_width=20),
    )
    for record in records:
        table.add_row(
            Text(record.spiffe_id),
            record.kind,
            coloured(record.status(now())),
            words(record.not_after),
            Text(f"{record.serial:x}"),
        )
    show_table(table)


@app.command(context_settings=TAKES_THUMBPRINT)
def show(
    where: Annotated[
        str, typer.Argument(metavar="CA|FILE", help="A CA; or a file: certificate, chain, request, list or bundle.")
    ],
    serial: Annotated[
        str | None,
        typer.Argument(metavar="[SERIAL]", help="With a CA: serial number (hexadecimal or decimal) or thumbprint."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a certificate of this CA, with its PEM; or what is in a file, whoever made it."""
    if serial is None and ("://" in where or Path(where).is_dir()):
        raise typer.BadParameter("with a CA, give a SERIAL too; `a2a-pki status` shows the CA itself")
    if serial is None:
        parts = files.describe(Path(where))
        if as_json:
            typer.echo(json.dumps(parts[0] if len(parts) == 1 else parts, indent=2))
            return
        for part in parts:
            show_table(files.table(part))
        return
    with opened(where) as ca:
        record = find(ca, serial)
    names = record.certificate.extensions
    facts = {**record_facts(record), **files.names(names), "issuer": record.issuer}
    pem = record.certificate.public_bytes(Encoding.PEM).decode()
    if as_json:
        typer.echo(json.dumps({**facts, "pem": pem}, indent=2))
        return
    show_table(files.table(facts))
    typer.echo(pem, nl=False)


def _issues(ca: CertificateAuthority) -> bool:
    return any(issuer.kind == "intermediate" and issuer.state is State.ACTIVE for issuer in ca.issuers())


def _fate(record: Record) -> str:
    # SPIFFE has no revocation of a root but its absence from the bundle, and that has to wait for the next one.
    return "to be replaced: run it again when the agents have renewed" if record.kind == "root" else "revoked"


def _listed(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = read_bounded(file, MAX_ID_FILE_BYTES).decode().splitlines()
    except UnicodeDecodeError:
        raise PKIError(f"{file}", got="other bytes", expected="SPIFFE IDs, one a line") from None
    return [line.strip() for line in lines if line.strip()]


def _with_progress(work: list[T]) -> Iterable[T]:
    """A bar on stderr where somebody looks and there is something to wait for; never in the answer."""
    console = Console(stderr=True)
    if len(work) == 1 or not console.is_terminal:
        return work
    return track(work, description="Issuing", console=console, transient=True)


def _writable(folders: Iterable[Path]) -> None:
    """Tried before anything is issued, where something is there already: nothing is made."""
    tried: set[Path] = set()
    for folder in folders:
        place = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
        if place in tried:
            continue
        tried.add(place)
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            raise PKIError(
                f"cannot write {folder}", got=error.strerror, expected="a place for a folder", do="choose another --out"
            ) from None


def _write(made: Credentials | Issued, target: Path, bundle: bytes) -> None:
    if isinstance(made, Credentials):
        made.save(target)
    else:  # the key is where the request came from
        target.mkdir(parents=True, exist_ok=True)
        write_atomically(target / CHAIN_FILE, made.chain_pem, mode=0o644)
    write_atomically(target / BUNDLE_FILE, bundle, mode=0o644)


def find(ca: CertificateAuthority, text: str) -> Record:
    """A certificate by its thumbprint (x5t#S256), or by its serial as openssl, a table or a log prints it."""
    if re.fullmatch("[A-Za-z0-9_-]{43}", text.strip()) and (found := ca.find_thumbprint(text.strip())):
        return found
    digits = text.strip().replace(":", "").lower().removeprefix("0x")
    numbers = [int(digits, 16)] if re.fullmatch("[0-9a-f]{1,40}", digits) else []
    numbers += [int(digits)] if re.fullmatch("[0-9]{1,49}", text.strip()) else []
    for number in numbers:  # hexadecimal first, then decimal
        try:
            return ca.find(number)
        except UnknownSerial:
            continue
    raise UnknownSerial("serial number", got=text, expected="one that this CA has issued", do="see `a2a-pki list`")
