"""What Prometheus gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pki import CertificateAuthority
from pki.service.metrics import WORKERS_FOLDER
from pki.service.upkeep import FIGURES_EVERY
from tests.pki.service.parts import Running, certificates, started


def samples(running: Running) -> dict[tuple[str, ...], float]:
    response = running.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_what_is_counted(own_ca: CertificateAuthority) -> None:
    with started(own_ca) as running:
        (leaf,) = certificates(running.enrol(running.token()))
        running.enrol("a2ae_wrong")
        running.ca.revoke(leaf.serial_number)
        running.clock.ahead += FIGURES_EVERY
        running.serving.upkeep.round()
        found = samples(running)
        assert found["a2a_pki_refused_total", "pki.token.malformed", "enrol"] == 1
        assert found["a2a_pki_request_seconds_count", "enrol", "200"] == 1
        assert found["a2a_pki_request_seconds_count", "enrol", "401"] == 1
        assert found["a2a_pki_certificates", "total"] == 4  # root and intermediate, the service's own, the agent's
        assert found["a2a_pki_certificates", "revoked"] == 1
        assert found["a2a_pki_ledger_size",] >= 5
        assert 0 <= found["a2a_pki_crl_age_seconds",] < 24 * 3600
        assert found["a2a_pki_ca_remaining_seconds", "root"] > found["a2a_pki_ca_remaining_seconds", "intermediate"] > 0


def test_each_service_has_its_own(own_ca: CertificateAuthority) -> None:
    with started(own_ca) as running:
        running.get("/health")
    with started(own_ca) as running:
        assert ("a2a_pki_request_seconds_count", "health", "200") not in samples(running)


def test_without_the_extra(own_ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "pki.service.metrics", raising=False)
    with started(own_ca) as running:
        assert running.get("/metrics").status_code == 404
        assert running.get("/health").status_code == 200


def test_several_processes_add_up(tmp_path: Path) -> None:
    """Each worker counts in files of its own, in a folder that they share."""
    count = (
        "import sys\n"
        "from pki.service.metrics import Metrics\n"
        "metrics = Metrics(lambda: None)\n"
        "for _ in range(int(sys.argv[1])): metrics.answered('enrol', 200, 0.01); metrics.refused('enrol', 'x')\n"
        "print(metrics.rendered()[0].decode())\n"
    )
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, WORKERS_FOLDER: str(tmp_path), "PYTHONPATH": root}
    command = [sys.executable, "-c", count]
    shown = [
        subprocess.run([*command, number], env=environment, capture_output=True, text=True, check=True).stdout
        for number in ("3", "4")
    ]
    assert 'a2a_pki_request_seconds_count{event="enrol",status="200"} 7.0' in shown[1]
    assert 'a2a_pki_refused_total{check="x",event="enrol"} 7.0' in shown[1]
