"""Keys on a PKCS#11 token (an HSM, a smart card, SoftHSM), mostly CAs': made there, used there, never seen here.

A key is named by a URI (RFC 7512), `pkcs11:token=ca;object=intermediate?module-path=/usr/lib/softhsm/libsofthsm2.so`,
which is kept in the database; the PIN is not part of it and not kept anywhere. A module is code that runs in this
process and is given the PIN, and whoever can write into the database is not to choose it: `named` refuses what the
operator has not named. The one file that knows python-pkcs11, which the extra `pkcs11` installs.

Sessions of one process share their login, and the module is told that one thread calls it at a time: each token is
opened once, stays open until the process ends, and every call takes one lock. Nothing else in the process may use the
same module.
"""

from __future__ import annotations

import hmac
import re
import secrets
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import quote, unquote_to_bytes

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from pki.errors import KeyStoreError, WrongPassword

MAX_URI_CHARACTERS = 2048
MODULES_VARIABLE = "A2A_PKI_PKCS11_MODULE"  # paths, as in PATH; read by the command line

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUri:
    """Which key, on which token, reached through which module. RFC 7512 section 2.3."""

    token: str  # label of the token
    module_path: str  # the shared library of the token's maker
    object: str | None = None  # label of the key
    id: bytes | None = None  # CKA_ID of the key
    serial: str | None = None  # of the token, where several have one label

    @classmethod
    def parse(cls, text: str) -> TokenUri:
        """Read a URI; every attribute that is not understood is refused, for without it another key would be meant.

        Raises:
            KeyStoreError: it is malformed, brings a PIN, has an unknown or repeated attribute, or names no token or
                module.
        """
        if len(text) > MAX_URI_CHARACTERS or not text.startswith("pkcs11:"):
            raise _bad_uri("no PKCS#11 URI")
        path, question, query = text.removeprefix("pkcs11:").partition("?")
        found = _attributes(path, ";", _PATH_ATTRIBUTES, _PATH_VALUE)
        if question:
            found |= _attributes(query, "&", _QUERY_ATTRIBUTES, _QUERY_VALUE)
        if found.pop("type", b"private") != b"private":
            raise _bad_uri("type is not private")
        identifier = found.pop("id", None)
        try:
            texts = {name: value.decode() for name, value in found.items()}
        except UnicodeDecodeError:
            raise _bad_uri("a value that is not UTF-8") from None
        if any(not value.isprintable() for value in texts.values()):
            raise _bad_uri("characters that cannot be shown")
        if "token" not in texts or "module-path" not in texts:
            raise _bad_uri("no token, or no module-path")
        return cls(
            token=texts["token"],
            module_path=texts["module-path"],
            object=texts.get("object"),
            id=identifier,
            serial=texts.get("serial"),
        )

    def __str__(self) -> str:
        path = [f"token={quote(self.token, safe='')}"]
        if self.serial is not None:
            path.append(f"serial={quote(self.serial, safe='')}")
        if self.object is not None:
            path.append(f"object={quote(self.object, safe='')}")
        if self.id is not None:
            path.append("id=" + "".join(f"%{byte:02x}" for byte in self.id))
        return f"pkcs11:{';'.join(path)}?module-path={quote(self.module_path, safe='/')}"


class TokenKey:
    """A private key on a token: a `pki.keys.Signer`. Safe for threads."""

    def __init__(self, uri: TokenUri, token: _Token) -> None:
        self.uri = str(uri)
        self._where = uri
        self._token = token
        self._handle: Any = None
        self._public_key = token.use(uri, lambda session: _public_key(session, uri))
        token.use(uri, self._private)

    def __repr__(self) -> str:
        return f"TokenKey({self.uri!r})"

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public_key

    def sign(self, data: bytes, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """ECDSA (CKM_ECDSA over a digest made here), as DER. The token is opened again once if its session has ended.

        Not checked: the signature (`pki.keys` verifies each one).

        Raises:
            KeyStoreError: the token cannot be reached, or refuses.
        """
        algorithm = signature_algorithm.algorithm
        if not isinstance(algorithm, hashes.HashAlgorithm):
            raise KeyStoreError("key on a token", got="a digest", expected="the data itself")
        digest = hashes.Hash(algorithm)
        digest.update(data)
        value = digest.finalize()
        library = _library()
        raw: bytes = self._token.use(
            self._where, lambda session: self._private(session).sign(value, mechanism=library.Mechanism.ECDSA)
        )
        # A short or odd answer is no signature either; `pki.keys` verifies what comes out here.
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))

    def _private(self, session: Any) -> Any:
        """The key's handle in this session; looked up once for each, and checked."""
        if self._handle is None or self._handle[0] is not session:
            self._handle = (session, _private_key(session, self._where))
        return self._handle[1]


def open_on_token(uri: str, pin: str | None) -> TokenKey:
    """Open a key that is on a token.

    Raises:
        WrongPassword: the PIN is missing or wrong.
        KeyStoreError: a bad URI; no module, token or key of this name; a key that can be read out of its token.
    """
    where = TokenUri.parse(uri)
    if where.object is None and where.id is None:
        raise _bad_uri("neither object nor id")
    return TokenKey(where, _token(where, pin))


def named(uri: str, modules: Collection[str]) -> str:
    """Return a URI that comes from the database, if its module is one that the operator has named.

    Raises:
        KeyStoreError: it is another one, or the URI is malformed.
    """
    path = TokenUri.parse(uri).module_path
    if path not in modules:
        raise KeyStoreError(
            "module of the token",
            got=f"{path}, from the database",
            expected="one that you have named",
            do=f"if it is the right one, set {MODULES_VARIABLE} to its path",
        )
    return uri


def generate_on_token(uri: str, pin: str | None) -> TokenKey:
    """Make a P-256 key on a token: sensitive, not extractable, for signatures only. Its `.uri` names it from now on.

    Args:
        uri: names the token and, if it has an `object`, the label of the new key; otherwise a random one is chosen.

    Raises:
        WrongPassword, KeyStoreError: as `open_on_token`; also, a key of that name is there already.
    """
    given = TokenUri.parse(uri)
    if given.id is not None:
        raise _bad_uri("an id for a key that is still to be made")
    where = replace(given, object=given.object or f"a2a-{secrets.token_hex(8)}", id=secrets.token_bytes(16))
    token = _token(where, pin)
    token.generate(where)
    return TokenKey(where, token)


# RFC 7512 section 2.3, without what would let two URIs name one key: other attributes are refused.
_PATH_ATTRIBUTES = frozenset({"token", "serial", "object", "id", "type"})
_QUERY_ATTRIBUTES = frozenset({"module-path"})
_PATH_VALUE = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=&]|%[0-9A-Fa-f]{2})+")
_QUERY_VALUE = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=/?|]|%[0-9A-Fa-f]{2})+")


def _attributes(text: str, separator: str, known: frozenset[str], value: re.Pattern[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in text.split(separator):
        name, _, encoded = part.partition("=")
        if name in ("pin-value", "pin-source"):  # it would be stored, shown and logged with the URI
            raise _bad_uri("a PIN in it")
        if name not in known:
            raise _bad_uri("an attribute that is not understood")
        if name in found:
            raise _bad_uri(f"{name} twice")
        if not value.fullmatch(encoded):
            raise _bad_uri(f"a malformed {name}")
        found[name] = unquote_to_bytes(encoded)
    return found


def _bad_uri(got: str) -> KeyStoreError:
    # Never the text itself: a PIN that was put in the wrong place would be in the log.
    return KeyStoreError(
        "URI of a key on a token", got=got, expected="pkcs11:token=LABEL;object=LABEL?module-path=/path/to/module.so"
    )


class _Token:
    """One token, logged in, with one session that all its keys share."""

    def __init__(self, where: TokenUri, pin: str) -> None:
        self._where = where
        self._pin: str | None = pin
        self.session: Any = self._find().open(user_pin=pin)  # None: it has ended

    def opened_with(self, pin: str) -> bool:
        return self._pin is not None and hmac.compare_digest(self._pin.encode(), pin.encode())

    @property
    def usable(self) -> bool:
        return self._pin is not None

    def use(self, where: TokenUri, work: Callable[[Any], Result]) -> Result:
        """Do something with the session; where it has ended (the token was pulled out, say), open another one, once."""
        with _LOCK, _own_errors(where):
            library = _library()
            if self.session is not None:
                try:
                    return work(self.session)
                except (library.NoSuchKey, library.MultipleObjectsReturned):
                    raise  # the session answers
                except library.PKCS11Error:
                    _restart(self._where.module_path)
            try:
                self.session = self._open()
            except library.PKCS11Error:
                _restart(self._where.module_path)
                self.session = self._open()
            return work(self.session)

    def generate(self, where: TokenUri) -> None:
        """Make a key pair. In a session of its own, because the shared one cannot write; the login holds for both."""
        self.use(where, lambda _: self._generate(where))

    def _generate(self, where: TokenUri) -> None:
        library = _library()
        session = self._find().open(rw=True)
        try:
            if list(session.get_objects({library.Attribute.LABEL: where.object})):
                raise KeyStoreError(f"{_name(where)} exists already", expected="a new name", do="choose another object")
            named = library.util.ec.encode_named_curve_parameters("secp256r1")
            session.create_domain_parameters(
                library.KeyType.EC, {library.Attribute.EC_PARAMS: named}, local=True
            ).generate_keypair(
                id=where.id,
                label=where.object,
                store=True,
                mechanism=library.Mechanism.EC_KEY_PAIR_GEN,
                capabilities=library.MechanismFlag.SIGN | library.MechanismFlag.VERIFY,
                private_template={library.Attribute.SENSITIVE: True, library.Attribute.EXTRACTABLE: False},
            )
        finally:
            session.close()

    def _find(self) -> Any:
        return _find(self._where)

    def _open(self) -> Any:
        library = _library()
        if self._pin is None:
            raise _wrong_pin()
        token = self._find()
        try:
            return token.open(user_pin=self._pin)
        except library.UserAlreadyLoggedIn:
            return token.open()  # our own login with this PIN, which has outlived its session
        except (library.PinIncorrect, library.PinLocked):
            self._pin = None  # somebody has changed it: a third attempt would lock the token
            raise


_LOCK = threading.RLock()
_tokens: dict[tuple[str, bytes, str], _Token] = {}


def _token(where: TokenUri, pin: str | None) -> _Token:
    """The token, opened with this PIN; one that is open already is not asked again, but the PIN must be the same."""
    if not pin:
        raise WrongPassword("PIN of the token", got="nothing", expected="the PIN that opens it")
    with _LOCK, _own_errors(where):
        try:
            found = _find(where)
        except _library().NoSuchToken:
            _restart(where.module_path)  # it may have been plugged in since the module looked
            found = _find(where)
        place = (where.module_path, found.serial, found.label)
        token = _tokens.get(place)
        if token is None or not token.usable:
            token = _tokens[place] = _Token(where, pin)
        elif not token.opened_with(pin):
            raise _wrong_pin()
    return token


def _restart(module_path: str) -> None:
    """Begin again with a module, because many find a token that was away only then; its sessions end with that."""
    library = _library()
    module = library.lib(module_path)
    with suppress(library.PKCS11Error):
        module.finalize()
    for (path, _, _), token in _tokens.items():
        if path == module_path:
            token.session = None
    module.initialize()


def _find(where: TokenUri) -> Any:
    serial = None if where.serial is None else where.serial.encode()
    return _library().lib(where.module_path).get_token(token_label=where.token, token_serial=serial)


def _public_key(session: Any, where: TokenUri) -> ec.EllipticCurvePublicKey:
    library = _library()
    found = _key(session, where, library.ObjectClass.PUBLIC_KEY)
    try:
        key = load_der_public_key(library.util.ec.encode_ec_public_key(found))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)):
        raise KeyStoreError(f"{_name(where)} cannot sign certificates", expected="an EC key on P-256 or P-384")
    return key


def _private_key(session: Any, where: TokenUri) -> Any:
    library = _library()
    key = _key(session, where, library.ObjectClass.PRIVATE_KEY)
    if key[library.Attribute.EXTRACTABLE] or not key[library.Attribute.SENSITIVE]:
        raise KeyStoreError(
            f"{_name(where)} can be read out of its token",
            expected="a key that is sensitive and not extractable",
            do="make a new one",
        )
    return key


def _key(session: Any, where: TokenUri, kind: Any) -> Any:
    # The search is read to its end: python-pkcs11 keeps the session locked for this thread until then.
    library = _library()
    template = {library.Attribute.CLASS: kind, library.Attribute.KEY_TYPE: library.KeyType.EC}
    if where.object is not None:
        template[library.Attribute.LABEL] = where.object
    if where.id is not None:
        template[library.Attribute.ID] = where.id
    found = list(session.get_objects(template))
    if len(found) > 1:
        raise library.MultipleObjectsReturned
    if not found:
        raise library.NoSuchKey
    return found[0]


def _library() -> Any:
    try:
        import pkcs11  # an extra, which only who has keys on a token needs
    except ImportError:
        raise KeyStoreError(
            "keys on a token need python-pkcs11", got="no such package", do="install the extra `pkcs11` of a2a-trust"
        ) from None
    return pkcs11


@contextmanager
def _own_errors(where: TokenUri) -> Iterator[None]:
    """Errors of the module as ours. None of them repeats what was given to the module, the PIN among it."""
    library = _library()
    try:
        yield
    except (library.PinIncorrect, library.PinInvalid, library.PinLenRange):
        raise _wrong_pin() from None
    except library.PinLocked:
        raise WrongPassword(
            "token is locked", got="too many wrong PINs", do="unlock it with the tool of its maker"
        ) from None
    except library.NoSuchKey:
        raise KeyStoreError(f"no {_name(where)}", expected="an EC key of this name") from None
    except library.MultipleObjectsReturned:
        raise KeyStoreError(f"several keys are {_name(where)}", expected="one", do="add its id to the URI") from None
    except (library.NoSuchToken, library.MultipleTokensReturned) as error:
        got = "none" if isinstance(error, library.NoSuchToken) else "several"
        raise KeyStoreError(f"token {where.token!r}", got=got, expected="one", do="check label and serial") from None
    except library.PKCS11Error as error:
        reason = str(error) if type(error) is library.PKCS11Error else type(error).__name__
        raise KeyStoreError(
            f"token {where.token!r} cannot be used",
            got=reason,
            expected=f"an answer of {where.module_path}",
            do="check that the module is there and the token is plugged in",
        ) from None


def _name(where: TokenUri) -> str:
    return f"key {where.object or (where.id or b'').hex()!r} on token {where.token!r}"


def _wrong_pin() -> WrongPassword:
    return WrongPassword("token does not open", got="a wrong PIN", expected="the PIN of its user")
