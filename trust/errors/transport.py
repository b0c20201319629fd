"""TLS, beside who the peer is."""

from __future__ import annotations

from trust.errors.base import Fault, TrustError


class TransportError(TrustError):
    check = "transport"
    status = 502
    code = "server_error"


class HandshakeFailed(TransportError):
    check = "transport.handshake"


class NotPostQuantum(HandshakeFailed):
    check = "transport.post_quantum"


class DestinationRefused(TransportError):
    check = "transport.destination"
    fault = Fault.CONFIGURATION


class AddressRefused(TransportError):
    """A URL that others gave leads where this client does not connect to."""

    check = "transport.address"


class HandshakeRefused(TransportError):
    check = "transport.refused"
    by_verified_peer = False  # who refused had proved who it is; else anybody on the path may have


class TooManyCalls(TransportError):
    check = "transport.calls"
    status = 503
    code = "temporarily_unavailable"


class TooManyConnections(TransportError):
    check = "transport.capacity"
    status = 503
    code = "temporarily_unavailable"


class HandshakeGaveWay(TooManyConnections):
    """A stranger's: apart from agents that have too many, so that no flood hides these in the audit trail."""

    check = "transport.handshakes"
