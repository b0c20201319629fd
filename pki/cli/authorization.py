"""`a2a-pki serve --authority`: the authorization server in the CA's process. The one module here that knows it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from starlette.applications import Starlette

from pki.service.beside import Opener
from trust.audit import AuditSink
from trust.clock import Clock
from trust.oauth.server.state import PASSWORD_VARIABLE, authorization_server, declared


def beside(clients: Path, issuer: str, folder: Path, url: str | None) -> Opener:
    """The arguments of `authorization_server`; the password of its keys comes from the environment, or the folder.

    Raises:
        ConfigurationError: the file of clients, or the issuer.
    """
    declared(clients, issuer)  # before anybody is told that we serve
    password = os.environ.get(PASSWORD_VARIABLE)
    return partial(_opened, clients=clients, issuer=issuer, folder=folder, url=url, password=password)


@contextmanager
def _opened(
    audit: AuditSink, clock: Clock, *, clients: Path, issuer: str, folder: Path, url: str | None, password: str | None
) -> Iterator[Starlette]:
    with authorization_server(
        clients=clients, issuer=issuer, folder=folder, url=url, password=password, audit=audit, clock=clock
    ) as app:
        yield app
