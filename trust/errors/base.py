"""The root of the tree, and the errors of this side: identities, files, keys and settings."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Fault(StrEnum):
    """Whose fault an error is: where to look first."""

    PEER = "peer"  # the other side sent or presented it
    CALLER = "caller"  # the code that called this library passed it
    CONFIGURATION = "configuration"  # files, keys or settings of this side
    SERVICE = "service"  # a third party that is needed cannot be reached


class TrustError(Exception):
    """The root of the tree.

    Args:
        failed: what failed, in a few words, without a trailing full stop.
        got: what was found; never a secret, a token or a key.
        expected: what would have been right.
        do: what the reader should do now.
    """

    check: ClassVar[str] = "trust"
    fault: ClassVar[Fault] = Fault.PEER
    status: ClassVar[int] = 400
    code: ClassVar[str] = "invalid_request"

    def __init__(self, failed: str, *, got: object = None, expected: str = "", do: str = "") -> None:
        self.failed = failed
        line = failed
        details = [f"got {_bounded(got)}"] if got is not None else []
        if expected:
            details.append(f"expected {expected}")
        if details:
            line += ": " + ", ".join(details)
        if do:
            line += "; " + do
        super().__init__(_escaped(line))

    # Of a connection that failed: the other end's address, and the SPIFFE ID in the certificate that it presented.
    # Where the certificate was refused, that is a claim which nothing has proved.
    address = ""
    claimed = ""

    def of_connection(self, *, address: str, claimed: str) -> None:
        """Say which connection failed, in the message too. What was said first stays."""
        if self.address or self.claimed or not (address or claimed):
            return
        self.address, self.claimed = address, claimed
        words = [f"peer {address}"] * bool(address) + [f"claims {claimed}"] * bool(claimed)
        self.args = (f"{self.args[0]} ({_escaped(', '.join(words))})",)


def _bounded(value: object) -> str:
    """One bounded line: an attacker's text must not flood the log."""
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "..."


def _escaped(text: str) -> str:
    """One line of printable characters: nobody's text, wherever it stands in the message, forges log lines."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


class IdentityError(TrustError, ValueError):
    check = "identity"


class ConfigurationError(TrustError):
    check = "configuration"
    fault = Fault.CONFIGURATION
    status = 500
    code = "server_error"


def must_be(name: str, given: object, kind: type, *, expected: str, do: str = "") -> None:
    """That an argument is of a type: told where a thing is built, and not at each request.

    For arguments that are easily mistaken, such as the path of a file for what is in it. What was given is not shown,
    only its type: it may be a secret. A str is no `Collection` here.

    Raises:
        ConfigurationError: it is not.
    """
    if not isinstance(given, kind) or (isinstance(given, str) and kind is not str):
        raise _mistaken(name, given, expected, do)


def must_have(name: str, given: object, method: str, *, expected: str, do: str = "") -> None:
    """As `must_be`, of an argument that a Protocol describes: that it has this method. A class has none of its own.

    Raises:
        ConfigurationError: it has not.
    """
    if isinstance(given, type | str) or not callable(getattr(given, method, None)):
        raise _mistaken(name, given, expected, do)


def _mistaken(name: str, given: object, expected: str, do: str) -> ConfigurationError:
    got = f"the class {given.__name__}" if isinstance(given, type) else f"a value of type {type(given).__name__}"
    return ConfigurationError(name, got=got, expected=expected, do=do)


class CredentialsError(ConfigurationError):
    check = "credentials"


class WrongPassword(CredentialsError):
    check = "credentials.password"


class WorkloadAPIUnavailable(CredentialsError):
    check = "credentials.workload_api"
    fault = Fault.SERVICE


class WorkloadAPIDenied(CredentialsError):
    """The SPIFFE Workload API knows this process, and has no such identity for it (any more)."""

    check = "credentials.workload_api_denied"


class WorkloadAPIRefused(CredentialsError):
    """The Workload API said something that cannot be used."""

    check = "credentials.workload_api_answer"
    fault = Fault.SERVICE


class BundleError(ConfigurationError):
    check = "bundle"
