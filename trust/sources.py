"""Values that change while a program runs: credentials, trust bundles, revocation lists.

Whatever outlives one request holds a `Source` and asks it each time, so that a renewal, a new root or a revocation
reaches TLS contexts, token sources, signers and gates alike.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Source(Protocol[T_co]):
    """Something with a current value.

    `current` is called on hot paths: it must be cheap, thread-safe, and return *the same object* until the value
    has changed (users compare by identity to notice a change).
    """

    def current(self) -> T_co: ...


class Live(Generic[T]):
    """A source whose value the program replaces itself.

    >>> source = Live(1)
    >>> source.replace(2)
    >>> source.current()
    2
    """

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def current(self) -> T:
        return self._value

    def replace(self, value: T) -> None:
        """Everything that asks from now on gets `value`; an assignment, so it is atomic."""
        self._value = value
