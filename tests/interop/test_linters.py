"""Linters that others wrote find nothing in what our CA publishes, but for what is listed here with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.interop.conftest import Publisher
from tests.interop.programs import needs, run
from tests.pki.judges import pkilint

pytestmark = pytest.mark.slow

# pkilint's own words for the findings that stay.
PKILINT = {"pkix.invalid_uri_syntax": "pkilint does not know the scheme spiffe://"}

ZLINT = {
    "e_crl_revocation_time_after_this_update": "thisUpdate is set back a minute, for verifiers whose clocks are slow; "
    "what was revoked in that minute is listed nevertheless",
}

KINDS = {"certificates": ("cert",), "crls": ("crl", "-t", "CRL", "-p", "PKIX"), "answers": ("ocsp",)}


@pytest.mark.parametrize("kind", KINDS)
def test_pkilint(kind: str, published: Publisher, tmp_path: Path) -> None:
    files: dict[str, bytes] = getattr(published, kind)
    assert files
    for name, der in files.items():
        file = tmp_path / "linted.der"
        file.write_bytes(der)
        _, said = pkilint(*KINDS[kind], "-s", "NOTICE", "-f", "JSON", "--document-format", "DER", file)
        found = {finding["code"] for node in json.loads(said)["results"] for finding in node["finding_descriptions"]}
        assert found <= set(PKILINT), name


@needs("go")
@pytest.mark.timeout(300)  # the modules may have to be fetched and built first
def test_zlint(go: Path, published: Publisher, tmp_path: Path) -> None:
    files = {}
    for suffix, kind in (("crt", published.certificates), ("crl", published.crls), ("ocsp", published.answers)):
        for name, der in kind.items():
            files[f"{name} ({suffix})"] = file = tmp_path / f"{len(files)}.{suffix}"
            file.write_bytes(der)
    result = run(go / "zlint", *files.values())
    assert result.returncode == 0, result.stderr
    results = dict(zip(files, map(json.loads, result.stdout.splitlines()), strict=True))
    assert all(one["ran"] for one in results.values())
    assert {name: one["found"] for name, one in results.items() if not one["found"].keys() <= ZLINT.keys()} == {}
    assert {lint for one in results.values() for lint in one["found"]} == set(ZLINT), "take it off the list"
