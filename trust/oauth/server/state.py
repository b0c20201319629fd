"""What an authorization server keeps on its machine: a folder with its database, or the URL of one, and a password.

The folder holds:

    tokens.db               unless the database goes by URL
    signing-key.password    of the signing keys, where the environment does not give it
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from starlette.applications import Starlette

from trust.audit import AuditSink
from trust.clock import Clock, wall_clock
from trust.credentials import read_bounded, sync_folder, write_new
from trust.errors import ConfigurationError, WrongPassword
from trust.oauth.keys import SigningKey
from trust.oauth.metadata import check_issuer
from trust.oauth.server.app import create_app
from trust.oauth.server.decisions import ToldDecisions
from trust.oauth.server.declared import DeclaredFile
from trust.oauth.server.grants import FetchClient
from trust.oauth.server.readiness import Readiness
from trust.oauth.server.revoked_list import RevokedList, RevokedPublisher
from trust.oauth.server.rotation import RotatingKeys, at_rest
from trust.oauth.server.rounds import Rounds
from trust.oauth.server.store import Operator, Store
from trust.oauth.server.store.signing_keys import KeyState
from trust.redis_url import checked_url

# Not that of the agent's own private key: whoever sets the one must not have set the other.
KEYS_PASSWORD_VARIABLE = "A2A_TRUST_AUTHORITY_PASSWORD"  # noqa: S105 - the name of a variable
PASSWORD_FILE = "signing-key.password"  # noqa: S105 - the name of a file
DATABASE_FILE = "tokens.db"
OLD_KEY_FILE = "signing-key.pem"  # of before there were several keys
PASSWORD_BYTES = 24  # of a generated one: nobody guesses 192 bits
LOOK_SECONDS = 0.5  # between two looks at the file of the clients
WAITS, WAIT_SECONDS = 40, 0.05  # for a password that another process has begun to write

logger = logging.getLogger("a2a_trust.oauth")


@contextmanager
def authorization_server(
    *,
    clients: Path,
    issuer: str,
    folder: Path,
    url: str | None,
    password: str | None,
    audit: AuditSink,
    redis_url: str | None = None,
    http: FetchClient | None = None,
    trust_domain: str = "",
    clock: Clock = wall_clock,
) -> Iterator[Starlette]:
    """The authorization server as an application, for as long as the block runs; its keys rotate meanwhile.

    Args:
        clients: the TOML file of its clients, its partners and of what holds for all clients (`declared`).
        issuer: its https URL, without a slash at its end. A database stays that of one issuer.
        folder: see this module; made where it is missing.
        url: of a database, in place of the one in the folder.
        password: of the signing keys; None for the one in the folder, where it is generated if there is no key yet.
        audit: where every issuance, refusal, change of a key and decision made by command is recorded.
        redis_url: of a Redis server, where several servers count requests together (`throttle`), and where agents find
            the list of revoked tokens (`trust.RedisDenylist`).
        http: makes the clients that fetch the keys of the file's partners (`grants.partners`); without it, it has none.
        trust_domain: our own, for a warning where a partner may speak for it; empty where it is not known.
        clock: the time, aware.

    Raises:
        ConfigurationError: (or its WrongPassword) what is wrong with one of these; before anything is written.
    """
    found = declared(clients, issuer, redis_url, http)
    rules = found.rules
    with (
        open_store(folder, url, create=True) as store,
        contextlib.ExitStack() as stack,
    ):
        store.check_issuer(issuer)
        opens = _password(store, folder, url, password, clock())
        with named_password(folder, password):
            keys = stack.enter_context(RotatingKeys(store.signing_keys, opens, audit=audit, clock=clock))
        store.claim(issuer)  # not before: who has mistyped something must be able to start again
        decisions = stack.enter_context(ToldDecisions(store.decisions, audit, clock=clock))
        file = stack.enter_context(contextlib.closing(_followed(found, trust_domain)))
        warnings = {"clients_file": lambda: file.problem or found.problem}
        checks = {"signing_keys": lambda: keys.problem, "decisions": lambda: decisions.problem}
        if redis_url is not None:
            revoked = RevokedList(issuer=issuer, store=store, keys=keys, clock=clock)
            publisher = stack.enter_context(RevokedPublisher(revoked, redis_url))
            warnings["revoked_list"] = lambda: publisher.problem

        yield create_app(
            issuer=issuer,
            clients=found.clients,
            store=store,
            keys=keys,
            audit=audit,
            catalogue=rules.catalogue,
            calendars=rules.calendars,
            permit=rules.permit,
            approvals=rules.approvals,
            partners=found.partners,
            redis_url=redis_url,
            readiness=Readiness(store, checks=checks, warnings=warnings),
            clock=clock,
        )


def declared(clients: Path, issuer: str, redis_url: str | None, http: FetchClient | None) -> DeclaredFile:
    """What the file declares, where these arguments of `authorization_server` are right; nothing is done yet.

    Raises:
        ConfigurationError: as `authorization_server`.
    """
    if redis_url is not None:
        checked_url(redis_url, "authorization server's Redis")
    if check_issuer(issuer).endswith("/"):  # agents compare it letter by letter, and most people leave the slash out
        raise ConfigurationError("issuer", got=issuer, expected="no slash at its end", do=f"give {issuer.rstrip('/')}")
    return DeclaredFile(clients, http)


def _followed(declaration: DeclaredFile, trust_domain: str) -> Rounds:
    """Looks at the file also while nobody asks for anything, and says once what is to be looked at twice."""
    said: list[str] = []

    def look() -> None:
        notes = declaration.notes(trust_domain)
        for note in notes:
            if note not in said:
                logger.warning("look at this twice: %s", note)
        said[:] = notes

    rounds = Rounds(
        look,
        seconds=LOOK_SECONDS,
        name="a2a-trust-clients",
        failing="file of the clients is not followed",
        again="file of the clients is followed again",
    )
    rounds.start()
    return rounds


def open_store(folder: Path, url: str | None, *, create: bool, by: Operator | None = None) -> Store:
    """The database at the URL, or in the folder; arguments as of `Store`.

    Raises:
        ConfigurationError: there is none, and none is to be made; or it cannot be opened.
    """
    if url is not None:
        return Store(url, create=create, by=by)
    file = folder / DATABASE_FILE
    if create:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"folder {folder}", got=error.strerror, expected="a writable folder") from None
    elif not file.is_file():
        raise ConfigurationError(
            f"no authorization server in {folder}",
            expected=DATABASE_FILE,
            do="give its folder, which `a2a-trust serve --authority` makes",
        )
    return Store(f"sqlite:///{file.absolute()}", create=create, by=by)


def kept_password(folder: Path, given: str | None) -> bytes:
    """The given password, or the one in the folder.

    Raises:
        WrongPassword: there is neither.
    """
    if given:
        return given.encode()
    file = folder / PASSWORD_FILE
    if file.exists() and (password := read_bounded(file).strip()):
        return password
    raise WrongPassword(
        "signing keys need a password", got="none", do=f"set {KEYS_PASSWORD_VARIABLE}, or write it to {file}"
    )


@contextmanager
def named_password(folder: Path, given: str | None) -> Iterator[None]:
    """Where the password of the signing keys is from: for who reads that it does not open one of them in this block.

    Args: as of `kept_password`.
    """
    source = KEYS_PASSWORD_VARIABLE if given else str(folder / PASSWORD_FILE)
    try:
        yield
    except WrongPassword as error:
        raise WrongPassword(str(error), do=f"the password is that of {source}") from None


def _password(store: Store, folder: Path, url: str | None, given: str | None, now: datetime) -> bytes:
    """The password of the keys; generated if there are none. A key of before there was a database for it goes there."""
    file, old_key = folder / PASSWORD_FILE, folder / OLD_KEY_FILE
    records = store.signing_keys.all()
    # Of a database that several machines share, each of them would generate its own.
    if not (given or file.exists() or records or old_key.exists() or url is not None):
        _generate(file)
    for _ in range(WAITS):
        if given or not file.exists() or file.stat().st_size:
            break
        time.sleep(WAIT_SECONDS)  # another process writes it at this moment
    password = kept_password(folder, given)
    if old_key.exists():
        if not records:
            with named_password(folder, given):
                key = SigningKey.from_pem(read_bounded(old_key), password)
            store.signing_keys.add(at_rest(key, password, (), state=KeyState.ACTIVE, now=now))
        old_key.unlink(missing_ok=True)  # after it is in the database, from which it will be erased when it has retired
    return password


def _generate(file: Path) -> None:
    """Make the password, once: of several processes that start at the same time one does."""
    try:
        write_new(file, secrets.token_urlsafe(PASSWORD_BYTES).encode() + b"\n", mode=0o600)
    except FileExistsError:
        return
    except OSError as error:
        raise ConfigurationError(f"password file {file}", got=error.strerror, expected="a writable folder") from None
    sync_folder(file.parent)
    logger.warning("password of the signing keys generated and kept in %s", file)
