"""What the file of the clients declares for all of them: hierarchy, calendars, a policy."""

from __future__ import annotations

import asyncio
import tomllib
from datetime import time, timedelta
from pathlib import Path

import httpx
import pytest

from tests.authority import BILLING, ISSUER, PLANNER, Clock, Trail, WithPeer, ask
from tests.forge import NOW, Forge
from trust.errors import ConfigurationError, CredentialsError
from trust.oauth.calendars import Calendar
from trust.oauth.policy import CedarPolicy
from trust.oauth.scopes import parse
from trust.oauth.server.approvals import ApprovalRules
from trust.oauth.server.declared import DeclaredFile
from trust.oauth.server.rules import MAX_INCLUDES, rules_of
from trust.oauth.server.state import authorization_server
from trust.peers import PeerVerifier

LATER = NOW + timedelta(days=100)

FILE = f"""
policy = "tokens.cedar"

[includes]
"agent:admin" = ["agent:execute"]
"agent:execute" = ["agent:read"]

[approval]
scopes = ["agent:admin"]
lifetime_seconds = 60

[[calendar]]
name = "every-day"
zone = "UTC"
days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
opens = "00:00"
closes = "00:00"
closed = ["{LATER:%m-%d}"]

[[client]]
agent_id = "{PLANNER}"
scopes = ["agent:admin", "temporal:every-day"]
resources = ["{BILLING}"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tokens.cedar").write_text("forbid (principal, action, resource);")
    path = tmp_path / "clients.toml"
    path.write_text(FILE)
    return path


def test_what_the_file_declares(file: Path) -> None:
    rules = DeclaredFile(file, None).rules
    assert rules.catalogue.covers(parse("agent:admin"), parse("agent:read"))
    assert rules.calendars == {
        "every-day": Calendar(
            zone="UTC",
            days=frozenset(range(1, 8)),
            opens=time(0),
            closes=time(0),
            closed_yearly=frozenset({(LATER.month, LATER.day)}),
        )
    }
    assert isinstance(rules.permit, CedarPolicy)
    assert rules.approvals == ApprovalRules(scopes=("agent:admin",), lifetime=timedelta(minutes=1))


def test_a_file_of_clients_alone_declares_nothing_else(file: Path) -> None:
    rules = rules_of(tomllib.loads(FILE[FILE.index("[[client]]") :]), file)
    assert (rules.calendars, rules.permit, rules.approvals) == ({}, None, None)
    assert not rules.catalogue.covers(parse("agent:admin"), parse("agent:read"))


def test_the_server_keeps_to_it(file: Path, tmp_path: Path) -> None:
    forge = Forge()
    peer = PeerVerifier(forge.bundles).verify(forge.leaf("/planner").chain_der, now=NOW, usage="client")

    wanted = "agent:read temporal:every-day"

    async def go() -> str:
        settings = {"clients": file, "issuer": ISSUER, "folder": tmp_path / "state", "url": None, "password": None}
        with authorization_server(**settings, audit=Trail(), clock=Clock(NOW)) as app:  # type: ignore[arg-type]
            transport = httpx.ASGITransport(WithPeer(app, peer))
            async with httpx.AsyncClient(transport=transport, base_url=ISSUER) as http:
                answer = (await http.post("/token", data=ask(scope=wanted))).json()
        return str(answer.get("error", answer.get("scope")))

    without_policy = FILE.replace('policy = "tokens.cedar"', "")
    file.write_text(without_policy)
    assert asyncio.run(go()) == wanted
    file.write_text(without_policy.replace('"agent:admin"]\nl', '"agent:read"]\nl'))
    assert asyncio.run(go()) == "authorization_pending"
    file.write_text(without_policy.replace(f"{LATER:%m-%d}", f"{NOW.date()}"))
    assert asyncio.run(go()) == "invalid_scope"  # closed today
    file.write_text(FILE)
    assert asyncio.run(go()) == "access_denied"


MISTAKES = {
    "includes a list": FILE.replace("[includes]", "[[includes]]"),
    "includes a text": FILE.replace('= ["agent:execute"]', '= "agent:execute"'),
    "includes what is no scope": FILE.replace('= ["agent:execute"]', '= ["agent"]'),
    "an entry that includes itself": FILE.replace('= ["agent:execute"]', '= ["agent:read", "agent:admin"]'),
    "includes numbers": FILE.replace('= ["agent:execute"]', "= [1]"),
    "an entry with a wildcard": FILE.replace('"agent:admin" =', '"agent:*" ='),
    "too many entries": FILE.replace(
        "[includes]", "[includes]\n" + "\n".join(f'"a:n{n}" = []' for n in range(MAX_INCLUDES))
    ),
    "a calendar with a mistake": FILE.replace('"UTC"', '"Mars/Olympus"'),
    "a calendar that is a table": FILE.replace("[[calendar]]", "[calendar]"),
    "a policy that is a number": FILE.replace('"tokens.cedar"', "1"),
    "no policy's name": FILE.replace('"tokens.cedar"', '""'),
    "an approval of nothing": FILE.replace('scopes = ["agent:admin"]\nl', "l"),
    "an approval of what is no scope": FILE.replace('scopes = ["agent:admin"]\n', 'scopes = ["admin"]\n'),
    "an approval with a misspelt limit": FILE.replace("lifetime_seconds", "lifetime"),
    "an approval that waits for ever": FILE.replace("_seconds = 60", "_seconds = 86401"),
    "an approval that does not wait": FILE.replace("_seconds = 60", "_seconds = 0"),
    "an approval for a while": FILE.replace("_seconds = 60", '_seconds = "60"'),
    "no such policy": FILE.replace("tokens.cedar", "other.cedar"),
    "a policy with a mistake": FILE.replace("tokens.cedar", "clients.toml"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(file: Path, mistake: str) -> None:
    assert MISTAKES[mistake] != FILE
    with pytest.raises(ConfigurationError) as caught:
        rules_of(tomllib.loads(MISTAKES[mistake]), file)
    assert type(caught.value) in (ConfigurationError, CredentialsError) and "\n" not in str(caught.value)
