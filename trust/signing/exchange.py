"""One HTTP request and its answer, signed: the header `JWS-Signature` over the exact bytes of a body.

A request's signature binds method, target URI, content type, receiver, A2A version and extensions; an answer's binds
the status, the content type, the requester and the very request that it answers. Nothing of a body is parsed before its
signature has verified. Pure; `trust.signing.http` has the edge that signs what an `httpx` client sends, and is the
module to import.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from trust.authorize import Authorizer
from trust.credentials import Credentials
from trust.errors import (
    BindingMismatch,
    ConfigurationError,
    ResponseMismatch,
    SignatureError,
    SignatureMalformed,
    SignatureMissing,
    TrustError,
)
from trust.identity import AgentID, PeerIdentity
from trust.peers import PeerVerifier
from trust.replay import ReplayGuard
from trust.signing import envelope
from trust.signing import jws as strict_jws
from trust.signing.envelope import DEFAULT_ALGORITHMS, DEFAULT_LIFETIME, Binding, VerifiedMessage
from trust.signing.targets import target_uri

HEADER = "JWS-Signature"
REQUEST_TYPE = "a2a-req+jws"
RESPONSE_TYPE = "a2a-res+jws"

_HEADER_NAME = HEADER.lower().encode()
_CONTENT_TYPE = re.compile(r"[!-~](?:[ -~]*[!-~])?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRequest:
    """A request that we signed: what its answer must be bound to."""

    jws: str  # the value of the header
    jti: str
    digest: str  # base64url(SHA-256(jws))
    audience: str
    signed_at: datetime
    signer: str  # thumbprint of the certificate that it was signed by


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReference:
    """What an answer names: who asked, and which request."""

    requester: AgentID
    jti: str = field(repr=False)
    digest: str = field(repr=False)


def sign_request(
    credentials: Credentials,
    *,
    method: str,
    url: str,
    body: bytes,
    audience: AgentID | str,
    now: datetime,
    jti: str,
    content_type: str = "",
    version: str = "",
    extensions: Collection[str] = (),
    lifetime: timedelta = DEFAULT_LIFETIME,
    chain: bool = False,
) -> SignedRequest:
    """Sign a request for one receiver.

    Args:
        method: as it is sent; methods are case-sensitive (RFC 9110 section 9.1).
        url: the absolute target, with the query.
        body: the exact bytes; empty where there is no body.
        audience: the receiver's SPIFFE ID, or the origin URL of an agent outside any trust domain.
        jti: 128 random bits in base64url.
        content_type: the exact value of the header Content-Type; empty where there is none.
        version, extensions: what the headers A2A-Version and A2A-Extensions say.
        lifetime: how long the receiver may take the signature for fresh; at most 300 s.
        chain: put our certificates into the header, for a receiver that is not at the other end of our TLS channel.

    Raises:
        ConfigurationError: an argument that no verifier would accept.
    """
    _check_content_type(content_type, ConfigurationError)
    try:
        binding = _request_binding(method, url, content_type, version, extensions)
    except BindingMismatch as error:
        raise ConfigurationError(str(error)) from None
    jws = envelope.sign(
        body,
        credentials=credentials,
        binding=binding,
        audience=audience,
        now=now,
        jti=jti,
        lifetime=lifetime,
        chain=chain,
    )
    return SignedRequest(
        jws=jws,
        jti=jti,
        digest=envelope.digest(jws),
        audience=str(audience),
        signed_at=now,
        signer=credentials.thumbprint,
    )


def authenticate_request(
    jws: str,
    *,
    method: str,
    url: str,
    body: bytes,
    audience: AgentID | str,
    verifier: PeerVerifier,
    peer: PeerIdentity | None,
    now: datetime,
    content_type: str = "",
    version: str = "",
    extensions: Collection[str] = (),
    algorithms: Collection[str] = DEFAULT_ALGORITHMS,
) -> VerifiedMessage:
    """Verify who signed a request, and that it is this request: steps (0) to (8) of `envelope.verify`.

    NOT checked: whether the signer is allowed, and whether the request was received before. `verify_request` does
    both; a caller of this function does them itself, with `VerifiedMessage.replay_key`.

    Args:
        jws: the value of the header (`signature_of`).
        method, url, body, content_type, version, extensions: what was really received.
        audience: ourselves.
        peer: the other end of the channel; None where TLS ends elsewhere.

    Raises:
        SignatureError: its leaf classes name the check that failed.
        PeerError: the certificate of the signer.
    """
    if "#" in url:
        # Whoever signs may cut a fragment off, because it is never sent. One that arrives was put there to hide a part
        # of the target from this comparison.
        raise BindingMismatch("target of the request has a fragment", expected="none")
    return envelope.verify(
        jws,
        body,
        binding=_request_binding(method, url, content_type, version, extensions),
        audience=audience,
        verifier=verifier,
        peer=peer,
        usage="client",
        now=now,
        algorithms=algorithms,
    )


def verify_request(
    jws: str,
    *,
    method: str,
    url: str,
    body: bytes,
    audience: AgentID | str,
    verifier: PeerVerifier,
    peer: PeerIdentity | None,
    now: datetime,
    signers: Authorizer,
    replay: ReplayGuard,
    content_type: str = "",
    version: str = "",
    extensions: Collection[str] = (),
    algorithms: Collection[str] = DEFAULT_ALGORITHMS,
) -> VerifiedMessage:
    """Verify a signed request completely.

    (0) to (8) `authenticate_request`
    (9) `signers` allows the signer; the request was not received before
    (10) return the verified message

    Args:
        signers: which agents may sign requests to us.
        replay: remembers the request; only after everything else has passed, so that nobody can fill it with forgeries.

    Raises:
        SignatureError, PeerError: as `authenticate_request`; PeerNotAllowed: the signer is not one of `signers`.
        Replayed, ReplayGuardFull: from the guard.
    """
    message = authenticate_request(
        jws,
        method=method,
        url=url,
        body=body,
        audience=audience,
        verifier=verifier,
        peer=peer,
        now=now,
        content_type=content_type,
        version=version,
        extensions=extensions,
        algorithms=algorithms,
    )
    # (9)
    signers.check(message.signer.agent_id)
    message.remember(replay)
    # (10)
    return message


def sign_response(
    credentials: Credentials,
    *,
    request: VerifiedMessage | RequestReference,
    status: int,
    body: bytes,
    now: datetime,
    jti: str,
    content_type: str = "",
    chain: bool = False,
) -> str:
    """Sign the answer to a request; its receiver is whoever signed the request.

    Args:
        request: the verified request; a refusal too only for one that was authentic and is remembered (`trust.gate`).
            A `RequestReference` for what is public.
        status: of the answer.
        body: its exact bytes; empty where there is no body.
        jti, content_type, chain: as `sign_request`.

    Raises:
        ConfigurationError: an argument that no verifier would accept.
    """
    _check_content_type(content_type, ConfigurationError)
    request = reference_to(request)
    return envelope.sign(
        body,
        credentials=credentials,
        binding=_response_binding(status, content_type, request.jti, request.digest),
        audience=request.requester,
        now=now,
        jti=jti,
        lifetime=DEFAULT_LIFETIME,
        chain=chain,
    )


def verify_response(
    jws: str,
    *,
    request: SignedRequest,
    status: int,
    body: bytes,
    audience: AgentID,
    signers: Authorizer,
    verifier: PeerVerifier,
    peer: PeerIdentity | None,
    now: datetime,
    content_type: str = "",
    algorithms: Collection[str] = DEFAULT_ALGORITHMS,
) -> VerifiedMessage:
    """Verify the answer to a request of ours: steps (0) to (8) of `envelope.verify`, and then

    (9) the signer is the agent that the request was addressed to, where it was addressed to a SPIFFE ID; `signers`
        allows it

    No replay guard is needed: an answer names its request, and a request has one signed answer (`trust.gate`). So one
    that was refused was not executed, and is not afterwards. What is public may be answered more than once.

    Args:
        request: what `sign_request` returned.
        status, body, content_type: what was really received.
        audience: ourselves.
        signers: which agents may answer.
        peer: the other end of the channel; None where TLS ends elsewhere.

    Raises:
        ResponseMismatch: the answer belongs to another request, has another status or type, or is another agent's.
        SignatureError: its other leaf classes name the check that failed.
        PeerError: the certificate of the signer; PeerNotAllowed: it is not one of `signers`.
    """
    message = envelope.verify(
        jws,
        body,
        binding=_response_binding(status, content_type, request.jti, request.digest),
        audience=audience,
        verifier=verifier,
        peer=peer,
        usage="server",
        now=now,
        algorithms=algorithms,
    )
    # (9)
    check_answerer(message.signer.agent_id, request, signers)
    return message


def check_answerer(signer: AgentID, request: SignedRequest, signers: Authorizer) -> None:
    """Step (9) of `verify_response`, which says what it raises."""
    if request.audience.startswith("spiffe://") and str(signer) != request.audience:
        raise ResponseMismatch(
            "answer of another agent than the one that was asked", got=signer, expected=request.audience
        )
    signers.check(signer)


def signature_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The value of the one signature header, from raw header pairs with names in any case.

    Raises:
        SignatureMissing: there is none.
        SignatureMalformed: there are several; which one another reader verifies cannot be known.
    """
    values = [value for name, value in headers if name.lower() == _HEADER_NAME]
    if not values:
        raise SignatureMissing("message is not signed", expected=f"a {HEADER} header")
    if len(values) > 1:
        raise SignatureMalformed(f"{HEADER} header", got=f"{len(values)} of them", expected="exactly one")
    try:
        return values[0].decode("ascii")
    except UnicodeDecodeError:
        raise SignatureMalformed(f"{HEADER} header", got="bytes outside ASCII", expected="a compact JWS") from None


def content_type_of(headers: Iterable[tuple[bytes, bytes]], refusal: type[TrustError]) -> str:
    """The value of the one Content-Type, from raw header pairs with names in any case; empty where there is none.

    Raises:
        refusal: there are several, and which one another reader goes by cannot be known; or one that cannot be signed.
    """
    values = [value for name, value in headers if name.lower() == b"content-type"]
    if len(values) > 1:
        raise refusal("Content-Type", got=f"{len(values)} of them", expected="one or none")
    content_type = values[0].strip(b" \t").decode("latin-1") if values else ""
    _check_content_type(content_type, refusal)
    return content_type


def reference_to(request: VerifiedMessage | RequestReference) -> RequestReference:
    """What an answer to a verified request names."""
    if isinstance(request, RequestReference):
        return request
    return RequestReference(requester=request.signer.agent_id, jti=request.message_id, digest=request.digest)


def reference_of(
    headers: Iterable[tuple[bytes, bytes]], requester: AgentID, *, received: tuple[str, str]
) -> RequestReference | None:
    """What the answer of a public resource can be bound to: NOTHING of the request is verified, here or before.

    Never for a refusal, nor for what acts on a request: one and the same header would get several answers.

    Args:
        received: method and URL of what is answered.
        requester: the agent of the channel's certificate, who will be the receiver of the answer; never who the request
            claims to be from, so that nobody can have an answer signed for another.

    Returns:
        None where there is nothing to bind to: no header that could be a signature, or one for another method or URL.
    """
    try:
        jws = signature_of(headers)
        protected = strict_jws.parse_detached(jws, algorithms=DEFAULT_ALGORITHMS, typ=REQUEST_TYPE).header
        wanted = (received[0], target_uri(received[1]))
    except SignatureError:
        return None
    claims = protected.get("a2a")
    if not isinstance(claims, dict) or not envelope.is_message_id(jti := claims.get("jti")):
        return None
    if wanted != (claims.get("htm"), claims.get("htu")):
        return None
    return RequestReference(requester=requester, jti=str(jti), digest=envelope.digest(jws))


def _check_content_type(value: str, refusal: type[TrustError]) -> None:
    """What arrives as it was sent: printable ASCII, without the outer white space that HTTP parsers take away."""
    if value and not _CONTENT_TYPE.fullmatch(value):
        raise refusal("Content-Type", got=value, expected="printable ASCII without outer white space")


def _request_binding(method: str, url: str, content_type: str, version: str, extensions: Collection[str]) -> Binding:
    if isinstance(extensions, str):
        raise TypeError("extensions is a collection of URIs, not one str")
    members = {
        "htm": method,
        "htu": target_uri(url),
        "ver": version or None,
        "ext": sorted(set(extensions)) or None,  # their order in the header means nothing
    }
    return Binding(typ=REQUEST_TYPE, members=members, content_type=content_type, mismatch=BindingMismatch)


def _response_binding(status: int, content_type: str, jti: str, digest: str) -> Binding:
    members = {"st": status, "req": {"jti": jti, "s256": digest}}
    return Binding(typ=RESPONSE_TYPE, members=members, content_type=content_type, mismatch=ResponseMismatch)
