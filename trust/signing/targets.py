"""What was asked for, in one form: two parties that read a URL differently must not sign and verify the same text."""

from __future__ import annotations

import re

from trust.errors import BindingMismatch

_DEFAULT_PORTS = {"https": 443, "http": 80}
# Nothing that two parsers of URLs read differently: no user, no percent-encoding, backslash or space in the host.
_URI = re.compile(
    r"(?P<scheme>[A-Za-z]+)://(?P<host>[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{0,5}))?"
    r"(?P<path>/[!-\"$->@-~]*)?(?:\?(?P<query>[!-\"$-~]*))?(?:#[!-~]*)?",
    re.ASCII,
)
_USER = re.compile(r"//[^/?#]*@")
_HIDDEN = re.compile(r"([?#]).*", re.DOTALL)


def target_uri(url: str) -> str:
    """The form of a URL that `htu` has: scheme and host in lower case, no default port, no fragment, a path.

    An empty query is left out, because servers do not see it. Everything else is compared as it is: two spellings of
    one resource are two targets.

    Raises:
        BindingMismatch: not an absolute http or https URL, or one that parsers read differently.
    """
    origin, target = _split(url)
    return origin + target


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL, in the form that `target_uri` gives them. Raises as `target_uri`."""
    return _split(url)[0]


def without_query(value: object) -> str:
    """A value for logs: of a URL without query, fragment and user, where what only its receiver should see may be."""
    return _USER.sub("//...@", _HIDDEN.sub(r"\1...", str(value), count=1), count=1)


def _split(url: str) -> tuple[str, str]:
    match = _URI.fullmatch(url) if isinstance(url, str) else None
    scheme = match["scheme"].lower() if match else ""
    if match is None or scheme not in _DEFAULT_PORTS:
        got = without_query(url)
        raise BindingMismatch("target of the request", got=got, expected="an absolute http or https URL in ASCII")
    port = int(match["port"] or _DEFAULT_PORTS[scheme])
    authority = match["host"].lower() + ("" if port == _DEFAULT_PORTS[scheme] else f":{port}")
    query = f"?{match['query']}" if match["query"] else ""
    return f"{scheme}://{authority}", (match["path"] or "/") + query
