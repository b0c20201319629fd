"""Attempts to hold more than was granted: what a child token must not get, and what is not a scope."""

from __future__ import annotations

from typing import Any

import pytest

from trust.errors import ScopeMalformed
from trust.oauth import scopes
from trust.oauth.scopes import (
    MAX_LIST_CHARACTERS,
    MAX_SCOPES,
    Catalogue,
    Scope,
    attenuates,
    parse,
    parse_scope_list,
)

CATALOGUE = Catalogue({"agent:admin": ["agent:execute"], "agent:execute": ["agent:read"]})
PARENT = "agent:execute read:customers.eu.* write:orders/** temporal:30min temporal:business-hours"
TIME = "temporal:30min temporal:business-hours"


def test_what_the_parent_may_pass_on() -> None:
    assert attenuates(PARENT, PARENT, CATALOGUE)
    assert attenuates(PARENT, f"agent:read read:customers.eu.de write:orders/7/lines {TIME} temporal:5min", CATALOGUE)


ESCALATIONS = {
    "another verb": f"delete:customers.eu.de {TIME}",
    "another resource": f"read:suppliers.eu.de {TIME}",
    "up the hierarchy": f"agent:admin {TIME}",
    "wildcard for what is held singly": f"agent:* {TIME}",
    "everything": f"agent:** {TIME}",
    "wider wildcard": f"read:customers.** {TIME}",
    "wildcard earlier": f"read:customers.*.* {TIME}",
    "wildcard for a tail": f"read:customers.eu.** {TIME}",
    "a level more": f"read:customers.eu.de.berlin {TIME}",
    "a level less": f"read:customers.eu {TIME}",
    "the other separator": f"read:customers.eu/de {TIME}",
    "the other separator before a tail": f"write:orders.7 {TIME}",
    "the tail without its segment": f"write:orders {TIME}",
    "case": f"read:Customers.eu.de {TIME}",
    "one good, one not": f"agent:read write:invoices {TIME}",
    "a time scope dropped": "agent:read temporal:30min",
    "all time scopes dropped": "agent:read",
    "no scopes but time dropped": "",
    "a time scope replaced by a wider one": "agent:read temporal:60min temporal:business-hours",
    "a time scope replaced by a narrower one": "agent:read temporal:5min temporal:business-hours",
    "a time scope in another case": "agent:read temporal:30min temporal:Business-Hours",
    "wildcard for the time scopes": "agent:read temporal:*",
    "tail for the time scopes": "agent:read temporal:**",
}


@pytest.mark.parametrize("child", ESCALATIONS.values(), ids=ESCALATIONS)
def test_escalation(child: str) -> None:
    assert attenuates(PARENT, child, CATALOGUE) is False


@pytest.mark.parametrize("parent", ["temporal:30min", "temporal:*", "temporal:**", "agent:** temporal:**"])
def test_time_scopes_grant_nothing(parent: str) -> None:
    assert attenuates(parent, f"{parent} read:customers", CATALOGUE) is False


MALFORMED: dict[str, Any] = {
    "empty": "",
    "no head": ":customers",
    "no colon": "customers",
    "no path": "read:",
    "head is a wildcard": "*:customers",
    "part of a head is a wildcard": "re*:customers",
    "tail in the middle": "read:**.eu",
    "tail and segment": "read:customers.**.eu",
    "three stars": "read:***",
    "part of a segment is a wildcard": "read:cust*",
    "empty segment": "read:customers..eu",
    "empty first segment": "read:.eu",
    "trailing separator": "read:customers.",
    "two colons": "read:customers:eu",
    "space": "read:customers eu",
    "line end": "read:customers\n",
    "NUL": "read:customers\0",
    "percent encoding": "read:customers%2eeu",
    "other letters": "read:k\u00fcnden",
    "other digits": "read:\u0661",
    "full-width": "read\uff1acustomers",
    "too long": "read:" + "a" * MAX_LIST_CHARACTERS,
    "bytes": b"read:customers",
    "None": None,
    "list": ["read:customers"],
}


@pytest.mark.parametrize("scope", MALFORMED.values(), ids=MALFORMED)
def test_malformed(scope: Any) -> None:
    for call in (lambda: parse(scope), lambda: attenuates(["read:**"], [scope]), lambda: attenuates([scope], [])):
        with pytest.raises(ScopeMalformed) as caught:
            call()
        assert type(caught.value) is ScopeMalformed
        assert caught.value.status == 400
        assert caught.value.code == "invalid_scope"


MALFORMED_LISTS: dict[str, Any] = {
    "leading space": " read:a",
    "trailing space": "read:a ",
    "two spaces": "read:a  read:b",
    "tab": "read:a\tread:b",
    "line end": "read:a\nread:b",
    "trailing line end": "read:a\n",
    "quotes": 'read:a "read:b"',
    "backslash": "read:a\\b",
    "delete": "read:a\x7f",
    "not ASCII": "read:\u00e4",
    "only a space": " ",
    "too many": " ".join(f"r:{n}" for n in range(MAX_SCOPES + 1)),
    "too long": "x" * (MAX_LIST_CHARACTERS + 1),
    "list": ["read:a"],
    "number": 7,
    "None": None,
    "bytes": b"read:a",
}


@pytest.mark.parametrize("text", MALFORMED_LISTS.values(), ids=MALFORMED_LISTS)
def test_malformed_list(text: Any) -> None:
    with pytest.raises(ScopeMalformed) as caught:
        parse_scope_list(text)
    assert type(caught.value) is ScopeMalformed


def test_too_many_scopes_one_by_one() -> None:
    with pytest.raises(ScopeMalformed):
        attenuates("read:**", (f"read:{n}" for n in range(MAX_SCOPES + 1)))


def test_many_scopes_and_a_large_hierarchy_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for as many scopes as a list may have, so that each is compared with each, in an event loop."""
    catalogue = Catalogue({f"head{n}:top": [f"head{n}:low"] for n in range(256)})
    compared, covers = 0, scopes._covers

    def counting(a: Scope, b: Scope) -> bool:
        nonlocal compared
        compared += 1
        return covers(a, b)

    monkeypatch.setattr(scopes, "_covers", counting)
    held = [f"read:{n}" for n in range(MAX_SCOPES)]
    assert attenuates(held, reversed(held), catalogue)
    assert compared <= MAX_SCOPES * (256 + MAX_SCOPES)  # and not times each other
