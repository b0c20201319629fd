"""The post-quantum key exchange with another implementation of it: Go's, and the same programs without it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.interop.fleet import BILLING, DOMAIN, PLANNER, Fleet, answer_of, their_server
from tests.interop.programs import needs, save_bundle
from trust.agent import agent_client
from trust.authorize import exactly
from trust.errors import NotPostQuantum, TrustError
from trust.identity import GROUP_EXTENSION
from trust.tls import key_exchange_of_response, serving

pytestmark = [
    pytest.mark.slow,
    needs("go"),
    pytest.mark.timeout(300),  # the modules may have to be fetched and built first
]

HYBRID = "X25519MLKEM768"
CLASSICAL = ("env", "GODEBUG=tlsmlkem=0")  # Go's own switch


@pytest.fixture(scope="session")
def bundle(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(tmp_path_factory.mktemp("bundle"), fleet.bundles.by_domain[DOMAIN])


async def tells_group(scope: Any, receive: Any, send: Any) -> None:
    group = scope["extensions"][GROUP_EXTENSION].encode()
    headers = [(b"content-length", b"%d" % len(group)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": group})


def test_a_go_client(go: Path, fleet: Fleet, bundle: Path) -> None:
    refused: list[TrustError] = []

    async def main(policy: Any, *wrapper: str) -> str:
        async with serving(
            tells_group,
            source=fleet["billing"].credentials,
            bundles=fleet.bundles,
            authorize=exactly(PLANNER),
            post_quantum=policy,
            on_refused=lambda error, _: refused.append(error),
            lifespan="off",
        ) as live:
            own = fleet["planner"]
            return await answer_of(
                *wrapper, go / "spiffe", "get", live.url, own.chain, own.key, bundle, DOMAIN, BILLING
            )

    assert asyncio.run(main("required")).strip() == HYBRID
    assert asyncio.run(main("preferred", *CLASSICAL)).strip().lower() == "x25519"
    assert refused == []
    assert "handshake failure" in asyncio.run(main("required", *CLASSICAL))
    assert [type(error) for error in refused] == [NotPostQuantum]


def test_a_go_server(go: Path, fleet: Fleet, bundle: Path) -> None:
    own = fleet["billing"]
    command = (go / "spiffe", "serve", own.chain, own.key, bundle, DOMAIN, PLANNER)

    async def main(policy: Any, *wrapper: str) -> str:
        async with (
            their_server(*wrapper, *command) as url,
            agent_client(
                source=fleet["planner"].credentials,
                bundles=fleet.bundles,
                authorize=exactly(BILLING),
                post_quantum=policy,
            ) as http,
        ):
            return key_exchange_of_response(await http.get(url))

    assert asyncio.run(main("required")) == HYBRID
    assert asyncio.run(main("preferred", *CLASSICAL)).lower() == "x25519"
    with pytest.raises(NotPostQuantum):
        asyncio.run(main("required", *CLASSICAL))
