"""What an authorization server keeps: its folder or database, its password, and the keys in them."""

from __future__ import annotations

import asyncio
import logging
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from tests.authority import BILLING, ISSUER, PLANNER, Clock, Trail
from trust import private_keys
from trust.errors import ConfigurationError, CredentialsError, WrongPassword
from trust.oauth.keys import SigningKey
from trust.oauth.server import state
from trust.oauth.server.signing_keys import PUBLISHED_BEFORE
from trust.oauth.server.state import authorization_server, kept_password, open_store

CLIENTS = f"""
[[client]]
agent_id = "{PLANNER}"
scopes = ["agent:execute"]
resources = ["{BILLING}"]
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_keys, "SCRYPT_N", 2)


@pytest.fixture
def clients(tmp_path: Path) -> Path:
    file = tmp_path / "clients.toml"
    file.write_text(CLIENTS)
    return file


@contextmanager
def opened(file: Path, **changes: Any) -> Iterator[tuple[Starlette, Trail]]:
    trail = Trail()
    arguments: dict[str, Any] = {
        "clients": file,
        "issuer": ISSUER,
        "folder": file.parent / "state",
        "url": None,
        "password": None,
        "audit": trail,
        "clock": Clock(),
    }
    with authorization_server(**{**arguments, **changes}) as app:
        yield app, trail


def kids(app: Starlette) -> list[str]:
    async def work() -> list[str]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=ISSUER) as http:
            return [key["kid"] for key in (await http.get("/jwks")).json()["keys"]]

    return asyncio.run(work())


def test_a_folder_is_made_once_private_and_its_key_stays(clients: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with opened(clients) as (app, trail):
        first = kids(app)
        assert [(r["event"], r["state"], r["target"]) for r in trail.records] == [("signing key", "active", first[0])]
    folder = clients.parent / "state"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "signing-key.password").stat().st_mode) == 0o600
    assert "generated and kept in" in caplog.text
    assert (folder / "signing-key.password").read_text().strip() not in caplog.text
    with opened(clients) as (app, _):
        assert kids(app) == first


def test_processes_that_start_at_once_make_one_password_and_one_key(clients: Path) -> None:
    barrier = Barrier(4)

    def start(_: int) -> list[str]:
        barrier.wait(20)
        with opened(clients) as (app, _trail):
            return kids(app)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(start, range(4)))
    assert len(found[0]) == 1
    assert found == [found[0]] * 4


def test_a_password_that_was_never_written_is_one_line(clients: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "WAIT_SECONDS", 0)
    (clients.parent / "state").mkdir()
    (clients.parent / "state" / "signing-key.password").touch()
    with pytest.raises(WrongPassword, match="signing keys need a password"), opened(clients):
        pass


def test_a_password_from_the_environment_is_not_written(clients: Path) -> None:
    with opened(clients, password="secret") as (app, _):
        first = kids(app)
    assert not (clients.parent / "state" / "signing-key.password").exists()
    for wrong in ("other", None):
        with pytest.raises(WrongPassword) as caught, opened(clients, password=wrong):
            pass
        assert "\n" not in str(caught.value)
    assert not (clients.parent / "state" / "signing-key.password").exists()
    with opened(clients, password="secret") as (app, _):
        assert kids(app) == first


def test_a_wrong_password_is_told_with_where_it_is_from(clients: Path) -> None:
    with opened(clients):
        pass
    file = clients.parent / "state" / "signing-key.password"
    for given, source in (("other", "A2A_TRUST_AUTHORITY_PASSWORD"), (None, str(file))):
        file.write_text("another")
        with pytest.raises(WrongPassword) as caught, opened(clients, password=given):
            pass
        assert str(caught.value).endswith(f"made with; the password is that of {source}")


def test_a_start_that_fails_claims_no_database(clients: Path) -> None:
    """Who has mistyped the issuer, and forgot the password, starts again with both."""
    url = f"sqlite:///{clients.parent / 'shared.db'}"
    with pytest.raises(WrongPassword), opened(clients, issuer="https://typo.example", url=url):
        pass
    with opened(clients, url=url, password="secret"):
        pass


def test_a_database_is_one_issuers(clients: Path) -> None:
    with opened(clients) as (app, _):
        first = kids(app)
    with pytest.raises(ConfigurationError) as caught, opened(clients, issuer="https://other.example"):
        pass
    assert str(caught.value) == (
        f"this database belongs to issuer {ISSUER}: got https://other.example; "
        "give another issuer a database of its own: another --state folder, or another --store"
    )
    with opened(clients, issuer="https://other.example", folder=clients.parent / "another") as (app, _):
        assert kids(app) != first
    with opened(clients) as (app, _):
        assert kids(app) == first


def test_a_key_of_before_goes_on_and_is_rotated_like_any_other(clients: Path) -> None:
    """Until 0.9 there was one key, in a file."""
    folder = clients.parent / "state"
    folder.mkdir()
    old = SigningKey.generate()
    (folder / "signing-key.pem").write_bytes(old.to_pem(b"secret"))
    (folder / "signing-key.password").write_text("secret\n")
    for _ in range(2):  # at the first start, and at every later one
        with opened(clients) as (app, _trail):
            assert kids(app) == [old.kid]
        assert not (folder / "signing-key.pem").exists()
    # Stopped between the two, or put back from a backup: what is in the database counts, and the file goes.
    (folder / "signing-key.pem").write_bytes(SigningKey.generate().to_pem(b"secret"))
    with opened(clients) as (app, _trail):
        assert kids(app) == [old.kid]
    assert not (folder / "signing-key.pem").exists()


def test_a_key_of_before_stays_where_it_is_while_its_password_is_wrong(clients: Path) -> None:
    folder = clients.parent / "state"
    folder.mkdir()
    pem = SigningKey.generate().to_pem(b"secret")
    (folder / "signing-key.pem").write_bytes(pem)
    for given in ("wrong", None):
        with pytest.raises(WrongPassword), opened(clients, password=given):
            pass
        assert (folder / "signing-key.pem").read_bytes() == pem
        with closing(open_store(folder, None, create=False)) as store:
            assert store.signing_keys.all() == ()
    assert not (folder / "signing-key.password").exists()


def test_a_database_by_url_needs_a_password_that_every_machine_has(clients: Path) -> None:
    url = f"sqlite:///{clients.parent / 'shared.db'}"
    with pytest.raises(WrongPassword, match="set A2A_TRUST_AUTHORITY_PASSWORD"), opened(clients, url=url):
        pass
    with opened(clients, url=url, password="secret") as (app, _):
        first = kids(app)
        with opened(clients, url=url, password="secret", folder=clients.parent / "another") as (other, _):
            assert kids(other) == first
    (clients.parent / "state").mkdir()
    (clients.parent / "state" / "signing-key.password").write_text("secret\n")
    with opened(clients, url=url) as (app, _):
        assert kids(app) == first


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"issuer": "http://x"}, ConfigurationError, "issuer"),
        ({"issuer": f"{ISSUER}/"}, ConfigurationError, f"no slash at its end; give {ISSUER}$"),
        ({"clients": Path("nowhere.toml")}, CredentialsError, "cannot read nowhere.toml"),
        ({"folder": Path("/dev/null/x")}, ConfigurationError, "expected a writable folder"),
        ({"url": "nothing://x", "password": "x"}, ConfigurationError, "database"),
    ],
    ids=["issuer", "slash", "clients", "folder", "url"],
)
def test_what_cannot_be_opened_is_one_line_and_nothing_is_written(
    clients: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught, opened(clients, **changes):
        pass
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert not (clients.parent / "state").exists()


def test_a_server_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no authorization server in"):
        open_store(tmp_path, None, create=False)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_password_file_is_no_password(tmp_path: Path) -> None:
    (tmp_path / "signing-key.password").write_text("\n")
    with pytest.raises(WrongPassword):
        kept_password(tmp_path, None)
    assert kept_password(tmp_path, "given") == b"given"


def test_the_jwks_says_how_long_it_may_be_kept_and_whether_it_has_changed(clients: Path) -> None:
    async def work(app: Starlette) -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=ISSUER) as http:
            for path in ("/jwks", "/.well-known/oauth-authorization-server"):
                answer = await http.get(path)
                age = answer.headers["cache-control"].removeprefix("public, max-age=")
                assert timedelta(seconds=int(age)) < PUBLISHED_BEFORE
                tag = answer.headers["etag"]
                for known in (tag, f'"x", {tag}', f"W/{tag}"):
                    again = await http.get(path, headers={"if-none-match": known})
                    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
                assert (await http.get(path, headers={"if-none-match": '"other"'})).status_code == 200

    with opened(clients) as (app, _):
        asyncio.run(work(app))
