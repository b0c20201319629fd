"""Enrolment over Secure Transport (RFC 7030, clarified by RFC 8951): what stands in its requests and answers. Pure.

Which certificate is made for whom is decided in `pki.authority`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from pki import der
from pki.errors import EnrolmentTokenMalformed, EnrolmentTokenMissing, RequestMalformed

REQUEST_TYPE = "application/pkcs10"
CERTIFICATES_TYPE = "application/pkcs7-mime; smime-type=certs-only"
ATTRIBUTES_TYPE = "application/csrattrs"

# A request may be refused for its token: which schemes there are (RFC 7030 section 3.2.3, RFC 6750 section 3).
CHALLENGES = ('Basic realm="a2a-pki", charset="UTF-8"', 'Bearer realm="a2a-pki"')

MAX_AUTHORIZATION_BYTES = 1024  # a token has 94 characters, a user name is a hundred or two

# CsrAttrs (RFC 7030 section 4.5.2, RFC 9908): please a P-256 key, and ECDSA with SHA-256 under the request. Other keys
# and hashes that `pki.requests` takes are taken all the same; a client that asks gets one answer that always works.
#   SEQUENCE { SEQUENCE { OID id-ecPublicKey, SET { OID secp256r1 } }, OID ecdsa-with-SHA256 }
ATTRIBUTES = bytes.fromhex("3021301506072a8648ce3d0201310a06082a8648ce3d03010706082a8648ce3d040302")

# What stands around one certificate (RFC 5652 sections 3, 5.1 and 5.2): a SignedData of version 1 without a content.
#   OID signedData; and INTEGER 1, SET {}, SEQUENCE { OID data }; SET {}
_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
_BEFORE = bytes.fromhex("0201013100300b06092a864886f70d010701")
_AFTER = bytes.fromhex("3100")
_SEQUENCE, _CONTENT, _CERTIFICATES = 0x30, 0xA0, 0xA0

_WHITESPACE = re.compile(rb"[ \t\r\n]+")
_TOKEN = re.compile(r"[\x21-\x7e]+", re.ASCII)


def request_of(body: bytes, content_type: str) -> bytes:
    """The PKCS#10 request (DER) in the body of simpleenroll or simplereenroll; `pki.requests` parses it.

    The body is base64, with or without line breaks; Content-Transfer-Encoding is not looked at (RFC 8951 section 2).

    Raises:
        RequestMalformed: another content type, or not base64.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind != REQUEST_TYPE:
        raise RequestMalformed("content type", got=repr(kind), expected=REQUEST_TYPE)
    try:
        der = strict_base64(_WHITESPACE.sub(b"", body))
    except ValueError:
        raise _not_base64("something else") from None
    if not der:
        raise _not_base64("nothing")
    return der


def strict_base64(text: bytes) -> bytes:
    """The bytes whose one and only base64 (RFC 4648 section 4) this is; raises ValueError for all others."""
    data = binascii.a2b_base64(text, strict_mode=True)
    if base64.b64encode(data) != text:  # excess padding and stray bits are taken, even in strict mode
        raise ValueError("not canonical")
    return data


def certificates(chain: Sequence[x509.Certificate]) -> bytes:
    """Certificates as certs-only PKCS#7 in base64, without line breaks.

    So says RFC 8951, by RFC 4648 section 3.1, and strongSwan reads nothing else; `openssl base64 -d` needs its -A.
    """
    return base64.b64encode(pkcs7.serialize_certificates(list(chain), Encoding.DER))


def certificate(leaf: bytes) -> bytes:
    """What `certificates` makes of one certificate, DER: put together around it, for it is what all ask for."""
    signed = der.tlv(_SEQUENCE, _BEFORE, der.tlv(_CERTIFICATES, leaf), _AFTER)
    return base64.b64encode(der.tlv(_SEQUENCE, _SIGNED_DATA, der.tlv(_CONTENT, signed)))


def attributes() -> bytes:
    """`ATTRIBUTES` in base64."""
    return base64.b64encode(ATTRIBUTES)


def token_of(authorization: Sequence[str]) -> str:
    """The one-time token in the Authorization headers of a request: one header, the token in it.

    It is the password of HTTP Basic (RFC 7617), whatever the user name is, or a bearer token (RFC 6750). Not checked
    here: whether there is such a token.

    Raises:
        EnrolmentTokenMissing: no header, or another scheme.
        EnrolmentTokenMalformed: a header that holds no token.
    """
    if not authorization:
        raise _missing("no Authorization header")
    if len(authorization) > 1:
        raise _malformed("several Authorization headers")
    header = authorization[0]
    if len(header) > MAX_AUTHORIZATION_BYTES:
        raise _malformed(f"{len(header)} bytes")
    scheme, _, value = header.strip(" \t").partition(" ")
    match scheme.lower():
        case "basic":
            token = _password(value.strip(" "))
        case "bearer":
            token = value.strip(" ")
        case _:
            raise _missing("another scheme")
    if not _TOKEN.fullmatch(token):
        raise _malformed("no token, or other characters than a token has")
    return token


def _password(value: str) -> str:
    try:
        pair = strict_base64(value.encode("ascii")).decode("ascii")
    except ValueError:
        raise _malformed("Basic without base64") from None
    _, colon, password = pair.partition(":")
    if not colon:
        raise _malformed("Basic without a colon")
    return password


def _missing(got: str) -> EnrolmentTokenMissing:
    return EnrolmentTokenMissing(
        "enrolment without a token",
        got=got,
        expected="HTTP Basic with the one-time token as password, or Bearer",
        do="make a token with `a2a-pki token`",
    )


def _malformed(got: str) -> EnrolmentTokenMalformed:
    return EnrolmentTokenMalformed("Authorization header", got=got, expected="one token of `a2a-pki token`")


def _not_base64(got: object) -> RequestMalformed:
    return RequestMalformed("body of the request", got=got, expected="a PKCS#10 request as DER in base64")
