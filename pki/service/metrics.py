"""Prometheus metrics of the service; the one file that knows prometheus-client (the extra `metrics`).

What the database knows is read from the last round of upkeep, so that nobody makes the database work by asking for
metrics. Of several worker processes each counts its own requests, in files that every one of them adds up: then the
environment names their folder, as prometheus-client has it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from pki.service.upkeep import Figures

WORKERS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus-client when it is imported

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The observer of one service: `pki.service.edge.Observer`."""

    def __init__(self, figures: Callable[[], Figures | None]) -> None:
        """Args: figures: what the last round of upkeep found; None before the first."""
        self._registry = CollectorRegistry()
        self._durations = Histogram(
            "a2a_pki_request_seconds",
            "Time from a request's head to its answer",
            ["event", "status"],
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self._refusals = Counter(
            "a2a_pki_refused",
            "Requests refused, by the check that refused",
            ["event", "check"],
            registry=self._registry,
        )
        self._figures = figures
        self._known: dict[tuple[str, int], Histogram] = {}  # of `_durations`, which takes longer to find them

    def answered(self, event: str, status: int, seconds: float) -> None:
        durations = self._known.get((event, status))
        if durations is None:
            durations = self._known[event, status] = self._durations.labels(event, str(status))
        durations.observe(seconds)

    def refused(self, event: str, check: str) -> None:
        self._refusals.labels(event, check).inc()

    def rendered(self) -> tuple[bytes, str]:
        registry = CollectorRegistry()
        registry.register(_Figures(self._figures()))
        if WORKERS_FOLDER in os.environ:
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        else:
            registry.register(self._registry)
        return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


class _Figures:
    """What the database knows, as metrics."""

    def __init__(self, figures: Figures | None) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures
        if figures is None:
            return
        certificates = GaugeMetricFamily("a2a_pki_certificates", "Certificates that the CA remembers", labels=["state"])
        for state in ("total", "valid", "expired", "revoked", "last_hour"):
            certificates.add_metric([state], figures.certificates[state])
        yield certificates
        yield GaugeMetricFamily("a2a_pki_ledger_size", "Entries of the ledger", figures.ledger_size)
        yield GaugeMetricFamily("a2a_pki_crl_age_seconds", "Age of the oldest revocation list", figures.crl_age)
        remaining = GaugeMetricFamily("a2a_pki_ca_remaining_seconds", "Life left of each active CA", labels=["kind"])
        for kind, seconds in figures.ca_remaining.items():
            remaining.add_metric([kind], seconds)
        yield remaining
