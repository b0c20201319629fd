"""The security part of an A2A Agent Card: written from an agent's policy, and read before the first call.

A card is what an agent *says*. It is never a floor for what the server enforces, and never a reason for a client to
ask less, or to send a token request to a server that it was not configured for.

`Gate.secured` writes it from what the gate really does. It is written for A2A 1.0, or in the form of 0.3 for clients
that read no other; it is read in the form of 1.0 alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from trust import extension
from trust.errors import CardRefused, ConfigurationError, ScopeMalformed
from trust.oauth.metadata import check_issuer, metadata_url, origin_of
from trust.oauth.operations import SkillScopes
from trust.oauth.scopes import parse, parse_scope_list

OAUTH2 = "oauth2"
MTLS = "mtls"
# The requirement names a role, as OpenAPI allows for schemes that have no scopes: an empty list is outside the
# signature of a card in the SDKs' canonical form, and could be taken away without breaking it.
MTLS_ROLE = "spiffe"

MAX_ENTRIES = 64  # of each list in a card that is read

Form = Literal["1.0", "0.3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CardPolicy:
    """What an agent requires of its callers.

    Args:
        issuer: its authorization server.
        scopes: those that a caller needs, each with a description for people.
        skills: the scopes for a skill, by its `id`, where a caller needs others for that skill alone.
        token_url: the server's token endpoint; by default the embedded server's.
        signatures: the word that its `Gate` was given: whether requests must be signed, or may be.
        bindings: of its tokens, the words that its `TokenValidator` was given.

    Raises:
        ConfigurationError: a malformed issuer, token URL or scope, no scope, or another word.
    """

    issuer: str
    scopes: Mapping[str, str]
    skills: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    token_url: str = ""
    signatures: extension.Signatures = "required"
    bindings: Collection[str] = ("certificate",)

    def __post_init__(self) -> None:
        if self.signatures not in ("required", "optional"):
            raise ConfigurationError("signatures", got=self.signatures, expected='"required" or "optional"')
        check_issuer(self.issuer)
        if not self.token_url:
            object.__setattr__(self, "token_url", self.issuer.rstrip("/") + "/token")
        origin_of(self.token_url)
        if not self.scopes or not all(self.skills.values()):
            raise ConfigurationError("card policy has no scopes", expected="at least one that callers need")
        try:
            for scope in self.available:
                parse(scope)
        except ScopeMalformed as error:
            raise ConfigurationError(f"card policy: {error}") from None

    @property
    def available(self) -> dict[str, str]:
        """Every scope that something here needs, with its description."""
        return {**{scope: "" for scopes in self.skills.values() for scope in scopes}, **self.scopes}


def policies_of(
    *,
    issuers: Collection[str],
    scope: object,
    signatures: extension.Signatures,
    bindings: Collection[str],
    descriptions: Mapping[str, str],
    token_urls: Mapping[str, str],
) -> list[CardPolicy]:
    """What a gate requires, one policy for each of its issuers; the arguments are its own, and of `Gate.secured`.

    Raises:
        ConfigurationError: its scope is a function; a description or URL is for a scope or issuer that it has not.
    """
    if not isinstance(scope, str | SkillScopes):
        raise ConfigurationError(
            "gate's scope is a function", expected="scopes or a SkillScopes: a card cannot say what a function does"
        )
    calling = scope if isinstance(scope, str) else scope.calling()
    skills = {} if isinstance(scope, str) else {s: tuple(scope.calling(s).split(" ")) for s in scope.skills}
    scopes = calling.split(" ")
    if strangers := (descriptions.keys() - set(scopes)) | (token_urls.keys() - set(issuers)):
        raise ConfigurationError("not of this gate", got=" ".join(sorted(strangers)), expected="its scopes and issuers")
    return [
        CardPolicy(
            issuer=issuer,
            scopes={one: descriptions.get(one, "") for one in scopes},
            skills=skills,
            token_url=token_urls.get(issuer, ""),
            signatures=signatures,
            bindings=bindings,
        )
        for issuer in issuers
    ]


def secured(card: Mapping[str, Any], *policies: CardPolicy, form: Form = "1.0") -> dict[str, Any]:
    """The card of an agent, with the members that say how to call it: plain JSON.

    `securitySchemes`, `securityRequirements` of the card and of each skill (`security` in 0.3), and the entry of
    `capabilities.extensions` that the gate's `extension` has. What the card had there is replaced, other extensions
    apart. Nothing in it is empty or false, so that the card's direct RFC 8785 form and the SDKs' form are the same.

    Args:
        card: the other members, in the form that is asked for.
        policies: one for each authorization server; a caller needs a token of one of them.

    Raises:
        ConfigurationError: no policy, two that differ in more than their server, skills that are not the card's, or a
            card that is no dict.
    """
    if not isinstance(card, Mapping):  # the SDK's card is a protobuf message
        raise ConfigurationError("card", got=type(card).__name__, expected="a dict, such as MessageToDict(card)")
    if not policies or any(_shared(p) != _shared(policies[0]) for p in policies):
        raise ConfigurationError("card policies", expected="at least one, with the same scopes and signatures in each")
    if form not in ("1.0", "0.3"):
        raise ConfigurationError("form of a card", got=form, expected='"1.0" or "0.3"')
    policy, skills = policies[0], card.get("skills", [])
    missing = {skill.get("id") for skill in skills} ^ policy.skills.keys() if policy.skills else set()
    if missing:
        raise ConfigurationError(
            "skills with scopes are not the card's", got=", ".join(sorted(missing)), expected="the same skills in both"
        )
    names = [OAUTH2 if n == 1 else f"{OAUTH2}-{n}" for n in range(1, len(policies) + 1)]
    schemes = {name: _oauth2_scheme(p) for name, p in zip(names, policies, strict=True)}
    schemes[MTLS] = {
        "mtlsSecurityScheme": {"description": "TLS 1.3 client certificate with one SPIFFE ID (X.509-SVID)."}
    }
    others = [e for e in card.get("capabilities", {}).get("extensions", []) if e.get("uri") != extension.URI]
    members: dict[str, Any] = {
        "securitySchemes": schemes if form == "1.0" else {name: _older(scheme) for name, scheme in schemes.items()},
        **_requirements(names, policy.scopes, form),
        "capabilities": {
            **card.get("capabilities", {}),
            "extensions": [*others, extension.declaration(policy.signatures)],
        },
    }
    if skills:
        members["skills"] = [
            {
                **_unsecured(skill),
                **(_requirements(names, own, form) if (own := policy.skills.get(skill.get("id"))) else {}),
            }
            for skill in skills
        ]
    return {**_unsecured(card), **members}


def _shared(policy: CardPolicy) -> tuple[Any, ...]:
    return policy.scopes, policy.skills, policy.signatures


def _unsecured(holder: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in holder.items() if name not in ("securityRequirements", "security")}


_BOUND_TO = {"certificate": "the client certificate (RFC 8705)", "dpop": "a key of the client (DPoP, RFC 9449)"}


def _oauth2_scheme(policy: CardPolicy) -> dict[str, Any]:
    return {
        "oauth2SecurityScheme": {
            "description": f"Access tokens bound to {' or '.join(_BOUND_TO[b] for b in sorted(policy.bindings))}.",
            "flows": {
                "clientCredentials": {
                    "tokenUrl": policy.token_url,
                    "scopes": {scope: text or scope for scope, text in policy.available.items()},
                }
            },
            "oauth2MetadataUrl": metadata_url(policy.issuer),
        }
    }


_OLDER_TYPES = {"oauth2SecurityScheme": "oauth2", "mtlsSecurityScheme": "mutualTLS"}


def _older(scheme: Mapping[str, Any]) -> dict[str, Any]:
    """A security scheme as A2A 0.3 and OpenAPI have it."""
    ((kind, content),) = scheme.items()
    return {"type": _OLDER_TYPES[kind], **content}


def _requirements(servers: Collection[str], scopes: Collection[str], form: Form) -> dict[str, Any]:
    """One alternative for each authorization server: its token and mutual TLS."""
    if form == "0.3":
        return {"security": [{server: list(scopes), MTLS: [MTLS_ROLE]} for server in servers]}
    return {
        "securityRequirements": [
            {"schemes": {server: {"list": list(scopes)}, MTLS: {"list": [MTLS_ROLE]}}} for server in servers
        ]
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class CardRequirements:
    """What a card says that its agent requires; nothing of it is believed or checked against a policy yet."""

    servers: tuple[tuple[str, str], ...]  # token endpoint, and URL of the metadata or "", of each alternative
    scopes: tuple[str, ...]
    skills: Mapping[str, tuple[str, ...]]  # the scopes of the skills that have requirements of their own
    mtls: bool  # every alternative requires it
    signatures_required: bool
    interface_urls: tuple[str, ...]

    def scopes_for(self, skill: str) -> tuple[str, ...]:
        """What a caller of this skill needs, which is less than what one of any skill needs, or the same."""
        return self.skills.get(skill, self.scopes)


def read_card(card: Mapping[str, Any]) -> CardRequirements:
    """The requirements of a card in the form of A2A 1.0, from its JSON.

    Where the card or a skill offers alternatives, each must require OAuth2; the scopes are those of the first.

    Not checked: the card's signature (`trust.signing.cards`), and whether this is enough (`check_card`).

    Raises:
        CardRefused: members of other shapes than A2A 1.0 gives them, or no OAuth2 client credentials.
    """
    schemes = {name: _scheme(name, value) for name, value in _object(card, "securitySchemes").items()}
    alternatives = _alternatives(card)
    if not alternatives:
        raise CardRefused("card requires nothing of its callers", expected="securityRequirements")
    required = [_oauth2(alternative, schemes) for alternative in alternatives]
    skills: dict[str, tuple[str, ...]] = {}
    for skill in _objects(card, "skills"):
        if own := _alternatives(skill):
            found = [_oauth2(alternative, schemes) for alternative in own]
            if not {name for name, _ in found} <= {name for name, _ in required}:
                raise CardRefused("skill wants tokens of another server", got=_text(skill, "id"), expected="the card's")
            skills[_text(skill, "id")] = found[0][1]
            alternatives += own
    return CardRequirements(
        servers=tuple(_server(schemes[name][1]) for name, _ in required),
        scopes=required[0][1],
        skills=MappingProxyType(skills),
        mtls=all(_named(a, schemes, "mtlsSecurityScheme") for a in alternatives),
        signatures_required=any(
            entry.get("uri") == extension.URI and entry.get("required") is True
            for entry in _objects(_object(card, "capabilities", {}), "extensions")
        ),
        interface_urls=tuple(_text(interface, "url") for interface in _objects(card, "supportedInterfaces")),
    )


def _alternatives(holder: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [_object(entry, "schemes") for entry in _objects(holder, "securityRequirements")]


def _server(scheme: Mapping[str, Any]) -> tuple[str, str]:
    credentials = _object(_object(scheme, "flows"), "clientCredentials")
    return _text(credentials, "tokenUrl"), _text(scheme, "oauth2MetadataUrl", "")


def check_card(
    requirements: CardRequirements, *, issuers: Collection[str], mtls: bool = True, signatures: bool = True
) -> str:
    """Return the first configured issuer that the card's agent takes tokens from.

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
        servers = [(origin_of(token_url), metadata) for token_url, metadata in requirements.servers]
    except ConfigurationError as error:
        raise CardRefused(f"card: {error}") from None
    if not requirements.interface_urls:
        raise CardRefused("card has no interface", expected="supportedInterfaces")
    for issuer in issuers:
        # Both, where the card names both: metadata of one server and tokens of another is how a mix-up begins.
        if any(metadata in ("", metadata_url(issuer)) and origin == origin_of(issuer) for origin, metadata in servers):
            return issuer
    raise CardRefused(
        "card names an authorization server that is not ours",
        got=" ".join(metadata or token_url for token_url, metadata in requirements.servers),
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


def _oauth2(alternative: Mapping[str, Any], schemes: _Schemes) -> tuple[str, tuple[str, ...]]:
    """The name of the OAuth2 scheme of a requirement, and the scopes that it requires."""
    names = _named(alternative, schemes, "oauth2SecurityScheme")
    if len(names) != 1:
        raise CardRefused("card", got=f"{len(names)} OAuth2 schemes", expected="one in each requirement")
    return names[0], _scopes(_object(alternative, names[0]))


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
