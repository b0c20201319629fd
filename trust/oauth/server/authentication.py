"""Which client is asking: the one that the certificate of the connection proves (RFC 8705 section 2).

A secret may be asked for besides, as a second factor. By itself it proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from trust.errors import ClientRefused, GrantRequestMalformed
from trust.identity import PeerIdentity
from trust.oauth.server.clients import Client, ClientRegistry, basic_credentials, is_one_of

# Other ways to authenticate: RFC 6749 section 2.3 forbids more than one.
_OTHER_AUTHENTICATION = ("client_secret", "client_assertion", "client_assertion_type")

# As metadata names them. The certificate is needed with both; which clients need the other one too is registered.
AUTHENTICATION_METHODS = ("tls_client_auth", "client_secret_basic")

Form = Mapping[str, str]


def authenticate(
    form: Form,
    peer: PeerIdentity | None,
    clients: ClientRegistry,
    *,
    now: datetime,
    authorization: Sequence[str] = (),
) -> tuple[Client, PeerIdentity]:
    """The client that the certificate proves, and the peer that proved it. RFC 8705 section 2.

    1. one way to authenticate                                             GrantRequestMalformed
    2. an Authorization header, where there is one, can be read            ClientRefused
    3. the client is registered for the SPIFFE ID of a valid certificate   ClientRefused
    4. it comes with one of its secrets if it has to, and else with none   ClientRefused

    Args:
        authorization: the values of all Authorization headers.

    Raises:
        ClientRefused: in the same words whichever of these is at fault.
        GrantRequestMalformed: a secret or an assertion in the form.
    """
    # 1.
    if any(name in form for name in _OTHER_AUTHENTICATION):
        raise GrantRequestMalformed("client authentication", got="more than one way", expected="the certificate only")
    # 2.
    basic = basic_credentials(authorization)
    name, secret = (form.get("client_id", ""), None) if basic is None else basic
    if form.get("client_id", name) != name:
        raise _refused(f"client_id {form['client_id']}, and another one in the Authorization header")
    # 3.
    client = clients.find(name)
    who = f"client_id {name or 'missing'} from {peer.agent_id if peer else 'no certificate'}"
    if client is None:
        raise _refused(f"{clients.why_not(name)}: {who}")
    if peer is None:
        raise _refused(who)
    if peer.agent_id != client.agent_id:
        raise _refused(f"registered for another SPIFFE ID: {who}")
    if not peer.not_before <= now < peer.not_after:  # the connection may be older than the end of the certificate
        raise _refused(f"certificate is not valid now: {who}")
    # 4.
    if client.secrets is None:
        if secret is not None:
            raise _refused(f"a secret of {name}, which has none")
    elif secret is None or not is_one_of(secret, client.secrets, now=now):
        raise _refused(f"{'no' if secret is None else 'a wrong'} secret of {name}")
    return client, peer


def _refused(got: str) -> ClientRefused:
    return ClientRefused(
        "client is not authenticated",
        got=got,
        expected="the client_id that is registered for the SPIFFE ID of a valid certificate, and its secret if need be",
    )
