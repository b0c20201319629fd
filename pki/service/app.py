"""The CA over HTTP. Three applications over one CA, for three kinds of listener:

    secure    TLS with the CA's own certificate, client certificates optional: EST, /renewal-info, and /bundle for the
              profile https_spiffe
    plain     HTTP: /ocsp, /metrics
    web       TLS with an operator's certificate of the Web PKI: /bundle for the profile https_web, and nothing else

Besides, secure and plain have /crl (which lists there are), /crl/{name}, /ca/{key id}.cer, /health and /ready.

Nothing is decided here: `pki.authority` does. What signs, or waits for the disk, does so in
threads and never on the event loop.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pki.authority import CertificateAuthority
from pki.service.answers import unavailable
from pki.service.edge import Edge, Observer
from pki.service.enrolment import Enrolment
from pki.service.publications import Publications
from pki.service.upkeep import Upkeep
from trust.audit import AuditSink
from trust.clock import Clock


class Service:
    """The applications of one CA service, for one event loop; `close` when no request is in flight any more."""

    def __init__(self, ca: CertificateAuthority, upkeep: Upkeep, *, audit: AuditSink, clock: Clock) -> None:
        """Args: audit: gets every enrolment and renewal, and every refusal. clock: the time, aware."""
        self._upkeep = upkeep
        self._edge = Edge(audit, _observer(upkeep))
        self._enrolment = Enrolment(ca, self._edge, clock)
        public = Publications(ca, self._edge, upkeep.bundles, clock)
        health = [Route("/health", self._edge.endpoint("health", _alive)), Route("/ready", self._endpoint_ready())]
        routes = [*self._enrolment.routes(), *public.bundle_routes(), *public.signed_routes(), *health]
        self.secure = _Posts(self._enrolment.posts(), _app(routes))
        self.plain = _app([*public.ocsp_routes(), *public.signed_routes(), *health, *self._metrics()])
        self.web = _app(public.bundle_routes())

    def close(self) -> None:
        """Wait for what the threads are doing."""
        self._enrolment.close()
        self._edge.close()

    def _endpoint_ready(self) -> Callable[[Request], object]:
        return self._edge.endpoint("ready", self._ready)

    async def _ready(self, _: Request) -> Response:
        """Whether the CA can do its work: every check by name. Why one fails is in the log, and in `a2a-pki status`."""
        checks = self._upkeep.checks
        ready = bool(checks) and all(check.ok for check in checks)
        content = {"ready": ready, "checks": {check.name: check.ok for check in checks}}
        return JSONResponse(content, headers={"Cache-Control": "no-store"}) if ready else unavailable(content)

    def _metrics(self) -> list[Route]:
        observer = self._edge.observer
        if observer is None:
            return []

        async def metrics(_: Request) -> Response:
            content, content_type = observer.rendered()
            return Response(content, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

        return [Route("/metrics", self._edge.endpoint("metrics", metrics))]


class _Posts:
    """What agents post all the time, past the middleware of Starlette, whose way is as long as a signature."""

    def __init__(self, posts: Mapping[str, ASGIApp], others: ASGIApp) -> None:
        """Args: posts: by their paths."""
        self._posts = posts
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        direct = self._posts.get(scope["path"]) if scope["type"] == "http" else None
        if direct is None:
            await self._others(scope, receive, send)
        elif scope["method"] == "POST":
            await direct(scope, receive, send)
        else:
            refusal = _http_error(Request(scope), HTTPException(405, headers={"Allow": "POST"}))
            await (await refusal)(scope, receive, send)


async def _alive(_: Request) -> Response:
    return JSONResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})


def _app(routes: list[Route]) -> Starlette:
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    app.router.redirect_slashes = False  # a redirect to a host that the request names is nobody's endpoint
    return app


async def _http_error(_: Request, error: Exception) -> Response:
    """Unknown paths and methods, as JSON like every other answer."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    content = {"error": "invalid_request", "request": secrets.token_hex(8)}
    return JSONResponse(content, status_code=error.status_code, headers=error.headers)


def _observer(upkeep: Upkeep) -> Observer | None:
    try:
        from pki.service.metrics import Metrics
    except ModuleNotFoundError as error:  # without the extra there is no /metrics
        if error.name != "prometheus_client":
            raise
        return None
    return Metrics(lambda: upkeep.figures)
