"""The guard in Redis: what a server may forget, who may stand between, what its absence means."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.forge import Forge
from tests.interop.programs import needs, save
from tests.redis_server import RedisServer
from tests.trust.replay.conftest import T
from trust.errors import ConfigurationError, Replayed, ReplayGuardFull, ReplayStoreUnavailable, TrustError
from trust.replay import RedisReplayGuard, replay_key
from trust.replay import redis as module
from trust.replay.guard import SKEW_SECONDS, THREADS

pytestmark = needs("redis-server")
PASSWORD = "correct-horse-battery"


def key(n: int) -> bytes:
    return replay_key("iss", "aud", str(n))


def remember(guard: RedisReplayGuard, n: int, *, at: int = T) -> None:
    # By a clock that is behind the signer's: a server that started this very second knows of such messages.
    guard.remember(key(n), issued_at=at, expires_at=at + 60, now=at - 5)


@contextmanager
def using(url: str) -> Iterator[RedisReplayGuard]:
    guard = RedisReplayGuard(url)
    try:
        yield guard
    finally:
        guard.close()


def test_the_entry_is_the_key_of_the_wire_format_until_exp_and_skew(redis_server: RedisServer) -> None:
    with using(redis_server.url) as guard:
        remember(guard, 1)
    name = b"a2a-trust:replay:" + key(1)
    assert redis_server.command("KEYS", "*") == [name]
    assert (
        60 + 5 < redis_server.command("TTL", name) <= 60 + 5 + SKEW_SECONDS
    )  # a busy machine has 60 s for the lines above


RESTARTS = {"with an empty memory": False, "with the memory of an old snapshot": True}


@pytest.mark.parametrize("snapshot", RESTARTS.values(), ids=list(RESTARTS))
def test_what_a_restarted_server_forgot_is_refused(tmp_path: Path, snapshot: bool) -> None:
    with RedisServer(tmp_path) as server, using(server.url) as guard:
        if snapshot:
            server.command("SAVE")
        remember(guard, 1)
        server.stop()
        with pytest.raises(ReplayStoreUnavailable):
            remember(guard, 2)
        server.start()
        assert server.command("DBSIZE") == 0
        for n in (1, 2):
            with pytest.raises(Replayed, match="before the replay store started"):
                guard.remember(key(n), issued_at=T, expires_at=T + 60, now=T + 50)
        remember(guard, 3, at=T + 60)


def test_a_cut_connection_is_made_again(redis_server: RedisServer) -> None:
    with using(redis_server.url) as guard:
        for n in range(5):
            remember(guard, n)
            redis_server.command("CLIENT", "KILL", "TYPE", "normal")


def test_a_server_that_hangs_is_away_and_admits_nothing_twice(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 2)  # also to connect, on a busy machine
    with using(redis_server.url) as guard:
        redis_server.pause()
        for _ in range(2):
            with pytest.raises(ReplayStoreUnavailable) as refusal:
                remember(guard, 1)
            assert type(refusal.value) is ReplayStoreUnavailable
        redis_server.resume()
    monkeypatch.setattr(module, "WAIT_SECONDS", 60)
    with using(redis_server.url) as guard:
        accepted = 0
        for _ in range(3):
            try:
                remember(guard, 1)
                accepted += 1
            except Replayed:
                pass
        assert accepted <= 1
        remember(guard, 2)


def test_a_server_that_says_nothing_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with pytest.raises(ReplayStoreUnavailable):
            RedisReplayGuard(f"redis://127.0.0.1:{listening.getsockname()[1]}")
        listening.accept()[0].close()
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody else came
            listening.accept()


def test_a_server_that_evicts_is_refused_also_later_and_costs_no_connection(redis_server: RedisServer) -> None:
    redis_server.command("CONFIG", "SET", "maxmemory-policy", "volatile-ttl")
    with using(redis_server.url) as guard:  # without a limit nothing is evicted
        remember(guard, 1)
        redis_server.command("CONFIG", "SET", "maxmemory", "100mb")
        redis_server.command("CLIENT", "KILL", "TYPE", "normal")
        for _ in range(2 * THREADS):
            with pytest.raises(ConfigurationError, match=r"got volatile-ttl.*noeviction"):
                remember(guard, 2)
        with pytest.raises(ConfigurationError, match="evicts"):
            RedisReplayGuard(redis_server.url)
        redis_server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        remember(guard, 2)


def test_a_full_server_refuses_and_forgets_nothing(redis_server: RedisServer) -> None:
    with using(redis_server.url) as guard:
        remember(guard, 1)
        redis_server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(ReplayGuardFull):
            remember(guard, 2)
        redis_server.command("CONFIG", "SET", "maxmemory", "0")
        remember(guard, 2)
        with pytest.raises(Replayed):
            remember(guard, 1)


def test_a_user_needs_two_commands_and_its_password_is_told_to_nobody(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    rights = ["reset", "on", f">{PASSWORD}", "+set", "+info", "~a2a-trust:replay:*"]
    redis_server.command("ACL", "SETUSER", "agent", *rights)
    redis_server.command("ACL", "SETUSER", "default", "-set")
    told = []
    with using(f"redis://agent:{PASSWORD}@127.0.0.1:{redis_server.port}") as guard:
        remember(guard, 1)
        told += [repr(guard), repr(vars(guard))]
        redis_server.command("ACL", "SETUSER", "agent", "-set")
        with pytest.raises(ReplayStoreUnavailable) as denied:
            remember(guard, 2)
        told.append(repr(denied.value))
        redis_server.command("ACL", "SETUSER", "agent", f"<{PASSWORD}", ">another")
        redis_server.command("CLIENT", "KILL", "USER", "agent")
        with pytest.raises(ReplayStoreUnavailable) as refused:
            remember(guard, 2)
        told.append(repr(refused.value))
    with pytest.raises(ReplayStoreUnavailable) as wrong:
        RedisReplayGuard(f"redis://agent:{PASSWORD}@127.0.0.1:{redis_server.port}")
    told += [repr(wrong.value), caplog.text]
    assert not [text for text in told if PASSWORD in text]
    assert "NoPermissionError" in str(denied.value)
    assert "AuthenticationError" in str(wrong.value)


def test_a_server_without_a_certificate_of_ours_is_refused(tmp_path: Path) -> None:
    ours, theirs = Forge(), Forge()
    chain, private = save(tmp_path, ours.leaf("/redis"), "redis")
    roots = {}
    for name, forge in (("ours", ours), ("theirs", theirs)):
        roots[name] = tmp_path / f"{name}.pem"
        roots[name].write_bytes(forge.root.public_bytes(Encoding.PEM))
    options = ["--tls-cert-file", str(chain), "--tls-key-file", str(private), "--tls-auth-clients", "no"]
    with RedisServer(tmp_path, *options, "--tls-ca-cert-file", str(roots["ours"]), tls=True) as server:
        with using(f"rediss://localhost:{server.port}?ssl_ca_certs={roots['ours']}") as guard:
            remember(guard, 1)
            with pytest.raises(Replayed):
                remember(guard, 1)
        for url in (
            f"rediss://localhost:{server.port}?ssl_ca_certs={roots['theirs']}",
            f"rediss://127.0.0.1:{server.port}?ssl_ca_certs={roots['ours']}",  # not the name in its certificate
            f"rediss://localhost:{server.port}",
            f"redis://localhost:{server.port}",
            f"rediss://localhost:{server.port}?ssl_ca_certs={tmp_path / 'missing.pem'}",
        ):
            with pytest.raises(ReplayStoreUnavailable) as refusal:
                RedisReplayGuard(url)
            assert type(refusal.value) is ReplayStoreUnavailable


URLS = {
    "no URL": "127.0.0.1:6379",
    "another scheme": f"http://:{PASSWORD}@127.0.0.1:6379",
    "another host in the clear": f"redis://:{PASSWORD}@redis.example:6379",
    "another address in the clear": "redis://10.0.0.1",
    "a name like ours": "redis://localhost.example",
    "no certificates": "rediss://redis.example?ssl_cert_reqs=none",
    "any name": "rediss://redis.example?ssl_check_hostname=False",
    "no time limit": "redis://localhost?socket_timeout=86400",
    "many attempts": "redis://localhost?retry_on_timeout=True",
    "TLS files without TLS": "redis://localhost?ssl_ca_certs=/etc/roots.pem",
    "a password in the query": f"redis://localhost?password={PASSWORD}",
    "no port": f"redis://user:{PASSWORD}/@localhost",
    "a port that is none": f"rediss://host:{PASSWORD}",
    "a path": f"rediss://user:12/{PASSWORD}@host",
    "a fragment": f"rediss://user:12#{PASSWORD}@host",
    "a database that is none": "redis://localhost?db=first",
    "an IPv6 address that is none": f"rediss://[{PASSWORD}]",
}


@pytest.mark.parametrize("name", URLS)
def test_a_url_that_weakens_or_cannot_be_meant_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        RedisReplayGuard(URLS[name])
    assert type(refusal.value) is ConfigurationError
    assert PASSWORD not in str(refusal.value)


@pytest.mark.parametrize("host", ["", "localhost", "127.0.0.1", "[::1]"])
def test_this_host_may_be_spoken_to_in_the_clear(host: str) -> None:
    with pytest.raises(ReplayStoreUnavailable, match=r"got Error .*see that it runs"):  # nobody listens there
        RedisReplayGuard(f"redis://{host}:1/0")


def test_a_socket_of_this_host(tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--unixsocket", "redis.sock") as server, using(f"unix://{tmp_path}/redis.sock") as guard:
        remember(guard, 1)
        assert server.command("DBSIZE") == 1


INFO_SERVER = b"uptime_in_seconds:9\r\n"
INFO_MEMORY = b"maxmemory:0\r\nmaxmemory_policy:noeviction\r\n"


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


# What answers on the store's port, in answer to the two SETINFO of redis-py, both INFO, and SET.
STRANGERS: dict[str, tuple[list[bytes], type[TrustError]]] = {
    "a web server": ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], ReplayStoreUnavailable),
    "who says yes to all": ([b"+OK\r\n"] * 5, ConfigurationError),
    "who says nothing of its start": ([b"+OK\r\n"] * 2 + [bulk(INFO_MEMORY)] * 3, ConfigurationError),
    "who started never": ([b"+OK\r\n"] * 2 + [bulk(b"uptime_in_seconds:-9\r\n")] * 3, ConfigurationError),
    "who says nothing of its memory": ([b"+OK\r\n"] * 2 + [bulk(INFO_SERVER)] * 3, ConfigurationError),
    "who has nothing to say": ([b"+OK\r\n"] * 2 + [b"$-1\r\n"] * 3, ConfigurationError),
    "who hangs up": ([b"+OK\r\n"] * 2 + [bulk(INFO_SERVER)], ReplayStoreUnavailable),
    "who queues": (
        [b"+OK\r\n"] * 2 + [bulk(INFO_SERVER), bulk(INFO_MEMORY), b"+QUEUED\r\n"],
        ReplayStoreUnavailable,
    ),
    "who counts": ([b"+OK\r\n"] * 2 + [bulk(INFO_SERVER), bulk(INFO_MEMORY), b":1\r\n"], ReplayStoreUnavailable),
    "who repeats the password": (
        [b"+OK\r\n"] * 2 + [bulk(INFO_SERVER), bulk(INFO_MEMORY), b"-ERR unknown, with '%s'\r\n" % PASSWORD.encode()],
        ReplayStoreUnavailable,
    ),
}


@contextmanager
def stranger(answers: list[bytes]) -> Iterator[str]:
    """The URL of who answers the first connection with these words, one to each command."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listening.accept()
        with connection:
            for line in answers:
                if not connection.recv(4096):
                    return
                connection.sendall(line)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()
        thread.join()


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_no_redis_server_admits_nothing(name: str) -> None:
    answers, expected = STRANGERS[name]
    with stranger(answers) as url, pytest.raises(TrustError) as refusal, using(url) as guard:
        remember(guard, 1)
    assert type(refusal.value) is expected
    assert PASSWORD not in str(refusal.value)


@pytest.mark.parametrize(("uptime", "age", "known"), [(0, 100, False), (900, 1000, False), (1000, 900, True)])
def test_what_was_signed_before_the_servers_start_is_not_known(uptime: int, age: int, known: bool) -> None:
    setup = [b"+OK\r\n"] * 2 + [bulk(b"uptime_in_seconds:%d\r\n" % uptime), bulk(INFO_MEMORY)]
    refusal = nullcontext() if known else pytest.raises(Replayed, match="before the replay store started")
    with stranger([*setup, b"+OK\r\n"]) as url, using(url) as guard, refusal:
        guard.remember(key(1), issued_at=T - age, expires_at=T + 60, now=T)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match="Redis: got no driver, expected redis; install the extra `redis`"):
        RedisReplayGuard("redis://localhost")
