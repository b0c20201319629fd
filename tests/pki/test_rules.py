"""Policy files: what they may say, what they then allow, and the patterns against a model that tries everything."""

from __future__ import annotations

import re
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pki.errors import (
    IDRefused,
    KeyTypeRefused,
    LifetimeRefused,
    NameRefused,
    PolicyMalformed,
    PolicyRefused,
)
from pki.rules import MAX_POLICY_BYTES, Decision, Pattern, Rules, reserved, spelled
from tests.pki.conftest import DOMAIN
from trust.identity import AgentID

HOUR = timedelta(hours=1)

POLICY = """
# Billing may have its service names, for a day.
[[allow]]
ids = ["/billing/*", "/planner"]
dns = ["*.billing.svc", "localhost"]
ip = ["10.0.0.0/8", "fd00::/8"]
keys = ["P-256", "Ed25519"]
max_lifetime = "24h"

[[allow]]
ids = ["/team-a/**"]

[[deny]]
ids = ["/team-a/root", "/billing/old"]

[[deny]]
dns = ["admin.*.svc", "**.internal"]
ip = ["10.9.0.0/16"]

[[deny]]
ids = ["/team-a/strict/**"]
keys = ["P-256"]
"""
RULES = Rules.parse(POLICY, DOMAIN)


def decide(path: str = "/billing/eu", rules: Rules = RULES, **changes: Any) -> Decision:
    asked: dict[str, Any] = {"dns_names": (), "ip_addresses": (), "key_type": "P-256", "lifetime": HOUR, **changes}
    domain = asked.pop("domain", DOMAIN)
    return rules.decide(AgentID(domain, path), **asked)


ALLOWED: list[tuple[str, dict[str, Any], str]] = [
    ("an ID alone", {}, "allow 1"),
    ("another ID of the rule", {"path": "/planner"}, "allow 1"),
    ("its names", {"dns_names": ("a.billing.svc", "localhost")}, "allow 1"),
    ("its addresses", {"ip_addresses": (ip_address("10.1.2.3"), ip_address("fd00::1"))}, "allow 1"),
    ("its other kind of key", {"key_type": "Ed25519"}, "allow 1"),
    ("its longest life", {"lifetime": 24 * HOUR}, "allow 1"),
    ("one segment below", {"path": "/team-a/x"}, "allow 2"),
    ("many segments below, any key, a week", {"path": "/team-a/x/y/z", "key_type": "P-384", "lifetime": 168 * HOUR},
     "allow 2"),
    ("below an ID that is denied", {"path": "/team-a/root/x"}, "allow 2"),
    ("a key that is not denied", {"path": "/team-a/strict/x", "key_type": "P-384"}, "allow 2"),
]  # fmt: skip
REFUSED: list[tuple[str, dict[str, Any], str, type[PolicyRefused]]] = [
    ("no rule", {"path": "/payroll"}, "", IDRefused),
    ("above the pattern", {"path": "/billing"}, "", IDRefused),
    ("below the pattern", {"path": "/billing/eu/x"}, "", IDRefused),
    ("above a final **", {"path": "/team-a"}, "", IDRefused),
    ("a longer segment", {"path": "/team-ab/x"}, "", IDRefused),
    ("other letters", {"path": "/Planner"}, "", IDRefused),
    ("another trust domain", {"domain": "other.example"}, "", IDRefused),
    ("the CA's own", {"path": "/a2a-pki/server"}, "", IDRefused),
    ("one name too many", {"dns_names": ("a.billing.svc", "bank.example")}, "allow 1", NameRefused),
    ("a name two labels below", {"dns_names": ("a.b.billing.svc",)}, "allow 1", NameRefused),
    ("the name above", {"dns_names": ("billing.svc",)}, "allow 1", NameRefused),
    ("a name of another suffix", {"dns_names": ("a.billing.svc.example",)}, "allow 1", NameRefused),
    ("a name where the rule has none", {"path": "/team-a/x", "dns_names": ("localhost",)}, "allow 2", NameRefused),
    ("an address outside", {"ip_addresses": (ip_address("11.0.0.1"),)}, "allow 1", NameRefused),
    ("an address of the other family", {"ip_addresses": (ip_address("::a00:1"),)}, "allow 1", NameRefused),
    ("an address where the rule has none", {"path": "/team-a/x", "ip_addresses": (ip_address("10.0.0.1"),)},
     "allow 2", NameRefused),
    ("another kind of key", {"key_type": "P-384"}, "allow 1", KeyTypeRefused),
    ("a second too long", {"lifetime": 24 * HOUR + timedelta(seconds=1)}, "allow 1", LifetimeRefused),
    ("a denied ID", {"path": "/billing/old"}, "deny 1", IDRefused),
    ("a denied ID below **", {"path": "/team-a/root"}, "deny 1", IDRefused),
    ("a denied name among good ones", {"dns_names": ("a.billing.svc", "admin.billing.svc")}, "deny 2", NameRefused),
    ("a denied suffix", {"dns_names": ("a.internal",)}, "deny 2", NameRefused),
    ("a denied suffix, deeper", {"dns_names": ("a.b.internal",)}, "deny 2", NameRefused),
    ("a denied address in an allowed network", {"ip_addresses": (ip_address("10.9.1.1"),)}, "deny 2", NameRefused),
    ("a denied key of an allowed ID", {"path": "/team-a/strict/x"}, "deny 3", IDRefused),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "rule"), [row[1:] for row in ALLOWED], ids=[row[0] for row in ALLOWED])
def test_allowed(asked: dict[str, Any], rule: str) -> None:
    decision = decide(**asked)
    assert (decision.allowed, decision.rule) == (True, rule), decision.why


@pytest.mark.parametrize(("asked", "rule", "error"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(asked: dict[str, Any], rule: str, error: type[PolicyRefused]) -> None:
    decision = decide(**asked)
    assert (decision.allowed, decision.rule, decision.error) == (False, rule, error), decision.why
    assert decision.why and "\n" not in decision.why


def test_the_name_admin_alone_is_not_below_itself() -> None:
    """`admin.**` is no pattern of several labels at the end: in a DNS name the open end is the first label."""
    with pytest.raises(PolicyMalformed, match=r"deny 1, dns.*'admin\.\*\*'"):
        Rules.parse('[[allow]]\nids = ["/**"]\n[[deny]]\ndns = ["admin.**"]', DOMAIN)


def test_two_rules_do_not_add_up() -> None:
    rules = Rules.parse(
        '[[allow]]\nids = ["/a"]\ndns = ["a.example"]\n[[allow]]\nids = ["/a"]\nip = ["127.0.0.1/32"]', DOMAIN
    )
    both = {"dns_names": ("a.example",), "ip_addresses": (ip_address("127.0.0.1"),)}
    assert not decide("/a", rules, **both).allowed
    assert all(decide("/a", rules, **{name: value}).allowed for name, value in both.items())


def test_the_rule_that_came_closest_is_told() -> None:
    rules = Rules.parse(
        '[[allow]]\nids = ["/b"]\n[[allow]]\nids = ["/a"]\nmax_lifetime = "1m"\n'
        '[[allow]]\nids = ["/a"]\nkeys = ["P-384"]',
        DOMAIN,
    )
    decision = decide("/a", rules)
    assert (decision.rule, decision.error) == ("allow 2", LifetimeRefused)
    assert "60 seconds" in decision.why


def test_deny_about_keys_alone() -> None:
    rules = Rules.parse('[[allow]]\nids = ["/**"]\n[[deny]]\nkeys = ["Ed25519"]', DOMAIN)
    assert decide("/a", rules).allowed
    assert decide("/a", rules, key_type="Ed25519").error is KeyTypeRefused


@pytest.mark.parametrize("path", ["/a2a-pki", "/a2a-pki/server", "/a2a-pki/a/b"])
def test_reserved(path: str) -> None:
    assert reserved(AgentID(DOMAIN, path))
    assert not decide(path, Rules.parse('[[allow]]\nids = ["/**"]', DOMAIN)).allowed


@pytest.mark.parametrize("path", ["/a2a-pki2", "/x/a2a-pki", "/A2A-PKI"])
def test_not_reserved(path: str) -> None:
    assert not reserved(AgentID(DOMAIN, path))


GOOD = '[[allow]]\nids = ["/**"]\n'
MALFORMED: list[tuple[str, str, str]] = [
    ("not TOML", "[[allow", "not TOML"),
    ("nested beyond reason", "x = " + "[" * 100_000, "not TOML"),
    ("nothing", "", "allows nothing"),
    ("only deny", '[[deny]]\nids = ["/a"]', "allows nothing"),
    ("an empty list of rules", "allow = []", "allows nothing"),
    ("too large", "#" * (MAX_POLICY_BYTES + 1), "too large"),
    ("another table", GOOD + "[[permit]]\nids = ['/a']", "'permit'"),
    ("a key outside of a table", "default = 'deny'\n" + GOOD, "'default'"),
    ("one table", '[allow]\nids = ["/a"]', r"expected \[\[allow\]\] tables"),
    ("a text", 'allow = "all"', r"expected \[\[allow\]\] tables"),
    ("a list of texts", 'allow = ["all"]', r"expected \[\[allow\]\] tables"),
    ("an unknown key", '[[allow]]\nids = ["/a"]\nuri = ["x"]', "allow 1: got 'uri'"),
    ("a key twice", '[[allow]]\nids = ["/a"]\nids = ["/b"]', "not TOML"),
    ("a lifetime in deny", GOOD + '[[deny]]\nmax_lifetime = "1h"', "deny 1: got 'max_lifetime'"),
    ("no ids", GOOD + '[[allow]]\ndns = ["a.example"]', "allow 2: got no ids"),
    ("an empty rule", "[[allow]]", "allow 1: got no ids"),
    ("an empty deny", GOOD + "[[deny]]", "deny 1: got no ids"),
    ("empty ids", "[[allow]]\nids = []", "allow 1, ids"),
    ("ids as a text", '[[allow]]\nids = "/a"', "allow 1, ids"),
    ("ids of another kind", "[[allow]]\nids = [1]", "allow 1, ids"),
    ("empty dns", GOOD + "dns = []", "allow 1, dns"),
    ("empty ip", GOOD + "ip = []", "allow 1, ip"),
    ("empty keys", GOOD + "keys = []", "allow 1, keys"),
    ("an ID twice", '[[allow]]\nids = ["/a", "/a"]', "twice"),
    ("a name twice, in other letters", GOOD + 'dns = ["a.x", "A.X"]', "twice"),
    ("a network twice", GOOD + 'ip = ["127.0.0.1", "127.0.0.1/32"]', "twice"),
    ("a key twice in the list", GOOD + 'keys = ["P-256", "P-256"]', "twice"),
    ("a key of another kind", GOOD + 'keys = ["RSA"]', "allow 1, keys: got 'RSA', expected one of P-256, P-384"),
    ("a key in other letters", GOOD + 'keys = ["p-256"]', "allow 1, keys"),
    *(
        (f"ID {text!r}", f'[[allow]]\nids = ["{text}"]', "allow 1, ids")
        for text in ("", "/", "a", "//a", "/a/", "/a//b", "/./a", "/..", "/a b", "/a*", "/*a", "/**/a", "/a/**/b",
                     "/***", "/a?", "/[ab]", "/ü", "spiffe://fleet.example/a", "/a%20b", "/a\\n")
    ),
    *(
        (f"DNS name {text!r}", GOOD + f'dns = ["{text}"]', "allow 1, dns")
        for text in ("", ".", "a.", ".a", "a..b", "*a.b", "a*.b", "a.**.b", "a.**", "-a.b", "a_b", "\\u212aelvin",
                     "a b", "a\\n", "***")
    ),
    *(
        (f"network {text!r}", GOOD + f'ip = ["{text}"]', "allow 1, ip")
        for text in ("", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "fe80::%eth0/64", "::ffff:10.0.0.0/104", "localhost",
                     "::ffff:10.0.0.1", "10.0.0.0/8 ", "*")
    ),
    *(
        (f"lifetime {text}", GOOD + f"max_lifetime = {text}", "allow 1, max_lifetime")
        for text in ('""', '"0h"', '"1"', '"h"', '"1w"', '"-1h"', '"1.5h"', '"1h "', "3600", "1.5", "true", '["1h"]',
                     "2026-01-01", '"9999999s"')
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), [row[1:] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_malformed(text: str, says: str) -> None:
    with pytest.raises(PolicyMalformed, match=says) as caught:
        Rules.parse(text, DOMAIN)
    assert type(caught.value) is PolicyMalformed
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "lifetime"),
    [("1s", timedelta(seconds=1)), ("90m", 1.5 * HOUR), ("24h", 24 * HOUR), ("7d", 168 * HOUR)],
)
def test_lifetimes(text: str, lifetime: timedelta) -> None:
    (rule,) = Rules.parse(GOOD + f'max_lifetime = "{text}"', DOMAIN).allow
    assert rule.max_lifetime == lifetime


@pytest.mark.parametrize(
    ("time", "words"),
    [
        (timedelta(0), "0 seconds"),
        (timedelta(seconds=0.5), "0.5 seconds"),
        (timedelta(seconds=1), "1 second"),
        (timedelta(seconds=60), "60 seconds"),
        (1.5 * HOUR, "90 minutes"),
        (24 * HOUR, "24 hours"),
        (49 * HOUR, "49 hours"),
        (720 * HOUR, "30 days"),
        (24 * HOUR + timedelta(seconds=1), "86401 seconds"),
    ],
)
def test_times_are_spelled(time: timedelta, words: str) -> None:
    assert spelled(time) == words


PARTS = st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=4)
NAME = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5)


def model(pattern: list[str], name: list[str]) -> bool:
    """The same language as a regular expression over letters, one letter a part."""
    spelled = "".join({"*": "[abc]", "**": "[abc]+"}.get(part, part) for part in pattern)
    return re.fullmatch(spelled, "".join(name)) is not None


@given(PARTS, NAME)
def test_id_patterns_against_the_model(pattern: list[str], name: list[str]) -> None:
    text = f'[[allow]]\nids = ["/{"/".join(pattern)}"]'
    if "**" in pattern[:-1]:
        with pytest.raises(PolicyMalformed):
            Rules.parse(text, DOMAIN)
        return
    assert decide("/" + "/".join(name), Rules.parse(text, DOMAIN)).allowed == model(pattern, name)


@given(PARTS, NAME)
def test_dns_patterns_against_the_model(pattern: list[str], name: list[str]) -> None:
    text = f'[[allow]]\nids = ["/x"]\ndns = ["{".".join(pattern)}"]'
    if "**" in pattern[1:]:
        with pytest.raises(PolicyMalformed):
            Rules.parse(text, DOMAIN)
        return
    rules = Rules.parse(text, DOMAIN)
    assert decide("/x", rules, dns_names=(".".join(name),)).allowed == model(pattern, name)


@given(PARTS.filter(lambda parts: "**" not in parts[:-1]), NAME)
def test_a_pattern_matches_what_its_model_matches(pattern: list[str], name: list[str]) -> None:
    assert Pattern(tuple(pattern)).matches(tuple(name)) == model(pattern, name)


@given(st.text(alphabet=st.sampled_from('[]alowdeny="\n/*.idsnpkm_xftu019-# {},'), max_size=120) | st.text(max_size=60))
def test_any_text_is_a_policy_or_malformed(text: str) -> None:
    try:
        rules = Rules.parse(text, DOMAIN)
    except PolicyMalformed as error:
        assert str(error).isprintable()
        return
    assert rules.allow


_VALUE = (
    st.none() | st.booleans() | st.integers(0, 5) | st.sampled_from(["/a", "/**", "a.b", "::/0", "P-256", "1h", ""])
)
_TABLE = st.dictionaries(
    st.sampled_from(["ids", "dns", "ip", "keys", "max_lifetime", "x"]),
    _VALUE | st.lists(_VALUE, max_size=2),
    max_size=3,
)


@given(st.lists(_TABLE, max_size=2), st.lists(_TABLE, max_size=2))
def test_any_tables_are_a_policy_or_malformed(allow: list[dict[str, Any]], deny: list[dict[str, Any]]) -> None:
    def toml(value: object) -> str:
        if isinstance(value, list):
            return "[" + ", ".join(toml(item) for item in value) + "]"
        if isinstance(value, bool) or value is None:
            return "true" if value else "false"
        return str(value) if isinstance(value, int) else f'"{value}"'

    lines = []
    for kind, tables in (("allow", allow), ("deny", deny)):
        for table in tables:
            lines += [f"[[{kind}]]", *(f"{key} = {toml(value)}" for key, value in table.items())]
    try:
        rules = Rules.parse("\n".join(lines), DOMAIN)
    except PolicyMalformed:
        return
    assert len(rules.allow) == len(allow) and all(rule.ids for rule in rules.allow)
    assert len(rules.deny) == len(deny)
    decide("/a", rules, dns_names=("a.b",), ip_addresses=(ip_address("::1"),))
