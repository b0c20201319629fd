"""Who may answer where: one rule for every server, or a rule for each destination."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import certifi
import httpx

from trust.authorize import Authorizer, any_of
from trust.errors import ConfigurationError, DestinationRefused

Origin = tuple[str, int]  # host and port


@dataclass(frozen=True, slots=True, kw_only=True)
class WebPKI:
    """A server outside any trust domain, known by its host name alone, as browsers know it.

    It gets no certificate of ours and no proof who we are; nothing is known about it but that it has the name. Its
    revocation is not checked.

    Args:
        roots: certificates in PEM of the authorities that may vouch for the name; None for those of `certifi`.
    """

    roots: str | None = None

    def transport(self, proxy: str | None) -> httpx.AsyncHTTPTransport:
        """A transport that knows these roots, checks names, and takes nothing from the environment."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and name; `create_default_context` logs keys
        if self.roots is None:
            context.load_verify_locations(cafile=certifi.where())
        else:
            context.load_verify_locations(cadata=self.roots)
        return httpx.AsyncHTTPTransport(verify=context, trust_env=False, proxy=proxy)


Destinations = Mapping[str, Authorizer | WebPKI]


class Rules:
    """The rules of a client, by destination.

    Args:
        authorize: one rule for every server, or for each origin (`https://host` or `https://host:port`) its own. With
            these, a request to any other origin is refused.

    Attributes:
        everybody: what every agent has to pass, wherever it answers.
        own: what the agent at an origin has to pass besides.
        web: the origins of web servers.

    Raises:
        ConfigurationError: an origin is none, is there twice, or no destination is an agent.
    """

    def __init__(self, authorize: Authorizer | Destinations) -> None:
        self.everybody: Authorizer
        self.own: dict[Origin, Authorizer] = {}
        self.web: dict[Origin, WebPKI] = {}
        self._each = isinstance(authorize, Mapping)
        if not isinstance(authorize, Mapping):
            self.everybody = authorize
            return
        for text, rule in authorize.items():
            origin = _parse(text)
            if origin in self.own or origin in self.web:
                raise ConfigurationError("destination is there twice", got=text)
            if isinstance(rule, WebPKI):
                self.web[origin] = rule
            else:
                self.own[origin] = rule
        if not self.own:
            raise ConfigurationError(
                "no destination is an agent", expected="at least one", do="for web servers alone use httpx.AsyncClient"
            )
        self.everybody = any_of(*self.own.values())

    def origin(self, url: httpx.URL) -> Origin:
        """Where a request to this URL goes.

        Raises:
            ConfigurationError: not https.
            DestinationRefused: nowhere, for destinations have their rules and this one has none.
        """
        if url.scheme != "https":
            raise ConfigurationError("URL is not protected", got=f"{url.scheme}://{url.host}", expected="https://")
        origin = _origin(url)
        if self._each and origin not in self.own and origin not in self.web:
            raise DestinationRefused(
                "no rule for this destination",
                got=_text(origin),
                expected=" or ".join(map(_text, (*self.own, *self.web))),
                do="add it to the destinations in `authorize`",
            )
        return origin


def _origin(url: httpx.URL) -> Origin:
    return url.raw_host.decode("ascii"), url.port or 443


def _parse(text: str) -> Origin:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL("")
    extra = url.userinfo or url.query or url.fragment or url.raw_path != b"/"
    if url.scheme != "https" or not url.host or extra:
        raise ConfigurationError("destination", got=text, expected="https://host or https://host:port, without a path")
    return _origin(url)


def _text(origin: Origin) -> str:
    host, port = origin
    host = f"[{host}]" if ":" in host else host
    return f"https://{host}" + ("" if port == 443 else f":{port}")
