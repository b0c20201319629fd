"""Who may have which certificate, written down: a policy file in TOML, and the decision that it makes. Pure.

    [[allow]]
    ids = ["/billing/*", "/team-a/**"]      # paths below the trust domain
    dns = ["*.billing.svc"]                 # without it, no DNS names
    ip = ["10.0.0.0/8"]                     # without it, no addresses
    keys = ["P-256", "Ed25519"]             # without it, every kind that the CA takes, but ML-DSA
    max_lifetime = "24h"                    # without it, the CA's own limit

    [[deny]]
    ids = ["/billing/admin"]

In an ID `*` is exactly one segment, and a final `**` is one or more, as in scopes; in a DNS name `*` is exactly one
label, and a first `**` is one or more. There are no parts of segments and no regular expressions.

All that is asked for must be allowed by one rule; two rules that allow half of it each do not add up. A deny rule
outweighs every allow rule. It applies to what all its keys describe: the ID, at least one of the names (`dns` and `ip`
together), the kind of key; a key that it leaves out describes everything.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TypeVar

from pki.errors import IDRefused, KeyTypeRefused, LifetimeRefused, NameRefused, PolicyMalformed, PolicyRefused
from trust.identity import AgentID
from trust.private_keys import KINDS, POST_QUANTUM

MAX_POLICY_BYTES = 256 << 10  # some thousand rules; every decision reads through them
RESERVED = "a2a-pki"  # the first segment of the CA's own IDs
KEY_TYPES = KINDS
# Post-quantum keys are opted into by name: most programs cannot read such certificates yet, and each has 2 or 3 KiB.
BY_NAME_ONLY = POST_QUANTUM

_ALLOW = ("ids", "dns", "ip", "keys", "max_lifetime")
_DENY = ("ids", "dns", "ip", "keys")

_SEGMENT = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_DURATION = re.compile(r"(0|[1-9][0-9]{0,5})([smhd])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_MAPPED = IPv6Network("::ffff:0:0/96")

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the policy says, and why."""

    allowed: bool
    rule: str  # the one that decided, such as "allow 2", counted from 1; empty where there is none
    why: str
    error: type[PolicyRefused] = PolicyRefused  # what a refusal is about


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One table of the file. An empty tuple means that the key was left out."""

    name: str
    ids: tuple[Pattern, ...] = ()
    dns: tuple[Pattern, ...] = ()
    ip: tuple[Network, ...] = ()
    keys: tuple[str, ...] = ()
    max_lifetime: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Pattern:
    """Segments or labels to compare with, the ones that may be open-ended last: `*` is one, a final `**` one or more.

    >>> Pattern(("billing", "*")).matches(("billing", "eu"))
    True
    """

    parts: tuple[str, ...]

    def matches(self, parts: Sequence[str]) -> bool:
        if self.parts[-1] == "**":
            fixed, fits = self.parts[:-1], len(parts) >= len(self.parts)
        else:
            fixed, fits = self.parts, len(parts) == len(self.parts)
        return fits and all(own in ("*", part) for own, part in zip(fixed, parts, strict=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A policy; `parse` is the only door."""

    trust_domain: str
    allow: tuple[Rule, ...]
    deny: tuple[Rule, ...]

    @classmethod
    def parse(cls, text: str, trust_domain: str) -> Rules:
        """Read a policy file, strictly: what is not understood in full is refused, for it was meant to say something.

        Raises:
            PolicyMalformed: not TOML, or a table, key or value that is not one of a policy; it names the place.
        """
        if len(text.encode("utf-8", "surrogatepass")) > MAX_POLICY_BYTES:
            raise PolicyMalformed("policy is too large", expected=f"at most {MAX_POLICY_BYTES} bytes")
        try:
            document = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
            raise PolicyMalformed("policy is not TOML", got=error, expected="[[allow]] and [[deny]] tables") from None
        unknown = sorted(document.keys() - {"allow", "deny"})
        if unknown:
            raise PolicyMalformed("policy", got=repr(unknown[0]), expected="only [[allow]] and [[deny]] tables")
        rules = cls(
            trust_domain=trust_domain,
            allow=tuple(_rule(name, table, _ALLOW) for name, table in _tables(document, "allow")),
            deny=tuple(_rule(name, table, _DENY) for name, table in _tables(document, "deny")),
        )
        if not rules.allow:
            raise PolicyMalformed(
                "policy allows nothing",
                expected="at least one [[allow]] table",
                do='write [[allow]] with ids = ["/**"] if all IDs are meant',
            )
        return rules

    def decide(
        self,
        agent_id: AgentID,
        dns_names: Collection[str],
        ip_addresses: Collection[Address],
        key_type: str,
        lifetime: timedelta,
    ) -> Decision:
        """Decide on a certificate, all of it at once.

        Args:
            dns_names: in lower case, as `policy.dns_name` returns them.
            key_type: one of `KEY_TYPES`.
        """
        # What no rule can allow.
        if agent_id.trust_domain != self.trust_domain:
            return Decision(allowed=False, rule="", why=f"{agent_id} is not of {self.trust_domain}", error=IDRefused)
        if reserved(agent_id):
            return Decision(allowed=False, rule="", why=f"/{RESERVED}/** is for the CA itself", error=IDRefused)
        asked = _Asked(
            segments=tuple(agent_id.path[1:].split("/")),
            names={name: tuple(reversed(name.split("."))) for name in dns_names},
            addresses=tuple(ip_addresses),
            key_type=key_type,
            lifetime=lifetime,
        )

        # Deny wins.
        for rule in self.deny:
            denied = _denies(rule, asked)
            if denied is not None:
                return denied

        # One allow rule for everything. The refusal that is told is the one of the rule that came closest.
        closest = Decision(allowed=False, rule="", why=f"no allow rule has the ID {agent_id.path}", error=IDRefused)
        distance = 0
        for rule in self.allow:
            steps, refusal = _allows(rule, asked)
            if refusal is None:
                return Decision(allowed=True, rule=rule.name, why=f"{rule.name} has all that is asked for")
            if steps > distance:
                distance, closest = steps, refusal
        return closest


def duration(text: str) -> timedelta | None:
    """A time as people write it: a number and s, m, h or d, such as "24h"; None for anything else."""
    match = _DURATION.fullmatch(text)
    return None if match is None else timedelta(**{_UNITS[match[2]]: int(match[1])})


def spelled(time: timedelta) -> str:
    """A time for people, in the largest unit of which there are two or more whole ones: "30 days", "90 minutes"."""
    seconds = time.total_seconds()
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * size and seconds % size == 0:
            return f"{seconds / size:.0f} {unit}s"
    return f"{seconds:.10g} second{'' if seconds == 1 else 's'}"


def reserved(agent_id: AgentID) -> bool:
    """Whether an ID is one of the CA's own, which no agent gets."""
    return agent_id.path.split("/")[1] == RESERVED


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    segments: tuple[str, ...]
    names: dict[str, tuple[str, ...]]  # with their labels, the last one first, as patterns have them
    addresses: tuple[Address, ...]
    key_type: str
    lifetime: timedelta


def _denies(rule: Rule, asked: _Asked) -> Decision | None:
    if rule.ids and not _any(rule.ids, asked.segments):
        return None
    if rule.keys and asked.key_type not in rule.keys:
        return None
    hits = [name for name, labels in asked.names.items() if _any(rule.dns, labels)]
    hits += [str(address) for address in asked.addresses if _within(address, rule.ip)]
    if (rule.dns or rule.ip) and not hits:
        return None
    error: type[PolicyRefused] = KeyTypeRefused
    what = f"keys of kind {asked.key_type}"
    if hits:
        error, what = NameRefused, hits[0]
    elif rule.ids:
        error, what = IDRefused, "/" + "/".join(asked.segments)
    return Decision(allowed=False, rule=rule.name, why=f"{rule.name} refuses {what}", error=error)


def _allows(rule: Rule, asked: _Asked) -> tuple[int, Decision | None]:
    """How many of the questions the rule answers with yes, in their order, and the first no."""

    def no(why: str, error: type[PolicyRefused]) -> Decision:
        return Decision(allowed=False, rule=rule.name, why=why, error=error)

    if not _any(rule.ids, asked.segments):
        return 0, no(f"{rule.name} does not have the ID", IDRefused)
    for name, labels in asked.names.items():
        if not _any(rule.dns, labels):
            return 1, no(f"{rule.name} does not have the DNS name {name}", NameRefused)
    for address in asked.addresses:
        if not _within(address, rule.ip):
            return 1, no(f"{rule.name} does not have the address {address}", NameRefused)
    if rule.keys and asked.key_type not in rule.keys:
        return 2, no(f"{rule.name} wants keys of kind {' or '.join(rule.keys)}, not {asked.key_type}", KeyTypeRefused)
    if not rule.keys and asked.key_type in BY_NAME_ONLY:
        return 2, no(f"{rule.name} does not name keys of kind {asked.key_type}", KeyTypeRefused)
    if rule.max_lifetime is not None and asked.lifetime > rule.max_lifetime:
        wants, got = spelled(rule.max_lifetime), spelled(asked.lifetime)
        return 3, no(f"{rule.name} allows at most {wants}, not {got}", LifetimeRefused)
    return 4, None


def _any(patterns: tuple[Pattern, ...], parts: Sequence[str]) -> bool:
    return any(pattern.matches(parts) for pattern in patterns)


def _within(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)  # never in a network of the other family


# Parsing.


def _tables(document: dict[str, object], kind: str) -> list[tuple[str, dict[str, object]]]:
    tables = document.get(kind, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise PolicyMalformed(f"policy: {kind}", got="something else", expected=f"[[{kind}]] tables")
    return [(f"{kind} {number}", table) for number, table in enumerate(tables, 1)]


def _rule(name: str, table: dict[str, object], known: tuple[str, ...]) -> Rule:
    for key in table:
        if key not in known:
            raise PolicyMalformed(f"policy: {name}", got=repr(key), expected="only " + ", ".join(known))
    if not table or (known is _ALLOW and "ids" not in table):
        raise PolicyMalformed(
            f"policy: {name}", got="no ids", expected="what the rule is about", do='add ids = ["/..."]'
        )
    return Rule(
        name=name,
        ids=_each(name, table, "ids", _id_pattern),
        dns=_each(name, table, "dns", _dns_pattern),
        ip=_each(name, table, "ip", _network),
        keys=_each(name, table, "keys", _key_type),
        max_lifetime=_lifetime(name, table["max_lifetime"]) if "max_lifetime" in table else None,
    )


def _each(rule: str, table: dict[str, object], key: str, read: Callable[[str], T | None]) -> tuple[T, ...]:
    """The values of a list. An empty one is refused: it would mean nothing to one reader and everything to another."""
    if key not in table:
        return ()
    listed = table[key]
    place = f"policy: {rule}, {key}"
    if not isinstance(listed, list) or not listed or not all(isinstance(item, str) for item in listed):
        raise PolicyMalformed(place, got=repr(listed), expected='a list of texts with at least one, such as ["..."]')
    values: list[T] = []
    for text in listed:
        value = read(text)
        if value is None:
            raise PolicyMalformed(place, got=repr(text), expected=_EXPECTED[key])
        if value in values:
            raise PolicyMalformed(place, got=f"{text!r} twice", expected="each once")
        values.append(value)
    return tuple(values)


_EXPECTED = {
    "ids": "a path below the trust domain, such as /billing/* or /team/**, with '*' for a whole segment",
    "dns": "a DNS name, such as *.billing.svc, with '*' for a whole label and a first '**' for several",
    "ip": "a network without host bits, such as 10.0.0.0/8 or fd00::/8",
    "keys": "one of " + ", ".join(KEY_TYPES),
}


def _id_pattern(text: str) -> Pattern | None:
    root, *parts = text.split("/")
    return (
        _pattern(parts, lambda part: bool(_SEGMENT.fullmatch(part)) and part not in (".", "..")) if not root else None
    )


def _dns_pattern(text: str) -> Pattern | None:
    if not text.isascii():  # a few letters of other alphabets turn into ASCII when they are lowered
        return None
    # Names are compared from their last label on, so that what may be open-ended comes last.
    return _pattern(text.lower().split(".")[::-1], lambda part: bool(_LABEL.fullmatch(part)))


def _pattern(parts: list[str], plain: Callable[[str], bool]) -> Pattern | None:
    if not parts or not all(part == "*" or plain(part) for part in parts[:-1]):
        return None
    return Pattern(tuple(parts)) if parts[-1] in ("*", "**") or plain(parts[-1]) else None


def _network(text: str) -> Network | None:
    try:
        network = ip_network(text)
    except ValueError:
        return None
    # An IPv4 address in IPv6 form is in no certificate of ours, so a rule about it would do nothing.
    if "%" in text or (isinstance(network, IPv6Network) and network.subnet_of(_MAPPED)):
        return None
    return network


def _key_type(text: str) -> str | None:
    return text if text in KEY_TYPES else None


def _lifetime(rule: str, value: object) -> timedelta:
    lifetime = duration(value) if isinstance(value, str) else None
    if not lifetime:
        raise PolicyMalformed(
            f"policy: {rule}, max_lifetime", got=repr(value), expected='a number and s, m, h or d, such as "24h"'
        )
    return lifetime
