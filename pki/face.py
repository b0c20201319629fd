"""What `pki` shows: the names that users import from it."""

from pki.authority import CertificateAuthority, Issued
from pki.enrolment import EnrolmentToken
from pki.errors import PKIError
from pki.health import HealthCheck
from pki.records import IssuerRecord, Record, Settings, State, TokenRecord
from pki.renewal import RenewalInfo
from pki.rotation import Step

__all__ = [
    "CertificateAuthority",
    "EnrolmentToken",
    "HealthCheck",
    "Issued",
    "IssuerRecord",
    "PKIError",
    "Record",
    "RenewalInfo",
    "Settings",
    "State",
    "Step",
    "TokenRecord",
]
