"""Key exchange that a quantum computer cannot undo, preferred or required, and certificates that it cannot forge."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from OpenSSL import SSL

from tests.authority import Trail
from tests.forge import NOW, Forge
from tests.interop.programs import needs, save
from tests.ports import listens
from tests.trust.tls.parts import AGENT, AGENT_ID, AGENTS, FORGE, SERVER, SERVERS, port_of, run, shake, until
from trust.agent import agent_client
from trust.authorize import exactly
from trust.credentials import Credentials
from trust.errors import (
    CertificateRevoked,
    ConfigurationError,
    HandshakeFailed,
    HandshakeRefused,
    NotPostQuantum,
    TrustError,
    UntrustedChain,
)
from trust.identity import GROUP_EXTENSION
from trust.oauth.keys import SigningKey
from trust.peers import verify_peer
from trust.private_keys import POST_QUANTUM, generate, ml_dsa
from trust.signing.http import sign_request
from trust.tls import client_context, key_exchange_of_response, server_context, serving
from trust.tls import snapshot as snapshot_module
from trust.tls.connection import Connection
from trust.tls.destinations import WebPKI

HYBRID = "X25519MLKEM768"


def server(**options: Any) -> Connection:
    return server_context(SERVER, FORGE.bundles, AGENTS, **options).connection()


def client(**options: Any) -> Connection:
    return client_context(AGENT, FORGE.bundles, SERVERS, **options).connection()


async def tells_group(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    group = scope["extensions"][GROUP_EXTENSION].encode()
    headers = [(b"content-length", b"%d" % len(group))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": group})


class Classical:
    """The other end of a connection, with these groups and no others; it trusts anybody."""

    def __init__(self, method: int, credentials: Credentials, groups: str) -> None:
        context = SSL.Context(method)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        assert snapshot_module._lib.SSL_CTX_set1_curves_list(context._context, groups.encode())
        context.use_certificate(credentials.certificate)
        context.add_extra_chain_cert(credentials.chain[1])
        context.use_privatekey(credentials.private_key)
        context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
        self.tls = SSL.Connection(context, None)
        if method == SSL.TLS_SERVER_METHOD:
            self.tls.set_accept_state()
        else:
            self.tls.set_connect_state()

    def talk(self, ours: Connection) -> TrustError | None:
        """Drive both until nothing more is to be said; the error of our end."""
        for _ in range(6):
            for act in (self.tls.do_handshake, ours.handshake):
                with contextlib.suppress(SSL.Error, TrustError):
                    act()
                ours.receive(self._out())
                if data := ours.output():
                    self.tls.bio_write(data)
        return ours.error

    def _out(self) -> bytes:
        try:
            return self.tls.bio_read(65536)
        except SSL.WantReadError:
            return b""


# The key exchange


@pytest.mark.parametrize("policies", [("preferred", "preferred"), ("required", "preferred"), ("required", "required")])
def test_two_of_ours_agree_on_a_post_quantum_key_exchange_and_say_so(policies: tuple[Any, Any]) -> None:
    here, there = client(post_quantum=policies[0]), server(post_quantum=policies[1])
    assert (here.group, there.group) == ("", "")
    assert shake(here, there) == (None, None)
    assert (here.group, there.group) == (HYBRID, HYBRID)


GROUPS = [
    ("X25519", NotPostQuantum),
    ("P-256", NotPostQuantum),
    ("X448:P-384", NotPostQuantum),
    ("X25519:X25519MLKEM768", None),  # though the other end likes the classical one better
    ("SecP256r1MLKEM768", None),
    ("SecP384r1MLKEM1024", None),
    # ML-KEM by itself: nobody's recommendation yet, and not one of ours.
    ("MLKEM768", NotPostQuantum),
]


@pytest.mark.parametrize(("groups", "expected"), GROUPS, ids=[groups for groups, _ in GROUPS])
@pytest.mark.parametrize("side", ["client", "server"])
def test_where_it_is_required_every_other_key_exchange_is_refused(
    side: str, groups: str, expected: type[TrustError] | None
) -> None:
    if side == "client":
        ours, theirs = client(post_quantum="required"), Classical(SSL.TLS_SERVER_METHOD, SERVER, groups)
    else:
        ours, theirs = server(post_quantum="required"), Classical(SSL.TLS_CLIENT_METHOD, AGENT, groups)
    error = theirs.talk(ours)
    assert (type(error) if error else None) is expected
    if expected is None:
        assert ours.group in snapshot_module.POST_QUANTUM_GROUPS
        return
    assert expected.check == "transport.post_quantum"
    assert ours.peer is None and not ours.established
    assert HYBRID in str(error) and "got" in str(error)


@pytest.mark.parametrize("side", ["client", "server"])
def test_where_it_is_preferred_an_old_peer_is_still_welcome(side: str) -> None:
    if side == "client":
        ours, theirs = client(), Classical(SSL.TLS_SERVER_METHOD, SERVER, "X25519")
    else:
        ours, theirs = server(), Classical(SSL.TLS_CLIENT_METHOD, AGENT, "X25519")
    assert theirs.talk(ours) is None
    assert ours.group.lower() == "x25519"


@pytest.mark.parametrize("side", ["client", "server"])
def test_it_is_preferred_to_what_the_peer_likes_better(side: str) -> None:
    """Although the peer guesses at the classical one, which costs a round trip more."""
    if side == "client":
        ours, theirs = client(), Classical(SSL.TLS_SERVER_METHOD, SERVER, "X25519:X25519MLKEM768")
    else:
        ours, theirs = server(), Classical(SSL.TLS_CLIENT_METHOD, AGENT, "X25519:X25519MLKEM768")
    assert theirs.talk(ours) is None
    assert ours.group == HYBRID


def test_it_is_refused_even_if_openssl_let_it_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_module, "POST_QUANTUM_GROUPS", ("X25519",))
    ours = server(post_quantum="required")
    assert type(Classical(SSL.TLS_CLIENT_METHOD, AGENT, "X25519").talk(ours)) is NotPostQuantum


def test_another_failure_is_not_said_to_be_about_the_key_exchange() -> None:
    here, there = (
        client(post_quantum="required"),
        server_context(
            SERVER, FORGE.bundles, exactly("spiffe://fleet.example/another"), post_quantum="required"
        ).connection(),
    )
    refused, refusal = shake(here, there)
    assert type(refused) is HandshakeRefused
    assert not isinstance(refusal, HandshakeFailed)
    tls12 = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls12.check_hostname, tls12.verify_mode = False, ssl.CERT_NONE
    tls12.maximum_version = ssl.TLSVersion.TLSv1_2
    outgoing, old = ssl.MemoryBIO(), server(post_quantum="required")
    with pytest.raises(ssl.SSLWantReadError):
        tls12.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    old.receive(outgoing.read())
    with pytest.raises(HandshakeFailed) as caught:
        old.handshake()
    assert type(caught.value) is HandshakeFailed


def test_a_library_without_it_and_a_word_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (client, server):
        with pytest.raises(ConfigurationError, match='expected "preferred" or "required"'):
            make(post_quantum="perhaps")
    monkeypatch.setattr(snapshot_module, "POST_QUANTUM_GROUPS", ("NoSuchGroup",))
    with pytest.raises(ConfigurationError, match="no post-quantum key exchange"):
        client(post_quantum="required")
    assert type(client()) is not None, "nothing of the failure is left behind"


def test_it_cannot_be_required_of_web_servers() -> None:
    destinations = {"https://agent.fleet.example": SERVERS, "https://web.example": WebPKI()}
    with pytest.raises(ConfigurationError, match="post_quantum: got web servers"):
        agent_client(source=AGENT, bundles=FORGE.bundles, authorize=destinations, post_quantum="required")


def test_the_application_and_the_caller_are_told() -> None:
    async def main() -> None:
        options: dict[str, Any] = {"bundles": FORGE.bundles, "post_quantum": "required"}
        async with (
            serving(tells_group, source=SERVER, authorize=AGENTS, **options) as live,
            agent_client(source=AGENT, authorize=SERVERS, **options) as http,
        ):
            answer = await http.get(live.url)
        assert answer.text == key_exchange_of_response(answer) == HYBRID
        assert key_exchange_of_response(httpx.Response(200)) == ""

    run(main())


@pytest.mark.parametrize("policy", ["preferred", "required"])
def test_a_stock_python_client_that_knows_only_elliptic_curves(policy: Any, tmp_path: Path) -> None:
    trail = Trail()

    def ask(port: int) -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(*save(tmp_path, AGENT, "agent"))
        context.set_ecdh_curve("prime256v1")
        with socket.create_connection(("127.0.0.1", port)) as raw, context.wrap_socket(raw) as tls:
            tls.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return tls.recv(65536)

    async def main() -> None:
        options: dict[str, Any] = {"bundles": FORGE.bundles, "authorize": AGENTS, "audit": trail}
        async with serving(tells_group, source=SERVER, post_quantum=policy, **options) as live:
            if policy == "preferred":
                assert b"200 OK" in await asyncio.to_thread(ask, port_of(live.url))
                assert trail.records == []
                return
            with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
                await asyncio.to_thread(ask, port_of(live.url))
            await until(lambda: trail.records, 20)
        assert [record["check"] for record in trail.records] == ["transport.post_quantum"]

    run(main())


@needs("openssl")
@pytest.mark.parametrize("policy", ["preferred", "required"])
def test_an_openssl_server_that_knows_only_elliptic_curves(policy: Any, tmp_path: Path) -> None:
    chain, key = save(tmp_path, SERVER, "server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-www", "-quiet", "-tls1_3", "-groups", "X25519"]
    command += ["-cert", str(chain), "-cert_chain", str(chain), "-key", str(key), "-Verify", "4"]

    async def main() -> None:
        async with agent_client(source=AGENT, bundles=FORGE.bundles, authorize=SERVERS, post_quantum=policy) as http:
            await until(lambda: listens(port))
            if policy == "preferred":
                answer = await http.get(f"https://127.0.0.1:{port}/")
                assert answer.status_code == 200
                assert key_exchange_of_response(answer).lower() == "x25519"
                return
            with pytest.raises(NotPostQuantum):
                await http.get(f"https://127.0.0.1:{port}/")

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
        try:
            run(main())
        finally:
            program.kill()


# Certificates

KINDS = sorted(POST_QUANTUM)
WHOLE = {kind: Forge(make_key=lambda kind=kind: generate(kind)) for kind in KINDS}  # CAs, too
LEAVES = {kind: FORGE.leaf("/server", key=generate(kind)) for kind in KINDS}  # below a CA with an elliptic curve
CHAINS = {f"{kind} all through": (WHOLE[kind], WHOLE[kind].leaf("/server", key=generate(kind))) for kind in KINDS}
CHAINS |= {f"{kind} leaf": (FORGE, LEAVES[kind]) for kind in KINDS}


@pytest.mark.parametrize("chain", CHAINS)
def test_both_ends_present_post_quantum_certificates(chain: str) -> None:
    forge, credentials = CHAINS[chain]
    agent = forge.leaf("/billing", key=generate(chain[:9]))
    here = client_context(agent, forge.bundles, SERVERS, post_quantum="required").connection()
    there = server_context(credentials, forge.bundles, AGENTS, post_quantum="required").connection()
    assert shake(here, there) == (None, None)
    assert str(there.peer and there.peer.agent_id) == AGENT_ID
    assert here.peer is not None
    assert ml_dsa(here.peer.public_key) == chain[:9]


@pytest.mark.parametrize("chain", CHAINS)
def test_a_post_quantum_chain_is_verified_like_any_other(chain: str) -> None:
    forge, credentials = CHAINS[chain]

    def verify(der: list[bytes], **options: Any) -> str:
        return str(verify_peer(der, **{"bundles": forge.bundles, "now": NOW, "usage": "server", **options}).agent_id)

    leaf, *others = credentials.chain_der
    assert verify([leaf, *others], crls=forge.crls()) == "spiffe://fleet.example/server"
    with pytest.raises(UntrustedChain):
        verify([leaf[:-1] + bytes([leaf[-1] ^ 1]), *others])
    with pytest.raises(UntrustedChain):  # an impostor, with CAs of the same names and the same kinds of key
        verify([leaf, *others], bundles=Forge(make_key=lambda: generate(chain[:9])).bundles)
    with pytest.raises(CertificateRevoked):
        verify([leaf, *others], crls=forge.crls(credentials))


def test_an_agent_with_them_answers_over_real_sockets(tmp_path: Path) -> None:
    """From a folder with an encrypted key, as an agent starts."""
    forge = WHOLE["ML-DSA-44"]
    forge.leaf("/server", key=generate("ML-DSA-44")).save(tmp_path, "secret")
    loaded = Credentials.load(tmp_path, "secret")
    agent = forge.leaf("/billing", key=generate("ML-DSA-65"))

    async def main() -> None:
        async with serving(tells_group, source=loaded, bundles=forge.bundles, authorize=AGENTS) as live:
            async with agent_client(source=agent, bundles=forge.bundles, authorize=SERVERS) as http:
                assert (await http.get(live.url)).text == HYBRID
            async with agent_client(source=AGENT, bundles=forge.bundles, authorize=SERVERS) as http:
                with pytest.raises(HandshakeRefused, match="unknown_ca"):  # an agent of the other CA
                    await http.get(live.url)

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_messages_and_tokens_are_not_signed_with_such_keys(kind: str) -> None:
    with pytest.raises(ConfigurationError, match="signing key: got MLDSA"):
        SigningKey.of(generate(kind))
    with pytest.raises(ConfigurationError, match=r"got MLDSA.*expected a private key: EC P-256, P-384 or Ed25519"):
        sign_request(
            LEAVES[kind],
            method="POST",
            url="https://billing.fleet.example/",
            body=b"{}",
            audience=AGENT_ID,
            now=NOW,
            jti="x" * 22,
            content_type="application/json",
        )
