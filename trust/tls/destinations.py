"""Who may answer where: one rule for every server, or a rule for each destination."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import certifi
import httpx

from trust.authorize import Authorizer, a_rule, any_of
from trust.errors import ConfigurationError, DestinationRefused

Origin = tuple[str, int]  # host and port

# An agent calls the same few addresses, and to read one is a tenth of what httpx does for a call.
KEPT_URLS = 128
MAX_KEPT_URL = 2048  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class WebPKI:
    """A server outside any trust domain, known by its host name alone, as browsers know it.

    It gets no certificate of ours and no proof who we are: no signature either, unless the signer's audiences name its
    origin. Nothing is known about it but that it has the name. Its revocation is not checked.

    Args:
        roots: certificates in PEM of the authorities that may vouch for the name; None for those of `certifi`.
    """

    roots: str | None = None

    def transport(self, proxy: str | None) -> httpx.AsyncHTTPTransport:
        """A transport that knows these roots, checks names, and takes nothing from the environment."""
        return httpx.AsyncHTTPTransport(verify=self.context(), trust_env=False, proxy=proxy)

    def context(self) -> ssl.SSLContext:
        """For clients: it knows these roots, and checks names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and name; `create_default_context` logs keys
        if self.roots is None:
            context.load_verify_locations(cafile=certifi.where())
        else:
            context.load_verify_locations(cadata=self.roots)
        return context


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
        ConfigurationError: an origin is none, or is there twice; a rule is none; or no destination is an agent.
    """

    def __init__(self, authorize: Authorizer | Destinations) -> None:
        self.everybody: Authorizer
        self.own: dict[Origin, Authorizer] = {}
        self.web: dict[Origin, WebPKI] = {}
        self._each = isinstance(authorize, Mapping)
        if not isinstance(authorize, Mapping):
            self.everybody = a_rule(authorize)
            return
        for text, rule in authorize.items():
            origin = destination(text)
            if origin in self.own or origin in self.web:
                raise ConfigurationError("destination is there twice", got=text)
            if isinstance(rule, WebPKI):
                self.web[origin] = rule
            else:
                self.own[origin] = a_rule(rule)
        if not self.own:
            raise ConfigurationError(
                "no destination is an agent", expected="at least one", do="for web servers alone use httpx.AsyncClient"
            )
        self.everybody = any_of(*self.own.values())

    def origin(self, url: httpx.URL) -> Origin:
        """Where a request to this URL goes.

        Raises:
            ConfigurationError: not https, or port 0.
            DestinationRefused: nowhere, for destinations have their rules and this one has none.
        """
        if url.scheme != "https":
            host = url.raw_host.decode("ascii")  # `host` decodes xn-- labels, and not every label can be
            raise ConfigurationError("URL is not protected", got=f"{url.scheme}://{host}", expected="https://")
        origin = origin_of(url)
        if self._each and origin not in self.own and origin not in self.web:
            raise DestinationRefused(
                "no rule for this destination",
                got=_text(origin),
                expected=" or ".join(map(_text, (*self.own, *self.web))),
                do="add it to the destinations in `authorize`",
            )
        return origin


def web_origins(authorize: Authorizer | Destinations) -> list[str]:
    """Which of the destinations are web servers, as `https://host` or `https://host:port`."""
    return [_text(origin) for origin in Rules(authorize).web]


def url_of(text: str) -> httpx.URL:
    """As `httpx.URL(text)`; one that was read lately is not read again."""
    return _kept(text) if len(text) <= MAX_KEPT_URL else httpx.URL(text)


@functools.lru_cache(maxsize=KEPT_URLS)
def _kept(text: str) -> httpx.URL:
    return httpx.URL(text)


def origin_of(url: httpx.URL, port: int = 443) -> Origin:
    """Where a URL leads.

    Args:
        port: where the URL names none.

    Raises:
        ConfigurationError: port 0, at which nobody listens.
    """
    if url.port == 0:
        raise ConfigurationError("URL leads nowhere", got="port 0", expected="a port from 1 to 65535")
    return url.raw_host.decode("ascii"), port if url.port is None else url.port


def destination(text: str) -> Origin:
    """An origin that the configuration names, `https://host` or `https://host:port`.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        url = httpx.URL(text)
        host = url.host
    except (httpx.InvalidURL, TypeError, ValueError):  # ValueError: an xn-- label that is no IDN
        url, host = httpx.URL(""), ""
    extra = url.userinfo or url.query or url.fragment or url.raw_path != b"/"
    if url.scheme != "https" or not host or extra:
        raise ConfigurationError("destination", got=text, expected="https://host or https://host:port, without a path")
    return origin_of(url)


def _text(origin: Origin) -> str:
    host, port = origin
    host = f"[{host}]" if ":" in host else host
    return f"https://{host}" + ("" if port == 443 else f":{port}")
