"""The keys that tokens are signed with: our own private ones, and an issuer's public ones (JWKS, RFC 7517).

The keys that are pinned for an agent (`trust.signing.pinned`) are such a set, too; only they can be ML-DSA (RFC 9964).
"""

from trust.oauth.keys.jwks import KeySource, StaticKeys
from trust.oauth.keys.remote import RemoteKeys
from trust.oauth.keys.signing_key import SigningKey, public_jwks

__all__ = ["KeySource", "RemoteKeys", "SigningKey", "StaticKeys", "public_jwks"]
