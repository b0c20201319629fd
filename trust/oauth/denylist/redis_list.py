"""The signed list of revoked tokens in a Redis server: written by the authorization server, read by its agents.

Redis is believed nothing: whoever can write there can make the list unavailable, and neither forge nor shorten it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from trust.errors import DenylistTooLarge, DenylistUnavailable
from trust.oauth.denylist.document import LIST_SECONDS, MAX_LIST_BYTES
from trust.redis_url import bad_url, checked_url, no_driver

PREFIX = "a2a-trust:revoked:"  # of the keys; after it the issuer
STORE = "denylist store"  # in messages
WAIT_SECONDS = 2  # for a connection, and for one answer

# Of several servers over one database one may be a moment behind: it must not put its list in place of a newer one.
# What is there is the number of a list, a space and the list.
_WRITE = """
local seen = tonumber(string.match(redis.call('GETRANGE', KEYS[1], 0, 15), '^%d+') or '')
if seen and seen > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'EX', ARGV[3])
return 1
"""
MAX_NUMBER = 17  # characters of a number (`MAX_SEQUENCE`) and the space


class SharedList:
    """The list of one issuer in a Redis server (extra `redis`). Thread-safe; every method blocks.

    Args:
        url: as `trust.replay.RedisReplayGuard` has it. A user of the server needs `+getrange ~a2a-trust:revoked:*` to
            read, `+eval +getrange +set` to write, and `+select` where a database is named.
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
            raise no_driver() from None
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
            # Never more than one byte too many: what is asked for its length first may have grown when it is read.
            connection.send_command("GETRANGE", self._key, 0, MAX_NUMBER + MAX_LIST_BYTES)
            found = connection.read_response()
        text = found.partition(b" ")[2] if isinstance(found, bytes) else b""
        if not text:
            raise DenylistUnavailable(
                f"{STORE} {self._name}", got="no list of this issuer", do="see that the authorization server writes it"
            )
        if len(text) > MAX_LIST_BYTES:
            raise DenylistTooLarge("list of revoked tokens", expected=f"at most {MAX_LIST_BYTES} bytes")
        return str(text, "latin-1")

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
            is_refused = isinstance(error, self._redis.AuthenticationError)
            raise DenylistUnavailable(
                f"{STORE} {self._name}",
                got=error if ours else type(error).__name__,
                do="look at its password" if is_refused else "see that it runs",
            ) from None
