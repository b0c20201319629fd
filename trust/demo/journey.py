"""The chapters of the journey, in order; each yields its steps as they happen."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from pki import CertificateAuthority
from trust.authorize import exactly, members_of
from trust.bundles import TrustBundles
from trust.demo.attacks import attacks
from trust.demo.fleet import DOMAIN, ID, NAMES, SHORT_LIFE, Fleet, Step, archive_agent, billing_agent, say, start
from trust.middleware import AGENT_CARD_PATH
from trust.oauth.cards import check_card, read_card
from trust.oauth.keys import SigningKey
from trust.oauth.server import create_app
from trust.oauth.server.clients import Client, ClientRegistry
from trust.oauth.server.store import Store
from trust.tls.client import peer_of_response

CHAPTERS = {
    1: "A certificate authority and six identities",
    2: "Servers over mutual TLS",
    3: "A call with three proofs",
    4: "Delegation: a narrower token at the second hop",
    5: "Attacks, each for real, each refused",
    6: "The audit trail",
}


async def journey(folder: Path) -> AsyncIterator[Step]:
    """Run everything in `folder` (which must be empty or not exist) and yield each step as it happens.

    Raises:
        TrustError: something could not even be tried; a step that went wrong is yielded with `ok` False.
    """
    async with contextlib.AsyncExitStack() as stack:
        fleet = Fleet(folder, stack)
        for chapter in (_identities, _servers, _call, _delegation, attacks, _trail):
            async for step in chapter(fleet):
                yield step


async def _identities(fleet: Fleet) -> AsyncIterator[Step]:
    fleet.ca = CertificateAuthority.create(fleet.folder / "ca", trust_domain=DOMAIN, password=secrets.token_urlsafe(32))
    fleet.stack.callback(fleet.ca.close)
    fleet.bundles = TrustBundles.of(fleet.ca.bundle())
    yield Step(chapter=1, what=f"CA for trust domain {DOMAIN}", outcome="root and intermediate, keys encrypted on disk")
    for name in NAMES:
        issued = fleet.ca.issue_credentials(ID[name], dns_names=("localhost",))
        fleet.credentials[name] = issued
        remaining = issued.certificate.not_valid_after_utc - datetime.now(UTC)
        hours = round(remaining.total_seconds() / 3600)
        yield Step(
            chapter=1,
            what=str(ID[name]),
            outcome=f"certificate {issued.thumbprint[:16]}..., valid for {hours} hours",
            ok=issued.agent_id == ID[name],
        )
    fleet.crls.replace(fleet.ca.crl())


async def _servers(fleet: Fleet) -> AsyncIterator[Step]:
    store = Store(f"sqlite:///{fleet.folder / 'authority.db'}")
    fleet.stack.callback(store.close)
    members = members_of(DOMAIN)
    registry = ClientRegistry.of(
        Client(
            agent_id=ID["planner"],
            scopes=("agent:execute", "agent:read", "archive:read", "delegate:billing"),
            resources=(str(ID["billing"]), str(ID["archive"])),
        ),
        Client(
            agent_id=ID["billing"],
            exchange_scopes=("archive:read",),
            resources=(str(ID["archive"]),),
        ),
        Client(
            agent_id=ID["auditor"],
            scopes=("agent:execute",),
            resources=(str(ID["billing"]),),
            lifetime=SHORT_LIFE,
        ),
    )
    authority = create_app(
        issuer=fleet.url["authority"],
        clients=registry,
        keys=[SigningKey.generate()],
        store=store,
        audit=fleet.trail,
    )
    await start(fleet, "authority", authority, members)
    await start(fleet, "archive", archive_agent(fleet), exactly(ID["billing"]))
    await start(fleet, "billing", billing_agent(fleet), exactly(ID["planner"], ID["auditor"]))
    for name in ("authority", "billing", "archive"):
        caller = "billing" if name == "archive" else "planner"
        response = await fleet.client(caller, name).get(f"{fleet.url[name]}{AGENT_CARD_PATH}")
        tls = response.extensions["network_stream"].get_extra_info("ssl_object")
        peer = peer_of_response(response)
        yield Step(
            chapter=2,
            what=f"{ID[caller]} -> {peer.agent_id}",
            outcome=f"{tls.version()}, key exchange {tls.group}",
            ok=peer.agent_id == ID[name] and tls.version() == "TLSv1.3" and tls.group == "X25519MLKEM768",
        )


async def _call(fleet: Fleet) -> AsyncIterator[Step]:
    client = fleet.client("planner", "billing")
    card = (await client.get(fleet.url["billing"] + AGENT_CARD_PATH)).json()
    needs = read_card(card)
    check_card(needs, issuers=[fleet.url["authority"]])
    yield Step(
        chapter=3,
        what="planner reads billing's Agent Card",
        outcome=f"asks for mutual TLS, scope {' '.join(needs.scopes)}, signed messages",
        ok=needs.mtls and needs.signatures_required and needs.scopes == ("agent:execute",),
    )
    tokens = fleet.tokens("planner", "billing", *needs.scopes)
    token = await tokens.token()
    yield Step(
        chapter=3,
        what="planner gets an access token",
        outcome=f"for {ID['billing']}, bound to certificate {fleet.credentials['planner'].thumbprint[:16]}...",
        ok=token.scopes == needs.scopes,
    )
    client = fleet.client("planner", "billing", tokens=tokens, signer=fleet.signer("planner", "billing"))
    answer = await say(client, fleet.url["billing"], "invoice 42")
    yield Step(
        chapter=3,
        what="planner sends a signed message, verifies the signed answer",
        outcome=answer,
        ok=answer == f"billed to {ID['planner']}: invoice 42",
    )


async def _delegation(fleet: Fleet) -> AsyncIterator[Step]:
    tokens = fleet.tokens("planner", "billing", "agent:execute", "archive:read", "delegate:billing")
    client = fleet.client("planner", "billing", tokens=tokens, signer=fleet.signer("planner", "billing"))
    answer = json.loads(await say(client, fleet.url["billing"], "archive: invoice 41"))
    yield Step(
        chapter=4,
        what="billing exchanges planner's token and calls archive (REST binding)",
        outcome=f"archive saw sub {answer['sub']}, act {', '.join(answer['act'])}",
        ok=answer
        == {
            "sub": str(ID["planner"]),
            "act": [str(ID["billing"])],
            "cnf": fleet.credentials["billing"].thumbprint,
            "read": "invoice 41",
        },
    )


async def _trail(fleet: Fleet) -> AsyncIterator[Step]:
    for event in fleet.trail.events:
        allowed = event["decision"] == "allow"
        decision = "allowed, every check passed" if allowed else f"denied by {event['check']}"
        who, subject, target = (event.get(name, "") for name in ("peer", "subject", "target"))
        who += f" for {subject}" if subject not in ("", who) else ""
        yield Step(
            chapter=6,
            what=f"{event['event']:<9} {decision:<28}",
            outcome=f"{who} -> {target}" if target else who,
        )
    written = (fleet.folder / "audit.jsonl").read_text()
    # Every JWS and JWT begins so: base64url of '{"', more of it, and a dot, which no thumbprint has.
    leaked = re.search(r"PRIVATE KEY|eyJ[\w-]*\.", written)
    yield Step(
        chapter=6,
        what=f"{len(fleet.trail.events)} decisions, one JSON object a line in audit.jsonl (--folder keeps it)",
        outcome="a token or key is in it" if leaked else "no token and no key in it",
        ok=not leaked,
    )
