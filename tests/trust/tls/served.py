"""What the workers of a server import: each makes its own server from the files of a folder."""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path
from typing import Any

from trust.authorize import members_of
from trust.errors import ConfigurationError
from trust.files import WatchedBundles, WatchedCredentials
from trust.tls import uvicorn_config
from trust.tls.server import TrustConfig

FOLDER = "A2A_TRUST_TEST_FOLDER"


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/slow":
        (Path(os.environ[FOLDER]) / f"under-way-{uuid.uuid4()}").touch()
        await asyncio.sleep(1)
    body = b"%d" % os.getpid()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def agent() -> TrustConfig:
    folder = Path(os.environ[FOLDER])
    return uvicorn_config(
        app,
        source=WatchedCredentials(folder),
        bundles=WatchedBundles(folder / "bundle.json"),
        authorize=members_of("fleet.example"),
        lifespan="off",
    )


def broken() -> TrustConfig:
    raise ConfigurationError("no certificate today", do="enrol")


def other() -> Any:
    return object()
