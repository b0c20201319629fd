"""Numbers as ECMAScript writes them: the published hashes, made again."""

from __future__ import annotations

import pytest

from tests.es6_numbers import PUBLISHED, hashes
from tests.trust.signing.test_canonical import PARSERS, use
from trust.signing.canonical import canonicalize


@pytest.mark.parametrize(
    ("lines", "parser"),
    [
        *((10_000, parser) for parser in PARSERS),
        # The hundred million are a job of the benchmarks: `python -m tests.benchmarks es6_numbers`.
        pytest.param(1_000_000, PARSERS[0], marks=pytest.mark.slow),
    ],
)
def test_the_published_hashes(lines: int, parser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(parser, monkeypatch)
    assert dict(hashes(canonicalize, lines)) == {n: digest for n, digest in PUBLISHED.items() if n <= lines}
