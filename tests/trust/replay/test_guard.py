"""The key of a message, by which every guard knows it."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from trust.replay import replay_key


def test_the_key_is_of_the_parts_and_their_borders() -> None:
    assert len(replay_key("a", "b", "c")) == 16
    parts = [("ab", "c", "d"), ("a", "bc", "d"), ("a", "b", "cd"), ("abc", "", "d"), ("", "abc", "d"), ("a", "bcd", "")]
    assert len({replay_key(*p) for p in parts}) == len(parts)


def test_the_key_is_blake2b_of_the_length_prefixed_parts() -> None:
    parts = (b"\0\0\0\x03iss", b"\0\0\0\x03aud", "\0\0\0\x02é".encode())
    assert replay_key("iss", "aud", "é") == hashlib.blake2b(b"".join(parts), digest_size=16).digest()


@given(st.tuples(st.text(), st.text(), st.text()), st.tuples(st.text(), st.text(), st.text()))
def test_different_messages_have_different_keys(one: tuple[str, str, str], two: tuple[str, str, str]) -> None:
    assert (replay_key(*one) == replay_key(*two)) == (one == two)
