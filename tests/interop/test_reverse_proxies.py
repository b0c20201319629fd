"""nginx and HAProxy in front of our server, by the configurations of `examples/proxies`; and nginx as a server."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pki import CertificateAuthority
from tests.attacks.test_forwarded_attacks import field
from tests.authority import Trail
from tests.forge import Forge
from tests.interop.fleet import DOMAIN
from tests.interop.programs import IN_CI, needs, save
from tests.ports import free_port, wait_until_listens
from trust.agent import agent_client, serving
from trust.authorize import exactly
from trust.bundles import TrustBundles
from trust.credentials import Credentials
from trust.errors import (
    CertificateRevoked,
    NoPeerCertificate,
    PeerNotAllowed,
    TokenBoundElsewhere,
)
from trust.identity import PROXY_EXTENSION, peer_of
from trust.middleware import Gate
from trust.oauth.claims import sign_access_token
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.oauth.tokens import TokenValidator
from trust.signing.http import MessageSigner
from trust.sources import Live
from trust.tls import client_context
from trust.tls.client import peer_of_response

EXAMPLES = Path(__file__).parents[2] / "examples" / "proxies"
MODULE = Path("/usr/lib/nginx/modules/ngx_http_js_module.so")
AGENT, PROXY, PLANNER, OTHER, INTRUDER = (
    f"spiffe://{DOMAIN}/{name}" for name in ("agent", "proxy", "planner", "other", "intruder")
)
ISSUER = "https://authority.fleet.example"
SECONDS = 20.0

with_nginx = needs("nginx")
with_njs = pytest.mark.skipif(not MODULE.exists() and not IN_CI, reason="not installed: libnginx-mod-http-js")
with_haproxy = needs("haproxy")


class Fleet:
    """The certificates of everybody, and the files that the proxies read."""

    def __init__(self, ca: CertificateAuthority, folder: Path) -> None:
        self.ca, self.folder = ca, folder
        self.bundles = TrustBundles.of(ca.bundle())
        self.agent = ca.issue_credentials(AGENT, dns_names=["agent.fleet.example"])
        self.proxy, self.planner, self.other, self.intruder = map(
            ca.issue_credentials, (PROXY, PLANNER, OTHER, INTRUDER)
        )
        chain, key = save(folder, self.proxy, "chain")
        (folder / "key.pem").write_bytes(key.read_bytes())
        (folder / "proxy.pem").write_bytes(chain.read_bytes() + key.read_bytes())
        roots = b"".join(root.public_bytes(Encoding.PEM) for root in ca.bundle().roots)
        (folder / "roots.pem").write_bytes(roots)
        # And CAs of former days: more certificates than an agent reads in one header.
        others = [
            certificate for forge in (Forge() for _ in range(4)) for certificate in (forge.intermediate, forge.root)
        ]
        every = roots + b"".join(one.public_bytes(Encoding.PEM) for one in (ca.intermediate, *others))
        (folder / "ca.pem").write_bytes(every)


@pytest.fixture(scope="module")
def fleet(ca: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet(ca, tmp_path_factory.mktemp("fleet"))


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[str]:
    """A program in the foreground, once it listens; the URL."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        try:
            wait_until_listens(port, process.poll, SECONDS)
        except AssertionError as error:
            process.kill()
            raise AssertionError(f"{error}: {process.communicate()[0]}") from None
        yield f"https://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)


def configured(name: str, fleet: Fleet, folder: Path, ports: dict[str, int]) -> Path:
    """A configuration of `examples/proxies` with other paths and ports: nothing else of it is changed."""
    text = (EXAMPLES / name).read_text()
    assert all(old in text for old in ports)
    # In one go: a new port may have the digits of another old one in it.
    written = {old: f"127.0.0.1:{new}" if old.startswith(":") else str(new) for old, new in ports.items()}
    text = re.sub("|".join(written), lambda found: written[found[0]], text)
    text = text.replace("/etc/fleet/proxy/", f"{fleet.folder}/").replace("/etc/fleet/", f"{fleet.folder}/")
    (folder / name).write_text(text)
    return folder / name


@contextlib.contextmanager
def nginx(file: Path, port: int) -> Iterator[str]:
    # One process with the rights of this one: its files are in a folder that nobody else may read.
    directives = "daemon off; master_process off; pid nginx.pid; error_log stderr;"
    command = ["nginx", "-p", str(file.parent), "-c", str(file), "-e", "stderr", "-g", directives]
    for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
        (file.parent / name).mkdir()
    text = file.read_text()
    paths = "access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;"
    file.write_text(text.replace("http {", f"http {{ {paths} uwsgi_temp_path uwsgi; scgi_temp_path scgi;"))
    with running(command, port) as url:
        yield url


@contextlib.contextmanager
def nginx_in_front(fleet: Fleet, folder: Path, agent: int) -> Iterator[str]:
    port = free_port()
    (folder / "certificates.js").write_text((EXAMPLES / "certificates.js").read_text())
    with nginx(
        configured("nginx.conf", fleet, folder, {"listen 8443": f"listen 127.0.0.1:{port}", "9443": agent}), port
    ) as url:  # type: ignore[dict-item]
        yield url


@contextlib.contextmanager
def haproxy_in_front(fleet: Fleet, folder: Path, agent: int) -> Iterator[str]:
    port = free_port()
    file = configured("haproxy.cfg", fleet, folder, {":8443": port, "9443": agent})
    with running(["haproxy", "-db", "-q", "-f", str(file)], port) as url:
        yield url


Front = Callable[[Fleet, Path, int], contextlib.AbstractContextManager[str]]
FRONTS = [
    pytest.param(nginx_in_front, id="nginx", marks=[with_nginx, with_njs]),
    pytest.param(haproxy_in_front, id="haproxy", marks=with_haproxy),
]


@contextlib.asynccontextmanager
async def behind(front: Front, app: Any, fleet: Fleet, folder: Path, **options: Any) -> AsyncIterator[tuple[str, str]]:
    """Our server behind a proxy: the URL of the proxy, and the server's own."""
    base: dict[str, Any] = {
        "source": fleet.agent,
        "bundles": fleet.bundles,
        "authorize": exactly(PLANNER, OTHER),
        "proxies": exactly(PROXY),
        "client_certificates": "optional",
        "lifespan": "off",
    }
    async with serving(app, **{**base, **options}) as server:
        port = httpx.URL(server.url).port
        assert port is not None
        process = front(fleet, folder, port)
        url = await asyncio.to_thread(process.__enter__)
        try:
            yield url, server.url
        finally:
            await asyncio.to_thread(process.__exit__, None, None, None)


def caller(fleet: Fleet, credentials: Credentials | None, server: str = PROXY, **options: Any) -> httpx.AsyncClient:
    return agent_client(source=credentials, bundles=fleet.bundles, authorize=exactly(server), **options)


async def who(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the caller, the proxy, and the names of the headers that came."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        peer = peer_of(scope)
        await send({"type": "websocket.send", "text": str(peer.agent_id if peer else "nobody")})
        await send({"type": "websocket.close"})
        return
    peer, proxy = peer_of(scope), scope["extensions"].get(PROXY_EXTENSION)
    names = b",".join(name for name, _ in scope["headers"])
    headers = [
        (b"x-peer", str(peer.agent_id if peer else "nobody").encode()),
        (b"x-thumbprint", (peer.thumbprint if peer else "").encode()),
        (b"x-proxy", str(proxy.agent_id if proxy else "nobody").encode()),
        (b"content-length", b"%d" % len(names)),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": names})


@pytest.mark.parametrize("front", FRONTS)
def test_the_client_of_the_proxy_is_the_caller(front: Front, fleet: Fleet, tmp_path: Path) -> None:
    trail = Trail()
    crls = Live(fleet.ca.crl())
    forged = {
        "Client-Cert": field(fleet.other.chain_der[0]).decode(),
        "Client-Cert-Chain": field(fleet.other.chain_der[1]).decode(),
        "X-Forwarded-For": "203.0.113.9",
    }

    async def main() -> None:
        async with behind(front, who, fleet, tmp_path, audit=trail, crls=crls) as (url, own):
            for credentials in (fleet.planner, fleet.other):
                async with caller(fleet, credentials) as client:
                    for headers in ({}, forged, {"Connection": "client-cert, close", **forged}):
                        answer = await client.get(url, headers=headers)
                        assert answer.headers["x-peer"] == str(credentials.agent_id)
                        assert answer.headers["x-thumbprint"] == credentials.thumbprint
                        assert answer.headers["x-proxy"] == PROXY
                        assert answer.headers["cache-control"] == "no-store"
                        assert "client" not in answer.text
                    assert peer_of_response(answer).agent_id == fleet.proxy.agent_id
            async with caller(fleet, None) as client:  # no certificate, and somebody else's in the header
                for headers in ({}, forged):
                    answer = await client.get(url, headers=headers)
                    assert (answer.status_code, answer.headers["x-peer"]) == (200, "nobody")
                    assert "client" not in answer.text
            assert trail.records == []
            async with caller(fleet, fleet.intruder) as client:  # good for the proxy, and not on the agent's list
                assert (await client.get(url)).status_code == 403
            assert [record["check"] for record in trail.records] == [PeerNotAllowed.check]
            async with caller(fleet, fleet.planner, AGENT) as client:  # past the proxy, with the proxy's word
                assert (await client.get(own, headers=forged)).status_code == 400
                assert (await client.get(own)).headers["x-proxy"] == "nobody"

    asyncio.run(main())


@pytest.mark.parametrize("front", FRONTS)
def test_revocation_is_the_agents_to_know(front: Front, fleet: Fleet, tmp_path: Path) -> None:
    trail, crls = Trail(), Live(fleet.ca.crl())
    victim = fleet.ca.issue_credentials(OTHER)

    async def main() -> None:
        options: dict[str, Any] = {"audit": trail, "crls": crls, "client_certificates": "required"}
        async with (
            behind(front, who, fleet, tmp_path, **options) as (url, _),
            caller(fleet, victim) as client,
            caller(fleet, None) as nobody,
        ):
            assert (await client.get(url)).headers["x-peer"] == OTHER
            fleet.ca.revoke(victim.certificate.serial_number, x509.ReasonFlags.key_compromise)
            crls.replace(fleet.ca.crl())
            assert (await client.get(url)).status_code == 403
            assert (await nobody.get(url)).status_code == 403

    asyncio.run(main())
    assert [record["check"] for record in trail.records] == [CertificateRevoked.check, NoPeerCertificate.check]


@pytest.mark.parametrize("front", FRONTS)
def test_websockets(front: Front, fleet: Fleet, tmp_path: Path) -> None:
    async def main() -> None:
        async with behind(front, who, fleet, tmp_path) as (url, _):
            for credentials, expected in ((fleet.planner, PLANNER), (None, "nobody")):
                context = client_context(credentials, fleet.bundles, exactly(PROXY))
                async with websockets.connect(url.replace("https", "wss"), ssl=context) as connection:
                    assert await asyncio.wait_for(connection.recv(), SECONDS) == expected

    asyncio.run(main())


@pytest.mark.parametrize("front", FRONTS)
def test_the_three_proofs_meet_behind_a_proxy(front: Front, fleet: Fleet, tmp_path: Path) -> None:
    """Token and signature are bound to the client's certificate; the answer is signed by the agent, for the client."""
    key, trail = SigningKey.generate(), Trail()
    validator = TokenValidator(issuer=ISSUER, audience=AGENT, keys=StaticKeys(public_jwks([key])))

    def token(holder: Credentials) -> str:
        issued = int(datetime.now(UTC).timestamp())
        claims = {
            "iss": ISSUER,
            "sub": str(holder.agent_id),
            "client_id": str(holder.agent_id),
            "aud": AGENT,
            "iat": issued,
            "exp": issued + 600,
            "jti": secrets.token_urlsafe(16),
            "scope": "agent:execute",
            "cnf": {"x5t#S256": holder.thumbprint},
        }
        return f"Bearer {sign_access_token(claims, key)}"

    async def main() -> None:
        gate = Gate(
            who,
            source=fleet.agent,
            bundles=fleet.bundles,
            authorize=exactly(PLANNER, OTHER),
            tokens=validator,
            scope="agent:execute",
            signatures="required",
            public_paths=(),
            audit=trail,
        )
        async with behind(front, gate, fleet, tmp_path) as (url, _):
            for sender, holder, status in (
                (fleet.planner, fleet.planner, 200),
                (fleet.planner, fleet.other, 401),
                (fleet.planner, fleet.proxy, 401),
            ):
                signer = MessageSigner(sender, audience=fleet.agent.agent_id, bundles=fleet.bundles)
                async with caller(fleet, sender, signer=signer) as client:
                    answer = await client.post(url, content=b"{}", headers={"Authorization": token(holder)})
                    assert answer.status_code == status

    asyncio.run(main())
    allowed, *denied = trail.records
    assert (allowed["decision"], allowed["peer"]) == ("allow", PLANNER)
    assert [record["check"] for record in denied] == [TokenBoundElsewhere.check] * 2
    assert [record["proxy"] for record in trail.records] == [PROXY] * 3


SERVER = """
events {}
http {
    server {
        listen 127.0.0.1:PORT ssl;
        ssl_protocols TLSv1.3;
        ssl_certificate FOLDER/chain.pem;
        ssl_certificate_key FOLDER/key.pem;
        ssl_verify_client on;
        ssl_verify_depth 2;
        ssl_client_certificate FOLDER/ca.pem;
        location / {
            default_type text/plain;
            return 200 "$ssl_client_verify $ssl_client_serial";
        }
    }
}
"""


@with_nginx
def test_our_client_and_nginx(fleet: Fleet, tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "nginx.conf"
    file.write_text(SERVER.replace("PORT", str(port)).replace("FOLDER", str(fleet.folder)))

    async def main(url: str) -> None:
        async with caller(fleet, fleet.planner) as client:
            for _ in range(2):
                answer = await client.get(url)
                verdict, serial = answer.text.split()
                assert (verdict, int(serial, 16)) == ("SUCCESS", fleet.planner.certificate.serial_number)
            assert peer_of_response(answer).agent_id == fleet.proxy.agent_id
        async with caller(fleet, None) as client:
            answer = await client.get(url)
            assert answer.status_code == 400 and "No required SSL certificate" in answer.text
        async with caller(fleet, fleet.planner, AGENT) as client:
            with pytest.raises(PeerNotAllowed):
                await client.get(url)

    with nginx(file, port) as url:
        asyncio.run(main(url))
