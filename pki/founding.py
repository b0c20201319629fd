"""How a CA comes into being: all of it at once, or nothing that looks like one."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from pki import keys, profiles
from pki.errors import AuthorityExists, AuthorityMissing, PKIError
from pki.profiles import Issuer
from pki.store import DATABASE_FILE, Record, Settings, Store
from trust.credentials import sync_folder

ROOT_KEY_FILE = "root-key.pem"
INTERMEDIATE_KEY_FILE = "intermediate-key.pem"


def found(
    target: Path,
    settings: Settings,
    *,
    password: str,
    now: datetime,
    serials: Callable[[], int],
    name_constraint: bool,
) -> tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePrivateKey]:
    """Make the keys, the certificates and the database of a CA; returns the keys of the root and the intermediate.

    Built under another name and then renamed: whoever looks, or is interrupted, sees a whole CA or none.

    Raises:
        AuthorityExists: somebody else was faster.
        PKIError: the folder cannot be written.
    """
    root_key, key = keys.generate(), keys.generate()
    root, intermediate = _certificates(settings, root_key, key, now, serials, name_constraint)
    building = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building.mkdir(mode=0o700)
        keys.save(root_key, building / ROOT_KEY_FILE, password)
        keys.save(key, building / INTERMEDIATE_KEY_FILE, password)
        Store.create(building, settings, [root, intermediate])
        sync_folder(building)
        building.rename(vacant(target))  # a rename would replace an empty folder without a word
        sync_folder(target.parent)
    except OSError as error:
        raise PKIError(
            f"cannot make {target}", got=error.strerror, expected="a place where a folder can be made"
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return root_key, key


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


def _certificates(
    settings: Settings,
    root_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    serials: Callable[[], int],
    name_constraint: bool,
) -> tuple[Record, Record]:
    domain = settings.trust_domain
    root = keys.sign(
        profiles.root(trust_domain=domain, public_key=root_key.public_key(), serial=serials(), now=now), root_key
    )
    issuer = Issuer.of(root)
    intermediate = keys.sign(
        profiles.intermediate(
            trust_domain=domain,
            public_key=key.public_key(),
            issuer=issuer,
            serial=serials(),
            now=now,
            name_constraint=name_constraint,
            crl_base_url=settings.crl_base_url,
        ),
        root_key,
    )
    spiffe_id = f"spiffe://{domain}"
    return (
        Record.of(root, kind="root", issuer=issuer.key_id, spiffe_id=spiffe_id),
        Record.of(intermediate, kind="intermediate", issuer=issuer.key_id, spiffe_id=spiffe_id),
    )


def folder_of(where: str | os.PathLike[str]) -> Path:
    """The CA's folder, from its path or from the URL of its database."""
    text = os.fspath(where)
    if "://" not in text:
        return Path(text)
    path = Path(text.removeprefix("sqlite:///"))
    if not text.startswith("sqlite:///") or path.name != DATABASE_FILE:
        raise AuthorityMissing("CA", got=text, expected=f"a folder, or sqlite:///folder/{DATABASE_FILE}")
    return path.parent
