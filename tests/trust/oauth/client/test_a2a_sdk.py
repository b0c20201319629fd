"""Without a2a-sdk; with it, `tests.interop.test_a2a_tokens`."""

from __future__ import annotations

import sys

import pytest

from tests.trust.oauth.client.servers import Fake
from trust.errors import ConfigurationError
from trust.oauth.client import interceptor_for_a2a
from trust.oauth.keys import SigningKey


def test_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "a2a.client", None)
    with pytest.raises(ConfigurationError, match=r"a2a-trust\[a2a\]"):
        interceptor_for_a2a(Fake().source())


def test_a_token_that_takes_a_proof_is_not_sent_without_one() -> None:
    with pytest.raises(ConfigurationError, match="proofs"):
        interceptor_for_a2a(Fake().source(proof_key=SigningKey.generate()))
