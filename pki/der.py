"""A certificate as DER (X.690), put together from parts that were encoded before: a CA makes thousands a second.

The builder of `cryptography` makes each from nothing, which takes longer than to sign it; CA certificates, requests and
revocation lists are few, and are made by it. What is put together here is byte for byte what it would have made, and
`cryptography` has read it before anybody gets it. Pure. Nothing is parsed here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, lru_cache
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

_SEQUENCE, _INTEGER, _BITS, _OCTETS, _OID = 0x30, 0x02, 0x03, 0x04, 0x06
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_DNS_NAME, _URI, _IP_ADDRESS = 0x82, 0x86, 0x87  # of GeneralName, RFC 5280 section 4.2.1.6
_TRUE = b"\x01\x01\xff"
_VERSION_3 = b"\xa0\x03\x02\x01\x02"
_EXTENSIONS = 0xA3
_MAX_SERIAL_BITS = 159  # RFC 5280 section 4.1.2.2: at most 20 octets, of which the first bit is 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsigned:
    """A certificate that lacks its signature."""

    serial: int
    issuer: bytes  # Name
    not_before: datetime  # UTC, whole seconds
    not_after: datetime
    subject: bytes  # Name
    public_key: bytes = field(repr=False)  # SubjectPublicKeyInfo
    extensions: bytes = field(repr=False)  # each by `extension`

    def sign(
        self, private_key: ec.EllipticCurvePrivateKey, algorithm: hashes.SHA256 | hashes.SHA384
    ) -> tuple[x509.Certificate, bytes]:
        """The certificate, signed deterministically, and its DER.

        Raises:
            ValueError: the serial number cannot stand in a certificate.
        """
        if self.serial <= 0 or self.serial.bit_length() > _MAX_SERIAL_BITS:
            raise ValueError("serial number of a certificate: from 1 to 159 bits")
        signature_algorithm, ecdsa = _algorithm(algorithm.name)
        body = tlv(
            _SEQUENCE,
            _VERSION_3,
            tlv(_INTEGER, self.serial.to_bytes(self.serial.bit_length() // 8 + 1)),
            signature_algorithm,
            self.issuer,
            _validity(self.not_before, self.not_after),
            self.subject,
            self.public_key,
            tlv(_EXTENSIONS, tlv(_SEQUENCE, self.extensions)),
        )
        signature = private_key.sign(body, ecdsa)
        encoded = tlv(_SEQUENCE, body, signature_algorithm, tlv(_BITS, b"\x00", signature))
        return x509.load_der_x509_certificate(encoded), encoded


def extension(value: x509.ExtensionType, *, critical: bool = False) -> bytes:
    """An extension of a certificate (RFC 5280 section 4.1)."""
    return _extension(value.oid.dotted_string, value.public_bytes(), critical=critical)


def alternative_names(
    uri: str, dns_names: Collection[str], ip_addresses: Collection[IPv4Address | IPv6Address]
) -> bytes:
    """The extension with the names of a certificate whose subject is empty: critical (RFC 5280 section 4.2.1.6)."""
    names = [tlv(_URI, uri.encode("ascii"))]
    names += [tlv(_DNS_NAME, name.encode("ascii")) for name in dns_names]
    names += [tlv(_IP_ADDRESS, address.packed) for address in ip_addresses]
    return _extension("2.5.29.17", tlv(_SEQUENCE, *names), critical=True)


def key_identifier(sha1: bytes) -> bytes:
    """The extension with the identifier of the subject's key (RFC 5280 section 4.2.1.2), which has 20 bytes."""
    return _KEY_IDENTIFIER + sha1


def _extension(oid: str, value: bytes, *, critical: bool) -> bytes:
    return tlv(_SEQUENCE, _oid(oid), _TRUE if critical else b"", tlv(_OCTETS, value))


def tlv(tag: int, *parts: bytes) -> bytes:
    """A tag, a length and the parts. Raises: OverflowError: they are 64 KiB or more."""
    content = b"".join(parts)
    return _head(tag, len(content)) + content


@lru_cache(maxsize=1024)  # there are few lengths: of a certificate's parts, and of signatures
def _head(tag: int, size: int) -> bytes:
    if size < 0x80:
        return bytes((tag, size))
    if size < 0x100:
        return bytes((tag, 0x81, size))
    return bytes((tag, 0x82)) + size.to_bytes(2)


@lru_cache(maxsize=64)  # what is made in the same second has it in common
def _validity(not_before: datetime, not_after: datetime) -> bytes:
    return tlv(_SEQUENCE, _time(not_before), _time(not_after))


def _time(moment: datetime) -> bytes:
    """RFC 5280 section 4.1.2.5: two digits of the year from 1950 to 2049, else four."""
    if 1950 <= moment.year < 2050:
        return tlv(_UTC_TIME, f"{moment:%y%m%d%H%M%S}Z".encode())
    return tlv(_GENERALIZED_TIME, f"{moment.year:04}{moment:%m%d%H%M%S}Z".encode())


@cache
def _oid(dotted: str) -> bytes:
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    encoded = bytearray()
    for arc in (first * 40 + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        encoded += bytes(reversed(groups))
    return tlv(_OID, bytes(encoded))


@cache  # also because to make an `ec.ECDSA` asks OpenSSL what it can do
def _algorithm(name: str) -> tuple[bytes, ec.ECDSA]:
    """How a certificate calls a signature algorithm (RFC 5758 section 3.2: without parameters), and what it is."""
    oid, algorithm = {
        "sha256": ("1.2.840.10045.4.3.2", hashes.SHA256()),
        "sha384": ("1.2.840.10045.4.3.3", hashes.SHA384()),
    }[name]
    return tlv(_SEQUENCE, _oid(oid)), ec.ECDSA(algorithm, deterministic_signing=True)


_KEY_IDENTIFIER = _extension("2.5.29.14", tlv(_OCTETS, bytes(20)), critical=False)[:-20]
