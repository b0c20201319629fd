"""Enrolment with the real service over real sockets: what is written, what is said, and what an interruption leaves."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pki.client import enrol
from pki.errors import AuthorityUnreachable, ClockSkewed, EnrolmentFailed, PinMismatch
from tests.pki.client.parts import BILLING, CA, Clock
from trust.bundles import TrustBundles
from trust.credentials import Credentials
from trust.errors import CertificateNotYetValid, CredentialsError
from trust.identity import AgentID
from trust.peers import verify_peer


def test_an_agent_gets_what_a2a_pki_issue_writes_and_where_to_renew_it(ca: CA, home: Path) -> None:
    made = enrol(**ca.enrolling(home, token=ca.token(lifetime=timedelta(hours=2))))
    found, bundles = Credentials.load(home), TrustBundles.load(home / "bundle.json")
    assert found.thumbprint == made.thumbprint and found.agent_id == made.agent_id == BILLING
    verify_peer(found.chain_der, bundles=bundles, now=ca.clock(), usage="client")
    assert bundles.by_domain["fleet.example"] == ca.ca.bundle()
    assert json.loads((home / "ca.json").read_text())["url"] == ca.url
    assert {file.name for file in home.iterdir() if file.name[0] != "."} == {
        "bundle.json",
        "ca.json",
        "chain.pem",
        "key.pem",
    }
    assert (home / "key.pem").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    assert ca.ca.find_thumbprint(made.thumbprint) is not None
    assert made.certificate.not_valid_after_utc - ca.clock() < timedelta(hours=2)


def test_the_same_command_again_says_the_same_and_asks_nobody(ca: CA, home: Path) -> None:
    arguments = ca.enrolling(home)
    made = enrol(**arguments)
    ca.stop()
    assert enrol(**arguments).thumbprint == made.thumbprint
    with pytest.raises(AuthorityUnreachable):  # another command is another enrolment
        enrol(**{**arguments, "token": ca.token()})
    assert Credentials.load(home).thumbprint == made.thumbprint


def test_in_an_event_loop_too(ca: CA, home: Path) -> None:
    async def program() -> Credentials:
        return enrol(**ca.enrolling(home))

    assert asyncio.run(program()).agent_id == BILLING


def test_an_encrypted_key(ca: CA, home: Path) -> None:
    made = enrol(**ca.enrolling(home, password="secret"))
    assert b"ENCRYPTED" in (home / "key.pem").read_bytes()
    assert Credentials.load(home, "secret").thumbprint == made.thumbprint


def test_enrolling_again_replaces_credentials_and_keeps_what_others_trust(ca: CA, home: Path) -> None:
    first = enrol(**ca.enrolling(home))
    partner = TrustBundles.load(home / "bundle.json").by_domain["fleet.example"].to_document()
    both = {"trust_domains": {"fleet.example": partner, "partner.example": partner}}
    (home / "bundle.json").write_text(json.dumps(both))
    second = enrol(**ca.enrolling(home, agent_id=str(BILLING)))
    assert Credentials.load(home).thumbprint == second.thumbprint != first.thumbprint
    assert set(TrustBundles.load(home / "bundle.json").by_domain) == {"fleet.example", "partner.example"}


def refused(ca: CA, home: Path, says: str, **changes: Any) -> None:
    with pytest.raises(EnrolmentFailed) as caught:
        enrol(**ca.enrolling(home, **changes))
    line = str(caught.value)
    assert says in line and "\n" not in line
    assert str(changes.get("token", "-")) not in line
    assert not home.exists(), "nothing half-written, and no key for which nothing will come"


def test_a_used_token(ca: CA, home: Path, tmp_path: Path) -> None:
    token = ca.token()
    enrol(**ca.enrolling(tmp_path / "first", token=token))
    refused(ca, home, "the token was used already", token=token)


def test_an_expired_token(ca: CA, home: Path) -> None:
    token = ca.token(valid_for=timedelta(minutes=5))
    ca.clock.advance(minutes=6)
    refused(ca, home, "the token has expired", token=token)


def test_an_unknown_token(ca: CA, home: Path) -> None:
    token = ca.token()
    refused(ca, home, "does not know the token", token=token[:-64] + "0" * 64)
    refused(ca, home, "that is no token", token="password")


def test_a_token_for_another_agent(ca: CA, home: Path) -> None:
    token = ca.token()
    refused(ca, home, "the token is for another agent", token=token, agent_id="spiffe://fleet.example/planner")
    assert enrol(**ca.enrolling(home, token=token)).agent_id == BILLING  # and nothing was burnt


def test_a_banned_agent(ca: CA, home: Path) -> None:
    token = ca.token()
    ca.ca.ban(BILLING)
    refused(ca, home, "the CA has banned this agent", token=token)


def test_a_folder_of_another_agent_is_not_taken_and_the_token_not_lost(ca: CA, home: Path) -> None:
    planner = enrol(**ca.enrolling(home, token=ca.token("spiffe://fleet.example/planner")))
    arguments = ca.enrolling(home)
    with pytest.raises(CredentialsError, match="another agent"):
        enrol(**arguments)
    assert Credentials.load(home).thumbprint == planner.thumbprint
    for name in ("chain.pem", "key.pem"):
        (home / name).unlink()
    assert enrol(**arguments).agent_id == BILLING


def test_another_root(ca: CA, home: Path, tmp_path: Path) -> None:
    with pytest.raises(PinMismatch) as caught:
        enrol(**ca.enrolling(home, root_fingerprint="sha256:" + "ab" * 32))
    assert ca.fingerprint in str(caught.value)  # what there is, to compare
    assert not home.exists()


@pytest.mark.parametrize("hours", [-48, -1, 30, 24 * 400])
def test_a_wrong_clock_is_told_with_both_clocks_and_the_token_is_not_lost(ca: CA, home: Path, hours: int) -> None:
    wrong = Clock()
    wrong.advance(hours=hours)
    token = ca.token()
    with pytest.raises(ClockSkewed) as caught:
        enrol(**ca.enrolling(home, token=token, clock=wrong))
    line = str(caught.value)
    shown = [datetime.strptime(text, "%Y-%m-%d %H:%M:%S") for text in re.findall(r"[0-9-]{10} [0-9:]{8}(?= UTC)", line)]
    for said, clock in zip(shown, (wrong, ca.clock), strict=True):
        assert abs(said.replace(tzinfo=UTC) - clock()) < timedelta(seconds=30)
    assert "this machine's clock says" in line and "the CA's" in line
    assert "apart: set the wrong one" in line and "\n" not in line
    assert not (home / "chain.pem").exists()
    assert enrol(**ca.enrolling(home, token=token)).agent_id == BILLING


def test_a_certificate_that_is_not_valid_here_yet(ca: CA, home: Path) -> None:
    """The service's own certificate is older and still good; it is the new one that this clock does not take."""
    token = ca.token()
    wrong = Clock()
    ca.clock.advance(minutes=10)
    with pytest.raises(CertificateNotYetValid, match="not valid yet"):
        enrol(**ca.enrolling(home, token=token, clock=wrong))
    wrong.advance(minutes=10)
    assert enrol(**ca.enrolling(home, token=token, clock=wrong)).agent_id == BILLING  # the same key, the same token


def test_nobody_there(ca: CA, home: Path) -> None:
    ca.stop()
    with pytest.raises(AuthorityUnreachable) as caught:
        enrol(**ca.enrolling(home))
    assert ca.url in str(caught.value)
    assert not home.exists()


def test_a_folder_that_cannot_be_made(ca: CA, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    token = ca.token()
    with pytest.raises(CredentialsError):
        enrol(**ca.enrolling(tmp_path / "file" / "agent", token=token))
    assert enrol(**ca.enrolling(tmp_path / "agent", token=token))


# kill -9 at every file and every connection.

ZYGOTE = """
import json, os, signal, sys
from pki.client import enrol
from trust.credentials import Credentials


def is_step(event, args, folder):
    # Every file and folder of the agent that is opened, made, renamed or removed, and every connection.
    return event == "socket.connect" or (event == "open" or event.startswith("os.")) and folder in str(args)

def child(arguments, at):
    pid = os.fork()
    if pid == 0:
        seen = 0
        def hook(event, args):
            nonlocal seen
            if is_step(event, args, arguments["folder"]):
                if seen == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1
        sys.addaudithook(hook)
        code = 1
        try:
            enrol(**arguments)
            code = 0
        except Exception as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]

tokens, arguments, folder = json.load(sys.stdin)
done = []
for at, token in enumerate(tokens):
    mine = {**arguments, "token": token, "folder": f"{folder}/{at}"}
    killed = child(mine, at) != 0
    if killed and os.path.exists(f"{folder}/{at}/chain.pem"):
        Credentials.load(f"{folder}/{at}")  # whatever is there is whole
    if child(mine, -1) != 0:
        sys.exit(f"killed at step {at}, it did not go on")
    done.append([killed, Credentials.load(f"{folder}/{at}").thumbprint, sorted(os.listdir(f"{folder}/{at}"))])
    if not killed:
        break
json.dump(done, sys.stdout)
"""


def test_killed_at_any_step_the_same_command_goes_on(ca: CA, tmp_path: Path) -> None:
    tokens = [ca.token() for _ in range(120)]
    arguments = {"url": ca.url, "root_fingerprint": ca.fingerprint}
    ran = subprocess.run(
        [sys.executable, "-c", ZYGOTE],
        input=json.dumps([tokens, arguments, str(tmp_path / "agents")]),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        timeout=100,
    )
    assert ran.returncode == 0, ran.stderr
    done = json.loads(ran.stdout)
    assert len(done) > 30, "there are connections, a lock, and five files, each with several steps"
    assert not done[-1][0], "the last was not killed"
    for _, thumbprint, files in done:
        assert [f for f in files if f[0] != "."] == ["bundle.json", "ca.json", "chain.pem", "key.pem"]
        assert ca.ca.find_thumbprint(thumbprint) is not None
    # One certificate for each token, however often it was asked for.
    issued = [r for r in ca.ca.certificates() if r.spiffe_id == str(BILLING)]
    assert len(issued) == len(done)


def test_two_at_once_get_the_same_certificate(ca: CA, home: Path) -> None:
    arguments = ca.enrolling(home)

    async def both() -> list[Credentials]:
        return await asyncio.gather(*(asyncio.to_thread(enrol, **arguments) for _ in range(4)))

    assert len({made.thumbprint for made in asyncio.run(both())}) == 1


def test_a_lost_key_is_a_lost_token(ca: CA, home: Path) -> None:
    """The other half of the promise: only whoever has the key gets the certificate again."""
    arguments = ca.enrolling(home)
    enrol(**arguments)
    shutil.rmtree(home)
    with pytest.raises(EnrolmentFailed, match="used already"):
        enrol(**arguments)


def test_ids_are_parsed(ca: CA, home: Path) -> None:
    assert enrol(**ca.enrolling(home, agent_id=AgentID.parse(str(BILLING))))
