"""Keys on a token: a whole CA signed by SoftHSM and verified by openssl, and everything that goes wrong with tokens."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from pki import keys, ledger, list_profiles, pkcs11, profiles
from pki.errors import AuthorityDamaged, KeyStoreError, PKIError, WrongPassword
from pki.pkcs11 import TokenUri, generate_on_token, open_on_token
from pki.policy import Approved
from pki.profiles import Issuer, RevokedSerial
from tests.pki import books
from tests.pki.judges import needs_openssl, verify
from tests.pki.softhsm import MODULE, PIN, SO_PIN, Tokens, needs_softhsm, tokens, uri
from trust.identity import AgentID

__all__ = ["tokens"]  # the fixture

ES256 = ec.ECDSA(hashes.SHA256())
LABELS = iter(f"token {number}" for number in range(1000))


@pytest.fixture
def token(tokens: Tokens) -> Iterator[str]:
    """The URI of a new token."""
    yield tokens.make(next(LABELS))


def signs(key: keys.Signer) -> None:
    """It does, and what it signed verifies; `keys` sees to that."""
    assert keys.private_key(key).sign(b"data", ES256)


# URIs.

GOOD = "pkcs11:token=ca;object=intermediate?module-path=/usr/lib/softhsm/libsofthsm2.so"
URIS: list[tuple[str, TokenUri]] = [
    (GOOD, TokenUri(token="ca", object="intermediate", module_path="/usr/lib/softhsm/libsofthsm2.so")),
    ("pkcs11:token=ca?module-path=m", TokenUri(token="ca", module_path="m")),
    (
        "pkcs11:type=private;id=%01%FFa;serial=0a1b;token=a%20%3B%2f%c3%a9?module-path=C:%5Chsm.dll",
        TokenUri(token="a ;/é", serial="0a1b", id=b"\x01\xffa", module_path="C:\\hsm.dll"),
    ),
    ("pkcs11:token=a&b;object=x:y?module-path=/a/b?c", TokenUri(token="a&b", object="x:y", module_path="/a/b?c")),
]


@pytest.mark.parametrize(("text", "parsed"), URIS)
def test_a_uri_names_a_key(text: str, parsed: TokenUri) -> None:
    assert TokenUri.parse(text) == parsed
    assert TokenUri.parse(str(parsed)) == parsed


def test_a_uri_is_written_as_it_was_read() -> None:
    assert str(TokenUri.parse(GOOD)) == GOOD


BAD_URIS = [
    ("nothing", ""),
    ("another scheme", "file:token=ca?module-path=m"),
    ("the scheme in capitals", GOOD.replace("pkcs11", "PKCS11")),
    ("nothing but the scheme", "pkcs11:"),
    ("no token", "pkcs11:object=x?module-path=m"),
    ("no module", "pkcs11:token=ca;object=x"),
    ("empty query", "pkcs11:token=ca;object=x?"),
    ("empty token", "pkcs11:token=?module-path=m"),
    ("empty object", "pkcs11:token=ca;object=?module-path=m"),
    ("empty id", "pkcs11:token=ca;id=?module-path=m"),
    ("empty module", "pkcs11:token=ca?module-path="),
    ("attribute twice", "pkcs11:token=ca;token=cb?module-path=m"),
    ("module twice", "pkcs11:token=ca?module-path=m&module-path=n"),
    ("unknown attribute", "pkcs11:token=ca;slot-id=1?module-path=m"),
    ("vendor attribute", "pkcs11:token=ca;x-hsm=1?module-path=m"),
    ("unknown query", "pkcs11:token=ca?module-path=m&module-name=n"),
    ("module in the path", "pkcs11:token=ca;module-path=m"),
    ("token in the query", "pkcs11:?token=ca&module-path=m"),
    ("public key", "pkcs11:token=ca;type=public?module-path=m"),
    ("certificate", "pkcs11:token=ca;type=cert?module-path=m"),
    ("no value", "pkcs11:token?module-path=m"),
    ("semicolon at the end", "pkcs11:token=ca;?module-path=m"),
    ("ampersand at the end", "pkcs11:token=ca?module-path=m&"),
    ("space", "pkcs11:token=c a?module-path=m"),
    ("slash in the path", "pkcs11:token=c/a?module-path=m"),
    ("fragment", "pkcs11:token=ca?module-path=m#x"),
    ("half an escape", "pkcs11:token=c%2?module-path=m"),
    ("no escape", "pkcs11:token=c%zz?module-path=m"),
    ("not UTF-8", "pkcs11:token=%ff?module-path=m"),
    ("not ASCII", "pkcs11:token=é?module-path=m"),
    ("NUL", "pkcs11:token=c%00?module-path=m"),
    ("line break", "pkcs11:token=c%0a?module-path=m"),
    ("NUL in the module", "pkcs11:token=ca?module-path=m%00n"),
    ("too long", f"pkcs11:token={'a' * 3000}?module-path=m"),
    ("PIN", f"pkcs11:token=ca?module-path=m&pin-value={PIN}"),
    ("PIN in the path", f"pkcs11:token=ca;pin-value={PIN}?module-path=m"),
    ("where the PIN is", f"pkcs11:token=ca?module-path=m&pin-source=/etc/{PIN}"),
]


@pytest.mark.parametrize("text", [row[1] for row in BAD_URIS], ids=[row[0] for row in BAD_URIS])
def test_other_uris_are_refused(text: str) -> None:
    with pytest.raises(PKIError) as caught:
        TokenUri.parse(text)
    assert type(caught.value) is KeyStoreError
    assert PIN not in str(caught.value)


names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20) | st.just("a b")


@given(
    st.builds(
        TokenUri,
        token=names,
        module_path=names,
        object=st.none() | names,
        id=st.none() | st.binary(min_size=1, max_size=20),
        serial=st.none() | names,
    )
)
def test_every_uri_comes_back(given_uri: TokenUri) -> None:
    assert TokenUri.parse(str(given_uri)) == given_uri


@given(st.text() | st.text(alphabet="pkcs1:token=;object?module-path&%2").map(lambda rest: f"pkcs11:{rest}"))
def test_a_text_is_a_uri_or_refused(text: str) -> None:
    try:
        parsed = TokenUri.parse(text)
    except KeyStoreError:
        return
    assert TokenUri.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "line"),
    [("pkcs11:token=ca?module-path=m", "neither object nor id"), ("pkcs11:token=ca;object=x?module-path=m", "PIN")],
)
def test_what_is_missing_is_said_before_a_module_is_loaded(text: str, line: str) -> None:
    with pytest.raises(PKIError, match=line):
        open_on_token(text, None)
    with pytest.raises(KeyStoreError, match="an id for a key that is still to be made"):
        generate_on_token("pkcs11:token=ca;id=%01?module-path=m", PIN)


def test_without_python_pkcs11_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(KeyStoreError, match="install the extra `pkcs11` of a2a-trust"):
        open_on_token(GOOD, PIN)


@pytest.mark.parametrize("module", ["/nowhere/libhsm.so", __file__])
def test_what_is_no_module(module: str) -> None:
    with pytest.raises(KeyStoreError, match=r"token 'ca' cannot be used: got .*; check that the module is there"):
        open_on_token(f"pkcs11:token=ca;object=x?module-path={module}", PIN)


# Keys.


@needs_softhsm
def test_a_key_is_made_and_found_again(token: str) -> None:
    key = generate_on_token(token, PIN)
    signs(key)
    again = open_on_token(key.uri, PIN)
    assert again.public_key() == key.public_key()
    assert isinstance(key.public_key().curve, ec.SECP256R1)
    signs(again)
    assert generate_on_token(token, PIN).public_key() != key.public_key(), "names are chosen so that several fit"
    assert key.uri in repr(key)
    assert PIN not in repr(key)
    assert PIN not in repr(vars(key)["_token"])


@needs_softhsm
def test_a_key_has_the_name_that_it_was_given_and_no_other_gets_it(token: str) -> None:
    named = token.replace("?", ";object=inter%20mediate?")
    key = generate_on_token(named, PIN)
    assert open_on_token(named, PIN).public_key() == key.public_key()
    with pytest.raises(KeyStoreError, match=r"key 'inter mediate' on token '.*' exists already"):
        generate_on_token(named, PIN)
    signs(key)


def library() -> Any:
    return importlib.import_module("pkcs11")


@needs_softhsm
def test_the_key_stays_on_its_token(token: str) -> None:
    key = generate_on_token(token, PIN)
    private = vars(key)["_handle"][1]
    attribute = library().Attribute
    assert private[attribute.SENSITIVE] is True
    assert private[attribute.EXTRACTABLE] is False
    assert private[attribute.NEVER_EXTRACTABLE] is True
    assert private[attribute.SIGN] is True
    for other in (attribute.DECRYPT, attribute.UNWRAP, attribute.DERIVE):
        assert private[other] is False
    with pytest.raises(library().AttributeSensitive):
        private[attribute.VALUE]


@needs_softhsm
def test_a_digest_is_no_data(token: str) -> None:
    key = generate_on_token(token, PIN)
    with pytest.raises(KeyStoreError, match="got a digest"):
        key.sign(bytes(32), ec.ECDSA(utils.Prehashed(hashes.SHA256())))


@needs_softhsm
def test_a_p384_key_that_somebody_imported(token: str, tokens: Tokens, tmp_path: Path) -> None:
    key = imported(tokens, token, tmp_path, ec.generate_private_key(ec.SECP384R1()))
    assert isinstance(key.public_key().curve, ec.SECP384R1)
    assert keys.private_key(key).sign(b"data", ec.ECDSA(hashes.SHA384()))


@needs_softhsm
@pytest.mark.parametrize(
    ("private", "line"),
    [
        (ec.generate_private_key(ec.SECP521R1()), r"key 'imported' on token '.*' cannot sign certificates"),
        (rsa.generate_private_key(65537, 2048), r"no key 'imported' on token '.*': expected an EC key"),
    ],
    ids=["P-521", "RSA"],
)
def test_another_kind_of_key_does_not_open(
    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, line: str, token: str, tokens: Tokens, tmp_path: Path
) -> None:
    with pytest.raises(KeyStoreError, match=line):
        imported(tokens, token, tmp_path, private)


def imported(
    tokens: Tokens, token: str, folder: Path, private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> pkcs11.TokenKey:
    file = folder / "key.pem"
    file.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    label = TokenUri.parse(token).token
    tokens.run("--import", str(file), "--token", label, "--pin", PIN, "--label", "imported", "--id", "0102")
    return open_on_token(uri(label, object="imported"), PIN)


@needs_softhsm
def test_a_key_that_can_be_read_out_does_not_open(token: str) -> None:
    make_pair(token, "loose", {library().Attribute.EXTRACTABLE: True})
    make_pair(token, "clear", {library().Attribute.SENSITIVE: False, library().Attribute.EXTRACTABLE: False})
    for name in ("loose", "clear"):
        with pytest.raises(KeyStoreError, match=f"key '{name}' on token '.*' can be read out of its token"):
            open_on_token(token.replace("?", f";object={name}?"), PIN)


@needs_softhsm
def test_two_keys_of_one_name_are_told_apart_by_their_ids(token: str) -> None:
    for identifier in (b"\x01", b"\x02"):
        make_pair(token, "twin", {library().Attribute.EXTRACTABLE: False}, identifier)
    with pytest.raises(KeyStoreError, match=r"several keys are key 'twin'.*add its id"):
        open_on_token(token.replace("?", ";object=twin?"), PIN)
    first, second = (open_on_token(token.replace("?", f";object=twin;id=%0{number}?"), PIN) for number in (1, 2))
    assert first.public_key() != second.public_key()
    signs(first)
    signs(second)
    signs(open_on_token(token.replace("?", ";id=%02?"), PIN))


def make_pair(token: str, name: str, private: dict[Any, Any], identifier: bytes = b"\x01") -> None:
    """A key pair as another program may have made it."""
    generate_on_token(token, PIN)  # opens the token
    p11 = library()
    label = TokenUri.parse(token).token
    session = p11.lib(str(MODULE)).get_token(token_label=label).open(rw=True)
    named = p11.util.ec.encode_named_curve_parameters("secp256r1")
    session.create_domain_parameters(p11.KeyType.EC, {p11.Attribute.EC_PARAMS: named}, local=True).generate_keypair(
        id=identifier, label=name, store=True, mechanism=p11.Mechanism.EC_KEY_PAIR_GEN, private_template=private
    )
    session.close()


# Errors.


@needs_softhsm
def test_wrong_names_and_pins(token: str, tokens: Tokens) -> None:
    """Each in one line that says what is wrong, and never the PIN."""
    key = generate_on_token(token, PIN)
    other = tokens.make(next(LABELS))
    rows: list[tuple[str, str | None, type[PKIError], str]] = [
        (key.uri, "987600", WrongPassword, "token does not open: got a wrong PIN"),
        (key.uri, None, WrongPassword, "PIN of the token: got nothing"),
        (key.uri, "", WrongPassword, "PIN of the token: got nothing"),
        (uri(TokenUri.parse(other).token, object="x"), "987600", WrongPassword, "token does not open: got a wrong PIN"),
        (uri(TokenUri.parse(other).token, object="x"), "9" * 300, WrongPassword, "token does not open"),
        (uri(TokenUri.parse(other).token, object="x"), PIN, KeyStoreError, "no key 'x' on token"),
        (uri(TokenUri.parse(other).token, id="\x07"), PIN, KeyStoreError, "no key '07' on token"),
        (uri("elsewhere", object="x"), PIN, KeyStoreError, "token 'elsewhere': got none, expected one"),
        (uri(TokenUri.parse(other).token, object="x", serial="7"), PIN, KeyStoreError, "got none, expected one"),
    ]
    for text, pin, expected, line in rows:
        with pytest.raises(PKIError) as caught:
            open_on_token(text, pin)
        assert type(caught.value) is expected
        assert line in str(caught.value)
        assert "987600" not in str(caught.value) and "\n" not in str(caught.value)
    signs(key)  # nothing of all that has harmed it


@needs_softhsm
def test_two_tokens_of_one_label_are_told_apart_by_their_serials(tokens: Tokens) -> None:
    label = next(LABELS)
    tokens.make(label)
    tokens.make(label)
    with pytest.raises(KeyStoreError, match=f"token '{label}': got several, expected one"):
        generate_on_token(uri(label), PIN)
    serials = [found.serial.decode() for found in library().lib(str(MODULE)).get_tokens(token_label=label)]
    first, second = (generate_on_token(uri(label, serial=serial), PIN) for serial in serials)
    signs(first)
    signs(second)
    with pytest.raises(KeyStoreError, match="no key"):
        open_on_token(first.uri.replace(serials[0], serials[1]), PIN)


@needs_softhsm
def test_an_ended_session_is_opened_again(token: str) -> None:
    key = generate_on_token(token, PIN)
    vars(key)["_token"].session.close()
    signs(key)
    signs(generate_on_token(token, PIN))


@needs_softhsm
def test_a_token_that_was_away_is_used_again(token: str, tokens: Tokens) -> None:
    key = generate_on_token(token, PIN)
    beside = generate_on_token(tokens.make(next(LABELS)), PIN)
    away = tokens.folder.with_name("away")
    shutil.move(tokens.folder, away)
    try:
        for _ in range(2):
            with pytest.raises(KeyStoreError, match=r"token '.*' cannot be used: got "):
                key.sign(b"data", ES256)
    finally:
        shutil.move(away, tokens.folder)
    signs(key)
    signs(beside)
    signs(key)


@needs_softhsm
def test_a_token_that_is_gone_for_good(token: str, tokens: Tokens) -> None:
    key = generate_on_token(token, PIN)
    label = TokenUri.parse(token).token
    tokens.run("--delete-token", "--token", label)
    with pytest.raises(KeyStoreError, match=f"token '{label}': got none, expected one"):
        key.sign(b"data", ES256)
    with pytest.raises(KeyStoreError, match=f"token '{label}': got none, expected one"):
        open_on_token(key.uri, PIN)


@needs_softhsm
def test_a_pin_that_was_changed_is_tried_once_and_no_more(token: str) -> None:
    """Every wrong PIN counts, and after a few of them a token locks itself."""
    key = generate_on_token(token, PIN)
    opened = vars(key)["_token"]
    session = library().lib(str(MODULE)).get_token(token_label=TokenUri.parse(token).token).open(rw=True)
    session.set_pin(PIN, "43218765")
    session.close()
    opened.session.close()
    attempts = []
    find = opened._find

    def counted() -> Any:
        attempts.append(None)
        return find()

    opened._find = counted
    for _ in range(5):
        with pytest.raises(WrongPassword, match="token does not open"):
            key.sign(b"data", ES256)
    assert len(attempts) == 1
    signs(open_on_token(key.uri, "43218765"))


@needs_softhsm
@pytest.mark.parametrize(
    ("raised", "expected", "line"),
    [("PinLocked", WrongPassword, "token is locked"), ("DeviceError", KeyStoreError, "got DeviceError")],
)
def test_what_softhsm_does_not_do(
    raised: str, expected: type[PKIError], line: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = generate_on_token(token, PIN)
    opened = vars(key)["_token"]

    def refuse() -> None:
        raise getattr(library(), raised)

    opened.session.close()
    monkeypatch.setattr(opened, "_find", refuse)
    with pytest.raises(PKIError, match=line) as caught:
        key.sign(b"data", ES256)
    assert type(caught.value) is expected


@needs_softhsm
def test_a_public_key_that_is_none(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key = generate_on_token(token, PIN)
    monkeypatch.setattr(library().util.ec, "encode_ec_public_key", lambda _: b"junk")
    with pytest.raises(KeyStoreError, match="cannot sign certificates"):
        open_on_token(key.uri, PIN)


@needs_softhsm
def test_a_login_that_outlived_its_session_is_used(token: str) -> None:
    key = generate_on_token(token, PIN)
    vars(key)["_token"].session = None  # forgotten, and still logged in
    signs(key)


@needs_softhsm
def test_many_threads_sign_with_two_keys_of_one_token(token: str) -> None:
    both = [generate_on_token(token, PIN) for _ in range(2)]

    def sign(number: int) -> None:
        signs(both[number % 2])
        if number % 40 == 0:
            # One of them ends everybody's session now and then, unless another has just done so. The lock, because the
            # module is told that it is called by one thread at a time.
            with pkcs11._LOCK, contextlib.suppress(pkcs11._library().SessionHandleInvalid):
                vars(both[0])["_token"].session.close()

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(sign, range(400)))) == 400


# A CA.


@needs_softhsm
@needs_openssl
def test_a_ca_whose_keys_nobody_has_seen(token: str, tmp_path: Path) -> None:
    """Root, intermediate, leaf, revocation list, OCSP answer and tree head, all signed on the token."""
    now = datetime.now(UTC)  # openssl's
    root_key, key = generate_on_token(token, PIN), generate_on_token(token, PIN)
    domain = books.DOMAIN
    root = keys.sign(profiles.root(trust_domain=domain, public_key=root_key.public_key(), serial=1, now=now), root_key)
    intermediate = keys.sign(
        profiles.intermediate(
            trust_domain=domain, public_key=key.public_key(), issuer=Issuer.of(root), serial=2, now=now
        ),
        root_key,
    )
    issuer = Issuer.of(intermediate)
    approved = Approved(
        agent_id=AgentID.parse(books.AGENT),
        public_key=books.OTHER_KEY.public_key(),
        dns_names=(),
        ip_addresses=(),
        lifetime=timedelta(hours=12),
    )
    leaf, _ = keys.sign_agent(profiles.agent(approved, issuer=issuer, serial=3, now=now), key)
    revoked = [RevokedSerial(serial=4, revoked_at=now, reason=x509.ReasonFlags.key_compromise)]
    root_list = keys.sign_crl(list_profiles.revocation_list([], issuer=Issuer.of(root), number=1, now=now), root_key)
    good = keys.sign_crl(list_profiles.revocation_list(revoked, issuer=issuer, number=1, now=now), key)
    chain = verify(tmp_path, [leaf, intermediate], root, purpose="sslclient", crls=[good, root_list])
    assert chain.returncode == 0, chain.stderr
    revoked.append(replace(revoked[0], serial=3))
    bad = keys.sign_crl(list_profiles.revocation_list(revoked, issuer=issuer, number=2, now=now), key)
    chain = verify(tmp_path, [leaf, intermediate], root, purpose="sslclient", crls=[bad, root_list])
    assert "certificate revoked" in chain.stderr

    head = ledger.Head(trust_domain=domain, size=0, root=ledger.Frontier().root(), time=now.replace(microsecond=0))
    assert ledger.verify_head(ledger.sign_head(head, key, issuer.key_id), key.public_key()) == head


@needs_softhsm
def test_the_key_of_a_ca_opens_by_its_uri(token: str) -> None:
    key = generate_on_token(token, PIN)
    certificate = books.certify(f"spiffe://{books.DOMAIN}", 2, key.public_key(), books.ROOT_KEY)
    issuer = replace(
        books.ISSUER,
        der=certificate.public_bytes(Encoding.DER),
        key_id=Issuer.of(certificate).key_id,
        key_uri=key.uri,
    )
    named = [str(MODULE)]
    signs(keys.open_signer(issuer, password=None, pin=PIN, modules=named))
    with pytest.raises(AuthorityDamaged, match="not the one in its certificate"):
        keys.open_signer(replace(books.ISSUER, key_uri=key.uri), password=None, pin=PIN, modules=named)
    with pytest.raises(WrongPassword):
        keys.open_signer(issuer, password="x", pin=None, modules=named)
    for others in ([], ["/usr/lib/other.so"]):
        with pytest.raises(KeyStoreError, match="expected one that you have named"):
            keys.open_signer(issuer, password=None, pin=PIN, modules=others)
    with pytest.raises(KeyStoreError, match="URI of a key on a token"):
        keys.open_signer(replace(issuer, key_uri="pkcs11:"), password=None, pin=PIN, modules=named)


def test_the_pins_are_those_of_the_tests() -> None:
    assert PIN not in SO_PIN
