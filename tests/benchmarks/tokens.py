"""Access token validation, for the first time and repeated, beside one raw ES256 verification."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tests.benchmarks.harness import Row, compare, medians
from tests.forge import Forge
from trust.credentials import Credentials
from trust.identity import PeerIdentity
from trust.oauth.claims import sign_access_token
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.oauth.tokens import TokenValidator

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
ISSUER, AUDIENCE = "https://auth.fleet.example", "spiffe://fleet.example/billing"
VISITS = 100  # of distinct tokens to one validator


def rows() -> list[Row]:
    peer, key = _peer(Forge().leaf("/planner")), SigningKey.generate()
    keys = StaticKeys(public_jwks([key]))
    tokens = [_token(peer, key, number) for number in range(VISITS)]

    def visits() -> Iterator[tuple[TokenValidator, str]]:
        while True:
            validator = TokenValidator(issuer=ISSUER, audience=AUDIENCE, keys=keys)  # one that remembers nothing
            for token in tokens:
                yield validator, token

    visit = visits()

    def first() -> None:
        validator, token = next(visit)
        validator.validate(token, peer=peer, now=NOW)

    validator, known = next(visit)

    def repeated() -> None:
        validator.validate(known, peer=peer, now=NOW)

    data = known.rpartition(".")[0].encode()
    public_key: Any = key.private_key.public_key()
    private_key: Any = key.private_key
    algorithm = ec.ECDSA(hashes.SHA256())
    signature = private_key.sign(data, algorithm)

    def raw() -> None:
        public_key.verify(signature, data, algorithm)

    (again,) = medians(repeated)
    return [
        compare("token, first time", first, "raw ES256 verify", raw, "<= 1.5x"),
        Row(name="token, repeated", ours=again, peer_name="the goal", peer=5e-6, goal="<= 1x"),
    ]


def _token(peer: PeerIdentity, key: SigningKey, number: int) -> str:
    issued = int(NOW.timestamp())
    claims = {
        "iss": ISSUER,
        "sub": str(peer.agent_id),
        "aud": AUDIENCE,
        "client_id": str(peer.agent_id),
        "iat": issued,
        "exp": issued + 900,
        "jti": f"{number:022}",
        "scope": "agent:execute read:customers.*",
        "cnf": {"x5t#S256": peer.thumbprint},
    }
    return sign_access_token(claims, key)


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
