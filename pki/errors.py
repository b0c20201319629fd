"""Every error of the CA, as one branch of the tree in `trust.errors`.

PKIError
|- AuthorityExists, AuthorityMissing, AuthorityDamaged, AuthorityNotValid    the CA as a whole
|- WrongPassword            missing or wrong: a password or the PIN of a token
|  `- PasswordChanged       the one that this process was started with opens the keys no longer
|- KeyStoreError            a PKCS#11 token that cannot be used
|- ClockJumped              rotation waits until the clock goes on evenly
|- DecisionNotRecorded      the audit trail cannot be written
|- StoreError               the database
|  `- DatabaseLocked, DuplicateCertificate, NotErased, SchemaOutdated
|- LedgerDamaged            a row of the ledger, a proof or a tree head is not what was written
|- BackupRefused            a backup that cannot be made, or must not be restored
|- StateChanged             somebody else rotated or pruned at the same moment
|- UnknownSerial, UnknownName    no such certificate, CA or list here
|- RequestRefused           the certificate request itself
|  `- RequestTooLarge, RequestMalformed, RequestKeyRefused, PossessionNotProven
|- PolicyRefused            the request is sound, but this CA does not issue (or revoke) that
|  `- IDRefused, NameRefused, KeyTypeRefused, LifetimeRefused, ReasonRefused, AgentBanned
|- PolicyMalformed          a policy file
|- EnrolmentRefused         a one-time token
|  |- EnrolmentTokenMissing, EnrolmentTokenMalformed, EnrolmentTokenUnknown, EnrolmentTokenExpired, EnrolmentTokenUsed,
|  |  EnrolmentTokenForged
|  `- TooManyAttempts       nobody looked at the token
|- RenewalRefused           the certificate that was presented for renewal
|  `- CertificateNotPresented, NotIssuedHere, CertificateAlreadyRevoked, CertificateAlreadyExpired, TooManyRenewals
`- AuthorityUnreachable     the agent's side: the CA service
   `- PinMismatch, AnswerRefused, EnrolmentFailed, ClockSkewed
"""

from __future__ import annotations

import copy

from trust.errors import Fault, TrustError


def copied(error: Exception) -> Exception:
    """The same error for one of several whom it concerns: each raises its own, with its own traceback."""
    try:
        made = copy.copy(error)
    except Exception:  # a copy is made by the class itself, from its arguments, and that may fail in any way
        return error
    made.__cause__ = error
    return made


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
    """No CA can do this now; one that was revoked or has ended is followed by another."""

    check = "pki.validity"
    fault = Fault.SERVICE
    status = 503
    code = "temporarily_unavailable"


class WrongPassword(PKIError):
    check = "pki.password"


class PasswordChanged(WrongPassword):
    """The keys were encrypted with another password since this process has opened them."""

    check = "pki.password.changed"


class ClockJumped(PKIError):
    check = "pki.clock"


class DecisionNotRecorded(PKIError):
    check = "pki.audit"
    fault = Fault.SERVICE
    status = 503
    code = "temporarily_unavailable"


class StoreError(PKIError):
    check = "pki.store"
    fault = Fault.SERVICE


class DatabaseLocked(StoreError):
    check = "pki.store.locked"
    status = 503
    code = "temporarily_unavailable"


class SchemaOutdated(StoreError):
    check = "pki.store.schema"
    fault = Fault.CONFIGURATION


class DuplicateCertificate(StoreError):
    check = "pki.store.duplicate"


class NotErased(StoreError):
    """What was to be done is done; but what it took out or replaced can still be read in the database's files."""

    check = "pki.store.erased"


class LedgerDamaged(PKIError):
    check = "pki.ledger"


class BackupRefused(PKIError):
    check = "pki.backup"


class StateChanged(PKIError):
    check = "pki.state"
    fault = Fault.SERVICE
    status = 503
    code = "temporarily_unavailable"


class KeyStoreError(PKIError):
    check = "pki.keys.token"


class UnknownSerial(PKIError):
    check = "pki.serial"
    fault = Fault.CALLER
    status = 404
    code = "invalid_request"


class UnknownName(PKIError):
    check = "pki.name"
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


class KeyTypeRefused(PolicyRefused):
    check = "pki.policy.key"


class LifetimeRefused(PolicyRefused):
    check = "pki.policy.lifetime"


class ReasonRefused(PolicyRefused):
    check = "pki.policy.reason"


class AgentBanned(PolicyRefused):
    check = "pki.policy.banned"


class PolicyMalformed(PKIError):
    check = "pki.policy.malformed"


# One-time tokens: RFC 7030 section 3.2.3 answers them with 401, like any other credential.


class EnrolmentRefused(PKIError):
    check = "pki.token"
    fault = Fault.PEER
    status = 401
    code = "invalid_token"


class EnrolmentTokenMissing(EnrolmentRefused):
    check = "pki.token.missing"


class EnrolmentTokenMalformed(EnrolmentRefused):
    check = "pki.token.malformed"


class EnrolmentTokenUnknown(EnrolmentRefused):
    check = "pki.token.unknown"


class EnrolmentTokenExpired(EnrolmentRefused):
    check = "pki.token.expired"


class EnrolmentTokenUsed(EnrolmentRefused):
    check = "pki.token.used"


class EnrolmentTokenForged(EnrolmentRefused):
    """Its row in the database was not written, or not like that, by a CA with its key."""

    check = "pki.token.forged"


class TooManyAttempts(EnrolmentRefused):
    check = "pki.token.attempts"
    status = 429
    code = "temporarily_unavailable"


class RenewalRefused(PKIError):
    check = "pki.renewal"
    fault = Fault.PEER
    status = 403
    code = "access_denied"


class CertificateNotPresented(RenewalRefused):
    check = "pki.renewal.certificate"


class NotIssuedHere(RenewalRefused):
    check = "pki.renewal.unknown"


class CertificateAlreadyRevoked(RenewalRefused):
    check = "pki.renewal.revoked"


class CertificateAlreadyExpired(RenewalRefused):
    check = "pki.renewal.expired"


class TooManyRenewals(RenewalRefused):
    check = "pki.renewal.attempts"
    status = 429
    code = "temporarily_unavailable"


# The agent's side.


class AuthorityUnreachable(PKIError):
    check = "pki.client"
    fault = Fault.SERVICE
    status = 503
    code = "temporarily_unavailable"


class PinMismatch(AuthorityUnreachable):
    check = "pki.client.pin"
    fault = Fault.PEER


class AnswerRefused(AuthorityUnreachable):
    check = "pki.client.answer"
    fault = Fault.PEER


class EnrolmentFailed(AuthorityUnreachable):
    check = "pki.client.refused"


class ClockSkewed(AuthorityUnreachable):
    """A certificate is not valid by this machine's clock, which may be the one that is wrong."""

    check = "pki.client.clock"
    fault = Fault.CONFIGURATION
