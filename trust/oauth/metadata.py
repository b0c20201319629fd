"""What server, client and Agent Card agree on: an issuer's name, where its metadata is (RFC 8414), and wire names."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import httpx

from trust.errors import ConfigurationError

WELL_KNOWN = "/.well-known/oauth-authorization-server"


CLIENT_CREDENTIALS = "client_credentials"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 - a name, not a token
ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name, not a token

MAX_URI_CHARACTERS = 2048

_URI = re.compile(r"[a-z][a-z0-9+.-]*:[\x21\x24-\x3b\x3d\x3f-\x5b\x5d\x5f\x61-\x7a\x7e]+", re.ASCII)


def check_issuer(issuer: str) -> str:
    """Return `issuer` when it can be an issuer identifier: https, a host, no query and no fragment.

    Raises:
        ConfigurationError: it cannot. RFC 8414 section 2.
    """
    url = _url(issuer)
    if url is None or url.scheme != "https" or not url.host or url.userinfo or set(issuer) & set("?# "):
        raise ConfigurationError("issuer", got=issuer, expected="an https URL without query or fragment")
    return issuer


def issuer_path(issuer: str) -> str:
    """The path of an issuer without its final slash: empty for most."""
    return httpx.URL(issuer).path.rstrip("/")


def metadata_url(issuer: str) -> str:
    """Where the metadata of an issuer is: the well-known part goes before its path. RFC 8414 section 3.1."""
    return f"{origin_of(issuer)}{WELL_KNOWN}{issuer_path(issuer)}"


def origin_of(url: str | httpx.URL) -> str:
    """The https origin of a URL, in one spelling: lower case, default port left out.

    Raises:
        ConfigurationError: not an https URL with a host.
    """
    parsed = _url(url)
    if parsed is None or parsed.scheme != "https" or not parsed.host:
        raise ConfigurationError("URL", got=url, expected="https://host[:port]/...")
    host = parsed.raw_host.decode("ascii").lower()
    return f"https://{f'[{host}]' if ':' in host else host}" + ("" if parsed.port is None else f":{parsed.port}")


def is_resource(uri: str) -> bool:
    """Whether `uri` can be a resource indicator: absolute, no fragment (RFC 8707 section 2), nothing unprintable."""
    if len(uri) > MAX_URI_CHARACTERS or not _URI.fullmatch(uri):
        return False
    try:
        parts = urlsplit(uri)
        return bool(parts.netloc or parts.path) and parts.username is None
    except ValueError:  # an unclosed bracket in the host
        return False


def _url(text: str | httpx.URL) -> httpx.URL | None:
    try:
        url = httpx.URL(text)
        # What cannot be in a host, such as an unclosed bracket or a space, httpx percent-encodes.
        return None if "%" in url.host else url
    except (httpx.InvalidURL, TypeError, ValueError):  # ValueError: a lone surrogate, or an xn-- label that is no IDN
        return None
