"""Programs that others wrote, and how a test asks for one."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from trust.bundles import TrustBundle
from trust.credentials import Credentials

IN_CI = "A2A_TRUST_CI" in os.environ


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip where a program is not installed; in CI the tests run and fail."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing) and not IN_CI, reason=f"not installed: {', '.join(missing)}")


def run(*command: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=timeout)


def save(folder: Path, credentials: Credentials, name: str) -> tuple[Path, Path]:
    """The chain and the key as PEM files, the key unencrypted: that is how the programs read them."""
    chain, key = folder / f"{name}.pem", folder / f"{name}.key"
    chain.write_bytes(credentials.chain_pem)
    key.write_bytes(credentials.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    key.chmod(0o600)
    return chain, key


def save_bundle(folder: Path, bundle: TrustBundle) -> Path:
    """The SPIFFE bundle of one domain."""
    file = folder / f"{bundle.trust_domain}.json"
    file.write_text(bundle.to_json())
    return file


def node_modules(project: Path) -> Path:
    """The packages that a package-lock.json names."""
    command = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    return _installed("npm", project, ("package-lock.json", "package.json"), command) / "node_modules"


def java_libraries(project: Path) -> Path:
    """The jars that a pom.xml names."""
    command = ("mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib")
    return _installed("maven", project, ("pom.xml",), command) / "lib"


def _installed(kind: str, project: Path, names: tuple[str, ...], command: tuple[str, ...]) -> Path:
    """What a command makes of a project's files: once for each content of them, outside of the repository."""
    content = b"".join((project / name).read_bytes() for name in names)
    kept = Path(tempfile.gettempdir()) / f"a2a-trust-{kind}-{os.getuid()}-{hashlib.sha256(content).hexdigest()[:16]}"
    if not kept.is_dir():
        made = Path(tempfile.mkdtemp(prefix=f"a2a-trust-{kind}-"))
        for name in names:
            shutil.copy(project / name, made)
        installed = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=300)
        assert installed.returncode == 0, installed.stdout + installed.stderr
        try:
            made.rename(kept)  # whole or not at all, whoever else does the same
        except OSError:
            shutil.rmtree(made)
    return kept
