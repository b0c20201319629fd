"""Without a2a-sdk; with it, `tests.interop.test_a2a_tokens`."""

from __future__ import annotations

import sys

import pytest

from tests.trust.oauth.client.servers import Fake
from trust.errors import ConfigurationError
from trust.oauth.client import interceptor_for_a2a


def test_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "a2a.client", None)
    with pytest.raises(ConfigurationError, match=r"a2a-trust\[a2a\]"):
        interceptor_for_a2a(Fake().source())
