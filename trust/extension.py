"""The A2A extension `urn:a2a-trust:message-signature:v1`: HTTP requests and answers are signed (`signing.http`).

An agent declares it in its Agent Card (`declaration`), a client asks for it by naming it in the header A2A-Extensions,
and the answer to a signed request names it as activated. What proves anything is the signatures alone: neither the card
nor the headers of an answer are believed, and a signed request need not name the extension. One that names it without a
signature is refused everywhere, though: that was lost on the way. An unsigned request where signatures are required
gets status 401, with A2A's own ExtensionSupportRequiredError in the body (A2A 1.0 sections 5.4, 9.5 and 11.6). Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from trust.errors import SignaturesNotOffered
from trust.json_text import NotStrictJson, parse

URI = "urn:a2a-trust:message-signature:v1"
HEADER = "A2A-Extensions"
ALGORITHMS = ("ES256", "ES384", "Ed25519")  # what everybody who declares the extension verifies
CARRIAGE = ("http",)  # the header JWS-Signature

Signatures = Literal["required", "optional"]

ERROR_CODE = -32008  # ExtensionSupportRequiredError
MAX_READ_BYTES = 64 << 10  # of a refused body, to find the id of a JSON-RPC request in; two milliseconds of work
MAX_READ_DEPTH = 128
MAX_ID_CHARACTERS = 256
MAX_ENTRIES = 64  # of a card's list of extensions, and of algorithms

_NAMES = (b"a2a-extensions", b"x-a2a-extensions")  # the second is A2A 0.3's, which compatible servers still read


def declaration(signatures: Signatures) -> dict[str, Any]:
    """The entry of a card's `capabilities.extensions` for an agent behind a gate with these `signatures`.

    `required` is there where it is true: the SDKs drop a false one, and it would be outside of their signatures.
    """
    entry: dict[str, Any] = {
        "uri": URI,
        "description": "Requests and answers are signed by the sender's certificate.",
        "params": {"algs": list(ALGORITHMS), "carriage": list(CARRIAGE)},
    }
    return {**entry, "required": True} if signatures == "required" else entry


def check_declared(card: Mapping[str, Any], algorithm: str) -> None:
    """Whether the agent of a card says that it verifies, and gives, signatures like ours.

    Not checked: the card's signature, and whether the agent requires signatures.

    Args:
        card: A2A 1.0, verified.
        algorithm: the `alg` that we sign with.

    Raises:
        SignaturesNotOffered: the card does not declare the extension, declares it in another form or twice, or without
            our algorithm or carriage.
    """
    capabilities = card.get("capabilities")
    entries = capabilities.get("extensions") if isinstance(capabilities, Mapping) else None
    if not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
        entries = []
    ours = [entry for entry in entries if isinstance(entry, Mapping) and entry.get("uri") == URI]
    if len(ours) != 1:
        raise SignaturesNotOffered(
            "card does not declare signed messages",
            got=f"{len(ours)} entries",
            expected=f"one for the extension {URI}",
            do="call this agent without a signer, if that is good enough",
        )
    params = ours[0].get("params")
    for name, wanted in (("algs", algorithm), ("carriage", CARRIAGE[0])):
        offered = params.get(name) if isinstance(params, Mapping) else None
        if not isinstance(offered, list) or len(offered) > MAX_ENTRIES or wanted not in offered:
            raise SignaturesNotOffered(f"{name} of the card's extension {URI}", got=offered, expected=f"{wanted} in it")


def named(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, ...]:
    """The extensions that a message names, from raw header pairs with names in any case; by both of the header's names.

    Whoever still reads the older name must not be told what nobody signed.
    """
    lists = (value.decode("latin-1") for name, value in headers if name.lower() in _NAMES)
    uris = (uri.strip(" \t") for line in lists for uri in line.split(","))
    return tuple(uri for uri in uris if uri)


def under_both_names(headers: Collection[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of a signed request for its application, which may read one name only: each has all that was signed.

    `named` puts the two names together, so a proxy that moves an extension from one to the other breaks no signature.
    """
    uris = ", ".join(dict.fromkeys(named(headers))).encode("latin-1")
    others = [(name, value) for name, value in headers if name.lower() not in _NAMES]
    return [*others, *((name, uris) for name in _NAMES)] if uris else others


def echoed(
    answer: Iterable[tuple[bytes, bytes]], request: Collection[tuple[bytes, bytes]]
) -> list[tuple[bytes, bytes]]:
    """The headers of an answer, with the extension named as activated where the request named it, and by that name.

    What the application has activated stays.
    """
    headers = list(answer)
    for header in _NAMES:
        if URI not in named((n, v) for n, v in request if n == header):
            continue
        mine = [(n, v) for n, v in headers if n.lower() == header]
        uris = dict.fromkeys((*named(mine), URI))
        headers = [*(pair for pair in headers if pair not in mine), (header, ", ".join(uris).encode("latin-1"))]
    return headers


def required_error(body: bytes) -> dict[str, Any]:
    """What an unsigned request is told where it must be signed: A2A's ExtensionSupportRequiredError, with status 401.

    For the JSON-RPC binding an error object with the request's id, where that can be read within bounds; for any other
    request a `google.rpc.Status`, as the REST binding has it. Nothing else of the body comes back.
    """
    message = f"Extension support required: {URI}"
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "EXTENSION_SUPPORT_REQUIRED",
        "domain": "a2a-protocol.org",
        "metadata": {"extension": URI},
    }
    try:
        request = parse(body, max_bytes=MAX_READ_BYTES, max_depth=MAX_READ_DEPTH)
    except NotStrictJson:
        request = None
    if not isinstance(request, dict) or "jsonrpc" not in request:
        # As A2A has it, `code` is the status of HTTP, and `status` the name that gRPC has for that.
        return {"error": {"code": 401, "status": "UNAUTHENTICATED", "message": message, "details": [info]}}
    number = request.get("id")
    if number.__class__ not in (str, int) or len(str(number)) > MAX_ID_CHARACTERS:
        number = None
    return {"jsonrpc": "2.0", "id": number, "error": {"code": ERROR_CODE, "message": message, "data": [info]}}
