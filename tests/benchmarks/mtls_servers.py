"""The servers that `tests.benchmarks.servers` compares, each of them run as a process of its own.

Every one listens on loopback for mutual TLS, trusts the same root, answers every request with `BODY`, and keeps idle
connections: what is measured is not how soon a server gives them up. Ours also checks revocation, and tells the
application who is calling; the others do neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.loads import Process, free_port, server
from trust.authorize import members_of
from trust.bundles import RevocationLists, TrustBundles
from trust.credentials import BUNDLE_FILE, CHAIN_FILE, KEY_FILE, Credentials
from trust.identity import peer_of
from trust.sources import Live
from trust.tls.register import Limits
from trust.tls.server import uvicorn_config
from trust.tls.transport import Deadlines

BODY = b"hello, agent"
ROOT_FILE = "root.pem"
CHANGES = 3  # of the revocation lists; what is in effect after so many is in `crl_files`
IDLE_SECONDS = 600
DOMAIN = "fleet.example"

_HEADERS = [(b"content-type", b"text/plain"), (b"content-length", str(len(BODY)).encode())]

_NGINX = """
daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 8192;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_timeout {idle};
    keepalive_requests 100000000;
    client_header_timeout {idle};
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    server {{
        listen 127.0.0.1:{port} ssl{http2} backlog=2048;
        ssl_protocols TLSv1.3;
        ssl_certificate {folder}/{chain};
        ssl_certificate_key {folder}/{key};
        ssl_client_certificate {folder}/{root};
        ssl_verify_client on;
        ssl_verify_depth 2;
        location / {{ default_type text/plain; return 200 "{body}"; }}
    }}
}}
"""


def available(name: str, *, http2: bool = False) -> bool:
    """Whether a server is installed here."""
    if name == "nginx":
        return shutil.which("nginx") is not None
    if name == "uvicorn" and http2:
        return importlib.util.find_spec("zttp") is not None
    return name in ("ours", "uvicorn") or importlib.util.find_spec(name) is not None


@contextlib.contextmanager
def running(name: str, folder: Path, *, http2: bool = False) -> Iterator[Process]:
    """A server that runs for as long as the block does; in `folder` are its credentials and the root.

    `http2`: clients get it that want it. (From hypercorn and granian they do anyway.)
    """
    port = free_port()
    with server(_command(name, folder, port, http2), port=port, log=folder / f"{name}.log") as process:
        yield process


def _command(name: str, folder: Path, port: int, http2: bool) -> list[str]:
    if name != "nginx":
        return [sys.executable, "-m", __name__, name, str(folder), str(port), *(["http2"] if http2 else [])]
    configuration = folder / "nginx.conf"
    configuration.write_text(
        _NGINX.format(
            folder=folder,
            port=port,
            http2=" http2" if http2 else "",
            idle=IDLE_SECONDS,
            chain=CHAIN_FILE,
            key=KEY_FILE,
            root=ROOT_FILE,
            body=BODY.decode(),
        )
    )
    return ["nginx", "-p", str(folder), "-c", str(configuration)]


def crl_files(folder: Path, change: int) -> list[Path]:
    """The revocation lists that hold after so many changes: the intermediate's and the root's."""
    return [folder / f"agents-{change}.crl", folder / "root.crl"]


def _change() -> None:
    """What a request for "/change" does; every server looks for it, and in ours it does something."""


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        peer_of(scope)
        if scope["path"] == "/change":
            _change()
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": BODY})


def _ours(folder: Path, port: int, http2: bool) -> None:
    import uvicorn

    lists = [RevocationLists.load(*crl_files(folder, change)) for change in range(CHANGES + 1)]
    crls = Live(lists.pop(0))

    def change() -> None:
        crls.replace(lists.pop(0))

    global _change
    _change = change
    config = uvicorn_config(
        application,
        source=Credentials.load(folder),
        bundles=TrustBundles.load(folder / BUNDLE_FILE),
        authorize=members_of(DOMAIN),
        port=port,
        crls=crls,
        http2=http2,
        deadlines=Deadlines(request_head=IDLE_SECONDS),
        limits=Limits(peer=10_000),
        lifespan="off",
        timeout_keep_alive=IDLE_SECONDS,
    )
    uvicorn.Server(config).run()


def _uvicorn(folder: Path, port: int, http2: bool) -> None:
    import uvicorn

    uvicorn.run(
        application,
        port=port,
        lifespan="off",
        server_header=False,
        access_log=False,
        log_level="warning",
        timeout_keep_alive=IDLE_SECONDS,
        http="zttp" if http2 else "auto",
        http2=http2,
        ssl_certfile=str(folder / CHAIN_FILE),
        ssl_keyfile=str(folder / KEY_FILE),
        ssl_ca_certs=str(folder / ROOT_FILE),
        ssl_cert_reqs=ssl.CERT_REQUIRED,
    )


def _hypercorn(folder: Path, port: int, http2: bool) -> None:
    import uvloop
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config.from_mapping(
        bind=[f"127.0.0.1:{port}"],
        certfile=str(folder / CHAIN_FILE),
        keyfile=str(folder / KEY_FILE),
        ca_certs=str(folder / ROOT_FILE),
        verify_mode=ssl.CERT_REQUIRED,
        include_server_header=False,
        keep_alive_timeout=IDLE_SECONDS,
        keep_alive_max_requests=sys.maxsize,
        backlog=2048,
        loglevel="WARNING",
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(application, config))


def _granian(folder: Path, port: int, http2: bool) -> None:
    from granian import Granian
    from granian.constants import Interfaces, Loops

    Granian(
        f"{__spec__.name}:application",
        port=port,
        interface=Interfaces.ASGINL,  # without lifespan
        loop=Loops.uvloop,
        backlog=2048,
        log_enabled=False,
        ssl_cert=folder / CHAIN_FILE,
        ssl_key=folder / KEY_FILE,
        ssl_ca=folder / ROOT_FILE,
        ssl_client_verify=True,
    ).serve()


if __name__ == "__main__":
    name, path, number, *version = sys.argv[1:]
    serve = {"ours": _ours, "uvicorn": _uvicorn, "hypercorn": _hypercorn, "granian": _granian}[name]
    serve(Path(path), int(number), bool(version))
