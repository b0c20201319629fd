"""The CA service: enrolment and renewal over EST, revocation lists, OCSP, the trust bundle."""

from pki.service.program import serve
from pki.service.server import Serving, serving

__all__ = ["Serving", "serve", "serving"]
