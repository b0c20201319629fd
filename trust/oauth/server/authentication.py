"""Which client is asking: the one that the certificate of the connection proves (RFC 8705 section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from trust.errors import ClientRefused, GrantRequestMalformed
from trust.identity import PeerIdentity
from trust.oauth.server.clients import Client, ClientRegistry

# Another way to authenticate beside the certificate: RFC 6749 section 2.3 forbids more than one.
_OTHER_AUTHENTICATION = ("client_secret", "client_assertion", "client_assertion_type")

Form = Mapping[str, str]


def authenticate(
    form: Form, peer: PeerIdentity | None, clients: ClientRegistry, *, now: datetime
) -> tuple[Client, PeerIdentity]:
    """The client that the certificate proves, and the peer that proved it. RFC 8705 section 2.

    Raises:
        ClientRefused: in the same words whether the certificate, the registration or the `client_id` is at fault.
        GrantRequestMalformed: a second way to authenticate was used.
    """
    if any(name in form for name in _OTHER_AUTHENTICATION):
        raise GrantRequestMalformed("client authentication", got="more than one way", expected="the certificate only")
    client = clients.find(form.get("client_id", ""))
    if (
        client is None
        or peer is None
        or peer.agent_id != client.agent_id
        # The connection may be older than the end of the certificate.
        or not peer.not_before <= now < peer.not_after
    ):
        raise ClientRefused(
            "client is not authenticated",
            got=f"client_id {form.get('client_id', 'missing')} from {peer.agent_id if peer else 'no certificate'}",
            expected="the client_id that is registered for the SPIFFE ID of a valid certificate",
        )
    return client, peer
