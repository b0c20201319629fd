"""Mutual TLS between agents: contexts, a uvicorn server, an httpx transport."""

from trust.tls.client import AgentTransport, key_exchange_of_response, peer_of_response
from trust.tls.engine import TrustContext, client_context, server_context
from trust.tls.register import Limits
from trust.tls.server import serve, serving, uvicorn_config
from trust.tls.transport import Deadlines
from trust.tls.workers import serve_workers

__all__ = [
    "AgentTransport",
    "Deadlines",
    "Limits",
    "TrustContext",
    "client_context",
    "key_exchange_of_response",
    "peer_of_response",
    "serve",
    "serve_workers",
    "server_context",
    "serving",
    "uvicorn_config",
]
