"""npm `oauth4webapi`, a client that others wrote, over mutual TLS to our authorization server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.authority import ACCESS_TOKEN, BILLING, CLIENTS, LEDGER, PLANNER, Trail
from tests.forge import Forge
from tests.interop.programs import needs, save
from tests.ports import free_port
from trust.authorize import members_of
from trust.clock import wall_clock
from trust.oauth.dpop import verify_proof
from trust.oauth.keys import SigningKey, StaticKeys
from trust.oauth.presented import presented_token
from trust.oauth.server import create_app
from trust.oauth.server.clients import ClientRegistry
from trust.oauth.server.store import Store
from trust.oauth.tokens import TokenValidator
from trust.private_keys import generate
from trust.tls.server import serving

AUTHORITY = "spiffe://fleet.example/authority"
SCOPE, NARROWER = "read:ledger.eu delegate:billing temporal:20min", "read:ledger.eu temporal:20min"
SECONDS = 60


@pytest.fixture(params=["P-256", "P-384", "Ed25519"])
def told(request: pytest.FixtureRequest, js: Path, tmp_path: Path) -> dict[str, Any]:
    """What the client says it got, of a server with a signing key of each kind."""
    told: dict[str, Any] = asyncio.run(_told(request.param, js, tmp_path))
    return told


async def _told(kind: str, js: Path, folder: Path) -> Any:
    forge, trail = Forge(), Trail()
    agents = []
    for agent in (PLANNER, BILLING):
        chain, key = save(folder, forge.leaf(agent), agent.rpartition("/")[2])
        agents.append({"id": agent, "chain": str(chain), "key": str(key)})
    (folder / "roots.pem").write_bytes(forge.root.public_bytes(Encoding.PEM))
    port = free_port()
    issuer = f"https://127.0.0.1:{port}"
    store = Store(f"sqlite:///{folder / 'oauth.db'}")
    app = create_app(
        issuer=issuer,
        clients=ClientRegistry(CLIENTS),
        store=store,
        keys=[SigningKey.of(generate(kind))],
        audit=trail,
    )
    facts = {
        "issuer": issuer,
        "server": AUTHORITY,
        "roots": str(folder / "roots.pem"),
        "agents": agents,
        "ledger": LEDGER,
        "scope": SCOPE,
        "narrower": NARROWER,
    }
    source = forge.leaf(AUTHORITY)
    try:
        async with serving(app, source=source, bundles=forge.bundles, authorize=members_of("fleet.example"), port=port):
            node = await asyncio.create_subprocess_exec(
                "node", "oauth4webapi.mjs", json.dumps(facts), cwd=js, stdout=-1, stderr=-1
            )
            async with asyncio.timeout(SECONDS):
                out, err = await node.communicate()
    finally:
        store.close()
    assert node.returncode == 0, (err.decode(), trail.records[-3:])
    return json.loads(out)


def check_bound_to_key(bound: dict[str, Any], jwks: dict[str, Any]) -> None:
    """The foreign client's proof and our token belong together, for us as for it."""
    now, claims = wall_clock(), bound["claims"]
    presented = presented_token([bound["headers"]["authorization"]], proofs=[bound["headers"]["dpop"]], dpop=True)
    proof = verify_proof(str(presented.proof), method="POST", url=bound["url"], now=now, token=presented.token)
    assert (bound["token_type"], claims["cnf"]) == ("dpop", {"jkt": proof.thumbprint})
    validator = TokenValidator(issuer=claims["iss"], audience=BILLING, keys=StaticKeys(jwks), bindings=["dpop"])
    assert validator.validate(presented.token, peer=None, now=now, proof=proof).subject == PLANNER


@needs("node", "npm")
def test_a_foreign_client_lives_through_the_whole_life_of_a_token(told: dict[str, Any]) -> None:
    first, second = told["first"], told["second"]
    assert (first["token_type"], first["scope"]) == ("bearer", SCOPE)
    assert 500 < first["expires_in"] <= 600
    assert first["claims"]["sub"] == PLANNER
    assert first["claims"]["aud"] in (BILLING, [BILLING])
    assert (second["issued_token_type"], second["scope"]) == (ACCESS_TOKEN, NARROWER)
    assert (second["claims"]["sub"], second["claims"]["act"]) == (PLANNER, {"sub": BILLING})
    assert set(second["claims"]["cnf"]) == {"x5t#S256"}
    for bound in told["bound"]:
        check_bound_to_key(bound, told["published"])
    # RFC 7662, and RFC 9701 with the signature verified
    assert told["living"]["type"] == "application/json"
    claims = told["living"]["claims"]
    assert (claims["active"], claims["sub"], claims["jti"]) == (True, PLANNER, second["claims"]["jti"])
    assert told["signed"]["type"] == "application/token-introspection+jwt"
    assert told["signed"]["claims"]["jti"] == second["claims"]["jti"]
    assert told["foreign"]["claims"] == {"active": False}  # it is neither the planner's token nor for the planner
    # RFC 7009: the parent was revoked by its holder, and took the child with it.
    assert told["revoked"]["claims"] == {"active": False}
    assert told["refusals"] == {
        "scope": {"name": "ResponseBodyError", "status": 400, "error": "invalid_scope"},
        "target": {"name": "ResponseBodyError", "status": 400, "error": "invalid_target"},
        "client": {"name": "ResponseBodyError", "status": 401, "error": "invalid_client"},
        "two resources": {"name": "ResponseBodyError", "status": 400, "error": "invalid_target"},
        "revoked subject": {"name": "ResponseBodyError", "status": 400, "error": "invalid_request"},
        "another audience": {"name": "JWTClaimValidationFailed"},
    }
