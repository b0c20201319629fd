"""How a client proves to an authorization server who it is. Each way has its name in the server's metadata.

The certificate of the connection is always there, and the tokens are bound to it; it is the proof by default. A server
may want another one, or a secret as a second factor beside it.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import os
import re
import secrets
import stat
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import quote_plus

from trust.credentials import Credentials
from trust.errors import CredentialsError, must_have
from trust.oauth.keys import SigningKey
from trust.signing import jws
from trust.sources import Source

CLIENT_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
JWT_TYP = "client-authentication+jwt"  # draft-ietf-oauth-rfc7523bis section 4
ASSERTION_SECONDS = 60  # from its making to its end: it is sent at once
SECRET_SECONDS = 10  # for a callback to say the secret
MAX_SECRET_CHARACTERS = 1024

_SECRET = re.compile(r"[\x20-\x7e]+")  # VSCHAR, RFC 6749 appendix A.2


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientProof:
    """What a request carries so that the server knows its client, beside `client_id` and the certificate."""

    form: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class ClientAuthentication(Protocol):
    """One way to prove who a client is."""

    @property
    def method(self) -> str:
        """Its name, as servers list it in `token_endpoint_auth_methods_supported`."""

    async def prove(self, *, client_id: str, issuer: str, credentials: Credentials, now: datetime) -> ClientProof:
        """A proof for one request, made anew each time.

        Raises:
            ConfigurationError: there is no key or secret that can be used.
        """


class TLSCertificate:
    """The certificate of the connection. RFC 8705 section 2.

    Args:
        self_signed: the server knows the certificate itself, and not whom a CA says it belongs to. It is the same on
            the wire; the server must list `self_signed_tls_client_auth`.
    """

    def __init__(self, *, self_signed: bool = False) -> None:
        self.method = "self_signed_tls_client_auth" if self_signed else "tls_client_auth"

    async def prove(self, *, client_id: str, issuer: str, credentials: Credentials, now: datetime) -> ClientProof:
        return ClientProof()


class PrivateKeyJWT:
    """An assertion that the client's private key signs: `private_key_jwt`, RFC 7523 section 2.2 and its update.

    The issuer alone is its audience: an assertion for one server is worth nothing at another. A request takes a new
    one, which ends after a minute, signed by the key that is the current one then.

    Args:
        key: the key that the server knows, or a source of it; by default that of our certificate. Its ID in the
            header (`kid`) is the RFC 7638 thumbprint.
    """

    method = "private_key_jwt"

    def __init__(self, key: SigningKey | Source[SigningKey] | None = None) -> None:
        if key is not None and not isinstance(key, SigningKey):
            must_have("key", key, "current", expected="a SigningKey", do="use SigningKey.from_pem(...)")
        self._key = key

    async def prove(self, *, client_id: str, issuer: str, credentials: Credentials, now: datetime) -> ClientProof:
        key = SigningKey.of(credentials.private_key) if self._key is None else self._key
        assertion = client_assertion(
            key if isinstance(key, SigningKey) else key.current(),
            client_id=client_id,
            issuer=issuer,
            now=now,
            jti=secrets.token_urlsafe(16),
        )
        return ClientProof(form={"client_assertion_type": CLIENT_ASSERTION_TYPE, "client_assertion": assertion})


def client_assertion(key: SigningKey, *, client_id: str, issuer: str, now: datetime, jti: str) -> str:
    """The JWT by which a client proves who it is, to one issuer and once."""
    issued = int(now.timestamp())
    claims = {
        "iss": client_id,
        "sub": client_id,
        "aud": issuer,  # one text, never a list: who else would be in it could use the assertion
        "iat": issued,
        "exp": issued + ASSERTION_SECONDS,
        "jti": jti,
    }
    payload = json.dumps(claims, separators=(",", ":")).encode()
    return jws.sign_compact(payload, key=key.private_key, header={"typ": JWT_TYP, "kid": key.kid})


SecretCallback = Callable[[], "str | Awaitable[str]"]


class ClientSecret:
    """A secret beside the certificate, as a second factor: `client_secret_basic`, RFC 6749 section 2.3.1.

    It is asked for at every request, so that a new one is used as soon as it is there, and is kept nowhere.

    Args:
        callback: says the secret, at most 1024 printable ASCII characters. One that blocks is called in a thread; a
            coroutine function in the event loop. It has 10 seconds.
    """

    method = "client_secret_basic"

    def __init__(self, callback: SecretCallback) -> None:
        must_have("client secret", callback, "__call__", expected="a function that says it", do="use from_file(path)")
        self._callback = callback

    @classmethod
    def from_environment(cls, name: str) -> ClientSecret:
        """The secret in an environment variable."""
        return cls(lambda: os.environ.get(name, ""))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> ClientSecret:
        """The secret in a file, with or without a line end after it. On POSIX, not one that others may touch."""
        return cls(lambda: _read(Path(path)))

    async def prove(self, *, client_id: str, issuer: str, credentials: Credentials, now: datetime) -> ClientProof:
        # Both parts are form-encoded first: a colon in the name, as every SPIFFE ID has, would end it too early.
        pair = f"{quote_plus(client_id)}:{quote_plus(await self._secret())}"
        return ClientProof(headers={"authorization": "Basic " + base64.b64encode(pair.encode("ascii")).decode("ascii")})

    async def _secret(self) -> str:
        failure = ""
        try:
            async with asyncio.timeout(SECRET_SECONDS):
                if inspect.iscoroutinefunction(self._callback):
                    secret = await self._callback()
                else:
                    said = await asyncio.to_thread(self._callback)
                    secret = await said if inspect.isawaitable(said) else said
        except CredentialsError:
            raise
        except Exception as error:
            failure = type(error).__name__
        if failure:  # raised here: what the callback raised may hold the secret, and must not come along as the context
            raise CredentialsError("client secret cannot be had", got=failure, do="look at its callback")
        if not isinstance(secret, str) or len(secret) > MAX_SECRET_CHARACTERS or not _SECRET.fullmatch(secret):
            raise CredentialsError(
                "client secret",
                got="nothing" if not secret else "something else",
                expected=f"1 to {MAX_SECRET_CHARACTERS} printable ASCII characters",
                do="look where it comes from",
            )
        return secret


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            if os.name == "posix" and os.fstat(file.fileno()).st_mode & (stat.S_IRWXO | stat.S_IWGRP):
                raise CredentialsError(
                    f"{path} is open to others", expected="a file that only its owner may read", do="chmod 0600"
                )
            data = file.read(MAX_SECRET_CHARACTERS + 3)  # two for a line end, one to see that there is more
    except OSError as error:
        raise CredentialsError(f"cannot read {path}", got=error.strerror, expected="a file with the secret") from None
    return data.decode("latin-1").removesuffix("\n").removesuffix("\r")
