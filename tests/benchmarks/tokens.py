"""Access token validation, for the first time and repeated, beside one raw ES256 verification."""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tests.benchmarks.harness import Row
from tests.forge import Forge
from trust.credentials import Credentials
from trust.identity import PeerIdentity
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.oauth.tokens import TokenValidator, sign_access_token

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
ISSUER, AUDIENCE = "https://auth.fleet.example", "spiffe://fleet.example/billing"


def rows() -> list[Row]:
    peer, key = _peer(Forge().leaf("/planner")), SigningKey.generate()
    issued = int(NOW.timestamp())
    claims = {
        "iss": ISSUER,
        "sub": str(peer.agent_id),
        "aud": AUDIENCE,
        "client_id": str(peer.agent_id),
        "iat": issued,
        "exp": issued + 900,
        "jti": "c2l4dGVlbiBieXRlcyEhIQ",
        "scope": "agent:execute read:customers.*",
        "cnf": {"x5t#S256": peer.thumbprint},
    }
    token = sign_access_token(claims, key)
    keys = StaticKeys(public_jwks([key]))

    def validator() -> TokenValidator:
        return TokenValidator(issuer=ISSUER, audience=AUDIENCE, keys=keys)

    def first() -> None:
        validator().validate(token, peer=peer, now=NOW)  # a new validator remembers nothing

    warm = validator()

    def repeated() -> None:
        warm.validate(token, peer=peer, now=NOW)

    data = token.rpartition(".")[0].encode()
    signature = key.private_key.sign(data, ec.ECDSA(hashes.SHA256()))  # type: ignore[call-arg]
    public_key, algorithm = key.private_key.public_key(), ec.ECDSA(hashes.SHA256())

    def raw() -> None:
        public_key.verify(signature, data, algorithm)  # type: ignore[call-arg]

    return [
        Row(name="token, first", ours=first, peer_name="raw ES256 verify", peer=raw, goal=1.5),
        # 5 us, where a raw verification takes 80.
        Row(name="token, repeated", ours=repeated, peer_name="raw ES256 verify", peer=raw, goal=0.06),
    ]


def _peer(credentials: Credentials) -> PeerIdentity:
    certificate = credentials.certificate
    return PeerIdentity(
        agent_id=credentials.agent_id,
        thumbprint=credentials.thumbprint,
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        chain=tuple(credentials.chain_der),
        public_key=certificate.public_key(),
    )
