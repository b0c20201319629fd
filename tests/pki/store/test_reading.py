"""What can be asked, and that the answer costs the same however many certificates there are."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509

from pki.profiles import BACKDATE
from pki.records import Issue
from pki.store import Store
from tests.pki.conftest import DOMAIN, NOW
from tests.pki.store import parts
from tests.pki.store.parts import AGENT, CA1, DAY, ROOT, SECOND, fake, issue

OTHER = f"spiffe://{DOMAIN}/Billing/[a]"
UNDERSCORE = f"spiffe://{DOMAIN}/bill_ng"
PERCENT = f"spiffe://{DOMAIN}/50%"
BACKSLASH = f"spiffe://{DOMAIN}/a\\b"


@pytest.fixture
def several(store: Store) -> Store:
    issue(
        store,
        fake(9),
        fake(3, kind="ocsp", issuer=ROOT.issuer.key_id),
        fake(5, spiffe_id=OTHER, not_after=NOW),
        fake(6, spiffe_id=UNDERSCORE),
        fake(7, spiffe_id=PERCENT),
        fake(8, spiffe_id=BACKSLASH),
    )
    store.revoke([3], reason=x509.ReasonFlags.superseded, now=NOW)
    return store


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [9, 3, 5, 6, 7, 8]),
        ({"kind": "agent"}, [9, 5, 6, 7, 8]),
        ({"kind": None, "spiffe_id": AGENT}, [9, 3]),
        ({"issuer": CA1.issuer.key_id}, [9, 5, 6, 7, 8]),
        ({"ends_after": NOW, "kind": "agent"}, [9, 5, 6, 7, 8]),
        ({"ends_after": NOW + SECOND, "kind": "agent"}, [9, 6, 7, 8]),
        ({"ends_before": NOW}, []),
        ({"ends_before": NOW + SECOND}, [5]),
        ({"revoked": True}, [3]),
        ({"revoked": False}, [9, 5, 6, 7, 8]),
        ({"pattern": f"spiffe://{DOMAIN}/b*"}, [9, 3, 6]),
        ({"pattern": "*/Billing/*"}, [5]),
        ({"pattern": "*/[a]"}, [5]),
        ({"pattern": "*/bill_ng"}, [6]),
        ({"pattern": "*/bill?ng"}, [9, 3, 6]),
        ({"pattern": "*%"}, [7]),
        ({"pattern": "*a\\b"}, [8]),
        ({"pattern": "billing"}, []),
        ({"pattern": AGENT}, [9, 3]),
    ],
)
def test_narrowed_and_in_order(filters: dict[str, Any], expected: list[int], several: Store) -> None:
    known = {ROOT.record.serial, CA1.record.serial}
    assert [r.serial for r in several.records(**filters) if r.serial not in known] == expected
    assert [r.serial for r in several.each_record(**filters) if r.serial not in known] == expected


def test_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pki.store.reading._PAGE", 3)
    store._issue([Issue(record=fake(n), now=NOW) for n in range(1, 12)])
    assert [r.serial for r in store.each_record(kind="agent")] == list(range(1, 12))
    assert [row.position for row in store.ledger_rows()] == list(range(15))
    assert [row.position for row in store.ledger_rows(12)] == [12, 13, 14]
    assert [row.position for row in store.ledger_rows(15)] == []
    # The store may be written to meanwhile, and a reader that stops early holds nothing.
    stream = store.each_record()
    next(stream)
    issue(store, fake(12))
    assert len(list(stream)) == 13


def test_counts(store: Store) -> None:
    recent = dict.fromkeys(("not_before",), NOW - BACKDATE)
    issue(
        store,
        fake(1, **recent),
        fake(2, not_before=NOW - BACKDATE - timedelta(hours=1)),
        fake(3, not_before=NOW - BACKDATE - timedelta(hours=1, seconds=1)),
        fake(4, not_before=NOW - BACKDATE - DAY, not_after=NOW),
        fake(5, not_before=NOW - BACKDATE - DAY - SECOND, not_after=NOW - SECOND),
        fake(6, not_before=NOW - 9 * DAY, not_after=NOW - DAY),
    )
    store.revoke([1, 6], reason=x509.ReasonFlags.unspecified, now=NOW)
    assert store.counts(NOW) == {
        "total": 8,  # with the CA's own two, made a moment ago
        "valid": 5,
        "expired": 2,
        "revoked": 2,
        "last_hour": 4,
        "last_day": 6,
    }


PLANNED: list[tuple[str, Callable[[Store], object], str]] = [
    ("find", lambda s: s.find(5), "SEARCH certificates USING INDEX sqlite_autoindex_certificates_1 (serial=?)"),
    (
        "find_thumbprint",
        lambda s: s.find_thumbprint("print 5"),
        "SEARCH certificates USING INDEX sqlite_autoindex_certificates_2 (thumbprint=?)",
    ),
    ("status", lambda s: s.status(5), "SEARCH certificates USING INDEX sqlite_autoindex_certificates_1 (serial=?)"),
    (
        "by ID",
        lambda s: s.records(spiffe_id=AGENT),
        "SEARCH certificates USING INDEX ix_certificates_spiffe_id (spiffe_id=?)",
    ),
    ("ban", lambda s: s.is_banned(AGENT), "SEARCH bans USING INDEX sqlite_autoindex_bans_1 (spiffe_id=?)"),
    ("token", lambda s: s.token("t"), "SEARCH tokens USING INDEX sqlite_autoindex_tokens_1 (id=?)"),
    ("ledger", lambda s: list(s.ledger_rows(3)), "SEARCH ledger USING INTEGER PRIMARY KEY (rowid>?)"),
    ("size", lambda s: s.ledger_size(), "SEARCH heads"),
    ("head", lambda s: s.head(), "SCAN heads"),  # of which LIMIT takes the first row
    ("list", lambda s: parts.crl(s), "SEARCH certificates USING INDEX ix_certificates_revoked (issuer=? AND shard=?"),
    (
        "shards",
        lambda s: s.shards(CA1.issuer.key_id, NOW),
        "SEARCH certificates USING COVERING INDEX ix_certificates_issuer_shard (issuer=? AND shard",
    ),
    (
        "page",
        lambda s: list(s.each_record()),
        "SEARCH certificates USING INTEGER PRIMARY KEY (rowid>?)",
    ),
]


@pytest.mark.parametrize(("ask", "plan"), [row[1:] for row in PLANNED], ids=[row[0] for row in PLANNED])
def test_lookups_use_their_index(ask: Callable[[Store], object], plan: str, folder: str) -> None:
    store = Store.open(folder)
    store._issue([Issue(record=fake(n), now=NOW) for n in range(1, 300)])
    store.revoke(range(1, 30), reason=x509.ReasonFlags.unspecified, now=NOW)
    asked: list[str] = []
    assert store._database._kept is not None
    writer: Any = store._database._kept.connection.dbapi_connection
    with store._database.driver() as plain:  # the one connection of the pool
        for connection in (plain, writer):
            connection.set_trace_callback(asked.append)
    ask(store)
    with store._database.driver() as plain:
        for connection in (plain, writer):
            connection.set_trace_callback(None)
        selects = [statement for statement in asked if statement.startswith("SELECT")]
        assert selects
        plans = [row[3] for statement in selects for row in plain.execute(f"EXPLAIN QUERY PLAN {statement}")]
    assert any(line.startswith(plan) for line in plans), plans
    scans = [line for line in plans if line.startswith("SCAN") and not line.startswith("SCAN heads")]
    assert not [line for line in scans if "CONSTANT ROW" not in line], plans
    store.close()


def test_the_newest_head_is_not_looked_for(folder: str) -> None:
    """What `SCAN heads` in the plan above means: one step from the end of the primary key."""
    store = Store.open(folder)
    with store._read() as connection:
        query = "EXPLAIN QUERY PLAN SELECT * FROM heads ORDER BY size DESC LIMIT 1"
        assert [row[3] for row in connection.exec_driver_sql(query)] == ["SCAN heads"], "no sorting"
    store.close()


def test_lists_and_lookups_on_postgresql_use_their_index(postgresql: str) -> None:
    parts.create(postgresql)
    store = Store.open(postgresql)
    for batch in itertools.batched(range(1, 3001), 250) if hasattr(itertools, "batched") else [range(1, 3001)]:
        store._issue([Issue(record=fake(n), now=NOW) for n in batch])
    store.revoke(range(1, 30), reason=x509.ReasonFlags.unspecified, now=NOW)
    parts.sql(postgresql, "ANALYZE")
    queries = {
        "uq_certificates_serial": "SELECT * FROM certificates WHERE serial = '5'",
        "uq_certificates_thumbprint": "SELECT * FROM certificates WHERE thumbprint = 'print 5'",
        "ix_certificates_revoked": f"SELECT serial FROM certificates WHERE issuer = '{CA1.issuer.key_id}' AND shard = 0"
        " AND revoked_at IS NOT NULL",
    }
    with store._read() as connection:
        for index, query in queries.items():
            plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {query}"))
            assert index in plan, plan
    store.close()
