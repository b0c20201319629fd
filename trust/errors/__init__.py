"""Every error that a2a-trust raises, as one tree.

Each class names the `check` that refused (also the word in the audit trail), whose `fault` it is, and what
the wire may learn: an HTTP `status` and an RFC error `code`. The message itself, `str(error)`, is for logs and
people ("what failed: got X, expected Y; do Z") and never leaves the process.

    TrustError
    |- IdentityError            a SPIFFE ID or trust domain is malformed              (also a ValueError)
    |- ConfigurationError       files, keys and settings of this side
    |  |- CredentialsError
    |  |  |- WrongPassword
    |  |  `- WorkloadAPIUnavailable, WorkloadAPIDenied, WorkloadAPIRefused
    |  |- BundleError
    |  `- ClientNotRegistered
    |- PeerError                check 1: who is on the other end of the channel
    |  |- NoPeerCertificate, MalformedCertificate, ChainTooLong, UnknownTrustDomain, UntrustedChain
    |  |- CertificateExpired, CertificateNotYetValid, NameConstraintViolated, WeakKey
    |  |- CertificateRevoked, RevocationUnknown
    |  |- NotAnAgentCertificate
    |  |  `- NoSpiffeID, SeveralSpiffeIDs, CertificateIsCA, WrongKeyUsage, WrongExtendedKeyUsage
    |  `- PeerNotAllowed
    |- ForwardedCertificateRefused, ForwardedCertificateMalformed     behind a proxy: RFC 9440
    |- TokenError               checks 2 and 3: what the caller may do
    |  |- TokenMissing, TokenRequestMalformed, TokenMalformed, TokenTypeWrong, TokenAlgorithmRefused
    |  |- TokenKeyUnknown, TokenSignatureWrong, TokenIssuerWrong, TokenAudienceWrong
    |  |- TokenClaimMissing, TokenClaimMalformed
    |  |- TokenExpired, TokenNotYetValid, TokenLifetimeTooLong, TokenRevoked
    |  |- TokenNotBound, TokenBoundElsewhere, TokenWithoutCertificate, TokenWithoutProof, TokenRelayRefused
    |  |- ProofError            a DPoP proof's: RFC 9449
    |  |  |- ProofMalformed, ProofAlgorithmRefused, ProofSignatureWrong, ProofTimeWrong, ProofReplayed
    |  |  `- ProofForAnotherRequest, ProofForAnotherToken
    |  |- KeysUnavailable       the issuer's keys cannot be had: 503, neither 401 nor 500
    |  `- DenylistUnavailable   which tokens are revoked cannot be known: 503
    |     `- DenylistTooLarge, DenylistMalformed, DenylistIssuerWrong, DenylistOutdated
    |- SignatureError           check 4: that nobody altered what was said
    |  |- SignatureMissing, SignatureTooLarge, SignatureMalformed, HeaderMalformed, TypeWrong
    |  |- AlgorithmRefused, CriticalHeaderRefused, SignerUnknown, KeyMismatch, SignatureWrong
    |  |- IssuerMismatch, AudienceMismatch, BindingMismatch, ResponseMismatch
    |  |- MessageExpired, MessageFromTheFuture, MessageLifetimeTooLong
    |  |- MessageNotPortable, AuthorUnclear, EvidenceMalformed, ReceiptMismatch
    |  |- CardMalformed, CardNotCovered, CardOfAnother, CardAsksForLess       an Agent Card's
    |  |- SignaturesNotOffered
    |  |- ResponseNotSigned, ResponseTooLarge
    |  `- StreamError           an event stream's
    |     |- StreamNotSigned, StreamMalformed, StreamEventTooLarge
    |     `- StreamEventLost, StreamEventsReordered, StreamEventRepeated, StreamEventInserted, StreamTruncated
    |- SignerMismatch           check 5: the signer is not the peer
    |- Replayed, ReplayGuardFull, ReplayStoreUnavailable     check 6: seen before, no room to remember, nobody to ask
    |- ScopeError               check 7
    |  |- ScopeMalformed        (also a ValueError)
    |  |- InsufficientScope, PolicyDenied
    |  |- OperationMalformed, OperationUnknown      which scope it would need cannot be told, or there is none
    |  `- ApprovalMissing       granted, and needs a person's yes: RFC 9470
    |- CanonicalizationError    not JSON that RFC 8785 can represent                  (also a ValueError)
    |- RequestMalformed, RequestTooLarge, RequestTooSlow, WebSocketRefused     the edge: 400, 413, 408, 403
    |- WebhookUnknown           a push notification to a path that is no webhook of ours
    |- WebhookRefused           a webhook's URL that no notification is signed for
    |- GrantError               the authorization server's side of OAuth: what its token endpoint refuses
    |  |- TooManyTokenRequests  a client asks too often: 429
    |  |  `- ClientLockedOut, TooManyTokensHeld
    |  |- GrantRequestMalformed, ClientRefused, GrantTypeUnknown, GrantNotAllowed, ScopeRefused, TargetRefused
    |  |- RevocationRefused, TokenNotRevocable
    |  |- IssuanceDenied, ApprovalPending, ApprovalDenied, ApprovalNotWaiting, TooManyApprovals, StepUpUnknown
    |  |- SubjectTokenRefused, DelegationRefused, GrantProofRefused
    |  |- AssertionRefused      of another authorization server
    |  |  `- AssertionIssuerUnknown, AssertionBoundElsewhere, AssertionSubjectRefused, AssertionUsed
    |  `- PartnerUnavailable, TokenStoreUnavailable       503: they do not answer now
    |- TokenRequestError        the client's side of OAuth
    |  |- TokenRequestRefused
    |  |  `- ApprovalRequired   a person has to say yes first
    |  |- TokenResponseRefused, AuthorizationServerUnavailable, MetadataRefused
    |  `- ScopeNotGranted, OriginRefused, TokenTaskEnded, CardRefused
    `- TransportError           TLS, beside who the peer is
       |- HandshakeFailed
       |  `- NotPostQuantum
       |- HandshakeRefused, DestinationRefused, AddressRefused
       |- TooManyCalls
       `- TooManyConnections
          `- HandshakeGaveWay
"""

from trust.errors.base import *
from trust.errors.client import *
from trust.errors.edge import *
from trust.errors.grants import *
from trust.errors.peers import *
from trust.errors.signatures import *
from trust.errors.streams import *
from trust.errors.tokens import *
from trust.errors.transport import *
