"""Sources that watch files: what somebody else writes is in use about a second after it was written.

Our own folders (`chain.pem`, `key.pem`, `bundle.json`), and what other tools keep on a disk: SPIRE's spiffe-helper
(`svid.pem`, `svid_key.pem`, `svid_bundle.pem`), cert-manager (`tls.crt`, `tls.key`, `ca.crt`), step (any names).
Renames, rewrites in place, and the swapped symbolic links of Kubernetes are all noticed.

A file that is missing, half written or broken changes nothing: the last good value stays, `problem` says in one line
what is wrong, and the log says it once. To stop trusting a domain, write a bundle document without keys.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from cryptography import x509

from trust.bundles import MAX_BUNDLE_BYTES, MAX_CRL_BYTES, RevocationLists, TrustBundle, TrustBundles, read_crls
from trust.credentials import CHAIN_FILE, KEY_FILE, MAX_FILE_BYTES, NEW_KEY_FILE, Credentials, read_bounded
from trust.errors import BundleError, ConfigurationError, CredentialsError, TrustError
from trust.identity import trust_domain

LOOK_SECONDS = 1.0  # between two looks at the files, by the monotonic clock
SETTLE_SECONDS = 0.2  # a change is believed when it is still the same after this time: nobody is writing any more
SETTLED_NS = 1_000_000_000  # what was written this long ago is whole, also where it is seen for the first time
FIRST_LOOKS = 10  # at files that are being written to while the program starts

# A file that was written within this time of a look may be written again without a sign of it: a clock tick of the
# file system, with the same size, is 2 s on FAT and some ms elsewhere. Until then its content is compared.
TICK_NS = 3_000_000_000

# The names under which a chain and its key stand in one folder.
_PAIRS = (
    (CHAIN_FILE, (KEY_FILE, NEW_KEY_FILE)),
    ("svid.pem", ("svid_key.pem",)),  # spiffe-helper
    ("tls.crt", ("tls.key",)),  # cert-manager, Kubernetes
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
V = TypeVar("V")
E = TypeVar("E", bound=TrustError)
PathLike = str | os.PathLike[str]
CRLs = tuple[x509.CertificateRevocationList, ...]
Contents = Sequence[bytes | CredentialsError]  # of each file, or why it cannot be read


class _Watch(Generic[T]):
    """The value of one or more files that belong together."""

    def __init__(self, paths: Sequence[Path], parse: Callable[[Contents], T], *, limit: int = MAX_FILE_BYTES) -> None:
        self._paths = tuple(paths)
        self._parse = parse
        self._limit = limit
        self._lock = threading.Lock()
        self._seen: object = None  # the signs of change at the last look
        self._unsure = True  # whether they may stay the same although the content changes
        self._judged = b""  # the digest of the content that was parsed last, well or not
        self._good = b""  # the digest of the content that is the value
        self._settling = b""  # the digest of a content that was found once
        self.problem: str | None = None
        self._next_look = 0.0
        self._value = self._first()

    def current(self) -> T:
        # One thread looks; the others have the last value meanwhile.
        if time.monotonic() >= self._next_look and self._lock.acquire(blocking=False):
            try:
                settling = self._look()
                self._next_look = time.monotonic() + (SETTLE_SECONDS if settling else LOOK_SECONDS)
            finally:
                self._lock.release()
        return self._value

    def _first(self) -> T:
        """The first value; an error that is still there when the files no longer change is raised."""
        settling = b""
        for _ in range(FIRST_LOOKS):
            contents, digest = self._read()
            try:
                value = self._parse(contents)
                break
            except TrustError:
                if digest == settling:
                    raise
                settling = digest
            time.sleep(SETTLE_SECONDS)
        else:
            raise ConfigurationError(f"{self._names} do not stop changing", expected="files that are whole")
        self._judged = self._good = digest
        self._next_look = time.monotonic() + SETTLE_SECONDS
        return value

    def _look(self) -> bool:
        """Take over what changed; True when there is a change that must settle first."""
        if self._signs() == self._seen and not self._unsure:
            return False
        contents, digest = self._read()
        if digest == self._judged:
            self._settling = b""
            return False
        if digest != self._settling and not self._written_long_ago():
            # Found for the first time: it may be half of what is being written, such as a chain without its end. But
            # nobody may have asked for hours: what was taken away long ago must not be there once more.
            self._settling, self._unsure = digest, True
            return True
        self._settling, self._judged = b"", digest
        if digest == self._good:  # as before, after something else
            self._solved()
            return False
        try:
            self._value, self._good = self._parse(contents), digest
            self._solved()
        except TrustError as error:
            self._report(str(error))
        except Exception as error:  # whatever is wrong with a file, the program goes on with the last good value
            self._report(f"{self._names} cannot be read: {type(error).__name__}")
        return False

    def _read(self) -> tuple[Contents, bytes]:
        """What the files hold, and a digest of it. Notes the signs of change from before, so that none is missed."""
        self._seen, self._unsure = self._signs(), False
        contents: list[bytes | CredentialsError] = []
        digest = hashlib.sha256()
        for path in self._paths:
            try:
                content = read_bounded(path, self._limit)
                contents.append(content)
                digest.update(b"%d " % len(content) + hashlib.sha256(content).digest())
            except CredentialsError as error:
                contents.append(error)
                digest.update(b"unreadable " + str(error).encode())
                self._unsure = True  # it may become readable without a sign
        now = time.time_ns()
        written = [at for sign in self._seen if sign is not None for at in sign[3:]]
        self._unsure = self._unsure or any(abs(now - at) < TICK_NS for at in written)
        return contents, digest.digest()

    def _written_long_ago(self) -> bool:
        """Whether what was read has been as it is for a while."""
        now, signs = time.time_ns(), self._signs()  # anew: somebody may have begun to write while we were reading
        return signs == self._seen and all(
            sign is not None and all(now - at >= SETTLED_NS for at in sign[3:]) for sign in signs
        )

    def _signs(self) -> tuple[tuple[int, int, int, int, int] | None, ...]:
        return tuple(_sign(path) for path in self._paths)

    def _report(self, problem: str) -> None:
        if problem != self.problem:
            logger.warning("%s; the last good value stays in use", problem)
        self.problem = problem

    def _solved(self) -> None:
        if self.problem is not None:
            logger.warning("%s: readable again", self._names)
        self.problem = None

    @property
    def _names(self) -> str:
        return " and ".join(map(str, self._paths))


def _sign(path: Path) -> tuple[int, int, int, int, int] | None:
    """What changes when a file does; of the file that a symbolic link leads to."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Combined(Generic[T, V]):
    """The values of several watches, each of which changes or fails by itself, as one."""

    def __init__(self, watches: Sequence[_Watch[T]], combine: Callable[[Sequence[T]], V]) -> None:
        self._watches = tuple(watches)
        self._combine = combine
        self._lock = threading.Lock()
        parts = self._parts()
        self._joined = (parts, combine(parts))

    def current(self) -> V:
        parts, value = self._joined
        if self._same(parts):
            return value
        with self._lock:
            parts = self._parts()
            if not self._same(self._joined[0]):
                self._joined = (parts, self._combine(parts))
            return self._joined[1]

    @property
    def problem(self) -> str | None:
        return "; ".join(watch.problem for watch in self._watches if watch.problem) or None

    def _parts(self) -> tuple[T, ...]:
        return tuple(watch.current() for watch in self._watches)

    def _same(self, parts: tuple[T, ...]) -> bool:
        return all(watch.current() is part for watch, part in zip(self._watches, parts, strict=True))


class WatchedCredentials:
    """The credentials that a program on this machine keeps in files: a `Source` that follows it.

    Args:
        path: a folder with `chain.pem` and `key.pem`, `svid.pem` and `svid_key.pem`, or `tls.crt` and `tls.key`; or a
            PEM file with the chain.
        key: the PEM file with the key, where it is not beside the chain (in the folder or in the same file).
        password: of an encrypted PKCS#8 key, the same for every key to come.

    Attributes:
        problem: what is wrong with the files now, in one line; None when nothing is.

    Raises:
        CredentialsError, WrongPassword: as `Credentials.load`; or the folder holds several pairs.
    """

    def __init__(self, path: PathLike, *, key: PathLike | None = None, password: str | bytes | None = None) -> None:
        chain, keys = _pair(Path(path), None if key is None else Path(key))

        def parse(contents: Contents) -> Credentials:
            chain_pem, *key_pems = contents
            problems = []
            for key_pem in key_pems:
                try:
                    return Credentials.from_pem(_whole(chain_pem), _whole(key_pem), password)
                except CredentialsError as error:
                    problems.append(error)
            raise _named(problems[0], chain, *keys)

        self._watch = _Watch((chain, *keys), parse)

    def current(self) -> Credentials:
        return self._watch.current()

    @property
    def problem(self) -> str | None:
        return self._watch.problem


class WatchedBundles:
    """The trust bundles in files: a `Source` that follows them. Which domain a file speaks for is configuration.

    The files are the operator's word: one with a lower sequence than before is taken, too. A file that is gone is a
    problem and takes no trust away.

    Args:
        path: a bundle map, such as our `bundle.json`; or for each trust domain the path of its SPIFFE bundle document
            or of PEM certificates.

    Attributes:
        problem: as of `WatchedCredentials`.

    Raises:
        BundleError: a file is missing, too large or neither of these; or there is none.
    """

    def __init__(self, path: PathLike | Mapping[str, PathLike]) -> None:
        if isinstance(path, Mapping):
            if not path:
                raise BundleError("no trust bundles", expected="a file for at least one trust domain")
            watches = [_bundle_of(trust_domain(domain), Path(file)) for domain, file in path.items()]
            self._bundles: _Watch[TrustBundles] | _Combined[TrustBundle, TrustBundles] = _Combined(
                watches, lambda parts: TrustBundles.of(*parts)
            )
        else:
            self._bundles = _watch_one(Path(path), TrustBundles.from_json, MAX_BUNDLE_BYTES)

    def current(self) -> TrustBundles:
        return self._bundles.current()

    @property
    def problem(self) -> str | None:
        return self._bundles.problem


class WatchedRevocationLists:
    """The CRLs in files, any number in each: a `Source` that follows them. No file at all: revocation is not checked.

    A file that is gone leaves its last CRLs in use; once they have ended, what they cover is refused.

    Attributes:
        problem: as of `WatchedCredentials`.

    Raises:
        BundleError: a file is missing, too large or holds anything but CRLs.
    """

    def __init__(self, *paths: PathLike) -> None:
        watches = [_revocation_lists(Path(path)) for path in paths]
        self._lists: _Combined[CRLs, RevocationLists] = _Combined(
            watches, lambda files: RevocationLists.of(itertools.chain.from_iterable(files))
        )

    def current(self) -> RevocationLists:
        return self._lists.current()

    @property
    def problem(self) -> str | None:
        return self._lists.problem


class WatchedFile(Generic[T]):
    """What one file says: a `Source` that follows it.

    Args:
        parse: makes the value of the file's content, or raises a `TrustError`; called again when it has changed.
        limit: bytes; a larger file is refused.

    Attributes:
        problem: as of `WatchedCredentials`.

    Raises:
        TrustError: what `parse` says of the first content.
        CredentialsError: the file is missing or too large.
    """

    def __init__(self, path: PathLike, parse: Callable[[bytes], T], *, limit: int = MAX_FILE_BYTES) -> None:
        self._watch = _Watch((Path(path),), lambda contents: parse(_whole(contents[0])), limit=limit)

    def current(self) -> T:
        return self._watch.current()

    @property
    def problem(self) -> str | None:
        return self._watch.problem


def _pair(path: Path, key: Path | None) -> tuple[Path, tuple[Path, ...]]:
    """The file of the chain, and those that its key may be in."""
    if not path.is_dir():
        return path, (key or path,)
    found = [(chain, keys) for chain, keys in _PAIRS if (path / chain).exists()]
    if len(found) > 1:
        names = " and ".join(chain for chain, _ in found)
        raise CredentialsError(f"{path} holds several chains", got=names, do="name one of them, and its key")
    chain, keys = found[0] if found else _PAIRS[0]
    return path / chain, tuple(path / name for name in keys) if key is None else (key,)


def _bundle_of(domain: str, path: Path) -> _Watch[TrustBundle]:
    def parse(text: bytes) -> TrustBundle:
        is_document = text.lstrip().startswith(b"{")
        return TrustBundle.from_json(text, domain) if is_document else TrustBundle.from_pem(text, domain)

    return _watch_one(path, parse, MAX_BUNDLE_BYTES)


def _revocation_lists(path: Path) -> _Watch[CRLs]:
    return _watch_one(path, lambda data: read_crls(data, str(path)), MAX_CRL_BYTES)


def _watch_one(path: Path, parse: Callable[[bytes], T], limit: int) -> _Watch[T]:
    def parse_one(contents: Contents) -> T:
        try:
            return parse(_whole(contents[0]))
        except CredentialsError as error:
            raise BundleError(str(error)) from None
        except BundleError as error:
            raise _named(error, path) from None

    return _Watch((path,), parse_one, limit=limit)


def _whole(content: bytes | CredentialsError) -> bytes:
    if isinstance(content, CredentialsError):
        raise content
    return content


def _named(error: E, *paths: Path) -> E:
    """The error with the names of the files, where it does not name one by itself."""
    if any(str(path) in str(error) for path in paths):
        return error
    return type(error)(f"{' and '.join(str(path) for path in paths[:2])}: {error}")
