"""The replay guard of one host: a file that its processes share."""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import threading
import time
from datetime import datetime
from pathlib import Path

from trust.clock import utc
from trust.errors import ConfigurationError, Replayed, ReplayGuardFull
from trust.replay.guard import SKEW_SECONDS, WAIT_SECONDS, away, received_before, too_old

MAX_FILE_BYTES = 512 << 20  # about 12 million entries


class SQLiteReplayGuard:
    """For the processes of one host, in one file. Thread-safe; what it took it still knows after `kill -9`, a restart,
    or a power cut: every entry is synchronised to the disk. In a folder that is kept in memory, such as `/run`, that
    costs nothing, and a new file refuses what was issued before it was made.

    Not covered: a file on a network file system; one that others may write, delete or put back; a signer whose clock
    is ahead, as `MemoryReplayGuard`, where the file is new.

    Args:
        path: the file; made where it is missing, for this user alone. Each process opens it for itself, after a fork.
        started_at: when this process started. Of all that use a file, the one that made it counts.

    Raises:
        ConfigurationError: it cannot be opened as an SQLite database with a write-ahead log.
    """

    # The standard library's module, and not SQLAlchemy: there is one dialect to speak, at 10 us a statement.

    def __init__(self, path: str | os.PathLike[str], *, started_at: datetime) -> None:
        self._path = Path(path).absolute()  # no name has a meaning of its own, such as ":memory:"
        self._lock = threading.Lock()
        self._pid = os.getpid()
        since = int(utc(started_at).timestamp())  # `iat` has whole seconds
        try:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(self._path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise _not_a_store(self._path, error) from None
        try:
            self._prepare(since)
        except sqlite3.Error as error:
            self.close()
            raise _not_a_store(self._path, error) from None

    def _prepare(self, since: int) -> None:
        # The first who comes changes the file's mode. Whoever comes at the same moment is refused by SQLite at once,
        # and not after the timeout.
        until = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                (mode,) = self._db.execute("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise sqlite3.NotSupportedError(mode)
        self._db.execute("PRAGMA synchronous = FULL")  # in WAL mode NORMAL may lose the last entries in a power cut
        (page,) = self._db.execute("PRAGMA page_size").fetchone()
        self._db.execute(f"PRAGMA max_page_count = {MAX_FILE_BYTES // page}")
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            # By time first: what expires together lies together, and is removed at once. An expiry time is a function
            # of the key's message alone (`exp` is signed), so looking under it is looking everywhere.
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS seen (kept_until INTEGER, key BLOB, PRIMARY KEY (kept_until, key))"
                " WITHOUT ROWID"
            )
            # Nothing is known of what was issued before `since`, nor of what was kept until `forgotten` or less.
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS bounds (id INTEGER PRIMARY KEY, since INTEGER, forgotten INTEGER)"
            )
            self._db.execute("INSERT OR IGNORE INTO bounds VALUES (1, ?, 0)", (since,))

    def remember(self, key: bytes, *, issued_at: float, expires_at: float, now: float) -> None:
        if os.getpid() != self._pid:  # two processes with one connection ruin the file
            raise ConfigurationError("replay guard was made before a fork", do="make one in each process")
        kept_until = math.ceil(expires_at) + SKEW_SECONDS
        if kept_until <= now:
            raise too_old()
        if not self._lock.acquire(timeout=WAIT_SECONDS):
            raise away(self._path, "other threads wait for it")
        try:
            self._insert((kept_until, key), issued_at, now)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
                raise ReplayGuardFull("replay store is full", got=self._path, do="make room on its disk") from None
            raise away(self._path, error) from None
        finally:
            self._lock.release()

    def _insert(self, row: tuple[int, bytes], issued_at: float, now: float) -> None:
        db = self._db
        # Before anybody's lock is asked for: a flood of copies must not hold up what is new.
        if db.execute("SELECT 1 FROM seen WHERE kept_until = ? AND key = ?", row).fetchone():
            raise received_before()
        # Before the insertion, and for itself: a full file must have got room whatever becomes of this message.
        (oldest,) = db.execute("SELECT min(kept_until) FROM seen").fetchone()
        if oldest is not None and oldest < now:
            db.execute("BEGIN IMMEDIATE")
            with db:
                db.execute("DELETE FROM seen WHERE kept_until <= ?", (oldest,))
                db.execute("UPDATE bounds SET forgotten = max(forgotten, ?)", (oldest,))
        db.execute("BEGIN IMMEDIATE")
        with db:
            since, forgotten = db.execute("SELECT since, forgotten FROM bounds").fetchone()
            if issued_at < since:
                raise Replayed("message was signed before this replay store was made", do="sign it again")
            if row[0] <= forgotten:  # judged by a clock that stands, or stepped, behind the one that forgot
                raise too_old()
            if not db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", row).rowcount:
                raise received_before()

    def close(self) -> None:
        with self._lock:
            self._db.close()


def _not_a_store(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"replay store {path} cannot be opened",
        got=error,
        expected="a file on a local disk, or a writable folder for it",
    )
