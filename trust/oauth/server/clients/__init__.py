"""Who may ask the authorization server for tokens: the declared clients, patterns of many, and their secrets."""

from trust.oauth.server.clients.client import DEFAULT_LIFETIME, Client, ClientPattern
from trust.oauth.server.clients.patterns import AgentPattern
from trust.oauth.server.clients.registry import BROKEN, ClientRegistry, client_of, clients_of
from trust.oauth.server.clients.secrets import SecretDigest, basic_credentials, digest_of, is_one_of, new_secret

__all__ = [
    "BROKEN",
    "DEFAULT_LIFETIME",
    "AgentPattern",
    "Client",
    "ClientPattern",
    "ClientRegistry",
    "SecretDigest",
    "basic_credentials",
    "client_of",
    "clients_of",
    "digest_of",
    "is_one_of",
    "new_secret",
]
