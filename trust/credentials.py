"""An agent's own certificate chain and private key, and how they are read from files and written to them.

The key lives in memory; whatever needs it holds a `Source[Credentials]` and asks for the current one.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from trust import private_keys
from trust.errors import CredentialsError, PeerError, must_have
from trust.identity import AgentID, thumbprint
from trust.private_keys import PrivateKey
from trust.sources import Source

MAX_FILE_BYTES = 1 << 20  # a chain of a few certificates and one key is a few kilobytes
CHAIN_FILE = "chain.pem"
KEY_FILE = "key.pem"
NEW_KEY_FILE = "key.pem.new"  # the key of a chain that is being replaced, until it is called key.pem
BUNDLE_FILE = "bundle.json"  # the roots that the agent trusts, where they come with its credentials

MAX_LOOKS = 16  # at a folder that is being written to; a replacement changes it three times

CredentialSource = Source["Credentials"]


def check_source(source: object) -> None:
    """That an argument can be a source of credentials: not a path, which is easily given in its place.

    Raises:
        ConfigurationError: it cannot.
    """
    must_have("source", source, "current", expected="Credentials", do="use Credentials.load(path)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A chain (leaf first, root left out) and the leaf's private key, known to belong together.

    Not checked here: that the chain is valid, trusted or unrevoked; the other side decides that.
    A `Credentials` is also a `Source` of itself, for programs whose credentials never change.
    """

    agent_id: AgentID
    chain: tuple[x509.Certificate, ...] = field(repr=False)
    private_key: PrivateKey = field(repr=False)
    thumbprint: str  # x5t#S256 of the leaf

    @classmethod
    def of(cls, chain: tuple[x509.Certificate, ...], private_key: PrivateKey) -> Credentials:
        """Join a chain and a key.

        Raises:
            CredentialsError: no certificate, a key of another certificate or kind, no single SPIFFE ID.
        """
        if not chain:
            raise CredentialsError("no certificate", expected="a PEM chain, leaf first")
        if not isinstance(private_key, PrivateKey):
            got = type(private_key).__name__
            raise CredentialsError("private key", got=got, expected="an EC, Ed25519 or ML-DSA key")
        try:
            belongs = chain[0].public_key() == private_key.public_key()
        except (ValueError, UnsupportedAlgorithm):  # a key that no private key of ours could have
            belongs = False
        if not belongs:
            raise CredentialsError("private key belongs to another certificate", expected="the key of the first one")
        try:
            agent_id = AgentID.of(chain[0])
        except PeerError as error:
            raise CredentialsError(str(error)) from None
        leaf = chain[0].public_bytes(Encoding.DER)
        return cls(agent_id=agent_id, chain=tuple(chain), private_key=private_key, thumbprint=thumbprint(leaf))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        password: str | bytes | None = None,
        *,
        key: str | os.PathLike[str] | None = None,
    ) -> Credentials:
        """Read credentials from PEM files.

        Args:
            path: a folder with `chain.pem` and `key.pem`, or a PEM file with the chain. What `save` does in the folder
                meanwhile, or was interrupted in, is understood: the old pair or the new one comes back.
            password: of an encrypted PKCS#8 key.
            key: the PEM file with the key, where it is not beside the chain (in the folder or in the same file).

        Raises:
            CredentialsError: a file is missing, too large, not PEM, or the parts do not belong together.
            WrongPassword: the key is encrypted and the password is missing or wrong.
        """
        chain_path = Path(path)
        if chain_path.is_dir():
            if key is None:
                return cls._from_folder(chain_path, password)
            chain_path = chain_path / CHAIN_FILE
        key_path = Path(key or chain_path)
        chain_pem = read_bounded(chain_path)
        key_pem = chain_pem if key_path == chain_path else read_bounded(key_path)
        return cls.from_pem(chain_pem, key_pem, password)

    @classmethod
    def from_pem(cls, chain_pem: bytes, key_pem: bytes, password: str | bytes | None = None) -> Credentials:
        """As `load`, from memory."""
        try:
            chain = tuple(x509.load_pem_x509_certificates(chain_pem))
        except (ValueError, x509.InvalidVersion):
            raise CredentialsError(
                "certificate chain is not readable", expected="PEM certificates, leaf first"
            ) from None
        return cls.of(chain, _private_key(key_pem, password))

    def save(self, folder: str | os.PathLike[str], password: str | bytes | None = None) -> None:
        """Write `chain.pem` and `key.pem` (0600; PKCS#8, encrypted when there is a password) into a folder.

        Two files cannot be replaced in one step, so the new key is there, durably, before the chain that needs it, and
        the old key until then. `load` of the folder gives the old pair or the new one at every moment, also after a
        crash, which may leave `key.pem.new` behind. Other readers of the two files should wait for the end. One
        writer at a time.

        Raises:
            CredentialsError: the folder cannot be written; it holds the old pair or the new one.
        """
        folder = Path(folder)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CredentialsError(f"cannot create {folder}", got=error.strerror, expected="a folder") from None
        _finish_interrupted(folder, password)
        write_atomically(folder / NEW_KEY_FILE, self.key_pem(password), mode=0o600)
        write_atomically(folder / CHAIN_FILE, self.chain_pem, mode=0o644)
        try:
            (folder / NEW_KEY_FILE).replace(folder / KEY_FILE)
            sync_folder(folder)
        except OSError as error:
            raise _cannot_write(folder / KEY_FILE, error) from None

    @classmethod
    def _from_folder(cls, folder: Path, password: str | bytes | None) -> Credentials:
        """The pair in a folder, whichever step of `save` it is at.

        Files that are read one after the other may be of different moments. A pair that fits is a pair; while none
        does, the folder is looked at again, until it says the same twice.
        """
        seen: object = None
        for _ in range(MAX_LOOKS):
            found, problems = [read_bounded(folder / CHAIN_FILE)], []
            for name in (KEY_FILE, NEW_KEY_FILE):
                try:
                    found.append(read_bounded(folder / name))
                    return cls.from_pem(found[0], found[-1], password)
                except CredentialsError as error:
                    problems.append(error)
            look = (found, _stamp(folder / CHAIN_FILE))  # the same bytes may be there again, of another `save`
            if look == seen:
                break
            seen = look
        raise problems[0]

    @property
    def certificate(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def chain_der(self) -> list[bytes]:
        return [c.public_bytes(Encoding.DER) for c in self.chain]

    @property
    def chain_pem(self) -> bytes:
        return b"".join(c.public_bytes(Encoding.PEM) for c in self.chain)

    def key_pem(self, password: str | bytes | None = None) -> bytes:
        """The private key as PKCS#8 PEM. Without a password it is in the clear: keep it in memory."""
        if password:
            return private_keys.write(self.private_key, password)
        return self.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def current(self) -> Credentials:
        return self


def read_bounded(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a small file, or a `CredentialsError` that names it."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise CredentialsError(f"cannot read {path}", got=error.strerror, expected="a readable file") from None
    if len(data) > limit:
        raise CredentialsError(f"{path} is too large", expected=f"at most {limit} bytes")
    return data


def write_atomically(path: Path, data: bytes, *, mode: int) -> None:
    """Replace a file in one step: a reader, a crash or a full disk sees the old file or the new one, whole.

    The file is created with its final mode, so that a private key is never readable by others, not even briefly.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        write_new(temporary, data, mode=mode)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink()  # still there only if something, be it an interrupt, came before the replacement


def write_new(path: Path, data: bytes, *, mode: int) -> None:
    """Make a file that is not there yet, with its final mode from the start, and wait for the disk.

    Raises:
        FileExistsError: there is something of that name.
        OSError: as of any file.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; where folders cannot be opened (Windows), the system does it itself."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _cannot_write(path: Path, error: OSError) -> CredentialsError:
    return CredentialsError(f"cannot write {path}", got=error.strerror, expected="a writable folder")


def _finish_interrupted(folder: Path, password: str | bytes | None) -> None:
    """Give the key that an interrupted `save` left under its temporary name its own, before that name is used again.

    It is then the only copy of the key that is in use. Not noticed: one that another password opens.
    """
    pending = folder / NEW_KEY_FILE
    if not pending.exists():
        return
    try:
        Credentials.from_pem(read_bounded(folder / CHAIN_FILE), read_bounded(pending), password)
    except CredentialsError:
        return  # it fits no chain that is there: its `save` had not come so far
    try:
        pending.replace(folder / KEY_FILE)
        sync_folder(folder)
    except OSError as error:
        raise _cannot_write(folder / KEY_FILE, error) from None


def _private_key(pem: bytes, password: str | bytes | None) -> PrivateKey:
    """A key in the clear is taken as it is, whether or not there is a password for one that is not."""
    return private_keys.read(pem, password if b"ENCRYPTED" in pem else None)
