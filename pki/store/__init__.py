"""The CA's memory: one database, SQLite or PostgreSQL, with a ledger over everything in it.

The one package of `pki` that knows SQL.
"""

from pki.store.backup import BackupReport, backup
from pki.store.database import BUSY_TIMEOUT, DATABASE_FILE
from pki.store.reading import Counts, Reads
from pki.store.restoring import restore
from pki.store.store import Store
from pki.store.upgrading import upgrade

__all__ = [
    "BUSY_TIMEOUT",
    "DATABASE_FILE",
    "BackupReport",
    "Counts",
    "Reads",
    "Store",
    "backup",
    "restore",
    "upgrade",
]
