from __future__ import annotations

import json
from typing import Any

import pytest

from trust.errors import (
    ApprovalMissing,
    InsufficientScope,
    KeysUnavailable,
    PeerNotAllowed,
    ProofReplayed,
    RequestMalformed,
    TokenExpired,
    TokenMissing,
    TokenRequestMalformed,
    TrustError,
)
from trust.oauth.claims import ALGORITHMS
from trust.oauth.resource import ProtectedResource

BILLING = "spiffe://fleet.example/billing"
ORIGIN = "https://billing.fleet.example"
ISSUERS = ("https://auth.fleet.example", "https://auth.partner.example")
WELL_KNOWN = "/.well-known/oauth-protected-resource"
METADATA = f'resource_metadata="{ORIGIN}/.well-known/oauth-protected-resource"'
ALGS = f'algs="{" ".join(ALGORITHMS)}"'


def resource(**changes: Any) -> ProtectedResource:
    settings = {"audience": BILLING, "issuers": ISSUERS, "bindings": ["certificate"], "scopes": ["a:b"], **changes}
    return ProtectedResource(**settings)


def test_the_metadata_says_what_is_configured() -> None:
    assert json.loads(resource().document) == {
        "resource": BILLING,
        "authorization_servers": list(ISSUERS),
        "scopes_supported": ["a:b"],
        "bearer_methods_supported": ["header"],
        "tls_client_certificate_bound_access_tokens": True,
    }
    both = json.loads(resource(bindings=["certificate", "dpop"], scopes=[]).document)
    assert "scopes_supported" not in both
    assert both["dpop_signing_alg_values_supported"] == list(ALGORITHMS)
    assert both["dpop_bound_access_tokens_required"] is False
    keys = json.loads(resource(bindings=["dpop"]).document)
    assert keys["tls_client_certificate_bound_access_tokens"] is False
    assert keys["dpop_bound_access_tokens_required"] is True


@pytest.mark.parametrize(
    ("audience", "path", "url"),
    [
        (BILLING, WELL_KNOWN, ORIGIN + WELL_KNOWN),
        ("https://b.example", WELL_KNOWN, "https://b.example/.well-known/oauth-protected-resource"),
        (
            "https://b.example:8443/a2a/",
            "/.well-known/oauth-protected-resource/a2a",
            "https://b.example:8443/.well-known/oauth-protected-resource/a2a",
        ),
        (
            "https://b.example/a%0d%0aSet-Cookie:%22b%22",
            '/.well-known/oauth-protected-resource/a\r\nSet-Cookie:"b"',
            "https://b.example/.well-known/oauth-protected-resource/a%0d%0aSet-Cookie:%22b%22",
        ),
        ("urn:billing", WELL_KNOWN, ORIGIN + WELL_KNOWN),
        ('https://b.example/"x', WELL_KNOWN, ORIGIN + WELL_KNOWN),
    ],
    ids=["SPIFFE ID", "origin", "URL with a path", "URL with an escaped path", "another name", "not a resource"],
)
def test_where_the_metadata_is(audience: str, path: str, url: str) -> None:
    found = resource(audience=audience)
    assert found.serves(path)
    assert not found.serves(path + "x")
    assert not found.serves("/")
    assert found.challenges(TokenMissing("x"), ORIGIN) == [
        (b"www-authenticate", f'Bearer resource_metadata="{url}"'.encode())
    ]


def test_of_which_paths_the_metadata_is_there() -> None:
    assert resource().serves(WELL_KNOWN + "/a2a/jsonrpc")
    assert not resource(audience="https://b.example/a2a").serves(WELL_KNOWN)
    assert not resource(audience="https://b.example/a2a").serves(WELL_KNOWN + "/a2a/jsonrpc")


CHALLENGES: dict[str, tuple[TrustError, list[str]]] = {
    "no token": (TokenMissing("x"), [f"Bearer {METADATA}", f"DPoP {METADATA}, {ALGS}"]),
    "expired": (
        TokenExpired("x"),
        [f'Bearer error="invalid_token", {METADATA}', f'DPoP error="invalid_token", {METADATA}, {ALGS}'],
    ),
    "two tokens": (
        TokenRequestMalformed("x"),
        [f'Bearer error="invalid_request", {METADATA}', f'DPoP error="invalid_request", {METADATA}, {ALGS}'],
    ),
    "proof": (ProofReplayed("x"), [f"Bearer {METADATA}", f'DPoP error="invalid_dpop_proof", {METADATA}, {ALGS}']),
    "scope": (
        InsufficientScope("x", required="a:b c:d"),
        [
            f'Bearer error="insufficient_scope", scope="a:b c:d", {METADATA}',
            f'DPoP error="insufficient_scope", scope="a:b c:d", {METADATA}, {ALGS}',
        ],
    ),
    "approval": (
        ApprovalMissing("x", required="a:b"),
        [
            f'{scheme} error="insufficient_user_authentication", scope="a:b", acr_values="urn:a2a-trust:acr:approved", '
            f"{METADATA}{more}"
            for scheme, more in (("Bearer", ""), ("DPoP", f", {ALGS}"))
        ],
    ),
    "peer": (PeerNotAllowed("x"), [f"Bearer {METADATA}", f"DPoP {METADATA}, {ALGS}"]),
    "outage": (KeysUnavailable("x"), []),
    "form": (RequestMalformed("x"), []),
}


@pytest.mark.parametrize("name", CHALLENGES)
def test_challenges(name: str) -> None:
    error, expected = CHALLENGES[name]
    found = resource(bindings=["certificate", "dpop"]).challenges(error, ORIGIN)
    assert found == [(b"www-authenticate", challenge.encode()) for challenge in expected]
    only = resource(bindings=["dpop"]).challenges(error, ORIGIN)
    assert only == [(b"www-authenticate", challenge.encode()) for challenge in expected[1:]]


def test_without_an_origin_there_is_no_address() -> None:
    assert resource().challenges(TokenMissing("x"), "") == [(b"www-authenticate", b"Bearer")]
