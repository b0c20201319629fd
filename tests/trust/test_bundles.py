"""Trust bundles in SPIFFE's format, and the files with revocation lists."""

from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from jwcrypto.jwk import JWK

import trust.bundles
from tests.forge import HOUR, NOW, Forge
from trust.bundles import MAX_BUNDLE_BYTES, MAX_ROOTS, RevocationLists, TrustBundle, TrustBundles
from trust.errors import BundleError, IdentityError
from trust.files import WatchedRevocationLists
from trust.private_keys import POST_QUANTUM, PostQuantumKey, generate

FLEET, OTHER = Forge("fleet.example"), Forge("other.example")


def x5c(certificate: x509.Certificate) -> str:
    return base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()


def entry(**changes: Any) -> dict[str, Any]:
    return {"use": "x509-svid", "kty": "EC", "x5c": [x5c(FLEET.root)]} | changes


def document(*keys: Any, **members: Any) -> str:
    return json.dumps({"keys": list(keys)} | members)


def root(key: Any) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 5, NOW, NOW + HOUR, [])
    own_hash = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey | PostQuantumKey)
    return builder.sign(key, None if own_hash else hashes.SHA256())


# One bundle


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
        *(generate(kind) for kind in sorted(POST_QUANTUM)),
    ],
    ids=["P-256", "P-384", "P-521", "Ed25519", "RSA", *sorted(POST_QUANTUM)],
)
def test_a_bundle_is_written_as_spiffe_has_it_and_read_again(key: Any) -> None:
    bundle = TrustBundle(trust_domain="fleet.example", roots=(root(key), FLEET.root), sequence=7, refresh_hint=60)
    written = json.loads(bundle.to_json())
    assert written["spiffe_sequence"] == 7
    assert written["spiffe_refresh_hint"] == 60
    first = written["keys"][0]
    assert first["use"] == "x509-svid"
    assert "kid" not in first
    assert first["x5c"] == [x5c(bundle.roots[0])]
    # The public key beside the certificate is the certificate's, as another library reads it.
    members = {name: first[name] for name in ("kty", "crv", "x", "y", "n", "e", "alg", "pub") if name in first}
    assert JWK(**members).thumbprint() == JWK.from_pyca(key.public_key()).thumbprint()
    assert TrustBundle.from_json(bundle.to_json(), "fleet.example") == bundle


@pytest.mark.parametrize("number", [1, 255])
def test_coordinates_keep_their_leading_zeros(number: int) -> None:
    """RFC 7518 section 6.2.1.2: the octets of a coordinate are as many as the curve's, always."""
    keys = (ec.derive_private_key(n, ec.SECP256R1()) for n in range(number, 5000))
    key = next(k for k in keys if k.public_key().public_numbers().x >> 248 == 0)
    jwk = TrustBundle(trust_domain="a", roots=(root(key),)).to_document()["keys"][0]
    assert len(base64.urlsafe_b64decode(jwk["x"] + "=")) == 32


@pytest.mark.parametrize("key", [ed448.Ed448PrivateKey.generate(), ec.generate_private_key(ec.SECP256K1())])
def test_a_root_that_jwk_has_no_name_for(key: Any) -> None:
    with pytest.raises(BundleError, match="root key"):
        TrustBundle(trust_domain="a", roots=(root(key),)).to_json()


def test_what_a_bundle_may_leave_out_and_what_is_ignored() -> None:
    bundle = TrustBundle.from_json(
        document(entry(kid="no matter"), {"use": "jwt-svid", "kty": "EC"}, {"kty": "OKP"}, {"use": "new"}, 7, more=[]),
        "fleet.example",
    )
    assert bundle.roots == (FLEET.root,)
    assert (bundle.sequence, bundle.refresh_hint) == (0, 300)


def test_no_keys_means_that_nothing_is_trusted() -> None:
    assert TrustBundle.from_json('{"keys": []}', "fleet.example").roots == ()


BAD = {
    "not JSON": "{",
    "empty": "",
    "not an object": "[]",
    "no keys": "{}",
    "keys is no list": '{"keys": {}}',
    "keys twice": '{"keys": [], "keys": []}',
    "a member twice, deep inside": '{"keys": [{"use": "x509-svid", "use": "jwt-svid"}]}',
    "nested too deeply": '{"keys": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "no x5c": document({"use": "x509-svid"}),
    "x5c is text": document(entry(x5c=x5c(FLEET.root))),
    "x5c is empty": document(entry(x5c=[])),
    "x5c with two certificates": document(entry(x5c=[x5c(FLEET.root)] * 2)),
    "x5c is no text": document(entry(x5c=[7])),
    "x5c is not base64": document(entry(x5c=["*" + x5c(FLEET.root)])),
    "x5c is base64url": document(entry(x5c=["-_-_"])),
    "x5c is not ASCII": document(entry(x5c=["é"])),
    "x5c is no certificate": document(entry(x5c=["AAAA"])),
    "x5c with bytes after": document(
        entry(x5c=[base64.b64encode(FLEET.root.public_bytes(Encoding.DER) + b"\0").decode()])
    ),
    "negative sequence": document(spiffe_sequence=-1),
    "sequence is text": document(spiffe_sequence="1"),
    "sequence is true": document(spiffe_sequence=True),
    "sequence is a fraction": document(spiffe_sequence=1.5),
    "sequence is not a number": '{"keys": [], "spiffe_sequence": NaN}',
    "sequence of 5000 digits": '{"keys": [], "spiffe_sequence": ' + "1" * 5000 + "}",
    "refresh hint is null": document(spiffe_refresh_hint=None),
    "too many roots": document(*[entry()] * (MAX_ROOTS + 1)),
    "sequence beyond 2^53": document(spiffe_sequence=2**53),
    "a lone surrogate": '{"keys": [], "x": "\\ud800"}',
    "a lone surrogate, not escaped": '{"keys": [], "x": "\ud800"}',
    "a byte order mark": "\ufeff" + document(),
    "something after it": document() + "{}",
    "a few levels too many": '{"keys": [], "x": ' + "[" * 32 + "]" * 32 + "}",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_a_bundle(name: str) -> None:
    with pytest.raises(BundleError):
        TrustBundle.from_json(BAD[name], "fleet.example")
    with pytest.raises(BundleError):
        TrustBundles.from_json('{"trust_domains": {"fleet.example": ' + (BAD[name] or '""') + "}}")


def test_not_utf8() -> None:
    with pytest.raises(BundleError):
        TrustBundle.from_json(b'{"keys": ["\xff"]}', "fleet.example")


def test_a_bundle_of_no_domain() -> None:
    with pytest.raises(IdentityError):
        TrustBundle.from_json('{"keys": []}', "Fleet.example")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.sampled_from(["keys", "use", "x5c", "spiffe_sequence", "x"]), c),
    )
)
def test_any_json_is_a_bundle_or_refused(value: object) -> None:
    with contextlib.suppress(BundleError):
        TrustBundle.from_json(json.dumps(value), "fleet.example")


# PEM roots, as SPIRE's spiffe-helper and cert-manager write them


def pem(*certificates: x509.Certificate) -> str:
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in certificates)


def test_roots_from_pem() -> None:
    text = "# comments and white space are fine\n\n" + pem(FLEET.root, OTHER.root)
    bundle = TrustBundle.from_pem(text, "fleet.example")
    assert bundle == TrustBundle(trust_domain="fleet.example", roots=(FLEET.root, OTHER.root))
    assert TrustBundle.from_pem(text.encode(), "fleet.example") == bundle


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rubbish",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        pem(FLEET.root)[:-40],
        pem(FLEET.root, FLEET.root)[:-40],
        pem(FLEET.root) * (MAX_ROOTS + 1),
        " " * (MAX_BUNDLE_BYTES + 1),
    ],
    ids=["empty", "rubbish", "no certificate", "cut", "the second one cut", "too many", "too large"],
)
def test_what_is_no_pem_root(text: str) -> None:
    with pytest.raises(BundleError) as caught:
        TrustBundle.from_pem(text, "fleet.example")
    assert "fleet.example" in str(caught.value)


def test_pem_roots_of_no_domain() -> None:
    with pytest.raises(IdentityError):
        TrustBundle.from_pem(pem(FLEET.root), "Fleet")


# Several bundles


def test_a_bundle_map_is_written_and_read_again(tmp_path: Path) -> None:
    bundles = TrustBundles.of(FLEET.bundle, OTHER.bundle)
    file = tmp_path / "bundles.json"
    file.write_text(bundles.to_json())
    assert TrustBundles.load(file) == bundles
    assert TrustBundles.load(str(file)).by_domain["other.example"].roots == (OTHER.root,)


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"trust_domains": []}', '{"trust_domains": {"a": 7}}', '{"trust_domains": {"A": {"keys": []}}}'],
)
def test_what_is_not_a_bundle_map(text: str) -> None:
    with pytest.raises(BundleError):
        TrustBundles.from_json(text)


def test_a_domain_twice() -> None:
    with pytest.raises(BundleError, match="one trust domain twice"):
        TrustBundles.of(FLEET.bundle, TrustBundle(trust_domain="fleet.example", roots=()))
    with pytest.raises(BundleError):
        TrustBundles.from_json('{"trust_domains": {"a": {"keys": []}, "a": {"keys": []}}}')


def test_a_bundle_under_the_name_of_another_domain() -> None:
    with pytest.raises(BundleError, match=r"got other\.example under fleet\.example"):
        TrustBundles({"fleet.example": OTHER.bundle})


def test_bundles_cannot_be_changed_behind_a_verifier() -> None:
    given_map = {"fleet.example": FLEET.bundle}
    bundles = TrustBundles(given_map)
    given_map["other.example"] = OTHER.bundle
    assert list(bundles.by_domain) == ["fleet.example"]
    with pytest.raises(TypeError):
        bundles.by_domain["other.example"] = OTHER.bundle  # type: ignore[index]


def test_bundle_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot read"):
        TrustBundles.load(tmp_path / "missing.json")
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (MAX_BUNDLE_BYTES + 1))
    with pytest.raises(BundleError, match="too large"):
        TrustBundles.load(large)
    with pytest.raises(BundleError, match="too large"):
        TrustBundles.from_json(large.read_bytes())


def test_a_name_with_a_newline_forges_no_log_line() -> None:
    with pytest.raises(BundleError) as caught:
        TrustBundles.from_json(json.dumps({"trust_domains": {"a\nERROR forged": {}}}))
    assert "\n" not in str(caught.value)


# Revocation lists


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_revocation_lists_from_files(tmp_path: Path, encoding: Encoding) -> None:
    lists = FLEET.crls()
    files = []
    for number, crl in enumerate(lists.crls):
        files.append(tmp_path / f"{number}.crl")
        files[-1].write_bytes(b"\n" * (encoding is Encoding.PEM) + crl.public_bytes(encoding))
    assert RevocationLists.load(*files) == lists
    assert RevocationLists.load() == RevocationLists()


def test_one_file_with_all_revocation_lists(tmp_path: Path) -> None:
    """As `a2a-pki crl` prints them: one that is passed over would revoke nothing."""
    lists, file = FLEET.crls(), tmp_path / "today.crl"
    assert len(lists.crls) > 1
    file.write_bytes(b"\n".join(crl.public_bytes(Encoding.PEM) for crl in lists.crls))
    assert RevocationLists.load(file) == WatchedRevocationLists(file).current() == lists


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"rubbish",
        b"-----BEGIN X509 CRL-----\n",
        FLEET.root.public_bytes(Encoding.PEM),
        FLEET.crls().crls[0].public_bytes(Encoding.PEM) + FLEET.root.public_bytes(Encoding.PEM),
        FLEET.crls().crls[0].public_bytes(Encoding.PEM) + b"-----BEGIN X509 CRL-----\nAAAA",
        FLEET.crls().crls[0].public_bytes(Encoding.PEM) + b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
        b"".join(FLEET.crls().crls[0].public_bytes(encoding) for encoding in (Encoding.PEM, Encoding.DER)),
        FLEET.crls().crls[0].public_bytes(Encoding.PEM) + FLEET.crls().crls[0].public_bytes(Encoding.PEM)[1:],
    ],
    ids=[
        "nothing",
        "rubbish",
        "no end",
        "a certificate",
        "one beside",
        "a second has no end",
        "a second is none",
        "a second in DER",
        "a second that lost a dash",
    ],
)
def test_what_is_not_a_revocation_list(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.crl").write_bytes(content)
    with pytest.raises(BundleError, match=r"a\.crl is not a CRL"):
        RevocationLists.load(tmp_path / "a.crl")


def test_revocation_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="cannot read"):
        RevocationLists.load(tmp_path / "missing.crl")
    monkeypatch.setattr(trust.bundles, "MAX_CRL_BYTES", 10)
    (tmp_path / "large.crl").write_bytes(b"x" * 11)
    with pytest.raises(BundleError, match="too large"):
        RevocationLists.load(tmp_path / "large.crl")
