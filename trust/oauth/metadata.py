"""What server, client, resource and Agent Card agree on: names of issuers and resources, their metadata, wire names.

Metadata is read here (RFC 8414, RFC 9728) and fetched elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

import httpx

from trust.errors import ConfigurationError, MetadataRefused

WELL_KNOWN = "/.well-known/oauth-authorization-server"
WELL_KNOWN_RESOURCE = "/.well-known/oauth-protected-resource"

CLIENT_CREDENTIALS = "client_credentials"
REFRESH_TOKEN = "refresh_token"  # noqa: S105 - a name, not a token
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 - a name, not a token
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name, not a token
JWT_TYPE = "urn:ietf:params:oauth:token-type:jwt"

APPROVED = "urn:a2a-trust:acr:approved"  # `acr` of a token that a person has approved (RFC 9470)

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


def resource_metadata_url(resource: str) -> str:
    """Where the metadata of a resource with an https URL is: before its path, too. RFC 9728 section 3.1.

    Raises:
        ConfigurationError: not an https URL.
    """
    origin = origin_of(resource)
    # As it was spelled: decoded, `%3F` would begin a query, and `%0D%0A` a line of a header.
    path, mark, query = httpx.URL(resource).raw_path.decode("ascii").partition("?")
    return f"{origin}{WELL_KNOWN_RESOURCE}{path.rstrip('/')}{mark}{query}"


def check_metadata(members: Mapping[str, object], issuer: str) -> None:
    """That metadata is the issuer's own. RFC 8414 section 3.3: without this, one server could speak for another.

    Raises:
        MetadataRefused: it is another issuer's.
    """
    if members.get("issuer") != issuer:
        raise MetadataRefused("metadata is another issuer's", got=members.get("issuer"), expected=issuer)


def metadata_endpoint(members: Mapping[str, object], issuer: str, name: str) -> str | None:
    """The URL that metadata gives for `name`, such as `jwks_uri`; None where it gives none.

    Of an endpoint that has an alias for clients with certificates, it is the alias (RFC 8705 section 5).

    Args:
        members: metadata that passed `check_metadata`.

    Raises:
        MetadataRefused: not an https URL on the issuer's own origin.
    """
    aliases = members.get("mtls_endpoint_aliases", {})
    if not isinstance(aliases, Mapping):
        raise MetadataRefused("mtls_endpoint_aliases", got=type(aliases).__name__, expected="an object")
    url = aliases.get(name, members.get(name))
    if url is None:
        return None
    try:
        same = isinstance(url, str) and origin_of(check_endpoint(url)) == origin_of(issuer)
    except ConfigurationError:
        same = False
    if not same:
        words = name.replace("_", " ")
        do = f"configure {name} where it is meant to be elsewhere"
        raise MetadataRefused(f"{words} is elsewhere", got=url, expected=f"one at {origin_of(issuer)}", do=do)
    return str(url)


def check_endpoint(url: str) -> str:
    """Return `url` when it can be the address of an endpoint: https, a host, no user information, no fragment.

    Raises:
        ConfigurationError: it cannot.
    """
    parsed = _url(url)
    if parsed is None or not isinstance(url, str) or parsed.userinfo or "#" in url:
        raise ConfigurationError("URL", expected="https://host[:port]/..., no user information, no fragment")
    origin_of(url)
    return url


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
