"""npm oidc-provider, running: an authorization server that others wrote, and the agents that it knows."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from jwcrypto.jwk import JWK

from tests.forge import Forge
from tests.interop.fleet import BILLING, DOMAIN, OTHER, PLANNER
from tests.interop.programs import save
from trust.authorize import exactly
from trust.bundles import TrustBundles
from trust.credentials import Credentials
from trust.identity import PeerIdentity
from trust.oauth.claims import AccessToken
from trust.oauth.client import TokenSource
from trust.oauth.keys import RemoteKeys, SigningKey
from trust.oauth.metadata import TOKEN_EXCHANGE
from trust.oauth.tokens import TokenValidator
from trust.peers import PeerVerifier
from trust.tls.client import AgentTransport

AUTHORITY = f"spiffe://{DOMAIN}/authority"
SCOPES = ("agent:execute", "read:ledger.eu")
ORIGIN = "https://billing.fleet.example"
SECRET = "a secret: with %signs+and/slashes"
ALGORITHMS = ("ES256", "ES384", "PS256", "Ed25519", "EdDSA")
OPAQUE = f"spiffe://{DOMAIN}/opaque"


def audience(alg: str) -> str:
    return f"spiffe://{DOMAIN}/signed-by-{alg.lower()}"


def signing_key(private_key: Any, **members: str) -> dict[str, Any]:
    jwk = JWK.from_pyca(private_key)
    return {**jwk.export_private(as_dict=True), "kid": jwk.thumbprint(), "use": "sig", **members}


def p256() -> dict[str, Any]:
    return signing_key(ec.generate_private_key(ec.SECP256R1()))


KEYS = [
    p256(),
    signing_key(ec.generate_private_key(ec.SECP384R1())),
    signing_key(rsa.generate_private_key(65537, 2048)),
    signing_key(ed25519.Ed25519PrivateKey.generate()),
]


class Provider:
    """The running server, the agents that it knows, and what a test may do to it."""

    def __init__(self, js: Path, folder: Path, ca: Any) -> None:
        self.js = js
        self.bundles = TrustBundles.of(ca.bundle())
        self.planner, self.other = ca.issue_credentials(PLANNER), ca.issue_credentials(OTHER)
        self.billing = ca.issue_credentials(BILLING)
        self.impostor = Forge(DOMAIN).leaf("/planner")
        authority = ca.issue_credentials(AUTHORITY, dns_names=["localhost"], ip_addresses=["127.0.0.1"])
        certificate, key = save(folder, authority, "authority")
        root = folder / "root.pem"
        root.write_bytes(ca.root.public_bytes(Encoding.PEM))
        own = SigningKey.of(self.planner.private_key)
        self.configuration = {
            "certificate": str(certificate),
            "key": str(key),
            "root": str(root),
            "port": 0,
            "keys": KEYS,
            "scopes": " ".join(SCOPES),
            "resources": {
                OPAQUE: {"accessTokenFormat": "opaque"},
                **{
                    audience(alg): {"accessTokenFormat": "jwt", "jwt": {"sign": {"alg": alg}}}
                    for alg in (*ALGORITHMS, "RS256")
                },
            },
            "clients": [
                client(PLANNER, "tls_client_auth", tls_client_auth_san_uri=PLANNER),
                client(BILLING, "tls_client_auth", tls_client_auth_san_uri=BILLING, grant_types=[TOKEN_EXCHANGE]),
                client(
                    "by-proof",
                    "tls_client_auth",
                    tls_client_auth_san_uri=PLANNER,
                    tls_client_certificate_bound_access_tokens=False,
                    dpop_bound_access_tokens=True,
                ),
                client("by-certificate", "self_signed_tls_client_auth", jwks=certificate_of(self.impostor)),
                client("by-key", "private_key_jwt", jwks={"keys": [own.public_jwk]}),
                client("by-secret", "client_secret_basic", client_secret=SECRET),
            ],
        }
        self.start()

    def start(self) -> None:
        command = ["node", "oidc_provider.mjs"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=self.js, stdin=pipe, stdout=pipe, text=True)
        self.configuration["port"] = int(self.tell(self.configuration))
        self.issuer = f"https://localhost:{self.configuration['port']}"

    def tell(self, value: Any) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(value) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "node ended"
        return line

    def change_keys(self, *keys: dict[str, Any]) -> None:
        assert self.tell(list(keys)) == "changed\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    @contextlib.asynccontextmanager
    async def http(self, credentials: Credentials | None = None) -> AsyncIterator[httpx.AsyncClient]:
        transport = AgentTransport(credentials or self.planner, self.bundles, exactly(AUTHORITY))
        async with httpx.AsyncClient(transport=transport) as http:
            yield http

    def tokens(self, http: httpx.AsyncClient, resource: str = audience("ES256"), **changes: Any) -> TokenSource:
        options = {"scopes": SCOPES, "source": self.planner, "origins": [ORIGIN], **changes}
        return TokenSource(issuer=self.issuer, resource=resource, http=http, **options)

    def validator(self, http: httpx.AsyncClient, resource: str = audience("ES256"), **options: Any) -> Resource:
        keys = RemoteKeys.of_issuer(self.issuer, http)
        return Resource(TokenValidator(issuer=self.issuer, audience=resource, keys=keys, **options), self)

    def peer(self, credentials: Credentials) -> PeerIdentity:
        return PeerVerifier(self.bundles).verify(credentials.chain_der, now=datetime.now(UTC), usage="client")


class Resource:
    """An agent that takes tokens of the provider."""

    def __init__(self, validator: TokenValidator, provider: Provider) -> None:
        self.validator = validator
        self.planner = provider.peer(provider.planner)

    async def validate(self, token: str, **changes: Any) -> AccessToken:
        options = {"peer": self.planner, "now": datetime.now(UTC), **changes}
        await self.validator.prepare(token, now=options["now"])
        return self.validator.validate(token, **options)


def client(name: str, method: str, **members: Any) -> dict[str, Any]:
    return {
        "client_id": name,
        "token_endpoint_auth_method": method,
        "grant_types": ["client_credentials"],
        "response_types": [],
        "redirect_uris": [],
        "tls_client_certificate_bound_access_tokens": True,
        **members,
    }


def certificate_of(credentials: Credentials) -> dict[str, Any]:
    x5c = [base64.b64encode(credentials.chain_der[0]).decode()]
    return {"keys": [{**SigningKey.of(credentials.private_key).public_jwk, "x5c": x5c}]}
