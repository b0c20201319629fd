"""Tokens of SoftHSM in a folder of their own, for one test run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

SOFTHSM = shutil.which("softhsm2-util")
PIN = "pin-1234"  # which no identifier in hexadecimal has in it by chance
SO_PIN = "87654321"
_PLACES = ("/usr/lib/softhsm", "/usr/lib/x86_64-linux-gnu/softhsm", "/usr/local/lib/softhsm", "/usr/lib64/pkcs11")
MODULE = next((path for place in _PLACES if (path := Path(place) / "libsofthsm2.so").exists()), Path("libsofthsm2.so"))
# In CI a missing program is a failure: the tests run, and fail.
needs_softhsm = pytest.mark.skipif(
    SOFTHSM is None and "A2A_TRUST_CI" not in os.environ, reason="SoftHSM (softhsm2-util) is not installed"
)


class Tokens:
    """The folder of all tokens. The module reads where it is once in a process, so there is one for the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tokens"
        self.folder.mkdir()
        configuration = folder / "softhsm2.conf"
        configuration.write_text(
            f"directories.tokendir = {self.folder}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        os.environ["SOFTHSM2_CONF"] = str(configuration)

    def make(self, label: str, pin: str = PIN) -> str:
        """A new token; returns the URI of it, without a key."""
        self.run("--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", SO_PIN)
        return uri(label)

    def run(self, *arguments: str) -> None:
        assert SOFTHSM is not None
        subprocess.run([SOFTHSM, *arguments], check=True, capture_output=True, timeout=30)


def uri(token: str, **path: str) -> str:
    """The URI of a token, or of what is on it."""
    parts = {"token": token} | path
    return f"pkcs11:{';'.join(f'{name}={quote(value)}' for name, value in parts.items())}?module-path={MODULE}"


_of_this_process: list[Tokens] = []


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    if not _of_this_process:  # each module that imports the fixture has one of its own
        _of_this_process.append(Tokens(tmp_path_factory.mktemp("softhsm")))
    return _of_this_process[0]
