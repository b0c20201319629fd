"""a2a-pki: the agent CA on the command line.

Every command answers with JSON on request (`--json`), exits with 0 only when the thing asked for is true, and says
in one line on stderr what failed, what was expected and what to do.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pki import passwords, policy
from pki.authority import CertificateAuthority, Issued
from pki.errors import AuthorityExists, LifetimeRefused, PKIError, UnknownSerial
from pki.founding import vacant
from pki.profiles import NO_REV_AVAIL, crl_file_name
from pki.requests import MAX_REQUEST_BYTES
from pki.store import Record
from trust.bundles import TrustBundles
from trust.command_line import run
from trust.credentials import BUNDLE_FILE, CHAIN_FILE, KEY_FILE, Credentials, read_bounded, write_atomically
from trust.errors import TrustError
from trust.identity import AgentID, thumbprint

PLAIN_WIDTH = 200  # columns of a table that goes to a file or a pipe

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The agent CA: make it, issue and revoke agent certificates, publish bundles and revocation lists.",
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the CA.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with JSON.")]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"File with the CA's password. Else: ${passwords.VARIABLE}, then DIR.password, then a prompt.",
    ),
]


def main(arguments: Sequence[str] | None = None) -> int:
    return run(app, "a2a-pki", arguments)


@app.command()
def init(
    folder: Folder,
    trust_domain: Annotated[str, typer.Option(help="SPIFFE trust domain, such as fleet.example.")],
    password_file: PasswordFile = None,
    generate_password: Annotated[
        bool, typer.Option(help="Make a password and keep it in DIR.password (the default where nobody can be asked).")
    ] = False,
    name_constraint: Annotated[
        bool, typer.Option(help="Put a URI name constraint into the intermediate (some verifiers refuse those).")
    ] = False,
    crl_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where revocation lists will be served; put into certificates.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a CA: a root and an intermediate, in a new folder."""
    vacant(folder)
    password, generated = passwords.new(folder, password_file, generate_password)
    # Before the CA: a CA whose password is lost would be worse than a password without a CA.
    kept = passwords.keep(folder, password) if generated else None
    try:
        ca = CertificateAuthority.create(
            folder,
            trust_domain=trust_domain,
            password=password,
            name_constraint=name_constraint,
            crl_base_url=crl_url,
        )
    except BaseException as error:
        # Not where there is a CA after all, as when the interrupt came late; unless it is somebody else's.
        if kept is not None and (isinstance(error, AuthorityExists) or not os.path.lexists(folder)):
            kept.unlink(missing_ok=True)
        raise
    with ca:
        root = ca.root
    pin = thumbprint(root.public_bytes(Encoding.DER))
    answer = {
        "folder": str(folder),
        "trust_domain": trust_domain,
        "root_thumbprint": pin,
        "root_not_after": _iso(root.not_valid_after_utc),
        "password_file": None if kept is None else str(kept),
    }
    _say(
        answer,
        as_json,
        f"CA of {trust_domain} made in {folder}; its root has the thumbprint {pin}",
        *([f"Password generated and kept in {kept}: move it to a safe place"] if kept else []),
    )


@app.command()
def issue(
    folder: Folder,
    spiffe_ids: Annotated[
        list[str], typer.Argument(metavar="SPIFFE-ID...", help="Such as spiffe://fleet.example/billing.")
    ],
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
    as_json: AsJson = False,
) -> None:
    """Issue agents' certificates: each agent's folder gets chain.pem, key.pem and bundle.json, the roots it trusts."""
    agents = [AgentID.parse(text) for text in spiffe_ids]
    life = _duration(lifetime)
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
    request = read_bounded(csr, MAX_REQUEST_BYTES) if csr else None
    issued = []
    with _open(folder, passwords.existing(folder, password_file)) as ca:
        bundle = TrustBundles.of(ca.bundle()).to_json().encode()
        for agent in agents:  # all of them before the first is issued
            policy.inside(agent, ca.trust_domain)
        for agent, target in folders.items():
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
                    do=f"`a2a-pki revoke {folder} {serial:x}`, and issue another",
                ) from None
            issued.append((target, ca.find(serial)))
    _say(
        {"certificates": [{**_facts(r), "files": [str(target / name) for name in names]} for target, r in issued]},
        as_json,
        *(
            f"{r.spiffe_id}: certificate {r.serial:x}, expires {_words(r.not_after)}; written to {target}"
            for target, r in issued
        ),
    )


@app.command()
def revoke(
    folder: Folder,
    serial: Annotated[str, typer.Argument(help="Serial number, hexadecimal or decimal.")],
    reason: Annotated[
        str, typer.Option(help="One of " + ", ".join(r.value for r in policy.REASONS) + ".")
    ] = x509.ReasonFlags.unspecified.value,
    as_json: AsJson = False,
) -> None:
    """Revoke a certificate, for good."""
    with _open(folder) as ca:
        record = _find(ca, serial)
        record = ca.revoke(record.serial, reason)
    notes = ["The next `a2a-pki crl` lists it."]
    if any(e.oid == NO_REV_AVAIL.oid for e in record.certificate.extensions):
        notes.append(
            f"It says that nobody need ask (RFC 9608), and may be accepted until it expires {_words(record.not_after)}."
        )
    _say(_facts(record), as_json, f"{record.spiffe_id}: certificate {record.serial:x} is revoked", *notes)


@app.command("list")
def list_(
    folder: Folder,
    agent: Annotated[str | None, typer.Option(metavar="SPIFFE-ID", help="Only this agent's.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Expired ones too.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the certificates that this CA has issued, oldest first."""
    agent_id = None if agent is None else AgentID.parse(agent)
    with _open(folder) as ca:
        records = ca.certificates(agent_id=agent_id, ends_after=None if every else _now())
    if as_json:
        typer.echo(json.dumps([_facts(record) for record in records], indent=2))
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
        status = record.status(_now())
        table.add_row(
            Text(record.spiffe_id),
            record.kind,
            Text(status, style="green" if status == "valid" else "red"),
            _words(record.not_after),
            Text(f"{record.serial:x}"),
        )
    _print(table)


@app.command()
def show(
    folder: Folder,
    serial: Annotated[str, typer.Argument(help="Serial number, hexadecimal or decimal.")],
    as_json: AsJson = False,
) -> None:
    """Show one certificate, with its PEM."""
    with _open(folder) as ca:
        record = _find(ca, serial)
    names = record.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    pem = record.certificate.public_bytes(Encoding.PEM).decode()
    facts = {
        **_facts(record),
        "dns_names": names.get_values_for_type(x509.DNSName),
        "ip_addresses": [str(address) for address in names.get_values_for_type(x509.IPAddress)],
        "issuer": record.issuer,
    }
    if as_json:
        typer.echo(json.dumps({**facts, "pem": pem}, indent=2))
        return
    table = Table(show_header=False)
    for name, value in facts.items():
        text = ", ".join(value) if isinstance(value, list) else value
        if name.startswith("not_"):
            text = f"{value} ({_words(getattr(record, name))})"
        if text:
            table.add_row(name.replace("_", " "), Text(text))
    _print(table)
    typer.echo(pem, nl=False)


@app.command()
def crl(
    folder: Folder,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write root.crl.pem and intermediate.crl.pem there, and each as the file of --crl-url."
        ),
    ] = None,
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Publish the current revocation lists, one of each issuer (PEM)."""
    with _open(folder, passwords.existing(folder, password_file)) as ca:
        lists = dict(zip(("intermediate", "root"), ca.crl().crls, strict=True))
    answers: list[dict[str, Any]] = []
    for name, item in lists.items():
        pem = item.public_bytes(Encoding.PEM)
        file = None if out is None else out / f"{name}.crl.pem"
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, pem, mode=0o644)
            # What certificates point to (RFC 5280 section 4.2.1.13: DER), by the name that `profiles` gives it.
            served = out / crl_file_name(item) if out else file
            write_atomically(served, item.public_bytes(Encoding.DER), mode=0o644)
        ends = item.next_update_utc
        assert ends is not None  # noqa: S101 - our own lists always have it
        answers.append(
            {
                "issuer": name,
                "number": item.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number,
                "this_update": _iso(item.last_update_utc),
                "next_update": _iso(ends),
                "revoked": [f"{entry.serial_number:x}" for entry in item],
                "file": None if file is None else str(file),
                "pem": pem.decode(),
            }
        )
        if not as_json and file is None:
            typer.echo(pem, nl=False)
        elif not as_json:
            typer.echo(f"{file}: {len(item)} revoked, expires {_words(ends)}")
    if as_json:
        typer.echo(json.dumps({"crls": answers}, indent=2))


@app.command()
def bundle(
    folder: Folder,
    spiffe: Annotated[bool, typer.Option(help="Only the SPIFFE bundle document, for a bundle endpoint.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the trust bundle: whoever has it can verify the agents of this CA. It is JSON in any case."""
    with _open(folder) as ca:
        roots = ca.bundle()
    typer.echo(roots.to_json() if spiffe else TrustBundles.of(roots).to_json())


def _write(made: Credentials | Issued, target: Path, bundle: bytes) -> None:
    if isinstance(made, Credentials):
        made.save(target)
    else:  # the key is where the request came from
        target.mkdir(parents=True, exist_ok=True)
        write_atomically(target / CHAIN_FILE, made.chain_pem, mode=0o644)
    write_atomically(target / BUNDLE_FILE, bundle, mode=0o644)


def _open(folder: Path, password: str | None = None) -> CertificateAuthority:
    return CertificateAuthority.open(folder, password=password)


def _find(ca: CertificateAuthority, text: str) -> Record:
    """The certificate of a serial number as openssl, a table or a log prints it: hexadecimal first, then decimal."""
    digits = text.strip().replace(":", "").lower().removeprefix("0x")
    numbers = [int(digits, 16)] if re.fullmatch("[0-9a-f]{1,40}", digits) else []
    numbers += [int(digits)] if re.fullmatch("[0-9]{1,49}", text.strip()) else []
    for number in numbers:
        try:
            return ca.find(number)
        except UnknownSerial:
            continue
    raise UnknownSerial("serial number", got=text, expected="one that this CA has issued", do="see `a2a-pki list`")


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text.strip(), re.ASCII)
    if match is None:
        raise LifetimeRefused("lifetime", got=repr(text), expected="a number and s, m, h or d, such as 24h")
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[match[2]]
    return timedelta(**{unit: int(match[1])})


def _facts(record: Record) -> dict[str, str | None]:
    return {
        "serial": f"{record.serial:x}",
        "agent_id": record.spiffe_id,
        "kind": record.kind,
        "status": record.status(_now()),
        "not_before": _iso(record.not_before),
        "not_after": _iso(record.not_after),
        "thumbprint": record.thumbprint,
        "revoked_at": None if record.revoked_at is None else _iso(record.revoked_at),
        "reason": None if record.reason is None else record.reason.value,
    }


def _say(answer: dict[str, Any], as_json: bool, *lines: str) -> None:
    typer.echo(json.dumps(answer, indent=2) if as_json else "\n".join(lines))


def _print(table: Table) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    console.print(table)


def _now() -> datetime:
    return datetime.now(UTC)


def _iso(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _words(time: datetime) -> str:
    """ "in 23 hours", "5 minutes ago": rounded, in the largest unit of which there are two."""
    seconds = int(abs((time - _now()).total_seconds()))
    for unit, size in (("year", 31_536_000), ("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * size:
            count, name = round(seconds / size), unit
            break
    else:
        count, name = seconds, "second"
    text = f"{count} {name}{'' if count == 1 else 's'}"
    return f"in {text}" if time > _now() else f"{text} ago"


if __name__ == "__main__":
    sys.exit(main())
