"""What a card may decide for its callers: which part of our own policy is used, and nothing beyond it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol, TypedDict

from trust.errors import CardRefused, ConfigurationError
from trust.oauth.cards import check_card, read_card
from trust.oauth.metadata import origin_of
from trust.oauth.scopes import covers, parse, parse_scope_list

MAX_LISTED = 200  # characters of the names of skills in an error


class VerifiedCard(Protocol):
    """A card whose signature was verified: `trust.signing.cards.VerifiedCard`."""

    @property
    def card(self) -> Mapping[str, Any]: ...

    @property
    def kid(self) -> str: ...


class Choice(TypedDict):
    issuer: str
    scopes: tuple[str, ...]
    origins: list[str]


def choose(
    card: VerifiedCard,
    *,
    issuers: Collection[str],
    scopes: Iterable[str],
    origins: Collection[str],
    skill: str | None,
    signatures: bool,
) -> Choice:
    """The part of our policy that a card chooses; arguments and errors as of `TokenSource.from_card`."""
    members = getattr(card, "card", None)
    if not isinstance(members, Mapping):
        raise ConfigurationError("card was not verified", expected="what trust.signing.cards.verify_card returned")
    requirements = read_card(members)
    if skill is not None:
        _check_skill(skill, members)
    issuer = check_card(requirements, issuers=issuers, signatures=signatures)
    ceiling = parse_scope_list(scopes if isinstance(scopes, str) else " ".join(scopes))
    required = requirements.scopes if skill is None else requirements.scopes_for(skill)
    for scope in required:
        if not parse(scope).is_time and not any(covers(ours, scope) for ours in ceiling):
            # Whoever gets a wide token from us can exchange it: a card must not talk us into more than we meant.
            raise CardRefused(
                "card requires a scope beyond our policy", got=scope, expected="one of " + " ".join(ceiling)
            )
    # Time scopes only take away: the card's are no harm, and ours stay in every token.
    asked = tuple(dict.fromkeys((*required, *(scope for scope in ceiling if parse(scope).is_time))))
    theirs = {origin_of(url) for url in requirements.interface_urls}
    both = sorted(theirs & set(origins))
    if not both:
        raise CardRefused("card's agent is elsewhere", got=" ".join(sorted(theirs)), expected=" or ".join(origins))
    return Choice(issuer=issuer, scopes=asked, origins=both)


def _check_skill(skill: str, card: Mapping[str, Any]) -> None:
    """Whoever misspells a skill would get what any of them needs. `read_card` has seen to the form of the list."""
    known = [entry["id"] for entry in card.get("skills", []) if isinstance(entry.get("id"), str)]
    if skill not in known:
        raise CardRefused(
            "card has no skill", got=skill, expected=", ".join(known)[:MAX_LISTED] or "a card with skills"
        )
