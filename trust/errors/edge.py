"""The edge: what is refused before anything is verified."""

from __future__ import annotations

from trust.errors.base import TrustError


class RequestMalformed(TrustError):
    check = "request.form"


class WebSocketRefused(TrustError):
    check = "request.websocket"
    status = 403
    code = "access_denied"


class RequestTooSlow(TrustError):
    check = "request.time"
    status = 408


class RequestTooLarge(TrustError):
    check = "request.size"
    status = 413


class WebhookUnknown(TrustError):
    check = "push.path"
    status = 404
    code = "not_found"


class WebhookRefused(TrustError):
    """Two readers of the URL could take it for different places, so no signature can name it."""

    check = "push.webhook"
