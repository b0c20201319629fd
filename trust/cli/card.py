"""`a2a-trust card sign | verify | lint`: Agent Cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

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
    keys_of,
    read_input,
    time_of,
    watched_credentials,
)
from trust.credentials import BUNDLE_FILE, Credentials
from trust.identity import AgentID
from trust.peers import PeerVerifier
from trust.signing.card_form import MAX_CARD_BYTES, Finding
from trust.signing.cards import lint_card, sign_card, verify_card
from trust.signing.pinned import PinnedKeys

WithoutMtls = Annotated[
    bool, typer.Option("--without-mtls", help="Accept an agent that can be called without a client certificate.")
]

_card = typer.Typer(no_args_is_help=True, help="Agent Cards: signed whole, verified for the agent that is meant.")
app.add_typer(_card, name="card")


@_card.command()
def sign(
    file: Input = STDIN,
    credentials: CredentialsFolder = Path(),
    also: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Sign with these credentials too, during a rotation; repeatable."),
    ] = None,
) -> None:
    """Sign an Agent Card, and print it as it must be served. What was changed in it is told on standard error.

    Earlier signatures are replaced. A card that cannot be signed whole is refused; `card lint` says all that is wrong.
    """
    signed = sign_card(
        read_input(file, MAX_CARD_BYTES), credentials=[_credentials(folder) for folder in (credentials, *(also or ()))]
    )
    for change in signed.changes:
        typer.echo(_line(change), err=True)
    typer.get_binary_stream("stdout").write(signed.text + b"\n")


@_card.command()
def verify(
    *,
    file: Input = STDIN,
    agent: Annotated[
        str,
        typer.Option(metavar="ID", help="For whom it must speak: a SPIFFE ID, or the URL that it was fetched from."),
    ],
    jwks: KeyFile = None,
    without_mtls: WithoutMtls = False,
    sdk_form: Annotated[
        bool,
        typer.Option("--sdk-form", help="Accept also what the SDKs sign, and leave out what that does not cover."),
    ] = False,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="The time that is asked about, with its zone; default: now.")
    ] = None,
    credentials: CredentialsFolder = Path(),
    bundles: BundleFiles = None,
    crl: RevocationFiles = None,
    post_quantum: PostQuantum = False,
    as_json: AsJson = False,
) -> None:
    """Verify a signed Agent Card, and print what was signed of it: nothing else in the document is to be used."""
    keys: PeerVerifier | PinnedKeys
    if jwks is not None:
        keys = keys_of(jwks, bundles, crl)
    else:
        trusted = bundles_of(bundles or [str(credentials / BUNDLE_FILE)])
        keys = PeerVerifier(trusted, RevocationLists.load(*(crl or ())))
    result = verify_card(
        read_input(file, MAX_CARD_BYTES),
        keys=keys,
        agent=AgentID.parse(agent) if agent.startswith("spiffe:") else agent,
        now=time_of(at),
        algorithms=algorithms_of(post_quantum),
        mtls=not without_mtls,
        sdk_form=sdk_form,
    )
    signer = str(result.signer.agent_id) if result.signer else None
    if as_json:
        facts = {"signer": signer, "kid": result.kid, "uncovered": result.uncovered, "card": result.card}
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"signer: {signer or 'pinned key ' + ascii(result.kid)}", err=True)
    for path in result.uncovered:
        typer.echo(f"left out, for no signature covers it: {path!a}", err=True)
    typer.echo(json.dumps(result.card, indent=2))  # in ASCII: nothing in a stranger's card moves the cursor


@_card.command()
def lint(file: Input = STDIN, without_mtls: WithoutMtls = False, as_json: AsJson = False) -> int:
    """Say what signing would change in an Agent Card, and what is in its way. Exit code 1 where there is anything."""
    findings = lint_card(read_input(file, MAX_CARD_BYTES), mtls=not without_mtls)
    for finding in findings:
        typer.echo(json.dumps(finding._asdict()) if as_json else _line(finding))
    return 1 if findings else 0


def _line(finding: Finding) -> str:
    return f"{ascii(finding.path)[1:-1]}: {finding.problem}; {finding.mended or 'mend it'}"


def _credentials(folder: Path) -> Credentials:
    return watched_credentials(folder).current()
