"""Our own keys: private ones that sign tokens, and the set that publishes their public halves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

from trust import private_keys
from trust.errors import ConfigurationError
from trust.oauth.keys.jwks import algorithms_of, public_members, thumbprint
from trust.private_keys import ClassicalKey, PrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A private key that signs tokens, with its algorithm and its key ID (RFC 7638 thumbprint)."""

    kid: str
    alg: str
    private_key: ClassicalKey = field(repr=False)

    @classmethod
    def generate(cls) -> SigningKey:
        """A new P-256 key, for ES256."""
        return cls.of(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def of(cls, private_key: PrivateKey) -> SigningKey:
        """Wrap a key.

        Raises:
            ConfigurationError: the key is not EC P-256, EC P-384 or Ed25519.
        """
        if not isinstance(private_key, ClassicalKey):
            raise ConfigurationError("signing key", got=type(private_key).__name__, expected="EC P-256/P-384, Ed25519")
        members = public_members(private_key.public_key())
        algorithms = algorithms_of(members)
        if not algorithms:
            raise ConfigurationError("signing key", got="another curve", expected="P-256, P-384 or Ed25519")
        return cls(kid=thumbprint(members), alg=algorithms[0], private_key=private_key)

    @classmethod
    def from_pem(cls, pem: bytes, password: bytes | None) -> SigningKey:
        """Read a PKCS#8 PEM key; a password exactly when it is encrypted.

        Raises:
            ConfigurationError: (or its WrongPassword and CredentialsError) as `private_keys.read`, and as `of`.
        """
        return cls.of(private_keys.read(pem, password))

    def to_pem(self, password: bytes) -> bytes:
        """The key as PKCS#8 PEM, encrypted with the password; `private_keys.write`."""
        return private_keys.write(self.private_key, password)

    @property
    def public_jwk(self) -> dict[str, str]:
        return {**public_members(self.private_key.public_key()), "kid": self.kid, "use": "sig", "alg": self.alg}


def public_jwks(keys: Iterable[SigningKey]) -> dict[str, list[dict[str, str]]]:
    """The JWKS that publishes these keys: their public halves, and nothing else."""
    return {"keys": [key.public_jwk for key in keys]}
