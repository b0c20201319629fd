"""A root that is kept offline: it leaves the CA as an encrypted file, and signs intermediates on another machine.

The CA makes the key of the next intermediate and a request; the machine with the file makes a certificate, and the
root's next revocation list; the CA takes both. Nothing secret travels between the two. The CA compares what it gets,
byte for byte, with what it would have made. People compare the fingerprint of the key, which both sides show: the
root's machine cannot tell by itself whose request it is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pki import keys, list_profiles, policy, profiles, requests
from pki.errors import (
    AuthorityDamaged,
    AuthorityExists,
    KeyStoreError,
    PKIError,
    RequestKeyRefused,
    RequestMalformed,
    RequestRefused,
    StateChanged,
)
from pki.keys import Signer
from pki.profiles import BACKDATE, Issuer, RevokedSerial, Urls
from pki.records import PendingKey, Settings
from trust.clock import utc
from trust.credentials import read_bounded, sync_folder, write_new
from trust.identity import fingerprint

MAX_FILE_BYTES = 64 << 10
MAX_REVOKED = 500  # intermediates of one root; in 20 years of regular rotation there are a hundred
_HEADING = "Root of an agent CA. Keep it offline, and two copies of it."
_BEGIN_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_BEGIN_KEY = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
_BEGIN_REQUEST = b"-----BEGIN CERTIFICATE REQUEST-----"
_BEGIN_LIST = b"-----BEGIN X509 CRL-----"
_WANTED = re.compile(r"root: ([0-9a-f]{40})\nrevocation-list: (0|[1-9][0-9]{0,18})\n((?:revoked: [^\n]*\n)*)", re.ASCII)
_REVOKED = re.compile(r"revoked: ([1-9a-f][0-9a-f]{0,39}) (0|[1-9][0-9]{0,11}) ([A-Za-z]+)", re.ASCII)
_REASONS = {reason.value: reason for reason in policy.REASONS}


@dataclass(frozen=True, slots=True, kw_only=True)
class RootFile:
    """What the file of an exported root holds: its certificate, its key, and what its CA was made with."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    settings: Settings

    def to_pem(self, password: str) -> bytes:
        """PEM with explanatory lines before it (RFC 7468 section 5.2), so that `openssl` reads it, too."""
        facts = {
            "trust-domain": self.settings.trust_domain,
            "crl-base-url": self.settings.crl_base_url or "",
            "public-url": self.settings.public_url or "",
            "name-constraint": "yes" if self.settings.name_constraint else "no",
        }
        lines = [_HEADING, *(f"{name}: {value}" for name, value in facts.items()), ""]
        return "\n".join(lines).encode() + self.certificate.public_bytes(Encoding.PEM) + keys.write(self.key, password)

    @classmethod
    def read(cls, path: Path, password: str) -> RootFile:
        """Read the file of an exported root.

        Raises:
            WrongPassword: the password does not open it.
            AuthorityDamaged: it is no such file, or its parts do not belong together.
            CredentialsError: it cannot be read.
        """
        data = read_bounded(path, MAX_FILE_BYTES)
        damaged = AuthorityDamaged(f"{path} is no exported root", expected="a file of `a2a-pki init --offline-root`")
        head, begin, rest = data.partition(_BEGIN_CERTIFICATE)
        pem, begin_key, key_pem = (begin + rest).partition(_BEGIN_KEY)
        try:
            heading, *lines = head.decode("ascii").splitlines()
            facts = dict(line.split(": ", 1) for line in lines)
            certificate = x509.load_pem_x509_certificate(pem)
            settings = Settings(
                trust_domain=facts.pop("trust-domain"),
                crl_base_url=facts.pop("crl-base-url") or None,
                public_url=facts.pop("public-url") or None,
                name_constraint={"yes": True, "no": False}[facts.pop("name-constraint")],
            )
        except (ValueError, KeyError):
            raise damaged from None
        if heading != _HEADING or facts:
            raise damaged
        key = keys.read(begin_key + key_pem, password, path.name)
        if key.public_key() != certificate.public_key():
            raise damaged
        return cls(certificate=certificate, key=key, settings=settings)


def write_root(target: Path, certificate: x509.Certificate, key: Signer, settings: Settings, password: str) -> None:
    """Write the file of an exported root; when this returns, it is on the disk and has been read again.

    Raises:
        AuthorityExists: there is a file already.
        KeyStoreError: the key is on a token, which it never leaves.
        WrongPassword: the password is empty.
        AuthorityDamaged: what is read is not what was written.
        PKIError: the file cannot be written.
    """
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyStoreError("root key is on a token", expected="a key in the database", do="leave it where it is")
    pem = RootFile(certificate=certificate, key=key, settings=settings).to_pem(password)
    try:
        write_new(target, pem, mode=0o600)
        sync_folder(target.absolute().parent)
    except FileExistsError:
        raise AuthorityExists(f"{target} exists already", expected="a new file", do="choose another name") from None
    except OSError as error:
        raise PKIError(f"cannot write {target}", got=error.strerror, expected="a place for the root key") from None
    if RootFile.read(target, password).key.public_key() != key.public_key():
        raise AuthorityDamaged(f"{target} is not what was written", expected="the root", do="try another disk")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRequest:
    """The revocation list that the root is to sign: its number, and what it names."""

    root: str  # key identifier of the root that is meant
    number: int
    revoked: tuple[RevokedSerial, ...]

    def to_text(self) -> bytes:
        lines = [f"root: {self.root}", f"revocation-list: {self.number}"]
        lines += [f"revoked: {r.serial:x} {int(r.revoked_at.timestamp())} {r.reason.value}" for r in self.revoked]
        return "".join(line + "\n" for line in lines).encode()

    @classmethod
    def parse(cls, text: bytes) -> ListRequest:
        """Read what `to_text` wrote, and nothing that merely looks like it.

        Raises:
            RequestMalformed: it is something else.
        """
        try:
            match = _WANTED.fullmatch(text.decode("ascii"))
            lines = match[3].splitlines() if match else []
            if match is None or int(match[2]) >= 1 << 63 or len(lines) > MAX_REVOKED:
                raise ValueError
            return cls(root=match[1], number=int(match[2]), revoked=tuple(map(_revoked, lines)))
        except (ValueError, KeyError, OverflowError, OSError):  # the last two: times beyond all calendars
            raise RequestMalformed("request for the root", expected="what `a2a-pki ceremony request` wrote") from None

    def builder(self, root: Issuer, settings: Settings, now: datetime) -> x509.CertificateRevocationListBuilder:
        """The list, to be good as long as the intermediate: before that ends there is another ceremony in any case.

        Not longer, because whoever is shown an old list until its end does not hear of a revocation since.
        """
        end = min(root.not_after, now + profiles.INTERMEDIATE_LIFETIME)
        return list_profiles.revocation_list(
            self.revoked,
            issuer=root,
            number=self.number,
            now=now,
            urls=Urls.of(settings),
            lifetime=end - now + BACKDATE,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """What the root has signed: to be shown to people, and carried back."""

    trust_domain: str
    certificate: x509.Certificate
    crl: x509.CertificateRevocationList

    @property
    def key_fingerprint(self) -> str:
        return _fingerprint(self.certificate.public_key())

    def to_pem(self) -> bytes:
        """For `accept_intermediate`."""
        return self.certificate.public_bytes(Encoding.PEM) + self.crl.public_bytes(Encoding.PEM)


def sign_intermediate(
    root_file: Path,
    password: str,
    csr: bytes,
    *,
    now: datetime,
    serials: Callable[[], int] = x509.random_serial_number,
) -> Signed:
    """Certify the intermediate that a CA asks for, and sign the root's list. Runs where the exported root is.

    Of the request only the key survives: the certificate is for the trust domain of the root, as the CA was made.

    Args:
        csr: what `request_intermediate` gave.

    Raises:
        RequestRefused: the request is malformed, its key is none for a CA, or it is for another root.
        WrongPassword, AuthorityDamaged, CredentialsError: the file, as `RootFile.read`.
        AuthorityNotValid: the root is not valid at that time.
    """
    wanted, begin, request = csr.partition(_BEGIN_REQUEST)
    listed = ListRequest.parse(wanted)
    public_key = requests.parse(begin + request).public_key
    if not isinstance(public_key, ec.EllipticCurvePublicKey):
        raise RequestKeyRefused("key of the intermediate", got="Ed25519", expected="P-256 or P-384")
    root = RootFile.read(root_file, password)
    issuer, moment = Issuer.of(root.certificate), utc(now).replace(microsecond=0)
    if listed.root != issuer.key_id:
        raise RequestRefused(
            "request for the root",
            got=f"one for {listed.root}",
            expected=f"one for {issuer.key_id}, which this file is",
        )
    issuer.check_valid("root CA", moment)
    certificate = keys.sign(_builder(public_key, issuer, root.settings, serials(), moment), root.key)
    crl = keys.sign_crl(listed.builder(issuer, root.settings, moment), root.key)
    return Signed(trust_domain=root.settings.trust_domain, certificate=certificate, crl=crl)


def key_fingerprint(request: bytes) -> str:
    """The fingerprint of the key in a request for the root, for people to compare: of its SubjectPublicKeyInfo.

    Raises:
        RequestRefused: it is no request, or its sender does not have the key.
    """
    begin, rest = request.partition(_BEGIN_REQUEST)[1:]
    return _fingerprint(requests.parse(begin + rest).public_key)


def accepted(pem: bytes, pending: PendingKey, root: Issuer, settings: Settings, now: datetime) -> x509.Certificate:
    """Return the certificate that an offline root made for a pending key, if it is what this CA would have made.

    1. It is one certificate.
    2. It is for the pending key.
    3. The root that signs now has signed it.
    4. It is valid now.
    5. Everything else in it is as this CA would have made it: compared byte for byte.

    Raises:
        AuthorityDamaged: by steps 1, 2, 3 and 5.
        AuthorityNotValid: by step 4.
    """

    def refused(got: str, expected: str) -> AuthorityDamaged:
        return AuthorityDamaged("certificate of the intermediate", got=got, expected=expected, do="sign it again")

    # 1.
    try:
        (certificate,) = x509.load_pem_x509_certificates(pem.partition(_BEGIN_LIST)[0])
        public_key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise refused("something else", "one certificate, PEM") from None

    # 2.
    if public_key != x509.load_der_x509_csr(pending.csr).public_key():
        raise refused("another key", f"the key {pending.key_id} that waits for its certificate")
    assert isinstance(public_key, ec.EllipticCurvePublicKey)  # noqa: S101 - CA keys are

    # 3.
    try:
        certificate.verify_directly_issued_by(root.certificate)
    except (ValueError, TypeError, InvalidSignature):
        raise refused("another issuer, or a wrong signature", f"one by the root {root.key_id}") from None

    # 4.
    issuer = Issuer.of(certificate)
    issuer.check_valid("new intermediate CA", now)

    # 5. Signed once more by a key that is thrown away: the signed part shows what the builder would have made.
    made_at = issuer.not_before + BACKDATE
    builder = _builder(public_key, root, settings, certificate.serial_number, made_at)
    expected = keys.sign(builder, _throw_away(root))
    if certificate.tbs_certificate_bytes != expected.tbs_certificate_bytes:
        raise refused("another content", "what this CA makes: names, usages, lifetime and URLs")
    return certificate


def accepted_list(pem: bytes, wanted: ListRequest, root: Issuer, settings: Settings) -> x509.CertificateRevocationList:
    """Return the revocation list that an offline root made, if it is the one that is wanted now.

    Raises:
        AuthorityDamaged: there is none, or it is not by that root.
        StateChanged: it is not the one that is wanted now: something was revoked since it was asked for.
    """
    begin, rest = pem.partition(_BEGIN_LIST)[1:]
    try:
        crl = x509.load_pem_x509_crl(begin + rest)
        signed = crl.is_signature_valid(root.certificate.public_key())  # type: ignore[arg-type]
    except (ValueError, TypeError, UnsupportedAlgorithm):
        signed = False
    if not signed:
        raise AuthorityDamaged(
            "revocation list of the root", got="none by it", expected="one behind the certificate", do="sign it again"
        )
    builder = wanted.builder(root, settings, crl.last_update_utc + BACKDATE)
    if crl.tbs_certlist_bytes != keys.sign_crl(builder, _throw_away(root)).tbs_certlist_bytes:
        raise StateChanged(
            "revocation list of the root",
            got="another one",
            expected=f"number {wanted.number}, with {len(wanted.revoked)} revoked",
            do="something was revoked since: make the request again, and have it signed again",
        )
    return crl


def _builder(
    public_key: ec.EllipticCurvePublicKey, root: Issuer, settings: Settings, serial: int, now: datetime
) -> x509.CertificateBuilder:
    return profiles.intermediate(
        trust_domain=settings.trust_domain,
        public_key=public_key,
        issuer=root,
        serial=serial,
        now=now,
        name_constraint=settings.name_constraint,
        urls=Urls.of(settings),
    )


def _revoked(line: str) -> RevokedSerial:
    match = _REVOKED.fullmatch(line)
    if match is None:
        raise ValueError
    return RevokedSerial(
        serial=int(match[1], 16), revoked_at=datetime.fromtimestamp(int(match[2]), UTC), reason=_REASONS[match[3]]
    )


def _fingerprint(key: CertificatePublicKeyTypes) -> str:
    return fingerprint(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _throw_away(root: Issuer) -> ec.EllipticCurvePrivateKey:
    """A key of the same kind as the root's, so that what it signs names the same algorithm."""
    key = root.certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - CA keys are
    return ec.generate_private_key(key.curve)
