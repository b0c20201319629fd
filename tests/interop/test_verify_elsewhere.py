"""The verifiers of `examples/verify_elsewhere`, in Node, Go and Java: each says to each vector what it has to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pki import CertificateAuthority
from tests import vectors
from tests.interop.programs import java_libraries, needs, node_modules, run
from trust.bundles import TrustBundles
from trust.signing.http import new_message_id, sign_request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # libraries may have to be fetched and built first

EXAMPLES = Path(__file__).parents[2] / "examples" / "verify_elsewhere"
Command = list[str | Path]


def node(folder: Path) -> Command:
    for script in (EXAMPLES / "node").glob("*.mjs"):
        shutil.copy(script, folder)
    (folder / "node_modules").symlink_to(node_modules(EXAMPLES / "node"), target_is_directory=True)
    return ["node", folder / "vectors.mjs"]


def go(folder: Path) -> Command:
    program = folder / "verify"
    command = ["go", "build", "-mod=readonly", "-o", program, "."]
    built = subprocess.run(
        command, cwd=EXAMPLES / "go", capture_output=True, text=True, env={**os.environ, "CGO_ENABLED": "0"}
    )
    assert built.returncode == 0, built.stderr
    return [program]


def java(folder: Path) -> Command:
    libraries = java_libraries(EXAMPLES / "java") / "*"
    built = run("javac", "-Xlint:all", "-Werror", "-d", folder, "-cp", libraries, *(EXAMPLES / "java").glob("*.java"))
    assert built.returncode == 0, built.stdout + built.stderr
    return ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", f"{folder}{os.pathsep}{libraries}", "Vectors"]


LANGUAGES: dict[str, Callable[[Path], Command]] = {"node": node, "go": go, "java": java}
TOGETHER = {"node": {4: 5}, "go": {}, "java": {4: 5}}  # the library does both steps at once
WITHOUT_ED25519 = ("go", "java")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("node", marks=needs("node", "npm")),
        pytest.param("go", marks=needs("go")),
        pytest.param("java", marks=needs("java", "javac", "mvn")),
    ],
)
def language(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Command]:
    return request.param, LANGUAGES[request.param](tmp_path_factory.mktemp(request.param))


def said(command: Command, file: Path) -> list[list[str]]:
    """A verdict and a name for each vector."""
    done = run(*command, file)
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_each_vector_is_verified_or_refused_at_its_step(language: tuple[str, Command]) -> None:
    name, command = language
    expected = []
    for vector in json.loads(vectors.FILE.read_bytes())["vectors"]:
        step = vector["refused"] and vector["refused"]["step"]
        verdict = "ok" if step is None else str(TOGETHER[name].get(step, step))
        skipped = name in WITHOUT_ED25519 and "Ed25519" in vector["algorithms"]
        expected.append(["skipped" if skipped else verdict, vector["name"]])
    assert said(command, vectors.FILE) == expected


def test_what_an_agent_of_our_ca_signs_now(language: tuple[str, Command], tmp_path: Path) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    with CertificateAuthority.create(tmp_path / "ca", trust_domain="fleet.example", password="pw") as ca:
        planner = ca.issue_credentials("spiffe://fleet.example/planner")
        bundles = TrustBundles.of(ca.bundle())
    audience, body = "spiffe://fleet.example/billing", b'{"text":"pay 5 EUR"}'
    facts: dict[str, Any] = {"method": "POST", "url": "https://billing.example/a2a"}
    signed = sign_request(planner, **facts, body=body, audience=audience, now=now, jti=new_message_id(), chain=True)
    bound = {"htm": "POST", "htu": facts["url"]}
    good = vectors.vector("good", signed.jws, body, "a2a-req+jws", audience, None, bound)
    bad = vectors.received({**good, "name": "bad"}, body="e30")
    document = {"now": int(now.timestamp()), "bundles": json.loads(bundles.to_json()), "vectors": [bad, good, good]}
    file = tmp_path / "live.json"
    file.write_text(json.dumps(document))
    assert said(language[1], file) == [["5", "bad"], ["ok", "good"], ["9", "good"]]
