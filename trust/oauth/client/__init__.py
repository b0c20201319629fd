"""Where an agent's access tokens come from: `TokenSource`."""

from trust.oauth.client.a2a_sdk import interceptor_for_a2a
from trust.oauth.client.asks import Token
from trust.oauth.client.authentication import ClientAuthentication, ClientSecret, PrivateKeyJWT, TLSCertificate
from trust.oauth.client.chaining import ChainedTokens
from trust.oauth.client.source import BearerAuth, TokenSource

__all__ = [
    "BearerAuth",
    "ChainedTokens",
    "ClientAuthentication",
    "ClientSecret",
    "PrivateKeyJWT",
    "TLSCertificate",
    "Token",
    "TokenSource",
    "interceptor_for_a2a",
]
