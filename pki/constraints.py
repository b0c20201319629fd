"""Whether a name lies inside a CA's name constraints (RFC 5280 section 4.2.1.10), asked before anything is signed.

A certificate outside of them would be refused by its verifiers, and would be a promise that its CA may not make. Only
the kinds of names that agents have are known here: URIs, DNS names and addresses.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from cryptography import x509

from pki.errors import NameRefused

_KINDS = (x509.UniformResourceIdentifier, x509.DNSName, x509.IPAddress)


def check(names: Iterable[x509.GeneralName], constraints: x509.NameConstraints | None) -> None:
    """Return for names that are inside one of the permitted subtrees of their kind, where there are any, and inside
    no excluded one.

    Raises:
        NameRefused: for the first name that is not.
    """
    if constraints is None:
        return
    permitted, excluded = constraints.permitted_subtrees or (), constraints.excluded_subtrees or ()
    for name in names:
        if not isinstance(name, _KINDS):
            raise NameRefused("name", got=type(name).__name__, expected="a URI, a DNS name or an address")
        own = [tree for tree in permitted if isinstance(tree, type(name))]
        if own and not any(_inside(name, tree) for tree in own):
            raise NameRefused(
                "name is outside of what the issuing CA may certify",
                got=str(name.value),
                expected=" or ".join(str(tree.value) for tree in own),
            )
        for tree in excluded:
            if isinstance(tree, type(name)) and _inside(name, tree):
                raise NameRefused(
                    "name is excluded by the issuing CA's certificate",
                    got=str(name.value),
                    expected=f"one outside of {tree.value}",
                )


def _inside(name: x509.GeneralName, tree: x509.GeneralName) -> bool:
    if isinstance(name, x509.IPAddress):
        return name.value in tree.value  # the value of a constraint is a network; of another family nothing is in it
    text = str(name.value).lower()
    limit = str(tree.value).lower()
    if isinstance(name, x509.UniformResourceIdentifier):
        host = urlsplit(text).hostname or ""
        # Of a URI it is the host that is constrained: one host, or, with a dot in front, all below it.
        return host.endswith(limit) if limit.startswith(".") else host == limit
    # Of a DNS name: the name and all below it. A dot in front is not in the RFC, and is read as OpenSSL reads it.
    return not limit or text == limit or text.endswith(limit if limit.startswith(".") else "." + limit)
