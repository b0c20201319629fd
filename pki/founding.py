"""How a CA comes into being: all of it at once, or nothing that looks like one."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cryptography import x509

from pki import keys, profiles
from pki.errors import AuthorityExists, AuthorityMissing, PKIError
from pki.keys import KeyPair, Signer
from pki.ledger import sign_head
from pki.profiles import Issuer, Urls
from pki.records import IssuerRecord, Record, Settings, State
from pki.store import DATABASE_FILE, Store
from trust.credentials import sync_folder


def found(
    where: str | os.PathLike[str],
    settings: Settings,
    *,
    make_key: Callable[[], KeyPair],
    now: datetime,
    serials: Callable[[], int],
) -> dict[str, Signer]:
    """Make the keys, the certificates and the database of a CA; returns the open keys by their identifiers.

    A folder is built under another name and then renamed: whoever looks, or is interrupted, sees a whole CA or none. A
    database on a server gets everything in one transaction.

    Raises:
        AuthorityExists: there is something already, or somebody else was faster.
        PKIError: the folder cannot be written, or the database cannot be used.
    """
    root_key, key = make_key(), make_key()
    root = made_root(settings, root_key, state=State.ACTIVE, serial=serials(), now=now)
    below = made_intermediate(
        settings,
        key,
        parent=Issuer.of(root[0].certificate),
        parent_key=root_key.signer,
        state=State.ACTIVE,
        serial=serials(),
        now=now,
    )
    issuers, records = [root[0], below[0]], [root[1], below[1]]

    def make(at: str | os.PathLike[str]) -> None:
        # From the first head on: what stands under none that is signed could be anybody's.
        Store.create(at, settings, issuers, records, now=now, seal=lambda head: sign_head(head, key.signer, key_id))

    key_id = below[0].key_id
    if is_folder(where):
        _in_folder(vacant(where), make)
    else:
        make(where)
    return {root[0].key_id: root_key.signer, below[0].key_id: key.signer}


def made_root(
    settings: Settings, key: KeyPair, *, state: State, serial: int, now: datetime
) -> tuple[IssuerRecord, Record]:
    """A new root, self-signed; not stored yet."""
    builder = profiles.root(
        trust_domain=settings.trust_domain, public_key=key.signer.public_key(), serial=serial, now=now
    )
    return _records(settings, keys.sign(builder, key.signer), key, kind="root", parent=None, state=state, now=now)


def made_intermediate(
    settings: Settings,
    key: KeyPair,
    *,
    parent: Issuer,
    parent_key: Signer,
    state: State,
    serial: int,
    now: datetime,
) -> tuple[IssuerRecord, Record]:
    """A new intermediate below a root; not stored yet."""
    builder = profiles.intermediate(
        trust_domain=settings.trust_domain,
        public_key=key.signer.public_key(),
        issuer=parent,
        serial=serial,
        now=now,
        name_constraint=settings.name_constraint,
        urls=Urls.of(settings),
    )
    certificate = keys.sign(builder, parent_key)
    return _records(settings, certificate, key, kind="intermediate", parent=parent.key_id, state=state, now=now)


def ca_record(settings: Settings, certificate: x509.Certificate, issuer: IssuerRecord) -> Record:
    """The row of a CA's certificate among the others."""
    spiffe_id = f"spiffe://{settings.trust_domain}"
    return Record.of(certificate, kind=issuer.kind, issuer=issuer.parent, spiffe_id=spiffe_id)


def is_folder(where: str | os.PathLike[str]) -> bool:
    """Whether the CA is, or will be, a folder on this machine, and not a database on a server."""
    return "://" not in os.fspath(where) or os.fspath(where).startswith("sqlite:")


def vacant(where: str | os.PathLike[str]) -> Path:
    """The path of a CA that is still to be made.

    Raises:
        AuthorityExists: there is something already, be it a file, an empty folder or a dangling link.
    """
    target = folder_of(where)
    if os.path.lexists(target):
        raise AuthorityExists(
            f"{target} exists already", expected="a folder that does not exist", do="choose another, or use that CA"
        )
    return target


def folder_of(where: str | os.PathLike[str]) -> Path:
    """The CA's folder, from its path or from the URL of its database."""
    text = os.fspath(where)
    if "://" not in text:
        return Path(text)
    path = Path(text.removeprefix("sqlite:///"))
    if not text.startswith("sqlite:///") or path.name != DATABASE_FILE:
        raise AuthorityMissing("CA", got="another URL", expected=f"a folder, or sqlite:///folder/{DATABASE_FILE}")
    return path.parent


def _records(
    settings: Settings,
    certificate: x509.Certificate,
    key: KeyPair,
    *,
    kind: str,
    parent: str | None,
    state: State,
    now: datetime,
) -> tuple[IssuerRecord, Record]:
    issuer = Issuer.of(certificate)
    record = Record.of(
        certificate,
        kind=kind,
        issuer=parent or issuer.key_id,
        spiffe_id=f"spiffe://{settings.trust_domain}",
    )
    return (
        IssuerRecord(
            key_id=issuer.key_id,
            kind=kind,
            parent=record.issuer,
            state=state,
            since=now,
            serial=record.serial,
            der=record.der,
            key_pem=key.pem,
            key_uri=key.uri,
        ),
        record,
    )


def _in_folder(target: Path, build: Callable[[Path], None]) -> None:
    building = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building.mkdir(mode=0o700)
        build(building)
        sync_folder(building)
        building.rename(vacant(target))  # a rename would replace an empty folder without a word
        sync_folder(target.parent)
    except OSError as error:
        raise PKIError(
            f"cannot make {target}", got=error.strerror, expected="a place where a folder can be made"
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
