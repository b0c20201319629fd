"""Verifiers and linters that others wrote, and certificate requests of every kind."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

OPENSSL = shutil.which("openssl")
# In CI a missing judge is a failure: the tests run, and fail.
needs_openssl = pytest.mark.skipif(
    OPENSSL is None and "A2A_TRUST_CI" not in os.environ, reason="the openssl program is not installed"
)

ALLOWED_LINT = "pkix.invalid_uri_syntax"  # pkilint does not know the spiffe:// scheme


def openssl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    assert OPENSSL is not None
    return subprocess.run([OPENSSL, *map(str, arguments)], capture_output=True, text=True, timeout=30)


def verify(
    folder: Path,
    chain: Sequence[x509.Certificate],
    root: x509.Certificate,
    *,
    purpose: str,
    crls: Iterable[x509.CertificateRevocationList] = (),
) -> subprocess.CompletedProcess[str]:
    """`openssl verify -x509_strict`, with every CRL checked where there are any."""
    (folder / "leaf.pem").write_bytes(chain[0].public_bytes(Encoding.PEM))
    (folder / "rest.pem").write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in chain[1:]))
    (folder / "root.pem").write_bytes(root.public_bytes(Encoding.PEM))
    lists = b"".join(crl.public_bytes(Encoding.PEM) for crl in crls)
    (folder / "crls.pem").write_bytes(lists)
    revocation = ["-crl_check_all", "-CRLfile", folder / "crls.pem"] if lists else []
    return openssl(
        "verify", "-x509_strict", "-purpose", purpose, *revocation,
        "-CAfile", folder / "root.pem", "-untrusted", folder / "rest.pem", folder / "leaf.pem",
    )  # fmt: skip


def lint(folder: Path, thing: x509.Certificate | x509.CertificateRevocationList) -> list[str]:
    """What pkilint finds worse than a remark, the one allowed code left out."""
    file = folder / "linted.pem"
    file.write_bytes(thing.public_bytes(Encoding.PEM))
    options = ("cert",) if isinstance(thing, x509.Certificate) else ("crl", "-t", "CRL", "-p", "PKIX")
    count, said = pkilint(*options, file)
    found = [line.strip() for line in said.splitlines() if line.startswith("    ")]
    assert count == len(found), said  # its exit code is the number of findings
    return [line for line in found if "(INFO)" not in line and not line.startswith(ALLOWED_LINT + " ")]


def pkilint(kind: str, *arguments: str | Path) -> tuple[int, str]:
    """The exit code and the output of pkilint's program for a kind of thing, run in this process: it starts slowly."""
    program = {"cert": "lint_pkix_cert", "crl": "lint_crl", "ocsp": "lint_ocsp_response"}[kind]
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said):
        warnings.simplefilter("ignore")  # it leaves the file open
        main = importlib.import_module(f"pkilint.bin.{program}").main
        code = main(["lint", *map(str, arguments)])
    return code, said.getvalue()


def request(
    *names: x509.GeneralName,
    key: Any = None,
    algorithm: Any = ...,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
    subject: x509.Name | None = None,
    encoding: Encoding = Encoding.DER,
) -> bytes:
    """A certificate request, by default for a new P-256 key and for no name at all."""
    builder = x509.CertificateSigningRequestBuilder(subject or x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), critical=True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    key = key or ec.generate_private_key(ec.SECP256R1())
    return builder.sign(key, hashes.SHA256() if algorithm is ... else algorithm).public_bytes(encoding)


def listing(folder: Path | str = ".") -> list[str]:
    return sorted(entry.name for entry in Path(folder).iterdir())


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)
