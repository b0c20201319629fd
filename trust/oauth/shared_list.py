"""The signed list of revoked tokens in a Redis server: written by the authorization server, read by its agents.

Redis is believed nothing: whoever can write there can make the list unavailable, and neither forge nor shorten it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from trust.errors import ConfigurationError, DenylistTooLarge, DenylistUnavailable
from trust.oauth.revoked import LIST_SECONDS, MAX_LIST_BYTES
from trust.redis_url import bad_url, checked_url

PREFIX = "a2a-trust:revoked:"  # of the keys; after it the issuer
STORE = "denylist store"  # in messages
WAIT_SECONDS = 2  # for a connection, and for one answer

# Of several servers over one database one may be a moment behind: it must not put its list in place of a newer one.
_WRITE = """
local seen = redis.call('HGET', KEYS[1], 'seq')
if seen and tonumber(seen) and tonumber(seen) > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'seq', ARGV[1], 'list', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""


class SharedList:
    """The list of one issuer in a Redis server (extra `redis`). Thread-safe; every method blocks.

    Args:
        url: as `trust.replay.RedisReplayGuard` has it. A user of the server needs `+hget +hstrlen ~a2a-trust:revoked:*`
            to read, `+eval +hget +hset +expire` to write, and `+select` where a database is named.
        issuer: whose list it is.

    Raises:
        ConfigurationError: another kind of URL, or redis is not installed.
    """

    def __init__(self, url: str, issuer: str) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise ConfigurationError("redis is not installed", do="pip install 'a2a-trust[redis]'") from None
        self._redis = redis
        self._name = checked_url(url, STORE)
        self._key = PREFIX + issuer
        try:
            self._pool: Any = redis.BlockingConnectionPool.from_url(
                url,
                max_connections=1,  # whoever reads or writes does so alone
                timeout=WAIT_SECONDS,
                socket_timeout=WAIT_SECONDS,
                socket_connect_timeout=WAIT_SECONDS,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        except ValueError:  # its text has parts of the URL
            raise bad_url(STORE) from None

    def write(self, text: str, *, sequence: int) -> None:
        """Put a list in place of the one before, to be gone when it has expired.

        Raises:
            DenylistUnavailable: the server does not take it.
        """
        with self._connected() as connection:
            connection.send_command("EVAL", _WRITE, 1, self._key, sequence, text, LIST_SECONDS)
            connection.read_response()

    def read(self) -> str:
        """The list as it was written; nothing of it is verified.

        Raises:
            DenylistUnavailable: the server does not answer, or has none.
            DenylistTooLarge: nobody would take it.
        """
        with self._connected() as connection:
            connection.send_command("HSTRLEN", self._key, "list")
            size = connection.read_response()
            if not isinstance(size, int) or size > MAX_LIST_BYTES:
                raise DenylistTooLarge(
                    "list of revoked tokens", got=f"{size} bytes", expected=f"at most {MAX_LIST_BYTES}"
                )
            connection.send_command("HGET", self._key, "list")
            text = connection.read_response()
        if not isinstance(text, bytes):
            raise DenylistUnavailable(
                f"{STORE} {self._name}", got="no list of this issuer", do="see that the authorization server writes it"
            )
        return text.decode("latin-1")

    def close(self) -> None:
        self._pool.disconnect()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        try:
            connection = self._pool.get_connection()
            try:
                yield connection
            except BaseException:  # what it would answer next is the answer to something else
                connection.disconnect()
                raise
            finally:
                self._pool.release(connection)
        except self._redis.RedisError as error:
            # Other errors have the server's words, which may repeat what was sent to it: our password.
            ours = type(error) in (self._redis.ConnectionError, self._redis.TimeoutError)
            raise DenylistUnavailable(
                f"{STORE} {self._name}", got=error if ours else type(error).__name__, do="see that it runs"
            ) from None
