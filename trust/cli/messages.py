"""`a2a-trust sign | verify`: messages signed inside JSON; `a2a-trust evidence show`: what was received, and when."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trust.authorize import exactly
from trust.bundles import RevocationLists
from trust.cli.app import AsJson, app
from trust.cli.options import (
    STDIN,
    BundleFiles,
    CredentialsFolder,
    Input,
    KeyFile,
    PostQuantum,
    RevocationFiles,
    algorithms_of,
    bundles_of,
    credentials_of,
    keys_of,
    read_input,
    rule_of,
    time_of,
)
from trust.clock import shown, wall_clock
from trust.credentials import BUNDLE_FILE, write_atomically
from trust.errors import BindingMismatch, IdentityError
from trust.identity import AgentID
from trust.peers import PeerVerifier
from trust.signing.canonical import MAX_BYTES
from trust.signing.envelope import COMMON, VerifiedMessage
from trust.signing.evidence import MAX_EVIDENCE_BYTES, verify_evidence
from trust.signing.http import new_message_id
from trust.signing.messages import authenticate_message, sign_message
from trust.signing.pinned import PinnedAgents
from trust.signing.proto_json import KINDS, Kind
from trust.signing.targets import origin_of

KindName = Annotated[str, typer.Option("--kind", metavar="KIND", help="Which object it is: " + ", ".join(KINDS) + ".")]
At = Annotated[
    str | None, typer.Option(metavar="TIME", help="The time that is asked about, with its zone; default: now.")
]


@app.command()
def sign(
    *,
    file: Input = STDIN,
    audience: Annotated[str, typer.Option(metavar="ID", help="The one receiver: its SPIFFE ID, or its origin URL.")],
    kind: KindName = "Message",
    credentials: CredentialsFolder = Path(),
) -> None:
    """Sign an A2A object in JSON, and print it with the signature inside. It is fresh for one minute."""
    receiver = _one_receiver(audience)
    signed = sign_message(
        read_input(file, MAX_BYTES),
        _kind(kind),
        credentials=credentials_of(credentials).current(),
        audience=receiver,
        now=wall_clock(),
        jti=new_message_id(),
    )
    typer.echo(json.dumps(signed, ensure_ascii=False))


@app.command()
def verify(
    file: Input = STDIN,
    signer: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Who may have signed: a SPIFFE ID or a whole trust domain; repeatable."),
    ] = None,
    audience: Annotated[
        str | None, typer.Option(metavar="ID", help="Whom it must be for; default: the agent of the credentials.")
    ] = None,
    kind: KindName = "Message",
    at: At = None,
    evidence: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write evidence of it, with our receipt, into this file.")
    ] = None,
    credentials: CredentialsFolder = Path(),
    bundles: BundleFiles = None,
    crl: RevocationFiles = None,
    jwks: KeyFile = None,
    post_quantum: PostQuantum = False,
    as_json: AsJson = False,
) -> None:
    """Verify an A2A object that is signed inside, and print what was signed.

    Not checked: whether it was received before.
    """
    if not signer:
        raise typer.BadParameter("nobody may have signed it: give --signer spiffe://... or --signer trust.domain")
    if evidence is not None and at is not None:
        raise typer.BadParameter("--evidence and --at: a receipt tells the time of receiving, which is now")
    if evidence is not None and os.path.lexists(evidence):
        raise typer.BadParameter(f"--evidence: {evidence} is there already, and evidence is to last: name another")
    moment = time_of(at)
    verifier: PeerVerifier | PinnedAgents
    if jwks is not None:
        if evidence is not None or len(signer) > 1:
            raise typer.BadParameter("--jwks: the keys are those of one --signer, and make no evidence")
        verifier, signers = PinnedAgents({signer[0]: keys_of(jwks, bundles, crl)}), exactly(signer[0])
    else:
        trusted = bundles_of(bundles or [str(credentials / BUNDLE_FILE)])
        verifier = PeerVerifier(trusted, RevocationLists.load(*(crl or ())))
        signers = rule_of(signer, trusted, "--signer")
    message = authenticate_message(
        read_input(file, MAX_BYTES),
        _kind(kind),
        audience=audience or credentials_of(credentials).current().agent_id,
        verifier=verifier,
        now=moment,
        signers=signers,
        algorithms=algorithms_of(post_quantum),
    )
    if evidence is not None and isinstance(verifier, PeerVerifier):
        ours = credentials_of(credentials).current()
        bundle = message.evidence(credentials=ours, verifier=verifier, jti=new_message_id())
        write_atomically(evidence, bundle, mode=0o600)
    _show(_facts(message), message.payload, as_json=as_json)


_evidence = typer.Typer(no_args_is_help=True, help="What was received, from whom, and when: verified later, offline.")
app.add_typer(_evidence, name="evidence")


@_evidence.command()
def show(
    file: Input = STDIN,
    receiver: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Who may have received what was for a URL; repeatable."),
    ] = None,
    at: At = None,
    credentials: CredentialsFolder = Path(),
    bundles: BundleFiles = None,
    crl: RevocationFiles = None,
    post_quantum: PostQuantum = False,
    as_json: AsJson = False,
) -> None:
    """Verify evidence for the time of its receipt, and print what was signed.

    The trust bundle is the one of then; the revocation lists are those of now, and of any time.
    """
    trusted = bundles_of(bundles or [str(credentials / BUNDLE_FILE)])
    verified = verify_evidence(
        read_input(file, MAX_EVIDENCE_BYTES),
        trusted.current(),
        at=time_of(at),
        crls=RevocationLists.load(*(crl or ())),
        receivers=rule_of(receiver, trusted, "--receiver") if receiver else None,
        algorithms=algorithms_of(post_quantum),
    )
    facts = _facts(verified.message)
    facts["receiver"] = str(verified.receiver.agent_id)
    facts["revocation checked at receipt"] = verified.revocation_checked
    if verified.revoked_since is not None:
        facts["revoked since"] = shown(verified.revoked_since)
    if verified.receiver_revoked_since is not None:
        facts["receiver revoked since"] = shown(verified.receiver_revoked_since)
    if verified.unheard:
        facts["revocation lists that say nothing about them"] = len(verified.unheard)
    _show(facts, verified.message.payload, as_json=as_json)


def _one_receiver(text: str) -> str:
    """An audience as its receiver names itself."""
    try:
        if text.startswith("spiffe:"):
            return str(AgentID.parse(text))
        if (origin := origin_of(text)) == text:
            return text
        expected = origin
    except (IdentityError, BindingMismatch):
        expected = "a SPIFFE ID, or an origin such as https://agent.example"
    raise typer.BadParameter(f"--audience: got {_printable(text)}, expected {expected}")


def _kind(name: str) -> Kind:
    if name not in KINDS:
        raise typer.BadParameter(f"--kind: got {name}, expected {' or '.join(KINDS)}")
    return name


def _facts(message: VerifiedMessage) -> dict[str, Any]:
    """What was verified of the header; with all that the message is bound to, such as the target of a request."""
    bound = {name: value for name, value in message.header["a2a"].items() if name not in COMMON}
    if "cty" in message.header:
        bound["cty"] = message.header["cty"]
    return {
        **bound,
        "signer": str(message.signer.agent_id),
        "audience": message.audience,
        "type": message.header["typ"],
        "id": message.message_id,
        "signed": shown(message.issued_at),
        "received": shown(message.received_at),
    }


def _show(facts: dict[str, Any], payload: bytes, *, as_json: bool) -> None:
    """The payload on standard output, as it was signed, and the facts on standard error; as JSON all on one line."""
    text = payload.decode("utf-8", errors="backslashreplace")
    if as_json:
        typer.echo(json.dumps({name.replace(" ", "_"): fact for name, fact in facts.items()} | {"payload": text}))
        return
    for name, fact in facts.items():
        typer.echo(f"{name}: {_printable(_words(fact))}", err=True)  # a signer's line break makes no line of ours
    if sys.stdout.isatty():  # what was signed may be meant for a terminal: nothing in it moves the cursor
        typer.echo("\n".join(map(_printable, text.split("\n"))))
    else:
        typer.get_binary_stream("stdout").write(payload + b"\n")


def _words(fact: object) -> str:
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    return fact if isinstance(fact, str) else json.dumps(fact)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
