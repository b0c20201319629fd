"""What the commands have in common: the program, the arguments that mean the same everywhere, and opening a CA."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import typer

from pki import pkcs11, rules
from pki.authority import CertificateAuthority
from pki.cli import passwords
from pki.errors import LifetimeRefused, PKIError
from trust.credentials import read_bounded

MAX_SECRET_BYTES = 4096  # of a file with a PIN or a token

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The agent CA: make it and keep it running, enrol and renew agents, revoke, rotate, publish.",
)

Where = Annotated[
    str, typer.Argument(metavar="CA", help="Folder of the CA, or the URL of its database (postgresql://...).")
]
KeyType = Literal["P-256", "P-384", "Ed25519", "ML-DSA-44", "ML-DSA-65", "ML-DSA-87"]  # `private_keys.KINDS`
AsJson = Annotated[bool, typer.Option("--json", help="Answer with JSON.")]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"File with the CA's password. Else: ${passwords.VARIABLE}, then the file CA.password beside the folder, "
        "then a prompt.",
    ),
]
PinFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File with the PIN of the PKCS#11 token that holds the CA's keys; the path of its module is in "
        f"${pkcs11.MODULES_VARIABLE}.",
    ),
]

TAKES_THUMBPRINT = {"ignore_unknown_options": True}  # one in 64 begins with "-"; what is no option is looked up


def unlocked(where: str, password_file: Path | None, pin_file: Path | None = None) -> CertificateAuthority:
    """The CA with its signing keys."""
    with passwords.former_named(where):
        return CertificateAuthority.open(
            where, password=passwords.existing(where, password_file), pin=secret(pin_file), modules=token_modules()
        )


def opened(where: str) -> CertificateAuthority:
    """The CA without its password: it answers questions, revokes, and signs nothing."""
    return CertificateAuthority.open(where)


def token_modules() -> tuple[str, ...]:
    """The PKCS#11 modules that may be loaded: the database alone is not believed to name one."""
    return tuple(filter(None, os.environ.get(pkcs11.MODULES_VARIABLE, "").split(os.pathsep)))


def secret(file: Path | None) -> str | None:
    """The one line that a file holds; None where there is no file."""
    if file is None:
        return None
    try:
        text = read_bounded(file, MAX_SECRET_BYTES).decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise PKIError(f"{file}", got="nothing readable", expected="a secret in UTF-8")
    return text


def duration(text: str, what: str = "lifetime") -> timedelta:
    """A time on the command line, such as 24h."""
    found = rules.duration(text.strip())
    if found is None:
        raise LifetimeRefused(what, got=repr(text), expected="a number and s, m, h or d, such as 24h")
    return found
