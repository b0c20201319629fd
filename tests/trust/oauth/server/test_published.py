"""What anybody may have is what it is now, and caches are told when it has changed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.authority import Authority, Clock, Trail
from trust.oauth.keys import SigningKey, public_jwks
from trust.oauth.server import create_app
from trust.oauth.server.signing_keys import KeyRing
from trust.sources import Live


def test_after_a_rotation_the_keys_are_another_document(tmp_path: Path) -> None:
    async def work() -> None:
        first, second = SigningKey.generate(), SigningKey.generate()
        keys = Live(KeyRing.of([first]))
        authority = Authority(tmp_path)
        authority.app = create_app(
            issuer=authority.issuer,
            clients=authority.clients,
            store=authority.store,
            keys=keys,
            audit=Trail(),
            clock=Clock(),
        )
        async with authority.http(None) as http:
            before = await http.get("/jwks")
            assert before.json() == public_jwks([first])
            known = {"if-none-match": before.headers["etag"]}
            assert (await http.get("/jwks", headers=known)).status_code == 304
            keys.replace(KeyRing.of([second, first]))
            after = await http.get("/jwks", headers=known)
            assert (after.status_code, after.json()) == (200, public_jwks([second, first]))
            assert after.headers["etag"] != before.headers["etag"]

    asyncio.run(work())
