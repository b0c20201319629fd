"""The URL of a Redis server, before redis-py is given it: TLS to every other host, and nothing that weakens it."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import parse_qsl, urlsplit

from trust.errors import ConfigurationError

_DATABASE = re.compile(r"/?[0-9]{0,5}", re.ASCII)
# What redis-py takes from a URL's query. Of the rest some weaken (`ssl_cert_reqs=none`), and some undo our bounds.
_OF_TLS = {"db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}


def checked_url(url: str, store: str) -> str:
    """Its scheme, host and port, or path, for people; without the password.

    Args:
        url: `rediss://[user:password@]host[:port][/db]`, `unix://[...@]/path`, or `redis://` to this host.
        store: what it is for, in messages.

    Raises:
        ConfigurationError: the URL is none of these, or has options that undo what we rely on.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise bad_url(store) from None
    local = parts.scheme == "unix"
    # A path that is no number, a fragment, or an @ behind the host: a part of a password that was not percent-encoded.
    if (
        parts.scheme not in ("redis", "rediss", "unix")
        or parts.fragment
        or "@" in parts.path + parts.query
        or not (local or _DATABASE.fullmatch(parts.path))
    ):
        raise bad_url(store)
    allowed = _OF_TLS if parts.scheme == "rediss" else {"db"}
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if name not in allowed:
            raise ConfigurationError(f"URL of the {store}", got=name, expected=f"only {', '.join(sorted(allowed))}")
    if parts.scheme == "redis" and not _is_this_host(host):
        raise ConfigurationError(
            f"{store} without TLS", got=host, expected="this host", do="use rediss:// for another host"
        )
    return f"unix://{parts.path}" if local else f"{parts.scheme}://{host}{f':{port}' if port else ''}"


def no_driver() -> ConfigurationError:
    return ConfigurationError("Redis", got="no driver", expected="redis", do="install the extra `redis` of a2a-trust")


def bad_url(store: str) -> ConfigurationError:
    return ConfigurationError(
        f"URL of the {store}",
        expected="rediss://host:port, redis://localhost or unix:///path",
        do="percent-encode its password",
    )


def _is_this_host(host: str) -> bool:
    try:
        # A zone is no part of an address: redis-py decodes what is percent-encoded there, and looks up a name.
        return host in ("", "localhost") or ("%" not in host and ipaddress.ip_address(host).is_loopback)
    except ValueError:
        return False
