"""The folder of an agent: `chain.pem`, `key.pem` and `bundle.json` as `a2a-pki issue` writes them, and beside them:

    ca.json                 where the CA service is
    crls.pem                revocation lists, where certificates name some
    key.pem.enrolling-*     the key of an enrolment whose answer has not come, by its token's digest
    .*.lock                 who writes just now, who keeps it renewed, which daemon is there

Every file is replaced in one step and durably, so that whoever is interrupted anywhere can begin again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from trust import json_text, private_keys
from trust.bundles import MAX_CRL_BYTES, RevocationLists, TrustBundle, TrustBundles, read_crls
from trust.credentials import (
    BUNDLE_FILE,
    CHAIN_FILE,
    KEY_FILE,
    Credentials,
    read_bounded,
    sync_folder,
    write_atomically,
)
from trust.errors import BundleError, CredentialsError, WrongPassword
from trust.private_keys import PrivateKey

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for before each use
    import msvcrt

logger = logging.getLogger("a2a_pki.client")

CA_FILE = "ca.json"
CRLS_FILE = "crls.pem"
ENROLLING_KEY_FILE = "key.pem.enrolling-"
LOCK_FILE = ".writer.lock"
RENEWER_LOCK_FILE = ".renewer.lock"
DAEMON_LOCK_FILE = ".daemon.lock"
# Never through a link that somebody else put there, in a folder that others may write: it would be made, with our
# rights, wherever that link leads. Nor a pipe, which would be waited for.
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
LOCK_SECONDS = 10.0  # whoever writes is done in a fraction of one
MAX_RECORD_BYTES = 16 << 10
MAX_RECORD_DEPTH = 8  # ours has 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """What `ca.json` keeps: where the CA service is, and by which pin and token we got there."""

    url: str
    root_fingerprint: str = ""
    token_digest: str = ""  # SHA-256 of the one-time token: to know the same command when it is run again


class AgentFolder:
    """The files of one agent. Not safe for threads; other processes are kept out where they would harm."""

    def __init__(self, path: str | os.PathLike[str], password: str | bytes | None = None) -> None:
        self.path = Path(path)
        self._password = password

    def make(self) -> None:
        """Raises: CredentialsError: it cannot be made."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CredentialsError(f"cannot create {self.path}", got=error.strerror, expected="a folder") from None
        # Volumes of containers are, so it is not refused.
        if os.name != "nt" and self.path.stat().st_mode & stat.S_IWOTH:
            logger.warning("%s can be written by everybody, who can then replace key and trust", self.path)

    def unmake(self) -> None:
        """Remove the folder where there is nothing in it but our lock."""
        with contextlib.suppress(OSError):
            if [file.name for file in self.path.iterdir()] == [LOCK_FILE]:
                (self.path / LOCK_FILE).unlink()
                self.path.rmdir()

    # Credentials.

    def credentials(self) -> Credentials:
        """The credentials as they are now.

        Raises:
            CredentialsError: there are none, or a file is damaged; it is named.
            WrongPassword: as `Credentials.load`.
        """
        try:
            return Credentials.load(self.path, self._password)
        except WrongPassword:
            raise
        except CredentialsError as error:
            chain, key = self.path / CHAIN_FILE, self.path / KEY_FILE
            if not chain.exists():
                raise CredentialsError(
                    f"{self.path} is not enrolled", got=f"no {CHAIN_FILE}", do="run `a2a-pki enrol`"
                ) from None
            damaged = chain if "chain" in error.failed else key
            if not damaged.exists():
                raise CredentialsError(f"{damaged} is missing", do="enrol again, with a new token") from None
            if error.failed.startswith("cannot read"):  # it may be whole, and we may not read it
                raise
            raise CredentialsError(
                f"{damaged} is damaged", got=error.failed, do="enrol again, with a new token"
            ) from None

    def save(self, credentials: Credentials) -> None:
        credentials.save(self.path, self._password)

    def state(self) -> object:
        """Something that changes whenever anybody replaces chain or bundle, or enrols; None where there is no chain."""
        found = [_state(self.path / name) for name in (CHAIN_FILE, BUNDLE_FILE, CA_FILE)]
        return found if found[0] else None

    def enrolling_key(self, digest: str) -> PrivateKey | None:
        """The key of an enrolment that was interrupted; None where there is none, or none that can be used.

        Args:
            digest: `token_digest` of its token. A key is asked for with one token only: another may have been made
                because somebody else had got hold of the key.
        """
        try:
            return private_keys.read(read_bounded(self._enrolling(digest)), self._password)
        except CredentialsError:
            return None

    def keep_enrolling_key(self, digest: str, key: PrivateKey) -> None:
        if self._password:
            pem = private_keys.write(key, self._password)
        else:
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_atomically(self._enrolling(digest), pem, mode=0o600)

    def drop_enrolling_keys(self) -> None:
        for file in self.path.glob(ENROLLING_KEY_FILE + "*"):
            with contextlib.suppress(FileNotFoundError):
                file.unlink()
        sync_folder(self.path)

    def _enrolling(self, digest: str) -> Path:
        return self.path / (ENROLLING_KEY_FILE + digest[:16])

    # Trust.

    def bundles(self) -> TrustBundles:
        return TrustBundles.load(self.path / BUNDLE_FILE)

    def save_bundle(self, bundle: TrustBundle) -> TrustBundles:
        """Replace the bundle of one domain; those of others, which somebody else put there, stay."""
        try:
            others = self.bundles().by_domain
        except BundleError:  # none yet, or damaged: what we know is better than nothing
            others = {}
        merged = TrustBundles({**others, bundle.trust_domain: bundle})
        write_atomically(self.path / BUNDLE_FILE, merged.to_json().encode(), mode=0o644)
        return merged

    def crls(self) -> RevocationLists | None:
        """The revocation lists of last time; None where there are none that can be read."""
        try:
            pem = read_bounded(self.path / CRLS_FILE, 2 * MAX_CRL_BYTES)
        except CredentialsError:
            return None
        try:
            return RevocationLists.of(read_crls(pem, CRLS_FILE))
        except BundleError:
            return None

    def save_crls(self, lists: RevocationLists) -> None:
        pem = b"".join(crl.public_bytes(Encoding.PEM) for crl in lists.crls)
        write_atomically(self.path / CRLS_FILE, pem, mode=0o644)

    # Where the CA is.

    def enrolment(self) -> Enrolment | None:
        """What `ca.json` says; None where there is none.

        Raises:
            CredentialsError: it is not what we wrote.
        """
        file = self.path / CA_FILE
        if not file.exists():
            return None
        try:
            text = read_bounded(file, MAX_RECORD_BYTES)
            members = json_text.parse(text, max_bytes=MAX_RECORD_BYTES, max_depth=MAX_RECORD_DEPTH)
            found = Enrolment(
                url=members["url"],
                root_fingerprint=members.get("root_fingerprint", ""),
                token_digest=members.get("token_digest", ""),
            )
            if not all(isinstance(v, str) for v in (found.url, found.root_fingerprint, found.token_digest)):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CredentialsError(
                f"{file} is not readable", expected='{"url": "https://..."}', do="enrol again, or mend it"
            ) from None
        return found

    def save_enrolment(self, enrolment: Enrolment) -> None:
        members = {
            "url": enrolment.url,
            "root_fingerprint": enrolment.root_fingerprint,
            "token_digest": enrolment.token_digest,
        }
        write_atomically(self.path / CA_FILE, json.dumps(members, indent=2).encode() + b"\n", mode=0o644)

    # Who may write.

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Nobody else enrols or saves here meanwhile.

        Raises:
            CredentialsError: somebody else does, for longer than anybody should; or the folder cannot be written.
        """
        lock = FolderLock(self.path / LOCK_FILE)
        deadline = time.monotonic() + LOCK_SECONDS
        while not lock.acquire():
            if time.monotonic() > deadline:
                raise CredentialsError(
                    f"{self.path} is in use", got="another process that enrols or renews here", expected="one at a time"
                )
            time.sleep(0.05)
        try:
            yield
        finally:
            lock.release()

    def renewer_lock(self) -> FolderLock:
        return FolderLock(self.path / RENEWER_LOCK_FILE)

    def daemon_lock(self) -> FolderLock:
        return FolderLock(self.path / DAEMON_LOCK_FILE)


class FolderLock:
    """An advisory lock on a file, which ends with its process however that ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def acquire(self) -> bool:
        """Take the lock, or keep it; False where somebody else has it.

        A lock on a file that was replaced, perhaps with the folder, is none: it is taken anew.

        Raises:
            CredentialsError: the file cannot be made.
        """
        if self._file is not None:
            if self._is_there():
                return True
            self.release()
        try:
            self._file = os.open(self._path, _LOCK_FLAGS, 0o600)
        except OSError as error:
            raise CredentialsError(f"cannot write {self._path}", got=error.strerror, expected="our file") from None
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            self.release()
            raise CredentialsError(f"cannot write {self._path}", expected="our file")
        try:
            _lock(self._file)
        except OSError:
            self.release()
            return False
        if not self._is_there():  # replaced between the two calls
            self.release()
            return False
        return True

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _is_there(self) -> bool:
        try:
            return self._file is not None and os.path.samestat(os.fstat(self._file), self._path.lstat())
        except OSError:
            return False


def _state(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def token_digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _lock(file: int) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
