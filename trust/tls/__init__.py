"""Mutual TLS between agents: contexts, a uvicorn server, an httpx transport."""

from trust.tls.client import AgentTransport, peer_of_response
from trust.tls.engine import TrustContext, client_context, server_context
from trust.tls.server import serve, serving, uvicorn_config
from trust.tls.transport import Deadlines

__all__ = [
    "AgentTransport",
    "Deadlines",
    "TrustContext",
    "client_context",
    "peer_of_response",
    "serve",
    "server_context",
    "serving",
    "uvicorn_config",
]
