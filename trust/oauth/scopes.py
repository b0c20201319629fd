"""What a token may do: scopes with wildcards, and a declared hierarchy.

    scope = head ":" ( "**" / seg *(sep seg) [sep "**"] )      head = 1*(ALPHA / DIGIT / "_" / "-")
    seg   = head / "*"                                         sep  = "." / "/"

`*` is exactly one segment; a final `**` is one or more segments with either separator between them. There is no
implicit prefix: `read:customers` says nothing about `read:customers.eu`. The head is never a wildcard, case counts.

`temporal:...` is a time scope (`calendars`): a caveat that takes authority away. It is compared as a whole, so that no
wildcard and no hierarchy ever matches it; a child token carries at least its parent's.

Nothing here reads a clock, and all work is linear in the length of the scopes compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import islice
from types import MappingProxyType

from trust.errors import ConfigurationError, ScopeMalformed
from trust.identity import AgentID
from trust.oauth.calendars import TIME_PREFIX, Calendar, time_allows

MAX_SCOPES = 128  # of one list: a token for more skills than that should hold a wildcard
MAX_LIST_CHARACTERS = 4096  # a scope list travels inside a token, and that inside one 8 KiB header line

_NAME = "[A-Za-z0-9_-]+"
_SEGMENT = rf"(?:{_NAME}|\*)"
_SCOPE = re.compile(rf"{_NAME}:(?:\*\*|{_SEGMENT}(?:[./]{_SEGMENT})*(?:[./]\*\*)?)")
_SCOPE_TOKENS = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*")  # RFC 6749 section 3.3


@dataclass(frozen=True, slots=True)
class Scope:
    """One scope of the grammar above; `parse` is the only door."""

    text: str
    head: str
    # Each segment with the separator before it; the first one's is "". The `**` of a tail is the last of them.
    segments: tuple[tuple[str, str], ...]

    @property
    def is_time(self) -> bool:
        return self.text.startswith(TIME_PREFIX)

    @property
    def has_wildcard(self) -> bool:
        return "*" in self.text


def parse(text: str) -> Scope:
    """Parse one scope.

    Raises:
        ScopeMalformed: (a ValueError) the text is not a scope of the grammar.
    """
    if not isinstance(text, str):
        raise ScopeMalformed("scope", got=type(text).__name__, expected="a str")
    if len(text) > MAX_LIST_CHARACTERS:
        raise ScopeMalformed("scope too long", got=f"{len(text)} characters", expected=f"<= {MAX_LIST_CHARACTERS}")
    scope = _parse(text)
    if scope is None:
        raise ScopeMalformed("scope", got=repr(text), expected="verb:segment[.segment...], '*' or a final '**'")
    return scope


@lru_cache(maxsize=1024)  # the same few scopes are asked for again with every request
def _parse(text: str) -> Scope | None:
    if not _SCOPE.fullmatch(text):
        return None
    head, _, path = text.partition(":")
    parts = re.split("([./])", path)
    return Scope(text, head, tuple(zip(["", *parts[1::2]], parts[0::2], strict=True)))


def parse_scope_list(text: str) -> tuple[str, ...]:
    """Split a space-delimited scope list (RFC 6749 section 3.3) into its scopes, in order, each once.

    Checks the characters, the count and the length, not the grammar of each scope: servers put scopes of their own
    (`openid`) beside ours. The empty text is no scopes.

    Raises:
        ScopeMalformed: other characters, doubled or outer spaces, too many scopes, too long.
    """
    if not isinstance(text, str):
        raise ScopeMalformed("scope list", got=type(text).__name__, expected="a space-delimited str")
    if len(text) > MAX_LIST_CHARACTERS:
        raise ScopeMalformed("scope list too long", got=f"{len(text)} characters", expected=f"<= {MAX_LIST_CHARACTERS}")
    return _parse_list(text)


@lru_cache(maxsize=256)  # the same few lists come with token after token; 16 KiB is the largest of them
def _parse_list(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    if not _SCOPE_TOKENS.fullmatch(text):
        raise ScopeMalformed("scope list", got=repr(text), expected="scope tokens with one space between them")
    if text.count(" ") >= MAX_SCOPES:
        raise ScopeMalformed("too many scopes", got=text.count(" ") + 1, expected=f"<= {MAX_SCOPES}")
    return tuple(dict.fromkeys(text.split(" ")))


def delegate_scope(agent: AgentID) -> str:
    """`delegate:X`: whoever asks for a token with it lets X act onward with that token. The issuer checks it.

    X is the path of the SPIFFE ID, so `spiffe://fleet.example/eu/billing` is `delegate:eu/billing`.
    """
    return f"delegate:{agent.path[1:]}"


def invoke_scope(agent: AgentID) -> str:
    """`invoke:X`: what agent X demands of its callers, `Gate(scope=invoke_scope(us))`; X as in `delegate_scope`."""
    return f"invoke:{agent.path[1:]}"


def covers(a: str, b: str) -> bool:
    """Whether every scope that `b` matches is matched by `a`: exact containment of the two languages.

    Raises:
        ScopeMalformed: one of them is not a scope.
    """
    return _covers(parse(a), parse(b))


def _covers(a: Scope, b: Scope) -> bool:
    if a.is_time or b.is_time:
        return a.text == b.text
    if a.head != b.head:
        return False
    has_tail = a.segments[-1][1] == "**"
    fixed = a.segments[:-1] if has_tail else a.segments
    # A `**` in b stands for arbitrarily many segments, beginning with one at its own place. So it is within a only
    # if a has a tail that starts there or before: where b's `**` meets a fixed segment of a, even `*`, it is not.
    if len(b.segments) < len(a.segments) or (not has_tail and len(b.segments) > len(a.segments)):
        return False
    for (separator, segment), (b_separator, b_segment) in zip(fixed, b.segments, strict=False):
        if separator != b_separator or b_segment == "**" or segment not in ("*", b_segment):
            return False
    return not has_tail or a.segments[-1][0] == b.segments[len(fixed)][0]


def overlaps(a: str, b: str) -> bool:
    """Whether there is a scope that both match: what one of them grants may be what the other is about.

    Raises:
        ScopeMalformed: one of them is not a scope.
    """
    return _overlaps(parse(a), parse(b))


def _overlaps(a: Scope, b: Scope) -> bool:
    if a.is_time or b.is_time or a.head != b.head:
        return a.text == b.text
    for (a_separator, a_segment), (b_separator, b_segment) in zip(a.segments, b.segments, strict=False):
        if a_separator != b_separator:
            return False
        if "**" in (a_segment, b_segment):  # one or more segments: whatever is left of the other
            return True
        if a_segment != b_segment and "*" not in (a_segment, b_segment):
            return False
    return len(a.segments) == len(b.segments)


def touches(rules: Iterable[str], scopes: Iterable[str], catalogue: Catalogue | None = None) -> bool:
    """Whether whoever holds these scopes could do what one of the rules is about, directly or through the catalogue.

    Raises:
        ScopeMalformed: one of them is not a scope.
    """
    rules = tuple(rules)
    if not rules:
        return False
    held = (catalogue or _EMPTY).including(scopes)
    return any(overlaps(rule, scope) for rule in rules for scope in held)


def check_rules(rules: Iterable[str], name: str) -> None:
    """That these are rules for `touches`.

    Raises:
        ConfigurationError: one is not a scope; or a time scope, which is about nothing that anybody could do.
    """
    for rule in rules:
        try:
            is_time = parse(rule).is_time
        except ScopeMalformed as error:
            raise ConfigurationError(f"{name}: {error}") from None
        if is_time:
            raise ConfigurationError(name, got=rule, expected="no time scopes")


def attenuates(parent: str | Iterable[str], child: str | Iterable[str], catalogue: Catalogue | None = None) -> bool:
    """Whether a token with the scopes `child` may be made from one with the scopes `parent`.

    It may when the child carries each time scope of the parent (it may add others), and each other scope of the
    child is covered by one of the parent's, directly or through the catalogue. A child without scopes may nothing,
    and so is allowed.

    Args:
        parent, child: a space-delimited list, or the scopes one by one.

    Raises:
        ScopeMalformed: one of them holds something that is not a scope.
    """
    catalogue = catalogue or _EMPTY
    held, wanted = [[parse(s) for s in _scopes(scopes)] for scopes in (parent, child)]
    if not {s.text for s in held if s.is_time} <= {s.text for s in wanted if s.is_time}:
        return False
    return all(any(catalogue.covers(h, w) for h in held) for w in wanted if not w.is_time)


def satisfies(
    granted: Iterable[str],
    required: str | Iterable[str],
    catalogue: Catalogue | None = None,
    *,
    issued_at: datetime,
    now: datetime,
    calendars: Mapping[str, Calendar] = MappingProxyType({}),
) -> bool:
    """Whether a token that holds `granted` may do what needs all of `required`, at this time.

    Args:
        granted: the scopes of a validated token. One that is not of our grammar (`openid`) grants nothing.
        required: one scope, several space-delimited, or the scopes one by one.
        issued_at: when the token was issued (`iat`).
        calendars: what the named time scopes mean here, by name.

    Raises:
        ScopeMalformed: `required` is empty or holds something that is not a scope; a mistake of the configuration.
    """
    granted = tuple(granted)
    if not _held(granted, required if isinstance(required, str) else _scopes(required), catalogue or _EMPTY):
        return False
    return time_allows(granted, issued_at=issued_at, now=now, calendars=calendars)


@lru_cache(maxsize=1024)  # the same few questions are asked with every request
def _held(granted: tuple[str, ...], required: str | tuple[str, ...], catalogue: Catalogue) -> bool:
    """`satisfies`, at any time."""
    wanted = [parse(s) for s in _scopes(required)]
    if not wanted or any(w.is_time for w in wanted):
        raise ScopeMalformed("required scope", got=required, expected="at least one scope, no time scopes")
    held = [scope for text in granted if (scope := _parse(text)) is not None]
    return all(any(catalogue.covers(h, w) for h in held) for w in wanted)


class Catalogue:
    """A declared hierarchy of scopes that their names do not show: `agent:admin` includes `agent:execute`.

    Closed transitively, cycles and wildcards included: whoever holds a scope that covers an entry holds all that the
    entry includes.

    Args:
        includes: each concrete scope (no wildcard) with the scopes that it includes.

    Raises:
        ScopeMalformed: an entry is no scope, has a wildcard, or a time scope occurs.
    """

    __slots__ = ("_closed",)

    def __init__(self, includes: Mapping[str, Iterable[str]]) -> None:
        declared = {parse(entry): tuple(parse(s) for s in _scopes(included)) for entry, included in includes.items()}
        for entry, included in declared.items():
            if entry.has_wildcard or any(s.is_time for s in (entry, *included)):
                raise ScopeMalformed(
                    "scope catalogue", got=entry.text, expected="entries without wildcards, and no time scopes"
                )
        self._closed = {entry: _closure(entry, declared) for entry in declared}

    def covers(self, granted: Scope, required: Scope) -> bool:
        """As the function `covers`, with the hierarchy."""
        return any(_covers(scope, required) for scope in _all_of(self, granted))

    def tops(self) -> dict[str, tuple[str, ...]]:
        """The entries that include something and that no other entry includes, each with all that it includes."""
        return {
            entry.text: tuple(s.text for s in included if s != entry)
            for entry, included in self._closed.items()
            if len(included) > 1 and all(self.covers(entry, e) or not self.covers(e, entry) for e in self._closed)
        }

    def including(self, scopes: Iterable[str]) -> tuple[str, ...]:
        """These scopes, and all that whoever holds them holds by the hierarchy.

        Raises:
            ScopeMalformed: one of them is not a scope.
        """
        held = [parse(scope) for scope in scopes]
        more = (s for h in held for s in _all_of(self, h))
        return tuple(dict.fromkeys(scope.text for scope in (*held, *more)))

    def _includes(self, granted: Scope) -> tuple[Scope, ...]:
        found = (s for entry, included in self._closed.items() if _covers(granted, entry) for s in included)
        return tuple(dict.fromkeys((granted, *found)))


@lru_cache(maxsize=1024)  # else each pair of scopes that are compared would go through the whole hierarchy
def _all_of(catalogue: Catalogue, granted: Scope) -> tuple[Scope, ...]:
    """A scope, and all that whoever holds it holds by the hierarchy."""
    return catalogue._includes(granted)


def _closure(start: Scope, declared: Mapping[Scope, tuple[Scope, ...]]) -> tuple[Scope, ...]:
    reached = {start: None}  # a dict, for its order
    waiting = [start]
    while waiting:
        scope = waiting.pop()
        for entry, included in declared.items():
            if _covers(scope, entry):
                new = [s for s in included if s not in reached]
                reached.update(dict.fromkeys(new))
                waiting.extend(new)
    return tuple(reached)


_EMPTY = Catalogue({})


def broad(scopes: Iterable[str], catalogue: Catalogue | None = None) -> list[str]:
    """Which of these scopes a person should look at twice before granting them: each with the reason, in one line.

    Wildcards, and what nothing in the catalogue is above; `delegate:` and `invoke:` of everybody most of all.

    Raises:
        ScopeMalformed: one of them is not a scope.
    """
    tops = (catalogue or _EMPTY).tops()
    return [f"{text} {why}" for text in _scopes(scopes) if (why := _why_broad(parse(text), tops))]


def _why_broad(scope: Scope, tops: Mapping[str, tuple[str, ...]]) -> str:
    if scope.is_time:
        return ""
    if scope.segments[0][1] in ("*", "**") and scope.head in _OF_AGENTS:
        return f"is for every agent: {_OF_AGENTS[scope.head]}"
    if scope.segments[0][1] == "**":
        return f"is everything that begins with {scope.head}:"
    if scope.segments[-1][1] == "**":
        return "is everything below, at any depth"
    if scope.has_wildcard:
        return "is a wildcard: what is named like that tomorrow is granted today"
    if scope.text in tops:
        return f"is the top of the catalogue: it includes {' '.join(tops[scope.text])}"
    return ""


_OF_AGENTS = {
    "delegate": "whoever gets the token may act with it",
    "invoke": "the token is good for whoever it is sent to",
}


def _scopes(scopes: str | Iterable[str]) -> tuple[str, ...]:
    if isinstance(scopes, str):
        return parse_scope_list(scopes)
    listed = list(islice(scopes, MAX_SCOPES + 1))
    if len(listed) > MAX_SCOPES or not all(isinstance(scope, str) for scope in listed):
        raise ScopeMalformed("scopes", expected=f"at most {MAX_SCOPES}, each a str")
    return tuple(dict.fromkeys(listed))
