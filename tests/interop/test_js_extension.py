"""An unsigned call of @a2a-js/sdk to an agent that requires signatures: its own error, in both bindings."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.interop.fleet import answer_of
from tests.interop.programs import needs, save
from tests.trust.test_extension import agent
from tests.trust.test_middleware import W, bearer
from trust.extension import URI

pytestmark = [pytest.mark.slow, needs("node", "npm")]


def test_the_sdk_reads_our_refusal_as_its_own_error(js: Path, tmp_path: Path) -> None:
    chain, key = save(tmp_path, W.planner, "planner")
    roots = tmp_path / "roots.pem"
    roots.write_bytes(W.forge.root.public_bytes(Encoding.PEM))

    async def main() -> tuple[str, list[str]]:
        async with agent() as (_, card, came):
            text = json.dumps(card).replace("127.0.0.1", "localhost")  # the name in the certificate
            token = bearer().removeprefix("Bearer ")
            return await answer_of("node", js / "unsigned.mjs", chain, key, roots, token, text), came

    said, came = asyncio.run(main())
    message = f"Extension support required: {URI}"
    assert said.splitlines() == [
        f"JsonRpcExtensionSupportRequiredError: {message}",
        f"RestExtensionSupportRequiredError: {message}",
    ]
    assert came == ["/rpc", "/rest/message:send"]
