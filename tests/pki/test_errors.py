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


class Uncopyable(Exception):
    def __init__(self, *, needed: str) -> None:
        super().__init__(needed)


@pytest.mark.parametrize(
    "error",
    [errors.AgentBanned("banned", got="a", do="b"), ValueError(7), KeyError("x")],
    ids=lambda error: type(error).__name__,
)
def test_a_copy_is_the_same_error_with_a_traceback_of_its_own(error: Exception) -> None:
    one, other = errors.copied(error), errors.copied(error)
    assert type(one) is type(other) is type(error)
    assert one.args == error.args
    assert str(one) == str(error)
    assert one is not other
    with pytest.raises(type(error)):
        raise one
    assert other.__traceback__ is None
    assert one.__cause__ is error


def test_what_cannot_be_copied_is_shared() -> None:
    error = Uncopyable(needed="x")
    assert errors.copied(error) is error
