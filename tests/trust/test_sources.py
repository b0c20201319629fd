from __future__ import annotations

from trust.bundles import RevocationLists, TrustBundles
from trust.sources import Live


def test_a_live_source_gives_the_same_object_until_it_is_replaced() -> None:
    first, second = object(), object()
    source = Live(first)
    assert source.current() is first
    assert source.current() is first
    source.replace(second)
    assert source.current() is second


def test_values_are_sources_of_themselves() -> None:
    bundles, lists = TrustBundles.of(), RevocationLists()
    assert bundles.current() is bundles
    assert lists.current() is lists
