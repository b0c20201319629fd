"""The security part of an A2A 1.0 Agent Card: written from an agent's policy, and read before the first call.

A card is what an agent *says*. It is never a floor for what the server enforces, and never a reason for a client to
ask less, or to send a token request to a server that it was not configured for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trust import extension
from trust.errors import CardRefused, ConfigurationError, ScopeMalformed
from trust.oauth.metadata import check_issuer, metadata_url, origin_of
from trust.oauth.scopes import parse, parse_scope_list

OAUTH2 = "oauth2"
MTLS = "mtls"
# The requirement names a role, as OpenAPI allows for schemes that have no scopes: an empty list is outside the
# signature of a card in the SDKs' canonical form, and could be taken away without breaking it.
MTLS_ROLE = "spiffe"

MAX_ENTRIES = 64  # of each list in a card that is read


@dataclass(frozen=True, slots=True, kw_only=True)
class CardPolicy:
    """What an agent requires of its callers.

    Args:
        issuer: its authorization server.
        scopes: those that a caller needs, each with a description for people.
        token_url: the server's token endpoint; by default the embedded server's.
        signatures: the word that its `Gate` was given: whether requests must be signed, or may be.

    Raises:
        ConfigurationError: a malformed issuer, token URL or scope, no scope, or another word.
    """

    issuer: str
    scopes: Mapping[str, str]
    token_url: str = ""
    signatures: extension.Signatures = "required"

    def __post_init__(self) -> None:
        if self.signatures not in ("required", "optional"):
            raise ConfigurationError("signatures", got=self.signatures, expected='"required" or "optional"')
        check_issuer(self.issuer)
        if not self.token_url:
            object.__setattr__(self, "token_url", self.issuer.rstrip("/") + "/token")
        origin_of(self.token_url)
        if not self.scopes:
            raise ConfigurationError("card policy has no scopes", expected="at least one that callers need")
        try:
            for scope in self.scopes:
                parse(scope)
        except ScopeMalformed as error:
            raise ConfigurationError(f"card policy: {error}") from None


def security_members(policy: CardPolicy) -> dict[str, Any]:
    """The members of an AgentCard that say how to call the agent: plain JSON, to be merged into the card.

    `securitySchemes`, `securityRequirements` and `capabilities.extensions`, with the entry that the gate's `extension`
    has. Nothing in it is empty or false, so that the card's direct RFC 8785 form and the SDKs' form are the same bytes.
    """
    return {
        "securitySchemes": {
            OAUTH2: {
                "oauth2SecurityScheme": {
                    "description": "Access tokens bound to the client certificate (RFC 8705).",
                    "flows": {
                        "clientCredentials": {
                            "tokenUrl": policy.token_url,
                            "scopes": {scope: text or scope for scope, text in policy.scopes.items()},
                        }
                    },
                    "oauth2MetadataUrl": metadata_url(policy.issuer),
                }
            },
            MTLS: {
                "mtlsSecurityScheme": {"description": "TLS 1.3 client certificate with one SPIFFE ID (X.509-SVID)."}
            },
        },
        "securityRequirements": [
            {"schemes": {OAUTH2: {"list": list(policy.scopes)}, MTLS: {"list": [MTLS_ROLE]}}},
        ],
        "capabilities": {"extensions": [extension.declaration(policy.signatures)]},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class CardRequirements:
    """What a card says that its agent requires; nothing of it is believed or checked against a policy yet."""

    token_url: str
    metadata_url: str  # empty where the card names none
    scopes: tuple[str, ...]
    mtls: bool  # every alternative requires it
    signatures_required: bool
    interface_urls: tuple[str, ...]


def read_card(card: Mapping[str, Any]) -> CardRequirements:
    """The requirements of a card, from its JSON.

    Where the card offers alternatives, each must require OAuth2; the scopes are those of the first.

    Not checked: the card's signature (`trust.signing.cards`), and whether this is enough (`check_card`).

    Raises:
        CardRefused: members of other shapes than A2A 1.0 gives them, or no OAuth2 client credentials.
    """
    schemes = {name: _scheme(name, value) for name, value in _object(card, "securitySchemes").items()}
    alternatives = [_object(entry, "schemes") for entry in _objects(card, "securityRequirements")]
    if not alternatives:
        raise CardRefused("card requires nothing of its callers", expected="securityRequirements")
    required = [_oauth2(alternative, schemes) for alternative in alternatives]
    scheme, scopes = required[0]
    credentials = _object(_object(scheme, "flows"), "clientCredentials")
    return CardRequirements(
        token_url=_text(credentials, "tokenUrl"),
        metadata_url=_text(scheme, "oauth2MetadataUrl", ""),
        scopes=scopes,
        mtls=all(_named(a, schemes, "mtlsSecurityScheme") for a in alternatives),
        signatures_required=any(
            entry.get("uri") == extension.URI and entry.get("required") is True
            for entry in _objects(_object(card, "capabilities", {}), "extensions")
        ),
        interface_urls=tuple(_text(interface, "url") for interface in _objects(card, "supportedInterfaces")),
    )


def check_card(
    requirements: CardRequirements, *, issuers: Collection[str], mtls: bool = True, signatures: bool = True
) -> str:
    """Return the configured issuer that the card's agent takes tokens from.

    Args:
        issuers: the authorization servers that we are configured for.
        mtls, signatures: what our own policy demands; the card must not ask for less.

    Raises:
        CardRefused: it asks for less, is reached without TLS, or wants tokens of a server that we do not know.
    """
    if mtls and not requirements.mtls:
        raise CardRefused("card can be satisfied without mutual TLS", expected="mtlsSecurityScheme in each requirement")
    if signatures and not requirements.signatures_required:
        raise CardRefused("card does not require signed messages", expected=f"the extension {extension.URI}")
    try:
        for url in requirements.interface_urls:
            origin_of(url)
        token_origin = origin_of(requirements.token_url)
    except ConfigurationError as error:
        raise CardRefused(f"card: {error}") from None
    if not requirements.interface_urls:
        raise CardRefused("card has no interface", expected="supportedInterfaces")
    for issuer in issuers:
        # Both, where the card names both: metadata of one server and tokens of another is how a mix-up begins.
        if requirements.metadata_url in ("", metadata_url(issuer)) and token_origin == origin_of(issuer):
            return issuer
    raise CardRefused(
        "card names an authorization server that is not ours",
        got=requirements.metadata_url or requirements.token_url,
        expected=" or ".join(issuers) or "a configured issuer",
        do="configure it if its tokens should be asked for",
    )


_SCHEMES = {
    "apiKeySecurityScheme",
    "httpAuthSecurityScheme",
    "oauth2SecurityScheme",
    "openIdConnectSecurityScheme",
    "mtlsSecurityScheme",
}
_REQUIRED: Any = object()
_Schemes = Mapping[str, tuple[str, Mapping[str, Any]]]


def _scheme(name: str, value: object) -> tuple[str, Mapping[str, Any]]:
    """The one member of a scheme's wrapper: its kind and content."""
    if not isinstance(value, Mapping) or len(value) != 1 or not value.keys() <= _SCHEMES:
        raise CardRefused(f"security scheme {name}", expected="exactly one kind of scheme of A2A 1.0")
    ((kind, content),) = value.items()
    if not isinstance(content, Mapping):
        raise CardRefused(f"security scheme {name}", got=type(content).__name__, expected="an object")
    return kind, content


def _named(alternative: Mapping[str, Any], schemes: _Schemes, kind: str) -> list[str]:
    """The names in a requirement that stand for schemes of this kind. One that no scheme has stands for nothing."""
    return [name for name in alternative if name in schemes and schemes[name][0] == kind]


def _oauth2(alternative: Mapping[str, Any], schemes: _Schemes) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The OAuth2 scheme of a requirement, and the scopes that it requires."""
    names = _named(alternative, schemes, "oauth2SecurityScheme")
    if len(names) != 1:
        raise CardRefused("card", got=f"{len(names)} OAuth2 schemes", expected="one in each requirement")
    return schemes[names[0]][1], _scopes(_object(alternative, names[0]))


def _scopes(requirement: Mapping[str, Any]) -> tuple[str, ...]:
    listed = requirement.get("list", [])
    if not isinstance(listed, list) or not all(isinstance(scope, str) for scope in listed):
        raise CardRefused("required scopes", got=type(listed).__name__, expected="a list of strings")
    try:
        return parse_scope_list(" ".join(listed))
    except ScopeMalformed as error:
        raise CardRefused(f"required scopes: {error}") from None


def _object(holder: Mapping[str, Any], name: str, default: Any = _REQUIRED) -> Mapping[str, Any]:
    value = holder.get(name, default)
    if not isinstance(value, Mapping) or len(value) > MAX_ENTRIES:
        raise CardRefused(f"card member {name}", got=_kind(value), expected="an object")
    return value


def _objects(holder: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = holder.get(name, [])
    if not isinstance(value, list) or len(value) > MAX_ENTRIES or not all(isinstance(v, Mapping) for v in value):
        raise CardRefused(f"card member {name}", got=_kind(value), expected="a list of objects")
    return value


def _text(holder: Mapping[str, Any], name: str, default: Any = _REQUIRED) -> str:
    value = holder.get(name, default)
    if not isinstance(value, str):
        raise CardRefused(f"card member {name}", got=_kind(value), expected="a string")
    return value


def _kind(value: object) -> str:
    return "nothing" if value is _REQUIRED else type(value).__name__
