"""Lines that strangers cause: so many a minute, and the others counted."""

from __future__ import annotations

from trust.seldom import MINUTE, Seldom


def test_lines_that_strangers_cause_are_bounded() -> None:
    now = [0.0]
    seldom = Seldom(lines=2, clock=lambda: now[0])
    assert [seldom.says() for _ in range(1002)] == [True] * 2 + [False] * 1000
    now[0] = MINUTE
    assert seldom.says()
    assert seldom.left_out() == " (1,000 more like it)"
    assert seldom.left_out() == ""
