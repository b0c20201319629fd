"""Many agents in one name: `spiffe://fleet.example/workers/*`.

`*` is exactly one whole segment of the path, a final `**` is one or more. The trust domain is never a pattern: whoever
runs another domain decides who its agents are.
"""

from __future__ import annotations

from dataclasses import dataclass

from trust.errors import IdentityError
from trust.identity import AgentID

_ANY = "x"  # stands for a wildcard where a path has to be a path


@dataclass(frozen=True, slots=True)
class AgentPattern:
    """The SPIFFE IDs that a pattern names; `parse` is the only door."""

    trust_domain: str
    segments: tuple[str, ...]  # of the path; `**` only as the last one

    @classmethod
    def parse(cls, text: str) -> AgentPattern:
        """Parse a pattern, as strictly as `AgentID.parse`.

        Raises:
            IdentityError: (a ValueError) it is none; a SPIFFE ID without a wildcard is none.
        """
        if not isinstance(text, str) or "*" not in text:
            raise IdentityError("SPIFFE ID pattern", got=text, expected="a segment `*`, or `**` at the end")
        start, segments = text.split("/")[:3], text.split("/")[3:]
        literal = [_ANY if s == "*" or (s == "**" and n == len(segments)) else s for n, s in enumerate(segments, 1)]
        if "*" in "".join([*start, *literal]):
            raise IdentityError(
                "SPIFFE ID pattern", got=text, expected="`*` for whole segments of the path, `**` only at its end"
            )
        return cls(AgentID.parse("/".join([*start, *literal])).trust_domain, tuple(segments))

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/{'/'.join(self.segments)}"

    @property
    def example(self) -> AgentID:
        """One of the agents that it names."""
        return AgentID(self.trust_domain, "".join(f"/{_ANY if '*' in s else s}" for s in self.segments))

    @property
    def is_whole_domain(self) -> bool:
        return self.segments == ("**",)

    def matches(self, agent: AgentID) -> bool:
        return agent.trust_domain == self.trust_domain and self.shares_path(tuple(agent.path[1:].split("/")))

    def overlaps(self, other: AgentPattern) -> bool:
        """Whether there can be an agent that both name."""
        return self.trust_domain == other.trust_domain and self.shares_path(other.segments)

    def shares_path(self, path: tuple[str, ...]) -> bool:
        """Whether there is a path that both name, whatever the trust domains; a literal path is a pattern, too."""
        ours, our_tail = _parts(self.segments)
        theirs, their_tail = _parts(path)
        if len(ours) + our_tail > len(theirs) and not their_tail:
            return False
        if len(theirs) + their_tail > len(ours) and not our_tail:
            return False
        return all("*" in (a, b) or a == b for a, b in zip(ours, theirs, strict=False))


def _parts(segments: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """The segments that are one each, and whether one or more follow."""
    return (segments[:-1], True) if segments[-1] == "**" else (segments, False)
