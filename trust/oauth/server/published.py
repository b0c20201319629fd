"""Documents that anybody may have: the server's metadata and its keys, with what caches need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from trust.oauth.server.signing_keys import JWKS_CACHED


class Published:
    """One document at one path: as JSON, with a validator that changes when it does (RFC 9110 section 8.8.3)."""

    def __init__(self, document: Callable[[], Mapping[str, Any]]) -> None:
        """Args: document: the present one, the same object until it changes."""
        self._document = document
        self._shown: Mapping[str, Any] | None = None
        self._body = b""
        self._headers: dict[str, str] = {}

    async def answer(self, request: Request) -> Response:
        document = self._document()
        if document is not self._shown:
            self._body = json.dumps(document, separators=(",", ":")).encode()
            digest = hashlib.sha256(self._body).hexdigest()[:32]
            age = int(JWKS_CACHED.total_seconds())
            self._headers = {"Cache-Control": f"public, max-age={age}", "ETag": f'"{digest}"'}
            self._shown = document
        known = request.headers.get("if-none-match", "")
        if self._headers["ETag"] in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=self._headers)
        return Response(self._body, headers=self._headers, media_type="application/json")
