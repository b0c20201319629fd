"""What the world gets to see of the CA: revocation lists, the trust bundle, the service."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pki import policy
from pki.authority import CertificateAuthority
from pki.cli import passwords
from pki.cli.app import AsJson, PasswordFile, PinFile, Where, app, opened, secret, token_modules, unlocked
from pki.cli.output import hint, iso, now, words
from pki.list_names import crl_name
from pki.profiles import Issuer
from trust.bundles import TrustBundles
from trust.credentials import write_atomically


@app.command()
def crl(
    where: Where,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write root.crl.pem and intermediate.crl.pem there, and each as the file of --crl-url."
        ),
    ] = None,
    password_file: PasswordFile = None,
    pin_file: PinFile = None,
    as_json: AsJson = False,
) -> None:
    """Publish the current revocation lists (PEM): of each CA, in shards where it has issued very many certificates."""
    with unlocked(where, password_file, pin_file) as ca:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            # What certificates and lists point to (RFC 5280 section 4.2.1.13: DER), deltas included.
            for file_name, der in ca.revocations.published(now()).items():
                write_atomically(out / file_name, der, mode=0o644)
        names = {Issuer.of(ca.intermediate).key_id: "intermediate", Issuer.of(ca.root).key_id: "root"}
        lists = sorted(ca.crl().crls, key=lambda item: names.get(crl_name(item).removesuffix(".crl"), "other"))
    answers: list[dict[str, Any]] = []
    for item in lists:
        pem = item.public_bytes(Encoding.PEM)
        served = crl_name(item)
        name = names.get(served.removesuffix(".crl"), served.removesuffix(".crl"))
        file = None if out is None else out / f"{name}.crl.pem"
        if out is not None and file is not None:
            write_atomically(file, pem, mode=0o644)
        ends = item.next_update_utc
        assert ends is not None  # noqa: S101 - our own lists always have it
        answers.append(
            {
                "issuer": name,
                "number": item.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number,
                "this_update": iso(item.last_update_utc),
                "next_update": iso(ends),
                "revoked": [f"{entry.serial_number:x}" for entry in item],
                "file": None if file is None else str(file),
                "pem": pem.decode(),
            }
        )
        if not as_json and file is None:
            typer.echo(pem, nl=False)
        elif not as_json:
            typer.echo(f"{file}: {len(item)} revoked, expires {words(ends)}")
    if as_json:
        typer.echo(json.dumps({"crls": answers}, indent=2))


@app.command()
def bundle(
    where: Where,
    spiffe: Annotated[bool, typer.Option(help="Only the SPIFFE bundle document, for a bundle endpoint.")] = False,
    pem: Annotated[bool, typer.Option(help="Only the root certificates, PEM, for what knows no bundles.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the trust bundle: whoever has it can verify the agents of this CA. It is JSON, but for --pem."""
    if pem and (spiffe or as_json):
        raise typer.BadParameter("--pem is another form than JSON; leave one of them out")
    with opened(where) as ca:
        roots = ca.bundle()
    if pem:
        typer.echo(b"".join(root.public_bytes(Encoding.PEM) for root in roots.roots).decode(), nl=False)
        return
    typer.echo(roots.to_json() if spiffe else TrustBundles.of(roots).to_json())


@app.command()
def serve(
    where: Where,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="For enrolment and renewal, over TLS.")] = 8443,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="For revocation lists, OCSP, CA certificates, health and metrics (extra `metrics`), over plain HTTP.",
        ),
    ] = None,
    dns: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Host name of this service, for clients that check it; repeatable."),
    ] = None,
    web_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="For the trust bundle (SPIFFE profile https_web), with --web-certificate."),
    ] = None,
    web_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="WebPKI certificate chain of this host, PEM.")
    ] = None,
    web_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key, PEM.")] = None,
    authority: Annotated[
        Path | None,
        typer.Option(metavar="CLIENTS", help="Serve an authorization server too, with this TOML of its clients."),
    ] = None,
    issuer: Annotated[
        str | None, typer.Option(metavar="URL", help="With --authority: the https URL that agents reach it by.")
    ] = None,
    authority_state: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Its folder, as of `a2a-trust serve`; default: `authority` in the CA's."),
    ] = None,
    authority_store: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Its database, such as postgresql://..., in place of the one in its folder."),
    ] = None,
    authority_redis: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A Redis server for it, rediss://..., as --redis of `a2a-trust serve`."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that serve.")] = 1,
    password_file: PasswordFile = None,
    pin_file: PinFile = None,
) -> None:
    """Run the CA as a service: EST enrolment and renewal, OCSP, lists, trust bundle; it rotates by itself."""
    from pki import service  # brings the web server, which no other command needs

    names = tuple(policy.dns_name(name) for name in dns or ())
    web = beside = None
    if (authority is None) != (issuer is None):
        raise typer.BadParameter("--authority and --issuer URL go together")
    if authority is None and authority_redis is not None:
        raise typer.BadParameter("--authority-redis is for --authority")
    if authority is not None and authority_state is None and "://" in where:
        raise typer.BadParameter("give --authority-state DIR: a CA in a database has no folder for it")
    if (web_certificate is None) != (web_key is None) or (web_port is None) != (web_certificate is None):
        raise typer.BadParameter("--web-port, --web-certificate and --web-key go together")
    if web_certificate is not None and web_key is not None:
        web = (web_certificate, web_key)
    if workers > 1 and "://" not in where:
        hint("several processes wait for each other to write to SQLite: one is faster; --workers is for PostgreSQL")
    opener = partial(
        CertificateAuthority.open,
        where,
        password=passwords.existing(where, password_file),
        pin=secret(pin_file),
        modules=token_modules(),
    )
    with opener() as ca:
        if authority is not None and issuer is not None:
            from pki.cli import authorization

            beside = authorization.beside(
                ca.trust_domain,
                clients=authority,
                issuer=issuer,
                folder=authority_state or Path(where) / "authority",
                url=authority_store,
                redis_url=authority_redis,
            )
        service.serve(
            ca,
            opener=opener,  # for each further process
            workers=workers,
            host=host,
            port=port,
            http_port=http_port,
            dns_names=names,
            web_certificate=web,
            web_port=web_port,
            beside=beside,
        )
