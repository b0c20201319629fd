"""The agent CA: an internal certificate authority whose certificates carry SPIFFE IDs."""

from pki.authority import CertificateAuthority, Issued
from pki.errors import PKIError
from pki.store import Record

__all__ = ["CertificateAuthority", "Issued", "PKIError", "Record"]
