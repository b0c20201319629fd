"""The errors of the CA: one branch, each leaf with a check of its own, each drawn in the docstring."""

from __future__ import annotations

import inspect

import pytest

from pki import errors
from trust.errors import Fault, TrustError

LEAVES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, errors.PKIError) and value.__module__ == errors.__name__
]


def test_there_are_errors() -> None:
    assert len(LEAVES) > 15


@pytest.mark.parametrize("error", LEAVES, ids=lambda e: e.__name__)
def test_every_error_is_a_trust_error_and_is_drawn_in_the_tree(error: type[errors.PKIError]) -> None:
    assert issubclass(error, TrustError)
    assert error.__name__ in (errors.__doc__ or "")
    assert error.check.startswith("pki")
    assert isinstance(error.fault, Fault)
    assert 400 <= error.status < 600
    assert "\n" not in str(error("what failed", got="a\nb", expected="c", do="d"))


def test_no_two_errors_share_a_check() -> None:
    assert len({e.check for e in LEAVES}) == len(LEAVES)
