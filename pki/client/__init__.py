"""The agent's side of the CA: enrol once with a token, and stay renewed."""

from pki.client.daemon import renew_forever, renew_once
from pki.client.enrol import enrol
from pki.client.health import Condition, Health
from pki.client.renewal import Event, RenewingCredentials

__all__ = [
    "Condition",
    "Event",
    "Health",
    "RenewingCredentials",
    "enrol",
    "renew_forever",
    "renew_once",
]
