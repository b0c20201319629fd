"""Secrets of clients: a second factor beside the certificate, and never in its place.

Only their SHA-256 is kept. That is enough, and a slow hash would protect nothing more: a secret is 256 random bits,
which nobody finds by trying, however fast the hash is; slowness would only let failing clients wear the server out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import unquote_to_bytes

from trust.errors import ClientRefused

SECRET_BYTES = 32
MAX_HEADER_CHARACTERS = 8192  # a client_id of 2048 characters, each percent-encoded, in base64; and a secret


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretDigest:
    """What is kept of a secret."""

    digest: bytes = field(repr=False)
    ends_at: datetime | None = None  # of one that was replaced


def new_secret() -> str:
    """A secret; only letters, digits, `-` and `_`, so that no encoding changes it."""
    return secrets.token_urlsafe(SECRET_BYTES)


def digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def is_one_of(secret: str, kept: Iterable[SecretDigest], *, now: datetime) -> bool:
    """Whether it is a secret that still counts. Takes as long whichever it is, and how much of it is right."""
    given = digest_of(secret)
    equal = [hmac.compare_digest(given, one.digest) for one in kept if one.ends_at is None or now < one.ends_at]
    return any(equal)


def basic_credentials(headers: Sequence[str]) -> tuple[str, str] | None:
    """The client_id and the secret of `client_secret_basic` (RFC 6749 section 2.3.1); None where there is no header.

    Both are form-encoded before they are joined by a colon, so a SPIFFE ID has `%3A` in it.

    Raises:
        ClientRefused: several headers, another scheme, or something else than that.
    """
    if not headers:
        return None
    scheme, _, value = headers[0].partition(" ")
    try:
        if len(headers) > 1 or scheme.lower() != "basic" or len(value) > MAX_HEADER_CHARACTERS:
            raise ValueError
        text = base64.b64decode(value, validate=True).decode("ascii")
        if base64.b64encode(text.encode()).decode() != value:  # bits that decoders overlook
            raise ValueError
        name, colon, secret = text.partition(":")
        if not (name and colon and secret) or ":" in secret:
            raise ValueError
        return _form_decoded(name), _form_decoded(secret)
    except (ValueError, binascii.Error):  # UnicodeDecodeError is a ValueError
        # Nothing of the header is repeated: it may hold somebody's secret.
        raise ClientRefused(
            "client is not authenticated",
            got=f"{len(headers)} Authorization header(s) that cannot be read",
            expected="one, of client_secret_basic",
        ) from None


def _form_decoded(text: str) -> str:
    """Printable ASCII, as RFC 6749 appendix A has it for both."""
    plain = text.replace("+", " ")
    if any(len(pair) < 2 or not set(pair[:2]) <= set("0123456789abcdefABCDEF") for pair in plain.split("%")[1:]):
        raise ValueError
    decoded = unquote_to_bytes(plain).decode("ascii")
    if not decoded.isprintable():
        raise ValueError
    return decoded
