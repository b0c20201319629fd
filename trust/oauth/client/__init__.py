"""Where an agent's access tokens come from: `TokenSource`."""

from trust.oauth.client.asks import Token
from trust.oauth.client.source import BearerAuth, TokenSource

__all__ = ["BearerAuth", "Token", "TokenSource"]
