"""Checks 4, 5 and 6: the message signature, in the order of the verifier's steps, its signer, and replay."""

from __future__ import annotations

from trust.errors.base import Fault, TrustError


class SignatureError(TrustError):
    check = "signature"
    status = 401


class SignatureMissing(SignatureError):
    check = "signature.missing"


class SignatureTooLarge(SignatureError):
    check = "signature.size"
    status = 400


class SignatureMalformed(SignatureError):
    check = "signature.malformed"
    status = 400


class HeaderMalformed(SignatureError):
    check = "signature.header"
    status = 400


class TypeWrong(SignatureError):
    check = "signature.type"


class AlgorithmRefused(SignatureError):
    check = "signature.algorithm"


class CriticalHeaderRefused(SignatureError):
    check = "signature.crit"


class SignerUnknown(SignatureError):
    check = "signature.certificate"


class KeyMismatch(SignatureError):
    check = "signature.key"


class SignatureWrong(SignatureError):
    check = "signature.value"


class IssuerMismatch(SignatureError):
    check = "signature.issuer"


class AudienceMismatch(SignatureError):
    check = "signature.audience"


class BindingMismatch(SignatureError):
    check = "signature.binding"


class ResponseMismatch(SignatureError):
    check = "signature.response"


class MessageExpired(SignatureError):
    check = "signature.expired"


class MessageFromTheFuture(SignatureError):
    check = "signature.future"


class MessageLifetimeTooLong(SignatureError):
    check = "signature.lifetime"


class MessageNotPortable(SignatureError):
    """A message inside JSON has a part that an SDK on its way would lose or change."""

    check = "signature.portable"
    status = 400


class AuthorUnclear(SignatureError):
    """Of several signatures beside one another, not exactly one is meant for us, by whom we believe."""

    check = "signature.author"


class EvidenceMalformed(SignatureError):
    check = "evidence.form"
    status = 400


class ReceiptMismatch(SignatureError):
    """A receipt that is another message's, or another agent's than the receiver's."""

    check = "evidence.receipt"


class CardMalformed(SignatureError):
    """Not the JSON of an A2A 1.0 Agent Card."""

    check = "card.form"
    status = 400


class CardNotCovered(SignatureError):
    """A part of the Agent Card is outside of its signature."""

    check = "card.coverage"


class CardOfAnother(SignatureError):
    """The signature is good, and its signer does not speak for the agent that is asked about."""

    check = "card.agent"


class CardAsksForLess(SignatureError):
    """The card asks less of callers than it must, or shows traces of requirements that were taken out."""

    check = "card.security"


class SignaturesNotOffered(SignatureError):
    """The agent's card does not say that it takes messages that are signed as ours are."""

    check = "card.extension"


class ResponseNotSigned(SignatureError):
    check = "signature.response_missing"


class ResponseTooLarge(SignatureError):
    check = "signature.response_size"
    status = 500
    code = "server_error"


class SignerMismatch(TrustError):
    check = "signer"
    status = 401


class Replayed(TrustError):
    check = "replay"
    status = 401


class ReplayGuardFull(TrustError):
    check = "replay.capacity"
    fault = Fault.SERVICE
    status = 503
    code = "temporarily_unavailable"


class ReplayStoreUnavailable(TrustError):
    """The store of a shared replay guard does not answer: nothing signed is admitted until it does."""

    check = "replay.store"
    fault = Fault.SERVICE
    status = 503
    code = "temporarily_unavailable"


class CanonicalizationError(TrustError, ValueError):
    check = "canonical"
