"""`a2a-pki policy`: who may have which ID, names, keys and lifetimes."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from pki.cli.app import AsJson, KeyType, Where, app, duration, opened
from pki.cli.output import say
from pki.errors import PolicyMalformed, PolicyRefused
from pki.policy import approve
from pki.requests import Request
from pki.rules import MAX_POLICY_BYTES, Rules
from trust.credentials import read_bounded
from trust.identity import AgentID
from trust.private_keys import generate

policy = typer.Typer(no_args_is_help=True, help="Who may have which ID, DNS names, key types and lifetimes.")


@policy.command()
def apply(
    where: Where,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="TOML.")],
    as_json: AsJson = False,
) -> None:
    """Make a file the policy of this CA, from the next certificate on."""
    text = _text(file)
    with opened(where) as ca:
        ca.set_policy(text)
    say({"applied": str(file)}, as_json, f"{file} is the policy now")


@policy.command()
def show(where: Where) -> None:
    """Print the policy of this CA; nothing where it has none, and then every ID of its trust domain may be issued."""
    with opened(where) as ca:
        typer.echo(ca.policy_text() or "", nl=False)


@policy.command()
def check(
    where: Annotated[str, typer.Argument(metavar="CA|FILE", help="A CA, or a policy that is still to be applied.")],
    spiffe_id: Annotated[str, typer.Argument(metavar="SPIFFE-ID")],
    dns: Annotated[list[str] | None, typer.Option(metavar="NAME")] = None,
    ip: Annotated[list[str] | None, typer.Option(metavar="ADDRESS")] = None,
    key: Annotated[KeyType, typer.Option()] = "P-256",
    lifetime: Annotated[str, typer.Option(help="Such as 45m, 24h or 7d.")] = "24h",
    as_json: AsJson = False,
) -> None:
    """Say whether a certificate would be issued, and which rule decides: exit code 0 only if it would."""
    agent = AgentID.parse(spiffe_id)
    text: str | None
    if "://" not in where and Path(where).is_file():
        domain, text = agent.trust_domain, _text(Path(where))
    else:
        with opened(where) as ca:
            domain, text = ca.trust_domain, ca.policy_text()
    rules = None if text is None else Rules.parse(text, domain)
    answer = _decide(agent, domain, rules, dns or (), ip or (), key, duration(lifetime))
    say(answer, as_json, f"{'allowed' if answer['allowed'] else 'denied'}: {answer['why']}")
    if not answer["allowed"]:
        raise typer.Exit(1)


def _decide(
    agent: AgentID,
    trust_domain: str,
    rules: Rules | None,
    dns_names: Collection[str],
    ip_addresses: Collection[str],
    key: str,
    lifetime: timedelta,
) -> dict[str, str | bool]:
    """What issuing would decide: first what every CA demands, then the rules."""
    # Of what kind it may be, the rules say where there are some.
    asked = Request(public_key=generate(key if rules is None else "P-256").public_key(), uris=())
    try:
        approved = approve(
            asked,
            agent,
            trust_domain=trust_domain,
            dns_names=dns_names,
            ip_addresses=ip_addresses,
            lifetime=lifetime,
        )
    except PolicyRefused as error:
        return {"allowed": False, "rule": "", "why": str(error)}
    if rules is None:
        return {"allowed": True, "rule": "", "why": "this CA has no policy, and it is inside of its trust domain"}
    decision = rules.decide(agent, approved.dns_names, approved.ip_addresses, key, lifetime)
    return {"allowed": decision.allowed, "rule": decision.rule, "why": decision.why}


def _text(file: Path) -> str:
    try:
        return read_bounded(file, MAX_POLICY_BYTES).decode()
    except UnicodeDecodeError:
        raise PolicyMalformed(f"{file}", got="other bytes", expected="TOML in UTF-8") from None


app.add_typer(policy, name="policy")
