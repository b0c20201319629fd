"""Every error of the CA, as one branch of the tree in `trust.errors`.

PKIError
|- AuthorityExists, AuthorityMissing, AuthorityDamaged, AuthorityNotValid    the CA as a whole
|- WrongPassword            missing or wrong
|- StoreError               the database
|  `- DatabaseLocked, DuplicateCertificate
|- UnknownSerial            no such certificate here
|- RequestRefused           the certificate request itself
|  `- RequestTooLarge, RequestMalformed, RequestKeyRefused, PossessionNotProven
`- PolicyRefused            the request is sound, but this CA does not issue (or revoke) that
   `- IDRefused, NameRefused, LifetimeRefused, ReasonRefused
"""

from __future__ import annotations

from trust.errors import Fault, TrustError


class PKIError(TrustError):
    """The root of the branch."""

    check = "pki"
    fault = Fault.CONFIGURATION
    status = 500
    code = "server_error"


class AuthorityExists(PKIError):
    check = "pki.exists"


class AuthorityMissing(PKIError):
    check = "pki.missing"


class AuthorityDamaged(PKIError):
    check = "pki.damaged"


class AuthorityNotValid(PKIError):
    check = "pki.validity"


class WrongPassword(PKIError):
    check = "pki.password"


class StoreError(PKIError):
    check = "pki.store"
    fault = Fault.SERVICE


class DatabaseLocked(StoreError):
    check = "pki.store.locked"
    status = 503
    code = "temporarily_unavailable"


class DuplicateCertificate(StoreError):
    check = "pki.store.duplicate"


class UnknownSerial(PKIError):
    check = "pki.serial"
    fault = Fault.CALLER
    status = 404
    code = "invalid_request"


class RequestRefused(PKIError):
    check = "pki.request"
    fault = Fault.PEER
    status = 400
    code = "invalid_request"


class RequestTooLarge(RequestRefused):
    check = "pki.request.size"
    status = 413


class RequestMalformed(RequestRefused):
    check = "pki.request.malformed"


class RequestKeyRefused(RequestRefused):
    check = "pki.request.key"


class PossessionNotProven(RequestRefused):
    check = "pki.request.possession"


class PolicyRefused(PKIError):
    check = "pki.policy"
    fault = Fault.CALLER
    status = 403
    code = "access_denied"


class IDRefused(PolicyRefused):
    check = "pki.policy.id"


class NameRefused(PolicyRefused):
    check = "pki.policy.name"


class LifetimeRefused(PolicyRefused):
    check = "pki.policy.lifetime"


class ReasonRefused(PolicyRefused):
    check = "pki.policy.reason"
