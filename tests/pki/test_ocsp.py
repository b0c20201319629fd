"""OCSP requests read and answered, judged by `openssl ocsp` and pkilint."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as oracle
from hypothesis import given
from hypothesis import strategies as st

from pki import keys, ocsp, profiles
from pki.errors import RequestMalformed, RequestRefused
from pki.ocsp import IssuerHash, OcspSigner
from pki.records import CertificateStatus
from tests.pki.conftest import NOW
from tests.pki.judges import needs_openssl, openssl, pkilint
from tests.pki.small_ca import Authority

ROOT = Authority.root()
CA = ROOT.intermediate()
LEAF = CA.agent()
GOOD = CertificateStatus(known=True, issuer=CA.key_id)
SECOND = timedelta(seconds=1)


def make_signer(now: datetime = NOW, authority: Authority = CA) -> OcspSigner:
    key = keys.generate()
    builder = profiles.ocsp_signer(key.public_key(), issuer=authority.issuer, serial=77, now=now)
    return OcspSigner(certificate=keys.sign(builder, authority.key), key=key)


SIGNER = make_signer()


def ask(algorithm: hashes.HashAlgorithm | None = None, *, nonce: bytes | None = None) -> bytes:
    builder = oracle.OCSPRequestBuilder().add_certificate(LEAF, CA.certificate, algorithm or hashes.SHA256())
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def answered(status: CertificateStatus = GOOD, request: bytes | None = None, **options: object) -> oracle.OCSPResponse:
    arguments = {"signer": SIGNER, "now": NOW, **options}
    der = ocsp.answer(ocsp.parse(request or ask()), status, **arguments)  # type: ignore[arg-type]
    return oracle.load_der_ocsp_response(der)


def verify(response: oracle.OCSPResponse, signer: OcspSigner = SIGNER) -> None:
    algorithm = response.signature_hash_algorithm
    assert algorithm is not None
    signer.key.public_key().verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm))


@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256()], ids=["SHA-1", "SHA-256"])
def test_a_request_names_its_issuer_and_certificate(algorithm: hashes.HashAlgorithm) -> None:
    question = ocsp.parse(ask(algorithm))
    assert question.issuer in IssuerHash.all_of(CA.certificate)
    assert question.issuer not in IssuerHash.all_of(ROOT.certificate)
    assert (question.serial, question.nonce) == (LEAF.serial_number, None)


@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256()], ids=["SHA-1", "SHA-256"])
def test_good(algorithm: hashes.HashAlgorithm) -> None:
    response = answered(request=ask(algorithm))
    verify(response)
    assert response.response_status is oracle.OCSPResponseStatus.SUCCESSFUL
    assert response.certificate_status is oracle.OCSPCertStatus.GOOD
    assert response.serial_number == LEAF.serial_number
    assert response.hash_algorithm.name == algorithm.name
    request = oracle.load_der_ocsp_request(ask(algorithm))
    assert response.issuer_key_hash == request.issuer_key_hash
    assert response.issuer_name_hash == request.issuer_name_hash
    assert response.this_update_utc <= NOW
    assert response.next_update_utc == NOW + timedelta(hours=12)
    assert response.certificates == [SIGNER.certificate]
    ski = SIGNER.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert (response.responder_key_hash, response.responder_name) == (ski.digest, None)
    assert not list(response.extensions)


@pytest.mark.parametrize(
    ("given_reason", "told"),
    [
        (x509.ReasonFlags.key_compromise, x509.ReasonFlags.key_compromise),
        (x509.ReasonFlags.unspecified, None),
    ],
)
def test_revoked(given_reason: x509.ReasonFlags, told: x509.ReasonFlags | None) -> None:
    status = CertificateStatus(known=True, issuer=CA.key_id, revoked_at=NOW - SECOND, reason=given_reason)
    response = answered(status)
    verify(response)
    assert response.certificate_status is oracle.OCSPCertStatus.REVOKED
    assert (response.revocation_time_utc, response.revocation_reason) == (NOW - SECOND, told)


def test_unknown() -> None:
    response = answered(CertificateStatus(known=False))
    verify(response)
    assert response.certificate_status is oracle.OCSPCertStatus.UNKNOWN


@pytest.mark.parametrize("size", [1, 32, 128])
def test_a_nonce_comes_back(size: int) -> None:
    response = answered(request=ask(nonce=b"n" * size))
    assert response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == b"n" * size


def test_an_answer_never_outlives_its_signer() -> None:
    end = SIGNER.certificate.not_valid_after_utc
    assert answered(now=end - timedelta(hours=1)).next_update_utc == end
    assert answered(now=end - timedelta(hours=12)).next_update_utc == end


def test_when_a_signer_is_good() -> None:
    end = SIGNER.certificate.not_valid_after_utc
    assert end == NOW + timedelta(hours=24)
    table = [
        (NOW - SECOND, False, False),
        (NOW, True, True),
        (end - timedelta(hours=12), True, True),
        (end - timedelta(hours=12) + SECOND, True, False),
        (end - SECOND, True, False),
        (end, False, False),
    ]
    for now, good, fully in table:
        assert (SIGNER.good(now), SIGNER.good_for_a_full_answer(now)) == (good, fully), now


def test_a_signer_never_outlives_its_issuer() -> None:
    late = make_signer(CA.issuer.not_after - timedelta(hours=1))
    assert late.certificate.not_valid_after_utc == CA.issuer.not_after


def test_refusals() -> None:
    malformed, unauthorized = map(oracle.load_der_ocsp_response, (ocsp.MALFORMED, ocsp.UNAUTHORIZED))
    assert malformed.response_status is oracle.OCSPResponseStatus.MALFORMED_REQUEST
    assert unauthorized.response_status is oracle.OCSPResponseStatus.UNAUTHORIZED


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    with pytest.raises(RequestMalformed):
        ocsp.parse(data)


@given(st.data())
def test_an_altered_request_is_read_or_refused(data: st.DataObject) -> None:
    request = bytearray(ask(nonce=b"12345678"))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(request) - 1))
        request[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        question = ocsp.parse(bytes(request))
    except RequestRefused:
        return
    response = oracle.load_der_ocsp_response(
        ocsp.answer(question, CertificateStatus(known=False), signer=SIGNER, now=NOW)
    )
    assert response.serial_number == question.serial


# By others.


def pem(path: Path, *certificates: x509.Certificate) -> Path:
    path.write_bytes(b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates))
    return path


@pytest.mark.parametrize("options", [[], ["-no_nonce"], ["-sha256"]], ids=["nonce", "no nonce", "SHA-256"])
@pytest.mark.parametrize("state", ["good", "revoked", "unknown"])
@needs_openssl
def test_openssl_asks_and_believes(state: str, options: list[str], tmp_path: Path) -> None:
    leaf, issuer, root = (
        pem(tmp_path / f"{name}.pem", certificate)
        for name, certificate in (("leaf", LEAF), ("ca", CA.certificate), ("root", ROOT.certificate))
    )
    request, response = tmp_path / "request.der", tmp_path / "response.der"
    made = openssl("ocsp", *options, "-issuer", issuer, "-cert", leaf, "-reqout", request)
    assert made.returncode == 0, made.stderr
    status = {
        "good": GOOD,
        "revoked": CertificateStatus(
            known=True, issuer=CA.key_id, revoked_at=NOW, reason=x509.ReasonFlags.key_compromise
        ),
        "unknown": CertificateStatus(known=False),
    }[state]
    response.write_bytes(ocsp.answer(ocsp.parse(request.read_bytes()), status, signer=SIGNER, now=NOW))
    trust = ["-respin", response, "-CAfile", root, "-verify_other", issuer, "-no_nonce"]  # no further one, that is
    # Beside the request, whose nonce it compares, it names no certificate; so it is asked twice.
    judged = openssl("ocsp", "-reqin", request, *trust, "-resp_text")
    assert judged.stderr == "Response verify OK\n"
    assert ("OCSP Nonce" in judged.stdout) == ("-no_nonce" not in options)
    judged = openssl("ocsp", *[o for o in options if o == "-sha256"], "-issuer", issuer, "-cert", leaf, *trust)
    assert judged.stderr == "Response verify OK\n"
    assert f"leaf.pem: {state}" in judged.stdout
    assert ("Reason: keyCompromise" in judged.stdout) == (state == "revoked")


@needs_openssl
def test_openssl_sees_that_a_nonce_is_another_one(tmp_path: Path) -> None:
    request, response = tmp_path / "request.der", tmp_path / "response.der"
    request.write_bytes(ask(nonce=b"a" * 16))
    response.write_bytes(ocsp.answer(ocsp.parse(ask(nonce=b"b" * 16)), GOOD, signer=SIGNER, now=NOW))
    assert "Nonce Verify error" in openssl("ocsp", "-reqin", request, "-respin", response, "-no_nonce").stderr


@needs_openssl
def test_openssl_does_not_believe_the_signer_of_another_ca(tmp_path: Path) -> None:
    """The judge is awake: a signer that the root made does not speak for the intermediate's certificates."""
    other = ROOT.intermediate()
    response = tmp_path / "response.der"
    response.write_bytes(ocsp.answer(ocsp.parse(ask()), GOOD, signer=make_signer(authority=other), now=NOW))
    judged = openssl(
        "ocsp", "-respin", response, "-issuer", pem(tmp_path / "ca.pem", CA.certificate), "-sha256",
        "-cert", pem(tmp_path / "leaf.pem", LEAF), "-CAfile", pem(tmp_path / "root.pem", ROOT.certificate),
        "-verify_other", pem(tmp_path / "others.pem", CA.certificate, other.certificate),
    )  # fmt: skip
    assert "Response Verify Failure" in judged.stderr


@pytest.mark.skipif(
    shutil.which("ocsptool") is None and "A2A_TRUST_CI" not in os.environ, reason="ocsptool is not installed"
)
def test_gnutls_believes_the_signer_of_the_ca_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "response.der"
    for signer, believed in ((SIGNER, True), (make_signer(authority=ROOT.intermediate()), False)):
        file.write_bytes(ocsp.answer(ocsp.parse(ask(hashes.SHA1(), nonce=b"n" * 20)), GOOD, signer=signer, now=NOW))
        trust = str(pem(tmp_path / "ca.pem", CA.certificate))
        command = ["ocsptool", "--verify-response", "--load-response", str(file), "--load-trust", trust]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert ("OCSP Response: Success." in result.stdout, result.returncode == 0) == (believed, believed), (
            result.stdout
        )


@pytest.mark.parametrize("nonce", [None, b"n" * 32])
def test_pkilint_accepts_the_answer(nonce: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "response.der"
    file.write_bytes(ocsp.answer(ocsp.parse(ask(nonce=nonce)), GOOD, signer=SIGNER, now=NOW))
    code, said = pkilint("ocsp", file)
    assert code == 0, said
