"""Arguments that several commands share, and what is made of them."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from trust.authorize import Authorizer, any_of, exactly, members_of
from trust.bundles import BundleSource
from trust.cli.app import PASSWORD_VARIABLE
from trust.credentials import CHAIN_FILE, read_bounded
from trust.errors import ConfigurationError, WrongPassword
from trust.files import WatchedBundles, WatchedCredentials
from trust.identity import AgentID, trust_domain
from trust.oauth.keys import StaticKeys
from trust.oauth.keys.jwks import MAX_JWKS_BYTES
from trust.oauth.server.state import open_store
from trust.oauth.server.store import Operator, Store
from trust.signing.algorithms import POST_QUANTUM
from trust.signing.envelope import DEFAULT_ALGORITHMS
from trust.signing.jws import strict_json

CredentialsFolder = Annotated[
    Path,
    typer.Option(
        "--credentials",
        metavar="DIR",
        help="Folder with chain.pem and key.pem, svid.pem and svid_key.pem, or tls.crt and tls.key; "
        f"a password is read from ${PASSWORD_VARIABLE}.",
    ),
]
BundleFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--bundles",
        metavar="FILE",
        help="Trust bundles; default: bundle.json beside the credentials. Or, repeatable, DOMAIN=FILE: the SPIFFE "
        "bundle or the PEM roots of one trust domain.",
    ),
]
RevocationFiles = Annotated[
    list[Path] | None, typer.Option("--crl", metavar="FILE", help="Revocation list; repeatable.")
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--jwks", metavar="FILE", help="The agent's keys (JWKS), in place of trust bundles."),
]
PostQuantum = Annotated[bool, typer.Option("--post-quantum", help="Accept ML-DSA-44 and ML-DSA-65 signatures, too.")]
StateFolder = Annotated[
    Path, typer.Option("--state", metavar="DIR", help="The authorization server's folder, with its database.")
]
StoreURL = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="Its database, such as postgresql://..., in place of that in --state."),
]
STATE = Path("authority-state")
Input = Annotated[Path, typer.Argument(metavar="[FILE]", help="What to read; default: standard input.")]
STDIN = Path("-")
CHAINS = (CHAIN_FILE, "svid.pem", "tls.crt")  # by one of these names `WatchedCredentials` finds a chain


def credentials_of(folder: Path) -> WatchedCredentials:
    """The credentials in a folder (or a file with both); their password comes from the environment.

    Raises:
        ConfigurationError: there are none, or they cannot be read.
    """
    if not folder.is_file() and not any((folder / name).exists() for name in CHAINS):
        raise ConfigurationError(
            f"no credentials in {folder.absolute() if folder == Path() else folder}",
            expected="chain.pem and key.pem, svid.pem and svid_key.pem, or tls.crt and tls.key",
            do="give --credentials DIR, which `a2a-pki enrol` makes",
        )
    return watched_credentials(folder)


def watched_credentials(folder: Path) -> WatchedCredentials:
    """As `WatchedCredentials`, with the password that the environment has; where it is wrong, this says so."""
    password = os.environ.get(PASSWORD_VARIABLE)
    try:
        return WatchedCredentials(folder, password=password)
    except WrongPassword as error:
        if not password:
            raise WrongPassword(f"private key in {folder} is encrypted", do=f"set {PASSWORD_VARIABLE}") from None
        raise WrongPassword(f"{error}", do=f"the password is that of {PASSWORD_VARIABLE}") from None


def bundles_of(given: list[str]) -> WatchedBundles:
    """One bundle map, or a file for each trust domain."""
    pairs = [(domain, file) for domain, equals, file in (text.partition("=") for text in given) if equals]
    if not pairs and len(given) == 1:
        return WatchedBundles(given[0])
    if len(dict(pairs)) != len(given):
        raise typer.BadParameter("--bundles: give either one FILE, or DOMAIN=FILE once for each trust domain")
    return WatchedBundles(dict(pairs))


def opened_store(folder: Path, url: str | None) -> Store:
    """The database of an authorization server that is there; what is changed in it is a decision of this account.

    Raises:
        ConfigurationError: as `open_store`.
    """
    return open_store(folder, url, create=False, by=operator())


def operator() -> Operator:
    """The account that this command runs under, on which machine; for the audit trail."""
    return Operator(account=f"{_account()}@{socket.gethostname()}")


def _account() -> str:
    if sys.platform == "win32":
        return getpass.getuser()  # as the environment says
    import pwd

    # `getpass` would believe the environment, in which anybody writes what they like.
    number = os.getuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # a container's user need not have a name
        return f"uid {number}"


def rule_of(allowed: list[str], trusted: BundleSource, option: str) -> Authorizer:
    """SPIFFE IDs and whole trust domains, each of a domain that is trusted."""
    known = trusted.current().by_domain
    for domain in (AgentID.parse(a).trust_domain if a.startswith("spiffe://") else a for a in allowed):
        if trust_domain(domain) not in known:
            raise ConfigurationError(option, got=f"trust domain {domain}", expected="one of " + ", ".join(known))
    return any_of(*(exactly(a) if a.startswith("spiffe://") else members_of(a) for a in allowed))


def keys_of(file: Path, bundles: list[str] | None, crl: list[Path] | None) -> StaticKeys:
    """The keys that are pinned for an agent, where `--jwks` is given."""
    if bundles or crl:
        raise typer.BadParameter("--jwks: keys that are pinned have no trust bundles and no revocation lists")
    return StaticKeys(strict_json(read_input(file, MAX_JWKS_BYTES)))


def algorithms_of(post_quantum: bool) -> tuple[str, ...]:
    return (*DEFAULT_ALGORITHMS, *POST_QUANTUM) if post_quantum else DEFAULT_ALGORITHMS


def read_input(file: Path, limit: int) -> bytes:
    """A file, or standard input for `-`.

    Raises:
        ConfigurationError: it is larger than `limit` bytes, or cannot be read.
    """
    if file != STDIN:
        return read_bounded(file, limit)
    data = sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise ConfigurationError("standard input is too large", expected=f"at most {limit} bytes")
    return data


def time_of(text: str | None) -> datetime:
    """A time on the command line; now where there is none."""
    if text is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):  # in UTC before year 1, or after 9999
        raise typer.BadParameter(
            f"--at: got {text}, expected a time with its zone, such as 2026-11-22T12:00:00Z"
        ) from None
