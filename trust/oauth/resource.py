"""What a resource tells those whom it refuses: challenges (RFC 6750, 9449, 9470), and its metadata (RFC 9728)."""

from __future__ import annotations

import json
from collections.abc import Collection
from urllib.parse import unquote

from trust.errors import ApprovalMissing, InsufficientScope, ProofError, TokenRequestMalformed, TrustError
from trust.oauth.claims import ALGORITHMS
from trust.oauth.metadata import APPROVED, WELL_KNOWN_RESOURCE, is_resource, resource_metadata_url

# RFC 6750 section 3.1 and RFC 9470 section 3; the other codes are not about tokens.
_CODES = ("invalid_token", "insufficient_scope", "insufficient_user_authentication")


class ProtectedResource:
    """A resource by what its validator of tokens really takes, so that what it says cannot drift from what it does.

    `resource` in the metadata is the audience of tokens. RFC 9728 section 3.3 wants the https URL of the resource
    there: strict clients take the metadata of one whose audience is that URL, and must be configured for one that is
    known by a SPIFFE ID.

    Args:
        audience: of tokens.
        issuers: whose tokens.
        bindings: what tokens may be bound to, the words of `TokenValidator`.
        scopes: that callers may need; none where they are not known beforehand.
    """

    def __init__(
        self, *, audience: str, issuers: Collection[str], bindings: Collection[str], scopes: Collection[str]
    ) -> None:
        self._certificate, self._dpop = "certificate" in bindings, "dpop" in bindings
        # Where the audience is no URL, the metadata is on whatever origin the resource was addressed by.
        addressed = audience.startswith("https:") and is_resource(audience) and "?" not in audience
        self._url = resource_metadata_url(audience) if addressed else ""
        self._path = "/" + unquote(self._url.split("/", 3)[3]) if addressed else WELL_KNOWN_RESOURCE
        document: dict[str, object] = {
            "resource": audience,
            "authorization_servers": list(issuers),
            "bearer_methods_supported": ["header"],
            "tls_client_certificate_bound_access_tokens": self._certificate,
        }
        if scopes:
            document["scopes_supported"] = list(scopes)
        if self._dpop:
            document["dpop_signing_alg_values_supported"] = list(ALGORITHMS)
            document["dpop_bound_access_tokens_required"] = not self._certificate
        self.document = json.dumps(document).encode()

    def serves(self, path: str) -> bool:
        """Whether the metadata is at this path, decoded.

        Where the audience is no URL, all of the origin is the resource: it is there for each of its paths.
        """
        return path == self._path or (not self._url and path.startswith(self._path + "/"))

    def challenges(self, error: TrustError, origin: str) -> list[tuple[bytes, bytes]]:
        """The `WWW-Authenticate` headers of a refusal, one for each scheme that is taken.

        They come with 401 and 403, and with the 400 of an `Authorization` that brings no one token.

        Args:
            origin: that the resource was addressed by; empty where that is not known.
        """
        malformed = isinstance(error, TokenRequestMalformed)
        if error.status not in (401, 403) and not malformed:
            return []
        parameters = []
        if error.code in _CODES or malformed:
            parameters.append(f'error="{error.code}"')
        if isinstance(error, InsufficientScope | ApprovalMissing) and error.required:
            parameters.append(f'scope="{error.required}"')
        if isinstance(error, ApprovalMissing):
            parameters.append(f'acr_values="{APPROVED}"')
        url = self._url or (origin and origin + self._path)
        if url:
            parameters.append(f'resource_metadata="{url}"')
        challenges = [_challenge("Bearer", parameters)] if self._certificate else []
        if self._dpop:
            proof = [f'error="{error.code}"'] if isinstance(error, ProofError) else []
            challenges.append(_challenge("DPoP", [*proof, *parameters, f'algs="{" ".join(ALGORITHMS)}"']))
        return [(b"www-authenticate", challenge.encode()) for challenge in challenges]


def _challenge(scheme: str, parameters: Collection[str]) -> str:
    return f"{scheme} {', '.join(parameters)}" if parameters else scheme
